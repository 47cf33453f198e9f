"""What the counters say that somebody at night wants to know.

Theory of operation: the supervisor reads the workers' counters once a second. Where one grows that
means harm, an incident begins: a line says what, how many, which workers, and what helps. While it
goes on, there is one line in each interval with the count since the last one; after an interval
without, it is over, and the last line has the sum. Nothing here is counted per packet that the
loops do not count anyway.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from pktstun.repeats import INTERVAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pktstun.stats import WorkerStats

__all__ = ["Incidents", "Line"]


class Line(NamedTuple):
    """What to log."""

    level: int
    text: str
    fields: dict[str, object]
    """For programs: `incident`, the name of the cause, `state`, and `count` since the last line."""


class _Cause(NamedTuple):
    name: str
    level: int
    what: str
    """Behind the number."""
    remedy: str
    count: Callable[[WorkerStats], int]


_SEND_REMEDIES = {
    "eagain": "the socket's send buffer is full: the interface sends no faster",
    "enobufs": "the interface's queue is full: it sends no faster",
    "eperm": "a firewall rule of this host drops them (OUTPUT): let the port's replies out",
    "eacces": "a rule of the routing table prohibits them, or the address is a broadcast",
    "einval": "the kernel takes no datagram for such an address",
    "enetunreach": "there is no route to the clients: see 'ip route get ADDRESS'",
    "ehostunreach": "the clients cannot be reached: see 'ip route get' and 'ip neighbour'",
    "enetdown": "the interface is down",
}


def _dropped(reason: str) -> Callable[[WorkerStats], int]:
    return lambda stats: sum(counts[reason] for counts in stats.verdicts.values())


def _send_error(name: str) -> _Cause:
    return _Cause(
        f"send_error.{name}",
        logging.WARNING,
        f"replies could not be sent ({name.upper()})",
        _SEND_REMEDIES.get(name, "the kernel refuses for another reason"),
        lambda stats: stats.send_errors[name],
    )


_CAUSES = (
    _Cause(
        "ring_drops",
        logging.WARNING,
        "requests were lost because a ring was full",
        "its worker does not keep up: more --blocks for bursts, more CPUs and receive queues for "
        "load that lasts",
        lambda stats: stats.ring_drops,
    ),
    _Cause(
        "socket_drops",
        logging.WARNING,
        "requests were lost because a socket's buffer was full",
        "its worker does not keep up: more --cpus, or packet rings, for load that lasts",
        lambda stats: stats.socket_drops,
    ),
    _Cause(
        "ring_corrupt",
        logging.ERROR,
        "blocks of a ring made no sense and were passed over",
        "please report it with the version of the kernel",
        lambda stats: stats.ring_corrupt,
    ),
    _Cause(
        "over_budget",
        logging.WARNING,
        "requests that only Python answers were dropped",
        "they may take a share of a worker's time; see who sends them, or set --rate-limit",
        _dropped("over_budget"),
    ),
    _Cause(
        "internal_error",
        logging.ERROR,
        "requests met a bug and were dropped",
        "please report the traceback in this log",
        _dropped("internal_error"),
    ),
    _Cause(
        "over_limit",
        logging.WARNING,
        "requests came from sources above --rate-limit",
        "an attack, or a NAT with many clients: that one's address can be --rate-limit-exempt",
        lambda stats: stats.over_limit,
    ),
    _Cause(
        "connections_refused",
        logging.WARNING,
        "connections were refused",
        "a limit is reached: --stream-connections, --stream-connections-per-source",
        lambda stats: stats.connections_refused,
    ),
    _Cause(
        "other_neighbour",
        logging.WARNING,
        "replies went through the UDP sockets, since their requests came from another neighbour "
        "than the gateway that leads back",
        "direct mode trusts no other neighbour with them",
        lambda stats: stats.other_neighbour,
    ),
)


class _Incident:
    """A cause, and what is known of it."""

    def __init__(self, cause: _Cause, counts: Mapping[str, int]) -> None:
        self._cause = cause
        self._counts = counts
        self._new: dict[str, int] = {}
        self._began: float | None = None
        self._said_at = 0.0
        self._all = 0

    def look(self, counts: Mapping[str, int], now: float, every: float) -> Iterator[Line]:
        for name, count in counts.items():
            if more := count - self._counts.get(name, 0):
                self._new[name] = self._new.get(name, 0) + more
        self._counts = counts
        if self._began is None:
            if self._new:
                self._began, self._all = now, 0
                yield self._line("began", "", now)
        elif now - self._said_at >= every:
            if self._new:
                yield self._line("lasts", f" in the last {_span(now - self._said_at)}", now)
            else:
                span = _span(self._said_at - self._began)
                text = f"over: {self._all} {self._cause.what} within {span}"
                self._began = None
                yield self._told(logging.INFO, text, "over", self._all)

    def _line(self, state: str, when: str, now: float) -> Line:
        count = sum(self._new.values())
        where = ", ".join(self._new)
        self._all += count
        self._new = {}
        self._said_at = now
        cause = self._cause
        text = f"{count} {cause.what}{when} ({where}): {cause.remedy}"
        return self._told(cause.level, text, state, count)

    def _told(self, level: int, text: str, state: str, count: int) -> Line:
        return Line(level, text, {"incident": self._cause.name, "state": state, "count": count})


class Incidents:
    """Looks at counters again and again.

    Args:
        clock: seconds of a clock that does not go backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._incidents: dict[str, _Incident] = {}

    def look(
        self, workers: Sequence[tuple[str, WorkerStats]], every: float = INTERVAL
    ) -> list[Line]:
        """Return what is to be said now; what the first look sees is from before.

        Args:
            workers: their names and counts.
            every: seconds between two lines of an incident.
        """
        if not workers:
            return []
        causes = [*_CAUSES, *map(_send_error, workers[0][1].send_errors)]
        now = self._clock()
        lines: list[Line] = []
        for cause in causes:
            counts = {name: cause.count(stats) for name, stats in workers}
            incident = self._incidents.get(cause.name)
            if incident is None:
                self._incidents[cause.name] = _Incident(cause, counts)
            else:
                lines += incident.look(counts, now, every)
        return lines


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
