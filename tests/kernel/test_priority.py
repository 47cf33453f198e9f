"""A nice value holds for the process, and for its session where the kernel groups by that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import require_root

pytestmark = [pytest.mark.native, pytest.mark.alone]

_SAY = """
import os, pathlib, sys
from pktstun.kernel import Priority
priority = Priority(int(sys.argv[1]))
assert priority.settle(patience=60)
group = pathlib.Path("/proc/self/autogroup")
print(os.getpriority(os.PRIO_PROCESS, 0), os.getsid(0) == os.getpid(),
      group.read_text().split()[-1] if group.exists() else "none")
"""


_SAY_BUSY = """
import os, time
from pktstun.kernel import Priority
priority = Priority(7)
# A full pipe in the place of the file: the kernel says EAGAIN until somebody reads.
read, priority._file = os.pipe2(os.O_NONBLOCK)
try:
    while True:
        os.write(priority._file, bytes(4096))
except BlockingIOError:
    pass
print(priority.settle(), priority.settle(patience=0.1))
os.read(read, 1 << 20)
print(priority.settle(patience=0.1))
"""


def said(value: int, *, leads: bool = False) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _SAY, str(value)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        start_new_session=leads,
    )
    return done.stdout.split()


@pytest.mark.parametrize("leads", [False, True])
def test_the_process_has_a_session_of_its_own_with_that_value(*, leads: bool) -> None:
    expected = ["7", "True", "7" if Path("/proc/self/autogroup").exists() else "none"]
    assert said(7, leads=leads) == expected


def test_a_kernel_that_is_busy_is_asked_so_long_and_no_longer() -> None:
    command = [sys.executable, "-c", _SAY_BUSY]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    assert done.stdout.split() == ["False", "False", "True"]


@pytest.mark.root
def test_more_priority_where_that_is_allowed() -> None:
    require_root()
    assert said(-3)[0] == "-3"
    if Path("/proc/self/autogroup").exists():
        assert said(-3)[2] == "-3"


def test_others_are_left_alone() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    group = Path("/proc/self/autogroup")
    was = group.read_text() if group.exists() else ""
    said(9)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert (group.read_text() if group.exists() else "") == was
