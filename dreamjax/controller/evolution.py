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
from dreamjax.controller.model import Controller
from dreamjax.controller.player import Player, form_of
from dreamjax.controller.population import (
    Dreamt,
    Policy,
    Watch,
    evaluated,
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
    """How C is evolved; SettingError for an invalid setting."""

    generations: int = 200  # number of generations
    population: int = 64  # controllers per generation
    rollouts: int = 16  # dreams per controller; fitness is their mean return
    sigma: float = 0.1  # initial standard deviation of the weights
    strategy: str = "cma-es"  # cma-es, sep-cma-es, snes or open-es
    # principal components of what C reads to search along; None: all weights
    components: int | None = 512
    eval_every: int = 25  # generations between evaluations of the mean
    eval_rollouts: int = 1024  # dreams per evaluation

    def __post_init__(self):
        require_positive(self, "generations", "rollouts", "sigma", "eval_every", "eval_rollouts")
        if self.components is not None:
            require_positive(self, "components")
        if self.population < 4:
            least = "evolve.population must be at least 4 (CMA-ES needs parents)"
            raise SettingError(f"{least}, got {self.population}")
        check_strategy(self.strategy, self.population)

    grows = ("generations",)  # settings that a later call may raise


class Evolution(struct.PyTreeNode):
    """Everything an evolution needs to go on, and its best result so far.

    `es` is the strategy's state, whose newest mean `es.mean` [S] moves along `directions` [S, D]
    (None: weights move one by one); `best` [D] is the mean with the highest evaluation, whose mean
    return is `best_score` [].
    """

    es: Any
    directions: jax.Array | None
    best: jax.Array
    best_score: jax.Array

    controller: Controller | Policy = struct.field(pytree_node=False)  # whose weights they are

    @property
    def player(self) -> Player:
        """The C to use: `best`."""
        return Player(self.controller, self.best, dream=float(self.best_score))

    @property
    def mean(self) -> jax.Array:
        """[D] the newest distribution mean, as weights."""
        return self.weights(self.es.mean)

    def weights(self, members: jax.Array) -> jax.Array:
        """Weights [..., D] of what the strategy asks for, [..., S]."""
        return members if self.directions is None else members @ self.directions


def evolve(
    env: Any,
    env_params: Any,
    player: Player | Controller,
    config: EvolveConfig,
    seed: int,
    *,
    directions: jax.Array | None = None,
    log: Logbook | None = None,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Evolution:
    """Evolve a C's weights in any gymnax environment.

    Args:
      env, env_params: the gymnax environment, a dream or any other.
      player: a form of C, which begins as `initial`; or a player, of whichever policy, whose
        weights [D] are the first mean: `config.sigma` should suit their scale.
      config: sizes and lengths.
      seed: of everything random.
      directions: [S, D] of weights, in which they move from zero in place of one by one, see
        `components.directions`.
      log, store, meta: see `training.fit`; the same call resumes.
      watch: called after each evaluation with the mean's weights and return; its answer is logged.

    Returns:
      The final `Evolution`, whose `player` is the C to use.

    Raises:
      ValueError: a player and directions, or an environment that this C cannot play.
    """
    generations = Generations(env, env_params, player, config, seed, directions, watch)
    return fit(
        "evolve",
        generations.initial(),
        generations,
        config.generations,
        log=log or Logbook(quiet=True),
        store=store,
        meta=meta,
        unit="generations",
        show="mean",
    )


class Generations:
    """Compiled generations of one evolution, the `advance` of `training.fit`; args as `evolve`."""

    def __init__(
        self, env, env_params, player, config: EvolveConfig, seed: int, directions=None, watch=None
    ):
        self.policy, self.start = form_of(player)
        if self.start is not None and directions is not None:
            raise ValueError("a player has weights already; along directions a form begins at 0")
        if isinstance(self.policy, Controller):
            env = suited(env, env_params, self.policy)
        self.key, self.config, self.directions = jax.random.key(seed), config, directions
        self.env_params, self.watch = env_params, watch
        num_params = self.policy.num_params if self.start is None else len(self.start)
        self.size = num_params if directions is None else len(directions)
        sizes = config.population, self.size, config.sigma
        self.strategy, self.strategy_params = make_strategy(config.strategy, *sizes)
        mesh = all_devices() if jax.device_count() > 1 else None
        at_once = lanes_that_fit(env, env_params, num_params)
        how = {"policy": self.policy, "mesh": mesh, "at_once": at_once}
        self.play: Callable[..., Dreamt] = functools.partial(rollout, env=env, **how)
        self.generations = jax.jit(self._generations, static_argnames="count", donate_argnums=0)
        self.evaluation = jax.jit(self._evaluation)

    def initial(self) -> Evolution:
        """The state before the first generation."""
        mean = self.start
        if self.directions is not None:
            mean = jnp.zeros(self.size, jnp.float32)
        elif mean is None:
            mean = self.policy.initial(self.key)
        es = theirs(self.strategy.init)(self.key, jnp.float32(mean), self.strategy_params)
        state = Evolution(es, self.directions, mean, jnp.float32(-jnp.inf), self.policy)
        return _strong(state.replace(best=state.mean))

    def __call__(self, state: Evolution, step: int):
        """One call's worth of generations."""
        config, env_params = self.config, self.env_params
        to_eval = config.eval_every - step % config.eval_every
        count = min(to_eval, config.generations - step, self.per_call)
        state, history = self.generations(state, jnp.int32(step), env_params, count=count)
        metrics = {name: float(values[-1]) for name, values in history.items()}
        metrics["valid_steps"] = float(np.sum(history["valid_steps"]))
        done, told = step + count, {}
        if done % config.eval_every == 0 or done == config.generations:
            state, told = evaluated(
                self.evaluation, state, state.mean, done, env_params, self.watch
            )
        return state, count, metrics | told

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
            dreams = {"num_rollouts": self.config.rollouts, "env_params": env_params}
            played = self.play(key_play, weights=state.weights(population), **dreams)
            fitness = jnp.mean(played.score, axis=1)
            told = key_tell, population, -fitness, es, self.strategy_params
            es, _ = theirs(self.strategy.tell)(*told)
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
        key, mean = evaluation_key(self.key, number), state.mean
        dreams = {"num_rollouts": self.config.eval_rollouts, "env_params": env_params}
        played = self.play(key, weights=mean[None], **dreams)
        return keep_best(state, mean, jnp.mean(played.score))


@jax.jit
def _strong(state: Evolution) -> Evolution:
    """A copy, free to donate, without evosax's weak types: they would compile every call twice."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype), state)
