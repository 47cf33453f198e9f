"""A soak: load and a kill every second, for a long time; nothing grows and no reply is wrong."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.load import Load
from tests.faults.scorecard import modes, record, times
from tests.faults.test_kills import new_worker
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.faults, pytest.mark.alone]

SLICE = 30.0
GROWTH = 1024  # KiB


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", modes("ring", "direct", "recvmmsg", short=["direct"]))
def test_soak(spread: TwoHosts, mode: str) -> None:
    # The full run gives the mode that is the default all the time, and the others a share.
    seconds = times(4, 1200 if mode == "ring" else 120)
    chance = random.Random(7)
    sent = lost = duplicates = kills = drops = 0
    memory, descriptors = [], []
    wrong: dict[str, int] = {}
    arguments = ["--iface", spread.server_if, "--mode", mode]
    with Server(spread.server, arguments) as server:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with Load(spread) as load:
                until = time.monotonic() + min(SLICE, left)
                while time.monotonic() < until:
                    time.sleep(1.0)
                    number = chance.choice(sorted(server.worker_pids()))
                    pid = server.worker_pids()[number]
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
                    new_worker(server, number, pid)
                result = load.result()
                drops += load.backlog_drops + result.send_errors
            sent, lost = sent + result.sent, lost + result.lost
            duplicates += result.duplicates
            wrong |= result.wrong
            memory.append(private_memory(server.process.pid))
            descriptors.append(len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())))
    record(
        16,
        mode,
        f"a soak of {seconds} s with a kill every second",
        "no growth in memory or descriptors; no wrong reply",
        f"{sum(wrong.values())} wrong of {sent:,}, {lost} lost and {duplicates} twice in {kills} "
        f"kills; supervisor {memory[0]:,} KiB at first, {memory[-1]:,} at last",
    )
    assert wrong == {}
    if mode != "recvmmsg":
        assert lost <= drops
    assert len(set(descriptors)) == 1
    assert memory[-1] <= memory[0] + GROWTH


def private_memory(pid: int) -> int:
    """Return the KiB that are the process's own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
