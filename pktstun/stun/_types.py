"""The numbers of STUN: classes, methods, attribute types, and the type field's bit order.

Rules for this module: constants and pure functions on integers, each beside the section
that defines it. Nothing here knows how a message is laid out.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pktstun.errors import StunError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC_COOKIE = 0x2112A442
"""What tells STUN from other protocols, and masks addresses (RFC 8489 section 5)."""
HEADER_SIZE = 20
"""Bytes in front of the attributes (RFC 8489 section 5)."""
TRANSACTION_ID_SIZE = 12
"""Bytes of a transaction id (RFC 8489 section 5)."""

PORT = 3478
"""Where a STUN server listens, over UDP and TCP (RFC 8489 section 18.6)."""

# RFC 8489 section 14: from here on, a receiver may ignore types that it does not know.
COMPREHENSION_OPTIONAL = 0x8000


def join_type(method: int, message_class: int) -> int:
    """Return the 14-bit type field of a method (12 bits) and a class (2 bits).

    The class bits C1 and C0 lie between the bits of the method (RFC 8489 section 5):

         0                 1
         2  3  4 5 6 7 8 9 0 1 2 3 4 5
        +--+--+-+-+-+-+-+-+-+-+-+-+-+-+
        |M |M |M|M|M|C|M|M|M|C|M|M|M|M|
        |11|10|9|8|7|1|6|5|4|0|3|2|1|0|
        +--+--+-+-+-+-+-+-+-+-+-+-+-+-+

    >>> hex(join_type(Method.BINDING, Class.ERROR))
    '0x111'

    Raises:
        StunError: a number does not fit its bits.
    """
    if not 0 <= method <= 0xFFF or not 0 <= message_class <= 0b11:
        raise StunError(f"no STUN type has method {method:#x} and class {message_class:#x}")
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
        StunError: the field does not fit 14 bits.
    """
    if not 0 <= field <= 0x3FFF:
        raise StunError(f"{field:#x} is no 14-bit type field")
    method = (field & 0x3E00) >> 2 | (field & 0x00E0) >> 1 | (field & 0x000F)
    return method, (field & 0x0100) >> 7 | (field & 0x0010) >> 4


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

    @property
    def label(self) -> str:
        """The name as the registries and RFCs write it, with hyphens; a bare number if none."""
        named = self.name in type(self).__members__
        return self.name.replace("_", "-") if named else f"{self.value:#06x}"


class Method(_OpenEnum):
    """The method of a message, 12 bits (IANA "STUN Methods")."""

    BINDING = 0x001  # RFC 8489
    SHARED_SECRET = 0x002  # RFC 3489; reserved since RFC 5389
    ALLOCATE = 0x003  # RFC 8656, as the next five
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009
    CONNECT = 0x00A  # RFC 6062, as the next two
    CONNECTION_BIND = 0x00B
    CONNECTION_ATTEMPT = 0x00C

    @classmethod
    def _limit(cls) -> int:
        return 0xFFF


class AttributeType(_OpenEnum):
    """The type of an attribute, 16 bits (IANA "STUN Attributes").

    Types below 0x8000 are comprehension-required: whoever does not know one must not
    process the message (RFC 8489 section 14). What the codec can read and write of each is
    in `ATTRIBUTES`; the others are names for `RawAttribute`.
    """

    MAPPED_ADDRESS = 0x0001
    RESPONSE_ADDRESS = 0x0002  # RFC 3489 section 11.2.2; reserved since RFC 5389
    CHANGE_REQUEST = 0x0003
    SOURCE_ADDRESS = 0x0004  # RFC 3489 section 11.2.5; reserved since RFC 5389
    CHANGED_ADDRESS = 0x0005  # RFC 3489 section 11.2.3; reserved since RFC 5389
    USERNAME = 0x0006
    PASSWORD = 0x0007  # RFC 3489 section 11.2.7; reserved since RFC 5389
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    REFLECTED_FROM = 0x000B  # RFC 3489 section 11.2.11; reserved since RFC 5389
    CHANNEL_NUMBER = 0x000C
    LIFETIME = 0x000D
    BANDWIDTH = 0x0010  # reserved by RFC 8656
    XOR_PEER_ADDRESS = 0x0012
    DATA = 0x0013
    REALM = 0x0014
    NONCE = 0x0015
    XOR_RELAYED_ADDRESS = 0x0016
    REQUESTED_ADDRESS_FAMILY = 0x0017
    EVEN_PORT = 0x0018
    REQUESTED_TRANSPORT = 0x0019
    DONT_FRAGMENT = 0x001A
    ACCESS_TOKEN = 0x001B  # RFC 7635
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    TIMER_VAL = 0x0021  # reserved by RFC 8656
    RESERVATION_TOKEN = 0x0022
    PRIORITY = 0x0024
    USE_CANDIDATE = 0x0025
    PADDING = 0x0026
    RESPONSE_PORT = 0x0027
    CONNECTION_ID = 0x002A  # RFC 6062
    ADDITIONAL_ADDRESS_FAMILY = 0x8000
    ADDRESS_ERROR_CODE = 0x8001
    PASSWORD_ALGORITHMS = 0x8002
    ALTERNATE_DOMAIN = 0x8003
    ICMP = 0x8004
    SOFTWARE = 0x8022
    ALTERNATE_SERVER = 0x8023
    TRANSACTION_TRANSMIT_COUNTER = 0x8025  # RFC 7982
    CACHE_TIMEOUT = 0x8027  # registered by RFC 5780, which does not define it
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029
    ICE_CONTROLLING = 0x802A
    RESPONSE_ORIGIN = 0x802B
    OTHER_ADDRESS = 0x802C
    ECN_CHECK = 0x802D  # RFC 6679
    THIRD_PARTY_AUTHORIZATION = 0x802E  # RFC 7635
    MOBILITY_TICKET = 0x8030  # RFC 8016
    CISCO_STUN_FLOWDATA = 0xC000
    ENF_FLOW_DESCRIPTION = 0xC001
    ENF_NETWORK_STATUS = 0xC002
    GOOG_NETWORK_INFO = 0xC057
    GOOG_LAST_ICE_CHECK_RECEIVED = 0xC058
    GOOG_MISC_INFO = 0xC059
    GOOG_OBSOLETE_1 = 0xC05A
    GOOG_CONNECTION_ID = 0xC05B
    GOOG_DELTA = 0xC05C
    GOOG_DELTA_ACK = 0xC05D
    GOOG_MESSAGE_INTEGRITY_32 = 0xC060
    DTLS_IN_STUN = 0xC070
    DTLS_IN_STUN_ACKNOWLEDGEMENT = 0xC071

    @property
    def comprehension_required(self) -> bool:
        """True where a receiver that does not know the type must refuse the message."""
        return self < COMPREHENSION_OPTIONAL


class AddressFamily(_OpenEnum):
    """The family of an address in an attribute, 8 bits (RFC 8489 section 14.1)."""

    IPV4 = 0x01
    IPV6 = 0x02

    @classmethod
    def _limit(cls) -> int:
        return 0xFF


class PasswordAlgorithmNumber(_OpenEnum):
    """How a key is made of a password, 16 bits (RFC 8489 section 18.5)."""

    MD5 = 0x0001
    SHA_256 = 0x0002


class SecurityFeature(IntFlag):
    """The security features in a nonce cookie, 24 bits (RFC 8489 section 18.1).

    The RFC's text counts bits from the left; its erratum and its own example (`AAAC` for
    username anonymity) count from the right, as implementations do.
    """

    PASSWORD_ALGORITHMS = 1 << 0
    USERNAME_ANONYMITY = 1 << 1


REASON_PHRASES: Mapping[int, str] = MappingProxyType(
    {
        300: "Try Alternate",
        400: "Bad Request",
        401: "Unauthenticated",
        403: "Forbidden",
        405: "Mobility Forbidden",
        420: "Unknown Attribute",
        437: "Allocation Mismatch",
        438: "Stale Nonce",
        440: "Address Family not Supported",
        441: "Wrong Credentials",
        442: "Unsupported Transport Protocol",
        443: "Peer Address Family Mismatch",
        446: "Connection Already Exists",
        447: "Connection Timeout or Failure",
        486: "Allocation Quota Reached",
        487: "Role Conflict",
        500: "Server Error",
        508: "Insufficient Capacity",
    }
)
"""Error code to recommended reason phrase (IANA "STUN Error Codes")."""


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

    @classmethod
    def from_sockaddr(cls, sockaddr: tuple[Any, ...]) -> Self:
        """Return the address that `recvfrom`, `getsockname` or `getaddrinfo` gives.

        >>> TransportAddress.from_sockaddr(("192.0.2.1", 3478))
        TransportAddress(ip=IPv4Address('192.0.2.1'), port=3478)

        The scope of an IPv6 address becomes its zone.

        Raises:
            StunError: it is no address of IPv4 or IPv6.
        """
        if len(sockaddr) not in {2, 4} or not isinstance(sockaddr[0], str):
            raise StunError(f"{sockaddr!r} is no address of IPv4 or IPv6")
        host, port = sockaddr[:2]
        scope = sockaddr[3] if len(sockaddr) == 4 else 0
        if scope and "%" not in host:
            host = f"{host}%{scope}"
        return cls.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    def unmapped(self) -> Self:
        """Return the IPv4 address of an IPv4-mapped IPv6 one (RFC 4291 2.5.5.2), or self."""
        mapped = self.ip.ipv4_mapped if isinstance(self.ip, ipaddress.IPv6Address) else None
        return type(self)(mapped, self.port) if mapped else self

    def without_zone(self) -> Self:
        """Return the address as others can use it: a zone (`%eth0`) is this host's own."""
        if isinstance(self.ip, ipaddress.IPv6Address) and self.ip.scope_id is not None:
            return type(self)(ipaddress.IPv6Address(int(self.ip)), self.port)
        return self


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
