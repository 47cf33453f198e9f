"""The supervisor's state machine: every order of events keeps its promises."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pktstun.supervisor import (
    ABSENT,
    BEAT_EVERY,
    FIRST_PAUSE,
    HEALTHY,
    HOPELESS,
    LONGEST_PAUSE,
    RETIRE_LIMIT,
    START_LIMIT,
    STOP_LIMIT,
    STUCK,
    Action,
    Announce,
    Beats,
    Event,
    Exit,
    KillWorker,
    KillWorkers,
    Pause,
    Redirect,
    RetireWorker,
    Roll,
    Rolled,
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
        if Spawn(0) not in actions:
            assert isinstance(actions[0], Pause)
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


def test_who_shares_with_nobody_has_no_share_to_give() -> None:
    supervisor = Supervisor(3, sharing=2)
    supervisor.start(0.0)
    for number in range(3):
        supervisor.handle(WorkerReady(number), 0.0)
    now = 0.0
    for number in (2, 1):
        actions: list[Action] = []
        while not any(isinstance(each, Pause) and each.seconds >= ABSENT for each in actions):
            now = supervisor.deadline or now
            supervisor.handle(Tick(), now)
            actions = supervisor.handle(WorkerExited(number, 1), now)
        redirected = [each for each in actions if isinstance(each, Redirect)]
        assert redirected == ([] if number == 2 else [Redirect(frozenset({1}))])


def test_a_roll_goes_on_without_one_that_cannot_start() -> None:
    """What follows a roll must not wait for it: new sockets are bound then, old ones closed."""
    supervisor = serving(2)
    assert supervisor.handle(Roll(), 1.0) == [RetireWorker(0)]
    assert supervisor.handle(WorkerExited(0, 0), 1.1) == [Spawn(0)]
    assert supervisor.handle(WorkerExited(0, 3), 1.2) == [Spawn(0)]
    assert supervisor.handle(WorkerExited(0, 3), 1.3) == [Pause(0, FIRST_PAUSE), RetireWorker(1)]
    assert supervisor.handle(WorkerExited(1, 0), 1.3) == [Spawn(1)]
    assert supervisor.handle(WorkerReady(1), 1.3) == [Rolled()]
    # It comes back as what it should be, and the next roll includes it.
    assert supervisor.handle(Tick(), 1.4) == [Spawn(0)]
    assert supervisor.handle(WorkerReady(0), 1.4) == []
    assert supervisor.handle(Roll(), 2.0) == [RetireWorker(0)]


def test_a_healthy_life_forgives() -> None:
    supervisor = serving(1)
    supervisor.handle(WorkerExited(0, 1), 0.0)
    assert supervisor.handle(WorkerExited(0, 1), 0.1) == [Pause(0, FIRST_PAUSE)]
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
    assert supervisor.handle(WorkerExited(0, 1), 0.0) == [Pause(0, FIRST_PAUSE)]
    assert supervisor.handle(Stop(), 0.0) == [StopWorkers(), Exit(0)]


def test_the_others_take_the_share_of_one_that_is_not_coming_back_soon() -> None:
    supervisor, now = serving(3), 0.0
    actions: list[Action] = []
    while not any(isinstance(action, Redirect) for action in actions):
        actions = supervisor.handle(WorkerExited(1, -11), now)
        if Spawn(1) not in actions:
            assert supervisor.deadline is not None
            now = supervisor.deadline
            supervisor.handle(Tick(), now)
    pause = next(action.seconds for action in actions if isinstance(action, Pause))
    assert pause >= ABSENT
    assert actions[-1] == Redirect(frozenset({1}))
    # It has its share back when it has lived for a while, and not before.
    assert supervisor.handle(WorkerReady(1), now) == []
    assert supervisor.deadline == now + HEALTHY
    assert supervisor.handle(Tick(), now + HEALTHY) == [Redirect(frozenset())]


def test_there_is_nobody_else_to_take_the_share_of_all() -> None:
    supervisor, now = serving(1), 0.0
    for _ in range(20):
        actions = supervisor.handle(WorkerExited(0, -11), now)
        assert not any(isinstance(action, Redirect) for action in actions)
        now = supervisor.deadline or now
        supervisor.handle(Tick(), now)


def beat(supervisor: Supervisor, now: float, *beats: int) -> list[Action]:
    return supervisor.handle(Beats(beats), now)


def test_a_loop_that_stands_still_is_killed_once() -> None:
    supervisor, now = serving(2), 0.0
    actions: list[Action] = []
    while not actions:
        now += BEAT_EVERY
        actions = beat(supervisor, now, 7, round(now * 100))
    assert [action.worker for action in actions if isinstance(action, KillWorker)] == [0]
    assert STUCK <= now <= STUCK + 2 * BEAT_EVERY
    assert beat(supervisor, now + BEAT_EVERY, 7, 0) == []
    assert supervisor.handle(WorkerExited(0, -9), now + 1) == [Spawn(0)]
    # A successor that is not ready yet has no heart that could beat.
    assert beat(supervisor, now + 100, 7, 1) == []


def test_nobody_is_killed_because_the_host_stood_still() -> None:
    supervisor = serving(1)
    beat(supervisor, 0.0, 1)
    assert beat(supervisor, 60.0, 1) == []
    assert beat(supervisor, 60.0 + BEAT_EVERY, 2) == []


def watch(supervisor: Supervisor, now: float, seconds: float, *, turning: bool) -> float:
    """Look at the heartbeats for so long, and tick when asked to; return the time then."""
    for _ in range(round(seconds / BEAT_EVERY)):
        now += BEAT_EVERY
        if supervisor.deadline is not None and now >= supervisor.deadline:
            supervisor.handle(Tick(), now)
        beat(supervisor, now, *[round(now * 100) if turning else 1] * len(supervisor._workers))
    return now


def test_as_long_as_one_serves_there_is_hope() -> None:
    supervisor, now = serving(2), 0.0
    for _ in range(60):
        supervisor.handle(WorkerExited(1, -11), now)
        now = watch(supervisor, now, 2.0, turning=True)
        supervisor.handle(WorkerReady(1), now)
        assert not supervisor.is_hopeless
    supervisor.handle(WorkerExited(1, -11), now)
    assert supervisor.serving == {0}


def test_there_is_none_when_no_worker_has_served_for_long() -> None:
    """Though each becomes ready again and again, and dies at once."""
    supervisor, now = serving(2), 0.0
    while not supervisor.is_hopeless:
        for number in range(2):
            supervisor.handle(WorkerExited(number, -11), now)
        assert supervisor.serving == set()
        now = watch(supervisor, now, BEAT_EVERY, turning=True)
        for number in range(2):
            supervisor.handle(WorkerReady(number), now)
    assert HOPELESS <= now <= HOPELESS + 2 * BEAT_EVERY
    watch(supervisor, now, 2 * HEALTHY, turning=True)
    assert not supervisor.is_hopeless


def test_workers_that_nobody_can_kill_are_hopeless() -> None:
    supervisor = serving(1)
    now = watch(supervisor, 0.0, STUCK + 1, turning=False)
    assert (supervisor.serving, supervisor.is_hopeless) == (frozenset(), False)
    watch(supervisor, now, HOPELESS, turning=False)
    assert supervisor.is_hopeless


def test_who_serves_something_else_is_no_hope() -> None:
    supervisor = Supervisor(2, sharing=1, running=[1])
    watch(supervisor, 0.0, HOPELESS + 1, turning=True)
    assert (supervisor.serving, supervisor.is_hopeless) == (frozenset({1}), True)


def test_a_host_that_stood_still_is_not_hopeless() -> None:
    supervisor = serving(1)
    now = watch(supervisor, 0.0, 5.0, turning=True)
    beat(supervisor, now + 3600, 1)
    beat(supervisor, now + 7200, 1)
    assert not supervisor.is_hopeless


def test_neither_a_start_nor_an_end_is_hopeless() -> None:
    starting = started(1)
    watch(starting, 0.0, START_LIMIT / 2, turning=False)
    assert not starting.is_hopeless
    stopping = serving(1)
    stopping.handle(Stop(), 0.0)
    watch(stopping, 0.0, 2 * HOPELESS, turning=False)
    assert not stopping.is_hopeless


def test_a_worker_that_does_not_become_ready_is_killed() -> None:
    supervisor = started(1)
    assert supervisor.deadline == START_LIMIT
    (action,) = supervisor.handle(Tick(), START_LIMIT)
    assert isinstance(action, KillWorker)
    assert supervisor.handle(WorkerExited(0, -9), START_LIMIT) == [KillWorkers(), Exit(3)]


def test_workers_are_rolled_one_by_one() -> None:
    supervisor = serving(2)
    assert supervisor.handle(Roll(), 0.0) == [RetireWorker(0)]
    assert not supervisor.is_settled
    assert supervisor.handle(WorkerExited(0, 0), 0.0) == [Spawn(0)]
    assert supervisor.handle(WorkerReady(0), 0.1) == [RetireWorker(1)]
    assert supervisor.handle(WorkerExited(1, 0), 0.1) == [Spawn(1)]
    assert supervisor.handle(WorkerReady(1), 0.2) == [Rolled()]
    assert supervisor.is_settled


def test_a_worker_that_does_not_leave_is_killed_and_replaced_all_the_same() -> None:
    supervisor = serving(1)
    supervisor.handle(Roll(), 0.0)
    assert supervisor.deadline == RETIRE_LIMIT
    (action,) = supervisor.handle(Tick(), RETIRE_LIMIT)
    assert isinstance(action, KillWorker)
    assert supervisor.handle(WorkerExited(0, -9), RETIRE_LIMIT) == [Spawn(0)]
    assert supervisor.handle(WorkerReady(0), RETIRE_LIMIT) == [Rolled()]


def test_a_change_while_another_one_is_rolled_reaches_everyone() -> None:
    supervisor = serving(2)
    supervisor.handle(Roll(), 0.0)
    supervisor.handle(WorkerExited(0, 0), 0.0)
    assert supervisor.handle(Roll(), 0.0) == []
    # The new worker 0 was made before the second change.
    assert supervisor.handle(WorkerReady(0), 0.0) == [RetireWorker(0)]
    assert supervisor.handle(WorkerExited(0, 0), 0.0) == [Spawn(0)]
    assert supervisor.handle(WorkerReady(0), 0.0) == [RetireWorker(1)]
    assert supervisor.handle(WorkerExited(1, 0), 0.0) == [Spawn(1)]
    assert supervisor.handle(WorkerReady(1), 0.0) == [Rolled()]


def test_a_change_that_concerns_the_first_workers_leaves_the_others_alone() -> None:
    supervisor = serving(3)
    assert supervisor.handle(Roll(first=2), 0.0) == [RetireWorker(0)]
    assert supervisor.handle(WorkerExited(0, 0), 0.0) == [Spawn(0)]
    assert supervisor.handle(WorkerReady(0), 0.0) == [RetireWorker(1)]
    assert supervisor.handle(WorkerExited(1, 0), 0.0) == [Spawn(1)]
    assert supervisor.handle(WorkerReady(1), 0.0) == [Rolled()]


def test_a_small_change_takes_nothing_from_a_large_one_that_is_on_its_way() -> None:
    supervisor = serving(2)
    assert supervisor.handle(Roll(), 0.0) == [RetireWorker(0)]
    assert supervisor.handle(Roll(first=1), 0.0) == []
    assert supervisor.handle(WorkerExited(0, 0), 0.0) == [Spawn(0)]
    assert supervisor.handle(WorkerReady(0), 0.0) == [RetireWorker(1)]
    assert supervisor.handle(WorkerExited(1, 0), 0.0) == [Spawn(1)]
    assert supervisor.handle(WorkerReady(1), 0.0) == [Rolled()]


def test_a_change_before_the_announcement_reaches_those_that_are_on_their_way() -> None:
    supervisor = started(1)
    assert supervisor.handle(Roll(), 0.0) == []
    assert supervisor.handle(WorkerReady(0), 0.0) == [Announce(), RetireWorker(0)]
    assert supervisor.handle(WorkerExited(0, 0), 0.0) == [Spawn(0)]
    assert supervisor.handle(WorkerReady(0), 0.0) == [Rolled()]


def test_a_worker_that_hangs_again_and_again_pauses_as_one_that_dies() -> None:
    supervisor, now = serving(2), 0.0
    actions: list[Action] = []
    for _ in range(60):
        now += BEAT_EVERY
        actions = beat(supervisor, now, 7, round(now * 100))
        if any(isinstance(action, KillWorker) for action in actions):
            actions = supervisor.handle(WorkerExited(0, -9), now)
            if any(isinstance(action, Pause) for action in actions):
                return
            supervisor.handle(WorkerReady(0), now)
    raise AssertionError("no pause")


def test_workers_of_another_supervisor_are_taken_over_and_announced_when_replaced() -> None:
    supervisor = Supervisor(2, running={0})
    assert supervisor.start(0.0) == [Spawn(1)]
    assert supervisor.handle(Roll(), 0.0) == [RetireWorker(0)]
    supervisor.handle(WorkerReady(1), 0.0)
    assert supervisor.handle(WorkerExited(0, 0), 0.0) == [Spawn(0)]
    actions = supervisor.handle(WorkerReady(0), 0.0)
    while RetireWorker(1) in actions:
        supervisor.handle(WorkerExited(1, 0), 0.0)
        actions = supervisor.handle(WorkerReady(1), 0.0)
    assert actions == [Rolled(), Announce()]


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
        self.retiring: set[int] = set()
        self.killed: set[int] = set()
        self.old: set[int] = set()  # those that have not seen the last change
        self.absent: frozenset[int] = frozenset()
        self.beats = [0] * workers
        self.still = [0.0] * workers  # since when, at the latest, a loop has stood still
        self.take(self.supervisor.start(0.0))

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self.exited, "nothing happens after the exit"
            match action:
                case Spawn(number):
                    assert number not in self.alive, "one process a worker"
                    assert self.stops == 0, "nothing starts once it stops"
                    self.alive.add(number)
                case RetireWorker(number):
                    assert number in self.ready
                    assert not self.retiring, "one by one"
                    assert number in self.old, "only those that have to go"
                    self.retiring.add(number)
                case KillWorker(number):
                    assert number in self.alive
                    assert number not in self.killed, "once is enough"
                    self.killed.add(number)
                case Redirect(absent):
                    assert absent != self.absent
                    assert len(absent) < self.all, "somebody is left"
                    self.absent = absent
                case Rolled():
                    assert not self.old & self.alive
                case Announce():
                    assert len(self.ready) == self.all
                    self.announced += 1
                case Exit():
                    assert not self.alive, "no worker is left behind"
                    self.exited = True

    def tell(self, event: Event) -> None:
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
        for those in (self.alive, self.ready, self.retiring, self.killed, self.old):
            those.discard(number)
        if not self.announced:
            self.stops += 1  # a failed boot stops the service
        self.tell(WorkerExited(number, status))

    @precondition(lambda self: not self.exited)
    @rule(first=st.none() | st.integers(0, 3))
    def roll(self, first: int | None) -> None:
        if not self.stops:
            concerned = self.alive if first is None else self.alive & set(range(first))
            self.old |= concerned
        self.tell(Roll(first))

    @precondition(lambda self: not self.exited)
    @rule(data=st.data())
    def hearts_beat(self, data: st.DataObject) -> None:
        turning = data.draw(st.sets(st.sampled_from(range(self.all))))
        for number in turning:
            self.beats[number] += 1
            self.still[number] = self.now
        killed = set(self.killed)
        self.tell(Beats(tuple(self.beats)))
        for number in self.killed - killed:
            assert self.now - self.still[number] >= STUCK, "only what has stood still"

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
