"""Logging: the standard library's, one line per event on standard error."""

from __future__ import annotations

import logging
import sys

__all__ = ["LEVELS", "configure"]

LEVELS = ("debug", "info", "warning", "error")


def configure(level: str) -> None:
    """Send the records of pktstun at this level or above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("pktstun")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
