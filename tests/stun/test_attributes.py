"""Attributes: values that exist can be encoded, bytes that are none are refused."""

from __future__ import annotations

import struct
from dataclasses import FrozenInstanceError
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.stun import (
    Attribute,
    AttributeType,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    RawAttribute,
    Software,
    StunError,
    TransportAddress,
    UnknownAttributes,
    XorMappedAddress,
)
from pktstun.stun._attributes import CODECS, decode_attribute
from tests.strategies.stun import (
    INTERPRETED,
    addresses,
    attribute_types,
    attributes,
    raw_types,
    texts,
    transaction_ids,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")  # of the messages in RFC 5769


def decode(kind: int, value: bytes, transaction_id: bytes = ID) -> Attribute:
    return decode_attribute(kind, memoryview(value), transaction_id)


# --- All of them ---


@given(attributes() | st.builds(Fingerprint, st.integers(0, 0xFFFFFFFF)), transaction_ids)
def test_an_attribute_is_decoded_as_it_was_encoded(attr: Attribute, transaction_id: bytes) -> None:
    assert decode(attr.type, attr.encode(transaction_id), transaction_id) == attr
    assert isinstance(attr, Attribute)
    assert isinstance(attr.type, AttributeType)


@given(
    attr=attributes(),
    kind=st.sampled_from(sorted(INTERPRETED)),
    transaction_id=transaction_ids,
    data=st.data(),
)
def test_any_value_is_an_attribute_or_a_stun_error(
    attr: Attribute, kind: int, transaction_id: bytes, data: st.DataObject
) -> None:
    """Mutants of a value of the same type, values of other types, and noise."""
    value = attr.encode(transaction_id)
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(value))] * 2)))
    value = value[:start] + data.draw(st.binary(max_size=4)) + value[end:]
    for candidate in (attr.type, kind):
        try:
            decoded = decode(candidate, value, transaction_id)
        except StunError as error:
            refusal = error
            # The message knows where the value lies; the value does not.
            assert refusal.offset is None
            continue
        assert decoded.type == candidate
        # Reserved bits are ignored, so that the value may differ, and what it means may not.
        again = decoded.encode(transaction_id)
        assert len(again) == len(value)
        assert decode(candidate, again, transaction_id) == decoded


def test_the_table_has_the_types_that_have_a_class() -> None:
    assert CODECS.keys() == INTERPRETED
    classes: dict[int, object] = {
        0x0001: MappedAddress,
        0x0009: ErrorCode,
        0x000A: UnknownAttributes,
        0x0020: XorMappedAddress,
        0x8022: Software,
        0x8028: Fingerprint,
    }
    assert all(CODECS[kind] is cls for kind, cls in classes.items())


def test_an_attribute_is_a_value() -> None:
    assert Software("a") == Software("a")
    assert hash(Software("a")) == hash(Software("a"))
    assert Software("a") != Software("b")


@given(attributes() | st.builds(Fingerprint, st.integers(0, 0xFFFFFFFF)))
def test_an_attribute_does_not_change(attr: Attribute) -> None:
    for name in type(attr).__match_args__:  # type: ignore[attr-defined]
        with pytest.raises(FrozenInstanceError):
            setattr(attr, name, getattr(attr, name))
    # Nor does it carry anything else: there may be many.
    assert not hasattr(attr, "__dict__")


# --- RawAttribute ---


@given(raw_types, st.binary(max_size=64))
def test_what_is_not_interpreted_is_kept_byte_for_byte(kind: AttributeType, value: bytes) -> None:
    decoded = decode(kind, value)
    assert decoded == RawAttribute(kind, value)
    assert decoded.encode(ID) == value
    # A copy: the buffer may be overwritten by the next datagram.
    buffer = bytearray(value)
    decoded = decode_attribute(kind, memoryview(buffer), ID)
    buffer[:] = bytes(len(buffer))
    assert decoded == RawAttribute(kind, value)


def test_a_plain_number_is_a_type() -> None:
    # Types check what is written in Python; numbers also come from elsewhere.
    raw = RawAttribute(0xC057, b"\1")  # type: ignore[arg-type]
    assert raw.type is not None
    assert isinstance(raw.type, AttributeType)
    assert raw == RawAttribute(AttributeType(0xC057), b"\1")


@pytest.mark.parametrize("kind", sorted(INTERPRETED))
def test_a_type_with_a_class_is_not_raw(kind: int) -> None:
    with pytest.raises(StunError, match=f"{AttributeType(kind).name} has a class"):
        RawAttribute(AttributeType(kind))


@pytest.mark.parametrize("kind", [-1, 0x10000])
def test_a_raw_attribute_has_a_16_bit_type(kind: int) -> None:
    with pytest.raises(StunError, match=f"{kind} is no 16-bit"):
        RawAttribute(kind)  # type: ignore[arg-type]


def test_the_longest_raw_attribute() -> None:
    kind = AttributeType.PADDING
    assert RawAttribute(kind, bytes(0xFFFF)).encode(ID) == bytes(0xFFFF)
    with pytest.raises(StunError, match="65536 bytes"):
        RawAttribute(kind, bytes(0x10000))


# --- Addresses ---


@given(addresses(), transaction_ids)
def test_mapped_address_is_laid_out_as_in_rfc_8489_section_14_1(
    address: TransportAddress, transaction_id: bytes
) -> None:
    family = {4: b"\0\1", 6: b"\0\2"}[address.ip.version]
    expected = family + struct.pack("!H", address.port) + address.ip.packed
    assert MappedAddress(address).encode(transaction_id) == expected


@given(addresses(), transaction_ids)
def test_xor_mapped_address_is_the_arithmetic_of_rfc_8489_section_14_2(
    address: TransportAddress, transaction_id: bytes
) -> None:
    cookie = 0x2112A442
    port = address.port ^ (cookie >> 16)
    if address.ip.version == 4:
        number = int(address.ip) ^ cookie
        expected = b"\0\1" + port.to_bytes(2, "big") + number.to_bytes(4, "big")
    else:
        number = int(address.ip) ^ (cookie << 96 | int.from_bytes(transaction_id, "big"))
        expected = b"\0\2" + port.to_bytes(2, "big") + number.to_bytes(16, "big")
    assert XorMappedAddress(address).encode(transaction_id) == expected


@given(addresses(), transaction_ids)
def test_xor_is_its_own_inverse(address: TransportAddress, transaction_id: bytes) -> None:
    masked = XorMappedAddress(address).encode(transaction_id)
    # Read as if it were in clear, and masked again: in clear it is.
    read = decode(0x0001, masked, transaction_id)
    assert isinstance(read, MappedAddress)
    twice = XorMappedAddress(read.address).encode(transaction_id)
    assert twice == MappedAddress(address).encode(transaction_id)


@pytest.mark.parametrize(
    ("ip", "value"),
    [
        # RFC 5769 section 2.2 and 2.3
        (IPv4Address("192.0.2.1"), "0001 a147 e112a643"),
        (
            IPv6Address("2001:db8:1234:5678:11:2233:4455:6677"),
            "0002 a147 0113a9faa5d3f179bc25f4b5bed2b9d9",
        ),
    ],
)
def test_xor_mapped_addresses_of_rfc_5769(ip: IPv4Address | IPv6Address, value: str) -> None:
    attr = XorMappedAddress(TransportAddress(ip, 32853))
    assert attr.encode(ID) == bytes.fromhex(value)
    assert decode(0x0020, bytes.fromhex(value)) == attr


@pytest.mark.parametrize("kind", [0x0001, 0x0020])
@given(address=addresses(), reserved=st.integers(0, 0xFF))
def test_the_first_byte_of_an_address_is_ignored(
    kind: int, address: TransportAddress, reserved: int
) -> None:
    # RFC 8489 section 14.1: "MUST be set to 0 and MUST be ignored by receivers".
    attr = CODECS[kind](address)  # type: ignore[operator]
    value = attr.encode(ID)
    assert value[0] == 0
    assert decode(kind, bytes([reserved]) + value[1:]) == attr


@pytest.mark.parametrize("kind", [0x0001, 0x0020])
@given(family=st.integers(0, 0xFF), size=st.integers(0, 40))
@example(family=1, size=16)
@example(family=2, size=4)
@example(family=1, size=20)
@example(family=2, size=20)
def test_family_and_length_of_an_address_agree(kind: int, family: int, size: int) -> None:
    value = bytes([0, family, 0, 0]) + bytes(size)
    if (family, size) in [(1, 4), (2, 16)]:
        decode(kind, value)
    else:
        with pytest.raises(StunError, match=rf"family 0x{family:02x} with|of {size} bytes$"):
            decode(kind, value)


@pytest.mark.parametrize("kind", [0x0001, 0x0020])
@pytest.mark.parametrize("size", range(4))
def test_an_address_needs_family_and_port(kind: int, size: int) -> None:
    with pytest.raises(StunError, match=f"more than {size} bytes"):
        decode(kind, bytes(size))


@pytest.mark.parametrize("cls", [MappedAddress, XorMappedAddress])
@pytest.mark.parametrize("port", [-1, 0x10000])
def test_a_port_has_16_bits(cls: Callable[[TransportAddress], Attribute], port: int) -> None:
    with pytest.raises(StunError, match=f"port {port}"):
        cls(TransportAddress(IPv4Address(0), port))


# --- Text ---


def software(text: str) -> bytes:
    return Software(text).encode(ID)


def reason(text: str) -> bytes:
    return ErrorCode(400, text).encode(ID)[4:]


def decode_software(value: bytes) -> str:
    attr = decode(0x8022, value)
    assert isinstance(attr, Software)
    return attr.text


def decode_reason(value: bytes) -> str:
    attr = decode(0x0009, b"\0\0\4\0" + value)
    assert isinstance(attr, ErrorCode)
    return attr.reason


encoders = pytest.mark.parametrize("encode", [software, reason])
decoders = pytest.mark.parametrize("read", [decode_software, decode_reason])


@encoders
@given(text=texts)
@example(text="")
def test_text_is_utf8(encode: Callable[[str], bytes], text: str) -> None:
    assert encode(text) == text.encode("utf-8")


@encoders
@pytest.mark.parametrize("character", ["a", "\u00e9", "\u20ac", "\U0001f600"])
def test_text_has_fewer_than_128_characters(encode: Callable[[str], bytes], character: str) -> None:
    # RFC 8489 section 14.14: 127 characters are at most 508 bytes.
    assert len(encode(127 * character)) <= 509
    with pytest.raises(StunError, match="128 characters"):
        encode(128 * character)


@encoders
def test_text_that_utf8_cannot_express_is_refused(encode: Callable[[str], bytes]) -> None:
    with pytest.raises(StunError, match="UTF-8"):
        encode("\ud800")


@decoders
@pytest.mark.parametrize(
    "value",
    [
        b"\xff",
        b"a\x80",
        b"\xc3",  # cut short
        b"\xc0\x80",  # overlong
        b"\xed\xa0\x80",  # a surrogate
        b"\xf4\x90\x80\x80",  # beyond Unicode
    ],
)
def test_bytes_that_are_not_utf8_are_refused(read: Callable[[bytes], str], value: bytes) -> None:
    with pytest.raises(StunError, match="not UTF-8"):
        read(value)


@decoders
def test_received_text_has_its_limits_too(read: Callable[[bytes], str]) -> None:
    assert read(b"") == ""
    assert read(127 * b"a") == 127 * "a"
    assert read(127 * "\U0001f600".encode()) == 127 * "\U0001f600"
    with pytest.raises(StunError, match="128 characters"):
        read(128 * b"a")
    with pytest.raises(StunError, match="763 characters"):
        read(763 * b"a")
    # RFC 8489 section 14.14: up to 763 bytes when decoding; more is not even looked at.
    with pytest.raises(StunError, match="764 bytes"):
        read(764 * b"\xff")


# --- ERROR-CODE ---


def test_every_error_code_is_a_class_and_a_number() -> None:
    for code in range(300, 700):
        value = ErrorCode(code).encode(ID)
        assert value == bytes([0, 0, code // 100, code % 100])
        assert decode(0x0009, value) == ErrorCode(code)


def test_error_code_of_rfc_8489_section_14_8() -> None:
    value = b"\0\0\4\x14Unknown Attribute"
    assert ErrorCode(420, "Unknown Attribute").encode(ID) == value
    assert decode(0x0009, value) == ErrorCode(420, "Unknown Attribute")


@pytest.mark.parametrize("code", [-1, 0, 299, 700, 799, 420420])
def test_an_error_code_is_in_300_to_699(code: int) -> None:
    with pytest.raises(StunError, match=rf"error code {code} is not in 300\.\.699"):
        ErrorCode(code)


def test_class_and_number_of_a_received_error_code_have_ranges() -> None:
    for hundreds in range(8):
        for number in range(256):
            # The 21 bits in front of them are reserved, and ignored.
            value = bytes([0xFF, 0xFF, 0xF8 | hundreds, number])
            if 3 <= hundreds <= 6 and number <= 99:
                assert decode(0x0009, value) == ErrorCode(100 * hundreds + number)
            else:
                with pytest.raises(StunError, match="error code"):
                    decode(0x0009, value)


@pytest.mark.parametrize("size", range(4))
def test_an_error_code_has_at_least_four_bytes(size: int) -> None:
    with pytest.raises(StunError, match=f"ERROR-CODE has {size} bytes"):
        decode(0x0009, b"\0\0\4\0"[:size])


# --- UNKNOWN-ATTRIBUTES ---


@given(st.lists(attribute_types, max_size=40))
def test_unknown_attributes_is_a_list_of_16_bit_numbers(kinds: list[AttributeType]) -> None:
    attr = UnknownAttributes(tuple(kinds))
    value = b"".join(kind.to_bytes(2, "big") for kind in kinds)
    assert attr.encode(ID) == value
    assert decode(0x000A, value) == attr


def test_plain_numbers_are_types() -> None:
    attr = UnknownAttributes([0x0026, 0x7777])  # type: ignore[arg-type]
    assert attr.types == (AttributeType.PADDING, AttributeType(0x7777))
    assert {type(kind) for kind in attr.types} == {AttributeType}
    assert hash(attr) == hash(UnknownAttributes(attr.types))


@pytest.mark.parametrize("size", [1, 3, 33])
def test_an_odd_length_is_no_list_of_types(size: int) -> None:
    with pytest.raises(StunError, match=f"odd length of {size}"):
        decode(0x000A, bytes(size))


@pytest.mark.parametrize("kind", [-1, 0x10000])
def test_an_unknown_attribute_has_16_bits(kind: int) -> None:
    with pytest.raises(StunError, match="16 bits"):
        UnknownAttributes((kind,))  # type: ignore[arg-type]


def test_the_longest_list_of_unknown_attributes() -> None:
    kind = AttributeType.PADDING
    assert len(UnknownAttributes((kind,) * 0x7FFF).encode(ID)) == 0xFFFE
    with pytest.raises(StunError, match="32768 types"):
        UnknownAttributes((kind,) * 0x8000)


# --- FINGERPRINT ---


@given(st.integers(0, 0xFFFFFFFF))
def test_fingerprint_is_a_32_bit_number(number: int) -> None:
    value = struct.pack("!I", number)
    assert Fingerprint(number).encode(ID) == value
    assert decode(0x8028, value) == Fingerprint(number)


@pytest.mark.parametrize("number", [-1, 0x100000000])
def test_a_fingerprint_has_32_bits(number: int) -> None:
    with pytest.raises(StunError, match=f"{number} is no 32-bit"):
        Fingerprint(number)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 8])
def test_a_fingerprint_has_four_bytes(size: int) -> None:
    with pytest.raises(StunError, match=f"{size} bytes instead of 4"):
        decode(0x8028, bytes(size))
