"""The container file: what it copies is there, and what it runs serves and is found healthy."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.lab import require_root
from tests.netns.server import Server
from tools import dev

if TYPE_CHECKING:
    from tests.lab import Lab

FILE = dev.ROOT / "tools" / "deploy" / "Containerfile"
TEXT = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE))
BUILD, RUN = TEXT.split("\nFROM ")[1:]
PROGRAM = "/opt/pktstun/bin/pktstun"


def instructions(stage: str, name: str) -> list[str]:
    return re.findall(rf"^{name} +(.+)$", stage, re.MULTILINE)


def command(text: str) -> list[str]:
    """Read the form that takes no shell."""
    words: list[str] = json.loads(text)
    return words


def test_it_copies_what_the_build_reads() -> None:
    copied = {word for line in instructions(BUILD, "COPY") for word in line.split()[:-1]}
    assert all((dev.ROOT / name).exists() for name in copied)
    project = tomllib.loads((dev.ROOT / "pyproject.toml").read_text())
    described = {project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == {"pyproject.toml", "cdefs", "pktstun", *described}


def test_it_runs_as_a_user_of_its_own() -> None:
    (user,) = instructions(RUN, "USER")
    assert user == "pktstun"
    assert any(re.search(r"\buseradd\b.* pktstun\b", line) for line in instructions(RUN, "RUN"))


@pytest.mark.root
def test_what_it_runs_is_found_healthy(lab: Lab) -> None:
    require_root()
    (entry,), (arguments,) = instructions(RUN, "ENTRYPOINT"), instructions(RUN, "CMD")
    assert command(entry) == [PROGRAM]
    serve = command(arguments)
    assert serve.pop(0) == "serve"
    (check,) = instructions(RUN, "HEALTHCHECK")
    program, *words = command(check[check.index("[") :])
    assert program == PROGRAM
    host = lab.namespace("host")
    with Server(host, serve):
        assert host.run([sys.executable, "-m", "pktstun", *words]).returncode == 0
    assert host.run([sys.executable, "-m", "pktstun", *words]).returncode == 1
