"""tools/compare_modes.py as a command: what it refuses, and short runs in its own laboratory."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.errors import ConfigError
from tests.lab import require_root, wait_until
from tests.tools import compare_reports
from tools import compare_modes
from tools.compare.results import LOADS, Report

if TYPE_CHECKING:
    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = ROOT / "tools" / "compare_modes.py"
LOADGEN = ROOT / "tools" / "loadgen.py"


def command(tmp_path: Path, *arguments: str) -> list[str]:
    outputs = ["--json", str(tmp_path / "new" / "c.json"), "--figure", str(tmp_path / "c.svg")]
    return [sys.executable, "-bb", str(TOOL), *outputs, *arguments]


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(tmp_path, *arguments),
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# Usage


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--modes", "rings"], "there is no mode 'rings'"),
        (["--peers", "turn"], "there is no peer 'turn'"),
        (["--peer", "ring=x", "--peers", "none"], "two things to compare have the name 'ring'"),
        (["--modes", "none", "--peers", "none"], "nothing to compare is left"),
        (["--peer", "mine"], "write NAME=COMMAND"),
        (["--sweep", "blocks"], "cannot sweep 'blocks'"),
        (["--rounds", "0"], "0 is not in 1..1000"),
        (["--seconds", "0"], "0 is not in 0.05..60"),
        (["--loss", "x"], "x"),
        (["--cpu", "4095"], "CPU 4095 cannot be used here"),
        (["--server-cpus", "1-"], "is no list of CPUs"),
        (["--iface", "eth0"], "--generator, --iface and --address belong together"),
        (["extra"], "extra"),
    ],
)
def test_wrong_usage_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        compare_modes.main(arguments)
    output = capsys.readouterr()
    assert (stop.value.code, output.out) == (2, "")
    assert problem in output.err.splitlines()[-1]


def test_without_root_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert compare_modes.main(["--modes", "recvmmsg", "--peers", "none"]) == 77
    assert capsys.readouterr().err == (
        "compare_modes: network namespaces and packet sockets need root\n"
    )


def test_cpus_are_the_lowest_for_the_generator_and_the_others_for_the_server() -> None:
    assign = compare_modes.assign_cpus
    assert assign({2, 3, 5}, None, None) == (2, (3, 5))
    assert assign({2, 3, 5}, 3, None) == (3, (2, 5))
    assert assign({2, 3, 5}, None, (2, 3)) == (5, (2, 3))
    assert assign({0, 1}, 1, (0,)) == (1, (0,))


@pytest.mark.parametrize(
    ("usable", "generator", "server", "problem"),
    [
        ({0}, None, None, "there is one CPU here, and two are needed"),
        ({0, 1}, 1, (1,), "CPU 1 cannot be the generator's and the server's"),
        ({0, 1}, None, (0, 1), "CPU 0 cannot be the generator's and the server's"),
        ({0, 1}, None, (2,), "CPU 2 cannot be used here"),
    ],
)
def test_cpus_that_do_not_do(
    usable: set[int], generator: int | None, server: tuple[int, ...] | None, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        compare_modes.assign_cpus(usable, generator, server)


# From a file


def test_table_and_picture_are_made_again_from_the_file(tmp_path: Path) -> None:
    source = tmp_path / "source.json"
    compare_reports.ladder(2).write(source)
    done = run(tmp_path, "--from", str(source))
    assert (done.returncode, done.stderr) == (0, "")
    assert "direct, takeover" in done.stdout
    assert (tmp_path / "c.svg").read_bytes().startswith(b"<?xml")
    assert not (tmp_path / "new").exists(), "the data are where they were"


def test_a_file_that_is_no_report_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.json"
    source.write_text("{}")
    assert compare_modes.main(["--from", str(source)]) == 1
    assert "is no report of this tool" in capsys.readouterr().err


# Runs


@pytest.mark.root
def test_a_short_run(tmp_path: Path) -> None:
    """A mode, and a server of the user's that does not start."""
    require_root()
    done = run(
        tmp_path,
        *("--modes", "recvmmsg", "--peers", "none", "--rounds", "1", "--seconds", "0.05"),
        *("--peer", "broken=sh -c 'echo no >&2'", "--port", "3479"),
    )
    assert done.returncode == 0, done.stderr
    assert "Left out: broken (no)." in done.stdout
    assert "recvmmsg, round 1 of 1: " in done.stderr
    report = Report.read(tmp_path / "new" / "c.json")
    assert [cell.target for cell in report.cells] == ["recvmmsg"]
    assert report.left_out == {"broken": "no"}
    assert json.loads((tmp_path / "new" / "c.json").read_text())["command"][-1] == "3479"
    for cell in report.cells:
        assert cell.rate > 0
        phases = {step.phase for step in cell.steps}
        assert phases >= {"cpu", "flood", *(f"latency-{load}" for load in LOADS)}
        (cpu,) = [step.cpu for step in cell.steps if step.phase == "cpu"]
        assert cpu is not None
        assert 0 < cpu < 1e5
        (calm,) = [step for step in cell.steps if step.phase == "latency-1"]
        assert calm.raw["replies"] > 0
    assert (tmp_path / "c.svg").exists()


@pytest.mark.root
def test_a_generator_of_the_users_and_no_laboratory(tmp_path: Path, hosts: TwoHosts) -> None:
    """The generator is on another host, reached by a command; the server is the user's, too."""
    serve = f"{shlex.quote(sys.executable)} -m pktstun serve --mode recvmmsg --listen {{address}}"
    enter = f"nsenter --net=/proc/{os.getpid()}/fd/{hosts.client.fd}"
    loadgen = f"{sys.executable} {LOADGEN} --iface {hosts.client_if} --i-own-this-network"
    done = hosts.server.run(
        command(
            tmp_path,
            *("--generator", f"{enter} {loadgen} --steps --target {{target}}"),
            *("--iface", hosts.server_if, "--address", hosts.server_ipv4[0]),
            *("--modes", "none", "--peers", "none", "--peer", f"mine={serve} --port {{port}}"),
            *("--rounds", "1", "--seconds", "0.05"),
            *("--server-cpus", str(max(os.sched_getaffinity(0)))),
        ),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Interface v0, with the generator on another host" in done.stdout
    (cell,) = Report.read(tmp_path / "new" / "c.json").cells
    assert cell.rate > 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("generator", "problem"),
    [
        ("sh -c 'echo cannot >&2'", "the generator has ended: cannot"),
        ("echo hello", "which is no JSON"),
        ("echo []", "which is no object"),
        ("echo {{}}", "does not speak the protocol"),
        ("/nonexistent/program", "there is no program /nonexistent/program"),
    ],
)
def test_a_generator_that_is_none(
    tmp_path: Path, hosts: TwoHosts, generator: str, problem: str
) -> None:
    generator = generator.replace("{{}}", "{}")
    done = hosts.server.run(
        command(
            tmp_path,
            *("--generator", generator, "--iface", hosts.server_if),
            *("--address", hosts.server_ipv4[0], "--modes", "recvmmsg", "--peers", "none"),
        )
    )
    assert done.returncode == 1
    assert problem in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_an_address_that_the_interface_does_not_have(tmp_path: Path, lab: Lab) -> None:
    ns = lab.namespace("alone")
    arguments = ["--generator", "true", "--modes", "recvmmsg", "--peers", "none"]
    done = ns.run(command(tmp_path, *arguments, "--iface", "lo", "--address", "192.0.2.1"))
    assert done.returncode == 1
    assert "lo does not have the IPv4 address 192.0.2.1" in done.stderr
    done = ns.run(command(tmp_path, *arguments, "--iface", "no0", "--address", "192.0.2.1"))
    assert done.returncode == 1
    assert "no0" in done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_after_an_interruption(tmp_path: Path, number: int, status: int) -> None:
    require_root()
    port = str(20_000 + os.getpid() % 10_000)
    arguments = ["--modes", "recvmmsg", "--peers", "none", "--rounds", "9", "--port", port]
    process = subprocess.Popen(
        command(tmp_path, *arguments),
        env=os.environ | {"TMPDIR": str(tmp_path)},  # SIGKILL leaves it behind
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(mentioning(port)) >= 4, "server and worker run", 30)
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(20) == status
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not mentioning(port), "everything has ended")
    assert number == signal.SIGKILL or not list(tmp_path.iterdir())


def mentioning(port: str) -> list[int]:
    """The processes with this port on their command line: the tool, the generator, the server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if port in words or any(word.endswith(f":{port}") for word in words):
            found.append(int(path.parent.name))
    return found
