"""Packet sockets: what a fanout group gets and who of it, and the order of opening.

Over veth a frame is received on the CPU of its sender, which is how these tests choose one.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pktstun.kernel import FanoutMode, PacketSocket, PacketStatistics, Ring, RingGeometry
from pktstun.kernel.bpf import DROP_ALL, Program, _Instruction, member_for_cpu
from tests.kernel.blocks import frames_per_block
from tests.kernel.wire import PATIENCE, Wire, descriptors, number_of, raw_socket, take
from tests.lab import require_root, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

pytestmark = pytest.mark.root

SEND_BUFFER = 1 << 20
CPUS = sorted(os.sched_getaffinity(0))
GEOMETRY = RingGeometry(block_size=mmap.PAGESIZE, block_count=64)
PER_BLOCK = frames_per_block(GEOMETRY)
KEEP_ALL = Program.build([_Instruction(0x06, 0x40000)])


class Member(NamedTuple):
    """A member of a fanout group, and what it gets."""

    socket: PacketSocket
    ring: Ring


@contextmanager
def fanout(
    wire: Wire,
    mode: FanoutMode,
    *,
    members: int = 2,
    program: Program | None = None,
    geometry: RingGeometry = GEOMETRY,
) -> Iterator[list[Member]]:
    """A group on the near end of the wire, opened as a service opens it."""
    with ExitStack() as stack:
        group = None
        made = []
        with wire.near.enter():
            for _ in range(members):
                member = stack.enter_context(PacketSocket())
                member.set_filter(DROP_ALL)
                member.set_ring(geometry)
                member.bind(wire.near_if)
                group = member.join_fanout(group, mode)
                made.append(Member(member, stack.enter_context(Ring(member, geometry))))
        if program is not None:
            made[0].socket.set_fanout_program(program)
        for each in made:
            each.socket.set_filter(KEEP_ALL)
            each.socket.statistics()
        yield made


def numbers(members: list[Member], count: int) -> list[list[int]]:
    """The numbers of the frames that each member gets, `count` in all."""
    got: list[list[int]] = [[] for _ in members]

    def all_came() -> bool:
        for numbers, member in zip(got, members, strict=True):
            numbers += [number_of(frame.data) for frame in member.ring.frames(0)]
        return sum(map(len, got)) >= count

    wait_until(all_came, f"{count} frames come", PATIENCE)
    return got


def send_from_each_cpu(wire: Wire, count: int) -> dict[int, list[int]]:
    """Send `count` frames from each CPU, in turns; return their numbers by CPU."""
    sent: dict[int, list[int]] = {cpu: [] for cpu in CPUS}
    serial = itertools.count()
    for _ in range(5):
        for cpu in CPUS:
            batch = [next(serial) for _ in range(count // 5)]
            wire.send(*map(wire.frame, batch), cpu=cpu)
            sent[cpu] += batch
    return sent


def test_the_member_of_the_cpu_gets_each_frame_once(wire: Wire) -> None:
    with fanout(wire, FanoutMode.CPU) as members:
        sent = send_from_each_cpu(wire, 100)
        got = numbers(members, 100 * len(CPUS))
        expected: list[list[int]] = [[], []]
        for cpu, batch in sent.items():
            expected[cpu % 2] += batch
        assert [sorted(each) for each in got] == [sorted(each) for each in expected]
        for each, member in zip(expected, members, strict=True):
            assert member.socket.statistics() == PacketStatistics(len(each), 0, 0)


def test_a_program_chooses_the_member(wire: Wire) -> None:
    cpus = CPUS[::-1]
    program = member_for_cpu(cpus)
    with fanout(wire, FanoutMode.CBPF, members=len(cpus), program=program) as members:
        sent = send_from_each_cpu(wire, 100)
        got = numbers(members, 100 * len(CPUS))
        assert {cpu: sorted(got[index]) for index, cpu in enumerate(cpus)} == sent


def test_a_program_can_be_replaced(wire: Wire) -> None:
    def always(index: int) -> Program:
        return Program.build([_Instruction(0x06, index)])

    with fanout(wire, FanoutMode.CBPF, members=3, program=always(2)) as members:
        for index in (2, 0, 1, 4):  # the kernel takes it modulo the number of members
            members[0].socket.set_fanout_program(always(index))
            wire.send(wire.frame(index))
            assert numbers(members, 1)[index % 3] == [index]


def test_a_full_member_rolls_over_to_the_other(wire: Wire) -> None:
    """A worker that does not come along costs no request while another one has room."""
    capacity = PER_BLOCK * GEOMETRY.block_count
    # Blocks are retired when they are full, however slow this machine is.
    geometry = RingGeometry(GEOMETRY.block_size, GEOMETRY.block_count, retire_timeout=500)
    with fanout(wire, FanoutMode.CPU, geometry=geometry) as members:
        for start in range(0, capacity + capacity // 2, 100):
            wire.send(*map(wire.frame, range(start, start + 100)), cpu=CPUS[0])
        sent = range(start + 100)
        got = numbers(members, len(sent))
        assert sorted(got[0] + got[1]) == list(sent)
        assert min(map(len, got)) > 0
        assert sum(member.socket.statistics().drops for member in members) == 0


def test_a_group_does_not_see_what_this_host_sends(wire: Wire) -> None:
    with wire.near.enter():
        tap = Ring.open(wire.near_if, geometry=GEOMETRY)
    with (
        tap,
        fanout(wire, FanoutMode.CPU) as members,
        raw_socket(wire.near, wire.near_if) as sender,
    ):
        for number in range(50):
            sender.send(wire.frame(number))
        wire.send(wire.frame(50))
        assert [number_of(frame) for frame in take(tap, 51)] == list(range(51))
        assert sorted(itertools.chain(*numbers(members, 1))) == [50]


def test_the_filter_in_between_lets_nothing_in(wire: Wire) -> None:
    """From bind on until the swap, through the joining of the group."""
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_filter(DROP_ALL)
        packet_socket.set_ring(GEOMETRY)
        with Ring(packet_socket, GEOMETRY) as ring:
            wire.send(wire.frame(0))
            packet_socket.bind(wire.near_if)
            wire.send(wire.frame(1))
            packet_socket.join_fanout(None, FanoutMode.CPU)
            wire.send(wire.frame(2))
            assert packet_socket.statistics() == PacketStatistics(0, 0, 0)
            packet_socket.set_filter(KEEP_ALL)
            wire.send(wire.frame(3))
            assert [number_of(frame) for frame in take(ring, 1)] == [3]
            packet_socket.set_filter(DROP_ALL)
            wire.send(wire.frame(4))
            packet_socket.set_filter(KEEP_ALL)
            wire.send(wire.frame(5))
            assert [number_of(frame) for frame in take(ring, 1)] == [5]
            assert packet_socket.statistics() == PacketStatistics(2, 0, 0)


def test_a_socket_that_is_not_bound_receives_nothing(wire: Wire) -> None:
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_ring(GEOMETRY)
        wire.send(wire.frame(0))
        assert packet_socket.statistics() == PacketStatistics(0, 0, 0)


def test_statistics_clear_on_read(wire: Wire) -> None:
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_ring(GEOMETRY)
        packet_socket.bind(wire.near_if)
        with Ring(packet_socket, GEOMETRY) as ring:
            wire.send(*map(wire.frame, range(7)))
            take(ring, 7)
        assert packet_socket.statistics() == PacketStatistics(packets=7, drops=0, freezes=0)
        assert packet_socket.statistics() == PacketStatistics(packets=0, drops=0, freezes=0)


def test_groups_without_a_number_are_apart(wire: Wire) -> None:
    with ExitStack() as stack, wire.near.enter():
        groups = set()
        for _ in range(20):
            packet_socket = stack.enter_context(PacketSocket())
            packet_socket.set_filter(DROP_ALL)
            packet_socket.bind(wire.near_if)
            groups.add(packet_socket.join_fanout(None, FanoutMode.CPU))
        assert len(groups) == 20
        assert all(0 <= group <= 0xFFFF for group in groups)


@pytest.mark.parametrize("group", [0, 1, 0xFFFF])
def test_any_group_can_be_joined(wire: Wire, group: int) -> None:
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.bind(wire.near_if)
        assert packet_socket.join_fanout(group, FanoutMode.CPU) == group


def test_what_cannot_join_a_group(wire: Wire) -> None:
    def refusal(packet_socket: PacketSocket, group: int | None, mode: FanoutMode) -> int | None:
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            packet_socket.join_fanout(group, mode)
        return caught.value.errno

    with wire.near.enter(), PacketSocket() as member, PacketSocket() as other:
        assert refusal(member, None, FanoutMode.CPU) == errno.EINVAL  # not bound yet
        for packet_socket in (member, other):
            packet_socket.bind(wire.near_if)
        group = member.join_fanout(None, FanoutMode.CPU)
        assert refusal(other, group, FanoutMode.CBPF) == errno.EINVAL
        assert refusal(member, group, FanoutMode.CPU) == errno.EALREADY
        assert other.join_fanout(group, FanoutMode.CPU) == group


def test_an_unknown_interface_cannot_be_bound(wire: Wire) -> None:
    with (
        wire.near.enter(),
        PacketSocket() as packet_socket,
        pytest.raises(OSError, match="No such device") as caught,
    ):
        packet_socket.bind("absent")
    assert caught.value.errno == errno.ENODEV


def test_binding_to_an_interface_that_is_down_leaves_an_error(wire: Wire) -> None:
    """A service may be started before its network."""
    wire.lab.link_set(wire.near, wire.near_if, state="down")
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.bind(wire.near_if)
        with pytest.raises(OSError, match=os.strerror(errno.ENETDOWN)) as caught:
            packet_socket.raise_error()
        assert caught.value.errno == errno.ENETDOWN
        packet_socket.raise_error()  # it has been cleared


def test_a_ring_can_be_set_once(wire: Wire) -> None:
    with wire.near.enter(), PacketSocket() as packet_socket:
        packet_socket.set_ring(GEOMETRY)
        with (
            Ring(packet_socket, GEOMETRY),
            pytest.raises(OSError, match=os.strerror(errno.EBUSY)) as caught,
        ):
            packet_socket.set_ring(GEOMETRY)
        assert caught.value.errno == errno.EBUSY


def test_close_closes() -> None:
    require_root()
    before = descriptors()
    packet_socket = PacketSocket()
    assert packet_socket.fileno() >= 0
    packet_socket.close()
    packet_socket.close()
    assert packet_socket.fileno() == -1
    with PacketSocket():
        pass
    assert descriptors() == before


# --- Sending ---


def test_a_sender_sends_past_the_taps_and_receives_nothing(lab: Lab) -> None:
    wire = Wire(lab)
    frames = [wire.frame(number, 74) for number in range(20)]
    with wire.far.enter():
        sender = PacketSocket()
        sender.bind_sender(wire.far_if, SEND_BUFFER)
        tap = Ring.open(wire.far_if)
    with wire.near.enter():
        ring = Ring.open(wire.near_if)
    with sender, tap, ring, socket.socket(fileno=os.dup(sender.fileno())) as same:
        for frame in frames:
            same.send(frame)
        assert take(ring, len(frames)) == frames
        wire.send(frames[0])
        # The tap has the frame that took the usual way, and no other.
        assert take(tap, 1) == frames[:1]
        back = raw_socket(wire.near, wire.near_if)
        with back:
            back.send(frames[0])
            assert take(tap, 1) == frames[:1]
        with pytest.raises(BlockingIOError):
            same.recv(1, socket.MSG_DONTWAIT)
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER
    wire.close()


def test_a_sender_needs_an_interface_that_is_there() -> None:
    require_root()
    with PacketSocket() as sender, pytest.raises(OSError, match="No such device") as caught:
        sender.bind_sender("absent", SEND_BUFFER)
    assert caught.value.errno == errno.ENODEV
