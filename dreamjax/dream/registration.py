"""The dreams' names in the registries of gymnax and gymnasium, without importing jax."""

import functools
import sys
from types import ModuleType
from typing import Any

import gymnasium
import wrapt

from dreamjax.tasks import TASKS, Task


def register_dreams() -> None:
    """Make `gymnasium.make` know the dreams, and `gymnax.make` as soon as gymnax is imported."""
    for task in TASKS.values():
        _register_in_gymnasium(task)
    wrapt.when_imported("gymnax")(_register_in_gymnax)


def register_dream(task: Task) -> None:
    """Make both know the dream of one more task."""
    _register_in_gymnasium(task)
    if "gymnax" in sys.modules:
        _register_in_gymnax(sys.modules["gymnax"])


def _register_in_gymnasium(task: Task) -> None:
    name = task.env_id.replace("Dream", "dreamjax/", 1)
    if name not in gymnasium.registry:
        gymnasium.register(
            name,
            entry_point="dreamjax.dream.gymnasium_env:Dream",
            vector_entry_point="dreamjax.dream.gymnasium_env:VectorDream",
            kwargs={"env_id": task.env_id},
        )


def _register_in_gymnax(gymnax: ModuleType) -> None:
    for task in TASKS.values():
        if task.env_id not in gymnax.registered_envs:
            gymnax.register(task.env_id, functools.partial(_make, task.env_id))


def _make(env_id: str, **variant: Any) -> Any:
    from dreamjax.dream.gymnax_env import named

    return named(env_id, **variant)
