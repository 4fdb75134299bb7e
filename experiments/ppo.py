"""PPO on the dream, in one file, and its player in real Doom.

    python experiments/ppo.py

The manner of PureJaxRL: environments, network and updates in one compiled program. The policy reads
what the paper's C reads and, as linear as it, chooses left, stay or right; awake it takes its
likeliest choice. (With a tanh layer that policy and value share it learns many times slower.)
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

import dreamjax
from dreamjax.agent import evaluate
from dreamjax.controller.player import Player
from dreamjax.controller.ppo import advantages, ppo_loss
from dreamjax.dream.worlds import load_world
from dreamjax.run.scores import score
from dreamjax.tasks import TAKE_COVER

SIDES = TAKE_COVER.actions.choices


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str = "take-cover"
    steps: int = 1_500_000  # dream steps in all
    seed: int = 0
    num_envs: int = 256
    num_steps: int = 128  # steps between updates
    update_epochs: int = 3
    num_minibatches: int = 8
    hidden: int = 64  # units of the critic
    learning_rate: float = 5e-4
    gamma: float = 0.995  # discount
    gae_lambda: float = 0.95  # of the advantage estimate
    clip_eps: float = 0.2
    ent_coef: float = 0.0  # weight of the choices' entropy
    episodes: int = 100  # real ones

    def __post_init__(self):
        steps = self.num_envs * self.num_steps
        if steps % self.num_minibatches:
            raise ValueError(
                f"num_envs x num_steps = {steps} steps cannot be shared by "
                f"num_minibatches={self.num_minibatches}; choose a divisor of it"
            )


class Transition(NamedTuple):
    """One step of every environment."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    next_value: jax.Array
    done: jax.Array


def initial_network(key: jax.Array, features: int, hidden: int) -> dict[str, jax.Array]:
    """A linear policy that plays at random, and a critic with a tanh layer."""
    orthogonal = jax.nn.initializers.orthogonal()
    key_body, key_value = jax.random.split(key)
    return {
        "choice": jnp.zeros((features, len(SIDES))),
        "body": orthogonal(key_body, (features, hidden)),
        "body_bias": jnp.zeros(hidden),
        "value": orthogonal(key_value, (hidden, 1)),
    }


def apply(network: dict[str, jax.Array], obs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log probabilities of the choices [..., 3] and the value [...]."""
    h = jnp.tanh(obs @ network["body"] + network["body_bias"])
    return jax.nn.log_softmax(obs @ network["choice"]), (h @ network["value"])[..., 0]


def awake(network: dict[str, jax.Array], obs: jax.Array) -> jax.Array:
    """The likeliest choice as the real game's action [1]."""
    return jnp.asarray(SIDES)[jnp.argmax(apply(network, obs)[0])][None]


def loss(network, batch: Transition, advantage, config: Config) -> jax.Array:
    """PPO's loss of N steps."""
    log_probs, value = apply(network, batch.obs)
    chosen = jnp.take_along_axis(log_probs, batch.action[:, None], axis=1)[:, 0]
    entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=1)
    return ppo_loss(chosen, entropy, value, batch, advantage, config)


def train(config: Config, env: Any, params: Any) -> tuple[dict[str, jax.Array], jax.Array]:
    """The trained network, and per update the share of steps that ended a dream."""
    rounds = max(1, config.steps // (config.num_envs * config.num_steps))
    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(config.learning_rate))
    key, key_network, key_reset = jax.random.split(jax.random.key(config.seed), 3)
    features = env.observation_space(params).shape[0]
    network = initial_network(key_network, features, config.hidden)
    step_all = jax.vmap(env.with_survival().step, (0, 0, 0, None))

    def play(loop, key, network, params):
        obs, state = loop
        key_action, key_step = jax.random.split(key)
        log_probs, value = apply(network, obs)
        action = jax.random.categorical(key_action, log_probs)
        log_prob = jnp.take_along_axis(log_probs, action[:, None], axis=1)[:, 0]
        keys = jax.random.split(key_step, config.num_envs)
        next_obs, state, reward, ended, cut, info = step_all(keys, state, action, params)
        next_value = info["survival"] * apply(network, info["final_observation"])[1]
        reward = reward * (1 - config.gamma)  # so that values stay near 1
        done = (ended | cut).astype(jnp.float32)
        row = Transition(obs, action, log_prob, value, reward, next_value, done)
        return (next_obs, state), row

    def learn(carry, key, batch, advantage):
        def step(carry, rows):
            network, state = carry
            mine = jax.tree.map(lambda x: x[rows], (batch, advantage))
            gradient = jax.grad(loss)(network, *mine, config)
            changes, state = optimiser.update(gradient, state)
            return (optax.apply_updates(network, changes), state), None

        rows = jax.random.permutation(key, len(advantage)).reshape(config.num_minibatches, -1)
        return jax.lax.scan(step, carry, rows)[0], None

    @jax.jit
    def run(network, params, key):
        def update(carry, key):
            loop, network, state = carry
            key_play, key_learn = jax.random.split(key)
            keys = jax.random.split(key_play, config.num_steps)
            loop, batch = jax.lax.scan(lambda x, k: play(x, k, network, params), loop, keys)
            advantage = advantages(batch, config)
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (batch, advantage))
            keys = jax.random.split(key_learn, config.update_epochs)
            (network, state), _ = jax.lax.scan(
                lambda x, k: learn(x, k, *flat), (network, state), keys
            )
            return (loop, network, state), batch.done.mean()

        keys = jax.random.split(key_reset, config.num_envs)
        loop = jax.vmap(env.reset, (0, None))(keys, params)
        start = loop, network, optimiser.init(network)
        (_, network, _), deaths = jax.lax.scan(update, start, jax.random.split(key, rounds))
        return network, deaths

    return run(network, params, key)


def main(config: Config) -> dict[str, Any]:
    """Train in the dream, play the real game, print."""
    env, params = dreamjax.make("DreamTakeCover-v1", actions="discrete", world=config.world)
    network, deaths = train(config, env, params)
    tenth = max(1, len(deaths) // 10)
    print(
        f"steps to a death in the dream: {1 / deaths[:tenth].mean():.0f} at first, "
        f"{1 / deaths[-tenth:].mean():.0f} at last",
        flush=True,
    )
    world = load_world(config.world)
    played = evaluate(world, Player(awake, network), config.episodes, config.seed)
    found = score(played.returns)
    print(
        f"in the real game: {found['mean']:.0f} ± {found['std']:.0f}, n {found['n']}, 95 % "
        f"interval {found['ci95'][0]:.0f} to {found['ci95'][1]:.0f}"
    )
    return found


if __name__ == "__main__":
    main(tyro.cli(Config))
