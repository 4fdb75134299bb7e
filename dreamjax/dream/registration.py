"""The dreams' names in the registries of gymnax and gymnasium, without importing jax."""

import contextlib
import dataclasses
import functools
import os
import sys
from types import ModuleType
from typing import Any

import gymnasium
import wrapt

from dreamjax.actions import Actions, actions_of
from dreamjax.dream.ids import env_ids, note_fork
from dreamjax.game.by_id import is_id, task_of
from dreamjax.game.env import GameError, opened
from dreamjax.importing import find
from dreamjax.task import Task
from dreamjax.tasks import GAMES, TASKS


def register_dreams() -> None:
    """Make `gymnasium.make` know the dreams, and `gymnax.make` as soon as gymnax is imported."""
    for env_id in env_ids():
        _register_in_gymnasium(env_id)
    wrapt.when_imported("gymnax")(_register_in_gymnax)
    os.register_at_fork(after_in_child=note_fork)


def register_dream(task: Task) -> None:
    """Make both know the dreams of one more task."""
    for env_id, (dreamt, _) in env_ids().items():
        if dreamt == task:
            _register_in_gymnasium(env_id)
    if "gymnax" in sys.modules:
        _register_in_gymnax(sys.modules["gymnax"])


def _register_in_gymnasium(env_id: str) -> None:
    name = env_id.replace("Dream", "dreamjax/", 1)
    if name not in gymnasium.registry:
        gymnasium.register(
            name,
            entry_point="dreamjax.dream.gymnasium_env:Dream",
            vector_entry_point="dreamjax.dream.gymnasium_env:vector_dream",
            kwargs={"env_id": env_id},
        )


def _register_in_gymnax(gymnax: ModuleType) -> None:
    for env_id in env_ids():
        if env_id not in gymnax.registered_envs:
            gymnax.register(env_id, functools.partial(_make, env_id))


def _make(env_id: str, **variant: Any) -> Any:
    from dreamjax.dream.gymnax_env import named

    return named(env_id, **variant)


def register(task: Task) -> Task:
    """Make a task known: to the command, to `load_world`, and its dream to gymnax and gymnasium.

    Args:
      task: the game. Where its actions are not given, the game is made once to see them.

    A task of the same name takes the place of the one before, unless that came with dreamjax.

    Returns:
      the task, complete.

    Raises:
      ValueError: dreamjax has another task of that name, or the game cannot be used.
    """
    if task.actions is None:
        task = dataclasses.replace(task, actions=_seen_actions(task))
    known = TASKS.get(task.name)
    if known == task:
        return known
    if known in GAMES:
        raise ValueError(f"another task is called {task.name}; choose another name")
    TASKS[task.name] = task
    register_dream(task)
    return task


def _showing(task: Task, picture: str) -> Task:
    if task in GAMES:
        raise ValueError(f"{task.name} has its own picture; leave out --observation")
    return register(dataclasses.replace(task, picture=picture))


def _seen_actions(task: Task) -> Actions:
    game = opened(task)
    try:
        return actions_of(getattr(game, "action_space", None))
    except ValueError as error:
        raise GameError(f"{task.name}: {error}") from None
    finally:
        with contextlib.suppress(Exception):
            game.close()


def find_task(name: str, picture: str | None = None) -> Task:
    """A known task by its name, or one that is registered by this.

    `name` may be "module:ATTRIBUTE", which is a `Task`, or "module:id", a game's id in gymnasium,
    as `by_id` has it. `picture` is `Task.picture`, where it is not the task's own.

    Raises:
      ValueError: neither; one line.
    """
    if picture is not None:
        return _showing(find_task(name), picture)
    if name in TASKS:
        return TASKS[name]
    if ":" not in name:
        known = ", ".join(TASKS)
        raise ValueError(
            f"no task is called {name!r}; choose one of {known}, name your own as "
            "module:ATTRIBUTE, or one of gymnasium's as gymnasium:CartPole-v1"
        )
    if is_id(name):
        return register(task_of(name))
    task = find(name)
    if not isinstance(task, Task):
        raise ValueError(f"{name} is no dreamjax.Task, but {type(task).__name__}")
    return register(task)
