"""Lists are whole or an error; bytes of any kind are read to their end; changes are heard."""

from __future__ import annotations

import errno
import select
import socket
import struct
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.kernel import Monitor, netlink
from pktstun.kernel.netlink import dump, iterate_attributes, messages, parse_attributes
from tests.kernel.wire import descriptors
from tests.lab import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, Namespace

RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETRULE = 22, 24, 26, 30, 34
RTA_DST = NDA_DST = IFA_ADDRESS = 1
RTA_OIF = 4
NDA_IFINDEX = 8
NLM_F_REQUEST, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x001, 0x010, 0x300
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE = 1, 7
FAMILY = struct.Struct("=B11x")  # struct rtmsg, struct fib_rule_hdr, struct ndmsg
ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    length = 16 + len(body)
    return struct.pack("=IHHII", length, kind, flags, 1, 0) + body + bytes(-len(body) % 4)


def error(number: int, kind: int = NLMSG_ERROR, flags: int = 0) -> bytes:
    return message(kind, struct.pack("=i", number), flags)


DONE = error(0, NLMSG_DONE)


# --- What is in a datagram ---


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40))))
def test_attributes_come_back(row: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(*each) for each in row)
    assert list(iterate_attributes(data)) == row
    assert parse_attributes(data) == dict(row)


@pytest.mark.parametrize("flag", [0x8000, 0x4000])
def test_the_flags_of_a_type_are_not_part_of_it(flag: int) -> None:
    assert parse_attributes(attribute(flag | 9, b"nested")) == {9: b"nested"}


short_fields = st.lists(st.integers(0, 24), max_size=12).map(
    lambda numbers: b"".join(struct.pack("=H", number) for number in numbers)
)


@given(st.binary(max_size=200) | short_fields)
def test_any_bytes_are_attributes_of_some_kind(data: bytes) -> None:
    row = list(iterate_attributes(data))
    assert len(row) * 4 + sum(len(value) for _, value in row) <= len(data)
    assert all(value in data for _, value in row)
    assert parse_attributes(data) == dict(row)


@pytest.mark.parametrize("length", range(4))
def test_an_attribute_shorter_than_its_header_is_passed(length: int) -> None:
    data = struct.pack("=HH", length, 5) + attribute(6, b"next")
    assert list(iterate_attributes(data)) == [(5, b""), (6, b"next")]


@given(st.lists(st.tuples(*[st.integers(0, 0xFFFF)] * 2, st.binary(max_size=40))))
def test_messages_come_back(row: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(message(kind, body, flags) for kind, flags, body in row)
    assert list(messages(data)) == row


@given(st.binary(max_size=200) | short_fields.map(lambda data: data * 4))
def test_any_bytes_are_messages_of_some_kind(data: bytes) -> None:
    row = list(messages(data))
    assert len(row) * 16 + sum(len(body) for *_, body in row) <= len(data)


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_message_shorter_than_its_header_is_passed(length: int) -> None:
    data = struct.pack("=IHHII", length, 5, 0, 0, 0) + message(6, b"next")
    assert list(messages(data)) == [(5, 0, b""), (6, 0, b"next")]


# --- What a list is made of ---


def read(*datagrams: bytes) -> list[netlink.Object] | None:
    """What `dump` makes of an answer; datagrams of another kind of socket."""
    kernel, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with kernel, here:
        here.settimeout(5.0)
        for datagram in datagrams:
            kernel.send(datagram)
        return netlink._read(here, FAMILY)


def route(number: int) -> tuple[bytes, netlink.Object]:
    value = struct.pack("=I", number)
    body = FAMILY.pack(socket.AF_INET) + attribute(RTA_OIF, value)
    expected = netlink.Object(RTM_NEWROUTE, (socket.AF_INET,), {RTA_OIF: value})
    return message(RTM_NEWROUTE, body), expected


def test_a_list_is_read_as_far_as_it_is_wanted(ns: Namespace) -> None:
    add_addresses(ns, 600)
    with ns.enter():
        everything = netlink.dump(RTM_GETADDR, ADDRESS)
        some = netlink.dump(RTM_GETADDR, ADDRESS, most=10)
    assert 10 <= len(some) < len(everything)
    assert some == everything[: len(some)]


def test_a_list_in_several_datagrams() -> None:
    sent, expected = zip(*map(route, range(5)), strict=True)
    assert read(sent[0] + sent[1], sent[2], sent[3] + sent[4], DONE) == list(expected)
    assert read(sent[0] + sent[1] + DONE) == list(expected[:2])
    assert read(message(NLMSG_NOOP) + sent[0], DONE) == [expected[0]]
    assert read(DONE) == []


@pytest.mark.parametrize("place", range(3))
def test_an_interrupted_list_is_no_list(place: int) -> None:
    sent = [route(1)[0], route(2)[0], DONE]
    kind, _, body = next(messages(sent[place]))
    sent[place] = message(kind, body, NLM_F_DUMP_INTR)
    assert read(*sent) is None


@pytest.mark.parametrize("kind", [NLMSG_ERROR, NLMSG_DONE])
@pytest.mark.parametrize("flags", [0, NLM_F_DUMP_INTR])
def test_a_list_that_ends_in_an_error_is_an_error(kind: int, flags: int) -> None:
    with pytest.raises(OSError, match="netlink: ") as caught:
        read(route(1)[0], error(-errno.ENOBUFS, kind, flags))
    assert caught.value.errno == errno.ENOBUFS


def test_a_list_that_never_holds_still(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(netlink, "_read", lambda netlink, *_: asked.append(netlink.fileno()))
    before = descriptors()
    with pytest.raises(OSError, match="changes faster") as caught:
        dump(RTM_GETROUTE, FAMILY)
    assert caught.value.errno == errno.EINTR
    assert len(asked) == netlink._ATTEMPTS
    assert descriptors() == before


# --- The kernel's lists ---


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (9999, (0,), errno.EOPNOTSUPP),  # no such list: an error message
        (RTM_GETRULE, (3,), errno.EAFNOSUPPORT),  # no rules of AX.25: an error in the end mark
    ],
)
def test_the_kernel_refuses(kind: int, fields: tuple[int], expected: int) -> None:
    before = descriptors()
    with pytest.raises(OSError, match="netlink: ") as caught:
        dump(kind, FAMILY, fields)
    assert caught.value.errno == expected
    assert descriptors() == before


def test_nothing_is_left_open() -> None:
    before = descriptors()
    assert dump(RTM_GETADDR, ADDRESS)
    assert descriptors() == before


@pytest.fixture(name="ns")
def namespace_fixture(lab: Lab) -> Namespace:
    """A namespace with two interfaces, v0 and v1, joined to each other."""
    ns = lab.namespace("ns")
    lab.veth(ns, "v0", ns, "v1")
    lab.address(ns, "v0", "10.0.0.1/16")
    return ns


def add_addresses(ns: Namespace, count: int) -> set[bytes]:
    added = [IPv4Address("10.0.1.0") + number for number in range(count)]
    with ns.iproute() as ipr:
        index = socket.if_nametoindex("v0")
        for each in added:
            ipr.addr("add", index=index, address=str(each), prefixlen=16)
    return {each.packed for each in added}


@pytest.mark.root
def test_a_long_list(ns: Namespace) -> None:
    """A datagram of the kernel holds no more than 32 KiB."""
    added = {(IPv4Address("10.1.0.0") + number).packed for number in range(1000)}
    with ns.iproute() as ipr:
        for packed in added:
            ipr.route("add", dst=f"{IPv4Address(packed)}/32", gateway="10.0.0.2")
    with ns.enter():
        found = dump(RTM_GETROUTE, FAMILY, (socket.AF_INET,))
    assert {each.kind for each in found} == {RTM_NEWROUTE}
    listed = [each.attributes.get(RTA_DST, b"") for each in found]
    assert added <= set(listed)
    assert all(listed.count(packed) == 1 for packed in added)


@pytest.mark.root
def test_what_the_request_says_counts(lab: Lab, ns: Namespace) -> None:
    lab.neighbour(ns, "v0", "10.0.0.7", "02:00:00:00:00:07")
    lab.neighbour(ns, "v1", "10.0.0.8", "02:00:00:00:00:08")
    with ns.enter():
        families = {each.fields for each in dump(RTM_GETROUTE, FAMILY, (socket.AF_INET6,))}
        index = struct.pack("=I", socket.if_nametoindex("v1"))
        neighbours = dump(RTM_GETNEIGH, FAMILY, (socket.AF_INET,), [(NDA_IFINDEX, index)])
    assert families == {(socket.AF_INET6,)}
    assert [IPv4Address(each.attributes[NDA_DST]) for each in neighbours] == [
        IPv4Address("10.0.0.8")
    ]


@pytest.mark.root
def test_a_list_that_changes_while_it_is_read(ns: Namespace) -> None:
    """The kernel fills a datagram when there is room, and room is made by reading."""
    add_addresses(ns, 600)
    with ns.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(message(RTM_GETADDR, bytes(ADDRESS.size), NLM_F_REQUEST | NLM_F_DUMP))
        assert all(kind != NLMSG_DONE for kind, *_ in messages(sock.recv(8192)))
        with ns.iproute() as ipr:
            index = socket.if_nametoindex("v0")
            ipr.addr("add", index=index, address="10.0.200.1", prefixlen=16)
        assert netlink._read(sock, ADDRESS) is None


# --- Changes ---


@pytest.fixture(name="monitor")
def monitor_fixture(ns: Namespace) -> Iterator[Monitor]:
    with ns.enter():
        monitor = Monitor([RTNLGRP_IPV4_ROUTE])
    with monitor:
        yield monitor


def readable(monitor: Monitor) -> bool:
    return bool(select.select([monitor], [], [], 0)[0])


def change(ns: Namespace, command: str, count: int = 1, **options: Any) -> None:
    with ns.iproute() as ipr:
        for number in range(count):
            destination = f"{IPv4Address('10.1.0.0') + number}/32"
            ipr.route(command, dst=destination, gateway="10.0.0.2", **options)


@pytest.mark.root
def test_a_change_is_heard_once(ns: Namespace, monitor: Monitor) -> None:
    assert not readable(monitor)
    assert not monitor.changed()
    for command in ("add", "del"):
        change(ns, command, 5)
        assert readable(monitor)
        assert monitor.changed()
        assert not readable(monitor)
        assert not monitor.changed()


@pytest.mark.root
def test_other_groups_and_namespaces_are_not_heard(
    lab: Lab, ns: Namespace, monitor: Monitor
) -> None:
    other = lab.namespace("other")
    lab.veth(other, "v0", other, "v1")
    lab.address(other, "v0", "10.0.0.1/16")
    change(other, "add")
    lab.link_set(ns, "v1", mtu=1400)
    assert not readable(monitor)


@pytest.mark.root
def test_what_the_socket_cannot_hold_is_a_change(ns: Namespace, monitor: Monitor) -> None:
    monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # rounded up
    change(ns, "add", 200)
    drops = [line.split()[8] for line in ns.read("/proc/net/netlink").splitlines()[1:]]
    assert any(int(number) for number in drops)
    assert readable(monitor)
    assert monitor.changed()
    assert not readable(monitor)
    assert not monitor.changed()
    change(ns, "del")
    assert monitor.changed()


@pytest.mark.root
def test_a_monitor_of_several_groups(lab: Lab, ns: Namespace) -> None:
    with ns.enter():
        monitor = Monitor([RTNLGRP_IPV4_ROUTE, RTNLGRP_LINK])
    with monitor:
        change(ns, "add")
        assert monitor.changed()
        wait_until(lambda: not monitor.changed(), "the links are quiet")
        lab.link_set(ns, "v1", mtu=1400)
        assert monitor.changed()


def test_a_closed_monitor_says_so() -> None:
    before = descriptors()
    with Monitor([RTNLGRP_LINK]) as monitor:
        assert descriptors() == before + 1
    assert descriptors() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        monitor.changed()


def test_a_group_that_does_not_exist() -> None:
    before = descriptors()
    with pytest.raises(OSError, match="Invalid argument"):
        Monitor([RTNLGRP_LINK, 1 << 20])
    assert descriptors() == before
