"""What `status` prints: a text of 80 columns, and a document that scripts can rely on."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given

from pktstun.observe import Snapshot, as_json, as_line, as_text
from tests.observe.services import BEFORE, INFO, STARTED, STREAM, WORKER
from tests.observe.test_rates import snapshots

NOW = STARTED + 273_600


def test_the_text() -> None:
    assert (
        "\n".join(as_text(BEFORE, now=NOW))
        == """\
pktstun 1.2.3, pid 4711: serving, up 3 d 4 h

mode         direct on eth0 with takeover
serving      192.0.2.1:3478, [2001:db8::1]:3478
TCP          192.0.2.1:3478, [2001:db8::1]:3478
rate limit   100/s to a source, by each worker
ring         256 blocks of 16 KiB for each worker
socket       /run/pktstun/0/4711.sock

worker    pid  starts   beat   received   answered  dropped  fill  peak
0@cpu0   4712       1  0.0 s  1,200,003  1,190,005    9,998    1%   51%
1@cpu1   4713       1  0.0 s  1,200,003  1,190,005    9,998    1%   51%
streams  4714       1  0.3 s        512        510        2     -     -
all                 3  0.3 s  2,400,518  2,380,520   19,998    1%   51%

batches      mean      1    2-3    4-7   8-15  16-31  32-63  64-127   128+
received     17.1    14%    29%    14%     7%    29%     1%      6%    <1%
sent         17.0    14%    29%    14%     7%    29%     7%      0%     0%

dropped      not_stun 18,002, rate_limited 1,996
send errors  eagain 24
ring         lost 34, found full 4 times, errors 0, broken 0
limiter      above the limit 2,660
streams      open 12, new 60, refused 4, timed out 0, no TLS 0"""
    )


def test_what_is_wrong_comes_first() -> None:
    ill = replace(BEFORE, workers=(replace(WORKER, pid=0), replace(WORKER, age=7.0), STREAM))
    lines = as_text(ill)
    assert lines[0].startswith("pktstun 1.2.3, pid 4711: degraded, up ")
    assert lines[1:3] == [
        "  problem: worker 0 is down",
        "  problem: worker 0 stuck, its loop stood still for 7.0 s",
    ]
    assert as_line(ill) == (
        "pid 4711  /run/pktstun/0/4711.sock  degraded, direct on eth0 with takeover"
    )


@given(snapshots())
def test_the_text_has_80_columns(snapshot: Snapshot) -> None:
    assert all(len(line) <= 80 for line in as_text(snapshot))


def test_long_lists_are_wrapped() -> None:
    info = replace(INFO, serving=tuple(f"10.1.2.{n}:3478" for n in range(256)), serving_count=300)
    lines = as_text(replace(BEFORE, info=info))
    assert all(len(line) <= 80 for line in lines)
    words = " ".join(" ".join(lines).split())
    assert "10.1.2.254:3478, 10.1.2.255:3478 and 44 more TCP" in words


def test_the_document() -> None:
    """Whatever a script may have come to rely on; new names may be added."""
    document = json.loads(json.dumps(as_json([BEFORE], ["a problem"])))
    assert (document["schema"], document["problems"]) == (1, ["a problem"])
    (service,) = document["services"]
    workers = service.pop("workers")
    assert service == {
        "socket": "/run/pktstun/0/4711.sock",
        "version": "1.2.3",
        "pid": 4711,
        "started": STARTED,
        "state": "serving",
        "problems": [],
        "mode": "direct",
        "iface": "eth0",
        "takeover": True,
        "serving": ["192.0.2.1:3478", "[2001:db8::1]:3478"],
        "serving_count": 2,
        "tcp": ["192.0.2.1:3478", "[2001:db8::1]:3478"],
        "tls": [],
        "auth": None,
        "rate_limit": {"rate": 100, "network_rate": None, "share": 25},
        "stream_limits": {"connections": 10000},
        "ring": {"block_size": 16384, "block_count": 256, "retire_timeout": 1},
        "totals": {
            "received": 2_400_518,
            "answered": 2_380_520,
            "dropped": 19_998,
            "drops": {"not_stun": 18_002, "rate_limited": 1_996},
            "send_errors": {"eagain": 24},
            "starts": 3,
            "counters": {
                "sent": 2_380_000,
                "send_calls": 140_000,
                "ring_drops": 34,
                "ring_freezes": 4,
                "ring_errors": 0,
                "ring_corrupt": 0,
                "over_limit": 2_660,
                "connections": 60,
                "connections_refused": 4,
                "connections_timed_out": 0,
                "handshakes_failed": 0,
            },
            "connections_open": 12,
            "received_batch_mean": 1_200_003 / 70_003,
            "sent_batch_mean": 17.0,
        },
    }
    assert [each["kind"] for each in workers] == ["datagrams", "datagrams", "streams"]
    assert workers[0] == {
        "number": 0,
        "kind": "datagrams",
        "cpu": 0,
        "pid": 4712,
        "state": "running",
        "starts": 1,
        "heartbeat_age_s": 0.04,
        "received": 1_200_003,
        "answered": 1_190_005,
        "dropped": 9_998,
        "drops": {"not_stun": 9_000, "rate_limited": 998},
        "families": {
            family: {
                "received": WORKER.received[family],
                "verdicts": WORKER.outcomes_by_family[family],
            }
            for family in ("none", "ipv4", "ipv6")
        },
        "send_errors": WORKER.send_errors,
        "ring": {"ready": 3, "peak": 130, "blocks": 256},
        "sockets": None,
        "receive_sizes": list(WORKER.receive_sizes),
        "send_sizes": list(WORKER.send_sizes),
        "connections_open": 0,
        "counters": WORKER.counters,
    }
    assert workers[2]["ring"] is None


def test_a_worker_that_is_down_has_no_process() -> None:
    down = replace(BEFORE, workers=(replace(WORKER, pid=0),))
    (service,) = as_json([down])["services"]
    assert service["state"] == "degraded"
    assert (service["workers"][0]["pid"], service["workers"][0]["state"]) == (None, "down")
