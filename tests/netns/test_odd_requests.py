"""A flood in which every second request needs Python: the others are answered all the same."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import interface
from pktstun.kernel.load import LoadGenerator
from pktstun.stun import TransportAddress
from tests.faults.scorecard import modes, times
from tests.kernel.wire import mac_of
from tests.lab import require_root
from tests.netns.client import on_cpu
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import Lab, TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.alone]

SOURCES = ip_network("100.64.0.0/10")
RATE = times(40_000, 200_000)
"""Requests a second: Python answers some thousand of them in its share of the time."""
SECONDS = times(1, 5)


@pytest.mark.parametrize("mode", modes("ring", "direct", "recvmmsg"))
def test_the_fast_path_keeps_its_goodput(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    require_root()
    lab.route(hosts.server, str(SOURCES), hosts.client_ipv4[0])
    mac = mac_of(lab, hosts.server, hosts.server_if)
    with hosts.client.enter():
        load = LoadGenerator(
            interface(hosts.client_if),
            TransportAddress(ip_address(hosts.server_ipv4[0]), 3478),
            SOURCES,
            mac,
            odd_every=2,
        )
    cpus = sorted(os.sched_getaffinity(0))
    arguments = ["--iface", hosts.server_if, "--mode", mode, "--cpus", str(cpus[-1])]
    with load, Server(hosts.server, arguments) as server:
        with on_cpu(cpus[0]):
            result = load.run(RATE, SECONDS)
        totals = server.totals()
    plain = result.sent - result.sent // 2
    said = f"{result.replies:,} of {plain:,} answered, {result.errors:,} errors; {totals}"
    assert result.replies >= 0.9 * plain, said
    assert result.wrong == {}
    # It was a flood: Python had no time for all of them, but for some.
    assert totals["dropped.over_budget"] > 0
    assert result.errors > 0
