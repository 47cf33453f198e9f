"""A worker needs little memory, and no more for many clients: there is no state for any."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from pktstun.kernel import interface
from pktstun.kernel.load import LoadGenerator
from pktstun.stun import TransportAddress
from tests.faults.scorecard import modes
from tests.kernel.wire import mac_of
from tests.lab import Lab, TwoHosts, require_root
from tests.netns.server import Server

pytestmark = [pytest.mark.root, pytest.mark.alone]

MIB = 1 << 20
SOURCES = ip_network("100.64.0.0/10")
# Ten million take some minutes: PKTSTUN_MEMORY_REQUESTS=10000000.
REQUESTS = int(os.environ.get("PKTSTUN_MEMORY_REQUESTS", "60000"))
RATE = int(os.environ.get("PKTSTUN_MEMORY_RATE", "25000"))


def private_memory(pid: int) -> int:
    """Bytes that a process shares with nobody, its packet ring left aside (proc(5))."""
    total, in_ring = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            in_ring = "socket:[" in line
        elif not in_ring and (found := re.match(r"Private_\w+:\s+(\d+) kB", line)):
            total += int(found[1]) * 1024
    return total


@pytest.mark.parametrize("mode", modes("ring", "direct", "recvmmsg"))
@pytest.mark.timeout(60 + REQUESTS // RATE * 2)
def test_clients_cost_no_memory(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    require_root()
    lab.route(hosts.server, str(SOURCES), hosts.client_ipv4[0])
    server_address = TransportAddress(ip_address(hosts.server_ipv4[0]), 3478)
    mac = mac_of(lab, hosts.server, hosts.server_if)
    with hosts.client.enter():
        iface = interface(hosts.client_if)
        load = LoadGenerator(iface, server_address, SOURCES, mac)
    arguments = [
        "--iface",
        hosts.server_if,
        "--mode",
        mode,
        "--cpus",
        str(max(os.sched_getaffinity(0))),
    ]
    with load, Server(hosts.server, arguments) as server:
        (pid,) = server.worker_pids().values()
        # What is allocated once: buffers that are touched for the first time.
        assert load.run(10 * RATE, 1.0).replies > 0
        before = private_memory(pid)
        result = load.run(RATE, REQUESTS / RATE)
        assert result.replies > 0.9 * REQUESTS
        assert result.wrong == {}
        after = private_memory(pid)
    assert after < 25 * MIB
    assert after - before < MIB // 4
