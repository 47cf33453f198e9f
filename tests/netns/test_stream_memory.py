"""Ten thousand idle connections cost the stream worker no more than 200 MiB.

The short form has fewer, and reckons from what each of them costs:
PKTSTUN_STREAM_CONNECTIONS=10000 is the full one.
"""

from __future__ import annotations

import logging
import os
import re
import resource
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import require_root
from tests.netns.server import Server
from tests.netns.test_streams import connect, counters, stream_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import TwoHosts
    from tests.stream_client import Authority

pytestmark = [pytest.mark.root, pytest.mark.alone]

MIB = 1 << 20
PROMISED = 10_000
CONNECTIONS = int(os.environ.get("PKTSTUN_STREAM_CONNECTIONS", "600"))


@pytest.fixture(name="_descriptors")
def descriptors_fixture() -> Iterator[None]:
    """As many as it takes at the clients' end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, before[0]), max(wanted, before[1])))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def resident(pid: int) -> int:
    """Bytes of memory that a process has, shared ones included (proc(5))."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.usefixtures("_descriptors")
@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.timeout(120 + CONNECTIONS // 20)
def test_idle_connections(hosts: TwoHosts, authority: Authority, transport: str) -> None:
    require_root()
    context = authority.context() if transport == "tls" else None
    arguments = [
        *("--tcp", *authority.arguments, "--stream-connections", str(max(CONNECTIONS, PROMISED))),
        *("--stream-connections-per-source", str(CONNECTIONS + 10)),
    ]
    with Server(hosts.server, arguments) as server, ExitStack() as clients:
        pid = stream_worker(server)
        # What is allocated once.
        for _ in range(10):
            with connect(hosts, tls=context) as client:
                client.ask()
        before = resident(pid)
        for _ in range(CONNECTIONS):
            client = clients.enter_context(connect(hosts, tls=context))
            client.ask()
        after = resident(pid)
        words = f"{transport}: {before / MIB:.1f} MiB, {after / MIB:.1f} MiB with {CONNECTIONS}"
        logging.getLogger(__name__).info(words)
        found = counters(server)
        assert found["answered"] == 10 + CONNECTIONS
        assert "connections_timed_out" not in found
    assert before + (after - before) / CONNECTIONS * PROMISED < 200 * MIB
