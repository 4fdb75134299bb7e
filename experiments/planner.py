"""What Take Cover permits: a planner that is told where all fireballs are, or only the near ones.

    python experiments/planner.py
    python experiments/planner.py --sight 480 240 180 120 70 45

A diagnosis: it reads the engine, so nothing that it does or knows trains V, M or C.
Legend: K fireballs, P plans, T tics.
"""

import dataclasses
import functools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import gymnasium
import numpy as np
import tyro

from dreamjax.agent import evaluation_seeds
from dreamjax.game.env import make_env
from dreamjax.game.workers import default_workers
from dreamjax.run.scores import score
from dreamjax.tasks import TAKE_COVER
from dreamjax.training.settings import SettingError, require_positive

PUSH, FRICTION = 0.75, 0.90625  # what a key adds to the speed, and what a tic leaves of it
WALLS = 16.0, 752.0  # between which the player moves, along y
REACH = 22.0  # half the side of the square in which a fireball hits
BERTH = 60.0  # a miss by more is no better
STEP = 10.0  # by less it is as good
TURN = 40.0  # how near to a wall a player turns round
LOOK_AHEAD = 72  # tics
WHOLE_ROOM = 1000.0  # no fireball is so far away
LEFT, STAY, RIGHT = 1, 0, -1  # along y


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    sight: tuple[float, ...] = (WHOLE_ROOM,)  # how far fireballs are seen, in the map's units
    episodes: int = 16  # games of each
    seed: int = 0
    workers: int | None = None  # processes that play; None is one a core

    def __post_init__(self):
        require_positive(self, "episodes")
        if self.workers is not None:
            require_positive(self, "workers")
        if not self.sight or min(self.sight) <= 0:
            raise SettingError(f"sight must be distances above 0, got {self.sight}; try 240 120")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the planner knows of a tic.

    Attributes:
      y, speed: of the player, along the wall.
      places: [K, 2] of fireballs, from the player: away from his wall, and along it.
      speeds: [K, 2] of them, a tic.
    """

    y: float
    speed: float
    places: np.ndarray
    speeds: np.ndarray


def main(config: Config) -> dict[float, np.ndarray]:
    """Steps survived at each sight, [episodes]; prints a row for each."""
    seeds = evaluation_seeds(config.seed, config.episodes)
    found = {}
    with ProcessPoolExecutor(config.workers or default_workers(), get_context("spawn")) as pool:
        for sight in config.sight:
            lived = pool.map(functools.partial(steps_survived, sight=sight), seeds)
            found[sight] = np.array(list(lived))
            row = "sees up to {:>5.0f}: {mean:.0f} ± {std:.0f}, n {n}"
            print(row.format(sight, **score(found[sight])), flush=True)
    return found


def steps_survived(seed: int, sight: float) -> int:
    """Plan through the game of a seed, seeing fireballs nearer than `sight`."""
    env = told_env()
    try:
        env.reset(seed=seed)
        over, steps = False, 0
        while not over:
            side = best_side(near(looked(env), sight))
            *_, terminated, truncated, _ = env.step(np.float32([-side]))
            over, steps = terminated or truncated, steps + 1
        return steps
    finally:
        env.close()


def told_env() -> gymnasium.Env:
    """The real game, whose engine tells where things are."""
    env = make_env(TAKE_COVER)
    game = env.unwrapped.game
    game.close()  # it begins anew with the next episode
    game.set_objects_info_enabled(True)
    return env


def looked(env: gymnasium.Env) -> Seen:
    """All that there is to know of a game's tic."""
    import vizdoom

    game, told = env.unwrapped.game, vizdoom.GameVariable
    x, y, speed = map(game.get_game_variable, (told.POSITION_X, told.POSITION_Y, told.VELOCITY_Y))
    balls = [o for o in game.get_state().objects if o.name == "DoomImpBall"]
    places = [(o.position_x - x, o.position_y - y) for o in balls]
    speeds = [(o.velocity_x, o.velocity_y) for o in balls]
    return Seen(y, speed, *(np.reshape(part, (-1, 2)) for part in (places, speeds)))


def near(seen: Seen, sight: float) -> Seen:
    """What is seen of it by one who sees up to `sight`."""
    those = np.linalg.norm(seen.places, axis=1) < sight
    return dataclasses.replace(seen, places=seen.places[those], speeds=seen.speeds[those])


def best_side(seen: Seen) -> int:
    """The side to move to now: that of the plan with the fewest and latest hits, and wide berths.

    All fireballs are taken to fly straight on. They were aimed at where the player was, so of
    plans that are as good, one that moves on is the best.
    """
    sides, hits, first, berth = foreseen(seen)
    best = np.lexsort((-(berth // STEP), -first, hits))[0]
    return int(sides[best, 0])


def foreseen(seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What plans lead to.

    Returns:
      the plans [P, T]; of each [P] the tics in which it is hit, how many it lasts until then, and
      by how much, up to `BERTH`, fireballs miss.
    """
    sides = plans(heading(seen.y, seen.speed))
    if not len(seen.places):
        none = np.zeros(len(sides))
        return sides, none, none + LOOK_AHEAD, none + BERTH
    path = paths(seen.y, seen.speed, sides) - seen.y
    away, along = flights(seen)
    there = np.abs(away) < REACH
    miss = np.where(there, np.abs(along - path[..., None]), np.inf).min(axis=2)  # [P, T]
    hit = miss < REACH
    first = np.where(hit.any(axis=1), hit.argmax(axis=1), LOOK_AHEAD)
    return sides, hit.sum(axis=1), first, np.minimum(miss, BERTH).min(axis=1)


def flights(seen: Seen) -> np.ndarray:
    """Where fireballs that fly straight on are after each tic, [2, T, K]: away and along."""
    tics = np.arange(1, LOOK_AHEAD + 1)[:, None, None]
    return np.moveaxis(seen.places + tics * seen.speeds, -1, 0)


def heading(y: float, speed: float) -> int:
    """The side to which a player moves on: who comes to a wall turns round."""
    if y > WALLS[1] - TURN:
        return RIGHT
    return LEFT if speed > 0 or y < WALLS[0] + TURN else RIGHT


@functools.cache
def plans(ahead: int) -> np.ndarray:
    """Sides [P, T]: one of three held for 1 to 52 tics, then another; `ahead` for good is first."""
    tics, found = np.arange(LOOK_AHEAD), []
    for first in (ahead, -ahead, STAY):
        found.append(np.full(LOOK_AHEAD, first))
        for then in (ahead, -ahead, STAY):
            if then != first:
                found += [np.where(tics < held, first, then) for held in range(1, 53, 3)]
    return np.stack(found)


def paths(y: float, speed: float, sides: np.ndarray) -> np.ndarray:
    """Where along the wall a player is after each tic of plans [P, T], [P, T]."""
    places = np.empty(sides.shape)
    place, speed = np.full(len(sides), y), np.full(len(sides), speed)
    for tic, side in enumerate(sides.T):
        pushed = speed + PUSH * side
        place, speed = np.clip(place + pushed, *WALLS), pushed * FRICTION
        places[:, tic] = place
    return places


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
