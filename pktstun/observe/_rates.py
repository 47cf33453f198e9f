"""From two snapshots to what happened between them: rates, shares, means.

Theory of operation: counters only grow, over deaths of workers, reloads and upgrades. Only a
service that is started again begins at 0, and then there is nothing to compare: its rates are
unknown until there is a second snapshot of it. Should a counter be less than before all the same,
it has begun anew, and what it shows has happened since. So no rate is ever negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ._service import STATES, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._service import Info, Snapshot

SIZES = ("1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127", "128+")
"""What batches are sorted into: messages in a call, or in a block of the ring."""


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened."""

    total: int
    """Since the service started."""
    rate: float | None
    """In a second, lately; None where that is not known."""


@dataclass(frozen=True, slots=True)
class WorkerRates:
    """One worker, or all of them together."""

    name: str
    state: str
    """As `Worker.state`; of all, the worst."""
    received: Count
    answered: Count
    dropped: Count
    lost: Count | None
    """What its ring, or its sockets, had no room for; None where that is not known."""
    fill: float | None
    """Share of the ring or the sockets' buffer that waits to be read, 0 to 1; of all, the most.
    None where nobody knows."""
    peak: float | None
    """The largest share since the ring is there."""
    starts: int
    age: float
    """Seconds since the last pass of the loop; of all, the longest."""


@dataclass(frozen=True, slots=True)
class Batches:
    """How many messages one system call, or one block of the ring, had."""

    mean: float | None
    """None where there was no call."""
    shares: tuple[float, ...] | None
    """Of the calls, by `SIZES`; None where there was none, or they are not counted."""


@dataclass(frozen=True, slots=True)
class View:
    """What there is to see of a service."""

    info: Info
    problems: tuple[str, ...]
    workers: tuple[WorkerRates, ...]
    total: WorkerRates
    drops: Mapping[str, Count]
    """By reason, what is dropped most comes first; only where there is any."""
    send_errors: Mapping[str, Count]
    """The same by errno."""
    counters: Mapping[str, Count]
    """The other counters, of all workers together."""
    connections: int
    """That are open."""
    received_batches: Batches
    sent_batches: Batches


def compare(before: Snapshot | None, after: Snapshot) -> View:
    """Return what happened between two snapshots of a service.

    Args:
        before: None, or of a service that is another: what happened since the start, then, and
            all rates are unknown.
        after: the later one.
    """
    is_same = before is not None and before.info.identity == after.info.identity
    if before is not None and is_same and len(before.workers) == len(after.workers):
        earlier = before.workers
        seconds = after.at - before.at if after.at > before.at else None
    else:
        earlier = tuple(map(_at_its_start, after.workers))
        seconds = None
    pairs = _Pairs(tuple(zip(earlier, after.workers, strict=True)), seconds)
    workers = tuple(pairs.worker(*pair, after.info.blocks) for pair in pairs.pairs)
    return View(
        info=after.info,
        problems=tuple(after.problems),
        workers=workers,
        total=_total(workers),
        drops=_ordered(pairs.counts(lambda worker: worker.dropped)),
        send_errors=_ordered(pairs.counts(lambda worker: worker.send_errors)),
        counters=pairs.counts(lambda worker: worker.counters),
        connections=sum(each.connections for each in after.workers),
        received_batches=pairs.received_batches(),
        sent_batches=pairs.sent_batches(),
    )


def change(before: int, after: int) -> int:
    """Return how much a counter grew; one that is less than before has begun at 0."""
    return after - before if after >= before else after


def _at_its_start(worker: Worker) -> Worker:
    return replace(
        worker,
        socket_drops=0,
        received={},
        outcomes={},
        counters={},
        send_errors={},
        receive_sizes=(),
        send_sizes=(),
    )


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Every worker before and after."""

    pairs: tuple[tuple[Worker, Worker], ...]
    seconds: float | None
    """Between the two; None where rates cannot be told."""

    def count(self, before: int, after: int) -> Count:
        if self.seconds is None:
            return Count(after, None)
        return Count(after, change(before, after) / self.seconds)

    def counts(self, kind: Callable[[Worker], Mapping[str, int]]) -> dict[str, Count]:
        """Return some named counters of all workers together."""
        found: dict[str, Count] = {}
        for old, new in self.pairs:
            before = kind(old)
            for name, total in kind(new).items():
                count = self.count(before.get(name, 0), total)
                found[name] = _add([found[name], count]) if name in found else count
        return found

    def worker(self, old: Worker, new: Worker, blocks: int) -> WorkerRates:
        has_ring = blocks > 0 and new.task.cpu is not None
        lost, fill = None, None
        if has_ring:
            drops = (each.counters.get("ring_drops", 0) for each in (old, new))
            lost = self.count(*drops)
            # The loop counts it, if it turns.
            fill = min(1.0, new.ring_ready / blocks) if new.state == "running" else None
        elif new.socket_drops is not None:
            lost, fill = self.count(old.socket_drops or 0, new.socket_drops), new.socket_fill
        return WorkerRates(
            name=new.name,
            state=new.state,
            received=self.count(old.total_received, new.total_received),
            answered=self.count(old.answered, new.answered),
            dropped=self.count(sum(old.dropped.values()), sum(new.dropped.values())),
            lost=lost,
            fill=fill,
            peak=min(1.0, new.ring_peak / blocks) if has_ring else None,
            starts=new.starts,
            age=new.age,
        )

    def _packet_pairs(self) -> list[tuple[Worker, Worker]]:
        """Return those that read and send by the batch, as nobody does on streams."""
        return [pair for pair in self.pairs if pair[1].task.cpu is not None]

    def received_batches(self) -> Batches:
        pairs = self._packet_pairs()
        sizes = _sizes([(old.receive_sizes, new.receive_sizes) for old, new in pairs])
        messages = sum(change(old.total_received, new.total_received) for old, new in pairs)
        return _batches(messages, sum(sizes), sizes)

    def sent_batches(self) -> Batches:
        pairs = self._packet_pairs()
        sizes = _sizes([(old.send_sizes, new.send_sizes) for old, new in pairs])
        messages, calls = (
            sum(change(old.counters.get(name, 0), new.counters.get(name, 0)) for old, new in pairs)
            for name in ("sent", "send_calls")
        )
        return _batches(messages, calls, sizes)


def _total(workers: Sequence[WorkerRates]) -> WorkerRates:
    lost = [each.lost for each in workers if each.lost is not None]
    return WorkerRates(
        name="all",
        state=max((each.state for each in workers), key=STATES.index, default=STATES[0]),
        received=_add([each.received for each in workers]),
        answered=_add([each.answered for each in workers]),
        dropped=_add([each.dropped for each in workers]),
        lost=_add(lost) if lost else None,
        fill=max((each.fill for each in workers if each.fill is not None), default=None),
        peak=max((each.peak for each in workers if each.peak is not None), default=None),
        starts=sum(each.starts for each in workers),
        age=max((each.age for each in workers), default=0.0),
    )


def _add(counts: Sequence[Count]) -> Count:
    rates = [each.rate for each in counts if each.rate is not None]
    return Count(sum(each.total for each in counts), sum(rates) if rates else None)


def _ordered(counts: Mapping[str, Count]) -> dict[str, Count]:
    names = [name for name, each in counts.items() if each.total]
    names.sort(key=lambda name: (-(counts[name].rate or 0), -counts[name].total, name))
    return {name: counts[name] for name in names}


def _sizes(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[int]:
    """Return how often there was each of `SIZES`."""
    found = [0 for _ in SIZES]
    for old, new in pairs:
        for index, after in enumerate(new):
            before = old[index] if index < len(old) else 0
            found[min(index, len(SIZES) - 1)] += change(before, after)
    return found


def _batches(messages: int, calls: int, sizes: Sequence[int]) -> Batches:
    known = sum(sizes)
    return Batches(
        messages / calls if calls else None,
        tuple(size / known for size in sizes) if known else None,
    )
