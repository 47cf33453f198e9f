"""The engine for streams: all connections on one asyncio loop.

Theory of operation: the listening sockets are the supervisor's, so connections wait in their
queues when this process dies. What is open at once is limited, in all and for each source, before
a connection costs anything here. One timer looks at all deadlines, in place of one for each
connection. The loop turns as long as callbacks come to an end, so each of them says so to the
heartbeat; even when ten thousand clients ask at once, none of them takes long.

A process that is to be replaced takes no more connections in and serves those that it has to
their end (`retire`, `linger`). It shares the slot with its successor then, so it leaves the
heartbeat to that, and counts in a way that two can.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from pktstun.engine import RunEnd
from pktstun.errors import EngineError
from pktstun.kernel import privileges
from pktstun.kernel._closing import Closing
from pktstun.stats import FAMILIES
from pktstun.stun import Class, Drop, ResponderOptions, TransportAddress, respond, split_type

from ._connection import Answer, Connection, StreamLimits
from ._tls import TlsSession, server_context

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Sequence
    from typing import Any

    from pktstun.kernel import ListeningSocket
    from pktstun.stats import Slot, WorkerStats

    from ._tls import CertificateFiles

__all__ = ["OWN_DESCRIPTORS", "StreamEngine"]

log = logging.getLogger("pktstun")

OWN_DESCRIPTORS = 200
"""Descriptors beside those of connections: listening sockets, the loop's, standard ones."""

_AT_ONCE = 64
"""Connections that are taken in before those that are there have their turn."""

COUNTS_ON = 1.0
"""Seconds for which a connection that is closed counts as its source's. So the limit is one of
connections per second as well: to begin one costs this server more than to ask for it."""

_MOST_ADDRESSES = 256
"""Own addresses that are remembered; a route of type local can make a whole network ours."""

_LONGEST_LOOK = 1.0
"""Seconds between two looks at the deadlines, or a quarter of the shortest time."""

HANDSHAKES = 1000
"""TLS handshakes that may be unfinished at once: one can hold 150 KiB, an established connection
17."""

_TRY_AGAIN = 0.5
"""Seconds after which connections are taken in again when there were no descriptors."""

_DRAIN_GRACE = 0.02
"""Seconds without anything to do after which a drained engine is done."""

_DEFAULT = ResponderOptions()
_FEW = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_NEVER_ANSWERED = {Drop.BAD_SOURCE, Drop.OWN_SOURCE, Drop.NOT_FOR_US}
"""What is wrong with the connection's ends, and will be with every request on it."""


class StreamEngine(Closing):
    """STUN on TCP and TLS connections.

    Args:
        slot: where it counts.
        tcp: borrowed; their connections speak STUN.
        tls: borrowed; their connections speak TLS first.
        tcp_options: what `respond()` is told on these. With `check_destination`, connections to
            other addresses than the endpoints are closed at once.
        tls_options: the same for TLS.
        limits: what clients may take.
        certificate: for TLS; read by `open`. None only without `tls`.
    """

    def __init__(  # noqa: PLR0913 - what an engine is made of
        self,
        slot: Slot,
        *,
        tcp: Sequence[ListeningSocket] = (),
        tls: Sequence[ListeningSocket] = (),
        tcp_options: ResponderOptions = _DEFAULT,
        tls_options: ResponderOptions = _DEFAULT,
        limits: StreamLimits,
        certificate: CertificateFiles | None = None,
    ) -> None:
        self.limits = limits
        self._slot = slot
        self._tcp, self._tls = tcp, tls
        self._tcp_options, self._tls_options = tcp_options, tls_options
        self._certificate = certificate
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: set[Connection] = set()
        self._handshaking: set[Connection] = set()
        self._sources: Counter[bytes] = Counter()
        self._own_addresses: dict[tuple[Any, ...], TransportAddress] = {}
        self._events = 0
        self._is_retired = False
        self._has_failed = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where everything happens.

        Raises:
            EngineError: the engine is not open.
        """
        if self._loop is None:
            raise EngineError("the engine is not open")
        return self._loop

    # ---- as every engine ----

    def open(self) -> None:
        """Make the loop and read the certificate.

        One that has become useless since it was looked at is said, and TCP is served without TLS.

        Raises:
            EngineError: the certificate cannot be read, and there is nothing else to serve.
        """
        context = None
        if self._certificate is not None:
            try:
                context = server_context(self._certificate)
            except OSError as error:
                problem = (
                    f"the certificate {self._certificate.chain} or its key cannot be used any "
                    f"more: {error}"
                )
                if not self._tcp:
                    raise EngineError(problem) from error
                log.error("%s; TLS is not served until it is mended and SIGHUP sent", problem)
        self._slot.note_tls(missing=self._certificate is not None and context is None)
        privileges.allow_descriptors(self.limits.connections + OWN_DESCRIPTORS)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._on_failure)
        for listener in self._tcp:
            self._listen(listener, None)
        for listener in self._tls if context is not None else ():
            self._listen(listener, context)
        self._look_at_deadlines()

    def run(self, budget: float) -> RunEnd:
        """Serve for at most `budget` seconds."""
        self._beat()
        stop = self.loop.call_later(budget, self.loop.stop)
        self.loop.run_forever()
        stop.cancel()
        return RunEnd.BUDGET

    def drain(self, limit: float) -> None:
        """Answer what has arrived, for at most `limit` seconds; then close all connections."""
        end = time.monotonic() + limit
        self.run(0)
        self.retire()
        while (left := end - time.monotonic()) > 0:
            before = self._events
            self.run(min(left, _DRAIN_GRACE))
            if before == self._events and not any(each.is_waiting for each in self._connections):
                break
        self._close_connections()

    def stats(self) -> WorkerStats:
        """Return the counts of the slot."""
        return self._slot.read()

    def close(self) -> None:
        """Close all connections and the loop; listening sockets stay."""
        if self._loop is not None:
            self.retire()
            self._close_connections()
            self._loop.close()
            self._loop = None

    # ---- to be replaced ----

    def retire(self) -> int:
        """Take no more connections in; return how many are open."""
        for listener in [*self._tcp, *self._tls]:
            self.loop.remove_reader(listener.fileno())
        self._is_retired = True
        return len(self._connections)

    def linger(self, limit: float) -> None:
        """Serve the open connections until they end, for `limit` seconds; then close the rest."""
        end = time.monotonic() + limit
        while self._connections and (left := end - time.monotonic()) > 0:
            self.run(min(left, _LONGEST_LOOK))
        self._close_connections()

    # ---- connections come and go ----

    def _listen(self, listener: ListeningSocket, context: ssl.SSLContext | None) -> None:
        if not self._is_retired:
            self.loop.add_reader(listener.fileno(), self._accept, listener, context)

    def _accept(self, listener: ListeningSocket, context: ssl.SSLContext | None) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, peer = listener.accept()
            except OSError as error:
                self._cannot_accept(error, listener, context)
                return
            self._take_in(sock, peer.without_zone(), context)

    def _cannot_accept(
        self, error: OSError, listener: ListeningSocket, context: ssl.SSLContext | None
    ) -> None:
        if error.errno in _FEW:
            log.warning(
                "connections have to wait, the system refuses more (%s): raise the limit "
                "('ulimit -n', LimitNOFILE= of a service), or lower --stream-connections",
                error.strerror,
                extra={"cause": "accept"},
            )
            self.loop.remove_reader(listener.fileno())
            self.loop.call_later(_TRY_AGAIN, self._listen, listener, context)
        elif error.errno == errno.EINVAL:
            # The supervisor has given this address up.
            self.loop.remove_reader(listener.fileno())
        # Nothing waits, or what did has gone: the next one wakes the loop up.

    def _take_in(
        self, sock: socket.socket, client: TransportAddress, context: ssl.SSLContext | None
    ) -> None:
        self.turn()
        own = self._own(sock.getsockname())
        options = self._tcp_options if context is None else self._tls_options
        source = _source(client)
        if (
            len(self._connections) >= self.limits.connections
            or self._sources[source] >= self.limits.per_source
            or (context is not None and len(self._handshaking) >= HANDSHAKES)
            or (options.check_destination and own not in options.endpoints)
        ):
            self.count("connections_refused")
            sock.close()
            return
        tls = None if context is None else TlsSession(context)
        connection = Connection(self, sock, client, own, options, tls)
        self._sources[source] += 1
        self._connections.add(connection)
        if tls is not None:
            self._handshaking.add(connection)
        self.count("connections")
        self._note_connections()

    def _note_connections(self) -> None:
        if not self._is_retired:  # else the slot is its successor's
            self._slot.note_connections(len(self._connections))

    def _own(self, sockaddr: tuple[Any, ...]) -> TransportAddress:
        """Return this end's address; connections share one value, of which there are few."""
        known = self._own_addresses.get(sockaddr)
        if known is None:
            if len(self._own_addresses) >= _MOST_ADDRESSES:
                self._own_addresses.clear()
            known = TransportAddress.from_sockaddr(sockaddr).without_zone()
            self._own_addresses[sockaddr] = known
        return known

    def _look_at_deadlines(self) -> None:
        self.loop.call_later(min(_LONGEST_LOOK, self.limits.shortest / 4), self._look_at_deadlines)
        now = self.loop.time()
        for connection in [each for each in self._connections if now >= each.deadline]:
            self.count("connections_timed_out")
            connection.close()
            self._beat()  # there may be thousands

    def _close_connections(self) -> None:
        for connection in list(self._connections):
            connection.close()
            self._beat()

    def _on_failure(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._has_failed:
            error = context.get("exception")
            log.error("the stream server failed: %s", context["message"], exc_info=error)
        self._has_failed = True

    # ---- what connections ask for ----

    def turn(self) -> None:
        """Record that the loop turns."""
        self._events += 1
        self._beat()

    def _beat(self) -> None:
        if not self._is_retired:
            self._slot.turn()

    def count(self, counter: str) -> None:
        """Add one to a counter of the slot."""
        self._slot.count(counter)

    def refuse(self, reason: str, client: TransportAddress) -> None:
        """Count bytes that are no message, under the name of a verdict."""
        self._slot.count_received(_family(client), reason)

    def report(self, error: Exception) -> None:
        """Log a bug, the first time."""
        if not self._has_failed:
            log.error("the stream server failed; this is said once", exc_info=error)
        self._has_failed = True

    def established(self, connection: Connection) -> None:
        """Make room for another handshake."""
        self._handshaking.discard(connection)

    def forget(self, connection: Connection) -> None:
        """Make room: a connection is closed."""
        self._connections.discard(connection)
        self._handshaking.discard(connection)
        self._note_connections()
        self.loop.call_later(COUNTS_ON, self._release, _source(connection.client))

    def _release(self, source: bytes) -> None:
        self._sources[source] -= 1
        if self._sources[source] <= 0:
            del self._sources[source]

    def answer(
        self,
        message: bytes,
        client: TransportAddress,
        server: TransportAddress,
        options: ResponderOptions,
    ) -> Answer:
        """Say what becomes of a message, and count it.

        Args:
            message: one whole message.
            client: where it came from.
            server: where the client has connected to.
            options: those of the transport.
        """
        try:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            answer = respond(message, client, server, options, now=now)
        except Exception as error:  # noqa: BLE001 - as in the packet engines, it costs one message
            self.report(error)
            self.refuse("internal_error", client)
            return Answer()
        if isinstance(answer, Drop):
            self.refuse(answer.value, client)
            return Answer(is_last=answer in _NEVER_ANSWERED)
        _, message_class = split_type(int.from_bytes(answer.datagram[:2]))
        verdict = "error" if message_class == Class.ERROR else "success"
        self._slot.count_received(_family(client), verdict)
        self._slot.count("sent")
        return Answer(answer.datagram)


def _source(client: TransportAddress) -> bytes:
    """Return what the limit for each source counts by: an IPv4 address, or an IPv6 /64."""
    return client.ip.packed[:8]


def _family(client: TransportAddress) -> str:
    is_ipv4 = isinstance(client.unmapped().ip, ipaddress.IPv4Address)
    return FAMILIES[1 if is_ipv4 else 2]
