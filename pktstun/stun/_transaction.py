"""A request and its response: RFC 8489 section 6.2.1 and 6.3, as a pure state machine.

Over UDP a request is sent at once and again after RTO, 2 RTO, 4 RTO and so on, Rc times in
all; the transaction fails Rm * RTO after the last one. With the standard numbers (500 ms, 7
and 16) that is at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s, and failure at 39.5 s.

The machine does no I/O and reads no clock: the caller says what time it is, does what the
answer says, asks again not later than `deadline`, and hands over what arrives meanwhile.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

from pktstun.errors import StunError

from ._message import Message
from ._types import HEADER_SIZE, Class
from ._wire import as_bytes

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

__all__ = ["Action", "Transaction"]

# The waits double: as many would take longer than anything lasts.
MOST_REQUESTS = 64


class Action(Enum):
    """What the caller has to do now."""

    SEND = "send"
    WAIT = "wait"
    FAIL = "fail"


class Transaction:
    """One request: when to send it again, and which datagram is its response.

    >>> transaction = Transaction(Message.request(), now=100.0)
    >>> transaction.poll(100.0), transaction.deadline
    (<Action.SEND: 'send'>, 100.5)
    >>> response = transaction.request.success()
    >>> transaction.receive(response.encode()) == response
    True

    Args:
        request: what is sent.
        now: the time at which the transaction starts, in seconds of any monotonic clock.
        rto: seconds until the first retransmission.
        requests: how often the request is sent at most (Rc).
        last_wait: how many RTOs are waited after the last request (Rm).

    A response that `receive` returns does not end the transaction, since its integrity may be
    wrong: whoever takes it stops polling, whoever refuses it goes on, and over a reliable
    transport gives up (RFC 8489 section 9.1.4).

    Raises:
        StunError: the message is no request, or a number is not positive and finite.
    """

    def __init__(
        self,
        request: Message,
        now: float,
        *,
        rto: float = 0.5,
        requests: int = 7,
        last_wait: int = 16,
    ) -> None:
        if request.message_class is not Class.REQUEST:
            raise StunError(f"a transaction begins with a request, not {request.message_class!r}")
        if not (0 < rto < math.inf and 1 <= requests <= MOST_REQUESTS and last_wait >= 1):
            raise StunError("rto, requests and last_wait are positive, and not beyond reason")
        self.request = request
        """What is sent."""
        self._rto = rto
        self._requests = requests
        self._last_wait = last_wait
        self.sent = 0
        """Requests sent so far."""
        self.deadline = now
        """When `poll` has something new to say."""
        self.refused: StunError | None = None
        """Why the last datagram with the request's id was no STUN message, if one was none."""

    @classmethod
    def reliable(cls, request: Message, now: float, *, timeout: float = 39.5) -> Self:
        """Return a transaction over TCP or TLS: sent once (RFC 8489 section 6.2.2)."""
        return cls(request, now, rto=timeout, requests=1, last_wait=1)

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

    def receive(self, data: Buffer) -> Message | None:
        """Return the response that a datagram holds, or None where it is to be ignored.

        A response has the request's transaction id and method (RFC 8489 section 6.3). What
        is ignored does not end the transaction: a forged or broken datagram must not keep
        the true one from being heard.
        """
        data = as_bytes(data)
        try:
            message = Message.decode(data)
        except StunError as error:
            if data[8:HEADER_SIZE] == self.request.transaction_id:
                self.refused = error
            return None
        if message.message_class not in {Class.SUCCESS, Class.ERROR}:
            return None
        asked = (message.method, message.transaction_id)
        return message if asked == (self.request.method, self.request.transaction_id) else None
