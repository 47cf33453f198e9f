"""The NAT laboratory: a client behind a router, and a server with two addresses in front of it.

Theory of operation. Three namespaces are in a row:

    client 10.78.0.2 --- lan 10.78.0.1 router 198.51.100.1 wan --- server 198.51.100.10 and .11

nftables makes the router a NAT or firewall of each kind of RFC 4787. Linux itself translates by
conntrack, whose filter depends on address and port; everything else is rules:

- Mapping. `masquerade` gives a source that has a mapping already the same one, if that lies in the
  range that the rule allows: so one range is an endpoint-independent mapping, a range for each
  server address is an address-dependent one, and `fully-random`, which takes a new port for each
  flow, is an address and port-dependent one.
- Filtering. Behind the translation, each outgoing packet notes in a map who has the public port,
  and in a set to which address that port has sent. What comes in and has no flow is given to who
  has the port (endpoint-independent), or only if its source is in the set (address-dependent).
- Hairpinning. What the client sends to the public address goes back to who has the port there,
  with the public address as its source.

`observe` says what a router does with the help of bare UDP sockets: STUN is not asked.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import product
from typing import TYPE_CHECKING

import pytest

from pktstun.client import Behaviour
from pktstun.stun import TransportAddress
from tests.client.peers import turnserver
from tests.client.servers import NatDiscovery
from tests.netns.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.lab import Lab, Namespace

PORT, OTHER_PORT = 3478, 3479

INDEPENDENT = Behaviour.ENDPOINT_INDEPENDENT
ADDRESS = Behaviour.ADDRESS_DEPENDENT
ADDRESS_AND_PORT = Behaviour.ADDRESS_AND_PORT_DEPENDENT

_QUIET = 0.15
"""Seconds without a datagram after which none is on its way: it takes less than a thousandth."""


@dataclass(frozen=True)
class NatType:
    """What a router does; mapping None translates nothing."""

    mapping: Behaviour | None
    filtering: Behaviour
    hairpinning: bool | None = None
    keeps_port: bool = True


NAT_TYPES = {
    "no NAT, no firewall": NatType(None, INDEPENDENT),
    "address-dependent firewall": NatType(None, ADDRESS),
    "firewall": NatType(None, ADDRESS_AND_PORT),
    "full cone": NatType(INDEPENDENT, INDEPENDENT, hairpinning=True),
    "full cone without hairpinning": NatType(INDEPENDENT, INDEPENDENT, hairpinning=False),
    "restricted cone": NatType(INDEPENDENT, ADDRESS, hairpinning=False),
    "port-restricted cone": NatType(INDEPENDENT, ADDRESS_AND_PORT, hairpinning=False),
    "port-restricted cone, other ports, hairpinning": NatType(
        INDEPENDENT, ADDRESS_AND_PORT, hairpinning=True, keeps_port=False
    ),
    "address-dependent": NatType(ADDRESS, ADDRESS, hairpinning=False, keeps_port=False),
    "symmetric": NatType(ADDRESS_AND_PORT, ADDRESS_AND_PORT, hairpinning=False, keeps_port=False),
    "symmetric, open, hairpinning": NatType(
        ADDRESS_AND_PORT, INDEPENDENT, hairpinning=True, keeps_port=False
    ),
}


@dataclass(frozen=True)
class NatNetwork:
    """The three namespaces."""

    client: Namespace
    router: Namespace
    server: Namespace
    client_ip: str = "10.78.0.2"
    lan_ip: str = "10.78.0.1"
    public_ip: str = "198.51.100.1"
    server_ips: tuple[str, str] = ("198.51.100.10", "198.51.100.11")

    def become(self, nat: NatType) -> None:
        """Make the router a NAT or firewall of a type, and nothing else."""
        self.router.run(["nft", "flush ruleset"], check=True)
        self.router.run(["nft", rules(self, nat)], check=True)

    def drop(self, match: str) -> None:
        """Have the router drop what matches a rule as well."""
        chain = f"type filter hook forward priority -10\n{match} drop\n"
        self.router.run(["nft", f"table ip lost {{\nchain c {{\n{chain}}}\n}}\n"], check=True)


def nat_network(lab: Lab) -> NatNetwork:
    """Build the namespaces; the router forwards everything."""
    net = NatNetwork(lab.namespace("client"), lab.namespace("router"), lab.namespace("server"))
    lab.veth(net.client, "c0", net.router, "lan")
    lab.veth(net.router, "wan", net.server, "s0")
    lab.address(net.client, "c0", f"{net.client_ip}/24")
    lab.address(net.router, "lan", f"{net.lan_ip}/24")
    lab.address(net.router, "wan", f"{net.public_ip}/24")
    lab.address(net.server, "s0", *(f"{ip}/24" for ip in net.server_ips))
    lab.route(net.client, "default", net.lan_ip)
    # Without a NAT the server answers the client itself.
    lab.route(net.server, "10.78.0.0/24", net.public_ip)
    net.router.write("/proc/sys/net/ipv4/ip_forward", "1")
    return net


def rules(net: NatNetwork, nat: NatType) -> str:
    """Return what nftables has to do."""
    udp = "meta l4proto udp"
    first, second = net.server_ips
    # The clients' own ports are all above 10000: these show that they are not kept.
    translate = {
        None: [],
        INDEPENDENT: [f"masquerade{'' if nat.keeps_port else ' to :2000-9999'}"],
        ADDRESS: [
            f"ip daddr {first} masquerade to :2000-5999",
            f"ip daddr {second} masquerade to :6000-9999",
        ],
        ADDRESS_AND_PORT: ["masquerade fully-random"],
    }[nat.mapping]
    outwards = [f'oifname "wan" {udp} {rule}' for rule in translate]
    inwards: list[str] = []
    forward: list[str] = []
    has_sent = "ip saddr . udp dport @contacted"
    give = "dnat ip to udp dport map @mapped"
    if nat.mapping is None:
        if nat.filtering is not INDEPENDENT:
            accept = has_sent if nat.filtering is ADDRESS else "ct state established"
            forward = [f'iifname "wan" {accept} accept', 'iifname "wan" drop']
    elif nat.filtering is not ADDRESS_AND_PORT:
        who = f"{has_sent} " if nat.filtering is ADDRESS else ""
        inwards.append(f'iifname "wan" {udp} {who}{give}')
    if nat.hairpinning:
        inwards.append(f'iifname "lan" ip daddr {net.public_ip} {udp} {give}')
        outwards.append(f'oifname "lan" ip saddr {net.client_ip} {udp} snat to {net.public_ip}')
    note_port = (
        f'oifname "wan" {udp} ct direction original update @mapped '
        "{ udp sport : ct original ip saddr . ct original proto-src }"
    )
    note_peer = f'oifname "wan" {udp} update @contacted {{ ip daddr . udp sport }}'
    chains = {
        "noting": ("filter hook postrouting priority 110", [note_port, note_peer]),
        "outwards": ("nat hook postrouting priority 100", outwards),
        "inwards": ("nat hook prerouting priority -100", inwards),
        "between": ("filter hook forward priority 0", forward),
    }
    kept = "flags dynamic, timeout; timeout 1m;"
    return "\n".join(
        [
            "table ip nat {",
            f"map mapped {{ type inet_service : ipv4_addr . inet_service; {kept} }}",
            f"set contacted {{ type ipv4_addr . inet_service; {kept} }}",
            *(
                f"chain {name} {{ type {kind};\n{chr(10).join(lines)}\n}}"
                for name, (kind, lines) in chains.items()
            ),
            "}",
        ]
    )


# --- The truth ---


def observe(net: NatNetwork) -> NatType:
    """Return what the router does, found out with bare UDP sockets."""
    with contextlib.ExitStack() as stack:

        def bound(namespace: Namespace, ip: str) -> socket.socket:
            sock = stack.enter_context(namespace.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((ip, 0))
            return sock

        def seen(sender: socket.socket, receiver: socket.socket) -> tuple[str, int]:
            """Return the source with which a datagram arrives."""
            sender.sendto(b"who am I?", receiver.getsockname())
            receiver.settimeout(5)
            address: tuple[str, int] = receiver.recvfrom(100)[1]
            return address

        first, first_port = (bound(net.server, net.server_ips[0]) for _ in range(2))
        second, second_port = (bound(net.server, net.server_ips[1]) for _ in range(2))
        mapper, open_, half, left, right = (bound(net.client, net.client_ip) for _ in range(5))

        public = [seen(mapper, each) for each in (first, second, second_port)]
        second_port.sendto(b"anybody", seen(open_, first))
        first_port.sendto(b"another port", seen(half, first))
        left_at, right_at = seen(left, first), seen(right, first)
        left.sendto(b"hairpin", right_at)
        right.sendto(b"hairpin", left_at)
        got_in = arrived([open_, half, left, right])
        local = mapper.getsockname()

    mapping: Behaviour | None = ADDRESS_AND_PORT
    if public[0] == local:
        mapping = None
    elif len(set(public)) == 1:
        mapping = INDEPENDENT
    elif public[1] == public[2]:
        mapping = ADDRESS
    filtering = ADDRESS_AND_PORT
    if open_ in got_in:
        filtering = INDEPENDENT
    elif half in got_in:
        filtering = ADDRESS
    return NatType(
        mapping,
        filtering,
        hairpinning=None if mapping is None else bool({left, right} & got_in),
        keeps_port=public[0][1] == local[1],
    )


def arrived(sockets: list[socket.socket]) -> set[socket.socket]:
    """Return the sockets that have got something, once nothing comes any more."""
    found: set[socket.socket] = set()
    end = time.monotonic() + _QUIET
    while (left := end - time.monotonic()) > 0:
        waiting = [sock for sock in sockets if sock not in found]
        found |= set(select.select(waiting, [], [], left)[0])
    return found


# --- The servers ---


@contextlib.contextmanager
def small(net: NatNetwork, _directory: Path) -> Iterator[None]:
    """The tests' own server."""
    with NatDiscovery(net.server_ips, net.server, (PORT, OTHER_PORT)):
        yield


@contextlib.contextmanager
def pktstun(
    net: NatNetwork, _directory: Path, how: tuple[str, ...] = ("--mode", "recvmmsg")
) -> Iterator[None]:
    """The project's own server."""
    listens = [word for ip in net.server_ips for word in ("--listen", ip)]
    with Server(net.server, [*how, *listens, "--nat-discovery", "--classic"]):
        yield


def coturn(net: NatNetwork, directory: Path) -> AbstractContextManager[None]:
    """The server of the distribution's package coturn."""
    listens = [word for ip in net.server_ips for word in ("-L", ip)]
    ports = ["-p", str(PORT), f"--alt-listening-port={OTHER_PORT}"]
    targets = [
        TransportAddress(ip_address(ip), port)
        for ip, port in product(net.server_ips, (PORT, OTHER_PORT))
    ]
    options = ["--stun-only", "--no-tcp", "--no-tls", *listens, *ports]
    return turnserver(net.server, directory, options, targets)


SERVERS: dict[str, Callable[[NatNetwork, Path], AbstractContextManager[None]]] = {
    "pktstun": pktstun,
    "coturn": coturn,
}
"""Servers with both addresses and ports of the network, to which RFC 3489 is known as well."""

PEERS = ["coturn"]
"""Those that are programs of the distribution."""

COMMAND = [sys.executable, "-m", "pktstun"]


def server_params() -> list[object]:
    """Return the servers for `pytest.mark.parametrize`, those of the distribution marked."""
    return [
        pytest.param(name, marks=[pytest.mark.peers] if name in PEERS else []) for name in SERVERS
    ]
