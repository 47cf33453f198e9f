"""A packet socket (packet(7)): filter, fanout, statistics.

Theory of operation: the order in which one is opened decides whether it ever sees a packet
that was not meant for it. `socket()` with protocol 0 receives nothing; then come the ring
and a drop-all filter; `bind` to an interface starts reception, every packet of it until the
fanout group has been joined; and only when all members are there is the real filter put in
place. The filter in between is what makes the steps safe.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ._closing import Closing
from ._ffi import ffi, lib, set_buffer, set_option

if TYPE_CHECKING:
    from .bpf import Program


_MOST_BLOCKS = 1 << 24  # of the smallest size, more than the kernel can list
_LONGEST_RETIRE = 10_000  # ms: a client has given up after 39.5 s, and asked seven times


class FanoutMode(Enum):
    """Which member of a fanout group gets a packet."""

    CPU = lib.PACKET_FANOUT_CPU
    """The one whose number is the CPU's, modulo the number of members."""
    CBPF = lib.PACKET_FANOUT_CBPF
    """The one whose number a classic BPF program returns."""


class PacketStatistics(NamedTuple):
    """What happened since the last reading (PACKET_STATISTICS)."""

    packets: int
    """Packets that passed the filter, those dropped included."""
    drops: int
    """Packets that found the ring full."""
    freezes: int
    """Times that the ring was found full."""


@dataclass(frozen=True, slots=True)
class RingGeometry:
    """The size of a ring.

    Args:
        block_size: bytes; a multiple of the page size, at most 4 MiB. Bounds the longest
            frame.
        block_count: blocks; eight at least, so that the kernel can look a quarter ahead, and
            2^24 at most.
        retire_timeout: milliseconds after which a block is retired that is not full: the
            latency at low rates, 1 to 10,000.

    Raises:
        ValueError: a number is out of range.
    """

    block_size: int = max(16384, mmap.PAGESIZE)
    block_count: int = 256
    retire_timeout: int = 1

    def __post_init__(self) -> None:
        if self.block_size < mmap.PAGESIZE or self.block_size % mmap.PAGESIZE:
            raise ValueError(f"block_size {self.block_size} is no multiple of {mmap.PAGESIZE}")
        if self.block_size > lib.PKTSTUN_MAX_BLOCK:
            raise ValueError(f"block_size {self.block_size} exceeds {lib.PKTSTUN_MAX_BLOCK}")
        if not 8 <= self.block_count <= _MOST_BLOCKS:
            raise ValueError(f"block_count {self.block_count} is not in 8..{_MOST_BLOCKS}")
        if not 1 <= self.retire_timeout <= _LONGEST_RETIRE:
            raise ValueError(
                f"retire_timeout {self.retire_timeout} is not in 1..{_LONGEST_RETIRE} ms"
            )

    @property
    def size(self) -> int:
        """Bytes of the whole ring."""
        return self.block_size * self.block_count


class PacketSocket(Closing):
    """An AF_PACKET socket of type SOCK_RAW, not yet receiving.

    Args:
        descriptor: of such a socket, to go on with it as it is; it is this object's from then
            on. None for a new one.

    Raises:
        PermissionError: the process lacks CAP_NET_RAW.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        else:
            self._socket = socket.socket(fileno=descriptor)

    @property
    def is_bound(self) -> bool:
        """Whether the interface that it was bound to is still there.

        Once that is removed, or moved to another namespace, the socket never receives again.
        """
        return bool(self._socket.getsockname()[0])

    def close(self) -> None:
        """Close the socket; a mapping of its ring keeps the ring alive until it goes too."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the file descriptor, -1 when closed."""
        return self._socket.fileno()

    def set_filter(self, program: Program) -> None:
        """Replace the socket's filter in one step (SO_ATTACH_FILTER)."""
        program.attach(self._socket, socket.SOL_SOCKET, lib.SO_ATTACH_FILTER)

    def set_ring(self, geometry: RingGeometry) -> None:
        """Give the socket a TPACKET_V3 receive ring (PACKET_VERSION, PACKET_RX_RING).

        The retire timer runs on the CPU of the calling thread, and the memory comes from
        its node.

        Raises:
            OSError: ENOMEM, there is no memory; EINVAL, the geometry is not possible.
        """
        self._socket.setsockopt(lib.SOL_PACKET, lib.PACKET_VERSION, int(lib.TPACKET_V3))
        request = ffi.new("struct tpacket_req3 *")
        request.tp_block_size = geometry.block_size
        request.tp_block_nr = geometry.block_count
        # Frames have no fixed size in version 3; the kernel still checks these two.
        request.tp_frame_size = geometry.block_size
        request.tp_frame_nr = geometry.block_count
        request.tp_retire_blk_tov = geometry.retire_timeout
        set_option(self._socket, lib.SOL_PACKET, lib.PACKET_RX_RING, request)

    def ignore_outgoing(self) -> None:
        """See no packets that this host sends (PACKET_IGNORE_OUTGOING).

        A fanout group has a flag of its own for that; see `join_fanout`.
        """
        self._socket.setsockopt(lib.SOL_PACKET, lib.PACKET_IGNORE_OUTGOING, 1)

    def bind(self, iface: str) -> None:
        """Begin to receive all packets of an interface (ETH_P_ALL).

        One that is down is no failure: reception begins when it comes up. ENETDOWN is then
        the socket's pending error; see `raise_error`.

        Raises:
            OSError: ENODEV, there is no such interface.
        """
        self._socket.bind((iface, lib.ETH_P_ALL))

    def bind_sender(self, iface: str, send_buffer: int) -> None:
        """Bind to an interface for sending only, past its queueing discipline.

        Frames are given to the driver at once (PACKET_QDISC_BYPASS); what it has no room for
        is ENOBUFS. No packet is received, and no tap sees what is sent.

        Args:
            iface: name of the interface.
            send_buffer: bytes wanted for what the driver has not sent yet; the kernel grants
                at most net.core.wmem_max without CAP_NET_ADMIN.

        Raises:
            OSError: ENODEV, there is no such interface.
        """
        self._socket.setsockopt(lib.SOL_PACKET, lib.PACKET_QDISC_BYPASS, 1)
        set_buffer(self._socket, socket.SO_SNDBUF, send_buffer)
        self._socket.bind((iface, 0))

    def join_fanout(self, group: int | None, mode: FanoutMode) -> int:
        """Join a fanout group; outgoing packets are ignored, full members roll over.

        Args:
            group: the number of the group, or None to make one with a free number.
            mode: must be the same for all members.

        Returns:
            The number of the group, for the other members.

        Raises:
            OSError: EINVAL, the group does not match; EALREADY, the socket has one.
        """
        flags = (
            mode.value
            | lib.PACKET_FANOUT_FLAG_IGNORE_OUTGOING
            | lib.PACKET_FANOUT_FLAG_ROLLOVER
            | (lib.PACKET_FANOUT_FLAG_UNIQUEID if group is None else 0)
        ) << 16
        self._socket.setsockopt(
            lib.SOL_PACKET, lib.PACKET_FANOUT, struct.pack("=I", flags | (group or 0))
        )
        joined: int = struct.unpack(
            "=I", self._socket.getsockopt(lib.SOL_PACKET, lib.PACKET_FANOUT, 4)
        )[0]
        return joined & 0xFFFF

    def set_fanout_program(self, program: Program) -> None:
        """Give the group of `FanoutMode.CBPF` its program; any one member will do."""
        program.attach(self._socket, lib.SOL_PACKET, lib.PACKET_FANOUT_DATA)

    def raise_error(self) -> None:
        """Clear the socket's pending error (SO_ERROR) and raise it, if there is one.

        An error that is not read keeps poll(2) from ever waiting.
        """
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))

    def statistics(self) -> PacketStatistics:
        """Return the counts since the last call: reading clears them."""
        size = ffi.sizeof("struct tpacket_stats_v3")
        raw = self._socket.getsockopt(lib.SOL_PACKET, lib.PACKET_STATISTICS, size)
        return PacketStatistics(*struct.unpack("=III", raw))
