"""A build of the package in which a transaction id makes the worker that reads it go wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from pktstun.stun import Class, Message, Method
from tests.faults.test_upgrade import PACKAGE

if TYPE_CHECKING:
    from pathlib import Path

TRAP = Message(Class.REQUEST, Method.BINDING, b"pktstun trap")
"""Crashes it."""
CALL = Message(Class.REQUEST, Method.BINDING, b"pktstun call")
"""Has it make a system call that no worker makes."""

_COMPILE = "import runpy; runpy.run_path('cdefs/build_native.py')['ffibuilder'].compile(tmpdir='.')"


def build(directory: Path) -> list[str]:
    """Build it in a directory, and return the command under which its server runs."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(PACKAGE, directory / "pktstun", ignore=ignore)
    shutil.copytree(PACKAGE.parent / "cdefs", directory / "cdefs", ignore=ignore)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMPILE],
        cwd=directory,
        env={**os.environ, "CFLAGS": "-O2 -DPKTSTUN_TRAP"},
        check=True,
        capture_output=True,
    )
    return ["env", "-C", str(directory)]
