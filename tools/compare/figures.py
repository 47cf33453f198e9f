"""The comparison as pictures: SVG, or PNG where the file's name ends in .png.

Theory of operation. Each way of answering has one colour, which is the same in all panels. The
colours are those of Okabe and Ito, which stay apart for colour-blind readers; other programs are
grey. Names stand beside what they name; a legend would send the eye to and fro. The figures are
made for a column of 900 pixels.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tools.compare.results import (
    BASELINE,
    DISTURBED,
    LOADS,
    Report,
    Row,
    Spread,
    disturbed,
    summarize,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

_STYLE: Any = {  # its type has a name for every key, and they differ between versions
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 8.5,
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#999999",
    "xtick.labelcolor": "#444444",
    "xtick.labelsize": 8.5,
    "ytick.color": "#999999",
    "ytick.labelcolor": "#444444",
    "ytick.labelsize": 8.5,
    "figure.facecolor": "white",
    "svg.hashsalt": "pktstun",  # the same report gives the same file
}
_COLOURS = {
    "single": "#CC79A7",
    "single-all": "#8F4E73",
    "recvmmsg": "#56B4E9",
    "ring": "#0072B2",
    "ring-takeover": "#003F63",
    "direct": "#009E73",
    "takeover": "#D55E00",
}
_GREYS = ("#8A8A8A", "#5E5E5E", "#B0B0B0", "#3A3A3A")
_PERCENTILE = {"p50": "median", "p99": "99 %"}
_INK = "#222222"


def draw(report: Report, path: Path) -> None:
    """Draw a report: a ladder of targets, or a sweep if that is what it holds."""
    rows = [row for row in summarize(report) if row.rate.median]
    with rc_context(_STYLE):
        swept = any(row.subject.setting for row in rows)
        figure = _sweep(rows) if swept else _ladder(rows)
        _footer(figure, report)
        # matplotlib writes the time of day into a file unless told not to.
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None}
        figure.savefig(path, dpi=200, metadata=metadata)


def colours(rows: Sequence[Row]) -> dict[str, str]:
    """Return the colour of each row by its key."""
    others = [row.subject.key for row in rows if row.subject.key not in _COLOURS]
    greys = {key: _GREYS[number % len(_GREYS)] for number, key in enumerate(others)}
    return {**_COLOURS, **greys}


def _ladder(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(9, 6.3))
    grid = figure.add_gridspec(
        2, 2, width_ratios=(1.0, 1.12), left=0.135, right=0.892, top=0.935, bottom=0.135,
        wspace=0.2, hspace=0.46,
    )  # fmt: skip
    colour = colours(rows)
    _rates(figure.add_subplot(grid[:, 0]), rows, colour)
    _goodput(figure.add_subplot(grid[0, 1]), rows, colour)
    _latencies(figure.add_subplot(grid[1, 1]), rows, colour)
    return figure


def _rates(axes: Axes, rows: Sequence[Row], colour: Mapping[str, str]) -> None:
    """Bars from the slowest to the fastest, each with its range and its ratio."""
    ordered = sorted(rows, key=lambda row: row.rate.median)
    longest = max((row.rate.high for row in ordered), default=1.0)
    for place, row in enumerate(ordered):
        rate = row.rate
        axes.barh(place, rate.median, height=0.66, color=colour[row.subject.key])
        if row.rounds > 1:
            axes.plot((rate.low, rate.high), (place, place), color=_INK, linewidth=1.2)
            for end in (rate.low, rate.high):
                axes.plot((end, end), (place - 0.1, place + 0.1), color=_INK, linewidth=1.2)
        at_least = "\u2265 " if row.limited else ""
        text = at_least + _short(rate.median)
        axes.annotate(
            text,
            (rate.high, place),
            xytext=(6, 0 if row.ratio is None else 5.5),
            textcoords="offset points",
            va="center",
            weight="bold",
            color=_INK,
        )
        if row.ratio is not None:
            reference = row.subject.key == BASELINE
            axes.annotate(
                "1\u00d7 (reference)" if reference else f"{row.ratio.median:.2g}\u00d7",
                (rate.high, place),
                xytext=(6, -6),
                textcoords="offset points",
                va="center",
                size=8,
                color="#555555",
            )
    axes.set_yticks(range(len(ordered)), [_two_lines(row.subject.title) for row in ordered])
    for label, row in zip(axes.get_yticklabels(), ordered, strict=True):
        label.set(color=_darker(colour[row.subject.key]), size=9.5, weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.28)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_tick))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("replies per second")
    axes.set_title("Answered without loss", x=-0.02)


def _goodput(axes: Axes, rows: Sequence[Row], colour: Mapping[str, str]) -> None:
    """Draw what was answered of what was offered: who keeps the rate when there is too much.

    The axis ends a little beyond twice the fastest one's rate; the lines go on to the flood.
    """
    top = max((row.rate.median for row in rows), default=1.0)
    right = 2.15 * top
    highest = max(_height_at(row.curve, x) for row in rows for x in (top, 1.5 * top, right))
    highest = 1.12 * max(top, highest)
    axes.plot((0, top), (0, top), color="#bbbbbb", linewidth=1, linestyle=(0, (4, 3)))
    ends = []
    for row in rows:
        key = row.subject.key
        inside = [each for each in (*row.load, *row.curve) if each[0] <= right]
        axes.plot(*zip(*inside, strict=True), ".", markersize=3, color=colour[key], alpha=0.3,
                  markeredgewidth=0)  # fmt: skip
        axes.plot(*zip(*row.curve, strict=True), color=colour[key], linewidth=1.8)
        ends.append(_height_at(row.curve, right))
    axes.set_xlim(0, right)
    axes.set_ylim(0, highest)
    heights = _apart([y / highest for y in ends], gap=0.085)
    for row, height in zip(rows, heights, strict=True):
        axes.annotate(
            row.subject.title,
            (1.0, height),
            xytext=(5, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            size=7.5,
            color=_darker(colour[row.subject.key]),
            annotation_clip=False,
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(FuncFormatter(_short_tick))
    axes.grid()
    axes.set_xlabel("requests offered per second")
    axes.set_title("Replies per second under overload")


def _latencies(axes: Axes, rows: Sequence[Row], colour: Mapping[str, str]) -> None:
    """Ranges from the median to the 99.9th percentile, of each way at each load."""
    ordered = sorted(rows, key=lambda row: row.rate.median)
    width = len(ordered) + 1.5
    for group, load in enumerate(LOADS):
        for place, row in enumerate(ordered):
            latency = row.latency.get(load, {})
            if "p50" not in latency:
                continue
            x = group * width + place
            tone = colour[row.subject.key]
            middle = latency["p50"].median
            worst = [latency[name].median for name in ("p99", "p99.9") if name in latency]
            if worst:
                axes.plot((x, x), (middle, worst[-1]), color=tone, linewidth=3.5, alpha=0.45,
                          solid_capstyle="butt")  # fmt: skip
                axes.plot((x, x), (middle, worst[0]), color=tone, linewidth=3.5,
                          solid_capstyle="butt")  # fmt: skip
            axes.plot(x, middle, "o", color=tone, markersize=6)
    _time_axis(axes)
    centres = [group * width + (len(ordered) - 1) / 2 for group in range(len(LOADS))]
    axes.set_xticks(centres, [f"{load} % of its rate" for load in LOADS])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    axes.set_title("Latency: median \u25cf to 99 %, pale to 99.9 %")


def _sweep(rows: Sequence[Row]) -> Figure:
    """Small multiples: a row of panels for each setting."""
    settings = list(dict.fromkeys(row.subject.setting for row in rows))
    figure = Figure(figsize=(9, 0.9 + 2.3 * len(settings)))
    bottom = 0.75 / figure.get_figheight()
    grid = figure.add_gridspec(
        len(settings), 3, left=0.075, right=0.905, top=1 - 0.4 / figure.get_figheight(),
        bottom=bottom + 0.02, wspace=0.28, hspace=0.62,
    )  # fmt: skip
    for line, setting in enumerate(settings):
        swept = [row for row in rows if row.subject.setting == setting]
        panels = [figure.add_subplot(grid[line, column]) for column in range(3)]
        _sweep_line(panels, swept)
        panels[0].set_title("Replies/s without loss")
        panels[1].set_title("CPU \u00b5s per reply")
        panels[2].set_title("Latency by load")
        mode = swept[0].subject.title.rpartition(", ")[0]
        for axes in panels:
            axes.set_xlabel(f"{mode} --{setting}")
    return figure


def _sweep_line(panels: Sequence[Axes], rows: Sequence[Row]) -> None:
    colour = _COLOURS["ring"]
    places = range(len(rows))
    for axes, spreads in (
        (panels[0], [row.rate for row in rows]),
        (panels[1], [row.cpu for row in rows]),
    ):
        _band(axes, spreads, colour)
        axes.set_ylim(0)
    panels[0].yaxis.set_major_formatter(FuncFormatter(_short_tick))
    ends = []
    for load, tone in ((1, _COLOURS["takeover"]), (50, colour)):
        for name, style in (("p50", "-"), ("p99", (0, (2, 1.5)))):
            found = [
                (place, row.latency[load][name].median)
                for place, row in zip(places, rows, strict=True)
                if name in row.latency.get(load, {})
            ]
            if found:
                panels[2].plot(*zip(*found, strict=True), color=tone, linestyle=style, marker=".")
                ends.append((found[-1], f"{load} %, {_PERCENTILE[name]}", tone))
    _time_axis(panels[2])
    _name_ends(panels[2], ends)
    for axes in panels:
        axes.set_xticks(places, [_value(row.subject.value) for row in rows])
        axes.set_xlim(-0.3, len(rows) - 0.3)
        axes.grid(axis="y")


def _name_ends(axes: Axes, ends: Sequence[tuple[tuple[float, float], str, str]]) -> None:
    """Write names to the right of where lines end, on a logarithmic axis."""
    low, high = (math.log10(end) for end in axes.get_ylim())
    shares = [(math.log10(y) - low) / (high - low) for (_, y), _, _ in ends]
    heights = _apart(shares, gap=0.1)
    for (_, text, tone), height in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            (1.0, height),
            xycoords="axes fraction",
            va="center",
            size=7.5,
            color=_darker(tone),
            annotation_clip=False,
        )


def _time_axis(axes: Axes) -> None:
    """Make the y-axis one of logarithmic times."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1,) if high / low > 30 else (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(10, subs=subs))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(_time_tick))


def _band(axes: Axes, spreads: Sequence[Spread | None], colour: str) -> None:
    known = [(place, spread) for place, spread in enumerate(spreads) if spread is not None]
    places = [place for place, _ in known]
    axes.fill_between(
        places,
        [spread.low for _, spread in known],
        [spread.high for _, spread in known],
        color=colour,
        alpha=0.2,
        linewidth=0,
    )
    axes.plot(places, [spread.median for _, spread in known], color=colour, marker=".")


def _footer(figure: Figure, report: Report) -> None:
    """Say what it was measured on: a picture travels without its table."""
    machine, settings = report.machine, report.settings
    rounds = len({cell.round for cell in report.cells})
    where = f"{settings['place']}; {machine['cpu']}, {machine['hypervisor']}"
    how = f"{rounds} interleaved round{'' if rounds == 1 else 's'}; without loss: at most"
    lines = [
        f"{where}, kernel {machine['kernel']}, {report.date[:10]}.",
        f"{how} {settings['loss']:g} unanswered but for the machine's pauses. Ratios carry over.",
    ]
    lossy, calm = disturbed(report)
    if lossy > DISTURBED * calm:
        lines[1] = "Disturbed: something else had the CPUs meanwhile. The rates are too low."
    for number, line in enumerate(lines):
        figure.text(
            0.01,
            (0.3 - 0.17 * number) / figure.get_figheight(),
            line,
            size=7.5,
            color="#777777",
            va="center",
        )


def _height_at(curve: Sequence[tuple[float, float]], x: float) -> float:
    """Return y where the curve passes x; the nearest end's if it does not."""
    for (left, low), (right, high) in pairwise(curve):
        if left <= x < right:
            return low + (high - low) * (x - left) / (right - left)
    return curve[-1][1] if x >= curve[-1][0] else curve[0][1]


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights for labels at these heights so that none covers another.

    Where two are closer than `gap`, both give way; none goes below half a gap.
    """
    moved = [max(height, gap / 2) for height in heights]
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for _ in range(200):
        for low, high in pairwise(order):
            push = (gap - (moved[high] - moved[low])) / 2
            if push > 0:
                moved[low] = max(moved[low] - push, gap / 2)
                moved[high] += push
    return moved


def _short(number: float) -> str:
    """Write a rate with two or three digits: 950, 8.4k, 138k, 1.2M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            value = number / size
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return f"{number:.0f}"


def _short_tick(number: float, _position: int) -> str:
    return f"{number / 1e6:g}M" if number >= 1e6 else f"{number / 1e3:g}k" if number else "0"


def _time_tick(microseconds: float, _position: int) -> str:
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:g} s"
    return f"{microseconds / 1e3:g} ms" if microseconds >= 1e3 else f"{microseconds:g} \u00b5s"


def _value(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number / 1024:g}K" if number >= 4096 else f"{number:g}"


def _two_lines(title: str) -> str:
    """Break a long title where it is about half."""
    if len(title) <= 13:
        return title
    spaces = [place for place, letter in enumerate(title) if letter == " "]
    if not spaces:
        return title
    cut = min(spaces, key=lambda place: abs(place - len(title) / 2))
    return title[:cut] + "\n" + title[cut + 1 :]


def _darker(colour: str) -> str:
    """Return the colour, dark enough for text on white."""
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    light = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255
    scale = min(1.0, 0.42 / light) if light else 1.0
    return "#" + "".join(f"{round(part * scale):02x}" for part in parts)
