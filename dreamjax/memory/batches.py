"""What M trains on: lanes of frames, cut from a stream of whole episodes.

Shapes: Z latent size, A action size, B lanes, T frames; N frames of a data set, E its episodes; K
ways to end. Everything is time-major.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dreamjax.game.episodes import first_frames
from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.model import Mask

PER_FRAME = ("action", "age", "follows", "judged", "end", "reward")  # fields of `Steps`


class Steps(struct.PyTreeNode, kw_only=True):
    """What happened after each frame; float32."""

    action: jax.Array  # [..., A]
    age: jax.Array  # [...], frames since the episode's first
    follows: jax.Array  # [...], 1 where the next frame belongs to the same episode
    judged: jax.Array  # [...], 1 where it is known whether the action led to an end
    end: jax.Array  # [..., K], 1 where it did, for each way to end
    reward: jax.Array  # [...], what the action earned
    variance: jax.Array | float = 1.0  # [], of the rewards of the whole data set


class Frames(Steps, kw_only=True):
    """A data set on the device, [N]: what happened, and V's posteriors [N, Z] as encoded."""

    mu: jax.Array
    logvar: jax.Array


class Sequences(Steps, kw_only=True):
    """What M trains on: lanes of frames, [T, B]."""

    z: jax.Array  # float32 [T + 1, B, Z]; z[t + 1] is what z[t] is to predict
    valid: jax.Array  # float32 [T, B], 0 past a lane's end
    read: jax.Array | None = None  # float32 [T, B, Z], what M reads at each step; None is z itself
    mask: Mask | None = None  # dropout of each lane, [B, ...]; None is none


def on_device(latents: LatentSequences, num_ends: int) -> Frames:
    """A data set's arrays where they are used, and what each frame may teach of ends."""
    follows, last = np.ones(len(latents.mu), np.float32), latents.first + latents.lengths - 1
    came = np.zeros((len(follows), num_ends), np.float32)
    follows[last] = 0
    came[last] = np.equal.outer(latents.ends, np.arange(num_ends))
    found = Frames(
        mu=latents.mu,
        logvar=latents.logvar,
        action=latents.actions,
        age=np.float32(np.arange(len(follows)) - np.repeat(latents.first, latents.lengths)),
        follows=follows,
        judged=follows + came.sum(axis=1),
        end=came,
        reward=latents.rewards,
        variance=np.float32(latents.rewards.var()),
    )
    return jax.tree.map(jnp.asarray, found)


def gather(
    frames: Frames,
    key: jax.Array,
    index: jax.Array,
    valid: jax.Array,
    normal: Callable[..., jax.Array] = jax.random.normal,
) -> Sequences:
    """The frames at `index`, z drawn from their posteriors by `normal`; nothing invalid counts."""
    mu, logvar = (posterior[index].astype(jnp.float32) for posterior in (frames.mu, frames.logvar))
    z = mu + jnp.exp(logvar / 2) * normal(key, mu.shape, mu.dtype)
    now, valid = index[:-1], valid.astype(jnp.float32)
    told = {name: getattr(frames, name)[now] for name in PER_FRAME}
    told |= {name: told[name] * valid for name in ("follows", "judged")}
    return Sequences(z=z, valid=valid, variance=frames.variance, **told)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a stream of frames is cut: `lanes` side by side, `batches` x `length` frames each.

    A lane gets at least `sequence_length` frames, or all of fewer. Lanes differ by at most one
    frame; what lacks is padding.
    """

    lanes: int
    batches: int
    length: int

    @classmethod
    def of(cls, num_frames: int, batch_size: int, sequence_length: int) -> "Layout":
        """The layout of an epoch of `num_frames`; the sizes are `MemoryConfig`'s."""
        lanes = min(max(num_frames // sequence_length, 1), batch_size)
        longest = -(-num_frames // lanes)
        batches = -(-longest // sequence_length)
        return cls(lanes, batches, -(-longest // batches))

    def lanes_of(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frame at each place of each lane [batches * length + 1, lanes], and validity.

        A lane's last frame is followed by the next lane's first, so that it has a target.
        """
        edges = np.arange(self.lanes + 1) * len(order) // self.lanes
        places = edges[:-1] + np.arange(self.batches * self.length + 1)[:, None]
        return order[np.minimum(places, len(order) - 1)], places[:-1] < edges[1:]

    def cut(self, index: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index [batches, length + 1, lanes] and validity [batches, length, lanes]."""
        windows = np.arange(self.batches)[:, None] * self.length + np.arange(self.length + 1)
        return index[windows], valid[windows[:, :-1]]


def epoch_order(lengths: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The frames of all episodes, episodes shuffled: int32 [N], a function of seed and epoch."""
    return frames_of(np.random.default_rng((seed, epoch)).permutation(len(lengths)), lengths)


def frames_of(episodes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The frames of `episodes`, one after another; `lengths` are those of all episodes."""
    those = lengths[episodes]
    shift = np.repeat(first_frames(lengths)[episodes] - first_frames(those), those)
    return np.arange(len(shift), dtype=np.int32) + shift.astype(np.int32)
