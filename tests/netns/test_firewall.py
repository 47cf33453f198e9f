"""Which of the host's rules keep requests out, mode by mode.

A packet ring has its copy of a frame before any rule but an XDP program sees it; recvmmsg mode
reads what all of them let through. Of the rules for what leaves, direct mode's replies pass those
of the netdev egress hook alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import TcxLink, interface, takeover
from pktstun.kernel.ebpf import EbpfProgram, bpf, leave
from pktstun.kernel.tcx import _BPF_LINK_CREATE, _LINK
from pktstun.stun import Message, TransportAddress
from tests.lab import require_root
from tests.netns.client import ask
from tests.netns.server import Server
from tests.netns.wire import PORT, Ends, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.root

# linux/bpf.h, linux/if_link.h
_BPF_PROG_TYPE_XDP, _BPF_XDP, _XDP_DROP, _XDP_FLAGS_SKB_MODE = 6, 37, 1, 2

MODES = {
    "recvmmsg": "recvmmsg",
    "ring": "ring --no-takeover",
    "ring takeover": "ring --takeover",
    "direct": "direct --no-takeover",
    "direct takeover": "direct --takeover",
}
ALL = frozenset(MODES)
RINGS = ALL - {"recvmmsg"}
DIRECT = frozenset({"direct", "direct takeover"})


# --- The rules ---


@contextlib.contextmanager
def nft(hosts: TwoHosts, directory: Path, family: str, chain: str, rule: str) -> Iterator[None]:
    file = directory / "rules.nft"
    lines = [f"table {family} test {{", "chain c {", f"type filter {chain}", rule, "}", "}"]
    file.write_text("\n".join([*lines, ""]))
    hosts.server.run(["nft", "-f", file], check=True)
    yield
    hosts.server.run(["nft", "delete", "table", family, "test"], check=True)


@contextlib.contextmanager
def tc_ingress(hosts: TwoHosts, _directory: Path) -> Iterator[None]:
    """A program at tc ingress that drops what is sent to the server."""
    addresses = [*hosts.server_ipv4, *hosts.server_ipv6]
    program = takeover(TransportAddress(ip_address(each), PORT) for each in addresses)
    with hosts.server.enter():
        link = TcxLink(interface(hosts.server_if).index, program)
    with link:
        yield


@contextlib.contextmanager
def xdp(hosts: TwoHosts, _directory: Path) -> Iterator[None]:
    """An XDP program that drops everything."""
    program = EbpfProgram.build(leave(_XDP_DROP)).load(_BPF_PROG_TYPE_XDP, _BPF_XDP, "drop")
    with hosts.server.enter():
        index = interface(hosts.server_if).index
        attributes = bytearray(_LINK.pack(program, index, _BPF_XDP, _XDP_FLAGS_SKB_MODE))
        link = bpf(_BPF_LINK_CREATE, attributes, "attaching an XDP program")
    yield
    os.close(link)
    os.close(program)


def rule(
    family: str, chain: str, match: str = f"udp dport {PORT}"
) -> Callable[[TwoHosts, Path], AbstractContextManager[None]]:
    return lambda hosts, directory: nft(
        hosts, directory, family, chain.format(hosts.server_if), f"{match} drop"
    )


_REPLY = f"udp sport {PORT}"

RULES = {
    "INPUT": (rule("inet", "hook input priority 0"), RINGS),
    "raw PREROUTING": (rule("inet", "hook prerouting priority raw"), RINGS),
    "netdev ingress": (rule("netdev", "hook ingress device {} priority 0"), RINGS),
    "tc ingress": (tc_ingress, RINGS),
    "XDP": (xdp, frozenset()),
    "OUTPUT": (rule("inet", "hook output priority 0", _REPLY), DIRECT),
    "netdev egress": (
        rule("netdev", "hook egress device {} priority 0", _REPLY),
        frozenset(),
    ),
}
"""What drops requests, or replies, and the modes in which they are answered all the same."""


def answered(hosts: TwoHosts, *, expected: bool) -> bool:
    """Whether requests of both families are answered; all of them or none."""
    lost = 0
    for client, server in (
        (hosts.client_ipv4[0], hosts.server_ipv4[0]),
        (hosts.client_ipv6[0], hosts.server_ipv6[0]),
    ):
        patience = 5.0 if expected else 0.3
        result = ask(hosts.client, client, server, 5, patience=patience, linger=0.02)
        assert (result.duplicates, result.wrong) == (0, [])
        lost += result.lost
    assert lost in {0, 10}
    return lost == 0


@pytest.mark.peers
@pytest.mark.parametrize("mode", MODES)
def test_which_rules_apply(hosts: TwoHosts, tmp_path: Path, mode: str) -> None:
    require_root()
    arguments = ["--iface", hosts.server_if, "--mode", *MODES[mode].split()]
    with Server(hosts.server, arguments):
        assert answered(hosts, expected=True)
        found = {}
        for name, (applied, modes) in RULES.items():
            with applied(hosts, tmp_path):
                found[name] = answered(hosts, expected=mode in modes)
            assert answered(hosts, expected=True)
    assert found == {name: mode in modes for name, (_, modes) in RULES.items()}


@pytest.mark.parametrize("mode", MODES)
def test_the_reverse_path_filter_is_a_rule_like_others(
    lab: Lab, hosts: TwoHosts, mode: str
) -> None:
    """What it drops, since a source's route leads elsewhere, a ring answers: by that route."""
    lab.veth(hosts.server, "v2", hosts.client, "v3")
    lab.address(hosts.server, "v2", "10.78.0.1/24")
    lab.address(hosts.client, "v3", "10.78.0.2/24")
    lab.route(hosts.server, "100.64.0.0/10", via="10.78.0.2")
    hosts.server.write(f"/proc/sys/net/ipv4/conf/{hosts.server_if}/rp_filter", "0")
    ends, source = Ends.of(lab, hosts, ipv6=False), (ip_address("100.64.1.1"), 40000)
    requests = [ends.udp(Message.request().encode(), source=source) for _ in range(10)]
    arguments = ["--iface", hosts.server_if, "--mode", *MODES[mode].split()]
    answered = []
    with Server(hosts.server, arguments) as server, Wire(hosts.client, hosts.client_if) as wire:
        for strict in "01":
            hosts.server.write("/proc/sys/net/ipv4/conf/all/rp_filter", strict)
            before = server.totals()["answered"]
            wire.send(*requests)
            wire.until_answered(ends)
            answered.append(server.totals()["answered"] - before - 1)
    assert answered == [10, 10 if mode in RINGS else 0]


@pytest.mark.peers
def test_respect_firewall_means_recvmmsg(hosts: TwoHosts, tmp_path: Path) -> None:
    require_root()
    applied, _ = RULES["INPUT"]
    with Server(hosts.server, ["--iface", hosts.server_if, "--respect-firewall"]) as server:
        assert " mode=recvmmsg " in server.ready
        assert answered(hosts, expected=True)
        with applied(hosts, tmp_path):
            assert not answered(hosts, expected=False)


@pytest.mark.parametrize("mode", ["ring", "direct"])
def test_respect_firewall_and_a_ring_contradict_each_other(hosts: TwoHosts, mode: str) -> None:
    require_root()
    command = [sys.executable, "-m", "pktstun", "serve", "--iface", hosts.server_if]
    result = hosts.server.run([*command, "--mode", mode, "--respect-firewall"], timeout=20)
    assert result.returncode == 78
    assert "--respect-firewall" in result.stderr
    assert "use --mode recvmmsg, or leave it out" in result.stderr
