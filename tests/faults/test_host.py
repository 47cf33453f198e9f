"""What the host does to a service: the clock is set, memory and descriptors are short."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.load import Load
from tests.faults.scorecard import FULL, record, times
from tests.lab import require_root
from tests.netns.client import ask
from tests.netns.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.faults]

HOUR = 3600.0


@pytest.mark.parametrize("mode", ["ring", "recvmmsg"])
def check_the_clock(spread: TwoHosts, mode: str) -> None:
    with Server(spread.server, ["--iface", spread.server_if, "--mode", mode]) as server:
        pids = server.worker_pids()
        with Load(spread) as load:
            time.sleep(0.5)
            try:
                for step in (HOUR, -HOUR, -HOUR, HOUR):
                    set_clock(step)
                    time.sleep(1.0)
            finally:
                result = load.result()
            drops = load.backlog_drops + result.send_errors
        assert server.worker_pids() == pids
    record(
        14,
        mode,
        "the clock set an hour forth, back, back and forth",
        "no effect",
        f"{result.lost} of {result.sent:,} lost, no worker replaced",
    )
    assert result.lost <= drops
    assert (result.duplicates, result.wrong) == (0, {})


if FULL:  # it is the clock of the whole host
    test_the_clock_is_set = check_the_clock


def set_clock(seconds: float) -> None:
    """Set the clock so much forth; the time it takes is no matter."""
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + seconds)


_NO_MEMORY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <linux/if_packet.h>

int setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
    static int (*real)(int, int, int, const void *, socklen_t);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "setsockopt");
    if (level == SOL_PACKET && option == PACKET_RX_RING
        && ((const struct tpacket_req3 *)value)->tp_block_nr > (unsigned)atoi(getenv("BLOCKS"))) {
        errno = ENOMEM;
        return -1;
    }
    return real(fd, level, option, value, size);
}
"""


@pytest.fixture(name="shim", scope="module")
def shim_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with which rings of more than $BLOCKS blocks find no memory."""
    require_root()
    directory = tmp_path_factory.mktemp("shim")
    source, library = directory / "memory.c", directory / "memory.so"
    source.write_text(_NO_MEMORY)
    compiler = str(sysconfig.get_config_var("CC")).split()
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True
    )
    return library


def test_a_smaller_ring_where_memory_is_short(hosts: TwoHosts, shim: Path) -> None:
    under = ["env", f"LD_PRELOAD={shim}", "BLOCKS=100"]
    with Server(hosts.server, ["--iface", hosts.server_if], under=under) as server:
        warned = "no memory for rings of 256 blocks: they have 64" in server.log
        result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 1000)
    record(
        15,
        "ring",
        "ENOMEM for the ring",
        "a smaller ring with a warning",
        f"64 blocks, {'a' if warned else 'NO'} warning; {result.lost} of 1000 lost",
    )
    assert warned
    assert result.lost == 0


def refused(hosts: TwoHosts, command: list[str]) -> str:
    """Run a server that must not start; return what it says."""
    serve = [sys.executable, "-m", "pktstun", "serve", "--iface", hosts.server_if]
    done = hosts.server.run([*command, *serve], check=False)
    assert done.returncode not in {0, -11}, done.stderr
    assert " ready: " not in done.stdout
    assert "Traceback" not in done.stderr
    return str(done.stderr)


def test_no_ring_at_all_is_an_error(hosts: TwoHosts, shim: Path) -> None:
    said = refused(hosts, ["env", f"LD_PRELOAD={shim}", "BLOCKS=1"])
    record(15, "ring", "ENOMEM for any ring", "a clear error", said.strip().splitlines()[-1])
    assert "no memory for" in said


def test_too_few_descriptors_are_an_error(hosts: TwoHosts) -> None:
    """At whatever point they run out: the service starts, or it says what is missing."""
    started = 0
    outcomes = set()
    limits = range(8, 32, times(4, 1))
    for limit in limits:
        command = ["prlimit", f"--nofile={limit}"]
        serve = [sys.executable, "-m", "pktstun", "serve", "--iface", hosts.server_if]
        with hosts.server.popen([*command, *serve]) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            if " ready: " in process.stdout.readline():
                started += 1
                assert (
                    ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 1, linger=0).lost
                    == 0
                )
                process.terminate()
            said = process.stderr.read()
            status = process.wait(10)
        outcomes.add(status)
        assert "Traceback" not in said or limit < 12, (limit, said)
        assert status == 0 or "open files" in said, (limit, said)
    record(
        15,
        "ring",
        "limits of 8 to 31 descriptors",
        "a clear error, or service",
        f"{started} times service, {len(limits) - started} times an error that names the limit",
    )
    assert started > 0
    assert outcomes - {0}


def test_no_locked_memory(hosts: TwoHosts) -> None:
    under = ["prlimit", "--memlock=0"]
    with Server(hosts.server, ["--iface", hosts.server_if], under=under):
        result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], 1000)
    record(
        15, "ring", "a memlock limit of 0", "service, or an error", f"{result.lost} of 1000 lost"
    )
    assert result.lost == 0
