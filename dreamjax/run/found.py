"""What a run finds out where neither the game nor the command line says it.

Each rule looks at the game or at the recordings before the phase that needs its answer. What was
found is printed and kept in the run's `found.json`; a world keeps of it what its game needs.
"""

import contextlib
import dataclasses
import functools
import json
from typing import Any

import numpy as np

from dreamjax.dream import worlds
from dreamjax.game.jobs import play, run_jobs
from dreamjax.game.probing import MOST, frames_until_seen
from dreamjax.game.rollouts import part, shard_paths
from dreamjax.memory.latents import LatentSequences, read_latents
from dreamjax.run import lineage
from dreamjax.run.places import CHANCE
from dreamjax.run.settings import Run, RunConfig
from dreamjax.task import Task
from dreamjax.tasks import TASKS
from dreamjax.training.devices import is_first, processes
from dreamjax.training.files import write_json

FILE = "found.json"
PROBES = 24  # moments of a game at which actions are tried
TRIED = 16  # episodes by whose length their number is bounded
LONG, LONGER = 1000, 4  # steps, and times those of the longest of them, that no episode exceeds
SOON = 1 / 3  # share of moments by which an action must show
HORIZONS = 50.0, 300.0  # steps that C looks ahead, at least and at most
DENSE = 0.1  # share of steps with a reward of their own, from which rewards come soon
SOON_PAID = 100.0  # steps that C looks ahead, at most, where rewards come soon
SLOW = 0.5  # of the variance of z, half the squared change of a step: below it z moves slowly
OLD = 0.01  # share of recorded frames in the older half of an episode's ages, to learn an age from


def known(run: Run, world: str | None = None) -> Run:
    """`run`, with what was found for it, or for its world or the `world` that it is given."""
    found = _read(run)
    return _with(run, found or ({} if world is None else worlds.found_in(world)))


def settled(run: Run, phase: str) -> Run:
    """`known`, once what `phase` needs is found too; the first process finds it."""
    return _with(run, processes().first_then_all(lambda: _found_for(run, phase)))


def _found_for(run: Run, phase: str) -> dict[str, Any]:
    found, rules = _read(run), _RULES.get(phase, {})
    wanted = [name for name in rules if name not in found and _is_open(run, name)]
    begins = phase == "collect" and run.task.to_find and not (run.directory / FILE).exists()
    if not ((wanted or (begins and _is_new(run))) and is_first()):
        return found
    for find in dict.fromkeys(rules[name] for name in wanted):
        found = find(_with(run, found)) | found
    if wanted:
        told = ", ".join(f"{name} {float(f'{found[name]:.4g}'):,g}" for name in wanted)
        run.log.say(f"found before {phase}: {told}")
    write_json(run.directory / FILE, found)
    return found


def _is_open(run: Run, name: str) -> bool:
    """Whether neither the game nor the command line says it, nor recordings older than the file."""
    settings, collect = run.config.memory, run.config.collect
    if name == "episodes":
        most = collect.max_frames
        return most is not None and collect.episodes * run.task.max_steps > most
    if not hasattr(settings, name):
        return name in run.task.to_find and _is_new(run)
    trained_on = settings.start_from not in (None, CHANCE) or lineage.was_given_a_world(run)
    return getattr(settings, name) is None and not trained_on


def _is_new(run: Run) -> bool:
    """Whether nothing was recorded before there was a file of what was found."""
    return (run.directory / FILE).exists() or not shard_paths(run.rollouts)


def _read(run: Run) -> dict[str, Any]:
    """What was found, as the run's file says, or else its world."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # of a damaged file nothing is known
        return dict(json.loads((run.directory / FILE).read_text()))
    return worlds.found_in(run.directory) if (run.directory / "world").exists() else {}


def _with(run: Run, found: dict[str, Any]) -> Run:
    """`run`, whose game and settings have what was found where they had nothing."""
    task, config = run.task.found(found), run.config
    if task != run.task:
        TASKS[task.name] = task
    left = {k: x for k, x in found.items() if getattr(config.memory, k, 0) is None}
    memory = dataclasses.replace(config.memory, **left)
    learn, collect = config.learn, config.collect
    if collect.max_frames is not None and "episodes" in found:
        collect = dataclasses.replace(collect, episodes=min(collect.episodes, found["episodes"]))
    if learn.gamma == run.task.gamma:  # filled in from the game as it was
        learn = dataclasses.replace(learn, gamma=task.gamma)
    config = dataclasses.replace(config, collect=collect, memory=memory, learn=learn)
    return dataclasses.replace(run, task=task, config=config)


def _frame_skip(run: Run) -> dict[str, Any]:
    """The fewest frames after which most actions show, and how long episodes may then be."""
    target = f"{frames_until_seen.__module__}:{frames_until_seen.__name__}"
    tried = run_jobs(run.task, target, range(0, 2 * PROBES, 2), workers=run.config.workers)
    with contextlib.closing(tried):
        seen = sorted(frames for _, frames in tried if frames is not None)
    skip = seen[int(SOON * len(seen))] if seen else 1
    if skip == MOST:
        run.log.say(f"{run.task.name}: actions hardly show within {MOST} frames")
    most = -(-run.task.max_steps // skip)
    if most > LONG:
        lengths = _tried(run.task.found({"frame_skip": skip, "max_steps": most}), run.config)
        most = min(most, max(LONG, LONGER * int(lengths.max())))
        run.log.say(f"{run.task.name}: episodes end after {most:,} steps at the latest")
    return {"frame_skip": skip, "max_steps": most}


@functools.lru_cache(maxsize=1)
def _tried(task: Task, config: RunConfig) -> np.ndarray:
    """Steps [TRIED] of some episodes of the policy that will be recorded."""
    seeds = range(2 * PROBES, 2 * (PROBES + TRIED), 2)
    return play(task, config.collect.policy, seeds, workers=config.workers).lengths


def _episodes(run: Run) -> dict[str, Any]:
    """How many episodes hold `collect.max_frames`, as long as those there are, or a few, are."""
    config, shards = run.config, shard_paths(run.rollouts)
    if shards:
        lengths = np.concatenate([part(path, "lengths") for path in shards])
    else:
        lengths = _tried(run.task, config)
    return {"episodes": max(1, int(config.collect.max_frames / lengths.mean()))}


def _rewards(run: Run) -> dict[str, Any]:
    """How large rewards are, and how far C must look ahead."""
    shards = shard_paths(run.rollouts)
    rewards = np.concatenate([part(path, "rewards") for path in shards]).astype(float)
    lengths = np.concatenate([part(path, "lengths") for path in shards])
    paid = rewards[rewards != 0]
    scale = float(np.sqrt((paid**2).mean())) if len(paid) else 1.0
    horizon = np.clip(lengths.mean(), *HORIZONS)
    if (np.abs(rewards - np.median(rewards)) > 1e-3 * scale).mean() > DENSE:
        horizon = min(horizon, SOON_PAID)
    return {"reward_scale": float(f"{scale:.2g}"), "gamma": round(1 - 1 / float(horizon), 4)}


def _memory_form(run: Run) -> dict[str, Any]:
    """Whether M foretells z or its change, and whether it is told the age."""
    latents = read_latents(run.latents)
    return {"residual": _is_slow(latents), "clock": _is_aged(latents, run.task.max_steps)}


def _is_slow(latents: LatentSequences) -> bool:
    """Whether z changes little from step to step, in the latents that V uses."""
    mu = latents.mu.astype(np.float32)
    follows = np.ones(len(mu), bool)
    follows[latents.first + latents.lengths - 1] = False
    before = np.flatnonzero(follows)
    used = mu.var(axis=0) > 0.01
    if not used.any() or not len(before):
        return False
    change = ((mu[before + 1] - mu[before]) ** 2).mean(axis=0) / 2
    return bool((change / mu.var(axis=0))[used].mean() < SLOW)


def _is_aged(latents: LatentSequences, most: int) -> bool:
    """Whether episodes end by themselves, and are recorded at every age."""
    ages = np.concatenate([np.arange(length) for length in latents.lengths])
    return bool(latents.terminated.mean() > lineage.ENDING and (ages > most / 2).mean() > OLD)


_RULES = {
    "collect": {"frame_skip": _frame_skip, "episodes": _episodes},
    "train-vision": {"reward_scale": _rewards, "gamma": _rewards},
    "train-memory": {"residual": _memory_form, "clock": _memory_form},
}
