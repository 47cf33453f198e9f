"""TCP and TLS of a real service: beside UDP, over reloads and upgrades, against slow clients."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from pktstun.errors import ConfigError
from pktstun.stun import AttributeType, Message, RawAttribute, Username, short_term_key
from tests.faults.test_reload import REFUSED, REPLACED, reload
from tests.faults.test_stopping import exists
from tests.faults.test_upgrade import Installation
from tests.lab import require_root, wait_until
from tests.netns.client import ask
from tests.netns.server import Server
from tests.netns.test_privileges import (
    USER,
    directory_fixture,  # noqa: F401 - a fixture, found by name
    is_users,
    status,
)
from tests.stream_client import (
    NAME,
    Authority,
    StreamClient,
    certificate_of,
)

if TYPE_CHECKING:
    from tests.lab import Lab, TwoHosts

pytestmark = pytest.mark.root

STARTED = re.compile(r"stream worker started \(pid (\d+)\)")
STATS = re.compile(r"INFO stream worker: (received=.*)")
LINGERS = "serves its open connections to their end"
TLS_PORT = 5349


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


def connect(
    hosts: TwoHosts,
    *,
    tls: ssl.SSLContext | None = None,
    server: str | None = None,
    port: int | None = None,
    source: str | None = None,
) -> StreamClient:
    address = server or hosts.server_ipv4[0]
    with hosts.client.enter():
        return StreamClient.connect(
            (address, port or (TLS_PORT if tls else 3478)), source=source, tls=tls
        )


def stream_worker(server: Server) -> int:
    """Return the process id of the youngest."""
    return int(STARTED.findall(server.log)[-1])


def is_another(server: Server, pid: int) -> bool:
    return stream_worker(server) != pid


def has_seen(server: Server, what: str, count: int) -> bool:
    return len(re.findall(what, server.log)) >= count


def sockets(pid: int) -> set[str]:
    """Return the names of a process's open sockets, as the kernel numbers them."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closed this very moment
            found.add(str(each.readlink()))
    return {name for name in found if name.startswith("socket:")}


def counters(server: Server) -> dict[str, int]:
    """Return the stream worker's counters."""
    seen = len(STATS.findall(server.log))
    server.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: len(STATS.findall(server.log)) > seen, "the counters")
    words = STATS.findall(server.log)[-1].split()
    return {key: int(value) for key, value in (word.split("=") for word in words)}


def udp_is_served(hosts: TwoHosts, count: int = 20) -> bool:
    result = ask(hosts.client, hosts.client_ipv4[0], hosts.server_ipv4[0], count)
    return (result.lost, result.duplicates, result.wrong) == (0, 0, [])


# --- Beside UDP ---


@pytest.mark.parametrize("mode", ["ring", "direct", "recvmmsg"])
def test_every_address_is_served_over_every_transport(
    hosts: TwoHosts, authority: Authority, mode: str
) -> None:
    arguments = ["--iface", hosts.server_if, "--mode", mode, "--tcp", *authority.arguments]
    with Server(hosts.server, arguments) as server:
        assert " tcp=0.0.0.0:3478,[::]:3478 tls=0.0.0.0:5349,[::]:5349" in server.ready
        for address in (*hosts.server_ipv4, *hosts.server_ipv6):
            with connect(hosts, server=address) as client:
                client.ask()
                client.ask(Message.request(), Message.request())
            with connect(hosts, server=address, tls=authority.context()) as client:
                client.ask()
        assert udp_is_served(hosts)
        found = counters(server)
        assert found["received"] == found["answered"] == found["sent"] == 20
        assert found["connections"] == 10
        assert server.totals()["answered"] == 20
        assert server.stop() == 0
        assert server.warnings == []


def test_only_what_is_served_over_udp_is_served(lab: Lab, hosts: TwoHosts) -> None:
    """With an interface its addresses, though the sockets are bound to the wildcards."""
    lab.veth(hosts.server, "w0", hosts.client, "w1")
    lab.address(hosts.server, "w0", "10.88.0.1/24")
    lab.address(hosts.client, "w1", "10.88.0.2/24")
    with Server(hosts.server, ["--iface", hosts.server_if, "--tcp"]) as server:
        with connect(hosts, server="10.88.0.1") as client:
            assert client.is_closed()
        with connect(hosts) as client:
            client.ask()
        assert counters(server)["connections_refused"] == 1
        # What comes to be served is served, and what is named is, too.
        lab.address(hosts.server, hosts.server_if, "10.77.0.9/24")
        wait_until(lambda: REPLACED in server.log, "the change")
        with connect(hosts, server="10.77.0.9") as client:
            client.ask()
    with (
        Server(hosts.server, ["--listen", "10.88.0.1:4000", "--tcp"]),
        connect(hosts, server="10.88.0.1", port=4000) as client,
    ):
        client.ask()


def test_credentials_are_asked_for_here_as_well(
    hosts: TwoHosts, authority: Authority, tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.touch(mode=0o600)
    users.write_text("ada:secret\n")
    arguments = ["--auth", "short-term", "--users", str(users), "--tcp", *authority.arguments]
    key = short_term_key("secret")
    signed = Message.request(Username("ada")).with_message_integrity(key)
    with Server(hosts.server, arguments):
        for context in (None, authority.context()):
            with connect(hosts, tls=context) as client:
                client.send(Message.request(), signed)
                error = Message.decode(client.receive() or b"").error
                assert error is not None
                reply = Message.decode(client.receive() or b"")
                assert reply.check_message_integrity(key)
                assert reply.mapped_address == client.local


@pytest.mark.peers
def test_openssl_s_client(hosts: TwoHosts, authority: Authority) -> None:
    ca = authority.directory / "ca.pem"
    authority.ca.cert_pem.write_to_path(ca)
    request = Message.request().encode()
    with Server(hosts.server, authority.arguments):
        for address, version in (
            (hosts.server_ipv4[0], "-tls1_2"),
            (f"[{hosts.server_ipv6[0]}]", "-tls1_3"),
        ):
            command = [
                *("openssl", "s_client", "-connect", f"{address}:{TLS_PORT}", version),
                *("-CAfile", str(ca), "-verify_return_error", "-servername", NAME),
                *("-verify_hostname", NAME, "-alpn", "stun.nat-discovery", "-quiet"),
            ]
            with hosts.client.popen(command, stdin=subprocess.PIPE) as peer:
                assert peer.stdin is not None
                assert peer.stdout is not None
                os.write(peer.stdin.fileno(), request)
                reply = Message.decode(os.read(peer.stdout.fileno(), 4096))
                peer.kill()
            assert reply.transaction_id == request[8:20]
            assert reply.mapped_address is not None
            assert str(reply.mapped_address.ip) in (*hosts.client_ipv4, *hosts.client_ipv6)


def test_what_the_process_may_do(hosts: TwoHosts, directory: Path) -> None:
    """No privilege, no priority, and no CPU of its own."""
    authority = Authority(trustme.CA(), directory)
    authority.issue()
    for file in (authority.chain, authority.key):
        file.chmod(0o644)
    arguments = ["--iface", hosts.server_if, "--user", USER, "--tcp", *authority.arguments]
    with Server(hosts.server, arguments) as server:
        for _ in range(2):
            pid = stream_worker(server)
            process = status(pid)
            for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
                assert int(process[f"Cap{kind}"], 16) == 0
            assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
            assert is_users(process)
            assert os.getpriority(os.PRIO_PROCESS, pid) == 0
            assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
            with connect(hosts, tls=authority.context()) as client:
                client.ask()
            # Of the packet workers' sockets it has none: nothing of UDP and no ring is open in it.
            others = {each for of in server.worker_pids().values() for each in sockets(of)}
            assert others.isdisjoint(sockets(pid))
            reload(server, REPLACED)


# --- What cannot be ---


def refused(hosts: TwoHosts, *arguments: str) -> tuple[int, str]:
    result = hosts.server.run([sys.executable, "-m", "pktstun", "serve", *arguments], timeout=30)
    assert result.stdout == ""
    assert result.stderr.strip().count("\n") == 0, result.stderr
    return result.returncode, result.stderr


def test_a_port_in_use(hosts: TwoHosts, authority: Authority) -> None:
    for port, option, flag in ((3478, "--port", "--tcp"), (TLS_PORT, "--tls-port", "--tls")):
        arguments = ["--tcp"] if flag == "--tcp" else authority.arguments
        with hosts.server.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("0.0.0.0", port))
            other.listen()
            code, said = refused(hosts, *arguments)
            assert code == 1
            assert f"TCP port {port} on 0.0.0.0 is in use" in said
            assert "ss -ltnp" in said
            assert option in said


def test_certificates_that_are_of_no_use(
    hosts: TwoHosts, authority: Authority, directory: Path
) -> None:
    code, said = refused(hosts, "--tls", "--tls-certificate", "/nowhere")
    assert code == ConfigError.exit_status
    assert "--tls-certificate: cannot read /nowhere: No such file" in said
    private = directory / "key.pem"
    private.write_bytes(authority.key.read_bytes())
    private.chmod(0o600)
    public = directory / "chain.pem"
    public.write_bytes(authority.chain.read_bytes())
    public.chmod(0o644)
    code, said = refused(
        hosts,
        *("--user", USER, "--tls", "--tls-certificate", str(public), "--tls-key", str(private)),
    )
    assert code == ConfigError.exit_status
    assert f"Permission denied: {USER} must be able to read it" in said


# --- Odd clients, slow ones, and many ---


def test_odd_clients_end_nothing_but_their_connections(
    lab: Lab, hosts: TwoHosts, authority: Authority
) -> None:
    """The process may make few system calls, and these take it to its odder places."""
    lab.address(hosts.server, hosts.server_if, "fe80::99/64")
    lab.address(hosts.client, hosts.client_if, "fe80::100/64")
    context = authority.context()
    old = authority.context()
    old.set_ciphers("AES128-SHA:@SECLEVEL=0")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    stranger = ssl.create_default_context()
    reset = struct.pack("ii", 1, 0)
    with Server(hosts.server, ["--tcp", *authority.arguments]) as server:
        pid = stream_worker(server)
        for port in (3478, TLS_PORT):
            for data in (b"", b"\0", b"\x16\x03", b"GET / HTTP/1.0\r\n\r\n", os.urandom(5000)):
                with connect(hosts, port=port) as client:
                    client.sock.sendall(data)
                with connect(hosts, port=port) as client:
                    client.sock.sendall(data)
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        for each in (old, stranger):
            with pytest.raises(ssl.SSLError):
                connect(hosts, tls=each)
        with connect(hosts, tls=context) as client:
            client.ask()
            client.sock.shutdown(socket.SHUT_RDWR)
        with connect(hosts) as client:
            client.send(Message.request(RawAttribute(AttributeType(0x7FFF), b"")))
            error = Message.decode(client.receive() or b"").error
            assert error is not None
            assert error.code == 420
            client.ask()
        with connect(hosts, server=f"fe80::99%{hosts.client_if}") as client:
            client.send(Message.request())
            mapped = Message.decode(client.receive() or b"").mapped_address
            assert mapped == client.local.without_zone()
        found = counters(server)
        assert found["handshakes_failed"] >= 2
        assert found["answered"] == 4
        assert stream_worker(server) == pid
        assert "ended with" not in server.log
        assert "Traceback" not in server.log


def test_slow_clients_keep_nobody_waiting_and_are_sent_away(hosts: TwoHosts) -> None:
    count = 300
    arguments = [
        *("--tcp", "--stream-connections-per-source", "1000"),
        *("--stream-message-timeout", "1.5"),
    ]
    with Server(hosts.server, arguments) as server:
        slow = [connect(hosts) for _ in range(count)]
        done = threading.Event()

        def trickle() -> None:
            for byte in Message.request().encode():
                for each in slow:
                    try:
                        each.sock.send(bytes([byte]))
                    except OSError:
                        continue
                if done.wait(0.2):
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            asked = 0
            longest = 0.0
            while counters(server).get("connections_timed_out", 0) < count:
                began = time.monotonic()
                with connect(hosts) as honest:
                    honest.ask(*(Message.request() for _ in range(10)))
                    asked += 10
                longest = max(longest, time.monotonic() - began)
            assert asked >= 20
            # Nobody waited for those who are sent away in the end.
            assert longest < 1.0
        finally:
            done.set()
            thread.join()
        for each in slow:
            assert each.is_closed()
            each.sock.close()
        found = counters(server)
        assert found["answered"] == asked
        assert "connections_refused" not in found


def test_a_network_of_ipv6_is_one_source(lab: Lab, hosts: TwoHosts) -> None:
    lab.address(hosts.client, hosts.client_if, "fd77::101/64")
    mac = lab.link(hosts.client, hosts.client_if).get("address")
    lab.neighbour(hosts.server, hosts.server_if, "fd77::101", mac)
    server_address = hosts.server_ipv6[0]
    with (
        Server(hosts.server, ["--tcp", "--stream-connections-per-source", "1"]) as server,
        connect(hosts, server=server_address, source="fd77::100") as first,
    ):
        first.ask()
        with connect(hosts, server=server_address, source="fd77::101") as second:
            assert second.is_closed()
        with connect(hosts) as other:
            other.ask()
        first.ask()
        assert counters(server)["connections_refused"] == 1


def test_more_connections_than_descriptors_wait(hosts: TwoHosts) -> None:
    """The log says what is missing, at the start and when it comes to that."""
    under = ["sh", "-c", 'ulimit -n 240; exec "$@"', "sh"]
    arguments = ["--tcp", "--stream-connections-per-source", "1000"]
    server = Server(hosts.server, arguments, without=["sys_resource"], under=under)
    with server:
        assert "there is room for 40 connections and not for 10000" in server.log
        many = [connect(hosts) for _ in range(260)]
        wait_until(lambda: "connections have to wait" in server.log, "the complaint")
        for each in many[:100]:
            each.sock.close()
        many[-1].ask()
        assert udp_is_served(hosts)
        for each in many:
            each.sock.close()


# --- Another certificate, another process ---


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    return tmp_path / "pktstun.toml"


def configuration(hosts: TwoHosts, authority: Authority, *more: str) -> str:
    return "\n".join(
        [
            f'iface = "{hosts.server_if}"',
            "tcp = true",
            "tls = true",
            f'tls-certificate = "{authority.chain}"',
            f'tls-key = "{authority.key}"',
            *more,
            "",
        ]
    )


def test_a_certificate_is_replaced_and_no_connection_ends(
    hosts: TwoHosts, authority: Authority, file: Path
) -> None:
    file.write_text(configuration(hosts, authority))
    context = authority.context()
    with Server(hosts.server, ["--config", str(file)]) as server:
        old, plain = connect(hosts, tls=context), connect(hosts)
        with old, plain:
            before = certificate_of(old)
            first = stream_worker(server)
            issued = authority.issue()
            assert issued != before
            reload(server, REPLACED)
            assert stream_worker(server) != first
            assert server.log.count(LINGERS) == 1
            with connect(hosts, tls=context) as new:
                assert certificate_of(new) == issued
                new.ask()
                for client in (old, plain):
                    client.ask()
            # One that is of no use is refused, and nothing changes.
            good = authority.chain.read_bytes()
            authority.chain.write_bytes(b"nothing")
            reload(server, REFUSED)
            assert "there is no certificate in it" in server.log
            with connect(hosts, tls=context) as new:
                assert certificate_of(new) == issued
            authority.chain.write_bytes(good)
            old.ask()
            assert exists(first)
        wait_until(lambda: not exists(first), "the old one's end")
        assert counters(server)["starts"] == 2
        assert server.warnings == []
        assert udp_is_served(hosts)


def test_a_network_that_comes_or_goes_replaces_no_stream_worker(lab: Lab, hosts: TwoHosts) -> None:
    """Where the addresses to serve are named, nothing of it is about streams."""
    arguments = ["--listen", hosts.server_ipv4[0], "--tcp", "--cpus", "0"]
    with Server(hosts.server, arguments) as server, connect(hosts) as client:
        client.ask()
        pid = stream_worker(server)
        lab.address(hosts.server, hosts.server_if, "10.99.0.1/24")
        wait_until(lambda: has_seen(server, REPLACED, 1), "the packet workers are replaced")
        client.ask()
        assert stream_worker(server) == pid
        assert LINGERS not in server.log
        reload(server, REPLACED)
        assert stream_worker(server) != pid


def test_limits_and_addresses_change_at_a_reload(
    hosts: TwoHosts, authority: Authority, file: Path
) -> None:
    file.write_text(configuration(hosts, authority))
    context = authority.context()
    with Server(hosts.server, ["--config", str(file)]) as server, connect(hosts) as old:
        old.ask()
        first, second = hosts.server_ipv4[:2]
        file.write_text(
            configuration(
                hosts,
                authority,
                "tls-port = 6000",
                "stream-connections-per-source = 1",
                f'listen = ["{second}"]',
            )
        )
        reload(server, REPLACED)
        for port in (3478, TLS_PORT):
            with pytest.raises(ConnectionRefusedError):
                connect(hosts, port=port)
        with connect(hosts, server=second, port=6000, tls=context) as client:
            client.ask()
            with connect(hosts, server=second) as other:
                assert other.is_closed()
        old.ask()
        file.write_text(configuration(hosts, authority))
        reload(server, REPLACED)
        with connect(hosts, server=first, tls=context) as client:
            client.ask()
        file.write_text(configuration(hosts, authority).replace("tcp = true", "tcp = false"))
        reload(server, REFUSED)
        assert "tcp cannot change while the service runs" in server.log
        old.ask()


def test_no_more_than_some_processes_serve_old_connections(hosts: TwoHosts, file: Path) -> None:
    file.write_text(f'iface = "{hosts.server_if}"\ntcp = true\n')
    with Server(hosts.server, ["--config", str(file)]) as server, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(9):
            clients.append(stack.enter_context(connect(hosts)))
            clients[-1].ask()
            reload(server, REPLACED)
        assert clients[0].is_closed()
        for client in clients[1:]:
            client.ask()
        assert server.log.count("too many such workers") == 1


def test_a_killed_process_loses_no_connection_that_waits(hosts: TwoHosts) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if, "--tcp"]) as server:
        workers = server.worker_pids()
        for _ in range(3):
            pid = stream_worker(server)
            open_one = connect(hosts)
            open_one.ask()
            os.kill(pid, signal.SIGSTOP)
            with connect(hosts) as waiting:
                request = Message.request()
                waiting.send(request)
                os.kill(pid, signal.SIGKILL)
                assert udp_is_served(hosts)
                answer = waiting.receive()
                assert answer is not None
                assert Message.decode(answer).transaction_id == request.transaction_id
            assert open_one.is_closed()
            open_one.sock.close()
            wait_until(partial(is_another, server, pid), "its successor's line")
        assert server.worker_pids() == workers
        assert server.log.count("ended with SIGKILL") == 3


def test_a_process_that_dies_again_and_again_takes_nothing_from_udp(hosts: TwoHosts) -> None:
    """It waits before it is started again, and nobody is given its share."""
    with Server(hosts.server, ["--iface", hosts.server_if, "--tcp"]) as server:
        workers = server.worker_pids()
        deaths = 0
        while "stream worker dies early: next start in 0.40 s" not in server.log:
            assert deaths < 50
            deaths += 1
            wait_until(partial(has_seen, server, STARTED.pattern, deaths), "its start", 20)
            with contextlib.suppress(ProcessLookupError):
                os.kill(stream_worker(server), signal.SIGKILL)
            wait_until(partial(has_seen, server, "ended with", deaths), "its end")
        assert udp_is_served(hosts, 200)
        wait_until(partial(has_seen, server, STARTED.pattern, deaths + 1), "it is back", 20)
        with connect(hosts) as client:
            client.ask()
        assert server.worker_pids() == workers
        assert "degraded" not in server.log


def test_a_process_that_hangs_is_replaced(hosts: TwoHosts) -> None:
    with Server(hosts.server, ["--iface", hosts.server_if, "--tcp"]) as server:
        pid = stream_worker(server)
        os.kill(pid, signal.SIGSTOP)
        with connect(hosts) as client:
            client.ask()
        assert "stream worker is killed: its loop has not turned" in server.log
        assert not exists(pid)


def test_upgrades_keep_connections(hosts: TwoHosts, authority: Authority, tmp_path: Path) -> None:
    installation = Installation(tmp_path / "installation")
    arguments = ["--iface", hosts.server_if, "--tcp", *authority.arguments]
    context = authority.context()
    with Server(hosts.server, arguments, under=installation.under) as server:
        assert server.process.stdout is not None
        with connect(hosts) as plain, connect(hosts, tls=context) as secret:
            pids = []
            for number in range(2):
                pids.append(stream_worker(server))
                version = f"8.0.{number}"
                installation.install(version)
                server.process.send_signal(signal.SIGUSR2)
                ready = server.process.stdout.readline()
                assert f"pktstun {version} ready" in ready
                assert " tcp=0.0.0.0:3478,[::]:3478 tls=0.0.0.0:5349,[::]:5349" in ready
                for client in (plain, secret):
                    client.ask()
                with connect(hosts) as new:
                    new.ask()
            # The first one's, which a version before the last one has left, are watched.
            reload(server, REPLACED)
            plain.ask()
            assert exists(pids[0])
        wait_until(lambda: not exists(pids[0]), "its end")
        wait_until(lambda: f"pid {pids[0]}, which had its last" in server.log, "it is reaped")
        assert server.stop() == 0
        assert server.warnings == []


def test_a_stop_ends_all_in_good_order(hosts: TwoHosts, authority: Authority) -> None:
    arguments = ["--iface", hosts.server_if, "--tcp", *authority.arguments]
    with Server(hosts.server, arguments) as server:
        with connect(hosts) as old, connect(hosts, tls=authority.context()) as secret:
            lingering = stream_worker(server)
            reload(server, REPLACED)
            with connect(hosts, tls=authority.context()) as new:
                for client in (old, secret, new):
                    client.ask()
                assert server.stop() == 0
                assert new.is_closed()
            assert old.is_closed()
        assert not exists(lingering)
        assert server.warnings == []
        # The ports are free at once.
        with Server(hosts.server, arguments), connect(hosts) as client:
            client.ask()
