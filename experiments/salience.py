"""What z, c and h know of salient things, as far as a linear controller can read it.

    python experiments/salience.py --world take-cover --games 30

A ridge regression foretells from them how many salient pixels stand in each band of columns of the
picture that is being seen; half of the games teach it, the others judge it. In a game in which
things come nearer, few pixels are far away. No label comes from the engine.
Legend: B bands, F features, N frames, T steps of a game, Z latent.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax.agent import evaluation_seeds
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.fidelity.compare import is_of
from dreamjax.game.env import make_env
from dreamjax.game.policies import play_steps
from dreamjax.memory.latents import posteriors
from dreamjax.memory.model import Memory
from dreamjax.training.settings import require_positive
from dreamjax.vision.training import BANDS

SIZES = {"1 to 5": (1, 5), "6 to 12": (6, 12), "more": (13, 64 * 64)}  # salient pixels of a band
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the features' variance, added to it
FLASH = 0.05  # share of a picture from which on it flashes
LENGTH = 256  # steps, a multiple of which is compiled

Game = tuple[np.ndarray, np.ndarray]  # frames uint8 [T, 64, 64, 3] and actions [T, A]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str  # a run, or a world's name or folder
    games: int = 30  # of the policy `varied`
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "games")


def main(config: Config) -> dict[str, dict[str, float]]:
    """Print, and return, how well the places of salient things are read."""
    world = load_world(config.world)
    if world.task.salient is None:
        raise SystemExit(f"{world.task.name} names no salient colour")
    games = []
    with contextlib.closing(make_env(world.task)) as env:
        for seed in evaluation_seeds(config.seed, max(2, config.games)):
            frames, actions, *_ = zip(*play_steps(env, "varied", seed), strict=True)
            games.append((np.stack(frames), np.stack(actions)))
    found = salience_readout(world, games, config.seed)
    print(f"{'salient pixels':<20}{'share':>8}{'read from z':>14}{'from all C reads':>18}")
    for size, row in found.items():
        print(f"{size:<20}{row['share']:>8.3f}{row['z']:>14.2f}{row['C']:>18.2f}")
    return found


def salience_readout(
    world: World, games: Sequence[Game], seed: int = 0
) -> dict[str, dict[str, float]]:
    """How well the places of salient things are read from z alone, and from all that C reads.

    Args:
      world, games: V, M and the salient colour; at least two games, which V was not trained on.
      seed: of V's noise.

    Returns:
      for each of `SIZES`, of the bands that are so or empty: the `share` of those that are so, and
      the average precision, from `share` to 1, with which `z` and all that `C` reads find them.
      For "all": the share of the variance of log(1 + pixels) that is foretold, 0 for `share`.
      For each of `SIZES` + ", in a flash": the same of pictures that flash, if there are any.
    """
    noise = np.random.default_rng(seed)
    rows = [_seen(world, frames, actions, noise) for frames, actions in games]
    half = sum(len(shown) for _, shown, _ in rows[: len(rows) // 2])
    features, shown, flash = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    pixels, size = np.log1p(shown), world.memory.latent_size
    parts = {"z": features[:, :size], "C": features}
    read = {name: _foretold(part, pixels, half) for name, part in parts.items()}
    told, judged = pixels[half:], shown[half:]
    spread = ((told - told.mean(axis=0)) ** 2).sum()
    found = {"all": {"share": 0.0}}
    found["all"] |= {name: 1 - ((x - told) ** 2).sum() / spread for name, x in read.items()}
    pictures = {"": np.full(len(judged), True)}
    if (flash[half:] > FLASH).any():
        pictures[", in a flash"] = flash[half:] > FLASH
    for when, looked_at in pictures.items():
        for label, (least, most) in SIZES.items():
            there = (judged >= least) & (judged <= most)
            asked = (there | (judged == 0)) & looked_at[:, None]
            scores = {name: average_precision(x[asked], there[asked]) for name, x in read.items()}
            found[label + when] = {"share": there[asked].mean(), **scores}
    return {label: {name: float(x) for name, x in row.items()} for label, row in found.items()}


def average_precision(score: np.ndarray, there: np.ndarray) -> float:
    """Mean precision at each of `there` [N] in the order of `score` [N]; NaN where none is."""
    hits = there[np.argsort(-score, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean()) if hits.any() else float("nan")


def _seen(world: World, frames: np.ndarray, actions: np.ndarray, noise: np.random.Generator):
    """Of each step of a game: what C reads [T, F], salient pixels by band [T, B], flash [T]."""
    mu, logvar = posteriors(world.vision, frames)
    z = mu + np.exp(logvar / 2) * noise.standard_normal(mu.shape, np.float32)
    steps, spare = len(frames), -len(frames) % LENGTH
    z, actions = (np.pad(x, ((0, spare), (0, 0))) for x in (z, np.float32(actions)))
    features = np.asarray(_features(world.memory, z, actions))[:steps]
    shown, salient = frames / np.float32(255), world.task.salient
    there = is_of(salient, shown).reshape(steps, 64, BANDS, -1).sum(axis=(1, 3))
    if salient.flash is None:
        return features, there, np.zeros(steps, np.float32)
    return features, there, salient.flash_share(np.moveaxis(shown, -1, 0), rows=1).reshape(steps)


@jax.jit
def _features(memory: Memory, z: jax.Array, actions: jax.Array) -> jax.Array:
    def step(carry, now):
        z, action, age = now
        return memory(carry, z, action, age)[0], memory.features(z, carry)

    return jax.lax.scan(step, memory.initial_carry(), (z, actions, jnp.arange(len(z))))[1]


def _foretold(features: np.ndarray, wanted: np.ndarray, half: int) -> np.ndarray:
    """`wanted` [N - half, B] by a ridge regression that the first `half` rows taught.

    Of several strengths it has the one that does best on a quarter of these, taught by the others.
    """
    mean, std = features[:half].mean(axis=0), features[:half].std(axis=0) + 1e-6
    x, quarter = np.asarray((features - mean) / std, np.float64), 3 * half // 4

    def error(ridge):
        found = _ridge(x[:quarter], wanted[:quarter], ridge)(x[quarter:half])
        return ((found - wanted[quarter:half]) ** 2).sum()

    return _ridge(x[:half], wanted[:half], min(RIDGES, key=error))(x[half:])


def _ridge(x: np.ndarray, wanted: np.ndarray, ridge: float) -> Callable[[np.ndarray], np.ndarray]:
    """The regression that rows x [N, F] and wanted [N, B] teach."""
    level = wanted.mean(axis=0)
    gram = x.T @ x + ridge * len(x) * np.eye(x.shape[1])
    slope = np.linalg.solve(gram, x.T @ (wanted - level))
    return lambda rows: rows @ slope + level


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
