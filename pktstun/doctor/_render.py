"""Findings as text of 80 columns, and as JSON.

docs/doctor.md has the fields of the JSON object, to which more may be added without a new number
of the schema.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

import pktstun

from ._finding import Kind, Severity, shown
from ._treatment import Result

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from ._finding import Finding
    from ._host import Host
    from ._treatment import Outcome

__all__ = ["as_text", "counts", "findings_as_json", "outcomes_as_json", "outcomes_as_text"]

_SCHEMA = 1

_WIDTH = 79
_INDENT = " " * 9
_LABELS = {Severity.PROBLEM: "PROBLEM", Severity.ADVICE: "advice", Severity.OK: "ok"}


def as_text(
    host: Host,
    findings: Sequence[Finding],
    *,
    verbose: bool = False,
    accepted: Collection[str] = (),
    applied: bool = False,
) -> list[str]:
    """Return lines for an operator.

    Args:
        host: what the findings are about.
        findings: in the order in which they are shown.
        verbose: also what is all right, one by one.
        accepted: names of checks whose findings count as all right.
        applied: whether earlier changes are recorded.
    """
    what = [*([host.driver] if host.driver else []), f"Linux {host.release}"]
    if host.running:
        what.append(f"pktstun runs as pid {', '.join(str(each.pid) for each in host.running)}")
    lines = [f"{host.iface}, UDP port {host.port}: {', '.join(what)}", ""]
    fine = []
    for finding in findings:
        if finding.severity is Severity.OK:
            fine.append(finding)
        else:
            lines += [*_block(finding, is_accepted=finding.check in accepted), ""]
    if verbose:
        width = max((len(each.check) for each in fine), default=0)
        for each in fine:
            lines += _wrapped(each.found, f"{'ok':9}{each.check:{width}}  ")
    else:
        names = ", ".join(sorted({each.check for each in fine}))
        lines += _wrapped(names, f"{'ok':9}")
    summary = _summary(findings, accepted)
    if applied:
        summary += " Changes were made before: --undo brings back what was."
    return [*lines, "", *_wrapped(summary, "")]


def _block(finding: Finding, *, is_accepted: bool) -> list[str]:
    label = "accepted" if is_accepted else _LABELS[finding.severity]
    lines = _wrapped(f"{finding.check}: {finding.found}", f"{label:9}", _INDENT)
    if finding.why:
        lines += _wrapped(finding.why, _INDENT)
    for number, command in enumerate(finding.commands, 1):
        lines += [f"{_INDENT}  {line}" for line in command.splitlines()]
        # Those of the changes come first.
        if number == len(finding.changes):
            lines.append(f"{_INDENT}(--apply does this)")
    return lines


def _summary(findings: Iterable[Finding], accepted: Collection[str]) -> str:
    found = counts(findings, accepted)
    problems, advice = found[Severity.PROBLEM], found[Severity.ADVICE]
    if not problems and not advice:
        return "Nothing to do."
    parts = [
        "no problem" if not problems else f"{problems} problem{'s' if problems > 1 else ''}",
        f"{advice} piece{'s' if advice > 1 else ''} of advice" if advice else "no advice",
    ]
    text = f"{', '.join(parts)}."
    changes = sum(len(finding.changes) for finding in findings)
    if changes:
        settings = "1 setting" if changes == 1 else f"{changes} settings"
        text += f" --apply changes {settings}, which --undo can take back."
    return text[0].upper() + text[1:]


def counts(findings: Iterable[Finding], accepted: Collection[str]) -> Counter[Severity]:
    """Return how many findings are what; accepted ones are all right."""
    return Counter(
        Severity.OK if finding.check in accepted else finding.severity for finding in findings
    )


def outcomes_as_text(outcomes: Iterable[Outcome]) -> list[str]:
    """Return lines about what was done."""
    lines = []
    for each in outcomes:
        after = shown(each.kind, each.after)
        before = "" if each.before is None else shown(each.kind, each.before)
        what = {
            Result.CHANGED: f"{before} -> {after}",
            Result.RESTORED: f"{before} -> {after}",
            Result.SAME: f"{after} already",
            Result.ELSEWISE: f"changed by somebody to {before}, and left so; it was {after}",
            Result.GONE: f"not there any more; it was {after}",
            Result.FAILED: f"cannot become {after}: {each.reason}",
        }[each.result]
        label = "FAILED" if each.result is Result.FAILED else each.result.value
        lines += _wrapped(f"{_setting(each)}: {what}", f"{label:9}", _INDENT)
    return lines


def _setting(outcome: Outcome) -> str:
    name = outcome.name
    return {
        Kind.FEATURE: name,
        Kind.RPS: f"RPS of rx-{name}",
        Kind.IRQ: f"interrupt {name}",
        Kind.THREAD: f"NAPI thread {name}",
        Kind.RING: f"{name} descriptors",
        Kind.SYSCTL: name,
        Kind.NOTRACK: f"nft table inet {name}",
    }[outcome.kind]


def findings_as_json(
    host: Host, findings: Sequence[Finding], accepted: Collection[str]
) -> dict[str, Any]:
    """Return the part of the object that is about what was found."""
    found = counts(findings, accepted)
    return {
        "iface": host.iface,
        "port": host.port,
        "findings": [
            {
                "check": each.check,
                "severity": each.severity,
                "accepted": each.check in accepted,
                "found": each.found,
                "why": each.why,
                "commands": each.commands,
                "changes": [
                    {"kind": change.kind, "name": change.name, "value": change.value}
                    for change in each.changes
                ],
            }
            for each in findings
        ],
        "problems": found[Severity.PROBLEM],
        "advice": found[Severity.ADVICE],
        "ok": found[Severity.OK],
    }


def outcomes_as_json(outcomes: Iterable[Outcome], *, applied: bool) -> dict[str, Any]:
    """Return the part of the object that is about what was done."""
    return {
        "schema": _SCHEMA,
        "version": pktstun.__version__,
        "outcomes": [
            {
                "result": each.result,
                "kind": each.kind,
                "name": each.name,
                "before": each.before,
                "after": each.after,
                "reason": each.reason,
            }
            for each in outcomes
        ],
        "applied": applied,
    }


def _wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first) if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
