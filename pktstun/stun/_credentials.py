"""Credentials: from usernames, realms and passwords to the key of an HMAC (RFC 8489 section 9).

Strings are prepared by the OpaqueString profile of PRECIS (RFC 8265 section 4.2) before they
are hashed, so that the same password typed on two keyboards gives one key. Visible ASCII and
spaces pass through that profile unchanged, and nothing is needed for them. Everything else
needs Unicode's tables, which the package precis-i18n has (the extra `precis`).
"""

from __future__ import annotations

import base64
import hashlib
import re

from pktstun.errors import StunError

from ._types import PasswordAlgorithmNumber, SecurityFeature

# RFC 8489 section 9.2: a nonce that begins so says which features the server has.
NONCE_COOKIE = "obMatJos2"
_COOKIE = re.compile(NONCE_COOKIE + "([A-Za-z0-9+/]{4})")


def opaque_string(text: str) -> str:
    """Prepare a string as the OpaqueString profile says (RFC 8265 section 4.2).

    >>> opaque_string("pass word")
    'pass word'

    Raises:
        StunError: the string is empty, has a character that the profile forbids, or needs
            the package precis-i18n and it is not installed.
    """
    if text.isascii():
        if not text or not text.isprintable():
            raise StunError("OpaqueString does not allow an empty string or control characters")
        return text
    try:
        from precis_i18n import get_profile  # noqa: PLC0415 - an extra; ASCII does not need it
    except ImportError as error:
        raise StunError(
            "a string that is not printable ASCII needs Unicode's tables: pip install precis-i18n"
        ) from error
    try:
        return str(get_profile("OpaqueString").enforce(text))
    except UnicodeError as error:
        raise StunError(f"OpaqueString does not allow the string: {error}") from error


def short_term_key(password: str) -> bytes:
    """Return the key of short-term credentials (RFC 8489 section 9.1.1), as in ICE.

    >>> short_term_key("VOkJxbRl1RmTxUk/WvJxBt")
    b'VOkJxbRl1RmTxUk/WvJxBt'

    Raises:
        StunError: see `opaque_string`.
    """
    return opaque_string(password).encode()


def long_term_key(
    username: str,
    realm: str,
    password: str,
    algorithm: int = PasswordAlgorithmNumber.MD5,
) -> bytes:
    """Return the key of long-term credentials (RFC 8489 sections 9.2.2 and 18.5.1), as in TURN.

    >>> long_term_key("user", "realm", "pass").hex()
    '8493fbc53ba582fb4c044c456bdc40eb'

    Args:
        username: as in USERNAME; quotes around it and NULs behind it are removed.
        realm: as in REALM; likewise.
        password: NULs behind it are removed.
        algorithm: MD5 gives 16 bytes, SHA-256 gives 32; MD5 is what a message without
            PASSWORD-ALGORITHM means.

    Raises:
        StunError: no known algorithm, or see `opaque_string`.
    """
    parts = (_bare(username), _bare(realm), password.rstrip("\0"))
    text = ":".join(map(opaque_string, parts)).encode()
    if algorithm == PasswordAlgorithmNumber.MD5:
        return hashlib.md5(text, usedforsecurity=False).digest()
    if algorithm == PasswordAlgorithmNumber.SHA_256:
        return hashlib.sha256(text).digest()
    raise StunError(f"{algorithm:#06x} is no known password algorithm")


def userhash(username: str, realm: str) -> bytes:
    """Return the value of USERHASH (RFC 8489 section 14.4), 32 bytes.

    Raises:
        StunError: see `opaque_string`.
    """
    return hashlib.sha256(f"{opaque_string(username)}:{opaque_string(realm)}".encode()).digest()


def nonce_cookie(features: SecurityFeature) -> str:
    """Return the 13 characters with which a server's NONCE begins (RFC 8489 section 9.2).

    >>> nonce_cookie(SecurityFeature.USERNAME_ANONYMITY)
    'obMatJos2AAAC'

    Raises:
        StunError: the features do not fit 24 bits.
    """
    if not 0 <= features <= 0xFFFFFF:
        raise StunError(f"{int(features):#x} is no set of 24 security features")
    return NONCE_COOKIE + base64.b64encode(features.to_bytes(3)).decode()


def security_features(nonce: str) -> SecurityFeature | None:
    """Return the features that a nonce's cookie names, or None where it has no cookie.

    >>> security_features("obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA")
    <SecurityFeature.USERNAME_ANONYMITY: 2>
    >>> security_features("f//499k954d6OL34oL9FSTvy64sA") is None
    True
    """
    match = _COOKIE.match(nonce)
    return SecurityFeature(int.from_bytes(base64.b64decode(match[1]))) if match else None


def _bare(text: str) -> str:
    return text.rstrip("\0").strip('"').rstrip("\0")
