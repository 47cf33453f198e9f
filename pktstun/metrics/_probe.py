"""Whether requests are answered: a Binding request to every address, through every worker.

Theory of operation: on the loopback interface a datagram is received on the CPU that sends it, and
the program of a SO_REUSEPORT group gives it to the worker of that CPU. So whoever asks from a
worker's CPU is answered by that worker (or by who has its share while it is absent). What is asked
passes the worker's loop, by its UDP sockets. It does not pass the ring of another interface, since
nothing that the host sends to itself does; of a ring can be seen whether its worker's heart beats,
and whether blocks are read when packets arrive (`RingWatch`).

Requests come from the address that is asked, so that the answer has to name it. A probe costs
each worker one request for every address in a second at most, however many ask for it: they share
what was found.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pktstun.errors import StunError
from pktstun.kernel._closing import Closing
from pktstun.stun import Class, Message, TransportAddress

from ._observed import ALIVE, STREAMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pktstun.stun import ErrorCode

    from ._observed import Observed

__all__ = ["EVERY", "LOOK_EVERY", "MOST_ENDPOINTS", "Health", "Prober", "RingWatch"]

EVERY = 1.0
"""Seconds between two probes at least."""

_RETRANSMIT = 0.2
_LIMIT = 0.6
"""Seconds after which a request is sent again, once, and after which it counts as lost."""

LOOK_EVERY = 1.0
"""Seconds between two looks at the rings: the supervisor reads the kernel's counters as often."""

_STALLED_AFTER = 3
"""Looks in a row with new packets and no block that was read. Packets are counted up to a second
after their block, so one such look proves nothing."""

MOST_ENDPOINTS = 64
"""Addresses that are asked; of more the rest is left out."""

_LONGEST_REPLY = 2048


class Health(NamedTuple):
    """What a probe has found."""

    addresses: int
    """How many each worker was asked for."""
    latencies: dict[str, float | None]
    """By packet worker, the longest time to an answer, in seconds; None where one is missing."""
    ages: dict[str, float]
    """By worker, seconds since its heart has beaten; of the one for streams, too."""
    failures: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether everything was answered."""
        return not self.failures


class RingWatch:
    """Finds rings that fill and are not read.

    Args:
        observed: the service.
    """

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._seen: dict[str, tuple[int, int]] = {}  # packets and blocks, at the last look
        self._idle_looks: dict[str, int] = {}

    def look(self) -> None:
        """Note what has happened since the last look, `LOOK_EVERY` seconds ago."""
        if not self._observed.has_rings:
            return
        for name, slot in self._observed.workers():
            stats = slot.read()
            packets, blocks = self._seen.get(name, (stats.ring_packets, stats.ring_blocks))
            if stats.ring_blocks != blocks:
                self._idle_looks[name] = 0
            elif stats.ring_packets != packets:
                self._idle_looks[name] = self._idle_looks.get(name, 0) + 1
            self._seen[name] = stats.ring_packets, stats.ring_blocks

    def stalled(self) -> list[str]:
        """Return the workers whose ring has got packets in several looks and not been read."""
        return [name for name, looks in self._idle_looks.items() if looks >= _STALLED_AFTER]


@dataclass(slots=True)
class _Question:
    """A request to one address through one worker."""

    worker: str
    cpu: int
    endpoint: TransportAddress
    asking: socket.socket
    request: Message
    sent: float = 0.0
    latency: float | None = None
    problem: str | None = None

    @property
    def is_open(self) -> bool:
        return self.latency is None and self.problem is None


class Prober(Closing):
    """Asks the service, through its sockets.

    Args:
        observed: the service.
        loop: where the answers are waited for.
    """

    def __init__(self, observed: Observed, loop: asyncio.AbstractEventLoop) -> None:
        self._observed = observed
        self._loop = loop
        self._rings = RingWatch(observed)
        self._sockets: dict[TransportAddress, socket.socket] = {}
        self._unusable: list[str] = []
        self._open_questions: dict[bytes, _Question] = {}
        self._is_answered = asyncio.Event()
        self._probe: asyncio.Task[Health] | None = None
        self._began = 0.0
        self.requests = 0
        """That were sent so far; the workers count them as anybody's."""
        for endpoint in _asked(observed):
            try:
                self._sockets[endpoint] = self._open(endpoint)
            except OSError as error:
                self._unusable.append(f"{endpoint} cannot be asked: {error.strerror}")
        self._look_at_rings()

    def _open(self, endpoint: TransportAddress) -> socket.socket:
        family = socket.AF_INET6 if endpoint.ip.version == 6 else socket.AF_INET
        asking = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            asking.bind((str(endpoint.ip), 0))
            self._loop.add_reader(asking, self._on_answer, asking)
        except BaseException:
            asking.close()
            raise
        return asking

    def close(self) -> None:
        """Close the sockets; the loop does not run any more."""
        for asking in self._sockets.values():
            self._loop.remove_reader(asking)
            asking.close()
        self._sockets.clear()

    @property
    def passes(self) -> str:
        """What requests of a probe pass, and what not."""
        observed = self._observed
        way = "the loop of each worker, by its UDP sockets, over loopback"
        if observed.has_rings and observed.is_loopback:
            way = f"the ring of each worker, on {observed.interface}"
        elif observed.has_rings:
            way += (
                f"; not the rings of {observed.interface}, which fail here if packets arrive and "
                "no block is read"
            )
        if observed.streams is not None:
            way += "; of TCP and TLS the heartbeat is looked at"
        return way

    def _look_at_rings(self) -> None:
        self._rings.look()
        self._loop.call_later(LOOK_EVERY, self._look_at_rings)

    async def health(self) -> Health:
        """Return what a probe finds, or found within the last second."""
        now = self._loop.time()
        if self._probe is None or (self._probe.done() and now - self._began >= EVERY):
            self._began = now
            self._probe = self._loop.create_task(self._look())
        # Who does not wait any longer does not end it for the others.
        return await asyncio.shield(self._probe)

    async def _look(self) -> Health:
        questions = self._questions()
        self._open_questions = {each.request.transaction_id: each for each in questions}
        self._is_answered.clear()
        self._ask()
        if not await self._are_answered(_RETRANSMIT):
            self._ask()
            await self._are_answered(_LIMIT - _RETRANSMIT)
        for each in self._open_questions.values():
            each.problem = f"no answer within {_LIMIT} s"
        self._open_questions = {}
        unseen = self._not_seen()
        if unseen:
            # Perhaps it is being replaced.
            await asyncio.sleep(_RETRANSMIT)
            unseen = self._not_seen()
        failures = [
            *([] if self._observed.endpoints else ["no address is served"]),
            *self._unusable,
            *self._disabled(),
            *(f"worker {each.worker}: {each.endpoint}: {each.problem}"
              for each in questions if each.problem),
            *unseen,
            *(f"worker {name}: its ring gets packets and is not read"
              for name in self._rings.stalled()),
        ]  # fmt: skip
        now = time.monotonic()
        ages = {
            name: max(0.0, now - slot.read().heartbeat) for name, slot in self._observed.answering()
        }
        return Health(len(self._sockets), _latencies(questions), ages, tuple(failures))

    def _questions(self) -> list[_Question]:
        """Return what is to be asked, worker by worker."""
        return [
            _Question(str(number), cpu, endpoint, asking, Message.request())
            for number, cpu in enumerate(self._observed.cpus)
            for endpoint, asking in self._sockets.items()
        ]

    def _ask(self) -> None:
        """Send what has no answer, each from its worker's CPU."""
        home = os.sched_getaffinity(0)
        cpu = None
        try:
            for each in list(self._open_questions.values()):
                try:
                    if each.cpu != cpu:
                        os.sched_setaffinity(0, {each.cpu})
                        cpu = each.cpu
                    each.sent = each.sent or time.monotonic()
                    where = str(each.endpoint.ip), each.endpoint.port
                    each.asking.sendto(each.request.encode(), where)
                    self.requests += 1
                except OSError as error:
                    # A full buffer is emptied until it is sent again.
                    if not isinstance(error, BlockingIOError):
                        self._close_question(each, f"cannot be asked: {error.strerror}")
        finally:
            os.sched_setaffinity(0, home)

    async def _are_answered(self, limit: float) -> bool:
        if self._open_questions:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_answered.wait(), limit)
        return not self._open_questions

    def _on_answer(self, asking: socket.socket) -> None:
        now = time.monotonic()
        while True:
            try:
                data, source = asking.recvfrom(_LONGEST_REPLY)
            except OSError:
                return  # nothing is left, or an ICMP error, which is waited for in vain
            question = self._open_questions.get(data[8:20])
            if question is None or TransportAddress.from_sockaddr(source) != question.endpoint:
                continue
            problem = self._objection(question, data)
            if problem is None:
                question.latency = now - question.sent
            self._close_question(question, problem)

    def _objection(self, question: _Question, data: bytes) -> str | None:
        """Return what is wrong with an answer."""
        try:
            answer = Message.decode(data)
            mapped, error = answer.mapped_address, answer.error
        except StunError as broken:
            return f"its answer is malformed: {broken}"
        if answer.message_class is Class.ERROR and error is not None:
            return self._error_objection(error)
        own = TransportAddress.from_sockaddr(question.asking.getsockname())
        if answer.message_class is not Class.SUCCESS or mapped != own:
            return f"it takes {own} for {mapped}"
        return None

    def _error_objection(self, error: ErrorCode) -> str | None:
        if error.code in self._observed.error_codes:
            return None
        return f"it answers with error {error.code} {error.reason}"

    def _close_question(self, question: _Question, problem: str | None) -> None:
        question.problem = problem
        del self._open_questions[question.request.transaction_id]
        if not self._open_questions:
            self._is_answered.set()

    def _disabled(self) -> Iterator[str]:
        """Say what is known to be down, whatever answers."""
        observed = self._observed
        if observed.endpoints and not self._sockets and not self._unusable:
            yield "no address that is served can be asked"
        if observed.has_rings and observed.exporter.read().interface_down:
            yield f"{observed.interface} is down"
        if observed.streams is not None and observed.streams.read().tls_missing:
            yield "TLS is not served: the certificate cannot be used"

    def _not_seen(self) -> list[str]:
        """Say who has no process or no pulse."""
        found = []
        now = time.monotonic()
        for name, slot in self._observed.answering():
            stats = slot.read()
            who = "the stream worker" if name == STREAMS else f"worker {name}"
            if stats.pid == 0:
                found.append(f"{who} is not running")
            elif now - stats.heartbeat >= ALIVE:
                found.append(f"{who}: its loop has not turned for {now - stats.heartbeat:.1f} s")
        return found


def _latencies(questions: Iterable[_Question]) -> dict[str, float | None]:
    slowest: dict[str, float | None] = {}
    for each in questions:
        before = slowest.get(each.worker, 0.0)
        if before is None or each.latency is None:
            slowest[each.worker] = None
        else:
            slowest[each.worker] = max(before, each.latency)
    return slowest


def _asked(observed: Observed) -> Iterator[TransportAddress]:
    """Yield the addresses to ask: a link-local one means something on its link only."""
    usable = [each for each in observed.endpoints if not each.ip.is_link_local]
    yield from sorted(usable, key=str)[:MOST_ENDPOINTS]
