"""The codec against Wireshark's dissector: tshark reads what was written, byte for byte.

A thousand messages go through one run of tshark. Everything that it shows of a message is
compared: type, length, cookie and transaction id; each attribute's type, length and place; and
each of the fields in it with its place, as `SHOWN` says for the attribute's class.

Where tshark says something else, `DIFFERENCES` tells why, with a message that shows it. They
were found with tshark 4.0, which has to show each of them. A newer one may have learnt better.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pktstun import stun
from pktstun.packet import build_udp_frame
from pktstun.stun import (
    ATTRIBUTES,
    Attribute,
    AttributeType,
    Class,
    Message,
    Method,
    RawAttribute,
    TransportAddress,
)
from tests.pcap import write_pcap
from tests.strategies.stun import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.peers

COUNT = 1000

# Ethernet, IPv4 and UDP: 14 + 20 + 8 bytes in front of every message.
HEADERS = 42
SERVER = (IPv4Address("198.51.100.1"), stun.PORT)

# They are looked for in what DATA carries, and would find themselves in some random bytes.
GUESSES = ["dtls", "rtcp", "rtp", "sip", "tftp", "turnchannel"]

# Expert information above this is a complaint (PI_CHAT in Wireshark's epan/proto.h).
CHAT = 0x200000


# --- What tshark shows ---


@dataclass(frozen=True)
class Field:
    """A field as tshark shows it, its place counted from the message's first byte.

    What tshark has computed and not read has no place, and neither has what has no bytes.
    """

    name: str
    shown: str
    start: int | None = None
    size: int = 0
    children: list[Field] = field(default_factory=list)

    def __iter__(self) -> Iterator[Field]:
        for child in self.children:
            yield child
            yield from child

    def get(self, name: str) -> Field:
        return next(child for child in self.children if child.name == name)


def read_fields(node: list[tuple[str, Any]]) -> list[Field]:
    """Return the fields of a JSON object, whose keys are in order and repeated.

    `name_raw` has the bytes and where they are, `name` the text, and `name_tree` what is in it.
    """
    fields: list[Field] = []
    start, size = None, 0
    for name, value in node:
        if name.endswith("_raw"):
            start, size = value[1] - HEADERS, value[2]
            continue
        if name.endswith("_tree"):
            fields[-1].children.extend(read_fields(value))
            continue
        if isinstance(value, str):
            fields.append(Field(name, value, start, size))
        else:
            fields.append(Field(name, "", start, size, read_fields(value)))
        start, size = None, 0
    return fields


def complaints(node: Field) -> list[str]:
    """Return what tshark says is wrong in a part of a packet."""
    found = [
        child.get("_ws.expert.message").shown
        for child in node
        if child.name == "_ws.expert" and int(child.get("_ws.expert.severity").shown) > CHAT
    ]
    malformed = [child.name for child in node if child.name.startswith("_ws.malformed")]
    return found or malformed


def dissect(directory: Path, sent: list[Message]) -> list[Field]:
    """Return what tshark makes of each message in a UDP datagram of its own."""
    capture = directory / "messages.pcap"
    # Each is a conversation of its own, so that none is a repetition or an answer.
    clients = [(IPv4Address(0x0A000000 + number), 50000) for number in range(len(sent))]
    write_pcap(
        capture,
        [build_udp_frame(m.encode(), c, SERVER) for m, c in zip(sent, clients, strict=True)],
    )
    command = ["tshark", "-n", "-r", str(capture), "-T", "json", "-x"]
    for preference in ("udp.check_checksum:TRUE", "ip.check_checksum:TRUE"):
        command += ["-o", preference]
    for protocol in GUESSES:
        command += ["--disable-protocol", protocol]
    output = subprocess.run(command, capture_output=True, check=True, timeout=120)
    packets = json.loads(output.stdout, object_pairs_hook=list)
    layers = [dict(dict(packet)["_source"])["layers"] for packet in packets]
    return [Field("packet", "", children=read_fields(layer)) for layer in layers]


# --- What it should show ---


class Shown(NamedTuple):
    """A field in an attribute, its place counted from the first byte of the value."""

    name: str
    shown: str
    start: int | None
    size: int


class Reading(NamedTuple):
    """What tshark makes of an attribute, its place counted from the message's first byte."""

    type: int
    length: int
    start: int
    fields: list[Shown]
    complaints: list[str]


def octets(value: bytes) -> str:
    return value.hex(":")


def some(name: str, shown: str, start: int, size: int) -> Shown:
    return Shown(f"stun.att.{name}", shown, start if size else None, size)


def address(value: TransportAddress) -> list[Shown]:
    ip, port = value
    return [
        some("reserved", "00", 0, 1),
        some("family", "0x01" if ip.version == 4 else "0x02", 1, 1),
        some("port", str(port), 2, 2),
        some("ipv4" if ip.version == 4 else "ipv6", str(ip), 4, len(ip.packed)),
    ]


def text(name: str, value: str, start: int = 0) -> Shown:
    return some(name, value, start, len(value.encode()))


def error(value: stun.ErrorCode) -> list[Shown]:
    reason = [text("error.reason", value.reason, 4)] if value.reason else []
    return [
        some("reserved", "00:00", 0, 2),
        some("error.class", str(value.code // 100), 2, 1),
        some("error", str(value.code % 100), 3, 1),
        *reason,
    ]


def algorithms(*values: stun.PasswordAlgorithm) -> list[Shown]:
    found = []
    start = 0
    for number, parameters in [(value.algorithm, value.parameters) for value in values]:
        size = len(parameters)
        found.append(some("pw_alg", str(int(number)), start, 2))
        found.append(some("pw_alg_len", str(size), start + 2, 2))
        if size:
            found.append(some("pw_alg_data", octets(parameters), start + 4, size))
        if size % 4:
            found.append(some("padding", str(-size % 4), start + 4 + size, -size % 4))
        start += 4 + size + -size % 4
    return found


def whole(value: bytes) -> list[Shown]:
    return [Shown("stun.value", octets(value), 0, len(value))] if value else []


# By class, the fields in a value, padding behind it not included.
SHOWN: dict[Any, Callable[[Any], list[Shown]]] = {
    stun.MappedAddress: lambda a: address(a.address),
    stun.XorMappedAddress: lambda a: address(a.address),
    stun.Username: lambda a: [text("username", a.text)],
    stun.UserHash: lambda a: whole(a.value),
    stun.MessageIntegrity: lambda a: [some("hmac", octets(a.value), 0, 20)],
    stun.MessageIntegritySha256: lambda a: whole(a.value),
    # Wireshark computes the CRC itself and says whether it agrees: 1 is "good".
    stun.Fingerprint: lambda a: [
        some("crc32", f"{a.value:#010x}", 0, 4),
        some("crc32.status", "1", 0, 0),
    ],
    stun.ErrorCode: error,
    stun.Realm: lambda a: [text("realm", a.text)],
    stun.Nonce: lambda a: [text("nonce", a.text)],
    stun.PasswordAlgorithms: lambda a: algorithms(*a.algorithms),
    stun.PasswordAlgorithm: algorithms,
    stun.UnknownAttributes: lambda a: [
        some("unknown", f"{kind:#06x}", 2 * i, 2) for i, kind in enumerate(a.types)
    ],
    stun.Software: lambda a: [text("software", a.text)],
    stun.AlternateServer: lambda a: address(a.address),
    stun.AlternateDomain: lambda a: whole(a.text.encode()),
    stun.ChangeRequest: lambda a: [
        some("change-ip", str(int(a.change_ip)), 0, 4),
        some("change-port", str(int(a.change_port)), 0, 4),
    ],
    stun.ResponseOrigin: lambda a: address(a.address),
    stun.OtherAddress: lambda a: address(a.address),
    stun.ResponsePort: lambda a: [some("port", str(a.port), 0, 2)],
    # It says how long it is, and not what is in it.
    stun.Padding: lambda a: [some("padding", str(len(a.value)), 0, len(a.value))],
    stun.Priority: lambda a: [some("priority", str(a.value), 0, 4)],
    stun.UseCandidate: lambda _: [],
    stun.IceControlled: lambda a: [some("tie-breaker", octets(a.value.to_bytes(8)), 0, 8)],
    stun.IceControlling: lambda a: [some("tie-breaker", octets(a.value.to_bytes(8)), 0, 8)],
    stun.ChannelNumber: lambda a: [
        some("channelnum", f"{a.number:#06x}", 0, 2),
        some("reserved", "00:00", 2, 2),
    ],
    stun.Lifetime: lambda a: [some("lifetime", str(a.value), 0, 4)],
    stun.XorPeerAddress: lambda a: address(a.address),
    stun.Data: lambda a: whole(a.value),
    stun.XorRelayedAddress: lambda a: address(a.address),
    stun.RequestedAddressFamily: lambda a: [
        some("family", f"{a.family:#04x}", 0, 1),
        some("reserved", "00:00:00", 1, 3),
    ],
    stun.EvenPort: lambda a: [some("even-port.reserve-next", str(int(a.reserve_next)), 0, 1)],
    stun.RequestedTransport: lambda a: [
        some("transp", f"{a.protocol:#04x}", 0, 1),
        some("reserved", "00:00:00", 1, 3),
    ],
    stun.DontFragment: lambda _: [],
    stun.ReservationToken: lambda a: [some("token", octets(a.value), 0, 8)],
    stun.AdditionalAddressFamily: lambda a: whole(bytes([a.family, 0, 0, 0])),
    stun.AddressErrorCode: lambda a: whole(
        bytes([a.family, 0, *divmod(a.code, 100)]) + a.reason.encode()
    ),
    stun.Icmp: lambda a: [
        some("icmp.type", str(a.icmp_type), 2, 1),
        some("icmp.code", str(a.code), 2, 2),
    ],
    RawAttribute: lambda a: whole(a.value),
}

# Classes whose bytes tshark 4.0 shows without looking into them.
OPAQUE = (
    RawAttribute,
    stun.AddressErrorCode,
    stun.AdditionalAddressFamily,
    stun.AlternateDomain,
    stun.MessageIntegritySha256,
    stun.UserHash,
)

ADDRESSES = (
    stun.AlternateServer,
    stun.MappedAddress,
    stun.OtherAddress,
    stun.ResponseOrigin,
    stun.XorMappedAddress,
    stun.XorPeerAddress,
    stun.XorRelayedAddress,
)

# What it looks into and the codec does not: GOOG-NETWORK-INFO, CACHE-TIMEOUT (of a draft of
# RFC 5780), BANDWIDTH (of a draft of RFC 5766), and attributes of RFC 3489.
LOOKED_INTO = {0xC057, 0x8027, 0x0010, 0x0002, 0x0004, 0x0005, 0x0007, 0x000B}

# What Microsoft (MS-TURN, MS-ICE2) and early drafts use without registration; it takes others'
# use of these types for theirs.
UNREGISTERED = {0x000F, 0x0011, 0x0028, 0x0030, *range(0x8005, 0x8100)} - set(AttributeType)


def attribute_size(attribute: Attribute) -> int:
    return len(attribute.encode(bytes(12)))


def right(attribute: Attribute, start: int) -> Reading:
    """Return what the RFCs say that there is to show of an attribute at this place."""
    size = attribute_size(attribute)
    fields = SHOWN[type(attribute)](attribute)
    if size % 4 and not isinstance(attribute, stun.PasswordAlgorithm):
        fields = [*fields, some("padding", str(-size % 4), size, -size % 4)]
    return Reading(attribute.type, size, start, fields, [])


# --- Where it differs ---


class Difference(NamedTuple):
    """Why tshark 4.0 shows something else, and an attribute that makes it."""

    why: str
    attribute: Attribute
    shown: str
    complaints: list[str]


DIFFERENCES = {
    "string": Difference(
        "Strings end at the first NUL, as they do in C; UTF-8 has it as any other character.",
        stun.Software("a\0b"),
        "software=a padding=1",
        ["Trailing stray characters"],
    ),
    "string that ends with NUL": Difference(
        "The same, where nothing is lost.",
        stun.Software("user\0\0"),
        "software=user padding=2",
        [],
    ),
    "algorithm with padding": Difference(
        "The parameters of PASSWORD-ALGORITHM are compared with the bytes that are left the "
        "wrong way round: they are refused unless they reach the end of the value. But there "
        "may be padding behind them (RFC 8489 section 14.11), or another algorithm.",
        stun.PasswordAlgorithm(stun.PasswordAlgorithmNumber.MD5, b"abc"),
        "pw_alg=1 pw_alg_len=3",
        ["Too few bytes left for parameter data (4 < 3)"],
    ),
    "algorithm in front of another": Difference(
        "The same, and the algorithms behind those parameters are not read at all.",
        stun.PasswordAlgorithms(
            (
                stun.PasswordAlgorithm(stun.PasswordAlgorithmNumber.SHA_256, b"abcd"),
                stun.PasswordAlgorithm(stun.PasswordAlgorithmNumber.MD5),
            )
        ),
        "pw_alg=2 pw_alg_len=4",
        ["Too few bytes left for parameter data (8 < 4)"],
    ),
    "RESPONSE-PORT": Difference(
        "0x0027 was XOR-RESPONSE-TARGET, an address, in drafts of RFC 5780. What is shown for "
        "the port is the 16 bits of padding behind it, XORed with 0x2112.",
        stun.ResponsePort(0x1234),
        "reserved=12 family=0x34 port=8466",
        [],
    ),
    "ICMP": Difference(
        "Type and code are read from the first two bytes, which are reserved (RFC 8656 section "
        "18.13: 16 bits, then type and code, then the data).",
        stun.Icmp(3, 4, 1500),
        "icmp.type=0 icmp.code=0",
        [],
    ),
    "unknown type": Difference(
        "A type that it does not know has a warning, be it comprehension-optional or not.",
        RawAttribute(AttributeType(0xFFFF), b"abc"),
        "stun.value=61:62:63 padding=1",
        ["Unknown attribute 0xffff"],
    ),
}


def as_4_0(attribute: Attribute, correct: Reading) -> Reading:
    """Return what tshark 4.0 shows of an attribute, wherever that is something else."""
    match attribute:
        case stun.PasswordAlgorithm():
            return _algorithms_as_4_0([attribute], correct)
        case stun.PasswordAlgorithms(algorithms=several):
            return _algorithms_as_4_0(list(several), correct)
        case stun.ResponsePort(port=port):
            first, second = divmod(port, 256)
            found = [
                some("reserved", f"{first:02x}", 0, 1),
                some("family", f"{second:#04x}", 1, 1),
                some("port", str(stun.MAGIC_COOKIE >> 16), 2, 2),
            ]
            return correct._replace(fields=found)
        case stun.Icmp():
            found = [some("icmp.type", "0", 0, 1), some("icmp.code", "0", 1, 1)]
            return correct._replace(fields=found)
        case _:
            fields = [f._replace(shown=f.shown.partition("\0")[0]) for f in correct.fields]
            lost = any(f.shown.rstrip("\0").count("\0") for f in correct.fields)
            stray = ["Trailing stray characters"] if lost else []
            return correct._replace(fields=fields, complaints=stray)


def _algorithms_as_4_0(several: list[stun.PasswordAlgorithm], correct: Reading) -> Reading:
    left = correct.length
    for i, algorithm in enumerate(several):
        left -= 4
        if 0 < len(algorithm.parameters) < left:
            fields = algorithms(*several[:i], stun.PasswordAlgorithm(algorithm.algorithm))
            size = len(algorithm.parameters)
            fields[-1] = fields[-1]._replace(shown=str(size))
            complaint = f"Too few bytes left for parameter data ({left} < {size})"
            return correct._replace(fields=fields, complaints=[complaint])
        left -= attribute_size(algorithm) - 4
    return correct


def check(attribute: Attribute, start: int, found: Reading, tshark: tuple[int, int]) -> None:
    """Fail unless tshark shows what there is, or differs in a way that is known."""
    correct = right(attribute, start)
    if isinstance(attribute, RawAttribute):
        # It may know the type or not; if it does not, it says so.
        complaint = f"Unknown attribute {attribute.type:#06x}"
        if found.complaints == [complaint]:
            found = found._replace(complaints=[])
        if attribute.type in LOOKED_INTO:
            correct = correct._replace(fields=found.fields)
    old = as_4_0(attribute, correct)
    if tshark > (4, 0) and (old != correct or isinstance(attribute, OPAQUE)):
        if found not in (old, correct):
            assert found[:3] == correct[:3], attribute
    else:
        assert found == old, attribute


# --- Reading ---

# These say again what another field says: the masked address, and what DATA carries.
REPEATED = {"port-xord", "ipv4-xord", "ipv6-xord", "data"}


def read_attribute(node: Field, kind: int) -> Reading:
    """Return what there is in the tree of an attribute."""
    length = node.get("stun.att.length")
    assert length.start is not None
    header = length.start - 2
    fields = []
    for found in node.children:
        name = found.name.removeprefix("stun.att.")
        if name in {"type", "length"} | REPEATED or not found.name.startswith("stun."):
            continue
        # It spells IPv6 addresses in its own way.
        shown = str(IPv6Address(found.shown)) if name == "ipv6" else found.shown
        place = None if found.start is None else found.start - header - 4
        fields.append(Shown(found.name, shown, place, found.size))
    return Reading(kind, int(length.shown), header, fields, complaints(node))


def read_attributes(packet: Field) -> list[Reading]:
    """Return what tshark makes of the attributes, in order."""
    readings = []
    for node in packet.get("stun").children:
        for child in node.children if node.name == "stun.attributes" else []:
            if child.name == "stun.attribute":
                kind = int(child.shown, 16)
                reading = read_attribute(child, kind)
                size = 4 + reading.length + -reading.length % 4
                assert (child.start, child.size) == (reading.start, size)
                assert int(child.get("stun.att.type").shown, 16) == kind
            else:
                # Of a type that it does not know there is the warning only.
                warning = re.fullmatch("Unknown attribute (0x[0-9a-f]{4})", child.name)
                assert warning, child.name
                reading = read_attribute(child, int(warning[1], 16))
            readings.append(reading)
    return readings


@pytest.fixture(scope="module")
def tshark() -> tuple[int, int]:
    output = subprocess.run(["tshark", "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"TShark \D*(\d+)\.(\d+)", output.stdout)
    assert found, output.stdout
    return int(found[1]), int(found[2])


def is_dissected(message: Message) -> bool:
    """Whether tshark 4.0 takes a message, and all that is in it, for STUN as registered."""
    return message.method <= 0xFF and not any(a.type in UNREGISTERED for a in message.attributes)


@pytest.fixture(scope="module")
def dissected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Message, Field]]:
    """A thousand messages that differ, always the same, and what tshark makes of each."""
    drawn: dict[bytes, Message] = {}

    @settings(
        max_examples=COUNT + COUNT // 4,  # some are drawn twice
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(messages().filter(is_dissected))
    def collect(message: Message) -> None:
        drawn[message.encode()] = message

    collect()
    sent = list(drawn.values())[:COUNT]
    packets = dissect(tmp_path_factory.mktemp("tshark"), sent)
    return list(zip(sent, packets, strict=True))


# --- The comparison ---


def test_a_thousand_messages_have_every_class_and_both_families(
    dissected: list[tuple[Message, Field]],
) -> None:
    assert len(dissected) == COUNT
    assert SHOWN.keys() == {*ATTRIBUTES.values(), RawAttribute}
    found = {type(a) for message, _ in dissected for a in message.attributes}
    assert found == SHOWN.keys()
    families = {
        (type(a), a.address.ip.version)
        for message, _ in dissected
        for a in message.attributes
        if isinstance(a, ADDRESSES)
    }
    assert len(families) == 2 * len(ADDRESSES)
    assert {message.message_class for message, _ in dissected} == set(Class)


def test_the_header_is_the_same(dissected: list[tuple[Message, Field]]) -> None:
    for message, packet in dissected:
        header = {f.name: (f.shown, f.start, f.size) for f in packet.get("stun").children}
        # RFC 8489 section 5: the bits of the class lie between those of the method.
        c, m = f"{message.message_class:02b}", f"{message.method:012b}"
        kind = int(m[:5] + c[0] + m[5:8] + c[1] + m[8:], 2)
        assert header["stun.type"] == (f"{kind:#06x}", 0, 2)
        assert header["stun.length"] == (str(len(message.encode()) - 20), 2, 2)
        assert header["stun.cookie"] == ("21:12:a4:42", 4, 4)
        assert header["stun.id"] == (octets(message.transaction_id), 8, 12)
        bits = packet.get("stun").get("stun.type")
        assert int(bits.get("stun.type.class").shown, 16) == int(c[0] + "000" + c[1], 2)
        method = int(m[:5] + "0" + m[5:8] + "0" + m[8:], 2)
        assert int(bits.get("stun.type.method").shown, 16) == method


def test_the_attributes_are_the_same(
    dissected: list[tuple[Message, Field]], tshark: tuple[int, int]
) -> None:
    for message, packet in dissected:
        found = read_attributes(packet)
        for attribute, start, reading in zip(
            message.attributes, message.offsets, found, strict=True
        ):
            check(attribute, start, reading, tshark)


def test_nothing_else_is_wrong(dissected: list[tuple[Message, Field]]) -> None:
    for message, packet in dissected:
        explained = [c for reading in read_attributes(packet) for c in reading.complaints]
        assert complaints(packet) == explained, message
        (checksum,) = [f.shown for f in packet if f.name == "udp.checksum.status"]
        assert checksum == "1"


# --- The differences, one by one ---


@pytest.mark.parametrize("difference", DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_known_difference(
    difference: Difference, tshark: tuple[int, int], tmp_path: Path
) -> None:
    # What stands behind it shows that it ends where it should.
    message = Message.request(difference.attribute, stun.Priority(1), transaction_id=bytes(12))
    (packet,) = dissect(tmp_path, [message])
    found, last = read_attributes(packet)
    check(difference.attribute, 20, found, tshark)
    check(stun.Priority(1), message.offsets[1], last, tshark)
    if tshark == (4, 0):
        shown = [f"{f.name.removeprefix('stun.att.')}={f.shown}" for f in found.fields]
        assert " ".join(shown) == difference.shown
        assert found.complaints == difference.complaints
        assert found != right(difference.attribute, 20)


def test_methods_above_the_registry_are_no_stun(tshark: tuple[int, int], tmp_path: Path) -> None:
    """RFC 8489 section 5 has 12 bits for the method, and section 18.2 registers 8 of them."""
    sent = [Message(Class.REQUEST, Method(number), bytes(12)) for number in [0xFF, 0x100, 0xFFF]]
    packets = dissect(tmp_path, sent)
    dissected = ["stun" in [layer.name for layer in packet.children] for packet in packets]
    assert dissected[0]
    if tshark == (4, 0):
        assert dissected == [True, False, False]
