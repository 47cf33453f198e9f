"""What becomes of the interface while the service runs: heard from netlink, told to the log.

Theory of operation: netlink says that something has changed, and then the kernel is asked what is
there now; a burst of changes is one look. The interface is known by its index, which a rename
leaves alone. What comes and goes of the link itself needs no hand: the kernel takes a packet
socket's hook away when the interface goes down and puts it back when it comes up. What does is
noticed by its effects: a packet socket whose interface is gone, a plan that has changed.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from pktstun.kernel import link_monitor, local_addresses, receive_queues, worker_cpus
from pktstun.kernel._closing import Closing

if TYPE_CHECKING:
    from collections.abc import Collection

    from pktstun.kernel import Interface

__all__ = ["LinkWatch"]

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
        self._last = iface
        self._cpus = None if cpus is None else set(cpus)
        self._is_gone = False
        self._monitor = link_monitor()

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
                log.warning("interface %s is gone; serving resumes when it comes back", last.name)
            return
        self._is_gone = False
        self._report(last, now)
        self._last = now

    def is_about_another_than(self, iface: Interface) -> bool:
        """Whether the interface watched is not this one."""
        return self._last is not None and self._last.index != iface.index

    def follow(self, iface: Interface) -> None:
        """Watch this interface from now on, in the place of the one that is gone."""
        self._is_gone = False
        self._last = iface
        state = "is back" if iface.is_up else "is back, and down"
        log.info("interface %s %s", iface.name, state)

    def _report(self, last: Interface, now: Interface) -> None:
        if now.name != last.name:
            log.info("interface %s is called %s now", last.name, now.name)
        if now.is_up != last.is_up:
            if now.is_up:
                log.info("interface %s is up", now.name)
            else:
                log.warning("interface %s is down; serving resumes when it comes up", now.name)
        if now.mtu != last.mtu:
            log.info("interface %s has an MTU of %d bytes now", now.name, now.mtu)
        gone = {each.ip for each in last.addresses} - {each.ip for each in now.addresses}
        come = {each.ip for each in now.addresses} - {each.ip for each in last.addresses}
        for what, ips in (("lost", gone), ("got", come)):
            if ips:
                names = ", ".join(sorted(map(str, ips)))
                log.info("interface %s has %s %s", now.name, what, names)
        self._report_queues(now)

    def _report_queues(self, now: Interface) -> None:
        if self._cpus is None or not now.is_up:
            return
        cpus = worker_cpus(receive_queues(now), os.sched_getaffinity(0))
        if set(cpus) != self._cpus:
            self._cpus = set(cpus)
            log.warning(
                "the receive queues of %s are served on other CPUs now (%s): restart the service "
                "to have its workers there",
                now.name,
                ",".join(map(str, cpus)),
            )
