#!/usr/bin/env python3
"""What clients notice when one of three servers behind an ECMP route goes away.

    python tools/ecmp.py [--clients 300] [--seconds 4] [--rto 0.5]      # as root

Everything happens in network namespaces: clients, a router, and three hosts with one anycast
address, served by `pktstun serve` in each of the modes. The clients ask all the time, over IPv4
and IPv6, with the retransmissions of RFC 8489. In turn, a server is killed and a health check of
the router, which asks five times a second, withdraws its route; the server comes back; and a link
goes down. After each the program prints what clients saw meanwhile: how long they waited for
answers, how many requests it took, and which answers were wrong or missing.

The exit status is 1 if a client had no answer or a wrong one.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.lab import Lab, wait_until
from tests.netns.ecmp import LINK, MODES, Clients, ecmp_network, health_check

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.netns.ecmp import EcmpNetwork, Outcome

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)


def watched(
    network: EcmpNetwork, options: argparse.Namespace, what: str, event: Callable[[], None]
) -> bool:
    """Have clients ask before, during and after an event; print what they saw."""
    with Clients(network, options.clients, rto=options.rto) as clients:
        time.sleep(options.seconds / 4)
        before = len(clients.outcome.waits)
        begun = time.monotonic()
        event()
        took = time.monotonic() - begun
        time.sleep(options.seconds)
        outcome = clients.stop()
    print(f"\n{what}; the route was settled after {took:.2f} s")
    show(outcome, before)
    return not (outcome.failed or outcome.wrong)


def show(outcome: Outcome, before: int) -> None:
    """Print the waits and the numbers of requests."""
    total = outcome.requests.total()
    waits = ", ".join(f"{share:.1%} {outcome.quantile(share):.4f} s" for share in QUANTILES)
    print(f"  {total:,} answered, {before:,} of them before; waited at most: {waits}")
    for number, count in sorted(outcome.requests.items()):
        print(f"  {count:8,} after {number} request{'s' if number > 1 else ''}")
    print(f"  {len(outcome.failed)} without an answer, {len(outcome.wrong)} with a wrong address")
    for words in (outcome.failed + outcome.wrong)[:10]:
        print(f"    {words}")


def run(lab: Lab, options: argparse.Namespace) -> bool:
    """Do all of it; return whether nobody noticed."""
    network = ecmp_network(lab)
    first, second = network.hosts[:2]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(host.serve(mode))
            for host, mode in zip(network.hosts, MODES, strict=True)
        ]
        for server in servers:
            print(server.ready, end="")
        stack.enter_context(health_check(network))

        def kill() -> None:
            servers[0].process.kill()
            wait_until(lambda: first not in network.announced, "the route is withdrawn")

        def come_back() -> None:
            stack.enter_context(first.serve(MODES[0]))
            wait_until(lambda: first in network.announced, "the route is announced")

        def pull() -> None:
            lab.link_set(second.ns, LINK, state="down")

        verdicts = [
            watched(network, options, "The first server is killed", kill),
            watched(network, options, "It comes back", come_back),
            watched(network, options, "The link of the second goes down", pull),
        ]
        asked = [counted.totals()["answered"] for counted in servers[1:]]
        print(f"\nanswered by the second and the third server: {asked[0]:,} and {asked[1]:,}")
    return all(verdicts)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Take servers away behind an ECMP route, and show what clients notice."
    )
    parser.add_argument("--clients", type=int, default=300, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="after each event (default: %(default)s)"
    )
    parser.add_argument(
        "--rto",
        type=float,
        default=0.5,
        help="until the first retransmission, in seconds (default: %(default)s)",
    )
    with Lab() as lab:
        return 0 if run(lab, parser.parse_args(arguments)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
