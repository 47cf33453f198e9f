"""The fast path and the specification agree: byte for byte, or reason for reason.

`pktstun_answer` is held against `respond()`, and `pktstun_parse_frame` with it against
`receive()` and `respond()`. What C hands over, `verdict_of_c` says. Inputs and the reply lie
flush against inaccessible pages, so that reading or writing one byte too far ends the test run.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pktstun import packet
from pktstun.engine import native_options
from pktstun.errors import PacketError
from pktstun.kernel._ffi import CData, ffi, lib
from pktstun.stats import VERDICTS
from pktstun.stun import NatDiscovery, ResponderOptions, ShortTerm, TransportAddress
from tests.fuzz.native.model import verdict_of_c
from tests.native.guarded import Guarded
from tests.strategies.datagrams import datagrams
from tests.strategies.frames import frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.strategies.frames import Metadata

pytestmark = pytest.mark.native

EXAMPLES = 20 * settings().max_examples
MANY = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
NAMES = {number: name for name, number in VERDICTS.items()}

Outcome = tuple[str, bytes]


@pytest.fixture(scope="module")
def source_memory() -> Iterator[Guarded]:
    with Guarded(1 << 17) as memory:
        yield memory


@pytest.fixture(scope="module")
def reply_memory() -> Iterator[Guarded]:
    with Guarded(lib.PKTSTUN_IPV6_HEADERS + lib.PKTSTUN_MAX_REPLY) as memory:
        yield memory


def test_crc32_is_that_of_zlib() -> None:
    @given(st.binary(max_size=300))
    def check(data: bytes) -> None:
        assert lib.pktstun_crc32(data, len(data)) == zlib.crc32(data)

    check()


# A few addresses, so that sources, destinations and the server's own often meet.
IPS = [
    ipaddress.ip_address(text)
    for text in (
        "192.0.2.1",
        "192.0.2.255",
        "198.51.100.7",
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.9.9.9",
        "224.0.0.251",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "2001:db8::1",
        "fe80::1",
        "::",
        "::1",
        "::2",
        "ff02::1",
        "::ffff:192.0.2.1",
        "::ffff:198.51.100.7",
        "::ffff:127.0.0.1",
        "::ffff:224.0.0.1",
        "::ffff:0.0.0.0",
    )
]
PLAIN = [ip for ip in IPS if isinstance(ip, ipaddress.IPv4Address) or not ip.ipv4_mapped]
IPV4S = [ip for ip in IPS if isinstance(ip, ipaddress.IPv4Address)]
ADDRESSES = st.builds(
    TransportAddress,
    st.sampled_from(IPS) | st.ip_addresses(),
    st.sampled_from([0, 1, 3478, 3479, 0x2112, 65535]) | st.integers(0, 65535),
)
USERS = ShortTerm({"ada": "countess of lovelace"})
WITHOUT_CREDENTIALS = st.builds(
    ResponderOptions,
    software=st.none() | st.text(st.characters(codec="utf-8"), max_size=127),
    endpoints=st.frozensets(ADDRESSES.map(TransportAddress.unmapped), max_size=6),
    local=st.frozensets(st.sampled_from(PLAIN), max_size=3),
    check_destination=st.booleans(),
    broadcasts=st.frozensets(st.sampled_from(IPV4S), max_size=3),
    allow_loopback=st.booleans(),
    classic=st.booleans(),
    alternate_servers=st.sampled_from(
        [
            (),
            (),
            (TransportAddress.parse("203.0.113.9"),),
            (TransportAddress.parse("[2001:db8:9::1]:5349"),),
            (TransportAddress.parse("203.0.113.9:1"), TransportAddress.parse("2001:db8:9::1")),
        ]
    ),
)
OPTIONS = st.tuples(WITHOUT_CREDENTIALS, st.sampled_from([None, None, USERS])).map(
    lambda drawn: replace(
        drawn[0], classic=drawn[0].classic and drawn[1] is None, authenticator=drawn[1]
    )
)


@st.composite
def discoveries(draw: st.DrawFn, endpoint: TransportAddress) -> tuple[NatDiscovery, ...]:
    """What RFC 5780 needs at this address, or at others, or nothing."""
    here = endpoint.unmapped()
    if draw(st.booleans()) or here.port == 0:
        return ()
    other = type(here.ip)(int(here.ip) ^ draw(st.sampled_from([1, 2, 1 << 20])))
    ips = [here.ip, other]
    ports = [here.port, here.port ^ (1 if here.port != 1 else 2)]
    told = draw(st.none() | st.just((ips[1], ips[0])))
    if draw(st.booleans()):
        ips.reverse()
    if draw(st.booleans()):
        ports.reverse()
    return (NatDiscovery((ips[0], ips[1]), (ports[0], ports[1]), told),)


@st.composite
def situations(
    draw: st.DrawFn,
) -> tuple[TransportAddress, TransportAddress, ResponderOptions]:
    """Source, destination, and options that may know them."""
    source, destination = draw(ADDRESSES), draw(ADDRESSES)
    options = draw(st.just(ResponderOptions(allow_loopback=True)) | OPTIONS)
    return source, destination, replace(options, discovery=draw(discoveries(destination)))


def native_address(address: TransportAddress) -> CData:
    native = ffi.new("struct pktstun_address *")
    native.family = address.ip.version
    ffi.memmove(native.ip, address.ip.packed, len(address.ip.packed))
    native.port = address.port
    return native


def by_specification(
    datagram: bytes,
    source: TransportAddress,
    destination: TransportAddress,
    options: ResponderOptions,
) -> Outcome:
    verdict, reply = verdict_of_c(datagram, source, destination, options)
    return verdict, b"" if verdict == "handover" else reply


def by_c(
    payload: tuple[CData, int],
    addresses: tuple[CData, CData],
    options: ResponderOptions,
    memory: Guarded,
) -> Outcome:
    native = native_options(options)
    bound = lib.pktstun_reply_bound(native)
    # Filled with rubbish: what C does not write shows.
    reply = memory.at_end(b"\xa5" * bound)
    size = ffi.new("size_t *")
    verdict = NAMES[lib.pktstun_answer(*payload, *addresses, native, reply, size)]
    answered = verdict in {"success", "error"}
    return verdict, bytes(ffi.buffer(reply, size[0])) if answered else b""


@MANY
@given(datagram=datagrams(), situation=situations())
def test_answer_agrees_with_respond(
    source_memory: Guarded,
    reply_memory: Guarded,
    datagram: bytes,
    situation: tuple[TransportAddress, TransportAddress, ResponderOptions],
) -> None:
    source, destination, options = situation
    expected = by_specification(datagram, source, destination, options)
    data = source_memory.at_end(datagram)
    addresses = native_address(source), native_address(destination)
    assert by_c((data, len(datagram)), addresses, options, reply_memory) == expected


@st.composite
def frames_and_options(draw: st.DrawFn) -> tuple[bytes, Metadata, ResponderOptions]:
    """Draw a frame, and options that know its addresses now and then."""
    frame, metadata = draw(frames(datagrams()))
    options = draw(st.just(ResponderOptions(allow_loopback=True)) | OPTIONS)
    with suppress(PacketError):
        got = packet.receive(frame, **metadata)
        source = TransportAddress(got.source_ip, got.source_port)
        destination = TransportAddress(got.destination_ip, got.destination_port)
        known = draw(st.sampled_from([()] * 4 + [(destination,)] * 3 + [(source,)]))
        options = replace(
            options,
            endpoints=options.endpoints | {address.unmapped() for address in known},
            discovery=draw(discoveries(destination)),
        )
    return frame, metadata, options


FRAMES = frames_and_options()


def frame_by_specification(frame: bytes, metadata: Metadata, options: ResponderOptions) -> Outcome:
    try:
        received = packet.receive(frame, **metadata)
    except PacketError as error:
        return error.reason, b""
    return by_specification(
        bytes(received.payload),
        TransportAddress(received.source_ip, received.source_port),
        TransportAddress(received.destination_ip, received.destination_port),
        options,
    )


def native_frame(data: CData, captured: int, metadata: Metadata | None = None) -> CData:
    vlan_id = metadata and metadata.get("vlan_id")
    checksum = metadata and metadata.get("checksum")
    frame = ffi.new("struct pktstun_frame *")
    frame.data = data
    frame.captured = captured
    length = metadata and metadata.get("length")
    frame.length = captured if length is None else length
    if metadata:
        frame.packet_type = metadata.get("packet_type", packet.PacketType.HOST)
    if vlan_id is not None:
        # Priority bits, which the model is not told, must not matter.
        frame.status |= lib.TP_STATUS_VLAN_VALID
        frame.vlan_tci = vlan_id | 0xE000
    if checksum is packet.ChecksumStatus.VALID:
        frame.status |= lib.TP_STATUS_CSUM_VALID
    elif checksum is packet.ChecksumStatus.NOT_READY:
        frame.status |= lib.TP_STATUS_CSUMNOTREADY
    return frame


def frame_by_c(
    data: CData, captured: int, metadata: Metadata, options: ResponderOptions, reply: Guarded
) -> Outcome:
    datagram = ffi.new("struct pktstun_datagram *")
    frame = native_frame(data, captured, metadata)
    verdict = NAMES[lib.pktstun_parse_frame(frame, datagram)]
    if verdict != "pass":
        return verdict, b""
    addresses = ffi.addressof(datagram, "source"), ffi.addressof(datagram, "destination")
    return by_c((datagram.payload, datagram.length), addresses, options, reply)


@MANY
@given(drawn=FRAMES)
def test_frames_agree_with_receive_and_respond(
    source_memory: Guarded,
    reply_memory: Guarded,
    drawn: tuple[bytes, Metadata, ResponderOptions],
) -> None:
    frame, metadata, options = drawn
    data = source_memory.at_end(frame)
    expected = frame_by_specification(frame, metadata, options)
    assert frame_by_c(data, len(frame), metadata, options, reply_memory) == expected


@settings(MANY, max_examples=EXAMPLES // 8)
@given(drawn=frames(datagrams()), payload=st.binary(max_size=lib.PKTSTUN_MAX_REPLY))
def test_reply_frames_are_those_of_the_reference(
    source_memory: Guarded,
    reply_memory: Guarded,
    drawn: tuple[bytes, Metadata],
    payload: bytes,
) -> None:
    frame, metadata = drawn
    with suppress(PacketError):
        packet.receive(frame, **metadata)
        expected = packet.build_reply_frame(frame, payload)
        data = source_memory.at_end(frame)
        datagram = ffi.new("struct pktstun_datagram *")
        native = native_frame(data, len(frame), metadata)
        assert NAMES[lib.pktstun_parse_frame(native, datagram)] == "pass"
        # Rubbish where the headers will stand, and nothing in front of them or behind.
        headers = len(expected) - len(payload)
        for at in (reply_memory.at_start, reply_memory.at_end):
            reply = at(b"\xa5" * headers + payload)
            written = lib.pktstun_write_reply_headers(data, datagram, reply + headers, len(payload))
            assert written == headers
            assert bytes(ffi.buffer(reply, len(expected))) == expected


@pytest.mark.parametrize("ips", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")])
def test_a_checksum_of_0_is_written_as_its_complement(ips: tuple[str, str]) -> None:
    """RFC 768: on the wire 0 says that there is none."""
    client, server = map(ipaddress.ip_address, ips)
    frame = packet.build_udp_frame(b"", (client, 1), (server, 2))
    at = len(frame) - 2
    # What the sum lacks to be 0xFFFF, as a word of the payload.
    payload = packet.build_reply_frame(frame, bytes(2))[at : at + 2]
    expected = packet.build_reply_frame(frame, payload)
    assert expected[at : at + 2] == b"\xff\xff"
    datagram = ffi.new("struct pktstun_datagram *")
    data = ffi.from_buffer("uint8_t[]", frame)
    lib.pktstun_parse_frame(native_frame(data, len(frame)), datagram)
    reply = ffi.new("uint8_t[]", bytes(len(frame)) + payload)
    lib.pktstun_write_reply_headers(data, datagram, reply + len(frame), len(payload))
    assert bytes(ffi.buffer(reply, len(expected))) == expected


def test_the_frames_reach_the_end() -> None:
    """Every way to drop a frame comes up, and some ways to treat the datagram in it.

    A differential test shows nothing about a verdict that never comes up. That the datagrams
    reach every verdict of `respond()` is a test of their own.
    """
    seen: Counter[str] = Counter()

    @seed(1)
    @settings(
        max_examples=2000,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=FRAMES)
    def draw(drawn: tuple[bytes, Metadata, ResponderOptions]) -> None:
        seen[frame_by_specification(*drawn)[0]] += 1

    draw()
    assert {drop.value for drop in packet.FrameDrop} - set(seen) == set()
    assert {"own_source", "not_for_us", "bad_source", "handover", "error"} - set(seen) == set()
    assert seen["success"] > 100
