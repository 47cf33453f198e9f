"""A service that is only a page, for what looks at one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pktstun.metrics import Observed

if TYPE_CHECKING:
    from pktstun.stats import SharedPage
    from pktstun.stun import TransportAddress

STARTED = 1.7e9


def observe(
    page: SharedPage,
    mode: str = "direct",
    *,
    endpoints: tuple[TransportAddress, ...] = (),
    cpus: tuple[int, ...] | None = None,
    error_codes: frozenset[int] = frozenset(),
    is_limited: bool = True,
    streams: bool = True,
) -> Observed:
    """Return a service of this page: packet workers, then the exporter, then streams."""
    reads_ring = mode != "recvmmsg"
    packet = len(page.slots) - 1 - streams
    return Observed(
        mode=mode,
        interface="eth0" if reads_ring else None,
        is_loopback=False,
        cpus=tuple(range(packet)) if cpus is None else cpus,
        slots=page.slots[:packet],
        streams=page.slots[packet + 1] if streams else None,
        exporter=page.slots[packet],
        ring_blocks=64 if reads_ring else 0,
        is_limited=is_limited,
        endpoints=endpoints,
        error_codes=error_codes,
        started=STARTED,
    )
