"""A frame that crashes whoever reads it: two deaths, then it is saved and passed over."""

from __future__ import annotations

import subprocess
import sys
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import Datagram, UDPSocket
from pktstun.stun import TransportAddress
from tests.faults import trap
from tests.faults.load import PORT, Load
from tests.faults.scorecard import modes, record, times
from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.faults]


@pytest.fixture(name="under", scope="module")
def under_fixture(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    require_root()
    return trap.build(tmp_path_factory.mktemp("trap"))


def poison(hosts: TwoHosts) -> None:
    with hosts.client.enter():
        own = TransportAddress(ip_address(hosts.client_ipv4[0]), 0)
        server = TransportAddress(ip_address(hosts.server_ipv4[0]), PORT)
        with UDPSocket(own, share=False) as sock:
            sock.sendmmsg([Datagram(trap.TRAP.encode(), server)])


@pytest.mark.alone
@pytest.mark.parametrize("mode", modes("ring", "direct"))
def test_a_poisoned_frame_kills_twice(
    spread: TwoHosts, under: list[str], tmp_path: Path, mode: str
) -> None:
    rounds = times(2, 10)
    state = f"STATE_DIRECTORY={tmp_path}"
    arguments = ["--iface", spread.server_if, "--mode", mode]
    with Server(spread.server, arguments, under=[*under, state]) as server:
        with Load(spread) as load:
            for number in range(rounds):
                time.sleep(0.5)
                poison(spread)
                wait_until(lambda: len(saved(tmp_path)) > number, "the frame", 10)  # noqa: B023
            result = load.result()
            drops = load.backlog_drops + result.send_errors
        deaths = server.log.count("ended with SIG")
        totals = server.totals()
    record(
        4,
        mode,
        f"a frame that crashes the worker, {rounds} times",
        "at most 2 deaths each, frame saved, everything else answered",
        f"{deaths / rounds:g} deaths each, {len(saved(tmp_path))} frames saved, {result.lost} of "
        f"{result.sent:,} others lost",
    )
    assert deaths == 2 * rounds
    assert totals["dropped.poison"] == rounds
    assert result.lost <= drops
    assert result.wrong == {}
    for file in saved(tmp_path):
        said = subprocess.run(
            [sys.executable, "-m", "pktstun", "decode", str(file)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert trap.TRAP.transaction_id.hex() in said.stdout.replace(" ", "")


def saved(directory: Path) -> list[Path]:
    return sorted(directory.glob("worker-*/poison-*.pcap"))


def test_poison_costs_sockets_one_worker_each(hosts: TwoHosts, under: list[str]) -> None:
    """A datagram that recvmmsg has handed over is gone with its reader."""
    arguments = ["--iface", hosts.server_if, "--mode", "recvmmsg"]
    with Server(hosts.server, arguments, under=under) as server:
        poison(hosts)
        wait_until(lambda: server.log.count(" started on CPU ") > len(server.worker_pids()), "it")
        assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 100).lost == 0
        assert server.log.count("ended with SIG") == 1


def test_where_nothing_can_be_saved_the_service_goes_on(hosts: TwoHosts, under: list[str]) -> None:
    arguments = ["--iface", hosts.server_if]
    nowhere = "STATE_DIRECTORY=/proc/nowhere"
    with Server(hosts.server, arguments, under=[*under, nowhere]) as server:
        poison(hosts)
        wait_until(lambda: "it cannot be saved in /proc/nowhere" in server.log, "the complaint", 10)
        assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 100).lost == 0


@pytest.mark.parametrize("mode", modes("ring", "direct"))
def test_several_in_one_block(hosts: TwoHosts, under: list[str], tmp_path: Path, mode: str) -> None:
    """Each costs its two deaths, whatever else is in the block."""
    state = f"STATE_DIRECTORY={tmp_path}"
    # A block is retired when it is full or after a tenth of a second.
    arguments = ["--iface", hosts.server_if, "--mode", mode, "--retire-timeout", "100"]
    with Server(hosts.server, arguments, under=[*under, state]) as server:
        for _ in range(3):
            poison(hosts)
        wait_until(lambda: len(saved(tmp_path)) == 3, "three frames", 15)
        assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 100).lost == 0
        assert server.log.count("ended with SIG") == 6
        assert server.totals()["dropped.poison"] == 3
