"""Files of /proc and /sys, as text in and values out.

Theory of operation: the kernel's formats grow at their ends, and a file may be cut short, empty
or hidden in a container. A line that is not understood is passed over, and nothing here raises
for what is in a text: a doctor that stumbles over the patient is of no use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = [
    "PacketSocketLine",
    "Softnet",
    "cpu_list",
    "cpu_list_text",
    "cpu_mask",
    "cpu_mask_text",
    "cpu_times",
    "cpus_named",
    "hard_limit",
    "kibibytes",
    "number",
    "packet_socket_lines",
    "parent_of",
    "plain",
    "service_of",
    "softnet",
    "version",
]

_MOST_CPUS = 1 << 16
_WORD = 32  # bits of a mask between two commas


def number(text: str, base: int = 10) -> int | None:
    """Return a number that is not negative, or None if the text is none."""
    text = text.strip()
    # What int() takes beyond that (signs, "_", digits of other scripts) is no kernel's.
    if not text.isascii() or not text.isalnum() or len(text) > 20:
        return None
    try:
        return int(text, base)
    except ValueError:
        return None


def cpu_list(text: str) -> frozenset[int]:
    """Return the CPUs in a list such as "0-3,8"."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = number(first), number(last or first)
        if low is not None and high is not None and high < _MOST_CPUS:
            cpus.update(range(low, high + 1))
    return frozenset(cpus)


def cpu_list_text(cpus: Collection[int]) -> str:
    """Return CPUs as "0-3,8": what `cpu_list` reads."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{low}-{high}" if low < high else f"{low}" for low, high in runs)


def cpus_named(cpus: Collection[int]) -> str:
    """Return CPUs as an operator would name them: "CPU 3", "CPUs 0-3,8"."""
    return f"CPU{'s' if len(cpus) != 1 else ''} {cpu_list_text(cpus) or 'none'}"


def cpu_mask(text: str) -> frozenset[int]:
    """Return the CPUs in a mask such as "3" or "1,00000000"."""
    words = text.strip().split(",")
    mask = 0
    for word in words[-_MOST_CPUS // _WORD :]:
        value = number(word, 16)
        if value is None or (value >> _WORD and len(words) > 1):
            return frozenset()
        mask = mask << _WORD | value
    return frozenset(at for at, bit in enumerate(reversed(f"{mask:b}")) if bit == "1")


def cpu_mask_text(cpus: Iterable[int]) -> str:
    """Return CPUs as a mask: what `cpu_mask` and the kernel read."""
    mask = sum(1 << cpu for cpu in set(cpus))
    words = []
    while mask >> _WORD:
        words.append(f"{mask & 0xFFFFFFFF:08x}")
        mask >>= _WORD
    return ",".join([f"{mask:x}", *reversed(words)])


class Softnet(NamedTuple):
    """The receiving side of the kernel, all CPUs together, since the host was started."""

    dropped: int = 0
    """Frames for which a CPU's backlog had no room (net.core.netdev_max_backlog)."""
    squeezed: int = 0
    """Times that a round of receiving ended with work left (net.core.netdev_budget)."""


def softnet(text: str) -> Softnet:
    """Return the sums of /proc/net/softnet_stat: a line of hexadecimal words for each CPU."""
    dropped = squeezed = 0
    for line in text.splitlines():
        words = [number(word, 16) for word in line.split()[:3]]
        if len(words) == 3:
            dropped += words[1] or 0
            squeezed += words[2] or 0
    return Softnet(dropped, squeezed)


def cpu_times(text: str) -> tuple[int, int]:
    """Return all the time of /proc/stat's "cpu" line, and the stolen part of it, in ticks.

    Both are 0 where there is no such line. Guests' time is a part of the user's.
    """
    for line in text.splitlines():
        name, *values = line.split() or [""]
        if name == "cpu":
            ticks = [number(value) or 0 for value in values[:8]]
            return sum(ticks), ticks[7] if len(ticks) == 8 else 0
    return 0, 0


class PacketSocketLine(NamedTuple):
    """A line of /proc/net/packet."""

    protocol: int
    """In host byte order: 3 is ETH_P_ALL, 0 receives nothing."""
    ifindex: int
    """Of the interface; 0: all of them."""
    inode: int


def packet_socket_lines(text: str) -> Iterator[PacketSocketLine]:
    """Yield the packet sockets of a network namespace."""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 9:
            continue
        protocol, index, inode = number(words[3], 16), number(words[4]), number(words[8])
        if protocol is not None and index is not None and inode is not None:
            yield PacketSocketLine(protocol, index, inode)


def service_of(cgroup: str) -> str:
    """Return the systemd service in /proc/PID/cgroup, such as "dhcpcd.service"; "" for none."""
    for line in cgroup.splitlines():
        for part in reversed(line.rpartition(":")[2].split("/")):
            # Of a user's own programs the manager's unit is above, and not to be stopped.
            if part.endswith(".service") and not part.startswith("user@"):
                return plain(part)
    return ""


def parent_of(stat: str) -> int:
    """Return the parent's process id in /proc/PID/stat; 0 for none."""
    # The name, in brackets, may hold anything.
    words = stat.rpartition(")")[2].split()
    return (number(words[1]) or 0) if len(words) > 1 else 0


def hard_limit(limits: str, name: str) -> int | None:
    """Return a hard limit of /proc/PID/limits; None where it is not told, or unlimited."""
    for line in limits.splitlines():
        if line.startswith(name):
            words = line[len(name) :].split()
            return number(words[1]) if len(words) > 1 else None
    return None


def kibibytes(status: str, name: str) -> int:
    """Return a size in /proc/PID/status, such as VmSwap; 0 where it is not told."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return number((value.split() or [""])[0]) or 0
    return 0


def plain(name: str) -> str:
    """Return a name that somebody has given himself, fit for a terminal and for one line."""
    ascii_only = name.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(each if each.isprintable() else "?" for each in ascii_only)


def version(release: str) -> tuple[int, int]:
    """Return the first two numbers of a kernel's release, such as "6.18.44-generic"."""
    major, _, rest = release.partition(".")
    digits = ""
    for character in rest:
        if not character.isdecimal():
            break
        digits += character
    return number(major) or 0, number(digits) or 0
