"""Log records that repeat themselves, by a clock that is set by hand."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pktstun.repeats import Repeats


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def record(text: str = "no %s", cause: str | None = "accept", burst: int = 1) -> logging.LogRecord:
    made = logging.LogRecord("pktstun", logging.WARNING, "", 0, text, ("room",), None)
    if cause is not None:
        vars(made).update(cause=cause, burst=burst)
    return made


def words(records: list[logging.LogRecord]) -> list[str]:
    return [each.getMessage() for each in records]


def test_the_first_comes_at_once_and_the_others_as_a_count() -> None:
    clock = Clock()
    repeats = Repeats(60.0, clock)
    first = record()
    assert repeats.admit(first) is first
    assert [repeats.admit(record()) for _ in range(7)] == [None] * 7
    clock.now += 59
    assert repeats.due() == []
    clock.now += 1
    assert words(repeats.due()) == ["no room (7 more times in the last 60 s)"]
    assert repeats.due() == []


def test_what_goes_on_is_a_line_in_each_interval_and_what_has_stopped_none() -> None:
    clock = Clock()
    repeats = Repeats(60.0, clock)
    repeats.admit(record(burst=3))
    lines = []
    for second in range(600):
        if second < 180:
            assert (repeats.admit(record(burst=3)) is None) is (second >= 2)
        clock.now += 1
        lines += words(repeats.due())
    counts = [int(line.partition("(")[2].split()[0]) for line in lines]
    assert counts == [58, 60, 60]
    again = record(burst=3)
    assert repeats.admit(again) is again


def test_a_record_after_the_interval_brings_the_count_along() -> None:
    clock = Clock()
    repeats = Repeats(60.0, clock)
    for _ in range(3):
        repeats.admit(record())
    clock.now += 61
    admitted = repeats.admit(record("now no %s"))
    assert admitted is not None
    assert admitted.getMessage() == "now no room (3 more times in the last 61 s)"
    assert repeats.admit(record()) is None


def test_the_latest_is_what_is_written() -> None:
    repeats = Repeats(60.0, Clock())
    for text in ("first %s", "second %s", "third %s"):
        repeats.admit(record(text))
    (last,) = repeats.rest()
    assert last.getMessage().startswith("third room (2 more times")
    assert vars(last)["repeats"] == 2
    assert repeats.rest() == []


def test_what_is_worse_is_not_held_back_by_what_is_not() -> None:
    clock = Clock()
    repeats = Repeats(60.0, clock)
    repeats.admit(record("fine %s"))
    worse = record("bad %s")
    worse.levelno = logging.ERROR
    assert repeats.admit(worse) is worse
    again = record("bad again %s")
    again.levelno = logging.ERROR
    assert repeats.admit(again) is None
    assert repeats.admit(record("fine %s")) is None
    clock.now += 60
    assert words(repeats.due()) == ["bad again room (2 more times in the last 60 s)"]


def test_once_more_is_not_a_number() -> None:
    repeats = Repeats(60.0, Clock())
    repeats.admit(record())
    repeats.admit(record())
    assert "(once more in" in words(repeats.rest())[0]


def test_causes_do_not_wait_for_each_other() -> None:
    repeats = Repeats(60.0, Clock())
    for cause in ("one", "other", None, None):
        made = record(cause=cause)
        assert repeats.admit(made) is made


def test_without_an_interval_every_record_passes() -> None:
    repeats = Repeats(0.0, Clock())
    for _ in range(5):
        made = record()
        assert repeats.admit(made) is made
    assert repeats.due() == []


def test_a_child_says_what_it_says_itself() -> None:
    """And of its own end no more than what the parent has left of it."""
    clock = Clock()
    repeats = Repeats(60.0, clock)
    for _ in range(4):
        repeats.admit(record(cause="worker 0 ended", burst=3))
    repeats.admit(record())
    repeats.admit(record())
    repeats.fork("worker 0 ended", 3)
    assert repeats.rest() == []
    assert repeats.admit(record(cause=None)) is not None


def test_a_child_that_comes_too_often_is_not_heard() -> None:
    repeats = Repeats(60.0, Clock())
    for _ in range(4):
        repeats.admit(record(cause="worker 0 ended", burst=3))
    repeats.fork("worker 0 ended", 3)
    assert repeats.admit(record(cause=None)) is None


@given(
    st.lists(st.one_of(st.none(), st.floats(0.001, 50)), max_size=60),
    st.integers(1, 4),
)
def test_every_record_is_written_or_counted(steps: list[float | None], burst: int) -> None:
    """Steps are seconds that pass, or None for a record."""
    clock = Clock()
    repeats = Repeats(60.0, clock)
    lines = []
    for step in steps:
        if step is None:
            admitted = repeats.admit(record(burst=burst))
            lines += [] if admitted is None else [admitted]
        else:
            clock.now += step
            lines += repeats.due()
    lines += repeats.rest()
    total = 0
    for line in words(lines):
        count = re.search(r"\((once|\d+) more", line)
        total += 1 if count is None or count[1] == "once" else int(count[1])
    assert total == steps.count(None)
    intervals = sum(step or 0 for step in steps) / 60 + 1
    assert len(lines) <= burst * intervals + 2
