"""More requests than a ring can take: every one is answered, or counted where it was dropped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.load import Load
from tests.faults.scorecard import modes, record, times
from tests.lab import wait_until
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import TwoHosts

pytestmark = [pytest.mark.root, pytest.mark.faults, pytest.mark.alone]

FLOOD = 400_000


@pytest.mark.parametrize("mode", modes("ring", "direct"))
def test_an_overrun_is_counted_exactly(spread: TwoHosts, mode: str) -> None:
    seconds = times(2, 10)
    # The smallest ring, so that it does overrun.
    arguments = ["--iface", spread.server_if, "--mode", mode, "--block-size", "4096"]
    with Server(spread.server, [*arguments, "--blocks", "8"]) as server:
        with Load(spread, rate=20_000) as load:
            time.sleep(seconds / 2)
            calm = load.result()
        time.sleep(0.2)
        before = server.totals()
        with Load(spread, rate=FLOOD) as load:
            time.sleep(seconds)
            flood = load.result()
            backlog = load.backlog_drops
        time.sleep(0.2)
        after = server.totals()
        wait_until(lambda: "requests were lost because a ring was full" in server.log, "a line")
        log = server.log
    arrived = after["ring_packets"] - before["ring_packets"]
    received = after["received"] - before["received"]
    drops = after["ring_drops"] - before["ring_drops"]
    answered = after["answered"] - before["answered"]
    goodput = flood.replies / flood.seconds
    record(
        12,
        mode,
        "ring overrun, twenty times the rate",
        "received = answered + counted drops; no crash; goodput at least 80 % of the calm rate",
        f"{arrived:,} = {answered:,} + {drops:,} dropped by a ring of 32 KiB; "
        f"{goodput:,.0f} answers/s of {flood.sent / flood.seconds:,.0f}",
    )
    assert drops > 0, "there was no overrun"
    assert arrived == received + drops
    assert received == answered
    # What never arrived was refused by the link, or by the kernel's backlog.
    assert flood.sent - arrived <= backlog
    assert "ended with" not in log
    assert goodput >= 0.8 * calm.rate
    assert flood.wrong == {}
