"""Hypothesis strategies for frames as an AF_PACKET ring hands them over.

`frames(payloads)` draws a frame that `pktstun.packet.receive` accepts, and then, half of
the time, breaks it in one to three named ways. Every fault is applied to an otherwise
consistent frame (a false length comes with a right checksum, for instance), so that each
check is reached through all the checks before it and not stopped by a cheaper one; pairs
of faults show the order of checks. A fault may turn out harmless (a random length can be
the true one): a fault is a direction in which to look, not a verdict.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias, TypedDict

from hypothesis import strategies as st

from pktstun.packet import (
    MAX_DATAGRAM,
    ChecksumStatus,
    EthernetHeader,
    EtherType,
    ExtensionHeader,
    IPAddress,
    IPProtocol,
    IPv4Flags,
    IPv4Header,
    IPv6Header,
    PacketType,
    UDPHeader,
    VlanTag,
    checksum,
    udp_checksum,
)

Faults: TypeAlias = frozenset[str]


class Metadata(TypedDict):
    """What a ring says about a frame: the keyword arguments of `receive`."""

    length: int
    packet_type: PacketType
    vlan_id: int | None
    checksum: ChecksumStatus


# --- Addresses and ports ---

_IPV4_OF_INTEREST = [
    "0.0.0.0",
    "0.0.0.1",
    "10.0.0.1",
    "33.18.164.66",  # the magic cookie: XOR with it gives 0.0.0.0
    "127.0.0.1",
    "127.255.255.255",
    "169.254.0.1",
    "172.16.0.1",
    "192.0.2.1",
    "192.168.1.255",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]

_IPV6_OF_INTEREST = [
    "::",
    "::1",
    "::192.0.2.1",
    # The neighbours of ::ffff:0:0/96.
    "::fffe:ffff:ffff",
    "::1:0:0:0",
    "::1:ffff:c000:201",
    "64:ff9b::192.0.2.1",
    "2001:db8::1",
    "2002:c000:201::1",
    "fc00::1",
    "fe80::1",
    "ff02::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]

ipv4_addresses: st.SearchStrategy[IPv4Address] = st.one_of(
    st.sampled_from([IPv4Address(text) for text in _IPV4_OF_INTEREST]),
    st.ip_addresses(v=4),
)

mapped_addresses: st.SearchStrategy[IPv6Address] = st.builds(
    lambda address: IPv6Address(f"::ffff:{address}"), ipv4_addresses
)

# Mapped addresses are below 2**48, so that these need no filter.
unmapped_addresses: st.SearchStrategy[IPv6Address] = st.one_of(
    st.sampled_from([IPv6Address(text) for text in _IPV6_OF_INTEREST]),
    st.integers(1 << 96, (1 << 128) - 1).map(IPv6Address),
)

ipv6_addresses: st.SearchStrategy[IPv6Address] = unmapped_addresses | mapped_addresses

ip_addresses: st.SearchStrategy[IPAddress] = ipv4_addresses | ipv6_addresses

ports: st.SearchStrategy[int] = st.one_of(
    # STUN's own, and the one that XOR with the magic cookie turns into 0.
    st.sampled_from([0, 3478, 0x2112, 65535]),
    st.integers(0, 65535),
)

mac_addresses: st.SearchStrategy[bytes] = st.binary(min_size=6, max_size=6)


# --- Headers ---

vlan_tags: st.SearchStrategy[VlanTag] = st.builds(
    VlanTag,
    vid=st.sampled_from([0, 1, 4095]) | st.integers(0, 4095),
    pcp=st.integers(0, 7),
    dei=st.booleans(),
    tpid=st.sampled_from([EtherType.VLAN, EtherType.SERVICE_VLAN]),
)

ipv4_options: st.SearchStrategy[bytes] = st.integers(1, 10).flatmap(
    lambda words: st.binary(min_size=4 * words, max_size=4 * words)
)

_extension_kinds = st.sampled_from([kind for kind in IPProtocol if kind != IPProtocol.UDP])


@st.composite
def extension_headers(
    draw: st.DrawFn,
    kinds: st.SearchStrategy[IPProtocol] = _extension_kinds,
) -> ExtensionHeader:
    """One of `kinds`, short ones mostly."""
    kind = draw(kinds)
    length = 8
    if kind != IPProtocol.FRAGMENT:
        unit = 4 if kind == IPProtocol.AUTHENTICATION else 8
        length += unit * draw(st.integers(0, 6))
    return ExtensionHeader(kind, draw(st.binary(min_size=length - 2, max_size=length - 2)))


@st.composite
def _false_lengths(draw: st.DrawFn, true: int, edges: list[int]) -> int:
    """A value for a 16-bit length field: next to the true one, at an edge, or anything."""
    near = [true - 8, true - 1, true + 1, true + 8, 0, 0xFFFF]
    candidates = [value for value in near + edges if 0 <= value <= 0xFFFF]
    return draw(st.sampled_from(candidates) | st.integers(0, 0xFFFF))


# --- Frames ---

# In the order of the checks that they aim at.
FAULTS = [
    "packet type",
    "snap length",
    "stripped tag",
    "short",
    "tags",
    "ethertype",
    "version",
    "header length",
    "ip length",
    "ip checksum",
    "mapped",
    "fragment",
    "protocol",
    "options",
    "udp length",
    "no udp checksum",
    "udp checksum",
    "too long",
    "mutation",
    "noise",
]

_ONE_FAULT: st.SearchStrategy[Faults] = st.sampled_from([frozenset({fault}) for fault in FAULTS])

# A checksum that nobody vouches for is the usual case, and the only one that is verified.
_statuses = st.sampled_from([ChecksumStatus.UNVERIFIED] * 3 + [*ChecksumStatus])

_fault_sets: st.SearchStrategy[Faults] = st.sampled_from(range(12)).flatmap(
    lambda die: (
        st.just(frozenset())
        if die < 7
        else _ONE_FAULT
        if die < 10
        else st.frozensets(st.sampled_from(FAULTS), min_size=2, max_size=3)
    )
)


@st.composite
def frames(draw: st.DrawFn, payloads: st.SearchStrategy[bytes]) -> tuple[bytes, Metadata]:
    """An Ethernet frame around one of `payloads`, or a broken one, and its metadata."""
    faults = draw(_fault_sets)
    status = draw(_statuses)
    if "noise" in faults:
        frame = draw(st.binary(max_size=120))
    else:
        frame = _frame(draw, faults, draw(payloads), status)
    if "mutation" in faults and frame:
        frame = _mutated(draw, frame)
    if "short" in faults:
        frame = frame[: draw(st.integers(0, 80))]
    length = len(frame)
    if "snap length" in faults:
        frame = frame[: draw(st.integers(0, length))]
    metadata = Metadata(
        length=length,
        packet_type=draw(st.sampled_from(PacketType))
        if "packet type" in faults
        else PacketType.HOST,
        vlan_id=draw(
            st.integers(0, 4095) if "stripped tag" in faults else st.sampled_from([None, 0])
        ),
        checksum=status,
    )
    return frame, metadata


def _mutated(draw: st.DrawFn, frame: bytes) -> bytes:
    mutated = bytearray(frame)
    # Most of what is looked at is in the headers: Ethernet, IPv6 and UDP have 62 bytes.
    positions = st.integers(0, min(len(frame), 62) - 1) | st.integers(0, len(frame) - 1)
    for position in draw(st.lists(positions, min_size=1, max_size=4)):
        mutated[position] = draw(st.integers(0, 255))
    return bytes(mutated)


def _frame(draw: st.DrawFn, faults: Faults, payload: bytes, status: ChecksumStatus) -> bytes:
    if "too long" in faults:
        size = draw(st.sampled_from([MAX_DATAGRAM, MAX_DATAGRAM + 1, MAX_DATAGRAM + 500]))
        payload = payload.ljust(size, b"\0")
    families = [EtherType.IPV4, EtherType.IPV6]
    if faults & {"mapped", "no udp checksum"}:
        families += [EtherType.IPV6] * 2  # where these are faults
    ethertype = draw(st.sampled_from(families))
    if ethertype == EtherType.IPV4:
        packet = _ipv4_packet(draw, faults, payload, status)
    else:
        packet = _ipv6_packet(draw, faults, payload, status)
    tags = draw(st.lists(vlan_tags, min_size=1, max_size=2)) if "tags" in faults else []
    frame = EthernetHeader(draw(mac_addresses), draw(mac_addresses), ethertype, tuple(tags)).encode(
        packet
    )
    if "ethertype" in faults:
        # ARP, IEEE 802.3, the other family, an obsolete tag, anything.
        known = st.sampled_from([0x0806, 0x0026, 0x0800, 0x86DD, 0x9100])
        number = draw(known | st.integers(0, 0xFFFF))
        position = 12 + 4 * len(tags)
        frame = frame[:position] + number.to_bytes(2, "big") + frame[position + 2 :]
    padding = draw(st.sampled_from([0, 0, max(0, 60 - len(frame)), 1, 7, 40]))
    return frame + draw(st.binary(min_size=padding, max_size=padding))


def _protocol(draw: st.DrawFn, faults: Faults) -> int:
    if "protocol" not in faults:
        return IPProtocol.UDP
    # ICMP, IGMP, TCP, IPv6 in IP, ESP, ICMPv6, no next header, SCTP, UDP-Lite.
    return draw(st.sampled_from([1, 2, 6, 41, 50, 58, 59, 132, 136]) | st.integers(0, 255))


def _ipv4_packet(draw: st.DrawFn, faults: Faults, payload: bytes, status: ChecksumStatus) -> bytes:
    source, destination = draw(ipv4_addresses), draw(ipv4_addresses)
    segment = _segment(draw, faults, payload, status, (source, destination))
    # The flag that must be zero is nobody's business, so it is set at times.
    flags = draw(st.sampled_from([IPv4Flags.NONE, IPv4Flags.DONT_FRAGMENT, IPv4Flags.RESERVED]))
    fragment_offset = 0
    if "fragment" in faults:
        flags |= draw(st.sampled_from([IPv4Flags.NONE, IPv4Flags.MORE_FRAGMENTS]))
        fragment_offset = draw(st.sampled_from([0, 1, 0x1FFF]) | st.integers(0, 0x1FFF))
    packet = bytearray(
        IPv4Header(
            source,
            destination,
            _protocol(draw, faults),
            ttl=draw(st.integers(0, 255)),
            traffic_class=draw(st.integers(0, 255)),
            identification=draw(st.integers(0, 0xFFFF)),
            flags=flags,
            fragment_offset=fragment_offset,
            options=draw(ipv4_options) if "options" in faults else b"",
        ).encode(segment)
    )
    header_length = len(packet) - len(segment)
    if "version" in faults:
        packet[0] = draw(st.integers(0, 15)) << 4 | packet[0] & 0x0F
    if "header length" in faults:
        packet[0] = packet[0] & 0xF0 | draw(st.integers(0, 15))
    if "ip length" in faults:
        edges = [header_length - 1, header_length, header_length + 7, header_length + 8]
        packet[2:4] = draw(_false_lengths(len(packet), edges)).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    value = checksum(packet[: 4 * (packet[0] & 0x0F)])
    if "ip checksum" in faults:
        value ^= draw(st.integers(0, 0xFFFF))
    packet[10:12] = value.to_bytes(2, "big")
    return bytes(packet)


def _ipv6_packet(draw: st.DrawFn, faults: Faults, payload: bytes, status: ChecksumStatus) -> bytes:
    source, destination = draw(unmapped_addresses), draw(unmapped_addresses)
    if "mapped" in faults:
        source, destination = draw(
            st.tuples(mapped_addresses, unmapped_addresses)
            | st.tuples(unmapped_addresses, mapped_addresses)
            | st.tuples(mapped_addresses, mapped_addresses)
        )
    segment = _segment(draw, faults, payload, status, (source, destination))
    extensions: list[ExtensionHeader] = []
    if "options" in faults:
        extensions = draw(st.lists(extension_headers(), min_size=1, max_size=3))
    if "fragment" in faults:
        fragment = draw(extension_headers(st.just(IPProtocol.FRAGMENT)))
        extensions.insert(draw(st.integers(0, len(extensions))), fragment)
    packet = bytearray(
        IPv6Header(
            source,
            destination,
            _protocol(draw, faults),
            hop_limit=draw(st.integers(0, 255)),
            traffic_class=draw(st.integers(0, 255)),
            flow_label=draw(st.integers(0, 0xFFFFF)),
            extensions=tuple(extensions),
        ).encode(segment)
    )
    if "version" in faults:
        packet[0] = draw(st.integers(0, 15)) << 4 | packet[0] & 0x0F
    if "ip length" in faults:
        lie = draw(_false_lengths(len(packet) - 40, [7, 8]))
        packet[4:6] = lie.to_bytes(2, "big")
    return bytes(packet)


def _segment(
    draw: st.DrawFn,
    faults: Faults,
    payload: bytes,
    status: ChecksumStatus,
    addresses: tuple[IPAddress, IPAddress],
) -> bytes:
    segment = bytearray(UDPHeader(draw(ports), draw(ports)).encode(payload, *addresses))
    if "udp length" in faults:
        segment[4:6] = draw(_false_lengths(len(segment), [7, 8])).to_bytes(2, "big")
        segment[6:8] = bytes(2)
        segment[6:8] = udp_checksum(*addresses, segment).to_bytes(2, "big")
    if "no udp checksum" in faults:
        segment[6:8] = bytes(2)
    # Where somebody else vouches for the checksum, its field may hold anything.
    if "udp checksum" in faults or (
        status is not ChecksumStatus.UNVERIFIED and draw(st.booleans())
    ):
        segment[6:8] = draw(st.binary(min_size=2, max_size=2))
    return bytes(segment)
