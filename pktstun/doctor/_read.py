"""Reads a host into a record: files, netlink and ioctls, no programs; and changes nothing.

(To ask for the rules of nf_tables makes the kernel load that module, where it is one.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import pwd
import re
import resource
import shutil
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pktstun.account import DEFAULT_USER
from pktstun.kernel import ingress_programs, interface, local_addresses, privileges, receive_queues
from pktstun.kernel.ebpf import program_name
from pktstun.kernel.ethtool import Ethtool, Feature
from pktstun.kernel.linkinfo import LinkStatistics, link_info, queueing_disciplines
from pktstun.kernel.netfilter import base_chains, rules, tracked_connections
from pktstun.kernel.queues import sysfs_directory

from ._host import Firewall, Host, PacketUser, Process, Program, Sample
from ._parse import (
    cpu_list,
    cpu_times,
    hard_limit,
    kibibytes,
    number,
    packet_socket_lines,
    parent_of,
    plain,
    service_of,
    softnet,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pktstun.kernel import Interface

__all__ = ["SEARCH", "read_host"]

T = TypeVar("T")

SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Where programs are looked for; the shell of a service may not know of sbin."""

_PROC, _NET = Path("/proc"), Path("/proc/thread-self/net")
_SYSCTL = Path("/proc/sys")
_CPUS = Path("/sys/devices/system/cpu")
_CLOCKS = Path("/sys/devices/system/clocksource/clocksource0")
_UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
_MOST_ENTRIES = 100_000  # of connection tracking: some tenths of a second

# What is below the interface that receives in its stead; a veth names its other end there.
_STACKED = frozenset({"vlan", "macvlan", "ipvlan", "bond", "team", "bridge", "vrf"})
# As drivers call what they lost for want of room. What an XDP program drops is no loss, and
# rx_dropped also counts what nobody wanted.
_LOSSES = re.compile(
    r"rx.*(?:drop|miss|discard|fifo|overrun|no_?buf|out_of_buf|alloc_fail)", re.IGNORECASE
)


def read_host(name: str, port: int, seconds: float) -> Host:
    """Return the host as it is now.

    Args:
        name: of an interface in the calling thread's network namespace.
        port: UDP port that is served, or shall be.
        seconds: between the two samples of counters; 0: there is one.

    Raises:
        OSError: ENODEV, there is no such interface.
    """
    iface = interface(name)
    before = _sample(iface)
    started = time.monotonic()
    if seconds:
        time.sleep(seconds)
    after = _sample(iface)
    elapsed = time.monotonic() - started if seconds else 0.0
    processes = dict(_processes())
    ours = _pktstun(processes)
    return Host(
        iface=name,
        port=port,
        missing=() if privileges.Capability.NET_ADMIN in _capabilities() else ("CAP_NET_ADMIN",),
        before=before,
        after=after,
        seconds=round(elapsed, 1),
        irqbalance=next((each for each in processes.values() if each.name == "irqbalance"), None),
        packet_users=_packet_users(iface, processes, ours),
        **_link(iface),
        **_programs(iface),
        **_rules(name, port),
        **_machine(),
        **_service(processes, ours),
    )


def _attempt(function: Callable[[], T], otherwise: T) -> T:
    """Return what a function does, or something else where the kernel refuses."""
    try:
        return function()
    except OSError:
        return otherwise


def _text(path: Path) -> str:
    # A file of sysfs may fail with EINVAL, and one of another process with ESRCH.
    return _attempt(lambda: path.read_text(encoding="utf-8", errors="replace").strip(), "")


def _children(directory: Path, pattern: str) -> list[Path]:
    return _attempt(lambda: sorted(directory.glob(pattern)), [])


def _sysctl(name: str) -> int | None:
    return number(_text(_SYSCTL / name))


def _capabilities() -> frozenset[int]:
    return _attempt(privileges.permitted, frozenset[int]())


# --- The interface ---


def _sample(iface: Interface) -> Sample:
    ticks, stolen = cpu_times(_text(_PROC / "stat"))
    with Ethtool(iface.name) as driver:
        counters = _attempt(driver.counters, dict[str, int]())
    return Sample(
        _attempt(lambda: link_info(iface.index).statistics, LinkStatistics()),
        {
            name: value
            for name, value in counters.items()
            if _LOSSES.search(name) and "xdp" not in name and name != "rx_dropped"
        },
        softnet(_text(_NET / "softnet_stat")),
        ticks,
        stolen,
    )


def _link(iface: Interface) -> dict[str, Any]:
    present = local_addresses()
    names = {each.index: each.name for each in present}
    info = _attempt(lambda: link_info(iface.index), None)
    directory = sysfs_directory(iface.name, present)
    kind = info.kind if info else ""
    channels = None
    with Ethtool(iface.name) as driver:
        with contextlib.suppress(OSError):
            channels = driver.channels()
        found: dict[str, Any] = {
            "driver": _attempt(driver.driver, ""),
            "features": _attempt(driver.features, dict[str, Feature]()),
            "rings": _attempt(driver.rings, None),
            "coalescing": _attempt(driver.coalescing, None),
        }
    return {
        **found,
        "is_up": iface.is_up,
        "is_loopback": iface.is_loopback,
        "is_ethernet": iface.is_ethernet,
        "master": names.get(iface.master, "another interface") if iface.master else "",
        "kind": kind,
        "below": names.get(info.below, "") if info and kind in _STACKED else "",
        "mtu": iface.mtu,
        "neighbours": sum(each.is_up and not each.is_loopback for each in present),
        "queues": receive_queues(iface),
        "queues_most": channels.most if channels else 0,
        "sysfs": directory is not None,
        "flow_entries": _flow_entries(directory),
        "backlog": _sysctl("net/core/netdev_max_backlog"),
        "budget": _sysctl("net/core/netdev_budget"),
    }


def _flow_entries(directory: Path | None) -> int:
    # Both it takes: a table for the host, and one for each queue.
    if directory is None or not _sysctl("net/core/rps_sock_flow_entries"):
        return 0
    files = _children(directory / "queues", "rx-*/rps_flow_cnt")
    return sum(number(_text(file)) or 0 for file in files)


# --- Others ---


def _processes() -> Iterator[tuple[int, Process]]:
    for directory in _children(_PROC, "[0-9]*"):
        pid = number(directory.name)
        name = _text(directory / "comm")
        if pid is not None and name:
            yield pid, Process(pid, plain(name), service_of(_text(directory / "cgroup")))


def _pktstun(processes: Iterable[int]) -> frozenset[int]:
    """Return the processes of `pktstun serve`."""
    found = set()
    for pid in processes:
        words = _text(_PROC / str(pid) / "cmdline").split("\0")
        programs = {Path(word).name for word in words[:4]}
        if "serve" in words and not programs.isdisjoint({"pktstun", "__main__.py"}):
            found.add(pid)
    return frozenset(found)


def _packet_users(
    iface: Interface, processes: dict[int, Process], ours: frozenset[int]
) -> tuple[PacketUser, ...]:
    lines = [
        line
        for line in packet_socket_lines(_text(_NET / "packet"))
        if line.protocol and line.ifindex in {0, iface.index}
    ]
    owners = _owners({line.inode for line in lines}, processes) if lines else {}
    return tuple(
        PacketUser(line.protocol, not line.ifindex, processes.get(owners.get(line.inode, 0)))
        for line in lines
        if owners.get(line.inode) not in ours
    )


def _owners(inodes: set[int], processes: Iterable[int]) -> dict[int, int]:
    """Return {inode of a socket: a process that has it}."""
    targets = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, int] = {}
    for pid in processes:
        for link in _children(_PROC / str(pid) / "fd", "*"):
            inode = targets.get(_target(link))
            if inode is not None:
                found.setdefault(inode, pid)
    return found


def _target(link: Path) -> str:
    return _attempt(lambda: str(link.readlink()), "")


def _programs(iface: Interface) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        found["tcx"] = tuple(map(_program, ingress_programs(iface.index)))
    except OSError as error:
        found["tcx_error"] = error.errno or errno.EINVAL
    xdp = _attempt(lambda: link_info(iface.index).xdp, 0)
    found["xdp"] = _program(xdp) if xdp else None
    found["disciplines"] = _attempt(lambda: queueing_disciplines(iface.index), frozenset[str]())
    return found


def _program(identifier: int) -> Program:
    return Program(identifier, _attempt(lambda: program_name(identifier), ""))


def _rules(iface: str, port: int) -> dict[str, Any]:
    legacy = frozenset(
        chain.from_iterable(
            _text(_NET / f"{family}_tables_names").split() for family in ("ip", "ip6")
        )
    )
    try:
        firewall = Firewall(base_chains(), rules(), legacy)
    except PermissionError:
        firewall = None
    except OSError:
        firewall = Firewall(legacy=legacy)
    count = _sysctl("net/netfilter/nf_conntrack_count")
    tracked: int | None = 0
    # Else the question would have the kernel load connection tracking.
    if count:
        with contextlib.suppress(OSError):
            tracked = None
            tracked = tracked_connections(port, _MOST_ENTRIES)
    return {
        "firewall": firewall,
        "tracked": tracked,
        "connections": count,
        "connections_most": _sysctl("net/netfilter/nf_conntrack_max") or 0,
        "has_nft": shutil.which("nft", path=SEARCH) is not None,
        "strict_path_filter": max(
            _sysctl(f"net/ipv4/conf/{name}/rp_filter") or 0 for name in ("all", iface)
        )
        == 1,
    }


# --- Machine and service ---


def _machine() -> dict[str, Any]:
    usable = frozenset(os.sched_getaffinity(0))
    states = [
        number(_text(state / "latency")) or 0
        for state in _children(_CPUS / "cpu0/cpuidle", "state*")
        if _text(state / "disable") == "0"
    ]
    return {
        "release": platform.release(),
        "online": cpu_list(_text(_CPUS / "online")) or usable,
        "usable": usable,
        "clock": _text(_CLOCKS / "current_clocksource"),
        "clocks": tuple(_text(_CLOCKS / "available_clocksource").split()),
        "governors": frozenset(map(_text, _children(_CPUS, "cpu[0-9]*/cpufreq/scaling_governor"))),
        "slow_idle": max(states, default=0),
        "swap": len(_text(_PROC / "swaps").splitlines()) > 1,
        "receive_buffer": _sysctl("net/core/rmem_max"),
        "send_buffer": _sysctl("net/core/wmem_max"),
        "autogroup": _sysctl("kernel/sched_autogroup_enabled") == 1,
    }


def _service(processes: dict[int, Process], ours: frozenset[int]) -> dict[str, Any]:
    here = _namespace("thread-self")
    local = {pid for pid in ours if _namespace(str(pid)) == here}
    leaders = sorted(
        pid for pid in local if parent_of(_text(_PROC / str(pid) / "stat")) not in local
    )
    limits = _text(_PROC / str(leaders[0]) / "limits") if leaders else ""
    own_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    own_locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    unlimited = resource.RLIM_INFINITY
    return {
        "running": tuple(processes[pid] for pid in leaders),
        "worker_cpus": frozenset[int]().union(*map(_pinned, local.difference(leaders))),
        "has_user": _has_user(),
        "has_unit": any(Path(each, "pktstun.service").exists() for each in _UNITS),
        "has_systemd": Path("/run/systemd/system").exists(),
        "descriptors": hard_limit(limits, "Max open files")
        or (1 << 30 if own_files == unlimited else own_files),
        "locked": None if own_locked == unlimited else own_locked,
        "swapped": sum(
            kibibytes(_text(_PROC / str(pid) / "status"), "VmSwap") for pid in sorted(local)
        ),
    }


def _pinned(pid: int) -> frozenset[int]:
    """Return the CPU of a process that has one of its own."""
    cpus = _attempt(lambda: frozenset(os.sched_getaffinity(pid)), frozenset[int]())
    return cpus if len(cpus) == 1 else frozenset()


def _namespace(process: str) -> int:
    return _attempt(lambda: (_PROC / process / "ns/net").stat().st_ino, 0)


def _has_user() -> bool:
    try:
        pwd.getpwnam(DEFAULT_USER)
    except KeyError:
        return False
    return True
