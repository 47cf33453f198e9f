"""pktstun.decode and its command: what is shown, of what, and that nothing can upset it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import io
import json
import os
import struct
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun import stun
from pktstun.capture import CaptureError, datagram_of, read_capture
from pktstun.cli import main
from pktstun.decode import (
    NOT_STUN,
    CapturedMessage,
    Credentials,
    DissectedMessage,
    as_json,
    as_text,
    dissect,
    dissect_capture,
    looks_like_stun,
    read_content,
    read_text,
)
from pktstun.errors import StunError, UsageError
from pktstun.packet import build_udp_frame
from pktstun.stun import (
    ATTRIBUTES,
    Attribute,
    AttributeType,
    Message,
    MessageIntegrity,
    Nonce,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    RawAttribute,
    Realm,
    Software,
    TransportAddress,
    Username,
    XorMappedAddress,
    XorPeerAddress,
    long_term_key,
    short_term_key,
)
from tests.strategies.datagrams import (
    attribute,
    datagrams,
    fingerprinted,
    message,
    with_length,
)
from tests.strategies.stun import BY_CLASS, any_attributes, messages
from tests.vectors import REQUEST, RESPONSE_IPV4, RESPONSE_IPV6

PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"  # of RFC 5769 sections 2.1 to 2.3
VECTORS = pytest.mark.parametrize("vector", [REQUEST, RESPONSE_IPV4, RESPONSE_IPV6])

REQUEST_TEXT = """\
request BINDING, transaction b7e7a701bc34d686fa87dfae, length 88
   20  0x8022  SOFTWARE           16  'STUN test client'
   40  0x0024  PRIORITY            4  1845494271
   48  0x8029  ICE-CONTROLLED      8  10605970187446795062
   60  0x0006  USERNAME            9  'evtj:h6vY'
   76  0x0008  MESSAGE-INTEGRITY  20  9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2
  100  0x8028  FINGERPRINT         4  3849993167  (correct)
"""

Printed = pytest.CaptureFixture[str]
COOKIE = bytes.fromhex("2112a442")
TRANSACTION_ID = bytes(range(12))
CLIENT = TransportAddress.parse("192.0.2.1:4000")
CLIENT_IPV6 = TransportAddress.parse("[2001:db8::1]:4000")


# --- What was given ---


def hex_forms(data: bytes) -> dict[str, str]:
    plain = data.hex()
    return {
        "plain": plain,
        "upper": plain.upper(),
        "prefix": f"0x{plain}",
        "upper prefix": f"0X{plain}",
        "spaces": f" {data.hex(' ', 4)} ",
        "lines": "\n".join(plain[i : i + 31] for i in range(0, len(plain), 31)) + "\r\n",
        "colons": data.hex(":"),
        "source code": ", ".join(f"{byte:#04x}" for byte in data),
        "short source code": ",\n".join(f"{byte:#x}" for byte in data),
    }


def base64_forms(data: bytes) -> dict[str, str]:
    standard, url_safe = base64.b64encode(data), base64.urlsafe_b64encode(data)
    return {
        "standard": standard.decode(),
        "url-safe": url_safe.decode(),
        "without padding": standard.decode().rstrip("="),
        "url-safe without padding": url_safe.decode().rstrip("="),
        "lines": base64.encodebytes(data).decode(),
    }


@given(st.binary(min_size=1, max_size=64))
@example(REQUEST)
def test_hex_in_any_form(data: bytes) -> None:
    for form, text in hex_forms(data).items():
        assert read_text(text) == data, form


@given(messages().map(Message.encode))
@example(REQUEST)
@example(fingerprinted(message(attribute(0x8022, b"\xff\xfe\xfb\xef"))))
def test_base64_in_any_form(data: bytes) -> None:
    for form, text in base64_forms(data).items():
        assert read_text(text) == data, form


@given(messages().map(Message.encode), st.integers(0, 2))
def test_a_message_in_base64_is_never_hex(data: bytes, cut: int) -> None:
    """The cookie takes an S at its place; text that is both hex and base64 is hex."""
    assert read_text(base64.b64encode(data[: len(data) - cut]).decode()) == data[: len(data) - cut]
    assert read_text("abcd") == b"\xab\xcd"


@given(datagrams())
def test_the_content_of_a_file(data: bytes) -> None:
    if data:
        assert read_content(data.hex().encode()) == data
    if looks_like_stun(data):
        assert read_content(data) == data
    if data[4:8] == COOKIE and not data[0] & 0xC0:
        assert read_content(base64.b64encode(data)) == data


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "nothing"),
        (" \n", "nothing"),
        ("0x", "nothing"),
        ("abc", "odd number of hex digits: 3"),
        ("nonsense", "neither hex nor base64"),
        ("captures/morning", "neither hex nor base64"),
        ("00zz", "neither hex nor base64"),
        ("é", "neither hex nor base64"),
        ("AAEAACESpEIAAAAAAAAAAAAAAA=A", "neither hex nor base64"),
    ],
)
def test_text_that_is_nothing(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        read_text(text)


def test_content_that_is_nothing() -> None:
    with pytest.raises(UsageError, match="capture"):
        read_content(b"\x80\xff\xfe")


@given(st.text())
def test_any_text_is_bytes_or_a_complaint(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert read_text(text)


@given(st.binary())
def test_any_content_is_bytes_or_a_complaint(content: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert read_content(content)


def test_what_looks_like_stun() -> None:
    assert looks_like_stun(message())
    assert looks_like_stun(message()[:8])
    assert not looks_like_stun(message()[:7])
    assert not looks_like_stun(message(field=0x8001))
    # RFC 3489: no cookie, two methods, and a length that is true.
    assert looks_like_stun(message(cookie=1))
    assert looks_like_stun(message(cookie=1, field=0x0112))
    assert not looks_like_stun(message(cookie=1) + bytes(4))
    assert not looks_like_stun(message(cookie=1, field=0x0003))
    assert not looks_like_stun(bytes(20))


# --- Attributes ---

# Of every class one value, as text and as JSON.
SHOWN: list[tuple[Attribute, str, dict[str, Any]]] = [
    (
        stun.MappedAddress(CLIENT),
        "192.0.2.1:4000",
        {"address": {"ip": "192.0.2.1", "port": 4000}},
    ),
    (
        stun.XorMappedAddress(CLIENT_IPV6),
        "[2001:db8::1]:4000",
        {"address": {"ip": "2001:db8::1", "port": 4000}},
    ),
    (stun.Username("evtj:h6vY"), "'evtj:h6vY'", {"text": "evtj:h6vY"}),
    (stun.UserHash(bytes(32)), "00" * 32, {"value": "00" * 32}),
    (stun.MessageIntegrity(bytes(20)), "00" * 20, {"value": "00" * 20}),
    (stun.MessageIntegritySha256(b"\xff" * 16), "ff" * 16, {"value": "ff" * 16}),
    (stun.Fingerprint(7), "7", {"value": 7}),
    (
        stun.ErrorCode(401, "Unauthenticated"),
        "code=401 reason='Unauthenticated'",
        {"code": 401, "reason": "Unauthenticated"},
    ),
    (stun.Realm("example.org"), "'example.org'", {"text": "example.org"}),
    (stun.Nonce("\\\x07"), "'\\\\\\x07'", {"text": "\\\x07"}),
    (
        stun.PasswordAlgorithms(
            (
                PasswordAlgorithm(PasswordAlgorithmNumber.SHA_256),
                PasswordAlgorithm(PasswordAlgorithmNumber.MD5, b"\x01"),
            )
        ),
        "algorithm=SHA-256 parameters=(empty), algorithm=MD5 parameters=01",
        {
            "algorithms": [
                {"algorithm": {"name": "SHA-256", "number": 2}, "parameters": ""},
                {"algorithm": {"name": "MD5", "number": 1}, "parameters": "01"},
            ]
        },
    ),
    (
        PasswordAlgorithm(PasswordAlgorithmNumber.MD5),
        "algorithm=MD5 parameters=(empty)",
        {"algorithm": {"name": "MD5", "number": 1}, "parameters": ""},
    ),
    (
        stun.UnknownAttributes((AttributeType.CHANGE_REQUEST, AttributeType.NONCE)),
        "CHANGE-REQUEST, NONCE",
        {"types": [{"name": "CHANGE-REQUEST", "number": 3}, {"name": "NONCE", "number": 21}]},
    ),
    (stun.Software("na\u00efve \u202e"), "'na\u00efve \\u202e'", {"text": "na\u00efve \u202e"}),
    (
        stun.AlternateServer(CLIENT),
        "192.0.2.1:4000",
        {"address": {"ip": "192.0.2.1", "port": 4000}},
    ),
    (stun.AlternateDomain("example.org"), "'example.org'", {"text": "example.org"}),
    (
        stun.ChangeRequest(change_ip=True, change_port=True),
        "change_ip change_port",
        {"change_ip": True, "change_port": True},
    ),
    (stun.ResponseOrigin(CLIENT), "192.0.2.1:4000", {"address": {"ip": "192.0.2.1", "port": 4000}}),
    (stun.OtherAddress(CLIENT), "192.0.2.1:4000", {"address": {"ip": "192.0.2.1", "port": 4000}}),
    (stun.ResponsePort(4000), "4000", {"port": 4000}),
    (stun.Padding(b"\x01\x02"), "0102", {"value": "0102"}),
    (stun.Priority(1), "1", {"value": 1}),
    (stun.UseCandidate(), "", {}),
    (stun.IceControlled(2**64 - 1), "18446744073709551615", {"value": 2**64 - 1}),
    (stun.IceControlling(0), "0", {"value": 0}),
    (stun.ChannelNumber(0x4000), "16384", {"number": 0x4000}),
    (stun.Lifetime(600), "600", {"value": 600}),
    (stun.XorPeerAddress(CLIENT), "192.0.2.1:4000", {"address": {"ip": "192.0.2.1", "port": 4000}}),
    (stun.Data(b"\x1b[2J"), "1b5b324a", {"value": "1b5b324a"}),
    (
        stun.XorRelayedAddress(CLIENT),
        "192.0.2.1:4000",
        {"address": {"ip": "192.0.2.1", "port": 4000}},
    ),
    (
        stun.RequestedAddressFamily(stun.AddressFamily.IPV4),
        "IPV4",
        {"family": {"name": "IPV4", "number": 1}},
    ),
    (stun.EvenPort(), "(none)", {"reserve_next": False}),
    (stun.RequestedTransport(17), "17", {"protocol": 17}),
    (stun.DontFragment(), "", {}),
    (stun.ReservationToken(bytes(8)), "00" * 8, {"value": "00" * 8}),
    (
        stun.AdditionalAddressFamily(stun.AddressFamily.IPV6),
        "IPV6",
        {"family": {"name": "IPV6", "number": 2}},
    ),
    (
        stun.AddressErrorCode(stun.AddressFamily.IPV6, 440, "no"),
        "family=IPV6 code=440 reason='no'",
        {"family": {"name": "IPV6", "number": 2}, "code": 440, "reason": "no"},
    ),
    (
        stun.Icmp(3, 4, 1500),
        "icmp_type=3 code=4 data=1500",
        {"icmp_type": 3, "code": 4, "data": 1500},
    ),
    (RawAttribute(AttributeType(0xFFFF), b"\x01"), "01", {"value": "01"}),
]


def with_attributes(*attributes: Attribute) -> bytes:
    """Return a message, whether or not it may be sent."""
    encoded = [attribute(a.type, a.encode(TRANSACTION_ID)) for a in attributes]
    return message(*encoded, transaction_id=TRANSACTION_ID)


def test_every_class_is_shown_below() -> None:
    assert {shown[0].type for shown in SHOWN} == {*ATTRIBUTES, 0xFFFF}


@pytest.mark.parametrize(
    ("attribute", "text", "value"), SHOWN, ids=lambda value: type(value).__name__
)
def test_each_attribute_in_text_and_json(
    attribute: Attribute, text: str, value: dict[str, Any]
) -> None:
    data = with_attributes(attribute)
    dissected = dissect(data)
    line = as_text(dissected)[1].split("(correct)")[0].rstrip()
    length = len(attribute.encode(TRANSACTION_ID))
    columns = [f"  20  {attribute.type:#06x}", attribute.type.label, str(length), text]
    assert line == "  ".join(filter(None, columns))
    (shown,) = as_json(dissected)["attributes"]
    assert list(shown) == ["offset", "type", "name", "length", "value", "notes"]
    assert shown["value"] == value
    assert json.loads(json.dumps(shown)) == shown


@pytest.mark.parametrize("cls", BY_CLASS, ids=lambda cls: str(cls.__name__))
@given(st.data())
def test_any_value_of_each_attribute_is_read(cls: Any, data: st.DataObject) -> None:
    drawn = data.draw(BY_CLASS[cls])
    dissected = dissect(with_attributes(drawn))
    (found,) = dissected.attributes
    assert found.value == drawn
    assert "malformed" not in found.notes
    check_output(dissected)
    names = [field.name for field in dataclasses.fields(drawn)]  # type: ignore[arg-type]
    assert list(as_json(dissected)["attributes"][0]["value"]) == names


# --- Messages ---


def check_output(dissected: DissectedMessage, captured: CapturedMessage | None = None) -> None:
    """Check what holds for whatever is printed: a terminal and a parser can take it."""
    for line in as_text(dissected, captured):
        assert line.isprintable()
        assert line == line.rstrip()
    shown = as_json(dissected, captured)
    line = json.dumps(shown)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == shown
    keys = ["offset", "class", "method", "transaction_id", "length", "attributes"]
    assert list(shown) == [*keys, "integrity", "error", *(["packet"] if captured else [])]


def check_anything(data: bytes) -> None:
    """Check what holds whatever the bytes are."""
    dissected = dissect(data, Credentials(PASSWORD))
    check_output(dissected)
    shown = as_json(dissected)
    end = 20
    for part in shown["attributes"]:
        # What is shown of the message is there, in order, and without gaps.
        assert part["offset"] == end
        header = struct.pack("!HH", part["type"], part["length"])
        assert data[part["offset"] : part["offset"] + 4] == header
        end += 4 + (part["length"] + 3 & ~3)
    try:
        decoded = Message.decode(data)
    except StunError as error:
        problem = error
    else:
        check_well_formed(dissected, decoded)
        assert shown["error"] is None
        assert end == len(data)
        return
    assert shown["error"] == {"message": str(problem), "offset": problem.offset}
    assert dissected.is_faulty
    assert f"  malformed: {problem}" in as_text(dissected)


def check_well_formed(dissected: DissectedMessage, decoded: Message) -> None:
    """Check that what is shown is what the codec says."""
    assert tuple(part.value for part in dissected.attributes) == decoded.attributes
    assert dissected.message_class == decoded.message_class
    assert dissected.method == decoded.method
    assert dissected.transaction_id == decoded.transaction_id
    assert dissected.length == len(decoded.encode()) - 20


@given(st.binary(max_size=120) | datagrams())
@example(b"")
@example(b"\x00")
@example(REQUEST[:19])
def test_anything_can_be_shown(data: bytes) -> None:
    check_anything(data)


@given(messages())
def test_messages_are_shown_as_they_are(drawn: Message) -> None:
    check_anything(drawn.encode())


@given(messages().map(Message.encode), st.data())
def test_broken_messages_can_be_shown(data: bytes, draw: st.DataObject) -> None:
    broken = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        broken[draw.draw(st.integers(0, len(broken) - 1))] = draw.draw(st.integers(0, 255))
    check_anything(bytes(broken))
    check_anything(data[: draw.draw(st.integers(0, len(data)))])


@given(st.lists(any_attributes(), max_size=6))
def test_attributes_in_any_order_can_be_shown(drawn: list[Attribute]) -> None:
    check_anything(with_attributes(*drawn))


@given(messages())
def test_offsets_and_lengths_take_the_message_apart(drawn: Message) -> None:
    data = drawn.encode()
    shown = as_json(dissect(data))
    assert len(shown["attributes"]) == len(drawn.attributes)
    for part, expected in zip(shown["attributes"], drawn.attributes, strict=True):
        start = part["offset"] + 4
        assert part["type"] == expected.type
        assert part["name"] == expected.type.label
        assert data[start : start + part["length"]] == expected.encode(drawn.transaction_id)


def notes(data: bytes) -> list[tuple[str, ...]]:
    return [part.notes for part in dissect(data).attributes]


def test_what_is_said_of_duplicates_and_of_what_nobody_knows() -> None:
    unknown = RawAttribute(AttributeType(0x7FFF))
    optional = RawAttribute(AttributeType(0xFFFE))
    peer = XorPeerAddress(CLIENT)
    assert notes(with_attributes(Software("a"), unknown, Software("b"), optional, peer, peer)) == [
        (),
        ("comprehension required, unknown",),
        ("duplicate",),
        (),
        (),
        ("duplicate",),
    ]


def test_what_is_said_of_what_is_ignored() -> None:
    first, second = MessageIntegrity(bytes(20)), stun.MessageIntegritySha256(bytes(32))
    unknown = RawAttribute(AttributeType(0x7FFF))
    data = with_attributes(Software("a"), first, Software("b"), first, second, unknown, first)
    assert notes(fingerprinted(data)) == [
        (),
        (),
        ("ignored: behind MESSAGE-INTEGRITY",),
        ("ignored: behind MESSAGE-INTEGRITY",),
        (),
        ("ignored: behind MESSAGE-INTEGRITY-SHA256",),
        ("ignored: behind MESSAGE-INTEGRITY-SHA256",),
        ("correct",),
    ]


def test_attributes_that_are_malformed_are_shown_as_bytes_and_the_rest_is_read() -> None:
    data = message(
        attribute(0x8022, b"good"), attribute(0x0020, bytes(5)), attribute(0x0006, b"\xff")
    )
    dissected = dissect(data + bytes.fromhex("0024 0010 01020304"))
    assert as_text(dissected) == [
        "request BINDING, transaction 000102030405060708090a0b, length 28",
        "  20  0x8022  SOFTWARE            4  'good'",
        "  28  0x0020  XOR-MAPPED-ADDRESS  5  0000000000  (malformed)",
        "  40  0x0006  USERNAME            1  ff  (malformed)",
        "  malformed: the length 28 does not fit 56 bytes (at byte 2)",
        "  bytes 0 to 10: 00 01 [00] 1c 21 12 a4 42 00 01 02",
    ]
    whole = dissect(with_length(dissected.data, 36))
    assert as_text(whole)[4:] == [
        "  48  0x0024  PRIORITY            16  01020304  (cut short: 4 bytes are there)",
        "  malformed: XOR-MAPPED-ADDRESS has 5 bytes instead of 8 or 20 (at byte 32)",
        "  bytes 24 to 40: 67 6f 6f 64 00 20 00 05 [00] 00 00 00 00 00 00 00 00",
    ]
    assert as_json(dissect(data))["attributes"][1]["value"] == {"value": "0000000000"}
    assert as_json(dissect(data))["error"]["offset"] == 32


def test_headers_that_are_malformed() -> None:
    assert as_text(dissect(b"")) == [
        "no STUN message",
        "  malformed: a header has 20 bytes, not 0 (at byte 0)",
    ]
    assert as_text(dissect(message()[:5])) == [
        "request BINDING, length 0",
        "  malformed: a header has 20 bytes, not 5 (at byte 5)",
        "  bytes 0 to 4: 00 01 00 00 21 []",
    ]
    assert as_text(dissect(message(field=0xC001)))[:2] == [
        "no STUN message, transaction 000102030405060708090a0b, length 0",
        "  malformed: the first two bits are not zero (at byte 0)",
    ]
    assert as_json(dissect(b"\xff\xff")) == {
        "offset": 0,
        "class": None,
        "method": None,
        "transaction_id": None,
        "length": None,
        "attributes": [],
        "integrity": None,
        "error": {"message": "a header has 20 bytes, not 2 (at byte 2)", "offset": 2},
    }


def test_the_messages_of_rfc_3489_are_read_though_they_are_refused() -> None:
    data = message(attribute(0x0001, bytes.fromhex("00010fa0c0000201")), cookie=1, field=0x0101)
    assert as_text(dissect(data))[1:3] == [
        "  20  0x0001  MAPPED-ADDRESS  8  192.0.2.1:4000",
        "  malformed: 0x00000001 is not the magic cookie (at byte 4)",
    ]


def test_many_attributes_take_no_time() -> None:
    data = message(*[attribute(kind, b"") for kind in [0x0008, *range(0x8100, 0x8100 + 16000)]])
    assert len(dissect(data).attributes) == 16001
    assert len(as_text(dissect(data))) == 16001 + 3


# --- Integrity ---


@VECTORS
def test_the_integrity_of_rfc_5769(vector: bytes) -> None:
    right = dissect(vector, Credentials(PASSWORD))
    assert (right.integrity, right.is_faulty) == (True, False)
    assert [a.notes for a in right.attributes if a.type == 0x0008] == [("correct",)]
    assert as_json(right)["integrity"] == "correct"
    wrong = dissect(vector, Credentials("guess"))
    assert (wrong.integrity, wrong.is_faulty) == (False, True)
    assert [a.notes for a in wrong.attributes if a.type == 0x0008] == [("wrong",)]
    assert as_json(wrong)["integrity"] == "wrong"
    unknown = dissect(vector)
    assert (unknown.integrity, unknown.is_faulty) == (None, False)


def integrity(message: Message, credentials: Credentials) -> bool | None:
    return dissect(message.encode(), credentials).integrity


def test_long_term_credentials_are_taken_from_the_message() -> None:
    request = Message.request(Username("user"), Realm("realm"), Nonce("nonce"))
    signed = request.with_message_integrity(long_term_key("user", "realm", "pass"))
    assert integrity(signed, Credentials("pass")) is True
    assert integrity(signed, Credentials("pass", "user", "realm")) is True
    assert integrity(signed, Credentials("pass", username="other")) is False
    assert integrity(signed, Credentials("pass", realm="other")) is False
    short = request.with_message_integrity(short_term_key("pass"))
    assert integrity(short, Credentials("pass")) is False


@pytest.mark.parametrize("number", list(PasswordAlgorithmNumber))
@pytest.mark.parametrize("length", [16, 32])
def test_the_message_chooses_the_algorithm(number: PasswordAlgorithmNumber, length: int) -> None:
    key = long_term_key("user", "realm", "pass", number)
    parts: list[Attribute] = [Username("user"), Realm("realm"), PasswordAlgorithm(number)]
    signed = Message.request(*parts).with_message_integrity_sha256(key, length)
    assert integrity(signed, Credentials("pass")) is True
    silent = Message.request(*parts[:2]).with_message_integrity_sha256(key, length)
    assert integrity(silent, Credentials("pass")) is (number == PasswordAlgorithmNumber.MD5)
    # A response does not say it.
    response = signed.success().with_message_integrity(key)
    assert integrity(response, Credentials("pass", "user", "realm")) is True


def test_of_two_integrities_the_better_one_is_checked() -> None:
    signed = (
        Message.request().with_message_integrity(b"other").with_message_integrity_sha256(b"pass")
    )
    found = dissect(signed.encode(), Credentials("pass"))
    assert [part.notes for part in found.attributes] == [(), ("correct",)]


@pytest.mark.parametrize(
    ("parts", "credentials", "why"),
    [
        ([Realm("realm")], Credentials("pass"), "the username is not known"),
        ([], Credentials("pass", username="user"), "the realm is not known"),
        (
            [Username("user"), Realm("realm"), PasswordAlgorithm(PasswordAlgorithmNumber(9))],
            Credentials("pass"),
            "0x0009 is no known password algorithm",
        ),
    ],
)
def test_why_an_integrity_is_not_checked(
    parts: list[Attribute], credentials: Credentials, why: str
) -> None:
    signed = Message.request(*parts).with_message_integrity(b"key")
    found = dissect(signed.encode(), credentials)
    assert found.integrity is None
    assert found.attributes[-1].notes == (f"not checked: {why}",)
    check_output(found)


@given(messages(), st.sampled_from([None, "a", "realm"]), st.sampled_from([None, "user"]))
def test_any_message_can_be_checked(
    drawn: Message, realm: str | None, username: str | None
) -> None:
    found = dissect(drawn.encode(), Credentials("pass", username, realm))
    check_output(found)
    signed = any(a.type in (0x0008, 0x001C) for a in drawn.attributes)
    assert found.integrity is None or signed


@pytest.mark.parametrize("text", ["", "\x00", "\ud800"])
def test_credentials_that_nobody_can_have(text: str) -> None:
    for credentials in ((text,), ("a", text), ("a", "b", text)):
        with pytest.raises(UsageError, match="no credentials"):
            Credentials(*credentials)


# --- Captures ---

SERVER = TransportAddress(IPv4Address("198.51.100.1"), 3478)


def frame(payload: bytes) -> bytes:
    return build_udp_frame(payload, CLIENT, SERVER)


def pcap(*packets: bytes, time: tuple[int, int] = (1_700_000_000, 42)) -> bytes:
    """Return a capture in microseconds, of Ethernet frames."""
    file = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for packet in packets:
        file += struct.pack("<IIII", *time, len(packet), len(packet)) + packet
    return file


ARP = bytes(12) + bytes.fromhex("0806") + bytes(28)
MIXED = pcap(frame(REQUEST), ARP, frame(b"hello"), frame(REQUEST[:40]), ARP)


def test_a_capture() -> None:
    first, arp, other, broken, _ = dissect_capture(MIXED)
    assert (arp, other) == ("not_ip", NOT_STUN)
    assert isinstance(first, CapturedMessage)
    assert isinstance(broken, CapturedMessage)
    assert (first.number, broken.number) == (1, 4)
    check_output(first.message, first)
    packet_line, *lines = as_text(first.message, first)
    assert packet_line == (
        "packet 1, 2023-11-14T22:13:20.000042Z, 192.0.2.1:4000 -> 198.51.100.1:3478, "
        "payload at byte 82"
    )
    assert lines == REQUEST_TEXT.splitlines()
    shown = as_json(first.message, first)
    assert shown["offset"] == 82
    assert MIXED[82:].startswith(REQUEST)
    assert shown["packet"] == {
        "number": 1,
        "time": "2023-11-14T22:13:20.000042Z",
        "source": {"ip": "192.0.2.1", "port": 4000},
        "destination": {"ip": "198.51.100.1", "port": 3478},
    }
    assert broken.message.is_faulty


@pytest.mark.parametrize(
    ("timestamp", "time"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000000Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (1_700_000_000_000_042_000, "2023-11-14T22:13:20.000042Z"),
        (10**40, f"{10**31}.000000 s after 1970-01-01T00:00:00Z"),
        (-(10**25), f"{-(10**16)}.000000 s after 1970-01-01T00:00:00Z"),
    ],
)
def test_times(timestamp: int | None, time: str | None) -> None:
    (found,) = dissect_capture(pcap(frame(REQUEST)))
    assert isinstance(found, CapturedMessage)
    moved = dataclasses.replace(found, timestamp=timestamp)
    check_output(moved.message, moved)
    assert as_json(moved.message, moved)["packet"]["time"] == time
    assert (time or "at an unknown time") in as_text(moved.message, moved)[0]


@given(st.lists(datagrams(), max_size=4), st.data())
def test_any_capture_can_be_shown(payloads: list[bytes], data: st.DataObject) -> None:
    file = pcap(*map(frame, payloads))
    cut = file[: data.draw(st.integers(24, len(file)) | st.just(len(file)))]
    outcomes: list[CapturedMessage | str] = []
    try:
        outcomes.extend(dissect_capture(cut))
    except CaptureError:
        assert cut != file
    for outcome, payload in zip(outcomes, payloads, strict=False):
        assert isinstance(outcome, CapturedMessage) is looks_like_stun(payload)
        if isinstance(outcome, CapturedMessage):
            assert outcome.datagram.payload == payload
            check_output(outcome.message, outcome)
        else:
            assert outcome == NOT_STUN
    if cut == file:
        assert len(outcomes) == len(payloads)


def test_ipv6_in_a_capture() -> None:
    server = TransportAddress(IPv6Address("2001:db8::2"), 3478)
    packet = build_udp_frame(REQUEST, CLIENT_IPV6, server)
    (found,) = dissect_capture(pcap(packet))
    assert isinstance(found, CapturedMessage)
    assert "[2001:db8::1]:4000 -> [2001:db8::2]:3478" in as_text(found.message, found)[0]
    (captured,) = read_capture(pcap(packet))
    assert found.datagram == datagram_of(captured)


# --- The command ---


class Stdin:
    """Standard input with these bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(content))


def refused(capsys: Printed, *arguments: str) -> str:
    """Return the one line that says what is wrong with the arguments."""
    assert main(["decode", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pktstun: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("form", [*hex_forms(REQUEST), *base64_forms(REQUEST)])
def test_a_message_as_an_argument(form: str, capsys: Printed) -> None:
    text = {**hex_forms(REQUEST), **base64_forms(REQUEST)}[form]
    assert main(["decode", text]) == 0
    assert capsys.readouterr() == (REQUEST_TEXT, "")


def test_a_message_in_many_arguments(capsys: Printed) -> None:
    assert main(["decode", *REQUEST.hex(" ").split()]) == 0
    assert capsys.readouterr() == (REQUEST_TEXT, "")


@pytest.mark.parametrize(
    "content",
    [REQUEST, REQUEST.hex().encode(), REQUEST.hex("\n", 2).encode(), base64.encodebytes(REQUEST)],
    ids=["raw", "hex", "lines of hex", "base64"],
)
def test_a_message_in_a_file_and_from_standard_input(
    content: bytes, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "message"
    path.write_bytes(content)
    assert main(["decode", str(path)]) == 0
    assert capsys.readouterr() == (REQUEST_TEXT, "")
    for arguments in ([], ["-"]):
        give(monkeypatch, content)
        assert main(["decode", *arguments]) == 0
        assert capsys.readouterr() == (REQUEST_TEXT, "")


def test_a_file_counts_before_hex(
    tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0001").write_bytes(REQUEST)
    assert main(["decode", "0001"]) == 0
    assert capsys.readouterr() == (REQUEST_TEXT, "")
    assert main(["decode", "0002"]) == 1


def test_a_malformed_message_is_status_1(capsys: Printed) -> None:
    assert main(["decode", REQUEST.hex() + "00"]) == 1
    printed = capsys.readouterr()
    assert "USERNAME" in printed.out
    assert "malformed: the length 88 does not fit 109 bytes (at byte 2)" in printed.out
    assert printed.err == ""


def test_json(capsys: Printed) -> None:
    assert main(["decode", "--json", REQUEST.hex()]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1
    shown = json.loads(printed.out)
    assert shown == as_json(dissect(REQUEST))
    assert shown["class"] == "request"
    assert shown["method"] == "BINDING"


def test_the_password(capsys: Printed) -> None:
    assert main(["decode", "--password", PASSWORD, REQUEST.hex()]) == 0
    assert "71a2  (correct)\n" in capsys.readouterr().out
    assert main(["decode", "--password", "guess", REQUEST.hex()]) == 1
    assert "71a2  (wrong)\n" in capsys.readouterr().out
    signed = Message.request(XorMappedAddress(CLIENT)).success()
    signed = signed.with_message_integrity(long_term_key("user", "realm", "pass"))
    who = ["--password", "pass", "--username", "user", "--realm", "realm"]
    assert main(["decode", *who, signed.encode().hex()]) == 0
    assert "(correct)\n" in capsys.readouterr().out


@pytest.mark.parametrize("in_json", [False, True])
def test_a_capture_from_a_file(in_json: bool, tmp_path: Path, capsys: Printed) -> None:  # noqa: FBT001 - a parameter
    path = tmp_path / "trace.pcap"
    path.write_bytes(MIXED)
    assert main(["decode", str(path), *(["--json"] if in_json else [])]) == 1
    printed = capsys.readouterr()
    assert printed.err == (
        "pktstun: packets 5, STUN 2, malformed 1, skipped 3 (not_ip 2, not_stun 1)\n"
    )
    if in_json:
        numbers = [json.loads(line)["packet"]["number"] for line in printed.out.splitlines()]
        assert numbers == [1, 4]
    else:
        first, second = printed.out.split("\n\n")
        assert first.startswith("packet 1, ")
        assert first.endswith(REQUEST_TEXT.rstrip())
        assert second.startswith("packet 4, ")


def test_a_capture_of_good_messages_is_status_0(
    capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, pcap(frame(REQUEST), ARP))
    assert main(["decode"]) == 0
    assert "packets 2, STUN 1, malformed 0, skipped 1" in capsys.readouterr().err
    give(monkeypatch, pcap(frame(REQUEST)))
    assert main(["decode", "--password", "guess"]) == 1
    give(monkeypatch, base64.b64encode(pcap()))
    capsys.readouterr()
    assert main(["decode"]) == 0
    assert capsys.readouterr() == ("", "pktstun: packets 0, STUN 0, malformed 0, skipped 0\n")


def test_a_capture_that_is_cut(capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, pcap(frame(REQUEST), frame(REQUEST))[:-1])
    assert main(["decode"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("packet ") == 1
    problem, summary = printed.err.splitlines()
    assert problem.startswith("pktstun: the file ends inside a packet")
    assert summary == "pktstun: packets 1, STUN 1, malformed 0, skipped 0"


def test_help_says_what_counts_first(capsys: Printed) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["decode", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for part in ("--json", "--password", "--username", "--realm", "even number of\nhex digits"):
        assert part in printed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nosuch.pcap",), "'nosuch.pcap', which is no file: neither hex nor base64"),
        (("a.pcap", "b.pcap"), "none can be a file: neither hex nor base64"),
        (("",), "nothing in it"),
        (("123",), "odd number of hex digits"),
        (("a\0b",), "neither hex nor base64"),
        (("\udcff\x1b[2J",), "neither hex nor base64"),
        (("z" * 5000,), "the argument, which is no file: "),
        (("0001/0000",), "neither hex nor base64"),
        (("/etc/passwd/x",), "neither hex nor base64"),
        (("--realm", "a", "00"), "--password"),
        (("--username", "a", "00"), "--password"),
        (("--password", "", "00"), "no credentials"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], complaint: str, capsys: Printed) -> None:
    line = refused(capsys, *arguments)
    assert complaint in line
    assert line[:-1].isprintable()


def test_files_that_cannot_be_read(tmp_path: Path, capsys: Printed) -> None:
    assert "Is a directory" in refused(capsys, str(tmp_path))
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\xfd")
    assert "binary': neither a pcap" in refused(capsys, str(path))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot read" in refused(capsys, str(loop))


def test_a_file_without_permission(
    tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads everything, so that the refusal is played."""

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in refused(capsys, str(tmp_path / "secret"))


def test_standard_input_that_cannot_be_read(
    capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, b"")
    assert "standard input: nothing in it" in refused(capsys)
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input: nothing in it" in refused(capsys)

    class Broken(io.RawIOBase):
        @property
        def buffer(self) -> Broken:
            return self

        def read(self, _: int = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdin", Broken())
    assert "cannot read standard input: Input/output error" in refused(capsys)


COMMAND = [sys.executable, "-m", "pktstun", "decode"]


def run(
    *arguments: str, content: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=content,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_text_that_the_terminal_cannot_show(encoding: str) -> None:
    data = with_attributes(Software("\u20ac\x1b\U0001f600\u202e"))
    result = run(content=data, PYTHONIOENCODING=encoding)
    assert result.returncode == 0
    shown = "'\u20ac\\x1b\U0001f600\\u202e'".encode(encoding, "backslashreplace")
    assert shown in result.stdout
    assert result.stderr == b""


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            COMMAND,
            input=pcap(*[frame(REQUEST)] * 200),
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    finally:
        os.close(writing)
    assert result.returncode == 128 + 13
    assert result.stderr == b""


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*COMMAND, REQUEST.hex()], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert result.returncode == 1
    assert result.stderr.count(b"\n") == 1
    assert b"No space left" in result.stderr


def test_without_standard_output() -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, REQUEST.hex()]
    result = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


def test_without_the_compiled_module() -> None:
    program = (
        "import sys; sys.modules['pktstun._native'] = None; sys.modules['cffi'] = None; "
        "from pktstun.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "decode", REQUEST.hex()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, REQUEST_TEXT, "")


@given(
    st.binary(max_size=120)
    | datagrams()
    | st.lists(datagrams(), max_size=3).map(lambda payloads: pcap(*map(frame, payloads)))
)
def test_the_command_takes_anything(content: bytes) -> None:
    """With its own standard streams, since hypothesis and fixtures do not go together."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        give(patch, content)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        status = main(["decode"])
    assert status in (0, 1, 2)
    for line in (out.getvalue() + err.getvalue()).split("\n"):
        assert line.isprintable()
