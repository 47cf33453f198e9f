"""The shared page: counters, heartbeat and ring cursor of every worker.

Theory of operation: one memory file, mapped by the supervisor and inherited by the workers,
with a slot for each. A worker's C loop writes the counters of its slot and nobody else does,
so there are no locks and no atomic read-modify-write; who writes the few other fields stands
in `struct pktstun_slot` (cdefs/engine.cdef.h, the only description of the layout). Every field
is 64 bits wide and aligned: a reader sees whole values.

The page outlives the workers: a restarted one goes on counting where the last one stopped,
and finds in the cursor the frame to go on with. It outlives the supervisor's version, too: an
upgrade hands the memory file over, and `LAYOUT` says what is where in it. A later version may
have more fields behind those of an earlier one, and nothing else is different.

Behind the slots stand the return paths of direct mode, which the supervisor writes and the
workers read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from pktstun.kernel._ffi import CData, ffi, lib
from pktstun.kernel.memory import SharedMemory, whole_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pktstun.kernel import PacketStatistics, ReturnPath

__all__ = [
    "FAMILIES",
    "LAYOUT",
    "SEND_ERRORS",
    "VERDICTS",
    "SharedPage",
    "SharedRoutes",
    "Slot",
    "StopRequest",
    "WorkerStats",
]

FAMILIES = ("none", "ipv4", "ipv6")
"""What received datagrams are counted by; `none` had no readable IP header."""


def _names(enumeration: str, prefix: str) -> dict[str, int]:
    """Return {name: number} of a C enumeration, without its prefix and its end mark."""
    elements = ffi.typeof(f"enum {enumeration}").relements
    return {
        name.removeprefix(prefix).removeprefix("DROP_").lower(): number
        for name, number in elements.items()
        if number != max(elements.values())
    }


VERDICTS = _names("pktstun_verdict", "PKTSTUN_")
"""Number of each verdict by name: `success`, `error`, and the reasons of drops."""

SEND_ERRORS = _names("pktstun_send_error", "PKTSTUN_SEND_")
"""Number of each errno of sendmmsg by name; `other` are the rest."""

_OUTCOMES = {name: at for name, at in VERDICTS.items() if name not in {"pass", "handover"}}
_ANSWERS = ("success", "error")

LAYOUT = {
    name: (field.offset, int(ffi.sizeof(field.type)))
    for name, field in ffi.typeof("struct pktstun_slot").fields
}
"""Offset and size in bytes of each field of a slot."""


class StopRequest(IntEnum):
    """Why a worker's loop has to come back."""

    NONE = lib.PKTSTUN_STOP_NONE
    DRAIN = lib.PKTSTUN_STOP_DRAIN
    """The service ends: answer what has arrived, then leave."""
    LEAVE = lib.PKTSTUN_STOP_LEAVE
    """A successor is about to start, and what waits is its."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """The counts of one slot since the service started.

    `received` and `verdicts` are keyed by family; every received datagram ends in exactly one
    verdict, but for those that a killed worker had in hand, which its successor counts again.
    `dropped` sums the verdicts that are no answer, by reason.
    """

    pid: int
    starts: int
    heartbeat: float
    """Seconds of the monotonic clock at the last pass of the loop."""
    received: dict[str, int]
    verdicts: dict[str, dict[str, int]]
    handovers: int
    ring_blocks: int
    ring_corrupt: int
    ring_errors: int
    ring_packets: int
    ring_drops: int
    ring_freezes: int
    socket_received: int
    receive_calls: int
    send_calls: int
    sent: int
    other_way: int
    other_neighbour: int
    over_limit: int
    """Requests above the rate limit, answered or not."""
    connections: int
    """Of TCP and TLS, taken in."""
    connections_refused: int
    """Closed at once: a limit, or an address that is not served."""
    connections_timed_out: int
    handshakes_failed: int
    connections_open: int
    """Now, without those of processes that only serve theirs to their end."""
    ring_ready: int
    """Blocks of the ring that could be read when they were last counted, ten times a second."""
    ring_ready_peak: int
    """The most that were counted since the ring is there."""
    receive_sizes: tuple[int, ...]
    """How many recvmmsg calls and ring blocks brought 1, 2 to 3, 4 to 7, ... datagrams."""
    send_sizes: tuple[int, ...]
    """How many sendmmsg calls took 1, 2 to 3, 4 to 7, ... messages."""
    socket_drops: int
    """Datagrams for which the sockets of recvmmsg mode had no room."""
    interface_down: int
    """1 while the interface of the rings is down or gone; in the exporter's slot."""
    takeover: int
    """1 while the kernel is spared what the rings answer; in the exporter's slot."""
    tls_missing: int
    """1 while TLS is not served since the certificate cannot be used."""
    send_errors: dict[str, int]

    @property
    def answered(self) -> int:
        """Replies that were built: success and error responses."""
        return sum(counts[name] for counts in self.verdicts.values() for name in _ANSWERS)

    @property
    def dropped(self) -> dict[str, int]:
        """Datagrams without an answer, by reason, where there are any."""
        totals = {
            name: sum(counts[name] for counts in self.verdicts.values())
            for name in _OUTCOMES
            if name not in _ANSWERS
        }
        return {name: total for name, total in totals.items() if total}

    def summary(self) -> str:
        """Return the counts as `key=value` words for a log line; unusual ones if not 0."""
        words = {
            "received": sum(self.received.values()),
            "answered": self.answered,
            "sent": self.sent,
            "socket_received": self.socket_received,
            "ring_blocks": self.ring_blocks,
            "ring_drops": self.ring_drops,
            "starts": self.starts,
        }
        unusual = {
            "ring_packets": self.ring_packets,
            "handovers": self.handovers,
            "other_way": self.other_way,
            "other_neighbour": self.other_neighbour,
            "over_limit": self.over_limit,
            "socket_drops": self.socket_drops,
            "connections": self.connections,
            "connections_refused": self.connections_refused,
            "connections_timed_out": self.connections_timed_out,
            "handshakes_failed": self.handshakes_failed,
            "ring_freezes": self.ring_freezes,
            "ring_errors": self.ring_errors,
            "ring_corrupt": self.ring_corrupt,
            **{f"dropped.{reason}": count for reason, count in self.dropped.items()},
            **{f"send_error.{name}": count for name, count in self.send_errors.items()},
        }
        words |= {key: value for key, value in unusual.items() if value}
        return " ".join(f"{key}={value}" for key, value in words.items())


class Slot:
    """One worker's part of the page."""

    def __init__(self, pointer: CData) -> None:
        self.pointer = pointer
        """`struct pktstun_slot *`, for the engine."""

    def begin(self, pid: int) -> None:
        """Record that a worker with this process id takes the slot over."""
        self.pointer.pid = pid
        self.pointer.starts += 1
        self.pointer.connections_open = 0

    def end(self) -> None:
        """Record that the slot has no worker."""
        self.pointer.pid = 0

    @property
    def stop(self) -> StopRequest:
        """The flag on which the worker's loop comes back."""
        return StopRequest(self.pointer.stop)

    @stop.setter
    def stop(self, value: StopRequest) -> None:
        self.pointer.stop = value

    @property
    def beat(self) -> int:
        """What changes with every pass of the loop."""
        return int(self.pointer.heartbeat)

    def turn(self) -> None:
        """Record that the loop turns, where that is not the C loop, which does so itself."""
        self.pointer.heartbeat = time.monotonic_ns()

    def note_socket_drops(self, more: int) -> None:
        """Add what the sockets had no room for; the supervisor's part."""
        self.pointer.socket_drops += more

    def note_interface(self, *, down: bool, takeover: bool) -> None:
        """Record how the interface is, in the exporter's slot; the supervisor's part."""
        self.pointer.interface_down, self.pointer.takeover = down, takeover

    def note_tls(self, *, missing: bool) -> None:
        """Record whether TLS is served that should be."""
        self.pointer.tls_missing = missing

    def note_connections(self, count: int) -> None:
        """Record how many connections are open."""
        self.pointer.connections_open = count

    def count(self, counter: str) -> None:
        """Add one to a counter, also while another process does."""
        lib.pktstun_count(ffi.addressof(self.pointer, counter), 1)

    def count_received(self, family: str, verdict: str) -> None:
        """Count a message and what has become of it, as `count` does; names as in the stats."""
        at = FAMILIES.index(family)
        lib.pktstun_count(ffi.addressof(self.pointer, "received", at), 1)
        lib.pktstun_count(ffi.addressof(self.pointer, "verdicts", at, VERDICTS[verdict]), 1)

    @property
    def frame(self) -> int:
        """The frame of the ring in hand, `sequence << 16 | index`, or 0."""
        return int(self.pointer.frame)

    @frame.setter
    def frame(self, value: int) -> None:
        self.pointer.frame = value

    def skip(self, frame: int, *, whole_block: bool = False) -> None:
        """Have the loop pass over a frame, or over all of its block."""
        self.pointer.skip = frame | lib.PKTSTUN_WHOLE_BLOCK if whole_block else frame

    def forget_ring(self) -> None:
        """Have the next worker begin with the first block: the ring is a new one."""
        self.pointer.cursor = self.pointer.frame = self.pointer.skip = 0
        self.pointer.ring_ready = self.pointer.ring_ready_peak = 0

    def add_ring(self, statistics: PacketStatistics) -> None:
        """Add what the kernel counted since the last reading; the supervisor's part."""
        self.pointer.ring_packets += statistics.packets
        self.pointer.ring_drops += statistics.drops
        self.pointer.ring_freezes += statistics.freezes

    def read(self) -> WorkerStats:
        """Return the counts at this moment."""
        raw = self.pointer
        return WorkerStats(
            pid=raw.pid,
            starts=raw.starts,
            heartbeat=raw.heartbeat / 1e9,
            received={family: raw.received[at] for at, family in enumerate(FAMILIES)},
            verdicts={
                family: {name: raw.verdicts[at][number] for name, number in _OUTCOMES.items()}
                for at, family in enumerate(FAMILIES)
            },
            handovers=raw.handovers,
            ring_blocks=raw.ring_blocks,
            ring_corrupt=raw.ring_corrupt,
            ring_errors=raw.ring_errors,
            ring_packets=raw.ring_packets,
            ring_drops=raw.ring_drops,
            ring_freezes=raw.ring_freezes,
            socket_received=raw.socket_received,
            receive_calls=raw.receive_calls,
            send_calls=raw.send_calls,
            sent=raw.sent,
            other_way=raw.other_way,
            other_neighbour=raw.other_neighbour,
            over_limit=raw.over_limit,
            connections=raw.connections,
            connections_refused=raw.connections_refused,
            connections_timed_out=raw.connections_timed_out,
            handshakes_failed=raw.handshakes_failed,
            connections_open=raw.connections_open,
            ring_ready=raw.ring_ready,
            ring_ready_peak=raw.ring_ready_peak,
            receive_sizes=tuple(raw.receive_sizes),
            send_sizes=tuple(raw.send_sizes),
            socket_drops=raw.socket_drops,
            interface_down=raw.interface_down,
            takeover=raw.takeover,
            tls_missing=raw.tls_missing,
            send_errors={name: raw.send_errors[at] for name, at in SEND_ERRORS.items()},
        )


class SharedRoutes:
    """The return paths of direct mode, as the workers see them."""

    def __init__(self, pointer: CData) -> None:
        self.pointer = pointer
        """`struct pktstun_routes *`, for the engine."""

    def publish(self, paths: Sequence[ReturnPath]) -> None:
        """Put these in the place of what was there.

        Args:
            paths: longest prefix first; at most PKTSTUN_MAX_ROUTES.
        """
        native = ffi.new("struct pktstun_routes *")
        native.count = len(paths)
        for entry, path in zip(native.entries, paths, strict=False):
            entry.family = path.network.version
            entry.prefix = path.network.prefixlen
            entry.direct = path.direct
            entry.has_gateway = bool(path.gateway)
            ffi.memmove(entry.gateway, path.gateway, len(path.gateway))
            packed = path.network.network_address.packed
            ffi.memmove(entry.ip, packed, len(packed))
        lib.pktstun_routes_publish(self.pointer, native)


class SharedPage(SharedMemory):
    """The slots of all workers and the return paths, zeroed, in a memory file.

    Child processes inherit it.

    Args:
        slots: how many.
        file: the memory file of a page with as many slots, to go on with; it is the page's from
            then on. None for a new one.

    Raises:
        ValueError: less than one slot; or the file is of another size.
    """

    def __init__(self, slots: int, file: int | None = None) -> None:
        if slots < 1:
            raise ValueError(f"{slots} slots")
        # Whole pages, so that no two writers write to the same cache line.
        self.stride = stride = whole_pages(int(ffi.sizeof("struct pktstun_slot")))
        """Bytes from one slot to the next."""
        routes = whole_pages(int(ffi.sizeof("struct pktstun_routes")))
        super().__init__("pktstun", stride * slots + routes, file)
        self.slots = tuple(
            Slot(self.at(index * stride, "struct pktstun_slot *")) for index in range(slots)
        )
        """Not to be used after `close`, like `routes`."""
        self.routes = SharedRoutes(self.at(stride * slots, "struct pktstun_routes *"))

    def close(self) -> None:
        """Give up the mapping and the file."""
        self.slots = ()
        super().close()
