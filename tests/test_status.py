"""The status socket: who gets what, what nobody gets, and what becomes of the file."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import pwd
import select
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.config import Mode, ServeConfig, plan
from pktstun.errors import ConfigError
from pktstun.observe import Service, find_services
from pktstun.resources import Resources
from pktstun.stats import SharedPage
from pktstun.status import StatusSocket, describe, directory_for
from tests.lab import require_root
from tests.observe.services import answering, description

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.native


@pytest.fixture(name="page")
def page_fixture() -> Iterator[SharedPage]:
    with SharedPage(2) as page:
        yield page


def opened(path: Path, page: SharedPage) -> StatusSocket:
    sock = StatusSocket.open(str(path), page)
    assert sock is not None
    return sock


def ask(path: Path) -> socket.socket:
    """Connect and wait for nothing."""
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking.settimeout(5)
    asking.connect(str(path))
    return asking


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def lent(path: Path, page: SharedPage) -> int:
    """Return the descriptor that whoever asks gets."""
    with opened(path, page) as sock, ask(path) as asking:
        assert sock.answer(lambda: description(page)) == 0
        message, descriptors, _, _ = socket.recv_fds(asking, 1 << 20, 4)
        assert asking.recv(1) == b""
    assert json.loads(message)["pid"] == 4711
    (descriptor,) = descriptors
    return descriptor


# --- What one gets is for reading ---


def test_the_page_cannot_be_mapped_for_writing(tmp_path: Path, page: SharedPage) -> None:
    descriptor = lent(tmp_path / "s", page)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(OSError, match="Invalid argument"):
            os.ftruncate(descriptor, 0)
        with mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            page.slots[0].begin(1)
            assert mapped[:] != bytes(mmap.PAGESIZE)
    finally:
        os.close(descriptor)


_FORGE = """
import ctypes, errno, mmap, os, sys
descriptor = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
address = libc.mmap(None, 4096, 1, 1, descriptor, 0)  # PROT_READ, MAP_SHARED
assert address != ctypes.c_void_p(-1).value
assert libc.mprotect(address, 4096, 3) == -1 and ctypes.get_errno() == errno.EACCES
for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY):
    try:
        os.open(f"/proc/self/fd/{descriptor}", flags)
    except PermissionError:
        continue
    sys.exit(f"opened again with {flags}")
for change in (lambda: os.fchmod(descriptor, 0o666), lambda: os.fchown(descriptor, 65534, -1)):
    try:
        change()
    except PermissionError:
        continue
    sys.exit("changed")
print("read only")
"""


@pytest.mark.root
def test_another_user_cannot_open_it_again(tmp_path: Path, page: SharedPage) -> None:
    """Nor make a mapping writable. Root could, and the owner, who may end the service as well."""
    require_root()
    nobody = pwd.getpwnam("nobody")
    descriptor = lent(tmp_path / "s", page)
    assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o400
    # The interpreter may be where only root can read it, so it is root's until then.
    program = f"import os, sys\nos.setgroups([])\nos.setresgid(*[{nobody.pw_gid}] * 3)\n"
    program += f"import ctypes, mmap\nos.setresuid(*[{nobody.pw_uid}] * 3)\n{_FORGE}"
    try:
        result = subprocess.run(
            [sys.executable, "-c", program, str(descriptor)],
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        os.close(descriptor)
    assert (result.stdout, result.stderr) == ("read only\n", "")


def test_the_workers_mapping_stays_writable(tmp_path: Path, page: SharedPage) -> None:
    """And an upgrade maps the file again."""
    os.close(lent(tmp_path / "s", page))
    page.slots[0].begin(7)
    with SharedPage(2, os.dup(page.fileno())) as again:
        again.slots[1].begin(8)
        assert [slot.read().pid for slot in page.slots] == [7, 8]


# --- Nobody holds it up ---


def test_who_does_not_read_costs_nothing(tmp_path: Path, page: SharedPage) -> None:
    """A crowd connects and goes to sleep, some have gone already: the next one is answered."""
    path = tmp_path / "s"
    with opened(path, page) as sock, contextlib.ExitStack() as stack:
        for number in range(10):
            sleeper = stack.enter_context(ask(path))
            if number % 2:
                sleeper.close()
            sock.answer(lambda: description(page))
        descriptors = len(open_descriptors())
        last = stack.enter_context(ask(path))
        sock.answer(lambda: description(page))
        assert len(open_descriptors()) == descriptors + 1
        assert json.loads(last.recv(1 << 20))["pid"] == 4711


def test_so_many_a_second_and_no_more(tmp_path: Path, page: SharedPage) -> None:
    path = tmp_path / "s"
    answered = 0

    def count() -> dict[str, object]:
        nonlocal answered
        answered += 1
        return description(page)

    with opened(path, page) as sock:
        pause = 0.0
        for _ in range(100):
            with ask(path):
                pause = sock.answer(count)
            if pause:
                break
        assert 20 <= answered <= 25
        assert 0 < pause <= 0.05
        # Whoever came too much is answered when that has passed.
        waiting = ask(path)
        end = time.monotonic() + 5
        while not select.select([waiting], [], [], 0)[0] and time.monotonic() < end:
            time.sleep(sock.answer(count))
        with waiting:
            assert waiting.recv(1 << 20)


def test_an_address_book_fits(tmp_path: Path, page: SharedPage) -> None:
    """As many addresses as are named at most, of the longest."""
    serving = [f"[2001:db8:1234:5678:9abc:def0:1234:{n}]:65535" for n in range(1000, 1256)]
    said = description(page, serving=serving, tcp=serving, tls=serving, serving_count=5000)
    with answering(tmp_path / "s", page, lambda: said), Service(tmp_path / "s") as service:
        assert service.info.serving == tuple(serving)


# --- The file ---


def test_only_the_user_and_the_group(tmp_path: Path, page: SharedPage) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "s", page):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_it_is_gone_at_the_end(tmp_path: Path, page: SharedPage) -> None:
    before = open_descriptors()
    sock = opened(tmp_path / "s", page)
    sock.close()
    sock.close()
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() == before


def test_what_a_killed_service_left_is_replaced(tmp_path: Path, page: SharedPage) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.bind(str(path))
    with answering(path, page), Service(path) as service:
        assert service.info.pid == 4711


@pytest.mark.parametrize("kind", ["service", "other socket", "file"])
def test_what_is_there_is_respected(tmp_path: Path, page: SharedPage, kind: str) -> None:
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        if kind == "service":
            stack.enter_context(opened(path, page))
        elif kind == "other socket":
            other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            other.bind(str(path))
            other.listen(1)
        else:
            path.write_text("precious")
        inode = path.stat().st_ino
        with pytest.raises(ConfigError, match=r"--status-socket .*no dead service's socket"):
            StatusSocket.open(str(path), page)
        assert path.stat().st_ino == inode


def test_anothers_file_is_not_removed(tmp_path: Path, page: SharedPage) -> None:
    path = tmp_path / "s"
    first = opened(path, page)
    path.unlink()
    with opened(path, page):
        first.close()
        assert path.exists()
    assert not path.exists()


def test_an_upgrade_goes_on_with_it(tmp_path: Path, page: SharedPage) -> None:
    path = tmp_path / "s"
    old = opened(path, page)
    with ask(path) as asking:
        handed = json.loads(json.dumps(old.hand_over()))
        with SharedPage(2, os.dup(page.fileno())) as adopted:
            handed["listener"] = os.dup(handed["listener"])
            new = StatusSocket.adopt(handed, adopted)
            assert new.path == path
            # Who has asked the old version is answered by the new one.
            new.answer(lambda: description(adopted))
            assert asking.recv(1 << 20)
            new.close()
    assert not path.exists()
    old.close()


# --- Where it is ---


@pytest.fixture(name="places")
def places_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("pktstun.observe._service.RUN", tmp_path / "run")
    monkeypatch.setattr("pktstun.status.RUN", tmp_path / "run")
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    (tmp_path / "xdg").mkdir()
    return tmp_path


def path_of(page: SharedPage) -> Path | None:
    sock = StatusSocket.open(None, page)
    if sock is None:
        return None
    with sock:
        assert sock.path.is_socket()
        return sock.path


def test_the_best_place(places: Path, page: SharedPage, monkeypatch: pytest.MonkeyPatch) -> None:
    name, user = f"{os.getpid()}.sock", str(os.geteuid())
    before = os.umask(0o077)
    try:
        assert path_of(page) == places / "run" / user / name
    finally:
        os.umask(before)
    # Others have theirs in there, too.
    assert stat.S_IMODE((places / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((places / "run" / user).stat().st_mode) & 0o007 == 0
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{places / 'systemd'}:{places / 'more'}")
    assert path_of(page) == places / "systemd" / name


def test_what_killed_services_left_is_removed(places: Path, page: SharedPage) -> None:
    first = StatusSocket.open(None, page)
    assert first is not None
    directory = first.path.parent
    first.close()
    for name in ("1.sock", "2.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
            killed.bind(str(directory / name))
    (directory / "3.sock").write_text("precious")
    with opened(directory / "4.sock", page):
        path_of(page)
        assert sorted(path.name for path in directory.iterdir()) == ["3.sock", "4.sock"]
    assert directory.is_relative_to(places)


def test_the_next_best_place(
    places: Path, page: SharedPage, caplog: pytest.LogCaptureFixture
) -> None:
    (places / "run").write_text("no directory")
    assert path_of(page) == places / "xdg" / "pktstun" / f"{os.getpid()}.sock"
    assert caplog.records == []


def test_no_place_is_a_line_in_the_log(
    places: Path,
    page: SharedPage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (places / "run").write_text("no directory")
    monkeypatch.setattr(
        "pktstun.status.directories", lambda _: [places / "run" / "1", places / "nowhere" / "x"]
    )
    # The command's tests may have it off.
    monkeypatch.setattr(logging.getLogger("pktstun"), "propagate", True)
    assert path_of(page) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "name one with --status-socket, or say --no-status" in record.message


@pytest.mark.usefixtures("places")
def test_it_is_found_there(page: SharedPage) -> None:
    sock = StatusSocket.open(None, page)
    assert sock is not None
    path = sock.path
    sock.close()
    with answering(path, page):
        found = find_services()
        assert [each.info.path for each in found.services] == [path]
        found.close()


def test_a_user_that_root_becomes_gets_a_directory(places: Path) -> None:
    user = pwd.getpwuid(os.geteuid())
    assert directory_for(user) == places / "run" / str(user.pw_uid)
    assert (places / "run").is_dir()
    assert directory_for(None) is None


# --- The configuration ---


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"status_socket": "/no/such/place/s"}, "there is no directory /no/such/place: make it"),
        ({"status_socket": "/tmp/" + "x" * 104}, "at most 107 bytes"),
        ({"status_socket": "/tmp/s", "status": False}, "leave one out"),
    ],
)
def test_a_path_that_cannot_be(changes: dict[str, object], fix: str) -> None:
    config = ServeConfig(mode=Mode.RECVMMSG, listen=("127.0.0.1",), **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=fix) as raised:
        plan(config)
    assert "--status-socket" in str(raised.value)


def test_what_a_service_says_of_itself(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    metrics = f"unix:{tmp_path / 'metrics'}"
    config = ServeConfig(
        mode=Mode.RECVMMSG, listen=(address,), cpus=(0,), tcp=True, metrics=metrics
    )
    with Resources(plan(config)) as resources:
        said = json.loads(json.dumps(describe(resources)))
        assert said["started"] == resources.started
    assert (said["mode"], said["iface"], said["ring"]) == ("recvmmsg", None, None)
    assert (said["serving"], said["serving_count"]) == ([address], 1)
    assert (said["tcp"], said["tls"]) == ([address], [])
    kinds = [each["kind"] for each in said["workers"]]
    assert kinds == ["datagrams", "exporter", "streams"]
    assert [each["cpu"] for each in said["workers"]] == [0, None, None]
    assert said["page"]["slots"] == 3
    assert said["pid"] == os.getpid()
