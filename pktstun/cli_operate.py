"""The commands that look at a running service: `status` and `top`, from arguments to exit status.

What they show is made in `pktstun.observe`; it is imported when one of them runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pktstun.cli_kinds import count
from pktstun.errors import PktstunError, PrivilegeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pktstun.observe import Snapshot

__all__ = ["add_commands"]

_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.1, 3600.0

_SECOND_LOOK = 0.5
"""Seconds after which a worker that was down is looked at again: it may just be replaced."""

_STATUS_HELP = """\
The exit status is for scripts:
  0    every service that was found serves
  1    a worker is down or its loop stands still, or a service does not answer
  3    no service was found
  77   this user may not ask: be root, the service's user, or one of its group

With --json, standard output is one object: `schema` (1), `services` (an object
for each, with `workers`, their counters, and `totals`) and `problems` (of those
that could not be asked). Names are added to it and never change what they mean
as long as `schema` is the same.
"""

_TOP_HELP = """\
Rates are those of the last interval. What the columns mean:
  fill     share of the packet ring, or of the sockets' buffer, that waits
  peak     the largest share of the ring that ever did
  lost/s   what the kernel had no room for there
  starts   processes that the worker has had
  beat     time since its loop has turned

The probe is a Binding request every second from here to the service itself,
over loopback, counted as everybody's; it speaks of the last minute. q quits.
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to a parser; `run` of what they parse carries them out."""
    status = commands.add_parser(
        "status",
        help="how a running service is",
        description="Print how the running services are: what they serve, their workers, and "
        "their\ncounters since the start.",
        epilog=_STATUS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_socket(status)
    status.add_argument("--json", action="store_true", help="print a JSON object")
    status.set_defaults(run=_status)
    top = commands.add_parser(
        "top",
        help="watch a running service",
        description="Watch a running service: rates, drops, rings, batches, latency. Takes rich\n"
        "(pip install rich, or apt install python3-rich).",
        epilog=_TOP_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_socket(top)
    top.add_argument(
        "--interval",
        type=interval,
        default=1.0,
        metavar="SECONDS",
        help="between two screens (default: %(default)s)",
    )
    times = top.add_mutually_exclusive_group()
    times.add_argument("--count", type=count, metavar="N", help="print N screens as text, and end")
    times.add_argument(
        "--once", dest="count", action="store_const", const=1, help="the same as --count 1"
    )
    top.add_argument(
        "--probe",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send the service a request every second (default: yes)",
    )
    top.set_defaults(run=_top)


def _add_socket(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the service's --status-socket (default: those in /run/pktstun, in "
        "$XDG_RUNTIME_DIR/pktstun and in /tmp/pktstun-UID)",
    )


def interval(text: str) -> float:
    """Read the time between screens; argparse names this function in its complaint."""
    value = float(text)
    if not _SHORTEST_INTERVAL <= value <= _LONGEST_INTERVAL:
        raise argparse.ArgumentTypeError(
            f"{text} is not in {_SHORTEST_INTERVAL:g}..{_LONGEST_INTERVAL:g} seconds"
        )
    return value


def _status(options: argparse.Namespace) -> int:
    from pktstun.observe import as_json, as_line, as_text, find_services  # noqa: PLC0415 - see above

    found = find_services(options.socket)
    try:
        snapshots = [each.read() for each in found.services]
        if any(each.problems for each in snapshots):
            time.sleep(_SECOND_LOOK)
            snapshots = [each.read() for each in found.services]
    finally:
        found.close()
    if options.json:
        lines = [json.dumps(as_json(snapshots, [str(each) for each in found.problems]))]
    elif len(snapshots) == 1:
        lines = as_text(snapshots[0])
    else:
        lines = [as_line(each) for each in snapshots]
        if snapshots:
            lines.append("one of them in full: pktstun status --socket PATH")
    for each in found.problems:
        print(f"pktstun: {each}", file=sys.stderr)
    try:
        print("".join(f"{each}\n" for each in lines), end="", flush=True)
    except BrokenPipeError:
        return _forget_output()
    return _exit_status(snapshots, found.problems)


def _exit_status(snapshots: Sequence[Snapshot], problems: Sequence[PktstunError]) -> int:
    if any(each.problems for each in snapshots):
        return 1
    # Services that are nobody's business but others' do not make this one's a bad one.
    unanswered = [each for each in problems if not isinstance(each, PrivilegeError)]
    if unanswered:
        return unanswered[0].exit_status
    return 0 if snapshots or not problems else problems[0].exit_status


def _forget_output() -> int:
    """Return the exit status of a command whose reader has seen enough."""
    # What is left in the buffer would fail once more at the end.
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _top(options: argparse.Namespace) -> int:
    try:
        from pktstun import top  # noqa: PLC0415 - takes rich
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "rich":
            raise
        raise UsageError("top takes rich: pip install rich, or apt install python3-rich") from error
    try:
        return top.run(
            options.socket, interval=options.interval, count=options.count, probe=options.probe
        )
    except BrokenPipeError:
        return _forget_output()
