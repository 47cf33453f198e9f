"""The protocol of Type=notify, spoken by a real service with a stand-in for the service manager."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.test_upgrade import Installation
from tests.lab import require_root, wait_until
from tests.manager import Manager
from tests.netns.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, Namespace

pytestmark = pytest.mark.root

SERVE = ["--mode", "recvmmsg", "--listen", "127.0.0.1", "--cpus", "0"]
WATCHDOG = 0.9


@pytest.fixture(name="namespace")
def namespace_fixture(lab: Lab) -> Namespace:
    require_root()
    namespace = lab.namespace("notify")
    lab.link_set(namespace, "lo", state="up")
    return namespace


@pytest.fixture(name="manager")
def manager_fixture(tmp_path: Path) -> Iterator[Manager]:
    tmp_path.chmod(0o755)
    with Manager.at(tmp_path / "notify") as manager:
        yield manager


def under(manager: Manager, *more: str) -> list[str]:
    usec = round(WATCHDOG * 1e6)
    return ["env", f"NOTIFY_SOCKET={manager.address}", f"WATCHDOG_USEC={usec}", *more]


def test_ready_reload_stop(namespace: Namespace, manager: Manager, tmp_path: Path) -> None:
    file = tmp_path / "pktstun.toml"
    file.write_text('software = "one"\n')
    arguments = [*SERVE, "--config", str(file)]
    with Server(namespace, arguments, under=under(manager)) as server:
        ready = manager.wait_for("READY")
        assert ready.values["STATUS"].startswith("recvmmsg, workers: 1, ")
        assert [each for each in manager.notices if "EXTEND_TIMEOUT_USEC" in each.values]
        for content, expected in (('software = "two"\n', "recvmmsg"), ("port = 0\n", "refused")):
            file.write_text(content)
            before = time.monotonic_ns() // 1000
            server.process.send_signal(signal.SIGHUP)
            reloading = manager.wait_for("RELOADING")
            assert before <= int(reloading.values["MONOTONIC_USEC"])
            # Nothing that comes between says that it is over.
            again = manager.wait(lambda values: "READY" in values, "end of the reload")
            assert expected in again.values["STATUS"]
        server.process.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING")
        assert server.process.wait(15) == 0
    assert {each.pid for each in manager.notices} == {server.process.pid}


def test_a_service_that_cannot_start_is_never_ready(namespace: Namespace, manager: Manager) -> None:
    arguments = ["--mode", "recvmmsg", "--listen", "192.0.2.1"]
    with (
        pytest.raises(AssertionError, match="did not start"),
        Server(namespace, arguments, under=under(manager)),
    ):
        pass
    notices = manager.read_all()
    assert not any("READY" in each.values for each in notices)
    assert "192.0.2.1" in notices[-1].values["STATUS"]


def test_a_worker_that_is_missing_is_told_of(namespace: Namespace, manager: Manager) -> None:
    with Server(namespace, SERVE, under=under(manager)) as server:
        manager.wait_for("READY")
        # It ends before it has lived long enough, again and again, so that the pauses grow.
        for _ in range(6):
            pid = server.worker_pids()[0]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: server.worker_pids()[0] != pid, "a new worker")  # noqa: B023
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        notice = manager.wait(lambda values: "STATUS" in values, "status")
        while "without" not in notice.values["STATUS"]:
            notice = manager.wait(lambda values: "STATUS" in values, "status")
        assert notice.values["STATUS"].startswith("degraded, without worker 0: recvmmsg, ")
        # And this is no case for the watchdog: the supervisor has it in hand.
        manager.wait_for("WATCHDOG")


def test_the_watchdog_is_fed_as_long_as_the_supervisor_looks(
    namespace: Namespace, manager: Manager
) -> None:
    with Server(namespace, SERVE, under=under(manager)) as server:
        manager.wait_for("READY")
        for _ in range(3):
            manager.wait_for("WATCHDOG")
        server.process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{server.process.pid}/stat")
        wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "its stop")
        manager.read_all()
        time.sleep(2 * WATCHDOG)
        assert manager.read_all() == []
        server.process.send_signal(signal.SIGCONT)
        manager.wait_for("WATCHDOG")


def test_a_worker_that_stands_still_is_the_supervisors_business(
    namespace: Namespace, manager: Manager
) -> None:
    with Server(namespace, SERVE, under=under(manager)) as server:
        manager.wait_for("READY")
        pid = server.worker_pids()[0]
        os.kill(pid, signal.SIGSTOP)
        manager.read_all()
        fed = []
        while server.worker_pids()[0] == pid:
            fed.append(manager.wait_for("WATCHDOG"))
        assert len(fed) >= 2


def test_the_watchdog_starves_where_no_worker_serves_for_long(
    namespace: Namespace, manager: Manager, tmp_path: Path
) -> None:
    """Each becomes ready and dies at once; half a minute of that is a second here."""
    installation = Installation(tmp_path / "installation")
    module = installation.directory / "pktstun/supervisor.py"
    text = module.read_text()
    assert text.count("HOPELESS = 30.0\n") == 1
    module.write_text(text.replace("HOPELESS = 30.0\n", "HOPELESS = 1.0\n"))
    environment = under(manager)[1:]
    with Server(namespace, SERVE, under=[*installation.under, *environment]) as server:
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        manager.wait_for("WATCHDOG")

        def kill_for(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for worker in children.read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(worker), signal.SIGKILL)
                time.sleep(0.01)

        kill_for(2.5)
        manager.read_all()
        kill_for(1.5 * WATCHDOG)
        assert not any("WATCHDOG" in each.values for each in manager.read_all())
        # A worker that lives is enough.
        manager.wait_for("WATCHDOG")


def test_somebody_elses_watchdog_is_not_fed(namespace: Namespace, manager: Manager) -> None:
    with Server(namespace, SERVE, under=under(manager, "WATCHDOG_PID=1")):
        manager.wait_for("READY")
        time.sleep(WATCHDOG)
        assert not any("WATCHDOG" in each.values for each in manager.read_all())


def test_the_next_version_goes_on_telling(
    namespace: Namespace, manager: Manager, tmp_path: Path
) -> None:
    installation = Installation(tmp_path / "installation")
    environment = under(manager)[1:]
    with Server(namespace, SERVE, under=[*installation.under, *environment]) as server:
        manager.wait_for("READY")
        installation.install("9.9.9", broken="\nraise RuntimeError('broken')\n")
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: "upgrade refused, this version goes on" in server.log, "refusal", 15)
        installation.install("8.0.0")
        server.process.send_signal(signal.SIGUSR2)
        manager.wait_for("READY")
        manager.wait_for("WATCHDOG")
        server.process.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING")
        assert server.process.wait(15) == 0
    # The trials and the workers have said nothing.
    assert {each.pid for each in manager.notices} == {server.process.pid}


def test_an_abstract_address_and_nobody_who_listens(namespace: Namespace) -> None:
    sock = namespace.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind("\0pktstun-notify")
    with Manager("@pktstun-notify", sock) as manager:
        with Server(namespace, SERVE, under=under(manager)):
            manager.wait_for("READY")
        manager.wait_for("STOPPING")
    with Server(namespace, SERVE, under=under(manager)) as server:
        assert server.stop() == 0
