"""Metrics and health of a real service: what it tells, and that it lives with everything else."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.scorecard import modes
from tests.faults.test_reload import REFUSED, REPLACED, reload
from tests.faults.test_upgrade import Installation
from tests.lab import require_root, wait_until
from tests.metrics.scraping import Series, connect, get, health, scrape
from tests.netns.client import ask
from tests.netns.server import Server
from tests.netns.test_privileges import USER, capabilities, is_users, status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, TwoHosts
    from tests.stream_client import Authority

pytestmark = pytest.mark.root

STARTED = re.compile(r"metrics exporter started \(pid (\d+)\)")
CPUS = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture(name="directory")
def directory_fixture() -> Iterator[Path]:
    """A directory with a short name that everybody may write to."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield directory


@pytest.fixture(name="socket")
def socket_fixture(directory: Path) -> str:
    return str(directory / "m.sock")


@pytest.fixture(name="mode", params=modes("ring", "direct", "recvmmsg"))
def mode_fixture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serve(hosts: TwoHosts, socket: str, *more: str, mode: str = "recvmmsg") -> Server:
    arguments = ["--iface", hosts.server_if, "--mode", mode, "--metrics", f"unix:{socket}"]
    return Server(hosts.server, [*arguments, *more])


def exporter(server: Server) -> int:
    """Return the process id of the youngest."""
    return int(STARTED.findall(server.log)[-1])


def well(socket: str, timeout: float = 10.0) -> Any:
    """Return what a probe says that finds nothing wrong.

    On a busy machine an answer may come too late for one.
    """
    found: list[Any] = []

    def is_well() -> bool:
        with contextlib.suppress(OSError):
            found[:] = health(socket)
        return bool(found) and found[0] == 200

    try:
        wait_until(is_well, "all is well", timeout)
    except TimeoutError as error:
        raise AssertionError(found) from error
    return found[1]


def received(series: Series) -> dict[str, float]:
    return {
        str(number): series.total("pktstun_messages_received_total", worker=str(number))
        for number in range(CPUS)
    }


def test_what_it_tells_is_what_has_happened(hosts: TwoHosts, socket: str, mode: str) -> None:
    client, address = hosts.client_ipv4[0], hosts.server_ipv4[0]
    with serve(hosts, socket, "--rate-limit", "100000", mode=mode) as server:
        assert f" metrics=unix:{socket}" in server.ready
        assert ask(hosts.client, client, address, 300).lost == 0
        assert ask(hosts.client, hosts.client_ipv6[0], f"[{hosts.server_ipv6[0]}]", 200).lost == 0
        series = scrape(socket)
        assert series.misfits() == {}
        answered = "pktstun_messages_answered_total"
        assert series.total(answered, family="ipv4", response="success") == 300
        assert series.total(answered, family="ipv6", response="success") == 200
        assert series.total("pktstun_replies_sent_total") == 500
        assert series.total("pktstun_send_batch_messages_sum") == 500
        assert series.total("pktstun_receive_batch_messages_sum") == 500
        assert series.total("pktstun_receive_batch_messages_count") > 0
        assert series.value("pktstun_up") == 1
        (build,) = series.select("pktstun_build_info")
        ring = mode != "recvmmsg"
        expected = {"mode": mode, "interface": hosts.server_if if ring else ""}
        assert dict(build).items() >= expected.items()
        if ring:
            wait_until(
                lambda: scrape(socket).total("pktstun_ring_packets_total") >= 500,
                "the kernel's counters are read",
            )
        assert server.warnings == []
    assert not Path(socket).exists()


def test_every_worker_is_asked_for_every_address(hosts: TwoHosts, socket: str, mode: str) -> None:
    """A request that is sent on a worker's CPU over loopback is that worker's."""
    addresses = len(hosts.server_ipv4) + len(hosts.server_ipv6)
    with serve(hosts, socket, mode=mode):
        before = received(scrape(socket))
        found = well(socket)
        series = scrape(socket)
        after = received(series)
    assert (found["status"], found["failures"]) == ("healthy", [])
    # So that what clients have asked can be told from it.
    asked = sum(after.values()) - sum(before.values())
    assert 0 < asked <= series.value("pktstun_health_requests_total") <= 2 * asked
    assert set(found["workers"]) == set(before)
    assert all(latency > 0 for latency in found["workers"].values())
    assert found["addresses"] == addresses
    # One that is late is asked again.
    assert all(after[name] - before[name] >= addresses for name in after)
    assert ("not the rings" in found["passes"]) == (mode != "recvmmsg")


def test_a_ring_of_loopback_is_passed(hosts: TwoHosts, socket: str) -> None:
    arguments = ["--iface", "lo", "--mode", "ring", "--metrics", f"unix:{socket}"]
    with Server(hosts.server, arguments) as server:
        found = well(socket)
        assert "ring of each worker, on lo" in found["passes"]
        totals = server.totals()
        assert totals["socket_received"] == 0
        assert totals["answered"] >= CPUS


@pytest.mark.parametrize(
    "more",
    [
        ["--auth", "short-term"],
        ["--auth", "long-term", "--realm", "example.org"],
        ["--alternate-server", "198.51.100.1"],
        ["--classic"],
        ["--tcp"],
        ["--rate-limit", "1"],
        ["--nat-discovery", "--listen", "10.77.0.1", "--listen", "10.77.0.2"],
    ],
    ids=lambda more: more[0],
)
def test_it_is_well_whatever_it_serves(
    hosts: TwoHosts, directory: Path, socket: str, more: list[str]
) -> None:
    users = directory / "users"
    users.write_text("me:secret\n")
    users.chmod(0o600)
    credentials = ["--users", str(users)] if "--auth" in more else []
    with serve(hosts, socket, *more, *credentials):
        ages = well(socket)["heartbeats"]
        assert ("streams" in ages) == ("--tcp" in more)
        assert all(0 <= age < 1500 for age in ages.values())
        series = scrape(socket)
    assert series.misfits() == {}
    assert ("pktstun_stream_open_connections" in series.names) == ("--tcp" in more)


def test_a_worker_that_stands_still_is_named(hosts: TwoHosts, socket: str) -> None:
    with serve(hosts, socket) as server:
        pid = server.worker_pids()[0]
        os.kill(pid, signal.SIGSTOP)
        code, found = health(socket)
        assert code == 503
        assert found["workers"]["0"] is None
        assert any(
            failure.startswith("worker 0: 10.77.0.1:3478: no answer")
            for failure in found["failures"]
        )
        # The supervisor ends it, and its successor answers.
        well(socket)
        assert scrape(socket).value("pktstun_worker_starts_total", worker="0") == 2


def test_an_interface_that_is_down_is_named(hosts: TwoHosts, socket: str) -> None:
    with serve(hosts, socket, mode="ring"):
        assert well(socket)["failures"] == []
        hosts.server.run(["ip", "link", "set", hosts.server_if, "down"], check=True)
        wait_until(
            lambda: f"{hosts.server_if} is down" in health(socket)[1]["failures"], "the news"
        )
        assert scrape(socket).value("pktstun_interface_up") == 0
        hosts.server.run(["ip", "link", "set", hosts.server_if, "up"], check=True)
        assert well(socket)["failures"] == []


def test_tls_that_is_not_served_is_named(
    hosts: TwoHosts, socket: str, authority: Authority
) -> None:
    with serve(hosts, socket, "--tcp", *authority.arguments) as server:
        assert well(socket)["failures"] == []
        authority.key.write_text("broken")
        (pid,) = re.findall(r"stream worker started \(pid (\d+)\)", server.log)
        os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: "TLS is not served" in str(health(socket)[1]["failures"]), "the news")
        assert health(socket)[0] == 503


def test_a_flood_from_the_network_does_not_silence_it(hosts: TwoHosts, socket: str) -> None:
    """The host itself is in the network whose account is empty."""
    limits = ["--rate-limit", "1", "--rate-limit-network", "1", "--rate-limit-share", "0"]
    with serve(hosts, socket, *limits) as server:
        ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 200, patience=0.05)
        assert server.totals()["dropped.rate_limited"] > 0
        for _ in range(2):
            assert health(socket)[0] == 200
            time.sleep(1.1)  # an answer is shared for a second


def test_what_the_sockets_lose_is_told(hosts: TwoHosts, socket: str) -> None:
    with serve(hosts, socket, "--cpus", "0") as server:
        os.kill(server.worker_pids()[0], signal.SIGSTOP)
        for _ in range(5):
            ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 20_000, patience=0)
        wait_until(lambda: "because a socket's buffer was full" in server.log, "the line", 10)
        wait_until(lambda: server.totals()["socket_drops"] > 0, "the counter")


def test_it_is_restarted_and_goes_on(hosts: TwoHosts, socket: str) -> None:
    """And nobody else notices."""
    client, address = hosts.client_ipv4[0], hosts.server_ipv4[0]
    with serve(hosts, socket, mode="direct") as server:
        for number in range(3):
            assert ask(hosts.client, client, address, 50).lost == 0
            os.kill(exporter(server), signal.SIGKILL)
            series = scrape(socket)  # waits for the next one, in the queue of the socket
            assert series.total("pktstun_messages_answered_total") == 50 * (number + 1)
            assert series.value("pktstun_worker_starts_total", worker="metrics") == number + 2
        for number in range(CPUS):
            assert series.value("pktstun_worker_starts_total", worker=str(number)) == 1


def test_a_crowd_harms_nobody(hosts: TwoHosts, socket: str) -> None:
    client, address = hosts.client_ipv4[0], hosts.server_ipv4[0]
    with serve(hosts, socket) as server, contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(socket)).send(b"GET /metr")
        assert ask(hosts.client, client, address, 200).lost == 0
        assert scrape(socket).value("pktstun_up") == 1
        well(socket)
        assert len(STARTED.findall(server.log)) == 1


# --- What may change ---


def configuration(hosts: TwoHosts, *lines: str) -> str:
    return "\n".join([f'iface = "{hosts.server_if}"', *lines, ""])


def test_a_reload_moves_it(hosts: TwoHosts, directory: Path, socket: str) -> None:
    file = directory / "pktstun.toml"
    file.write_text(configuration(hosts, f'metrics = "unix:{socket}"'))
    with Server(hosts.server, ["--config", str(file)]) as server:
        started = scrape(socket).value("pktstun_start_time_seconds")
        file.write_text(configuration(hosts, f'metrics = "unix:{socket}2"', "batch = 16"))
        reload(server, REPLACED)
        assert not Path(socket).exists()
        series = scrape(f"{socket}2")
        assert series.value("pktstun_start_time_seconds") == started
        well(f"{socket}2")
        Path(f"{socket}2").unlink()  # by somebody who tidies up
        reload(server, REPLACED)
        assert scrape(f"{socket}2").value("pktstun_up") == 1
        file.write_text(configuration(hosts, 'metrics = "127.0.0.1"'))
        reload(server, REPLACED)
        assert not Path(f"{socket}2").exists()
        url = "http://127.0.0.1:9478/metrics"
        fetch = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode())"
        done = hosts.server.run(["python3", "-c", fetch], check=True)
        assert Series.of(done.stdout).value("pktstun_start_time_seconds") == started
        file.write_text(configuration(hosts, 'metrics = "0.0.0.0:9478"'))
        reload(server, REFUSED)
        file.write_text(configuration(hosts, f'metrics = "unix:{directory}/no/m.sock"'))
        reload(server, REFUSED)
        assert "there is no directory" in server.log
        file.write_text(configuration(hosts))
        reload(server, REFUSED)
        assert "--metrics, from none to some or back, cannot change" in server.log
        assert hosts.server.run(["python3", "-c", fetch], check=True).stdout


def test_an_upgrade_takes_it_along(hosts: TwoHosts, directory: Path, socket: str) -> None:
    installation = Installation(directory / "installed")
    arguments = ["--iface", hosts.server_if, "--metrics", f"unix:{socket}"]
    with Server(hosts.server, arguments, under=installation.under) as server:
        assert server.process.stdout is not None
        before = scrape(socket)
        inode = Path(socket).stat().st_ino
        assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 40).lost == 0
        installation.install("9.9.9")
        server.process.send_signal(signal.SIGUSR2)
        assert "pktstun 9.9.9 ready" in server.process.stdout.readline()
        after = scrape(socket)
        assert Path(socket).stat().st_ino == inode
        started = "pktstun_start_time_seconds"
        assert after.value(started) == before.value(started)
        assert after.total("pktstun_messages_answered_total") == 40
        assert ("version", "9.9.9") in next(iter(after.select("pktstun_build_info")))
        well(socket)
        assert server.stop() == 0
    assert not Path(socket).exists()


def test_it_follows_the_addresses_of_the_host(lab: Lab, hosts: TwoHosts, socket: str) -> None:
    with serve(hosts, socket, mode="ring") as server:
        addresses = well(socket)["addresses"]
        seen = server.log.count(REPLACED)
        lab.address(hosts.server, hosts.server_if, "10.77.0.9/24")
        wait_until(lambda: server.log.count(REPLACED) > seen, REPLACED, 15)
        assert well(socket)["addresses"] == addresses + 1


# --- Who it is ---


def test_it_has_no_privileges(hosts: TwoHosts, socket: str, mode: str) -> None:
    with serve(hosts, socket, "--user", USER, mode=mode) as server:
        well(socket)
        pid = exporter(server)
        of = status(pid)
        assert is_users(of)
        for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
            assert capabilities(of, kind) == set()
        assert (of["Seccomp"], of["NoNewPrivs"], of["Threads"]) == ("2", "1", "1")
        assert os.getpriority(os.PRIO_PROCESS, pid) == 0
        assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
        found = Path(socket).lstat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (pwd.getpwnam(USER).pw_uid, 0o660)
        assert server.stop() == 0
    assert not Path(socket).exists()


def test_it_ends_with_the_service(hosts: TwoHosts, socket: str) -> None:
    with serve(hosts, socket) as server:
        pid = exporter(server)
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended, too")
    assert Path(socket).exists()  # nobody was there to remove it
    with serve(hosts, socket):
        assert get(socket, "/").status == 200
        with pytest.raises(AssertionError, match=r"is in use: stop the program that has it"):
            serve(hosts, socket, "--port", "4000").__enter__()
        well(socket)
