"""What the page holds is what Prometheus is told, under names that it understands."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

import pktstun
from pktstun.metrics._collector import Scrape
from pktstun.packet import FrameDrop
from pktstun.stats import FAMILIES, VERDICTS, SharedPage
from pktstun.stun import Drop
from tests.metrics.observing import STARTED, observe
from tests.metrics.scraping import Series

if TYPE_CHECKING:
    from pktstun.metrics import Observed

OUTCOMES = sorted(set(VERDICTS) - {"pass", "handover"})
MODES = ["ring", "direct", "recvmmsg"]


def told(observed: Observed) -> Series:
    return Series.of(text(observed))


def text(observed: Observed) -> str:
    return Scrape(observed)("/metrics", "")[1].decode()


# --- Names ---


@pytest.mark.parametrize("mode", MODES)
def test_names_are_as_prometheus_asks(mode: str) -> None:
    with SharedPage(4) as page:
        families = list(text_string_to_metric_families(text(observe(page, mode))))
    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"pktstun_[a-z]+(_[a-z]+)*", family.name), family.name
        assert len(family.documentation) > 20, family.name
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert names <= {f"{family.name}_total"}
        else:
            assert not any(name.endswith("_total") for name in names)
        for abbreviated in ("_ms", "_us", "_ns", "_kb", "_percent", "_count"):
            assert not family.name.endswith(abbreviated)


@pytest.mark.peers
@pytest.mark.parametrize("mode", MODES)
def test_promtool_accepts_them(mode: str) -> None:
    with SharedPage(4) as page:
        output = text(observe(page, mode))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=output, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_openmetrics_is_spoken_too() -> None:
    with SharedPage(4) as page:
        kind, body = Scrape(observe(page))(
            "/metrics", "application/openmetrics-text; version=1.0.0"
        )
        plain = Scrape(observe(page))("/metrics", "text/plain")[0]
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert plain.startswith("text/plain")
    families = openmetrics_families(body.decode())  # type: ignore[no-untyped-call]
    assert "pktstun_up" in {family.name for family in families}


def test_a_scrape_can_ask_for_some() -> None:
    with SharedPage(4) as page:
        body = Scrape(observe(page))("/metrics?name[]=pktstun_up", "")[1]
    assert Series.of(body.decode()).names == {"pktstun_up"}


# --- Values ---


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from(FAMILIES),
            st.sampled_from(OUTCOMES),
            st.integers(0, 2**40),
        ),
        max_size=30,
    ),
    st.sampled_from(MODES),
)
def test_received_is_answered_and_dropped(
    counts: list[tuple[int, str, str, int]], mode: str
) -> None:
    """Of whatever has been counted, also of what nobody has foreseen."""
    with SharedPage(4) as page:
        for worker, family, outcome, count in counts:
            # Nobody answers what has no address.
            if family == "none" and outcome in {"success", "error"}:
                continue
            slot, at = page.slots[worker].pointer, FAMILIES.index(family)
            slot.received[at] += count
            slot.verdicts[at][VERDICTS[outcome]] += count
        series = told(observe(page, mode))
    assert series.misfits() == {}
    received = sum(
        count
        for _, family, outcome, count in counts
        if family != "none" or outcome not in {"success", "error"}
    )
    assert series.total("pktstun_messages_received_total") == pytest.approx(received, rel=1e-12)


def test_what_does_not_add_up_would_be_seen() -> None:
    with SharedPage(4) as page:
        page.slots[0].pointer.received[1] = 1
        assert told(observe(page)).misfits() == {("0", "ipv4"): (1, 0, 0)}


@pytest.mark.parametrize(
    ("mode", "some", "none_of_them"),
    [
        ("ring", {*FrameDrop, *Drop, "poison", "over_budget", "internal_error"}, {"rate_limited"}),
        ("recvmmsg", {*Drop, FrameDrop.TOO_LONG, "over_budget"}, {"vlan", "poison"}),
    ],
)
def test_what_can_happen_has_a_zero_from_the_start(
    mode: str, some: set[str], none_of_them: set[str]
) -> None:
    with SharedPage(4) as page:
        series = told(observe(page, mode, is_limited=False))
    dropped = series.select("pktstun_messages_dropped_total", worker="0")
    reasons = {dict(has)["reason"] for has in dropped}
    assert {str(reason) for reason in some} <= reasons
    assert not reasons & none_of_them
    assert set(dropped.values()) == {0}


def test_every_number_is_told() -> None:
    """The page's counters have values of their own, each of which is some sample's."""
    simple = (
        *("handovers", "ring_blocks", "ring_corrupt", "ring_errors", "ring_packets"),
        *("ring_drops", "ring_freezes", "socket_received", "receive_calls", "send_calls", "sent"),
        *("other_way", "other_neighbour", "starts"),
    )
    streams = (
        *("connections", "connections_refused", "connections_timed_out", "handshakes_failed"),
        "connections_open",
    )
    with SharedPage(4) as page:
        for number, name in enumerate((*simple, *streams)):
            setattr(page.slots[3 if name in streams else 1].pointer, name, 1000 + number)
        page.slots[1].pointer.ring_ready, page.slots[1].pointer.ring_ready_peak = 16, 48
        for number in range(9):
            page.slots[1].pointer.send_errors[number] = 2000 + number
        series = told(observe(page))
    values = {value for (_, has), value in series.items() if ("worker", "1") in has}
    assert values >= {1000 + number for number in range(len(simple))}
    assert values >= {2000 + number for number in range(9)}
    values = {value for (_, has), value in series.items() if ("worker", "streams") in has}
    assert values >= {1000 + len(simple) + number for number in range(len(streams))}
    assert series.value("pktstun_ring_fill_ratio", worker="1") == 0.25
    assert series.value("pktstun_ring_fill_peak_ratio", worker="1") == 0.75
    assert series.value("pktstun_send_errors_total", worker="1", errno="ENOBUFS") == 2001


def test_batches_are_a_histogram() -> None:
    with SharedPage(3) as page:
        slot = page.slots[0].pointer
        slot.receive_sizes[0], slot.receive_sizes[2], slot.receive_sizes[15] = 5, 3, 2
        slot.received[1] = 5 + 3 * 6 + 2 * 40000
        series = told(observe(page, streams=False))
    buckets = {
        dict(has)["le"]: value
        for has, value in series.select("pktstun_receive_batch_messages_bucket", worker="0").items()
    }
    assert (buckets["1.0"], buckets["3.0"], buckets["7.0"], buckets["1023.0"]) == (5, 5, 8, 8)
    assert buckets["+Inf"] == series.value("pktstun_receive_batch_messages_count", worker="0") == 10
    assert series.value("pktstun_receive_batch_messages_sum", worker="0") == 80023


def test_a_counter_does_not_go_back() -> None:
    """Between two readings of the page a request may be counted in one place and not the other."""
    with SharedPage(4) as page:
        slot, scrape = page.slots[0].pointer, Scrape(observe(page))

        def answered() -> float:
            series = Series.of(scrape("/metrics", "")[1].decode())
            return series.value("pktstun_rate_limit_exceeded_total", worker="0", outcome="answered")

        slot.over_limit, slot.verdicts[1][VERDICTS["rate_limited"]] = 10, 3
        assert answered() == 7
        slot.verdicts[1][VERDICTS["rate_limited"]] = 5
        assert answered() == 7
        slot.over_limit = 14
        assert answered() == 9


def test_who_is_up() -> None:
    with SharedPage(4) as page:
        observed = observe(page)
        assert told(observed).value("pktstun_up") == 0
        for slot in page.slots:
            slot.begin(1)
            slot.turn()
        series = told(observed)
        assert series.value("pktstun_up") == 1
        ages = series.select("pktstun_worker_heartbeat_age_seconds")
        assert {dict(has)["worker"] for has in ages} == {"0", "1", "metrics", "streams"}
        page.slots[1].end()
        series = told(observed)
        assert series.value("pktstun_worker_up", worker="1") == 0
        assert series.value("pktstun_worker_up", worker="0") == 1
        assert series.value("pktstun_up") == 0
        page.slots[1].begin(1)
        page.slots[1].pointer.heartbeat -= 2 * 10**9
        assert told(observed).value("pktstun_worker_up", worker="1") == 0


def test_what_serves() -> None:
    with SharedPage(4) as page:
        observed = observe(page)
        (labels,) = told(observed).select("pktstun_build_info")
        assert dict(labels)["takeover"] == "off"
        observed.exporter.note_interface(down=False, takeover=True)
        series = told(observed)
    (labels,) = series.select("pktstun_build_info")
    assert (
        dict(labels).items()
        >= {
            "version": pktstun.__version__,
            "mode": "direct",
            "interface": "eth0",
            "takeover": "on",
        }.items()
    )
    assert series.value("pktstun_start_time_seconds") == STARTED


def test_what_is_down_is_told() -> None:
    with SharedPage(4) as page:
        observed = observe(page)
        assert told(observed).value("pktstun_interface_up") == 1
        assert told(observed).value("pktstun_stream_tls_missing", worker="streams") == 0
        observed.exporter.note_interface(down=True, takeover=True)
        assert observed.streams is not None
        observed.streams.note_tls(missing=True)
        page.slots[0].note_socket_drops(7)
        series = told(observed)
    assert series.value("pktstun_interface_up") == 0
    assert series.value("pktstun_stream_tls_missing", worker="streams") == 1
    assert series.value("pktstun_socket_drops_total", worker="0") == 7


def test_the_number_of_series_is_bounded() -> None:
    """Of a worker in the mode that has most, whatever has happened."""
    with SharedPage(2) as page:
        few = len(told(observe(page, streams=False)))
        for at in range(len(FAMILIES)):
            for number in VERDICTS.values():
                page.slots[0].pointer.verdicts[at][number] = 1
        many = len(told(observe(page, streams=False)))
    assert few < 130
    assert many < 230


def test_who_serves_no_metrics_imports_nothing_for_them() -> None:
    program = "import sys, pktstun._process; print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
