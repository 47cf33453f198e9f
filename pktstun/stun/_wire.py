"""The layout of a STUN message: header and attributes as offsets, values untouched.

Theory of operation: `read_header` checks the 20 bytes that every message begins with, and
`walk_attributes` yields where each attribute lies. Both read any bytes-like object, check
before they read, and fail with `StunError` at the offset to blame. `Message.decode` puts
values on top; `respond()` uses the walk alone, since what a request's attributes contain
does not matter to a server that knows no credentials.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pktstun.errors import StunError

from ._types import HEADER_SIZE, MAGIC_COOKIE, TRANSACTION_ID_SIZE, split_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

HEADER = struct.Struct("!HHI12s")
ATTRIBUTE_HEADER = struct.Struct("!HH")
ATTRIBUTE_HEADER_SIZE = ATTRIBUTE_HEADER.size


class Header(NamedTuple):
    """A message header (RFC 8489 section 5), with the type field split."""

    method: int
    message_class: int
    transaction_id: bytes


class AttributeSpan(NamedTuple):
    """Where an attribute lies: the value is `message[start : start + length]`."""

    type: int
    start: int
    length: int
    end: int
    """Offset behind the padding, where the next attribute begins."""


def as_bytes(data: Buffer) -> memoryview:
    """Return a flat view of bytes on any bytes-like object.

    Raises:
        StunError: the object's memory is not contiguous.
    """
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    try:
        return view.cast("B")
    except TypeError as error:
        raise StunError("the buffer is not contiguous") from error


def padded(length: int) -> int:
    """Return the length rounded up to a multiple of 4 (RFC 8489 section 14)."""
    return (length + 3) & ~3


def read_header(message: memoryview) -> Header:
    """Check and split the header of a message that fills the buffer exactly.

    Raises:
        StunError: too short, wrong first bits, wrong length, or no magic cookie.
    """
    if len(message) < HEADER_SIZE:
        raise StunError(f"{len(message)} bytes are less than a header", len(message))
    field, length, cookie, transaction_id = HEADER.unpack_from(message)
    if field & 0xC000:
        raise StunError("the first two bits are not zero", 0)
    if length % 4:
        raise StunError(f"the length {length} is not a multiple of 4", 2)
    if HEADER_SIZE + length != len(message):
        raise StunError(f"the length {length} does not fit {len(message)} bytes", 2)
    if cookie != MAGIC_COOKIE:
        raise StunError(f"{cookie:#010x} is not the magic cookie", 4)
    return Header(*split_type(field), transaction_id)


def walk_attributes(message: memoryview) -> Iterator[AttributeSpan]:
    """Yield where the attributes of a message lie, in order; their padding is not looked at.

    Raises:
        StunError: an attribute reaches beyond the message.
    """
    offset = HEADER_SIZE
    while offset < len(message):
        start = offset + ATTRIBUTE_HEADER_SIZE
        if start > len(message):
            raise StunError("an attribute header reaches beyond the message", offset)
        attribute_type, length = ATTRIBUTE_HEADER.unpack_from(message, offset)
        end = start + padded(length)
        if end > len(message):
            raise StunError(f"an attribute of {length} bytes reaches beyond the message", offset)
        yield AttributeSpan(attribute_type, start, length, end)
        offset = end


def write_message(field: int, transaction_id: bytes, attributes: bytes) -> bytes:
    """Return a whole message; `attributes` are encoded and padded.

    Raises:
        StunError: the attributes do not fit the 16-bit length, or a part has a wrong size.
    """
    if len(attributes) > 0xFFFF - 3 or len(attributes) % 4:
        raise StunError(f"{len(attributes)} bytes of attributes do not fit a message")
    if len(transaction_id) != TRANSACTION_ID_SIZE:
        raise StunError(f"a transaction id has 12 bytes, not {len(transaction_id)}")
    return HEADER.pack(field, len(attributes), MAGIC_COOKIE, transaction_id) + attributes


def write_attribute(attribute_type: int, value: bytes) -> bytes:
    """Return an encoded attribute, padded with zeros (RFC 8489 section 14).

    Raises:
        StunError: the value does not fit the 16-bit length.
    """
    if len(value) > 0xFFFF:
        raise StunError(f"{len(value)} bytes do not fit an attribute")
    return ATTRIBUTE_HEADER.pack(attribute_type, len(value)) + value + bytes(-len(value) % 4)
