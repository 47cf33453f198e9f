"""Unix sockets at a path: whose file it is, and what of a dead one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest

from pktstun.kernel.unix_socket import file_identity, listen_at, remove_dead

DESCRIPTORS = Path("/proc/self/fd")
KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]


@pytest.fixture(name="kind", params=KINDS, ids=lambda kind: kind.name)
def kind_fixture(request: pytest.FixtureRequest) -> socket.SocketKind:
    kind: socket.SocketKind = request.param
    return kind


def test_owner_and_group_may_connect(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "socket"
    before = os.umask(0o022)
    try:
        with listen_at(path, kind, 1) as listener, socket.socket(socket.AF_UNIX, kind) as client:
            assert not listener.getblocking()
            assert path.stat().st_mode & 0o777 == 0o660
            client.connect(str(path))
            listener.accept()[0].close()
    finally:
        assert os.umask(before) == 0o022


def test_a_dead_one_is_replaced_and_a_living_one_is_not(
    tmp_path: Path, kind: socket.SocketKind
) -> None:
    path = tmp_path / "socket"
    listen_at(path, kind, 1).close()
    with listen_at(path, kind, 1):
        with pytest.raises(OSError, match="in use") as caught:
            listen_at(path, kind, 1)
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("other", ["file", "directory", "link", "busy", "another kind"])
def test_what_is_no_dead_socket_stays(tmp_path: Path, other: str) -> None:
    path = tmp_path / "socket"
    kept: list[socket.socket] = []
    match other:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "nowhere")
        case "busy":  # nobody takes connections in, and no more can wait
            kept.append(listen_at(path, socket.SOCK_STREAM, 0))
            for _ in range(3):
                kept.append(socket.socket(socket.AF_UNIX))
                kept[-1].settimeout(0)
                kept[-1].connect_ex(str(path))
        case _:
            kept.append(listen_at(path, socket.SOCK_SEQPACKET, 1))
    before = file_identity(path)
    with pytest.raises(OSError, match="in use"):
        listen_at(path, socket.SOCK_STREAM, 1)
    remove_dead(tmp_path, "*", socket.SOCK_STREAM)
    assert file_identity(path) == before
    for each in kept:
        each.close()


def test_the_dead_are_removed_and_the_living_are_not(
    tmp_path: Path, kind: socket.SocketKind
) -> None:
    for name in ("1.sock", "2.sock", "other"):
        listen_at(tmp_path / name, kind, 1).close()
    with listen_at(tmp_path / "3.sock", kind, 1):
        remove_dead(tmp_path, "*.sock", kind)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["3.sock", "other"]


def test_who_holds_the_directory_keeps_nobody_from_listening(tmp_path: Path) -> None:
    """Whoever may read it can do that, be it /run."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        listen_at(tmp_path / "socket", socket.SOCK_STREAM, 1).close()
        listen_at(tmp_path / "socket", socket.SOCK_STREAM, 1).close()
    finally:
        os.close(descriptor)


def test_what_cannot_be_had_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(list(DESCRIPTORS.iterdir()))
    with pytest.raises(FileNotFoundError):
        listen_at(tmp_path / "nowhere" / "socket", socket.SOCK_STREAM, 1)
    with pytest.raises(OSError, match="too long"):
        listen_at(tmp_path / ("x" * 200), socket.SOCK_STREAM, 1)
    assert len(list(DESCRIPTORS.iterdir())) == before
