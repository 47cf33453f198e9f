"""tools/loadgen.py: what it refuses, what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pktstun.kernel import ingress_programs, interface
from pktstun.kernel.load import WRONG, Histogram, LoadResult
from tests.lab import require_root
from tests.netns.server import Server
from tools import loadgen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, Namespace, TwoHosts

pytestmark = pytest.mark.alone

TOOL = [sys.executable, str(Path(__file__).parents[2] / "tools" / "loadgen.py")]
ONE_RUN = ["--rate", "100", "--seconds", "0.1"]
LO = ["--iface", "lo", "--target", "127.0.0.1"]
OWNED = "--i-own-this-network"
MAC = ["--mac", "02:00:00:00:00:01"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOOL, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def assert_refused(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("loadgen: ")
    for word in words:
        assert word in result.stderr


# --- Refusals before the first packet ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*LO], "either --rate and --seconds, or --steps"),
        ([*LO, "--rate", "1"], "either"),
        ([*LO, "--steps", "--rate", "1"], "either"),
        ([*LO, *ONE_RUN, "--steps"], "either"),
        ([*LO, "--rate", "0", "--seconds", "1"], "1 to 10000000"),
        ([*LO, "--rate", "10000001", "--seconds", "1"], "1 to 10000000"),
        ([*LO, "--rate", "1", "--seconds", "3601"], "at most 3600 s"),
        ([*LO, "--rate", "1", "--seconds", "0"], "more than 0"),
        ([*LO, "--rate", "1", "--seconds", "nan"], "more than 0"),
        ([*LO, "--rate", "1", "--seconds", "0.5"], "a run has 1 to"),
        ([*LO, "--rate", "10000000", "--seconds", "3600"], "a run has 1 to"),
        (["--iface", "lo", "--target", "localhost", *ONE_RUN], "--target"),
        (["--iface", "lo", "--target", "127.0.0.1:65536", *ONE_RUN], "--target"),
        (["--iface", "lo", "--target", "127.0.0.1:0", *ONE_RUN], "port 0"),
        ([*LO, *ONE_RUN, "--sources", "nowhere"], "--sources"),
        ([*LO, *ONE_RUN, "--sources", "127.0.0.1/8"], "host bits"),
        ([*LO, *ONE_RUN, "--sources", "::1/128"], "two address families"),
        ([*LO, *ONE_RUN, "--mac", "02:00:00:00:00"], "of the form"),
        ([*LO, *ONE_RUN, "--mac", "somewhere"], "of the form"),
    ],
)
@pytest.mark.root
def test_wrong_usage(arguments: list[str], words: str) -> None:
    require_root()
    assert_refused(run(*arguments), 2, words)


def test_no_such_interface_and_no_such_cpu() -> None:
    missing = run("--iface", "nowhere0", "--target", "127.0.0.1", *ONE_RUN)
    assert_refused(missing, 78, "no network interface", "nowhere0")
    assert_refused(run(*LO, *ONE_RUN, "--cpu", "100000"), 78, "--cpu 100000", "no such CPU")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--target", "192.0.2.1"],
        ["--target", "192.0.2.1", "--sources", "127.0.0.0/8"],
        ["--target", "127.0.0.1", "--sources", "192.0.2.0/24"],
        ["--target", "2001:db8::1"],
    ],
)
def test_loopback_is_for_loopback_addresses(arguments: list[str]) -> None:
    """The host may forward a request, and it sends the replies to where sources are."""
    refused = run("--iface", "lo", *arguments, *ONE_RUN)
    assert_refused(refused, 78, OWNED, "other people's machines")


def in_pid_namespace(
    first: Namespace, own: Namespace, arguments: list[str], *, drop: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the generator in one network, while process 1 that it sees is in another."""
    as_user = f"setpriv --bounding-set -{drop} --" if drop else ""
    enter = f'nsenter --net=/proc/self/fd/{own.fd} {as_user} "$@"; exit $?'
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*unshare, "sh", "-c", enter, "sh", *TOOL, *arguments]
    return first.run(command, pass_fds=[own.fd])


@pytest.mark.root
def test_the_network_of_process_1_is_refused(hosts: TwoHosts) -> None:
    arguments = ["--iface", hosts.client_if, "--target", hosts.server_ipv4[0], *ONE_RUN]
    refused = in_pid_namespace(hosts.client, hosts.client, arguments)
    assert_refused(refused, 78, OWNED, "process 1")
    for first, more in ((hosts.server, []), (hosts.client, [OWNED])):
        allowed = in_pid_namespace(first, hosts.client, [*arguments, *more])
        assert allowed.returncode == 0, allowed.stderr
        assert "sent       10 requests" in allowed.stdout


@pytest.mark.root
def test_a_network_that_cannot_be_told_from_that_of_process_1_is_refused(
    hosts: TwoHosts,
) -> None:
    """Who lacks the right to look at process 1 cannot know."""
    arguments = ["--iface", hosts.client_if, "--target", hosts.server_ipv4[0], *ONE_RUN]
    refused = in_pid_namespace(hosts.server, hosts.client, arguments, drop="sys_ptrace")
    assert_refused(refused, 78, OWNED)


@pytest.mark.root
def test_what_the_network_lacks_is_said(lab: Lab, hosts: TwoHosts) -> None:
    def refused(*arguments: str, status: int = 78, drop: tuple[str, ...] = ()) -> str:
        result = hosts.client.run(
            [*TOOL, "--iface", hosts.client_if, *ONE_RUN, OWNED, *arguments],
            drop_capabilities=drop,
        )
        assert_refused(result, status)
        return result.stderr

    nobody = refused("--target", "10.77.0.77")
    assert "10.77.0.77 does not say" in nobody
    assert "--mac" in nobody
    known = ["--target", hosts.server_ipv4[0]]
    assert "CAP_NET_RAW" in refused(*known, status=77, drop=("net_raw",))
    lab.link_set(hosts.client, hosts.client_if, state="down")
    assert f"{hosts.client_if} is down" in refused(*known)


@pytest.mark.root
def test_an_interface_without_addresses(lab: Lab) -> None:
    here, there = lab.namespace("here"), lab.namespace("there")
    for namespace in (here, there):
        namespace.write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    lab.veth(here, "v0", there, "v1")
    arguments = ["--iface", "v0", "--target", "10.9.0.1", *ONE_RUN, OWNED]
    assert_refused(here.run([*TOOL, *arguments]), 78, "no IPv4 address", "--sources")
    more = ["--sources", "10.9.0.2/32", *MAC, "--json"]
    assert json.loads(here.run([*TOOL, *arguments, *more]).stdout)["sent"] == 10


# --- Runs ---


@pytest.fixture
def server(lab: Lab, hosts: TwoHosts) -> Iterator[Server]:
    lab.route(hosts.server, "100.64.0.0/10", hosts.client_ipv4[0])
    with Server(hosts.server, ["--iface", hosts.server_if]) as running:
        yield running


def command_for(hosts: TwoHosts, *arguments: str) -> list[str]:
    target = ["--iface", hosts.client_if, "--target", hosts.server_ipv4[0], OWNED]
    return [*TOOL, *target, "--sources", "100.64.0.0/10", *arguments]


def assert_answered(result: dict[str, Any], rate: int, seconds: float) -> None:
    """Everything that was due was sent, and is answered and counted once."""
    assert result["requested_rate"] == rate
    assert result["seconds"] >= seconds
    assert result["sent"] + result["unsent"] + result["send_errors"] == int(rate * seconds)
    assert result["replies"] == result["sent"]
    assert result["achieved_rate"] == result["sent"] / result["seconds"]
    assert 0 < result["reply_rate"] <= result["achieved_rate"]
    for name in ("lost", "errors", "duplicates", "stale", "overlooked"):
        assert result[name] == 0
    assert result["wrong"] == {}
    assert sum(count for _, count in result["histogram"]["counts"]) == result["replies"]
    latency = result["latency"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"]
    assert latency["p999"] <= latency["max"] == result["histogram"]["longest"] / 1e9
    assert latency["mean"] == result["histogram"]["total"] / result["replies"] / 1e9


@pytest.mark.root
def test_json_is_what_the_documentation_says(hosts: TwoHosts, server: Server) -> None:
    done = hosts.client.run(command_for(hosts, "--rate", "500", "--seconds", "0.3", "--json"))
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert_answered(result, 500, 0.3)
    assert server.wait_for(result["sent"])["answered"] == result["sent"]
    assert loadgen.__doc__ is not None
    contract = loadgen.__doc__.partition("An object has:")[2].partition("Another program")[0]
    assert list(result) == re.findall(r"^    (\w+)", contract, re.MULTILINE)
    for part in ("latency", "histogram"):
        (inside,) = re.findall(rf"^    {part} +{{(.*)}}", contract, re.MULTILINE)
        assert list(result[part]) == re.findall(r"(\w+)(?=:|,|$)", re.sub(r"\[.*\]", "", inside))


@pytest.mark.root
@pytest.mark.usefixtures("server")
def test_steps_are_answered_line_by_line(hosts: TwoHosts) -> None:
    generator = hosts.client.popen(command_for(hosts, "--steps"), stdin=subprocess.PIPE)
    assert generator.stdin is not None
    assert generator.stdout is not None
    ready = json.loads(generator.stdout.readline())
    assert ready["ready"] is True
    assert ready["server"] == f"{hosts.server_ipv4[0]}:3478"
    for rate, seconds in ((300, 0.2), (1000, 0.1)):
        generator.stdin.write(f"{rate} {seconds}\n")
        generator.stdin.flush()
        result = json.loads(generator.stdout.readline())
        assert_answered(result, rate, seconds)
    generator.stdin.write("many 1\n")
    generator.stdin.close()
    assert generator.stdout.read() == ""
    assert generator.wait(10) == 2
    assert generator.stderr is not None
    assert "'many 1' is not of the form" in generator.stderr.read()


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_the_result_is_printed(
    hosts: TwoHosts, number: signal.Signals
) -> None:
    generator = hosts.client.popen(command_for(hosts, "--steps"), stdin=subprocess.PIPE)
    assert generator.stdin is not None
    assert generator.stdout is not None
    with hosts.server.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        assert json.loads(generator.stdout.readline())["ready"]
        wire.bind((hosts.server_if, 0x0800))  # whatever comes from here on are its requests
        wire.settimeout(10)
        generator.stdin.write("1000 600\n1000 600\n")
        generator.stdin.flush()
        wire.recv(100)
        generator.send_signal(number)
        result = json.loads(generator.stdout.readline())
    assert result["stopped"] is True
    assert result["seconds"] < 60
    assert 0 < result["sent"] == result["lost"]
    assert result["latency"] is None
    assert generator.wait(10) == 0
    assert generator.stdout.read() == ""


@pytest.mark.root
def test_a_person_is_told_what_went_wrong(hosts: TwoHosts) -> None:
    shown = hosts.client.run(command_for(hosts, *ONE_RUN)).stdout
    assert "sent       10 requests in 0.100 s (100/s of 100/s)" in shown
    assert "replies    0 correct (0/s), 10 lost" in shown
    assert "latency" not in shown
    assert "ended early" not in shown


def test_all_troubles_are_told() -> None:
    result = LoadResult(
        rate=1000,
        seconds=2.0,
        sent=1990,
        send_errors=3,
        unsent=7,
        late=11,
        lateness=0.2,
        send_calls=100,
        replies=1900,
        in_time=1800,
        errors=13,
        duplicates=17,
        stale=19,
        wrong={"mapped": 23},
        overlooked=29,
        stopped=True,
        latencies=Histogram.of([1000] * 1900),
        slices=(8, 7),
        slice_size=8,
    )
    shown = loadgen.summary(result)
    for line in (
        "sent       1990 requests in 2.000 s (995/s of 1,000/s)",
        "replies    1900 correct (900/s), 77 lost",
        "p50 1, p90 1, p99 1, p999 1, max 1, mean 1 (microseconds)",
        "7 not sent in time",
        "11 late by 1 ms or more",
        "3 send errors",
        "13 error responses",
        "17 duplicates",
        "19 stale",
        "23 wrong mapped",
        "29 overlooked",
        "ended early by a signal",
    ):
        assert line in shown


@pytest.mark.root
@pytest.mark.usefixtures("server")
def test_the_interfaces_own_address_is_the_default_source(hosts: TwoHosts) -> None:
    own = ["--iface", hosts.client_if, OWNED, *ONE_RUN, "--json", "--target"]
    for target in (hosts.server_ipv4[0], hosts.server_ipv6[0]):
        assert_answered(json.loads(hosts.client.run([*TOOL, *own, target]).stdout), 100, 0.1)


@pytest.mark.root
@pytest.mark.parametrize("mode", ["ring", "recvmmsg"])
def test_loopback(lab: Lab, mode: str) -> None:
    """Each reply is seen once, and the requests, which are seen as well, are none."""
    host = lab.namespace("host")
    arguments = {
        "ring": ["--iface", "lo"],
        "recvmmsg": ["--listen", "127.0.0.1", "--listen", "::1"],
    }
    if mode == "recvmmsg":
        for name in ("route_localnet", "accept_local"):
            host.write(f"/proc/sys/net/ipv4/conf/lo/{name}", "1")
    with Server(host, ["--mode", mode, *arguments[mode]]):
        for target, *more in (
            ("127.0.0.1:3478",),
            ("[::1]:3478",),
            ("127.0.0.1", "--sources", "127.0.0.0/8"),
        ):
            run_one = [*TOOL, "--iface", "lo", "--target", target, *ONE_RUN, "--json", *more]
            assert_answered(json.loads(host.run(run_one).stdout), 100, 0.1)


@pytest.mark.root
def test_the_kernel_gets_no_copy_of_the_replies(hosts: TwoHosts) -> None:
    """Nobody has the ports that requests come from: the kernel would say so to the server."""
    with Server(hosts.server, ["--iface", hosts.server_if]):
        target = ["--iface", hosts.client_if, "--target", hosts.server_ipv4[0], OWNED]
        one_run = hosts.client.run([*TOOL, *target, *ONE_RUN, "--json"])
        assert_answered(json.loads(one_run.stdout), 100, 0.1)
    assert hosts.client.snmp()["Udp"]["NoPorts"] == 0
    with hosts.client.enter():
        assert ingress_programs(interface(hosts.client_if).index) == ()


def test_every_kind_of_wrong_reply_has_its_name() -> None:
    assert WRONG == ("frame", "source", "message", "type", "id", "destination", "mapped")
