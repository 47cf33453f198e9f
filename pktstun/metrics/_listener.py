"""Where the exporter listens: a unix socket, or a loopback address.

Theory of operation: the socket is the supervisor's, so that an address that cannot be had is an
error at the start, and an exporter that was restarted goes on with what waits. A unix socket is a
file that outlives a process that is killed; nobody listens behind it then, and it is replaced.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from pktstun.errors import ConfigError, EngineError, PktstunError, PrivilegeError, StunError
from pktstun.kernel import ListeningSocket
from pktstun.kernel._closing import Closing
from pktstun.kernel.unix_socket import file_identity, listen_at
from pktstun.stun import TransportAddress

__all__ = ["PORT", "MetricsAddress", "MetricsListener"]

PORT = 9478

_UNIX = "unix:"
_LONGEST_PATH = 107  # unix(7): sun_path, and its end
_BACKLOG = 512
_EXAMPLES = f"write unix:/run/pktstun/metrics.sock, 127.0.0.1:{PORT} or [::1]:{PORT}"


class MetricsAddress(NamedTuple):
    """One of the two."""

    path: str | None
    """Of a unix socket."""
    address: TransportAddress | None
    """On the loopback interface."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `unix:/PATH`, `127.0.0.1:PORT` or `[::1]:PORT`; the port may be left out.

        Raises:
            ConfigError: it is none of these, or others than this host could reach it.
        """
        if text.startswith(_UNIX):
            path = text.removeprefix(_UNIX)
            if not path.startswith("/") or path.endswith("/") or "\0" in path:
                raise ConfigError(f"--metrics {text}: a unix socket takes the full path of a file")
            if len(os.fsencode(path)) > _LONGEST_PATH:
                raise ConfigError(
                    f"--metrics {text}: the path of a unix socket has at most {_LONGEST_PATH} bytes"
                )
            return cls(path, None)
        try:
            address = TransportAddress.parse(text, PORT)
        except StunError as error:
            raise ConfigError(f"--metrics {text}: {_EXAMPLES}") from error
        if address.unmapped() != address or not address.port:
            raise ConfigError(f"--metrics {text}: {_EXAMPLES}")
        if not address.ip.is_loopback:
            raise ConfigError(
                f"--metrics {text}: metrics tell whoever asks how the service is and what it "
                "runs on, without encryption and without asking who they are, so they are served "
                f"to this host only: {_EXAMPLES}, and put a reverse proxy in front of it for others"
            )
        return cls(None, address)

    def __str__(self) -> str:
        return str(self.address) if self.path is None else f"{_UNIX}{self.path}"


class MetricsListener(Closing):
    """A non-blocking socket that listens.

    Args:
        where: what to bind to.

    Raises:
        PktstunError: that cannot be had; the text names the fix.
    """

    def __init__(self, where: MetricsAddress) -> None:
        self.where = where
        self._own = True
        self._identity: tuple[int, int] | None = None
        self._listening: socket.socket | ListeningSocket
        try:
            if where.path is not None:
                path = Path(where.path)
                self._listening = listen_at(path, socket.SOCK_STREAM, _BACKLOG)
                self._identity = file_identity(path)
            elif where.address is not None:
                self._listening = ListeningSocket(where.address, share=False)
        except OSError as error:
            raise _explain(error, where) from error

    @classmethod
    def adopt(cls, descriptor: int, where: MetricsAddress, *, own: bool = True) -> Self:
        """Return the listener of this descriptor, which is its own from then on.

        `own` says whether the file of a unix socket is, too.
        """
        adopted = cls.__new__(cls)
        adopted.where = where
        adopted._own = own  # noqa: SLF001 - its own class
        adopted._identity = None  # noqa: SLF001
        if where.path is None:
            adopted._listening = ListeningSocket.adopt(descriptor)  # noqa: SLF001
        else:
            adopted._listening = socket.socket(fileno=descriptor)  # noqa: SLF001
            adopted._listening.setblocking(False)  # noqa: FBT003, SLF001 - its name says it
            with suppress(OSError):
                adopted._identity = file_identity(Path(where.path))  # noqa: SLF001
        return adopted

    def can_be_found(self) -> bool:
        """Return whether clients come here, and nobody has removed or replaced the file."""
        if self.where.path is None:
            return True
        with suppress(OSError):
            return file_identity(Path(self.where.path)) == self._identity
        return False

    def fileno(self) -> int:
        """Return the file descriptor, -1 when closed."""
        return self._listening.fileno()

    def accept(self) -> socket.socket:
        """Return a connection, non-blocking.

        Raises:
            BlockingIOError: none waits.
            OSError: the connection has failed already, or there are too few descriptors.
        """
        connection, _ = self._listening.accept()
        connection.setblocking(False)  # noqa: FBT003 - its name says it
        return connection

    def close(self) -> None:
        """Close the socket; its file stays."""
        self._listening.close()

    def remove(self) -> None:
        """Close the socket and remove its file, unless that is another's."""
        self.close()
        if self.where.path is not None and self._own and self.can_be_found():
            with suppress(OSError):
                Path(self.where.path).unlink()


def _explain(error: OSError, where: MetricsAddress) -> PktstunError:
    """Return what it means that an address cannot be had."""
    if error.errno == errno.EADDRINUSE:
        if where.path is not None and not Path(where.path).is_socket():
            return ConfigError(
                f"--metrics {where}: there is a file of this name that is no socket: remove it, or "
                "choose another name"
            )
        query = (
            f"-ltnp sport = :{where.address.port}" if where.address else f"-lxp src {where.path}"
        )
        return EngineError(
            f"--metrics {where} is in use: stop the program that has it ('ss {query}' shows it), "
            "or choose another"
        )
    if where.path is not None:
        directory = Path(where.path).parent
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return ConfigError(
                f"--metrics {where}: there is no directory {directory}: make it ('install -d -m "
                f"755 -o {_user()} {directory}', RuntimeDirectory= of a systemd service)"
            )
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return PrivilegeError(
                f"--metrics {where}: {_user()} may not make a socket in {directory}: give the "
                f"user the directory ('install -d -m 755 -o {_user()} {directory}', "
                "RuntimeDirectory= of a systemd service)"
            )
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        return ConfigError(f"--metrics {where} is no address of this host: {_EXAMPLES}")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return PrivilegeError(f"--metrics {where}: choose a port above 1023")
    return EngineError(f"--metrics {where}: {error.strerror}")


def _user() -> str:
    with suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())
