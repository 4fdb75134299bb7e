"""Dreaming on from a state, for as long as one likes: what watches dreams step by step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.dream.env import DreamEnv, EnvParams, EnvState


def unroll(
    env: DreamEnv,
    params: EnvParams,
    state: EnvState,
    keys: jax.Array,
    choose: Callable[[jax.Array, Any], jax.Array],
    inputs: Any = None,
    tell: Callable[[EnvState, jax.Array], Any] = lambda state, action: state.z,
) -> tuple[Any, jax.Array]:
    """Dream T steps of one dream; it goes on after its end, but is not alive then.

    Args:
      env, params, state: the dream, and where it begins.
      keys: [T] PRNG keys of the steps.
      choose, inputs: `(observation, input) -> action [A]`, and what it is given, [T, ...] of each.
      tell: `(state before a step, action) -> ` what is returned of the step.

    Returns:
      what was told, [T, ...] of each; and bool [T], whether the dream was alive before each step.
    """

    def step(loop, now):
        state, alive = loop
        key, given = now
        action = choose(env.observe(key, state, None, params), given)
        _, after, _, ended, _ = env.step_env(key, state, action, params)
        going = ~ended & (after.time < params.max_steps_in_episode)
        return (after, alive & going), (tell(state, action), alive)

    return jax.lax.scan(step, (state, jnp.bool_(True)), (keys, inputs))[1]


def follow(obs: jax.Array, action: jax.Array) -> jax.Array:
    """A `choose` that does as it is given."""
    return action
