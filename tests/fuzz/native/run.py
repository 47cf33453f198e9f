"""Fuzz the C files with libFuzzer: build a target, run it, measure and keep its corpus.

usage: python tests/fuzz/native/run.py fuzz TARGET SECONDS [--msan] [--found DIRECTORY]
       python tests/fuzz/native/run.py coverage
       python tests/fuzz/native/run.py merge [DIRECTORY]
       python tests/fuzz/native/run.py replay TARGET FILE...

Theory of operation: a target is a C file here with LLVMFuzzerTestOneInput. It is compiled together
with the files of cdefs/ that it is about, as they are, in one of these ways:

    address   libFuzzer with ASan and UBSan; wrapping unsigned numbers and lossy conversions are
              reported, too
    memory    libFuzzer with MSan: is every byte that leaves initialized?
    merge     libFuzzer without optimization, so that an edge is a branch of the source
    coverage  no fuzzer but main.c, which runs files; counts branches for llvm-cov
    files     the same without counting, with any C compiler, for the tests

The model runs beside the first two and the last (see model.c), unless PKTSTUN_FUZZ_MODEL names
another command, or is empty: then nothing is asked.

`fuzz` starts from the committed corpus and writes nothing into the repository; the status is 0
without a finding. With one, the input is on standard output as hex, below libFuzzer's own report,
and `replay` runs it again. `--found` keeps what reached something new, in DIRECTORY/TARGET.

`coverage` replays the corpus of the targets about frames and fails unless it reaches every branch
of packet.c and stun.c. `merge` makes the committed corpus anew: seeds.py's inputs, and as few as it
takes of those that are committed or lie in DIRECTORY/TARGET to reach the edges that these reach.
The seeds stay, whatever they reach: many of them differ in what they ask the model.

CLANG names the compiler, if `clang` is not it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BUILD = ROOT / "build" / "fuzz"
CORPUS = HERE / "corpus"
CLANG = os.environ.get("CLANG", "clang")


class Target(NamedTuple):
    """What a target is linked with, and how long its inputs are."""

    sources: tuple[str, ...]
    longest: int
    flags: tuple[str, ...] = ()


TARGETS = {
    "frame": Target(("packet.c", "stun.c", "reply.c"), 1600),
    "respond": Target(("stun.c",), 1472),
    "walk": Target(("ring.c", "packet.c", "stun.c"), 4096),
    "send": Target(
        ("batch.c", "reply.c", "stun.c"),
        256,
        ("-Wl,--wrap=sendmmsg,--wrap=poll,--wrap=clock_gettime",),
    ),
    "limiter": Target(("limiter.c", "stun.c"), 256),
}
WAYS = {
    "address": ("-O1", "-fsanitize=fuzzer,address,undefined,integer", "-fno-sanitize-recover=all"),
    "memory": (
        *("-O1", "-fsanitize=fuzzer,memory", "-fsanitize-memory-track-origins"),
        "-fno-sanitize-recover=all",
    ),
    "merge": ("-O0", "-fsanitize=fuzzer", "-fsanitize-coverage=no-prune"),
    "coverage": ("-O0", "-fprofile-instr-generate", "-fcoverage-mapping"),
    "files": ("-O0",),
}
FLAGS = (
    *("-std=gnu17", "-g", "-fno-omit-frame-pointer", "-D_GNU_SOURCE"),
    *("-Wall", "-Wextra"),
)
MEASURED = ("frame", "respond", "walk")
REPORTED = ("packet.c", "stun.c", "ring.c", "reply.c")
COMPLETE = ("packet.c", "stun.c")


def build(
    name: str,
    way: str,
    compiler: Sequence[str] = (CLANG,),
    directory: Path | None = None,
    cdefs: Path = ROOT / "cdefs",
) -> Path:
    """Compile a target and return the program's path; the tests have their own compiler and C."""
    target = TARGETS[name]
    program = (directory or BUILD / way) / name
    program.parent.mkdir(parents=True, exist_ok=True)
    own = [f"{name}.c", "harness.c", "model.c"]
    if way in {"coverage", "files"}:
        own.append("main.c")
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        made = Path(scratch, name)
        command = [*compiler, *FLAGS, *WAYS[way], *(str(HERE / file) for file in own)]
        command += [f"-I{cdefs}", *(str(cdefs / file) for file in target.sources), *target.flags]
        subprocess.run([*command, "-o", str(made)], cwd=ROOT, check=True)
        made.replace(program)  # another run may be executing it
    return program


def environment() -> dict[str, str]:
    """Return the variables for a target."""
    model = f"exec {shlex.quote(sys.executable)} -B {shlex.quote(str(HERE / 'model.py'))}"
    return {
        "PKTSTUN_FUZZ_MODEL": model,
        # Inputs are small and free what they use: what is kept costs caches and finds nothing.
        "ASAN_OPTIONS": "quarantine_size_mb=8",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        **os.environ,
    }


def fuzz(name: str, seconds: int, way: str, found: Path | None = None) -> int:
    """Run a fuzzer for some time; print what it did and found; return the status."""
    with tempfile.TemporaryDirectory(prefix="pktstun-fuzz-") as directory:
        scratch = Path(directory)
        reached = found / name if found else scratch / "corpus"
        reached.mkdir(parents=True, exist_ok=True)
        command = [
            *(str(build(name, way)), f"-max_total_time={seconds}", f"-artifact_prefix={scratch}/"),
            *(f"-max_len={TARGETS[name].longest}", "-timeout=20", "-rss_limit_mb=2048"),
            *("-print_final_stats=1", f"-dict={HERE.parent / 'stun.dict'}"),
            *(str(reached), str(CORPUS / name)),
        ]
        with subprocess.Popen(
            command, env=environment(), stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            assert process.stderr
            executed, edges, corpus = "0", "0", "nothing"
            for line in process.stderr:
                if not re.match(r"#\d+\s+(NEW|REDUCE|RELOAD|pulse)", line):
                    sys.stderr.write(line)
                if match := re.match(r"#(\d+).* cov: (\d+) .* corp: (\S+)", line):
                    executed, edges, corpus = match.groups()
                if match := re.match(r"stat::number_of_executed_units:\s+(\d+)", line):
                    executed = match[1]
        for path in sorted(scratch.iterdir()):
            # libFuzzer reports a slow input and goes on; it is no failure.
            if path.is_file() and not path.name.startswith("slow-unit-"):
                data = path.read_bytes()
                sys.stdout.write(f"\n{path.name}: {len(data)} bytes\nhex: {data.hex()}\n")
    inputs, _, size = corpus.partition("/")
    sys.stdout.write(
        f"{name}, {way}: {executed} executions, {edges} edges, {inputs} inputs of {size} in all, "
        f"status {process.returncode}\n"
    )
    sys.stdout.flush()
    return process.returncode


def files_of(name: str) -> list[str]:
    """Return the paths of the committed corpus of a target."""
    return sorted(str(path) for path in (CORPUS / name).iterdir())


def llvm(tool: str) -> str:
    """Return the path of a tool of the compiler's own version."""
    output = subprocess.run(
        [CLANG, f"-print-prog-name={tool}"], capture_output=True, text=True, check=True
    )
    path = shutil.which(output.stdout.strip())
    if path:
        return path
    version = subprocess.run([CLANG, "-dumpversion"], capture_output=True, text=True, check=True)
    name = f"{tool}-{version.stdout.partition('.')[0]}"
    if path := shutil.which(name):
        return path
    sys.exit(f"run.py: neither {tool} nor {name} is installed; both come with LLVM")


def measure() -> dict[str, Any]:
    """Replay the corpus; return what llvm-cov exports of the files that are reported."""
    profdata, cov = llvm("llvm-profdata"), llvm("llvm-cov")
    with tempfile.TemporaryDirectory(prefix="pktstun-coverage-") as directory:
        programs, profiles = [], []
        for name in MEASURED:
            program, profile = build(name, "coverage"), f"{directory}/{name}.profraw"
            env = environment() | {"LLVM_PROFILE_FILE": profile, "PKTSTUN_FUZZ_MODEL": ""}
            command = [str(program), *files_of(name)]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr + f"run.py: the corpus of {name} ends with a finding")
            programs.append(str(program))
            profiles.append(profile)
        merged = f"{directory}/all.profdata"
        subprocess.run([profdata, "merge", *profiles, "-o", merged], check=True)
        objects = [programs[0], *(f"-object={program}" for program in programs[1:])]
        sources = [str(ROOT / "cdefs" / file) for file in REPORTED]
        command = [cov, "export", *objects, f"-instr-profile={merged}", *sources]
        exported = subprocess.run(command, capture_output=True, check=True).stdout
    measured: dict[str, Any] = json.loads(exported)["data"][0]
    return measured


def coverage() -> int:
    """Print the branch coverage; fail if that of the pure functions is not complete."""
    failed = False
    by_name = {Path(file["filename"]).name: file for file in measure()["files"]}
    for name in REPORTED:
        file = by_name[name]
        total = file["summary"]["branches"]
        percent = 100 * total["covered"] / total["count"] if total["count"] else 100
        lines = file["summary"]["lines"]
        sys.stdout.write(
            f"{name:9} {total['covered']:3} of {total['count']:3} branches ({percent:.1f} %), "
            f"{lines['covered']} of {lines['count']} lines\n"
        )
        for branch in file["branches"]:
            line, column, _, _, taken, passed = branch[:6]
            never = [word for word, count in (("true", taken), ("false", passed)) if not count]
            if never:
                where = f"cdefs/{name}:{line}:{column}"
                sys.stdout.write(f"  {where}: never {' nor '.join(never)}\n")
        failed |= name in COMPLETE and total["covered"] < total["count"]
    return int(failed)


def merge(found: Path | None) -> int:
    """Make the committed corpus anew: the seeds, and what reaches more."""
    with tempfile.TemporaryDirectory(prefix="pktstun-merge-") as directory:
        kept = Path(directory)
        subprocess.run([sys.executable, "-B", str(HERE / "seeds.py"), str(kept)], check=True)
        for name in TARGETS:
            sources = [CORPUS / name, *([found / name] if found else [])]
            command = [str(build(name, "merge")), "-merge=1", "-use_counters=0", str(kept / name)]
            command += [str(path) for path in sources if path.is_dir()]
            env = environment() | {"PKTSTUN_FUZZ_MODEL": ""}
            subprocess.run(command, env=env, stderr=subprocess.DEVNULL, check=True)
            shutil.rmtree(CORPUS / name, ignore_errors=True)
            shutil.copytree(kept / name, CORPUS / name)
            sizes = [path.stat().st_size for path in (CORPUS / name).iterdir()]
            sys.stdout.write(f"{name}: {len(sizes)} inputs of {sum(sizes)} bytes in all\n")
    return 0


def replay(name: str, files: Sequence[str]) -> int:
    """Run files with the fuzzer's sanitizers."""
    command = [str(build(name, "address")), *files]
    return subprocess.run(command, env=environment(), check=False).returncode


def main(arguments: list[str]) -> int:
    """Choose the form; return the exit status."""
    match arguments:
        case ["fuzz", name, seconds, *rest] if name in TARGETS and seconds.isdecimal():
            way = "memory" if "--msan" in rest else "address"
            rest = [word for word in rest if word != "--msan"]
            if not rest:
                return fuzz(name, int(seconds), way)
            if len(rest) == 2 and rest[0] == "--found":
                return fuzz(name, int(seconds), way, Path(rest[1]))
        case ["coverage"]:
            return coverage()
        case ["merge"]:
            return merge(None)
        case ["merge", directory]:
            return merge(Path(directory))
        case ["replay", name, first, *rest] if name in TARGETS:
            return replay(name, [first, *rest])
    sys.stderr.write(__doc__ or "")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
