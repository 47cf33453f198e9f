"""The guide and README.md: everything in them that can be run is run, on a host made for it.

Theory of operation. A page is a script: its blocks of `sh`, `toml`, `yaml` and `python`, from top
to bottom. (The Python of pages with `pycon` is run by tests/test_docs.py.) The laboratory has two
hosts: the reader's, with the addresses of the documentation at `eth0`, and another one that is
stun.example.org, has all protocols on, and asks the reader's host where the guide says so. The
reader's is a namespace of each kind that matters (network, mounts, processes):
`tests/guide/host.sh` makes it, and `tests/guide/bin/pktstun` has `pktstun serve` go on behind.

What cannot be run there is in `NOT_RUN`, with the reason and with a function that holds it against
what the project ships. A command that is not in that list is run, whatever it is; a block in a
language that nobody runs fails.
"""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pktstun import cli, stun
from pktstun.config import check_change
from pktstun.engine import Tuning
from pktstun.kernel import RingGeometry
from pktstun.packet import build_udp_frame
from tests.client.servers import CERTIFICATES
from tests.lab import Lab, Namespace, require_root
from tests.netns.server import Server
from tests.netns.test_srv import dns_server
from tests.pcap import write_pcap
from tests.test_docs import CODEC, README, Block, blocks
from tools import compare_modes, dev, docs

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

GUIDE = docs.ROOT / "tests" / "guide"
TOOLS = docs.ROOT / "tools" / "deploy"
UNITS = docs.ROOT / "pktstun" / "deploy"
PAGES = [README, *sorted(docs.PAGES.glob("*.md"))]

SUFFIXES = {"sh": ".sh", "toml": ".toml", "yaml": ".yaml", "nft": ".nft", "python": ".py"}
# Programs that not every machine has.
NEEDS = {
    "first-run.md": ["curl"],
    "incidents.md": ["ip", "nstat", "ss"],
    "monitoring.md": ["curl", "promtool"],
    "operations.md": ["pkill"],
    "scale-out.md": ["ip", "nft", "sysctl"],
}
SERVED = {"incidents.md"}  # where the service is expected to run
SHOWN = {"text"}  # what a command has said, and drawings


def run_here(page: Path) -> list[Block]:
    """Return the blocks of a page that are run: the codec's Python is so elsewhere."""
    suffixes = SUFFIXES.keys() - ({"python"} if page in CODEC else set())
    return [block for block in blocks(page.read_text()) if block.language in suffixes]


RUN = [page for page in PAGES if run_here(page)]


def page_name(page: Path) -> str:
    return page.name


# --- What is not run ---


def check_dev(words: Sequence[str]) -> None:
    verb, *rest = words[2:]
    if verb == "compare":
        compare_modes._parser().parse_args(rest)
    elif verb == "fuzz":
        dev.read_fuzzing(rest)
    else:
        assert re.search(rf"^  {verb} ", dev.USAGE, re.MULTILINE)
        assert all(word in dev.USAGE for word in rest)


def check_script(words: Sequence[str]) -> None:
    assert (docs.ROOT / words[1]).is_file()


def check_pip(words: Sequence[str]) -> None:
    assert words[1] == "install"
    extras = tomllib.loads((docs.ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        target, _, extra = word.rstrip("]").partition("[")
        assert target in {".", "pktstun", "dist/pktstun-*.whl"}
        assert not extra or extra in extras["optional-dependencies"]


def check_apt(words: Sequence[str]) -> None:
    assert words[1] in {"install", "purge"}
    package = (TOOLS / "debian" / "control").read_text()
    assert re.search(r"pktstun(?=_|$)", words[2])
    assert "\nPackage: pktstun\n" in package


def check_container(words: Sequence[str]) -> None:
    verb, *rest = words[1:]
    if verb == "build":
        assert (docs.ROOT / rest[rest.index("-f") + 1]).is_file()
    else:
        assert verb == "run"
        _, command = rest[: rest.index("pktstun")], rest[rest.index("pktstun") + 1 :]
        if command:
            cli._parser().parse_args(command)


def check_kubectl(words: Sequence[str]) -> None:
    manifest = (TOOLS / "kubernetes.yaml").read_text()
    match words[1:]:
        case ["apply", "-f", path]:
            assert docs.ROOT / path == TOOLS / "kubernetes.yaml"
        case ["label", "node", _, label]:
            name, _, value = label.partition("=")
            assert f'{name}: "{value}"' in manifest
        case _:
            pytest.fail(f"nobody knows kubectl {words[1]}")


def check_route(words: Sequence[str]) -> None:
    """The hosts of tests/netns/test_ecmp.py, which runs all of it."""
    ecmp = (docs.ROOT / "tests" / "netns" / "ecmp.py").read_text()
    assert words[1:3] == ["route", "add"]
    assert "fib_multipath_hash_policy" in ecmp


def check_systemctl(words: Sequence[str]) -> None:
    verb, *rest = words[1:]
    reloads = {"reload", "try-reload-or-restart"}
    assert verb in {"daemon-reload", "enable", "start", "status", "kill", "edit"} | reloads
    for name in (word for word in rest if not word.startswith("-")):
        unit = (UNITS / f"{name}.service").read_text()
        assert verb not in reloads or "ExecReload=" in unit
        assert verb != "enable" or "[Install]" in unit


def check_journalctl(words: Sequence[str]) -> None:
    assert (UNITS / f"{words[words.index('-u') + 1]}.service").exists()


class NotRun(NamedTuple):
    """Commands that are not run: a pattern, why, and what is looked at instead."""

    pattern: str
    reason: str
    check: Callable[[Sequence[str]], None]


NOT_RUN = [
    NotRun(
        r"python3 tools/dev\.py (?!serve|query|run)", "takes minutes, and is CI itself", check_dev
    ),
    NotRun(r"\.venv/bin/python tools/", "measures for minutes", check_script),
    NotRun(r"python3 -m venv ", "is for what cannot be run", lambda _: None),
    NotRun(
        r"((/opt|~)/pktstun/bin/)?pip install ",
        "takes a package index: tests/test_packaging.py",
        check_pip,
    ),
    NotRun(r"apt ", "changes the host: tools/dev.py deb --try", check_apt),
    NotRun(r"podman ", "takes a registry: tests/deploy/", check_container),
    NotRun(r"kubectl ", "takes a cluster", check_kubectl),
    NotRun(r"ip route add .* nexthop ", "takes a router: tests/netns/test_ecmp.py", check_route),
    NotRun(r"systemctl ", "there is no systemd in a namespace", check_systemctl),
    NotRun(r"journalctl ", "there is no systemd in a namespace", check_journalctl),
]


def script(code: str) -> str:
    """Return a block of shell without what is not run, which is checked."""
    lines = []
    for line in code.splitlines():
        rule = next((each for each in NOT_RUN if re.match(each.pattern, line)), None)
        if rule is not None:
            rule.check(shlex.split(line, comments=True))
            lines.append("")
        else:
            # The environment that dev.py makes is the one that runs this.
            lines.append(re.sub(r"^python3 tools/dev\.py (run )?", "pktstun ", line))
    return "\n".join(lines) + "\n"


# --- The laboratory ---


@dataclass
class World:
    """The reader's host, and the other one."""

    here: Namespace
    elsewhere: Namespace

    def run(self, directory: Path, page: Path) -> None:
        """Run the blocks of a page, from top to bottom."""
        scratch, made = directory / "scratch", directory / "blocks"
        scratch.mkdir()
        made.mkdir()
        write_files(made)
        if page.name in SERVED:
            (made / "0000.sh").write_text("pktstun serve --config /etc/pktstun.toml\n")
        for block in run_here(page):
            code = script(block.code) if block.language == "sh" else block.code
            (made / f"{block.before:04}{SUFFIXES[block.language]}").write_text(code)
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        host = [str(GUIDE / "host.sh"), str(scratch), str(docs.ROOT), str(made)]
        environment = {
            "HOME": str(scratch),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHON": sys.executable,
            "ELSEWHERE": str(self.elsewhere.fd),
        }
        fd = self.elsewhere.fd
        done = self.here.run([*unshare, *host], timeout=60, env=environment, pass_fds=[fd])
        assert done.returncode == 0, f"{page.name}: {done.stdout}\n{done.stderr}"


def write_files(directory: Path) -> None:
    """Write what a reader is asked to have: a capture, and a message with its integrity."""
    key = stun.short_term_key("VOkJxbRl1RmTxUk/WvJxBt")
    message = stun.Message.request(stun.Username("evtj:h6vY")).with_message_integrity(key)
    (directory / "message.bin").write_bytes(message.encode())
    client, server = (stun.TransportAddress.parse(f"192.0.2.{n}:3478") for n in (1, 2))
    frame = build_udp_frame(message.encode(), client, server)
    write_pcap(directory / "trace.pcapng", [frame])


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Namespace]:
    """stun.example.org, which all pages share."""
    require_root()
    with Lab() as lab:
        namespace = lab.namespace("elsewhere")
        lab.address(namespace, "lo", "198.51.100.1/32", "198.51.100.2/32")
        addresses = ["--listen", "198.51.100.1", "--listen", "198.51.100.2"]
        certificate = ["--tls-certificate", str(CERTIFICATES / "server.pem")]
        protocols = ["--nat-discovery", "--tcp", "--tls", *certificate]
        with Server(namespace, [*addresses, *protocols]):
            yield namespace


@pytest.fixture
def world(elsewhere: Namespace) -> Iterator[World]:
    with Lab() as lab:
        here = lab.namespace("here")
        lab.veth(here, "eth0", elsewhere, "eth0")
        try:
            lab.address(here, "eth0", "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64")
            lab.address(here, "eth0", "10.79.0.2/24", "fd79::2/64")
            lab.address(elsewhere, "eth0", "192.0.2.254/24", "2001:db8::fe/64", "10.79.0.1/24")
            lab.route(here, "default", "192.0.2.254")
            names = {
                ("stun.example.org", "A"): ["198.51.100.1"],
                ("_stun._udp.stun.example.org", "SRV"): ["0 0 3478 stun.example.org."],
                ("_stuns._tcp.stun.example.org", "SRV"): ["0 0 5349 stun.example.org."],
            }
            with dns_server(here, names):
                yield World(here, elsewhere)
        finally:
            lab.delete_link(elsewhere, "eth0")


@pytest.mark.root
@pytest.mark.parametrize("page", RUN, ids=page_name)
def test_the_commands_of_a_page_run(page: Path, world: World, tmp_path: Path) -> None:
    missing = [name for name in NEEDS.get(page.name, []) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"its commands need {', '.join(missing)}")
    world.run(tmp_path, page)


# --- What is said ---


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_block_is_run_or_is_no_command(page: Path) -> None:
    text = page.read_text()
    found = blocks(text)
    known = SUFFIXES.keys() | SHOWN | ({"pycon"} if page in CODEC else set())
    assert {block.language for block in found} <= known
    assert text.count("\n```") == 2 * len(found), "a block without a language"
    for block in found:
        if block.language in SHOWN:
            assert not re.search(r"^\$ ", block.code, re.MULTILINE), "commands are `sh`"


def test_what_is_not_run_is_checked() -> None:
    lines = [
        line
        for page in RUN
        for block in blocks(page.read_text())
        if block.language == "sh"
        for line in block.code.splitlines()
    ]
    for rule in NOT_RUN:
        assert any(re.match(rule.pattern, line) for line in lines), f"nobody needs {rule.pattern}"
    for line in lines:
        script(line)


@pytest.mark.parametrize(
    "line",
    [
        "python3 tools/dev.py brew",
        "python3 tools/dev.py compare --slowly",
        ".venv/bin/python tools/coffee.py",
        "pip install '.[coffee]'",
        "apt install ./build/deb/coffee_*.deb",
        "podman build -f tools/deploy/Coffeefile -t pktstun .",
        "podman run pktstun serve --slowly",
        "kubectl apply -f tools/deploy/coffee.yaml",
        "systemctl reload coffee",
        "systemctl destroy pktstun",
        "journalctl -u coffee",
    ],
)
def test_what_does_not_exist_is_noticed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, OSError, SystemExit, dev.VerbError)):
        script(line)
    capsys.readouterr()


OURS = re.compile(r"--|pktstun |compare |(python3 )?tools/dev\.py ")


def flags(parser: ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "comparison.md"], ids=page_name
)
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    """In the comparison some are others'; elsewhere those have their program's name in front."""
    known = flags(compare_modes._parser()) | set(re.findall(r"--\w+", dev.USAGE))
    for parser in docs._commands().values():
        known |= flags(parser)
    named = {
        flag
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", page.read_text()))
        if OURS.match(span)
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span)
    }
    assert named - known == set()


@pytest.mark.parametrize(
    "phrase",
    [
        "is in use",
        "is gone; ",
        "is down; ",
        "degraded: the others have the share of worker ",
        ": please report it",
        " is killed: ",
        "requests were lost because a ring was full",
        "replies could not be sent",
    ],
)
def test_the_lines_of_an_incident_are_those_of_the_log(phrase: str) -> None:
    sources = "".join(path.read_text() for path in (docs.ROOT / "pktstun").rglob("*.py"))
    text = (docs.PAGES / "incidents.md").read_text().replace("; ...", "; ").replace(": ...", ": ")
    assert phrase in sources
    assert phrase in text


def test_what_needs_a_restart_is_named() -> None:
    names = re.findall(r"--([a-z-]+)", inspect.getsource(check_change))
    pages = [docs.PAGES / name for name in ("configuration.md", "operations.md", "options.md")]
    assert len(names) > 9
    for page in pages:
        (sentence,) = re.findall(r"`mode`, [^.]+\.", page.read_text())
        assert set(re.findall(r"`([a-z-]+)`", sentence)) == set(names)


def test_the_defaults_that_tuning_names_are_those() -> None:
    text = (docs.PAGES / "tuning.md").read_text()
    geometry = RingGeometry()
    for row in (
        f"`--batch` | {Tuning().batch} |",
        f"`--block-size`, `--blocks` | {geometry.block_size}, {geometry.block_count} |",
        f"`--retire-timeout` | {geometry.retire_timeout} |",
    ):
        assert row in text
