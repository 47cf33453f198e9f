"""What `pktstun status` prints: a snapshot as text for 80 columns, and as JSON for scripts.

The JSON document has a number, `schema`. As long as that is the same, what a name stands for
stays as it is, and names are only added.
"""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING, Any

from . import _words as words
from ._rates import SIZES, compare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ._rates import Count, View
    from ._service import Snapshot, Worker

SCHEMA = 1
WIDTH = 80

_NAME = 13
"""Columns of what is said on the right."""


def as_json(snapshots: Sequence[Snapshot], problems: Sequence[str] = ()) -> dict[str, Any]:
    """Return the document that stands for these services.

    Args:
        snapshots: one of each.
        problems: what kept others from being asked.
    """
    return {
        "schema": SCHEMA,
        "services": [_service_as_json(each) for each in snapshots],
        "problems": list(problems),
    }


def _service_as_json(snapshot: Snapshot) -> dict[str, object]:
    info = snapshot.info
    view = compare(None, snapshot)
    return {
        "socket": str(info.path),
        "version": info.version,
        "pid": info.pid,
        "started": info.started,
        "state": "degraded" if snapshot.problems else "serving",
        "problems": snapshot.problems,
        "mode": info.mode,
        "iface": info.iface,
        "takeover": info.takeover,
        "serving": list(info.serving),
        "serving_count": info.serving_count,
        "tcp": list(info.tcp),
        "tls": list(info.tls),
        "auth": info.auth,
        "rate_limit": info.rate_limit,
        "stream_limits": info.stream_limits,
        "ring": info.ring,
        "workers": [_worker_as_json(each, info.blocks) for each in snapshot.workers],
        "totals": {
            "received": view.total.received.total,
            "answered": view.total.answered.total,
            "dropped": view.total.dropped.total,
            "drops": _totals(view.drops),
            "send_errors": _totals(view.send_errors),
            "starts": view.total.starts,
            "counters": _totals(view.counters),
            "connections_open": view.connections,
            "received_batch_mean": view.received_batches.mean,
            "sent_batch_mean": view.sent_batches.mean,
        },
    }


def _worker_as_json(worker: Worker, blocks: int) -> dict[str, object]:
    has_ring = blocks > 0 and worker.task.cpu is not None
    ring = {"ready": worker.ring_ready, "peak": worker.ring_peak, "blocks": blocks}
    return {
        "number": worker.number,
        "kind": worker.task.kind,
        "cpu": worker.task.cpu,
        "pid": worker.pid or None,
        "state": worker.state,
        "starts": worker.starts,
        "heartbeat_age_s": round(worker.age, 3),
        "received": worker.total_received,
        "answered": worker.answered,
        "dropped": sum(worker.dropped.values()),
        "drops": worker.dropped,
        "families": {
            family: {"received": count, "verdicts": dict(worker.outcomes_by_family[family])}
            for family, count in worker.received.items()
        },
        "send_errors": dict(worker.send_errors),
        "ring": ring if has_ring else None,
        "sockets": None
        if worker.socket_drops is None
        else {"drops": worker.socket_drops, "fill": worker.socket_fill},
        "receive_sizes": list(worker.receive_sizes),
        "send_sizes": list(worker.send_sizes),
        "connections_open": worker.connections,
        "counters": dict(worker.counters),
    }


def _totals(counts: Mapping[str, Count]) -> dict[str, int]:
    return {name: each.total for name, each in counts.items()}


def as_text(snapshot: Snapshot, *, now: float | None = None) -> list[str]:
    """Return a service as lines of 80 columns at most, as far as addresses allow.

    Args:
        snapshot: of it.
        now: seconds since the epoch; None for what the clock says.
    """
    view = compare(None, snapshot)
    info = view.info
    up = words.span((time.time() if now is None else now) - info.started)
    state = "degraded" if view.problems else "serving"
    lines = [f"pktstun {info.version}, pid {info.pid}: {state}, up {up}"]
    lines += [f"  problem: {each}" for each in view.problems]
    lines.append("")
    for name, value in _settings(view):
        lines += _wrapped(name, value)
    lines.append("")
    lines += _workers(snapshot, view)
    lines.append("")
    lines += batch_table(view)
    lines.append("")
    counts = [("dropped", _listed(view.drops)), ("send errors", _listed(view.send_errors))]
    for name, value in [*counts, *details(view)]:
        lines += _wrapped(name, value)
    return lines


def as_line(snapshot: Snapshot) -> str:
    """Return a service in a line, for a list."""
    info = snapshot.info
    state = "degraded" if snapshot.problems else "serving"
    return f"pid {info.pid}  {info.path}  {state}, {words.way(info)}"


def _settings(view: View) -> Iterator[tuple[str, str]]:
    info = view.info
    yield "mode", words.way(info)
    more = info.serving_count - len(info.serving)
    yield "serving", ", ".join(info.serving) + (f" and {more} more" if more > 0 else "")
    if info.tcp:
        yield "TCP", ", ".join(info.tcp)
    if info.tls:
        yield "TLS", ", ".join(info.tls)
    if info.auth:
        yield "credentials", info.auth
    if info.rate_limit:
        yield "rate limit", f"{info.rate_limit.get('rate')}/s to a source, by each worker"
    if info.ring:
        size = int(info.ring.get("block_size", 0)) // 1024
        yield "ring", f"{info.blocks} blocks of {size} KiB for each worker"
    yield "socket", str(info.path)


def _workers(snapshot: Snapshot, view: View) -> list[str]:
    head = ("worker", "pid", "starts", "beat", "received", "answered", "dropped", "fill", "peak")
    rows: list[tuple[str, ...]] = [head]
    for worker, pid in [
        *zip(view.workers, (each.pid for each in snapshot.workers), strict=True),
        (view.total, 0),
    ]:
        rows.append(
            (
                worker.name,
                str(pid or ""),
                words.number(worker.starts),
                words.age(worker.age) if worker.state != "down" else "down",
                words.number(worker.received.total),
                words.number(worker.answered.total),
                words.number(worker.dropped.total),
                words.percent(worker.fill),
                words.percent(worker.peak),
            )
        )
    return words.table(rows)


def batch_table(view: View) -> list[str]:
    """Return how many messages a call or a block has, as lines of a table."""
    rows: list[tuple[str, ...]] = [("batches", "mean", *SIZES)]
    for name, each in (("received", view.received_batches), ("sent", view.sent_batches)):
        shares = each.shares or [None for _ in SIZES]
        rows.append((name, words.mean(each.mean), *map(words.percent, shares)))
    # Columns that stay where they are, whatever stands in them.
    rows = [
        (row[0].ljust(8), row[1].rjust(7), *(cell.rjust(5) for cell in row[2:])) for row in rows
    ]
    return words.table(rows)


def details(view: View) -> list[tuple[str, str]]:
    """Return what there is to say of the ring, the limiter and connections, by name."""

    def times(name: str) -> str:
        return words.number(view.counters[name].total) if name in view.counters else "0"

    found = []
    if view.total.lost is not None and not view.info.blocks:
        found.append(("sockets", f"lost {words.lately(view.total.lost)}"))
    elif view.total.lost is not None:
        said = (
            f"lost {words.lately(view.total.lost)}, found full {times('ring_freezes')} times, "
            f"errors {times('ring_errors')}, broken {times('ring_corrupt')}"
        )
        found.append(("ring", said))
    if view.info.rate_limit is not None and "over_limit" in view.counters:
        found.append(("limiter", f"above the limit {words.lately(view.counters['over_limit'])}"))
    if view.info.tcp or view.info.tls:
        new = view.counters.get("connections")
        said = (
            f"open {words.number(view.connections)}, new {words.lately(new) if new else 0}, "
            f"refused {times('connections_refused')}, timed out {times('connections_timed_out')}, "
            f"no TLS {times('handshakes_failed')}"
        )
        found.append(("streams", said))
    return found


def _listed(counts: Mapping[str, Count]) -> str:
    return (
        ", ".join(f"{name} {words.number(each.total)}" for name, each in counts.items()) or "none"
    )


def _wrapped(name: str, value: str) -> list[str]:
    return textwrap.wrap(
        value,
        WIDTH,
        initial_indent=name.ljust(_NAME),
        subsequent_indent=" " * _NAME,
        break_long_words=False,
        break_on_hyphens=False,
    )
