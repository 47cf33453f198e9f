"""The configuration file says what the command line would, and is refused with the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun import configfile
from pktstun.cli import main
from pktstun.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = ["iface", "listen", "port", "takeover", "software"]


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    return tmp_path / "pktstun.toml"


def test_every_kind_of_value(file: Path) -> None:
    file.write_text('iface = "eth0"\nport = 3479\ntakeover = false\nlisten = ["a", "b"]\n')
    assert configfile.arguments(file, KNOWN) == [
        "--iface=eth0",
        "--port=3479",
        "--no-takeover",
        "--listen=a",
        "--listen=b",
    ]
    file.write_text("takeover = true\n")
    assert configfile.arguments(file, KNOWN) == ["--takeover"]
    file.write_text('listen = ["a"]\nport = 1\n')
    assert configfile.arguments(file, KNOWN, without={"listen"}) == ["--port=1"]


@given(st.text().filter(lambda text: "\0" not in text))
def test_a_text_arrives_as_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("text") / "file.toml"
    escaped = "".join(f"\\U{ord(character):08X}" for character in text)
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        return
    file.write_text(f'software = "{escaped}"', encoding="utf-8")
    assert configfile.arguments(file, KNOWN) == [f"--software={text}"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("port 3478", "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
        ("prot = 3478", "there is no option 'prot'; there are iface, listen"),
        ("[iface]", "iface has a value of a kind that no option has"),
        ("port = 1979-05-27", "port has a value of a kind"),
        ("listen = [1]", "listen is a list of strings"),
    ],
)
def test_what_makes_no_sense(file: Path, content: str | bytes, complaint: str) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=complaint.replace("[", r"\[")) as caught:
        configfile.arguments(file, KNOWN)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        configfile.arguments(file, KNOWN)


@pytest.mark.native
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('port = "many"', "argument --port: invalid int value: 'many'"),
        ('mode = "telepathy"', "argument --mode: invalid choice: 'telepathy'"),
        ("port = true", "argument --port: expected one argument"),
        ("port = false", "unrecognized arguments: --no-port"),
        ('config = "another"', "there is no option 'config'"),
        ("check = true", "there is no option 'check'"),
        ('words = "x"', "there is no option 'words'"),
    ],
)
def test_the_command_line_explains(
    file: Path, capsys: pytest.CaptureFixture[str], content: str, complaint: str
) -> None:
    file.write_text(content)
    assert main(["serve", "--check", "--config", str(file)]) == ConfigError.exit_status
    said = capsys.readouterr().err
    assert complaint in said
    assert str(file) in said
    assert len(said.splitlines()) == 1


@pytest.mark.native
def test_the_command_line_has_the_last_word(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('port = 70000\nmode = "recvmmsg"\nlisten = ["192.0.2.1:0"]\n')
    words = ["serve", "--check", "--config", str(file)]
    assert main([*words, "--port", "3479", "--listen", "127.0.0.1"]) == 0
    assert "can be served" in capsys.readouterr().out
    assert main([*words, "--listen", "127.0.0.1"]) == ConfigError.exit_status
    assert "70000" in capsys.readouterr().err
