"""How true a dream is: measured against the real game, before anything is evolved in it.

Legend: C controllers, D weights, E episodes, L lanes, T steps of a plan, Z latent.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import agent
from dreamjax.controller.model import Controller
from dreamjax.controller.player import Player
from dreamjax.controller.population import Dreamt, rollout
from dreamjax.dream.env import DreamEnv
from dreamjax.dream.unroll import follow, unroll
from dreamjax.dream.world import World
from dreamjax.game import policies
from dreamjax.task import Task
from dreamjax.tasks import Colour
from dreamjax.training.logbook import Logbook
from dreamjax.vision.model import VAE, pictures

SHARED_STARTS = 32  # dreams of each plan of a random policy
BLINDFOLDED = ("uniform", "held", "blind")  # policies that need no eyes, so they dream as they play


@dataclasses.dataclass(eq=False)
class Blindfold(DreamEnv):
    """The dream for players who only count steps: the observation is the time, int32 []."""

    def observe(self, key, state, action, params):
        """Steps since the dream began."""
        del key, action, params
        return state.time


def _planned(plan: jax.Array, time: jax.Array) -> jax.Array:
    return plan[time]


def dreamt_play(
    world: World, policy: str, episodes: int, seed: int, temperature: float = 1.0
) -> Dreamt:
    """Returns and episode lengths of a blind policy in the dream.

    Args:
      world, policy: the dream, and a name in `policies.NAMES`.
      episodes: about how many dreams; a random policy's plans are dreamt `SHARED_STARTS` times.
      seed: of plans and dreams.
      temperature: tau; at 1 the dream is M's plain belief.
    """
    plans = _plans(world, policy, episodes, seed)
    rollouts = -(-episodes // len(plans))
    params = world.params(temperature, dtype=jnp.float32)
    return _play(Blindfold(world.task), _planned, rollouts, jax.random.key(seed), params, plans)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _play(env, policy, rollouts: int, key, params, weights) -> Dreamt:
    return rollout(key, env, params, policy, weights, rollouts)


def _plans(world: World, policy: str, episodes: int, seed: int) -> np.ndarray:
    """Actions by step, [P, T, A]; one plan is enough where every episode's is the same."""
    each = []
    for number in range(-(-episodes // SHARED_STARTS)):
        act = policies.begin(world.task, policy, np.random.default_rng([seed, number]))
        each.append([act(step) for step in range(world.task.max_steps)])
    plans = np.array(each)
    return plans[:1] if (plans == plans[0]).all() else plans


def hazard(lengths: np.ndarray, task: Task) -> tuple[list[float], list[float]]:
    """Deaths in 1,000 steps between the task's ages, and their standard errors.

    An error is that of the count of deaths, of one where there was none; both are 0 where nobody
    got so old. Of `lengths` [E], the steps survived, those of `task.max_steps` did not die.
    """
    lengths, rates, errors = np.asarray(lengths), [], []
    for young, old in itertools.pairwise(task.ages):
        steps = np.clip(lengths - young, 0, old - young).sum()
        died = ((lengths > young) & (lengths <= old) & (lengths < task.max_steps)).sum()
        rates.append(float(1000 * died / max(steps, 1)))
        errors.append(float(1000 * max(died, 1) ** 0.5 / steps) if steps else 0.0)
    return rates, errors


def controllers_between(best: jax.Array | np.ndarray, count: int, seed: int) -> np.ndarray:
    """Controllers of every quality, [C, D]: mixtures of `best` and of chance, and chance alone.

    A third are random with standard deviation 0.1; the others go from mostly random to `best`.
    """
    rng, best = np.random.default_rng(seed), np.asarray(best)
    chance = rng.normal(0, 1, (count, len(best)))
    size = np.where(np.arange(count) < count // 3, 0.1 / best.std(), 1.0)[:, None]
    share = np.append(np.zeros(count // 3), np.linspace(0.05, 1, count - count // 3))[:, None]
    mixed = share * best + np.sqrt(1 - share**2) * best.std() * size * chance
    return mixed.astype(np.float32)


def dreamt_scores(*args: Any, **kwargs: Any) -> np.ndarray:
    """Mean return in the dream of each of C weights, [C]; arguments as for `dreamt_returns`."""
    return np.asarray(dreamt_returns(*args, **kwargs).score).mean(axis=1)


def dreamt_returns(
    world: World,
    controller: Controller,
    weights: np.ndarray,
    rollouts: int,
    seed: int,
    temperature: float | None = None,
) -> Dreamt:
    """Each dream of C `weights` [C, D] of one controller: returns and lengths, [C, rollouts].

    They dream in `world`, at a `temperature` as of `World.params`; `seed` is of the dreams.
    """
    params = world.params(temperature, dtype=jnp.float32)
    return _play(world.env(), controller, rollouts, jax.random.key(seed), params, weights)


@dataclasses.dataclass(eq=False)
class ExploitAlarm:
    """Real games while C evolves: warns when it gets better at the dream and worse at the game.

    It only watches; no real score ever chooses a controller. `log` receives the warnings; other
    arguments are those of `agent.evaluate`, for each check.
    """

    world: World
    controller: Controller
    episodes: int
    seed: int
    log: Logbook
    workers: int | None = None
    _best: tuple | None = dataclasses.field(default=None, init=False)

    def __call__(self, weights: jax.Array, dreamt: float) -> dict[str, float]:
        """Play with the weights [D] whose return in the dream is `dreamt`; metric `real`."""
        asked = self.world, Player(self.controller, weights), self.episodes, self.seed
        returns = agent.evaluate(*asked, workers=self.workers).returns
        real, error = returns.mean(), returns.std() / np.sqrt(len(returns))
        if self._best is None or real > self._best[1]:
            self._best = dreamt, real, error
        elif dreamt > self._best[0] and real < self._best[1] - 2 * np.hypot(error, self._best[2]):
            self.log.say(
                f"the dream is being exploited: return {self._best[0]:.0f} to {dreamt:.0f} in the "
                f"dream but {self._best[1]:.0f} to {real:.0f} in the game; raise "
                "--dream.temperature or train M on more episodes"
            )
        return {"real": float(real)}


def rank_correlation(dreamt: Sequence[float], real: Sequence[float]) -> dict[str, float]:
    """Spearman's rho, p and n of `dreamt` and `real` scores of controllers; 0 without an order."""
    if min(np.ptp(dreamt), np.ptp(real)) == 0:
        return {"rho": 0.0, "p": 1.0, "n": len(dreamt)}
    from scipy import stats  # a second's import, for this alone

    found = stats.spearmanr(dreamt, real)
    return {"rho": float(found.statistic), "p": float(found.pvalue), "n": len(dreamt)}


def reconstruction(world: World, frames: np.ndarray, batch: int = 128) -> dict[str, float]:
    """How well V gives back frames uint8 [N, 64, 64, 3], and those few pixels that matter most.

    V, that of `world`, should not have been trained on them; it sees `batch` at once.

    Returns:
      `error`, squared error a frame as in V's loss, of the posterior's mean; `salient`, the
      salient pixels' part of it; `salient_variance`, that part for a V that always answers with
      the mean frame.
    """
    images = frames.astype(np.float32) / 255
    seen = (world.vision.encode(frames[i : i + batch])[0] for i in range(0, len(frames), batch))
    shown = np.concatenate([pictures(world.vision, mu) for mu in seen])
    salient = is_of(world.task.salient, images)[..., None]
    error, spread = (shown - images) ** 2, (images.mean(axis=0) - images) ** 2
    parts = {"error": error, "salient": error * salient, "salient_variance": spread * salient}
    return {name: float(part.sum(axis=(1, 2, 3)).mean()) for name, part in parts.items()}


def is_of(colour: Colour | None, pictures: np.ndarray) -> np.ndarray:
    """Which pixels of pictures [..., 64, 64, 3] in [0, 1] are of a colour; none are of None."""
    if colour is None:
        return np.zeros(pictures.shape[:-1], bool)
    return colour.where(np.moveaxis(pictures, -1, 0), rows=pictures.ndim - 3)


def flash(colour: Colour, pictures: np.ndarray) -> np.ndarray:
    """By how much pictures [..., 64, 64, 3] in [0, 1] are on a colour's side, [...]."""
    return (pictures @ np.asarray(colour.weights, np.float32)).mean(axis=(-2, -1)) - colour.above


def flashes(episodes: Sequence[np.ndarray]) -> dict[str, float]:
    """`rate`, flashes in 1,000 steps, and `length`, their median steps or 0, of `flash` [T]."""
    lengths = []
    for found in episodes:
        edges = np.diff(np.concatenate(([0], found > 0, [0])))
        lengths += list(np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1))
    rate = 1000 * len(lengths) / sum(map(len, episodes))
    return {"rate": rate, "length": float(np.median(lengths)) if lengths else 0.0}


def by_age(counts: Sequence[np.ndarray], task: Task) -> list[float]:
    """Mean of what was counted in each frame [T] of episodes, between the task's ages, or 0."""
    ages = np.concatenate([np.arange(len(count)) for count in counts])
    band, found = np.digitize(ages, task.ages) - 1, np.concatenate(counts)
    return [
        float(found[band == k].sum() / max((band == k).sum(), 1)) for k in range(len(task.ages) - 1)
    ]


def dreamt_pictures(
    world: World, policy: str, dreams: int, steps: int, seed: int, temperature: float = 1.0
) -> Iterator[np.ndarray]:
    """Pictures of one dream after another of a blind policy, to its end or for `steps`.

    Each is float32 [T, 64, 64, 3] in [0, 1]. Other arguments: as for `dreamt_play`.
    """
    plans = _plans(world, policy, dreams, seed)
    plans = plans[np.arange(dreams) % len(plans), :steps]
    env, params = Blindfold(world.task), world.params(temperature, dtype=jnp.float32)
    z, alive = map(np.asarray, _watch_plans(env, jax.random.key(seed), params, plans))
    return (decoded(world.vision, z[dream][alive[dream]]) for dream in range(dreams))


@functools.partial(jax.jit, static_argnums=0)
def _watch_plans(env: Blindfold, key, params, plans):
    """Latents [D, T, Z] of dreams that follow plans [D, T, A], and whether the dreamer lives."""

    def dream(key, plan):
        key_reset, key_steps = jax.random.split(key)
        _, state = env.reset_env(key_reset, params)
        return unroll(env, params, state, jax.random.split(key_steps, len(plan)), follow, plan)

    return jax.vmap(dream)(jax.random.split(key, len(plans)), plans)


def decoded(vision: VAE, z: np.ndarray, batch: int = 128) -> np.ndarray:
    """Pictures of latents [N, Z], float32 [N, 64, 64, 3] in [0, 1]."""
    padded = np.pad(z, ((0, -len(z) % batch), (0, 0)))
    parts = [pictures(vision, padded[i : i + batch]) for i in range(0, len(padded), batch)]
    return np.concatenate(parts)[: len(z)]
