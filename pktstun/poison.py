"""Frames that workers die of: found out, passed over, kept for diagnosis.

Theory of operation: the loop notes in the shared page which frame it has in hand. A worker that
is killed from outside has one in hand, too, so one death proves nothing and its successor tries
the frame again. When a second worker dies of the same frame, the third is told to pass it over,
and to save it before it serves. Should it die of that as well, the whole block is passed over:
then it was no frame but what the walk to it has met.

A frame is saved as a capture file (pcap) that `pktstun decode`, tcpdump and Wireshark read.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pktstun.kernel import Ring
from pktstun.kernel._ffi import lib

if TYPE_CHECKING:
    from pktstun.kernel import PacketSocket, RingGeometry
    from pktstun.stats import Slot

__all__ = ["MOST_FILES", "Suspect", "save_frame", "state_directory"]

log = logging.getLogger("pktstun")

MOST_FILES = 100
"""Frames that are kept; whoever can send one can send many."""

_INDEX = (1 << lib.PKTSTUN_CURSOR_SHIFT) - 1
# https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html: header in nanoseconds, Ethernet.
_FILE = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 0x40000, 1)
_RECORD = struct.Struct("=IIII")
_MOST_SECONDS = (1 << 32) - 1


@dataclass(slots=True)
class Suspect:
    """The frame that a worker's predecessors had in hand when they died."""

    frame: int = 0
    """As in the slot; 0 for none."""
    deaths: int = 0
    skipped: int = 0
    """The frame that was passed over last."""

    def worker_died(self, slot: Slot) -> bool:
        """Learn that the slot's worker has died; say whether its successor has a frame to save."""
        frame, slot.frame = slot.frame, 0
        if not frame:
            self.frame = self.deaths = 0
            return False
        self.deaths = self.deaths + 1 if frame == self.frame else 1
        self.frame = frame
        if frame == self.skipped:
            slot.skip(frame, whole_block=True)
            return False
        if self.deaths < 2:
            return False
        self.skipped = frame
        slot.skip(frame)
        return True


def state_directory() -> Path:
    """Return where a service keeps files: $STATE_DIRECTORY (systemd) or /var/lib/pktstun."""
    return Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or "/var/lib/pktstun")


def save_frame(
    frame: int,
    slot: Slot,
    packet_socket: PacketSocket,
    geometry: RingGeometry,
    directory: Path,
) -> None:
    """Save a frame of a ring, and log where.

    Args:
        frame: as in the slot.
        slot: has it in hand meanwhile, in case that this is what it takes to die of it.
        packet_socket: has the ring.
        geometry: of the ring.
        directory: is made where it does not exist.
    """
    slot.frame = frame
    sequence, index = frame >> lib.PKTSTUN_CURSOR_SHIFT, frame & _INDEX
    with Ring(packet_socket, geometry) as ring:
        found = ring.frame_at(sequence, index)
        if found is None:
            log.error("a frame on which two workers died is not in the ring any more")
        else:
            seconds, nanoseconds = divmod(found.timestamp, 1_000_000_000)
            data = bytes(found.data)
            # A ring that something has written over may say 32 bits of both.
            record = _RECORD.pack(min(seconds, _MOST_SECONDS), nanoseconds, len(data), found.length)
            name = f"poison-{time.strftime('%Y%m%dT%H%M%S')}-{sequence}-{index}.pcap"
            _write(directory, name, _FILE + record + data)
    slot.frame = 0


def _write(directory: Path, name: str, content: bytes) -> None:
    reason = "two workers died on this frame, which is passed over"
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        if sum(1 for _ in directory.glob("poison-*.pcap")) >= MOST_FILES:
            log.error("%s; it is not saved: %s has %d already", reason, directory, MOST_FILES)
            return
        path = directory / name
        # It holds what somebody has sent, which is nobody else's business.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            file.write(content)
        log.error("%s; it is in %s: please report it", reason, path)
    except OSError as error:
        log.error("%s; it cannot be saved in %s: %s", reason, directory, error.strerror)
