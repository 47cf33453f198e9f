"""tools/compare/results.py: the file of a run, and the statistics over its rounds."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import compare_reports
from tools.compare.results import (
    BASELINE,
    LOADS,
    OVERLOADS,
    Cell,
    Report,
    ReportError,
    Spread,
    Step,
    disturbed,
    summarize,
)

if TYPE_CHECKING:
    from pathlib import Path

numbers = st.floats(0, 1e7)


@pytest.mark.parametrize("report", [compare_reports.ladder(), compare_reports.sweep()])
def test_a_report_survives_its_file(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.write(path)
    again = Report.read(path)
    assert dataclasses.asdict(again) == dataclasses.asdict(report) | {"command": again.command}
    assert summarize(again) == summarize(report)


def edited(**changes: Any) -> str:
    data = {"format": 1, **dataclasses.asdict(compare_reports.ladder(1))}
    return json.dumps(data | changes)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is no report"),
        ("[]", "is no report"),
        ("{}", "is no report"),
        (edited(format=0), "another version"),
        (edited(cells=[{"target": "ring"}]), "is no report"),
        (edited(cells=3), "is no report"),
        (edited(machine={}), "is no report"),
        (edited(settings={"loss": 1}), "is no report of this tool: no 'generator_cpu'"),
        (edited(bogus=1), "is no report"),
    ],
)
def test_another_file_is_no_report(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ReportError, match=problem):
        Report.read(path)
    with pytest.raises(ReportError, match="No such file"):
        Report.read(tmp_path / "absent")


@given(values=st.lists(numbers, max_size=12))
def test_a_spread_is_around_its_median(values: list[float]) -> None:
    spread = Spread.of(values)
    if not values:
        assert spread is None
        return
    assert spread is not None
    assert spread.median == statistics.median(values)
    assert min(values) <= spread.low <= spread.median <= spread.high <= max(values)
    if len(values) < 5:
        assert (spread.low, spread.high) == (min(values), max(values))


def test_quartiles_leave_the_outliers_out() -> None:
    assert Spread.of([1, 100, 101, 102, 900]) == Spread(101, 100, 102)


def bare(target: str, number: int, rate: float, *steps: Step) -> Cell:
    return Cell(target, number, rate, limited=False, resolved=True, steps=steps)


def report_of(*cells: Cell) -> Report:
    report = compare_reports.ladder(0)
    report.cells = list(cells)
    return report


def test_ratios_are_taken_within_a_round() -> None:
    """The machine is four times as fast in the second round; the ratio is 2 all the same."""
    rows = summarize(
        report_of(
            *(bare(BASELINE, number, rate) for number, rate in enumerate((100.0, 400.0, 100.0))),
            *(bare("ring", number, rate) for number, rate in enumerate((200.0, 800.0, 210.0))),
        )
    )
    assert [(row.subject.key, row.rounds, row.ratio) for row in rows] == [
        (BASELINE, 3, Spread(1.0, 1.0, 1.0)),
        ("ring", 3, Spread(2.0, 2.0, 2.1)),
    ]


def test_without_the_baseline_there_is_no_ratio() -> None:
    (row,) = summarize(report_of(bare("ring", 0, 100.0)))
    assert row.ratio is None
    rows = summarize(report_of(bare(BASELINE, 0, 0.0), bare("ring", 0, 100.0)))
    assert [row.ratio for row in rows] == [None, None]


def test_a_search_that_was_broken_off_counts_as_a_disturbance_and_not_as_a_rate() -> None:
    broken = dataclasses.replace(bare("ring", 0, 0.0), resolved=False)
    calm = Step("latency-50", 50, 50, 50, 0, 1)
    report = report_of(broken, bare("ring", 1, 100.0, calm))
    (row,) = summarize(report)
    assert (row.rounds, row.rate.low) == (1, 100.0)
    assert disturbed(report) == (2, 3)
    (row,) = summarize(report_of(broken))
    assert row.rate.median == 0
    (row,) = summarize(report_of(bare("ring", 0, 0.0), bare("ring", 1, 100.0)))
    assert row.rate.low == 0, "a server that answers nothing does count"


def test_overload_and_latency_are_found_by_phase() -> None:
    steps = [
        Step("cpu", 90, 90, 90, 0, 1, {"p50": 1.0}, cpu=7.5),
        Step("overload-1.5", 150, 150, 80, 0.4, 1, {"p50": 1.0}),
        Step("overload-2", 200, 170, 60, 0.6, 1, {"p50": 1.0}),
        Step("latency-50", 50, 50, 50, 0, 1, {"p50": 20.0, "p99": 90.0}),
        Step("search", 130, 130, 90, 0.2, 1, {"p50": 1.0}, cpu=None),
    ]
    (row,) = summarize(report_of(bare("ring", 0, 100.0, *steps)))
    assert row.cpu == Spread(7.5, 7.5, 7.5)
    assert {times: (each.goodput.median, each.factor) for times, each in row.overload.items()} == {
        1.5: (0.8, 1.5),
        2.0: (0.6, 1.7),
    }
    assert {load: set(each) for load, each in row.latency.items()} == {50: {"p50", "p99"}}
    assert row.latency[50]["p99"].median == 90
    assert row.curve == [(50, 50), (100.0, 100.0), (150, 80), (170, 60)]
    assert (130, 90) in row.load


def test_a_row_for_every_target_with_results_in_the_reports_order() -> None:
    report = compare_reports.ladder(3)
    report.cells = [cell for cell in report.cells if cell.target != "stund"]
    rows = summarize(report)
    assert [row.subject.key for row in rows] == [
        each.key for each in report.subjects if each.key != "stund"
    ]
    for row in rows:
        assert set(row.latency) == set(LOADS)
        assert set(row.overload) == set(OVERLOADS)
