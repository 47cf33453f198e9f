"""The unit that ships: what systemd thinks of it, and that it holds what the service needs."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pktstun
from pktstun.cli import _parser
from pktstun.kernel import seccomp
from pktstun.kernel.privileges import Capability
from pktstun.metrics._collector import Scrape
from pktstun.stats import SharedPage
from pktstun.supervisor import HOPELESS
from tests.metrics.observing import observe
from tests.metrics.scraping import Series

UNIT = Path(pktstun.__file__).parent / "deploy" / "pktstun.service"


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_its_command_line_is_one() -> None:
    (command,) = values("ExecStart")
    _parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("key", ["AmbientCapabilities", "CapabilityBoundingSet"])
def test_it_has_the_capabilities_of_rings_and_takeover_and_no_others(key: str) -> None:
    needed = {Capability.NET_RAW, Capability.NET_ADMIN, Capability.BPF}
    assert {name for line in values(key) for name in line.split()} == {
        f"CAP_{each.name}" for each in needed
    }


def test_errors_that_last_do_not_start_it_again() -> None:
    assert values("RestartPreventExitStatus") == ["2 77 78"]


def test_a_worker_that_is_killed_for_memory_does_not_end_the_others() -> None:
    """By default systemd stops a unit of which one process was (systemd.service(5))."""
    assert values("OOMPolicy") == ["continue"]


def test_systemd_never_gives_up_on_it() -> None:
    """By default five starts in ten seconds are the last."""
    unit = configparser.RawConfigParser(strict=False)
    unit.read(UNIT)
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "always"


@pytest.mark.peers
def test_systemd_finds_little_exposure() -> None:
    """The threshold is ten times the exposure that systemd tells of."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", UNIT],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    sys.stdout.write(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout


def test_it_says_itself_when_it_is_ready_and_alive() -> None:
    assert (values("Type"), values("NotifyAccess")) == (["notify"], ["main"])
    (seconds,) = map(float, values("WatchdogSec"))
    # It is fed three times in it, after looks at the heartbeats, and an upgrade takes its time.
    assert seconds >= 5
    assert seconds < HOPELESS


def test_its_directories_are_its_own() -> None:
    assert values("StateDirectory") == values("RuntimeDirectory") == ["pktstun"]


@pytest.mark.peers
def test_systemd_makes_the_user(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", "-"],
        check=False,
        input=(UNIT.parent / "pktstun.sysusers").read_text(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "etc/passwd").read_text().splitlines()
    name, _, _, _, _, home, shell = line.split(":")
    assert (name, home, shell) == ("pktstun", "/var/lib/pktstun", "/usr/sbin/nologin")
    assert values("User") == values("Group") == [name]


def members(group: str) -> set[str]:
    """Return the system calls of one of systemd's groups, those of the groups in it included."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", group],
        check=True,
        capture_output=True,
        text=True,
    )
    found: set[str] = set()
    for word in re.findall(r"^\s+([@\w-]+)", done.stdout, re.MULTILINE):
        found |= members(word) if word.startswith("@") else {word}
    return found


@pytest.mark.peers
def test_its_system_calls_are_enough_for_every_loop() -> None:
    allowed: set[str] = set()
    for line in values("SystemCallFilter"):
        for word in line.removeprefix("~").split():
            group = members(word) if word.startswith("@") else {word}
            allowed = allowed - group if line.startswith("~") else allowed | group
    needed = {call for loop in seccomp.Loop for call in loop.value} | set(seccomp._ALLOWED)
    # Before a worker confines itself, and in the supervisor.
    needed |= {"socket", "bind", "listen", "ioctl", "epoll_create1", "prlimit64", "pidfd_open"}
    newer = {"epoll_pwait2"}  # than some versions of systemd
    assert needed - newer <= allowed
    assert "mount" not in allowed


@pytest.mark.peers
def test_systemd_reads_it_without_complaint() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", UNIT], check=False, capture_output=True, text=True
    )
    # The program is not where the unit says unless it is installed.
    complaints = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert complaints == []


# --- What Prometheus and Grafana are given ---


DEPLOY = UNIT.parent
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text())


def known_metrics() -> set[str]:
    """Return the names of all samples, in the modes that have most."""
    names: set[str] = set()
    for mode in ("ring", "direct", "recvmmsg"):
        with SharedPage(4) as page:
            for slot in page.slots:
                slot.turn()
            names |= Series.of(Scrape(observe(page, mode))("/metrics", "")[1].decode()).names
    return names


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\bpktstun_[a-z_]+\b", text))


def expressions() -> list[str]:
    """Return the dashboard's, as Prometheus would get them."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [re.sub(r"\$\w+", "x", each.replace("$__rate_interval", "5m")) for each in found]


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yml", "alerts_test.yml"])
def test_every_metric_that_is_asked_for_exists(name: str) -> None:
    asked = metrics_in((DEPLOY / name).read_text())
    assert len(asked) > 5
    assert asked <= known_metrics()


def test_the_dashboard_shows_what_an_operator_has_to_see() -> None:
    asked = metrics_in("".join(expressions()))
    # Sums and calls are in others.
    spared = {
        *("pktstun_worker_up", "pktstun_socket_datagrams_total", "pktstun_replies_sent_total"),
        *("pktstun_receive_calls_total", "pktstun_send_calls_total", "pktstun_ring_blocks"),
        *("pktstun_ring_blocks_read_total", "pktstun_ring_packets_total"),
        # Each has an alert.
        *("pktstun_health_requests_total", "pktstun_interface_up", "pktstun_stream_tls_missing"),
    }
    assert known_metrics() - asked == spared


def test_the_dashboard_is_complete() -> None:
    """As Grafana 10 and later import it: schema, a data source to choose, panels side by side."""
    assert DASHBOARD["schemaVersion"] >= 38
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} >= {"datasource", "instance"}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"], panel["title"]
        assert panel["type"] in {"stat", "timeseries", "table"}
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        for target in (panel, *panel["targets"]):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.peers
def test_promtool_accepts_the_rules() -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=DEPLOY, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.peers
def test_promtool_understands_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions())
    ]
    # JSON is YAML.
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", file], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    text = (DEPLOY / "alerts.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", text)
    assert len(alerts) == len(set(alerts)) > 10
    for part in text.split("- alert: ")[1:]:
        assert re.search(r"severity: (page|ticket)\b", part)
        assert len(part.partition("summary: ")[2].splitlines()[0]) > 20
        assert len(part.partition("description: >-")[2].split()) > 15
    tests = (DEPLOY / "alerts_test.yml").read_text()
    for alert in alerts:
        assert tests.count(alert) >= 2, alert
