"""From C's outputs to actions: as they are done awake, and as they are drawn while C learns.

Each form of actions has its distribution. Policy gradient knows it by the five methods here alone.
Legend: A action numbers, O outputs of C; `...` is any number of batch axes.
"""

import dataclasses
import math
import operator

import jax
import jax.numpy as jnp

from dreamjax.actions import Actions, Box, Choice, Keys
from dreamjax.memory.model import pressed

FIRST_LOG_STD = -0.7  # of a Gaussian's draws, before C's outputs are squashed


class ActionDistribution:
    """What can be done with one; `spread` is what else is learnt of its draws, None if nothing."""

    @property
    def outputs(self) -> int:
        """O."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """A; O, unless a distribution says otherwise."""
        return self.outputs

    def act(self, out: jax.Array) -> jax.Array:
        """The action [..., A] of outputs [..., O], awake and in evolution."""
        raise NotImplementedError

    def first_spread(self) -> jax.Array | None:
        """`spread` before learning."""
        return None

    def draw(self, key: jax.Array, out: jax.Array, spread: jax.Array | None) -> jax.Array:
        """A random draw [...] for outputs [..., O]."""
        raise NotImplementedError

    def action(self, out: jax.Array, drawn: jax.Array) -> jax.Array:
        """The action [..., A] of a draw."""
        raise NotImplementedError

    def log_prob(self, out: jax.Array, spread: jax.Array | None, drawn: jax.Array) -> jax.Array:
        """Log probability, or density, [...] of a draw."""
        raise NotImplementedError

    def entropy(self, out: jax.Array, spread: jax.Array | None) -> jax.Array:
        """Of the draws, in nats [...]."""
        raise NotImplementedError


class Categorical(ActionDistribution):
    """Draws one of several; a subclass tells their log probabilities."""

    def log_probs(self, out: jax.Array) -> jax.Array:
        """Log probabilities [..., C] of the choices."""
        raise NotImplementedError

    def draw(self, key, out, spread) -> jax.Array:
        return jax.random.categorical(key, self.log_probs(out))

    def log_prob(self, out, spread, drawn) -> jax.Array:
        log_probs = self.log_probs(out)
        rows = log_probs.reshape(-1, log_probs.shape[-1])
        return jax.vmap(operator.getitem)(rows, drawn.ravel()).reshape(drawn.shape)

    def entropy(self, out, spread) -> jax.Array:
        log_probs = self.log_probs(out)
        return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)


@dataclasses.dataclass(frozen=True)
class KeysDistribution(Categorical):
    """tanh of one number, the paper's; drawn, it is one of `Keys.choices`.

    Awake the game holds the key that the number presses, the likeliest of the choices.
    """

    keys: Keys = Keys()

    outputs = 1

    def act(self, out) -> jax.Array:
        return jnp.tanh(out)

    def log_probs(self, out) -> jax.Array:
        """To press none is likeliest where the number presses none."""
        side = out[..., 0]
        stay = jnp.full_like(side, math.atanh(self.keys.pressed))
        return jax.nn.log_softmax(jnp.stack((-side, stay, side), axis=-1))

    def action(self, out, drawn) -> jax.Array:
        """Where the draw is C's own choice, the number is C's own too: M then reads while C learns
        what it will read awake.
        """
        own, choice = self.act(out)[..., 0], jnp.asarray(self.keys.choices, jnp.float32)[drawn]
        return jnp.where(pressed(own, self.keys.pressed) == choice, own, choice)[..., None]


@dataclasses.dataclass(frozen=True)
class ChoiceDistribution(Categorical):
    """The one-hot vector of the largest of n numbers, which are the choices' logits."""

    choice: Choice

    @property
    def outputs(self) -> int:
        return self.choice.n

    def act(self, out) -> jax.Array:
        return self.action(out, jnp.argmax(out, axis=-1))

    def log_probs(self, out) -> jax.Array:
        return jax.nn.log_softmax(out)

    def action(self, out, drawn) -> jax.Array:
        return jax.nn.one_hot(drawn, self.choice.n, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class BoxDistribution(ActionDistribution):
    """tanh, stretched over the box; drawn, a Gaussian around the outputs is squashed so."""

    box: Box

    @property
    def outputs(self) -> int:
        return self.box.size

    def act(self, out) -> jax.Array:
        low, high = (jnp.asarray(x, jnp.float32) for x in (self.box.low, self.box.high))
        cut = jnp.asarray([place in self.box.clipped for place in range(self.box.size)])
        low, high, cut = (jnp.broadcast_to(x, out.shape) for x in (low, high, cut))
        squashed = jnp.tanh(out)
        stretched = (low + high) / 2 + (high - low) / 2 * squashed
        return jnp.clip(jnp.where(cut, squashed, stretched), low, high)  # rounding may pass them

    def first_spread(self) -> jax.Array:
        """Log standard deviations [A]."""
        return jnp.full(self.box.size, FIRST_LOG_STD, jnp.float32)

    def draw(self, key, out, spread) -> jax.Array:
        """Numbers before they are squashed, [..., A]."""
        spread = jnp.broadcast_to(spread, out.shape)
        return out + jnp.exp(spread) * jax.random.normal(key, out.shape, out.dtype)

    def action(self, out, drawn) -> jax.Array:
        return self.act(drawn)

    def log_prob(self, out, spread, drawn) -> jax.Array:
        """The density is that before the squashing."""
        spread = jnp.broadcast_to(spread, out.shape)
        deviation = (drawn - out) * jnp.exp(-spread)
        return -(0.5 * deviation**2 + spread + 0.5 * math.log(2 * math.pi)).sum(axis=-1)

    def entropy(self, out, spread) -> jax.Array:
        """Of the draws before the squashing."""
        whole = (spread + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return jnp.broadcast_to(whole, out.shape[:-1])


def distribution_of(actions: Actions) -> ActionDistribution:
    """The distribution of a form of actions."""
    if isinstance(actions, Keys):
        return KeysDistribution(actions)
    return ChoiceDistribution(actions) if isinstance(actions, Choice) else BoxDistribution(actions)
