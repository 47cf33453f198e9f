"""Where a server is: from what a person types to a list of addresses, best first.

Theory of operation: `parse_server` reads `HOST`, `HOST:PORT` and the URIs of RFC 7064; no DNS is
asked yet. `locate` then follows RFC 8489 section 8. An address stands for itself. A name with a
port is resolved, and so is one without a port that has no SRV records; otherwise these say which
hosts to ask at which ports, in the order that RFC 2782 says. Names are resolved by the system, SRV
records are looked up by dnspython, which is an extra (`dns`).
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import socket
import urllib.parse
from dataclasses import dataclass
from enum import StrEnum

from pktstun.errors import PktstunError, StunError
from pktstun.stun import PORT, TransportAddress
from pktstun.stun._types import split_host_port

TLS_PORT = 5349
"""Where a STUN server listens with TLS (RFC 8489 section 18.6)."""

# RFC 7064 section 3.1: scheme ":" host [":" port], host and port as in RFC 3986 section 3.2.
_URI = re.compile(
    r"(?P<scheme>stuns?):"
    r"(?:\[(?P<literal>[^\[\]]*)\]|(?P<name>(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*))"
    r"(?::(?P<port>[0-9]*))?",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"stuns?:", re.IGNORECASE)
# `stun:3478` has always been the host `stun`; no host is called 3478.
_HOST_CALLED_STUN = re.compile(r"stun:[0-9]+", re.IGNORECASE)


class QueryError(PktstunError):
    """There is no correct answer; the text says why."""


class Transport(StrEnum):
    """What carries the messages."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"

    @property
    def default_port(self) -> int:
        """The port where none is given (RFC 8489 section 8.1)."""
        return TLS_PORT if self is Transport.TLS else PORT


@dataclass(frozen=True, slots=True)
class ServerName:
    """What a person calls a server."""

    host: str
    """A name, or an address of IPv4 or IPv6, perhaps with a zone."""
    port: int | None = None
    scheme: str | None = None
    """`stun` or `stuns` of a URI; None where it was none."""

    @property
    def is_address(self) -> bool:
        """Whether the host is an address, so that there is nothing to look up."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


def parse_server(text: str) -> ServerName:
    """Read `HOST`, `HOST:PORT`, `[IPv6]:PORT`, a bare IPv6 address, or a URI of RFC 7064.

    >>> parse_server("stuns:example.org")
    ServerName(host='example.org', port=None, scheme='stuns')
    >>> parse_server("[2001:db8::1]:3478")
    ServerName(host='2001:db8::1', port=3478, scheme=None)

    Raises:
        StunError: that is none of them.
    """
    if _SCHEME.match(text) and not _HOST_CALLED_STUN.fullmatch(text):
        return _parse_uri(text)
    # Nobody can be asked at port 0: it means that none is given.
    host, port = split_host_port(text, 0)
    return ServerName(host, port or None)


def _parse_uri(text: str) -> ServerName:
    found = _URI.fullmatch(text)
    if found is None:
        hint = "; a STUN URI has no //" if "://" in text else ""
        raise StunError(f"{text!r} is not of the form stun:HOST or stun:HOST:PORT{hint}")
    literal, port = found["literal"], found["port"]
    host = urllib.parse.unquote(found["name"] if literal is None else literal)
    if not host:
        raise StunError(f"{text!r} names no host; an IPv6 address stands in brackets")
    if literal is not None:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise StunError(f"{literal!r} in {text!r} is no IPv6 address") from error
    # int() refuses thousands of digits in its own way.
    digits = (port or "").lstrip("0")
    if len(digits) > 5 or int(digits or 0) > 0xFFFF:
        raise StunError(f"{text!r} has no port in 0..65535")
    return ServerName(host, int(digits or 0) or None, found["scheme"].lower())


def resolve(host: str, port: int, family: int = socket.AF_UNSPEC) -> TransportAddress:
    """Return the first address of a host name or literal.

    Args:
        host: a name, an IPv4 or an IPv6 address, with a zone (`fe80::1%eth0`) if need be.
        port: goes into the result.
        family: AF_INET or AF_INET6 to have only those.

    Raises:
        QueryError: the name cannot be resolved.
    """
    return _resolve_all(host, port, family)[0]


def _resolve_all(host: str, port: int, family: int) -> list[TransportAddress]:
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise QueryError(f"cannot resolve {host!r}: {reason}") from error
    return list(dict.fromkeys(TransportAddress.from_sockaddr(each[4]) for each in found))


def locate(
    server: ServerName,
    transport: Transport = Transport.UDP,
    *,
    family: int = socket.AF_UNSPEC,
    srv: bool | None = None,
    service: str = "stun",
) -> list[TransportAddress]:
    """Return the addresses at which to try a server, in this order (RFC 8489 section 8.1).

    Args:
        server: what to look for.
        transport: how it will be asked; decides about the default port and the SRV records.
        family: AF_INET or AF_INET6 to have only those.
        srv: look for SRV records where no port is given; None: for names in URIs, if dnspython
            is there.
        service: of the SRV records, without TLS; `stun-behavior` is that of RFC 5780.

    Raises:
        QueryError: there is none, the DNS cannot be asked, or dnspython is missing.
    """
    if srv is None:
        srv = server.scheme is not None and importlib.util.find_spec("dns") is not None
    if srv and server.port is None and not server.is_address:
        proto = "udp" if transport is Transport.UDP else "tcp"
        secure = "s" if transport is Transport.TLS else ""
        targets = lookup_srv(f"_{service}{secure}._{proto}.{server.host}")
        if targets:
            return _resolve_targets(targets, family)
    port = server.port or transport.default_port
    return _resolve_all(server.host, port, family)


def lookup_srv(name: str) -> list[tuple[str, int]]:
    """Return the hosts and ports of an SRV record set, in the order of RFC 2782; [] if none.

    Raises:
        QueryError: the DNS cannot be asked, says that there is no such service, or dnspython is
            missing.
    """
    try:
        import dns.exception  # noqa: PLC0415 - an extra
        import dns.rdtypes.IN.SRV  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415
    except ImportError as error:
        raise QueryError(
            "SRV records need dnspython: pip install dnspython, or apt install python3-dnspython"
        ) from error
    try:
        answer = dns.resolver.resolve(name, "SRV")
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except dns.exception.DNSException as error:
        raise QueryError(f"cannot look up {name}: {error}") from error
    records = answer.rrset.processing_order() if answer.rrset else []
    targets = [
        (each.target.to_text(omit_final_dot=True), each.port)
        for each in records
        if isinstance(each, dns.rdtypes.IN.SRV.SRV)
    ]
    # RFC 2782: a lone "." says that the service is decidedly not there.
    if [host for host, _ in targets] == ["."]:
        raise QueryError(f"{name}: the domain says that it has no such service")
    return targets


def _resolve_targets(targets: list[tuple[str, int]], family: int) -> list[TransportAddress]:
    found: dict[TransportAddress, None] = {}
    problem: QueryError | None = None
    for host, port in targets:
        try:
            found.update(dict.fromkeys(_resolve_all(host, port, family)))
        except QueryError as error:
            problem = error
    if not found and problem is not None:
        raise problem
    return list(found)
