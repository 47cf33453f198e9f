"""Whose processes a service's are: the user that it becomes when it is started as root.

Theory of operation: the supervisor opens sockets and rings, so it starts with privileges; it
changes its user before it opens anything, gives up what it does not need for opening the same
again, and its workers give up the rest (`pktstun.kernel.privileges`). Supervisor and workers have
one user: a process without CAP_KILL may only signal its own user's, and the members of a
SO_REUSEPORT group must have one user.
"""

from __future__ import annotations

import logging
import os
import pwd
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pktstun.errors import ConfigError, PrivilegeError
from pktstun.kernel import privileges

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DEFAULT_USER", "become_user", "find_user", "report_root"]

log = logging.getLogger("pktstun")

DEFAULT_USER = "pktstun"
"""Whom a service becomes that is started as root and told nothing, if there is such a user."""

_MAKE_IT = f"'useradd --system --shell /usr/sbin/nologin {DEFAULT_USER}'"


def find_user(name: str | None) -> pwd.struct_passwd | None:
    """Return the user to become, or None to stay what this process is.

    Args:
        name: None for the default.

    Raises:
        ConfigError: there is no such user.
        PrivilegeError: this process is another, and not root.
    """
    try:
        user = pwd.getpwnam(name or DEFAULT_USER)
    except KeyError:
        if name is None:
            return None
        raise ConfigError(
            f"there is no user {name!r}: make one ({_MAKE_IT}), or correct --user"
        ) from None
    if user.pw_uid == os.geteuid():
        return None
    if os.geteuid() == 0:
        return user
    if name is None:
        return None
    raise PrivilegeError(
        f"--user {name}: to become another user takes root; start the service as {name}, or "
        "leave it out"
    )


def become_user(name: str | None, *directories: Path | None) -> None:
    """Become the user of this name, or the default one; keep all capabilities.

    Args:
        name: as for `find_user`.
        directories: what shall be that user's, and is made where it is missing; None for none.

    Raises:
        ConfigError, PrivilegeError: as `find_user`; or a capability is missing.
    """
    user = find_user(name)
    if user is None:
        return
    for each in directories:
        if each is not None:
            _give(each, user)
    try:
        privileges.become(user)
    except PermissionError as error:
        raise PrivilegeError(
            f"to become {user.pw_name} takes CAP_SETUID and CAP_SETGID: {error.strerror}"
        ) from error


def report_root(name: str | None) -> None:
    """Warn if the service stays root's because nobody said anything else.

    Most files of the host are root's, with and without capabilities.
    """
    if name is None and os.geteuid() == 0:
        log.warning(
            "the service is root's, and so are its workers, though without root's capabilities: "
            "make a user for it (%s) and start it again, or name one with --user",
            _MAKE_IT,
        )


def _give(state: Path, user: pwd.struct_passwd) -> None:
    # What cannot be made or given is told when something is to be saved there.
    with suppress(OSError):
        state.mkdir(mode=0o750, parents=True, exist_ok=True)
        with _directory(state) as directory:
            for path in state.glob("worker-*"):
                with suppress(OSError), _directory(path.name, within=directory) as workers:
                    os.fchown(workers, user.pw_uid, user.pw_gid)
            os.fchown(directory, user.pw_uid, user.pw_gid)


@contextmanager
def _directory(path: Path | str, *, within: int | None = None) -> Iterator[int]:
    # Where the user may write, a name can be a link to what is root's: to anything, unless it must
    # be a directory, of which there are no hard links.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
