"""The dreams' names, and whether a dream can run in this process; without jax."""

import sys

from dreamjax.actions import Choice, Keys
from dreamjax.task import Task
from dreamjax.tasks import TASKS

_lost = []  # whether this process is a fork of one that had used jax


def env_ids() -> dict[str, tuple[Task, tuple[str, ...]]]:
    """The game and the variants of its actions, its own first, by the ids of the dreams."""
    keys, own = {}, {}
    for task in TASKS.values():
        kinds: tuple = ("discrete",) if isinstance(task.actions, Choice) else ("continuous",)
        if isinstance(task.actions, Keys):
            kinds = ("continuous", "discrete")
            keys[task.env_id.replace("-v", "Discrete-v")] = task, kinds[::-1]
        own[task.env_id] = task, kinds
    return keys | own


def note_fork() -> None:
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge and bridge.backends_are_initialized():
        _lost.append(True)


def check_process() -> None:
    """Raise RuntimeError in a fork of a process that had used jax: it would wait for ever there."""
    if _lost:
        raise RuntimeError(
            "jax was used before this process was forked, so no dream can run in it; use "
            'gymnasium.make_vec(ID, n, vectorization_mode="vector_entry_point"), or '
            '"async" with vector_kwargs={"context": "spawn"}'
        )
