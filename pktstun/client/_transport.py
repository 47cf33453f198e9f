"""What carries a transaction: UDP, TCP, or TLS over TCP, behind one small interface.

Theory of operation: a UDP socket is connected, so that the kernel drops what other hosts send and
reports an ICMP error as ECONNREFUSED, which ends the transaction (RFC 8489 section 6.2.1). On a
stream the messages follow one another; the header of each says where it ends (section 6.2.2).

TLS is version 1.2 or later, and the certificate has to name the host that the person asked for,
not the one that an SRV record leads to (section 6.2.3, RFC 9325).
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from pktstun.errors import UsageError
from pktstun.stun import HEADER_SIZE, TransportAddress

from ._servers import QueryError, Transport

if TYPE_CHECKING:
    from pathlib import Path

_BUFFER = 65535
_COOKIE = slice(4, 8)


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server proves who it is.

    Args:
        name: host name or address that its certificate has to have; None for its address.
        ca: file of certificates, PEM, that may have signed it; None for those of the system.
        verify: False takes any certificate, so that anyone in between can be the server.
    """

    name: str | None = None
    ca: Path | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Return the settings of a connection.

        Raises:
            UsageError: the file cannot be read, or has no certificates.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"cannot read certificates from {str(self.ca)!r}, which has to be PEM: "
                f"{error.strerror or error}"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Channel(Protocol):
    """A way to one server; a context manager that closes it."""

    reliable: bool
    """Whether what is sent arrives, or the channel breaks."""
    tls: str | None
    """Version of TLS, as `TLSv1.3`."""
    local: TransportAddress
    """The socket's own address."""

    def send(self, data: bytes) -> None:
        """Send one message."""

    def receive(self, end: float) -> bytes:
        """Return what has arrived; TimeoutError at the time `end` of the monotonic clock."""

    def __enter__(self) -> Self:
        """Return the channel."""

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""


def open_channel(
    server: TransportAddress, transport: Transport, tls: Tls | None, end: float
) -> Channel:
    """Return a way to a server.

    Raises:
        OSError: the kernel or the server refuses; TimeoutError at the time `end`.
        QueryError: the server's certificate is not the one that is wanted.
    """
    if transport is Transport.UDP:
        return _Datagrams(server)
    return _Stream(server, (tls or Tls()) if transport is Transport.TLS else None, end)


def family_of(server: TransportAddress) -> socket.AddressFamily:
    """Return AF_INET or AF_INET6."""
    return socket.AF_INET6 if server.ip.version == 6 else socket.AF_INET


def wait_until(sock: socket.socket, end: float) -> None:
    """Have the next call on the socket end at a time; at once would mean not to wait at all."""
    sock.settimeout(max(end - time.monotonic(), 0.001))


class _Datagrams:
    reliable = False
    tls: str | None = None

    def __init__(self, server: TransportAddress) -> None:
        self._sock = socket.socket(family_of(server), socket.SOCK_DGRAM)
        try:
            self._sock.connect((str(server.ip), server.port))
            self.local = TransportAddress.from_sockaddr(self._sock.getsockname())
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()

    def send(self, data: bytes) -> None:
        self._sock.send(data)

    def receive(self, end: float) -> bytes:
        wait_until(self._sock, end)
        return self._sock.recv(_BUFFER)


class _Stream:
    reliable = True

    def __init__(self, server: TransportAddress, tls: Tls | None, end: float) -> None:
        context = tls.context() if tls else None
        self.tls: str | None = None
        self._server = server
        self._received = bytearray()
        self._sock = socket.socket(family_of(server), socket.SOCK_STREAM)
        try:
            wait_until(self._sock, end)
            self._sock.connect((str(server.ip), server.port))
            self.local = TransportAddress.from_sockaddr(self._sock.getsockname())
            if tls and context:
                wait_until(self._sock, end)
                self._sock = wrapped = context.wrap_socket(
                    self._sock, server_hostname=tls.name or str(server.ip)
                )
                self.tls = wrapped.version()
        except ssl.SSLCertVerificationError as error:
            self._sock.close()
            raise QueryError(
                f"{server} has no certificate to trust: {error.verify_message}; --ca FILE says "
                "who else may sign it, --insecure does without"
            ) from error
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def receive(self, end: float) -> bytes:
        """Return the next message; QueryError where there is none to come."""
        header = self._read(HEADER_SIZE, end)
        if header[0] & 0xC0 or header[_COOKIE] != b"\x21\x12\xa4\x42":
            raise QueryError(f"{self._server} does not speak STUN")
        message = self._read(HEADER_SIZE + int.from_bytes(header[2:4]), end)
        del self._received[: len(message)]
        return message

    def _read(self, size: int, end: float) -> bytes:
        while len(self._received) < size:
            wait_until(self._sock, end)
            data = self._sock.recv(_BUFFER)
            if not data:
                raise QueryError(f"{self._server} closed the connection without an answer")
            self._received += data
        return bytes(self._received[:size])
