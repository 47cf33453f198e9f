"""`pktstun top`: on a terminal and without one, over restarts, and how it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pktstun.stats import VERDICTS, SharedPage
from pktstun.top import Prober, Watcher
from tests.client.servers import elsewhere, server
from tests.lab import wait_until
from tests.observe.services import INFO, answering, description
from tests.test_status import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pktstun.observe import Scene

pytestmark = pytest.mark.native

COMMAND = [sys.executable, "-m", "pktstun", "top"]
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
GIVEN_BACK = "\x1b[?1049l"
"""Leaves the alternate screen."""


@pytest.fixture(name="page")
def page_fixture() -> Iterator[SharedPage]:
    with SharedPage(2) as page:
        for slot in page.slots:
            slot.begin(os.getpid())
            slot.turn()
        yield page


@pytest.fixture(name="path")
def path_fixture(tmp_path: Path, page: SharedPage) -> Iterator[Path]:
    """The socket of a service that is there."""
    with answering(tmp_path / "s", page):
        yield tmp_path / "s"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environment},
    )


# --- Without a terminal ---


def test_one_screen(path: Path) -> None:
    result = run("--once", "--socket", str(path), "--no-probe", "--interval", "0.1")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("pktstun 1.2.3, pid 4711, recvmmsg, up ")
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b" not in result.stdout
    assert "probe" not in result.stdout
    rows = [line.split()[:4] for line in lines if line.startswith(("0@", "1@", "all"))]
    assert rows == [[name, "0", "0", "0"] for name in ("0@cpu0", "1@cpu1", "all")]


def test_some_screens(path: Path) -> None:
    result = run("--count", "3", "--interval", "0.1", "--socket", str(path), COLUMNS="120")
    assert result.returncode == 0
    assert result.stdout.count("pktstun 1.2.3") == 3
    assert max(map(len, result.stdout.splitlines())) == 120


def test_a_reader_that_has_seen_enough(path: Path) -> None:
    command = [*COMMAND, "--socket", str(path), "--interval", "0.1", "--no-probe"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--interval", "0"], 2, "not in 0.1..3600"),
        (["--count", "0"], 2, "at least 1"),
        (["--once", "--count", "2"], 2, "not allowed with"),
        (["--socket", "/no/such/socket"], 3, "no service listens at /no/such/socket"),
    ],
)
def test_wrong_usage(arguments: list[str], status: int, said: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (status, "")
    assert said in result.stderr


def test_without_rich_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['rich'] = None; from pktstun.cli import main; sys.exit(main())"
    )
    for arguments, status in (["top"], 2), (["status", "--socket", "/nowhere"], 3):
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == status
        assert ("pip install rich, or apt install python3-rich" in result.stderr) == (status == 2)


# --- On a terminal ---


class Terminal:
    """One that a program runs on, of 80 columns and 24 lines."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.seen = ""

    def read_until(self, text: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536).decode()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def on_terminal(*arguments: str, **environment: str) -> Iterator[tuple[Terminal, Any]]:
    terminal = Terminal()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=subprocess.PIPE,
        text=True,
        env={**env, "TERM": "xterm-256color", **environment},
    ) as process:
        try:
            yield terminal, process
        finally:
            process.kill()
            terminal.close()


@pytest.mark.parametrize(
    ("end", "status"), [("q", 0), (signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_the_terminal_is_given_back(path: Path, end: str | signal.Signals, status: int) -> None:
    options = ["--socket", str(path), "--interval", "0.2", "--no-probe"]
    with on_terminal(*options) as (terminal, process):
        terminal.read_until("q: quit")
        assert termios.tcgetattr(terminal.slave)[3] & termios.ICANON == 0
        terminal.type("x")
        if isinstance(end, str):
            terminal.type(end)
        else:
            process.send_signal(end)
        terminal.read_until(GIVEN_BACK)
        assert process.wait(10) == status
        assert termios.tcgetattr(terminal.slave) == terminal.before
        assert process.stderr.read() == ""


def test_rates_move(path: Path, page: SharedPage) -> None:
    options = ["--socket", str(path), "--interval", "0.1", "--no-probe"]
    with on_terminal(*options) as (terminal, _):
        terminal.read_until("q: quit")
        for _ in range(3):
            page.slots[1].pointer.received[1] += 1_000
            page.slots[1].pointer.verdicts[1][VERDICTS["vlan"]] += 1_000
            time.sleep(0.1)
        terminal.read_until("vlan")
        terminal.read_until("3,000")


def test_colours_and_none(path: Path, page: SharedPage) -> None:
    page.slots[0].end()
    options = ["--socket", str(path), "--interval", "0.1", "--no-probe"]
    with on_terminal(*options) as (terminal, _):
        terminal.read_until("worker 0 is down")
        assert COLOUR.search(terminal.seen)
    with on_terminal(*options, NO_COLOR="1") as (terminal, _):
        terminal.read_until("worker 0 is down")
        assert not COLOUR.search(terminal.seen)


def test_a_dumb_terminal(path: Path) -> None:
    options = ["--socket", str(path), "--interval", "0.1", "--no-probe"]
    with on_terminal(*options, TERM="dumb") as (terminal, process):
        terminal.read_until("all")
        assert "\x1b" not in terminal.seen
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


# --- What is watched ---


def rates(scene: Scene) -> set[float | None]:
    assert scene.view is not None
    return {each.received.rate for each in scene.view.workers}


def test_a_restart_is_said_and_seen(tmp_path: Path, page: SharedPage) -> None:
    path = tmp_path / "s"
    with answering(path, page):
        watcher = Watcher(path)
        watcher.look()
        assert rates(watcher.scene(None)) == {0.0}
    watcher.look()
    scene = watcher.scene(None)
    assert scene.view is None
    assert scene.note == "pid 4711 is gone, waiting for another service"
    with SharedPage(2) as other, answering(path, other, lambda: description(other, pid=4712)):
        watcher.look()
        scene = watcher.scene(None)
        assert scene.note == "restarted: pid 4712 in the place of 4711"
        assert rates(scene) == {None}
        watcher.look()
        assert rates(watcher.scene(None)) == {0.0}
    watcher.close()


def test_an_upgrade_is_said(tmp_path: Path, page: SharedPage) -> None:
    version = "1.2.3"
    with answering(tmp_path / "s", page, lambda: description(page, version=version)):
        watcher = Watcher(tmp_path / "s")
        version = "1.3.0"
        watcher.look()
        scene = watcher.scene(None)
        assert scene.note == "upgraded from 1.2.3 to 1.3.0"
        assert rates(scene) == {0.0}
        watcher.close()


def test_a_supervisor_that_stands_still_is_said_and_its_workers_are_seen(
    tmp_path: Path, page: SharedPage
) -> None:
    path = tmp_path / "s"
    with answering(path, page):
        watcher = Watcher(path)
    with opened(path, page):
        page.slots[0].pointer.received[1] += 100
        watcher.look()
        scene = watcher.scene(None)
    assert "no answer within 1 s" in scene.note
    assert scene.view is not None
    assert scene.view.workers[0].received.total == 100
    watcher.close()


# --- The probe ---


def test_the_probe_measures() -> None:
    prober = Prober()
    with server(elsewhere) as at:
        prober.follow(replace(INFO, serving=("[fe80::1]:3478", str(at))))
        wait_until(lambda: prober.summary().answered > 0, "an answer")
        found = prober.summary()
        assert found.server == str(at)
        assert found.problem is None
        assert found.median is not None
        assert found.longest is not None
        assert 0 < found.median <= found.longest
        # As long as it is served, the same address is asked.
        prober.follow(replace(INFO, serving=("127.0.0.2:9", str(at))))
        assert prober.summary().sent > 0
    prober.follow(replace(INFO, serving=("127.0.0.1:9",)))
    wait_until(lambda: prober.summary().problem == "Connection refused", "a refusal")
    assert prober.summary().answered == 0
    prober.follow(replace(INFO, serving=("[fe80::1]:3478",)))
    assert prober.summary().server == "the service has no address to ask"
