"""Running services as seen from outside: find them, read their counters, show what happens.

`find_services` asks the status sockets of this host, and `Service.read` returns a `Snapshot`.
`as_text` and `as_json` are what `pktstun status` prints of one; `compare` makes a `View` of two,
and `render` a screen of that, which `pktstun top` shows. None of it needs the compiled module.
"""

from __future__ import annotations

from ._rates import SIZES, Batches, Count, View, WorkerRates, compare
from ._report import SCHEMA, as_json, as_line, as_text
from ._screen import HEIGHT, WIDTH, Line, Probe, Scene, Style, render
from ._service import (
    NAMES,
    PROTOCOL,
    RUN,
    STUCK,
    Found,
    Info,
    Service,
    Snapshot,
    Task,
    Worker,
    directories,
    find_services,
    is_own,
)

__all__ = [
    "HEIGHT",
    "NAMES",
    "PROTOCOL",
    "RUN",
    "SCHEMA",
    "SIZES",
    "STUCK",
    "WIDTH",
    "Batches",
    "Count",
    "Found",
    "Info",
    "Line",
    "Probe",
    "Scene",
    "Service",
    "Snapshot",
    "Style",
    "Task",
    "View",
    "Worker",
    "WorkerRates",
    "as_json",
    "as_line",
    "as_text",
    "compare",
    "directories",
    "find_services",
    "is_own",
    "render",
]
