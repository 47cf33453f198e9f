"""The rate limit as clients see it: through the real server, on the wire, in each mode."""

from __future__ import annotations

import math
import os
import resource
import signal
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from pktstun.kernel import UDPSocket, interface
from pktstun.kernel.load import LoadGenerator, LoadResult
from pktstun.limiter import SHARE
from pktstun.stun import TransportAddress
from tests.faults.load import PORT, Clients
from tests.faults.scorecard import modes, record, times
from tests.faults.test_reload import REPLACED, reload
from tests.faults.test_upgrade import Installation
from tests.lab import require_root, wait_until
from tests.netns.client import ask, on_cpu
from tests.netns.server import Server
from tests.netns.test_answers import send_odd_requests

if TYPE_CHECKING:
    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.root

RATE = 300
"""Replies a second to one source. A quarter of it may come at once."""
NETWORK_RATE = 1200
SECONDS = 0.5
CPUS = sorted(os.sched_getaffinity(0))

HOST = "100.64.1.1/32"
SWEPT = "100.64.2.0/24"
EXEMPT = "100.64.3.0/24"
HOST_IPV6 = "fd64:0:0:1::/64"
FLOOD = "100.64.0.0/10"
CROWD = "100.127.252.0/22"
"""A thousand addresses in four networks."""
GOOD = "172.16.0.0/12"


@pytest.fixture(name="mode", params=modes("ring", "direct", "recvmmsg"))
def mode_fixture(request: pytest.FixtureRequest) -> str:
    require_root()
    return str(request.param)


@pytest.fixture(name="routed")
def routed_fixture(lab: Lab, hosts: TwoHosts) -> TwoHosts:
    """Two hosts; behind the client there are many more."""
    for each in ("all", "default", hosts.server_if):
        hosts.server.write(f"/proc/sys/net/ipv4/conf/{each}/rp_filter", "0")
    for network in (FLOOD, GOOD):
        lab.route(hosts.server, network, via=hosts.client_ipv4[0])
    lab.route(hosts.server, "fd64::/16", via=hosts.client_ipv6[0])
    return hosts


def generator(hosts: TwoHosts, sources: str) -> LoadGenerator:
    network = ip_network(sources)
    server = hosts.server_ipv4[0] if network.version == 4 else hosts.server_ipv6[0]
    with hosts.server.enter():
        mac = interface(hosts.server_if).mac
    with hosts.client.enter():
        return LoadGenerator(
            interface(hosts.client_if), TransportAddress(ip_address(server), PORT), network, mac
        )


def load(hosts: TwoHosts, sources: str, rate: int, seconds: float = SECONDS) -> LoadResult:
    """Ask from these sources; nothing is lost on the way."""
    with generator(hosts, sources) as made, on_cpu(CPUS[-1]):
        result = made.run(rate, seconds)
    assert (result.send_errors, result.wrong, result.overlooked) == (0, {}, 0)
    return result


def verdicts(totals: dict[str, int]) -> int:
    dropped = sum(count for key, count in totals.items() if key.startswith("dropped."))
    return totals.get("answered", 0) + dropped


def up_by(server: Server, before: dict[str, int], sent: int) -> dict[str, int]:
    """Return the counters' increase, once all that was sent is counted."""
    after = server.wait_for(before.get("received", 0) + sent)
    gained = {key: after[key] - before.get(key, 0) for key in after}
    assert gained["received"] == sent == verdicts(gained)
    return gained


def granted(rate: int, seconds: float) -> float:
    """What a source gets in so many seconds, having been quiet before."""
    return rate * seconds + rate / 4


# --- The limits ---


@pytest.mark.parametrize("share", [0, 25])
def test_a_source_gets_its_limit(routed: TwoHosts, mode: str, share: int) -> None:
    """At ten times the rate: the limit within 10 %, and the share of what is above."""
    arguments = ["--iface", routed.server_if, "--mode", mode, "--cpus", str(CPUS[0])]
    limits = [
        *("--rate-limit", str(RATE), "--rate-limit-network", str(NETWORK_RATE)),
        *("--rate-limit-share", str(share), "--rate-limit-exempt", EXEMPT),
    ]
    with Server(routed.server, [*arguments, *limits]) as server:
        others = [(SWEPT, NETWORK_RATE), (HOST_IPV6, RATE)] if share == 0 else []
        for sources, rate in [(HOST, RATE), *others]:
            before = server.totals()
            result = load(routed, sources, 10 * rate)
            gained = up_by(server, before, result.sent)
            within = gained["received"] - gained["over_limit"]
            assert within == pytest.approx(granted(rate, result.seconds), rel=0.1)
            assert gained["dropped.rate_limited"] == result.lost
            shared = gained["over_limit"] - gained["dropped.rate_limited"]
            # Chance has a spread: four standard deviations of a binomial distribution.
            expected = gained["over_limit"] * share / 100
            assert abs(shared - expected) <= 4 * (expected * (1 - share / 100)) ** 0.5
        before = server.totals()
        result = load(routed, EXEMPT, 10 * RATE, 0.3)
        gained = up_by(server, before, result.sent)
        assert (result.lost, gained["over_limit"]) == (0, 0)


def test_what_takes_python_is_limited_as_well(hosts: TwoHosts, mode: str) -> None:
    """Error responses count like any other."""
    arguments = ["--iface", hosts.server_if, "--mode", mode, "--cpus", str(CPUS[0])]
    limits = ["--rate-limit", "1", "--rate-limit-share", "0"]
    with Server(hosts.server, [*arguments, *limits]) as server:
        send_odd_requests(hosts, 40)
        totals: dict[str, int] = {}

        def settled() -> bool:
            totals.update(server.totals())
            return verdicts(totals) == 40

        wait_until(settled, "a verdict on each")
        # A burst of 16, and one for each second that has passed.
        within = totals["answered"] + totals.get("dropped.over_budget", 0)
        assert 16 <= within <= 18
        assert totals["over_limit"] == totals["dropped.rate_limited"] == 40 - within


# --- What it outlives ---


def replies_to_a_burst(hosts: TwoHosts) -> int:
    result = ask(
        hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 40, patience=0.4, linger=0.1
    )
    assert (result.duplicates, result.wrong) == (0, [])
    return result.sent - result.lost


@pytest.mark.faults
@pytest.mark.alone
def test_it_forgets_nothing(hosts: TwoHosts, tmp_path: Path, mode: str) -> None:
    """Neither by a killed worker, nor by a reload, nor by an upgrade."""
    installation = Installation(tmp_path / "installation")
    file = tmp_path / "pktstun.toml"
    lines = [
        f'iface = "{hosts.server_if}"',
        f'mode = "{mode}"',
        f'cpus = "{CPUS[0]}"',
        "rate-limit = 1",
        "rate-limit-share = 0",
        "",
    ]
    file.write_text("\n".join(lines))
    with Server(hosts.server, ["--config", str(file)], under=installation.under) as server:
        began = time.monotonic()

        def allowed() -> float:
            """How many replies there may be until now: a burst, and one for each second."""
            return 16 + (time.monotonic() - began) + 1

        answered = replies_to_a_burst(hosts)
        assert 16 <= answered <= allowed()

        (pid,) = server.worker_pids().values()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.worker_pids()[0] != pid, "another worker", 20)
        answered += replies_to_a_burst(hosts)
        assert answered <= allowed()

        file.write_text("\n".join(["batch = 64", *lines]))
        reload(server, REPLACED)
        answered += replies_to_a_burst(hosts)
        assert answered <= allowed()

        installation.install("8.0.0")
        server.process.send_signal(signal.SIGUSR2)
        assert server.process.stdout is not None
        assert "pktstun 8.0.0 ready" in server.process.stdout.readline()
        answered += replies_to_a_burst(hosts)
        assert answered <= allowed()
        totals = server.wait_for(160)
        assert totals["over_limit"] == totals["dropped.rate_limited"] == 160 - totals["answered"]


# --- A flood ---


@dataclass
class Neighbourhood(Clients):
    """Clients that each have an address of their own."""

    def __enter__(self) -> Self:
        first = int(ip_network(GOOD).network_address)
        step = 256 + 1  # each in a network of its own
        with self.hosts.client.enter():
            self._sockets = [
                UDPSocket(TransportAddress(ip_address(first + (number + 1) * step), 0), share=False)
                for number in range(self.at_once)
            ]
        return self._start()


def private_memory(pid: int) -> int:
    """Bytes of a process that it has alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) << 10


def use_every_buffer(pid: int, flood: LoadGenerator, rate: int) -> None:
    """Have a worker find so much at once that it fills all that it has."""
    timers = [
        threading.Timer(0.2, os.kill, (pid, signal.SIGSTOP)),
        threading.Timer(0.6, os.kill, (pid, signal.SIGCONT)),
    ]
    for timer in timers:
        timer.start()
    with on_cpu(CPUS[-1]):
        flood.run(rate, 1.0)
    for timer in timers:
        timer.join()


def distinct(requests: int, network: str) -> int:
    """How many sources so many requests have that come from a network's addresses at random.

    This is the expected number; of a million it is off by a thousand at most.
    """
    addresses = ip_network(network).num_addresses - 2  # the generator spares first and last
    return round(addresses * -math.expm1(requests * math.log1p(-1 / addresses)))


@pytest.mark.faults
@pytest.mark.alone
@pytest.mark.parametrize("mode", modes("ring", "direct", "recvmmsg", short=["recvmmsg"]))
def test_a_flood_of_forged_sources(routed: TwoHosts, mode: str) -> None:
    """A thousand clients come through, the crowded networks do not, the server does not grow."""
    require_root()
    few, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if few < 4096:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most), most))
    with routed.client.iproute() as ipr:
        (loopback,) = ipr.link_lookup(ifname="lo")
        ipr.route("add", dst=GOOD, oif=loopback, type="local", table=255, scope="host")
    rate, seconds = 40_000, times(2, 30)
    arguments = ["--iface", routed.server_if, "--mode", mode, "--cpus", str(CPUS[0])]
    limits = ["--rate-limit", "20", "--rate-limit-network", "50"]
    with (
        Server(routed.server, [*arguments, *limits]) as server,
        generator(routed, FLOOD) as flood,
        generator(routed, CROWD) as crowd,
    ):
        (pid,) = server.worker_pids().values()
        use_every_buffer(pid, flood, rate)
        before = private_memory(pid)
        with Neighbourhood(routed, at_once=1000) as clients:
            with on_cpu(CPUS[-1]):
                wide = flood.run(rate, seconds)
                early = server.totals()
                narrow = crowd.run(rate, times(2, 10))
            clients.finish()
        grown = private_memory(pid) - before
        totals = server.totals()
    asked = clients.answered + clients.failed
    over, dropped = (
        totals[key] - early.get(key, 0) for key in ("over_limit", "dropped.rate_limited")
    )
    shared = over - dropped
    sources = distinct(wide.sent, FLOOD)
    record(
        17,
        mode,
        f"{wide.sent:,} requests from about {sources:,} forged sources, {narrow.sent:,} more from "
        f"{distinct(narrow.sent, CROWD):,} of 4 networks, and 1,000 clients",
        "99.9 % of the clients get an answer; the 4 networks get their limits and the share of "
        "what is above; the worker does not grow",
        f"{clients.failed} of {asked:,} clients failed; of the 4 networks {over:,} over the limit, "
        f"{shared / over:.1%} of them answered; {grown >> 10:+} KiB",
    )
    assert sources >= times(10_000, 1_000_000)
    assert totals["received"] == verdicts(totals)
    of_clients = asked + clients.retransmissions
    assert over >= 0.95 * (totals["received"] - early["received"] - of_clients) > 0
    assert shared / over == pytest.approx(SHARE / 100, abs=0.02)
    assert asked >= 1000
    assert clients.failed <= asked / 1000
    assert grown <= 256 << 10  # less than 2 bytes for each source
