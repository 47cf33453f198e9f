"""Where metrics are served: what is refused, and what becomes of the file of a unix socket."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pktstun.errors import ConfigError, EngineError
from pktstun.metrics import MetricsAddress, MetricsListener
from tests.metrics.scraping import connect

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="where")
def where_fixture() -> Iterator[MetricsAddress]:
    # A path of pytest's may be too long for a socket.
    with tempfile.TemporaryDirectory() as directory:
        yield MetricsAddress.parse(f"unix:{directory}/m.sock")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unix:/run/pktstun/metrics.sock", "unix:/run/pktstun/metrics.sock"),
        ("127.0.0.1:9478", "127.0.0.1:9478"),
        ("127.0.0.1", "127.0.0.1:9478"),
        ("127.9.9.9:1", "127.9.9.9:1"),
        ("[::1]:9478", "[::1]:9478"),
        ("::1", "[::1]:9478"),
    ],
)
def test_what_is_an_address(text: str, shown: str) -> None:
    parsed = MetricsAddress.parse(text)
    assert str(parsed) == shown
    assert MetricsAddress.parse(shown) == parsed


@pytest.mark.parametrize(
    "text", ["0.0.0.0:9478", "192.0.2.1:9478", "[::]:9478", "[2001:db8::1]:9478", "10.0.0.1"]
)
def test_what_others_can_reach_is_refused_with_the_reason_and_the_way(text: str) -> None:
    with pytest.raises(ConfigError, match=r"without encryption.*this host only.*reverse proxy"):
        MetricsAddress.parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "write unix:/run"),
        ("9478", "write unix:/run"),
        ("localhost:9478", "write unix:/run"),
        ("127.0.0.1:0", "write unix:/run"),
        ("127.0.0.1:70000", "write unix:/run"),
        ("[::ffff:127.0.0.1]:9478", "write unix:/run"),
        ("/run/metrics.sock", "write unix:/run"),
        ("unix:", "full path"),
        ("unix:metrics.sock", "full path"),
        ("unix:/run/", "full path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_what_is_no_address_is_told_what_is_one(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        MetricsAddress.parse(text)


def test_owner_and_group_may_connect(where: MetricsAddress) -> None:
    before = os.umask(0)
    try:
        with MetricsListener(where):
            mode = Path(where.path or "").lstat().st_mode
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


def test_it_listens_and_goes_with_its_file(where: MetricsAddress) -> None:
    listener = MetricsListener(where)
    assert where.path is not None
    with connect(where.path) as client:
        client.send(b"x")
        with listener.accept() as taken:
            assert taken.recv(1) == b"x"
            assert not taken.getblocking()
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.remove()
    assert not Path(where.path).exists()
    listener.remove()


def test_what_was_left_by_one_who_was_killed_is_replaced(where: MetricsAddress) -> None:
    MetricsListener(where).close()
    assert where.path is not None
    assert Path(where.path).exists()
    with MetricsListener(where), connect(where.path):
        pass


def test_who_listens_is_left_alone(where: MetricsAddress) -> None:
    assert where.path is not None
    with MetricsListener(where):
        with pytest.raises(EngineError, match=r"in use.*ss -lxp src"):
            MetricsListener(where)
        with connect(where.path):
            pass


def test_a_file_that_is_no_socket_is_left_alone(where: MetricsAddress) -> None:
    assert where.path is not None
    Path(where.path).write_text("precious")
    with pytest.raises(ConfigError, match=r"is no socket: remove it"):
        MetricsListener(where)
    assert Path(where.path).read_text() == "precious"


def test_the_file_of_another_is_not_removed(where: MetricsAddress) -> None:
    assert where.path is not None
    listener = MetricsListener(where)
    assert listener.can_be_found()
    Path(where.path).unlink()
    assert not listener.can_be_found()
    with MetricsListener(where):
        assert not listener.can_be_found()
        listener.remove()
        with connect(where.path):
            pass


def test_a_missing_directory_is_told_how_to_make(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no directory .*/nowhere: make it \('install -d"):
        MetricsListener(MetricsAddress.parse(f"unix:{tmp_path}/nowhere/m.sock"))


def test_a_directory_of_another_user_is_told_so(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        directory = Path("/")
    else:
        directory = tmp_path
        for each in (tmp_path, *tmp_path.parents):
            if each != Path("/"):
                each.chmod(each.stat().st_mode | 0o755)
    program = (
        "import os, sys\n"
        "from pktstun.metrics import MetricsAddress, MetricsListener\n"
        "from pktstun.errors import PrivilegeError\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setuid(65534)\n"
        "try: MetricsListener(MetricsAddress.parse(sys.argv[1]))\n"
        "except PrivilegeError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"unix:{directory}/m.sock"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "may not make a socket in" in done.stdout
    assert "install -d" in done.stdout


def test_a_port_has_one_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EngineError, match=rf"in use.*ss -ltnp sport = :{port}"):
            MetricsListener(MetricsAddress.parse(f"127.0.0.1:{port}"))
    with MetricsListener(MetricsAddress.parse(f"127.0.0.1:{port}")) as listener:
        with pytest.raises(EngineError, match="in use"):
            MetricsListener(MetricsAddress.parse(f"127.0.0.1:{port}"))
        with socket.create_connection(("127.0.0.1", port)), listener.accept():
            pass


@pytest.mark.parametrize("own", [True, False])
def test_another_process_goes_on_with_it(where: MetricsAddress, *, own: bool) -> None:
    """In the trial of an upgrade the file is not its own."""
    assert where.path is not None
    first = MetricsListener(where)
    second = MetricsListener.adopt(os.dup(first.fileno()), where, own=own)
    first.close()
    with connect(where.path), second.accept():
        pass
    assert second.can_be_found()
    second.remove()
    assert Path(where.path).exists() != own


def test_so_it_does_with_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = MetricsAddress.parse(f"127.0.0.1:{free.getsockname()[1]}")
    first = MetricsListener(where)
    second = MetricsListener.adopt(os.dup(first.fileno()), where)
    first.close()
    assert where.address is not None
    with socket.create_connection(("127.0.0.1", where.address.port)), second.accept() as taken:
        assert not taken.getblocking()
    second.remove()
    assert second.fileno() == -1
