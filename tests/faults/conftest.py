"""Prints the scorecard at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults import scorecard
from tests.faults.load import find_half, spread_over_cpus
from tests.lab import require_root

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from tests.lab import Lab, TwoHosts

_FILE = Path(__file__).resolve().parents[2] / "build" / "faults.md"


@pytest.fixture(name="spread")
def spread_fixture(lab: Lab, hosts: TwoHosts) -> TwoHosts:
    """Two hosts, the server's requests spread over its CPUs."""
    require_root()
    spread_over_cpus(lab, hosts)
    if scorecard.FULL and not scorecard.LOADS:
        find_half(hosts)
    return hosts


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    if not scorecard.ROWS:
        return
    lines = scorecard.table()
    length = "full" if scorecard.FULL else "short"
    terminalreporter.section(f"scorecard ({length})")
    for line in lines:
        terminalreporter.write_line(line)
    _FILE.parent.mkdir(exist_ok=True)
    _FILE.write_text("\n".join(lines) + "\n")
