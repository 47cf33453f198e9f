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
the list needs no cut. SOFTWARE adds to both, and is off unless configured.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from pktstun.errors import StunError

from ._attributes import ErrorCode, Software, UnknownAttributes, XorMappedAddress
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

    from ._forms import Attribute


class Drop(StrEnum):
    """Why a datagram gets no answer: the names under which drops are counted."""

    BAD_SOURCE = "bad_source"
    """The source cannot be answered, or must not be: port 0, unspecified, multicast,
    broadcast, or loopback where it has no business."""
    OWN_SOURCE = "own_source"
    """The source is one of the server's own sockets: an answer would be a loop. Or it came from
    outside and claims to be one of the server's own addresses."""
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
        check_destination: drop what was not sent to one of the endpoints. For frames from a
            ring, where no kernel has looked at the destination.
        broadcasts: directed broadcast addresses of the host's networks.
        allow_loopback: answer sources of the host itself, loopback and the endpoints' addresses:
            on the loopback interface, or where the kernel has already refused those from outside.

    Raises:
        StunError: `software` is too long for the attribute.
    """

    software: str | None = None
    endpoints: frozenset[TransportAddress] = frozenset()
    check_destination: bool = False
    broadcasts: frozenset[ipaddress.IPv4Address] = frozenset()
    allow_loopback: bool = False
    software_attributes: tuple[Attribute, ...] = field(init=False)
    own_ips: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address] = field(init=False)

    def __post_init__(self) -> None:
        attributes = () if self.software is None else (Software(self.software),)
        object.__setattr__(self, "software_attributes", attributes)
        # Clients are compared by their IPv4 address, also where a socket serves both families.
        endpoints = frozenset(endpoint.unmapped() for endpoint in self.endpoints)
        object.__setattr__(self, "endpoints", endpoints)
        object.__setattr__(self, "own_ips", frozenset(endpoint.ip for endpoint in endpoints))


@dataclass(frozen=True, slots=True)
class Reply:
    """A datagram to send, from where, and to whom."""

    datagram: bytes
    source: TransportAddress
    destination: TransportAddress


DEFAULT_OPTIONS = ResponderOptions()

# Known to the server and of no meaning to it while no credentials are configured; the two
# of ICE are sent by agents that take a server for a peer.
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

_LIMITED_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_CHANGE_FLAGS = 0x0000_0006  # RFC 5780 section 7.2: change IP, change port


def respond(
    datagram: Buffer,
    source: TransportAddress,
    destination: TransportAddress,
    options: ResponderOptions = DEFAULT_OPTIONS,
) -> Reply | Drop:
    """Return the reply to a datagram, or the reason why there is none.

    Args:
        datagram: the UDP payload; any bytes-like object.
        source: where it came from, which is where the reply goes.
        destination: where it was sent to, which is where the reply comes from.
        options: the configuration.
    """
    client = source.unmapped()
    drop = _check_addresses(client, destination.unmapped(), options)
    if drop:
        return drop
    message = as_bytes(datagram)
    drop = _check_header(message)
    if drop:
        return drop
    try:
        spans = walk_attributes(message)
    except StunError:
        return Drop.MALFORMED
    fingerprints = [span for span in spans if span[0] == AttributeType.FINGERPRINT]
    if not all(_is_valid_fingerprint(message, start, length) for _, start, length in fingerprints):
        return Drop.BAD_FINGERPRINT

    unknown = _unknown_required(message, spans)
    attributes: tuple[Attribute, ...]
    if unknown:
        message_class = Class.ERROR
        # An empty reason phrase: it would only make the reply longer.
        attributes = (ErrorCode(420), UnknownAttributes(unknown))
    else:
        # XOR-MAPPED-ADDRESS first: there are clients that look no further.
        message_class = Class.SUCCESS
        attributes = (XorMappedAddress(client.without_zone()),)
    reply = Message(
        message_class,
        Method.BINDING,
        message[8:HEADER_SIZE],
        attributes + options.software_attributes,
    )
    if fingerprints:
        reply = reply.with_fingerprint()
    return Reply(reply.encode(), destination, source)


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


def _check_header(message: bytes) -> Drop | None:
    if len(message) < HEADER_SIZE:
        return Drop.SHORT
    field, length, cookie, _ = HEADER.unpack_from(message)
    if field & 0xC000:
        return Drop.NOT_STUN
    if length % 4 or HEADER_SIZE + length != len(message):
        return Drop.BAD_LENGTH
    if cookie != MAGIC_COOKIE:
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


def _unknown_required(message: bytes, spans: list[Span]) -> tuple[AttributeType, ...]:
    """Return the types that the request requires and the server lacks, each once, in order."""
    unknown: dict[int, None] = {}
    seen: set[int] = set()
    for i in processed_indices([kind for kind, _, _ in spans]):
        kind, start, length = spans[i]
        first = kind not in seen
        seen.add(kind)
        # Compared as numbers: a name for each of hundreds of unknown types takes time.
        if kind >= COMPREHENSION_OPTIONAL or kind in _KNOWN_AND_IGNORED:
            continue
        if kind == AttributeType.CHANGE_REQUEST and not (
            first and _asks_for_change(message[start : start + length])
        ):
            continue
        unknown[kind] = None
    return tuple(map(AttributeType, unknown))


def _asks_for_change(value: bytes) -> bool:
    """Without a flag CHANGE-REQUEST asks for nothing, and old clients always send it."""
    return len(value) != 4 or bool(int.from_bytes(value) & _CHANGE_FLAGS)
