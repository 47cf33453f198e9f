"""The nice value of a process, so that it means what it says (sched(7)).

Theory of operation: where the kernel has autogroups (CONFIG_SCHED_AUTOGROUP, on by default in
most distributions), a nice value counts among the processes of one session only. Against all
else, the kernel's own threads included, the session counts as one, with a nice value of its own,
which is 0 until somebody writes to /proc/PID/autogroup. So a process that is to be preferred to
the threads that receive for its CPU needs a session of its own, and the value written there as
well. A process in a cgroup of the cpu controller has no autogroup; there, the group's weight
(cpu.weight, systemd's CPUWeight=) counts in the same way, and that is the administrator's.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")


def set_nice(value: int) -> None:
    """Set the nice value of the calling process and of its session, which it has alone then.

    A process that leads its session or a process group keeps that, and shares it as before.

    Args:
        value: -20 to 19; the smaller, the more CPU time it is given.

    Raises:
        PermissionError: it is less than the present one, and CAP_SYS_NICE is missing.
    """
    os.setpriority(os.PRIO_PROCESS, 0, value)
    with suppress(PermissionError):  # it leads already
        os.setsid()
    # Missing where there are no autogroups; EPERM where only a limit (RLIMIT_NICE) allowed the
    # value; EAGAIN for all but the administrator, if somebody wrote there within 100 ms.
    with suppress(OSError):
        _AUTOGROUP.write_text(f"{value}\n")
