"""A look at a game before anything of it is recorded."""

from collections.abc import Callable

import numpy as np

from dreamjax.game.env import GameError, RealGame, in_a_sentence, make_env

CONTRAST = 32  # between the darkest and the brightest value that a game shows, at least
LEAST_LOOKS, MOST_LOOKS = 4, 64  # steps that `look` plays: at first, and until it sees so much


def look(game: RealGame, job: None, tick: Callable[[int], None]) -> None:
    """Look at a game before anything of it is recorded; runs in a worker that then ends.

    Raises:
      GameError: it shows next to nothing, a process can hold only one such game though the task
        does not say so, or as `RealGame`.
    """
    task, rng = game.task, np.random.default_rng(0)
    low, high, over = 255, 0, True
    for step in range(MOST_LOOKS):
        if over:
            (frame, _), over = game.reset(seed=task.seeds - 1), False
        else:
            frame, _, terminated, truncated, _ = game.step(task.actions.draw(rng))
            over = terminated or truncated
        tick(1)
        low, high = min(low, int(frame.min())), max(high, int(frame.max()))
        if step >= LEAST_LOOKS and high - low >= CONTRAST and not over:
            break
    if high - low < CONTRAST:
        raise GameError(
            f"{task.name} shows pictures whose values are all from {low} to {high} of 255; scale "
            "them, find others by Task.picture, or mend what draws or crops them"
        )
    if not (task.one_per_process or over):
        _look_beside(game, tick)


def _look_beside(game: RealGame, tick: Callable[[int], None]) -> None:
    """Play a second game in this process, while the first is in the middle of an episode."""
    task = game.task
    try:
        second = make_env(task)
        tick(0)
        second.reset(seed=task.seeds - 1)
        tick(0)
        game.step(task.actions.draw(np.random.default_rng(1)))
    except Exception as error:
        raise GameError(
            f"{task.name}: a second game in one process fails "
            f"({in_a_sentence(error.__cause__ or error)}); set one_per_process=True in its Task"
        ) from error
