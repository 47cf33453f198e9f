"""The nice value of a process, so that it means what it says (sched(7)).

Theory of operation: where the kernel has autogroups (CONFIG_SCHED_AUTOGROUP, on by default in
most distributions), a nice value counts among the processes of one session only. Against all
else, the kernel's own threads included, the session counts as one, with a nice value of its own,
which is 0 until somebody writes to /proc/PID/autogroup. So a process that is to be preferred to
the threads that receive for its CPU needs a session of its own, and the value written there as
well. Without CAP_SYS_ADMIN the kernel takes one such write in 100 ms from all processes together.

A process in a cgroup of the cpu controller has no autogroup; there, the group's weight
(cpu.weight, systemd's CPUWeight=) counts in the same way, and that is the administrator's.
"""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress

from ._closing import Closing

_PAUSE = 0.01
"""Seconds between two attempts."""


class Priority(Closing):
    """The nice value of the calling process and of its session, which it has alone then.

    A process that leads its session or a process group keeps that, and shares it as before.

    Args:
        value: -20 to 19; the smaller, the more CPU time it is given. The process has it at once.

    Raises:
        PermissionError: it is less than the present one, RLIMIT_NICE does not allow it, and
            CAP_SYS_NICE is missing.
    """

    def __init__(self, value: int) -> None:
        self._value = value
        self._file = -1
        os.setpriority(os.PRIO_PROCESS, 0, value)
        with suppress(PermissionError):  # it leads already
            os.setsid()
        # Missing where there are no autogroups; not the process's own after a change of user.
        with suppress(OSError):
            self._file = os.open("/proc/self/autogroup", os.O_WRONLY | os.O_CLOEXEC)

    @property
    def is_within_limit(self) -> bool:
        """Whether RLIMIT_NICE allows it, so that it takes no capability."""
        return resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - self._value

    def settle(self, patience: float = 0.0) -> bool:
        """Have the value count for the session; return whether there is nothing left to do.

        Args:
            patience: seconds for which to try again where somebody else wrote just now.
        """
        if self._file == -1:
            return True
        deadline = time.monotonic() + patience
        while not self._write():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)
        self.close()
        return True

    def _write(self) -> bool:
        try:
            os.write(self._file, f"{self._value}\n".encode())
        except BlockingIOError:
            return False  # somebody wrote within 100 ms
        except OSError:
            pass  # then it stays as it is
        return True

    def close(self) -> None:
        """Leave the session as it is."""
        if self._file != -1:
            os.close(self._file)
            self._file = -1
