"""Servers with one address behind an ECMP route, and clients that ask it all the time.

    clients 10.78.0.2-17 --- 10.78.0.1 router 10.79.N.1 --- 10.79.N.2 host N (192.0.2.1 on lo)

Theory of operation. The anycast address is on the loopback interface of every host; what carries
it there is the router's multipath route, which chooses a next hop by a hash of addresses and ports
(fib_multipath_hash_policy=1). A health check for each host asks its address on the link, which
the same server serves, and takes the host out of the route when two answers in a row are missing.
IPv6 is the same beside it.

The clients are transactions of RFC 8489, with its retransmissions (`stun.Transaction`), each on a
socket of its own, one after the other. `obey_icmp` is what the RFC says about a hard ICMP error:
the transaction has failed. The sockets are connected then, since no other hears of one. What most
clients do is to go on asking.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import cycle, islice
from typing import TYPE_CHECKING, Self

from pktstun.client import watch
from pktstun.stun import Action, Message, Transaction, TransportAddress
from tests.netns.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, Namespace

ANYCAST = ("192.0.2.1", "2001:db8::1")
MODES = ("direct", "ring", "recvmmsg")
LINK = "v0"  # of each host
_PORT = 3478
_CLIENTS_PER_FAMILY = 16  # addresses
_MISSED = 2  # answers in a row
_PAUSE = 0.05  # seconds between two transactions of a client


@dataclass(frozen=True)
class Host:
    """One of those that have the anycast address."""

    ns: Namespace
    router_if: str
    ips: tuple[str, str]
    """On the link, IPv4 and IPv6."""

    def serve(self, mode: str, *more: str) -> Server:
        """Return a server of the anycast addresses, and of those that the health check asks."""
        listens = [f"--listen={ip}" for ip in (*ANYCAST, *self.ips)]
        return Server(self.ns, ["--iface", LINK, "--mode", mode, *listens, *more])


@dataclass(frozen=True)
class EcmpNetwork:
    """The namespaces, and the hosts that the route leads to."""

    clients: Namespace
    router: Namespace
    hosts: tuple[Host, ...]
    client_ips: tuple[str, ...]
    announced: list[Host]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def announce(self, host: Host) -> None:
        """Take a host into the route."""
        with self._lock:
            self.announced.append(host)
            self._route()

    def withdraw(self, host: Host) -> None:
        """Take a host out of the route."""
        with self._lock:
            self.announced.remove(host)
            self._route()

    def _route(self) -> None:
        with self.router.iproute() as ipr:
            for position, anycast in enumerate(ANYCAST):
                family = socket.AF_INET6 if ":" in anycast else socket.AF_INET
                hops = [{"gateway": host.ips[position]} for host in self.announced]
                verb = "replace" if hops else "del"
                ipr.route(verb, dst=anycast, family=family, **({"multipath": hops} if hops else {}))


def ecmp_network(lab: Lab, hosts: int = 3) -> EcmpNetwork:
    """Build the namespaces; all hosts are announced."""
    clients, router = lab.namespace("clients"), lab.namespace("router")
    for name, value in {
        "ipv4/ip_forward": 1,
        "ipv6/conf/all/forwarding": 1,
        "ipv4/fib_multipath_hash_policy": 1,  # addresses and ports
        "ipv6/fib_multipath_hash_policy": 1,
        # A link without a carrier is no way: else the next hop counts until somebody removes it.
        "ipv4/conf/all/ignore_routes_with_linkdown": 1,
        "ipv6/conf/all/ignore_routes_with_linkdown": 1,
        "ipv6/conf/default/ignore_routes_with_linkdown": 1,
    }.items():
        router.write(f"/proc/sys/net/{name}", str(value))
    lab.veth(clients, "c0", router, "lan")
    ips = [f"{net}{n}" for net in ("10.78.0.", "fd78::") for n in range(2, 2 + _CLIENTS_PER_FAMILY)]
    lab.address(clients, "c0", *(f"{ip}/{64 if ':' in ip else 24}" for ip in ips))
    lab.address(router, "lan", "10.78.0.1/24", "fd78::1/64")
    for gateway in ("10.78.0.1", "fd78::1"):
        lab.route(clients, "default", gateway)
    built = []
    for n in range(hosts):
        host = Host(lab.namespace(f"host{n}"), f"r{n}", (f"10.79.{n}.2", f"fd79:{n}::2"))
        lab.veth(router, host.router_if, host.ns, LINK)
        lab.address(router, host.router_if, f"10.79.{n}.1/24", f"fd79:{n}::1/64")
        lab.address(host.ns, LINK, f"{host.ips[0]}/24", f"{host.ips[1]}/64")
        lab.address(host.ns, "lo", f"{ANYCAST[0]}/32", f"{ANYCAST[1]}/128")
        for gateway in (f"10.79.{n}.1", f"fd79:{n}::1"):
            lab.route(host.ns, "default", gateway)
        built.append(host)
    network = EcmpNetwork(clients, router, tuple(built), tuple(ips), [])
    for host in built:
        network.announce(host)
    return network


@contextlib.contextmanager
def health_check(network: EcmpNetwork, interval: float = 0.2) -> Iterator[None]:
    """Ask every host over its link, IPv4, and announce those that answer, until the block ends."""
    ended = threading.Event()
    threads = [
        threading.Thread(target=_check, args=(network, host, interval, ended))
        for host in network.hosts
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _check(network: EcmpNetwork, host: Host, interval: float, ended: threading.Event) -> None:
    missed = 0
    target = TransportAddress(ip_address(host.ips[0]), _PORT)
    with network.router.enter():
        # The time of a missing answer is known when the next request is due.
        for sample in watch(target, interval=interval, timeout=interval):
            if ended.is_set():
                return
            missed = missed + 1 if sample.latency is None else 0
            is_announced = host in network.announced
            if is_announced and missed >= _MISSED:
                network.withdraw(host)
            elif not is_announced and not missed:
                network.announce(host)


@dataclass
class Outcome:
    """What became of the clients' transactions."""

    waits: list[float] = field(default_factory=list)
    """Seconds from the first request to the answer."""
    requests: Counter[int] = field(default_factory=Counter)
    """How many transactions took so many requests."""
    wrong: list[str] = field(default_factory=list)
    """Answers with an address other than the client's own, or none."""
    failed: list[str] = field(default_factory=list)

    @property
    def retransmitted(self) -> int:
        """Transactions that were answered after more than one request."""
        return sum(count for number, count in self.requests.items() if number > 1)

    def quantile(self, share: float) -> float:
        """Return the wait that a share of the transactions did not exceed."""
        ordered = sorted(self.waits)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class _Client:
    """A socket, and one transaction after the other."""

    def __init__(self, sock: socket.socket, server: TransportAddress, rto: float) -> None:
        self.sock = sock
        self.transaction: Transaction | None = None
        self.wakes = 0.0
        """When there is something to do."""
        self._server = (str(server.ip), server.port)
        self._own = TransportAddress.from_sockaddr(sock.getsockname())
        self._rto = rto
        self._begun = 0.0

    def begin(self, now: float) -> None:
        self.transaction = Transaction(Message.request(), now, rto=self._rto)
        self._begun = self.wakes = now

    def poll(self, now: float, outcome: Outcome) -> None:
        """Send what is due."""
        assert self.transaction
        match self.transaction.poll(now):
            case Action.FAIL:
                self._end(now)
                outcome.failed.append(f"{self._own}: no answer")
                return
            case Action.SEND:
                # What an ICMP error says stays for `receive`.
                with contextlib.suppress(ConnectionRefusedError):
                    self.sock.sendto(self.transaction.request.encode(), self._server)
        self.wakes = self.transaction.deadline

    def receive(self, now: float, outcome: Outcome) -> None:
        """Take what has arrived."""
        try:
            data = self.sock.recv(2048)
        except ConnectionRefusedError:
            if self.transaction:
                self._end(now)
                outcome.failed.append(f"{self._own}: refused")
            return
        response = self.transaction.receive(data) if self.transaction else None
        if self.transaction is None or response is None:
            return
        outcome.waits.append(now - self._begun)
        outcome.requests[self.transaction.sent] += 1
        if response.mapped_address != self._own:
            outcome.wrong.append(f"{self._own} is told {response.mapped_address}")
        self._end(now)

    def _end(self, now: float) -> None:
        self.transaction = None
        self.wakes = now + _PAUSE


class Clients:
    """They ask from the beginning of a `with` until `stop`, or its end.

    Args:
        network: whose clients.
        count: how many.
        rto: seconds until the first retransmission.
        obey_icmp: a hard ICMP error ends a transaction.
    """

    def __init__(
        self, network: EcmpNetwork, count: int = 64, *, rto: float = 0.5, obey_icmp: bool = False
    ) -> None:
        self.outcome = Outcome()
        self._selector = selectors.DefaultSelector()
        self._clients = []
        servers = {ip.version: TransportAddress(ip, _PORT) for ip in map(ip_address, ANYCAST)}
        for text in islice(cycle(network.client_ips), count):
            ip = ip_address(text)
            family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
            sock = network.clients.socket(family, socket.SOCK_DGRAM)
            sock.bind((text, 0))
            if obey_icmp:
                sock.connect((str(servers[ip.version].ip), _PORT))
            self._clients.append(_Client(sock, servers[ip.version], rto))
            self._selector.register(sock, selectors.EVENT_READ, self._clients[-1])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        for client in self._clients:
            client.sock.close()
        self._selector.close()

    def stop(self) -> Outcome:
        """Begin no more transactions, and return when the last has its answer or has failed."""
        self._ended.set()
        self._thread.join()
        return self.outcome

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            for client in self._clients:
                if client.wakes > now:
                    continue
                if client.transaction is None and not self._ended.is_set():
                    client.begin(now)
                if client.transaction is not None:
                    client.poll(now, self.outcome)
            asking = [client for client in self._clients if client.transaction is not None]
            if self._ended.is_set() and not asking:
                return
            wakes = min(client.wakes for client in asking or self._clients)
            wait = min(max(wakes - now, 0.001), _PAUSE)
            for key, _ in self._selector.select(wait):
                key.data.receive(time.monotonic(), self.outcome)
