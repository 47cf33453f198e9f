"""Which replies may leave as frames: asked of the kernel, told to the workers.

Theory of operation: direct mode passes the routing table by, so the supervisor asks the kernel
where it would send replies (`kernel/route.py`), writes the answer to the shared page, and does it
again whenever something changes. Everything that is not in the table goes through the UDP
sockets. So does every reply while the routing cannot be told; at the start that is a refusal,
later, when others have come to rely on the service, a log line.

The log says what has changed since it last said so, a few times at once and then every
`REPORT_EVERY` seconds: a route that flaps, or a neighbour that lies, must not fill a disk.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pktstun.errors import ConfigError
from pktstun.kernel import UnclearRoutingError, return_paths, route_monitor
from pktstun.kernel._closing import Closing
from pktstun.pace import Pace

if TYPE_CHECKING:
    from pktstun.kernel import Interface, ReturnPath
    from pktstun.stats import SharedRoutes

__all__ = ["ReturnPathWatch"]

REPORT_EVERY = 10.0
REPORT_BURST = 5
"""Seconds between two reports in the long run, and how many may come at once."""

log = logging.getLogger("pktstun")


class ReturnPathWatch(Closing):
    """Keeps the shared return paths of an interface true.

    Args:
        iface: the interface that replies leave by.
        routes: where the workers read.
        is_new: the service begins, and may still be refused.

    Raises:
        ConfigError: the routing cannot be told, or leads no reply back; if `is_new`.
        OSError: the kernel refuses to tell.
    """

    def __init__(self, iface: Interface, routes: SharedRoutes, *, is_new: bool = True) -> None:
        self._iface = iface
        self._routes = routes
        self._paths: tuple[ReturnPath, ...] = ()
        self._problem = ""
        self._reported: tuple[tuple[ReturnPath, ...], str] = ((), "")
        self._reports = Pace(REPORT_EVERY, REPORT_BURST)
        # Before the first look, so that no change is missed.
        self._monitor = route_monitor()
        try:
            if is_new:
                self._publish(self._first_look())
            else:
                self.update()
        except BaseException:
            self._monitor.close()
            raise
        self.report()

    def close(self) -> None:
        """Hear of no more changes."""
        self._monitor.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has changed."""
        return self._monitor.fileno()

    def changed(self) -> bool:
        """Return whether anything has changed since the last call."""
        return self._monitor.changed()

    def update(self) -> None:
        """Look again."""
        try:
            paths, self._problem = return_paths(self._iface), ""
        except OSError as error:
            paths, self._problem = (), str(error)
        if paths != self._paths:
            self._publish(paths)
        self.report()

    def follow(self, iface: Interface) -> None:
        """Look at this interface from now on: the one before is gone."""
        self._iface = iface
        self.update()

    def report(self) -> None:
        """Log what has changed, unless there was too much of that lately."""
        paths, problem = self._reported
        if (self._paths, self._problem) == self._reported:
            return
        if not self._reports.take():
            return
        if self._problem and self._problem != problem:
            log.warning("direct: replies go through the UDP sockets: %s", self._problem)
        ways = [path.network for path in self._paths if path.direct]
        if ways != [path.network for path in paths if path.direct]:
            networks = ", ".join(map(str, ways)) or "nobody"
            log.info("direct: replies leave as frames to %s", networks)
        for path in self._paths:
            if not path.direct and path not in paths:
                log.warning(
                    "direct: replies to %s go through the UDP sockets: %s",
                    path.network,
                    path.reason,
                )
        self._reported = (self._paths, self._problem)

    def _first_look(self) -> tuple[ReturnPath, ...]:
        try:
            paths = return_paths(self._iface)
        except UnclearRoutingError as error:
            raise ConfigError(f"direct mode cannot tell where replies belong: {error}") from error
        if self._iface.is_up and not any(path.direct for path in paths):
            reasons = "; ".join(f"{path.network} {path.reason}" for path in paths)
            raise ConfigError(
                f"no reply would leave by {self._iface.name} ({reasons or 'there is no route'}), "
                "so that none can be sent directly: correct the routes ('ip route'), or use "
                "--mode ring"
            )
        return paths

    def _publish(self, paths: tuple[ReturnPath, ...]) -> None:
        self._paths = paths
        self._routes.publish(paths)
