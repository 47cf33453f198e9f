"""The command that makes a systemd service of this program: `install-service`.

What it does goes to standard output, a line for each file; what it leaves for the operator to do
comes last. What it takes is imported when it runs: a server that starts has no use for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pktstun
from pktstun.errors import ConfigError, PktstunError, PrivilegeError, UsageError

if TYPE_CHECKING:
    from pktstun.install import Installed

__all__ = ["add_command"]

_UNIT = "pktstun.service"
_RUNS = Path("/run/systemd/system")
"""There while systemd runs: sd_booted(3)."""

_HELP = """\
Written are a unit (/etc/systemd/system/pktstun.service), the user that it runs
as (/etc/sysusers.d/pktstun.conf) and, if there is none yet, an example of the
configuration. A file that somebody has changed since it was written is left
alone, and so is any configuration; with --uninstall, too. --dry-run shows the
difference. The exit status is 1 if a unit or a user was left alone.
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser; `run` of what it parses carries it out."""
    install = commands.add_parser(
        "install-service",
        help="make a systemd service of this program",
        description="Write the unit, the user and the configuration of a systemd service.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    install.add_argument(
        "--config",
        type=Path,
        default=Path("/etc/pktstun.toml"),
        metavar="FILE",
        help="configuration of the service (default: %(default)s)",
    )
    install.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="root of the system to install into, which is not running, as for a package or an "
        "image (default: this one)",
    )
    install.add_argument(
        "--program",
        metavar="PATH",
        help="what the service starts, as it sees it (default: this program)",
    )
    install.add_argument(
        "--uninstall", action="store_true", help="stop the service and remove what was written"
    )
    install.add_argument(
        "--dry-run", action="store_true", help="only say what would be done, and what differs"
    )
    install.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pktstun.install import find_program, planned  # noqa: PLC0415 - see above

    for name, path in (("config", options.config), ("program", options.program)):
        if path is not None and (not Path(path).is_absolute() or ".." in Path(path).parts):
            raise UsageError(f"--{name} {path}: write it from the root on, as /etc/pktstun.toml")
    if options.program is not None:
        program = [options.program]
    elif options.uninstall:
        program = [sys.executable]  # of no matter: what was written is known by its first line
    else:
        program = find_program(Path(sys.executable), Path(pktstun.__file__).parent)
    root = options.root.resolve()
    service = planned(root, options.config, program)
    run = _Systemd(root, is_real=not options.dry_run)
    if options.dry_run:
        print("nothing of this is done:")
    try:
        if options.uninstall:
            return _uninstall(service, run)
        return _install(service, run, options.config)
    except PermissionError as error:
        raise PrivilegeError(
            f"{error.filename}: {error.strerror}: run this as root, or choose another --root"
        ) from error
    except (NotADirectoryError, IsADirectoryError) as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error


class _Systemd:
    """Runs the service manager's programs, where they are and it is.

    Args:
        root: of the system that is meant.
        is_real: False only to say what would be run.
    """

    def __init__(self, root: Path, *, is_real: bool) -> None:
        self._root = None if root == Path("/") else root
        self.is_real = is_real
        self.is_running = self._root is None and _RUNS.is_dir()

    def make_users(self, file: Installed) -> bool:
        """Make the users of a file of sysusers.d; return whether there are any now."""
        return self._run("systemd-sysusers", str(file.path))

    def reload(self) -> None:
        """Have the units read again, by a service manager that runs."""
        if self.is_running:
            self._run("systemctl", "daemon-reload")

    def forget(self) -> None:
        """Stop the service, if it runs, and have it not started any more."""
        now = ["--now"] if self.is_running else []
        self._run("systemctl", "disable", *now, _UNIT)

    def _run(self, program: str, *arguments: str) -> bool:
        if shutil.which(program) is None:
            return False
        root = [f"--root={self._root}"] if self._root else []
        command = [program, *root, *arguments]
        print(f"run       {' '.join(command)}", flush=True)
        if self.is_real:
            done = subprocess.run(  # noqa: S603 - a program of the service manager's
                command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            if done.returncode:
                problem = done.stderr.strip() or f"it ended with status {done.returncode}"
                raise PktstunError(f"{program}: {problem}")
        return True


def _install(service: list[Installed], run: _Systemd, config: Path) -> int:
    from pktstun.install import State, write  # noqa: PLC0415 - see above

    changed = False
    for file in service:
        state = file.state()
        if state is State.CURRENT:
            _say("unchanged", file)
        elif file.is_example and state is not State.ABSENT:
            _say("kept", file, "it is yours")
        elif state is State.CHANGED:
            changed = True
            _say("kept", file, "it has been changed: remove it to have the new one written")
            _show_difference(file, run)
        else:
            _say("written" if state is State.ABSENT else "updated", file)
            _show_difference(file, run)
            if run.is_real:
                write(file)
    if not run.make_users(service[1]):
        print("there is no systemd-sysusers here: make the user with 'useradd --system pktstun'")
    run.reload()
    if run.is_running:
        print(f"next      edit {config}, then: systemctl enable --now pktstun")
    return int(changed)


def _uninstall(service: list[Installed], run: _Systemd) -> int:
    from pktstun.install import State, remove  # noqa: PLC0415 - see above

    changed = False
    if service[0].state() in {State.CURRENT, State.OLD}:  # one that is kept may go on serving
        run.forget()
    for file in service:
        state = file.state()
        if state is State.ABSENT:
            _say("absent", file)
        elif state is State.CHANGED:
            changed = changed or not file.is_example
            _say("kept", file, "it has been changed")
        else:
            _say("removed", file)
            if run.is_real:
                remove(file)
    run.reload()
    print("left      the user pktstun and /var/lib/pktstun, whose files may be of interest")
    return int(changed)


def _say(what: str, file: Installed, why: str = "") -> None:
    print(f"{what:<9} {file.path}{f' ({why})' if why else ''}")


def _show_difference(file: Installed, run: _Systemd) -> None:
    import difflib  # noqa: PLC0415 - see above

    if run.is_real:
        return
    there = file.path.read_text(errors="replace") if file.path.exists() else ""
    old, new = there.splitlines(), file.content.splitlines()
    name = os.fspath(file.path)
    print(*difflib.unified_diff(old, new, name, name, lineterm=""), sep="\n")
