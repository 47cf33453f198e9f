"""The command in a laboratory that is set up badly on purpose: it names all of it, mends it, and
brings back what was.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pktstun.doctor import Kind, read_host
from pktstun.doctor._finding import TABLE
from pktstun.kernel import interface, receive_queues
from pktstun.kernel.ethtool import Ethtool
from tests.lab import require_root, two_hosts, wait_until
from tests.netns.server import Server

if TYPE_CHECKING:
    import subprocess

    from tests.lab import Lab, Namespace, TwoHosts

pytestmark = pytest.mark.root

CPUS = sorted(os.sched_getaffinity(0))
FIRST = f"{1 << CPUS[0]:x}"
RPS = "/sys/class/net/v0/queues/rx-0/rps_cpus"
TRACKING = """
table inet lab {
  chain input { type filter hook input priority 0; ct state new counter accept; }
}
"""
LISTENER = """
import socket, sys, time
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as listener:
    listener.bind(("v0", 3))
    print("here", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@dataclass(frozen=True)
class Patient:
    """A host of the laboratory, and where the doctor keeps its record."""

    ns: Namespace
    state: Path
    iface: str = "v0"

    def run(
        self, *arguments: str, path: str | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the doctor inside, with the namespace's own sysfs, as `ip netns exec` has it."""
        program = [sys.executable, "-m", "pktstun", "doctor", "--iface", self.iface]
        env = {**os.environ, "STATE_DIRECTORY": str(self.state)}
        env["PATH"] = f"{path or ''}:{env['PATH']}:/usr/sbin:/sbin".lstrip(":")
        script = 'mount -t sysfs sysfs /sys && exec "$@"'
        own_sysfs = ["unshare", "--mount", "sh", "-c", script, "sh"]
        return self.ns.run([*own_sysfs, *program, "--seconds", "0", *arguments], env=env, **options)

    def json(self, *arguments: str) -> Any:
        result = self.run("--json", *arguments)
        assert result.stderr == ""
        return json.loads(result.stdout)

    def found(self, *arguments: str) -> dict[str, tuple[str, str]]:
        """{check: (severity, found)} of all that is not well."""
        return {
            each["check"]: (each["severity"], each["found"])
            for each in self.json(*arguments)["findings"]
            if each["severity"] != "ok"
        }

    @property
    def record(self) -> Path:
        return self.state / f"doctor-{self.iface}.json"


def feature(ns: Namespace, name: str, *, on: bool) -> None:
    with ns.enter(), Ethtool("v0") as driver:
        driver.set_feature(name, on=on)


def dump(ns: Namespace) -> dict[str, object]:
    """All that a change could have touched, and more."""
    with ns.enter(), Ethtool("v0") as driver:
        features = driver.features()
        queues = receive_queues(interface("v0"))
        sysctls = {}
        for path in sorted(Path("/proc/sys/net").rglob("*")):
            # Those that count for themselves, or cannot be read, cannot be set either.
            if path.is_file() and path.stat().st_mode & 0o222:
                with contextlib.suppress(OSError):
                    sysctls[str(path)] = path.read_text()
    return {
        "features": features,
        "rps": ns.sysfs_read(RPS),
        "threads": {
            each.thread: os.sched_getaffinity(each.thread) for each in queues if each.thread
        },
        "rules": ns.run(["nft", "--stateless", "list", "ruleset"], check=True).stdout,
        "sysctls": sysctls,
    }


@pytest.fixture(name="patient")
def patient_fixture(hosts: TwoHosts, tmp_path: Path) -> Patient:
    return Patient(hosts.server, tmp_path / "state")


@pytest.fixture(name="ill")
def ill_fixture(patient: Patient, hosts: TwoHosts) -> Patient:
    """One CPU for all packets, UDP merged, the port tracked, and somebody who listens."""
    ns = patient.ns
    ns.sysfs_write(RPS, FIRST)
    feature(ns, "rx-udp-gro-forwarding", on=True)
    rules = patient.state.parent / "rules.nft"
    rules.write_text(TRACKING)
    ns.run(["nft", "-f", rules], check=True)
    listener = ns.popen([sys.executable, "-c", LISTENER])
    assert listener.stdout is not None
    assert listener.stdout.readline() == "here\n"
    with hosts.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"?", (hosts.server_ipv4[0], 3478))
    wait_until(lambda: int(ns.read("/proc/sys/net/netfilter/nf_conntrack_count")) > 0, "tracked")
    return patient


# --- The whole story ---


@pytest.mark.peers
def test_it_names_what_is_wrong_mends_it_and_brings_it_back(ill: Patient) -> None:
    before = dump(ill.ns)
    found = ill.found()
    if len(CPUS) > 1:
        severity, text = found["queues"]
        assert severity == "problem"
        assert f"received on CPU {CPUS[0]}, of CPUs " in text
    assert found["merging"] == ("problem", "rx-udp-gro-forwarding is on")
    assert found["conntrack"][0] == "problem"
    assert "connections of UDP port 3478 are tracked" in found["conntrack"][1]
    listener = ill.ns.pids()[0]
    assert found["packet-socket"][0] == "advice"
    assert f"(pid {listener}) reads every frame of v0" in found["packet-socket"][1]

    # To look changes nothing.
    assert ill.run().returncode == 1
    assert dump(ill.ns) == before
    assert not ill.state.exists()

    applied = ill.run("--apply")
    assert (applied.returncode, applied.stderr) == (0, "")
    assert "rx-udp-gro-forwarding: on -> off" in applied.stdout
    assert f"nft table inet {TABLE}: no table -> port 3478" in applied.stdout
    after = ill.found()
    assert not [each for each in after.values() if each[0] == "problem"]
    # What can only be advice is left, until somebody ends it.
    assert "packet-socket" in after
    assert not {"queues", "merging", "conntrack"} & set(after)

    os.kill(listener, signal.SIGTERM)
    wait_until(lambda: not ill.ns.pids(), "the listener ends")
    assert "packet-socket" not in ill.found()

    undone = ill.run("--undo")
    assert (undone.returncode, undone.stderr) == (0, "")
    assert dump(ill.ns) == before
    assert not ill.record.exists()
    assert set(found) - set(ill.found()) == {"packet-socket"}


@pytest.mark.peers
def test_what_is_untracked_stays_out_of_the_table(ill: Patient, hosts: TwoHosts) -> None:
    assert ill.run("--apply").returncode == 0
    with hosts.server.enter():
        before = read_host("v0", 3478, 0).tracked
    for family, address in (
        (socket.AF_INET, hosts.server_ipv4[0]),
        (socket.AF_INET6, hosts.server_ipv6[0]),
    ):
        with hosts.client.socket(family, socket.SOCK_DGRAM) as client:
            client.sendto(b"?", (address, 3478))
        with hosts.server.socket(family, socket.SOCK_DGRAM) as server:
            server.bind((address, 3478))
            server.sendto(b"!", (hosts.client_ipv4[0] if "." in address else "fd77::100", 9))
    with hosts.server.enter():
        assert read_host("v0", 3478, 0).tracked == before


@pytest.mark.peers
def test_applying_twice_keeps_what_was_first(ill: Patient) -> None:
    before = dump(ill.ns)
    assert ill.run("--apply").returncode == 0
    first = ill.record.read_text()
    again = ill.run("--apply")
    assert again.returncode == 0
    assert again.stdout.startswith("nothing to change\n")
    assert ill.record.read_text() == first
    # Somebody makes it worse, and it is mended once more; another port joins the table.
    feature(ill.ns, "rx-udp-gro-forwarding", on=True)
    feature(ill.ns, "rx-gro-list", on=True)
    with ill.ns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 5000))
        sock.sendto(b"?", ("127.0.0.1", 5000))
    ill.run("--apply", "--port", "5000", check=True)
    assert "no problem" in ill.run().stdout.lower()
    assert ill.run("--undo").returncode == 0
    expected = dump(ill.ns)
    assert expected["rules"] == before["rules"]
    assert expected["rps"] == before["rps"]
    features = expected["features"]
    assert isinstance(features, dict)
    assert features["rx-udp-gro-forwarding"].is_on
    # What became so later was so when it was recorded.
    assert features["rx-gro-list"].is_on


@pytest.mark.peers
def test_what_was_killed_half_way_can_be_undone(ill: Patient, tmp_path: Path) -> None:
    before = dump(ill.ns)
    # The table is made last, by a program; this one ends the doctor instead.
    murderer = tmp_path / "bin/nft"
    murderer.parent.mkdir()
    murderer.write_text("#!/bin/sh\nkill -9 $PPID\n")
    murderer.chmod(0o755)
    result = ill.run("--apply", path=str(murderer.parent))
    assert result.returncode == -signal.SIGKILL
    half = dump(ill.ns)
    assert half["features"] != before["features"]
    assert half["rules"] == before["rules"]
    undone = ill.run("--undo")
    assert (undone.returncode, undone.stderr) == (0, "")
    assert f"same     nft table inet {TABLE}: no table already" in undone.stdout
    assert dump(ill.ns) == before
    assert not ill.record.exists()


@pytest.mark.peers
def test_where_nft_fails_the_rest_is_done_and_the_reason_told(ill: Patient, tmp_path: Path) -> None:
    broken = tmp_path / "bin/nft"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'no, thanks' >&2\nexit 1\n")
    broken.chmod(0o755)
    result = ill.run("--apply", path=str(broken.parent))
    assert result.returncode == 1
    assert "cannot become port 3478: nft: no, thanks" in " ".join(result.stdout.split())
    assert "merging" not in ill.found()
    assert ill.run("--undo").returncode == 0


# --- Undoing ---


@pytest.mark.peers
def test_what_somebody_else_has_changed_is_left_and_told(ill: Patient) -> None:
    before = dump(ill.ns)
    assert ill.run("--apply").returncode == 0
    rule = ["add", "rule", "inet", TABLE, "requests", "udp", "dport", "5000", "notrack"]
    ill.ns.run(["nft", *rule], check=True)
    undone = ill.run("--undo")
    assert undone.returncode == 1
    said = " ".join(undone.stdout.split())
    assert f"{TABLE}: changed by somebody to port 3478, 5000, and left so; it was no table" in said
    after = dump(ill.ns)
    assert (after["features"], after["rps"]) == (before["features"], before["rps"])
    assert "dport 5000 notrack" in str(after["rules"])
    assert not ill.record.exists()


def test_an_interface_that_is_gone_takes_its_settings_along(patient: Patient, lab: Lab) -> None:
    feature(patient.ns, "rx-gro-list", on=True)
    assert patient.run("--apply").returncode == 0
    lab.delete_link(patient.ns, "v0")
    undone = patient.run("--undo")
    assert undone.returncode == 0
    assert "gone     rx-gro-list: not there any more" in undone.stdout
    assert not patient.record.exists()
    assert "nothing to bring back" in patient.run("--undo").stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "move it away"), ('{"version": 9}', "its version is 9")],
)
@pytest.mark.parametrize("action", ["--apply", "--undo"])
def test_a_record_of_no_use_changes_nothing(
    patient: Patient, content: str, words: str, action: str
) -> None:
    feature(patient.ns, "rx-gro-list", on=True)
    patient.state.mkdir()
    patient.record.write_text(content)
    patient.record.chmod(0o600)
    result = patient.run(action)
    assert result.returncode == 78
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "merging" in patient.found()
    assert patient.record.read_text() == content


def test_a_record_of_another_namespace_is_refused(patient: Patient, lab: Lab) -> None:
    feature(patient.ns, "rx-gro-list", on=True)
    assert patient.run("--apply").returncode == 0
    other = Patient(lab.namespace("other"), patient.state)
    lab.veth(other.ns, "v0", other.ns, "v1")
    result = other.run("--undo")
    assert result.returncode == 78
    assert "another network namespace" in result.stderr
    assert patient.run("--undo").returncode == 0


# --- Threads ---


@pytest.mark.parametrize(("queues", "kind"), [(2, Kind.THREAD), (1, Kind.RPS)])
def test_threads_on_one_cpu(lab: Lab, tmp_path: Path, queues: int, kind: Kind) -> None:
    """Enough of them are spread; what one of them receives is."""
    hosts = two_hosts(lab, queues=queues)
    threads = lab.threaded_napi(hosts.server, "v0")
    assert len(threads) == queues
    lab.pin_napi(hosts.server, "v0", CPUS[0])
    patient = Patient(hosts.server, tmp_path)
    before = threads_and_rps(hosts.server)
    report = patient.json("--apply")
    if len(CPUS) == 1:
        assert report["outcomes"] == []
        return
    if len(CPUS) == 2:
        assert {each["kind"] for each in report["outcomes"]} == {kind}
        assert "queues" not in patient.found()
    assert threads_and_rps(hosts.server) != before
    assert patient.run("--undo").returncode == 0
    assert threads_and_rps(hosts.server) == before


def threads_and_rps(ns: Namespace) -> tuple[list[set[int]], str]:
    with ns.enter():
        queues = receive_queues(interface("v0"))
    return [os.sched_getaffinity(each.thread) for each in queues], ns.sysfs_read(RPS)


# --- What a laboratory does not have ---

ON_FILES = """
import json, sys
from pathlib import Path
from pktstun.doctor import Change, Kind, apply, undo
record, irq = Path(sys.argv[1]), Path("/proc/irq/41/smp_affinity_list")
backlog = Path("/proc/sys/net/core/netdev_max_backlog")
irq.parent.mkdir()
def write(cpus, frames):
    irq.write_text(cpus)
    backlog.write_text(frames)
def show(outcomes):
    print(*(each.result for each in outcomes), irq.read_text().strip(), backlog.read_text().strip())
changes = [
    Change(Kind.IRQ, "41", (1, 3)),
    Change(Kind.SYSCTL, "net.core.netdev_max_backlog", 10000),
    Change(Kind.IRQ, "42", (0,)),
]
write("0-3\\n", "1000\\n")
show(apply("lo", changes, record))
show(undo("lo", record))
show(apply("lo", changes, record))
write("2\\n", "10000\\n")
show(undo("lo", record))
show(undo("lo", record))
"""


def test_interrupts_and_the_backlog(lab: Lab, tmp_path: Path) -> None:
    """Of the whole host, so other files lie over those of the kernel."""
    script = 'mount -t tmpfs none /proc/irq && mount -t tmpfs none /proc/sys/net/core && exec "$@"'
    own_files = ["unshare", "--mount", "sh", "-c", script, "sh"]
    program = [sys.executable, "-c", ON_FILES, str(tmp_path / "doctor-lo.json")]
    result = lab.namespace("host").run([*own_files, *program], check=True)
    assert result.stdout.splitlines() == [
        "failed changed changed 1,3 10000",
        "restored restored 0-3 1000",
        "failed changed changed 1,3 10000",
        "restored elsewise 2 1000",
        "2 1000",
    ]


# --- The command line ---


def test_without_sysfs_of_the_namespace_it_says_so(patient: Patient) -> None:
    program = [sys.executable, "-m", "pktstun", "doctor", "--iface", "v0", "--seconds", "0"]
    result = patient.ns.run(program)
    assert "sysfs: /sys shows another network namespace" in result.stdout


def test_a_running_service_is_known_and_its_sockets_are_not_foreign(patient: Patient) -> None:
    with Server(patient.ns, ["--iface", "v0"]) as server:
        found = patient.json("--verbose")
        said = {each["check"]: each["found"] for each in found["findings"]}
        assert said["service"].endswith(f"running (pid {server.process.pid})")
        assert said["packet-socket"].endswith("none")
        assert said["takeover"].startswith("on: ")


def test_it_says_when_workers_are_where_packets_were(patient: Patient) -> None:
    patient.ns.sysfs_write(RPS, FIRST)
    with Server(patient.ns, ["--iface", "v0", "--cpus", str(CPUS[0])]):
        said = {each["check"]: each["found"] for each in patient.json()["findings"]}
        assert said["workers"] == f"on CPU {CPUS[0]}"
        found = patient.found("--apply")
        assert ("workers" in found) == (len(CPUS) > 1)


def test_advice_counts_if_told_so_and_what_is_accepted_does_not(patient: Patient) -> None:
    feature(patient.ns, "rx-gro-list", on=True)
    names = {each for each in patient.found() if each != "merging"}
    accept = [word for name in names for word in ("--accept", name)]
    assert patient.run().returncode == 1
    assert patient.run("--accept", "merging").returncode == 0
    assert patient.run("--accept", "merging", "--strict", *accept).returncode == 0
    feature(patient.ns, "rx-gro-list", on=False)
    assert patient.run("--strict", *accept).returncode == 0
    assert patient.run().returncode == 0
    if names:
        assert patient.run("--strict").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 78, "there is no interface 'nope': name one of lo, v0"),
        (("--seconds", "-1"), 2, "not in 0 to 60"),
        (("--port", "0"), 2, "not in 1 to 65535"),
        (("--apply", "--undo"), 2, "not allowed with"),
        (("--accept", "everything"), 2, "no check 'everything': name one of backlog"),
    ],
)
def test_wrong_use(
    hosts: TwoHosts, tmp_path: Path, arguments: Any, status: int, words: str
) -> None:
    result = Patient(hosts.server, tmp_path, "nope").run(*arguments)
    assert result.returncode == status
    assert words in result.stderr


def test_without_privileges_it_looks_and_changes_nothing(patient: Patient) -> None:
    feature(patient.ns, "rx-gro-list", on=True)
    program = [sys.executable, "-m", "pktstun", "doctor", "--iface", "v0", "--seconds", "0"]
    result = patient.ns.run(program, drop_capabilities=["net_admin"])
    assert result.returncode == 1
    assert "CAP_NET_ADMIN missing" in result.stdout
    for action in ("--apply", "--undo"):
        result = patient.ns.run([*program, action], drop_capabilities=["net_admin"])
        assert result.returncode == 77
        assert "run as root" in result.stderr


def test_loopback(tmp_path: Path, lab: Lab) -> None:
    patient = Patient(lab.namespace("host"), tmp_path, "lo")
    result = patient.run("--verbose")
    assert result.returncode == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
