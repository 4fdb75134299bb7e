"""Start states from the middle of real episodes, from which dreams can go on.

A dream that begins at a first frame soon leaves what M knows, and a C that learns in it learns to
live there. Short dreams from the middle of real episodes stay near the game (Janner et al., "When
to Trust Your Model", arXiv:1906.08253). Not in the paper.
Legend: E episodes, F frames, H units of M, N start states, Z latent numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.model import Carry, Memory

AT_ONCE = 250  # start states that are found together
ROUND = 512  # steps, a multiple of which is scanned, so that few lengths are compiled
OLDEST = 0.998  # share of the episodes that are over by the greatest age of one


class StartStates(struct.PyTreeNode):
    """What M remembers in the middle of real episodes, and what V sees."""

    age: jax.Array  # float32 [N], steps since the episode began
    z: jax.Array  # float32 [N, Z], the latent of that step
    carry: Carry  # what M remembers of the steps before it, [N, H] of each part


def blank_start_states(memory: Memory, count: int) -> StartStates:
    """`count` start states of an M as shapes alone, to load into."""

    def shaped(memory):
        z = jnp.zeros((count, memory.latent_size), jnp.float32)
        return StartStates(jnp.zeros(count, jnp.float32), z, memory.initial_carry((count,)))

    return jax.eval_shape(shaped, memory)


def start_states_of(
    memory: Memory, latents: LatentSequences, count: int, seed: int = 0
) -> StartStates:
    """`count` start states of encoded episodes; `seed` is of their choice, and of V's noise.

    All ages are as likely, however few the episodes are that grew so old: whoever lives to the end
    is in each age as long.
    """
    rng = np.random.default_rng(seed)
    by_length = np.argsort(latents.lengths, kind="stable")
    lengths = latents.lengths[by_length]
    ages = np.sort((rng.random(count) * np.quantile(lengths, OLDEST)).astype(np.int32))
    younger = np.searchsorted(lengths, ages, side="right")  # episodes that are over by then
    episodes = by_length[younger + (rng.random(count) * (len(lengths) - younger)).astype(int)]
    found = []
    for start in range(0, count, AT_ONCE):
        those = slice(start, start + AT_ONCE)
        found.append(
            start_states_at(memory, latents, episodes[those], ages[None, those], seed + start)
        )
    order = rng.permutation(count)  # of which any beginning is a fair sample
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[order], *found)


def start_states_at(
    memory: Memory, latents: LatentSequences, episodes: np.ndarray, ages: np.ndarray, seed: int = 0
) -> StartStates:
    """The start states at `ages` [n, E] of `episodes` [E], n * E in that order."""
    step = np.arange(-(-(ages.max() + 1) // ROUND) * ROUND)[:, None]
    frames = latents.first[episodes] + np.minimum(step, latents.lengths[episodes] - 1)
    z = latents.draw(frames, seed)
    carry = _remembered(memory, z, latents.actions[frames], ages)
    seen = z[ages, np.arange(len(episodes))]
    found = StartStates(jnp.asarray(ages, jnp.float32), jnp.asarray(seen), carry)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


@jax.jit
def _remembered(memory: Memory, z: jax.Array, action: jax.Array, ages: jax.Array) -> Carry:
    """What M remembers before each of `ages` [n, E] in episodes [T, E]: [n, E, H] of each part."""

    def step(loop, now):
        carry, kept = loop
        time, z, action = now
        there = (ages == time)[..., None]
        kept = jax.tree.map(lambda new, old: jnp.where(there, new, old), carry, kept)
        age = jnp.full(ages.shape[1:], time)
        carry, _ = memory.step(carry, memory.inputs(z, action, age), age == 0)
        return (carry, kept), None

    first = memory.initial_carry(ages.shape[1:]), memory.initial_carry(ages.shape)
    return jax.lax.scan(step, first, (jnp.arange(len(z), dtype=jnp.int32), z, action))[0][1]
