"""Any real game as a gymnasium environment that shows 64x64 RGB frames and plays vectors.

This is the gate: what a game answers is brought into one form here, or refused in one line.
Original: `doomrnn/doomreal.py`, `carracing/env.py`.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from dreamjax.actions import actions_of, in_a_line
from dreamjax.game.pictures import Eye, shrunk
from dreamjax.importing import find
from dreamjax.task import FRAME_SHAPE, Task
from dreamjax.tasks import TASKS

SWITCH = "dreamjax_screen"  # an attribute by which a game can be told not to draw
_SLACK = 1e-3  # of half a number's range, by which rounding may carry an action past its bounds
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), 2.0**-149


class EngineCrashError(RuntimeError):
    """The game's engine died; `reset` starts a new one."""


class GameError(ValueError):
    """A game that cannot be used, or an answer of a game that cannot be; one line."""


def make_env(task: Task, *, screen: bool = True) -> "RealGame":
    """The real game of a task.

    Observations are uint8 [64, 64, 3], actions float32 [A] in the task's form. An episode ends by
    `terminated`, and then `info["end"]` is its place in `task.ends`, or by `truncated` (the
    game's own limit, or `task.max_steps` steps), never both. `render` gives the game's own picture,
    uint8 [height, width, 3].

    Args:
      task: which game.
      screen: False leaves all frames black. A game that has a switch `dreamjax_screen` is told
        so: VizDoom's plays on identically, over twice as fast.

    Raises:
      ImportError: the game's package is missing; names the `pip install` that brings it.
      GameError: the game cannot be made, shows no pictures, or has other actions than the task's.
    """
    game = opened(task)
    try:
        return RealGame(game, task, screen)
    except Exception:
        with contextlib.suppress(Exception):
            game.close()
        raise


def opened(task: Task) -> gymnasium.Env:
    """What a task's `make` returns; ImportError if a package is missing, or else GameError."""
    make = find(task.make)
    try:
        game = make()
    except BaseException as error:
        ours = isinstance(error, OSError) and error.errno is None
        told = ours or (isinstance(error, ImportError) and "pip install" in str(error))
        if told or isinstance(error, EngineCrashError | KeyboardInterrupt):
            raise
        kind = ImportError if isinstance(error, ImportError) else GameError
        raise kind(
            f"{task.name}: make() failed ({in_a_sentence(error)}); call it in Python to see why, "
            "and install, import or register there what it lacks"
        ) from error
    if not isinstance(game, gymnasium.Env):
        raise GameError(
            f"{task.name}: make() returned {reprlib.repr(game)}, which is no gymnasium.Env; return "
            "one, or wrap what it is"
        )
    return game


def in_a_sentence(error: BaseException) -> str:
    """The type of an error and what it says, in one line."""
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())
    except Exception:  # of a `__str__`
        return type(error).__name__
    return text if len(text) < 300 else f"{text[:300]}..."


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
    """Shows what V sees, plays vectors, checks both, caps episodes, and seeds with any integer.

    What a game answers may be in an older or another form of gymnasium's: pictures as `Eye` knows
    them, rewards of one number in an array, four values of a step, a first observation alone.

    Args and errors: as for `make_env`.
    """

    render_mode = "rgb_array"

    def __init__(self, game: gymnasium.Env, task: Task, screen: bool = True):
        super().__init__(game)
        task = self.task = _with_actions(task, game)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": task.frames_per_second}
        self.observation_space = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
        self.action_space = task.actions.space()
        low, high = self.action_space.low, self.action_space.high
        slack = _SLACK * (high - low) / 2
        self._bounds = low - slack, high + slack
        try:
            self._eye = Eye(game, task.picture)
        except Exception as error:
            raise GameError(f"{task.name} {error}") from error
        self._has_switch = game.has_wrapper_attr(SWITCH)
        self._dark = not screen
        self._seed: int | None = None
        self._picture: np.ndarray | None = None
        self._steps: int | None = None  # None: the episode is over or has not begun

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; see `gymnasium.Env.reset`."""
        self._draw(not self._dark)
        self._seed, self._steps = seed, 0
        asked = {"seed": None if seed is None else int(seed) % self.task.seeds}
        answer = self._ask("reset", **asked, **({} if options is None else {"options": options}))
        is_pair = isinstance(answer, tuple | list) and len(answer) == 2
        obs, info = answer if is_pair else (answer, None)
        return self._seen(obs), self._noted(info, "reset")

    def step(self, action: np.ndarray):
        """Play one step, `task.frame_skip` frames or fewer; see `gymnasium.Env.step`.

        Of a step only the last frame is drawn, so none is seen of an end before it.

        Raises:
          ValueError: the action has the wrong shape, leaves the action space or is not finite.
          GameError: the game ended in a way that the task does not name, paid no finite number,
            or answered what cannot be used.
          RuntimeError: no episode is running.
          EngineCrashError: the engine died.
        """
        if self._steps is None:
            raise RuntimeError("no episode is running; call reset() before step()")
        action = self.task.actions.to_game(self._checked(action), self.env.action_space)
        obs, reward, terminated, truncated, info = self._frames(action)
        self._steps += 1
        truncated = bool(truncated or self._steps >= self.task.max_steps) and not terminated
        if terminated:
            info = {**info, "end": self._end(info)}
        frame = self._seen(obs)
        if terminated or truncated:
            self._steps = None
        return frame, reward, terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """The game's own picture, uint8 [height, width, 3]; None before the first."""
        return None if self._picture is None else self._picture.copy()

    def _frames(self, action):
        """What a step's last frame answers, and the rewards of all."""
        earned, last = 0.0, self.task.frame_skip - 1
        for frame in range(last + 1):
            if last:
                self._draw(frame == last and not self._dark)
            obs, reward, terminated, truncated, info = self._frame(action)
            earned += reward
            if terminated or truncated:
                break
        self._check_paid(earned, terminated or truncated)
        return obs, earned, terminated, truncated, info

    def _frame(self, action):
        """The five values of one frame."""
        match self._ask("step", action):
            case (obs, reward, terminated, truncated, info):
                terminated = self._truth(terminated)
            case (obs, reward, done, Mapping() as info):  # before there was `truncated`
                truncated = info.get("TimeLimit.truncated", False)
                terminated = self._truth(done) and not truncated
            case _:
                raise self._refused(
                    "returned other than (obs, reward, terminated, truncated, info)"
                )
        return obs, self._one(reward), terminated, self._truth(truncated), self._noted(info)

    def _check_paid(self, earned: float, over: bool) -> None:
        """Refuse what float32 cannot hold, and other than the task says of every step."""
        constant = self.task.step_reward
        if not math.isfinite(earned):
            raise self._refused(f"paid {earned}; pay finite numbers")
        if abs(earned) >= _LARGEST or 0 < abs(earned) < _SMALLEST:
            raise self._refused(f"paid {earned:g}, which float32 cannot hold; scale it")
        if constant is not None and not over and not math.isclose(earned, constant, rel_tol=1e-5):
            raise self._refused(f"paid {earned:g}, but Task.step_reward is {constant:g}")

    def _noted(self, info: Any, method: str = "step") -> dict[str, Any]:
        if info is None:
            return {}
        if not isinstance(info, Mapping):
            raise self._refused(f"returned {reprlib.repr(info)} in place of the dict info", method)
        return dict(info)

    def _truth(self, value: Any) -> bool:
        """True or false, which may come as an array, as 0 or 1, or false as None."""
        found = 0.0 if value is None else self._one(value)
        if found not in (0, 1):
            raise self._refused(f"answered {value!r} where True or False belongs")
        return bool(found)

    def _one(self, value: Any) -> float:
        """A single number, or truth, that may come as an array of one."""
        try:
            return float(np.asarray(value).item() if np.ndim(value) else value)
        except (TypeError, ValueError):
            raise self._refused(f"answered {reprlib.repr(value)} where one float belongs") from None

    def _ask(self, method: str, *args: Any, **named: Any) -> Any:
        """What the game answers; its own errors in one line."""
        try:
            return getattr(self.env, method)(*args, **named)
        except (EngineCrashError, KeyboardInterrupt):
            raise
        except BaseException as error:
            said = f"failed ({in_a_sentence(error)})"
            if method == "reset" and "unexpected keyword argument 'seed'" in said:
                said += "; define reset(self, *, seed=None, options=None)"
            elif method == "reset":
                said += "; Task.seeds says how many seeds it takes"
            raise self._refused(said, method) from error

    def _refused(self, said: str, method: str = "step") -> GameError:
        """An error that names the game, what was asked of it, and when."""
        when = f"with seed {self._seed}" if method == "reset" else self._when
        return GameError(f"{self.task.name}: {method} {when} {said}")

    @property
    def _when(self) -> str:
        return f"at step {self._steps} of the episode with seed {self._seed}"

    def _draw(self, on: bool) -> None:
        """Tell a game that can be told whether its frames are looked at."""
        if self._has_switch:
            self.env.set_wrapper_attr(SWITCH, on)

    def _seen(self, obs) -> np.ndarray:
        """The picture, cropped and shrunk."""
        if self._dark:
            self._picture = np.zeros(FRAME_SHAPE, np.uint8)
            return self._picture.copy()
        try:
            self._picture = self._eye.see(obs)
            return shrunk(self._picture, self.task.crop)
        except (EngineCrashError, MemoryError):
            raise
        except Exception as error:
            plain = isinstance(error, ValueError)
            said = str(error) if plain else f"fails ({in_a_sentence(error)})"
            raise GameError(f"{self.task.name} {self._when} {said}") from error

    def _end(self, info: dict[str, Any]) -> int:
        ends = self.task.ends
        name = info.get("end")
        if not isinstance(name, str):  # something else that a game calls so
            name = ends[0] if ends else "an end"
        if name not in ends:
            raise GameError(
                f"{self.task.name} ended by {name!r}, but the task's ends are {ends}; add it there"
            )
        return ends.index(name)

    def _checked(self, action) -> np.ndarray:
        action = np.asarray(action, np.float32)
        space: Any = self.action_space
        low, high = self._bounds
        if action.shape != space.shape:
            raise ValueError(
                f"an action of {self.task.name} must have shape {space.shape}, got {action.shape}"
            )
        if not ((action >= low) & (action <= high)).all():
            raise ValueError(
                f"action {action.tolist()} of {self.task.name} is not a point between "
                f"{space.low.tolist()} and {space.high.tolist()}"
            )
        return action


def _with_actions(task: Task, game: gymnasium.Env) -> Task:
    """`task`, whose actions are the game's; GameError if it told others, or of no known form."""
    space = getattr(game, "action_space", None)
    try:
        theirs = actions_of(space)
    except ValueError as error:
        raise GameError(f"{task.name}: {error}") from error
    ours = task.actions or theirs
    if (theirs.size, theirs.low, theirs.high) != (ours.size, ours.low, ours.high):
        raise GameError(f"{task.name} has the actions {in_a_line(space)}, but its task says {ours}")
    return dataclasses.replace(task, actions=ours)
