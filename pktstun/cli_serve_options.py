"""The options of `serve`, as argparse knows them; nothing else knows what options there are."""

from __future__ import annotations

import argparse

from pktstun import log
from pktstun.options import PREFIX
from pktstun.repeats import INTERVAL
from pktstun.stun import PORT

__all__ = ["SOURCES", "serve_options"]

SOURCES = f"""\
Every option can be said in the environment, too, as {PREFIX}RATE_LIMIT=100, and in the file of
--config, as rate-limit = 100. The command line has the last word, then the environment, then the
file; what can be repeated is replaced as a whole. In a variable its values stand between commas
or spaces, and an empty variable says nothing.
"""


def serve_options(
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
