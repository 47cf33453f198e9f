"""Ends of the service: in good order, at once, by a failed boot, by the supervisor's death."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import TwoHosts

pytestmark = pytest.mark.root


@pytest.fixture(params=["ring", "direct", "recvmmsg"])
def arguments(request: pytest.FixtureRequest, hosts: TwoHosts) -> list[str]:
    require_root()
    return ["--iface", hosts.server_if, "--mode", request.param]


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it ends this very moment
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_stop(hosts: TwoHosts, arguments: list[str], number: signal.Signals) -> None:
    with Server(hosts.server, arguments) as server:
        pids, before = server.worker_pids().values(), len(server.log)
        server.process.send_signal(number)
        assert server.process.wait(5) == 0
        assert not any(exists(pid) for pid in pids)
        assert "WARNING" not in server.log[before:]
        assert "ERROR" not in server.log


@pytest.mark.alone
def test_what_has_arrived_is_answered_before_the_end(hosts: TwoHosts, arguments: list[str]) -> None:
    """Workers are stopped, requests arrive, the service is told to stop, workers go on."""
    with Server(hosts.server, arguments) as server:
        pids = list(server.worker_pids().values())
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

        def stop_and_go_on(_sent: int) -> None:
            server.process.terminate()
            wait_until(lambda: "SIGTERM received" in server.log, "the stop")
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

        result = ask(
            hosts.client,
            hosts.client_ipv4[0],
            hosts.server_ipv4[0],
            100,
            each_window=stop_and_go_on,
        )
        assert server.process.wait(5) == 0
        assert (result.lost, result.duplicates) == (0, 0)


@pytest.mark.alone
def test_a_stop_under_load_comes_to_an_end(hosts: TwoHosts, arguments: list[str]) -> None:
    with Server(hosts.server, arguments) as server:
        threading.Timer(0.3, server.process.terminate).start()
        began = time.monotonic()
        while server.process.poll() is None and time.monotonic() - began < 8:
            ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 128, patience=0.05)
        assert server.process.wait(1) == 0


@pytest.mark.alone
def test_a_second_signal_ends_it_at_once(hosts: TwoHosts, arguments: list[str]) -> None:
    with Server(hosts.server, arguments) as server:
        pids = list(server.worker_pids().values())
        os.kill(pids[0], signal.SIGSTOP)  # so that good order cannot be had
        server.process.terminate()
        wait_until(lambda: "SIGTERM received" in server.log, "the first signal")
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(5) == 1
        assert time.monotonic() - began < 1
        assert not any(exists(pid) for pid in pids)


def test_no_orphan_outlives_the_supervisor(hosts: TwoHosts, arguments: list[str]) -> None:
    with Server(hosts.server, arguments) as server:
        pids = list(server.worker_pids().values())
        server.process.kill()
        server.process.wait(5)
        wait_until(lambda: not any(exists(pid) for pid in pids), "the workers' end")
        # And the port and the fanout group are free again at once.
        with Server(hosts.server, arguments) as successor:
            assert "ready" in successor.ready
            assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 10).lost == 0


def test_a_signal_while_workers_start_counts_once(hosts: TwoHosts, arguments: list[str]) -> None:
    """A terminal's Ctrl-C reaches workers too, also in the moment after their birth."""
    for _ in range(8):
        command = [sys.executable, "-m", "pktstun", "serve", *arguments]
        with hosts.server.popen(command, start_new_session=True) as process:
            assert process.stderr is not None
            log = ""
            while "worker 0 started" not in log:
                line = process.stderr.readline()
                assert line, log
                log += line
            os.killpg(process.pid, signal.SIGINT)
            log += process.communicate(timeout=10)[1]
        assert log.count("received") - log.count("received=") == 1, log
        assert "SIGKILL" not in log
        assert process.returncode == 0, log
