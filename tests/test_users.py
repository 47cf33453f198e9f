"""The users file: what it says, and what is wrong with it, where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.errors import ConfigError
from pktstun.stun import (
    Admission,
    Attribute,
    LongTerm,
    Message,
    Nonce,
    PasswordAlgorithmNumber,
    Realm,
    Refusal,
    ShortTerm,
    TransportAddress,
    Username,
    long_term_key,
    short_term_key,
)
from pktstun.users import Credentials, Mechanism, read_users

if TYPE_CHECKING:
    from pathlib import Path

SHORT, LONG = Mechanism.SHORT_TERM, Mechanism.LONG_TERM
MD5, SHA_256 = PasswordAlgorithmNumber.MD5, PasswordAlgorithmNumber.SHA_256
KEY = bytes(32)
CLIENT = TransportAddress(IPv4Address("192.0.2.1"), 4000)
HEX = "8493fbc53ba582fb4c044c456bdc40eb"


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    file = tmp_path / "users"
    file.touch(mode=0o600)
    return file


def test_lines(file: Path) -> None:
    file.write_text(
        "# a comment\n"
        "\n"
        "ada:countess of lovelace\n"
        "evtj\\:h6vY:a:b # no comment\n"
        "\\#back\\\\slash: spaces \r\n"
        "Ame\u0301lie:caf\u00e9\n"
        f"bob:0x{HEX}\n"
        f"bob:0X{HEX.upper()}{HEX}",
        encoding="utf-8",
    )
    assert read_users(file, LONG) == {
        "ada": {"password": "countess of lovelace"},
        "evtj:h6vY": {"password": "a:b # no comment"},
        "#back\\slash": {"password": " spaces "},
        "Am\u00e9lie": {"password": "caf\u00e9"},
        "bob": {"md5": HEX, "sha256": HEX.upper() + HEX},
    }


printable = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), min_size=1)


@given(st.dictionaries(printable, printable.filter(lambda t: not t.lower().startswith("0x"))))
def test_any_user_can_be_written(
    tmp_path_factory: pytest.TempPathFactory, users: dict[str, str]
) -> None:
    file = tmp_path_factory.mktemp("users") / "users"
    file.touch(mode=0o600)
    escaped = {"".join(f"\\{each}" for each in name): users[name] for name in users}
    file.write_text("".join(f"{name}:{password}\n" for name, password in escaped.items()))
    if not users:
        with pytest.raises(ConfigError, match="has no users: write NAME:PASSWORD"):
            read_users(file, SHORT)
        return
    found = read_users(file, SHORT)
    assert found == {name: {"password": password} for name, password in users.items()}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("ada", ":1: write NAME:PASSWORD, or NAME:0xKEY"),
        ("a:b\n# c\n\nada\\:x", ":4: write NAME:PASSWORD"),
        (":x", ":1: write NAME:PASSWORD"),
        ("ada:", ":1: OpaqueString does not allow an empty string"),
        ("ada:\t", ":1: OpaqueString"),
        ("a\tda:x", ":1: OpaqueString"),
        ("a" * 509 + ":x", ":1: USERNAME has 509 bytes"),
        ("ada:x\nada:y", ":2: the user 'ada' is there already"),
        ("e\u0301:x\n\u00e9:y", ":2: the user '\u00e9' is there already"),
        (f"ada:0x{HEX}\nada:0x{HEX}", ":2: the user 'ada' is there already"),
        (f"ada:x\nada:0x{HEX}", ":2: the user 'ada' is there already"),
        (f"ada:0x{HEX}\nada:x", ":2: the user 'ada' is there already"),
        ("ada:0xpassword", ":1: behind 0x stand the 32 hex digits .* cannot begin with 0x"),
        (f"ada:0x{HEX}0", ":1: behind 0x stand"),
        (f"ada:0x{HEX[:-1]}", ":1: behind 0x stand"),
        (f"ada:0x{HEX}{HEX}{HEX}", ":1: behind 0x stand"),
        ("ada:x\n\udcff:y", ":2: this is not UTF-8"),
        ("# nobody\n", "has no users"),
    ],
)
def test_what_is_no_users_file(file: Path, lines: str, complaint: str) -> None:
    file.write_bytes(lines.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_users(file, LONG)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_short_term_credentials_have_no_keys(file: Path) -> None:
    file.write_text(f"ada:0x{HEX}\n")
    with pytest.raises(ConfigError, match=":1: short-term credentials take the password"):
        read_users(file, SHORT)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o666])
def test_a_file_for_everybody_is_refused(file: Path, mode: int) -> None:
    file.write_text("ada:x\n")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"others may read or write .*: 'chmod o= {file}'"):
        read_users(file, LONG)
    file.chmod(0o640)
    assert read_users(file, LONG)


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot read the users file {file}x: No such file"):
        read_users(file.with_name("usersx"), LONG)
    with pytest.raises(ConfigError, match="Is a directory"):
        read_users(file.parent, LONG)


def test_a_file_of_another_user_s(file: Path) -> None:
    """Also root's, since the service does not stay root: the text says whom to give it to."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    file.write_text("ada:x\n")
    program = (
        "import os, sys; from pathlib import Path; from pktstun.errors import ConfigError\n"
        "from pktstun.users import Mechanism, read_users\n"
        "directory = os.open(sys.argv[1], os.O_RDONLY); os.fchdir(directory)\n"
        "os.setuid(int(sys.argv[2]))\n"
        "try: read_users(Path('users'), Mechanism.LONG_TERM)\n"
        "except ConfigError as error: print(error)\n"
    )
    for uid, name in ((65534, "nobody"), (54321, "54321")):
        command = [sys.executable, "-c", program, str(file.parent), str(uid)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said == (
            f"--users: cannot read the users file users: Permission denied for {name}, who the "
            f"service is: 'chown {name} users' allows it\n"
        )


# --- What is made of it ---


def signed(*attributes: Attribute, key: bytes) -> Message:
    return Message.request(*attributes).with_message_integrity(key)


def test_short_term_credentials(file: Path) -> None:
    file.write_text("ada:countess\n")
    credentials = Credentials(read_users(file, SHORT))
    assert credentials.mechanism is SHORT
    made = credentials.authenticator(KEY)
    assert isinstance(made, ShortTerm)
    request = signed(Username("ada"), key=short_term_key("countess"))
    assert isinstance(made.check(request, CLIENT, 0.0), Admission)


def test_long_term_credentials_of_passwords_and_keys(file: Path) -> None:
    realm = "example.org"
    key = {n: long_term_key("bob", realm, "secret", n) for n in (MD5, SHA_256)}
    file.write_text(f"ada:countess\nbob:0x{key[MD5].hex()}\nbob:0x{key[SHA_256].hex()}\n")
    credentials = Credentials(read_users(file, LONG), realm, nonce_lifetime=5)
    assert credentials.mechanism is LONG
    # Another version of the program makes the same of what it is told.
    handed = json.loads(json.dumps(credentials.hand_over()))
    for made in (credentials.authenticator(KEY), Credentials.adopt(handed).authenticator(KEY)):
        assert isinstance(made, LongTerm)
        refusal = made.check(Message.request(), CLIENT, 0.0)
        assert isinstance(refusal, Refusal)
        nonce = refusal.attributes[1]
        assert isinstance(nonce, Nonce)
        request = signed(Username("bob"), Realm(realm), nonce, key=key[MD5])
        assert isinstance(made.check(request, CLIENT, 5.0), Admission)
        late = made.check(request, CLIENT, 6.0)
        assert isinstance(late, Refusal)
        assert late.code == 438


def test_the_authenticator_is_made_once_for_a_key() -> None:
    credentials = Credentials({"ada": {"password": "x"}}, "example.org")
    one = credentials.authenticator(KEY)
    assert credentials.authenticator(KEY) is one
    assert credentials.authenticator(bytes(31) + b"x") is not one


@pytest.mark.parametrize(
    ("credentials", "complaint"),
    [
        (
            Credentials({"ada": {"md5": HEX}, "bob": {"sha256": HEX + HEX}}, "example.org"),
            "no password algorithm for which every user has a key",
        ),
        (Credentials({"ada": {"password": "x"}}, ""), "OpaqueString"),
        (Credentials({"ada": {"password": "x"}}, "example.org", 0), "a second at least"),
    ],
)
def test_what_does_not_fit_together(credentials: Credentials, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"--auth long-term: .*{complaint}"):
        credentials.authenticator(KEY)


def test_credentials_show_no_secret() -> None:
    assert repr(Credentials({"ada": {"password": "x"}})) == "<Credentials: short-term, 1 users>"
