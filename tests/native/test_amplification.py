"""No reply is longer than the protocol makes it, so the server is of no use as an amplifier.

A reply has at most 12 bytes more than its request over IPv4, 24 over IPv6: that is
XOR-MAPPED-ADDRESS. It holds for both, `respond()` and C, in the default configuration.

With PKTSTUN_NIGHTLY=1 a million requests are tried.
"""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pktstun.engine import native_options
from pktstun.kernel._ffi import ffi, lib
from pktstun.stats import VERDICTS
from pktstun.stun import Reply, ResponderOptions, TransportAddress, respond
from tests.native.test_differential import native_address
from tests.strategies.datagrams import datagrams, unknown_attributes, valid_requests

pytestmark = pytest.mark.native

NIGHTLY = os.environ.get("PKTSTUN_NIGHTLY") == "1"
MANY = settings(
    max_examples=1_000_000 if NIGHTLY else 20 * settings().max_examples,
    # What is found is small as it is, and a million examples are not for keeping.
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

OPTIONS = ResponderOptions()
NATIVE_OPTIONS = native_options(OPTIONS)
SERVERS = {
    4: TransportAddress(ip_address("198.51.100.7"), 3478),
    6: TransportAddress(ip_address("2001:db8::7"), 3478),
}
CLIENTS = [
    TransportAddress(ip_address("192.0.2.1"), 40000),
    TransportAddress(ip_address("2001:db8::1"), 1),
]


def bound(client: TransportAddress) -> int:
    """How much longer than its request a reply may be."""
    return 12 if client.ip.version == 4 else 24


def length_in_c(datagram: bytes, client: TransportAddress) -> int:
    """The length of the reply that C writes, 0 for none."""
    reply, size = ffi.new("uint8_t[]", lib.PKTSTUN_MAX_REPLY), ffi.new("size_t *")
    server = SERVERS[client.ip.version]
    verdict = lib.pktstun_answer(
        datagram,
        len(datagram),
        native_address(client),
        native_address(server),
        NATIVE_OPTIONS,
        reply,
        size,
    )
    return int(size[0]) if verdict == VERDICTS["success"] else 0


def length_in_python(datagram: bytes, client: TransportAddress) -> int:
    answer = respond(datagram, client, SERVERS[client.ip.version], OPTIONS)
    return len(answer.datagram) if isinstance(answer, Reply) else 0


def refused() -> st.SearchStrategy[bytes]:
    """Requests with many unknown attributes, which the error response lists."""
    return st.lists(unknown_attributes, min_size=1, max_size=60).map(
        lambda attributes: _request(b"".join(attributes))
    )


def _request(body: bytes) -> bytes:
    return b"\x00\x01" + len(body).to_bytes(2) + b"\x21\x12\xa4\x42" + bytes(12) + body


@pytest.mark.timeout(4 * 3600 if NIGHTLY else 300)
@MANY
@given(datagram=datagrams() | valid_requests() | refused(), client=st.sampled_from(CLIENTS))
def test_no_reply_is_longer_than_that(datagram: bytes, client: TransportAddress) -> None:
    lengths = length_in_python(datagram, client), length_in_c(datagram, client)
    assert max(lengths) <= len(datagram) + bound(client)


@pytest.mark.parametrize(("client", "length"), [(CLIENTS[0], 32), (CLIENTS[1], 44)])
def test_a_bare_request_gets_the_shortest_reply_there_is(
    client: TransportAddress, length: int
) -> None:
    request = _request(b"")
    assert length_in_python(request, client) == length_in_c(request, client) == length
