"""The documentation is current, its examples run, and its links lead somewhere."""

from __future__ import annotations

import ast
import doctest
import importlib
import itertools
import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from aioice import stun as aioice

from pktstun import stun
from tools import docs

README = docs.ROOT / "README.md"
PAGES = sorted(docs.PAGES.glob("*.md"))
MARKDOWN = [*sorted(docs.ROOT.glob("*.md")), *PAGES]
CODEC = [page for page in PAGES if "\n```pycon\n" in page.read_text()]  # others: test_guide.py


class Block(NamedTuple):
    """A fenced block of code, and the number of lines before its first."""

    language: str
    code: str
    before: int


def blocks(text: str) -> list[Block]:
    fenced = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2))) for m in fenced]


def run(path: Path, text: str) -> int:
    """Run the blocks of a page in order, in one namespace; return how many examples there were."""
    names: dict[str, object] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner()
    for block in blocks(text):
        if block.language == "python":
            # Empty lines in front, so that a traceback names the line in the page.
            exec(compile("\n" * block.before + block.code, path, "exec"), names)
        elif block.language == "pycon":
            parser = doctest.DocTestParser()
            test = parser.get_doctest(block.code, names, path.name, str(path), block.before)
            test.globs = names  # not the copy that it has made: names are for later blocks
            runner.run(test, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0
    return runner.tries


# --- What is made ---


def test_the_pages_that_are_made_are_current() -> None:
    assert docs.outdated() == []
    assert docs.main(["--check"]) == 0


def test_the_table_has_every_attribute() -> None:
    rows = re.findall(r"^\| 0x(....) \| (\S+) \|", docs.attributes_page(), re.MULTILINE)
    types = {int(number, 16): name for number, name in rows}
    assert types == {kind: kind.label for kind in stun.AttributeType}
    assert len(rows) == len(types)


def test_pages_that_are_not_current_are_found_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "PAGES", tmp_path)
    page = tmp_path / "attributes.md"
    page.write_text("old\n")
    assert docs.main(["--check"]) == 1
    assert page.read_text() == "old\n"
    assert "attributes.md is not current" in capsys.readouterr().err
    assert docs.main(["--table"]) == 0
    assert docs.main(["--check"]) == 0
    assert (tmp_path / "options.md").exists()


def test_the_table_of_options_has_every_option() -> None:
    text = docs.options_page()
    served = set(docs._commands()["serve"]._option_string_actions)
    for name, parser in docs._commands().items():
        _, _, section = text.partition(f"\n## pktstun {name}\n")
        section, _, _ = section.partition("\n## ")
        known = served if name == "check-config" else set()
        for action in parser._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                row = re.search(rf"^\| .*`{option}[ `]", section, re.MULTILINE)
                assert bool(row) is (option not in known), option


@pytest.mark.parametrize(
    ("option", "row"),
    [
        ("--iface", '| `iface = "..."`<br>`PKTSTUN_SERVE_IFACE` | interface to serve |'),
        (
            "--port",
            "| `--port N` | `port = 1`<br>`PKTSTUN_SERVE_PORT` | UDP port (default: 3478) |",
        ),
        ("--advertise", '| `--advertise ADDR=ADDR` | `advertise = ["..."]`<br>'),
        ("--tcp", "| `--tcp`, `--no-tcp` | `tcp = true`<br>`PKTSTUN_SERVE_TCP` | "),
        ("--print-config", "| `--print-config` | no | "),
        ("--config", "| `--config FILE` | `PKTSTUN_SERVE_CONFIG` | "),
        ("--auth", '| `--auth {short-term,long-term}` | `auth = "..."`<br>'),
        ("--tls-handshake-timeout", "`tls-handshake-timeout = 1.0`<br>"),
        ("--listen", "ADDR:PORT or \\[ADDR\\]:PORT; repeatable"),
        ("--cpus", "(default: auto)"),
        ("--nice", "`nice = 1`<br>"),
    ],
)
def test_a_row_of_the_table_of_options(option: str, row: str) -> None:
    text, _, _ = docs.options_page().partition("\n## pktstun check-config\n")
    (found,) = (
        line for line in text.splitlines() if line.startswith((f"| `{option} ", f"| `{option}`"))
    )
    assert row in found


def test_a_summary_of_another_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(stun.Software):
        """Who made the message."""

        __slots__ = ()

    monkeypatch.setattr(stun, "ATTRIBUTES", {Odd.type: Odd})
    with pytest.raises(docs.DocsError, match="Odd begins with"):
        docs.attributes_page()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((4,), "4"),
        ((8, 20), "8 or 20"),
        (range(0x10000), "any"),
        (range(4, 768), "4 to 767"),
        (range(16, 33, 4), "16 to 32, multiple of 4"),
    ],
)
def test_sizes_in_words(sizes: range | tuple[int, ...], words: str) -> None:
    assert docs.sizes(sizes) == words


@pytest.mark.parametrize(
    ("link", "changed"),
    [
        ("[a](codec.md)", "[a](codec.md)"),
        ("[a b](docs/codec.md#errors)", "[a b](codec.md#errors)"),
        (
            "[a](../SECURITY.md#privileges) [b](CHANGELOG.md)",
            "[a](security.md#privileges) [b](changes.md)",
        ),
        ("[`a`](../tools/a.py) [b](codec.md)", "`a` [b](codec.md)"),
        ("[unit](../pktstun/deploy/a.service)", "[unit](deploy/a.service)"),
        ("[rules](tools/deploy/alerts.yml)", "[rules](deploy/alerts.yml)"),
        ("[14.1](https://example.org/SECURITY.md)", "[14.1](https://example.org/SECURITY.md)"),
    ],
)
def test_links_of_a_chapter(link: str, changed: str) -> None:
    assert docs.chapter(link) == changed


def test_the_guide_is_all_pages_and_chapters(tmp_path: Path) -> None:
    docs.gather(tmp_path / "guide")
    found = {path.name for path in (tmp_path / "guide").glob("*.md")}
    contents = (docs.ROOT / "tools" / "mkdocs.yml").read_text()
    assert found == {path.name for path in PAGES} | set(docs.CHAPTERS.values())
    assert found == set(re.findall(r"(\S+\.md)$", contents, re.MULTILINE))


# --- Examples ---


@pytest.mark.parametrize("path", CODEC, ids=lambda path: path.name)
def test_the_examples_of_a_page_run(path: Path) -> None:
    text = path.read_text()
    assert run(path, text) == len(re.findall(r"^ *>>> ", text, re.MULTILINE))


def test_the_codec_in_the_readme_says_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, section = README.read_text().partition("\n## The codec\n")
    section, _, _ = section.partition("\n## ")
    said = re.findall(r"^print\(.*\)  # (.+)$", section, re.MULTILINE)
    assert said
    run(README, section)
    assert capsys.readouterr().out.splitlines() == said


def test_the_guide_names_every_attribute_of_aioice() -> None:
    text = (docs.PAGES / "coming-from-aioice.md").read_text()
    rows = re.findall(r"^\| `([A-Z-]+)` \|", text, re.MULTILINE)
    assert rows == [name for _, name, _, _ in aioice.ATTRIBUTES]


# --- Links and docstrings ---


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", path.read_text()):
        if target.startswith("https://"):
            continue
        file = path.parent / target if target else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}
            assert anchor[1:] in slugs, target + anchor


def documented_variables() -> set[str]:
    """Return the names in the codec's modules that are assigned with a docstring behind."""
    found = set()
    for module in pkgutil.iter_modules(stun.__path__, stun.__name__ + "."):
        source = Path(str(importlib.import_module(module.name).__file__)).read_text()
        body = ast.parse(source).body
        for node, behind in itertools.pairwise(body):
            is_docstring = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
            if isinstance(node, ast.Assign) and is_docstring:
                found |= {ast.unparse(target) for target in node.targets}
            elif isinstance(node, ast.AnnAssign) and is_docstring:
                found.add(ast.unparse(node.target))
    return found


@pytest.mark.parametrize("name", stun.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    value = getattr(stun, name)
    if not callable(value):
        assert name in documented_variables()
        return
    docstring = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    assert docstring
    # What dataclass makes of the signature, where there is none.
    assert not docstring.startswith(f"{name}(")
