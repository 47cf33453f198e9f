"""Services to look at: snapshots made up, and a status socket with a page behind it."""

from __future__ import annotations

import select
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pktstun.observe import PROTOCOL, Info, Snapshot, Task, Worker
from pktstun.stats import FAMILIES, LAYOUT, SEND_ERRORS, VERDICTS
from pktstun.status import StatusSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pktstun.stats import SharedPage

STARTED = 1_700_000_000.0

INFO = Info(
    path=Path("/run/pktstun/0/4711.sock"),
    version="1.2.3",
    pid=4711,
    started=STARTED,
    mode="direct",
    iface="eth0",
    takeover=True,
    tasks=(Task("datagrams", 0), Task("datagrams", 1), Task("streams", None)),
    serving=("192.0.2.1:3478", "[2001:db8::1]:3478"),
    serving_count=2,
    tcp=("192.0.2.1:3478", "[2001:db8::1]:3478"),
    tls=(),
    auth=None,
    rate_limit={"rate": 100, "network_rate": None, "share": 25},
    ring={"block_size": 16384, "block_count": 256, "retire_timeout": 1},
    stream_limits={"connections": 10000},
    sockets=(),
)

WORKER = Worker(
    number=0,
    task=Task("datagrams", 0),
    pid=4712,
    starts=1,
    age=0.04,
    received={"none": 3, "ipv4": 1_000_000, "ipv6": 200_000},
    outcomes={"success": 1_190_000, "error": 5, "not_stun": 9_000, "rate_limited": 998},
    outcomes_by_family={
        "none": {"success": 0, "error": 0, "not_stun": 3, "rate_limited": 0},
        "ipv4": {"success": 990_000, "error": 5, "not_stun": 8_997, "rate_limited": 998},
        "ipv6": {"success": 200_000, "error": 0, "not_stun": 0, "rate_limited": 0},
    },
    counters={
        "sent": 1_190_000,
        "send_calls": 70_000,
        "ring_drops": 17,
        "ring_freezes": 2,
        "ring_errors": 0,
        "ring_corrupt": 0,
        "over_limit": 1_330,
        "connections": 0,
        "connections_refused": 0,
        "connections_timed_out": 0,
        "handshakes_failed": 0,
    },
    send_errors={"eagain": 12, "eperm": 0},
    receive_sizes=(10_000, 20_000, 10_000, 5_000, 20_000, 1_000, 4_000, 3, *[0] * 8),
    send_sizes=(10_000, 20_000, 10_000, 5_000, 20_000, 5_000, *[0] * 10),
    ring_ready=3,
    ring_peak=130,
    connections=0,
    socket_drops=None,
    socket_fill=None,
)

STREAM = replace(
    WORKER,
    number=2,
    task=Task("streams", None),
    pid=4714,
    age=0.3,
    received={"none": 0, "ipv4": 500, "ipv6": 12},
    outcomes={"success": 510, "error": 0, "not_stun": 2, "rate_limited": 0},
    outcomes_by_family={
        "none": {"success": 0, "error": 0, "not_stun": 0, "rate_limited": 0},
        "ipv4": {"success": 498, "error": 0, "not_stun": 2, "rate_limited": 0},
        "ipv6": {"success": 12, "error": 0, "not_stun": 0, "rate_limited": 0},
    },
    counters=dict.fromkeys(WORKER.counters, 0) | {"connections": 60, "connections_refused": 4},
    send_errors={"eagain": 0, "eperm": 0},
    receive_sizes=(0,) * 16,
    send_sizes=(0,) * 16,
    ring_ready=0,
    ring_peak=0,
    connections=12,
)

SECOND = replace(WORKER, number=1, task=Task("datagrams", 1), pid=4713)

BEFORE = Snapshot(INFO, 100.0, (WORKER, SECOND, STREAM))


def later(worker: Worker, times: int) -> Worker:
    """A worker to which the same has happened so many times more."""
    return replace(
        worker,
        received={name: count * (times + 1) for name, count in worker.received.items()},
        outcomes={name: count * (times + 1) for name, count in worker.outcomes.items()},
        counters={name: count * (times + 1) for name, count in worker.counters.items()},
        send_errors={name: count * (times + 1) for name, count in worker.send_errors.items()},
        receive_sizes=tuple(count * (times + 1) for count in worker.receive_sizes),
        send_sizes=tuple(count * (times + 1) for count in worker.send_sizes),
    )


AFTER = Snapshot(INFO, 110.0, tuple(later(each, 1) for each in BEFORE.workers))
"""Ten seconds behind `BEFORE`."""


def description(page: SharedPage, /, **changes: Any) -> dict[str, Any]:
    """What a service with a worker for each slot says of itself."""
    return {
        "protocol": PROTOCOL,
        "version": "1.2.3",
        "pid": 4711,
        "started": STARTED,
        "mode": "recvmmsg",
        "iface": None,
        "takeover": False,
        "workers": [{"kind": "datagrams", "cpu": cpu} for cpu in range(len(page.slots))],
        "serving": ["127.0.0.1:3478"],
        "serving_count": 1,
        "tcp": [],
        "tls": [],
        "auth": None,
        "rate_limit": None,
        "stream_limits": None,
        "ring": None,
        "sockets": None,
        "page": {
            "slots": len(page.slots),
            "stride": page.stride,
            "layout": LAYOUT,
            "families": FAMILIES,
            "verdicts": VERDICTS,
            "send_errors": SEND_ERRORS,
        },
        **changes,
    }


@contextmanager
def answering(
    path: Path, page: SharedPage, describe: Callable[[], dict[str, Any]] | None = None
) -> Iterator[StatusSocket]:
    """A status socket that is answered by a thread, as a supervisor would."""
    ended = threading.Event()
    sock = StatusSocket.open(str(path), page)
    assert sock is not None

    def answer() -> None:
        while not ended.is_set():
            if select.select([sock], [], [], 0.02)[0]:
                ended.wait(sock.answer(describe or (lambda: description(page))))

    thread = threading.Thread(target=answer)
    with sock:
        thread.start()
        try:
            yield sock
        finally:
            ended.set()
            thread.join()
