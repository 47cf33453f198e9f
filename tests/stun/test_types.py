"""The numbers of STUN: the type field's bits, open enumerations, transport addresses."""

from __future__ import annotations

import copy
import pickle
import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.stun import (
    HEADER_SIZE,
    MAGIC_COOKIE,
    PORT,
    TRANSACTION_ID_SIZE,
    AttributeType,
    Class,
    Method,
    StunError,
    TransportAddress,
    join_type,
    split_type,
)
from pktstun.stun._types import split_host_port
from tests.strategies.frames import ipv4_addresses, ports, unmapped_addresses
from tests.strategies.stun import addresses

# --- The type field ---


def test_type_field_is_a_bijection() -> None:
    fields = {
        join_type(method, message_class): (method, message_class)
        for method in range(2**12)
        for message_class in range(2**2)
    }
    assert fields.keys() == set(range(2**14))
    assert {field: split_type(field) for field in range(2**14)} == fields


def test_type_field_is_laid_out_as_in_rfc_8489_section_5() -> None:
    for method in range(2**12):
        for message_class in range(2**2):
            # M11..M7, C1, M6..M4, C0, M3..M0
            m, c = f"{method:012b}", f"{message_class:02b}"
            field = int(m[0:5] + c[0] + m[5:8] + c[1] + m[8:12], 2)
            assert join_type(method, message_class) == field


@pytest.mark.parametrize(
    ("message_class", "field"),
    # RFC 8489 section 5 and 18.2, RFC 5389 section 6
    [
        (Class.REQUEST, 0x0001),
        (Class.INDICATION, 0x0011),
        (Class.SUCCESS, 0x0101),
        (Class.ERROR, 0x0111),
    ],
)
def test_type_fields_of_binding(message_class: Class, field: int) -> None:
    assert join_type(Method.BINDING, message_class) == field
    assert split_type(field) == (Method.BINDING, message_class)


@pytest.mark.parametrize(
    ("method", "message_class"), [(-1, 0), (0x1000, 0), (1, -1), (1, 4), (-1, -1)]
)
def test_what_does_not_fit_the_type_field_is_refused(method: int, message_class: int) -> None:
    with pytest.raises(ValueError, match="no STUN type"):
        join_type(method, message_class)


@pytest.mark.parametrize("field", [-1, 0x4000, 0x8000, 0x10000])
def test_what_is_no_type_field_is_not_split(field: int) -> None:
    with pytest.raises(ValueError, match="14-bit"):
        split_type(field)


# --- Constants and registries ---


def test_constants_of_rfc_8489() -> None:
    assert MAGIC_COOKIE == 0x2112A442
    assert (HEADER_SIZE, TRANSACTION_ID_SIZE, PORT) == (20, 12, 3478)


def test_attribute_types_are_those_of_the_iana_registry() -> None:
    registry = {
        "MAPPED_ADDRESS": 0x0001,
        "CHANGE_REQUEST": 0x0003,
        "USERNAME": 0x0006,
        "MESSAGE_INTEGRITY": 0x0008,
        "ERROR_CODE": 0x0009,
        "UNKNOWN_ATTRIBUTES": 0x000A,
        "REALM": 0x0014,
        "NONCE": 0x0015,
        "MESSAGE_INTEGRITY_SHA256": 0x001C,
        "PASSWORD_ALGORITHM": 0x001D,
        "USERHASH": 0x001E,
        "XOR_MAPPED_ADDRESS": 0x0020,
        "PRIORITY": 0x0024,
        "USE_CANDIDATE": 0x0025,
        "PADDING": 0x0026,
        "RESPONSE_PORT": 0x0027,
        "PASSWORD_ALGORITHMS": 0x8002,
        "ALTERNATE_DOMAIN": 0x8003,
        "SOFTWARE": 0x8022,
        "ALTERNATE_SERVER": 0x8023,
        "FINGERPRINT": 0x8028,
        "ICE_CONTROLLED": 0x8029,
        "ICE_CONTROLLING": 0x802A,
        "RESPONSE_ORIGIN": 0x802B,
        "OTHER_ADDRESS": 0x802C,
    }
    # The registry is open: later types do not make this test wrong.
    known = {kind.name: kind.value for kind in AttributeType if kind.name in registry}
    assert known == registry


def test_every_number_of_a_registry_is_a_member_that_is_that_number() -> None:
    for enum, count in ((AttributeType, 0x10000), (Method, 0x1000)):
        for number in range(count):
            member = enum(number)
            assert member == number
            assert hash(member) == hash(number)
            assert member.value == number
            assert str(member) == str(number)
            assert repr(member) == f"<{enum.__name__}.{member.name}: {number}>"


def test_a_number_without_a_name_is_printable() -> None:
    assert AttributeType(0x1234).name == "ATTRIBUTETYPE_0x1234"
    assert AttributeType(0).name == "ATTRIBUTETYPE_0x0000"
    assert Method(0xFFF).name == "METHOD_0x0fff"


def test_a_number_without_a_name_survives_copies() -> None:
    member = AttributeType(0x1234)
    for again in (copy.copy(member), copy.deepcopy(member), pickle.loads(pickle.dumps(member))):
        assert type(again) is AttributeType
        assert again == member
        assert again.name == member.name


@pytest.mark.parametrize(
    ("enum", "value"),
    [
        (AttributeType, -1),
        (AttributeType, 0x10000),
        (AttributeType, "SOFTWARE"),
        (AttributeType, 0.5),
        (AttributeType, None),
        (Method, -1),
        (Method, 0x1000),
        (Class, -1),
        (Class, 4),
    ],
)
def test_what_is_no_number_of_a_registry_is_refused(
    enum: type[AttributeType | Method | Class], value: Any
) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(value))):
        enum(value)


def test_the_lower_half_of_the_attribute_types_is_required() -> None:
    for number in range(0x10000):
        assert AttributeType(number).comprehension_required is (number <= 0x7FFF)


# --- Transport addresses ---


@given(addresses())
def test_an_address_is_read_as_it_is_written(address: TransportAddress) -> None:
    assert TransportAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", TransportAddress(IPv4Address("192.0.2.1"), 3478)),
        ("192.0.2.1:0", TransportAddress(IPv4Address("192.0.2.1"), 0)),
        ("192.0.2.1:65535", TransportAddress(IPv4Address("192.0.2.1"), 65535)),
        ("2001:db8::1", TransportAddress(IPv6Address("2001:db8::1"), 3478)),
        ("[2001:db8::1]", TransportAddress(IPv6Address("2001:db8::1"), 3478)),
        ("[2001:db8::1]:5000", TransportAddress(IPv6Address("2001:db8::1"), 5000)),
        # Two readings, of which the one without a port is meant.
        ("2001:db8::1:5000", TransportAddress(IPv6Address("2001:db8::1:5000"), 3478)),
    ],
)
def test_forms_of_an_address(text: str, expected: TransportAddress) -> None:
    assert TransportAddress.parse(text) == expected


def test_another_default_port() -> None:
    assert TransportAddress.parse("192.0.2.1", 5000).port == 5000
    assert TransportAddress.parse("[::1]", 5000).port == 5000
    assert TransportAddress.parse("192.0.2.1:1", 5000).port == 1
    with pytest.raises(StunError, match="port"):
        TransportAddress.parse("192.0.2.1", 0x10000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":3478",
        "[]",
        "[]:3478",
        "[2001:db8::1",
        "[2001:db8::1]3478",
        "[2001:db8::1]:",
        "2001:db8::1]:3478",
        "192.0.2.1:",
        "192.0.2.1:65536",
        "192.0.2.1:-1",
        "192.0.2.1:+1",
        "192.0.2.1: 1",
        "192.0.2.1:1_0",
        "192.0.2.1:\u0661",  # a digit, and not one of ASCII
        "192.0.2.1:1:2",
        "192.0.2.256",
        "192.0.2",
        "stun.example.org",
        "stun.example.org:3478",
        "192.0.2.1:003478",
        # More digits than int() reads.
        "192.0.2.1:" + "0" * 5000,
        "192.0.2.1:" + "9" * 5000,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(StunError) as caught:
        TransportAddress.parse(text)
    assert repr(text) in str(caught.value)


@given(st.text() | st.text("0123456789abcdef.:[]%"))
@example("[")
def test_any_text_is_an_address_or_a_stun_error(text: str) -> None:
    try:
        address = TransportAddress.parse(text)
    except StunError:
        return
    assert 0 <= address.port <= 0xFFFF


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("stun.example.org", "stun.example.org", 3478),
        ("stun.example.org:19302", "stun.example.org", 19302),
        ("[stun.example.org]:19302", "stun.example.org", 19302),
        ("::1", "::1", 3478),
    ],
)
def test_host_and_port_are_split(text: str, host: str, port: int) -> None:
    assert split_host_port(text) == (host, port)


@given(ipv4_addresses, ports)
def test_a_mapped_address_is_the_ipv4_address(ip: IPv4Address, port: int) -> None:
    ipv4 = TransportAddress(ip, port)
    mapped = TransportAddress(IPv6Address(b"\0" * 10 + b"\xff\xff" + ip.packed), port)
    assert mapped.unmapped() == ipv4
    assert ipv4.unmapped() == ipv4


@given(unmapped_addresses, ports)
def test_another_ipv6_address_stays_what_it_is(ip: IPv6Address, port: int) -> None:
    address = TransportAddress(ip, port)
    assert address.unmapped() == address


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("192.0.2.1", 1), "192.0.2.1:1"),
        (("2001:db8::1", 65535, 0, 0), "[2001:db8::1]:65535"),
        (("fe80::1", 3478, 0, 7), "[fe80::1%7]:3478"),
        (("fe80::1%eth0", 3478, 0, 7), "[fe80::1%eth0]:3478"),
        (("2001:db8::1", 1), "[2001:db8::1]:1"),
    ],
)
def test_addresses_of_sockets(sockaddr: tuple[str, int], text: str) -> None:
    assert str(TransportAddress.from_sockaddr(sockaddr)) == text
    assert TransportAddress.from_sockaddr(sockaddr) == TransportAddress.parse(text)


@pytest.mark.parametrize(
    "sockaddr",
    [
        "",
        (),
        ("192.0.2.1",),
        ("", 1),
        ("example.org", 1),
        ("/run/socket", 1),
        ("192.0.2.1.5", 1),
        ("192.0.2.1", 65536),
        ("192.0.2.1", -1),
        ("192.0.2.1", "x"),
        (0, 0),
        b"\0abstract",
    ],
)
def test_what_is_no_address_of_a_socket(sockaddr: Any) -> None:
    with pytest.raises(StunError):
        TransportAddress.from_sockaddr(sockaddr)


def test_labels_are_the_names_of_the_registries() -> None:
    assert AttributeType.XOR_MAPPED_ADDRESS.label == "XOR-MAPPED-ADDRESS"
    assert Method.CHANNEL_BIND.label == "CHANNEL-BIND"
    assert AttributeType(0x7777).label == "0x7777"
    assert Method(0xFFF).label == "0x0fff"
