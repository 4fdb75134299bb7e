"""Evolution strategies by name: evosax's, with what large noisy problems need.

CMA-ES has two corrections: ties are ranked by position (evosax truncates average ranks, which
collapses sigma once many candidates reach the cap), and the eigendecomposition of the covariance
is lazy, as Hansen's tutorial prescribes (arXiv:1604.00772, section B.2).
"""

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
    ranks = jnp.argsort(jnp.argsort(jnp.where(jnp.isnan(fitness), jnp.inf, fitness)))
    return params.weights[ranks]


class LazyCMAES(CMA_ES):
    """evosax's CMA-ES that decomposes its covariance only every `interval` generations."""

    def __init__(self, population_size, solution, fitness_shaping_fn=ordinal_weights):
        super().__init__(population_size, solution, fitness_shaping_fn=fitness_shaping_fn)
        params = self.default_params
        self.interval = max(1, int(1 / float((params.c_1 + params.c_mu) * self.num_dims * 10)))

    def _ask(self, key: jax.Array, state: Any, params: Any) -> tuple[jax.Array, Any]:
        C, B, D = jax.lax.cond(
            state.generation_counter % self.interval == 0,
            eigen_decomposition,
            lambda C: (C, state.B, state.D),
            state.C,
        )
        steps = jax.random.normal(key, (self.population_size, self.num_dims)) * D @ B.T
        return state.mean + state.std * steps, state.replace(C=C, B=B, D=D)


STRATEGIES = {"cma-es": LazyCMAES, "sep-cma-es": Sep_CMA_ES, "snes": SNES, "open-es": Open_ES}


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
    """The evosax strategy that has this `name` in `STRATEGIES` and minimises, and its parameters.

    It asks for `population` members of `num_params` weights; `sigma` is their first standard
    deviation. Errors as of `check_strategy`.
    """
    check_strategy(name, population)
    zeros, std = jnp.zeros(num_params, jnp.float32), jnp.float32(sigma)
    if name == "open-es":  # mirrored samples at a fixed sigma, Adam on the estimated gradient
        adam = optax.adam(sigma / 4)
        strategy = Open_ES(population, zeros, optimizer=adam, std_schedule=lambda step: std)
        return strategy, strategy.default_params
    strategy = STRATEGIES[name](population, zeros, fitness_shaping_fn=ordinal_weights)
    return strategy, strategy.default_params.replace(std_init=std)
