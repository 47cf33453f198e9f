"""The filters keep what they say, by an interpreter of our own and by the kernel.

The interpreter, `tests/kernel/classic_bpf.py`, shares nothing with the assembler. Properties
compare it with a plain reading of the frame; the tests as root let the kernel run the same
programs and compare what arrives.
"""

from __future__ import annotations

import itertools
import mmap
import os
import socket
import struct
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pktstun.kernel import (
    Datagram,
    FanoutMode,
    PacketSocket,
    Program,
    Ring,
    RingGeometry,
    UDPSocket,
)
from pktstun.kernel.bpf import DROP_ALL, _Instruction, member_for_cpu, not_from, udp_from, udp_to
from pktstun.packet import (
    EthernetHeader,
    EtherType,
    ExtensionHeader,
    IPProtocol,
    IPv4Flags,
    IPv4Header,
    IPv6Header,
    PacketType,
    UDPHeader,
    VlanTag,
    build_udp_frame,
)
from pktstun.stun import TransportAddress
from tests.kernel.classic_bpf import disassemble, run, successors
from tests.kernel.wire import PATIENCE, number_of, raw_socket, receive
from tests.netns.client import on_cpu
from tests.strategies.frames import frames, vlan_tags
from tests.strategies.frames import ports as any_port

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.kernel.wire import Wire
    from tests.lab import TwoHosts

KEEP_ALL = 0x40000
MANY_PORTS = tuple(range(10_000, 10_200))

IPV4 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
IPV6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")

port_lists = st.lists(any_port, max_size=5, unique=True)


# --- The assembler ---


def instruction(code: int, k: int = 0, true: str = "", false: str = "") -> _Instruction:
    return _Instruction(code, k, true, false)


RETURN = instruction(0x06, 7)


def test_labels_become_distances() -> None:
    program = Program.build(
        [instruction(0x15, 5, "yes", "no"), "no", instruction(0x06, 0), "yes", RETURN]
    )
    assert disassemble(program.records) == [(0x15, 1, 0, 5), (0x06, 0, 0, 0), (0x06, 0, 0, 7)]
    assert len(program) == 3


@pytest.mark.parametrize(
    "source",
    [
        [instruction(0x15, 0, "nowhere"), RETURN],
        ["back", instruction(0x15, 0, "back"), RETURN],
        [RETURN, "back", instruction(0x15, 0, "", "back"), RETURN],
        [instruction(0x15, 0, "far"), *[RETURN] * 256, "far", RETURN],
        [instruction(0x15, 0, "end"), RETURN, "end"],
        [instruction(0x05, 0, "nowhere"), RETURN],
        ["back", RETURN, instruction(0x05, 0, "back"), RETURN],
    ],
    ids=["no label", "itself", "backwards", "too far", "the end", "always", "always backwards"],
)
def test_a_jump_that_leads_nowhere_is_refused(source: list[_Instruction | str]) -> None:
    with pytest.raises(ValueError, match="no jump from instruction"):
        Program.build(source)


def test_the_longest_jumps() -> None:
    program = Program.build(
        [instruction(0x15, 0, "far"), *[instruction(0x06)] * 255, "far", RETURN]
    )
    assert run(program.records) == 7
    program = Program.build(
        [instruction(0x05, 0, "far"), *[instruction(0x06)] * 999, "far", RETURN]
    )
    assert run(program.records) == 7


@given(
    st.one_of(
        st.builds(udp_to, port_lists, outgoing=st.booleans()),
        st.lists(st.integers(0, 4095), min_size=1, max_size=300, unique=True).map(member_for_cpu),
        st.lists(st.integers(1, 1 << 31), max_size=300, unique=True).map(not_from),
    )
)
def test_every_path_ends_in_a_return(program: Program) -> None:
    steps = disassemble(program.records)
    assert all(
        at < following < len(steps)
        for at in range(len(steps))
        for following in successors(steps, at)
    )


# --- What udp_to keeps ---


def wanted(frame: bytes, ports: Collection[int]) -> bool:
    """What `udp_to` says of itself, read off the frame in the plainest way."""
    try:
        start = 18 if word(frame, 12) in {0x8100, 0x88A8} else 14
        ethertype, packet = word(frame, start - 2), frame[start:]
        if ethertype == 0x0800:
            return wanted_ipv4(packet, ports)
        return ethertype == 0x86DD and wanted_ipv6(packet, ports)
    except (IndexError, struct.error):
        return False  # it ends too early


def word(data: bytes, at: int) -> int:
    (value,) = struct.unpack_from("!H", data, at)
    return int(value)


def wanted_ipv4(packet: bytes, ports: Collection[int]) -> bool:
    is_first = word(packet, 6) & 0x1FFF == 0
    udp = 4 * (packet[0] & 0xF)
    return packet[9] == 17 and is_first and word(packet, udp + 2) in ports


def wanted_ipv6(packet: bytes, ports: Collection[int]) -> bool:
    kind, at = packet[6], 40
    for _ in range(6):
        if kind == 44 and word(packet, at + 2) >> 3 == 0:
            length = 8
        elif kind == 51:
            length = 4 * (packet[at + 1] + 2)
        elif kind in {0, 43, 60, 135, 139, 140}:
            length = 8 * (packet[at + 1] + 1)
        else:
            break
        kind, at = packet[at], at + length
    return kind == 17 and word(packet, at + 2) in ports


def keeps(ports: Collection[int], frame: bytes) -> bool:
    kept = run(udp_to(list(ports)).records, frame)
    assert kept in {0, KEEP_ALL}
    return kept == KEEP_ALL


@st.composite
def chains(draw: st.DrawFn) -> bytes:
    """An IPv6 datagram behind any number of extension headers, in up to three VLAN tags."""
    headers = []
    for kind in draw(st.lists(st.sampled_from(list(IPProtocol)), max_size=8)):
        if kind == IPProtocol.UDP:
            continue
        if kind == IPProtocol.FRAGMENT:
            offset = draw(st.sampled_from([0, 0, 0, 1, 0x1FFF])) << 3
            body = struct.pack("!HI", offset | draw(st.integers(0, 7)), 1)
        else:
            unit = 4 if kind == IPProtocol.AUTHENTICATION else 8
            body = bytes(6 + unit * draw(st.integers(0, 5)))
        headers.append(ExtensionHeader(kind, body))
    segment = UDPHeader(draw(any_port), draw(any_port)).encode(b"payload", *IPV6)
    packet = IPv6Header(*IPV6, IPProtocol.UDP, extensions=tuple(headers)).encode(segment)
    tags = tuple(draw(st.lists(vlan_tags, max_size=3)))
    frame = EthernetHeader(bytes(6), bytes(6), EtherType.IPV6, tags).encode(packet)
    return frame[: draw(st.integers(0, len(frame)) | st.just(len(frame)))]


@given(frames(st.binary(max_size=40)).map(lambda drawn: drawn[0]) | chains(), port_lists)
def test_udp_to_keeps_exactly_what_it_says(frame: bytes, ports: list[int]) -> None:
    assert keeps(ports, frame) == wanted(frame, ports)


@given(chains())
def test_udp_to_keeps_nothing_for_no_port(frame: bytes) -> None:
    assert not keeps([], frame)


@pytest.mark.parametrize("port", [MANY_PORTS[0], MANY_PORTS[77], MANY_PORTS[-1], 9_999, 10_200])
@pytest.mark.parametrize("addresses", [IPV4, IPV6])
def test_udp_to_takes_many_ports(
    addresses: tuple[IPv4Address, IPv4Address] | tuple[IPv6Address, IPv6Address], port: int
) -> None:
    frame = build_udp_frame(b"", (addresses[0], 1), (addresses[1], port))
    assert keeps(MANY_PORTS, frame) == (port in MANY_PORTS)


@given(
    frames(st.binary(max_size=40)).map(lambda drawn: drawn[0]) | chains(),
    port_lists,
    st.sampled_from(PacketType),
)
def test_udp_to_leaves_out_what_this_host_sends(
    frame: bytes, ports: list[int], packet_type: PacketType
) -> None:
    records = udp_to(ports, outgoing=False).records
    kept = run(records, frame, packet_type=packet_type) == KEEP_ALL
    assert kept == (packet_type is not PacketType.OUTGOING and wanted(frame, ports))
    # Without being told to, it does not look at the type.
    assert keeps(ports, frame) == bool(run(udp_to(ports).records, frame, packet_type=packet_type))


@given(frames(st.binary(max_size=40)).map(lambda drawn: drawn[0]) | chains(), port_lists)
def test_udp_from_is_udp_to_with_the_ports_exchanged(frame: bytes, ports: list[int]) -> None:
    for addresses in (IPV4, IPV6):
        there = build_udp_frame(b"", (addresses[0], 1), (addresses[1], 2))
        assert bool(run(udp_from(ports).records, there)) == (1 in ports)
        assert bool(run(udp_from([1]).records, there))
        assert not run(udp_from([2]).records, there)
    # Whatever else it is that keeps a frame away does so in both directions.
    every = range(1 << 16)
    if not wanted(frame, every):
        assert not run(udp_from(ports).records, frame)


# --- The other programs ---


@given(st.lists(st.integers(0, 4095), min_size=1, unique=True), st.integers(0, 4095))
def test_member_for_cpu_is_the_index_of_the_cpu(cpus: list[int], other: int) -> None:
    records = member_for_cpu(cpus).records
    assert [run(records, cpu=cpu) for cpu in cpus] == list(range(len(cpus)))
    if other not in cpus:
        assert run(records, cpu=other) == other % len(cpus)


def test_member_for_no_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="no CPU"):
        member_for_cpu([])


@given(st.lists(st.integers(1, 1 << 31), unique=True), st.integers(1, 1 << 31))
def test_not_from_drops_what_came_from_these(interfaces: list[int], other: int) -> None:
    records = not_from(interfaces).records
    for index in [*interfaces, other]:
        assert run(records, ifindex=index) == (0 if index in interfaces else KEEP_ALL)


def test_drop_all() -> None:
    assert run(DROP_ALL.records, bytes(100)) == 0


@pytest.mark.native
@pytest.mark.parametrize(
    "program",
    [
        DROP_ALL,
        udp_to([]),
        udp_to([3478]),
        udp_to(MANY_PORTS, outgoing=False),
        udp_from([3478]),
        member_for_cpu(range(256)),
        not_from([]),
        not_from(range(1, 100)),
    ],
    ids=["drop all", "no port", "one port", "ports", "from", "cpus", "no interface", "interfaces"],
)
def test_the_kernel_accepts_the_program(program: Program) -> None:
    with UDPSocket(TransportAddress(ip_address("127.0.0.1"), 0), program=program):
        pass


@pytest.mark.native
def test_a_program_that_the_kernel_refuses_is_an_error() -> None:
    no_return = Program.build([instruction(0x00)])
    for program in (Program(b""), no_return):
        with pytest.raises(OSError, match="Invalid argument"):
            UDPSocket(TransportAddress(ip_address("127.0.0.1"), 0), program=program)


# --- The kernel and the interpreter agree ---

PORT = 3478
FILTERED = (PORT, 0x2112)
EXTENSIONS = [kind for kind in IPProtocol if kind not in {IPProtocol.UDP, IPProtocol.FRAGMENT}]


def extension(kind: IPProtocol, words: int = 0) -> ExtensionHeader:
    unit = 4 if kind == IPProtocol.AUTHENTICATION else 8
    return ExtensionHeader(kind, bytes(6 + unit * words))


def fragment(offset: int, *, more: bool) -> ExtensionHeader:
    return ExtensionHeader(IPProtocol.FRAGMENT, struct.pack("!HI", offset << 3 | more, 1))


OPTIONS, ROUTING = extension(IPProtocol.DESTINATION_OPTIONS), extension(IPProtocol.ROUTING, 2)
INNER, OUTER = VlanTag(7, pcp=5), VlanTag(8, tpid=EtherType.SERVICE_VLAN)


def ipv4_frame(
    *tags: VlanTag,
    port: int = PORT,
    protocol: int = IPProtocol.UDP,
    options: bytes = b"",
    flags: IPv4Flags = IPv4Flags.NONE,
    offset: int = 0,
) -> bytes:
    header = IPv4Header(*IPV4, protocol, options=options, flags=flags, fragment_offset=offset)
    packet = header.encode(UDPHeader(1024, port).encode(b"payload", *IPV4))
    return EthernetHeader(bytes(6), bytes(6), EtherType.IPV4, tags).encode(packet)


def ipv6_frame(
    *tags: VlanTag,
    port: int = PORT,
    protocol: int = IPProtocol.UDP,
    extensions: tuple[ExtensionHeader, ...] = (),
) -> bytes:
    segment = UDPHeader(1024, port).encode(b"payload", *IPV6)
    packet = IPv6Header(*IPV6, protocol, extensions=extensions).encode(segment)
    return EthernetHeader(bytes(6), bytes(6), EtherType.IPV6, tags).encode(packet)


def examples() -> Iterator[bytes]:
    """Frames of every kind that `udp_to` tells apart."""
    for build in (ipv4_frame, ipv6_frame):
        for tags in ((), (INNER,), (OUTER,), (OUTER, INNER), (INNER, INNER), (OUTER, OUTER, INNER)):
            for port in (*FILTERED, 0, 80, 65535):
                yield build(*tags, port=port)
        for protocol in (1, 6, 50, 58, 59, 136):  # ICMP, TCP, ESP, ICMPv6, none, UDP-Lite
            yield build(protocol=protocol)
    for words, port in itertools.product(range(1, 11), (PORT, 80)):
        yield ipv4_frame(options=bytes(4 * words), port=port)
    yield from extended()
    yield from fragments()
    # Cut short on purpose: loads beyond the end.
    for frame in (ipv4_frame(), ipv6_frame(), ipv6_frame(extensions=(OPTIONS, ROUTING))):
        yield from (frame[:length] for length in range(14, len(frame)))
    yield EthernetHeader(bytes(6), bytes(6), 0x0806).encode(bytes(46))


def extended() -> Iterator[bytes]:
    for kind, count in itertools.product(EXTENSIONS, range(1, 8)):
        yield ipv6_frame(extensions=(extension(kind, count),) * count)
        yield ipv6_frame(OUTER, INNER, extensions=(extension(kind),) * count)
        yield ipv6_frame(extensions=(extension(kind),) * count, port=80)


def fragments() -> Iterator[bytes]:
    for flags, offset, tags in itertools.product(IPv4Flags, (0, 1, 0x1FFF), ((), (OUTER, INNER))):
        yield ipv4_frame(*tags, flags=flags, offset=offset)
    for offset, more in itertools.product((0, 1, 0x1FFF), (False, True)):
        for before in ((), (OPTIONS,), (OPTIONS, ROUTING)):
            for after in ((), (OPTIONS,)):
                yield ipv6_frame(extensions=(*before, fragment(offset, more=more), *after))


def as_tapped(frame: bytes) -> bytes:
    """The frame as a packet socket gets it: the kernel takes off the outer VLAN tag."""
    is_tagged = int.from_bytes(frame[12:14]) in {EtherType.VLAN, EtherType.SERVICE_VLAN}
    return frame[:12] + frame[16:] if is_tagged else frame


def test_the_examples_are_of_both_kinds() -> None:
    kept = [keeps(FILTERED, as_tapped(frame)) for frame in examples()]
    assert kept.count(True) > 50
    assert kept.count(False) > 50


def arrivals(wire: Wire, ring: Ring, sent: list[bytes]) -> list[bytes]:
    """What of the frames comes through; the last one must."""
    wire.send(*sent)
    came: list[bytes] = []
    for frame in ring.frames(PATIENCE):
        came.append(bytes(frame.data))
        if came[-1] == sent[-1]:
            return came
    raise TimeoutError("the last frame did not come")


@pytest.mark.root
def test_the_kernel_keeps_the_same_frames(wire: Wire) -> None:
    last = ipv4_frame() + b"the last one"
    with wire.near.enter():
        ring = Ring.open(wire.near_if, program=udp_to(FILTERED))
    with ring:
        sent = [*examples(), last]
        tapped = [as_tapped(frame) for frame in sent]
        assert arrivals(wire, ring, sent) == [frame for frame in tapped if keeps(FILTERED, frame)]
        assert ring.statistics().packets == sum(keeps(FILTERED, frame) for frame in tapped)


@pytest.mark.root
def test_the_kernel_keeps_the_same_generated_frames(wire: Wire) -> None:
    marks = itertools.count()
    with wire.near.enter():
        ring = Ring.open(wire.near_if, program=udp_to(FILTERED))

    # What an Ethernet interface takes, and of what tags are whole.
    drawn = (frames(st.binary(max_size=40)).map(lambda drawn: drawn[0]) | chains()).filter(
        lambda frame: 22 <= len(frame) <= 1500
    )

    @settings(max_examples=min(settings().max_examples, 100))
    @given(st.lists(drawn, max_size=20))
    def check(generated: list[bytes]) -> None:
        sent = [*generated, ipv4_frame() + next(marks).to_bytes(8)]
        tapped = [as_tapped(frame) for frame in sent]
        assert arrivals(wire, ring, sent) == [frame for frame in tapped if keeps(FILTERED, frame)]

    with ring:
        check()


@pytest.mark.root
@pytest.mark.parametrize("outgoing", [True, False])
def test_the_kernel_keeps_what_this_host_sends_if_wanted(wire: Wire, *, outgoing: bool) -> None:
    own, foreign = ipv4_frame() + b"own", ipv4_frame() + b"foreign"
    with wire.near.enter():
        ring = Ring.open(wire.near_if, program=udp_to(FILTERED, outgoing=outgoing))
    with ring, raw_socket(wire.near, wire.near_if) as sender:
        sender.send(own)
        assert arrivals(wire, ring, [foreign]) == ([own, foreign] if outgoing else [foreign])


@pytest.mark.root
def test_the_kernel_chooses_the_same_member(wire: Wire) -> None:
    """The CPUs in reverse, which is not what a group does by itself."""
    cpus = sorted(os.sched_getaffinity(0), reverse=True)
    program = member_for_cpu(cpus)
    geometry = RingGeometry(mmap.PAGESIZE, 8)
    members = []
    with wire.near.enter():
        group = None
        for _ in cpus:
            member = PacketSocket()
            member.set_ring(geometry)
            member.bind(wire.near_if)
            group = member.join_fanout(group, FanoutMode.CBPF)
            members.append((member, Ring(member, geometry)))
    members[0][0].set_fanout_program(program)
    for cpu in cpus:
        wire.send(wire.frame(cpu), cpu=cpu)
    for index, (member, ring) in enumerate(members):
        with member, ring:
            (frame,) = itertools.islice(ring.frames(PATIENCE), 1)
            cpu = number_of(bytes(frame.data))
            assert run(program.records, cpu=cpu) == index
            assert member.statistics().packets == 1


@pytest.mark.root
@pytest.mark.parametrize("ipv6", [False, True])
def test_the_kernel_drops_what_came_from_the_interface(hosts: TwoHosts, *, ipv6: bool) -> None:
    """Silently: a client must not be told that there is nobody."""
    wildcard, loopback, address = (
        ("::", "::1", hosts.server_ipv6[0])
        if ipv6
        else ("0.0.0.0", "127.0.0.1", hosts.server_ipv4[0])
    )
    with hosts.server.enter():
        program = not_from([socket.if_nametoindex(hosts.server_if)])
        server = UDPSocket(TransportAddress(ip_address(wildcard), 0), program=program)
        near = UDPSocket(TransportAddress(ip_address(wildcard), 0))
    with hosts.client.enter():
        far = UDPSocket(TransportAddress(ip_address(wildcard), 0))
    unreachable = ("Icmp6", "InDestUnreachs") if ipv6 else ("Icmp", "InDestUnreachs")

    def told() -> int:
        group, name = unreachable
        return hosts.client.snmp()[group][name]

    before = told()
    # On one CPU, so that what is sent later comes later.
    # On one CPU, so that what is sent later comes later.
    with closing(server), closing(near), closing(far), on_cpu(min(os.sched_getaffinity(0))):
        for sender, destination in ((far, address), (near, address), (near, loopback)):
            peer = TransportAddress(ip_address(destination), server.address.port)
            assert sender.sendmmsg([Datagram(destination.encode(), peer)]) == 1
        received = [datagram.data for datagram in receive(server, 2)]
        assert received == [address.encode(), loopback.encode()]
    assert told() == before
