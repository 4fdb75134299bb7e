"""What V and M know of Take Cover's fireballs: a planner that sees only what a probe reads of it.

    python -m experiments.probe --world take-cover

The probe, two hidden layers, is trained on the engine's own word of where fireballs will pass, and
reads what C reads. A diagnosis, as `experiments/planner.py`: nothing of it trains V, M or C.
Legend: F features, G games side by side, N steps, O offsets, P plans, T tics, W windows of tics.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from dreamjax.agent import evaluation_seeds
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.memory.model import reset
from dreamjax.run.scores import score
from dreamjax.task import FRAME_SHAPE
from dreamjax.tasks import TAKE_COVER
from dreamjax.training.settings import SettingError, require_positive, require_within
from experiments import planner

OFFSETS = np.arange(-256.0, 257.0, 16.0)  # along the wall, from the player
WINDOW = 4  # tics
WINDOWS = planner.LOOK_AHEAD // WINDOW
SPEED = 7.2  # the player's greatest
PATIENCE = 0.05  # a plan is better only if it is by so much, in hits to expect


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str = "take-cover"  # a shipped world's name, a folder or a run directory
    frames: int = 40_000  # to train the probe on, in each round; in the later ones it plays
    rounds: int = 2
    noise: float = 0.3  # share of those steps at which the player does anything at all
    steps: int = 4_000  # batches of 512 for the probe, in each round
    hidden: int = 256  # units of each of its layers
    games: int = 8  # side by side
    episodes: int = 32  # games to judge by
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "frames", "rounds", "steps", "hidden", "games", "episodes")
        require_within(self, noise="[0, 1]")


Told = tuple[
    np.ndarray, np.ndarray
]  # danger [..., W, O], and the player's own y and speed [..., 2]
Sides = Callable[[np.ndarray, list[planner.Seen]], list[int]]  # of features [G, F] and the truth


def main(config: Config) -> np.ndarray:
    """Steps survived by the planner that sees what the probe reads, [episodes]."""
    world, probe = load_world(config.world), None
    if world.task != TAKE_COVER:
        raise SettingError(f"world is of {world.task.name}, but fireballs fly in take-cover alone")
    data: list[tuple[np.ndarray, ...]] = []
    for number in range(config.rounds):
        choose = knowing if probe is None else functools.partial(reading, probe)
        rng = np.random.default_rng([config.seed, number])
        seeds = iter(range(2 * 10**11 * (number + 1), 2**62, 2))
        lived, rows = play(world, noisy(choose, rng, config.noise), config, seeds, config.frames)
        data.append(rows)
        print(f"round {number}: {len(rows[0])} steps, {len(lived)} games ended", flush=True)
        probe = trained(tuple(map(np.concatenate, zip(*data, strict=True))), config)
    seeds = iter(evaluation_seeds(config.seed, config.episodes))
    lived, _ = play(world, functools.partial(reading, probe), config, seeds)
    print("sees what the probe reads: {mean:.0f} ± {std:.0f}, n {n}".format(**score(lived)))
    return lived


def knowing(features: np.ndarray, seen: list[planner.Seen]) -> list[int]:
    """The sides of the planner that is told all."""
    del features
    return [planner.best_side(now) for now in seen]


def reading(probe: nnx.Module, features: np.ndarray, seen: list[planner.Seen]) -> list[int]:
    """The sides of the planner that is told what the probe reads of features [G, F]."""
    del seen
    danger, own = map(np.asarray, told(probe, features))
    return [safest_side(*now) for now in zip(danger, own, strict=True)]


def noisy(choose: Sides, rng: np.random.Generator, share: float) -> Sides:
    """As `choose`, but at a share of the steps any side."""

    def sides(features, seen):
        drawn = rng.integers(-1, 2, len(seen))
        return np.where(rng.random(len(seen)) < share, drawn, choose(features, seen)).tolist()

    return sides


def safest_side(danger: np.ndarray, own: np.ndarray) -> int:
    """The side to move to now: that of the plan with the fewest hits to expect.

    Args:
      danger: [W, O], the probability that a fireball passes.
      own: the player's own y and speed.
    """
    y, speed = float(own[0]), float(own[1])
    sides = planner.plans(planner.heading(y, speed))
    offset = planner.paths(y, speed, sides)[:, WINDOW - 1 :: WINDOW] - y  # [P, W]
    place = np.clip(np.rint((offset - OFFSETS[0]) / (OFFSETS[1] - OFFSETS[0])), 0, len(OFFSETS) - 1)
    chance = danger[np.arange(WINDOWS), place.astype(int)]
    hits = -np.log1p(-np.minimum(chance, 0.999)).sum(axis=1)
    best = hits.argmin() if hits.min() < hits[0] - PATIENCE else 0
    return int(sides[best, 0])


def danger_of(seen: planner.Seen) -> np.ndarray:
    """Whether a fireball will pass, bool [W, O]; all fly straight on."""
    away, along = planner.flights(seen)
    there = (np.abs(away) < planner.REACH)[..., None]
    hits = there & (np.abs(along[..., None] - OFFSETS) < planner.REACH)
    return hits.any(axis=1).reshape(WINDOWS, WINDOW, -1).any(axis=1)


def danger_and_own(seen: planner.Seen) -> Told:
    """What the probe learns to tell of a step: danger [W, O], and own [2]."""
    return danger_of(seen), np.array((seen.y, seen.speed))


class Probe(nnx.Module):
    """Two hidden layers over features [..., F], which say danger [..., W, O] and own [..., 2].

    Args:
      mean, std: [F], of the features.
      hidden: units of a layer.
      rngs: initialise it.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, hidden: int, rngs: nnx.Rngs):
        self.mean, self.std = nnx.Variable(jnp.asarray(mean)), nnx.Variable(jnp.asarray(std))
        self.first = nnx.Linear(len(mean), hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, WINDOWS * len(OFFSETS) + 2, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Logits of danger, then the player's y and speed in units near 1."""
        x = (features - self.mean[...]) / self.std[...]
        return self.out(nnx.relu(self.second(nnx.relu(self.first(x)))))


@nnx.jit
def told(probe: Probe, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the probe says of features [G, F]: danger [G, W, O], and y and speed [G, 2]."""
    out = probe(features)
    danger = jax.nn.sigmoid(out[:, :-2]).reshape(-1, WINDOWS, len(OFFSETS))
    return danger, out[:, -2:] * jnp.array([planner.WALLS[1], SPEED])


def trained(data: tuple[np.ndarray, ...], config: Config) -> Probe:
    """The probe that says `danger` [N, W, O] and `own` [N, 2] of `features` [N, F]."""
    features, danger, own = data
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-3
    probe = Probe(mean, std, config.hidden, nnx.Rngs(config.seed))
    fall = optax.cosine_decay_schedule(1e-3, config.steps)
    optimiser = nnx.Optimizer(probe, optax.adamw(fall, weight_decay=1e-4), wrt=nnx.Param)
    rng = np.random.default_rng(config.seed)
    for _ in range(config.steps):
        those = rng.integers(0, len(features), 512)
        _descend(probe, optimiser, *(part[those] for part in data))
    return probe


@nnx.jit
def _descend(probe: Probe, optimiser: nnx.Optimizer, features, danger, own) -> None:
    def loss(probe):
        out = probe(features)
        wanted = danger.reshape(len(danger), -1).astype(jnp.float32)
        entropy = optax.sigmoid_binary_cross_entropy(out[:, :-2], wanted).sum(axis=1).mean()
        error = (out[:, -2:] - own / jnp.array([planner.WALLS[1], SPEED])) ** 2
        return entropy + 10 * error.sum(axis=1).mean()

    optimiser.update(probe, nnx.grad(loss)(probe))


def play(
    world: World,
    choose: Sides,
    config: Any,
    seeds: Iterator[int],
    frames: int | None = None,
    tell: Callable[[planner.Seen], tuple[Any, ...]] = danger_and_own,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Play games of `seeds`, to the end of all or for so many `frames`.

    Args:
      world, choose, seeds, frames: see above.
      config: has `games` and `seed`.
      tell: what to keep of the truth of a step.

    Returns:
      the steps survived in those that ended; and of each step features [N, F] and what is told of
      it, [N, ...] of each, kept where `frames` are asked for.
    """
    player, lived, kept = Player(world, config, seeds), [], []
    while player.playing.any() and (frames is None or len(kept) < frames):
        features, seen = player.look()
        if frames is not None:
            kept += [(row, *tell(now)) for row, now in zip(features, seen, strict=True)]
        lived += player.step(choose(features, seen))
    player.close()
    return np.array(lived), tuple(map(np.array, zip(*kept, strict=True)))


class Player:
    """Games side by side, as V and M see them, and as the engine tells them.

    Attributes:
      playing: bool [G], those for which there was a seed.
    """

    def __init__(self, world: World, config: Any, seeds: Iterator[int]):
        self._models, self._seeds = (world.vision, world.memory), seeds
        self._carry = world.memory.initial_carry((config.games,))
        self._key, self._z = jax.random.key(config.seed), None
        self._envs = [planner.told_env() for _ in range(config.games)]
        self._frames = np.zeros((config.games, *FRAME_SHAPE), np.uint8)
        self._ages, self.playing = np.zeros(config.games, np.int32), np.ones(config.games, bool)
        for slot in range(config.games):
            self._begin(slot)

    def _begin(self, slot: int) -> None:
        seed = next(self._seeds, None)
        self.playing[slot], self._ages[slot] = seed is not None, 0
        if seed is not None:
            self._frames[slot] = self._envs[slot].reset(seed=seed)[0]

    def look(self) -> tuple[np.ndarray, list[planner.Seen]]:
        """Features [n, F] of the games that are played, and what there is to know of them."""
        self._key, key = jax.random.split(self._key)
        self._carry, self._z, features = _seen(
            key, self._models, self._carry, self._frames, self._ages
        )
        slots = np.flatnonzero(self.playing)
        return np.asarray(features)[slots], [planner.looked(self._envs[slot]) for slot in slots]

    def step(self, sides: list[int]) -> list[int]:
        """Move to a side in each game that is played; the lengths of those that ended."""
        slots, ended = np.flatnonzero(self.playing), []
        actions = np.zeros((len(self._envs), 1), np.float32)
        actions[slots, 0] = np.negative(sides)
        self._carry = _remembered(self._models[1], self._carry, self._z, actions, self._ages)
        self._ages[slots] += 1
        for slot in slots:
            frame, _, terminated, truncated, _ = self._envs[slot].step(actions[slot])
            self._frames[slot] = frame
            if terminated or truncated:
                ended.append(int(self._ages[slot]))
                self._begin(slot)
        return ended

    def close(self) -> None:
        """End the games."""
        for env in self._envs:
            env.close()


@jax.jit
def _seen(key, models, carry, frames, ages):
    """The carry, emptied where a game begins, the latents, and the features."""
    vision, memory = models
    mu, logvar = vision.encode(frames)
    z = mu + jnp.exp(logvar / 2) * jax.random.normal(key, mu.shape, mu.dtype)
    carry = reset(carry, ages == 0)
    return carry, z, memory.features(z, carry)


@jax.jit
def _remembered(memory, carry, z, actions, ages):
    return memory(carry, z, actions, ages)[0]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
