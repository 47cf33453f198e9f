"""When a client sends its request again: RFC 8489 section 6.2.1, as a pure state machine.

Over UDP a request is sent at once and again after RTO, 2 RTO, 4 RTO and so on, Rc times in
all; the transaction fails Rm * RTO after the last one. With the standard numbers (500 ms, 7
and 16) that is at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s, and failure at 39.5 s.

The machine does no I/O and reads no clock: the caller says what time it is, does what the
answer says, and asks again not later than `deadline`.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Action", "Transaction"]


class Action(Enum):
    """What the caller has to do now."""

    SEND = "send"
    WAIT = "wait"
    FAIL = "fail"


class Transaction:
    """The retransmission timer of one request.

    Args:
        now: the time at which the transaction starts, in seconds of any monotonic clock.
        rto: seconds until the first retransmission.
        requests: how often the request is sent at most (Rc).
        last_wait: how many RTOs are waited after the last request (Rm).

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self, now: float, *, rto: float = 0.5, requests: int = 7, last_wait: int = 16
    ) -> None:
        if rto <= 0 or requests < 1 or last_wait < 1:
            raise ValueError("rto, requests and last_wait are positive numbers")
        self._rto = rto
        self._requests = requests
        self._last_wait = last_wait
        self.sent = 0
        """Requests sent so far."""
        self.deadline = now
        """When `poll` has something new to say."""

    def poll(self, now: float) -> Action:
        """Return what to do now; SEND counts the request as sent."""
        if now < self.deadline:
            return Action.WAIT
        if self.sent == self._requests:
            return Action.FAIL
        wait = self._last_wait if self.sent == self._requests - 1 else 2**self.sent
        # Counted from when it should have been sent would pile requests up after a pause.
        self.deadline = now + wait * self._rto
        self.sent += 1
        return Action.SEND
