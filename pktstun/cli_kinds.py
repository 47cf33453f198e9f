"""Kinds of values that arguments of several commands have."""

from __future__ import annotations

import argparse

__all__ = ["count"]


def count(text: str) -> int:
    """Read how many; argparse names this function in its complaint."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
