"""After how many frames an action shows in the picture, by which a frame skip is found."""

from collections.abc import Callable, Iterator

import numpy as np

from dreamjax.game.env import RealGame

MOST = 8  # frames, and the answer where an action never shows
SHOWS = 3.0  # whole pixels by which two pictures of 64x64 differ, at least
BEFORE = 24  # random steps before an action is tried, at most


def frames_until_seen(game: RealGame, seed: int, tick: Callable[[int], None]) -> int | None:
    """Frames after which two different actions show, from one moment of one episode on.

    The moment is of `seed`, and is played for each action anew. None where the episode ends before,
    or where the same actions do not lead to the same pictures. Runs in a worker.
    """
    rng = np.random.default_rng(seed)
    actions = game.task.actions
    before = [actions.draw(rng) for _ in range(rng.integers(BEFORE))]
    one, other = actions.corners(rng)
    seen, again, otherwise = (
        list(_after(game, seed, before, action, tick)) for action in (one, one, other)
    )
    if not seen or any((a != b).any() for a, b in zip(seen, again, strict=True)):
        return None
    for frames, (a, b) in enumerate(zip(seen, otherwise, strict=False), 1):
        if np.abs(a.astype(int) - b).mean(axis=-1).sum() / 255 >= SHOWS:
            return frames
    return MOST


def _after(game: RealGame, seed: int, before, action, tick) -> Iterator[np.ndarray]:
    """Pictures while `action` is held after the actions `before`; none if the episode ends then."""
    game.reset(seed=seed)
    for step, act in enumerate([*before, *(MOST * [action])]):
        frame, _, terminated, truncated, _ = game.step(act)
        tick(1)
        if terminated or truncated:
            return
        if step >= len(before):
            yield frame
