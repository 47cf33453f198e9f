"""What to serve: the command line's wishes, checked against this host.

`ServeConfig` is what the operator said. `plan` holds it against the host as it is (its
interfaces, addresses and CPUs) and returns a `Plan`: which sockets to bind and what the
responder may answer. Whatever cannot be carried out is a `ConfigError` whose text names the
fix; nothing has been opened by then.

What is served when nothing is said: with an interface, its addresses (for IPv6 not the
link-local ones), on wildcard sockets; without one, every address of the host.

A running service is planned anew when its configuration or the host changes. Some things it
cannot change any more: what the kernel objects are that lose no request meanwhile because they
stay (`check_change`). And then an address that the host no longer has is no mistake: it is not
served until it comes back.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pktstun.account import find_user
from pktstun.engine import Tuning, check_room
from pktstun.errors import ConfigError, NotYetError, StunError
from pktstun.kernel import (
    Interface,
    InterfaceAddress,
    ReceiveQueue,
    RingGeometry,
    local_addresses,
    receive_queues,
    worker_cpus,
)
from pktstun.kernel._ffi import lib
from pktstun.metrics import MetricsAddress, load_exporter
from pktstun.repeats import INTERVAL
from pktstun.streams import CertificateFiles, StreamLimits, check_certificate
from pktstun.stun import PORT, NatDiscovery, ResponderOptions, TransportAddress

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pktstun.limiter import RateLimit
    from pktstun.users import Credentials

__all__ = [
    "TLS_PORT",
    "Listen",
    "Mode",
    "Plan",
    "ServeConfig",
    "StreamPlan",
    "check_change",
    "parse_cpus",
    "plan",
]

log = logging.getLogger("pktstun")

TLS_PORT = 5349
"""RFC 8489 section 18.6: of STUN over TLS."""

_NONCE_KEY_SIZE = 32
_LONGEST_SOCKET_PATH = 107  # unix(7): 108 with the zero at its end

_LARGEST_BLOCK_OF_HANDOVERS = 32768
"""Bytes of a block whose requests, of at least 62 bytes and the kernel's headers, are no more than
the loop can hand over at once."""

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class _NoInterfaceError(NotYetError):
    """A link-local address names an interface that is not there."""


class Mode(StrEnum):
    """How requests are read and replies sent."""

    RING = "ring"
    """Read from packet rings, sent by UDP sockets."""
    DIRECT = "direct"
    """Read from packet rings, sent as frames."""
    RECVMMSG = "recvmmsg"
    """Read from UDP sockets, sent by them."""

    @property
    def reads_ring(self) -> bool:
        """Whether there are packet rings."""
        return self is not Mode.RECVMMSG


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What the operator asked for.

    Args:
        iface: the interface whose packets the rings read; None only for recvmmsg mode.
        mode: how requests are read; None for the ring with an interface, else recvmmsg.
        nat_discovery: serve RFC 5780 on two of the addresses of a family and two ports.
        alternate_port: the second port; None for the first one and 1.
        advertise: `ADDRESS=ADDRESS`, an address to serve and what clients know it by.
        classic: answer clients of RFC 3489.
        alternate_servers: where clients are sent instead; one for each address family.
        alternate_domain: what is on their certificate, for clients of TLS; None for the same name.
        takeover: keep the kernel from handling again what the rings answer; None where
            the kernel and the privileges allow it.
        listen: addresses to serve, `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
        port: for addresses that name none.
        cpus: one worker for each; None for those that serve the interface's receive queues.
        software: text of the SOFTWARE attribute, None for none.
        geometry: of the rings.
        tuning: of the loops.
        rate_limit: how often each source is answered; None for always.
        credentials: whose requests are answered; None for everybody's.
        nice: nice value of the workers; None for -10 where the service was started with 0 and
            the privileges allow it.
        user: whom to become when started as root; None for `pktstun`, if there is such a user.
        respect_firewall: refuse the modes that answer before the host's firewall rules.
        tcp: serve TCP on the same addresses and ports.
        tls: serve TLS on the same addresses.
        tls_port: of TLS.
        tls_certificate: file of the certificate and its chain, PEM.
        tls_key: file of its private key; None if it is in the same file.
        stream_limits: what clients of TCP and TLS may take.
        metrics: where metrics and health are served, `unix:/PATH` or a loopback address; None for
            nowhere.
        status: have a status socket.
        status_socket: its path; None for where there is a place.
        log_level: a name of `pktstun.log.LEVELS`.
        log_format: a name of `pktstun.log.FORMATS`; None for what suits standard error.
        log_interval: seconds between two log lines about the same cause; 0 for every line.
        places: the name of each option that was said to where that was, for messages; see
            `pktstun.places`.
    """

    iface: str | None = None
    mode: Mode | None = None
    listen: tuple[str, ...] = ()
    port: int = PORT
    cpus: tuple[int, ...] | None = None
    software: str | None = None
    nat_discovery: bool = False
    alternate_port: int | None = None
    advertise: tuple[str, ...] = ()
    classic: bool = False
    alternate_servers: tuple[str, ...] = ()
    alternate_domain: str | None = None
    takeover: bool | None = None
    geometry: RingGeometry = field(default_factory=RingGeometry)
    tuning: Tuning = field(default_factory=Tuning)
    rate_limit: RateLimit | None = None
    credentials: Credentials | None = None
    nice: int | None = None
    user: str | None = None
    respect_firewall: bool = False
    tcp: bool = False
    tls: bool = False
    tls_port: int = TLS_PORT
    tls_certificate: str | None = None
    tls_key: str | None = None
    stream_limits: StreamLimits = field(default_factory=StreamLimits)
    metrics: str | None = None
    status: bool = True
    status_socket: str | None = None
    log_level: str = "info"
    log_format: str | None = None
    log_interval: float = INTERVAL
    places: dict[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to bind to; `scope` is the interface of a link-local one."""

    address: TransportAddress
    scope: int = 0
    optional: bool = False
    """Chosen by default: left out where the host lacks the address family."""

    def overlaps(self, other: Listen) -> bool:
        """Whether one of the two is the wildcard address of the other's family and port."""
        ip, port = self.address
        theirs = other.address
        return (
            port == theirs.port
            and ip.version == theirs.ip.version
            and (ip.is_unspecified or theirs.ip.is_unspecified)
        )

    def __str__(self) -> str:
        if not self.scope:
            return str(self.address)
        try:
            zone = socket.if_indextoname(self.scope)
        except OSError:
            zone = str(self.scope)  # it is gone
        return f"[{self.address.ip}%{zone}]:{self.address.port}"


class Running(NamedTuple):
    """What of a plan stays as it is while the service runs."""

    mode: Mode
    iface: str | None
    """The name by which it was asked for."""
    ifindex: int
    """What it is now, 0 for none."""
    cpus: tuple[int, ...]
    geometry: RingGeometry
    seen: frozenset[IPAddress]
    """As in the plan."""
    user: str | None
    """The one that was asked for."""
    nonce_key: bytes = b""
    """As in the plan; empty where that version knew none."""
    tcp: bool = False
    tls: bool = False
    metrics: bool = False
    status: tuple[bool, str | None] = (True, None)
    """Whether there is a status socket, and the path that was asked for."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What to serve over TCP and TLS."""

    tcp: tuple[Listen, ...]
    tls: tuple[Listen, ...]
    tcp_options: ResponderOptions
    tls_options: ResponderOptions
    limits: StreamLimits
    certificate: CertificateFiles | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to open and what to answer."""

    config: ServeConfig
    """What was asked for."""
    mode: Mode
    iface: Interface | None
    listens: tuple[Listen, ...]
    cpus: tuple[int, ...]
    queues: tuple[ReceiveQueue, ...]
    """The interface's, as far as they are known."""
    takeover: bool | None
    geometry: RingGeometry
    tuning: Tuning
    rate_limit: RateLimit | None
    nice: int | None
    options: ResponderOptions
    """For datagrams from the sockets."""
    ring_options: ResponderOptions
    """For frames from the rings, whose addresses no kernel has checked."""
    seen: frozenset[IPAddress]
    """Addresses that interfaces have, or had since the service was started."""
    nonce_key: bytes = field(repr=False)
    """Secret, of the nonces of long-term credentials: the same as long as the service runs."""
    streams: StreamPlan | None = None
    metrics: MetricsAddress | None = None

    @property
    def workers(self) -> int:
        """How many there are: one for each CPU, then the exporter, then the one for streams."""
        return len(self.cpus) + (self.streams is not None) + (self.metrics is not None)

    @property
    def stream_worker(self) -> int | None:
        """The number of the worker for streams, if there is one."""
        return None if self.streams is None else self.workers - 1

    @property
    def exporter(self) -> int | None:
        """The number of the process that serves metrics, if there is one."""
        return None if self.metrics is None else len(self.cpus)

    @property
    def running(self) -> Running:
        """What the next plan has to know of this one."""
        return Running(
            self.mode,
            self.config.iface,
            self.iface.index if self.iface else 0,
            self.cpus,
            self.geometry,
            self.seen,
            self.config.user,
            self.nonce_key,
            self.config.tcp,
            self.config.tls,
            self.metrics is not None,
            (self.config.status, self.config.status_socket),
        )

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports that are served."""
        return tuple(sorted({listen.address.port for listen in self.listens}))


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read a list of CPUs as in cpuset(7): `0-3,8`.

    Raises:
        ConfigError: the text is no such list.
    """
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"{text!r} is no list of CPUs; write for example 0-3,8")
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(cpus))


def plan(
    config: ServeConfig,
    running: Running | None = None,
    *,
    follow: bool = False,
    imagined: bool = False,
) -> Plan:
    """Hold the configuration against this host.

    Args:
        config: what the operator asked for.
        running: what is being served, if anything is: the plan is to take its place.
        follow: the configuration is the one that runs, and the host has changed: listen addresses
            whose interface is gone are left out, and the certificate is not looked at.
        imagined: instead of this host take one that has what the configuration names, to find out
            what no host could carry out.

    Raises:
        ConfigError: it cannot be carried out; the text names the fix.
    """
    interfaces = _imagined(config) if imagined else local_addresses()
    iface = _find_again(config.iface, interfaces, running)
    mode = config.mode or (Mode.RING if iface and not config.respect_firewall else Mode.RECVMMSG)
    if mode.reads_ring:
        _check_ring(mode, iface, interfaces)
        if config.respect_firewall:
            raise ConfigError(
                f"--respect-firewall: a packet ring, which {mode} mode reads, sees requests "
                "before the rules of the host's firewall do: use --mode recvmmsg, or leave it out"
            )
    elif config.takeover:
        raise ConfigError(
            "--takeover spares the kernel what a ring answers, and recvmmsg mode has no ring: "
            "leave it out, or use --mode ring or direct"
        )
    listens = _listens(config, iface, interfaces, follow=follow)
    discovery = _discovery(config, listens)
    listens += tuple(
        Listen(endpoint)
        for each in discovery
        for endpoint in each.endpoints
        if Listen(endpoint) not in listens
    )
    served = iface if iface and not config.listen else None
    present = {address.ip for found in interfaces for address in found.addresses}
    seen = frozenset(present).union(running.seen if running else ())
    # An address that no interface ever had may be local all the same (a route of type local).
    endpoints = frozenset(
        each
        for each in _endpoints(listens, served, interfaces)
        if each.ip in present or each.ip not in seen
    )
    if served and not endpoints and running is None:
        raise NotYetError(
            f"--iface {served.name} has no address to serve: give it one "
            f"('ip address add ADDRESS/PREFIX dev {served.name}'), or name one with --listen"
        )
    nonce_key = (running.nonce_key if running else b"") or secrets.token_bytes(_NONCE_KEY_SIZE)
    credentials = config.credentials
    if credentials:
        _check_credentials(config, mode)
    try:
        options = ResponderOptions(
            software=config.software,
            endpoints=endpoints,
            local=frozenset(present),
            # Only the sockets of the default are bound to more than what is served.
            check_destination=served is not None,
            broadcasts=_broadcasts(iface, interfaces),
            allow_loopback=True,
            # While one of its addresses is gone, nobody is told of the others.
            discovery=tuple(each for each in discovery if endpoints.issuperset(each.endpoints)),
            classic=config.classic,
            alternate_servers=_alternate_servers(config, endpoints),
            authenticator=credentials.authenticator(nonce_key) if credentials else None,
        )
    except StunError as error:
        raise ConfigError(f"--software: {error}") from error
    check_room(options, len(listens))
    streams = _streams(config, listens, options)
    user = None if imagined else find_user(config.user)
    _check_status(config, on_host=not (running or imagined))
    if streams and streams.certificate and not follow and not imagined:
        for warning in check_certificate(streams.certificate, user):
            log.warning("%s", warning)
    if credentials and credentials.realm is not None and not config.rate_limit and not running:
        log.warning(
            "with --auth long-term the answer to a request without credentials is longer than the "
            "request, and its source may be forged: set --rate-limit"
        )
    queues = receive_queues(iface) if iface and not imagined else ()
    return Plan(
        config=config,
        mode=mode,
        iface=iface,
        listens=listens,
        cpus=running.cpus
        if running and config.cpus in {None, running.cpus}
        else _cpus(None if imagined else config.cpus, queues),
        queues=queues,
        takeover=config.takeover if mode.reads_ring else False,
        geometry=config.geometry,
        tuning=_tuning(config, listens),
        rate_limit=config.rate_limit,
        nice=config.nice,
        options=options,
        ring_options=_ring_options(options, iface),
        seen=seen,
        nonce_key=nonce_key,
        streams=streams,
        metrics=_metrics(config),
    )


def check_change(old: Running, plan: Plan) -> None:
    """Find out whether a running service can go over to a plan.

    Raises:
        ConfigError: it cannot, without losing requests; the text says what was to change.
    """
    new = plan.running
    fixed = {
        "--mode": (old.mode, new.mode),
        "--iface": (old.iface, new.iface),
        "--cpus": (old.cpus, new.cpus),
        "--block-size, --blocks or --retire-timeout": (old.geometry, new.geometry),
        "--user": (old.user, new.user),
        "--tcp": (old.tcp, new.tcp),
        "--tls": (old.tls, new.tls),
        "--metrics, from none to some or back,": (old.metrics, new.metrics),
        "--status or --status-socket": (old.status, new.status),
    }
    changed = [name for name, (before, after) in fixed.items() if before != after]
    if changed:
        raise ConfigError(
            f"{changed[0]} cannot change while the service runs: put the old value back, or "
            "restart the service"
        )


def _check_credentials(config: ServeConfig, mode: Mode) -> None:
    """Refuse what credentials do not go with."""
    if config.classic:
        raise ConfigError(
            "--auth: clients of RFC 3489 know no such credentials: leave out --auth or --classic"
        )
    if mode.reads_ring and config.geometry.block_size > _LARGEST_BLOCK_OF_HANDOVERS:
        raise ConfigError(
            "--auth: Python answers every request, and takes no more at once than fit in a block "
            f"of {_LARGEST_BLOCK_OF_HANDOVERS} bytes: lower --block-size"
        )


def _check_status(config: ServeConfig, *, on_host: bool) -> None:
    if config.status_socket is None:
        return
    path = Path(config.status_socket)
    if not config.status:
        raise ConfigError(
            f"--status-socket {path} and --no-status contradict each other: leave one out"
        )
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"--status-socket {path}: a socket's path has at most {_LONGEST_SOCKET_PATH} bytes"
        )
    # A service that runs has its socket, whatever becomes of the directory.
    if on_host and not path.parent.is_dir():
        raise ConfigError(
            f"--status-socket {path}: there is no directory {path.parent}: make it, or correct it"
        )


def _tuning(config: ServeConfig, listens: Collection[Listen]) -> Tuning:
    """Return what was asked for; with credentials, so that all requests may go to respond().

    There are no others then that it could slow down, and what is read in one pass has room.
    """
    if config.credentials is None:
        return config.tuning
    batch = min(config.tuning.batch, lib.PKTSTUN_MAX_HANDOVERS // len(listens))
    return replace(config.tuning, batch=batch, handover_percent=100)


def _streams(
    config: ServeConfig, listens: Sequence[Listen], options: ResponderOptions
) -> StreamPlan | None:
    """Return what to serve over streams: the same addresses."""
    if not 1 <= config.tls_port <= 0xFFFF:
        raise ConfigError(f"--tls-port {config.tls_port} is not in 1..65535")
    tcp = tuple(listens) if config.tcp else ()
    tls: tuple[Listen, ...] = ()
    certificate = None
    if config.tls:
        if config.tls_certificate is None:
            raise ConfigError(
                "--tls needs a certificate: name its file with --tls-certificate, and that of "
                "its key with --tls-key"
            )
        certificate = CertificateFiles(
            config.tls_certificate, config.tls_key or config.tls_certificate
        )
        # One for each address, also where several of its ports are served.
        moved = (
            replace(each, address=each.address._replace(port=config.tls_port)) for each in listens
        )
        tls = tuple(dict.fromkeys(moved))
        for one in tls:
            if any(one == other or one.overlaps(other) for other in tcp):
                raise ConfigError(
                    f"--tls-port {config.tls_port} is a port of --tcp on {one.address.ip}: choose "
                    "another"
                )
    if not tcp and not tls:
        return None
    # On a connection no reply can come from elsewhere or go elsewhere (RFC 5780), and without the
    # magic cookie nobody knows where a message begins (RFC 3489). No connection comes from a
    # broadcast address, and from an address of the host itself only if it is the host's own.
    plain = replace(options, classic=False, discovery=(), broadcasts=frozenset(), local=frozenset())
    tls_options = _tls_options(plain, config)
    return StreamPlan(tcp, tls, plain, tls_options, config.stream_limits, certificate)


def _tls_options(plain: ResponderOptions, config: ServeConfig) -> ResponderOptions:
    """Return what is answered over TLS, from what is answered over TCP."""
    options = _at_port(plain, config.tls_port)
    for alternate in options.alternate_servers if config.tls else ():
        if alternate in options.endpoints:
            raise ConfigError(
                f"--alternate-server: over TLS {alternate} would be this server: name another one"
            )
    try:
        return replace(options, alternate_domain=config.alternate_domain)
    except StunError as error:
        raise ConfigError(f"--alternate-domain: {error}") from error


def _metrics(config: ServeConfig) -> MetricsAddress | None:
    if config.metrics is None:
        return None
    load_exporter()
    return MetricsAddress.parse(config.metrics)


def _at_port(options: ResponderOptions, port: int) -> ResponderOptions:
    """Return the options of servers on the same addresses, and one port.

    The alternate server's is the same one, too: clients stay with the transport that they have
    (RFC 8489 section 10).
    """
    return replace(
        options,
        endpoints=frozenset(each._replace(port=port) for each in options.endpoints),
        alternate_servers=tuple(each._replace(port=port) for each in options.alternate_servers),
    )


def _check_ring(mode: Mode, iface: Interface | None, interfaces: Iterable[Interface]) -> None:
    if iface is None:
        raise ConfigError(
            f"{mode} mode reads the packets of one interface: name it with --iface "
            f"({_names(interfaces)}), or use --mode recvmmsg"
        )
    if iface.master:
        # The sockets would see its packets as the master's, and answer them again.
        master = next((known.name for known in interfaces if known.index == iface.master), "")
        raise ConfigError(
            f"--iface {iface.name} is a port of {master or 'another interface'}, by which the host "
            "receives its packets: name that with --iface, or use --mode recvmmsg"
        )
    if not (iface.is_ethernet or iface.is_loopback):
        raise ConfigError(
            f"--iface {iface.name} is no Ethernet interface (hardware type {iface.hardware}), and "
            "a ring reads Ethernet frames: use --mode recvmmsg"
        )
    if mode is Mode.DIRECT and not iface.is_ethernet:
        raise ConfigError(
            f"--iface {iface.name} has no neighbours, and direct mode sends Ethernet frames back "
            "to the neighbour that they came from: use --mode ring"
        )


def _ring_options(options: ResponderOptions, iface: Interface | None) -> ResponderOptions:
    """Return what is answered of the frames of an interface.

    No frame from outside has a loopback address at either end (RFC 1122, RFC 4291), and an IPv6
    link-local address is served on its own interface only (RFC 4007).
    """
    is_loopback = bool(iface and iface.is_loopback)
    own = {address.ip for address in iface.addresses} if iface else set()

    def is_served(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        if ip.is_loopback:
            return is_loopback
        return ip.version == 4 or not ip.is_link_local or ip in own

    return replace(
        options,
        endpoints=frozenset(each for each in options.endpoints if is_served(each.ip)),
        check_destination=True,
        allow_loopback=is_loopback,
    )


def _names(interfaces: Iterable[Interface]) -> str:
    return "one of " + ", ".join(sorted(found.name for found in interfaces))


def _imagined(config: ServeConfig) -> tuple[Interface, ...]:
    """Return the interfaces of a host that has what a configuration names."""
    names = dict.fromkeys(["lo"] if config.iface is None else ["lo", config.iface])
    for text in config.listen:
        with suppress(StunError):
            ip = TransportAddress.parse(text, config.port).ip
            if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id:
                names[ip.scope_id] = None
    own = (
        InterfaceAddress(ipaddress.IPv4Address("127.0.0.1")),
        InterfaceAddress(ipaddress.IPv6Address("::1")),
    )
    return tuple(
        Interface(
            name=name,
            index=index,
            is_up=True,
            is_loopback=name == "lo",
            addresses=own,
            hardware=772 if name == "lo" else 1,
            mac=b"",
            mtu=1500,
        )
        # No host has so many that one of them has such an index.
        for index, name in enumerate(names, start=1 << 30)
    )


def _find_again(
    name: str | None, interfaces: Iterable[Interface], running: Running | None
) -> Interface | None:
    """Return the interface; a running service goes on with its own, also under another name."""
    if running and running.iface == name:
        for found in interfaces:
            if found.index == running.ifindex:
                return found
    return _find(name, interfaces)


def _find(name: str | None, interfaces: Iterable[Interface]) -> Interface | None:
    if name is None:
        return None
    for found in interfaces:
        if found.name == name:
            return found
    raise NotYetError(f"--iface: there is no network interface {name!r}: name {_names(interfaces)}")


def _listens(
    config: ServeConfig,
    iface: Interface | None,
    interfaces: Sequence[Interface],
    *,
    follow: bool,
) -> tuple[Listen, ...]:
    if not 1 <= config.port <= 0xFFFF:
        raise ConfigError(f"--port {config.port} is not in 1..65535")
    if not config.listen:
        return tuple(
            Listen(TransportAddress(ip, config.port), optional=True)
            for ip in (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))
        )
    listens = []
    for text in config.listen:
        try:
            listens.append(_listen(text, config.port, iface, interfaces))
        except _NoInterfaceError:
            if not follow or (text == config.listen[-1] and not listens):
                raise
    for listen in listens:
        if listens.count(listen) > 1:
            raise ConfigError(f"--listen {listen.address} is given twice")
        if not listen.address.ip.is_unspecified and any(
            other.address.ip.is_unspecified
            and other.address.ip.version == listen.address.ip.version
            and other.address.port == listen.address.port
            for other in listens
        ):
            raise ConfigError(
                f"--listen {listen.address} is served already by the wildcard address: "
                "leave one of them out"
            )
    return tuple(listens)


def _discovery(config: ServeConfig, listens: tuple[Listen, ...]) -> tuple[NatDiscovery, ...]:
    """Return what RFC 5780 needs, for each address family in which there are two addresses."""
    if not config.nat_discovery:
        for option, given in (
            ("alternate-port", config.alternate_port),
            ("advertise", config.advertise),
        ):
            if given:
                raise ConfigError(f"--{option} is of use with --nat-discovery only")
        return ()
    if any(listen.optional or listen.address.ip.is_unspecified for listen in listens):
        raise ConfigError(
            "--nat-discovery takes two addresses, from either of which replies can be asked for: "
            "name them, with --listen ADDR --listen ADDR"
        )
    advertised = _advertised(config, {listen.address.ip for listen in listens})
    found = []
    for version in sorted({listen.address.ip.version for listen in listens}):
        own = [listen for listen in listens if listen.address.ip.version == version]
        ips = tuple(listen.address.ip for listen in own)
        ports = {listen.address.port for listen in own}
        if len(own) != 2 or len(ports) != 1 or any(listen.scope for listen in own):
            raise ConfigError(
                f"--nat-discovery takes two IPv{version} addresses with the same port, neither of "
                f"them link-local, and not {', '.join(map(str, own))}: correct --listen"
            )
        (port,) = ports
        other = port + 1 if config.alternate_port is None else config.alternate_port
        try:
            found.append(
                NatDiscovery(
                    (ips[0], ips[1]),
                    (port, other),
                    (advertised.get(ips[0], ips[0]), advertised.get(ips[1], ips[1])),
                )
            )
        except StunError as error:
            raise ConfigError(f"--nat-discovery, --alternate-port, --advertise: {error}") from error
    return tuple(found)


def _advertised(config: ServeConfig, served: Collection[IPAddress]) -> dict[IPAddress, IPAddress]:
    advertised = {}
    for text in config.advertise:
        try:
            local, known = map(ipaddress.ip_address, text.split("="))
        except ValueError as error:
            raise ConfigError(
                f"--advertise {text!r}: write an address to serve and the one by which clients "
                "know it, as 10.0.0.1=192.0.2.1"
            ) from error
        if local not in served:
            raise ConfigError(f"--advertise {text}: {local} is none of the --listen addresses")
        advertised[local] = known
    return advertised


def _alternate_servers(
    config: ServeConfig, endpoints: Collection[TransportAddress]
) -> tuple[TransportAddress, ...]:
    if config.alternate_domain is not None and not (config.tls and config.alternate_servers):
        raise ConfigError("--alternate-domain is of use with --alternate-server and --tls only")
    alternates: list[TransportAddress] = []
    for text in config.alternate_servers:
        try:
            alternate = TransportAddress.parse(text, config.port)
        except StunError as error:
            raise ConfigError(f"--alternate-server {text}: {error}") from error
        ip = alternate.ip
        if alternate in endpoints or not alternate.port or ip.is_unspecified or ip.is_multicast:
            raise ConfigError(f"--alternate-server {text}: name another server, by its address")
        if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.scope_id):
            raise ConfigError(f"--alternate-server {text}: clients elsewhere cannot use it")
        if any(ip.version == other.ip.version for other in alternates):
            raise ConfigError(
                f"--alternate-server {text}: there is one for IPv{ip.version} already"
            )
        alternates.append(alternate)
    return tuple(alternates)


def _listen(
    text: str, port: int, iface: Interface | None, interfaces: Sequence[Interface]
) -> Listen:
    try:
        address = TransportAddress.parse(text, port)
    except StunError as error:
        raise ConfigError(f"--listen {text}: {error}") from error
    if address.port == 0:
        raise ConfigError(f"--listen {text}: a server needs a port in 1..65535")
    if address.unmapped() != address:
        raise ConfigError(f"--listen {text}: write the IPv4 address, {address.unmapped().ip}")
    broadcasts = {known.broadcast for found in interfaces for known in found.addresses}
    broadcasts.add(ipaddress.IPv4Address("255.255.255.255"))
    if address.ip.is_multicast or address.ip in broadcasts:
        raise ConfigError(f"--listen {text}: a server needs a unicast address")
    if not isinstance(address.ip, ipaddress.IPv6Address):
        return Listen(address)
    zone, plain = address.ip.scope_id, ipaddress.IPv6Address(int(address.ip))
    return Listen(
        TransportAddress(plain, address.port), _scope(text, plain, zone, iface, interfaces)
    )


def _scope(
    text: str,
    ip: ipaddress.IPv6Address,
    zone: str | None,
    iface: Interface | None,
    interfaces: Sequence[Interface],
) -> int:
    """Return the index of the interface of a link-local address, 0 for others."""
    if not ip.is_link_local:
        if zone is not None:
            raise ConfigError(
                f"--listen {text}: only a link-local address has an interface: leave %{zone} out"
            )
        return 0
    if zone is not None:
        named = next((i for i in interfaces if zone in {i.name, str(i.index)}), None)
        if named is None:
            raise _NoInterfaceError(f"--listen {text}: there is no network interface {zone!r}")
        return named.index
    if iface is None:
        raise ConfigError(f"--listen {text}: say on which interface, as {text}%eth0")
    return iface.index


def _endpoints(
    listens: Iterable[Listen], served: Interface | None, interfaces: Iterable[Interface]
) -> Iterable[TransportAddress]:
    """Yield the transport addresses served; wildcards stand for the host's, or `served`'s."""
    for listen in listens:
        ip, port = listen.address
        if not ip.is_unspecified:
            yield listen.address
            continue
        for found in [served] if served else interfaces:
            for address in found.addresses:
                hidden = served and ip.version == 6 and address.ip.is_link_local
                if address.ip.version == ip.version and not hidden:
                    yield TransportAddress(address.ip, port)


def _broadcasts(
    iface: Interface | None, interfaces: Iterable[Interface]
) -> frozenset[ipaddress.IPv4Address]:
    """Return the broadcast addresses of the host's networks, the interface's own first.

    There is room for some hundred. A source beyond them is answered in vain: the kernel
    refuses to send to it, and the refusal is counted; direct mode sends to the neighbour that
    the request came from, and to nobody else.
    """
    found = dict.fromkeys(
        address.broadcast
        for known in ([iface] if iface else []) + list(interfaces)
        for address in known.addresses
        if address.broadcast is not None
    )
    return frozenset(islice(found, lib.PKTSTUN_MAX_BROADCASTS))


def _cpus(wanted: Collection[int] | None, queues: Sequence[ReceiveQueue]) -> tuple[int, ...]:
    usable = os.sched_getaffinity(0)
    if wanted is None:
        return worker_cpus(queues, usable)
    missing = sorted(set(wanted) - usable)
    if missing:
        raise ConfigError(
            f"CPU {missing[0]} cannot be used by this process: choose --cpus from "
            + ",".join(map(str, sorted(usable)))
        )
    return tuple(sorted(wanted))
