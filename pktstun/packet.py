"""Ethernet, VLAN, IPv4, IPv6 and UDP headers: parse, build, checksum.

Theory of operation
===================

A frame is peeled one layer at a time. Each `parse_*` function takes the bytes of its
layer and returns `(header, payload)`; the payload is a memoryview of the input, never a
copy, and is what the next layer's function takes:

    ethernet, packet = parse_ethernet(frame)
    ip, segment = parse_ipv4(packet)
    udp, payload = parse_udp(segment)

`header.encode(payload)` goes the other way and fills in what a sender computes: lengths
and checksums; parsing what it gives returns the same header. Field values that do not fit
are a `ValueError` when the header is made. `build_udp_frame` does all layers at once.

`receive` is not a parser but a policy: which frames a server that reads AF_PACKET rings
may answer, given that no kernel has looked at them yet. It checks in one fixed order and
names the first thing that is wrong as a `FrameDrop`. `build_reply_frame` is the frame that
answers one.

WARNING: the fast path has the same list of checks in C, and must give the same verdict
on every frame; and it builds the same replies. A change to `receive`, to the order of its
checks or to `build_reply_frame` is a change there.

Two rules hold for all of it:

- Parsing is total. Whatever the bytes are, the outcome is a result or a `PacketError`
  whose `reason` is a `FrameDrop`, and never anything else.
- Integers are host integers. On the wire every field is big-endian; nothing outside this
  module has to know.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from pktstun.errors import PacketError

__all__ = [
    "MAX_DATAGRAM",
    "BytesLike",
    "ChecksumStatus",
    "Datagram",
    "EtherType",
    "EthernetHeader",
    "ExtensionHeader",
    "FrameDrop",
    "IPAddress",
    "IPProtocol",
    "IPv4Flags",
    "IPv4Header",
    "IPv6Header",
    "PacketType",
    "UDPHeader",
    "VlanTag",
    "build_reply_frame",
    "build_udp_frame",
    "checksum",
    "parse_ethernet",
    "parse_ipv4",
    "parse_ipv6",
    "parse_udp",
    "receive",
    "udp_checksum",
]

BytesLike: TypeAlias = bytes | bytearray | memoryview
IPAddress: TypeAlias = IPv4Address | IPv6Address

# No STUN request comes near this, and it is what the socket path reads per datagram.
MAX_DATAGRAM = 2048


class EtherType(enum.IntEnum):
    """What follows an Ethernet header (IEEE 802 Numbers)."""

    IPV4 = 0x0800
    VLAN = 0x8100  # IEEE 802.1Q customer tag
    IPV6 = 0x86DD
    SERVICE_VLAN = 0x88A8  # IEEE 802.1Q (once 802.1ad) service tag, the outer one of two


_TPIDS = frozenset({EtherType.VLAN, EtherType.SERVICE_VLAN})


class IPProtocol(enum.IntEnum):
    """IPv4 protocol and IPv6 next header numbers: UDP, and the IPv6 extension headers."""

    HOP_BY_HOP = 0  # RFC 8200 section 4.3
    UDP = 17  # RFC 768
    ROUTING = 43  # RFC 8200 section 4.4
    FRAGMENT = 44  # RFC 8200 section 4.5
    AUTHENTICATION = 51  # RFC 4302 section 2
    DESTINATION_OPTIONS = 60  # RFC 8200 section 4.6
    MOBILITY = 135  # RFC 6275 section 6.1
    HIP = 139  # RFC 7401 section 5.1
    SHIM6 = 140  # RFC 5533 section 5


# The registry has ESP (50) and two experimental numbers (253, 254) besides, but nobody can
# tell where those end: https://www.iana.org/assignments/ipv6-parameters
_EXTENSION_HEADERS = frozenset(IPProtocol) - {IPProtocol.UDP}


class PacketType(enum.IntEnum):
    """To whom the link layer sent a frame: `sll_pkttype` of packet(7)."""

    HOST = 0
    BROADCAST = 1
    MULTICAST = 2
    OTHERHOST = 3
    OUTGOING = 4


class ChecksumStatus(enum.Enum):
    """What the kernel knows about a frame's UDP checksum: `tp_status` of packet(7)."""

    UNVERIFIED = enum.auto()
    """Nobody has looked at it."""

    VALID = enum.auto()
    """The network card or the kernel has verified it."""

    NOT_READY = enum.auto()
    """It is still to be filled in by offload: a local sender, over veth or loopback."""


class FrameDrop(enum.StrEnum):
    """Why `receive` does not let a frame be answered; the value is the counter's name."""

    NOT_HOST = "not_host"
    """Broadcast, multicast, another station's frame seen in promiscuous mode, or one that
    this host sent itself: answering it would answer for others, or answer ourselves."""

    TRUNCATED = "truncated"
    """Cut by the snap length: neither the checksum nor the request can be verified."""

    VLAN = "vlan"
    """Tagged for a VLAN: it belongs to another interface, and the reply, which follows the
    routing table, could cross from one network into another."""

    NOT_IP = "not_ip"
    """ARP and the like: no business of a server on UDP."""

    BAD_IP = "bad_ip"
    """The IP header does not agree with itself or with the bytes that are there, or names
    an IPv4-mapped address, which is neither source nor destination on any wire
    (RFC 6890 section 2.2.3)."""

    BAD_IP_CHECKSUM = "bad_ip_checksum"
    """Damaged on the way: the source address cannot be trusted (RFC 1122 section 3.2.1.2
    asks for the silence)."""

    FRAGMENT = "fragment"
    """Part of a datagram: a ring has no reassembly, and a STUN request needs none."""

    NOT_UDP = "not_udp"
    """TCP, ICMP and all the rest."""

    IP_OPTIONS = "ip_options"
    """IPv4 options may ask for source routing or a record of the route; obeying or
    refusing them is the kernel's trade."""

    IPV6_EXTENSION = "ipv6_extension"
    """Same for IPv6: options and routing headers are the kernel's to judge."""

    BAD_UDP_LENGTH = "bad_udp_length"
    """UDP and IP disagree about where the datagram ends, so one of them is wrong."""

    NO_UDP_CHECKSUM = "no_udp_checksum"
    """IPv6 has no checksum of its own, so UDP over it must have one (RFC 8200
    section 8.1)."""

    BAD_UDP_CHECKSUM = "bad_udp_checksum"
    """Damaged on the way."""

    TOO_LONG = "too_long"
    """Longer than MAX_DATAGRAM: more than the socket path would read, and no request."""


def _view(data: BytesLike) -> memoryview:
    return memoryview(data).cast("B")


def _require_bits(bits: int, **fields: int) -> None:
    for name, value in fields.items():
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} is a field of {bits} bits, {value} does not fit")


# --- Checksums ---


def checksum(data: BytesLike, initial: int = 0) -> int:
    """Compute the Internet checksum (RFC 1071).

    `data` is any number of bytes; an odd one counts as if a zero byte followed. `initial`
    is what the sum starts from, not complemented: 0, or `~checksum(before) & 0xFFFF` to go
    on after an even number of bytes.

    Returns the complement of the 16-bit ones' complement sum, 0 to 0xFFFF: the number for
    the checksum field if the field was zero in `data`, and 0 if the field was filled in
    and is right.
    """
    # 2**16 is 1 modulo 0xFFFF, so that the sum of the words is congruent to the number
    # that they spell. Of the two zeros that ones' complement has, folding carries yields
    # 0xFFFF unless everything was zero (RFC 1071 section 2).
    view = _view(data)
    total = initial + (int.from_bytes(view, "big") << 8 * (len(view) % 2))
    folded = (total - 1) % 0xFFFF + 1 if total else 0
    return 0xFFFF - folded


def udp_checksum(source: IPAddress, destination: IPAddress, segment: BytesLike) -> int:
    """Compute the checksum of a UDP datagram (RFC 768, RFC 8200 section 8.1).

    `source` and `destination` are the IP header's addresses, both of one family; `segment`
    is the UDP header and its payload.

    Returns what to send: 1 to 0xFFFF, since 0 would say that there is no checksum and its
    twin 0xFFFF takes its place. Over a segment whose checksum field is filled in, the
    result is 0xFFFF exactly when the field is right.

    Raises ValueError if the addresses are of two families.
    """
    if source.version != destination.version:
        raise ValueError(f"{source} and {destination} are of two address families")
    # The pseudo-headers of the two families differ only in the widths of their fields,
    # and a sum of 16-bit words does not see those.
    view = _view(segment)
    pseudo_header = (
        source.packed + destination.packed + struct.pack("!II", len(view), IPProtocol.UDP)
    )
    return checksum(view, ~checksum(pseudo_header) & 0xFFFF) or 0xFFFF


# --- Ethernet ---


@dataclass(frozen=True, slots=True)
class VlanTag:
    """An IEEE 802.1Q tag.

    `vid` is the VLAN, 0 to 4095, where 0 names none and the tag only carries a priority;
    `pcp` the priority, 0 to 7; `dei` whether the frame may be dropped first; `tpid` the
    ethertype that announces the tag, 0x8100 or 0x88A8.

    Raises ValueError if a value does not fit its field.
    """

    #    0                   1                   2                   3
    #    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    #   +-------------------------------+-----+-+-----------------------+
    #   |             TPID              | PCP |D|          VID          |
    #   +-------------------------------+-----+-+-----------------------+

    vid: int
    pcp: int = 0
    dei: bool = False
    tpid: int = EtherType.VLAN

    def __post_init__(self) -> None:
        _require_bits(12, vid=self.vid)
        _require_bits(3, pcp=self.pcp)
        if self.tpid not in _TPIDS:
            raise ValueError(f"a VLAN tag's TPID is 0x8100 or 0x88A8, not {self.tpid:#06x}")

    def encode(self) -> bytes:
        """Return the four bytes of the tag."""
        return struct.pack("!HH", self.tpid, self.pcp << 13 | self.dei << 12 | self.vid)


@dataclass(frozen=True, slots=True)
class EthernetHeader:
    """An Ethernet II header: MAC addresses of six bytes, VLAN tags (outermost first), ethertype.

    `ethertype` is that of the payload, behind the tags; values below 0x0600 are the length
    field of IEEE 802.3 and are kept as they are.

    Raises ValueError if an address is not six bytes, if the ethertype does not fit in 16
    bits, or if it announces a tag: tags go into `vlan_tags`.
    """

    destination: bytes
    source: bytes
    ethertype: int
    vlan_tags: tuple[VlanTag, ...] = ()

    def __post_init__(self) -> None:
        if len(self.destination) != 6 or len(self.source) != 6:
            raise ValueError("a MAC address has six bytes")
        _require_bits(16, ethertype=self.ethertype)
        if self.ethertype in _TPIDS:
            raise ValueError("the ethertype of a tag goes into vlan_tags, with the tag")

    def encode(self, payload: BytesLike) -> bytes:
        """Return the frame: this header and `payload`, with neither padding nor FCS."""
        tags = b"".join(tag.encode() for tag in self.vlan_tags)
        ethertype = self.ethertype.to_bytes(2, "big")
        return b"".join((self.destination, self.source, tags, ethertype, payload))


def parse_ethernet(frame: BytesLike) -> tuple[EthernetHeader, memoryview]:
    """Split a frame, FCS not included, into its header and what follows (IEEE 802.1Q).

    The payload may end with padding; only the next layer knows.

    Raises PacketError: `bad_ip` if the frame is shorter than the 14 bytes of a header,
    `vlan` if it ends inside a tag.
    """
    view = _view(frame)
    if len(view) < 14:
        raise PacketError(
            FrameDrop.BAD_IP, f"an Ethernet header has 14 bytes, the frame {len(view)}", 0
        )
    destination, source, ethertype = struct.unpack_from("!6s6sH", view)
    tags: list[VlanTag] = []
    end = 14
    while ethertype in _TPIDS:
        if len(view) < end + 4:
            raise PacketError(FrameDrop.VLAN, "the frame ends inside a VLAN tag", end)
        tci, inner = struct.unpack_from("!HH", view, end)
        tags.append(VlanTag(tci & 0x0FFF, tci >> 13, bool(tci & 0x1000), ethertype))
        ethertype = inner
        end += 4
    return EthernetHeader(destination, source, ethertype, tuple(tags)), view[end:]


# --- IPv4 ---


class IPv4Flags(enum.IntFlag):
    """The three flags before the fragment offset (RFC 791 section 3.1)."""

    NONE = 0
    MORE_FRAGMENTS = 1
    DONT_FRAGMENT = 2
    RESERVED = 4


@dataclass(frozen=True, slots=True)
class IPv4Header:
    """An IPv4 header (RFC 791 section 3.1) without what encoding computes.

    `traffic_class` is DSCP and ECN in one octet, once the Type of Service (RFC 2474);
    `fragment_offset` counts units of eight bytes; `options` are the bytes after the 20
    fixed ones, padding included: up to 40, a multiple of four.

    Raises ValueError if a value does not fit its field.
    """

    #    0                   1                   2                   3
    #    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |Version|  IHL  | Traffic class |          Total length         |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |         Identification        |Flags|      Fragment offset    |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |  Time to live |    Protocol   |        Header checksum        |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |                         Source address                        |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |                      Destination address                      |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |                       Options and padding                     :
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

    source: IPv4Address
    destination: IPv4Address
    protocol: int = IPProtocol.UDP
    ttl: int = 64
    traffic_class: int = 0
    identification: int = 0
    flags: IPv4Flags = IPv4Flags.NONE
    fragment_offset: int = 0
    options: bytes = b""

    def __post_init__(self) -> None:
        _require_bits(8, protocol=self.protocol, ttl=self.ttl, traffic_class=self.traffic_class)
        _require_bits(16, identification=self.identification)
        _require_bits(3, flags=self.flags)
        _require_bits(13, fragment_offset=self.fragment_offset)
        if len(self.options) > 40 or len(self.options) % 4:
            raise ValueError(
                "IPv4 options have at most 40 bytes, padded with zeros to a multiple of four, "
                f"not {len(self.options)}"
            )

    @property
    def is_fragment(self) -> bool:
        """Whether the payload is only a part of the datagram."""
        return IPv4Flags.MORE_FRAGMENTS in self.flags or self.fragment_offset != 0

    def encode(self, payload: BytesLike) -> bytes:
        """Return the packet: this header, its lengths and checksum computed, and `payload`.

        Raises ValueError if the packet would be longer than 65535 bytes.
        """
        body = bytes(payload)
        header_length = 20 + len(self.options)
        total_length = header_length + len(body)
        _require_bits(16, total_length=total_length)
        header = bytearray(
            struct.pack(
                "!BBHHHBBH4s4s",
                4 << 4 | header_length // 4,
                self.traffic_class,
                total_length,
                self.identification,
                self.flags << 13 | self.fragment_offset,
                self.ttl,
                self.protocol,
                0,
                self.source.packed,
                self.destination.packed,
            )
            + self.options
        )
        struct.pack_into("!H", header, 10, checksum(header))
        return bytes(header) + body


def parse_ipv4(data: BytesLike, *, start: int = 0) -> tuple[IPv4Header, memoryview]:
    """Split an IPv4 packet into header and payload (RFC 791 section 3.1).

    Bytes beyond the total length are Ethernet padding and belong to neither. The payload
    of a fragment is what the fragment carries. `start` is where in the frame `data`
    begins, and is added to the offset of errors.

    Raises PacketError: `bad_ip` if version, header length, total length and the bytes that
    are there do not agree, `bad_ip_checksum` if the header checksum is wrong.
    """
    view = _view(data)
    if len(view) < 20:
        raise PacketError(
            FrameDrop.BAD_IP, f"an IPv4 header has at least 20 bytes, not {len(view)}", start
        )
    (
        version_and_length,
        traffic_class,
        total_length,
        identification,
        flags_and_offset,
        ttl,
        protocol,
        _,
        source,
        destination,
    ) = struct.unpack_from("!BBHHHBBH4s4s", view)
    version = version_and_length >> 4
    header_length = 4 * (version_and_length & 0x0F)
    if version != 4:
        raise PacketError(FrameDrop.BAD_IP, f"IP version {version} where 4 is announced", start)
    if not 20 <= header_length <= total_length <= len(view):
        raise PacketError(
            FrameDrop.BAD_IP,
            f"IPv4 header of {header_length} bytes, packet of {total_length}, {len(view)} there",
            start,
        )
    if checksum(view[:header_length]) != 0:
        raise PacketError(FrameDrop.BAD_IP_CHECKSUM, "wrong IPv4 header checksum", start + 10)
    header = IPv4Header(
        source=IPv4Address(source),
        destination=IPv4Address(destination),
        protocol=protocol,
        ttl=ttl,
        traffic_class=traffic_class,
        identification=identification,
        flags=IPv4Flags(flags_and_offset >> 13),
        fragment_offset=flags_and_offset & 0x1FFF,
        options=bytes(view[20:header_length]),
    )
    return header, view[header_length:total_length]


# --- IPv6 ---


def _extension_length(kind: int, octet: int) -> int:
    """Return the bytes of an extension header whose second octet is `octet`."""
    if kind == IPProtocol.FRAGMENT:
        return 8  # RFC 8200 section 4.5: no length, the octet is reserved
    if kind == IPProtocol.AUTHENTICATION:
        return 4 * (octet + 2)  # RFC 4302 section 2.2: units of IPv4, header of IPv6
    return 8 * (octet + 1)  # RFC 8200 section 4.3, not counting the first eight


@dataclass(frozen=True, slots=True)
class ExtensionHeader:
    """An IPv6 extension header (RFC 8200 section 4).

    `kind` is its number as the header before it names it (see `IPProtocol`); `data` is
    what follows its first two octets, next header and length, which encoding fills in. In
    a fragment header the second octet is reserved: sent as zero, ignored when parsed.

    Raises ValueError if `kind` is not one of 0, 43, 44, 51, 60, 135, 139, 140, or if the
    length of `data` cannot be expressed: with the two octets it must be a multiple of
    eight (of four for AH) and at most 2048 (1028), and exactly 8 in a fragment header.
    """

    kind: int
    data: bytes

    def __post_init__(self) -> None:
        if self.kind not in _EXTENSION_HEADERS:
            raise ValueError(f"{self.kind} is not an IPv6 extension header")
        octet, length = self._length_octet, 2 + len(self.data)
        if not 0 <= octet <= 255 or _extension_length(self.kind, octet) != length:
            raise ValueError(f"an extension header {self.kind} cannot have {length} bytes")

    @property
    def _length_octet(self) -> int:
        length = 2 + len(self.data)
        if self.kind == IPProtocol.FRAGMENT:
            return 0
        if self.kind == IPProtocol.AUTHENTICATION:
            return length // 4 - 2
        return length // 8 - 1

    @property
    def fragment_offset(self) -> int:
        """Where a fragment belongs, in units of eight bytes; 0 in every other header."""
        if self.kind != IPProtocol.FRAGMENT:
            return 0
        return int.from_bytes(self.data[:2], "big") >> 3

    def encode(self, next_header: int) -> bytes:
        """Return the header's bytes; `next_header` is the number of what follows it."""
        return bytes((next_header, self._length_octet)) + self.data


@dataclass(frozen=True, slots=True)
class IPv6Header:
    """An IPv6 header (RFC 8200 section 3) and its extension headers.

    `protocol` is the next header number of the payload, behind the extension headers;
    `traffic_class` is DSCP and ECN in one octet; `flow_label` has 20 bits.

    Raises ValueError if a value does not fit its field.
    """

    #    0                   1                   2                   3
    #    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |Version| Traffic class |               Flow label              |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |         Payload length        |  Next header  |   Hop limit   |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |                                                               |
    #   +                    Source address, 128 bits                   +
    #   :                                                               :
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |                                                               |
    #   +                 Destination address, 128 bits                 +
    #   :                                                               :
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

    source: IPv6Address
    destination: IPv6Address
    protocol: int = IPProtocol.UDP
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0
    extensions: tuple[ExtensionHeader, ...] = ()

    def __post_init__(self) -> None:
        _require_bits(
            8,
            protocol=self.protocol,
            hop_limit=self.hop_limit,
            traffic_class=self.traffic_class,
        )
        _require_bits(20, flow_label=self.flow_label)

    def encode(self, payload: BytesLike) -> bytes:
        """Return the packet: this header, its extension headers and `payload`.

        Raises ValueError if more than 65535 bytes would follow the 40 of the header.
        """
        body = bytes(payload)
        next_header = self.protocol
        for extension in reversed(self.extensions):
            body = extension.encode(next_header) + body
            next_header = extension.kind
        _require_bits(16, payload_length=len(body))
        header = struct.pack(
            "!IHBB16s16s",
            6 << 28 | self.traffic_class << 20 | self.flow_label,
            len(body),
            next_header,
            self.hop_limit,
            self.source.packed,
            self.destination.packed,
        )
        return header + body


def _parse_ipv6_fixed(data: BytesLike, start: int) -> tuple[IPv6Header, memoryview]:
    """Split an IPv6 packet after the first 40 bytes; `protocol` is the first next header."""
    view = _view(data)
    if len(view) < 40:
        raise PacketError(FrameDrop.BAD_IP, f"an IPv6 header has 40 bytes, not {len(view)}", start)
    first_word, payload_length, next_header, hop_limit, source, destination = struct.unpack_from(
        "!IHBB16s16s", view
    )
    version = first_word >> 28
    if version != 6:
        raise PacketError(FrameDrop.BAD_IP, f"IP version {version} where 6 is announced", start)
    if 40 + payload_length > len(view):
        raise PacketError(
            FrameDrop.BAD_IP,
            f"IPv6 payload of {payload_length} bytes, {len(view) - 40} there",
            start + 4,
        )
    header = IPv6Header(
        source=IPv6Address(source),
        destination=IPv6Address(destination),
        protocol=next_header,
        hop_limit=hop_limit,
        traffic_class=first_word >> 20 & 0xFF,
        flow_label=first_word & 0xFFFFF,
    )
    return header, view[40 : 40 + payload_length]


def parse_ipv6(data: BytesLike, *, start: int = 0) -> tuple[IPv6Header, memoryview]:
    """Split an IPv6 packet into header, extension headers and payload (RFC 8200).

    Extension headers are taken in any order and number (RFC 8200 section 4.1). Behind the
    header of a fragment that is not the first there are none: the payload is then what
    the fragment carries, and `protocol` that of the whole. Bytes beyond the payload length
    are Ethernet padding; jumbograms (RFC 2675) are not supported. `start` is where in the
    frame `data` begins, and is added to the offset of errors.

    Raises PacketError: `bad_ip` if version, payload length and the bytes that are there do
    not agree, `ipv6_extension` if an extension header does not end within the payload.
    """
    fixed, payload = _parse_ipv6_fixed(data, start)
    extensions: list[ExtensionHeader] = []
    kind = fixed.protocol
    position = 0
    while kind in _EXTENSION_HEADERS:
        # The shortest extension header has eight bytes; its first two tell the rest.
        left = len(payload) - position
        length = _extension_length(kind, payload[position + 1]) if left >= 8 else 8
        if length > left:
            raise PacketError(
                FrameDrop.IPV6_EXTENSION,
                f"an extension header {kind} has {length} bytes, {left} are there",
                start + 40 + position,
            )
        extension = ExtensionHeader(kind, bytes(payload[position + 2 : position + length]))
        extensions.append(extension)
        kind = payload[position]
        position += length
        if extension.fragment_offset != 0:
            break
    header = IPv6Header(
        source=fixed.source,
        destination=fixed.destination,
        protocol=kind,
        hop_limit=fixed.hop_limit,
        traffic_class=fixed.traffic_class,
        flow_label=fixed.flow_label,
        extensions=tuple(extensions),
    )
    return header, payload[position:]


# --- UDP ---


@dataclass(frozen=True, slots=True)
class UDPHeader:
    """A UDP header (RFC 768).

    `checksum` is the field as it is on the wire, where 0 says that there is none; None
    has encoding compute it.

    Raises ValueError if a value does not fit in 16 bits.
    """

    #    0                   1                   2                   3
    #    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |          Source port          |        Destination port       |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |             Length            |            Checksum           |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

    source_port: int
    destination_port: int
    checksum: int | None = None

    def __post_init__(self) -> None:
        _require_bits(
            16,
            source_port=self.source_port,
            destination_port=self.destination_port,
            checksum=self.checksum or 0,
        )

    def encode(self, payload: BytesLike, source: IPAddress, destination: IPAddress) -> bytes:
        """Return the datagram: this header, its length and checksum computed, and `payload`.

        `source` and `destination` are the addresses of the IP header, which the checksum
        covers.

        Raises ValueError if the datagram would be longer than 65535 bytes, or if the
        addresses are of two families.
        """
        body = bytes(payload)
        length = 8 + len(body)
        _require_bits(16, length=length)
        ports_and_length = struct.pack("!HHH", self.source_port, self.destination_port, length)
        field = self.checksum
        if field is None:
            field = udp_checksum(source, destination, ports_and_length + bytes(2) + body)
        return ports_and_length + field.to_bytes(2, "big") + body


def parse_udp(data: BytesLike, *, start: int = 0) -> tuple[UDPHeader, memoryview]:
    """Split a UDP datagram, all of an IP payload, into header and payload (RFC 768).

    The checksum is not verified, as that takes the addresses: see `udp_checksum`. `start`
    is where in the frame `data` begins, and is added to the offset of errors.

    Raises PacketError: `bad_udp_length` if there are fewer than the eight bytes of a
    header, or not as many as the length field says; so a datagram with UDP options
    (RFC 9868) behind it is refused as well.
    """
    view = _view(data)
    if len(view) < 8:
        raise PacketError(
            FrameDrop.BAD_UDP_LENGTH, f"a UDP header has 8 bytes, not {len(view)}", start
        )
    source_port, destination_port, length, field = struct.unpack_from("!HHHH", view)
    if length != len(view):
        raise PacketError(
            FrameDrop.BAD_UDP_LENGTH,
            f"UDP length {length} in an IP payload of {len(view)} bytes",
            start + 4,
        )
    return UDPHeader(source_port, destination_port, field), view[8:]


# --- Whole frames ---


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram that may be answered; `payload` is a view into the frame it came in."""

    source_ip: IPAddress
    source_port: int
    destination_ip: IPAddress
    destination_port: int
    payload: memoryview


def build_udp_frame(
    payload: BytesLike,
    source: tuple[IPAddress, int],
    destination: tuple[IPAddress, int],
    *,
    source_mac: bytes = bytes(6),
    destination_mac: bytes = bytes(6),
) -> bytes:
    """Build an Ethernet frame that carries `payload` over UDP, checksums filled in.

    `source` and `destination` are pairs of IP address and port, both of one family. The rest
    is what Linux writes for a UDP socket: hop limit 64, over IPv4 "don't fragment" with the
    identification 0 (RFC 6864). For VLAN tags, options or another hop limit, encode the
    headers one by one.

    Returns the frame without padding and FCS, which the network card adds.

    Raises ValueError if the families differ, if a port does not fit in 16 bits, a MAC
    address is not six bytes, or the payload too long for the packet (65507 bytes over
    IPv4, 65527 over IPv6).
    """
    (source_ip, source_port), (destination_ip, destination_port) = source, destination
    ip: IPv4Header | IPv6Header
    match source_ip, destination_ip:
        case IPv4Address(), IPv4Address():
            ethertype = EtherType.IPV4
            ip = IPv4Header(source_ip, destination_ip, flags=IPv4Flags.DONT_FRAGMENT)
        case IPv6Address(), IPv6Address():
            ethertype, ip = EtherType.IPV6, IPv6Header(source_ip, destination_ip)
        case _:
            raise ValueError(f"{source_ip} and {destination_ip} are of two address families")
    segment = UDPHeader(source_port, destination_port).encode(payload, source_ip, destination_ip)
    return EthernetHeader(destination_mac, source_mac, ethertype).encode(ip.encode(segment))


def build_reply_frame(request: BytesLike, payload: BytesLike) -> bytes:
    """Build the frame that takes `payload` back the way a request came.

    `request` is a frame that `receive` accepts, as an AF_PACKET ring hands it over. The
    addresses are exchanged on every layer, so what came through a gateway goes back to it.

    Raises PacketError if `receive` would, whatever it is told about the frame; ValueError if
    the payload is too long.
    """
    ethernet, _ = parse_ethernet(request)
    datagram = receive(request, checksum=ChecksumStatus.NOT_READY)
    return build_udp_frame(
        payload,
        (datagram.destination_ip, datagram.destination_port),
        (datagram.source_ip, datagram.source_port),
        source_mac=ethernet.destination,
        destination_mac=ethernet.source,
    )


def receive(
    frame: BytesLike,
    *,
    length: int | None = None,
    packet_type: int = PacketType.HOST,
    vlan_id: int | None = None,
    checksum: ChecksumStatus = ChecksumStatus.UNVERIFIED,
) -> Datagram:
    """Take the UDP datagram out of a frame from an AF_PACKET ring, if it may be answered.

    `frame` is what was captured, Ethernet header first. The rest is what the ring says
    about it: `length`, the bytes that were on the wire (default: all are in `frame`);
    `packet_type`, a `PacketType` or another of the kernel's numbers; `vlan_id`, the VID of
    a tag that the kernel took out of the frame (None: there was none); `checksum`, what is
    known of the UDP checksum.

    Returns the datagram; whether its addresses are fit to be answered is not judged here.

    Raises PacketError whose `reason` is the `FrameDrop` of the first check that failed.
    The order is part of the contract: the module's docstring says with whom.
    """
    view = _view(frame)
    if packet_type != PacketType.HOST:
        raise PacketError(FrameDrop.NOT_HOST, f"packet type {packet_type} is not HOST", 0)
    if length is not None and len(view) < length:
        raise PacketError(FrameDrop.TRUNCATED, f"cut from {length} bytes", len(view))
    # VID 0 is a priority tag, which names no VLAN (IEEE 802.1Q).
    if vlan_id:
        raise PacketError(FrameDrop.VLAN, f"came tagged for VLAN {vlan_id}", 0)
    ethernet, packet = parse_ethernet(view)
    if ethernet.vlan_tags:
        raise PacketError(FrameDrop.VLAN, "tagged for a VLAN", 12)
    ip: IPv4Header | IPv6Header
    if ethernet.ethertype == EtherType.IPV4:
        ip, segment = _receive_ipv4(packet)
        udp_start = 14 + 20
    elif ethernet.ethertype == EtherType.IPV6:
        ip, segment = _receive_ipv6(packet)
        udp_start = 14 + 40
    else:
        raise PacketError(FrameDrop.NOT_IP, f"ethertype {ethernet.ethertype:#06x} is not IP", 12)
    udp, payload = parse_udp(segment, start=udp_start)
    if checksum is not ChecksumStatus.NOT_READY:
        verified = checksum is ChecksumStatus.VALID
        _check_udp_checksum(ip, udp, segment, udp_start + 6, verified=verified)
    if len(payload) > MAX_DATAGRAM:
        raise PacketError(
            FrameDrop.TOO_LONG,
            f"a payload of {len(payload)} bytes, at most {MAX_DATAGRAM} are taken",
            udp_start + 8,
        )
    return Datagram(ip.source, udp.source_port, ip.destination, udp.destination_port, payload)


def _receive_ipv4(packet: memoryview) -> tuple[IPv4Header, memoryview]:
    header, segment = parse_ipv4(packet, start=14)
    if header.is_fragment:
        raise PacketError(FrameDrop.FRAGMENT, "an IPv4 fragment", 14 + 6)
    if header.protocol != IPProtocol.UDP:
        raise PacketError(FrameDrop.NOT_UDP, f"IPv4 protocol {header.protocol}", 14 + 9)
    if header.options:
        raise PacketError(FrameDrop.IP_OPTIONS, "IPv4 options", 14 + 20)
    return header, segment


def _receive_ipv6(packet: memoryview) -> tuple[IPv6Header, memoryview]:
    # Only the first next header counts, so that a chain of headers costs no walk.
    header, segment = _parse_ipv6_fixed(packet, start=14)
    if header.source.ipv4_mapped is not None or header.destination.ipv4_mapped is not None:
        raise PacketError(FrameDrop.BAD_IP, "an IPv4-mapped address on the wire", 14 + 8)
    if header.protocol == IPProtocol.FRAGMENT:
        raise PacketError(FrameDrop.FRAGMENT, "an IPv6 fragment", 14 + 6)
    if header.protocol in _EXTENSION_HEADERS:
        raise PacketError(
            FrameDrop.IPV6_EXTENSION, f"IPv6 extension header {header.protocol}", 14 + 6
        )
    if header.protocol != IPProtocol.UDP:
        raise PacketError(FrameDrop.NOT_UDP, f"IPv6 next header {header.protocol}", 14 + 6)
    return header, segment


def _check_udp_checksum(
    ip: IPv4Header | IPv6Header, udp: UDPHeader, segment: memoryview, offset: int, *, verified: bool
) -> None:
    if udp.checksum == 0:
        # Whoever verified it verified nothing; the kernel drops these whatever it is told.
        if isinstance(ip, IPv6Header):
            raise PacketError(FrameDrop.NO_UDP_CHECKSUM, "UDP over IPv6 without checksum", offset)
    elif not verified and udp_checksum(ip.source, ip.destination, segment) != 0xFFFF:
        raise PacketError(FrameDrop.BAD_UDP_CHECKSUM, "wrong UDP checksum", offset)
