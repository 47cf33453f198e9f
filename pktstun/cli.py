"""The command line: arguments in, an exit status out; errors are one line each.

The exit statuses are in `pktstun.errors`. What a command is asked for goes to standard
output; everything about how it went goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
from typing import TYPE_CHECKING

import pktstun
from pktstun import log
from pktstun.client import QueryResult, query, resolve
from pktstun.errors import PktstunError, StunError, UsageError
from pktstun.stun import PORT
from pktstun.stun._types import split_host_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pktstun.resources import Resources

__all__ = ["main"]

_LONGEST = 3600

_EXAMPLES = """\
examples:
  pktstun serve --iface eth0                       packet rings on eth0, its addresses
  pktstun serve --mode recvmmsg                    ordinary sockets, every address
  pktstun serve --iface eth0 --listen 192.0.2.1    one address only
  pktstun query stun.example.org                   what is my address?
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except PktstunError as error:
        print(f"pktstun: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        # A limit of the process or the host that nothing above has words for.
        print(f"pktstun: the system refuses: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pktstun",
        description="A STUN server on AF_PACKET rings, and a STUN client.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pktstun {pktstun.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_query(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="answer STUN Binding requests",
        description="Answer STUN Binding requests until SIGTERM or SIGINT; a second one ends "
        "the service at once. SIGUSR1 logs the counters, at level info.",
    )
    serve.add_argument("--iface", metavar="NAME", help="interface to serve")
    serve.add_argument(
        "--mode",
        choices=("ring", "recvmmsg"),
        help="how requests are read (default: ring with --iface, else recvmmsg)",
    )
    serve.add_argument(
        "--listen",
        metavar="ADDR",
        action="append",
        default=[],
        help="address to serve, ADDR, ADDR:PORT or [ADDR]:PORT; repeatable "
        "(default: those of --iface, without it every address)",
    )
    serve.add_argument(
        "--port", type=int, default=PORT, metavar="N", help=f"UDP port (default: {PORT})"
    )
    serve.add_argument(
        "--cpus", metavar="LIST", help="one worker on each, as 0-3,8 (default: all usable)"
    )
    serve.add_argument(
        "--software", metavar="TEXT", help="send a SOFTWARE attribute (default: none)"
    )
    serve.add_argument(
        "--log-level", choices=log.LEVELS, default="info", help="default: %(default)s"
    )
    serve.set_defaults(run=_serve)


def _add_query(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ask = commands.add_parser(
        "query",
        help="ask a server for this host's address",
        description="Send a Binding request and print the mapped address. The exit status is "
        "0 only for a correct answer.",
    )
    ask.add_argument("server", metavar="HOST[:PORT]")
    family = ask.add_mutually_exclusive_group()
    family.add_argument(
        "-4", dest="family", action="store_const", const=socket.AF_INET, help="IPv4 only"
    )
    family.add_argument(
        "-6", dest="family", action="store_const", const=socket.AF_INET6, help="IPv6 only"
    )
    ask.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="give up after this time (default: RFC 8489's schedule, 39.5 s)",
    )
    ask.add_argument(
        "--rto",
        type=seconds,
        default=0.5,
        metavar="SECONDS",
        help="time until the first retransmission (default: %(default)s)",
    )
    ask.add_argument("--json", action="store_true", help="print a JSON object")
    ask.set_defaults(run=_query, family=socket.AF_UNSPEC)


def seconds(text: str) -> float:
    """Read a time of at most an hour; argparse names this function in its complaint."""
    value = float(text)
    if not 0 < value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..{_LONGEST} seconds")
    return value


def _serve(options: argparse.Namespace) -> int:
    # Imported here: `query` and `--help` work without the compiled module.
    from pktstun import _process, config  # noqa: PLC0415

    log.configure(options.log_level)
    plan = config.plan(
        config.ServeConfig(
            iface=options.iface,
            mode=config.Mode(options.mode) if options.mode else None,
            listen=tuple(options.listen),
            port=options.port,
            cpus=config.parse_cpus(options.cpus) if options.cpus is not None else None,
            software=options.software,
        )
    )
    return _process.serve(plan, _announce)


def _announce(resources: Resources) -> None:
    plan = resources.plan
    where = f" iface={plan.iface.name}" if plan.iface else ""
    listens = ",".join(map(str, resources.listens))
    workers = ",".join(f"{number}@cpu{cpu}" for number, cpu in enumerate(plan.cpus))
    served = sorted(map(str, plan.options.endpoints))
    line = (
        f"pktstun {pktstun.__version__} ready: mode={plan.mode}{where} workers={workers} "
        f"sockets={listens} serving={','.join(served)}"
    )
    try:
        print(line, flush=True)
    except OSError as error:
        # Nobody reads it (a full disk, a closed pipe): no reason to end the service.
        logging.getLogger("pktstun").warning("%s (standard output: %s)", line, error.strerror)
    logging.getLogger("pktstun").debug("options: %s", plan.options)


def _query(options: argparse.Namespace) -> int:
    try:
        host, port = split_host_port(options.server)
    except StunError as error:
        raise UsageError(str(error)) from error
    result = query(resolve(host, port, options.family), timeout=options.timeout, rto=options.rto)
    print(_as_json(result) if options.json else result.mapped)
    return 0


def _as_json(result: QueryResult) -> str:
    return json.dumps(
        {
            "mapped": {"ip": str(result.mapped.ip), "port": result.mapped.port},
            "local": {"ip": str(result.local.ip), "port": result.local.port},
            "server": {"ip": str(result.server.ip), "port": result.server.port},
            "round_trip_ms": round(result.round_trip * 1000, 3),
            "requests": result.requests,
            "software": result.software,
            "fingerprint": result.fingerprint,
        }
    )
