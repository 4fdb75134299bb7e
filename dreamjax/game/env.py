"""Any real game as a gymnasium environment that shows 64x64 RGB frames and plays vectors.

Original: `doomrnn/doomreal.py`, `carracing/env.py`.
"""

import functools
import importlib
import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from dreamjax.actions import actions_of, in_a_line
from dreamjax.tasks import FRAME_SHAPE, TASKS, Task, find

SWITCH = "screen"  # an attribute by which a game can be told not to draw
_SLACK = 1e-3  # how far rounding may carry an action past its bounds


class EngineCrashError(RuntimeError):
    """The game's engine died; `reset` starts a new one."""


def make_env(task: Task, *, screen: bool = True) -> gymnasium.Env:
    """The real game of a task.

    Observations are uint8 [64, 64, 3], actions float32 [A] in the task's form. An episode ends by
    `terminated`, and then `info["end"]` is its place in `task.ends`, or by `truncated` (the
    game's own limit, or `task.max_steps` steps), never both.

    Args:
      task: which game.
      screen: False leaves all frames black. A game that has a switch `screen`, true or false, is
        told so: VizDoom's plays on identically, over twice as fast.

    Raises:
      ImportError: the game's package is missing; names the `pip install` that brings it.
      ValueError: the game shows no pictures, or other actions than the task's.
    """
    game = find(task.make)()
    try:
        return RealGame(game, task, screen)
    except Exception:
        game.close()
        raise


def engine_seed(seed: int) -> int:
    """The game's own seed for any integer seed: the low 32 bits."""
    return int(seed) % 2**32


def games() -> dict[str, str]:
    """For every task, `package`."""
    return {name: package(task) for name, task in TASKS.items()}


def package(task: Task) -> str:
    """The package that plays a task, with its version, or what is missing.

    A module that makes a game may have a function `check` that raises ImportError with a remedy.
    """
    make = task.make if isinstance(task.make, str) else type(task.make).__module__
    module = make.partition(":")[0]
    name = task.package or module.partition(".")[0]
    try:
        getattr(importlib.import_module(module), "check", lambda: None)()
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name
    except ImportError as error:
        return str(error)


class RealGame(gymnasium.Wrapper):
    """Shows what V sees, plays vectors, checks them, caps episodes, and seeds with any integer.

    Args and errors: as for `make_env`.
    """

    def __init__(self, game: gymnasium.Env, task: Task, screen: bool = True):
        super().__init__(game)
        self.task = task
        self.observation_space = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
        self.action_space = task.actions.space()
        self._check_actions()
        self._sees_observations = _shows_pictures(game.observation_space)
        if not self._sees_observations and game.render_mode != "rgb_array":
            raise ValueError(
                f"{task.name} shows no pictures: its observations are "
                f"{in_a_line(game.observation_space)}, not uint8 [height, width, 3], and its "
                f"render_mode is {game.render_mode}, not 'rgb_array'"
            )
        # pygame's games have another attribute of that name
        has_switch = game.has_wrapper_attr(SWITCH)
        self._has_switch = has_switch and isinstance(game.get_wrapper_attr(SWITCH), bool)
        self._dark = not screen
        self._steps = None  # None: the episode is over or has not begun

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; see `gymnasium.Env.reset`."""
        self._draw(not self._dark)
        obs, info = self.env.reset(
            seed=None if seed is None else engine_seed(seed), options=options
        )
        self._steps = 0
        return self._seen(obs), info

    def step(self, action):
        """Play one step, `task.frame_skip` frames or fewer; see `gymnasium.Env.step`.

        Of a step only the last frame is drawn, so none is seen of an end before it.

        Raises:
          ValueError: the action has the wrong shape, leaves the action space or is not finite; or
            the game ended in a way that the task does not name.
          RuntimeError: no episode is running.
          EngineCrashError: the engine died.
        """
        if self._steps is None:
            raise RuntimeError("no episode is running; call reset() before step()")
        action = self.task.actions.to_game(self._checked(action))
        obs, reward, terminated, truncated, info = self._frames(action)
        self._steps += 1
        terminated = bool(terminated)
        truncated = bool(truncated or self._steps >= self.task.max_steps) and not terminated
        if terminated:
            info = {**info, "end": self._end(info)}
        if terminated or truncated:
            self._steps = None
        return self._seen(obs), float(reward), terminated, truncated, info

    def _frames(self, action):
        """What a step's last frame answers, and the rewards of all."""
        earned, skipped = 0.0, self.task.frame_skip - 1
        if skipped:
            self._draw(False)
        for frame in range(skipped + 1):
            if skipped and frame == skipped:
                self._draw(not self._dark)
            obs, reward, terminated, truncated, info = self.env.step(action)
            earned += reward
            if terminated or truncated:
                break
        return obs, earned, terminated, truncated, info

    def _draw(self, on: bool) -> None:
        """Tell a game that can be told whether its frames are looked at."""
        if self._has_switch:
            self.env.set_wrapper_attr(SWITCH, on)

    def _seen(self, obs) -> np.ndarray:
        """The picture, cropped and shrunk."""
        if self._dark:
            return np.zeros(FRAME_SHAPE, np.uint8)
        picture = obs if self._sees_observations else self.env.render()
        if self.task.crop is not None:
            top, bottom, left, right = self.task.crop
            picture = picture[top:bottom, left:right]
        return _shrinker(*picture.shape[:2])(picture)

    def _end(self, info: dict[str, Any]) -> int:
        ends = self.task.ends
        name = info.get("end", ends[0] if ends else "an end")
        if name not in ends:
            raise ValueError(
                f"{self.task.name} ended by {name!r}, but the task's ends are {ends}; add it there"
            )
        return ends.index(name)

    def _check_actions(self) -> None:
        theirs, ours = actions_of(self.env.action_space), self.task.actions
        if (theirs.size, theirs.low, theirs.high) != (ours.size, ours.low, ours.high):
            raise ValueError(
                f"{self.task.name} has the actions {in_a_line(self.env.action_space)}, but its "
                f"task says {ours}"
            )

    def _checked(self, action) -> np.ndarray:
        action = np.asarray(action, np.float32)
        space = self.action_space
        if action.shape != space.shape:
            raise ValueError(f"action must have shape {space.shape}, got {action.shape}")
        inside = (action >= space.low - _SLACK) & (action <= space.high + _SLACK)
        if not inside.all():
            raise ValueError(
                f"action {action.tolist()} is not a point between "
                f"{space.low.tolist()} and {space.high.tolist()}"
            )
        return action


def _shows_pictures(space: gymnasium.Space) -> bool:
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) == 3 and shape[2] == FRAME_SHAPE[2]


@functools.cache
def _shrinker(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """Area average of frames uint8 [height, width, 3] down to 64x64.

    Every pixel counts by the area it covers, so a fireball two pixels wide stays visible.
    """
    row_groups, rows = _area_weights(height, FRAME_SHAPE[0])
    column_groups, columns = _area_weights(width, FRAME_SHAPE[1])
    columns = np.ascontiguousarray(np.kron(columns, np.eye(3, dtype=np.float32)).T)

    def shrink(frame: np.ndarray) -> np.ndarray:
        wide = frame.astype(np.float32).reshape(height * column_groups, -1) @ columns
        small = rows @ wide.reshape(row_groups, -1, 3 * FRAME_SHAPE[1])
        return (small + 0.5).reshape(FRAME_SHAPE).astype(np.uint8)

    return shrink


def _area_weights(source: int, target: int) -> tuple[int, np.ndarray]:
    """Number of equal blocks on the axis, and the weights [out, in] inside each."""
    blocks = math.gcd(source, target)
    source, target = source // blocks, target // blocks
    edges = np.arange(target + 1) * source / target
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return blocks, (overlap.clip(min=0) * target / source).astype(np.float32)
