"""`pktstun status` as a script runs it: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from pktstun.cli import main
from pktstun.stats import SharedPage
from tests.observe.services import answering, description

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.native


@pytest.fixture(name="page")
def page_fixture() -> Iterator[SharedPage]:
    with SharedPage(2) as page:
        for slot in page.slots:
            slot.begin(os.getpid())
        yield page


@pytest.fixture(name="path")
def path_fixture(tmp_path: Path, page: SharedPage) -> Iterator[Path]:
    """The socket of a service whose workers' hearts beat."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            for slot in page.slots:
                slot.turn()

    for slot in page.slots:
        slot.turn()
    thread = threading.Thread(target=beat)
    thread.start()
    with answering(tmp_path / "s", page):
        yield tmp_path / "s"
    ended.set()
    thread.join()


def test_all_is_well(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--socket", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("pktstun 1.2.3, pid 4711: serving, up ")
    assert err == ""
    assert main(["status", "--socket", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    (service,) = json.loads(out)["services"]
    assert (service["state"], service["socket"]) == ("serving", str(path))


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_worker_is_down(
    path: Path, page: SharedPage, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    page.slots[1].end()
    assert main(["status", "--socket", str(path), *option]) == 1
    out = capsys.readouterr().out
    if option:
        (service,) = json.loads(out)["services"]
        assert (service["state"], service["problems"]) == ("degraded", ["worker 1 is down"])
    else:
        assert "pid 4711: degraded, up " in out
        assert "  problem: worker 1 is down\n" in out


def test_a_worker_that_is_just_replaced_is_no_problem(path: Path, page: SharedPage) -> None:
    page.slots[1].end()
    timer = threading.Timer(0.1, page.slots[1].begin, [os.getpid()])
    timer.start()
    assert main(["status", "--socket", str(path)]) == 0
    timer.join()


def test_who_cannot_be_asked_is_named_beside_the_others(
    path: Path,
    page: SharedPage,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pktstun.observe._service.RUN", path.parent / "none")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(path.parent))
    path.rename(path.parent / "1.sock")
    with answering(path.parent / "2.sock", page, lambda: description(page, protocol=2)):
        assert main(["status", "--json"]) == 1
        out, err = capsys.readouterr()
    document = json.loads(out)
    assert len(document["services"]) == 1
    (problem,) = document["problems"]
    assert "use its own 'pktstun status'" in problem
    assert err == f"pktstun: {problem}\n"


def test_nobody_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ([], ["--json"]):
        assert main(["status", "--socket", str(tmp_path / "s"), *option]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"pktstun: no service listens at {tmp_path / 's'}\n"


def test_a_reader_that_has_gone(path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "pktstun", "status", "--socket", str(path)],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("command", ["status", "top"])
def test_help_fits(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pktstun", command, "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "--socket PATH" in result.stdout
