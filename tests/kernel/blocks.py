"""Blocks of a TPACKET_V3 ring made by hand, laid out as the kernel lays them out.

    block                                  frame
     0  version, offset of private area     0  offset of the next frame's header, 0 for none
     8  status, number of frames,           4  timestamp: seconds, nanoseconds
        offset of the first, bytes used    12  bytes captured, bytes on the wire, status
    24  sequence number                    24  offsets of link and network header
    32  timestamps of first and last       28  hash, VLAN TCI, VLAN TPID
    48  frames                             48  struct sockaddr_ll
                                           82  the frame itself, for Ethernet

All of it is in the host's byte order, but for the protocol in sockaddr_ll. See
<linux/if_packet.h> and Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pktstun.kernel import PacketSocket, RingGeometry

BLOCK = struct.Struct("=IIIIIIQIIII")
FRAME = struct.Struct("=IIIIIIHHIIHH8x")
ADDRESS = struct.Struct("=HHiHBB8x")

# Where in the block header and in the frame header some fields are.
STATUS_AT, COUNT_AT, FIRST_AT = 8, 12, 16
NEXT_AT, CAPTURED_AT, MAC_AT = 0, 12, 24

MAC_OFFSET = 82  # of a frame's bytes, on an Ethernet interface

USER = 1  # TP_STATUS_USER
CSUM_NOT_READY = 1 << 3
VLAN_VALID = 1 << 4
TPID_VALID = 1 << 6
CSUM_VALID = 1 << 7


@dataclass(frozen=True)
class BlockFrame:
    """A frame to put into a block; the fields are those of `struct pktstun_frame`."""

    data: bytes
    length: int | None = None
    """None: nothing was cut off."""
    status: int = USER
    vlan_tci: int = 0
    vlan_tpid: int = 0
    packet_type: int = 0
    ifindex: int = 1
    seconds: int = 1_700_000_000
    nanoseconds: int = 0


def slot_size(captured: int, mac_offset: int = MAC_OFFSET) -> int:
    """Bytes that a frame takes in a block."""
    return -(-(mac_offset + captured) // 8) * 8


def frames_per_block(geometry: RingGeometry, captured: int = 60) -> int:
    """How many frames of this length the kernel puts into a block."""
    return (geometry.block_size - BLOCK.size) // slot_size(captured)


def build_block(
    frames: Sequence[BlockFrame],
    size: int,
    *,
    sequence: int = 1,
    status: int = USER,
    private: int = 0,
    mac_offset: int = MAC_OFFSET,
) -> bytearray:
    """A block of `size` bytes, filled up with what an older frame may have left there."""
    block = bytearray(b"\xa5" * size)
    at = first = BLOCK.size + -(-private // 8) * 8
    end = first + sum(slot_size(len(frame.data), mac_offset) for frame in frames)
    if end > size:
        raise ValueError(f"{len(frames)} frames take {end} bytes")
    for index, frame in enumerate(frames):
        slot = slot_size(len(frame.data), mac_offset)
        last = index == len(frames) - 1
        FRAME.pack_into(
            block,
            at,
            0 if last else slot,
            frame.seconds,
            frame.nanoseconds,
            len(frame.data),
            len(frame.data) if frame.length is None else frame.length,
            frame.status,
            mac_offset,
            mac_offset + 14,
            0,
            frame.vlan_tci,
            frame.vlan_tpid,
            0,
        )
        ADDRESS.pack_into(block, at + FRAME.size, 17, 0, frame.ifindex, 1, frame.packet_type, 6)
        block[at + mac_offset : at + mac_offset + len(frame.data)] = frame.data
        at += slot
    BLOCK.pack_into(block, 0, 1, BLOCK.size, status, len(frames), first, end, sequence, 0, 0, 0, 0)
    return block


class FileRing:
    """A memory file in place of a packet socket's ring: it is filled by hand, and never blocks.

    poll(2) always calls a file readable.
    """

    def __init__(self, geometry: RingGeometry) -> None:
        self.geometry = geometry
        self._file = os.memfd_create("ring")
        os.ftruncate(self._file, geometry.size)
        self.memory = mmap.mmap(self._file, geometry.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.memory.close()
        os.close(self._file)

    @property
    def socket(self) -> PacketSocket:
        """As much of a packet socket as a `Ring` needs."""
        return cast("PacketSocket", self)

    def fileno(self) -> int:
        return self._file

    def put(self, index: int, block: bytes | bytearray) -> None:
        """Fill a block; its number is one of the first lap unless the block says otherwise."""
        start = index * self.geometry.block_size
        self.memory[start : start + len(block)] = bytes(block)

    def status(self, index: int) -> int:
        at = index * self.geometry.block_size + STATUS_AT
        return int(struct.unpack_from("=I", self.memory, at)[0])
