"""Receive queues: on which CPUs what an interface receives is handed to packet sockets.

Theory of operation: a packet socket sees a frame on the CPU that runs the protocol stack for it,
and PACKET_FANOUT_CPU chooses by that CPU. Which one it is, is decided for each receive queue, and
what comes first in this list decides:

1. RPS, where it is set, passes each frame to one of its CPUs before any packet socket sees it
   (Documentation/networking/scaling.rst). A driver that does not note the queue on its frames,
   as veth does not, has them all count as of queue 0: give all its queues the same CPUs.
2. Threaded NAPI: the thread that polls the queue runs where the scheduler lets it
   (Documentation/networking/napi.rst). On veth it polls only what may be worth merging: nearly
   nothing, unless the peer has TCP segmentation off (`ethtool -K ... tso off`).
3. The interrupt: the CPU that takes it polls the queue.
4. Else it cannot be told. Over lo and a veth without NAPI a frame is received on the CPU of its
   sender; over a VLAN, a bond or a macvlan, wherever the device below received it.

Generic netlink knows queues, NAPI instances, threads and interrupts (Linux 6.8), and means the
network namespace of the calling thread. RPS, and interrupts by name, are in sysfs alone, which
shows the namespace that it was mounted in: who entered another one with setns(2) would read of a
stranger with the same name. So sysfs is believed only where all its interfaces are ours. Where
they are not, RPS counts as off: that is the kernel's default, and a container that has a sysfs of
its own is not affected. A wrong answer makes a worker sit beside its packets; it loses none.

All of it holds for the moment of asking. Interrupts and threads may be moved at any time.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .iface import local_addresses
from .netlink import dump

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from .iface import Interface

# <linux/netlink.h>, <linux/genetlink.h>
_NETLINK_GENERIC = 16
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2

# <linux/netdev.h>
_NETDEV_CMD_QUEUE_GET, _NETDEV_CMD_NAPI_GET = 10, 11
_QUEUE_ID, _QUEUE_IFINDEX, _QUEUE_TYPE, _QUEUE_NAPI_ID = 1, 2, 3, 4
_QUEUE_TYPE_RX = 0
_NAPI_IFINDEX, _NAPI_ID, _NAPI_IRQ, _NAPI_PID = 1, 2, 3, 4

_NET = Path("/sys/class/net")
_IRQS = Path("/sys/kernel/irq")

# Drivers name the handlers of their queues as they like: eth0-TxRx-0 (Intel, Broadcom),
# eth0-Tx-Rx-0 (ENA), eth0-rxtx-0 (vmxnet3), eth0-rx-0, virtio0-input.0, eth0-fp-0 (bnx2x),
# mlx5_comp0@pci:0000:01:00.0.
_QUEUE_IRQ = re.compile(
    r"(?:^|[-_])(?:tx-?rx|rx-?tx|rx|input|fp|comp)[-.]?(\d+)(?:@.*)?$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ReceiveQueue:
    """A receive queue in use."""

    index: int
    cpus: frozenset[int]
    """Where its packets are handed to packet sockets and the stack; empty: cannot be told."""
    source: str
    """How that is known: "rps", "napi thread", "irq", or "" where it is not."""
    irq: int = field(default=0, compare=False)
    """The interrupt, 0 where none is known."""
    thread: int = field(default=0, compare=False)
    """Process id of the thread that polls it; 0: there is none, or it cannot be named."""


class _Napi(NamedTuple):
    """A NAPI instance; 0 for what it does not have."""

    irq: int
    thread: int | None
    """0: it has one that this process cannot name. None: it is not threaded."""


def receive_queues(iface: Interface) -> tuple[ReceiveQueue, ...]:
    """Return the receive queues of an interface in the calling thread's network namespace.

    Queues that are allocated but not in use (`ethtool -L`) are not among them.

    Returns:
        The queues in order; none if their number is not known, or the interface has gone.
    """
    try:
        present = local_addresses()
    except OSError:
        return ()
    # The index is the interface; its name may have changed.
    name = next((each.name for each in present if each.index == iface.index), None)
    if name is None:
        return ()
    directory = sysfs_directory(name, present)
    try:
        queues, instances = _ask_netdev(iface.index)
    except OSError:
        queues, instances = {}, {}
    if not queues and directory is not None:
        # A kernel before 6.8, or an interface that is down.
        queues = dict.fromkeys(_numbered(directory / "queues", "rx-"), 0)
    napi_of = _match(queues, instances)
    handlers = {} if directory is None else _handlers(directory / "device")
    irqs = _irqs_by_name(handlers, queues)
    return tuple(
        _receive_queue(index, directory, napi_of.get(index), irqs.get(index, 0))
        for index in sorted(queues)
    )


def sysfs_directory(name: str, present: Collection[Interface]) -> Path | None:
    """Return where sysfs has an interface, or None where it shows another network namespace.

    Args:
        name: of one of `present`.
        present: all interfaces of the calling thread's network namespace.
    """
    return _NET / name if _sysfs_shows(present) else None


def worker_cpus(queues: Iterable[ReceiveQueue], usable: Collection[int]) -> tuple[int, ...]:
    """Return the CPUs that shall have a worker, in ascending order.

    They are those of `usable` on which queues are served. It is all of `usable` where that
    cannot be told of some queue, or where none of its CPUs is usable.
    """
    chosen: set[int] = set()
    for queue in queues:
        own = queue.cpus & set(usable)
        if not own:
            # What arrives on a CPU without a worker is spread over all members of the fanout
            # group, and must cross CPUs anyway: the more of them share it, the better.
            return tuple(sorted(usable))
        chosen |= own
    return tuple(sorted(chosen or usable))


def _receive_queue(
    index: int, directory: Path | None, napi: _Napi | None, named_irq: int
) -> ReceiveQueue:
    cpus: frozenset[int] = frozenset()
    thread = (napi.thread or 0) if napi is not None else 0
    irq = napi.irq if napi is not None and napi.irq else named_irq
    # A device on top of another gets its frames behind the other's RPS; its own is not asked.
    if directory is not None and not _children(directory, "lower_"):
        cpus = _parse_mask(_text(directory / f"queues/rx-{index}/rps_cpus"))
    if cpus:
        return ReceiveQueue(index, cpus, "rps", irq, thread)
    if napi is not None and napi.thread is not None:
        # The interrupt does no more than wake the thread, so it says nothing.
        cpus, source = _thread_cpus(thread), "napi thread"
    else:
        cpus, source = _irq_cpus(irq), "irq"
    return ReceiveQueue(index, cpus, source if cpus else "", irq, thread)


def _thread_cpus(pid: int) -> frozenset[int]:
    # The kernel says 0 in a PID namespace without the thread; to sched_getaffinity that would
    # mean the caller.
    try:
        return frozenset(os.sched_getaffinity(pid) if pid else ())
    except OSError:
        return frozenset()


def _irq_cpus(irq: int) -> frozenset[int]:
    if not irq:
        return frozenset()
    # What is allowed may be more than what the interrupt controller has chosen from it.
    directory = Path(f"/proc/irq/{irq}")
    return _parse_list(_text(directory / "effective_affinity_list")) or _parse_list(
        _text(directory / "smp_affinity_list")
    )


# --- Generic netlink ---


def _ask_netdev(index: int) -> tuple[dict[int, int], dict[int, _Napi]]:
    """Return {receive queue: its NAPI id or 0} and {NAPI id: instance}.

    Both are empty while the interface is down.

    Raises:
        OSError: the kernel does not know these commands.
    """
    families = dump(_GENL_ID_CTRL, _GENERIC, (_CTRL_CMD_GETFAMILY, 1, 0), protocol=_NETLINK_GENERIC)
    family = next(
        (
            _number(each.attributes, _CTRL_ATTR_FAMILY_ID)
            for each in families
            if each.attributes.get(_CTRL_ATTR_FAMILY_NAME) == b"netdev\0"
        ),
        None,
    )
    if family is None:
        return {}, {}

    def ask(command: int, attribute: int) -> list[dict[int, bytes]]:
        whose = [(attribute, struct.pack("=I", index))]
        fields = (command, 1, 0)
        answers = dump(family, _GENERIC, fields, whose, protocol=_NETLINK_GENERIC)
        return [each.attributes for each in answers]

    queues = {
        _number(each, _QUEUE_ID): _number(each, _QUEUE_NAPI_ID)
        for each in ask(_NETDEV_CMD_QUEUE_GET, _QUEUE_IFINDEX)
        if _number(each, _QUEUE_TYPE) == _QUEUE_TYPE_RX
    }
    instances = {
        # Before Linux 6.17 a thread outlives the end of its use (threaded=0), and is still told.
        _number(each, _NAPI_ID): _Napi(
            _number(each, _NAPI_IRQ), _number(each, _NAPI_PID) if _NAPI_PID in each else None
        )
        for each in ask(_NETDEV_CMD_NAPI_GET, _NAPI_IFINDEX)
    }
    return queues, instances


def _number(attributes: Mapping[int, bytes], name: int) -> int:
    return int.from_bytes(attributes.get(name, b""), sys.byteorder)


def _match(queues: Mapping[int, int], instances: Mapping[int, _Napi]) -> dict[int, _Napi]:
    """Return {queue: NAPI instance} as far as they are known to belong together."""
    if not any(queues.values()) and len(queues) == len(instances):
        # Many drivers do not tell (veth in 6.18 is one). They make their instances in a loop
        # over the queues, and the kernel counts ids upwards. More instances than queues would
        # mean some for sending, and no telling which.
        return dict(
            zip(sorted(queues), (instances[napi] for napi in sorted(instances)), strict=True)
        )
    return {queue: instances[napi] for queue, napi in queues.items() if napi in instances}


# --- sysfs ---


def _sysfs_shows(present: Collection[Interface]) -> bool:
    """Whether sysfs shows the network namespace that has these interfaces, and no other.

    Nothing names the namespace of a mounted sysfs. One interface may have a double elsewhere,
    by name, index and address (containers made from one template); all of them hardly do.
    """
    shown = {
        (each.name, _text(each / "ifindex"), _text(each / "address"))
        for each in _children(_NET)
        if each.is_dir()  # bonding_masters is a file
    }
    return shown == {(each.name, str(each.index), each.mac.hex(":")) for each in present}


def _handlers(device: Path) -> dict[int, list[str]]:
    """Return {interrupt: names of its handlers} of a device, given its directory in sysfs."""
    device = device.resolve()
    if (device / "subsystem").resolve().name == "virtio":
        # The interrupts are those of the PCI or MMIO device above, but bear this one's name,
        # of which there is one on the host.
        irqs = _numbered(_IRQS)
        own = re.compile(rf"{re.escape(device.name)}(-|$)")
    else:
        # The file is 0 where there is none.
        line = int(_text(device / "irq") or 0)
        irqs = _numbered(device / "msi_irqs") or ([line] if line else [])
        own = re.compile("")
    handlers = {
        irq: [name for name in _text(_IRQS / str(irq) / "actions").split(",") if name]
        for irq in irqs
    }
    return {irq: names for irq, names in handlers.items() if any(map(own.match, names))}


def _irqs_by_name(handlers: Mapping[int, Iterable[str]], queues: Collection[int]) -> dict[int, int]:
    """Return {queue: interrupt}; nothing if the names of the handlers do not settle it."""
    if len(handlers) == 1:
        return dict.fromkeys(queues, *handlers)
    found = [
        (int(match[1]), irq)
        for irq, names in handlers.items()
        for match in map(_QUEUE_IRQ.search, names)
        if match
    ]
    irqs = dict(found)
    if len(irqs) < len(found):
        return {}
    # Where vector 0 is for other events, tg3 for one counts its queues from 1.
    first = min(irqs, default=0)
    irqs = {index - first: irq for index, irq in irqs.items()} if first == 1 else irqs
    return {queue: irqs[queue] for queue in queues if queue in irqs}


def _numbered(directory: Path, prefix: str = "") -> list[int]:
    """Return the numbers N of entries "<prefix>N" in a directory, ascending."""
    names = (each.name.removeprefix(prefix) for each in _children(directory, prefix))
    return sorted(int(name) for name in names if name.isdecimal())


def _children(directory: Path, prefix: str = "") -> list[Path]:
    try:
        return [each for each in directory.iterdir() if each.name.startswith(prefix)]
    except OSError:
        return []


def _text(path: Path) -> str:
    """Return what a file says, without the end of line; "" if it cannot be read."""
    try:
        # The name of an interface, of which handlers are named, may be any bytes.
        return path.read_text(encoding="ascii", errors="surrogateescape").strip()
    except OSError:
        return ""


def _parse_mask(text: str) -> frozenset[int]:
    """Return the CPUs in a mask such as "3" or "1,00000000" (32 bits in each part)."""
    mask = int(text.replace(",", "") or "0", 16)
    return frozenset(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1)


def _parse_list(text: str) -> frozenset[int]:
    """Return the CPUs in a list such as "0-3,8"."""
    cpus: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)
