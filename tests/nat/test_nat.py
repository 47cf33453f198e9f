"""`pktstun nat` says of every NAT and firewall what it is, whatever server it asks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pktstun.stun import OtherAddress
from tests.client.servers import NatDiscovery
from tests.nat.lab import (
    COMMAND,
    NAT_TYPES,
    OTHER_PORT,
    PORT,
    SERVERS,
    NatNetwork,
    NatType,
    observe,
    pktstun,
    server_params,
    small,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab import Lab

pytestmark = pytest.mark.root

# Silence is waited for 11 times as long; a round trip takes a thousandth of a second.
FIREWALL_IPV6 = """table ip6 lab {
    chain between {
        type filter hook forward priority 0
        iifname "wan" ct state established accept
        iifname "wan" meta l4proto udp drop
    }
}
"""
FAST = ["--rto", "0.1"]


@pytest.fixture(params=server_params())
def served(request: pytest.FixtureRequest, net: NatNetwork, tmp_path: Path) -> Iterator[NatNetwork]:
    with SERVERS[request.param](net, tmp_path):
        yield net


def ask(net: NatNetwork, *arguments: str) -> subprocess.CompletedProcess[str]:
    return net.client.run([*COMMAND, "nat", net.server_ips[0], *FAST, *arguments], timeout=30)


def report(net: NatNetwork, *arguments: str) -> dict[str, Any]:
    result = ask(net, "--json", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def as_type(answer: dict[str, Any]) -> NatType:
    return NatType(
        answer["mapping"] if answer["nat"] else None,
        answer["filtering"],
        answer["hairpinning"],
        answer["preserves_port"],
    )


@pytest.mark.parametrize("name", NAT_TYPES)
def test_every_nat_is_recognised(served: NatNetwork, name: str) -> None:
    nat = NAT_TYPES[name]
    served.become(nat)
    truth = observe(served)
    assert truth == nat
    answer = report(served)
    assert as_type(answer) == truth, answer
    assert answer["server"] == {"ip": served.server_ips[0], "port": PORT}
    assert answer["other"] == {"ip": served.server_ips[1], "port": OTHER_PORT}
    assert answer["local"]["ip"] == served.client_ip
    assert answer["mapped"]["ip"] == (served.public_ip if nat.mapping else served.client_ip)
    assert answer["rewrites_addresses"] is not True
    assert answer["notes"] == []


@pytest.fixture
def asked(net: NatNetwork, tmp_path: Path) -> Iterator[NatNetwork]:
    """The network with the tests' own server."""
    with small(net, tmp_path):
        yield net


def test_direct_mode_answers_from_all_its_addresses(net: NatNetwork, tmp_path: Path) -> None:
    net.become(NAT_TYPES["full cone"])
    with pktstun(net, tmp_path, how=("--iface", "s0", "--mode", "direct")):
        assert as_type(report(net)) == NAT_TYPES["full cone"]


def test_a_person_understands_it(asked: NatNetwork) -> None:
    asked.become(NAT_TYPES["port-restricted cone"])
    result = ask(asked)
    assert result.returncode == 0
    assert "Your NAT keeps one public address and port for all peers" in result.stdout
    assert "filtering    address and port-dependent" in result.stdout
    assert result.stderr == ""


def test_lost_packets_do_not_make_a_filter(net: NatNetwork) -> None:
    """Every request is lost twice before it is heard."""
    net.become(NAT_TYPES["full cone"])
    with NatDiscovery(net.server_ips, net.server, (PORT, OTHER_PORT), loss=2):
        assert as_type(report(net)) == NAT_TYPES["full cone"]


def test_over_ipv6_a_firewall_is_recognised(net: NatNetwork, lab: Lab) -> None:
    client_ip, router_ip, servers = "fd78::2", "fd78::1", ("fd79::10", "fd79::11")
    lab.address(net.client, "c0", f"{client_ip}/64")
    lab.address(net.router, "lan", f"{router_ip}/64")
    lab.address(net.router, "wan", "fd79::1/64")
    lab.address(net.server, "s0", *(f"{ip}/64" for ip in servers))
    lab.route(net.client, "default", router_ip)
    lab.route(net.server, "fd78::/64", "fd79::1")
    net.router.write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    net.router.run(["nft", FIREWALL_IPV6], check=True)
    with NatDiscovery(servers, net.server, (PORT, OTHER_PORT)):
        command = [*COMMAND, "nat", f"stun:[{servers[0]}]", *FAST, "--json"]
        answer = json.loads(net.client.run(command, check=True).stdout)
    assert (answer["nat"], answer["mapped"]["ip"]) == (False, client_ip)
    assert answer["filtering"] == "address-and-port-dependent"
    assert "A firewall lets in" in answer["summary"]


def test_where_udp_does_not_pass_it_says_so(asked: NatNetwork) -> None:
    asked.become(NAT_TYPES["symmetric"])
    asked.drop("meta l4proto udp")
    result = ask(asked)
    assert (result.returncode, result.stdout) == (1, "")
    assert "no answer from 198.51.100.10:3478 to 4 requests" in result.stderr
    assert "firewall" in result.stderr


def test_a_server_with_one_address_is_told_apart(net: NatNetwork) -> None:
    net.become(NAT_TYPES["symmetric"])
    with NatDiscovery(net.server_ips, net.server, (PORT, OTHER_PORT), without=(OtherAddress,)):
        result = ask(net)
    assert (result.returncode, result.stdout) == (1, "")
    assert "does not support RFC 5780" in result.stderr
    assert "behind a NAT" in result.stderr


def test_the_other_address_out_of_reach_is_told(asked: NatNetwork) -> None:
    asked.become(NAT_TYPES["port-restricted cone"])
    asked.drop(f"ip daddr {asked.server_ips[1]}")
    result = ask(asked, "--json")
    assert result.returncode == 1
    answer = json.loads(result.stdout)
    assert answer["mapping"] is None
    assert "198.51.100.11" in answer["notes"][0]


@pytest.mark.parametrize("lifetime", [1, None])
def test_the_lifetime_of_bindings_is_measured(served: NatNetwork, lifetime: int | None) -> None:
    served.become(NAT_TYPES["port-restricted cone"])
    if lifetime:
        for name in ("udp_timeout", "udp_timeout_stream"):
            served.router.write(f"/proc/sys/net/netfilter/nf_conntrack_{name}", str(lifetime))
    limit = 2 if lifetime else 1
    result = ask(served, "--json", "--lifetime", str(limit))
    alive, dead = json.loads(result.stdout)["lifetime_s"]
    if lifetime:
        assert alive <= lifetime + 0.1
        assert lifetime <= dead + 0.5
        assert dead - alive < 0.6
    else:
        assert (alive, dead) == (limit, None)
        assert "a binding is alive after 1.0 s" in result.stderr
