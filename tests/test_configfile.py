"""The configuration file: what it says, in which line, and what it cannot say."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.configfile import Setting, as_toml, nearest, read
from pktstun.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {"iface": str, "listen": list, "port": int, "takeover": bool, "wait": float}


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    return tmp_path / "pktstun.toml"


def test_every_kind_of_value_and_its_line(file: Path) -> None:
    file.write_bytes(
        b'# a comment\niface = "eth0"\r\n\nport = 3479\ntakeover = false\n'
        b'listen = [\n  "a", # the first\n  "]\\nb",\n]\nwait = 1.5'
    )
    assert list(read(file, KINDS)) == [
        Setting("iface", ("--iface=eth0",), f"{file}:2"),
        Setting("port", ("--port=3479",), f"{file}:4"),
        Setting("takeover", ("--no-takeover",), f"{file}:5"),
        Setting("listen", ("--listen=a", "--listen=]\nb"), f"{file}:6"),
        Setting("wait", ("--wait=1.5",), f"{file}:10"),
    ]
    file.write_text('takeover = true\nlisten = []\nwait = 2\n"iface" = """\na"""\nport = 0x10\n')
    assert [(each.words, each.place) for each in read(file, KINDS)] == [
        (("--takeover",), f"{file}:1"),
        ((), f"{file}:2"),
        (("--wait=2",), f"{file}:3"),
        (("--iface=a",), f"{file}:4"),
        (("--port=16",), f"{file}:6"),
    ]
    file.write_text("")
    assert list(read(file, KINDS)) == []


# Any text that TOML can hold, but NUL, which no word of a command line can.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
values = st.fixed_dictionaries(
    {},
    optional={
        "iface": texts,
        "listen": st.lists(texts),
        "port": st.integers(-(1 << 63), (1 << 63) - 1),
        "takeover": st.booleans(),
        "wait": st.floats(allow_nan=False),
    },
)


def words(option: str, value: object) -> tuple[str, ...]:
    match value:
        case bool():
            return (f"--{option}" if value else f"--no-{option}",)
        case list():
            return tuple(f"--{option}={each}" for each in value)
        case _:
            return (f"--{option}={value}",)


@given(values, st.lists(st.sampled_from(["", "# x = 1", " \t"]), max_size=3), st.booleans())
def test_anything_that_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    said: dict[str, object],
    between: list[str],
    ends: bool,  # noqa: FBT001 - a parameter
) -> None:
    file = tmp_path_factory.getbasetemp() / "written.toml"
    lines: list[str] = []
    expected = []
    for option, value in said.items():
        lines += between
        expected.append(Setting(option, words(option, value), f"{file}:{len(lines) + 1}"))
        lines.append(f"{option} = {as_toml(value)}")
    file.write_text("\n".join(lines) + "\n" * ends, encoding="utf-8", newline="")
    assert list(read(file, KINDS)) == expected
    assert tomllib.loads(file.read_text(encoding="utf-8")) == said


WRONG = [
    ("port 3478", ":1: no TOML: Expected '=' after a key in a key/value pair, column 6"),
    ("\n\niface = eth0\n", ":3: no TOML: Invalid value, column 9; a string stands in quotes"),
    ('listen = [\n"a",\n"b\n]\n', ":3: no TOML: Illegal character"),
    ('port = 1\nlisten = [\n"a",\n', ":2: no TOML: what begins here has no end: ']' or quotes"),
    ('iface = """\nport = 1\n', ":1: no TOML: what begins here has no end"),
    (b'iface = "a"\n# \xff\n', ":2: this is not UTF-8"),
    (b"\xef\xbb\xbfport = 1\n", ":1: no TOML: Invalid statement, column 1"),
    (b"\xff\xfe", ":1: this is not UTF-8"),
    (b"port = 1\rport = 2", ":1: no TOML: "),
    ("port = 1\n[server]\nport = 2\n", ":2: server: there are no tables: write NAME = VALUE"),
    ("[[listen]]\n", ":1: listen: there are no tables"),
    ("iface.name = 'a'\n", ":1: iface: there are no tables"),
    ("iface = {name = 'a'}\n", ":1: iface: there are no tables"),
    ("port = 1\n# again\nport = 1\n", ":3: port is in line 1 already"),
    ("prot = 3478", ":1: there is no option 'prot': did you mean port?"),
    ("take_over = true", ":1: there is no option 'take_over': did you mean takeover?"),
    ("x = 1", ":1: there is no option 'x': there are iface, listen, port, takeover, wait"),
    ('port = "3478"', ":1: port takes an integer, and not a string: write port = 3478"),
    ('port = "many"', ":1: port takes an integer, and not a string"),
    ("port = 3478.0", ":1: port takes an integer, and not a float"),
    ("port = true", ":1: port takes an integer, and not a boolean"),
    ("port = [1]", ":1: port takes an integer, and not an array"),
    ("port = 1979-05-27", ":1: port takes an integer, and not a date or time"),
    ("wait = '2'", ":1: wait takes a number, and not a string: write wait = 2"),
    ("wait = false", ":1: wait takes a number, and not a boolean"),
    ("iface = 3", ':1: iface takes a string, and not an integer: write iface = "3"'),
    ("iface = ['a']", ":1: iface takes a string, and not an array"),
    ("takeover = 1", ":1: takeover takes true or false, and not an integer"),
    ("takeover = 'true'", ":1: takeover takes true or false, and not a string: write takeover = t"),
    ("takeover = 'on'", ":1: takeover takes true or false, and not a string"),
    (
        "listen = 'a'",
        ':1: listen takes an array of strings, and not a string: write listen = ["a"]',
    ),
    ("listen = [1]", ":1: listen takes an array of strings, and in it is an integer"),
    ("listen = ['a', ['b']]", ":1: listen takes an array of strings, and in it is an array"),
    ('iface = "a\\u0000"', ":1: iface takes no string with a NUL in it"),
    ("port = 9223372036854775808", ":1: port takes no number of more than 64 bits"),
    ("port = 0x" + "f" * 9999, ":1: port takes no number of more than 64 bits"),
    ("port = 1" + "0" * 9999, ":1: no TOML: a number is too long"),
    ("listen = " + "[" * 9999, ":1: no TOML: too many ["),
]


@pytest.mark.parametrize(("content", "complaint"), WRONG, ids=[each for _, each in WRONG])
def test_what_is_wrong_is_said_with_its_line(
    file: Path, content: str | bytes, complaint: str
) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        list(read(file, KINDS))
    assert str(caught.value).startswith(f"{file}{complaint}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_message_ends_where_there_is_nothing_to_propose(file: Path) -> None:
    file.write_text('port = "many"')
    with pytest.raises(ConfigError, match=r"not a string$"):
        list(read(file, KINDS))


def test_what_is_no_file_to_read(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none.toml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ConfigError) as caught:
            list(read(path, KINDS))
        assert str(caught.value) == f"--config: cannot read {path}: {reason}"


@pytest.mark.timeout(60)
def test_a_file_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="is longer than 1048576 bytes: name another file"):
        list(read(tmp_path / "endless.toml", KINDS))


mutations = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=5
)


@given(values, mutations)
def test_a_mutilated_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    said: dict[str, object],
    changes: list[tuple[int, int, bytes]],
) -> None:
    file = tmp_path_factory.getbasetemp() / "mutilated.toml"
    content = "".join(f"{key} = {as_toml(value)}\n" for key, value in said.items()).encode()
    for at, length, new in changes:
        content = content[:at] + new + content[at + length :]
    file.write_bytes(content)
    try:
        settings = list(read(file, KINDS))
    except ConfigError as error:
        assert str(error).startswith(f"{file}:")  # noqa: PT017 - either may be
    else:
        # What is accepted says what Python's reader finds in the whole.
        found = tomllib.loads(content.decode())
        assert {each.option: each.words for each in settings} == {
            key: words(key, value) for key, value in found.items()
        }


def test_the_nearest_name() -> None:
    assert nearest("lisen", KINDS) == "did you mean listen?"
    assert nearest("zzz", ["b", "a"]) == "there are a, b"
