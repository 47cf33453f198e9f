"""Capture files, pcap and pcapng: the packets in them, and the UDP datagrams in the packets.

Theory of operation
===================

Two steps, which know nothing of each other. `read_capture` takes a file apart and gives
packets: bytes, a timestamp, and the link type that says what the bytes begin with.
`datagram_of` takes a packet apart with the parsers of `pktstun.packet` and gives the UDP
datagram in it, or says why there is none:

    for packet in read_capture(path.read_bytes()):
        datagram = datagram_of(packet)

A pcap file (draft-ietf-opsawg-pcap) is a header, which holds for all of the file, and
records. A pcapng file (draft-ietf-opsawg-pcapng) is a sequence of blocks that all begin and
end alike, so that unknown ones can be skipped. A Section Header Block sets the byte order
and forgets the interfaces; an Interface Description Block adds one, with its link type and
its unit of time; packet blocks refer to interfaces by number. The options of packet blocks
are not looked at: of those, only the length of the FCS would matter here, and it changes
from packet to packet on no link layer that `datagram_of` knows.

Three rules hold for all of it:

- Reading is total. Whatever the bytes are, the outcome is packets and then at most one
  `CaptureError`. What was whole before a problem has been given by then.
- Nothing is allocated by a length in the file. Each is held against the bytes that are
  there before use, and every step forward is at least the size of a header.
- Numbers are exact. Timestamps are integers, nanoseconds since 1970-01-01 00:00:00 UTC;
  offsets are bytes from the start of the file, so that a hex editor finds them.

Checksums are not verified: a packet that was captured where it was sent often has them
still unfinished, as the network card would have computed them.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pktstun.errors import PacketError, PktstunError
from pktstun.packet import (
    BytesLike,
    EtherType,
    FrameDrop,
    IPAddress,
    IPProtocol,
    IPv4Header,
    IPv6Header,
    checksum,
    parse_ethernet,
    parse_ipv4,
    parse_ipv6,
    parse_udp,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "UNSUPPORTED_LINK_TYPE",
    "CaptureError",
    "CapturedDatagram",
    "CapturedPacket",
    "LinkType",
    "datagram_of",
    "is_capture",
    "read_capture",
]

_NANOSECONDS = 1_000_000_000

# The byte order, as struct names it, and the nanoseconds in a unit of the fraction
# (draft-ietf-opsawg-pcap section 4).
_PCAP_MAGICS = {
    bytes.fromhex("a1b2c3d4"): (">", 1000),
    bytes.fromhex("d4c3b2a1"): ("<", 1000),
    bytes.fromhex("a1b23c4d"): (">", 1),
    bytes.fromhex("4d3cb2a1"): ("<", 1),
}

# A palindrome, since the byte order is not known before the magic number behind it
# (draft-ietf-opsawg-pcapng section 4.1).
_SECTION_HEADER = bytes.fromhex("0a0d0d0a")
_BYTE_ORDER_MAGICS = {bytes.fromhex("1a2b3c4d"): ">", bytes.fromhex("4d3c2b1a"): "<"}

UNSUPPORTED_LINK_TYPE = "link_type"
"""The one reason of `datagram_of` that is no `FrameDrop`: a ring has Ethernet only."""


class CaptureError(PktstunError, ValueError):
    """Bytes that are no capture file, or the place where one is broken or cut short.

    `offset` is the byte offset in the file at which the problem was found.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset})")
        self.offset = offset


class LinkType(enum.IntEnum):
    """What packets begin with, as far as `datagram_of` knows (draft-ietf-opsawg-pcaplinktype).

    https://www.tcpdump.org/linktypes.html describes each of the headers.
    """

    NULL = 0  # BSD loopback: the address family, in the byte order of the host
    ETHERNET = 1
    RAW_BSD = 12  # RAW by the number that it has inside most systems
    RAW_OPENBSD = 14  # and inside OpenBSD; some programs write these two
    RAW = 101  # IPv4 or IPv6: the version says which
    LOOP = 108  # OpenBSD loopback: like NULL, but big-endian
    LINUX_SLL = 113  # Linux "cooked": what the device "any" gives
    IPV4 = 228
    IPV6 = 229
    LINUX_SLL2 = 276


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """A packet of a capture file.

    `data` is what was captured of it, FCS not included if the file says how long that is;
    `timestamp` when, in nanoseconds since 1970-01-01 00:00:00 UTC, a finer one rounded
    down, and None if the file does not say; `wire_length` its length in bytes before the
    snap length cut it, never less than that of `data`; `link_type` what `data` begins
    with: a `LinkType`, or another number of the registry; `offset` the byte offset of
    `data` in the file.
    """

    data: bytes
    timestamp: int | None
    wire_length: int
    link_type: int
    offset: int


@dataclass(frozen=True, slots=True)
class CapturedDatagram:
    """A UDP datagram of a captured packet; `offset` is that of `payload` in the file, in bytes."""

    source_ip: IPAddress
    source_port: int
    destination_ip: IPAddress
    destination_port: int
    payload: bytes
    offset: int


def is_capture(data: BytesLike) -> bool:
    """Tell by the magic numbers whether `data` begins a pcap or pcapng file.

    The first twelve bytes are enough; with fewer than four (pcap) or twelve (pcapng) the
    answer is no. Whether the rest can be read is for `read_capture` to find out.
    """
    head = bytes(memoryview(data).cast("B")[:12])
    if head[:4] == _SECTION_HEADER:
        return head[8:] in _BYTE_ORDER_MAGICS
    return head[:4] in _PCAP_MAGICS


def read_capture(data: BytesLike) -> Iterator[CapturedPacket]:
    """Read all packets of a pcap or pcapng file, in the order of the file.

    `data` is the whole file; a memoryview of an mmap will do, so that it need not fit in
    memory. Blocks of pcapng that hold no packets are skipped.

    Yields packets one by one, and looks no further ahead than that.

    Raises CaptureError, while iterating and after all the packets before it, where the
    file stops to make sense: it is no capture file, its version is not known (pcap 2.4,
    pcapng 1.x), it ends inside a record or a block, a length or an option does not agree
    with what is around it, or a packet refers to an interface that was not described.
    """
    file = memoryview(data).cast("B")
    magic = bytes(file[:4])
    if magic == _SECTION_HEADER:
        yield from _read_pcapng(file)
    elif magic in _PCAP_MAGICS:
        yield from _read_pcap(file)
    else:
        raise CaptureError("neither a pcap nor a pcapng file begins like this", 0)


def _known(link_type: int) -> int:
    try:
        return LinkType(link_type)
    except ValueError:
        return link_type


def _without_fcs(data: memoryview, original_length: int, fcs_length: int) -> tuple[bytes, int]:
    """Return a packet and its length on the wire, both without the FCS, all in bytes.

    The FCS is at the end of what was on the wire, so that a cut may have left none of it.
    """
    # A length on the wire below what was captured is allowed, and a reader may raise it
    # (draft-ietf-opsawg-pcap section 5, draft-ietf-opsawg-pcapng section 4.3).
    wire_length = max(max(original_length, len(data)) - fcs_length, 0)
    return bytes(data[:wire_length]), wire_length


# --- pcap ---


def _read_pcap(file: memoryview) -> Iterator[CapturedPacket]:
    order, unit = _PCAP_MAGICS[bytes(file[:4])]
    if len(file) < 24:
        raise CaptureError(f"the file header has 24 bytes, {len(file)} are there", 0)
    #    0                   1                   2                   3
    #    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    #   +-------+-+-+-------------------+-------------------------------+
    #   |FCS len|R|P|      reserved     |           link type           |
    #   +-------+-+-+-------------------+-------------------------------+
    major, minor, link = struct.unpack_from(f"{order}4xHH12xI", file)
    # Older versions had the two lengths of a record in the other order, at times.
    if (major, minor) != (2, 4):
        raise CaptureError(f"version {major}.{minor} of pcap, only 2.4 can be read", 4)
    if link & 0x0BFF0000:
        raise CaptureError(f"reserved bits are set beside the link type: {link:#010x}", 20)
    fcs_length = 2 * (link >> 28) if link & 0x04000000 else 0
    link_type = _known(link & 0xFFFF)
    position = 24
    while position < len(file):
        left = len(file) - position - 16
        if left < 0:
            raise CaptureError("the file ends inside the header of a packet", position)
        seconds, fraction, captured_length, original_length = struct.unpack_from(
            f"{order}IIII", file, position
        )
        if captured_length > left:
            raise CaptureError(
                f"the file ends inside a packet: {captured_length} bytes, {left} are there",
                position + 8,
            )
        start = position + 16
        position = start + captured_length
        packet, wire_length = _without_fcs(file[start:position], original_length, fcs_length)
        timestamp = seconds * _NANOSECONDS + fraction * unit
        yield CapturedPacket(packet, timestamp, wire_length, link_type, start)


# --- pcapng: the sections named here are those of draft-ietf-opsawg-pcapng ---


class _BlockType(enum.IntEnum):
    """The blocks that matter here (section 10.1)."""

    INTERFACE_DESCRIPTION = 1
    PACKET = 2  # obsolete
    SIMPLE_PACKET = 3
    ENHANCED_PACKET = 6
    SECTION_HEADER = 0x0A0D0D0A


class _Option(enum.IntEnum):
    """The options that matter here, of an Interface Description Block (section 4.2)."""

    END = 0  # section 3.5
    TIMESTAMP_RESOLUTION = 9  # if_tsresol
    FCS_LENGTH = 13  # if_fcslen
    TIMESTAMP_OFFSET = 14  # if_tsoffset


# How struct sees the values; the other options may hold anything.
_OPTION_FORMATS = {
    _Option.TIMESTAMP_RESOLUTION: "B",
    _Option.FCS_LENGTH: "B",
    _Option.TIMESTAMP_OFFSET: "q",
}


@dataclass(frozen=True, slots=True)
class _Block:
    """A block: byte order, type, offset of its body in the file, and the body."""

    order: str
    kind: int
    start: int
    body: memoryview

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Return the fixed fields that the body begins with.

        Raises CaptureError if it is too short for them.
        """
        length = struct.calcsize(f"={layout}")
        if length > len(self.body):
            raise CaptureError(
                f"a block of type {self.kind:#x} has at least {length + 12} bytes, "
                f"not {len(self.body) + 12}",
                self.start - 4,
            )
        return struct.unpack_from(self.order + layout, self.body)

    def data(self, start: int, length: int) -> memoryview:
        """Return a packet's `length` bytes, from `start` in the body.

        Raises CaptureError if they are not all there.
        """
        left = len(self.body) - start
        if length > left:
            raise CaptureError(
                f"a packet of {length} bytes in a block that has room for {left}", self.start
            )
        return self.body[start : start + length]


@dataclass(frozen=True, slots=True)
class _Interface:
    """What an Interface Description Block says: lengths in bytes, the offset in seconds."""

    link_type: int
    snap_length: int  # 0: no limit
    fcs_length: int
    units_per_second: int
    timestamp_offset: int

    def timestamp(self, high: int, low: int) -> int:
        """Return nanoseconds since the epoch, rounded down, for the two words of a timestamp."""
        since_offset = (high << 32 | low) * _NANOSECONDS // self.units_per_second
        return self.timestamp_offset * _NANOSECONDS + since_offset


def _blocks(file: memoryview) -> Iterator[_Block]:
    """Yield the blocks of a file that begins with a section header (section 3.1)."""
    order = ""
    position = 0
    while position < len(file):
        left = len(file) - position
        if left < 12:
            raise CaptureError(f"a block has at least 12 bytes, {left} are left", position)
        if file[position : position + 4] == _SECTION_HEADER:
            magic = bytes(file[position + 8 : position + 12])
            if magic not in _BYTE_ORDER_MAGICS:
                raise CaptureError(f"{magic.hex()} is no byte-order magic", position + 8)
            order = _BYTE_ORDER_MAGICS[magic]
        kind, length = struct.unpack_from(f"{order}II", file, position)
        if length < 12 or length % 4:
            raise CaptureError(f"a block cannot have {length} bytes", position + 4)
        if length > left:
            raise CaptureError(
                f"the file ends inside a block: {length} bytes, {left} are there", position + 4
            )
        end = position + length
        (trailer,) = struct.unpack_from(f"{order}I", file, end - 4)
        if trailer != length:
            raise CaptureError(f"a block of {length} bytes ends as one of {trailer}", end - 4)
        yield _Block(order, kind, position + 8, file[position + 8 : end - 4])
        position = end


def _read_pcapng(file: memoryview) -> Iterator[CapturedPacket]:
    interfaces: list[_Interface] = []
    for block in _blocks(file):
        match block.kind:
            case _BlockType.SECTION_HEADER:
                _check_section_header(block)
                interfaces = []
            case _BlockType.INTERFACE_DESCRIPTION:
                interfaces.append(_parse_interface(block))
            case _BlockType.ENHANCED_PACKET:
                yield _parse_packet(block, interfaces, "IIIII")
            case _BlockType.PACKET:
                # Appendix A: half of the interface number counts lost packets.
                yield _parse_packet(block, interfaces, "H2xIIII")
            case _BlockType.SIMPLE_PACKET:
                yield _parse_simple_packet(block, interfaces)


def _check_section_header(block: _Block) -> None:
    """Check what a section says of itself (section 4.1).

    The minor version does not matter: 1.2 is to be read as 1.0. Neither does the length of
    the section, which is for skipping it. A section of another major version could be
    skipped (section 3.4), but then its packets would be missing and nobody would know.
    """
    major, minor, _ = block.unpack("4xHHq")
    if major != 1:
        raise CaptureError(
            f"version {major}.{minor} of pcapng, only 1.x can be read", block.start + 4
        )


def _parse_interface(block: _Block) -> _Interface:
    """Parse an Interface Description Block (section 4.2)."""
    link_type, snap_length = block.unpack("H2xI")
    options = _parse_options(block, 8)
    resolution = options.get(_Option.TIMESTAMP_RESOLUTION, 6)
    base = 2 if resolution & 0x80 else 10
    return _Interface(
        _known(link_type),
        snap_length,
        # In bits, says the text, though its example is 4. What is no whole number of bytes
        # stays on: behind an IP packet it does no harm.
        fcs_length=options.get(_Option.FCS_LENGTH, 0) // 8,
        units_per_second=base ** (resolution & 0x7F),
        timestamp_offset=options.get(_Option.TIMESTAMP_OFFSET, 0),
    )


def _parse_options(block: _Block, position: int) -> dict[int, int]:
    """Return the numbers among the options from `position` in the body on (section 3.5)."""
    found: dict[int, int] = {}
    # The body and everything in it is padded to four bytes, so that what is left is either
    # nothing or enough for the head of an option.
    while position < len(block.body):
        code, length = struct.unpack_from(f"{block.order}HH", block.body, position)
        if code == _Option.END:
            break
        start = position + 4
        if length > len(block.body) - start:
            raise CaptureError(
                f"option {code} has {length} bytes, {len(block.body) - start} are there",
                block.start + position + 2,
            )
        layout = block.order + _OPTION_FORMATS.get(code, f"{length}x")
        if struct.calcsize(layout) != length:
            raise CaptureError(
                f"option {code} has {struct.calcsize(layout)} bytes, not {length}",
                block.start + position + 2,
            )
        for value in struct.unpack_from(layout, block.body, start):
            found[code] = value
        position = start + (length + 3) // 4 * 4
    return found


def _interface(block: _Block, interfaces: list[_Interface], number: int) -> _Interface:
    if number >= len(interfaces):
        raise CaptureError(
            f"a packet of interface {number}, {len(interfaces)} are described", block.start
        )
    return interfaces[number]


def _parse_packet(block: _Block, interfaces: list[_Interface], layout: str) -> CapturedPacket:
    """Parse an Enhanced Packet Block (section 4.3) or a Packet Block (appendix A).

    `layout` is that of interface number, timestamp (two words) and the lengths captured
    and on the wire, 20 bytes in all.
    """
    number, high, low, captured_length, original_length = block.unpack(layout)
    interface = _interface(block, interfaces, number)
    captured = block.data(20, captured_length)
    data, wire_length = _without_fcs(captured, original_length, interface.fcs_length)
    timestamp = interface.timestamp(high, low)
    return CapturedPacket(data, timestamp, wire_length, interface.link_type, block.start + 20)


def _parse_simple_packet(block: _Block, interfaces: list[_Interface]) -> CapturedPacket:
    """Parse a Simple Packet Block, which belongs to the first interface (section 4.4)."""
    (original_length,) = block.unpack("I")
    interface = _interface(block, interfaces, 0)
    # The length captured is not written down: it follows from the snap length.
    captured = block.data(4, min(original_length, interface.snap_length or original_length))
    data, wire_length = _without_fcs(captured, original_length, interface.fcs_length)
    return CapturedPacket(data, None, wire_length, interface.link_type, block.start + 4)


# --- Datagrams ---


def datagram_of(packet: CapturedPacket) -> CapturedDatagram:
    """Take the UDP datagram out of a captured packet.

    IPv4 options, IPv6 extension headers and VLAN tags in front of it are passed over, and
    so is whatever follows it: padding, or UDP options (RFC 9868). Checksums are not
    verified. A packet that the snap length cut behind its datagram is fine.

    Raises PacketError, its offset in bytes from the start of `packet.data`, with one of
    these reasons:

    - UNSUPPORTED_LINK_TYPE: the link type is no `LinkType`;
    - FrameDrop.TRUNCATED: the snap length cut what was needed to find a datagram or any of
      the other reasons;
    - FrameDrop.VLAN: the packet ends inside a VLAN tag;
    - FrameDrop.NOT_IP: ARP and the like;
    - FrameDrop.BAD_IP: the IP header, or the one before it, is too short or is at odds
      with the bytes that are there;
    - FrameDrop.IPV6_EXTENSION: an extension header does not end within the packet;
    - FrameDrop.FRAGMENT: a part of a datagram, whatever it is a part of;
    - FrameDrop.NOT_UDP: TCP, ICMP and all the rest;
    - FrameDrop.BAD_UDP_LENGTH: the datagram is longer than the IP payload, or shorter than
      its own header.
    """
    try:
        link_type = LinkType(packet.link_type)
    except ValueError:
        raise PacketError(
            UNSUPPORTED_LINK_TYPE, f"link type {packet.link_type} is not supported", 0
        ) from None
    try:
        return _dissect(link_type, packet)
    except PacketError as error:
        # What the headers say holds however little of the packet is there. The rest may
        # be the cut's fault.
        said_by_headers = error.reason in {
            FrameDrop.NOT_IP,
            FrameDrop.FRAGMENT,
            FrameDrop.NOT_UDP,
        }
        length = len(packet.data)
        if said_by_headers or length >= packet.wire_length:
            raise
        raise PacketError(
            FrameDrop.TRUNCATED, f"cut from {packet.wire_length} bytes to {length}", length
        ) from error


def _dissect(link_type: LinkType, packet: CapturedPacket) -> CapturedDatagram:
    frame = memoryview(packet.data)
    ethertype, start = _parse_link(link_type, frame)
    ip: IPv4Header | IPv6Header
    if ethertype == EtherType.IPV4:
        ip, segment = _parse_ipv4(frame[start:], start)
        udp_start = start + 20 + len(ip.options)
        is_fragment = ip.is_fragment
    elif ethertype == EtherType.IPV6:
        ip, segment = parse_ipv6(frame[start:], start=start)
        udp_start = start + 40 + sum(2 + len(extension.data) for extension in ip.extensions)
        is_fragment = _is_ipv6_fragment(ip)
    else:
        raise PacketError(FrameDrop.NOT_IP, f"ethertype {ethertype:#06x} is not IP", 0)
    if is_fragment:
        raise PacketError(FrameDrop.FRAGMENT, f"an IPv{ip.source.version} fragment", start)
    if ip.protocol != IPProtocol.UDP:
        raise PacketError(FrameDrop.NOT_UDP, f"IP protocol {ip.protocol}", start)
    # The parser wants the datagram to fill the IP payload; here it only has to fit.
    udp_length = int.from_bytes(segment[4:6], "big")
    if udp_length >= 8:
        segment = segment[:udp_length]
    udp, payload = parse_udp(segment, start=udp_start)
    return CapturedDatagram(
        source_ip=ip.source,
        source_port=udp.source_port,
        destination_ip=ip.destination,
        destination_port=udp.destination_port,
        payload=bytes(payload),
        offset=packet.offset + udp_start + 8,
    )


def _parse_link(link_type: LinkType, frame: memoryview) -> tuple[int, int]:
    """Return the ethertype of the packet in a frame, and where in the frame it begins."""
    match link_type:
        case LinkType.ETHERNET:
            ethernet, _ = parse_ethernet(frame)
            return ethernet.ethertype, 14 + 4 * len(ethernet.vlan_tags)
        case LinkType.LINUX_SLL:
            return _parse_cooked(frame, length=16, protocol_at=14)
        case LinkType.LINUX_SLL2:
            return _parse_cooked(frame, length=20, protocol_at=0)
        case LinkType.NULL | LinkType.LOOP:
            return _parse_loopback(link_type, frame)
        case LinkType.IPV4:
            return EtherType.IPV4, 0
        case LinkType.IPV6:
            return EtherType.IPV6, 0
        case _:
            # RAW, by one of its numbers. What is of neither version is for the parser to
            # refuse.
            is_ipv6 = int.from_bytes(frame[:1], "big") >> 4 == 6
            return EtherType.IPV6 if is_ipv6 else EtherType.IPV4, 0


def _parse_cooked(frame: memoryview, *, length: int, protocol_at: int) -> tuple[int, int]:
    """Parse a header of Linux cooked captures, where only the protocol matters.

    That is an ethertype, big-endian, at `protocol_at`; `length` is that of the header. For
    devices other than networks it may be another number, none of which is that of IP.
    https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL.html and LINKTYPE_LINUX_SLL2.html
    """
    if len(frame) < length:
        raise PacketError(
            FrameDrop.BAD_IP, f"a cooked header has {length} bytes, the packet {len(frame)}", 0
        )
    # VLAN tags follow as they do in Ethernet, whose parser knows them: all it needs is
    # something in the place of addresses.
    disguised = b"".join((bytes(12), frame[protocol_at : protocol_at + 2], frame[length:]))
    try:
        ethernet, _ = parse_ethernet(disguised)
    except PacketError as error:
        raise PacketError(error.reason, "the packet ends inside a VLAN tag", length) from error
    return ethernet.ethertype, length + 4 * len(ethernet.vlan_tags)


def _parse_loopback(link_type: LinkType, frame: memoryview) -> tuple[int, int]:
    """Parse the header of BSD loopback devices: an address family, four bytes.

    https://www.tcpdump.org/linktypes/LINKTYPE_NULL.html and LINKTYPE_LOOP.html
    """
    if len(frame) < 4:
        raise PacketError(
            FrameDrop.BAD_IP, f"a loopback header has 4 bytes, the packet {len(frame)}", 0
        )
    # NULL is in the byte order of the host that captured, which need not be that of the
    # host that wrote the file. No family is another one backwards.
    families = {int.from_bytes(frame[:4], "big")}
    if link_type is LinkType.NULL:
        families.add(int.from_bytes(frame[:4], "little"))
    if 2 in families:
        return EtherType.IPV4, 4
    # Every BSD has a number of its own: NetBSD and OpenBSD, FreeBSD, macOS.
    if families & {24, 28, 30}:
        return EtherType.IPV6, 4
    raise PacketError(FrameDrop.NOT_IP, f"address family {bytes(frame[:4]).hex()} is not IP", 0)


def _parse_ipv4(data: memoryview, start: int) -> tuple[IPv4Header, memoryview]:
    """Do what `parse_ipv4` does, but whatever the header checksum is."""
    try:
        return parse_ipv4(data, start=start)
    except PacketError as error:
        if error.reason is not FrameDrop.BAD_IP_CHECKSUM:
            raise
    # It was the last thing to be checked, so that all the rest is right.
    filled_in = bytearray(data)
    filled_in[10:12] = bytes(2)
    header_length = 4 * (filled_in[0] & 0x0F)
    filled_in[10:12] = checksum(filled_in[:header_length]).to_bytes(2, "big")
    return parse_ipv4(filled_in, start=start)


def _is_ipv6_fragment(header: IPv6Header) -> bool:
    """Tell whether the payload is only a part of the datagram (RFC 8200 section 4.5).

    A fragment header may also stand before a whole datagram (RFC 6946).
    """
    return any(
        extension.kind == IPProtocol.FRAGMENT
        and (extension.fragment_offset or extension.data[1] & 1)
        for extension in header.extensions
    )
