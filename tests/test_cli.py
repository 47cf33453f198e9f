"""The command as a person runs it: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pktstun
from tests.lab import require_root
from tests.netns.server import Server

if TYPE_CHECKING:
    from tests.lab import Namespace, TwoHosts

COMMAND = [sys.executable, "-m", "pktstun"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def assert_refused(result: subprocess.CompletedProcess[str], status: int, *fixes: str) -> None:
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("pktstun: ")
    for fix in fixes:
        assert fix in result.stderr


def test_version() -> None:
    assert run("--version").stdout == f"pktstun {pktstun.__version__}\n"


@pytest.mark.parametrize("command", [(), ("serve",), ("check-config",), ("query",)])
def test_help_speaks_of_every_flag_and_ends_well(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    assert "usage: pktstun" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("serve", "--mode", "magic"),
        ("serve", "--port", "x"),
        ("query",),
        ("query", "::1", "--timeout", "0"),
        ("query", "::1", "--timeout", "nan"),
        ("query", "-4", "-6", "::1"),
        ("query", "::1", "--rto", "1e300"),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: pktstun" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_interface() -> None:
    assert_refused(run("serve", "--iface", "nosuch0"), 75, "nosuch0", "one of")


def test_ring_mode_without_an_interface() -> None:
    assert_refused(run("serve", "--mode", "ring"), 78, "--iface")


def test_an_address_that_is_not_local() -> None:
    assert_refused(run("serve", "--listen", "192.0.2.77"), 75, "192.0.2.77", "--listen")


def test_a_bad_list_of_cpus() -> None:
    assert_refused(run("serve", "--cpus", "x"), 78, "0-3,8")


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["--users", "x"], "--users is of use with --auth only"),
        (["--realm", "x"], "--realm is of use with --auth long-term only"),
        (["--nonce-lifetime", "5"], "--nonce-lifetime is of use with --auth long-term only"),
        (["--auth", "short-term", "--users", "x", "--realm", "x"], "--realm is of use with"),
        (["--auth", "short-term"], "name the file of the users with --users"),
        (["--auth", "long-term", "--users", "x"], "--realm example.org"),
        (["--auth", "long-term", "--users", "x", "--realm", 65 * "x"], "at most 64 bytes"),
    ],
)
def test_options_of_credentials_that_make_no_sense(arguments: list[str], fix: str) -> None:
    assert_refused(run("serve", *arguments), 78, fix)


def test_credentials_in_a_configuration_file(tmp_path: Path) -> None:
    users, file = tmp_path / "users", tmp_path / "pktstun.toml"
    lines = ['auth = "long-term"', f'users = "{users}"', 'realm = "example.org"']
    file.write_text("\n".join([*lines, "nonce-lifetime = 60", ""]))
    check = ("check-config", str(file))
    assert_refused(run(*check), 78, f"cannot read the users file {users}: No such file")
    users.touch(mode=0o600)
    users.write_text("ada:countess of lovelace\n")
    assert "\n  auth     long-term\n" in run(*check).stdout


@pytest.mark.parametrize(
    ("arguments", "status", "fix"),
    [
        (("--tls",), 78, "--tls-certificate"),
        (("--tcp", "--tls-key", "x"), 78, "--tls-key is of use with --tls only"),
        (("--stream-connections", "5"), 78, "of use with --tcp or --tls only"),
        (("--tcp", "--stream-connections", "0"), 78, "--stream-connections 0 is not in 1.."),
        (("--tcp", "--stream-idle-timeout", "nan"), 78, "--stream-idle-timeout nan is not in"),
    ],
)
def test_streams_that_cannot_be(arguments: tuple[str, ...], status: int, fix: str) -> None:
    assert_refused(run("serve", *arguments), status, fix)


def test_a_bad_server_to_query() -> None:
    assert_refused(run("query", "127.0.0.1:x"), 2, "65535")
    assert_refused(run("query", "a" * 64), 1, "resolve")


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_in_use(shares: bool) -> None:  # noqa: FBT001 - a parameter
    """Also by a server that would share it: nobody gets half of another's clients silently."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        if shares:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        port = str(other.getsockname()[1])
        result = run("serve", "--listen", "127.0.0.1", "--port", port)
    assert_refused(result, 1, port, "--port", "ss -lunp")


def test_query_says_that_nobody_answers() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        assert_refused(run("query", server, "--timeout", "0.2"), 1, server, "no answer")
    # Nobody is bound there any more: the ICMP error ends the transaction at once.
    assert_refused(run("query", server), 1, server, "refused")


@pytest.fixture
def lonely(hosts: TwoHosts) -> Namespace:
    require_root()
    return hosts.server


def left_behind(namespace: Namespace) -> tuple[list[int], list[str], list[str]]:
    """Return what a server could leave: processes, packet sockets, UDP sockets."""
    packets = namespace.read("/proc/net/packet").splitlines()[1:]
    udp = namespace.read("/proc/net/udp").splitlines()[1:]
    return namespace.pids(), packets, udp


@pytest.mark.root
def test_without_cap_net_raw_ring_mode_names_it_and_leaves_nothing(lonely: Namespace) -> None:
    result = lonely.run(
        [*COMMAND, "serve", "--iface", "v0"], drop_capabilities=("net_raw",), timeout=20
    )
    assert_refused(result, 77, "CAP_NET_RAW", "--mode recvmmsg")
    assert left_behind(lonely) == ([], [], [])


@pytest.mark.root
def test_without_privileges_recvmmsg_mode_works(lonely: Namespace) -> None:
    command = [*COMMAND, "serve", "--iface", "v0", "--mode", "recvmmsg"]
    process = lonely.popen(command, drop_capabilities=("net_raw", "net_admin", "sys_admin"))
    with process:
        assert process.stdout is not None
        assert " ready: mode=recvmmsg" in process.stdout.readline()
        process.terminate()
        assert process.wait(10) == 0
    assert left_behind(lonely) == ([], [], [])


@pytest.mark.root
def test_an_interface_without_an_address(lonely: Namespace) -> None:
    with lonely.iproute() as iproute:
        index = iproute.link_lookup(ifname="v0")[0]
        iproute.flush_addr(index=index)
    result = lonely.run([*COMMAND, "serve", "--iface", "v0"], timeout=20)
    assert_refused(result, 75, "no address", "--listen")


@pytest.mark.root
def test_the_ready_line_says_what_runs_where(lonely: Namespace) -> None:
    with Server(lonely, ["--iface", "v0", "--cpus", "0", "--log-level", "error"]) as server:
        for part in (
            f"pktstun {pktstun.__version__} ready:",
            "mode=ring",
            "iface=v0",
            "workers=0@cpu0",
            "sockets=0.0.0.0:3478,[::]:3478",
            "10.77.0.3:3478",
            "[fd77::2]:3478",
        ):
            assert part in server.ready
        assert server.stop() == 0
        assert server.log == ""
    assert left_behind(lonely) == ([], [], [])


@pytest.mark.root
def test_a_host_with_many_addresses(lonely: Namespace) -> None:
    """Its broadcast addresses are no reason to refuse; too many to serve are one, at once."""
    with lonely.iproute() as iproute:
        index = iproute.link_lookup(ifname="v0")[0]
        for number in range(300):
            address = f"10.{100 + number // 200}.{number % 200}.1"
            broadcast = address.removesuffix("1") + "255"
            iproute.addr("add", index=index, address=address, prefixlen=24, broadcast=broadcast)
    with Server(lonely, ["--iface", "v0", "--listen", "10.77.0.1"]) as server:
        assert "ready" in server.ready
    result = lonely.run([*COMMAND, "serve", "--iface", "v0"], timeout=20)
    assert_refused(result, 78, "--listen", "256")


@pytest.mark.root
def test_nobody_reads_the_ready_line(lonely: Namespace) -> None:
    with Path("/dev/full").open("w") as full:
        process = lonely.popen([*COMMAND, "serve", "--iface", "v0"], stdout=full)
        with process:
            assert process.stderr is not None
            # It is in the log then, where nothing else is said for long.
            assert any(" ready: " in line for line in iter(process.stderr.readline, ""))
            process.terminate()
            process.communicate(timeout=10)
            assert process.returncode == 0


@pytest.mark.root
def test_too_few_descriptors_are_one_line(lonely: Namespace) -> None:
    program = (
        "import resource, sys; from pktstun.cli import main; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12)); "
        "sys.exit(main(['serve', '--iface', 'v0']))"
    )
    result = lonely.run([sys.executable, "-c", program], timeout=20)
    assert_refused(result, 1, "open files")
    assert left_behind(lonely) == ([], [], [])


@pytest.mark.root
def test_query_prints_the_mapped_address(lonely: Namespace) -> None:
    with Server(lonely, ["--iface", "lo"]):
        for server, ip in (("127.0.0.1", "127.0.0.1"), ("[::1]:3478", "::1"), ("::1", "::1")):
            plain = lonely.run([*COMMAND, "query", server, "--timeout", "5"], check=True)
            assert plain.stdout.startswith(f"[{ip}]:" if ":" in ip else f"{ip}:")
            machine = lonely.run([*COMMAND, "query", server, "--json", "--timeout", "5"])
            answer = json.loads(machine.stdout)
            assert answer["mapped"] == answer["local"]
            assert answer["requests"] == 1


@pytest.mark.root
def test_a_failed_start_in_ring_mode_closes_everything(lonely: Namespace) -> None:
    with Server(lonely, ["--mode", "recvmmsg", "--listen", "10.77.0.2"]):
        before = left_behind(lonely)
        result = lonely.run([*COMMAND, "serve", "--iface", "v0"], timeout=20)
        assert_refused(result, 1, "3478")
        assert left_behind(lonely) == before


def test_the_module_runs_as_the_command() -> None:
    assert Path(pktstun.__file__).with_name("__main__.py").exists()
    assert run("--help").stdout == run("-h").stdout
