"""Learning C by policy gradient in the dream: proximal policy optimisation (PPO).

The paper evolves C (`evolution`), which learns one number from a whole generation of dreams a
member; a gradient learns from each of their steps. Not in the paper; Schulman et al., "Proximal
Policy Optimization Algorithms", arXiv:1707.06347. Several devices share the dreams, and then the
draws of each minibatch.
Legend: D weights of the controller, E dreams side by side, F features, N draws of a batch, O
outputs of the controller, R draws and T steps between two updates.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from dreamjax.controller.elsewhere import suited
from dreamjax.controller.model import Controller, rescaled_layer
from dreamjax.controller.player import Player, form_of
from dreamjax.controller.population import (
    EVALUATION,
    Watch,
    evaluated,
    evaluation_key,
    keep_best,
    rollout,
)
from dreamjax.controller.ppo import (
    SHARED,
    LearnConfig,
    Network,
    Scales,
    Steps,
    advantages,
    critic,
    initial_network,
    ppo_loss,
    scales_of,
)
from dreamjax.training.checkpoint import Store
from dreamjax.training.devices import theirs
from dreamjax.training.fit import fit
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import AXIS, SPLIT, WHOLE, devices_for, on_all, split


class Learning(struct.PyTreeNode):
    """Everything learning needs to go on, and its best result so far.

    `scales` were found from C's first steps; `average` [D] is the running mean of C's weights over
    updates, which plays better than the newest; `obs` and `env_state` [E] are of the dreams in
    flight; `best` [D] is the average with the highest evaluation, whose return is `best_score` [].
    """

    network: Network
    scales: Scales
    average: jax.Array
    optimiser: optax.OptState  # its state
    obs: jax.Array
    env_state: Any
    best: jax.Array
    best_score: jax.Array
    controller: Controller = struct.field(pytree_node=False)  # whose weights they are

    @property
    def player(self) -> Player:
        """The C to use: `best`."""
        return Player(self.controller, self.best, dream=float(self.best_score))


def learn(
    env: Any,
    env_params: Any,
    player: Player | Controller,
    config: LearnConfig,
    seed: int,
    *,
    whole: Any = None,
    others: Sequence[Any] = (),
    log: Logbook | None = None,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Learning:
    """Learn a C's weights in a gymnax environment.

    While it learns, C draws its actions; awake it does the likeliest of what it would draw, or its
    mean.

    Args:
      env, env_params, seed, log, store, meta: as for `evolve`.
      player: a form of C, whose `initial` plays at random; or a player, to go on from its weights.
      config: sizes and rates.
      whole: parameters of the evaluations, where those of `env_params` are no whole episodes.
      others: parameters of more environments, which take turns with `env_params`, an update each.
      watch: called after each evaluation with the average and its return; its answer is logged.

    Returns:
      The final `Learning`, whose `player` is the C to use.

    Raises:
      ValueError: an environment that this C cannot play, or more devices than can share it.
    """
    log, (controller, start) = log or Logbook(quiet=True), form_of(player)
    mesh = devices_for(config.shared, SHARED, log)
    updates = Updates(suited(env, env_params, controller), controller, config, seed, mesh)
    turns = [on_all(params, mesh) for params in _of_one_form((env_params, *others))]
    whole = turns[0] if whole is None else on_all(whole, mesh)

    def advance(state, step):
        return updates(state, step, turns[step % len(turns)], whole, watch)

    return fit(
        "learn",
        updates.initial(turns[0], start),
        advance,
        config.updates,
        log=log,
        store=store,
        meta=meta,
        unit="steps",
        units_per_step=config.num_envs * config.num_steps,
        show="life",
    )


def _of_one_form(turns: Sequence[Any]) -> Sequence[Any]:
    """Dreams of which some have dropout: the others drop nothing, so that states are alike."""
    if all(getattr(params, "dropout", None) is None for params in turns):
        return turns
    return [params.replace(dropout=params.dropout or 0.0) for params in turns]


class Updates:
    """Compiled updates of one learning, by the devices of `mesh`, or by the default one."""

    def __init__(self, env: Any, controller: Controller, config: LearnConfig, seed: int, mesh=None):
        config = config.of(getattr(env, "task", None))
        self.key, self.config = jax.random.key(seed), config
        self.env = env.with_survival() if hasattr(env, "with_survival") else env
        self.controller, self.mesh = controller, mesh
        steps = config.updates * config.update_epochs * config.num_minibatches
        falls = optax.linear_schedule(config.learning_rate, config.learning_rate / 5, steps)
        self.optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(falls))
        self.update = jax.jit(self._update, donate_argnums=0)
        self.evaluation = jax.jit(self._evaluation)

    def initial(self, env_params: Any, start: jax.Array | None = None) -> Learning:
        """The state before the first update: `start` or C's own, in dreams that begin."""
        key_network, key_reset = jax.random.split(self.key)
        weights = self.controller.initial(jax.random.fold_in(key_network, EVALUATION))
        if start is not None:
            weights = start
        network = initial_network(key_network, self.controller, weights, self.config.critic)
        obs, env_state = loop = jax.jit(self._begun)(key_reset, env_params)
        scales = jax.jit(self._watched)(network, loop, env_params)
        rescaled = self.rescaled(network, scales)
        network = rescaled if start is None else rescaled.replace(weights=jnp.array(weights))
        state = Learning(
            network=network,
            scales=scales,
            average=jnp.array(network.weights),
            optimiser=jax.jit(self.optimiser.init)(network),
            obs=obs,
            env_state=env_state,
            best=jnp.array(network.weights),
            best_score=jnp.float32(-jnp.inf),
            controller=self.controller,
        )
        if self.mesh is None:
            return state
        dreams = split({"obs": obs, "env_state": env_state}, self.mesh)
        return on_all(state.replace(obs=None, env_state=None), self.mesh).replace(**dreams)

    def __call__(self, state: Learning, step: int, env_params: Any, whole=None, watch=None):
        """One update, and an evaluation where one is due; the `advance` of `training.fit`."""
        state, metrics = self.update(state, jnp.int32(step), env_params)
        done, told = step + 1, {}
        if done % self.config.eval_every == 0 or done == self.config.updates:
            whole = env_params if whole is None else whole
            state, told = evaluated(self.evaluation, state, state.average, done, whole, watch)
        return state, 1, {name: float(value) for name, value in metrics.items()} | told

    def _update(self, state: Learning, number: jax.Array, env_params: Any):
        key = jax.random.fold_in(self.key, number)
        key_play, key_learn, key_begin = jax.random.split(key, 3)
        loop = state.obs, state.env_state
        if self.config.branched:
            loop = self._begun(key_begin, env_params)
        loop, (steps, reward) = self._play(key_play, state.network, loop, env_params)
        learnt = state.network, state.optimiser
        (network, optimiser), loss = self.improve(*learnt, key_learn, steps, state.scales)
        metrics = {
            "life": steps.done.size / jnp.maximum(steps.done.sum(), 1.0),  # steps to an end
            "reward": reward.mean(),
            "loss": loss,
        }
        share = 1 - self.config.averaging
        average = optax.incremental_update(network.weights, state.average, share)
        found = {"network": network, "average": average, "optimiser": optimiser}
        dreams = dict(zip(("obs", "env_state"), loop, strict=True))
        return state.replace(**self._laid(dreams, SPLIT), **self._laid(found, WHOLE)), metrics

    def _begun(self, key: jax.Array, env_params: Any) -> tuple[jax.Array, Any]:
        """Observations and states of dreams that begin."""
        keys = jax.random.split(key, self.config.num_envs)
        return jax.vmap(self.env.reset, (0, None))(keys, env_params)

    def _laid(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))

    def improve(
        self, network: Network, optimiser: Any, key: jax.Array, steps: Steps, scales: Scales
    ) -> tuple[tuple[Network, optax.OptState], jax.Array]:
        """Learn from what happened to `network`, in a dream or awake; `key` is of the order.

        Returns (network, optimiser's state), and the mean loss.
        """
        draws = len(steps.drawn)
        rows = steps, advantages(steps, self.config)
        rows = jax.tree.map(lambda x: x[:: len(x) // draws].reshape(-1, *x.shape[2:]), rows)
        rows = self._laid(rows, WHOLE)  # a minibatch takes of all dreams
        keys = jax.random.split(key, self.config.update_epochs)
        epoch = functools.partial(self._epoch, rows=rows, scales=scales)
        learnt, losses = jax.lax.scan(epoch, (network, optimiser), keys)
        return learnt, losses.mean()

    def _play(self, key: jax.Array, network: Network, loop, env_params: Any):
        """The next T steps of all dreams: the loop after them, `Steps`, and rewards [T, E]."""

        def draw(loop, key):
            key_choice, key_step = jax.random.split(key)
            drawn, action = self.act(key_choice, network, loop[0])
            step = functools.partial(self._step, network, env_params, action)
            after, steps = jax.lax.scan(step, loop, jax.random.split(key_step, self.config.held))
            return after, (loop[0], drawn, steps)

        keys = jax.random.split(key, self.config.num_steps // self.config.held)
        loop, (obs, drawn, steps) = jax.lax.scan(draw, loop, keys)
        value, reward, *more = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)
        return loop, (self.judged(network, obs, drawn, value, reward, *more), reward)

    def _step(self, network: Network, env_params: Any, action: jax.Array, loop, key):
        """One step of all dreams.

        Whether a dream ends is a draw, of which the dream tells the chance. The critic's word for
        what follows is weighed by the chance: its mean is the same, and it owes nothing to luck.
        """
        obs, env_state = loop
        keys = jax.random.split(key, len(obs))
        step = jax.vmap(self.env.step, (0, 0, 0, None))
        next_obs, env_state, reward, ended, cut, info = step(keys, env_state, action, env_params)
        survival = info.get("survival", 1.0 - ended.astype(jnp.float32))
        next_value = survival * critic(network, info["final_observation"])
        done = (ended | cut).astype(jnp.float32)
        return (next_obs, env_state), (critic(network, obs), reward, next_value, done)

    def _watched(self, network: Network, loop: tuple[jax.Array, Any], env_params: Any) -> Scales:
        """How large the features are in the first T steps."""
        key = evaluation_key(self.key, 0)  # evaluations count from 1
        return scales_of(self._play(key, network, loop, env_params)[1][0])

    def rescaled(self, network: Network, scales: Scales) -> Network:
        """What reads features as `network` reads them after they are scaled; linear in it."""
        critic = jnp.concatenate((network.body_bias[None], network.body))
        critic = rescaled_layer(critic, scales.mean, scales.std)
        weights = self.controller.rescaled(network.weights, scales.mean, scales.std)
        return network.replace(weights=weights, body=critic[1:], body_bias=critic[0])

    def act(self, key: jax.Array, network: Network, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A draw [...] for features [..., F], and the action [..., A] that it is."""
        distribution = self.controller.distribution
        out = self.controller.outputs(network.weights, obs)
        drawn = distribution.draw(key, out, network.spread)
        return drawn, distribution.action(out, drawn)

    def judged(self, network: Network, obs, drawn, value, reward, next_value, done) -> Steps:
        """`Steps` of what was drawn and what came of it."""
        out = self.controller.outputs(network.weights, obs)
        return Steps(
            obs=obs,
            drawn=drawn,
            log_prob=self.controller.distribution.log_prob(out, network.spread, drawn),
            value=value,
            reward=reward * (1 - self.config.gamma),  # type: ignore[operator]  # values stay near 1
            next_value=next_value,
            done=done,
        )

    def _epoch(self, learnt, key: jax.Array, rows: tuple[Steps, jax.Array], scales: Scales):
        """One pass over the draws in a random order; the losses [num_minibatches]."""
        to_plain = functools.partial(self.rescaled, scales=scales)
        to_scaled = jax.linear_transpose(to_plain, learnt[0])

        def descend(learnt, order):
            network, optimiser = learnt
            steps, advantage = jax.tree.map(lambda x: x[order], rows)
            loss, gradient = jax.value_and_grad(self.loss)(network, steps, advantage)
            changes, optimiser = theirs(self.optimiser.update)(*to_scaled(gradient), optimiser)
            return (optax.apply_updates(network, to_plain(changes)), optimiser), loss

        order = jax.random.permutation(key, len(rows[1])).reshape(self.config.num_minibatches, -1)
        order = self._laid(order, PartitionSpec(None, AXIS))
        return jax.lax.scan(descend, learnt, order)

    def loss(self, network: Network, steps: Steps, advantage: jax.Array) -> jax.Array:
        """`ppo_loss` of N steps for a network."""
        distribution = self.controller.distribution
        out = self.controller.outputs(network.weights, steps.obs)
        log_prob = distribution.log_prob(out, network.spread, steps.drawn)
        entropy, value = distribution.entropy(out, network.spread), critic(network, steps.obs)
        return ppo_loss(log_prob, entropy, value, steps, advantage, self.config)

    def _evaluation(self, state: Learning, number: jax.Array, env_params: Any):
        key, weights = evaluation_key(self.key, number), state.average
        given = self.env, env_params, self.controller, weights[None], self.config.eval_rollouts
        return keep_best(state, weights, rollout(key, *given, mesh=self.mesh).score.mean())
