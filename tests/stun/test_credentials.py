"""Keys from usernames, realms and passwords; the nonce cookie."""

from __future__ import annotations

import builtins
import hashlib
import string
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from precis_i18n import get_profile

from pktstun.stun import (
    PasswordAlgorithmNumber,
    SecurityFeature,
    StunError,
    long_term_key,
    nonce_cookie,
    opaque_string,
    security_features,
    short_term_key,
    userhash,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ascii_texts = st.text(string.printable[:95], min_size=1)


@given(ascii_texts | st.text())
def test_opaque_string_is_the_profile_of_rfc_8265(text: str) -> None:
    """The shortcut for ASCII gives what the tables give."""
    try:
        expected = get_profile("OpaqueString").enforce(text)
    except UnicodeEncodeError:
        with pytest.raises(StunError, match="OpaqueString does not allow"):
            opaque_string(text)
    else:
        assert opaque_string(text) == expected
        assert opaque_string(expected) == expected


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        (" ", " "),
        ("correct horse", "correct horse"),
        ("a\u00a0b", "a b"),  # RFC 8265 section 4.2.2: other spaces become U+0020
        ("a\u3000b", "a b"),
        ("e\u0301", "\u00e9"),  # NFC
        ("\u2168", "\u2168"),  # and not NFKC, which SASLprep used
        ("\u03c0\u00df\u00e5", "\u03c0\u00df\u00e5"),
    ],
)
def test_what_the_profile_changes(text: str, prepared: str) -> None:
    assert opaque_string(text) == prepared


@pytest.mark.parametrize("text", ["", "\t", "a\0", "\x7f", "\u00ad", "\ud800", "\u200b"])
def test_what_the_profile_forbids(text: str) -> None:
    with pytest.raises(StunError, match="OpaqueString does not allow"):
        opaque_string(text)


def test_ascii_needs_no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_precis(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "precis_i18n":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_precis)
    assert opaque_string("password") == "password"
    with pytest.raises(StunError, match="pip install precis-i18n"):
        opaque_string("\u00e9")


def test_the_key_of_rfc_8489_section_9_2_2() -> None:
    expected = "8493fbc53ba582fb4c044c456bdc40eb"
    assert long_term_key("user", "realm", "pass").hex() == expected
    assert long_term_key("user", "realm", "pass", PasswordAlgorithmNumber.MD5).hex() == expected


@given(ascii_texts, ascii_texts, ascii_texts)
def test_long_term_keys_are_hashes_of_three_parts(user: str, realm: str, password: str) -> None:
    user, realm = user.replace('"', "'"), realm.replace('"', "'")
    text = f"{user}:{realm}:{password}".encode()
    assert long_term_key(user, realm, password) == hashlib.md5(text).digest()
    sha256 = long_term_key(user, realm, password, PasswordAlgorithmNumber.SHA_256)
    assert sha256 == hashlib.sha256(text).digest()
    assert userhash(user, realm) == hashlib.sha256(f"{user}:{realm}".encode()).digest()


def test_quotes_and_nuls_are_removed() -> None:
    """RFC 8489 section 9.2.2: quotes of username and realm, NULs behind all three."""
    expected = long_term_key("user", "realm", "pass")
    assert long_term_key('"user"', '"realm"', "pass\0\0") == expected
    assert long_term_key("user\0", '"realm"\0', "pass") == expected
    # Quotes of a password are its own.
    assert long_term_key("user", "realm", '"pass"') != expected


@pytest.mark.parametrize("algorithm", [0, 3, 0xFFFF, PasswordAlgorithmNumber(0x1234)])
def test_an_unknown_algorithm_makes_no_key(algorithm: int) -> None:
    with pytest.raises(StunError, match="no known password algorithm"):
        long_term_key("user", "realm", "pass", algorithm)


def test_keys_are_made_of_prepared_strings() -> None:
    assert short_term_key("e\u0301 ") == "\u00e9 ".encode()
    composed = long_term_key("\u00e9", "\u00e9", "\u00e9")
    assert long_term_key("e\u0301", "e\u0301", "e\u0301") == composed
    assert userhash("e\u0301", "e\u0301") == userhash("\u00e9", "\u00e9")


@pytest.mark.parametrize(
    "make",
    [
        lambda: short_term_key(""),
        lambda: long_term_key("", "realm", "pass"),
        lambda: long_term_key("user", '""', "pass"),
        lambda: long_term_key("user", "realm", "\0"),
        lambda: userhash("user", ""),
        lambda: userhash("", "realm"),
    ],
)
def test_an_empty_string_is_no_credential(make: Callable[[], bytes]) -> None:
    with pytest.raises(StunError, match="OpaqueString"):
        make()


@given(st.integers(0, 0xFFFFFF), st.text())
def test_the_nonce_cookie_says_which_features_there_are(features: int, text: str) -> None:
    cookie = nonce_cookie(SecurityFeature(features))
    assert len(cookie) == 13
    assert cookie.startswith("obMatJos2")
    assert security_features(cookie + text) == features


def test_the_bits_of_the_nonce_cookie() -> None:
    # RFC 8489 B.1 has a nonce with AAAC, and the erratum to section 18.1 counts from the right.
    assert nonce_cookie(SecurityFeature(0)) == "obMatJos2AAAA"
    assert nonce_cookie(SecurityFeature.PASSWORD_ALGORITHMS) == "obMatJos2AAAB"
    assert nonce_cookie(SecurityFeature.USERNAME_ANONYMITY) == "obMatJos2AAAC"
    assert nonce_cookie(SecurityFeature(0x800000)) == "obMatJos2gAAA"


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "abc",
        "obMatJos2",
        "obMatJos2AAA",
        "obMatJos2AAA=",
        "obMatJos2A-AA",
        "obmatjos2AAAA",
        " obMatJos2AAAA",
        "obMatJos2\u00e9AAA",
    ],
)
def test_a_nonce_without_a_cookie_names_no_features(nonce: str) -> None:
    assert security_features(nonce) is None


@pytest.mark.parametrize("features", [-1, 0x1000000])
def test_a_cookie_has_24_bits(features: int) -> None:
    with pytest.raises(StunError, match="24 security features"):
        nonce_cookie(SecurityFeature(features) if features > 0 else features)  # type: ignore[arg-type]
