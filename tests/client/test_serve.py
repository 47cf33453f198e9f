"""`pktstun query` and `pktstun serve`: TCP, TLS, credentials, and redirections."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.client.servers import AUTHORITY, CERTIFICATES
from tests.netns.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import TwoHosts

pytestmark = pytest.mark.root

KINDS = {
    "short-term": ["--auth", "short-term"],
    "long-term": ["--auth", "long-term", "--realm", "example.org"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_query_and_serve_agree_about_credentials(
    hosts: TwoHosts, tmp_path: Path, kind: str
) -> None:
    users = tmp_path / "users"
    users.write_text("ada:countess of lovelace\n")
    users.chmod(0o600)
    tmp_path.chmod(0o700)

    def ask(password: str, *more: str) -> Any:
        option = ["--short-term"] if kind == "short-term" else []
        command = [sys.executable, "-m", "pktstun", "query", hosts.server_ipv4[0], *option, *more]
        credentials = ["--username", "ada", "--password", password, "--timeout", "2", "--json"]
        return hosts.client.run([*command, *credentials])

    options = ["--mode", "recvmmsg", "--listen", hosts.server_ipv4[0], *KINDS[kind]]
    with Server(hosts.server, [*options, "--users", str(users)]):
        result = ask("countess of lovelace")
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["mapped"] == answer["local"]
        assert answer["integrity"] == "MESSAGE-INTEGRITY-SHA256"
        assert answer["realm"] == (None if kind == "short-term" else "example.org")
        refused = ask("wrong", "--timeout", "0.5")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "401" in refused.stderr


def test_query_goes_where_serve_sends_it(hosts: TwoHosts) -> None:
    first, second = hosts.server_ipv4[:2]
    mode = ["--mode", "recvmmsg", "--listen"]
    with (
        Server(hosts.server, [*mode, first, "--alternate-server", second]),
        Server(hosts.server, [*mode, second]),
    ):
        command = [sys.executable, "-m", "pktstun", "query", first, "--timeout", "5", "--json"]
        answer = json.loads(hosts.client.run(command, check=True).stdout)
    assert answer["server"] == {"ip": second, "port": 3478}
    assert answer["redirected_by"] == [{"ip": first, "port": 3478}]
    assert answer["mapped"] == answer["local"]


def test_query_follows_serve_to_a_server_with_another_certificate(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    first, second = hosts.server_ipv4[:2]
    authority = trustme.CA()
    files = []
    for identity in (first, "b.example.org"):
        files.append(tmp_path / identity)
        issued = authority.issue_cert(identity)
        issued.private_key_and_cert_chain_pem.write_to_path(str(files[-1]))
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))

    common = ["--mode", "recvmmsg", "--tls", "--listen"]
    sending_on = ["--alternate-server", second, "--alternate-domain", "b.example.org"]
    certificates = [["--tls-certificate", str(each)] for each in files]
    with (
        Server(hosts.server, [*common, first, *certificates[0], *sending_on]),
        Server(hosts.server, [*common, second, *certificates[1]]),
    ):
        command = [sys.executable, "-m", "pktstun", "query", first, "--tls", "--json"]
        trust = ["--ca", str(tmp_path / "ca")]
        answer = json.loads(hosts.client.run([*command, *trust], check=True).stdout)
    assert answer["server"] == {"ip": second, "port": 5349}
    assert answer["mapped"] == answer["local"]


def test_query_and_serve_agree_about_tcp_and_tls(hosts: TwoHosts) -> None:
    address = hosts.server_ipv4[0]
    certificate = str(CERTIFICATES / "server.pem")
    options = ["--mode", "recvmmsg", "--listen", address, "--tcp", "--tls"]
    ways = {"tcp": ["--tcp"], "tls": ["--tls", "--insecure"]}
    with Server(hosts.server, [*options, "--tls-certificate", certificate]):
        for transport, words in ways.items():
            command = [sys.executable, "-m", "pktstun", "query", address, *words, "--json"]
            answer = json.loads(hosts.client.run(command, check=True).stdout)
            assert answer["transport"] == transport
            assert answer["mapped"] == answer["local"]
        # The certificate is for another address.
        command = [sys.executable, "-m", "pktstun", "query", address, "--tls"]
        refused = hosts.client.run([*command, "--ca", str(AUTHORITY)])
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "IP address mismatch" in refused.stderr
