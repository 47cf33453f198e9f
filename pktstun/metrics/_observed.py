"""The service as the exporter sees it: slots of the shared page, and what they are slots of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pktstun.stats import Slot
    from pktstun.stun import TransportAddress

__all__ = ["ALIVE", "EXPORTER", "STREAMS", "Observed"]

ALIVE = 1.5
"""Seconds: a heartbeat that is older is no sign of life, and the supervisor acts."""

STREAMS = "streams"
EXPORTER = "metrics"
"""What the two that are no packet workers are called beside these, which have numbers."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A service.

    Args:
        mode: the name of its mode.
        interface: the one whose packets the rings read; None without rings.
        is_loopback: whether that is the loopback interface.
        cpus: of the packet workers.
        slots: theirs, in the same order.
        streams: slot of the worker for TCP and TLS, if there is one.
        exporter: slot of the exporter.
        ring_blocks: of each ring, 0 without rings.
        is_limited: whether there is a rate limit.
        endpoints: transport addresses that are served over UDP.
        error_codes: of error responses that a plain Binding request may get here.
        started: when the service was started, in seconds of Unix time.
    """

    mode: str
    interface: str | None
    is_loopback: bool
    cpus: tuple[int, ...]
    slots: tuple[Slot, ...]
    streams: Slot | None
    exporter: Slot
    ring_blocks: int
    is_limited: bool
    endpoints: tuple[TransportAddress, ...]
    error_codes: frozenset[int]
    started: float

    @property
    def has_rings(self) -> bool:
        """Whether packet rings are read."""
        return self.ring_blocks > 0

    def workers(self) -> Iterator[tuple[str, Slot]]:
        """Yield the name and the slot of each packet worker."""
        for number, slot in enumerate(self.slots):
            yield str(number), slot

    def answering(self) -> Iterator[tuple[str, Slot]]:
        """Yield those that answer requests: the packet workers, and the one for streams."""
        yield from self.workers()
        if self.streams is not None:
            yield STREAMS, self.streams

    def processes(self) -> Iterator[tuple[str, Slot]]:
        """Yield all children of the supervisor, the exporter last."""
        yield from self.answering()
        yield EXPORTER, self.exporter
