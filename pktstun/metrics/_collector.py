"""The shared page in Prometheus' words.

Theory of operation: a custom collector, asked at each scrape. It reads the page and keeps nothing
of its own, so a restarted exporter goes on with the same numbers, and a restarted worker does not
begin anew. Names are Prometheus' way (https://prometheus.io/docs/practices/naming/): a prefix,
base units, `_total` at the end of what only grows.

A series is there from the start if what it counts can happen with this configuration, so that
rate() and alerts have a zero to begin with; a reason that nobody has foreseen appears with its
first count. So the messages always add up: received is answered and dropped, over every reason,
per worker and family.

This module is the only one that imports prometheus-client: see `load_exporter`.
"""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

import pktstun
from pktstun.packet import FrameDrop
from pktstun.stats import FAMILIES
from pktstun.stun import Drop

from ._observed import ALIVE, STREAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from pktstun.stats import WorkerStats

    from ._observed import Observed

__all__ = ["PageCollector", "Scrape"]

_PREFIX = "pktstun_"
_ANSWERS = ("success", "error")
_WIDEST = 10
"""Bucket of the batch sizes from which on they are one: a batch is 1024 messages at most."""

_ANY_IP = (
    FrameDrop.BAD_IP,
    FrameDrop.FRAGMENT,
    FrameDrop.NOT_UDP,
    FrameDrop.BAD_UDP_LENGTH,
    FrameDrop.BAD_UDP_CHECKSUM,
    FrameDrop.TOO_LONG,
)
_OF_FRAMES: dict[str, set[str]] = {
    "none": {
        *(FrameDrop.NOT_HOST, FrameDrop.TRUNCATED, FrameDrop.VLAN),
        *(FrameDrop.NOT_IP, FrameDrop.BAD_IP, "poison"),
    },
    "ipv4": {*_ANY_IP, FrameDrop.BAD_IP_CHECKSUM, FrameDrop.IP_OPTIONS},
    "ipv6": {*_ANY_IP, FrameDrop.IPV6_EXTENSION, FrameDrop.NO_UDP_CHECKSUM},
}
"""Reasons that a ring adds, by what was known of the frame."""

_OF_MESSAGES = {*Drop, FrameDrop.TOO_LONG, "internal_error"}


class _Simple(NamedTuple):
    """A family with one value for each worker."""

    name: str
    help: str
    value: Callable[[WorkerStats], float]


_SOCKETS = (
    _Simple(
        "socket_datagrams",
        "Datagrams that were read from UDP sockets and not from a ring",
        lambda stats: stats.socket_received,
    ),
    _Simple(
        "socket_drops",
        "Datagrams that were lost because the buffer of a UDP socket was full, in recvmmsg mode",
        lambda stats: stats.socket_drops,
    ),
    _Simple("receive_calls", "recvmmsg calls that had datagrams", lambda s: s.receive_calls),
    _Simple(
        "handovers",
        "Datagrams that Python answered, or refused, in place of the fast path",
        lambda stats: stats.handovers,
    ),
    _Simple(
        "send_calls", "sendmmsg calls that took replies or failed", lambda stats: stats.send_calls
    ),
)
_RINGS = (
    _Simple(
        "ring_packets",
        "Packets that the kernel had for the ring, those without room included",
        lambda stats: stats.ring_packets,
    ),
    _Simple(
        "ring_drops",
        "Packets that were lost because the ring was full",
        lambda stats: stats.ring_drops,
    ),
    _Simple("ring_freezes", "Times that the kernel found the ring full", lambda s: s.ring_freezes),
    _Simple("ring_blocks_read", "Blocks of the ring that were read", lambda s: s.ring_blocks),
    _Simple(
        "ring_corrupt_blocks",
        "Blocks that were given up because a header in them made no sense",
        lambda stats: stats.ring_corrupt,
    ),
    _Simple(
        "ring_errors",
        "Errors that the packet socket reported, as when its interface goes down",
        lambda stats: stats.ring_errors,
    ),
)
_DIRECT = (
    _Simple(
        "replies_other_way",
        "Replies that left through the UDP socket since they have another way back",
        lambda stats: stats.other_way,
    ),
    _Simple(
        "replies_other_neighbour",
        "Replies that left through the UDP socket since their requests came from another neighbour "
        "than the gateway that leads back",
        lambda stats: stats.other_neighbour,
    ),
)
_STREAMS = (
    _Simple("stream_connections", "TCP and TLS connections taken in", lambda s: s.connections),
    _Simple(
        "stream_connections_refused",
        "Connections closed at once: a limit was reached, or the address is not served",
        lambda stats: stats.connections_refused,
    ),
    _Simple(
        "stream_connections_timed_out",
        "Connections closed because nothing came, or nothing was read",
        lambda stats: stats.connections_timed_out,
    ),
    _Simple(
        "stream_handshakes_failed",
        "Connections closed because TLS did not come about",
        lambda stats: stats.handshakes_failed,
    ),
)


class PageCollector(Collector):
    """Tells what the shared page holds.

    Args:
        observed: the service.
        health_requests: how many this process has sent itself.
    """

    def __init__(self, observed: Observed, health_requests: Callable[[], int]) -> None:
        self._observed = observed
        self._health_requests = health_requests
        self._let_through: dict[str, int] = {}
        self._build = {
            "version": pktstun.__version__,
            "mode": observed.mode,
            "interface": observed.interface or "",
            "python": platform.python_version(),
            "kernel": platform.release(),
        }

    def collect(self) -> Iterator[Metric]:
        """Yield every family, as it is now."""
        observed = self._observed
        answering = [(name, slot.read()) for name, slot in observed.answering()]
        workers = [(name, stats) for name, stats in answering if name != STREAMS]
        yield from self._messages(answering)
        yield CounterMetricFamily(
            f"{_PREFIX}health_requests",
            "Requests that /healthz has sent, which are among the messages received, and answered "
            "if all is well; begins anew with its process",
            value=self._health_requests(),
        )
        yield from _counters(_SOCKETS, workers)
        yield from _batches(workers)
        yield from _sending(answering)
        if observed.mode == "direct":
            yield from _counters(_DIRECT, workers)
        if observed.has_rings:
            yield GaugeMetricFamily(
                f"{_PREFIX}interface_up",
                "Whether the interface of the rings is up",
                value=float(not observed.exporter.read().interface_down),
            )
            yield from _counters(_RINGS, workers)
            yield from self._fill(workers)
        if observed.is_limited:
            yield self._limiter(workers)
        streams = [(name, stats) for name, stats in answering if name == STREAMS]
        if streams:
            yield from _counters(_STREAMS, streams)
            yield _gauge(
                "stream_tls_missing",
                "Whether TLS is not served because the certificate cannot be used any more",
                {name: bool(stats.tls_missing) for name, stats in streams},
            )
            yield _gauge(
                "stream_open_connections",
                "TCP and TLS connections that are open, without those of processes that were "
                "replaced and serve theirs to their end",
                {name: stats.connections_open for name, stats in streams},
            )
        yield from self._processes()

    def _messages(self, answering: Sequence[tuple[str, WorkerStats]]) -> Iterator[Metric]:
        labels = ("worker", "family")
        received = _counter(
            "messages_received",
            "Datagrams from rings and sockets, and messages on connections, that were taken in; "
            "each is answered or dropped",
            labels,
        )
        answered = _counter(
            "messages_answered",
            "Messages that were given a reply, a success response or an error response",
            (*labels, "response"),
        )
        dropped = _counter("messages_dropped", "Messages without a reply", (*labels, "reason"))
        for name, stats in answering:
            for family in FAMILIES:
                verdicts = stats.verdicts[family]
                expected = self._expected(name, family)
                found = {reason for reason, count in verdicts.items() if count}
                if not (expected or found or stats.received[family]):
                    continue
                received.add_metric((name, family), stats.received[family])
                for response in _ANSWERS if family != "none" else ():
                    answered.add_metric((name, family, response), verdicts[response])
                for reason in sorted(expected | found.difference(_ANSWERS)):
                    dropped.add_metric((name, family, reason), verdicts[reason])
        yield from (received, answered, dropped)

    def _expected(self, worker: str, family: str) -> set[str]:
        """Return the reasons for which a worker may drop messages of a family."""
        observed = self._observed
        reasons: set[str] = set()
        if worker != STREAMS and observed.has_rings:
            reasons |= _OF_FRAMES[family]
        if family == "none":
            return reasons
        reasons |= _OF_MESSAGES
        if worker != STREAMS:
            reasons.add("over_budget")
            if family == "ipv6":
                reasons.add(FrameDrop.BAD_IP)
            if observed.is_limited:
                reasons.add("rate_limited")
        return {str(reason) for reason in reasons}

    def _fill(self, workers: Sequence[tuple[str, WorkerStats]]) -> Iterator[Metric]:
        blocks = self._observed.ring_blocks
        yield _gauge(
            "ring_blocks", "Blocks that the ring has", {name: blocks for name, _ in workers}
        )
        yield _gauge(
            "ring_fill_ratio",
            "Share of the ring's blocks that waited to be read when last looked, ten times a "
            "second; at 1 packets are lost",
            {name: stats.ring_ready / blocks for name, stats in workers},
        )
        yield _gauge(
            "ring_fill_peak_ratio",
            "The most that pktstun_ring_fill_ratio has been since the ring was opened",
            {name: stats.ring_ready_peak / blocks for name, stats in workers},
        )

    def _limiter(self, workers: Sequence[tuple[str, WorkerStats]]) -> Metric:
        family = _counter(
            "rate_limit_exceeded",
            "Requests over the rate limit: dropped, or answered all the same, so that who is "
            "abused gets through",
            ("worker", "outcome"),
        )
        for name, stats in workers:
            dropped = sum(counts["rate_limited"] for counts in stats.verdicts.values())
            # The two are not read at one moment, and a counter must not go back.
            through = max(self._let_through.get(name, 0), stats.over_limit - dropped)
            self._let_through[name] = through
            family.add_metric((name, "dropped"), dropped)
            family.add_metric((name, "answered"), through)
        return family

    def _processes(self) -> Iterator[Metric]:
        observed = self._observed
        read = {name: slot.read() for name, slot in observed.processes()}
        now = time.monotonic()
        # One that is about to write its first heartbeat has none.
        ages = {
            name: max(0.0, now - stats.heartbeat) for name, stats in read.items() if stats.heartbeat
        }
        alive = {
            name: stats.pid != 0 and ages.get(name, ALIVE) < ALIVE for name, stats in read.items()
        }
        starts = _Simple("worker_starts", "Processes that were started", lambda s: s.starts)
        yield from _counters([starts], read.items())
        yield _gauge(
            "worker_heartbeat_age_seconds",
            "Time since the worker's loop last turned, which it does ten times a second when idle",
            ages,
        )
        yield _gauge(
            "worker_up",
            f"Whether the worker has a process whose heartbeat is younger than {ALIVE} s",
            alive,
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}up", "Whether every worker is up", value=float(all(alive.values()))
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}start_time_seconds",
            "When the service was started, in Unix time; upgrades and reloads do not change it",
            value=observed.started,
        )
        yield InfoMetricFamily(
            f"{_PREFIX}build",
            "What serves: version, mode, interface of the rings, takeover, Python, kernel",
            value=self._build | {"takeover": "on" if observed.exporter.read().takeover else "off"},
        )


class Scrape:
    """Answers scrapes, in the format that is asked for.

    Args:
        observed: the service.
        health_requests: how many this process has sent itself.
    """

    def __init__(self, observed: Observed, health_requests: Callable[[], int] = int) -> None:
        # Asked once for its names, so that a scrape can name some.
        registry = CollectorRegistry(auto_describe=True)
        registry.register(PageCollector(observed, health_requests))
        # To compress takes more time than to send, on this host.
        self._application = make_wsgi_app(registry, disable_compression=True)

    def __call__(self, target: str, accept: str) -> tuple[str, bytes]:
        """Return the content type and the metrics.

        Args:
            target: of the request, whose query may have `name[]` of metrics.
            accept: of the request; empty for none.
        """
        content_type = ""

        def start(_status: str, headers: Iterable[tuple[str, str]]) -> None:
            nonlocal content_type
            content_type = dict(headers)["Content-Type"]

        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": urlsplit(target).query,
            "HTTP_ACCEPT": accept,
            "HTTP_ACCEPT_ENCODING": "",
        }
        body = b"".join(self._application(environ, start))
        return content_type, body


def _counter(name: str, text: str, labels: Sequence[str] = ("worker",)) -> CounterMetricFamily:
    return CounterMetricFamily(f"{_PREFIX}{name}", text, labels=labels)


def _gauge(name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=("worker",))
    for worker, value in values.items():
        family.add_metric((worker,), float(value))
    return family


def _counters(
    simple: Iterable[_Simple], workers: Iterable[tuple[str, WorkerStats]]
) -> Iterator[Metric]:
    known = list(workers)
    for name, text, value in simple:
        family = _counter(name, text)
        for worker, stats in known:
            family.add_metric((worker,), value(stats))
        yield family


def _batches(workers: Sequence[tuple[str, WorkerStats]]) -> Iterator[Metric]:
    received = HistogramMetricFamily(
        f"{_PREFIX}receive_batch_messages",
        "Messages in a block of the ring, or in what one recvmmsg returned",
        labels=("worker",),
    )
    sent = HistogramMetricFamily(
        f"{_PREFIX}send_batch_messages",
        "Replies that one sendmmsg took",
        labels=("worker",),
    )
    for name, stats in workers:
        arrived = sum(stats.received.values())
        received.add_metric((name,), _buckets(stats.receive_sizes), arrived)
        sent.add_metric((name,), _buckets(stats.send_sizes), stats.sent)
    yield from (received, sent)


def _buckets(sizes: Sequence[int]) -> list[tuple[str, float]]:
    """Make buckets for `le` of numbers by powers of two: of 1, of 2 to 3, of 4 to 7."""
    buckets = []
    total = 0
    for power, count in enumerate(sizes[:_WIDEST]):
        total += count
        buckets.append((f"{2 ** (power + 1) - 1}.0", float(total)))
    return [*buckets, ("+Inf", float(sum(sizes)))]


def _sending(answering: Sequence[tuple[str, WorkerStats]]) -> Iterator[Metric]:
    yield from _counters(
        [_Simple("replies_sent", "Replies that the kernel took", lambda stats: stats.sent)],
        answering,
    )
    errors = _counter(
        "send_errors",
        "Replies that the kernel refused, by the error that it gave",
        ("worker", "errno"),
    )
    for name, stats in answering:
        for error, count in stats.send_errors.items() if name != STREAMS else ():
            errors.add_metric((name, error.upper() if error != "other" else error), count)
    yield errors
