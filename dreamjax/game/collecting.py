"""Recording whole episodes of a policy, shard by shard (paper section 3, step 1).

Original: `doomrnn/extract.py`, `carracing/extract.py`.
"""

import contextlib
import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax.game import policies, rollouts
from dreamjax.game.env import RealGame, engine_seed, package
from dreamjax.game.jobs import run_jobs
from dreamjax.game.workers import worker_count
from dreamjax.task import Task, by_value, differs
from dreamjax.training import files
from dreamjax.training.logbook import Logbook
from dreamjax.training.processes import Processes
from dreamjax.training.settings import check_guarded

EPISODE_BYTES = 10_000  # less than most games need; the paper's need about a million
FAR_OFF = 30  # times by which rewards may differ from the task's reward_scale
# Fields of a game that shape its recordings.
SHAPES = ("profile", "actions", "picture", "crop", "ends", "frame_skip", "max_steps", "seeds")
MAX_TRIES = 1000  # episodes played for each one kept before `min_steps` counts as too high
_CLAIMS = {"task", "profile", "max_steps", "policy", "seed", "shard_episodes", "min_steps"}


@dataclasses.dataclass(frozen=True)
class Collection:
    """What a directory of shards holds."""

    directory: Path
    shards: int
    episodes: int  # in all shards
    frames: int  # in all episodes


@dataclasses.dataclass(frozen=True)
class _ShardJob:
    """One shard to record: all that its content depends on, and where it goes."""

    path: Path
    task: Task
    policy: str
    seed: int
    shard: int
    episodes: int
    min_steps: int


def collect(
    task: Task,
    directory: Path | str,
    episodes: int,
    seed: int,
    *,
    policy: str = "held",
    shard_episodes: int = 16,
    min_steps: int = 0,
    workers: int | None = None,
    log: Logbook | None = None,
    processes: Processes | None = None,
) -> Collection:
    """Record episodes of a policy; running it again finishes what is missing.

    Shard i depends on the task, `seed`, i, `shard_episodes`, `policy` and `min_steps` alone. A
    later call may ask for more episodes; a shard that was the last, partial one is then made
    again, whole, with the same episodes first.

    Args:
      task: the game.
      directory: receives `shard-00000.npz`... and `collection.json`.
      episodes, seed: how many to keep in all; any integer.
      policy: a name in `policies.NAMES`, or "module:function" of your own: from the actions and
        a random generator it makes `(step, frame) -> action`. The paper's is `held`.
      shard_episodes: episodes of a shard.
      min_steps: shorter episodes are dropped and others played; the paper's data has 101.
      workers, log: processes, None is one a core; shows progress and receives the speed.
      processes: the processes that share the shards among them; None is this one alone.

    Raises:
      ValueError: an argument is out of range, the directory cannot be written, or it holds a
        collection made with other settings.
      OSError: the disk is full; finished shards are kept.
      WorkerError: the game could not be kept running; finished shards are kept.
    """
    check_guarded()
    check_request(task, directory, episodes, policy, shard_episodes, min_steps)
    worker_count(workers, episodes)  # raises here what it would once the directory is claimed
    log, directory = log or Logbook(quiet=True), files.writable(directory)
    processes = processes or Processes()
    settings = settings_of(task, policy, seed, shard_episodes, min_steps)
    if processes.index == 0:
        _claim(directory, task, settings, episodes, log.say)
        files.remove_stale(directory)
    found, jobs = rollouts.all_lengths(directory, log.say, processes), []
    for shard, first in enumerate(range(0, episodes, shard_episodes)):
        path, wanted = directory / f"shard-{shard:05d}.npz", min(shard_episodes, episodes - first)
        if len(found.get(path, ())) < wanted:
            found.pop(path, None)
            jobs.append(_ShardJob(path, task, policy, int(seed), shard, wanted, min_steps))
    _record_all(task, processes.own(jobs), sum(map(len, found.values())), workers, log)
    processes.wait("all shards are recorded")
    found = rollouts.all_lengths(directory, log.say, processes)
    _propose_scale(task, next(iter(found)), log.say)
    steps = np.concatenate(list(found.values()))
    return Collection(directory, len(found), len(steps), int(steps.sum()))


def _propose_scale(task: Task, shard: Path, say: Callable[[str], None]) -> None:
    """Say which `reward_scale` a game's rewards ask for, where the task's is far off."""
    rewards = np.abs(rollouts.part(shard, "rewards").astype(float))
    size = np.sqrt((rewards[rewards > 0] ** 2).mean()) if rewards.any() else task.reward_scale
    if task.step_reward is None and not 1 / FAR_OFF < size / task.reward_scale < FAR_OFF:
        say(
            f"rewards of {task.name} are about {size:.2g}, but M predicts them in units of "
            f"{task.reward_scale:g}; set reward_scale={size:.1g} in its Task before M is trained"
        )


def settings_of(
    task: Task, policy: str, seed: int, shard_episodes: int = 16, min_steps: int = 0
) -> dict[str, Any]:
    """What a collection is made with, as `collection.json` keeps it; arguments as for `collect`."""
    told = {"policy": policy, "seed": int(seed), "shard_episodes": shard_episodes}
    return {"task": task.name, **by_value(task, SHAPES), **told, "min_steps": min_steps}


def check_request(
    task: Task,
    directory: Path | str,
    episodes: int,
    policy: str,
    shard_episodes: int = 16,
    min_steps: int = 0,
) -> None:
    """Raise ValueError, as `collect` does, for what cannot be recorded."""
    policies.check(policy)
    for name, value in (("episodes", episodes), ("shard_episodes", shard_episodes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= min_steps <= task.max_steps:
        raise ValueError(
            f"min_steps must be from 0 to the {task.max_steps} steps an episode can last, "
            f"got {min_steps}"
        )
    place = Path(directory).expanduser().absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    least, have = episodes * EPISODE_BYTES, shutil.disk_usage(there).total
    if 0 < have < least:  # 0: a disk that does not tell
        raise ValueError(
            f"{episodes} episodes need more than {least / 1e9:.0f} GB, but the disk of {directory} "
            f"holds {have / 1e9:.0f} GB in all; ask for fewer or choose another directory"
        )


def _claim(directory: Path, task: Task, settings: dict, episodes: int, say) -> None:
    """Write `collection.json`, or check that the one there is of the same collection."""
    path, old = directory / "collection.json", claimed(directory) or {}
    if not path.exists() and rollouts.shard_paths(directory):
        raise ValueError(f"{directory} holds shards of unknown origin; choose another directory")
    if path.exists() and not old:
        _set_aside(path, task, settings, say)
    for name, value in settings.items():
        if differs(old.get(name, value), value):
            raise ValueError(
                f"{directory} holds a collection with {name} {old[name]!r}, not {value!r}; "
                "choose another directory"
            )
    episodes = max(episodes, old.get("episodes", 0))
    files.write_json(path, {**settings, "episodes": episodes, "package": package(task)})


def claimed(directory: Path) -> dict[str, Any] | None:
    """What a directory's `collection.json` says; None where it is damaged or missing."""
    try:
        found = json.loads((directory / "collection.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and found.keys() >= _CLAIMS
    return found if whole and type(found.get("episodes")) is int else None


def _set_aside(path: Path, task: Task, settings: dict, say: Callable[[str], None]) -> None:
    """Make room for `collection.json` of these settings, in place of a damaged one of the same.

    ValueError if a shard beside it shows that they were others, or does not show it.
    """
    names = "policy", "seed", "shard_episodes", "min_steps"
    policy, seed, size, least = (settings[name] for name in names)

    def is_ours(shard: Path) -> bool:
        number = int(shard.stem.removeprefix("shard-"))
        return _was_recorded_by(_ShardJob(shard, task, policy, seed, number, size, least))

    if not all(ours for _, ours in rollouts.sound(rollouts.shard_paths(path.parent), is_ours, say)):
        raise ValueError(
            f"{path} is damaged, and the shards beside it were not recorded by this command, as "
            "far as they tell; give the settings that they were recorded with, or choose another "
            "directory"
        )
    path.rename(path.with_name(f"{path.name}.corrupt"))
    say(f"{path} is damaged; set aside as {path.name}.corrupt and written anew")


def _was_recorded_by(job: _ShardJob) -> bool:
    """Whether a shard is what `job` makes, as far as can be told without playing.

    Where a game cut episodes before the cap nothing can be told, and the answer is no.
    """
    shard, cap = rollouts.read(job.path), job.task.max_steps
    in_order = itertools.islice(_episode_seeds(job), None if job.min_steps else len(shard.seeds))
    rng = np.random.default_rng(engine_seed(shard.seeds[0]))
    act, first = policies.begin(job.task, job.policy, rng), shard.lengths[0]
    return bool(
        shard.profile == job.task.profile
        and len(shard.lengths) <= job.episodes
        and (shard.lengths >= job.min_steps).all()
        and np.where(shard.terminated, shard.lengths <= cap, shard.lengths == cap).all()
        and all(seed in in_order for seed in shard.seeds)  # `in` goes on from the seed before
        and np.array_equal(shard.actions[:first], [*map(act, range(first), shard.frames)])
    )


def _record_all(task, jobs: list[_ShardJob], kept: int, count: int | None, log: Logbook) -> None:
    if not jobs:
        return
    list(run_jobs(task, "dreamjax.game.looking:look", [None]))
    frames, start = 0, time.monotonic()

    def tick(steps: int, episodes: int = 0) -> None:
        nonlocal frames
        frames += steps
        rate = frames / (time.monotonic() - start)
        bar.advance(episodes, f"{frames:,} frames, {rate:,.0f} frames/s")

    total = kept + sum(job.episodes for job in jobs)
    target = "dreamjax.game.collecting:record_shard"
    results = run_jobs(task, target, jobs, workers=count, tick=tick)
    with log.progress("collect", total, "episodes", kept) as bar, contextlib.closing(results):
        for index, _ in results:
            tick(0, jobs[index].episodes)
    files.remove_stale(jobs[0].path.parent)  # again: a killed parent's workers live a little longer
    seconds = time.monotonic() - start
    log.log("collect", total, {"frames": frames, "seconds": seconds, "rate": frames / seconds})


def record_shard(env: RealGame, job: _ShardJob, tick: Callable[[int], None]) -> None:
    """Play the episodes of one shard and write it; runs in a worker."""
    kept, seeds = [], []
    for seed in _episode_seeds(job):
        steps = []
        for step in policies.play_steps(env, job.policy, seed):
            steps.append(step)
            tick(1)
        if len(steps) >= job.min_steps:
            kept.append(steps)
            seeds.append(seed)
        if len(kept) == job.episodes:
            break
    else:
        raise ValueError(
            f"only {len(kept)} of {MAX_TRIES * job.episodes} episodes lasted {job.min_steps} "
            "steps; lower min_steps"
        )
    rollouts.write(job.path, rollouts.of_steps(kept, seeds, job.task.profile))


def _episode_seeds(job: _ShardJob) -> Iterator[int]:
    rng = np.random.default_rng([job.seed % 2**64, job.shard])
    for _ in range(MAX_TRIES * job.episodes):
        yield 2 * int(rng.integers(2**31))  # even: odd seeds are kept for evaluation
