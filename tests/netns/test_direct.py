"""Direct mode: frames straight back, where the kernel would send them, and else its sockets."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from pktstun.direct import REPORT_BURST
from pktstun.kernel import Datagram, Ring, UDPSocket
from pktstun.kernel.bpf import udp_to
from pktstun.packet import build_reply_frame, build_udp_frame, parse_ethernet, receive
from pktstun.stun import Message, Reply, TransportAddress, respond
from tests.kernel.wire import mac_of, raw_socket, take
from tests.lab import wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import Lab, Namespace, TwoHosts

pytestmark = pytest.mark.root

COUNT = 50
CLIENT_PORT = 40000


def answered(
    server: Server, client: Namespace, source: str, target: str, count: int = COUNT
) -> dict[str, int]:
    """Ask, have all answered once and rightly, and return what the counters went up by."""
    before = server.totals()
    result = ask(client, source, target, count)
    assert (result.lost, result.duplicates, result.wrong) == (0, 0, [])
    after = server.totals()
    return {key: after[key] - before.get(key, 0) for key in after}


# --- The frames ---


def exchange(
    lab: Lab, hosts: TwoHosts, mode: list[str], client: str, server: str
) -> tuple[list[bytes], list[bytes]]:
    """Return the request and the reply frames of some exchanges, as the client's link has them."""
    for ns, ifname in ((hosts.server, hosts.server_if), (hosts.client, hosts.client_if)):
        lab.offload(ns, ifname, tx=False)  # fills checksums in
    requests = [Message.request(transaction_id=bytes(11) + bytes([n])).encode() for n in range(5)]
    peer = TransportAddress(ip_address(server), 3478)
    with Server(hosts.server, ["--iface", hosts.server_if, *mode]):
        with hosts.client.enter():
            ring = Ring.open(hosts.client_if, program=udp_to([CLIENT_PORT, peer.port]))
            sock = UDPSocket(TransportAddress(ip_address(client), CLIENT_PORT), share=False)
        with ring, sock:
            assert sock.sendmmsg([Datagram(each, peer) for each in requests]) == len(requests)
            frames = take(ring, 2 * len(requests))
    mac = mac_of(lab, hosts.client, hosts.client_if)
    sent = [frame for frame in frames if parse_ethernet(frame)[0].source == mac]
    return sent, [frame for frame in frames if frame not in sent]


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_reply_is_the_frame_of_the_reference(lab: Lab, hosts: TwoHosts, *, ipv6: bool) -> None:
    client = (hosts.client_ipv6 if ipv6 else hosts.client_ipv4)[0]
    server = (hosts.server_ipv6 if ipv6 else hosts.server_ipv4)[1]
    requests, replies = exchange(lab, hosts, ["--mode", "direct"], client, server)
    expected = []
    for frame in requests:
        got = receive(frame)
        source = TransportAddress(got.source_ip, got.source_port)
        destination = TransportAddress(got.destination_ip, got.destination_port)
        reply = respond(bytes(got.payload), source, destination)
        assert isinstance(reply, Reply)
        expected.append(build_reply_frame(frame, reply.datagram))
    assert replies == expected


@pytest.mark.parametrize("ipv6", [False, True])
def test_both_ways_of_sending_carry_the_same_payload(
    lab: Lab, hosts: TwoHosts, *, ipv6: bool
) -> None:
    """From and to the same addresses, with checksums that hold."""
    client = (hosts.client_ipv6 if ipv6 else hosts.client_ipv4)[0]
    server = (hosts.server_ipv6 if ipv6 else hosts.server_ipv4)[0]
    direct, recvmmsg = (
        [receive(frame) for frame in exchange(lab, hosts, ["--mode", mode], client, server)[1]]
        for mode in ("direct", "recvmmsg")
    )
    assert [bytes(each.payload) for each in direct] == [bytes(each.payload) for each in recvmmsg]
    assert direct == recvmmsg


def test_on_one_link_everything_is_direct(hosts: TwoHosts) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", "direct"]) as server:
        assert "replies leave as frames to" in server.log
        for client, target in (
            (hosts.client_ipv4[0], hosts.server_ipv4[1]),
            (hosts.client_ipv6[0], hosts.server_ipv6[1]),
        ):
            # The kernel sees no reply: its UDP counts what its sockets send.
            before = sent_by_the_kernel(hosts.server)
            counts = answered(server, hosts.client, client, target)
            assert counts["sent"] == COUNT
            assert counts.get("other_way", 0) == counts.get("other_neighbour", 0) == 0
            assert sent_by_the_kernel(hosts.server) == before


def sent_by_the_kernel(ns: Namespace) -> int:
    snmp = ns.snmp()
    return snmp["Udp"]["OutDatagrams"] + snmp["Udp6"]["OutDatagrams"]


# --- Other ways back ---


@dataclass
class Routed:
    """A server and a client with a router between them, and a second link for the way back."""

    server: Namespace
    router: Namespace
    client: Namespace
    targets: tuple[str, str] = ("10.1.0.1", "fd01::1")
    clients: tuple[str, str] = ("10.2.0.1", "fd02::1")
    second: tuple[str, str] = ("10.3.0.2", "fd03::2")
    """The router's addresses on the second link."""


@pytest.fixture
def routed(lab: Lab) -> Routed:
    made = Routed(lab.namespace("server"), lab.namespace("router"), lab.namespace("client"))
    links = (
        (made.server, "v0", made.router, "r0", 1),
        (made.client, "c0", made.router, "r1", 2),
        (made.server, "w0", made.router, "r2", 3),
    )
    for ns in (made.server, made.router, made.client):
        for key in ("all", "default"):
            ns.write(f"/proc/sys/net/ipv4/conf/{key}/rp_filter", "0")
    for host, host_if, router, router_if, number in links:
        lab.veth(host, host_if, router, router_if)
        lab.address(host, host_if, f"10.{number}.0.1/24", f"fd0{number}::1/64")
        lab.address(router, router_if, f"10.{number}.0.2/24", f"fd0{number}::2/64")
    made.router.write("/proc/sys/net/ipv4/ip_forward", "1")
    made.router.write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    for ns, number in ((made.server, 1), (made.client, 2)):
        lab.route(ns, "default", f"10.{number}.0.2")
        lab.route(ns, "default", f"fd0{number}::2")
    return made


def ask_until_direct(server: Server, routed: Routed) -> None:
    """The first replies make the kernel find the router's MAC address; then all is direct."""
    for client, target in zip(routed.clients, routed.targets, strict=True):

        def direct(client: str = client, target: str = target) -> bool:
            return answered(server, routed.client, client, target, 5).get("other_way", 0) == 0

        wait_until(direct, "replies leave directly", 10)


def test_replies_go_back_through_the_router(routed: Routed) -> None:
    with Server(routed.server, ["--iface", "v0", "--mode", "direct"]) as server:
        ask_until_direct(server, routed)
        before = sent_by_the_kernel(routed.server)
        for client, target in zip(routed.clients, routed.targets, strict=True):
            counts = answered(server, routed.client, client, target)
            assert counts["sent"] == COUNT
            assert counts.get("other_way", 0) == counts.get("other_neighbour", 0) == 0
        assert sent_by_the_kernel(routed.server) == before


def test_with_another_way_back_replies_take_it(lab: Lab, routed: Routed) -> None:
    """From the start, and when the routes change while the service runs."""
    with Server(routed.server, ["--iface", "v0", "--mode", "direct"]) as server:
        ask_until_direct(server, routed)
        lab.route(routed.server, "10.2.0.0/16", routed.second[0])
        lab.route(routed.server, "fd02::/32", routed.second[1])
        for network in ("10.2.0.0/16", "fd02::/32"):
            wait_until(
                lambda network=network: f"replies to {network} go through" in server.log,  # type: ignore[misc]
                "the change is noticed",
            )
        assert "10.2.0.0/16 go through the UDP sockets: leaves by w0" in server.log
        for client, target in zip(routed.clients, routed.targets, strict=True):
            assert answered(server, routed.client, client, target)["other_way"] == COUNT
    with Server(routed.server, ["--iface", "v0", "--mode", "direct"]) as server:
        assert "replies to 10.2.0.0/16 go through the UDP sockets" in server.log
        for client, target in zip(routed.clients, routed.targets, strict=True):
            assert answered(server, routed.client, client, target)["other_way"] == COUNT


def test_policy_routing_is_refused_and_fallen_back_from(routed: Routed) -> None:
    def rule(command: str) -> None:
        with routed.server.iproute() as ipr:
            ipr.rule(command, priority=100, src="10.9.0.0/16", table=100)

    with Server(routed.server, ["--iface", "v0", "--mode", "direct"]) as server:
        ask_until_direct(server, routed)
        rule("add")
        wait_until(lambda: "replies go through the UDP sockets:" in server.log, "the rule shows")
        client, target = routed.clients[0], routed.targets[0]
        assert answered(server, routed.client, client, target)["other_way"] == COUNT
        rule("delete")
        ask_until_direct(server, routed)
    rule("add")
    command = ["pktstun", "serve", "--iface", "v0", "--mode", "direct"]
    with pytest.raises(AssertionError, match="use --mode ring"), Server(routed.server, command[2:]):
        pass


def test_a_gateway_with_another_mac_address(lab: Lab, routed: Routed) -> None:
    """A router is replaced: until the kernel has noticed, its replies are the kernel's."""
    with Server(routed.server, ["--iface", "v0", "--mode", "direct"]) as server:
        ask_until_direct(server, routed)
        # The server's entry is left alone: what arrives is all that tells of the change.
        lab.neighbour(routed.server, "v0", "10.1.0.2", "02:00:00:00:00:77")
        wait_until(
            lambda: (
                ask(routed.client, routed.clients[0], routed.targets[0], 1, patience=0.2).lost == 1
                and server.totals().get("other_neighbour", 0) > 0
            ),
            "requests come from another neighbour than the table says",
            10,
        )
        lab.neighbour(routed.server, "v0", "10.1.0.2", mac_text(lab, routed.router, "r0"))
        ask_until_direct(server, routed)
        wait_until(lambda: "from another neighbour" in server.log, "the log tells of it")


def mac_text(lab: Lab, ns: Namespace, ifname: str) -> str:
    return str(lab.link(ns, ifname).get("address"))


@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"])
def test_no_reply_goes_to_what_is_no_neighbour(lab: Lab, hosts: TwoHosts, mac: str) -> None:
    """The source address of a frame is what its sender says; the kernel knows the neighbour."""
    request = build_udp_frame(
        Message.request().encode(),
        (ip_address(hosts.client_ipv4[0]), CLIENT_PORT),
        (ip_address(hosts.server_ipv4[0]), 3478),
        source_mac=bytes.fromhex(mac.replace(":", "")),
        destination_mac=mac_of(lab, hosts.server, hosts.server_if),
    )
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", "direct"]) as server:
        with hosts.client.enter():
            ring = Ring.open(hosts.client_if, program=udp_to([CLIENT_PORT]))
        with ring, raw_socket(hosts.client, hosts.client_if) as sock:
            sock.send(request)
            (reply,) = take(ring, 1)
        own = mac_of(lab, hosts.client, hosts.client_if)
        assert parse_ethernet(reply)[0].destination == own
        assert server.totals()["other_neighbour"] == 1


def test_only_replies_count_as_detours(lab: Lab, hosts: TwoHosts) -> None:
    """Rubbish from where nothing leads back to is rubbish."""
    frame = build_udp_frame(
        b"rubbish that is long enough",
        (ip_address("203.0.113.9"), CLIENT_PORT),
        (ip_address(hosts.server_ipv4[0]), 3478),
        source_mac=mac_of(lab, hosts.client, hosts.client_if),
        destination_mac=mac_of(lab, hosts.server, hosts.server_if),
    )
    with (
        Server(hosts.server, ["--iface", hosts.server_if, "--mode", "direct"]) as server,
        raw_socket(hosts.client, hosts.client_if) as sock,
    ):
        for _ in range(20):
            sock.send(frame)
        totals = server.wait_for(20)
        assert totals["dropped.not_stun"] == 20
        assert "other_way" not in totals


def test_a_link_that_goes_down_and_comes_back(lab: Lab, hosts: TwoHosts) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", "direct"]) as server:
        client, target = hosts.client_ipv4[0], hosts.server_ipv4[0]
        answered(server, hosts.client, client, target)
        lab.link_set(hosts.server, hosts.server_if, state="down")
        wait_until(lambda: "leave as frames to nobody" in server.log, "the routes are gone")
        lab.link_set(hosts.server, hosts.server_if, state="up")
        mac = mac_text(lab, hosts.client, hosts.client_if)
        lab.neighbour(hosts.server, hosts.server_if, client, mac)
        wait_until(
            lambda: "10.77.0.0/24" in server.log.rpartition("leave as frames to")[2],
            "the routes are back",
        )
        assert answered(server, hosts.client, client, target).get("other_way", 0) == 0


def test_a_route_that_flaps_does_not_fill_the_log(routed: Routed) -> None:
    with Server(routed.server, ["--iface", "v0", "--mode", "direct"]) as server:
        ask_until_direct(server, routed)
        for _ in range(12):
            for command in ("add", "delete"):
                with routed.server.iproute() as ipr:
                    ipr.route(command, dst="10.2.0.0/16", gateway=routed.second[0])
                time.sleep(0.15)  # the look comes 0.1 s after a change
        lines = sum("direct:" in line for line in server.lines)
        assert lines <= REPORT_BURST * 4
        # The last state holds, whether it has been told or not.
        ask_until_direct(server, routed)


# --- Refusals ---


def test_loopback_has_no_neighbours(lab: Lab) -> None:
    ns = lab.namespace("alone")
    with (
        pytest.raises(AssertionError, match="use --mode ring"),
        Server(ns, ["--iface", "lo", "--mode", "direct"]),
    ):
        pass


def test_an_interface_that_no_reply_leaves_by(lab: Lab, hosts: TwoHosts) -> None:
    lab.veth(hosts.server, "x0", hosts.client, "x1")
    with hosts.server.iproute() as ipr:
        for address, length, family in (
            ("10.99.0.1", 32, socket.AF_INET),
            ("fd99::1", 128, socket.AF_INET6),
        ):
            index = socket.if_nametoindex("x0")
            ipr.addr("add", index=index, address=address, prefixlen=length, family=family)
        ipr.flush_routes(oif=index, family=socket.AF_INET6)
    with (
        pytest.raises(AssertionError, match="no reply would leave by x0"),
        Server(hosts.server, ["--iface", "x0", "--mode", "direct"]),
    ):
        pass
