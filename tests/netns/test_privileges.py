"""What supervisor and workers may do when the service was started as root with --user.

A worker has no capability and may make no system call but its loop's: one that makes another is
killed and replaced. The supervisor keeps what it takes to open the same sockets again, so that
everything that happens to a service is survived without root.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel.privileges import Capability
from tests.faults import trap
from tests.faults.scorecard import modes
from tests.faults.test_link import plug_in
from tests.faults.test_reload import REFUSED, REPLACED, reload
from tests.faults.test_upgrade import PACKAGE
from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server
from tests.netns.wire import Ends, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.root

USER = "nobody"
MODES = {
    "ring --takeover": {Capability.NET_RAW, Capability.BPF, Capability.NET_ADMIN},
    "ring --no-takeover": {Capability.NET_RAW},
    "direct --takeover": {Capability.NET_RAW, Capability.BPF, Capability.NET_ADMIN},
    "direct --no-takeover": {Capability.NET_RAW},
    "recvmmsg": set(),
}
"""What the supervisor keeps in each mode."""


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture(name="mode", params=modes("ring", "direct", "recvmmsg"))
def mode_fixture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="directory")
def directory_fixture() -> Iterator[Path]:
    """A directory that everybody may read."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture(name="state", autouse=True)
def state_fixture(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where services keep files here: the host's own directory is not for tests to give away."""
    state = directory / "state"
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    return state


def serve(hosts: TwoHosts, mode: str, *more: str, under: Sequence[str] = ()) -> Server:
    arguments = ["--iface", hosts.server_if, "--mode", *mode.split(), "--user", USER, *more]
    return Server(hosts.server, arguments, under=under)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def capabilities(of: dict[str, str], kind: str) -> set[int]:
    mask = int(of[f"Cap{kind}"], 16)
    return {number for number in range(64) if mask >> number & 1}


def is_users(of: dict[str, str]) -> bool:
    """Whether all ids are the user's, and root's groups are left."""
    user = pwd.getpwnam(USER)
    groups = set(map(int, of["Groups"].split()))
    return (
        set(map(int, of["Uid"].split())) == {user.pw_uid}
        and set(map(int, of["Gid"].split())) == {user.pw_gid}
        and groups == set(os.getgrouplist(USER, user.pw_gid))
        and 0 not in groups
    )


def kept_for_nice() -> set[int]:
    """CAP_SYS_NICE, where the limit that would do in its place cannot be raised."""
    effective = capabilities(status(os.getpid()), "Eff")
    _, most = resource.getrlimit(resource.RLIMIT_NICE)
    can_raise = Capability.SYS_RESOURCE in effective or most >= 40
    return set() if can_raise or Capability.SYS_NICE not in effective else {Capability.SYS_NICE}


def serves(hosts: TwoHosts, server: str | None = None, count: int = 20) -> bool:
    """Whether every request is answered once."""
    result = ask(hosts.client, hosts.client_ipv4[0], server or hosts.server_ipv4[0], count)
    return (result.lost, result.duplicates, result.wrong) == (0, 0, [])


# --- Who they are ---


@pytest.mark.parametrize("which", MODES)
def test_what_each_process_may_do(hosts: TwoHosts, which: str) -> None:
    with serve(hosts, which) as server:
        assert serves(hosts)
        for pid in server.worker_pids().values():
            worker = status(pid)
            for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
                assert int(worker[f"Cap{kind}"], 16) == 0
            assert (worker["NoNewPrivs"], worker["Seccomp"]) == ("1", "2")
            assert is_users(worker)
        supervisor = status(server.process.pid)
        assert int(supervisor["CapBnd"], 16) == 0
        kept = MODES[which] | kept_for_nice()
        for kind in ("Inh", "Prm", "Eff", "Amb"):
            assert capabilities(supervisor, kind) == kept
        assert supervisor["NoNewPrivs"] == "1"
        assert is_users(supervisor)


def test_without_user_root_stays_and_its_privileges_go(hosts: TwoHosts) -> None:
    """Where there is no user of the default name; the log says what to do."""
    with contextlib.suppress(KeyError):
        pwd.getpwnam("pktstun")
        pytest.skip("there is a user of the default name")
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", "recvmmsg"]) as server:
        (line,) = [line for line in server.lines if "the service is root's" in line]
        assert " WARNING " in line
        assert "make a user for it ('useradd --system" in line
        for pid in server.worker_pids().values():
            worker = status(pid)
            assert int(worker["CapEff"], 16) == int(worker["CapBnd"], 16) == 0


# --- A nice value that others keep from counting ---


@pytest.fixture(name="busy")
def busy_fixture() -> Iterator[None]:
    """A process that may write its session's nice value at any time, and does: others may not."""
    script = (
        "import time\nwhile True:\n    open('/proc/self/autogroup', 'w').write('0')\n"
        "    time.sleep(0.02)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as writer:
        yield
        writer.kill()


@pytest.mark.alone
@pytest.mark.usefixtures("busy")
def test_a_worker_does_not_wait_for_its_nice_value_for_ever(hosts: TwoHosts) -> None:
    arguments = ["--iface", hosts.server_if, "--mode", "recvmmsg", "--user", USER]
    without = ["sys_admin", "sys_resource"]  # it would need no turn, or no capability
    with Server(hosts.server, arguments, without=without) as server:
        assert serves(hosts)
        workers = server.worker_pids()
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in workers.values()} == {-10}
        # By chance one of them may come first for once.
        has_groups = Path("/proc/self/autogroup").exists()
        assert ("its nice value does not count" in server.log) == has_groups


# --- What it may not do ---


def refused(hosts: TwoHosts, *arguments: str, user: str = "root") -> tuple[int, str]:
    """Run a service that is expected to refuse, as a user."""
    # The interpreter may be where only root can read it, so it is root's until then.
    program = (
        "import os, pwd, sys, pktstun.cli, pktstun._process; pktstun.cli._parser(); "
        f"os.setuid(pwd.getpwnam({user!r}).pw_uid); sys.exit(pktstun.cli.main(sys.argv[1:]))"
    )
    result = hosts.server.run([sys.executable, "-c", program, "serve", *arguments], timeout=30)
    return result.returncode, result.stderr


def test_a_user_that_there_is_not(hosts: TwoHosts) -> None:
    code, said = refused(hosts, "--iface", hosts.server_if, "--user", "no-such-user")
    assert code == 78
    assert "there is no user 'no-such-user': make one ('useradd" in said


def test_to_become_another_takes_root(hosts: TwoHosts) -> None:
    arguments = ["--iface", hosts.server_if, "--mode", "recvmmsg", "--user", "daemon"]
    code, said = refused(hosts, *arguments, user=USER)
    assert code == 77, said
    assert "to become another user takes root; start the service as daemon, or leave it out" in said


# --- A worker that is taken over ---


@pytest.fixture(name="trapped", scope="module")
def trapped_fixture(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    require_root()
    return trap.build(tmp_path_factory.mktemp("trap"))


@pytest.mark.faults
def test_a_forbidden_system_call_kills_the_worker(
    lab: Lab, hosts: TwoHosts, trapped: list[str], state: Path, mode: str
) -> None:
    """It is logged and replaced; from a ring it kills twice, and is saved and passed over then."""
    ends = Ends.of(lab, hosts, ipv6=False)
    with serve(hosts, mode, under=trapped) as server, Wire(hosts.client, hosts.client_if) as wire:
        assert serves(hosts)
        before = server.worker_pids()
        wire.send(ends.udp(trap.CALL.encode()))
        deaths = 1 if mode == "recvmmsg" else 2
        text = "ended with SIGSYS: it made a system call that no worker makes"
        wait_until(lambda: server.log.count(text) == deaths, "the deaths", 20)
        started = server.log.count("started on CPU")
        assert started >= len(before) + deaths - 1
        wait_until(
            lambda: server.log.count("started on CPU") == len(before) + deaths, "all back", 20
        )
        assert serves(hosts)
        assert server.log.count("ended with") == deaths
        totals = server.totals()
        assert totals.get("dropped.poison", 0) == deaths - 1
    saved = list(state.glob("worker-*/poison-*.pcap"))
    assert len(saved) == deaths - 1
    assert {path.owner() for path in saved} <= {USER}


# --- Life without root ---


def test_a_worker_is_replaced(hosts: TwoHosts, mode: str) -> None:
    with serve(hosts, mode) as server:
        before = server.worker_pids()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: not set(before.values()) & set(server.worker_pids().values()), "new workers", 20
        )
        assert serves(hosts)
        for pid in server.worker_pids().values():
            assert int(status(pid)["CapEff"], 16) == 0
            assert is_users(status(pid))


def test_the_interface_is_removed_and_made_again(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    with serve(hosts, mode) as server:
        lab.delete_link(hosts.server, hosts.server_if)
        if mode != "recvmmsg":
            wait_until(lambda: "is gone" in server.log, "it is noticed", 10)
        plug_in(lab, hosts)
        if mode != "recvmmsg":
            wait_until(lambda: f"interface {hosts.server_if} is back" in server.log, "rings", 20)
        wait_until(lambda: serves(hosts, count=1), "service", 20)
        if mode == "direct":
            assert " takeover=on " in server.ready
        wait_until(lambda: serves(hosts), "all is answered once", 20)
        assert "refuse" not in server.log


def test_an_address_is_added(lab: Lab, hosts: TwoHosts, mode: str) -> None:
    added = "10.77.0.9"
    mac = lab.link(hosts.server, hosts.server_if).get("address")
    lab.neighbour(hosts.client, hosts.client_if, added, mac)
    with serve(hosts, mode) as server:
        lab.address(hosts.server, hosts.server_if, f"{added}/24")
        wait_until(lambda: REPLACED in server.log, "the change", 20)
        assert serves(hosts, added)


def test_a_reload_with_another_port(hosts: TwoHosts, directory: Path, mode: str) -> None:
    """Also with a low one, which takes a privilege, where one was served before."""
    port = 500
    file = directory / "pktstun.toml"
    lines = [f'iface = "{hosts.server_if}"', f'mode = "{mode}"', f'user = "{USER}"']
    file.write_text("\n".join([*lines, f"port = {port}", ""]))
    address = hosts.server_ipv4[1]
    with Server(hosts.server, ["--config", str(file)]) as server:
        assert serves(hosts, f"{address}:{port}")
        file.write_text("\n".join([*lines, f"port = {port + 1}", ""]))
        reload(server, REPLACED)
        assert serves(hosts, f"{address}:{port + 1}")
        file.write_text("\n".join([*lines, "port = 4000", ""]))
        reload(server, REPLACED)
        assert serves(hosts, f"{address}:4000")
        file.write_text("\n".join([*lines, f'listen = ["{address}:{port}"]', ""]))
        reload(server, REPLACED)
        assert serves(hosts, f"{address}:{port}")
        assert REFUSED not in server.log


def test_a_bad_configuration_changes_nothing(hosts: TwoHosts, directory: Path) -> None:
    """One that the user cannot read is one of them."""
    file = directory / "pktstun.toml"
    good = f'iface = "{hosts.server_if}"\nuser = "{USER}"\n'
    file.write_text(good)
    with Server(hosts.server, ["--config", str(file)]) as server:
        for line in ("port = 70000", 'nonsense = "x"', 'listen = ["192.0.2.7"]', "no TOML"):
            file.write_text(f"{good}{line}\n")
            reload(server, REFUSED)
        file.write_text(good)
        file.chmod(0o600)
        reload(server, REFUSED)
        assert "Permission denied" in server.log
        assert "Traceback" not in server.log
        assert serves(hosts)


MODULES = [str(PACKAGE.parent), sysconfig.get_path("platlib")]
UNDER = ["env", f"PYTHONPATH={':'.join(MODULES)}", "PYTHONDONTWRITEBYTECODE=1"]


def usable_interpreter() -> str | None:
    """An interpreter that the user can execute, with modules that it can read, if there is one."""
    known = [sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"]
    user = pwd.getpwnam(USER)
    for path in known:
        with contextlib.suppress(OSError):
            command = [*UNDER, path, "-c", "import pktstun.kernel"]
            done = subprocess.run(
                command, user=user.pw_uid, group=user.pw_gid, capture_output=True, check=False
            )
            if done.returncode == 0:
                return path
    return None


def upgrade_is_refused(server: Server) -> None:
    server.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: "upgrade refused, this version goes on" in server.log, "the refusal", 20)
    assert "Permission denied" in server.log


def test_an_upgrade(hosts: TwoHosts, mode: str) -> None:
    """It goes on with the same capabilities, and no more; twice, since the first inherits."""
    path = usable_interpreter()
    arguments = ["--iface", hosts.server_if, "--mode", mode, "--user", USER]
    with Server(hosts.server, arguments, under=UNDER, interpreter=path or sys.executable) as server:
        before = status(server.process.pid)
        if path is None:
            upgrade_is_refused(server)
        else:
            assert server.process.stdout is not None
            for _ in range(2):
                server.process.send_signal(signal.SIGUSR2)
                assert " ready: " in server.process.stdout.readline()
        after = status(server.process.pid)
        for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
            assert after[f"Cap{kind}"] == before[f"Cap{kind}"]
        assert is_users(after)
        assert serves(hosts)
        for pid in server.worker_pids().values():
            worker = status(pid)
            assert (int(worker["CapPrm"], 16), worker["Seccomp"]) == (0, "2")


def test_an_upgrade_to_what_the_user_cannot_execute(hosts: TwoHosts, directory: Path) -> None:
    """It is refused, and the service goes on."""
    private = directory / "private"
    private.mkdir(mode=0o700)
    link = private / "python3"
    link.symlink_to(Path(sys.executable).resolve())
    arguments = ["--iface", hosts.server_if, "--user", USER]
    with Server(hosts.server, arguments, under=UNDER, interpreter=str(link)) as server:
        pids = server.worker_pids()
        upgrade_is_refused(server)
        assert server.worker_pids() == pids
        assert is_users(status(server.process.pid))
        assert serves(hosts)
