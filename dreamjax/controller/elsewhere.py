"""Any gymnax environment as C meets it: it reads a vector, and acts by a vector.

Legend: A action numbers, F features.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.controller.model import Controller


@dataclasses.dataclass(frozen=True)
class Flat:
    """A gymnax environment whose observations are made float32 [F], and whose actions are [A]."""

    env: Any
    shape: tuple[int, ...] | None  # of its actions; None: numbers, which one-hot vectors name

    def reset(self, key: jax.Array, params: Any):
        obs, state = self.env.reset(key, params)
        return _flat(obs), state

    reset_env = reset

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any):
        obs, *rest, info = self.env.step(key, state, self._meant(action), params)
        return _flat(obs), *rest, info | {"final_observation": _flat(info["final_observation"])}

    def step_env(self, key: jax.Array, state: Any, action: jax.Array, params: Any):
        obs, *rest = self.env.step_env(key, state, self._meant(action), params)
        return _flat(obs), *rest

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        return self.env.is_truncated(state, params)

    @property
    def task(self) -> Any:
        return getattr(self.env, "task", None)

    def _meant(self, action: jax.Array) -> jax.Array:
        if self.shape is None:
            return jnp.argmax(action).astype(jnp.int32)
        return jnp.reshape(action, self.shape)


def suited(env: Any, params: Any, controller: Controller) -> Any:
    """`env` as `controller` meets it: itself, or `Flat` where it shows or takes no vector.

    ValueError if it is nothing that this controller can play.
    """
    seen = jax.tree.leaves(jax.eval_shape(env.reset, jax.random.key(0), params)[0])
    size, acts = math.prod(seen[0].shape), controller.distribution.size
    try:
        space = env.action_space(params)
        takes = space.n if hasattr(space, "n") else math.prod(space.shape)
    except NotImplementedError:  # it does not say, and is asked nothing else
        space, takes = None, acts
    except AttributeError:
        raise ValueError(f"{env.name} takes {space}, but C acts by one vector; wrap it") from None
    if len(seen) > 1 or size != controller.num_features or takes != acts:
        raise ValueError(
            f"{env.name} shows {[list(x.shape) for x in seen]} and takes {space}; this C reads "
            f"{controller.num_features} numbers and acts by {acts}: make one of this size, "
            "with distribution_of(Choice(n)) or distribution_of(Box(low, high))"
        )
    discrete, plain = hasattr(space, "n"), seen[0].shape == (size,) and seen[0].dtype == jnp.float32
    if plain and not discrete and (space is None or len(space.shape) == 1):
        return env
    return Flat(env, None if discrete else space.shape)


def _flat(obs: jax.Array) -> jax.Array:
    return jnp.ravel(obs).astype(jnp.float32)
