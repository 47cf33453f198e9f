"""What a NAT or a firewall on the way does: RFC 5780, in the words of RFC 4787.

Theory of operation: a server that has two addresses and two ports makes the tests possible. Three
sockets ask it who they are; then all that follows runs side by side, each test from a socket
that has not been used with the address in question:

- mapping (section 4.3): the first socket asks the other address, and the other address at the
  other port. Does the same public address come back?
- filtering (section 4.4): two fresh sockets ask the server to answer from the other address and
  port, and from the other port. Which of the answers gets in?
- hairpinning (section 3.4): two sockets send to one another's public address. Does it arrive? (One
  of the two must get through a filter that lets in whom its socket has sent to before.)

Silence means something here, so nothing is concluded from one lost datagram: every request is sent
several times. And where both answers of the filtering tests stay out, a control has to succeed
before the filter is blamed: a socket that has just asked the other address gets its answer from
there. Transactions begin a tenth of a second apart (section 5: ten a second at most).

The binding lifetime (section 4.6) takes as long as it is long. Many sockets send at the same time
and are each looked for after another wait, by a request from elsewhere whose RESPONSE-PORT is the
public port of the first; a second round divides what the first has left open.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from pktstun.stun import (
    Action,
    Attribute,
    ChangeRequest,
    Class,
    MappedAddress,
    Message,
    OtherAddress,
    ResponsePort,
    Transaction,
    TransportAddress,
    XorMappedAddress,
)

from ._servers import QueryError
from ._transport import family_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PACE = 0.1
_BUFFER = 65535
# Sent at 0, 1, 3 and 7 RTO, and given up at 11: silence is an answer, and waited for.
_TRIES, _LAST_WAIT = 4, 4
# What a second round divides the open interval of the binding lifetime into, and the first wait.
_PARTS = 6
_SHORTEST = 1.0

RECOMMENDED_LIFETIME = 120.0
"""Seconds that a binding lasts at least (RFC 4787 REQ-5)."""


class Behaviour(StrEnum):
    """What a mapping or a filter depends on (RFC 4787 sections 4.1 and 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"

    @property
    def words(self) -> str:
        """The term as RFC 4787 writes it."""
        return self.replace("address-and-port-", "address and port-")


class NatUnsupportedError(QueryError):
    """The server answers and has no second address: RFC 5780 is not for it.

    `local` and `mapped` are what it could still tell.
    """

    def __init__(
        self, server: TransportAddress, local: TransportAddress, mapped: TransportAddress
    ) -> None:
        super().__init__(
            f"{server} does not support RFC 5780 (no OTHER-ADDRESS with a second address and "
            f"port), so it cannot tell how a NAT behaves; this host's address is {mapped}, "
            f"{'behind a NAT' if mapped != local else 'without a NAT'}. Ask a server with two "
            "addresses, as 'pktstun serve --nat-discovery' or coturn"
        )
        self.local = local
        self.mapped = mapped


@dataclass(frozen=True, slots=True)
class NatReport:
    """What was found out; None is what could not be, and `notes` say why."""

    server: TransportAddress
    other: TransportAddress
    """The server's other address and port."""
    local: TransportAddress
    mapped: TransportAddress
    mapping: Behaviour | None = None
    """Endpoint-independent where there is no NAT (RFC 5780 section 4.3)."""
    filtering: Behaviour | None = None
    """Of the NAT, or of a firewall."""
    hairpinning: bool | None = None
    """Whether two hosts behind the NAT reach each other at its public address."""
    rewrites_addresses: bool | None = None
    """Whether something on the way rewrites addresses inside datagrams (a generic ALG, RFC 5780
    section 3.6)."""
    lifetime: tuple[float, float | None] | None = None
    """Seconds: a binding lives longer than the first, and not as long as the second."""
    notes: tuple[str, ...] = ()

    @property
    def is_nat(self) -> bool:
        """Whether the server sees another address than this host has."""
        return self.local != self.mapped

    @property
    def is_filtered(self) -> bool | None:
        """Whether not everybody gets in."""
        return None if self.filtering is None else self.filtering != Behaviour.ENDPOINT_INDEPENDENT

    @property
    def preserves_port(self) -> bool:
        """Whether the public port is the local one (RFC 4787 section 4.2.1)."""
        return self.local.port == self.mapped.port


@dataclass(eq=False)
class _Probe:
    """One request that is sent until something comes in on `ear`, or for long enough."""

    sock: socket.socket
    destination: TransportAddress
    attributes: tuple[Attribute, ...] = ()
    ear: socket.socket | None = None
    """Where the answer is awaited, if not where the request is sent from."""
    is_echo: bool = False
    """The request itself is what has to arrive."""
    begin: float | None = None
    """When to begin, of the monotonic clock; None for in turn with the others."""
    transaction: Transaction = field(init=False)
    response: Message | None = None
    source: TransportAddress | None = None
    problem: OSError | None = None

    def start(self, begin: float, rto: float) -> None:
        request = Message.request(*self.attributes).with_fingerprint()
        self.transaction = Transaction(
            request, begin, rto=rto, requests=_TRIES, last_wait=_LAST_WAIT
        )

    def send(self) -> None:
        data = self.transaction.request.encode()
        try:
            self.sock.sendto(data, (str(self.destination.ip), self.destination.port))
        except OSError as error:
            self.problem = error

    def hear(self, data: bytes, source: TransportAddress) -> bool:
        """Return whether a datagram on `ear` is what is awaited."""
        if self.is_echo:
            if data != self.transaction.request.encode():
                return False
            self.response = self.transaction.request
        else:
            self.response = self.transaction.receive(data)
        self.source = source
        return self.response is not None

    @property
    def mapped(self) -> TransportAddress | None:
        """The address in a success response."""
        if self.response is None or self.response.message_class != Class.SUCCESS:
            return None
        return self.response.mapped_address

    @property
    def error(self) -> str | None:
        """What an error response says."""
        error = self.response.error if self.response else None
        return f"{error.code} {error.reason}".strip() if error else None


class _Sockets(contextlib.ExitStack):
    """The sockets of one discovery, on the address from which the server is reached."""

    def __init__(self, server: TransportAddress) -> None:
        super().__init__()
        self._family = family_of(server)
        with socket.socket(self._family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(server.ip), server.port))
            ip, _, *rest = sock.getsockname()
            self._home = (ip, 0, *rest)

    def new(self) -> socket.socket:
        sock = self.enter_context(socket.socket(self._family, socket.SOCK_DGRAM))
        sock.settimeout(0)
        sock.bind(self._home)
        return sock


def _each(probes: Iterable[_Probe], rto: float) -> Iterator[_Probe]:
    """Run probes side by side; yield each as it has ended, and stop where nobody asks on."""
    now = time.monotonic()
    pending = list(probes)
    for turn, probe in enumerate(pending):
        probe.start(now + turn * _PACE if probe.begin is None else probe.begin, rto)
    with selectors.DefaultSelector() as selector:
        for sock in {probe.ear or probe.sock for probe in pending}:
            selector.register(sock, selectors.EVENT_READ)
        while pending:
            now = time.monotonic()
            for probe in list(pending):
                action = probe.transaction.poll(now)
                if action is Action.SEND:
                    probe.send()
                elif action is Action.FAIL:
                    pending.remove(probe)
                    yield probe
            wake = min((probe.transaction.deadline for probe in pending), default=now)
            for key, _ in selector.select(max(wake - time.monotonic(), 0)):
                for probe in _read(key.fileobj, pending):
                    pending.remove(probe)
                    yield probe


def _run(probes: list[_Probe], rto: float) -> None:
    """Run probes side by side to their end."""
    for _ in _each(probes, rto):
        pass


def _read(sock: object, pending: list[_Probe]) -> list[_Probe]:
    """Return the probes that what lies on a socket brings to their end."""
    ended: list[_Probe] = []
    assert isinstance(sock, socket.socket)  # noqa: S101 - what was registered
    with contextlib.suppress(BlockingIOError):
        while True:
            data, peer = sock.recvfrom(_BUFFER)
            source = TransportAddress.from_sockaddr(peer)
            ended += [
                probe
                for probe in pending
                if (probe.ear or probe.sock) is sock
                and probe not in ended
                and probe.hear(data, source)
            ]
    return ended


def discover(
    server: TransportAddress,
    *,
    rto: float = 0.5,
    lifetime: float | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> NatReport:
    """Find out how the NATs and firewalls between this host and a server behave, for UDP.

    It takes a few seconds, or 11 times `rto` where a filter is silent. What is true for one port
    and one moment need not be true for others (RFC 5780 section 4).

    Args:
        server: one with a second address and port.
        rto: seconds until the first retransmission.
        lifetime: also measure how long an unused binding lives, up to so many seconds; that takes
            up to twice as long.
        progress: is told what has been found out meanwhile, in words.

    Raises:
        NatUnsupportedError: the server has no second address.
        QueryError: the server does not answer correctly.
    """
    try:
        with _Sockets(server) as sockets:
            report = _discover(server, sockets, rto)
            if lifetime is not None:
                if report.is_nat or report.is_filtered:
                    return _with_lifetime(report, sockets, rto, lifetime, progress)
                progress("nothing is in the way whose bindings could expire")
            return report
    except OSError as error:
        raise QueryError(f"cannot ask {server}: {error.strerror or error}") from error


def _discover(server: TransportAddress, sockets: _Sockets, rto: float) -> NatReport:
    first, left, right = (_Probe(sockets.new(), server) for _ in range(3))
    _run([first, left, right], rto)
    mapped = _expect(first)
    assert first.response is not None  # noqa: S101 - it has an address
    local = TransportAddress.from_sockaddr(first.sock.getsockname()).without_zone()
    other = first.response.get(OtherAddress)
    if other is None or other.address.ip == server.ip or other.address.port == server.port:
        raise NatUnsupportedError(server, local, mapped)
    away = other.address
    notes: list[str] = []

    second = _Probe(first.sock, TransportAddress(away.ip, server.port))
    third = _Probe(first.sock, away)
    both = _Probe(sockets.new(), server, (ChangeRequest(change_ip=True, change_port=True),))
    port = _Probe(sockets.new(), server, (ChangeRequest(change_port=True),))
    echoes: list[_Probe] = []
    if mapped != local:
        echoes = [
            _Probe(here.sock, there.mapped, ear=there.sock, is_echo=True)
            for here, there in ((left, right), (right, left))
            if there.mapped
        ]
    _run([second, third, both, port, *echoes], rto)
    hairpinning = any(echo.response for echo in echoes) if echoes else None

    mapping = _mapping(local, mapped, second, third, notes)
    filtering = _filtering(server, away, both, port, notes)
    # Silence from the other address may be that address's.
    is_blamed = filtering in {Behaviour.ADDRESS_DEPENDENT, Behaviour.ADDRESS_AND_PORT_DEPENDENT}
    if is_blamed and not _is_answered_when_invited(server, away, mapping, sockets, rto):
        filtering = None
        notes.append(
            "no answer comes from the server's other address, even where that was asked before: "
            "nothing can be said about filtering"
        )
    return NatReport(
        server=server,
        other=away,
        local=local,
        mapped=mapped,
        mapping=mapping,
        filtering=filtering,
        hairpinning=hairpinning,
        rewrites_addresses=_rewrites(first.response),
        notes=tuple(notes),
    )


def _expect(probe: _Probe) -> TransportAddress:
    """Return the address in an answer that there has to be."""
    if probe.mapped:
        return probe.mapped
    if probe.error:
        raise QueryError(f"{probe.destination} answered with an error: {probe.error}")
    if probe.response:
        raise QueryError(f"{probe.destination} answered without an address")
    reason = f": {probe.problem.strerror}" if probe.problem else ""
    raise QueryError(
        f"no answer from {probe.destination} to {probe.transaction.sent} requests{reason}. Either "
        "nobody serves there, or a firewall keeps UDP from passing"
    )


def _rewrites(response: Message) -> bool | None:
    plain, masked = response.get(MappedAddress), response.get(XorMappedAddress)
    return plain.address != masked.address if plain and masked else None


def _mapping(
    local: TransportAddress,
    mapped: TransportAddress,
    second: _Probe,
    third: _Probe,
    notes: list[str],
) -> Behaviour | None:
    """Compare what the server has seen at its addresses (RFC 5780 section 4.3)."""
    if mapped == local:
        return Behaviour.ENDPOINT_INDEPENDENT
    for probe in (second, third):
        if probe.mapped is None:
            said = f"says {probe.error}" if probe.error else "does not answer"
            notes.append(
                f"the server's other address {probe.destination} {said}: nothing can be said "
                "about mapping"
            )
            return None
    if second.mapped == mapped == third.mapped:
        return Behaviour.ENDPOINT_INDEPENDENT
    if second.mapped == third.mapped:
        return Behaviour.ADDRESS_DEPENDENT
    return Behaviour.ADDRESS_AND_PORT_DEPENDENT


def _filtering(
    server: TransportAddress,
    away: TransportAddress,
    both: _Probe,
    port: _Probe,
    notes: list[str],
) -> Behaviour | None:
    """Say which of the answers from elsewhere got in (RFC 5780 section 4.4)."""
    for probe, wanted in ((both, away), (port, TransportAddress(server.ip, away.port))):
        if probe.response is None:
            continue
        if probe.error or probe.source != wanted:
            said = f"says {probe.error}" if probe.error else f"answers from {probe.source}"
            notes.append(
                f"the server {said} where it was asked to answer from {wanted}: nothing can be "
                "said about filtering"
            )
            return None
        dependent = Behaviour.ADDRESS_DEPENDENT
        return Behaviour.ENDPOINT_INDEPENDENT if probe is both else dependent
    return Behaviour.ADDRESS_AND_PORT_DEPENDENT


def _is_answered_when_invited(
    server: TransportAddress,
    away: TransportAddress,
    mapping: Behaviour | None,
    sockets: _Sockets,
    rto: float,
) -> bool:
    """Return whether an answer from the other address gets in where it is asked for.

    Where the mapping depends on the address, an invitation opens the filter for another public
    port than the one that the server is told: the answers of the mapping's tests have to do.
    """
    if mapping is not Behaviour.ENDPOINT_INDEPENDENT:
        return mapping is not None
    invitation = _Probe(sockets.new(), away)
    _run([invitation], rto)
    change = (ChangeRequest(change_ip=True, change_port=True),)
    control = _Probe(invitation.sock, server, change)
    _run([control], rto)
    return control.response is not None


# --- How long a binding lives ---


def _with_lifetime(
    report: NatReport,
    sockets: _Sockets,
    rto: float,
    limit: float,
    progress: Callable[[str], None],
) -> NatReport:
    if not _is_open_after(0, report.server, sockets, rto):
        note = (
            "the server does not answer to another port (RESPONSE-PORT, RFC 5780 section 7.5): "
            "nothing can be said about the lifetime of bindings"
        )
        return replace(report, notes=(*report.notes, note))
    waits = [limit]
    while waits[0] / 2 >= _SHORTEST:
        waits.insert(0, waits[0] / 2)
    alive, dead = _search(waits, report.server, sockets, rto, progress)
    if dead is not None:
        step = (dead - alive) / _PARTS
        between = [alive + step * part for part in range(1, _PARTS)]
        longer, shorter = _search(between, report.server, sockets, rto, progress)
        alive, dead = max(alive, longer), shorter or dead
    return replace(report, lifetime=(alive, dead))


def _search(
    waits: list[float],
    server: TransportAddress,
    sockets: _Sockets,
    rto: float,
    progress: Callable[[str], None],
) -> tuple[float, float | None]:
    """Return the longest of the waits that a binding outlived and the shortest that it did not."""
    progress(f"bindings are left alone for up to {waits[-1]:.0f} s")
    alive = 0.0
    for wait, is_open in _after(waits, server, sockets, rto):
        progress(f"a binding is {'alive' if is_open else 'gone'} after {wait:.1f} s")
        if is_open:
            alive = max(alive, wait)
        elif wait > alive:  # else the answers to a shorter one were lost
            return alive, wait
    return alive, None


def _is_open_after(wait: float, server: TransportAddress, sockets: _Sockets, rto: float) -> bool:
    return any(is_open for _, is_open in _after([wait], server, sockets, rto))


def _after(
    waits: list[float], server: TransportAddress, sockets: _Sockets, rto: float
) -> Iterator[tuple[float, bool]]:
    """Yield for each wait, the shortest first, whether a binding outlives it."""
    bindings = {_Probe(sockets.new(), server): wait for wait in waits}
    elsewhere = sockets.new()
    looks: dict[_Probe, float] = {}
    for binding in _each(bindings, rto):
        if binding.mapped:
            wait = bindings[binding]
            look = _Probe(
                elsewhere,
                server,
                (ResponsePort(binding.mapped.port),),
                ear=binding.sock,
                begin=time.monotonic() + wait,
            )
            looks[look] = wait
    # Where a lost datagram took so long that the time to look has passed, another wait has to tell.
    now = time.monotonic()
    in_time = [look for look in looks if look.begin and look.begin > now - _PACE]
    for look in _each(in_time, rto):
        yield looks[look], look.mapped is not None


# --- In words ---

_MAPPINGS = {
    Behaviour.ENDPOINT_INDEPENDENT: "keeps one public address and port for all peers",
    Behaviour.ADDRESS_DEPENDENT: "uses another public port for every peer's address",
    Behaviour.ADDRESS_AND_PORT_DEPENDENT: "uses another public port for every peer's address and "
    "port",
}
_FILTERS = {
    Behaviour.ENDPOINT_INDEPENDENT: "lets in whoever sends to it",
    Behaviour.ADDRESS_DEPENDENT: "lets in the addresses that this host has sent to",
    Behaviour.ADDRESS_AND_PORT_DEPENDENT: "lets in the addresses and ports that this host has "
    "sent to",
}


def explain(report: NatReport) -> list[str]:
    """Return what a report means, as sentences for a person."""
    mapping, filtering = report.mapping, report.filtering
    said: list[str] = []
    if not report.is_nat:
        if filtering is Behaviour.ENDPOINT_INDEPENDENT:
            said.append(
                "There is no NAT and no firewall on the way: peers reach this host directly."
            )
        else:
            said.append("There is no NAT: this host has its public address itself.")
            if filtering:
                said.append(f"A firewall {_FILTERS[filtering]} ({filtering.words} filtering).")
                said.append(
                    "Peer-to-peer works with hole punching (ICE): this host has to send first."
                )
    else:
        if mapping:
            said.append(f"Your NAT {_MAPPINGS[mapping]} ({mapping.words} mapping).")
        else:
            said.append("There is a NAT on the way.")
        if filtering:
            said.append(f"It {_FILTERS[filtering]} ({filtering.words} filtering).")
        if mapping and filtering:
            said.append(_prospects(mapping, filtering))
        if report.hairpinning is not None:
            can = "can" if report.hairpinning else "cannot"
            said.append(f"Two hosts behind it {can} reach each other at its public address.")
    if report.rewrites_addresses:
        said.append(
            "Something on the way rewrites addresses inside datagrams (a generic ALG): turn that "
            "off, it breaks protocols that carry addresses."
        )
    said += _on_lifetime(report.lifetime)
    said += [note[0].upper() + note[1:] + "." for note in report.notes]
    return said


def _prospects(mapping: Behaviour, filtering: Behaviour) -> str:
    """Say with whom hole punching succeeds."""
    if mapping is not Behaviour.ENDPOINT_INDEPENDENT:
        return (
            "Peer-to-peer works only with peers that have no NAT, or one whose filter does not "
            "look at ports; for all others a relay (TURN) is needed."
        )
    if filtering is Behaviour.ENDPOINT_INDEPENDENT:
        return "Peer-to-peer works with everyone who can send UDP."
    if filtering is Behaviour.ADDRESS_DEPENDENT:
        return "Peer-to-peer works with hole punching (ICE), whatever NAT the peer has."
    return (
        "Peer-to-peer works with hole punching (ICE), unless the peer's mapping depends on the "
        "address or port; then a relay (TURN) is needed."
    )


def _on_lifetime(lifetime: tuple[float, float | None] | None) -> list[str]:
    if lifetime is None:
        return []
    alive, dead = lifetime
    if dead is None:
        return [f"An unused binding lives for more than {alive:.0f} s."]
    text = f"An unused binding lives for {alive:.1f} to {dead:.1f} s"
    if dead <= RECOMMENDED_LIFETIME:
        text += f", where RFC 4787 wants {RECOMMENDED_LIFETIME:.0f} s at least"
    return [f"{text}: send something every {max(alive * 0.8, 0.5):.0f} s to keep it."]
