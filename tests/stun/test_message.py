"""Messages as values: encode and decode are inverse, and decode is total."""

from __future__ import annotations

import array
import copy
import pickle
from dataclasses import FrozenInstanceError
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.stun import (
    Attribute,
    AttributeType,
    Class,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    Message,
    Method,
    RawAttribute,
    Software,
    StunError,
    TransportAddress,
    UnknownAttributes,
    XorMappedAddress,
    new_transaction_id,
    split_type,
)
from tests.strategies.datagrams import attribute, datagrams, fingerprinted, message, with_length
from tests.strategies.stun import INTERPRETED, attributes, messages

if TYPE_CHECKING:
    from typing_extensions import Buffer

ID = bytes(range(12))

# Requests, which may be broken; and responses, whose attributes have a meaning.
encodings = datagrams() | messages().map(Message.encode)


def outcome(data: Buffer) -> Message | tuple[str, int]:
    """Return the message, or what the one error that is allowed says about the bytes."""
    try:
        return Message.decode(data)
    except StunError as error:
        problem = error
    assert type(problem) is StunError
    assert problem.offset is not None
    assert 0 <= problem.offset <= memoryview(data).nbytes
    assert str(problem).endswith(f"(at byte {problem.offset})")
    return str(problem), problem.offset


# --- There and back ---


@given(messages())
def test_a_message_is_decoded_as_it_was_encoded(drawn: Message) -> None:
    decoded = Message.decode(drawn.encode())
    assert decoded == drawn
    assert hash(decoded) == hash(drawn)
    assert repr(decoded) == repr(drawn)
    assert decoded.encode() == drawn.encode()


@given(encodings)
def test_canonical_bytes_are_encoded_as_they_were(data: bytes) -> None:
    decoded = outcome(data)
    if isinstance(decoded, Message) and is_canonical(data):
        assert decoded.encode() == data


def is_canonical(data: bytes) -> bool:
    """Whether padding and reserved bits are zero, as senders must make them."""
    offset = 20
    while offset < len(data):
        kind, length = (int.from_bytes(data[offset + at :][:2], "big") for at in (0, 2))
        value, offset = data[offset + 4 :][:length], offset + 4 + length
        padding, offset = data[offset : offset + -length % 4], offset + -length % 4
        if any(padding) or (kind in {0x0001, 0x0020} and value[0]):
            return False
        if kind == 0x0009 and int.from_bytes(value[:4], "big") >> 11:
            return False
    return True


@given(messages())
def test_what_is_encoded_is_canonical(drawn: Message) -> None:
    assert is_canonical(drawn.encode())


@given(messages())
def test_the_shape_of_a_message(drawn: Message) -> None:
    data = drawn.encode()
    assert len(data) % 4 == 0
    assert int.from_bytes(data[2:4], "big") == len(data) - 20
    assert data[0] & 0xC0 == 0
    assert data[4:8] == b"\x21\x12\xa4\x42"
    assert data[8:20] == drawn.transaction_id
    field = int.from_bytes(data[:2], "big")
    assert split_type(field) == (drawn.method, drawn.message_class)


@given(messages())
def test_attributes_are_sent_in_order(drawn: Message) -> None:
    expected = [
        attribute(attr.type, attr.encode(drawn.transaction_id)) for attr in drawn.attributes
    ]
    assert drawn.encode()[20:] == b"".join(expected)


def test_duplicates_are_kept() -> None:
    same = (Software("a"), Software("a"), RawAttribute(AttributeType.NONCE), Software("b"))
    decoded = Message.decode(Message.request(*same).encode())
    assert decoded.attributes == same


@given(st.integers(1, 11).filter(lambda size: size % 4), st.binary(min_size=3, max_size=3))
def test_padding_is_ignored(size: int, padding: bytes) -> None:
    kinds = [AttributeType.USERNAME, AttributeType.NONCE]
    sent = message(*(attribute(kind, bytes(size), padding) for kind in kinds))
    decoded = Message.decode(sent)
    assert decoded.attributes == tuple(RawAttribute(kind, bytes(size)) for kind in kinds)
    # FINGERPRINT covers it as it was sent.
    assert Message.decode(fingerprinted(sent)).has_fingerprint


# --- Any bytes ---


@given(encodings | st.binary(max_size=64))
@example(b"")
@example(bytes(20))
@example(message(attribute(0x8022, b"\xff")))
@example(message(attribute(0x8028)))
def test_any_bytes_are_a_message_or_a_stun_error(data: bytes) -> None:
    expected = outcome(data)
    buffer = bytearray(data)
    assert outcome(buffer) == expected
    assert buffer == data
    assert outcome(memoryview(data)) == expected
    assert outcome(memoryview(b"-" + data + b"-")[1:-1]) == expected
    assert outcome(memoryview(data).cast("c")) == expected
    for code, size in ("H", 2), ("I", 4):
        if len(data) % size == 0:
            assert outcome(array.array(code, data)) == expected
            if data:
                assert outcome(memoryview(data).cast("B", (len(data) // size, size))) == expected


@given(encodings)
@example(message())
def test_a_buffer_with_gaps_is_refused(data: bytes) -> None:
    spread = memoryview(bytes(byte for pair in zip(data, data, strict=True) for byte in pair))
    backwards = memoryview(data[::-1])
    if len(data) > 1:
        for view in (spread[::2], backwards[::-1]):
            assert view.tobytes() == data
            with pytest.raises(StunError, match="contiguous"):
                Message.decode(view)


@given(messages())
def test_a_decoded_message_does_not_change_with_the_buffer(drawn: Message) -> None:
    buffer = bytearray(drawn.encode())
    decoded = Message.decode(buffer)
    # Nor does it hold on to the buffer, which may then be resized.
    buffer.clear()
    assert decoded == drawn


def test_what_is_no_buffer_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        Message.decode("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "blame", "offset"),
    [
        (b"", "less than a header", 0),
        (message()[:-1], "less than a header", 19),
        (message(field=0x4001), "first two bits", 0),
        (with_length(message(), 1), "multiple of 4", 2),
        (with_length(message(), 4), "does not fit", 2),
        (message(cookie=0), "magic cookie", 4),
        (message(attribute(0x8000), b"\x80\x00\x00\x01"), "reaches beyond", 24),
        # Values are blamed by name, where they begin.
        (message(attribute(0x8000), attribute(0x0001, b"abc")), "MAPPED_ADDRESS: .*3 bytes", 28),
        (message(attribute(0x0001, bytes(8))), "MAPPED_ADDRESS: .*family 0x00", 24),
        (message(attribute(0x0020, bytes(24))), "XOR_MAPPED_ADDRESS: .*20 bytes", 24),
        (message(attribute(0x0009)), "ERROR_CODE: .*0 bytes", 24),
        (message(attribute(0x0009, b"\0\0\2\0")), "ERROR_CODE: .*200", 24),
        (message(attribute(0x0009, b"\0\0\4\x64")), "ERROR_CODE: .*100", 24),
        (message(attribute(0x000A, bytes(3))), "UNKNOWN_ATTRIBUTES: .*odd", 24),
        (message(attribute(0x8022, b"\xff")), "SOFTWARE: .*UTF-8", 24),
        (message(attribute(0x8028)), "FINGERPRINT: .*0 bytes", 24),
        (message(attribute(0x8028, bytes(4))), "FINGERPRINT does not match", 24),
        (message(attribute(0x8028, bytes(4)), attribute(0x8000)), "not the last", 20),
        # The first fault of several.
        (message(attribute(0x8022, b"\xff"), b"\x80\x00\x00\x01"), "SOFTWARE", 24),
    ],
)
def test_what_is_wrong_with_bytes_and_where(data: bytes, blame: str, offset: int) -> None:
    with pytest.raises(StunError, match=blame) as caught:
        Message.decode(data)
    assert caught.value.offset == offset


@given(messages())
def test_a_message_is_not_part_of_a_longer_one(drawn: Message) -> None:
    data = drawn.encode()
    for other in (data[:-1], data + b"\0", data + bytes(4)):
        with pytest.raises(StunError):
            Message.decode(other)


@given(st.integers(0, 0xFFFF).filter(lambda kind: kind not in INTERPRETED), st.binary(max_size=8))
def test_unknown_attributes_survive(kind: int, value: bytes) -> None:
    decoded = Message.decode(message(attribute(kind, value), field=0x0101))
    assert decoded.attributes == (RawAttribute(AttributeType(kind), value),)
    assert decoded.encode() == message(attribute(kind, value), field=0x0101)


# --- Making messages ---


def test_a_request_is_a_binding_request() -> None:
    request = Message.request(Software("a"), transaction_id=ID)
    assert request == Message(Class.REQUEST, Method.BINDING, ID, (Software("a"),))
    assert request.encode() == message(attribute(0x8022, b"a"))
    assert Message.request(transaction_id=ID).encode() == message()


def test_a_transaction_id_is_random_unless_given() -> None:
    ids = {Message.request().transaction_id for _ in range(100)}
    ids |= {Message(Class.REQUEST).transaction_id for _ in range(100)}
    ids |= {new_transaction_id() for _ in range(100)}
    assert len(ids) == 300
    assert {len(transaction_id) for transaction_id in ids} == {12}
    # An id that is given is taken, even one that is false in itself.
    with pytest.raises(StunError, match="12 bytes, not 0"):
        Message.request(transaction_id=b"")


def test_plain_numbers_and_lists_are_taken() -> None:
    made = Message(0b10, 0x123, bytearray(ID), [Software("a")])  # type: ignore[arg-type]
    assert made == Message(Class.SUCCESS, Method(0x123), ID, (Software("a"),))
    assert isinstance(made.message_class, Class)
    assert isinstance(made.method, Method)
    assert hash(made)


def test_parts_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(StunError, match="4 is not a valid Class"):
        Message(4)  # type: ignore[arg-type]
    with pytest.raises(StunError, match="4096 is not a valid Method"):
        Message(Class.REQUEST, 0x1000)  # type: ignore[arg-type]
    with pytest.raises(StunError, match="12 bytes, not 16"):
        Message(Class.REQUEST, transaction_id=bytes(16))


def test_attributes_that_do_not_fit_are_refused() -> None:
    # The length is a multiple of 4 and has 16 bits: at most 65532.
    half = RawAttribute(AttributeType.PADDING, bytes(0x7FF8))
    rest = Software("")
    assert len(Message.request(half, half, rest).encode()) == 20 + 65532
    with pytest.raises(StunError, match="65536 bytes of attributes"):
        Message.request(half, half, rest, rest)


def test_a_message_is_a_value() -> None:
    made = Message.request(Software("a"), RawAttribute(AttributeType(0x7777))).with_fingerprint()
    assert copy.deepcopy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(FrozenInstanceError):
        made.attributes = ()  # type: ignore[misc]


# --- Asking messages ---


@given(st.lists(attributes(), max_size=6).map(tuple))
def test_the_first_of_duplicates_counts(drawn: tuple[Attribute, ...]) -> None:
    made = Message.request(*drawn)
    for kind in (MappedAddress, XorMappedAddress, Software, ErrorCode, UnknownAttributes):
        first = [attr for attr in drawn if type(attr) is kind][:1]
        assert made.get(kind) == (first[0] if first else None)
    assert made.get(Fingerprint) is None
    assert made.error == made.get(ErrorCode)


def test_mapped_address_prefers_the_masked_one() -> None:
    masked = XorMappedAddress(TransportAddress(IPv4Address("192.0.2.1"), 1))
    clear = MappedAddress(TransportAddress(IPv4Address("192.0.2.2"), 2))
    assert Message.request(clear, masked).mapped_address == masked.address
    assert Message.request(masked, clear).mapped_address == masked.address
    assert Message.request(clear).mapped_address == clear.address
    assert Message.request(Software("")).mapped_address is None
