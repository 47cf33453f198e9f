"""FINGERPRINT: the messages of RFC 5769, and no bit of a message can change unnoticed."""

from __future__ import annotations

import hashlib
import hmac
from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.stun import (
    AttributeType,
    Class,
    Fingerprint,
    Message,
    Method,
    RawAttribute,
    Software,
    StunError,
    TransportAddress,
    fingerprint,
)
from tests.strategies.datagrams import (
    FINGERPRINT,
    SOFTWARE,
    attribute,
    fingerprint_of,
    fingerprinted,
    message,
    with_fingerprint_of_length,
    with_length,
)
from tests.strategies.stun import messages

# RFC 5769 section 2.1: a request with short-term credentials. Padding is of spaces.
REQUEST = bytes.fromhex(
    "0001 0058 2112a442 b7e7a701bc34d686fa87dfae"
    "8022 0010 5354554e207465737420636c69656e74"
    "0024 0004 6e0001ff"
    "8029 0008 932ff9b151263b36"
    "0006 0009 6576746a3a68367659 202020"
    "0008 0014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "8028 0004 e57a3bcf"
)

# RFC 5769 section 2.2 and 2.3: its answers over IPv4 and IPv6.
RESPONSE_IPV4 = bytes.fromhex(
    "0101 003c 2112a442 b7e7a701bc34d686fa87dfae"
    "8022 000b 7465737420766563746f72 20"
    "0020 0008 0001a147e112a643"
    "0008 0014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "8028 0004 c07d4c96"
)
RESPONSE_IPV6 = bytes.fromhex(
    "0101 0048 2112a442 b7e7a701bc34d686fa87dfae"
    "8022 000b 7465737420766563746f72 20"
    "0020 0014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "0008 0014 a382954e4be67bf11784c97c8292c275bfe3ed41"
    "8028 0004 c8fb0b4c"
)
VECTORS = pytest.mark.parametrize(
    "vector", [REQUEST, RESPONSE_IPV4, RESPONSE_IPV6], ids=["2.1", "2.2", "2.3"]
)


@VECTORS
def test_the_messages_here_are_those_of_rfc_5769(vector: bytes) -> None:
    """MESSAGE-INTEGRITY proves every byte in front of it: no digit is mistyped."""
    covered = with_length(vector[:-32], len(vector) - 8 - 20)
    mac = hmac.digest(b"VOkJxbRl1RmTxUk/WvJxBt", covered, hashlib.sha1)
    assert vector[-32:-8] == attribute(0x0008, mac)


@VECTORS
def test_the_fingerprints_of_rfc_5769(vector: bytes) -> None:
    assert fingerprint(vector[:-8]) == int.from_bytes(vector[-4:], "big")
    decoded = Message.decode(vector)
    assert decoded.has_fingerprint
    assert decoded.transaction_id == bytes.fromhex("b7e7a701bc34d686fa87dfae")


def test_the_request_of_rfc_5769_is_understood() -> None:
    decoded = Message.decode(REQUEST)
    assert (decoded.message_class, decoded.method) == (Class.REQUEST, Method.BINDING)
    assert decoded.attributes == (
        Software("STUN test client"),
        RawAttribute(AttributeType.PRIORITY, bytes.fromhex("6e0001ff")),
        RawAttribute(AttributeType.ICE_CONTROLLED, bytes.fromhex("932ff9b151263b36")),
        RawAttribute(AttributeType.USERNAME, b"evtj:h6vY"),
        RawAttribute(AttributeType.MESSAGE_INTEGRITY, REQUEST[-28:-8]),
        Fingerprint(0xE57A3BCF),
    )


@pytest.mark.parametrize(
    ("vector", "ip"),
    [(RESPONSE_IPV4, "192.0.2.1"), (RESPONSE_IPV6, "2001:db8:1234:5678:11:2233:4455:6677")],
)
def test_the_responses_of_rfc_5769_are_understood(vector: bytes, ip: str) -> None:
    decoded = Message.decode(vector)
    assert decoded.message_class is Class.SUCCESS
    assert decoded.get(Software) == Software("test vector")
    assert decoded.mapped_address == TransportAddress(ip_address(ip), 32853)


@VECTORS
def test_the_messages_of_rfc_5769_cut_short_are_none(vector: bytes) -> None:
    for size in range(len(vector)):
        with pytest.raises(StunError):
            Message.decode(vector[:size])
    for words in range((len(vector) - 20) // 4):
        # With a true length a message ends at any attribute; it is then without FINGERPRINT.
        shorter = with_length(vector[: 20 + 4 * words], 4 * words)
        try:
            assert not Message.decode(shorter).has_fingerprint
        except StunError:
            continue


def crc32(data: bytes) -> int:
    """ITU V.42 section 8.1.1.6.2 as the textbooks have it: bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=64))
@example(b"")
@example(b"123456789")
def test_fingerprint_is_the_textbook_crc(data: bytes) -> None:
    assert crc32(b"123456789") == 0xCBF43926
    assert fingerprint(data) == crc32(data) ^ 0x5354554E
    assert fingerprint(bytearray(data)) == fingerprint(memoryview(data)) == fingerprint(data)


# --- Messages with FINGERPRINT ---


@given(messages())
def test_with_fingerprint_adds_the_right_one_at_the_end(drawn: Message) -> None:
    bare = message_without_fingerprint(drawn)
    protected = bare.with_fingerprint()
    assert protected.encode() == fingerprinted(bare.encode())
    assert protected.attributes[:-1] == bare.attributes
    assert protected.has_fingerprint
    assert not bare.has_fingerprint
    assert Message.decode(protected.encode()) == protected


def message_without_fingerprint(drawn: Message) -> Message:
    attributes = tuple(a for a in drawn.attributes if not isinstance(a, Fingerprint))
    return Message(drawn.message_class, drawn.method, drawn.transaction_id, attributes)


@given(messages())
def test_with_fingerprint_twice_is_once(drawn: Message) -> None:
    once = drawn.with_fingerprint()
    assert once.with_fingerprint() == once
    assert (once == drawn) is drawn.has_fingerprint


def flip(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 0x80 >> bit % 8
    return bytes(flipped)


def assert_no_flip_is_believed(data: bytes, bit: int) -> None:
    try:
        decoded = Message.decode(flip(data, bit))
    except StunError:
        return
    # Two ways to pass: FINGERPRINT has become another type, or part of a longer neighbour.
    # Whoever asks for FINGERPRINT refuses both.
    assert not decoded.has_fingerprint


@VECTORS
def test_no_flipped_bit_of_rfc_5769_is_believed(vector: bytes) -> None:
    for bit in range(8 * len(vector)):
        assert_no_flip_is_believed(vector, bit)


@given(messages(), st.data())
def test_no_flipped_bit_is_believed(drawn: Message, data: st.DataObject) -> None:
    encoded = drawn.with_fingerprint().encode()
    assert_no_flip_is_believed(encoded, data.draw(st.integers(0, 8 * len(encoded) - 1)))


@given(st.integers(1, 0xFFFFFFFF))
@example(0x5354554E)  # a bare CRC-32
def test_any_other_value_is_wrong(difference: int) -> None:
    covered = with_length(message(), 8)
    right = crc32(covered) ^ 0x5354554E
    assert Message.decode(covered + attribute(FINGERPRINT, right.to_bytes(4, "big")))
    wrong = right ^ difference
    with pytest.raises(StunError, match="does not match") as caught:
        Message.decode(covered + attribute(FINGERPRINT, wrong.to_bytes(4, "big")))
    assert caught.value.offset == 24


def test_a_fingerprint_that_is_not_last_is_refused() -> None:
    for behind in (attribute(SOFTWARE, b"abc"), attribute(FINGERPRINT, bytes(4))):
        # Its value is right: its place alone is to blame.
        covered = with_length(message(attribute(SOFTWARE)), 4 + 8 + len(behind))
        data = covered + attribute(FINGERPRINT, fingerprint_of(covered)) + behind
        with pytest.raises(StunError, match="not the last") as caught:
            Message.decode(data)
        assert caught.value.offset == 24


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8])
def test_a_fingerprint_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(StunError, match=f"FINGERPRINT has {size} bytes") as caught:
        Message.decode(with_fingerprint_of_length(message(), size))
    assert caught.value.offset == 24


def test_a_message_with_a_wrong_fingerprint_is_not_made() -> None:
    protected = Message.request(Software("a"), transaction_id=bytes(12)).with_fingerprint()
    *others, right = protected.attributes
    assert isinstance(right, Fingerprint)
    assert Message.request(*others, right, transaction_id=bytes(12)) == protected
    with pytest.raises(StunError, match="does not match"):
        Message.request(*others, Fingerprint(right.value ^ 1), transaction_id=bytes(12))
    with pytest.raises(StunError, match="does not match"):
        Message.request(*others, right, transaction_id=bytes(11) + b"\1")
    with pytest.raises(StunError, match="not the last"):
        Message.request(right, *others, transaction_id=bytes(12))
    with pytest.raises(StunError, match="not the last"):
        Message.request(*others, right, right, transaction_id=bytes(12))


def test_fingerprint_needs_eight_bytes_of_room() -> None:
    # A body has at most 65532 bytes: room for 65520 of value beside both headers.
    fits = Message.request(RawAttribute(AttributeType.PADDING, bytes(65520)))
    assert len(fits.with_fingerprint().encode()) == 20 + 65532
    for size in (65524, 65528):
        full = Message.request(RawAttribute(AttributeType.PADDING, bytes(size)))
        with pytest.raises(StunError, match=f"{size + 12} bytes of attributes"):
            full.with_fingerprint()
