"""Servers for the clients' tests, over the codec: as good or as bad as a test wants them.

The certificates are those of `certificates/`, made for a hundred years:

    openssl ecparam -name prime256v1 -genkey -noout                        (both keys)
    openssl req -x509 -new -key ca.key -subj "/CN=pktstun test CA" -days 36500
        -addext keyUsage=critical,keyCertSign,cRLSign                       (authority.pem)
    openssl x509 -req -CA authority.pem -CAkey ca.key -days 36500 -extfile ...    (server.pem:
        for stun.example.org, 127.0.0.1 and ::1)
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from pktstun.errors import StunError
from pktstun.stun import (
    Attribute,
    AttributeType,
    ChangeRequest,
    Class,
    ErrorCode,
    MappedAddress,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    Nonce,
    OtherAddress,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    PasswordAlgorithms,
    Realm,
    ResponseOrigin,
    ResponsePort,
    SecurityFeature,
    TransportAddress,
    UnknownAttributes,
    UserHash,
    Username,
    XorMappedAddress,
    long_term_key,
    short_term_key,
    userhash,
)

if TYPE_CHECKING:
    from tests.lab import Namespace

ELSEWHERE = TransportAddress.parse("203.0.113.9:4711")
CERTIFICATES = Path(__file__).parent / "certificates"
AUTHORITY = CERTIFICATES / "authority.pem"
CERTIFIED_NAME = "stun.example.org"

Handler = Callable[[Message, int], list[bytes]]
"""From a request and its number, from 1, to what is sent back."""


def success(request: Message, *attributes: Attribute) -> bytes:
    return Message(
        Class.SUCCESS, transaction_id=request.transaction_id, attributes=attributes
    ).encode()


def elsewhere(request: Message, _number: int) -> list[bytes]:
    """Answer as every server does."""
    return [success(request, XorMappedAddress(ELSEWHERE))]


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def server(handler: Handler, address: str = "127.0.0.1") -> Iterator[TransportAddress]:
    """Answer each datagram with the datagrams that `handler(request, number)` returns."""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        stop = threading.Event()

        def answer() -> None:
            number = 0
            while True:
                data, peer = sock.recvfrom(2048)
                if stop.is_set():
                    return
                number += 1
                for reply in handler(Message.decode(data), number):
                    sock.sendto(reply, peer)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield TransportAddress.from_sockaddr(sock.getsockname())
        finally:
            stop.set()
            with socket.socket(family_of(address), socket.SOCK_DGRAM) as waker:
                waker.sendto(b"", sock.getsockname()[:2])
            thread.join()


@contextmanager
def stream_server(
    handler: Handler, *, tls: bool = False, address: str = "127.0.0.1"
) -> Iterator[TransportAddress]:
    """Answer the messages of one connection after the other, over TCP or TLS.

    What the handler returns is sent in one piece; b"" closes the connection.
    """
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATES / "server.pem")
    with socket.create_server((address, 0), family=family_of(address)) as listener:
        stop = threading.Event()

        def serve() -> None:
            number = 0
            while True:
                connection, _ = listener.accept()
                if stop.is_set():
                    connection.close()
                    return
                # Some clients end a handshake or a connection, or say something else, on purpose.
                with contextlib.suppress(OSError, StunError), contextlib.ExitStack() as stack:
                    sock = stack.enter_context(connection)
                    sock.settimeout(5)
                    if context:
                        sock = stack.enter_context(context.wrap_socket(sock, server_side=True))
                    for request in messages(sock):
                        number += 1
                        replies = handler(request, number)
                        sock.sendall(b"".join(replies))
                        if b"" in replies:
                            break

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield TransportAddress.from_sockaddr(listener.getsockname())
        finally:
            stop.set()
            with contextlib.suppress(OSError), socket.create_connection(listener.getsockname()[:2]):
                pass
            thread.join()


def messages(sock: socket.socket) -> Iterator[Message]:
    """Yield the messages on a stream until it ends."""
    received = b""
    while data := sock.recv(4096):
        received += data
        while len(received) >= 20:
            size = 20 + int.from_bytes(received[2:4])
            if len(received) < size:
                break
            yield Message.decode(received[:size])
            received = received[size:]


# --- Credentials ---


@dataclass
class ShortTerm:
    """A handler that wants short-term credentials (RFC 8489 section 9.1.3)."""

    username: str
    password: str
    sha256: bool = True
    seen: list[Message] = field(default_factory=list)

    def __call__(self, request: Message, _number: int) -> list[bytes]:
        self.seen.append(request)
        username = request.get(Username)
        if not username or not has_integrity(request):
            return [request.failure(ErrorCode.of(400)).encode()]
        key = short_term_key(self.password)
        if username.text != self.username or not request.check_message_integrity(key):
            return [request.failure(ErrorCode.of(401)).encode()]
        reply = request.success(XorMappedAddress(ELSEWHERE))
        if self.sha256:
            return [reply.with_message_integrity_sha256(key).encode()]
        return [reply.with_message_integrity(key).encode()]


@dataclass
class LongTerm:
    """A handler that wants long-term credentials (RFC 8489 section 9.2.4).

    Args:
        algorithms: what it offers, best first; without any it is a server of RFC 5389.
        anonymous: wants USERHASH instead of USERNAME.
        stale: so many nonces go stale before they are used.
    """

    username: str
    password: str
    realm: str = "example.org"
    algorithms: tuple[int, ...] = ()
    anonymous: bool = False
    stale: int = 0
    seen: list[Message] = field(default_factory=list)
    nonces: int = 0

    @property
    def features(self) -> SecurityFeature:
        found = SecurityFeature(0)
        if self.algorithms:
            found |= SecurityFeature.PASSWORD_ALGORITHMS
        if self.anonymous:
            found |= SecurityFeature.USERNAME_ANONYMITY
        return found

    @property
    def nonce(self) -> Nonce:
        text = f"nonce{self.nonces}"
        return Nonce.with_cookie(text, self.features) if self.features else Nonce(text)

    @property
    def offer(self) -> tuple[PasswordAlgorithms, ...]:
        if not self.algorithms:
            return ()
        numbers = map(PasswordAlgorithmNumber, self.algorithms)
        return (PasswordAlgorithms(tuple(map(PasswordAlgorithm, numbers))),)

    def challenge(self, request: Message, code: int) -> list[bytes]:
        self.nonces += 1
        parts: list[Attribute] = [Realm(self.realm), self.nonce, *self.offer]
        return [request.failure(ErrorCode.of(code), *parts).encode()]

    def __call__(self, request: Message, _number: int) -> list[bytes]:
        self.seen.append(request)
        if not has_integrity(request):
            return self.challenge(request, 401)
        if not self.is_complete(request):
            return [request.failure(ErrorCode.of(400)).encode()]
        chosen = request.get(PasswordAlgorithm)
        number = chosen.algorithm if chosen else PasswordAlgorithmNumber.MD5
        key = long_term_key(self.username, self.realm, self.password, number)
        if not self.knows(request) or not request.check_message_integrity(key):
            return self.challenge(request, 401)
        if self.stale or request.get(Nonce) != self.nonce:
            self.stale -= 1
            return self.challenge(request, 438)
        reply = request.success(XorMappedAddress(ELSEWHERE))
        if chosen:
            return [reply.with_message_integrity_sha256(key).encode()]
        return [reply.with_message_integrity(key).encode()]

    def is_complete(self, request: Message) -> bool:
        """Whether everything is there that has to be, and the list is the one offered."""
        if not (request.get(Realm) and request.get(Nonce)):
            return False
        offered = next(iter(self.offer), None)
        chosen = request.get(PasswordAlgorithm)
        if request.get(PasswordAlgorithms) != offered or bool(chosen) != bool(offered):
            return False
        # Section 9.2.5: with algorithms, MESSAGE-INTEGRITY-SHA256 only.
        return bool(offered) == (request.get(MessageIntegritySha256) is not None)

    def knows(self, request: Message) -> bool:
        if self.anonymous:
            return request.get(UserHash) == UserHash(userhash(self.username, self.realm))
        return request.get(Username) == Username(self.username)


def has_integrity(request: Message) -> bool:
    return bool(request.get(MessageIntegrity) or request.get(MessageIntegritySha256))


# --- RFC 5780 ---


@dataclass
class NatDiscovery:
    """A server for NAT discovery with two addresses and two ports; a context manager.

    Args:
        addresses: the first is the one to ask.
        namespace: where they are.
        ports: 0 for any.
        loss: how many requests are lost before the first one of each client is heard.
        without: attributes that it does not send.
        changes: whether it does what CHANGE-REQUEST says; None refuses with 420.
        is_deaf: whether it says nothing where it is asked for a change.
        is_alone: whether it says nothing where it is asked to answer from its other address.
        moves_answer: whether it does what RESPONSE-PORT says.
    """

    addresses: tuple[str, str]
    namespace: Namespace | None = None
    ports: tuple[int, int] = (0, 0)
    loss: int = 0
    without: tuple[type, ...] = ()
    changes: bool | None = True
    is_deaf: bool = False
    is_alone: bool = False
    moves_answer: bool = True
    asked: list[Message] = field(default_factory=list)
    first_asked: dict[bytes, float] = field(default_factory=dict)

    def __enter__(self) -> TransportAddress:
        inside = self.namespace.enter() if self.namespace else contextlib.nullcontext()
        ports = list(self.ports)
        with inside:
            self._sockets = {}
            for a in (0, 1):
                for p in (0, 1):
                    sock = socket.socket(family_of(self.addresses[a]), socket.SOCK_DGRAM)
                    sock.bind((self.addresses[a], ports[p]))
                    ports[p] = sock.getsockname()[1]
                    self._sockets[a, p] = sock
        self._stopped, self._stop = socket.socketpair()
        self._heard: dict[object, int] = {}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self._address(0, 0)

    def __exit__(self, *exc_info: object) -> None:
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        for sock in self._sockets.values():
            sock.close()

    def _address(self, a: int, p: int) -> TransportAddress:
        return TransportAddress.from_sockaddr(self._sockets[a, p].getsockname())

    def _serve(self) -> None:
        places = {sock: place for place, sock in self._sockets.items()}
        while True:
            ready, _, _ = select.select([self._stopped, *places], [], [])
            if self._stopped in ready:
                return
            for sock in ready:
                data, peer = sock.recvfrom(4096)
                # A hairpin test or an old client may have sent anything.
                with contextlib.suppress(StunError):
                    self._answer(Message.decode(data), peer, *places[sock])

    def _answer(self, request: Message, peer: tuple[str, int], a: int, p: int) -> None:
        self.asked.append(request)
        self.first_asked.setdefault(request.transaction_id, time.monotonic())
        # Each request is lost so many times before it is heard.
        heard = self._heard[request.transaction_id] = self._heard.get(request.transaction_id, 0) + 1
        if heard <= self.loss:
            return
        source = TransportAddress(ip_address(peer[0]), peer[1])
        change = request.get(ChangeRequest)
        if change and (self.is_deaf or (self.is_alone and change.change_ip)):
            return
        if change and self.changes is None:
            unknown = UnknownAttributes((AttributeType.CHANGE_REQUEST,))
            reply = request.failure(ErrorCode.of(420), unknown)
            self._sockets[a, p].sendto(reply.encode(), peer)
            return
        away = self._address(1 - a, 1 - p)
        if change and self.changes:
            a, p = a ^ change.change_ip, p ^ change.change_port
        attributes = (
            XorMappedAddress(source),
            MappedAddress(source),
            ResponseOrigin(self._address(a, p)),
            OtherAddress(away),
        )
        kept = tuple(each for each in attributes if not isinstance(each, self.without))
        port = request.get(ResponsePort)
        if port and self.moves_answer:
            peer = (peer[0], port.port)
        self._sockets[a, p].sendto(request.success(*kept).encode(), peer)
