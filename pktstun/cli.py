"""The command line: arguments in, an exit status out; errors are one line each.

The exit statuses are in `pktstun.errors`. What a command is asked for goes to standard
output; everything about how it went goes to standard error.
"""

from __future__ import annotations

import argparse
import errno
import sys
from typing import TYPE_CHECKING

import pktstun
from pktstun import (
    cli_client,
    cli_config,
    cli_decode,
    cli_doctor,
    cli_install,
    cli_operate,
    cli_serve,
    log,
)
from pktstun.cli_serve_options import SOURCES, serve_options
from pktstun.errors import TOO_FEW_DESCRIPTORS, PktstunError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pktstun",
        description="A STUN server on AF_PACKET rings, and a STUN client.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pktstun {pktstun.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cli_serve.add_command(commands)
    cli_config.add_command(commands, serve_options(), SOURCES, cli_serve.read_config)
    cli_client.add_commands(commands)
    cli_operate.add_commands(commands)
    cli_doctor.add_command(commands)
    cli_decode.add_command(commands)
    cli_install.add_command(commands)
    return parser
