"""The generator over a real link: what a server does is what it counts, exactly."""

from __future__ import annotations

import errno
import random
import socket
import struct
import threading
from collections import Counter
from ipaddress import ip_network
from typing import TYPE_CHECKING, Self, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.kernel import Ring, interface
from pktstun.kernel.bpf import udp_to
from pktstun.kernel.load import MAX_REQUESTS, Histogram, LoadGenerator, LoadResult
from pktstun.packet import ChecksumStatus, build_udp_frame, receive
from pktstun.stun import Message, Reply, TransportAddress, respond
from tests.kernel.wire import raw_socket
from tests.lab import wait_until
from tests.netns.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.alone

PREFIXES = {4: "100.64.0.0/10", 6: "fd78::/64"}
PORT = 3478


# --- Histogram ---

latency_lists = st.lists(st.integers(0, 10**10) | st.integers(0, 1000) | st.integers(0, 1 << 62))
some_latencies = latency_lists.filter(len)


@pytest.mark.native
@given(some_latencies, st.floats(0, 100))
def test_a_percentile_is_near_the_one_of_the_sorted_list(
    latencies: list[int], percent: float
) -> None:
    found = Histogram.of(latencies).percentile(percent)
    ordered = sorted(latencies)
    # The least value that so many do not exceed.
    exact = next(
        value for index, value in enumerate(ordered) if index + 1 >= percent / 100 * len(ordered)
    )
    assert exact <= found <= ordered[-1]
    if exact < 60 * 10**9:
        assert found <= exact + exact // 64


@pytest.mark.native
@given(some_latencies)
def test_what_a_histogram_knows_exactly(latencies: list[int]) -> None:
    histogram = Histogram.of(latencies)
    assert len(histogram) == len(latencies)
    assert histogram.longest == max(latencies) == histogram.percentile(100)
    assert histogram.mean == sum(latencies) / len(latencies)


@pytest.mark.native
@given(latency_lists, latency_lists)
def test_histograms_add_up(first: list[int], second: list[int]) -> None:
    assert Histogram.of(first) + Histogram.of(second) == Histogram.of(first + second)


@pytest.mark.native
@given(st.integers(0, 60 * 10**9))
def test_a_bucket_has_bounds(latency: int) -> None:
    (bucket,) = Histogram.of([latency]).counts
    assert Histogram.lowest(bucket) <= latency <= Histogram.highest(bucket)
    assert Histogram.highest(bucket) + 1 == Histogram.lowest(bucket + 1)


def test_no_latencies_have_no_percentile() -> None:
    empty = Histogram()
    assert len(empty) == 0
    with pytest.raises(ValueError, match="no latencies"):
        empty.percentile(50)
    with pytest.raises(ValueError, match="no latencies"):
        _ = empty.mean
    for percent in (-1, 100.1, float("nan")):
        with pytest.raises(ValueError, match="no percentage"):
            Histogram.of([1]).percentile(percent)


# --- Over a link ---


def open_generator(
    hosts: TwoHosts, server: str | None = None, sources: str = PREFIXES[4]
) -> LoadGenerator:
    with hosts.server.enter():
        mac = interface(hosts.server_if).mac
    with hosts.client.enter():
        target = TransportAddress.parse(server or hosts.server_ipv4[0])
        return LoadGenerator(interface(hosts.client_if), target, ip_network(sources), mac)


@pytest.fixture
def routed(lab: Lab, hosts: TwoHosts) -> TwoHosts:
    """The server knows the way back to all sources."""
    for version, via in ((4, hosts.client_ipv4[0]), (6, hosts.client_ipv6[0])):
        lab.route(hosts.server, PREFIXES[version], via)
    return hosts


def in_order(result: LoadResult, due: int) -> bool:
    """All that was due is accounted for, and nothing strange happened."""
    assert result.sent + result.unsent + result.send_errors == due
    return (
        result.errors == result.duplicates == result.stale == result.overlooked == 0
        and not result.wrong
    )


@pytest.mark.root
@pytest.mark.parametrize("mode", ["ring", "recvmmsg"])
def test_a_real_server_answers_everything(routed: TwoHosts, mode: str) -> None:
    with Server(routed.server, ["--iface", routed.server_if, "--mode", mode]) as server:
        sent = 0
        for target, sources in (
            (routed.server_ipv4[0], PREFIXES[4]),
            (routed.server_ipv4[1], f"{routed.client_ipv4[0]}/32"),
            (f"[{routed.server_ipv6[0]}]:{PORT}", PREFIXES[6]),
            (routed.server_ipv6[1], f"{routed.client_ipv6[0]}/128"),
        ):
            with open_generator(routed, target, sources) as generator:
                result = generator.run(1000, 0.2, grace=0.5)
            assert in_order(result, 200)
            assert (result.replies, result.lost) == (result.sent, 0)
            assert len(result.latencies) == result.replies
            assert 0 < result.latencies.mean <= result.latencies.longest
            assert 0 < result.in_time <= result.replies
            sent += result.sent
        assert server.wait_for(sent)["answered"] == sent


@pytest.mark.root
def test_the_frames_on_the_wire_are_right(hosts: TwoHosts) -> None:
    """Complete checksums, no offload; from addresses and ports that differ."""
    with hosts.server.enter():
        ring = Ring.open(hosts.server_if, program=udp_to([PORT]), outgoing=False)
    with ring, open_generator(hosts) as generator:
        result = generator.run(10_000, 0.1, grace=0)
        frames = [(bytes(frame.data), frame.checksum) for frame in ring.frames(timeout=0.3)]
    assert len(frames) == result.sent
    datagrams = [receive(data) for data, _ in frames]
    assert {checksum for _, checksum in frames} == {ChecksumStatus.UNVERIFIED}
    assert len({datagram.source_ip for datagram in datagrams}) > 0.99 * len(datagrams)
    assert len({datagram.source_port for datagram in datagrams}) > 0.95 * len(datagrams)
    assert all(datagram.source_ip in ip_network(PREFIXES[4]) for datagram in datagrams)
    requests = [Message.decode(bytes(datagram.payload)) for datagram in datagrams]
    assert len({request.transaction_id for request in requests}) == len(requests)


Answer: TypeAlias = "Callable[[int, bytes, TransportAddress], list[bytes]]"


class Responder:
    """A server in a thread: `answer` makes the replies of the n-th request."""

    def __init__(self, hosts: TwoHosts, answer: Answer, port: int = PORT) -> None:
        self._answer = answer
        self._socket = hosts.server.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((hosts.server_ipv4[0], port))
        self._socket.settimeout(0.05)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.send = self._socket.sendto
        self.received = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                request, client = self._socket.recvfrom(2048)
            except TimeoutError:
                continue
            for reply in self._answer(
                self.received, request, TransportAddress.from_sockaddr(client)
            ):
                self.send(reply, client)
            self.received += 1


def success(hosts: TwoHosts, request: bytes, client: TransportAddress) -> bytes:
    server = TransportAddress.parse(hosts.server_ipv4[0])
    reply = respond(request, client, server)
    assert isinstance(reply, Reply)
    return reply.datagram


def changed(reply: bytes, at: int) -> bytes:
    copy = bytearray(reply)
    copy[at] ^= 0x40
    return bytes(copy)


@pytest.mark.root
def test_what_a_server_does_is_reported_exactly(routed: TwoHosts) -> None:
    """Each request is answered in one of many ways, in a random order."""
    ways: dict[str, Callable[[bytes], list[bytes]]] = {
        "right": lambda reply: [reply],
        "lost": lambda _: [],
        "twice": lambda reply: [reply, reply],
        "three times": lambda reply: [reply] * 3,
        "message": lambda reply: [reply[:-1]],
        "type": lambda reply: [b"\0\x11" + reply[2:]],
        "id": lambda reply: [changed(reply, 12)],
        "mapped": lambda reply: [changed(reply, -1)],
        "mapped port": lambda reply: [changed(reply, 26)],
        "error": lambda reply: [struct.pack("!H", 0x0111) + reply[2:]],
        "wrong and right": lambda reply: [changed(reply, -1), reply],
    }
    plan = random.Random(5).choices(list(ways), k=300)

    def answer(number: int, request: bytes, client: TransportAddress) -> list[bytes]:
        return ways[plan[number]](success(routed, request, client))

    with Responder(routed, answer) as responder, open_generator(routed) as generator:
        result = generator.run(1000, 0.3, grace=1)
        assert responder.received == result.sent
    did = Counter(plan[: result.sent])
    assert result.errors == did["error"]
    assert result.duplicates == did["twice"] + 2 * did["three times"]
    assert result.wrong == {
        "message": did["message"],
        "type": did["type"],
        "id": did["id"],
        "mapped": did["mapped"] + did["mapped port"] + did["wrong and right"],
    }
    answered = sum(did[way] for way in ("right", "twice", "three times", "wrong and right"))
    assert result.replies == len(result.latencies) == answered
    assert result.lost == result.sent - answered - did["error"]


@pytest.mark.root
def test_replies_from_elsewhere_and_to_elsewhere(routed: TwoHosts) -> None:
    """What no socket of the server would send goes straight onto the link."""
    asked = TransportAddress.parse(routed.server_ipv4[0])
    other = TransportAddress.parse(routed.server_ipv4[1])
    with routed.client.enter():
        mac = interface(routed.client_if).mac

    def answer(number: int, request: bytes, client: TransportAddress) -> list[bytes]:
        source, destination = asked, client
        if number % 4 == 0:
            source = other
        elif number % 4 == 1:
            destination = TransportAddress(client.ip, client.port ^ 1)
        elif number % 4 == 2:
            source = TransportAddress(asked.ip, PORT + 1)  # the filter leaves it out
        reply = success(routed, request, client)
        frame = build_udp_frame(reply, source, destination, destination_mac=mac)
        out.send(frame if number % 4 != 3 else changed(frame, 41))
        return []

    with (
        raw_socket(routed.server, routed.server_if) as out,
        Responder(routed, answer),
        open_generator(routed) as generator,
    ):
        result = generator.run(1000, 0.2, grace=1)
    assert result.sent == result.lost
    kinds = Counter(number % 4 for number in range(result.sent))
    assert result.wrong == {"source": kinds[0], "destination": kinds[1], "frame": kinds[3]}


@pytest.mark.root
def test_late_replies_belong_to_no_later_run(routed: TwoHosts) -> None:
    kept: list[tuple[bytes, TransportAddress]] = []

    def keep(_: int, request: bytes, client: TransportAddress) -> list[bytes]:
        kept.append((success(routed, request, client), client))
        return []

    with Responder(routed, keep) as responder, open_generator(routed) as generator:
        first = generator.run(1000, 0.1, grace=0)
        wait_until(lambda: len(kept) == first.sent, "all requests have come")
        late = kept.copy()

        def send_late() -> bool:
            while late:
                reply, client = late.pop()
                responder.send(reply, (str(client.ip), client.port))
            return False

        second = generator.run(1, 1.0, stop=send_late)
    assert first.lost == first.sent
    assert (second.sent, second.lost) == (1, 1)
    assert second.stale == first.sent
    assert not second.wrong


@pytest.mark.root
def test_a_run_can_be_ended_early(hosts: TwoHosts) -> None:
    with open_generator(hosts) as generator:
        result = generator.run(1000, 60, grace=0, stop=lambda: True)
        assert result.stopped
        assert 0.1 <= result.seconds < 30
        assert in_order(result, int(result.seconds * 1000) + 1)
        assert not generator.run(1000, 0.15, grace=0).stopped


@pytest.mark.root
def test_an_interface_that_is_down_refuses_requests(lab: Lab, hosts: TwoHosts) -> None:
    with open_generator(hosts) as generator:
        lab.link_set(hosts.client, hosts.client_if, state="down")
        result = generator.run(1000, 0.1, grace=0)
        assert result.sent == 0
        assert result.send_errors + result.unsent == 100
        assert result.send_errors > 0


@pytest.mark.root
def test_an_interface_that_goes_ends_the_run(lab: Lab, hosts: TwoHosts) -> None:
    def remove() -> bool:
        lab.delete_link(hosts.client, hosts.client_if)
        return False

    with open_generator(hosts) as generator:
        with pytest.raises(OSError, match=f"{hosts.client_if}: has gone") as caught:
            generator.run(1000, 60, stop=remove)
        assert caught.value.errno == errno.ENXIO


@pytest.mark.root
def test_what_makes_no_run(hosts: TwoHosts) -> None:
    for server, sources, problem in (
        (hosts.server_ipv4[0], PREFIXES[6], "two address families"),
        (f"{hosts.server_ipv4[0]}:0", PREFIXES[4], "port 0"),
    ):
        with pytest.raises(ValueError, match=problem):
            open_generator(hosts, server, sources)
    with open_generator(hosts) as generator:
        for rate, seconds in ((0, 1), (1, 0.5), (1000, -1), (MAX_REQUESTS, 2)):
            with pytest.raises(ValueError, match="requests"):
                generator.run(rate, seconds)
        with pytest.raises(ValueError, match="requests"):
            generator.run(10, 1, grace=-1)
    with pytest.raises(ValueError, match="closed"):
        generator.run(10, 1)
