"""`respond()`: the specification of what the server answers.

Theory of operation: the checks stand in the order in which a drop is counted; the first
that fails names the reason. Only a well-formed Binding request is ever answered: never a
response or an indication (so two servers cannot answer each other for ever), never
anything malformed (an error response to an unverified source would be a reflection).

The C fast path (`cdefs/stun.c`) answers the frequent part of this. It is held against this
module by a property test, byte for byte and reason for reason: change both together.

Amplification: a success reply is 12 bytes (IPv4) or 24 bytes (IPv6) longer than the
smallest request. A 420 is 12 + 2k bytes, padded, longer than a bare request and lists k
types that took at least 4k bytes of the request, so it always stays within the 12 bytes and
the list needs no cut. What adds to these is off unless configured: SOFTWARE; a redirect, 20 or
32 bytes; NAT discovery, 48 or 96 bytes, of which PADDING is not a part, since it fills a reply
up to the size of its request at most; classic STUN, 36 bytes. With long-term credentials a 401 is
longer: `_authenticator` says by how much, and why.

Several options meet in this order: who has no credentials where they are asked for gets 400, 401
or 438, what the server does not understand gets 420, what makes no sense 400, and what is left is
redirected, if it is to be, or answered.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from pktstun.errors import StunError

from . import _classic
from ._attributes import (
    AlternateDomain,
    AlternateServer,
    ErrorCode,
    MappedAddress,
    OtherAddress,
    Padding,
    ResponseOrigin,
    ResponsePort,
    Software,
    UnknownAttributes,
    XorMappedAddress,
)
from ._authenticator import Admission, Refusal
from ._integrity import FINGERPRINT_SIZE, fingerprint
from ._message import Message
from ._types import (
    COMPREHENSION_OPTIONAL,
    HEADER_SIZE,
    MAGIC_COOKIE,
    AttributeType,
    Class,
    Method,
    TransportAddress,
    split_type,
)
from ._wire import (
    ATTRIBUTE_HEADER_SIZE,
    HEADER,
    Span,
    as_bytes,
    processed_indices,
    walk_attributes,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._authenticator import Authenticator
    from ._discovery import NatDiscovery
    from ._forms import Attribute


class Drop(StrEnum):
    """Why a datagram gets no answer: the names under which drops are counted."""

    BAD_SOURCE = "bad_source"
    """The source cannot be answered, or must not be: port 0, unspecified, multicast,
    broadcast, or loopback where it has no business."""
    OWN_SOURCE = "own_source"
    """The source is one of the server's own sockets: an answer would be a loop. Or it came from
    outside and claims to be the host's own."""
    NOT_FOR_US = "not_for_us"
    """The destination is no address of this server, or no unicast address at all."""
    SHORT = "short"
    """Less than a header."""
    NOT_STUN = "not_stun"
    """The first two bits are not zero."""
    BAD_LENGTH = "bad_length"
    """The length field is no multiple of 4 or disagrees with the datagram."""
    NO_COOKIE = "no_cookie"
    """The magic cookie is missing."""
    NOT_REQUEST = "not_request"
    """An indication or a response."""
    UNKNOWN_METHOD = "unknown_method"
    """A method other than Binding."""
    MALFORMED = "malformed"
    """An attribute reaches beyond the message."""
    BAD_FINGERPRINT = "bad_fingerprint"
    """FINGERPRINT is not last, or wrong."""


@dataclass(frozen=True, slots=True)
class ResponderOptions:
    """What `respond()` is told beside the datagram; the defaults are the default server.

    Args:
        software: text of the SOFTWARE attribute of every reply; None sends none.
        endpoints: the server's own transport addresses. Requests from one are dropped.
            An IPv4-mapped IPv6 address is kept as the IPv4 address.
        local: addresses of the host, beside those of the endpoints: others cannot have them.
        check_destination: drop what was not sent to one of the endpoints. For frames from a
            ring, where no kernel has looked at the destination.
        broadcasts: directed broadcast addresses of the host's networks.
        allow_loopback: answer sources of the host itself, loopback and its own addresses: on the
            loopback interface, or where the kernel has already refused those from outside.
        discovery: RFC 5780 for requests to these endpoints; at most one for each family.
        classic: answer clients of RFC 3489, over IPv4.
        alternate_servers: where all clients of their family are sent instead, by 300 (RFC 8489
            section 10); at most one for each family. Classic clients, who know no redirect, are
            answered.
        alternate_domain: the name on the alternate servers' certificate, for clients of TLS
            whom it would not be told otherwise (RFC 8489 section 14.16). None where it is this
            server's, and for every other transport.
        authenticator: whose requests are answered; None answers everybody's. Classic clients, who
            know no such credentials, cannot be answered beside.

    Raises:
        StunError: `software` or `alternate_domain` cannot be such an attribute, there are two for
            a family, or classic clients are to show credentials.
    """

    software: str | None = None
    endpoints: frozenset[TransportAddress] = frozenset()
    local: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address] = frozenset()
    check_destination: bool = False
    broadcasts: frozenset[ipaddress.IPv4Address] = frozenset()
    allow_loopback: bool = False
    discovery: tuple[NatDiscovery, ...] = ()
    classic: bool = False
    alternate_servers: tuple[TransportAddress, ...] = ()
    alternate_domain: str | None = None
    authenticator: Authenticator | None = None
    software_attributes: tuple[Attribute, ...] = field(init=False)
    domain_attributes: tuple[Attribute, ...] = field(init=False)
    own_ips: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address] = field(init=False)

    def __post_init__(self) -> None:
        attributes = () if self.software is None else (Software(self.software),)
        object.__setattr__(self, "software_attributes", attributes)
        domain = self.alternate_domain
        object.__setattr__(
            self, "domain_attributes", () if domain is None else (AlternateDomain(domain),)
        )
        # Clients are compared by their IPv4 address, also where a socket serves both families.
        endpoints = frozenset(endpoint.unmapped() for endpoint in self.endpoints)
        object.__setattr__(self, "endpoints", endpoints)
        own_ips = self.local.union(endpoint.ip for endpoint in endpoints)
        object.__setattr__(self, "own_ips", own_ips)
        for ips in (
            [each.ips[0] for each in self.discovery],
            [each.ip for each in self.alternate_servers],
        ):
            if len({ip.version for ip in ips}) != len(ips):
                raise StunError("there is room for one of each address family")
        if self.classic and self.authenticator is not None:
            raise StunError("clients of RFC 3489 know no credentials that could be checked")

    def discovery_at(self, server: TransportAddress) -> NatDiscovery | None:
        """Return what RFC 5780 needs where it is served at this address."""
        return next((each for each in self.discovery if server in each.endpoints), None)

    def alternate_for(self, client: TransportAddress) -> TransportAddress | None:
        """Return where a client is to go instead, which has to be of its family."""
        for each in self.alternate_servers:
            if each.ip.version == client.ip.version:
                return each
        return None


@dataclass(frozen=True, slots=True)
class Reply:
    """A datagram to send, from where, and to whom."""

    datagram: bytes
    source: TransportAddress
    destination: TransportAddress


DEFAULT_OPTIONS = ResponderOptions()

# Known to the server: of no meaning to it while no credentials are configured, and else looked at
# by then; the two of ICE are sent by agents that take a server for a peer.
_KNOWN_AND_IGNORED = frozenset(
    {
        AttributeType.USERNAME,
        AttributeType.REALM,
        AttributeType.NONCE,
        AttributeType.USERHASH,
        AttributeType.PASSWORD_ALGORITHM,
        AttributeType.MESSAGE_INTEGRITY,
        AttributeType.MESSAGE_INTEGRITY_SHA256,
        AttributeType.PRIORITY,
        AttributeType.USE_CANDIDATE,
    }
)

_CHANGE_REQUEST = frozenset({AttributeType.CHANGE_REQUEST})
_DISCOVERY = _CHANGE_REQUEST | {AttributeType.RESPONSE_PORT, AttributeType.PADDING}

_LIMITED_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
# RFC 5780 section 7.2
_CHANGE_REQUEST_SIZE = 4
_CHANGE_IP = 0x0000_0004
_CHANGE_PORT = 0x0000_0002


@dataclass(frozen=True, slots=True)
class _Request:
    """A Binding request that has passed all checks, as far as its answer depends on it."""

    message: bytes
    values: dict[int, bytes]
    """Of each type that counts the first value, in order."""
    has_fingerprint: bool
    is_classic: bool
    source: TransportAddress
    destination: TransportAddress
    admission: Admission | None = None


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What a request wants of RFC 5780."""

    change_ip: bool = False
    change_port: bool = False
    response_port: int | None = None
    padding: bool = False


def respond(
    datagram: Buffer,
    source: TransportAddress,
    destination: TransportAddress,
    options: ResponderOptions = DEFAULT_OPTIONS,
    *,
    now: float | None = None,
) -> Reply | Drop:
    """Return the reply to a datagram, or the reason why there is none.

    Args:
        datagram: the UDP payload; any bytes-like object.
        source: where it came from, which is where the reply goes.
        destination: where it was sent to, which is where the reply comes from.
        options: the configuration.
        now: seconds of a clock that nobody sets, for the authenticator: see `Authenticator`.

    Raises:
        StunError: there is an authenticator, and nobody says what time it is.
    """
    client, server = source.unmapped(), destination.unmapped()
    drop = _check_addresses(client, server, options)
    if drop:
        return drop
    message = as_bytes(datagram)
    drop = _check_header(message, classic=options.classic and client.ip.version == 4)
    if drop:
        return drop
    try:
        spans = walk_attributes(message)
    except StunError:
        return Drop.MALFORMED
    is_classic = int.from_bytes(message[4:8]) != MAGIC_COOKIE
    fingerprints = (
        [] if is_classic else [span for span in spans if span[0] == AttributeType.FINGERPRINT]
    )
    if not all(_is_valid_fingerprint(message, start, length) for _, start, length in fingerprints):
        return Drop.BAD_FINGERPRINT
    request = _Request(
        message=message,
        values=_first_values(message, spans),
        has_fingerprint=bool(fingerprints),
        is_classic=is_classic,
        source=source,
        destination=destination,
    )
    if options.authenticator is not None:
        checked = _check_credentials(request, options.authenticator, now)
        if isinstance(checked, Refusal):
            error = _error(request, options, checked.code, *checked.attributes)
            return Reply(error, destination, source)
        request = replace(request, admission=checked)
    return _answer(request, options)


def _answer(request: _Request, options: ResponderOptions) -> Reply | Drop:
    client, server = request.source.unmapped(), request.destination.unmapped()
    discovery = options.discovery_at(server)
    origin, end, wishes = request.destination, request.source, _Wishes()
    unknown = _unknown_required(request, has_discovery=discovery is not None)
    if unknown:
        return Reply(_error(request, options, 420, UnknownAttributes(unknown)), origin, end)
    if discovery:
        try:
            wishes = _read_wishes(request.values)
        except StunError:
            return Reply(_error(request, options, 400), origin, end)
    alternate = options.alternate_for(client)
    if alternate and not request.is_classic:
        where = AlternateServer(alternate), *options.domain_attributes
        return Reply(_error(request, options, 300, *where), origin, end)
    if discovery and (wishes.change_ip or wishes.change_port):
        origin = discovery.changed(server, ip=wishes.change_ip, port=wishes.change_port)
    if wishes.response_port is not None:
        end = TransportAddress(end.ip, wishes.response_port)
        if end.unmapped() in options.endpoints:
            return Drop.OWN_SOURCE
    return Reply(_success(request, options, discovery, origin, wishes), origin, end)


def _check_addresses(
    client: TransportAddress, server: TransportAddress, options: ResponderOptions
) -> Drop | None:
    if client.port == 0 or _is_bad_source(client.ip, options):
        return Drop.BAD_SOURCE
    if client in options.endpoints or (client.ip in options.own_ips and not options.allow_loopback):
        return Drop.OWN_SOURCE
    if options.check_destination and server not in options.endpoints:
        return Drop.NOT_FOR_US
    # The kernel hands these to wildcard sockets, too; no reply could leave from there.
    if _is_for_many(server.ip, options):
        return Drop.NOT_FOR_US
    return None


def _is_for_many(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, options: ResponderOptions
) -> bool:
    return ip.is_multicast or ip == _LIMITED_BROADCAST or ip in options.broadcasts


def _is_bad_source(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, options: ResponderOptions
) -> bool:
    if _is_for_many(ip, options) or (ip.is_loopback and not options.allow_loopback):
        return True
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.is_unspecified
    # 0.0.0.0/8 is "this network" (RFC 1122 section 3.2.1.3): never a host's address.
    return ip.packed[0] == 0


def _check_header(message: bytes, *, classic: bool) -> Drop | None:
    if len(message) < HEADER_SIZE:
        return Drop.SHORT
    field, length, cookie, _ = HEADER.unpack_from(message)
    if field & 0xC000:
        return Drop.NOT_STUN
    if length % 4 or HEADER_SIZE + length != len(message):
        return Drop.BAD_LENGTH
    if cookie != MAGIC_COOKIE and not classic:
        return Drop.NO_COOKIE
    method, message_class = split_type(field)
    if message_class != Class.REQUEST:
        return Drop.NOT_REQUEST
    if method != Method.BINDING:
        return Drop.UNKNOWN_METHOD
    return None


def _is_valid_fingerprint(message: bytes, start: int, length: int) -> bool:
    return (
        length == FINGERPRINT_SIZE
        and start + length == len(message)
        and int.from_bytes(message[start:]) == fingerprint(message[: start - ATTRIBUTE_HEADER_SIZE])
    )


def _check_credentials(
    request: _Request, authenticator: Authenticator, now: float | None
) -> Admission | Refusal:
    if now is None:
        raise StunError("credentials are checked at some time: give respond() `now`")
    try:
        message = Message.decode(request.message)
    except StunError:
        # RFC 8489 section 14.8: malformed, here in the value of an attribute.
        return Refusal(400)
    return authenticator.check(message, request.source.unmapped(), now)


def _first_values(message: bytes, spans: list[Span]) -> dict[int, bytes]:
    """Return the first value of each type that is not to be ignored, in order."""
    values: dict[int, bytes] = {}
    for i in processed_indices([kind for kind, _, _ in spans]):
        kind, start, length = spans[i]
        values.setdefault(kind, message[start : start + length])
    return values


def _unknown_required(request: _Request, *, has_discovery: bool) -> tuple[AttributeType, ...]:
    """Return the types that the request requires and the server lacks, each once, in order."""
    known = _classic.KNOWN if request.is_classic else _KNOWN_AND_IGNORED
    if has_discovery:
        known |= _CHANGE_REQUEST if request.is_classic else _DISCOVERY
    elif _is_idle(request.values.get(AttributeType.CHANGE_REQUEST)):
        known |= _CHANGE_REQUEST
    # Compared as numbers: a name for each of hundreds of unknown types takes time.
    return tuple(
        AttributeType(kind)
        for kind in request.values
        if kind < COMPREHENSION_OPTIONAL and kind not in known
    )


def _is_idle(change_request: bytes | None) -> bool:
    """Without a flag CHANGE-REQUEST asks for nothing, and old clients always send it."""
    if change_request is None or len(change_request) != _CHANGE_REQUEST_SIZE:
        return False
    return not int.from_bytes(change_request) & (_CHANGE_IP | _CHANGE_PORT)


def _read_wishes(values: dict[int, bytes]) -> _Wishes:
    """Return what a request wants of RFC 5780.

    Raises:
        StunError: it makes no sense.
    """
    change = values.get(AttributeType.CHANGE_REQUEST, bytes(_CHANGE_REQUEST_SIZE))
    response_port = values.get(AttributeType.RESPONSE_PORT)
    if len(change) != _CHANGE_REQUEST_SIZE:
        raise StunError("CHANGE-REQUEST has 4 bytes")
    port = None
    if response_port is not None:
        # Section 7.5; both would be a way to send large datagrams anywhere on a host.
        if len(response_port) not in ResponsePort.SIZES or AttributeType.PADDING in values:
            raise StunError("RESPONSE-PORT has 2 bytes and padding, and no PADDING beside it")
        port = int.from_bytes(response_port[:2])
        if port == 0:
            raise StunError("nobody has port 0")
    flags = int.from_bytes(change)
    return _Wishes(
        change_ip=bool(flags & _CHANGE_IP),
        change_port=bool(flags & _CHANGE_PORT),
        response_port=port,
        padding=AttributeType.PADDING in values,
    )


def _success(
    request: _Request,
    options: ResponderOptions,
    discovery: NatDiscovery | None,
    origin: TransportAddress,
    wishes: _Wishes,
) -> bytes:
    client, server = request.source.unmapped(), request.destination.unmapped()
    told = other = None
    if discovery:
        told = discovery.told(origin.unmapped())
        other = discovery.told(discovery.changed(server, ip=True, port=True))
    if request.is_classic:
        return _classic.success(request.message, client, told or server, other)
    # XOR-MAPPED-ADDRESS first: there are clients that look no further.
    mapped = client.without_zone()
    attributes: tuple[Attribute, ...] = (XorMappedAddress(mapped),)
    if told and other:
        attributes += MappedAddress(mapped), ResponseOrigin(told), OtherAddress(other)
    reply = _encode(request, options, Class.SUCCESS, attributes)
    room = len(request.message) - len(reply) - ATTRIBUTE_HEADER_SIZE
    if wishes.padding and room >= 0:
        reply = _encode(request, options, Class.SUCCESS, (*attributes, Padding(bytes(room))))
    return reply


def _error(
    request: _Request, options: ResponderOptions, code: int, *attributes: Attribute
) -> bytes:
    # An empty reason phrase: it would only make the reply longer.
    attributes = ErrorCode(code), *attributes
    if request.is_classic:
        return _classic.error(request.message, attributes)
    return _encode(request, options, Class.ERROR, attributes)


def _encode(
    request: _Request,
    options: ResponderOptions,
    message_class: Class,
    attributes: tuple[Attribute, ...],
) -> bytes:
    reply = Message(
        message_class,
        Method.BINDING,
        request.message[8:HEADER_SIZE],
        attributes + options.software_attributes,
    )
    if request.admission is not None:
        reply = request.admission.protect(reply)
    return (reply.with_fingerprint() if request.has_fingerprint else reply).encode()
