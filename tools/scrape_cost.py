"""What it costs to be scraped: goodput under full load without scrapes, and with some every second.

Each round starts a mode of tools/compare/targets.py with --metrics and offers it more requests than
it can answer, once for each scrape rate, in an order that changes from round to round. Goodput is
what it answered; what scrapes cost is taken within a round, as a share of what was answered
without. Medians, and quartiles in brackets. Beside it stands the CPU time of the exporter for a
scrape, which says what to expect where the differences drown.

It is the worst case: the exporter may run on no other CPU than the worker's. Who scrapes runs on
the generator's.

    python3 tools/dev.py test            # makes the environment
    .venv/bin/python tools/scrape_cost.py recvmmsg takeover
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import statistics
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.compare.bench import LabBench
from tools.compare.targets import MODES

if TYPE_CHECKING:
    from collections.abc import Sequence

RATES = (0.0, 1.0, 10.0)
"""Scrapes per second."""

OFFERED = 600_000
"""Requests per second, unless told: more than any mode answers on one CPU."""


class Run(NamedTuple):
    """What became of a load."""

    goodput: float
    """Replies per second."""
    scrapes: int
    cpu_time: float
    """Seconds that the exporter has had a CPU."""


class Scraper:
    """Scrapes so many times a second from a thread, between `with` and its end."""

    def __init__(self, path: str, rate: float, cpu: int) -> None:
        self.scrapes = 0
        self._path, self._rate, self._cpu = path, rate, cpu
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        os.sched_setaffinity(0, {self._cpu})
        due = time.monotonic() + 0.5 / self._rate if self._rate else float("inf")
        while not self._end.wait(min(3600.0, max(0.0, due - time.monotonic()))):
            scrape(self._path)
            self.scrapes += 1
            due += 1 / self._rate


def scrape(path: str) -> bytes:
    """Return what an exporter says, over its unix socket."""
    connection = http.client.HTTPConnection("localhost")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        connection.sock = sock
        connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
        response = connection.getresponse()
        body = response.read()
    if response.status != http.client.OK:
        raise RuntimeError(f"the exporter answers {response.status}")
    return body


def main() -> int:
    """Run the rounds and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("modes", nargs="+", metavar="MODE", help=f"of {', '.join(MODES)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--offered", type=int, default=OFFERED, help="requests per second")
    options = parser.parse_args()
    if not set(options.modes) <= MODES.keys():
        parser.error(f"choose modes from {', '.join(MODES)}")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("it takes two CPUs: one for the generator, one for the server")
    found: dict[tuple[str, float], list[Run]] = defaultdict(list)
    with LabBench(generator_cpu=cpus[0], server_cpus=cpus[1:2], port=3478) as bench:
        for number in range(options.rounds):
            for mode in options.modes:
                for rate, run in measure(bench, mode, options.offered, options.seconds, number):
                    found[mode, rate].append(run)
    for mode in options.modes:
        report(mode, {rate: found[mode, rate] for rate in RATES}, options.offered)
    return 0


def measure(
    bench: LabBench, mode: str, offered: int, seconds: float, number: int
) -> list[tuple[float, Run]]:
    """Start a server and offer it the load, once for each scrape rate."""
    path = f"{bench.place['scratch']}/m.sock"
    target = MODES[mode]
    target = target._replace(command=(*target.command, "--metrics", f"unix:{path}"))
    order = [*RATES[number % len(RATES) :], *RATES[: number % len(RATES)]]
    runs = []
    with bench.serve(target):
        scrape(path)
        bench.load(offered, 0.3)
        for rate in order:
            before = exporter_time(bench)
            with Scraper(path, rate, bench.generator_cpu or 0) as scraper:
                result = bench.load(offered, seconds)
            spent = exporter_time(bench) - before
            runs.append((rate, Run(result["reply_rate"], scraper.scrapes, spent / 1e9)))
    return runs


def exporter_time(bench: LabBench) -> int:
    """Return the nanoseconds that the exporter has had a CPU (proc_pid_schedstat)."""
    serving = {}
    for pid in bench.server.pids():
        if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            serving[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    children = [pid for pid, parent in serving.items() if int(parent) in serving]
    # Workers have a priority.
    exporter = max(children, key=lambda pid: os.getpriority(os.PRIO_PROCESS, pid))
    return int(Path(f"/proc/{exporter}/schedstat").read_text().split()[0])


def report(mode: str, runs: dict[float, list[Run]], offered: int) -> None:
    """Print a mode's table."""
    plain = runs[0.0]
    print(f"{mode}, {len(plain)} rounds, {offered:,} requests/s offered:")
    print(f"  without scrapes        {spread([run.goodput for run in plain])} replies/s")
    for rate in RATES[1:]:
        pairs = list(zip(plain, runs[rate], strict=True))
        losses = [100 * (1 - run.goodput / before.goodput) for before, run in pairs]
        print(f"  {rate:4.0f} scrapes/s cost    {spread(losses, '.2f')} % of that")
        per_scrape = [
            1e3 * (run.cpu_time - before.cpu_time) / run.scrapes
            for before, run in pairs
            if run.scrapes
        ]
        scrapes = sum(run.scrapes for _, run in pairs)
        print(
            f"    the exporter took    {spread(per_scrape, '.2f')} ms of CPU time each ({scrapes})"
        )


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median, and the quartiles in brackets."""
    if len(values) < 2:
        return " ".join(f"{value:{form}}" for value in values) or "-"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    sys.exit(main())
