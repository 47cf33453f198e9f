"""The three formats, as another program reads them from standard error."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pktstun import log

if TYPE_CHECKING:
    from pathlib import Path

SETTING = """
import logging, os, sys
from pktstun import log
logger = logging.getLogger("pktstun")
"""


def written(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SETTING + program],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stderr


def lines(program: str) -> list[str]:
    return written(program).splitlines()


def objects(program: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines(program)]


def test_text_has_the_time_with_its_zone() -> None:
    (line,) = lines("log.configure('info')\nlogger.warning('no %s', 'room')")
    date, time, rest = line.split(" ", 2)
    assert rest == "WARNING no room"
    assert datetime.fromisoformat(f"{date} {time}").utcoffset() is not None


def test_the_level_holds_and_can_be_changed() -> None:
    program = """
log.configure("warning", "journal")
logger.info("one")
log.configure("info", "text")
logger.info("two")
"""
    (line,) = lines(program)
    assert line.endswith(" INFO two")


def test_a_json_line_is_an_object_whatever_is_in_it() -> None:
    program = r"""
log.configure("debug", "json")
class Odd:
    def __str__(self): raise RuntimeError
extra = {"worker": 3, "share": 0.5, "odd": Odd(), "set": {1}, "nan": float("nan"), "none": None}
logger.info("two\nlines %s \udcff \u2028", "é", extra=extra)
logger.info("%d arguments", "wrong")
logger.info("%s", Odd())
try:
    raise OSError(5, "no\nluck")
except OSError:
    logger.exception("it failed")
"""
    first, second, third, failure = objects(program)
    assert first["message"] == "two\nlines é \udcff \u2028"
    assert first["level"] == "info"
    assert (first["worker"], first["share"], first["none"]) == (3, 0.5, None)
    assert (first["odd"], first["set"], first["nan"]) == ("<Odd>", "{1}", "nan")
    assert isinstance(first["pid"], int)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(first["time"]))
    assert str(second["message"]).startswith("%d arguments")
    assert third["level"] == "info"
    assert failure["error"] == "OSError: [Errno 5] no\nluck"
    assert str(failure["traceback"]).startswith("Traceback (most recent call last):")


def test_the_journal_has_a_priority_on_every_line() -> None:
    program = """
log.configure("debug", "journal")
logger.debug("one")
logger.info("two\\nlines")
logger.warning("three")
try:
    raise OSError(5, "no luck")
except OSError:
    logger.exception("four")
logger.critical("")
"""
    got = lines(program)
    assert got[:4] == ["<7>one", "<6>two", "<6>lines", "<4>three"]
    assert got[4:6] == ["<3>four", "<3>Traceback (most recent call last):"]
    assert all(line.startswith("<3>") for line in got[4:])
    assert got[-1] == "<3>"


def test_the_libraries_are_heard_in_the_same_format() -> None:
    program = """
log.configure("debug", "json")
logging.getLogger("asyncio").info("not this")
logging.getLogger("asyncio").error("this")
"""
    (only,) = objects(program)
    assert (only["logger"], only["message"]) == ("asyncio", "this")


def journal_stream(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}"


@pytest.mark.parametrize("leads_there", [True, False])
def test_the_journal_is_found_by_the_number_of_standard_error(
    tmp_path: Path, *, leads_there: bool
) -> None:
    """JOURNAL_STREAM is inherited by those whose standard error has been sent elsewhere."""
    file, other = tmp_path / "file", tmp_path / "other"
    other.touch()
    with file.open("w") as stream:
        variable = journal_stream(file if leads_there else other)
        subprocess.run(
            [sys.executable, "-c", SETTING + "log.configure('info')\nlogger.info('one')"],
            check=True,
            stderr=stream,
            env={**os.environ, "JOURNAL_STREAM": variable},
        )
    assert (file.read_text() == "<6>one\n") is leads_there


@pytest.mark.parametrize("value", ["", ":", "1", "x:y", "1:2:3"])
def test_any_other_variable_means_text(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", value)
    assert log.default_format() == "text"


def test_lines_of_many_processes_do_not_mix() -> None:
    program = """
log.configure("info", "json")
children = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        log.in_worker(number, f"worker {number} ended")
        for count in range(200):
            logger.info("x" * 2000, extra={"cause": str(count)})
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
"""
    found = objects(program)
    assert len(found) == 800
    assert {str(each["message"]) for each in found} == {"x" * 2000}
    assert {(each["worker"]) for each in found} == {0, 1, 2, 3}
    assert len({each["pid"] for each in found}) == 4


def test_what_repeats_itself_is_counted_and_the_rest_is_written_at_the_end() -> None:
    program = """
log.configure("info", "text", 3600)
for _ in range(5):
    logger.info("again", extra={"cause": "one", "burst": 2})
log.write_due()
log.write_rest()
"""
    texts = [line.partition(" INFO ")[2] for line in lines(program)]
    assert texts == ["again", "again", "again (3 more times in the last 0 s)"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [("text", "pktstun: no"), ("journal", "<3>pktstun: no")],
)
def test_what_ends_a_command_is_said_in_the_same_format(form: str, expected: str) -> None:
    assert lines(f"log.configure('info', {form!r})\nlog.complain('no')") == [expected]


def test_in_json_too() -> None:
    (only,) = objects("log.configure('info', 'json')\nlog.complain('no')")
    assert (only["level"], only["message"]) == ("error", "pktstun: no")


def test_before_there_is_a_log_it_is_text() -> None:
    assert lines("log.complain('no')\nlog.write_due()\nlog.write_rest()") == ["pktstun: no"]


@pytest.mark.parametrize("form", log.FORMATS)
def test_a_log_that_cannot_be_written_ends_nothing(form: str) -> None:
    program = f"""
log.configure("info", {form!r})
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
logger.info("one")
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", SETTING + program],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout == "alive\n"


def test_standard_error_that_was_closed_is_nobody_elses() -> None:
    """Its number is that of the next file that is opened."""
    program = """
log.configure("info")
reader, writer = os.pipe()
assert 2 in (reader, writer), (reader, writer)
logger.error("one")
os.set_blocking(reader, False)
try:
    print(os.read(reader, 1))
except BlockingIOError:
    print("nothing")
"""
    done = subprocess.run(
        ["sh", "-c", 'exec 2>&-; exec "$0" -c "$1"', sys.executable, SETTING + program],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout == "nothing\n"


@given(st.text(), st.sampled_from(["json", "journal"]))
def test_lines_are_lines(text: str, form: str) -> None:
    record = logging.LogRecord("pktstun", 20, "", 0, "%s", (text,), None)
    rendered = log._RENDERERS[form](record)
    if form == "json":
        assert "\n" not in rendered
        assert json.loads(rendered)["message"] == text
    else:
        assert all(line.startswith("<6>") for line in rendered.split("\n"))
