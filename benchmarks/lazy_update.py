"""Does the lazy eigendecomposition cost CMA-ES anything? Both ways in the same dream.

python -m benchmarks.lazy_update [RUN_DIR]
"""

import sys
import time
from collections.abc import Iterator

import numpy as np

from dreamjax.controller.evolution import EvolveConfig, Generations
from dreamjax.dream.world import World

from . import timing
from .world import find_world

SEEDS = (0, 1, 2)
CONFIG = EvolveConfig(generations=20, population=32, rollouts=8, eval_every=20, eval_rollouts=256)


def measure(
    world: World, config: EvolveConfig = CONFIG, seeds: tuple[int, ...] = SEEDS
) -> Iterator[timing.Row]:
    """Rows of the evolved mean's return in the dream, with its ± over the seeds."""
    for name, interval in (("every generation", 1), ("lazy", None)):
        found = [_evolved(world, config, seed, interval) for seed in seeds]
        scores, seconds = np.array(found).T
        label = f"CMA-ES, eigendecomposition {name}"
        spread = scores.std(ddof=1) if len(seeds) > 1 else 0.0
        lanes = config.population * config.rollouts
        yield timing.row(f"{label}, return, ±{spread:.0f}", lanes, float(scores.mean()), "steps")
        yield timing.row(f"{label}, a generation", lanes, float(np.median(seconds)), "s")


def _evolved(world: World, config: EvolveConfig, seed: int, interval: int | None):
    """Return of the final mean, and seconds a generation without the compilation."""
    params, controller = world.params(), world.controller()
    run = Generations(world.env(), params, controller, config, seed)
    if interval is not None:
        run.strategy.interval = interval
    state, step, start = run.initial(), 0, None
    while step < config.generations:
        state, done, metrics = run(state, step)
        step += done
        start = start or (time.perf_counter(), step)
    taken = (time.perf_counter() - start[0]) / max(step - start[1], 1)
    return metrics["eval"], taken


if __name__ == "__main__":
    for found in measure(find_world(sys.argv[1] if len(sys.argv) > 1 else None)[0]):
        print(f"{found['name']:<60}{found['value']:>10.2f} {found['unit']}")
