"""How far M sees: the error of open-loop dreams, step by step, and whether they obey the actions.

Legend: A numbers in an action, D dreams of each episode, E episodes, K steps dreamt, T steps, Z
latent numbers.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.model import Memory

AHEAD = (1, 5, 15, 50, 150)  # steps at which the error is told
WARM_UP = 20  # real steps before a dream, or a third of the median episode if that is shorter
DREAMS = 8  # of each episode, the mean of which is what M expects


def foresight(
    memory: Memory,
    latents: LatentSequences,
    *,
    ahead: Sequence[int] = AHEAD,
    warm_up: int | None = None,
    episodes: int = 64,
    seed: int = 0,
) -> dict[str, list[float]]:
    """The k-step error of dreams that begin in real episodes and never look again.

    An error is the squared distance from what dreams expect (the mean of several, without their
    own spread) to what V saw, over the variance of what V saw in all of `latents`: 1 is that of the
    mean picture.

    Args:
      memory, latents: M, and episodes on which it should not have been trained.
      ahead: the steps k.
      warm_up: real steps that M reads before it dreams on, at tau = 1; None: `usual_warm_up`.
      episodes: how many of `latents` are used, at most.
      seed: of all that is drawn.

    Returns:
      `ahead`: those k that an episode is long enough for, and for each of them
      `error`: under the recorded actions;
      `control`: under the actions of another episode. An M that obeys has a larger one;
      `copy`: of the last picture that M read, held;
      `nll`: nats per dimension of the real z under the dream's next mixture.

    Raises:
      ValueError: no episode is long enough.
    """
    warm_up = usual_warm_up(latents) if warm_up is None else warm_up
    chosen = np.flatnonzero(latents.lengths > warm_up + min(ahead))[:episodes]
    if not len(chosen):
        raise ValueError(
            f"no episode has {warm_up + min(ahead) + 1} steps, the longest has "
            f"{latents.lengths.max()}; record longer ones"
        )
    lengths, first = latents.lengths[chosen], latents.first[chosen]
    ahead = [k for k in ahead if (lengths > warm_up + k).any()]
    z, actions = latents.lanes(chosen, warm_up + ahead[-1] + 1, seed)
    others = np.concatenate((actions[:warm_up], np.roll(actions[warm_up:], 1, axis=1)))
    key, seen = jax.random.key(seed), latents.mu.astype(np.float32)
    nll, obedient = _dream_on(memory, key, z, actions, warm_up)
    _, astray = _dream_on(memory, key, z, others, warm_up)
    spread, found = float(seen.var(axis=0).sum()), {"ahead": [float(k) for k in ahead]}
    for k in ahead:
        there = np.flatnonzero(lengths > warm_up + k)
        last, now = (seen[first[there] + warm_up + step] for step in (0, k))
        told = {
            "error": _error(obedient[k - 1], there, now) / spread,
            "control": _error(astray[k - 1], there, now) / spread,
            "copy": float(((last - now) ** 2).sum(axis=-1).mean()) / spread,
            "nll": float(nll[k - 1, :, there].mean()),
        }
        for name, value in told.items():
            found.setdefault(name, []).append(value)
    return found


def usual_warm_up(latents: LatentSequences) -> int:
    """Steps that leave most episodes long enough to be foreseen; at most `WARM_UP`, at least 1."""
    return int(np.clip(np.median(latents.lengths) // 3, 1, WARM_UP))


def foreseen(found: dict[str, list[float]]) -> str:
    """`foresight` in a line."""
    rows = zip(found["ahead"], found["error"], found["control"], found["copy"], strict=True)
    told = (f"{k:.0f}: {own:.2f} ({other:.2f}, {copy:.2f})" for k, own, other, copy in rows)
    return "error by steps ahead (with other actions, of the last picture) " + "; ".join(told)


def _error(dreamt: jax.Array, there: np.ndarray, real: np.ndarray) -> float:
    """Squared distance from what dreams z [D, E, Z] expect of the episodes `there` to `real`."""
    z = np.asarray(dreamt)[:, there]
    return float(((z.mean(axis=0) - real) ** 2 - z.var(axis=0, ddof=1) / len(z)).sum(-1).mean())


@functools.partial(jax.jit, static_argnums=4)
def _dream_on(memory, key, z, actions, warm_up):
    """Nats [K, D, E] of the real z under each dream's next mixture, and the dreamt z [.., Z]."""
    many = lambda x: jnp.broadcast_to(x, (DREAMS, *x.shape))  # noqa: E731

    def dream(loop, now):
        carry, imagined = loop
        action, real, key, age = now
        ages = jnp.broadcast_to(age, imagined.shape[:-1])
        carry, found = memory(carry, imagined, many(action), ages)
        imagined = found.latent.sample(key, 1.0)
        return (carry, imagined), (found.latent.nats(many(real)), imagined)

    steps = jnp.arange(len(z) - 1)
    seen = (
        z[:warm_up],
        actions[:warm_up],
        jnp.broadcast_to(steps[:warm_up, None], (warm_up, z.shape[1])),
    )
    carry, _ = memory.sequence(memory.initial_carry(z.shape[1:2]), *seen)
    keys = jax.random.split(key, len(z) - warm_up - 1)
    future = actions[warm_up:-1], z[warm_up + 1 :], keys, steps[warm_up:]
    return jax.lax.scan(dream, (jax.tree.map(many, carry), many(z[warm_up])), future)[1]
