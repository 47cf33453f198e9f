"""The kernel loses exactly the frames that a ring answers, and has them back when the link goes.

The verdict is compared with a plain reading of the frame, and with what `receive` declines: by
BPF_PROG_TEST_RUN, and on a link, where there are VLAN tags as well. Packet sockets see what
passes: those of ETH_P_ALL are ahead of the program, those of one EtherType behind it.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pktstun.errors import PacketError
from pktstun.kernel import EbpfProgram, Ring, TcxLink, ingress_programs, takeover
from pktstun.kernel.ebpf import Condition, copy_and_add, jump_if_64, leave, load, program_name
from pktstun.packet import (
    EthernetHeader,
    EtherType,
    ExtensionHeader,
    FrameDrop,
    IPProtocol,
    IPv4Flags,
    IPv4Header,
    IPv6Header,
    PacketType,
    UDPHeader,
    VlanTag,
    receive,
)
from pktstun.stun import TransportAddress
from tests.kernel.ebpf_run import Loaded, can_run, loaded
from tests.kernel.wire import PATIENCE, Wire, descriptors, take
from tests.lab import require_root, wait_until
from tests.netns.client import on_cpu
from tests.strategies.frames import frames, ip_addresses, vlan_tags
from tests.strategies.frames import ports as any_port

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.lab import Lab, Namespace, TwoHosts

pytestmark = pytest.mark.root

NEXT, DROP = -1, 2
PORT = 3478
PASS_ALL = EbpfProgram.build(leave(0))  # TCX_PASS, or TC_ACT_OK in a program for clsact
# What `receive` declines for the form of the frame: the kernel must have its copy.
FORMS = {
    FrameDrop.NOT_HOST,
    FrameDrop.VLAN,
    FrameDrop.NOT_IP,
    FrameDrop.FRAGMENT,
    FrameDrop.NOT_UDP,
    FrameDrop.IP_OPTIONS,
    FrameDrop.IPV6_EXTENSION,
}
MACS = {
    PacketType.BROADCAST: b"\xff" * 6,
    PacketType.MULTICAST: bytes.fromhex("01005e000001"),
    PacketType.OTHERHOST: bytes.fromhex("020000000001"),
}


def endpoint(ip: str, port: int = PORT) -> TransportAddress:
    return TransportAddress(ip_address(ip), port)


# --- The verdict ---


def destination(frame: bytes) -> TransportAddress | None:
    """Where a frame goes that might be taken over, going by its bytes alone."""
    if len(frame) < 62:
        return None
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype == 0x0800:
        (fragment,) = struct.unpack_from("!H", frame, 20)
        if frame[14] == 0x45 and fragment & 0x3FFF == 0 and frame[23] == 17:
            return TransportAddress(IPv4Address(frame[30:34]), int.from_bytes(frame[36:38]))
    if ethertype == 0x86DD and frame[14] >> 4 == 6 and frame[20] == 17:
        return TransportAddress(IPv6Address(frame[38:54]), int.from_bytes(frame[56:58]))
    return None


def is_mapped(address: TransportAddress) -> bool:
    return isinstance(address.ip, IPv6Address) and address.ip.ipv4_mapped is not None


def endpoints_near(addresses: list[TransportAddress]) -> st.SearchStrategy[list[TransportAddress]]:
    """Some of these endpoints, and others that share an address or a port with them."""
    if not addresses:
        addresses = [endpoint("192.0.2.1")]
    ips = st.sampled_from([address.ip for address in addresses])
    known_ports = st.sampled_from([address.port for address in addresses])
    return st.lists(
        st.sampled_from(addresses)
        | st.builds(TransportAddress, ips, known_ports | any_port)
        | st.builds(TransportAddress, ip_addresses | ips, known_ports),
        max_size=40,
    ).map(
        lambda drawn: (
            [address for address in drawn if not is_mapped(address)] or [endpoint("192.0.2.1")]
        )
    )


def declined(frame: bytes, packet_type: PacketType, vlan_id: int | None = None) -> FrameDrop | None:
    try:
        receive(frame, packet_type=packet_type, vlan_id=vlan_id)
    except PacketError as error:
        return FrameDrop(error.reason)
    return None


def check_verdict(
    program: Loaded,
    endpoints: Collection[TransportAddress],
    frame: bytes,
    packet_type: PacketType,
) -> None:
    verdict = program.run(frame).result
    hit = packet_type == PacketType.HOST and destination(frame) in endpoints
    assert verdict == (DROP if hit else NEXT)
    reason = declined(frame, packet_type)
    if reason in FORMS:
        assert verdict == NEXT
    elif reason is None and len(receive(frame).payload) >= 20:  # a STUN header
        datagram = receive(frame)
        target = TransportAddress(datagram.destination_ip, datagram.destination_port)
        assert verdict == (DROP if target in endpoints else NEXT)


@st.composite
def arriving(draw: st.DrawFn, host: bytes = bytes(6)) -> tuple[bytes, PacketType]:
    """A frame with the destination that makes its packet type."""
    frame, metadata = draw(frames(st.binary(min_size=8, max_size=60)))
    packet_type = metadata["packet_type"]
    if packet_type == PacketType.OUTGOING:
        packet_type = PacketType.OTHERHOST
    return MACS.get(packet_type, host) + frame[6:], packet_type


@given(st.data())
def test_the_verdict_on_generated_frames(data: st.DataObject) -> None:
    require_root()
    drawn = data.draw(st.lists(arriving(), min_size=1, max_size=20))
    usable = [each for each in drawn if can_run(each[0])]
    targets = [target for frame, _ in usable if (target := destination(frame))]
    endpoints = data.draw(endpoints_near(targets))
    with loaded(takeover(endpoints)) as program:
        for frame, packet_type in usable:
            check_verdict(program, endpoints, frame, packet_type)


def ipv4_frame(
    to: TransportAddress | None = None,
    *tags: VlanTag,
    mac: bytes = bytes(6),
    payload: bytes = bytes(20),
    protocol: int = IPProtocol.UDP,
    options: bytes = b"",
    flags: IPv4Flags = IPv4Flags.NONE,
    offset: int = 0,
) -> bytes:
    ip, port = to or endpoint("192.0.2.1")
    assert isinstance(ip, IPv4Address)
    source = IPv4Address("192.0.2.200")
    header = IPv4Header(source, ip, protocol, options=options, flags=flags, fragment_offset=offset)
    packet = header.encode(UDPHeader(1024, port).encode(payload, source, ip))
    return EthernetHeader(mac, bytes(6), EtherType.IPV4, tags).encode(packet)


def ipv6_frame(
    to: TransportAddress | None = None,
    *tags: VlanTag,
    mac: bytes = bytes(6),
    payload: bytes = bytes(20),
    protocol: int = IPProtocol.UDP,
    extensions: tuple[ExtensionHeader, ...] = (),
) -> bytes:
    ip, port = to or endpoint("2001:db8::1")
    assert isinstance(ip, IPv6Address)
    source = IPv6Address("2001:db8::200")
    segment = UDPHeader(1024, port).encode(payload, source, ip)
    packet = IPv6Header(source, ip, protocol, extensions=extensions).encode(segment)
    return EthernetHeader(mac, bytes(6), EtherType.IPV6, tags).encode(packet)


def frame_to(address: TransportAddress) -> bytes:
    return ipv4_frame(address) if address.ip.version == 4 else ipv6_frame(address)


def many(count: int) -> list[TransportAddress]:
    """Endpoints of both families that share addresses, halves of addresses, and ports."""
    ips: list[IPv4Address | IPv6Address] = []
    for number in range(count):
        ips.append(IPv4Address("198.51.100.0") + 0x00010101 * number)
        ips.append(IPv6Address("2001:db8::1") + (number << 72))
        ips.append(IPv6Address("2001:db8::") + (number << 56))
    pairs = itertools.product(ips, (PORT, PORT + 1))
    return [TransportAddress(*pair) for pair in itertools.islice(pairs, count)]


@pytest.mark.parametrize("count", [1, 2, 5, 256, 1000])
def test_each_endpoint_and_none_beside_it(count: int) -> None:
    require_root()
    endpoints = many(count)
    known = set(endpoints)
    others = {TransportAddress(ip, port + 2) for ip, port in endpoints}
    others |= {
        TransportAddress(type(ip)(int(ip) ^ 1 << bit), port)
        for (ip, port), bit in zip(endpoints, itertools.cycle(range(32)), strict=False)
    }
    others |= {endpoint("192.0.2.77"), endpoint("2001:db8:77::1")}
    with loaded(takeover(endpoints)) as program:
        assert {program.run(frame_to(each)).result for each in known} <= {DROP}
        assert {program.run(frame_to(each)).result for each in others - known} == {NEXT}


def test_an_ipv4_endpoint_is_no_ipv6_endpoint() -> None:
    require_root()
    with loaded(takeover([endpoint("192.0.2.1")])) as program:
        for prefix in ("::", "::ffff:", "64:ff9b::", "2002:c000:201::"):
            assert program.run(ipv6_frame(endpoint(f"{prefix}192.0.2.1"[:39]))).result == NEXT


@pytest.mark.parametrize(
    ("endpoints", "problem"),
    [
        ([], "no endpoint"),
        ([endpoint("::ffff:192.0.2.1")], "in no frame"),
        (many(10_000), "no jump from instruction"),
    ],
    ids=["none", "mapped", "too many"],
)
def test_endpoints_that_are_refused(endpoints: list[TransportAddress], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        takeover(endpoints)


# --- On a link ---


class Behind:
    """Sees the frames of both families that tcx ingress lets pass."""

    def __init__(self, wire: Wire, stack: ExitStack) -> None:
        self.wire = wire
        with wire.near.enter():
            self.ring = stack.enter_context(Ring.open(wire.near_if))
        self._sockets = {}
        for kind in (EtherType.IPV4, EtherType.IPV6):
            sock = stack.enter_context(wire.near.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            sock.bind((wire.near_if, kind))
            sock.settimeout(PATIENCE)
            self._sockets[kind] = sock
        self._marks = itertools.count()

    def send(self, sent: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Send frames; return what the tap sees of them and what passes, IPv4 first."""
        mark = b"mark" + next(self._marks).to_bytes(16)
        marks = [
            ipv4_frame(endpoint("192.0.2.199", 9), mac=self.wire.near_mac, payload=mark),
            ipv6_frame(endpoint("2001:db8::199", 9), mac=self.wire.near_mac, payload=mark),
        ]
        self.wire.send(*sent, *marks)
        tapped = take(self.ring, len(sent) + len(marks))
        assert tapped[-2:] == marks
        passed: list[bytes] = []
        for sock, last in zip(self._sockets.values(), marks, strict=True):
            while (frame := sock.recv(4096)) != last:
                passed.append(frame)
        return tapped[:-2], passed


def in_order(sent: list[bytes]) -> list[bytes]:
    """IPv4 first."""
    return sorted(sent, key=lambda frame: frame[12:14])


def untagged(frame: bytes) -> bytes:
    return frame[:12] + frame[16:] if frame[12:14] in {b"\x81\x00", b"\x88\xa8"} else frame


# Where the port would be without them, these have it, too.
FRAGMENT = ExtensionHeader(IPProtocol.FRAGMENT, struct.pack("!H4x", PORT))
OPTIONS = ExtensionHeader(IPProtocol.DESTINATION_OPTIONS, struct.pack("!H4x", PORT))
IPV4_OPTIONS = struct.pack("!2xH", PORT)


def with_first_octet(frame: bytes, octet: int) -> bytes:
    """Version and header length, or version and traffic class."""
    return frame[:14] + bytes([octet]) + frame[15:]


ENDPOINTS = [endpoint("192.0.2.1"), endpoint("2001:db8::1")]

DROPPED = {
    "ipv4": ipv4_frame(),
    "ipv6": ipv6_frame(),
    "ipv4, do not fragment": ipv4_frame(flags=IPv4Flags.DONT_FRAGMENT),
    "ipv4, reserved flag": ipv4_frame(flags=IPv4Flags.RESERVED),
    "ipv4, long": ipv4_frame(payload=bytes(1400)),
    "ipv6, shortest": ipv6_frame(payload=b""),
    "ipv6, traffic class": with_first_octet(ipv6_frame(), 0x6F),
    "ipv4, priority tag": ipv4_frame(None, VlanTag(0, pcp=7)),
    "ipv6, priority tag": ipv6_frame(None, VlanTag(0, tpid=EtherType.SERVICE_VLAN)),
}
PASSING = {
    "ipv4, other port": ipv4_frame(endpoint("192.0.2.1", PORT + 1)),
    "ipv6, other port": ipv6_frame(endpoint("2001:db8::1", PORT + 1)),
    "ipv4, port swapped": ipv4_frame(endpoint("192.0.2.1", 0x960D)),
    "ipv4, other address": ipv4_frame(endpoint("192.0.2.2")),
    "ipv6, other address": ipv6_frame(endpoint("2001:db8::2")),
    "ipv4, too short": ipv4_frame(payload=bytes(19)),
    "ipv4, first fragment": ipv4_frame(flags=IPv4Flags.MORE_FRAGMENTS),
    "ipv4, last fragment": ipv4_frame(offset=1),
    "ipv4, options": ipv4_frame(options=IPV4_OPTIONS),
    "ipv4, header too short": with_first_octet(ipv4_frame(), 0x44),
    "ipv4, version 3": with_first_octet(ipv4_frame(), 0x35),
    "ipv4, version 5": with_first_octet(ipv4_frame(), 0x55),
    "ipv6, version 5": with_first_octet(ipv6_frame(), 0x5F),
    "ipv6, version 7": with_first_octet(ipv6_frame(), 0x70),
    "ipv4, tcp": ipv4_frame(protocol=6),
    "ipv6, tcp": ipv6_frame(protocol=6),
    "ipv4, udp-lite": ipv4_frame(protocol=136),
    "ipv6, fragment": ipv6_frame(extensions=(FRAGMENT,)),
    "ipv6, options": ipv6_frame(extensions=(OPTIONS,)),
    "ipv4, vlan": ipv4_frame(None, VlanTag(1)),
    "ipv6, vlan": ipv6_frame(None, VlanTag(0x800, tpid=EtherType.SERVICE_VLAN)),
    **{f"ipv4, {kind.name}": ipv4_frame(mac=mac) for kind, mac in MACS.items()},
    **{f"ipv6, {kind.name}": ipv6_frame(mac=mac) for kind, mac in MACS.items()},
}


@pytest.fixture
def behind(wire: Wire) -> Iterator[Behind]:
    with ExitStack() as stack:
        yield Behind(wire, stack)


def addressed(wire: Wire, frame: bytes) -> bytes:
    return (wire.near_mac if frame[:6] == bytes(6) else frame[:6]) + frame[6:]


@contextmanager
def link(ns: Namespace, ifname: str, program: EbpfProgram) -> Iterator[TcxLink]:
    with ns.enter():
        made = TcxLink(socket.if_nametoindex(ifname), program)
    with made:
        yield made


def programs(ns: Namespace, ifname: str) -> tuple[int, ...]:
    with ns.enter():
        return ingress_programs(socket.if_nametoindex(ifname))


def test_which_kinds_of_frames_pass(wire: Wire, behind: Behind) -> None:
    kinds = {name: addressed(wire, frame) for name, frame in (DROPPED | PASSING).items()}
    names = {untagged(frame) + name.encode(): name for name, frame in kinds.items()}

    def send() -> set[str]:
        passed = set()
        for name, frame in kinds.items():
            tapped, behind_tcx = behind.send([frame])
            assert tapped == [untagged(frame)]
            passed |= {names[each + name.encode()] for each in behind_tcx}
        return passed

    assert send() == set(kinds)
    with link(wire.near, wire.near_if, takeover(ENDPOINTS)):
        assert send() == set(PASSING)
    assert send() == set(kinds)


def test_which_generated_frames_pass(wire: Wire, behind: Behind) -> None:
    @settings(max_examples=min(settings().max_examples, 50))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        strategy = st.tuples(arriving(wire.near_mac), st.none() | vlan_tags).filter(
            lambda drawn: (
                22 <= len(drawn[0][0]) <= 1500 and drawn[0][0][12:14] in {b"\x08\x00", b"\x86\xdd"}
            )
        )
        drawn = data.draw(st.lists(strategy, max_size=20))
        endpoints = data.draw(
            endpoints_near([target for (frame, _), _ in drawn if (target := destination(frame))])
        )
        sent, passing = [], []
        for (frame, packet_type), tag in drawn:
            vlan_id = tag.vid if tag else None
            sent.append(frame[:12] + tag.encode() + frame[12:] if tag else frame)
            hit = packet_type == PacketType.HOST and not vlan_id
            if not (hit and destination(frame) in endpoints):
                passing.append(frame)
            else:
                assert declined(frame, packet_type, vlan_id) not in FORMS
        with link(wire.near, wire.near_if, takeover(endpoints)):
            tapped, passed = behind.send(sent)
        assert tapped == [untagged(frame) for frame in sent]
        assert passed == in_order(passing)

    check()


# --- Between two hosts ---


@contextmanager
def taken_over(hosts: TwoHosts) -> Iterator[TcxLink]:
    """The first addresses of the server, IPv4 and IPv6, are ours."""
    ours = [endpoint(hosts.server_ipv4[0]), endpoint(hosts.server_ipv6[0])]
    with link(hosts.server, hosts.server_if, takeover(ours)) as made:
        yield made


@contextmanager
def listening(
    hosts: TwoHosts, kind: int = socket.SOCK_DGRAM, port: int = PORT
) -> Iterator[dict[socket.AddressFamily, socket.socket]]:
    """The server's sockets on wildcard addresses, by family."""
    with ExitStack() as stack:
        sockets = {}
        for family, ip in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            sock = stack.enter_context(hosts.server.socket(family, kind))
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((ip, port))
            sock.settimeout(PATIENCE)
            if kind == socket.SOCK_STREAM:
                sock.listen()
            sockets[family] = sock
        yield sockets


FIRST = [(socket.AF_INET, "10.77.0.1"), (socket.AF_INET6, "fd77::1")]
SECOND = [(socket.AF_INET, "10.77.0.2"), (socket.AF_INET6, "fd77::2")]


def send_from(
    hosts: TwoHosts,
    family: socket.AddressFamily,
    ip: str,
    payload: bytes,
    *options: tuple[int, int, bytes | int],
) -> None:
    with hosts.client.socket(family, socket.SOCK_DGRAM) as client, on_cpu(first_cpu()):
        for option in options:
            client.setsockopt(*option)
        client.sendto(payload, (ip, PORT))


def first_cpu() -> int:
    return min(os.sched_getaffinity(0))


@pytest.mark.parametrize(("family", "ip"), FIRST)
def test_the_tap_has_what_the_socket_has_not(
    hosts: TwoHosts, family: socket.AddressFamily, ip: str
) -> None:
    other = dict(SECOND)[family]
    with ExitStack() as stack:
        sock = stack.enter_context(listening(hosts))[family]
        with hosts.server.enter():
            ring = stack.enter_context(Ring.open(hosts.server_if, outgoing=False))
        stack.enter_context(taken_over(hosts))
        payloads = [bytes([number] * 20) for number in range(50)]
        for payload in payloads:
            send_from(hosts, family, ip, payload)
        send_from(hosts, family, other, b"the last one, for another address")
        assert sock.recv(2048) == b"the last one, for another address"
        seen = []
        for frame in ring.frames(PATIENCE):
            if declined(bytes(frame.data), PacketType.HOST) in {None, FrameDrop.BAD_UDP_CHECKSUM}:
                seen.append(bytes(frame.data)[42 if family == socket.AF_INET else 62 :])
            if seen[-1:] == [b"the last one, for another address"]:
                break
        assert seen[:-1] == payloads


# Drops what has fewer than 62 bytes in the linear part, from data to data_end.
IN_PIECES = EbpfProgram.build(
    [
        load(4, 2, 1, 76),
        load(4, 3, 1, 80),
        *copy_and_add(4, 2, 62),
        jump_if_64(Condition.LESS, 3, 4, "drop"),
        *leave(NEXT),
        "drop",
        *leave(DROP),
    ]
)


def test_a_frame_in_pieces(hosts: TwoHosts) -> None:
    """sendfile(2) puts headers into the linear part and the payload's pages behind it."""
    with ExitStack() as stack:
        sock = stack.enter_context(listening(hosts))[socket.AF_INET]
        client = stack.enter_context(hosts.client.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.connect((hosts.server_ipv4[0], PORT))
        file = stack.enter_context(tempfile.TemporaryFile())
        file.write(bytes(20))
        file.flush()

        def arrives() -> bool:
            with on_cpu(first_cpu()):
                assert os.sendfile(client.fileno(), file.fileno(), 0, 20) == 20
            send_from(hosts, socket.AF_INET, hosts.server_ipv4[1], b"the last one, elsewhere")
            return sock.recv(2048) == bytes(20) and bool(sock.recv(2048))

        assert arrives()
        with link(hosts.server, hosts.server_if, IN_PIECES):
            assert not arrives()
        assert arrives()
        with taken_over(hosts):
            assert not arrives()


IPV6_DSTOPTS = 59
PAD = b"\0\0\x01\x04\0\0\0\0"  # next header, length, PadN


@pytest.mark.parametrize(
    ("family", "ip", "size", "options"),
    [
        (*SECOND[0], 20, []),
        (*SECOND[1], 20, []),
        (*FIRST[0], 4000, []),
        (*FIRST[1], 4000, []),
        (*FIRST[0], 20, [(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01" * 4)]),
        (*FIRST[1], 20, [(socket.IPPROTO_IPV6, IPV6_DSTOPTS, PAD)]),
        (socket.AF_INET, "10.77.0.255", 20, [(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)]),
    ],
    ids=[
        "other ipv4 address",
        "other ipv6 address",
        "ipv4 fragments",
        "ipv6 fragments",
        "ipv4 options",
        "ipv6 destination options",
        "broadcast",
    ],
)
def test_what_the_socket_still_has(
    hosts: TwoHosts,
    family: socket.AddressFamily,
    ip: str,
    size: int,
    options: list[tuple[int, int, bytes | int]],
) -> None:
    with taken_over(hosts), listening(hosts) as sockets:
        send_from(hosts, family, ip, bytes(size), *options)
        assert sockets[family].recv(8192) == bytes(size)


@pytest.mark.parametrize(("family", "ip"), FIRST)
def test_another_port_of_the_same_address(
    hosts: TwoHosts, family: socket.AddressFamily, ip: str
) -> None:
    with ExitStack() as stack:
        stack.enter_context(taken_over(hosts))
        sock = stack.enter_context(listening(hosts, port=PORT + 1))[family]
        client = stack.enter_context(hosts.client.socket(family, socket.SOCK_DGRAM))
        client.sendto(bytes(20), (ip, PORT + 1))
        assert sock.recv(2048) == bytes(20)


@pytest.mark.parametrize(("family", "ip"), FIRST)
def test_tcp_to_the_same_port(hosts: TwoHosts, family: socket.AddressFamily, ip: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(taken_over(hosts))
        server = stack.enter_context(listening(hosts, socket.SOCK_STREAM))[family]
        client = stack.enter_context(hosts.client.socket(family, socket.SOCK_STREAM))
        client.settimeout(PATIENCE)
        client.connect((ip, PORT))
        accepted = stack.enter_context(server.accept()[0])
        client.sendall(bytes(100))
        assert accepted.recv(100, socket.MSG_WAITALL) == bytes(100)


def test_the_host_answers_pings(hosts: TwoHosts) -> None:
    with (
        taken_over(hosts),
        hosts.client.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client,
    ):
        client.settimeout(PATIENCE)
        request = struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1)  # echo request
        client.sendto(request, (hosts.server_ipv4[0], 0))
        assert client.recv(2048)[20] == 0  # echo reply


@pytest.mark.parametrize(("family", "ip"), FIRST)
def test_no_icmp_for_what_is_dropped(
    hosts: TwoHosts, family: socket.AddressFamily, ip: str
) -> None:
    """Nothing listens: without the program, the client learns that."""
    with hosts.client.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(0)
        client.connect((ip, PORT))

        def refused() -> bool:
            try:
                with on_cpu(first_cpu()):  # over veth, the answer comes before send returns
                    client.send(bytes(20))
                client.recv(2048)
            except ConnectionRefusedError:
                return True
            except BlockingIOError:
                return False
            pytest.fail("somebody answered")

        wait_until(refused, "the port is unreachable", PATIENCE)
        with taken_over(hosts):
            unreachable = hosts.server.snmp()
            assert not any(refused() for _ in range(20))
            after = hosts.server.snmp()
            for group, name in (("Udp", "NoPorts"), ("Udp6", "NoPorts"), ("Icmp", "OutMsgs")):
                assert after[group][name] == unreachable[group][name]
        wait_until(refused, "the port is unreachable again", PATIENCE)


# --- The life of a link ---

HOLDER = """
import socket, sys, time
from ipaddress import ip_address
from pktstun.kernel import TcxLink, takeover
from pktstun.stun import TransportAddress
endpoint = TransportAddress(ip_address(sys.argv[2]), int(sys.argv[3]))
link = TcxLink(socket.if_nametoindex(sys.argv[1]), takeover([endpoint]))
print("holding", flush=True)
time.sleep(60)
"""


def reaches(hosts: TwoHosts, sock: socket.socket, ip: str = FIRST[0][1]) -> bool:
    """Whether a datagram to the address reaches the server's socket."""
    send_from(hosts, socket.AF_INET, ip, b"is this one there?..")
    send_from(hosts, socket.AF_INET, "10.77.0.3", b"the last one")
    came = []
    while b"the last one" not in came:
        came.append(sock.recv(2048))
    return len(came) == 2


def test_close_gives_the_datagrams_back(hosts: TwoHosts) -> None:
    with listening(hosts) as sockets:
        before = descriptors()
        with taken_over(hosts) as made:
            assert descriptors() == before + 1
            assert not os.get_inheritable(made.fileno())
            assert len(programs(hosts.server, hosts.server_if)) == 1
            assert not reaches(hosts, sockets[socket.AF_INET])
        assert made.fileno() == -1
        made.close()
        assert descriptors() == before
        assert programs(hosts.server, hosts.server_if) == ()
        assert reaches(hosts, sockets[socket.AF_INET])


def test_kill_gives_the_datagrams_back(hosts: TwoHosts) -> None:
    with listening(hosts) as sockets:
        sock = sockets[socket.AF_INET]
        holder = hosts.server.popen(
            [sys.executable, "-c", HOLDER, hosts.server_if, FIRST[0][1], str(PORT)]
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        assert len(programs(hosts.server, hosts.server_if)) == 1
        assert not reaches(hosts, sock)
        holder.kill()
        holder.wait()
        wait_until(lambda: programs(hosts.server, hosts.server_if) == (), "the program is gone")
        assert reaches(hosts, sock)


def test_another_descriptor_keeps_the_program(hosts: TwoHosts) -> None:
    """Such as a forked process has."""
    with taken_over(hosts) as made:
        other = os.dup(made.fileno())
    assert len(programs(hosts.server, hosts.server_if)) == 1
    os.close(other)
    assert programs(hosts.server, hosts.server_if) == ()


def test_the_interface_may_go_first(lab: Lab, hosts: TwoHosts) -> None:
    with taken_over(hosts) as made:
        lab.delete_link(hosts.server, hosts.server_if)
        assert made.fileno() != -1
    lab.veth(hosts.server, hosts.server_if, hosts.client, hosts.client_if)
    assert programs(hosts.server, hosts.server_if) == ()


def test_two_links_at_once(hosts: TwoHosts) -> None:
    with listening(hosts) as sockets:
        sock = sockets[socket.AF_INET]
        with link(hosts.server, hosts.server_if, takeover([endpoint(SECOND[0][1])])):
            with taken_over(hosts):
                assert len(programs(hosts.server, hosts.server_if)) == 2
                assert not reaches(hosts, sock, FIRST[0][1])
                assert not reaches(hosts, sock, SECOND[0][1])
            assert reaches(hosts, sock, FIRST[0][1])
            assert not reaches(hosts, sock, SECOND[0][1])


def test_a_new_link_goes_in_front(hosts: TwoHosts) -> None:
    """One that lets all pass hides those behind it."""
    with listening(hosts) as sockets:
        sock = sockets[socket.AF_INET]
        with link(hosts.server, hosts.server_if, PASS_ALL):
            (other,) = programs(hosts.server, hosts.server_if)
            with taken_over(hosts):
                assert programs(hosts.server, hosts.server_if)[1:] == (other,)
                assert not reaches(hosts, sock)
                with link(hosts.server, hosts.server_if, PASS_ALL):
                    assert reaches(hosts, sock)


def test_programs_have_names(hosts: TwoHosts) -> None:
    with taken_over(hosts):
        (identifier,) = programs(hosts.server, hosts.server_if)
        assert program_name(identifier) == "pktstun"
    wait_until(lambda: not programs(hosts.server, hosts.server_if), "the program is gone")
    with pytest.raises(OSError, match="asking for a program"):
        program_name(0x7FFFFFFF)


# --- Errors ---


def test_no_such_interface(hosts: TwoHosts) -> None:
    before = descriptors()
    with hosts.server.enter():
        for attempt in (lambda: TcxLink(9999, takeover(ENDPOINTS)), lambda: ingress_programs(9999)):
            with pytest.raises(OSError, match="tcx ingress: No such device") as caught:
                attempt()
            assert caught.value.errno == errno.ENODEV
    assert descriptors() == before


ATTEMPT = """
import socket, sys
from pktstun.kernel import EbpfProgram, TcxLink, ingress_programs
from pktstun.kernel.ebpf import Condition, copy_and_add, jump_if_64, leave, load
for attempt in (lambda: TcxLink(1, EbpfProgram.build(leave(-1))), lambda: ingress_programs(1)):
    try:
        attempt()
        print("fine")
    except OSError as error:
        print(type(error).__name__, error.errno)
"""


@pytest.mark.parametrize(
    ("missing", "link_result", "query_result"),
    [
        ([], "fine", "fine"),
        (["bpf", "sys_admin"], "PermissionError 1", "fine"),
        (["net_admin", "sys_admin"], "PermissionError 1", "PermissionError 1"),
    ],
    ids=["none", "CAP_BPF", "CAP_NET_ADMIN"],
)
def test_missing_capabilities(
    lab: Lab, missing: list[str], link_result: str, query_result: str
) -> None:
    ns = lab.namespace("alone")
    command = [sys.executable, "-c", ATTEMPT]
    result = ns.run(command, drop_capabilities=missing, check=True)
    assert result.stdout.splitlines() == [link_result, query_result]
