"""Load while faults happen: open-loop requests with unique ids, and clients that ask again."""

from __future__ import annotations

import os
import selectors
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pktstun.kernel import Datagram, UDPSocket, interface
from pktstun.kernel.load import LoadGenerator
from pktstun.stun import Message, StunError, TransportAddress
from tests.faults import scorecard
from tests.netns.server import Server
from tools.compare.machine import cpu_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pktstun.kernel.load import LoadResult
    from tests.lab import Lab, TwoHosts

RATE = 20_000
"""Requests a second of a short run, which asks little of the machine that it runs on."""
STEPS = (40_000, 80_000, 160_000, 320_000)
"""Rates that are tried for half of the rate without loss, of a full run."""
DISTURBED = 0.02
"""Share of the CPU time that others may have before a duration says nothing of the server."""
SOURCES = "100.64.0.0/10"
PORT = 3478


def spread_over_cpus(lab: Lab, hosts: TwoHosts) -> None:
    """Have the kernel spread the server's requests over all CPUs, and know the way back."""
    for each in ("all", "default", hosts.server_if):
        hosts.server.write(f"/proc/sys/net/ipv4/conf/{each}/rp_filter", "0")
    lab.route(hosts.server, SOURCES, via=hosts.client_ipv4[0])
    mask = sum(1 << cpu for cpu in os.sched_getaffinity(0))
    hosts.server.sysfs_write(f"/sys/class/net/{hosts.server_if}/queues/rx-0/rps_cpus", f"{mask:x}")


def softnet_drops() -> int:
    """Return how many packets a backlog had no room for: no server ever saw them."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


@dataclass
class Load:
    """Requests at a fixed rate, from `with` to `result`; a thread of its own."""

    hosts: TwoHosts
    rate: int = field(default_factory=lambda: scorecard.LOADS[-1] if scorecard.LOADS else RATE)
    longest: float = 600.0
    port: int = PORT
    _stop: threading.Event = field(default_factory=threading.Event)
    _results: list[LoadResult] = field(default_factory=list)

    def __enter__(self) -> Self:
        hosts = self.hosts
        with hosts.server.enter():
            mac = interface(hosts.server_if).mac
        with hosts.client.enter():
            self._generator = LoadGenerator(
                interface(hosts.client_if),
                TransportAddress(ip_address(hosts.server_ipv4[0]), self.port),
                ip_network(SOURCES),
                mac,
            )
        self._drops = softnet_drops()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._generator.close()

    def _run(self) -> None:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        self._results.append(
            self._generator.run(self.rate, self.longest, grace=1.5, stop=self._stop.is_set)
        )

    def result(self) -> LoadResult:
        """End the load, wait for what is still on its way, and return what became of it all."""
        self._stop.set()
        self._thread.join()
        return self._results[0]

    @property
    def backlog_drops(self) -> int:
        """Packets that the kernel's backlog dropped since the beginning, of either direction."""
        return softnet_drops() - self._drops


def find_half(hosts: TwoHosts) -> None:
    """Find half of the rate without loss, for all that follows: of the mode that gives least."""
    rates = [RATE]
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", "recvmmsg"]):
        for rate in STEPS:
            with Load(hosts, rate=rate) as load:
                time.sleep(2.0)
                result = load.result()
            if result.lost > result.sent / 1000:
                break
            rates.append(rate // 2)
    scorecard.LOADS.append(rates[-1])


@dataclass
class Clients:
    """So many clients one after the other, each with RFC 8489's retransmissions (6.2.1).

    A client that has its answer makes room for a new one with another transaction id.
    """

    hosts: TwoHosts
    at_once: int = 32
    rto: float = 0.5
    attempts: int = 7
    answered: int = 0
    failed: int = 0
    retransmissions: int = 0
    longest: float = 0.0
    """Seconds that a client waited for its answer."""
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        with self.hosts.client.enter():
            own = TransportAddress(ip_address(self.hosts.client_ipv4[0]), 0)
            self._sockets = [UDPSocket(own, share=False) for _ in range(self.at_once)]
        return self._start()

    def _start(self) -> Self:
        self._server = TransportAddress(ip_address(self.hosts.server_ipv4[0]), PORT)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.finish()
        for sock in self._sockets:
            sock.close()

    def finish(self) -> None:
        """Start no more clients, and wait until those there are have an answer or give up."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            waiting = {}
            for sock in self._sockets:
                selector.register(sock, selectors.EVENT_READ, sock)
                waiting[sock] = self._ask(sock)
            while waiting:
                now = time.monotonic()
                for sock, client in list(waiting.items()):
                    if now >= client.due and not client.ask_again(self, sock, self._server):
                        self.failed += 1
                        self._next(waiting, sock)
                for key, _ in selector.select(0.02):
                    asked = waiting.get(key.data)
                    answers = key.data.recvmmsg()
                    if asked is not None and any(asked.is_answer(each.data) for each in answers):
                        self.answered += 1
                        self.longest = max(self.longest, time.monotonic() - asked.began)
                        self._next(waiting, key.data)

    def _ask(self, sock: UDPSocket) -> _Client:
        client = _Client(Message.request(), time.monotonic())
        client.ask_again(self, sock, self._server)
        return client

    def _next(self, waiting: dict[UDPSocket, _Client], sock: UDPSocket) -> None:
        if self._end.is_set():
            del waiting[sock]
        else:
            time.sleep(0.001)  # thirty thousand clients a second are no more telling
            waiting[sock] = self._ask(sock)


@dataclass
class _Client:
    request: Message
    began: float
    attempts: int = 0
    due: float = 0.0

    def ask_again(self, clients: Clients, sock: UDPSocket, server: TransportAddress) -> bool:
        if self.attempts == clients.attempts:
            return False
        clients.retransmissions += self.attempts > 0
        # The last one is waited for 16 RTO (Rm).
        last = self.attempts == clients.attempts - 1
        self.due = time.monotonic() + clients.rto * (16 if last else 2**self.attempts)
        self.attempts += 1
        sock.sendmmsg([Datagram(self.request.encode(), server)])
        return True

    def is_answer(self, data: bytes) -> bool:
        try:
            return Message.decode(data).transaction_id == self.request.transaction_id
        except StunError:
            return False


@contextmanager
def disturbance() -> Iterator[list[float]]:
    """Yield a list that holds, afterwards, the share of all CPU time a hypervisor kept back."""
    shares: list[float] = []
    early = cpu_time()
    yield shares
    stolen, passed = (after - before for before, after in zip(early, cpu_time(), strict=True))
    shares.append(stolen / max(1, passed))


@contextmanager
def measured_cpu(pid: int) -> Iterator[list[float]]:
    """Yield a list that holds, afterwards, the share of a CPU that a process and its children used.

    Children that have come and gone meanwhile count as well.
    """
    shares: list[float] = []
    began, before = time.monotonic(), _cpu_seconds(pid)
    yield shares
    shares.append((_cpu_seconds(pid) - before) / (time.monotonic() - began))


def _cpu_seconds(pid: int) -> float:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = sum(map(int, _times(pid)))
    for child in children:
        ticks += sum(map(int, _times(int(child))[:2]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _times(pid: int) -> list[str]:
    """Return utime, stime, cutime and cstime (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
