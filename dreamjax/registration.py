"""The dreams' names in the registries of gymnax and gymnasium, without importing jax."""

import functools
from types import ModuleType
from typing import Any

import gymnasium
import wrapt

IDS = {"DreamTakeCover-v1": "take-cover"}  # of gymnax's registry; the task that is dreamt


def register() -> None:
    """Make `gymnasium.make` know the dreams, and `gymnax.make` as soon as gymnax is imported."""
    for env_id in IDS:
        gymnasium.register(
            env_id.replace("Dream", "dreamjax/", 1),
            entry_point="dreamjax.gym_envs:Dream",
            vector_entry_point="dreamjax.gym_envs:VectorDream",
            kwargs={"env_id": env_id},
        )
    wrapt.when_imported("gymnax")(_register_in_gymnax)


def _register_in_gymnax(gymnax: ModuleType) -> None:
    for env_id in IDS:
        gymnax.register(env_id, functools.partial(_make, env_id))


def _make(env_id: str, **variant: Any) -> Any:
    from dreamjax.envs import named

    return named(env_id, **variant)
