"""What "module:name" names, and by which name other processes find a function."""

import importlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def importable(make: str | Callable[[], Any], name: str) -> str | Callable[[], Any]:
    """`make` as other processes can have it; a script's own function by the script's name.

    Raises:
      ValueError: they cannot.
    """
    if isinstance(make, str):
        if not re.fullmatch(r"[\w.-]+:\w+", make):
            raise ValueError(f'make of {name} must be "module:function", got {make!r}')
        return make
    if not callable(make):
        raise ValueError(f"make of {name} must be a function that makes the game, got {make!r}")
    module, function = getattr(make, "__module__", ""), getattr(make, "__qualname__", "")
    if module == "__main__":
        module = started()
        if module is None:
            raise ValueError(
                f"make of {name} was defined in a notebook or at a prompt, where other processes "
                "cannot find it; put the game into a file, such as game.py, and import it"
            )
    if function.isidentifier() and module != "__main__":
        return f"{module}:{function}"
    try:
        if b"__main__" in pickle.dumps(make):
            raise ValueError("it belongs to the script that was started")
    except Exception as error:
        raise ValueError(
            f"make of {name} is no function that other processes can import ({error}); define it "
            "at the top of a module"
        ) from None
    return make


def find(name: str | Callable[..., Any]) -> Callable[..., Any]:
    """What "module:name" names; anything else is that already.

    Raises:
      ValueError: no such module, or nothing of that name in it.
    """
    if not isinstance(name, str):
        return name
    module, _, attribute = name.partition(":")
    if module.endswith(".py") or "/" in module:
        path = Path(module)
        where = f", with PYTHONPATH={path.parent}" if path.name != str(path) else ""
        raise ValueError(f"{name} names a file; write {path.stem}:{attribute}{where}")
    try:
        found = imported(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {module}; it must lie in this directory or on PYTHONPATH"
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the module {module} does not import ({reason})") from error
    if not hasattr(found, attribute):
        raise ValueError(
            f"{module} has no {attribute!r}; it is {getattr(found, '__file__', found)}"
        )
    return getattr(found, attribute)


def imported(module: str) -> Any:
    """The module that was started, an installed one or, last, one of the current directory."""
    if module == started():
        return sys.modules["__main__"]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        sys.path.append(os.getcwd())  # last, and only once it was asked for: it may be a download
        return importlib.import_module(module)


def started() -> str | None:
    """By which name other processes import the module that Python was started with."""
    main = sys.modules.get("__main__")
    if spec := getattr(main, "__spec__", None):  # python -m
        return spec.name
    path = Path(getattr(main, "__file__", None) or "")
    return path.stem if path.suffix == ".py" else None  # that of a command has none
