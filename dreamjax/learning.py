"""Learning C by policy gradient in the dream: proximal policy optimisation (PPO).

The paper evolves C (`dreamjax.evolution`), which learns one number from a whole generation of
dreams a member; a gradient learns from each of their steps. Not in the paper; Schulman et al.,
"Proximal Policy Optimization Algorithms", arXiv:1707.06347.
Legend: C choices, D weights of the controller, E dreams side by side, F features, N steps of a
batch, T steps between two updates.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dreamjax.checkpoint import Store
from dreamjax.controller import LinearController, start_weights
from dreamjax.logbook import Logbook
from dreamjax.memory import pressed
from dreamjax.population import evaluate, evaluation_key
from dreamjax.settings import SettingError, require_positive, require_within
from dreamjax.tasks import PRESSED
from dreamjax.training import fit

CHOICES = (-1.0, 0.0, 1.0)  # left, stay, right
_MAY_BE_ZERO = ("trace", "entropy", "averaging")


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """How C is learnt."""

    steps: int = 20_000_000  # dream steps in all
    lanes: int = 256  # dreams side by side
    length: int = 128  # steps of each between two updates
    epochs: int = 3  # passes over those steps
    batches: int = 8  # gradient steps of a pass
    learning_rate: float = 5e-4  # Adam's at first; it falls to a fifth of it
    discount: float = 0.995  # a reward this many times less a step later
    trace: float = 0.95  # lambda of the advantage estimate
    clip: float = 0.2  # how far a choice's probability may move in one update
    entropy: float = 0.01  # weight of the choices' entropy
    critic: int = 64  # units of the critic
    averaging: float = 0.97  # of the averaged weights, what an update keeps; they are the result
    eval_every: int = 122  # updates between evaluations: 4 million steps
    eval_rollouts: int = 256  # dreams of such an evaluation

    def __post_init__(self):
        require_positive(
            self,
            *(f.name for f in dataclasses.fields(self) if f.name not in _MAY_BE_ZERO),
        )
        require_within(
            self, discount="(0, 1)", trace="[0, 1]", entropy="[0, inf)", averaging="[0, 1)"
        )
        if self.lanes * self.length % self.batches:
            raise SettingError(
                f"learn.batches={self.batches} does not divide lanes x length = "
                f"{self.lanes * self.length} steps; choose a divisor"
            )

    grows = ()  # no later call may raise a setting: the learning rate falls over all steps

    @property
    def updates(self) -> int:
        """How many updates `steps` are."""
        return max(1, self.steps // (self.lanes * self.length))


@struct.dataclass
class Network:
    """What is learnt: C, and a critic that nobody needs afterwards.

    Attributes:
      weights: [D] the controller's.
      body, body_bias: [F, U] and [U], the critic's tanh layer.
      value: [U] the critic's answer.
    """

    weights: jax.Array
    body: jax.Array
    body_bias: jax.Array
    value: jax.Array


@struct.dataclass
class Learning:
    """Everything learning needs to go on, and its best result so far.

    Attributes:
      network: C and the critic.
      average: [D] running mean of C's weights over updates, which plays better than the newest.
      optimiser: Adam's state.
      obs, env_state: the dreams in flight, [E] of each.
      best: [D] the averaged weights with the highest evaluation.
      best_score: [] mean return of that evaluation.
    """

    network: Network
    average: jax.Array
    optimiser: optax.OptState
    obs: jax.Array
    env_state: Any
    best: jax.Array
    best_score: jax.Array


@struct.dataclass
class Steps:
    """What happened, [T, E] of each; flattened, [N]."""

    obs: jax.Array
    choice: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


def learn(
    seed: int,
    env: Any,
    env_params: Any,
    controller: LinearController,
    config: LearnConfig,
    *,
    start: jax.Array | None = None,
    log: Logbook | None = None,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
    watch: Callable[[jax.Array, float], Mapping[str, float]] | None = None,
) -> Learning:
    """Learn a linear controller's weights in a gymnax environment whose action is one number.

    While it learns, C draws one of `CHOICES`; awake it acts as its squashed output says, which
    the game takes for the likeliest of them. A draw that agrees with that output acts as it does.

    Args:
      seed: of everything random.
      env, env_params: the gymnax environment, a dream or any other.
      controller: C, without a bias.
      config: sizes and rates.
      start: [D] weights to go on from; zeros, which play at random, if None.
      log, store, meta: see `training.fit`; the same call resumes.
      watch: called after each evaluation with the averaged weights [D] and their return; what it
        returns is logged.

    Returns:
      The final `Learning`; `best` is the controller to use.

    Raises:
      ValueError: the controller's action is not one number, or it has a bias.
    """
    updates = Updates(seed, env, controller, config)

    def advance(state, step):
        state, count, metrics = updates(state, step, env_params)
        if watch is not None and "eval" in metrics:
            metrics |= watch(state.average, metrics["eval"])
        return state, count, metrics

    return fit(
        "learn",
        updates.initial(env_params, start),
        advance,
        config.updates,
        log=log or Logbook(quiet=True),
        store=store,
        meta=meta,
        unit="steps",
        units_per_step=config.lanes * config.length,
        show="life",
    )


class Updates:
    """Compiled updates of one learning."""

    def __init__(self, seed: int, env: Any, controller: LinearController, config: LearnConfig):
        if controller.num_actions != 1 or controller.bias:
            raise ValueError(
                f"learning needs a controller of one action number without a bias, got "
                f"{controller.num_actions} numbers and bias={controller.bias}; evolve it instead"
            )
        self.key, self.config = jax.random.key(seed), config
        self.env, self.controller = env, controller
        falls = optax.linear_schedule(
            config.learning_rate,
            config.learning_rate / 5,
            config.updates * config.epochs * config.batches,
        )
        self.optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(falls))
        self.update = jax.jit(self._update, donate_argnums=0)
        self.evaluation = jax.jit(self._evaluation)

    def initial(self, env_params: Any, start: jax.Array | None = None) -> Learning:
        """The state before the first update: `start` or a C of zeros, in dreams that begin."""
        key_network, key_reset = jax.random.split(self.key)
        weights = start_weights(start, self.controller.num_params)
        network = initial_network(key_network, weights, self.config.critic)
        keys = jax.random.split(key_reset, self.config.lanes)
        obs, env_state = jax.jit(jax.vmap(self.env.reset, (0, None)))(keys, env_params)
        return Learning(
            network=network,
            average=jnp.array(weights),
            optimiser=self.optimiser.init(network),
            obs=obs,
            env_state=env_state,
            best=jnp.array(weights),
            best_score=jnp.float32(-jnp.inf),
        )

    def __call__(self, state: Learning, step: int, env_params: Any):
        """One update, and an evaluation where one is due; the `advance` of `training.fit`."""
        state, metrics = self.update(state, jnp.int32(step), env_params)
        metrics = {name: float(value) for name, value in metrics.items()}
        done = step + 1
        if done % self.config.eval_every == 0 or done == self.config.updates:
            state, score = self.evaluation(state, jnp.int32(done), env_params)
            metrics |= {"eval": float(score), "best_eval": float(state.best_score)}
        return state, 1, metrics

    def _update(self, state: Learning, number: jax.Array, env_params: Any):
        key_play, key_learn = jax.random.split(jax.random.fold_in(self.key, number))
        keys = jax.random.split(key_play, self.config.length)
        play = functools.partial(self._play, state.network, env_params)
        (obs, env_state), steps = jax.lax.scan(play, (state.obs, state.env_state), keys)
        last_value = critic(state.network, obs)
        learnt = state.network, state.optimiser
        (network, optimiser), loss = self.improve(*learnt, key_learn, steps, last_value)
        metrics = {
            "life": steps.done.size / jnp.maximum(steps.done.sum(), 1.0),  # steps to a death
            "loss": loss,
        }
        average = optax.incremental_update(
            network.weights, state.average, 1 - self.config.averaging
        )
        loop = {"obs": obs, "env_state": env_state}
        return state.replace(network=network, average=average, optimiser=optimiser, **loop), metrics

    def improve(
        self,
        network: Network,
        optimiser: optax.OptState,
        key: jax.Array,
        steps: Steps,
        last_value: jax.Array,
    ) -> tuple[tuple[Network, optax.OptState], jax.Array]:
        """Learn from what happened, in a dream or awake.

        Args:
          network, optimiser: before.
          key: PRNG key of the order; consumed.
          steps: [T, E] of each, chosen by `network`.
          last_value: [E] the critic's answer to what follows them.

        Returns:
          the network and the optimiser's state after, and the mean loss.
        """
        advantage = advantages(steps, last_value, self.config)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (steps, advantage))
        keys = jax.random.split(key, self.config.epochs)
        learnt = network, optimiser
        learnt, losses = jax.lax.scan(lambda x, key: self._epoch(x, key, rows), learnt, keys)
        return learnt, losses.mean()

    def _play(self, network: Network, env_params: Any, loop, key):
        """One step of all dreams."""
        obs, env_state = loop
        key_choice, key_step = jax.random.split(key)
        choice = self.choose(key_choice, network.weights, obs)
        action = self.action(network.weights, obs, choice)
        keys = jax.random.split(key_step, len(obs))
        step = jax.vmap(self.env.step, (0, 0, 0, None))
        next_obs, env_state, reward, ended, cut, _ = step(keys, env_state, action, env_params)
        return (next_obs, env_state), self.judged(network, obs, choice, reward, ended | cut)

    def choose(self, key: jax.Array, weights: jax.Array, obs: jax.Array) -> jax.Array:
        """Draw one of `CHOICES` for features [..., F]: its number, int32 [...]."""
        return jax.random.categorical(key, self.log_probs(weights, obs))

    def action(self, weights: jax.Array, obs: jax.Array, choice: jax.Array) -> jax.Array:
        """What is done, [..., 1], of a choice [...] for features [..., F].

        Where the draw is C's own choice, the number is C's own too: M then reads while C learns
        what it will read awake.
        """
        own, drawn = self.controller(weights, obs)[..., 0], jnp.asarray(CHOICES)[choice]
        return jnp.where(pressed(own) == drawn, own, drawn)[..., None]

    def judged(self, network: Network, obs, choice, reward, done) -> Steps:
        """`Steps` of what was chosen and what came of it, [...] of each."""
        return Steps(
            obs=obs,
            choice=choice,
            log_prob=_chosen(self.log_probs(network.weights, obs), choice),
            value=critic(network, obs),
            reward=reward * (1 - self.config.discount),  # so that values stay near 1
            done=done.astype(jnp.float32),
        )

    def _epoch(self, learnt, key: jax.Array, rows: tuple[Steps, jax.Array]):
        """One pass over the steps in a random order; the losses [batches]."""

        def descend(learnt, order):
            network, optimiser = learnt
            steps, advantage = jax.tree.map(lambda x: x[order], rows)
            loss, gradient = jax.value_and_grad(self.loss)(network, steps, advantage)
            changes, optimiser = self.optimiser.update(gradient, optimiser)
            return (optax.apply_updates(network, changes), optimiser), loss

        order = jax.random.permutation(key, len(rows[1])).reshape(self.config.batches, -1)
        return jax.lax.scan(descend, learnt, order)

    def log_probs(self, weights: jax.Array, obs: jax.Array) -> jax.Array:
        """Log probabilities [..., C] of `CHOICES`: stay is likeliest where no key is pressed."""
        side = self.controller.linear(weights, obs)[..., 0]
        stay = jnp.full_like(side, math.atanh(PRESSED))
        return jax.nn.log_softmax(jnp.stack((-side, stay, side), axis=-1))

    def loss(self, network: Network, steps: Steps, advantage: jax.Array) -> jax.Array:
        """PPO's clipped objective, the critic's squared error, and the entropy, of N steps."""
        config, log_probs = self.config, self.log_probs(network.weights, steps.obs)
        ratio = jnp.exp(_chosen(log_probs, steps.choice) - steps.log_prob)
        scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        gain = jnp.minimum(ratio * scaled, clipped * scaled).mean()
        error = ((critic(network, steps.obs) - (advantage + steps.value)) ** 2).mean()
        entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=-1).mean()
        return 0.5 * error - gain - config.entropy * entropy

    def _evaluation(self, state: Learning, number: jax.Array, env_params: Any):
        key, weights = evaluation_key(self.key, number), state.average
        played = evaluate(
            key, self.env, env_params, self.controller, weights[None], self.config.eval_rollouts
        )
        score = played.score.mean()
        best = jnp.where(score > state.best_score, weights, state.best)
        best_score = jnp.maximum(score, state.best_score)
        return state.replace(best=best, best_score=best_score), score


def initial_network(key: jax.Array, weights: jax.Array, units: int) -> Network:
    """C as it is, and an untrained critic that reads the same features."""
    orthogonal = jax.nn.initializers.orthogonal()
    key_body, key_value = jax.random.split(key)
    return Network(
        weights=jnp.array(weights),
        body=orthogonal(key_body, (len(weights), units)),
        body_bias=jnp.zeros(units),
        value=orthogonal(key_value, (units, 1))[:, 0],
    )


def critic(network: Network, obs: jax.Array) -> jax.Array:
    """Discounted rewards to come, [...] of observations [..., F]."""
    return jnp.tanh(obs @ network.body + network.body_bias) @ network.value


def advantages(steps: Steps, last_value: jax.Array, config: LearnConfig) -> jax.Array:
    """Generalised advantage estimates [T, E] (arXiv:1506.02438); 0 after an end."""

    def back(loop, now):
        advantage, next_value = loop
        going = 1.0 - now.done
        error = now.reward + config.discount * next_value * going - now.value
        advantage = error + config.discount * config.trace * going * advantage
        return (advantage, now.value), advantage

    start = jnp.zeros_like(last_value), last_value
    return jax.lax.scan(back, start, steps, reverse=True)[1]


def _chosen(log_probs: jax.Array, choice: jax.Array) -> jax.Array:
    return jnp.take_along_axis(log_probs, choice[..., None], axis=-1)[..., 0]
