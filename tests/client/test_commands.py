"""`pktstun query`, `nat` and `monitor` as a person runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pktstun.stun import Message, XorMappedAddress
from tests.client.servers import (
    AUTHORITY,
    ELSEWHERE,
    LongTerm,
    NatDiscovery,
    ShortTerm,
    elsewhere,
    server,
    stream_server,
)

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "pktstun"]
ADDRESS = {"ip": str(ELSEWHERE.ip), "port": ELSEWHERE.port}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PKTSTUN_PASSWORD"}
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=env | environment,
    )


def answer(*arguments: str, **environment: str) -> dict[str, object]:
    result = run(*arguments, "--json", "--timeout", "5", **environment)
    assert result.returncode == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_the_fields_of_an_answer() -> None:
    with server(elsewhere) as at:
        found = answer("query", str(at))
        plain = run("query", f"stun:{at}")
    assert plain.stdout == f"{ELSEWHERE}\n"
    assert found.pop("local") != ADDRESS
    assert isinstance(found.pop("round_trip_ms"), float)
    assert found == {
        "mapped": ADDRESS,
        "server": {"ip": "127.0.0.1", "port": at.port},
        "requests": 1,
        "software": None,
        "fingerprint": False,
        "transport": "udp",
        "tls": None,
        "integrity": None,
        "realm": None,
        "redirected_by": [],
    }


def test_tcp_and_tls() -> None:
    with stream_server(elsewhere) as at:
        assert answer("query", f"stun:{at}", "--tcp")["transport"] == "tcp"
    with stream_server(elsewhere, tls=True) as at:
        for arguments in ([f"stuns:{at}"], [str(at), "--tls"]):
            trusted = answer("query", *arguments, "--ca", str(AUTHORITY))
            assert trusted["transport"] == "tls"
            assert str(trusted["tls"]).startswith("TLSv1.")
        result = run("query", f"stuns:{at}")
        assert (result.returncode, result.stdout) == (1, "")
        assert "--ca FILE" in result.stderr
        result = run("query", f"stuns:{at}", "--insecure")
        assert result.stdout == f"{ELSEWHERE}\n"
        assert "warning: --insecure" in result.stderr


def test_passwords_come_from_three_places(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("secret\nmore\n")
    with server(LongTerm("user", "secret")) as at:
        for arguments, environment in (
            (["--password", "secret"], {"PKTSTUN_PASSWORD": "wrong"}),
            (["--password-file", str(file)], {"PKTSTUN_PASSWORD": "wrong"}),
            ([], {"PKTSTUN_PASSWORD": "secret"}),
        ):
            found = answer("query", str(at), "--username", "user", *arguments, **environment)
            assert found["integrity"] == "MESSAGE-INTEGRITY"
            assert found["realm"] == "example.org"
        result = run("query", str(at), "--username", "user", "--password", "wrong")
        assert result.returncode == 1
        assert "refuses username or password" in result.stderr
        assert "wrong" not in result.stderr


def test_short_term_credentials() -> None:
    with server(ShortTerm("user", "secret")) as at:
        credentials = ["--username", "user", "--short-term"]
        found = answer("query", str(at), *credentials, PKTSTUN_PASSWORD="secret")
    assert found["integrity"] == "MESSAGE-INTEGRITY-SHA256"


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["query", "stuns:127.0.0.1", "--tcp"], "--tcp goes with stun:"),
        (["query", "127.0.0.1", "--ca", "x"], "--tls"),
        (["query", "127.0.0.1", "--insecure"], "--tls"),
        (["query", "127.0.0.1", "--tls", "--insecure", "--ca", "x"], "--insecure"),
        (["query", "127.0.0.1", "--tls", "--ca", "/nowhere"], "/nowhere"),
        (["query", "127.0.0.1", "--password", "x"], "--username"),
        (["query", "127.0.0.1", "--short-term"], "--username"),
        (["query", "127.0.0.1", "--username", "x"], "PKTSTUN_PASSWORD"),
        (["query", "::1", "--username", "x", "--password-file", "/nowhere"], "/nowhere"),
        (["query", "::1", "--username", "\t", "--password", "x", "--short-term"], "--username"),
        (["query", "stun://127.0.0.1"], "no //"),
        (["nat", "stuns:127.0.0.1"], "stun:"),
        (["monitor", "stuns:127.0.0.1"], "stun:"),
    ],
)
def test_wrong_usage_in_one_line(arguments: list[str], fix: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("pktstun: ")
    assert fix in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("query", "::1", "--tcp", "--tls"),
        ("query", "::1", "--password", "a", "--password-file", "b"),
        ("nat",),
        ("nat", "::1", "--lifetime", "0"),
        ("monitor", "::1", "--interval", "0.1"),
        ("monitor", "::1", "--count", "0"),
        ("monitor", "::1", "--duration", "inf"),
        ("monitor", "::1", "--duration", "-1"),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: pktstun" in result.stderr
    assert "Traceback" not in result.stderr


# --- nat ---


def test_nat_without_a_nat() -> None:
    with NatDiscovery(("127.0.0.1", "127.0.0.2")) as at:
        result = run("nat", str(at), "--rto", "0.1")
        machine = json.loads(run("nat", str(at), "--rto", "0.1", "--json").stdout)
    assert result.returncode == 0
    assert "NAT          no\n" in result.stdout
    assert result.stdout.endswith("peers reach this host directly.\n")
    assert machine["nat"] is False
    assert machine["mapping"] == machine["filtering"] == "endpoint-independent"
    assert machine["summary"] in result.stdout


def test_nat_says_what_a_server_cannot() -> None:
    with server(elsewhere) as at:
        result = run("nat", str(at), "--rto", "0.1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "does not support RFC 5780" in result.stderr
    with NatDiscovery(("127.0.0.1", "127.0.0.2"), changes=False) as at:
        result = run("nat", str(at), "--rto", "0.1")
    assert result.returncode == 1
    assert "filtering    cannot be told" in result.stdout


# --- monitor ---


def test_monitor_for_people() -> None:
    def handler(request: Message, number: int) -> list[bytes]:
        return [] if number == 2 else elsewhere(request, number)

    with server(handler) as at:
        options = ["--interval", "0.2", "--timeout", "0.3", "--count", "3"]
        result = run("monitor", str(at), *options)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{ELSEWHERE} seq=1 time=")
    assert "seq=2 no answer in 0.3 s" in lines
    assert lines[-2] == (f"{at}: 3 sent, 2 received, 33.3% lost, mapped address changed 0 times")
    assert lines[-1].startswith("latency min/median/p99/max = ")


def test_monitor_for_machines() -> None:
    with server(elsewhere) as at:
        result = run("monitor", str(at), "--interval", "0.2", "--duration", "0.3", "--json")
    first, second, last = map(json.loads, result.stdout.splitlines())
    assert (first["seq"], second["seq"]) == (1, 2)
    assert first["mapped"] == ADDRESS
    assert first["latency_ms"] > 0
    summary = last["summary"]
    assert (summary["sent"], summary["received"], summary["loss"], summary["changes"]) == (
        2,
        2,
        0,
        0,
    )
    latency = summary["latency_ms"]
    assert latency["min"] <= latency["median"] <= latency["p99"] <= latency["max"]


def test_monitor_without_an_answer_is_status_1() -> None:
    with server(elsewhere) as at:
        pass
    result = run("monitor", str(at), "--count", "1")
    assert result.returncode == 1
    assert "seq=1 Connection refused" in result.stdout
    assert "1 sent, 0 received, 100.0% lost" in result.stdout


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_monitor_ends_with_a_summary_at_ctrl_c(option: list[str]) -> None:
    with server(elsewhere) as at:
        command = [*COMMAND, "monitor", str(at), "--interval", "60", *option]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert ELSEWHERE.ip.exploded in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait(10) == 0
    assert ("1 sent, 1 received" in rest) or ('"sent": 1' in rest)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with server(lambda request, _: [request.success(XorMappedAddress(ELSEWHERE)).encode()]) as at:
        command = [*COMMAND, "monitor", str(at), "--interval", "0.2"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.wait(10) == 128 + signal.SIGPIPE
            assert process.stderr.read() == ""
