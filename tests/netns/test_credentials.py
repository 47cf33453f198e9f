"""`serve --auth` over real sockets: with aioice as the client, and with the codec where it lacks.

aioice knows RFC 5389: MESSAGE-INTEGRITY, and keys by MD5. What RFC 8489 has added is asked for with
the codec, and checked to the byte elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import select
import signal
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from aioice import stun as aioice
from aioice.turn import TurnClientUdpProtocol

from pktstun.kernel import Datagram, UDPSocket
from pktstun.stun import (
    Attribute,
    Message,
    MessageIntegrity,
    MessageIntegritySha256,
    Nonce,
    PasswordAlgorithmNumber,
    PasswordAlgorithms,
    Realm,
    TransportAddress,
    UserHash,
    long_term_key,
)
from tests.faults.scorecard import modes
from tests.faults.test_reload import REFUSED, REPLACED, reload
from tests.faults.test_upgrade import Installation
from tests.lab import require_root, wait_until
from tests.netns.client import on_cpu
from tests.netns.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import TwoHosts

pytestmark = pytest.mark.root

REALM = "example.org"
NAME, PASSWORD = "ada", "countess of lovelace"
SHA_256 = PasswordAlgorithmNumber.SHA_256
CPUS = sorted(os.sched_getaffinity(0))
TIMEOUT = 5.0


@pytest.fixture(name="mode", params=modes("ring", "direct", "recvmmsg"))
def mode_fixture(request: pytest.FixtureRequest) -> str:
    require_root()
    return str(request.param)


@pytest.fixture(name="users")
def users_fixture(tmp_path: Path) -> Path:
    file = tmp_path / "users"
    write_users(file, f"{NAME}:{PASSWORD}")
    return file


def write_users(file: Path, *lines: str) -> None:
    file.touch(mode=0o600)
    file.write_text("".join(f"{line}\n" for line in lines))


def arguments(hosts: TwoHosts, mode: str, users: Path, *more: str, auth: str) -> list[str]:
    realm = ["--realm", REALM] if auth == "long-term" else []
    common = ["--iface", hosts.server_if, "--mode", mode, "--auth", auth, "--users", str(users)]
    return [*common, *realm, *more]


def ends(hosts: TwoHosts) -> list[tuple[str, str]]:
    """Return (client, server) of each family."""
    return [
        (hosts.client_ipv4[0], hosts.server_ipv4[0]),
        (hosts.client_ipv6[0], hosts.server_ipv6[0]),
    ]


# --- aioice ---


class Client(TurnClientUdpProtocol):
    """What TURN's client does about a 401 and a 438, for Binding requests."""

    async def binding(self, key: bytes | None = None) -> tuple[str, int]:
        """Return the mapped address; a key stands for short-term credentials."""
        request = aioice.Message(aioice.Method.BINDING, aioice.Class.REQUEST)
        if key is None:
            response, _ = await self.request_with_retry(request)
        else:
            request.attributes["USERNAME"] = self.username
            request.add_message_integrity(key)
            transaction = aioice.Transaction(request, self.server, self, retransmissions=3)
            self.transactions[request.transaction_id] = transaction
            response, _ = await transaction.run()
            assert response.check_message_integrity(key)
        mapped: tuple[str, int] = response.attributes["XOR-MAPPED-ADDRESS"]
        assert mapped == self.transport.get_extra_info("sockname")[:2]
        return mapped


def with_aioice(
    hosts: TwoHosts,
    end: tuple[str, str],
    *keys: bytes | None,
    username: str = NAME,
    password: str = PASSWORD,
) -> None:
    """Ask once for each key; raises TransactionFailed where the server refuses."""
    client, server = end

    async def run() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: Client((server, 3478), username, password, 600, 500),
            local_addr=(client, 0),
            remote_addr=(server, 3478),
        )
        try:
            for key in keys or (None,):
                await asyncio.wait_for(protocol.binding(key), TIMEOUT)
        finally:
            transport.close()

    with hosts.client.enter():
        asyncio.run(run())


def refused_to_aioice(hosts: TwoHosts, *keys: bytes | None, **credentials: str) -> int:
    """Return the code of the error that the server refuses with."""
    with pytest.raises(aioice.TransactionFailed) as caught:
        with_aioice(hosts, ends(hosts)[0], *keys, **credentials)
    response = caught.value.response
    assert "MESSAGE-INTEGRITY" not in response.attributes
    assert response.error_code is not None
    return response.error_code


def test_aioice_with_short_term_credentials(hosts: TwoHosts, users: Path, mode: str) -> None:
    with Server(hosts.server, arguments(hosts, mode, users, auth="short-term")) as server:
        assert " auth=short-term " in server.ready
        for end in ends(hosts):
            with_aioice(hosts, end, PASSWORD.encode())
        assert refused_to_aioice(hosts, b"guess") == 401
        assert refused_to_aioice(hosts, PASSWORD.encode(), username="eve") == 401
        assert refused_to_aioice(hosts, username="eve") == 400  # without any


def test_aioice_with_long_term_credentials(hosts: TwoHosts, users: Path, mode: str) -> None:
    """A 401 with a nonce, then success, then at once; a wrong password gets a second 401."""
    with Server(hosts.server, arguments(hosts, mode, users, auth="long-term")) as server:
        assert " auth=long-term " in server.ready
        for end in ends(hosts):
            with_aioice(hosts, end, None, None)
        assert server.totals()["answered"] == 2 * 3
        assert refused_to_aioice(hosts, password="guess") == 401
        assert refused_to_aioice(hosts, username="eve") == 401


# --- The codec ---


class Asker:
    """A socket, and what it has learnt of the server; a context manager."""

    def __init__(self, hosts: TwoHosts, end: tuple[str, str] | None = None) -> None:
        client, server = end or ends(hosts)[0]
        with hosts.client.enter():
            self._socket = UDPSocket(TransportAddress(ip_address(client), 0), share=False)
        self._server = TransportAddress(ip_address(server), 3478)
        self.nonce: Nonce | None = None
        self.offered: PasswordAlgorithms | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def send(self, *requests: Message, patience: float = TIMEOUT) -> list[Message]:
        """Return the responses that come within so many seconds."""
        for request in requests:
            assert self._socket.sendmmsg([Datagram(request.encode(), self._server)]) == 1
        found: list[Message] = []
        end = time.monotonic() + patience
        while len(found) < len(requests) and (left := end - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                found += [Message.decode(data) for data, _ in self._socket.recvmmsg(128)]
        return found

    def learn(self) -> None:
        """Ask without credentials."""
        (refused,) = self.send(Message.request())
        assert refused.error is not None
        assert refused.error.code == 401
        self.nonce, self.offered = refused.get(Nonce), refused.get(PasswordAlgorithms)

    def ask(self, password: str = PASSWORD, *, name: str = NAME) -> int:
        """Return the error of the response to a signed request, 0 where it is right."""
        assert self.nonce is not None
        assert self.offered is not None
        key = long_term_key(name, REALM, password, SHA_256)
        parts: list[Attribute] = [UserHash.of(name, REALM), Realm(REALM), self.nonce]
        request = Message.request(*parts, self.offered, self.offered.algorithms[0])
        (response,) = self.send(request.with_message_integrity_sha256(key))
        assert response.transaction_id == request.transaction_id
        if response.error is not None:
            # A true client takes the new nonce.
            self.nonce = response.get(Nonce) or self.nonce
            return response.error.code
        assert response.mapped_address == self._socket.address
        assert response.check_message_integrity(key)
        assert response.get(MessageIntegrity) is None
        assert response.get(MessageIntegritySha256) is not None
        return 0


def test_what_rfc_8489_has_added(hosts: TwoHosts, users: Path, mode: str) -> None:
    """SHA-256, USERHASH, a nonce that is another's; every worker takes every worker's nonces."""
    with Server(hosts.server, arguments(hosts, mode, users, auth="long-term")):
        for end in ends(hosts):
            with Asker(hosts, end) as one, Asker(hosts, end) as other:
                one.learn()
                other.learn()
                assert one.nonce != other.nonce
                for cpu in CPUS:
                    with on_cpu(cpu):
                        assert one.ask() == 0
                assert one.ask("guess") == 401
                one.nonce = other.nonce
                assert one.ask() == 438
                assert one.ask() == 0


def test_a_burst_is_answered(hosts: TwoHosts, users: Path, mode: str) -> None:
    """Python may take all of the time, and what waits for it is not dropped."""
    with (
        Server(hosts.server, arguments(hosts, mode, users, auth="short-term")) as server,
        Asker(hosts) as asker,
    ):
        for _ in range(5):
            requests = [Message.request() for _ in range(100)]
            responses = asker.send(*requests)
            assert {each.transaction_id for each in requests} == {
                each.transaction_id for each in responses
            }
        totals = server.totals()
        assert totals["answered"] == totals["handovers"] == 500
        assert "dropped.over_budget" not in totals


def test_a_nonce_grows_old(hosts: TwoHosts, users: Path) -> None:
    more = ["--nonce-lifetime", "1"]
    with (
        Server(hosts.server, arguments(hosts, "recvmmsg", users, *more, auth="long-term")),
        Asker(hosts) as asker,
    ):
        asker.learn()
        assert asker.ask() == 0
        wait_until(lambda: asker.ask() == 438, "the nonce is stale")
        assert asker.ask() == 0


def test_replies_count_against_the_rate_limit(hosts: TwoHosts, users: Path) -> None:
    more = ["--rate-limit", "10", "--rate-limit-share", "0"]
    called = arguments(hosts, "recvmmsg", users, *more, auth="long-term")
    with (
        Server(hosts.server, called) as server,
        Asker(hosts) as asker,
    ):
        asker.send(*(Message.request() for _ in range(100)), patience=1.0)
        totals = server.wait_for(100)
        assert totals["answered"] + totals["dropped.rate_limited"] == 100
        assert 0 < totals["answered"] < 50


# --- Another users file ---


def test_a_reload_reads_the_users_anew(hosts: TwoHosts, users: Path, mode: str) -> None:
    with (
        Server(hosts.server, arguments(hosts, mode, users, auth="long-term")) as server,
        Asker(hosts) as asker,
    ):
        asker.learn()
        write_users(users, "bob:builder")
        reload(server, REPLACED)
        # The nonce is as good as before.
        assert asker.ask("builder", name="bob") == 0
        assert asker.ask() == 401
        write_users(users, "bob")
        reload(server, REFUSED)
        assert f"{users}:1: write NAME:PASSWORD" in server.log
        users.chmod(0o644)
        reload(server, REFUSED)
        assert f"'chmod o= {users}'" in server.log
        assert asker.ask("builder", name="bob") == 0


def test_nonces_outlive_workers_and_versions(hosts: TwoHosts, users: Path, tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    called = arguments(hosts, "recvmmsg", users, auth="long-term")
    with (
        Server(hosts.server, called, under=installation.under) as server,
        Asker(hosts) as asker,
    ):
        asker.learn()
        before = server.worker_pids()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: not set(before.values()) & set(server.worker_pids().values()), "new workers"
        )
        assert asker.ask() == 0
        assert server.process.stdout is not None
        for version in ("8.0.0", "8.0.1"):
            installation.install(version)
            server.process.send_signal(signal.SIGUSR2)
            assert f"pktstun {version} ready" in server.process.stdout.readline()
            assert asker.ask() == 0
        # What is wrong with the file by then is no reason to end.
        users.write_text("no users\n")
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: "upgrade refused" in server.log, "the refusal", 20)
        assert asker.ask() == 0


@pytest.fixture(name="directory")
def directory_fixture() -> Iterator[Path]:
    """A directory that everybody may read."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def test_a_file_that_only_root_can_read(hosts: TwoHosts, directory: Path) -> None:
    """Read at the start, and not again: the log says why, and what to do."""
    users = directory / "users"
    write_users(users, f"{NAME}:{PASSWORD}")
    more = ["--user", "nobody"]
    with (
        Server(hosts.server, arguments(hosts, "ring", users, *more, auth="long-term")) as server,
        Asker(hosts) as asker,
    ):
        asker.learn()
        reload(server, REFUSED)
        assert f"Permission denied for nobody, who the service is: 'chown nobody {users}'" in (
            server.log
        )
        assert asker.ask() == 0
        os.chown(users, pwd.getpwnam("nobody").pw_uid, -1)
        reload(server, REPLACED)
        assert asker.ask() == 0


# --- Secrets ---


def test_no_secret_is_told(hosts: TwoHosts, users: Path) -> None:
    key = long_term_key(NAME, REALM, PASSWORD)
    called = arguments(hosts, "recvmmsg", users, "--log-level", "debug", auth="long-term")
    with (
        Server(hosts.server, called) as server,
        Asker(hosts) as asker,
    ):
        asker.learn()
        assert asker.ask() == 0
        reload(server, REPLACED)
        said = server.ready + server.log
        for pid in (server.process.pid, *server.worker_pids().values()):
            for name in ("cmdline", "environ"):
                said += Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    assert "LongTerm" in said  # the options are in the log, at that level
    for secret in (PASSWORD, key.hex(), repr(key)):
        assert secret not in said
