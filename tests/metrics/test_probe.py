"""A probe finds who answers, who does not, and who answers wrongly.

The servers here are threads with a UDP socket, since no worker of this service would do what they
do; a probe of a real service is in tests/netns/test_metrics.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from pktstun.metrics._probe import _STALLED_AFTER, Health, Prober, RingWatch
from pktstun.stats import SharedPage
from pktstun.stun import (
    AlternateServer,
    AttributeType,
    ErrorCode,
    Message,
    TransportAddress,
    UnknownAttributes,
    XorMappedAddress,
)
from tests.metrics.observing import observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pktstun.stun import Attribute

CPU = min(os.sched_getaffinity(0))


def right(request: Message, client: TransportAddress) -> bytes:
    return request.success(XorMappedAddress(client)).encode()


def another(request: Message, client: TransportAddress) -> bytes:
    return right(request, TransportAddress(client.ip, client.port ^ 1))


def refusal(code: int) -> Callable[[Message, TransportAddress], bytes]:
    more: dict[int, Attribute] = {
        300: AlternateServer(TransportAddress(ip_address("192.0.2.1"), 3478)),
        420: UnknownAttributes((AttributeType(0x7777),)),
    }
    attributes = [more[code]] if code in more else []
    return lambda request, _client: request.failure(ErrorCode.of(code), *attributes).encode()


def silence(_request: Message, _client: TransportAddress) -> bytes:
    return b""


def malformed(request: Message, client: TransportAddress) -> bytes:
    return right(request, client)[:-1]


def no_response(request: Message, _client: TransportAddress) -> bytes:
    return request.encode()


def second_time() -> Callable[[Message, TransportAddress], bytes]:
    seen: set[bytes] = set()

    def answer(request: Message, client: TransportAddress) -> bytes:
        known = request.transaction_id in seen
        seen.add(request.transaction_id)
        return right(request, client) if known else b""

    return answer


def chatter(request: Message, client: TransportAddress) -> bytes:
    """Answer somebody else first, which is nobody's."""
    return Message.request().success(XorMappedAddress(client)).encode() + request.encode()


class Server:
    """Answers as it is told; counts what it is asked."""

    def __init__(self, answer: Callable[[Message, TransportAddress], bytes], ip: str) -> None:
        self.requests = 0
        self._answer = answer
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_DGRAM)
        self._sock.bind((ip, 0))
        self.address = TransportAddress(ip_address(ip), self._sock.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            data, source = self._sock.recvfrom(2048)
            if not data:
                return
            self.requests += 1
            client = TransportAddress.from_sockaddr(source)
            reply = self._answer(Message.decode(data), client)
            if reply:
                self._sock.sendto(reply, source)

    def close(self) -> None:
        self._sock.sendto(b"", (str(self.address.ip), self.address.port))
        self._thread.join()
        self._sock.close()


@contextmanager
def served(
    *answers: Callable[[Message, TransportAddress], bytes],
    ip: str = "127.0.0.1",
    codes: frozenset[int] = frozenset(),
    alive: bool = True,
) -> Iterator[tuple[list[Server], Callable[[int], list[Health]]]]:
    """Yield servers, and what probes them so many times at once."""
    servers = [Server(answer, ip) for answer in answers]
    with SharedPage(2) as page:
        if alive:
            page.slots[0].begin(1)
            page.slots[0].turn()
        observed = observe(
            page,
            "recvmmsg",
            endpoints=tuple(server.address for server in servers),
            cpus=(CPU,),
            error_codes=codes,
            streams=False,
        )
        loop = asyncio.new_event_loop()
        prober = Prober(observed, loop)

        async def together(count: int) -> list[Health]:
            return await asyncio.gather(*(prober.health() for _ in range(count)))

        try:
            yield servers, lambda count: loop.run_until_complete(together(count))
        finally:
            prober.close()
            loop.close()
            for server in servers:
                server.close()


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.0.0.9", "::1"])
def test_a_right_answer(ip: str) -> None:
    home = os.sched_getaffinity(0)
    with served(right, right, ip=ip) as (servers, probe):
        (health,) = probe(1)
    assert health.is_good, health
    latency = health.latencies["0"]
    assert latency is not None
    assert 0 < latency < 0.6
    assert [server.requests for server in servers] == [1, 1]
    assert os.sched_getaffinity(0) == home


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (silence, "no answer within 0.6 s"),
        (another, "it takes 127.0.0.1:"),
        (malformed, "its answer is malformed"),
        (no_response, "it takes 127.0.0.1:"),
        (refusal(420), "it answers with error 420 Unknown Attribute"),
        (refusal(401), "it answers with error 401"),
    ],
)
def test_what_is_wrong_is_told(
    answer: Callable[[Message, TransportAddress], bytes], complaint: str
) -> None:
    with served(right, answer) as (servers, probe):
        (health,) = probe(1)
    assert health.latencies == {"0": None}
    (failure,) = health.failures
    assert failure.startswith(f"worker 0: {servers[1].address}: {complaint}")


@pytest.mark.parametrize("code", [300, 400, 401])
def test_an_error_that_is_due_is_an_answer(code: int) -> None:
    with served(refusal(code), codes=frozenset({code})) as (_, probe):
        (health,) = probe(1)
    assert health.is_good, health


def test_a_lost_request_is_sent_again() -> None:
    with served(second_time()) as (servers, probe):
        (health,) = probe(1)
    assert health.is_good, health
    assert servers[0].requests == 2
    latency = health.latencies["0"]
    assert latency is not None
    assert latency >= 0.2


def test_what_answers_somebody_else_is_no_answer() -> None:
    with served(chatter) as (_, probe):
        (health,) = probe(1)
    assert not health.is_good


def test_many_who_ask_cost_one_probe_a_second() -> None:
    with served(right) as (servers, probe):
        assert len({id(health) for health in probe(50)}) == 1
        probe(1)
        assert servers[0].requests == 1


def test_an_address_that_is_gone_is_told() -> None:
    gone = TransportAddress(ip_address("192.0.2.1"), 3478)
    with SharedPage(2) as page:
        loop = asyncio.new_event_loop()
        observed = observe(page, "recvmmsg", endpoints=(gone,), cpus=(CPU,), streams=False)
        with Prober(observed, loop) as prober:
            health = loop.run_until_complete(prober.health())
        loop.close()
    assert any("192.0.2.1:3478 cannot be asked" in failure for failure in health.failures)


def test_a_worker_without_a_process_is_told_though_another_answers() -> None:
    with served(right, alive=False) as (_, probe):
        (health,) = probe(1)
    assert health.failures == ("worker 0 is not running",)


def test_a_cpu_that_cannot_be_used_is_told() -> None:
    with SharedPage(2) as page:
        loop = asyncio.new_event_loop()
        home = os.sched_getaffinity(0)
        here = TransportAddress(ip_address("127.0.0.1"), 9)
        observed = observe(page, "recvmmsg", endpoints=(here,), cpus=(1023,), streams=False)
        with Prober(observed, loop) as prober:
            health = loop.run_until_complete(prober.health())
        loop.close()
    assert "worker 0: 127.0.0.1:9: cannot be asked: Invalid argument" in health.failures
    assert os.sched_getaffinity(0) == home


# --- Rings ---


def looked(*steps: tuple[int, int]) -> list[str]:
    """Return who is stalled after looks, between which so many packets and blocks were counted."""
    with SharedPage(2) as page:
        watch = RingWatch(observe(page, "ring", streams=False))
        watch.look()
        for packets, blocks in steps:
            page.slots[0].pointer.ring_packets += packets
            page.slots[0].pointer.ring_blocks += blocks
            watch.look()
        return watch.stalled()


def test_a_ring_that_fills_and_is_not_read_is_stalled() -> None:
    assert looked(*[(5, 0)] * _STALLED_AFTER) == ["0"]


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [(0, 0)] * 10,
        [(0, 1), (5, 0)] * 5,  # packets are counted after their block
        [(5, 1)] * 10,
        [(5, 0)] * (_STALLED_AFTER - 1),
        [(5, 0)] * _STALLED_AFTER + [(0, 1)],
    ],
)
def test_other_rings_are_not(steps: list[tuple[int, int]]) -> None:
    assert looked(*steps) == []
