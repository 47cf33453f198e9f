"""The configuration file: TOML whose keys are the names of the flags of `serve`.

Theory of operation: the file is turned into the words that would say the same on a command line,
and these are read by the same parser. So a value means in both what it means in one, and is
refused with the same words. The command line comes behind and has the last word; where an option
can be repeated, it takes the place of the file's.

    iface = "eth0"
    listen = ["192.0.2.1", "[2001:db8::1]:3478"]
    takeover = true
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from pktstun.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

__all__ = ["arguments"]


def arguments(path: Path, known: Collection[str], *, without: Collection[str] = ()) -> list[str]:
    """Return the command-line words that a configuration file stands for.

    Args:
        path: the file.
        known: names of the options, without dashes in front.
        without: those to leave out.

    Raises:
        ConfigError: it cannot be read, is no TOML, or has a key or a value that means nothing.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    words: list[str] = []
    for key, value in table.items():
        if key not in known:
            raise ConfigError(
                f"{path}: there is no option {key!r}; there are {', '.join(sorted(known))}"
            )
        if key not in without:
            words += _words(path, key, value)
    return words


def _words(path: Path, key: str, value: object) -> Iterator[str]:
    match value:
        case bool():
            yield f"--{key}" if value else f"--no-{key}"
        case int() | float() | str():
            yield f"--{key}={value}"
        case list():
            for each in value:
                if not isinstance(each, str):
                    raise ConfigError(f"{path}: {key} is a list of strings")
                yield f"--{key}={each}"
        case _:
            raise ConfigError(f"{path}: {key} has a value of a kind that no option has")
