"""Take Cover: VizDoom's game of dodging fireballs; the only module that imports VizDoom.

Original: gym-doom's `doom_take_cover.py`, whose game `make` rebuilds with today's engine. The
2016 engine clamped the skill 5 it was given to 4.
"""

import contextlib
import os
import resource
import shlex
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np

from dreamjax.actions import Actions
from dreamjax.game import leash, policies
from dreamjax.game.env import EngineCrashError
from dreamjax.game.scratch import SHARED, Scratch, working_in
from dreamjax.tasks import TAKE_COVER, TAKE_COVER_VIZDOOM

SCREEN = (120, 160)  # rows and columns
BLIND_HOLD = 110  # steps; the best of the hold times tried
NEAR = 6  # bright pixels of a fireball that is near
SWEEPS = 0.25  # share of episodes that sweep among those of `habits`


def make() -> gymnasium.Env:
    """The paper's game."""
    return TakeCover(TAKE_COVER.profile)


def make_vizdoom() -> gymnasium.Env:
    """The game as the vizdoom package registers it."""
    return TakeCover(TAKE_COVER_VIZDOOM.profile)


def left_and_right(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """`BLIND_HOLD` steps left, as many right, and again."""
    space = actions.space()
    return lambda step, frame=None: (space.low, space.high)[step // BLIND_HOLD % 2]


def sweeps(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """Across the room and back, broken off at times: the old games that M sees too few of.

    Whoever keeps moving lives long. After each way, most or all of the room's width, an action is
    drawn and held for 2 to 40 steps instead, with a probability of the episode's own in 0..0.7.
    """
    sides = actions.space().low, actions.space().high
    side, broken = int(rng.integers(2)), 0.7 * rng.random()

    def choose(last: np.ndarray | None) -> tuple[np.ndarray, int]:
        nonlocal side
        if rng.random() < broken:
            return actions.draw(rng), int(rng.integers(2, 41))
        side = 1 - side
        return sides[side], int(rng.integers(70, BLIND_HOLD + 11))

    return policies.holding(choose)


def still(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """Never moves."""
    action = np.zeros(1, np.float32)
    return lambda step, frame=None: action


def dodging(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """Steps away from the side on which fireballs are brighter; stands while none is near."""
    space, colour = actions.space(), TAKE_COVER.salient

    def policy(step: int, frame: np.ndarray) -> np.ndarray:
        bright = colour.where(np.moveaxis(frame / np.float32(255), -1, 0), rows=0)[16:, 12:52]
        left, right = bright[:, :20].sum(), bright[:, 20:].sum()
        if max(left, right) < NEAR:
            return np.zeros(1, np.float32)
        return space.high if left > right else space.low

    return policy


def habits(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """Every place and every age: `varied` in three episodes of four, `sweeps` in the fourth."""
    return (sweeps if rng.random() < SWEEPS else policies.varied)(actions, rng)


_DOOM_PROFILES = {  # what sets a variant of Take Cover apart from vizdoom's own settings
    # gym-doom 60ff576. The HUD shifts the view, so it is drawn and then cropped away.
    "takecover-2016": {
        "episode_start_time": 14,
        "render_hud": True,
        "render_screen_flashes": True,
        "render_crosshair": False,
        "render_weapon": False,
        "render_decals": False,
        "render_particles": False,
    },
    "takecover-vizdoom": {},
}
_SHARED_MEGABYTES = 11
MEMORY = "/dev/shm"  # where the system keeps what processes share


def check():
    """The package vizdoom; ImportError, with the remedy, where it is not installed."""
    try:
        import vizdoom
    except ImportError as error:
        raise ImportError(f"Take Cover needs VizDoom ({error}): pip install vizdoom") from None
    return vizdoom


class TakeCover(gymnasium.Env):
    """Dodge fireballs by stepping left (action < -1/3) or right (action > 1/3).

    The screen is drawn at 160x120, ten times faster than the paper's 640x480 with the same view,
    where `dreamjax_screen` is on; after a death the frame before stays. `profile` is the variant.
    """

    observation_space = gymnasium.spaces.Box(0, 255, (*SCREEN, 3), np.uint8)
    action_space = TAKE_COVER.actions.space()

    def __init__(self, profile: str = TAKE_COVER.profile):
        self.dreamjax_screen = True
        self.game = _doom_game(_DOOM_PROFILES[profile])
        self._scratch = Scratch("doom")
        self._cleanup = weakref.finalize(self, self._scratch.clear)
        _leash(self.game, self._scratch.path)
        self._frame = np.zeros(self.observation_space.shape, np.uint8)
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
        pressed = TAKE_COVER.actions.pressed
        buttons = [bool(action[0] < -pressed), bool(action[0] > pressed)]
        with self._faults():
            self.game.set_action(buttons)
            self.game.advance_action(1, self.dreamjax_screen)
            terminated = self.game.is_episode_finished()
            if not terminated:
                self._look()
        return self._frame, 1.0, terminated, False, {}

    def close(self) -> None:
        """End the engine and remove its files."""
        self.game.close()
        self._cleanup()

    def _look(self) -> None:
        if self.dreamjax_screen:
            self._frame = self.game.get_state().screen_buffer

    def _start(self) -> None:
        _check_limit()
        # The engine writes into its working directory and obeys a `_vizdoom.cfg` found there.
        with self._faults(), working_in(self._scratch.path):
            others = engine_files()
            self.game.init()
            for file in set(engine_files()) - set(others):
                Path(os.path.basename(file)).touch()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        vizdoom = check()
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


def _doom_game(profile: dict[str, int | bool]):
    vizdoom = check()
    game = vizdoom.DoomGame()
    game.load_config(os.path.join(vizdoom.scenarios_path, "take_cover.cfg"))
    game.set_window_visible(False)
    game.set_available_buttons([vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT])
    game.set_available_game_variables([])
    game.set_doom_skill(4)
    game.set_episode_timeout(0)  # the cap is RealGame's, apart from death
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    for name, value in profile.items():
        getattr(game, f"set_{name}")(value)
    return game


def _check_limit() -> None:
    """Refuse a start that would end in a segmentation fault or a bus error of VizDoom's."""
    limit, room = resource.getrlimit(resource.RLIMIT_FSIZE)[0], {}
    if limit != resource.RLIM_INFINITY:
        room["files may have {} MB at most here; lift it with: ulimit -f unlimited"] = limit
    if os.path.isdir(MEMORY):
        remedy = "use fewer --workers, or enlarge it (Docker: --shm-size=1g)"
        room[f"{MEMORY} has {{}} MB left; {remedy}"] = shutil.disk_usage(MEMORY).free
    for fault, left in room.items():
        if left < _SHARED_MEGABYTES << 20:
            raise OSError(
                f"VizDoom shares {_SHARED_MEGABYTES} MB of memory with its engine, but "
                + fault.format(left >> 20)
            )


def _leash(game, directory: Path) -> None:
    """Have a game's engine die with this process, and name its shared memory in `directory`.

    So no engine outlives a run whose processes are all killed at once, and its memory is known
    even where it or this process dies as it starts. Only Linux can do so.
    """
    script, engine = directory / "engine", Path(check().__file__).with_name("vizdoom")
    words = [sys.executable, "-IS", os.path.abspath(leash.__file__)]
    words += [str(word) for word in (directory / SHARED, os.getpid(), engine)]
    script.write_bytes(os.fsencode(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'))
    script.chmod(0o700)
    runs = os.access(script, os.X_OK) and os.access(engine, os.X_OK)  # a folder may be noexec
    if sys.platform == "linux" and runs:
        game.set_vizdoom_path(str(script))


def engine_files() -> list[str]:
    """Shared-memory files that this process holds for its engines: litter, once it is killed."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # the system has no /proc
        return []
    return sorted({line.split()[-1] for line in lines if f"/dev/shm/{SHARED}" in line})
