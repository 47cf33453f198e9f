"""What goes out is hardly more than what comes in, measured on the wire.

A bare request of 20 bytes gets 32 over IPv4 and 44 over IPv6; no other request gets a reply that
has more than those 12 or 24 bytes above it, and none gets two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pktstun.stun import Message
from tests.lab import require_root
from tests.netns.server import Server
from tests.netns.wire import Ends, Seen, Wire
from tests.strategies.datagrams import datagrams, refused_attributes, requests, valid_requests
from tests.strategies.datagrams import message as message_of

if TYPE_CHECKING:
    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.root

MODES = ["ring", "direct", "recvmmsg"]
FIRST_PORT = 10000
LONGEST = 1400  # bytes of a request: fits in a frame

# What comes before the payload: Ethernet, IP, UDP.
HEADERS = {4: 14 + 20 + 8, 6: 14 + 40 + 8}
GAIN = {4: 12, 6: 24}

# Half of them are answered, some by Python.
PAYLOADS = st.one_of(
    valid_requests(),
    requests(),
    datagrams(),
    st.lists(refused_attributes, min_size=1, max_size=8).map(lambda each: message_of(*each)),
).filter(lambda data: len(data) <= LONGEST)


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("mode", MODES)
def test_a_bare_request(lab: Lab, hosts: TwoHosts, mode: str, *, ipv6: bool) -> None:
    require_root()
    ends = Ends.of(lab, hosts, ipv6=ipv6)
    version = ends.client.version
    request = ends.udp(Message.request().encode())
    assert len(request) == HEADERS[version] + 20
    arguments = ["--iface", hosts.server_if, "--mode", mode]
    with Server(hosts.server, arguments), Wire(hosts.client, hosts.client_if) as wire:
        wire.send(request)
        (reply,) = wire.until_answered(ends)
        assert wire.datagrams(quiet=0.2) == []
    length = {4: 32, 6: 44}[version]
    assert (len(reply.payload), len(reply.frame)) == (length, HEADERS[version] + length)


def check_replies(asked: list[bytes], replies: list[Seen], gain: int) -> None:
    """Each reply belongs to a request of its own, and is not much longer."""
    by_request = [asked[reply.destination[1] - FIRST_PORT] for reply in replies]
    assert len({reply.destination for reply in replies}) == len(replies)
    for reply, request in zip(replies, by_request, strict=True):
        assert reply.payload[4:20] == request[4:20]
        assert len(reply.payload) <= len(request) + gain


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("mode", MODES)
def test_no_request_gets_more(lab: Lab, hosts: TwoHosts, mode: str, *, ipv6: bool) -> None:
    require_root()
    ends = Ends.of(lab, hosts, ipv6=ipv6)
    gain = GAIN[ends.client.version]
    sent = answered = 0

    arguments = ["--iface", hosts.server_if, "--mode", mode]
    with Server(hosts.server, arguments) as server, Wire(hosts.client, hosts.client_if) as wire:

        @settings(
            max_examples=max(10, settings().max_examples // 4),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(PAYLOADS, min_size=5, max_size=30))
        def check(asked: list[bytes]) -> None:
            nonlocal sent, answered
            for number, payload in enumerate(asked):
                wire.send(ends.udp(payload, source=(ends.client, FIRST_PORT + number)))
            # What takes Python is answered behind what came with it, and before what comes next.
            replies = wire.until_answered(ends) + wire.until_answered(ends)
            check_replies(asked, replies, gain)
            sent += len(asked) + 2
            answered += len(replies) + 2

        check()
        assert wire.datagrams(quiet=0.2) == []
        totals = server.totals()
        assert totals["sent"] == answered
        assert totals["received"] == sent
    assert sent / 4 < answered < sent
