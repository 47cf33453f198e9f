"""How much of a saturated worker's CPU time is user space, in each mode.

The kernel is what a request costs. This measures what Python and the fast path add to it: the
share utime / (utime + stime) of one worker that is given more requests than it can answer.
Next to it stand how much of the CPU the worker had (its interface's NAPI thread has the
rest), the requests that arrived, and the replies.

The laboratory: two network namespaces joined by veth, the generator on one CPU, the worker and
the NAPI thread of its interface on another. Rounds of the modes are interleaved; the medians
and the range are printed, and the exit status is 1 where a median is above the limit.

    python3 tools/dev.py test            # makes the environment
    .venv/bin/python tools/user_time.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pktstun.kernel import Datagram, UDPSocket
from pktstun.stun import Message, TransportAddress
from tests.lab import Lab, TwoHosts, two_hosts
from tests.netns.server import Server

LIMIT = 0.10
BATCH = 256


class Round(NamedTuple):
    """One mode, once."""

    user_share: float
    busy: float
    requests_per_second: float
    replies_per_second: float


def main() -> int:
    """Run the rounds, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    options = parser.parse_args()
    generator, *others = sorted(os.sched_getaffinity(0))
    worker = others[0] if others else generator
    rounds: dict[str, list[Round]] = {"ring": [], "recvmmsg": []}
    for _ in range(options.rounds):
        for mode, results in rounds.items():
            results.append(measure(mode, generator, worker, options.seconds))
    print(f"{'mode':10} {'user share':>20} {'busy':>6} {'requests/s':>11} {'replies/s':>11}")
    failed = False
    for mode, results in rounds.items():
        shares = [result.user_share for result in results]
        median = statistics.median(shares)
        failed |= median > LIMIT
        print(
            f"{mode:10} {median:7.1%} ({min(shares):5.1%}-{max(shares):5.1%})"
            f" {statistics.median(result.busy for result in results):6.0%}"
            f" {statistics.median(result.requests_per_second for result in results):11,.0f}"
            f" {statistics.median(result.replies_per_second for result in results):11,.0f}"
        )
    return int(failed)


def measure(mode: str, generator: int, worker: int, seconds: float) -> Round:
    """Saturate one worker for a while."""
    with Lab() as lab:
        hosts = two_hosts(lab)
        lab.offload(hosts.server, hosts.server_if, gro=True)
        lab.threaded_napi(hosts.server, hosts.server_if)
        lab.pin_napi(hosts.server, hosts.server_if, worker)
        arguments = ["--iface", hosts.server_if, "--mode", mode, "--cpus", str(worker)]
        with Server(hosts.server, arguments) as server:
            stop = threading.Event()
            load = threading.Thread(target=flood, args=(hosts, generator, stop))
            load.start()
            try:
                time.sleep(0.5)
                pid = server.worker_pids()[0]
                arrived, sent = received_packets(hosts), server.totals()["sent"]
                before, began = cpu_time(pid), time.monotonic()
                time.sleep(seconds)
                after, elapsed = cpu_time(pid), time.monotonic() - began
                replies = server.totals()["sent"] - sent
                requests = received_packets(hosts) - arrived
            finally:
                stop.set()
                load.join()
    user, system = (late - early for late, early in zip(after, before, strict=True))
    used = user + system
    return Round(user / used, used / elapsed, requests / elapsed, replies / elapsed)


def received_packets(hosts: TwoHosts) -> int:
    """Return how many packets have arrived at the server's interface."""
    for line in hosts.server.read("/proc/net/dev").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == hosts.server_if:
            return int(counters.split()[1])
    raise LookupError(hosts.server_if)


def cpu_time(pid: int) -> tuple[float, float]:
    """Return a process's user and system time in seconds (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def flood(hosts: TwoHosts, cpu: int, stop: threading.Event) -> None:
    """Send requests as fast as one CPU can, not reading the replies."""
    os.sched_setaffinity(0, {cpu})
    peer = TransportAddress(ip_address(hosts.server_ipv4[0]), 3478)
    with hosts.client.enter():
        sock = UDPSocket(TransportAddress(ip_address(hosts.client_ipv4[0]), 0), share=False)
    with sock:
        batch = sock.prepare(Datagram(Message.request().encode(), peer) for _ in range(BATCH))
        while not stop.is_set():
            batch.send()


if __name__ == "__main__":
    sys.exit(main())
