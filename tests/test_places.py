"""A message that names options says where they were said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.errors import ConfigError, PrivilegeError
from pktstun.places import COMMAND_LINE, locate, located

PLACES = {
    "mode": "/etc/pktstun.toml:2",
    "takeover": "/etc/pktstun.toml:4",
    "rate-limit": "/etc/pktstun.toml:4",
    "port": "environment PKTSTUN_SERVE_PORT",
    "tls": COMMAND_LINE,
    "tls-port": COMMAND_LINE,
}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("the system refuses", "the system refuses"),
        ("--iface: there is none", "--iface: there is none"),
        ("use --mode recvmmsg", "/etc/pktstun.toml:2: use --mode recvmmsg"),
        ("--takeover: see --mode", "/etc/pktstun.toml:4: --takeover: see --mode (--mode: "),
        ("--no-takeover", "/etc/pktstun.toml:4: --no-takeover"),
        ("--mode, --mode", "/etc/pktstun.toml:2: --mode, --mode"),
        ("--takeover, --rate-limit", "/etc/pktstun.toml:4: --takeover, --rate-limit"),
        ("--rate-limit-share of 3", "--rate-limit-share of 3"),
        ("--port 1", "environment PKTSTUN_SERVE_PORT: --port 1"),
        ("--tls needs --tls-port", "--tls needs --tls-port"),
        ("--tls or --port", "--tls or --port (--port: environment PKTSTUN_SERVE_PORT)"),
        (
            "--port or --tls",
            "environment PKTSTUN_SERVE_PORT: --port or --tls (--tls: command line)",
        ),
        ("a--mode, ---mode and --Mode", "a--mode, ---mode and --Mode"),
    ],
)
def test_the_first_place_is_in_front_and_others_behind(message: str, said: str) -> None:
    found = locate(message, PLACES)
    assert found.startswith(said)
    assert found.endswith(")") == ("(" in found)
    if "(--mode" in found:
        assert found.endswith("(--mode: /etc/pktstun.toml:2)")


@given(st.text())
def test_any_message_stays_whole(message: str) -> None:
    assert message in locate(message, PLACES)
    assert locate(message, {}) == message


def test_an_error_stays_what_it_is() -> None:
    said = pytest.raises(PrivilegeError, match=r"^/etc/pktstun.toml:2: use --mode$")
    with said as caught, located(PLACES):
        raise PrivilegeError("use --mode")
    assert caught.value.exit_status == 77
    with pytest.raises(KeyError, match="--mode"), located(PLACES):
        raise KeyError("--mode")
    with located(PLACES):
        pass
    assert ConfigError.exit_status == 78
