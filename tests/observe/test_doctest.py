"""The examples in the docstrings are true, and every name is there and says what it is."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from pktstun import observe

MODULES = [f"{observe.__name__}.{module.name}" for module in pkgutil.iter_modules(observe.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_is_there() -> None:
    assert all(hasattr(observe, name) for name in observe.__all__)
    assert sorted(observe.__all__) == sorted(set(observe.__all__))
