"""The layout of a STUN message: header and attributes as offsets, values untouched.

Theory of operation: `read_header` checks the 20 bytes that every message begins with, and
`walk_attributes` says where each attribute lies. Both check before they read, and fail with
`StunError` at the offset to blame. `Message.decode` has the values checked on the way;
`respond()` does not, since what a request's attributes contain does not matter to a server that
asks for no credentials.

Everything here works on `bytes`: `as_bytes` makes them of whatever the caller has, so that a
buffer which changes meanwhile cannot be one thing when it is checked and another when it is
read.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pktstun.errors import StunError

from ._types import HEADER_SIZE, MAGIC_COOKIE, AttributeType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Buffer

    from ._forms import Attribute

HEADER = struct.Struct("!HHI12s")
ATTRIBUTE_HEADER = struct.Struct("!HH")
ATTRIBUTE_HEADER_SIZE = ATTRIBUTE_HEADER.size

# The length field has 16 bits, of which the last two are zero.
MAX_BODY = 0xFFFC

write_header = HEADER.pack
_unpack_header = HEADER.unpack_from
write_attribute_header = ATTRIBUTE_HEADER.pack
_unpack_attribute_header = ATTRIBUTE_HEADER.unpack_from

Span = tuple[int, int, int]
"""Type of an attribute, offset and length of its value."""

Sizes = range | tuple[int, ...]
"""How many bytes a value may have."""


# A plain tuple, since those are unpacked fastest.
Rule = tuple[Sizes, "Callable[[bytes], object] | None", "Mapping[int, Rule] | None"]
"""What a value of some type has to be, and what is looked at behind it.

The sizes that it may have; what raises StunError where the sizes do not say it all; and the
rules that hold from there on, where they become fewer.
"""

NO_RULES: dict[int, Rule] = {}

# RFC 8489 section 9: what a receiver still looks at behind the integrity attributes. Of
# MESSAGE-INTEGRITY behind MESSAGE-INTEGRITY-SHA256 it does not speak: it is ignored too, since
# it would be the weaker one, and section 14.7 has it in front.
_INTEGRITY = int(AttributeType.MESSAGE_INTEGRITY)
_INTEGRITY_SHA256 = int(AttributeType.MESSAGE_INTEGRITY_SHA256)
BEHIND = {
    _INTEGRITY: frozenset({_INTEGRITY_SHA256, int(AttributeType.FINGERPRINT)}),
    _INTEGRITY_SHA256: frozenset({int(AttributeType.FINGERPRINT)}),
}

# Of a value whose length is n modulo 4 (RFC 8489 section 14).
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def as_bytes(data: Buffer) -> bytes:
    """Return the bytes of any bytes-like object, copied unless they cannot change."""
    return data if type(data) is bytes else bytes(memoryview(data))


def read_header(message: bytes) -> tuple[int, bytes]:
    """Check the header of a message that fills the buffer exactly (RFC 8489 section 5).

    Returns:
        The 14-bit type field and the transaction id.

    Raises:
        StunError: too short, wrong first bits, wrong length, or no magic cookie.
    """
    if len(message) < HEADER_SIZE:
        raise StunError(f"a header has 20 bytes, not {len(message)}", len(message))
    field, length, cookie, transaction_id = _unpack_header(message)
    if field & 0xC000:
        raise StunError("the first two bits are not zero", 0)
    if length & 0b11:
        raise StunError(f"the length {length} is not a multiple of 4", 2)
    if HEADER_SIZE + length != len(message):
        raise StunError(f"the length {length} does not fit {len(message)} bytes", 2)
    if cookie != MAGIC_COOKIE:
        raise StunError(f"{cookie:#010x} is not the magic cookie", 4)
    return field, transaction_id


def walk_attributes(message: bytes, rules: Mapping[int, Rule] = NO_RULES) -> list[Span]:
    """Return where the attributes of a message lie, in order, once they have been checked.

    Their padding is not looked at. The message's length is a multiple of 4, as
    `read_header` checks, so that a header of an attribute is there or is not.

    Args:
        message: with its header.
        rules: type to what a value has to be; other types may be anything.

    Returns:
        For each attribute its type, the offset of its value, and the length of its value.

    Raises:
        StunError: an attribute reaches beyond the message, or its value is none.
    """
    spans = []
    end = len(message)
    start = HEADER_SIZE + 4  # behind the attribute's header, whose size is a literal for speed
    while start <= end:
        kind, length = _unpack_attribute_header(message, start - 4)
        stop = start + length
        # Since the message's length is a multiple of 4, padding fits where the value does.
        if stop > end:
            raise StunError(f"an attribute of {length} bytes reaches beyond the message", start - 4)
        rule = rules.get(kind)
        if rule is not None:
            sizes, check, behind = rule
            if length not in sizes:
                raise StunError(wrong_size(kind, length, sizes), start)
            if check is not None:
                try:
                    check(message[start:stop])
                except StunError as error:
                    # The check knows where in the value it is.
                    raise StunError(error.problem, start + (error.offset or 0)) from error
            if behind is not None:
                rules = behind
        spans.append((kind, start, length))
        start = (stop + 3 & ~3) + 4
    return spans


def processed_indices(kinds: Sequence[int]) -> Sequence[int]:
    """Return which of a message's attributes, given by their types, a receiver looks at."""
    if _INTEGRITY not in kinds and _INTEGRITY_SHA256 not in kinds:
        return range(len(kinds))
    counted = []
    allowed: frozenset[int] | None = None
    for i, kind in enumerate(kinds):
        if allowed is None or kind in allowed:
            counted.append(i)
            allowed = BEHIND.get(kind, allowed)
    return counted


def wrong_size(kind: int, size: int, sizes: Sizes) -> str:
    """Return what is wrong with a value of so many bytes, and what would be right."""
    if isinstance(sizes, range):
        allowed = f"{sizes[0]} to {sizes[-1]}"
        if sizes.step != 1:
            allowed += f", a multiple of {sizes.step}"
    else:
        allowed = " or ".join(map(str, sizes))
    return f"{AttributeType(kind).label} has {size} bytes instead of {allowed}"


def write_attributes(attributes: Iterable[Attribute], transaction_id: bytes) -> bytes:
    """Return the attributes as they follow the header, padded with zeros (section 14).

    Raises:
        StunError: a type or a value does not fit its 16 bits, or all of them do not.
    """
    parts = []
    for attribute in attributes:
        value = attribute.encode(transaction_id)
        length = len(value)
        try:
            header = write_attribute_header(attribute.type, length)
        except struct.error as error:
            raise StunError(
                f"type {attribute.type:#x} and {length} bytes do not fit an attribute"
            ) from error
        parts.append(header + value + _PADDING[length & 0b11])
    body = b"".join(parts)
    if len(body) > MAX_BODY:
        raise StunError(f"{len(body)} bytes of attributes do not fit a message")
    return body


def with_room(message: bytes, size: int) -> bytes:
    """Return the message with a length field that counts `size` more bytes behind it.

    FINGERPRINT and the integrity attributes are computed over such a header.

    Raises:
        StunError: they do not fit the 16-bit length.
    """
    length = len(message) - HEADER_SIZE + size
    if length > MAX_BODY:
        raise StunError(f"{length} bytes of attributes do not fit a message")
    return message[:2] + length.to_bytes(2) + message[4:]
