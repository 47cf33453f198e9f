"""The numbers of STUN: classes, methods, attribute types, and the type field's bit order.

Rules for this module: constants and pure functions on integers, each beside the section
that defines it. Nothing here knows how a message is laid out.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from typing import NamedTuple, Self

from pktstun.errors import StunError

# RFC 8489 section 5
MAGIC_COOKIE = 0x2112A442
HEADER_SIZE = 20
TRANSACTION_ID_SIZE = 12

# RFC 8489 section 18.6
PORT = 3478

# RFC 8489 section 14: from here on, a receiver may ignore types that it does not know.
COMPREHENSION_OPTIONAL = 0x8000


class Class(IntEnum):
    """The class of a message (RFC 8489 section 5)."""

    REQUEST = 0b00
    INDICATION = 0b01
    SUCCESS = 0b10
    ERROR = 0b11


class _OpenEnum(IntEnum):
    """An enumeration of a registry: a number without a name is a printable member too."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int) or not 0 <= value <= cls._limit():
            return None
        member = int.__new__(cls, value)
        member._name_ = f"{cls.__name__.upper()}_{value:#06x}"
        member._value_ = value
        return member

    @classmethod
    def _limit(cls) -> int:
        return 0xFFFF


class Method(_OpenEnum):
    """The method of a message, 12 bits (RFC 8489 section 18.2)."""

    BINDING = 0x001

    @classmethod
    def _limit(cls) -> int:
        return 0xFFF


class AttributeType(_OpenEnum):
    """The type of an attribute, 16 bits (RFC 8489 section 18.3 and the IANA registry).

    Types below 0x8000 are comprehension-required: whoever does not know one must not
    process the message (section 14).
    """

    MAPPED_ADDRESS = 0x0001
    CHANGE_REQUEST = 0x0003  # RFC 5780 section 7.2
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    REALM = 0x0014
    NONCE = 0x0015
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    PRIORITY = 0x0024  # RFC 8445 section 16.1
    USE_CANDIDATE = 0x0025  # RFC 8445 section 16.1
    PADDING = 0x0026  # RFC 5780 section 7.6
    RESPONSE_PORT = 0x0027  # RFC 5780 section 7.5
    PASSWORD_ALGORITHMS = 0x8002
    ALTERNATE_DOMAIN = 0x8003
    SOFTWARE = 0x8022
    ALTERNATE_SERVER = 0x8023
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029  # RFC 8445 section 16.1
    ICE_CONTROLLING = 0x802A  # RFC 8445 section 16.1
    RESPONSE_ORIGIN = 0x802B  # RFC 5780 section 7.3
    OTHER_ADDRESS = 0x802C  # RFC 5780 section 7.4

    @property
    def comprehension_required(self) -> bool:
        """True where a receiver that does not know the type must refuse the message."""
        return self < COMPREHENSION_OPTIONAL


def join_type(method: int, message_class: int) -> int:
    """Return the 14-bit type field of a method (12 bits) and a class (2 bits).

    The class bits C1 and C0 lie between the bits of the method (RFC 8489 section 5):

         0                 1
         2  3  4 5 6 7 8 9 0 1 2 3 4 5
        +--+--+-+-+-+-+-+-+-+-+-+-+-+-+
        |M |M |M|M|M|C|M|M|M|C|M|M|M|M|
        |11|10|9|8|7|1|6|5|4|0|3|2|1|0|
        +--+--+-+-+-+-+-+-+-+-+-+-+-+-+

    Raises:
        ValueError: a number does not fit its bits.
    """
    if not 0 <= method <= 0xFFF or not 0 <= message_class <= 0b11:
        raise ValueError(f"no STUN type has method {method:#x} and class {message_class:#x}")
    return (
        (method & 0xF80) << 2
        | (message_class & 0b10) << 7
        | (method & 0x070) << 1
        | (message_class & 0b01) << 4
        | (method & 0x00F)
    )


def split_type(field: int) -> tuple[int, int]:
    """Return (method, class) of a 14-bit type field: the inverse of `join_type`.

    Raises:
        ValueError: the field does not fit 14 bits.
    """
    if not 0 <= field <= 0x3FFF:
        raise ValueError(f"{field:#x} is no 14-bit type field")
    method = (field & 0x3E00) >> 2 | (field & 0x00E0) >> 1 | (field & 0x000F)
    return method, (field & 0x0100) >> 7 | (field & 0x0010) >> 4


class TransportAddress(NamedTuple):
    """An IP address and a port (RFC 8489 section 4)."""

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"

    @classmethod
    def parse(cls, text: str, default_port: int = PORT) -> Self:
        """Read `192.0.2.1`, `192.0.2.1:3478`, `2001:db8::1` or `[2001:db8::1]:3478`.

        Raises:
            StunError: the text is no address, or the port is not in 0..65535.
        """
        host, port = split_host_port(text, default_port)
        try:
            return cls(ipaddress.ip_address(host), port)
        except ValueError as error:
            raise StunError(f"{text!r} is no IP address with an optional port") from error

    def unmapped(self) -> Self:
        """Return the IPv4 address of an IPv4-mapped IPv6 one (RFC 4291 2.5.5.2), or self."""
        mapped = self.ip.ipv4_mapped if isinstance(self.ip, ipaddress.IPv6Address) else None
        return type(self)(mapped, self.port) if mapped else self


def split_host_port(text: str, default_port: int = PORT) -> tuple[str, int]:
    """Split `HOST`, `HOST:PORT`, `[IPv6]:PORT` or a bare IPv6 address.

    Raises:
        StunError: the brackets do not match, or the port is not in 0..65535.
    """
    host, port = text, str(default_port)
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise StunError(f"{text!r} is not of the form [ADDRESS]:PORT")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    # int() refuses thousands of digits in its own way.
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
        raise StunError(f"{text!r} has no port in 0..65535")
    return host, int(port)
