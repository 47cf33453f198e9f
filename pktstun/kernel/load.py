"""STUN requests at a fixed rate from a packet socket, and their replies from a ring.

Theory of operation: open loop. Requests are due at fixed times, whatever becomes of the ones
before, and a latency counts from when its request was due: a server or a generator that falls
behind cannot hide it by being asked less (no coordinated omission). Each request comes from an
address and a port of its own, chosen at random from a prefix, and each reply is checked: see
cdefs/load.c, which does all that happens once per packet. `LoadGenerator` sends and receives
in the calling thread, which is best alone on its CPU.

Latencies are kept in a histogram of a fixed size, whose buckets grow with the latency, so that
each is known within 1/64 of itself: 64 buckets for each power of two. Histograms of several
runs can be added.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ._closing import Closing
from ._ffi import CData, ffi, lib
from .bpf import udp_from
from .packet_socket import PacketSocket, RingGeometry
from .ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from pktstun.stun import TransportAddress

    from .iface import Interface

__all__ = ["Histogram", "LoadGenerator", "LoadResult"]

MAX_REQUESTS = 0xFFFFFFFF
"""Requests of a run at most: their numbers have 32 bits."""

WRONG = tuple(
    name.removeprefix("PKTSTUN_WRONG_").lower()
    for _, name in sorted(ffi.typeof("enum pktstun_load_wrong").elements.items())
    if name != "PKTSTUN_WRONGS"
)
"""What can be wrong with a reply, in the order of the checks."""

_NS = 1_000_000_000
_SLICE = _NS // 10  # between two looks at what signals have asked for
_STEPS: int = lib.PKTSTUN_HISTOGRAM_STEPS
_LAST: int = lib.PKTSTUN_HISTOGRAM_BUCKETS - 1
# 100 ms of replies at a million a second: as long as a descheduled generator may be away.
_GEOMETRY = RingGeometry(block_size=1 << 16, block_count=256)
_SEND_BUFFER = 1 << 24


@dataclass(frozen=True, slots=True)
class Histogram:
    """Latencies in nanoseconds, by bucket.

    The buckets of `counts` are numbered; bucket b holds the latencies from `lowest(b)` to
    `highest(b)`, and the last one, 1983, everything longer, too.
    """

    counts: Counter[int] = field(default_factory=Counter)
    """{bucket: latencies}, without zeros."""
    total: int = 0
    """The sum of the latencies."""
    longest: int = 0

    @classmethod
    def of(cls, latencies: Iterable[int]) -> Self:
        """Count these latencies (in nanoseconds, not negative)."""
        values = list(latencies)
        counts = Counter(int(lib.pktstun_histogram_bucket(value)) for value in values)
        return cls(counts, sum(values), max(values, default=0))

    @staticmethod
    def lowest(bucket: int) -> int:
        """Return the shortest latency of a bucket."""
        shift = max(bucket // _STEPS - 1, 0)
        return (bucket - shift * _STEPS) << shift

    @classmethod
    def highest(cls, bucket: int) -> int:
        """Return the longest latency of a bucket, as if the last one had an end."""
        return cls.lowest(bucket + 1) - 1

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(
            self.counts + other.counts,
            self.total + other.total,
            max(self.longest, other.longest),
        )

    def __len__(self) -> int:
        """Return the number of latencies."""
        return self.counts.total()

    def percentile(self, percent: float) -> int:
        """Return a latency that so many of all do not exceed, at most 1/64 above the least.

        Raises:
            ValueError: there are no latencies, or `percent` is not in 0..100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"{percent} is no percentage")
        wanted = percent / 100 * len(self)
        reached = 0
        for bucket, count in sorted(self.counts.items()):
            reached += count
            if reached >= wanted:
                return min(self.highest(bucket), self.longest) if bucket < _LAST else self.longest
        raise ValueError("there are no latencies")

    @property
    def mean(self) -> float:
        """The mean, from the latencies themselves.

        Raises:
            ValueError: there are no latencies.
        """
        if not self.counts:
            raise ValueError("there are no latencies")
        return self.total / len(self)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of a run. Every request that was due was sent, refused, or not sent in time."""

    rate: int
    """Requests a second that were asked for."""
    seconds: float
    """How long requests were sent; more than asked for if the generator had to catch up."""
    sent: int
    send_errors: int
    """Requests that the interface refused: its queue was full, or it was down."""
    unsent: int
    """Requests that were due, and for which there was no time."""
    late: int
    """Of the sent ones, those sent a millisecond or more after they were due."""
    lateness: float
    """Seconds; the most that a request was late."""
    send_calls: int
    replies: int
    """Requests with a correct success response."""
    in_time: int
    """Of these, those whose response arrived within the sending time."""
    errors: int
    """Requests with a correct error response."""
    duplicates: int
    """Correct responses beyond the first to a request."""
    stale: int
    """Responses to requests of an earlier run."""
    wrong: dict[str, int]
    """Replies by what is wrong with them (`WRONG`), without zeros."""
    overlooked: int
    """Frames that the ring had no room for: they may have been replies."""
    stopped: bool
    """Whether the run was ended before its time."""
    latencies: Histogram
    """Of the replies, from when the request was due until the response arrived."""
    slices: tuple[int, ...]
    """How many of each `slice_size` requests, in the order in which they were due, got a correct
    response; refused ones count as unanswered. What is left at the end is left out."""
    slice_size: int
    """Requests that were due in about 10 ms, a multiple of 8."""

    @property
    def lost(self) -> int:
        """Requests without a correct response."""
        return self.sent - self.replies - self.errors


class LoadGenerator(Closing):
    """Sends Binding requests from an interface, and reads the replies.

    The kernel gets the replies as well. It drops those to addresses that are not its own, and
    may answer others with ICMP errors.

    Args:
        interface: where to send and receive, Ethernet or loopback; frames carry its
            link-layer address as source.
        server: where requests go; also the port that replies come from.
        sources: requests come from random addresses of this network, of which the first and
            the last are spared unless it has only two; of an IPv6 network the last 64 bits
            vary. A /32 or /128 is one address.
        mac: link-layer address of the server or of the gateway to it.
        geometry: size of the ring; None for one that holds the replies of 100 ms.
        odd_every: every so many-th request has an attribute that no server knows and that it
            takes an error response to say so (420), and the others one that may be ignored; 0 for
            requests without attributes.

    Raises:
        ValueError: server and sources are of two families, or the port is 0.
        PermissionError: the process lacks CAP_NET_RAW.
        OSError: there is no such interface, or no memory.
    """

    def __init__(  # noqa: PLR0913 - what a generator is made of
        self,
        interface: Interface,
        server: TransportAddress,
        sources: IPv4Network | IPv6Network,
        mac: bytes,
        *,
        geometry: RingGeometry | None = None,
        odd_every: int = 0,
    ) -> None:
        if server.ip.version != sources.version:
            raise ValueError(f"{sources} and {server.ip} are of two address families")
        if not server.port:
            raise ValueError("nothing can be sent to port 0")
        self.interface = interface
        self.server = server
        self.sources = sources
        with ExitStack() as stack:
            self._ring = stack.enter_context(
                Ring.open(
                    interface.name,
                    program=udp_from([server.port]),
                    geometry=geometry or _GEOMETRY,
                    outgoing=False,
                )
            )
            out = stack.enter_context(PacketSocket())
            out.bind_sender(interface.name, _SEND_BUFFER)
            setup = _setup(server, sources)
            setup.send_fd = out.fileno()
            setup.odd_every = odd_every
            setup.destination_mac = mac
            setup.source_mac = interface.mac or bytes(6)
            setup.ring = self._ring.memory
            setup.block_size = self._ring.geometry.block_size
            setup.block_count = self._ring.geometry.block_count
            self._load = ffi.gc(lib.pktstun_load_new(setup), lib.pktstun_load_free)
            if not self._load:
                raise MemoryError
            self._owned = stack.pop_all()

    def close(self) -> None:
        """Give back the sockets and the ring."""
        self._load = ffi.NULL
        self._owned.close()

    def run(
        self,
        rate: int,
        seconds: float,
        *,
        grace: float = 0.3,
        stop: Callable[[], bool] = lambda: False,
    ) -> LoadResult:
        """Send `rate` requests a second for `seconds`, and wait `grace` seconds for late replies.

        A generator that is behind at the end of its time has 0.1 s to catch up.

        Args:
            rate: requests a second, 1 at least.
            seconds: how long to send.
            grace: how long to wait for replies afterwards.
            stop: asked ten times a second whether to end the sending early.

        Raises:
            ValueError: that makes no request, or more than `MAX_REQUESTS`.
            OSError: the interface has gone, or there is no memory.
        """
        if not self._load:
            raise ValueError("the generator is closed")
        requests = rate * int(seconds * _NS) // _NS
        if not 1 <= requests <= MAX_REQUESTS or grace < 0:
            raise ValueError(
                f"{rate}/s for {seconds:g} s make {requests} requests; 1 to {MAX_REQUESTS} can be "
                "sent in a run"
            )
        self._ring.statistics()
        if lib.pktstun_load_begin(self._load, rate, int(seconds * _NS), int(grace * _NS)):
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        stopped = False
        while (state := lib.pktstun_load_run(self._load, _SLICE)) == 1:
            if not stopped and stop():
                stopped = True
                lib.pktstun_load_stop(self._load)
        if state < 0:
            reason = "has gone" if -state == errno.ENXIO else os.strerror(-state)
            raise OSError(-state, f"{self.interface.name}: {reason}")
        counts = lib.pktstun_load_counts(self._load)
        answered = ffi.buffer(
            lib.pktstun_load_answered(self._load), -(-(counts.sent + counts.send_errors) // 8)
        )
        drops = self._ring.statistics().drops
        return _result(counts, answered, rate, overlooked=drops, stopped=stopped)


def _setup(server: TransportAddress, sources: IPv4Network | IPv6Network) -> CData:
    setup = ffi.new("struct pktstun_load_setup *")
    _set_address(setup.server, server.ip)
    setup.server.port = server.port
    _set_address(setup.source, sources.network_address)
    setup.host_bits = sources.max_prefixlen - sources.prefixlen
    ffi.buffer(setup.keys)[:] = os.urandom(ffi.sizeof(setup.keys))
    return setup


def _set_address(address: CData, ip: IPv4Address | IPv6Address) -> None:
    address.family = ip.version
    ffi.memmove(address.ip, ip.packed, len(ip.packed))


def _result(
    counts: CData, answered: CData, rate: int, *, overlooked: int, stopped: bool
) -> LoadResult:
    buckets = ffi.unpack(counts.histogram, lib.PKTSTUN_HISTOGRAM_BUCKETS)
    stride = max(1, rate // 800)  # bytes of a slice: 8 requests each
    requests = counts.sent + counts.send_errors
    return LoadResult(
        rate=rate,
        seconds=counts.elapsed / _NS,
        sent=counts.sent,
        send_errors=counts.send_errors,
        unsent=counts.unsent,
        late=counts.late,
        lateness=counts.lateness / _NS,
        send_calls=counts.send_calls,
        replies=counts.replies,
        in_time=counts.in_time,
        errors=counts.errors,
        duplicates=counts.duplicates,
        stale=counts.stale,
        wrong={name: count for name, count in zip(WRONG, counts.wrong, strict=True) if count},
        overlooked=overlooked,
        stopped=stopped,
        latencies=Histogram(
            Counter({bucket: count for bucket, count in enumerate(buckets) if count}),
            counts.latency_sum,
            counts.latency_max,
        ),
        slices=tuple(
            int.from_bytes(answered[at : at + stride]).bit_count()
            for at in range(0, requests // 8 // stride * stride, stride)
        ),
        slice_size=8 * stride,
    )
