"""UDP sockets: binding, batches of datagrams, filters, and who of a group gets what."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import sys
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pktstun.kernel import Datagram, UDPSocket
from pktstun.kernel.bpf import DROP_ALL, Program, _Instruction, member_for_cpu
from pktstun.stun import TransportAddress
from tests.kernel.wire import PATIENCE, descriptors, receive
from tests.lab import wait_until
from tests.netns.client import on_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.native

KEEP_ALL = Program.build([_Instruction(0x06, 0x40000)])
LOOPBACKS = ["127.0.0.1", "::1"]
WILDCARDS = ["0.0.0.0", "::"]
CPUS = sorted(os.sched_getaffinity(0))


def at(ip: str, port: int = 0) -> TransportAddress:
    return TransportAddress(ip_address(ip), port)


def failure(address: TransportAddress, *, share: bool = True) -> int | None:
    """The errno of binding, after which nothing must be left."""
    before = descriptors()
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        UDPSocket(address, share=share)
    number = caught.value.errno
    assert descriptors() == before
    return number


@contextmanager
def plain(sock: UDPSocket) -> Iterator[socket.socket]:
    """The same socket as Python's own."""
    with socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
        yield duplicate


# --- Binding ---


@pytest.mark.parametrize("ip", LOOPBACKS + WILDCARDS)
def test_port_0_becomes_a_port(ip: str) -> None:
    with UDPSocket(at(ip)) as sock:
        assert sock.address.ip == ip_address(ip)
        assert sock.address.port != 0
        assert sock.is_wildcard == (ip in WILDCARDS)
        with plain(sock) as same:
            assert same.getsockname()[1] == sock.address.port


@pytest.mark.parametrize("ip", LOOPBACKS + WILDCARDS)
def test_a_port_can_be_had_alone(ip: str) -> None:
    with UDPSocket(at(ip), share=False) as sock:
        assert failure(sock.address, share=False) == errno.EADDRINUSE
        assert failure(sock.address, share=True) == errno.EADDRINUSE
    UDPSocket(sock.address, share=False).close()


@pytest.mark.parametrize("ip", LOOPBACKS + WILDCARDS)
def test_a_port_can_be_shared(ip: str) -> None:
    with UDPSocket(at(ip)) as sock, UDPSocket(sock.address) as other:
        assert other.address == sock.address
        assert failure(sock.address, share=False) == errno.EADDRINUSE


def test_ipv4_and_ipv6_do_not_share_a_port() -> None:
    with UDPSocket(at("::"), share=False) as six:
        port = six.address.port
        with UDPSocket(at("0.0.0.0", port), share=False) as four:
            for ip, receiver in (("127.0.0.1", four), ("::1", six)):
                with UDPSocket(at(ip)) as sender:
                    sender.sendmmsg([Datagram(ip.encode(), at(ip, port))])
                assert [datagram.data for datagram in receive(receiver, 1)] == [ip.encode()]
            assert four.recvmmsg() == six.recvmmsg() == []


@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1"])  # for documentation: nobody's
def test_an_address_that_is_not_local_cannot_be_bound(ip: str) -> None:
    assert failure(at(ip)) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("port", [65536, -1])
def test_a_number_that_is_no_port_leaves_nothing(port: int) -> None:
    before = descriptors()
    with pytest.raises(OverflowError):
        UDPSocket(at("127.0.0.1", port))
    assert descriptors() == before


def test_close_closes() -> None:
    before = descriptors()
    with UDPSocket(at("127.0.0.1")) as sock:
        assert descriptors() == before + 1
    sock.close()
    assert sock.fileno() == -1
    assert descriptors() == before


@pytest.mark.root
def test_a_link_local_address_needs_its_interface(lab: Lab, hosts: TwoHosts) -> None:
    lab.address(hosts.server, hosts.server_if, "fe80::77/64")
    lab.address(hosts.client, hosts.client_if, "fe80::78/64")
    with hosts.server.enter():
        assert failure(at("fe80::77")) == errno.EINVAL
        server = UDPSocket(at("fe80::77"), scope=socket.if_nametoindex(hosts.server_if))
    with hosts.client.enter():
        client = UDPSocket(at("fe80::78"), scope=socket.if_nametoindex(hosts.client_if))
    with server, client:
        assert client.sendmmsg([Datagram(b"there", server.address)]) == 1
        assert receive(server, 1) == [(b"there", client.address)]
        assert server.sendmmsg([Datagram(b"back", client.address)]) == 1
        assert receive(client, 1) == [(b"back", server.address)]


# --- Batches ---


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_datagrams_arrive_as_they_were_sent(ip: str) -> None:
    with UDPSocket(at(ip)) as receiver, UDPSocket(at(ip)) as sender:

        @settings(max_examples=min(settings().max_examples, 200))
        @given(st.lists(st.binary(max_size=2048), max_size=20))
        def check(payloads: list[bytes]) -> None:
            sent = [Datagram(payload, receiver.address) for payload in payloads]
            assert sender.sendmmsg(sent) == len(sent)
            assert receive(receiver, len(sent)) == [
                Datagram(payload, sender.address) for payload in payloads
            ]

        with on_cpu(CPUS[0]):
            check()


def test_every_sender_is_told_apart() -> None:
    with ExitStack() as stack:
        receiver = stack.enter_context(UDPSocket(at("127.0.0.1")))
        senders = [stack.enter_context(UDPSocket(at(f"127.0.0.{n}"))) for n in range(2, 12)]
        for sender in senders:
            sender.sendmmsg([Datagram(str(sender.address).encode(), receiver.address)])
        received = receive(receiver, len(senders))
        assert {peer for _, peer in received} == {sender.address for sender in senders}
        assert all(data == str(peer).encode() for data, peer in received)


def test_what_waits_is_read_in_parts() -> None:
    with UDPSocket(at("127.0.0.1")) as receiver, UDPSocket(at("127.0.0.1")) as sender:
        assert receiver.recvmmsg() == []
        assert receiver.recvmmsg(0) == []
        assert sender.sendmmsg([]) == 0
        with on_cpu(CPUS[0]):
            payloads = [bytes([number]) for number in range(10)]
            sender.sendmmsg([Datagram(payload, receiver.address) for payload in payloads])
        parts: list[list[Datagram]] = []

        def read() -> bool:
            parts.append(receiver.recvmmsg(3))
            return sum(map(len, parts)) >= 10

        wait_until(read, "ten datagrams come", PATIENCE)
        assert max(map(len, parts)) <= 3
        assert [data for data, _ in itertools.chain(*parts)] == payloads
        assert receiver.recvmmsg() == []


def test_a_long_datagram_is_cut() -> None:
    with UDPSocket(at("127.0.0.1")) as receiver, UDPSocket(at("127.0.0.1")) as sender:
        payload = bytes(range(256)) * 16
        sender.sendmmsg([Datagram(payload, receiver.address)])
        assert [data for data, _ in receive(receiver, 1)] == [payload[:2048]]


def test_sending_stops_at_the_first_datagram_that_cannot_be_sent() -> None:
    """It is not said why; that is the next call's to say."""
    with UDPSocket(at("127.0.0.1")) as receiver, UDPSocket(at("127.0.0.1")) as sender:
        good = Datagram(b"good", receiver.address)
        bad = Datagram(b"bad", at("127.0.0.1", 0))
        assert sender.sendmmsg([good, good, bad, good]) == 2
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)) as caught:
            sender.sendmmsg([bad, good])
        assert caught.value.errno == errno.EINVAL
        assert len(receive(receiver, 2)) == 2


def test_no_more_is_sent_than_the_kernel_takes_at_once() -> None:
    with UDPSocket(at("127.0.0.1")) as receiver, UDPSocket(at("127.0.0.1")) as sender:
        assert sender.sendmmsg([Datagram(b"", receiver.address)] * 1100) == 1024


def test_a_closed_socket_is_an_error() -> None:
    sock = UDPSocket(at("127.0.0.1"))
    sock.close()
    for use in (sock.recvmmsg, lambda: sock.sendmmsg([Datagram(b"", sock.address)])):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            use()


# --- Programs ---


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_a_program_is_in_place_before_the_first_datagram(ip: str) -> None:
    with UDPSocket(at(ip), program=DROP_ALL) as receiver, UDPSocket(at(ip)) as sender:
        with on_cpu(CPUS[0]):
            sender.sendmmsg([Datagram(b"dropped", receiver.address)])
            receiver.set_filter(KEEP_ALL)
            sender.sendmmsg([Datagram(b"kept", receiver.address)])
        assert [data for data, _ in receive(receiver, 1)] == [b"kept"]


def test_a_program_comes_before_bind() -> None:
    """A program that the kernel refuses is noticed before a port that is taken."""
    with UDPSocket(at("127.0.0.1"), share=False) as holder:
        refused = Program(b"")
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            UDPSocket(holder.address, share=False, program=refused)


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_a_group_program_chooses_by_cpu(ip: str) -> None:
    """The other way round than the sockets were bound, so that chance does not help."""
    cpus = CPUS[::-1]
    with ExitStack() as stack:
        address = at(ip)
        group = []
        for _ in cpus:
            sock = stack.enter_context(UDPSocket(address))
            address = sock.address
            group.append(sock)
        group[-1].set_group_program(member_for_cpu(cpus))
        for cpu in cpus:
            with on_cpu(cpu):
                # Without a program the source port would decide.
                for _ in range(20):
                    with UDPSocket(at(ip)) as sender:
                        sender.sendmmsg([Datagram(str(cpu).encode(), address)])
        for cpu, sock in zip(cpus, group, strict=True):
            assert [data for data, _ in receive(sock, 20)] == [str(cpu).encode()] * 20
            assert sock.recvmmsg() == []


# --- The buffers ---


def test_the_buffers_are_left_alone_or_as_wanted() -> None:
    with UDPSocket(at("127.0.0.1")) as sock, plain(sock) as same:
        for which, name in ((socket.SO_RCVBUF, "rmem"), (socket.SO_SNDBUF, "wmem")):
            default = int(Path(f"/proc/sys/net/core/{name}_default").read_text())
            assert same.getsockopt(socket.SOL_SOCKET, which) == default
    # The kernel doubles them, for its own overhead.
    wanted = UDPSocket(at("127.0.0.1"), receive_buffer=65536, send_buffer=32768)
    with wanted as sock, plain(sock) as same:
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 65536
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 32768


@pytest.mark.parametrize("ip", LOOPBACKS)
def test_what_waits_and_what_has_no_room_is_counted(ip: str) -> None:
    with UDPSocket(at(ip), receive_buffer=8192) as server, UDPSocket(at(ip)) as client:
        empty = server.memory()
        assert (empty.waiting, empty.drops) == (0, 0)
        assert client.sendmmsg([Datagram(b"x" * 100, server.address)] * 200) == 200
        full = server.memory()
        assert full.waiting > 0
        assert full.room == empty.room >= 8192
        read = len(server.recvmmsg(200))
        assert 0 < read < 200
        assert full.drops == 200 - read
        assert server.memory() == (0, full.room, full.drops)
        assert (server.new_drops(), server.new_drops()) == (full.drops, 0)
        with UDPSocket.adopt(os.dup(server.fileno())) as same:
            assert same.new_drops() == 0, "they have been counted"


@pytest.mark.root
@pytest.mark.parametrize("privileged", [True, False])
def test_more_than_the_limit_takes_a_privilege(hosts: TwoHosts, *, privileged: bool) -> None:
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    code = """
import ipaddress, os, socket, sys
from pktstun.kernel import UDPSocket
from pktstun.stun import TransportAddress
address = TransportAddress(ipaddress.ip_address("127.0.0.1"), 0)
sock = UDPSocket(address, receive_buffer=int(sys.argv[1]))
same = socket.socket(fileno=os.dup(sock.fileno()))
print(same.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
"""
    result = hosts.server.run(
        [sys.executable, "-c", code, str(limit + 4096)],
        drop_capabilities=[] if privileged else ["net_admin"],
        timeout=PATIENCE,
        check=True,
    )
    assert int(result.stdout) == 2 * (limit + 4096 if privileged else limit)
