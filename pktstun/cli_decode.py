"""The command that takes messages and captures apart: arguments in, an exit status out."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from pktstun.capture import CaptureError, is_capture
from pktstun.decode import (
    CapturedMessage,
    Credentials,
    DissectedMessage,
    as_json,
    as_text,
    dissect,
    dissect_capture,
    read_content,
    read_text,
)
from pktstun.errors import UsageError

__all__ = ["add_command"]

_HELP = """\
INPUT is one of these:
  a file      a pcap or pcapng capture, or a STUN message: as it is, in hex or in base64
  -           the same from standard input, and so is no INPUT at all
  hex         spaces, line ends, colons and 0x are passed over; may be several arguments
  base64      of what begins as a STUN message; either alphabet, padding or not

What can be read in two ways is what comes first in this list; text of an even number of
hex digits is hex. In a capture every UDP datagram that looks like STUN is decoded, on any
port. The exit status is 1 if a message is malformed or its integrity wrong, or if the
capture is broken.
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser; `run` of what it parses carries it out."""
    decode = commands.add_parser(
        "decode",
        help="show what STUN messages say",
        description="Show what is in STUN messages, attribute by attribute, and where.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    decode.add_argument("input", nargs="*", metavar="INPUT", help="see below")
    decode.add_argument("--json", action="store_true", help="print a JSON object per message")
    decode.add_argument(
        "--password",
        metavar="TEXT",
        help="check the integrity: with short-term credentials, or with long-term ones if the "
        "message has a REALM or one of the next two is given",
    )
    decode.add_argument(
        "--username", metavar="TEXT", help="of long-term credentials (default: the message's)"
    )
    decode.add_argument(
        "--realm", metavar="TEXT", help="of long-term credentials (default: the message's)"
    )
    decode.set_defaults(run=_decode)


def _decode(options: argparse.Namespace) -> int:
    credentials = _credentials(options)
    data = _read_input(options.input)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the encoding lacks is escaped, as on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if is_capture(data):
            status = _decode_capture(data, credentials, in_json=options.json)
        else:
            message = dissect(data, credentials)
            _print_message(message, None, in_json=options.json)
            status = int(message.is_faulty)
        print(end="", flush=True)
    except OSError as error:
        # What is left in the buffer would fail once more at the end of the process.
        if sys.stdout is not None:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # The reader has seen enough; this is how other programs end then.
            return 128 + signal.SIGPIPE
        raise
    return status


def _credentials(options: argparse.Namespace) -> Credentials | None:
    if options.password is not None:
        return Credentials(options.password, options.username, options.realm)
    if options.username is not None or options.realm is not None:
        raise UsageError("--username and --realm are of use with --password only")
    return None


def _read_input(arguments: list[str]) -> bytes:
    """Return a message or a capture; UsageError where there is none."""
    content: bytes | None = None
    name = "the arguments together, of which none can be a file"
    if arguments in ([], ["-"]):
        name, content = "standard input", _read_standard_input()
    elif len(arguments) == 1:
        name, content = _shown(arguments[0]), _read_file(arguments[0])
        if content is None:
            name += ", which is no file"
    try:
        return read_text(" ".join(arguments)) if content is None else read_content(content)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _shown(argument: str) -> str:
    return repr(argument) if len(argument) <= 80 else "the argument"


def _read_standard_input() -> bytes:
    # There is none in a process that was started with it closed.
    if sys.stdin is None:
        return b""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise UsageError(f"cannot read standard input: {error.strerror}") from error


def _read_file(name: str) -> bytes | None:
    """Return what is in a file, or None if there is no such file."""
    if not name or "\0" in name:
        return None  # no file can have such a name
    try:
        return Path(name).read_bytes()
    except OSError as error:
        # Hex and base64 may look like a path, and be too long for one.
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            return None
        raise UsageError(f"cannot read {name!r}: {error.strerror}") from error


def _decode_capture(file: bytes, credentials: Credentials | None, *, in_json: bool) -> int:
    """Print all messages of a capture, and on standard error how much of it they are."""
    messages = malformed = status = 0
    skipped: Counter[str] = Counter()
    problem = None
    try:
        for outcome in dissect_capture(file, credentials):
            if isinstance(outcome, str):
                skipped[outcome] += 1
                continue
            if messages and not in_json:
                print()
            _print_message(outcome.message, outcome, in_json=in_json)
            messages += 1
            malformed += outcome.message.error is not None
            status |= outcome.message.is_faulty
    except CaptureError as error:
        problem = error
    print(end="", flush=True)
    if problem is not None:
        print(f"pktstun: {problem}", file=sys.stderr)
        status = problem.exit_status
    reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.most_common())
    print(
        f"pktstun: packets {messages + skipped.total()}, STUN {messages}, malformed {malformed}, "
        f"skipped {skipped.total()}{f' ({reasons})' if reasons else ''}",
        file=sys.stderr,
    )
    return status


def _print_message(
    message: DissectedMessage, captured: CapturedMessage | None, *, in_json: bool
) -> None:
    if in_json:
        print(json.dumps(as_json(message, captured)))
    else:
        print(*as_text(message, captured), sep="\n")
