"""The command line: arguments in, an exit status out; errors are one line each.

The exit statuses are in `pktstun.errors`. What a command is asked for goes to standard
output; everything about how it went goes to standard error.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pktstun
from pktstun import cli_client, cli_config, cli_doctor, cli_install, cli_operate, log
from pktstun.capture import CaptureError, is_capture
from pktstun.decode import (
    CapturedMessage,
    Credentials,
    DissectedMessage,
    as_json,
    as_text,
    dissect,
    dissect_capture,
    read_content,
    read_text,
)
from pktstun.errors import (
    TOO_FEW_DESCRIPTORS,
    ConfigError,
    PktstunError,
    UsageError,
)
from pktstun.options import PREFIX, Said, print_out
from pktstun.options import read as read_options
from pktstun.places import located
from pktstun.repeats import INTERVAL
from pktstun.stun import PORT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pktstun.config import ServeConfig
    from pktstun.engine import Tuning
    from pktstun.kernel import ReceiveQueue, RingGeometry
    from pktstun.limiter import RateLimit
    from pktstun.resources import Resources
    from pktstun.streams import StreamLimits
    from pktstun.users import Credentials as ServedCredentials

__all__ = ["main"]

_LONGEST_REALM = 64
# Fields of configuration classes to the options that set them.
_GEOMETRY = {
    "block_size": "block-size",
    "block_count": "blocks",
    "retire_timeout": "retire-timeout",
}
_TUNING = {"batch": "batch", "spin": "busy-poll"}
_STREAM_LIMITS = {
    "connections": "stream-connections",
    "per_source": "stream-connections-per-source",
    "requests": "stream-requests",
    "idle": "stream-idle-timeout",
    "message": "stream-message-timeout",
    "handshake": "tls-handshake-timeout",
}

_EXAMPLES = """\
examples:
  pktstun serve --iface eth0                       packet rings on eth0, its addresses
  pktstun serve --mode recvmmsg                    ordinary sockets, every address
  pktstun serve --iface eth0 --listen 192.0.2.1    one address only
  pktstun serve --config /etc/pktstun.toml         as a file says
  pktstun check-config /etc/pktstun.toml           can it be served?
  pktstun query stun.example.org                   what is my address?
  pktstun query stuns:stun.example.org             the same over TLS
  pktstun nat stun.example.org                     what does my NAT do?
  pktstun monitor stun.example.org                 latency and loss, like ping
  pktstun status                                   how is the service on this host?
  pktstun top                                      watch it
  pktstun doctor --iface eth0                      what keeps this machine from its best?
  pktstun decode trace.pcapng                      the STUN messages of a capture
  pktstun decode 0001 0000 2112a442 ...            one message, in hex
"""

_SOURCES = f"""\
Every option can be said in the environment, too, as {PREFIX}RATE_LIMIT=100, and in the file of
--config, as rate-limit = 100. The command line has the last word, then the environment, then the
file; what can be repeated is replaced as a whole. In a variable its values stand between commas
or spaces, and an empty variable says nothing.
"""

_DECODE_HELP = """\
INPUT is one of these:
  a file      a pcap or pcapng capture, or a STUN message: as it is, in hex or in base64
  -           the same from standard input, and so is no INPUT at all
  hex         spaces, line ends, colons and 0x are passed over; may be several arguments
  base64      of what begins as a STUN message; either alphabet, padding or not

What can be read in two ways is what comes first in this list; text of an even number of
hex digits is hex. In a capture every UDP datagram that looks like STUN is decoded, on any
port. The exit status is 1 if a message is malformed or its integrity wrong, or if the
capture is broken.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(words, argparse.Namespace(words=words))
    try:
        status: int = options.run(options)
    except PktstunError as error:
        log.complain(str(error))
        return error.exit_status
    except OSError as error:
        # A limit of the process or the host that nothing above has words for.
        few = error.errno in {errno.EMFILE, errno.ENFILE}
        reason = TOO_FEW_DESCRIPTORS if few else f"the system refuses: {error}"
        log.complain(reason)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


class _RaisingParser(argparse.ArgumentParser):
    """Raises where a parser would end the process: the one of a running service must not."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


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
    cli_config.add_command(commands, _serve_options(), _SOURCES, _read_config)
    cli_client.add_commands(commands)
    cli_operate.add_commands(commands)
    cli_doctor.add_command(commands)
    _add_decode(commands)
    cli_install.add_command(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        parents=[_serve_options()],
        help="answer STUN Binding requests",
        epilog=_SOURCES,
        description="Answer STUN Binding requests until SIGTERM or SIGINT; a second one ends "
        "the service at once. SIGHUP reads the configuration again, SIGUSR2 goes over to the "
        "version that is installed now, both without loss; SIGUSR1 logs the counters, at level "
        "info.",
    )
    serve.add_argument(
        "--print-config",
        action="store_true",
        help="print all options as a configuration file, with what said each of them, and end",
    )
    serve.set_defaults(run=_serve)


def _serve_options(
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Return a parser of the options of `serve`, which are also those of `check-config`.

    From here the environment and the configuration file know them, too: see `pktstun.options`.
    """
    serve = kind(add_help=False)
    serve.add_argument(
        "--config", metavar="FILE", help="TOML whose keys are the names of these options"
    )
    serve.add_argument("--iface", metavar="NAME", help="interface to serve")
    serve.add_argument(
        "--mode",
        choices=("ring", "direct", "recvmmsg"),
        help="how requests are read and replies sent (default: ring with --iface, else recvmmsg)",
    )
    serve.add_argument(
        "--takeover",
        action=argparse.BooleanOptionalAction,
        help="keep the kernel from handling again what the rings answer (default: where the "
        "kernel, 6.6 or later, and the privileges allow it)",
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
        "--cpus",
        metavar="LIST",
        default="auto",
        help="one worker on each, as 0-3,8; auto: where the receive queues of --iface are "
        "served, all usable ones if that cannot be told (default: %(default)s)",
    )
    serve.add_argument(
        "--software", metavar="TEXT", help="send a SOFTWARE attribute (default: none)"
    )
    _add_protocols(serve)
    _add_credentials(serve)
    _add_streams(serve)
    _add_protection(serve)
    _add_tuning(serve)
    _add_status(serve)
    serve.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="serve /metrics for Prometheus and /healthz on this host, at unix:/run/pktstun/"
        "metrics.sock, 127.0.0.1:9478 or [::1]:9478 (default: no)",
    )
    serve.add_argument(
        "--log-level", choices=log.LEVELS, default="info", help="default: %(default)s"
    )
    serve.add_argument(
        "--log-format",
        choices=log.FORMATS,
        help="how: a line, a JSON object, or a line with its priority for systemd's journal "
        "(default: journal where standard error is that, else text)",
    )
    serve.add_argument(
        "--log-interval",
        type=log_interval,
        default=INTERVAL,
        metavar="SECONDS",
        help="between two lines about the same cause, with the count of what came meanwhile; 0 "
        "for every line (default: %(default)g)",
    )
    return serve


def _add_protocols(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group("beyond RFC 8489's Binding", "All of it is off by default.")
    group.add_argument(
        "--nat-discovery",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="NAT behaviour discovery (RFC 5780); takes two --listen addresses of a family",
    )
    group.add_argument(
        "--alternate-port",
        type=int,
        metavar="N",
        help="second port of --nat-discovery (default: the first one and 1)",
    )
    group.add_argument(
        "--advertise",
        metavar="ADDR=ADDR",
        action="append",
        default=[],
        help="a --listen address, and the one by which clients know it, behind a one-to-one NAT; "
        "repeatable",
    )
    group.add_argument(
        "--classic",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="answer clients of RFC 3489, which know no magic cookie, too",
    )
    group.add_argument(
        "--alternate-server",
        metavar="ADDR",
        action="append",
        default=[],
        help="send all clients there instead (300 Try Alternate), ADDR, ADDR:PORT or "
        "[ADDR]:PORT; one for each address family",
    )
    group.add_argument(
        "--alternate-domain",
        metavar="NAME",
        help="the domain name on that server's certificate, where it is another one: clients of "
        "--tls are told it",
    )


def _add_credentials(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group(
        "credentials", "RFC 8489 section 9. Every request is then answered by Python."
    )
    group.add_argument(
        "--auth",
        choices=("short-term", "long-term"),
        help="answer those only who have a password (default: everybody)",
    )
    group.add_argument(
        "--users",
        metavar="FILE",
        help="who they are: a line NAME:PASSWORD for each, or NAME:0xKEY with the MD5 or SHA-256 "
        "key of long-term credentials; '#' begins a comment; read again at SIGHUP",
    )
    group.add_argument(
        "--realm", metavar="TEXT", help="of long-term credentials: the provider's domain name"
    )
    group.add_argument(
        "--nonce-lifetime",
        type=int,
        metavar="SECONDS",
        help="time for which a nonce of long-term credentials is good (default: 600)",
    )


def _add_streams(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group(
        "streams", "TCP and TLS, on the addresses that are served over UDP."
    )
    group.add_argument(
        "--tcp",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="serve TCP, on the same ports (default: no)",
    )
    group.add_argument(
        "--tls",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="serve TLS (default: no)",
    )
    group.add_argument(
        "--tls-port", type=int, default=5349, metavar="N", help="TLS port (default: %(default)s)"
    )
    group.add_argument(
        "--tls-certificate",
        metavar="FILE",
        help="certificate and those between it and the root, PEM; read again at SIGHUP",
    )
    group.add_argument(
        "--tls-key",
        metavar="FILE",
        help="its private key, PEM, without a password (default: in the same file)",
    )
    group.add_argument(
        "--stream-connections",
        type=int,
        metavar="N",
        help="connections at once (default: 10000)",
    )
    group.add_argument(
        "--stream-connections-per-source",
        type=int,
        metavar="N",
        help="of an IPv4 address or an IPv6 /64, those closed within the last second included "
        "(default: 100)",
    )
    group.add_argument(
        "--stream-requests",
        type=int,
        metavar="N",
        help="requests per second on a connection; it is read no faster (default: 100)",
    )
    group.add_argument(
        "--stream-idle-timeout",
        type=float,
        metavar="SECONDS",
        help="time without a request after which a connection is closed (default: 300)",
    )
    group.add_argument(
        "--stream-message-timeout",
        type=float,
        metavar="SECONDS",
        help="time for the first request, for the rest of one that has begun, and for the client "
        "to read replies (default: 10)",
    )
    group.add_argument(
        "--tls-handshake-timeout",
        type=float,
        metavar="SECONDS",
        help="time for TLS to come about (default: 10)",
    )


def _add_protection(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group("protection", "See SECURITY.md.")
    group.add_argument(
        "--user",
        metavar="NAME",
        help="user to become when started as root (default: pktstun, if there is one)",
    )
    group.add_argument(
        "--respect-firewall",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="refuse the modes that answer before the host's firewall rules: ring and direct",
    )
    group.add_argument(
        "--rate-limit",
        type=int,
        metavar="N",
        help="replies per second to an IPv4 address or an IPv6 /64, by each worker "
        "(default: no limit)",
    )
    group.add_argument(
        "--rate-limit-network",
        type=int,
        metavar="N",
        help="the same to an IPv4 /24 or an IPv6 /56 (default: 16 times the other)",
    )
    group.add_argument(
        "--rate-limit-share",
        type=int,
        metavar="PERCENT",
        help="of the requests over a limit, the share that is answered, so that a client whose "
        "address others abuse gets through (default: 25)",
    )
    group.add_argument(
        "--rate-limit-exempt",
        metavar="NETWORK",
        action="append",
        default=[],
        help="not limited: a carrier's NAT, a monitor; repeatable",
    )


def _add_tuning(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group("tuning", "The defaults were chosen by measurement.")
    group.add_argument(
        "--batch", type=int, metavar="N", help="datagrams in one recvmmsg or sendmmsg at most"
    )
    group.add_argument(
        "--block-size", type=int, metavar="BYTES", help="a ring's block; multiple of the page size"
    )
    group.add_argument("--blocks", type=int, metavar="N", help="blocks in a ring")
    group.add_argument(
        "--retire-timeout",
        type=int,
        metavar="MS",
        help="time that a request waits at most for its block to fill",
    )
    group.add_argument(
        "--busy-poll",
        type=int,
        default=0,
        metavar="USEC",
        help="time that an idle worker looks for more before it sleeps; for CPUs of its own",
    )
    group.add_argument(
        "--nice",
        type=nice_value,
        metavar="N",
        help="nice value of the workers, -20 to 19 (default: -10 where that is allowed)",
    )


def _add_status(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group("status", "What 'pktstun status' and 'pktstun top' ask.")
    group.add_argument(
        "--status",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="have a status socket (default: yes)",
    )
    group.add_argument(
        "--status-socket",
        metavar="PATH",
        help="its path (default: a file named by the process id in $RUNTIME_DIRECTORY, else in "
        "/run/pktstun/UID, $XDG_RUNTIME_DIR/pktstun or /tmp/pktstun-UID)",
    )


def _add_decode(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    decode = commands.add_parser(
        "decode",
        help="show what STUN messages say",
        description="Show what is in STUN messages, attribute by attribute, and where.",
        epilog=_DECODE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    decode.add_argument("input", nargs="*", metavar="INPUT", help="see below")
    decode.add_argument("--json", action="store_true", help="print a JSON object per message")
    decode.add_argument(
        "--password",
        metavar="TEXT",
        help="check the integrity: with short-term credentials, or with long-term ones if the "
        "message has a REALM or one of the next two is given",
    )
    decode.add_argument(
        "--username", metavar="TEXT", help="of long-term credentials (default: the message's)"
    )
    decode.add_argument(
        "--realm", metavar="TEXT", help="of long-term credentials (default: the message's)"
    )
    decode.set_defaults(run=_decode)


def nice_value(text: str) -> int:
    """Read a nice value; argparse names this function in its complaint."""
    value = int(text)
    if not -20 <= value <= 19:
        raise argparse.ArgumentTypeError(f"{text} is not in -20 to 19")
    return value


def log_interval(text: str) -> float:
    """Read an interval of at most a day; argparse names this function in its complaint."""
    value = float(text)
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 to 86400")
    return value


def _serve(options: argparse.Namespace) -> int:
    # Imported here: `query` and `--help` work without the compiled module.
    from pktstun import _process  # noqa: PLC0415

    words = options.words
    # As far as the command line says it: for what is wrong with the rest.
    log.configure(options.log_level, options.log_format, options.log_interval)
    if options.print_config:
        said = _said(words)
        defaults = _defaults(_config_of(said, reads_users=False))
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as TOML is
        print(print_out(said, defaults), end="")
        return 0
    return _process.serve(lambda: _read_config(words), _announce)


def _read_config(
    words: Sequence[str], file: Path | None = None, *, reads_users: bool = True
) -> ServeConfig:
    """Return what command line, environment and configuration file say now.

    Args:
        words: the command line, the command in front.
        file: the configuration file, if it is not the one that the others name.
        reads_users: False to leave the users out: their file may be another host's.

    Raises:
        ConfigError: that makes no sense; the text says where.
    """
    return _config_of(_said(words, file), reads_users=reads_users)


def _said(words: Sequence[str], file: Path | None = None) -> Said:
    return read_options(_serve_options(_RaisingParser), words[1:], os.environ, file)


def _config_of(said: Said, *, reads_users: bool = True) -> ServeConfig:
    try:
        with located(said.places):
            made = _make_config(said.values, reads_users=reads_users)
    except UsageError as error:
        # Wherever it was said: what a service manager must not start again, whose status is 78.
        raise ConfigError(str(error)) from error
    return replace(made, places=said.places)


def _make_config(options: argparse.Namespace, *, reads_users: bool) -> ServeConfig:
    from pktstun import config  # noqa: PLC0415 - see _serve

    return config.ServeConfig(
        iface=options.iface,
        mode=config.Mode(options.mode) if options.mode else None,
        listen=tuple(options.listen),
        port=options.port,
        cpus=_cpus(options),
        software=options.software,
        nat_discovery=options.nat_discovery,
        alternate_port=options.alternate_port,
        advertise=tuple(options.advertise),
        classic=options.classic,
        alternate_servers=tuple(options.alternate_server),
        alternate_domain=options.alternate_domain,
        takeover=options.takeover,
        geometry=_geometry(options),
        tuning=_tuning(options),
        rate_limit=_rate_limit(options),
        credentials=_served_credentials(options, reads_users=reads_users),
        nice=options.nice,
        user=options.user,
        respect_firewall=options.respect_firewall,
        tcp=options.tcp,
        tls=options.tls,
        tls_port=options.tls_port,
        tls_certificate=options.tls_certificate,
        tls_key=options.tls_key,
        stream_limits=_stream_limits(options),
        metrics=options.metrics,
        status=options.status,
        status_socket=options.status_socket,
        log_level=options.log_level,
        log_format=options.log_format,
        log_interval=options.log_interval,
    )


def _cpus(options: argparse.Namespace) -> tuple[int, ...] | None:
    from pktstun.config import parse_cpus  # noqa: PLC0415 - see _serve

    if options.cpus == "auto":
        return None
    try:
        return parse_cpus(options.cpus)
    except ConfigError as error:
        raise ConfigError(f"--cpus: {error}") from error


def _given(options: argparse.Namespace, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that options were given for, and their values."""
    found = {field: getattr(options, name.replace("-", "_")) for field, name in fields.items()}
    return {field: value for field, value in found.items() if value is not None}


def _defaults(config: ServeConfig) -> dict[str, object]:
    """Return what holds where an option was not given and the command line knows no default."""
    return {
        option: getattr(part, field)
        for part, fields in (
            (config.geometry, _GEOMETRY),
            (config.tuning, {"batch": "batch"}),
            (config.stream_limits, _STREAM_LIMITS),
        )
        for field, option in fields.items()
    }


def _geometry(options: argparse.Namespace) -> RingGeometry:
    from pktstun.kernel import RingGeometry  # noqa: PLC0415 - see _serve

    try:
        return RingGeometry(**_given(options, _GEOMETRY))
    except ValueError as error:
        raise _of_option(error) from error


def _stream_limits(options: argparse.Namespace) -> StreamLimits:
    from pktstun.streams import StreamLimits  # noqa: PLC0415 - see _serve

    for option in ("tls_certificate", "tls_key", "tls_handshake_timeout"):
        if getattr(options, option) is not None and not options.tls:
            raise UsageError(f"--{option.replace('_', '-')} is of use with --tls only")
    given = _given(options, _STREAM_LIMITS)
    if given and not (options.tcp or options.tls):
        option = _STREAM_LIMITS[next(iter(given))]
        raise UsageError(f"--{option} is of use with --tcp or --tls only")
    return StreamLimits(**given)


def _rate_limit(options: argparse.Namespace) -> RateLimit | None:
    from pktstun.limiter import RateLimit  # noqa: PLC0415 - see _serve

    if options.rate_limit is None:
        for option in ("rate_limit_network", "rate_limit_share", "rate_limit_exempt"):
            if getattr(options, option) not in (None, []):
                raise UsageError(f"--{option.replace('_', '-')} is of use with --rate-limit only")
        return None
    given = {} if options.rate_limit_share is None else {"share": options.rate_limit_share}
    return RateLimit(
        options.rate_limit,
        options.rate_limit_network,
        exempt=tuple(options.rate_limit_exempt),
        **given,
    )


def _served_credentials(
    options: argparse.Namespace, *, reads_users: bool
) -> ServedCredentials | None:
    from pktstun import users  # noqa: PLC0415 - see _serve

    is_long_term = options.auth == users.Mechanism.LONG_TERM
    for option, goes_with, is_of_use in (
        ("users", "--auth", options.auth is not None),
        ("realm", "--auth long-term", is_long_term),
        ("nonce_lifetime", "--auth long-term", is_long_term),
    ):
        if getattr(options, option) is not None and not is_of_use:
            raise UsageError(f"--{option.replace('_', '-')} is of use with {goes_with} only")
    if options.auth is None:
        return None
    if options.users is None:
        raise UsageError(f"--auth {options.auth}: name the file of the users with --users")
    if is_long_term and options.realm is None:
        raise UsageError("--auth long-term: name the realm with --realm, as --realm example.org")
    if options.realm is not None and len(options.realm.encode()) > _LONGEST_REALM:
        raise UsageError(
            f"--realm: it is in every 401, which anybody can have sent to anybody, so use at most "
            f"{_LONGEST_REALM} bytes"
        )
    if options.nonce_lifetime is not None and options.nonce_lifetime < 1:
        raise UsageError(
            f"--nonce-lifetime {options.nonce_lifetime}: a nonce is good for a second at least"
        )
    mechanism = users.Mechanism(options.auth)
    known = users.read_users(Path(options.users), mechanism) if reads_users else {}
    given = {} if options.nonce_lifetime is None else {"nonce_lifetime": options.nonce_lifetime}
    return users.Credentials(known, options.realm, **given)


def _tuning(options: argparse.Namespace) -> Tuning:
    from pktstun.engine import Tuning  # noqa: PLC0415 - see _serve

    given = {} if options.batch is None else {"batch": options.batch}
    try:
        return Tuning(spin=options.busy_poll / 1e6, **given)
    except ValueError as error:
        raise _of_option(error) from error


def _of_option(error: ValueError) -> ConfigError:
    """Say it of the option: these classes speak of their fields, and begin with them."""
    field, _, complaint = str(error).partition(" ")
    return ConfigError(f"--{(_GEOMETRY | _TUNING)[field]}: {complaint}")


def _announce(resources: Resources) -> None:
    plan = resources.plan
    where = f" iface={plan.iface.name}" if plan.iface else ""
    if plan.mode.reads_ring:
        where += f" takeover={'on' if resources.takeover else 'off'}"
    if plan.config.credentials:
        where += f" auth={plan.config.credentials.mechanism}"
    listens = ",".join(map(str, resources.listens))
    workers = ",".join(
        f"{number}@cpu{cpu}{_queues_on(plan.queues, cpu)}" for number, cpu in enumerate(plan.cpus)
    )
    served = sorted(map(str, plan.options.endpoints))
    line = (
        f"pktstun {pktstun.__version__} ready: mode={plan.mode}{where} workers={workers} "
        f"sockets={listens} serving={','.join(served)}"
    )
    if plan.streams is not None:
        for name, tls in (("tcp", False), ("tls", True)):
            bound = ",".join(map(str, resources.stream_listens(tls=tls)))
            line += f" {name}={bound or 'off'}"
    if plan.metrics is not None:
        line += f" metrics={plan.metrics}"
    try:
        print(log.in_format(line), flush=True)
    except OSError as error:
        # Nobody reads it (a full disk, a closed pipe): no reason to end the service.
        logging.getLogger("pktstun").warning("%s (standard output: %s)", line, error.strerror)
    logging.getLogger("pktstun").debug("options: %s", plan.options)


def _queues_on(queues: Sequence[ReceiveQueue], cpu: int) -> str:
    """Name the receive queues that are known to be served on a CPU: `:rx0+rx2`."""
    names = [f"rx{queue.index}" for queue in queues if cpu in queue.cpus]
    return f":{'+'.join(names)}" if names else ""


def _decode(options: argparse.Namespace) -> int:
    credentials = _credentials(options)
    data = _read_input(options.input)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the encoding lacks is escaped, as on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if is_capture(data):
            status = _decode_capture(data, credentials, in_json=options.json)
        else:
            message = dissect(data, credentials)
            _print_message(message, None, in_json=options.json)
            status = int(message.is_faulty)
        print(end="", flush=True)
    except OSError as error:
        # What is left in the buffer would fail once more at the end of the process.
        if sys.stdout is not None:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # The reader has seen enough; this is how other programs end then.
            return 128 + signal.SIGPIPE
        raise
    return status


def _credentials(options: argparse.Namespace) -> Credentials | None:
    if options.password is not None:
        return Credentials(options.password, options.username, options.realm)
    if options.username is not None or options.realm is not None:
        raise UsageError("--username and --realm are of use with --password only")
    return None


def _read_input(arguments: list[str]) -> bytes:
    """Return a message or a capture; UsageError where there is none."""
    content: bytes | None = None
    name = "the arguments together, of which none can be a file"
    if arguments in ([], ["-"]):
        name, content = "standard input", _read_standard_input()
    elif len(arguments) == 1:
        name, content = _shown(arguments[0]), _read_file(arguments[0])
        if content is None:
            name += ", which is no file"
    try:
        return read_text(" ".join(arguments)) if content is None else read_content(content)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _shown(argument: str) -> str:
    return repr(argument) if len(argument) <= 80 else "the argument"


def _read_standard_input() -> bytes:
    # There is none in a process that was started with it closed.
    if sys.stdin is None:
        return b""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise UsageError(f"cannot read standard input: {error.strerror}") from error


def _read_file(name: str) -> bytes | None:
    """Return what is in a file, or None if there is no such file."""
    if not name or "\0" in name:
        return None  # no file can have such a name
    try:
        return Path(name).read_bytes()
    except OSError as error:
        # Hex and base64 may look like a path, and be too long for one.
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            return None
        raise UsageError(f"cannot read {name!r}: {error.strerror}") from error


def _decode_capture(file: bytes, credentials: Credentials | None, *, in_json: bool) -> int:
    """Print all messages of a capture, and on standard error how much of it they are."""
    messages = malformed = status = 0
    skipped: Counter[str] = Counter()
    problem = None
    try:
        for outcome in dissect_capture(file, credentials):
            if isinstance(outcome, str):
                skipped[outcome] += 1
                continue
            if messages and not in_json:
                print()
            _print_message(outcome.message, outcome, in_json=in_json)
            messages += 1
            malformed += outcome.message.error is not None
            status |= outcome.message.is_faulty
    except CaptureError as error:
        problem = error
    print(end="", flush=True)
    if problem is not None:
        print(f"pktstun: {problem}", file=sys.stderr)
        status = problem.exit_status
    reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.most_common())
    print(
        f"pktstun: packets {messages + skipped.total()}, STUN {messages}, malformed {malformed}, "
        f"skipped {skipped.total()}{f' ({reasons})' if reasons else ''}",
        file=sys.stderr,
    )
    return status


def _print_message(
    message: DissectedMessage, captured: CapturedMessage | None, *, in_json: bool
) -> None:
    if in_json:
        print(json.dumps(as_json(message, captured)))
    else:
        print(*as_text(message, captured), sep="\n")
