"""The comparison as a table for the terminal, with the notes without which it would mislead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from tools.compare.results import (
    BASELINE,
    DISTURBED,
    LOADS,
    OVERLOADS,
    QUARTILES_FROM,
    Report,
    Row,
    Spread,
    disturbed,
    summarize,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

_STOLEN = 0.01  # of the time, above which it is said
_TEXT = 100  # columns of a note
_REACHED = 0.95  # of an overload that was asked for; below that the table says what was reached


def show(report: Report, console: Console) -> None:
    """Print the table of a report and its notes."""
    rows = summarize(report)
    console.print(_table(rows))
    for note in notes(report, rows):
        console.print("- " + note, highlight=False, markup=False, width=_TEXT)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("replies/s\nno loss", justify="right", no_wrap=True)
    repeated = any(row.rounds > 1 for row in rows)
    if repeated:
        table.add_column("range\n1000s", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    if repeated:
        table.add_column("range", justify="right", no_wrap=True)
    table.add_column("CPU us\n/reply", justify="right", no_wrap=True)
    for times in OVERLOADS:
        table.add_column(f"goodput\nat {times:g}x", justify="right", no_wrap=True)
    for load in LOADS:
        table.add_column(f"ms at {load}%\np50 p99", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.subject.title,
            _rate(row),
            *([_range(row)] if repeated else []),
            "" if row.ratio is None else f"{row.ratio.median:.2f}",
            *([_ratio_range(row)] if repeated else []),
            "" if row.cpu is None else f"{row.cpu.median:.2f}",
            *(_overload(row, times) for times in OVERLOADS),
            *(_latency(row.latency.get(load, {})) for load in LOADS),
        )
    return table


def _rate(row: Row) -> str:
    if not row.rate.median:
        return "none"
    mark = ">= " if row.limited else "" if row.resolved else "~ "
    return mark + f"{row.rate.median:,.0f}"


def _range(row: Row) -> str:
    rate = row.rate
    return f"{rate.low / 1000:.3g}-{rate.high / 1000:.3g}" if rate.median else ""


def _ratio_range(row: Row) -> str:
    return f"{row.ratio.low:.2g}-{row.ratio.high:.2g}" if row.ratio else ""


def _overload(row: Row, times: float) -> str:
    overload = row.overload.get(times)
    if overload is None:
        return ""
    reached = f" {overload.factor:.1f}x" if overload.factor < _REACHED * times else ""
    return f"{overload.goodput.median:.0%}{reached}"


def _latency(percentiles: Mapping[str, Spread]) -> str:
    if not percentiles:
        return ""
    return " ".join(
        _milliseconds(percentiles[name].median) if name in percentiles else "-"
        for name in ("p50", "p99")
    )


def _milliseconds(microseconds: float) -> str:
    """Two digits, and never an exponent."""
    value = microseconds / 1000
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def notes(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a reader of the numbers has to know, a sentence or two each."""
    yield from _circumstances(report)
    yield from _meanings(report, rows)
    for row in rows:
        if row.subject.note:
            yield f"{row.subject.title}: {row.subject.note}"
    for what, why in report.left_out.items():
        yield f"Left out: {what} ({why})."


def _circumstances(report: Report) -> Iterator[str]:
    settings = report.settings
    machine = report.machine
    if report.interrupted:
        yield "Interrupted: these are the rounds up to then."
    lossy, calm = disturbed(report)
    if lossy > DISTURBED * calm:
        yield (
            f"Disturbed: {lossy} of {calm} steps at half of the rate or less lost replies. "
            "Something else had the CPUs meanwhile; the rates are too low and the latencies too "
            "high. Repeat it on a quiet machine, or allow more pauses: --pauses 0.4."
        )
    if settings["stolen"] > _STOLEN:
        yield f"The hypervisor gave {settings['stolen']:.1%} of the CPU time to others."
    yield (
        f"{machine['cpu']}, {machine['cores']}, {machine['hypervisor']}, kernel "
        f"{machine['kernel']}, {report.date}. Only the ratios carry over to another machine."
    )
    server = f"server and its receive queues on CPU {settings['server_cpus']}"
    if settings["generator_cpu"] is not None:
        server = f"generator on CPU {settings['generator_cpu']}, {server}"
    yield f"{settings['place']}; {server}. {settings['priorities']}."


def _meanings(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    settings = report.settings
    rounds = max((row.rounds for row in rows), default=0)
    ranges = "one round, so no range"
    if rounds > 1:
        kind = "quartiles" if rounds >= QUARTILES_FROM else "min-max"
        ranges = f"medians of {rounds} interleaved rounds, the range is {kind}"
    yield (
        f"Without loss: at most {settings['loss']:g} of the requests unanswered in a step of "
        f"{2 * settings['seconds']:.1f} s, but for the {settings['pauses']:.0%} of its 10 ms "
        f"slices that lost most, which are the machine's pauses; {ranges}."
    )
    if any(row.ratio for row in rows):
        yield f"Ratios are to {BASELINE}, within a round."
    peak = max((offered for row in rows for offered, _ in row.load), default=0.0)
    yield f"The most that the generator offered in any step: {peak:,.0f} requests/s."
    if any(row.limited for row in rows):
        yield ">=: the generator could offer no more; the server can do more than that."
    if any(not row.rate.median for row in rows):
        yield "none: no rate that was tried passed without loss."
    if any(not row.resolved and row.rate.median for row in rows):
        yield "~: the search ran out of time or was disturbed; the rate is a lower bound."
    if any(
        overload.factor < _REACHED * times
        for row in rows
        for times, overload in row.overload.items()
    ):
        yield (
            "Goodput with a second number: the generator could give no more than that many times "
            "the rate."
        )
    if any(row.cpu for row in rows):
        yield (
            "CPU us per reply: all time of the server's CPUs that was not idle, interrupts and "
            "kernel threads included, at 90 % of the rate; measured by a process that runs only "
            "when nothing else does."
        )
