"""Where options were said, put into the messages that name them.

Theory of operation: a check speaks of an option by its flag (`--mode`), wherever the value came
from, and knows of no file. Who reads the configuration keeps a place for each option that was
said: `FILE:LINE`, a variable of the environment, or the command line. On its way out an error
passes `located`, which puts the two together, the place of what it names first in front:

    /etc/pktstun.toml:4: --takeover spares ...: use --mode ring (--mode: /etc/pktstun.toml:2)

Of what was said on the command line alone nothing is added: the flags say it.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pktstun.errors import PktstunError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["COMMAND_LINE", "locate", "located"]

COMMAND_LINE = "command line"
"""The place of what was said there."""

_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")


def locate(message: str, places: Mapping[str, str]) -> str:
    """Return a message with the places of the options that it names.

    Args:
        message: names options as `--name` or `--no-name`.
        places: the name of each option that was said, without dashes, to where that was.
    """
    named: dict[str, str] = {}
    for flag in _FLAG.findall(message):
        option = flag if flag in places else flag.removeprefix("no-")
        if option in places:
            named[option] = places[option]
    if not named:
        return message
    first = next(iter(named.values()))
    others = [f"--{option}: {place}" for option, place in named.items() if place != first]
    return (
        ("" if first == COMMAND_LINE else f"{first}: ")
        + message
        + (f" ({', '.join(others)})" if others else "")
    )


@contextmanager
def located(places: Mapping[str, str]) -> Generator[None]:
    """Put places into the message of an error that passes; `places` as for `locate`."""
    try:
        yield
    except PktstunError as error:
        error.args = (locate(str(error), places), *error.args[1:])
        raise
