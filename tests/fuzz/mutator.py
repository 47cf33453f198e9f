"""Mutations that keep a message a message, so that the fuzzer gets past the header.

Theory of operation: libFuzzer's own mutations change bytes, and nearly every change of a
message's size makes its length field a lie, nearly every other one its FINGERPRINT. `mutate`
does what libFuzzer cannot: it takes a message apart into attributes, changes one part (with
libFuzzer's mutations, which know the dictionary and the comparisons that failed), and puts it
together with lengths and FINGERPRINT that are true.

One in four inputs is left as libFuzzer's mutations make it: lies about lengths have to be
tried as well.

Nothing here needs Atheris: its `Mutate` is an argument.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from pktstun.stun import ATTRIBUTES, HEADER_SIZE, MAGIC_COOKIE

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    MutateBytes = Callable[[bytes, int], bytes]
    # Type, value and padding.
    RawParts = tuple[int, bytes, bytes]

_KINDS = sorted(ATTRIBUTES)
_FINGERPRINT = 0x8028

# Of Binding: request, indication, success and error response.
_FIELDS = (0x0001, 0x0011, 0x0101, 0x0111)


class Parts:
    """A message taken apart: all that is not a length."""

    def __init__(self, data: bytes) -> None:
        """Read as much of the bytes as makes sense, and the rest as if it did."""
        header = data[:HEADER_SIZE].ljust(HEADER_SIZE, b"\0")
        self.field = int.from_bytes(header[:2], "big") & 0x3FFF
        self.transaction_id = header[8:]
        self.attributes: list[RawParts] = []
        offset = HEADER_SIZE
        while offset + 4 <= len(data):
            kind, size = struct.unpack_from("!HH", data, offset)
            value = data[offset + 4 :][:size]
            offset += 4 + len(value)
            padding = data[offset : offset + -len(value) % 4]
            offset += len(padding)
            self.attributes.append((kind, value, padding))
        last = self.attributes[-1] if self.attributes else None
        self.fingerprint = last is not None and last[0] == _FINGERPRINT
        if self.fingerprint:
            self.attributes.pop()

    def encode(self) -> bytes:
        """Put the parts together with true lengths, and a right FINGERPRINT if there was one."""
        body = b"".join(
            struct.pack("!HH", kind, len(value) & 0xFFFF)
            + value
            + padding.ljust(-len(value) % 4, b"\0")
            for kind, value, padding in self.attributes
        )
        size = len(body) + (8 if self.fingerprint else 0)
        header = struct.pack("!HHI", self.field, size & 0xFFFF, MAGIC_COOKIE)
        data = header + self.transaction_id + body
        if self.fingerprint:
            data += struct.pack("!HHI", _FINGERPRINT, 4, zlib.crc32(data) ^ 0x5354554E)
        return data


def mutate(data: bytes, max_size: int, rng: Random, mutate_bytes: MutateBytes) -> bytes:
    """Return another input of at most `max_size` bytes.

    Args:
        data: an input.
        max_size: of the result, as libFuzzer wants it.
        rng: where chance comes from.
        mutate_bytes: libFuzzer's own mutation, of bytes and a greatest size.
    """
    way = rng.randrange(4)
    if way == 0:
        return mutate_bytes(data, max_size)
    if way == 1:
        mutated = Parts(mutate_bytes(data, max_size)).encode()
    else:
        parts = Parts(data)
        _change(parts, max_size, rng, mutate_bytes)
        mutated = parts.encode()
    # Cut to size it would be a lie about its length, of which there are enough.
    return mutated if len(mutated) <= max_size else mutate_bytes(data, max_size)


def _change(parts: Parts, max_size: int, rng: Random, mutate_bytes: MutateBytes) -> None:
    """Change one thing: two times in three an attribute."""
    what = rng.randrange(12)
    if what == 0:
        parts.field = rng.choice(_FIELDS)
    elif what == 1:
        field = mutate_bytes(parts.field.to_bytes(2, "big"), 2)
        parts.field = int.from_bytes(field.rjust(2, b"\0"), "big") & 0x3FFF
    elif what == 2:
        parts.transaction_id = mutate_bytes(parts.transaction_id, 12).ljust(12, b"\0")
    elif what == 3:
        parts.fingerprint = not parts.fingerprint
    elif what == 4 or not parts.attributes:
        _insert(parts.attributes, _new(max_size, rng, mutate_bytes), rng)
    else:
        _change_attribute(parts.attributes, max_size, rng, mutate_bytes)


def _change_attribute(
    attributes: list[RawParts], max_size: int, rng: Random, mutate_bytes: MutateBytes
) -> None:
    at = rng.randrange(len(attributes))
    kind, value, padding = attributes[at]
    match rng.randrange(8):
        case 0:
            del attributes[at]
        case 1:
            _insert(attributes, attributes[at], rng)
        case 2:
            rng.shuffle(attributes)
        case 3:
            attributes[at] = rng.choice(_KINDS), value, padding
        case 4:
            attributes[at] = kind, value, mutate_bytes(padding or b"\0", 3)[: -len(value) % 4]
        case 5:
            # Some values are lists.
            attributes[at] = kind, value + value, b""
        case _:
            # Most sizes are fixed, so that the size is mostly kept.
            size = len(value) if rng.randrange(4) else max_size
            attributes[at] = kind, mutate_bytes(value or b"\0", size or 8), b""


def _new(max_size: int, rng: Random, mutate_bytes: MutateBytes) -> RawParts:
    """Return an attribute of the table, whose size is one that it may have."""
    kind = rng.choice(_KINDS)
    sizes = [size for size in ATTRIBUTES[kind].SIZES if size <= min(max_size, 40)]
    size = rng.choice(sizes or [0])
    if not size:
        return kind, b"", b""
    return kind, mutate_bytes(bytes(size), size).ljust(size, b"\0"), b""


def _insert(attributes: list[RawParts], new: RawParts, rng: Random) -> None:
    attributes.insert(rng.randint(0, len(attributes)), new)
