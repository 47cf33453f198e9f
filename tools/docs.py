#!/usr/bin/env python3
"""The documentation: the pages that are made from the code, the guide, and the reference.

    python tools/docs.py            # write the pages, then build/docs/index.html
    python tools/docs.py --table    # only the pages, which takes no mkdocs and no pdoc
    python tools/docs.py --check    # exit status 1 if a page is not current

Theory of operation. Two pages in docs/ are pictures of a table in the code, and
tests/test_docs.py holds them against this script:

- docs/attributes.md of `stun.ATTRIBUTES`: type and name are those of `AttributeType`, the fields
  are those of the dataclass, the sizes are `SIZES`, and section and summary come out of the first
  line of the class's docstring, which reads "NAME (RFC n section m): summary." for every attribute.
  A class that says it otherwise is an error.
- docs/options.md of the command line's parser.

The guide is made by mkdocs, strictly: a link or an anchor that leads nowhere is an error. Its pages
are docs/, with some of the project's own files as chapters (`CHAPTERS`), and the files to
deploy, to be linked to. They are put together in a directory of their own, where links are
changed to what the files are called there; links to other files of the project become their text.

The reference is made by pdoc from the docstrings, into a directory of the guide; it ends at the
first warning. Both are in the dependency group `docs`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pktstun
from pktstun import cli, options, stun
from pktstun.cli_serve_options import serve_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs"
DEPLOY = (ROOT / "pktstun" / "deploy", ROOT / "tools" / "deploy")
HTML = ROOT / "build" / "docs"

# Files of the project that are chapters of the guide, by the names that they have there.
CHAPTERS = {
    "ARCHITECTURE.md": "internals.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}

# The order of pdoc's index.
MODULES = (
    "pktstun.stun",
    "pktstun.client",
    "pktstun.packet",
    "pktstun.capture",
    "pktstun.errors",
)

RFCS = {
    8489: "STUN",
    5780: "NAT behaviour discovery",
    8445: "ICE",
    8656: "TURN",
}

INTRODUCTION = """\
# The attributes

<!-- Made by tools/docs.py from stun.ATTRIBUTES; changes belong there. -->

Every attribute that the codec reads and writes. What the columns mean:

- *Type*: the number on the wire. Below 0x8000 an attribute is comprehension-required: a receiver
  that does not know it must not process the message (`Message.unknown_required`). From 0x8000 on
  it is optional and may be skipped.
- *Class*: in `pktstun.stun`, with the fields of its values. All are frozen dataclasses.
- *Bytes*: how long a value may be that `Message.decode` accepts, without header and padding; what
  is in it is checked, too. Making a value is often stricter: what may not be sent cannot be made.
- *Section*: where the RFC defines it.

[The codec](codec.md) shows how they are used.
"""

REST = """\
## Names without a class

These types have a name in `AttributeType`, and their values are kept as bytes in `RawAttribute`,
as those of all other numbers are.

| Type | Name | Comprehension |
|---|---|---|
"""

_SUMMARY = re.compile(r"(?P<name>\S+) \(RFC (?P<rfc>\d+) section (?P<section>[\d.]+)\): (.+)\.")


class DocsError(Exception):
    """What keeps the documentation from being made, in words for whoever asked for it."""


# --- docs/attributes.md ---


def attributes_page() -> str:
    """Return docs/attributes.md as it should be.

    Raises:
        DocsError: the docstring of an attribute does not have the form that it should.
    """
    tables: dict[int, list[str]] = {rfc: [] for rfc in RFCS}
    for cls in stun.ATTRIBUTES.values():
        rfc, line = _row(cls)
        tables[rfc].append(line)
    parts = [INTRODUCTION]
    for rfc, lines in tables.items():
        parts.append(
            f"## RFC {rfc}: {RFCS[rfc]}\n\n"
            "| Type | Name | Class | Bytes | Comprehension | Section | Summary |\n"
            "|---|---|---|---|---|---|---|\n" + "".join(lines)
        )
    named = [kind for kind in stun.AttributeType if kind not in stun.ATTRIBUTES]
    rest = [f"| {kind:#06x} | {kind.label} | {_comprehension(kind)} |\n" for kind in named]
    parts.append(REST + "".join(rest))
    return "\n".join(parts)


def _row(cls: Any) -> tuple[int, str]:
    """Return the RFC and the line of the table of one attribute."""
    kind: stun.AttributeType = cls.type
    summary = (cls.__doc__ or "").partition("\n")[0]
    match = _SUMMARY.fullmatch(summary)
    if match is None or match["name"] != kind.label or int(match["rfc"]) not in RFCS:
        wanted = f"{kind.label} (RFC n section m): summary."
        raise DocsError(f"{cls.__name__} begins with {summary!r} instead of {wanted!r}")
    url = f"https://www.rfc-editor.org/rfc/rfc{match['rfc']}#section-{match['section']}"
    cells = (
        f"{kind:#06x}",
        kind.label,
        f"`{cls.__name__}({_fields(cls)})`",
        sizes(cls.SIZES),
        _comprehension(kind),
        f"[{match['section']}]({url})",
        match[4],
    )
    return int(match["rfc"]), "| " + " | ".join(cells) + " |\n"


def _fields(cls: Any) -> str:
    """Return the fields of a dataclass as its signature has them."""
    words = []
    for field in dataclasses.fields(cls):
        default = field.default
        suffix = "" if default is dataclasses.MISSING else f" = {default!r}"
        words.append(f"{field.name}: {field.type}{suffix}")
    return ", ".join(words)


def _comprehension(kind: stun.AttributeType) -> str:
    return "required" if kind.comprehension_required else "optional"


def sizes(allowed: range | tuple[int, ...]) -> str:
    """Return in words how many bytes a value may have."""
    if isinstance(allowed, tuple):
        return " or ".join(map(str, allowed))
    if allowed == range(0x10000):
        return "any"
    step = "" if allowed.step == 1 else f", multiple of {allowed.step}"
    return f"{allowed[0]} to {allowed[-1]}{step}"


# --- docs/options.md ---

OPTIONS = """\
# All options

<!-- Made by tools/docs.py from the parser of the command line; changes belong there. -->

Of `pktstun serve`, then of the other commands. `pktstun COMMAND --help` says the same.
[Configuration](configuration.md) says how command line, environment and file go together.

A running service takes over all of it at a reload, but these, which need a restart:
`mode`, `iface`, `cpus`, `user`, `tcp`, `tls`, `block-size`, `blocks`, `retire-timeout`,
`status`, `status-socket`, and `metrics` from none to some or back.
"""


def options_page() -> str:
    """Return docs/options.md as it should be."""
    commands = _commands()
    served = frozenset(commands["serve"]._option_string_actions)  # noqa: SLF001
    parts = [
        OPTIONS,
        *_groups("serve", commands["serve"], _serve_row, "| option | in file and environment | |"),
    ]
    for name, parser in commands.items():
        if name != "serve":
            known = served if name == "check-config" else frozenset()
            parts += _groups(name, parser, _row_of_option, "| option | |", known)
    return "\n".join(parts)


def _commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    parser = cli._parser()  # noqa: SLF001 - a program's own command line is nobody else's business
    (commands,) = (
        each.choices
        for each in parser._actions  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(each, argparse._SubParsersAction)  # noqa: SLF001
    )
    return dict(commands)


def _groups(
    name: str,
    parser: argparse.ArgumentParser,
    row: Callable[[argparse.Action], str],
    head: str,
    known: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Yield a section of a command for each group of its options but those that are known."""
    columns = head.count("|") - 1
    more = "\n\nIt takes all options of `serve`, and these:" if known else ""
    yield f"## pktstun {name}\n\n{parser.description or ''}{more}\n"
    for group in parser._action_groups:  # noqa: SLF001 - argparse has no other way to ask
        actions = [
            each
            for each in group._group_actions  # noqa: SLF001
            if each.dest != "help" and not known.intersection(each.option_strings)
        ]
        if not actions:
            continue
        title = group.title or ""
        heading = "" if title in {"options", "positional arguments"} else f"### {_text(title)}\n\n"
        about = f"{group.description}\n\n" if group.description else ""
        rows = "".join(map(row, actions))
        yield f"{heading}{about}{head}\n{'|---' * columns}|\n{rows}"


def _serve_row(action: argparse.Action) -> str:
    return f"| {_spelling(action)} | {_key(action)} | {_help(action)} |\n"


def _row_of_option(action: argparse.Action) -> str:
    return f"| {_spelling(action)} | {_help(action)} |\n"


def _spelling(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar}`"
    if action.nargs == 0:
        return ", ".join(f"`{option}`" for option in action.option_strings)
    value = action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}"
    return ", ".join(f"`{option} {value}`" for option in action.option_strings)


def _key(action: argparse.Action) -> str:
    """Return how file and environment say it."""
    kind = options.kinds(serve_options()).get(_name(action))
    variable = options.PREFIX + action.dest.upper()
    if kind is None:
        return "no"
    if action.dest == "config":
        return f"`{variable}`"
    value = {bool: "true", int: "1", float: "1.0", str: '"..."', list: '["..."]'}[kind]
    return f"`{_name(action)} = {value}`<br>`{variable}`"


def _name(action: argparse.Action) -> str:
    return action.dest.replace("_", "-")


def _help(action: argparse.Action) -> str:
    return _text((action.help or "") % {"prog": "pktstun", **vars(action)})


def _text(words: str) -> str:
    """Return words as a cell of a table has them."""
    return re.sub(r"([\[\]|<>*_])", r"\\\1", words)


# --- Pages that are made ---


def made() -> dict[Path, Callable[[], str]]:
    """Return the pages that are made, and what makes them."""
    return {PAGES / "attributes.md": attributes_page, PAGES / "options.md": options_page}


def outdated() -> list[Path]:
    """Return the pages that are not as they should be."""
    return [
        path
        for path, make in made().items()
        if not path.exists() or path.read_text(encoding="utf-8") != make()
    ]


def _demand_current() -> None:
    for path in outdated():
        raise DocsError(f"{path} is not current: run {sys.executable} tools/docs.py --table")


# --- The guide and the reference ---


def chapter(text: str) -> str:
    """Return a page with links that hold where the guide has it."""
    for file, name in CHAPTERS.items():
        text = re.sub(rf"\]\((?:\.\./)?{file}([)#])", rf"]({name}\1", text)
    text = re.sub(r"\]\((?:\.\./)?(?:tools|pktstun)/deploy/", "](deploy/", text)
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", text)


def gather(directory: Path) -> None:
    """Put the guide together in a directory."""
    directory.mkdir()
    for page in PAGES.glob("*"):
        if page.suffix == ".md":
            (directory / page.name).write_text(chapter(page.read_text(encoding="utf-8")))
        else:
            shutil.copy(page, directory)
    for file, name in CHAPTERS.items():
        (directory / name).write_text(chapter((ROOT / file).read_text(encoding="utf-8")))
    for files in DEPLOY:
        shutil.copytree(files, directory / "deploy", dirs_exist_ok=True)
    shutil.copy(ROOT / "tools" / "guide.css", directory)


def write_html(target: Path) -> None:
    """Have mkdocs write the guide, and pdoc the reference, to a directory that is emptied before.

    Raises:
        DocsError: one of them is not installed, or it warns or fails.
    """
    for name in ("mkdocs", "pdoc"):
        if importlib.util.find_spec(name) is None:
            raise DocsError(f"{name} is missing: {sys.executable} -m pip install --group docs")
    with tempfile.TemporaryDirectory() as scratch:
        pages = Path(scratch, "docs")
        gather(pages)
        footer = f"pktstun {pktstun.__version__}"
        # pdoc's own warnings are of this class: a name that it cannot resolve, for one.
        pdoc = ["-W", "error::UserWarning", "-m", "pdoc", "--docformat", "google"]
        where = ["--footer-text", footer, "--output-directory", str(pages / "reference")]
        _run("pdoc", [*pdoc, *where, *MODULES])
        settings = shutil.copy(ROOT / "tools" / "mkdocs.yml", scratch)
        options = ["--strict", "--config-file", settings, "--site-dir", str(target)]
        _run("mkdocs", ["-m", "mkdocs", "build", *options])


def _run(name: str, arguments: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise DocsError(f"{name} ends with status {done.returncode}")


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit status."""
    parser = argparse.ArgumentParser(description="Make the documentation from the code.")
    job = parser.add_mutually_exclusive_group()
    job.add_argument("--table", action="store_true", help="only write the pages")
    job.add_argument("--check", action="store_true", help="only say whether they are current")
    asked = parser.parse_args(arguments)
    try:
        if asked.check:
            _demand_current()
            return 0
        for path in outdated():
            path.write_text(made()[path](), encoding="utf-8")
            print(f"wrote {path}")
        if not asked.table:
            write_html(HTML)
            print(f"wrote {HTML / 'index.html'}")
    except DocsError as error:
        print(f"docs.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
