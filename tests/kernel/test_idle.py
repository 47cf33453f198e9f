"""The idle-time meter in this thread; beside others it is tests/tools/test_idle_meter.py."""

from __future__ import annotations

import time

import pytest

from pktstun.kernel.idle import IdleMeter

pytestmark = [pytest.mark.native, pytest.mark.alone]


def test_a_measurement_is_as_long_as_asked_for() -> None:
    meter = IdleMeter()
    assert meter.threshold >= 1000
    for seconds in (0.001, 0.05, 0.25):
        elapsed, idle = meter.measure(seconds)
        assert elapsed >= seconds
        assert 0 < idle <= elapsed


def test_no_time_is_measured_for_no_time() -> None:
    assert IdleMeter().measure(0) == (0, 0)


def test_idle_time_is_the_cpu_time_of_this_thread_without_interruptions() -> None:
    """Whatever else runs: the thread reads the clock all the time that it is given."""
    meter = IdleMeter()
    before = time.thread_time()
    _, idle = meter.measure(0.5)
    own = time.thread_time() - before
    assert own / 2 < idle <= own + 0.001
