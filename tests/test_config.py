"""What the operator says, held against this host: plans and clear refusals."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.config import Mode, ServeConfig, check_change, parse_cpus, plan
from pktstun.errors import ConfigError
from pktstun.kernel import RingGeometry
from pktstun.stun import TransportAddress

LOOPBACK4 = TransportAddress(ipaddress.IPv4Address("127.0.0.1"), 3478)
LOOPBACK6 = TransportAddress(ipaddress.IPv6Address("::1"), 3478)


@given(st.sets(st.integers(0, 9999), min_size=1, max_size=20))
def test_any_list_of_cpus_is_read(cpus: set[int]) -> None:
    assert parse_cpus(",".join(map(str, cpus))) == tuple(sorted(cpus))


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), (" 2 , 1", (1, 2))]
)
def test_ranges_of_cpus(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-", "99999", "1;2", "²"])
def test_no_list_of_cpus(text: str) -> None:
    with pytest.raises(ConfigError, match="0-3,8"):
        parse_cpus(text)


def test_an_interface_alone_serves_its_addresses_from_the_ring() -> None:
    made = plan(ServeConfig(iface="lo"))
    assert made.mode is Mode.RING
    assert made.cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert {str(listen.address) for listen in made.listens} == {"0.0.0.0:3478", "[::]:3478"}
    assert LOOPBACK4 in made.options.endpoints
    assert made.options.check_destination
    assert made.ring_options.check_destination
    assert made.ring_options.allow_loopback
    assert made.ports == (3478,)


def test_nothing_said_serves_every_address_from_sockets() -> None:
    made = plan(ServeConfig())
    assert made.mode is Mode.RECVMMSG
    assert made.iface is None
    assert LOOPBACK4 in made.options.endpoints
    # The kernel delivers what is for this host, also for addresses added later.
    assert not made.options.check_destination


def test_addresses_that_are_named_are_bound() -> None:
    made = plan(ServeConfig(listen=("127.0.0.1", "[::1]:4000"), port=3999))
    assert [str(listen.address) for listen in made.listens] == ["127.0.0.1:3999", "[::1]:4000"]
    assert made.ports == (3999, 4000)
    assert made.options.endpoints == {LOOPBACK4._replace(port=3999), LOOPBACK6._replace(port=4000)}


def test_a_link_local_address_needs_its_interface() -> None:
    made = plan(ServeConfig(listen=("fe80::1%lo",)))
    assert made.listens[0].scope == 1
    assert str(made.listens[0]) == "[fe80::1%lo]:3478"
    assert plan(ServeConfig(iface="lo", listen=("fe80::1",))).listens[0].scope == 1
    # What is compared with addresses of packets carries no zone.
    assert made.options.endpoints == {TransportAddress(ipaddress.IPv6Address("fe80::1"), 3478)}


REFUSED = [
    (ServeConfig(iface="nosuch0"), "no network interface 'nosuch0': name one of .*lo"),
    (ServeConfig(mode=Mode.RING), "--iface"),
    (ServeConfig(port=0), "1..65535"),
    (ServeConfig(port=65536), "1..65535"),
    (ServeConfig(listen=("nonsense",)), "nonsense"),
    (ServeConfig(listen=("127.0.0.1:99999",)), "65535"),
    (ServeConfig(listen=("127.0.0.1:0",)), "1..65535"),
    (ServeConfig(listen=("224.0.0.1",)), "unicast"),
    (ServeConfig(listen=("ff02::1",)), "unicast"),
    (ServeConfig(listen=("255.255.255.255",)), "unicast"),
    (ServeConfig(listen=("127.255.255.255",)), "unicast"),
    (ServeConfig(listen=("::ffff:127.0.0.1",)), "write the IPv4 address, 127.0.0.1"),
    (ServeConfig(listen=tuple(f"127.0.0.{n}" for n in range(1, 66))), "0.0.0.0 and ::"),
    (ServeConfig(listen=("fe80::1",)), "fe80::1%eth0"),
    (ServeConfig(listen=("fe80::1%nosuch0",)), "nosuch0"),
    (ServeConfig(listen=("127.0.0.1", "127.0.0.1:3478")), "twice"),
    (ServeConfig(listen=("0.0.0.0", "127.0.0.1")), "wildcard"),
    (ServeConfig(cpus=(4095,)), "CPU 4095 cannot be used .* choose --cpus from"),
    (ServeConfig(software="x" * 128), "--software: .*128"),
]


@pytest.mark.parametrize(("config", "fix"), REFUSED, ids=[fix for _, fix in REFUSED])
def test_what_cannot_be_done_is_refused_with_the_fix(config: ServeConfig, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix) as caught:
        plan(config)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_to_listen_on_is_a_plan_or_a_refusal(text: str) -> None:
    with suppress(ConfigError):
        plan(ServeConfig(listen=(text,)))


# --- While it runs ---


def test_what_may_change_and_what_not() -> None:
    running = plan(ServeConfig(iface="lo", cpus=(min(os.sched_getaffinity(0)),))).running
    same = ServeConfig(iface="lo", cpus=running.cpus)
    for changed in (
        same,
        replace(same, port=4000),
        replace(same, listen=("127.0.0.1",), software="x", takeover=False, nice=3),
        replace(same, cpus=None),
    ):
        check_change(running, plan(changed, running))
    for changed, name in (
        (replace(same, mode=Mode.RECVMMSG), "mode"),
        (replace(same, geometry=RingGeometry(block_count=64)), "block-size, blocks or"),
        (ServeConfig(mode=Mode.RECVMMSG), "mode"),
    ):
        with pytest.raises(ConfigError, match=f"{name}.*cannot change"):
            check_change(running, plan(changed, running))


def test_an_address_that_is_gone_is_not_served_and_one_that_nobody_had_is() -> None:
    config = ServeConfig(iface="lo", listen=("127.0.0.1", "198.51.100.1", "198.51.100.2"))
    assert len(plan(config).options.endpoints) == 3  # a route of type local may lead to them
    first = plan(config).running
    gone = first._replace(seen=first.seen | {ipaddress.ip_address("198.51.100.2")})
    later = plan(config, gone)
    assert {str(each.ip) for each in later.options.endpoints} == {"127.0.0.1", "198.51.100.1"}
    assert gone.seen <= later.seen


def test_an_interface_that_is_gone_takes_its_listen_addresses_with_it() -> None:
    config = ServeConfig(iface="lo", listen=("fe80::1%nowhere", "127.0.0.1"))
    running = plan(ServeConfig(iface="lo")).running
    assert [str(each) for each in plan(config, running, follow=True).listens] == ["127.0.0.1:3478"]
    # A configuration that names it newly is wrong.
    with pytest.raises(ConfigError, match="no network interface 'nowhere'"):
        plan(config, running)
    with pytest.raises(ConfigError, match="no network interface 'nowhere'"):
        plan(ServeConfig(iface="lo", listen=("fe80::1%nowhere",)), running, follow=True)


def test_only_a_link_local_address_has_an_interface() -> None:
    with pytest.raises(ConfigError, match="leave %lo out"):
        plan(ServeConfig(iface="lo", listen=("2001:db8::1%lo",)))
