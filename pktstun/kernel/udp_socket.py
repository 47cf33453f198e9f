"""A UDP socket of a SO_REUSEPORT group, with recvmmsg and sendmmsg.

Theory of operation: every worker has a socket of its own for each address that is served,
all bound to the same address; the kernel chooses one for each datagram, by hash or by the
group's program. A socket on a wildcard address learns each datagram's destination from
IP_PKTINFO or IPV6_RECVPKTINFO. IPv6 sockets are IPv6 only: IPv4 has its own.

The worker's C loop uses the descriptor alone; `recvmmsg` and `sendmmsg` here are for tests,
tools and other programs.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

from pktstun.stun import TransportAddress

from ._closing import Closing
from ._ffi import CData, check, ffi, lib, set_buffer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .bpf import Program

_BUFFER = 2048
_MEMINFO = struct.Struct("=9I")  # <linux/sock_diag.h>, SK_MEMINFO_RMEM_ALLOC to SK_MEMINFO_DROPS


class Datagram(NamedTuple):
    """A datagram and the peer's address: where it came from, or where it goes."""

    data: bytes
    peer: TransportAddress


class SocketMemory(NamedTuple):
    """What a socket's receive buffer holds, and what it had no room for."""

    waiting: int
    """Bytes of datagrams that have not been read, with what the kernel adds to each."""
    room: int
    """Bytes that there may be."""
    drops: int
    """Datagrams that were dropped since the socket was made, modulo 2^32: by a filter as well."""


class UDPSocket(Closing):
    """A non-blocking UDP socket, bound.

    Args:
        address: where to bind; the port 0 lets the kernel choose one.
        scope: index of the interface of an IPv6 link-local address.
        share: allow other sockets on the same address (SO_REUSEPORT).
        program: a filter that is in place before the socket can receive.
        receive_buffer: bytes wanted for the receive buffer; the kernel grants at most
            net.core.rmem_max without CAP_NET_ADMIN. None leaves it alone.
        send_buffer: the same for the send buffer, and net.core.wmem_max.
        bound: bind it now; else nothing finds it before `bind` is called, and nothing must be
            sent through it.

    Raises:
        OSError: EADDRINUSE, EADDRNOTAVAIL (no local address), EAFNOSUPPORT.
    """

    def __init__(  # noqa: PLR0913 - the options of a socket
        self,
        address: TransportAddress,
        *,
        scope: int = 0,
        share: bool = True,
        program: Program | None = None,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        bound: bool = True,
    ) -> None:
        ipv6 = address.ip.version == 6
        self.scope = scope
        self.is_wildcard = address.ip.is_unspecified
        self._socket = socket.socket(
            socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        try:
            if ipv6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if share:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self.is_wildcard and ipv6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, lib.IPV6_RECVPKTINFO, 1)
            elif self.is_wildcard:
                self._socket.setsockopt(socket.IPPROTO_IP, lib.IP_PKTINFO, 1)
            if program is not None:
                self.set_filter(program)
            if receive_buffer is not None:
                set_buffer(self._socket, socket.SO_RCVBUF, receive_buffer)
            if send_buffer is not None:
                set_buffer(self._socket, socket.SO_SNDBUF, send_buffer)
            self.address = address
            self._drops = 0
            if bound:
                self.bind()
        except BaseException:  # a port that is none is an OverflowError
            self._socket.close()
            raise

    def bind(self) -> None:
        """Bind the socket to its address, unless it is bound.

        Raises:
            OSError: EADDRINUSE, EADDRNOTAVAIL.
        """
        if self.is_bound:
            return
        ip, port = self.address
        ipv6 = ip.version == 6
        self._socket.bind((str(ip), port, 0, self.scope) if ipv6 else (str(ip), port))
        self.address = TransportAddress(ip, self._socket.getsockname()[1])

    @property
    def is_bound(self) -> bool:
        """Whether it is bound to its address."""
        return bool(self._socket.getsockname()[1])

    @classmethod
    def adopt(cls, descriptor: int) -> Self:
        """Return the UDP socket of this descriptor, which is its own from then on."""
        adopted = cls.__new__(cls)
        sock = socket.socket(fileno=descriptor)
        adopted._socket = sock  # noqa: SLF001 - its own class
        host, port, *more = sock.getsockname()
        adopted.address = TransportAddress(ipaddress.ip_address(host.partition("%")[0]), port)
        adopted.scope = more[1] if more else 0
        adopted.is_wildcard = adopted.address.ip.is_unspecified
        adopted._drops = adopted.memory().drops  # noqa: SLF001 - they have been counted
        return adopted

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the file descriptor, -1 when closed."""
        return self._socket.fileno()

    def memory(self) -> SocketMemory:
        """Return what the kernel says about the receive buffer (SO_MEMINFO, Linux 4.12)."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, lib.SO_MEMINFO, _MEMINFO.size)
        numbers = _MEMINFO.unpack(raw)
        return SocketMemory(numbers[0], numbers[1], numbers[8])

    def new_drops(self) -> int:
        """Return how many datagrams it had no room for since the last call, or since `adopt`."""
        drops = self.memory().drops
        new = (drops - self._drops) & 0xFFFFFFFF  # the kernel counts in 32 bits
        self._drops = drops
        return new

    def hide(self) -> None:
        """Have no more datagrams find the socket; what waits in it can still be read and answered.

        It is connected to itself, so that whatever comes from elsewhere finds another socket of
        the port, if there is one (udp(7)). Where messages name a destination, they still go there.
        """
        ip, port = self.address
        loopback = "127.0.0.1" if ip.version == 4 else "::1"
        host = loopback if ip.is_unspecified else str(ip)
        self._socket.connect((host, port, 0, self.scope) if ip.version == 6 else (host, port))

    def set_filter(self, program: Program) -> None:
        """Replace the socket's filter in one step (SO_ATTACH_FILTER)."""
        program.attach(self._socket, socket.SOL_SOCKET, lib.SO_ATTACH_FILTER)

    def set_group_program(self, program: Program) -> None:
        """Give the SO_REUSEPORT group a program that chooses the socket by index.

        Sockets are numbered in the order of their binding; any member will do.
        """
        program.attach(self._socket, socket.SOL_SOCKET, lib.SO_ATTACH_REUSEPORT_CBPF)

    def recvmmsg(self, count: int = 64) -> list[Datagram]:
        """Return up to `count` datagrams that wait, an empty list where none does.

        Of a datagram longer than 2048 bytes, those are returned.

        Raises:
            OSError: the socket has a pending error.
        """
        messages = ffi.new("struct mmsghdr[]", count)
        vectors = ffi.new("struct iovec[]", count)
        names = ffi.new("struct sockaddr_in6[]", count)
        buffers = ffi.new("uint8_t[]", count * _BUFFER)
        for index in range(count):
            vectors[index].iov_base = buffers + index * _BUFFER
            vectors[index].iov_len = _BUFFER
            header = messages[index].msg_hdr
            header.msg_name = names + index
            header.msg_namelen = ffi.sizeof("struct sockaddr_in6")
            header.msg_iov = vectors + index
            header.msg_iovlen = 1
        try:
            received = check(
                lib.recvmmsg(self.fileno(), messages, count, socket.MSG_DONTWAIT, ffi.NULL),
                "recvmmsg",
            )
        except BlockingIOError:
            return []
        return [
            Datagram(
                bytes(ffi.buffer(buffers + index * _BUFFER, messages[index].msg_len)),
                _read_name(names + index),
            )
            for index in range(received)
        ]

    def prepare(self, datagrams: Iterable[Datagram]) -> Batch:
        """Return a batch that can be sent again and again without being built again."""
        return Batch(self, datagrams)

    def sendmmsg(self, datagrams: Iterable[Datagram]) -> int:
        """Send datagrams in one call; return how many were sent, the first ones.

        Raises:
            OSError: the first one could not be sent; BlockingIOError, the buffer is full.
        """
        return self.prepare(datagrams).send()


class Batch:
    """Datagrams laid out for sendmmsg.

    Args:
        sock: where they are sent from; borrowed.
        datagrams: at most 1024 of them are sent in one call (UIO_MAXIOV).
    """

    def __init__(self, sock: UDPSocket, datagrams: Iterable[Datagram]) -> None:
        batch = list(datagrams)
        self._socket = sock
        self._count = len(batch)
        self._messages = ffi.new("struct mmsghdr[]", self._count)
        # What the messages point to lives as long as the batch.
        self._vectors = ffi.new("struct iovec[]", self._count)
        self._names = ffi.new("struct sockaddr_in6[]", self._count)
        self._payloads = [ffi.from_buffer(datagram.data) for datagram in batch]
        for index, datagram in enumerate(batch):
            self._vectors[index].iov_base = self._payloads[index]
            self._vectors[index].iov_len = len(datagram.data)
            header = self._messages[index].msg_hdr
            header.msg_name = self._names + index
            header.msg_namelen = _write_name(self._names + index, datagram.peer, sock.scope)
            header.msg_iov = self._vectors + index
            header.msg_iovlen = 1

    def send(self) -> int:
        """Send in one call; return how many were sent, the first ones.

        Raises:
            OSError: the first one could not be sent; BlockingIOError, the buffer is full.
        """
        return check(
            lib.sendmmsg(self._socket.fileno(), self._messages, self._count, socket.MSG_DONTWAIT),
            "sendmmsg",
        )


def _write_name(name: CData, address: TransportAddress, scope: int) -> int:
    if isinstance(address.ip, ipaddress.IPv6Address):
        name.sin6_family = socket.AF_INET6
        name.sin6_port = socket.htons(address.port)
        name.sin6_scope_id = scope
        ffi.buffer(name.sin6_addr.s6_addr)[:] = address.ip.packed
        return int(ffi.sizeof("struct sockaddr_in6"))
    name4 = ffi.cast("struct sockaddr_in *", name)
    name4.sin_family = socket.AF_INET
    name4.sin_port = socket.htons(address.port)
    ffi.buffer(ffi.addressof(name4, "sin_addr"))[:] = address.ip.packed
    return int(ffi.sizeof("struct sockaddr_in"))


def _read_name(name: CData) -> TransportAddress:
    port = socket.ntohs(name.sin6_port)  # sin_port lies at the same place
    if name.sin6_family == socket.AF_INET6:
        raw = bytes(ffi.buffer(name.sin6_addr.s6_addr))
        return TransportAddress(ipaddress.IPv6Address(raw), port)
    field = ffi.addressof(ffi.cast("struct sockaddr_in *", name), "sin_addr")
    return TransportAddress(ipaddress.IPv4Address(bytes(ffi.buffer(field))), port)
