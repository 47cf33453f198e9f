"""How often something may happen, by a clock that is set by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.pace import Pace


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_and_then_one_at_a_time() -> None:
    clock = Clock()
    pace = Pace(10.0, 3, clock)
    assert [pace.take() for _ in range(5)] == [True, True, True, False, False]
    assert pace.wait() == pytest.approx(10.0)
    clock.now += 6.0
    assert not pace.take()
    assert pace.wait() == pytest.approx(4.0)
    clock.now += 5.0
    assert pace.wait() == 0
    assert [pace.take(), pace.take()] == [True, False]


def test_what_is_not_used_is_not_saved_up_beyond_the_burst() -> None:
    clock = Clock()
    pace = Pace(1.0, 2, clock)
    clock.now += 1e6
    assert [pace.take() for _ in range(3)] == [True, True, False]


@given(
    every=st.floats(0.1, 100),
    burst=st.integers(1, 5),
    steps=st.lists(st.floats(0, 100), max_size=50),
)
def test_never_more_than_the_burst_and_what_was_earned(
    every: float, burst: int, steps: list[float]
) -> None:
    clock = Clock()
    pace = Pace(every, burst, clock)
    taken = 0
    for step in steps:
        clock.now += step
        taken += pace.take()
    assert taken <= burst + (clock.now - 1000.0) / every + 1e-6


@given(every=st.floats(0.1, 100), burst=st.integers(1, 5))
def test_who_waits_as_long_as_told_may(every: float, burst: int) -> None:
    clock = Clock()
    pace = Pace(every, burst, clock)
    for _ in range(burst):
        assert pace.take()
    clock.now += pace.wait() * (1 + 1e-9) + 1e-9
    assert pace.take()
