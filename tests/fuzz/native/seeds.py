"""Where the native fuzzer starts: one small input for each thing that the C files distinguish.

usage: python tests/fuzz/native/seeds.py DIRECTORY

It writes DIRECTORY/TARGET/NAME for every target. The committed corpus was made of these and of
what fuzzing added, by `run.py --merge`. The layouts are those at the head of each target's file.
Messages and frames are laid out by hand here: some of them no encoder would make.
"""

from __future__ import annotations

import struct
import sys
import zlib
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

REQUEST, INDICATION, SUCCESS = 0x0001, 0x0011, 0x0101
COOKIE = bytes.fromhex("2112a442")
CHANGE_REQUEST, FINGERPRINT = 0x0003, 0x8028
PADDING, RESPONSE_PORT = 0x0026, 0x0027
KNOWN = {
    "username": 0x0006,
    "integrity": 0x0008,
    "realm": 0x0014,
    "nonce": 0x0015,
    "sha256": 0x001C,
    "algorithm": 0x001D,
    "userhash": 0x001E,
    "priority": 0x0024,
    "use-candidate": 0x0025,
    "optional": 0x8022,
}
UNKNOWN = 0x7777

# Bits of the first bytes: see make_setting(), enum repair and frame.c.
LOOPBACK, CHECK, KNOWS_DESTINATION, KNOWS_SOURCE = 1, 2, 16, 32
SOURCE_BROADCAST, DESTINATION_BROADCAST = 64, 128
SOFTWARE = [text << 2 for text in range(4)]
CLASSIC, DISCOVERY, ADVERTISED, SECOND, CREDENTIALS, REDIRECT, REDIRECT6, LOCAL = (
    1 << bit for bit in range(8)
)
REPAIR_ALL = 0xF8
NOT_READY, VALID, TAGGED, OTHER_LENGTH, PADDED = 8, 16, 32, 64, 128

Seeds = dict[str, bytes]


def attribute(kind: int, value: bytes = b"", length: int | None = None) -> bytes:
    """Return an attribute, padded; the length may be a lie."""
    size = len(value) if length is None else length
    return struct.pack("!HH", kind, size) + value + bytes(-len(value) % 4)


def message(*attributes: bytes, field: int = REQUEST, cookie: bytes = COOKIE) -> bytes:
    """Return a message whose length field is true."""
    body = b"".join(attributes)
    return struct.pack("!HH", field, len(body)) + cookie + bytes(range(12)) + body


def with_fingerprint(*attributes: bytes, behind: bytes = b"") -> bytes:
    """Return a request with the right FINGERPRINT, at its end if nothing comes behind."""
    unfinished = message(*attributes, attribute(FINGERPRINT, bytes(4)), behind)
    covered = unfinished[: len(unfinished) - 8 - len(behind)]
    crc = zlib.crc32(covered) ^ 0x5354554E
    return covered + attribute(FINGERPRINT, crc.to_bytes(4, "big")) + behind


def datagrams() -> Seeds:
    """Return one datagram for every way through pktstun_answer from the header on."""
    plain = message()
    found = {
        "bare": plain,
        "empty": b"",
        "short": plain[:19],
        "not-stun": b"\xc0" + plain[1:],
        "odd-length": struct.pack("!HH", REQUEST, 1) + plain[4:] + b"\0",
        "odd-datagram": plain + b"\0",
        "length-too-long": struct.pack("!HH", REQUEST, 4) + plain[4:],
        "length-too-short": plain + bytes(4),
        "no-cookie": message(cookie=bytes(4)),
        "indication": message(field=INDICATION),
        "success": message(field=SUCCESS),
        "allocate": message(field=0x0003),
        "beyond": message(attribute(UNKNOWN, b"", 4)),
        "fingerprint": with_fingerprint(),
        "fingerprint-wrong": message(attribute(FINGERPRINT, bytes(4))),
        "fingerprint-first": with_fingerprint(behind=attribute(0x8022)),
        "fingerprint-longer": message(attribute(FINGERPRINT, bytes(8))),
        "unknown": message(attribute(UNKNOWN)),
        "unknown-twice": message(attribute(UNKNOWN), attribute(UNKNOWN)),
        "unknown-with-fingerprint": with_fingerprint(attribute(UNKNOWN)),
        "change-nothing": message(attribute(CHANGE_REQUEST, bytes(4))),
        "change-port": message(attribute(CHANGE_REQUEST, b"\0\0\0\2")),
        "change-long": message(attribute(CHANGE_REQUEST, bytes(8))),
        "change-twice": message(
            attribute(CHANGE_REQUEST, bytes(4)), attribute(CHANGE_REQUEST, b"\0\0\0\6")
        ),
        "behind-integrity": message(attribute(KNOWN["integrity"]), attribute(UNKNOWN)),
        "behind-sha256": message(attribute(KNOWN["sha256"]), attribute(UNKNOWN)),
        "sha256-behind-integrity": message(
            attribute(KNOWN["integrity"]), attribute(KNOWN["sha256"]), attribute(UNKNOWN)
        ),
        "padded": message(attribute(0x8022, b"abcde")),
        "no-cookie-unknown": message(attribute(UNKNOWN), cookie=bytes(4)),
        "no-cookie-change": message(attribute(CHANGE_REQUEST, b"\0\0\0\6"), cookie=bytes(4)),
        "response-port": message(attribute(RESPONSE_PORT, b"\0\x09\0\0")),
        "response-port-0": message(attribute(RESPONSE_PORT, bytes(4))),
        "response-port-own": message(attribute(RESPONSE_PORT, struct.pack("!HH", 3478, 0))),
        "padding": message(attribute(PADDING, bytes(120))),
        "padding-small": message(attribute(PADDING, bytes(4))),
        "padding-and-port": message(
            attribute(PADDING, bytes(80)), attribute(RESPONSE_PORT, b"\0\x09\0\0")
        ),
    }
    return found | {name: message(attribute(kind, bytes(4))) for name, kind in KNOWN.items()}


@dataclass(frozen=True)
class Delivery:
    """From where, to where, and what the server is told."""

    source: str = "192.0.2.1"
    destination: str = "198.51.100.1"
    bits: int = 0
    source_port: int = 4000
    destination_port: int = 3478
    beyond: int = 0


V6 = Delivery("2001:db8::1", "2001:db8::2")

DELIVERIES = {
    "plain": Delivery(),
    "port-0": Delivery(source_port=0),
    "unspecified": Delivery("0.0.0.0"),
    "loopback": Delivery("127.0.0.1"),
    "loopback-allowed": Delivery("127.0.0.1", bits=LOOPBACK),
    "multicast": Delivery("224.0.0.1"),
    "limited-broadcast": Delivery("255.255.255.255"),
    "broadcast": Delivery(bits=SOURCE_BROADCAST),
    "own": Delivery(bits=KNOWS_SOURCE),
    "own-address": Delivery("198.51.100.1", bits=KNOWS_DESTINATION),
    "own-address-allowed": Delivery("198.51.100.1", bits=KNOWS_DESTINATION | LOOPBACK),
    "local-address": Delivery(beyond=LOCAL),
    "local-address-allowed": Delivery(bits=LOOPBACK, beyond=LOCAL),
    "for-us": Delivery(bits=CHECK | KNOWS_DESTINATION),
    "not-for-us": Delivery(bits=CHECK),
    "not-this-port": Delivery(bits=CHECK | KNOWS_DESTINATION | KNOWS_SOURCE, source_port=3478),
    "server-among-others": Delivery("192.0.2.1", bits=KNOWS_DESTINATION, source_port=3478),
    "to-multicast": Delivery(destination="239.1.1.1"),
    "to-broadcast": Delivery(bits=DESTINATION_BROADCAST),
    "v6": V6,
    "v6-unspecified": Delivery("::", "2001:db8::2"),
    "v6-loopback": Delivery("::1", "2001:db8::2"),
    "v6-loopback-allowed": Delivery("::1", "2001:db8::2", bits=LOOPBACK),
    "v6-multicast": Delivery("ff02::1", "2001:db8::2"),
    "v6-to-multicast": Delivery("2001:db8::1", "ff02::1"),
    "v6-for-us": Delivery("2001:db8::1", "2001:db8::2", bits=CHECK | KNOWS_DESTINATION),
    "software-empty": Delivery(bits=SOFTWARE[1]),
    "software": Delivery(bits=SOFTWARE[2]),
    "v6-software-longest": Delivery("2001:db8::1", "2001:db8::2", bits=SOFTWARE[3]),
}

# What is off by default, and the datagrams to which it makes a difference beside the bare one.
BEYOND = {
    "classic": (CLASSIC, ("no-cookie", "no-cookie-unknown")),
    "discovery": (
        DISCOVERY,
        (
            *("fingerprint", "unknown", "no-cookie", "change-nothing", "change-port"),
            *("change-long", "response-port", "response-port-0", "response-port-own", "padding"),
            *("padding-small", "padding-and-port"),
        ),
    ),
    "discovery-classic": (DISCOVERY | CLASSIC, ("no-cookie", "no-cookie-change")),
    "discovery-second": (DISCOVERY | SECOND, ()),
    "credentials": (CREDENTIALS, ("fingerprint", "unknown", "no-cookie", "integrity")),
    "discovery-advertised": (DISCOVERY | ADVERTISED, ()),
    "redirect": (REDIRECT, ("fingerprint", "fingerprint-wrong", "unknown")),
    "redirect6": (REDIRECT6, ()),
    "redirect-classic": (REDIRECT | CLASSIC, ("no-cookie",)),
}

# Not on one wire, so for datagrams only.
ODD_DELIVERIES = {
    "mapped": Delivery("::ffff:192.0.2.1", "::ffff:198.51.100.1", bits=CHECK | KNOWS_DESTINATION),
    "mapped-loopback": Delivery("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    "two-families": Delivery("2001:db8::1", bits=KNOWS_DESTINATION, source_port=3478),
    "two-families-back": Delivery(
        "192.0.2.1", "2001:db8::1", bits=KNOWS_DESTINATION, source_port=3478
    ),
}


def address(text: str, port: int) -> bytes:
    """Return an address as the harness takes it."""
    ip = ip_address(text)
    return bytes([ip.version == 6]) + ip.packed + port.to_bytes(2, "big")


def respond_seed(delivery: Delivery, datagram: bytes, shape: int = 0) -> bytes:
    """Return an input for the target `respond`."""
    return (
        bytes([delivery.bits, delivery.beyond, shape])
        + address(delivery.source, delivery.source_port)
        + address(delivery.destination, delivery.destination_port)
        + datagram
    )


def respond_seeds() -> Seeds:
    """Return the inputs for `respond`."""
    seeds = {
        f"{name}-v{6 if delivery is V6 else 4}": respond_seed(delivery, datagram)
        for name, datagram in datagrams().items()
        for delivery in (Delivery(), V6)
    }
    for name, delivery in (DELIVERIES | ODD_DELIVERIES).items():
        seeds[f"from-{name}"] = respond_seed(delivery, message())
    known = datagrams()
    for name, (beyond, others) in BEYOND.items():
        for sent in ("bare", *others):
            seeds[f"{name}-{sent}"] = respond_seed(Delivery(beyond=beyond), known[sent])
        seeds[f"{name}-v6"] = respond_seed(replace(V6, beyond=beyond), message())
    no_cookie = known["no-cookie"]
    seeds["classic-no-cookie-v6"] = respond_seed(replace(V6, beyond=CLASSIC), no_cookie)
    seeds["repaired"] = respond_seed(
        Delivery(), message(attribute(0x8022), attribute(FINGERPRINT, bytes(4))), 3 << 3 | 5
    )
    return seeds


@dataclass(frozen=True)
class Shape:
    """What is unusual about a frame; its checksums and lengths are true otherwise."""

    ethertype: int | None = None
    protocol: int = 17
    version: int | None = None
    header_words: int = 5
    options: bytes = b""
    fragment: int = 0
    ip_length: int = 0
    udp_length: int = 0
    ip_checksum: int = 0
    udp_checksum: int | None = None
    trailer: bytes = b""


def internet_sum(data: bytes) -> int:
    """Return the Internet checksum of `data` (RFC 1071)."""
    total = sum(byte << 8 * ((index + 1) % 2) for index, byte in enumerate(data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(delivery: Delivery, payload: bytes, shape: Shape) -> bytes:
    """Return an Ethernet frame. The `..._length` of the shape are differences from the truth."""
    source, destination = ip_address(delivery.source), ip_address(delivery.destination)
    addresses = source.packed + destination.packed
    length = 8 + len(payload) + shape.udp_length
    udp = struct.pack("!HHHH", delivery.source_port, delivery.destination_port, length, 0)
    pseudo = addresses + struct.pack("!II", length, 17)
    checksum = (
        internet_sum(pseudo + udp + payload) if shape.udp_checksum is None else (shape.udp_checksum)
    )
    segment = udp[:6] + checksum.to_bytes(2, "big") + payload
    version = source.version if shape.version is None else shape.version
    if source.version == 4:
        total = 20 + len(shape.options) + len(segment) + shape.ip_length
        first = version << 4 | shape.header_words
        fixed = struct.pack("!BBHHHBBH", first, 0, total, 0, shape.fragment, 64, shape.protocol, 0)
        header = fixed + addresses + shape.options
        checksum = internet_sum(header[: shape.header_words * 4]) ^ shape.ip_checksum
        header = header[:10] + checksum.to_bytes(2, "big") + header[12:]
    else:
        size = len(segment) + shape.ip_length
        header = struct.pack("!IHBB", version << 28, size, shape.protocol, 64) + addresses
    ethertype = shape.ethertype or (0x0800 if source.version == 4 else 0x86DD)
    macs = bytes.fromhex("020000000001020000000002")
    return macs + ethertype.to_bytes(2, "big") + header + segment + shape.trailer


def with_reply_checksum_0() -> bytes:
    """Return a frame whose reply has a sum that RFC 768 writes as its complement."""
    delivery = Delivery()
    request = message()
    port = (delivery.source_port ^ 0x2112).to_bytes(2, "big")
    ip = bytes(a ^ b for a, b in zip(ip_address(delivery.source).packed, COOKIE, strict=True))
    reply = message(attribute(0x0020, b"\0\1" + port + ip), field=SUCCESS)
    back = Delivery(
        delivery.destination, delivery.source, 0, delivery.destination_port, delivery.source_port
    )
    lacking = int.from_bytes(frame(back, reply, Shape())[40:42], "big")
    # The last word of the transaction id is in both, and takes what the sum lacks.
    total = int.from_bytes(request[18:20], "big") + lacking
    word = (total & 0xFFFF) + (total >> 16)
    return frame(delivery, request[:18] + word.to_bytes(2, "big"), Shape())


SHAPES = {
    "plain": Shape(),
    "trailer": Shape(trailer=bytes(6)),
    "vlan": Shape(ethertype=0x8100),
    "service-vlan": Shape(ethertype=0x88A8),
    "arp": Shape(ethertype=0x0806),
    "other-family": Shape(ethertype=0x86DD),
    "version": Shape(version=5),
    "tcp": Shape(protocol=6),
    "packet-too-long": Shape(ip_length=1),
    "segment-too-long": Shape(udp_length=1),
    "no-segment": Shape(ip_length=-28),
    "no-checksum": Shape(udp_checksum=0),
    "wrong-checksum": Shape(udp_checksum=1),
}
IPV4_SHAPES = {
    "header-too-short": Shape(header_words=4),
    "header-too-long": Shape(header_words=15),
    "total-too-short": Shape(ip_length=-40),
    "header-checksum": Shape(ip_checksum=1),
    "more-fragments": Shape(fragment=0x2000),
    "last-fragment": Shape(fragment=1),
    "dont-fragment": Shape(fragment=0x4000),
    "options": Shape(header_words=6, options=bytes([1, 1, 1, 0])),
}
IPV6_SHAPES = {
    f"next-{number}": Shape(protocol=number) for number in (0, 43, 44, 51, 60, 135, 139, 140)
}


def frame_seed(
    data: bytes,
    bits: int = 0,
    shape: int = 0,
    ring: int = 0,
    extra: bytes = b"",
    *,
    beyond: int = 0,
) -> bytes:
    """Return an input for the target `frame`."""
    return bytes([bits, beyond, shape, ring]) + extra + data


def frame_seeds() -> Seeds:
    """Return the inputs for `frame`."""
    seeds = {"reply-checksum-0": frame_seed(with_reply_checksum_0())}
    for family, delivery, more in (
        ("v4", Delivery(), IPV4_SHAPES),
        ("v6", V6, IPV6_SHAPES),
    ):
        good = frame(delivery, message(), Shape())
        for name, shape in (SHAPES | more).items():
            seeds[f"{name}-{family}"] = frame_seed(frame(delivery, message(), shape))
        # Headers, and one byte less.
        for size in (13, 14, 33, 41) if family == "v4" else (0, 53, 54, 61):
            seeds[f"cut-{size}-{family}"] = frame_seed(good[:size])
        seeds |= {
            f"not-host-{family}": frame_seed(good, ring=1),
            f"truncated-{family}": frame_seed(good, ring=OTHER_LENGTH, extra=b"\xff\xff"),
            f"shorter-on-the-wire-{family}": frame_seed(good, ring=OTHER_LENGTH, extra=bytes(2)),
            f"tagged-{family}": frame_seed(good, ring=TAGGED, extra=b"\0\1"),
            f"priority-{family}": frame_seed(good, ring=TAGGED, extra=b"\xe0\0"),
            f"too-long-{family}": frame_seed(
                good, shape=REPAIR_ALL, ring=PADDED, extra=bytes([129])
            ),
            f"longest-{family}": frame_seed(
                good[:-20] + message()[:16], shape=REPAIR_ALL, ring=PADDED, extra=bytes([127])
            ),
            f"repaired-{family}": frame_seed(
                frame(delivery, message(attribute(FINGERPRINT, bytes(4))), Shape(udp_checksum=1)),
                shape=REPAIR_ALL | 3,
            ),
        }
        for status in (NOT_READY, VALID, NOT_READY | VALID):
            for name, checksum in (("none", 0), ("wrong", 1)):
                data = frame(delivery, message(), Shape(udp_checksum=checksum))
                seeds[f"status-{status}-{name}-{family}"] = frame_seed(data, ring=status)
    for name, datagram in datagrams().items():
        seeds[f"datagram-{name}"] = frame_seed(frame(Delivery(), datagram, Shape()))
    for name, delivery in DELIVERIES.items():
        data = frame(delivery, message(), Shape())
        seeds[f"from-{name}"] = frame_seed(data, bits=delivery.bits, beyond=delivery.beyond)
    for name in ("discovery", "redirect"):
        data = frame(Delivery(), message(), Shape())
        seeds[f"beyond-{name}"] = frame_seed(data, beyond=BEYOND[name][0])
    for name, delivery in (
        ("source", Delivery("::ffff:192.0.2.1", "2001:db8::2")),
        ("destination", Delivery("2001:db8::1", "::ffff:192.0.2.1")),
    ):
        seeds[f"mapped-{name}"] = frame_seed(frame(delivery, message(), Shape()))
    return seeds


BLOCK = struct.Struct("=IIIIIIQIIII")
HEADER = struct.Struct("=IIIIIIHHIIHH8x")
LINK = struct.Struct("=HHiHBB8x")
MAC_OFFSET = 82


def slot(data: bytes, following: int | None = None, mac: int = MAC_OFFSET, kind: int = 0) -> bytes:
    """Return a frame as it stands in a block; `following` is where the next one begins."""
    size = -(-(MAC_OFFSET + len(data)) // 8) * 8
    step = size if following is None else following
    header = HEADER.pack(step, 0, 0, len(data), len(data), 1, mac, (mac + 14) & 0xFFFF, 0, 0, 0, 0)
    return (header + LINK.pack(17, 0, 1, 1, kind, 6) + data).ljust(size, b"\0")


def block(
    *slots: bytes, count: int | None = None, first: int = BLOCK.size, status: int = 1
) -> bytes:
    """Return an input for `walk`: a block that begins as the ring's do."""
    number = len(slots) if count is None else count
    head = BLOCK.pack(1, BLOCK.size, status, number, first, 0, 1, 0, 0, 0, 0)
    return b"\0" + head + b"".join(slots)


def walk_seeds() -> Seeds:
    """Return the inputs for `walk`."""
    good = slot(frame(Delivery(), message(), Shape()))
    highest = 0xFFFFFFFF
    seeds = {
        "no-header": b"\0" + bytes(BLOCK.size - 1),
        "empty": block(),
        "not-ready": block(good, status=0),
        "one": block(good),
        "two": block(good, slot(frame(V6, message(), Shape()))),
        "not-host": block(slot(b"", kind=4)),
        "unaligned": b"\3" + block(good)[1:],
        "count": block(good, count=highest),
        "first-in-the-header": block(good, first=0),
        "first-at-the-end": block(good, first=BLOCK.size + len(good)),
        "first-behind": block(good, first=highest),
        "no-step": block(slot(b"one", 0), good, count=2),
        "short-step": block(slot(b"one", 67), good, count=2),
        "shortest-step": block(slot(b"one", 68), good, count=9),
        "step-back": block(slot(b"one", highest - 87), good, count=2),
        "step-to-the-end": block(slot(b"one", 88), count=2),
        "step-behind": block(slot(b"one", 89), count=2),
        "mac": block(slot(b"one", mac=0)),
        "mac-at-the-end": block(slot(b"", mac=88)),
        "mac-behind": block(slot(b"one", mac=0xFFFF)),
        "captured": block(HEADER.pack(0, 0, 0, highest, 0, 1, 82, 96, 0, 0, 0, 0) + bytes(40)),
    }
    for name, shape in SHAPES.items():
        seeds[f"shape-{name}"] = block(slot(frame(Delivery(), message(), shape)))
    return seeds


def send_seeds() -> Seeds:
    """Return the inputs for `send`: every error for the second of three messages, and more."""
    seeds = {}
    head = bytes([3, 0x51, 0x50, 0x81])  # three messages of both families
    for kind, name in enumerate(("plain", "wildcard", "frames")):
        start = bytes([kind, 3]) + head
        for word in range(135, 150):  # each error once: the number modulo 15
            seeds[f"{name}-error-{word % 15}"] = start + bytes([1, word, 0])
        seeds |= {
            f"{name}-all": start,
            f"{name}-one-by-one": start + bytes([1, 1, 1]),
            f"{name}-wait": start + bytes([1, 135, 10, 0]),
            f"{name}-wait-in-vain": start + bytes([135, 10, 135]),
            f"{name}-wait-long": start + bytes([135, 200, 1, 135]),
            f"{name}-wait-interrupted": start + bytes([135, 10, 136, 0]),
            f"{name}-wait-often": start + bytes([135, 10, 1, 135, 10, 1, 135, 10, 0]),
            f"{name}-four-rounds": start + b"\0" + head + b"\0" + head + b"\0" + head,
            f"{name}-empty": bytes([kind, 3, 0]),
            f"{name}-full": bytes([kind, 15, 16]) + bytes(range(0, 128, 8)),
        }
    for kind in (3, 7):
        for word in (0, 135, 136, 137, 145, 147):
            seeds[f"one-{kind}-{word}"] = bytes([kind, 0, 0x50, word, word])
    return seeds


def limiter_seeds() -> Seeds:
    """Return the inputs for `limiter`."""
    others = ("192.0.2.200", "2001:db8::1", "2001:db8:0:1::1")
    seeds = {}

    def add(
        name: str,
        words: bytes,
        *,
        rates: tuple[int, int] = (0, 0),
        share: int = 0,
        mode: int = 0,
        first: str = "192.0.2.1",
    ) -> None:
        head = bytes(range(16)) + struct.pack("!IIBBB", *rates, share, mode, 28)
        places = b"".join(address(text, 1) for text in (first, *others))
        seeds[name] = head + places + words

    # The three parts of a word: how often, how the clock moves, which source.
    every = bytes(7 << 5 | index for index in range(4))
    add("burst", every)
    add("one-line", every, rates=(0, 999), first="11.54.98.44")  # with its network, by this key
    add("burst-high-rate", every, rates=(99_999, 99_999))
    add("network", every * 2, rates=(1000, 9))
    add("share", every, share=30)
    add("share-all", every, share=100)
    add("exempt", every, mode=1)
    add("interval", every + bytes([1 << 2, 1 << 2 | 1, 2 << 2]) * 4, rates=(4, 9))
    add("later", every + bytes([3 << 2, 255, 255, 4 << 2 | 2, 0, 255, 255, 255]) + every)
    add("back", bytes([4 << 2, 4, 0, 0, 0]) + every + bytes([5 << 2]) + bytes([255] * 4) + every)
    add("wrap", bytes([6 << 2]) + bytes([255] * 8) + every)
    add("times-wrap", every + bytes([6 << 2, 0, 0, 0x40, 0, 0, 0, 0, 0]) + every)
    rubbish = bytes([255] * 8)
    add("hostile-latest", bytes([0x9C]) + rubbish + b"\0\2" + every, mode=2)
    add("hostile-random", bytes([0x9C]) + bytes(8) + b"\0\3" + every * 2, share=50, mode=2)
    add("hostile-account", bytes([0x1C]) + rubbish + b"\0\x40" + every, mode=2)
    return seeds


SEEDS = {
    "frame": frame_seeds,
    "respond": respond_seeds,
    "walk": walk_seeds,
    "send": send_seeds,
    "limiter": limiter_seeds,
}


def write(directory: Path) -> None:
    """Write all seeds below a directory; what two names stand for, once."""
    for target, make in SEEDS.items():
        (directory / target).mkdir(parents=True, exist_ok=True)
        once = {data: name for name, data in make().items()}
        for data, name in once.items():
            (directory / target / name).write_bytes(data)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
