"""kill -9 of a worker: service goes on, and what was in its ring is answered."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.lab import require_root, wait_until
from tests.netns.client import ask, on_cpu
from tests.netns.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.alone]


@pytest.fixture(params=["ring", "direct", "recvmmsg"])
def server(request: pytest.FixtureRequest, hosts: TwoHosts) -> Iterator[Server]:
    require_root()
    with Server(hosts.server, ["--iface", hosts.server_if, "--mode", request.param]) as running:
        yield running


def new_worker(server: Server, number: int, old: int) -> None:
    wait_until(lambda: server.worker_pids().get(number) != old, "a new worker")


def test_what_waits_for_a_killed_worker_is_answered(hosts: TwoHosts, server: Server) -> None:
    """The worker is stopped, requests arrive, the worker is killed: its successor answers."""
    cpu = min(os.sched_getaffinity(0))
    pid = server.worker_pids()[0]
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, [pid, signal.SIGKILL]).start()
    with on_cpu(cpu):
        result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 100)
    assert (result.lost, result.duplicates, result.wrong) == (0, 0, [])
    new_worker(server, 0, pid)
    counters = server.stats()[0]
    assert counters["answered"] == 100
    assert counters["starts"] == 2


def test_service_goes_on_within_a_second(hosts: TwoHosts, server: Server) -> None:
    for number, pid in server.worker_pids().items():
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        with on_cpu(sorted(os.sched_getaffinity(0))[number]):
            result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 1)
        # `ask` listens on for late duplicates, so this bounds the reply from above.
        assert result.lost == 0
        assert time.monotonic() - killed < 1.3
        new_worker(server, number, pid)


def test_kills_under_load_lose_nothing_from_the_ring(hosts: TwoHosts, server: Server) -> None:
    """Kills at any moment: a duplicate may come of the batch in flight, a loss not."""
    ring = "mode=recvmmsg" not in server.ready
    kills = 0

    def kill_now_and_then(sent: int) -> None:
        nonlocal kills
        if sent % 2048 == 0 and kills < 8:
            number = kills % 2 % len(server.worker_pids())
            pid = server.worker_pids()[number]
            os.kill(pid, signal.SIGKILL)
            kills += 1
            new_worker(server, number, pid)

    result = ask(
        hosts.client,
        hosts.client_ipv4[0],
        hosts.server_ipv4[0],
        30_000,
        patience=3.0,
        each_window=kill_now_and_then,
    )
    assert kills == 8
    assert result.wrong == []
    if ring:
        assert result.lost == 0
    else:
        # What recvmmsg had handed to the process dies with it: the batch in flight.
        assert result.lost <= kills * 128
    assert result.duplicates <= kills * 128
