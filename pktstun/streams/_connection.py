"""One client's connection: what it may do, and for how long.

Theory of operation: bytes come in, messages are answered one by one in their order, and replies
leave; a client may send the next request before it has the last reply. The server leaves it to
the client to close (RFC 8489 section 6.2.2), unless that holds it up. Every connection has a
deadline, and which one it is depends on what is awaited: the end of the TLS handshake, the rest
of a message, a reader for the replies, or, for longest, the next request. The handshake has one
time for all, and a message that has begun is not put off by single bytes. A client that asks too
fast is not read for a while, and so is one that does not read: both are left to what TCP does
then.

What ends a connection: the client's end, a deadline, bytes that are no STUN message, and a client
whom `respond()` never answers. What `respond()` drops for any other reason is discarded, and the
connection goes on (RFC 8489 section 6.3).
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pktstun.errors import ConfigError

from ._framing import BrokenStreamError, Framer

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from pktstun.stun import ResponderOptions, TransportAddress

    from ._tls import TlsSession

__all__ = ["Answer", "Connection", "Server", "StreamLimits"]

_READ_SIZE = 4096
WRITE_LIMIT = 8192
"""Bytes of replies that wait for a client; with more it is not read."""

_MOST_CONNECTIONS = 1_000_000
_LONGEST = 86400.0
_MOST_REQUESTS = 1_000_000


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What clients of the stream server may take; times in seconds.

    Args:
        connections: open at once.
        per_source: of an IPv4 address or an IPv6 /64; one that is closed counts for another second.
        handshake: that TLS may take to come about.
        message: that a message may take from its first byte to its last, the first message from
            when the connection is there, and that replies may wait for the client to read.
        idle: without a message.
        requests: messages per second on one connection; the client is read no faster.

    Raises:
        ConfigError: a number is out of its range.
    """

    connections: int = 10_000
    per_source: int = 100
    handshake: float = 10.0
    message: float = 10.0
    idle: float = 300.0
    requests: int = 100

    def __post_init__(self) -> None:
        for option, value, most in (
            ("--stream-connections", self.connections, _MOST_CONNECTIONS),
            ("--stream-connections-per-source", self.per_source, _MOST_CONNECTIONS),
            ("--stream-requests", self.requests, _MOST_REQUESTS),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"{option} {value} is not in 1..{most}")
        for option, seconds in (
            ("--tls-handshake-timeout", self.handshake),
            ("--stream-message-timeout", self.message),
            ("--stream-idle-timeout", self.idle),
        ):
            if not 0 < seconds <= _LONGEST:
                raise ConfigError(f"{option} {seconds:g} is not in 0..{_LONGEST:g} seconds")

    @property
    def shortest(self) -> float:
        """The shortest of the times."""
        return min(self.handshake, self.message, self.idle)


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a message."""

    reply: bytes = b""
    """Empty for none."""
    is_last: bool = False
    """Whether this client is never answered."""


class Server(Protocol):
    """What a connection needs of the server that it is one of."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the connection is read and written."""

    @property
    def limits(self) -> StreamLimits:
        """What the client may take."""

    def turn(self) -> None:
        """Learn that the loop turns."""

    def answer(
        self,
        message: bytes,
        client: TransportAddress,
        server: TransportAddress,
        options: ResponderOptions,
    ) -> Answer:
        """Say what becomes of a message, and count it."""

    def refuse(self, reason: str, client: TransportAddress) -> None:
        """Count bytes that are no message."""

    def count(self, counter: str) -> None:
        """Count something that is no message."""

    def report(self, error: Exception) -> None:
        """Log a bug."""

    def established(self, connection: Connection) -> None:
        """Learn that TLS has come about on a connection."""

    def forget(self, connection: Connection) -> None:
        """Learn that a connection is closed."""


class Connection:
    """A connection that was taken in; closes itself.

    Args:
        server: whose it is.
        sock: the connection, non-blocking; its own from now on.
        client: the other end.
        own: this end.
        options: what `respond()` is told.
        tls: None for plain TCP.
    """

    __slots__ = (
        "_asked",
        "_earliest",
        "_ended",
        "_framer",
        "_idle_since",
        "_in_message",
        "_options",
        "_out",
        "_own",
        "_reading",
        "_server",
        "_sock",
        "_throttled",
        "_tls",
        "_writing",
        "client",
        "deadline",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a connection is made of
        self,
        server: Server,
        sock: socket.socket,
        client: TransportAddress,
        own: TransportAddress,
        options: ResponderOptions,
        tls: TlsSession | None,
    ) -> None:
        self._server = server
        self._sock = sock
        self.client = client
        self._own = own
        self._options = options
        self._tls = tls
        self._framer = Framer()
        self._out = bytearray()
        self._reading = self._writing = self._ended = self._throttled = False
        self._asked = self._in_message = False
        limits = server.limits
        now = server.loop.time()
        self._earliest = now - 1.0  # when the next message may be answered; a second in hand
        self._idle_since = now
        self.deadline = now + (limits.message if tls is None else limits.handshake)
        """When it is closed, in the loop's time."""
        self._read_if(wanted=True)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to do as soon as the client reads or time passes."""
        return bool(self._out) or self._throttled

    def close(self) -> None:
        """Close it; what has not been sent is lost."""
        if self._sock.fileno() == -1:
            return
        self._read_if(wanted=False)
        self._write_if(wanted=False)
        if self._tls is not None and self._tls.is_established and not self._out:
            self._tls.end()
            with suppress(OSError):  # it has gone, or does not read
                self._sock.send(self._tls.outgoing())
        self._sock.close()
        self._server.forget(self)

    # ---- what wakes it up ----

    def _on_readable(self) -> None:
        self._do(self._receive)

    def _on_writable(self) -> None:
        self._do(self._flush)

    def _on_time(self) -> None:
        self._throttled = False
        if self._sock.fileno() != -1:
            self._do()

    def _do(self, first: Callable[[], None] | None = None) -> None:
        self._server.turn()
        try:
            if first is not None:
                first()
            self._work()
        except ssl.SSLError:
            self._end_tls()
        except OSError:
            self.close()
        except Exception as error:  # noqa: BLE001 - a bug costs one connection
            self._server.report(error)
            self.close()

    # ---- what it does ----

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self._ended = True
            if self._tls is not None and not self._tls.is_established:
                self._server.count("handshakes_failed")
        elif self._tls is None:
            self._framer.feed(data)
        else:
            was_established = self._tls.is_established
            self._framer.feed(self._tls.receive(data))
            self._out += self._tls.outgoing()
            self._ended = self._tls.has_ended
            if self._tls.is_established and not was_established:
                self.deadline = self._server.loop.time() + self._server.limits.message
                self._server.established(self)

    def _end_tls(self) -> None:
        if self._tls is not None and not self._tls.is_established:
            self._server.count("handshakes_failed")
            self._out += self._tls.outgoing()  # says why
            with suppress(OSError):  # it has gone
                self._sock.send(self._out)
        self.close()

    def _work(self) -> None:
        """Answer what can be answered now, send it, and see what to wait for."""
        while True:
            has_all = self._answer()
            self._flush()
            if has_all or self._out or self._throttled:
                break
        if has_all and self._ended and not self._out:
            self.close()
            return
        self._read_if(
            wanted=not self._ended and not self._throttled and len(self._out) <= WRITE_LIMIT
        )
        self._set_deadline()

    def _answer(self) -> bool:
        """Answer messages; return whether none is left that could be answered later."""
        loop, limits = self._server.loop, self._server.limits
        while len(self._out) <= WRITE_LIMIT:
            now = loop.time()
            if self._earliest > now:
                if self._framer.has_begun and not self._throttled:
                    self._throttled = True
                    loop.call_at(self._earliest, self._on_time)
                return not self._framer.has_begun
            try:
                message = self._framer.next()
            except BrokenStreamError as error:
                self._server.refuse(error.reason, self.client)
                self._ended = True
                return True
            if message is None:
                return True
            self._asked, self._in_message = True, False
            self._earliest = max(self._earliest, now - 1.0) + 1.0 / limits.requests
            self._idle_since = max(now, self._earliest)
            answer = self._server.answer(message, self.client, self._own, self._options)
            if answer.is_last:
                self._ended = True
                return True
            if answer.reply:
                self._send(answer.reply)
        return False

    def _send(self, reply: bytes) -> None:
        if self._tls is None:
            self._out += reply
        else:
            self._tls.send(reply)
            self._out += self._tls.outgoing()

    def _flush(self) -> None:
        if self._out:
            try:
                sent = self._sock.send(self._out)
            except BlockingIOError:
                sent = 0
            del self._out[:sent]
            if sent or not self._writing:
                self._set_deadline(progress=True)
        self._write_if(wanted=bool(self._out))

    def _set_deadline(self, *, progress: bool = False) -> None:
        """See what is awaited, and until when."""
        limits = self._server.limits
        if self._tls is not None and not self._tls.is_established:
            return  # the handshake has one time for all
        now = self._server.loop.time()
        if self._out:
            if progress:
                self.deadline = now + limits.message
        elif self._framer.has_begun and not self._throttled:
            if not self._in_message and self._asked:
                self.deadline = now + limits.message
            self._in_message = True
        elif self._asked:
            # Not from now: bytes of which no message comes are no reason to wait.
            self._in_message = False
            self.deadline = self._idle_since + limits.idle

    def _read_if(self, *, wanted: bool) -> None:
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._server.loop.add_reader(self._sock.fileno(), self._on_readable)
            else:
                self._server.loop.remove_reader(self._sock.fileno())

    def _write_if(self, *, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            if wanted:
                self._server.loop.add_writer(self._sock.fileno(), self._on_writable)
            else:
                self._server.loop.remove_writer(self._sock.fileno())
