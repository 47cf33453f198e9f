"""How much of a CPU nobody wanted: what is left beside a server at a given load.

    python tools/idle_meter.py --cpu 1 --seconds 5

It takes what is left of the CPU, at the lowest priority, and prints one line of JSON:
{"cpu": ..., "elapsed": seconds, "idle": seconds}. With --steps it prints {"ready": true, "cpu":
...}, reads lines "SECONDS" from standard input, and prints such an object for each. What it
counts as idle: see pktstun/kernel/idle.py. On a CPU that is never idle, a measurement ends up to
a second or so late, because it has to wait for its turn; "elapsed" says how long it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pktstun.kernel.idle import IdleMeter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_SECONDS = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(description="Measure how much of a CPU nobody wants.")
    parser.add_argument("--cpu", type=int, required=True, metavar="N", help="CPU to measure")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="how long")
    parser.add_argument("--steps", action="store_true", help="read the seconds from lines")
    options = parser.parse_args(arguments)
    if options.steps == (options.seconds is not None):
        parser.error("give either --seconds or --steps")
    meter = IdleMeter()
    try:
        with _giving_way(options.cpu):
            pass
    except (OSError, OverflowError, ValueError):
        parser.error(f"--cpu {options.cpu}: there is no such CPU to run on")
    if options.steps:
        print(json.dumps({"ready": True, "cpu": options.cpu}), flush=True)
    try:
        for seconds in map(_seconds, sys.stdin) if options.steps else [options.seconds]:
            with _giving_way(options.cpu):
                elapsed, idle = meter.measure(seconds)
            print(json.dumps({"cpu": options.cpu, "elapsed": elapsed, "idle": idle}), flush=True)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    return 0


@contextmanager
def _giving_way(cpu: int) -> Iterator[None]:
    """Run on this CPU and only when nobody else wants it.

    Not for longer than needed: on a busy CPU, even the end of a program takes seconds then.
    """
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, cpus)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_SECONDS:  # false for NaN
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is no time of more than 0 and at most {MAX_SECONDS:g} s"
        )
    return seconds


if __name__ == "__main__":
    sys.exit(main())
