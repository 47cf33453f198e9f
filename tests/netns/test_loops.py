"""Two servers cannot be set on each other: one forged packet, and the wire is quiet again.

The packet comes from the address and port of one server and goes to the other. A request gets its
reply, which goes to the first server and is a response: never answered. So at most two packets
pass, the forged one among them. Anything else ends where it arrives.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from pktstun.client import QueryError, query
from pktstun.stun import TransportAddress
from tests.faults.scorecard import modes
from tests.lab import require_root, wait_until
from tests.netns.server import Server
from tests.netns.wire import PORT, Ends, Wire
from tests.strategies.datagrams import ERROR, INDICATION, REQUEST, SUCCESS, message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, Namespace, TwoHosts

pytestmark = pytest.mark.root

MODES = modes("ring", "direct", "recvmmsg")
FIRST = {
    name: message(*attributes, field=field, transaction_id=name.encode().ljust(12))
    for name, field, *attributes in (
        ("request", REQUEST),
        ("attribute", REQUEST, bytes.fromhex("7fff0000")),
        ("success", SUCCESS),
        ("error", ERROR),
        ("indication", INDICATION),
    )
} | {"junk": b"\xff" * 8 + b"junk".ljust(80)}
QUIET = 0.2
"""Seconds without a packet after which there is no loop: a round trip takes a thousandth."""


class Watch:
    """Counts what passes between two servers after forged packets."""

    def __init__(self, a: Wire, b: Wire) -> None:
        self._ends = a, b

    def after(self, sender: Wire, frames: dict[str, bytes]) -> dict[str, int]:
        """Send frames and return how many UDP datagrams pass for each, itself included."""
        for end in self._ends:
            end.datagrams()
        sender.send(*frames.values())
        passed: Counter[str] = Counter()
        end_of_quiet = time.monotonic() + QUIET
        while time.monotonic() < end_of_quiet:
            # What one end sends, the other receives: so each is counted once.
            for seen in [seen for end in self._ends for seen in end.datagrams(quiet=QUIET / 20)]:
                passed[seen.payload[8:20].decode(errors="replace").rstrip()] += 1
                end_of_quiet = time.monotonic() + QUIET
            assert max(passed.values(), default=0) < 100
        return dict(passed)


@contextlib.contextmanager
def watching(hosts: TwoHosts) -> Iterator[tuple[Watch, Wire]]:
    with (
        Wire(hosts.server, hosts.server_if) as near,
        Wire(hosts.client, hosts.client_if) as far,
    ):
        yield Watch(near, far), far


def forged(lab: Lab, hosts: TwoHosts, *, ipv6: bool) -> dict[str, bytes]:
    """Return the frames that come from the client's server, as its address and port say."""
    ends = Ends.of(lab, hosts, ipv6=ipv6)
    source = ends.client, PORT
    return {name: ends.udp(payload, source=source) for name, payload in FIRST.items()}


MOST = {name: 2 if name in {"request", "attribute"} else 1 for name in FIRST}
"""How many packets pass after each, itself included."""


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("mode", MODES)
def test_two_of_ours(lab: Lab, hosts: TwoHosts, mode: str, *, ipv6: bool) -> None:
    require_root()
    with (
        Server(hosts.server, ["--iface", hosts.server_if, "--mode", mode]) as one,
        Server(hosts.client, ["--iface", hosts.client_if, "--mode", mode]) as other,
        watching(hosts) as (watch, far),
    ):
        assert watch.after(far, forged(lab, hosts, ipv6=ipv6)) == MOST
        assert one.totals()["answered"] == 2
        totals = other.totals()
        assert totals["answered"] == 0
        assert totals["received"] == totals["dropped.not_request"] == 2


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("mode", MODES)
def test_one_against_itself(lab: Lab, hosts: TwoHosts, mode: str, *, ipv6: bool) -> None:
    """The source is one of its own sockets, or an address of its own and a port of nobody."""
    ends = Ends.of(lab, hosts, ipv6=ipv6)
    other = ip_address((hosts.server_ipv6 if ipv6 else hosts.server_ipv4)[1])
    with (
        Server(hosts.server, ["--iface", hosts.server_if, "--mode", mode]) as server,
        watching(hosts) as (watch, far),
    ):
        for ip in (ends.server, other):
            frames = {name: ends.udp(each, source=(ip, PORT)) for name, each in FIRST.items()}
            assert watch.after(far, frames) == dict.fromkeys(FIRST, 1)
        assert server.totals()["answered"] == 0
        # What its own host sends to itself takes the way through loopback.
        received = server.totals()["received"]
        for payload in FIRST.values():
            with hosts.server.socket(*family(ends)) as sock:
                sock.bind((str(other), 0))
                sock.sendto(payload, (str(ends.server), PORT))
        wait_until(lambda: server.totals()["received"] == received + len(FIRST), "all is read")
        assert server.totals()["answered"] == 2


def family(ends: Ends) -> tuple[int, int]:
    return (
        socket.AF_INET6 if ends.server.version == 6 else socket.AF_INET,
        socket.SOCK_DGRAM,
    )


# --- Another program ---


@contextlib.contextmanager
def coturn(namespace: Namespace, addresses: list[str], directory: str) -> Iterator[None]:
    """Run coturn's server as a STUN server on these addresses."""
    listens = [word for address in addresses for word in ("-L", address)]
    command = ["turnserver", "-n", "--stun-only", "--no-tcp", "--no-tls", "--no-dtls", "--no-cli"]
    files = ["--log-file=stdout", f"--pidfile={directory}/pid", f"--userdb={directory}/db"]
    with namespace.popen([*command, *files, *listens, "-p", str(PORT)]) as process:
        try:
            for address in addresses:
                target = TransportAddress(ip_address(address), PORT)
                wait_until(lambda: answers(namespace, target), "coturn answers", 20)  # noqa: B023
            yield
        finally:
            process.kill()


def answers(namespace: Namespace, target: TransportAddress) -> bool:
    with namespace.enter(), contextlib.suppress(QueryError):
        return query(target, timeout=0.2, rto=0.1) is not None
    return False


@pytest.mark.peers
@pytest.mark.parametrize("mode", MODES)
def test_ours_and_coturn(
    lab: Lab, hosts: TwoHosts, tmp_path_factory: pytest.TempPathFactory, mode: str
) -> None:
    """Forged either way: in the name of coturn to us, and in ours to coturn."""
    require_root()
    addresses = [hosts.client_ipv4[0], hosts.client_ipv6[0]]
    with (
        coturn(hosts.client, addresses, str(tmp_path_factory.mktemp("coturn"))),
        Server(hosts.server, ["--iface", hosts.server_if, "--mode", mode]) as server,
        watching(hosts) as (watch, far),
        Wire(hosts.server, hosts.server_if) as near,
    ):
        for ipv6 in (False, True):
            assert watch.after(far, forged(lab, hosts, ipv6=ipv6)) == MOST
            ends = Ends.of(lab, hosts, ipv6=ipv6)
            back = Ends(ends.server, ends.client, ends.server_mac, ends.client_mac)
            source = back.client, PORT
            frames = {name: back.udp(each, source=source) for name, each in FIRST.items()}
            passed = watch.after(near, frames)
            assert passed.keys() == FIRST.keys()
            assert max(passed.values()) == 2
        assert server.totals()["answered"] == 4
