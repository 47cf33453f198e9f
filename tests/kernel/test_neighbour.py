"""Link-layer addresses: known, asked for, and of nobody."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import interface
from pktstun.kernel.neighbour import neighbour, resolve_neighbour
from tests.kernel.wire import mac_of

if TYPE_CHECKING:
    from tests.lab import Lab, Namespace, TwoHosts

pytestmark = pytest.mark.root


def test_the_table_is_read(lab: Lab, hosts: TwoHosts) -> None:
    mac = mac_of(lab, hosts.server, hosts.server_if)
    with hosts.client.enter():
        iface, lo = interface(hosts.client_if), interface("lo")
        for address in hosts.server_ipv4 + hosts.server_ipv6:
            assert neighbour(iface, ip_address(address)) == mac
            assert resolve_neighbour(iface, ip_address(address)) == mac
            assert neighbour(lo, ip_address(address)) is None
        assert neighbour(iface, ip_address("10.77.0.77")) is None


@pytest.fixture
def strangers(lab: Lab) -> tuple[Namespace, Namespace]:
    """Two hosts on one link that do not know each other."""
    here, there = lab.namespace("here"), lab.namespace("there")
    lab.veth(here, "v0", there, "v1")
    lab.address(here, "v0", "10.9.0.1/24", "fd09::1/64")
    lab.address(there, "v1", "10.9.0.2/24", "fd09::2/64")
    return here, there


@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
def test_an_unknown_neighbour_is_asked_for(
    lab: Lab, strangers: tuple[Namespace, Namespace], address: str
) -> None:
    here, there = strangers
    with here.enter():
        iface = interface("v0")
        assert neighbour(iface, ip_address(address)) is None
        found = resolve_neighbour(iface, ip_address(address), timeout=10)
        assert found == mac_of(lab, there, "v1")
        assert neighbour(iface, ip_address(address)) == found


@pytest.mark.parametrize("address", ["10.9.0.3", "fd09::3", "192.0.2.1", "2001:db8::1"])
def test_nobody_answers(strangers: tuple[Namespace, Namespace], address: str) -> None:
    """An address of the link that nobody has, and one to which no route leads."""
    with strangers[0].enter():
        assert resolve_neighbour(interface("v0"), ip_address(address), timeout=0.2) is None
