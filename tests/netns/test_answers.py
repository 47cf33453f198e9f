"""Real clients over real packets: all modes, both families, several addresses, two CPUs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from aioice import stun as aioice

from pktstun.client import QueryError, query
from pktstun.kernel import Datagram, UDPSocket
from pktstun.stun import AttributeType, Message, Padding, RawAttribute, TransportAddress
from tests.lab import require_root, wait_until
from tests.netns.client import ask, on_cpu
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import Namespace, TwoHosts

pytestmark = pytest.mark.root

MODES = ["ring --no-takeover", "direct --takeover", "recvmmsg"]
CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> list[str]:
    require_root()
    return ["--mode", *request.param.split()]


def reads_ring(mode: list[str]) -> bool:
    return mode != ["--mode", "recvmmsg"]


@pytest.fixture
def server(hosts: TwoHosts, mode: list[str]) -> Any:
    with Server(hosts.server, ["--iface", hosts.server_if, *mode]) as running:
        yield running


def addresses(hosts: TwoHosts) -> list[tuple[str, str]]:
    """Return (client, server) for every address of the server."""
    return [
        (client, server)
        for client, servers in (
            (hosts.client_ipv4[0], hosts.server_ipv4),
            (hosts.client_ipv6[0], hosts.server_ipv6),
        )
        for server in servers
    ]


def test_query_gets_its_address_from_every_address(hosts: TwoHosts, server: Server) -> None:
    for client, address in addresses(hosts):
        target = f"[{address}]:3478" if ":" in address else address
        # The socket of `query` is connected: a reply from another address would not count.
        command = [sys.executable, "-m", "pktstun", "query", target, "--json", "--timeout", "5"]
        answer = json.loads(hosts.client.run(command, check=True).stdout)
        assert answer["mapped"] == answer["local"]
        assert answer["mapped"]["ip"] == str(ip_address(client))
        assert answer["server"] == {"ip": address, "port": 3478}
        assert answer["fingerprint"] is True
    assert "ready" in server.ready


async def _ask_aioice(family_source: str, server: str) -> tuple[str, int]:
    """One transaction of aioice's STUN module; the reply must name our socket."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[str, int]] = loop.create_future()

    class Client(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.request = aioice.Message(
                message_method=aioice.Method.BINDING, message_class=aioice.Class.REQUEST
            )
            self.request.add_fingerprint()

        def connection_made(self, transport: Any) -> None:
            transport.sendto(bytes(self.request))

        def datagram_received(self, data: bytes, _addr: object) -> None:
            # Raises where FINGERPRINT does not match.
            message = aioice.parse_message(data)
            assert message.transaction_id == self.request.transaction_id
            assert message.message_class == aioice.Class.RESPONSE
            answer.set_result(message.attributes["XOR-MAPPED-ADDRESS"])

    transport, _ = await loop.create_datagram_endpoint(
        Client, local_addr=(family_source, 0), remote_addr=(server, 3478)
    )
    try:
        mapped = await asyncio.wait_for(answer, 5)
        assert mapped == transport.get_extra_info("sockname")[:2]
        return mapped
    finally:
        transport.close()


@pytest.mark.usefixtures("server")
def test_aioice_gets_its_address(hosts: TwoHosts) -> None:
    for client, address in addresses(hosts):
        with hosts.client.enter():
            mapped = asyncio.run(_ask_aioice(client, address))
        assert ip_address(mapped[0]) == ip_address(client)


def test_what_needs_python_is_answered_too(hosts: TwoHosts, server: Server) -> None:
    """A request with unknown required attributes gets 420, from the address it was sent to."""

    for _, address in addresses(hosts):
        with hosts.client.enter(), pytest.raises(QueryError, match="420"):
            query(
                TransportAddress(ip_address(address), 3478),
                timeout=5,
                attributes=[Padding(bytes(4))],
            )
    assert server.wait_for(len(addresses(hosts)), "answered")["answered"] == 5


def test_each_cpu_has_its_worker(hosts: TwoHosts, mode: list[str]) -> None:
    cpus = CPUS[:2]
    arguments = ["--iface", hosts.server_if, *mode, "--cpus", ",".join(map(str, cpus))]
    with Server(hosts.server, arguments) as server:
        expected = [0] * len(cpus)
        for worker, cpu in enumerate(cpus):
            count = 300 * (worker + 1)
            for client, address in addresses(hosts):
                with on_cpu(cpu):
                    result = ask(hosts.client, client, address, count)
                assert (result.lost, result.duplicates, result.wrong) == (0, 0, [])
                expected[worker] += count
        assert [counters["answered"] for counters in server.stats()] == expected


def test_a_set_of_cpus_that_does_not_begin_at_0(hosts: TwoHosts, mode: list[str]) -> None:
    arguments = ["--iface", hosts.server_if, *mode, "--cpus", str(CPUS[-1])]
    with Server(hosts.server, arguments):
        for cpu in CPUS[:2]:
            with on_cpu(cpu):
                result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 500)
            assert (result.lost, result.duplicates, result.wrong) == (0, 0, [])


def test_one_address_only(hosts: TwoHosts, mode: list[str]) -> None:
    """--listen restricts what is served: other addresses of the host stay silent."""
    served, other = hosts.server_ipv4[1], hosts.server_ipv4[0]
    arguments = ["--iface", hosts.server_if, *mode, "--listen", served]
    with Server(hosts.server, arguments) as server:
        assert ask(hosts.client, hosts.client_ipv4[0], served, 10).lost == 0
        assert ask(hosts.client, hosts.client_ipv4[0], other, 3, patience=0.3).lost == 3
        assert server.totals()["answered"] == 10


def test_the_host_itself_is_answered_on_its_interface_address(
    hosts: TwoHosts, server: Server
) -> None:
    """What reaches the host over loopback passes the ring by and takes the socket path."""
    own = hosts.server_ipv4[0]
    result = ask(hosts.server, own, own, 50)
    assert (result.lost, result.duplicates, result.wrong) == (0, 0, [])
    assert server.totals()["socket_received"] == 50


def test_software_is_sent_when_configured(hosts: TwoHosts, mode: list[str]) -> None:
    arguments = ["--iface", hosts.server_if, *mode, "--software", "täst 1"]
    with Server(hosts.server, arguments):
        command = [sys.executable, "-m", "pktstun", "query", hosts.server_ipv4[0], "--json"]
        answer = json.loads(hosts.client.run([*command, "--timeout", "5"], check=True).stdout)
        assert answer["software"] == "täst 1"


def unreachables(namespace: Namespace) -> tuple[int, int]:
    snmp = namespace.snmp()
    return snmp["Icmp"]["OutDestUnreachs"], snmp["Icmp6"]["OutDestUnreachs"]


def test_each_datagram_is_answered_exactly_once(hosts: TwoHosts, mode: list[str]) -> None:
    """100,000 unique requests: none lost, none twice, and the kernel says nothing of its own."""
    before = unreachables(hosts.server)
    with Server(hosts.server, ["--iface", hosts.server_if, *mode]) as server:
        for client, address, count in (
            (hosts.client_ipv4[0], hosts.server_ipv4[0], 90_000),
            (hosts.client_ipv6[0], hosts.server_ipv6[0], 10_000),
        ):
            result = ask(hosts.client, client, address, count)
            assert (result.lost, result.duplicates, result.wrong[:1]) == (0, 0, [])
        totals = server.totals()
        assert totals["received"] == totals["answered"] == totals["sent"] == 100_000
        assert (totals["socket_received"] == 0) == reads_ring(mode)
        assert unreachables(hosts.server) == before


def send_odd_requests(hosts: TwoHosts, *batches: int) -> None:
    """Send requests that take Python to answer, so many in each call."""
    odd = Message.request(RawAttribute(AttributeType(0x7FFF))).encode()
    peer = TransportAddress(ip_address(hosts.server_ipv4[0]), 3478)
    with hosts.client.enter():
        sock = UDPSocket(TransportAddress(ip_address(hosts.client_ipv4[0]), 0), share=False)
    with sock:
        for count in batches:
            assert sock.sendmmsg([Datagram(odd, peer)] * count) == count


def test_a_flood_of_odd_requests_is_bounded_and_counted(hosts: TwoHosts, server: Server) -> None:
    send_odd_requests(hosts, *[50] * 40)

    def settled() -> bool:
        totals = server.totals()
        return totals.get("answered", 0) + totals.get("dropped.over_budget", 0) == 2000

    wait_until(settled, "a verdict on each")
    assert server.totals()["dropped.over_budget"] > 0
    result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 100)
    assert (result.lost, result.duplicates) == (0, 0)


def test_a_request_to_many_is_not_answered(hosts: TwoHosts, mode: list[str]) -> None:
    """Wildcard sockets get what was sent to the network's broadcast address, too."""

    iface = ["--iface", hosts.server_if] if reads_ring(mode) else []
    with Server(hosts.server, [*iface, *mode]) as server:
        with hosts.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(Message.request().encode(), ("10.77.0.255", 3478))
        totals = server.wait_for(1)
        reason = "dropped.not_host" if reads_ring(mode) else "dropped.not_for_us"
        assert totals[reason] == totals["received"]
        assert totals["answered"] == 0


def test_a_burst_of_odd_requests_after_a_rest_is_answered(hosts: TwoHosts, server: Server) -> None:
    send_odd_requests(hosts, 100)
    assert server.wait_for(100, "answered")["received"] == 100
