"""What a comparison found: its records, their file, and the statistics over its rounds.

Theory of operation. A `Report` holds everything that was measured, step by step, and nothing that
can be computed from it: the table and the pictures are drawn from `summarize`, on the day of the
measurement or, from the JSON file, any day after.

In one round every target is measured once; rounds repeat that, so whatever the machine does
meanwhile comes over all targets alike. A ratio is taken within a round and the median of the
ratios is shown; it is not the ratio of the medians.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

FORMAT = 1
BASELINE = "recvmmsg"
LOADS = (1, 50, 90)  # percent of the loss-free rate, for latencies
OVERLOADS = (1.5, 2.0)  # times the loss-free rate
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
MACHINE = {"kernel", "cpu", "cores", "hypervisor", "clocksource", "python"}
SETTINGS = {
    "rounds", "seconds", "loss", "pauses", "place", "priorities", "generator_cpu", "server_cpus",
    "stolen",
}  # fmt: skip
DISTURBED = 0.1  # share of the steps that should lose nothing: above it, it is said
QUARTILES_FROM = 5  # rounds


class ReportError(Exception):
    """The file is not a report of this tool."""


@dataclass(frozen=True)
class Step:
    """One rate, offered for a while.

    Rates are per second; `loss` is the share of the requests without a reply, pauses left aside;
    `latency` has percentiles in microseconds; `cpu` is the CPU time of the server's side per
    reply, in microseconds, where it was measured; `raw` is what the generator said.
    """

    phase: str
    asked: float
    offered: float
    answered: float
    loss: float
    seconds: float
    latency: Mapping[str, float] = field(default_factory=dict)
    cpu: float | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One target in one round; `rate` is its loss-free rate, 0 if there is none.

    `limited`: the generator could offer no more. `resolved`: the search came to its end.
    """

    target: str
    round: int
    rate: float
    limited: bool
    resolved: bool
    steps: Sequence[Step]


@dataclass(frozen=True)
class Subject:
    """A target as the reader sees it: its short name, its command, and the value swept."""

    key: str
    title: str
    command: str
    note: str = ""
    setting: str = ""
    value: float | None = None


@dataclass
class Report:
    """A whole run."""

    date: str
    command: Sequence[str]
    machine: Mapping[str, str]
    settings: dict[str, Any]
    subjects: Sequence[Subject]
    left_out: dict[str, str] = field(default_factory=dict)  # what, why
    cells: list[Cell] = field(default_factory=list)
    interrupted: bool = False

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        data = {"format": FORMAT, **dataclasses.asdict(self)}
        path.write_text(json.dumps(data) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report; ReportError says what is wrong with the file."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                raise ReportError(f"{path} was written by another version of this tool")
            data["subjects"] = [Subject(**each) for each in data["subjects"]]
            data["cells"] = [
                Cell(**{**each, "steps": [Step(**step) for step in each["steps"]]})
                for each in data["cells"]
            ]
            report = cls(**data)
            for known, wanted in ((report.machine, MACHINE), (report.settings, SETTINGS)):
                absent = wanted - set(known)
                if absent:
                    raise ReportError(f"{path} is no report of this tool: no {min(absent)!r}")
        except OSError as error:
            raise ReportError(f"{path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ReportError(f"{path} is no report of this tool: {error}") from error
        return report


def disturbed(report: Report) -> tuple[int, int]:
    """Return how many of the steps that any server can stand lost replies, and how many there are.

    At half of its rate and less a server loses nothing by itself. Where no rate could be found
    before the probes were used up, these steps count as lost.
    """
    losses = []
    for cell in report.cells:
        calm = [step.loss for step in cell.steps if step.phase in ("latency-1", "latency-50")]
        losses += calm if cell.rate or cell.resolved else [1.0, 1.0]
    return sum(loss > report.settings["loss"] for loss in losses), len(losses)


class Spread(NamedTuple):
    """A median, and the range around it: quartiles of five values or more, else all of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread; None of nothing."""
        values = sorted(values)
        if not values:
            return None
        low, high = values[0], values[-1]
        if len(values) >= QUARTILES_FROM:
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)


class Overload(NamedTuple):
    """More than can be answered: the goodput as a share of the loss-free rate.

    `factor` is how many times the loss-free rate the generator really offered.
    """

    goodput: Spread
    factor: float


@dataclass(frozen=True)
class Row:
    """A target over all rounds."""

    subject: Subject
    rounds: int
    rate: Spread
    ratio: Spread | None  # to the baseline
    limited: bool
    resolved: bool
    cpu: Spread | None
    overload: Mapping[float, Overload]
    latency: Mapping[int, Mapping[str, Spread]]
    load: Sequence[tuple[float, float]]  # offered and answered, of every step
    curve: Sequence[tuple[float, float]]  # the same, median of each load, ascending


def summarize(report: Report) -> list[Row]:
    """Return a row for each target that was measured, in the report's order."""
    base = {cell.round: cell.rate for cell in report.cells if cell.target == BASELINE}
    rows = []
    for subject in report.subjects:
        cells = [cell for cell in report.cells if cell.target == subject.key]
        # A search that was broken off before anything passed says nothing of the server.
        cells = [cell for cell in cells if cell.rate or cell.resolved] or cells
        rate = Spread.of(cell.rate for cell in cells)
        if rate is None:
            continue
        ratios = [cell.rate / base[cell.round] for cell in cells if base.get(cell.round)]
        steps = [step for cell in cells for step in cell.steps]
        rows.append(
            Row(
                subject=subject,
                rounds=len(cells),
                rate=rate,
                ratio=Spread.of(ratios),
                limited=any(cell.limited for cell in cells),
                resolved=all(cell.resolved for cell in cells),
                cpu=Spread.of(step.cpu for step in steps if step.cpu is not None),
                overload=_overload(cells),
                latency=_latency(steps),
                load=sorted((step.offered, step.answered) for step in steps),
                curve=_curve(rate.median, steps),
            )
        )
    return rows


def _curve(rate: float, steps: Sequence[Step]) -> list[tuple[float, float]]:
    loads: dict[str, list[Step]] = {}
    for step in steps:
        if step.phase.startswith(("latency-", "overload-", "flood")):
            loads.setdefault(step.phase, []).append(step)
    curve = [
        (
            statistics.median(step.offered for step in group),
            statistics.median(step.answered for step in group),
        )
        for group in loads.values()
    ]
    return sorted([*curve, (rate, rate)])


def _overload(cells: Iterable[Cell]) -> dict[float, Overload]:
    found = {}
    for times in OVERLOADS:
        steps = [
            (step.answered / cell.rate, step.offered / cell.rate)
            for cell in cells
            if cell.rate
            for step in cell.steps
            if step.phase == f"overload-{times:g}"
        ]
        goodput = Spread.of(share for share, _ in steps)
        if goodput is not None:
            found[times] = Overload(goodput, statistics.median(factor for _, factor in steps))
    return found


def _latency(steps: Sequence[Step]) -> dict[int, dict[str, Spread]]:
    found: dict[int, dict[str, Spread]] = {}
    for load in LOADS:
        at_load = [step.latency for step in steps if step.phase == f"latency-{load}"]
        for name in PERCENTILES:
            spread = Spread.of(latency[name] for latency in at_load if name in latency)
            if spread is not None:
                found.setdefault(load, {})[name] = spread
    return found
