"""The status socket: whoever may ask gets what is served, and the counters for reading.

Theory of operation: the supervisor listens on a Unix socket of its own (unix(7), SOCK_SEQPACKET).
Who connects is sent one message, a JSON object, and with it a descriptor of the shared page
(SCM_RIGHTS); then the connection is closed. So nobody can hold it open, nobody's reading costs
the supervisor anything, and it answers so many times a second and no more. `pktstun.observe` is
the other side.

The descriptor is for reading only: it was opened so, and a mapping of it can never become
writable. Opening the file again by way of /proc takes permission on the file, which nobody has
but its owner, the service's user, and root. These two could end the service as well.

Who may ask is a matter of the socket's file: the service's user and its group (mode 0660), and
root. Where it is, unless told: in a directory of the service's user, named by the process id,
since services in other network namespaces share the file system. A service that was killed leaves
its file behind: the next one removes it, there or at the path that it wants itself. A lock on the
directory keeps two from doing so at once. An upgrade hands the socket on.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import socket
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pktstun
from pktstun.errors import ConfigError
from pktstun.kernel._closing import Closing
from pktstun.kernel.unix_socket import file_identity, listen_at, remove_dead
from pktstun.observe import NAMES, PROTOCOL, RUN, directories, is_own
from pktstun.pace import Pace
from pktstun.stats import FAMILIES, LAYOUT, SEND_ERRORS, VERDICTS

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Mapping

    from pktstun.config import Plan
    from pktstun.resources import Resources
    from pktstun.stats import SharedPage

__all__ = ["StatusSocket", "describe", "directory_for"]

log = logging.getLogger("pktstun")

_EVERY, _BURST = 0.05, 20
"""Seconds from one answer to the next in the long run, and how many may come at once."""

_FEW_PAUSE = 1.0
"""Seconds without an answer when there are no descriptors for one."""

_KIND = socket.SOCK_SEQPACKET
_BACKLOG = 16
_MOST_ADDRESSES = 256
"""That are named: a message has to fit into a socket's buffer."""


def directory_for(user: pwd.struct_passwd | None) -> Path | None:
    """Return the directory that root has to give to the user that it becomes; None for nobody."""
    if user is None:
        return None
    directory = directories(user.pw_uid)[0]
    with suppress(OSError):
        _make_parent(directory)
    return directory


def describe(resources: Resources) -> dict[str, object]:
    """Return what a service says of itself; `pktstun.observe` is the one who reads it."""
    plan = resources.plan
    serving = sorted(map(str, plan.options.endpoints))
    page = resources.page
    streams = plan.streams
    return {
        "protocol": PROTOCOL,
        "version": pktstun.__version__,
        "pid": os.getpid(),
        "started": resources.started,
        "mode": plan.mode,
        "iface": plan.iface.name if plan.iface else None,
        "takeover": resources.takeover is not None,
        "workers": [_worker(plan, number) for number in range(plan.workers)],
        "serving": serving[:_MOST_ADDRESSES],
        "serving_count": len(serving),
        "tcp": [str(each) for each in resources.stream_listens(tls=False)],
        "tls": [str(each) for each in resources.stream_listens(tls=True)],
        "auth": plan.config.credentials.mechanism if plan.config.credentials else None,
        "rate_limit": plan.rate_limit
        and {
            "rate": plan.rate_limit.rate,
            "network_rate": plan.rate_limit.network_rate,
            "share": plan.rate_limit.share,
        },
        "stream_limits": dataclasses.asdict(streams.limits) if streams else None,
        "ring": dataclasses.asdict(resources.geometry) if plan.mode.reads_ring else None,
        "sockets": None if plan.mode.reads_ring else _sockets(resources),
        "page": {
            "slots": len(page.slots),
            "stride": page.stride,
            "layout": LAYOUT,
            "families": FAMILIES,
            "verdicts": dict(sorted(VERDICTS.items(), key=itemgetter(1))),
            "send_errors": dict(sorted(SEND_ERRORS.items(), key=itemgetter(1))),
        },
    }


def _worker(plan: Plan, number: int) -> dict[str, object]:
    kinds = {plan.stream_worker: "streams", plan.exporter: "exporter"}
    if number in kinds:
        return {"kind": kinds[number], "cpu": None}
    return {"kind": "datagrams", "cpu": plan.cpus[number]}


def _sockets(resources: Resources) -> list[dict[str, float]]:
    """Return what becomes of datagrams before the workers of recvmmsg mode can read them."""
    found = []
    for index in range(len(resources.plan.cpus)):
        memory = [sock.memory() for sock in resources.sockets(index)]
        found.append(
            {
                "drops": sum(each.drops for each in memory),
                "fill": max((each.waiting / max(1, each.room) for each in memory), default=0.0),
            }
        )
    return found


class StatusSocket(Closing):
    """A listening socket, its file, and what it gives away. See `open` and `adopt`.

    Args:
        listener: the socket.
        path: its file.
        page: of which everybody gets a descriptor.

    Raises:
        OSError: there is no such descriptor to be had.
    """

    def __init__(self, listener: socket.socket, path: Path, page: SharedPage) -> None:
        self.path = path
        self._listener = listener
        self._pace = Pace(_EVERY, _BURST)
        self._identity = file_identity(path)
        # Nobody but the owner may open it again, for writing or at all.
        os.fchmod(page.fileno(), 0o400)
        self._page = os.open(f"/proc/self/fd/{page.fileno()}", os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    def open(cls, wanted: str | None, page: SharedPage) -> Self | None:
        """Listen at a path, or where there is a place; None, and a line in the log, if nowhere is.

        Args:
            wanted: the path; None for the best place that there is.
            page: the shared page.

        Raises:
            ConfigError: the path that is wanted cannot be had.
        """
        if wanted is not None:
            try:
                return cls._at(Path(wanted), page)
            except OSError as error:
                raise ConfigError(f"--status-socket {wanted}: {_explain(error)}") from error
        problems = []
        for directory in directories(os.geteuid()):
            try:
                _make(directory)
                remove_dead(directory, NAMES, _KIND)
                return cls._at(directory / f"{os.getpid()}.sock", page)
            except OSError as error:
                problems.append(f"{directory}: {_explain(error)}")
        log.warning(
            "there is no place for a status socket, so 'pktstun status' and 'pktstun top' will "
            "not find this service: name one with --status-socket, or say --no-status (%s)",
            "; ".join(problems),
        )
        return None

    @classmethod
    def _at(cls, path: Path, page: SharedPage) -> Self:
        listener = listen_at(path, _KIND, _BACKLOG)
        try:
            return cls(listener, path, page)
        except BaseException:
            listener.close()
            path.unlink()
            raise

    @classmethod
    def adopt(cls, handed: Mapping[str, Any], page: SharedPage) -> Self:
        """Go on with the socket of the version before; `handed` is what its `hand_over` said."""
        listener = socket.socket(fileno=handed["listener"])
        listener.settimeout(0)
        return cls(listener, Path(handed["path"]), page)

    def hand_over(self) -> dict[str, object]:
        """Return what the next version needs to go on with it, as JSON knows it."""
        return {"listener": self._listener.fileno(), "path": str(self.path)}

    def fileno(self) -> int:
        """Return the descriptor on which those who ask show up."""
        return self._listener.fileno()

    @property
    def can_be_found(self) -> bool:
        """Whether its file is still there."""
        with suppress(OSError):
            return self._identity == file_identity(self.path)
        return False

    def answer(self, description: Callable[[], Mapping[str, object]]) -> float:
        """Answer those who have asked, without waiting for anybody.

        Args:
            description: called for each.

        Returns:
            Seconds for which the others have to wait; 0 if there are none.
        """
        while True:
            pause = self._pace.wait()
            if pause > 0:
                return pause
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return 0.0
            except OSError:
                return _FEW_PAUSE
            self._pace.take()
            with connection:
                connection.settimeout(0)
                message = json.dumps(description()).encode()
                # Whoever has gone, or has no room, has had a chance.
                with suppress(OSError):
                    socket.send_fds(connection, [message], [self._page])

    def close(self) -> None:
        """Stop listening, and remove the file unless it is another's by now."""
        if self._page == -1:
            return
        self._listener.close()
        os.close(self._page)
        self._page = -1
        if self.can_be_found:
            with suppress(OSError):
                self.path.unlink()


def _make(directory: Path) -> None:
    """Make a directory where there is none; PermissionError if it may be another's."""
    user = os.geteuid()
    _make_parent(directory)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o750)
    if not is_own(directory, user):
        raise PermissionError(errno.EPERM, "it is another user's")


def _make_parent(directory: Path) -> None:
    if directory.parent == RUN:
        with suppress(FileExistsError):
            RUN.mkdir()
            RUN.chmod(0o755)  # whatever the umask says: other users' are in there as well


def _explain(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "there is something already that is no dead service's socket"
    return error.strerror or str(error)
