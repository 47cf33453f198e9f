"""A client over TCP or TLS, written against RFC 8489 section 6.2.2: a socket and the codec.

And what it takes to serve TLS: a certificate authority for a test.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import pytest
import trustme

from pktstun.stun import (
    HEADER_SIZE,
    Message,
    Reply,
    ResponderOptions,
    TransportAddress,
    respond,
)

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path

NAME = "stun.example.org"
LOCAL = ResponderOptions(allow_loopback=True)
ALPN = "stun.nat-discovery"  # RFC 7443 section 3


class StreamClient:
    """A connection; messages out, messages in."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.local = TransportAddress.from_sockaddr(sock.getsockname())
        self.server = TransportAddress.from_sockaddr(sock.getpeername())
        self._buffer = b""

    @classmethod
    def connect(
        cls,
        address: tuple[str, int],
        *,
        source: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10.0,
    ) -> Self:
        source_address = None if source is None else (source, 0)
        sock = socket.create_connection(address, timeout, source_address)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=NAME)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def send(self, *messages: Message) -> None:
        self.sock.sendall(b"".join(each.encode() for each in messages))

    def receive(self) -> bytes | None:
        """Return the next message, None where the server has closed the connection."""
        while True:
            if len(self._buffer) >= HEADER_SIZE:
                end = HEADER_SIZE + int.from_bytes(self._buffer[2:4])
                if len(self._buffer) >= end:
                    message, self._buffer = self._buffer[:end], self._buffer[end:]
                    return message
            data = self.sock.recv(4096)
            if not data:
                assert self._buffer == b""
                return None
            self._buffer += data

    def ask(self, *requests: Message) -> None:
        """Send requests together, and see that the replies are right and in their order."""
        requests = requests or (Message.request(),)
        self.send(*requests)
        for request in requests:
            reply = respond(request.encode(), self.local, self.server, LOCAL)
            assert isinstance(reply, Reply)
            assert self.receive() == reply.datagram

    def is_closed(self) -> bool:
        """Wait until the server has closed the connection, in whatever way."""
        with contextlib.suppress(ConnectionError):
            assert self.receive() is None
        return True


@dataclass
class Authority:
    """A certificate authority, and the files of a server's certificate."""

    ca: trustme.CA
    directory: Path

    @property
    def chain(self) -> Path:
        return self.directory / "chain.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    @property
    def arguments(self) -> list[str]:
        return ["--tls", "--tls-certificate", str(self.chain), "--tls-key", str(self.key)]

    def issue(
        self,
        *,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> bytes:
        """Write a new certificate; return it, DER."""
        issued = self.ca.issue_cert(NAME, not_before=not_before, not_after=not_after)
        self.chain.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.key)
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())

    def context(self) -> ssl.SSLContext:
        """Return what a client needs that trusts this authority."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        context.set_alpn_protocols([ALPN])
        return context


def certificate_of(client: StreamClient) -> bytes | None:
    """Return the certificate that the server has shown, DER."""
    assert isinstance(client.sock, ssl.SSLSocket)
    return client.sock.getpeercert(binary_form=True)


@pytest.fixture(name="authority")
def authority_fixture(tmp_path: Path) -> Authority:
    """An authority that has issued a certificate."""
    authority = Authority(trustme.CA(), tmp_path)
    authority.issue()
    return authority
