"""A quiet link, and raw frames to send over it."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import wait_until
from tests.netns.client import on_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pktstun.kernel import Datagram, Frame, Ring, UDPSocket
    from pktstun.packet import VlanTag
    from tests.lab import Lab, Namespace

ETHERTYPE = 0x88B5  # IEEE 802: for local experiments, so that no protocol answers
PATIENCE = 10.0  # seconds until something that must come is given up


class Wire:
    """A veth pair without IP: nothing is on it but what a test sends.

    Frames go from the interface `far_if` of `far` to `near_if` of `near`.
    """

    def __init__(self, lab: Lab, *, queues: int = 1) -> None:
        self.lab = lab
        self.near, self.far = lab.namespace("near"), lab.namespace("far")
        self.near_if, self.far_if = "v0", "v1"
        for ns in (self.near, self.far):
            # Router solicitations and the like would be frames that nobody sent.
            ns.write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
        lab.veth(self.near, self.near_if, self.far, self.far_if, queues=queues)
        self.near_mac = mac_of(lab, self.near, self.near_if)
        self.far_mac = mac_of(lab, self.far, self.far_if)
        self._out = raw_socket(self.far, self.far_if)

    def close(self) -> None:
        self._out.close()

    def send(self, *frames: bytes, cpu: int | None = None) -> None:
        """Send from one CPU, which is where the frames are received as well, in order."""
        with on_cpu(min(os.sched_getaffinity(0)) if cpu is None else cpu):
            for frame in frames:
                self._out.send(frame)

    def frame(
        self,
        number: int,
        length: int = 60,
        *,
        to: bytes | None = None,
        tags: Sequence[VlanTag] = (),
    ) -> bytes:
        """A frame that carries a number; `number_of` reads it."""
        header = (to or self.near_mac) + self.far_mac + b"".join(tag.encode() for tag in tags)
        frame = header + struct.pack("!HI", ETHERTYPE, number)
        return frame + bytes(at & 0xFF for at in range(number, number + length - len(frame)))


def number_of(frame: bytes | memoryview) -> int:
    """The number in an untagged frame of `Wire.frame`."""
    kind, number = struct.unpack_from("!HI", frame, 12)
    assert kind == ETHERTYPE
    return int(number)


def mac_of(lab: Lab, ns: Namespace, ifname: str) -> bytes:
    return bytes.fromhex(lab.link(ns, ifname).get("address").replace(":", ""))


def raw_socket(ns: Namespace, ifname: str) -> socket.socket:
    """A socket that sends frames and receives none."""
    sock = ns.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((ifname, 0))
    return sock


def take(ring: Ring, count: int) -> list[bytes]:
    """The next frames of a ring, copied."""
    taken: list[bytes] = []
    frames = ring.frames(PATIENCE)
    while len(taken) < count:
        taken.append(bytes(take_one(frames, len(taken), count).data))
    return taken


def take_one(frames: Iterator[Frame], taken: int = 0, count: int = 1) -> Frame:
    frame = next(frames, None)
    if frame is None:
        pytest.fail(f"{taken} of {count} frames came, and no more within {PATIENCE:g} s")
    return frame


def receive(sock: UDPSocket, count: int) -> list[Datagram]:
    """Wait for datagrams; what comes together with the last one is returned as well."""
    received: list[Datagram] = []

    def enough() -> bool:
        received.extend(sock.recvmmsg())
        return len(received) >= count

    wait_until(enough, f"{count} datagrams come", PATIENCE)
    return received


def descriptors() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
