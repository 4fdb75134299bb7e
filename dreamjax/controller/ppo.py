"""PPO's parts: what is learnt, what it learns from, and its loss.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347.
Legend: D weights of the controller, E dreams side by side, F features, N draws of a batch, R draws
and T steps between two updates, U units of the critic.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dreamjax.controller.model import Controller
from dreamjax.training.devices import plus

SMALLEST_STD = 1e-3  # of a feature that C learns to read


@struct.dataclass
class Network:
    """What is learnt: C, and a critic that nobody needs afterwards."""

    weights: jax.Array  # [D] the controller's
    body: jax.Array  # [F, U] the critic's tanh layer
    body_bias: jax.Array  # [U]
    value: jax.Array  # [U] the critic's answer
    spread: jax.Array | None = None  # what else is learnt of C's draws, see `ActionDistribution`


@struct.dataclass
class Scales:
    """How large the features are that C reads, [F] each.

    M's numbers differ a hundredfold in size. A gradient turns first to the large ones, whatever
    they tell; so C learns as if all had mean 0 and standard deviation 1.
    """

    mean: jax.Array
    std: jax.Array


@struct.dataclass
class Steps:
    """What happened, [T, E] of each but what C did, [R, E]; each draw was held for T / R steps."""

    obs: jax.Array  # what C read
    drawn: jax.Array  # what it drew
    log_prob: jax.Array  # of that
    value: jax.Array  # what the critic says of where a step begins
    reward: jax.Array  # as the critic counts it
    next_value: jax.Array  # of what follows, times its chance; even where the episode was cut short
    done: jax.Array  # whether the episode was over, 0 or 1


def ppo_loss(log_prob, entropy, value, steps: Any, advantage: jax.Array, config: Any) -> jax.Array:
    """PPO's clipped objective, the critic's squared error, and the entropy, of N steps.

    `log_prob`, `entropy` and `value` [N] are as the network has them now; those of `steps` as it
    had them when it acted. `config` has `clip_eps` and `ent_coef`.
    """
    ratio = jnp.exp(log_prob - steps.log_prob)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - config.clip_eps, 1 + config.clip_eps)
    gain = jnp.minimum(ratio * scaled, clipped * scaled).mean()
    error = ((value - (advantage + steps.value)) ** 2).mean()
    return 0.5 * error - gain - config.ent_coef * entropy.mean()


def initial_network(key, controller: Controller, weights: jax.Array, units: int) -> Network:
    """C as it is, and an untrained critic that reads the same features."""
    orthogonal = jax.nn.initializers.orthogonal()
    key_body, key_value = jax.random.split(key)
    return Network(
        weights=jnp.array(weights),
        body=orthogonal(key_body, (controller.num_features, units), jnp.float32),
        body_bias=jnp.zeros(units, jnp.float32),
        value=orthogonal(key_value, (units, 1), jnp.float32)[:, 0],
        spread=controller.distribution.first_spread(),
    )


def critic(network: Network, obs: jax.Array) -> jax.Array:
    """Discounted rewards to come, [...] of observations [..., F]."""
    return jnp.tanh(plus(obs @ network.body, network.body_bias)) @ network.value


def scales_of(steps: Steps) -> Scales:
    return Scales(steps.obs.mean((0, 1)), jnp.maximum(steps.obs.std((0, 1)), SMALLEST_STD))


def advantages(steps: Any, config: Any) -> jax.Array:
    """Generalised advantage estimates [T, E] of `Steps` (arXiv:1506.02438)."""

    def back(later, now):
        error, done = now
        advantage = error + config.gamma * config.gae_lambda * (1.0 - done) * later
        return advantage, advantage

    errors = steps.reward + config.gamma * steps.next_value - steps.value
    nothing = jnp.zeros_like(errors[0])
    return jax.lax.scan(back, nothing, (errors, steps.done), reverse=True)[1]
