"""tools/compare/search.py against simulated servers: every shape of overload, and hiccups."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.compare.search import LOSS, Knee, Outcome, Probe, search

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    Server = Callable[[float], Outcome]

knees = st.floats(100, 5e6)


def play(searching: Generator[Probe, Outcome, Knee], server: Server) -> tuple[Knee, list[Probe]]:
    probes = [next(searching)]
    while True:
        try:
            probes.append(searching.send(server(probes[-1].rate)))
        except StopIteration as stop:
            return stop.value, probes


def simulate(knee: float, collapse: float, ceiling: float = math.inf) -> Server:
    """A server that loses nothing up to its knee, and beyond it answers less the more is asked.

    `collapse` 0 keeps the full rate under any overload, 1 answers half of it at twice the rate.
    """

    def server(rate: float) -> Outcome:
        offered = min(rate, ceiling)
        if offered <= knee:
            return Outcome(offered, offered, 0.0)
        answered = min(knee * (knee / offered) ** collapse, offered * (1 - 2 * LOSS))
        return Outcome(offered, answered, 1 - answered / offered)

    return server


@given(knee=knees, collapse=st.floats(0, 20), start=st.floats(0, 2e7))
def test_the_knee_is_found_wherever_the_search_begins(
    knee: float, collapse: float, start: float
) -> None:
    result, probes = play(search(start), simulate(knee, collapse))
    assert result.resolved
    assert not result.limited
    assert result.rate <= knee <= 1.03 * result.rate * (1 + 1e-9)
    assert probes[-1] == Probe(result.rate, confirm=True)
    # At most the doublings from one end of the range to the other, and the halvings of a doubling.
    assert len(probes) <= 45


@given(knee=knees, collapse=st.floats(0, 3), error=st.floats(0.9, 1.05))
def test_a_good_starting_point_saves_probes(knee: float, collapse: float, error: float) -> None:
    _, probes = play(search(knee * error), simulate(knee, collapse))
    assert len(probes) <= 12


@given(
    knee=knees,
    start=st.floats(100, 5e6),
    disturbances=st.sets(st.integers(0, 40), max_size=20),
)
def test_losses_of_a_disturbed_machine_count_for_nothing(
    knee: float, start: float, disturbances: set[int]
) -> None:
    """However many there are, one after the other."""
    server = simulate(knee, 1.0)
    numbers = itertools.count()

    def disturbed(rate: float) -> Outcome:
        if next(numbers) in disturbances:
            return Outcome(rate, 0.0, 1.0, disturbed=True)
        return server(rate)

    result, _ = play(search(start, probes=100), disturbed)
    assert result == play(search(start, probes=100), server)[0]


@given(knee=knees, collapse=st.floats(0, 3), start=st.floats(100, 5e6), data=st.data())
def test_a_hiccup_changes_nothing(
    knee: float, collapse: float, start: float, data: st.DataObject
) -> None:
    """The machine pauses in any steps, as long as it does not in the step after it too."""
    server = simulate(knee, collapse)
    pauses = False

    def hiccuping(rate: float) -> Outcome:
        nonlocal pauses
        pauses = not pauses and data.draw(st.booleans())
        outcome = server(rate)
        return outcome._replace(loss=max(outcome.loss, 0.3)) if pauses else outcome

    calm, _ = play(search(start), server)
    assert play(search(start, probes=120), hiccuping)[0] == calm


@given(knee=knees, collapse=st.floats(0, 3), start=st.floats(100, 5e6), data=st.data())
def test_a_pause_of_the_generator_is_not_its_limit(
    knee: float, collapse: float, start: float, data: st.DataObject
) -> None:
    pauses = False

    def pausing(rate: float) -> Outcome:
        nonlocal pauses
        pauses = not pauses and data.draw(st.booleans())
        return simulate(knee, collapse)(rate * 0.8 if pauses else rate)

    result, _ = play(search(start, probes=120), pausing)
    assert result.resolved
    assert not result.limited
    assert result.rate <= knee <= 1.03 * result.rate * (1 + 1e-9)


@given(knee=knees, collapse=st.floats(0, 3), ceiling=knees, start=knees)
def test_the_generators_limit_is_told_from_the_servers(
    knee: float, collapse: float, ceiling: float, start: float
) -> None:
    result, _ = play(search(start), simulate(knee, collapse, ceiling))
    if result.limited:
        assert result.rate == pytest.approx(ceiling)
        assert ceiling <= knee
    else:
        assert result.rate <= knee <= 1.03 * result.rate * (1 + 1e-9)


@given(knee=knees, collapse=st.floats(0, 3), start=knees, probes=st.integers(0, 20))
def test_no_more_probes_than_allowed_and_no_claim_that_was_not_seen(
    knee: float, collapse: float, start: float, probes: int
) -> None:
    server = simulate(knee, collapse)
    tried: list[float] = []

    def counting(rate: float) -> Outcome:
        tried.append(rate)
        return server(rate)

    searching = search(start, probes=probes)
    if not probes:
        with pytest.raises(StopIteration) as stop:
            next(searching)
        assert stop.value.value == Knee(0.0, limited=False, resolved=False)
        return
    result, _ = play(searching, counting)
    assert len(tried) <= probes
    assert result.rate == 0 or result.rate in tried
    assert result.rate <= knee


@pytest.mark.parametrize("start", [0.0, 1e6])
def test_a_server_that_answers_nothing_has_the_rate_0(start: float) -> None:
    result, probes = play(search(start), lambda rate: Outcome(rate, 0.0, 1.0))
    assert result == Knee(0.0, limited=False, resolved=True)
    assert len(probes) <= 30


def test_what_passed_when_the_generator_fell_short_is_not_forgotten() -> None:
    searching = search(100_000, probes=2)
    next(searching)
    searching.send(Outcome(100_000, 98_000, 0.02))
    with pytest.raises(StopIteration) as stop:
        searching.send(Outcome(90_000, 90_000, 0.0))
    assert stop.value.value == Knee(90_000, limited=False, resolved=False)


def test_a_knee_that_fails_the_longer_step_is_lowered() -> None:
    """Short steps of this server look good up to 100,000, the long ones up to 90,000."""
    searching = search(95_000)
    probe = next(searching)
    while True:
        limit = 90_000 if probe.confirm else 100_000
        try:
            probe = searching.send(simulate(limit, 0)(probe.rate))
        except StopIteration as stop:
            result = stop.value
            break
    assert result.resolved
    assert 80_000 <= result.rate <= 90_000


def test_a_rate_that_passed_short_steps_only_is_better_than_none() -> None:
    searching = search(95_000, probes=10)
    probe = next(searching)
    while True:
        limit = 0 if probe.confirm else 100_000
        try:
            probe = searching.send(simulate(limit, 0)(probe.rate))
        except StopIteration as stop:
            result = stop.value
            break
    assert not result.resolved
    assert 95_000 <= result.rate <= 100_000
