"""Short dreams that begin in the middle of real games.

The longer a dream lasts, the further it drifts from the game: old dreams hold fewer dangers than
old games. A dream that begins where a real game was, and is left after a hundred steps for
another, stays close to it; what lies beyond is for a critic to say, as in Hafner et al., "Dream to
Control", arXiv:1912.01603. Not in the paper, whose dreams begin with a first frame and last till
death.
Legend: H LSTM units, L lanes (an episode each), M states, T steps, Z latent numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dreamjax.dream import DreamEnv, EnvParams, EnvState
from dreamjax.latents import LatentSequences
from dreamjax.memory import MDNRNN, lstm_step
from dreamjax.tasks import Task

NEWEST = 512  # episodes that are looked into: the last ones, which the best agent played
CHUNK = 100  # steps whose states are kept at once while M watches


@struct.dataclass
class Middles:
    """States of M in real episodes, before it consumes the frame at hand.

    Attributes:
      age: float32 [M], steps since the episode began.
      z: float32 [M, Z], the frame's latent.
      c, h: float32 [M, H].
    """

    age: jax.Array
    z: jax.Array
    c: jax.Array
    h: jax.Array


@struct.dataclass
class MiddleState(EnvState):
    """A dream's state, whose `time` is the age of the episode that it goes on from.

    Attributes:
      born: [] int32, `time` when the dream began.
    """

    born: jax.Array


@functools.partial(struct.dataclass, kw_only=True)
class MiddleParams(EnvParams):
    """`EnvParams`, and where and for how long to dream.

    Attributes:
      middles: the states that dreams begin in.
      horizon: [] int32, steps after which a dream is truncated.
    """

    middles: Middles
    horizon: jax.Array


class MiddleDream(DreamEnv):
    """`DreamEnv` whose dreams begin in `params.middles` and last at most `params.horizon` steps."""

    def reset_env(self, key: jax.Array, params: MiddleParams) -> tuple[jax.Array, MiddleState]:
        """Start where M was in a real episode."""
        start = jax.random.randint(key, (), 0, len(params.middles.age))
        at = jax.tree.map(lambda x: x[start], params.middles)
        age = at.age.astype(jnp.int32)
        state = MiddleState(time=age, z=at.z, carry=(at.c, at.h), born=age)
        return self.observe(key, state, None, params), state

    def is_truncated(self, state: MiddleState, params: MiddleParams) -> jax.Array:
        """Whether the horizon or the episode's end is reached."""
        return super().is_truncated(state, params) | (state.time - state.born >= params.horizon)


def middle_params(params: EnvParams, middles: Middles, horizon: int) -> MiddleParams:
    """`params` for a `MiddleDream`."""
    fields = {name: getattr(params, name) for name in params.__dataclass_fields__}
    return MiddleParams(**fields, middles=middles, horizon=jnp.int32(horizon))


def blank_middles(task: Task, count: int) -> Middles:
    """Shapes alone of `count` states, to load into."""
    Z, H = task.latent_size, task.hidden_size
    shapes = (count,), (count, Z), (count, H), (count, H)
    return Middles(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


def find_middles(memory: MDNRNN, latents: LatentSequences, count: int, seed: int) -> Middles:
    """States at `count` frames, drawn evenly from the newest episodes, or all of them.

    Args:
      memory: M; it watches the episodes.
      latents: encoded episodes, the newest last.
      count: M.
      seed: of the frames and of z's noise.
    """
    rng, ends = np.random.default_rng(seed), np.cumsum(latents.lengths)
    first = ends - latents.lengths
    frames = np.arange(first[-NEWEST:][0], ends[-1])
    frame = np.sort(rng.choice(frames, min(count, len(frames)), replace=False))
    episode = np.searchsorted(ends, frame, side="right")
    watched, lane = np.unique(episode, return_inverse=True)
    age = frame - first[episode]
    sizes = memory.latent_size, memory.hidden_size, memory.hidden_size
    found = [np.zeros((len(frame), size), np.float32) for size in sizes]
    carry = memory.initial_carry((len(watched),))
    for begin in range(0, age.max() + 1, CHUNK):
        ages = begin + np.arange(CHUNK)
        index = np.minimum(first[watched] + ages[:, None], ends[watched] - 1)
        mu, logvar = (x[index].astype(np.float32) for x in (latents.mu, latents.logvar))
        z = mu + np.exp(logvar / 2) * rng.standard_normal(mu.shape, np.float32)
        carry, before = _watch(memory, carry, z, latents.actions[index], ages)
        now = age // CHUNK == begin // CHUNK
        for kept, seen in zip(found, (z, *before), strict=True):
            kept[now] = np.asarray(seen)[age[now] - begin, lane[now]]
    return Middles(jnp.asarray(age, jnp.float32), *map(jnp.asarray, found))


@jax.jit
def _watch(memory, carry, z, action, ages):
    """The carry after T frames [T, L, ...], and (c, h) before each, [T, L, H]."""
    kernel, bias = memory.lstm_kernel[...], memory.lstm_bias[...]

    def step(carry, now):
        z, action, age = now
        age = jnp.full(len(z), age)
        inputs = memory.inputs(z, action, age)
        return lstm_step(kernel, bias, carry, inputs, age == 0), carry

    return jax.lax.scan(step, carry, (z, action, ages))
