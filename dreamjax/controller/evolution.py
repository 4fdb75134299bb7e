"""Evolving C: whole generations in one compiled call.

Paper: appendix "Evolution Strategies"; code: `doomrnn/train.py`, `es.py`.
Legend: D weights of a controller, P members, R rollouts a member, S directions.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dreamjax.controller.elsewhere import suited
from dreamjax.controller.model import Controller, checked_weights
from dreamjax.controller.population import (
    Policy,
    evaluation_key,
    keep_best,
    lanes_that_fit,
    rollout,
)
from dreamjax.controller.strategies import check_strategy, make_strategy
from dreamjax.training.checkpoint import Store
from dreamjax.training.devices import theirs
from dreamjax.training.fit import fit
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import all_devices
from dreamjax.training.settings import SettingError, require_positive


@dataclasses.dataclass(frozen=True)
class EvolveConfig:
    """How C is evolved."""

    generations: int = 200
    population: int = 64  # controllers a generation
    rollouts: int = 16  # episodes a controller; its fitness is their mean return
    sigma: float = 0.1  # first standard deviation of the weights
    strategy: str = "cma-es"  # or sep-cma-es, snes, open-es
    components: int | None = 512  # principal ones, of what a linear C reads, to move along, or None
    eval_every: int = 25  # generations between evaluations of the CMA mean
    eval_rollouts: int = 1024  # episodes of such an evaluation

    def __post_init__(self):
        require_positive(self, "generations", "rollouts", "sigma", "eval_every", "eval_rollouts")
        if self.components is not None:
            require_positive(self, "components")
        if self.population < 4:
            raise SettingError(
                "evolve.population must be at least 4 (CMA-ES needs parents), got "
                f"{self.population}"
            )
        check_strategy(self.strategy, self.population)

    grows = ("generations",)  # settings that a later call may raise


@struct.dataclass
class Evolution:
    """Everything an evolution needs to go on, and its best result so far.

    Attributes:
      es: the strategy's state; `es.mean` is the newest distribution mean, along the directions.
      directions: [S, D] of weights, in which they move; None is one by one.
      best: [D] the distribution mean with the highest evaluation.
      best_score: [] mean return of that evaluation.
    """

    es: Any
    directions: jax.Array | None
    best: jax.Array
    best_score: jax.Array

    @property
    def mean(self) -> jax.Array:
        """[D] the newest distribution mean, as weights."""
        return self.weights(self.es.mean)

    def weights(self, members: jax.Array) -> jax.Array:
        """Weights [..., D] of what the strategy asks for, [..., S]."""
        return members if self.directions is None else members @ self.directions


def evolve(
    seed: int,
    env: Any,
    env_params: Any,
    policy: Policy,
    num_params: int,
    config: EvolveConfig,
    *,
    start: jax.Array | None = None,
    directions: jax.Array | None = None,
    log: Logbook | None = None,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
    watch: Callable[[jax.Array, float], Mapping[str, float]] | None = None,
) -> Evolution:
    """Evolve a policy's weights in any gymnax environment.

    Args:
      seed: of everything random.
      env, env_params: the gymnax environment, a dream or any other.
      policy: `(weights [D], obs) -> action`, or a controller.
      num_params: D.
      config: sizes and lengths.
      start: [D] the first mean, zeros if None; `config.sigma` should suit its scale.
      directions: [S, D] of weights, in which they move from zero in place of one by one, see
        `components.directions`.
      log, store, meta: see `training.fit`; the same call resumes.
      watch: called after each evaluation with the mean's weights [D] and its return; what it
        returns is logged.

    Returns:
      The final `Evolution`; `best` is the controller to use.

    Raises:
      ValueError: a start and directions, or a start that is not D finite numbers.
    """
    if start is not None and directions is not None:
        raise ValueError("start and directions exclude each other: along directions C begins at 0")
    generations = Generations(seed, env, env_params, policy, num_params, config, directions)

    def advance(state, step):
        state, count, metrics = generations(state, step, env_params)
        if watch is not None and "eval" in metrics:
            metrics |= watch(np.asarray(state.mean), metrics["eval"])
        return state, count, metrics

    return fit(
        "evolve",
        generations.initial(start),
        advance,
        config.generations,
        log=log or Logbook(quiet=True),
        store=store,
        meta=meta,
        unit="generations",
        show="mean",
    )


class Generations:
    """Compiled generations of one evolution."""

    def __init__(
        self,
        seed: int,
        env: Any,
        env_params: Any,
        policy: Policy,
        num_params: int,
        config: EvolveConfig,
        directions: jax.Array | None = None,
    ):
        env = suited(env, env_params, policy) if isinstance(policy, Controller) else env
        self.key, self.config, self.directions = jax.random.key(seed), config, directions
        self.size = num_params if directions is None else len(directions)
        self.strategy, self.strategy_params = make_strategy(
            config.strategy, config.population, self.size, config.sigma
        )
        self.play = functools.partial(
            rollout,
            env=env,
            policy=policy,
            mesh=all_devices() if jax.device_count() > 1 else None,
            at_once=lanes_that_fit(env, env_params, num_params),
        )
        self.generations = jax.jit(self._generations, static_argnames="count", donate_argnums=0)
        self.evaluation = jax.jit(self._evaluation)

    def initial(self, start: jax.Array | None = None) -> Evolution:
        """The state before the first generation, whose mean is `start` or zero."""
        zeros = jnp.zeros(self.size, jnp.float32)
        mean = zeros if start is None else checked_weights(start, self.size)
        es = theirs(self.strategy.init)(self.key, mean, self.strategy_params)
        found = {"best": mean, "best_score": jnp.float32(-jnp.inf)}
        state = Evolution(es=es, directions=self.directions, **found)
        return _strong(state.replace(best=state.mean))

    def __call__(self, state: Evolution, step: int, env_params: Any):
        """One call's worth of generations; the `advance` of `training.fit`."""
        config = self.config
        to_eval = config.eval_every - step % config.eval_every
        count = min(to_eval, config.generations - step, self.per_call)
        state, history = self.generations(state, jnp.int32(step), env_params, count=count)
        metrics = {name: float(values[-1]) for name, values in history.items()}
        metrics["valid_steps"] = float(np.sum(history["valid_steps"]))
        done = step + count
        if done % config.eval_every == 0 or done == config.generations:
            state, score = self.evaluation(state, jnp.int32(done), env_params)
            metrics |= {"eval": float(score), "best_eval": float(state.best_score)}
        return state, count, metrics

    @property
    def per_call(self) -> int:
        """Generations a call: one where it lasts seconds, many where it lasts milliseconds."""
        return 1 if jax.default_backend() == "cpu" else 10

    def _generations(self, state: Evolution, first: jax.Array, env_params: Any, count: int):
        def generation(before, number):
            key = jax.random.fold_in(self.key, number)
            key_ask, key_play, key_tell = jax.random.split(key, 3)
            population, es = theirs(self.strategy.ask)(key_ask, before, self.strategy_params)
            population = population.astype(jnp.float32)
            played = self.play(
                key_play,
                env_params=env_params,
                weights=state.weights(population),
                num_rollouts=self.config.rollouts,
            )
            fitness = jnp.mean(played.score, axis=1)
            es, _ = theirs(self.strategy.tell)(
                key_tell, population, -fitness, es, self.strategy_params
            )
            # evosax draws in 64 bits where jax has them
            es = jax.tree.map(lambda old, new: new.astype(old.dtype), before, es)
            return es, {
                "mean": jnp.nanmean(fitness),
                "max": jnp.nanmax(fitness),
                "min": jnp.nanmin(fitness),
                "std": jnp.nanstd(fitness),
                "sigma": jnp.mean(es.std),
                "valid_steps": jnp.sum(played.steps.astype(jnp.float32)),
                "nan_members": jnp.sum(jnp.isnan(fitness)),
            }

        es, history = jax.lax.scan(generation, state.es, first + jnp.arange(count, dtype=jnp.int32))
        return state.replace(es=es), history

    def _evaluation(self, state: Evolution, number: jax.Array, env_params: Any):
        played = self.play(
            evaluation_key(self.key, number),
            env_params=env_params,
            weights=state.mean[None],
            num_rollouts=self.config.eval_rollouts,
        )
        return keep_best(state, state.mean, jnp.mean(played.score))


@jax.jit
def _strong(state: Evolution) -> Evolution:
    """A copy, free to donate, without evosax's weak types: they would compile every call twice."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype), state)
