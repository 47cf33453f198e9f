"""Prints the scorecard at the end of a run, with the lines of all its processes."""

from __future__ import annotations

from dataclasses import astuple
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


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # of a process of pytest-xdist
    if output is not None:
        output["scorecard"] = [astuple(row) for row in scorecard.ROWS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    output = getattr(node, "workeroutput", {})  # none of one that has crashed
    scorecard.ROWS += [scorecard.Row(*row) for row in output.get("scorecard", ())]


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
