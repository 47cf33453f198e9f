"""The unit that ships: what systemd thinks of it, and that it holds what the service needs."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pktstun.cli import _parser
from pktstun.kernel import seccomp
from pktstun.kernel.privileges import Capability

UNIT = Path(__file__).resolve().parents[1] / "tools" / "deploy" / "pktstun.service"


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_its_command_line_is_one() -> None:
    (command,) = values("ExecStart")
    _parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("key", ["AmbientCapabilities", "CapabilityBoundingSet"])
def test_it_has_the_capabilities_of_rings_and_takeover_and_no_others(key: str) -> None:
    needed = {Capability.NET_RAW, Capability.NET_ADMIN, Capability.BPF}
    assert {name for line in values(key) for name in line.split()} == {
        f"CAP_{each.name}" for each in needed
    }


def test_errors_that_last_do_not_start_it_again() -> None:
    assert values("RestartPreventExitStatus") == ["77 78"]


def test_systemd_never_gives_up_on_it() -> None:
    """By default five starts in ten seconds are the last."""
    unit = configparser.RawConfigParser(strict=False)
    unit.read(UNIT)
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "always"


@pytest.mark.peers
def test_systemd_finds_little_exposure() -> None:
    subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", UNIT],
        check=True,
        stdout=subprocess.PIPE,
    )


def members(group: str) -> set[str]:
    """Return the system calls of one of systemd's groups, those of the groups in it included."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", group],
        check=True,
        capture_output=True,
        text=True,
    )
    found: set[str] = set()
    for word in re.findall(r"^\s+([@\w-]+)", done.stdout, re.MULTILINE):
        found |= members(word) if word.startswith("@") else {word}
    return found


@pytest.mark.peers
def test_its_system_calls_are_enough_for_every_loop() -> None:
    allowed: set[str] = set()
    for line in values("SystemCallFilter"):
        for word in line.removeprefix("~").split():
            group = members(word) if word.startswith("@") else {word}
            allowed = allowed - group if line.startswith("~") else allowed | group
    needed = {call for loop in seccomp.Loop for call in loop.value} | set(seccomp._ALLOWED)
    # Before a worker confines itself, and in the supervisor.
    needed |= {"socket", "bind", "listen", "ioctl", "epoll_create1", "prlimit64", "pidfd_open"}
    newer = {"epoll_pwait2"}  # than some versions of systemd
    assert needed - newer <= allowed
    assert "mount" not in allowed


@pytest.mark.peers
def test_systemd_reads_it_without_complaint() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", UNIT], check=False, capture_output=True, text=True
    )
    # The program is not where the unit says unless it is installed.
    complaints = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert complaints == []
