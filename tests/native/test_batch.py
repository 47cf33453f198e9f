"""Batches of datagrams: every reply that can be sent is sent, whatever becomes of the others.

The engine reads a ring that the test has filled, or UDP sockets, and sends over loopback, or
inside a namespace where more can go wrong. Where its replies go to is the requests' choice,
as it is an attacker's.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pktstun.engine import SocketEngine, Tuning, native_options
from pktstun.errors import EngineError
from pktstun.kernel import Datagram, RingGeometry, UDPSocket
from pktstun.kernel._ffi import CData, ffi
from pktstun.packet import build_udp_frame
from pktstun.stats import SharedPage, WorkerStats
from pktstun.stun import (
    AttributeType,
    Class,
    Message,
    Method,
    RawAttribute,
    Reply,
    ResponderOptions,
    TransportAddress,
)
from tests.kernel.blocks import BlockFrame, FileRing, build_block
from tests.kernel.wire import PATIENCE, receive
from tests.lab import wait_until
from tests.netns.client import on_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pktstun.stats import Slot
    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.native

GEOMETRY = RingGeometry(block_size=16384, block_count=8)
PER_BLOCK = 80
CPU = min(os.sched_getaffinity(0))  # what is sent on one CPU arrives in order

Mutate: TypeAlias = "Callable[[Reply, CData], Reply]"


def at(ip: str, port: int = 0) -> TransportAddress:
    return TransportAddress(ip_address(ip), port)


def options(*sockets: UDPSocket) -> ResponderOptions:
    return ResponderOptions(
        endpoints=frozenset(sock.address for sock in sockets), allow_loopback=True
    )


def request(number: int, *attributes: RawAttribute) -> bytes:
    identifier = number.to_bytes(12, "big")
    return Message(Class.REQUEST, Method.BINDING, identifier, attributes).encode()


def odd_request(number: int) -> bytes:
    """One that C does not answer: it requires an attribute that nobody knows."""
    return request(number, RawAttribute(AttributeType(0x7FFF), b""))


def number_of(reply: Datagram) -> int:
    return int.from_bytes(Message.decode(reply.data).transaction_id, "big")


class FedEngine(SocketEngine):
    """An engine that reads a ring which is filled by hand, and nothing else."""

    def __init__(self, slot: Slot, sockets: Sequence[UDPSocket], batch: int) -> None:
        super().__init__(slot, sockets, options(*sockets), tuning=Tuning(batch=batch))
        self._ring = FileRing(GEOMETRY)
        self._memory = ffi.from_buffer(self._ring.memory)
        self._never = os.eventfd(0)  # to wait on
        self._blocks = itertools.count(1)

    def _setup(self) -> CData:
        setup = super()._setup()
        native = native_options(self._options)
        setup.ring_options = native
        setup.ring, setup.ring_fd = self._memory, self._never
        setup.block_size, setup.block_count = GEOMETRY.block_size, GEOMETRY.block_count
        self._kept.append(native)
        return setup

    def close(self) -> None:
        super().close()
        ffi.release(self._memory)
        self._ring.__exit__()
        os.close(self._never)

    def feed(self, frames: Sequence[bytes]) -> None:
        """Have the frames answered."""
        for start in range(0, len(frames), PER_BLOCK):
            part = [BlockFrame(frame) for frame in frames[start : start + PER_BLOCK]]
            sequence = next(self._blocks)
            block = build_block(part, GEOMETRY.block_size, sequence=sequence)
            self._ring.put((sequence - 1) % GEOMETRY.block_count, block)
            self.run(0)


@contextmanager
def fed(*sockets: UDPSocket, batch: int = 256) -> Iterator[FedEngine]:
    with SharedPage(1) as page, FedEngine(page.slots[0], sockets, batch) as engine:
        yield engine


class MeddlingEngine(SocketEngine):
    """An engine whose handovers are changed after they have been answered."""

    def __init__(self, slot: Slot, sock: UDPSocket, meddle: Mutate) -> None:
        super().__init__(slot, [sock], options(sock))
        self._meddle = meddle

    def _respond(
        self, handover: CData, source: TransportAddress, destination: TransportAddress
    ) -> Reply | str:
        answer = super()._respond(handover, source, destination)
        assert isinstance(answer, Reply)
        return self._meddle(answer, handover)


def errors(stats: WorkerStats) -> dict[str, int]:
    return {name: count for name, count in stats.send_errors.items() if count}


def consistent(stats: WorkerStats) -> bool:
    """Every datagram has one verdict, and every reply was sent or counted."""
    verdicts = sum(sum(counts.values()) for counts in stats.verdicts.values())
    return verdicts == sum(stats.received.values()) and stats.answered == stats.sent + sum(
        stats.send_errors.values()
    )


def serve(engine: SocketEngine, count: int) -> WorkerStats:
    """Run the engine until it has received so many datagrams in all."""

    def served() -> bool:
        engine.run(0.05)
        return sum(engine.stats().received.values()) >= count

    wait_until(served, f"{count} datagrams are received", PATIENCE)
    return engine.stats()


# --- Through the ring ---


def test_a_bad_destination_costs_only_itself() -> None:
    """Wherever in a batch it stands, and however many there are."""
    with UDPSocket(at("127.0.0.1")) as server, UDPSocket(at("127.0.0.1")) as client, on_cpu(CPU):
        # Broadcast, for which the socket would need leave.
        bad = at("127.255.255.255", client.address.port)

        @settings(
            max_examples=min(settings().max_examples, 200),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(st.booleans(), max_size=100), st.integers(1, 20))
        def check(pattern: list[bool], batch: int) -> None:
            frames = [
                build_udp_frame(request(number), client.address if good else bad, server.address)
                for number, good in enumerate(pattern)
            ]
            with fed(server, batch=batch) as engine:
                engine.feed(frames)
                stats = engine.stats()
            assert stats.sent == pattern.count(True)
            assert errors(stats) == ({"eacces": bads} if (bads := pattern.count(False)) else {})
            assert consistent(stats)
            replies = receive(client, stats.sent)
            assert [number_of(reply) for reply in replies] == [
                number for number, good in enumerate(pattern) if good
            ]
            assert {reply.peer for reply in replies} <= {server.address}

        check()


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_a_batch_is_one_call(ip: str) -> None:
    with UDPSocket(at(ip)) as server, UDPSocket(at(ip)) as client, fed(server, batch=50) as engine:
        frames = [
            build_udp_frame(request(number), client.address, server.address)
            for number in range(PER_BLOCK)
        ]
        with on_cpu(CPU):
            engine.feed(frames)
        assert [number_of(reply) for reply in receive(client, PER_BLOCK)] == list(range(PER_BLOCK))
        assert engine.stats().send_calls == 2


def test_batches_are_counted_by_their_size() -> None:
    expected: Counter[int] = Counter()  # power of two: sendmmsg calls
    blocks: Counter[int] = Counter()
    with UDPSocket(at("127.0.0.1")) as server, UDPSocket(at("127.0.0.1")) as client, on_cpu(CPU):
        with fed(server, batch=20) as engine:
            for count in (1, 2, 3, 4, 20, 21, PER_BLOCK):
                engine.feed(
                    [
                        build_udp_frame(request(number), client.address, server.address)
                        for number in range(count)
                    ]
                )
                assert len(receive(client, count)) == count
                blocks[count.bit_length() - 1] += 1
                for rest in range(count, 0, -20):
                    expected[min(rest, 20).bit_length() - 1] += 1
            stats = engine.stats()
        assert stats.send_sizes == tuple(expected[power] for power in range(16))
        assert stats.receive_sizes == tuple(blocks[power] for power in range(16))
        assert sum(stats.send_sizes) == stats.send_calls

        with SharedPage(1) as page, SocketEngine(page.slots[0], [server], options()) as engine:
            engine.open()
            client.sendmmsg([Datagram(request(number), server.address) for number in range(5)])
            stats = serve(engine, 5)
            assert sum(stats.receive_sizes) == stats.receive_calls
            assert stats.receive_sizes[2] == stats.send_sizes[2] == 1


def test_the_blocks_that_wait_are_counted() -> None:
    with UDPSocket(at("127.0.0.1")) as server, fed(server) as engine:
        assert (engine.stats().ring_ready, engine.stats().ring_ready_peak) == (0, 0)
        engine.feed([build_udp_frame(b"", at("127.0.0.1", 9), server.address)])
        assert (engine.stats().ring_ready, engine.stats().ring_ready_peak) == (1, 1)
        wait_until(lambda: engine.run(0.02) and engine.stats().ring_ready == 0, "another look")
        assert engine.stats().ring_ready_peak == 1


@pytest.mark.parametrize(("wildcard", "ips"), [("0.0.0.0", ("127.0.0.2", "127.1.2.3")), ("::", ())])
def test_replies_leave_from_where_the_request_was_sent_to(
    wildcard: str, ips: tuple[str, ...]
) -> None:
    loopback = "::1" if wildcard == "::" else "127.0.0.1"
    with UDPSocket(at(wildcard)) as server, UDPSocket(at(loopback)) as client:
        asked = [at(ip, server.address.port) for ip in (loopback, *ips)]
        frames = [
            build_udp_frame(request(number), client.address, address)
            for number, address in enumerate(asked * 2)
        ]
        with fed(server) as engine, on_cpu(CPU):
            engine.feed(frames)
            replies = receive(client, len(frames))
            assert [(number_of(reply), reply.peer) for reply in replies] == list(
                enumerate(asked * 2)
            )
            assert consistent(engine.stats())


def test_every_socket_has_its_batch() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(UDPSocket(at(f"127.0.0.{n}"))) for n in range(1, 6)]
        client = stack.enter_context(UDPSocket(at("127.0.0.1")))
        asked = [servers[number * 7 % 5].address for number in range(PER_BLOCK)]
        engine = stack.enter_context(fed(*servers, batch=4))
        with on_cpu(CPU):
            engine.feed(
                [
                    build_udp_frame(request(number), client.address, address)
                    for number, address in enumerate(asked)
                ]
            )
        replies = receive(client, PER_BLOCK)
        assert {number_of(reply): reply.peer for reply in replies} == dict(enumerate(asked))
        assert len(replies) == PER_BLOCK


@pytest.mark.root
def test_every_cause_has_its_counter(hosts: TwoHosts) -> None:
    """In a namespace, whose routing table refuses in every way that there is."""
    routes = {
        "blackhole": "192.0.2.0/26",
        "unreachable": "192.0.2.64/26",
        "prohibit": "192.0.2.128/26",
    }
    causes = {
        "192.0.2.1": "einval",
        "192.0.2.65": "ehostunreach",
        "192.0.2.129": "eacces",
        "192.0.2.193": "enetunreach",
        "10.77.0.255": "eacces",  # broadcast
    }
    with hosts.server.iproute() as ipr:
        for kind, destination in routes.items():
            ipr.route("add", dst=destination, type=kind)
    with hosts.server.enter():
        server = UDPSocket(at(hosts.server_ipv4[0]))
        wildcard = UDPSocket(at("0.0.0.0"))
    with hosts.client.enter():
        client = UDPSocket(at(hosts.client_ipv4[0]))
    sources = [client.address, *(at(ip, 7) for ip in causes), client.address] * 3
    expected = Counter[str]()
    for cause in causes.values():
        expected[cause] += 3
    with server, wildcard, client:
        for sock in (server, wildcard):
            address = at(hosts.server_ipv4[0], sock.address.port)
            frames = [
                build_udp_frame(request(number), source, address)
                for number, source in enumerate(sources)
            ]
            with fed(sock) as engine, on_cpu(CPU):
                engine.feed(frames)
                assert len(receive(client, 6)) == 6
                stats = engine.stats()
                assert (stats.sent, errors(stats)) == (6, expected)
                assert consistent(stats)


@pytest.mark.root
def test_an_unroutable_client_over_ipv6(hosts: TwoHosts) -> None:
    with hosts.server.enter():
        server = UDPSocket(at(hosts.server_ipv6[0]))
    with hosts.client.enter():
        client = UDPSocket(at(hosts.client_ipv6[0]))
    sources = [at("2001:db8::1", 7), client.address, at("2001:db8::1", 7), client.address]
    with server, client, fed(server) as engine, on_cpu(CPU):
        engine.feed(
            [
                build_udp_frame(request(number), source, server.address)
                for number, source in enumerate(sources)
            ]
        )
        assert [number_of(reply) for reply in receive(client, 2)] == [1, 3]
        assert errors(engine.stats()) == {"enetunreach": 2}
        assert consistent(engine.stats())


@pytest.mark.root
@pytest.mark.parametrize("ipv6", [False, True])
def test_replies_leave_from_every_address_of_a_host(hosts: TwoHosts, *, ipv6: bool) -> None:
    """Whichever the routing table would choose: by the ring, the socket, and respond()."""
    wildcard, source, ips = (
        ("::", hosts.client_ipv6[0], hosts.server_ipv6)
        if ipv6
        else ("0.0.0.0", hosts.client_ipv4[0], hosts.server_ipv4)
    )
    with hosts.server.enter():
        server = UDPSocket(at(wildcard))
    with hosts.client.enter():
        client = UDPSocket(at(source))
    asked = [at(ip, server.address.port) for ip in ips * 3]
    with server, client, SharedPage(1) as page, on_cpu(CPU):
        with fed(server) as engine:
            engine.feed(
                [
                    build_udp_frame(request(number), client.address, address)
                    for number, address in enumerate(asked)
                ]
            )
            replies = receive(client, len(asked))
            assert {number_of(reply): reply.peer for reply in replies} == dict(enumerate(asked))
        with SocketEngine(page.slots[0], [server], options()) as engine:
            check_that_addresses_answer(engine, client, asked)


@pytest.mark.root
def test_a_link_local_client_is_answered_over_its_interface(lab: Lab, hosts: TwoHosts) -> None:
    """On a host with two, both of which have the same network."""
    lab.veth(hosts.server, "w0", hosts.client, "w1")
    ends = (("v0", "v1"), ("w0", "w1"))
    for number, names in enumerate(ends):
        for ns, name in zip((hosts.server, hosts.client), names, strict=True):
            lab.address(ns, name, f"fe80::{number}:{1 if ns is hosts.server else 2}/64")
    with hosts.server.enter():
        server = UDPSocket(at("::"))
    with server, SharedPage(1) as page, on_cpu(CPU):
        for number, (_, name) in enumerate(ends):
            with hosts.client.enter():
                scope = socket.if_nametoindex(name)
                client = UDPSocket(at(f"fe80::{number}:2"), scope=scope)
            asked = [at(f"fe80::{number}:1", server.address.port)] * 3
            with client, SocketEngine(page.slots[0], [server], options()) as engine:
                check_that_addresses_answer(engine, client, asked)


# --- Through respond() ---


@contextmanager
def asked(meddle: Mutate, count: int) -> Iterator[tuple[UDPSocket, UDPSocket, MeddlingEngine]]:
    """A server to which a client has sent requests that C does not answer."""
    with (
        SharedPage(1) as page,
        UDPSocket(at("127.0.0.1")) as server,
        UDPSocket(at("127.0.0.1")) as client,
    ):
        with on_cpu(CPU):
            requests = [Datagram(odd_request(number), server.address) for number in range(count)]
            assert client.sendmmsg(requests) == count
        with MeddlingEngine(page.slots[0], server, meddle) as engine:
            yield client, server, engine


def test_a_reply_of_respond_costs_only_itself() -> None:
    """Destinations that respond() refuses, put in behind its back."""

    def meddle(reply: Reply, handover: CData) -> Reply:
        number = int.from_bytes(reply.datagram[8:20], "big")
        if number % 3 == 1:
            return replace(reply, destination=reply.destination._replace(port=0))
        if number % 3 == 2:
            handover.source.ip[0:4] = [255] * 4
        return reply

    with asked(meddle, 12) as (client, _, engine):
        stats = serve(engine, 12)
        replies = receive(client, 4)
        assert [number_of(reply) for reply in replies] == [0, 3, 6, 9]
        assert (stats.sent, errors(stats)) == (4, {"einval": 4, "eacces": 4})
        assert stats.verdicts["ipv4"]["error"] == 12
        assert consistent(stats)


def test_a_reply_from_an_address_without_a_socket_is_counted() -> None:
    """As when an address is taken from the host that CHANGE-REQUEST could name until then."""

    def meddle(reply: Reply, _: CData) -> Reply:
        return replace(reply, source=reply.source._replace(port=1))

    with asked(meddle, 3) as (_, _, engine):
        stats = serve(engine, 3)
        assert (stats.sent, errors(stats)) == (0, {"other": 3})
        assert consistent(stats)


def test_a_socket_that_is_gone_ends_the_engine() -> None:
    """It is the engine's own trouble and not a client's: no counter, but an error."""

    def meddle(reply: Reply, _: CData) -> Reply:
        server.close()
        return reply

    with asked(meddle, 1) as (_, server, engine):
        with pytest.raises(EngineError, match="EBADF"):
            serve(engine, 2)
        assert errors(engine.stats()) == {}


# --- Receiving ---


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("wildcard", [False, True])
def test_what_the_socket_brings_is_answered(ip: str, *, wildcard: bool) -> None:
    any_address = "::" if ":" in ip else "0.0.0.0"
    with (
        SharedPage(1) as page,
        UDPSocket(at(any_address if wildcard else ip)) as server,
        UDPSocket(at(ip)) as client,
        on_cpu(CPU),
        SocketEngine(page.slots[0], [server], options(), tuning=Tuning(batch=32)) as engine,
    ):
        address = at(ip, server.address.port)
        client.sendmmsg([Datagram(request(number), address) for number in range(100)])
        stats = serve(engine, 100)
        replies = receive(client, 100)
        assert [(number_of(reply), reply.peer) for reply in replies] == [
            (number, address) for number in range(100)
        ]
        family = "ipv6" if ":" in ip else "ipv4"
        assert stats.verdicts[family]["success"] == stats.socket_received == 100
        assert 4 <= stats.receive_calls == stats.send_calls < 100
        assert consistent(stats)


def test_a_datagram_of_any_length_is_counted() -> None:
    """Beyond what is looked at, its length is not known, but that it is too long."""
    with (
        SharedPage(1) as page,
        UDPSocket(at("127.0.0.1")) as server,
        UDPSocket(at("127.0.0.1")) as client,
        SocketEngine(page.slots[0], [server], options()) as engine,
    ):
        lengths = [0, 1, 19, 2048, 2049, 9000]
        client.sendmmsg([Datagram(bytes(length), server.address) for length in lengths])
        client.sendmmsg([Datagram(request(1), server.address)])
        stats = serve(engine, len(lengths) + 1)
        # 2048 zero bytes are no STUN message: the length field disagrees.
        assert stats.dropped == {"short": 3, "bad_length": 1, "too_long": 2}
        assert len(receive(client, 1)) == 1
        assert consistent(stats)


def check_that_addresses_answer(
    engine: SocketEngine, client: UDPSocket, asked: Sequence[TransportAddress]
) -> None:
    for build in (request, odd_request):  # the batch, and the single reply of respond()
        before = sum(engine.stats().received.values())
        requests = [Datagram(build(number), address) for number, address in enumerate(asked)]
        assert client.sendmmsg(requests) == len(requests)
        serve(engine, before + len(asked))
        replies = receive(client, len(asked))
        assert {number_of(reply): reply.peer for reply in replies} == dict(enumerate(asked))
        assert len(replies) == len(asked)
    assert consistent(engine.stats())


def test_every_loopback_address_of_a_wildcard_socket_answers() -> None:
    with (
        SharedPage(1) as page,
        UDPSocket(at("0.0.0.0")) as server,
        UDPSocket(at("127.0.0.1")) as client,
        on_cpu(CPU),
        SocketEngine(page.slots[0], [server], options()) as engine,
    ):
        asked = [at(f"127.0.{n}.{n}", server.address.port) for n in range(1, 9)]
        check_that_addresses_answer(engine, client, asked)


def test_sockets_get_their_turn_while_the_ring_is_never_empty() -> None:
    """Also when every block holds a request for respond(), which ends each run."""
    with UDPSocket(at("127.0.0.1")) as server, UDPSocket(at("127.0.0.1")) as client:
        odd = build_udp_frame(odd_request(1), client.address, server.address)
        with fed(server) as engine:
            client.sendmmsg([Datagram(request(7), server.address)])
            numbers: set[int] = set()

            def answered() -> bool:
                engine.feed([odd])
                numbers.update(map(number_of, client.recvmmsg()))
                return 7 in numbers

            wait_until(answered, "the answer to what came through the socket")
            assert engine.stats().socket_received == 1


def test_respond_is_given_no_more_than_its_share_of_the_time() -> None:
    """However long the requests are: time is counted, not requests."""
    many = [RawAttribute(AttributeType(0x2000 + kind)) for kind in range(350)]
    with UDPSocket(at("127.0.0.1")) as server, UDPSocket(at("127.0.0.1")) as client:
        frame = build_udp_frame(request(1, *many), client.address, server.address)
        with fed(server) as engine:
            began = time.process_time()
            for _ in range(400):
                engine.feed([frame] * 8)
            took = time.process_time() - began
            stats = engine.stats()
        dropped, answered = stats.dropped["over_budget"], stats.answered
        assert dropped + answered == 3200
        assert answered > 0
        # Answering all of them would take seconds of this process.
        assert answered < 320, took


def test_draining_ends_although_requests_keep_coming() -> None:
    """Also when each of them is one for respond(), which interrupts the loop."""
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.004):
            client.sendmmsg([Datagram(odd_request(1), server.address)])

    with (
        UDPSocket(at("127.0.0.1")) as server,
        UDPSocket(at("127.0.0.1")) as client,
        SharedPage(1) as page,
        SocketEngine(page.slots[0], [server], options(server)) as engine,
    ):
        client.sendmmsg([Datagram(odd_request(1), server.address)])  # before the thread's first
        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            began = time.monotonic()
            engine.drain(0.3)
            took = time.monotonic() - began
        finally:
            stop.set()
            sender.join()
        assert engine.stats().answered > 0
    assert took < 3
