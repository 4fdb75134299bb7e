"""C, the controller: linear, as the paper's, or with a hidden layer.

Paper: section "Controller (C) Model"; code: `doomrnn/model.py`, `carracing/model.py`.
Legend: A action numbers, D weights, F features, O outputs, U hidden units.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dreamjax.controller.distributions import ActionDistribution, KeysDistribution, distribution_of
from dreamjax.task import Task
from dreamjax.training.devices import plus


class Controller:
    """A form of C: weights are one flat vector; a distribution makes an action of its outputs."""

    num_features: int  # F
    distribution: ActionDistribution  # what becomes of the outputs
    hidden: int = 0  # U, units between features and outputs; 0 of a linear C

    @property
    def num_params(self) -> int:
        """Length D of the weight vector."""
        raise NotImplementedError

    def outputs(self, weights: jax.Array, obs: jax.Array) -> jax.Array:
        """[..., O], of which the distribution makes an action; arguments as of a call."""
        raise NotImplementedError

    def rescaled(self, weights: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
        """Weights [D] that do for x what `weights` do for (x - mean) / std, each [F].

        Without a bias the mean cannot be told, and x / std is meant. Linear in `weights`.
        """
        raise NotImplementedError

    def initial(self, key: jax.Array) -> jax.Array:
        """Weights [D] to begin with, such that outputs are zero; `key` is consumed."""
        raise NotImplementedError

    def __call__(self, weights: jax.Array, obs: jax.Array) -> jax.Array:
        """Actions [..., A] for observations [..., F] under one weight vector [D]."""
        return self.distribution.act(self.outputs(weights, obs))


@dataclasses.dataclass(frozen=True)
class LinearController(Controller):
    """`W x + b`, of which a distribution makes the action."""

    num_features: int
    distribution: ActionDistribution = KeysDistribution()
    bias: bool = False  # whether there is one; it comes first in the vector, then W as [F, O]

    @property
    def num_params(self) -> int:
        return (self.num_features + self.bias) * self.distribution.outputs

    def outputs(self, weights: jax.Array, obs: jax.Array) -> jax.Array:
        rows = weights.reshape(-1, self.distribution.outputs)
        if self.bias:
            return plus(jnp.dot(obs, rows[1:]), rows[0])
        return jnp.dot(obs, rows)

    def rescaled(self, weights: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
        rows = weights.reshape(-1, self.distribution.outputs)
        return rescaled_layer(rows, mean, std).ravel()

    def initial(self, key: jax.Array) -> jax.Array:
        """Zeros [D]."""
        return jnp.zeros(self.num_params, jnp.float32)


@dataclasses.dataclass(frozen=True)
class MLPController(Controller):
    """`V tanh(W x + b) + c`, of which a distribution makes the action."""

    num_features: int
    distribution: ActionDistribution
    hidden: int  # U; the vector is b [U], W [F, U], c [O], V [U, O], one after another

    @property
    def num_params(self) -> int:
        return (self.num_features + 1) * self.hidden + (self.hidden + 1) * self.distribution.outputs

    def _layers(self, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """b above W, [F + 1, U], and c above V, [U + 1, O]."""
        first = (self.num_features + 1) * self.hidden
        answer = weights[first:].reshape(-1, self.distribution.outputs)
        return weights[:first].reshape(-1, self.hidden), answer

    def outputs(self, weights: jax.Array, obs: jax.Array) -> jax.Array:
        body, answer = self._layers(weights)
        return plus(jnp.tanh(plus(jnp.dot(obs, body[1:]), body[0])) @ answer[1:], answer[0])

    def rescaled(self, weights: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
        body, answer = self._layers(weights)
        return jnp.concatenate((rescaled_layer(body, mean, std).ravel(), answer.ravel()))

    def initial(self, key: jax.Array) -> jax.Array:
        """An orthogonal W, the rest zeros: [D]."""
        shape = self.num_features, self.hidden
        body = jax.nn.initializers.orthogonal()(key, shape, jnp.float32)
        answer = jnp.zeros((self.hidden + 1) * self.distribution.outputs, jnp.float32)
        return jnp.concatenate((jnp.zeros(self.hidden, jnp.float32), body.ravel(), answer))


def rescaled_layer(rows: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """A layer's kernel [F, U], after its bias if it has one, for x in place of (x - mean) / std."""
    kernel = rows[-len(std) :] / std[:, None]
    if len(rows) == len(std):
        return kernel
    return jnp.concatenate((rows[:1] - (mean @ kernel)[None], kernel))


def controller_for(task: Task, num_features: int | None = None, hidden: int = 0) -> Controller:
    """A task's controller: 1,088 weights for the paper's first game, 867 for its second.

    `num_features` None is F of an LSTM of the task's size; `hidden` 0 is the linear controller.
    """
    if num_features is None:
        num_features = task.latent_size + len(task.controller_reads) * task.hidden_size
    distribution = distribution_of(task.actions)
    if hidden:
        return MLPController(num_features, distribution, hidden)
    return LinearController(num_features, distribution, task.controller_bias)


def controller_of_size(task: Task, num_features: int, size: int) -> Controller:
    """A task's C of D = `size` weights: linear, or with the hidden units that make it so."""
    found = controller_for(task, num_features)
    if size != found.num_params:
        outputs = found.distribution.outputs
        hidden = (size - outputs) // (num_features + 1 + outputs)
        found = controller_for(task, num_features, max(hidden, 1))
    if size != found.num_params:
        raise ValueError(
            f"no C of {task.name} that reads {num_features} numbers has {size} weights; pass the "
            "form that load_controller returns beside them"
        )
    return found
