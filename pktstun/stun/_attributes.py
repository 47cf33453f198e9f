"""The attributes: one frozen value each, and one table from type to codec.

An attribute is a value with a `type` and an `encode(transaction_id)`; its class has
`decode(value, transaction_id)`. The table `CODECS` is the only place that knows which class
belongs to which type: decoding, tests and documentation read it. What is not in the table
is kept as `RawAttribute`, byte for byte, so that nothing is lost on the way through.

Values are checked when they are made: an attribute that exists can be encoded.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

from pktstun.errors import StunError

from ._types import MAGIC_COOKIE, AttributeType, TransportAddress

COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4)

# RFC 8489 section 14.1
FAMILY_IPV4 = 0x01
FAMILY_IPV6 = 0x02

# RFC 8489 section 14.14: characters that may be sent, and bytes that must be understood.
MAX_TEXT_CHARACTERS = 128
MAX_TEXT_RECEIVED = 763


@runtime_checkable
class Attribute(Protocol):
    """What every attribute can do."""

    @property
    def type(self) -> AttributeType:
        """The attribute's type."""

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value without header and padding."""


class _Codec(Protocol):
    def decode(self, value: memoryview, transaction_id: bytes) -> Attribute: ...


@dataclass(frozen=True, slots=True)
class RawAttribute:
    """An attribute whose value is not interpreted."""

    type: AttributeType
    value: bytes = b""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "type", AttributeType(self.type))
        except ValueError as error:
            raise StunError(f"{self.type} is no 16-bit attribute type") from error
        if self.type in CODECS:
            raise StunError(f"{self.type.name} has a class of its own")
        if len(self.value) > 0xFFFF:
            raise StunError(f"{len(self.value)} bytes do not fit an attribute")

    def encode(self, transaction_id: bytes) -> bytes:  # noqa: ARG002 - Attribute's signature
        """Return the value as it is."""
        return self.value


def _check_address(address: TransportAddress) -> None:
    if not 0 <= address.port <= 0xFFFF:
        raise StunError(f"port {address.port} is not in 0..65535")


def _encode_address(address: TransportAddress) -> bytes:
    family = FAMILY_IPV4 if address.ip.version == 4 else FAMILY_IPV6
    return struct.pack("!xBH", family, address.port) + address.ip.packed


def _decode_address(value: bytes | memoryview) -> TransportAddress:
    if len(value) < 4:
        raise StunError(f"an address needs more than {len(value)} bytes")
    family, port = struct.unpack_from("!xBH", value)
    ip = bytes(value[4:])
    if family == FAMILY_IPV4 and len(ip) == 4:
        return TransportAddress(ipaddress.IPv4Address(ip), port)
    if family == FAMILY_IPV6 and len(ip) == 16:
        return TransportAddress(ipaddress.IPv6Address(ip), port)
    raise StunError(f"address family {family:#04x} with {len(ip)} bytes of address")


def _xor_address(value: bytes | memoryview, transaction_id: bytes) -> bytes:
    """XOR port and address with cookie and transaction id; twice is the identity."""
    mask = bytes(2) + COOKIE_BYTES[:2] + COOKIE_BYTES + transaction_id
    return bytes(byte ^ key for byte, key in zip(value, mask, strict=False))


@dataclass(frozen=True, slots=True)
class MappedAddress:
    """MAPPED-ADDRESS (RFC 8489 section 14.1): the client's address, in clear.

     0                   1                   2                   3
    +---------------+---------------+-------------------------------+
    |0 0 0 0 0 0 0 0|    Family     |           Port                |
    +---------------+---------------+-------------------------------+
    |                 Address (32 bits or 128 bits)                 |
    +---------------------------------------------------------------+
    """

    address: TransportAddress
    type: ClassVar[AttributeType] = AttributeType.MAPPED_ADDRESS

    def __post_init__(self) -> None:
        _check_address(self.address)

    def encode(self, transaction_id: bytes) -> bytes:  # noqa: ARG002 - Attribute's signature
        """Return the value."""
        return _encode_address(self.address)

    @classmethod
    def decode(cls, value: memoryview, transaction_id: bytes) -> Self:  # noqa: ARG003
        """Read the value; StunError where family and length disagree."""
        return cls(_decode_address(value))


@dataclass(frozen=True, slots=True)
class XorMappedAddress:
    """XOR-MAPPED-ADDRESS (RFC 8489 section 14.2): the client's address, masked.

    The mask keeps NATs that rewrite addresses in payloads from finding this one.
    """

    address: TransportAddress
    type: ClassVar[AttributeType] = AttributeType.XOR_MAPPED_ADDRESS

    def __post_init__(self) -> None:
        _check_address(self.address)

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return _xor_address(_encode_address(self.address), transaction_id)

    @classmethod
    def decode(cls, value: memoryview, transaction_id: bytes) -> Self:
        """Read the value; StunError where family and length disagree."""
        # The mask is as long as the longest address: a longer value would be cut short.
        if len(value) > 20:
            raise StunError(f"an address of {len(value) - 4} bytes")
        return cls(_decode_address(_xor_address(value, transaction_id)))


def _check_text(text: str, what: str) -> None:
    if len(text) >= MAX_TEXT_CHARACTERS:
        raise StunError(f"{what} has {len(text)} characters; fewer than 128 are allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StunError(f"{what} cannot be encoded as UTF-8") from error


def _decode_text(value: memoryview, what: str) -> str:
    if len(value) > MAX_TEXT_RECEIVED:
        raise StunError(f"{what} of {len(value)} bytes; at most {MAX_TEXT_RECEIVED} are allowed")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise StunError(f"{what} is not UTF-8") from error


@dataclass(frozen=True, slots=True)
class Software:
    """SOFTWARE (RFC 8489 section 14.14): who made the message, as text."""

    text: str
    type: ClassVar[AttributeType] = AttributeType.SOFTWARE

    def __post_init__(self) -> None:
        _check_text(self.text, "SOFTWARE")

    def encode(self, transaction_id: bytes) -> bytes:  # noqa: ARG002 - Attribute's signature
        """Return the value."""
        return self.text.encode()

    @classmethod
    def decode(cls, value: memoryview, transaction_id: bytes) -> Self:  # noqa: ARG003
        """Read the value; StunError where it is too long or not UTF-8."""
        return cls(_decode_text(value, "SOFTWARE"))


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """ERROR-CODE (RFC 8489 section 14.8): 300 to 699, and a phrase that may be empty.

     0                   1                   2                   3
    +-----------------------------------------+-----+---------------+
    |           Reserved, should be 0         |Class|     Number    |
    +-----------------------------------------+-----+---------------+
    |      Reason Phrase (variable)  ...
    +---------------------------------------------------------------+
    """

    code: int
    reason: str = ""
    type: ClassVar[AttributeType] = AttributeType.ERROR_CODE

    def __post_init__(self) -> None:
        if not 300 <= self.code <= 699:
            raise StunError(f"error code {self.code} is not in 300..699")
        _check_text(self.reason, "the reason phrase")

    def encode(self, transaction_id: bytes) -> bytes:  # noqa: ARG002 - Attribute's signature
        """Return the value."""
        return struct.pack("!HBB", 0, *divmod(self.code, 100)) + self.reason.encode()

    @classmethod
    def decode(cls, value: memoryview, transaction_id: bytes) -> Self:  # noqa: ARG003
        """Read the value; StunError where it is too short or the number out of range."""
        if len(value) < 4:
            raise StunError(f"ERROR-CODE has {len(value)} bytes; at least 4 are needed")
        hundreds, number = value[2] & 0b111, value[3]
        if number > 99:
            raise StunError(f"the number {number} of an error code is not in 0..99")
        return cls(hundreds * 100 + number, _decode_text(value[4:], "the reason phrase"))


@dataclass(frozen=True, slots=True)
class UnknownAttributes:
    """UNKNOWN-ATTRIBUTES (RFC 8489 section 14.9): the types that a 420 is about."""

    types: tuple[AttributeType, ...]
    type: ClassVar[AttributeType] = AttributeType.UNKNOWN_ATTRIBUTES

    def __post_init__(self) -> None:
        if len(self.types) > 0xFFFF // 2:
            raise StunError(f"{len(self.types)} types do not fit an attribute")
        try:
            types = tuple(
                kind if isinstance(kind, AttributeType) else AttributeType(kind)
                for kind in self.types
            )
        except ValueError as error:
            raise StunError("an attribute type does not fit 16 bits") from error
        object.__setattr__(self, "types", types)

    def encode(self, transaction_id: bytes) -> bytes:  # noqa: ARG002 - Attribute's signature
        """Return the value."""
        return struct.pack(f"!{len(self.types)}H", *self.types)

    @classmethod
    def decode(cls, value: memoryview, transaction_id: bytes) -> Self:  # noqa: ARG003
        """Read the value; StunError where it is no list of 16-bit numbers."""
        if len(value) % 2:
            raise StunError(f"UNKNOWN-ATTRIBUTES has an odd length of {len(value)}")
        types = struct.unpack(f"!{len(value) // 2}H", value)
        return cls(tuple(AttributeType(kind) for kind in types))


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """FINGERPRINT (RFC 8489 section 14.7): CRC-32 of the message, XOR 0x5354554E.

    Made by `Message.with_fingerprint`, checked by `Message.decode`.
    """

    value: int
    type: ClassVar[AttributeType] = AttributeType.FINGERPRINT

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 0xFFFFFFFF:
            raise StunError(f"{self.value} is no 32-bit fingerprint")

    def encode(self, transaction_id: bytes) -> bytes:  # noqa: ARG002 - Attribute's signature
        """Return the value."""
        return self.value.to_bytes(4)

    @classmethod
    def decode(cls, value: memoryview, transaction_id: bytes) -> Self:  # noqa: ARG003
        """Read the value; StunError where it has not 4 bytes."""
        if len(value) != 4:
            raise StunError(f"FINGERPRINT has {len(value)} bytes instead of 4")
        return cls(int.from_bytes(value))


CODECS: dict[int, _Codec] = {
    codec.type: codec
    for codec in (
        MappedAddress,
        XorMappedAddress,
        Software,
        ErrorCode,
        UnknownAttributes,
        Fingerprint,
    )
}


def decode_attribute(kind: int, value: memoryview, transaction_id: bytes) -> Attribute:
    """Return the attribute of this type and value.

    Raises:
        StunError: the type is known and the value is not valid for it.
    """
    codec = CODECS.get(kind)
    if codec is None:
        return RawAttribute(AttributeType(kind), bytes(value))
    return codec.decode(value, transaction_id)
