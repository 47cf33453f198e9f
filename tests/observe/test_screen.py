"""What `top` shows: aligned, within the terminal, and understood without colours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.observe import Probe, Scene, Snapshot, Style, Task, as_text, compare, render
from tests.observe.services import AFTER, BEFORE, INFO, STARTED, WORKER, later
from tests.observe.test_rates import snapshots
from tools import docs

PROBE = Probe("192.0.2.1:3478", 60, 59, 0.000213, 0.0019, None)
NOW = STARTED + 273_600


def scene(before: Snapshot | None = BEFORE, after: Snapshot = AFTER, **changes: object) -> Scene:
    given = {"clock": "12:34:56", "now": NOW, "probe": PROBE, "keys": "q: quit", **changes}
    return Scene(compare(before, after), **given)  # type: ignore[arg-type]


def text(of: Scene, width: int = 80, height: int = 24) -> str:
    return "\n".join(line.text.rstrip() for line in render(of, width, height))


def test_at_80_columns() -> None:
    assert (
        text(scene())
        == """\
pktstun 1.2.3, pid 4711, direct on eth0 with takeover, up 3 d 4 h       12:34:56
serving 192.0.2.1:3478, [2001:db8::1]:3478, TCP, limit 100/s
probe   p50 0.21 ms, max 1.90 ms, 59 of 60 answered, 192.0.2.1:3478
                                                                         q: quit
worker     received/s  answered/s  dropped/s  fill  peak  lost/s  starts   beat
0@cpu0        120,000     119,000      1,000    1%   51%     1.7       1  0.0 s
1@cpu1        120,000     119,000      1,000    1%   51%     1.7       1  0.0 s
streams            51          51        0.2     -     -       -       1  0.3 s
all           240,052     238,052      2,000    1%   51%     3.4       3  0.3 s

batches      mean      1    2-3    4-7   8-15  16-31  32-63  64-127   128+
received     17.1    14%    29%    14%     7%    29%     1%      6%    <1%
sent         17.0    14%    29%    14%     7%    29%     7%      0%     0%

dropped                  /s     so far    send errors              /s     so far
not_stun              1,800     36,004    eagain                  2.4         48
rate_limited            200      3,992

ring    lost 3.4/s (68 so far), found full 8 times, errors 0, broken 0
limiter above the limit 266/s (5,320 so far)
streams open 12, new 6.0/s (120 so far), refused 8, timed out 0, no TLS 0"""
    )


@pytest.mark.parametrize("page", ["first-run.md", "monitoring.md"])
def test_the_guide_shows_the_columns_that_are_printed(page: str) -> None:
    def heads(lines: list[str]) -> set[tuple[str, ...]]:
        return {tuple(line.split()) for line in lines if line.startswith(("worker ", "batches "))}

    shown = heads((docs.PAGES / page).read_text().splitlines())
    assert shown
    assert shown <= heads([*as_text(BEFORE), *text(scene()).splitlines()])


def test_before_there_are_rates() -> None:
    shown = text(scene(None, BEFORE)).splitlines()
    assert shown[5].split() == ["0@cpu0", *"---", "1%", "51%", "-", "1", "0.0", "s"]
    assert shown[15].split()[:3] == ["not_stun", "-", "18,002"]


def test_nothing_has_happened() -> None:
    idle = replace(WORKER, outcomes={}, received={}, counters={}, send_errors={}, send_sizes=())
    info = replace(INFO, rate_limit=None, tcp=(), ring=None, mode="recvmmsg", iface=None)
    quiet = Snapshot(info, 1.0, (replace(idle, receive_sizes=(0,) * 16),))
    shown = text(scene(quiet, replace(quiet, at=2.0), probe=None, keys=""))
    assert "none                                      none" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("all")] == [
        ["all", "0", "0", "0", "-", "-", "-", "1", "0.0", "s"]
    ]
    assert "ring    " not in shown
    sockets = replace(idle, socket_drops=9, socket_fill=0.5)
    shown = text(scene(None, replace(quiet, workers=(sockets,))))
    assert shown.endswith("\n\nsockets lost 9")


def test_what_is_ill_is_said_in_words_and_stays_in_sight() -> None:
    workers = [
        replace(WORKER, number=number, task=Task("datagrams", number)) for number in range(64)
    ]
    workers[40] = replace(workers[40], pid=0)
    workers[50] = replace(workers[50], age=9.0)
    lines = render(scene(None, Snapshot(INFO, 1.0, tuple(workers))))
    assert len(lines) <= 24
    bad = [line.text.split() for line in lines if line.style is Style.BAD]
    assert bad[0][:4] == ["worker", "40", "is", "down;"]
    assert [(words[0], words[-1]) for words in bad[1:]] == [
        ("40@cpu40", "down"),
        ("50@cpu50", "stuck"),
    ]
    shown = "\n".join(line.text for line in lines)
    healthy = [line.text.split()[0] for line in lines if line.text.endswith("0.0 s")]
    assert healthy == ["0@cpu0", *(f"{n}@cpu{n}" for n in range(1, len(healthy)))]
    assert f"and {62 - len(healthy)} more workers" in shown
    assert len(render(scene(None, Snapshot(INFO, 1.0, tuple(workers))), 80, 100)) > 64


def test_rare_reasons_are_counted_together() -> None:
    drops = {f"reason_{number}": 100 - number for number in range(20)}
    many = replace(WORKER, outcomes=drops)
    after = Snapshot(INFO, 1.0, (many, replace(many, number=1)))
    lines = text(scene(None, after)).splitlines()
    assert len(lines) == 24
    (rest,) = [line.split() for line in lines if "others" in line]
    shown = sum(1 for line in lines if line.startswith("reason_"))
    assert shown >= 2
    hidden = sorted((2 * count for count in drops.values()), reverse=True)[shown:]
    assert rest[:4] == [str(20 - shown), "others", "-", f"{sum(hidden):,}"]


def test_many_addresses() -> None:
    serving = tuple(f"[2001:db8:1234:5678:9abc:def0:1234:{n}]:3478" for n in range(1000, 1256))
    info = replace(INFO, serving=serving, serving_count=9_000, auth="long-term")
    line = text(scene(None, replace(AFTER, info=info))).splitlines()[1]
    assert line.startswith("serving [2001:db8:1234:5678:9abc:def0:1234:1000]:3478 and 8999 more")
    assert "serving no address" in text(
        scene(None, replace(AFTER, info=replace(INFO, serving=(), serving_count=0)))
    )


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (Probe("a:1"), "probe   no answer yet, a:1"),
        (Probe("a:1", problem="cannot ask"), "probe   cannot ask, a:1"),
        (Probe("a:1", 3, problem="no answer in 2 s"), "0 of 3 answered, no answer in 2 s, a:1"),
    ],
)
def test_the_probe_says_what_it_has_met(probe: Probe, said: str) -> None:
    assert said in text(scene(probe=probe))


def test_a_service_that_is_gone() -> None:
    gone = Scene(None, "12:34:56", NOW, note="pid 1 is gone, waiting for another service")
    lines = render(gone)
    assert [line.text.split()[0] for line in lines] == ["pktstun", "pid"]
    assert lines[1].style is Style.BAD


@given(
    st.none() | snapshots(),
    snapshots(),
    st.integers(20, 200),
    st.integers(1, 100),
    st.text(max_size=100).map(lambda word: "".join(filter(str.isprintable, word))),
)
def test_it_fits(
    before: Snapshot | None, after: Snapshot, width: int, height: int, note: str
) -> None:
    lines = render(scene(before, after, note=note), width, height)
    assert all(len(line.text) <= width for line in lines)
    assert len(lines) <= max(height, 24)


@given(st.integers(1, 10**12))
def test_columns_stay_where_they_are(times: int) -> None:
    after = Snapshot(INFO, 110.0, tuple(later(each, times) for each in BEFORE.workers))
    heads = [line.text for line in render(scene()) if line.style is Style.HEAD]
    assert [line.text for line in render(scene(BEFORE, after)) if line.style is Style.HEAD] == heads
