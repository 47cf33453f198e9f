"""Rules are seen as nft and iptables make them, and what they are about is recognised."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.kernel.netfilter import (
    BaseChain,
    Rule,
    base_chains,
    parse_rule,
    rules,
    tracked_connections,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Namespace, TwoHosts

RULES = """
table inet one {
  chain requests {
    type filter hook prerouting priority raw; policy drop;
    udp dport 3478 notrack
    udp sport 3478 notrack
    udp dport != 9 notrack
    tcp dport 80 accept
  }
  chain unused { udp dport 1 notrack; }
  chain state { type filter hook input priority 0; ct state new accept; }
  chain refuse { type filter hook output priority 0; udp dport 5 drop; udp dport 6 reject; }
}
table ip two {
  chain nat { type nat hook postrouting priority srcnat; masquerade; }
}
table netdev three {
  chain early { type filter hook ingress device lo priority 0; }
}
"""


def make(ns: Namespace, directory: Path) -> None:
    file = directory / "rules.nft"
    file.write_text(RULES)
    ns.run(["nft", "-f", file], check=True)


@given(st.binary(max_size=200))
def test_any_bytes_are_some_rule(expressions: bytes) -> None:
    rule = parse_rule("inet", "t", "c", expressions)
    assert (rule.family, rule.table, rule.chain) == ("inet", "t", "c")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("match", "conntrack", Rule("ip", "t", "c", tracks=True)),
        ("target", "MASQUERADE", Rule("ip", "t", "c", tracks=True, translates=True)),
        ("target", "REJECT", Rule("ip", "t", "c", refuses=True)),
        ("match", "udp", Rule("ip", "t", "c")),
    ],
)
def test_what_iptables_nft_makes_is_known_by_its_names(
    kind: str, name: str, expected: Rule
) -> None:
    data = attribute(1, name.encode() + b"\0")
    expression = attribute(1, kind.encode() + b"\0") + attribute(2, data)
    assert parse_rule("ip", "t", "c", attribute(1, expression)) == expected


@pytest.mark.root
def test_a_namespace_without_rules(hosts: TwoHosts) -> None:
    with hosts.server.enter():
        assert rules() == ()
        assert base_chains() == ()
        assert tracked_connections(3478, 100) == 0


@pytest.mark.root
@pytest.mark.peers
def test_what_nft_makes(hosts: TwoHosts, tmp_path: Path) -> None:
    make(hosts.server, tmp_path)
    with hosts.server.enter():
        found, chains = rules(), base_chains()
    assert set(chains) == {
        BaseChain("inet", "one", "requests", "prerouting", "filter", drops=True),
        BaseChain("inet", "one", "state", "input", "filter", drops=False),
        BaseChain("inet", "one", "refuse", "output", "filter", drops=False),
        BaseChain("ip", "two", "nat", "postrouting", "nat", drops=False),
        BaseChain("netdev", "three", "early", "ingress", "filter", drops=False),
    }
    assert found == (
        Rule("inet", "one", "requests", untracks=(3478,)),
        Rule("inet", "one", "requests", untracks_sources=(3478,)),
        Rule("inet", "one", "requests"),
        Rule("inet", "one", "requests"),
        Rule("inet", "one", "unused", untracks=(1,)),
        Rule("inet", "one", "state", tracks=True),
        Rule("inet", "one", "refuse", refuses=True),
        Rule("inet", "one", "refuse", refuses=True),
        Rule("ip", "two", "nat", tracks=True, translates=True),
    )


@pytest.mark.root
@pytest.mark.peers
def test_tracked_connections_of_a_port(hosts: TwoHosts, tmp_path: Path) -> None:
    file = tmp_path / "rules.nft"
    file.write_text(
        "table inet t { chain c { type filter hook input priority 0; ct state new; }; }"
    )
    hosts.server.run(["nft", "-f", file], check=True)
    for family, address in (
        (socket.AF_INET, hosts.server_ipv4[0]),
        (socket.AF_INET6, hosts.server_ipv6[0]),
    ):
        for port in (3478, 3478, 3479):
            with hosts.client.socket(family, socket.SOCK_DGRAM) as client:
                client.sendto(b"?", (address, port))
    with hosts.server.enter():
        assert tracked_connections(3478, 1000) == 4
        assert tracked_connections(3479, 1000) == 2
        assert tracked_connections(3477, 1000) == 0
