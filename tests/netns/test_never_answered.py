"""What is never answered: one frame of each kind, silence on the wire, and the right counter.

Each row is a frame, and what becomes of it in the modes that read a ring and in recvmmsg mode:
the reason under which a worker counts it, or nothing where no worker sees it. In recvmmsg mode
the kernel has looked at a datagram first: most of what is broken goes no further, and some things
that a ring declines for their form (IP options, say) the kernel accepts and a worker answers.

Behind each frame comes a request that is answered, so that silence takes no waiting.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pktstun.packet import (
    EthernetHeader,
    EtherType,
    ExtensionHeader,
    IPProtocol,
    IPv4Flags,
    IPv4Header,
    IPv6Header,
    UDPHeader,
    VlanTag,
)
from pktstun.stun import Message
from tests.lab import require_root
from tests.netns.server import Server
from tests.netns.wire import CPU, PORT, Ends, Wire
from tests.strategies.datagrams import (
    ERROR,
    INDICATION,
    SUCCESS,
    attribute,
    fingerprinted,
    message,
    with_length,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.root

UNSEEN = ""
"""No worker sees it: the ring's filter or the kernel has dropped it."""
ANSWERED = "answered"
"""The one mode answers what the other declines, or both do: a neighbour of what they must not."""
TO_ITSELF = "answered to itself"
"""The reply goes where the source says, which is the server's host."""

SOURCE_PORT = 40000
REQUEST = Message.request(transaction_id=b"never answer").encode()
OTHER_MAC = bytes.fromhex("02deadbeef01")
BROADCAST_MAC = b"\xff" * 6

# linux/if.h
IFF_PROMISC = 0x100


class Row(NamedTuple):
    """A frame and what becomes of it."""

    name: str
    frame: bytes
    ring: str
    recvmmsg: str


# --- STUN: the payload is wrong, whatever carries it ---

PAYLOADS = [
    ("nothing", b"", "short"),
    ("19 bytes", REQUEST[:19], "short"),
    ("RTP", b"\x80" + REQUEST[1:], "not_stun"),
    ("TURN channel data", b"\x40\x00\x00\x10" + bytes(16), "not_stun"),
    ("length of 2", with_length(REQUEST, 2) + bytes(2), "bad_length"),
    ("length too great", with_length(REQUEST, 4), "bad_length"),
    ("length too small", REQUEST + bytes(4), "bad_length"),
    ("DTLS", b"\x16\xfe\xfd" + bytes(60), "bad_length"),
    ("no cookie", message(cookie=0x2112A443), "no_cookie"),
    ("RFC 3489", message(cookie=0), "no_cookie"),
    ("indication", message(field=INDICATION), "not_request"),
    ("success response", message(field=SUCCESS), "not_request"),
    ("error response", message(field=ERROR), "not_request"),
    ("Allocate", message(field=0x0003), "unknown_method"),
    ("Shared Secret", message(field=0x0002), "unknown_method"),
    ("method 0", message(field=0x0000), "unknown_method"),
    ("attribute too long", message(struct.pack("!HH", 0x0006, 5) + bytes(4)), "malformed"),
    ("attribute of 65535", message(struct.pack("!HH", 0x8022, 0xFFFF)), "malformed"),
    ("wrong fingerprint", message(attribute(0x8028, bytes(4))), "bad_fingerprint"),
    ("empty fingerprint", message(attribute(0x8028)), "bad_fingerprint"),
    (
        "fingerprint not last",
        with_length(fingerprinted(REQUEST), 16) + attribute(0x8022, b"last"),
        "bad_fingerprint",
    ),
    ("too long", message(attribute(0x8022, bytes(2029))), "too_long"),
]


def stun_rows(ends: Ends) -> Iterator[Row]:
    for name, payload, reason in PAYLOADS:
        yield Row(name, ends.udp(payload), reason, reason)


# --- Addresses and the link ---


def link_rows(ends: Ends) -> Iterator[Row]:
    good = ends.udp(REQUEST)

    def tagged(*tags: VlanTag) -> bytes:
        return good[:12] + b"".join(tag.encode() for tag in tags) + good[12:]

    yield Row("another host's MAC", ends.udp(REQUEST, mac=OTHER_MAC), "not_host", UNSEEN)
    yield Row("VLAN", tagged(VlanTag(7)), "vlan", UNSEEN)
    yield Row("service VLAN", tagged(VlanTag(7, tpid=EtherType.SERVICE_VLAN)), "vlan", UNSEEN)
    yield Row("two VLANs", tagged(VlanTag(7), VlanTag(8)), "vlan", UNSEEN)
    yield Row("VLAN in a priority tag", tagged(VlanTag(0, 5), VlanTag(8)), "vlan", UNSEEN)
    # It belongs to no VLAN, so it is as good as one without.
    yield Row("priority tag", tagged(VlanTag(0, 5)), ANSWERED, ANSWERED)
    yield Row(
        "source port 0",
        ends.udp(REQUEST, source=(ends.client, 0)),
        "bad_source",
        "bad_source",
    )


def wrong_udp_checksum(frame: bytes, udp_at: int) -> bytes:
    return frame[: udp_at + 6] + bytes([frame[udp_at + 6] ^ 1]) + frame[udp_at + 7 :]


def ipv4_rows(ends: Ends) -> Iterator[Row]:
    assert isinstance(ends.client, IPv4Address)
    assert isinstance(ends.server, IPv4Address)
    client, server = ends.client, ends.server
    ethernet = EthernetHeader(ends.server_mac, ends.client_mac, EtherType.IPV4)
    segment = UDPHeader(SOURCE_PORT, PORT).encode(REQUEST, client, server)
    good = ends.udp(REQUEST)

    def sent(segment: bytes = segment, **fields: object) -> bytes:
        header = IPv4Header(client, server, **fields)  # type: ignore[arg-type]
        return ethernet.encode(header.encode(segment))

    def from_(ip: str, port: int = SOURCE_PORT) -> bytes:
        return ends.udp(REQUEST, source=(ip_address(ip), port))

    def to(ip: str, mac: bytes | None = None) -> bytes:
        return ends.udp(REQUEST, destination=(ip_address(ip), PORT), mac=mac)

    def with_udp_length(length: int) -> bytes:
        return sent(segment[:4] + struct.pack("!HH", length, 0) + segment[8:])

    yield Row("IP checksum", good[:24] + b"\0\0" + good[26:], "bad_ip_checksum", UNSEEN)
    yield Row("UDP checksum", wrong_udp_checksum(good, 34), "bad_udp_checksum", UNSEEN)
    yield Row("UDP length too great", with_udp_length(29), "bad_udp_length", UNSEEN)
    yield Row("UDP length of 7", with_udp_length(7), "bad_udp_length", UNSEEN)
    # To the kernel the rest is padding; the length says 20 bytes, which are a request.
    yield Row(
        "UDP length too small",
        sent(segment[:4] + struct.pack("!HH", 28, 0) + segment[8:] + bytes(4)),
        "bad_udp_length",
        ANSWERED,
    )
    more = IPv4Flags.MORE_FRAGMENTS
    yield Row("first fragment", sent(flags=more, identification=1), "fragment", UNSEEN)
    yield Row("last fragment", sent(fragment_offset=4, identification=2), UNSEEN, UNSEEN)
    yield Row("IP options (NOP)", sent(options=b"\1\1\1\0"), "ip_options", ANSWERED)
    route = b"\x83\x07\x04" + server.packed + b"\0"
    yield Row("IP options (source route)", sent(options=route), "ip_options", UNSEEN)
    yield Row("IP version 5", good[:14] + b"\x55" + good[15:], "bad_ip", UNSEEN)
    yield Row("IP total length too great", sent()[:-4], "bad_ip", UNSEEN)
    yield Row("cut in the UDP header", sent()[:36], UNSEEN, UNSEEN)
    yield Row("cut in the IP header", sent()[:30], UNSEEN, UNSEEN)
    yield Row(
        "TCP",
        sent(struct.pack("!HHIIHHHH", 1, PORT, 0, 0, 0x5002, 9, 0, 0), protocol=6),
        UNSEEN,
        UNSEEN,
    )
    echo = b"\x08\x00\xf7\xff" + bytes(4)
    yield Row("ICMP echo", sent(echo, protocol=1), UNSEEN, UNSEEN)

    yield Row("broadcast MAC", ends.udp(REQUEST, mac=BROADCAST_MAC), "not_host", ANSWERED)
    group = bytes.fromhex("01005e000001")
    yield Row("multicast MAC", ends.udp(REQUEST, mac=group), "not_host", ANSWERED)
    yield Row("multicast", to("224.0.0.1", group), "not_host", "not_for_us")
    yield Row("multicast IP, our MAC", to("224.0.0.1"), "not_for_us", "not_for_us")
    yield Row("broadcast", to("255.255.255.255", BROADCAST_MAC), "not_host", "not_for_us")
    yield Row("subnet broadcast", to("10.77.0.255", BROADCAST_MAC), "not_host", "not_for_us")
    yield Row("broadcast IP, our MAC", to("255.255.255.255"), "not_for_us", "not_for_us")
    yield Row("subnet broadcast IP, our MAC", to("10.77.0.255"), "not_for_us", "not_for_us")
    yield Row("another host's IP", to("10.77.0.50"), "not_for_us", UNSEEN)
    yield Row("to loopback", to("127.0.0.1"), "not_for_us", UNSEEN)

    yield Row("from 0.0.0.0", from_("0.0.0.0"), "bad_source", UNSEEN)
    yield Row("from multicast", from_("224.0.0.5"), "bad_source", UNSEEN)
    yield Row("from broadcast", from_("255.255.255.255"), "bad_source", UNSEEN)
    yield Row("from subnet broadcast", from_("10.77.0.255"), "bad_source", "bad_source")
    yield Row("from loopback", from_("127.0.0.1"), "bad_source", UNSEEN)
    yield Row("from ourselves", from_(str(server), PORT), "own_source", UNSEEN)
    yield Row("from our other address", from_("10.77.0.2", PORT), "own_source", UNSEEN)
    yield Row("from us, another port", from_(str(server)), "own_source", UNSEEN)
    yield Row("from another interface's address", from_("10.99.0.1"), "own_source", UNSEEN)


def ipv6_rows(ends: Ends) -> Iterator[Row]:  # noqa: PLR0915 - a table
    assert isinstance(ends.client, IPv6Address)
    assert isinstance(ends.server, IPv6Address)
    client, server = ends.client, ends.server
    ethernet = EthernetHeader(ends.server_mac, ends.client_mac, EtherType.IPV6)
    segment = UDPHeader(SOURCE_PORT, PORT).encode(REQUEST, client, server)
    good = ends.udp(REQUEST)

    def sent(segment: bytes = segment, **fields: object) -> bytes:
        header = IPv6Header(client, server, **fields)  # type: ignore[arg-type]
        return ethernet.encode(header.encode(segment))

    def behind(kind: int, data: bytes) -> bytes:
        return sent(extensions=(ExtensionHeader(kind, data),))

    def from_(ip: str, port: int = SOURCE_PORT) -> bytes:
        return ends.udp(REQUEST, source=(ip_address(ip), port))

    def to(ip: str, mac: bytes | None = None) -> bytes:
        return ends.udp(REQUEST, destination=(ip_address(ip), PORT), mac=mac)

    padding = b"\x01\x04" + bytes(4)
    longer = segment[:4] + struct.pack("!H", 29) + segment[6:]
    yield Row("no UDP checksum", good[:60] + b"\0\0" + good[62:], "no_udp_checksum", UNSEEN)
    yield Row("UDP checksum", wrong_udp_checksum(good, 54), "bad_udp_checksum", UNSEEN)
    yield Row("UDP length too great", sent(longer), "bad_udp_length", UNSEEN)
    # To the kernel the rest is padding, which the checksum does not cover.
    yield Row("UDP length too small", sent(segment + bytes(4)), "bad_udp_length", ANSWERED)
    first, last = b"\x00\x01\0\0\0\1", b"\x00\x20\0\0\0\2"
    fragment = IPProtocol.FRAGMENT
    yield Row("first fragment", behind(fragment, first), "fragment", UNSEEN)
    yield Row("last fragment", behind(fragment, last), UNSEEN, UNSEEN)
    yield Row("only fragment", behind(fragment, b"\0\0\0\0\0\3"), "fragment", ANSWERED)
    extension = "ipv6_extension"
    yield Row("hop-by-hop", behind(IPProtocol.HOP_BY_HOP, padding), extension, ANSWERED)
    options = behind(IPProtocol.DESTINATION_OPTIONS, padding)
    yield Row("destination options", options, extension, ANSWERED)
    routing = behind(IPProtocol.ROUTING, b"\x00\x01" + bytes(4) + server.packed)
    yield Row("routing header", routing, extension, UNSEEN)
    yield Row("AH", behind(IPProtocol.AUTHENTICATION, bytes(22)), extension, UNSEEN)
    yield Row("ESP", sent(bytes(8) + segment, protocol=50), UNSEEN, UNSEEN)
    yield Row("IP version 5", good[:14] + b"\x50" + good[15:], "bad_ip", UNSEEN)
    yield Row("IP length too great", good[:-4], "bad_ip", UNSEEN)
    yield Row("cut in the UDP header", good[:56], UNSEEN, UNSEEN)
    yield Row("cut in the IP header", good[:50], UNSEEN, UNSEEN)
    yield Row(
        "TCP",
        sent(struct.pack("!HHIIHHHH", 1, PORT, 0, 0, 0x5002, 9, 0, 0), protocol=6),
        UNSEEN,
        UNSEEN,
    )
    yield Row("ICMPv6", sent(b"\x80\0\0\0" + bytes(4), protocol=58), UNSEEN, UNSEEN)

    group = bytes.fromhex("333300000001")
    yield Row("broadcast MAC", ends.udp(REQUEST, mac=BROADCAST_MAC), "not_host", ANSWERED)
    yield Row("multicast MAC", ends.udp(REQUEST, mac=group), "not_host", ANSWERED)
    yield Row("multicast", to("ff02::1", group), "not_host", "not_for_us")
    yield Row("multicast IP, our MAC", to("ff02::1"), "not_for_us", "not_for_us")
    yield Row("another host's IP", to("fd77::50"), "not_for_us", UNSEEN)
    yield Row("to loopback", to("::1"), "not_for_us", UNSEEN)
    yield Row("to an IPv4-mapped address", to("::ffff:10.77.0.1"), "bad_ip", UNSEEN)

    yield Row("from ::", from_("::"), "bad_source", "bad_source")
    yield Row("from multicast", from_("ff02::5"), "bad_source", UNSEEN)
    yield Row("from loopback", from_("::1"), "bad_source", UNSEEN)
    yield Row("from an IPv4-mapped address", from_("::ffff:10.77.0.100"), "bad_ip", "bad_ip")
    yield Row("from ourselves", from_(str(server), PORT), "own_source", "own_source")
    yield Row("from our other address", from_("fd77::2", PORT), "own_source", "own_source")
    # The kernel lets it in, and the reply never leaves the host.
    yield Row("from us, another port", from_(str(server)), "own_source", TO_ITSELF)
    yield Row("from another interface's address", from_("fd99::1"), "own_source", TO_ITSELF)


# --- The test ---


def up_by(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return how many more verdicts of each kind there are, but for the one sentinel answered."""
    kinds = ("dropped.", "send_error.")
    names = {name for name in after if name.startswith(kinds)} | {"answered", "sent"}
    difference = {name: after[name] - before.get(name, 0) for name in names}
    difference["answered"] -= 1
    difference["sent"] -= 1
    return {name: count for name, count in difference.items() if count}


def expected(verdict: str) -> dict[str, int]:
    if verdict == UNSEEN:
        return {}
    answered = verdict in {ANSWERED, TO_ITSELF}
    return {"answered": 1, "sent": 1} if answered else {f"dropped.{verdict}": 1}


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(
    "mode",
    [
        "ring --takeover",
        "ring --no-takeover",
        "direct --takeover",
        "direct --no-takeover",
        "recvmmsg",
    ],
)
def test_silence_and_the_right_counter(lab: Lab, hosts: TwoHosts, mode: str, *, ipv6: bool) -> None:
    require_root()
    ends = Ends.of(lab, hosts, ipv6=ipv6)
    hosts.server.write(f"/proc/sys/net/ipv4/conf/{hosts.server_if}/rp_filter", "0")
    hosts.server.write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")
    for ns, ifname in ((hosts.server, hosts.server_if), (hosts.client, hosts.client_if)):
        lab.link_set(ns, ifname, mtu=9000)
    lab.link_set(hosts.server, hosts.server_if, flags=IFF_PROMISC, change=IFF_PROMISC)
    lab.address(hosts.server, "lo", "10.99.0.1/32", "fd99::1/128")
    own = ipv6_rows(ends) if ipv6 else ipv4_rows(ends)
    rows = [*stun_rows(ends), *link_rows(ends), *own]
    wrong = {}
    # What is for many goes to every worker's socket.
    arguments = ["--iface", hosts.server_if, "--cpus", str(CPU), "--mode", *mode.split()]
    with (
        Server(hosts.server, arguments) as server,
        Wire(hosts.client, hosts.client_if) as wire,
    ):
        wire.until_answered(ends)
        before = server.totals()
        for row in rows:
            verdict = row.recvmmsg if mode == "recvmmsg" else row.ring
            wire.send(row.frame)
            replies = wire.until_answered(ends)
            after = server.totals()
            found = up_by(before, after), len(replies)
            if found != (expected(verdict), int(verdict == ANSWERED)):
                wrong[row.name] = found
            before = after
        assert wire.datagrams(quiet=0.3) == []
        # Nor does what comes late change a counter.
        assert server.totals() == before
    assert wrong == {}


@pytest.mark.parametrize("mode", ["ring", "direct"])
def test_a_frame_longer_than_a_block_is_cut_and_not_answered(
    lab: Lab, hosts: TwoHosts, mode: str
) -> None:
    ends = Ends.of(lab, hosts, ipv6=False)
    for ns, ifname in ((hosts.server, hosts.server_if), (hosts.client, hosts.client_if)):
        lab.link_set(ns, ifname, mtu=9000)
    arguments = ["--iface", hosts.server_if, "--mode", mode, "--block-size", "4096"]
    with (
        Server(hosts.server, arguments) as server,
        Wire(hosts.client, hosts.client_if) as wire,
    ):
        wire.send(ends.udp(message(attribute(0x8022, bytes(6000)))))
        assert wire.until_answered(ends) == []
        totals = server.totals()
        assert totals["dropped.truncated"] == 1
        assert (totals["received"], totals["answered"]) == (2, 1)
