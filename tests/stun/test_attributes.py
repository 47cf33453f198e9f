"""Attributes: values that exist can be encoded, bytes that are none are refused."""

from __future__ import annotations

import copy
import hashlib
import pickle
import re
import struct
from dataclasses import FrozenInstanceError
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun import stun
from pktstun.stun import (
    ATTRIBUTES,
    AddressErrorCode,
    AddressFamily,
    AlternateDomain,
    Attribute,
    AttributeType,
    ChannelNumber,
    ErrorCode,
    Fingerprint,
    Icmp,
    MappedAddress,
    Nonce,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    PasswordAlgorithms,
    Priority,
    RawAttribute,
    Realm,
    ResponsePort,
    SecurityFeature,
    Software,
    StunError,
    TransportAddress,
    UnknownAttributes,
    UserHash,
    Username,
    XorMappedAddress,
)
from pktstun.stun._attributes import RULES, build_attribute
from pktstun.stun._wire import wrong_size
from tests.strategies.stun import (
    BY_CLASS,
    INTERPRETED,
    addresses,
    any_attributes,
    attribute_types,
    octets,
    quoted_texts,
    raw_types,
    realms,
    texts,
    transaction_ids,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")  # of the messages in RFC 5769


def decode(kind: int, value: bytes, transaction_id: bytes = ID) -> Attribute:
    """Check a value as `Message.decode` does, and build the attribute."""
    if kind in RULES:
        sizes, check, _ = RULES[kind]
        if len(value) not in sizes:
            raise StunError(wrong_size(kind, len(value), sizes))
        if check is not None:
            check(value)
    return build_attribute(kind, value, transaction_id)


# --- The table ---


def test_the_table_has_the_attributes_of_the_four_rfcs() -> None:
    assert ATTRIBUTES.keys() == INTERPRETED
    assert BY_CLASS.keys() == set(ATTRIBUTES.values())


@pytest.mark.parametrize("kind", sorted(INTERPRETED), ids=lambda kind: AttributeType(kind).name)
def test_a_row_of_the_table(kind: int) -> None:
    """Name, type and section agree, the class is public, and its name is the attribute's."""
    cls: Any = ATTRIBUTES[kind]
    assert cls.type == kind
    assert isinstance(cls.type, AttributeType)
    assert getattr(stun, cls.__name__) is cls
    assert cls.__name__ in stun.__all__
    assert cls.__name__.upper() == cls.type.name.replace("_", "")
    rfc = r"RFC (8489 section 14|5780 section 7|8445 section 7|8656 section 18)\.\d+(\.\d)?"
    assert re.match(rf"{cls.type.label} \({rfc}\): \w[^\n]+\.\n?", cls.__doc__)


def test_the_table_does_not_change() -> None:
    with pytest.raises(TypeError):
        ATTRIBUTES[0x7777] = Software  # type: ignore[index]


# --- All of them ---


@pytest.mark.parametrize("cls", ATTRIBUTES.values(), ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_a_value_is_read_as_it_was_written(cls: Any, data: st.DataObject) -> None:
    attr = data.draw(BY_CLASS[cls])
    transaction_id = data.draw(transaction_ids)
    assert type(attr) is cls
    assert isinstance(attr, Attribute)
    again = decode(attr.type, attr.encode(transaction_id), transaction_id)
    assert again == attr
    assert type(again) is cls
    assert hash(again) == hash(attr)
    assert repr(again) == repr(attr)
    assert again.encode(transaction_id) == attr.encode(transaction_id)


@given(
    attr=any_attributes(),
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
            # Counted from the start of the value; the message knows where that lies.
            assert 0 <= (refusal.offset or 0) <= len(value)
            assert AttributeType(candidate).label in str(refusal)
            continue
        assert decoded.type == candidate
        # Reserved bits are ignored, so that the value may differ, and what it means may not.
        again = decoded.encode(transaction_id)
        assert decode(candidate, again, transaction_id) == decoded


@pytest.mark.parametrize("kind", sorted(INTERPRETED), ids=lambda kind: AttributeType(kind).name)
def test_the_sizes_of_a_value(kind: int) -> None:
    """By the RFCs: what is not listed is refused whatever its content."""
    fixed = {
        (0,): [0x001A, 0x0025],
        (1,): [0x0018],
        (2, 4): [0x0027],
        (4,): [0x0003, 0x000C, 0x000D, 0x0017, 0x0019, 0x0024, 0x8000, 0x8028],
        (8,): [0x0022, 0x8004, 0x8029, 0x802A],
        (8, 20): [0x0001, 0x0012, 0x0016, 0x0020, 0x8023, 0x802B, 0x802C],
        (16, 20, 24, 28, 32): [0x001C],
        (20,): [0x0008],
        (32,): [0x001E],
    }
    ranges = {
        0x0006: range(764),
        0x0014: range(764),
        0x0015: range(764),
        0x8022: range(764),
        0x0009: range(4, 768),
        0x8001: range(4, 768),
        0x8003: range(1, 256),
        0x000A: range(0, 0x10000, 2),
    }
    one = next((sizes for sizes, kinds in fixed.items() if kind in kinds), None)
    allowed = one or ranges.get(kind) or range(0x10000)
    for size in (*range(800), 0xFFFE, 0xFFFF):
        assert (size in ATTRIBUTES[kind].SIZES) == (size in allowed)
        if size not in allowed:
            with pytest.raises(StunError, match=f"{AttributeType(kind).label} has {size} bytes"):
                decode(kind, bytes(size))


@pytest.mark.parametrize(
    ("kind", "size", "text"),
    [
        (0x8028, 3, "FINGERPRINT has 3 bytes instead of 4"),
        (0x0020, 12, "XOR-MAPPED-ADDRESS has 12 bytes instead of 8 or 20"),
        (0x001C, 12, "MESSAGE-INTEGRITY-SHA256 has 12 bytes instead of 16 to 32, a multiple of 4"),
        (0x8022, 764, "SOFTWARE has 764 bytes instead of 0 to 763"),
    ],
)
def test_a_wrong_size_is_told_with_the_right_ones(kind: int, size: int, text: str) -> None:
    with pytest.raises(StunError) as caught:
        decode(kind, bytes(size))
    assert str(caught.value) == text


def test_an_attribute_is_a_value() -> None:
    assert Software("a") == Software("a")
    assert hash(Software("a")) == hash(Software("a"))
    assert Software("a") != Software("b")
    # The same value of another attribute is another value.
    values: list[Attribute] = [Software("a"), Realm("a"), Priority(1), Fingerprint(1)]
    assert len(set(values)) == 4
    assert values[0] != values[1]
    assert values[2] != values[3]


@given(any_attributes())
def test_an_attribute_does_not_change(attr: Attribute) -> None:
    for name in type(attr).__match_args__:  # type: ignore[attr-defined]
        with pytest.raises(FrozenInstanceError):
            setattr(attr, name, getattr(attr, name))
    # Nor does it carry anything else: there may be many.
    assert not hasattr(attr, "__dict__")
    assert copy.deepcopy(attr) == attr
    assert pickle.loads(pickle.dumps(attr)) == attr


# --- RawAttribute ---


@given(raw_types, st.binary(max_size=64))
def test_what_is_not_interpreted_is_kept_byte_for_byte(kind: AttributeType, value: bytes) -> None:
    decoded = decode(kind, value)
    assert decoded == RawAttribute(kind, value)
    assert decoded.encode(ID) == value
    # A copy: the buffer may be overwritten by the next datagram.
    buffer = bytearray(value)
    made = RawAttribute(kind, buffer)  # type: ignore[arg-type]
    buffer[:] = bytes(len(buffer))
    assert made == decoded


def test_a_plain_number_is_a_type() -> None:
    # Types check what is written in Python; numbers also come from elsewhere.
    raw = RawAttribute(0xC057, b"\1")  # type: ignore[arg-type]
    assert raw.type is not None
    assert isinstance(raw.type, AttributeType)
    assert raw == RawAttribute(AttributeType(0xC057), b"\1")


@pytest.mark.parametrize("kind", sorted(INTERPRETED))
def test_a_type_with_a_class_is_not_raw(kind: int) -> None:
    with pytest.raises(StunError, match=f"{AttributeType(kind).label} has a class"):
        RawAttribute(AttributeType(kind))


@pytest.mark.parametrize("kind", [-1, 0x10000])
def test_a_raw_attribute_has_a_16_bit_type(kind: int) -> None:
    with pytest.raises(StunError, match=f"{kind} is no 16-bit"):
        RawAttribute(kind)  # type: ignore[arg-type]


def test_the_longest_raw_attribute() -> None:
    kind = AttributeType(0x7777)
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
    attr = ATTRIBUTES[kind](address)  # type: ignore[operator]
    value = attr.encode(ID)
    assert value[0] == 0
    assert decode(kind, bytes([reserved]) + value[1:]) == attr


@pytest.mark.parametrize("kind", [0x0001, 0x0020])
@given(family=st.integers(0, 0xFF), size=st.sampled_from([4, 16]))
@example(family=1, size=16)
@example(family=2, size=4)
def test_family_and_length_of_an_address_agree(kind: int, family: int, size: int) -> None:
    value = bytes([0, family, 0, 0]) + bytes(size)
    if (family, size) in [(1, 4), (2, 16)]:
        decode(kind, value)
    else:
        with pytest.raises(StunError, match=rf"family 0x{family:02x} with {size} bytes"):
            decode(kind, value)


@pytest.mark.parametrize("cls", [MappedAddress, XorMappedAddress])
@pytest.mark.parametrize("port", [-1, 0x10000])
def test_a_port_has_16_bits(cls: Callable[[TransportAddress], Attribute], port: int) -> None:
    with pytest.raises(StunError, match=f"port {port}"):
        cls(TransportAddress(IPv4Address(0), port))


@pytest.mark.parametrize("cls", [MappedAddress, XorMappedAddress])
def test_addresses_are_of_the_classes_that_decoding_gives(cls: Any) -> None:
    for text in ("192.0.2.1/24", "2001:db8::1/64"):
        interface = ip_interface(text)
        made = cls(TransportAddress(interface, 80))
        assert made == decode(cls.type, made.encode(ID))
        assert type(made.address.ip) is type(interface.ip)
    made = cls((IPv4Address("192.0.2.1"), 80))
    assert made.address.port == 80


def test_flags_are_flags() -> None:
    assert stun.EvenPort(5) == stun.EvenPort(reserve_next=True)  # type: ignore[arg-type]
    assert stun.ChangeRequest(2, 0) == stun.ChangeRequest(change_ip=True)  # type: ignore[arg-type]
    assert stun.ChangeRequest(0, 1).encode(ID) == b"\0\0\0\2"  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [MappedAddress, XorMappedAddress])
def test_a_zone_cannot_be_sent(cls: Callable[[TransportAddress], Attribute]) -> None:
    with pytest.raises(StunError, match="zone of fe80::1%eth0"):
        cls(TransportAddress(IPv6Address("fe80::1%eth0"), 1))


@pytest.mark.parametrize("size", [0, 11, 13])
def test_an_ipv6_address_is_masked_with_a_whole_transaction_id(size: int) -> None:
    attr = XorMappedAddress(TransportAddress(IPv6Address(1), 1))
    with pytest.raises(StunError, match=f"12 bytes, not {size}"):
        attr.encode(bytes(size))


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
def test_received_text_may_be_longer_than_sent_text(read: Callable[[bytes], str]) -> None:
    assert read(b"") == ""
    assert read(127 * "\U0001f600".encode()) == 127 * "\U0001f600"
    # RFC 8489 section 14.14: up to 763 bytes when decoding.
    assert read(763 * b"a") == 763 * "a"
    with pytest.raises(StunError, match=r"76[48] bytes"):
        read(764 * b"a")


def test_a_username_has_fewer_than_509_bytes() -> None:
    # RFC 8489 section 14.3: bytes, and not characters.
    assert Username(508 * "a").encode(ID) == 508 * b"a"
    for long in (509 * "a", 255 * "\u00e9"):
        with pytest.raises(StunError, match=r"USERNAME has 5\d\d bytes"):
            Username(long)
    with pytest.raises(StunError, match="UTF-8"):
        Username("\ud800")
    assert decode(0x0006, 763 * b"a").encode(ID) == 763 * b"a"


@given(realms, quoted_texts)
def test_realm_and_nonce_are_what_may_stand_between_quotes(realm: str, nonce: str) -> None:
    assert Realm(realm).encode(ID) == realm.encode()
    assert Nonce(nonce).encode(ID) == nonce.encode()


@pytest.mark.parametrize("cls", [Username, Realm])
@pytest.mark.parametrize("text", ["", "\0", "a\tb", "a\x7f", "user\0"])
def test_names_that_nobody_has_prepared_are_refused(cls: Any, text: str) -> None:
    with pytest.raises(StunError, match=f"{cls.type.label} is empty or has control"):
        cls(text)
    with pytest.raises(StunError, match="OpaqueString"):
        cls.of(text)
    # Whoever receives one finds out that nobody has that name.
    assert decode(cls.type, text.encode()).encode(ID) == text.encode()


@pytest.mark.parametrize("cls", [Username, Realm])
def test_names_are_prepared(cls: Any) -> None:
    assert cls.of("Jose\u0301") == cls("Jos\u00e9")
    assert cls.of("user name") == cls("user name")


@pytest.mark.parametrize("cls", [Realm, Nonce])
@pytest.mark.parametrize(
    "text", ['"', 'a"b', "\\", "a\\", "\\\\\\", "\n", "\0", "\x7f", "\\\r", "\\\u00e9"]
)
def test_what_would_end_the_quotes_is_refused(cls: Any, text: str) -> None:
    with pytest.raises(StunError, match=f"{cls.type.label} (has a quote|is empty or has control)"):
        cls(text)
    # It is read all the same: what it is compared with decides.
    assert decode(cls.type, text.encode()).encode(ID) == text.encode()


@pytest.mark.parametrize(
    "name",
    [
        *("a", "example.org", "EXAMPLE.org.", "xn--bcher-kva.example", "4.example", "a-b"),
        *("a" * 63, ".".join(4 * ["a" * 63])),
    ],
)
def test_an_alternate_domain_is_a_dns_name(name: str) -> None:
    assert AlternateDomain(name).encode(ID) == name.encode()
    assert decode(0x8003, name.encode()) == AlternateDomain(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        ".a",
        "-a",
        "a-",
        "a-.b",
        "b\u00fccher.example",
        "a b",
        "a_b",
        "a" * 64,
        "a\n",
        "a.b..",
        "a." * 128,
    ],
)
def test_what_is_no_dns_name_is_refused(name: str) -> None:
    with pytest.raises(StunError, match="DNS name"):
        AlternateDomain(name)
    with pytest.raises(StunError, match="ALTERNATE-DOMAIN"):
        decode(0x8003, name.encode())


def test_the_features_of_a_nonce() -> None:
    both = SecurityFeature.PASSWORD_ALGORITHMS | SecurityFeature.USERNAME_ANONYMITY
    nonce = Nonce.with_cookie("abc", both)
    assert nonce == Nonce("obMatJos2AAADabc")
    assert nonce.security_features == both
    assert Nonce("abc").security_features is None


def test_a_userhash_is_made_of_a_username_and_a_realm() -> None:
    made = UserHash.of("user", "realm")
    assert made.value == hashlib.sha256(b"user:realm").digest()


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
    with pytest.raises(StunError, match=rf"ERROR-CODE {code} is not in 300\.\.699"):
        ErrorCode(code)


def test_class_and_number_of_a_received_error_code_have_ranges() -> None:
    for hundreds in range(8):
        for number in range(256):
            # The 21 bits in front of them are reserved, and ignored.
            value = bytes([0xFF, 0xFF, 0xF8 | hundreds, number])
            if 3 <= hundreds <= 6 and number <= 99:
                assert decode(0x0009, value) == ErrorCode(100 * hundreds + number)
            else:
                with pytest.raises(StunError, match="ERROR-CODE"):
                    decode(0x0009, value)


def test_the_reason_phrases_of_the_registry() -> None:
    assert ErrorCode.of(420) == ErrorCode(420, "Unknown Attribute")
    assert ErrorCode.of(401) == ErrorCode(401, "Unauthenticated")
    assert ErrorCode.of(599) == ErrorCode(599, "")
    assert {ErrorCode.of(code).code for code in stun.REASON_PHRASES} == set(stun.REASON_PHRASES)


def test_address_error_code_of_rfc_8656_section_18_12() -> None:
    value = b"\2\0\4\x28no"
    assert AddressErrorCode(AddressFamily.IPV6, 440, "no").encode(ID) == value
    assert decode(0x8001, value) == AddressErrorCode(AddressFamily.IPV6, 440, "no")
    # Between family and class all is reserved.
    assert decode(0x8001, b"\2\xff\xfc\x28no") == decode(0x8001, value)
    with pytest.raises(StunError, match="0x03 is no address family"):
        AddressErrorCode(3, 440)  # type: ignore[arg-type]
    with pytest.raises(StunError, match="ADDRESS-ERROR-CODE 299"):
        AddressErrorCode(AddressFamily.IPV4, 299)
    with pytest.raises(StunError, match="ADDRESS-ERROR-CODE"):
        AddressErrorCode(AddressFamily.IPV4, 440, 128 * "a")
    with pytest.raises(StunError, match="ADDRESS-ERROR-CODE is not in") as caught:
        decode(0x8001, b"\1\0\4\x64")
    assert caught.value.offset == 3


# --- UNKNOWN-ATTRIBUTES ---


@given(st.lists(attribute_types, min_size=1, max_size=40))
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


@pytest.mark.parametrize("kind", [-1, 0x10000])
def test_an_unknown_attribute_has_16_bits(kind: int) -> None:
    with pytest.raises(StunError, match="16 bits"):
        UnknownAttributes((kind,))  # type: ignore[arg-type]


def test_unknown_attributes_are_at_least_one() -> None:
    with pytest.raises(StunError, match="at least one type"):
        UnknownAttributes(())
    assert decode(0x000A, b"").encode(ID) == b""


def test_the_longest_list_of_unknown_attributes() -> None:
    kind = AttributeType.PADDING
    assert len(UnknownAttributes((kind,) * 0x7FFF).encode(ID)) == 0xFFFE
    with pytest.raises(StunError, match="32768 types"):
        UnknownAttributes((kind,) * 0x8000)


# --- PASSWORD-ALGORITHM and PASSWORD-ALGORITHMS ---


def test_password_algorithm_of_rfc_8489_section_14_12() -> None:
    sha256 = PasswordAlgorithm(PasswordAlgorithmNumber.SHA_256)
    assert sha256.encode(ID) == b"\0\2\0\0"
    assert decode(0x001D, b"\0\2\0\0") == sha256
    odd = PasswordAlgorithm(0x1234, b"abcde")  # type: ignore[arg-type]
    assert odd.encode(ID) == b"\x12\x34\0\5abcde\0\0\0"
    assert odd.algorithm.name == "PASSWORDALGORITHMNUMBER_0x1234"
    # The padding of the parameters is ignored, and may be left to the attribute's.
    for padding in (b"\0\0\0", b"\xff\xff\xff", b"\0", b""):
        assert decode(0x001D, b"\x12\x34\0\5abcde" + padding) == odd


def test_password_algorithms_of_rfc_8489_section_14_11() -> None:
    made = PasswordAlgorithms(
        [  # type: ignore[arg-type]
            PasswordAlgorithm(PasswordAlgorithmNumber.SHA_256),
            PasswordAlgorithm(PasswordAlgorithmNumber.MD5, b"x"),
            PasswordAlgorithm(PasswordAlgorithmNumber.MD5),
        ]
    )
    value = b"\0\2\0\0" + b"\0\1\0\1x\0\0\0" + b"\0\1\0\0"
    assert made.encode(ID) == value
    assert decode(0x8002, value) == made
    assert hash(decode(0x8002, value)) == hash(made)


@pytest.mark.parametrize("kind", [0x001D, 0x8002])
@pytest.mark.parametrize(
    ("value", "blame"),
    [
        (b"\0", "in the middle"),
        (b"\0\2\0", "in the middle"),
        (b"\0\2\0\1", "less than 1 bytes of parameters"),
        (b"\0\2\0\4abc", "less than 4 bytes of parameters"),
        (b"\0\2\0\0\0\1\0", "in the middle"),
        (b"\0\2\0\0\0\1\xff\xff", "less than 65535 bytes"),
    ],
)
def test_an_algorithm_ends_within_the_value(kind: int, value: bytes, blame: str) -> None:
    with pytest.raises(StunError, match=f"{AttributeType(kind).label} .*{blame}"):
        decode(kind, value)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_password_algorithm_is_one(count: int) -> None:
    with pytest.raises(StunError, match=f"has {count} algorithms instead of 1"):
        decode(0x001D, count * b"\0\2\0\0")


def test_password_algorithms_are_at_least_one_and_fit() -> None:
    with pytest.raises(StunError, match="at least one"):
        PasswordAlgorithms(())
    # Empty is what a receiver gets from a server that has none: not its own fault.
    assert decode(0x8002, b"").encode(ID) == b""
    most = PasswordAlgorithm(PasswordAlgorithmNumber.MD5, bytes(0xFFF8))
    assert len(PasswordAlgorithms((most,)).encode(ID)) == 0xFFFC
    with pytest.raises(StunError, match="65536 bytes of algorithms"):
        PasswordAlgorithms((most, PasswordAlgorithm(PasswordAlgorithmNumber.MD5)))
    with pytest.raises(StunError, match="65529 bytes of parameters"):
        PasswordAlgorithm(PasswordAlgorithmNumber.MD5, bytes(0xFFF9))


@pytest.mark.parametrize("number", [-1, 0x10000])
def test_a_password_algorithm_has_16_bits(number: int) -> None:
    with pytest.raises(StunError, match=f"{number} is no 16-bit"):
        PasswordAlgorithm(number)  # type: ignore[arg-type]


# --- Numbers, flags and bytes ---


@pytest.mark.parametrize(
    ("attr", "value"),
    [
        (Fingerprint(0x01020304), "01020304"),
        (Priority(0x6E0001FF), "6e0001ff"),  # RFC 5769 section 2.1
        (stun.IceControlled(0x932FF9B151263B36), "932ff9b151263b36"),  # likewise
        (stun.IceControlling(1), "0000000000000001"),
        (stun.Lifetime(600), "00000258"),
        (stun.UseCandidate(), ""),
        (stun.DontFragment(), ""),
        (stun.ChangeRequest(), "00000000"),
        (stun.ChangeRequest(change_ip=True), "00000004"),
        (stun.ChangeRequest(change_port=True), "00000002"),
        (ResponsePort(0x1234), "12340000"),
        (ChannelNumber(0x4001), "40010000"),
        (stun.EvenPort(), "00"),
        (stun.EvenPort(reserve_next=True), "80"),
        (stun.RequestedTransport(17), "11000000"),
        (stun.RequestedAddressFamily(AddressFamily.IPV4), "01000000"),
        (stun.AdditionalAddressFamily(AddressFamily.IPV6), "02000000"),
        (stun.ReservationToken(bytes(range(8))), "0001020304050607"),
        (stun.Data(b"abc"), "616263"),
        (stun.Padding(b"\0\0"), "0000"),
        (Icmp(3, 4, 1500), "00000604 000005dc"),
        (Icmp(0x7F, 0x1FF, 0), "0000ffff 00000000"),
    ],
    ids=repr,
)
def test_values_are_laid_out_as_in_the_rfcs(attr: Attribute, value: str) -> None:
    assert attr.encode(ID) == bytes.fromhex(value)
    assert decode(attr.type, bytes.fromhex(value)) == attr


@pytest.mark.parametrize(
    ("kind", "value", "meaning"),
    [
        (0x0003, "fffffff9", stun.ChangeRequest()),
        (0x0003, "fffffffd", stun.ChangeRequest(change_ip=True)),
        (0x0003, "fffffffb", stun.ChangeRequest(change_port=True)),
        (0x0027, "1234ffff", ResponsePort(0x1234)),
        (0x0027, "1234", ResponsePort(0x1234)),
        (0x000C, "4001ffff", ChannelNumber(0x4001)),
        (0x0018, "ff", stun.EvenPort(reserve_next=True)),
        (0x0018, "7f", stun.EvenPort()),
        (0x0019, "11ffffff", stun.RequestedTransport(17)),
        (0x0017, "01ffffff", stun.RequestedAddressFamily(AddressFamily.IPV4)),
        (0x8004, "ffff0604000005dc", Icmp(3, 4, 1500)),
    ],
)
def test_reserved_bits_are_ignored(kind: int, value: str, meaning: Attribute) -> None:
    assert decode(kind, bytes.fromhex(value)) == meaning


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (0x0024, "00000000"),  # PRIORITY 0
        (0x0024, "ffffffff"),
        (0x000C, "3fff0000"),  # a channel number out of range
        (0x0017, "03000000"),  # no family
        (0x8000, "01000000"),  # IPv4 is not additional
        (0x8001, "07000428"),
    ],
)
def test_what_must_not_be_sent_is_read_where_it_can_be_answered(kind: int, value: str) -> None:
    assert decode(kind, bytes.fromhex(value)).encode(ID) == bytes.fromhex(value)


@pytest.mark.parametrize(
    ("make", "blame"),
    [
        (lambda: Fingerprint(-1), "FINGERPRINT is a number of 32 bits, not -1"),
        (lambda: Fingerprint(1 << 32), "32 bits"),
        (lambda: stun.Lifetime(1 << 32), "LIFETIME is a number of 32 bits"),
        (lambda: stun.IceControlled(1 << 64), "64 bits"),
        (lambda: stun.IceControlling(-1), "64 bits"),
        (lambda: Priority(0), r"PRIORITY 0 is not in 1\.\."),
        (lambda: Priority(1 << 31), "PRIORITY 2147483648 is not"),
        (lambda: ChannelNumber(0x3FFF), "0x3fff is not in 0x4000"),
        (lambda: ChannelNumber(0x5000), "0x5000 is not in"),
        (lambda: ResponsePort(-1), "port -1"),
        (lambda: ResponsePort(0x10000), "port 65536"),
        (lambda: stun.RequestedTransport(-1), "-1 is no IP protocol"),
        (lambda: stun.RequestedTransport(256), "256 is no IP protocol"),
        (lambda: stun.RequestedAddressFamily(0), "0x00 is no address family"),  # type: ignore[arg-type]
        (lambda: stun.RequestedAddressFamily(3), "0x03 is no address family"),  # type: ignore[arg-type]
        (lambda: stun.AdditionalAddressFamily(AddressFamily.IPV4), "only be IPv6"),
        (lambda: stun.AdditionalAddressFamily(3), "0x03 is no address family"),  # type: ignore[arg-type]
        (lambda: stun.ReservationToken(bytes(7)), "7 bytes instead of 8"),
        (lambda: stun.ReservationToken(bytes(9)), "9 bytes instead of 8"),
        (lambda: stun.Data(bytes(0x10000)), "DATA has 65536 bytes"),
        (lambda: UserHash(bytes(31)), "USERHASH has 31 bytes instead of 32"),
        (lambda: stun.MessageIntegrity(bytes(19)), "MESSAGE-INTEGRITY has 19 bytes instead of 20"),
        (lambda: stun.MessageIntegritySha256(bytes(36)), "36 bytes instead of 16 to 32"),
        (lambda: Icmp(-1, 0), "type -1"),
        (lambda: Icmp(0x80, 0), "type 128"),
        (lambda: Icmp(0, -1), "code -1"),
        (lambda: Icmp(0, 0x200), "code 512"),
        (lambda: Icmp(0, 0, -1), "data -1"),
        (lambda: Icmp(0, 0, 1 << 32), "data 4294967296"),
    ],
)
def test_what_must_not_be_sent_is_not_made(make: Callable[[], Attribute], blame: str) -> None:
    with pytest.raises(StunError, match=blame):
        make()


def test_the_extremes_are_made() -> None:
    for attr in (
        Priority(1),
        Priority((1 << 31) - 1),
        ChannelNumber(0x4000),
        ChannelNumber(0x4FFF),
        ResponsePort(0),
        ResponsePort(0xFFFF),
        stun.RequestedTransport(0),
        stun.RequestedTransport(255),
        Icmp(0, 0, 0),
        Icmp(0x7F, 0x1FF, 0xFFFFFFFF),
        stun.Data(bytes(0xFFFF)),
    ):
        assert decode(attr.type, attr.encode(ID)) == attr


@given(octets(8))
def test_bytes_are_copied(value: bytes) -> None:
    buffer = bytearray(value)
    made = stun.ReservationToken(buffer)  # type: ignore[arg-type]
    buffer[:] = bytes(8)
    assert made == stun.ReservationToken(value)
    with pytest.raises(TypeError):
        stun.ReservationToken(8)  # type: ignore[arg-type]


def test_plain_numbers_are_families() -> None:
    made = stun.RequestedAddressFamily(2)  # type: ignore[arg-type]
    assert made.family is AddressFamily.IPV6
