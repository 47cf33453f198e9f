"""How much of a CPU nobody wanted.

Theory of operation: a thread of the lowest priority (SCHED_IDLE, sched(7)) that is bound to the
CPU reads the clock as fast as it can. Two readings that follow each other directly are some
tens of nanoseconds apart; whatever else ran in between, an interrupt or another thread, made
the gap longer. The short gaps add up to the time that was free for anyone. The kernel's own
account in /proc/stat is charged by the tick and calls softirqs that a busy CPU runs on the side
by whatever name the tick meets; this one sees every interruption.

The threshold between short and long has to be above what one reading takes, which depends on
the machine (tens of nanoseconds through the vDSO, hundreds where it is a system call), and
below what an interruption takes: the cheapest interrupt, with its way into the kernel and back,
is about a microsecond. So it is a microsecond, or more where reading alone takes long.
"""

from __future__ import annotations

from typing import NamedTuple

from ._ffi import ffi, lib

__all__ = ["IdleMeter", "IdleTime"]

_NS = 1_000_000_000
_SLICE = _NS // 10  # between two looks at signals
_SHORTEST_THRESHOLD = 1000
_READINGS = 4  # that fit into the threshold


class IdleTime(NamedTuple):
    """What was measured, in seconds."""

    elapsed: float
    idle: float


class IdleMeter:
    """Measures on the CPU that the calling thread runs on; the caller binds it and yields.

    Binding is os.sched_setaffinity, yielding os.sched_setscheduler with SCHED_IDLE.
    """

    def __init__(self) -> None:
        self.threshold = max(_SHORTEST_THRESHOLD, _READINGS * _reading())
        """Nanoseconds from which on a gap is somebody else's."""

    def measure(self, seconds: float) -> IdleTime:
        """Measure for so many seconds, or a little more."""
        left = int(seconds * _NS)
        elapsed = idle = 0
        found = ffi.new("uint64_t *")
        while elapsed < left:
            slice_ = min(left - elapsed, _SLICE)
            elapsed += lib.pktstun_idle_meter(slice_, self.threshold, found)
            idle += found[0]
        return IdleTime(elapsed / _NS, idle / _NS)


def _reading() -> int:
    """Return the nanoseconds that a reading of the clock takes when nothing is in its way."""
    found = ffi.new("uint64_t *")
    threshold = 1
    while True:
        # In a threshold that reading fits in, the short gaps are nearly all there is; the
        # test is the most lenient of a few, as others may want the CPU just now.
        shares = []
        for _ in range(20):
            elapsed = lib.pktstun_idle_meter(100_000, threshold, found)
            shares.append(found[0] / elapsed)
        if max(shares) > 0.5:
            return threshold
        threshold *= 2
