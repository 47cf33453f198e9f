"""What the operator says, held against this host: plans and clear refusals."""

from __future__ import annotations

import ipaddress
import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.config import Mode, ServeConfig, check_change, parse_cpus, plan
from pktstun.engine import HANDOVER_PERCENT, Tuning
from pktstun.errors import ConfigError
from pktstun.kernel import RingGeometry
from pktstun.stun import LongTerm, TransportAddress
from pktstun.users import Credentials

if TYPE_CHECKING:
    from tests.stream_client import Authority

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


PAIR = ("127.0.0.1", "127.0.0.2")


def discovering(*listen: str, **more: Any) -> ServeConfig:
    return ServeConfig(nat_discovery=True, listen=listen, **more)


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
    (ServeConfig(nat_discovery=True), "--listen ADDR --listen ADDR"),
    (ServeConfig(nat_discovery=True, listen=("0.0.0.0",)), "--listen ADDR --listen ADDR"),
    (ServeConfig(nat_discovery=True, listen=("127.0.0.1",)), "two IPv4 addresses"),
    (discovering("127.0.0.1", "127.0.0.2", "::1"), r"two IPv6 .* not \[::1\]:3478"),
    (discovering("127.0.0.1", "127.0.0.2", "127.0.0.3"), "two IPv4 addresses"),
    (discovering("127.0.0.1", "127.0.0.2:4000"), "the same port"),
    (discovering("fe80::1%lo", "fe80::2%lo"), "link-local"),
    (discovering(*PAIR, alternate_port=3478), "two ports"),
    (discovering(*PAIR, alternate_port=70000), "65535"),
    (discovering(*PAIR, port=65535), "65535"),
    (discovering(*PAIR, advertise=("127.0.0.1",)), "10.0.0.1=192.0.2.1"),
    (discovering(*PAIR, advertise=("127.0.0.3=192.0.2.1",)), "none of the --listen"),
    (discovering(*PAIR, advertise=("127.0.0.1=2001:db8::1",)), "one family"),
    (discovering(*PAIR, advertise=("127.0.0.1=127.0.0.2",)), "two addresses"),
    (ServeConfig(alternate_port=4000), "--alternate-port .* --nat-discovery only"),
    (ServeConfig(advertise=("127.0.0.1=192.0.2.1",)), "--advertise .* --nat-discovery only"),
    (ServeConfig(alternate_servers=("nonsense",)), "nonsense"),
    (ServeConfig(alternate_servers=("203.0.113.1", "203.0.113.2")), "one for IPv4 already"),
    (ServeConfig(alternate_servers=("127.0.0.1",)), "another server"),
    (ServeConfig(alternate_servers=("192.0.2.1:0",)), "another server"),
    (ServeConfig(alternate_servers=("::ffff:192.0.2.1",)), "cannot use it"),
    (ServeConfig(alternate_domain="b.example.org"), "--alternate-server and --tls only"),
    (
        ServeConfig(
            iface="lo",
            credentials=Credentials({}),
            geometry=RingGeometry(block_size=65536),
        ),
        "lower --block-size",
    ),
    (
        ServeConfig(
            alternate_servers=("192.0.2.1",), alternate_domain="", tls=True, tls_certificate="x"
        ),
        "--alternate-domain",
    ),
    (ServeConfig(tls=True), "--tls-certificate"),
    (ServeConfig(tls_port=0), "--tls-port 0 is not in 1..65535"),
    (ServeConfig(tcp=True, tls=True, tls_port=3478, tls_certificate="x"), "a port of --tcp"),
    (ServeConfig(tls=True, tls_certificate="/nowhere/x"), "cannot read /nowhere/x"),
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


def test_discovery_listens_on_both_ports_of_both_addresses() -> None:
    made = plan(discovering(*PAIR, alternate_port=5000, advertise=("127.0.0.2=192.0.2.9",)))
    four = {f"127.0.0.{n}:{port}" for n in (1, 2) for port in (3478, 5000)}
    assert {str(listen.address) for listen in made.listens} == four
    assert set(map(str, made.options.endpoints)) == four
    assert made.ports == (3478, 5000)
    (discovery,) = made.options.discovery
    assert set(map(str, discovery.endpoints)) == four
    assert str(discovery.told(discovery.endpoints[2])) == "192.0.2.9:3478"
    assert made.ring_options.discovery == made.options.discovery
    assert plan(discovering(*PAIR)).ports == (3478, 3479)


def test_discovery_ends_while_an_address_is_gone() -> None:
    config = discovering("127.0.0.1", "198.51.100.1")
    made = plan(config)  # a route of type local may lead to the second one
    assert made.options.discovery
    seen = made.seen | {ipaddress.ip_address("198.51.100.1")}
    made = plan(config, made.running._replace(seen=seen))
    assert made.options.discovery == ()
    assert {str(each) for each in made.options.endpoints} == {"127.0.0.1:3478", "127.0.0.1:3479"}


def test_the_alternate_server_has_the_port_of_this_one() -> None:
    made = plan(ServeConfig(alternate_servers=("192.0.2.1", "[2001:db8::1]:5000"), port=4000))
    assert list(map(str, made.options.alternate_servers)) == [
        "192.0.2.1:4000",
        "[2001:db8::1]:5000",
    ]


# --- Streams ---

# The examiner of certificates is a fork; the service has one thread, a test run may have several.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def test_streams_are_served_where_datagrams_are() -> None:
    listen = ("127.0.0.1", "127.0.0.1:4000", "::1")
    assert plan(ServeConfig(listen=listen)).streams is None
    made = plan(ServeConfig(listen=listen, tcp=True))
    assert made.streams is not None
    assert (made.streams.tcp, made.streams.tls) == (made.listens, ())
    assert made.streams.tcp_options.endpoints == made.options.endpoints
    assert made.workers == len(made.cpus) + 1


@forks
def test_a_redirect_over_tls_does_not_lead_back_here(authority: Authority) -> None:
    config = ServeConfig(
        listen=("127.0.0.1",),
        tls=True,
        tls_certificate=str(authority.chain),
        tls_key=str(authority.key),
        alternate_servers=("127.0.0.1:4000",),
    )
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:5349 would be this server"):
        plan(config)


def test_tls_has_one_port_for_each_address(authority: Authority) -> None:
    listen = ("127.0.0.1", "127.0.0.1:4000", "::1")
    certificate, key = str(authority.chain), str(authority.key)
    config = ServeConfig(listen=listen, tls=True, tls_certificate=certificate, tls_key=key)
    streams = plan(config).streams
    assert streams is not None
    assert streams.tcp == ()
    assert list(map(str, streams.tls)) == ["127.0.0.1:5349", "[::1]:5349"]
    assert streams.tls_options.endpoints == {each.address for each in streams.tls}
    assert streams.certificate == (certificate, key)


def test_of_what_goes_beyond_binding_a_stream_has_what_makes_sense() -> None:
    config = discovering(*PAIR, classic=True, tcp=True, alternate_servers=("192.0.2.1",))
    made = plan(config)
    assert made.options.discovery
    assert made.options.classic
    assert made.streams is not None
    assert len(made.streams.tcp) == 4
    for options, port in ((made.streams.tcp_options, 3478), (made.streams.tls_options, 5349)):
        assert not options.discovery
        assert not options.classic
        assert list(map(str, options.alternate_servers)) == [f"192.0.2.1:{port}"]
        assert not options.broadcasts  # and so a network that comes or goes changes nothing
        assert not options.local


@forks
def test_only_clients_of_tls_are_told_a_name(authority: Authority) -> None:
    made = plan(
        ServeConfig(
            tcp=True,
            tls=True,
            tls_certificate=str(authority.chain),
            tls_key=str(authority.key),
            alternate_servers=("192.0.2.1",),
            alternate_domain="b.example.org",
        )
    )
    assert made.streams is not None
    assert made.streams.tls_options.alternate_domain == "b.example.org"
    assert made.streams.tcp_options.alternate_domain is None
    assert made.options.alternate_domain is None


@forks
def test_a_change_of_the_network_does_not_read_the_certificate(authority: Authority) -> None:
    """It may be about to be replaced, one file after the other."""
    config = ServeConfig(tls=True, tls_certificate=str(authority.chain), tls_key=str(authority.key))
    running = plan(config).running
    authority.key.write_text("")
    assert plan(config, running, follow=True).streams is not None
    with pytest.raises(ConfigError, match="no private key"):
        plan(config, running)


# --- Metrics ---


def test_the_exporter_has_its_place_behind_the_packet_workers() -> None:
    cpus = (min(os.sched_getaffinity(0)),)
    numbers = {}
    for metrics in (None, "unix:/run/m.sock"):
        for tcp in (False, True):
            made = plan(ServeConfig(mode=Mode.RECVMMSG, cpus=cpus, metrics=metrics, tcp=tcp))
            numbers[metrics is not None, tcp] = made.workers, made.exporter, made.stream_worker
    assert numbers == {
        (False, False): (1, None, None),
        (False, True): (2, None, 1),
        (True, False): (2, 1, None),
        (True, True): (3, 1, 2),
    }


def test_metrics_are_for_this_host() -> None:
    assert str(plan(ServeConfig(metrics="127.0.0.1")).metrics) == "127.0.0.1:9478"
    with pytest.raises(ConfigError, match=r"--metrics 0\.0\.0\.0:9478: .*reverse proxy"):
        plan(ServeConfig(metrics="0.0.0.0:9478"))


def test_metrics_take_a_package_that_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pktstun.metrics._collector", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert plan(ServeConfig()).metrics is None
    with pytest.raises(ConfigError, match="pip install prometheus-client"):
        plan(ServeConfig(metrics="127.0.0.1"))


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
        (replace(same, geometry=RingGeometry(block_count=64)), "--block-size, --blocks or"),
        (ServeConfig(mode=Mode.RECVMMSG), "mode"),
        (replace(same, tcp=True), "tcp"),
        (replace(same, metrics="127.0.0.1"), "metrics"),
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


def test_a_host_can_be_imagined_that_has_what_is_named() -> None:
    """Nothing of this one is asked for then, and what no host could do is refused."""
    config = ServeConfig(
        iface="nosuch0",
        listen=("fe80::1%nosuch1", "fe80::2", "192.0.2.1"),
        cpus=(4095,),
        user="nobody-at-all",
        tls=True,
        tls_certificate="/nowhere/x",
    )
    made = plan(config, imagined=True)
    assert made.mode is Mode.RING
    assert len({listen.scope for listen in made.listens}) == 3
    assert plan(replace(config, mode=Mode.DIRECT), imagined=True).mode is Mode.DIRECT
    for wrong, fix in (
        (replace(config, listen=("fe80::1%nosuch1", "fe80::2%nosuch1"), nat_discovery=True), "%1"),
        (replace(config, iface=None, mode=Mode.RING), r"--iface \(one of lo, nosuch1\)"),
        (replace(config, iface="lo", mode=Mode.DIRECT), "--iface lo has no neighbours"),
        (replace(config, tls_certificate=None), "--tls-certificate"),
    ):
        with pytest.raises(ConfigError, match=fix):
            plan(wrong, imagined=True)


def test_only_a_link_local_address_has_an_interface() -> None:
    with pytest.raises(ConfigError, match="leave %lo out"):
        plan(ServeConfig(iface="lo", listen=("2001:db8::1%lo",)))


# --- Credentials ---


def test_with_credentials_python_may_take_all_of_the_time() -> None:
    credentials = Credentials({"ada": {"password": "x"}}, "example.org")
    made = plan(ServeConfig(iface="lo", credentials=credentials))
    assert made.tuning.handover_percent == 100
    assert made.tuning.batch == 128  # for each of two sockets: a pass may hand over 256
    assert plan(replace(made.config, tuning=Tuning(batch=16))).tuning.batch == 16
    assert made.options.authenticator is made.ring_options.authenticator
    assert isinstance(made.options.authenticator, LongTerm)
    assert plan(ServeConfig(iface="lo")).options.authenticator is None
    assert plan(ServeConfig(iface="lo")).tuning.handover_percent == HANDOVER_PERCENT


def test_the_nonce_key_is_secret_and_stays() -> None:
    credentials = Credentials({"ada": {"password": "x"}}, "example.org")
    first = plan(ServeConfig(iface="lo"))
    later = plan(ServeConfig(iface="lo", credentials=credentials), first.running)
    assert later.nonce_key == first.nonce_key != plan(ServeConfig(iface="lo")).nonce_key
    assert len(first.nonce_key) == 32
    assert repr(first.nonce_key) not in repr(first)
    check_change(first.running, later)
    # What has not changed is the same object, so that nobody thinks that it has.
    again = plan(later.config, later.running, follow=True)
    assert again.options.authenticator is later.options.authenticator
    assert again.options == later.options
    # A version that knew no credentials has no key.
    assert len(plan(ServeConfig(iface="lo"), first.running._replace(nonce_key=b"")).nonce_key) == 32


def test_classic_clients_cannot_show_credentials() -> None:
    credentials = Credentials({"ada": {"password": "x"}})
    with pytest.raises(ConfigError, match="leave out --auth or --classic"):
        plan(ServeConfig(iface="lo", credentials=credentials, classic=True))


def test_credentials_that_do_not_fit_are_refused() -> None:
    credentials = Credentials({"ada": {"password": "x"}}, "example.org", nonce_lifetime=0)
    with pytest.raises(ConfigError, match="--auth long-term: a nonce is good for a second"):
        plan(ServeConfig(iface="lo", credentials=credentials))
