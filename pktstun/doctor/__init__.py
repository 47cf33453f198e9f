"""What on this machine keeps pktstun from its best, and what to do about it.

Theory of operation: `read_host` reads everything once, into a `Host`. `examine` says what there is
to say about it, and is a pure function: a check is tested with a host that was made up. A finding
has the shell command that mends it, and, where that is safe and can be taken back, the change of
a setting, which `apply` makes and `undo` takes back.

Safe is what costs others on this host nothing or next to nothing: features that merge UDP, the
CPUs on which this interface's queues are served, the card's descriptors, the length of the
backlog, and a table of our own that takes the port out of connection tracking. Modules, firewall
policies, other programs and what a kernel shares among all are advice with a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._finding import Change, Finding, Kind, Severity, Value
from ._host import Firewall, Host, PacketUser, Process, Program, Sample
from ._machine import CHECKS as MACHINE_CHECKS
from ._read import read_host
from ._receiving import CHECKS as RECEIVING_CHECKS
from ._render import as_text, counts, findings_as_json, outcomes_as_json, outcomes_as_text
from ._service import CHECKS as SERVICE_CHECKS
from ._sharing import CHECKS as SHARING_CHECKS
from ._state import load, records_directory, state_path
from ._treatment import Outcome, Result, apply, undo

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "NAMES",
    "Change",
    "Finding",
    "Firewall",
    "Host",
    "Kind",
    "Outcome",
    "PacketUser",
    "Process",
    "Program",
    "Result",
    "Sample",
    "Severity",
    "Value",
    "apply",
    "as_text",
    "changes",
    "counts",
    "examine",
    "findings_as_json",
    "load",
    "outcomes_as_json",
    "outcomes_as_text",
    "read_host",
    "records_directory",
    "state_path",
    "undo",
]

NAMES = frozenset(
    {
        *(
            "link",
            "stacked",
            "queues",
            "workers",
            "rfs",
            "irqbalance",
            "merging",
            "checksum",
            "rings",
        ),
        *("coalescing", "drops", "backlog", "budget", "packet-socket", "takeover", "xdp"),
        *("tc-ingress", "firewall", "conntrack", "conntrack-full", "rp_filter", "kernel", "cpus"),
        *("clock", "governor", "idle-states", "steal", "swap", "privileges", "sysfs", "user"),
        *("service", "open-files", "memlock", "buffers", "priority"),
    }
)
"""Names of all checks."""

_CHECKS = (*RECEIVING_CHECKS, *SHARING_CHECKS, *MACHINE_CHECKS, *SERVICE_CHECKS)
_ORDER = (Severity.PROBLEM, Severity.ADVICE, Severity.OK)


def examine(host: Host) -> tuple[Finding, ...]:
    """Return what there is to say about a host, the worst first."""
    findings = [finding for check in _CHECKS for finding in check(host)]
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity)))


def changes(findings: Iterable[Finding]) -> tuple[Change, ...]:
    """Return what `apply` would do about findings."""
    return tuple(change for finding in findings for change in finding.changes)
