"""What is off by default, over real packets in every mode: discovery, classic, redirects."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import Datagram, UDPSocket
from pktstun.stun import (
    ChangeRequest,
    Message,
    NatDiscovery,
    Padding,
    Reply,
    ResponderOptions,
    ResponsePort,
    TransportAddress,
    respond,
)
from tests.lab import require_root, wait_until
from tests.netns.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import TwoHosts

pytestmark = pytest.mark.root

MODES = ["ring", "direct", "recvmmsg"]


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


def arguments(hosts: TwoHosts, mode: str, *more: str) -> list[str]:
    listens = [*hosts.server_ipv4[:2], *hosts.server_ipv6]
    named = [f"--listen={address}" for address in listens]
    return ["--iface", hosts.server_if, "--mode", mode, *named, *more]


def discoveries(hosts: TwoHosts) -> list[NatDiscovery]:
    found = []
    for one, other in (hosts.server_ipv4[:2], hosts.server_ipv6):
        found.append(NatDiscovery((ip_address(one), ip_address(other)), (3478, 3479)))
    return found


def client_of(hosts: TwoHosts, discovery: NatDiscovery) -> UDPSocket:
    ipv4 = discovery.ips[0].version == 4
    address = (hosts.client_ipv4 if ipv4 else hosts.client_ipv6)[0]
    with hosts.client.enter():
        return UDPSocket(TransportAddress(ip_address(address), 0), share=False)


def exchange(
    sock: UDPSocket, request: bytes, server: TransportAddress
) -> tuple[bytes, TransportAddress]:
    """Send a request and return what comes back, and from where."""
    sock.sendmmsg([Datagram(request, server)])
    received: list[tuple[bytes, TransportAddress]] = []

    def comes() -> bool:
        received.extend((data, source) for data, source in sock.recvmmsg(1))
        return bool(received)

    wait_until(comes, f"the reply of {server}")
    return received[0]


@pytest.mark.parametrize("mode", MODES)
def test_discovery_from_everywhere_to_everywhere(hosts: TwoHosts, mode: str) -> None:
    """Every endpoint, asked for every change: the replies are those of respond()."""
    with Server(hosts.server, arguments(hosts, mode, "--nat-discovery")) as server:
        for discovery in discoveries(hosts):
            options = ResponderOptions(discovery=(discovery,))
            with client_of(hosts, discovery) as sock, client_of(hosts, discovery) as other:
                for endpoint, ip, port in itertools.product(
                    discovery.endpoints, (False, True), (False, True)
                ):
                    request = Message.request(ChangeRequest(ip, port)).encode()
                    expected = respond(request, sock.address, endpoint, options)
                    assert isinstance(expected, Reply)
                    assert exchange(sock, request, endpoint) == (
                        expected.datagram,
                        expected.source,
                    )
                request = Message.request(Padding(bytes(500))).encode()
                data, _ = exchange(sock, request, discovery.endpoints[0])
                assert len(data) == len(request)
                # Where the reply comes to another port, this one hears nothing.
                request = Message.request(ResponsePort(other.address.port)).encode()
                sock.sendmmsg([Datagram(request, discovery.endpoints[0])])
                wait_until(lambda: bool(other.recvmmsg(1)), "the reply to another port")
                assert sock.recvmmsg(1) == []
        handed = server.totals()["handovers"]
        for discovery in discoveries(hosts):
            options = ResponderOptions(discovery=(discovery,))
            with client_of(hosts, discovery) as sock:
                for endpoint in discovery.endpoints:
                    request = Message.request().with_fingerprint().encode()
                    expected = respond(request, sock.address, endpoint, options)
                    assert isinstance(expected, Reply)
                    assert exchange(sock, request, endpoint) == (expected.datagram, endpoint)
        # A plain request takes no Python.
        assert server.totals()["handovers"] == handed


def test_what_is_advertised_is_told_and_not_sent_from(hosts: TwoHosts) -> None:
    (discovery, _) = discoveries(hosts)
    told = (ip_address("198.51.100.1"), ip_address("198.51.100.2"))
    options = ResponderOptions(discovery=(replace(discovery, advertised=told),))
    pairs = zip(discovery.ips, told, strict=True)
    named = [f"--advertise={local}={known}" for local, known in pairs]
    with (
        Server(hosts.server, arguments(hosts, "ring", "--nat-discovery", *named)),
        client_of(hosts, discovery) as sock,
    ):
        for change in (ChangeRequest(), ChangeRequest(change_ip=True)):
            request = Message.request(change).encode()
            expected = respond(request, sock.address, discovery.endpoints[0], options)
            assert isinstance(expected, Reply)
            got = exchange(sock, request, discovery.endpoints[0])
            assert got == (expected.datagram, expected.source)


def test_discovery_comes_and_goes_with_a_reload(hosts: TwoHosts, tmp_path: Path) -> None:
    config = tmp_path / "pktstun.toml"
    config.write_text("")
    (discovery, _) = discoveries(hosts)
    plain, full = ResponderOptions(), ResponderOptions(discovery=(discovery,))
    with (
        Server(hosts.server, arguments(hosts, "ring", f"--config={config}")) as server,
        client_of(hosts, discovery) as sock,
    ):
        for rolls, options in enumerate((plain, full, plain)):
            config.write_text(f"nat-discovery = {str(options is full).lower()}\n")
            if rolls:
                server.process.send_signal(signal.SIGHUP)
                replaced = "every worker has been replaced"
                wait_until(lambda: server.log.count(replaced) >= rolls, replaced)  # noqa: B023 - called at once
            request = Message.request().encode()
            expected = respond(request, sock.address, discovery.endpoints[0], options)
            assert isinstance(expected, Reply)
            assert exchange(sock, request, discovery.endpoints[0])[0] == expected.datagram


@pytest.mark.parametrize("mode", MODES)
def test_classic_clients(hosts: TwoHosts, mode: str) -> None:
    (discovery, _) = discoveries(hosts)
    options = ResponderOptions(classic=True, discovery=(discovery,))
    with (
        Server(hosts.server, arguments(hosts, mode, "--nat-discovery", "--classic")),
        client_of(hosts, discovery) as sock,
    ):
        for change in (ChangeRequest(), ChangeRequest(change_ip=True, change_port=True)):
            request = bytearray(Message.request(change).encode())
            request[4:8] = b"abcd"
            expected = respond(request, sock.address, discovery.endpoints[0], options)
            assert isinstance(expected, Reply)
            got = exchange(sock, bytes(request), discovery.endpoints[0])
            assert got == (expected.datagram, expected.source)


@pytest.mark.parametrize("mode", MODES)
def test_all_are_sent_elsewhere(hosts: TwoHosts, mode: str) -> None:
    alternate = TransportAddress.parse("203.0.113.9:5000")
    options = ResponderOptions(alternate_servers=(alternate,))
    with Server(hosts.server, arguments(hosts, mode, f"--alternate-server={alternate}")) as server:
        for discovery in discoveries(hosts):
            with client_of(hosts, discovery) as sock:
                request = Message.request().encode()
                expected = respond(request, sock.address, discovery.endpoints[0], options)
                assert isinstance(expected, Reply)
                got = exchange(sock, request, discovery.endpoints[0])
                assert got == (expected.datagram, discovery.endpoints[0])
        totals = server.totals()
        assert "handovers" not in totals
        assert totals["answered"] == 2
