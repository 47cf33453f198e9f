"""Frames to and from a server, byte by byte: what is sent is made here, and what comes is seen."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

from pktstun.errors import PacketError
from pktstun.kernel._ffi import lib
from pktstun.packet import ChecksumStatus, build_udp_frame, parse_ethernet, receive
from pktstun.stun import Message
from tests.kernel.wire import mac_of, raw_socket
from tests.lab import wait_until
from tests.netns.client import on_cpu

if TYPE_CHECKING:
    from tests.lab import Lab, Namespace, TwoHosts

IPAddress: TypeAlias = IPv4Address | IPv6Address
End: TypeAlias = tuple[IPAddress, int]

PORT = 3478
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
CPU = min(os.sched_getaffinity(0))
"""Where frames are sent from, and hence received: they stay in order."""


class Seen(NamedTuple):
    """A UDP datagram on the wire."""

    source: End
    destination: End
    payload: bytes
    frame: bytes


@dataclass(frozen=True)
class Ends:
    """A client and a server of one family, and their link-layer addresses."""

    client: IPAddress
    server: IPAddress
    client_mac: bytes
    server_mac: bytes

    @classmethod
    def of(cls, lab: Lab, hosts: TwoHosts, *, ipv6: bool) -> Ends:
        client, server = (
            (hosts.client_ipv6, hosts.server_ipv6)
            if ipv6
            else (hosts.client_ipv4, hosts.server_ipv4)
        )
        return cls(
            ip_address(client[0]),
            ip_address(server[0]),
            mac_of(lab, hosts.client, hosts.client_if),
            mac_of(lab, hosts.server, hosts.server_if),
        )

    def udp(
        self,
        payload: bytes,
        *,
        source: End | None = None,
        destination: End | None = None,
        mac: bytes | None = None,
    ) -> bytes:
        """Return a frame from the client to the server, but for what is said."""
        return build_udp_frame(
            payload,
            source or (self.client, 40000),
            destination or (self.server, PORT),
            source_mac=self.client_mac,
            destination_mac=mac or self.server_mac,
        )


class Wire:
    """Sends frames from an interface, and sees those that come in there; a context manager."""

    def __init__(self, namespace: Namespace, ifname: str) -> None:
        self._out = raw_socket(namespace, ifname)
        self._in = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._in.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._in.setsockopt(lib.SOL_PACKET, lib.PACKET_IGNORE_OUTGOING, 1)
        self._in.bind((ifname, lib.ETH_P_ALL))
        self._in.settimeout(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._out.close()
        self._in.close()

    def send(self, *frames: bytes) -> None:
        with on_cpu(CPU):
            for frame in frames:
                self._out.send(frame)

    def frames(self, quiet: float = 0.0) -> list[bytes]:
        """Return what has come in, once nothing more has for so many seconds."""
        found = []
        while select.select([self._in], [], [], quiet)[0]:
            with contextlib.suppress(BlockingIOError):
                found.append(self._in.recv(1 << 16))
        return found

    def datagrams(self, quiet: float = 0.0) -> list[Seen]:
        """Return the UDP datagrams among `frames`."""
        return [each for each in map(udp_in, self.frames(quiet)) if each is not None]

    def until_answered(self, ends: Ends, *, patience: float = 10.0) -> list[Seen]:
        """Ask the server, and return the datagrams that come up to the answer and without it.

        What was sent before has been dealt with then, because order is kept.
        """
        request = Message.request()
        port = 50000
        self.send(ends.udp(request.encode(), source=(ends.client, port)))
        before: list[Seen] = []
        answered: list[Seen] = []

        def arrived() -> bool:
            for seen in self.datagrams():
                mine = seen.destination[1] == port and request.transaction_id in seen.payload
                (answered if mine else before).append(seen)
            return bool(answered)

        wait_until(arrived, "the server answers", patience)
        assert len(answered) == 1
        return before


def udp_in(frame: bytes) -> Seen | None:
    """Return the UDP datagram in a frame, if there is one; checksums may not be filled in."""
    with contextlib.suppress(PacketError):
        parse_ethernet(frame)
        found = receive(frame, checksum=ChecksumStatus.NOT_READY)
        return Seen(
            (found.source_ip, found.source_port),
            (found.destination_ip, found.destination_port),
            bytes(found.payload),
            frame,
        )
    return None
