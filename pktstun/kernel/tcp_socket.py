"""A listening TCP socket.

Theory of operation: whoever holds the descriptor keeps the queue of connections that nobody has
taken in yet, so that a process that accepts them may end and be replaced. Connections inherit
TCP_NODELAY and the sizes of the buffers, which bounds what one costs the kernel. IPv6 sockets are
IPv6 only: IPv4 has its own.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Self

from pktstun.stun import TransportAddress

from ._closing import Closing

BACKLOG = 1024
"""Connections that wait to be taken in; net.core.somaxconn may allow fewer."""

BUFFER = 16384
"""Bytes asked for each buffer of a connection: some requests, and a TLS handshake."""


class ListeningSocket(Closing):
    """A non-blocking TCP socket that listens.

    Args:
        address: where to bind; the port 0 lets the kernel choose one.
        scope: index of the interface of an IPv6 link-local address.
        share: allow other sockets of the same user on the same port (SO_REUSEPORT): one for a
            single address beside one for all of them.

    Raises:
        OSError: EADDRINUSE, EADDRNOTAVAIL (no local address), EAFNOSUPPORT.
    """

    def __init__(self, address: TransportAddress, *, scope: int = 0, share: bool = True) -> None:
        ipv6 = address.ip.version == 6
        self.scope = scope
        self._socket = socket.socket(
            socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        )
        try:
            if ipv6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Connections of a service before this one may still be on their way out.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            host = str(address.ip)
            self._socket.bind((host, address.port, 0, scope) if ipv6 else (host, address.port))
            self._socket.listen(BACKLOG)
        except BaseException:  # a port that is none is an OverflowError
            self._socket.close()
            raise
        self.address = TransportAddress(address.ip, self._socket.getsockname()[1])

    @classmethod
    def adopt(cls, descriptor: int) -> Self:
        """Return the listening socket of this descriptor, which is its own from then on."""
        adopted = cls.__new__(cls)
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)  # noqa: FBT003 - its name says it
        adopted._socket = sock  # noqa: SLF001 - its own class
        host, port, *more = sock.getsockname()
        adopted.address = TransportAddress(ipaddress.ip_address(host.partition("%")[0]), port)
        adopted.scope = more[1] if more else 0
        return adopted

    def close(self) -> None:
        """Close the socket; where no other process has it, connections that wait are reset."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the file descriptor, -1 when closed."""
        return self._socket.fileno()

    def accept(self) -> tuple[socket.socket, TransportAddress]:
        """Return a connection, non-blocking, and where it comes from.

        Raises:
            BlockingIOError: none waits.
            OSError: the connection has failed already, or there are too few descriptors.
        """
        connection, peer = self._socket.accept()
        connection.setblocking(False)  # noqa: FBT003 - its name says it
        return connection, TransportAddress.from_sockaddr(peer)

    def silence(self) -> None:
        """Take in no more connections, in any process; those that wait are reset."""
        self._socket.shutdown(socket.SHUT_RD)
