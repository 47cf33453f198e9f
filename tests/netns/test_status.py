"""`pktstun status` of real services: counters, faults, reloads, upgrades, other users."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pktstun.observe import Service, Snapshot, find_services
from tests.faults.test_reload import REFUSED, REPLACED, reload
from tests.faults.test_upgrade import Installation
from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.root


@pytest.fixture(name="runtime", autouse=True)
def runtime_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where services of this test have their sockets; the host's own are left alone."""
    require_root()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        run = Path(name, "run")
        run.mkdir(mode=0o755)
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(run))
        yield run


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pktstun", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def status(path: Path) -> dict[str, Any]:
    """Return what `pktstun status --json` says of a service that serves."""
    result = command("status", "--json", "--socket", str(path))
    assert (result.returncode, result.stderr) == (0, "")
    (service,) = json.loads(result.stdout)["services"]
    found: dict[str, Any] = service
    return found


def place(runtime: Path, server: Server) -> Path:
    return runtime / f"{server.process.pid}.sock"


def snapshot(path: Path) -> Snapshot:
    with Service(path) as service:
        return service.read()


@pytest.mark.parametrize("mode", ["ring", "direct", "recvmmsg"])
def test_the_counters_of_a_service_under_load(hosts: TwoHosts, runtime: Path, mode: str) -> None:
    metrics = ["--metrics", f"unix:{runtime / 'metrics.sock'}"]
    arguments = ["--iface", hosts.server_if, "--mode", mode, "--tcp", *metrics]
    with Server(hosts.server, arguments) as server:
        result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 2_000)
        assert result.lost == 0
        with hosts.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(10):
                client.sendto(b"nonsense", (hosts.server_ipv4[0], 3478))
        server.wait_for(2_010)
        found = status(place(runtime, server))
        text = command("status", "--socket", str(place(runtime, server)))
    assert (found["pid"], found["state"], found["mode"]) == (server.process.pid, "serving", mode)
    assert found["iface"] == hosts.server_if
    assert f"{hosts.server_ipv4[0]}:3478" in found["serving"] + found["tcp"]
    totals = found["totals"]
    assert (totals["received"], totals["answered"], totals["dropped"]) == (2_010, 2_000, 10)
    assert sum(totals["drops"].values()) == 10
    *packets, exporter, stream = found["workers"]
    for each, kind in (exporter, "exporter"), (stream, "streams"):
        assert (each["kind"], each["cpu"], each["ring"]) == (kind, None, None)
        assert each["state"] == "running"
    for each in packets:
        assert each["heartbeat_age_s"] < 2
        assert (each["state"], each["starts"]) == ("running", 1)
        assert (each["ring"] is None) == (mode == "recvmmsg")
        assert each["sockets"] == ({"drops": 0, "fill": 0} if mode == "recvmmsg" else None)
        families = each["families"].values()
        for family in families:
            assert sum(family["verdicts"].values()) == family["received"]
        calls = each["counters"]["ring_blocks"] + each["counters"]["receive_calls"]
        assert sum(each["receive_sizes"]) == calls
        assert sum(each["send_sizes"]) <= each["counters"]["send_calls"]
    assert totals["received_batch_mean"] >= 1
    assert text.returncode == 0
    lines = text.stdout.splitlines()
    assert lines[0].startswith(f"pktstun {found['version']}, pid {found['pid']}: serving, up ")
    assert all(len(line) <= 80 for line in lines)


def test_a_worker_that_dies_again_and_again_is_down(hosts: TwoHosts, runtime: Path) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if]) as server:
        path = place(runtime, server)
        assert snapshot(path).problems == []
        while "next start in 0.80 s" not in server.log:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.worker_pids()[0], signal.SIGKILL)
            time.sleep(0.01)
        wait_until(lambda: snapshot(path).problems == ["worker 0 is down"], "it is seen")
        wait_until(lambda: snapshot(path).problems == [], "it is back", 10)


def test_a_supervisor_that_stands_still(hosts: TwoHosts, runtime: Path) -> None:
    """It says nothing, and what it has lent can still be read: its workers serve."""
    with Server(hosts.server, ["--iface", hosts.server_if]) as server:
        with Service(place(runtime, server)) as service:
            server.process.send_signal(signal.SIGSTOP)
            try:
                assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 10).lost == 0
                seen = service.read()
                result = command("status", "--socket", str(place(runtime, server)))
            finally:
                server.process.send_signal(signal.SIGCONT)
        assert sum(each.total_received for each in seen.workers) == 10
        assert seen.problems == []
        assert result.returncode == 1
        assert "no answer within 1 s" in result.stderr


def test_a_reload_keeps_the_socket(hosts: TwoHosts, runtime: Path, tmp_path: Path) -> None:
    file = tmp_path / "pktstun.toml"
    file.write_text(f'iface = "{hosts.server_if}"\n')
    with Server(hosts.server, ["--config", str(file)]) as server:
        path = place(runtime, server)
        inode = path.stat().st_ino
        before = snapshot(path)
        file.write_text(f'iface = "{hosts.server_if}"\nport = 4000\n')
        reload(server, REPLACED)
        after = snapshot(path)
        assert after.info.identity == before.info.identity
        assert {each.rpartition(":")[2] for each in before.info.serving} == {"3478"}
        assert {each.rpartition(":")[2] for each in after.info.serving} == {"4000"}
        assert all(each.starts > 1 for each in after.workers)
        file.write_text(f'iface = "{hosts.server_if}"\nstatus = false\n')
        reload(server, REFUSED)
        assert "--status or --status-socket cannot change while the service runs" in server.log
        assert path.stat().st_ino == inode
    assert list(runtime.iterdir()) == []


def test_an_upgrade_keeps_the_socket_and_the_page(
    hosts: TwoHosts, runtime: Path, tmp_path: Path
) -> None:
    installation = Installation(tmp_path)
    with Server(hosts.server, ["--iface", hosts.server_if], under=installation.under) as server:
        path = place(runtime, server)
        with Service(path) as before:
            for version in ("8.0.0", "8.0.1"):
                installation.install(version)
                server.process.send_signal(signal.SIGUSR2)
                assert server.process.stdout is not None
                assert f"pktstun {version} ready" in server.process.stdout.readline()
            assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 100).lost == 0
            after = snapshot(path)
            assert (before.info.version, after.info.version) != ("8.0.1", "8.0.0")
            assert after.info.version == "8.0.1"
            assert after.info.identity == before.info.identity
            # Who had asked the version before sees what is counted now.
            received = [each.total_received for each in before.read().workers]
            assert received == [each.total_received for each in after.workers]
            assert sum(received) == 100
            assert {each.starts for each in before.read().workers} == {3}
    assert list(runtime.iterdir()) == []


def test_a_file_that_somebody_has_removed_comes_back(
    hosts: TwoHosts, runtime: Path, tmp_path: Path
) -> None:
    """With the next reload, or upgrade."""
    installation = Installation(tmp_path)
    with Server(hosts.server, ["--iface", hosts.server_if], under=installation.under) as server:
        path = place(runtime, server)
        path.unlink()
        reload(server, REPLACED)
        assert status(path)["pid"] == server.process.pid
        path.unlink()
        installation.install("8.0.0")
        server.process.send_signal(signal.SIGUSR2)
        assert server.process.stdout is not None
        assert "pktstun 8.0.0 ready" in server.process.stdout.readline()
        assert status(path)["version"] == "8.0.0"
        assert server.warnings == []
    assert list(runtime.iterdir()) == []


def test_what_a_killed_service_leaves_and_a_living_one_keeps(
    lab: Lab, hosts: TwoHosts, tmp_path: Path
) -> None:
    path = tmp_path / "status"
    arguments = ["--mode", "recvmmsg", "--status-socket", str(path)]
    with Server(hosts.server, arguments) as server:
        server.process.kill()
        server.process.wait()
    assert path.is_socket()
    result = command("status", "--socket", str(path))
    assert (result.returncode, result.stdout) == (3, "")
    with Server(hosts.server, arguments) as server:
        assert snapshot(path).info.pid == server.process.pid
        other = lab.namespace("other").run(
            [sys.executable, "-m", "pktstun", "serve", *arguments], timeout=30
        )
        assert other.returncode == 78
        assert other.stderr.splitlines()[-1].startswith(f"pktstun: --status-socket {path}: there")
        assert snapshot(path).info.pid == server.process.pid
    assert not path.exists()


def test_without_a_socket(hosts: TwoHosts, runtime: Path) -> None:
    with Server(hosts.server, ["--mode", "recvmmsg", "--no-status"]):
        assert list(runtime.iterdir()) == []


def test_services_of_several_namespaces(lab: Lab, hosts: TwoHosts, runtime: Path) -> None:
    other = lab.namespace("other")
    mode = ["--mode", "recvmmsg"]
    with Server(hosts.server, mode) as one, Server(other, mode) as two:
        document = json.loads(command("status", "--json").stdout)
        pids = {one.process.pid, two.process.pid}
        assert pids <= {each["pid"] for each in document["services"]}
        # Other tests' may be among them, which do what they do.
        text = command("status")
        for server in (one, two):
            assert f"pid {server.process.pid}  {place(runtime, server)}  serving" in text.stdout
        result = command("top", "--once")
        assert result.returncode == 1
        assert "choose one with --socket" in result.stderr


def test_a_service_that_root_gives_to_a_user(hosts: TwoHosts, runtime: Path) -> None:
    """Its socket is the user's, root may ask, others may not."""
    user = pwd.getpwnam("nobody")
    with Server(hosts.server, ["--iface", hosts.server_if, "--user", "nobody"]) as server:
        path = place(runtime, server)
        assert (path.stat().st_uid, path.stat().st_gid) == (user.pw_uid, user.pw_gid)
        assert snapshot(path).info.pid == server.process.pid
        assert server.warnings == []
        others = pwd.getpwnam("daemon")
        # The interpreter may be where only root can read it, so it is root's until then.
        code = (
            "import os, pktstun.cli, pktstun.observe; pktstun.cli._parser()\n"
            f"os.setgroups([]); os.setresgid(*[{others.pw_gid}] * 3)\n"
            f"os.setresuid(*[{others.pw_uid}] * 3)\n"
            f"raise SystemExit(pktstun.cli.main(['status', '--socket', {str(path)!r}]))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
        )
        assert (result.returncode, result.stdout) == (77, "")
        assert "only root, the service's user and its group may ask" in result.stderr
    assert list(runtime.iterdir()) == []


def test_a_crowd_that_asks_costs_no_request(hosts: TwoHosts, runtime: Path) -> None:
    """Some never read, some never stop asking; the service answers and reacts to signals."""
    ended = threading.Event()
    asked = 0

    def crowd(path: Path) -> None:
        nonlocal asked
        sleepers = []
        while not ended.is_set():
            asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            asking.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                asking.connect(str(path))
            asked += 1
            sleepers.append(asking)
            if len(sleepers) > 50:
                sleepers.pop(0).close()
            time.sleep(0.001)
        for each in sleepers:
            each.close()

    with Server(hosts.server, ["--iface", hosts.server_if]) as server:
        thread = threading.Thread(target=crowd, args=[place(runtime, server)])
        thread.start()
        try:
            result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 5_000)
            assert (result.lost, result.duplicates) == (0, 0)
            assert server.totals()["answered"] == 5_000
        finally:
            ended.set()
            thread.join()
        assert asked > 20
        # What the crowd has left in the queue is answered first.
        wait_until(lambda: bool(find(place(runtime, server))), "an answer", 10)
        assert server.warnings == []


def find(path: Path) -> list[int]:
    found = find_services(path)
    found.close()
    return [each.info.pid for each in found.services]
