"""Encoded play: what V saw in every frame, which is all that M ever sees (paper section 3, step 3).

Original: `doomrnn/series.py`. One file for each shard of rollouts, under the same name.
Shapes: N frames, E episodes (laid one after another), Z latent, A numbers in an action.
"""

import dataclasses
import hashlib
from math import prod
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from dreamjax.game import rollouts
from dreamjax.game.episodes import Episodes, load
from dreamjax.task import FRAME_SHAPE
from dreamjax.training import files
from dreamjax.training.checkpoint import digest
from dreamjax.training.logbook import Logbook
from dreamjax.training.processes import Processes
from dreamjax.vision.model import VAE

FORMAT = 1
_CPU_BATCH = 16  # frames encoded together: what they need stays in a CPU's cache
_AHEAD = 1e9  # bytes of frames to read ahead
_CALL = 512  # frames in one compiled call
_STRINGS = ("vision", "profile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSequences(Episodes):
    """Whole episodes as V saw them."""

    mu: np.ndarray  # float16 [N, Z]; V's posterior of each frame
    logvar: np.ndarray  # float16 [N, Z]
    vision: str  # digest of the V that encoded them

    @property
    def name(self) -> str:
        """A name for these episodes; it changes when they do."""
        return name_of(len(self.mu), self.seeds.tolist(), self.lengths.tolist())

    def starts(self, n: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """`(mu, logvar)`, float32 [n, Z]: first frames of the first `n` episodes, or of all."""
        first = self.first[:n]
        return tuple(x[first].astype(np.float32) for x in (self.mu, self.logvar))

    def draw(self, index: np.ndarray, seed: int) -> np.ndarray:
        """z of the frames at `index` [...], drawn from their posteriors: float32 [..., Z]."""
        mu, logvar = (x[index].astype(np.float32) for x in (self.mu, self.logvar))
        noise = np.random.default_rng(seed).standard_normal(mu.shape, np.float32)
        return mu + np.exp(logvar / 2) * noise

    def lanes(self, episodes: np.ndarray, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """z [T, E, Z], drawn, and actions [T, E, A]; an ended episode repeats its last frame."""
        step = np.arange(steps)[:, None]
        index = self.first[episodes] + np.minimum(step, self.lengths[episodes] - 1)
        return self.draw(index, seed), self.actions[index]

    def boundary(self, held_out: float = 0.1) -> float:
        """Below what place `split` holds seeds out, about `held_out`; ValueError of one."""
        place = places(self.seeds)
        if len(place) < 2:
            raise ValueError(f"cannot hold out one of {len(place)} episodes; collect more")
        return float(np.clip(held_out, np.nextafter(place.min(), 1), place.max()))

    def split(self, held_out: float = 0.1) -> tuple[Self, Self]:
        """Divide whole episodes into `(train, held)`, at least one on each side.

        An episode is held out by its own seed alone. So whatever is recorded later, what was held
        out from one M can judge all of its descendants: those below the least `boundary` of all.
        Raises as `boundary`.
        """
        held = places(self.seeds) < self.boundary(held_out)
        return self.select(~held), self.select(held)

    def below(self, boundary: float) -> Self:
        """The episodes every M of this `boundary` was kept from; ValueError if none."""
        held = places(self.seeds) < boundary
        if not held.any():
            raise ValueError(
                f"M may have been trained on each of these {len(held)} episodes, as it held out "
                f"but {boundary:.3g} of all; collect more, of which some are held out"
            )
        return self.select(held)


def name_of(frames: int, *identity: Any) -> str:
    """A name for so many frames, of what tells them from others."""
    sha = hashlib.sha256(repr(identity).encode()).hexdigest()
    return f"{frames:,} frames ({sha[:8]})"


def places(seeds: np.ndarray) -> np.ndarray:
    """A place in [0, 1) for each seed [E], as good as drawn at random (the SplitMix64 hash)."""
    with np.errstate(over="ignore"):
        x = seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) / 2.0**53


def encode_rollouts(
    vae: VAE,
    rollouts_directory: Path | str,
    latents_directory: Path | str,
    *,
    log: Logbook | None = None,
    processes: Processes | None = None,
) -> None:
    """Encode every shard of rollouts that this V has not encoded yet; again goes on after a stop.

    Args:
      vae, log, processes: V; as for `collecting.collect`.
      rollouts_directory: shards written by `collecting.collect`; ValueError if there are none.
      latents_directory: receives one file for each shard.
    """
    log, processes = log or Logbook(quiet=True), processes or Processes()
    counts = rollouts.frame_counts(rollouts_directory, log.say, processes)
    if not counts:
        raise ValueError(f"no rollouts in {rollouts_directory}; collect some first")
    latents_directory, vision = files.writable(latents_directory), digest(vae)
    own = processes.own(list(counts))
    todo = [path for path in own if not _is_encoded(path, latents_directory / path.name, vision)]
    total, left = (sum(counts[path] for path in paths) for paths in (own, todo))
    with log.progress("encode", total, "frames", total - left) as bar:
        ahead = _AHEAD / (max(counts.values()) * prod(FRAME_SHAPE))
        for path, shard in rollouts.read_all(todo, say=log.say, ahead=ahead):
            mu, logvar = (part.astype(np.float16) for part in posteriors(vae, shard.frames))
            kept = {name: getattr(shard, name) for name in Episodes.names()}
            found = LatentSequences(mu=mu, logvar=logvar, vision=vision, **kept)
            _write(latents_directory / path.name, found)
            bar.advance(counts[path])
    processes.wait("all frames are encoded")


def posteriors(vae: VAE, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(mu, logvar)`, float32 [N, Z] each, of many frames uint8 [N, 64, 64, 3]."""
    padding = np.zeros((-len(frames) % _CALL, *FRAME_SHAPE), np.uint8)
    batch = _CPU_BATCH if jax.default_backend() == "cpu" else _CALL
    calls = np.concatenate([frames, padding]).reshape(-1, _CALL // batch, batch, *FRAME_SHAPE)
    pairs = [jax.device_get(_encode(vae, batches)) for batches in calls]
    joined = map(np.concatenate, zip(*pairs, strict=True))
    mu, logvar = (part.reshape(-1, part.shape[-1])[: len(frames)] for part in joined)
    return mu, logvar


@jax.jit
def _encode(vae: VAE, batches: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.map(vae.encode, batches)


def _write(path: Path, latents: LatentSequences) -> None:
    with files.replacing(path) as file:
        np.savez(file, format=FORMAT, **vars(latents))


def _is_encoded(shard: Path, path: Path, vision: str) -> bool:
    """Whether `path` holds what the V with digest `vision` saw in a shard."""
    try:
        found = _read(path)
        same = np.array_equal(found.actions, rollouts.part(shard, "actions"))
        return same and found.vision == vision and len(found.mu) == len(found.actions)
    except ValueError:
        return False


def encoded_by(path: Path) -> str:
    """The digest of the V of a file of latents, little else of which is read; "" of a bad one."""
    try:
        return load(path, ["vision"], FORMAT)["vision"]
    except (ValueError, OSError):
        return ""


def _read(path: Path) -> LatentSequences:
    try:
        return LatentSequences(**load(path, LatentSequences.names(), FORMAT))
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; encode again") from None


def read_latents(directory: Path | str) -> LatentSequences:
    """All encoded episodes of a directory; ValueError if none, one is bad, or of several Vs."""
    parts = {path: _read(path) for path in rollouts.shard_paths(directory)}
    if not parts:
        raise ValueError(f"no latents in {directory}; encode some rollouts first")
    for name in _STRINGS:
        found = {getattr(part, name): path.name for path, part in parts.items()}
        if len(found) > 1:
            listed = ", ".join(f"{file} of {value[:20]}" for value, file in found.items())
            raise ValueError(f"{directory} mixes more than one {name} ({listed}); encode again")
    names = set(LatentSequences.names()) - set(_STRINGS)
    columns = {name: [getattr(part, name) for part in parts.values()] for name in names}
    joined = {name: np.concatenate(column) for name, column in columns.items()}
    return dataclasses.replace(next(iter(parts.values())), **joined)
