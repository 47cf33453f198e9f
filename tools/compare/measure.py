"""One target in one round: the search for its rate, and the steps at shares and multiples of it.

Theory of operation. A cell is one target in one round. `Plan` turns a time for the whole run into
the length of a step, and `Survey` runs the steps of a cell. How many steps the search takes is not
known before: each cell has an equal share of the time that is left, and what remains of it for the
search limits its probes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tools.compare.machine import cpu_time
from tools.compare.results import LOADS, OVERLOADS, Cell, Step
from tools.compare.search import Knee, Outcome, search

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from tools.compare.targets import Target

# All lengths are in steps: how often, or how much longer than a step of the search.
_PROBES = 8  # of a search, as a rule
_CONFIRM = 2
_CPU = 2
_LATENCY = {load: 2 if load == 1 else 1 for load in LOADS}  # at low rates there is less to count
_FIXED = 2 + _CONFIRM + _CPU + sum(_LATENCY.values()) + len(OVERLOADS)  # 2 floods
_START = 1.2  # seconds to start and stop a server
_DRAIN = 0.3  # seconds that the generator waits for late replies where some are missing
_DRAINS = 7  # in a cell
_FEWEST_PROBES = 5

PAUSES = 0.2
_DISTURBED = 0.02  # of the CPU time, taken by the hypervisor for others: a step says nothing then
_REPEATS = 4  # of steps of a cell that were disturbed; the search repeats its own
_FLOOD = 2_000_000  # requests/s: more than any generator here gives
_FEWEST = 20  # requests in a step
_WAITING = 0.025  # seconds
_RELIABLE = {"p50": 10, "p90": 30, "p99": 100, "p99.9": 1000}  # samples for a percentile
_SHORTEST, _LONGEST = 0.2, 5.0  # seconds


class Load(Protocol):
    """What a survey needs of a bench; see tools/compare/bench.py."""

    def serve(self, target: Target) -> AbstractContextManager[None]:
        """Run a server."""

    def load(self, rate: float, seconds: float) -> dict[str, Any]:
        """Offer a load."""

    def metered_load(self, rate: float, seconds: float) -> tuple[dict[str, Any], float]:
        """Offer a load, and measure the CPU time meanwhile."""


class Plan(NamedTuple):
    """The length of a step, and how long a cell takes, in seconds."""

    seconds: float
    cell: float

    @classmethod
    def for_time(cls, budget: float, cells: int, longest: float) -> Plan:
        """Return the plan for so many cells in `budget` seconds, with steps of up to `longest`."""
        steps = (budget / cells - _START - _DRAINS * _DRAIN) / (_PROBES + _FIXED)
        return cls.for_step(max(_SHORTEST, min(longest, math.floor(steps * 100) / 100)))

    @classmethod
    def for_step(cls, seconds: float) -> Plan:
        """Return the plan for steps of this length."""
        return cls(seconds, _START + _DRAINS * _DRAIN + (_PROBES + _FIXED) * seconds)

    @property
    def pace(self) -> float:
        """How many seconds pass for each second of a step, draining and starting included."""
        return self.cell / ((_PROBES + _FIXED) * self.seconds)

    def probes(self, time: float) -> int:
        """Return how many probes a search may take in a cell of `time` seconds."""
        left = time - _START - _FIXED * self.seconds - 3 * _DRAIN
        return max(_FEWEST_PROBES, int(left / (self.seconds + _DRAIN / 2)))


@dataclass
class Patience:
    """The time that may be spent on trying steps again while others have the CPUs, in seconds."""

    seconds: float = 0.0
    spent: float = 0.0

    def allows(self, seconds: float) -> bool:
        """Whether there is some left; if so, these are spent."""
        if self.spent >= self.seconds:
            return False
        self.spent += seconds
        return True


class Survey(NamedTuple):
    """How servers are measured. `done` is told the length of each step that has ended."""

    bench: Load
    plan: Plan
    loss: float
    pauses: float
    done: Callable[[float], None]
    patience: Patience

    def measure(self, target: Target, number: int, near: float, probes: int) -> Cell:
        """Start a server and measure it, in round `number`.

        The search has at most `probes` probes and begins at the rate `near`, unless that is 0.
        """
        steps: list[Step] = []

        def run(phase: str, rate: float, length: float = 1.0) -> Step:
            steps.append(self._run(phase, rate, length))
            return steps[-1]

        repeats = _REPEATS

        def run_undisturbed(phase: str, rate: float, length: float = 1.0) -> None:
            nonlocal repeats
            step = self._run(phase, rate, length)
            while is_disturbed(step) and repeats:
                repeats -= 1
                again = self._run(phase, rate, length)
                step = min(step, again, key=lambda each: each.raw.get("stolen", 0.0))
            steps.append(step)

        with self.bench.serve(target):
            knee = _find(near or run("flood", _FLOOD).answered, self.loss, probes, run)
            if knee.rate:
                run_undisturbed("cpu", 0.9 * knee.rate, _CPU)
                for load, length in _LATENCY.items():
                    run_undisturbed(f"latency-{load}", knee.rate * load / 100, length)
                for times in OVERLOADS:
                    run_undisturbed(f"overload-{times:g}", knee.rate * times)
                run("flood", _FLOOD)
        return Cell(target.key, number, knee.rate, knee.limited, knee.resolved, steps)

    def _run(self, phase: str, rate: float, length: float) -> Step:
        step = self._run_once(phase, rate, length)
        while is_disturbed(step) and self.patience.allows(self.plan.seconds * length):
            step = self._run_once(phase, rate, length)
        return step

    def _run_once(self, phase: str, rate: float, length: float) -> Step:
        seconds = max(self.plan.seconds * length, _FEWEST / rate)
        busy = None
        early = cpu_time()
        if phase == "cpu":
            raw, busy = self.bench.metered_load(rate, seconds)
        else:
            raw = self.bench.load(rate, seconds)
        stolen, passed = (after - before for before, after in zip(early, cpu_time(), strict=True))
        raw["stolen"] = stolen / max(1, passed)
        self.done(seconds)
        return as_step(phase, rate, raw, busy, self.pauses)


def _find(start: float, loss: float, probes: int, run: Callable[..., Step]) -> Knee:
    searching = search(start, loss=loss, probes=probes)
    probe = next(searching)
    while True:
        phase, length = ("confirm", _CONFIRM) if probe.confirm else ("search", 1)
        step = run(phase, probe.rate, length)
        try:
            outcome = Outcome(step.offered, step.answered, step.loss, disturbed=is_disturbed(step))
            probe = searching.send(outcome)
        except StopIteration as stop:
            knee: Knee = stop.value
            return knee


def is_disturbed(step: Step) -> bool:
    """Whether others had so much of the CPU time that the step says little of the server."""
    return float(step.raw.get("stolen", 0.0)) > _DISTURBED


def _steady_loss(slices: Mapping[str, Any], pauses: float) -> float:
    """Return the share lost in the slices that lost least, all but the share `pauses`."""
    size, answered = slices["size"], sorted(slices["answered"], reverse=True)
    kept = answered[: max(1, round(len(answered) * (1 - pauses)))]
    return 1 - sum(kept) / (size * len(kept)) if size and kept else 1.0


def as_step(
    phase: str, asked: float, raw: Mapping[str, Any], busy: float | None, pauses: float = 0.0
) -> Step:
    """Return the step that the generator speaks of; `busy` is in CPU seconds per second.

    What the interface refused counts as offered and lost: on veth, the server's receive queue was
    full. The loss is that of the 10 ms slices of the step but for the share `pauses` that lost
    most: a machine that is shared stands still for milliseconds now and then, which costs every
    server the replies of that time and says nothing about its rate.

    A server with long queues answers a while longer than it is asked. What still waits at the end
    of the sending time counts as lost, as far as it is more than a short queue: it would be lost
    in a longer step.
    """
    offered = raw["sent"] + raw["send_errors"]
    answered = raw["reply_rate"]
    rate = offered / raw["seconds"] if raw["seconds"] else 0.0
    waiting = raw["replies"] - answered * raw["seconds"] - rate * _WAITING
    missing = max(0.0, waiting, raw["errors"]) / offered if offered else 1.0
    samples = raw["replies"]
    latency = raw["latency"] or {}
    return Step(
        phase=phase,
        asked=asked,
        offered=rate,
        answered=answered,
        loss=max(missing, _steady_loss(raw["slices"], pauses)),
        seconds=raw["seconds"],
        latency={
            name: latency[name.replace(".", "")] * 1e6
            for name, fewest in _RELIABLE.items()
            if samples >= fewest and name.replace(".", "") in latency
        },
        cpu=None if busy is None or not answered else busy / answered * 1e6,
        # The histograms of all steps would be most of the report.
        raw={
            name: value
            for name, value in raw.items()
            if name not in {"histogram", "slices"} or phase.startswith("latency-")
        },
    )
