"""The real game: collecting, blind play, and the awake agent.

python -m benchmarks.real_game
"""

import tempfile
import time
from pathlib import Path

import jax

from dreamjax.agent import evaluate, games_at_once
from dreamjax.dream.worlds import World
from dreamjax.game.rollouts import collect
from dreamjax.game.workers import default_workers, play

from . import timing
from .world import stand_in

EPISODES = 48  # a worker: on two, about as many as an evaluation plays


def rows(world: World) -> list[timing.Row]:
    """Frames/s of recording, steps/s of play without pictures and of V, M and C awake."""
    workers = default_workers()
    episodes = EPISODES * workers
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        found = collect(world.task, Path(directory), episodes, seed=0)
        recording = found.frames / (time.perf_counter() - start)
    start = time.perf_counter()
    blind = play(world.task, "uniform", range(episodes))
    blind_rate = blind.lengths.sum() / (time.perf_counter() - start)
    weights = 0.1 * jax.random.normal(jax.random.key(0), (world.controller().num_params,))
    evaluate(world, weights, games_at_once(episodes), seed=1)  # compiles
    start = time.perf_counter()
    awake = evaluate(world, weights, episodes, seed=0)
    awake_rate = awake.lengths.sum() / (time.perf_counter() - start)
    return [
        timing.row("VizDoom, recording", workers, recording, "frames/s"),
        timing.row("VizDoom, random play without pictures", workers, blind_rate, "steps/s"),
        timing.row("VizDoom, V + M + C awake", workers, awake_rate, "steps/s"),
    ]


if __name__ == "__main__":
    for found in rows(stand_in()):
        print(found)
