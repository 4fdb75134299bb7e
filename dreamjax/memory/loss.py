"""M's loss: the next latent, the end and the reward, teacher-forced or after M's own guesses.

Paper: "MDN-RNN (M) Model" appendix. Shapes as in `batches`.
"""

import functools

import jax
import jax.numpy as jnp

from dreamjax.memory.batches import Sequences
from dreamjax.memory.heads import Prediction
from dreamjax.memory.model import Carry, Memory

LEAST_SPREAD = 0.1  # of rewards, in a task's scale of them: what varies less is not magnified


def predict_sequences(
    memory: Memory, carry: Carry, batch: Sequences
) -> tuple[Carry, jax.Array, Prediction]:
    """Teacher-forced: the last carry, nats per dimension of the next z, and predictions, [T, B]."""
    z = batch.z[:-1] if batch.read is None else batch.read
    carry, found = memory.sequence(carry, z, batch.action, batch.age, batch.mask)
    return carry, found.latent.nats(batch.z[1:]), found


def with_guesses(
    memory: Memory, carry: Carry, batch: Sequences, share: float, normal: jax.Array
) -> Sequences:
    """`batch` in which M reads its own guess of z at a `share` of the steps that follow another.

    Dreaming, M reads nothing but its guesses, which are never quite what a game shows; trained on
    real latents alone it trusts them too much. Scheduled sampling (Bengio et al.,
    arXiv:1506.03099) in two passes, as Mihaylova & Martins (arXiv:1906.07651): the first reads
    what came and guesses. Not in the paper. Of `normal` [T, B, 2 Z + 2], standard, come
    the guesses and the choice.
    """
    Z = batch.z.shape[-1]
    found = predict_sequences(jax.lax.stop_gradient(memory), carry, batch)[2].latent
    uniform = jax.scipy.special.ndtr(normal[..., Z:])
    guess = found.sample_from(uniform[..., :Z], normal[..., :Z], 1.0, uniform[..., -1])
    those = (uniform[..., -2] < share) & (batch.follows > 0)
    came = jnp.where(those[..., None], guess, batch.z[1:])  # of the step after each
    return batch.replace(read=jnp.concatenate((batch.z[:1], came[:-1])))


def memory_loss(
    memory: Memory,
    carry: Carry,
    batch: Sequences,
    death_weight: float = 10.0,
    axis: str | None = None,
) -> tuple[jax.Array, tuple[Carry, dict[str, jax.Array]]]:
    """Negative log likelihood of the next z in nats per dimension, plus the other heads' losses.

    Of rewards that is the share of their variance that is not foreseen, or, of rewards that hardly
    vary, the share of what would count as variance.

    The original's M also learns to predict the first z of the next episode in its stream; here that
    term is left out. An episode cut by the step limit says nothing of death at its last frame, so
    that is left out too.

    Args:
      memory: M; the dtype of its kernels is that of the products.
      carry: before the first frame, [B, H] of each part.
      death_weight: how many times more a step that led to an end counts.
      axis: of the devices that share the lanes, under `shard_map`; the losses of all add up.

    Returns:
      the loss, then the carry after the last frame and the loss's parts.
    """
    carry, nll, found = predict_sequences(memory, carry, batch)
    parts = {"nll": _mean(nll, batch.follows, axis)}
    if found.end is not None:
        entropy = cross_entropy(found.end, batch.end, death_weight)
        parts["death_loss"] = _mean(entropy, batch.judged, axis)
    if found.reward is not None:
        spread = jnp.maximum(batch.variance, (LEAST_SPREAD * memory.reward_scale) ** 2)
        error = (found.reward - batch.reward) ** 2 / spread
        parts["reward_loss"] = _mean(error, batch.valid, axis)
    loss = functools.reduce(jnp.add, parts.values())
    return loss, (carry, {"loss": loss, **parts})


def _mean(values: jax.Array, mask: jax.Array, axis: str | None) -> jax.Array:
    count = mask.sum() if axis is None else jax.lax.psum(mask.sum(), axis)
    return (values * mask).sum() / jnp.maximum(count, 1.0)


def cross_entropy(logit: jax.Array, end: jax.Array, weight: float) -> jax.Array:
    """Nats [...] of logits of ends [..., K], summed; `weight` times as much where an end came."""
    entropy = (jax.nn.softplus(logit) - end * logit) * (1 + (weight - 1) * end)
    return entropy[..., 0] if entropy.shape[-1] == 1 else entropy.sum(axis=-1)
