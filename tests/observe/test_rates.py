"""What happened between two snapshots: never negative, and it adds up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.observe import SIZES, Count, Snapshot, Task, Worker, compare
from tests.observe.services import AFTER, BEFORE, INFO, STREAM, WORKER

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTS = st.integers(0, 1 << 64)
NAMES = ("success", "error", "not_stun", "short", "vlan")


def tables(*names: str) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, COUNTS))


WORKERS = st.builds(
    Worker,
    number=st.just(0),
    task=st.sampled_from([Task("streams", None), Task("exporter", None), Task("datagrams", 7)]),
    pid=st.integers(0, 9),
    starts=COUNTS,
    age=st.floats(0, 1e6),
    received=tables("none", "ipv4", "ipv6"),
    outcomes=tables(*NAMES),
    outcomes_by_family=st.just({}),
    counters=tables("sent", "send_calls", "ring_drops", "of a later version"),
    send_errors=tables("eagain", "other"),
    receive_sizes=st.lists(COUNTS, max_size=16).map(tuple),
    send_sizes=st.lists(COUNTS, max_size=16).map(tuple),
    ring_ready=COUNTS,
    ring_peak=COUNTS,
    connections=COUNTS,
    socket_drops=st.none() | COUNTS,
    socket_fill=st.floats(0, 1),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    info = replace(
        INFO,
        pid=draw(st.integers(1, 2)),
        ring=draw(st.sampled_from([None, {"block_count": 0}, {"block_count": 64}])),
    )
    workers = draw(st.lists(WORKERS, max_size=3))
    return Snapshot(info, draw(st.floats(0, 1e9)), tuple(workers))


def counts(of: object) -> Iterator[Count]:
    """Every count in a view."""
    if isinstance(of, Count):
        yield of
    elif isinstance(of, dict):
        for each in of.values():
            yield from counts(each)
    elif isinstance(of, tuple):
        for each in of:
            yield from counts(each)
    elif hasattr(of, "__dataclass_fields__"):
        for name in of.__dataclass_fields__:
            yield from counts(getattr(of, name))


@given(st.none() | snapshots(), snapshots())
def test_no_rate_is_negative_whatever_became_of_the_counters(
    before: Snapshot | None, after: Snapshot
) -> None:
    view = compare(before, after)
    found = list(counts(view))
    assert all(each.rate is None or each.rate >= 0 for each in found)
    assert all(each.total >= 0 for each in found)
    for share in (each.fill for each in (*view.workers, view.total)):
        assert share is None or 0 <= share <= 1
    for batches in (view.received_batches, view.sent_batches):
        assert batches.mean is None or batches.mean >= 0
        if batches.shares is not None:
            assert len(batches.shares) == len(SIZES)
            assert sum(batches.shares) == pytest.approx(1)


@given(snapshots(), st.data())
def test_the_parts_add_up(before: Snapshot, data: st.DataObject) -> None:
    """The total of all workers is the sum of theirs, and so are the reasons of drops."""
    workers = [data.draw(WORKERS) for _ in before.workers]
    after = Snapshot(before.info, before.at + 2, tuple(workers))
    view = compare(before, after)
    for name in ("received", "answered", "dropped"):
        each = [getattr(worker, name) for worker in view.workers]
        assert getattr(view.total, name).total == sum(count.total for count in each)
        if each:
            total = sum(count.rate for count in each)
            assert getattr(view.total, name).rate == pytest.approx(total)
    assert sum(count.total for count in view.drops.values()) == view.total.dropped.total
    assert 0 not in [count.total for count in view.drops.values()]


def test_rates_are_per_second() -> None:
    view = compare(BEFORE, AFTER)
    first, second, stream = view.workers
    assert first.received == Count(2_400_006, 120_000.3)
    assert first.answered.rate == second.answered.rate == 119_000.5
    assert stream.received.rate == 51.2
    assert view.total.lost == Count(68, 3.4)
    assert list(view.drops.items()) == [
        ("not_stun", Count(36_004, 1800.2)),
        ("rate_limited", Count(3_992, 199.6)),
    ]
    assert view.send_errors == {"eagain": Count(48, 2.4)}
    assert view.counters["connections"] == Count(120, 6.0)
    assert view.connections == 12


def test_the_first_look_knows_no_rates() -> None:
    assert {each.rate for each in counts(compare(None, AFTER))} == {None}


@pytest.mark.parametrize("change", [{"pid": 1}, {"started": 1.0}])
def test_another_service_is_not_compared_with(change: dict[str, Any]) -> None:
    other = replace(BEFORE, info=replace(INFO, **change))
    assert {each.rate for each in counts(compare(other, AFTER))} == {None}


def test_an_upgrade_is_no_other_service() -> None:
    old = replace(BEFORE, info=replace(INFO, version="1.2.2"))
    assert compare(old, AFTER).total.received.rate == compare(BEFORE, AFTER).total.received.rate


def test_a_counter_that_began_anew_counts_from_zero() -> None:
    small = replace(WORKER, received={"ipv4": 50})
    after = Snapshot(INFO, 110.0, (small, *BEFORE.workers[1:]))
    assert compare(BEFORE, after).workers[0].received == Count(50, 5.0)


def test_no_time_no_rate() -> None:
    assert compare(AFTER, AFTER).total.received.rate is None


def test_batches() -> None:
    view = compare(BEFORE, AFTER)
    # Blocks and calls of the two workers for datagrams; streams come one by one.
    assert view.received_batches.mean == pytest.approx(1_200_003 / 70_003)
    assert view.received_batches.shares == pytest.approx(
        [each / 70_003 for each in (10_000, 20_000, 10_000, 5_000, 20_000, 1_000, 4_000, 3)]
    )
    assert view.sent_batches.mean == 17


def test_replies_on_connections_are_in_no_batch() -> None:
    stream = replace(STREAM, counters={**STREAM.counters, "sent": 1_000_000})
    view = compare(None, Snapshot(INFO, 110.0, (WORKER, stream)))
    assert view.sent_batches.mean == 17


def test_the_ring_in_parts_of_it() -> None:
    first, _, stream = compare(BEFORE, AFTER).workers
    assert (first.fill, first.peak) == (3 / 256, 130 / 256)
    assert (stream.fill, stream.peak, stream.lost) == (None, None, None)


def test_how_full_a_ring_is_whose_loop_stands_still_nobody_knows() -> None:
    ill = replace(WORKER, age=5.0)
    view = compare(None, replace(AFTER, workers=(ill, WORKER)))
    assert (view.workers[0].fill, view.workers[0].peak) == (None, 130 / 256)
    assert view.total.fill == 3 / 256


def test_sockets_in_the_place_of_a_ring() -> None:
    info = replace(INFO, ring=None)
    old, new = (replace(WORKER, socket_drops=drops, socket_fill=0.25) for drops in (7, 27))
    view = compare(Snapshot(info, 1.0, (old, STREAM)), Snapshot(info, 3.0, (new, STREAM)))
    (first, stream), total = view.workers, view.total
    assert first.lost == total.lost == Count(27, 10.0)
    assert (first.fill, first.peak) == (total.fill, total.peak) == (0.25, None)
    assert (stream.lost, stream.fill) == (None, None)


def test_of_all_the_worst() -> None:
    ill = replace(STREAM, age=5.0), replace(WORKER, pid=0)
    view = compare(None, replace(AFTER, workers=(WORKER, *ill)))
    assert [each.state for each in view.workers] == ["running", "stuck", "down"]
    assert view.total.state == "down"
    assert view.total.age == 5.0
    assert view.problems == (
        "stream worker stuck, its loop stood still for 5.0 s",
        "worker 0 is down",
    )
