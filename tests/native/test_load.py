"""The generator's C: requests that are right, and no reply that is counted as what it is not.

Frames go to a socket pair in place of an interface, and come from memory in place of a ring.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.kernel import RingGeometry
from pktstun.kernel._closing import Closing
from pktstun.kernel._ffi import CData, ffi, lib
from pktstun.kernel.load import WRONG, _setup
from pktstun.packet import Datagram, build_udp_frame, receive
from pktstun.stun import Class, Message, Method, Reply, TransportAddress, respond
from tests.kernel.blocks import BlockFrame, FileRing, build_block, slot_size
from tests.native.guarded import Guarded
from tests.strategies.frames import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.native

Network: TypeAlias = IPv4Network | IPv6Network

SERVERS = {
    4: TransportAddress(ip_address("192.0.2.1"), 3478),
    6: TransportAddress(ip_address("2001:db8::1"), 3478),
}
SOURCES: dict[int, Network] = {
    4: ip_network("100.64.0.0/10"),
    6: ip_network("2001:db8:1::/64"),
}
MACS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
GEOMETRY = RingGeometry(block_size=16384, block_count=8)
SECOND = 1_000_000_000
KEYS = [0x0123456789ABCDEF, 0xFEDCBA9876543210, 0x55AA55AA55AA55AA, 0x1]

words = st.integers(0, (1 << 64) - 1)
key_lists = st.lists(words, min_size=4, max_size=4)


class Sent(NamedTuple):
    """A request as a server sees it."""

    client: TransportAddress
    message: bytes

    def reply(self, server: TransportAddress) -> bytes:
        answer = respond(self.message, self.client, server)
        assert isinstance(answer, Reply)
        return answer.datagram


class Load(Closing):
    """A generator without an interface."""

    def __init__(
        self,
        server: TransportAddress = SERVERS[4],
        sources: Network | None = None,
        keys: list[int] | None = None,
        odd_every: int = 0,
    ) -> None:
        self.server = server
        self._stack = ExitStack()
        out, self.wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (out, self.wire):
            self._stack.enter_context(sock)
            sock.settimeout(0)
        self.out = out
        self.ring = self._stack.enter_context(FileRing(GEOMETRY))
        self._memory = ffi.from_buffer(self.ring.memory)
        self.setup = _setup(server, sources or SOURCES[server.ip.version])
        self.setup.send_fd = out.fileno()
        self.setup.destination_mac, self.setup.source_mac = MACS
        self.setup.ring = self._memory
        self.setup.block_size, self.setup.block_count = GEOMETRY.block_size, GEOMETRY.block_count
        self.setup.keys = keys or KEYS
        self.setup.odd_every = odd_every
        self.native = lib.pktstun_load_new(self.setup)
        assert self.native

    def close(self) -> None:
        lib.pktstun_load_free(self.native)
        ffi.release(self._memory)
        self._stack.close()

    def request(self, place: int) -> bytes:
        with Guarded(128) as memory:
            at = memory.at_end(bytes(lib.PKTSTUN_LOAD_REQUEST))
            length = lib.pktstun_load_request(self.native, place, at)
            return bytes(ffi.buffer(at, length))

    def sent(self, place: int) -> Sent:
        datagram = receive(self.request(place))
        client = TransportAddress(datagram.source_ip, datagram.source_port)
        return Sent(client, bytes(datagram.payload))

    def begin(self, rate: int, seconds: float, grace: float = 0.0) -> Self:
        times = int(seconds * SECOND), int(grace * SECOND)
        assert lib.pktstun_load_begin(self.native, rate, *times) == 0
        return self

    def run(self, seconds: float) -> int:
        return int(lib.pktstun_load_run(self.native, int(seconds * SECOND)))

    def run_to_end(self) -> list[bytes]:
        """Run, and return what was sent."""
        frames: list[bytes] = []
        while (state := self.run(0.001)) == 1:
            frames += self.received()
        assert state == 0
        return frames + self.received()

    def received(self) -> list[bytes]:
        frames = []
        while True:
            try:
                frames.append(self.wire.recv(256))
            except BlockingIOError:
                return frames

    def judge(self, frame: bytes, *, timestamp: int | None = None, status: int = 0) -> str:
        """Hand a frame in; return the name of the one counter that it moved."""
        before = self.counters()
        with Guarded(4096) as memory:
            raw = ffi.new("struct pktstun_frame *")
            raw.data = memory.at_end(frame)
            raw.captured = raw.length = len(frame)
            raw.status = status
            raw.timestamp = time.time_ns() if timestamp is None else timestamp
            lib.pktstun_load_reply(self.native, raw)
        moved = self.counters() - before
        assert moved.total() == 1
        return next(iter(moved.elements()))

    @property
    def counts(self) -> CData:
        return lib.pktstun_load_counts(self.native)

    def counters(self) -> Counter[str]:
        counts = self.counts
        names = ("replies", "errors", "duplicates", "stale")
        return Counter(
            {name: getattr(counts, name) for name in names}
            | dict(zip(WRONG, counts.wrong, strict=True))
        )

    def reply_frame(self, sent: Sent, message: bytes | None = None) -> bytes:
        return build_udp_frame(message or sent.reply(self.server), self.server, sent.client)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    with Load(SERVERS[request.param]) as load:
        yield load


@pytest.fixture
def asked(load: Load) -> Load:
    """The generator after a run of 20 requests, which waits for replies."""
    load.begin(1000, 0.02, grace=60)
    frames: list[bytes] = []
    while len(frames) < 20:
        assert load.run(0.001) == 1
        frames += load.received()
    return load


# --- Transaction ids ---


def identify(keys: list[int], number: int) -> bytes:
    identifier = ffi.new("uint8_t[12]")
    lib.pktstun_load_id(ffi.new("uint64_t[4]", keys), number, identifier)
    return bytes(identifier)


def number_of(keys: list[int], identifier: bytes) -> int | None:
    number = ffi.new("uint64_t *")
    known = lib.pktstun_load_number(ffi.new("uint64_t[4]", keys), identifier, number)
    return int(number[0]) if known else None


@given(key_lists, words)
def test_an_id_gives_its_number_back(keys: list[int], number: int) -> None:
    assert number_of(keys, identify(keys, number)) == number


@given(key_lists, words, st.integers(0, 95))
def test_an_id_with_a_changed_bit_is_known_to_be_wrong(
    keys: list[int], number: int, bit: int
) -> None:
    changed = int.from_bytes(identify(keys, number), "big") ^ 1 << bit
    assert number_of(keys, changed.to_bytes(12, "big")) is None


@given(key_lists, words, st.integers(0, 2), st.integers(0, 63))
def test_an_id_of_other_keys_is_known_to_be_wrong(
    keys: list[int], number: int, which: int, bit: int
) -> None:
    other = keys.copy()
    other[which] ^= 1 << bit
    found = number_of(other, identify(keys, number))
    # The first two say which number an id stands for, and the third whether it is one.
    assert found is None if which == 2 else found != number


def test_ids_look_random() -> None:
    count = 4000
    identifiers = [int.from_bytes(identify(KEYS, number), "big") for number in range(count)]
    assert len(set(identifiers)) == count
    for bit in range(96):
        ones = sum(identifier >> bit & 1 for identifier in identifiers)
        assert 0.45 < ones / count < 0.55


# --- Requests ---

networks = st.one_of(
    st.builds(
        lambda ip, bits: IPv4Network((ip, bits), strict=False),
        st.integers(0, (1 << 32) - 1),
        st.integers(1, 32),
    ),
    st.builds(
        lambda ip, bits: IPv6Network((ip, bits), strict=False),
        st.integers(0, (1 << 128) - 1),
        st.integers(1, 128),
    ),
)


@given(networks, st.integers(1, 65535), key_lists, st.integers(0, (1 << 32) - 1))
def test_a_request_is_right(network: Network, port: int, keys: list[int], place: int) -> None:
    server = TransportAddress(SERVERS[network.version].ip, port)
    with Load(server, network, keys) as load:
        frame = load.request(place)
    assert len(frame) == (62 if network.version == 4 else 82)
    assert (frame[:6], frame[6:12]) == MACS
    if not network.overlaps(ip_network("::ffff:0:0/96")):  # no address of a packet
        datagram = receive(frame)
        assert isinstance(datagram, Datagram)
        assert (datagram.destination_ip, datagram.destination_port) == server
        assert datagram.source_ip in network
        if network.num_addresses > 2:
            assert datagram.source_ip not in {network[0], network[-1]}
        assert datagram.source_port >= 1024
        assert datagram.source_port != port
    message = Message.decode(frame[-20:])
    assert (message.message_class, message.method) == (Class.REQUEST, Method.BINDING)
    assert message.attributes == ()
    assert number_of(keys, message.transaction_id) == place


def test_requests_come_from_everywhere(load: Load) -> None:
    clients = [load.sent(place).client for place in range(2000)]
    assert len({client.ip for client in clients}) > 1990
    assert len({client.port for client in clients}) > 1900
    # The upper half of the prefix is as likely as the lower one.
    sources = SOURCES[load.server.ip.version]
    middle = sources[0] + sources.num_addresses // 2
    assert 900 < sum(int(client.ip) >= int(middle) for client in clients) < 1100
    assert 900 < sum(client.port >= (1024 + 65536) // 2 for client in clients) < 1100


@pytest.mark.parametrize("version", [4, 6])
def test_every_third_request_is_odd(version: int) -> None:
    """It takes an error response; to the others their attribute makes no difference."""
    with Load(SERVERS[version], odd_every=3) as load:
        for place in range(60):
            sent = load.sent(place)
            expected = Class.ERROR if place % 3 == 0 else Class.SUCCESS
            assert Message.decode(sent.reply(load.server)).message_class is expected


def test_the_servers_port_is_nobodys_source_port() -> None:
    with Load() as load:
        chosen = load.sent(0).client.port
    with Load(TransportAddress(SERVERS[4].ip, chosen)) as load:
        assert load.sent(0).client.port == chosen ^ 1


def test_a_prefix_of_two_addresses_gives_both() -> None:
    network = ip_network("192.0.2.6/31")
    with Load(sources=network) as load:
        assert {load.sent(place).client.ip for place in range(100)} == set(network)


def test_the_checksum_is_never_zero() -> None:
    """0 says that there is none: about one request in 65536 would have it."""
    with Load(SERVERS[6]) as load:
        frame = ffi.new("uint8_t[]", lib.PKTSTUN_LOAD_REQUEST)
        full = 0
        for place in range(300_000):
            lib.pktstun_load_request(load.native, place, frame)
            field = bytes(frame[14 + 40 + 6 : 14 + 40 + 8])
            assert field != b"\0\0"
            if field == b"\xff\xff":
                full += 1
                receive(bytes(frame))
        assert full


# --- Replies ---


def test_a_correct_reply(asked: Load) -> None:
    for place in random.Random(1).sample(range(20), 20):
        assert asked.judge(asked.reply_frame(asked.sent(place))) == "replies"
    assert sum(asked.counts.histogram) == 20


def test_the_second_reply_is_a_duplicate(asked: Load) -> None:
    for place in range(20):
        frame = asked.reply_frame(asked.sent(place))
        assert asked.judge(frame) == "replies"
        assert asked.judge(frame) == asked.judge(frame) == "duplicates"


def test_an_error_response_is_none_of_the_others(asked: Load) -> None:
    sent = asked.sent(3)
    error = with_type(0x0111)(sent.reply(asked.server))
    assert asked.judge(asked.reply_frame(sent, error)) == "errors"
    assert asked.judge(asked.reply_frame(sent)) == "duplicates"


def test_a_reply_to_an_earlier_run_is_stale(asked: Load) -> None:
    frame = asked.reply_frame(asked.sent(0))
    asked.begin(1000, 0.02)
    asked.run_to_end()
    assert asked.judge(frame) == "stale"
    assert asked.judge(asked.reply_frame(asked.sent(0))) == "replies"


def test_a_request_that_was_not_sent_yet_has_no_reply(load: Load) -> None:
    load.begin(10, 10.0)
    assert load.run(0) == 1
    assert load.judge(load.reply_frame(load.sent(0))) == "replies"
    assert load.judge(load.reply_frame(load.sent(50))) == "id"


def with_type(number: int) -> Callable[[bytes], bytes]:
    return lambda reply: struct.pack("!H", number) + reply[2:]


def flipped(at: int) -> Callable[[bytes], bytes]:
    """A change of one bit."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    return change


ATTRIBUTE = 20


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda reply: reply[:16], "message"),
        (lambda reply: reply[:-4], "message"),
        (lambda reply: reply + bytes(4), "message"),
        (flipped(4), "message"),
        (flipped(3), "message"),
        (flipped(ATTRIBUTE + 2), "message"),
        (lambda reply: flipped(3)(flipped(4)(reply)), "message"),
        (with_type(0x0001), "type"),
        (with_type(0x0011), "type"),
        (with_type(0x0103), "type"),
        (flipped(8), "id"),
        (flipped(12), "id"),
        (flipped(19), "id"),
        (flipped(ATTRIBUTE + 1), "mapped"),
        (flipped(ATTRIBUTE + 3), "message"),
        (flipped(ATTRIBUTE + 5), "mapped"),
        (flipped(ATTRIBUTE + 6), "mapped"),
        (flipped(ATTRIBUTE + 8), "mapped"),
        (flipped(-1), "mapped"),
        (lambda reply: reply[:2] + b"\0\0" + reply[4:20], "mapped"),
    ],
)
def test_a_wrong_message(asked: Load, change: Callable[[bytes], bytes], kind: str) -> None:
    sent = asked.sent(7)
    reply = sent.reply(asked.server)
    assert asked.judge(asked.reply_frame(sent, change(reply))) == kind
    # What was wrong stands for nothing.
    assert asked.judge(asked.reply_frame(sent)) == "replies"


def test_a_wrong_frame(asked: Load) -> None:
    sent = asked.sent(7)
    frame = asked.reply_frame(sent)
    assert asked.judge(frame[:-1]) == "frame"
    assert asked.judge(flipped(len(frame) - 1)(frame)) == "frame"  # the UDP checksum tells
    assert asked.judge(b"") == "frame"
    # A checksum that a local sender has left to the interface is not looked at.
    not_ready = flipped(len(frame) - len(sent.reply(asked.server)) - 1)(frame)
    assert asked.judge(not_ready) == "frame"
    assert asked.judge(not_ready, status=lib.TP_STATUS_CSUMNOTREADY) == "replies"


def test_a_wrong_peer(asked: Load) -> None:
    sent, other = asked.sent(7), asked.sent(8)
    reply, (ip, port) = sent.reply(asked.server), asked.server
    for source in ((ip + 1, port), (ip, port + 1)):
        assert asked.judge(build_udp_frame(reply, source, sent.client)) == "source"
    client = sent.client
    for destination in ((client.ip + 1, client.port), (client.ip, client.port ^ 1), other.client):
        assert asked.judge(build_udp_frame(reply, asked.server, destination)) == "destination"
    family = 10 - ip.version
    stranger = build_udp_frame(reply, SERVERS[family], (SOURCES[family][1], client.port))
    assert asked.judge(stranger) == "source"
    assert asked.judge(asked.reply_frame(sent)) == "replies"


def test_more_attributes_do_no_harm(asked: Load) -> None:
    """In front, or behind, and of any length; of two addresses the first one counts."""
    sent = asked.sent(7)
    reply = sent.reply(asked.server)
    software = struct.pack("!HH", 0x8022, 5) + b"abcde\0\0\0"
    mapped = reply[20:]
    wrong = flipped(-1)(mapped)

    def message(*parts: bytes) -> bytes:
        body = b"".join(parts)
        return reply[:2] + struct.pack("!H", len(body)) + reply[4:20] + body

    assert asked.judge(asked.reply_frame(sent, message(wrong, mapped))) == "mapped"
    long = message(software, mapped, wrong, software)
    assert asked.judge(asked.reply_frame(sent, long)) == "replies"


@given(frames(st.binary(max_size=80)).map(lambda drawn: drawn[0]) | st.binary(max_size=200))
def test_noise_is_one_wrong_reply(frame: bytes) -> None:
    with Load().begin(1000, 1.0) as load:
        assert load.judge(frame) in WRONG


@given(noise=st.binary(max_size=200), stun=st.booleans())
def test_a_noisy_message_is_one_wrong_reply(noise: bytes, *, stun: bool) -> None:
    with Load().begin(1000, 1.0) as load:
        load.run(0)
        sent = load.sent(0)
        message = noise
        if stun:  # the header is that of a reply
            message = struct.pack("!HH", 0x0101, len(noise)) + sent.reply(load.server)[4:20] + noise
        frame = build_udp_frame(message, load.server, sent.client)
        assert load.judge(frame) in {"message", "mapped", "type"}


def test_latency_counts_from_when_a_request_was_due(load: Load) -> None:
    before = time.time_ns()
    load.begin(1000, 0.02)
    load.run_to_end()
    arrived = time.time_ns() + SECOND
    sums = []
    for place in (0, 1, 19):
        assert load.judge(load.reply_frame(load.sent(place)), timestamp=arrived) == "replies"
        sums.append(load.counts.latency_sum)
    first, second, third = sums[0], sums[1] - sums[0], sums[2] - sums[1]
    assert (first - second, first - third) == (1_000_000, 19_000_000)
    # The two clocks are compared to within the time that it takes.
    assert SECOND <= first <= arrived - before + 1_000_000
    assert load.counts.latency_max == first
    assert load.counts.in_time == 0


def test_a_reply_from_before_its_request_took_no_time(asked: Load) -> None:
    frame = asked.reply_frame(asked.sent(19))
    assert asked.judge(frame, timestamp=time.time_ns() - 60 * SECOND) == "replies"
    assert (asked.counts.latency_sum, asked.counts.histogram[0]) == (0, 1)
    assert asked.counts.in_time == 1


# --- Runs ---


@pytest.mark.parametrize(("rate", "seconds"), [(1000, 0.05), (7, 0.5), (9, 0.12), (100_000, 0.01)])
def test_each_request_that_is_due_is_sent_once_and_in_order(
    load: Load, rate: int, seconds: float
) -> None:
    sent = load.begin(rate, seconds).run_to_end()
    counts = load.counts
    due = int(rate * seconds)
    assert counts.sent + counts.unsent == due
    assert counts.send_errors == 0
    assert sent == [load.request(place) for place in range(counts.sent)]
    assert counts.elapsed >= seconds * SECOND


def test_what_cannot_be_sent_is_told(load: Load) -> None:
    """Nobody reads: the socket's buffer is full soon, and stays so."""
    load.begin(100_000, 0.1)
    while (state := load.run(0.01)) == 1:
        pass
    counts = load.counts
    assert state == 0
    assert counts.unsent > 0
    assert counts.sent + counts.unsent == 10_000
    assert len(load.received()) == counts.sent
    assert counts.elapsed >= 0.1 * SECOND + lib.PKTSTUN_LOAD_OVERRUN


def test_what_is_sent_late_is_told(load: Load) -> None:
    load.begin(1000, 0.05)
    time.sleep(0.03)
    load.run_to_end()
    counts = load.counts
    assert counts.sent == 50
    assert counts.late >= 28
    assert counts.lateness >= 0.03 * SECOND


def test_a_run_does_not_catch_up_for_long(load: Load) -> None:
    load.begin(100_000, 0.01)
    time.sleep(0.01 + lib.PKTSTUN_LOAD_OVERRUN / SECOND)
    load.run_to_end()
    assert 0 < load.counts.sent <= lib.PKTSTUN_LOAD_BATCH
    assert load.counts.unsent == 1000 - load.counts.sent


def test_a_run_is_ended_early(load: Load) -> None:
    load.begin(1000, 60, grace=0.01)
    assert load.run(0.02) == 1
    lib.pktstun_load_stop(load.native)
    load.run_to_end()
    counts = load.counts
    assert 0.02 * SECOND <= counts.elapsed < 30 * SECOND
    due = counts.elapsed * 1000 // SECOND + 1
    assert counts.sent + counts.unsent == due


def test_a_dead_socket_ends_the_run() -> None:
    with Load() as load:
        load.begin(1000, 1)
        assert load.run(0) == 1
        load.wire.close()
        assert load.run(0.1) == -errno.ECONNREFUSED


@pytest.mark.parametrize(("rate", "duration"), [(1, SECOND - 1), (1 << 32, SECOND), (1, 0)])
def test_no_request_and_too_many_are_refused(rate: int, duration: int) -> None:
    with Load() as load:
        assert lib.pktstun_load_begin(load.native, rate, duration, 0) == -1
        assert ffi.errno == errno.EINVAL


# --- The ring ---


def feed(load: Load, index: int, frames: list[bytes], sequence: int) -> None:
    block = build_block(
        [BlockFrame(frame) for frame in frames], GEOMETRY.block_size, sequence=sequence
    )
    load.ring.put(index, block)


def test_replies_come_from_the_blocks_in_turn(asked: Load) -> None:
    replies = [asked.reply_frame(asked.sent(place)) for place in range(20)]
    for lap in range(2):
        for index in range(GEOMETRY.block_count):
            feed(asked, index, [replies[index + 8 * lap]] * 2, index + 1)
        assert asked.run(0.005) == 1
        assert [asked.ring.status(index) for index in range(8)] == [0] * 8
    assert (asked.counts.replies, asked.counts.duplicates) == (16, 16)
    # The next one is the first again, and not any other.
    feed(asked, 1, [replies[16]], 18)
    assert asked.run(0.005) == 1
    assert asked.counts.replies == 16
    feed(asked, 0, [replies[17]], 17)
    assert asked.run(0.005) == 1
    assert asked.counts.replies == 18


def test_a_broken_block_is_counted_and_given_back(asked: Load) -> None:
    reply = asked.reply_frame(asked.sent(0))
    block = build_block([BlockFrame(reply)] * 2, GEOMETRY.block_size)
    struct.pack_into("=I", block, 48 + slot_size(len(reply)), 1 << 30)  # to the next frame
    struct.pack_into("=I", block, 12, 3)
    asked.ring.put(0, block)
    assert asked.run(0.005) == 1
    assert asked.ring.status(0) == 0
    assert asked.counts.wrong[WRONG.index("frame")] == 1


def test_what_is_left_of_a_run_is_not_the_next_ones(asked: Load) -> None:
    feed(asked, 0, [asked.reply_frame(asked.sent(0))], 1)
    asked.begin(1000, 0.02)
    asked.run_to_end()
    assert asked.counters().total() == 0
    assert asked.ring.status(0) == 0


# --- Idle time ---


def measure(duration: int, threshold: int) -> tuple[int, int]:
    idle = ffi.new("uint64_t *")
    return int(lib.pktstun_idle_meter(duration, threshold, idle)), int(idle[0])


def test_idle_time_is_what_is_below_the_threshold() -> None:
    elapsed, idle = measure(2_000_000, 1 << 62)
    assert elapsed == idle >= 2_000_000
    elapsed, idle = measure(2_000_000, 0)
    assert elapsed >= 2_000_000
    assert idle == 0
    elapsed, idle = measure(2_000_000, 1000)
    assert 0 <= idle <= elapsed
    assert measure(0, 1000) == (0, 0)


# --- Histogram ---


@given(st.integers(0, (1 << 64) - 2))
def test_buckets_are_in_order_and_narrow(latency: int) -> None:
    bucket = lib.pktstun_histogram_bucket(latency)
    above = lib.pktstun_histogram_bucket(latency + 1)
    assert 0 <= bucket <= above <= bucket + 1
    assert above < lib.PKTSTUN_HISTOGRAM_BUCKETS
    if latency < 60 * SECOND:
        width = latency // 64 + 1
        assert lib.pktstun_histogram_bucket(latency + width + 1) > bucket
