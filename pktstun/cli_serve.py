"""The command that serves: arguments, environment and file in, a running service out.

The ready line goes to standard output, everything about how it goes to standard error.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pktstun
from pktstun import log
from pktstun.cli_serve_options import SOURCES, serve_options
from pktstun.errors import ConfigError, UsageError
from pktstun.options import Said, print_out
from pktstun.options import read as read_options
from pktstun.places import located

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pktstun.config import ServeConfig
    from pktstun.engine import Tuning
    from pktstun.kernel import ReceiveQueue, RingGeometry
    from pktstun.limiter import RateLimit
    from pktstun.resources import Resources
    from pktstun.streams import StreamLimits
    from pktstun.users import Credentials

__all__ = ["add_command", "read_config", "said"]

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


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser; `run` of what it parses carries it out."""
    serve = commands.add_parser(
        "serve",
        parents=[serve_options()],
        help="answer STUN Binding requests",
        epilog=SOURCES,
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


class _RaisingParser(argparse.ArgumentParser):
    """Raises where a parser would end the process: the one of a running service must not."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _serve(options: argparse.Namespace) -> int:
    # Imported here: `query` and `--help` work without the compiled module.
    from pktstun import _process  # noqa: PLC0415

    words = options.words
    # As far as the command line says it: for what is wrong with the rest.
    log.configure(options.log_level, options.log_format, options.log_interval)
    if options.print_config:
        what = said(words)
        defaults = _defaults(_config_of(what, reads_users=False))
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as TOML is
        print(print_out(what, defaults), end="")
        return 0
    return _process.serve(lambda: read_config(words), _announce)


def read_config(
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
    return _config_of(said(words, file), reads_users=reads_users)


def said(words: Sequence[str], file: Path | None = None) -> Said:
    """Return what the options are, and where each was said; arguments as for `read_config`."""
    return read_options(serve_options(_RaisingParser), words[1:], os.environ, file)


def _config_of(what: Said, *, reads_users: bool = True) -> ServeConfig:
    try:
        with located(what.places):
            made = _make_config(what.values, reads_users=reads_users)
    except UsageError as error:
        # Wherever it was said: what a service manager must not start again, whose status is 78.
        raise ConfigError(str(error)) from error
    return replace(made, places=what.places)


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


def _served_credentials(options: argparse.Namespace, *, reads_users: bool) -> Credentials | None:
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
