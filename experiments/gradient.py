"""Learning through the dream: one C made better by three ways at equal dream steps.

    python experiments/gradient.py --steps 400000

*gradient* differentiates the dream itself; *policy gradient* (`dreamjax.learn`) and *evolution*
only watch it. The original names the first as future work. A dream is differentiable but for two
choices: which Gaussian each latent comes from (here straight-through: the forward pass draws one,
the backward pass sees their weighted mean), and death (here its probability, so that the score is
the expected number of steps survived). Dreams go on from one update to the next; a gradient looks
back over `horizon` steps.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from dreamjax.controller.evolution import EvolveConfig, Generations
from dreamjax.controller.model import Controller
from dreamjax.controller.player import Player
from dreamjax.controller.policy_gradient import learn
from dreamjax.controller.ppo import LearnConfig
from dreamjax.dream.env import DreamEnv, EnvParams
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.fidelity.compare import dreamt_scores
from dreamjax.memory.heads import Mixture, total_logit


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    world: str = "take-cover"
    start: str = "take-cover"  # a world or run directory whose C all ways begin from
    steps: int = 400_000  # dream steps of each way
    seed: int = 0
    lanes: int = 64  # dreams of one gradient
    horizon: int = 100  # steps of each
    learning_rate: float = 3e-4
    sigma: float = 0.01  # of evolution; the shipped C's weights have a deviation of 0.04
    population: int = 32
    rollouts: int = 8
    dreams: int = 256  # of a score


def main(config: Config) -> dict[str, float]:
    """Train every way, score each, print."""
    world = load_world(config.world)
    player = world.player
    controller, start = player.controller, player.weights
    ways = {
        "nothing": lambda world, controller, start, config: start,
        "gradient": by_gradient,
        "policy gradient": by_policy_gradient,
    }
    if not controller.hidden:  # CMA-ES keeps the square of the number of weights
        ways["evolution"] = by_evolution
    found = {}
    for name, way in ways.items():
        weights = np.asarray(way(world, controller, start, config))[None]
        found[name] = float(dreamt_scores(world, controller, weights, config.dreams, 10_000)[0])
        print(f"{name:<16}{found[name]:>8.0f} steps survived in the dream", flush=True)
    return found


def straight_through(mixture: Mixture, uniform, normal, temperature, event) -> jax.Array:
    """`mixture.sample_from` whose gradient is that of the weighted mean Gaussian."""
    weights = jax.nn.softmax(mixture.logits / temperature, axis=-2)
    blurred = [(weights * x).sum(-2) for x in (mixture.mean, jnp.exp(mixture.logstd))]
    soft = blurred[0] + blurred[1] * jnp.sqrt(temperature) * normal
    hard = mixture.sample_from(uniform, normal, temperature, event)
    return soft + jax.lax.stop_gradient(hard - soft)


def expected_steps(env: DreamEnv, controller, params: EnvParams, weights, state, key, horizon: int):
    """Expected steps survived of the next `horizon` of one dream, and (state, alive) after them."""

    def step(loop, key):
        state, alive = loop
        noise = env.draw_noise(key)
        action = controller(weights, env.observe(key, state, None, params))
        carry, found = params.memory(state.carry, state.z, action, state.time)
        drawn = noise.uniform, noise.normal, params.temperature, noise.event
        z, logit = straight_through(found.latent, *drawn), total_logit(found.end)
        state = state.replace(time=state.time + 1, z=z, carry=carry)
        return (state, alive * jax.nn.sigmoid(params.death_threshold - logit)), alive

    keys = jax.random.split(key, horizon)
    loop, alive = jax.lax.scan(step, (state, jnp.float32(1.0)), keys)
    return alive.sum(), loop


def go_on(env: DreamEnv, params: EnvParams, state, alive, key):
    """The dream's state [], or that of a new one where it was survived with chance `alive` only."""
    key_death, key_reset = jax.random.split(key)
    ended = jax.random.uniform(key_death) > alive
    ended |= state.time >= params.max_steps_in_episode
    fresh = env.reset_env(key_reset, params)[1]
    return jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, state)


def by_gradient(
    world: World, controller: Controller, start: jax.Array, config: Config
) -> jax.Array:
    """C after Adam on the expected steps, as many dream steps as allowed."""
    env, params = world.env(), world.params(dtype=jnp.float32)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))

    def loss(weights, params, states, keys):
        dream = functools.partial(expected_steps, env, controller, horizon=config.horizon)
        steps, loops = jax.vmap(dream, (None, None, 0, 0))(params, weights, states, keys)
        return -steps.mean(), loops

    @jax.jit
    def update(weights, optimiser_state, states, params, key):
        dream_keys, death_keys = jax.random.split(key, (2, config.lanes))
        gradient, loops = jax.grad(loss, has_aux=True)(weights, params, states, dream_keys)
        states = jax.vmap(functools.partial(go_on, env, params))(*loops, death_keys)
        changes, optimiser_state = optimiser.update(gradient, optimiser_state)
        return optax.apply_updates(weights, changes), optimiser_state, states

    key, key_reset = jax.random.split(jax.random.key(config.seed))
    keys = jax.random.split(key_reset, config.lanes)
    loop = start, optimiser.init(start), jax.vmap(env.reset_env, (0, None))(keys, params)[1]
    for number in range(max(1, config.steps // (config.lanes * config.horizon))):
        loop = update(*loop, params, jax.random.fold_in(key, number))
    return loop[0]


def by_policy_gradient(
    world: World, controller: Controller, start: jax.Array, config: Config
) -> jax.Array:
    """C after PPO on as many dream steps."""
    settings = LearnConfig(
        steps=config.steps,
        num_envs=config.lanes,
        num_steps=config.horizon,
        action_repeat=1,  # as the gradient, which chooses at every step
        num_minibatches=math.gcd(8, config.lanes * config.horizon),
        eval_every=10**9,
        eval_rollouts=1,
    )
    params = world.params()
    found = learn(world.env(), params, Player(controller, start), settings, config.seed)
    return found.average


def by_evolution(
    world: World, controller: Controller, start: jax.Array, config: Config
) -> jax.Array:
    """CMA-ES's mean after as many dream steps."""
    settings = EvolveConfig(
        generations=10**9,
        population=config.population,
        rollouts=config.rollouts,
        sigma=config.sigma,
        eval_every=10**9,
    )
    params = world.params()
    run = Generations(world.env(), params, Player(controller, start), settings, config.seed)
    state, generation, spent = run.initial(), 0, 0.0
    while spent < config.steps:
        state, done, metrics = run(state, generation)
        generation, spent = generation + done, spent + metrics["valid_steps"]
    return state.es.mean


if __name__ == "__main__":
    main(tyro.cli(Config))
