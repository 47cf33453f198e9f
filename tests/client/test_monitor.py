"""The monitor: every request is accounted for, and the numbers are right."""

from __future__ import annotations

import math
import statistics
import time
from array import array
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.client import SHORTEST_INTERVAL, QueryError, Sample, Summary, watch
from pktstun.stun import ErrorCode, Message, TransportAddress, XorMappedAddress
from tests.client.servers import ELSEWHERE, elsewhere, server

NEXT = TransportAddress.parse("203.0.113.9:4712")
watch_fast = partial(watch, interval=SHORTEST_INTERVAL, timeout=0.5)


def test_every_request_has_one_sample() -> None:
    def handler(request: Message, number: int) -> list[bytes]:
        if number == 2:
            return []
        if number == 3:
            return [request.failure(ErrorCode.of(500)).encode()]
        mapped = ELSEWHERE if number == 1 else NEXT
        # Whatever comes twice counts once.
        answers = [request.success(XorMappedAddress(mapped)).encode()] * 2
        noise = [b"noise", Message.request().success().encode(), request.encode()]
        return noise + answers if number == 4 else answers

    with server(handler) as at:
        samples = list(watch_fast(at, count=5))
    assert sorted(sample.sequence for sample in samples) == [1, 2, 3, 4, 5]
    problems = {sample.sequence: sample.problem for sample in samples}
    assert problems[1] is problems[4] is problems[5] is None
    assert problems[2] == "no answer in 0.5 s"
    assert problems[3] == "error 500 Server Error"

    summary = Summary()
    changes = [summary.add(sample) for sample in samples]
    assert (summary.sent, summary.received, summary.changes) == (5, 3, 1)
    assert summary.loss == pytest.approx(0.4)
    assert changes.count(True) == 1
    assert summary.mapped == NEXT


def test_it_ends_after_the_duration() -> None:
    begin = time.monotonic()
    with server(elsewhere) as at:
        samples = list(watch_fast(at, duration=0.5))
    assert len(samples) in {2, 3}
    assert time.monotonic() - begin < 5


def test_nobody_there_is_a_loss_with_a_reason() -> None:
    with server(elsewhere) as at:
        pass
    samples = list(watch_fast(at, count=2))
    assert [sample.problem for sample in samples] == ["Connection refused"] * 2


def test_a_short_interval_is_refused() -> None:
    with pytest.raises(QueryError, match=r"at least 0\.2 s"):
        next(watch(ELSEWHERE, interval=0.1))


latencies = st.lists(st.floats(0, 100), min_size=1, max_size=300)


@given(latencies, st.floats(0, 1))
def test_quantiles(values: list[float], share: float) -> None:
    summary = Summary(latencies=array("d", values))
    found = summary.quantile(share)
    assert found in values
    assert found is not None
    # At least that share is not above it, and less than that is below it.
    assert sum(value <= found for value in values) >= math.ceil(share * len(values))
    below = sum(value < found for value in values)
    assert below <= max(math.ceil(share * len(values)) - 1, 0)


@given(latencies)
def test_the_usual_quantiles(values: list[float]) -> None:
    summary = Summary(latencies=array("d", values))
    assert summary.quantile(0) == min(values)
    assert summary.quantile(1) == max(values)
    assert summary.quantile(0.5) == statistics.median_low(values)


@given(st.lists(st.none() | st.sampled_from([ELSEWHERE, NEXT])))
def test_counts(mapped: list[TransportAddress | None]) -> None:
    summary = Summary()
    for number, each in enumerate(mapped, 1):
        summary.add(Sample(number, 0.001 if each else None, each, None if each else "lost"))
    seen = [each for each in mapped if each]
    assert summary.sent == len(mapped)
    assert summary.received == len(seen)
    changes = sum(a != b for a, b in pairwise(seen))
    assert summary.changes == changes
    assert summary.quantile(0.5) == (0.001 if seen else None)
