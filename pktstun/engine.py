"""The engines: how a worker turns requests into replies, behind one seam.

Theory of operation: an engine borrows kernel objects that the supervisor owns, and has four
verbs: `open`, `run` for a while, `stats`, `close`. `run` calls the C loop, which reads,
answers and sends without Python until its time is up, a signal arrives or the stop flag is
set. What the fast path does not answer comes back as handovers; `respond()` says what becomes
of each. That may take `HANDOVER_PERCENT` of the time and `HANDOVER_SLICE` in one go, so that
odd requests, however long, cannot slow down the others. Where every request needs `respond()`,
since it checks credentials, there are no others, and no such limit (`handover_percent` is 100).

`SocketEngine` reads UDP sockets with recvmmsg. `RingEngine` reads a TPACKET_V3 ring, and the
sockets as well: a filter on them lets through only what arrived on another interface, such as
a health check of the host itself over loopback. Both send with sendmmsg on the UDP sockets.
With a `DirectPath` the RingEngine sends reply frames itself, through a packet socket, where
that is the way on which the kernel would send them; what `respond()` answers, and what has
another way back, goes through the UDP sockets.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import os
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from pktstun.errors import ConfigError, EngineError
from pktstun.kernel import Ring
from pktstun.kernel._closing import Closing
from pktstun.kernel._ffi import CData, ffi, lib
from pktstun.stats import VERDICTS
from pktstun.stun import (
    HEADER_SIZE,
    AlternateServer,
    Class,
    Drop,
    ErrorCode,
    Message,
    Method,
    OtherAddress,
    Reply,
    ResponderOptions,
    ResponseOrigin,
    TransportAddress,
    respond,
    split_type,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pktstun.kernel import PacketSocket, RingGeometry, UDPSocket
    from pktstun.limiter import RateLimit
    from pktstun.stats import SharedRoutes, Slot, WorkerStats
    from pktstun.stun import Attribute

__all__ = [
    "HANDOVER_PERCENT",
    "HANDOVER_SLICE",
    "DirectPath",
    "Engine",
    "Limits",
    "RingEngine",
    "RunEnd",
    "SocketEngine",
    "Tuning",
]

log = logging.getLogger("pktstun")

HANDOVER_PERCENT = 5
"""Share of a worker's time that respond() may take; what exceeds it is dropped, counted."""

HANDOVER_SLICE = 0.02
"""Seconds of CPU time that respond() may take before the loop goes on: a ring holds more than
arrives meanwhile."""

UIO_MAXIOV = 1024
"""Messages that the kernel takes in one recvmmsg or sendmmsg (<linux/uio.h>)."""

LONGEST_SPIN = 1.0

DRAIN_GRACE = 0.01
"""Seconds without a datagram after which a drained engine is empty. A ring retires its last
block within the retire timeout, a millisecond by default."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the loop goes about its work.

    Args:
        batch: datagrams in a recvmmsg and messages in a sendmmsg at most, 1 to 1024.
        spin: seconds for which an idle loop looks for more before it sleeps.
        handover_percent: share of the time that `respond()` may take at most, 0 to 100; what
            exceeds it is dropped, counted. 100 is no limit.

    Raises:
        ValueError: a number is out of its range.
    """

    batch: int = 256
    spin: float = 0.0
    handover_percent: int = HANDOVER_PERCENT

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= UIO_MAXIOV:
            raise ValueError(f"batch {self.batch} is not in 1..{UIO_MAXIOV}")
        if not 0 <= self.spin <= LONGEST_SPIN:
            raise ValueError(f"spin {self.spin} is not in 0..{LONGEST_SPIN} seconds")


class Limits(NamedTuple):
    """How often an engine answers each source."""

    limit: RateLimit
    table: CData
    """`struct pktstun_limiter *`: this worker's, borrowed."""


class RunEnd(Enum):
    """Why `run` came back."""

    BUDGET = lib.PKTSTUN_RUN_BUDGET
    SIGNAL = lib.PKTSTUN_RUN_SIGNAL
    STOP = lib.PKTSTUN_RUN_STOP
    HANDOVER = lib.PKTSTUN_RUN_HANDOVER
    IDLE = lib.PKTSTUN_RUN_IDLE


class Engine(Protocol):
    """What a worker needs of an engine."""

    def open(self) -> None:
        """Get ready to run."""

    def run(self, budget: float) -> RunEnd:
        """Serve for at most `budget` seconds."""

    def drain(self, limit: float) -> None:
        """Serve what waits already, despite the stop flag, for at most `limit` seconds."""

    def stats(self) -> WorkerStats:
        """Return the counts of the slot."""

    def close(self) -> None:
        """Free what `open` made; borrowed objects stay open."""


class SocketEngine(Closing):
    """recvmmsg and sendmmsg on UDP sockets.

    Args:
        slot: where the loop counts.
        sockets: borrowed; one for each address that is served.
        options: what `respond()` and the fast path are told.
        limits: how often each source is answered; None for always.
        tuning: batch sizes and the like.
    """

    def __init__(
        self,
        slot: Slot,
        sockets: Sequence[UDPSocket],
        options: ResponderOptions,
        *,
        limits: Limits | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self._slot = slot
        self._sockets = sockets
        self._options = options
        self._limits = limits
        self._tuning = tuning or Tuning()
        self._engine: CData = ffi.NULL
        self._kept: list[CData] = []  # borrowed by the C engine
        self._has_failed = False

    def __enter__(self) -> Self:
        self.open()
        return self

    def open(self) -> None:
        """Make the C engine.

        Raises:
            EngineError: there is no memory, or the numbers are out of range.
            ConfigError: more addresses than the engine has room for.
        """
        check_room(self._options, len(self._sockets))
        setup = self._setup()
        self._engine = lib.pktstun_engine_new(setup)
        if not self._engine:
            raise EngineError(f"the engine cannot start: {os.strerror(ffi.errno)}")

    def _setup(self) -> CData:
        sockets = ffi.new("struct pktstun_socket[]", len(self._sockets))
        for native, sock in zip(sockets, self._sockets, strict=True):
            native.fd = sock.fileno()
            native.wildcard = sock.is_wildcard
            _write_address(ffi.addressof(native, "address"), sock.address, sock.scope)
        options = native_options(self._options)
        setup = ffi.new("struct pktstun_setup *")
        setup.slot = self._slot.pointer
        setup.socket_options = options
        setup.ring_fd = setup.frame_fd = -1
        setup.sockets = sockets
        setup.socket_count = len(self._sockets)
        setup.batch = self._tuning.batch
        setup.spin = int(self._tuning.spin * 1e9)
        setup.handover_percent = self._tuning.handover_percent
        self._kept = [options, sockets]
        if self._limits is not None:
            limits = self._limits.limit.native()
            setup.limiter, setup.limits = self._limits.table, limits
            self._kept.append(limits)
        return setup

    def run(self, budget: float) -> RunEnd:
        """Serve for at most `budget` seconds; handovers are settled before it returns.

        Raises:
            EngineError: a descriptor is unusable.
        """
        return self._run(budget, draining=False)

    def drain(self, limit: float) -> None:
        """Serve what waits already, despite the stop flag, for at most `limit` seconds.

        Raises:
            EngineError: a descriptor is unusable.
        """
        end = time.monotonic() + limit
        while (left := end - time.monotonic()) > 0:
            if self._run(left, draining=True) is RunEnd.IDLE:
                return

    def stats(self) -> WorkerStats:
        """Return the counts of the slot."""
        return self._slot.read()

    def close(self) -> None:
        """Free the C engine; sockets stay open."""
        lib.pktstun_engine_free(self._engine)
        self._engine = ffi.NULL
        self._kept = []

    def _run(self, budget: float, *, draining: bool) -> RunEnd:
        if not self._engine:
            raise EngineError("the engine is not open")
        result = lib.pktstun_engine_run(
            self._engine, int(budget * 1e9), draining, int(DRAIN_GRACE * 1e9)
        )
        if result < 0:
            raise EngineError(f"the engine cannot go on: {errno.errorcode.get(-result, result)}")
        end = RunEnd(result)
        if end is RunEnd.HANDOVER:
            unlimited = self._tuning.handover_percent == 100
            latest = math.inf if unlimited else time.thread_time() + HANDOVER_SLICE
            for index in range(lib.pktstun_engine_handovers(self._engine)):
                self._settle(index, in_time=time.thread_time() < latest)
        return end

    def _settle(self, index: int, *, in_time: bool) -> None:
        handover = lib.pktstun_engine_handover(self._engine, index)
        source, destination = read_address(handover.source), read_address(handover.destination)
        answer = self._respond(handover, source, destination) if in_time else "over_budget"
        server = ffi.NULL
        if isinstance(answer, Reply):
            _, message_class = split_type(int.from_bytes(answer.datagram[:2]))
            name = "error" if message_class == Class.ERROR else "success"
            reply, source = answer.datagram, answer.destination
            if answer.source != destination:
                server = ffi.new("struct pktstun_address *")
                _write_address(server, answer.source, 0)
        else:
            name, reply = answer, b""
        result = lib.pktstun_engine_settle(
            self._engine,
            index,
            VERDICTS[name],
            ffi.from_buffer(reply),
            len(reply),
            server,
            source.port,
        )
        if result < 0:
            raise EngineError(f"the engine cannot go on: {errno.errorcode.get(-result, result)}")

    def _respond(
        self, handover: CData, source: TransportAddress, destination: TransportAddress
    ) -> Reply | str:
        try:
            answer = respond(
                ffi.buffer(handover.data, handover.length)[:],
                source,
                destination,
                self._options_for(handover),
                now=time.clock_gettime(time.CLOCK_BOOTTIME),
            )
        except Exception:
            # A request that hits a bug must not end the worker: its successor would meet
            # the same one. Reported once, counted always.
            if not self._has_failed:
                log.exception("respond() failed; further failures are only counted")
            self._has_failed = True
            return "internal_error"
        return answer.value if isinstance(answer, Drop) else answer

    def _options_for(self, handover: CData) -> ResponderOptions:  # noqa: ARG002 - RingEngine's
        return self._options


@dataclass(frozen=True, slots=True)
class DirectPath:
    """What direct mode sends through."""

    frame_socket: PacketSocket
    """Borrowed; bound to the interface of the ring, for sending."""
    routes: SharedRoutes
    """Which replies may leave directly; read again whenever it changes."""


class RingEngine(SocketEngine):
    """A TPACKET_V3 ring, and UDP sockets for sending and for other interfaces.

    Args:
        slot: where the loop counts, and where it finds the ring's cursor.
        sockets: borrowed; one for each address that is served.
        options: for what comes through the sockets.
        packet_socket: borrowed; it has a ring of this geometry.
        geometry: of the ring.
        ring_options: for what comes through the ring, where no kernel has checked it.
        direct: where the replies to that leave; None for the UDP sockets.
        limits: as for `SocketEngine`.
        tuning: batch sizes and the like.
    """

    def __init__(  # noqa: PLR0913 - what an engine is made of
        self,
        slot: Slot,
        sockets: Sequence[UDPSocket],
        options: ResponderOptions,
        *,
        packet_socket: PacketSocket,
        geometry: RingGeometry,
        ring_options: ResponderOptions,
        direct: DirectPath | None = None,
        limits: Limits | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        super().__init__(slot, sockets, options, limits=limits, tuning=tuning)
        self._packet_socket = packet_socket
        self._geometry = geometry
        self._ring_options = ring_options
        self._direct = direct
        self._ring: Ring | None = None

    def _setup(self) -> CData:
        setup = super()._setup()
        self._ring = Ring(self._packet_socket, self._geometry)
        options = native_options(self._ring_options)
        setup.ring_options = options
        setup.ring = self._ring.memory
        setup.ring_fd = self._ring.fileno()
        setup.block_size = self._geometry.block_size
        setup.block_count = self._geometry.block_count
        if self._direct is not None:
            setup.frame_fd = self._direct.frame_socket.fileno()
            setup.routes = self._direct.routes.pointer
        self._kept.append(options)
        return setup

    def close(self) -> None:
        """Free the C engine and the mapping; the ring itself stays."""
        super().close()
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _options_for(self, handover: CData) -> ResponderOptions:
        return self._ring_options if handover.from_ring else self._options


def check_room(options: ResponderOptions, sockets: int) -> None:
    """Refuse more addresses than the engine has room for.

    Raises:
        ConfigError: there are too many; the text names the fix.
    """
    if sockets > lib.PKTSTUN_MAX_SOCKETS:
        raise ConfigError(
            f"--listen: {sockets} addresses to listen on, and room for {lib.PKTSTUN_MAX_SOCKETS}: "
            "listen on 0.0.0.0 and :: instead"
        )
    if len(options.endpoints) > lib.PKTSTUN_MAX_ENDPOINTS:
        raise ConfigError(
            f"{len(options.endpoints)} addresses to serve, and room for "
            f"{lib.PKTSTUN_MAX_ENDPOINTS}: name those to serve with --listen"
        )
    if len(options.broadcasts) > lib.PKTSTUN_MAX_BROADCASTS:
        raise ConfigError(
            f"{len(options.broadcasts)} broadcast addresses, and room for "
            f"{lib.PKTSTUN_MAX_BROADCASTS}: leave some out"
        )


def native_options(options: ResponderOptions) -> CData:
    """Return `struct pktstun_options *` that says to C what `options` says to respond().

    Raises:
        ConfigError: more addresses than there is room for.
        ValueError: there is an alternate domain.
    """
    if options.alternate_domain is not None:
        raise ValueError("an alternate domain is for clients of TLS, and this engine's use UDP")
    check_room(options, sockets=1)
    native = ffi.new("struct pktstun_options *")
    native.allow_loopback = options.allow_loopback
    native.check_destination = options.check_destination
    native.check_credentials = options.authenticator is not None
    native.classic = options.classic
    native.software_length = _write_attributes(native.software, options.software_attributes)
    for alternate in options.alternate_servers:
        redirect = native.redirects[alternate.ip.version == 6]
        redirect.length = _write_attributes(
            redirect.attributes, (ErrorCode(300), AlternateServer(alternate))
        )
    for discovery in options.discovery:
        for endpoint in discovery.endpoints:
            place = ffi.addressof(native.discovery, native.discovery_count)
            _write_address(ffi.addressof(place, "endpoint"), endpoint, 0)
            other = discovery.changed(endpoint, ip=True, port=True)
            place.length = _write_attributes(
                place.attributes,
                (ResponseOrigin(discovery.told(endpoint)), OtherAddress(discovery.told(other))),
            )
            native.discovery_count += 1
    native.endpoint_count = len(options.endpoints)
    for index, endpoint in enumerate(sorted(options.endpoints, key=str)):
        _write_address(ffi.addressof(native.endpoints, index), endpoint, 0)
    # The endpoints' first: of very many the rest is left out.
    served = {endpoint.ip for endpoint in options.endpoints}
    local = sorted(options.own_ips, key=lambda ip: (ip not in served, str(ip)))
    native.local_count = min(len(local), lib.PKTSTUN_MAX_LOCAL)
    for index, ip in enumerate(local[: lib.PKTSTUN_MAX_LOCAL]):
        _write_address(ffi.addressof(native.local, index), TransportAddress(ip, 0), 0)
    native.broadcast_count = len(options.broadcasts)
    for index, broadcast in enumerate(sorted(options.broadcasts)):
        ffi.memmove(native.broadcasts[index], broadcast.packed, 4)
    return native


def _write_attributes(native: CData, attributes: tuple[Attribute, ...]) -> int:
    """Write them as they stand in a reply; return how many bytes they take."""
    is_error = any(isinstance(each, ErrorCode) for each in attributes)
    message_class = Class.ERROR if is_error else Class.SUCCESS
    encoded = Message(message_class, Method.BINDING, bytes(12), attributes).encode()[HEADER_SIZE:]
    ffi.memmove(native, encoded, len(encoded))
    return len(encoded)


def _write_address(native: CData, address: TransportAddress, scope: int) -> None:
    native.family = address.ip.version
    ffi.memmove(native.ip, address.ip.packed, len(address.ip.packed))
    native.port = address.port
    native.scope = scope


def read_address(native: CData) -> TransportAddress:
    """Return the Python value of a `struct pktstun_address`."""
    raw = bytes(ffi.buffer(native.ip))
    if native.family == 4:
        return TransportAddress(ipaddress.IPv4Address(raw[:4]), native.port)
    return TransportAddress(ipaddress.IPv6Address(raw), native.port)
