"""The layout of messages: what is read is checked first, and blamed on the right byte."""

from __future__ import annotations

import array
import ctypes
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.stun import (
    MAGIC_COOKIE,
    AttributeType,
    Message,
    RawAttribute,
    StunError,
    join_type,
)
from pktstun.stun._wire import (
    as_bytes,
    read_header,
    walk_attributes,
    with_room,
    write_attributes,
    write_header,
    wrong_size,
)
from tests.strategies.datagrams import attribute, datagrams, message, with_length
from tests.strategies.stun import raw_attributes, transaction_ids, unprotected_messages

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pktstun.stun._wire import Sizes

words = st.integers(0, 0xFFFF)


# --- Buffers ---


@pytest.mark.parametrize(
    "buffer",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(b"--12345678--")[2:10],
        memoryview(b"1-2-3-4-5-6-7-8-")[::2],
        memoryview(b"87654321")[::-1],
        memoryview(b"12345678").cast("c"),
        memoryview(b"12345678").cast("B", (2, 4)),
        memoryview(b"12345678").cast("I").toreadonly(),
        array.array("H", b"12345678"),
        array.array("d", b"12345678"),
        (ctypes.c_char * 8).from_buffer_copy(b"12345678"),
        (ctypes.c_uint64 * 1).from_buffer_copy(b"12345678"),
    ],
    ids=lambda value: type(value).__name__,  # the same in every process
)
def test_every_buffer_is_bytes(buffer: Buffer) -> None:
    data = as_bytes(buffer)
    assert type(data) is bytes
    assert data == b"12345678"


def test_bytes_that_cannot_change_are_not_copied() -> None:
    data = b"1234"
    assert as_bytes(data) is data
    buffer = bytearray(data)
    copied = as_bytes(buffer)
    buffer[0] = 0
    assert copied == data


@pytest.mark.parametrize("thing", ["text", 12, None, [1, 2]])
def test_what_is_no_buffer_is_a_type_error(thing: Buffer) -> None:
    with pytest.raises(TypeError):
        as_bytes(thing)


# --- Headers ---


@given(
    st.integers(0, 0xFFF),
    st.integers(0, 3),
    transaction_ids,
    st.lists(raw_attributes, max_size=4),
)
def test_a_header_is_read_as_it_is_written(
    method: int, message_class: int, transaction_id: bytes, drawn: list[RawAttribute]
) -> None:
    field = join_type(method, message_class)
    body = write_attributes(drawn, transaction_id)
    assert body == b"".join(attribute(raw.type, raw.value) for raw in drawn)
    whole = write_header(field, len(body), MAGIC_COOKIE, transaction_id) + body
    assert read_header(whole) == (field, transaction_id)
    assert whole == struct.pack("!HHI", field, len(body), 0x2112A442) + transaction_id + body


GOOD = bytes.fromhex("0001 0004 2112a442 000102030405060708090a0b 80000000")


@pytest.mark.parametrize(
    ("data", "blame", "offset"),
    [
        (b"", "a header has 20 bytes", 0),
        (GOOD[:19], "a header has 20 bytes", 19),
        (b"\x40" + GOOD[1:], "first two bits", 0),
        (b"\x80" + GOOD[1:], "first two bits", 0),
        (GOOD[:3] + b"\x01" + GOOD[4:], "multiple of 4", 2),
        (GOOD[:3] + b"\x02" + GOOD[4:], "multiple of 4", 2),
        (GOOD[:3] + b"\x03" + GOOD[4:] + b"\0", "multiple of 4", 2),
        (GOOD[:3] + b"\x00" + GOOD[4:], "does not fit", 2),
        (GOOD[:3] + b"\x08" + GOOD[4:], "does not fit", 2),
        (GOOD + b"\0", "does not fit", 2),
        (GOOD[:4] + b"\x42\xa4\x12\x21" + GOOD[8:], "magic cookie", 4),
        # Of several faults the first one in the message is named.
        (b"\xff" * 20, "first two bits", 0),
        (b"\0" * 19, "a header has 20 bytes", 19),
        (b"\0\0\0\x04" + b"\0" * 16, "does not fit", 2),
    ],
)
def test_a_header_that_is_none_is_blamed_on_its_byte(data: bytes, blame: str, offset: int) -> None:
    with pytest.raises(StunError, match=blame) as caught:
        read_header(data)
    assert caught.value.offset == offset


def test_the_good_header_of_the_table_is_good() -> None:
    assert read_header(GOOD) == (1, bytes(range(12)))


# --- Attributes ---


@given(st.lists(st.tuples(words, st.binary(max_size=40))))
@example([(0, b""), (0xFFFF, b"\xff"), (0x8028, bytes(0xFF00))])
def test_the_walk_finds_every_attribute_in_order(drawn: list[tuple[int, bytes]]) -> None:
    data = message(*(attribute(kind, value, b"\xff\xff\xff") for kind, value in drawn))
    spans = walk_attributes(data)
    assert [(kind, data[start : start + length]) for kind, start, length in spans] == drawn
    # Without gaps: headers and padding are all that lies between.
    ends = [start + -(-length // 4) * 4 for _, start, length in spans]
    assert [20, *ends] == [*(start - 4 for _, start, _ in spans), len(data)]


@given(datagrams().filter(lambda data: len(data) % 4 == 0))
@example(bytes(24))
def test_the_walk_stays_inside_the_message(data: bytes) -> None:
    end = 20
    try:
        spans = walk_attributes(data)
    except StunError as error:
        problem = error.offset
    else:
        problem = None
    if problem is not None:
        # Blamed on the first attribute that does not fit.
        assert 20 <= problem < len(data)
        spans = walk_attributes(data[:problem])
    for _, start, length in spans:
        assert start == end + 4
        end = start + -(-length // 4) * 4
    assert end == (max(20, len(data)) if problem is None else problem)


@pytest.mark.parametrize(
    ("attributes", "offset"),
    [
        ("80000001", 20),
        ("80000005 00000000", 20),
        ("8000ffff 00000000", 20),
        ("80000000 80000004", 24),
        ("80000000 80000004 00000000 80000001", 32),
    ],
)
def test_an_attribute_beyond_the_message_is_blamed_on_its_header(
    attributes: str, offset: int
) -> None:
    data = bytes(20) + bytes.fromhex(attributes)
    with pytest.raises(StunError, match="reaches beyond") as caught:
        walk_attributes(data)
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("sizes", "allowed"),
    [
        ((4,), "4"),
        ((8, 20), "8 or 20"),
        (range(16, 33, 4), "16 to 32, a multiple of 4"),
        (range(0, 9, 2), "0 to 8, a multiple of 2"),
        (range(4, 768), "4 to 767"),
    ],
)
def test_a_wrong_size_is_told_with_the_right_ones(sizes: Sizes, allowed: str) -> None:
    assert wrong_size(0x8022, 3, sizes) == f"SOFTWARE has 3 bytes instead of {allowed}"
    data = message(attribute(0x8777), attribute(0x8022, b"abc"))
    with pytest.raises(StunError, match=f"SOFTWARE has 3 bytes instead of {allowed}") as caught:
        walk_attributes(data, {0x8022: (sizes, None, None)})
    assert caught.value.offset == 28


# --- What cannot be written ---


def test_the_longest_attribute_and_the_longest_message() -> None:
    kind = AttributeType(0x7777)
    # The length field is a multiple of 4: the largest is 65532.
    longest = write_attributes([RawAttribute(kind, bytes(0xFFF8))], bytes(12))
    assert longest == attribute(0x7777, bytes(0xFFF8))
    assert len(longest) == 0xFFFC
    with pytest.raises(StunError, match="65536 bytes of attributes"):
        write_attributes([RawAttribute(kind, bytes(0xFFF9))], bytes(12))
    with pytest.raises(StunError, match="65536 bytes of attributes"):
        write_attributes([RawAttribute(kind, bytes(0xFFF4)), RawAttribute(kind, b"a")], bytes(12))


class Foreign:
    """An attribute of somebody else's, who does not check anything."""

    def __init__(self, kind: int, size: int) -> None:
        self.type = kind
        self.size = size

    def encode(self, transaction_id: bytes) -> bytes:
        return bytes(self.size - len(transaction_id)) + transaction_id


@pytest.mark.parametrize(
    ("kind", "size", "blame"),
    [
        (0x0013, 0x10000, "type 0x13 and 65536 bytes do not fit an attribute"),
        (0x0013, 0xFFFF, "65540 bytes of attributes do not fit a message"),
        (0x10000, 12, "type 0x10000 and 12 bytes do not fit an attribute"),
        (-1, 12, "do not fit an attribute"),
    ],
)
def test_a_type_and_a_length_have_16_bits(kind: int, size: int, blame: str) -> None:
    with pytest.raises(StunError, match=blame):
        write_attributes([Foreign(kind, size)], bytes(12))  # type: ignore[list-item]


# --- Room for what is computed over the message ---


@given(unprotected_messages(), st.integers(0, 10).map(lambda words: 4 * words))
def test_room_changes_the_length_and_nothing_else(drawn: Message, size: int) -> None:
    data = drawn.encode()
    assert with_room(data, size) == with_length(data, len(data) - 20 + size)


def test_room_ends_where_the_length_field_does() -> None:
    assert with_room(bytes(20), 0xFFFC) == b"\0\0\xff\xfc" + bytes(16)
    for size in (20, 24, 20 + 0xFFFC):
        with pytest.raises(StunError, match=f"{size - 20 + 0x10000} bytes of attributes"):
            with_room(bytes(size), 0x10000)
