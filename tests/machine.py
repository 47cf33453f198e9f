"""A systemd of its own, in namespaces: process 1 of a small root that shares /usr with the host.

Everything that it could change is its own: its files in a directory of the test, its processes, its
network (a loopback interface), its cgroups below one that is made for it. It dies with the process
that `unshare` starts, and so does all that it has started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.lab import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROGRAM = "/opt/pktstun/bin/pktstun"
SYSTEMD = Path("/usr/lib/systemd")
_CHECKOUT = Path(__file__).resolve().parents[1]
_VENDOR_UNITS = (
    *("basic.target", "sysinit.target", "shutdown.target", "multi-user.target", "sockets.target"),
    *("network.target", "network-online.target", "umount.target", "slices.target"),
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
)
# Its names come in its environment.
_BOOT = r"""
set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
bind() { mkdir -p "$ROOT$2"; mount --rbind "$1" "$ROOT$2"; mount -o remount,bind,ro "$ROOT$2"; }
if [ "$SHARED" ]; then
    bind /usr /usr
    bind "$PYTHON" /opt/python
    bind "$CHECKOUT" /opt/pktstun/src
    bind "$PACKAGES" /opt/pktstun/packages
fi
mount -t tmpfs -o mode=755 tmpfs "$ROOT/run"
mount -t tmpfs tmpfs "$ROOT/dev"
for device in null zero full random urandom tty; do
    touch "$ROOT/dev/$device"
    mount --bind "/dev/$device" "$ROOT/dev/$device"
done
ln -s /proc/self/fd "$ROOT/dev/fd"
ln -s pts/ptmx "$ROOT/dev/ptmx"
mkdir "$ROOT/dev/shm" "$ROOT/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$ROOT/dev/pts"
mount -t proc proc "$ROOT/proc"
mount -t sysfs sysfs "$ROOT/sys"
mount -t cgroup2 cgroup2 "$ROOT/sys/fs/cgroup"
mkdir "$ROOT/run/host"
cd "$ROOT"
pivot_root . run/host
umount -l /run/host
exec env -i container=pktstun-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    ${SHARED:+SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/system} \
    /usr/lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
"""


def _cgroup_tree() -> Path:
    """Return where the unified hierarchy is mounted; beside the old ones in some systems."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise FileNotFoundError("no cgroup2 is mounted here")


@dataclass
class Machine:
    """Booted by `with`; gone at its end.

    `root` is a directory of the test that becomes the root of the system. It is `furnish`ed, or
    `complete`: with a /usr and units of its own.
    """

    root: Path
    complete: bool = False
    pid: int = 0
    _cgroup: Path = field(default_factory=lambda: _cgroup_tree() / f"pktstun-test-{os.getpid()}")

    def furnish(self) -> None:
        """Make the root's own files; what is installed comes after this."""
        for name in (
            "etc",
            "proc",
            "sys",
            "dev",
            "run",
            "tmp",
            "var/tmp",
            "var/lib",
            "opt",
            "root",
        ):
            (self.root / name).mkdir(parents=True)
        for name in ("tmp", "var/tmp"):
            (self.root / name).chmod(0o1777)
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                (self.root / name).symlink_to(f"usr/{name}")
        etc = self.root / "etc"
        (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (etc / "group").write_text("root:x:0:\nsystemd-journal:x:101:\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\n")
        (etc / "os-release").write_text("ID=pktstun-test\n")
        (etc / "machine-id").write_text(f"{os.getpid():032x}\n")
        for name in ("ld.so.cache", "ld.so.conf", "alternatives"):
            source = Path("/etc", name)
            if source.is_dir():
                shutil.copytree(source, etc / name, symlinks=True)
            elif source.exists():
                shutil.copy(source, etc / name)
        units = etc / "systemd/system"
        (units / "sysinit.target.wants").mkdir(parents=True)
        for name in _VENDOR_UNITS:
            shutil.copy(SYSTEMD / "system" / name, units / name)
        (units / "sysinit.target.wants/systemd-journald.service").symlink_to(
            "../systemd-journald.service"
        )
        program = self.root / PROGRAM[1:]
        program.parent.mkdir(parents=True)
        program.write_text(
            "#!/bin/sh\nexport PYTHONPATH=/opt/pktstun/src:/opt/pktstun/packages "
            "PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/opt/python/lib\n"
            f'exec /opt/python/bin/python3.{sys.version_info[1]} -m pktstun "$@"\n'
        )
        program.chmod(0o755)

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        names = {
            "ROOT": str(self.root),
            "SHARED": "" if self.complete else "yes",
            "PYTHON": sys.base_prefix,
            "CHECKOUT": str(_CHECKOUT),
            "PACKAGES": sysconfig.get_path("platlib"),
            "CGROUP": str(self._cgroup / "cgroup.procs"),
        }
        unshare = ["unshare", "--fork", "--kill-child", "--mount", "--pid", "--uts", "--ipc"]
        self._process = subprocess.Popen(
            [
                *("sh", "-c", 'echo $$ >"$CGROUP" && exec "$@"', "sh"),
                *(*unshare, "--cgroup", "--net", "sh", "-c", _BOOT),
            ],
            env={**os.environ, **names},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_until(self._is_up, "systemd", 20)
        except TimeoutError as error:
            self.__exit__()
            raise AssertionError(f"systemd did not start: {self._output}") from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        # unshare takes process 1 along, and that takes everything.
        self._process.kill()
        self._output, _ = self._process.communicate()
        wait_until(lambda: not self._members(), "the end of its processes", 10)
        for path in sorted(self._cgroup.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
        self._cgroup.rmdir()

    def run(self, *command: str, check: bool = True, timeout: float = 30) -> str:
        """Run a program inside; return its output."""
        enter = ["nsenter", f"--target={self.pid}", "--all"]
        done = subprocess.run(
            [*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Return as soon as the condition holds, which it takes programs to find out."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, f"not within 20 s: {what}\n{self.journal()}"
            time.sleep(0.1)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit."""
        output = self.run("systemctl", "show", unit, "--property", ",".join(properties))
        return dict(line.split("=", 1) for line in output.splitlines())

    def journal(self, *arguments: str) -> str:
        """Return what the journal has."""
        return self.run("journalctl", "--no-pager", *arguments)

    def pids_of(self, unit: str) -> list[int]:
        """Return the processes of a unit, by their numbers out here."""
        file = self._cgroup / "system.slice" / unit / "cgroup.procs"
        return list(map(int, file.read_text().split()))

    def _members(self) -> Sequence[str]:
        files = [self._cgroup / "cgroup.procs", *self._cgroup.rglob("cgroup.procs")]
        found = []
        for file in files:
            with suppress(OSError):
                found += file.read_text().split()
        return found

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise TimeoutError
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = children.read_text().split()
        if not found:
            return False
        self.pid = int(found[0])
        if not (Path(f"/proc/{self.pid}/root") / "run/systemd/private").exists():
            return False
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in {"running", "degraded"}
