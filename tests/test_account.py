"""Whose a service's processes and directories become."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lab import require_root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

USER = "nobody"
BECOME = """
import pathlib, sys
from pktstun.account import become_user
become_user(sys.argv[1], pathlib.Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


def become(state: Path) -> None:
    subprocess.run([sys.executable, "-c", BECOME, USER, state], check=True)


def owner(path: Path) -> str:
    return pwd.getpwuid(path.lstat().st_uid).pw_name


def test_the_directory_for_files_is_made_and_given(tmp_path: Path) -> None:
    state = tmp_path / "made" / "for it"
    become(state)
    assert owner(state) == USER
    assert state.stat().st_mode & 0o777 == 0o750


def test_directories_of_workers_are_given_and_nothing_else(tmp_path: Path) -> None:
    """The user could have put links to what is root's there, by the name of a worker's."""
    state = tmp_path / "state"
    roots = tmp_path / "roots"
    (roots / "directory").mkdir(parents=True)
    (roots / "file").touch()
    for name in ("worker-0", "worker-3", "other"):
        (state / name).mkdir(parents=True)
    os.link(roots / "file", state / "worker-1")
    (state / "worker-2").symlink_to(roots / "directory")
    (state / "worker-4").symlink_to(roots / "file")
    os.mkfifo(state / "worker-5")
    become(state)
    assert {path.name for path in state.iterdir() if owner(path) == USER} == {
        "worker-0",
        "worker-3",
    }
    assert {owner(path) for path in roots.iterdir()} == {"root"}


def test_a_link_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    state = tmp_path / "state"
    state.symlink_to(tmp_path / "roots")
    become(state)
    assert owner(tmp_path / "roots") == owner(state) == "root"
