"""The record of what was: whole or not at all, and no tool for somebody else."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun.doctor import Kind, load, records_directory, state_path
from pktstun.doctor._finding import TABLE
from pktstun.doctor._receiving import BACKLOG_SETTING
from pktstun.doctor._state import Origin, Record, State, _parse, locked, save
from pktstun.errors import ConfigError
from pktstun.poison import state_directory
from tests.lab import require_root

ORIGIN = Origin("eth0", 2, 4026531840, "b-o-o-t")
FEATURE = Record(Kind.FEATURE, "rx-gro-list", before=True, after=False)

numbers = st.lists(st.integers(0, 65535), max_size=5).map(tuple)
ports = st.lists(st.integers(1, 65535), max_size=5).map(tuple)
whole = st.integers(0, (1 << 31) - 1)


def records_of(kind: Kind, names: Any, values: Any) -> st.SearchStrategy[Record]:
    return st.builds(Record, st.just(kind), names, values, values)


digits = st.integers(0, 9999).map(str)
records = st.one_of(
    records_of(Kind.FEATURE, st.sampled_from(["rx-gro-list", "rx-lro"]), st.booleans()),
    records_of(Kind.RPS, digits, numbers),
    records_of(Kind.IRQ, digits, numbers),
    records_of(Kind.THREAD, digits, numbers),
    records_of(Kind.RING, st.sampled_from(["rx", "tx"]), whole),
    records_of(Kind.SYSCTL, st.just(BACKLOG_SETTING), whole),
    records_of(Kind.NOTRACK, st.just(TABLE), ports),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@pytest.fixture(name="path")
def path_fixture(tmp_path: Path) -> Path:
    return state_path(tmp_path, "eth0")


@given(st.lists(records, max_size=6))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, r: list[Record]) -> None:
    path = state_path(tmp_path_factory.mktemp("state"), "eth0")
    state = State(ORIGIN, tuple(r))
    save(path, state)
    assert load(path) == state


def test_nobody_else_can_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        save(path, State(ORIGIN, (FEATURE,)))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["doctor-eth0.json"]


def test_what_a_killed_writer_left_is_in_nobody_s_way(path: Path) -> None:
    Path(path.parent, ".doctor-eth0.json.new").write_text("half")
    save(path, State(ORIGIN, (FEATURE,)))
    assert load(path) == State(ORIGIN, (FEATURE,))


def test_the_first_value_stays() -> None:
    state = State(ORIGIN).with_record(FEATURE)
    again = Record(Kind.RING, "rx", 256, 1024)
    state = state.with_record(again).with_record(Record(Kind.RING, "rx", 1024, 2048))
    assert state.records == (FEATURE, Record(Kind.RING, "rx", 256, 2048))


def test_without_a_file_nothing_is_recorded(path: Path) -> None:
    assert load(path) is None
    assert load(path.parent / "absent" / path.name) is None


def test_records_are_not_where_systemd_gives_all_to_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert not records_directory().is_relative_to(state_directory())
    assert str(records_directory()) == "/run/pktstun-doctor"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert str(records_directory()) == "/var/lib/one"


@pytest.mark.parametrize("name", ["../etc/passwd", "", ".", "..", "a/b"])
def test_a_name_leads_to_no_other_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name of an interface"):
        state_path(tmp_path, name)


# --- Files of others ---


def document(**changes: Any) -> dict[str, Any]:
    record = {"kind": "feature", "name": "rx-gro-list", "before": True, "after": False}
    head = {"version": 1, "iface": "eth0", "index": 2, "namespace": 4026531840, "boot": "b-o-o-t"}
    return {**head, "records": [{**record, **changes.pop("record", {})}], **changes}


def refused(path: Path, content: bytes | str, words: str) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_status == 78


def test_the_document_is_one(path: Path) -> None:
    path.write_text(json.dumps(document()))
    path.chmod(0o600)
    assert load(path) == State(ORIGIN, (FEATURE,))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"null", b"[]", b"7", b'"x"', b"{}", b"[" * 100_000]
)
def test_a_broken_file_is_an_error_that_says_what_to_do(path: Path, content: bytes) -> None:
    refused(path, content, "move it away")


@pytest.mark.parametrize("cut", [1, 50, -3])
def test_half_a_file_is_one_as_well(path: Path, cut: int) -> None:
    refused(path, json.dumps(document())[:cut], "broken one")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_so_is_another_version(path: Path, version: Any) -> None:
    refused(path, json.dumps(document(version=version)), "its version is")


@pytest.mark.parametrize(
    "wrong",
    [
        {"record": {"kind": "file"}},
        {"record": {"name": "../../x"}},
        {"record": {"name": 7}},
        {"record": {"before": "on"}},
        {"record": {"before": 1}},
        {"record": {"kind": "rps", "name": "0/../../x", "before": [0], "after": [0]}},
        {"record": {"kind": "rps", "name": "0", "before": ["0"], "after": [0]}},
        {"record": {"kind": "rps", "name": "0", "before": [True], "after": [0]}},
        {"record": {"kind": "rps", "name": "0", "before": [10**9], "after": [0]}},
        {"record": {"kind": "irq", "name": "٣", "before": [0], "after": [0]}},
        {"record": {"kind": "ring", "name": "rx", "before": -1, "after": 1}},
        {"record": {"kind": "sysctl", "name": "kernel.core_pattern", "before": 1, "after": 1}},
        {"record": {"kind": "sysctl", "name": BACKLOG_SETTING, "before": "|x", "after": 1}},
        {"record": {"kind": "notrack", "name": "filter", "before": [], "after": [1]}},
        {"record": {"kind": "notrack", "name": TABLE, "before": [0], "after": [1]}},
        {"index": "2"},
        {"index": True},
        {"iface": None},
        {"records": None},
        {"records": [7]},
    ],
)
def test_a_file_can_name_settings_only(path: Path, wrong: dict[str, Any]) -> None:
    refused(path, json.dumps(document(**wrong)), "no record of this program")


@given(values, values, st.sampled_from(sorted(document())))
def test_any_json_is_a_state_or_one_error(anything: Any, part: Any, key: str) -> None:
    for data in (anything, {**document(), key: part}, document(record={key: part})):
        try:
            state = _parse(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        assert isinstance(state, State)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_can_write_is_not_believed(path: Path, mode: int) -> None:
    path.write_text(json.dumps(document()))
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others can write to it"):
        load(path)


@pytest.mark.root
def test_nor_what_is_another_user_s(path: Path) -> None:
    require_root()
    path.write_text(json.dumps(document()))
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="others can write to it"):
        load(path)


def test_links_and_pipes_are_not_followed(path: Path) -> None:
    target = path.parent / "target"
    target.write_text(json.dumps(document()))
    path.symlink_to(target)
    with pytest.raises(ConfigError):
        load(path)
    # Writing puts a file in the link's place.
    save(path, State(ORIGIN))
    assert json.loads(target.read_text()) == document()
    assert load(path) == State(ORIGIN)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="not believed"):
        load(path)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    path = state_path(blocked / "sub", "eth0")
    with pytest.raises(ConfigError, match="STATE_DIRECTORY"), locked(path):
        raise AssertionError
    with pytest.raises(ConfigError, match="STATE_DIRECTORY"):
        save(path, State(ORIGIN))


def test_one_at_a_time(path: Path) -> None:
    with locked(path):
        with pytest.raises(ConfigError, match="wait for its end"), locked(path):
            raise AssertionError
        save(path, State(ORIGIN))
    with locked(path):
        assert load(path) == State(ORIGIN)
