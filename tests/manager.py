"""A stand-in for the service manager: the socket that sd_notify(3) writes to."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class Notice:
    """A datagram: who sent it, and what is in it."""

    pid: int
    values: dict[str, str]


@dataclass
class Manager:
    """Listens on a path, or on a socket that is bound already, until the end of a `with`."""

    address: str
    sock: socket.socket
    notices: list[Notice] = field(default_factory=list)

    @classmethod
    def at(cls, path: Path) -> Self:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(path))
        path.chmod(0o777)
        return cls(str(path), sock)

    def __enter__(self) -> Self:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def receive(self, timeout: float) -> Notice | None:
        """Return the next notice, None if there is none in time."""
        self.sock.settimeout(timeout)
        try:
            data, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
        except (TimeoutError, BlockingIOError):
            return None
        pid = _CREDENTIALS.unpack(ancillary[0][2])[0]
        lines = data.decode().split("\n")
        notice = Notice(pid, dict(line.split("=", 1) for line in lines))
        self.notices.append(notice)
        return notice

    def wait(self, condition: Callable[[dict[str, str]], bool], what: str) -> Notice:
        """Return the next notice of which this is true."""
        end = time.monotonic() + 15
        while (left := end - time.monotonic()) > 0:
            notice = self.receive(left)
            if notice is not None and condition(notice.values):
                return notice
        raise AssertionError(f"no {what}: {self.notices}")

    def wait_for(self, name: str, value: str = "1") -> Notice:
        """Return the next notice that says so."""
        return self.wait(lambda values: values.get(name) == value, f"{name}={value}")

    def read_all(self) -> list[Notice]:
        """Return what has come and not been read."""
        before = len(self.notices)
        while self.receive(0) is not None:
            pass
        return self.notices[before:]
