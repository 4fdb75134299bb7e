"""Car Racing: gymnasium's game of Box2D; the only module that imports it.

`everyone` and `steady` look at the picture. They gather data, and are what a rule without learning
does.
"""

import os
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from dreamjax.actions import Actions
from dreamjax.game import policies

CAR = 31.5  # column of the car in what V sees
NEAREST, FARTHEST, APART = 50, 8, 2  # rows of what V sees, in which a driver looks for the road
STILL = 1.5  # mean change of a pixel from one step to the next, below which a car hardly moves
ASIDE = 14  # columns between the road's middle in a row and in the next, at most


def make() -> gymnasium.Env:
    """CarRacing-v3; a full lap is the whole track, as in the v0 the paper played."""
    check()
    from gymnasium.envs.box2d import car_racing as theirs

    game: Any = theirs.CarRacing(continuous=True, domain_randomize=False, lap_complete_percent=1.0)
    game._render_road = _Road(game, theirs)
    draw, laps, black = game._render, Laps(game), np.zeros((96, 96, 3), np.uint8)
    game._render = lambda mode: draw(mode) if laps.dreamjax_screen else black
    return laps


def check() -> None:
    """Raise ImportError, with the remedy, where something of the game is missing."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import Box2D  # noqa: F401
        import pygame  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'Car Racing needs Box2D and pygame ({error}): pip install "gymnasium[box2d]"'
        ) from None


class Laps(gymnasium.Wrapper):
    """Tells a lap completed from a car that left the track, by `info["end"]`."""

    dreamjax_screen = True  # False draws nothing, which takes most of the game's time

    def step(self, action):
        """One frame; see `gymnasium.Env.step`."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        if terminated:
            info = {**info, "end": "lap" if info.get("lap_finished") else "off track"}
        return frame, reward, terminated, truncated, info


class _Road:
    """Draws grass and road to the same pixels, but only what the screen shows.

    Over half of gymnasium's time goes to shapes that are elsewhere on the track.
    """

    _track: Any = None

    def __init__(self, game: Any, theirs: Any):
        self._game, self._size = game, (theirs.WINDOW_W, theirs.WINDOW_H)
        field = np.float64([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * theirs.PLAYFIELD
        places = np.mgrid[-20:20:2, -20:20:2].reshape(2, 400).T[:, None]
        corners = np.float64([(1, 0), (0, 0), (0, 1), (1, 1)])
        self._ground = np.concatenate(([field], (places + corners) * theirs.GRASS_DIM))

    def __call__(self, zoom: float, translation: tuple[float, float], angle: float) -> None:
        """In the place of `CarRacing._render_road`."""
        game, view = self._game, (zoom, translation, angle)
        if self._track is not game.road_poly:
            self._track = game.road_poly
            self._shapes = np.concatenate((self._ground, [corners for corners, _ in self._track]))
        for shape in self._shown(*view):
            colour = game.grass_color if shape else game.bg_color
            if shape >= len(self._ground):
                colour = [int(x) for x in self._track[shape - len(self._ground)][1]]
            corners = self._shapes[shape].tolist()
            game._draw_colored_polygon(game.surf, corners, colour, *view, clip=False)

    def _shown(self, zoom: float, translation: tuple[float, float], angle: float) -> np.ndarray:
        """Which shapes may touch the screen, in their order."""
        turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
        places = self._shapes @ (turn * zoom) + translation
        edge = 2  # pixels; lines are smoothed by less
        inside = (places.max(1) >= -edge) & (places.min(1) <= np.add(self._size, edge))
        return np.flatnonzero(inside.all(1))


def leftwards(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """Always the same gas and a little to the left, as tracks go: the best blind player found."""
    action = np.array([-0.03, 0.1, 0.0], np.float32)
    return lambda step, frame=None: action


def steady(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """Steers for the middle of the road some way ahead, slower in bends: the fixed rule."""
    return Driver()


def _always(steer: float, gas: float, brake: float = 0.0) -> Callable[..., policies.Policy]:
    action = np.array([steer, gas, brake], np.float32)
    return lambda actions, rng: lambda step, frame=None: action


# Players that `dreamjax fidelity` puts into the dream: the rule, faster and disturbed, and blind
# ones, each with one action for good.
brisk, fast, hasty = (lambda actions, rng, gas=gas: Driver(gas=gas) for gas in (0.25, 0.4, 0.6))
full_gas, full_lock, rightwards = _always(0, 1), _always(1, 0.1), _always(0.3, 0.1)


def shaken(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """`steady`, disturbed by noise and slips."""
    return _slipping(Driver(), rng)


def everyone(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """Good and fast drivers, bad ones and blind ones: for a dream that is to hold for any of them.

    Half of the episodes are a rule's, disturbed: by noise, and at times by steering that is held
    and that the picture does not foretell, which shows M what the wheel does. A tenth are a fast
    rule's, undisturbed; a fifth are blind; a fifth change once from one to the other, so that cars
    leave the road and stay off it, or come back.
    """
    kind = rng.random()
    if kind < 0.5:
        return _slipping(_any_driver(rng, 0.07, 1.0), rng)
    if kind < 0.6:
        return _any_driver(rng, 0.25, 1.0)
    if kind < 0.8:
        return _blind(actions, rng)
    first: policies.Policy = _any_driver(rng, 0.1, 1.0)
    second = _blind(actions, rng)
    if rng.random() < 0.4:
        first, second = second, first
    change = int(rng.integers(10, 150))
    return lambda step, frame: (first if step < change else second)(step, frame)


def _any_driver(rng: np.random.Generator, slowest: float, fastest: float) -> "Driver":
    """A rule of its own steadiness, and of a gas that is log-uniform between two."""
    return Driver(
        ahead=int(rng.integers(6, 12)),
        gain=rng.uniform(0.035, 0.07),
        damping=rng.uniform(0.01, 0.06),
        gas=np.exp(rng.uniform(np.log(slowest), np.log(fastest))),
    )


def _blind(actions: Actions, rng: np.random.Generator) -> policies.Policy:
    """Never looks: one action for good in two of five, else `held`, `varied` or `uniform`."""
    kind = rng.integers(5)
    if kind >= 2:
        return (policies.held, policies.varied, policies.uniform)[kind - 2](actions, rng)
    steer = rng.choice([0.0, rng.normal() * 0.1, rng.uniform(-1, 1)])
    gas = rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 1.0), 1.0])
    brake = rng.choice([0.0, 0.0, rng.uniform(0, 1)])
    action = np.array([np.clip(steer, -1, 1), gas, brake], np.float32)
    return lambda step, frame=None: action


def _slipping(driver: policies.Policy, rng: np.random.Generator) -> policies.Policy:
    """`driver` with noise on what it does, and slips: another steering, held for some steps.

    Half of the slips have a gas of their own too, and one in ten brakes.
    """
    noise, slips = rng.choice([0.0, 0.15, 0.4]), rng.choice([0.01, 0.03, 0.1])
    slipped, kept, until, drift = np.zeros(3), np.zeros(3, bool), 0, np.zeros(3)

    def policy(step: int, frame: np.ndarray) -> np.ndarray:
        nonlocal slipped, kept, until, drift
        drift = 0.7 * drift + noise * rng.normal(size=3) * (0.5, 0.25, 0.0)
        wanted = driver(step, frame) + drift
        if step >= until and rng.random() < slips:
            slipped, until = rng.uniform((-1, 0, 0), 1), step + int(rng.integers(1, 10))
            kept = rng.random(3) < (0.0, 0.5, 0.9)
        if step < until:
            wanted = np.where(kept, wanted, slipped)
        return np.clip(wanted, (-1, 0, 0), 1).astype(np.float32)

    return policy


class Driver:
    """A rule: towards the middle of the road `ahead` rows further on, by `gas` on the straight.

    It steers `gain` for each column that the middle is aside there, and `damping` for each that it
    has moved since the last frame.
    """

    def __init__(
        self, ahead: int = 9, gain: float = 0.05, damping: float = 0.03, gas: float = 0.15
    ):
        self._ahead, self._gain, self._damping, self._gas = ahead, gain, damping, gas
        self._aside = 0.0
        self._last: np.ndarray | None = None

    def __call__(self, step: int, frame: np.ndarray) -> np.ndarray:
        action = self._steered(frame)
        last, self._last = self._last, frame.astype(np.int16)
        if last is not None and abs(self._last - last).mean() < STILL:
            action[1:] = self._gas, 0.0
        return action

    def _steered(self, frame: np.ndarray) -> np.ndarray:
        middle = _middle(frame)
        if len(middle) < 3:  # no road: turn back to where it was last seen
            turn = 0.6 if self._aside >= 0 else -0.6
            return np.array([turn, 0.1, 0.0], np.float32)
        near, far = (middle[min(i, len(middle) - 1)] for i in (self._ahead, self._ahead + 5))
        steer = self._gain * near + self._damping * (near - self._aside)
        self._aside = near
        bend = max(abs(near), 0.7 * abs(far - near))
        gas, brake = (self._gas if bend < 4 else 0.02), (0.3 if bend > 8 else 0.0)
        return np.array([np.clip(steer, -1, 1), gas, brake], np.float32)


def _middle(frame: np.ndarray) -> np.ndarray:
    """Columns by which the road's middle is aside of the car, from the car on, row by row."""
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    grey = (abs(green - red) < 20) & (abs(green - blue) < 20) & (green > 60) & (green < 140)
    column, found = CAR, []
    for row in range(NEAREST, FARTHEST, -APART):
        road = np.flatnonzero(grey[row - 1 : row + 1].any(0))
        if not len(road):
            break
        close = road[abs(road - column) < ASIDE]
        column = close.mean() if len(close) else road[np.argmin(abs(road - column))]
        found.append(column - CAR)
    return np.array(found)
