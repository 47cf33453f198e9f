"""What a check finds, and the settings that it would have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from ._parse import cpu_list_text, cpu_mask_text, cpus_named

__all__ = ["TABLE", "Change", "Finding", "Kind", "Severity", "Value", "commands_for", "shown"]

TABLE = "pktstun_doctor"
"""The nf_tables table of our own."""

Value: TypeAlias = bool | int | tuple[int, ...]
"""Of a setting: on or off, a number, or CPUs or ports in ascending order."""


class Severity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    ADVICE = "advice"
    """It costs something, or may."""
    PROBLEM = "problem"
    """It loses requests, makes them cost a multiple, or keeps the service from starting."""


class Kind(StrEnum):
    """The settings that `--apply` changes; each has a name and a value."""

    FEATURE = "feature"
    """Name: as in `ethtool -k`. Value: whether it is on."""
    RPS = "rps"
    """Name: a receive queue's number. Value: CPUs."""
    IRQ = "irq"
    """Name: an interrupt's number. Value: CPUs."""
    THREAD = "napi-thread"
    """Name: its process id. Value: CPUs."""
    RING = "ring"
    """Name: "rx" or "tx". Value: descriptors."""
    SYSCTL = "sysctl"
    """Name: "net.core.netdev_max_backlog". Value: a number."""
    NOTRACK = "notrack"
    """Name: the table's. Value: the UDP ports that it keeps out of connection tracking."""


@dataclass(frozen=True, slots=True)
class Change:
    """A setting, and the value that it should have."""

    kind: Kind
    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has to say."""

    check: str
    """The check's name: stable, for scripts."""
    severity: Severity
    found: str
    """One line without an end."""
    why: str = ""
    """Why it matters, in a sentence or three."""
    commands: tuple[str, ...] = ()
    """What changes it, or shows more: shell commands, for root; one may have several lines. Those
    of `changes` come first."""
    changes: tuple[Change, ...] = ()
    """What `--apply` would do about it; empty: nothing."""


def commands_for(iface: str, change: Change) -> str:
    """Return the shell command that makes a change by hand."""
    name, value = change.name, change.value
    numbers = value if isinstance(value, tuple) else ()
    match change.kind:
        case Kind.FEATURE:
            return f"ethtool -K {iface} {name} {'on' if value else 'off'}"
        case Kind.RPS:
            file = f"/sys/class/net/{iface}/queues/rx-{name}/rps_cpus"
            return f"echo {cpu_mask_text(numbers)} > {file}"
        case Kind.IRQ:
            return f"echo {cpu_list_text(numbers)} > /proc/irq/{name}/smp_affinity_list"
        case Kind.THREAD:
            return f"taskset -pc {cpu_list_text(numbers)} {name}"
        case Kind.RING:
            return f"ethtool -G {iface} {name} {value}"
        case Kind.SYSCTL:
            return f"sysctl -w {name}={value}"
        case Kind.NOTRACK:
            return notrack_command(numbers)


def notrack_command(ports: tuple[int, ...]) -> str:
    """Return the command that makes the table for these ports, or removes it if there are none."""
    return f"nft '{notrack_table(ports)}'" if ports else f"nft delete table inet {TABLE}"


def notrack_table(ports: tuple[int, ...]) -> str:
    """Return the table in the language of nft(8)."""

    def chain(name: str, hook: str, which: str) -> list[str]:
        rules = [f"    udp {which} {port} notrack;" for port in ports]
        return [f"  chain {name} {{ type filter hook {hook} priority raw;", *rules, "  }"]

    return "\n".join(
        [
            f"table inet {TABLE} {{",
            *chain("requests", "prerouting", "dport"),
            *chain("replies", "output", "sport"),
            "}",
        ]
    )


def shown(kind: Kind, value: Value) -> str:
    """Return a value in words."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    if kind is Kind.NOTRACK:
        return f"port {', '.join(map(str, value))}" if value else "no table"
    return cpus_named(value)
