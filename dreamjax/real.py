"""The real games as gymnasium environments that show 64x64 RGB frames.

The only module that imports VizDoom and Box2D. Original: `doomrnn/doomreal.py`,
`carracing/env.py`, and gym-doom's `doom_take_cover.py`, whose game the profile `takecover-2016`
rebuilds with today's engine. The 2016 engine clamped the skill 5 it was given to 4.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import math
import os
import resource
import shlex
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dreamjax import leash
from dreamjax.scratch import SHARED, Scratch
from dreamjax.tasks import FRAME_SHAPE, PRESSED, TAKE_COVER, TASKS, Task

# Profile -> "module:function", the function taking (task, screen) and returning the bare game.
FACTORIES = {
    "takecover-2016": "dreamjax.real:_take_cover",
    "takecover-vizdoom": "dreamjax.real:_take_cover",
    "carracing-v3": "dreamjax.real:_car_racing",
}
_SLACK = 1e-3  # how far rounding may carry an action past its bounds
_WORKING_DIRECTORY = threading.Lock()


class EngineCrashError(RuntimeError):
    """The game's engine died; `reset` starts a new one."""


def make_env(task: Task, *, screen: bool = True) -> gymnasium.Env:
    """The real game of a task, one tic a step.

    Observations are uint8 [64, 64, 3]. An episode ends by `terminated` (death, off the track) or
    by `truncated` (`task.max_steps` steps), never both. Take Cover pays 1 for every step, the
    dying one included, and has no screen to show after it: the observation that comes with
    `terminated` repeats the frame before and carries no information.

    Args:
      task: which game; `task.profile` chooses the variant.
      screen: False leaves all frames black. Take Cover plays on identically, over twice as fast.

    Raises:
      ImportError: the game's package is missing; names the `pip install` that brings it.
      ValueError: unknown profile.
    """
    if task.profile not in FACTORIES:
        known = ", ".join(FACTORIES)
        raise ValueError(f"no game has the profile {task.profile!r}; choose one of {known}")
    return RealGame(find(FACTORIES[task.profile])(task, screen), task.max_steps)


def find(name: str) -> Callable[..., Any]:
    """The function that `"module:function"` names."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def engine_seed(seed: int) -> int:
    """The game's own seed for any integer seed: the low 32 bits."""
    return int(seed) % 2**32


def games() -> dict[str, str]:
    """For every task, `package`."""
    return {name: package(task) for name, task in TASKS.items()}


def package(task: Task) -> str:
    """The package that plays a task, with its version, or what is missing."""
    name, load = _PACKAGES.get(task.profile, (task.profile, None))
    if load is None:
        return name
    try:
        load()
    except ImportError as error:
        return str(error)
    return f"{name} {importlib.metadata.version(name)}"


class RealGame(gymnasium.Wrapper):
    """Checks actions, caps episodes, and seeds any game with any integer."""

    def __init__(self, env: gymnasium.Env, max_steps: int):
        super().__init__(env)
        self.max_steps = max_steps
        self._steps = None  # None: the episode is over or has not begun

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; see `gymnasium.Env.reset`."""
        frame, info = self.env.reset(
            seed=None if seed is None else engine_seed(seed), options=options
        )
        self._steps = 0
        return frame, info

    def step(self, action):
        """Play one tic; see `gymnasium.Env.step`.

        Raises:
          ValueError: the action has the wrong shape, leaves the action space or is not finite.
          RuntimeError: no episode is running.
          EngineCrashError: the engine died.
        """
        if self._steps is None:
            raise RuntimeError("no episode is running; call reset() before step()")
        frame, reward, terminated, _, info = self.env.step(self._checked(action))
        self._steps += 1
        truncated = self._steps >= self.max_steps and not terminated
        if terminated or truncated:
            self._steps = None
        return frame, float(reward), bool(terminated), truncated, info

    def _checked(self, action) -> np.ndarray:
        action = np.asarray(action, np.float32)
        space = self.env.action_space
        if action.shape != space.shape:
            raise ValueError(f"action must have shape {space.shape}, got {action.shape}")
        inside = (action >= space.low - _SLACK) & (action <= space.high + _SLACK)
        if not inside.all():
            raise ValueError(
                f"action {action.tolist()} is not a point between "
                f"{space.low.tolist()} and {space.high.tolist()}"
            )
        return action


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


@dataclasses.dataclass(frozen=True)
class _DoomProfile:
    """What sets one variant of Take Cover apart; None leaves vizdoom's own setting."""

    start_tic: int | None = None
    hud: bool | None = None
    screen_flashes: bool | None = None
    crosshair: bool | None = None
    weapon: bool | None = None
    decals: bool | None = None
    particles: bool | None = None


_DOOM_PROFILES = {
    # gym-doom 60ff576. The HUD shifts the view, so it is drawn and then cropped away.
    "takecover-2016": _DoomProfile(
        start_tic=14,
        hud=True,
        screen_flashes=True,
        crosshair=False,
        weapon=False,
        decals=False,
        particles=False,
    ),
    "takecover-vizdoom": _DoomProfile(),
}
_SHARED_MEGABYTES = 11
_DOOM_ROWS = 100  # of 120; the original kept 400 of 480


def _vizdoom():
    try:
        import vizdoom
    except ImportError as error:
        raise ImportError(f"Take Cover needs VizDoom ({error}): pip install vizdoom") from None
    return vizdoom


def _take_cover(task: Task, screen: bool) -> gymnasium.Env:
    return TakeCover(task.profile, screen)


class TakeCover(gymnasium.Env):
    """Dodge fireballs by stepping left (action < -1/3) or right (action > 1/3).

    The screen is drawn at 160x120, ten times faster than the paper's 640x480 with the same view.

    Args:
      profile: variant of the game, a key of `_DOOM_PROFILES`.
      screen: whether frames are drawn.
    """

    observation_space = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (TAKE_COVER.action_size,), np.float32)

    def __init__(self, profile: str = TAKE_COVER.profile, screen: bool = True):
        self.screen = screen
        self.game = _doom_game(_DOOM_PROFILES[profile])
        self._scratch = Scratch("doom")
        self._cleanup = weakref.finalize(self, self._scratch.clear)
        _leash(self.game, self._scratch.path)
        self._shrink = _shrinker(_DOOM_ROWS, 160)
        self._frame = np.zeros(FRAME_SHAPE, np.uint8)
        self._start()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode that depends on `seed` and the actions alone."""
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        if not self.game.is_running():
            self._start()
        with self._faults():
            self.game.set_seed(seed)
            self.game.new_episode()
            self._look()
        return self._frame, {}

    def step(self, action: np.ndarray):
        """One tic; the reward is 1."""
        buttons = [bool(action[0] < -PRESSED), bool(action[0] > PRESSED)]
        with self._faults():
            self.game.set_action(buttons)
            self.game.advance_action(1, self.screen)
            terminated = self.game.is_episode_finished()
            if not terminated:
                self._look()
        return self._frame, 1.0, terminated, False, {}

    def close(self) -> None:
        """End the engine and remove its files."""
        self.game.close()
        self._cleanup()

    def _look(self) -> None:
        if self.screen:
            self._frame = self._shrink(self.game.get_state().screen_buffer[:_DOOM_ROWS])

    def _start(self) -> None:
        _check_limit()
        # The engine writes into its working directory and obeys a `_vizdoom.cfg` found there.
        with self._faults(), _WORKING_DIRECTORY, contextlib.chdir(self._scratch.path):
            others = engine_files()
            self.game.init()
            for file in set(engine_files()) - set(others):
                Path(os.path.basename(file)).touch()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        vizdoom = _vizdoom()
        try:
            yield
        except (
            vizdoom.ViZDoomErrorException,
            vizdoom.ViZDoomIsNotRunningException,
            vizdoom.ViZDoomUnexpectedExitException,
            vizdoom.MessageQueueException,
            vizdoom.SharedMemoryException,
        ) as error:
            self.game.close()
            raise EngineCrashError(f"the VizDoom engine died ({error})") from None


def _doom_game(profile: _DoomProfile):
    vizdoom = _vizdoom()
    game = vizdoom.DoomGame()
    game.load_config(os.path.join(vizdoom.scenarios_path, "take_cover.cfg"))
    game.set_window_visible(False)
    game.set_available_buttons([vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT])
    game.set_available_game_variables([])
    game.set_doom_skill(4)
    game.set_episode_timeout(0)  # the cap is RealGame's, apart from death
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    for name, value in dataclasses.asdict(profile).items():
        setter = "set_episode_start_time" if name == "start_tic" else f"set_render_{name}"
        if value is not None:
            getattr(game, setter)(value)
    return game


def _check_limit() -> None:
    """Refuse a start that would end in a segmentation fault of VizDoom's."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < _SHARED_MEGABYTES << 20:
        raise OSError(
            f"VizDoom shares {_SHARED_MEGABYTES} MB of memory with its engine, but files may have "
            f"{limit >> 20} MB at most here; lift it with: ulimit -f unlimited"
        )


def _leash(game, directory: Path) -> None:
    """Have a game's engine die with this process, and name its shared memory in `directory`.

    So no engine outlives a run whose processes are all killed at once, and its memory is known
    even where it or this process dies as it starts. Only Linux can do so.
    """
    script, engine = directory / "engine", Path(_vizdoom().__file__).with_name("vizdoom")
    words = sys.executable, "-IS", os.path.abspath(leash.__file__), str(os.getpid()), str(engine)
    script.write_bytes(os.fsencode(_LEASHED.format(command=shlex.join(words), shared=SHARED)))
    script.chmod(0o700)
    runs = os.access(script, os.X_OK) and os.access(engine, os.X_OK)  # a folder may be noexec
    if sys.platform == "linux" and runs:
        game.set_vizdoom_path(str(script))


_LEASHED = """#!/bin/sh
for word; do
  if [ "$before" = +viz_instance_id ]; then
    for name in MQCtr MQDoom SM; do : > "${{0%/*}}/{shared}$name$word"; done
  fi
  before=$word
done
exec {command} "$@"
"""


def engine_files() -> list[str]:
    """Shared-memory files that this process holds for its engines: litter, once it is killed."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # the system has no /proc
        return []
    return sorted({line.split()[-1] for line in lines if f"/dev/shm/{SHARED}" in line})


def _box2d():
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import Box2D
        import pygame
    except ImportError as error:
        raise ImportError(
            f'Car Racing needs Box2D and pygame ({error}): pip install "gymnasium[box2d]"'
        ) from None
    return Box2D, pygame


def _car_racing(task: Task, screen: bool) -> gymnasium.Env:
    """CarRacing-v3; a full lap is the whole track, as in the v0 the paper played."""
    del task, screen  # Car Racing draws its screen anyway
    _box2d()
    from gymnasium.envs.box2d.car_racing import CarRacing

    game = CarRacing(continuous=True, domain_randomize=False, lap_complete_percent=1.0)
    shrink = _shrinker(_CAR_ROWS, 96)
    space = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
    return gymnasium.wrappers.TransformObservation(game, lambda f: shrink(f[:_CAR_ROWS]), space)


_CAR_ROWS = 84  # of 96; the rest is the bar of gauges


_PACKAGES = {
    "takecover-2016": ("vizdoom", _vizdoom),
    "takecover-vizdoom": ("vizdoom", _vizdoom),
    "carracing-v3": ("gymnasium", _box2d),
}
