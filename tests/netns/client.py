"""A client that sends many requests and checks every reply, from inside a namespace."""

from __future__ import annotations

import os
import select
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pktstun.kernel import Datagram, UDPSocket
from pktstun.stun import Message, Reply, TransportAddress, respond

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab import Namespace

WINDOW = 128
"""Requests on their way at once: fewer than a veth queue or a default buffer holds."""


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Run the calling thread on one CPU: over veth, its packets arrive on that CPU, too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class Result:
    """What became of the requests."""

    sent: int = 0
    replies: Counter[bytes] = field(default_factory=Counter)
    """How often each transaction id was answered correctly."""
    wrong: list[bytes] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.sent - len(self.replies)

    @property
    def duplicates(self) -> int:
        """Answers beyond the first."""
        return sum(self.replies.values()) - len(self.replies)


def ask(
    namespace: Namespace,
    source: str,
    server: str,
    count: int,
    *,
    patience: float = 2.0,
    linger: float = 0.3,
    each_window: Callable[[int], None] = lambda _sent: None,
) -> Result:
    """Send `count` requests with unique transaction ids, a window at a time.

    Args:
        namespace: where to send from.
        source: IP address to send from, which every reply has to name.
        server: ADDRESS or ADDRESS:PORT.
        count: how many requests.
        patience: seconds to wait for missing replies before the next window is sent.
        linger: seconds to wait for late duplicates at the end.
        each_window: called with the number of requests sent so far.
    """
    peer = TransportAddress.parse(server)
    result = Result()
    with namespace.enter():
        sock = UDPSocket(TransportAddress(ip_address(source), 0), share=False)
    with sock:
        expected: dict[bytes, bytes] = {}
        while result.sent < count:
            batch = []
            for _ in range(min(WINDOW, count - result.sent)):
                request = Message.request()
                reply = respond(request.encode(), sock.address, peer)
                assert isinstance(reply, Reply), reply
                expected[request.transaction_id] = reply.datagram
                batch.append(Datagram(request.encode(), peer))
            sent = 0
            while sent < len(batch):
                sent += sock.sendmmsg(batch[sent:])
            result.sent += len(batch)
            each_window(result.sent)
            _collect(sock, peer, expected, result, patience=patience)
        # Whoever answers twice may do so late.
        _collect(sock, peer, expected, result, patience=linger, until_complete=False)
    return result


def _collect(
    sock: UDPSocket,
    peer: TransportAddress,
    expected: dict[bytes, bytes],
    result: Result,
    *,
    patience: float,
    until_complete: bool = True,
) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    end = time.monotonic() + patience
    while not (until_complete and len(result.replies) == len(expected)):
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return
        for data, source in sock.recvmmsg(WINDOW):
            transaction_id = data[8:20]
            if source == peer and expected.get(transaction_id) == data:
                result.replies[transaction_id] += 1
            else:
                result.wrong.append(data)
