"""What an option of `pktstun serve` costs plain requests: pairs of runs with it and without it.

Each round starts a mode of tools/compare/targets.py, then the same with the option, and offers both
the same load. Two times per reply are compared: the CPU time of the worker alone, where options
spend theirs, and the time that the server's CPU was not idle, interrupts and kernel threads
included. What else runs on the machine is in the second one only. Medians, and quartiles in
brackets; what the option costs is taken within a round.

    python3 tools/dev.py test            # makes the environment
    .venv/bin/python tools/option_cost.py recvmmsg:recvmmsg-limited takeover:takeover-limited
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.compare.bench import LabBench
from tools.compare.targets import MODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.compare.targets import Target


class Cost(NamedTuple):
    """Of one run, in nanoseconds per reply."""

    worker: float
    total: float


def main() -> int:
    """Run the pairs and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("pairs", nargs="+", metavar="MODE:MODE", help=f"of {', '.join(MODES)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=int, default=150_000, help="requests per second")
    options = parser.parse_args()
    pairs = [pair.split(":") for pair in options.pairs]
    if any(len(pair) != 2 or not set(pair) <= MODES.keys() for pair in pairs):
        parser.error(f"write pairs of {', '.join(MODES)}, as recvmmsg:recvmmsg-limited")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("it takes two CPUs: one for the generator, one for the server")
    found: dict[tuple[str, str], list[tuple[Cost, Cost]]] = {}
    with LabBench(generator_cpu=cpus[0], server_cpus=cpus[1:2], port=3478) as bench:
        for _ in range(options.rounds):
            for plain, more in pairs:
                runs = [
                    run(bench, MODES[mode], options.rate, options.seconds) for mode in (plain, more)
                ]
                found.setdefault((plain, more), []).append((runs[0], runs[1]))
    for (plain, more), rounds in found.items():
        print(f"{more} beside {plain}, {len(rounds)} pairs at {options.rate:,} requests/s:")
        for which in Cost._fields:
            before = [getattr(one, which) for one, _ in rounds]
            added = [getattr(two, which) - getattr(one, which) for one, two in rounds]
            print(f"  {which:6} {spread(before)} ns per reply, and {spread(added)} more")
    return 0


def run(bench: LabBench, target: Target, rate: int, seconds: float) -> Cost:
    """Offer the load to a server of its own."""
    with bench.serve(target):
        bench.load(rate, 0.2)
        before = worker_time(bench)
        result, busy = bench.metered_load(rate, seconds)
        worker = worker_time(bench) - before
    replies = result["replies"]
    return Cost(worker / replies, busy * 1e9 / result["reply_rate"])


def worker_time(bench: LabBench) -> int:
    """Return the nanoseconds that the one packet worker has had a CPU (proc_pid_schedstat)."""
    serving = {
        pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        for pid in bench.server.pids()
        if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    }
    workers = [pid for pid, parent in serving.items() if int(parent) in serving]
    # What serves streams has no priority.
    worker = min(workers, key=lambda pid: os.getpriority(os.PRIO_PROCESS, pid))
    return int(Path(f"/proc/{worker}/schedstat").read_text().split()[0])


def spread(values: Sequence[float]) -> str:
    """Return the median, and the quartiles in brackets."""
    if len(values) < 2:
        return f"{values[0]:,.0f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


if __name__ == "__main__":
    sys.exit(main())
