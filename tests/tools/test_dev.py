"""tools/dev.py: what it says when it cannot work, and what it does not do twice.

The cheap half runs the script or calls its functions; none of that makes an environment. The
tests marked `packaging` start from a fresh copy of the tree.
"""

from __future__ import annotations

import ast
import fcntl
import os
import re
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import pytest

import pktstun
from tests.fuzz.native import run
from tools import dev

SCRIPT = dev.ROOT / "tools" / "dev.py"
VERBS = (
    "serve",
    "query",
    "run",
    "compare",
    "test",
    "coverage",
    "fuzz",
    "mutants",
    "docs",
    "check",
    "build",
    "deb",
    "sanitize",
    "clean",
)


def run_dev(
    *arguments: str, script: Path = SCRIPT, **variables: str
) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PKTSTUN_VENV"}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=env | variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def make_program(path: Path, script: str = "exit 0") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the checkout, for functions that look at it."""
    root = tmp_path / "tree"
    (root / "cdefs").mkdir(parents=True)
    (root / "cdefs" / "a.c").write_text("int a;\n")
    (root / "pktstun").mkdir()
    (root / "pktstun" / "_native.abi3.so").write_bytes(b"module")
    (root / "pyproject.toml").write_text(
        '[dependency-groups]\nx = ["one"]\ny = [{ include-group = "x" }]\nz = []\n'
    )
    monkeypatch.setattr(dev, "ROOT", root)
    return root


# Usage


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_has_one_line_per_verb(option: str) -> None:
    done = run_dev(option)
    assert (done.returncode, done.stderr) == (0, "")
    assert tuple(re.findall(r"^  (\w+) .*[^ ]{3}", done.stdout, re.MULTILINE)) == VERBS
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "arguments", [(), ("",), ("bogus",), ("check", "x"), ("clean", "--help"), ("docs", "x")]
)
def test_anything_else_is_answered_with_the_usage(arguments: tuple[str, ...]) -> None:
    done = run_dev(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", dev.USAGE)


# What is missing


def test_old_pythons_can_read_the_script() -> None:
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize(
    "verb", ["serve", "query", "run", "test", "check", "build", "deb", "sanitize"]
)
def test_an_old_python_is_told_so(verb: str) -> None:
    code = (
        "import runpy, sys\n"
        f"script = runpy.run_path({str(SCRIPT)!r})\n"
        "sys.version_info, sys.version = (3, 9, 18, 'final', 0), '3.9.18 (and more)'\n"
        f"sys.exit(script['main']([{verb!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer (this is 3.9.18)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_compiler_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    done = run_dev("serve", CC="/nonexistent/cc -O2", PKTSTUN_VENV=str(environment))
    assert (done.returncode, done.stdout) == (1, "")
    assert "a C compiler (CC=/nonexistent/cc -O2 is none)" in done.stderr
    assert not environment.exists()


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        ("apt-get", "apt-get install gcc libc6-dev"),
        ("dnf", "dnf install gcc"),
        ("apk", "apk add gcc musl-dev linux-headers"),
        ("pacman", "pacman -S gcc"),
    ],
)
def test_the_install_line_is_this_systems(tmp_path: Path, manager: str, line: str) -> None:
    make_program(tmp_path / "bin" / manager)
    done = run_dev("test", PATH=str(tmp_path / "bin"), PKTSTUN_VENV=str(tmp_path / "environment"))
    assert done.returncode == 1
    sudo = "" if os.geteuid() == 0 else "sudo "
    assert done.stderr.endswith(f"  - a C compiler\nInstall with:\n    {sudo}{line}\n")


def test_an_unknown_system_gets_words(tmp_path: Path) -> None:
    done = run_dev("test", PATH=str(tmp_path), PKTSTUN_VENV=str(tmp_path / "environment"))
    assert done.returncode == 1
    assert done.stderr.endswith("with the package manager of this system.\n")


def test_a_compiler_without_headers_is_quoted(tmp_path: Path) -> None:
    make_program(tmp_path / "cc", "echo 'no such header' >&2; exit 1")
    done = run_dev("build", CC=str(tmp_path / "cc"), PKTSTUN_VENV=str(tmp_path / "environment"))
    assert done.returncode == 1
    assert "the headers of the C library and of Linux: no such header" in done.stderr


def test_everything_missing_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_program(tmp_path / "bin" / "apt-get")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PKTSTUN_VENV", str(tmp_path / "environment"))
    monkeypatch.setattr(
        "sysconfig.get_paths", lambda: dict.fromkeys(("include", "platinclude"), "/no")
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("sys.base_prefix", "/usr")
    monkeypatch.setattr("sys.executable", str(Path("/usr/bin/python3").resolve()))
    monkeypatch.delenv("CC", raising=False)
    assert dev.main(["run"]) == 1
    message = capsys.readouterr().err
    assert re.findall(r"  - (\w+ \w+|Python\.h)", message) == ["the venv", "Python.h", "a C"]
    assert message.endswith("apt-get install python3-venv python3-dev gcc libc6-dev\n")


def test_peers_that_are_missing_are_named(tmp_path: Path) -> None:
    make_program(tmp_path / "stun")
    done = run_dev("test", "--peers", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "turnutils_stunclient, tshark, systemd-analyze, nft, openssl, promtool" in done.stderr
    assert done.stderr.endswith(
        "apt-get install coturn tshark systemd nftables openssl prometheus\n"
    )


def test_ci_installs_the_peers() -> None:
    script = (dev.ROOT / ".ci/run").read_text()
    (listed,) = re.findall(r"^packages=\(([^)]*)\)", script, re.MULTILINE)
    assert set(dev.PEERS.values()) <= set(listed.split())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "(there is none by the name of CLANG=clang-of-mine)"),
        ("echo no libclang_rt.fuzzer >&2; exit 1", "(clang-of-mine says: no libclang_rt.fuzzer)"),
    ],
)
def test_a_clang_without_libfuzzer_is_named(tmp_path: Path, script: str | None, said: str) -> None:
    make_program(tmp_path / "apt-get")
    if script:
        make_program(tmp_path / "clang-of-mine", script)
    environment = tmp_path / "environment"
    done = run_dev(
        *("fuzz", "frame", "1"),
        PATH=str(tmp_path),
        CLANG="clang-of-mine",
        PKTSTUN_VENV=str(environment),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"clang with libFuzzer {said}" in done.stderr
    assert done.stderr.endswith("apt-get install clang libclang-rt-dev llvm\n")
    assert not environment.exists()


# Arguments for the fuzzers


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("", ("codec", "30", ())),
        ("600", ("codec", "600", ())),
        ("codec 5", ("codec", "5", ())),
        ("frame", ("frame", "30", ())),
        ("native 20 --msan", ("native", "20", ("--msan",))),
        ("--msan send", ("send", "30", ("--msan",))),
        ("--coverage", ("codec", "30", ("--coverage",))),
    ],
)
def test_what_to_fuzz_is_read(arguments: str, read: tuple[str, str, tuple[str, ...]]) -> None:
    assert dev.read_fuzzing(arguments.split()) == read


@pytest.mark.parametrize(
    "arguments",
    [
        *("x", "frame x", "3 frame", "frame 3 4", "-1", "--msan", "codec --msan"),
        *("frame --coverage", "--coverage 3", "--coverage --msan"),
    ],
)
def test_what_cannot_be_fuzzed_is_refused(arguments: str) -> None:
    with pytest.raises(dev.VerbError, match="frame, respond, walk, send, limiter"):
        dev.read_fuzzing(arguments.split())


def test_the_targets_are_those_of_the_fuzzer() -> None:
    assert tuple(run.TARGETS) == dev.NATIVE_TARGETS


# Arguments for pytest


@pytest.mark.parametrize(
    ("arguments", "selected"),
    [
        ([], ["-m", "not peers"]),
        (["-k", "x", "tests/a.py"], ["-m", "not peers", "-k", "x", "tests/a.py"]),
        (["-m", "a or b"], ["-m", "(not peers) and (a or b)"]),
        (["-ma", "-x"], ["-m", "(not peers) and (a)", "-x"]),
        (["-m=a"], ["-m", "(not peers) and (a)"]),
        (["-m", "a", "-m", "b"], ["-m", "(not peers) and (b)"]),
        (["-m", "peers or a"], ["-m", "peers or a"]),
        (["-m", "speers"], ["-m", "(not peers) and (speers)"]),
        (["-m"], ["-m", "not peers", "-m"]),  # pytest says what is wrong with it
    ],
)
def test_marker_expressions_are_joined(arguments: list[str], selected: list[str]) -> None:
    assert dev.select("not peers", arguments, unless="peers") == selected


# The stamp


def test_the_digest_knows_names_contents_and_words(tree: Path) -> None:
    def digest(*words: str) -> str:
        return dev.digest(dev.files_of("pyproject.toml", "cdefs"), *words)

    seen = {digest()}

    def is_new(*words: str) -> bool:
        value = digest(*words)
        known = value in seen
        seen.add(value)
        return not known

    assert is_new("a", "b")
    assert is_new("ab")
    (tree / "cdefs" / "a.c").write_text("int b;\n")
    assert is_new()
    (tree / "cdefs" / "a.c").rename(tree / "cdefs" / "b.c")
    assert is_new()
    (tree / "cdefs" / "c.h").touch()
    assert is_new()
    (tree / "pyproject.toml").write_text("")
    assert is_new()
    (tree / "cdefs" / "__pycache__").mkdir()
    (tree / "cdefs" / "__pycache__" / "x.pyc").touch()
    (tree / "cdefs" / "x.so").touch()
    assert not is_new()


def test_the_stamp_follows_what_an_installation_depends_on(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dev.Environment(tmp_path / "env", own=True)
    make_program(tmp_path / "env" / "bin" / "pktstun")
    native = tree / "pktstun" / "_native.abi3.so"
    probe = dev.Probe(interpreter="/usr 3.11", minor=11, native=native, error="")
    first = dev.main_stamp(environment, probe, ["x"])
    assert first["native"]
    environment.write_stamp(first)
    assert environment.read_stamp() == first == dev.main_stamp(environment, probe, ["x"])

    assert dev.main_stamp(environment, probe, ["x", "y"]) != first
    assert dev.main_stamp(environment, probe._replace(interpreter="/usr 3.12"), ["x"]) != first
    monkeypatch.setenv("CFLAGS", "-O0 --changed")
    assert dev.main_stamp(environment, probe, ["x"]) != first
    monkeypatch.undo()
    monkeypatch.setattr(dev, "ROOT", tree)
    native.write_bytes(b"of another environment")
    assert dev.main_stamp(environment, probe, ["x"]) != first
    native.write_bytes(b"module")
    assert dev.main_stamp(environment, probe, ["x"]) == first


def test_no_stamp_is_complete_without_module_and_command(tree: Path, tmp_path: Path) -> None:
    environment = dev.Environment(tmp_path / "env", own=True)
    native = tree / "pktstun" / "_native.abi3.so"
    probe = dev.Probe(interpreter="", minor=11, native=native, error="")
    assert not dev.main_stamp(environment, probe, [])["native"]
    make_program(tmp_path / "env" / "bin" / "pktstun")
    assert dev.main_stamp(environment, probe, [])["native"]
    assert not dev.main_stamp(environment, probe._replace(native=None), [])["native"]
    elsewhere = tmp_path / "_native.abi3.so"
    elsewhere.write_bytes(b"module")
    assert not dev.main_stamp(environment, probe._replace(native=elsewhere), [])["native"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00"])
def test_a_broken_stamp_is_no_stamp(tmp_path: Path, content: str) -> None:
    environment = dev.Environment(tmp_path, own=False)
    assert environment.read_stamp() == {}
    environment.stamp.write_text(content)
    assert environment.read_stamp() == {}


@pytest.mark.usefixtures("tree")
def test_groups_bring_the_groups_they_include(tmp_path: Path) -> None:
    assert dev.closure([]) == []
    assert dev.closure(["y"]) == ["x", "y"]
    environment = dev.Environment(tmp_path, own=False)
    assert environment.installed_groups() == []
    environment.write_stamp({"groups": ["x", "removed", "z"]})
    assert environment.installed_groups() == ["x", "z"]


# The environment


def test_only_a_finished_environment_of_this_python_is_usable(tmp_path: Path) -> None:
    path = tmp_path / "env"
    environment = dev.Environment(path, own=False)
    assert environment.usable() is None
    venv.create(path, symlinks=True)
    assert environment.usable() is None, "it has no pip"
    pip = next((path / "lib").glob("python3*")) / "site-packages" / "pip"
    pip.mkdir()
    (pip / "__init__.py").touch()
    assert environment.usable() is not None, "made by hand"
    environment.write_stamp({})
    assert environment.usable() is None, "unfinished"
    environment.begin()
    probe = environment.usable()
    assert probe is not None
    assert (probe.minor, probe.native) == (sys.version_info.minor, None)
    moved = path.rename(tmp_path / "moved")
    assert dev.Environment(moved, own=False).usable() is None, "moved"
    moved.rename(path)
    assert environment.usable() is not None
    for broken in ("#!/nonexistent/python\n", "#!/bin/sh\necho {}; exit 1\n", "#!/bin/sh\n"):
        environment.python.unlink()
        make_program(environment.python)
        environment.python.write_text(broken)
        assert environment.usable() is None, broken


def test_an_environment_of_another_python_is_not_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dev.Environment(tmp_path, own=False)
    probe = dev.Probe(interpreter="", minor=sys.version_info.minor + 1, native=None, error="")
    monkeypatch.setattr(environment, "probe", lambda _env: probe)
    assert environment.usable() is None


def test_what_is_not_ours_is_never_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    done = run_dev("run", PKTSTUN_VENV=str(tmp_path))
    assert done.returncode == 1
    assert "not this script's to replace" in done.stderr
    assert list(tmp_path.iterdir()) == [kept]
    assert not dev.Environment(tmp_path, own=False).is_own(), "clean asks this"


def test_the_environments_place_can_be_chosen(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PKTSTUN_VENV", raising=False)
    assert dev.main_environment().path == tree / ".venv"
    assert dev.main_environment().is_own()
    monkeypatch.setenv("PKTSTUN_VENV", "relative")
    monkeypatch.chdir(tmp_path)
    assert dev.main_environment().path == tmp_path / "relative"
    assert dev.main_environment().is_own(), "nothing is there"


def test_the_lock_is_exclusive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    path.touch()
    entered = threading.Event()

    def enter() -> None:
        with dev.locked(path):
            entered.set()

    with dev.locked(path), path.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(10)
    assert entered.is_set()
    assert "waiting for another dev.py" in capsys.readouterr().err


def test_a_failure_shows_what_the_program_printed(capsys: pytest.CaptureFixture[str]) -> None:
    dev.quietly(["sh", "-c", "echo unseen"], os.environ)
    with pytest.raises(dev.VerbError, match=r"failed with status 3: sh -c 'echo out; echo err >&2"):
        dev.quietly(["sh", "-c", "echo out; echo err >&2; exit 3"], os.environ)
    assert capsys.readouterr() == ("", "out\nerr\n")


# Copies and sanitizers


def test_copies_hold_no_products(tree: Path, tmp_path: Path) -> None:
    for name in (".git/x", "build/x", "dist/x", "p.egg-info/x", "env/pyvenv.cfg", "cdefs/x.so"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    dev.copy_tree(tmp_path / "copy")
    copied = {path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*")}
    assert copied == {Path("cdefs"), Path("cdefs/a.c"), Path("pktstun"), Path("pyproject.toml")}


def test_the_sanitizers_library_is_found_behind_a_linker_script(tmp_path: Path) -> None:
    library = tmp_path / "libasan.so"
    make_program(tmp_path / "cc", f"echo {library}")
    cc = [str(tmp_path / "cc")]
    with pytest.raises(dev.VerbError, match=r"asked .*/cc for libasan\.so"):
        dev.address_sanitizer(cc)
    library.write_bytes(b"\x7fELF\x00\x00")
    assert dev.address_sanitizer(cc) == library
    library.write_bytes(b"INPUT ( /usr/lib64/libasan.so.8.0.0 )\n")
    assert dev.address_sanitizer(cc) == Path("/usr/lib64/libasan.so.8.0.0")


# From nothing


@pytest.mark.packaging
def test_a_fresh_checkout_runs_and_repairs_itself(tmp_path: Path) -> None:
    dev.copy_tree(tmp_path / "tree")
    script = tmp_path / "tree" / "tools" / "dev.py"
    results: list[subprocess.CompletedProcess[str]] = []

    def run() -> None:
        results.append(run_dev("run", "--version", script=script))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in results] == [0, 0, 0], results
    assert {done.stdout for done in results} == {f"pktstun {pktstun.__version__}\n"}
    said = "".join(done.stderr for done in results)
    assert (said.count("making "), said.count("installing ")) == (1, 1)

    # Current: nothing is said because nothing is done.
    start = time.monotonic()
    assert run_dev("run", "--version", script=script).stderr == ""
    assert time.monotonic() - start < 3

    (native,) = (tmp_path / "tree" / "pktstun").glob("_native*.so")
    native.unlink()
    repaired = run_dev("run", "--version", script=script)
    assert (repaired.returncode, repaired.stderr) == (0, "dev.py: installing pktstun\n")
    assert native.exists()
