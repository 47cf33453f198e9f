"""pktstun.packet: properties first, then tables of frames made by hand."""

from __future__ import annotations

import array
import socket
import struct
from collections import Counter
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from pktstun.errors import PacketError
from pktstun.packet import (
    MAX_DATAGRAM,
    ChecksumStatus,
    Datagram,
    EthernetHeader,
    EtherType,
    ExtensionHeader,
    FrameDrop,
    IPAddress,
    IPProtocol,
    IPv4Flags,
    IPv4Header,
    IPv6Header,
    PacketType,
    UDPHeader,
    VlanTag,
    build_reply_frame,
    build_udp_frame,
    checksum,
    parse_ethernet,
    parse_ipv4,
    parse_ipv6,
    parse_udp,
    receive,
    udp_checksum,
)
from tests.strategies.frames import (
    Metadata,
    extension_headers,
    frames,
    ipv4_addresses,
    ipv4_options,
    ipv6_addresses,
    mac_addresses,
    mapped_addresses,
    ports,
    unmapped_addresses,
    vlan_tags,
)

if TYPE_CHECKING:
    from collections.abc import Callable

payloads = st.binary(max_size=64)
address_pairs = st.tuples(ipv4_addresses, ipv4_addresses) | st.tuples(
    unmapped_addresses, unmapped_addresses
)
mac_pairs = st.tuples(mac_addresses, mac_addresses)
octets = st.integers(0, 255)
words = st.integers(0, 0xFFFF)


def verdict(frame: bytes | bytearray | memoryview, **metadata: Any) -> Datagram | str:
    try:
        return receive(frame, **metadata)
    except PacketError as error:
        problem = error
    assert type(problem.reason) is FrameDrop
    assert 0 <= problem.offset <= len(frame)
    return problem.reason


# --- Checksums ---


def textbook_sum(data: bytes) -> int:
    """The ones' complement sum as RFC 1071 section 4.1 has it in C."""
    total = 0
    for high, low in zip(data[0::2], data[1::2] + b"\0", strict=False):
        total += high << 8 | low
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
    return total


def test_checksum_of_rfc_1071_section_3() -> None:
    assert checksum(bytes.fromhex("0001 f203 f4f5 f6f7")) == 0xFFFF - 0xDDF2


@given(st.binary(max_size=200))
@example(b"")
@example(b"\0")
@example(b"\xff\xff")
@example(b"\xff\xff" * 3)
def test_checksum_is_the_textbook_one(data: bytes) -> None:
    assert checksum(data) == 0xFFFF - textbook_sum(data)


@given(st.binary(min_size=1))
def test_checksum_of_an_odd_number_of_bytes_pads_with_zero(data: bytes) -> None:
    odd = data[: len(data) - 1 + len(data) % 2]
    assert checksum(odd) == checksum(odd + b"\0")


@given(st.binary(), st.integers(0, 20))
def test_data_with_its_checksum_folds_to_ffff(data: bytes, position: int) -> None:
    assume(any(data))
    at = min(2 * position, len(data) // 2 * 2)
    start, end = data[:at], data[at:]
    filled = start + checksum(start + b"\0\0" + end).to_bytes(2, "big") + end
    assert textbook_sum(filled) == 0xFFFF
    assert checksum(filled) == 0


@given(st.binary().filter(lambda data: len(data) % 2 == 0), st.binary())
def test_checksum_goes_on_where_it_stopped(before: bytes, after: bytes) -> None:
    assert checksum(after, ~checksum(before) & 0xFFFF) == checksum(before + after)


@given(address_pairs, st.binary(max_size=64))
def test_udp_checksum_is_over_the_pseudo_header(
    addresses: tuple[IPAddress, IPAddress], segment: bytes
) -> None:
    source, destination = addresses
    if source.version == 4:  # RFC 768
        length_and_protocol = struct.pack("!BBH", 0, 17, len(segment))
    else:  # RFC 8200 section 8.1
        length_and_protocol = struct.pack("!IHBB", len(segment), 0, 0, 17)
    data = source.packed + destination.packed + length_and_protocol + segment
    assert udp_checksum(source, destination, segment) == (0xFFFF - textbook_sum(data) or 0xFFFF)


@given(address_pairs, ports, ports, payloads)
def test_udp_checksum_of_zero_is_sent_as_ffff(
    addresses: tuple[IPAddress, IPAddress], source_port: int, destination_port: int, payload: bytes
) -> None:
    header = UDPHeader(source_port, destination_port)
    # A word that brings the sum to 0xFFFF: the checksum of everything else.
    without = header.encode(b"\0\0" + payload, *addresses)
    segment = header.encode(without[6:8] + payload, *addresses)
    assert segment[6:8] == b"\xff\xff"
    assert udp_checksum(*addresses, segment) == 0xFFFF


@given(address_pairs, st.binary(min_size=8, max_size=64), st.data())
def test_udp_checksum_notices_a_changed_byte(
    addresses: tuple[IPAddress, IPAddress], payload: bytes, data: st.DataObject
) -> None:
    segment = bytearray(UDPHeader(1, 2).encode(payload, *addresses))
    assert udp_checksum(*addresses, segment) == 0xFFFF
    segment[data.draw(st.integers(0, len(segment) - 1))] ^= data.draw(st.integers(1, 255))
    assert udp_checksum(*addresses, segment) != 0xFFFF


def test_udp_checksum_wants_one_family() -> None:
    with pytest.raises(ValueError, match="two address families"):
        udp_checksum(IPv4Address("192.0.2.1"), IPv6Address("::1"), b"")


# --- Every header: what is encoded is what is parsed ---


@given(
    st.builds(
        EthernetHeader,
        destination=mac_addresses,
        source=mac_addresses,
        ethertype=words.filter(lambda number: number not in {0x8100, 0x88A8}),
        vlan_tags=st.lists(vlan_tags, max_size=4).map(tuple),
    ),
    payloads,
)
def test_ethernet_round_trip(header: EthernetHeader, payload: bytes) -> None:
    frame = header.encode(payload)
    assert len(frame) == 14 + 4 * len(header.vlan_tags) + len(payload)
    assert parse_ethernet(frame) == (header, memoryview(payload))


ipv4_headers = st.builds(
    IPv4Header,
    source=ipv4_addresses,
    destination=ipv4_addresses,
    protocol=octets,
    ttl=octets,
    traffic_class=octets,
    identification=words,
    flags=st.integers(0, 7).map(IPv4Flags),
    fragment_offset=st.integers(0, 0x1FFF),
    options=st.just(b"") | ipv4_options,
)


@given(ipv4_headers, payloads, payloads)
def test_ipv4_round_trip(header: IPv4Header, payload: bytes, padding: bytes) -> None:
    packet = header.encode(payload)
    assert len(packet) == 20 + len(header.options) + len(payload)
    assert parse_ipv4(packet + padding) == (header, memoryview(payload))


@st.composite
def ipv6_headers(draw: st.DrawFn) -> IPv6Header:
    extensions = []
    for extension in draw(st.lists(extension_headers(), max_size=4)):
        extensions.append(extension)
        if extension.fragment_offset:
            break
    # Only behind a later fragment, an extension header's number does not announce one.
    upper = octets if extensions and extensions[-1].fragment_offset else st.sampled_from([17, 59])
    return IPv6Header(
        source=draw(ipv6_addresses),
        destination=draw(ipv6_addresses),
        protocol=draw(upper),
        hop_limit=draw(octets),
        traffic_class=draw(octets),
        flow_label=draw(st.integers(0, 0xFFFFF)),
        extensions=tuple(extensions),
    )


@given(ipv6_headers(), payloads, payloads)
def test_ipv6_round_trip(header: IPv6Header, payload: bytes, padding: bytes) -> None:
    packet = header.encode(payload)
    extensions = sum(2 + len(extension.data) for extension in header.extensions)
    assert len(packet) == 40 + extensions + len(payload)
    assert parse_ipv6(packet + padding) == (header, memoryview(payload))


@given(address_pairs, ports, ports, st.none() | words, payloads)
def test_udp_round_trip(
    addresses: tuple[IPAddress, IPAddress],
    source_port: int,
    destination_port: int,
    field: int | None,
    payload: bytes,
) -> None:
    segment = UDPHeader(source_port, destination_port, field).encode(payload, *addresses)
    header, parsed = parse_udp(segment)
    assert (header.source_port, header.destination_port) == (source_port, destination_port)
    assert parsed == payload
    if field is None:
        assert udp_checksum(*addresses, segment) == 0xFFFF
    else:
        assert header.checksum == field
    assert header.encode(parsed, *addresses) == segment


@pytest.mark.parametrize("kind", sorted(set(IPProtocol) - {IPProtocol.UDP}))
def test_the_longest_extension_header(kind: int) -> None:
    longest = {IPProtocol.FRAGMENT: 8, IPProtocol.AUTHENTICATION: 1028}.get(IPProtocol(kind), 2048)
    extension = ExtensionHeader(kind, bytes(longest - 2))
    header = IPv6Header(IPv6Address("::1"), IPv6Address("::2"), extensions=(extension,))
    assert parse_ipv6(header.encode(b"payload")) == (header, memoryview(b"payload"))


IP4, IP6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: VlanTag(4096),
        lambda: VlanTag(-1),
        lambda: VlanTag(1, pcp=8),
        lambda: VlanTag(1, tpid=0x9100),
        lambda: EthernetHeader(bytes(5), bytes(6), 0x0800),
        lambda: EthernetHeader(bytes(6), bytes(7), 0x0800),
        lambda: EthernetHeader(bytes(6), bytes(6), 0x10000),
        lambda: EthernetHeader(bytes(6), bytes(6), 0x8100),
        lambda: IPv4Header(IP4, IP4, protocol=256),
        lambda: IPv4Header(IP4, IP4, ttl=-1),
        lambda: IPv4Header(IP4, IP4, traffic_class=256),
        lambda: IPv4Header(IP4, IP4, identification=0x10000),
        lambda: IPv4Header(IP4, IP4, flags=IPv4Flags(8)),
        lambda: IPv4Header(IP4, IP4, fragment_offset=0x2000),
        lambda: IPv4Header(IP4, IP4, options=bytes(3)),
        lambda: IPv4Header(IP4, IP4, options=bytes(44)),
        lambda: IPv4Header(IP4, IP4).encode(bytes(0x10000 - 20)),
        lambda: IPv6Header(IP6, IP6, protocol=256),
        lambda: IPv6Header(IP6, IP6, hop_limit=256),
        lambda: IPv6Header(IP6, IP6, traffic_class=-1),
        lambda: IPv6Header(IP6, IP6, flow_label=0x100000),
        lambda: IPv6Header(IP6, IP6).encode(bytes(0x10000)),
        lambda: ExtensionHeader(17, bytes(6)),
        lambda: ExtensionHeader(50, bytes(6)),
        lambda: ExtensionHeader(60, b""),
        lambda: ExtensionHeader(60, bytes(7)),
        lambda: ExtensionHeader(60, bytes(2054)),
        lambda: ExtensionHeader(44, bytes(14)),
        lambda: ExtensionHeader(51, bytes(2)),
        lambda: ExtensionHeader(51, bytes(8)),
        lambda: ExtensionHeader(51, bytes(1030)),
        lambda: UDPHeader(-1, 0),
        lambda: UDPHeader(0, 0x10000),
        lambda: UDPHeader(0, 0, 0x10000),
        lambda: UDPHeader(0, 0).encode(bytes(0x10000 - 8), IP4, IP4),
        lambda: UDPHeader(0, 0).encode(b"", IP4, IP6),
        lambda: build_udp_frame(b"", (IP4, 1), (IP6, 2)),
        lambda: build_udp_frame(b"", (IP6, 1), (IP4, 2)),
        lambda: build_udp_frame(b"", (IP4, 1), (IP4, 0x10000)),
        lambda: build_udp_frame(b"", (IP4, 1), (IP4, 2), source_mac=b"::1"),
    ],
)
def test_what_does_not_fit_is_a_value_error(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


def test_the_largest_datagrams_fit() -> None:
    for ip, size in ((IP4, 65507), (IP6, 65527)):
        frame = build_udp_frame(bytes(size), (ip, 1), (ip, 2))
        assert verdict(frame) == FrameDrop.TOO_LONG
        with pytest.raises(ValueError, match="65536"):
            build_udp_frame(bytes(size + 1), (ip, 1), (ip, 2))


@pytest.mark.parametrize(
    ("data", "offset"),
    [("0007 00000000", 0), ("0008 00000000", 1), ("fffe 00000000", 0x1FFF)],
)
def test_fragment_offset_excludes_the_flags(data: str, offset: int) -> None:
    fragment = ExtensionHeader(IPProtocol.FRAGMENT, bytes.fromhex(data))
    assert fragment.fragment_offset == offset
    # What a later fragment carries is no header, though its number were one's.
    protocol = IPProtocol.DESTINATION_OPTIONS if offset else IPProtocol.UDP
    header = IPv6Header(IP6, IP6, protocol, extensions=(fragment,))
    assert parse_ipv6(header.encode(b"part")) == (header, memoryview(b"part"))


def test_only_a_fragment_header_has_a_fragment_offset() -> None:
    assert ExtensionHeader(IPProtocol.ROUTING, b"\xff" * 6).fragment_offset == 0


@pytest.mark.parametrize(
    ("kind", "chain", "offset"),
    [
        (IPProtocol.HOP_BY_HOP, "", 40),
        (IPProtocol.FRAGMENT, "11000000000000", 40),
        (IPProtocol.ROUTING, "1101000000000000", 40),
        (IPProtocol.ROUTING, "11020000000000000000000000000000", 40),
        (IPProtocol.AUTHENTICATION, "1101000000000000", 40),
        (IPProtocol.HIP, "2c00000000000000", 48),
        (IPProtocol.SHIM6, "3c00000000000000 1100", 48),
    ],
)
def test_extension_headers_end_within_the_payload(
    kind: IPProtocol, chain: str, offset: int
) -> None:
    with pytest.raises(PacketError) as caught:
        parse_ipv6(IPv6Header(IP6, IP6, kind).encode(bytes.fromhex(chain)))
    assert (caught.value.reason, caught.value.offset) == (FrameDrop.IPV6_EXTENSION, offset)


def test_packet_types_are_those_of_the_kernel() -> None:
    for packet_type in PacketType:
        assert packet_type == getattr(socket, f"PACKET_{packet_type.name}")


# --- Frames that another implementation (scapy) made ---

FOX = b"the quick brown fox."
MAC_1, MAC_2 = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")

GOLDEN_IPV4 = (
    bytes.fromhex(
        "020000000001 020000000002 0800"
        "45b80030 12344000 3d113e95 c0000201 c6336407"
        "9c400d96 001c2b79"
    )
    + FOX
)

GOLDEN_IPV6 = (
    bytes.fromhex(
        "020000000001 020000000002 86dd"
        "6b854321 001c113d 20010db8000000000000000000000001 20010db8000000000000000000000007"
        "9c400d96 001cbc3b"
    )
    + FOX
)

GOLDEN_CHAIN = bytes.fromhex(
    "020000000001 020000000002 88a8a064 81001007 86dd"
    "60000000 003a0040 20010db8000000000000000000000001 20010db8000000000000000000000007"
    "2b00010400000000"
    "3c02000100000000 20010db8000000000000000000000009"
    "2c00010400000000"
    "1100000000000007"
    "00010002 000a3bf2 6869"
)


def test_golden_ipv4() -> None:
    source, destination = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7")
    assert receive(GOLDEN_IPV4) == Datagram(source, 40000, destination, 3478, memoryview(FOX))
    header, _ = parse_ipv4(GOLDEN_IPV4[14:])
    assert header == IPv4Header(
        source,
        destination,
        ttl=61,
        traffic_class=0xB8,
        identification=0x1234,
        flags=IPv4Flags.DONT_FRAGMENT,
    )
    segment = UDPHeader(40000, 3478).encode(FOX, source, destination)
    ethernet = EthernetHeader(MAC_1, MAC_2, EtherType.IPV4)
    assert ethernet.encode(header.encode(segment)) == GOLDEN_IPV4


def test_golden_ipv6() -> None:
    source, destination = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::7")
    assert receive(GOLDEN_IPV6) == Datagram(source, 40000, destination, 3478, memoryview(FOX))
    header, _ = parse_ipv6(GOLDEN_IPV6[14:])
    assert header == IPv6Header(
        source, destination, hop_limit=61, traffic_class=0xB8, flow_label=0x54321
    )
    segment = UDPHeader(40000, 3478).encode(FOX, source, destination)
    ethernet = EthernetHeader(MAC_1, MAC_2, EtherType.IPV6)
    assert ethernet.encode(header.encode(segment)) == GOLDEN_IPV6


def test_golden_tags_and_extension_headers() -> None:
    ethernet, packet = parse_ethernet(GOLDEN_CHAIN)
    assert ethernet == EthernetHeader(
        MAC_1,
        MAC_2,
        EtherType.IPV6,
        (VlanTag(100, pcp=5, tpid=EtherType.SERVICE_VLAN), VlanTag(7, dei=True)),
    )
    ip, segment = parse_ipv6(packet)
    padn = bytes.fromhex("010400000000")
    router = bytes.fromhex("000100000000 20010db8000000000000000000000009")
    assert ip.extensions == (
        ExtensionHeader(IPProtocol.HOP_BY_HOP, padn),
        ExtensionHeader(IPProtocol.ROUTING, router),
        ExtensionHeader(IPProtocol.DESTINATION_OPTIONS, padn),
        ExtensionHeader(IPProtocol.FRAGMENT, bytes.fromhex("000000000007")),
    )
    assert ip.protocol == IPProtocol.UDP
    # The sum is over the destination that the segment has in the end (RFC 8200 section 8.1).
    udp, payload = parse_udp(segment)
    assert udp_checksum(ip.source, IPv6Address("2001:db8::9"), segment) == 0xFFFF
    assert (udp.source_port, udp.destination_port, bytes(payload)) == (1, 2, b"hi")
    assert ethernet.encode(ip.encode(segment)) == GOLDEN_CHAIN


def test_defaults_of_a_built_frame() -> None:
    assert build_udp_frame(b"", (IP4, 1), (IP4, 2))[:34] == bytes.fromhex(
        "000000000000 000000000000 0800 4500001c 00004000 4011b6ce c0000201 c0000201"
    )
    assert build_udp_frame(b"", (IP6, 1), (IP6, 2))[:22] == bytes.fromhex(
        "000000000000 000000000000 86dd 60000000 00081140"
    )


def test_the_longest_ipv4_header() -> None:
    header = IPv4Header(IP4, IP4, options=bytes(40))
    assert parse_ipv4(header.encode(b"payload")) == (header, memoryview(b"payload"))


def test_ipv4_flags() -> None:
    for word, flags, is_fragment in (
        ("8000", IPv4Flags.RESERVED, False),
        ("4000", IPv4Flags.DONT_FRAGMENT, False),
        ("2000", IPv4Flags.MORE_FRAGMENTS, True),
    ):
        header, _ = parse_ipv4(v4(20, word)[14:])
        assert (header.flags, header.is_fragment) == (flags, is_fragment)


# --- Whole frames: properties ---


@given(address_pairs, ports, ports, st.binary(max_size=2100), mac_pairs)
def test_a_frame_and_the_answer_to_it(
    addresses: tuple[IPAddress, IPAddress],
    source_port: int,
    destination_port: int,
    payload: bytes,
    macs: tuple[bytes, bytes],
) -> None:
    source_mac, destination_mac = macs
    client, server = (addresses[0], source_port), (addresses[1], destination_port)
    frame = build_udp_frame(
        payload, client, server, source_mac=source_mac, destination_mac=destination_mac
    )
    if len(payload) > MAX_DATAGRAM:
        assert verdict(frame) == FrameDrop.TOO_LONG
        return
    request = receive(frame)
    assert request == Datagram(*client, *server, memoryview(payload))
    answer = build_reply_frame(frame, request.payload)
    assert receive(answer) == Datagram(*server, *client, memoryview(payload))
    assert parse_ethernet(answer)[0].destination == source_mac
    # A sum does not care which address is which.
    assert answer[-len(payload) - 2 :] == frame[-len(payload) - 2 :]


@given(frames(payloads), st.binary(max_size=100))
def test_what_is_answered_was_received(drawn: tuple[bytes, Metadata], reply: bytes) -> None:
    frame, metadata = drawn
    try:
        request = receive(frame, **metadata)
    except PacketError:
        return
    assert receive(build_reply_frame(frame, reply)) == Datagram(
        request.destination_ip,
        request.destination_port,
        request.source_ip,
        request.source_port,
        memoryview(reply),
    )


def test_what_is_not_received_is_not_answered() -> None:
    with pytest.raises(PacketError):
        build_reply_frame(GOLDEN_CHAIN, b"")


@given(frames(payloads))
def test_receive_is_total_on_broken_frames(drawn: tuple[bytes, Metadata]) -> None:
    frame, metadata = drawn
    verdict(frame, **metadata)


@given(
    st.binary(max_size=200),
    st.none() | st.integers(),
    st.integers(),
    st.none() | st.integers(),
    st.sampled_from(ChecksumStatus),
)
def test_receive_is_total_on_any_bytes(
    frame: bytes,
    length: int | None,
    packet_type: int,
    vlan_id: int | None,
    status: ChecksumStatus,
) -> None:
    verdict(frame, length=length, packet_type=packet_type, vlan_id=vlan_id, checksum=status)
    for ethertype in (EtherType.IPV4, EtherType.IPV6, EtherType.VLAN):
        verdict(bytes(12) + struct.pack("!H", ethertype) + frame, checksum=status)


@given(st.binary(max_size=200), st.integers(0, 100))
def test_every_parser_is_total(data: bytes, start: int) -> None:
    def attempt(parse: Callable[[bytes], object], data: bytes, start: int) -> None:
        try:
            parse(data)
        except PacketError as error:
            problem = error
        else:
            return
        assert type(problem.reason) is FrameDrop
        assert start <= problem.offset <= start + len(data)

    attempt(parse_ethernet, data, 0)
    attempt(parse_ethernet, bytes(12) + b"\x81\0" + data, 0)
    for prefix in (b"", b"\x45", b"\x4f"):
        attempt(lambda data: parse_ipv4(data, start=start), prefix + data, start)
    attempt(lambda data: parse_ipv6(data, start=start), data, start)
    for kind in IPProtocol:
        header = IPv6Header(IP6, IP6, kind).encode(data)
        attempt(lambda data: parse_ipv6(data, start=start), header, start)
    attempt(lambda data: parse_udp(data, start=start), data, start)


@given(frames(payloads))
def test_all_bytes_like_inputs_agree(drawn: tuple[bytes, Metadata]) -> None:
    frame, metadata = drawn
    expected = verdict(frame, **metadata)
    assert verdict(bytearray(frame), **metadata) == expected
    assert verdict(memoryview(frame), **metadata) == expected
    # A slice of something larger, as out of a ring.
    assert verdict(memoryview(b"\xff" + frame + b"\xff")[1:-1], **metadata) == expected


def test_wider_items_are_read_as_their_bytes() -> None:
    words = memoryview(array.array("H", [0x1234, 0x5678]))
    data = words.tobytes()
    assert checksum(words) == checksum(data)
    assert udp_checksum(IP4, IP4, words) == udp_checksum(IP4, IP4, data)
    assert build_udp_frame(words, (IP6, 1), (IP6, 2)) == build_udp_frame(data, (IP6, 1), (IP6, 2))
    assert receive(memoryview(array.array("H", GOLDEN_IPV4))).payload == FOX


def test_payloads_are_views_of_the_frame() -> None:
    frame = bytearray(GOLDEN_IPV6)
    payload = receive(frame).payload
    frame[-1] = ord("!")
    assert bytes(payload) == b"the quick brown fox!"


@given(frames(payloads), st.binary(max_size=64))
def test_trailing_padding_is_ignored(drawn: tuple[bytes, Metadata], padding: bytes) -> None:
    frame, metadata = drawn
    expected = verdict(frame, **metadata)
    assume(isinstance(expected, Datagram))
    metadata["length"] += len(padding)
    assert verdict(frame + padding, **metadata) == expected


@given(
    st.tuples(mapped_addresses, ipv6_addresses) | st.tuples(ipv6_addresses, mapped_addresses),
)
def test_mapped_addresses_are_refused(addresses: tuple[IPv6Address, IPv6Address]) -> None:
    source, destination = addresses
    assert verdict(build_udp_frame(b"", (source, 1), (destination, 2))) == FrameDrop.BAD_IP


def test_the_strategy_reaches_every_verdict() -> None:
    seen: Counter[str] = Counter()

    @given(frames(payloads))
    @settings(
        max_examples=2000,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def count(drawn: tuple[bytes, Metadata]) -> None:
        frame, metadata = drawn
        result = verdict(frame, **metadata)
        seen[result if isinstance(result, str) else "answered"] += 1

    count()
    assert set(seen) == {"answered", *FrameDrop}
    assert seen["answered"] >= 0.4 * seen.total()


# --- Whole frames: every reason by hand ---


def edited(frame: bytes, offset: int, replacement: str, *, fix: bool = True) -> bytes:
    """Overwrite bytes of an IP packet; `fix` the IPv4 header checksum afterwards."""
    changed = bytearray(frame)
    new = bytes.fromhex(replacement)
    changed[offset : offset + len(new)] = new
    if fix and frame is GOLDEN_IPV4:
        changed[24:26] = bytes(2)
        changed[24:26] = checksum(changed[14 : 14 + 4 * (changed[14] & 0x0F)]).to_bytes(2, "big")
    return bytes(changed)


def v4(offset: int, replacement: str, *, fix: bool = True) -> bytes:
    return edited(GOLDEN_IPV4, offset, replacement, fix=fix)


def v6(offset: int, replacement: str) -> bytes:
    return edited(GOLDEN_IPV6, offset, replacement)


def tagged(frame: bytes, tag: str) -> bytes:
    return frame[:12] + bytes.fromhex(tag) + frame[12:]


def sized(ip: IPAddress, size: int) -> bytes:
    return build_udp_frame(bytes(size), (ip, 1), (ip, 2))


NOP_OPTIONS = EthernetHeader(MAC_1, MAC_2, EtherType.IPV4).encode(
    IPv4Header(IP4, IP4, options=b"\1\1\1\0").encode(UDPHeader(1, 2).encode(b"", IP4, IP4))
)


def chained(*extensions: ExtensionHeader) -> bytes:
    segment = UDPHeader(1, 2).encode(b"", IP6, IP6)
    packet = IPv6Header(IP6, IP6, extensions=extensions).encode(segment)
    return EthernetHeader(MAC_1, MAC_2, EtherType.IPV6).encode(packet)


HOP_BY_HOP = ExtensionHeader(IPProtocol.HOP_BY_HOP, bytes.fromhex("010400000000"))
WHOLE_FRAGMENT = ExtensionHeader(IPProtocol.FRAGMENT, bytes(6))
UNVERIFIED, VALID, NOT_READY = ChecksumStatus

DROPS: dict[FrameDrop, list[tuple[bytes, dict[str, Any]]]] = {
    FrameDrop.NOT_HOST: [
        (GOLDEN_IPV4, {"packet_type": PacketType.BROADCAST}),
        (GOLDEN_IPV4, {"packet_type": PacketType.MULTICAST}),
        (GOLDEN_IPV6, {"packet_type": PacketType.OTHERHOST}),
        (GOLDEN_IPV6, {"packet_type": PacketType.OUTGOING}),
        (GOLDEN_IPV6, {"packet_type": 6}),  # PACKET_USER
    ],
    FrameDrop.TRUNCATED: [
        (GOLDEN_IPV4, {"length": len(GOLDEN_IPV4) + 1}),
        (GOLDEN_IPV6[:40], {"length": len(GOLDEN_IPV6)}),
        (b"", {"length": 1}),
    ],
    FrameDrop.VLAN: [
        (GOLDEN_IPV4, {"vlan_id": 1}),
        (GOLDEN_IPV4, {"vlan_id": 4095}),
        (b"", {"vlan_id": 1}),
        (tagged(GOLDEN_IPV4, "81000001"), {}),
        (tagged(GOLDEN_IPV4, "81000000"), {}),  # a priority tag that nobody has taken out
        (tagged(GOLDEN_IPV6, "88a80001"), {}),
        (GOLDEN_CHAIN, {}),
        (tagged(GOLDEN_IPV6, "88a80001")[:14], {}),  # ends inside the tag
        (tagged(GOLDEN_IPV6, "8100000181000001")[:18], {}),
    ],
    FrameDrop.NOT_IP: [
        (v4(12, "0806"), {}),
        (v4(12, "05dc"), {}),
        (v4(12, "9100"), {}),
        (v4(12, "0000")[:14], {}),
    ],
    FrameDrop.BAD_IP: [
        (b"", {}),
        (GOLDEN_IPV4[:13], {}),
        (tagged(GOLDEN_IPV4, "81000001")[:13], {}),
        (GOLDEN_IPV4[:14], {}),
        (GOLDEN_IPV4[: 14 + 19], {}),
        (GOLDEN_IPV4[:-1], {}),
        (v4(14, "65"), {}),
        (v4(14, "44"), {}),
        (v4(14, "40", fix=False), {}),
        (v4(14, "4f")[: 14 + 59], {}),  # a header longer than the packet
        (v4(16, "0013"), {}),
        (v4(16, "0000"), {}),
        (v4(14, "46000017"), {}),
        (v4(16, "0031"), {}),
        (v4(16, "ffff"), {}),
        (v4(12, "86dd", fix=False), {}),
        (GOLDEN_IPV6[: 14 + 39], {}),
        (GOLDEN_IPV6[:-1], {}),
        (v6(14, "4b"), {}),
        (v6(12, "0800"), {}),
        (v6(18, "001d"), {}),
        (v6(18, "ffff"), {}),
        (v6(22, "00000000000000000000ffffc0000201"), {}),
        (v6(38, "00000000000000000000ffff00000000"), {}),
    ],
    FrameDrop.BAD_IP_CHECKSUM: [
        (v4(24, "3e94", fix=False), {}),
        (v4(24, "0000", fix=False), {}),
        (v4(22, "3c", fix=False), {}),
        (NOP_OPTIONS[:34] + b"\2" + NOP_OPTIONS[35:], {}),
        (v4(24, "3e94", fix=False), {"checksum": VALID}),  # vouches for UDP alone
    ],
    FrameDrop.FRAGMENT: [
        (v4(20, "2000"), {}),
        (v4(20, "6000"), {}),
        (v4(20, "0001"), {}),
        (v4(20, "1fff"), {}),
        (v6(20, "2c"), {}),
        (chained(WHOLE_FRAGMENT), {}),
        (chained(WHOLE_FRAGMENT, HOP_BY_HOP), {}),
    ],
    FrameDrop.NOT_UDP: [
        (v4(23, "06"), {}),
        (v4(23, "88"), {}),  # UDP-Lite
        (v4(23, "2c"), {}),  # an IPv6 extension header has no meaning here
        (v6(20, "06"), {}),
        (v6(20, "3a"), {}),
        (v6(20, "3b"), {}),
        (v6(20, "32"), {}),
    ],
    FrameDrop.IP_OPTIONS: [
        (NOP_OPTIONS, {}),
        (v4(14, "4c"), {}),  # the rest of the packet as 28 bytes of options
    ],
    FrameDrop.IPV6_EXTENSION: [
        (chained(HOP_BY_HOP), {}),
        (chained(HOP_BY_HOP, WHOLE_FRAGMENT), {}),
        *((v6(20, f"{kind:02x}"), {}) for kind in (0, 43, 51, 60, 135, 139, 140)),
    ],
    FrameDrop.BAD_UDP_LENGTH: [
        (v4(16, "0014"), {}),  # no UDP at all
        (v4(16, "001b"), {}),
        (v4(16, "002f"), {}),
        (v4(38, "001b"), {}),
        (v4(38, "001d"), {}),
        (v4(38, "0000"), {}),
        (v6(18, "0000"), {}),
        (v6(18, "0007"), {}),
        (v6(18, "001b"), {}),
        (v6(58, "0000"), {}),
        (v6(58, "001d"), {}),
    ],
    FrameDrop.NO_UDP_CHECKSUM: [(v6(60, "0000"), {}), (v6(60, "0000"), {"checksum": VALID})],
    FrameDrop.BAD_UDP_CHECKSUM: [
        (v4(40, "2b7a"), {}),
        (v4(40, "ffff"), {}),
        (v4(26, "c0000202"), {}),  # the addresses are covered too
        (v6(60, "bc3a"), {}),
        (v6(22, "3fff"), {}),
        (v6(81, "2f"), {}),
    ],
    FrameDrop.TOO_LONG: [
        (sized(IP4, 2049), {}),
        (sized(IP6, 2049), {}),
    ],
}

ANSWERED: list[tuple[bytes, dict[str, Any]]] = [
    (GOLDEN_IPV4, {"vlan_id": 0}),
    (GOLDEN_IPV4, {"length": len(GOLDEN_IPV4)}),
    (GOLDEN_IPV4 + b"padding", {}),
    (GOLDEN_IPV6 + b"padding", {}),
    (v4(20, "8000"), {}),  # the reserved flag
    (v4(40, "0000"), {}),
    (v4(40, "0000"), {"checksum": VALID}),
    (v4(40, "0000"), {"checksum": NOT_READY}),
    (v4(40, "1234"), {"checksum": VALID}),
    (v4(40, "1234"), {"checksum": NOT_READY}),
    (v6(60, "0000"), {"checksum": NOT_READY}),
    (v6(60, "1234"), {"checksum": VALID}),
    (v6(60, "1234"), {"checksum": NOT_READY}),
    (sized(IP4, 0), {}),
    (sized(IP6, 0), {}),
    (sized(IP4, 2048), {}),
    (sized(IP6, 2048), {}),
    (build_udp_frame(b"", (IPv6Address("::fffe:c000:201"), 1), (IPv6Address("::1"), 2)), {}),
]


@pytest.mark.parametrize(
    ("reason", "frame", "metadata"),
    [
        pytest.param(reason, *case, id=f"{reason}-{number}")
        for reason, cases in DROPS.items()
        for number, case in enumerate(cases)
    ],
)
def test_dropped(reason: FrameDrop, frame: bytes, metadata: dict[str, Any]) -> None:
    assert verdict(frame, **metadata) == reason


def test_every_reason_has_an_example() -> None:
    assert set(DROPS) == set(FrameDrop)


@pytest.mark.parametrize(("frame", "metadata"), ANSWERED)
def test_answered(frame: bytes, metadata: dict[str, Any]) -> None:
    assert isinstance(verdict(frame, **metadata), Datagram)


@pytest.mark.parametrize(
    ("frame", "metadata", "offset"),
    [
        (GOLDEN_IPV4, {"packet_type": PacketType.OTHERHOST}, 0),
        (GOLDEN_IPV4[:30], {"length": 62}, 30),
        (GOLDEN_IPV4, {"vlan_id": 1}, 0),
        (GOLDEN_CHAIN, {}, 12),
        (GOLDEN_CHAIN[:20], {}, 18),
        (v4(12, "0806"), {}, 12),
        (v4(12, "0800")[:10], {}, 0),
        (v4(14, "65"), {}, 14),
        (v4(16, "0013"), {}, 14),
        (v4(24, "0000", fix=False), {}, 24),
        (v4(20, "2000"), {}, 20),
        (v4(23, "06"), {}, 23),
        (NOP_OPTIONS, {}, 34),
        (v4(16, "001b"), {}, 34),
        (v4(38, "001b"), {}, 38),
        (v4(40, "0001"), {}, 40),
        (sized(IP4, 2049), {}, 42),
        (v6(14, "4b"), {}, 14),
        (v6(18, "ffff"), {}, 18),
        (v6(22, "00000000000000000000ffffc0000201"), {}, 22),
        (v6(20, "2c"), {}, 20),
        (v6(20, "00"), {}, 20),
        (v6(20, "06"), {}, 20),
        (v6(58, "001d"), {}, 58),
        (v6(60, "0000"), {}, 60),
        (v6(60, "0001"), {}, 60),
        (sized(IP6, 2049), {}, 62),
    ],
)
def test_errors_point_into_the_frame(frame: bytes, metadata: dict[str, Any], offset: int) -> None:
    with pytest.raises(PacketError) as caught:
        receive(frame, **metadata)
    assert caught.value.offset == offset


@pytest.mark.parametrize("parse", [parse_ethernet, parse_ipv4, parse_ipv6, parse_udp])
def test_offsets_count_from_the_layer_without_a_start(parse: Callable[[bytes], object]) -> None:
    with pytest.raises(PacketError) as caught:
        parse(b"")
    assert caught.value.offset == 0


# --- The order of the checks ---

ORDER = {
    EtherType.IPV4: [
        FrameDrop.NOT_HOST,
        FrameDrop.TRUNCATED,
        FrameDrop.VLAN,
        FrameDrop.NOT_IP,
        FrameDrop.BAD_IP,
        FrameDrop.BAD_IP_CHECKSUM,
        FrameDrop.FRAGMENT,
        FrameDrop.NOT_UDP,
        FrameDrop.IP_OPTIONS,
        FrameDrop.BAD_UDP_LENGTH,
        FrameDrop.BAD_UDP_CHECKSUM,
        FrameDrop.TOO_LONG,
    ],
    EtherType.IPV6: [
        FrameDrop.NOT_HOST,
        FrameDrop.TRUNCATED,
        FrameDrop.VLAN,
        FrameDrop.NOT_IP,
        FrameDrop.BAD_IP,
        FrameDrop.IPV6_EXTENSION,
        FrameDrop.BAD_UDP_LENGTH,
        FrameDrop.NO_UDP_CHECKSUM,
        FrameDrop.TOO_LONG,
    ],
}


def with_all_of(ethertype: EtherType, faults: list[FrameDrop]) -> tuple[bytes, dict[str, Any]]:
    """Make a frame that has all of `faults` at once."""
    payload = bytes(MAX_DATAGRAM + 1 if FrameDrop.TOO_LONG in faults else 20)
    field = 0xBAD if FrameDrop.BAD_UDP_CHECKSUM in faults else None
    udp = UDPHeader(1, 2, 0 if FrameDrop.NO_UDP_CHECKSUM in faults else field)
    protocol = 6 if FrameDrop.NOT_UDP in faults else IPProtocol.UDP
    if ethertype == EtherType.IPV4:
        segment = bytearray(udp.encode(payload, IP4, IP4))
        segment[4] ^= 0xFF * (FrameDrop.BAD_UDP_LENGTH in faults)
        flags = IPv4Flags(FrameDrop.FRAGMENT in faults)
        options = bytes(4 * (FrameDrop.IP_OPTIONS in faults))
        ipv4 = IPv4Header(IP4, IP4, protocol, flags=flags, options=options)
        packet = bytearray(ipv4.encode(segment))
        packet[10] ^= 0xFF * (FrameDrop.BAD_IP_CHECKSUM in faults)
    else:
        segment = bytearray(udp.encode(payload, IP6, IP6))
        segment[4] ^= 0xFF * (FrameDrop.BAD_UDP_LENGTH in faults)
        extensions = (HOP_BY_HOP,) * (FrameDrop.IPV6_EXTENSION in faults)
        packet = bytearray(IPv6Header(IP6, IP6, protocol, extensions=extensions).encode(segment))
    packet[0] ^= 0xF0 * (FrameDrop.BAD_IP in faults)
    number = 0x0806 if FrameDrop.NOT_IP in faults else ethertype
    tags = (VlanTag(7),) * (FrameDrop.VLAN in faults)
    metadata = {
        "packet_type": PacketType(3 * (FrameDrop.NOT_HOST in faults)),
        "length": 10000 * (FrameDrop.TRUNCATED in faults),
    }
    return EthernetHeader(MAC_1, MAC_2, number, tags).encode(packet), metadata


@pytest.mark.parametrize("ethertype", ORDER)
def test_the_first_fault_in_order_decides(ethertype: EtherType) -> None:
    order = ORDER[ethertype]
    for position, reason in enumerate(order):
        for faults in ([reason], order[position:]):
            frame, metadata = with_all_of(ethertype, faults)
            assert verdict(frame, **metadata) == reason


def test_a_stripped_tag_comes_before_the_ethernet_header_and_after_the_snap_length() -> None:
    assert verdict(b"", vlan_id=7) == FrameDrop.VLAN
    assert verdict(b"", vlan_id=7, length=1) == FrameDrop.TRUNCATED
