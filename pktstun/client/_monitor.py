"""Latency and loss over time: a request in every interval, and what becomes of each.

Theory of operation: a request is sent once, as `ping` does, since a retransmission would hide the
loss. Up to `timeout` seconds it is waited for while the next ones are sent; what comes later
counts as lost. All leave from one port, so that a change of the mapped address is the NAT's doing.
"""

from __future__ import annotations

import math
import socket
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pktstun.errors import StunError
from pktstun.stun import Class, Message, TransportAddress

from ._servers import QueryError
from ._transport import family_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableSequence

SHORTEST_INTERVAL = 0.2
"""Seconds: servers belong to others."""

_BUFFER = 65535


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one request."""

    sequence: int
    """From 1."""
    latency: float | None = None
    """Seconds; None without a correct answer."""
    mapped: TransportAddress | None = None
    problem: str | None = None
    """Why there is no latency."""


@dataclass(slots=True)
class Summary:
    """What became of all of them."""

    sent: int = 0
    mapped: TransportAddress | None = None
    """The last address that was seen."""
    changes: int = 0
    """How often it was another than before."""
    latencies: MutableSequence[float] = field(default_factory=lambda: array("d"))

    def add(self, sample: Sample) -> bool:
        """Count one; return whether the mapped address has changed."""
        self.sent += 1
        if sample.latency is None:
            return False
        self.latencies.append(sample.latency)
        changed = self.mapped is not None and sample.mapped != self.mapped
        self.changes += changed
        self.mapped = sample.mapped
        return changed

    @property
    def received(self) -> int:
        """Requests with a correct answer."""
        return len(self.latencies)

    @property
    def loss(self) -> float:
        """The share of requests without one, 0 to 1."""
        return 1 - self.received / self.sent if self.sent else 0.0

    def quantile(self, share: float) -> float | None:
        """Return the smallest latency that a share of all latencies does not exceed.

        >>> Summary(latencies=array("d", [0.3, 0.1, 0.2])).quantile(0.5)
        0.2
        """
        if not self.latencies:
            return None
        ordered = sorted(self.latencies)
        return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def watch(
    server: TransportAddress,
    *,
    interval: float = 1.0,
    timeout: float = 2.0,
    count: int | None = None,
    duration: float | None = None,
) -> Iterator[Sample]:
    """Ask a server again and again over UDP, and yield what becomes of each request.

    Args:
        server: whom to ask.
        interval: seconds between requests; at least `SHORTEST_INTERVAL`.
        timeout: seconds after which a request is lost.
        count: requests to send; None for no end.
        duration: seconds for which to send; None for no end.

    Raises:
        QueryError: the interval is too short, or there is no way to the server from here.
    """
    if interval < SHORTEST_INTERVAL:
        raise QueryError(f"{interval:g} s is too short: at least {SHORTEST_INTERVAL:g} s")
    try:
        with socket.socket(family_of(server), socket.SOCK_DGRAM) as sock:
            sock.connect((str(server.ip), server.port))
            requests = _Requests(sock, interval, timeout, count or math.inf, duration or math.inf)
            yield from requests.run()
    except OSError as error:
        raise QueryError(f"cannot ask {server}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Pending:
    sequence: int
    sent_at: float


class _Requests:
    """The requests of one `watch`: those that are due, on their way, or overdue."""

    def __init__(
        self, sock: socket.socket, interval: float, timeout: float, count: float, duration: float
    ) -> None:
        self._sock = sock
        self._interval = interval
        self._timeout = timeout
        self._left = count
        self._due = time.monotonic()
        self._end = self._due + duration
        self._sent = 0
        self._pending: dict[bytes, _Pending] = {}

    def run(self) -> Iterator[Sample]:
        """Yield a sample for each request until all of them have one."""
        while True:
            now = time.monotonic()
            yield from self._overdue(now)
            is_sending = self._sent < self._left and now < self._end
            if not is_sending and not self._pending:
                return
            if is_sending and now >= self._due:
                yield from self._send(now)
            wakes = [each.sent_at + self._timeout for each in self._pending.values()][:1]
            if is_sending:
                wakes.append(min(self._due, self._end))
            yield from self._receive(min(wakes))

    def _overdue(self, now: float) -> Iterator[Sample]:
        for key, old in list(self._pending.items()):
            if old.sent_at + self._timeout <= now:
                del self._pending[key]
                yield Sample(old.sequence, problem=f"no answer in {self._timeout:g} s")

    def _send(self, now: float) -> Iterator[Sample]:
        self._sent += 1
        # Not counted from when it was due: after a pause there is no rush.
        self._due = max(self._due + self._interval, now)
        request = Message.request()
        try:
            self._sock.send(request.encode())
        except OSError as error:
            yield Sample(self._sent, problem=error.strerror)
        else:
            self._pending[request.transaction_id] = _Pending(self._sent, now)

    def _receive(self, end: float) -> Iterator[Sample]:
        wait_until(self._sock, end)
        try:
            data = self._sock.recv(_BUFFER)
        except TimeoutError:
            return
        except OSError as error:
            # An ICMP error tells about a request, and not about which: the oldest.
            if self._pending:
                oldest = self._pending.pop(next(iter(self._pending)))
                yield Sample(oldest.sequence, problem=error.strerror)
            return
        arrived = time.monotonic()
        response = _decode(data)
        asked = self._pending.pop(response.transaction_id, None) if response else None
        if response and asked:
            yield _sample(response, asked, arrived)


def _decode(data: bytes) -> Message | None:
    """Return a response, or None where a datagram is none."""
    try:
        message = Message.decode(data)
    except StunError:
        return None
    return message if message.message_class in {Class.SUCCESS, Class.ERROR} else None


def _sample(response: Message, asked: _Pending, arrived: float) -> Sample:
    if response.error:
        said = f"{response.error.code} {response.error.reason}".strip()
        return Sample(asked.sequence, problem=f"error {said}")
    mapped = response.mapped_address
    if mapped is None or response.message_class is not Class.SUCCESS:
        return Sample(asked.sequence, problem="an answer without an address")
    return Sample(asked.sequence, arrived - asked.sent_at, mapped)
