"""Who may ask: the server's side of the two credential mechanisms (RFC 8489 section 9).

Theory of operation: an authenticator looks at one request and says what is to become of it: an
`Admission`, with what the response has to be protected by, or a `Refusal`, an error response that
nothing protects. The checks stand in the order of sections 9.1.3 and 9.2.4, and between 400, 401
and 438 it is the order that decides. `respond()` asks before it looks for unknown attributes, as
section 6.3 says.

Nothing is kept about a client. A nonce says itself when it was made, and a keyed hash binds it to
that time, to the client's address and port and to the password algorithms that were offered with
it. So a nonce that another client was given, or that somebody has changed, is as good as stale.

Nobody in between can make the two sides agree on less than both are able to (section 9.2.1). The
client sends back, signed, the list of algorithms and the nonce, whose cookie names the server's
features: a list that was changed gets a 400, a cookie that was changed makes the nonce another
one and gets a 438. So does a list that was the server's before it had other users.

Amplification: the first request of a client shows no credentials (section 9.2.3.1), and the
answer has to name realm, nonce and algorithms; so a 401 is longer than what it answers, whoever
asked, and no server of long-term credentials can help it. Here it is 80 bytes and the realm,
padded: 92 bytes for the realm "example.org", where the bare request has 20. The reason phrase is
left out, and the nonce is as short as is safe. SOFTWARE and FINGERPRINT add to it as to all
replies. Short-term credentials have no such answer: an error has 28 bytes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from pktstun.errors import StunError

from ._attributes import (
    MessageIntegrity,
    MessageIntegritySha256,
    Nonce,
    PasswordAlgorithm,
    PasswordAlgorithms,
    Realm,
    UserHash,
    Username,
)
from ._credentials import long_term_key, nonce_cookie, short_term_key, userhash
from ._types import PasswordAlgorithmNumber, SecurityFeature

if TYPE_CHECKING:
    from collections.abc import Container

    from ._forms import Attribute
    from ._message import Message
    from ._types import TransportAddress

__all__ = [
    "NONCE_LIFETIME",
    "Admission",
    "Authenticator",
    "LongTerm",
    "LongTermSecret",
    "Refusal",
    "ShortTerm",
]

NONCE_LIFETIME = 600
"""Seconds for which a nonce is good, unless told: a client that has one asks without a 401."""

LongTermSecret: TypeAlias = str | Mapping[int, bytes]
"""A password, or the keys that `long_term_key` makes of it, by the algorithm's number."""

_MD5 = PasswordAlgorithmNumber.MD5
_SHA_256 = PasswordAlgorithmNumber.SHA_256
_BEST_FIRST = (_SHA_256, _MD5)
_KEY_SIZES: dict[int, int] = {_SHA_256: 32, _MD5: 16}  # RFC 8489 section 18.5.1

_FEATURES = SecurityFeature.PASSWORD_ALGORITHMS | SecurityFeature.USERNAME_ANONYMITY
_COOKIE = nonce_cookie(_FEATURES)

# RFC 2104 section 5: a shorter code than 80 bits should not be used.
_CODE_SIZE = 10
_TIME_SIZE = 4
_TIMES = 1 << 8 * _TIME_SIZE


@dataclass(frozen=True, slots=True)
class Admission:
    """The request was made by somebody who has the password."""

    username: str
    """Who it is."""
    key: bytes = field(repr=False)
    """Of the response's integrity."""
    uses_sha256: bool
    """Which of the two attributes that is."""

    def protect(self, response: Message) -> Message:
        """Return the response, success or error, with the integrity that it must have.

        Raises:
            StunError: it has one or FINGERPRINT already.
        """
        if self.uses_sha256:
            return response.with_message_integrity_sha256(self.key)
        return response.with_message_integrity(self.key)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request gets an error response without integrity."""

    code: int
    """400, 401 or 438."""
    attributes: tuple[Attribute, ...] = ()
    """What the response says beside ERROR-CODE."""


class Authenticator(Protocol):
    """Decides which requests a server answers with more than an error."""

    def check(self, request: Message, client: TransportAddress, now: float) -> Admission | Refusal:
        """Say whether a request may be answered.

        Args:
            request: decoded.
            client: where it came from; a nonce is good for this address and port only.
            now: seconds of a clock that nobody sets and that goes on from one process of the
                server to the next (CLOCK_BOOTTIME, CLOCK_MONOTONIC): a clock that was set back
                would make old nonces good again.
        """


class ShortTerm:
    """Short-term credentials (RFC 8489 section 9.1): a username and a password, as in ICE.

    >>> from pktstun.stun import Message, TransportAddress
    >>> users = ShortTerm({"evtj:h6vY": "VOkJxbRl1RmTxUk/WvJxBt"})
    >>> signed = Message.request(Username("evtj:h6vY")).with_message_integrity(
    ...     short_term_key("VOkJxbRl1RmTxUk/WvJxBt")
    ... )
    >>> client = TransportAddress.parse("192.0.2.1:4000")
    >>> users.check(signed, client, now=0.0)
    Admission(username='evtj:h6vY', uses_sha256=False)
    >>> users.check(Message.request(), client, now=0.0)
    Refusal(code=400, attributes=())

    The response has the integrity attribute that was checked: MESSAGE-INTEGRITY-SHA256 where the
    request has it, else MESSAGE-INTEGRITY.

    Args:
        passwords: username to password; both are prepared by the OpaqueString profile.

    Raises:
        StunError: two usernames become one when they are prepared, one is none, or see
            `opaque_string`.
    """

    __slots__ = ("_keys",)

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._keys: dict[str, bytes] = {}
        for name, password in passwords.items():
            self._keys[_new_name(name, self._keys)] = short_term_key(password)

    def __repr__(self) -> str:
        return f"<ShortTerm: {len(self._keys)} users>"

    def check(self, request: Message, client: TransportAddress, now: float) -> Admission | Refusal:  # noqa: ARG002 - the protocol's
        """Say whether a request may be answered, as section 9.1.3 has it: else 400 or 401."""
        username = request.get(Username)
        if not _has_integrity(request) or username is None:
            return Refusal(400)
        key = self._keys.get(username.text)
        # Computed also where there is no such user: how long it takes tells nobody who is one.
        if not request.check_message_integrity(key or b"") or key is None:
            return Refusal(401)
        uses_sha256 = request.get(MessageIntegritySha256) is not None
        return Admission(username.text, key, uses_sha256)


class _User(NamedTuple):
    name: str
    keys: Mapping[int, bytes]


_NOBODY = _User("", {})


class LongTerm:
    """Long-term credentials (RFC 8489 section 9.2): username, realm, password, and a nonce.

    Server features are password algorithms and username anonymity: USERHASH is taken in place of
    USERNAME. Which algorithms are offered is up to the keys: those for which every user has one,
    SHA-256 first. A request without PASSWORD-ALGORITHMS and PASSWORD-ALGORITHM counts as MD5, and
    its response has MESSAGE-INTEGRITY; any other one's has MESSAGE-INTEGRITY-SHA256.

    >>> from pktstun.stun import Message, TransportAddress
    >>> users = LongTerm({"ada": "countess"}, "example.org", nonce_key=bytes(32))
    >>> client = TransportAddress.parse("192.0.2.1:4000")
    >>> refusal = users.check(Message.request(), client, now=0.0)
    >>> refusal.code, [attribute.type.label for attribute in refusal.attributes]
    (401, ['REALM', 'NONCE', 'PASSWORD-ALGORITHMS'])

    Args:
        users: username to password or keys; usernames and passwords are prepared by the
            OpaqueString profile. Keys are made of one realm, and nothing shows which.
        realm: prepared likewise; the server's domain name is recommended.
        nonce_key: 16 to 32 random bytes that nobody else knows. Processes that have the same
            one take each other's nonces.
        nonce_lifetime: seconds for which a nonce is good.

    Raises:
        StunError: there is no algorithm for which every user has a key; two usernames become one
            when they are prepared; a key, the nonce key or the lifetime is none; or see
            `opaque_string`.
    """

    __slots__ = ("_algorithms", "_by_hash", "_by_name", "_code", "_lifetime", "_realm")

    def __init__(
        self,
        users: Mapping[str, LongTermSecret],
        realm: str,
        nonce_key: bytes,
        nonce_lifetime: int = NONCE_LIFETIME,
    ) -> None:
        if not 16 <= len(nonce_key) <= 32:
            raise StunError(f"a nonce key has 16 to 32 bytes, not {len(nonce_key)}")
        if not 1 <= nonce_lifetime < _TIMES // 2:
            raise StunError(f"a nonce is good for a second at least, not {nonce_lifetime}")
        self._realm = Realm.of(realm)
        self._lifetime = nonce_lifetime
        self._by_name: dict[str, _User] = {}
        self._by_hash: dict[bytes, _User] = {}
        for name, secret in users.items():
            prepared = _new_name(name, self._by_name)
            user = _User(prepared, _keys_of(prepared, self._realm.text, secret))
            self._by_name[prepared] = user
            self._by_hash[userhash(prepared, self._realm.text)] = user
        common = [n for n in _BEST_FIRST if all(n in u.keys for u in self._by_name.values())]
        if not common:
            raise StunError(
                "there is no password algorithm for which every user has a key: give each a "
                "password, or keys of one algorithm"
            )
        self._algorithms = PasswordAlgorithms(tuple(map(PasswordAlgorithm, common)))
        self._code = hashlib.blake2s(key=nonce_key, digest_size=_CODE_SIZE)
        self._code.update(self._algorithms.encode(b"").ljust(8, b"\0"))

    def __repr__(self) -> str:
        return f"<LongTerm: {len(self._by_name)} users of {self._realm.text!r}>"

    def check(self, request: Message, client: TransportAddress, now: float) -> Admission | Refusal:
        """Say whether a request may be answered, as section 9.2.4 has it: else 400, 401 or 438."""
        if not _has_integrity(request):
            return self._challenge(401, client, now)
        username, hashed = request.get(Username), request.get(UserHash)
        realm, nonce = request.get(Realm), request.get(Nonce)
        if (username is None and hashed is None) or realm is None or nonce is None:
            return Refusal(400)
        age = self._age(nonce.text, client, now)
        offered, chosen = request.get(PasswordAlgorithms), request.get(PasswordAlgorithm)
        is_old_client = offered is None and chosen is None
        promised = nonce.security_features or SecurityFeature(0)
        if SecurityFeature.PASSWORD_ALGORITHMS in promised and not is_old_client:
            if offered is None or chosen is None or chosen not in offered.algorithms:
                return Refusal(400)
            # What came with a nonce that is not this client's, nobody knows. It will be a 438.
            if age is not None and offered != self._algorithms:
                return Refusal(400)
        user = _NOBODY
        if realm == self._realm:
            found = self._by_name.get(username.text) if username else self._find(hashed)
            user = found or _NOBODY
        key = user.keys.get(chosen.algorithm if chosen else _MD5)
        # Computed also where there is no such user: how long it takes tells nobody who is one.
        if not request.check_message_integrity(key or b"") or key is None:
            return self._challenge(401, client, now)
        if age is None or age > self._lifetime:
            return self._challenge(438, client, now)
        return Admission(user.name, key, uses_sha256=not is_old_client)

    def _find(self, hashed: UserHash | None) -> _User | None:
        return self._by_hash.get(hashed.value) if hashed else None

    def _challenge(self, code: int, client: TransportAddress, now: float) -> Refusal:
        """Return an error that says with what to ask again."""
        nonce = Nonce(self._nonce((int(now) % _TIMES).to_bytes(_TIME_SIZE), client))
        return Refusal(code, (self._realm, nonce, self._algorithms))

    def _nonce(self, made: bytes, client: TransportAddress) -> str:
        """Return the nonce that a client is given at a time: 32 characters.

        Behind the cookie stand, in base64, the time (4 bytes, seconds) and the code over time,
        port and address, which the key and the algorithms begin.
        """
        code = self._code.copy()
        code.update(made + client.port.to_bytes(2) + client.ip.packed)
        return _COOKIE + base64.b64encode(made + code.digest()).decode().rstrip("=")

    def _age(self, nonce: str, client: TransportAddress, now: float) -> int | None:
        """Return how many seconds old a nonce is; None where this client was not given it.

        One from the future is very old.
        """
        try:
            made = base64.b64decode(nonce[len(_COOKIE) :] + "=", validate=True)[:_TIME_SIZE]
        except ValueError:
            return None
        if not hmac.compare_digest(nonce.encode(), self._nonce(made, client).encode()):
            return None
        return (int(now) - int.from_bytes(made)) % _TIMES


def _has_integrity(request: Message) -> bool:
    return (
        request.get(MessageIntegrity) is not None or request.get(MessageIntegritySha256) is not None
    )


def _keys_of(name: str, realm: str, secret: LongTermSecret) -> Mapping[int, bytes]:
    """Return the keys of a user by algorithm; StunError where they are none."""
    if isinstance(secret, str):
        return {number: long_term_key(name, realm, secret, number) for number in _BEST_FIRST}
    for number, key in secret.items():
        if len(key) != _KEY_SIZES.get(number):
            raise StunError(f"{len(key)} bytes are no key of the password algorithm {number}")
    return dict(secret)


def _new_name(name: str, known: Container[str]) -> str:
    """Return a username, prepared; StunError where it is known already."""
    prepared = Username.of(name).text
    if prepared in known:
        raise StunError(f"there are two users {prepared!r}")
    return prepared
