"""The configuration file: TOML whose keys are the names of the flags of `serve`.

Theory of operation: a line that says something becomes a `Setting`: the words that would say the
same on a command line, and the place, `FILE:LINE`. The command line's parser reads the words
(`pktstun.options`), so that a value means in both what it means in one, and is refused with the
same words. What is looked at here is what a command line cannot show: the kinds of values.

    iface = "eth0"
    listen = ["192.0.2.1", "[2001:db8::1]:3478"]
    takeover = true

Python's reader of TOML tells no lines of what it has read. But without tables a file is a sequence
of statements that are TOML each by itself: so lines are gathered until they are, and the first of
them is the place. A statement that is not complete yet is told from a wrong one by where the
reader gives up: at the end.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from typing import TYPE_CHECKING, NamedTuple

from pktstun.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

__all__ = ["Setting", "as_toml", "nearest", "read"]

_LONGEST = 1 << 20  # no configuration is so long: it is a device, or another file
_POSITION = re.compile(r"(.*) \(at line (\d+), column (\d+)\)")
_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array of strings",
}
_FOUND = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array"}


class Setting(NamedTuple):
    """An option that was said."""

    option: str
    """Its name, without dashes."""
    words: tuple[str, ...]
    """What says the same on a command line; nothing for an empty array."""
    place: str
    """Where it was said."""


def read(path: Path, kinds: Mapping[str, type]) -> Iterator[Setting]:
    """Yield what a configuration file says, in its order.

    Args:
        path: the file; UTF-8.
        kinds: the names of the options, without dashes, to the kind of their values: `bool`,
            `int`, `float`, `str`, or `list` for those that can be repeated.

    Raises:
        ConfigError: it cannot be read, is no TOML, or has a key or a value that means nothing.
    """
    lines: dict[str, int] = {}
    for line, key, value in _statements(path, _content(path)):
        place = f"{path}:{line}"
        if isinstance(value, dict) or (isinstance(value, list) and {} in map(_emptied, value)):
            raise ConfigError(f"{place}: {key}: there are no tables: write NAME = VALUE, for each")
        if key in lines:
            raise ConfigError(f"{place}: {key} is in line {lines[key]} already")
        if key not in kinds:
            raise ConfigError(f"{place}: there is no option {key!r}: {nearest(key, kinds)}")
        lines[key] = line
        yield Setting(key, tuple(_words(place, key, value, kinds[key])), place)


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return what somebody may have meant who wrote a name that there is not.

    Args:
        name: that name.
        known: those that there are.
        prefix: what all of them begin with, left out in both.
    """
    if found := difflib.get_close_matches(name, known, 1):
        return f"did you mean {prefix}{found[0]}?"
    return f"there are {', '.join(prefix + each for each in sorted(known))}"


def as_toml(value: object) -> str:
    """Return a value of an option as TOML has it: a number, a boolean, strings, or text."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(map(as_toml, value))}]"
        case _:
            # The one character that JSON leaves as it is and TOML does not.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from error
    if len(content) > _LONGEST:
        raise ConfigError(f"--config: {path} is longer than {_LONGEST} bytes: name another file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8") from error


def _statements(path: Path, text: str) -> Iterator[tuple[int, str, object]]:
    """Yield the line on which each statement begins, its key and its value."""
    begin, gathered = 1, ""
    for number, line in enumerate(text.split("\n"), start=1):
        gathered += line + "\n"
        try:
            table = tomllib.loads(gathered)
        except tomllib.TOMLDecodeError as error:
            where = _POSITION.fullmatch(str(error))
            if where is None:
                continue  # the end has come too early: the next line may have it
            reason, row, column = where.groups()
            hint = "; a string stands in quotes" if reason == "Invalid value" else ""
            if row != "1":
                hint = f" of what begins in line {begin}"  # and may lack its end
            raise ConfigError(
                f"{path}:{begin + int(row) - 1}: no TOML: {reason}, column {column}{hint}"
            ) from error
        except (ValueError, RecursionError) as error:
            reason = "a number is too long" if isinstance(error, ValueError) else "too many ["
            raise ConfigError(f"{path}:{begin}: no TOML: {reason}") from error
        yield from ((begin, key, value) for key, value in table.items())
        begin, gathered = number + 1, ""
    if gathered:
        raise ConfigError(f"{path}:{begin}: no TOML: what begins here has no end: ']' or quotes")


def _emptied(value: object) -> object:
    return {} if isinstance(value, dict) else value


def _words(place: str, option: str, value: object, kind: type) -> Iterator[str]:
    """Yield the words of a command line; ConfigError says how the value is of another kind."""
    is_right = type(value) is kind or (kind is float and type(value) is int)
    if not is_right:
        meant = _meant(value, kind)
        found = _FOUND.get(type(value), "a date or time")
        raise ConfigError(
            f"{place}: {option} takes {_KINDS[kind]}, and not {found}"
            + (f": write {option} = {meant}" if meant is not None else "")
        )
    if isinstance(value, bool):
        yield f"--{option}" if value else f"--no-{option}"
        return
    for each in value if isinstance(value, list) else [value]:
        if isinstance(value, list) and not isinstance(each, str):
            found = _FOUND.get(type(each), "a date or time")
            raise ConfigError(f"{place}: {option} takes {_KINDS[list]}, and in it is {found}")
        if isinstance(each, str) and "\0" in each:
            raise ConfigError(f"{place}: {option} takes no string with a NUL in it")
        if isinstance(each, int) and not -(1 << 63) <= each < 1 << 63:
            raise ConfigError(f"{place}: {option} takes no number of more than 64 bits")
        yield f"--{option}={each}"


def _meant(value: object, kind: type) -> str | None:
    """Return how a value is written that means the same and is of the right kind, if it does."""
    if kind is list and isinstance(value, str):
        return as_toml([value])
    if kind is str and type(value) in {int, float}:
        return as_toml(str(value))
    if isinstance(value, str):
        form = r"true|false" if kind is bool else r"[+-]?[0-9]{1,18}"
        return value if kind is not list and re.fullmatch(form, value) else None
    return None
