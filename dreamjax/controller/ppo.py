"""PPO's parts: what is learnt, what it learns from, and its loss.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347.
Legend: D weights of the controller, E dreams side by side, F features, N draws of a batch, R draws
and T steps between two updates, U units of the critic.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dreamjax.controller.model import Controller
from dreamjax.task import GAMMA, Task
from dreamjax.training.devices import plus
from dreamjax.training.settings import SettingError, require_positive, require_within

SMALLEST_STD = 1e-3  # of a feature that C learns to read
SHARED = "gcd(learn.num_envs, draws of a minibatch)"
_WITHIN = {"gae_lambda": "[0, 1]", "ent_coef": "[0, inf)", "averaging": "[0, 1)"}


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """How C is trained by policy gradient; SettingError for an invalid setting."""

    steps: int = 20_000_000  # dream steps in total
    num_envs: int = 256  # dreams in parallel
    num_steps: int = 128  # steps of each dream between updates
    # short dreams from states of real episodes; None: as the task says
    branched: bool | None = None
    update_epochs: int = 3  # passes over those steps
    num_minibatches: int = 8  # gradient steps per pass
    learning_rate: float = 5e-4  # Adam's initial rate; it falls to a fifth
    gamma: float | None = None  # discount; None: the task's
    action_repeat: int | None = None  # steps that a sampled action is held for; None: the task's
    gae_lambda: float = 0.95  # lambda of the advantage estimate
    clip_eps: float = 0.2  # clipping range of the probability ratio
    ent_coef: float = 0.01  # weight of the entropy bonus
    critic: int = 64  # hidden units of the critic
    averaging: float = 0.97  # decay of the weight average, which is the result
    eval_every: int = 122  # updates between evaluations
    eval_rollouts: int = 256  # dreams per evaluation
    # run or world whose C is trained further; None: start from scratch
    start_from: str | None = None
    # more worlds to train in alternately; their M must share its start
    worlds: tuple[str, ...] = ()

    def __post_init__(self):
        numbers = [f.name for f in dataclasses.fields(self) if f.type in (int, float)]
        require_positive(self, *(name for name in numbers if name not in _WITHIN))
        require_within(self, **_WITHIN)
        if self.gamma is not None:
            require_within(self, gamma="(0, 1)")
        if self.action_repeat is not None:
            require_positive(self, "action_repeat")
        if self.num_steps % self.held:
            raise SettingError(
                f"learn.action_repeat={self.held} does not divide num_steps = {self.num_steps}; "
                "choose a divisor"
            )
        if self.draws % self.num_minibatches:
            raise SettingError(
                f"learn.num_minibatches={self.num_minibatches} does not divide num_envs x "
                f"num_steps / action_repeat = {self.draws} draws; choose a divisor"
            )

    formerly = {"moments": "branched"}  # settings by the names that older checkpoints have
    grows = ()  # no later call may raise a setting: the learning rate falls over all steps

    def of(self, task: Task | None) -> "LearnConfig":
        """These settings; what is not set is as the task says, or as usual where there is none."""
        gamma, repeat = (GAMMA, 1) if task is None else (task.gamma, task.action_repeat)
        gamma = gamma if self.gamma is None else self.gamma
        return dataclasses.replace(self, gamma=gamma, action_repeat=self.action_repeat or repeat)

    @property
    def updates(self) -> int:
        """Updates in all."""
        return max(1, self.steps // (self.num_envs * self.num_steps))

    @property
    def held(self) -> int:
        """Steps for which a draw is held."""
        return self.action_repeat or 1

    @property
    def draws(self) -> int:
        """How many actions are drawn between two updates."""
        return self.num_envs * self.num_steps // self.held

    @property
    def shared(self) -> int:
        """What devices can share evenly: the dreams, and the draws of a minibatch."""
        return math.gcd(self.num_envs, self.draws // self.num_minibatches)


class Network(struct.PyTreeNode):
    """What is learnt: C, and a critic that nobody needs afterwards."""

    weights: jax.Array  # [D] the controller's
    body: jax.Array  # [F, U] the critic's tanh layer
    body_bias: jax.Array  # [U]
    value: jax.Array  # [U] the critic's answer
    spread: jax.Array | None = None  # what else is learnt of C's draws, see `ActionDistribution`


class Scales(struct.PyTreeNode):
    """How large the features are that C reads, [F] each.

    M's numbers differ a hundredfold in size. A gradient turns first to the large ones, whatever
    they tell; so C learns as if all had mean 0 and standard deviation 1.
    """

    mean: jax.Array
    std: jax.Array


class Steps(struct.PyTreeNode):
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
