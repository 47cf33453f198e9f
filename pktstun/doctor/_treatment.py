"""Making changes, and taking them back.

Everything goes on where one setting fails: what could be done is done, and what could not is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from pktstun.errors import ConfigError
from pktstun.kernel import interface

from ._finding import Change, Kind, Value
from ._settings import Settings
from ._state import Origin, Record, State, load, locked, remove, save

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Outcome", "Result", "apply", "undo"]

_OF_THE_INTERFACE = frozenset({Kind.FEATURE, Kind.RPS, Kind.RING, Kind.THREAD})


class Result(StrEnum):
    """What became of a setting."""

    CHANGED = "changed"
    RESTORED = "restored"
    SAME = "same"
    """It was as it should be already."""
    ELSEWISE = "elsewise"
    """Somebody else has changed it since, and it was left as it is."""
    GONE = "gone"
    """What had the setting is not there any more."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One setting that was to be changed or brought back."""

    result: Result
    kind: Kind
    name: str
    before: Value | None
    """When it was to be changed; None: not known."""
    after: Value
    reason: str = ""


def apply(iface: str, changes: Iterable[Change], path: Path) -> list[Outcome]:
    """Make changes, having recorded what was.

    Args:
        iface: name of an interface in the calling thread's network namespace.
        changes: what to change.
        path: of the record.

    Raises:
        ConfigError: the record that is there is of no use, or none can be written.
        OSError: ENODEV, there is no such interface.
    """
    with locked(path):
        return _apply(iface, changes, path)


def _apply(iface: str, changes: Iterable[Change], path: Path) -> list[Outcome]:
    origin = Origin.here(iface, interface(iface).index)
    state = State(origin, _still_valid(load(path), origin, path))
    outcomes: list[Outcome] = []
    planned: list[Record] = []
    with Settings(iface) as settings:
        for change in changes:
            try:
                before = settings.read(change.kind, change.name)
            except OSError as error:
                outcomes.append(_outcome(Result.FAILED, change, None, error))
                continue
            after = change.value
            if change.kind is Kind.NOTRACK and isinstance(before, tuple):
                # One table for all ports.
                after = tuple(sorted({*before, *(after if isinstance(after, tuple) else ())}))
            if before == after:
                outcomes.append(_outcome(Result.SAME, change, before))
                continue
            planned.append(Record(change.kind, change.name, before, after))
            state = state.with_record(planned[-1])
        if planned:
            save(path, state)
        for record in planned:
            change = Change(record.kind, record.name, record.after)
            try:
                settings.write(record.kind, record.name, record.after)
                now = settings.read(record.kind, record.name)
            except OSError as error:
                outcomes.append(_outcome(Result.FAILED, change, record.before, error))
                continue
            if now != record.after:
                # Cards round ring sizes; to undo it, it must be known again.
                state = state.with_record(replace(record, after=now))
                save(path, state)
            outcomes.append(_outcome(Result.CHANGED, replace(change, value=now), record.before))
    return outcomes


def undo(iface: str, path: Path) -> list[Outcome]:
    """Bring back what was before the first `apply`, and remove the record.

    What fails stays recorded, so that it can be tried again.

    Returns:
        What became of each setting; nothing if nothing is recorded.

    Raises:
        ConfigError: the record is of no use.
    """
    if load(path) is None:
        return []
    with locked(path):
        return _undo(iface, path)


def _undo(iface: str, path: Path) -> list[Outcome]:
    state = load(path)
    if state is None:
        return []
    try:
        index = interface(iface).index
    except OSError:
        index = 0
    origin = Origin.here(iface, index)
    valid = _still_valid(state, origin, path)
    outcomes = [
        Outcome(Result.GONE, each.kind, each.name, None, each.before)
        for each in state.records
        if each not in valid
    ]
    failed: list[Record] = []
    with Settings(iface) as settings:
        for record in reversed(valid):
            outcomes.append(_restore(settings, record))
            if outcomes[-1].result is Result.FAILED:
                failed.insert(0, record)
    if failed:
        save(path, State(origin, tuple(failed)))
    else:
        remove(path)
    return outcomes


def _restore(settings: Settings, record: Record) -> Outcome:
    change = Change(record.kind, record.name, record.before)
    try:
        now = settings.read(record.kind, record.name)
        if now == record.before:
            return _outcome(Result.SAME, change, now)
        if now != record.after:
            return _outcome(Result.ELSEWISE, change, now)
        settings.write(record.kind, record.name, record.before)
    except (FileNotFoundError, ProcessLookupError) as error:
        return _outcome(Result.GONE, change, None, error)
    except OSError as error:
        return _outcome(Result.FAILED, change, None, error)
    return _outcome(Result.RESTORED, change, now)


def _still_valid(state: State | None, origin: Origin, path: Path) -> tuple[Record, ...]:
    """Return the records whose settings can still be there.

    Raises:
        ConfigError: they are another network namespace's.
    """
    if state is None or state.origin.boot != origin.boot:
        return ()
    if state.origin.namespace != origin.namespace:
        raise ConfigError(
            f"{path}: it is about {state.origin.iface} in another network namespace: go there, "
            "have STATE_DIRECTORY name a directory for each, or remove the file if that is gone"
        )
    if state.origin.index == origin.index:
        return state.records
    return tuple(each for each in state.records if each.kind not in _OF_THE_INTERFACE)


def _outcome(
    result: Result, change: Change, before: Value | None, error: OSError | None = None
) -> Outcome:
    reason = "" if error is None else (error.strerror or str(error))
    return Outcome(result, change.kind, change.name, before, change.value, reason)
