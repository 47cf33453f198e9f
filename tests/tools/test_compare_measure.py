"""tools/compare/measure.py with a simulated server: which steps there are, how long they take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.compare import measure
from tools.compare.measure import Patience, Plan, Survey, as_step, is_disturbed
from tools.compare.results import LOADS, OVERLOADS
from tools.compare.targets import MODES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.compare.targets import Target


def said(
    rate: float, seconds: float, answered: float, lost: int = 0, **more: Any
) -> dict[str, Any]:
    """What tools/loadgen.py says of a step."""
    sent = round(rate * seconds)
    return {
        "sent": sent,
        "seconds": seconds,
        "achieved_rate": sent / seconds,
        "replies": sent - lost,
        "reply_rate": answered,
        "errors": 0,
        "lost": lost,
        "send_errors": 0,
        "slices": {"size": sent, "answered": [sent - lost]},
        "latency": {"p50": 1e-4, "p90": 2e-4, "p99": 3e-4, "p999": 4e-4, "max": 1.0},
        "histogram": {"counts": [[1, 2]]},
        **more,
    }


@dataclass
class Simulated:
    """A bench: the server answers `knee` per second, the generator offers up to `ceiling`."""

    knee: float
    ceiling: float = 1e6
    served: list[str] = field(default_factory=list)
    time: float = 0.0

    @contextlib.contextmanager
    def serve(self, target: Target) -> Iterator[None]:
        self.served.append(target.key)
        yield
        self.served.append("end")

    def load(self, rate: float, seconds: float) -> dict[str, Any]:
        self.time += seconds
        offered = min(rate, self.ceiling)
        answered = min(offered, self.knee)
        return said(offered, seconds, answered, round((offered - answered) * seconds))

    def metered_load(self, rate: float, seconds: float) -> tuple[dict[str, Any], float]:
        return self.load(rate, seconds), 0.9


def survey(
    bench: Simulated, done: list[float], seconds: float = 0.5, patience: float = 0.0
) -> Survey:
    return Survey(
        bench,
        Plan.for_step(seconds),
        loss=0.001,
        pauses=0.2,
        done=done.append,
        patience=Patience(patience),
    )


@given(knee=st.floats(500, 4e5), near=st.none() | st.floats(0.8, 1.2))
def test_a_cell_has_every_step_at_its_rate(knee: float, near: float | None) -> None:
    bench = Simulated(knee)
    done: list[float] = []
    cell = survey(bench, done).measure(MODES["ring"], 3, knee * near if near else 0.0, 40)
    assert (cell.target, cell.round, cell.limited, cell.resolved) == ("ring", 3, False, True)
    assert bench.served == ["ring", "end"]
    assert cell.rate <= knee * 1.002 <= 1.035 * cell.rate
    phases = [step.phase for step in cell.steps]
    fixed = ["cpu", *(f"latency-{load}" for load in LOADS)]
    fixed += [*(f"overload-{times:g}" for times in OVERLOADS), "flood"]
    assert phases[-len(fixed) :] == fixed
    assert phases[0] == ("search" if near else "flood")
    asked = {step.phase: step.asked for step in cell.steps}
    assert asked["latency-50"] == pytest.approx(cell.rate / 2)
    assert asked["overload-1.5"] == pytest.approx(cell.rate * 1.5)
    (cpu,) = [step.cpu for step in cell.steps if step.cpu is not None]
    assert cpu == pytest.approx(0.9 / (0.9 * cell.rate) * 1e6, rel=0.01)
    assert sum(done) == pytest.approx(bench.time)


def test_a_server_without_a_rate_is_searched_and_no_more() -> None:
    cell = survey(Simulated(0.0), []).measure(MODES["ring"], 0, 0.0, 100)
    assert (cell.rate, cell.resolved) == (0.0, True)
    assert {step.phase for step in cell.steps} == {"flood", "search"}


def test_a_generator_that_gives_less_is_the_limit() -> None:
    cell = survey(Simulated(1e5, ceiling=8e4), []).measure(MODES["ring"], 0, 0.0, 40)
    assert cell.limited
    assert cell.rate == pytest.approx(8e4)


@given(
    budget=st.floats(30, 2000),
    cells=st.integers(1, 200),
    longest=st.sampled_from([0.5, 1.0]),
)
def test_a_plan_fits_its_time_unless_steps_would_be_too_short(
    budget: float, cells: int, longest: float
) -> None:
    plan = Plan.for_time(budget, cells, longest)
    assert 0.2 <= plan.seconds <= longest
    assert plan.cell * cells <= budget + 1e-6 or plan.seconds == 0.2
    assert plan.seconds == longest or Plan.for_step(plan.seconds + 0.02).cell * cells > budget


def test_the_usual_runs_keep_their_usual_steps() -> None:
    """Five modes and two peers, on a machine with two CPUs."""
    assert Plan.for_time(112, 7, 0.5).seconds >= 0.45
    assert Plan.for_time(892, 35, 1.0).seconds >= 0.9


@given(seconds=st.floats(0.2, 2), time=st.floats(-100, 300))
def test_probes_are_limited_by_the_time_but_never_to_none(seconds: float, time: float) -> None:
    plan = Plan.for_step(seconds)
    probes = plan.probes(time)
    assert probes >= 5
    assert probes == 5 or probes * seconds < time
    assert plan.probes(plan.cell) >= 7


def test_what_waits_at_the_end_beyond_a_short_queue_is_lost() -> None:
    """0.5 s at 100,000/s: 2,500 may be under way, which is 25 ms."""
    short = as_step("search", 1e5, said(1e5, 0.5, 1e5 - 2 * 2_400), None)
    assert short.loss == 0
    long = as_step("search", 1e5, said(1e5, 0.5, 1e5 - 2 * 3_500), None)
    assert long.loss == pytest.approx(1_000 / 50_000)
    lost = as_step("search", 1e5, said(1e5, 0.5, 1e5 - 2 * 3_500, lost=2_000), None)
    assert lost.loss == pytest.approx(2_000 / 50_000)


@pytest.mark.parametrize(("pauses", "loss"), [(0.0, 0.11), (0.1, 0.1 / 9), (0.2, 0.0), (0.4, 0.0)])
def test_the_slices_that_lost_most_are_pauses(pauses: float, loss: float) -> None:
    slices = {"size": 100, "answered": [100, 0, 100, 100, 90, 100, 100, 100, 100, 100]}
    raw = said(1000, 1, 890, lost=110, slices=slices)
    assert as_step("search", 1000, raw, None, pauses).loss == pytest.approx(loss)


def test_what_the_receive_queue_refused_is_lost() -> None:
    raw = said(800, 1, 800, send_errors=200, slices={"size": 1000, "answered": [800]})
    step = as_step("search", 1000, raw, None)
    assert step.offered == 1000
    assert step.loss == pytest.approx(0.2)


def test_error_responses_are_no_answers() -> None:
    raw = said(1000, 1, 900, errors=100, replies=900)
    assert as_step("search", 1000, raw, None).loss == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("replies", "names"),
    [
        (0, []),
        (9, []),
        (10, ["p50"]),
        (99, ["p50", "p90"]),
        (999, ["p50", "p90", "p99"]),
        (1000, ["p50", "p90", "p99", "p99.9"]),
    ],
)
def test_a_percentile_needs_samples(replies: int, names: list[str]) -> None:
    raw = said(replies or 1, 1, replies, lost=0 if replies else 1)
    if not replies:
        raw["latency"] = None
    step = as_step("latency-1", replies, raw, None)
    assert list(step.latency) == names
    if names:
        assert step.latency["p50"] == pytest.approx(100)


def test_a_step_is_disturbed_by_what_the_hypervisor_takes() -> None:
    for stolen, disturbed in ((0.0, False), (0.02, False), (0.05, True)):
        step = as_step("search", 1000, said(1000, 1, 1000, stolen=stolen), None)
        assert is_disturbed(step) == disturbed


def test_histograms_are_kept_of_latency_steps_only() -> None:
    assert "histogram" in as_step("latency-1", 1, said(100, 1, 100), None).raw
    assert "histogram" not in as_step("search", 1, said(100, 1, 100), None).raw


def test_nothing_sent_is_all_lost_and_nothing_answered_costs_nothing() -> None:
    step = as_step("cpu", 1, said(0, 1, 0, latency=None), 0.5)
    assert (step.loss, step.cpu, step.latency) == (1.0, None, {})


def test_steps_are_tried_again_as_long_as_patience_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10**6, 100))
    monkeypatch.setattr(measure, "cpu_time", lambda: (next(ticks), next(ticks)))
    done: list[float] = []
    patient = survey(Simulated(1e4), done, seconds=0.5, patience=2.0)
    # Half of the time is always stolen, so it is spent on the first step.
    assert is_disturbed(patient._run("search", 5000, 1.0))
    assert (len(done), patient.patience.spent) == (5, 2.0)
    patient._run("search", 5000, 1.0)
    assert len(done) == 6
