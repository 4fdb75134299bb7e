"""Whether M knows when it does not know: its doubt beside its error.

Legend: E episodes, T steps, Z latent numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dream.env import DreamEnv, EnvState
from dreamjax.dream.world import World
from dreamjax.fidelity.compare import rank_correlation
from dreamjax.memory.foresight import usual_warm_up
from dreamjax.memory.latents import LatentSequences


def doubt_foretells(
    world: World, latents: LatentSequences, *, episodes: int = 64, seed: int = 0
) -> dict[str, float]:
    """How well `info["doubt"]` foretells the error of the next latent, over real steps.

    M reads them frame by frame. An error is the squared distance from the mean that M predicts to
    what V saw.

    Args:
      world, latents: M, and episodes on which it should not have been trained.
      episodes: how many of them are used, at most.
      seed: of all that is drawn.

    Returns:
      Spearman's `rho`, `p` and `n` of doubt and error, without the first steps of an episode.
    """
    chosen = np.arange(min(episodes, len(latents.lengths)))
    lengths = latents.lengths[chosen]
    z, actions = latents.lanes(chosen, int(lengths.max()), seed)
    index = latents.first[chosen] + np.minimum(np.arange(len(z))[:, None], lengths - 1)
    env, params = world.env().with_doubt(), world.params(1.0, dtype=jnp.float32, dropout=0.0)
    doubt, expected = map(np.asarray, _read(env, params, jax.random.key(seed), z, actions))
    error = ((expected[:-1] - latents.mu[index[1:]].astype(np.float32)) ** 2).sum(axis=-1)
    judged = np.arange(1, len(z))[:, None] < lengths
    judged[: usual_warm_up(latents)] = False
    return rank_correlation(doubt[:-1][judged], error[judged])


@functools.partial(jax.jit, static_argnums=0)
def _read(env: DreamEnv, params, key, z, actions):
    """Doubt [T, E] of each step of episodes, and the z [T, E, Z] that M expects after it."""

    def step(state, action, key):
        carry, found = params.memory(state.carry, state.z, action, state.time)
        return env.doubt(key, state, action, params), carry, found.latent.expected()

    def read(carry, now):
        key, time, z, action = now
        state = EnvState(time=jnp.full(len(z), time), z=z, carry=carry)
        state = state.replace(dead=jnp.zeros(len(z), bool))
        doubt, carry, expected = jax.vmap(step)(state, action, jax.random.split(key, len(z)))
        return carry, (doubt, expected)

    keys, empty = jax.random.split(key, len(z)), params.memory.initial_carry(z.shape[1:2])
    return jax.lax.scan(read, empty, (keys, jnp.arange(len(z)), z, actions))[1]
