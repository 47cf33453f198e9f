"""The search for the highest rate that is answered without loss, as a pure generator.

Theory of operation. `search` yields the rate it wants to see tried and is sent what came of it, so
it knows no clock, no socket and no server, and a test plays the server with a few lines. It
brackets the knee, the rate at which replies begin to be missing, between a rate that was answered
and one that was not: from its starting point it gallops upwards or falls, and then halves the
bracket (geometrically) until its ends are within the tolerance. Last, the lower end has to pass a
longer step.

A step that fails is tried once more, because a shared machine that pauses for some milliseconds
loses replies whatever the rate; only two failures in a row count, and none while the machine was
disturbed. What counts as the rate is what
the generator really offered. Where that stays below what was asked for, twice, and nothing was
lost, the generator is the limit and the result says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator

LOSS = 0.001
TOLERANCE = 0.03
_FLOOR = 20.0  # requests/s: what answers less answers nothing
_SHORTFALL = 0.97  # a generator that offers less of what was asked can give no more


class Probe(NamedTuple):
    """A rate to try, in requests per second; `confirm` asks for a longer step."""

    rate: float
    confirm: bool = False


class Outcome(NamedTuple):
    """What came of a probe: requests offered and replies received per second, share lost.

    `disturbed`: others had the CPUs meanwhile, so that losses say nothing of the server.
    """

    offered: float
    answered: float
    loss: float
    disturbed: bool = False


class Knee(NamedTuple):
    """The result: the highest rate answered without loss, 0 if there is none.

    `limited` says that the generator could offer no more, `resolved` that the bracket was
    closed and its lower end confirmed before the probes were used up.
    """

    rate: float
    limited: bool
    resolved: bool


class _UsedUp(Exception):  # noqa: N818 - a signal between two functions of this module
    """All probes are used up."""


class _Attempts:
    """Tries rates until the probes are used up."""

    def __init__(self, loss: float, probes: int) -> None:
        self._loss = loss
        self._left = probes
        self.seen = 0.0
        """The highest rate that passed when another was asked for."""

    def attempt(self, probe: Probe) -> Generator[Probe, Outcome, tuple[bool, Outcome]]:
        """Try a rate, once more if it fails; say whether it passed, and the better outcome."""
        outcomes: list[tuple[bool, float, Outcome]] = []
        while len(outcomes) < 2:
            outcome = yield from self._once(probe)
            lossless = outcome.loss <= self._loss
            if lossless and not _falls_short(outcome, probe):
                return True, outcome
            if outcome.disturbed:
                continue
            outcomes.append((not lossless, outcome.answered, outcome))
        # Less than what was asked for is no pass of the rate where the other one had losses, but
        # what was offered then has passed.
        lossy, _, outcome = max(outcomes)
        if lossy:
            self.seen = max([self.seen, *(short.offered for bad, _, short in outcomes if not bad)])
        return not lossy, outcome

    def _once(self, probe: Probe) -> Generator[Probe, Outcome, Outcome]:
        if not self._left:
            raise _UsedUp
        self._left -= 1
        return (yield probe)


def _falls_short(outcome: Outcome, probe: Probe) -> bool:
    return outcome.offered < _SHORTFALL * probe.rate


@dataclass
class _Bracket:
    """The highest rate that has passed, 0 if none has, and the lowest that has failed."""

    passed: float = 0.0
    failed: float = math.inf

    @property
    def has_two_ends(self) -> bool:
        return bool(self.passed) and self.failed < math.inf

    def learn(self, rate: float, outcome: Outcome, *, good: bool) -> None:
        if good:
            self.passed = max(self.passed, min(outcome.offered, rate))
        else:
            self.failed = min(self.failed, outcome.offered, rate)

    def next(self, step: float, answered: float) -> float:
        """Return the rate to try next: the middle, or beyond the one end by the factor `step`.

        Downwards it may be more than the step: to what was answered of the rate that failed.
        """
        if self.has_two_ends:
            return math.sqrt(self.passed * self.failed)
        if self.passed:
            return self.passed * step
        return min(self.failed / step, max(self.failed / 8, answered))


def search(
    start: float, *, loss: float = LOSS, tolerance: float = TOLERANCE, probes: int = 60
) -> Generator[Probe, Outcome, Knee]:
    """Find the knee near `start` with at most `probes` probes; see the module."""
    attempts = _Attempts(loss, probes)
    bracket = _Bracket()
    flattered = 0.0
    confirm = False
    step = 1 + 2 * tolerance
    rate = max(start, _FLOOR)
    try:
        while True:
            good, outcome = yield from attempts.attempt(Probe(rate, confirm))
            bracket.learn(rate, outcome, good=good)
            if not confirm and attempts.seen < bracket.failed:
                bracket.passed = max(bracket.passed, attempts.seen)
            if good and _falls_short(outcome, Probe(rate)):
                return Knee(bracket.passed, limited=True, resolved=True)
            if bracket.failed <= _FLOOR:
                return Knee(0.0, limited=False, resolved=True)
            if bracket.failed <= (1 + tolerance) * bracket.passed:
                if not confirm:
                    good, outcome = yield from attempts.attempt(Probe(bracket.passed, confirm=True))
                if confirm or good:
                    return Knee(bracket.passed, limited=False, resolved=True)
                # Short steps flatter this server: what they showed counts no more, unless
                # nothing better comes.
                flattered = bracket.passed
                bracket = _Bracket(failed=bracket.passed)
                confirm, step = True, 1 + tolerance
            rate = bracket.next(step, math.inf if confirm else outcome.answered)
            if not bracket.has_two_ends:
                step = min(step * step, 2.0)
    except _UsedUp:
        return Knee(bracket.passed or flattered, limited=False, resolved=False)
