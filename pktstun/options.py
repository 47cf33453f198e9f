"""The options of `serve`, and who has the last word on each.

Theory of operation: argparse knows what options there are; nothing is told here a second time. The
environment and the configuration file become settings, words of a command line with the place
that they are from, and the one parser reads all of them. What was said replaces what a source
below said, as a whole:

    command line > environment > file > default

A variable is named as its option: PKTSTUN_SERVE_RATE_LIMIT is --rate-limit. What can be
repeated stands in one, between commas or spaces. An empty variable is as good as none, since many
who set it cannot leave it out.
"""

from __future__ import annotations

import argparse
import re
import typing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pktstun import configfile
from pktstun.errors import ConfigError, UsageError
from pktstun.places import COMMAND_LINE, located

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["PREFIX", "Said", "kinds", "print_out", "read"]

# Not PKTSTUN_: for a service that is called pktstun, Kubernetes sets PKTSTUN_PORT to
# tcp://ADDRESS:PORT in every container, and more that begins so.
PREFIX = "PKTSTUN_SERVE_"
"""What the variables of the environment begin with."""

_FILE = "config"
"""The option that names the file, which the file cannot say."""

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_COLUMN = 38
"""Of the places in what is printed; in 80 columns there is room for both then."""


class Said(NamedTuple):
    """What the options are."""

    values: argparse.Namespace
    """As the parser returns them."""
    places: dict[str, str]
    """The name of each option that was said, without dashes, to where that was."""


def kinds(parser: argparse.ArgumentParser) -> dict[str, type]:
    """Return the options of a parser: name, without dashes, to the kind of its values.

    Returns:
        `bool`, `int`, `float`, `str`, or `list` for what can be repeated, a list of strings.
    """
    return {each.option_strings[0].removeprefix("--"): _kind(each) for each in _actions(parser)}


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001 - nothing else tells them


def _kind(action: argparse.Action) -> type:
    if isinstance(action, argparse.BooleanOptionalAction):
        return bool
    if isinstance(action.default, list):
        return list
    made: object = action.type
    if callable(made) and not isinstance(made, type):
        made = typing.get_type_hints(made).get("return")
    return made if made is int or made is float else str


def read(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    environment: Mapping[str, str],
    file: Path | None = None,
) -> Said:
    """Return what command line, environment and configuration file say together.

    Args:
        parser: has the options, all with a default and long names alone, and `--config`; raises
            UsageError. It is of no other use afterwards.
        words: the command line; what the parser does not know is passed over.
        environment: of the process.
        file: the configuration file, if it is not the one that the others name.

    Raises:
        ConfigError: some of it makes no sense; the text says where that is.
    """
    known = kinds(parser)
    values = vars(parser.parse_args([]))
    for action in _actions(parser):
        action.default = argparse.SUPPRESS  # so that only what is said comes out
    given, _ = parser.parse_known_args(words)
    if file is not None:
        given.config = str(file)
    values.update(vars(given))
    places = dict.fromkeys((_option(name) for name in vars(given)), COMMAND_LINE)

    def take(settings: Iterable[configfile.Setting]) -> None:
        for setting in settings:
            value = _value(parser, setting)
            if setting.option not in places:
                values[setting.option.replace("-", "_")] = value
                places[setting.option] = setting.place

    take(_from_environment(environment, known))
    if values[_FILE] is not None:
        with located({_FILE: places[_FILE]}):
            in_file = {option: kind for option, kind in known.items() if option != _FILE}
            take(configfile.read(Path(values[_FILE]), in_file))
    with located(places):
        _check(values)
    return Said(argparse.Namespace(**values), places)


def _option(name: str) -> str:
    """Return the name of an option from that of the attribute that argparse gives it."""
    return name.replace("_", "-")


def _value(parser: argparse.ArgumentParser, setting: configfile.Setting) -> object:
    """Return what the parser makes of a setting."""
    try:
        # Nothing is said by the words of an empty array.
        (value,) = vars(parser.parse_args(setting.words)).values() or [[]]
    except UsageError as error:
        complaint = str(error).removeprefix(f"argument --{setting.option}: ")
        raise ConfigError(f"{setting.place}: --{setting.option}: {complaint}") from error
    return value


def _check(values: Mapping[str, object]) -> None:
    """Refuse what no option can make sense of, and nothing below expects."""
    for name, value in values.items():
        option = f"--{_option(name)}"
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise ConfigError(f"{option} takes no number of more than 64 bits")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not _is_unicode(text):
                raise ConfigError(f"{option}: {text!a} is not UTF-8")


def _is_unicode(text: str) -> bool:
    # Bytes of an argument or a variable that are not UTF-8 are surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _from_environment(
    environment: Mapping[str, str], known: Mapping[str, type]
) -> Iterator[configfile.Setting]:
    options = {option.upper().replace("-", "_"): option for option in known}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        place = f"environment {variable}"
        name = variable.removeprefix(PREFIX)
        if name not in options:
            meant = configfile.nearest(name, options, PREFIX)
            raise ConfigError(f"{place}: there is no such option: {meant}")
        if text:
            option = options[name]
            yield configfile.Setting(
                option, tuple(_words(place, option, known[option], text)), place
            )


def _words(place: str, option: str, kind: type, text: str) -> Iterator[str]:
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ConfigError(f"{place}: {text!r} is none of {', '.join(_BOOLEANS)}")
        yield f"--{option}" if _BOOLEANS[text.lower()] else f"--no-{option}"
    elif kind is list:
        yield from (f"--{option}={each}" for each in re.split(r"[,\s]+", text) if each)
    else:
        yield f"--{option}={text}"


def print_out(said: Said, defaults: Mapping[str, object] | None = None) -> str:
    """Return a configuration file that says the same, with the place that each value is from.

    An option that has no value, since not every option is of use with every other, is a comment.

    Args:
        said: what to print.
        defaults: names of such options to what holds without them, as far as that is known.
    """
    defaults = defaults or {}
    lines = ["# What `pktstun serve` is told. --config takes it back.\n"]
    for name, value in vars(said.values).items():
        option = _option(name)
        if option == _FILE:
            continue
        shown = defaults.get(option) if value is None else value
        line = ("# " if value is None else "") + option
        if shown is not None:
            line += f" = {configfile.as_toml(shown)}"
        place = said.places.get(option, "default" if shown is not None else "not set")
        # A file can have any name, and a comment no line end in it.
        place = "".join(each if each.isprintable() else "?" for each in place)
        lines.append(f"{line:<{_COLUMN}} # {place}\n")
    return "".join(lines)
