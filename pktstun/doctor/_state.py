"""What was before the first change, in a file, so that it can be brought back.

Theory of operation: the file is complete on the disk before anything is changed, and says for
each setting what it was and what it shall become. So a setting that was not reached is found as
it was, and one that somebody else has changed since is found to be neither. What is recorded
already keeps its first value, however often changes are made.

It is below /run: what it is about ends with the host's uptime, too, and systemd gives all of a
StateDirectory= to the service's user. The directory may be somebody else's all the same, where
STATE_DIRECTORY names one. So the file must be root's (or that of whoever undoes), is never reached
through a link, and can name nothing but settings (`is_setting`).

{"version": 1, "iface": "eth0", "index": 2, "namespace": 4026531840, "boot": "<boot_id>",
 "records": [{"kind": "rps", "name": "0", "before": [0], "after": [0, 1]}, ...]}
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pktstun.errors import ConfigError

from ._finding import Kind, Value
from ._settings import is_setting

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "VERSION",
    "Origin",
    "Record",
    "State",
    "load",
    "locked",
    "records_directory",
    "remove",
    "save",
    "state_path",
]

VERSION = 1
_LARGEST = 1 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Record:
    """A setting that is, or was about to be, changed."""

    kind: Kind
    name: str
    before: Value
    after: Value


@dataclass(frozen=True, slots=True)
class Origin:
    """Where settings hold: an interface, in a network namespace, until the host is started."""

    iface: str
    index: int
    namespace: int
    boot: str

    @classmethod
    def here(cls, iface: str, index: int) -> Origin:
        """Return the origin of what is changed now; `index` is the interface's, 0 for none."""
        namespace = Path("/proc/thread-self/ns/net").stat().st_ino
        return cls(iface, index, namespace, _BOOT.read_text(encoding="ascii").strip())


@dataclass(frozen=True, slots=True)
class State:
    """All that is recorded of an interface."""

    origin: Origin
    records: tuple[Record, ...] = ()

    def with_record(self, new: Record) -> State:
        """Return the state with a record added; what it was at first stays."""
        for at, old in enumerate(self.records):
            if (old.kind, old.name) == (new.kind, new.name):
                records = list(self.records)
                records[at] = replace(new, before=old.before)
                return replace(self, records=tuple(records))
        return replace(self, records=(*self.records, new))


def records_directory() -> Path:
    """Return where records are: $STATE_DIRECTORY or /run/pktstun-doctor."""
    return Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or "/run/pktstun-doctor")


def state_path(directory: Path, iface: str) -> Path:
    """Return the file of an interface."""
    if "/" in iface or iface in {"", ".", ".."}:
        raise ConfigError(f"--iface: {iface!r} is no name of an interface")
    return directory / f"doctor-{iface}.json"


def load(path: Path) -> State | None:
    """Return what is recorded, or None if nothing is.

    Raises:
        ConfigError: the file cannot be read, is no such file, or is not to be trusted.
    """
    try:
        with _opened(path, os.O_RDONLY) as descriptor:
            status = os.fstat(descriptor)
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_uid not in {0, os.geteuid()}
                or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            ):
                raise ConfigError(
                    f"{path}: others can write to it, so it is not believed: look at what is in "
                    "it, bring that back by hand, and remove it"
                )
            content = os.read(descriptor, _LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: run as root, or mend it") from error
    try:
        return _parse(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: it is no record of this program, or a broken one ({error}): what was before "
            "cannot be told; move it away to go on without"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other doctors from the file and its settings meanwhile; make its directory.

    Raises:
        ConfigError: another is at work, or the directory cannot be had.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(_cannot_save(path, error)) from error
    try:
        # It is gone when the process is, however that ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{path.parent}: another `pktstun doctor` is changing settings: wait for its end"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def save(path: Path, state: State) -> None:
    """Write the file, all or nothing, and wait until it is on the disk; `locked` meanwhile.

    Raises:
        ConfigError: it cannot be written.
    """
    content = json.dumps(_as_json(state), indent=1).encode() + b"\n"
    temporary = f".{path.name}.new"
    try:
        with _directory(path.parent) as directory:
            # Of an attempt that was killed.
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
    except OSError as error:
        raise ConfigError(_cannot_save(path, error)) from error


def _cannot_save(path: Path, error: OSError) -> str:
    return (
        f"{path}: {error.strerror}: nothing is changed without it; name a directory that can be "
        "written to in STATE_DIRECTORY"
    )


def remove(path: Path) -> None:
    """Remove the file, if it is there."""
    path.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    with _directory(path.parent) as directory:
        descriptor = os.open(
            path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _as_json(state: State) -> dict[str, Any]:
    origin = state.origin
    return {
        "version": VERSION,
        "iface": origin.iface,
        "index": origin.index,
        "namespace": origin.namespace,
        "boot": origin.boot,
        "records": [
            {"kind": each.kind, "name": each.name, "before": each.before, "after": each.after}
            for each in state.records
        ],
    }


def _parse(data: Any) -> State:
    """Return what a file says.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it says something else.
    """
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r}, and this program knows {VERSION}")
    origin = Origin(data["iface"], data["index"], data["namespace"], data["boot"])
    if [type(each) for each in (origin.iface, origin.index, origin.namespace, origin.boot)] != [
        *(str, int, int, str)
    ]:
        raise TypeError("its head has values of another type")
    return State(origin, tuple(map(_record, data["records"])))


def _record(data: Any) -> Record:
    kind, name = Kind(data["kind"]), data["name"]
    before, after = (
        tuple(each) if isinstance(each, list) else each for each in (data["before"], data["after"])
    )
    for value in (before, after):
        if not isinstance(name, str) or not is_setting(kind, name, value):
            raise ValueError(f"{name!r} = {value!r} is no setting of kind {kind}")
    return Record(kind, name, before, after)
