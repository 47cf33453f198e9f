"""The files of a systemd service, written where systemd looks for them, and taken away again.

Theory of operation: what is written are the files of `pktstun/deploy`, the unit with the path of
the program that writes it. Each begins with a line that has a digest of the rest. So a later
version, or the one that removes them, can tell what it wrote from what somebody has changed since:
that is left alone.

The unit hides the home directories and the temporary ones from the service, so a program that is
there could not be started; this is said before anything is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

import pktstun
from pktstun.errors import ConfigError

__all__ = ["Installed", "State", "find_program", "planned", "remove", "write"]

_MARK = re.compile(r"# Written by 'pktstun install-service' \(\S+, sha256 ([0-9a-f]{64})\)\n")
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - what the unit hides


class State(StrEnum):
    """What is there where a file is to be."""

    ABSENT = "absent"
    CURRENT = "current"
    OLD = "old"
    """Written by another version, or with other arguments, and not changed since."""
    CHANGED = "changed"
    """Somebody's own."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A file to install."""

    path: Path
    content: str
    """Its first line says who wrote it."""
    is_example: bool = False
    """The operator's as soon as it is there: never written over."""

    def state(self) -> State:
        """Look at what is there.

        Raises:
            OSError: it cannot be read.
        """
        try:
            there = self.path.read_bytes()
        except FileNotFoundError:
            return State.ABSENT
        if there == self.content.encode():
            return State.CURRENT
        text = there.decode(errors="replace")
        mark = _MARK.match(text)
        is_ours = mark is not None and mark[1] == _digest(text[mark.end() :])
        return State.OLD if is_ours else State.CHANGED


def planned(root: Path, config: Path, program: list[str]) -> list[Installed]:
    """Return the files of a service.

    Args:
        root: the directory that is the root of the system where it shall run.
        config: the configuration file, as the service sees it: an absolute path.
        program: the command, likewise.

    Raises:
        ConfigError: a path cannot be written in a unit.
    """
    command = " ".join(map(_quoted, [*program, "serve", "--config", str(config)]))
    unit, count = re.subn(
        r"^ExecStart=.*$",
        lambda _: f"ExecStart={command}",
        _shipped("pktstun.service"),
        flags=re.MULTILINE,
    )
    if count != 1:
        raise ConfigError("the unit that ships has no ExecStart= line: install pktstun again")
    etc = root / "etc"
    return [
        Installed(etc / "systemd/system/pktstun.service", _marked(unit)),
        Installed(etc / "sysusers.d/pktstun.conf", _marked(_shipped("pktstun.sysusers"))),
        Installed(
            root / config.relative_to("/"), _marked(_shipped("pktstun.toml")), is_example=True
        ),
    ]


def find_program(interpreter: Path, package: Path) -> list[str]:
    """Return the command by which a program is started, wherever it is installed.

    Args:
        interpreter: its Python: `sys.executable`, which in a virtual environment is a link.
        package: the directory of pktstun.

    Raises:
        ConfigError: it is where the service sees nothing.
    """
    script = interpreter.parent / "pktstun"
    for path in (interpreter, interpreter.resolve(), package.resolve()):
        where = next((each for each in _HIDDEN if path.is_relative_to(each)), None)
        if where is not None:
            raise ConfigError(
                f"{path} is in {where}, which the service does not see: install pktstun elsewhere, "
                "as with 'python3 -m venv /opt/pktstun' and, in a checkout, "
                "'/opt/pktstun/bin/pip install .', or name the program with --program"
            )
    return [str(script)] if script.exists() else [str(interpreter), "-m", "pktstun"]


def write(file: Installed) -> None:
    """Write a file at once or not at all, for everybody to read.

    Raises:
        OSError: that is impossible.
    """
    file.path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.path.name}.", dir=file.path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as new:
            new.write(file.content)
            os.fchmod(new.fileno(), 0o644)
        Path(name).replace(file.path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def remove(file: Installed) -> None:
    """Remove a file.

    Raises:
        OSError: that is impossible.
    """
    file.path.unlink()


def _shipped(name: str) -> str:
    return (files(pktstun) / "deploy" / name).read_text(encoding="utf-8")


def _marked(text: str) -> str:
    digest = _digest(text)
    return (
        f"# Written by 'pktstun install-service' ({pktstun.__version__}, sha256 {digest})\n{text}"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _quoted(word: str) -> str:
    """Return a word for ExecStart= (systemd.service(5), systemd.unit(5))."""
    if not word.isprintable():
        raise ConfigError(f"{word!r} cannot be in a unit: choose another path")
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII) else f'"{word}"'
