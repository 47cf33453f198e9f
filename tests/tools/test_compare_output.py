"""tools/compare/table.py and figures.py: what a reader is shown of a report."""

from __future__ import annotations

import dataclasses
import importlib
import io
import re
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.tools import compare_reports
from tools.compare import machine, table
from tools.compare.results import MACHINE, summarize

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from tools.compare.results import Report


def shown(report: Report) -> str:
    output = io.StringIO()
    table.show(report, Console(file=output, width=130))
    return output.getvalue()


def row_of(text: str, title: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(title))


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_table_has_a_row_for_each_target_uncut() -> None:
    report = compare_reports.ladder()
    text = shown(report)
    assert "\u2026" not in text
    for row in summarize(report):
        line = row_of(text, row.subject.title)
        assert f"{row.rate.median:,.0f}" in line
        assert row.ratio is not None
        assert f"{row.ratio.median:.2f}" in line
        assert f"{row.overload[1.5].goodput.median:.0%}" in line
    assert "medians of 5 interleaved rounds, the range is quartiles" in words(text)
    assert "Only the ratios carry over" in words(text)
    assert "at most 0.001 of the requests" in words(text)


def test_one_round_has_no_range() -> None:
    text = shown(compare_reports.ladder(1))
    assert "range " not in text.split("\n\n")[0]
    assert "one round, so no range" in words(text)
    assert "the range is min-max" in words(shown(compare_reports.ladder(2)))


def test_the_generators_limits_are_said() -> None:
    report = compare_reports.ladder(1)
    text = words(shown(report))
    assert "generator offered in any step: 1,000,000 requests/s" in text
    assert ">=" not in text
    assert "Goodput with a second number" in text, "takeover cannot be given twice its rate"
    report.cells = [
        dataclasses.replace(cell, limited=cell.target == "takeover") for cell in report.cells
    ]
    text = shown(report)
    assert row_of(text, "direct, takeover").split()[2] == ">="
    assert ">=: the generator could offer no more" in words(text)


def test_doubts_and_omissions_are_said() -> None:
    report = compare_reports.ladder(1)
    report.interrupted = True
    report.left_out = {"stund": "stund is not installed"}
    report.subjects = [
        dataclasses.replace(each, note="version 4.6.1.") for each in report.subjects[:2]
    ]
    report.cells = [dataclasses.replace(cell, resolved=False) for cell in report.cells]
    text = words(shown(report))
    for said in (
        "Interrupted",
        "Left out: stund (stund is not installed).",
        "coturn 4.6.1: version 4.6.1.",
        "~: the search ran out of time",
    ):
        assert said in text


def test_a_disturbed_machine_is_said_to_be_one() -> None:
    report = compare_reports.ladder(1)
    assert "Disturbed" not in shown(report)
    assert "hypervisor gave" not in shown(report)
    report.cells = [
        dataclasses.replace(
            cell,
            steps=[
                dataclasses.replace(step, loss=0.02) if step.phase == "latency-50" else step
                for step in cell.steps
            ],
        )
        for cell in report.cells
    ]
    report.settings = {**report.settings, "stolen": 0.034}
    text = words(shown(report))
    assert "Disturbed: 7 of 14 steps at half of the rate or less lost replies." in text
    assert "The hypervisor gave 3.4% of the CPU time to others." in text


def test_times_keep_two_digits() -> None:
    shown_times = [table._milliseconds(us) for us in (8.4, 63, 560, 1_680, 12_345, 180_000)]
    assert shown_times == ["0.0084", "0.063", "0.56", "1.7", "12", "180"]


# Pictures


def pictures() -> ModuleType:
    """The module, imported late: matplotlib's C++ cannot be loaded into a sanitized Python."""
    return importlib.import_module("tools.compare.figures")


@pytest.mark.parametrize("report", [compare_reports.ladder(), compare_reports.sweep()])
@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_report_is_the_same_picture(report: Report, suffix: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        pictures().draw(report, path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    if suffix == ".svg":
        assert ET.fromstring(first).tag.endswith("svg")
    else:
        assert first.startswith(b"\x89PNG")


def test_every_mode_has_its_colour_in_the_picture(tmp_path: Path) -> None:
    report = compare_reports.ladder()
    pictures().draw(report, tmp_path / "a.svg")
    drawn = set(re.findall(r"#[0-9a-f]{6}", (tmp_path / "a.svg").read_text()))
    colour = pictures().colours(summarize(report))
    used = [colour[each.key].lower() for each in report.subjects]
    assert len(set(used)) == len(used)
    assert set(used) <= drawn


def test_a_target_without_results_or_with_few_is_no_obstacle(tmp_path: Path) -> None:
    report = compare_reports.ladder(1)
    cells = {cell.target: cell for cell in report.cells}
    cells["coturn"] = dataclasses.replace(cells["coturn"], rate=0.0, steps=[])
    cells["stund"] = dataclasses.replace(
        cells["stund"],
        steps=[dataclasses.replace(each, latency={}, cpu=None) for each in cells["stund"].steps],
    )
    report.cells = list(cells.values())
    pictures().draw(report, tmp_path / "a.svg")
    assert row_of(shown(report), "coturn 4.6.1").split()[2:3] == ["none"]
    sweep = compare_reports.sweep(1)
    sweep.cells = [dataclasses.replace(cell, steps=[]) for cell in sweep.cells]
    pictures().draw(sweep, tmp_path / "b.svg")


@given(heights=st.lists(st.floats(-1, 2), min_size=1, max_size=8))
def test_labels_keep_their_order_and_their_distance(heights: list[float]) -> None:
    moved = pictures()._apart(heights, 0.1)
    assert min(moved) >= 0.05 - 1e-9
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for low, high in pairwise(order):
        assert moved[high] - moved[low] >= 0.1 - 0.02


def test_labels_with_room_stay_where_they_are() -> None:
    assert pictures()._apart([0.5, 0.1, 0.9], 0.1) == [0.5, 0.1, 0.9]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (8_420, "8.4k"), (138_400, "138k"), (1_240_000, "1.2M")],
)
def test_rates_are_short(number: float, text: str) -> None:
    assert pictures()._short(number) == text


def test_the_machine_is_described_in_words() -> None:
    described = machine.describe()
    assert set(described) == MACHINE
    assert all(described.values())
