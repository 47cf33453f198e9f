"""A TPACKET_V3 receive ring, mapped into this process (packet_mmap.rst).

Theory of operation: the kernel writes frames into blocks, one behind the other, and retires
a block when it is full or `retire_timeout` has passed. Retired blocks are read in order and
given back. A `Ring` is the mapping: the worker's C loop reads it in place, and Python may
iterate it for frames:

    with Ring.open("eth0") as ring:
        for frame in ring:
            print(frame.timestamp, frame.length, frame.data[:14].hex())

A frame's `data` is a view of the ring itself, without a copy. It is valid until the
iteration reaches the next block; then the view is released, and using it raises ValueError
instead of showing another frame's bytes. `bytes(frame.data)` keeps a frame.

A slice of a view, or an array made of it, cannot be released: it shows what is written next.
But nothing can make it dangle: the mapping goes when the last view of it has gone.

The position belongs to the ring and not to an iterator: whoever leaves a loop and begins
another one misses no frame.
"""

from __future__ import annotations

import select
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pktstun.packet import ChecksumStatus, PacketType, VlanTag

from ._closing import Closing
from ._ffi import CData, check, ffi, lib
from .packet_socket import PacketSocket, PacketStatistics, RingGeometry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .bpf import Program

_8021Q = 0x8100


@dataclass(frozen=True, slots=True)
class Frame:
    """A captured frame."""

    data: memoryview
    """The bytes from the Ethernet header on, in the ring."""
    length: int
    """Bytes on the wire; more than `len(data)` if the filter cut the frame."""
    vlan: VlanTag | None
    """The tag that the kernel took off the frame."""
    checksum: ChecksumStatus
    """What is known of the transport checksum."""
    packet_type: int
    """A `PacketType`, or a number of the kernel that has no name there."""
    ifindex: int
    timestamp: int
    """Nanoseconds since 1970 (CLOCK_REALTIME)."""


class Ring(Closing):
    """The mapped ring of a packet socket that has one (`PacketSocket.set_ring`).

    Args:
        packet_socket: whose ring to map; not closed with the ring unless `open` made it.
        geometry: that of the ring, exactly.

    Raises:
        OSError: EINVAL, the geometry is not that of the ring.
    """

    def __init__(self, packet_socket: PacketSocket, geometry: RingGeometry) -> None:
        self.geometry = geometry
        self._socket = packet_socket
        self._owned = ExitStack()
        size = geometry.size
        address = lib.mmap(
            ffi.NULL,
            size,
            lib.PROT_READ | lib.PROT_WRITE,
            lib.MAP_SHARED,
            packet_socket.fileno(),
            0,
        )
        check(-1 if address == ffi.cast("void *", -1) else 0, "mmap of the packet ring")
        # Unmapped when the last reference goes, be it this object's or a frame's.
        self._memory = ffi.gc(
            ffi.cast("uint8_t *", address), lambda memory: lib.munmap(memory, size)
        )
        self._view = memoryview(ffi.buffer(self._memory, size))
        self._sequence = 0  # of the block to read next, 0 for the oldest one
        self._block: CData | None = None  # that block, while it is being read
        self._walk = ffi.new("struct pktstun_walk *")
        self._raw = ffi.new("struct pktstun_frame *")
        self._handed_out: list[memoryview] = []

    @classmethod
    def open(
        cls,
        iface: str,
        *,
        program: Program | None = None,
        geometry: RingGeometry | None = None,
        outgoing: bool = True,
    ) -> Self:
        """Return a ring of its own packet socket, capturing from `iface`.

        Args:
            iface: name of the interface.
            program: a filter (`pktstun.kernel.bpf`); None captures everything.
            geometry: the size; None for 4 MiB and a latency of a millisecond.
            outgoing: capture what this host sends, too.

        Raises:
            PermissionError: the process lacks CAP_NET_RAW.
            OSError: there is no such interface, or no memory.
        """
        chosen = geometry or RingGeometry()
        with ExitStack() as stack:
            packet_socket = stack.enter_context(PacketSocket())
            if program is not None:
                packet_socket.set_filter(program)
            if not outgoing:
                packet_socket.ignore_outgoing()
            packet_socket.set_ring(chosen)
            ring = cls(packet_socket, chosen)
            stack.callback(ring._unmap)
            packet_socket.bind(iface)
            ring._owned = stack.pop_all()
        return ring

    def close(self) -> None:
        """Give up the mapping, and the socket if `open` made it."""
        self._unmap()
        self._owned.close()

    def _unmap(self) -> None:
        self._block = None
        self._handed_out.clear()
        self._view.release()
        self._memory = ffi.NULL

    def fileno(self) -> int:
        """Return the socket's descriptor, readable when a block may be ready."""
        return self._socket.fileno()

    @property
    def memory(self) -> CData:
        """The mapping, `uint8_t *`, for the engine.

        Raises:
            ValueError: the ring is closed.
        """
        if not self._memory:
            raise ValueError("the ring is closed")
        return self._memory

    def statistics(self) -> PacketStatistics:
        """Return the socket's counts since the last call."""
        return self._socket.statistics()

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames for ever."""
        return self.frames()

    def frames(self, timeout: float | None = None) -> Iterator[Frame]:
        """Yield frames; end when `timeout` seconds have passed without one (None: never).

        Raises:
            OSError: ENETDOWN, the interface went down; frames come again when it is up.
            ValueError: the ring is closed, or its socket.
        """
        last = time.monotonic()
        while True:
            frame = self._next_frame()
            if frame is not None:
                yield frame
                last = time.monotonic()
                continue
            left = None if timeout is None else last + timeout - time.monotonic()
            if left is not None and left <= 0:
                return
            self._wait(left)

    def frame_at(self, sequence: int, index: int) -> Frame | None:
        """Return a frame that is in the ring now, wherever the iteration is, or None.

        Args:
            sequence: number of its block, counted from 1.
            index: its number in the block, counted from 0.
        """
        block = self._block_at((sequence - 1) % self.geometry.block_count)
        if not lib.pktstun_block_ready(block) or lib.pktstun_block_sequence(block) != sequence:
            return None
        walk, raw = ffi.new("struct pktstun_walk *"), ffi.new("struct pktstun_frame *")
        lib.pktstun_walk_begin(block, self.geometry.block_size, walk)
        for _ in range(index + 1):
            if lib.pktstun_walk_next(block, self.geometry.block_size, walk, raw) != 1:
                return None
        return self._frame(self.memory, raw)

    def _wait(self, timeout: float | None) -> None:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        for _, events in poll.poll(None if timeout is None else timeout * 1000):
            if events & ~select.POLLIN:
                self._socket.raise_error()
            if self._next_block() is None:
                # The newest block is ready, but not the one that was expected: somebody
                # else who maps this ring has read that.
                self._sequence = 0

    def _block_at(self, index: int) -> CData:
        return self.memory + index * self.geometry.block_size

    def _next_block(self) -> int | None:
        """Return the index of the oldest retired block, or None."""
        count = self.geometry.block_count
        if self._sequence:
            index = (self._sequence - 1) % count
            return index if lib.pktstun_block_ready(self._block_at(index)) else None
        # A fresh mapping of an old ring: blocks are numbered in the order of their filling.
        ready = [
            (lib.pktstun_block_sequence(self._block_at(index)), index)
            for index in range(count)
            if lib.pktstun_block_ready(self._block_at(index))
        ]
        if not ready:
            return None
        self._sequence, index = min(ready)
        return index

    def _next_frame(self) -> Frame | None:
        """Return the frame at the position and go on, or None where no block is ready."""
        memory, size, raw = self.memory, self.geometry.block_size, self._raw
        while self._block is not None or self._open_block():
            if lib.pktstun_walk_next(self._block, size, self._walk, raw) != 1:
                self._close_block()
                continue
            frame = self._frame(memory, raw)
            self._handed_out.append(frame.data)
            return frame
        return None

    def _frame(self, memory: CData, raw: CData) -> Frame:
        start = int(ffi.cast("uintptr_t", raw.data)) - int(ffi.cast("uintptr_t", memory))
        return Frame(
            self._view[start : start + raw.captured],
            raw.length,
            _vlan(raw),
            _checksum(raw.status),
            _packet_type(raw.packet_type),
            raw.ifindex,
            raw.timestamp,
        )

    def _open_block(self) -> bool:
        index = self._next_block()
        if index is None:
            return False
        self._block = self._block_at(index)
        lib.pktstun_walk_begin(self._block, self.geometry.block_size, self._walk)
        return True

    def _close_block(self) -> None:
        for data in self._handed_out:
            # Where something else exports the view, that will show what is written next.
            with suppress(BufferError):
                data.release()
        self._handed_out.clear()
        lib.pktstun_block_release(self._block)
        self._block = None
        self._sequence += 1


def _vlan(raw: CData) -> VlanTag | None:
    if not raw.status & lib.TP_STATUS_VLAN_VALID:
        return None
    known = raw.status & lib.TP_STATUS_VLAN_TPID_VALID
    tci = raw.vlan_tci
    return VlanTag(
        tpid=raw.vlan_tpid if known else _8021Q, pcp=tci >> 13, dei=tci >> 12 & 1, vid=tci & 0xFFF
    )


def _checksum(status: int) -> ChecksumStatus:
    if status & lib.TP_STATUS_CSUMNOTREADY:
        return ChecksumStatus.NOT_READY
    if status & lib.TP_STATUS_CSUM_VALID:
        return ChecksumStatus.VALID
    return ChecksumStatus.UNVERIFIED


def _packet_type(number: int) -> int:
    try:
        return PacketType(number)
    except ValueError:
        return number
