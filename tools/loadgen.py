"""STUN load at a fixed rate through the project's own kernel layer, and what becomes of it.

    python tools/loadgen.py --iface v1 --target 10.77.0.1 --rate 100000 --seconds 5 --cpu 0

Open loop: requests are due at fixed times and sent then, or as soon as possible afterwards,
whatever becomes of the ones before. Latencies count from when a request was due. Requests come
from random addresses of --sources (without it: from the interface's own address) and random
ports; every reply is checked in full. The generator is one busy thread: give it a CPU of its own.

Three things to know about the network between:

- Frames go to the link-layer address of the target, which is looked up. Behind a gateway, give
  the gateway's with --mac.
- Where there is tcx (Linux 6.6) and the privilege for it, the kernel gets no copy of the replies.
  Elsewhere it drops those to addresses that are not its own, and to its own it answers with ICMP
  port unreachable.
- On lo, what comes from outside and is addressed to 127.0.0.0/8 is dropped by the kernel, and a
  frame of a packet socket counts as that. A server that reads frames from a ring answers
  nevertheless, and so does any server on ::1. For others set net.ipv4.conf.lo.route_localnet
  and net.ipv4.conf.lo.accept_local to 1.

It refuses to send to anything but loopback, unless it runs in a network namespace other than
that of process 1 (as those of a test do), or is told --i-own-this-network.

JSON
----

--json prints one object for the run. --steps reads lines "RATE SECONDS" from standard input and
prints one object for each, on a line of its own, after a first line {"ready": true, "server": ...,
"pid": ...} which says that everything is set up. An object has:

    requested_rate   requests a second
    seconds          how long requests were sent
    sent             requests that the interface took; a veth drops what its far end has no room
                     for, and says nothing
    achieved_rate    sent / seconds
    send_errors      requests that it refused (its queue was full)
    unsent           requests that were due and for which there was no time
    late             of the sent ones, those sent 1 ms or more after they were due
    max_lateness     seconds
    replies          requests with a correct success response
    reply_rate       those of them that arrived within the sending time, / seconds
    errors           requests with a correct error response
    lost             sent - replies - errors
    duplicates       correct responses beyond the first to a request
    stale            responses to requests of an earlier step
    wrong            {kind: replies that are wrong in this way}, see cdefs/load.cdef.h
    overlooked       frames that the generator's ring had no room for
    stopped          whether a signal ended it early
    latency          {p50, p90, p99, p999, max, mean} in seconds; null without replies
    slices           {size, answered: [...]}: of each `size` requests, due within about 10 ms, so
                     many got a correct response; refused ones count as unanswered
    histogram        {counts: [[bucket, latencies], ...], total, longest} in nanoseconds;
                     buckets are those of pktstun.kernel.load.Histogram

Another program adds histograms up bucket by bucket. SIGINT and SIGTERM end the run early; its
result is printed, and with --steps no further line is read. Exit status: 0, also for a run that
was ended early; 1 failure while running; 2 wrong usage; 77 a privilege is missing; 78 it cannot
be done on this host, or must not.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pktstun.errors import ConfigError, PktstunError, PrivilegeError, StunError, UsageError
from pktstun.kernel import TcxLink, interface, takeover
from pktstun.kernel.load import MAX_REQUESTS, Histogram, LoadGenerator, LoadResult
from pktstun.kernel.neighbour import resolve_neighbour
from pktstun.stun import TransportAddress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from pktstun.kernel import Interface

MAX_RATE = 10_000_000
MAX_SECONDS = 3600.0
FLAG = "--i-own-this-network"

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _open(options) as generator, _replies_for_us_alone(generator):
            if options.steps:
                _run_steps(generator)
            else:
                result = _run(generator, *_checked(options.rate, options.seconds))
                print(json.dumps(as_json(result)) if options.json else summary(result))
    except PktstunError as error:
        return _complain(error, error.exit_status)
    except PermissionError as error:
        return _complain(f"{error} (packet sockets need CAP_NET_RAW: run as root)", 77)
    except OSError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    return 0


def _replies_for_us_alone(generator: LoadGenerator) -> AbstractContextManager[object]:
    """Keep the kernel from handling the replies as well, where that can be."""
    try:
        program = takeover([generator.server], from_them=True)
        return TcxLink(generator.interface.index, program)
    except OSError:
        return nullcontext()


def _complain(problem: object, status: int) -> int:
    print(f"loadgen: {problem}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Send STUN requests at a fixed rate and check the replies.",
        epilog="The source's first lines describe the output, and what the network between does.",
    )
    parser.add_argument("--iface", required=True, metavar="NAME", help="interface to send from")
    parser.add_argument(
        "--target", required=True, metavar="ADDR[:PORT]", help="server to ask; port 3478 by default"
    )
    parser.add_argument("--rate", type=int, metavar="R", help=f"requests a second, to {MAX_RATE}")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"how long to send, to {MAX_SECONDS:g}"
    )
    parser.add_argument(
        "--sources", metavar="PREFIX", help="where requests come from; the interface's address"
    )
    parser.add_argument("--mac", help="of the target or the gateway to it; looked up by default")
    parser.add_argument("--cpu", type=int, metavar="N", help="CPU to run on")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--steps", action="store_true", help='read "RATE SECONDS" lines, print JSON for each'
    )
    parser.add_argument(
        FLAG,
        dest="owned",
        action="store_true",
        help="send, although the network is not a test's own",
    )
    return parser


# --- Setting up ---


def _open(options: argparse.Namespace) -> LoadGenerator:
    """Check everything before the first packet, and open the generator."""
    if options.steps != (options.rate is None) or options.steps != (options.seconds is None):
        raise UsageError("give either --rate and --seconds, or --steps")
    if not options.steps:
        _checked(options.rate, options.seconds)
    iface = _interface(options.iface)
    server = _server(options.target)
    sources = _sources(options.sources, iface, server)
    if not (options.owned or _is_loopback(iface, server, sources) or _in_own_namespace()):
        raise ConfigError(
            f"{iface.name} is not loopback and may lead to other people's machines, which a load "
            f"like this harms. It runs on lo with loopback addresses, in a network namespace other "
            f"than that of process 1, or with {FLAG} if the network between and the target are "
            "yours"
        )
    if options.cpu is not None:
        try:
            os.sched_setaffinity(0, {options.cpu})
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(f"--cpu {options.cpu}: there is no such CPU to run on") from error
    try:
        return LoadGenerator(iface, server, sources, _mac(options.mac, iface, server))
    except ValueError as error:
        raise UsageError(str(error)) from error
    except PermissionError as error:
        raise PrivilegeError(
            "a packet socket needs CAP_NET_RAW: run as root, or in a namespace where you are"
        ) from error


def _interface(name: str) -> Interface:
    """Return an interface that can send."""
    try:
        iface = interface(name)
    except OSError as error:
        raise ConfigError(str(error.strerror)) from error
    if not iface.is_up:
        raise ConfigError(f"{name} is down")
    if not (iface.is_ethernet or iface.is_loopback):
        raise ConfigError(f"{name} has no Ethernet frames")
    return iface


def _server(text: str) -> TransportAddress:
    try:
        return TransportAddress.parse(text)
    except StunError as error:
        raise UsageError(f"--target: {error}") from error


def _checked(rate: int, seconds: float) -> tuple[int, float]:
    """Return what was given, or say what is wrong with it."""
    if not 1 <= rate <= MAX_RATE:
        raise UsageError(f"the rate must be 1 to {MAX_RATE} requests a second, not {rate}")
    if not 0 < seconds <= MAX_SECONDS:  # false for NaN
        raise UsageError(f"the time must be more than 0 and at most {MAX_SECONDS:g} s")
    if not 1 <= rate * seconds <= MAX_REQUESTS:
        raise UsageError(
            f"{rate}/s for {seconds:g} s make {rate * seconds:.0f} requests; a run has 1 to "
            f"{MAX_REQUESTS}"
        )
    return rate, seconds


def _sources(text: str | None, iface: Interface, server: TransportAddress) -> Network:
    """Return the network that requests come from."""
    version = server.ip.version
    if text is not None:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise UsageError(f"--sources: {error}") from error
        if network.version != version:
            raise UsageError(f"--sources {network} and {server.ip} are of two address families")
        return network
    own = [each.ip for each in iface.addresses if each.ip.version == version]
    # A link-local address reaches nobody but the link.
    chosen = [ip for ip in own if ip.is_link_local == server.ip.is_link_local] or own
    if not chosen:
        raise ConfigError(f"{iface.name} has no IPv{version} address to send from: give --sources")
    return ipaddress.ip_network(chosen[0])


def _is_loopback(iface: Interface, server: TransportAddress, sources: Network) -> bool:
    """Whether neither requests nor replies can leave this host."""
    return iface.is_loopback and server.ip.is_loopback and sources.is_loopback


def _in_own_namespace() -> bool:
    """Whether the network is none of process 1's; one that cannot be seen may be."""
    try:
        first, own = (Path(f"/proc/{pid}/ns/net").stat() for pid in ("1", "self"))
    except OSError:
        return False
    return (first.st_dev, first.st_ino) != (own.st_dev, own.st_ino)


def _mac(text: str | None, iface: Interface, server: TransportAddress) -> bytes:
    """Return the link-layer address to send to."""
    if text is not None:
        try:
            mac = bytes.fromhex(text.replace(":", ""))
        except ValueError:
            mac = b""
        if len(mac) != 6:
            raise UsageError(f"--mac {text!r} is not of the form 02:00:5e:10:00:01")
        return mac
    if iface.is_loopback:
        return bytes(6)
    found = resolve_neighbour(iface, server.ip)
    if found is None:
        raise ConfigError(
            f"{server.ip} does not say its link-layer address on {iface.name}; is it up? If a "
            "gateway leads to it, give the gateway's address with --mac"
        )
    return found


# --- Running ---


def _run_steps(generator: LoadGenerator) -> None:
    _print_line({"ready": True, "server": str(generator.server), "pid": os.getpid()})
    for line in sys.stdin:
        try:
            rate, seconds = line.split()
            step = _checked(int(rate), float(seconds))
        except ValueError as error:
            raise UsageError(f'{line.strip()!r} is not of the form "RATE SECONDS"') from error
        result = _run(generator, *step)
        _print_line(as_json(result))
        if result.stopped:
            return


def _print_line(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _run(generator: LoadGenerator, rate: int, seconds: float) -> LoadResult:
    with _signalled() as signals:
        return generator.run(rate, seconds, stop=lambda: bool(signals))


@contextmanager
def _signalled() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list in place of what they would do."""
    signals: list[int] = []
    before = {
        number: signal.signal(number, lambda which, _: signals.append(which))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- Results ---


def as_json(result: LoadResult) -> dict[str, Any]:
    """Return the object that is described at the top."""
    latencies = result.latencies
    return {
        "requested_rate": result.rate,
        "seconds": result.seconds,
        "sent": result.sent,
        "achieved_rate": result.sent / result.seconds if result.seconds else 0.0,
        "send_errors": result.send_errors,
        "unsent": result.unsent,
        "late": result.late,
        "max_lateness": result.lateness,
        "replies": result.replies,
        "reply_rate": result.in_time / result.seconds if result.seconds else 0.0,
        "errors": result.errors,
        "lost": result.lost,
        "duplicates": result.duplicates,
        "stale": result.stale,
        "wrong": result.wrong,
        "overlooked": result.overlooked,
        "stopped": result.stopped,
        "latency": _latency(latencies) if latencies else None,
        "slices": {"size": result.slice_size, "answered": list(result.slices)},
        "histogram": {
            "counts": sorted(latencies.counts.items()),
            "total": latencies.total,
            "longest": latencies.longest,
        },
    }


def _latency(latencies: Histogram) -> dict[str, float]:
    percents = {"p50": 50, "p90": 90, "p99": 99, "p999": 99.9}
    return {
        **{name: latencies.percentile(percent) / 1e9 for name, percent in percents.items()},
        "max": latencies.longest / 1e9,
        "mean": latencies.mean / 1e9,
    }


def summary(result: LoadResult) -> str:
    """Return the result for a person."""
    values = as_json(result)
    lines = [
        (
            f"sent       {result.sent} requests in {result.seconds:.3f} s "
            f"({values['achieved_rate']:,.0f}/s of {result.rate:,}/s)"
        ),
        f"replies    {result.replies} correct ({values['reply_rate']:,.0f}/s), {result.lost} lost",
    ]
    if values["latency"]:
        shown = (f"{name} {value * 1e6:.0f}" for name, value in values["latency"].items())
        lines.append(f"latency    {', '.join(shown)} (microseconds)")
    trouble = {
        "not sent in time": result.unsent,
        "late by 1 ms or more": result.late,
        "send errors": result.send_errors,
        "error responses": result.errors,
        "duplicates": result.duplicates,
        "overlooked": result.overlooked,
        "stale": result.stale,
        **{f"wrong {kind}": count for kind, count in result.wrong.items()},
    }
    lines += [f"but        {count} {what}" for what, count in trouble.items() if count]
    if result.stopped:
        lines.append("ended early by a signal")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
