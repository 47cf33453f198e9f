"""The attributes, and the one table of them.

Theory of operation: `ATTRIBUTES` maps a type to the class that knows its values. Decoding,
the reference documentation, the tests and `pktstun decode` all come from it, so that an
attribute added to it is everywhere. Most classes are one of the forms of `_forms`; the rest
are spelt out below. What is not in the table is kept as `RawAttribute`, byte for byte: nothing
is lost on the way through.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Self

from pktstun.errors import StunError

from ._credentials import nonce_cookie, opaque_string, security_features, userhash
from ._forms import (
    MAX_TEXT_RECEIVED,
    AddressForm,
    Attribute,
    AttributeClass,
    BytesForm,
    EmptyForm,
    FamilyForm,
    NumberForm,
    TextForm,
    XorAddressForm,
    address_family,
    any_value,
    check_text,
    decode_text,
    encode_text,
    new,
    put,
)
from ._integrity import INTEGRITY_SHA256_SIZES, INTEGRITY_SIZE
from ._types import (
    REASON_PHRASES,
    AddressFamily,
    AttributeType,
    PasswordAlgorithmNumber,
    SecurityFeature,
)
from ._wire import BEHIND, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._wire import Sizes


@dataclass(frozen=True, slots=True)
class RawAttribute:
    """An attribute whose value is not interpreted: any type that `ATTRIBUTES` has not."""

    type: AttributeType
    value: bytes = b""

    def __post_init__(self) -> None:
        try:
            put(self, "type", AttributeType(self.type))
        except ValueError as error:
            raise StunError(f"{self.type} is no 16-bit attribute type") from error
        put(self, "value", bytes(memoryview(self.value)))
        if self.type in ATTRIBUTES:
            raise StunError(f"{self.type.label} has a class of its own")
        if len(self.value) > 0xFFFF:
            raise StunError(f"{len(self.value)} bytes do not fit an attribute")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value as it is."""
        return self.value


# --- RFC 8489: STUN ---


class MappedAddress(AddressForm):
    """MAPPED-ADDRESS (RFC 8489 section 14.1): the client's address, in clear."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.MAPPED_ADDRESS


class XorMappedAddress(XorAddressForm):
    """XOR-MAPPED-ADDRESS (RFC 8489 section 14.2): the client's address, masked."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.XOR_MAPPED_ADDRESS


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _check_prepared(text: str, kind: AttributeType) -> None:
    """Raise StunError where the text cannot have been prepared by OpaqueString."""
    if not text or _CONTROL.search(text):
        raise StunError(f"{kind.label} is empty or has control characters")


class Username(TextForm):
    """USERNAME (RFC 8489 section 14.3): whose password the integrity is made with.

    Fewer than 509 bytes, prepared by the OpaqueString profile: `of` does that. Prepared
    names are not empty and have no control characters.
    """

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.USERNAME

    @classmethod
    def of(cls, username: str) -> Self:
        """Return a username, prepared; StunError: see `opaque_string`."""
        return cls(opaque_string(username))

    def __post_init__(self) -> None:
        _check_prepared(self.text, self.type)
        text = self.text
        size = len(text if text.isascii() else encode_text(text, self.type))
        if size > 508:
            raise StunError(f"USERNAME has {size} bytes; fewer than 509 are allowed")


class UserHash(BytesForm):
    """USERHASH (RFC 8489 section 14.4): USERNAME for those who should not read it."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.USERHASH
    SIZES: ClassVar[Sizes] = (32,)

    @classmethod
    def of(cls, username: str, realm: str) -> Self:
        """Return the hash of a username in a realm; StunError: see `opaque_string`."""
        return cls(userhash(username, realm))


class MessageIntegrity(BytesForm):
    """MESSAGE-INTEGRITY (RFC 8489 section 14.5): HMAC-SHA1 of the message.

    Made by `Message.with_message_integrity`, checked by `Message.check_message_integrity`.
    """

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.MESSAGE_INTEGRITY
    SIZES: ClassVar[Sizes] = (INTEGRITY_SIZE,)


class MessageIntegritySha256(BytesForm):
    """MESSAGE-INTEGRITY-SHA256 (RFC 8489 section 14.6): HMAC-SHA256, perhaps cut short.

    Made by `Message.with_message_integrity_sha256`, checked by
    `Message.check_message_integrity`.
    """

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.MESSAGE_INTEGRITY_SHA256
    SIZES: ClassVar[Sizes] = INTEGRITY_SHA256_SIZES


class Fingerprint(NumberForm):
    """FINGERPRINT (RFC 8489 section 14.7): CRC-32 of the message, XOR 0x5354554E.

    Made by `Message.with_fingerprint`, checked by `Message.decode`.
    """

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.FINGERPRINT


def _check_code(code: int, kind: AttributeType) -> None:
    if not 300 <= code <= 699:
        raise StunError(f"{kind.label} {code} is not in 300..699")


def _decode_code(value: bytes, kind: AttributeType) -> tuple[int, str]:
    """Read class, number and phrase from the third byte on; the bits before are reserved."""
    hundreds, number = value[2] & 0b111, value[3]
    if not 3 <= hundreds <= 6:
        raise StunError(f"the class {hundreds} of {kind.label} is not in 3..6", 2)
    if number > 99:
        raise StunError(f"the number {number} of {kind.label} is not in 0..99", 3)
    try:
        return hundreds * 100 + number, decode_text(value[4:], kind)
    except StunError as error:
        raise StunError(error.problem, 4 + (error.offset or 0)) from error


_ERROR_SIZES = range(4, 4 + MAX_TEXT_RECEIVED + 1)


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """ERROR-CODE (RFC 8489 section 14.8): 300 to 699, and a phrase that may be empty.

    The class is the hundreds of the code, the number is the rest:

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
    SIZES: ClassVar[Sizes] = _ERROR_SIZES

    def __post_init__(self) -> None:
        _check_code(self.code, self.type)
        check_text(self.reason, self.type)

    @classmethod
    def of(cls, code: int) -> Self:
        """Return the error with the reason phrase that IANA's registry recommends."""
        return cls(code, REASON_PHRASES.get(code, ""))

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return struct.pack("!HBB", 0, *divmod(self.code, 100)) + self.reason.encode()

    @classmethod
    def check(cls, value: bytes) -> None:
        """Raise StunError where the code is out of range or the phrase not UTF-8."""
        _decode_code(value, cls.type)

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        code, reason = _decode_code(value, cls.type)
        self = new(cls)
        put(self, "code", code)
        put(self, "reason", reason)
        return self


# RFC 3261 section 25.1: what may stand between quotes. A quote or backslash needs a backslash,
# and so does a control character; what is above ASCII is left to the profile.
_QUOTED = re.compile(r'(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\x00-\x09\x0b\x0c\x0e-\x7f])*')


class _QuotedForm(TextForm):
    __slots__ = ()

    def __post_init__(self) -> None:
        check_text(self.text, self.type)
        if not _QUOTED.fullmatch(self.text):
            raise StunError(
                f"{self.type.label} has a quote, backslash or control character "
                "without a backslash in front of it"
            )


class Realm(_QuotedForm):
    """REALM (RFC 8489 section 14.9): in which realm the username is valid.

    Text as it stands between quotes in SIP (RFC 3261 section 25.1), without the quotes, and
    prepared by the OpaqueString profile: `of` does that. Prepared realms are not empty and
    have no control characters.
    """

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.REALM

    @classmethod
    def of(cls, realm: str) -> Self:
        """Return a realm, prepared; StunError: see `opaque_string`."""
        return cls(opaque_string(realm))

    def __post_init__(self) -> None:
        _check_prepared(self.text, self.type)
        _QuotedForm.__post_init__(self)


class Nonce(_QuotedForm):
    """NONCE (RFC 8489 section 14.10): what the server wants to see again.

    Text as it stands between quotes in SIP (RFC 3261 section 25.1), without the quotes.
    """

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.NONCE

    @classmethod
    def with_cookie(cls, text: str, features: SecurityFeature) -> Self:
        """Return a nonce that says which security features the server has (section 9.2)."""
        return cls(nonce_cookie(features) + text)

    @property
    def security_features(self) -> SecurityFeature | None:
        """The features that the nonce cookie names; None without a cookie."""
        return security_features(self.text)


def _encode_algorithm(algorithm: PasswordAlgorithm) -> bytes:
    parameters = algorithm.parameters
    return (
        struct.pack("!HH", algorithm.algorithm, len(parameters))
        + parameters
        + bytes(-len(parameters) % 4)
    )


def _decode_algorithms(value: bytes, kind: AttributeType) -> list[PasswordAlgorithm]:
    """Read entries that end where the value does; the padding of the last may be missing.

    It is told apart from the attribute's own padding by nothing but the length, and senders
    have counted it in and out.
    """
    found = []
    offset = 0
    while offset < len(value):
        start = offset + 4
        if start > len(value):
            raise StunError(f"{kind.label} ends in the middle of an algorithm", offset)
        number, size = struct.unpack_from("!HH", value, offset)
        if start + size > len(value):
            raise StunError(f"{kind.label} has less than {size} bytes of parameters", offset)
        algorithm = new(PasswordAlgorithm)
        put(algorithm, "algorithm", PasswordAlgorithmNumber(number))
        put(algorithm, "parameters", value[start : start + size])
        found.append(algorithm)
        offset = start + size + -size % 4
    return found


@dataclass(frozen=True, slots=True)
class PasswordAlgorithm:
    """PASSWORD-ALGORITHM (RFC 8489 section 14.12): how the key was made; see `long_term_key`.

    The parameters are padded to a multiple of 4 bytes, which their length does not count:

         0                   1                   2                   3
        +-------------------------------+-------------------------------+
        |          Algorithm            |  Algorithm Parameters Length  |
        +-------------------------------+-------------------------------+
        |      Algorithm Parameters (variable)  ...
        +---------------------------------------------------------------+
    """

    algorithm: PasswordAlgorithmNumber
    parameters: bytes = b""
    type: ClassVar[AttributeType] = AttributeType.PASSWORD_ALGORITHM
    SIZES: ClassVar[Sizes] = range(0x10000)

    def __post_init__(self) -> None:
        try:
            put(self, "algorithm", PasswordAlgorithmNumber(self.algorithm))
        except ValueError as error:
            raise StunError(f"{self.algorithm} is no 16-bit password algorithm") from error
        put(self, "parameters", bytes(memoryview(self.parameters)))
        if len(self.parameters) > 0xFFF8:
            raise StunError(f"{len(self.parameters)} bytes of parameters do not fit an attribute")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return _encode_algorithm(self)

    @classmethod
    def check(cls, value: bytes) -> None:
        """Raise StunError where the value is not exactly one algorithm."""
        found = _decode_algorithms(value, cls.type)
        if len(found) != 1:
            raise StunError(f"{cls.type.label} has {len(found)} algorithms instead of 1")

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> PasswordAlgorithm:
        """Return the attribute of a value that has been checked."""
        return _decode_algorithms(value, cls.type)[0]


@dataclass(frozen=True, slots=True)
class PasswordAlgorithms:
    """PASSWORD-ALGORITHMS (RFC 8489 section 14.11): what the server takes, best first."""

    algorithms: tuple[PasswordAlgorithm, ...]
    type: ClassVar[AttributeType] = AttributeType.PASSWORD_ALGORITHMS
    SIZES: ClassVar[Sizes] = range(0x10000)

    def __post_init__(self) -> None:
        put(self, "algorithms", tuple(self.algorithms))
        if not self.algorithms:
            raise StunError("PASSWORD-ALGORITHMS names at least one algorithm")
        size = sum(map(len, map(_encode_algorithm, self.algorithms)))
        if size > 0xFFFC:
            raise StunError(f"{size} bytes of algorithms do not fit an attribute")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return b"".join(map(_encode_algorithm, self.algorithms))

    @classmethod
    def check(cls, value: bytes) -> None:
        """Raise StunError where the value ends within an algorithm."""
        _decode_algorithms(value, cls.type)

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        self = new(cls)
        put(self, "algorithms", tuple(_decode_algorithms(value, cls.type)))
        return self


@dataclass(frozen=True, slots=True)
class UnknownAttributes:
    """UNKNOWN-ATTRIBUTES (RFC 8489 section 14.13): the types that a 420 is about."""

    types: tuple[AttributeType, ...]
    type: ClassVar[AttributeType] = AttributeType.UNKNOWN_ATTRIBUTES
    SIZES: ClassVar[Sizes] = range(0, 0x10000, 2)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        if not self.types:
            raise StunError("UNKNOWN-ATTRIBUTES names at least one type")
        try:
            put(self, "types", tuple(AttributeType(kind) for kind in self.types))
        except ValueError as error:
            raise StunError("an attribute type does not fit 16 bits") from error
        if len(self.types) > 0xFFFF // 2:
            raise StunError(f"{len(self.types)} types do not fit an attribute")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return struct.pack(f"!{len(self.types)}H", *self.types)

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        types = struct.unpack(f"!{len(value) // 2}H", value)
        self = new(cls)
        put(self, "types", tuple(map(AttributeType, types)))
        return self


class Software(TextForm):
    """SOFTWARE (RFC 8489 section 14.14): who made the message."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.SOFTWARE


class AlternateServer(AddressForm):
    """ALTERNATE-SERVER (RFC 8489 section 14.15): the server to ask instead, with a 300."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.ALTERNATE_SERVER


# RFC 1123 section 2.1
_DOMAIN = re.compile(rb"(?=.{1,255}\Z)(?:(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!\Z)|\.?\Z))+")


class AlternateDomain(TextForm):
    """ALTERNATE-DOMAIN (RFC 8489 section 14.16): the name on the other server's certificate.

    A DNS name of at most 255 ASCII characters; names in other scripts as A-labels (`xn--...`).
    """

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.ALTERNATE_DOMAIN
    SIZES: ClassVar[Sizes] = range(1, 256)

    def __post_init__(self) -> None:
        self.check(encode_text(self.text, self.type))

    @classmethod
    def check(cls, value: bytes) -> None:
        """Raise StunError where the value is no DNS name."""
        if not _DOMAIN.fullmatch(value):
            name = str(value, "latin-1")
            raise StunError(
                f"ALTERNATE-DOMAIN {name!r} is no DNS name of at most 255 ASCII characters"
            )


# --- RFC 5780: NAT behaviour discovery ---


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """CHANGE-REQUEST (RFC 5780 section 7.2): answer from the other address, or port.

    A is `change_ip`, B is `change_port`:

         0                   1                   2                   3
        +---------------------------------------------------------------+
        |0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 A B 0|
        +---------------------------------------------------------------+
    """

    change_ip: bool = False
    change_port: bool = False
    type: ClassVar[AttributeType] = AttributeType.CHANGE_REQUEST
    SIZES: ClassVar[Sizes] = (4,)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        put(self, "change_ip", bool(self.change_ip))
        put(self, "change_port", bool(self.change_port))

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return bytes((0, 0, 0, self.change_ip << 2 | self.change_port << 1))

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        return cls(bool(value[3] & 0b100), bool(value[3] & 0b010))


class ResponseOrigin(AddressForm):
    """RESPONSE-ORIGIN (RFC 5780 section 7.3): where the response was sent from."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.RESPONSE_ORIGIN


class OtherAddress(AddressForm):
    """OTHER-ADDRESS (RFC 5780 section 7.4): where CHANGE-REQUEST would be answered from."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.OTHER_ADDRESS


@dataclass(frozen=True, slots=True)
class ResponsePort:
    """RESPONSE-PORT (RFC 5780 section 7.5): the port to answer to, and 16 bits of padding.

    Some count that padding into the length and some do not; both are read.
    """

    port: int
    type: ClassVar[AttributeType] = AttributeType.RESPONSE_PORT
    SIZES: ClassVar[Sizes] = (2, 4)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 0xFFFF:
            raise StunError(f"port {self.port} is not in 0..65535")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return self.port.to_bytes(2) + b"\0\0"

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        return cls(int.from_bytes(value[:2]))


class Padding(BytesForm):
    """PADDING (RFC 5780 section 7.6): bytes that make a message longer than a packet."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.PADDING


# --- RFC 8445: ICE ---


class Priority(NumberForm):
    """PRIORITY (RFC 8445 section 7.1.1): of the candidate that the check would find."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.PRIORITY

    def __post_init__(self) -> None:
        # RFC 8445 section 5.1.2
        if not 0 < self.value < 1 << 31:
            raise StunError(f"PRIORITY {self.value} is not in 1..2**31-1")


class UseCandidate(EmptyForm):
    """USE-CANDIDATE (RFC 8445 section 7.1.2): this pair it shall be."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.USE_CANDIDATE


class IceControlled(NumberForm):
    """ICE-CONTROLLED (RFC 8445 section 7.1.3): the sender's role, and a tie-breaker."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.ICE_CONTROLLED
    SIZES: ClassVar[tuple[int]] = (8,)


class IceControlling(NumberForm):
    """ICE-CONTROLLING (RFC 8445 section 7.1.3): the sender's role, and a tie-breaker."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.ICE_CONTROLLING
    SIZES: ClassVar[tuple[int]] = (8,)


# --- RFC 8656: TURN ---


@dataclass(frozen=True, slots=True)
class ChannelNumber:
    """CHANNEL-NUMBER (RFC 8656 section 18.1): 0x4000 to 0x4FFF, and 16 reserved bits."""

    number: int
    type: ClassVar[AttributeType] = AttributeType.CHANNEL_NUMBER
    SIZES: ClassVar[Sizes] = (4,)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        # RFC 8656 section 12
        if not 0x4000 <= self.number <= 0x4FFF:
            raise StunError(f"channel number {self.number:#x} is not in 0x4000..0x4fff")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return self.number.to_bytes(2) + b"\0\0"

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        self = new(cls)
        put(self, "number", int.from_bytes(value[:2]))
        return self


class Lifetime(NumberForm):
    """LIFETIME (RFC 8656 section 18.2): how many seconds the server keeps the allocation."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.LIFETIME


class XorPeerAddress(XorAddressForm):
    """XOR-PEER-ADDRESS (RFC 8656 section 18.3): the peer, as the server sees it."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.XOR_PEER_ADDRESS


class Data(BytesForm):
    """DATA (RFC 8656 section 18.4): the payload of a datagram to or from a peer."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.DATA


class XorRelayedAddress(XorAddressForm):
    """XOR-RELAYED-ADDRESS (RFC 8656 section 18.5): what the server has allocated."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.XOR_RELAYED_ADDRESS


class RequestedAddressFamily(FamilyForm):
    """REQUESTED-ADDRESS-FAMILY (RFC 8656 section 18.6): which family to allocate."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.REQUESTED_ADDRESS_FAMILY


@dataclass(frozen=True, slots=True)
class EvenPort:
    """EVEN-PORT (RFC 8656 section 18.7): an even port, and perhaps the next one reserved."""

    reserve_next: bool = False
    type: ClassVar[AttributeType] = AttributeType.EVEN_PORT
    SIZES: ClassVar[Sizes] = (1,)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        put(self, "reserve_next", bool(self.reserve_next))

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return b"\x80" if self.reserve_next else b"\0"

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        return cls(bool(value[0] & 0x80))


@dataclass(frozen=True, slots=True)
class RequestedTransport:
    """REQUESTED-TRANSPORT (RFC 8656 section 18.8): an IP protocol, and 24 reserved bits."""

    protocol: int
    type: ClassVar[AttributeType] = AttributeType.REQUESTED_TRANSPORT
    SIZES: ClassVar[Sizes] = (4,)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        if not 0 <= self.protocol <= 0xFF:
            raise StunError(f"{self.protocol} is no IP protocol; UDP is 17")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return self.protocol.to_bytes(1) + b"\0\0\0"

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        return cls(value[0])


class DontFragment(EmptyForm):
    """DONT-FRAGMENT (RFC 8656 section 18.9): set the DF bit towards the peer."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.DONT_FRAGMENT


class ReservationToken(BytesForm):
    """RESERVATION-TOKEN (RFC 8656 section 18.10): names a port that EVEN-PORT reserved."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.RESERVATION_TOKEN
    SIZES: ClassVar[Sizes] = (8,)


class AdditionalAddressFamily(FamilyForm):
    """ADDITIONAL-ADDRESS-FAMILY (RFC 8656 section 18.11): IPv6 beside IPv4, nothing else."""

    __slots__ = ()
    type: ClassVar[AttributeType] = AttributeType.ADDITIONAL_ADDRESS_FAMILY

    def __post_init__(self) -> None:
        FamilyForm.__post_init__(self)
        if self.family is not AddressFamily.IPV6:
            raise StunError("ADDITIONAL-ADDRESS-FAMILY can only be IPv6")


@dataclass(frozen=True, slots=True)
class AddressErrorCode:
    """ADDRESS-ERROR-CODE (RFC 8656 section 18.12): why one family was not allocated.

    As ERROR-CODE, with the family in front:

         0                   1                   2                   3
        +---------------+-------------------------+-----+---------------+
        |    Family     |        Reserved         |Class|     Number    |
        +---------------+-------------------------+-----+---------------+
        |      Reason Phrase (variable)  ...
        +---------------------------------------------------------------+
    """

    family: AddressFamily
    code: int
    reason: str = ""
    type: ClassVar[AttributeType] = AttributeType.ADDRESS_ERROR_CODE
    SIZES: ClassVar[Sizes] = _ERROR_SIZES

    def __post_init__(self) -> None:
        put(self, "family", address_family(self.family))
        _check_code(self.code, self.type)
        check_text(self.reason, self.type)

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        hundreds, number = divmod(self.code, 100)
        return struct.pack("!BxBB", self.family, hundreds, number) + self.reason.encode()

    @classmethod
    def check(cls, value: bytes) -> None:
        """Raise StunError where the code is out of range or the phrase not UTF-8."""
        _decode_code(value, cls.type)

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        code, reason = _decode_code(value, cls.type)
        self = new(cls)
        put(self, "family", AddressFamily(value[0]))
        put(self, "code", code)
        put(self, "reason", reason)
        return self


@dataclass(frozen=True, slots=True)
class Icmp:
    """ICMP (RFC 8656 section 18.13): what came back for a datagram to the peer.

         0                   1                   2                   3
        +-------------------------------+-------------+-----------------+
        |           Reserved            |  ICMP Type  |    ICMP Code    |
        +-------------------------------+-------------+-----------------+
        |                          Error Data                           |
        +---------------------------------------------------------------+

    The RFC draws 7 bits of type and 9 of code, and so does this class.
    """

    icmp_type: int
    code: int
    data: int = 0
    """With "packet too big", the MTU of the next hop; else 0."""
    type: ClassVar[AttributeType] = AttributeType.ICMP
    SIZES: ClassVar[Sizes] = (8,)
    check = staticmethod(any_value)

    def __post_init__(self) -> None:
        if not 0 <= self.icmp_type <= 0x7F:
            raise StunError(f"ICMP type {self.icmp_type} does not fit 7 bits")
        if not 0 <= self.code <= 0x1FF:
            raise StunError(f"ICMP code {self.code} does not fit 9 bits")
        if not 0 <= self.data <= 0xFFFFFFFF:
            raise StunError(f"ICMP error data {self.data} does not fit 32 bits")

    def encode(self, transaction_id: bytes) -> bytes:
        """Return the value."""
        return struct.pack("!2xHI", self.icmp_type << 9 | self.code, self.data)

    @classmethod
    def build(cls, value: bytes, transaction_id: bytes) -> Self:
        """Return the attribute of a value that has been checked."""
        both, data = struct.unpack("!2xHI", value)
        return cls(both >> 9, both & 0x1FF, data)


# --- The table ---

_CLASSES: tuple[AttributeClass, ...] = (
    MappedAddress,
    XorMappedAddress,
    Username,
    UserHash,
    MessageIntegrity,
    MessageIntegritySha256,
    Fingerprint,
    ErrorCode,
    Realm,
    Nonce,
    PasswordAlgorithms,
    PasswordAlgorithm,
    UnknownAttributes,
    Software,
    AlternateServer,
    AlternateDomain,
    ChangeRequest,
    ResponseOrigin,
    OtherAddress,
    ResponsePort,
    Padding,
    Priority,
    UseCandidate,
    IceControlled,
    IceControlling,
    ChannelNumber,
    Lifetime,
    XorPeerAddress,
    Data,
    XorRelayedAddress,
    RequestedAddressFamily,
    EvenPort,
    RequestedTransport,
    DontFragment,
    ReservationToken,
    AdditionalAddressFamily,
    AddressErrorCode,
    Icmp,
)

ATTRIBUTES: Mapping[int, AttributeClass] = MappingProxyType(
    {attribute.type: attribute for attribute in _CLASSES}
)
"""Type to class, of every attribute that the codec can read and write."""

RULES: dict[int, Rule] = {
    int(kind): (cls.SIZES, None if cls.check is any_value else cls.check, None)
    for kind, cls in ATTRIBUTES.items()
}
"""Type to what a value has to be, for `walk_attributes`."""

for _kind in AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.MESSAGE_INTEGRITY:
    # The inner one first: it is among what is behind the outer one.
    RULES[_kind] = (*RULES[_kind][:2], {kind: RULES[kind] for kind in BEHIND[_kind]})

_BUILDERS = {int(kind): cls.build for kind, cls in ATTRIBUTES.items()}


def build_attribute(kind: int, value: bytes, transaction_id: bytes) -> Attribute:
    """Return the attribute of this type and of a value that has been checked."""
    builder = _BUILDERS.get(kind)
    if builder is not None:
        return builder(value, transaction_id)
    return _raw(kind, value)


def build_if_valid(kind: int, value: bytes, transaction_id: bytes) -> Attribute:
    """Return the attribute of this type and of a value that may be none: raw, then."""
    attribute = ATTRIBUTES.get(kind)
    if attribute is not None:
        valid = len(value) in attribute.SIZES
        try:
            if valid:
                attribute.check(value)
        except StunError:
            valid = False
        if not valid:
            return _raw(kind, value)
    return build_attribute(kind, value, transaction_id)


def _raw(kind: int, value: bytes) -> RawAttribute:
    self = new(RawAttribute)
    put(self, "type", AttributeType(kind))
    put(self, "value", value)
    return self
