"""SIGHUP: another configuration, without a lost request; a bad one changes nothing."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.load import Load
from tests.faults.scorecard import modes, record, times
from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.faults]

REPLACED = "every worker has been replaced"
REFUSED = "reload refused"
BAD = [
    'iface = "nowhere"',
    "port = 70000",
    'mode = "telepathy"',
    "no TOML",
    'listen = ["192.0.2.7"]',
    'nonsense = "x"',
    "[table]",
]


def reload(server: Server, done: str) -> None:
    seen = server.log.count(done)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.count(done) > seen, done, 15)


def configuration(hosts: TwoHosts, mode: str, *more: str) -> str:
    return "\n".join([f'iface = "{hosts.server_if}"', f'mode = "{mode}"', *more, ""])


@pytest.mark.alone
@pytest.mark.parametrize("mode", modes("ring", "direct", "recvmmsg"))
def test_reloads_lose_nothing(spread: TwoHosts, tmp_path: Path, mode: str) -> None:
    count = times(6, 100)
    file = tmp_path / "pktstun.toml"
    good = [
        configuration(spread, mode),
        configuration(spread, mode, 'software = "another"', "batch = 64"),
        configuration(spread, mode, 'listen = ["10.77.0.1"]', "batch = 16"),
    ]
    file.write_text(good[0])
    with Server(spread.server, ["--config", str(file)]) as server, Load(spread) as load:
        time.sleep(0.2)
        for number in range(count):
            if number % 2:
                file.write_text(BAD[number // 2 % len(BAD)])
                reload(server, REFUSED)
            else:
                file.write_text(good[number // 2 % len(good)])
                reload(server, REPLACED)
        result = load.result()
        drops = load.backlog_drops + result.send_errors
    record(
        7,
        mode,
        f"{count} reloads, half of them bad",
        "no request lost, none answered twice",
        f"{result.lost} of {result.sent:,} lost, {result.duplicates} twice",
    )
    assert result.lost <= drops
    assert (result.duplicates, result.wrong) == (0, {})


def test_a_reload_does_what_the_file_says(hosts: TwoHosts, tmp_path: Path) -> None:
    require_root()
    file = tmp_path / "pktstun.toml"
    file.write_text(configuration(hosts, "ring"))
    client, address = hosts.client_ipv4[0], hosts.server_ipv4[0]
    with Server(hosts.server, ["--config", str(file)]) as server:
        assert ask(hosts.client, client, address, 1).lost == 0
        file.write_text(configuration(hosts, "ring", "port = 4000"))
        reload(server, REPLACED)
        assert ask(hosts.client, client, f"{address}:4000", 50).lost == 0
        # Nobody has the old port any more, so the kernel refuses what comes to it.
        refused = hosts.server.snmp()["Udp"]["NoPorts"]
        assert ask(hosts.client, client, address, 1, patience=0.2).lost == 1
        assert hosts.server.snmp()["Udp"]["NoPorts"] > refused
        file.write_text(configuration(hosts, "ring", f'listen = ["{hosts.server_ipv4[1]}"]'))
        reload(server, REPLACED)
        assert ask(hosts.client, client, hosts.server_ipv4[1], 50).lost == 0
        assert ask(hosts.client, client, address, 1, patience=0.2).lost == 1
        file.write_text(configuration(hosts, "ring", "[]"))
        reload(server, REFUSED)
        assert ask(hosts.client, client, hosts.server_ipv4[1], 1).lost == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ('mode = "direct"', "--mode cannot change"),
        ("blocks = 64", "--block-size, --blocks or --retire-timeout cannot change"),
        ('cpus = "0"\nmode = "recvmmsg"', "--mode cannot change"),
    ],
)
def test_what_cannot_change_says_so(
    hosts: TwoHosts, tmp_path: Path, change: str, complaint: str
) -> None:
    require_root()
    file = tmp_path / "pktstun.toml"
    file.write_text(f'iface = "{hosts.server_if}"\n')
    with Server(hosts.server, ["--config", str(file)]) as server:
        file.write_text(f'iface = "{hosts.server_if}"\n{change}\n')
        reload(server, REFUSED)
        assert complaint in server.log
        assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 1).lost == 0


def test_an_address_that_is_gone_can_be_left_out(hosts: TwoHosts, tmp_path: Path) -> None:
    require_root()
    file = tmp_path / "pktstun.toml"
    first, second = hosts.server_ipv4[1], hosts.server_ipv4[2]
    file.write_text(configuration(hosts, "ring", f'listen = ["{first}"]'))
    with Server(hosts.server, ["--config", str(file)]) as server:
        with hosts.server.iproute() as ipr:
            (index,) = ipr.link_lookup(ifname=hosts.server_if)
            ipr.addr("del", index=index, address=first, prefixlen=24)
        wait_until(lambda: REPLACED in server.log, "the change")
        file.write_text(configuration(hosts, "ring", f'listen = ["{second}"]'))
        reload(server, REPLACED)
        assert ask(hosts.client, hosts.client_ipv4[0], second, 10).lost == 0


def test_a_log_that_cannot_be_written_ends_nothing(hosts: TwoHosts) -> None:
    """Standard error is a full disk: the workers are replaced all the same."""
    require_root()
    with Server(
        hosts.server,
        ["--iface", hosts.server_if],
        under=["sh", "-c", 'exec "$@" 2>/dev/full', "sh"],
    ) as server:
        for _ in range(2):
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 10)
            assert result.lost == 0
        assert server.process.poll() is None


@pytest.mark.alone
def test_back_and_forth_at_once(hosts: TwoHosts, tmp_path: Path) -> None:
    """A change that is taken back while workers are still being replaced for it."""
    require_root()
    file = tmp_path / "pktstun.toml"
    listens = [f'listen = ["{ip}"]' for ip in hosts.server_ipv4[:2]]
    file.write_text(configuration(hosts, "recvmmsg", listens[0]))
    with Server(hosts.server, ["--config", str(file)]) as server:
        for number in range(1, 6):
            # In one step: the service may be reading it.
            new = tmp_path / "new.toml"
            new.write_text(configuration(hosts, "recvmmsg", listens[number % 2]))
            new.replace(file)
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.02 * number)
        reload(server, REPLACED)
        assert ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[1], 10).lost == 0
        assert REFUSED not in server.log
