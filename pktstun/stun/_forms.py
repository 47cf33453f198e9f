"""The forms of attribute values: what many attributes have in common.

Theory of operation: an attribute is a frozen value with a `type` and an
`encode(transaction_id)`; its class can read such a value. Most attributes are
one of a few forms (an address, a text, a number), which are written once, here. The class of
an attribute adds its type, its limits, and what it means.

Making a value is strict in what RFC 8489 lets a sender send: an attribute that exists can be
encoded. Decoding refuses what a receiver cannot understand, and takes what it can: reserved
bits are ignored, and a number that the other side should not have sent is kept, since it takes
an answer to say so (a TURN server rejects a CHANNEL-NUMBER out of range with a 400). So values
that come in are built past `__post_init__`.

Decoding has two steps. `SIZES` and `check` say whether bytes are a value of the attribute, and
`build` makes the object of bytes that are. A message checks all its attributes at once and
builds them when somebody looks: most who receive a message read one attribute or two.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Protocol, Self, runtime_checkable

from pktstun.errors import StunError

from ._types import MAGIC_COOKIE, AddressFamily, AttributeType, TransportAddress
from ._wire import Sizes, wrong_size

COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4)
_PORT_MASK = MAGIC_COOKIE >> 16

# RFC 8489 section 14.1
_FAMILY_IPV4 = int(AddressFamily.IPV4)
_FAMILY_IPV6 = int(AddressFamily.IPV6)
_ADDRESS_IPV4 = struct.Struct("!xBHI")
_ADDRESS_IPV6 = struct.Struct("!xBH16s")

# RFC 8489 sections 14.3, 14.8 to 14.10, 14.14: bytes that a receiver must understand.
MAX_TEXT_RECEIVED = 763

_EXACT = (IPv4Address, IPv6Address)

new = object.__new__
put = object.__setattr__


@runtime_checkable
class Attribute(Protocol):
    """What every attribute can do."""

    @property
    def type(self) -> AttributeType:
        """The attribute's type."""

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value without header and padding.

        Args:
            transaction_id: 12 bytes, of the message that the attribute is in.
        """


class AttributeClass(Protocol):
    """What the class of an attribute can do."""

    @property
    def type(self) -> AttributeType:
        """The type of the attributes of this class."""

    @property
    def SIZES(self) -> Sizes:  # noqa: N802 - a constant of the class
        """How many bytes a value may have."""

    def check(self, value: bytes) -> None:
        """Raise StunError unless bytes of a right size are a value of the attribute.

        The error's offset is counted from the start of the value.
        """

    def build(self, value: bytes, transaction_id: bytes) -> Attribute:
        """Return the attribute of a value that has been checked."""


def any_value(value: bytes) -> None:
    """Let every value of a right size pass."""


def _checked(address: TransportAddress) -> TransportAddress:
    """Return an address that may be sent, of the exact classes that decoding gives."""
    ip, port = address
    if not 0 <= port <= 0xFFFF:
        raise StunError(f"port {port} is not in 0..65535")
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        raise StunError(f"the zone of {ip} means nothing to others: send the address without it")
    if type(address) is TransportAddress and type(ip) in _EXACT:
        return address
    exact = IPv4Address(int(ip)) if ip.version == 4 else IPv6Address(int(ip))
    return TransportAddress(exact, port)


@dataclass(frozen=True, slots=True)
class AddressForm:
    """A transport address in clear (RFC 8489 section 14.1).

    The address has 4 bytes for IPv4 and 16 for IPv6:

         0                   1                   2                   3
        +---------------+---------------+-------------------------------+
        |0 0 0 0 0 0 0 0|    Family     |           Port                |
        +---------------+---------------+-------------------------------+
        |                 Address (32 bits or 128 bits)                 |
        +---------------------------------------------------------------+
    """

    address: TransportAddress
    type: ClassVar[AttributeType]
    SIZES: ClassVar[Sizes] = (8, 20)

    def __post_init__(self) -> None:
        put(self, "address", _checked(self.address))

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        ip, port = self.address
        family = _FAMILY_IPV4 if ip.version == 4 else _FAMILY_IPV6
        return struct.pack("!xBH", family, port) + ip.packed

    @classmethod
    def check(cls, value: bytes) -> None:
        """Raise StunError where family and length disagree."""
        if value[1] != (_FAMILY_IPV4 if len(value) == 8 else _FAMILY_IPV6):
            raise StunError(
                f"{cls.type.label} has address family {value[1]:#04x} "
                f"with {len(value) - 4} bytes of address",
                1,
            )

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        ip: IPv4Address | IPv6Address
        if len(value) == 8:
            _, port, number = _ADDRESS_IPV4.unpack(value)
            ip = IPv4Address(number)
        else:
            _, port, packed = _ADDRESS_IPV6.unpack(value)
            ip = IPv6Address(packed)
        self = new(cls)
        put(self, "address", TransportAddress(ip, port))
        return self


class XorAddressForm(AddressForm):
    """A transport address, masked (RFC 8489 section 14.2).

    Port and address are XORed with the magic cookie, an IPv6 address with the transaction id
    behind it, to hide them from NATs that rewrite addresses in payloads.
    """

    __slots__ = ()

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value; StunError where the transaction id has not 12 bytes."""
        ip, port = self.address
        if ip.version == 4:
            number = int(ip) ^ MAGIC_COOKIE
            return _ADDRESS_IPV4.pack(_FAMILY_IPV4, port ^ _PORT_MASK, number)
        masked = int(ip) ^ _mask_ipv6(transaction_id)
        return _ADDRESS_IPV6.pack(_FAMILY_IPV6, port ^ _PORT_MASK, masked.to_bytes(16))

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        ip: IPv4Address | IPv6Address
        if len(value) == 8:
            _, port, number = _ADDRESS_IPV4.unpack(value)
            ip = IPv4Address(number ^ MAGIC_COOKIE)
        else:
            _, port, packed = _ADDRESS_IPV6.unpack(value)
            ip = IPv6Address(int.from_bytes(packed) ^ _mask_ipv6(transaction_id))
        self = new(cls)
        put(self, "address", TransportAddress(ip, port ^ _PORT_MASK))
        return self


def _mask_ipv6(transaction_id: bytes) -> int:
    if len(transaction_id) != 12:
        raise StunError(f"a transaction id has 12 bytes, not {len(transaction_id)}")
    return int.from_bytes(COOKIE_BYTES + transaction_id)


@dataclass(frozen=True, slots=True)
class TextForm:
    """Text in UTF-8: fewer than 128 characters, unless the class has another limit."""

    text: str
    type: ClassVar[AttributeType]
    SIZES: ClassVar[Sizes] = range(MAX_TEXT_RECEIVED + 1)

    def __post_init__(self) -> None:
        if len(self.text) > 127 or not self.text.isascii():
            check_text(self.text, self.type)

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return self.text.encode()

    @classmethod
    def check(cls, value: bytes) -> None:
        """Raise StunError where the value is not UTF-8."""
        if not value.isascii():
            decode_text(value, cls.type)

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        self = new(cls)
        put(self, "text", str(value, "utf-8"))
        return self


def encode_text(text: str, kind: AttributeType) -> bytes:
    """Return text in UTF-8; StunError where it has lone surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StunError(f"the text of {kind.label} cannot be encoded as UTF-8") from error


def check_text(text: str, kind: AttributeType) -> None:
    """Raise StunError unless the text may be sent."""
    if len(text) > 127:
        raise StunError(f"{kind.label} has {len(text)} characters; fewer than 128 are allowed")
    encode_text(text, kind)


def decode_text(value: bytes, kind: AttributeType) -> str:
    """Return text in UTF-8; StunError where it is not, with the offset in the text."""
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise StunError(f"the text of {kind.label} is not UTF-8", error.start) from error


@dataclass(frozen=True, slots=True)
class BytesForm:
    """Bytes that the codec does not look into, of a size that the class may limit."""

    value: bytes
    type: ClassVar[AttributeType]
    SIZES: ClassVar[Sizes] = range(0x10000)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        put(self, "value", bytes(memoryview(self.value)))
        if len(self.value) not in self.SIZES:
            raise StunError(wrong_size(self.type, len(self.value), self.SIZES))

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return self.value

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        self = new(cls)
        put(self, "value", value)
        return self


@dataclass(frozen=True, slots=True)
class NumberForm:
    """An unsigned number that fills the value, most significant byte first."""

    value: int
    type: ClassVar[AttributeType]
    SIZES: ClassVar[tuple[int]] = (4,)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        if self.value < 0 or self.value.bit_length() > 8 * self.SIZES[0]:
            bits = 8 * self.SIZES[0]
            raise StunError(f"{self.type.label} is a number of {bits} bits, not {self.value}")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return self.value.to_bytes(self.SIZES[0])

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        self = new(cls)
        put(self, "value", int.from_bytes(value))
        return self


@dataclass(frozen=True, slots=True)
class EmptyForm:
    """No value: that the attribute is there says it all."""

    type: ClassVar[AttributeType]
    SIZES: ClassVar[Sizes] = (0,)
    check = staticmethod(any_value)

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value, which is empty."""
        return b""

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        return cls()


@dataclass(frozen=True, slots=True)
class FamilyForm:
    """An address family and 24 reserved bits (RFC 8656 sections 18.6 and 18.11)."""

    family: AddressFamily
    type: ClassVar[AttributeType]
    SIZES: ClassVar[Sizes] = (4,)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        put(self, "family", address_family(self.family))

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return self.family.to_bytes(1) + b"\0\0\0"

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        self = new(cls)
        put(self, "family", AddressFamily(value[0]))
        return self


def address_family(number: int) -> AddressFamily:
    """Return one of the families that may be sent; StunError where it is none."""
    if number not in (_FAMILY_IPV4, _FAMILY_IPV6):
        raise StunError(f"{int(number):#04x} is no address family: IPv4 is 0x01, IPv6 is 0x02")
    return AddressFamily(number)
