"""Reloads: the log says of a wrong file what a start says; and the other sources, for real."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import TwoHosts

pytestmark = pytest.mark.root

REFUSED = "reload refused, the service goes on as before: "


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


def test_a_reload_names_the_line(hosts: TwoHosts, tmp_path: Path) -> None:
    file = tmp_path / "pktstun.toml"
    first = f'iface = "{hosts.server_if}"\n'
    file.write_text(first)
    with Server(hosts.server, ["--config", str(file)]) as server:
        for number, (more, complaint) in enumerate(
            [
                ("prot = 1\n", "there is no option 'prot': did you mean port?"),
                ("port = 0\n", "--port 0 is not in 1..65535"),
                ("rate-limit-share = 5\n", "--rate-limit-share is of use with --rate-limit only"),
                ('mode = "recvmmsg"\n', "--mode cannot change while the service runs: "),
                ('listen = ["192.0.2.9"]\n', "192.0.2.9 is no address of this host "),
            ],
            start=1,
        ):
            file.write_text(first + more)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda n=number: server.log.count(REFUSED) == n, "the refusal")  # type: ignore[misc]
            assert f"{REFUSED}{file}:2: {complaint}" in server.log
        result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 10)
        assert result.lost == 0


def test_a_start_names_the_line_of_what_the_kernel_refuses(hosts: TwoHosts, tmp_path: Path) -> None:
    file = tmp_path / "pktstun.toml"
    file.write_text(f'iface = "{hosts.server_if}"\n# not here\nlisten = ["192.0.2.9"]\n')
    command = [sys.executable, "-m", "pktstun", "serve", "--config", str(file)]
    result = hosts.server.run(command, timeout=20)
    assert result.returncode == 75
    assert result.stderr.startswith(f"pktstun: {file}:3: 192.0.2.9 is no address of this host")


def test_the_environment_alone_is_enough(hosts: TwoHosts) -> None:
    """As in a container: no argument, no file."""
    environment = {
        **os.environ,
        "PKTSTUN_SERVE_IFACE": hosts.server_if,
        "PKTSTUN_SERVE_LISTEN": f"{hosts.server_ipv4[0]},{hosts.server_ipv6[0]}",
        "PKTSTUN_SERVE_MODE": "recvmmsg",
        # What Kubernetes sets for a service called pktstun.
        "PKTSTUN_PORT": "tcp://10.0.0.1:3478",
    }
    command = [sys.executable, "-m", "pktstun", "serve"]
    process = hosts.server.popen(command, env=environment)
    with process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert f"serving={hosts.server_ipv4[0]}:3478,[{hosts.server_ipv6[0]}]:3478" in ready
        process.terminate()
        assert process.wait(10) == 0
