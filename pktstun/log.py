"""Logging: the standard library's, one line per event on standard error.

Theory of operation: there are three formats. `text` is for people: time, level, message. `json` is
for programs: one object in each line, whatever is in the message. `journal` is for systemd's
journal, which knows the time itself and takes the priority from a prefix of each line
(sd-daemon(3)); it is the default where standard error leads there, as systemd.exec(5) says how to
find out.

A line is one write(2), so that those of several processes do not mix: workers are forks and write
to the same place. What happens again and again names its cause, and is then one line in an interval
(`repeats`). A record may also say which worker it is about (`extra={"worker": 0}`).

A log that cannot be written is no reason to end, nor is a record that cannot be put into words.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pktstun.repeats import INTERVAL, Repeats

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BURST",
    "FORMATS",
    "LEVELS",
    "complain",
    "configure",
    "default_format",
    "in_format",
    "in_worker",
    "write_due",
    "write_rest",
]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json", "journal")

BURST = 5
"""How many lines of a cause come at once where each is of interest."""

_STANDARD_ERROR = 2
_NAME = "pktstun"
# Those of the syslog, sd-daemon(3), by the lowest level that they stand for.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "burst", "taskName"}


def configure(level: str, form: str | None = None, interval: float = INTERVAL) -> None:
    """Send the records of pktstun at this level or above to standard error.

    Those of the libraries come, too, from warnings on.

    Args:
        level: one of `LEVELS`.
        form: one of `FORMATS`; None for the default.
        interval: seconds between two lines about the same cause; 0 to write every one.
    """
    handler = _handler()
    if handler is None:
        handler = _Handler()
        logging.getLogger().addHandler(handler)
    handler.form = form or default_format()
    handler.repeats.every = interval
    logging.getLogger(_NAME).setLevel(level.upper())
    # Now: a confined worker cannot read the time zone any more.
    time.tzset()


def default_format() -> str:
    """Return `journal` where standard error leads to systemd's journal, else `text`."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    with suppress(OSError):
        there = os.fstat(_STANDARD_ERROR)
        if (device, inode) == (str(there.st_dev), str(there.st_ino)):
            return "journal"
    return "text"


def in_worker(number: int, cause: str) -> None:
    """Go on in the process of a worker.

    Args:
        number: the worker's.
        cause: of its records that name none: what the supervisor counts its deaths by. So a worker
            that dies again and again is not heard more often than they are.
    """
    handler = _handler()
    if handler is not None:
        handler.worker = number
        handler.repeats.fork(cause, BURST)


def write_due() -> None:
    """Write what was held back for as long as the interval; to be called now and then."""
    handler = _handler()
    if handler is not None:
        handler.write_all(handler.repeats.due())


def write_rest() -> None:
    """Write all that was held back: the process is about to end."""
    handler = _handler()
    if handler is not None:
        handler.write_all(handler.repeats.rest())


def complain(problem: str) -> None:
    """Say on standard error, in the format of the log, what a command ends with."""
    with suppress(OSError, ValueError):
        print(in_format(f"pktstun: {problem}", logging.ERROR), file=sys.stderr, flush=True)  # noqa: T201


def in_format(text: str, level: int = logging.INFO) -> str:
    """Return a line that is no record in the format of the log; text is left as it is."""
    handler = _handler()
    form = handler.form if handler is not None else default_format()
    if form == "text":
        return text
    record = logging.LogRecord(_NAME, level, "", 0, text, None, None)
    return _RENDERERS[form](record)


class _Handler(logging.Handler):
    """Writes each record to standard error at once, unless it says the same once more."""

    def __init__(self) -> None:
        super().__init__()
        self.form = "text"
        self.worker: int | None = None
        self.repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record now, later or not at all."""
        if self.worker is not None:
            record.__dict__.setdefault("worker", self.worker)
        admitted = self.repeats.admit(record)
        if admitted is not None:
            self._write(admitted)

    def write_all(self, records: list[logging.LogRecord]) -> None:
        """Write these."""
        for each in records:
            self._write(each)

    def _write(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:
            return  # it was closed from the start, and its number may be another file's by now
        line = _RENDERERS[self.form](record) + "\n"
        data = line.encode("utf-8", "backslashreplace")
        with suppress(OSError):
            while data:
                data = data[os.write(_STANDARD_ERROR, data) :]


def _handler() -> _Handler | None:
    handlers = logging.getLogger().handlers
    return next((each for each in handlers if isinstance(each, _Handler)), None)


# ---- formats ----


def _as_text(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC).astimezone()
    return f"{at.isoformat(' ', 'milliseconds')} {record.levelname} {_with_traceback(record)}"


def _as_journal(record: logging.LogRecord) -> str:
    priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
    lines = _with_traceback(record).splitlines() or [""]
    return "\n".join(f"<{priority}>{line}" for line in lines)


def _as_json(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    fields: dict[str, object] = {
        "time": at.replace("+00:00", "Z"),  # RFC 3339
        "level": record.levelname.lower(),
        "message": _message(record),
        "pid": record.process,
        "logger": record.name,
    }
    extra = {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
    fields |= {name: _plain(value) for name, value in extra.items()}
    if record.exc_info:
        kind, error, _ = record.exc_info
        fields["error"] = f"{kind.__name__}: {_plain(error)}" if kind else ""
        fields["traceback"] = _traceback(record)
    # ASCII: no line end and no surrogate gets through as it is.
    return json.dumps(fields)


_RENDERERS: dict[str, Callable[[logging.LogRecord], str]] = {
    "text": _as_text,
    "json": _as_json,
    "journal": _as_journal,
}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - whatever the arguments' own code thinks of
        return f"{_plain(record.msg)} {_plain(record.args)}"


def _with_traceback(record: logging.LogRecord) -> str:
    return _message(record) + (f"\n{_traceback(record)}" if record.exc_info else "")


def _traceback(record: logging.LogRecord) -> str:
    try:
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    except Exception:  # noqa: BLE001 - see _message
        return "the traceback cannot be shown"


def _plain(value: object) -> object:
    """Return what JSON can say, which for other things is their text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - see _message
        return f"<{type(value).__name__}>"
