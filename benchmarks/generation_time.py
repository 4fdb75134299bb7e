"""One paper generation: 64 controllers x 16 dreams, capped at 2,100 steps, CMA-ES included.

python -m benchmarks.generation_time
"""

import time

import jax
import jax.numpy as jnp

from dreamjax.controller.evolution import EvolveConfig, Generations
from dreamjax.dream.world import World
from dreamjax.training.devices import product_dtype

from . import timing
from .world import find_world, step_flops

WARM_UP = 1


def measure(world: World, kind: str, generations: int = 3) -> list[timing.Row]:
    """Rows of seconds a generation and valid steps/s with deaths as they come."""
    controller, dtype = world.controller(), product_dtype()
    params = world.params(dtype=dtype)
    config = EvolveConfig(generations=10_000, eval_every=10_000)
    runner = Generations(world.env(), params, controller, config, 0)
    start = time.perf_counter()
    state, count, _ = runner(runner.initial(), 0)
    compile_and_first = time.perf_counter() - start
    done, valid, start = 0, 0.0, time.perf_counter()
    while done < generations:
        state, count, metrics = runner(state, WARM_UP + done)
        done += count
        valid += metrics["valid_steps"]
    taken = time.perf_counter() - start
    ceiling = timing.matrix_rate(dtype) / step_flops(world.memory)
    rate, lanes = valid / taken, config.population * config.rollouts
    return [
        timing.row(f"generation, {kind}", lanes, taken / done, "s"),
        timing.row(f"generation, {kind}, compile and first", lanes, compile_and_first, "s"),
        timing.row(f"generation, {kind}, steps an episode", lanes, valid / done / lanes, "steps"),
        timing.row(f"generation, {kind}, valid steps", lanes, rate, "steps/s", rate / ceiling),
        timing.row(
            f"generation, {kind}, nominal steps",
            lanes,
            lanes * world.task.max_steps * done / taken,
            "steps/s",
        ),
        timing.row(f"200 generations at this rate, {kind}", lanes, 200 * taken / done, "s"),
        _strategy_row(runner, state, lanes),
    ]


def _strategy_row(runner: Generations, state, lanes: int) -> timing.Row:
    """Seconds of CMA-ES alone: ask and tell, averaged over its lazy cycle."""
    strategy, settings = runner.strategy, runner.strategy_params
    cycle = getattr(strategy, "interval", 1)

    def ask_and_tell(es):
        def generation(es, key):
            population, es = strategy.ask(key, es, settings)
            fitness = jnp.sum(population, axis=1)
            return strategy.tell(key, population, fitness, es, settings)[0], None

        return jax.lax.scan(generation, es, jax.random.split(jax.random.key(0), cycle))[0]

    taken = timing.timed(ask_and_tell, state.es).run / cycle
    return timing.row("CMA-ES a generation", lanes, taken, "s")


if __name__ == "__main__":
    for found in measure(*find_world(None)):
        print(found)
