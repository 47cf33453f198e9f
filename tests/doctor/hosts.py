"""Hosts that were made up: one with which all is well, and what may be wrong with others."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Any

from pktstun.doctor import Firewall, Host, PacketUser, Process, Program, Sample
from pktstun.doctor._finding import TABLE
from pktstun.doctor._parse import Softnet
from pktstun.kernel import ReceiveQueue
from pktstun.kernel.ethtool import Coalescing, Feature, RingSizes
from pktstun.kernel.linkinfo import LinkStatistics
from pktstun.kernel.netfilter import BaseChain, Rule

ON = Feature(is_on=True, can_change=True)
OFF = Feature(is_on=False, can_change=True)
FIXED = Feature(is_on=True, can_change=False)
CPUS = frozenset(range(4))


def on(*cpus: int, index: int = 0, source: str = "irq", irq: int = 40) -> ReceiveQueue:
    thread = 900 + index if source == "napi thread" else 0
    return ReceiveQueue(index, frozenset(cpus), source, irq + index if irq else 0, thread)


GOOD = Host(
    iface="eth0",
    driver="ena",
    release="6.18.44-generic",
    online=CPUS,
    usable=CPUS,
    queues=tuple(on(cpu, index=cpu) for cpu in range(4)),
    queues_most=8,
    features={
        "rx-udp-gro-forwarding": OFF,
        "rx-gro-list": OFF,
        "rx-lro": OFF,
        "rx-gro-hw": OFF,
        "rx-checksum": ON,
        "rx-vlan-hw-parse": ON,
    },
    rings=RingSizes(1024, 8192, 1024, 1024),
    coalescing=Coalescing(20, 0, is_adaptive=False),
    before=Sample(LinkStatistics(9_000_000), ticks=1000),
    after=Sample(LinkStatistics(9_100_000), ticks=1400),
    seconds=1.0,
    backlog=10_000,
    budget=300,
    tcx=(Program(7, "pktstun"),),
    firewall=Firewall(),
    tracked=0,
    running=(Process(812, "pktstun", "pktstun.service"),),
    worker_cpus=CPUS,
    receive_buffer=4 << 20,
    send_buffer=4 << 20,
)

INPUT = BaseChain("inet", "filter", "input", "input", "filter", drops=False)
STATE = Rule("inet", "filter", "input", tracks=True)
REFUSING = Rule("inet", "filter", "input", refuses=True)
OURS = (
    Rule("inet", TABLE, "requests", untracks=(3478,)),
    Rule("inet", TABLE, "replies", untracks_sources=(3478,)),
)
TCPDUMP = PacketUser(3, everywhere=False, owner=Process(4242, "tcpdump"))
LLDPD = PacketUser(3, everywhere=True, owner=Process(77, "lldpd", "lldpd.service"))
DHCP = PacketUser(0x800, everywhere=False, owner=Process(78, "dhclient"))


@dataclass(frozen=True)
class Ill:
    """What is wrong, and what is said about it."""

    what: str
    check: str
    severity: str
    words: str
    changes: int
    host: Host


def ill(what: str, check: str, severity: str, words: str, changes: int = 0, /, **wrong: Any) -> Ill:
    return Ill(what, check, severity, words, changes, replace(GOOD, **wrong))


ALL_ON_0 = tuple(on(0, index=index) for index in range(4))

ILL = (
    ill("a port of a bridge", "link", "problem", "port of br0", master="br0"),
    ill("no Ethernet", "link", "problem", "no Ethernet frames", is_ethernet=False),
    ill("down", "link", "problem", "eth0 is down", is_up=False),
    ill("a small MTU", "link", "advice", "MTU 1000", mtu=1000),
    ill("a VLAN", "stacked", "advice", "on top of eth9", kind="vlan", below="eth9"),
    ill("one queue", "queues", "problem", "received on CPU 2, of CPUs 0-3", 1, queues=(on(2),)),
    ill("one CPU by RPS", "queues", "problem", "CPU 0", 1, queues=(on(0, source="rps"),)),
    ill("all interrupts on one CPU", "queues", "problem", "CPU 0", 4, queues=ALL_ON_0),
    ill(
        *("a pinned NAPI thread", "queues", "problem", "napi thread", 1),
        queues=(on(0, source="napi thread"),),
    ),
    ill(
        *("interrupts on two CPUs", "queues", "advice", "on CPUs 0-1 only", 4),
        queues=tuple(on(index % 2, index=index) for index in range(4)),
    ),
    ill(
        *("fewer queues than CPUs", "queues", "advice", "nothing comes to CPUs 2-3"),
        queues=(on(0), on(1, index=1)),
    ),
    ill(
        *("one CPU, sysfs hidden", "queues", "problem", "CPU 0"),
        queues=(on(0),),
        sysfs=False,
    ),
    ill(
        *("workers elsewhere", "workers", "advice", "on CPUs 2-3 as well, workers are on CPUs 0-1"),
        worker_cpus=frozenset({0, 1}),
    ),
    ill("RFS", "rfs", "advice", "32,768 entries", flow_entries=32768),
    ill("irqbalance", "irqbalance", "advice", "pid 5", irqbalance=Process(5, "irqbalance")),
    ill(
        *("UDP forwarding", "merging", "problem", "rx-udp-gro-forwarding is on", 1),
        features={"rx-udp-gro-forwarding": ON},
    ),
    ill("GRO lists", "merging", "problem", "rx-gro-list", 1, features={"rx-gro-list": ON}),
    ill("fixed on", "merging", "problem", "rx-gro-list", features={"rx-gro-list": FIXED}),
    ill("LRO", "merging", "advice", "rx-lro is on", features={"rx-lro": ON}),
    ill("no checksums", "checksum", "advice", "no checksums", features={"rx-checksum": OFF}),
    ill(
        *("small rings", "rings", "advice", "rx 256 of 4096", 2),
        rings=RingSizes(256, 4096, 512, 4096),
    ),
    ill(
        *("slow interrupts", "coalescing", "advice", "up to 500 micro"),
        coalescing=Coalescing(500, 0, is_adaptive=False),
    ),
    ill(
        *("losing", "drops", "problem", "56 frames lost in 1 s, 1,000 received"),
        before=Sample(LinkStatistics(1000, missed=4)),
        after=Sample(LinkStatistics(2000, missed=60)),
    ),
    ill(
        *("lost by the driver", "drops", "advice", "700 frames lost since"),
        before=Sample(LinkStatistics(1000), {"rx_out_of_buffer": 700}),
        after=Sample(LinkStatistics(2000), {"rx_out_of_buffer": 700}),
    ),
    ill(
        *("a full backlog", "backlog", "problem", "holds 1,000 refused 5 frames", 1),
        before=Sample(softnet=Softnet(10)),
        after=Sample(softnet=Softnet(15)),
        backlog=1000,
    ),
    ill(
        *("a long backlog that is full", "backlog", "problem", "holds 20,000 refused 5"),
        after=Sample(softnet=Softnet(5)),
        backlog=20_000,
    ),
    ill(
        *("a backlog of elsewhere", "backlog", "advice", "refused 15 frames since"),
        before=Sample(softnet=Softnet(15)),
        after=Sample(softnet=Softnet(15)),
        backlog=None,
    ),
    ill(
        *("short rounds", "budget", "advice", "90 rounds of receiving a second"),
        after=Sample(softnet=Softnet(0, 90)),
    ),
    ill(
        *("tcpdump", "packet-socket", "advice", "tcpdump (pid 4242) reads every frame of eth0"),
        packet_users=(DHCP, TCPDUMP),
    ),
    ill("a daemon", "packet-socket", "advice", "of all interfaces", packet_users=(LLDPD,)),
    ill(
        *("somebody hidden", "packet-socket", "advice", "cannot be seen"),
        packet_users=(PacketUser(3, everywhere=False, owner=None),),
    ),
    ill("an old kernel", "takeover", "advice", "Linux 6.1.0", tcx=None, release="6.1.0-9",
        tcx_error=errno.EINVAL),
    ill("no tcx", "takeover", "advice", "without tcx", tcx=None, tcx_error=errno.EINVAL),
    ill("another program", "takeover", "advice", "cil_from_netdev (id 9)",
        tcx=(Program(7, "pktstun"), Program(9, "cil_from_netdev"))),
    ill("XDP", "xdp", "advice", "xdp_drop (id 3)", xdp=Program(3, "xdp_drop")),
    ill("tc", "tc-ingress", "advice", "discipline clsact", disciplines=frozenset({"clsact"})),
    ill("nftables", "firewall", "advice", "inet filter input", firewall=Firewall((INPUT,))),
    ill("iptables", "firewall", "advice", "iptables filter",
        firewall=Firewall(legacy=frozenset({"filter"}))),
    ill("tracking", "conntrack", "problem", "port 3478 are tracked (3 entries now)", 1, tracked=3,
        firewall=Firewall((INPUT,), (STATE,)), connections=9, connections_most=1000),
    ill("tracking, nothing yet", "conntrack", "advice", "(0 entries now)", 1,
        firewall=Firewall((INPUT,), (STATE,)), connections_most=1000),
    ill("a policy by state", "conntrack", "problem", "(1 entry now)", tracked=1,
        firewall=Firewall((replace(INPUT, drops=True),), (STATE,))),
    ill("a refusal by state", "conntrack", "problem", "(1 entry now)", tracked=1,
        firewall=Firewall((INPUT,), (STATE, REFUSING))),
    ill("NAT", "conntrack", "problem", "(1 entry now)", tracked=1,
        firewall=Firewall((), (replace(STATE, translates=True),))),
    ill("iptables' state", "conntrack", "problem", "(1 entry now)", tracked=1,
        firewall=Firewall(legacy=frozenset({"filter"}))),
    ill("tracking without nft", "conntrack", "problem", "(1 entry now)", tracked=1,
        firewall=Firewall((), (STATE,)), has_nft=False),
    ill("a full table", "conntrack-full", "problem", "900 of 1,000 entries",
        connections=900, connections_most=1000),
    ill("a strict path filter", "rp_filter", "advice", "2 interfaces",
        strict_path_filter=True, neighbours=2),
    ill("an ancient kernel", "kernel", "problem", "Linux 4.19", release="4.19.0-amd64"),
    ill("a cpuset", "cpus", "advice", "CPUs 4-7 may not", online=frozenset(range(8))),
    ill("a slow clock", "clock", "advice", "hpet", clock="hpet", clocks=("hpet", "tsc")),
    ill("no fast clock", "clock", "advice", "acpi_pm", clock="acpi_pm", clocks=("acpi_pm",)),
    ill("power saving", "governor", "advice", "powersave", governors=frozenset({"powersave"})),
    ill("deep sleep", "idle-states", "advice", "890 microseconds", slow_idle=890),
    ill("a busy neighbour", "steal", "advice", "10.0% of the CPU time",
        before=Sample(ticks=100), after=Sample(ticks=500, stolen=40)),
    ill("swapped out", "swap", "advice", "2,048 KiB", swap=True, swapped=2048),
    ill("no privilege", "privileges", "advice", "CAP_NET_ADMIN missing", missing=("CAP_NET_ADMIN",),
        firewall=None, tcx=None, tcx_error=errno.EPERM, tracked=None),
    ill("another namespace's sysfs", "sysfs", "advice", "another network namespace", sysfs=False),
    ill("no user", "user", "advice", "no user pktstun", has_user=False),
    ill("no unit", "service", "advice", "no pktstun.service", has_unit=False),
    ill("few descriptors", "open-files", "advice", "at most 1,024", descriptors=1024),
    ill("little locked memory", "memlock", "advice", "64 KiB", release="5.10.0", locked=65536),
    ill("small buffers", "buffers", "advice", "rmem_max and net.core.wmem_max",
        receive_buffer=212992, send_buffer=212992),
)  # fmt: skip
