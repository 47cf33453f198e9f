"""Received is answered and dropped, exactly: of a great mixture, in every mode, as Prometheus sees.

The mixture is every frame of test_never_answered.py, requests that are answered in all ways, and
what cannot be sent. A nightly run sends a million of them.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING, Self

import pytest

from pktstun.stun import Message
from tests.kernel.wire import raw_socket
from tests.lab import require_root, wait_until
from tests.metrics.scraping import Series, scrape
from tests.netns.client import on_cpu
from tests.netns.server import Server
from tests.netns.test_metrics import directory_fixture, socket_fixture  # noqa: F401 - fixtures
from tests.netns.test_never_answered import (
    IFF_PROMISC,
    REQUEST,
    ipv4_rows,
    ipv6_rows,
    link_rows,
    stun_rows,
)
from tests.netns.wire import Ends
from tests.strategies.datagrams import attribute, fingerprinted, message
from tests.stream_client import StreamClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.root

COUNT = 350_000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 40_000
PLAIN = 60  # of a hundred
NOWHERE = "198.51.100.7"
"""A source to which there is no route."""


def mixture(ends: Ends) -> Iterator[bytes]:
    """Yield frames without end."""
    rows = ipv6_rows(ends) if ends.client.version == 6 else ipv4_rows(ends)
    odd = [row.frame for row in (*stun_rows(ends), *link_rows(ends), *rows)]
    odd += [
        ends.udp(message(attribute(0x7777, b"what is this?"))),  # 420
        ends.udp(message(attribute(0x7777), attribute(0x7778))),
        ends.udp(message(attribute(0x8022, bytes(6000)))),  # longer than a block
    ]
    if ends.client.version == 4:
        odd.append(ends.udp(REQUEST, source=(ip_address(NOWHERE), 40000)))
    plain = [ends.udp(REQUEST), ends.udp(fingerprinted(REQUEST))]
    chance = random.Random(1)
    while True:
        yield chance.choice(plain if chance.randrange(100) < PLAIN else odd)


class Watch:
    """Scrapes all the time, and sees to it that no counter goes back; a context manager."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.scrapes = 0
        self.back: list[object] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        last = Series()
        while not self._end.wait(0.05):
            now = scrape(self._socket)
            self.back += [
                key for key, value in last.items() if key[0].endswith("_total") and now[key] < value
            ]
            last = now
            self.scrapes += 1


def settled(socket: str) -> Series:
    """Return what is told when nothing happens any more."""
    seen = [Series(), Series()]

    def is_quiet() -> bool:
        seen[:] = [seen[1], scrape(socket)]
        received = [each.total("pktstun_messages_received_total") for each in seen]
        threading.Event().wait(0.3)
        return received[0] == received[1]

    wait_until(is_quiet, "everything is read", 30)
    return seen[1]


def prepare(lab: Lab, hosts: TwoHosts) -> None:
    for each in ("all", hosts.server_if):
        hosts.server.write(f"/proc/sys/net/ipv4/conf/{each}/rp_filter", "0")
    for ns, ifname in ((hosts.server, hosts.server_if), (hosts.client, hosts.client_if)):
        lab.link_set(ns, ifname, mtu=9000)
    lab.link_set(hosts.server, hosts.server_if, flags=IFF_PROMISC, change=IFF_PROMISC)
    lab.address(hosts.server, "lo", "10.99.0.1/32", "fd99::1/128")


@pytest.mark.alone
@pytest.mark.parametrize(
    ("mode", "least"),
    [
        (["ring", "--block-size", "4096", "--blocks", "1024"], 20),
        (["direct", "--block-size", "4096", "--blocks", "1024"], 20),
        (["recvmmsg"], 12),
    ],
    ids=["ring", "direct", "recvmmsg"],
)
def test_received_is_answered_and_dropped(
    lab: Lab, hosts: TwoHosts, socket: str, mode: list[str], least: int
) -> None:
    require_root()
    prepare(lab, hosts)
    cpus = sorted(os.sched_getaffinity(0))
    arguments = ["--iface", hosts.server_if, "--mode", *mode, "--tcp", "--rate-limit", "5000"]
    arguments += ["--rate-limit-network", "100000", "--metrics", f"unix:{socket}"]
    with Server(hosts.server, arguments), raw_socket(hosts.client, hosts.client_if) as out:
        before = scrape(socket)
        mixed = [mixture(Ends.of(lab, hosts, ipv6=ipv6)) for ipv6 in (False, True)]
        pools = [list(itertools.islice(frames, 5000)) for frames in mixed]
        with Watch(socket) as watch:
            for cpu, pool in itertools.product(cpus, pools):
                with on_cpu(cpu):
                    for frame in itertools.islice(
                        itertools.cycle(pool), COUNT // (len(cpus) * len(pools))
                    ):
                        out.send(frame)
            with hosts.client.enter():
                client = StreamClient.connect((hosts.server_ipv4[0], 3478))
                for _ in range(50):
                    client.sock.sendall(Message.request().encode())
                client.sock.sendall(b"\x80 is no STUN")
                client.sock.close()
            after = settled(socket)
    assert watch.scrapes > 0
    assert watch.back == []
    assert after.misfits() == {}
    received = after.total("pktstun_messages_received_total")
    assert received > COUNT / 3
    dropped = "pktstun_messages_dropped_total"
    reasons = {dict(has)["reason"] for has, count in after.select(dropped).items() if count}
    assert len(reasons) >= least, reasons
    assert "rate_limited" in reasons
    # What could happen had a zero from the start.
    assert before.select(dropped).keys() == after.select(dropped).keys()
    assert before.keys() == after.keys()
    for number in range(len(cpus)):
        for family in ("ipv4", "ipv6"):
            labels = {"worker": str(number), "family": family}
            assert after.total("pktstun_messages_answered_total", **labels) > 0
    sizes = after.total("pktstun_receive_batch_messages_sum")
    assert sizes == received - after.total("pktstun_messages_received_total", worker="streams")
    sent = after.total("pktstun_send_batch_messages_sum")
    assert sent > 0
    assert after.total("pktstun_messages_answered_total", worker="streams") > 0
    exceeded = after.total("pktstun_rate_limit_exceeded_total", outcome="dropped")
    assert exceeded == after.total(dropped, reason="rate_limited")
