"""The machine: its kernel, CPUs, clock, and how much of it is really ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._finding import Finding, Severity
from ._parse import cpus_named, version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._host import Host

__all__ = ["CHECKS"]

_OLDEST = (5, 3)
# Those that the vDSO reads without a system call, and so the kernel without a device.
_FAST_CLOCKS = frozenset(
    {
        *("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"),
        *("timebase", "riscv_clocksource", "tod", "stick", "tick"),
    }
)
_NOTABLE_STEAL = 0.02
_SLOW_IDLE = 100  # microseconds


def kernel(host: Host) -> Iterator[Finding]:
    """Tell whether the kernel is too old."""
    if version(host.release) < _OLDEST:
        yield Finding(
            "kernel",
            Severity.PROBLEM,
            f"Linux {host.release}",
            "Rings of pktstun take Linux 5.3, the takeover 6.6.",
        )
    else:
        yield Finding("kernel", Severity.OK, f"Linux {host.release}")


def cpus(host: Host) -> Iterator[Finding]:
    """Look for CPUs that a cpuset or an affinity keeps from the service."""
    kept = host.online - host.usable
    if kept:
        yield Finding(
            "cpus",
            Severity.ADVICE,
            f"{cpus_named(kept)} may not be used, of {cpus_named(host.online)}",
            "A cpuset or an affinity says so (of the shell or the service that this runs in). "
            "Packets that arrive there cross to another CPU's worker.",
            ("taskset -pc $$; grep Cpus_allowed_list /proc/self/status",),
        )
    else:
        yield Finding("cpus", Severity.OK, f"{cpus_named(host.online)}, all usable")


def clock(host: Host) -> Iterator[Finding]:
    """Look at the clock source: every frame of a ring has a time."""
    if not host.clock:
        return
    if host.clock in _FAST_CLOCKS:
        yield Finding("clock", Severity.OK, host.clock)
        return
    better = next((each for each in host.clocks if each in _FAST_CLOCKS), None)
    file = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    yield Finding(
        "clock",
        Severity.ADVICE,
        f"the clock source is {host.clock}",
        "The kernel reads the clock for every frame of a ring, which takes about a microsecond "
        "with this one; a reply takes 1.4 to 3.2 in all."
        + ("" if better else " No better one is there: look for `tsc` in the kernel's log."),
        (f"echo {better} > {file}" if better else "dmesg | grep -iE 'tsc|clocksource'",),
    )


def power(host: Host) -> Iterator[Finding]:
    """Look at governors and idle states."""
    slow = sorted(host.governors - {"performance"})
    if slow:
        yield Finding(
            "governor",
            Severity.ADVICE,
            f"the CPUs' frequency is chosen by {', '.join(slow)}",
            "A CPU that has slowed down answers the first requests of a burst late.",
            ("cpupower frequency-set -g performance",),
        )
    else:
        yield Finding("governor", Severity.OK, "performance" if host.governors else "none")
    if host.slow_idle > _SLOW_IDLE:
        yield Finding(
            "idle-states",
            Severity.ADVICE,
            f"an idle CPU may take {host.slow_idle} microseconds to wake up",
            "At low rates each request waits for that. It costs power to forbid it.",
            (f"cpupower idle-set -D {_SLOW_IDLE}",),
        )
    else:
        yield Finding("idle-states", Severity.OK, "none that is slow to leave")


def steal(host: Host) -> Iterator[Finding]:
    """Tell what the hypervisor takes."""
    ticks = host.after.ticks - host.before.ticks
    if host.seconds and ticks > 0:
        share, when = (host.after.stolen - host.before.stolen) / ticks, f"in {host.seconds:g} s"
    else:
        share, when = host.after.stolen / max(host.after.ticks, 1), "since the host started"
    if share <= _NOTABLE_STEAL:
        yield Finding("steal", Severity.OK, f"{share:.1%} of the CPU time {when}")
        return
    yield Finding(
        "steal",
        Severity.ADVICE,
        f"the hypervisor gave {share:.1%} of the CPU time to others {when}",
        "Meanwhile nothing is received or answered, and queues fill up. Nothing on this machine "
        "changes it: dedicated CPUs do.",
        ("vmstat 1 5   # the column st",),
    )


def swap(host: Host) -> Iterator[Finding]:
    """Tell whether a worker is swapped out."""
    if host.swapped:
        yield Finding(
            "swap",
            Severity.ADVICE,
            f"{host.swapped:,} KiB of the service are swapped out",
            "A request that needs them waits for the disk.",
            ("systemctl set-property pktstun.service MemorySwapMax=0",),
        )
    else:
        yield Finding("swap", Severity.OK, "on, none of ours in it" if host.swap else "off")


CHECKS = (kernel, cpus, clock, power, steal, swap)
