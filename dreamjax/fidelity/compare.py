"""How true a dream is: measured against the real game, before anything is evolved in it.

Legend: C controllers, D weights, E episodes, K steps ahead, L lanes, T steps of a plan, Z latent.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import agent
from dreamjax.controller.model import Controller
from dreamjax.controller.population import Dreamt, rollout
from dreamjax.dream.env import DreamEnv
from dreamjax.dream.unroll import follow, unroll
from dreamjax.dream.worlds import World
from dreamjax.game import policies
from dreamjax.memory.latents import LatentSequences
from dreamjax.tasks import Colour, Task
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
    """What a policy which never looks earns in the dream, and how long it lives.

    Args:
      world: the world.
      policy: a name in `policies.NAMES`.
      episodes: about how many dreams; a random policy's plans are dreamt `SHARED_STARTS` times.
      seed: of plans and dreams.
      temperature: tau; at 1 the dream is M's plain belief.
    """
    plans = _plans(world, policy, episodes, seed)
    rollouts = -(-episodes // len(plans))
    params = world.params(temperature, dtype=jnp.float32)
    return _play_plans(Blindfold(world.task), rollouts, jax.random.key(seed), params, plans)


def _plans(world: World, policy: str, episodes: int, seed: int) -> np.ndarray:
    """Actions by step, [P, T, A]; one plan is enough where every episode's is the same."""
    steps = range(world.task.max_steps)
    acts = (
        policies.begin(world.task, policy, np.random.default_rng([seed, number]))
        for number in range(-(-episodes // SHARED_STARTS))
    )
    plans = np.stack([np.stack([act(step) for step in steps]) for act in acts])
    return plans[:1] if (plans == plans[0]).all() else plans


@functools.partial(jax.jit, static_argnums=(0, 1))
def _play_plans(env: Blindfold, rollouts: int, key, params, plans) -> Dreamt:
    return rollout(key, env, params, _planned, plans, rollouts)


def hazard(lengths: np.ndarray, task: Task) -> tuple[list[float], list[float]]:
    """Deaths in 1,000 steps between the task's ages, and their standard errors.

    An error is that of the count of deaths, of one where there was none; both are 0 where nobody
    got so old.

    Args:
      lengths: steps survived, [E]; those of `task.max_steps` did not die.
      task: the game.
    """
    lengths, rates, errors = np.asarray(lengths), [], []
    for young, old in zip(task.ages, task.ages[1:], strict=False):
        steps = np.clip(lengths - young, 0, old - young).sum()
        died = ((lengths > young) & (lengths <= old) & (lengths < task.max_steps)).sum()
        rates.append(float(1000 * died / max(steps, 1)))
        errors.append(float(1000 * max(died, 1) ** 0.5 / steps) if steps else 0.0)
    return rates, errors


def controllers_between(best: jax.Array, count: int, seed: int) -> np.ndarray:
    """Controllers of every quality, [C, D]: mixtures of `best` and of chance, and chance alone.

    A third are random with standard deviation 0.1; the others go from mostly random to `best`.
    """
    rng, best = np.random.default_rng(seed), np.asarray(best)
    chance = rng.normal(0, 1, (count, len(best)))
    size = np.where(np.arange(count) < count // 3, 0.1 / best.std(), 1.0)[:, None]
    share = np.concatenate([np.zeros(count // 3), np.linspace(0.05, 1, count - count // 3)])
    share = share[:, None]
    mixed = share * best + np.sqrt(1 - share**2) * best.std() * size * chance
    return mixed.astype(np.float32)


def dreamt_scores(
    world: World,
    controller: Controller,
    weights: np.ndarray,
    rollouts: int,
    seed: int,
    temperature: float | None = None,
) -> np.ndarray:
    """Mean return in the dream of each of controllers [C, D], [C]."""
    played = dreamt_returns(world, controller, weights, rollouts, seed, temperature)
    return np.asarray(played.score).mean(axis=1)


def dreamt_returns(
    world: World,
    controller: Controller,
    weights: np.ndarray,
    rollouts: int,
    seed: int,
    temperature: float | None = None,
) -> Dreamt:
    """Each dream of controllers [C, D]: returns and lengths, [C, rollouts]; tau: `World.params`."""
    return _play_controllers(
        world.env(),
        controller,
        rollouts,
        jax.random.key(seed),
        world.params(temperature, dtype=jnp.float32),
        jnp.asarray(weights),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _play_controllers(env, controller, rollouts, key, params, weights) -> Dreamt:
    return rollout(key, env, params, controller, weights, rollouts)


class ExploitAlarm:
    """Real games while C evolves: warns when it gets better at the dream and worse at the game.

    It only watches; no real score ever chooses a controller.

    Args:
      world: the world that C is evolved in.
      controller: C's form.
      episodes: real games a check.
      seed: of those games.
      log: receives the warnings.
      workers: processes that play.
    """

    def __init__(
        self,
        world: World,
        controller: Controller,
        episodes: int,
        seed: int,
        log: Logbook,
        workers: int | None = None,
    ):
        how = {"policy": controller, "episodes": episodes, "seed": seed, "workers": workers}
        self._play = functools.partial(agent.evaluate, world, **how)
        self._log, self._best = log, None

    def __call__(self, weights: jax.Array, dreamt: float) -> dict[str, float]:
        """Play with the weights [D] whose return in the dream is `dreamt`; metric `real`."""
        returns = self._play(weights).returns
        real, error = returns.mean(), returns.std() / np.sqrt(len(returns))
        if self._best is None or real > self._best[1]:
            self._best = dreamt, real, error
        elif dreamt > self._best[0] and real < self._best[1] - 2 * np.hypot(error, self._best[2]):
            self._log.say(
                f"the dream is being exploited: return {self._best[0]:.0f} to {dreamt:.0f} in the "
                f"dream but {self._best[1]:.0f} to {real:.0f} in the game; raise "
                "--dream.temperature or train M on more episodes"
            )
        return {"real": float(real)}


def rank_correlation(dreamt: Sequence[float], real: Sequence[float]) -> dict[str, float]:
    """Spearman's rho of two scores of the same controllers, and its p value; 0 without an order."""
    if min(np.ptp(dreamt), np.ptp(real)) == 0:
        return {"rho": 0.0, "p": 1.0, "n": len(dreamt)}
    from scipy import stats  # a second's import, for this alone

    found = stats.spearmanr(dreamt, real)
    return {"rho": float(found.statistic), "p": float(found.pvalue), "n": len(dreamt)}


def reconstruction(world: World, frames: np.ndarray, batch: int = 128) -> dict[str, float]:
    """How well V gives frames back, and those few pixels of them that matter most.

    Args:
      world: V, and the colour of salient pixels.
      frames: uint8 [N, 64, 64, 3], frames that V was not trained on.
      batch: frames at once.

    Returns:
      `error`, squared error a frame as in V's loss, of the posterior's mean; `salient`, the
      salient pixels' part of it; `salient_variance`, that part for a V that always answers with
      the mean frame.
    """
    images = frames.astype(np.float32) / 255
    shown = np.concatenate(
        [
            pictures(world.vision, world.vision.encode(frames[i : i + batch])[0])
            for i in range(0, len(frames), batch)
        ]
    )
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
    """How often pictures flash, and for how long.

    Args:
      episodes: `flash` [T] of each episode.

    Returns:
      `rate`, flashes in 1,000 steps, and `length`, their median steps (0 where there are none).
    """
    lengths = []
    for found in episodes:
        edges = np.diff(np.concatenate(([0], found > 0, [0])))
        lengths += list(np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1))
    steps = sum(len(found) for found in episodes)
    return {
        "rate": 1000 * len(lengths) / steps,
        "length": float(np.median(lengths)) if lengths else 0.0,
    }


def by_age(counts: Sequence[np.ndarray], task: Task) -> list[float]:
    """Mean of what was counted in each frame [T] of episodes, between the task's ages; 0 of none.

    What a dream shows by age tells whether things come to be in it as they do in the game.
    """
    ages = np.concatenate([np.arange(len(count)) for count in counts])
    band, found = np.digitize(ages, task.ages) - 1, np.concatenate(counts)
    return [
        float(found[band == k].sum() / max((band == k).sum(), 1)) for k in range(len(task.ages) - 1)
    ]


def dreamt_pictures(
    world: World, policy: str, dreams: int, steps: int, seed: int, temperature: float = 1.0
) -> Iterator[np.ndarray]:
    """Pictures of each dream of a policy that never looks, to its end or for `steps`.

    Args:
      world, policy, seed, temperature: as for `dreamt_play`.
      dreams: how many.
      steps: of each at most.

    Returns:
      of one dream after another, float32 [T, 64, 64, 3] in [0, 1].
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


def open_loop(
    world: World,
    latents: LatentSequences,
    *,
    warm_up: int = 40,
    horizon: int = 60,
    episodes: int = 256,
    seed: int = 0,
) -> dict[str, list[float]]:
    """How a dream that starts in the middle of real episodes leaves them, step by step.

    M reads `warm_up` real steps, then dreams on with the recorded actions at tau = 1.

    Args:
      world: the world.
      latents: episodes that M was not trained on; those shorter than both lengths are left out.
      warm_up: real steps read first.
      horizon: K, steps dreamt.
      episodes: how many at most.
      seed: of all noise.

    Returns:
      for each of K steps `nll`, nats per dimension of the real z under the dream's next mixture,
      and `drift`, how far the dreamt z's mean lies from the real one's in real standard
      deviations, root mean square over Z.

    Raises:
      ValueError: no episode is long enough.
    """
    z, actions = _windows(latents, warm_up + horizon + 1, episodes, seed)
    nll, dreamt = _dream_on(world.memory, jax.random.key(seed), z, actions, warm_up)
    real = z[warm_up + 1 :]
    gap = (np.asarray(dreamt).mean(axis=1) - real.mean(axis=1)) / real.std(axis=(0, 1))
    return {
        "nll": [float(x) for x in nll],
        "drift": [float(x) for x in np.sqrt((gap**2).mean(axis=1))],
    }


def _windows(latents: LatentSequences, length: int, episodes: int, seed: int):
    """The first `length` steps of episodes: z [T, L, Z] sampled, actions [T, L, A]."""
    starts = latents.first[latents.lengths >= length][:episodes]
    if not len(starts):
        raise ValueError(
            f"no episode has {length} steps, the longest has {latents.lengths.max()}; "
            "shorten the horizon"
        )
    index = starts + np.arange(length)[:, None]
    return latents.draw(index, seed), latents.actions[index]


@functools.partial(jax.jit, static_argnums=4)
def _dream_on(memory, key, z, actions, warm_up):
    lanes = z.shape[1]

    def read(carry, now):
        carry, _ = memory(carry, now[0], now[1], jnp.full(lanes, now[2]))
        return carry, None

    def dream(loop, now):
        carry, imagined = loop
        action, real, key, age = now
        carry, found = memory(carry, imagined, action, jnp.full(lanes, age))
        imagined = found.latent.sample(key, 1.0)
        return (carry, imagined), (found.latent.nats(real).mean(), imagined)

    carry, age = memory.initial_carry((lanes,)), jnp.arange(len(z) - 1)
    carry, _ = jax.lax.scan(read, carry, (z[:warm_up], actions[:warm_up], age[:warm_up]))
    keys = jax.random.split(key, len(z) - warm_up - 1)
    future = actions[warm_up:-1], z[warm_up + 1 :], keys, age[warm_up:]
    return jax.lax.scan(dream, (carry, z[warm_up]), future)[1]
