"""Learning C by policy gradient in the dream: proximal policy optimisation (PPO).

The paper evolves C (`evolution`), which learns one number from a whole generation of dreams a
member; a gradient learns from each of their steps. Not in the paper; Schulman et al., "Proximal
Policy Optimization Algorithms", arXiv:1707.06347. Several devices share the dreams, and then the
steps of each minibatch.
Legend: D weights of the controller, E dreams side by side, F features, N steps of a batch, O
outputs of the controller, T steps between two updates.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamjax.controller.model import Controller, start_weights
from dreamjax.controller.population import evaluation_key, keep_best, rollout
from dreamjax.tasks import GAMMA, Task
from dreamjax.training.checkpoint import Store
from dreamjax.training.fit import fit
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import AXIS, SPLIT, WHOLE, devices_for, on_all, split
from dreamjax.training.settings import SettingError, require_positive, require_within

SHARED = "gcd(learn.num_envs, steps of a minibatch)"
_ANY = ("moments", "gamma", "gae_lambda", "ent_coef", "averaging")


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """How C is learnt."""

    steps: int = 20_000_000  # dream steps in all
    num_envs: int = 256  # dreams side by side
    num_steps: int = 128  # steps of each between two updates
    moments: bool | None = None  # dream anew for every update, from moments; None: as the task says
    update_epochs: int = 3  # passes over those steps
    num_minibatches: int = 8  # gradient steps of a pass
    learning_rate: float = 5e-4  # Adam's at first; it falls to a fifth of it
    gamma: float | None = None  # a reward counts so much a step later; None: as the task says
    gae_lambda: float = 0.95  # of the advantage estimate
    clip_eps: float = 0.2  # how far an action's probability may move in one update
    ent_coef: float = 0.01  # weight of the actions' entropy
    critic: int = 64  # units of the critic
    averaging: float = 0.97  # of the averaged weights, what an update keeps; they are the result
    eval_every: int = 122  # updates between evaluations: 4 million steps
    eval_rollouts: int = 256  # dreams of such an evaluation

    def __post_init__(self):
        require_positive(
            self,
            *(f.name for f in dataclasses.fields(self) if f.name not in _ANY),
        )
        require_within(self, gae_lambda="[0, 1]", ent_coef="[0, inf)", averaging="[0, 1)")
        if self.gamma is not None:
            require_within(self, gamma="(0, 1)")
        if self.num_envs * self.num_steps % self.num_minibatches:
            raise SettingError(
                f"learn.num_minibatches={self.num_minibatches} does not divide num_envs x "
                f"num_steps = {self.num_envs * self.num_steps} steps; choose a divisor"
            )

    grows = ()  # no later call may raise a setting: the learning rate falls over all steps

    def of(self, task: Task | None) -> "LearnConfig":
        """These settings, with the task's discount (or the usual one) where none is set."""
        usual = GAMMA if task is None else task.gamma
        return self if self.gamma is not None else dataclasses.replace(self, gamma=usual)

    @property
    def updates(self) -> int:
        """How many updates `steps` are."""
        return max(1, self.steps // (self.num_envs * self.num_steps))

    @property
    def shared(self) -> int:
        """What devices can share evenly: the dreams, and the steps of a minibatch."""
        minibatch = self.num_envs * self.num_steps // self.num_minibatches
        return math.gcd(self.num_envs, minibatch)


@struct.dataclass
class Network:
    """What is learnt: C, and a critic that nobody needs afterwards.

    Attributes:
      weights: [D] the controller's.
      body, body_bias: [F, U] and [U], the critic's tanh layer.
      value: [U] the critic's answer.
      spread: what else is learnt of C's draws, see `Head`.
    """

    weights: jax.Array
    body: jax.Array
    body_bias: jax.Array
    value: jax.Array
    spread: jax.Array | None = None


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
    drawn: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


def learn(
    seed: int,
    env: Any,
    env_params: Any,
    controller: Controller,
    config: LearnConfig,
    *,
    start: jax.Array | None = None,
    whole: Any = None,
    log: Logbook | None = None,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
    watch: Callable[[jax.Array, float], Mapping[str, float]] | None = None,
) -> Learning:
    """Learn a controller's weights in a gymnax environment.

    While it learns, C draws its actions; awake it acts as its head makes of its outputs, the
    likeliest or the mean of what it would draw.

    Args:
      seed: of everything random.
      env, env_params: the gymnax environment, a dream or any other.
      controller: C, whose head acts as the environment is to be acted on.
      config: sizes and rates.
      start: [D] weights to go on from; `controller.initial`, which plays at random, if None.
      whole: parameters of the evaluations, where those of `env_params` are no whole episodes.
      log, store, meta: see `training.fit`; the same call resumes.
      watch: called after each evaluation with the averaged weights [D] and their return; what it
        returns is logged.

    Returns:
      The final `Learning`; `best` is the controller to use.
    """
    log = log or Logbook(quiet=True)
    mesh = devices_for(config.shared, SHARED, log)
    updates, env_params = Updates(seed, env, controller, config, mesh), on_all(env_params, mesh)
    whole = None if whole is None else on_all(whole, mesh)

    def advance(state, step):
        state, count, metrics = updates(state, step, env_params, whole)
        if watch is not None and "eval" in metrics:
            metrics |= watch(np.asarray(state.average), metrics["eval"])
        return state, count, metrics

    return fit(
        "learn",
        updates.initial(env_params, start),
        advance,
        config.updates,
        log=log,
        store=store,
        meta=meta,
        unit="steps",
        units_per_step=config.num_envs * config.num_steps,
        show="life",
    )


class Updates:
    """Compiled updates of one learning, by the devices of `mesh`, or by the default one."""

    def __init__(
        self,
        seed: int,
        env: Any,
        controller: Controller,
        config: LearnConfig,
        mesh: Mesh | None = None,
    ):
        config = config.of(getattr(env, "task", None))
        self.key, self.config = jax.random.key(seed), config
        self.env, self.controller, self.mesh = env, controller, mesh
        falls = optax.linear_schedule(
            config.learning_rate,
            config.learning_rate / 5,
            config.updates * config.update_epochs * config.num_minibatches,
        )
        self.optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(falls))
        self.update = jax.jit(self._update, donate_argnums=0)
        self.evaluation = jax.jit(self._evaluation)

    def initial(self, env_params: Any, start: jax.Array | None = None) -> Learning:
        """The state before the first update: `start` or C's own, in dreams that begin."""
        key_network, key_reset = jax.random.split(self.key)
        weights = start_weights(start, self.controller, key_network)
        network = initial_network(key_network, self.controller, weights, self.config.critic)
        keys = jax.random.split(key_reset, self.config.num_envs)
        obs, env_state = jax.jit(jax.vmap(self.env.reset, (0, None)))(keys, env_params)
        state = Learning(
            network=network,
            average=jnp.array(weights),
            optimiser=jax.jit(self.optimiser.init)(network),
            obs=obs,
            env_state=env_state,
            best=jnp.array(weights),
            best_score=jnp.float32(-jnp.inf),
        )
        if self.mesh is None:
            return state
        dreams = {"obs": obs, "env_state": env_state}
        state = on_all(state.replace(obs=None, env_state=None), self.mesh)
        return state.replace(**split(dreams, self.mesh))

    def __call__(self, state: Learning, step: int, env_params: Any, whole: Any = None):
        """One update, and an evaluation where one is due; the `advance` of `training.fit`."""
        state, metrics = self.update(state, jnp.int32(step), env_params)
        metrics = {name: float(value) for name, value in metrics.items()}
        done = step + 1
        if done % self.config.eval_every == 0 or done == self.config.updates:
            state, score = self.evaluation(
                state, jnp.int32(done), env_params if whole is None else whole
            )
            metrics |= {"eval": float(score), "best_eval": float(state.best_score)}
        return state, 1, metrics

    def _update(self, state: Learning, number: jax.Array, env_params: Any):
        key_play, key_learn = jax.random.split(jax.random.fold_in(self.key, number))
        if self.config.moments:
            state = self._begun(state, jax.random.fold_in(key_play, 1), env_params)
        keys = jax.random.split(key_play, self.config.num_steps)
        play = functools.partial(self._play, state.network, env_params)
        (obs, env_state), (steps, reward) = jax.lax.scan(play, (state.obs, state.env_state), keys)
        last_value = critic(state.network, obs)
        learnt = state.network, state.optimiser
        (network, optimiser), loss = self.improve(*learnt, key_learn, steps, last_value)
        metrics = {
            "life": steps.done.size / jnp.maximum(steps.done.sum(), 1.0),  # steps to an end
            "reward": reward.mean(),
            "loss": loss,
        }
        average = optax.incremental_update(
            network.weights, state.average, 1 - self.config.averaging
        )
        obs, env_state = self._laid((obs, env_state), SPLIT)
        network, average, optimiser = self._laid((network, average, optimiser), WHOLE)
        loop = {"obs": obs, "env_state": env_state}
        return state.replace(network=network, average=average, optimiser=optimiser, **loop), metrics

    def _begun(self, state: Learning, key: jax.Array, env_params: Any) -> Learning:
        """`state` in dreams that begin."""
        keys = jax.random.split(key, self.config.num_envs)
        obs, env_state = jax.vmap(self.env.reset, (0, None))(keys, env_params)
        return state.replace(obs=obs, env_state=env_state)

    def _laid(self, tree: Any, spec: PartitionSpec) -> Any:
        """A pytree laid on the devices as `spec` says."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))

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
        rows = self._laid(rows, WHOLE)  # a minibatch takes of all dreams
        keys = jax.random.split(key, self.config.update_epochs)
        learnt = network, optimiser
        learnt, losses = jax.lax.scan(lambda x, key: self._epoch(x, key, rows), learnt, keys)
        return learnt, losses.mean()

    def _play(self, network: Network, env_params: Any, loop, key):
        """One step of all dreams; where one is cut, the critic says what it would still earn."""
        obs, env_state = loop
        key_choice, key_step = jax.random.split(key)
        drawn, action = self.act(key_choice, network, obs)
        keys = jax.random.split(key_step, len(obs))
        step = jax.vmap(self.env.step, (0, 0, 0, None))
        next_obs, env_state, reward, ended, cut, info = step(keys, env_state, action, env_params)
        steps = self.judged(network, obs, drawn, reward, ended | cut)
        withheld = self.config.gamma * critic(network, info["final_observation"])
        to_come = steps.reward + jnp.where(cut & ~ended, withheld, 0.0)
        return (next_obs, env_state), (steps.replace(reward=to_come), reward)

    def act(self, key: jax.Array, network: Network, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A draw [...] for features [..., F], and the action [..., A] that it is."""
        head, out = self.controller.head, self.controller.outputs(network.weights, obs)
        drawn = head.draw(key, out, network.spread)
        return drawn, head.action(out, drawn)

    def judged(self, network: Network, obs, drawn, reward, done) -> Steps:
        """`Steps` of what was drawn and what came of it, [...] of each."""
        out = self.controller.outputs(network.weights, obs)
        return Steps(
            obs=obs,
            drawn=drawn,
            log_prob=self.controller.head.log_prob(out, network.spread, drawn),
            value=critic(network, obs),
            reward=reward * (1 - self.config.gamma),  # so that values stay near 1
            done=done.astype(jnp.float32),
        )

    def _epoch(self, learnt, key: jax.Array, rows: tuple[Steps, jax.Array]):
        """One pass over the steps in a random order; the losses [num_minibatches]."""

        def descend(learnt, order):
            network, optimiser = learnt
            steps, advantage = jax.tree.map(lambda x: x[order], rows)
            loss, gradient = jax.value_and_grad(self.loss)(network, steps, advantage)
            changes, optimiser = self.optimiser.update(gradient, optimiser)
            return (optax.apply_updates(network, changes), optimiser), loss

        order = jax.random.permutation(key, len(rows[1])).reshape(self.config.num_minibatches, -1)
        order = self._laid(order, PartitionSpec(None, AXIS))
        return jax.lax.scan(descend, learnt, order)

    def loss(self, network: Network, steps: Steps, advantage: jax.Array) -> jax.Array:
        """`ppo_loss` of N steps for a network."""
        head, out = self.controller.head, self.controller.outputs(network.weights, steps.obs)
        return ppo_loss(
            head.log_prob(out, network.spread, steps.drawn),
            head.entropy(out, network.spread),
            critic(network, steps.obs),
            steps,
            advantage,
            self.config,
        )

    def _evaluation(self, state: Learning, number: jax.Array, env_params: Any):
        key, weights = evaluation_key(self.key, number), state.average
        played = rollout(
            key,
            self.env,
            env_params,
            self.controller,
            weights[None],
            self.config.eval_rollouts,
            mesh=self.mesh,
        )
        return keep_best(state, weights, played.score.mean())


def ppo_loss(
    log_prob: jax.Array,
    entropy: jax.Array,
    value: jax.Array,
    steps: Any,
    advantage: jax.Array,
    config: Any,
) -> jax.Array:
    """PPO's clipped objective, the critic's squared error, and the entropy, of N steps.

    Args:
      log_prob, entropy, value: [N] as the network has them now.
      steps: `log_prob` and `value` [N] as it had them when it acted.
      advantage: [N].
      config: `clip_eps` and `ent_coef`.
    """
    ratio = jnp.exp(log_prob - steps.log_prob)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - config.clip_eps, 1 + config.clip_eps)
    gain = jnp.minimum(ratio * scaled, clipped * scaled).mean()
    error = ((value - (advantage + steps.value)) ** 2).mean()
    return 0.5 * error - gain - config.ent_coef * entropy.mean()


def initial_network(
    key: jax.Array, controller: Controller, weights: jax.Array, units: int
) -> Network:
    """C as it is, and an untrained critic that reads the same features."""
    orthogonal = jax.nn.initializers.orthogonal()
    key_body, key_value = jax.random.split(key)
    return Network(
        weights=jnp.array(weights),
        body=orthogonal(key_body, (controller.num_features, units)),
        body_bias=jnp.zeros(units),
        value=orthogonal(key_value, (units, 1))[:, 0],
        spread=controller.head.first_spread(),
    )


def critic(network: Network, obs: jax.Array) -> jax.Array:
    """Discounted rewards to come, [...] of observations [..., F]."""
    return jnp.tanh(obs @ network.body + network.body_bias) @ network.value


def advantages(steps: Any, last_value: jax.Array, config: Any) -> jax.Array:
    """Generalised advantage estimates [T, E] (arXiv:1506.02438); 0 after an end."""

    def back(loop, now):
        advantage, next_value = loop
        going = 1.0 - now.done
        error = now.reward + config.gamma * next_value * going - now.value
        advantage = error + config.gamma * config.gae_lambda * going * advantage
        return (advantage, now.value), advantage

    start = jnp.zeros_like(last_value), last_value
    return jax.lax.scan(back, start, steps, reverse=True)[1]
