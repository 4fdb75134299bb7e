"""The real game: collecting, blind play, and the awake agent, once its engines run.

python -m benchmarks.real_game
"""

import tempfile
import time
from pathlib import Path

import jax

from dreamjax.agent import Agent, Tape, evaluation_seeds, games_at_once, play_all
from dreamjax.dream.world import World
from dreamjax.game.collecting import collect
from dreamjax.game.jobs import play
from dreamjax.game.vector import VectorGame
from dreamjax.game.workers import default_workers
from dreamjax.training.logbook import Logbook

from . import timing
from .world import stand_in

EPISODES = 48  # a worker, of play without pictures
RECORDED = 192  # a worker: so many that starting it is no more than a few percent
AWAKE = 150  # a worker: on two, as many as a row of our tables


def rows(world: World) -> list[timing.Row]:
    """Frames/s of recording, steps/s of play without pictures and of V, M and C awake."""
    workers = default_workers()
    episodes = EPISODES * workers
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        found = collect(world.task, Path(directory), RECORDED * workers, seed=0)
        recording = found.frames / (time.perf_counter() - start)
    start = time.perf_counter()
    blind = play(world.task, "uniform", range(episodes))
    blind_rate = blind.lengths.sum() / (time.perf_counter() - start)
    awake_rate = _awake_rate(world, AWAKE * workers)
    return [
        timing.row("VizDoom, recording", workers, recording, "frames/s"),
        timing.row("VizDoom, random play without pictures", workers, blind_rate, "steps/s"),
        timing.row("VizDoom, V + M + C awake", workers, awake_rate, "steps/s"),
    ]


def _awake_rate(world: World, episodes: int) -> float:
    """Steps/s of V, M and a random C, compiled and with all engines running."""
    weights = 0.1 * jax.random.normal(jax.random.key(0), (world.controller().num_params,))
    games = games_at_once(world.task, episodes, None)
    agent = Agent(world, world.player_of(weights), games, jax.random.key(0))
    with (
        VectorGame(world.task, games) as game,
        Logbook(quiet=True).progress("awake", episodes, "episodes") as bar,
    ):
        play_all(agent, game, evaluation_seeds(1, games), bar, Tape())
        start = time.perf_counter()
        played = play_all(agent, game, evaluation_seeds(0, episodes), bar, Tape())
        return played.lengths.sum() / (time.perf_counter() - start)


if __name__ == "__main__":
    for found in rows(stand_in()):
        print(found)
