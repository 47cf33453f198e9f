#!/usr/bin/env python3
"""The documentation that is made from the code: docs/attributes.md, and a reference in HTML.

    python tools/docs.py            # write docs/attributes.md, then build/docs/index.html
    python tools/docs.py --table    # only docs/attributes.md, which takes no pdoc
    python tools/docs.py --check    # exit status 1 if docs/attributes.md is not current

Theory of operation. `stun.ATTRIBUTES` is the one table of attributes, and docs/attributes.md is
a picture of it: type and name are those of `AttributeType`, the fields are those of the
dataclass, the sizes are `SIZES`, and section and summary come out of the first line of the
class's docstring, which reads "NAME (RFC n section m): summary." for every attribute. A class
that says it otherwise is an error. tests/test_docs.py holds the file against this script.

The reference is made by pdoc, in a process of its own (dependency group `docs`) that ends at the
first warning. The pages in docs/ are in it: pdoc documents modules, so each page becomes the
docstring of a module that exists for as long as pdoc runs. Links between pages are changed to
what pdoc calls them; links to files that are not in the reference become their text.
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
from pktstun import stun

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs"
TABLE = PAGES / "attributes.md"
HTML = ROOT / "build" / "docs"

# The order of pdoc's index.
GUIDES = ("codec", "coming-from-aioice", "attributes")
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


def is_current() -> bool:
    """Return whether docs/attributes.md is what `attributes_page` says."""
    return TABLE.exists() and TABLE.read_text(encoding="utf-8") == attributes_page()


def _demand_current() -> None:
    if not is_current():
        raise DocsError(f"{TABLE} is not current: run {sys.executable} tools/docs.py --table")


# --- The reference ---


def page_for_pdoc(text: str) -> str:
    """Return a page in Markdown with links that hold where pdoc puts it."""
    text = re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", text)
    return re.sub(r"\]\(([\w-]+)\.md([)#])", r"](\1.html\2", text)


def write_html(target: Path) -> None:
    """Have pdoc write the reference to a directory, which is emptied before.

    Raises:
        DocsError: pdoc is not installed, or it warns or fails.
    """
    if importlib.util.find_spec("pdoc") is None:
        raise DocsError(f"pdoc is missing: {sys.executable} -m pip install --group docs")
    if target.exists():
        shutil.rmtree(target)
    with tempfile.TemporaryDirectory() as scratch:
        modules: list[str] = []
        for name in GUIDES:
            page = Path(scratch, name + ".md")
            page.write_text(page_for_pdoc((PAGES / page.name).read_text(encoding="utf-8")))
            module = page.with_suffix(".py")
            module.write_text(
                "from pathlib import Path as _Path\n\n"
                '__docformat__ = "markdown"\n'
                '__doc__ = _Path(__file__).with_suffix(".md").read_text()\n'
            )
            modules.append(str(module))
        footer = f"pktstun {pktstun.__version__}"
        # pdoc's own warnings are of this class: a name that it cannot resolve, for one.
        pdoc = [sys.executable, "-W", "error::UserWarning", "-m", "pdoc", "--docformat", "google"]
        options = ["--footer-text", footer, "--output-directory", str(target)]
        done = subprocess.run([*pdoc, *options, *modules, *MODULES], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise DocsError(f"pdoc ends with status {done.returncode}")


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit status."""
    parser = argparse.ArgumentParser(description="Make the documentation from the code.")
    job = parser.add_mutually_exclusive_group()
    job.add_argument("--table", action="store_true", help="only write docs/attributes.md")
    job.add_argument("--check", action="store_true", help="only say whether that is current")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            _demand_current()
            return 0
        if not is_current():
            TABLE.write_text(attributes_page(), encoding="utf-8")
            print(f"wrote {TABLE}")
        if not options.table:
            write_html(HTML)
            print(f"wrote {HTML / 'index.html'}")
    except DocsError as error:
        print(f"docs.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
