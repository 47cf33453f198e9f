"""`pktstun query` and the DNS: a real DNS server, in a namespace where there is nothing else."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.client.servers import (
    AUTHORITY,
    ELSEWHERE,
    elsewhere,
    server,
    stream_server,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab import Lab, Namespace

pytestmark = pytest.mark.root

# The resolver's configuration is a file of the host: the command sees another one in its place.
_WITH_RESOLVER = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
Records = dict[tuple[str, str], list[str]]


@contextlib.contextmanager
def dns_server(namespace: Namespace, records: Records) -> Iterator[None]:
    """Answer on 127.0.0.1:53 what the records say, {(name, type): values}, and no other name.

    No values are a failure of the server.
    """
    sock = namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 53))
    names = {name for name, _ in records}

    def serve() -> None:
        while True:
            data, peer = sock.recvfrom(4096)
            if not data:
                return
            asked = dns.message.from_wire(data)
            (question,) = asked.question
            name, kind = question.name.to_text(omit_final_dot=True), question.rdtype
            reply = dns.message.make_response(asked)
            values = records.get((name, dns.rdatatype.to_text(kind)))
            if values == []:
                reply.set_rcode(dns.rcode.SERVFAIL)
            elif values:
                reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *values))
            elif name not in names:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            sock.sendto(reply.to_wire(), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", 53))
        thread.join()
        sock.close()


@pytest.fixture
def alone(lab: Lab) -> Namespace:
    return lab.namespace("alone")


def ask(namespace: Namespace, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    configuration = directory / "resolv.conf"
    configuration.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    command = ["unshare", "--mount", "sh", "-c", _WITH_RESOLVER, str(configuration)]
    query = [sys.executable, "-m", "pktstun", "query", *arguments, "--timeout", "0.5"]
    return namespace.run([*command, *query])


def test_srv_records_lead_to_the_server(alone: Namespace, tmp_path: Path) -> None:
    with (
        alone.enter(),
        server(elsewhere) as udp,
        server(lambda _request, _number: []) as silent,
        stream_server(elsewhere) as tcp,
        stream_server(elsewhere, tls=True) as tls,
    ):
        records: Records = {
            ("_stun._udp.example.org", "SRV"): [
                f"2 0 {udp.port} host.example.net.",
                f"1 0 {silent.port} host.example.net.",
            ],
            ("_stun._tcp.example.org", "SRV"): [f"0 0 {tcp.port} host.example.net."],
            ("_stuns._tcp.stun.example.org", "SRV"): [f"0 0 {tls.port} host.example.net."],
            ("_stun._udp.none.example.org", "SRV"): ["0 0 0 ."],
            ("host.example.net", "A"): ["127.0.0.1"],
        }
        with dns_server(alone, records):
            # The one with the better priority is silent: the next is asked.
            asked = ["stun:example.org", "--json"]
            answer = json.loads(ask(alone, tmp_path, *asked).stdout)
            assert answer["server"] == {"ip": "127.0.0.1", "port": udp.port}
            for arguments, port in (
                (["example.org", "--srv", "--tcp"], tcp.port),
                # The certificate has the name that was asked for, and not the SRV target's.
                (["stuns:stun.example.org", "--ca", str(AUTHORITY)], tls.port),
            ):
                result = ask(alone, tmp_path, *arguments, "--json")
                assert result.returncode == 0, result.stderr
                answer = json.loads(result.stdout)
                assert answer["mapped"] == {"ip": str(ELSEWHERE.ip), "port": ELSEWHERE.port}
                assert answer["server"]["port"] == port
            result = ask(alone, tmp_path, "stun:none.example.org")
            assert (result.returncode, result.stdout) == (1, "")
            assert "no such service" in result.stderr


def test_without_srv_records_the_name_is_the_server(alone: Namespace, tmp_path: Path) -> None:
    records: Records = {("example.org", "A"): ["127.0.0.1"]}
    with alone.enter(), server(elsewhere) as udp, dns_server(alone, records):
        result = ask(alone, tmp_path, f"stun:example.org:{udp.port}")
        assert result.stdout == f"{ELSEWHERE}\n"
        # At its default port, where nobody is.
        result = ask(alone, tmp_path, "stun:example.org")
        assert "127.0.0.1:3478: Connection refused" in result.stderr
        result = ask(alone, tmp_path, "nobody.example.org", "--srv")
        assert "cannot resolve" in result.stderr


def test_a_dns_server_that_does_not_know(alone: Namespace, tmp_path: Path) -> None:
    with dns_server(alone, {("_stun._udp.example.org", "SRV"): []}):
        result = ask(alone, tmp_path, "stun:example.org")
    assert (result.returncode, result.stdout) == (1, "")
    assert "cannot look up _stun._udp.example.org" in result.stderr
