"""The messages in a stream of bytes.

Theory of operation: STUN over a stream has no framing of its own; the length in a message's
header says where the next one begins (RFC 8489 section 6.2.2). So the header must be believed,
and it is checked as soon as there is enough of it. Where it cannot be that of a STUN message,
nothing behind it can be found, and the stream is of no use any more. What is wrong within a
message does not harm the stream.

The checks are the first ones of `respond()`, in its order and under its names.
"""

from __future__ import annotations

from pktstun.packet import MAX_DATAGRAM
from pktstun.stun import HEADER_SIZE, MAGIC_COOKIE

__all__ = ["BrokenStreamError", "Framer"]

_COOKIE = MAGIC_COOKIE.to_bytes(4)
_LENGTH_END = 4
_COOKIE_END = 8


class BrokenStreamError(Exception):
    """The stream holds no STUN message where one must begin; `reason` is a verdict's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Framer:
    """Takes bytes as they come, gives messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def has_begun(self) -> bool:
        """Whether there are bytes that no message was made of yet."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream in."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next message, or None as long as it is not complete.

        Raises:
            BrokenStreamError: what is there is no STUN message, or one of more than 2048 bytes,
                as long as a datagram may be. Every further call raises it again.
        """
        buffer = self._buffer
        if not buffer:
            return None
        if buffer[0] & 0xC0:
            raise BrokenStreamError("not_stun")
        if len(buffer) < _LENGTH_END:
            return None
        length = int.from_bytes(buffer[2:_LENGTH_END])
        if length % 4:
            raise BrokenStreamError("bad_length")
        end = HEADER_SIZE + length
        if end > MAX_DATAGRAM:
            raise BrokenStreamError("too_long")
        if not _COOKIE.startswith(buffer[_LENGTH_END:_COOKIE_END]):
            raise BrokenStreamError("no_cookie")
        if len(buffer) < end:
            return None
        message = bytes(buffer[:end])
        del buffer[:end]
        return message
