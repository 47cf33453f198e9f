"""The command that checks a configuration: `check-config`, from arguments to an exit status.

What would be served goes to standard output; what is wrong, and what is of no use, to standard
error. Nothing is served and nothing changed, so a service may run meanwhile.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pktstun.errors import UsageError
from pktstun.places import locate, located

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from pktstun.config import Plan, ServeConfig

__all__ = ["add_command"]

_DESCRIPTION = """\
Say whether a configuration can be served on this host, and what would be. The exit status is 0
if it can, 78 if not, 75 if an interface or an address is missing, which may be late, and 77 if it
takes a privilege. What is accepted but of no use is a warning."""

_TAKEOVER_KERNEL = (6, 6)  # has tcx


class ReadConfig(Protocol):
    """How a command line, the environment and a file become a configuration."""

    def __call__(
        self, words: Sequence[str], file: Path | None = None, *, reads_users: bool = True
    ) -> ServeConfig:
        """Read them, the command in front of the words; `file` is the one that FILE names."""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    options: argparse.ArgumentParser,
    epilog: str,
    read: ReadConfig,
) -> None:
    """Add the command to a parser; `run` of what it parses carries it out.

    Args:
        commands: of the parser.
        options: those of `serve`.
        epilog: the end of the help.
        read: what reads the configuration.
    """
    check = commands.add_parser(
        "check-config",
        parents=[options],
        help="say whether a configuration can be served",
        description=_DESCRIPTION,
        epilog=epilog,
    )
    check.add_argument("file", nargs="?", metavar="FILE", help="the same as --config FILE")
    check.add_argument(
        "--any-host",
        action="store_true",
        help="for another host, wherever that is: interfaces, CPUs, users and other files are "
        "not looked for",
    )
    check.set_defaults(run=partial(_check, read))


def _check(read: ReadConfig, options: argparse.Namespace) -> int:
    # Imported here: `query` and `--help` work without the compiled module.
    from pktstun.config import plan as make_plan  # noqa: PLC0415

    if options.file is not None and options.config is not None:
        raise UsageError("FILE and --config mean the same: name one file")
    file = Path(options.file) if options.file is not None else None
    config = read(options.words, file, reads_users=not options.any_host)
    with _warnings_shown(config.places), located(config.places):
        plan = make_plan(config, imagined=options.any_host)
        if not options.any_host:
            _check_addresses(plan)
    for warning in _of_no_use(plan):
        _warn(warning, config.places)
    if not options.any_host:
        for warning in _about_this_host(config):
            _warn(warning, config.places)
    if options.any_host:
        print("the configuration can be served by a host that has what it names")
    else:
        print("the configuration can be served", *_what_is_served(plan), sep="\n")
    return 0


def _check_addresses(plan: Plan) -> None:
    """Refuse addresses that this host has not; which port they are to have does not matter.

    Only the kernel knows: there are routes of type local, and ip_nonlocal_bind.
    """
    from pktstun.kernel import UDPSocket  # noqa: PLC0415 - see _check
    from pktstun.refusals import explain_bind  # noqa: PLC0415

    for listen in plan.listens:
        anywhere = listen.address._replace(port=0)
        try:
            UDPSocket(anywhere, scope=listen.scope, share=False).close()
        except OSError as error:
            if not listen.optional:
                raise explain_bind(error, listen) from error


class _Shown(logging.Handler):
    """Shows what is logged as a warning of this command."""

    def __init__(self, places: Mapping[str, str]) -> None:
        super().__init__(logging.WARNING)
        self._places = places

    def emit(self, record: logging.LogRecord) -> None:
        _warn(record.getMessage(), self._places)


@contextmanager
def _warnings_shown(places: Mapping[str, str]) -> Generator[None]:
    handler, logger = _Shown(places), logging.getLogger("pktstun")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _warn(warning: str, places: Mapping[str, str]) -> None:
    print(f"pktstun: warning: {locate(warning, places)}", file=sys.stderr)


def _of_no_use(plan: Plan) -> Iterator[str]:
    """Yield what is said of the options that change nothing."""
    config = plan.config
    said = config.places.keys()
    if not plan.mode.reads_ring:
        for option in ("block-size", "blocks", "retire-timeout", "takeover"):
            if option in said:
                yield f"--{option} is of no use: {plan.mode} mode has no ring"
    if "tls-port" in said and not config.tls:
        yield "--tls-port is of no use without --tls"
    if "port" in said and config.port not in plan.ports and not config.alternate_servers:
        yield f"--port {config.port} is of no use: every --listen names another one"
    versions = {endpoint.ip.version for endpoint in plan.options.endpoints}
    if config.classic and 4 not in versions:
        yield "--classic is of no use: those clients know IPv4 only, and no such address is served"
    for alternate in plan.options.alternate_servers:
        if alternate.ip.version not in versions:
            yield (
                f"--alternate-server {alternate} is of no use: no address of its family is served"
            )


def _about_this_host(config: ServeConfig) -> Iterator[str]:
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if config.takeover and release and (int(release[1]), int(release[2])) < _TAKEOVER_KERNEL:
        yield f"--takeover takes Linux 6.6 or later, and this is {release[0]}"
    key = config.tls_key or config.tls_certificate
    if config.tls and key and Path(key).stat().st_mode & stat.S_IROTH:
        yield f"--tls-key: others may read {key}: 'chmod o= {key}'"
    # Of the places, those that are FILE:LINE.
    files = {place.rpartition(":")[0] for place in config.places.values()}
    for file in filter(os.path.exists, sorted(files)):
        if Path(file).stat().st_mode & stat.S_IWOTH:
            yield f"others may write {file}, and say what is served: 'chmod o-w {file}'"


def _what_is_served(plan: Plan) -> Iterator[str]:
    mode = str(plan.mode)
    if plan.iface is not None:
        mode += f", interface {plan.iface.name}" + ("" if plan.iface.is_up else ", which is down")
    yield f"  mode     {mode}"
    if plan.mode.reads_ring:
        takeover = {None: "where kernel and privileges allow it", True: "yes", False: "no"}
        yield f"  takeover {takeover[plan.takeover]}"
    cpus = ",".join(map(str, plan.cpus))
    yield f"  workers  {len(plan.cpus)}, on CPU {cpus}"
    yield f"  UDP      {_listed(plan.options.endpoints)}"
    if plan.streams is not None:
        if plan.streams.tcp:
            yield f"  TCP      {_listed(plan.streams.tcp_options.endpoints)}"
        if plan.streams.tls:
            yield f"  TLS      {_listed(plan.streams.tls_options.endpoints)}"
    if plan.metrics is not None:
        yield f"  metrics  {plan.metrics}"
    if plan.config.credentials is not None:
        yield f"  auth     {plan.config.credentials.mechanism}"


def _listed(endpoints: frozenset[object]) -> str:
    return ", ".join(sorted(map(str, endpoints))) or "no address"
