"""Learning through the dream: C by three ways at equal dream steps.

    python experiments/gradient.py --steps 400000

*gradient* differentiates the dream itself; *policy gradient* (`dreamjax.learning`) and *evolution*
only watch it. The original names the first as future work. A dream is differentiable but for two
choices: which Gaussian each latent comes from (here straight-through: the forward pass draws one,
the backward pass sees their weighted mean), and death (here its probability, so that the score is
the expected number of steps survived).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from dreamjax.devices import product_dtype
from dreamjax.dream import DreamEnv, EnvParams
from dreamjax.evolution import EvolveConfig, Generations
from dreamjax.fidelity import dreamt_scores
from dreamjax.learning import LearnConfig, learn
from dreamjax.memory import Mixture
from dreamjax.worlds import World, load_world


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    world: str = "take-cover"
    steps: int = 400_000  # dream steps of each way
    seed: int = 0
    lanes: int = 64  # dreams of one gradient
    horizon: int = 100  # steps of each
    learning_rate: float = 3e-3
    population: int = 32
    rollouts: int = 8
    dreams: int = 256  # of a score


def main(config: Config) -> dict[str, float]:
    """Train every way, score each, print."""
    world = load_world(config.world)
    ways = {
        "nothing": untrained,
        "gradient": by_gradient,
        "policy gradient": by_policy_gradient,
        "evolution": by_evolution,
    }
    found = {}
    for name, way in ways.items():
        weights = np.asarray(way(world, config))[None]
        found[name] = float(dreamt_scores(world, weights, config.dreams, 10_000)[0])
        print(f"{name:<16}{found[name]:>8.0f} steps survived in the dream", flush=True)
    return found


def untrained(world: World, config: Config) -> jax.Array:
    """The controller that both ways begin from."""
    return jnp.zeros(world.controller().num_params)


def straight_through(mixture: Mixture, uniform, normal, temperature, event) -> jax.Array:
    """`mixture.sample_from` whose gradient is that of the weighted mean Gaussian."""
    weights = jax.nn.softmax(mixture.logits / temperature, axis=-2)
    blurred = [(weights * x).sum(-2) for x in (mixture.mean, jnp.exp(mixture.logstd))]
    soft = blurred[0] + blurred[1] * jnp.sqrt(temperature) * normal
    hard = mixture.sample_from(uniform, normal, temperature, event)
    return soft + jax.lax.stop_gradient(hard - soft)


def expected_steps(env: DreamEnv, controller, params: EnvParams, weights, key, horizon: int):
    """Expected steps survived of `horizon`, in one differentiable dream."""
    key_reset, key_noise = jax.random.split(key)
    obs, state = env.reset_env(key_reset, params)

    def step(loop, key):
        obs, state, alive = loop
        noise, action = env.draw_noise(key), controller(weights, obs)
        carry, mixture, logit = params.memory(state.carry, state.z, action, state.time)
        z = straight_through(mixture, noise.uniform, noise.normal, params.temperature, noise.event)
        state = state.replace(time=state.time + 1, z=z, carry=carry)
        alive_next = alive * jax.nn.sigmoid(params.death_threshold - logit)
        return (env.observe(None, state, action, params), state, alive_next), alive

    loop = obs, state, jnp.float32(1.0)
    return jax.lax.scan(step, loop, jax.random.split(key_noise, horizon))[1].sum()


def by_gradient(world: World, config: Config) -> jax.Array:
    """C after Adam on the expected steps, as many dream steps as allowed."""
    env, controller, params = world.env(), world.controller(), world.params()
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    dream = functools.partial(expected_steps, env, controller)

    def loss(weights, params, key):
        keys = jax.random.split(key, config.lanes)
        dreams = jax.vmap(dream, (None, None, 0, None))(params, weights, keys, config.horizon)
        return -dreams.mean()

    @jax.jit
    def update(weights, state, params, key):
        changes, state = optimiser.update(jax.grad(loss)(weights, params, key), state)
        return optax.apply_updates(weights, changes), state

    weights = untrained(world, config)
    state = optimiser.init(weights)
    for number in range(max(1, config.steps // (config.lanes * config.horizon))):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        weights, state = update(weights, state, params, key)
    return weights


def by_policy_gradient(world: World, config: Config) -> jax.Array:
    """C after PPO on as many dream steps."""
    settings = LearnConfig(
        steps=config.steps,
        lanes=config.lanes,
        length=config.horizon,
        batches=math.gcd(8, config.lanes * config.horizon),
        eval_every=10**9,
        eval_rollouts=1,
    )
    params = world.params(dtype=product_dtype())
    found = learn(config.seed, world.env(), params, world.controller(), settings)
    return found.average


def by_evolution(world: World, config: Config) -> jax.Array:
    """CMA-ES's mean after as many dream steps."""
    settings = EvolveConfig(
        generations=10**9,
        population=config.population,
        rollouts=config.rollouts,
        eval_every=10**9,
    )
    params, controller = world.params(dtype=product_dtype()), world.controller()
    run = Generations(config.seed, world.env(), params, controller, controller.num_params, settings)
    state, generation, spent = run.initial(), 0, 0.0
    while spent < config.steps:
        state, done, metrics = run(state, generation, params)
        generation, spent = generation + done, spent + metrics["valid_steps"]
    return state.es.mean


if __name__ == "__main__":
    main(tyro.cli(Config))
