"""A process that has dropped its privileges and is confined: what it may still do, and what not.

Each call is made by a process of its own, as a worker's would be after the same two steps.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.native

_PROGRAM = """
import ctypes, fcntl, os, select, signal, socket, threading, time, traceback
from ipaddress import ip_address
from pktstun.kernel import Datagram, ListeningSocket, UDPSocket, privileges, seccomp
from pktstun.stun import TransportAddress
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
udp = UDPSocket(TransportAddress(ip_address("127.0.0.1"), 0), share=False)
other = UDPSocket(TransportAddress(ip_address("127.0.0.1"), 0), share=False)
raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
pair = os.pipe()
page = libc.mmap(None, 4096, 3, 0x22, -1, 0)
listener = ListeningSocket(TransportAddress(ip_address("127.0.0.1"), 0))
client = socket.create_connection(("127.0.0.1", listener.address.port))
poll = select.epoll()
privileges.drop()
assert seccomp.confine({loop}, sending={udp.fileno()}, writing={1, 2, pair[1]})
os.write(1, b"confined ")
"""
DATAGRAMS, STREAMS = "seccomp.Loop.DATAGRAMS", "seccomp.Loop.STREAMS"
EXPORTER = "seccomp.Loop.EXPORTER"

FORBIDDEN = {
    "socket": "libc.socket(2, 2, 0)",
    "sendmmsg on another socket": "other.sendmmsg([Datagram(b'x', udp.address)])",
    "write to a socket": "os.write(udp.fileno(), b'x')",
    "write to another pipe": "os.write(pair[0], b'x')",
    "bind": "raw.bind(('127.0.0.1', 0))",
    "connect": "raw.connect(('127.0.0.1', 9))",
    "setsockopt": "raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)",
    "execve": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "thread": "threading.Thread(target=int).start()",
    "ptrace": "libc.ptrace(16, 1, None, None)",
    "kill": "os.kill(os.getppid(), 0)",
    "kill itself": "os.kill(os.getpid(), 0)",
    "tgkill of another": "libc.tgkill(1, 1, 0)",
    "mmap PROT_EXEC": "libc.mmap(None, 4096, 5, 0x22, -1, 0)",
    "mprotect PROT_EXEC": "libc.mprotect(page, 4096, 5)",
    "prctl": "libc.prctl(3, 0, 0, 0, 0)",
    "setuid": "os.setuid(0)",
    "unshare": "libc.unshare(0)",
    "mount": "libc.mount(b'a', b'/', b'tmpfs', 0, None)",
    "chroot": "os.chroot('/')",
    "unlink": "os.unlink('/nowhere')",
    "sched_setaffinity": "os.sched_setaffinity(0, {0})",
    "setpriority": "os.setpriority(os.PRIO_PROCESS, 0, 0)",
    "io_uring_setup": "libc.syscall(425, 1, None)",
    "pidfd_open": "libc.syscall(434, 1, 0)",
    "memfd_create": "os.memfd_create('x')",
}

# What one of the two loops does and the other never.
FORBIDDEN_DATAGRAMS = {
    "accept": "listener.accept()",
    "recv": "client.recv(1, socket.MSG_DONTWAIT)",
    "epoll": "poll.register(client)",
    "shutdown": "client.shutdown(socket.SHUT_WR)",
}
FORBIDDEN_STREAMS = {
    "recvmmsg": "udp.recvmmsg()",
    "sendmmsg": "udp.sendmmsg([Datagram(b'x', udp.address)])",
    "listen": "socket.socket.listen(raw)",
    "ioctl": "fcntl.ioctl(client, 0x541B, bytes(4))",
    "sendmsg": "client.sendmsg([b'x'], [(1, 1, bytes(4))])",
}

FORBIDDEN_EXPORTER = {
    **FORBIDDEN_STREAMS,
    "shutdown": FORBIDDEN_DATAGRAMS["shutdown"],
    "sched_setaffinity of another": "os.sched_setaffinity(os.getppid(), {0})",
}

REFUSED = {
    "open": "os.open('/etc/hostname', os.O_RDONLY)",
    "open to write": "open('/tmp/pktstun-confined', 'w')",
    "stat": "os.stat('/')",
    "access": "raise PermissionError(os.access('/', os.R_OK) or 13, '')",
    "readlink": "os.readlink('/proc/self/exe')",
    "listdir": "os.listdir('/')",
}

ALLOWED = {
    "loop": (
        "udp.sendmmsg([Datagram(b'x', udp.address)]);"
        "assert [each.data for each in udp.recvmmsg()] == [b'x']"
    ),
    "pipe": "os.write(pair[1], b'x'); assert os.read(pair[0], 1) == b'x'; os.close(pair[0])",
    "clock": "time.sleep(0.001); time.monotonic(); time.thread_time()",
    "memory": "block = bytearray(1 << 24); del block",
    "mapping": "assert libc.mmap(None, 4096, 3, 0x22, -1, 0)",
    "signals": "signal.signal(signal.SIGTERM, signal.SIG_DFL); signal.set_wakeup_fd(-1)",
    "names": "os.getpid(), os.getppid(), os.getuid(), os.sched_getaffinity(0), os.urandom(8)",
    "traceback": "traceback.format_stack()",
}


ALLOWED_STREAMS = {
    "connections": (
        "poll.register(listener, select.EPOLLIN); assert poll.poll(5)\n"
        "taken, _ = listener.accept(); client.send(b'x'); time.sleep(0.01)\n"
        "assert taken.recv(9) == b'x'; taken.getpeername(); taken.getsockname()\n"
        "taken.send(b'y'); assert client.recv(9) == b'y'\n"
        "poll.unregister(listener); taken.close()"
    ),
    "tickets": "os.urandom(8); time.monotonic(); block = bytearray(1 << 24); del block",
    "traceback": "traceback.format_stack()",
    "end": "os.write(1, b''); signal.signal(signal.SIGTERM, signal.SIG_DFL)",
}
ALLOWED_EXPORTER = {
    "questions": (
        "home = os.sched_getaffinity(0); os.sched_setaffinity(0, {min(home)})\n"
        "raw.sendto(b'x', socket.MSG_DONTWAIT, ('127.0.0.1', udp.address.port))\n"
        "os.sched_setaffinity(0, home); time.sleep(0.01); poll.register(udp.fileno())"
    ),
    "connections": ALLOWED_STREAMS["connections"].replace("taken.getpeername(); ", ""),
    "end": ALLOWED_STREAMS["end"],
}


def confined(what: str, loop: str = DATAGRAMS) -> subprocess.CompletedProcess[str]:
    # A worker ends like that, too: not by way of what the interpreter does at its end.
    end = "\nos.write(1, b'done')\nos._exit(0)\n"
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM.replace("{loop}", loop) + what + end],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("call", "loop"),
    [
        *((call, DATAGRAMS) for call in (*FORBIDDEN.values(), *FORBIDDEN_DATAGRAMS.values())),
        *((call, STREAMS) for call in (*FORBIDDEN.values(), *FORBIDDEN_STREAMS.values())),
        *((call, EXPORTER) for call in FORBIDDEN_EXPORTER.values()),
    ],
    ids=[
        *(*FORBIDDEN, *FORBIDDEN_DATAGRAMS),
        *(f"streams-{name}" for name in (*FORBIDDEN, *FORBIDDEN_STREAMS)),
        *(f"exporter-{name}" for name in FORBIDDEN_EXPORTER),
    ],
)
def test_what_kills(call: str, loop: str) -> None:
    result = confined(call, loop)
    assert result.stdout == "confined "
    assert result.returncode == -signal.SIGSYS


@pytest.mark.parametrize("call", REFUSED)
def test_what_is_refused(call: str) -> None:
    """Python looks at files where it tells of an error; that must not be its end."""
    result = confined(f"try:\n    {REFUSED[call]}\nexcept PermissionError:\n    os.write(1, b'no')")
    assert (result.stdout, result.returncode) == ("confined nodone", 0)


@pytest.mark.parametrize(
    ("call", "loop"),
    [
        *((call, DATAGRAMS) for call in ALLOWED.values()),
        *((call, STREAMS) for call in ALLOWED_STREAMS.values()),
        *((call, EXPORTER) for call in ALLOWED_EXPORTER.values()),
    ],
    ids=[
        *ALLOWED,
        *(f"streams-{name}" for name in ALLOWED_STREAMS),
        *(f"exporter-{name}" for name in ALLOWED_EXPORTER),
    ],
)
def test_what_works(call: str, loop: str) -> None:
    result = confined(call, loop)
    assert (result.stderr, result.stdout, result.returncode) == ("", "confined done", 0)


def test_an_exception_is_still_told() -> None:
    result = confined("try: raise ValueError('a bug')\nexcept ValueError: traceback.print_exc()")
    assert (result.stdout, result.returncode) == ("confined done", 0)
    assert "ValueError: a bug" in result.stderr


def test_abort_still_leaves_a_core() -> None:
    assert confined("os.abort()").returncode == -signal.SIGABRT
