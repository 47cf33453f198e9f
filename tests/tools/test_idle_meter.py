"""tools/idle_meter.py beside somebody who wants the CPU, half of it, or nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.alone

TOOL = [sys.executable, str(Path(__file__).parents[2] / "tools" / "idle_meter.py")]
CPU = max(os.sched_getaffinity(0))

# Works and rests for so many seconds in turn; ends with its standard input.
BURNER = """
import os, select, sys, time
cpu, work, rest = int(sys.argv[1]), *map(float, sys.argv[2:])
os.sched_setaffinity(0, {cpu})
print(flush=True)
while not select.select([sys.stdin], [], [], rest)[0]:
    end = time.monotonic() + work
    while time.monotonic() < end:
        pass
"""


@contextmanager
def burning(work: float, rest: float) -> Iterator[None]:
    command = [sys.executable, "-c", BURNER, str(CPU), str(work), str(rest)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as burner:
        assert burner.stdout is not None
        burner.stdout.readline()
        yield
        burner.communicate(timeout=10)


def measure(seconds: float) -> float:
    """Return the share of the time that was idle."""
    command = [*TOOL, "--cpu", str(CPU), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert found.keys() == {"cpu", "elapsed", "idle"}
    assert found["cpu"] == CPU
    assert found["elapsed"] >= seconds
    return float(found["idle"] / found["elapsed"])


def test_who_wants_the_cpu_gets_it_and_is_seen() -> None:
    """The machine may have other things to do, which only makes it less idle."""
    with burning(1, 0):
        assert measure(1) < 0.3
    with burning(0.01, 0.01):
        assert 0 < measure(1) < 0.8


def test_steps() -> None:
    command = [*TOOL, "--cpu", str(CPU), "--steps"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as meter:
        assert meter.stdin is not None
        assert meter.stdout is not None
        assert json.loads(meter.stdout.readline()) == {"ready": True, "cpu": CPU}
        for seconds in (0.05, 0.01):
            print(seconds, file=meter.stdin, flush=True)
            assert json.loads(meter.stdout.readline())["elapsed"] >= seconds
        meter.stdin.close()
        assert meter.wait(10) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--cpu", str(CPU)],
        ["--cpu", str(CPU), "--seconds", "0"],
        ["--cpu", str(CPU), "--seconds", "nan"],
        ["--cpu", str(CPU), "--seconds", "3601"],
        ["--cpu", str(CPU), "--seconds", "1", "--steps"],
        ["--cpu", "100000", "--seconds", "1"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = subprocess.run(
        [*TOOL, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "idle_meter.py: error: " in done.stderr


def test_a_step_that_is_no_number() -> None:
    command = [*TOOL, "--cpu", str(CPU), "--steps"]
    done = subprocess.run(
        command, input="soon\n", capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "'soon' is no time" in done.stderr
