"""What becomes of the interface while the service runs: heard from netlink, told to the log.

Theory of operation: netlink says that something has changed, and then the kernel is asked what is
there now; a burst of changes is one look. The interface is known by its index, which a rename
leaves alone. What comes and goes of the link itself needs no hand: the kernel takes a packet
socket's hook away when the interface goes down and puts it back when it comes up. What does is
noticed by its effects: a packet socket whose interface is gone, a plan that has changed.

The log says what has changed since it last said so, a few times at once and then every
`REPORT_EVERY` seconds: a link that flaps, or addresses that come and go, must not fill a disk.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from pktstun.kernel import link_monitor, local_addresses, receive_queues, worker_cpus
from pktstun.kernel._closing import Closing
from pktstun.log import BURST
from pktstun.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pktstun.kernel import Interface

__all__ = ["LinkWatch"]

REPORT_EVERY = 10.0
REPORT_BURST = 5
"""Seconds between two reports in the long run, and how many may come at once."""

log = logging.getLogger("pktstun")


class LinkWatch(Closing):
    """Hears of changes to interfaces and their addresses, and logs those of one.

    Args:
        iface: that one; None for none.
        cpus: on which its receive queues were served when they were looked at; None if somebody
            has chosen others.

    Raises:
        OSError: the kernel refuses to tell.
    """

    def __init__(self, iface: Interface | None, cpus: Collection[int] | None) -> None:
        self._last = self._reported = iface
        self._cpus = self._reported_cpus = sorted(cpus or ())
        self._has_chosen_cpus = cpus is None
        self._reports = Pace(REPORT_EVERY, REPORT_BURST)
        self._is_gone = False
        self._monitor = link_monitor()

    @property
    def is_down(self) -> bool:
        """Whether there is an interface to watch, and it is down or gone."""
        return self._last is not None and (self._is_gone or not self._last.is_up)

    def close(self) -> None:
        """Hear of no more changes."""
        self._monitor.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has changed."""
        return self._monitor.fileno()

    def changed(self) -> bool:
        """Return whether anything has changed since the last call."""
        return self._monitor.changed()

    def look(self) -> None:
        """Log what has changed of the interface since the last look."""
        last = self._last
        if last is None:
            return
        now = next((each for each in local_addresses() if each.index == last.index), None)
        if now is None:
            if not self._is_gone:
                self._is_gone = True
                log.warning(
                    "interface %s is gone; serving resumes when it comes back",
                    last.name,
                    extra={"cause": "interface gone", "burst": BURST},
                )
            return
        self._is_gone = False
        self._last = now
        if now.is_up and not self._has_chosen_cpus:
            self._cpus = sorted(worker_cpus(receive_queues(now), os.sched_getaffinity(0)))
        self.report()

    def report(self) -> None:
        """Log how the interface has changed, unless there was too much of that lately."""
        before, now = self._reported, self._last
        if before is None or now is None:
            return
        lines = list(self._changes(before, now))
        if lines and not self._reports.take():
            return
        for level, line in lines:
            log.log(level, line)
        self._reported, self._reported_cpus = now, self._cpus

    def is_about_another_than(self, iface: Interface) -> bool:
        """Whether the interface watched is not this one."""
        return self._last is not None and self._last.index != iface.index

    def follow(self, iface: Interface) -> None:
        """Watch this interface from now on, in the place of the one that is gone."""
        self._is_gone = False
        self._last = self._reported = iface
        state = "is back" if iface.is_up else "is back, and down"
        log.info(
            "interface %s %s", iface.name, state, extra={"cause": "interface back", "burst": BURST}
        )

    def _changes(self, before: Interface, now: Interface) -> Iterator[tuple[int, str]]:
        if now.name != before.name:
            yield logging.INFO, f"interface {before.name} is called {now.name} now"
        if now.is_up and not before.is_up:
            yield logging.INFO, f"interface {now.name} is up"
        if before.is_up and not now.is_up:
            yield logging.WARNING, f"interface {now.name} is down; serving resumes when it comes up"
        if now.mtu != before.mtu:
            yield logging.INFO, f"interface {now.name} has an MTU of {now.mtu} bytes now"
        gone = {each.ip for each in before.addresses} - {each.ip for each in now.addresses}
        come = {each.ip for each in now.addresses} - {each.ip for each in before.addresses}
        for what, ips in (("lost", gone), ("got", come)):
            if ips:
                names = ", ".join(sorted(map(str, ips)))
                yield logging.INFO, f"interface {now.name} has {what} {names}"
        if self._cpus != self._reported_cpus:
            cpus = ",".join(map(str, self._cpus))
            line = (
                f"the receive queues of {now.name} are served on other CPUs now ({cpus}): restart "
                "the service to have its workers there"
            )
            yield logging.WARNING, line
