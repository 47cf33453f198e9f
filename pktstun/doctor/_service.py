"""What the service itself needs of the host: a user, a unit, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pktstun.account import DEFAULT_USER
from pktstun.resources import RECEIVE_BUFFER, SEND_BUFFER

from ._finding import Finding, Severity
from ._parse import version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._host import Host

__all__ = ["CHECKS"]

_STREAMS = 10_000 + 1_000
"""Descriptors of --tcp and --tls with their default limit, and some."""

_CHARGED_UNTIL = (5, 11)  # the kernel that ceased to charge BPF programs to RLIMIT_MEMLOCK
_PROGRAM_MEMORY = 1 << 20


def privileges(host: Host) -> Iterator[Finding]:
    """Tell what could not be looked at."""
    if host.missing:
        yield Finding(
            "privileges",
            Severity.ADVICE,
            f"not everything could be looked at: {', '.join(host.missing)} missing",
            "Firewall, connection tracking, programs and others' sockets need it.",
            (f"sudo pktstun doctor --iface {host.iface}",),
        )


def namespace(host: Host) -> Iterator[Finding]:
    """Tell whether sysfs is another network namespace's."""
    if not host.sysfs:
        yield Finding(
            "sysfs",
            Severity.ADVICE,
            "/sys shows another network namespace than this one",
            "So RPS can neither be told nor changed. `ip netns exec` mounts the right one:",
            (f"ip netns exec NAME pktstun doctor --iface {host.iface}",),
        )


def user(host: Host) -> Iterator[Finding]:
    """Look for the user that the service becomes."""
    if host.has_user:
        yield Finding("user", Severity.OK, DEFAULT_USER)
        return
    yield Finding(
        "user",
        Severity.ADVICE,
        f"there is no user {DEFAULT_USER}",
        "A service that is started as root stays root's then, though without its capabilities.",
        (f"useradd --system --shell /usr/sbin/nologin {DEFAULT_USER}",),
    )


def unit(host: Host) -> Iterator[Finding]:
    """Look for who starts it again."""
    running = ", ".join(f"pid {each.pid}" for each in host.running)
    state = f"running ({running})" if running else "not running"
    if host.has_unit or not host.has_systemd:
        yield Finding("service", Severity.OK, state)
        return
    yield Finding(
        "service",
        Severity.ADVICE,
        f"no pktstun.service is installed; {state}",
        "Somebody should start it again whatever ends it: with a parent that does it was back "
        "after 0.66 s.",
        ("pktstun install-service",),
    )


def descriptors(host: Host) -> Iterator[Finding]:
    """Look at the limit of open files, for streams."""
    if host.descriptors >= _STREAMS:
        yield Finding("open-files", Severity.OK, f"{host.descriptors:,} at most")
        return
    yield Finding(
        "open-files",
        Severity.ADVICE,
        f"at most {host.descriptors:,} open files",
        "--tcp and --tls take one for each connection, 10,000 by default. UDP does not need it.",
        ("ulimit -n 65536   # or LimitNOFILE=65536 in the unit",),
    )


def locked_memory(host: Host) -> Iterator[Finding]:
    """Look at the limit of locked memory: rings are not charged to it; programs were."""
    if host.locked is None or version(host.release) >= _CHARGED_UNTIL:
        yield Finding("memlock", Severity.OK, "no limit that matters")
    elif host.locked < _PROGRAM_MEMORY:
        yield Finding(
            "memlock",
            Severity.ADVICE,
            f"{host.locked >> 10:,} KiB of locked memory are allowed",
            "Before Linux 5.11 BPF programs are charged to it, the takeover's among them.",
            ("ulimit -l unlimited   # or LimitMEMLOCK=infinity in the unit",),
        )
    else:
        yield Finding("memlock", Severity.OK, f"{host.locked >> 10:,} KiB")


def buffers(host: Host) -> Iterator[Finding]:
    """Look at how large SO_RCVBUF may be without CAP_NET_ADMIN."""
    short = [
        f"net.core.{name}={wanted}"
        for name, now, wanted in (
            ("rmem_max", host.receive_buffer, RECEIVE_BUFFER),
            ("wmem_max", host.send_buffer, SEND_BUFFER),
        )
        if now is not None and now < wanted
    ]
    if not short:
        yield Finding("buffers", Severity.OK, f"{RECEIVE_BUFFER >> 20} MiB are allowed")
        return
    yield Finding(
        "buffers",
        Severity.ADVICE,
        f"{' and '.join(each.partition('=')[0] for each in short)} are below 4 MiB",
        "The sockets ask for that much, to hold a burst. With CAP_NET_ADMIN, as in the unit, they "
        "get it all the same; without, recvmmsg mode loses more of a burst.",
        tuple(f"sysctl -w {each}" for each in short),
    )


def priority(host: Host) -> Iterator[Finding]:
    """Tell about autogroups: workers see to it themselves."""
    state = "with sessions of their own" if host.autogroup else "autogroups are off"
    yield Finding("priority", Severity.OK, f"workers take nice -10, {state}")


CHECKS = (*(privileges, namespace, user, unit, descriptors, locked_memory, buffers, priority),)
