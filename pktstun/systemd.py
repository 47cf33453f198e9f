"""What the service manager is told: sd_notify(3), without libsystemd.

Theory of operation: systemd names a datagram socket in NOTIFY_SOCKET, and lines of `NAME=value`
sent there say that the service is ready, reads its configuration again, stops, and lives. The
variables are taken out of the environment, so that no other program that the service starts can
speak in its name; only the next version, which goes on as the same process, has them back. A
message that cannot be sent is lost: nothing that the service manager does may end the service.

The watchdog (sd_watchdog_enabled(3)) is fed by whoever looks at the workers' heartbeats, after a
look: what feeds it without looking would hide what it is there for.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

__all__ = ["Notifier"]

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_PATIENCE = 0.2
"""Seconds that a message may wait for room in the service manager's socket."""
_FEEDS = 3
"""How often the watchdog is fed in its time: twice is what the manual asks for."""


class Notifier:
    """Tells the service manager, if there is one that wants to know.

    Args:
        environment: says where and how; the variables are taken out of it.
        clock: seconds of a clock that does not go backwards.
    """

    def __init__(
        self,
        environment: MutableMapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.environment = {
            name: environment.pop(name) for name in _VARIABLES if name in environment
        }
        """What the next version of this program needs in its environment to go on."""
        self._clock = clock
        self._address = _address(self.environment.get("NOTIFY_SOCKET", ""))
        self._every = _watchdog(self.environment) / _FEEDS
        self._fed_at: float | None = None
        self._status = ""

    @property
    def is_heard(self) -> bool:
        """Whether there is a service manager that wants to know."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Say that the service serves, for the first time or again."""
        self._status = ""
        self.status(status, "READY=1")

    def reloading(self) -> None:
        """Say that the configuration is read again, until `ready`."""
        # Its time tells this from earlier ones (Type=notify-reload, systemd 253).
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.status("reading the configuration again", "RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Say that the service ends."""
        self.status("stopping", "STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Ask for so many seconds from now on for what is going on, a start or an end."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def status(self, text: str, *more: str) -> None:
        """Say in words how the service is, if it is not what was said last."""
        line = " ".join(text.split())
        if more or line != self._status:
            self._send(*more, f"STATUS={line}")
        self._status = line

    def feed_watchdog(self, *, at_once: bool = False) -> None:
        """Say that the service is alive, if there is a watchdog and it is time, or `at_once`."""
        if not self._every:
            return
        now = self._clock()
        if at_once or self._fed_at is None or now - self._fed_at >= self._every:
            self._fed_at = now
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.settimeout(_PATIENCE)
            sock.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)


def _address(text: str) -> str | bytes | None:
    """Return the address of a unix socket; None for none, and for what is none."""
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    return text if text.startswith("/") else None


def _watchdog(environment: MutableMapping[str, str]) -> float:
    """Return the seconds after which the watchdog of this process bites; 0 if it has none."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    with suppress(ValueError):
        return max(0, int(environment.get("WATCHDOG_USEC", ""))) / 1e6
    return 0.0
