"""A laboratory of network namespaces that leaves nothing behind.

Theory of operation. A namespace lives as long as something refers to it: a
process inside, a socket made inside, a mount, or an open descriptor of its
`ns/net` file. The lab uses descriptors only (never a mount, which is what
`ip netns add` makes), so the kernel dismantles everything, interfaces and all,
when the test process ends in any way, SIGKILL included. Programs started
inside carry PR_SET_PDEATHSIG and end with the thread that started them.

A network namespace belongs to a thread, not to a process. `Namespace.enter`
moves the calling thread in and back out; whatever is created meanwhile (a
socket, a child) stays in the namespace for good. Three consequences:

- pyroute2 keeps one netlink socket per thread that uses an IPRoute object,
  created on first use wherever that thread is. `Namespace.iproute` therefore
  makes, uses and closes the object inside one `enter`. It drives an asyncio
  loop of its own, hence cannot be used where a loop is already running.
- `/proc/net` means the main thread's namespace; `/proc/thread-self/net` is the
  one of the thread that asks, and `Namespace.read` translates.
- `/sys/class/net` shows the namespace in which the sysfs was mounted. The lab
  creates a sysfs that is attached to no directory (fsopen, fsmount) and walks
  it from its descriptor: no mount table ever shows it.

A program is started through a few lines of Python that set the death signal, the
CPUs and the capabilities and then become the program. A `preexec_fn` would do
that sooner, but runs Python between fork and exec, which may deadlock when the
test has threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import pytest
from pyroute2 import GenericNetlinkSocket, IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink import (  # type: ignore[import-untyped]
    NLM_F_DUMP,
    NLM_F_REQUEST,
    genlmsg,
)
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

Socket: TypeAlias = socket.socket  # inside Namespace, `socket` is a method

# linux/capability.h, in numeric order from 0.
_CAPABILITY_NAMES = """
    chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio
    sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time
    sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog
    wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
"""
CAPABILITIES = {name: number for number, name in enumerate(_CAPABILITY_NAMES.split())}

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_IFA_F_TENTATIVE = 0x40  # linux/if_addr.h
_SIOCETHTOOL = 0x8946  # linux/sockios.h

# linux/ethtool.h: the ETHTOOL_S... command of each feature, under the name that
# `ethtool -K` uses. The ETHTOOL_G... command is the number before it.
_ETHTOOL_SET = {"rx": 0x15, "tx": 0x17, "sg": 0x19, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}

# linux/mount.h; the system call numbers are the same on every architecture.
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6

_NETDEV_CMD_NAPI_GET = 11  # linux/netdev.h

# The parent is looked for once the death signal is set: had it died before, no
# signal would ever come. Python ignores SIGPIPE and SIGXFSZ, and what is ignored
# stays ignored across exec.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, cpus, capabilities, *argv = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
def prctl(option, value):
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} {value}")
prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(parent):
    sys.exit("the test process has gone")
for number in capabilities.split():
    prctl(24, int(number))  # PR_CAPBSET_DROP
if cpus:
    os.sched_setaffinity(0, map(int, cpus.split()))
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execvp(argv[0], argv)
"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int) -> int:
    """Return the result of a C function, or raise its errno."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 5.0) -> None:
    """Return as soon as the condition holds; say what did not happen if it never does."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(0.001)


def require_root() -> None:
    """Skip the test when a privilege is missing; in CI that is a failure."""
    status = Path("/proc/thread-self/status").read_text(encoding="ascii")
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [
        f"CAP_{name.upper()}"
        for name in ("sys_admin", "net_admin", "net_raw")
        if not effective >> CAPABILITIES[name] & 1
    ]
    if missing:
        reason = f"network namespaces need {', '.join(missing)}: run the tests as root"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)


def _current_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def _returning() -> Iterator[None]:
    """Bring the calling thread back to the namespace that it is in now."""
    home = _current_namespace()
    try:
        yield
    finally:
        _check(_libc.setns(home, _CLONE_NEWNET))
        os.close(home)


class Namespace:
    """One network namespace, held by the descriptor `fd`.

    `inode` is the number in `net:[...]`, by which the kernel names it.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self._processes: list[subprocess.Popen[str]] = []

    @classmethod
    def create(cls, name: str) -> Namespace:
        with _returning():
            _check(_libc.unshare(_CLONE_NEWNET))
            return cls(name, _current_namespace())

    def __repr__(self) -> str:
        return f"<Namespace {self.name} net:[{self.inode}]>"

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Move the calling thread into the namespace, and back at the end."""
        with _returning():
            _check(_libc.setns(self.fd, _CLONE_NEWNET))
            yield

    @contextlib.contextmanager
    def iproute(self) -> Iterator[Any]:
        """A pyroute2 IPRoute of this namespace; the thread is inside meanwhile."""
        with self.enter(), IPRoute() as ipr:
            yield ipr

    def socket(self, *args: int) -> Socket:
        with self.enter():
            return socket.socket(*args)

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cpus: Collection[int] = (),
        drop_capabilities: Collection[str] = (),
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a program inside; it dies with the thread that called this.

        Capabilities are dropped from the bounding set, which takes them from a
        root process; CAPABILITIES is all of them. The options are those of
        subprocess.Popen; standard output and error are text pipes unless they
        say otherwise. A child of the program is not tied to this process: the
        lab's close ends it, SIGKILL of the test does not.
        """
        program = os.fspath(argv[0])
        if shutil.which(program) is None:  # the launcher could only exit
            raise FileNotFoundError(program)
        launcher = [
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER),
            str(os.getpid()),
            " ".join(map(str, cpus)),
            " ".join(str(CAPABILITIES[name]) for name in drop_capabilities),
        ]
        defaults: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "encoding": "utf-8",
        }
        with self.enter():
            process: subprocess.Popen[str] = subprocess.Popen(
                [*launcher, *argv], **defaults | options
            )
        self._processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float = 30.0,
        check: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, as subprocess.run does, with popen's options."""
        with self.popen(argv, **options) as process:
            self._processes.remove(process)  # waited for here
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        result = subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)
        if check:
            result.check_returncode()
        return result

    def pids(self) -> list[int]:
        """The processes inside, whoever started them."""
        return _pids_inside({self.inode})

    def read(self, path: str) -> str:
        """Read a file of /proc as a process inside would see it."""
        with self.enter():
            return Path(_own_proc(path)).read_text(encoding="ascii")

    def write(self, path: str, text: str) -> None:
        """Write a file of /proc/sys/net."""
        with self.enter():
            Path(_own_proc(path)).write_text(text, encoding="ascii")

    def snmp(self) -> dict[str, dict[str, int]]:
        """The protocol counters: snmp()["Udp"]["NoPorts"], snmp()["Icmp6"]["InMsgs"]."""
        counters: dict[str, dict[str, int]] = defaultdict(dict)
        lines = self.read("/proc/net/snmp").splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            group, *columns = names.split()
            numbers = map(int, values.split()[1:])
            counters[group.rstrip(":")] = dict(zip(columns, numbers, strict=True))
        for line in self.read("/proc/net/snmp6").splitlines():
            key, value = line.split()
            group, name = re.fullmatch(r"([A-Za-z]+6)(\w+)", key).groups()  # type: ignore[union-attr]
            counters[group][name] = int(value)
        return dict(counters)

    def sysfs_read(self, path: str) -> str:
        """Read a file such as /sys/class/net/v0/queues/rx-0/rps_cpus."""
        with self._sysfs(path, os.O_RDONLY) as fd:
            return os.read(fd, 65536).decode("ascii").rstrip("\n")

    def sysfs_write(self, path: str, text: str) -> None:
        with self._sysfs(path, os.O_WRONLY) as fd:
            os.write(fd, text.encode("ascii"))

    @contextlib.contextmanager
    def _sysfs(self, path: str, flags: int) -> Iterator[int]:
        with contextlib.ExitStack() as stack:
            with self.enter():  # fsopen takes the namespace of its caller
                context = _check(_libc.syscall(_SYS_FSOPEN, b"sysfs", _FSOPEN_CLOEXEC))
            stack.callback(os.close, context)
            _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
            root = _check(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0))
            stack.callback(os.close, root)
            fd = os.open(str(Path(path).relative_to("/sys")), flags | os.O_CLOEXEC, dir_fd=root)
            stack.callback(os.close, fd)
            yield fd

    def kill(self) -> None:
        """End the programs started here, and close their pipes."""
        while self._processes:
            with self._processes.pop() as process:
                process.kill()

    def close(self) -> None:
        """Let go of the namespace."""
        self.kill()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _own_proc(path: str) -> str:
    """Make a path through /proc/net mean the namespace of the calling thread."""
    return re.sub(r"^/proc(/self)?/net/", "/proc/thread-self/net/", path)


def _pids_inside(inodes: Collection[int]) -> list[int]:
    pids = []
    for directory in Path("/proc").iterdir():
        # One that ends meanwhile is in no namespace; one that a container hides
        # from its root is not ours.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if directory.name.isdigit() and (directory / "ns/net").stat().st_ino in inodes:
                pids.append(int(directory.name))
    return pids


class Lab:
    """Namespaces and the links between them; a context manager."""

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []
        self._peers: dict[tuple[int, str], tuple[Namespace, str]] = {}  # of veth pairs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process in the lab and dismantle it."""
        # The descriptors stay open until the search is over: the number of a
        # namespace that is gone may be given to another.
        inodes = {ns.inode for ns in self._namespaces}

        def empty() -> bool:
            strays = [pid for pid in _pids_inside(inodes) if pid != os.getpid()]
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not strays

        try:
            for ns in self._namespaces:
                ns.kill()
            if inodes:
                wait_until(empty, "the processes in the lab end")
        finally:
            while self._namespaces:
                self._namespaces.pop().close()

    def namespace(self, name: str) -> Namespace:
        """Make a namespace with lo up."""
        ns = Namespace.create(name)
        self._namespaces.append(ns)
        # While the kernel looks for duplicates of an IPv6 address, a second or
        # two, the address cannot be bound.
        ns.write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
        self.link_set(ns, "lo", state="up")
        return ns

    def veth(
        self,
        a: Namespace,
        a_name: str,
        b: Namespace,
        b_name: str,
        *,
        queues: int = 1,
        mtu: int | None = None,
    ) -> None:
        """Join two namespaces; return when frames can pass."""
        options = {"num_rx_queues": queues, "num_tx_queues": queues}
        if mtu is not None:
            options["mtu"] = mtu
        with a.iproute() as ipr:
            peer = {"ifname": b_name, "net_ns_fd": b.fd, **options}
            ipr.link("add", ifname=a_name, kind="veth", peer=peer, **options)
        ends = ((a, a_name), (b, b_name))
        self._peers[a.inode, a_name], self._peers[b.inode, b_name] = ends[1], ends[0]
        for ns, name in ends:
            self.link_set(ns, name, state="up")
        # Carrier alone is not enough: until the kernel has also processed the
        # event, the transmit queue swallows what it is given.
        wait_until(
            lambda: all(self.link(*end).get("operstate") == "UP" for end in ends),
            f"{a_name} and {b_name} are operational",
        )

    def link(self, ns: Namespace, ifname: str) -> Any:
        """What RTM_GETLINK says about an interface: .get("address"), .get("mtu")."""
        with ns.iproute() as ipr:
            return ipr.link("get", index=socket.if_nametoindex(ifname))[0]

    def link_set(self, ns: Namespace, ifname: str, **attributes: Any) -> None:
        """Change an interface: state="down", mtu=1400, address="02:00:00:00:00:01"."""
        with ns.iproute() as ipr:
            ipr.link("set", index=socket.if_nametoindex(ifname), **attributes)

    def delete_link(self, ns: Namespace, ifname: str) -> None:
        with ns.iproute() as ipr:
            ipr.link("del", index=socket.if_nametoindex(ifname))

    def vlan(self, ns: Namespace, parent: str, name: str, vlan_id: int) -> None:
        """Add an 802.1Q interface on top of another, and set it up."""
        with ns.iproute() as ipr:
            index = socket.if_nametoindex(parent)
            try:
                ipr.link("add", ifname=name, kind="vlan", link=index, vlan_id=vlan_id)
            except NetlinkError as error:
                if error.code != errno.EOPNOTSUPP:
                    raise
                raise OSError(error.code, "the kernel lacks CONFIG_VLAN_8021Q") from error
        self.link_set(ns, name, state="up")

    def address(self, ns: Namespace, ifname: str, *interfaces: str) -> None:
        """Give an interface addresses ("10.0.0.1/24", "fd00::1/64"), ready for bind."""
        parsed = [ipaddress.ip_interface(text) for text in interfaces]
        with ns.iproute() as ipr:
            index = socket.if_nametoindex(ifname)
            for each in parsed:
                length = each.network.prefixlen
                ipr.addr("add", index=index, address=str(each.ip), prefixlen=length)
        added = {int(each.ip) for each in parsed if each.version == 6}
        wait_until(
            lambda: added <= _usable_ipv6(ns, ifname),
            f"{', '.join(interfaces)} on {ifname} of {ns!r} can be bound",
        )

    def neighbour(self, ns: Namespace, ifname: str, address: str, mac: str) -> None:
        """Make the link-layer address of a neighbour known for good."""
        with ns.iproute() as ipr:
            index = socket.if_nametoindex(ifname)
            ipr.neigh("replace", dst=address, lladdr=mac, ifindex=index, state="permanent")

    def route(self, ns: Namespace, destination: str, via: str) -> None:
        """Send what is for a destination ("10.1.0.0/16", "default") to a gateway."""
        family = socket.AF_INET6 if ":" in via else socket.AF_INET
        with ns.iproute() as ipr:
            ipr.route("add", dst=destination, gateway=via, family=family)

    def offload(self, ns: Namespace, ifname: str, **features: bool) -> None:
        """Switch offloads as `ethtool -K` does: offload(ns, "v0", gro=True, tx=False).

        With tx off, the sender computes every checksum in full; with tx on, veth
        hands over frames whose checksum is not filled in yet.
        """
        with ns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for feature, on in features.items():
                command = _ETHTOOL_SET[feature]
                _ethtool(sock, ifname, command, int(on))
                if bool(_ethtool(sock, ifname, command - 1)) != on:
                    raise OSError(f"{ifname} of {ns!r} keeps {feature}={not on}")

    def threaded_napi(self, ns: Namespace, ifname: str) -> list[int]:
        """Have a thread of its own receive for each queue; return their pids.

        On veth only GRO makes NAPI instances, hence gro=True comes first; and frames of a
        sender that has TSO pass them by (veth_skb_is_eligible_for_gro in drivers/net/veth.c).
        """
        self.offload(ns, ifname, gro=True)
        if (ns.inode, ifname) in self._peers:
            self.offload(*self._peers[ns.inode, ifname], tso=False)
        ns.sysfs_write(f"/sys/class/net/{ifname}/threaded", "1")
        return self.napi_threads(ns, ifname)

    def napi_threads(self, ns: Namespace, ifname: str) -> list[int]:
        """The pids of the kernel threads napi/<ifname>-<n>, in queue order.

        The kernel is asked (Linux 6.8), because the threads of all namespaces
        are listed together and other interfaces may have the same name.
        """
        with ns.enter(), GenericNetlinkSocket() as netdev:
            netdev.bind("netdev", _Napi)
            request = _Napi()
            request["cmd"] = _NETDEV_CMD_NAPI_GET
            request["version"] = 1
            request["attrs"] = [("IFINDEX", socket.if_nametoindex(ifname))]
            answers = netdev.nlm_request(
                request, msg_type=netdev.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
            )
            threads = {each.get("ID"): each.get("PID") for each in answers}
        return [pid for _, pid in sorted(threads.items()) if pid]

    def pin_napi(self, ns: Namespace, ifname: str, cpu: int) -> list[int]:
        """Pin the NAPI threads of an interface to one CPU; return their pids."""
        pids = self.napi_threads(ns, ifname)
        if not pids:
            raise RuntimeError(f"{ifname} of {ns!r} has no NAPI threads: call threaded_napi")
        for pid in pids:
            os.sched_setaffinity(pid, {cpu})
        return pids


class _Napi(genlmsg):  # type: ignore[misc]
    """A message of NETDEV_CMD_NAPI_GET; linux/netdev.h, NETDEV_A_NAPI_*."""

    nla_map = (
        ("UNSPEC", "none"),
        ("IFINDEX", "uint32"),
        ("ID", "uint32"),
        ("IRQ", "uint32"),
        ("PID", "uint32"),
    )


def _ethtool(sock: Socket, ifname: str, command: int, value: int = 0) -> int:
    """One command of the ETHTOOL ioctl that takes or gives a number."""
    data = (ctypes.c_uint32 * 2)(command, value)
    request = struct.pack("16sP16x", ifname.encode("ascii"), ctypes.addressof(data))
    fcntl.ioctl(sock, _SIOCETHTOOL, request)
    return data[1]


def _usable_ipv6(ns: Namespace, ifname: str) -> set[int]:
    usable = set()
    for line in ns.read("/proc/net/if_inet6").splitlines():
        address, _index, _length, _scope, flags, name = line.split()
        if name == ifname and not int(flags, 16) & _IFA_F_TENTATIVE:
            usable.add(int(address, 16))
    return usable


@dataclass(frozen=True)
class TwoHosts:
    """A server with five addresses and a client, on one link."""

    server: Namespace
    client: Namespace
    server_if: str = "v0"
    client_if: str = "v1"
    server_ipv4: tuple[str, ...] = ("10.77.0.1", "10.77.0.2", "10.77.0.3")
    server_ipv6: tuple[str, ...] = ("fd77::1", "fd77::2")
    client_ipv4: tuple[str, ...] = ("10.77.0.100",)
    client_ipv6: tuple[str, ...] = ("fd77::100",)


def two_hosts(lab: Lab, *, queues: int = 1) -> TwoHosts:
    """Join a server and a client by veth.

    Their neighbour entries are static, so that no packet waits for another.
    """
    hosts = TwoHosts(lab.namespace("server"), lab.namespace("client"))
    server = (hosts.server, hosts.server_if, hosts.server_ipv4, hosts.server_ipv6)
    client = (hosts.client, hosts.client_if, hosts.client_ipv4, hosts.client_ipv6)
    lab.veth(*server[:2], *client[:2], queues=queues)
    for ns, ifname, ipv4, ipv6 in (server, client):
        lab.address(ns, ifname, *(f"{ip}/24" for ip in ipv4), *(f"{ip}/64" for ip in ipv6))
    for here, there in ((server, client), (client, server)):
        mac = lab.link(*there[:2]).get("address")
        for ip in there[2] + there[3]:
            lab.neighbour(*here[:2], ip, mac)
    return hosts


@pytest.fixture(name="lab")
def lab_fixture() -> Iterator[Lab]:
    """An empty lab, dismantled after the test."""
    require_root()
    with Lab() as lab:
        yield lab


@pytest.fixture(name="hosts")
def hosts_fixture(lab: Lab) -> TwoHosts:
    """The lab with two_hosts in it."""
    return two_hosts(lab)
