#!/usr/bin/env python3
"""The Debian package: made by the distribution's tools, and tried on a clean system.

    python3 tools/dev.py deb            # build/deb/pktstun_VERSION_ARCH.deb
    python3 tools/dev.py deb --try      # and install, run and purge it in a new root; as root

Theory of operation. The sources are copied to build/deb/source, with tools/deploy/debian as
debian/, and `dpkg-buildpackage` works there with what `Build-Depends` names and nothing else: no
package index is asked. What the package shares with other ways of installing (unit, users,
example) is put into debian/ under the names that debhelper looks for.

--try makes a root with `debootstrap`, in which there is no Python and no compiler, and installs
the package's dependencies. Of what is there then a list is made. The package is installed, its
test (debian/tests/serve) runs in a network namespace of its own, and the package is purged: the
list has to be the same again, but for dpkg's own books. Then the root is booted, with a systemd of
its own: the package is installed, enabled, replaced by a later version while it is asked, and
purged. Everything in the root happens in namespaces that end with it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import dev

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEPLOY = dev.ROOT / "tools" / "deploy"
INSTALLED = dev.ROOT / "pktstun" / "deploy"  # what 'pktstun install-service' has, too
BUILD = dev.ROOT / "build" / "deb"
SOURCE = BUILD / "source"
CLEAN = BUILD / "root"
MIRROR = "http://deb.debian.org/debian"
LATER = "+later"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""The distribution's programs: the python3 that someone has in front lacks its modules."""

SHARED = (
    *(INSTALLED / name for name in ("pktstun.service", "pktstun.sysusers", "pktstun.toml")),
    DEPLOY / "pktstun.1",
)
"""Files that debhelper looks for in debian/."""

BOOKS = frozenset(
    {
        *(f"etc/{name}" for name in ("passwd-", "group-", "shadow-", "gshadow-", ".pwd.lock")),
        "var/cache/ldconfig/aux-cache",
        *(f"var/lib/dpkg/{name}" for name in ("status", "status-old", "lock", "lock-frontend")),
        *(f"var/log/{name}" for name in ("dpkg.log", "alternatives.log", "lastlog", "faillog")),
        "var/lib/dpkg/triggers/Lock",
    }
)
"""What dpkg and the programs that keep users write down, and leave."""


class DebError(Exception):
    """What keeps the package from being made or from being good, in words."""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    begin = time.monotonic()
    yield
    print(f"deb.py: {what}: {time.monotonic() - begin:.1f} s", flush=True)


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Run a program; return its output, or fail with it."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8", PATH=PATH),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        line = shlex.join(map(str, command))
        raise DebError(f"{done.stdout}failed with status {done.returncode}: {line}")
    return done.stdout


def demand(programs: dict[str, str]) -> None:
    """Fail unless all programs are there; their packages are named.

    Raises:
        DebError: some are not.
    """
    absent = [program for program in programs if not shutil.which(program)]
    if absent:
        line = dev.install_line("apt-get", [programs[program] for program in absent])
        raise DebError(f"this machine lacks {', '.join(absent)}. Install with:\n{line}")


# The package -----------------------------------------------------------------------------------


def prepare(source: Path) -> None:
    """Make the source tree with its debian/ in a directory that does not exist."""
    dev.copy_tree(source)
    debian = source / "debian"
    shutil.copytree(DEPLOY / "debian", debian)
    for path in SHARED:
        shutil.copy(path, debian)


def build() -> Path:
    """Make the package and return its file.

    Raises:
        DebError: something is missing, or a tool of the distribution fails.
    """
    demand({"dpkg-buildpackage": "dpkg-dev"})
    dev.remove(BUILD)
    BUILD.mkdir(parents=True)
    prepare(SOURCE)
    try:
        run(["dpkg-checkbuilddeps"], cwd=SOURCE)
    except DebError as error:
        line = f"apt-get build-dep {os.path.relpath(SOURCE)}"
        raise DebError(f"{error}\nInstall what is missing, as root:\n    {line}") from error
    with step("dpkg-buildpackage"):
        output = run(["dpkg-buildpackage", "-us", "-uc", "-b"], cwd=SOURCE)
    (BUILD / "build.log").write_text(output, encoding="utf-8")
    (package,) = BUILD.glob("pktstun_*.deb")
    print(package.relative_to(dev.ROOT))
    if shutil.which("lintian"):
        with step("lintian"):
            print(run(["lintian", "--fail-on=error", package]), end="")
    return package


# The clean system ------------------------------------------------------------------------------


def inside(command: Sequence[str], *, network: bool) -> str:
    """Run a program in the clean root, with the host's network or with one of its own."""
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
    kinds = {"proc": "proc", "sys": "sysfs", "run": "tmpfs"}
    set_up = [f"mount -t {kind} {kind} $0/{where}" for where, kind in kinds.items()]
    if not network:
        set_up.append("ip link set lo up")
    script = " && ".join([*set_up, 'exec chroot $0 "$@"'])
    return run(["unshare", *namespaces, "sh", "-c", script, str(CLEAN), *command])


def contents() -> dict[str, str]:
    """Return what lies in the clean root: paths, and a digest of what each is."""
    found = {}
    for directory, names, files in os.walk(CLEAN):
        for name in (*names, *files):
            path = Path(directory, name)
            if path.is_symlink():
                what = "-> " + str(path.readlink())
            elif path.is_file():
                what = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                what = ""
            found[str(path.relative_to(CLEAN))] = what
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return in words what was left behind, is gone or has changed, but for dpkg's books."""
    changed = [
        *(f"left behind: {path}" for path in after.keys() - before.keys() - BOOKS),
        *(f"gone: {path}" for path in before.keys() - after.keys() - BOOKS),
        *(
            f"changed: {path}"
            for path in before.keys() & after.keys() - BOOKS
            if before[path] != after[path]
        ),
    ]
    return sorted(changed)


def demand_means() -> None:
    """Fail unless a clean system can be made here.

    Raises:
        DebError: it cannot.
    """
    if os.geteuid() != 0:
        raise DebError("--try makes a root directory and namespaces: run it as root")
    demand({"debootstrap": "debootstrap", "unshare": "util-linux", "ip": "iproute2"})


def try_package(package: Path, mirror: str) -> None:
    """Install, run and purge the package on a clean system.

    Raises:
        DebError: it does not work, or something is left.
    """
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    with step(f"debootstrap {suite}"):
        run(["debootstrap", "--variant=minbase", suite, CLEAN, mirror])
    shutil.copy("/etc/resolv.conf", CLEAN / "etc")
    # As in any image: packages start nothing while they are installed.
    policy = CLEAN / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    depends = run(["dpkg-deb", "-f", package, "Depends"]).strip()
    print(f"Depends: {depends}")
    apt = ["apt-get", "-qq", "--yes", "--no-install-recommends"]
    with step("its dependencies"):
        inside([*apt, "satisfy", depends], network=True)
    for absent in ("cc", "gcc", "pip3"):
        if shutil.which(absent, path=str(CLEAN / "usr/bin")):
            raise DebError(f"the clean root has {absent}")
    before = contents()
    shutil.copy(package, CLEAN / "srv")
    with step("install"):
        print(inside(["dpkg", "-i", f"/srv/{package.name}"], network=False), end="")
    (CLEAN / "srv" / package.name).unlink()
    shutil.copy(SOURCE / "debian/tests/serve", CLEAN / "srv")
    with step("serve"):
        print(inside(["/srv/serve"], network=False), end="")
    (CLEAN / "srv/serve").unlink()
    with step("purge"):
        print(inside(["dpkg", "--purge", "pktstun"], network=False), end="")
    left = differences(before, contents())
    if left:
        raise DebError("after the purge the root is not what it was:\n" + "\n".join(left))
    print("deb.py: after the purge every file is what it was before")


def later(package: Path) -> Path:
    """Return a copy of the package that calls itself a later version."""
    content = BUILD / "later"
    dev.remove(content)
    run(["dpkg-deb", "--raw-extract", package, content])
    control = content / "DEBIAN" / "control"
    control.write_text(
        re.sub("^(Version: .*)$", rf"\1{LATER}", control.read_text(), flags=re.MULTILINE)
    )
    module = content / "usr/lib/python3/dist-packages/pktstun/__init__.py"
    module.write_text(module.read_text() + f'\n__version__ += "{LATER}"\n')
    target = BUILD / "later.deb"
    run(["dpkg-deb", "--build", content, target])
    return target


def try_under_systemd(package: Path) -> None:
    """Boot the clean system, and install, run, upgrade and purge the package there.

    Raises:
        DebError: it does not work, a request was lost, or something is left.
    """
    from tests.machine import Machine  # noqa: PLC0415 - takes the packages of the tests

    (CLEAN / "usr/sbin/policy-rc.d").unlink()
    files = [Path(shutil.copy(path, CLEAN / "srv")) for path in (package, later(package))]
    first, second = (f"/srv/{file.name}" for file in files)
    with Machine(CLEAN, complete=True) as machine, ThreadPoolExecutor() as beside:
        machine.run("dpkg", "-i", first)
        states = machine.show("pktstun", "UnitFileState", "ActiveState")
        expect(states == {"UnitFileState": "disabled", "ActiveState": "inactive"}, str(states))
        (CLEAN / "etc/pktstun.toml").write_text('iface = "lo"\n')
        machine.run("systemctl", "enable", "--now", "pktstun")
        pid = machine.show("pktstun", "MainPID")
        options = ("127.0.0.1", "--interval", "0.2", "--duration", "6")
        seen = beside.submit(machine.run, "pktstun", "monitor", *options)
        print(machine.run("dpkg", "-i", second), end="")
        machine.wait(lambda: f"{LATER} ready:" in machine.journal("-u", "pktstun"), "the upgrade")
        expect(machine.show("pktstun", "MainPID") == pid, "the same process")
        *_, summary, _ = seen.result().strip().splitlines()
        print(summary)
        expect(" 0.0% lost" in summary, "no request is lost")
        machine.run("dpkg", "--purge", "pktstun")
        state = machine.run("systemctl", "is-active", "pktstun", check=False).strip()
        expect(state == "inactive", f"the service has ended: {state}")
    for file in files:
        file.unlink()
    left = [path for path in contents() if "pktstun" in path]
    expect(not left, f"nothing is left: {left}")


def expect(condition: bool, what: str) -> None:  # noqa: FBT001 - as assert has it
    """Raise DebError unless the condition holds."""
    if not condition:
        raise DebError("not so: " + what)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit status."""
    parser = argparse.ArgumentParser(prog="dev.py deb", description="Make the Debian package.")
    parser.add_argument(
        "--try", dest="tried", action="store_true", help="try it on a clean system, as root"
    )
    parser.add_argument("--mirror", default=MIRROR, help="of that system (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.tried:
            demand_means()
        package = build()
        if options.tried:
            try_package(package, options.mirror)
            with step("under systemd"):
                try_under_systemd(package)
    except (DebError, OSError) as error:
        print(f"deb.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
