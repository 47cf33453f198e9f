"""The laboratory itself: what it builds works, and nothing of it stays."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import (  # noqa: F401 - pytest finds fixtures by their presence
    CAPABILITIES,
    Lab,
    Namespace,
    TwoHosts,
    hosts_fixture,
    lab_fixture,
    require_root,
    two_hosts,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[1]
SERVER_ADDRESSES = (*TwoHosts.server_ipv4, *TwoHosts.server_ipv6)
ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_AUXDATA = 8
TP_STATUS_CSUMNOTREADY = 0x08
SIOCGSKNS = 0x894C  # the namespace of a socket, as a descriptor


@pytest.fixture(autouse=True)
def _host_untouched() -> Iterator[None]:
    """The interfaces, addresses and routes of the host are the same afterwards."""

    def host() -> list[str]:
        interfaces = sorted(path.name for path in Path("/sys/class/net").iterdir())
        tables = ("if_inet6", "route")
        return interfaces + [Path("/proc/thread-self/net", name).read_text() for name in tables]

    before = host()
    yield
    assert host() == before


def udp(ns: Namespace, address: str, port: int = 0) -> socket.socket:
    with ns.enter():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(5)
    try:
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def exchange(server: Namespace, server_ip: str, client: Namespace, client_ip: str) -> None:
    """One datagram each way, without a second try."""
    with udp(server, server_ip) as a, udp(client, client_ip) as b:
        b.sendto(b"ping", a.getsockname())
        data, peer = a.recvfrom(100)
        assert (data, peer) == (b"ping", b.getsockname())
        a.sendto(b"pong", peer)
        assert b.recvfrom(100) == (b"pong", a.getsockname())


def holders(inodes: set[int]) -> set[str]:
    """Who keeps one of these namespaces alive: threads in it, descriptors of it."""
    found = set()
    for link in (*Path("/proc").glob("[0-9]*/task/*/ns/net"), *Path("/proc").glob("[0-9]*/fd/*")):
        try:
            target = str(link.readlink())
        except OSError:
            continue  # ended meanwhile
        if target in {f"net:[{inode}]" for inode in inodes}:
            found.add(str(link))
    return found


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("address", SERVER_ADDRESSES)
def test_udp_crosses_both_ways(hosts: TwoHosts, address: str) -> None:
    source = hosts.client_ipv6[0] if ":" in address else hosts.client_ipv4[0]
    exchange(hosts.server, address, hosts.client, source)


def test_no_route_leads_out(hosts: TwoHosts) -> None:
    with (
        udp(hosts.client, "0.0.0.0") as sock,
        pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)),
    ):
        sock.sendto(b"", ("192.0.2.1", 9))
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        udp(hosts.client, hosts.server_ipv4[0])


def test_the_topology_is_ready_in_a_fraction_of_a_second() -> None:
    require_root()
    times = []
    for _ in range(5):
        start = time.monotonic()
        with Lab() as lab:
            two_hosts(lab)
        times.append(time.monotonic() - start)
    assert sorted(times)[2] < 0.5


def test_addresses_can_be_bound_at_once(lab: Lab, hosts: TwoHosts) -> None:
    for number in range(1, 21):
        for address, length in ((f"fd78::{number:x}", 64), (f"10.78.0.{number}", 24)):
            lab.address(hosts.server, "v0", f"{address}/{length}")
            udp(hosts.server, address).close()


def test_links_have_the_queues_and_mtu_asked_for(lab: Lab) -> None:
    a, b = lab.namespace("a"), lab.namespace("b")
    lab.veth(a, "left", b, "right", queues=3, mtu=1400)
    for ns, name in ((a, "left"), (b, "right")):
        assert ns.sysfs_read(f"/sys/class/net/{name}/mtu") == "1400"
        for queue in range(3):
            ns.sysfs_read(f"/sys/class/net/{name}/queues/rx-{queue}/rps_cpus")
            ns.sysfs_read(f"/sys/class/net/{name}/queues/tx-{queue}/xps_cpus")
        with pytest.raises(FileNotFoundError):
            ns.sysfs_read(f"/sys/class/net/{name}/queues/rx-3/rps_cpus")


def test_a_link_goes_down_and_away(lab: Lab, hosts: TwoHosts) -> None:
    assert hosts.client.sysfs_read("/sys/class/net/v1/carrier") == "1"
    lab.link_set(hosts.server, "v0", state="down")
    wait_until(
        lambda: hosts.client.sysfs_read("/sys/class/net/v1/carrier") == "0", "the carrier is lost"
    )
    lab.delete_link(hosts.server, "v0")
    for ns, name in ((hosts.server, "v0"), (hosts.client, "v1")):
        with pytest.raises(OSError, match="no interface with this name"):
            lab.link(ns, name)


def test_vlan(lab: Lab, hosts: TwoHosts) -> None:
    ends = (hosts.server, "v0", "10.79.0.1"), (hosts.client, "v1", "10.79.0.2")
    for ns, parent, address in ends:
        try:
            lab.vlan(ns, parent, "tagged", 7)
        except OSError as error:  # many kernels for virtual machines are built without
            assert "CONFIG_VLAN_8021Q" in str(error)  # noqa: PT017
            return
        lab.address(ns, "tagged", f"{address}/24")
    exchange(hosts.server, "10.79.0.1", hosts.client, "10.79.0.2")


@pytest.mark.parametrize(
    ("address", "destination", "via"),
    [("10.80.0.1", "10.80.0.0/16", "10.77.0.1"), ("fd80::1", "fd80::/16", "fd77::1")],
)
def test_route(lab: Lab, hosts: TwoHosts, address: str, destination: str, via: str) -> None:
    lab.address(hosts.server, "lo", f"{address}/{128 if ':' in address else 32}")
    lab.route(hosts.client, destination, via)
    source = hosts.client_ipv6[0] if ":" in via else hosts.client_ipv4[0]
    exchange(hosts.server, address, hosts.client, source)


def test_pyroute2_works_in_the_namespace(lab: Lab) -> None:
    ns = lab.namespace("here")
    with ns.iproute() as ipr:
        fd = fcntl.ioctl(ipr.fileno(), SIOCGSKNS)
        assert os.fstat(fd).st_ino == ns.inode
        os.close(fd)
        assert [link.get("ifname") for link in ipr.link("dump")] == ["lo"]


def test_enter_returns_even_from_an_error(lab: Lab) -> None:
    def here() -> int:
        return Path("/proc/thread-self/ns/net").stat().st_ino

    a, b = lab.namespace("a"), lab.namespace("b")
    home = here()

    def fail() -> None:
        with a.enter():
            assert here() == a.inode
            with b.enter():
                assert here() == b.inode
            assert here() == a.inode
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert here() == home


def test_every_thread_sees_the_namespace_that_it_asks_for(hosts: TwoHosts) -> None:
    seen = {}

    def look(ns: Namespace) -> None:
        names = re.findall(r"(\w+):", ns.read("/proc/net/dev"))
        seen[ns.name] = (sorted(names), [name for _, name in ns_names(ns)])

    def ns_names(ns: Namespace) -> list[tuple[int, str]]:
        with ns.enter():
            return socket.if_nameindex()

    threads = [threading.Thread(target=look, args=(ns,)) for ns in (hosts.server, hosts.client)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"server": (["lo", "v0"], ["lo", "v0"]), "client": (["lo", "v1"], ["lo", "v1"])}


def test_snmp_counts(hosts: TwoHosts) -> None:
    before = hosts.server.snmp()
    for address in (hosts.server_ipv4[0], hosts.server_ipv6[0]):
        any_address = "::" if ":" in address else "0.0.0.0"
        with udp(hosts.client, any_address) as sock:
            sock.connect((address, 9))
            sock.send(b"nobody listens")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(1)
    after = hosts.server.snmp()
    for group, name in (
        ("Udp", "NoPorts"),
        ("Udp6", "NoPorts"),
        ("Icmp", "OutDestUnreachs"),
        ("Icmp6", "OutDestUnreachs"),
    ):
        assert after[group][name] == before[group][name] + 1


def test_a_program_sees_the_namespace(hosts: TwoHosts) -> None:
    code = "import os, socket; print(os.readlink('/proc/self/ns/net'), socket.if_nameindex())"
    result = hosts.client.run([sys.executable, "-c", code], check=True)
    with hosts.client.enter():
        assert result.stdout == f"net:[{hosts.client.inode}] {socket.if_nameindex()}\n"
    assert result.stderr == ""


def test_a_program_runs_as_if_started_directly(lab: Lab) -> None:
    """Arguments, environment, signals, descriptors and exit status pass the launcher."""
    ns = lab.namespace("here")
    code = """
import os, sys
print(sys.argv[1:], os.environ["VALUE"], os.getppid())
print(open("/proc/self/status").read())
os.write(int(sys.argv[1]), b"written")
sys.exit(42)
"""
    read_end, write_end = os.pipe()
    # The shell keeps the signal dispositions that it was given; Python would not.
    shell = ["sh", "-c", 'grep SigIgn /proc/self/status; exec "$@"', "sh"]
    arguments = [str(write_end), "", "a b", "$HOME"]
    result = ns.run(
        [*shell, sys.executable, "-c", code, *arguments],
        env={"VALUE": "from the environment", "PATH": os.environ["PATH"]},
        pass_fds=(write_end,),
    )
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b"written"
    ignored, line, *_ = result.stdout.splitlines()
    assert int(ignored.split()[1], 16) & (1 << signal.SIGPIPE - 1) == 0
    assert line == f"{arguments} from the environment {os.getpid()}"
    assert result.returncode == 42
    with pytest.raises(subprocess.CalledProcessError):
        ns.run(["false"], check=True)


def test_a_missing_program_is_an_error(lab: Lab) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        lab.namespace("here").popen(["no-such-program"])


def test_run_ends_the_program_at_its_timeout(lab: Lab) -> None:
    ns = lab.namespace("here")
    with pytest.raises(subprocess.TimeoutExpired):
        ns.run(["sleep", "60"], timeout=0.2)
    assert ns.pids() == []


def test_cpus(lab: Lab) -> None:
    cpu = max(os.sched_getaffinity(0))
    code = "import os; print(os.sched_getaffinity(0))"
    result = lab.namespace("here").run([sys.executable, "-c", code], cpus={cpu}, check=True)
    assert result.stdout == f"{{{cpu}}}\n"


@pytest.mark.parametrize(
    ("dropped", "error"), [((), None), (("net_raw",), "EPERM"), (tuple(CAPABILITIES), "EPERM")]
)
def test_capabilities_are_dropped(lab: Lab, dropped: tuple[str, ...], error: str | None) -> None:
    code = """
import errno, os, socket
assert os.geteuid() == 0
try:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    print(None)
except OSError as failure:
    print(errno.errorcode[failure.errno])
"""
    ns = lab.namespace("here")
    result = ns.run([sys.executable, "-c", code], drop_capabilities=dropped, check=True)
    assert result.stdout == f"{error}\n"


def test_all_capabilities_are_dropped(lab: Lab) -> None:
    argv = ["cat", "/proc/self/status"]
    result = lab.namespace("here").run(argv, drop_capabilities=CAPABILITIES, check=True)
    assert re.search(r"^CapEff:\t0+$", result.stdout, re.MULTILINE)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert last == max(CAPABILITIES.values())


@pytest.mark.parametrize(("in_ci", "outcome"), [(False, "Skipped"), (True, "Failed")])
def test_a_missing_privilege_is_named(lab: Lab, *, in_ci: bool, outcome: str) -> None:
    code = """
from tests.lab import require_root
try:
    require_root()
except BaseException as error:
    print(type(error).__name__, error)
"""
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    result = lab.namespace("here").run(
        [sys.executable, "-c", code],
        drop_capabilities=("net_admin", "net_raw"),
        cwd=ROOT,
        env=environment | ({"CI": "true"} if in_ci else {}),
        check=True,
    )
    need = "network namespaces need CAP_NET_ADMIN, CAP_NET_RAW: run the tests as root"
    assert result.stdout == f"{outcome} {need}\n"


def test_sysfs(hosts: TwoHosts) -> None:
    path = "/sys/class/net/v0/queues/rx-0/rps_cpus"
    mounts = Path("/proc/thread-self/mountinfo").read_text()
    assert int(hosts.server.sysfs_read(path), 16) == 0
    hosts.server.sysfs_write(path, "1")
    assert int(hosts.server.sysfs_read(path), 16) == 1
    assert Path("/proc/thread-self/mountinfo").read_text() == mounts
    with pytest.raises(FileNotFoundError):
        hosts.client.sysfs_read(path)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        hosts.server.sysfs_write("/sys/class/net/v0/mtu", "nonsense")


@pytest.mark.parametrize("tx", [True, False])
def test_offload_decides_who_computes_checksums(lab: Lab, hosts: TwoHosts, *, tx: bool) -> None:
    lab.offload(hosts.client, "v1", tx=tx)
    with hosts.server.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as tap:
        tap.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        tap.bind(("v0", ETH_P_ALL))
        tap.settimeout(5)
        exchange(hosts.server, hosts.server_ipv4[0], hosts.client, hosts.client_ipv4[0])
        while True:
            data, control, _, _ = tap.recvmsg(2048, 256)
            if data.endswith(b"ping"):
                break
    (status,) = struct.unpack_from("I", control[0][2])
    assert bool(status & TP_STATUS_CSUMNOTREADY) == tx


def test_an_offload_that_cannot_be_had_is_an_error(lab: Lab, hosts: TwoHosts) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        lab.offload(hosts.server, "lo", tx=False)
    lab.offload(hosts.server, "v0", sg=False)
    with pytest.raises(OSError, match=r"v0 of .* keeps gso=False"):  # GSO needs SG
        lab.offload(hosts.server, "v0", gso=True)


def test_napi_threads_can_be_pinned(lab: Lab) -> None:
    # Neither other interfaces of the namespace nor interfaces of the same name in
    # another one must be confused with ours.
    first, second = two_hosts(lab, queues=2), two_hosts(lab, queues=2)
    lab.veth(first.server, "v00", first.client, "v01")
    others = lab.threaded_napi(first.server, "v00")
    for hosts in (first, second):
        assert lab.napi_threads(hosts.server, "v0") == []
        lab.threaded_napi(hosts.server, "v0")
    pids = lab.napi_threads(first.server, "v0")
    others += lab.napi_threads(second.server, "v0")
    assert len(pids) == 2
    assert len({*pids, *others}) == 5
    for pid in pids:
        assert re.fullmatch(r"napi/v0-\d+\n", Path(f"/proc/{pid}/comm").read_text())
    before = [os.sched_getaffinity(pid) for pid in others]
    for cpu in os.sched_getaffinity(0):
        assert lab.pin_napi(first.server, "v0", cpu) == pids
        assert [os.sched_getaffinity(pid) for pid in pids] == [{cpu}] * 2
    assert [os.sched_getaffinity(pid) for pid in others] == before
    exchange(first.server, "10.77.0.1", first.client, "10.77.0.100")
    with pytest.raises(RuntimeError, match="call threaded_napi"):
        lab.pin_napi(first.client, "v1", 0)


def test_close_ends_children_of_programs_too() -> None:
    require_root()
    with Lab() as lab:
        ns = lab.namespace("here")
        inode = ns.inode
        process = ns.popen(["sh", "-c", "sleep 60 & sleep 60 & echo ready; exit"])
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.wait(timeout=5)
        pids = ns.pids()
        assert len(pids) == 2
    assert holders({inode}) == set()


def test_nothing_is_leaked() -> None:
    require_root()

    def cycle() -> None:
        with Lab() as lab:
            hosts = two_hosts(lab)
            hosts.server.run(["true"], check=True)
            hosts.server.popen(["sleep", "60"])
            hosts.server.sysfs_read("/sys/class/net/v0/mtu")
            lab.napi_threads(hosts.server, "v0")
            lab.close()  # a second one does nothing

    cycle()
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(3):
        cycle()
    gc.collect()
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before


def test_sigkill_leaves_nothing(lab: Lab) -> None:
    """The dead lab's interfaces go with it, seen from the other end of a veth."""
    observer = lab.namespace("observer")
    code = """
import os, sys, time
from tests.lab import Lab, Namespace, two_hosts
lab = Lab()
hosts = two_hosts(lab)
lab.veth(hosts.server, "out", Namespace("observer", int(sys.argv[1])), "in")
program = hosts.server.popen(["sleep", "60"])
while os.readlink(f"/proc/{program.pid}/exe") == os.readlink("/proc/self/exe"):
    time.sleep(0.001)
print(program.pid, hosts.server.inode, hosts.client.inode, flush=True)
time.sleep(60)
"""
    argv = [sys.executable, "-c", code, str(observer.fd)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, stdout=pipe, pass_fds=(observer.fd,)) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 30)[0]
            pid, *inodes = map(int, process.stdout.readline().split())
            # Seen alive by the same means as it is found dead below.
            assert observer.sysfs_read("/sys/class/net/in/carrier") == "1"
            assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
            assert alive(pid)
            assert f"/proc/{pid}/task/{pid}/ns/net" in holders(set(inodes))
        finally:
            process.kill()
    with observer.enter():
        wait_until(
            lambda: [name for _, name in socket.if_nameindex()] == ["lo"],
            "the namespaces of the killed process are dismantled",
        )
    assert holders(set(inodes)) == set()
    assert not alive(pid)


def test_a_program_does_not_outlive_a_parent_that_died_first(lab: Lab) -> None:
    """Killed straight after popen, while the launcher still prepares itself."""
    ns = lab.namespace("here")
    code = """
import os, signal, sys
from tests.lab import Namespace
Namespace("here", int(sys.argv[1])).popen(["sleep", "60"])
os.kill(os.getpid(), signal.SIGKILL)
"""
    argv = [sys.executable, "-c", code, str(ns.fd)]
    result = subprocess.run(argv, cwd=ROOT, check=False, pass_fds=(ns.fd,))
    assert result.returncode == -signal.SIGKILL
    wait_until(lambda: not ns.pids(), "the launcher ends")
