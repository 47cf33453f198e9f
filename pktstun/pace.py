"""How often something may happen: so many times at once, and then every so many seconds.

Theory of operation: there is an allowance for `burst` times, of which each takes one, and one is
earned in every so many seconds (a token bucket). What is not allowed is not queued: whoever asks
looks again later, at what is the case by then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """An allowance, which is full at first.

    Args:
        every: seconds from one time to the next in the long run.
        burst: how often at once, 1 at least.
        clock: seconds of a clock that does not go backwards.
    """

    def __init__(
        self, every: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every = every
        self._burst = burst
        self._clock = clock
        self._left = float(burst)
        self._counted_at = clock()

    def wait(self) -> float:
        """Return the seconds until it may happen, 0 for now."""
        now = self._clock()
        earned = (now - self._counted_at) / self._every
        self._left, self._counted_at = min(self._left + earned, self._burst), now
        return max(0.0, (1 - self._left) * self._every)

    def take(self) -> bool:
        """Return whether it may happen now; if so, that counts as once."""
        if self.wait() > 0:
            return False
        self._left -= 1
        return True
