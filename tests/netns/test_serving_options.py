"""The options of `serve` that say how, not what: takeover, CPUs, tuning; granted or refused."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import ingress_programs, interface
from pktstun.stun import Message
from pktstun.worker import NICE
from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection

    from tests.lab import Lab, Namespace, TwoHosts

pytestmark = pytest.mark.root

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


def programs(hosts: TwoHosts) -> int:
    """How many programs are at the ingress of the server's interface."""
    with hosts.server.enter():
        return len(ingress_programs(interface(hosts.server_if).index))


def check(hosts: TwoHosts, count: int = 300) -> None:
    for client, server in (
        (hosts.client_ipv4[0], hosts.server_ipv4[0]),
        (hosts.client_ipv6[0], hosts.server_ipv6[0]),
    ):
        result = ask(hosts.client, client, server, count)
        assert (result.lost, result.duplicates, result.wrong) == (0, 0, [])


def serve(
    ns: Namespace, *arguments: str, without: Collection[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a service that is expected to refuse."""
    command = [sys.executable, "-m", "pktstun", "serve", *arguments]
    return ns.run(command, drop_capabilities=without, timeout=20)


# --- Takeover ---


@pytest.mark.parametrize("mode", ["ring", "direct"])
def test_the_takeover_is_on_by_default_and_ends_with_the_service(
    hosts: TwoHosts, mode: str
) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", mode]) as server:
        assert " takeover=on " in server.ready
        assert programs(hosts) == 1
        check(hosts)
        # The kernel has not even counted what it did not get.
        snmp = hosts.server.snmp()
        assert snmp["Udp"]["InDatagrams"] == snmp["Udp"]["InErrors"] == 0
        assert snmp["Udp6"]["InDatagrams"] == snmp["Udp6"]["InErrors"] == 0
    assert programs(hosts) == 0


def test_without_takeover_the_sockets_drop_the_copy(hosts: TwoHosts) -> None:
    arguments = ["--iface", hosts.server_if, "--no-takeover"]
    with Server(hosts.server, arguments) as server:
        assert " takeover=off " in server.ready
        assert programs(hosts) == 0
        check(hosts)
        assert hosts.server.snmp()["Udp"]["InErrors"] == 300


@pytest.mark.parametrize("victim", ["supervisor", "worker"])
def test_the_program_outlives_workers_and_not_the_supervisor(hosts: TwoHosts, victim: str) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if]) as server:
        workers = server.worker_pids()
        if victim == "worker":
            for pid in workers.values():
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not set(workers.values()) & set(server.worker_pids().values()), "")
            assert programs(hosts) == 1
            check(hosts)
        else:
            server.process.kill()
            server.process.wait(5)
            wait_until(lambda: programs(hosts) == 0, "the program is gone")


def test_where_it_cannot_be_the_filter_does_it_and_the_log_says_so(hosts: TwoHosts) -> None:
    with Server(
        hosts.server, ["--iface", hosts.server_if], without=["bpf", "sys_admin", "net_admin"]
    ) as server:
        assert " takeover=off " in server.ready
        assert "takeover needs CAP_BPF and CAP_NET_ADMIN" in server.log
        check(hosts)
        assert hosts.server.snmp()["Udp"]["InErrors"] == 300


def test_where_it_cannot_be_but_must_the_service_refuses(hosts: TwoHosts) -> None:
    result = serve(
        hosts.server,
        *("--iface", hosts.server_if, "--takeover"),
        without=["bpf", "sys_admin", "net_admin"],
    )
    assert result.returncode == 77
    assert "AmbientCapabilities=CAP_BPF CAP_NET_ADMIN" in result.stderr


def test_without_a_ring_there_is_nothing_to_take_over(hosts: TwoHosts) -> None:
    result = serve(hosts.server, "--mode", "recvmmsg", "--takeover")
    assert result.returncode == 78
    assert "--mode ring" in result.stderr


def test_a_takeover_of_nothing_is_refused(hosts: TwoHosts) -> None:
    listen = ["--iface", hosts.server_if, "--listen", "127.0.0.1"]
    result = serve(hosts.server, *listen, "--takeover")
    assert result.returncode == 78
    assert "--listen" in result.stderr
    with Server(hosts.server, listen) as server:
        assert " takeover=off " in server.ready


def test_a_port_of_a_bridge_is_served_by_the_bridge(lab: Lab, hosts: TwoHosts) -> None:
    """By the port, the sockets would get what the ring has answered, as the bridge's."""
    with hosts.server.iproute() as ipr:
        ipr.link("add", ifname="br0", kind="bridge")
    lab.link_set(hosts.server, "br0", state="up")
    with hosts.server.enter():
        bridge = socket.if_nametoindex("br0")
    lab.link_set(hosts.server, hosts.server_if, master=bridge)
    with hosts.server.enter():
        assert interface(hosts.server_if).master == bridge
    for mode in ("ring", "direct"):
        result = serve(hosts.server, "--iface", hosts.server_if, "--mode", mode)
        assert result.returncode == 78
        assert "br0" in result.stderr
    lab.address(hosts.server, "br0", "10.77.0.9/24")
    mac = lab.link(hosts.server, "br0").get("address")
    lab.neighbour(hosts.client, hosts.client_if, "10.77.0.9", mac)
    for takeover in ("--takeover", "--no-takeover"):
        with Server(hosts.server, ["--iface", "br0", takeover]):
            asked = ask(hosts.client, hosts.client_ipv4[0], "10.77.0.9", 100)
            assert (asked.lost, asked.duplicates, asked.wrong) == (0, 0, [])


@pytest.mark.parametrize("mode", ["ring", "direct"])
def test_a_link_local_address_is_served_on_its_own_link(
    lab: Lab, hosts: TwoHosts, mode: str
) -> None:
    lab.veth(hosts.server, "w0", hosts.client, "w1")
    lab.address(hosts.server, "w0", "fe80::99/64")
    mac = lab.link(hosts.server, hosts.server_if).get("address")
    lab.neighbour(hosts.client, hosts.client_if, "fe80::99", mac)
    request = Message.request().encode()
    with Server(
        hosts.server, ["--iface", hosts.server_if, "--mode", mode, "--listen", "::"]
    ) as server:
        with hosts.client.enter():
            index = socket.if_nametoindex(hosts.client_if)
        with hosts.client.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.sendto(request, ("fe80::99", 3478, 0, index))
        totals = server.wait_for(1)
        assert totals["answered"] == 0
        assert totals["dropped.not_for_us"] == 1


# --- CPUs ---


def test_a_worker_for_each_cpu_that_serves_a_queue(lab: Lab, hosts: TwoHosts) -> None:
    lab.threaded_napi(hosts.server, hosts.server_if)
    lab.pin_napi(hosts.server, hosts.server_if, CPUS[-1])
    with Server(hosts.server, ["--iface", hosts.server_if]) as server:
        assert f" workers=0@cpu{CPUS[-1]}:rx0 " in server.ready
        check(hosts)


def test_where_it_cannot_be_told_every_cpu_has_a_worker(hosts: TwoHosts) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if]) as server:
        workers = ",".join(f"{number}@cpu{cpu}" for number, cpu in enumerate(CPUS))
        assert f" workers={workers} " in server.ready


# --- Tuning ---


@pytest.mark.parametrize("mode", ["ring", "direct", "recvmmsg"])
@pytest.mark.parametrize(
    "options",
    [
        ["--batch", "1"],
        ["--batch", "1024", "--block-size", "4096", "--blocks", "8", "--retire-timeout", "5"],
        ["--block-size", "1048576", "--blocks", "16"],
        ["--busy-poll", "200"],
        ["--busy-poll", "1000000"],
    ],
)
def test_all_are_answered_under_every_setting(
    hosts: TwoHosts, mode: str, options: list[str]
) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", mode, *options]) as server:
        check(hosts)
        totals = server.totals()
        assert totals["answered"] == totals["sent"] == 600


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--batch", "0"], "1..1024"),
        (["--batch", "1025"], "1..1024"),
        (["--block-size", "5000"], "multiple of 4096"),
        (["--blocks", "7"], "not in 8.."),
        (["--retire-timeout", "0"], "not in 1..10000 ms"),
        (["--busy-poll", "-1"], "busy-poll"),
        (["--busy-poll", "1000001"], "busy-poll"),
        (["--nice", "-21"], "-20 to 19"),
        (["--nice", "20"], "-20 to 19"),
    ],
)
def test_a_setting_out_of_range_is_refused(hosts: TwoHosts, options: list[str], word: str) -> None:
    result = serve(hosts.server, *options)
    # What argparse itself looks at is wrong usage.
    assert result.returncode == (2 if options[0] == "--nice" else 78)
    assert word in result.stderr
    assert options[0] in result.stderr


def test_workers_go_first(hosts: TwoHosts) -> None:
    for options, nice in (([], NICE), (["--nice", "3"], 3)):
        with Server(hosts.server, ["--iface", hosts.server_if, *options]) as server:
            pids = server.worker_pids().values()
            assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {nice}
            # A nice value counts within the session; where sessions compete, it needs its own.
            groups = [Path(f"/proc/{pid}/autogroup") for pid in pids]
            assert {each.read_text().split()[-1] for each in groups if each.exists()} <= {str(nice)}
            # The supervisor only looks after them.
            assert os.getpriority(os.PRIO_PROCESS, server.process.pid) == 0


def test_without_the_privilege_only_a_wish_for_it_is_an_error(hosts: TwoHosts) -> None:
    without = ["sys_nice"]
    with Server(hosts.server, ["--iface", hosts.server_if], without=without) as server:
        pids = server.worker_pids().values()
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {0}
    result = serve(hosts.server, "--iface", hosts.server_if, "--nice", "-5", without=without)
    assert result.returncode == 77
    assert "CAP_SYS_NICE" in result.stderr


def test_a_nice_value_that_somebody_chose_is_kept(hosts: TwoHosts) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if], under=["nice", "-n", "5"]) as server:
        pids = server.worker_pids().values()
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {5}
