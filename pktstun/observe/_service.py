"""Asking a running service: who is there, and the page of counters that it lends.

Theory of operation: a status socket (`pktstun.status`) answers everybody who may connect with one
message, which says what is served and how the shared page is laid out, and with a descriptor of
that page for reading. So the counters are read here without anybody's doing, as often as one
likes, even when the supervisor has no time; and they are read by the names that come with them:
neither side has to be of the other's version, and no compiled module is needed.

What comes from the socket is somebody else's: numbers are checked, and what is no printable
character in a text is not printed.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pktstun.errors import NoServiceError, PrivilegeError, StatusError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

PROTOCOL = 1
"""Of the message; what is only added to it does not change this."""

PATIENCE = 1.0
"""Seconds to wait for a service's message."""

STUCK = 2.0
"""Seconds without a pass of its loop after which a worker counts as stuck; the supervisor kills
it before that, if it is there itself."""

ANSWERS = ("success", "error")

STATES = ("running", "stuck", "down")
"""Of a worker, the worst comes last."""

RUN = Path("/run/pktstun")
"""Where services of the host have their sockets: `UID/PID.sock` or, of systemd's, `PID.sock`."""

NAMES = "[0-9]*.sock"
"""Of the files; there are others' sockets beside them."""

_LONGEST_MESSAGE = 1 << 20
_NONSENSE = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)
# Of what a slot holds, not counts: marks of the loop, and what has a place of its own below.
_NO_COUNTER = {
    *("cursor", "frame", "skip", "stop", "heartbeat", "pid", "starts"),
    *("ring_ready", "ring_ready_peak", "connections_open"),
}
_NO_OUTCOME = {"pass", "handover"}


def directories(user: int) -> list[Path]:
    """Return where a user's service may have its socket, the best place first."""
    found = [RUN / str(user)]
    if "RUNTIME_DIRECTORY" in os.environ:  # systemd.exec(5)
        found.insert(0, Path(os.environ["RUNTIME_DIRECTORY"].partition(":")[0]))
    if "XDG_RUNTIME_DIR" in os.environ:
        found.append(Path(os.environ["XDG_RUNTIME_DIR"], "pktstun"))
    return [*found, Path(f"/tmp/pktstun-{user}")]  # noqa: S108 - see `is_own`


def is_own(directory: Path, user: int) -> bool:
    """Whether a directory is one, and nobody but this user or root made it."""
    try:
        status = directory.stat(follow_symlinks=False)
    except OSError:
        return False
    # In a directory that is everybody's, anybody may have been faster.
    return directory.is_dir() and not directory.is_symlink() and status.st_uid in {0, user}


def find_sockets() -> list[Path]:
    """Return the paths of all status sockets that this user may find, of dead services as well."""
    user = os.geteuid()
    places = [RUN, *(RUN.glob("*/") if RUN.is_dir() else ())]
    places += [each for each in directories(user) if is_own(each, user)]
    found = {path for place in places for path in place.glob(NAMES)}
    return sorted(found)


class Task(NamedTuple):
    """What a worker is there for."""

    kind: str
    """`datagrams`, `streams` for TCP and TLS, `exporter` for metrics."""
    cpu: int | None
    """None where it is no worker for datagrams, and has none of its own."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker's counts at one moment; by name, as the service calls them."""

    number: int
    task: Task
    pid: int
    """0 while there is none."""
    starts: int
    age: float
    """Seconds since the last pass of its loop."""
    received: Mapping[str, int]
    """By family."""
    outcomes: Mapping[str, int]
    """What became of what was received, by verdict."""
    outcomes_by_family: Mapping[str, Mapping[str, int]]
    counters: Mapping[str, int]
    send_errors: Mapping[str, int]
    receive_sizes: tuple[int, ...]
    """How many calls of recvmmsg, or blocks of the ring, had 1, 2 to 3, 4 to 7... messages."""
    send_sizes: tuple[int, ...]
    """The same of sendmmsg."""
    ring_ready: int
    """Blocks that wait to be read."""
    ring_peak: int
    """The most that it has been since the ring is there."""
    connections: int
    """That are open."""
    socket_drops: int | None
    """What its sockets had no room for; None where a ring is read."""
    socket_fill: float | None
    """Share of the receive buffer that waited to be read when the service was asked, 0 to 1."""

    @property
    def name(self) -> str:
        """How the service announces it, or what it is there for."""
        kind, cpu = self.task
        return kind if cpu is None else f"{self.number}@cpu{cpu}"

    @property
    def title(self) -> str:
        """What the log calls it."""
        kind, cpu = self.task
        names = {"streams": "stream worker", "exporter": "metrics exporter"}
        return f"worker {self.number}" if cpu is not None else names.get(kind, kind)

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if self.pid == 0:
            return "down"
        return "stuck" if self.age > STUCK else "running"

    @property
    def total_received(self) -> int:
        """Datagrams and messages of every family."""
        return sum(self.received.values())

    @property
    def answered(self) -> int:
        """Replies that were built."""
        return sum(self.outcomes.get(name, 0) for name in ANSWERS)

    @property
    def dropped(self) -> dict[str, int]:
        """What got no answer, by reason, where there is any."""
        return {
            name: count for name, count in self.outcomes.items() if count and name not in ANSWERS
        }


@dataclass(frozen=True, slots=True)
class Info:
    """What a service says of itself."""

    path: Path
    """The socket's."""
    version: str
    pid: int
    started: float
    """Seconds since the epoch; an upgrade is no start."""
    mode: str
    iface: str | None
    takeover: bool
    tasks: tuple[Task, ...]
    """Of the workers, in their order."""
    serving: tuple[str, ...]
    """The transport addresses, or the first of very many."""
    serving_count: int
    tcp: tuple[str, ...]
    tls: tuple[str, ...]
    auth: str | None
    rate_limit: Mapping[str, Any] | None
    ring: Mapping[str, Any] | None
    """The geometry of each worker's; None without."""
    stream_limits: Mapping[str, Any] | None
    sockets: tuple[tuple[int, float], ...]
    """Of each worker that reads sockets: what they had no room for, and the share that waits."""

    @property
    def identity(self) -> tuple[int, float]:
        """What differs between a service and the one that is started in its place."""
        return self.pid, self.started

    @property
    def blocks(self) -> int:
        """Of each worker's ring, 0 without."""
        return int(self.ring["block_count"]) if self.ring else 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts of a service at one moment."""

    info: Info
    at: float
    """Seconds of the monotonic clock."""
    workers: tuple[Worker, ...]

    @property
    def problems(self) -> list[str]:
        """What keeps workers from serving, in words."""
        words = {"down": "{} is down", "stuck": "{} stuck, its loop stood still for {:.1f} s"}
        return [
            words[each.state].format(each.title, each.age)
            for each in self.workers
            if each.state in words
        ]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the numbers of a slot are, in words of 64 bits."""

    slots: int
    stride: int
    fields: Mapping[str, slice]
    families: tuple[str, ...]
    verdicts: Mapping[str, int]
    send_errors: Mapping[str, int]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        stride = _count(said["stride"])
        fields = {}
        for name, place in said["layout"].items():
            offset, size = map(_count, place)
            if size < 8 or offset % 8 or size % 8 or offset + size > stride:
                raise ValueError(f"{name} is at {offset}")
            fields[_text(name)] = slice(offset // 8, (offset + size) // 8)
        return cls(
            _count(said["slots"]),
            stride // 8,
            fields,
            tuple(map(_text, said["families"])),
            _numbered(said["verdicts"]),
            _numbered(said["send_errors"]),
        )


class Service:
    """A running service; a context manager.

    Args:
        path: its status socket.

    Raises:
        NoServiceError: nobody listens there.
        PrivilegeError: this user may not ask.
        StatusError: what answers is no such service, or does not.
    """

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        message, descriptor = _ask(path, patience)
        try:
            said = json.loads(message)
            if said["protocol"] != PROTOCOL:
                raise StatusError(
                    f"{path}: the service is of version {_text(said['version'])}, which answers "
                    "in another way: use its own 'pktstun status'"
                )
            self._layout = _Layout.of(said["page"])
            self.info = _info(path, said)
            if len(self.info.tasks) != self._layout.slots:
                raise ValueError(f"{self._layout.slots} slots")
            size = self._layout.slots * self._layout.stride * 8
            if os.fstat(descriptor).st_size < size:
                raise ValueError(f"a page of {os.fstat(descriptor).st_size} bytes")
            # Mapped, not read: so that every number is a whole one, whoever writes it meanwhile.
            self._map = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
        except (*_NONSENSE, OSError) as error:
            raise StatusError(
                f"{path}: this is no answer of a status socket: {_text(repr(error))}"
            ) from error
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map).cast("Q")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the page back."""
        self._words.release()
        self._map.close()

    def read(self) -> Snapshot:
        """Return the counts at this moment."""
        workers = tuple(self._worker(number, task) for number, task in enumerate(self.info.tasks))
        return Snapshot(self.info, time.monotonic(), workers)

    def _worker(self, number: int, task: Task) -> Worker:
        layout = self._layout
        begin = number * layout.stride
        slot = self._words[begin : begin + layout.stride].tolist()

        def array(name: str) -> list[int]:
            return slot[layout.fields[name]] if name in layout.fields else []

        def single(name: str) -> int:
            return (array(name) or [0])[0]

        sockets = self.info.sockets[number] if number < len(self.info.sockets) else (None, None)
        verdicts, errors = array("verdicts"), array("send_errors")
        room = len(verdicts) // max(1, len(layout.families))
        by_family = {
            family: {
                name: verdicts[at * room + index]
                for name, index in layout.verdicts.items()
                if name not in _NO_OUTCOME and index < room
            }
            for at, family in enumerate(layout.families)
        }
        return Worker(
            number=number,
            task=task,
            pid=single("pid"),
            starts=single("starts"),
            age=max(0.0, time.monotonic() - single("heartbeat") / 1e9),
            received=dict(zip(layout.families, array("received"), strict=False)),
            outcomes={
                name: sum(counts.get(name, 0) for counts in by_family.values())
                for name in layout.verdicts
                if name not in _NO_OUTCOME
            },
            outcomes_by_family=by_family,
            counters={
                name: slot[place.start]
                for name, place in layout.fields.items()
                if place.stop - place.start == 1 and name not in _NO_COUNTER
            },
            send_errors={
                name: errors[index]
                for name, index in layout.send_errors.items()
                if index < len(errors)
            },
            receive_sizes=tuple(array("receive_sizes")),
            send_sizes=tuple(array("send_sizes")),
            ring_ready=single("ring_ready"),
            ring_peak=single("ring_ready_peak"),
            connections=single("connections_open"),
            socket_drops=sockets[0],
            socket_fill=sockets[1],
        )


@dataclass(slots=True)
class Found:
    """The services of this host that have been asked."""

    services: list[Service] = field(default_factory=list)
    problems: list[StatusError | PrivilegeError] = field(default_factory=list)
    """Of those that did not answer as they should; the dead are passed over."""

    def close(self) -> None:
        """Give all pages back."""
        for each in self.services:
            each.close()


def find_services(path: Path | None = None) -> Found:
    """Ask every service that this user may find, or the one of this socket.

    Raises:
        NoServiceError: there is none.
    """
    found = Found()
    for each in [path] if path is not None else find_sockets():
        try:
            found.services.append(Service(each))
        except NoServiceError:
            if path is not None:
                raise
        except (StatusError, PrivilegeError) as error:
            found.problems.append(error)
    if not found.services and not found.problems:
        raise NoServiceError(
            f"no running service is to be found in {', '.join(map(str, _looked_at()))}: start one "
            "with 'pktstun serve', ask as root or as the service's user, or name its "
            "--status-socket with --socket"
        )
    return found


def _looked_at() -> Iterator[Path]:
    yield RUN
    yield from (each for each in directories(os.geteuid()) if RUN not in each.parents)


def _ask(path: Path, patience: float) -> tuple[bytes, int]:
    """Return a socket's message, and the descriptor that came with it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(patience)
        try:
            asking.connect(str(path))
            message, descriptors, _, _ = socket.recv_fds(asking, _LONGEST_MESSAGE, 1)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise NoServiceError(f"no service listens at {path}") from error
        except PermissionError as error:
            raise PrivilegeError(
                f"{path}: only root, the service's user and its group may ask: try 'sudo'"
            ) from error
        except TimeoutError as error:
            raise StatusError(
                f"{path}: no answer within {patience:g} s: the supervisor is stopped or very busy"
            ) from error
        except OSError as error:
            raise StatusError(f"{path}: cannot ask: {error.strerror or error}") from error
    if len(descriptors) != 1:
        for each in descriptors:
            os.close(each)
        raise StatusError(f"{path}: the service closes without an answer: it ends, or is too busy")
    return message, descriptors[0]


def _info(path: Path, said: Mapping[str, Any]) -> Info:
    serving = tuple(map(_text, said["serving"]))
    return Info(
        path=path,
        version=_text(said["version"]),
        pid=_count(said["pid"]),
        started=_time(said["started"]),
        mode=_text(said["mode"]),
        iface=None if said["iface"] is None else _text(said["iface"]),
        takeover=bool(said["takeover"]),
        tasks=tuple(
            Task(_text(each["kind"]), None if each["cpu"] is None else _count(each["cpu"]))
            for each in said["workers"]
        ),
        serving=serving,
        serving_count=_count(said.get("serving_count", len(serving))),
        tcp=tuple(map(_text, said["tcp"])),
        tls=tuple(map(_text, said["tls"])),
        auth=None if said["auth"] is None else _text(said["auth"]),
        rate_limit=_table(said["rate_limit"]),
        ring=_table(said["ring"]),
        stream_limits=_table(said["stream_limits"]),
        sockets=tuple(
            (_count(each["drops"]), _share(each["fill"])) for each in said.get("sockets") or ()
        ),
    )


def _text(value: object) -> str:
    """Return a text whose every character can be printed, and is printed as one."""
    return "".join(each if each.isprintable() else "?" for each in str(value))


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _numbered(value: Mapping[str, Any]) -> dict[str, int]:
    return {_text(name): _count(number) for name, number in value.items()}


def _time(value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < 1e11:
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _share(value: object) -> float:
    if not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{value!r} is no share")
    # A buffer may be filled beyond what it was to hold, by its last datagram.
    return min(1.0, float(value))


def _table(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the numbers and texts of an object."""
    if value is None:
        return None
    return {
        _text(name): each if each is None or isinstance(each, (int, float)) else _text(each)
        for name, each in value.items()
    }
