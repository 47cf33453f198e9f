"""The client: what counts as an answer, and what does not."""

from __future__ import annotations

import socket

import pytest

from pktstun.client import QueryError, query, resolve
from pktstun.stun import (
    Attribute,
    Class,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    Message,
    RawAttribute,
    Software,
    TransportAddress,
    XorMappedAddress,
)
from tests.client.servers import ELSEWHERE, server, success


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_answer(address: str) -> None:
    def handler(request: Message, _number: int) -> list[bytes]:
        assert request.get(Fingerprint)
        return [success(request, XorMappedAddress(ELSEWHERE), Software("other"))]

    with server(handler, address) as at:
        result = query(at)
    assert result.mapped == ELSEWHERE
    assert result.server == at
    assert (result.requests, result.software, result.fingerprint) == (1, "other", False)
    assert 0 < result.round_trip < 5


def test_mapped_address_will_do() -> None:
    with server(lambda request, _: [success(request, MappedAddress(ELSEWHERE))]) as at:
        assert query(at).mapped == ELSEWHERE


def test_a_lost_request_is_sent_again() -> None:
    def handler(request: Message, number: int) -> list[bytes]:
        return [success(request, XorMappedAddress(ELSEWHERE))] if number == 3 else []

    with server(handler) as at:
        result = query(at, rto=0.02)
    assert result.requests == 3


def test_what_is_no_response_to_this_request_is_ignored() -> None:
    def handler(request: Message, number: int) -> list[bytes]:
        good = Message.decode(success(request, XorMappedAddress(ELSEWHERE))).with_fingerprint()
        wrong = bytearray(good.encode())
        wrong[-1] ^= 1
        noise = [
            b"",
            b"noise",
            bytes(wrong),  # FINGERPRINT does not match
            success(Message.request(), XorMappedAddress(ELSEWHERE)),  # another transaction
            request.encode(),  # an echo
        ]
        return [*noise, good.encode()] if number == 1 else []

    with server(handler) as at:
        result = query(at)
    assert result.mapped == ELSEWHERE
    assert result.fingerprint


@pytest.mark.parametrize(
    ("attributes", "message_class", "what"),
    [
        ([ErrorCode(400, "no")], Class.ERROR, "400 no"),
        ([], Class.SUCCESS, "without an address"),
        ([XorMappedAddress(ELSEWHERE), RawAttribute(0x7ABC)], Class.SUCCESS, "0x7abc"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_correct_answer(
    attributes: list[Attribute], message_class: Class, what: str
) -> None:
    def handler(request: Message, _number: int) -> list[bytes]:
        message = Message(
            message_class,
            transaction_id=request.transaction_id,
            attributes=tuple(attributes),
        )
        return [message.encode()]

    with server(handler) as at, pytest.raises(QueryError, match=what):
        query(at)


def test_an_error_response_without_a_code_is_an_error() -> None:
    def handler(request: Message, _number: int) -> list[bytes]:
        return [b"\x01\x11\0\0" + request.encode()[4:20]]

    with server(handler) as at, pytest.raises(QueryError, match="without a code"):
        query(at)


def test_why_an_answer_was_refused_is_told_in_the_end() -> None:
    def handler(request: Message, _number: int) -> list[bytes]:
        good = bytearray(success(request, Software("a"), XorMappedAddress(ELSEWHERE)))
        good[24] = 0xFF
        return [bytes(good)]

    with (
        server(handler) as at,
        pytest.raises(QueryError, match=r"no answer .*; ignored: the text of SOFTWARE .*byte 24"),
    ):
        query(at, timeout=0.2)


def test_unknown_optional_attributes_are_ignored() -> None:
    extra = RawAttribute(0xC123, b"x")  # type: ignore[arg-type]
    with server(lambda request, _: [success(request, extra, XorMappedAddress(ELSEWHERE))]) as at:
        assert query(at).mapped == ELSEWHERE


def test_silence_ends_with_the_schedule_or_the_timeout() -> None:
    with server(lambda _request, _number: []) as at:
        with pytest.raises(QueryError, match="to 7 requests"):
            query(at, rto=0.005)
        with pytest.raises(QueryError, match="to 2 requests"):
            query(at, rto=0.1, timeout=0.25)


def test_names_are_resolved() -> None:
    assert resolve("127.0.0.1", 5) == TransportAddress.parse("127.0.0.1:5")
    assert resolve("::1", 5, socket.AF_INET6) == TransportAddress.parse("[::1]:5")
    with pytest.raises(QueryError, match="resolve"):
        resolve("::1", 5, socket.AF_INET)
    with pytest.raises(QueryError, match="resolve"):
        resolve("a" * 64 + ".invalid", 5)
