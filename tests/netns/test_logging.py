"""What a real service writes to its log."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.stun import Message
from tests.lab import require_root, wait_until
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import Lab, Namespace

pytestmark = pytest.mark.root

SERVE = ["--mode", "recvmmsg", "--listen", "127.0.0.1", "--cpus", "0"]


@pytest.fixture(name="namespace")
def namespace_fixture(lab: Lab) -> Namespace:
    require_root()
    namespace = lab.namespace("logging")
    lab.link_set(namespace, "lo", state="up")
    return namespace


def worker(server: Server) -> int:
    """Return the process id of the only worker, by asking the kernel."""
    found: list[str] = []

    def is_there() -> bool:
        pid = server.process.pid
        found[:] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return bool(found)

    wait_until(is_there, "a worker")
    return int(found[0])


def test_everything_is_json(namespace: Namespace) -> None:
    with Server(namespace, [*SERVE, "--log-format", "json"]) as server:
        ready = json.loads(server.ready)
        pid = worker(server)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.log.count("started on CPU") == 2, "another one")
        server.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "received=" in server.log, "the counters")
        assert server.stop() == 0
    assert ready["level"] == "info"
    assert " ready: mode=recvmmsg " in ready["message"]
    lines = [json.loads(line) for line in server.lines]
    (ended,) = [each for each in lines if "ended with SIGKILL" in each["message"]]
    assert (ended["level"], ended["worker"]) == ("warning", 0)
    assert {each["pid"] for each in lines} == {server.process.pid}


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("journal", r"<3>pktstun: .*192\.0\.2\.1"),
        ("json", r'"level": "error", "message": "pktstun: .*192\.0\.2\.1'),
    ],
)
def test_a_start_that_fails_is_said_in_the_format(
    namespace: Namespace, form: str, line: str
) -> None:
    arguments = ["--mode", "recvmmsg", "--listen", "192.0.2.1", "--log-format", form]
    with pytest.raises(AssertionError, match=line), Server(namespace, arguments):
        pass


def test_a_worker_that_dies_again_and_again_is_a_line_with_a_count(namespace: Namespace) -> None:
    with Server(namespace, SERVE, log_interval=60) as server:
        for _ in range(8):
            time.sleep(0.3)  # else it is a death without a life, after which there is a pause
            pid = worker(server)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: worker(server) != pid, "a new worker")  # noqa: B023
        time.sleep(0.3)
        assert server.log.count("ended with SIGKILL") == 5
        assert server.stop() == 0
    assert server.log.count("ended with SIGKILL") == 6
    assert "ended with SIGKILL (3 more times in the last " in server.log


def test_a_reload_changes_level_and_format(namespace: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "pktstun.toml"
    file.write_text("")
    with Server(namespace, [*SERVE, "--config", str(file)]) as server:
        assert all(" INFO " in line or " WARNING " in line for line in server.lines)
        file.write_text('log-format = "json"\n')
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: '"message": "every worker has been replaced"' in server.log, "it")
        pid = worker(server)
        file.write_text('log-level = "error"\n')
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: worker(server) != pid, "the change")
        last = len(server.lines)
        file.write_text("port = 0\n")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload refused" in server.log, "the refusal")
        told = [line for line in server.lines[last:] if " INFO " in line]
        assert told == []


def test_the_rate_limit_at_work_is_told_of(namespace: Namespace) -> None:
    with (
        Server(namespace, [*SERVE, "--rate-limit", "1", "--log-interval", "60"]) as server,
        namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.connect(("127.0.0.1", 3478))
        for _ in range(50):
            client.send(Message.request().encode())
        begun = "requests came from sources above --rate-limit (worker 0): "
        wait_until(lambda: begun in server.log, "the line")
        for _ in range(50):
            client.send(Message.request().encode())
        time.sleep(1.5)
        assert server.log.count("above --rate-limit") == 1
