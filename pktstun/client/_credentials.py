"""How a client proves who it is, and knows that its server does (RFC 8489 section 9).

Theory of operation: a `Login` signs requests and judges responses. It does no I/O, so whoever
sends the messages asks it three things: `sign` this request; may this response be heard
(`objection`); is this response a challenge to be answered (`take_up`)?

Short-term credentials are in the first request already, with both integrities, since nobody
knows which the server has. Long-term credentials are sent when the server asks: a 401 names realm
and nonce, a 438 a fresh nonce. What a server has once said about itself, in the nonce's cookie or
by its list of algorithms, is held against everything that comes later: whoever sits in between
could only take it out to have the weaker algorithm used (section 9.2.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pktstun.stun import (
    AlternateServer,
    Attribute,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    Nonce,
    PasswordAlgorithm,
    PasswordAlgorithmNumber,
    PasswordAlgorithms,
    Realm,
    SecurityFeature,
    UserHash,
    Username,
    long_term_key,
    short_term_key,
)

from ._servers import QueryError

# A nonce may become stale in between, and again; more is a server that does not mean it.
_MOST_CHALLENGES = 4

_KNOWN = frozenset({PasswordAlgorithmNumber.MD5, PasswordAlgorithmNumber.SHA_256})
_NONE = SecurityFeature(0)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A username and its password.

    Args:
        username: as the server knows it.
        password: never sent; its traces in a message can be tried offline, so it should be long.
        short_term: they are short-term credentials, as in ICE.
    """

    username: str
    password: str = field(repr=False)
    short_term: bool = False


class Login:
    """The credentials in front of one server.

    Args:
        credentials: None signs nothing.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._challenges = 0
        self._realm: Realm | None = None
        self._nonce: Nonce | None = None
        self._features = _NONE
        self._algorithms: PasswordAlgorithms | None = None
        self._algorithm: PasswordAlgorithm | None = None
        self._key: bytes | None = None
        if credentials and credentials.short_term:
            self._key = short_term_key(credentials.password)

    @property
    def realm(self) -> str | None:
        """The realm of long-term credentials, once the server has named it."""
        return self._realm.text if self._realm else None

    def sign(self, request: Message) -> Message:
        """Return the request with credentials and integrity, as far as it is time for them.

        Raises:
            StunError: the username or the password cannot be sent.
        """
        if self._credentials is None or self._key is None:
            return request
        if self._realm is None or self._nonce is None:
            request = request.with_attributes(Username.of(self._credentials.username))
            request = request.with_message_integrity(self._key)
            return request.with_message_integrity_sha256(self._key)
        attributes: list[Attribute] = [self._username(), self._realm, self._nonce]
        if self._algorithms and self._algorithm:
            attributes += [self._algorithms, self._algorithm]
        request = request.with_attributes(*attributes)
        if self._algorithms:
            return request.with_message_integrity_sha256(self._key)
        return request.with_message_integrity(self._key)

    def objection(self, response: Message) -> str | None:
        """Return why a response must not be heard, or None (sections 9.1.4 and 9.2.5)."""
        code = response.error.code if response.error else 0
        is_challenge = code in {401, 438} and not self._is_short_term
        if not is_challenge and _hides_algorithms(response):
            return "it hides the password algorithms that its nonce speaks of"
        if self._key is None or is_challenge:
            return None
        sha256 = response.get(MessageIntegritySha256) is not None
        if not sha256 and response.get(MessageIntegrity) is None:
            # Section 10: a redirection may come from who has no credentials.
            if code == 300 and response.get(AlternateServer) is not None:
                return None
            said = f", says {_said(response)}" if code else ""
            return f"it has no integrity{said}"
        if not self._is_short_term and sha256 != (self._algorithms is not None):
            return "its integrity is of another kind than the request's"
        return None if response.check_message_integrity(self._key) else "its integrity is wrong"

    def integrity_of(self, response: Message) -> str | None:
        """Return the name of the attribute that proves a response, once it has been heard."""
        if self._key is None:
            return None
        found = response.get(MessageIntegritySha256) or response.get(MessageIntegrity)
        return found.type.label if found else None

    def take_up(self, response: Message) -> bool:
        """Return whether to ask again, with what this response says (section 9.2.5).

        Raises:
            QueryError: the response is a challenge that must not be answered.
        """
        code = response.error.code if response.error else 0
        if self._credentials is None or self._is_short_term or code not in {400, 401, 438}:
            return False
        if code == 400 and self._key:
            return False
        realm, nonce = response.get(Realm) or self._realm, response.get(Nonce)
        if realm is None or nonce is None or code == 400:
            raise QueryError(
                f"the server said {_said(response)} and no realm and nonce: it may want "
                "short-term credentials (--short-term)"
            )
        if _hides_algorithms(response):
            raise QueryError(
                "the server's nonce speaks of password algorithms that are not in its answer: "
                "somebody in between may want a weaker one to be used"
            )
        algorithms = response.get(PasswordAlgorithms)
        features = nonce.security_features or _NONE
        if (self._algorithms and not algorithms) or self._features & ~features:
            raise QueryError(
                "the server had password algorithms or hidden usernames before and now has not: "
                "somebody in between may want weaker ones to be used"
            )
        if code == 401 and self._realm == realm and self._features == features:
            raise QueryError(
                f"the server refuses username or password in the realm {realm.text!r}: "
                f"{_said(response)}"
            )
        self._challenges += 1
        if self._challenges > _MOST_CHALLENGES:
            raise QueryError(f"the server says {_said(response)} again and again")
        self._realm, self._nonce, self._features = realm, nonce, features
        self._algorithms, self._algorithm = algorithms, _choose(algorithms)
        self._key = long_term_key(
            Username.of(self._credentials.username).text,
            realm.text,
            self._credentials.password,
            self._algorithm.algorithm if self._algorithm else PasswordAlgorithmNumber.MD5,
        )
        return True

    @property
    def _is_short_term(self) -> bool:
        return self._credentials is not None and self._credentials.short_term

    def _username(self) -> Attribute:
        assert self._credentials is not None  # noqa: S101 - what mypy cannot know
        assert self._realm is not None  # noqa: S101
        if self._features & SecurityFeature.USERNAME_ANONYMITY:
            return UserHash.of(self._credentials.username, self._realm.text)
        return Username.of(self._credentials.username)


def _said(response: Message) -> str:
    error = response.error
    return f"{error.code} {error.reason}".strip() if error else "success"


def _hides_algorithms(response: Message) -> bool:
    nonce = response.get(Nonce)
    features = nonce.security_features if nonce else None
    return bool(
        features
        and features & SecurityFeature.PASSWORD_ALGORITHMS
        and response.get(PasswordAlgorithms) is None
    )


def _choose(offered: PasswordAlgorithms | None) -> PasswordAlgorithm | None:
    """Return the first algorithm that is known; QueryError where none of them is."""
    if offered is None:
        return None
    for each in offered.algorithms:
        if each.algorithm in _KNOWN:
            return each
    names = ", ".join(each.algorithm.label for each in offered.algorithms)
    raise QueryError(f"the server has no password algorithm that is known here: {names}")
