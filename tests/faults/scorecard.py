"""The scorecard: what each fault was expected to do, and what it was measured to do.

A run is short, for every change, or full (PKTSTUN_FAULTS=full, which `dev.py test --faults`
sets): then every fault is repeated as often as the scorecard says. The table comes at the end of
the run, from tests/faults/conftest.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL = os.environ.get("PKTSTUN_FAULTS") == "full"


@dataclass(frozen=True, order=True)
class Row:
    """A line of the table."""

    number: int
    variant: str
    fault: str
    expected: str
    measured: str


ROWS: list[Row] = []
LOADS: list[int] = []
"""Half of the rate without loss, in requests a second, when a full run has found it."""


def modes(*names: str, short: Sequence[str] = ()) -> list[str]:
    """Return the modes for this run: a short one leaves ring out, which direct has inside.

    Or it has those of `short`, where what it takes seconds to try is the same in all.
    """
    if FULL or "direct" not in names:
        return list(names)
    return list(short) or [name for name in names if name != "ring"]


def times(short: int, full: int) -> int:
    """Return how often to repeat something in this run."""
    return full if FULL else short


def record(number: int, variant: str, fault: str, expected: str, measured: str) -> None:
    """Note a line; call it before the assertions, so that a failure is in the table."""
    ROWS.append(Row(number, variant, fault, expected, measured))


def table() -> list[str]:
    """Return the lines of the table, in Markdown."""
    lines = ["| # | fault | mode | must hold | measured |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.number} | {row.fault} | {row.variant} | {row.expected} | {row.measured} |"
        for row in sorted(set(ROWS))
    ]
    if LOADS:
        lines += ["", f"Load: {LOADS[-1]:,} requests/s, half of what recvmmsg answers here."]
    return lines
