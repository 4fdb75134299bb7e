"""Evolution strategies by name: evosax's, with what large noisy problems need.

CMA-ES has two corrections: ties are ranked by position (evosax truncates average ranks, which
collapses sigma once many candidates reach the cap), and the eigendecomposition of the covariance
is lazy, as Hansen's tutorial prescribes (arXiv:1604.00772, section B.2).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from evosax.algorithms import CMA_ES, SNES, Open_ES, Sep_CMA_ES
from evosax.algorithms.distribution_based.cma_es import eigen_decomposition

from dreamjax.training.devices import theirs
from dreamjax.training.settings import SettingError


def ordinal_weights(population: jax.Array, fitness: jax.Array, state: Any, params: Any):
    """CMA-ES recombination weights [P] by rank; ties by position, NaN last."""
    del population, state
    ranks = jnp.argsort(jnp.argsort(jnp.where(jnp.isnan(fitness), jnp.inf, fitness)))
    return params.weights[ranks]


class LazyCMAES(CMA_ES):
    """evosax's CMA-ES that decomposes its covariance only every `interval` generations."""

    def __init__(self, population_size: int, solution: jax.Array):
        super().__init__(population_size, solution, fitness_shaping_fn=ordinal_weights)
        params = self.default_params
        rate = float((params.c_1 + params.c_mu) * self.num_dims * 10)
        self.interval = max(1, int(1 / rate))

    def _ask(self, key: jax.Array, state: Any, params: Any) -> tuple[jax.Array, Any]:
        C, B, D = jax.lax.cond(
            state.generation_counter % self.interval == 0,
            eigen_decomposition,
            lambda C: (C, state.B, state.D),
            state.C,
        )
        steps = jax.random.normal(key, (self.population_size, self.num_dims)) * D @ B.T
        return state.mean + state.std * steps, state.replace(C=C, B=B, D=D)


def _distribution(algorithm: type, population: int, num_params: int, sigma: float):
    """An algorithm that adapts its own standard deviation from `sigma` on."""
    shaping = {} if algorithm is LazyCMAES else {"fitness_shaping_fn": ordinal_weights}
    strategy = algorithm(population, jnp.zeros(num_params, jnp.float32), **shaping)
    return strategy, strategy.default_params.replace(std_init=jnp.float32(sigma))


def _open_es(population: int, num_params: int, sigma: float):
    """OpenAI-ES: mirrored samples at a fixed `sigma`, Adam on the estimated gradient."""
    strategy = Open_ES(
        population,
        jnp.zeros(num_params, jnp.float32),
        optimizer=optax.adam(sigma / 4),
        std_schedule=lambda step: jnp.float32(sigma),
    )
    return strategy, strategy.default_params


STRATEGIES = {
    "cma-es": partial(_distribution, LazyCMAES),
    "sep-cma-es": partial(_distribution, Sep_CMA_ES),
    "snes": partial(_distribution, SNES),
    "open-es": _open_es,
}


def check_strategy(name: str, population: int) -> None:
    """Raise SettingError unless there is such a strategy, and it can use so many members."""
    if name not in STRATEGIES:
        raise SettingError(f"unknown strategy {name!r}; choose one of {', '.join(STRATEGIES)}")
    if name == "open-es" and population % 2:
        raise SettingError(
            f"open-es mirrors its samples: population must be even, got {population}"
        )


@theirs
def make_strategy(name: str, population: int, num_params: int, sigma: float) -> tuple[Any, Any]:
    """An evosax strategy that minimises, and its parameters.

    Args:
      name: a key of `STRATEGIES`.
      population: P.
      num_params: D.
      sigma: first standard deviation of the weights.

    Raises:
      SettingError: unknown name, or a population the strategy cannot use.
    """
    check_strategy(name, population)
    return STRATEGIES[name](population, num_params, sigma)
