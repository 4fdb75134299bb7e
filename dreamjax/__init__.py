"""dreamjax: World Models (Ha & Schmidhuber, 2018) in JAX.

The path of data, one module a step:

`real` (the game) -> `rollouts` (collect) -> `vision` (V) -> `latents` (encode) -> `memory` (M)
-> `dream` (M as a gymnax environment) -> `evolution` or `learning` (C) -> `agent` (the real game
again).

Names load on first use, so that the processes that only play a game start without jax.
"""

import importlib
from typing import Any

from dreamjax.registration import register

__version__ = "0.1.0"

_HOMES = {
    "CAR_RACING": "tasks",
    "TAKE_COVER": "tasks",
    "TAKE_COVER_VIZDOOM": "tasks",
    "TASKS": "tasks",
    "Task": "tasks",
    "make_env": "real",
    "Rollouts": "rollouts",
    "collect": "rollouts",
    "VAE": "vision",
    "VisionConfig": "vision",
    "train_vision": "vision",
    "LatentSequences": "latents",
    "encode_rollouts": "latents",
    "MDNRNN": "memory",
    "MemoryConfig": "memory_training",
    "Mixture": "memory",
    "train_memory": "memory_training",
    "DreamEnv": "dream",
    "EnvParams": "dream",
    "EnvState": "dream",
    "LinearController": "controller",
    "controller_for": "controller",
    "features": "controller",
    "EvolveConfig": "evolution",
    "evolve": "evolution",
    "LearnConfig": "learning",
    "learn": "learning",
    "World": "worlds",
    "load_controller": "worlds",
    "load_world": "worlds",
    "make": "envs",
    "DreamProblem": "problem",
    "Agent": "agent",
    "evaluate": "agent",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamjax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dreamjax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


register()
