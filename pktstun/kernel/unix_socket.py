"""Unix sockets that listen at a path.

Theory of operation: the file of such a socket outlives the process that made it, when that was
killed; nobody listens behind it then, which shows when one connects, and it can be replaced. Two
that find the same dead file may not replace each other's, so a directory's lock is held meanwhile.
Whose file it is later on, the number of its inode says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["file_identity", "listen_at", "remove_dead"]

_UMASK = 0o117
"""Leaves 0660: whoever may write to the file may connect (unix(7))."""

_LOCK_LIMIT = 0.5
"""Seconds for which somebody else may hold a directory's lock."""


def listen_at(path: Path, kind: socket.SocketKind, backlog: int) -> socket.socket:
    """Return a non-blocking socket that listens at a path, which its owner and group may use.

    Args:
        path: of the file, which is made; a dead one is replaced.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        backlog: connections that may wait.

    Raises:
        OSError: that cannot be had; EADDRINUSE if there is a file that is no dead socket.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        listener.settimeout(0)
        with _alone_in(path.parent), _umask(_UMASK):
            try:
                listener.bind(str(path))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_dead(path, kind):
                    raise
                path.unlink()
                listener.bind(str(path))
            # Before others may look: nobody listens at what is dead.
            listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def remove_dead(directory: Path, names: str, kind: socket.SocketKind) -> None:
    """Remove what processes that were killed have left in a directory.

    Args:
        directory: where to look.
        names: a pattern of the files' names.
        kind: of the sockets.

    Raises:
        OSError: that is not allowed.
    """
    with _alone_in(directory):
        for path in directory.glob(names):
            if _is_dead(path, kind):
                path.unlink()


def file_identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from one that takes its name; OSError if there is none."""
    status = path.stat(follow_symlinks=False)
    return status.st_dev, status.st_ino


def _is_dead(path: Path, kind: socket.SocketKind) -> bool:
    """Whether this is a socket's file and nobody listens there any more."""
    with socket.socket(socket.AF_UNIX, kind) as asking:
        asking.settimeout(0)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            return path.is_socket()
        except OSError:
            pass
    return False


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep others that do the same out of a directory, for as long as that takes them."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + _LOCK_LIMIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Anybody who may read the directory can hold the lock for ever.
                if time.monotonic() > end:
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
