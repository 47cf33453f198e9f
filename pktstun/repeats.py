"""Log records that say the same again and again: one in an interval, with the count.

Theory of operation: a record that can come often names its cause (`extra={"cause": "accept"}`).
The first of a cause passes at once and begins an interval; if it names a `burst`, so many pass,
and so does what is worse than all that have passed. The others of the interval are counted, and the
latest of the worst is kept. When the interval is over, that one is due, with the count, and another
interval begins. So there is one line in each interval for as long as it goes on, and the last count
is not lost when it stops; after an interval in which nothing came, the cause is forgotten.

Somebody has to ask for what is due: no timer runs here.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

__all__ = ["INTERVAL", "Repeats"]

INTERVAL = 60.0
"""Seconds between two lines about the same cause, unless the operator has chosen others."""


@dataclass(slots=True)
class _Interval:
    began: float
    burst: int
    level: int
    """The highest that has passed."""
    passed: int = 1
    held: int = 0
    latest: logging.LogRecord | None = None


class Repeats:
    """Which records are to be written now.

    Args:
        every: seconds of an interval; 0 to write every record.
        clock: seconds of a clock that does not go backwards.
    """

    def __init__(
        self, every: float = INTERVAL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.every = every
        self._clock = clock
        self._intervals: dict[str, _Interval] = {}
        self._default: tuple[str | None, int] = None, 1

    def admit(self, record: logging.LogRecord) -> logging.LogRecord | None:
        """Return what to write now that this record has come; None for nothing."""
        cause, burst = self._default
        if hasattr(record, "cause"):
            cause, burst = str(record.cause), getattr(record, "burst", 1)
        if cause is None:
            return record
        now = self._clock()
        interval = self._intervals.get(cause)
        if interval is None or now - interval.began >= self.every:
            held = interval.held if interval is not None else 0
            # What goes on has had its burst.
            self._intervals[cause] = _Interval(
                now, burst, record.levelno, passed=burst if held else 1
            )
            if interval is None or not held:
                return record
            return _counted(record, held + 1, now - interval.began)
        interval.burst = max(interval.burst, burst)
        if interval.passed < interval.burst or record.levelno > interval.level:
            interval.passed += 1
            interval.level = max(interval.level, record.levelno)
            return record
        interval.held += 1
        if interval.latest is None or record.levelno >= interval.latest.levelno:
            interval.latest = record
        return None

    def due(self) -> list[logging.LogRecord]:
        """Return what was held back for long enough, one record for each cause."""
        now = self._clock()
        records = []
        for cause, interval in list(self._intervals.items()):
            if now - interval.began < self.every:
                continue
            del self._intervals[cause]
            if interval.latest is not None:
                self._intervals[cause] = _Interval(
                    now, interval.burst, interval.latest.levelno, passed=interval.burst
                )
                records.append(_counted(interval.latest, interval.held, now - interval.began))
        return records

    def rest(self) -> list[logging.LogRecord]:
        """Return all that is held back, as `due` does; for when nobody will ask again."""
        now = self._clock()
        records = [
            _counted(interval.latest, interval.held, now - interval.began)
            for interval in self._intervals.values()
            if interval.latest is not None
        ]
        self._intervals.clear()
        return records

    def fork(self, cause: str, burst: int) -> None:
        """Go on in a child process: what is held back is the parent's to write.

        Args:
            cause: of the records that name none. What the parent has said of it counts.
            burst: of these records.
        """
        for interval in self._intervals.values():
            interval.held, interval.latest = 0, None
        self._default = cause, burst


def _counted(record: logging.LogRecord, more: int, seconds: float) -> logging.LogRecord:
    """Return a record of now with the count of what was not written in its message."""
    times = "once more" if more == 1 else f"{more} more times"
    counted = copy.copy(record)
    counted.msg, counted.args = _Counted(record, f" ({times} in the last {seconds:.0f} s)"), None
    counted.created = time.time()
    counted.__dict__["repeats"] = more
    return counted


class _Counted:
    """The text of a record, and what comes behind it: put together when it is written."""

    def __init__(self, record: logging.LogRecord, behind: str) -> None:
        self._record, self._behind = record, behind

    def __str__(self) -> str:
        return self._record.getMessage() + self._behind
