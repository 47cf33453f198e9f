"""The supervisor as a pure state machine: events in, actions out.

Theory of operation: `handle(event, now)` changes the state and returns what is to be done.
It starts no process, sends no signal and reads no clock; `_process` does. So every order of
events can be tested without one.

A worker that dies is started again: at once, unless it dies early again and again; then the
pauses grow, so that a crash loop costs the others nothing. While a pause is longer than a client
waits before it asks again, the worker counts as absent and the others are given its share; it
has that back when it has lived for a while. A worker that dies before the service was ever ready
stops the service, since what it met will be there the next time, too.

A worker whose loop does not turn is killed. What counts is the time for which the supervisor has
watched it stand still, and not the clock alone: when the whole host stood still, nobody is to
blame. Where no worker has served for long, whatever was tried, the supervisor says so: then it is
somebody else's turn.

Workers are rolled, one by one, to bring a change to all of them: the first is asked to leave,
and the next one's turn comes when its successor serves. What arrives meanwhile waits in the ring
or in the sockets, which are the supervisor's. One that only serves its open connections to their
end has left.

The first stop lets workers answer what has arrived; the second ends everything at once, and
so does the time limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pktstun.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "Action",
    "Announce",
    "Beats",
    "Event",
    "Exit",
    "KillWorker",
    "KillWorkers",
    "Pause",
    "Redirect",
    "RetireWorker",
    "Roll",
    "Rolled",
    "Spawn",
    "Stop",
    "StopWorkers",
    "Supervisor",
    "Tick",
    "WorkerExited",
    "WorkerReady",
]

HEALTHY = 0.25
"""Seconds that a worker has to live for its death not to count as an early one."""

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 10.0
"""Seconds before a restart after the second early death in a row, doubled with each, and the
most that it becomes. The first early death, and every other one, costs no pause."""

ABSENT = 0.4
"""Seconds of a pause from which on the others take a worker's share: clients ask again after half
a second (RFC 8489 section 6.2.1)."""

STUCK = 1.5
"""Seconds for which a loop may be seen to stand still; it turns ten times a second when idle."""

BEAT_EVERY = 0.25
"""Seconds between two looks at the heartbeats. If a look comes late, only so much counts."""

HOPELESS = 30.0
"""Seconds for which no worker may be seen to serve until the supervisor gives itself up, too:
longer than a start and the longest pause together."""

START_LIMIT = 10.0
"""Seconds that a worker has to become ready."""

RETIRE_LIMIT = 2.0
"""Seconds that a worker gets to leave when its turn has come."""

STOP_LIMIT = 5.0
"""Seconds that workers get to stop in good order."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker serves."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker has ended; `status` is its exit status, or minus the signal's number."""

    worker: int
    status: int


@dataclass(frozen=True, slots=True)
class Beats:
    """The heartbeats of all workers as they are now: whatever changes while a loop turns."""

    beats: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Roll:
    """Every worker that runs now is to be replaced, or of all only the `first` so many."""

    first: int | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """The operator wants the service to end."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of `Supervisor.deadline` has come."""


Event = WorkerReady | WorkerExited | Beats | Roll | Stop | Tick


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Say that a worker is started again only after so many seconds."""

    worker: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Redirect:
    """Give the shares of these workers to the others; an empty set gives all theirs back."""

    absent: frozenset[int]


@dataclass(frozen=True, slots=True)
class Announce:
    """Say that the service is ready; happens once."""


@dataclass(frozen=True, slots=True)
class RetireWorker:
    """Ask a worker to leave; what waits for it is its successor's."""

    worker: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """End a worker that does not do what it should."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rolled:
    """Say that every worker has been replaced since the last `Roll`."""


@dataclass(frozen=True, slots=True)
class StopWorkers:
    """Let nothing new in and ask all workers to end."""


@dataclass(frozen=True, slots=True)
class KillWorkers:
    """End all workers at once."""


@dataclass(frozen=True, slots=True)
class Exit:
    """End the service: no worker is left."""

    status: int


Action = (
    Spawn
    | Pause
    | Redirect
    | Announce
    | RetireWorker
    | KillWorker
    | Rolled
    | StopWorkers
    | KillWorkers
    | Exit
)


@dataclass(slots=True)
class _Worker:
    alive: bool = False
    ready: bool = False
    started_at: float = 0.0
    restart_at: float | None = None
    early_deaths: int = 0  # in a row
    absent: bool = False
    beat: int = 0
    still_for: float = 0.0  # seconds for which the beat was seen to be the same
    kill_at: float | None = None  # unless it has become ready, or has left, by then
    killed: bool = False
    generation: int = 0


class Supervisor:
    """The state of a service with this many workers.

    Args:
        workers: how many; they are numbered from 0.
        sharing: how many of them, the first, take each other's share; None for all.
        running: those that run already and serve, in a service that was announced by the
            supervisor before this one; None for a new service.
    """

    def __init__(
        self,
        workers: int,
        *,
        sharing: int | None = None,
        running: Collection[int] | None = None,
    ) -> None:
        alive = running or ()
        self._sharing = workers if sharing is None else sharing
        self._workers = [_Worker(i in alive, i in alive) for i in range(workers)]
        self._announced = self._announce_again = running is not None
        self._generation = 0  # counts the rolls
        self._rolling: int | None = None
        self._redirected: frozenset[int] = frozenset()
        self._beats_at: float | None = None
        self._unserved_for = 0.0
        self._stopping = False
        self._killed = False
        self._status = 0
        self._stop_deadline: float | None = None

    @property
    def stopping(self) -> bool:
        """Whether the service is on its way out."""
        return self._stopping

    @property
    def is_settled(self) -> bool:
        """Whether no worker is on its way in or out."""
        on_its_way = self._rolling is not None and self._workers[self._rolling].alive
        return not on_its_way and all(each.alive == each.ready for each in self._workers)

    @property
    def serving(self) -> frozenset[int]:
        """Those workers that are ready, and whose loops turn as far as is known."""
        return frozenset(
            index
            for index, each in enumerate(self._workers)
            if each.ready and each.still_for < STUCK
        )

    @property
    def is_hopeless(self) -> bool:
        """Whether none of those that share has served for so long that another supervisor may help.

        One that dies before it has lived for `HEALTHY` seconds does not count as serving. The start
        and the end of a service have limits of their own.
        """
        return self._announced and not self._stopping and self._unserved_for >= HOPELESS

    @property
    def deadline(self) -> float | None:
        """When `handle` wants a Tick, or None."""
        times = [self._stop_deadline]
        for worker in self._workers:
            times += [worker.restart_at, worker.kill_at]
            if worker.absent and worker.ready:
                times.append(worker.started_at + HEALTHY)
        return min((time for time in times if time is not None), default=None)

    def start(self, now: float) -> list[Action]:
        """Return the actions that begin the service; `now` as for `handle`."""
        return [self._spawn(i, now) for i, worker in enumerate(self._workers) if not worker.alive]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event in and return what is to be done, in order.

        Args:
            event: what happened.
            now: seconds of a monotonic clock.
        """
        match event:
            case WorkerReady(index):
                return self._on_ready(index, now)
            case WorkerExited(index, status):
                return self._on_exit(index, status, now)
            case Beats(beats):
                return self._on_beats(beats, now)
            case Roll(first):
                return self._on_roll(first, now)
            case Stop():
                return self._on_stop(now)
            case Tick():
                return self._on_tick(now)

    # ---- workers come and go ----

    def _spawn(self, index: int, now: float) -> Action:
        worker = self._workers[index]
        worker.alive, worker.ready, worker.restart_at = True, False, None
        worker.started_at, worker.still_for, worker.killed = now, 0.0, False
        worker.kill_at = now + START_LIMIT
        worker.generation = self._generation
        return Spawn(index)

    def _on_ready(self, index: int, now: float) -> list[Action]:
        worker = self._workers[index]
        if not worker.alive or worker.ready:
            return []  # a late word of one that has died since
        worker.ready, worker.kill_at = True, None
        if self._stopping:
            return []
        if not self._announced:
            if not all(each.ready for each in self._workers):
                return []
            self._announced = True
            outdated = any(each.generation != self._generation for each in self._workers)
            return [Announce(), *(self._roll_next(now) if outdated else [])]
        if self._rolling == index:
            return self._roll_next(now)
        return []

    def _on_exit(self, index: int, status: int, now: float) -> list[Action]:
        worker = self._workers[index]
        retired = self._rolling == index and worker.ready
        worker.alive = worker.ready = False
        worker.kill_at = None
        if self._stopping:
            # An end that nobody asked for is a failure, also while stopping.
            self._status = self._status or (1 if status else 0)
            return self._exit_if_done()
        if not self._announced:
            return self._fail_boot()
        if retired:
            worker.early_deaths = 0
            return [self._spawn(index, now)]
        early = worker.killed or now - worker.started_at < HEALTHY
        worker.early_deaths = worker.early_deaths + 1 if early else 0
        if worker.early_deaths < 2:
            return [self._spawn(index, now)]
        # Beyond some doublings the cap holds anyway; the bound keeps the float finite.
        doublings = min(worker.early_deaths - 2, 16)
        pause = min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE)
        worker.restart_at = now + pause
        if index < self._sharing:
            worker.absent = worker.absent or pause >= ABSENT
        actions: list[Action] = [Pause(index, pause), *self._redirect()]
        if self._rolling == index:
            # Nobody knows whether it will come. When it does, it is of this generation anyway.
            actions += self._roll_next(now)
        return actions

    def _redirect(self) -> list[Action]:
        absent = frozenset(i for i, worker in enumerate(self._workers) if worker.absent)
        if len(absent) == self._sharing:
            absent = frozenset()  # there is nobody else
        if absent == self._redirected:
            return []
        self._redirected = absent
        return [Redirect(absent)]

    # ---- workers that stand still ----

    def _on_beats(self, beats: tuple[int, ...], now: float) -> list[Action]:
        passed = 0.0 if self._beats_at is None else min(now - self._beats_at, 2 * BEAT_EVERY)
        self._beats_at = now
        actions: list[Action] = []
        for index, (worker, beat) in enumerate(zip(self._workers, beats, strict=True)):
            if beat != worker.beat or not worker.ready:
                worker.beat, worker.still_for = beat, 0.0
                continue
            worker.still_for += passed
            if worker.still_for >= STUCK:
                actions += self._kill_one(index, f"its loop has not turned for {STUCK} s")
        served = any(
            each.ready and not each.still_for and now - each.started_at >= HEALTHY
            for each in self._workers[: self._sharing]
        )
        self._unserved_for = 0.0 if served else self._unserved_for + passed
        return actions

    # ---- replacing all ----

    def _on_roll(self, first: int | None, now: float) -> list[Action]:
        self._generation += 1
        for worker in [] if first is None else self._workers[first:]:
            # One that an earlier change has not reached yet is still to be replaced.
            if worker.generation == self._generation - 1:
                worker.generation = self._generation
        # Those that are about to become ready for the first time come before.
        if self._stopping or not self._announced or self._rolling is not None:
            return []
        return self._roll_next(now)

    def _roll_next(self, now: float) -> list[Action]:
        for index, worker in enumerate(self._workers):
            # One that is not there will be of this generation when its pause is over.
            if not worker.alive or worker.generation == self._generation:
                continue
            self._rolling = index
            if not worker.ready:
                return self._kill_one(index, "it was started before a change")
            worker.kill_at = now + RETIRE_LIMIT
            return [RetireWorker(index)]
        self._rolling = None
        announcement: list[Action] = [Announce()] if self._announce_again else []
        self._announce_again = False
        return [Rolled(), *announcement]

    # ---- the end ----

    def _fail_boot(self) -> list[Action]:
        self._status = BootError.exit_status
        self._stopping = True
        return self._kill()

    def _on_stop(self, now: float) -> list[Action]:
        if self._stopping:
            return self._kill()
        self._stopping = True
        self._stop_deadline = now + STOP_LIMIT
        self._rolling = None
        for worker in self._workers:
            worker.restart_at = worker.kill_at = None
        return [StopWorkers(), *self._exit_if_done()]

    def _on_tick(self, now: float) -> list[Action]:
        if self._stop_deadline is not None and now >= self._stop_deadline:
            return self._kill()
        actions: list[Action] = []
        for index, worker in enumerate(self._workers):
            if worker.restart_at is not None and now >= worker.restart_at:
                actions.append(self._spawn(index, now))
            elif worker.kill_at is not None and now >= worker.kill_at:
                what = "does not leave" if worker.ready else "does not become ready"
                actions += self._kill_one(index, f"it {what}")
            elif worker.absent and worker.ready and now >= worker.started_at + HEALTHY:
                worker.absent = False
        return [*actions, *self._redirect()]

    def _kill_one(self, index: int, reason: str) -> list[Action]:
        worker = self._workers[index]
        worker.kill_at = None
        if worker.killed:
            return []  # it is on its way out
        worker.killed = True
        return [KillWorker(index, reason)]

    def _kill(self) -> list[Action]:
        self._stop_deadline = None
        if self._killed:
            return []
        self._killed = True
        self._status = self._status or 1
        return [KillWorkers(), *self._exit_if_done()]

    def _exit_if_done(self) -> list[Action]:
        if any(worker.alive for worker in self._workers):
            return []
        return [Exit(self._status)]
