"""C, the linear controller, and the one definition of what it reads.

Paper: section "Controller (C) Model"; code: `doomrnn/model.py`, `carracing/model.py`.
Legend: A action numbers, F features, H units of M's LSTM, Z latent numbers.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dreamjax.tasks import Task


def features(task: Task, z: jax.Array, carry: tuple[jax.Array, jax.Array]) -> jax.Array:
    """What C reads, in the dream and in the real game alike.

    Args:
      task: says which parts of M's state C reads.
      z: [..., Z] current latent.
      carry: M's (c, h), each [..., H], before it has consumed `z`.

    Returns:
      [..., F]: (z, c, h) for Take Cover, (z, h) for CarRacing.
    """
    parts = dict(zip(("c", "h"), carry, strict=True))
    return jnp.concatenate([z, *(parts[name] for name in task.controller_reads)], axis=-1)


def pedals(x: jax.Array) -> jax.Array:
    """CarRacing's action [..., 3]: steer in [-1, 1], gas and brake in [0, 1]."""
    steer, gas, brake = jnp.moveaxis(jnp.tanh(x), -1, 0)
    return jnp.stack([steer, (gas + 1) / 2, jnp.clip(brake, 0, 1)], axis=-1)


@dataclasses.dataclass(frozen=True)
class LinearController:
    """`squash(W x + b)`; its weights are one flat vector, a point for evolution to move.

    Attributes:
      num_features: F.
      num_actions: A.
      bias: whether there is a bias; it comes first in the vector, then W as [F, A].
      squash: maps R^A to the game's actions.
    """

    num_features: int
    num_actions: int
    bias: bool = False
    squash: Callable[[jax.Array], jax.Array] = jnp.tanh

    @property
    def num_params(self) -> int:
        """Length D of the weight vector."""
        return (self.num_features + self.bias) * self.num_actions

    def __call__(self, weights: jax.Array, obs: jax.Array) -> jax.Array:
        """Actions [..., A] for observations [..., F] under one weight vector [D]."""
        return self.squash(self.linear(weights, obs))

    def linear(self, weights: jax.Array, obs: jax.Array) -> jax.Array:
        """W x + b, [..., A]: the actions before they are squashed."""
        rows = weights.reshape(-1, self.num_actions)
        offset, kernel = (rows[0], rows[1:]) if self.bias else (0.0, rows)
        return jnp.dot(obs, kernel) + offset


def controller_for(task: Task) -> LinearController:
    """The paper's controller: 1,088 weights for Take Cover, 867 for CarRacing."""
    squash = pedals if task.action_size == 3 else jnp.tanh
    return LinearController(task.feature_size, task.action_size, task.controller_bias, squash)


def start_weights(start: jax.Array | None, num_params: int) -> jax.Array:
    """Weights [D] that learning or evolution begins from: `start`, or zeros.

    Raises:
      ValueError: `start` is not `num_params` finite numbers.
    """
    if start is None:
        return jnp.zeros(num_params, jnp.float32)
    start = jnp.asarray(start, jnp.float32)
    if start.shape != (num_params,) or not jnp.isfinite(start).all():
        raise ValueError(
            f"start must be {num_params} finite weights, got shape {list(start.shape)} with "
            f"{int((~jnp.isfinite(start)).sum())} not finite; pass a controller of this task"
        )
    return start
