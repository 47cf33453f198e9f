"""Metrics for Prometheus, and whether requests are answered, over HTTP on this host.

Theory of operation: what the workers count stands in the shared page (`pktstun.stats`), so whoever
maps that can tell it without asking them. The exporter is a process of its own beside the workers
and behind them: it has no capability, no priority and no CPU, and what becomes of it changes
nothing for them. `_collector` puts the page into Prometheus' words, `_probe` asks every worker for
an answer, `_engine` speaks HTTP.

Who serves no metrics does not import prometheus-client. Who does imports it before the service
gives up its user, and before another version takes this one's place on the disk: `load_exporter`.
"""

from __future__ import annotations

from ._engine import MetricsEngine, load_exporter
from ._listener import MetricsAddress, MetricsListener
from ._observed import Observed

__all__ = ["MetricsAddress", "MetricsEngine", "MetricsListener", "Observed", "load_exporter"]
