"""Asking services: every number under its name, other versions, and what is no answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pktstun.errors import NoServiceError, StatusError
from pktstun.observe import Service, Task, find_services
from pktstun.stats import FAMILIES, SEND_ERRORS, VERDICTS, SharedPage
from tests.observe.services import answering, description

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.native


@pytest.fixture(name="page")
def page_fixture() -> Iterator[SharedPage]:
    with SharedPage(2) as page:
        yield page


def test_every_number_under_its_name(tmp_path: Path, page: SharedPage) -> None:
    slot = page.slots[1]
    raw = slot.pointer
    for at in range(len(FAMILIES)):
        raw.received[at] = 1 << 40 + at
        for number in VERDICTS.values():
            raw.verdicts[at][number] = 1000 * at + number
    for index in range(16):
        raw.receive_sizes[index], raw.send_sizes[index] = index, 2 * index
    raw.send_errors[SEND_ERRORS["eperm"]] = 7
    slot.begin(4711)
    slot.turn()
    raw.sent, raw.ring_ready, raw.ring_ready_peak, raw.connections_open = 1 << 50, 3, 4, 5
    with answering(tmp_path / "s", page), Service(tmp_path / "s") as service:
        first, second = service.read().workers
    assert (first.number, first.task) == (0, Task("datagrams", 0))
    assert (first.pid, first.state, first.starts) == (0, "down", 0)
    assert (second.pid, second.state, second.starts) == (4711, "running", 1)
    stats = slot.read()
    assert second.received == stats.received
    assert second.outcomes_by_family == stats.verdicts
    assert (second.answered, second.dropped) == (stats.answered, stats.dropped)
    assert second.send_errors == stats.send_errors
    assert second.receive_sizes == stats.receive_sizes
    assert second.send_sizes == stats.send_sizes
    assert (second.ring_ready, second.ring_peak, second.connections) == (3, 4, 5)
    assert 0 <= second.age < 5
    # What a script may add up is there; marks of the loop are not.
    assert all(second.counters[name] == getattr(stats, name) for name in second.counters)
    assert second.counters["sent"] == 1 << 50
    assert not {"cursor", "frame", "skip", "stop"} & set(second.counters)


def test_what_sockets_have_no_room_for_comes_with_the_answer(
    tmp_path: Path, page: SharedPage
) -> None:
    said = [{"drops": 7, "fill": 0.5}, {"drops": 0, "fill": 1.25}]
    with (
        answering(tmp_path / "s", page, lambda: description(page, sockets=said)),
        Service(tmp_path / "s") as service,
    ):
        workers = service.read().workers
    assert [(each.socket_drops, each.socket_fill) for each in workers] == [(7, 0.5), (0, 1.0)]


def test_the_page_lives_on(tmp_path: Path, page: SharedPage) -> None:
    """It is asked for once, and shows what is counted later, by others."""
    with answering(tmp_path / "s", page), Service(tmp_path / "s") as service:
        assert service.read().workers[0].counters["sent"] == 0
        page.slots[0].pointer.sent = 12
        assert service.read().workers[0].counters["sent"] == 12


def test_a_heart_that_does_not_beat(tmp_path: Path, page: SharedPage) -> None:
    for slot in page.slots:
        slot.begin(1)
        slot.pointer.heartbeat = time.monotonic_ns()
    page.slots[1].pointer.heartbeat -= 3_000_000_000
    with answering(tmp_path / "s", page), Service(tmp_path / "s") as service:
        snapshot = service.read()
    assert [each.state for each in snapshot.workers] == ["running", "stuck"]
    assert len(snapshot.problems) == 1
    assert snapshot.problems[0].startswith("worker 1 stuck, its loop stood still for 3.")


def test_another_version_is_read_by_the_names_it_sends(tmp_path: Path, page: SharedPage) -> None:
    """A later one has more of everything, an earlier one less."""
    said = description(page)["page"]
    layout = {name: place for name, place in said["layout"].items() if name != "receive_sizes"}
    later = {**said, "layout": {**layout, "of_tomorrow": [4088, 8]}}
    later["verdicts"] = {"success": 1, "a_new_reason": 60, "far_out": 64}
    page.slots[0].pointer.verdicts[1][60] = 9
    changes: dict[str, Any] = {"page": later, "version": "9.9", "more": {"x": 1}}
    with (
        answering(tmp_path / "s", page, lambda: description(page, **changes)),
        Service(tmp_path / "s") as service,
    ):
        worker = service.read().workers[0]
    assert service.info.version == "9.9"
    assert worker.dropped == {"a_new_reason": 9}
    assert worker.counters["of_tomorrow"] == 0
    assert worker.receive_sizes == ()


def test_another_protocol_is_refused_with_a_way_out(tmp_path: Path, page: SharedPage) -> None:
    with (
        answering(tmp_path / "s", page, lambda: description(page, protocol=2, version="9.9")),
        pytest.raises(StatusError, match=r"version 9\.9.*use its own 'pktstun status'"),
    ):
        Service(tmp_path / "s")


def test_nothing_that_is_printed_moves_the_cursor(tmp_path: Path, page: SharedPage) -> None:
    bad = "\x1b[2J\x07\n\u202e"
    with (
        answering(tmp_path / "s", page, lambda: description(page, version=bad, serving=[bad])),
        Service(tmp_path / "s") as service,
    ):
        assert service.info.version == "?[2J???"
        assert service.info.serving == ("?[2J???",)


# --- What is no answer ---


class Impostor:
    """Something that listens and says what it is told to, with or without a descriptor."""

    def __init__(self, path: Path) -> None:
        self.message = b""
        self.descriptors: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                if self.message:
                    socket.send_fds(connection, [self.message], self.descriptors)


@pytest.fixture(name="impostor", scope="module")
def impostor_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Impostor, Path]]:
    path = tmp_path_factory.mktemp("impostor") / "s"
    with Impostor(path) as impostor:
        yield impostor, path


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_answer_that_makes_no_sense_is_an_error(
    impostor: tuple[Impostor, Path], data: st.DataObject
) -> None:
    """Somewhere in it there is something else: it is read all the same, or refused in words."""
    it, path = impostor
    with SharedPage(2) as page:
        said = json.loads(json.dumps(description(page)))
        table = data.draw(st.sampled_from([said, said["page"], said["page"]["layout"]]))
        table[data.draw(st.sampled_from(sorted(table)))] = data.draw(VALUES)
        it.message, it.descriptors = json.dumps(said).encode(), [page.fileno()]
        problem = ""
        try:
            with Service(path) as service:
                service.read()
        except StatusError as error:
            problem = str(error)
        assert problem.isprintable()


@pytest.mark.parametrize(
    "message", [b"x", b"[]", b"null", b"[" * 100_000, b'{"protocol": 1}', b"\xff"]
)
def test_no_description_at_all(impostor: tuple[Impostor, Path], message: bytes) -> None:
    it, path = impostor
    with SharedPage(1) as page:
        it.message, it.descriptors = message, [page.fileno()]
        with pytest.raises(StatusError, match="no answer of a status socket"):
            Service(path)


def test_a_descriptor_of_something_else(impostor: tuple[Impostor, Path]) -> None:
    it, path = impostor
    with SharedPage(2) as page, Path("/dev/null").open("rb") as nothing:
        it.message = json.dumps(description(page)).encode()
        it.descriptors = [nothing.fileno()]
        with pytest.raises(StatusError, match="no answer of a status socket"):
            Service(path)
        it.descriptors = []
        with pytest.raises(StatusError, match="closes without an answer"):
            Service(path)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_descriptors_are_not_kept(impostor: tuple[Impostor, Path]) -> None:
    it, path = impostor
    with SharedPage(2) as page:
        it.message, it.descriptors = b"nonsense", [page.fileno()]
        before = open_descriptors()
        with pytest.raises(StatusError):
            Service(path)
        it.message = json.dumps(description(page)).encode()
        Service(path).close()
        assert len(open_descriptors()) == len(before)


def test_a_service_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        with pytest.raises(StatusError, match=r"no answer within 0\.1 s"):
            Service(tmp_path / "s", 0.1)


def test_who_is_not_there(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "dead"))
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "dead", "file", "file/below", "no/such/directory"):
        with pytest.raises(NoServiceError, match="no service listens at"):
            Service(tmp_path / name)
    with pytest.raises(StatusError, match="too long"):
        Service(tmp_path / ("x" * 200))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(tmp_path / "other"))
        other.listen(1)
        with pytest.raises(StatusError, match="cannot ask"):
            Service(tmp_path / "other")


# --- Finding ---


@pytest.fixture(name="runtime")
def runtime_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("pktstun.observe._service.RUN", tmp_path / "run")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "runtime"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    for name in ("run/1000", "runtime", "xdg/pktstun"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_names_of_workers(tmp_path: Path, page: SharedPage) -> None:
    kinds = [{"kind": "exporter", "cpu": None}, {"kind": "streams", "cpu": None}]
    with (
        answering(tmp_path / "s", page, lambda: description(page, workers=kinds)),
        Service(tmp_path / "s") as service,
    ):
        snapshot = service.read()
    assert [each.name for each in snapshot.workers] == ["exporter", "streams"]
    assert snapshot.problems == ["metrics exporter is down", "stream worker is down"]


def test_services_are_found_wherever_they_may_be(runtime: Path, page: SharedPage) -> None:
    paths = ["run/1000/1.sock", "run/2.sock", "runtime/3.sock", "xdg/pktstun/4.sock"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(runtime / "run" / "5.sock"))
    (runtime / "run" / "metrics.sock").write_text("no status socket")
    with (
        answering(runtime / paths[0], page),
        answering(runtime / paths[1], page),
        answering(runtime / paths[2], page),
        answering(runtime / paths[3], page, lambda: description(page, protocol=2)),
    ):
        found = find_services()
        assert [each.info.path for each in found.services] == sorted(
            runtime / path for path in paths[:3]
        )
        assert [str(each).partition(":")[0] for each in found.problems] == [str(runtime / paths[3])]
        found.close()


def test_none_is_found(runtime: Path) -> None:
    with pytest.raises(NoServiceError, match="pktstun serve") as raised:
        find_services()
    assert str(runtime / "run") in str(raised.value)
    with pytest.raises(NoServiceError, match="no service listens at"):
        find_services(runtime / "nowhere")


def test_a_directory_that_is_anothers_is_not_looked_into(runtime: Path, page: SharedPage) -> None:
    """In /tmp anybody may make a directory of our name."""
    other = runtime / "elsewhere"
    other.mkdir()
    (runtime / "xdg" / "pktstun").rmdir()
    (runtime / "xdg" / "pktstun").symlink_to(other)
    with answering(other / "1.sock", page), pytest.raises(NoServiceError):
        find_services()
