"""Shared settings: how hard hypothesis tries, the laboratory's fixtures, and no skips in CI."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.lab import hosts_fixture, lab_fixture  # noqa: F401 - fixtures, found by name
from tests.stream_client import authority_fixture  # noqa: F401 - the same

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# A shell that runs the tests in the background has it ignored, and so would their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Generating a frame takes longer than the code under test; a slow machine is no failure.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", _PATIENT, max_examples=100)
settings.register_profile("ci", _PATIENT, max_examples=30, derandomize=True, print_blob=True)
# Few and always the same: for runs that are about which lines run, or repeated for each mutant.
settings.register_profile("brief", _PATIENT, max_examples=25, derandomize=True, database=None)
settings.register_profile("nightly", _PATIENT, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


# What takes seconds each. The first have fixtures that several processes would make several times.
_FIRST = {"test_packaging.py", "test_guide.py"}
_LONG = {"test_dev.py", "test_doctor.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread what takes long, so that it is not what is left in the end, between other modules."""
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.path, []).append(item)
    first = [item for path, own in modules.items() if path.name in _FIRST for item in own]
    long = [item for path, own in modules.items() if path.name in _LONG for item in own]
    short = [own for path, own in modules.items() if path.name not in _FIRST | _LONG]
    share = len(long) / max(1, len(short))
    items[:] = first
    for number, own in enumerate(short):
        items += own
        items += long[round(number * share) : round((number + 1) * share)]
    items += long[round(len(short) * share) :]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip is for a missing privilege on somebody's machine; in CI it is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and "CI" in os.environ:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr}"
    return report
