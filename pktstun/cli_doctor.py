"""The command `doctor`: what on this machine keeps pktstun from its best.

Exit status: 0 where there is no problem (advice does not count, but with --strict), 1 where there
is one, or where a setting could not be changed or brought back; 2, 77 and 78 as in
`pktstun.errors`.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from pktstun.errors import ConfigError, PrivilegeError, UsageError
from pktstun.stun import PORT

if TYPE_CHECKING:
    from pathlib import Path

    from pktstun.doctor import Host, Outcome

__all__ = ["add_command"]

_EPILOG = """\
Without --apply nothing is changed: each finding has the command that changes it, for root, and
says whether --apply does the same. --apply records what was first, in doctor-IFACE.json in
$STATE_DIRECTORY or /run/pktstun-doctor, and --undo brings back just that. What it changes lasts
until the host is started anew.

The exit status is 0 if there is no problem, 1 if there is one, or if a setting could not be
changed or brought back (with --undo also if somebody else has changed it meanwhile).
"""

_LONGEST = 60.0


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser; `run` of what it parses carries it out."""
    doctor = commands.add_parser(
        "doctor",
        help="what on this machine keeps pktstun from its best?",
        description="Look at an interface and its host, and say what costs packets or time, why, "
        "and what\nchanges it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--iface", required=True, metavar="NAME", help="interface to look at")
    doctor.add_argument(
        "--port", type=port, default=PORT, metavar="N", help="UDP port (default: %(default)s)"
    )
    action = doctor.add_mutually_exclusive_group()
    action.add_argument(
        "--apply", action="store_true", help="change what is safe to change, then look again"
    )
    action.add_argument(
        "--undo", action="store_true", help="bring back what was before the first --apply"
    )
    doctor.add_argument(
        "--seconds",
        type=seconds,
        default=1.0,
        metavar="N",
        help="time for which counters are watched (default: %(default)g)",
    )
    doctor.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="CHECK",
        help="a finding that is known and shall not count, such as packet-socket; repeatable",
    )
    doctor.add_argument(
        "--strict", action="store_true", help="advice makes the exit status 1 as well"
    )
    doctor.add_argument("--json", action="store_true", help="print a JSON object")
    doctor.add_argument(
        "--verbose", action="store_true", help="also say what is all right, one by one"
    )
    doctor.set_defaults(run=_doctor)


def port(text: str) -> int:
    """Read a port; argparse names this function in its complaint."""
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not in 1 to 65535")
    return value


def seconds(text: str) -> float:
    """Read a time of at most a minute."""
    value = float(text)
    if not 0 <= value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 to {_LONGEST:g}")
    return value


def _doctor(options: argparse.Namespace) -> int:
    # Imported here: `query` and `--help` work without the compiled module.
    from pktstun import doctor  # noqa: PLC0415

    accepted = frozenset(options.accept)
    if unknown := sorted(accepted - doctor.NAMES):
        raise UsageError(
            f"--accept: there is no check {unknown[0]!r}: name one of "
            f"{', '.join(sorted(doctor.NAMES))}"
        )
    record = doctor.state_path(doctor.records_directory(), options.iface)
    if options.apply or options.undo:
        _require_privilege()
    if options.undo:
        return _undo(options, record)
    host = _look(options)
    findings = doctor.examine(host)
    outcomes: list[Outcome] = []
    if options.apply:
        outcomes = doctor.apply(options.iface, doctor.changes(findings), record)
        host = _look(options)
        findings = doctor.examine(host)
    applied = _is_there(record)
    if options.json:
        found = doctor.findings_as_json(host, findings, accepted)
        print(json.dumps({**found, **doctor.outcomes_as_json(outcomes, applied=applied)}))
    else:
        if options.apply:
            print(*(doctor.outcomes_as_text(outcomes) or ["nothing to change"]), "", sep="\n")
        lines = doctor.as_text(
            host, findings, verbose=options.verbose, accepted=accepted, applied=applied
        )
        print(*lines, sep="\n")
    counts = doctor.counts(findings, accepted)
    failed = any(each.result is doctor.Result.FAILED for each in outcomes)
    bad = counts[doctor.Severity.PROBLEM] + options.strict * counts[doctor.Severity.ADVICE]
    return int(failed or bad > 0)


def _undo(options: argparse.Namespace, record: Path) -> int:
    from pktstun import doctor  # noqa: PLC0415 - see _doctor

    outcomes = doctor.undo(options.iface, record)
    if options.json:
        print(json.dumps(doctor.outcomes_as_json(outcomes, applied=_is_there(record))))
    else:
        nothing = f"nothing to bring back: there is no {record}"
        print(*(doctor.outcomes_as_text(outcomes) or [nothing]), sep="\n")
    missed = {doctor.Result.FAILED, doctor.Result.ELSEWISE}
    return int(any(each.result in missed for each in outcomes))


def _look(options: argparse.Namespace) -> Host:
    from pktstun import doctor  # noqa: PLC0415 - see _doctor
    from pktstun.kernel import local_addresses  # noqa: PLC0415

    known = sorted(each.name for each in local_addresses())
    if options.iface not in known:
        raise ConfigError(
            f"there is no interface {options.iface!r}: name one of {', '.join(known)}"
        )
    return doctor.read_host(options.iface, options.port, options.seconds)


def _is_there(record: Path) -> bool:
    try:
        return record.exists()
    except OSError:  # others may not look into the directory
        return False


def _require_privilege() -> None:
    from pktstun.kernel import privileges  # noqa: PLC0415 - see _doctor

    if privileges.Capability.NET_ADMIN not in privileges.permitted():
        raise PrivilegeError("--apply and --undo need CAP_NET_ADMIN: run as root")
