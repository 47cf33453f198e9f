"""Drivers are asked and told as ethtool does it."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel.ethtool import Ethtool
from tests.kernel.wire import descriptors
from tests.lab import require_root

if TYPE_CHECKING:
    from tests.lab import TwoHosts


def test_features_of_loopback() -> None:
    """As net/core/dev.c and drivers/net/loopback.c have them."""
    with Ethtool("lo") as driver:
        features = driver.features()
    assert features["rx-gro"].is_on
    assert features["loopback"].is_on
    assert not features["loopback"].can_change
    assert features["rx-udp-gro-forwarding"].can_change
    assert len(features) > 40
    assert "" not in features


def test_what_a_driver_does_not_know_is_an_error() -> None:
    with Ethtool("lo") as driver:
        for method in (driver.rings, driver.coalescing):
            with pytest.raises(OSError, match=r".") as caught:
                method()
            assert caught.value.errno == errno.EOPNOTSUPP


def test_an_interface_that_is_not_there() -> None:
    with Ethtool("nowhere0") as driver, pytest.raises(OSError, match=r".") as caught:
        driver.features()
    assert caught.value.errno == errno.ENODEV


def test_what_any_interface_says_makes_sense() -> None:
    for _, name in socket.if_nameindex():
        with Ethtool(name) as driver:
            try:
                sizes = driver.rings()
            except OSError:
                continue
            assert 0 < sizes.rx <= sizes.rx_most
            assert 0 < sizes.tx <= sizes.tx_most


@pytest.mark.root
def test_more_descriptors_than_there_can_be_are_refused() -> None:
    """By the kernel: the driver is not even asked."""
    require_root()
    for _, name in socket.if_nameindex():
        with Ethtool(name) as driver:
            try:
                sizes = driver.rings()
            except OSError:
                continue
            for wrong in ({"rx": sizes.rx_most + 1}, {"tx": sizes.tx_most + 1}):
                with pytest.raises(OSError, match=r".") as caught:
                    driver.set_rings(**wrong)
                assert caught.value.errno == errno.EINVAL
            assert driver.rings() == sizes


def test_no_descriptor_is_left() -> None:
    before = descriptors()
    with Ethtool("lo") as driver:
        driver.features()
    assert descriptors() == before


@pytest.mark.root
def test_a_veth(hosts: TwoHosts) -> None:
    with hosts.server.enter(), Ethtool("v0") as driver:
        assert driver.driver() == "veth"
        assert driver.channels().queues == 1
        counters = driver.counters()
    assert counters["peer_ifindex"] > 0
    assert "rx_queue_0_drops" in counters


@pytest.mark.root
def test_features_are_switched(hosts: TwoHosts) -> None:
    with hosts.server.enter(), Ethtool("v0") as driver:
        before = driver.features()
        for name in ("rx-udp-gro-forwarding", "rx-gro-list"):
            for on in (True, False):
                driver.set_feature(name, on=on)
                found = driver.features()
                assert found[name].is_on == on
                assert {each: found[each] for each in found if each != name} == {
                    each: before[each] for each in before if each != name
                }
        for name in ("rx-vlan-filter", "no-such-feature"):
            with pytest.raises(OSError, match=name) as caught:
                driver.set_feature(name, on=not before.get(name, (False,))[0])
            assert caught.value.errno == errno.EOPNOTSUPP
