"""The retransmission timer: RFC 8489 section 6.2.1 to the second, and a model of the rest."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.stun import Action, Transaction

# Binary fractions, so that sums are exact and a deadline can be hit.
quarters = st.integers(0, 400).map(lambda n: n / 4)


def follow(transaction: Transaction) -> list[tuple[float, Action]]:
    """Poll at every deadline until it fails, which is all that a punctual caller does."""
    happened = []
    for _ in range(20):
        now = transaction.deadline
        action = transaction.poll(now)
        happened.append((now, action))
        if action is Action.FAIL:
            return happened
    pytest.fail(f"it goes on and on: {happened}")


def test_the_schedule_of_rfc_8489() -> None:
    requests = [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    transaction = Transaction(0)
    assert follow(transaction) == [*((now, Action.SEND) for now in requests), (39.5, Action.FAIL)]
    assert transaction.sent == 7


@given(quarters)
def test_the_schedule_begins_when_the_transaction_does(start: float) -> None:
    shifted = [(start + now, action) for now, action in follow(Transaction(0))]
    assert follow(Transaction(start)) == shifted


@pytest.mark.parametrize(
    ("rto", "requests", "last_wait", "times"),
    [
        (0.5, 1, 16, [0, 8]),
        (0.5, 2, 16, [0, 0.5, 8.5]),
        (0.5, 3, 1, [0, 0.5, 1.5, 2]),
        (2.0, 4, 3, [0, 2, 6, 14, 20]),
    ],
)
def test_other_numbers(rto: float, requests: int, last_wait: int, times: list[float]) -> None:
    transaction = Transaction(0, rto=rto, requests=requests, last_wait=last_wait)
    assert [now for now, _ in follow(transaction)] == times
    assert transaction.sent == requests


@given(
    start=quarters,
    rto=st.sampled_from([0.25, 0.5, 1.0, 3.0]),
    requests=st.integers(1, 8),
    last_wait=st.integers(1, 20),
    steps=st.lists(quarters | st.sampled_from([0.0, 0.25, 0.5])),
)
def test_any_caller_sees_what_the_model_says(
    start: float, rto: float, requests: int, last_wait: int, steps: list[float]
) -> None:
    """The model is a list of waits, each of which begins when the one before it was over."""
    waits = [rto * 2**n for n in range(requests - 1)] + [rto * last_wait, math.inf]
    transaction = Transaction(start, rto=rto, requests=requests, last_wait=last_wait)
    now = due = start
    sent = 0
    for step in [0.0, *steps]:
        now += step
        expected = Action.WAIT
        if now >= due and sent < requests:
            expected = Action.SEND
            due = now + waits[sent]
            sent += 1
        elif now >= due:
            expected = Action.FAIL
        assert transaction.poll(now) is expected
        assert transaction.sent == sent
        assert transaction.deadline == due


def test_a_caller_who_comes_early_changes_nothing() -> None:
    transaction = Transaction(10)
    assert transaction.poll(9) is Action.WAIT
    assert transaction.sent == 0
    assert transaction.poll(10) is Action.SEND
    assert transaction.poll(10) is Action.WAIT
    assert transaction.poll(10.49) is Action.WAIT
    assert transaction.deadline == 10.5


def test_a_pause_does_not_pile_up_requests() -> None:
    transaction = Transaction(0)
    transaction.poll(0)
    assert transaction.poll(100) is Action.SEND
    assert transaction.poll(100) is Action.WAIT
    assert transaction.deadline == 101


def test_failure_is_for_good() -> None:
    transaction = Transaction(0, requests=1, last_wait=1)
    assert follow(transaction)[-1] == (0.5, Action.FAIL)
    assert transaction.poll(0.5) is Action.FAIL
    assert transaction.poll(1000) is Action.FAIL
    assert transaction.sent == 1


@pytest.mark.parametrize(
    "numbers",
    [{"rto": 0}, {"rto": -0.5}, {"requests": 0}, {"requests": -1}, {"last_wait": 0}],
    ids=str,
)
def test_numbers_that_are_not_positive_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Transaction(0, **numbers)
