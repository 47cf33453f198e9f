"""The shared page: one layout for C and Python, seen by every process that inherits it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pktstun.kernel import PacketStatistics
from pktstun.kernel._ffi import ffi, lib
from pktstun.packet import FrameDrop
from pktstun.stats import (
    FAMILIES,
    LAYOUT,
    VERDICTS,
    SharedPage,
    Slot,
    StopRequest,
    WorkerStats,
)
from pktstun.stun import Drop

pytestmark = pytest.mark.native

SLOT = "struct pktstun_slot"
WORDS = ffi.sizeof(SLOT) // 8
SEND_ERRORS = (
    "eagain",
    "enobufs",
    "eperm",
    "eacces",
    "einval",
    "enetunreach",
    "ehostunreach",
    "enetdown",
    "other",
)


def fields() -> dict[str, tuple[int, int]]:
    """The offset and the size of every field, by name."""
    return {name: (field.offset, ffi.sizeof(field.type)) for name, field in ffi.typeof(SLOT).fields}


def word_of(name: str, *indices: int) -> int:
    """Which 64-bit word of the slot a number is."""
    return int(ffi.offsetof(SLOT, name, *indices)) // 8


def numbered(slot: Slot) -> None:
    """Give every word of a slot a value of its own, beyond 32 bits."""
    words = ffi.cast("uint64_t *", slot.pointer)
    for index in range(WORDS):
        words[index] = value(index)


def value(word: int) -> int:
    return (1 << 40) + word


# --- Names and layout ---


def test_a_verdict_has_one_name_everywhere() -> None:
    frame, datagram = {each.value for each in FrameDrop}, {each.value for each in Drop}
    engine = {"over_budget", "internal_error", "poison", "rate_limited"}
    decided = {"pass", "success", "error", "handover"}
    assert set(VERDICTS) == decided | frame | datagram | engine
    assert len(VERDICTS) == len(decided) + len(frame) + len(datagram) + len(engine)
    assert sorted(VERDICTS.values()) == list(range(lib.PKTSTUN_VERDICTS))


def test_drops_have_the_numbers_of_the_c_names() -> None:
    for drop in (*FrameDrop, *Drop):
        assert VERDICTS[drop.value] == getattr(lib, f"PKTSTUN_DROP_{drop.name}")
    assert VERDICTS["success"] == lib.PKTSTUN_SUCCESS
    assert VERDICTS["error"] == lib.PKTSTUN_ERROR


def test_every_field_is_aligned_and_nothing_lies_between() -> None:
    end = 0
    for offset, size in fields().values():
        assert offset == end
        assert size % 8 == 0
        end += size
    assert end == ffi.sizeof(SLOT) == 8 * WORDS


def test_arrays_have_as_many_elements_as_names() -> None:
    sizes = {name: size // 8 for name, (_, size) in fields().items() if size != 8}
    assert len(FAMILIES) == lib.PKTSTUN_FAMILIES
    assert sizes == {
        "received": len(FAMILIES),
        "verdicts": len(FAMILIES) * lib.PKTSTUN_ROOM,
        "send_errors": lib.PKTSTUN_ROOM,
        "receive_sizes": lib.PKTSTUN_SIZES,
        "send_sizes": lib.PKTSTUN_SIZES,
    }
    assert len(VERDICTS) <= lib.PKTSTUN_ROOM
    assert len(SEND_ERRORS) <= lib.PKTSTUN_ROOM


def test_every_number_is_read_from_its_place() -> None:
    with SharedPage(1) as page:
        numbered(page.slots[0])
        stats = page.slots[0].read()
    plain = set(fields()) & set(WorkerStats.__dataclass_fields__)
    sizes = {"receive_sizes", "send_sizes"}
    arrays = {"received", "verdicts", "send_errors", "heartbeat", *sizes}
    for name in sizes:
        assert getattr(stats, name) == tuple(
            value(word_of(name, at)) for at in range(lib.PKTSTUN_SIZES)
        )
    for name in plain - arrays:
        assert getattr(stats, name) == value(word_of(name)), name
    # What is not among the counts belongs to the engine.
    assert set(fields()) - plain == {"cursor", "frame", "skip", "stop"}
    assert stats.heartbeat == pytest.approx(value(word_of("heartbeat")) / 1e9)
    for at, family in enumerate(FAMILIES):
        assert stats.received[family] == value(word_of("received", at))
        assert stats.verdicts[family] == {
            name: value(word_of("verdicts", at, number))
            for name, number in VERDICTS.items()
            if name not in {"pass", "handover"}
        }
    assert stats.send_errors == {
        name: value(word_of("send_errors", at)) for at, name in enumerate(SEND_ERRORS)
    }


# --- The page ---


def test_a_new_page_is_zero() -> None:
    with SharedPage(3) as page:
        assert len(page.slots) == 3
        for slot in page.slots:
            assert bytes(ffi.buffer(slot.pointer)) == bytes(8 * WORDS)
            assert not slot.stop


def test_slots_share_no_page() -> None:
    with SharedPage(3) as page:
        starts = [int(ffi.cast("uintptr_t", slot.pointer)) for slot in page.slots]
        assert all(start % mmap.PAGESIZE == 0 for start in starts)
        assert len({start // mmap.PAGESIZE for start in starts}) == 3
        for index, slot in enumerate(page.slots):
            numbered(slot)
            slot.begin(index)
        assert [slot.read().pid for slot in page.slots] == [0, 1, 2]


def test_a_fork_shares_the_page() -> None:
    """Both ways, and what a child has counted outlives it."""
    code = """
import os
from pktstun.stats import SharedPage
with SharedPage(2) as page:
    slot = page.slots[1]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        slot.begin(os.getpid())
        slot.pointer.sent = 1 << 40
        os.write(write, b"x")
        while not slot.stop:
            pass
        os._exit(7)
    os.read(read, 1)
    stats = slot.read()
    assert (stats.pid, stats.starts, stats.sent) == (child, 1, 1 << 40), stats
    slot.stop = True
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    slot.end()
    slot.begin(1)
    assert (slot.read().starts, slot.read().sent) == (2, 1 << 40)
    assert page.slots[0].read().starts == 0
print("shared")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (result.stdout, result.stderr) == ("shared\n", "")


def test_close_leaves_nothing_and_can_be_repeated() -> None:
    def held() -> tuple[int, int]:
        descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
        return descriptors, Path("/proc/self/maps").read_text().count("memfd:pktstun")

    before = held()
    page = SharedPage(2)
    assert held()[1] == before[1] + 1
    page.close()
    assert held() == before
    with Path("/dev/null").open("rb"):  # takes the number that has become free
        during = held()
        page.close()
        assert held() == during
    assert page.slots == ()


@pytest.mark.parametrize("slots", [0, -1])
def test_a_page_needs_a_slot(slots: int) -> None:
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with pytest.raises((ValueError, OSError)):
        SharedPage(slots)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


# --- Slots ---


def test_two_processes_may_count_in_one_slot() -> None:
    code = """
import os
from pktstun.stats import SharedPage
with SharedPage(1) as page:
    (slot,) = page.slots
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            for _ in range(100_000):
                slot.count("sent")
                slot.count_received("ipv6", "success")
            os._exit(0)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    stats = slot.read()
    assert stats.sent == stats.received["ipv6"] == stats.answered == 200_000, stats
print("counted")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.stdout, result.stderr) == ("counted\n", "")


def test_a_loop_in_python_has_a_heartbeat_too() -> None:
    with SharedPage(1) as page:
        (slot,) = page.slots
        slot.turn()
        first = slot.beat
        assert slot.read().heartbeat == pytest.approx(time.monotonic(), abs=5)
        slot.turn()
        assert slot.beat > first


def test_the_life_of_a_slot() -> None:
    with SharedPage(1) as page:
        (slot,) = page.slots
        for start in (1, 2):
            slot.begin(4711)
            assert (slot.read().pid, slot.read().starts) == (4711, start)
            slot.end()
            assert (slot.read().pid, slot.read().starts) == (0, start)


def test_the_stop_flag() -> None:
    with SharedPage(1) as page:
        (slot,) = page.slots
        for request in StopRequest:
            slot.stop = request
            assert slot.stop is request
            assert slot.pointer.stop == request
        assert not StopRequest.NONE


def test_ring_statistics_add_up_beyond_32_bits() -> None:
    with SharedPage(1) as page:
        (slot,) = page.slots
        for _ in range(3):
            slot.add_ring(PacketStatistics(packets=0xFFFFFFFF, drops=0xFFFFFFFE, freezes=1))
        stats = slot.read()
    assert (stats.ring_packets, stats.ring_drops) == (3 * 0xFFFFFFFF, 3 * 0xFFFFFFFE)
    assert stats.ring_freezes == 3


def test_answered_and_dropped_sum_over_families() -> None:
    with SharedPage(1) as page:
        (slot,) = page.slots
        for at in range(len(FAMILIES)):
            for name, number in VERDICTS.items():
                slot.pointer.verdicts[at][number] = 10**at if name in {"success", "short"} else 0
        slot.pointer.verdicts[1][VERDICTS["error"]] = 1000
        slot.pointer.verdicts[2][VERDICTS["vlan"]] = 5
        stats = slot.read()
    assert stats.answered == 111 + 1000
    assert stats.dropped == {"short": 111, "vlan": 5}


def test_the_summary_names_what_happened() -> None:
    with SharedPage(1) as page:
        (slot,) = page.slots
        assert slot.read().summary() == (
            "received=0 answered=0 sent=0 socket_received=0 ring_blocks=0 ring_drops=0 starts=0"
        )
        raw = slot.pointer
        raw.received[1], raw.received[2] = 3, 4
        raw.verdicts[1][VERDICTS["success"]] = 2
        raw.verdicts[1][VERDICTS["error"]] = 1
        raw.verdicts[2][VERDICTS["fragment"]] = 4
        raw.sent, raw.socket_received, raw.ring_blocks, raw.ring_drops, raw.starts = 2, 5, 6, 7, 8
        raw.send_errors[lib.PKTSTUN_SEND_EPERM] = 1
        raw.handovers, raw.ring_freezes, raw.ring_errors, raw.ring_corrupt = 9, 10, 11, 12
        assert slot.read().summary() == (
            "received=7 answered=3 sent=2 socket_received=5 ring_blocks=6 ring_drops=7 starts=8 "
            "handovers=9 ring_freezes=10 ring_errors=11 ring_corrupt=12 "
            "dropped.fragment=4 send_error.eperm=1"
        )


def test_the_layout_only_grows() -> None:
    """A version reads the page of the one before it: nothing that was ever released may move."""
    released = {
        "heartbeat": (0, 8),
        "cursor": (8, 8),
        "frame": (16, 8),
        "received": (24, 24),
        "verdicts": (48, 1536),
        "handovers": (1584, 8),
        "ring_blocks": (1592, 8),
        "ring_corrupt": (1600, 8),
        "ring_errors": (1608, 8),
        "receive_calls": (1616, 8),
        "socket_received": (1624, 8),
        "send_calls": (1632, 8),
        "sent": (1640, 8),
        "other_way": (1648, 8),
        "other_neighbour": (1656, 8),
        "send_errors": (1664, 512),
        "stop": (2176, 8),
        "pid": (2184, 8),
        "starts": (2192, 8),
        "ring_packets": (2200, 8),
        "ring_drops": (2208, 8),
        "ring_freezes": (2216, 8),
        "skip": (2224, 8),
        "over_limit": (2232, 8),
        "connections": (2240, 8),
        "connections_refused": (2248, 8),
        "connections_timed_out": (2256, 8),
        "handshakes_failed": (2264, 8),
        "connections_open": (2272, 8),
        "ring_ready": (2280, 8),
        "ring_ready_peak": (2288, 8),
        "receive_sizes": (2296, 128),
        "send_sizes": (2424, 128),
        "socket_drops": (2552, 8),
        "interface_down": (2560, 8),
        "takeover": (2568, 8),
        "tls_missing": (2576, 8),
    }
    assert {name: LAYOUT[name] for name in released} == released
    assert sum(size for _, size in LAYOUT.values()) <= mmap.PAGESIZE
    numbers = ["pass", "success", "error", "handover", "not_host", "over_budget", "poison"]
    assert [VERDICTS[name] for name in numbers] == [0, 1, 2, 3, 4, 29, 31]


def test_a_page_outlives_who_made_it() -> None:
    with SharedPage(2) as page:
        page.slots[1].begin(4711)
        file = os.dup(page.fileno())
    with SharedPage(2, file) as again:
        assert again.slots[1].read().starts == 1
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(file)


def test_a_page_of_another_size_is_refused() -> None:
    with SharedPage(2) as page, pytest.raises(ValueError, match="bytes and not"):
        SharedPage(3, page.fileno())


def test_a_new_ring_begins_anew() -> None:
    with SharedPage(1) as page:
        (slot,) = page.slots
        slot.pointer.cursor, slot.frame = 77 << 16, 5
        slot.skip(77 << 16 | 4)
        slot.forget_ring()
        assert (slot.pointer.cursor, slot.frame, slot.pointer.skip) == (0, 0, 0)
