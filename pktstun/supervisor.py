"""The supervisor as a pure state machine: events in, actions out.

Theory of operation: `handle(event, now)` changes the state and returns what is to be done.
It starts no process, sends no signal and reads no clock; `_process` does. So every order of
events can be tested without one.

A worker that dies is started again: at once, unless it dies early again and again; then the
pauses grow, so that a crash loop costs the others nothing. A worker that dies before the
service was ever ready stops the service, since what it met will be there the next time, too.
The first stop lets workers answer what has arrived; the second ends everything at once, and
so does the time limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from pktstun.errors import BootError

__all__ = [
    "Action",
    "Announce",
    "Event",
    "Exit",
    "KillWorkers",
    "Spawn",
    "Stop",
    "StopWorkers",
    "Supervisor",
    "Tick",
    "WorkerExited",
    "WorkerReady",
]

HEALTHY = 1.0
"""Seconds that a worker has to live for its death not to count as an early one."""

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 10.0
"""Seconds before a restart after the second early death in a row, doubled with each, and the
most that it becomes. The first early death, and every other one, costs no pause."""

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
class Stop:
    """The operator wants the service to end."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of `Supervisor.deadline` has come."""


Event = WorkerReady | WorkerExited | Stop | Tick


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Say that the service is ready; happens once."""


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


Action = Spawn | Announce | StopWorkers | KillWorkers | Exit


@dataclass(slots=True)
class _Worker:
    alive: bool = False
    ready: bool = False
    started_at: float = 0.0
    restart_at: float | None = None
    early_deaths: int = 0  # in a row


class Supervisor:
    """The state of a service with this many workers.

    Args:
        workers: how many; they are numbered from 0.
    """

    def __init__(self, workers: int) -> None:
        self._workers = [_Worker() for _ in range(workers)]
        self._announced = False
        self._stopping = False
        self._killed = False
        self._status = 0
        self._stop_deadline: float | None = None

    @property
    def stopping(self) -> bool:
        """Whether the service is on its way out."""
        return self._stopping

    @property
    def deadline(self) -> float | None:
        """When `handle` wants a Tick, or None."""
        times = [worker.restart_at for worker in self._workers] + [self._stop_deadline]
        return min((time for time in times if time is not None), default=None)

    def start(self, now: float) -> list[Action]:
        """Return the actions that begin the service; `now` as for `handle`."""
        return [self._spawn(index, now) for index in range(len(self._workers))]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event in and return what is to be done, in order.

        Args:
            event: what happened.
            now: seconds of a monotonic clock.
        """
        match event:
            case WorkerReady(index):
                return self._on_ready(index)
            case WorkerExited(index, status):
                return self._on_exit(index, status, now)
            case Stop():
                return self._on_stop(now)
            case Tick():
                return self._on_tick(now)

    def _spawn(self, index: int, now: float) -> Action:
        worker = self._workers[index]
        worker.alive, worker.ready, worker.restart_at = True, False, None
        worker.started_at = now
        return Spawn(index)

    def _on_ready(self, index: int) -> list[Action]:
        self._workers[index].ready = True
        if self._announced or self._stopping or not all(w.ready for w in self._workers):
            return []
        self._announced = True
        return [Announce()]

    def _on_exit(self, index: int, status: int, now: float) -> list[Action]:
        worker = self._workers[index]
        worker.alive = worker.ready = False
        if self._stopping:
            # An end that nobody asked for is a failure, also while stopping.
            self._status = self._status or (1 if status else 0)
            return self._exit_if_done()
        if not self._announced:
            return self._fail_boot()
        early = now - worker.started_at < HEALTHY
        worker.early_deaths = worker.early_deaths + 1 if early else 0
        if worker.early_deaths < 2:
            return [self._spawn(index, now)]
        # Beyond some doublings the cap holds anyway; the bound keeps the float finite.
        doublings = min(worker.early_deaths - 2, 16)
        worker.restart_at = now + min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE)
        return []

    def _fail_boot(self) -> list[Action]:
        self._status = BootError.exit_status
        self._stopping = True
        return self._kill()

    def _on_stop(self, now: float) -> list[Action]:
        if self._stopping:
            return self._kill()
        self._stopping = True
        self._stop_deadline = now + STOP_LIMIT
        for worker in self._workers:
            worker.restart_at = None
        return [StopWorkers(), *self._exit_if_done()]

    def _on_tick(self, now: float) -> list[Action]:
        if self._stop_deadline is not None and now >= self._stop_deadline:
            return self._kill()
        return [
            self._spawn(index, now)
            for index, worker in enumerate(self._workers)
            if worker.restart_at is not None and now >= worker.restart_at
        ]

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
