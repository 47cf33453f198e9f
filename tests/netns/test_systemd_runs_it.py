"""The service under a real systemd, which is process 1 of namespaces of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pktstun
from tests.lab import require_root
from tests.machine import PROGRAM, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.peers]

UNIT = "pktstun.service"
CONFIG = 'iface = "lo"\n'
SHIPPED = Path(pktstun.__file__).parent / "deploy"


@pytest.fixture(name="machine", scope="module")
def machine_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    require_root()
    root = tmp_path_factory.mktemp("root")
    root.chmod(0o755)
    machine = Machine(root)
    machine.furnish()
    (root / "etc/pktstun.toml").write_text(CONFIG)
    install(root)
    drop_in = root / "etc/systemd/system/pktstun.service.d/test.conf"
    drop_in.parent.mkdir()
    # A process that is stopped does not take the signal either that the watchdog sends first.
    drop_in.write_text("[Service]\nWatchdogSec=5\nTimeoutAbortSec=1\n")
    with machine:
        yield machine


def install(root: Path, *arguments: str) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pktstun", "install-service"),
            *("--root", str(root), "--program", PROGRAM, *arguments),
        ],
        check=True,
        stdout=subprocess.PIPE,
    )


@pytest.fixture(name="service")
def service_fixture(machine: Machine) -> Iterator[Machine]:
    """The machine, with the service running."""
    machine.run("systemctl", "start", UNIT)
    yield machine
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "reset-failed", UNIT, check=False)


def main_pid(machine: Machine) -> int:
    """Return the supervisor's process id out here: the workers are its children."""
    pids = machine.pids_of(UNIT)
    parents = {pid: int(status(pid, "PPid")[0].split()[1]) for pid in pids}
    (main,) = (pid for pid, parent in parents.items() if parent not in pids)
    return main


def status(pid: int, name: str) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(f"{name}:")]


def answers(machine: Machine) -> bool:
    return "127.0.0.1" in machine.run(PROGRAM, "query", "127.0.0.1", "--timeout", "5")


def test_it_is_active_when_it_serves_and_not_before(service: Machine) -> None:
    shown = service.show(UNIT, "ActiveState", "SubState", "StatusText", "User", "NRestarts")
    assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
    assert re.match(r"ring on lo, workers: \d+, ", shown["StatusText"])
    assert answers(service)
    uid = service.run("id", "-u", "pktstun").strip()
    pids = service.pids_of(UNIT)
    assert len(pids) > 1
    assert {line.split()[1] for pid in pids for line in status(pid, "Uid")} == {uid}
    assert service.run("stat", "-c", "%U %a", "/run/pktstun") == "pktstun 750\n"


def test_its_lines_in_the_journal_have_priorities(service: Machine) -> None:
    main = main_pid(service)
    worker = next(pid for pid in service.pids_of(UNIT) if pid != main)
    os.kill(worker, signal.SIGKILL)
    wanted = re.compile(r"ended with SIGKILL")
    service.wait(lambda: bool(wanted.search(service.journal("-u", UNIT))), "the line")
    output = service.journal("-u", UNIT, "-o", "json", "-p", "warning")
    entries = [json.loads(line) for line in output.splitlines()]
    (entry,) = [each for each in entries if wanted.search(each["MESSAGE"])]
    assert entry["PRIORITY"] == "4"
    assert re.match(r"worker \d+ \(pid \d+\) ended", entry["MESSAGE"])
    assert service.show(UNIT, "ActiveState", "NRestarts") == {
        "ActiveState": "active",
        "NRestarts": "0",
    }
    assert main_pid(service) == main
    assert answers(service)


def test_a_reload_takes_the_new_configuration(service: Machine) -> None:
    main = main_pid(service)
    file = service.root / "etc/pktstun.toml"
    try:
        file.write_text(CONFIG + "port = 4000\n")
        service.run("systemctl", "reload", UNIT)
        done = "every worker has been replaced"
        service.wait(lambda: done in service.journal("-u", UNIT), done)
        assert "127.0.0.1" in service.run(PROGRAM, "query", "127.0.0.1:4000", "--timeout", "5")
        file.write_text(CONFIG + "port = 0\n")
        service.run("systemctl", "reload", UNIT)
        refused = "reload refused"
        service.wait(lambda: refused in service.show(UNIT, "StatusText")["StatusText"], refused)
        errors = service.journal("-u", UNIT, "-p", "err")
        assert refused in errors
        shown = service.show(UNIT, "ActiveState", "SubState")
        assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
        assert main_pid(service) == main
    finally:
        file.write_text(CONFIG)


def test_an_upgrade_keeps_the_process_and_the_watchdog(service: Machine) -> None:
    main = main_pid(service)
    before = service.journal("-u", UNIT).count("ready: ")
    os.kill(main, signal.SIGUSR2)
    service.wait(lambda: service.journal("-u", UNIT).count("ready: ") > before, "an upgrade")
    fed = service.show(UNIT, "WatchdogTimestampMonotonic")
    service.wait(lambda: service.show(UNIT, "WatchdogTimestampMonotonic") != fed, "its watchdog")
    assert main_pid(service) == main
    assert service.show(UNIT, "ActiveState", "NRestarts") == {
        "ActiveState": "active",
        "NRestarts": "0",
    }


def test_a_supervisor_that_hangs_is_replaced(service: Machine) -> None:
    main = main_pid(service)
    os.kill(main, signal.SIGSTOP)
    service.wait(lambda: service.show(UNIT, "NRestarts")["NRestarts"] == "1", "a restart")
    service.wait(lambda: service.show(UNIT, "ActiveState")["ActiveState"] == "active", "it")
    assert main_pid(service) != main
    assert answers(service)


def test_a_configuration_that_is_wrong_is_no_reason_to_try_again(machine: Machine) -> None:
    file = machine.root / "etc/pktstun.toml"
    try:
        file.write_text('iface = "lo"\nport = 0\n')
        machine.run("systemctl", "start", UNIT, check=False)
        shown = machine.show(UNIT, "ActiveState", "NRestarts", "ExecMainStatus", "StatusText")
        assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", "78")
        assert shown["NRestarts"] == "0"
        assert "--port 0 is not in 1..65535" in shown["StatusText"]
        assert "--port 0 is not in 1..65535" in machine.journal("-u", UNIT, "-p", "err")
    finally:
        file.write_text(CONFIG)
        machine.run("systemctl", "reset-failed", UNIT)


def test_an_interface_that_is_late_is_waited_for(machine: Machine) -> None:
    file = machine.root / "etc/pktstun.toml"
    try:
        file.write_text('iface = "late0"\n')
        machine.run("systemctl", "start", UNIT, check=False)
        shown = machine.show(UNIT, "ActiveState", "ExecMainStatus")
        assert shown["ExecMainStatus"] == "75"
        assert shown["ActiveState"] == "activating"
        assert "there is no network interface" in machine.journal("-u", UNIT, "-p", "err")
        machine.run("ip", "link", "add", "late0", "type", "veth", "peer", "late1")
        machine.run("ip", "link", "set", "late0", "up")
        machine.run("ip", "address", "add", "192.0.2.77/24", "dev", "late0")
        machine.wait(lambda: machine.show(UNIT, "ActiveState")["ActiveState"] == "active", "it")
    finally:
        file.write_text(CONFIG)
        machine.run("systemctl", "stop", UNIT)
        machine.run("systemctl", "reset-failed", UNIT, check=False)
        machine.run("ip", "link", "delete", "late0", check=False)


def test_the_places_that_the_example_names_are_the_service_s(machine: Machine) -> None:
    example = (SHIPPED / "pktstun.toml").read_text()
    places = re.findall(r'^#(\S+ = ".*/run/.*")  # example$', example, re.MULTILINE)
    assert {each.split()[0] for each in places} == {"metrics", "status-socket"}
    file = machine.root / "etc/pktstun.toml"
    try:
        file.write_text(CONFIG + "\n".join(places) + "\n")
        machine.run("systemctl", "start", UNIT)
        assert machine.show(UNIT, "ActiveState") == {"ActiveState": "active"}
    finally:
        file.write_text(CONFIG)
        machine.run("systemctl", "stop", UNIT)
        machine.run("systemctl", "reset-failed", UNIT, check=False)


def test_a_stop_is_one_in_good_order(machine: Machine) -> None:
    machine.run("systemctl", "start", UNIT)
    machine.run("systemctl", "stop", UNIT)
    shown = machine.show(UNIT, "ActiveState", "Result", "ExecMainStatus")
    assert shown == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    assert "SIGTERM received" in machine.journal("-u", UNIT)
    machine.run("test", "!", "-e", "/run/pktstun")


def test_it_is_removed_and_installed_while_systemd_runs(machine: Machine) -> None:
    etc = machine.root / "etc"
    command = (PROGRAM, "install-service", "--program", PROGRAM)
    machine.run("systemctl", "enable", "--now", UNIT)
    said = machine.run(*command, "--uninstall")
    assert "systemctl disable --now pktstun.service" in said
    assert machine.show(UNIT, "ActiveState", "LoadState") == {
        "ActiveState": "inactive",
        "LoadState": "not-found",
    }
    left = sorted(path.name for path in etc.rglob("*pktstun*"))
    assert left == ["pktstun.service.d", "pktstun.toml"]
    said = machine.run(*command)
    assert "systemctl enable --now pktstun" in said
    assert machine.show(UNIT, "LoadState") == {"LoadState": "loaded"}
    assert (etc / "pktstun.toml").read_text() == CONFIG
