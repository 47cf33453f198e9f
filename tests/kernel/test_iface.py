"""Interfaces and their addresses are what the kernel has, however they were configured."""

from __future__ import annotations

import errno
import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import Interface, InterfaceAddress, interface, local_addresses
from tests.kernel.wire import descriptors

if TYPE_CHECKING:
    from tests.lab import Lab, Namespace, TwoHosts

LOOPBACK_BROADCAST = IPv4Address("127.255.255.255")


def look(ns: Namespace, name: str) -> Interface:
    with ns.enter():
        return interface(name)


def ips(found: Interface) -> set[str]:
    """The addresses but for the link-local one, which the kernel makes up."""
    return {str(each.ip) for each in found.addresses if not each.ip.is_link_local}


def broadcast_of(ns: Namespace, ip: str) -> IPv4Address | None:
    found = look(ns, "v0")
    (broadcast,) = (each.broadcast for each in found.addresses if each.ip == ip_address(ip))
    return broadcast


def add(ns: Namespace, **attributes: str | int) -> None:
    """`ip address add` on v0; as there, nothing is added to what is said."""
    with ns.iproute() as ipr:
        ipr.addr("add", index=socket.if_nametoindex("v0"), **attributes)


# --- This host, whoever runs the tests ---


def test_loopback() -> None:
    found = interface("lo")
    assert (found.name, found.index) == ("lo", socket.if_nametoindex("lo"))
    assert found.is_loopback
    assert InterfaceAddress(IPv4Address("127.0.0.1"), LOOPBACK_BROADCAST) in found.addresses


def test_every_interface_is_there_once() -> None:
    found = local_addresses()
    assert [(each.index, each.name) for each in found] == socket.if_nameindex()
    assert all(interface(each.name) == each for each in found)


@pytest.mark.parametrize("name", ["absent", "", "a name much too long for an interface", "lo:1"])
def test_an_unknown_interface_is_an_error(name: str) -> None:
    with pytest.raises(OSError, match=re.escape(repr(name))) as caught:
        interface(name)
    assert caught.value.errno == errno.ENODEV


# --- Namespaces ---


@pytest.mark.root
def test_all_addresses_of_an_interface(hosts: TwoHosts) -> None:
    found = look(hosts.server, "v0")
    assert ips(found) == {*hosts.server_ipv4, *hosts.server_ipv6}
    assert len(found.addresses) == len(set(found.addresses))
    assert found.is_up
    assert not found.is_loopback
    with hosts.server.enter():
        assert found.index == socket.if_nametoindex("v0")
        assert local_addresses() == (interface("lo"), interface("v0"))


@pytest.mark.root
def test_ipv6_addresses_are_those_of_proc(hosts: TwoHosts) -> None:
    listed = {
        (int(index, 16), IPv6Address(int(address, 16)))
        for address, index, *_ in map(
            str.split, hosts.server.read("/proc/net/if_inet6").splitlines()
        )
    }
    with hosts.server.enter():
        found = local_addresses()
    assert listed == {
        (each.index, address.ip)
        for each in found
        for address in each.addresses
        if address.ip.version == 6
    }
    assert any(address.is_link_local for _, address in listed)


@pytest.mark.root
def test_many_addresses(lab: Lab, hosts: TwoHosts) -> None:
    """More than one message of the kernel holds."""
    added = {str(ip_address("10.90.0.0") + number) for number in range(1, 601)}
    with hosts.server.iproute() as ipr:
        index = socket.if_nametoindex("v0")
        for ip in added:
            ipr.addr("add", index=index, address=ip, prefixlen=16)
    lab.address(hosts.server, "v0", "fd90::1/64")
    found = look(hosts.server, "v0")
    assert ips(found) == {*hosts.server_ipv4, *hosts.server_ipv6, *added, "fd90::1"}


@pytest.mark.root
def test_an_interface_that_is_down(lab: Lab, hosts: TwoHosts) -> None:
    lab.link_set(hosts.server, "v0", state="down")
    found = look(hosts.server, "v0")
    assert not found.is_up
    assert ips(found) == set(hosts.server_ipv4)  # the kernel has removed the others


@pytest.mark.root
def test_an_interface_without_addresses(lab: Lab) -> None:
    ns = lab.namespace("bare")
    ns.write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    lab.veth(ns, "v0", ns, "v1")
    assert look(ns, "v0").addresses == ()
    lab.link_set(ns, "v0", state="down")
    assert look(ns, "v0").addresses == ()


@pytest.mark.root
@pytest.mark.parametrize("label", ["v0:1", "home", "v1", "lo"])
def test_a_label_does_not_hide_whose_address_it_is(hosts: TwoHosts, label: str) -> None:
    """Labels need not name the interface; systemd takes any."""
    add(hosts.server, address="10.91.0.1", prefixlen=24, label=label)
    assert "10.91.0.1" in ips(look(hosts.server, "v0"))
    assert "10.91.0.1" not in ips(look(hosts.server, "lo"))
    with hosts.server.enter():
        assert [each.name for each in local_addresses()] == ["lo", "v0"]


@pytest.mark.root
@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"prefixlen": 24, "broadcast": "10.92.0.255"}, "10.92.0.255"),
        # The kernel takes the last address of the network for one even when it is not told to.
        ({"prefixlen": 24}, "10.92.0.255"),
        ({"prefixlen": 30}, "10.92.0.3"),
        ({"prefixlen": 24, "broadcast": "10.92.0.77"}, "10.92.0.77"),
        ({"prefixlen": 31}, None),
        ({"prefixlen": 32}, None),
    ],
)
def test_the_broadcast_address(
    hosts: TwoHosts, attributes: dict[str, str | int], expected: str | None
) -> None:
    add(hosts.server, address="10.92.0.1", **attributes)
    broadcast = broadcast_of(hosts.server, "10.92.0.1")
    assert broadcast == (None if expected is None else ip_address(expected))


@pytest.mark.root
def test_a_peer_is_no_broadcast_address(hosts: TwoHosts) -> None:
    """A host behind a gateway with an address of its own is configured like this."""
    add(hosts.server, local="10.93.0.1", address="10.94.0.1", prefixlen=32)
    assert broadcast_of(hosts.server, "10.93.0.1") is None
    assert "10.94.0.1" not in ips(look(hosts.server, "v0"))


@pytest.mark.root
def test_a_peer_over_ipv6(hosts: TwoHosts) -> None:
    add(hosts.server, local="fd93::1", address="fd94::1", prefixlen=128, family=socket.AF_INET6)
    assert "fd93::1" in ips(look(hosts.server, "v0"))
    assert "fd94::1" not in ips(look(hosts.server, "v0"))


@pytest.mark.root
def test_broadcast_addresses_are_those_of_the_routing_table(hosts: TwoHosts) -> None:
    with hosts.server.enter():
        found = {address.broadcast for each in local_addresses() for address in each.addresses}
    routes = hosts.server.read("/proc/net/fib_trie")
    listed = re.findall(r"\|-- ([\d.]+)\n\s+/32 link BROADCAST", routes)
    # Before Linux 5.14 the first address of a network was one as well.
    assert found - {None} <= set(map(ip_address, listed))
    assert found == {None, LOOPBACK_BROADCAST, ip_address("10.77.0.255")}


@pytest.mark.root
def test_an_interface_that_goes_away(lab: Lab, hosts: TwoHosts) -> None:
    assert look(hosts.server, "v0").is_up
    lab.delete_link(hosts.server, "v0")
    with pytest.raises(OSError, match="'v0'") as caught:
        look(hosts.server, "v0")
    assert caught.value.errno == errno.ENODEV
    with hosts.server.enter():
        assert [each.name for each in local_addresses()] == ["lo"]


@pytest.mark.root
def test_nothing_is_left_open(hosts: TwoHosts) -> None:
    with hosts.server.enter():
        before = descriptors()
        local_addresses()
        assert descriptors() == before
