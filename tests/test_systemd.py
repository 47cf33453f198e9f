"""What the service manager is told, over a real socket."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.systemd import Notifier
from tests.manager import Manager

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="manager")
def manager_fixture(tmp_path: Path) -> Iterator[Manager]:
    with Manager.at(tmp_path / "notify") as manager:
        yield manager


def texts(manager: Manager) -> list[dict[str, str]]:
    return [each.values for each in manager.read_all()]


def test_the_life_of_a_service(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    notifier.extend(12.5)
    notifier.ready("ring, 4 workers")
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    after = time.monotonic_ns() // 1000
    notifier.ready("ring, 4 workers")
    notifier.stopping()
    start, ready, reloading, again, stopping = texts(manager)
    assert start == {"EXTEND_TIMEOUT_USEC": "12500000"}
    assert ready == {"READY": "1", "STATUS": "ring, 4 workers"} == again
    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= after
    assert stopping["STOPPING"] == "1"


def test_the_status_is_one_line_and_told_once(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for text in ("one\ntwo", "one two", "three", "one two"):
        notifier.status(text)
    assert [each["STATUS"] for each in texts(manager)] == ["one two", "three", "one two"]


def test_a_name_without_a_file(manager: Manager) -> None:
    name = f"pktstun-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        with Manager(f"@{name}", sock) as abstract:
            Notifier({"NOTIFY_SOCKET": abstract.address}).ready("")
            assert texts(abstract) == [{"READY": "1", "STATUS": ""}]
    assert texts(manager) == []


def test_the_variables_are_for_this_program_only() -> None:
    wanted = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2"}
    environment = {**wanted, "PATH": "/bin"}
    assert Notifier(environment).environment == wanted
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "address", ["", "/nowhere/at/all", "nowhere", "vsock:2:1234", "@" + "x" * 200, "/" + "x" * 200]
)
def test_who_does_not_listen_ends_nothing(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    notifier.ready("")
    notifier.feed_watchdog()
    notifier.stopping()


def test_nor_does_who_reads_nothing(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    limit = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for number in range(limit + 3):
        notifier.status(str(number))
    assert len(manager.read_all()) >= limit


def test_the_watchdog_is_fed_three_times_in_its_time(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "9000000"}, clock)
    for _ in range(60):
        notifier.feed_watchdog()
        clock.now += 0.25
    assert texts(manager) == [{"WATCHDOG": "1"}] * 5
    for _ in range(2):
        notifier.feed_watchdog(at_once=True)
    assert texts(manager) == [{"WATCHDOG": "1"}] * 2


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "9000000", "WATCHDOG_PID": "1"},
    ],
)
def test_where_there_is_no_watchdog_nothing_is_fed(
    manager: Manager, variables: dict[str, str]
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, **variables})
    notifier.feed_watchdog()
    assert texts(manager) == []


def test_a_watchdog_of_this_process_is_its(manager: Manager) -> None:
    variables = {"WATCHDOG_USEC": "9000000", "WATCHDOG_PID": str(os.getpid())}
    Notifier({"NOTIFY_SOCKET": manager.address, **variables}).feed_watchdog()
    assert texts(manager) == [{"WATCHDOG": "1"}]
