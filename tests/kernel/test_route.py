"""A reply is direct only where the kernel itself would send it there, and never on a guess."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import select
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from pktstun.kernel import (
    MAX_RETURN_PATHS,
    Interface,
    ReturnPath,
    UnclearRoutingError,
    interface,
    lookup,
    return_paths,
    route,
    route_monitor,
)
from tests.kernel.wire import descriptors
from tests.lab import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pktstun.kernel import Monitor
    from tests.lab import Lab, Namespace

pytestmark = pytest.mark.root

MAC = bytes.fromhex("02000000000a")  # the first gateway on v0 of each family
OTHER_MAC = bytes.fromhex("02000000000b")
# What a direct path says where the kernel answers with this interface and gateway.
MACS = {
    ("v0", ""): b"",
    ("v0", "10.0.0.10"): MAC,
    ("v0", "10.0.0.11"): OTHER_MAC,
    ("v0", "fd00::a"): MAC,
    ("v0", "fd00::b"): OTHER_MAC,
}
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
INET, INET6 = socket.AF_INET, socket.AF_INET6


@dataclass(frozen=True)
class Router:
    """A host with two interfaces, v0 and w0, each with a network of each family.

    On each network .10 and .11 (::a and ::b) are known neighbours; on v0 their MACs are MAC
    and OTHER_MAC.
    """

    lab: Lab
    ns: Namespace
    far: Namespace

    def interface(self, name: str = "v0") -> Interface:
        with self.ns.enter():
            return interface(name)

    def paths(self, name: str = "v0") -> tuple[ReturnPath, ...]:
        with self.ns.enter():
            return return_paths(interface(name))

    def path(self, address: str, name: str = "v0") -> ReturnPath | None:
        return lookup(self.paths(name), ip_address(address))

    def add(self, destination: str, command: str = "add", **options: Any) -> None:
        """`ip route add`, with dev= the name of an interface."""
        with self.ns.iproute() as ipr:
            if "dev" in options:
                options["oif"] = socket.if_nametoindex(options.pop("dev"))
            ipr.route(command, dst=destination, family=family_of(destination), **options)

    def rule(self, command: str = "add", **options: Any) -> None:
        with self.ns.iproute() as ipr:
            ipr.rule(command, **options)

    def request(self, kind: int, body: bytes) -> None:
        """What pyroute2 has no words for."""
        with self.ns.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            # NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE
            sock.send(struct.pack("=IHHII", 16 + len(body), kind, 0x405, 1, 0) + body)
            (number,) = struct.unpack_from("=i", sock.recv(4096), 16)
            if number:
                raise OSError(-number, "netlink refuses")


def family_of(text: str) -> int:
    return INET6 if ":" in text else INET


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@pytest.fixture(name="router")
def router_fixture(lab: Lab) -> Router:
    ns, far = lab.namespace("router"), lab.namespace("far")
    for number, (near_if, far_if) in enumerate([("v0", "v1"), ("w0", "w1")]):
        lab.veth(ns, near_if, far, far_if)
        lab.address(ns, near_if, f"10.{number}.0.1/24", f"fd0{number}::1/64")
        for host, mac in ((10, MAC), (11, OTHER_MAC)):
            text = (mac[:4] + bytes([number]) + mac[5:]).hex(":")
            lab.neighbour(ns, near_if, f"10.{number}.0.{host}", text)
            lab.neighbour(ns, near_if, f"fd0{number}::{host:x}", text)
    return Router(lab, ns, far)


@pytest.fixture(name="monitor")
def monitor_fixture(router: Router) -> Iterator[Monitor]:
    with router.ns.enter():
        monitor = route_monitor()
    with monitor:
        yield monitor


def is_direct(path: ReturnPath | None, gateway: bytes = b"") -> bool:
    return path is not None and path.direct and path.gateway == gateway and not path.reason


def reason(path: ReturnPath | None) -> str:
    """Why a path is not direct, which it must not be."""
    assert path is not None
    assert not path.direct
    assert path.gateway == b""
    return path.reason


# --- One route ---


class Remote(NamedTuple):
    """A network beyond gateways."""

    network: str
    known: str  # a gateway on v0, with MAC
    other: str  # a gateway on w0
    unknown: str  # a gateway on v0 that does not answer
    inside: str  # an address in the network

    @property
    def is_default(self) -> bool:
        return self.network.endswith("/0")


remote = pytest.mark.parametrize(
    "to",
    [
        Remote("198.51.100.0/24", "10.0.0.10", "10.1.0.10", "10.0.0.99", "198.51.100.7"),
        Remote("2001:db8::/32", "fd00::a", "fd01::a", "fd00::99", "2001:db8::7"),
        Remote("0.0.0.0/0", "10.0.0.10", "10.1.0.10", "10.0.0.99", "198.51.100.7"),
        Remote("::/0", "fd00::a", "fd01::a", "fd00::99", "2001:db8::7"),
    ],
    ids=lambda to: to.network,
)


@pytest.mark.parametrize("address", ["10.0.0.7", "fd00::7"])
def test_on_link_any_neighbour_will_do(router: Router, address: str) -> None:
    assert is_direct(router.path(address))
    assert not is_direct(router.path(address, "w0"))


@pytest.mark.parametrize("address", ["198.51.100.7", "2001:db8::7", "10.1.0.7", "fd01::7"])
def test_without_a_route_there_is_no_path(router: Router, address: str) -> None:
    """A route by another interface, with no direct one around it, is as good as none."""
    assert router.path(address) is None


@remote
def test_a_gateway_has_a_mac(router: Router, to: Remote) -> None:
    router.add(to.network, gateway=to.known)
    assert is_direct(router.path(to.inside), MAC)
    assert not is_direct(router.path(to.inside, "w0"), MAC)


@remote
def test_a_gateway_that_is_not_resolved(router: Router, to: Remote) -> None:
    router.add(to.network, gateway=to.unknown)
    path = router.path(to.inside)
    if to.is_default:
        assert reason(path) == f"gateway {to.unknown} is not resolved yet"
    else:
        assert path is None


@remote
def test_a_route_by_another_interface(router: Router, to: Remote) -> None:
    router.add(to.network, gateway=to.other)
    path = router.path(to.inside)
    if to.is_default:
        assert reason(path) == "leaves by w0"
    else:
        assert path is None


@pytest.mark.parametrize(
    ("state", "known"),
    [
        ("incomplete", False),
        ("failed", False),
        ("reachable", True),
        ("stale", True),
        ("delay", True),
        ("probe", True),
        ("permanent", True),
        ("noarp", True),
    ],
)
@pytest.mark.parametrize("gateway", ["10.0.0.77", "fd00::77"])
def test_the_state_of_the_neighbour(
    router: Router, gateway: str, state: str, *, known: bool
) -> None:
    address = {"lladdr": "02:00:00:00:00:77"} if known else {}
    with router.ns.iproute() as ipr:
        index = socket.if_nametoindex("v0")
        ipr.neigh("add", dst=gateway, ifindex=index, state=state, **address)
    router.add("::/0" if ":" in gateway else "0.0.0.0/0", gateway=gateway)
    path = router.path("2001:db8::7" if ":" in gateway else "198.51.100.7")
    if known:
        assert is_direct(path, bytes.fromhex("020000000077"))
    else:
        assert "not resolved" in reason(path)


def test_a_neighbour_on_another_interface_is_somebody_else(router: Router) -> None:
    router.lab.neighbour(router.ns, "w0", "10.0.0.99", "02:00:00:00:00:99")
    router.lab.neighbour(router.ns, "w0", "fe80::99", "02:00:00:00:00:99")
    router.add("0.0.0.0/0", gateway="10.0.0.99")
    router.add("::/0", gateway="fe80::99", dev="v0")
    assert "not resolved" in reason(router.path("198.51.100.7"))
    assert "not resolved" in reason(router.path("2001:db8::7"))
    router.lab.neighbour(router.ns, "v0", "fe80::99", MAC.hex(":"))
    assert is_direct(router.path("2001:db8::7"), MAC)


def test_an_ipv6_gateway_of_an_ipv4_route(router: Router) -> None:
    via = {"family": INET6, "addr": "fd00::a"}
    router.add("198.51.100.0/24", via=via, dev="v0")
    router.add("203.0.113.0/24", via={**via, "addr": "fd00::99"}, dev="v0")
    assert is_direct(router.path("198.51.100.7"), MAC)
    assert router.path("203.0.113.7") is None


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit", "throw"])
def test_a_route_to_nowhere(router: Router, kind: str) -> None:
    router.add("0.0.0.0/0", gateway="10.0.0.10")
    router.add("::/0", gateway="fd00::a")
    router.add("198.51.100.0/24", type=kind)
    router.add("2001:db8::/32", type=kind)
    assert reason(router.path("198.51.100.7")) == kind
    assert reason(router.path("2001:db8::7")) == kind
    assert is_direct(router.path("198.51.101.7"), MAC)
    assert is_direct(router.path("2001:db9::7"), MAC)


@pytest.mark.parametrize("kind", ["broadcast", "multicast"])
def test_a_route_of_another_type(router: Router, kind: str) -> None:
    router.add("10.0.0.128/25", type=kind, dev="v0", scope=253)  # RT_SCOPE_LINK
    assert "type" in reason(router.path("10.0.0.200"))


# --- Several routes ---


@pytest.mark.parametrize("default", ["0.0.0.0/0", "::/0"])
def test_the_longest_prefix_decides(router: Router, default: str) -> None:
    via_v0, via_w0 = ("fd00::a", "fd01::a") if ":" in default else ("10.0.0.10", "10.1.0.10")
    second = "fd00::b" if ":" in default else "10.0.0.11"
    around, inner, innermost = (
        ("2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::7/128")
        if ":" in default
        else ("198.51.0.0/16", "198.51.100.0/24", "198.51.100.7/32")
    )
    router.add(default, gateway=via_v0)
    router.add(around, gateway=second)
    router.add(inner, gateway=via_w0)
    router.add(innermost, gateway=via_v0)
    host = ip_network(innermost).network_address
    assert is_direct(router.path(str(host)), MAC)
    assert reason(router.path(str(host + 1))) == "leaves by w0"
    assert is_direct(router.path(str(ip_network(around)[-1])), OTHER_MAC)
    lengths = [path.network.prefixlen for path in router.paths()]
    assert lengths == sorted(lengths, reverse=True)


@remote
@pytest.mark.parametrize("order", [1, -1])
def test_the_lowest_metric_decides(router: Router, to: Remote, order: int) -> None:
    for metric, gateway in [(10, to.known), (20, to.other)][::order]:
        router.add(to.network, gateway=gateway, priority=metric)
    assert is_direct(router.path(to.inside), MAC)
    assert not is_direct(router.path(to.inside, "w0"), MAC)


def test_a_metric_beyond_a_byte_and_none_at_all(router: Router) -> None:
    router.add("0.0.0.0/0", gateway="10.0.0.10", priority=0x10000)
    router.add("0.0.0.0/0", gateway="10.1.0.10", priority=0x200)
    assert reason(router.path("198.51.100.7")) == "leaves by w0"
    router.add("0.0.0.0/0", gateway="10.0.0.11")
    assert is_direct(router.path("198.51.100.7"), OTHER_MAC)


@pytest.mark.parametrize("default", ["0.0.0.0/0", "::/0"])
def test_routes_of_equal_metric(router: Router, default: str) -> None:
    gateways = ("fd00::a", "fd01::a") if ":" in default else ("10.0.0.10", "10.1.0.10")
    for gateway in gateways:
        router.add(default, "append", gateway=gateway, priority=5)
    # IPv4 keeps two routes, of which it uses the first; IPv6 makes one of them.
    assert reason(router.path("2001:db8::7" if ":" in default else "198.51.100.7")).startswith(
        "several"
    )


def test_several_on_link_routes_of_equal_metric(router: Router) -> None:
    for name in ("v0", "w0"):
        router.add("::/0", "append", dev=name, priority=5)
    assert reason(router.path("2001:db8::7")).startswith("several")


@pytest.mark.parametrize("default", ["0.0.0.0/0", "::/0"])
def test_several_next_hops(router: Router, default: str) -> None:
    gateways = ("fd00::a", "fd00::b") if ":" in default else ("10.0.0.10", "10.0.0.11")
    router.add(default, multipath=[{"gateway": gateway} for gateway in gateways])
    path = router.path("2001:db8::7" if ":" in default else "198.51.100.7")
    assert reason(path) == "several next hops"


def test_a_route_for_some_tos(router: Router) -> None:
    router.add("0.0.0.0/0", gateway="10.0.0.10", priority=1)
    router.add("0.0.0.0/0", gateway="10.0.0.10", priority=2, tos=0x10)
    assert "more than the destination" in reason(router.path("198.51.100.7"))


def test_a_route_for_some_sources(router: Router) -> None:
    router.add("::/0", gateway="fd00::a", priority=1)
    router.add("2001:db8::/32", gateway="fd00::a", priority=1)
    router.add("2001:db8::/32", gateway="fd00::a", priority=2, src="fd00::/16")
    assert "more than the destination" in reason(router.path("2001:db8::7"))
    assert is_direct(router.path("2001:db9::7"), MAC)


def new_route(destination: str, attributes: bytes) -> bytes:
    """The body of RTM_NEWROUTE: table main, static, a unicast route."""
    network = ipaddress.IPv4Network(destination)
    fixed = struct.pack("=8BI", INET, network.prefixlen, 0, 0, 254, 4, 0, 1, 0)
    return fixed + attribute(1, network.network_address.packed) + attributes


def test_a_nexthop_object(router: Router) -> None:
    router.add("0.0.0.0/0", gateway="10.0.0.10")
    with router.ns.enter():
        index = struct.pack("=I", socket.if_nametoindex("v0"))
    gateway, number = socket.inet_aton("10.0.0.10"), struct.pack("=I", 7)
    # struct nhmsg; NHA_ID, NHA_OIF, NHA_GATEWAY; RTA_NH_ID
    hop = attribute(1, number) + attribute(5, index) + attribute(6, gateway)
    router.request(104, struct.pack("=4BI", INET, 0, 4, 0, 0) + hop)
    router.request(24, new_route("198.51.100.0/24", attribute(30, number)))
    assert reason(router.path("198.51.100.7")) == "a nexthop object"


def test_encapsulation(router: Router) -> None:
    router.add("0.0.0.0/0", gateway="10.0.0.10")
    with router.ns.enter():
        index = struct.pack("=I", socket.if_nametoindex("v0"))
    # RTA_ENCAP_TYPE is LWTUNNEL_ENCAP_IP, in RTA_ENCAP lies LWTUNNEL_IP_DST.
    encapsulation = attribute(21, struct.pack("=H", 2))
    encapsulation += attribute(0x8000 | 22, attribute(2, socket.inet_aton("10.9.0.1")))
    hop = attribute(5, socket.inet_aton("10.0.0.10")) + attribute(4, index)
    router.request(24, new_route("198.51.100.0/24", encapsulation + hop))
    assert reason(router.path("198.51.100.7")) == "encapsulated"


@pytest.mark.parametrize("table", [100, 253, 1000])
def test_other_tables_do_not_count(router: Router, table: int) -> None:
    """Table 1000 has no place in the fixed part of a message."""
    before = router.paths()
    router.add("0.0.0.0/0", gateway="10.0.0.10", table=table)
    router.add("10.0.0.128/25", gateway="10.1.0.10", table=table)
    assert router.paths() == before


def test_link_local_addresses_are_those_of_the_interface(router: Router) -> None:
    assert is_direct(router.path("fe80::7"))
    assert is_direct(router.path("fe80::7", "w0"))
    router.add("fe80::/64", "del", dev="v0")
    assert router.path("fe80::7") is None
    assert is_direct(router.path("fe80::7", "w0"))


def test_link_local_routes_elsewhere_do_not_count(router: Router) -> None:
    """What the kernel chooses for a reply with a scope, which names the interface."""
    router.add("fe80::/64", dev="w0", priority=1)
    router.add("fe80::/64", type="unreachable", priority=2)
    assert is_direct(router.path("fe80::7"))
    with router.ns.iproute() as ipr:
        index = socket.if_nametoindex("v0")
        (found,) = ipr.route("get", dst="fe80::7", oif=index, family=INET6)
    assert (found["type"], found.get("oif"), found.get("gateway")) == (1, index, None)
    router.add("fe80::/64", multipath=[{"gateway": "fd00::a"}, {"gateway": "fd00::b"}], priority=3)
    router.add("::/0", gateway="fd00::a")
    assert reason(router.path("fe80::7")) == "several next hops"


def test_ipv4_link_local_addresses_are_as_any_other(router: Router) -> None:
    router.add("169.254.0.0/16", dev="w0", priority=1)
    router.add("169.254.0.0/16", dev="v0", priority=2)
    assert router.path("169.254.0.7") is None
    assert is_direct(router.path("169.254.0.7", "w0"))


def test_this_hosts_own_addresses_have_no_path_of_their_own(router: Router) -> None:
    assert is_direct(router.path("10.0.0.1"))
    assert router.path("127.0.0.1") is None
    assert router.path("::1") is None


def test_nothing_is_direct_on_the_loopback_interface(router: Router) -> None:
    assert not any(path.direct for path in router.paths("lo"))


# --- What comes and goes ---


@pytest.mark.parametrize("ignored", [False, True])
def test_a_route_without_carrier(router: Router, *, ignored: bool) -> None:
    """The kernel uses it, unless told to ignore it: then the next best counts."""
    router.ns.write("/proc/sys/net/ipv4/conf/w0/ignore_routes_with_linkdown", str(int(ignored)))
    router.ns.write("/proc/sys/net/ipv6/conf/w0/ignore_routes_with_linkdown", str(int(ignored)))
    for default, via_v0, via_w0 in (
        ("0.0.0.0/0", "10.0.0.10", "10.1.0.10"),
        ("::/0", "fd00::a", "fd01::a"),
    ):
        router.add(default, gateway=via_v0, priority=20)
        router.add(default, gateway=via_w0, priority=10)
    assert reason(router.path("198.51.100.7")) == "leaves by w0"
    router.lab.link_set(router.far, "w1", state="down")
    wait_until(
        lambda: router.lab.link(router.ns, "w0").get("operstate") != "UP", "w0 has no carrier"
    )
    for address in ("198.51.100.7", "2001:db8::7", "10.1.0.7", "fd01::7"):
        path = router.path(address)
        if ignored:
            assert is_direct(path, MAC)
        else:
            assert reason(path) == "leaves by w0"
        with router.ns.iproute() as ipr:
            answer = kernel_route(ipr, ip_address(address))
        assert answer is not None
        assert MACS.get(answer) == (MAC if ignored else None)


def test_an_interface_that_is_down_or_gone(router: Router) -> None:
    router.add("0.0.0.0/0", gateway="10.0.0.10")
    before = router.interface()
    router.lab.link_set(router.ns, "v0", state="down")
    assert router.paths() == ()
    router.lab.delete_link(router.ns, "v0")
    with router.ns.enter():
        assert return_paths(before) == ()


def test_the_first_reply_resolves_the_gateway(router: Router, monitor: Monitor) -> None:
    router.lab.address(router.far, "v1", "10.0.0.2/24", "fd00::2/64")
    router.add("0.0.0.0/0", gateway="10.0.0.2")
    router.add("::/0", gateway="fd00::2")
    mac = bytes.fromhex(router.lab.link(router.far, "v1").get("address").replace(":", ""))
    for address in ("198.51.100.7", "2001:db8::7"):
        assert "not resolved" in reason(router.path(address))
        monitor.changed()
        with router.ns.socket(family_of(address), socket.SOCK_DGRAM) as sock:
            sock.sendto(b"a reply", (address, 9))
        wait_until(
            lambda address=address: monitor.changed() and is_direct(router.path(address), mac),  # type: ignore[misc]
            "the gateway is resolved, and that is heard",
        )


def test_a_path_mtu_is_no_route(lab: Lab) -> None:
    """The dump lists what the kernel remembers about one destination as a route to it."""
    near, middle, far = map(lab.namespace, ("near", "middle", "far"))
    lab.veth(near, "v0", middle, "v1")
    lab.veth(middle, "w0", far, "w1", mtu=1400)
    lab.address(near, "v0", "10.0.0.1/24", "fd00::1/64")
    lab.address(middle, "v1", "10.0.0.2/24", "fd00::2/64")
    lab.address(middle, "w0", "10.1.0.2/24", "fd01::2/64")
    middle.write("/proc/sys/net/ipv4/ip_forward", "1")
    middle.write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    lab.route(near, "default", "10.0.0.2")
    lab.route(near, "default", "fd00::2")
    router = Router(lab, near, far)
    for address in ("10.1.0.7", "fd01::7"):
        with near.socket(family_of(address), socket.SOCK_DGRAM) as sock:
            # IP_MTU_DISCOVER and IPV6_MTU_DISCOVER, both DO
            level = socket.IPPROTO_IPV6 if ":" in address else socket.IPPROTO_IP
            sock.setsockopt(level, 23 if ":" in address else 10, 2)
            sock.connect((address, 9))

            def too_long(sock: socket.socket = sock) -> bool:
                try:
                    sock.send(bytes(1440))
                except OSError as error:
                    return error.errno == errno.EMSGSIZE
                return False

            wait_until(too_long, "the path MTU is known")
    with near.iproute() as ipr:
        remembered = {each.get("dst") for each in ipr.get_routes() if each["flags"] & 0x200}
    assert {"10.1.0.7", "fd01::7"} <= remembered
    mac = bytes.fromhex(lab.link(middle, "v1").get("address").replace(":", ""))
    assert is_direct(router.path("10.1.0.7"), mac)
    assert is_direct(router.path("fd01::7"), mac)
    assert {path.network.prefixlen for path in router.paths()} == {0, 24, 64}


def test_a_redirect_is_no_route(router: Router) -> None:
    """The first router still forwards, so a reply to it is right."""
    mac = bytes.fromhex(router.lab.link(router.far, "v1").get("address").replace(":", ""))
    router.lab.address(router.far, "v1", "10.0.0.2/24")
    router.lab.neighbour(router.far, "v1", "10.0.0.11", OTHER_MAC.hex(":"))
    router.lab.neighbour(router.ns, "v0", "10.0.0.2", mac.hex(":"))
    router.far.write("/proc/sys/net/ipv4/ip_forward", "1")
    router.lab.route(router.far, "default", "10.0.0.11")
    router.add("0.0.0.0/0", gateway="10.0.0.2")
    with (
        router.ns.socket(INET, socket.SOCK_DGRAM) as sock,
        router.ns.iproute() as ipr,
    ):
        address = ip_address("198.51.100.7")

        def redirected() -> bool:
            sock.sendto(b"a reply", (str(address), 9))
            return kernel_route(ipr, address) == ("v0", "10.0.0.11")

        wait_until(redirected, "the router names a better one")
    assert is_direct(router.path(str(address)), mac)


def test_no_descriptor_is_left_open(router: Router) -> None:
    with router.ns.enter():
        found = interface("v0")
        before = descriptors()
        return_paths(found)
        assert descriptors() == before
    router.rule(table=7, priority=100)
    with router.ns.enter():
        with pytest.raises(UnclearRoutingError):
            return_paths(found)
        assert descriptors() == before


# --- Policy routing ---


@pytest.mark.parametrize(
    "options",
    [
        {"table": 7},
        {"table": 254, "src": "10.0.0.1", "src_len": 32},
        {"table": 254, "dst": "10.0.0.0", "dst_len": 8},
        {"table": 254, "fwmark": 1},
        {"table": 254, "tos": 0x10},
        {"table": 254, "iifname": "lo"},
        {"table": 254, "FRA_SUPPRESS_PREFIXLEN": 0},
        {"action": "unreachable"},
        {"table": 7, "family": INET6},
        {"table": 254, "fwmark": 1, "family": INET6},
    ],
    ids=str,
)
def test_any_rule_of_somebodys_own_is_unclear(router: Router, options: dict[str, Any]) -> None:
    version = 6 if options.get("family") == INET6 else 4
    # Also where it looks most like one of the kernel's own.
    for priority in (100, 32766):
        router.rule(priority=priority, **options)
        with pytest.raises(UnclearRoutingError, match=f"rule {priority} of IPv{version}.*ring"):
            router.paths()
        router.rule("del", priority=priority, **options)
        assert is_direct(router.path("10.0.0.7"))


def test_a_rule_with_a_high_table_is_unclear(router: Router) -> None:
    """The fixed part of the message has no place for it."""
    router.rule(priority=32766, table=1000)
    with pytest.raises(UnclearRoutingError, match="rule 32766"):
        router.paths()


def test_an_inverted_rule_is_unclear(router: Router) -> None:
    # struct fib_rule_hdr with FIB_RULE_INVERT; FRA_PRIORITY, FRA_TABLE. RTM_NEWRULE.
    rule = struct.pack("=8BI", INET, 0, 0, 0, 254, 0, 0, 1, 2)
    rule += attribute(6, struct.pack("=I", 32766)) + attribute(15, struct.pack("=I", 254))
    router.request(32, rule)
    with pytest.raises(UnclearRoutingError, match="rule 32766"):
        router.paths()


def test_a_family_whose_rules_do_not_lead_to_table_main(router: Router) -> None:
    router.add("0.0.0.0/0", gateway="10.0.0.10")
    router.rule("del", table=254, priority=32766)
    assert router.path("10.0.0.7") is None
    assert router.path("198.51.100.7") is None
    assert is_direct(router.path("fd00::7"))


def test_a_route_in_table_local_is_unclear(router: Router) -> None:
    # Addresses of this host, which is what the table is for, and what older kernels add for IPv6.
    router.add("10.0.0.128/25", type="local", scope=254, dev="lo", table=255)
    router.add("ff0e::/16", dev="v0", table=255)
    assert is_direct(router.path("10.0.0.7"))
    router.add("10.0.0.64/26", gateway="10.1.0.10", table=255)
    with pytest.raises(UnclearRoutingError, match=r"10\.0\.0\.64/26 in table local.*ring"):
        router.paths()


# --- How many ---


def test_routes_of_containers_do_not_fill_the_table(router: Router) -> None:
    with router.ns.iproute() as ipr:
        w0 = socket.if_nametoindex("w0")
        for number in range(300):
            ipr.route("add", dst=f"172.16.{number // 256}.{number % 256}/32", oif=w0)
    assert len(router.paths()) == 3
    router.add("0.0.0.0/0", gateway="10.1.0.10")
    assert reason(router.path("172.16.0.7")) == "leaves by w0"
    assert len(router.paths()) == 4


def test_too_many_paths_are_unclear(router: Router) -> None:
    router.add("0.0.0.0/0", gateway="10.0.0.10")
    with router.ns.iproute() as ipr:
        room = MAX_RETURN_PATHS - len(router.paths())
        w0 = socket.if_nametoindex("w0")
        for number in range(room + 1):
            assert len(router.paths()) <= MAX_RETURN_PATHS
            ipr.route("add", dst=f"172.16.0.{number}/32", oif=w0)
    with pytest.raises(UnclearRoutingError, match=f"{MAX_RETURN_PATHS + 1} networks.*ring"):
        router.paths()


CORNERS: list[Address] = [
    *(ipaddress.IPv4Address(number << 28) for number in range(16)),
    *(ipaddress.IPv6Address(number << 124) for number in range(16)),
]
"""One address in each network of four bits."""


@st.composite
def tables(draw: st.DrawFn) -> list[ReturnPath]:
    """Networks of up to four bits, each with something to say."""
    networks = draw(
        st.lists(st.tuples(st.sampled_from(CORNERS), st.integers(0, 4)), max_size=20).map(
            lambda drawn: sorted(
                {ip_network((ip.packed, length), strict=False) for ip, length in drawn}, key=str
            )
        )
    )
    kinds = [(True, b"", ""), (True, MAC, ""), (True, OTHER_MAC, ""), (False, b"", "far")]
    return [ReturnPath(network, *draw(st.sampled_from(kinds))) for network in networks]


def decision(path: ReturnPath | None) -> tuple[bool, bytes]:
    return (path.direct, path.gateway) if path else (False, b"")


def longest_first(paths: list[ReturnPath]) -> list[ReturnPath]:
    return sorted(paths, key=lambda path: -path.network.prefixlen)


@given(tables())
def test_what_is_left_out_is_not_missed(table: list[ReturnPath]) -> None:
    kept = route._needed(table)
    assert list(kept) == longest_first(list(kept))
    for address in CORNERS:
        assert decision(lookup(kept, address)) == decision(lookup(longest_first(table), address))


@given(tables())
def test_what_is_kept_says_something_new(table: list[ReturnPath]) -> None:
    kept = route._needed(table)
    assert set(kept) <= set(table)
    for path in kept:
        wider = [each for each in kept if each.network.prefixlen < path.network.prefixlen]
        around = lookup(wider, path.network.network_address)
        assert decision(path) != decision(around) or path.network.prefixlen == 0


# --- The kernel as the judge ---


def kernel_route(ipr: Any, address: Address) -> tuple[str, str] | None:
    """The interface and the gateway that the kernel chooses; None if it would not send."""
    try:
        (found,) = ipr.route(
            "get", dst=str(address), family=INET6 if address.version == 6 else INET
        )
    except NetlinkError:
        return None
    gateway = (found.get("via") or {"addr": found.get("gateway") or ""})["addr"]
    return socket.if_indextoname(found.get("oif")), gateway


@dataclass(frozen=True)
class Family:
    """Where generated routes lead to."""

    base: int
    bits: int
    gateways: tuple[str, str]
    clear: tuple[dict[str, Any], ...]
    unclear: tuple[dict[str, Any], ...]

    def address(self, number: int) -> Address:
        """One of 256 addresses, which are what networks of up to eight bits tell apart."""
        packed = self.base + (number << (self.bits - 16)) + 7
        return ip_address(packed.to_bytes(self.bits // 8))


def hops(prefix: Callable[[int, int], str]) -> tuple[dict[str, Any], ...]:
    return (
        {"gateway": prefix(0, 10)},
        {"gateway": prefix(0, 11)},
        {"gateway": prefix(0, 99)},
        {"gateway": prefix(1, 10)},
        {"gateway": prefix(2, 10)},  # x0, which has no carrier
        {"dev": "v0"},
        {"dev": "w0"},
        *({"type": kind} for kind in ("blackhole", "unreachable", "prohibit", "throw")),
    )


def ipv4_host(network: int, host: int) -> str:
    return f"10.{network}.0.{host}"


def ipv6_host(network: int, host: int) -> str:
    return f"fd0{network}::{host:x}"


FAMILIES = {
    4: Family(
        int(ip_address("198.0.0.0")),
        32,
        ("10.0.0.10", "10.0.0.11"),
        (*hops(ipv4_host), {"via": {"family": INET6, "addr": "fd00::b"}, "dev": "v0"}),
        ({"gateway": "10.0.0.11", "tos": 0x10}, {"gateway": "10.1.0.10", "tos": 0x08}),
    ),
    6: Family(
        int(ip_address("2000::")),
        128,
        ("fd00::a", "fd00::b"),
        hops(ipv6_host),
        ({"gateway": "fd00::b", "src": "fd00::/16"}, {"gateway": "fd01::a", "src": "fd01::/16"}),
    ),
}


@dataclass(frozen=True)
class Drawn:
    """A generated route."""

    number: int
    length: int
    metric: int
    target: dict[str, Any]
    command: str

    def options(self, family: Family) -> dict[str, Any]:
        """What pyroute2 takes."""
        prefix = self.length + 8 if self.length else 0
        network = ip_network((family.address(self.number).packed, prefix), strict=False)
        options = {"dst": str(network), "priority": self.metric, **self.target}
        if "dev" in options:
            options["oif"] = socket.if_nametoindex(options.pop("dev"))
        return {**options, "family": INET6 if family.bits == 128 else INET}


def generated(family: Family, *, clear: bool) -> st.SearchStrategy[list[Drawn]]:
    targets, commands = [*family.clear], ["add"]
    if not clear:
        multipath = [{"gateway": gateway} for gateway in family.gateways]
        targets += [*family.unclear, {"multipath": multipath}]
        commands += ["append"]
    one = st.builds(
        Drawn,
        st.integers(0, 255),
        st.integers(0, 8),
        st.sampled_from([10, 20, 30]),
        st.sampled_from(targets),
        st.sampled_from(commands),
    )
    return st.lists(one, max_size=12)


@contextlib.contextmanager
def routes_added(ipr: Any, family: Family, routes: Iterable[Drawn]) -> Iterator[None]:
    """Meanwhile there are these routes, but for those that the kernel does not take."""
    added = []
    for each in routes:
        options = each.options(family)
        try:
            ipr.route(each.command, **options)
        except NetlinkError as error:
            # There is one such already, or no way to the gateway.
            if error.code not in {errno.EEXIST, errno.ENETUNREACH, errno.EHOSTUNREACH}:
                raise
        else:
            added.append(options)
    try:
        yield
    finally:
        for options in added:
            ipr.route("del", **options)


def add_interface_without_carrier(router: Router) -> None:
    """x0, which the kernel is told to ignore."""
    router.lab.veth(router.ns, "x0", router.far, "x1")
    router.lab.address(router.ns, "x0", "10.2.0.1/24", "fd02::1/64")
    for name in ("ipv4", "ipv6"):
        router.ns.write(f"/proc/sys/net/{name}/conf/x0/ignore_routes_with_linkdown", "1")
    router.lab.link_set(router.far, "x1", state="down")
    wait_until(
        lambda: router.lab.link(router.ns, "x0").get("operstate") != "UP", "x0 has no carrier"
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("clear", [True, False])
def test_direct_is_where_the_kernel_sends(router: Router, version: int, *, clear: bool) -> None:
    """And where every route is a plain one, all of that is direct."""
    family = FAMILIES[version]
    add_interface_without_carrier(router)

    @settings(max_examples=min(settings().max_examples, 30))
    @given(generated(family, clear=clear), st.lists(st.integers(0, 255), max_size=20))
    def check(routes: list[Drawn], numbers: list[int]) -> None:
        with router.ns.iproute() as ipr, routes_added(ipr, family, routes):
            paths = return_paths(interface("v0"))
            for number in {*numbers, *(each.number for each in routes)}:
                address = family.address(number)
                path, answer = lookup(paths, address), kernel_route(ipr, address)
                mac = MACS.get(answer) if answer else None
                if path is not None and path.direct:
                    assert path.gateway == mac, (path, answer)
                elif clear:
                    assert mac is None, (path, answer)

    check()


# --- Changes ---


def _neighbour(router: Router) -> None:
    router.lab.neighbour(router.ns, "v0", "10.0.0.50", "02:00:00:00:00:50")


def _address_gone(router: Router) -> None:
    """Routes that prefer the address as a source go with it, and without a word."""
    with router.ns.iproute() as ipr:
        index = socket.if_nametoindex("v0")
        ipr.addr("del", index=index, address="10.0.0.1", prefixlen=24)


def _sysctl(family: str) -> Callable[[Router], None]:
    path = f"/proc/sys/net/{family}/conf/v0/ignore_routes_with_linkdown"
    return lambda router: router.ns.write(path, "1")


@pytest.mark.parametrize(
    "change",
    [
        lambda router: router.add("198.51.100.0/24", gateway="10.0.0.10"),
        lambda router: router.add("2001:db8::/32", gateway="fd00::a"),
        lambda router: router.add("10.0.0.0/24", "del", dev="v0", scope=253),
        lambda router: router.add("fd00::/64", "del"),
        lambda router: router.rule(table=7, priority=100),
        lambda router: router.rule(table=7, priority=100, family=INET6),
        _neighbour,
        _address_gone,
        lambda router: router.lab.address(router.ns, "v0", "10.5.0.1/24"),
        lambda router: router.lab.address(router.ns, "v0", "fd05::1/64"),
        lambda router: router.lab.link_set(router.ns, "v0", state="down"),
        lambda router: router.lab.link_set(router.far, "v1", state="down"),
        _sysctl("ipv4"),
        _sysctl("ipv6"),
    ],
)
def test_a_change_is_heard(
    router: Router, monitor: Monitor, change: Callable[[Router], None]
) -> None:
    wait_until(lambda: not monitor.changed(), "the interfaces are quiet")
    change(router)
    select.select([monitor], [], [], 5.0)
    assert monitor.changed()


def test_routes_that_go_without_a_word_are_heard_of(lab: Lab) -> None:
    """As those of IPv4 do, with their interface; without IPv6 nothing else speaks for them."""
    ns = lab.namespace("ns")
    ns.write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    lab.veth(ns, "v0", ns, "v1")
    lab.address(ns, "v0", "10.0.0.1/24")
    with ns.enter():
        found = interface("v0")
        monitor = route_monitor()
        assert return_paths(found)
    with monitor:
        wait_until(lambda: not monitor.changed(), "the interfaces are quiet")
        lab.link_set(ns, "v0", state="down")
        assert monitor.changed()
        with ns.enter():
            assert return_paths(found) == ()
