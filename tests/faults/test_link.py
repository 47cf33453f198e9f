"""The interface goes down, comes up, is removed and made again, renamed; addresses come and go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.link import REPORT_BURST
from tests.faults.load import Clients, measured_cpu
from tests.faults.scorecard import modes, record, times
from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import Lab, TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.faults, pytest.mark.alone]

REPLACED = "every worker has been replaced"


@pytest.fixture(name="mode", params=modes("ring", "direct", "recvmmsg"))
def mode_fixture(request: pytest.FixtureRequest) -> str:
    require_root()
    return str(request.param)


def serve(hosts: TwoHosts, mode: str, *more: str) -> Server:
    return Server(hosts.server, ["--iface", hosts.server_if, "--mode", mode, *more])


def is_answered(hosts: TwoHosts, address: str | None = None, patience: float = 0.02) -> bool:
    try:
        result = ask(
            hosts.client,
            hosts.client_ipv4[0],
            address or hosts.server_ipv4[0],
            1,
            patience=patience,
            linger=0.0,
        )
    except OSError:
        return False  # the client has no link either
    assert result.wrong == []
    return result.lost == 0


def plug_in(lab: Lab, hosts: TwoHosts, name: str | None = None) -> None:
    """Make the link between the two hosts (again), with all its addresses and neighbours."""
    name = name or hosts.server_if
    server = (hosts.server, name, hosts.server_ipv4, hosts.server_ipv6)
    client = (hosts.client, hosts.client_if, hosts.client_ipv4, hosts.client_ipv6)
    lab.veth(*server[:2], *client[:2])
    for ns, ifname, ipv4, ipv6 in (server, client):
        lab.address(ns, ifname, *(f"{ip}/24" for ip in ipv4), *(f"{ip}/64" for ip in ipv6))
    for here, there in ((server, client), (client, server)):
        mac = lab.link(*there[:2]).get("address")
        for ip in there[2] + there[3]:
            lab.neighbour(*here[:2], ip, mac)


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_down_and_up(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    flaps = times(5, 50)
    mac = lab.link(hosts.client, hosts.client_if).get("address")
    with serve(hosts, mode) as server:
        lab.link_set(hosts.server, hosts.server_if, state="down")
        wait_until(lambda: "is down" in server.log, "the line in the log")
        time.sleep(0.5)
        wait_until(lambda: is_settled(server), "calm")  # its IPv6 addresses are gone, too
        with measured_cpu(server.process.pid) as shares:
            time.sleep(1.0)
        delays = []
        for _ in range(flaps):
            lab.link_set(hosts.server, hosts.server_if, state="down")
            time.sleep(0.05)
            lab.link_set(hosts.server, hosts.server_if, state="up")
            wait_until(
                lambda: lab.link(hosts.server, hosts.server_if).get("operstate") == "UP", "the link"
            )
            # Taking it down has made the kernel forget what it knew of the other side.
            lab.neighbour(hosts.server, hosts.server_if, hosts.client_ipv4[0], mac)
            began = time.monotonic()
            wait_until(lambda: is_answered(hosts), "service")
            delays.append(time.monotonic() - began)
        assert "ended with" not in server.log
        assert server.process.poll() is None
    record(
        9,
        mode,
        f"link down and up, {flaps} flaps",
        "CPU below 5 % while down; first reply within 200 ms of up",
        f"CPU {shares[0]:.1%}; first reply after {max(delays) * 1e3:.0f} ms at most",
    )
    assert shares[0] < 0.05
    assert max(delays) <= 0.2


def test_removed_and_made_again(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    rounds = times(4, 20)
    delays, counts = [], []
    with serve(hosts, mode) as server:
        for number in range(rounds):
            lab.delete_link(hosts.server, hosts.server_if)
            time.sleep(0.2)
            plug_in(lab, hosts)
            began = time.monotonic()
            wait_until(lambda: is_answered(hosts), "service")
            delays.append(time.monotonic() - began)
            if mode != "recvmmsg":  # the sockets answer until the rings are back
                wait_until(lambda: server.log.count("is back") > number, "the rings")  # noqa: B023
            wait_until(lambda: is_settled(server), "calm")
            assert is_answered(hosts, patience=1)
            counts.append(descriptors(server))
        log = server.log
    record(
        10,
        mode,
        f"interface deleted and made again, {rounds} times",
        "service within 1 s; no descriptor leaks",
        f"after {max(delays):.2f} s at most; {counts[0]} descriptors at first, {counts[-1]} last",
    )
    assert max(delays) <= 1.0
    assert counts[0] == counts[-1]
    if mode != "recvmmsg":
        assert log.count("is gone; serving resumes when it comes back") == rounds
        assert log.count(f"interface {hosts.server_if} is back") == rounds


def is_settled(server: Server) -> bool:
    """Whether every worker follows the last change."""
    log = server.log
    return log.rfind(REPLACED) >= log.rfind("INFO serving ")


def test_renamed(hosts: TwoHosts, mode: str) -> None:
    with serve(hosts, mode) as server, Clients(hosts) as clients:
        with hosts.server.iproute() as ipr:
            (index,) = ipr.link_lookup(ifname=hosts.server_if)
            ipr.link("set", index=index, ifname="other0")
        wait_until(lambda: "is called other0 now" in server.log, "the line in the log")
        assert is_answered(hosts, patience=1)
        clients.finish()
    record(
        10,
        mode,
        "interface renamed",
        "service goes on",
        f"{clients.failed} of {clients.answered + clients.failed:,} clients failed, "
        f"{clients.retransmissions} retransmissions",
    )
    assert clients.failed == 0


def test_moved_to_another_namespace_and_back(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    elsewhere = lab.namespace("elsewhere")
    with serve(hosts, mode):
        lab.link_set(hosts.server, hosts.server_if, net_ns_fd=elsewhere.fd)
        time.sleep(0.2)
        lab.link_set(elsewhere, hosts.server_if, net_ns_fd=hosts.server.fd)
        lab.link_set(hosts.server, hosts.server_if, state="up")
        lab.address(hosts.server, hosts.server_if, f"{hosts.server_ipv4[0]}/24")
        mac = lab.link(hosts.client, hosts.client_if).get("address")
        lab.neighbour(hosts.server, hosts.server_if, hosts.client_ipv4[0], mac)
        began = time.monotonic()
        wait_until(lambda: is_answered(hosts), "service")
        assert time.monotonic() - began <= 1.0


@pytest.mark.parametrize("listen", ["default", "explicit"])
def test_addresses_come_and_go(lab: Lab, hosts: TwoHosts, mode: str, listen: str) -> None:
    first, second, added = hosts.server_ipv4[0], hosts.server_ipv4[1], "10.77.0.9"
    options = [] if listen == "default" else ["--listen", first, "--listen", second]
    mac = lab.link(hosts.server, hosts.server_if).get("address")
    lab.neighbour(hosts.client, hosts.client_if, added, mac)
    with serve(hosts, mode, *options) as server:
        assert is_answered(hosts, second, patience=1)
        seen = server.log.count(REPLACED)
        remove_address(hosts, second)
        wait_until(lambda: server.log.count(REPLACED) > seen, "the change")
        silent = not is_answered(hosts, second, patience=0.3)
        lab.address(hosts.server, hosts.server_if, f"{second}/24")
        began = time.monotonic()
        wait_until(lambda: is_answered(hosts, second), "the address is back")
        delay = time.monotonic() - began
        wait_until(lambda: is_settled(server), "calm")
        seen = server.log.count(REPLACED)
        lab.address(hosts.server, hosts.server_if, f"{added}/24")
        if listen == "default":
            wait_until(lambda: server.log.count(REPLACED) > seen, "the change")
        new = is_answered(hosts, added, patience=0.5)
        assert is_answered(hosts, first, patience=1)
    asked_for = listen == "default"
    record(
        11,
        f"{mode}, {listen} addresses",
        "an address removed and added",
        "the removed one is silent; one that is back, or asked for, answers",
        f"{'silent' if silent else 'ANSWERS'}; back after {delay:.2f} s; "
        f"another one {'answers' if new else 'is silent'}",
    )
    assert silent
    assert delay <= 1.0
    assert new == asked_for


def remove_address(hosts: TwoHosts, address: str) -> None:
    with hosts.server.iproute() as ipr:
        (index,) = ipr.link_lookup(ifname=hosts.server_if)
        ipr.addr("del", index=index, address=address, prefixlen=24)


def test_an_address_that_comes_and_goes_all_the_time(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    """The workers are not replaced for each, and the log has no line for each; the end counts."""
    added, seconds, pairs = "10.77.0.9", 3.0, 0
    mac = lab.link(hosts.server, hosts.server_if).get("address")
    lab.neighbour(hosts.client, hosts.client_if, added, mac)
    with serve(hosts, mode) as server:
        workers, quiet = len(server.worker_pids()), len(server.lines)
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            lab.address(hosts.server, hosts.server_if, f"{added}/24")
            time.sleep(0.08)
            remove_address(hosts, added)
            time.sleep(0.08)
            pairs += 1
        lab.address(hosts.server, hosts.server_if, f"{added}/24")
        wait_until(lambda: is_answered(hosts, added), "the address that has come last")
        wait_until(lambda: is_settled(server), "calm")
        rolls = 2 + time.monotonic() - began  # those that may come at once, and one a second
        lines = len(server.lines) - quiet
        starts = server.log.count("started on CPU") - workers
        reports = server.log.count(" has got ") + server.log.count(" has lost ")
    record(
        11,
        mode,
        f"an address added and removed {pairs} times in {seconds:g} s",
        "a roll a second; served at last",
        f"{starts / workers:g} rolls, {lines} lines in the log",
    )
    assert pairs > 2 * rolls  # or it shows nothing
    assert starts <= workers * rolls
    assert 0 < reports <= 2 * REPORT_BURST
    assert lines <= (workers + 3) * rolls + 2 * REPORT_BURST


def test_the_last_address_may_go(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    with serve(hosts, mode) as server:
        hosts.server.write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "1")
        for address in hosts.server_ipv4:
            remove_address(hosts, address)
        wait_until(lambda: is_settled(server) and REPLACED in server.log, "the change")
        wait_until(lambda: not is_answered(hosts, patience=0.2), "silence")
        assert not is_answered(hosts, patience=0.2)
        lab.address(hosts.server, hosts.server_if, f"{hosts.server_ipv4[0]}/24")
        wait_until(lambda: is_answered(hosts), "service")
        assert server.process.poll() is None


def test_the_mtu_changes(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    with serve(hosts, mode) as server:
        for mtu in (9000, 1280):
            lab.link_set(hosts.server, hosts.server_if, mtu=mtu)
            wait_until(lambda: f"MTU of {mtu} bytes" in server.log, "the line in the log")  # noqa: B023
            assert is_answered(hosts, patience=1)


@pytest.mark.parametrize("down_for", [0.0, 0.5])
def test_a_link_local_address_on_a_new_interface(
    lab: Lab, hosts: TwoHosts, mode: str, down_for: float
) -> None:
    """Its sockets belong to the interface that is gone, and so does its scope."""
    address = link_local(lab, hosts)
    with serve(hosts, mode, "--listen", f"[{address}]", "--listen", hosts.server_ipv4[0]) as server:
        lab.delete_link(hosts.server, hosts.server_if)
        time.sleep(0.2)
        plug_in(lab, hosts)
        mac = "02:00:00:00:00:77"
        lab.link_set(hosts.server, hosts.server_if, state="down", address=mac)
        time.sleep(down_for)
        lab.link_set(hosts.server, hosts.server_if, state="up")
        lab.address(hosts.server, hosts.server_if, f"{address}/64")
        lab.neighbour(hosts.client, hosts.client_if, hosts.server_ipv4[0], mac)
        neighbour = lab.link(hosts.client, hosts.client_if).get("address")
        lab.neighbour(hosts.server, hosts.server_if, hosts.client_ipv4[0], neighbour)
        wait_until(lambda: is_answered(hosts), "service")
        wait_until(lambda: is_settled(server), "calm")
        assert is_answered(hosts, patience=1)
        assert server.process.poll() is None
        assert "the system refuses" not in server.log


def link_local(lab: Lab, hosts: TwoHosts) -> str:
    address = "fe80::77"
    lab.address(hosts.server, hosts.server_if, f"{address}/64")
    return address
