"""Toy worlds whose best policy is known."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment

from dreamjax.controller.model import LinearController

CONTROLLER = LinearController(num_features=3)


@struct.dataclass
class ProbeState(environment.EnvState):
    x: jax.Array


@partial(struct.dataclass, kw_only=True)
class ProbeParams(environment.EnvParams):
    target: jax.Array
    max_steps_in_episode: int = 20


class _Probe(environment.Environment):
    def reset_env(self, key, params):
        state = ProbeState(time=jnp.int32(0), x=0.3 * jax.random.normal(key, (3,)))
        return state.x, state

    def observe(self, key, state, action, params):
        return state.x


@dataclasses.dataclass(frozen=True)
class Imitate(_Probe):
    """Reward is highest, 0, for acting as the controller with weights `target` would."""

    def step_env(self, key, state, action, params):
        reward = -((action - CONTROLLER(params.target, state.x))[0] ** 2)
        state = ProbeState(time=state.time + 1, x=jax.random.normal(key, (3,)))
        return state.x, state, reward, jnp.bool_(False), {}


@dataclasses.dataclass(frozen=True)
class Balance(_Probe):
    """x[0] runs away from 0 and ends the episode at 1; only pushing against it survives."""

    def step_env(self, key, state, action, params):
        push = jnp.array([0.25, 0.0, 0.0]) * action
        noise = 0.05 * jax.random.normal(key, (3,))
        state = ProbeState(
            time=state.time + 1, x=state.x * jnp.array([1.2, 0.5, 0.5]) + push + noise
        )
        return state.x, state, jnp.float32(1.0), jnp.abs(state.x[0]) > 1, {}
