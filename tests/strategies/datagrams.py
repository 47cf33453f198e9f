"""Hypothesis strategies for UDP payloads as a STUN port gets them, and all that respond() takes.

`datagrams()` draws a Binding request with attributes of every kind and then, at times,
breaks it in one or two named ways. Lengths and FINGERPRINT are made to fit after the faults
that are about attributes, and before those that are about bytes, so that each check is
reached through all the checks before it and not stopped by a cheaper one. A fault may turn
out harmless (a bit that nobody looks at): it is a direction in which to look, no verdict.

`deliveries()` adds source, destination and configuration, which refuse a request as well.

Everything is laid out here with struct and zlib alone, and never with the codec, so that it
can bear witness against it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from hypothesis import strategies as st

from pktstun.stun import ResponderOptions, TransportAddress
from tests.strategies.frames import ipv4_addresses, ports, unmapped_addresses
from tests.strategies.stun import addresses

# RFC 8489 section 5
COOKIE = 0x2112A442
HEADER_SIZE = 20
REQUEST, INDICATION, SUCCESS, ERROR = 0x0001, 0x0011, 0x0101, 0x0111

# RFC 8489 section 18.3, RFC 8445 section 16.1, RFC 5780 section 9.1
CHANGE_REQUEST = 0x0003
MESSAGE_INTEGRITY = 0x0008
MESSAGE_INTEGRITY_SHA256 = 0x001C
SOFTWARE = 0x8022
FINGERPRINT = 0x8028

# USERNAME, MESSAGE-INTEGRITY, REALM, NONCE, MESSAGE-INTEGRITY-SHA256, PASSWORD-ALGORITHM,
# USERHASH, PRIORITY, USE-CANDIDATE: what the server knows and ignores.
KNOWN_AND_IGNORED = [0x0006, 0x0008, 0x0014, 0x0015, 0x001C, 0x001D, 0x001E, 0x0024, 0x0025]


# --- Layout ---


def attribute(kind: int, value: bytes = b"", padding: bytes = bytes(3)) -> bytes:
    """Return an attribute; of the padding as much as it needs is taken."""
    return struct.pack("!HH", kind, len(value)) + value + padding[: -len(value) % 4]


def message(
    *attributes: bytes,
    field: int = REQUEST,
    cookie: int = COOKIE,
    transaction_id: bytes = bytes(range(12)),
) -> bytes:
    """Return a message of encoded attributes, whose length field is true."""
    body = b"".join(attributes)
    return struct.pack("!HHI", field, len(body), cookie) + transaction_id + body


def with_length(data: bytes, length: int) -> bytes:
    """Return a message with another length field."""
    return data[:2] + struct.pack("!H", length) + data[4:]


def fingerprint_of(covered: bytes) -> bytes:
    """Return the value of FINGERPRINT for the bytes in front of it."""
    return struct.pack("!I", zlib.crc32(covered) ^ 0x5354554E)


def fingerprinted(data: bytes) -> bytes:
    """Return a message with a correct FINGERPRINT at its end."""
    covered = with_length(data, len(data) - HEADER_SIZE + 8)
    return covered + attribute(FINGERPRINT, fingerprint_of(covered))


def with_fingerprint_of_length(data: bytes, length: int) -> bytes:
    """Return a message whose FINGERPRINT is right for a reader who ignores its length.

    A short one goes on in its padding, a long one begins with zeros.
    """
    placeholder = attribute(FINGERPRINT, bytes(length))
    covered = with_length(data, len(data) - HEADER_SIZE + len(placeholder))
    value = fingerprint_of(covered)
    if length < 4:
        return covered + attribute(FINGERPRINT, value[:length], value[length:])
    return covered + attribute(FINGERPRINT, value.rjust(length, b"\0"))


# --- Attributes of requests ---

_values = st.binary(max_size=20)

# Non-zero padding, which a receiver ignores.
_paddings = st.sampled_from([bytes(3)] * 3 + [b"\x20\x20\x20", b"\xff\xff\xff"])

# PASSWORD-ALGORITHMS, SOFTWARE, ICE-CONTROLLED, ICE-CONTROLLING, RESPONSE-ORIGIN, the edges
# of the range, and the neighbours of FINGERPRINT; then any other.
optional_types: st.SearchStrategy[int] = st.one_of(
    st.sampled_from([0x8000, 0x8002, 0x8022, 0x8027, 0x8029, 0x802A, 0x802B, 0xFFFF]),
    st.integers(0x8000, 0xFFFE).map(lambda kind: kind + (kind >= FINGERPRINT)),
)

# Types of responses, of RFC 3489 and of RFC 5780, one of TURN, and the edges; then any other.
unknown_types: st.SearchStrategy[int] = st.one_of(
    st.sampled_from([0x0000, 0x0001, 0x0002, 0x0004, 0x0009, 0x000A, 0x0019, 0x0020, 0x7FFF]),
    st.sampled_from([0x0026, 0x0027]),
    st.integers(0x0000, 0x7FFF).filter(
        lambda kind: kind != CHANGE_REQUEST and kind not in KNOWN_AND_IGNORED
    ),
)

optional_attributes: st.SearchStrategy[bytes] = st.builds(
    attribute, optional_types, _values, _paddings
)

ignored_attributes: st.SearchStrategy[bytes] = st.builds(
    attribute, st.sampled_from(KNOWN_AND_IGNORED), _values, _paddings
)

# No flag, with the bits beside the two flags set or not.
idle_change_requests: st.SearchStrategy[bytes] = st.sampled_from(
    [attribute(CHANGE_REQUEST, bytes(4)), attribute(CHANGE_REQUEST, bytes.fromhex("fffffff9"))]
)

# A flag, both, or a length that says nothing about flags.
change_requests: st.SearchStrategy[bytes] = st.sampled_from(
    [
        attribute(CHANGE_REQUEST, bytes.fromhex(value))
        for value in ["00000002", "00000004", "00000006", "ffffffff", "", "000000", "00" * 8]
    ]
)

# Large ones are cheap to draw as long as their contents are not drawn.
_large_attributes = st.builds(
    attribute, st.sampled_from([0x0006, 0x8022]), st.integers(256, 1200).map(bytes)
)

# What ends the part of a request that the server reads.
integrity_attributes: st.SearchStrategy[bytes] = st.sampled_from(
    [attribute(MESSAGE_INTEGRITY, bytes(20)), attribute(MESSAGE_INTEGRITY_SHA256, bytes(32))]
)

unknown_attributes: st.SearchStrategy[bytes] = st.builds(
    attribute, unknown_types, _values, _paddings
)

# What never makes a difference to the answer, if FINGERPRINT and the lengths are right.
harmless_attributes: st.SearchStrategy[bytes] = st.one_of(
    optional_attributes, ignored_attributes, idle_change_requests
)

# What the server refuses to go on without.
refused_attributes: st.SearchStrategy[bytes] = st.one_of(unknown_attributes, change_requests)


# --- Requests and their faults ---


@dataclass
class _Draft:
    """A request that is not laid out yet: faults happen to its parts."""

    attributes: list[bytes]
    transaction_id: bytes
    fingerprint: bool
    field: int = REQUEST
    cookie: int = COOKIE

    def encode(self) -> bytes:
        data = message(
            *self.attributes,
            field=self.field,
            cookie=self.cookie,
            transaction_id=self.transaction_id,
        )
        return fingerprinted(data) if self.fingerprint else data


# Faults of the parts: lengths and FINGERPRINT are made to fit afterwards.
DRAFT_FAULTS = [
    "cookie",
    "class",
    "method",
    "first bits",
    "duplicate",
    "reorder",
    "zero length",
    "padding",
    "large",
    "attribute length",
    "unknown",
    "late unknown",
    "change request",
]

# Faults of the bytes, those that may leave less than a header last.
BYTE_FAULTS = [
    "fingerprint value",
    "fingerprint length",
    "fingerprint not last",
    "extend and tell",
    "truncate and tell",
    "header length",
    "extend",
    "byte",
    "bit flip",
    "truncate",
    "short",
]

_one_fault = st.sampled_from([frozenset({fault}) for fault in DRAFT_FAULTS + BYTE_FAULTS])
_refusal = st.sampled_from([frozenset({"unknown"}), frozenset({"change request"})])
_some_faults = st.frozensets(st.sampled_from(DRAFT_FAULTS + BYTE_FAULTS), min_size=2, max_size=3)

_fault_sets: st.SearchStrategy[frozenset[str]] = st.sampled_from(range(16)).flatmap(
    lambda die: (
        st.just(frozenset())
        if die < 6
        else _refusal
        if die < 8
        else _one_fault
        if die < 14
        else _some_faults
    )
)

_transaction_ids = st.binary(min_size=12, max_size=12)
_attribute_lists = st.lists(harmless_attributes, max_size=4)


@st.composite
def requests(draw: st.DrawFn, faults: st.SearchStrategy[frozenset[str]] = _fault_sets) -> bytes:
    """A Binding request with harmless attributes, after `faults` have happened to it."""
    chosen = draw(faults)
    draft = _Draft(draw(_attribute_lists), draw(_transaction_ids), draw(st.booleans()))
    # In the order of the lists and not in that of a set, which differs between processes.
    for fault in DRAFT_FAULTS:
        if fault in chosen:
            _break_draft(draw, draft, fault)
    data = draft.encode()
    for fault in BYTE_FAULTS:
        if fault in chosen:
            data = _break_bytes(draw, data, fault)
    return data


def valid_requests() -> st.SearchStrategy[bytes]:
    """Binding requests that are answered with success."""
    return requests(st.just(frozenset()))


def _insert(draw: st.DrawFn, draft: _Draft, new: bytes) -> None:
    draft.attributes.insert(draw(st.integers(0, len(draft.attributes))), new)


def _break_draft(draw: st.DrawFn, draft: _Draft, fault: str) -> None:  # noqa: C901, PLR0912
    parts = draft.attributes
    if not parts:
        # Most of the faults need something to happen to.
        parts.append(draw(harmless_attributes))
    position = draw(st.integers(0, len(parts) - 1))
    match fault:
        case "cookie":
            near = st.sampled_from([0, 0x42A41221, COOKIE ^ 1, COOKIE ^ 1 << 31])
            draft.cookie = draw(near | st.integers(0, 0xFFFFFFFF))
        case "class":
            draft.field |= draw(st.sampled_from([0x0010, 0x0100, 0x0110]))
        case "method":
            # Shared secret, Allocate, the highest, one bit beside each bit of the class.
            others = st.sampled_from([0x0000, 0x0002, 0x0003, 0x3EEF, 0x0021, 0x0201])
            draft.field = draw(others | st.integers(0, 0x3FFF)) & 0x3EEF
        case "first bits":
            draft.field |= draw(st.sampled_from([0x4000, 0x8000, 0xC000]))
        case "duplicate":
            _insert(draw, draft, parts[position])
        case "reorder":
            draft.attributes = draw(st.permutations(parts))
        case "zero length":
            parts[position] = parts[position][:2] + bytes(2)
        case "padding":
            size = draw(st.sampled_from([1, 2, 3, 5]))
            _insert(draw, draft, attribute(SOFTWARE, bytes(size), b"\x01\x80\xff"))
        case "large":
            _insert(draw, draft, draw(_large_attributes))
        case "attribute length":
            parts[position] = _with_attribute_length(draw, parts[position])
        case "unknown":
            for new in draw(st.lists(refused_attributes, min_size=1, max_size=4)):
                _insert(draw, draft, new)
        case "late unknown":
            # Behind what protects the message, where nobody looks.
            parts.append(draw(integrity_attributes))
            parts.extend(draw(st.lists(refused_attributes | integrity_attributes, max_size=3)))
        case "change request":
            # Of duplicates the first counts.
            either = change_requests | idle_change_requests
            for new in draw(st.lists(either, min_size=1, max_size=3)):
                _insert(draw, draft, new)


def _with_attribute_length(draw: st.DrawFn, part: bytes) -> bytes:
    """Another length: an attribute that swallows its neighbours, or ends within itself."""
    true = int.from_bytes(part[2:4], "big")
    near = [true - 4, true - 1, true + 1, true + 4, true + 8, true + 12, 0xFFFC, 0xFFFD, 0xFFFF]
    length = draw(st.sampled_from([n for n in near if n >= 0]) | st.integers(0, 0xFFFF))
    return part[:2] + struct.pack("!H", length) + part[4:]


def _break_bytes(draw: st.DrawFn, data: bytes, fault: str) -> bytes:  # noqa: C901, PLR0911
    size = len(data) - HEADER_SIZE
    match fault:
        case "fingerprint value":
            return fingerprinted(data)[:-4] + draw(st.binary(min_size=4, max_size=4))
        case "fingerprint length":
            return with_fingerprint_of_length(data, draw(st.sampled_from([0, 1, 2, 3, 5, 8])))
        case "fingerprint not last":
            # Its value is right, so that its place alone is wrong.
            extra = draw(optional_attributes | st.just(attribute(FINGERPRINT, bytes(4))))
            covered = with_length(data, size + 8 + len(extra))
            return covered + attribute(FINGERPRINT, fingerprint_of(covered)) + extra
        case "extend and tell":
            extra = draw(st.binary(min_size=12, max_size=12))[: draw(st.sampled_from([4, 8, 12]))]
            return with_length(data + extra, size + len(extra))
        case "truncate and tell":
            kept = 4 * draw(st.integers(0, size // 4))
            return with_length(data[: HEADER_SIZE + kept], kept)
        case "header length":
            near = [size - 4, size - 1, size + 1, size + 2, size + 4, size + 20, 0, 0xFFFC, 0xFFFF]
            lies = st.sampled_from([length for length in near if length >= 0])
            return with_length(data, draw(lies | st.integers(0, 0xFFFF)))
        case "extend":
            return data + draw(st.binary(min_size=1, max_size=8))
        case "byte":
            position = draw(st.integers(0, len(data) - 1))
            return data[:position] + draw(st.binary(min_size=1, max_size=1)) + data[position + 1 :]
        case "bit flip":
            position = draw(st.integers(0, 8 * len(data) - 1))
            flipped = bytearray(data)
            flipped[position // 8] ^= 0x80 >> position % 8
            return bytes(flipped)
        case "truncate":
            return data[: draw(st.integers(0, len(data)))]
        case _:
            return data[: draw(st.integers(0, HEADER_SIZE - 1))]


# --- What else arrives on a STUN port ---

# What RFC 7983 tells apart by the first byte: DTLS, TURN channel data, RTP.
_other_protocols = st.sampled_from(
    [
        bytes.fromhex("16fefd0000000000000000000c") + bytes(30),
        bytes.fromhex("40000004") + bytes(20),
        bytes.fromhex("80600001") + bytes(20),
    ]
)

# RFC 3489: a request without the cookie, with 16 bytes of transaction id.
_classic = st.builds(
    lambda transaction_id: message(cookie=0x5AA5C33C, transaction_id=transaction_id),
    _transaction_ids,
)

_responses = st.builds(
    lambda field, transaction_id, address: message(
        attribute(0x0020, address), field=field, transaction_id=transaction_id
    ),
    st.sampled_from([INDICATION, SUCCESS, ERROR]),
    _transaction_ids,
    st.binary(min_size=8, max_size=8),
)

# A good beginning and anything behind it, with and without a true length.
_near_stun = st.builds(
    lambda body, length: with_length(message(body), len(body) if length is None else length),
    st.binary(max_size=40).map(lambda body: body[: len(body) & ~3]) | st.binary(max_size=40),
    st.none() | st.integers(0, 48),
)

neighbours: st.SearchStrategy[bytes] = st.one_of(
    _near_stun, _classic, _responses, _other_protocols, st.binary(max_size=80)
)


def datagrams() -> st.SearchStrategy[bytes]:
    """UDP payloads: about half are answered with success, and every drop occurs."""
    return st.sampled_from(range(12)).flatmap(lambda die: requests() if die else neighbours)


# --- Datagrams on their way ---


class Delivery(NamedTuple):
    """The arguments of `respond()`."""

    datagram: bytes
    source: TransportAddress
    destination: TransportAddress
    options: ResponderOptions


# Hosts' addresses: neither unspecified, loopback, multicast nor broadcast.
good_addresses: st.SearchStrategy[TransportAddress] = st.builds(
    TransportAddress,
    st.one_of(
        st.integers(1 << 24, (127 << 24) - 1).map(IPv4Address),
        st.integers(128 << 24, (224 << 24) - 1).map(IPv4Address),
        unmapped_addresses.filter(lambda ip: 1 < int(ip) < 0xFF << 120),
    ),
    ports.map(lambda port: port or 1),
).flatmap(
    # An IPv4 client of a socket that serves both families.
    lambda address: (
        st.sampled_from([address, address, _mapped(address)])
        if address.ip.version == 4
        else st.just(address)
    )
)


def _mapped(address: TransportAddress) -> TransportAddress:
    return TransportAddress(IPv6Address(f"::ffff:{address.ip}"), address.port)


_softwares = st.none() | st.sampled_from(["", "p", "pktstun", "\u20ac", 127 * "\U0001f600"])


@st.composite
def deliveries(draw: st.DrawFn, payloads: st.SearchStrategy[bytes] | None = None) -> Delivery:
    """A datagram, where it came from and where to, and a configuration, default or not.

    Most of the sources and destinations are such that the datagram itself is looked at.
    """
    datagram = draw(datagrams() if payloads is None else payloads)
    source = draw(good_addresses if draw(st.sampled_from(range(8))) else addresses())
    destination = draw(good_addresses if draw(st.sampled_from(range(8))) else addresses())
    if draw(st.booleans()):
        return Delivery(datagram, source, destination, ResponderOptions())
    endpoints = set(draw(st.lists(addresses(), max_size=3)))
    broadcasts = set(draw(st.lists(ipv4_addresses, max_size=2)))
    fate = draw(st.sampled_from(range(12)))
    if fate:
        endpoints.discard(source)
        endpoints.add(destination)
    if fate == 1:
        endpoints.add(source)
    if fate == 2 and isinstance(client := source.unmapped().ip, IPv4Address):
        broadcasts.add(client)
    options = ResponderOptions(
        software=draw(_softwares),
        endpoints=frozenset(endpoints),
        check_destination=draw(st.booleans()),
        broadcasts=frozenset(broadcasts),
        allow_loopback=draw(st.booleans()),
    )
    return Delivery(datagram, source, destination, options)
