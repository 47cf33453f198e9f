"""Clients of RFC 3489, which know no cookie; the replies expected are laid out by hand."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pktstun.stun import (
    Drop,
    NatDiscovery,
    Reply,
    ResponderOptions,
    TransportAddress,
    respond,
)
from tests.strategies.datagrams import COOKIE, attribute, datagrams, message

CLIENT = TransportAddress.parse("203.0.113.7:4000")
SERVER = TransportAddress.parse("192.0.2.1:3478")
OTHER = TransportAddress.parse("192.0.2.2:3479")
DISCOVERY = NatDiscovery((IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")), (3478, 3479))
CLASSIC = ResponderOptions(classic=True)
BOTH = ResponderOptions(classic=True, discovery=(DISCOVERY,))

cookies = st.integers(0, 0xFFFFFFFF).filter(lambda cookie: cookie != COOKIE)
transaction_ids = st.binary(min_size=12, max_size=12)


def classic(*attributes: bytes, field: int = 0x0001) -> bytes:
    return message(*attributes, field=field, cookie=0x5AA5C33C)


def plain_address(kind: int, address: TransportAddress) -> bytes:
    return struct.pack("!HHxBH4s", kind, 8, 1, address.port, address.ip.packed)


def response(request: bytes, *attributes: bytes, field: int = 0x0101) -> bytes:
    body = b"".join(attributes)
    return struct.pack("!HH", field, len(body)) + request[4:20] + body


def answer(request: bytes, options: ResponderOptions = CLASSIC) -> Reply:
    reply = respond(request, CLIENT, SERVER, options)
    assert isinstance(reply, Reply)
    return reply


@given(cookies, transaction_ids)
def test_the_transaction_id_has_16_bytes(cookie: int, transaction_id: bytes) -> None:
    request = message(cookie=cookie, transaction_id=transaction_id)
    assert answer(request).datagram == response(
        request, plain_address(0x0001, CLIENT), plain_address(0x0004, SERVER)
    )
    assert respond(request, CLIENT, SERVER) is Drop.NO_COOKIE


def test_with_two_addresses() -> None:
    request = classic()
    reply = answer(request, BOTH)
    assert (reply.source, reply.destination) == (SERVER, CLIENT)
    assert reply.datagram == response(
        request,
        plain_address(0x0001, CLIENT),
        plain_address(0x0004, SERVER),
        plain_address(0x0005, OTHER),
    )


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        (0, SERVER),
        (2, TransportAddress(SERVER.ip, 3479)),
        (4, TransportAddress(OTHER.ip, 3478)),
        (6, OTHER),
    ],
)
def test_change_request(flags: int, source: TransportAddress) -> None:
    request = classic(attribute(0x0003, struct.pack("!I", flags)))
    reply = answer(request, BOTH)
    assert reply.source == source
    assert plain_address(0x0004, source) in reply.datagram
    assert plain_address(0x0005, OTHER) in reply.datagram


def error(request: bytes, code: int, *unknown: int) -> bytes:
    parts = [attribute(0x0009, struct.pack("!HBB", 0, *divmod(code, 100)))]
    if unknown:
        parts.append(attribute(0x000A, struct.pack(f"!{len(unknown)}H", *unknown)))
    return response(request, *parts, field=0x0111)


@pytest.mark.parametrize(
    ("attributes", "options", "expected"),
    [
        ([attribute(0x7777)], CLASSIC, (420, 0x7777, 0x7777)),
        ([attribute(0x7777), attribute(0x0014)], CLASSIC, (420, 0x7777, 0x0014)),
        # RESPONSE-ADDRESS is never honoured.
        ([attribute(0x0002, plain_address(0, OTHER)[4:])], BOTH, (420, 2, 2)),
        # Nobody can answer from elsewhere.
        ([attribute(0x0003, b"\0\0\0\6")], CLASSIC, (420, 3, 3)),
        ([attribute(0x0003, bytes(8))], BOTH, (400,)),
        # RFC 5780 is not known to these.
        ([attribute(0x0027, bytes([0, 9, 0, 0]))], BOTH, (420, 0x27, 0x27)),
    ],
)
def test_errors(
    attributes: list[bytes], options: ResponderOptions, expected: tuple[int, ...]
) -> None:
    request = classic(*attributes)
    reply = answer(request, options)
    assert reply.datagram == error(request, *expected)
    assert (reply.source, reply.destination) == (SERVER, CLIENT)


def test_what_is_known_and_ignored() -> None:
    plain = answer(classic()).datagram
    for kind in (0x0003, 0x0006, 0x0008, 0x8022, 0x8028):
        assert answer(classic(attribute(kind, bytes(4)))).datagram == plain


@pytest.mark.parametrize(
    ("request_", "drop"),
    [
        (classic(field=0x0011), Drop.NOT_REQUEST),
        (classic(field=0x0101), Drop.NOT_REQUEST),
        (classic(field=0x0111), Drop.NOT_REQUEST),
        (classic(field=0x0002), Drop.UNKNOWN_METHOD),
        (classic(b"\x80\x00\x00\x01"), Drop.MALFORMED),
    ],
)
def test_what_is_never_answered(request_: bytes, drop: Drop) -> None:
    assert respond(request_, CLIENT, SERVER, BOTH) is drop


def test_ipv6_was_unknown_then() -> None:
    client, server = map(TransportAddress.parse, ("[2001:db8::7]:1", "[2001:db8::1]:3478"))
    assert respond(classic(), client, server, CLASSIC) is Drop.NO_COOKIE


@given(datagrams())
def test_others_are_answered_as_ever(datagram: bytes) -> None:
    assume(datagram[4:8] != b"" and int.from_bytes(datagram[4:8]) == COOKIE)
    assert respond(datagram, CLIENT, SERVER, CLASSIC) == respond(datagram, CLIENT, SERVER)


@given(datagrams())
def test_the_bound_of_amplification_and_no_loop(datagram: bytes) -> None:
    reply = respond(datagram, CLIENT, SERVER, BOTH)
    if isinstance(reply, Reply):
        assert len(reply.datagram) <= len(datagram) + 48
        assert respond(reply.datagram, SERVER, CLIENT, BOTH) is Drop.NOT_REQUEST
