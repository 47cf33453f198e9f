"""TCP, TLS, and being sent on to another server."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pktstun.client import Credentials, QueryError, Tls, Transport, query, query_any
from pktstun.errors import UsageError
from pktstun.stun import (
    AlternateDomain,
    AlternateServer,
    Attribute,
    ErrorCode,
    Message,
    TransportAddress,
    XorMappedAddress,
)
from tests.client.servers import (
    AUTHORITY,
    CERTIFIED_NAME,
    ELSEWHERE,
    Handler,
    ShortTerm,
    elsewhere,
    server,
    stream_server,
    success,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRUSTED = Tls(name=CERTIFIED_NAME, ca=AUTHORITY)
# Reserved for documentation: nobody answers there.
NOBODY = TransportAddress.parse("192.0.2.66:3478")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_over_tcp(address: str) -> None:
    with stream_server(elsewhere, address=address) as at:
        result = query(at, transport=Transport.TCP, timeout=5)
    assert (result.mapped, result.server) == (ELSEWHERE, at)
    assert (result.transport, result.tls, result.requests) == (Transport.TCP, None, 1)
    assert str(result.local.ip) == address


@pytest.mark.parametrize(
    "tls", [TRUSTED, Tls(ca=AUTHORITY), Tls(verify=False), Tls("wrong.example", verify=False)]
)
def test_over_tls(tls: Tls) -> None:
    with stream_server(elsewhere, tls=True) as at:
        result = query(at, transport=Transport.TLS, tls=tls, timeout=5)
    assert result.mapped == ELSEWHERE
    assert result.tls in {"TLSv1.2", "TLSv1.3"}


@pytest.mark.parametrize(
    ("tls", "reason"),
    [
        (None, "no certificate to trust.*--ca"),
        (Tls(name=CERTIFIED_NAME), "no certificate to trust"),
        (Tls(name="other.example.org", ca=AUTHORITY), "Hostname mismatch"),
    ],
)
def test_a_server_that_cannot_prove_its_name(tls: Tls | None, reason: str) -> None:
    asked: list[Message] = []

    def handler(request: Message, number: int) -> list[bytes]:
        asked.append(request)
        return elsewhere(request, number)

    with stream_server(handler, tls=True) as at, pytest.raises(QueryError, match=reason):
        query(at, transport=Transport.TLS, tls=tls, timeout=5)
    assert not asked


def test_tls_where_there_is_none() -> None:
    with (
        stream_server(lambda _request, _number: [b"no TLS"]) as at,
        pytest.raises(QueryError, match="no answer from 127"),
    ):
        query(at, transport=Transport.TLS, tls=TRUSTED, timeout=0.3)


def test_a_file_without_certificates(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for file in (empty, tmp_path / "none.pem"):
        with pytest.raises(UsageError, match=file.name):
            query(NOBODY, transport=Transport.TLS, tls=Tls(ca=file))


@contextmanager
def dribbling(pieces: list[bytes]) -> Iterator[TransportAddress]:
    """Accept one connection, read a request, and send pieces that name its transaction."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone_on = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(2048)
                for piece in pieces:
                    connection.send(piece.replace(b"<transaction>", request[8:20]))
                    gone_on.wait(0.02)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield TransportAddress.from_sockaddr(listener.getsockname())
        finally:
            gone_on.set()
            thread.join()


def test_messages_come_in_pieces_and_after_others() -> None:
    other = Message.request().success(XorMappedAddress(NOBODY)).encode()
    wanted = Message.request(transaction_id=bytes(12)).success(XorMappedAddress(ELSEWHERE)).encode()
    wanted = wanted.replace(bytes(12), b"<transaction>")
    pieces = [other + wanted[:3], wanted[3:22], wanted[22:]]
    with dribbling(pieces) as at:
        assert query(at, transport=Transport.TCP, timeout=5).mapped == ELSEWHERE


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([], "closed the connection"),
        ([b"\x01\x01"], "closed the connection"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "does not speak STUN"),
        ([b"\0" * 20], "does not speak STUN"),
    ],
)
def test_a_stream_without_an_answer(pieces: list[bytes], reason: str) -> None:
    with dribbling(pieces) as at, pytest.raises(QueryError, match=reason):
        query(at, transport=Transport.TCP, timeout=5)


def test_silence_on_a_stream_ends_with_the_timeout() -> None:
    with (
        stream_server(lambda _request, _number: []) as at,
        pytest.raises(QueryError, match=r"to 1 requests in 0\.2 s"),
    ):
        query(at, transport=Transport.TCP, timeout=0.2)


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS])
def test_nobody_listens(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = TransportAddress.from_sockaddr(listener.getsockname())
    with pytest.raises(QueryError, match=f"no answer from {at}: Connection refused"):
        query(at, transport=transport)


# --- ALTERNATE-SERVER ---


def sends_on(*attributes: Attribute) -> Handler:
    return lambda request, _number: [request.failure(ErrorCode.of(300), *attributes).encode()]


def test_a_redirection_is_followed() -> None:
    with server(elsewhere) as last, server(sends_on(AlternateServer(last))) as second:
        other_family = AlternateServer(TransportAddress.parse("[::1]:1"))
        with server(sends_on(other_family, AlternateServer(second))) as first:
            result = query(first, timeout=5)
    assert result.mapped == ELSEWHERE
    assert result.server == last
    assert result.redirected_by == (first, second)


def test_the_credentials_go_along() -> None:
    me = Credentials("user", "password", short_term=True)
    handler = ShortTerm(me.username, me.password)
    with server(handler) as last, server(sends_on(AlternateServer(last))) as first:
        result = query(first, timeout=5, credentials=me)
    assert result.integrity == "MESSAGE-INTEGRITY-SHA256"


def test_a_loop_of_redirections_ends() -> None:
    alternates: list[TransportAddress] = []

    def handler(request: Message, number: int) -> list[bytes]:
        return sends_on(AlternateServer(alternates[0]))(request, number)

    with server(handler) as first, server(sends_on(AlternateServer(first))) as second:
        alternates.append(second)
        with pytest.raises(QueryError, match=f"{second} says to ask {first}, which has been asked"):
            query(first, timeout=5)
        alternates[0] = first
        with pytest.raises(QueryError, match="which has been asked"):
            query(first, timeout=5)


def test_a_redirection_to_nowhere() -> None:
    nowhere = AlternateServer(TransportAddress.parse("[::1]:1"))
    with server(sends_on(nowhere)) as at, pytest.raises(QueryError, match="not which"):
        query(at, timeout=5)


@pytest.mark.parametrize(
    ("domain", "is_trusted"), [(CERTIFIED_NAME, True), (None, True), ("other.example.org", False)]
)
def test_over_tls_the_other_server_has_to_have_the_name(
    domain: str | None,
    is_trusted: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Section 10: that of ALTERNATE-DOMAIN, or the one that was asked for first."""
    names = [AlternateDomain(domain)] if domain else []
    with stream_server(elsewhere, tls=True) as last:
        handler = sends_on(AlternateServer(last), *names)
        with stream_server(handler, tls=True) as first:
            if is_trusted:
                result = query(first, transport=Transport.TLS, tls=TRUSTED, timeout=5)
                assert result.server == last
            else:
                with pytest.raises(QueryError, match="Hostname mismatch"):
                    query(first, transport=Transport.TLS, tls=TRUSTED, timeout=5)


# --- Several servers ---


def test_the_next_server_is_asked_where_one_is_silent() -> None:
    with server(lambda _request, _number: []) as silent, server(elsewhere) as good:
        result = query_any([silent, good], timeout=0.2)
        assert result.server == good
        with pytest.raises(QueryError, match=f"{silent}.*; .*{silent}"):
            query_any([silent, silent], timeout=0.1)


def test_an_answer_to_the_wrong_transaction_on_a_stream_is_passed_over() -> None:
    def handler(request: Message, _number: int) -> list[bytes]:
        wrong = success(Message.request(), XorMappedAddress(NOBODY))
        return [wrong, success(request, XorMappedAddress(ELSEWHERE))]

    with stream_server(handler) as at:
        assert query(at, transport=Transport.TCP, timeout=5).mapped == ELSEWHERE
