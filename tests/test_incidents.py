"""What is said of counters that grow, by a clock that is set by hand."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.incidents import Incidents, Line
from pktstun.stats import SEND_ERRORS, VERDICTS, SharedPage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pktstun.stats import Slot


@dataclass
class Service:
    """A page with two workers, and a look at it every second."""

    slots: tuple[Slot, ...]
    now: float = 1000.0
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.incidents = Incidents(lambda: self.now)
        self.look(0)

    def look(self, seconds: int, every: float = 60.0) -> list[Line]:
        """Let so many seconds pass; return what was said."""
        said: list[Line] = []
        for _ in range(max(1, seconds)):
            self.now += seconds > 0
            workers = [(f"worker {n}", slot.read()) for n, slot in enumerate(self.slots)]
            said += self.incidents.look(workers, every)
        self.lines += said
        return said


@pytest.fixture(name="service")
def service_fixture() -> Iterator[Service]:
    with SharedPage(2) as page:
        yield Service(page.slots)


def test_nothing_is_said_of_what_goes_well(service: Service) -> None:
    for slot in service.slots:
        slot.pointer.received[1] = slot.pointer.sent = 1000
        slot.pointer.verdicts[1][VERDICTS["success"]] = 1000
    assert service.look(300) == []


def test_what_was_counted_before_is_no_news(service: Service) -> None:
    service.slots[0].pointer.ring_drops = 5
    service.incidents = Incidents(lambda: service.now)
    assert service.look(10) == []


def test_an_incident_begins_lasts_and_ends(service: Service) -> None:
    drops = service.slots[1].pointer
    drops.ring_drops += 5
    (began,) = service.look(1)
    assert began.level == logging.WARNING
    assert began.text.startswith("5 requests were lost because a ring was full (worker 1): ")
    assert "--blocks" in began.text
    assert began.fields == {"incident": "ring_drops", "state": "began", "count": 5}
    for _ in range(59):
        drops.ring_drops += 1
        assert service.look(1) == []
    drops.ring_drops += 1
    (lasts,) = service.look(1)
    assert lasts.text.startswith("60 requests were lost because a ring was full in the last 60 s")
    assert service.look(59) == []
    (over,) = service.look(1)
    assert over.level == logging.INFO
    assert over.text == "over: 65 requests were lost because a ring was full within 60 s"
    assert over.fields["state"] == "over"
    assert service.look(300) == []
    drops.ring_drops += 1
    assert [line.fields["state"] for line in service.look(200)] == ["began", "over"]


@pytest.mark.parametrize("name", ["eperm", "enobufs", "other"])
def test_each_error_of_sending_is_a_cause_of_its_own(service: Service, name: str) -> None:
    service.slots[0].pointer.send_errors[SEND_ERRORS[name]] += 2
    (line,) = service.look(1)
    assert line.fields["incident"] == f"send_error.{name}"
    assert f"({name.upper()})" in line.text


@pytest.mark.parametrize("reason", ["over_budget", "internal_error"])
def test_drops_that_mean_harm_are_told(service: Service, reason: str) -> None:
    service.slots[0].pointer.verdicts[1][VERDICTS[reason]] += 1
    service.slots[1].pointer.verdicts[2][VERDICTS[reason]] += 2
    (line,) = service.look(1)
    assert line.fields == {"incident": reason, "state": "began", "count": 3}
    assert "(worker 0, worker 1)" in line.text


@pytest.mark.parametrize("counter", ["over_limit", "connections_refused", "ring_corrupt"])
def test_so_are_other_counters(service: Service, counter: str) -> None:
    setattr(service.slots[0].pointer, counter, 7)
    (line,) = service.look(1)
    assert (line.fields["incident"], line.fields["count"]) == (counter, 7)


def test_a_service_without_workers_has_no_incidents() -> None:
    assert Incidents().look([]) == []


@given(st.lists(st.integers(0, 3), max_size=300), st.sampled_from([0.0, 1.0, 10.0, 60.0]))
def test_every_loss_is_in_some_line_and_there_is_one_in_an_interval(
    losses: list[int], every: float
) -> None:
    with SharedPage(1) as page:
        service = Service(page.slots)
        times: list[float] = []
        for loss in losses:
            page.slots[0].pointer.ring_drops += loss
            times += [service.now] * len(service.look(1, every))
        service.look(130, every)
        told = [line for line in service.lines if line.fields["state"] != "over"]
        assert sum(int(str(line.fields["count"])) for line in told) == sum(losses)
        assert all(later - earlier >= every for earlier, later in pairwise(times))
        if service.lines:
            assert service.lines[-1].fields["state"] == "over"
