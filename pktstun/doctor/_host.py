"""The record of a host, read once, from which all findings follow.

Whatever could not be read, for want of a privilege or because this kernel does not have it, is
None, and the checks that need it say nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pktstun.kernel.linkinfo import LinkStatistics

from ._parse import Softnet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pktstun.kernel import ReceiveQueue
    from pktstun.kernel.ethtool import Coalescing, Feature, RingSizes
    from pktstun.kernel.netfilter import BaseChain, Rule

__all__ = ["Firewall", "Host", "PacketUser", "Process", "Program", "Sample"]

_NUMBERED = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, as an operator would name it."""

    pid: int
    name: str
    service: str = ""
    """Its systemd unit; "" for none."""

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class PacketUser:
    """A packet socket of somebody else."""

    protocol: int
    """3: every frame. Else an EtherType; 0: it only sends."""
    everywhere: bool
    """On all interfaces; else on the one that is looked at."""
    owner: Process | None
    """None: no process that can be seen has it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A BPF program."""

    identifier: int
    name: str


@dataclass(frozen=True, slots=True)
class Firewall:
    """The rules of nf_tables, those of iptables-nft included, and the tables of older iptables."""

    chains: tuple[BaseChain, ...] = ()
    rules: tuple[Rule, ...] = ()
    legacy: frozenset[str] = frozenset()
    """Tables in use: "filter", "nat", "raw", "mangle". What is in them cannot be told."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one moment."""

    link: LinkStatistics = field(default_factory=LinkStatistics)
    driver: Mapping[str, int] = field(default_factory=dict)
    """Those of the driver's that tell of frames lost for want of room."""
    softnet: Softnet = field(default_factory=Softnet)
    ticks: int = 0
    """Time of all CPUs."""
    stolen: int = 0
    """What a hypervisor gave to others of it."""

    @property
    def lost(self) -> int:
        """Frames that card and driver lost.

        Many count them more than once: for each queue, all together, and for the kernel.
        """
        of_queues = sum(value for name, value in self.driver.items() if _NUMBERED.search(name))
        return max(self.link.missed + self.link.overrun, of_queues, *self.driver.values(), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host as pktstun sees it, or would."""

    iface: str
    port: int = 3478
    missing: tuple[str, ...] = ()
    """Capabilities without which not everything could be read."""

    # The interface.
    is_up: bool = True
    is_loopback: bool = False
    is_ethernet: bool = True
    master: str = ""
    """The bridge, bond or VRF that it is a port of."""
    kind: str = ""
    below: str = ""
    """The interface that it is on top of."""
    mtu: int = 1500
    driver: str = ""
    neighbours: int = 1
    """How many interfaces are up, but for lo."""
    queues: tuple[ReceiveQueue, ...] = ()
    queues_most: int = 0
    """How many the driver could have; 0: it does not say."""
    sysfs: bool = True
    """Whether sysfs shows this network namespace."""
    flow_entries: int = 0
    """Entries of receive flow steering, of all queues."""
    features: Mapping[str, Feature] = field(default_factory=dict)
    rings: RingSizes | None = None
    coalescing: Coalescing | None = None
    before: Sample = Sample()
    after: Sample = Sample()
    seconds: float = 0.0
    """Between the two."""
    backlog: int | None = None
    """net.core.netdev_max_backlog; None in a network namespace that is not the first."""
    budget: int | None = None

    # Who else looks at packets.
    packet_users: tuple[PacketUser, ...] = ()
    tcx: tuple[Program, ...] | None = None
    """At tcx ingress, in order; None: that could not be asked, see `tcx_error`."""
    tcx_error: int = 0
    xdp: Program | None = None
    disciplines: frozenset[str] = frozenset()
    firewall: Firewall | None = None
    tracked: int | None = None
    """Entries of connection tracking that are about the port, at least."""
    connections: int | None = None
    connections_most: int = 0
    has_nft: bool = True
    """Whether the program nft is installed."""
    strict_path_filter: bool = False

    # The machine.
    release: str = "6.18.0"
    online: frozenset[int] = frozenset({0})
    usable: frozenset[int] = frozenset({0})
    """CPUs that this process may use."""
    clock: str = "tsc"
    clocks: tuple[str, ...] = ("tsc",)
    governors: frozenset[str] = frozenset()
    slow_idle: int = 0
    """Microseconds that the deepest idle state takes to leave; 0: none is used or told."""
    swap: bool = False
    swapped: int = 0
    """KiB of the running service that are swapped out."""

    # The service.
    running: tuple[Process, ...] = ()
    """Supervisors of `pktstun serve` in this network namespace."""
    worker_cpus: frozenset[int] = frozenset()
    """Where their workers are."""
    has_user: bool = True
    has_unit: bool = True
    has_systemd: bool = True
    descriptors: int = 1 << 20
    """Hard limit of open files: of the running service, else of this process."""
    locked: int | None = None
    """Bytes of RLIMIT_MEMLOCK; None: unlimited."""
    receive_buffer: int | None = None
    send_buffer: int | None = None
    """net.core.rmem_max, net.core.wmem_max."""
    autogroup: bool = True
    irqbalance: Process | None = None
