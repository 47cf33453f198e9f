"""The capture ring: frames come whole, in order and described, whatever the ring goes through.

The tests as root send over a quiet veth pair. The others map a file that is filled by hand:
the kernel's part is played by the test, which can also play it wrongly.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import Datagram, PacketSocket, Ring, RingGeometry, UDPSocket
from pktstun.kernel.bpf import DROP_ALL, Program, _Instruction, udp_to
from pktstun.packet import ChecksumStatus, EtherType, PacketType, VlanTag
from pktstun.stun import TransportAddress
from tests.kernel.blocks import (
    COUNT_AT,
    CSUM_NOT_READY,
    CSUM_VALID,
    TPID_VALID,
    USER,
    VLAN_VALID,
    BlockFrame,
    FileRing,
    build_block,
    frames_per_block,
)
from tests.kernel.wire import (
    PATIENCE,
    Wire,
    descriptors,
    number_of,
    raw_socket,
    take,
    take_one,
)
from tests.lab import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, TwoHosts

PAGE = mmap.PAGESIZE
SMALL = RingGeometry(block_size=PAGE, block_count=8, retire_timeout=1)
PER_BLOCK = frames_per_block(SMALL)

root = pytest.mark.root
native = pytest.mark.native


@contextmanager
def capture(
    wire: Wire,
    *,
    geometry: RingGeometry = SMALL,
    program: Program | None = None,
    outgoing: bool = True,
) -> Iterator[Ring]:
    """A ring on the near end of the wire."""
    with wire.near.enter():
        ring = Ring.open(wire.near_if, geometry=geometry, program=program, outgoing=outgoing)
    with ring:
        yield ring


def sockets_of(wire: Wire) -> int:
    """How many packet sockets the near namespace has."""
    return len(wire.near.read("/proc/net/packet").splitlines()) - 1


def mappings() -> int:
    """How many mappings of sockets, or of files made by `FileRing`, this process has."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return maps.count("socket:[") + maps.count("memfd:ring")


# --- What a frame says ---


@root
def test_frames_come_whole_in_order_and_described(wire: Wire) -> None:
    lengths = [14 + 6, 60, 61, 62, 63, 64, 333, 1000, 1513, 1514] * 3
    sent = [wire.frame(number, length) for number, length in enumerate(lengths)]
    with wire.near.enter():
        ifindex = socket.if_nametoindex(wire.near_if)
    with capture(wire) as ring:
        before = time.time_ns()
        wire.send(*sent)
        frames = ring.frames(PATIENCE)
        stamps = [before]
        for expected in sent:
            frame = take_one(frames)
            assert bytes(frame.data) == expected
            assert frame.length == len(expected)
            assert frame.ifindex == ifindex
            assert frame.packet_type is PacketType.HOST
            assert frame.vlan is None
            assert frame.checksum is ChecksumStatus.UNVERIFIED
            stamps.append(frame.timestamp)
        stamps.append(time.time_ns())
    assert stamps == sorted(stamps)


@root
@pytest.mark.parametrize(
    ("to", "expected"),
    [
        (None, PacketType.HOST),
        (b"\xff" * 6, PacketType.BROADCAST),
        (bytes.fromhex("01005e000001"), PacketType.MULTICAST),
        (bytes.fromhex("020000000001"), PacketType.OTHERHOST),
    ],
)
def test_packet_types(wire: Wire, to: bytes | None, expected: PacketType) -> None:
    with capture(wire) as ring:
        wire.send(wire.frame(1, to=to))
        assert take_one(ring.frames(PATIENCE)).packet_type is expected


@root
@pytest.mark.parametrize("outgoing", [True, False])
def test_what_this_host_sends_is_captured_if_wanted(wire: Wire, *, outgoing: bool) -> None:
    with (
        capture(wire, outgoing=outgoing) as ring,
        raw_socket(wire.near, wire.near_if) as sender,
    ):
        sender.send(wire.frame(1))
        wire.send(wire.frame(2))
        frames = ring.frames(PATIENCE)
        if outgoing:
            frame = take_one(frames)
            assert (number_of(frame.data), frame.packet_type) == (1, PacketType.OUTGOING)
        frame = take_one(frames)
        assert (number_of(frame.data), frame.packet_type) == (2, PacketType.HOST)


@root
@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("offload", [True, False])
def test_checksum_status(lab: Lab, hosts: TwoHosts, *, offload: bool, ipv6: bool) -> None:
    """With offload, veth hands over what no hardware has completed."""
    lab.offload(hosts.client, hosts.client_if, tx=offload)
    server = ip_address(hosts.server_ipv6[0] if ipv6 else hosts.server_ipv4[0])
    client = ip_address(hosts.client_ipv6[0] if ipv6 else hosts.client_ipv4[0])
    with hosts.server.enter():
        ring = Ring.open(hosts.server_if, program=udp_to([9]), geometry=SMALL)
    with hosts.client.enter():
        sender = UDPSocket(TransportAddress(client, 0))
    with ring, sender:
        sender.sendmmsg([Datagram(b"payload", TransportAddress(server, 9))])
        status = take_one(ring.frames(PATIENCE)).checksum
    if offload:
        assert status is ChecksumStatus.NOT_READY
    else:
        assert status in {ChecksumStatus.UNVERIFIED, ChecksumStatus.VALID}


@root
@pytest.mark.parametrize("tpid", [EtherType.VLAN, EtherType.SERVICE_VLAN])
@pytest.mark.parametrize(
    ("vid", "pcp", "dei"), [(1, 0, False), (4094, 7, False), (0, 5, False), (291, 3, True)]
)
def test_the_outer_tag_is_reported(
    wire: Wire, tpid: EtherType, vid: int, pcp: int, *, dei: bool
) -> None:
    tag = VlanTag(vid, pcp, dei, tpid)
    with capture(wire) as ring:
        wire.send(wire.frame(1, tags=[tag]))
        frame = take_one(ring.frames(PATIENCE))
        assert frame.vlan == tag
        assert bytes(frame.data) == wire.frame(1, 56)
        assert frame.length == 56


@root
def test_an_inner_tag_stays_in_the_frame(wire: Wire) -> None:
    outer, inner = VlanTag(8, tpid=EtherType.SERVICE_VLAN), VlanTag(7)
    with capture(wire) as ring:
        wire.send(wire.frame(1, tags=[outer, inner]))
        frame = take_one(ring.frames(PATIENCE))
        assert frame.vlan == outer
        assert bytes(frame.data) == wire.frame(1, 56, tags=[inner])


@root
@pytest.mark.parametrize("kept", [1, 13, 59, 60, 61])
def test_a_filter_cuts_frames(wire: Wire, kept: int) -> None:
    with capture(wire, program=Program.build([_Instruction(0x06, kept)])) as ring:
        wire.send(wire.frame(1))
        frame = take_one(ring.frames(PATIENCE))
        assert bytes(frame.data) == wire.frame(1)[:kept]
        assert frame.length == 60


@root
def test_a_filter_that_drops_everything(wire: Wire) -> None:
    with capture(wire, program=DROP_ALL) as ring:
        wire.send(wire.frame(1))
        assert list(ring.frames(0.01)) == []
        assert ring.statistics().packets == 0


def described(frame: BlockFrame) -> tuple[object, ...]:
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        file.put(0, build_block([frame], SMALL.block_size))
        seen = take_one(ring.frames(0))
        data = bytes(seen.data)
        return (data, seen.length, seen.packet_type, seen.ifindex, seen.timestamp)


@native
def test_fields_are_those_of_the_header() -> None:
    frame = BlockFrame(
        b"frame", length=70_000, packet_type=3, ifindex=77, seconds=1 << 31, nanoseconds=999_999_999
    )
    timestamp = (1 << 31) * 1_000_000_000 + 999_999_999
    assert described(frame) == (b"frame", 70_000, PacketType.OTHERHOST, 77, timestamp)


@native
@pytest.mark.parametrize("number", [5, 6, 7, 255])
def test_a_packet_type_without_a_name_is_a_number(number: int) -> None:
    """A monitor of netlink messages has two of them (PACKET_USER, PACKET_KERNEL)."""
    assert described(BlockFrame(b"message", packet_type=number))[2] == number


@native
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (USER, ChecksumStatus.UNVERIFIED),
        (USER | CSUM_VALID, ChecksumStatus.VALID),
        (USER | CSUM_NOT_READY, ChecksumStatus.NOT_READY),
    ],
)
def test_checksum_flags(status: int, expected: ChecksumStatus) -> None:
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        file.put(0, build_block([BlockFrame(b"", status=status)], SMALL.block_size))
        assert take_one(ring.frames(0)).checksum is expected


@native
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (USER, None),
        (USER | VLAN_VALID | TPID_VALID, VlanTag(5, 1, dei=True, tpid=0x88A8)),
        (USER | VLAN_VALID, VlanTag(5, 1, dei=True, tpid=0x8100)),
    ],
)
def test_vlan_flags(status: int, expected: VlanTag | None) -> None:
    frame = BlockFrame(b"", status=status, vlan_tci=0x3005, vlan_tpid=0x88A8)
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        file.put(0, build_block([frame], SMALL.block_size))
        assert take_one(ring.frames(0)).vlan == expected


# --- The ring under load ---


@root
def test_a_small_ring_wraps_without_loss_or_disorder(wire: Wire) -> None:
    """Some 90 laps where a page has 4096 bytes, of frames of many lengths.

    The sender never has more frames under way than fit, however late the reader is: blocks
    are retired when they are full, and a timer that retires them half empty is rare.
    """
    count, credit = 20_000, threading.Semaphore(3 * PER_BLOCK)
    geometry = RingGeometry(SMALL.block_size, SMALL.block_count, retire_timeout=500)

    def frame(number: int) -> bytes:
        return wire.frame(number, 20 + number * 7 % 60)

    def send() -> None:
        chunk = PER_BLOCK // 2
        for start in range(0, count, chunk):
            frames = [frame(number) for number in range(start, min(start + chunk, count))]
            for _ in frames:
                if not credit.acquire(timeout=PATIENCE):
                    return
            wire.send(*frames)

    with capture(wire, geometry=geometry) as ring:
        sender = threading.Thread(target=send)
        sender.start()
        frames = ring.frames(PATIENCE)
        for number in range(count):
            assert bytes(take_one(frames, number, count).data) == frame(number)
            credit.release()
        sender.join()
        statistics = ring.statistics()
    assert statistics == (count, 0, 0)


@root
def test_a_full_ring_drops_counts_and_thaws(wire: Wire) -> None:
    capacity = PER_BLOCK * SMALL.block_count
    # Nothing is retired half empty meanwhile.
    geometry = RingGeometry(SMALL.block_size, SMALL.block_count, retire_timeout=2000)
    total = Counter[str]()

    def count() -> int:
        total.update(ring.statistics()._asdict())
        return total["packets"]

    with capture(wire, geometry=geometry) as ring:
        for first in (0, 3 * capacity):  # twice: a thawed ring is as good as new
            sent = range(first, first + 3 * capacity)
            total.clear()
            wire.send(*map(wire.frame, sent))
            wait_until(lambda: count() == 3 * capacity, "every frame is counted", PATIENCE)
            packets, drops = total["packets"], total["drops"]
            assert total["freezes"] >= 1
            assert 0 < drops < packets
            kept = [number_of(frame) for frame in take(ring, packets - drops)]
            assert kept == list(sent[: len(kept)])
            assert capacity - PER_BLOCK <= len(kept) <= capacity
            assert list(ring.frames(0)) == []


@root
def test_statistics_clear_on_read(wire: Wire) -> None:
    with capture(wire) as ring:
        wire.send(*map(wire.frame, range(5)))
        take(ring, 5)
        assert ring.statistics() == (5, 0, 0)
        assert ring.statistics() == (0, 0, 0)


# --- Iteration ---


@root
def test_a_timeout_ends_the_iteration(wire: Wire) -> None:
    with capture(wire) as ring:
        start = time.monotonic()
        assert list(ring.frames(0.05)) == []
        assert 0.05 <= time.monotonic() - start < 0.05 + PATIENCE
        wire.send(wire.frame(1), wire.frame(2))
        assert [number_of(frame.data) for frame in ring.frames(0.05)] == [1, 2]


@native
def test_a_timeout_of_zero_takes_what_is_there() -> None:
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        assert list(ring.frames(0)) == []
        for index in range(3):
            block = build_block(
                [BlockFrame(bytes([index, at])) for at in range(5)],
                SMALL.block_size,
                sequence=index + 1,
            )
            file.put(index, block)
        taken = [bytes(frame.data) for frame in ring.frames(0)]
        assert taken == [bytes([index, at]) for index in range(3) for at in range(5)]
        assert [file.status(index) for index in range(3)] == [0, 0, 0]


@native
def test_the_time_that_a_frame_is_held_does_not_count() -> None:
    """The timeout is for frames that do not come, not for a slow consumer."""
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        file.put(0, build_block([BlockFrame(b"0"), BlockFrame(b"1")], SMALL.block_size))
        frames = ring.frames(0.02)
        assert bytes(next(frames).data) == b"0"
        time.sleep(0.03)
        assert bytes(next(frames).data) == b"1"
        file.put(1, build_block([BlockFrame(b"2")], SMALL.block_size, sequence=2))
        time.sleep(0.03)
        assert bytes(next(frames).data) == b"2"


@native
def test_a_frame_is_readable_until_the_next_block() -> None:
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        file.put(0, build_block([BlockFrame(b"00"), BlockFrame(b"01")], SMALL.block_size))
        file.put(1, build_block([BlockFrame(b"10")], SMALL.block_size, sequence=2))
        frames = ring.frames(0)
        first, second = next(frames), next(frames)
        assert (bytes(first.data), bytes(second.data)) == (b"00", b"01")
        third = next(frames)
        assert bytes(third.data) == b"10"
        for frame in (first, second):
            with pytest.raises(ValueError, match="released"):
                bytes(frame.data)
        assert next(frames, None) is None
        with pytest.raises(ValueError, match="released"):
            bytes(third.data)


@native
def test_a_frame_outlives_the_iterator_that_gave_it() -> None:
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        file.put(0, build_block([BlockFrame(b"first"), BlockFrame(b"second")], SMALL.block_size))
        frame = next(iter(ring))
        gc.collect()
        assert bytes(frame.data) == b"first"


@native
def test_a_later_iteration_goes_on_where_an_earlier_one_stopped() -> None:
    """Leaving a loop costs no frame, and reads none twice."""
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        for index in range(3):
            block = [BlockFrame(bytes([index, at])) for at in range(4)]
            file.put(index, build_block(block, SMALL.block_size, sequence=index + 1))
        taken = []
        for frame in ring:
            taken.append(bytes(frame.data))
            break
        taken += [bytes(next(ring.frames(0)).data) for _ in range(2)]
        one, other = ring.frames(0), ring.frames(0)
        for _ in range(3):
            taken += [bytes(next(one).data), bytes(next(other).data)]
        taken += [bytes(frame.data) for frame in ring.frames(0)]
        assert taken == [bytes([index, at]) for index in range(3) for at in range(4)]
        assert [file.status(index) for index in range(3)] == [0, 0, 0]


@native
def test_another_views_hold_on_a_frame_does_not_stop_the_ring() -> None:
    """Arrays and the like export a view; it cannot be released, but nothing else suffers."""
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        for index in range(2):
            block = [BlockFrame(bytes([index, at])) for at in range(2)]
            file.put(index, build_block(block, SMALL.block_size, sequence=index + 1))
        frames = ring.frames(0)
        held, free = next(frames), next(frames)
        export = pickle.PickleBuffer(held.data)
        assert bytes(next(frames).data) == bytes([1, 0])
        with pytest.raises(ValueError, match="released"):
            bytes(free.data)
        assert file.status(0) == 0
        assert bytes(next(frames).data) == bytes([1, 1])
        assert export.raw().nbytes == 2
        export.release()


@native
def test_a_slice_stays_readable_beyond_close() -> None:
    before = mappings()
    with FileRing(SMALL) as file:
        with Ring(file.socket, SMALL) as ring:
            file.put(0, build_block([BlockFrame(b"a frame")], SMALL.block_size))
            held = next(ring.frames(0)).data[2:]
        assert bytes(held) == b"frame"
        assert mappings() == before + 2  # the file's own, and the ring's
        del ring, held
        gc.collect()
        assert mappings() == before + 1


@native
def test_the_iteration_ends_when_the_ring_is_closed_meanwhile() -> None:
    """Even in the middle of a block of which nobody holds a frame any more."""
    with FileRing(SMALL) as file:
        ring = Ring(file.socket, SMALL)
        file.put(0, build_block([BlockFrame(b"0"), BlockFrame(b"1")], SMALL.block_size))
        frames = ring.frames(0)
        next(frames).data.release()
        ring.close()
        with pytest.raises(ValueError, match="closed"):
            next(frames)
        assert file.status(0) == USER  # the rest of it is another reader's


@native
def test_a_closed_ring_cannot_be_used() -> None:
    with FileRing(SMALL) as file:
        ring = Ring(file.socket, SMALL)
        ring.close()
        ring.close()
        with pytest.raises(ValueError, match="closed"):
            next(iter(ring))
        with pytest.raises(ValueError, match="closed"):
            _ = ring.memory


@native
@pytest.mark.parametrize("count", [0, 1, 3, 0xFFFFFFFF])
def test_a_block_with_a_wrong_count_costs_no_other(count: int) -> None:
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        broken = build_block([BlockFrame(b"0"), BlockFrame(b"1")], SMALL.block_size)
        broken[COUNT_AT : COUNT_AT + 4] = count.to_bytes(4, sys.byteorder)
        file.put(0, broken)
        file.put(1, build_block([BlockFrame(b"2")], SMALL.block_size, sequence=2))
        taken = [bytes(frame.data) for frame in ring.frames(0)]
        assert taken[-1] == b"2"
        assert len(taken) <= 3
        assert [file.status(index) for index in range(2)] == [0, 0]


# --- Mappings ---


@root
def test_another_mapping_resumes_at_the_oldest_block(wire: Wire) -> None:
    """A fresh one knows nothing of where the last one stopped, nor where the ring began."""
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_ring(SMALL)
        packet_socket.bind(wire.near_if)
        for lap in range(20):
            sent = [wire.frame(lap << 8 | number) for number in range(3 * PER_BLOCK + lap)]
            wire.send(*sent)
            with Ring(packet_socket, SMALL) as ring:
                assert take(ring, len(sent)) == sent
                # What was taken is given back when the next frame is asked for.
                assert list(ring.frames(0)) == []


@root
def test_two_mappings_share_the_frames(wire: Wire) -> None:
    """One that fell behind another finds its place again, instead of waiting at the old one."""
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_ring(SMALL)
        packet_socket.bind(wire.near_if)
        with Ring(packet_socket, SMALL) as one, Ring(packet_socket, SMALL) as other:
            for number in range(20):
                for ring in (one, other, other):
                    wire.send(wire.frame(number))
                    assert [number_of(frame) for frame in take(ring, 1)] == [number]
                    assert list(ring.frames(0)) == []


@native
def test_a_ring_that_is_out_of_step_finds_the_oldest_block() -> None:
    with FileRing(SMALL) as file, Ring(file.socket, SMALL) as ring:
        file.put(0, build_block([BlockFrame(b"1")], SMALL.block_size, sequence=1))
        assert [bytes(frame.data) for frame in ring.frames(0)] == [b"1"]
        for sequence in (14, 13, 12):
            block = build_block(
                [BlockFrame(bytes([sequence]))], SMALL.block_size, sequence=sequence
            )
            file.put((sequence - 1) % SMALL.block_count, block)
        taken = [bytes(frame.data) for frame in ring.frames(0.01)]
        assert taken == [bytes([sequence]) for sequence in (12, 13, 14)]


@root
@pytest.mark.parametrize(
    "geometry", [RingGeometry(PAGE, 9), RingGeometry(2 * PAGE, 8), RingGeometry(PAGE, 16)]
)
def test_a_wrong_geometry_cannot_be_mapped(wire: Wire, geometry: RingGeometry) -> None:
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_ring(SMALL)
        with pytest.raises(OSError, match="mmap") as caught:
            Ring(packet_socket, geometry)
        assert caught.value.errno == errno.EINVAL
        Ring(packet_socket, SMALL).close()


@root
def test_a_socket_without_ring_cannot_be_mapped(wire: Wire) -> None:
    with wire.near.enter(), PacketSocket() as packet_socket, pytest.raises(OSError, match="mmap"):
        Ring(packet_socket, SMALL)


@pytest.mark.parametrize(
    ("numbers", "what"),
    [
        ({"block_size": 0}, "block_size"),
        ({"block_size": PAGE // 2}, "block_size"),
        ({"block_size": PAGE - 1}, "block_size"),
        ({"block_size": PAGE + 1}, "block_size"),
        ({"block_size": -PAGE}, "block_size"),
        ({"block_count": 7}, "block_count"),
        ({"block_count": (1 << 24) + 1}, "block_count"),
        ({"retire_timeout": 0}, "retire_timeout"),
        ({"retire_timeout": 10001}, "retire_timeout"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(numbers: dict[str, int], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        RingGeometry(**numbers)


def test_the_size_of_a_ring() -> None:
    assert RingGeometry(2 * PAGE, 10).size == 20 * PAGE
    assert RingGeometry().size == 256 * max(16384, PAGE)


# --- Opening and closing ---


@root
def test_close_releases_the_socket(wire: Wire) -> None:
    gc.collect()
    before = sockets_of(wire), mappings(), descriptors()
    with capture(wire) as ring:
        assert (sockets_of(wire), mappings(), descriptors()) == tuple(each + 1 for each in before)
        wire.send(wire.frame(1))
        take(ring, 1)
    assert ring.fileno() == -1
    assert (sockets_of(wire), mappings(), descriptors()) == before


@root
def test_a_borrowed_socket_stays_open(wire: Wire) -> None:
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_ring(SMALL)
        Ring(packet_socket, SMALL).close()
        assert packet_socket.fileno() >= 0


@root
def test_a_socket_closed_under_the_ring_ends_the_iteration(wire: Wire) -> None:
    """The mapping keeps the frames, but there is nothing left to wait for more on."""
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_ring(SMALL)
        packet_socket.bind(wire.near_if)
        with Ring(packet_socket, SMALL) as ring:
            frames = ring.frames(PATIENCE)
            wire.send(wire.frame(1))
            take_one(frames)
            packet_socket.close()
            with pytest.raises(ValueError, match="descriptor"):
                next(frames)


@root
def test_nothing_leaks(wire: Wire) -> None:
    with capture(wire):  # what is made once is there now
        pass
    gc.collect()
    before = sockets_of(wire), mappings(), descriptors()
    for _ in range(50):
        with capture(wire) as ring:
            list(ring.frames(0))
    assert (sockets_of(wire), mappings(), descriptors()) == before


@root
@pytest.mark.parametrize("name", ["absent", "", "a name much too long for an interface"])
def test_an_unknown_interface_leaves_nothing(wire: Wire, name: str) -> None:
    before = sockets_of(wire), mappings(), descriptors()
    for _ in range(5):
        with wire.near.enter(), pytest.raises(OSError, match=os.strerror(errno.ENODEV)) as caught:
            Ring.open(name, geometry=SMALL)
        assert caught.value.errno == errno.ENODEV
    del caught
    gc.collect()
    assert (sockets_of(wire), mappings(), descriptors()) == before


@root
def test_a_geometry_that_the_kernel_refuses_leaves_nothing(wire: Wire) -> None:
    before = sockets_of(wire), mappings(), descriptors()
    # More blocks than the kernel can list: it refuses before it takes any memory.
    too_large = RingGeometry(1 << 22, 1 << 24)
    with wire.near.enter(), pytest.raises(OSError, match=r".") as caught:
        Ring.open(wire.near_if, geometry=too_large)
    assert caught.value.errno in {errno.EINVAL, errno.ENOMEM}
    del caught
    gc.collect()
    assert (sockets_of(wire), mappings(), descriptors()) == before


@root
def test_without_the_capability_opening_is_refused(wire: Wire) -> None:
    code = """
from pktstun.kernel import Ring
try:
    Ring.open("v0")
except PermissionError as error:
    print(error)
"""
    result = wire.near.run([sys.executable, "-c", code], drop_capabilities=["net_raw"], check=True)
    assert result.stdout == f"[Errno {errno.EPERM}] {os.strerror(errno.EPERM)}\n"


@root
def test_an_interrupt_ends_the_iteration(wire: Wire) -> None:
    code = """
from pktstun.kernel import Ring
with Ring.open("v0") as ring:
    try:
        print("ready", flush=True)
        for frame in ring:
            print("frame", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
"""
    process = wire.near.popen([sys.executable, "-c", code], stderr=subprocess.STDOUT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    wire.send(wire.frame(1))
    assert process.stdout.readline() == "frame\n"
    stat = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: ") S " in stat.read_text(encoding="utf-8"), "it waits for frames")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE)[0] == "interrupted\n"
    assert process.returncode == 0


# --- The interface goes ---


def set_near(wire: Wire, state: str) -> None:
    wire.lab.link_set(wire.near, wire.near_if, state=state)
    if state == "up":
        # The transmit queue of the other end swallows frames until it has heard of it.
        ends = ((wire.near, wire.near_if), (wire.far, wire.far_if))
        wait_until(
            lambda: all(wire.lab.link(*end).get("operstate") == "UP" for end in ends),
            "the link is up",
        )


@root
def test_an_interface_that_goes_down_and_up(wire: Wire) -> None:
    with capture(wire) as ring:
        for number in range(3):
            set_near(wire, "down")
            with pytest.raises(OSError, match=os.strerror(errno.ENETDOWN)) as caught:
                next(ring.frames(PATIENCE))
            assert caught.value.errno == errno.ENETDOWN
            assert list(ring.frames(0.01)) == []  # said once
            set_near(wire, "up")
            wire.send(wire.frame(number))
            assert [number_of(frame) for frame in take(ring, 1)] == [number]


@root
def test_going_down_costs_no_frame(wire: Wire) -> None:
    with capture(wire) as ring:
        wire.send(*map(wire.frame, range(100)))
        set_near(wire, "down")
        came: list[int] = []

        def read() -> bool:
            # The error may be reported before the last block is retired.
            with suppress(OSError):
                came.extend(number_of(frame.data) for frame in ring.frames(0))
            return len(came) >= 100

        wait_until(read, "the frames from before are read", PATIENCE)
        assert came == list(range(100))


@root
def test_an_interface_that_goes_down_wakes_the_reader(wire: Wire) -> None:
    raised: list[OSError] = []

    def read(ring: Ring) -> None:
        try:
            take_one(ring.frames(PATIENCE))
        except OSError as error:
            raised.append(error)

    with capture(wire) as ring:
        reader = threading.Thread(target=read, args=(ring,))
        reader.start()
        set_near(wire, "down")
        reader.join()
    assert [error.errno for error in raised] == [errno.ENETDOWN]


@root
def test_an_interface_that_is_deleted(wire: Wire) -> None:
    with capture(wire) as ring:
        wire.lab.delete_link(wire.near, wire.near_if)
        with pytest.raises(OSError, match=os.strerror(errno.ENETDOWN)):
            next(ring.frames(PATIENCE))


@root
def test_an_interface_that_is_down_at_first(wire: Wire) -> None:
    set_near(wire, "down")
    with capture(wire) as ring:
        with pytest.raises(OSError, match=os.strerror(errno.ENETDOWN)):
            next(ring.frames(PATIENCE))
        set_near(wire, "up")
        wire.send(wire.frame(1))
        assert [number_of(frame) for frame in take(ring, 1)] == [1]
