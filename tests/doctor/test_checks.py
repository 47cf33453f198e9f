"""What is said about a host follows from the record of it, and from nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.doctor import (
    NAMES,
    Change,
    Firewall,
    Kind,
    Sample,
    Severity,
    as_text,
    changes,
    counts,
    examine,
    findings_as_json,
)
from pktstun.doctor._finding import commands_for
from pktstun.doctor._settings import is_setting
from tests.doctor.hosts import (
    CPUS,
    DHCP,
    GOOD,
    ILL,
    INPUT,
    ON,
    OURS,
    STATE,
    TCPDUMP,
    Ill,
    on,
)

if TYPE_CHECKING:
    from pktstun.kernel import ReceiveQueue


GOLDEN = Path(__file__).with_name("golden.txt")


def test_with_a_good_host_all_is_well() -> None:
    findings = examine(GOOD)
    assert {each.severity for each in findings} == {Severity.OK}
    assert as_text(GOOD, findings)[-1] == "Nothing to do."


@pytest.mark.parametrize("case", ILL, ids=lambda case: case.what)
def test_what_is_wrong_is_named(case: Ill) -> None:
    findings = examine(case.host)
    found = [each for each in findings if each.check == case.check and case.words in each.found]
    assert [each.severity for each in found] == [case.severity]
    assert len(found[0].changes) == case.changes
    assert found[0].why
    # The worst comes first.
    order = [each.severity for each in findings]
    assert order == sorted(order, key=["problem", "advice", "ok"].index)


def test_every_check_can_find_something_and_has_its_name_listed() -> None:
    fine = {each.check for each in examine(GOOD)}
    assert {case.check for case in ILL} | fine == NAMES
    assert {case.check for case in ILL} | {"priority"} == NAMES


@pytest.mark.parametrize("case", ILL, ids=lambda case: case.what)
def test_every_change_is_a_setting_and_has_a_command(case: Ill) -> None:
    for finding in examine(case.host):
        for change in finding.changes:
            assert is_setting(change.kind, change.name, change.value)
        made = [commands_for("eth0", change) for change in finding.changes]
        assert list(finding.commands[: len(made)]) == made


@pytest.mark.parametrize("case", ILL, ids=lambda case: case.what)
def test_commands_are_shell(case: Ill) -> None:
    shell = shutil.which("sh")
    assert shell
    for finding in examine(case.host):
        for command in finding.commands:
            subprocess.run([shell, "-n"], input=command.encode(), check=True)


# --- Queues ---


def spread(*queues: ReceiveQueue) -> list[Change]:
    host = replace(GOOD, queues=queues)
    return [each for each in changes(examine(host)) if each.kind is not Kind.RING]


def test_a_queue_for_each_cpu_has_its_interrupt_there() -> None:
    found = spread(*(on(0, index=index) for index in range(4)))
    assert found == [Change(Kind.IRQ, str(40 + at), (at,)) for at in range(4)]


def test_threads_are_spread_as_well() -> None:
    found = spread(*(on(3, index=index, source="napi thread") for index in range(4)))
    assert found == [Change(Kind.THREAD, str(900 + at), (at,)) for at in range(4)]


def test_too_few_queues_are_spread_by_rps() -> None:
    assert spread(on(1)) == [Change(Kind.RPS, "0", (0, 1, 2, 3))]


def test_one_interrupt_for_all_queues_cannot_be_spread() -> None:
    shared = [replace(on(0, index=index), irq=40) for index in range(4)]
    assert spread(*shared) == [Change(Kind.RPS, str(at), (0, 1, 2, 3)) for at in range(4)]


def test_cpus_that_must_not_be_used_get_nothing() -> None:
    host = replace(GOOD, usable=frozenset({1, 2}), queues=(on(0),))
    assert changes(examine(host)) == (Change(Kind.RPS, "0", (1, 2)),)


queue_places = st.tuples(
    st.frozensets(st.sampled_from(sorted(CPUS)), min_size=1),
    st.sampled_from(["irq", "rps", "napi thread"]),
)


@given(st.lists(queue_places, min_size=1, max_size=8))
def test_spreading_is_enough(where: list[tuple[frozenset[int], str]]) -> None:
    """Once its changes are made, nothing is left to change."""
    queues = [on(*cpus, index=at, source=source) for at, (cpus, source) in enumerate(where)]
    host = replace(GOOD, queues=tuple(queues))
    first = {Kind.IRQ: 40, Kind.THREAD: 900}
    made = {int(each.name) - first.get(each.kind, 0): each.value for each in changes(examine(host))}
    after = [
        replace(queue, cpus=frozenset(made.get(queue.index, queue.cpus)))  # type: ignore[arg-type]
        for queue in queues
    ]
    assert changes(examine(replace(GOOD, queues=tuple(after)))) == ()


def test_a_queue_of_which_nothing_is_known_is_no_finding() -> None:
    unknown = replace(on(0), cpus=frozenset(), source="")
    for queues in ((), (unknown,)):
        assert not counts(examine(replace(GOOD, queues=queues)), ())[Severity.PROBLEM]


# --- Others ---


def test_our_table_makes_tracking_end() -> None:
    ill = replace(GOOD, tracked=5, connections=5, firewall=Firewall((INPUT,), (STATE, *OURS)))
    (found,) = [each for each in examine(ill) if each.check == "conntrack"]
    assert found.severity is Severity.OK


@pytest.mark.parametrize("half", [0, 1])
def test_half_of_our_table_does_not(half: int) -> None:
    ill = replace(GOOD, tracked=5, firewall=Firewall((INPUT,), (STATE, OURS[half])))
    (found,) = [each for each in examine(ill) if each.check == "conntrack"]
    assert found.severity is Severity.PROBLEM


def test_nor_does_a_table_for_another_port_or_for_ipv4_alone() -> None:
    ipv4 = tuple(replace(each, family="ip") for each in OURS)
    ipv6 = tuple(replace(each, family="ip6") for each in OURS)
    for rules, port, severity in (
        (OURS, 5000, Severity.PROBLEM),
        (ipv4, 3478, Severity.PROBLEM),
        ((*ipv4, *ipv6), 3478, Severity.OK),
    ):
        ill = replace(GOOD, tracked=5, port=port, firewall=Firewall((INPUT,), (STATE, *rules)))
        (found,) = [each for each in examine(ill) if each.check == "conntrack"]
        assert found.severity is severity


def test_a_socket_of_one_protocol_costs_nothing() -> None:
    findings = examine(replace(GOOD, packet_users=(DHCP,)))
    assert {each.severity for each in findings} == {Severity.OK}


def test_what_could_not_be_read_is_not_said_to_be_well() -> None:
    blind = replace(GOOD, firewall=None, tracked=None, tcx=None, tcx_error=1, rings=None)
    names = {each.check for each in examine(blind)}
    assert not names & {"firewall", "conntrack", "takeover", "rings"}


# --- All of it ---


def test_the_picture() -> None:
    """What an operator sees, to be looked at whenever it changes."""
    host = replace(
        GOOD,
        queues=(on(0, source="rps"),),
        features={"rx-udp-gro-forwarding": ON},
        packet_users=(TCPDUMP,),
        tracked=3,
        connections=9,
        connections_most=262_144,
        firewall=Firewall((INPUT,), (STATE,)),
    )
    lines = as_text(host, examine(host), verbose=True, accepted={"firewall"}, applied=True)
    assert lines == GOLDEN.read_text(encoding="ascii").splitlines()
    assert max(map(len, lines)) <= 80


numbers = st.integers(0, 1 << 40)
samples = st.builds(Sample, ticks=numbers, stolen=numbers)


@given(
    st.lists(st.sampled_from(ILL), max_size=8),
    st.tuples(samples, samples),
    st.floats(0, 60),
    st.frozensets(st.integers(0, 200), min_size=1),
)
def test_any_mixture_of_ills_is_a_report(
    cases: list[Ill], found: tuple[Sample, Sample], seconds: float, usable: frozenset[int]
) -> None:
    host = replace(GOOD, usable=usable, before=found[0], after=found[1], seconds=seconds)
    for case in cases:
        wrong = {
            name: getattr(case.host, name)
            for name in GOOD.__dataclass_fields__
            if getattr(case.host, name) != getattr(GOOD, name)
        }
        host = replace(host, **wrong)
    findings = examine(host)
    assert findings == examine(host)
    assert {each.check for each in findings} <= NAMES
    commands = {line.strip() for each in findings for c in each.commands for line in c.splitlines()}
    for line in (*as_text(host, findings), *as_text(host, findings, verbose=True)):
        assert len(line) <= 80 or line.strip() in commands
        assert line.isascii()
    assert json.loads(json.dumps(findings_as_json(host, findings, ())))["iface"] == "eth0"
