"""A world to measure in: the shipped one, or an untrained one of its size, about as deadly."""

import jax
import jax.numpy as jnp
from flax import nnx

from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.memory.lstm import MDNRNN
from dreamjax.task import Task
from dreamjax.tasks import TAKE_COVER
from dreamjax.vision.model import VAE

DEATHS_PER_STEP = 1 / 400  # the stand-in's, about a random player's in the paper's dream
_PROBE_STEPS, _PROBE_LANES = 200, 64


def step_flops(memory: MDNRNN) -> int:
    """Floating-point operations of one M step's matrix products."""
    return 2 * (memory.lstm_kernel.size + memory.head_kernel.size)


def find_world(source: str | None) -> tuple[World, str]:
    """The world of a run directory, by default the shipped one, and a word for it."""
    if source is not None:
        return load_world(source), "trained world"
    return load_world(TAKE_COVER.name), "shipped world"


def stand_in(task: Task = TAKE_COVER) -> World:
    """An untrained world whose death logit passes 0 at the wanted rate."""
    memory = MDNRNN(task, rngs=nnx.Rngs(0))
    mu = jax.random.normal(jax.random.key(0), (1000, task.latent_size))
    vision = VAE(task.latent_size, rngs=nnx.Rngs(1))
    world = World(task, vision, memory, mu, jnp.full_like(mu, -2))
    threshold = jnp.quantile(_death_logits(world), 1 - DEATHS_PER_STEP)
    memory.head_bias[...] = memory.head_bias[...].at[-1].add(-threshold)
    return world


@jax.jit
def _rollout_logits(memory, keys, mu):
    def step(loop, key):
        carry, z = loop
        action = jnp.tanh(z[:, :1])
        carry, found = memory(carry, z, action, jnp.ones(len(z)))
        return (carry, found.latent.sample(key, 1.0)), found.end[..., 0]

    return jax.lax.scan(step, (memory.initial_carry((len(mu),)), mu), keys)[1]


def _death_logits(world: World) -> jax.Array:
    keys = jax.random.split(jax.random.key(1), _PROBE_STEPS)
    return _rollout_logits(world.memory, keys, world.initial_mu[:_PROBE_LANES])
