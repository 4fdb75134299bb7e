"""How well M predicts: nats per latent dimension, and deaths foreseen.

Shapes: N frames of a data set, B lanes, T frames of a lane.
"""

import heapq

import jax
import numpy as np

from dreamjax.memory import batches, loss
from dreamjax.memory.heads import total_logit
from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.model import Memory

LEAD_STEPS = 35  # an alarm this close before a death is a warning, not a false alarm


def memory_metrics(
    memory: Memory,
    latents: LatentSequences,
    *,
    threshold: float = 0.0,
    death_weight: float = 10.0,
    seed: int = 0,
) -> dict[str, float]:
    """How well M predicts whole episodes, teacher-forced; for episodes it was not trained on.

    Args:
      memory, latents: M, and the episodes.
      threshold: a death is predicted where the logit is above it.
      death_weight: as in the loss.
      seed: of z's noise.

    Returns:
      nll: nats per dimension of the next z (a density: it may be negative).
      nll_marginal, nll_copy: the same of Gaussians fitted to these very episodes, one that knows
        nothing, and one around the last z.
      reward_r2: the share of rewards' variance that M foresees; 0 where they do not vary.
      death_loss: the part of the loss that is about ends; this and what follows of an M with ends.
      deaths: how many episodes ended in death; what follows is 0 where none did.
      death_precision, death_recall: of predicted deaths, at exactly the fatal step.
      lead: mean steps from the first alarm in the last 35 steps to the death, if there was one.
      false_alarms: alarms more than that before a death or where none came, per 1000 steps.
    """
    nll, logit, reward = _teacher_forced(memory, latents, seed)
    frames = jax.tree.map(np.asarray, batches.on_device(latents, memory.num_ends))
    found = {"nll": _ratio((nll * frames.follows).sum(), frames.follows.sum())}
    found |= _baselines(frames)
    if reward is not None:
        spread = frames.reward.var()
        found["reward_r2"] = _ratio(spread - ((reward - frames.reward) ** 2).mean(), spread)
    if logit is not None:
        entropy = np.asarray(loss.cross_entropy(logit, frames.end, death_weight))
        found["death_loss"] = _ratio((entropy * frames.judged).sum(), frames.judged.sum())
        found |= _death_metrics((logit > threshold).any(axis=1), frames, latents)
    return found


def calibrated_threshold(memory: Memory, latents: LatentSequences, *, seed: int = 0) -> float:
    """The threshold at which `death_noise` 1 kills as often as the game did.

    M's death logit overstates the risk, because deaths weigh more in its loss. This is the number
    to subtract from it so that, over `latents`, whole episodes that `memory` was not trained on,
    the expected deaths are those that happened; 0 where none did. `seed` is of z's noise.
    """
    _, logit, _ = _teacher_forced(memory, latents, seed)
    if logit is None or not latents.terminated.any():
        return 0.0
    judged = np.asarray(batches.on_device(latents, memory.num_ends).judged) > 0
    logit = np.asarray(total_logit(logit))[judged].astype(float)
    deaths = float(latents.terminated.sum())
    from scipy import optimize, special  # nearly a second's import, for this alone

    excess = lambda threshold: special.expit(logit - threshold).sum() - deaths  # noqa: E731
    return float(optimize.brentq(excess, logit.min() - 50.0, logit.max() + 50.0))


def _teacher_forced(memory, latents, seed, lanes=100, length=200):
    """Of every frame nats [N], logits of ends [N, K], expected reward [N]; None: not predicted."""
    index, valid = _pack(latents.lengths, min(lanes, len(latents.lengths)), length)
    layout = batches.Layout(index.shape[1], len(valid) // length, length)
    frames = batches.on_device(latents, memory.num_ends)
    carry, told = memory.initial_carry((layout.lanes,)), []
    for batch, (places, real) in enumerate(zip(*layout.cut(index, valid), strict=True)):
        key = jax.random.fold_in(jax.random.key(seed), batch)
        carry, *found = _predict(memory, carry, frames, key, places, real)
        told.append(jax.device_get(found))
    order = np.argsort(index[:-1][valid])
    return jax.tree.map(lambda *parts: np.concatenate(parts)[valid][order], *told)


@jax.jit
def _predict(memory, carry, frames, key, index, valid):
    carry, nll, found = loss.predict_sequences(
        memory, carry, batches.gather(frames, key, index, valid)
    )
    return carry, nll, found.end, found.reward


def _pack(lengths: np.ndarray, lanes: int, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole episodes in lanes, L a multiple of `unit`: index [L + 1, lanes], valid [L, lanes]."""
    heap = [(0, lane, []) for lane in range(lanes)]
    for episode in np.argsort(-lengths, kind="stable"):
        total, lane, episodes = heap[0]
        heapq.heapreplace(heap, (total + int(lengths[episode]), lane, [*episodes, episode]))
    steps = -(-max(heap)[0] // unit) * unit
    index, valid = np.zeros((steps + 1, lanes), np.int32), np.zeros((steps, lanes), bool)
    for total, lane, episodes in heap:
        index[:total, lane] = batches.frames_of(np.array(episodes), lengths)
        valid[:total, lane] = True
    return index, valid


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else 0.0


def _baselines(frames: batches.Frames) -> dict[str, float]:
    """Nats per dimension of best-fitting Gaussians, expected over z's posteriors."""
    mu, logvar = frames.mu.astype(np.float32), frames.logvar.astype(np.float32)
    variance = np.exp(logvar)
    pairs = np.flatnonzero(frames.follows)
    step = (mu[pairs + 1] - mu[pairs]) ** 2 + variance[pairs + 1] + variance[pairs]
    spread = mu.var(axis=0) + variance.mean(axis=0)
    copy = step.mean(axis=0) if len(pairs) else spread
    nats = lambda v: float(0.5 * np.log(2 * np.pi * np.e * v).mean())  # noqa: E731
    return {"nll_marginal": nats(spread), "nll_copy": nats(copy)}


def _death_metrics(alarm, frames: batches.Frames, latents: LatentSequences) -> dict[str, float]:
    death, judged = frames.end.any(axis=1), frames.judged > 0
    alarm = alarm & judged
    leads, near = [], np.zeros_like(alarm)
    for start, end in zip(latents.first, latents.first + latents.lengths, strict=True):
        if death[end - 1]:
            last = slice(max(start, end - LEAD_STEPS), end)
            near[last] = True
            leads += list(end - 1 - last.start - np.flatnonzero(alarm[last])[:1])
    hits = (alarm & death).sum()
    return {
        "deaths": float(death.sum()),
        "death_precision": _ratio(hits, alarm.sum()),
        "death_recall": _ratio(hits, death.sum()),
        "lead": _ratio(sum(leads), len(leads)),
        "false_alarms": _ratio(1000 * (alarm & ~near).sum(), judged.sum()),
    }
