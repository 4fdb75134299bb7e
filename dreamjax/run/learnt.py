"""Whether a phase has learnt anything: what V does not see, M cannot foresee, nor C learn from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dreamjax.dream.worlds import SEARCHES, load_world
from dreamjax.fidelity.compare import dreamt_play, dreamt_returns
from dreamjax.game.rollouts import part, shard_paths
from dreamjax.memory.latents import read_latents
from dreamjax.memory.metrics import memory_metrics
from dreamjax.run import lineage
from dreamjax.run.settings import CONTROLLERS, Run
from dreamjax.vision.model import pictures
from dreamjax.vision.training import MOVED

FRAMES = 1024  # that V is judged by
SHARDS = 8  # of which they are
BLIND = 0.95  # of the error of an episode's mean picture, from which on V sees nothing
EPISODES = 64  # that M is judged by, at most
DREAMS = 256  # of C, and of random play
SURE = 2.0  # standard errors by which C must be better


class NothingLearntError(ValueError):
    """A phase has learnt nothing; one line with a remedy."""


def check(run: Run, phase: str) -> None:
    """Raise NothingLearntError if a phase that is done has learnt nothing."""
    if phase in _JUDGES and (said := _JUDGES[phase](run)):
        raise NothingLearntError(f"{phase} has learnt nothing: {said}; or go on by --no-must-learn")


def _vision(run: Run) -> str | None:
    """V's error in what moves, against that of each episode's mean picture, which shows no move."""
    vision, (frames, means) = lineage.load_vision(run), _frames_and_means(run)
    seen = np.concatenate(
        [pictures(vision, vision.encode(frames[i : i + 64])[0]) for i in range(0, len(frames), 64)]
    )
    images = frames / np.float32(255)
    moves = np.abs(images - means).max(axis=-1) > MOVED
    error, spread = (float(((x - images)[moves] ** 2).sum()) for x in (seen, means))
    if error < BLIND * spread:
        return None
    error, spread = error / len(frames), spread / len(frames)
    return (
        f"V draws what moves with an error of {error:.3g}, where an episode's mean picture has "
        f"{spread:.3g}; give it more --vision.steps, or show it less by Task.crop, and begin in "
        "another run directory"
    )


def _frames_and_means(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Some recorded frames, uint8 [N, 64, 64, 3], and the mean picture of the episode of each."""
    paths = shard_paths(run.rollouts)
    chosen = paths[:: max(len(paths) // SHARDS, 1)]
    found = [_some(path, max(FRAMES // len(chosen), 1)) for path in chosen]
    frames, means = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return frames, means / np.float32(255)


def _some(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of one shard; means are of [0, 255]."""
    frames, lengths = part(path, "frames"), part(path, "lengths")
    means = np.stack([x.mean(axis=0) for x in np.split(frames, np.cumsum(lengths)[:-1])])
    places = np.linspace(0, len(frames) - 1, count).astype(int)
    return frames[places], means[np.repeat(np.arange(len(lengths)), lengths)[places]]


def _memory(run: Run) -> str | None:
    """M's nats for the next latents of held-out episodes, against those of one Gaussian."""
    world, latents = load_world(run.directory), read_latents(run.latents)
    _, held = latents.split(run.config.memory.held_out)
    few = held.select(np.arange(len(held.lengths)) < EPISODES)
    found = memory_metrics(world.memory, few)
    if found["nll"] < found["nll_marginal"]:
        return None
    return (
        f"M foretells the next latents with {found['nll']:.2f} nats a number, where one Gaussian "
        f"has {found['nll_marginal']:.2f}; give it more --memory.steps, or more episodes in "
        "another run directory"
    )


def _controller(run: Run) -> str | None:
    """What C earns in its dream, against random play there."""
    world = load_world(run.directory)
    player, world = world.player, run.config.dream.of(world)
    how = DREAMS, run.seed, world.params().temperature
    weights = np.asarray(player.weights)[None]
    own = np.asarray(dreamt_returns(world, player.controller, weights, *how).score)
    chance = np.asarray(dreamt_play(world, "uniform", *how).score)
    error = np.hypot(own.std(), chance.std()) / DREAMS**0.5
    if own.mean() > chance.mean() + SURE * error:
        return None
    return (
        f"C earns {own.mean():.4g} in its own dream, where random play earns {chance.mean():.4g}; "
        f"give it more --{SEARCHES[run.config.controller]}, or M more to learn from"
    )


_JUDGES: dict[str, Callable[[Run], str | None]] = {
    "train-vision": _vision,
    "train-memory": _memory,
    **dict.fromkeys(CONTROLLERS, _controller),
}
