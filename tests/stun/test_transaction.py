"""The retransmission timer: RFC 8489 section 6.2.1 to the second, and a model of the rest."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.stun import Action, Class, ErrorCode, Message, Method, Software, StunError, Transaction
from tests.strategies.datagrams import attribute, datagrams, message
from tests.strategies.stun import messages

REQUEST = Message.request(transaction_id=bytes(range(12)))

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
    transaction = Transaction(REQUEST, 0)
    assert follow(transaction) == [*((now, Action.SEND) for now in requests), (39.5, Action.FAIL)]
    assert transaction.sent == 7


@given(quarters)
def test_the_schedule_begins_when_the_transaction_does(start: float) -> None:
    shifted = [(start + now, action) for now, action in follow(Transaction(REQUEST, 0))]
    assert follow(Transaction(REQUEST, start)) == shifted


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
    transaction = Transaction(REQUEST, 0, rto=rto, requests=requests, last_wait=last_wait)
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
    transaction = Transaction(REQUEST, start, rto=rto, requests=requests, last_wait=last_wait)
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
    transaction = Transaction(REQUEST, 10)
    assert transaction.poll(9) is Action.WAIT
    assert transaction.sent == 0
    assert transaction.poll(10) is Action.SEND
    assert transaction.poll(10) is Action.WAIT
    assert transaction.poll(10.49) is Action.WAIT
    assert transaction.deadline == 10.5


def test_a_pause_does_not_pile_up_requests() -> None:
    transaction = Transaction(REQUEST, 0)
    transaction.poll(0)
    assert transaction.poll(100) is Action.SEND
    assert transaction.poll(100) is Action.WAIT
    assert transaction.deadline == 101


@pytest.mark.parametrize("message_class", [Class.INDICATION, Class.SUCCESS])
def test_a_transaction_begins_with_a_request(message_class: Class) -> None:
    with pytest.raises(StunError, match="begins with a request"):
        Transaction(Message(message_class), 0)


def test_a_response_that_is_refused_changes_nothing() -> None:
    transaction, other = Transaction(REQUEST, 0), Transaction(REQUEST, 0)
    for now in (0, 0.25, 0.5, 1, 2, 50, 100):
        assert transaction.receive(REQUEST.success().encode()) == REQUEST.success()
        assert transaction.poll(now) is other.poll(now)
        assert (transaction.sent, transaction.deadline) == (other.sent, other.deadline)


def test_failure_is_for_good() -> None:
    transaction = Transaction(REQUEST, 0, requests=1, last_wait=1)
    assert follow(transaction)[-1] == (0.5, Action.FAIL)
    assert transaction.poll(0.5) is Action.FAIL
    assert transaction.poll(1000) is Action.FAIL
    assert transaction.sent == 1


@pytest.mark.parametrize(
    "numbers",
    [
        {"rto": 0},
        {"rto": -0.5},
        {"rto": math.nan},
        {"rto": math.inf},
        {"requests": 0},
        {"requests": -1},
        {"requests": 65},
        {"last_wait": 0},
    ],
    ids=str,
)
def test_numbers_that_are_not_positive_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Transaction(REQUEST, 0, **numbers)


def test_over_a_reliable_transport_it_is_sent_once() -> None:
    """RFC 8489 section 6.2.2: Ti is 39.5 s."""
    transaction = Transaction.reliable(REQUEST, 1)
    assert follow(transaction) == [(1, Action.SEND), (40.5, Action.FAIL)]
    assert follow(Transaction.reliable(REQUEST, 0, timeout=5))[-1] == (5, Action.FAIL)


# --- Which datagram is the response ---


@pytest.mark.parametrize(
    "response", [REQUEST.success(), REQUEST.success(Software("a")), REQUEST.failure(ErrorCode(400))]
)
def test_a_response_is_received(response: Message) -> None:
    transaction = Transaction(REQUEST, 0)
    assert transaction.receive(response.encode()) == response
    assert transaction.receive(bytearray(response.with_fingerprint().encode())) is not None
    assert transaction.refused is None


@pytest.mark.parametrize(
    "other",
    [
        REQUEST,
        Message(Class.INDICATION, transaction_id=REQUEST.transaction_id),
        Message(Class.SUCCESS, Method.ALLOCATE, REQUEST.transaction_id),
        Message(Class.SUCCESS, Method.BINDING, bytes(12)),
    ],
)
def test_what_is_no_response_to_the_request_is_ignored(other: Message) -> None:
    transaction = Transaction(REQUEST, 0)
    assert transaction.receive(other.encode()) is None
    assert transaction.refused is None


def test_why_a_response_was_refused_is_kept() -> None:
    transaction = Transaction(REQUEST, 0)
    assert transaction.receive(b"") is None
    # Not about this request: nothing to tell.
    broken = attribute(0x8022, b"\xff")
    assert transaction.receive(message(broken, transaction_id=bytes(12))) is None
    assert transaction.refused is None
    assert transaction.receive(message(broken, field=0x0101)) is None
    assert re.match(r"the text of SOFTWARE .* byte 24", str(transaction.refused))


@given(datagrams() | messages().map(Message.encode))
def test_whatever_arrives_it_is_the_response_or_ignored(data: bytes) -> None:
    transaction = Transaction(REQUEST, 0)
    received = transaction.receive(data)
    if received is not None:
        assert received.transaction_id == REQUEST.transaction_id
        assert received.method == REQUEST.method
        assert received.message_class in {Class.SUCCESS, Class.ERROR}
    assert transaction.poll(0) is Action.SEND
