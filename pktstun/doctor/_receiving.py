"""How frames reach the CPUs: the interface, its queues, what merges and what loses frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._finding import Change, Finding, Kind, Severity, commands_for
from ._parse import cpu_list_text, cpus_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._host import Host

__all__ = ["BACKLOG", "BACKLOG_SETTING", "CHECKS", "WANTED_RING"]

WANTED_RING = 1024
"""Descriptors: 1.5 ms of the highest rate that README has for one CPU."""

BACKLOG = 10_000
"""Frames: 15 ms of the same."""

BACKLOG_SETTING = "net.core.netdev_max_backlog"

_IPV6_MTU = 1280  # RFC 8200 section 5
_SLOW_COALESCING = 100  # microseconds; a request takes some 400 on its way through a ring
_MANY_SQUEEZES = 10  # a second
_NOTABLE_LOSS = 1e-5


def link(host: Host) -> Iterator[Finding]:
    """Tell whether a ring can read this interface at all."""
    name = host.iface
    if host.master:
        yield Finding(
            "link",
            Severity.PROBLEM,
            f"{name} is a port of {host.master}",
            f"The host receives its packets as {host.master}'s, so they would be answered twice; "
            "`pktstun serve` refuses it.",
            (f"pktstun doctor --iface {host.master}",),
        )
    elif not (host.is_ethernet or host.is_loopback):
        yield Finding(
            "link",
            Severity.PROBLEM,
            f"{name} has no Ethernet frames",
            "A ring reads Ethernet frames. Ordinary sockets serve it all the same.",
            ("pktstun serve --mode recvmmsg",),
        )
    elif not host.is_up:
        yield Finding(
            "link",
            Severity.PROBLEM,
            f"{name} is down",
            "Nothing is received, and most of what follows cannot be told.",
            (f"ip link set {name} up",),
        )
    elif host.mtu < _IPV6_MTU:
        yield Finding(
            "link",
            Severity.ADVICE,
            f"MTU {host.mtu}",
            "IPv6 needs 1280 (RFC 8200): the kernel takes it from the interface.",
            (f"ip link set {name} mtu 1500",),
        )
    else:
        yield Finding("link", Severity.OK, f"up, MTU {host.mtu}")
    if host.below:
        yield Finding(
            "stacked",
            Severity.ADVICE,
            f"{name} is on top of {host.below} ({host.kind})",
            f"Which CPU receives is decided at {host.below}: its queues, features and drops are "
            "those that count.",
            (f"pktstun doctor --iface {host.below}",),
        )


def queues(host: Host) -> Iterator[Finding]:
    """Tell whether the receive queues reach all CPUs that the service could use."""
    known, usable = host.queues, host.usable
    everybody = cpus_named(usable)
    if not known or any(not queue.cpus for queue in known):
        where = "a frame is received on its sender's CPU" if host.is_loopback else "it varies"
        yield Finding("queues", Severity.OK, f"which CPU receives cannot be told ({where})")
        return
    # What arrives on another CPU crosses to a worker's anyway.
    served = frozenset[int]().union(*(queue.cpus for queue in known)) & usable
    how = ", ".join(sorted({queue.source for queue in known}))
    count = f"{len(known)} queue{'s' if len(known) > 1 else ''}"
    if served >= usable:
        yield Finding("queues", Severity.OK, f"{count}, received on {everybody} ({how})")
        return
    changes, commands = _spread(host), _more_queues(host)
    if len(served) <= 1:
        first = next((cpus_named(q.cpus) for q in known), "one CPU")
        yield Finding(
            "queues",
            Severity.PROBLEM,
            f"every packet is received on {first}, of {everybody} ({count}, {how})",
            "Workers sit where packets arrive: there is one, and the other CPUs do nothing for "
            "it. One answered 376,000 requests a second in ring mode and 739,000 in direct mode, "
            f"where README was measured. RPS spreads the packets.{_restart(host)}",
            (*(commands_for(host.iface, each) for each in changes), *commands),
            changes if host.sysfs else (),
        )
    elif len(known) >= len(usable):
        yield Finding(
            "queues",
            Severity.ADVICE,
            f"{count} on {cpus_named(served)} only, of {everybody} ({how})",
            f"Each CPU could have a queue of its own, and a worker with it.{_restart(host)}",
            tuple(commands_for(host.iface, each) for each in changes),
            changes if host.sysfs else (),
        )
    else:
        yield Finding(
            "queues",
            Severity.ADVICE,
            f"{count} for {len(usable)} CPUs: nothing comes to {cpus_named(usable - served)}",
            "That is well where those CPUs have other work. More queues are better than RPS, "
            f"which interrupts another CPU for its packets.{_restart(host)}",
            commands or tuple(commands_for(host.iface, each) for each in changes),
        )


def _spread(host: Host) -> tuple[Change, ...]:
    """Return what would have all usable CPUs receive."""
    usable = tuple(sorted(host.usable))
    sources = {queue.source for queue in host.queues}
    if len(host.queues) < len(usable) or "rps" in sources:
        return tuple(Change(Kind.RPS, str(queue.index), usable) for queue in host.queues)
    changes = []
    for at, queue in enumerate(host.queues):
        cpu = (usable[at % len(usable)],)
        if queue.source == "irq":
            changes.append(Change(Kind.IRQ, str(queue.irq), cpu))
        else:
            changes.append(Change(Kind.THREAD, str(queue.thread), cpu))
    # One interrupt for several queues cannot be spread.
    if len({change.name for change in changes}) < len(changes):
        return tuple(Change(Kind.RPS, str(queue.index), usable) for queue in host.queues)
    return tuple(changes)


def _more_queues(host: Host) -> tuple[str, ...]:
    wanted = min(host.queues_most, len(host.usable))
    if wanted <= len(host.queues):
        return ()
    return (f"ethtool -L {host.iface} combined {wanted}   # better: but the link resets",)


def _restart(host: Host) -> str:
    return " The running service follows at its next restart." if host.running else ""


def workers(host: Host) -> Iterator[Finding]:
    """Tell whether the running service's workers are where packets arrive."""
    served = frozenset[int]().union(*(queue.cpus for queue in host.queues)) & host.usable
    if not host.worker_cpus or not served:
        return
    bare = served - host.worker_cpus
    if not bare:
        yield Finding("workers", Severity.OK, f"on {cpus_named(host.worker_cpus)}")
        return
    service = host.running[0].service if host.running else ""
    yield Finding(
        "workers",
        Severity.ADVICE,
        f"packets arrive on {cpus_named(bare)} as well, workers are on "
        f"{cpus_named(host.worker_cpus)}",
        "What arrives there crosses to another CPU's worker. The service looks for the queues "
        "when it starts, unless --cpus says where its workers shall be.",
        (f"systemctl restart {service}" if service else "# start pktstun serve again",),
    )


def flow_steering(host: Host) -> Iterator[Finding]:
    """Look for RFS, which is of no use to one packet a client."""
    if not host.flow_entries:
        yield Finding("rfs", Severity.OK, "off")
        return
    count = max(len(host.queues), 1)
    files = f"/sys/class/net/{host.iface}/queues/rx-"
    yield Finding(
        "rfs",
        Severity.ADVICE,
        f"receive flow steering has {host.flow_entries:,} entries",
        "It remembers where a flow was read last, and a STUN client sends a packet or two: "
        "the table is looked into for nothing. Others' TCP may profit from it.",
        tuple(f"echo 0 > {files}{index}/rps_flow_cnt" for index in range(count)),
    )


def balancing(host: Host) -> Iterator[Finding]:
    """Look for irqbalance, which moves what workers were placed by."""
    if host.irqbalance is None:
        yield Finding("irqbalance", Severity.OK, "not running")
    elif not any(queue.irq for queue in host.queues):
        yield Finding("irqbalance", Severity.OK, "running, but no interrupt of ours is known")
    else:
        interrupts = cpu_list_text({queue.irq for queue in host.queues if queue.irq})
        yield Finding(
            "irqbalance",
            Severity.ADVICE,
            f"{host.irqbalance} moves interrupts",
            "Workers stay on the CPUs that the queues had when the service started; the log says "
            "when they have moved. Stop it, or keep it from these interrupts in its defaults file "
            f"(IRQBALANCE_ARGS, --banirq for each of {interrupts}).",
            ("systemctl disable --now irqbalance",),
        )


def merging(host: Host) -> Iterator[Finding]:
    """Look for what makes one frame of several datagrams."""
    found = False
    for name in ("rx-udp-gro-forwarding", "rx-gro-list"):
        feature = host.features.get(name)
        if feature is not None and feature.is_on:
            found = True
            change = Change(Kind.FEATURE, name, value=False)
            yield Finding(
                "merging",
                Severity.PROBLEM,
                f"{name} is on",
                "Requests of one source that come together reach a ring as one frame, which it "
                "drops as `bad_length`. Forwarding of UDP is what the feature is for.",
                (commands_for(host.iface, change),),
                (change,) if feature.can_change else (),
            )
    for name in ("rx-lro", "rx-gro-hw"):
        feature = host.features.get(name)
        if feature is not None and feature.is_on:
            found = True
            yield Finding(
                "merging",
                Severity.ADVICE,
                f"{name} is on",
                "The card merges TCP, which is no harm; what it merges of UDP (segments of "
                "another virtual machine) a ring drops as `bad_length`. Others' TCP gets slower "
                "without it.",
                (f"ethtool -K {host.iface} {name.replace('rx-lro', 'lro')} off",),
            )
    if not found and host.features:
        yield Finding("merging", Severity.OK, "nothing merges UDP")


def checksums(host: Host) -> Iterator[Finding]:
    """Tell who verifies checksums, and takes off VLAN tags."""
    feature = host.features.get("rx-checksum")
    if feature is None:
        return
    if not feature.is_on and feature.can_change:
        yield Finding(
            "checksum",
            Severity.ADVICE,
            "the card verifies no checksums",
            "Workers do it then, byte by byte.",
            (f"ethtool -K {host.iface} rx on",),
        )
        return
    vlan = host.features.get("rx-vlan-hw-parse")
    tags = "the card" if vlan is not None and vlan.is_on else "the kernel"
    yield Finding("checksum", Severity.OK, f"verified for us; {tags} takes VLAN tags off")


def rings(host: Host) -> Iterator[Finding]:
    """Look at the card's own queues."""
    sizes = host.rings
    if sizes is None:
        return
    changes = tuple(
        Change(Kind.RING, name, min(WANTED_RING, most))
        for name, now, most in (("rx", sizes.rx, sizes.rx_most), ("tx", sizes.tx, sizes.tx_most))
        if now < min(WANTED_RING, most)
    )
    if not changes:
        yield Finding("rings", Severity.OK, f"rx {sizes.rx}, tx {sizes.tx}")
        return
    frames = min(sizes.rx, sizes.tx)
    yield Finding(
        "rings",
        Severity.ADVICE,
        f"rx {sizes.rx} of {sizes.rx_most}, tx {sizes.tx} of {sizes.tx_most} descriptors",
        f"At 680,000 requests a second, which direct mode answered on one CPU, {frames} "
        f"descriptors are full after {frames / 680:.1f} ms. The card may lose what is in its "
        "queues while it changes.",
        tuple(commands_for(host.iface, each) for each in changes),
        changes,
    )


def coalescing(host: Host) -> Iterator[Finding]:
    """Tell how long the card waits before it interrupts."""
    now = host.coalescing
    if now is None:
        return
    if now.rx_usecs <= _SLOW_COALESCING or now.is_adaptive:
        how = "adaptive" if now.is_adaptive else f"{now.rx_usecs} microseconds"
        yield Finding("coalescing", Severity.OK, how)
        return
    yield Finding(
        "coalescing",
        Severity.ADVICE,
        f"a frame waits up to {now.rx_usecs} microseconds for its interrupt",
        "In ring mode a request took 400 microseconds at half load, and 16 in recvmmsg mode: "
        "this comes on top. Less costs more interrupts.",
        (f"ethtool -C {host.iface} rx-usecs 50",),
    )


def drops(host: Host) -> Iterator[Finding]:
    """Tell what card and driver lost for want of room."""
    lost, new = host.after.lost, host.after.lost - host.before.lost
    received = host.after.link.received
    if new > 0:
        now = host.after.link.received - host.before.link.received
        found = f"{new:,} frames lost in {host.seconds:g} s, {now:,} received"
    elif lost > max(received, 1) * _NOTABLE_LOSS:
        found = f"{lost:,} frames lost since the link came to be, {received:,} received"
    else:
        yield Finding("drops", Severity.OK, f"{lost:,} lost, {received:,} received")
        return
    yield Finding(
        "drops",
        Severity.PROBLEM if new > 0 else Severity.ADVICE,
        found,
        "The host did not fetch them in time: see queues and rings, or the CPUs are busy. No "
        "counter of pktstun knows of them; clients ask again after half a second.",
        (f"ethtool -S {host.iface} | grep -iE 'drop|miss|no_?buf|fifo'",),
    )


def backlog(host: Host) -> Iterator[Finding]:
    """Look at the CPUs' backlogs: frames that RPS, veth or lo hand to a CPU wait there."""
    total, new = (
        host.after.softnet.dropped,
        host.after.softnet.dropped - host.before.softnet.dropped,
    )
    limit = host.backlog
    if new <= 0 and (total == 0 or (limit is not None and limit >= BACKLOG)):
        known = "" if limit is None else f"{limit:,} frames, "
        yield Finding("backlog", Severity.OK, f"{known}{total:,} refused since the host started")
        return
    change = Change(Kind.SYSCTL, BACKLOG_SETTING, BACKLOG)
    more = limit is None or limit < BACKLOG
    what = f"in {host.seconds:g} s" if new > 0 else "since the host started"
    holds = "" if limit is None else f" that holds {limit:,}"
    yield Finding(
        "backlog",
        Severity.PROBLEM if new > 0 else Severity.ADVICE,
        f"a CPU's backlog{holds} refused {new if new > 0 else total:,} frames {what}",
        "Frames that RPS, lo or a veth hand to a CPU wait there; what does not fit is lost. "
        + ("" if more else "It is long enough: the CPU is too slow. ")
        + ("It is set for the whole host, outside of this namespace." if limit is None else ""),
        (commands_for(host.iface, change),) if more else (),
        (change,) if more and limit is not None else (),
    )


def squeezes(host: Host) -> Iterator[Finding]:
    """Count rounds of receiving that ended with work left."""
    if not host.seconds:
        return
    rate = (host.after.softnet.squeezed - host.before.softnet.squeezed) / host.seconds
    if rate < _MANY_SQUEEZES:
        yield Finding("budget", Severity.OK, f"{rate:.0f} rounds a second ended with work left")
        return
    budget = 300 if host.budget is None else host.budget
    yield Finding(
        "budget",
        Severity.ADVICE,
        f"{rate:.0f} rounds of receiving a second ended with work left",
        f"A round ends after net.core.netdev_budget frames ({budget}). More in a round delays "
        "the workers on the same CPU; it helps where cards lose frames.",
        (f"sysctl -w net.core.netdev_budget={2 * budget}",),
    )


CHECKS = (
    *(link, queues, workers, flow_steering, balancing, merging, checksums, rings, coalescing),
    *(drops, backlog, squeezes),
)
