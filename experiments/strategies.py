"""Evolution strategies compared in the same dream at equal dream steps.

    python experiments/strategies.py --steps 1000000

Each strategy evolves until it has spent the same number of valid dream steps; its distribution
mean is then scored on dreams that no strategy trained on.
"""

import dataclasses

import jax
import numpy as np
import tyro

from dreamjax.controller.evolution import EvolveConfig, Generations
from dreamjax.controller.strategies import STRATEGIES
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.fidelity.compare import dreamt_scores


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    world: str = "take-cover"
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    steps: int = 1_000_000  # valid dream steps of each strategy and seed
    seeds: tuple[int, ...] = (0, 1, 2)
    population: int = 32
    rollouts: int = 8
    dreams: int = 256  # of a score


def main(config: Config) -> dict[str, list[float]]:
    """Evolve, score and print."""
    world, found = load_world(config.world), {}
    print(f"{'strategy':<12}{'generations':>12}  return in the dream, mean ± std over seeds")
    for name in config.strategies:
        runs = [evolved(world, name, seed, config) for seed in config.seeds]
        generations, scores = zip(*runs, strict=True)
        found[name] = list(scores)
        spread = np.std(scores, ddof=1) if len(scores) > 1 else 0.0
        print(f"{name:<12}{np.mean(generations):>12.0f}  {np.mean(scores):.0f} ± {spread:.0f}")
    return found


def evolved(world: World, name: str, seed: int, config: Config) -> tuple[int, float]:
    """Generations that the steps paid for, and the final mean's return."""
    endless = 10**9
    settings = EvolveConfig(
        generations=endless,
        population=config.population,
        rollouts=config.rollouts,
        strategy=name,
        eval_every=endless,
    )
    params, controller = world.params(), world.controller()
    run = Generations(world.env(), params, controller, settings, seed)
    state, generation, spent = run.initial(), 0, 0.0
    while spent < config.steps:
        state, done, metrics = run(state, generation)
        generation, spent = generation + done, spent + metrics["valid_steps"]
    mean = jax.device_get(state.es.mean)[None]
    return generation, float(
        dreamt_scores(world, controller, mean, config.dreams, 10_000 + seed)[0]
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
