r"""The users file: whose requests a service answers, with what it takes to check them.

Theory of operation: the file is read when the configuration is, by the supervisor, and workers
inherit what came of it; so no worker opens it, and a new one takes SIGHUP. A line is a user:

    # a password, of the rest of the line
    ada:countess of lovelace
    # or a key in its place, which opens one realm only: MD5, as 'turnadmin -k' prints it, or
    # SHA-256, as 'printf bob:example.org:secret | sha256sum' does behind 0x; or both, in two lines
    bob:0x8493fbc53ba582fb4c044c456bdc40eb
    # a backslash takes the next character of a name as it is
    evtj\:h6vY:VOkJxbRl1RmTxUk/WvJxBt

`Credentials` is what the operator said about it all, and makes the authenticator.
"""

from __future__ import annotations

import os
import pwd
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from pktstun.errors import ConfigError, StunError
from pktstun.stun import (
    NONCE_LIFETIME,
    Authenticator,
    LongTerm,
    PasswordAlgorithmNumber,
    ShortTerm,
    Username,
    opaque_string,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["Credentials", "Mechanism", "read_users"]

_NAME = re.compile(r"((?:[^:\\]|\\.)+):(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_KEY = re.compile(r"0[xX]((?:[0-9a-fA-F]{32}){1,2})")
_ALGORITHMS = {
    "md5": PasswordAlgorithmNumber.MD5,
    "sha256": PasswordAlgorithmNumber.SHA_256,
}
_KEY_KINDS = {16: "md5", 32: "sha256"}
_OTHERS = 0o007


class Mechanism(StrEnum):
    """How a client shows who it is (RFC 8489 section 9)."""

    SHORT_TERM = "short-term"
    LONG_TERM = "long-term"


def read_users(path: Path, mechanism: Mechanism) -> dict[str, dict[str, str]]:
    """Return the users of a file.

    Returns:
        Username, prepared, to what there is of `password`, `md5` and `sha256`; keys in hex.

    Raises:
        ConfigError: the file cannot be read or others may; a line is none, or is of no use to
            the mechanism. The text names the fix.
    """
    users: dict[str, dict[str, str]] = {}
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line and not line.startswith("#"):
            try:
                _add(users, line, mechanism)
            except StunError as error:
                raise ConfigError(f"{path}:{number}: {error}") from error
    if not users:
        raise ConfigError(f"{path} has no users: write NAME:PASSWORD, a line for each")
    return users


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as error:
        reason = str(error.strerror)
        if isinstance(error, PermissionError):
            # Started as root, the service is another user's when it reads the file again.
            name = _name_of(os.geteuid())
            reason += f" for {name}, who the service is: 'chown {name} {path}' allows it"
        raise ConfigError(f"--users: cannot read the users file {path}: {reason}") from error
    if mode & _OTHERS:
        raise ConfigError(
            f"--users: others may read or write the users file {path}: 'chmod o= {path}'"
        )
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8") from error


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _add(users: dict[str, dict[str, str]], line: str, mechanism: Mechanism) -> None:
    match = _NAME.fullmatch(line)
    if match is None:
        raise StunError("write NAME:PASSWORD, or NAME:0xKEY; '#' begins a comment")
    name = Username.of(_ESCAPED.sub(r"\1", match[1])).text
    kind, secret = _secret(match[2], mechanism)
    known = users.setdefault(name, {})
    if kind in known or (known and "password" in {kind, *known}):
        raise StunError(f"the user {name!r} is there already")
    known[kind] = secret


def _secret(text: str, mechanism: Mechanism) -> tuple[str, str]:
    """Return what kind of secret it is, and a password as it is or a key in hex."""
    if not text.lower().startswith("0x"):
        opaque_string(text)
        return "password", text
    if mechanism is Mechanism.SHORT_TERM:
        raise StunError(
            "short-term credentials take the password, and no key in its place; a password that "
            "begins with 0x cannot be written here"
        )
    match = _KEY.fullmatch(text)
    if match is None:
        raise StunError(
            "behind 0x stand the 32 hex digits of an MD5 key, or the 64 of a SHA-256 key; a "
            "password cannot begin with 0x"
        )
    return _KEY_KINDS[len(match[1]) // 2], match[1]


class Credentials:
    """Whose requests are answered, and how they show who they are.

    Args:
        users: as `read_users` returns them.
        realm: of long-term credentials; None for short-term ones.
        nonce_lifetime: seconds for which a nonce of long-term credentials is good.
    """

    def __init__(
        self,
        users: Mapping[str, Mapping[str, str]],
        realm: str | None = None,
        nonce_lifetime: int = NONCE_LIFETIME,
    ) -> None:
        self._users = users
        self._realm = realm
        self._nonce_lifetime = nonce_lifetime
        self._made: tuple[bytes, Authenticator] | None = None

    def __repr__(self) -> str:
        return f"<Credentials: {self.mechanism}, {len(self._users)} users>"

    @property
    def mechanism(self) -> Mechanism:
        """Short-term or long-term."""
        return Mechanism.SHORT_TERM if self._realm is None else Mechanism.LONG_TERM

    @property
    def realm(self) -> str | None:
        """The realm of long-term credentials."""
        return self._realm

    def authenticator(self, nonce_key: bytes) -> Authenticator:
        """Return the authenticator, the same as long as the key is: there may be many users.

        Args:
            nonce_key: as for `LongTerm`.

        Raises:
            ConfigError: the credentials do not fit together; the text names the fix.
        """
        if self._made is None or self._made[0] != nonce_key:
            try:
                self._made = nonce_key, self._authenticator(nonce_key)
            except StunError as error:
                raise ConfigError(f"--auth {self.mechanism}: {error}") from error
        return self._made[1]

    def _authenticator(self, nonce_key: bytes) -> Authenticator:
        if self._realm is None:
            return ShortTerm({name: known["password"] for name, known in self._users.items()})
        users = {
            name: known.get("password") or _keys(known.items())
            for name, known in self._users.items()
        }
        return LongTerm(users, self._realm, nonce_key, self._nonce_lifetime)

    def hand_over(self) -> dict[str, Any]:
        """Return what another version of the program needs to go on, as JSON knows it; secret."""
        return {
            "users": self._users,
            "realm": self._realm,
            "nonce_lifetime": self._nonce_lifetime,
        }

    @classmethod
    def adopt(cls, handed: Mapping[str, Any]) -> Self:
        """Return the credentials that `hand_over` described."""
        return cls(**handed)


def _keys(known: Iterable[tuple[str, str]]) -> dict[int, bytes]:
    return {_ALGORITHMS[kind]: bytes.fromhex(key) for kind, key in known}
