"""What `pktstun top` shows: a view as lines that fit a terminal, from 80 columns by 24 lines on.

Theory of operation: what matters most comes first, and every part has its place whatever its
numbers are, so that the eye finds it again. Tables lose rows where lines are few: workers that
are well before those that are not, and reasons that are rare. Nothing is said by colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from . import _words as words
from ._rates import Count, View, WorkerRates
from ._report import batch_table, details

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH, HEIGHT = 80, 24
"""The smallest terminal in which everything has room."""

_FEWEST_REASONS = 3
_HALF = 38
"""Columns of one of two tables side by side."""


class Style(Enum):
    """How a line may be set off, where a terminal can do that."""

    PLAIN = ""
    TITLE = "title"
    HEAD = "head"
    BAD = "bad"


class Line(NamedTuple):
    """A line of the screen."""

    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class Probe:
    """What became of the requests to the service itself."""

    server: str
    sent: int = 0
    answered: int = 0
    median: float | None = None
    """Seconds."""
    longest: float | None = None
    problem: str | None = None
    """Of the last one."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a screen shows."""

    view: View | None
    """None while there is nothing to see."""
    clock: str
    """The time of day."""
    now: float
    """The same in seconds since the epoch."""
    probe: Probe | None = None
    """None where nothing is asked."""
    note: str = ""
    """What has become of the service itself."""
    keys: str = ""
    """What the keys do."""


def render(scene: Scene, width: int = WIDTH, height: int = HEIGHT) -> list[Line]:
    """Return the lines of a screen.

    Args:
        scene: what to show.
        width: columns, which no line exceeds.
        height: lines, which are not exceeded if there are `HEIGHT` at least.
    """
    lines = _head(scene, width)
    if scene.view is not None:
        lines += _body(scene.view, max(height, HEIGHT) - len(lines))
    return [Line(_cut(line.text, width), line.style) for line in lines]


def _head(scene: Scene, width: int) -> list[Line]:
    view = scene.view
    title = "pktstun"
    lines = []
    if view is not None:
        info = view.info
        up = words.span(scene.now - info.started)
        title = f"pktstun {info.version}, pid {info.pid}, {words.way(info)}, up {up}"
        lines.append(Line(_serving(view, width)))
    lines.insert(0, Line(_both(title, scene.clock, width), Style.TITLE))
    if scene.probe is not None:
        lines.append(Line(_probe(scene.probe)))
    said = "; ".join([*([scene.note] if scene.note else ()), *(view.problems if view else ())])
    lines.append(Line(_both(said, scene.keys, width), Style.BAD if said else Style.PLAIN))
    return lines


def _serving(view: View, width: int) -> str:
    info = view.info
    also = [name for name, there in (("TCP", info.tcp), ("TLS", info.tls)) if there]
    if info.auth:
        also.append(f"{info.auth} credentials")
    if info.rate_limit is not None:
        also.append(f"limit {info.rate_limit.get('rate')}/s")
    end = "".join(f", {each}" for each in also)
    for shown in range(len(info.serving), 0, -1):
        more = info.serving_count - shown
        text = f"serving {', '.join(info.serving[:shown])}{f' and {more} more' if more else ''}"
        if len(text + end) <= width or shown == 1:
            return text + end
    return f"serving no address{end}"


def _probe(probe: Probe) -> str:
    if not probe.sent:
        return f"probe   {probe.problem or 'no answer yet'}, {probe.server}"
    said = ""
    if probe.median is not None and probe.longest is not None:
        said = f"p50 {words.milliseconds(probe.median)}, max {words.milliseconds(probe.longest)}, "
    problem = f"{probe.problem}, " if probe.problem else ""
    return f"probe   {said}{probe.answered} of {probe.sent} answered, {problem}{probe.server}"


def _body(view: View, room: int) -> list[Line]:
    batches = [Line(each) for each in batch_table(view)]
    more = [Line(f"{name.ljust(8)}{said}") for name, said in details(view)]
    # Heads, the line of all workers, and the empty ones between the parts.
    room -= len(batches) + len(more) + 6
    reasons = max(len(view.drops), len(view.send_errors), 1)
    rows = min(len(view.workers), max(1, room - min(reasons, _FEWEST_REASONS)))
    workers = _workers(view, rows)
    drops = _drops(view, max(1, room - rows))
    empty = Line("")
    return [
        *workers,
        empty,
        Line(batches[0].text, Style.HEAD),
        *batches[1:],
        empty,
        *drops,
        *([empty, *more] if more else ()),
    ]


def _workers(view: View, rows: int) -> list[Line]:
    head = ("worker", "received/s", "answered/s", "dropped/s", "fill", "peak", "lost/s", "starts")
    shown = list(view.workers)
    if rows < len(shown):
        # The ill ones first, and of the others those with the smallest numbers.
        order = sorted(shown, key=lambda each: (each.state == "running", shown.index(each)))
        kept = order[: rows - 1]
        shown = [each for each in shown if each in kept]
    cells = [(*head, "beat"), *(_row(each) for each in [*shown, view.total])]
    widths = (9, 10, 10, 9, 4, 4, 6, 6, 5)
    padded = [
        [
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    texts = words.table(padded)
    lines = [Line(texts[0], Style.HEAD)]
    lines += [
        Line(text, Style.PLAIN if each.state == "running" else Style.BAD)
        for text, each in zip(texts[1:], shown, strict=False)
    ]
    if len(shown) < len(view.workers):
        lines.append(Line(f"and {len(view.workers) - len(shown)} more workers"))
    return [*lines, Line(texts[-1])]


def _row(worker: WorkerRates) -> tuple[str, ...]:
    return (
        worker.name,
        words.rate(worker.received.rate),
        words.rate(worker.answered.rate),
        words.rate(worker.dropped.rate),
        words.percent(worker.fill),
        words.percent(worker.peak),
        words.rate(worker.lost.rate, 6) if worker.lost is not None else words.UNKNOWN,
        words.number(worker.starts, 6),
        words.age(worker.age) if worker.state == "running" else worker.state,
    )


def _drops(view: View, rows: int) -> list[Line]:
    left = _reasons("dropped", view.drops, rows)
    right = _reasons("send errors", view.send_errors, rows)
    texts = [
        f"{one.ljust(_HALF)}    {other}".rstrip()
        for one, other in zip_longest(left, right, fillvalue="")
    ]
    return [Line(texts[0], Style.HEAD), *map(Line, texts[1:])]


def _reasons(title: str, counts: Mapping[str, Count], rows: int) -> list[str]:
    shown = dict(counts)
    if len(shown) > rows:
        names = list(shown)
        rest = [shown.pop(name) for name in names[rows - 1 :]]
        rates = [each.rate for each in rest if each.rate is not None]
        shown[f"{len(rest)} others"] = Count(
            sum(each.total for each in rest), sum(rates) if rates else None
        )
    lines = [f"{title:<18}{'/s':>9}{'so far':>11}"]
    lines += [
        f"{name[:18]:<18}{words.rate(each.rate):>9}{words.number(each.total):>11}"
        for name, each in shown.items()
    ]
    return lines if shown else [*lines, "none"]


def _both(left: str, right: str, width: int) -> str:
    """Return a line with something at its left end and something at its right one."""
    room = width - len(right) - 1
    return f"{_cut(left, room):<{room}} {right}" if right and room > 0 else left


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 3)]}..."[:width]
