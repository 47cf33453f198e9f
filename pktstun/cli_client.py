"""The commands that ask servers: `query`, `nat` and `monitor`, from arguments to an exit status.

What a command is asked for goes to standard output, how it went to standard error. The clients are
imported when one of them runs: a server has no use for TLS.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pktstun.cli_kinds import count
from pktstun.errors import StunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pktstun.client import (
        Credentials,
        NatReport,
        QueryResult,
        Sample,
        ServerName,
        Summary,
        Transport,
    )
    from pktstun.stun import TransportAddress

__all__ = ["add_commands"]

_LONGEST = 3600
_PASSWORD = "PKTSTUN_PASSWORD"  # noqa: S105 - the variable's name

_SERVER_HELP = """\
SERVER is HOST, HOST:PORT, or a URI as in RFC 7064: stun:HOST, stun:HOST:PORT, stuns:HOST (TLS).
A name without a port is looked up in the SRV records of its domain with --srv, and in a URI if
dnspython is installed (pip install dnspython, or apt install python3-dnspython); --no-srv does
without.
"""

_NAT_HELP = (
    _SERVER_HELP
    + """\
It has to support RFC 5780, with two addresses and two ports.

The words are those of RFC 4787. A mapping is endpoint-independent if all peers see one address
and port, and address-dependent or address and port-dependent if they do not. A filter lets in
everybody, or those addresses, or addresses and ports, that have been sent to. The exit status is
0 if all of it could be told.
"""
)


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to a parser; `run` of what they parse carries them out."""
    _add_query(commands)
    _add_nat(commands)
    _add_monitor(commands)


def _add_query(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ask = commands.add_parser(
        "query",
        help="ask a server for this host's address",
        description="Send a Binding request and print the mapped address. The exit status is "
        "0 only for a\ncorrect answer.",
        epilog=_SERVER_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server(ask)
    carried = ask.add_mutually_exclusive_group()
    carried.add_argument("--tcp", action="store_true", help="over TCP")
    carried.add_argument("--tls", action="store_true", help="over TLS, by default at port 5349")
    ask.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="give up after this time, with each of the server's addresses (default: RFC 8489's "
        "schedule, 39.5 s)",
    )
    _add_rto(ask)
    ask.add_argument("--json", action="store_true", help="print a JSON object")
    trust = ask.add_argument_group("trust")
    trust.add_argument(
        "--ca", type=Path, metavar="FILE", help="PEM file of who may sign the certificate, for TLS"
    )
    trust.add_argument(
        "--insecure", action="store_true", help="take any certificate: only to try things out"
    )
    trust.add_argument("--username", metavar="TEXT", help="who asks, if the server wants to know")
    secret = trust.add_mutually_exclusive_group()
    secret.add_argument(
        "--password",
        metavar="TEXT",
        help=f"the user's password. Others on this host can see it here: better are the next "
        f"option and the variable {_PASSWORD}",
    )
    secret.add_argument(
        "--password-file", type=Path, metavar="FILE", help="its first line is the password"
    )
    trust.add_argument(
        "--short-term",
        action="store_true",
        help="the credentials are short-term ones, as in ICE, and sent at once (default: "
        "long-term ones, sent when the server asks)",
    )
    ask.set_defaults(run=_query)


def _add_nat(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    nat = commands.add_parser(
        "nat",
        help="find out what a NAT or firewall on the way does",
        description="Find out how the NATs and firewalls between this host and a server treat "
        "UDP, and say\nwhat that means for peer-to-peer.",
        epilog=_NAT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server(nat)
    _add_rto(nat)
    nat.add_argument(
        "--lifetime",
        type=seconds,
        metavar="SECONDS",
        help="also measure how long an unused binding lives, up to so many seconds (300 is more "
        "than most); takes as long or twice as long, and says meanwhile what it has found",
    )
    nat.add_argument("--json", action="store_true", help="print a JSON object")
    nat.set_defaults(run=_nat)


def _add_monitor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    monitor = commands.add_parser(
        "monitor",
        help="watch latency and loss, as ping does",
        description="Send a Binding request in every interval and print what becomes of each, "
        "and a summary at\nthe end or at Ctrl-C. The exit status is 0 if there was an answer.",
        epilog=_SERVER_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server(monitor)
    monitor.add_argument(
        "--interval",
        type=interval,
        default=1.0,
        metavar="SECONDS",
        help="between requests, at least 0.2 (default: %(default)s)",
    )
    monitor.add_argument(
        "--timeout",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="after which a request is lost (default: %(default)s)",
    )
    monitor.add_argument("--count", type=count, metavar="N", help="end after so many requests")
    monitor.add_argument(
        "--duration", type=positive, metavar="SECONDS", help="end after so many seconds"
    )
    monitor.add_argument(
        "--json", action="store_true", help="print a JSON object per request, and the summary"
    )
    monitor.set_defaults(run=_monitor)


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument("server", metavar="SERVER")
    family = command.add_mutually_exclusive_group()
    family.add_argument(
        "-4", dest="family", action="store_const", const=socket.AF_INET, help="IPv4 only"
    )
    family.add_argument(
        "-6", dest="family", action="store_const", const=socket.AF_INET6, help="IPv6 only"
    )
    command.add_argument(
        "--srv",
        action=argparse.BooleanOptionalAction,
        help="look for SRV records, or never (default: for names in URIs)",
    )
    command.set_defaults(family=socket.AF_UNSPEC)


def _add_rto(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rto",
        type=seconds,
        default=0.5,
        metavar="SECONDS",
        help="time until the first retransmission (default: %(default)s)",
    )


def seconds(text: str) -> float:
    """Read a time of at most an hour; argparse names this function in its complaint."""
    value = float(text)
    if not 0 < value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..{_LONGEST} seconds")
    return value


def interval(text: str) -> float:
    """Read the time between requests; argparse names this function in its complaint."""
    from pktstun.client import SHORTEST_INTERVAL  # noqa: PLC0415 - see above

    value = seconds(text)
    if value < SHORTEST_INTERVAL:
        raise argparse.ArgumentTypeError(
            f"{text} is too short: at least {SHORTEST_INTERVAL:g} seconds, servers belong to others"
        )
    return value


def positive(text: str) -> float:
    """Read a time without a limit; argparse names this function in its complaint."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


# --- Servers and credentials ---


def _server(options: argparse.Namespace) -> ServerName:
    from pktstun.client import parse_server  # noqa: PLC0415 - see above

    try:
        return parse_server(options.server)
    except StunError as error:
        raise UsageError(str(error)) from error


def _transport(options: argparse.Namespace, server: ServerName) -> Transport:
    from pktstun.client import Transport  # noqa: PLC0415 - see above

    secure = options.tls or server.scheme == "stuns"
    if secure and options.tcp:
        raise UsageError("stuns: means TLS; --tcp goes with stun:")
    if not secure and (options.ca or options.insecure):
        raise UsageError("--ca and --insecure are of use with --tls or stuns: only")
    if options.ca and options.insecure:
        raise UsageError("--insecure looks at no certificate: leave it or --ca out")
    if secure:
        return Transport.TLS
    return Transport.TCP if options.tcp else Transport.UDP


def _udp_addresses(options: argparse.Namespace, service: str) -> list[TransportAddress]:
    from pktstun.client import locate  # noqa: PLC0415 - see above

    server = _server(options)
    if server.scheme == "stuns":
        raise UsageError(f"'pktstun {options.command}' asks over UDP: stun:, not stuns:")
    return locate(server, family=options.family, srv=options.srv, service=service)


def _credentials(options: argparse.Namespace) -> Credentials | None:
    from pktstun.client import Credentials  # noqa: PLC0415 - see above

    if options.username is None:
        for option in ("password", "password_file", "short_term"):
            if getattr(options, option):
                raise UsageError(f"--{option.replace('_', '-')} needs --username")
        return None
    password = options.password
    if password is None and options.password_file:
        password = _first_line(options.password_file)
    if password is None:
        password = os.environ.get(_PASSWORD)
    if not password:
        raise UsageError(
            f"--username needs a password: {_PASSWORD} in the environment, --password-file or "
            "--password"
        )
    return Credentials(options.username, password, short_term=options.short_term)


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().rstrip("\n")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read --password-file {str(path)!r}: {reason}") from error


# --- What is done ---


def _query(options: argparse.Namespace) -> int:
    from pktstun.client import Tls, Transport, locate, query_any  # noqa: PLC0415 - see above

    server = _server(options)
    transport = _transport(options, server)
    credentials = _credentials(options)
    tls = None
    if transport is Transport.TLS:
        tls = Tls(name=server.host, ca=options.ca, verify=not options.insecure)
        if options.insecure:
            _say("warning: --insecure: whoever is in between can answer as the server")
    try:
        result = query_any(
            locate(server, transport, family=options.family, srv=options.srv),
            timeout=options.timeout,
            rto=options.rto,
            transport=transport,
            credentials=credentials,
            tls=tls,
        )
    except StunError as error:
        raise UsageError(f"--username, --password: {error}") from error
    print(json.dumps(_query_as_json(result)) if options.json else result.mapped)
    return 0


def _nat(options: argparse.Namespace) -> int:
    from pktstun.client import discover, explain  # noqa: PLC0415 - see above

    addresses = _udp_addresses(options, "stun-behavior")
    report = discover(addresses[0], rto=options.rto, lifetime=options.lifetime, progress=_say)
    if options.json:
        print(json.dumps(_nat_as_json(report)))
    else:
        print(*_nat_as_text(report), "", *explain(report), sep="\n")
    return int(bool(report.notes))


def _monitor(options: argparse.Namespace) -> int:
    from pktstun.client import Summary, watch  # noqa: PLC0415 - see above

    server = _udp_addresses(options, "stun")[0]
    samples = watch(
        server,
        interval=options.interval,
        timeout=options.timeout,
        count=options.count,
        duration=options.duration,
    )
    summary = Summary()
    try:
        _print_samples(samples, summary, in_json=options.json)
        if options.json:
            print(json.dumps({"summary": _summary_as_json(server, summary)}), flush=True)
        else:
            print("", *_summary_as_text(options.server, summary), sep="\n", flush=True)
    except BrokenPipeError:
        # The reader has seen enough. What is left in the buffer would fail once more at the end.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0 if summary.received else 1


def _print_samples(samples: Iterator[Sample], summary: Summary, *, in_json: bool) -> None:
    """Print and count samples until there are no more or somebody presses Ctrl-C."""
    try:
        for sample in samples:
            before = summary.mapped
            changed = summary.add(sample)
            if in_json:
                print(json.dumps(_sample_as_json(sample, changed=changed)), flush=True)
            elif sample.latency is None:
                print(f"seq={sample.sequence} {sample.problem}", flush=True)
            else:
                was = f" (was {before})" if changed else ""
                milliseconds = sample.latency * 1000
                print(
                    f"{sample.mapped} seq={sample.sequence} time={milliseconds:.3f} ms{was}",
                    flush=True,
                )
    except KeyboardInterrupt:
        return


def _say(text: str) -> None:
    print(f"pktstun: {text}", file=sys.stderr, flush=True)


# --- As text and JSON ---


def _address_as_json(address: TransportAddress | None) -> dict[str, object] | None:
    return None if address is None else {"ip": str(address.ip), "port": address.port}


def _milliseconds(time_in_seconds: float | None) -> float | None:
    return None if time_in_seconds is None else round(time_in_seconds * 1000, 3)


def _query_as_json(result: QueryResult) -> dict[str, object]:
    return {
        "mapped": _address_as_json(result.mapped),
        "local": _address_as_json(result.local),
        "server": _address_as_json(result.server),
        "round_trip_ms": _milliseconds(result.round_trip),
        "requests": result.requests,
        "software": result.software,
        "fingerprint": result.fingerprint,
        "transport": result.transport,
        "tls": result.tls,
        "integrity": result.integrity,
        "realm": result.realm,
        "redirected_by": [_address_as_json(each) for each in result.redirected_by],
    }


def _nat_as_json(report: NatReport) -> dict[str, object]:
    from pktstun.client import explain  # noqa: PLC0415 - see above

    lifetime = report.lifetime and [round(each, 1) if each else each for each in report.lifetime]
    return {
        "server": _address_as_json(report.server),
        "other": _address_as_json(report.other),
        "local": _address_as_json(report.local),
        "mapped": _address_as_json(report.mapped),
        "nat": report.is_nat,
        "mapping": report.mapping,
        "filtering": report.filtering,
        "hairpinning": report.hairpinning,
        "preserves_port": report.preserves_port,
        "rewrites_addresses": report.rewrites_addresses,
        "lifetime_s": lifetime,
        "summary": " ".join(explain(report)),
        "notes": list(report.notes),
    }


def _nat_as_text(report: NatReport) -> list[str]:
    unknown = "cannot be told"
    yes_or_no = {True: "yes", False: "no", None: unknown}
    rows: dict[str, object] = {
        "server": f"{report.server}, {report.other}",
        "local": report.local,
        "mapped": report.mapped,
        "NAT": yes_or_no[report.is_nat],
        "mapping": report.mapping.words if report.mapping else unknown,
        "filtering": report.filtering.words if report.filtering else unknown,
    }
    if report.is_nat:
        rows["hairpinning"] = yes_or_no[report.hairpinning]
        rows["port kept"] = yes_or_no[report.preserves_port]
    return [f"{name:<12} {value}" for name, value in rows.items()]


def _sample_as_json(sample: Sample, *, changed: bool) -> dict[str, object]:
    return {
        "time": round(time.time(), 3),
        "seq": sample.sequence,
        "latency_ms": _milliseconds(sample.latency),
        "mapped": _address_as_json(sample.mapped),
        "changed": changed,
        "problem": sample.problem,
    }


def _summary_as_json(server: TransportAddress, summary: Summary) -> dict[str, object]:
    return {
        "server": _address_as_json(server),
        "sent": summary.sent,
        "received": summary.received,
        "loss": round(summary.loss, 4),
        "latency_ms": {
            name: _milliseconds(summary.quantile(share)) for name, share in _QUANTILES.items()
        },
        "mapped": _address_as_json(summary.mapped),
        "changes": summary.changes,
    }


_QUANTILES = {"min": 0.0, "median": 0.5, "p99": 0.99, "max": 1.0}


def _summary_as_text(server: str, summary: Summary) -> list[str]:
    counts = (
        f"{server}: {summary.sent} sent, {summary.received} received, "
        f"{summary.loss:.1%} lost, mapped address changed {summary.changes} times"
    )
    lines = [counts]
    if summary.received:
        values = (summary.quantile(share) or 0.0 for share in _QUANTILES.values())
        numbers = "/".join(f"{value * 1000:.3f}" for value in values)
        lines.append(f"latency {'/'.join(_QUANTILES)} = {numbers} ms")
    return lines
