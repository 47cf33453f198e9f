"""The supervisor's state machine: every order of events keeps its promises."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pktstun.supervisor import (
    FIRST_PAUSE,
    HEALTHY,
    LONGEST_PAUSE,
    STOP_LIMIT,
    Action,
    Announce,
    Exit,
    KillWorkers,
    Spawn,
    Stop,
    StopWorkers,
    Supervisor,
    Tick,
    WorkerExited,
    WorkerReady,
)


def started(workers: int) -> Supervisor:
    supervisor = Supervisor(workers)
    assert supervisor.start(0.0) == [Spawn(number) for number in range(workers)]
    return supervisor


def serving(workers: int) -> Supervisor:
    supervisor = started(workers)
    for number in range(workers):
        supervisor.handle(WorkerReady(number), 0.0)
    return supervisor


def test_ready_is_announced_once_when_all_are() -> None:
    supervisor = started(2)
    assert supervisor.handle(WorkerReady(1), 0.0) == []
    assert supervisor.handle(WorkerReady(0), 0.0) == [Announce()]
    supervisor.handle(WorkerExited(0, -9), 1.0)
    assert supervisor.handle(WorkerReady(0), 1.0) == []


def test_the_first_death_costs_no_pause() -> None:
    supervisor = serving(2)
    assert supervisor.handle(WorkerExited(1, -9), 5.0) == [Spawn(1)]


def test_a_worker_that_keeps_dying_waits_longer_each_time() -> None:
    supervisor, now, pauses = serving(1), 0.0, []
    for _ in range(12):
        actions = supervisor.handle(WorkerExited(0, 1), now)
        pause = 0.0
        if not actions:
            assert supervisor.deadline is not None
            assert supervisor.handle(Tick(), supervisor.deadline - 0.001) == []
            pause = supervisor.deadline - now
            now = supervisor.deadline
            actions = supervisor.handle(Tick(), now)
        pauses.append(round(pause, 6))
        assert actions == [Spawn(0)]
        supervisor.handle(WorkerReady(0), now)
    assert pauses == [
        0,
        *(min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE) for doublings in range(11)),
    ]
    assert pauses[-1] == LONGEST_PAUSE


def test_a_worker_that_lived_is_replaced_at_once_however_often_it_dies() -> None:
    supervisor, now = serving(1), 0.0
    for _ in range(100):
        now += HEALTHY
        assert supervisor.handle(WorkerExited(0, -9), now) == [Spawn(0)]


def test_a_healthy_life_forgives() -> None:
    supervisor = serving(1)
    supervisor.handle(WorkerExited(0, 1), 0.0)
    assert supervisor.handle(WorkerExited(0, 1), 0.1) == []
    assert supervisor.deadline is not None
    now = supervisor.deadline
    assert supervisor.handle(Tick(), now) == [Spawn(0)]
    assert supervisor.handle(WorkerExited(0, 1), now + 2 * HEALTHY) == [Spawn(0)]


def test_a_death_before_the_service_was_ready_ends_it_with_status_3() -> None:
    supervisor = started(2)
    supervisor.handle(WorkerReady(0), 0.0)
    assert supervisor.handle(WorkerExited(1, 3), 0.0) == [KillWorkers()]
    assert supervisor.handle(WorkerExited(0, -9), 0.1) == [Exit(3)]


def test_stopping_waits_for_the_workers_and_exits_with_0() -> None:
    supervisor = serving(2)
    assert supervisor.handle(Stop(), 0.0) == [StopWorkers()]
    assert supervisor.handle(WorkerExited(0, 0), 0.1) == []
    assert supervisor.handle(WorkerExited(1, 0), 0.1) == [Exit(0)]


def test_a_second_stop_ends_everything_at_once() -> None:
    supervisor = serving(1)
    supervisor.handle(Stop(), 0.0)
    assert supervisor.handle(Stop(), 0.0) == [KillWorkers()]
    assert supervisor.handle(WorkerExited(0, -9), 0.0) == [Exit(1)]


def test_a_worker_that_does_not_stop_is_killed_in_the_end() -> None:
    supervisor = serving(1)
    supervisor.handle(Stop(), 0.0)
    assert supervisor.deadline == STOP_LIMIT
    assert supervisor.handle(Tick(), STOP_LIMIT) == [KillWorkers()]
    assert supervisor.handle(WorkerExited(0, -9), STOP_LIMIT) == [Exit(1)]


def test_stopping_does_not_wait_for_a_worker_that_waits_to_be_started() -> None:
    supervisor = serving(1)
    supervisor.handle(WorkerExited(0, 1), 0.0)
    assert supervisor.handle(WorkerExited(0, 1), 0.0) == []
    assert supervisor.handle(Stop(), 0.0) == [StopWorkers(), Exit(0)]


class AnyOrder(RuleBasedStateMachine):
    """Events in any order that processes can cause, against what must always hold."""

    @initialize(workers=st.integers(1, 4))
    def begin(self, workers: int) -> None:
        self.supervisor = Supervisor(workers)
        self.now = 0.0
        self.alive: set[int] = set()
        self.ready: set[int] = set()
        self.stops = 0
        self.announced = 0
        self.exited = False
        self.all = workers
        self.take(self.supervisor.start(0.0))

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self.exited, "nothing happens after the exit"
            match action:
                case Spawn(number):
                    assert number not in self.alive, "one process a worker"
                    assert self.stops == 0, "nothing starts once it stops"
                    self.alive.add(number)
                case Announce():
                    assert len(self.ready) == self.all
                    self.announced += 1
                case Exit():
                    assert not self.alive, "no worker is left behind"
                    self.exited = True

    def tell(self, event: WorkerReady | WorkerExited | Stop | Tick) -> None:
        self.take(self.supervisor.handle(event, self.now))

    @precondition(lambda self: self.alive - self.ready)
    @rule(data=st.data())
    def worker_ready(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.alive - self.ready)))
        self.ready.add(number)
        self.tell(WorkerReady(number))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), status=st.sampled_from([0, 1, 3, -9, -11]))
    def worker_exits(self, data: st.DataObject, status: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.discard(number)
        self.ready.discard(number)
        if not self.announced:
            self.stops += 1  # a failed boot stops the service
        self.tell(WorkerExited(number, status))

    @precondition(lambda self: not self.exited)
    @rule()
    def stop(self) -> None:
        self.stops += 1
        self.tell(Stop())

    @precondition(lambda self: not self.exited)
    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.supervisor.deadline
        if deadline is not None and self.now >= deadline:
            self.tell(Tick())

    @precondition(lambda self: self.exited)
    @rule()
    def nothing_follows(self) -> None:
        pass

    @invariant()
    def announced_at_most_once(self) -> None:
        assert self.announced <= 1

    @invariant()
    def somebody_serves_or_will(self) -> None:
        if not self.stops and not self.exited:
            assert self.alive or self.supervisor.deadline is not None

    @invariant()
    def an_end_comes(self) -> None:
        if self.stops and not self.alive:
            assert self.exited


TestAnyOrder = AnyOrder.TestCase
