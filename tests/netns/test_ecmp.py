"""Three servers behind an ECMP route, one of which goes away: no client notices.

The servers have the three modes, one each: the address that the clients ask is on the loopback
interface, the ring on the link.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import require_root, wait_until
from tests.netns.ecmp import LINK, MODES, Clients, EcmpNetwork, ecmp_network, health_check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab
    from tests.netns.ecmp import Outcome
    from tests.netns.server import Server

pytestmark = pytest.mark.root

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale-out.md"
RTO = 0.1  # a fifth of RFC 8489's, and with it everything takes a fifth of the time


@pytest.fixture(name="network")
def network_fixture(lab: Lab) -> EcmpNetwork:
    require_root()
    return ecmp_network(lab)


@contextlib.contextmanager
def servers_of(network: EcmpNetwork) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(host.serve(mode))
            for host, mode in zip(network.hosts, MODES, strict=True)
        ]


def wait_for_answers(clients: Clients, count: int) -> None:
    """Wait for that many answers more than there are now."""
    wanted = len(clients.outcome.waits) + count
    wait_until(lambda: len(clients.outcome.waits) >= wanted, f"{wanted} answers", 10)


def assert_nobody_noticed(outcome: Outcome) -> None:
    assert outcome.failed == []
    assert outcome.wrong == []
    assert outcome.retransmitted  # some were with the server that went away


def test_the_address_is_served_by_all_hosts_in_every_mode(network: EcmpNetwork) -> None:
    with servers_of(network) as servers:
        with Clients(network, rto=RTO) as clients:
            wait_for_answers(clients, 500)
            outcome = clients.stop()
        totals = [server.totals() for server in servers]
    assert (outcome.failed, outcome.wrong) == ([], [])
    sent = sum(number * count for number, count in outcome.requests.items())
    assert sum(counters["received"] for counters in totals) == sent
    for mode, counters in zip(MODES, totals, strict=True):
        assert counters["answered"] > 0, totals
        # By the ring, although the address is another interface's.
        assert (counters["socket_received"] == 0) == (mode != "recvmmsg"), totals
        # Straight back in direct mode, as soon as the kernel knows the router's MAC address.
        assert counters.get("other_way", 0) < counters["answered"], totals


def test_a_server_is_killed_and_comes_back(network: EcmpNetwork) -> None:
    host = network.hosts[0]
    with (
        servers_of(network) as servers,
        health_check(network),
        Clients(network, rto=RTO) as clients,
    ):
        wait_for_answers(clients, 200)
        servers[0].process.kill()
        wait_until(lambda: host not in network.announced, "the host is withdrawn")
        wait_for_answers(clients, 200)
        with host.serve(MODES[0]) as again:
            wait_until(lambda: host in network.announced, "the host is back")
            wait_for_answers(clients, 200)
            outcome = clients.stop()
            assert again.totals()["answered"] > 0
    assert_nobody_noticed(outcome)


def test_a_link_goes_down_and_no_health_check_sees_it(network: EcmpNetwork, lab: Lab) -> None:
    with servers_of(network), Clients(network, rto=RTO, obey_icmp=True) as clients:
        wait_for_answers(clients, 200)
        lab.link_set(network.hosts[0].ns, LINK, state="down")
        wait_for_answers(clients, 400)
        outcome = clients.stop()
    assert (outcome.failed, outcome.wrong) == ([], [])


def test_a_client_that_obeys_icmp_gives_up_unless_the_host_is_silent_as_the_guide_says(
    network: EcmpNetwork,
) -> None:
    (rules,) = re.findall(r"^```nft\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    silent, frank, _ = network.hosts
    silent.ns.run(["nft", rules], check=True)
    with (
        servers_of(network) as servers,
        health_check(network),
        Clients(network, rto=RTO, obey_icmp=True) as clients,
    ):
        wait_for_answers(clients, 200)
        servers[0].process.kill()
        wait_until(lambda: silent not in network.announced, "the host is withdrawn")
        wait_until(lambda: clients.outcome.retransmitted > 0, "clients that asked again")
        assert_nobody_noticed(clients.outcome)
        servers[1].process.kill()
        wait_until(lambda: frank not in network.announced, "the other is withdrawn")
        outcome = clients.stop()
    assert outcome.failed
    assert all(": refused" in words for words in outcome.failed)
    assert outcome.wrong == []
