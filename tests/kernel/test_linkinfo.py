"""What links are, and what they count."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from pktstun.kernel import interface
from pktstun.kernel.linkinfo import LinkStatistics, link_info, queueing_disciplines

if TYPE_CHECKING:
    from tests.lab import TwoHosts


def test_loopback() -> None:
    found = link_info(socket.if_nametoindex("lo"))
    assert (found.kind, found.below, found.xdp) == ("", 0, 0)
    assert found.statistics.received >= 0


def test_an_index_that_nothing_has() -> None:
    with pytest.raises(OSError, match="no network interface") as caught:
        link_info(0x7FFFFFFF)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.root
def test_a_veth_and_what_is_on_top_of_it(hosts: TwoHosts) -> None:
    with hosts.server.iproute() as ipr:
        index = interface("v0").index
        ipr.link("add", ifname="top", kind="macvlan", link=index)
        assert link_info(index).kind == "veth"
        top = link_info(interface("top").index)
    assert (top.kind, top.below) == ("macvlan", index)


@pytest.mark.root
def test_frames_are_counted(hosts: TwoHosts) -> None:
    with hosts.server.enter():
        index = interface("v0").index
        before = link_info(index).statistics
    with hosts.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(20):
            client.sendto(b"?", (hosts.server_ipv4[0], 9))
    with hosts.server.enter():
        after = link_info(index).statistics
    assert after.received - before.received >= 20
    assert after[1:] == before[1:] == LinkStatistics()[1:]


@pytest.mark.root
def test_disciplines(hosts: TwoHosts) -> None:
    with hosts.server.iproute() as ipr:
        index = socket.if_nametoindex("v0")
        assert "clsact" not in queueing_disciplines(index)
        ipr.tc("add", "clsact", index)
        assert "clsact" in queueing_disciplines(index)
        assert "clsact" not in queueing_disciplines(socket.if_nametoindex("lo"))
