"""What a person types, and where it leads: URIs, names, and the order of SRV records."""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import dns.resolver
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.client import QueryError, ServerName, Transport, locate, parse_server
from pktstun.client._servers import lookup_srv
from pktstun.errors import StunError
from pktstun.stun import TransportAddress

UNRESERVED = "abcXYZ019-._~"
SUB_DELIMS = "!$&'()*+,;="
reg_names = st.lists(
    st.one_of(
        st.sampled_from(UNRESERVED + SUB_DELIMS).map(lambda char: (char, char)),
        st.integers(0x21, 0x7E).map(lambda code: (f"%{code:02X}", chr(code))),
    ),
    min_size=1,
    max_size=40,
)
schemes = st.sampled_from(["stun", "stuns", "STUN", "Stuns"])
ports = st.none() | st.integers(0, 65535)


def with_port(text: str, port: int | None) -> str:
    return text if port is None else f"{text}:{port}"


@given(schemes, reg_names, ports)
def test_a_uri_with_a_name(scheme: str, name: list[tuple[str, str]], port: int | None) -> None:
    written, meant = ("".join(part) for part in zip(*name, strict=True))
    if scheme.lower() == "stun" and written.isdigit() and port is None:
        return  # the host `stun` at a port
    found = parse_server(with_port(f"{scheme}:{written}", port))
    assert found == ServerName(meant, port or None, scheme.lower())


@given(schemes, st.ip_addresses(), ports)
def test_a_uri_with_an_address(scheme: str, ip: Any, port: int | None) -> None:
    host = f"[{ip}]" if ip.version == 6 else str(ip)
    found = parse_server(with_port(f"{scheme}:{host}", port))
    assert found == ServerName(str(ip), port or None, scheme.lower())
    assert found.is_address


@given(st.ip_addresses(), st.none() | st.integers(1, 65535))
def test_what_is_no_uri_is_read_as_ever(ip: Any, port: int | None) -> None:
    assert parse_server(str(ip)) == ServerName(str(ip))
    written = with_port(f"[{ip}]" if ip.version == 6 else str(ip), port)
    assert parse_server(written) == ServerName(str(ip), port)


@given(st.text(max_size=40))
def test_any_text_is_a_server_or_the_one_error(text: str) -> None:
    for words in (text, f"stun:{text}"):
        try:
            found = parse_server(words)
        except StunError:
            continue
        assert found.port is None or 0 < found.port <= 65535


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("stun.example.org", ServerName("stun.example.org")),
        ("stun.example.org:5", ServerName("stun.example.org", 5)),
        ("stun:3478", ServerName("stun", 3478)),
        ("stun:example.org:", ServerName("example.org", None, "stun")),
        ("stuns:3478", ServerName("3478", None, "stuns")),
        ("stun:[fe80::1%25eth0]", ServerName("fe80::1%eth0", None, "stun")),
    ],
)
def test_servers(text: str, server: ServerName) -> None:
    assert parse_server(text) == server


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stun://example.org", "no //"),
        ("stun:", "no host"),
        ("stun::3478", "no host"),
        ("stun::1", "no host"),
        ("stun:[]", "no host"),
        ("stun:2001:db8::1", "form stun:HOST"),
        ("stun:[192.0.2.1]", "no IPv6 address"),
        ("stun:example.org:65536", "65535"),
        ("stun:example.org:" + "9" * 5000, "65535"),
        ("stun:example.org?transport=udp", "form stun:HOST"),
        ("stun:example.org/", "form stun:HOST"),
        ("stun:%zz", "form stun:HOST"),
        ("example.org:x", "65535"),
    ],
)
def test_what_is_no_server(text: str, reason: str) -> None:
    with pytest.raises(StunError, match=reason):
        parse_server(text)


# --- Where it leads ---


@pytest.mark.parametrize(
    ("text", "transport", "at"),
    [
        ("127.0.0.1", Transport.UDP, "127.0.0.1:3478"),
        ("127.0.0.1", Transport.TCP, "127.0.0.1:3478"),
        ("stuns:[::1]", Transport.TLS, "[::1]:5349"),
        ("stuns:[::1]:7", Transport.TLS, "[::1]:7"),
    ],
)
def test_addresses_need_no_dns(text: str, transport: Transport, at: str) -> None:
    assert locate(parse_server(text), transport, srv=True) == [TransportAddress.parse(at)]


class Zone:
    """SRV records and addresses in place of the DNS; what is asked for is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: dict[str, list[str]] = {}
        self.hosts: dict[str, str] = {}
        self.asked: list[str] = []
        monkeypatch.setattr(dns.resolver, "resolve", self._resolve)
        monkeypatch.setattr("pktstun.client._servers._resolve_all", self._addresses)

    def _resolve(self, name: str, kind: str) -> Any:
        self.asked.append(name)
        if name not in self.records:
            raise dns.resolver.NXDOMAIN
        answer = type("Answer", (), {})()
        answer.rrset = dns.rrset.from_text(name + ".", 60, "IN", kind, *self.records[name])
        return answer

    def _addresses(self, host: str, port: int, _family: int) -> list[TransportAddress]:
        if host not in self.hosts:
            raise QueryError(f"cannot resolve {host!r}")
        return [TransportAddress.parse(f"{self.hosts[host]}:{port}")]


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Zone:
    return Zone(monkeypatch)


@pytest.mark.parametrize(
    ("transport", "service", "name"),
    [
        (Transport.UDP, "stun", "_stun._udp.example.org"),
        (Transport.TCP, "stun", "_stun._tcp.example.org"),
        (Transport.TLS, "stun", "_stuns._tcp.example.org"),
        (Transport.UDP, "stun-behavior", "_stun-behavior._udp.example.org"),
    ],
)
def test_srv_records_say_host_and_port(
    zone: Zone, transport: Transport, service: str, name: str
) -> None:
    zone.records[name] = ["2 0 99 later.example.org.", "1 0 4000 first.example.org."]
    zone.hosts = {"first.example.org": "192.0.2.1", "later.example.org": "192.0.2.2"}
    found = locate(ServerName("example.org"), transport, srv=True, service=service)
    assert list(map(str, found)) == ["192.0.2.1:4000", "192.0.2.2:99"]
    assert zone.asked == [name]


def test_without_srv_records_the_name_itself_is_the_server(zone: Zone) -> None:
    zone.hosts = {"example.org": "192.0.2.1"}
    found = locate(ServerName("example.org"), Transport.TLS, srv=True)
    assert list(map(str, found)) == ["192.0.2.1:5349"]


def test_a_port_or_an_address_asks_for_no_srv_records(zone: Zone) -> None:
    zone.hosts = {"example.org": "192.0.2.1", "192.0.2.9": "192.0.2.9"}
    locate(ServerName("example.org", 5), srv=True)
    locate(ServerName("192.0.2.9"), srv=True)
    assert zone.asked == []


def test_names_in_uris_are_looked_up_and_others_are_not(zone: Zone) -> None:
    zone.hosts = {"example.org": "192.0.2.1"}
    locate(ServerName("example.org"))
    locate(ServerName("example.org", None, "stun"), srv=False)
    assert zone.asked == []
    locate(ServerName("example.org", None, "stun"))
    assert zone.asked == ["_stun._udp.example.org"]


def test_a_target_that_cannot_be_resolved_is_passed_over(zone: Zone) -> None:
    zone.records["_stun._udp.example.org"] = ["1 0 1 gone.example.org.", "2 0 2 here.example.org."]
    zone.hosts = {"here.example.org": "192.0.2.2"}
    assert list(map(str, locate(ServerName("example.org"), srv=True))) == ["192.0.2.2:2"]
    zone.hosts = {}
    with pytest.raises(QueryError, match="here"):
        locate(ServerName("example.org"), srv=True)


def test_a_dot_says_that_there_is_no_such_service(zone: Zone) -> None:
    zone.records["_stun._udp.example.org"] = ["0 0 0 ."]
    with pytest.raises(QueryError, match="no such service"):
        locate(ServerName("example.org"), srv=True)


def test_a_name_that_is_none_is_an_error_in_words() -> None:
    with pytest.raises(QueryError, match="cannot look up"):
        locate(ServerName("a" * 64), srv=True)


@given(
    records=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 65535), st.integers(1, 65535)),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_priorities_come_in_order_and_nobody_is_left_out(
    records: list[tuple[int, int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        zone = Zone(monkeypatch)
        # The host's name says what its priority and weight are.
        zone.records["x"] = [f"{p} {w} {port} h{p}-{w}." for p, w, port in records]
        found = lookup_srv("x")
    assert Counter(found) == Counter((f"h{p}-{w}", port) for p, w, port in records)
    priorities = [int(host[1:].split("-")[0]) for host, _ in found]
    assert priorities == sorted(priorities)


def test_weights_share_out_the_first_place(zone: Zone) -> None:
    """RFC 2782: in proportion, and with a small chance for the weight 0."""
    zone.records["x"] = ["1 30 1 a.", "1 10 1 b.", "1 0 1 c."]
    random.seed(2782)
    first = Counter(lookup_srv("x")[0][0] for _ in range(2000))
    assert 1400 < first["a"] < 1600
    assert first["c"] < 40
    assert first.total() == 2000


def test_without_dnspython_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.exception", None)
    with pytest.raises(QueryError, match="pip install dnspython, or apt install python3-dnspython"):
        locate(ServerName("example.org"), srv=True)


def test_without_dnspython_names_in_uris_are_resolved(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone.hosts = {"example.org": "192.0.2.1"}
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert list(map(str, locate(ServerName("example.org", None, "stun")))) == ["192.0.2.1:3478"]
    assert zone.asked == []
