"""Command line, environment, file and default: who has the last word, and where it was said."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.errors import ConfigError, UsageError
from pktstun.options import kinds, print_out, read
from pktstun.places import COMMAND_LINE

if TYPE_CHECKING:
    from collections.abc import Sequence


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def small(text: str) -> int:
    return int(text)


def parser() -> Parser:
    """Return one with an option of each kind."""
    made = Parser(add_help=False)
    made.add_argument("--config")
    made.add_argument("--iface")
    made.add_argument("--mode", choices=("ring", "recvmmsg"))
    made.add_argument("--listen", action="append", default=[])
    made.add_argument("--port", type=int, default=3478)
    made.add_argument("--nice", type=small)
    made.add_argument("--idle-time", type=float)
    made.add_argument("--state", type=Path)
    made.add_argument("--tcp", action=argparse.BooleanOptionalAction, default=False)
    made.add_argument("--takeover", action=argparse.BooleanOptionalAction)
    return made


DEFAULTS: dict[str, Any] = {
    "config": None,
    "iface": None,
    "mode": None,
    "listen": [],
    "port": 3478,
    "nice": None,
    "idle_time": None,
    "state": None,
    "tcp": False,
    "takeover": None,
}


def said(
    words: Sequence[str] = (), *, in_file: Path | None = None, **variables: str
) -> tuple[dict[str, Any], dict[str, str]]:
    environment = {f"PKTSTUN_SERVE_{name}": text for name, text in variables.items()}
    values, places = read(parser(), words, environment, in_file)
    return vars(values), places


def test_the_kinds_are_those_of_the_parser() -> None:
    assert kinds(parser()) == {
        "config": str,
        "iface": str,
        "mode": str,
        "listen": list,
        "port": int,
        "nice": int,
        "idle-time": float,
        "state": str,
        "tcp": bool,
        "takeover": bool,
    }


def test_nothing_said_is_the_defaults() -> None:
    assert said() == (DEFAULTS, {})
    assert said(PORT="", LISTEN="", TCP="") == (DEFAULTS, {})


def test_a_command_line_says_what_argparse_says() -> None:
    words = ["--port=1", "--listen", "a", "FILE", "--tcp", "--any-host", "--no-takeover"]
    assert said([*words, "--listen=b", "--idle", "2"]) == (
        DEFAULTS
        | {"port": 1, "listen": ["a", "b"], "tcp": True, "takeover": False, "idle_time": 2.0},
        dict.fromkeys(["port", "listen", "tcp", "takeover", "idle-time"], COMMAND_LINE),
    )


def test_a_variable_for_each_kind() -> None:
    values, places = said(
        IFACE="eth0,eth1", LISTEN="a, b\tc,,d", PORT="1", IDLE_TIME="1e3", TCP="Yes", TAKEOVER="0"
    )
    assert values == DEFAULTS | {
        "iface": "eth0,eth1",
        "listen": ["a", "b", "c", "d"],
        "port": 1,
        "idle_time": 1000.0,
        "tcp": True,
        "takeover": False,
    }
    assert places["idle-time"] == "environment PKTSTUN_SERVE_IDLE_TIME"
    assert len(places) == 6


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("yes", True), ("FALSE", False), ("no", False)]
)
def test_booleans_of_the_environment(text: str, value: bool) -> None:  # noqa: FBT001 - a parameter
    assert said(TCP=text)[0]["tcp"] is value


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"PORT": "many"}, "_PORT: --port: invalid int value: 'many'"),
        ({"NICE": "1.5"}, "_NICE: --nice: invalid small value: '1.5'"),
        ({"MODE": "x"}, "_MODE: --mode: invalid choice: 'x' (choose from "),
        ({"TCP": "on"}, "_TCP: 'on' is none of true, 1, yes, false, 0, no"),
        ({"PROT": "1"}, "_PROT: there is no such option: did you mean PKTSTUN_SERVE_PORT?"),
        (
            {"ZZZ": ""},
            "_ZZZ: there is no such option: there are PKTSTUN_SERVE_CONFIG, PKTSTUN_SERVE_",
        ),
        ({"CONFIG": "/nowhere"}, "_CONFIG: --config: cannot read /nowhere: No such file or dir"),
        ({"PORT": "9" * 30}, "_PORT: --port takes no number of more than 64 bits"),
        ({"IFACE": "\udcff"}, "_IFACE: --iface: '\\udcff' is not UTF-8"),
        ({"LISTEN": "a \udcff"}, "_LISTEN: --listen: '\\udcff' is not UTF-8"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(variables: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        said(**variables)
    assert str(caught.value).startswith("environment PKTSTUN_SERVE_")
    assert complaint in str(caught.value)
    # Also where somebody else has the last word.
    if "is not UTF-8" not in complaint and "64" not in complaint and "CONFIG" not in variables:
        with pytest.raises(ConfigError):
            said(["--port", "1", "--tcp", "--mode=ring", "--nice=3"], **variables)


def test_variables_of_others_are_theirs() -> None:
    values, _ = read(parser(), [], {"PKTSTUN_PORT": "tcp://10.0.0.1:3478", "PORT": "x"})
    assert vars(values) == DEFAULTS


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    return tmp_path / "pktstun.toml"


def test_each_source_replaces_the_one_below(file: Path) -> None:
    file.write_text('port = 1\nlisten = ["a", "b"]\ntcp = true\niface = "x"\nmode = "ring"\n')
    config = ["--config", str(file)]
    in_file = DEFAULTS | {
        "config": str(file),
        "port": 1,
        "listen": ["a", "b"],
        "tcp": True,
        "iface": "x",
        "mode": "ring",
    }
    values, places = said(config)
    assert values == in_file
    assert places == {
        "config": COMMAND_LINE,
        "port": f"{file}:1",
        "listen": f"{file}:2",
        "tcp": f"{file}:3",
        "iface": f"{file}:4",
        "mode": f"{file}:5",
    }
    values, places = said(config, LISTEN="c", PORT="2", TCP="false")
    assert values == in_file | {"listen": ["c"], "port": 2, "tcp": False}
    assert places["listen"] == "environment PKTSTUN_SERVE_LISTEN"
    assert places["iface"] == f"{file}:4"
    values, places = said([*config, "--listen=d", "--no-tcp", "--port=3"], LISTEN="c", PORT="2")
    assert values == in_file | {"listen": ["d"], "port": 3, "tcp": False}
    assert places["port"] == places["tcp"] == places["listen"] == COMMAND_LINE
    file.write_text("listen = []\n")
    assert said(config)[0] == DEFAULTS | {"config": str(file)}


def test_which_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("environment", "words", "argument")]
    for number, each in enumerate(files, start=1):
        each.write_text(f"port = {number}\n")
    first, second, third = files
    assert said(CONFIG=str(first))[0]["port"] == 1
    assert said(["--config", str(second)], CONFIG=str(first))[0]["port"] == 2
    assert said(in_file=third, CONFIG=str(first))[0]["port"] == 3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('mode = "telepathy"', ":1: --mode: invalid choice: 'telepathy' (choose from "),
        ('config = "another"', ":1: there is no option 'config': there are idle-time, iface"),
        ("any-host = true", ":1: there is no option 'any-host': there are"),
        ("nice = 3.5", ":1: nice takes an integer, and not a float"),
    ],
)
def test_a_file_that_makes_no_sense(file: Path, content: str, complaint: str) -> None:
    file.write_text(content)
    for words in ([], ["--mode", "ring", "--nice", "3"]):
        with pytest.raises(ConfigError) as caught:
            said(words, in_file=file)
        assert str(caught.value).startswith(f"{file}{complaint}")


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
anything = st.fixed_dictionaries(
    {},
    optional={
        "--iface": text,
        "--mode": st.sampled_from(["ring", "recvmmsg"]),
        "--listen": st.lists(text, min_size=1),
        "--port": st.integers(0, 1 << 40),
        "--state": text,
        "--idle-time": st.floats(allow_nan=False),
        "--tcp": st.none(),
        "--no-takeover": st.none(),
    },
)


@given(anything, st.booleans())
def test_what_is_printed_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    given_options: dict[str, Any],
    in_file: bool,  # noqa: FBT001 - a parameter
) -> None:
    words = []
    for option, value in given_options.items():
        if value is None:
            words.append(option)
        else:
            words += [
                f"{option}={each}" for each in (value if isinstance(value, list) else [value])
            ]
    once = read(parser(), words, {})
    directory = tmp_path_factory.getbasetemp()
    # A name that would end a comment.
    file = directory / ("line\nend.toml" if in_file else "printed.toml")
    file.write_text(print_out(once), encoding="utf-8", newline="")
    again = read(parser(), [], {}, file)
    assert vars(again.values) | {"config": None} == vars(once.values)
    for option in once.places:
        assert again.places[option].startswith(f"{file}:")
    file.write_text(print_out(again), encoding="utf-8", newline="")
    assert vars(read(parser(), [], {}, file).values) == vars(again.values)


def test_what_is_printed_says_where_it_is_from(file: Path) -> None:
    file.write_text('\nlisten = ["192.0.2.1", "192.0.2.2"]\n')
    printed = print_out(read(parser(), ["--tcp"], {"PKTSTUN_SERVE_PORT": "1"}, file))
    assert printed.splitlines()[1:] == [
        "# iface                                # not set",
        "# mode                                 # not set",
        f'listen = ["192.0.2.1", "192.0.2.2"]    # {file}:2',
        "port = 1                               # environment PKTSTUN_SERVE_PORT",
        "# nice                                 # not set",
        "# idle-time                            # not set",
        "# state                                # not set",
        "tcp = true                             # command line",
        "# takeover                             # not set",
    ]
