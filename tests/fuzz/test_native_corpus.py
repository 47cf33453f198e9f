"""The native fuzzer's corpus, replayed without a fuzzer, by any C compiler, beside the model.

What fuzzing has once reached stays right where there is no libFuzzer. C files that are broken on
purpose have to be found out, by the corpus alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from pktstun.packet import FrameDrop
from pktstun.stun import Drop
from tests.fuzz.native import model, run, seeds
from tools import dev

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Build = Callable[[str], Path]

TARGETS = [*run.TARGETS]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiler(directory: Path) -> list[str]:
    """Return the compiler's command, with sanitizers if it has them."""
    command = dev.compiler()
    assert command, "tests of C need a C compiler"
    probe = directory / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    sanitized = [*command, *SANITIZERS]
    done = subprocess.run(
        [*sanitized, str(probe), "-o", str(directory / "probe")], capture_output=True, check=False
    )
    return command if done.returncode else sanitized


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    directory = tmp_path_factory.mktemp("native")
    command = compiler(directory)
    programs: dict[str, Path] = {}

    def build_once(name: str) -> Path:
        if name not in programs:
            programs[name] = run.build(name, "files", command, directory)
        return programs[name]

    return build_once


def replay(
    program: Path, files: Sequence[str], **variables: str
) -> subprocess.CompletedProcess[str]:
    # What is preloaded into the interpreter is not for these programs.
    env = {name: value for name, value in run.environment().items() if name != "LD_PRELOAD"}
    return subprocess.run(
        [str(program), *files],
        env=env | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def verdicts(done: subprocess.CompletedProcess[str]) -> set[str]:
    names = {number: name for name, number in model.VERDICTS.items()}
    numbers = re.findall(r"^verdict (\d+)", done.stdout, re.MULTILINE)
    return {names[int(number)] for number in numbers}


@pytest.mark.parametrize("name", TARGETS)
def test_the_claims_hold_for_the_corpus(build: Build, name: str) -> None:
    files = run.files_of(name)
    done = replay(build(name), files)
    assert done.returncode == 0, done.stderr
    assert f"inputs {len(files)}\n" in done.stdout


@pytest.mark.parametrize("name", TARGETS)
def test_the_claims_hold_for_the_seeds(build: Build, name: str, tmp_path: Path) -> None:
    seeds.write(tmp_path)
    files = sorted(map(str, (tmp_path / name).iterdir()))
    assert files
    done = replay(build(name), files)
    assert done.returncode == 0, done.stderr


# --- The corpus is worth replaying ---


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_small(name: str) -> None:
    contents = [path.read_bytes() for path in (run.CORPUS / name).iterdir()]
    assert 0 < len(contents) <= 200
    assert len(set(contents)) == len(contents)
    assert sum(map(len, contents)) < 64 * 1024


@pytest.mark.parametrize(("name", "drops"), [("respond", [Drop]), ("frame", [FrameDrop, Drop])])
def test_the_corpus_has_every_verdict(
    build: Build, name: str, drops: list[type[Drop | FrameDrop]]
) -> None:
    expected = {drop.value for kind in drops for drop in kind} | {"success", "error", "handover"}
    assert verdicts(replay(build(name), run.files_of(name))) == expected


# --- The claims can fail ---

# The target that finds out, the file that is broken, how, and what is said.
FAULTS = [
    ("frame", "packet.c", "IPV6_HEADER + length > available", "length > available", ""),
    ("frame", "packet.c", "case 140:", "case 141:", "the model"),
    ("frame", "packet.c", "total > available", "total > available + 1", "the model"),
    ("frame", "packet.c", "length - UDP_HEADER > PKT", "length > PKT", "the model"),
    ("frame", "reply.c", "checksum ? checksum : 0xFFFF", "checksum", "another frame"),
    ("frame", "reply.c", "DONT_FRAGMENT);", "0);", "another frame"),
    ("respond", "stun.c", "ip[0] >> 4 == 0xE", "ip[0] >> 4 == 0xF", "respond()"),
    ("respond", "stun.c", "if (type & CLASS_MASK)", "if (type & 0x10)", "a reply is answered"),
    ("respond", "stun.c", "attribute[4] = 0;", "", "not what was written"),
    ("respond", "stun.c", "load16(mask) : 0", "load16(mask) : 1", "respond()"),
    ("respond", "stun.c", "redirects[client.family == 6]", "redirects[0]", "respond()"),
    ("respond", "stun.c", "is_same(&options->discovery[i].endpoint, server)", "1", "respond()"),
    ("respond", "stun.c", "if (options->allow_loopback)", "if (1)", "respond()"),
    ("respond", "stun.c", "options->classic && client", "client", "respond()"),
    ("respond", "stun.c", "offset != length ||", "", "respond()"),
    ("respond", "stun.c", "!change_request &&", "", "respond()"),
    ("walk", "ring.c", "header.tp_next_offset < FRAME_HEADER ||", "", "no step forward"),
    ("walk", "ring.c", "header.tp_mac > room ||", "", "outside the block"),
    ("walk", "ring.c", "walk->left--;", "", "frames left"),
    ("send", "batch.c", "next += (uint32_t)sent;", "next += count;", "settled"),
    ("send", "batch.c", "next++;", "return 0;", "settled"),
    ("send", "batch.c", "if (error == EINTR)", "if (error == EPERM)", ""),
    ("send", "batch.c", "stalled = 1;", "", "nothing to wait for"),
    ("send", "batch.c", "&slot->send_errors[classify(error)], 1", "&slot->sent, 1", "sent"),
    ("send", "batch.c", ".sin_port = htons(address->port)", ".sin_port = 1", "another client"),
    (
        "limiter",
        "limiter.c",
        "clear <= burst * interval",
        "clear < 2 * burst * interval",
        "replies",
    ),
    ("limiter", "limiter.c", ", of_host.place);", ", NULL);", "replies"),
    ("limiter", "limiter.c", "now = limiter->latest;", "", "unlocked"),
    ("limiter", "limiter.c", "(!mask ||", "(1 ||", "replies"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_broken_file_is_found_out(tmp_path: Path, fault: tuple[str, str, str, str, str]) -> None:
    name, file, right, wrong, claim = fault
    cdefs = tmp_path / "cdefs"
    shutil.copytree(run.ROOT / "cdefs", cdefs)
    source = (cdefs / file).read_text()
    assert source.count(right) == 1
    (cdefs / file).write_text(source.replace(right, wrong))
    program = run.build(name, "files", compiler(tmp_path), tmp_path, cdefs)
    done = replay(program, run.files_of(name))
    assert done.returncode != 0
    assert claim in done.stderr


def test_an_empty_variable_leaves_the_model_out(build: Build) -> None:
    files = run.files_of("respond")
    assert replay(build("respond"), files, PKTSTUN_FUZZ_MODEL="").returncode == 0
    assert replay(build("respond"), files, PKTSTUN_FUZZ_MODEL="exit 0").returncode != 0
