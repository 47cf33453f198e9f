"""SIGUSR2: another version of the program takes over, without a lost request."""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.load import Load
from tests.faults.scorecard import modes, record, times
from tests.faults.test_stopping import exists
from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.faults]

PACKAGE = Path(__file__).resolve().parents[2] / "pktstun"


class Installation:
    """A copy of the package that can become another version while a server runs from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, directory / "pktstun", ignore=ignore)
        self._file = directory / "pktstun/__init__.py"
        self._text = self._file.read_text()

    @property
    def under(self) -> list[str]:
        """The command under which a server runs from here."""
        return ["env", "-C", str(self.directory), "PYTHONDONTWRITEBYTECODE=1"]

    def install(self, version: str, *, broken: str = "") -> None:
        text, count = re.subn(r'__version__ = ".*"', f'__version__ = "{version}"', self._text)
        assert count == 1
        self._file.write_text(text + broken)


def upgrade(server: Server, done: str) -> None:
    seen = server.log.count(done)
    server.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: server.log.count(done) > seen, done, 20)


@pytest.mark.alone
@pytest.mark.parametrize("mode", modes("ring", "direct", "recvmmsg"))
def test_upgrades_lose_nothing(spread: TwoHosts, tmp_path: Path, mode: str) -> None:
    count = times(3, 20)
    installation = Installation(tmp_path)
    arguments = ["--iface", spread.server_if, "--mode", mode]
    with Server(spread.server, arguments, under=installation.under) as server:
        assert server.process.stdout is not None
        with Load(spread) as load:
            time.sleep(0.2)
            for number in range(count):
                if number == count // 2:
                    installation.install("9.9.9", broken="\nraise RuntimeError('broken')\n")
                    upgrade(server, "upgrade refused, this version goes on")
                    continue
                version = f"8.0.{number}"
                installation.install(version)
                server.process.send_signal(signal.SIGUSR2)
                assert f"pktstun {version} ready" in server.process.stdout.readline()
            result = load.result()
            drops = load.backlog_drops + result.send_errors
        totals = server.wait_for(result.sent, "answered")
        assert totals["starts"] == len(server.worker_pids()) * count
        pids = list(server.worker_pids().values())
        assert server.stop() == 0
        assert not any(map(exists, pids))
    record(
        8,
        mode,
        f"{count} upgrades, one to a version that cannot start",
        "no request lost, none answered twice",
        f"{result.lost} of {result.sent:,} lost, {result.duplicates} twice",
    )
    assert result.lost <= drops
    assert (result.duplicates, result.wrong) == (0, {})


@pytest.mark.parametrize(
    "broken",
    ["\ndef broken(:\n", "\nimport time; time.sleep(60)\n", "\nraise SystemExit(0)\n"],
    ids=["syntax", "hangs", "ends"],
)
def test_a_version_that_does_not_come_up_changes_nothing(
    hosts: TwoHosts, tmp_path: Path, broken: str
) -> None:
    require_root()
    installation = Installation(tmp_path)
    with Server(hosts.server, ["--iface", hosts.server_if], under=installation.under) as server:
        pids = server.worker_pids()
        installation.install("9.9.9", broken=broken)
        upgrade(server, "upgrade refused, this version goes on")
        assert server.worker_pids() == pids
        assert all(map(exists, pids.values()))
        installation.install("8.0.0")
        server.process.send_signal(signal.SIGUSR2)
        assert server.process.stdout is not None
        assert "pktstun 8.0.0 ready" in server.process.stdout.readline()


def test_no_descriptor_is_left_behind(hosts: TwoHosts, tmp_path: Path) -> None:
    require_root()
    installation = Installation(tmp_path)
    with Server(hosts.server, ["--iface", hosts.server_if], under=installation.under) as server:
        assert server.process.stdout is not None
        counts = []
        for _ in range(3):
            server.process.send_signal(signal.SIGUSR2)
            server.process.stdout.readline()
            counts.append(len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())))
        assert counts[1] == counts[2]


def test_an_upgrade_to_another_configuration(hosts: TwoHosts, tmp_path: Path) -> None:
    require_root()
    installation = Installation(tmp_path)
    file = tmp_path / "pktstun.toml"
    address = hosts.server_ipv4[0]
    file.write_text(f'iface = "{hosts.server_if}"\n')
    arguments = ["--config", str(file)]
    with Server(hosts.server, arguments, under=installation.under) as server:
        assert server.process.stdout is not None
        # From wildcards to an address on the same port, to another port, and back.
        for line in (f'listen = ["{address}"]', "port = 4000", ""):
            file.write_text(f'iface = "{hosts.server_if}"\n{line}\n')
            server.process.send_signal(signal.SIGUSR2)
            assert " ready: " in server.process.stdout.readline()
            port = 4000 if "port" in line else 3478
            result = ask(hosts.client, hosts.client_ipv4[0], f"{address}:{port}", 10)
            assert (result.lost, result.duplicates) == (0, 0)
        file.write_text('iface = "nowhere"\n')
        upgrade(server, "upgrade refused, this version goes on")
        assert ask(hosts.client, hosts.client_ipv4[0], address, 10).lost == 0
