"""The Debian package: what can be held against the rest of the project without building it.

`tools/dev.py deb` builds it, which CI does, and with --try installs it on a clean system.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

import pktstun
from pktstun import errors
from pktstun.cli import _parser
from tools import deb, dev

if TYPE_CHECKING:
    from pathlib import Path

DEBIAN = deb.DEPLOY / "debian"
PAGE = (deb.DEPLOY / "pktstun.1").read_text()


def words(text: str) -> str:
    return " ".join(text.split())


def test_its_version_is_the_project_s() -> None:
    first = (DEBIAN / "changelog").read_text().splitlines()[0]
    assert re.match(r"pktstun \(([\d.]+)-\d+\) ", first)[1] == pktstun.__version__  # type: ignore[index]


def test_its_licence_is_the_project_s() -> None:
    text = re.sub(r"^ \.?", "", (DEBIAN / "copyright").read_text(), flags=re.MULTILINE)
    _, _, permission = (dev.ROOT / "LICENSE").read_text().partition("\n\nPermission")
    assert words(text).endswith(words("Permission" + permission))


def test_its_patches_apply() -> None:
    text = (dev.ROOT / "pyproject.toml").read_text()
    for name in (DEBIAN / "patches" / "series").read_text().split():
        _, *hunks = re.split(
            r"^@@.*@@\n", (DEBIAN / "patches" / name).read_text(), flags=re.MULTILINE
        )
        for hunk in hunks:
            before = [line[1:] for line in hunk.splitlines() if line[:1] in {"-", " "}]
            assert "\n".join(before) in text


def test_the_tree_has_all_that_debhelper_is_told_of(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    deb.prepare(tree)
    for name in ("pktstun.install", "pktstun.manpages", "pktstun.docs"):
        for line in (tree / "debian" / name).read_text().splitlines():
            assert list(tree.glob(line.split()[0])), line
    assert (tree / "debian" / "rules").stat().st_mode & 0o111
    assert not list(tree.glob("pktstun/*.so"))


def test_the_manual_has_every_command() -> None:
    (choices,) = (action.choices for action in _parser()._subparsers._group_actions)  # type: ignore[union-attr]
    _, _, section = PAGE.partition(".SH COMMANDS\n")
    named = re.findall(r"^\.TP\n\.B (\S+)$", section.partition(".SH ")[0], re.MULTILINE)
    assert choices
    assert set(choices) <= set(named)


def test_the_manual_has_every_exit_status() -> None:
    _, _, section = PAGE.partition(".SH EXIT STATUS\n")
    said = {int(text) for text in re.findall(r"^\.TP\n(\d+)$", section, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert said == {0} | {kind.exit_status for kind in kinds if hasattr(kind, "exit_status")}


def test_what_is_left_behind_or_changed_is_told() -> None:
    before = {"etc/a": "1", "etc/b": "2", "etc/passwd-": "3"}
    after = {"etc/a": "other", "etc/c": "2", "etc/passwd-": "4", "etc/shadow-": "5"}
    assert deb.differences(before, before) == []
    assert deb.differences(before, after) == [
        "changed: etc/a",
        "gone: etc/b",
        "left behind: etc/c",
    ]


@pytest.mark.parametrize("program", ["dpkg-buildpackage", "debootstrap"])
def test_what_the_machine_lacks_is_named_with_its_package(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(deb.DebError, match=rf"lacks {program}\..*\n.*apt-get install some-package"):
        deb.demand({program: "some-package", sys.executable: "python3"})
