"""What the server answers: each check, their order, and the replies byte for byte.

The replies that are expected here are laid out with struct and zlib, and never with the
codec, so that both can be wrong in the same way only on purpose.
"""

from __future__ import annotations

import array
import copy
import dataclasses
import itertools
import struct
import zlib
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from pktstun.stun import (
    AlternateDomain,
    AlternateServer,
    Drop,
    ErrorCode,
    Message,
    Reply,
    ResponderOptions,
    Software,
    StunError,
    TransportAddress,
    UnknownAttributes,
    respond,
)
from tests.strategies.datagrams import (
    CHANGE_REQUEST,
    ERROR,
    FINGERPRINT,
    HEADER_SIZE,
    INDICATION,
    KNOWN_AND_IGNORED,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    REQUEST,
    SOFTWARE,
    SUCCESS,
    Delivery,
    attribute,
    datagrams,
    deliveries,
    fingerprint_of,
    fingerprinted,
    good_addresses,
    harmless_attributes,
    integrity_attributes,
    message,
    optional_attributes,
    optional_types,
    refused_attributes,
    unknown_types,
    valid_requests,
    with_fingerprint_of_length,
    with_length,
)
from tests.strategies.frames import ip_addresses, ports
from tests.strategies.stun import addresses, messages, transaction_ids

if TYPE_CHECKING:
    from random import Random

    from typing_extensions import Buffer

address = TransportAddress.parse

CLIENT = address("192.0.2.1:4000")
CLIENT_IPV6 = address("[2001:db8::1]:4000")
SERVER = address("198.51.100.1:3478")
SERVER_IPV6 = address("[2001:db8:ffff::1]:3478")
ID = bytes(range(12))


def mapped(ipv4: TransportAddress) -> TransportAddress:
    return TransportAddress(IPv6Address(f"::ffff:{ipv4.ip}"), ipv4.port)


# --- Addresses, told apart by their bits ---

# RFC 5771, RFC 919; RFC 4291 section 2.7
FOR_MANY = ["224.0.0.0/4", "255.255.255.255/32", "ff00::/8"]
# RFC 1122 section 3.2.1.3; RFC 4291 section 2.5
UNSPECIFIED = ["0.0.0.0/8", "::/128"]
LOOPBACK = ["127.0.0.0/8", "::1/128"]


def is_in(ip: IPv4Address | IPv6Address, networks: list[str]) -> bool:
    """Whether an address begins with the bits of one of the networks."""
    for network in networks:
        prefix, _, length = network.partition("/")
        first = ip_address(prefix)
        shift = ip.max_prefixlen - int(length)
        if first.version == ip.version and int(ip) >> shift == int(first) >> shift:
            return True
    return False


# Where a request may have been sent to: any address that one host may have.
destinations = addresses().filter(lambda one: not is_in(one.unmapped().ip, FOR_MANY))


# --- Replies, laid out by hand ---


def xor_mapped_address(source: TransportAddress, transaction_id: bytes) -> bytes:
    """XOR-MAPPED-ADDRESS of the client, whose IPv4 address may be wrapped in an IPv6 one."""
    ip: int = int(source.ip)
    if source.ip.version == 6 and ip >> 32 != 0xFFFF:
        mask = 0x2112A442 << 96 | int.from_bytes(transaction_id, "big")
        family, masked = 2, (ip ^ mask).to_bytes(16, "big")
    else:
        family, masked = 1, (ip & 0xFFFFFFFF ^ 0x2112A442).to_bytes(4, "big")
    return struct.pack("!HHBBH", 0x0020, 4 + len(masked), 0, family, source.port ^ 0x2112) + masked


def finished(reply: bytes, request: bytes, software: str | None) -> bytes:
    """SOFTWARE if configured; then FINGERPRINT if the request had one."""
    if software is not None:
        value = software.encode()
        extra = struct.pack("!HH", 0x8022, len(value)) + value + bytes(-len(value) % 4)
        reply = with_length(reply + extra, len(reply + extra) - HEADER_SIZE)
    return fingerprinted(reply) if has_fingerprint(request) else reply


def has_fingerprint(request: bytes) -> bool:
    """Whether a well-formed request ends with FINGERPRINT."""
    return any(kind == FINGERPRINT for kind, _ in parts(request))


def parts(request: bytes) -> list[tuple[int, bytes]]:
    """The attributes of a well-formed message, (type, value)."""
    found, offset = [], HEADER_SIZE
    while offset < len(request):
        kind, length = struct.unpack_from("!HH", request, offset)
        found.append((kind, request[offset + 4 : offset + 4 + length]))
        offset += 4 + length + -length % 4
    return found


def success(request: bytes, source: TransportAddress, software: str | None = None) -> bytes:
    transaction_id = request[8:20]
    body = xor_mapped_address(source, transaction_id)
    header = struct.pack("!HHI", 0x0101, len(body), 0x2112A442) + transaction_id
    return finished(header + body, request, software)


def error_420(request: bytes, kinds: list[int], software: str | None = None) -> bytes:
    listed = struct.pack(f"!{len(kinds)}H", *kinds)
    body = struct.pack("!HHHBB", 0x0009, 4, 0, 4, 20)
    body += struct.pack("!HH", 0x000A, len(listed)) + listed + bytes(-len(listed) % 4)
    header = struct.pack("!HHI", 0x0111, len(body), 0x2112A442) + request[8:20]
    return finished(header + body, request, software)


def answer(
    *attributes: bytes,
    source: TransportAddress = CLIENT,
    options: ResponderOptions = ResponderOptions(),  # noqa: B008 - immutable
) -> bytes | Drop:
    """What a request with these attributes gets."""
    reply = respond(message(*attributes), source, SERVER, options)
    return reply.datagram if isinstance(reply, Reply) else reply


def listed(*attributes: bytes) -> list[int]:
    """The types that the 420 to a request with these attributes lists; none for success."""
    reply = answer(*attributes)
    request = message(*attributes)
    if reply == success(request, CLIENT):
        return []
    assert isinstance(reply, bytes)
    kinds = [kind for (kind,) in struct.iter_unpack("!H", dict(parts(reply))[0x000A])]
    assert reply == error_420(request, kinds)
    return kinds


# --- The table of checks ---

# One row and more for each check, in the order of the checks.
BARE = message()
OPTIONS = ResponderOptions(
    endpoints=frozenset({SERVER, SERVER_IPV6}),
    check_destination=True,
    broadcasts=frozenset({IPv4Address("192.0.2.255")}),
)
LAST = fingerprinted(message(attribute(SOFTWARE, b"abc")))

ADDRESS_ROWS = [
    # Source addresses, at the edges of their ranges; good ones beside bad ones.
    ("192.0.2.1:0", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[2001:db8::1]:0", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("192.0.2.1:1", "198.51.100.1:3478", None),
    ("192.0.2.1:65535", "198.51.100.1:3478", None),
    ("0.0.0.0:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("0.255.255.255:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("1.0.0.0:1", "198.51.100.1:3478", None),
    ("126.255.255.255:1", "198.51.100.1:3478", None),
    ("127.0.0.0:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("127.0.0.1:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("127.255.255.255:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("128.0.0.0:1", "198.51.100.1:3478", None),
    ("192.0.2.254:1", "198.51.100.1:3478", None),
    ("192.0.2.255:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("223.255.255.255:1", "198.51.100.1:3478", None),
    ("224.0.0.0:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("239.255.255.255:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("240.0.0.0:1", "198.51.100.1:3478", None),
    ("255.255.255.254:1", "198.51.100.1:3478", None),
    ("255.255.255.255:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[::]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[::1]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[::2]:1", "198.51.100.1:3478", None),
    ("[feff:ffff::]:1", "198.51.100.1:3478", None),
    ("[ff00::]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[ff02::1]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[fe80::1]:1", "198.51.100.1:3478", None),
    # Mapped addresses are checked as IPv4.
    ("[::ffff:192.0.2.1]:1", "198.51.100.1:3478", None),
    ("[::ffff:192.0.2.1]:0", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[::ffff:0.0.0.0]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[::ffff:127.0.0.1]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[::ffff:192.0.2.255]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[::ffff:224.0.0.1]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    ("[::ffff:255.255.255.255]:1", "198.51.100.1:3478", Drop.BAD_SOURCE),
    # The server's own sockets.
    ("198.51.100.1:3478", "198.51.100.1:3478", Drop.OWN_SOURCE),
    ("[2001:db8:ffff::1]:3478", "[2001:db8:ffff::1]:3478", Drop.OWN_SOURCE),
    ("[::ffff:198.51.100.1]:3478", "198.51.100.1:3478", Drop.OWN_SOURCE),
    # From outside nobody has the server's addresses, whatever the port.
    ("198.51.100.1:3479", "198.51.100.1:3478", Drop.OWN_SOURCE),
    ("[2001:db8:ffff::1]:1", "198.51.100.1:3478", Drop.OWN_SOURCE),
    ("[::ffff:198.51.100.1]:1", "198.51.100.1:3478", Drop.OWN_SOURCE),
    ("198.51.100.2:3478", "198.51.100.1:3478", None),
    # Other destinations.
    ("192.0.2.1:1", "198.51.100.2:3478", Drop.NOT_FOR_US),
    ("192.0.2.1:1", "198.51.100.1:3479", Drop.NOT_FOR_US),
    ("192.0.2.1:1", "255.255.255.255:3478", Drop.NOT_FOR_US),
    ("192.0.2.1:1", "192.0.2.255:3478", Drop.NOT_FOR_US),
    ("192.0.2.1:1", "224.0.0.1:3478", Drop.NOT_FOR_US),
    ("192.0.2.1:1", "[ff02::1]:3478", Drop.NOT_FOR_US),
    ("192.0.2.1:1", "[2001:db8:ffff::2]:3478", Drop.NOT_FOR_US),
    ("192.0.2.1:1", "[2001:db8:ffff::1]:3478", None),
    ("192.0.2.1:1", "[::ffff:198.51.100.1]:3478", None),
    ("192.0.2.1:1", "[::ffff:198.51.100.2]:3478", Drop.NOT_FOR_US),
]


@pytest.mark.parametrize(("source", "destination", "expected"), ADDRESS_ROWS)
def test_checks_of_the_addresses(source: str, destination: str, expected: Drop | None) -> None:
    result = respond(BARE, address(source), address(destination), OPTIONS)
    if expected is None:
        assert isinstance(result, Reply)
        assert result.datagram == success(BARE, address(source))
    else:
        assert result is expected


DATAGRAM_ROWS = [
    # 1: at least 20 bytes
    (b"", Drop.SHORT),
    (b"\0", Drop.SHORT),
    (BARE[:19], Drop.SHORT),
    # 2: the first two bits
    (message(field=0x4001), Drop.NOT_STUN),
    (message(field=0x8001), Drop.NOT_STUN),
    (message(field=0xC001), Drop.NOT_STUN),
    # 3: the length
    (with_length(BARE, 1), Drop.BAD_LENGTH),
    (with_length(BARE, 2), Drop.BAD_LENGTH),
    (with_length(BARE + b"\0", 1), Drop.BAD_LENGTH),
    (with_length(BARE + b"\0\0", 2), Drop.BAD_LENGTH),
    (with_length(BARE + b"\0\0\0", 3), Drop.BAD_LENGTH),
    (with_length(BARE, 4), Drop.BAD_LENGTH),
    (with_length(BARE, 0xFFFC), Drop.BAD_LENGTH),
    (BARE + bytes(1), Drop.BAD_LENGTH),
    (BARE + bytes(4), Drop.BAD_LENGTH),
    (with_length(message(attribute(SOFTWARE)), 0), Drop.BAD_LENGTH),
    # 4: the cookie
    (message(cookie=0), Drop.NO_COOKIE),
    (message(cookie=0x42A41221), Drop.NO_COOKIE),
    (message(cookie=0x2112A443), Drop.NO_COOKIE),
    (message(cookie=0xA112A442), Drop.NO_COOKIE),
    # 5: the class
    (message(field=INDICATION), Drop.NOT_REQUEST),
    (message(field=SUCCESS), Drop.NOT_REQUEST),
    (message(field=ERROR), Drop.NOT_REQUEST),
    # 6: the method
    (message(field=0x0000), Drop.UNKNOWN_METHOD),
    (message(field=0x0002), Drop.UNKNOWN_METHOD),
    (message(field=0x0003), Drop.UNKNOWN_METHOD),
    (message(field=0x0021), Drop.UNKNOWN_METHOD),
    (message(field=0x0201), Drop.UNKNOWN_METHOD),
    (message(field=0x2001), Drop.UNKNOWN_METHOD),
    # 7: the attributes
    (message(b"\x80\x00\x00\x01"), Drop.MALFORMED),
    (message(b"\x80\x00\x00\x05", bytes(4)), Drop.MALFORMED),
    (message(b"\x80\x00\xff\xff", bytes(8)), Drop.MALFORMED),
    (message(attribute(SOFTWARE, b"abc"), b"\x00\x06\x00\x04"), Drop.MALFORMED),
    (message(attribute(0x7777), b"\x00\x06\x00\x04"), Drop.MALFORMED),
    # Behind MESSAGE-INTEGRITY attributes are ignored, and malformed all the same.
    (message(attribute(MESSAGE_INTEGRITY), b"\x80\x00\x00\x01"), Drop.MALFORMED),
    # 8: FINGERPRINT
    (LAST[:-1] + bytes([LAST[-1] ^ 1]), Drop.BAD_FINGERPRINT),
    (LAST[:-4] + bytes([LAST[-4] ^ 0x80]) + LAST[-3:], Drop.BAD_FINGERPRINT),
    (LAST[:-12] + b"\1" + LAST[-11:], Drop.BAD_FINGERPRINT),
    (LAST[:24] + b"A" + LAST[25:], Drop.BAD_FINGERPRINT),
    (message(attribute(FINGERPRINT, bytes(4))), Drop.BAD_FINGERPRINT),
    (message(attribute(FINGERPRINT)), Drop.BAD_FINGERPRINT),
    (fingerprinted(fingerprinted(BARE)), Drop.BAD_FINGERPRINT),
    (message(attribute(0x7777), attribute(FINGERPRINT, bytes(4))), Drop.BAD_FINGERPRINT),
    (message(attribute(MESSAGE_INTEGRITY), attribute(FINGERPRINT, bytes(4))), Drop.BAD_FINGERPRINT),
    *((with_fingerprint_of_length(BARE, n), Drop.BAD_FINGERPRINT) for n in (0, 1, 2, 3, 5, 8)),
]


@pytest.mark.parametrize(("datagram", "expected"), DATAGRAM_ROWS)
def test_checks_of_the_datagram(datagram: bytes, expected: Drop) -> None:
    assert respond(datagram, CLIENT, SERVER) is expected
    assert respond(datagram, CLIENT_IPV6, SERVER_IPV6) is expected
    assert respond(datagram, CLIENT, SERVER, OPTIONS) is expected


def forged(template: bytes, crc: int) -> bytes:
    """Return the message with an id that gives its bytes this CRC-32, which is linear."""

    def crc_of(number: int) -> int:
        return zlib.crc32(template[:16] + number.to_bytes(4, "big") + template[20:])

    wanted, found = crc ^ crc_of(0), 0
    rows = [(crc_of(1 << bit) ^ crc_of(0), 1 << bit) for bit in range(32)]
    for bit in range(32):
        pivot = next(row for row in rows if row[0] >> bit & 1)
        rows.remove(pivot)
        rows = [(a ^ pivot[0], b ^ pivot[1]) if a >> bit & 1 else (a, b) for a, b in rows]
        if wanted >> bit & 1:
            wanted, found = wanted ^ pivot[0], found ^ pivot[1]
    return template[:16] + found.to_bytes(4, "big") + template[20:]


@pytest.mark.parametrize("kind", [0x0000, 0x0001, 0x0002, 0x0004, 0x0005])
def test_the_neighbours_of_change_request_are_unknown(kind: int) -> None:
    reply = respond(message(attribute(kind, bytes(4))), CLIENT, SERVER)
    assert isinstance(reply, Reply)
    assert Message.decode(reply.datagram).get(UnknownAttributes) == UnknownAttributes((kind,))  # type: ignore[arg-type]


def test_a_fingerprint_without_a_value_is_bad_whatever_the_crc() -> None:
    """The four bytes that are missing are not zeros."""
    empty = forged(with_length(BARE, 4), 0x5354554E) + attribute(FINGERPRINT)
    assert fingerprint_of(empty[:-4]) == bytes(4)
    assert respond(empty, CLIENT, SERVER) is Drop.BAD_FINGERPRINT
    # Nor do more bytes make a value: as one number these eight are the CRC.
    behind = attribute(SOFTWARE)
    crc = int.from_bytes(behind, "big") ^ 0x5354554E
    more = forged(with_length(BARE, 12), crc) + attribute(FINGERPRINT, bytes(4)) + behind
    assert fingerprint_of(more[:-12]) == behind
    assert respond(more, CLIENT, SERVER) is Drop.BAD_FINGERPRINT


def test_a_long_request_has_its_fingerprint_checked() -> None:
    long = fingerprinted(message(attribute(SOFTWARE, 400 * b"a")))
    assert isinstance(respond(long, CLIENT, SERVER), Reply)
    wrong = long[:-1] + bytes([long[-1] ^ 1])
    assert respond(wrong, CLIENT, SERVER) is Drop.BAD_FINGERPRINT


def test_a_fingerprint_that_is_right_and_not_last_is_bad() -> None:
    for behind in (attribute(SOFTWARE, b"abc"), attribute(FINGERPRINT, bytes(4))):
        covered = with_length(BARE, 8 + len(behind))
        datagram = covered + attribute(FINGERPRINT, fingerprint_of(covered)) + behind
        assert respond(datagram, CLIENT, SERVER) is Drop.BAD_FINGERPRINT


def test_every_reason_is_in_the_tables_and_they_are_in_order() -> None:
    reasons = [row[-1] for row in ADDRESS_ROWS] + [row[-1] for row in DATAGRAM_ROWS]
    assert list(dict.fromkeys(reason for reason in reasons if reason)) == list(Drop)


def test_reasons_are_named_as_they_are_counted() -> None:
    assert list(Drop) == [
        "bad_source",
        "own_source",
        "not_for_us",
        "short",
        "not_stun",
        "bad_length",
        "no_cookie",
        "not_request",
        "unknown_method",
        "malformed",
        "bad_fingerprint",
    ]


# --- The order of checks ---


def append(data: bytearray, new: bytes) -> None:
    data += new
    data[2:4] = (len(data) - HEADER_SIZE).to_bytes(2, "big")


def spoil(data: bytearray, reason: Drop) -> None:
    """Give a request the defect that is counted under this reason."""
    match reason:
        case Drop.SHORT:
            del data[HEADER_SIZE - 1 :]
        case Drop.NOT_STUN:
            data[0] |= 0x80
        case Drop.BAD_LENGTH:
            data[2] ^= 0x80
        case Drop.NO_COOKIE:
            data[4] ^= 0xFF
        case Drop.NOT_REQUEST:
            data[1] |= 0x10
        case Drop.UNKNOWN_METHOD:
            data[1] |= 0x02
        case Drop.MALFORMED:
            append(data, b"\x80\x00\x00\x04")
        case Drop.BAD_FINGERPRINT:
            append(data, attribute(FINGERPRINT, bytes(4)))
        case _:
            pass  # a matter of addresses


def test_of_several_defects_the_earliest_is_reported() -> None:
    """Every set of the eleven defects, with and without an unknown required attribute."""
    for flags in itertools.product([False, True], repeat=len(Drop)):
        chosen = {reason for reason, flag in zip(Drop, flags, strict=True) if flag}
        for unknown in ([], [0x7777]):
            data = bytearray(message(*map(attribute, unknown)))
            # The last check's first: the first check's may cut all the others off.
            for reason in reversed(Drop):
                if reason in chosen:
                    spoil(data, reason)
            # An address of the server's is a bad source too, if it is of multicast.
            source = address("224.0.0.1:1" if Drop.BAD_SOURCE in chosen else "192.0.2.1:1")
            endpoints = {SERVER, source} if Drop.OWN_SOURCE in chosen else {SERVER}
            destination = SERVER if Drop.NOT_FOR_US not in chosen else address("198.51.100.2")
            options = ResponderOptions(endpoints=frozenset(endpoints), check_destination=True)
            result = respond(data, source, destination, options)
            if chosen:
                assert result is min(chosen, key=list(Drop).index)
            else:
                assert isinstance(result, Reply)
                request = bytes(data)
                expected = error_420(request, unknown) if unknown else success(request, source)
                assert result.datagram == expected


# --- Success ---


@given(request=valid_requests(), source=good_addresses, destination=destinations)
@example(request=BARE, source=CLIENT, destination=SERVER)
@example(request=BARE, source=mapped(CLIENT), destination=mapped(SERVER))
@example(request=fingerprinted(BARE), source=CLIENT_IPV6, destination=SERVER_IPV6)
def test_a_good_request_is_answered_byte_for_byte(
    request: bytes, source: TransportAddress, destination: TransportAddress
) -> None:
    expected = Reply(success(request, source), destination, source)
    assert respond(request, source, destination) == expected


@given(
    request=valid_requests(),
    source=good_addresses,
    software=st.text(max_size=127),
)
def test_software_is_sent_if_configured(
    request: bytes, source: TransportAddress, software: str
) -> None:
    options = ResponderOptions(software=software)
    expected = Reply(success(request, source, software), SERVER, source)
    assert respond(request, source, SERVER, options) == expected


@pytest.mark.parametrize(
    ("source", "size"),
    [(CLIENT, 32), (CLIENT_IPV6, 44), (mapped(CLIENT), 32)],
    ids=["IPv4", "IPv6", "mapped"],
)
def test_the_size_of_a_success_reply(source: TransportAddress, size: int) -> None:
    reply = respond(BARE, source, SERVER)
    assert isinstance(reply, Reply)
    assert len(reply.datagram) == size


def test_the_reply_to_the_client_of_rfc_5769() -> None:
    # Section 2.2 and 2.3: the transaction id, the addresses, and their masked forms.
    transaction_id = bytes.fromhex("b7e7a701bc34d686fa87dfae")
    request = message(transaction_id=transaction_id)
    for source, value in [
        ("192.0.2.1:32853", "0020 0008 0001a147e112a643"),
        (
            "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
            "0020 0014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9",
        ),
    ]:
        reply = respond(request, address(source), SERVER)
        assert isinstance(reply, Reply)
        expected = message(bytes.fromhex(value), field=SUCCESS, transaction_id=transaction_id)
        assert reply.datagram == expected


@given(good_addresses, transaction_ids)
def test_the_client_learns_its_address(source: TransportAddress, transaction_id: bytes) -> None:
    reply = respond(message(transaction_id=transaction_id), source, SERVER)
    assert isinstance(reply, Reply)
    decoded = Message.decode(reply.datagram)
    assert decoded.mapped_address == source.unmapped()
    assert decoded.transaction_id == transaction_id
    assert len(decoded.attributes) == 1


def test_the_reply_goes_back_the_way_the_request_came() -> None:
    # To the address as the socket knows it, mapped or not.
    for source, destination in [(CLIENT, SERVER), (mapped(CLIENT), mapped(SERVER))]:
        reply = respond(BARE, source, destination)
        assert isinstance(reply, Reply)
        assert (reply.source, reply.destination) == (destination, source)


@given(st.lists(harmless_attributes, max_size=5))
def test_fingerprint_is_mirrored(attributes: list[bytes]) -> None:
    for request in (message(*attributes), fingerprinted(message(*attributes))):
        reply = respond(request, CLIENT, SERVER)
        assert isinstance(reply, Reply)
        assert Message.decode(reply.datagram).has_fingerprint is has_fingerprint(request)
    refused = fingerprinted(message(attribute(0x7777), *attributes))
    reply = respond(refused, CLIENT, SERVER)
    assert isinstance(reply, Reply)
    assert reply.datagram == error_420(refused, [0x7777])
    assert Message.decode(reply.datagram).has_fingerprint


# --- What is known and ignored ---


@pytest.mark.parametrize("kind", KNOWN_AND_IGNORED)
def test_known_attributes_are_ignored(kind: int) -> None:
    for value in (b"", b"abc", bytes(20), bytes(300)):
        assert answer(attribute(kind, value)) == success(BARE, CLIENT)


def test_every_other_required_attribute_is_refused() -> None:
    known = {*KNOWN_AND_IGNORED, CHANGE_REQUEST}
    for kind in range(0x8000):
        expected = [] if kind in known else [kind]
        assert listed(attribute(kind, bytes(4))) == expected


@given(st.lists(optional_attributes, max_size=6))
def test_optional_attributes_are_ignored(attributes: list[bytes]) -> None:
    assert answer(*attributes) == success(BARE, CLIENT)


def test_every_optional_attribute_is_ignored() -> None:
    for kind in range(0x8000, 0x10000):
        if kind != FINGERPRINT:
            assert answer(attribute(kind, b"x")) == success(BARE, CLIENT)


@given(refused_attributes, st.binary(min_size=3, max_size=3))
def test_padding_makes_no_difference(refused: bytes, padding: bytes) -> None:
    kind, value = parts(message(refused))[0]
    assert listed(attribute(kind, value, padding)) == [kind]
    assert answer(attribute(SOFTWARE, b"a", padding)) == success(BARE, CLIENT)


# --- CHANGE-REQUEST ---


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        (["00000000"], False),
        (["00000002"], True),  # change port
        (["00000004"], True),  # change address
        (["00000006"], True),
        # RFC 5780 section 7.2 has two flags: the other bits say nothing.
        (["fffffff9"], False),
        (["00000001"], False),
        (["00000008"], False),
        (["02000000"], False),
        (["ffffffff"], True),
        # Another length: nobody knows what it asks for.
        ([""], True),
        (["000000"], True),
        (["0000000000"], True),
        (["0000000000000000"], True),
        # Of duplicates the first counts.
        (["00000000", "00000006"], False),
        (["00000006", "00000000"], True),
        (["00000000", ""], False),
        (["", "00000000"], True),
        (["00000002", "00000004"], True),
    ],
)
def test_change_request(values: list[str], refused: bool) -> None:  # noqa: FBT001 - a column
    attributes = [attribute(CHANGE_REQUEST, bytes.fromhex(value)) for value in values]
    assert listed(*attributes) == ([CHANGE_REQUEST] if refused else [])
    # Others between them change nothing.
    spread = [part for one in attributes for part in (attribute(SOFTWARE), one)]
    assert listed(*spread) == ([CHANGE_REQUEST] if refused else [])


# --- 420 ---


def refused_types(*attributes: bytes) -> list[int]:
    """What a 420 lists, in the words of the specification."""
    found = parts(message(*attributes))
    ends = [
        position
        for position, (kind, _) in enumerate(found)
        if kind in (MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256)
    ]
    found = found[: min(ends, default=len(found))]
    ignored = set(KNOWN_AND_IGNORED)
    first = next((value for kind, value in found if kind == CHANGE_REQUEST), bytes(4))
    if len(first) == 4 and not first[3] & 0x06:
        ignored.add(CHANGE_REQUEST)
    kinds = [kind for kind, _ in found if kind < 0x8000 and kind not in ignored]
    return list(dict.fromkeys(kinds))


@given(st.lists(unknown_types | optional_types, min_size=1, max_size=12), st.data())
def test_420_lists_each_unknown_type_once_in_order(kinds: list[int], data: st.DataObject) -> None:
    attributes = [attribute(kind, data.draw(st.binary(max_size=5))) for kind in kinds]
    required = [kind for kind in kinds if kind < 0x8000]
    assert listed(*attributes) == list(dict.fromkeys(required))


@given(st.lists(refused_attributes | harmless_attributes | integrity_attributes, max_size=8))
@example([attribute(CHANGE_REQUEST, bytes(4)), attribute(0x7777)])
@example([attribute(CHANGE_REQUEST, bytes(4)), attribute(0x7777), attribute(CHANGE_REQUEST)])
@example([attribute(0x7777), attribute(CHANGE_REQUEST), attribute(0x7777)])
def test_a_request_is_answered_with_success_or_420(attributes: list[bytes]) -> None:
    kinds = refused_types(*attributes)
    for request in (message(*attributes), fingerprinted(message(*attributes))):
        for software in (None, "pktstun"):
            options = ResponderOptions(software=software)
            reply = respond(request, CLIENT, SERVER, options)
            assert isinstance(reply, Reply)
            assert reply.datagram == (
                error_420(request, kinds, software) if kinds else success(request, CLIENT, software)
            )


@given(
    st.lists(refused_attributes | harmless_attributes, max_size=5),
    integrity_attributes,
    st.lists(refused_attributes | integrity_attributes, min_size=1, max_size=5),
)
def test_what_follows_integrity_is_ignored(
    before: list[bytes], integrity: bytes, after: list[bytes]
) -> None:
    assert listed(*before, integrity, *after) == listed(*before)
    request = fingerprinted(message(*before, integrity, *after))
    kinds = listed(*before)
    reply = respond(request, CLIENT, SERVER)
    assert isinstance(reply, Reply)
    assert reply.datagram == (error_420(request, kinds) if kinds else success(request, CLIENT))


def test_what_follows_integrity_is_ignored_and_what_precedes_it_is_not() -> None:
    first, second, third = (attribute(kind) for kind in (0x7771, 0x7772, 0x7773))
    sha1 = attribute(MESSAGE_INTEGRITY, bytes(20))
    sha256 = attribute(MESSAGE_INTEGRITY_SHA256, bytes(32))
    assert listed(first, sha1, second) == [0x7771]
    assert listed(first, sha256, second) == [0x7771]
    # MESSAGE-INTEGRITY-SHA256 may follow MESSAGE-INTEGRITY, and what is between them may not.
    assert listed(first, sha1, second, sha256, third) == [0x7771]
    assert listed(first, sha256, second, sha1, third) == [0x7771]
    assert listed(sha1, second) == listed(sha256, second) == []
    assert listed(sha1, sha256, sha1, second) == []
    # One that is ignored is not the first of its type, for it is not there.
    flag = attribute(CHANGE_REQUEST, b"\0\0\0\6")
    assert listed(attribute(CHANGE_REQUEST, bytes(4)), sha1, flag) == []
    assert listed(flag, sha1) == [CHANGE_REQUEST]


# --- Amplification ---


def bound(source: TransportAddress) -> int:
    """How much longer than the request a reply of the default configuration may be."""
    return 24 if source.unmapped().ip.version == 6 else 12


@given(datagrams(), good_addresses)
@example(BARE, CLIENT)
@example(message(attribute(0x7777)), CLIENT)
@example(message(attribute(0x7777), attribute(0x7778)), CLIENT)
@example(fingerprinted(message(attribute(0x7777))), CLIENT)
def test_a_reply_is_hardly_longer_than_its_request(
    datagram: bytes, source: TransportAddress
) -> None:
    reply = respond(datagram, source, SERVER)
    if isinstance(reply, Reply):
        assert len(reply.datagram) <= len(datagram) + bound(source)


@given(st.lists(st.integers(0x7000, 0x7FFF), unique=True, max_size=200), st.booleans())
def test_the_list_of_a_420_always_fits(kinds: list[int], protect: bool) -> None:  # noqa: FBT001
    request = message(*map(attribute, kinds))
    request = fingerprinted(request) if protect else request
    reply = respond(request, CLIENT, SERVER)
    assert isinstance(reply, Reply)
    assert len(reply.datagram) <= len(request) + 12
    if kinds:
        assert reply.datagram == error_420(request, kinds)


def test_the_longest_list_of_a_420() -> None:
    # As many types as there is room for in one UDP datagram over IPv4.
    kinds = list(range(0x1000, 0x1000 + (65507 - 20) // 4))
    request = message(*map(attribute, kinds))
    reply = respond(request, CLIENT, SERVER)
    assert isinstance(reply, Reply)
    assert reply.datagram == error_420(request, kinds)
    assert len(reply.datagram) < len(request)


# --- Never a loop ---


@given(deliveries())
def test_a_reply_is_never_answered(delivery: Delivery) -> None:
    reply = respond(*delivery)
    if isinstance(reply, Reply):
        again = respond(reply.datagram, reply.source, reply.destination)
        assert again in (Drop.NOT_REQUEST, Drop.BAD_SOURCE)
        # Not even where it seems to come from a good source.
        assert respond(reply.datagram, CLIENT, SERVER) is Drop.NOT_REQUEST


@given(messages())
def test_only_binding_requests_are_answered(drawn: Message) -> None:
    result = respond(drawn.encode(), CLIENT, SERVER)
    assert isinstance(result, Reply) is (drawn.encode()[:2] == REQUEST.to_bytes(2, "big"))


@given(valid_requests(), st.integers(0, 0x3FFF))
def test_no_other_type_is_answered(request: bytes, field: int) -> None:
    datagram = field.to_bytes(2, "big") + request[2:]
    if has_fingerprint(request):
        datagram = fingerprinted(datagram[:-8])
    result = respond(datagram, CLIENT, SERVER)
    if field & 0x0110:
        assert result is Drop.NOT_REQUEST
    elif field != REQUEST:
        assert result is Drop.UNKNOWN_METHOD
    else:
        assert isinstance(result, Reply)


@given(datagrams(), addresses(), addresses())
def test_the_server_never_answers_itself(
    datagram: bytes, own: TransportAddress, destination: TransportAddress
) -> None:
    for endpoint, source in itertools.product(forms(own), forms(own)):
        options = ResponderOptions(endpoints=frozenset({endpoint}), allow_loopback=True)
        assert respond(datagram, source, destination, options) in (
            Drop.OWN_SOURCE,
            Drop.BAD_SOURCE,
        )


def forms(own: TransportAddress) -> list[TransportAddress]:
    """The forms in which sockets of both families name an address."""
    ipv4 = own.unmapped()
    return [ipv4, mapped(ipv4)] if ipv4.ip.version == 4 else [own]


# --- Configuration ---


@pytest.mark.parametrize("endpoint", [SERVER, mapped(SERVER)])
@pytest.mark.parametrize("destination", [SERVER, mapped(SERVER)])
def test_a_mapped_endpoint_is_the_ipv4_one(
    endpoint: TransportAddress, destination: TransportAddress
) -> None:
    options = ResponderOptions(endpoints=frozenset({endpoint}), check_destination=True)
    assert isinstance(respond(BARE, CLIENT, destination, options), Reply)
    assert respond(BARE, endpoint, destination, options) is Drop.OWN_SOURCE
    assert respond(BARE, destination, destination, options) is Drop.OWN_SOURCE


def test_others_have_no_address_of_the_host() -> None:
    options = ResponderOptions(endpoints=frozenset({SERVER}), local=frozenset({CLIENT.ip}))
    for client in (CLIENT, mapped(CLIENT), CLIENT._replace(port=1)):
        assert respond(BARE, client, SERVER, options) is Drop.OWN_SOURCE
        allowed = dataclasses.replace(options, allow_loopback=True)
        assert isinstance(respond(BARE, client, SERVER, allowed), Reply)


def test_the_host_itself_may_ask_where_it_is_allowed_to() -> None:
    options = ResponderOptions(endpoints=frozenset({SERVER}), allow_loopback=True)
    client = TransportAddress(SERVER.ip, 4000)
    assert isinstance(respond(BARE, client, SERVER, options), Reply)
    assert respond(BARE, SERVER, SERVER, options) is Drop.OWN_SOURCE


# --- Redirects ---

ALTERNATE = address("203.0.113.9:5349")


@given(valid_requests(), st.none() | st.just("pktstun"))
def test_clients_are_sent_elsewhere(request: bytes, software: str | None) -> None:
    options = ResponderOptions(alternate_servers=(ALTERNATE,), software=software)
    result = respond(request, CLIENT, SERVER, options)
    body = struct.pack("!HHHBB", 0x0009, 4, 0, 3, 0)
    body += struct.pack("!HHxBH4s", 0x8023, 8, 1, ALTERNATE.port, ALTERNATE.ip.packed)
    header = struct.pack("!HHI", 0x0111, len(body), 0x2112A442) + request[8:20]
    assert result == Reply(finished(header + body, request, software), SERVER, CLIENT)
    # There is none for the other family.
    assert respond(request, CLIENT_IPV6, SERVER_IPV6, options) == respond(
        request, CLIENT_IPV6, SERVER_IPV6, ResponderOptions(software=software)
    )


def test_clients_of_tls_are_told_the_name_on_the_other_certificate() -> None:
    options = ResponderOptions(alternate_servers=(ALTERNATE,), alternate_domain="b.example.org")
    result = respond(message(), CLIENT, SERVER, options)
    assert isinstance(result, Reply)
    decoded = Message.decode(result.datagram)
    assert decoded.get(AlternateDomain) == AlternateDomain("b.example.org")
    assert [type(each) for each in decoded.attributes] == [
        ErrorCode,
        AlternateServer,
        AlternateDomain,
    ]
    with pytest.raises(StunError, match="ALTERNATE-DOMAIN"):
        ResponderOptions(alternate_servers=(ALTERNATE,), alternate_domain="")


def test_what_the_server_does_not_understand_comes_before_a_redirect() -> None:
    options = ResponderOptions(alternate_servers=(ALTERNATE,))
    request = message(attribute(0x7777))
    result = respond(request, CLIENT, SERVER, options)
    assert isinstance(result, Reply)
    assert result.datagram == error_420(request, [0x7777])


def test_there_is_one_alternate_server_for_each_family() -> None:
    ResponderOptions(alternate_servers=(ALTERNATE, SERVER_IPV6))
    with pytest.raises(StunError, match="one of each address family"):
        ResponderOptions(alternate_servers=(ALTERNATE, SERVER))


@given(ip_addresses, ports)
def test_which_sources_are_bad(ip: IPv4Address | IPv6Address, port: int) -> None:
    source = TransportAddress(ip, port)
    client = source.unmapped().ip
    bad = port == 0 or is_in(client, FOR_MANY + UNSPECIFIED)
    tolerant = ResponderOptions(allow_loopback=True)
    assert (respond(BARE, source, SERVER, tolerant) is Drop.BAD_SOURCE) is bad
    bad = bad or is_in(client, LOOPBACK)
    assert (respond(BARE, source, SERVER) is Drop.BAD_SOURCE) is bad


@given(ip_addresses, ports)
def test_which_destinations_are_not_one_host_s(ip: IPv4Address | IPv6Address, port: int) -> None:
    """A wildcard socket gets what is for many, and no reply can leave from there."""
    destination = TransportAddress(ip, port)
    for_many = is_in(destination.unmapped().ip, FOR_MANY)
    assert (respond(BARE, CLIENT, destination) is Drop.NOT_FOR_US) is for_many
    # Not even where the configuration says that it is an address of this server.
    named = ResponderOptions(endpoints=frozenset({destination}), check_destination=True)
    assert (respond(BARE, CLIENT, destination, named) is Drop.NOT_FOR_US) is for_many


@pytest.mark.parametrize("source", ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"])
def test_loopback_is_answered_where_it_belongs(source: str) -> None:
    client = address(source)
    assert answer(source=client) is Drop.BAD_SOURCE
    options = ResponderOptions(allow_loopback=True)
    assert answer(source=client, options=options) == success(BARE, client)


def test_a_broadcast_address_is_one_of_the_host_s_networks() -> None:
    client = address("192.0.2.255:1")
    assert answer(source=client) == success(BARE, client)
    options = ResponderOptions(broadcasts=frozenset({IPv4Address("192.0.2.255")}))
    assert answer(source=client, options=options) is Drop.BAD_SOURCE
    assert answer(source=mapped(client), options=options) is Drop.BAD_SOURCE
    assert answer(source=CLIENT, options=options) == success(BARE, CLIENT)
    # No more is it one host's address, to which a request may be sent.
    for destination in (client, mapped(client)):
        assert isinstance(respond(BARE, CLIENT, destination), Reply)
        assert respond(BARE, CLIENT, destination, options) is Drop.NOT_FOR_US


def test_destinations_are_checked_only_on_demand() -> None:
    elsewhere = address("203.0.113.1:9")
    endpoints = frozenset({SERVER})
    reply = respond(BARE, CLIENT, elsewhere, ResponderOptions(endpoints=endpoints))
    assert reply == Reply(success(BARE, CLIENT), elsewhere, CLIENT)
    options = ResponderOptions(endpoints=endpoints, check_destination=True)
    assert respond(BARE, CLIENT, elsewhere, options) is Drop.NOT_FOR_US
    # A server that was told of no address is nobody.
    nobody = ResponderOptions(check_destination=True)
    assert respond(BARE, CLIENT, SERVER, nobody) is Drop.NOT_FOR_US


def test_software_has_the_limits_of_the_attribute() -> None:
    longest = 127 * "\U0001f600"
    assert answer(options=ResponderOptions(software=longest)) == success(BARE, CLIENT, longest)
    assert ResponderOptions(software="a").software_attributes == (Software("a"),)
    assert ResponderOptions().software_attributes == ()
    with pytest.raises(StunError, match="128 characters"):
        ResponderOptions(software=128 * "a")


def test_options_and_replies_are_values() -> None:
    for value in (OPTIONS, Reply(BARE, SERVER, CLIENT)):
        assert hash(copy.copy(value)) == hash(value)
        assert not hasattr(value, "__dict__")
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, getattr(value, name))


# --- Any bytes, any order ---


@given(deliveries())
def test_every_kind_of_buffer_gets_the_same_answer(delivery: Delivery) -> None:
    datagram, source, destination, options = delivery
    expected = respond(datagram, source, destination, options)
    assert isinstance(expected, Drop | Reply)
    unchanged = bytearray(datagram)
    buffers: list[Buffer] = [
        unchanged,
        memoryview(b"-" + datagram + b"-")[1:-1],
        array.array("b", datagram),
    ]
    if len(datagram) % 4 == 0:
        buffers.append(array.array("I", datagram))
    for buffer in buffers:
        assert respond(buffer, source, destination, options) == expected
    assert unchanged == datagram


@given(st.binary(max_size=100), addresses(), addresses())
def test_no_bytes_raise(datagram: bytes, source: TransportAddress, destination: object) -> None:
    assert isinstance(destination, TransportAddress)
    assert isinstance(respond(datagram, source, destination), Drop)


@given(deliveries())
def test_any_buffer_is_answered_like_its_bytes(delivery: Delivery) -> None:
    datagram, source, destination, options = delivery
    doubled = bytes(byte for byte in datagram for _ in range(2))
    expected = respond(datagram, source, destination, options)
    for buffer in (bytearray(datagram), memoryview(datagram), memoryview(doubled)[::2]):
        assert respond(buffer, source, destination, options) == expected


def test_a_zone_of_the_client_is_not_sent() -> None:
    client = TransportAddress.parse("[fe80::1%eth0]:4000")
    reply = respond(message(), client, SERVER)
    assert isinstance(reply, Reply)
    assert reply.destination == client
    mapped = Message.decode(reply.datagram).mapped_address
    assert mapped == TransportAddress.parse("[fe80::1]:4000")


@given(st.lists(deliveries(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_answers_do_not_depend_on_what_was_asked_before(
    batch: list[Delivery], random: Random
) -> None:
    one_by_one = [respond(*delivery) for delivery in batch]
    order = [*range(len(batch)), *range(len(batch))]
    random.shuffle(order)
    for index in order:
        assert respond(*batch[index]) == one_by_one[index]


# --- What the strategies reach ---


def outcome(result: Reply | Drop) -> str:
    if isinstance(result, Drop):
        return result
    return {SUCCESS: "success", ERROR: "420"}[int.from_bytes(result.datagram[:2], "big")]


def counted(count: int, strategy: st.SearchStrategy[Delivery]) -> Counter[str]:
    """How often each outcome occurs in a sample that is always the same."""
    seen: Counter[str] = Counter()

    @given(strategy)
    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def count_one(delivery: Delivery) -> None:
        seen[outcome(respond(*delivery))] += 1

    count_one()
    return seen


def test_datagrams_reach_every_check_of_the_datagram() -> None:
    plain = datagrams().map(lambda data: Delivery(data, CLIENT, SERVER, ResponderOptions()))
    seen = counted(1000, plain)
    of_addresses = {Drop.BAD_SOURCE, Drop.OWN_SOURCE, Drop.NOT_FOR_US}
    assert seen.keys() == {"success", "420", *Drop} - of_addresses
    assert min(seen.values()) >= 5
    assert 0.4 <= seen["success"] / seen.total() <= 0.6
    assert seen["420"] / seen.total() >= 0.08


def test_deliveries_reach_every_check() -> None:
    seen = counted(1250, deliveries())
    assert seen.keys() == {"success", "420", *Drop}
    assert min(seen.values()) >= 5
    assert seen["success"] / seen.total() >= 0.25
