"""pktstun.capture: properties over files from a writer of its own, then files made by hand."""

from __future__ import annotations

import math
import struct
import subprocess
from dataclasses import dataclass, field, replace
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pktstun.capture import (
    UNSUPPORTED_LINK_TYPE,
    CapturedDatagram,
    CapturedPacket,
    CaptureError,
    LinkType,
    datagram_of,
    is_capture,
    read_capture,
)
from pktstun.errors import PacketError
from pktstun.packet import (
    EtherType,
    ExtensionHeader,
    FrameDrop,
    IPProtocol,
    IPv4Flags,
    IPv4Header,
    IPv6Header,
    UDPHeader,
    VlanTag,
)
from tests.strategies.frames import (
    extension_headers,
    frames,
    ipv4_addresses,
    ipv4_options,
    ipv6_addresses,
    ports,
    vlan_tags,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

orders = st.sampled_from("<>")
words = st.integers(0, 0xFFFFFFFF)
link_types = st.sampled_from(sorted(LinkType)) | st.integers(0, 0xFFFF)
contents = st.binary(max_size=24)


# --- The writer ---


@dataclass
class Written:
    """A file, the packets in it with the ends of their records, and where it may end."""

    data: bytes = b""
    packets: list[tuple[int, CapturedPacket]] = field(default_factory=list)
    ends: set[int] = field(default_factory=set)

    def append(self, record: bytes) -> None:
        self.data += record
        self.ends.add(len(self.data))

    def packets_of(self, length: int) -> list[CapturedPacket]:
        """Return the packets that are whole in the first `length` bytes."""
        return [packet for end, packet in self.packets if end <= length]


def pcap_header(order: str, link: int, *, magic: int = 0xA1B2C3D4) -> bytes:
    return struct.pack(f"{order}IHHiIII", magic, 2, 4, -3600, 6, 65535, link)


def pcap_record(
    order: str, time: tuple[int, int], captured: bytes, original: int | None = None
) -> bytes:
    original = len(captured) if original is None else original
    return struct.pack(f"{order}IIII", *time, len(captured), original) + captured


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def block(order: str, kind: int, body: bytes) -> bytes:
    length = struct.pack(f"{order}I", 12 + len(padded(body)))
    return struct.pack(f"{order}I", kind) + length + padded(body) + length


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + padded(value)


def section_header(order: str, options: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    fixed = struct.pack(f"{order}IHHq", 0x1A2B3C4D, *version, -1)
    return block(order, 0x0A0D0D0A, fixed + options)


def interface_block(order: str, link: int, snap_length: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(f"{order}HHI", link, 0xFFFF, snap_length) + options)


def enhanced_packet(
    order: str, number: int, units: int, captured: bytes, original: int, *, options: bytes = b""
) -> bytes:
    high, low = divmod(units, 1 << 32)
    fixed = struct.pack(f"{order}IIIII", number, high, low, len(captured), original)
    return block(order, 6, fixed + padded(captured) + options)


def obsolete_packet(
    order: str, number: int, units: int, captured: bytes, original: int, *, options: bytes = b""
) -> bytes:
    high, low = divmod(units, 1 << 32)
    fixed = struct.pack(f"{order}HHIIII", number, 0xABCD, high, low, len(captured), original)
    return block(order, 2, fixed + padded(captured) + options)


def simple_packet(order: str, captured: bytes, original: int) -> bytes:
    return block(order, 3, struct.pack(f"{order}I", original) + captured)


@st.composite
def pcap_files(draw: st.DrawFn) -> Written:
    order = draw(orders)
    magic, unit = draw(st.sampled_from([(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)]))
    link_type = draw(link_types)
    fcs_words = draw(st.none() | st.integers(0, 15))
    link = link_type if fcs_words is None else fcs_words << 28 | 1 << 26 | link_type
    written = Written()
    written.append(pcap_header(order, link, magic=magic))
    for content in draw(st.lists(contents, max_size=4)):
        on_wire = content + b"\xfc" * 2 * (fcs_words or 0)
        captured = on_wire[: draw(st.integers(0, len(on_wire)) | st.just(len(on_wire)))]
        time = draw(st.tuples(words, words))
        offset = len(written.data) + 16
        written.append(pcap_record(order, time, captured, len(on_wire)))
        packet = CapturedPacket(
            data=captured[: len(content)],
            timestamp=time[0] * 1_000_000_000 + time[1] * unit,
            wire_length=len(content),
            link_type=link_type,
            offset=offset,
        )
        written.packets.append((len(written.data), packet))
    return written


@dataclass
class Interface:
    """What the writer remembers of an interface."""

    link_type: int
    snap_length: int
    fcs: bytes
    resolution: Fraction
    offset: int

    def time(self, units: int) -> int:
        return math.floor((units * self.resolution + self.offset) * 1_000_000_000)


# None of these says anything that a reader of packets needs.
_other_options = st.tuples(
    st.sampled_from([1, 2, 3, 4, 8, 10, 11, 2988, 2989, 0x8000, 0xFFFF]), st.binary(max_size=9)
)
_resolutions = st.sampled_from([0, 3, 6, 9, 10, 12, 127, 0x80, 0x8A, 0xA0, 0xFF]) | st.integers(
    0, 255
)


@st.composite
def option_lists(draw: st.DrawFn, order: str, wanted: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    """Encode the wanted options among others; the end is marked, or not."""
    options = draw(st.permutations([*wanted, *draw(st.lists(_other_options, max_size=2))]))
    encoded = b"".join(option(order, code, value) for code, value in options)
    return encoded + draw(st.sampled_from([b"", bytes(4), bytes(4) + b"\xff" * 8]))


@st.composite
def interfaces(draw: st.DrawFn, order: str) -> tuple[bytes, Interface]:
    link_type = draw(link_types)
    snap_length = draw(st.sampled_from([0, 0, 1, 7, 65535]))
    fcs_bits, resolution, offset = 0, 6, 0
    wanted: list[tuple[int, bytes]] = []
    if draw(st.booleans()):
        # What is no whole number of bytes is left where it is.
        fcs_bits = draw(st.sampled_from([0, 4, 8, 16, 32, 255]))
        wanted.append((13, bytes([fcs_bits])))
    if draw(st.booleans()):
        resolution = draw(_resolutions)
        wanted.append((9, bytes([resolution])))
    if draw(st.booleans()):
        offset = draw(st.integers(-(2**63), 2**63 - 1))
        wanted.append((14, struct.pack(f"{order}q", offset)))
    options = draw(option_lists(order, tuple(wanted)))
    unit = Fraction(1, (2 if resolution >= 0x80 else 10) ** (resolution % 0x80))
    interface = Interface(link_type, snap_length, b"\xfc" * (fcs_bits // 8), unit, offset)
    return interface_block(order, link_type, snap_length, options), interface


@st.composite
def pcapng_files(draw: st.DrawFn) -> Written:
    written = Written()
    for _ in range(draw(st.integers(1, 3))):
        order = draw(orders)
        known: list[Interface] = []
        version = draw(st.sampled_from([(1, 0), (1, 2)]))
        written.append(section_header(order, draw(option_lists(order)), version))
        kinds = ["other", "interface", "packet", "packet", "packet"]
        for kind in draw(st.lists(st.sampled_from(kinds), max_size=6)):
            if kind == "other":
                number = draw(st.sampled_from([4, 5, 10, 0x0BAD, 0x80000001, 0xFFFFFFFF]))
                written.append(block(order, number, draw(contents)))
            elif kind == "interface" or not known:
                encoded, interface = draw(interfaces(order))
                known.append(interface)
                written.append(encoded)
            else:
                _append_packet(draw, written, order, known)
    return written


def _append_packet(draw: st.DrawFn, written: Written, order: str, known: list[Interface]) -> None:
    """Append a packet of one of the known interfaces."""
    kind = draw(st.sampled_from([enhanced_packet, enhanced_packet, obsolete_packet, None]))
    number = draw(st.integers(0, len(known) - 1)) if kind else 0
    interface = known[number]
    content = draw(contents)
    on_wire = content + interface.fcs
    captured = on_wire[: interface.snap_length or None]
    timestamp = None
    start = len(written.data) + 8
    if kind is None:
        start += 4
        written.append(simple_packet(order, captured, len(on_wire)))
    else:
        start += 20
        captured = captured[: draw(st.none() | st.integers(0, len(captured)))]
        units = draw(st.integers(0, 2**64 - 1))
        timestamp = interface.time(units)
        options = draw(option_lists(order))
        written.append(kind(order, number, units, captured, len(on_wire), options=options))
    packet = CapturedPacket(
        captured[: len(content)], timestamp, len(content), interface.link_type, start
    )
    written.packets.append((len(written.data), packet))


files = pcap_files() | pcapng_files()


def read(data: bytes | bytearray | memoryview) -> tuple[list[CapturedPacket], CaptureError | None]:
    """Return all the packets, and the error after them."""
    packets: list[CapturedPacket] = []
    reader = read_capture(data)
    problem = None
    while True:
        try:
            packets.append(next(reader))
        except StopIteration:
            return packets, problem
        except CaptureError as error:
            problem = error
        # The iterator has to be at its end as well.
        assert problem is None or 0 <= problem.offset <= len(data)


# --- Files: properties ---


@given(files, st.sampled_from([bytes, bytearray, memoryview]))
def test_what_was_written_is_read(written: Written, kind: Callable[[bytes], bytes]) -> None:
    packets, error = read(kind(written.data))
    assert error is None
    assert packets == written.packets_of(len(written.data))
    assert is_capture(kind(written.data))


@given(files)
def test_link_types_have_names_where_they_are_known(written: Written) -> None:
    for packet in read_capture(written.data):
        assert isinstance(packet.link_type, LinkType) == (packet.link_type in list(LinkType))


@given(files)
def test_a_file_that_is_cut_gives_the_packets_that_are_whole(written: Written) -> None:
    for length in range(len(written.data)):
        packets, error = read(written.data[:length])
        assert packets == written.packets_of(length)
        assert (error is None) == (length in written.ends), error


def check_anything(data: bytes) -> list[CapturedPacket]:
    """Check what holds whatever the bytes are."""
    packets, error = read(data)
    assert error is None or is_capture(data) or not packets
    end = 0
    for packet in packets:
        assert end <= packet.offset
        end = packet.offset + len(packet.data)
        assert data[packet.offset : end] == packet.data
        assert len(packet.data) <= packet.wire_length
        check_datagram(packet, data)
    return packets


def check_datagram(packet: CapturedPacket, file: bytes) -> None:
    """Check what holds for any packet of a file: a datagram that is there, or a reason."""
    try:
        datagram = datagram_of(packet)
    except PacketError as error:
        problem = error
    else:
        end = datagram.offset + len(datagram.payload)
        assert packet.offset <= datagram.offset
        assert end <= packet.offset + len(packet.data)
        assert file[datagram.offset : end] == datagram.payload
        return
    assert 0 <= problem.offset <= len(packet.data)
    assert problem.reason == UNSUPPORTED_LINK_TYPE or type(problem.reason) is FrameDrop


@given(files, st.data())
def test_a_changed_byte_does_not_reach_back(written: Written, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(written.data) - 1))
    mutated = bytearray(written.data)
    mutated[position] = data.draw(st.integers(0, 255))
    packets = check_anything(bytes(mutated))
    before = written.packets_of(position)
    assert packets[: len(before)] == before


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_of_the_known_files_may_be_wrong(flip: int) -> None:
    for known in (KNOWN_PCAP, KNOWN_PCAPNG):
        for position in range(len(known)):
            mutated = bytearray(known)
            mutated[position] ^= flip
            check_anything(bytes(mutated))


@given(
    st.sampled_from(
        [
            b"",
            pcap_header("<", 1),
            pcap_header(">", 101, magic=0xA1B23C4D),
            section_header("<"),
            section_header("<") + interface_block("<", 1),
            section_header(">") + interface_block(">", 1) + struct.pack(">I", 6),
            section_header(">") + interface_block(">", 1)[:8],
        ]
    ),
    st.binary(max_size=100),
)
def test_noise(start: bytes, noise: bytes) -> None:
    check_anything(start + noise)


@given(frames(st.binary(max_size=40)), st.data())
def test_frames_of_all_kinds_in_a_file(frame: tuple[bytes, object], data: st.DataObject) -> None:
    link_type = data.draw(st.sampled_from(LinkType))
    content = frame[0][data.draw(st.sampled_from([0, 0, 14])) :]
    more = data.draw(st.sampled_from([0, 0, 1, 4, 1000]))
    record = pcap_record("<", (0, 0), content, len(content) + more)
    packets = check_anything(pcap_header("<", link_type) + record)
    assert [packet.data for packet in packets] == [content]


# --- Files: by hand ---

# As draft-ietf-opsawg-pcap sections 4 and 5 draw it: little-endian, microseconds, Ethernet
# with an FCS of two words; two packets, the second of which was cut.
KNOWN_PCAP = bytes.fromhex(
    "d4c3b2a1"  # magic number
    "0200 0400"  # major and minor version
    "00000000 00000000"  # reserved
    "00000400"  # snap length 262144
    "01000024"  # FCS of 2 words, which is present (P); link type 1
    "15cd5b07 40e20100"  # 123456789 s, 123456 us
    "32000000 32000000"  # captured and original length, 50
    "020000000001 020000000002 0800"  # Ethernet
    "45000020 00004000 40110000 c0000201 c6336401"  # IPv4, no checksum yet
    "0fa00d96 000c0000"  # UDP from port 4000 to 3478, 12 bytes
    "deadbeef"
    "0c0d0e0f"  # FCS
    "16cd5b07 00000000"
    "04000000 40000000"  # 4 bytes of 64
    "ffffffff"
)

# As draft-ietf-opsawg-pcapng sections 4.1 to 4.4 draw it: big-endian.
KNOWN_PCAPNG = bytes.fromhex(
    "0a0d0d0a 0000001c 1a2b3c4d 00010000 ffffffffffffffff 0000001c"
    # Interface: RAW, snap length 40, if_tsresol 9, if_tsoffset 10, end of options.
    "00000001 0000002c 0065 0000 00000028"
    "0009 0001 09000000"
    "000e 0008 000000000000000a"
    "0000 0000"
    "0000002c"
    # A block of nobody's: skipped.
    "80000000 00000010 12345678 00000010"
    # Enhanced packet: interface 0, 2**32 + 1 ns, 33 of 33 bytes, three of padding.
    "00000006 00000044 00000000 00000001 00000001 00000021 00000021"
    "45000021 00000000 40117c94 c0000201 c6336402"
    "0fa00d96 000d0000"
    "68656c6c6f"
    "000000"
    "00000044"
    # Simple packet: 1000 bytes, of which 40 were kept.
    "00000003 00000038 000003e8"
    "60000000 03c01140" + "20010db8" * 4 + "20010db8" * 4 + "00000038"
)


def test_known_pcap() -> None:
    first, second = read_capture(KNOWN_PCAP)
    assert first == CapturedPacket(
        data=KNOWN_PCAP[40:86],
        timestamp=123_456_789_123_456_000,
        wire_length=46,
        link_type=LinkType.ETHERNET,
        offset=40,
    )
    assert datagram_of(first) == CapturedDatagram(
        source_ip=IPv4Address("192.0.2.1"),
        source_port=4000,
        destination_ip=IPv4Address("198.51.100.1"),
        destination_port=3478,
        payload=bytes.fromhex("deadbeef"),
        offset=82,
    )
    # Neither is the FCS of the second there to be taken off, nor its header to be read.
    assert second == CapturedPacket(b"\xff" * 4, 123_456_790 * 10**9, 60, LinkType.ETHERNET, 106)
    assert refusal(second) == FrameDrop.TRUNCATED


def test_known_pcapng() -> None:
    first, second = read_capture(KNOWN_PCAPNG)
    assert first == CapturedPacket(
        data=KNOWN_PCAPNG[116:149],
        timestamp=10_000_000_000 + 2**32 + 1,
        wire_length=33,
        link_type=LinkType.RAW,
        offset=116,
    )
    assert datagram_of(first).payload == b"hello"
    assert datagram_of(first).offset == KNOWN_PCAPNG.index(b"hello")
    assert second == CapturedPacket(KNOWN_PCAPNG[168:208], None, 1000, LinkType.RAW, 168)
    assert refusal(second) == FrameDrop.TRUNCATED


@pytest.mark.parametrize(
    ("resolution", "units", "expected"),
    [
        (0, 3, 3_000_000_000),
        (3, 3, 3_000_000),
        (9, 3, 3),
        (10, 39, 3),  # rounded down
        (127, 2**64 - 1, 0),
        (0x80, 3, 3_000_000_000),
        (0x81, 3, 1_500_000_000),
        (0x80 | 30, 1, 0),
        (0x80 | 30, 3 << 29, 1_500_000_000),
        (0xFF, 2**64 - 1, 0),
    ],
)
def test_resolutions(resolution: int, units: int, expected: int) -> None:
    data = (
        section_header("<")
        + interface_block("<", 1, options=option("<", 9, bytes([resolution])))
        + enhanced_packet("<", 0, units, b"", 0)
    )
    (packet,) = read_capture(data)
    assert packet.timestamp == expected


@pytest.mark.parametrize(
    ("captured", "original", "data", "wire_length"),
    [
        (b"123456", 6, b"12", 2),
        (b"12345", 6, b"12", 2),
        (b"1", 6, b"1", 2),
        (b"123456", 3, b"12", 2),  # the length captured counts, it cannot be more
        (b"1234", 4, b"", 0),
        (b"123", 3, b"", 0),
        (b"", 0, b"", 0),
    ],
)
def test_the_fcs_is_at_the_end_of_what_was_on_the_wire(
    captured: bytes, original: int, data: bytes, wire_length: int
) -> None:
    classic = pcap_header(">", 0x24000001) + pcap_record(">", (0, 0), captured, original)
    (packet,) = read_capture(classic)
    assert (packet.data, packet.wire_length) == (data, wire_length)
    blocks = section_header(">") + interface_block(">", 1, options=option(">", 13, b"\x20"))
    (packet,) = read_capture(blocks + enhanced_packet(">", 0, 0, captured, original))
    assert (packet.data, packet.wire_length) == (data, wire_length)


def test_the_fcs_length_counts_only_where_it_is_said_to_be_present() -> None:
    (packet,) = read_capture(pcap_header(">", 0x20000001) + pcap_record(">", (0, 0), b"123456"))
    assert packet.data == b"123456"


def test_a_section_forgets_the_interfaces_of_the_one_before() -> None:
    one = section_header("<") + interface_block("<", 1)
    two = section_header(">") + enhanced_packet(">", 0, 0, b"", 0)
    packets, error = read(one + two)
    assert packets == []
    assert error is not None
    assert "interface 0, 0 are described" in str(error)


def _with(data: bytes, position: int, change: bytes) -> bytes:
    return data[:position] + change + data[position + len(change) :]


_NG = section_header("<") + interface_block("<", 1)  # 28 and 20 bytes

BROKEN = {
    "nothing": (b"", 0, "neither a pcap nor a pcapng"),
    "text": (b"0101000c2112a442", 0, "neither a pcap nor a pcapng"),
    "another format": (bytes.fromhex("a1b2cd34") + bytes(40), 0, "neither a pcap nor a pcapng"),
    "pcap: short header": (pcap_header("<", 1)[:23], 0, "24 bytes, 23 are there"),
    "pcap: minor version": (_with(pcap_header("<", 1), 6, b"\3"), 4, "version 2.3"),
    "pcap: major version": (_with(pcap_header("<", 1), 4, b"\3"), 4, "version 3.4"),
    "pcap: R": (pcap_header("<", 0x08000001), 20, "0x08000001"),
    "pcap: reserved": (pcap_header(">", 0x00010001), 20, "0x00010001"),
    "pcap: record header": (pcap_header("<", 1) + bytes(15), 24, "header of a packet"),
    "pcap: hostile length": (
        pcap_header("<", 1) + struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 0xFFFFFFFF),
        32,
        "4294967295 bytes, 0 are there",
    ),
    "byte-order magic": (_with(_NG, 8, b"\0"), 8, "003c2b1a is no byte-order magic"),
    "ng: major version": (section_header("<", version=(2, 0)), 12, "version 2.0"),
    "ng: short section header": (
        block("<", 0x0A0D0D0A, struct.pack("<IHHI", 0x1A2B3C4D, 1, 0, 0)),
        4,
        "at least 28 bytes, not 24",
    ),
    "ng: short interface": (_NG + block("<", 1, bytes(4)), 52, "at least 20 bytes, not 16"),
    "ng: short enhanced packet": (_NG + block("<", 6, bytes(16)), 52, "at least 32 bytes"),
    "ng: short packet": (_NG + block("<", 2, bytes(16)), 52, "at least 32 bytes"),
    "ng: short simple packet": (_NG + block("<", 3, b""), 52, "at least 16 bytes, not 12"),
    "ng: block of no length": (_NG + struct.pack("<III", 5, 0, 0), 52, "cannot have 0 bytes"),
    "ng: odd length": (_NG + struct.pack("<IIBI", 5, 13, 0, 13), 52, "cannot have 13 bytes"),
    "ng: hostile length": (_NG + struct.pack("<III", 5, 0xFFFFFFFC, 0), 52, "12 are there"),
    "ng: lengths differ": (_NG + struct.pack("<III", 5, 12, 16), 56, "ends as one of 16"),
    "ng: lengths differ the other way": (
        _NG + struct.pack("<IIII", 5, 16, 0, 12),
        60,
        "ends as one of 12",
    ),
    "ng: too little for a block": (_NG + bytes(11), 48, "at least 12 bytes, 11 are left"),
    "ng: no such interface": (
        _NG + enhanced_packet("<", 1, 0, b"", 0),
        56,
        "interface 1, 1 are described",
    ),
    "ng: no such interface, obsolete": (
        _NG + obsolete_packet("<", 1, 0, b"", 0),
        56,
        "interface 1, 1 are described",
    ),
    "ng: no interface": (
        section_header("<") + simple_packet("<", b"", 0),
        36,
        "interface 0, 0 are described",
    ),
    "ng: packet beyond its block": (
        _NG + _with(enhanced_packet("<", 0, 0, b"1234", 4), 20, b"\5"),
        56,
        "5 bytes in a block that has room for 4",
    ),
    "ng: simple packet beyond its block": (
        _NG + simple_packet("<", b"1234", 0xFFFFFFFF),
        56,
        "4294967295 bytes in a block that has room for 4",
    ),
    "ng: option beyond its block": (
        section_header("<") + interface_block("<", 1, options=struct.pack("<HHI", 2, 5, 0)),
        46,
        "option 2 has 5 bytes, 4 are there",
    ),
    "ng: if_tsresol": (
        section_header("<") + interface_block("<", 1, options=option("<", 9, b"12")),
        46,
        "option 9 has 1 bytes, not 2",
    ),
    "ng: if_fcslen": (
        section_header("<") + interface_block("<", 1, options=option("<", 13, b"")),
        46,
        "option 13 has 1 bytes, not 0",
    ),
    "ng: if_tsoffset": (
        section_header("<") + interface_block("<", 1, options=option("<", 14, b"1234")),
        46,
        "option 14 has 8 bytes, not 4",
    ),
}


@pytest.mark.parametrize(("data", "offset", "text"), BROKEN.values(), ids=BROKEN)
def test_broken_files(data: bytes, offset: int, text: str) -> None:
    packets, error = read(data)
    assert packets == []
    assert error is not None
    assert error.offset == offset
    assert text in str(error)
    assert str(error).endswith(f"(at byte {offset})")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", False),
        (pcap_header("<", 1), True),
        (pcap_header(">", 1, magic=0xA1B23C4D)[:4], True),
        (pcap_header("<", 1)[:3], False),
        (section_header("<")[:12], True),
        (section_header(">"), True),
        (section_header("<")[:11], False),
        # A STUN message may begin like a pcapng file.
        (bytes.fromhex("0a0d0d0a 2112a442 000000000000000000000000"), False),
        (b"0101000c2112a442", False),
    ],
)
def test_is_capture(data: bytes, *, expected: bool) -> None:
    assert is_capture(data) is expected


# --- Datagrams ---


def sll(ethertype: bytes) -> bytes:
    return bytes.fromhex("0000 0001 0006 0200000000010000") + ethertype


def sll2(ethertype: bytes) -> bytes:
    return ethertype + bytes.fromhex("0000 00000002 0001 00 06 0200000000010000")


def ethernet(ethertype: bytes) -> bytes:
    return bytes.fromhex("020000000001 020000000002") + ethertype


def tagged(
    header: Callable[[bytes], bytes], ethertype: int, tags: list[VlanTag], packet: bytes
) -> bytes:
    """Put tags between a link header and the packet: the first's number is in the header."""
    numbers = b"".join(tag.encode() for tag in tags) + ethertype.to_bytes(2, "big")
    return header(numbers[:2]) + numbers[2:] + packet


TAGGED = {
    LinkType.ETHERNET: ethernet,
    LinkType.LINUX_SLL: sll,
    LinkType.LINUX_SLL2: sll2,
}


@st.composite
def link_frames(draw: st.DrawFn, ethertype: int, packet: bytes) -> tuple[LinkType, bytes]:
    """A packet behind the header of one of the link types that can carry it."""
    is_ipv4 = ethertype == EtherType.IPV4
    link_type = draw(st.sampled_from(LinkType))
    match link_type:
        case LinkType.IPV4 | LinkType.IPV6:
            return (LinkType.IPV4 if is_ipv4 else LinkType.IPV6), packet
        case LinkType.RAW | LinkType.RAW_BSD | LinkType.RAW_OPENBSD:
            return link_type, packet
        case LinkType.NULL | LinkType.LOOP:
            family = 2 if is_ipv4 else draw(st.sampled_from([24, 28, 30]))
            order = draw(orders) if link_type is LinkType.NULL else ">"
            return link_type, struct.pack(f"{order}I", family) + packet
        case _:
            tags = draw(st.lists(vlan_tags, max_size=3))
            return link_type, tagged(TAGGED[link_type], ethertype, tags, packet)


_extension_kinds = st.sampled_from(
    [IPProtocol.HOP_BY_HOP, IPProtocol.ROUTING, IPProtocol.AUTHENTICATION]
)

# A fragment that is all of the datagram (RFC 6946).
_whole = st.binary(min_size=4, max_size=4).map(
    lambda identification: ExtensionHeader(IPProtocol.FRAGMENT, b"\0\0" + identification)
)


@dataclass
class Sent:
    """A packet with a datagram in it, and where the IP packet ends in it."""

    packet: CapturedPacket
    datagram: CapturedDatagram
    end: int


@st.composite
def sent_datagrams(draw: st.DrawFn) -> Sent:
    source, destination = draw(
        st.tuples(ipv4_addresses, ipv4_addresses) | st.tuples(ipv6_addresses, ipv6_addresses)
    )
    payload = draw(st.binary(max_size=40))
    # Checksums are whatever they are before a network card has computed them.
    udp = UDPHeader(draw(ports), draw(ports), checksum=draw(st.integers(0, 0xFFFF)))
    # Behind the datagram, but in the IP payload: the options of RFC 9868.
    surplus = draw(st.sampled_from([b"", b"", b"\0\0\1\0"]))
    segment = udp.encode(payload, source, destination) + surplus
    if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
        ethertype, packet = EtherType.IPV4, _ipv4_packet(draw, source, destination, segment)
    else:
        assert isinstance(source, IPv6Address)
        assert isinstance(destination, IPv6Address)
        extensions = draw(st.lists(extension_headers(_extension_kinds) | _whole, max_size=2))
        ip = IPv6Header(source, destination, extensions=tuple(extensions))
        ethertype, packet = EtherType.IPV6, ip.encode(segment)
    link_type, frame = draw(link_frames(ethertype, packet))
    end = len(frame) - len(surplus)
    offset = draw(st.integers(0, 2**40))
    data = frame + draw(st.binary(max_size=18))  # padding
    datagram = CapturedDatagram(
        source_ip=source,
        source_port=udp.source_port,
        destination_ip=destination,
        destination_port=udp.destination_port,
        payload=payload,
        offset=offset + end - len(payload),
    )
    captured = CapturedPacket(data, None, len(data), link_type, offset)
    return Sent(captured, datagram, len(frame))


def _ipv4_packet(
    draw: st.DrawFn, source: IPv4Address, destination: IPv4Address, segment: bytes
) -> bytes:
    options = draw(st.just(b"") | ipv4_options)
    packet = IPv4Header(source, destination, options=options).encode(segment)
    if draw(st.booleans()):
        packet = _with(packet, 10, draw(st.binary(min_size=2, max_size=2)))
    return packet


def refusal(packet: CapturedPacket) -> str:
    with pytest.raises(PacketError) as caught:
        datagram_of(packet)
    assert 0 <= caught.value.offset <= len(packet.data)
    return caught.value.reason


@given(sent_datagrams())
def test_datagrams_behind_every_link_type(sent: Sent) -> None:
    assert datagram_of(sent.packet) == sent.datagram


@given(sent_datagrams())
def test_datagrams_that_are_cut(sent: Sent) -> None:
    for length in range(len(sent.packet.data)):
        cut = replace(sent.packet, data=sent.packet.data[:length])
        if length >= sent.end:
            assert datagram_of(cut) == sent.datagram  # only padding is missing
        else:
            assert refusal(cut) == FrameDrop.TRUNCATED
            # The same bytes make no sense if nobody has cut them.
            assert refusal(replace(cut, wire_length=length)) != FrameDrop.TRUNCATED


def captured(link_type: int, data: bytes) -> CapturedPacket:
    return CapturedPacket(data, None, len(data), link_type, 0)


IPV4 = IPv4Header(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1"))
IPV6 = IPv6Header(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"))
SEGMENT = bytes.fromhex("0fa00d96 000a 0000 abcd")


def fragment(offset: int, *, more: bool) -> ExtensionHeader:
    data = struct.pack("!HI", offset << 3 | more, 7)
    return ExtensionHeader(IPProtocol.FRAGMENT, data)


REFUSED = {
    "link type": (105, IPV4.encode(SEGMENT), UNSUPPORTED_LINK_TYPE),
    "arp": (1, ethernet(b"\x08\x06") + bytes(28), FrameDrop.NOT_IP),
    "arp in sll": (113, sll(b"\x08\x06") + bytes(28), FrameDrop.NOT_IP),
    "arp in sll2": (276, sll2(b"\x08\x06") + bytes(28), FrameDrop.NOT_IP),
    "802.3": (1, ethernet(b"\x00\x26") + bytes(38), FrameDrop.NOT_IP),
    "osi in null": (0, struct.pack("<I", 7) + bytes(20), FrameDrop.NOT_IP),
    "loop is big-endian": (108, struct.pack("<I", 2) + IPV4.encode(SEGMENT), FrameDrop.NOT_IP),
    "short ethernet": (1, bytes(13), FrameDrop.BAD_IP),
    "short sll": (113, sll(b"\x08\x00")[:15], FrameDrop.BAD_IP),
    "short sll2": (276, sll2(b"\x08\x00")[:19], FrameDrop.BAD_IP),
    "short null": (0, bytes(3), FrameDrop.BAD_IP),
    "short loop": (108, bytes(3), FrameDrop.BAD_IP),
    "tag in ethernet": (1, ethernet(b"\x81\x00") + bytes(3), FrameDrop.VLAN),
    "tag in sll": (113, sll(b"\x88\xa8") + bytes(3), FrameDrop.VLAN),
    "tag in sll2": (276, sll2(b"\x81\x00"), FrameDrop.VLAN),
    "empty raw": (101, b"", FrameDrop.BAD_IP),
    "raw of another version": (101, b"\x55" + IPV4.encode(SEGMENT)[1:], FrameDrop.BAD_IP),
    "ipv6 as ipv4": (228, IPV6.encode(SEGMENT), FrameDrop.BAD_IP),
    "ipv4 as ipv6": (229, IPV4.encode(bytes(30)), FrameDrop.BAD_IP),
    "total length": (228, IPV4.encode(SEGMENT)[:-1], FrameDrop.BAD_IP),
    "payload length": (229, IPV6.encode(SEGMENT)[:-1], FrameDrop.BAD_IP),
    "ipv4 first fragment": (
        228,
        replace(IPV4, flags=IPv4Flags.MORE_FRAGMENTS).encode(SEGMENT),
        FrameDrop.FRAGMENT,
    ),
    "ipv4 last fragment": (228, replace(IPV4, fragment_offset=1).encode(b""), FrameDrop.FRAGMENT),
    "ipv6 first fragment": (
        229,
        replace(IPV6, extensions=(fragment(0, more=True),)).encode(SEGMENT),
        FrameDrop.FRAGMENT,
    ),
    "ipv6 last fragment": (
        229,
        replace(IPV6, extensions=(fragment(1, more=False),)).encode(SEGMENT),
        FrameDrop.FRAGMENT,
    ),
    "ipv6 extension": (
        229,
        replace(IPV6, protocol=IPProtocol.ROUTING).encode(b"\x11\x01" + bytes(6)),
        FrameDrop.IPV6_EXTENSION,
    ),
    "tcp": (228, replace(IPV4, protocol=6).encode(bytes(20)), FrameDrop.NOT_UDP),
    "icmpv6": (229, replace(IPV6, protocol=58).encode(bytes(8)), FrameDrop.NOT_UDP),
    "esp": (229, replace(IPV6, protocol=50).encode(SEGMENT), FrameDrop.NOT_UDP),
    "no udp header": (228, IPV4.encode(b""), FrameDrop.BAD_UDP_LENGTH),
    "short udp header": (228, IPV4.encode(SEGMENT[:7]), FrameDrop.BAD_UDP_LENGTH),
    "udp length below 8": (228, IPV4.encode(_with(SEGMENT, 5, b"\7")), FrameDrop.BAD_UDP_LENGTH),
    "udp length 0": (229, IPV6.encode(_with(SEGMENT, 5, b"\0")), FrameDrop.BAD_UDP_LENGTH),
    "udp length beyond ip": (
        228,
        IPV4.encode(_with(SEGMENT, 5, b"\x0b")),
        FrameDrop.BAD_UDP_LENGTH,
    ),
}


@pytest.mark.parametrize(("link_type", "data", "reason"), REFUSED.values(), ids=REFUSED)
def test_packets_without_a_datagram(link_type: int, data: bytes, reason: str) -> None:
    assert refusal(captured(link_type, data)) == reason


@pytest.mark.parametrize("name", ["arp", "osi in null", "ipv4 first fragment", "icmpv6", "esp"])
def test_what_a_header_says_holds_for_a_packet_that_was_cut(name: str) -> None:
    link_type, data, reason = REFUSED[name]
    assert refusal(replace(captured(link_type, data), wire_length=1500)) == reason


def test_a_packet_that_was_cut_says_what_is_missing() -> None:
    packet = replace(captured(228, IPV4.encode(SEGMENT)[:25]), wire_length=30)
    with pytest.raises(PacketError, match=r"cut from 30 bytes to 25 \(at byte 25\)") as caught:
        datagram_of(packet)
    assert "packet of 30, 25 there" in str(caught.value.__cause__)


@pytest.mark.parametrize("length", [0, 7, 11])
def test_a_wrong_udp_length_is_held_against_the_ip_payload(length: int) -> None:
    packet = captured(228, IPV4.encode(_with(SEGMENT, 5, bytes([length]))))
    with pytest.raises(PacketError, match=rf"length {length} in an IP payload of 10 .* 24\)"):
        datagram_of(packet)


@given(st.binary(max_size=80), st.sampled_from(LinkType), st.integers(0, 100))
@example(b"", LinkType.RAW, 0)
def test_datagrams_in_noise(data: bytes, link_type: LinkType, more: int) -> None:
    check_datagram(CapturedPacket(data, None, len(data) + more, link_type, 0), data)


# --- Another reader ---


def run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def by_tshark(path: Path) -> list[tuple[str, ...]]:
    """Return time, lengths, addresses, ports and payload of every packet."""
    names = "frame.time_epoch frame.len frame.cap_len ip.src ip.dst ipv6.src ipv6.dst"
    names += " udp.srcport udp.dstport udp.payload"
    fields = [word for name in names.split() for word in ("-e", name)]
    # Nobody is to guess at what the payload may be.
    output = run("tshark", "-r", path, "--disable-heuristic", "stun_udp", "-T", "fields", *fields)
    return [tuple(line.split("\t")) for line in output.splitlines()]


def by_us(path: Path) -> list[tuple[str, ...]]:
    rows = []
    for packet in read_capture(path.read_bytes()):
        seconds, fraction = divmod(packet.timestamp or 0, 1_000_000_000)
        datagram = datagram_of(packet)
        addresses = [str(datagram.source_ip), str(datagram.destination_ip)]
        rows.append(
            (
                f"{seconds}.{fraction:09}",
                str(packet.wire_length),
                str(len(packet.data)),
                *(addresses if datagram.source_ip.version == 4 else ["", ""]),
                *(addresses if datagram.source_ip.version == 6 else ["", ""]),
                str(datagram.source_port),
                str(datagram.destination_port),
                datagram.payload.hex(),
            )
        )
    return rows


PEER_TAGS = [VlanTag(7, tpid=EtherType.SERVICE_VLAN), VlanTag(5)]
PEER_IPV6 = replace(IPV6, extensions=(ExtensionHeader(IPProtocol.HOP_BY_HOP, b"\1\4" + bytes(4)),))
PEER_PACKETS = {
    "null": (0, struct.pack("<I", 2) + IPV4.encode(SEGMENT)),
    "null, big-endian": (0, struct.pack(">I", 30) + IPV6.encode(SEGMENT)),
    "ethernet": (1, ethernet(b"\x08\x00") + IPV4.encode(SEGMENT)),
    "tags": (1, tagged(ethernet, EtherType.IPV6, PEER_TAGS, PEER_IPV6.encode(SEGMENT))),
    "raw": (101, IPV4.encode(SEGMENT)),
    "loop": (108, struct.pack(">I", 24) + IPV6.encode(SEGMENT)),
    "sll": (113, sll(b"\x08\x00") + IPV4.encode(SEGMENT)),
    "sll, tags": (113, tagged(sll, EtherType.IPV6, PEER_TAGS[1:], IPV6.encode(SEGMENT))),
    "ipv4": (228, replace(IPV4, options=b"\1\1\1\0").encode(SEGMENT)),
    "ipv6": (229, IPV6.encode(SEGMENT)),
    "sll2": (276, sll2(b"\x86\xdd") + IPV6.encode(SEGMENT)),
}


@pytest.mark.peers
@pytest.mark.parametrize(("link_type", "packet"), PEER_PACKETS.values(), ids=PEER_PACKETS)
def test_tshark_reads_the_same(tmp_path: Path, link_type: int, packet: bytes) -> None:
    path = tmp_path / "written"
    path.write_bytes(
        pcap_header(">", link_type)
        + pcap_record(">", (1_700_000_000, 123_456), packet)
        + pcap_record(">", (4_294_967_295, 999_999), packet + bytes(10), len(packet) + 20)
    )
    expected = by_tshark(path)
    assert len(expected) == 2
    assert by_us(path) == expected
    # The same again, in other words: editcap rewrites it.
    for name in ("pcap", "nsecpcap", "pcapng"):
        copy = tmp_path / name
        run("editcap", "-F", name, path, copy)
        assert by_us(copy) == by_tshark(copy) == expected
    # One byte less than the datagram needs.
    run("editcap", "-F", "pcapng", "-s", str(len(packet) - 1), path, tmp_path / "cut")
    for whole in read_capture((tmp_path / "cut").read_bytes()):
        assert refusal(whole) == FrameDrop.TRUNCATED
    run("mergecap", "-a", "-w", tmp_path / "joined", tmp_path / "nsecpcap", tmp_path / "pcapng")
    assert by_us(tmp_path / "joined") == by_tshark(tmp_path / "joined") == expected * 2


@pytest.mark.peers
@pytest.mark.parametrize("order", ["<", ">"])
def test_tshark_reads_blocks_the_same(tmp_path: Path, order: str) -> None:
    other = "<>"[order == "<"]
    frame = ethernet(b"\x08\x00") + IPV4.encode(SEGMENT)
    raw = IPV6.encode(SEGMENT)
    comment = option(order, 1, b"so") + bytes(4)
    binary = option(order, 9, b"\x94") + option(order, 14, struct.pack(f"{order}q", 1_000_000))
    path = tmp_path / "blocks"
    path.write_bytes(
        section_header(order, option(order, 4, b"a program") + bytes(4))
        + interface_block(order, 1, 262144, option(order, 2, b"eth0") + bytes(4))
        + interface_block(order, 101, 262144, option(order, 9, b"\x09") + bytes(4))
        + interface_block(order, 101, 262144, binary + bytes(4))
        + enhanced_packet(order, 0, 1_700_000_000_123_456, frame, len(frame))
        + enhanced_packet(order, 1, 1_700_000_000_123_456_789, raw, len(raw))
        + enhanced_packet(order, 2, 5 << 18, raw, len(raw), options=comment)
        + obsolete_packet(order, 1, 1_700_000_000_000_000_001, raw, len(raw) + 5)
        + section_header(other)
        + interface_block(other, 101, 262144)
        + enhanced_packet(other, 0, 17, raw, len(raw))
    )
    expected = by_tshark(path)
    assert len(expected) == 5
    assert by_us(path) == expected
