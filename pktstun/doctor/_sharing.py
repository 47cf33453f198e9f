"""Who else has a hand in the packets: sockets, programs, rules, connection tracking."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ._finding import TABLE, Change, Finding, Kind, Severity, commands_for
from ._parse import version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._host import Firewall, Host, PacketUser, Program

__all__ = ["CHECKS", "PROGRAM"]

PROGRAM = "pktstun"
"""The name of the takeover's program."""

_ETH_P_ALL = 3
_FULL = 0.8
_TCX_SINCE = (6, 6)


def packet_sockets(host: Host) -> Iterator[Finding]:
    """Look for other packet sockets that get these frames."""
    greedy = [user for user in host.packet_users if user.protocol == _ETH_P_ALL]
    for user in greedy:
        owner = str(user.owner) if user.owner else "a process that cannot be seen"
        where = "all interfaces" if user.everywhere else host.iface
        yield Finding(
            "packet-socket",
            Severity.ADVICE,
            f"{owner} reads every frame of {where}",
            "It gets a copy of each request and of each reply, which the kernel makes before "
            "anything else; some of a worker's CPU goes there. Nothing is lost by it. End it "
            "when it is not needed any more.",
            (_ending(user),),
        )
    if not greedy:
        others = f"{len(host.packet_users)} of one protocol" if host.packet_users else "none"
        yield Finding("packet-socket", Severity.OK, f"others' that read every frame: {others}")


def _ending(user: PacketUser) -> str:
    if user.owner is None:
        return "ss -0pb   # in each container; it may be in another one"
    if user.owner.service:
        return f"systemctl stop {user.owner.service}"
    return f"kill {user.owner.pid}   # {user.owner.name}"


def takeover(host: Host) -> Iterator[Finding]:
    """Tell whether the kernel's copy can be dropped at tcx ingress."""
    why = (
        "Without it the kernel handles its own copy of every request as well: here a ring "
        "answered 333,000 requests a second instead of 376,000, direct mode 679,000 instead of "
        "739,000."
    )
    if host.tcx is not None:
        others = [each for each in host.tcx if each.name != PROGRAM]
        is_on = len(others) < len(host.tcx)
        state = "on" if is_on else "possible"
        if not others:
            yield Finding("takeover", Severity.OK, f"{state}: tcx on Linux {_short(host)}")
            return
        yield Finding(
            "takeover",
            Severity.ADVICE,
            f"{state}; {_names(others)} at tcx ingress as well",
            "The takeover's program goes in front, and what a ring answers is not seen by those "
            "behind it. A program that counts or filters requests there has to know that.",
            (f"bpftool net show dev {host.iface}",),
        )
    elif host.tcx_error == errno.EPERM:
        return
    elif version(host.release) < _TCX_SINCE:
        yield Finding(
            "takeover",
            Severity.ADVICE,
            f"not possible: Linux {_short(host)}",
            f"{why} It takes Linux 6.6.",
        )
    else:
        yield Finding(
            "takeover",
            Severity.ADVICE,
            f"not possible: Linux {_short(host)} was built without tcx",
            f"{why} It takes CONFIG_NET_XGRESS and CONFIG_BPF_SYSCALL.",
            ("zgrep -E 'NET_XGRESS|BPF_SYSCALL' /proc/config.gz",),
        )


def programs(host: Host) -> Iterator[Finding]:
    """Look for XDP and tc."""
    if host.xdp is not None:
        yield Finding(
            "xdp",
            Severity.ADVICE,
            f"{_names([host.xdp])} is the XDP program of {host.iface}",
            "It has every frame first. What it drops or sends elsewhere no mode of pktstun sees; "
            "what it lets pass has cost its time.",
            (f"bpftool net show dev {host.iface}",),
        )
    else:
        yield Finding("xdp", Severity.OK, "no program")
    filters = sorted(host.disciplines & {"clsact", "ingress"})
    if filters:
        yield Finding(
            "tc-ingress",
            Severity.ADVICE,
            f"{host.iface} has the queueing discipline {filters[0]}",
            "Rules at tc ingress do not keep requests from a ring, which has its copy before, "
            "and do not see what the takeover drops.",
            (f"tc filter show dev {host.iface} ingress",),
        )
    else:
        yield Finding("tc-ingress", Severity.OK, "no filter")


def firewall(host: Host) -> Iterator[Finding]:
    """Look for rules that do not hold for a ring."""
    rules = host.firewall
    if rules is None:
        return
    hooks = sorted(
        {
            f"{chain.family} {chain.table} {chain.hook}"
            for chain in rules.chains
            if chain.table != TABLE and chain.kind == "filter"
            if chain.hook in {"prerouting", "input", "ingress"}
        }
    )
    found = [*hooks, *(f"iptables {table}" for table in sorted(rules.legacy))]
    if not found:
        yield Finding("firewall", Severity.OK, "no rules for what comes in")
        return
    shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    yield Finding(
        "firewall",
        Severity.ADVICE,
        f"rules for what comes in ({shown})",
        "They do not hold for ring and direct mode, which read frames before them. If they must "
        "hold for requests, filter in front of this host, or serve with --respect-firewall, in "
        "recvmmsg mode.",
        ("nft list ruleset",) if hooks else ("iptables-save",),
    )


def connection_tracking(host: Host) -> Iterator[Finding]:
    """Tell whether the kernel keeps an entry for each client."""
    rules = host.firewall
    if rules is None or host.tracked is None:
        return
    full = host.connections_most and (host.connections or 0) >= _FULL * host.connections_most
    table = f"{host.connections or 0:,} of {host.connections_most:,} entries in use"
    if not (host.tracked or host.connections or _tracks(rules)):
        yield Finding("conntrack", Severity.OK, "off")
        return
    if _is_untracked(rules, host.port):
        yield Finding("conntrack", Severity.OK, f"on, but not for port {host.port} any more")
    elif host.tracked or _tracks(rules):
        yield from _tracked_port(host, rules)
    else:
        yield Finding("conntrack", Severity.OK, f"on, no entry of port {host.port}; {table}")
    if full:
        yield Finding(
            "conntrack-full",
            Severity.PROBLEM,
            f"connection tracking: {table}",
            "When the table is full the kernel drops packets of new clients, of every service on "
            "this host.",
            (f"sysctl -w net.netfilter.nf_conntrack_max={2 * host.connections_most}",),
        )


def _tracked_port(host: Host, rules: Firewall) -> Iterator[Finding]:
    change = Change(Kind.NOTRACK, TABLE, (host.port,))
    why = (
        "Every request and every reply that a socket handles makes or looks up an entry for its "
        "client, kept for half a minute at least; a full table drops packets. STUN needs no state."
    )
    unclear = _depends_on_state(rules)
    if unclear:
        why += (
            f" It is not changed by itself, because {unclear}: make sure that the port is let "
            "through in state `untracked` first."
        )
    elif not host.has_nft:
        why += " --apply needs the program nft: install nftables."
    entries = f"{host.tracked:,} entries" if host.tracked != 1 else "1 entry"
    yield Finding(
        "conntrack",
        Severity.PROBLEM if host.tracked else Severity.ADVICE,
        f"connections of UDP port {host.port} are tracked ({entries} now)",
        why,
        (commands_for(host.iface, change),),
        () if unclear or not host.has_nft else (change,),
    )


def _tracks(rules: Firewall) -> bool:
    return any(rule.tracks for rule in rules.rules) or "nat" in rules.legacy


def _is_untracked(rules: Firewall, port: int) -> bool:
    """Whether both directions are taken out, of IPv4 and IPv6."""
    requests = {rule.family for rule in rules.rules if port in rule.untracks}
    replies = {rule.family for rule in rules.rules if port in rule.untracks_sources}
    return all("inet" in each or each >= {"ip", "ip6"} for each in (requests, replies))


def _depends_on_state(rules: Firewall) -> str:
    """Return why untracked packets may fare otherwise; "" if they do not."""
    if rules.legacy & {"filter", "nat"}:
        return "there are rules of iptables, which cannot be looked into"
    if any(rule.translates for rule in rules.rules):
        return "there are rules that translate addresses"
    refuses = any(rule.refuses for rule in rules.rules) or any(c.drops for c in rules.chains)
    if refuses and any(rule.tracks for rule in rules.rules):
        return "there are rules that refuse packets, and rules that look at the state"
    return ""


def path_filter(host: Host) -> Iterator[Finding]:
    """Look at rp_filter, which does not hold for a ring and may surprise recvmmsg mode."""
    if host.strict_path_filter and host.neighbours > 1:
        yield Finding(
            "rp_filter",
            Severity.ADVICE,
            f"strict, with {host.neighbours} interfaces up",
            "In recvmmsg mode, requests that come in by another interface than the reply would "
            "leave by are dropped by the kernel. Rings answer them.",
            (f"sysctl -w net.ipv4.conf.{host.iface}.rp_filter=2",),
        )
    else:
        yield Finding("rp_filter", Severity.OK, "in nobody's way")


def _names(found: list[Program]) -> str:
    return ", ".join(f"{each.name or 'a program'} (id {each.identifier})" for each in found)


def _short(host: Host) -> str:
    return host.release.partition("-")[0]


CHECKS = (*(packet_sockets, takeover, programs, firewall, connection_tracking, path_filter),)
