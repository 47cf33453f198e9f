"""The layout of messages: what is read is checked first, and blamed on the right byte."""

from __future__ import annotations

import array
import ctypes
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.stun import MAGIC_COOKIE, StunError, join_type
from pktstun.stun._wire import (
    AttributeSpan,
    Header,
    as_bytes,
    padded,
    read_header,
    walk_attributes,
    write_attribute,
    write_message,
)
from tests.strategies.datagrams import attribute, datagrams, message
from tests.strategies.stun import transaction_ids

if TYPE_CHECKING:
    from typing_extensions import Buffer

words = st.integers(0, 0xFFFF)


# --- Buffers ---


@pytest.mark.parametrize(
    "buffer",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(b"--12345678--")[2:10],
        memoryview(b"12345678").cast("c"),
        memoryview(b"12345678").cast("B", (2, 4)),
        memoryview(b"12345678").cast("I").toreadonly(),
        array.array("H", b"12345678"),
        array.array("d", b"12345678"),
        (ctypes.c_char * 8).from_buffer_copy(b"12345678"),
        (ctypes.c_uint64 * 1).from_buffer_copy(b"12345678"),
    ],
    ids=repr,
)
def test_every_contiguous_buffer_is_a_flat_view_of_bytes(buffer: Buffer) -> None:
    view = as_bytes(buffer)
    assert (view.format, view.ndim, len(view)) == ("B", 1, 8)
    assert bytes(view) == b"12345678"


def test_the_view_is_on_the_buffer_itself() -> None:
    buffer = bytearray(b"1234")
    view = as_bytes(buffer)
    buffer[0] = 0
    assert view[0] == 0


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"12345678")[::2],
        memoryview(b"12345678")[::-1],
        memoryview(array.array("I", bytes(32)))[::2],
        memoryview(b"12345678").cast("B", (4, 2))[::2],
    ],
)
def test_a_buffer_with_gaps_is_refused(view: memoryview) -> None:
    with pytest.raises(StunError, match="contiguous") as caught:
        as_bytes(view)
    assert caught.value.offset is None


# --- Lengths ---


def test_padding_is_up_to_the_next_multiple_of_four() -> None:
    for length in range(0x10000):
        assert padded(length) == -(-length // 4) * 4


# --- Headers ---


@given(st.integers(0, 0xFFF), st.integers(0, 3), transaction_ids, st.integers(0, 20).map(bytes))
def test_a_header_is_read_as_it_is_written(
    method: int, message_class: int, transaction_id: bytes, words: bytes
) -> None:
    attributes = 4 * words
    whole = write_message(join_type(method, message_class), transaction_id, attributes)
    assert read_header(memoryview(whole)) == Header(method, message_class, transaction_id)
    assert whole == (
        struct.pack("!HHI", join_type(method, message_class), len(attributes), 0x2112A442)
        + transaction_id
        + attributes
    )


GOOD = bytes.fromhex("0001 0004 2112a442 000102030405060708090a0b 80000000")


@pytest.mark.parametrize(
    ("data", "blame", "offset"),
    [
        (b"", "less than a header", 0),
        (GOOD[:19], "less than a header", 19),
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
        (b"\0" * 19, "less than a header", 19),
        (b"\0\0\0\x04" + b"\0" * 16, "does not fit", 2),
    ],
)
def test_a_header_that_is_none_is_blamed_on_its_byte(data: bytes, blame: str, offset: int) -> None:
    with pytest.raises(StunError, match=blame) as caught:
        read_header(memoryview(data))
    assert caught.value.offset == offset


def test_the_good_header_of_the_table_is_good() -> None:
    assert read_header(memoryview(GOOD)) == Header(1, 0, bytes(range(12)))


# --- Attributes ---


@given(st.lists(st.tuples(words, st.binary(max_size=40))))
@example([(0, b""), (0xFFFF, b"\xff"), (0x8028, bytes(0xFF00))])
def test_the_walk_finds_every_attribute_in_order(drawn: list[tuple[int, bytes]]) -> None:
    data = message(*(attribute(kind, value, b"\xff\xff\xff") for kind, value in drawn))
    spans = list(walk_attributes(memoryview(data)))
    found = [(span.type, data[span.start : span.start + span.length]) for span in spans]
    assert found == drawn
    # Without gaps: headers and padding are all that lies between.
    assert [20, *(span.end for span in spans)] == [
        *(span.start - 4 for span in spans),
        len(data),
    ]


@given(datagrams())
@example(bytes(21))
@example(bytes(23))
@example(bytes(24))
def test_the_walk_stays_inside_the_message(data: bytes) -> None:
    spans, problem = [], None
    try:
        for span in walk_attributes(memoryview(data)):
            spans.append(span)  # noqa: PERF402 - those before the error are wanted too
    except StunError as error:
        problem = error
    end = 20
    for span in spans:
        assert (span.start, span.end) == (end + 4, end + 4 + padded(span.length))
        end = span.end
    if problem is None:
        assert end == max(20, len(data))
    else:
        # Blamed on the first attribute that does not fit, once those before it are found.
        assert problem.offset == end < len(data)


@pytest.mark.parametrize(
    ("attributes", "offset"),
    [
        ("80", 20),
        ("800000", 20),
        ("80000001", 20),
        ("80000001ff", 20),
        ("80000001ffffff", 20),  # the value is there and its padding is not
        ("8000ffff00000000", 20),
        ("80000000 80000004 0000", 24),
        ("80000000 8000", 24),
        ("80000000 80000004 00000000 80000001", 32),
    ],
)
def test_an_attribute_beyond_the_message_is_blamed_on_its_header(
    attributes: str, offset: int
) -> None:
    data = bytes(20) + bytes.fromhex(attributes)
    with pytest.raises(StunError, match="reaches beyond") as caught:
        list(walk_attributes(memoryview(data)))
    assert caught.value.offset == offset


@given(words, st.binary(max_size=40))
def test_an_attribute_is_padded_with_zeros(kind: int, value: bytes) -> None:
    written = write_attribute(kind, value)
    assert written == attribute(kind, value, bytes(3))
    assert len(written) == 4 + padded(len(value))
    assert list(walk_attributes(memoryview(bytes(20) + written))) == [
        AttributeSpan(kind, 24, len(value), 20 + len(written))
    ]


# --- What cannot be written ---


def test_the_longest_attribute_and_the_longest_message() -> None:
    assert write_attribute(1, bytes(0xFFFF)) == attribute(1, bytes(0xFFFF))
    with pytest.raises(StunError, match="65536 bytes do not fit an attribute"):
        write_attribute(1, bytes(0x10000))
    # The length field is a multiple of 4: the largest is 65532.
    longest = write_message(1, bytes(12), bytes(0xFFFC))
    assert len(longest) == 20 + 0xFFFC
    assert read_header(memoryview(longest)).transaction_id == bytes(12)
    with pytest.raises(StunError, match="65536 bytes of attributes"):
        write_message(1, bytes(12), bytes(0x10000))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 0xFFFD, 0xFFFF])
def test_attributes_without_padding_are_no_message(size: int) -> None:
    with pytest.raises(StunError, match="bytes of attributes do not fit"):
        write_message(1, bytes(12), bytes(size))


@pytest.mark.parametrize("size", [0, 11, 13, 16])
def test_a_transaction_id_has_twelve_bytes(size: int) -> None:
    with pytest.raises(StunError, match=f"12 bytes, not {size}"):
        write_message(1, bytes(size), b"")


def test_the_cookie_is_the_one_of_the_codec() -> None:
    assert write_message(0, bytes(12), b"")[4:8] == MAGIC_COOKIE.to_bytes(4, "big")
