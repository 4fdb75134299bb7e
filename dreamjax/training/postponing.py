"""Packages that are imported when something of them is used, not before."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class _Postponed(ModuleType):
    """Stands for a module until one of its attributes is asked for."""

    def __getattr__(self, name: str) -> Any:
        _leave(self)
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def postponed(*names: str) -> Iterator[None]:
    """What is imported meanwhile gets stand-ins for these modules; all else never meets them."""
    standing_in = [_Postponed(name) for name in names if name not in sys.modules]
    sys.modules.update((module.__name__, module) for module in standing_in)
    try:
        yield
    finally:
        for module in standing_in:
            _leave(module)


def _leave(module: ModuleType) -> None:
    """Make room for the module itself."""
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]
