"""What a driver can be asked and told: features, ring sizes, channels, coalescing, counters.

Theory of operation: the ioctl SIOCETHTOOL takes the name of an interface and a command's struct
(<linux/ethtool.h>), which begins with the command's number; the kernel fills in the rest. It
means the network namespace in which the socket was made. Features and counters have names, which
the kernel lists in the order of its bits and values (ETHTOOL_GSTRINGS), so that none is known by
number here. Every driver answers a part of the commands: what it does not know is EOPNOTSUPP.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import NamedTuple

from ._closing import Closing
from ._ffi import lib
from .ebpf import address_of

__all__ = ["Channels", "Coalescing", "Ethtool", "Feature", "RingSizes"]

_REQUEST = struct.Struct("16sP16x")  # struct ifreq: name, and a pointer
_NAME = 32  # ETH_GSTRING_LEN, and the fields of struct ethtool_drvinfo
_LONGEST = 15  # IFNAMSIZ, without the end
_RINGS = struct.Struct("=9I")
_CHANNELS = struct.Struct("=9I")
_COALESCING = struct.Struct("=23I")
_BLOCK = struct.Struct("=4I")  # ethtool_get_features_block: available, requested, active, never
_MOST = 4096  # features or counters; a driver with many queues has some hundred


class Feature(NamedTuple):
    """A feature as `ethtool -k` shows it."""

    is_on: bool
    can_change: bool


class RingSizes(NamedTuple):
    """Descriptors of each queue of the card, and how many there may be at most."""

    rx: int
    rx_most: int
    tx: int
    tx_most: int


class Channels(NamedTuple):
    """Receive queues in use, and how many there may be at most."""

    queues: int
    most: int


class Coalescing(NamedTuple):
    """How long the card gathers frames before it interrupts."""

    rx_usecs: int
    rx_frames: int
    is_adaptive: bool


class Ethtool(Closing):
    """The driver of an interface in the calling thread's network namespace; a context manager.

    All methods raise OSError: EOPNOTSUPP, the driver does not know the command; ENODEV, there is
    no such interface; EPERM, CAP_NET_ADMIN is missing.
    """

    def __init__(self, name: str) -> None:
        self._name = os.fsencode(name)[:_LONGEST]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        """Close the socket through which it asks."""
        self._socket.close()

    def driver(self) -> str:
        """Return the driver's name, such as "virtio_net"."""
        data = self._ask(lib.ETHTOOL_GDRVINFO, bytes(192))
        return _text(data[4 : 4 + _NAME])

    def features(self) -> dict[str, Feature]:
        """Return all features by name, those that cannot be changed included."""
        names = self._strings(lib.ETH_SS_FEATURES)
        blocks = -(-len(names) // 32)
        data = self._ask(
            lib.ETHTOOL_GFEATURES, struct.pack("=I", blocks) + bytes(blocks * _BLOCK.size)
        )
        found = [_BLOCK.unpack_from(data, 8 + at * _BLOCK.size) for at in range(blocks)]
        features = {}
        for number, name in enumerate(names):
            if not name:
                continue  # a bit that the kernel keeps for itself
            available, _, active, never_changed = found[number // 32]
            bit = 1 << number % 32
            features[name] = Feature(
                bool(active & bit), bool(available & bit and not never_changed & bit)
            )
        return features

    def set_feature(self, name: str, *, on: bool) -> None:
        """Switch a feature.

        Raises:
            OSError: EOPNOTSUPP, there is no such feature, or it cannot be changed.
        """
        names = self._strings(lib.ETH_SS_FEATURES)
        if name not in names:
            raise OSError(errno.EOPNOTSUPP, f"no feature {name!r}")
        number = names.index(name)
        blocks = [[0, 0] for _ in range(-(-len(names) // 32))]
        bit = 1 << number % 32
        blocks[number // 32] = [bit, bit if on else 0]
        words = [word for block in blocks for word in block]
        self._ask(lib.ETHTOOL_SFEATURES, struct.pack(f"={1 + len(words)}I", len(blocks), *words))
        if self.features()[name].is_on != on:
            raise OSError(errno.EOPNOTSUPP, f"the driver keeps {name} {'off' if on else 'on'}")

    def rings(self) -> RingSizes:
        """Return the sizes of the card's queues."""
        _, rx_most, _, _, tx_most, rx, _, _, tx = self._ring_words()
        return RingSizes(rx, rx_most, tx, tx_most)

    def set_rings(self, *, rx: int | None = None, tx: int | None = None) -> None:
        """Change sizes; most cards lose what is in their queues meanwhile."""
        words = list(self._ring_words())
        words[5] = words[5] if rx is None else rx
        words[8] = words[8] if tx is None else tx
        self._ask(lib.ETHTOOL_SRINGPARAM, struct.pack("=8I", *words[1:]))

    def channels(self) -> Channels:
        """Return how many receive queues there are and may be."""
        data = self._ask(lib.ETHTOOL_GCHANNELS, bytes(_CHANNELS.size - 4))
        _, rx_most, _, _, both_most, rx, _, _, both = _CHANNELS.unpack(data)
        return Channels(rx + both, rx_most + both_most)

    def coalescing(self) -> Coalescing:
        """Return how interrupts for received frames are put off."""
        words = _COALESCING.unpack(self._ask(lib.ETHTOOL_GCOALESCE, bytes(_COALESCING.size - 4)))
        return Coalescing(words[1], words[2], bool(words[10]))

    def counters(self) -> dict[str, int]:
        """Return the driver's own counters, by the names that it gives them."""
        names = self._strings(lib.ETH_SS_STATS)
        if not names:
            return {}
        data = self._ask(lib.ETHTOOL_GSTATS, struct.pack("=I", len(names)) + bytes(8 * len(names)))
        return dict(zip(names, struct.unpack_from(f"={len(names)}Q", data, 8), strict=True))

    def _ring_words(self) -> tuple[int, ...]:
        return _RINGS.unpack(self._ask(lib.ETHTOOL_GRINGPARAM, bytes(_RINGS.size - 4)))

    def _strings(self, which: int) -> list[str]:
        # struct ethtool_sset_info: reserved, a mask of 64 bits, a number for each set in it.
        data = self._ask(lib.ETHTOOL_GSSET_INFO, struct.pack("=IQI", 0, 1 << which, 0))
        mask, count = struct.unpack_from("=QI", data, 8)
        if not mask:
            return []
        count = min(count, _MOST)
        data = self._ask(
            lib.ETHTOOL_GSTRINGS, struct.pack("=II", which, count) + bytes(count * _NAME)
        )
        (count,) = struct.unpack_from("=I", data, 8)
        return [_text(data[12 + at : 12 + at + _NAME]) for at in range(0, count * _NAME, _NAME)]

    def _ask(self, command: int, rest: bytes) -> bytes:
        data = bytearray(struct.pack("=I", command) + rest)
        request = _REQUEST.pack(self._name, address_of(data))
        fcntl.ioctl(self._socket, lib.SIOCETHTOOL, request)
        return bytes(data)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "backslashreplace")
