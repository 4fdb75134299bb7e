"""Recorded play of the real game: shards of whole episodes on disk (paper section 3, step 1).

Original: `doomrnn/extract.py`, `carracing/extract.py`. A shard `shard-00000.npz` is a zip of
plain arrays that `numpy.load` opens; its zip checksums find flipped bits.
Shapes: N frames of a shard, E its episodes (laid one after another), A numbers in an action.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax.game import policies
from dreamjax.game.env import RealGame, engine_seed, package
from dreamjax.game.jobs import run_jobs
from dreamjax.game.workers import default_workers, worker_count
from dreamjax.tasks import FRAME_SHAPE, Task
from dreamjax.training import files
from dreamjax.training.logbook import Logbook
from dreamjax.training.settings import check_guarded
from dreamjax.training.team import Team

FORMAT = 1
EPISODE_BYTES = 10_000  # less than most games need; the paper's need about a million
FAR_OFF = 30  # times by which rewards may differ from the task's reward_scale
MAX_READERS = 16  # threads that read shards
SHAPES = (  # fields of a game that shape its recordings
    *("profile", "actions", "picture", "crop", "ends"),
    *("frame_skip", "max_steps", "seeds"),
)
MAX_TRIES = 1000  # episodes played for each one kept before `min_steps` counts as too high
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_CLAIMS = {"task", "profile", "max_steps", "policy", "seed", "shard_episodes", "min_steps"}
_DTYPES = {
    "frames": np.uint8,
    "actions": np.float32,
    "rewards": np.float32,
    "lengths": np.int32,
    "terminated": np.bool_,
    "seeds": np.int64,
    "ends": np.int8,
}


def by_value(task: Task, names: Iterable[str]) -> dict[str, Any]:
    """Fields of a task as JSON has them: what a name and a profile do not tell of an edited one."""
    found = {name: getattr(task, name) for name in names}
    forms = {k: {"form": type(x).__name__} for k, x in found.items() if dataclasses.is_dataclass(x)}
    values = {k: forms[k] | dataclasses.asdict(x) if k in forms else x for k, x in found.items()}
    return json.loads(json.dumps(values))


def differs(old: Any, new: Any) -> bool:
    """Whether two values of `by_value` differ in what both tell."""
    if isinstance(old, dict) and isinstance(new, dict):
        return any(differs(old[name], new[name]) for name in old.keys() & new.keys())
    return old != new


class DamagedShardError(ValueError):
    """A shard that cannot be read as it was written; one line."""


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Whole episodes, one after another."""

    frames: np.ndarray  # uint8 [N, 64, 64, 3]; frame t is what was on the screen before action t
    actions: np.ndarray  # float32 [N, A], in the game's action space, before any thresholding
    rewards: np.ndarray  # float32 [N]; reward t is what action t earned
    lengths: np.ndarray  # int32 [E]; they sum to N
    terminated: np.ndarray  # bool [E]; True is death, False is an episode cut by the step cap
    seeds: np.ndarray  # int64 [E]; an episode is a function of seed, policy and profile
    profile: str  # the variant of the game that was played
    ends: np.ndarray | None = None  # int8 [E]; of the task's, -1: cut; None is the first of them

    def __post_init__(self):
        if self.ends is None:
            object.__setattr__(self, "ends", np.where(self.terminated, 0, -1).astype(np.int8))
        frames, episodes = len(self.frames), len(self.lengths)
        shapes = {
            "frames": (frames, *FRAME_SHAPE),
            "actions": (frames, self.actions.shape[-1]),
            "rewards": (frames,),
            "lengths": (episodes,),
            "terminated": (episodes,),
            "seeds": (episodes,),
            "ends": (episodes,),
        }
        for name, shape in shapes.items():
            _check(name, getattr(self, name), _DTYPES[name], shape)
        if self.lengths.sum() != frames or (self.lengths < 1).any():
            raise ValueError(
                f"lengths must be positive and sum to the {frames} frames, "
                f"got a sum of {self.lengths.sum()} over {episodes} episodes"
            )


def _check(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{name} must be {np.dtype(dtype)}{list(shape)}, got {array.dtype}{list(array.shape)}"
        )


def write(path: Path | str, rollouts: Rollouts) -> None:
    """Write a shard so that `path` is either what it was or the whole new shard.

    Raises:
      OSError: the disk refused (full, read-only); one line with path, size and remedy.
    """
    arrays = {name: getattr(rollouts, name) for name in _DTYPES}
    arrays |= {"profile": np.array(rollouts.profile), "format": np.array(FORMAT)}
    try:
        with files.replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                _write_array(archive, name, array)
    except files.WriteError as error:
        size = sum(array.nbytes for array in arrays.values()) / 1e6
        raise OSError(
            f"cannot write {path} (up to {size:.1f} MB needed): {error.strerror}; {error.remedy}"
        ) from error


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    info = zipfile.ZipInfo(f"{name}.npy")  # a fixed date: equal rollouts make equal files
    info.compress_type, info._compresslevel = zipfile.ZIP_DEFLATED, 1
    with archive.open(info, "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, np.asarray(array, order="C"), allow_pickle=False)


def read(path: Path | str) -> Rollouts:
    """Read and check a whole shard.

    Raises:
      DamagedShardError: truncated, empty, bit-flipped or not a shard.
      FileNotFoundError: no such file.
    """
    arrays = _load(path, [*_DTYPES, "profile"])
    try:
        return Rollouts(**arrays | {"profile": str(arrays["profile"])})
    except (ValueError, IndexError) as error:
        raise DamagedShardError(f"{path} is not a shard of rollouts ({error})") from None


def _load(path: Path | str, names: Iterable[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            version = int(archive["format"])
            arrays = {name: archive[name] for name in names}
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise DamagedShardError(f"{path} is damaged ({str(error).splitlines()[0]})") from None
    if version != FORMAT:
        raise ValueError(f"{path} has shard format {version}, this dreamjax reads {FORMAT}")
    return arrays


def shard_paths(directory: Path | str) -> list[Path]:
    """The shards of a directory in order; other files are ignored."""
    found = Path(directory).glob("shard-*.npz")
    return sorted(path for path in found if re.fullmatch(r"shard-\d{5,}\.npz", path.name))


def frame_counts(directory: Path | str, say: Callable[[str], None] = print) -> dict[Path, int]:
    """Frames of every shard of a directory; damaged ones are set aside, and `say` told of them."""
    return {path: int(steps.sum()) for path, steps in _lengths(directory, say)}


def _lengths(directory: Path | str, say: Callable[[str], None]) -> Iterator[tuple[Path, Any]]:
    return _sound(shard_paths(directory), lambda path: part(path, "lengths"), say)


def part(path: Path | str, name: str) -> np.ndarray:
    """One array of a shard, the others unread; raises as `read`."""
    return _load(path, [name])[name]


def read_all(
    paths: Iterable[Path], say: Callable[[str], None] = print, ahead: float = MAX_READERS
) -> Iterator[tuple[Path, Rollouts]]:
    """`(path, shard)`, a few in memory at a time; damaged ones are set aside and skipped.

    A damaged `shard-00003.npz` is renamed `shard-00003.npz.corrupt`; collecting again into its
    directory makes it anew.

    Args:
      paths: shards in the order wanted, as from `shard_paths` or `frame_counts`.
      say: receives one line for each shard set aside.
      ahead: how many at most wait beside the one in use.
    """
    return _sound(paths, read, say, ahead)


def _sound(paths, load, say, ahead: float = MAX_READERS) -> Iterator[tuple[Path, Any]]:
    """`(path, load(path))` of the shards that can be read."""
    for path, loading in _read_ahead(paths, load, ahead):
        try:
            yield path, loading.result()
        except DamagedShardError as error:
            path.rename(path.with_name(f"{path.name}.corrupt"))
            say(f"{error}; set aside as {path.name}.corrupt and skipped")


def _read_ahead(paths, load, ahead: float) -> Iterator[tuple[Path, Future]]:
    """Loads that began a few paths ahead, in threads: to inflate a shard keeps a core busy."""
    readers = max(1, int(min(default_workers(), ahead, MAX_READERS)))
    pool, begun = ThreadPoolExecutor(readers, "shards"), collections.deque()
    try:
        for path in paths:
            begun.append((path, pool.submit(load, path)))
            if len(begun) > readers:
                yield begun.popleft()
        yield from begun
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class Collection:
    """What a directory of shards holds."""

    directory: Path
    shards: int
    episodes: int
    frames: int


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
    team: Team | None = None,
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
      team: the processes that share the shards among them; None is this one alone.

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
    team = team or Team()
    settings = settings_of(task, policy, seed, shard_episodes, min_steps)
    if team.index == 0:
        _claim(directory, task, settings, episodes, log.say)
        files.remove_stale(directory)
    found = team.first_then_all(lambda: dict(_lengths(directory, log.say)))
    found = {path: len(steps) for path, steps in found.items()}
    missing = []
    for shard, first in enumerate(range(0, episodes, shard_episodes)):
        path, wanted = directory / f"shard-{shard:05d}.npz", min(shard_episodes, episodes - first)
        if found.get(path, 0) < wanted:
            job = _ShardJob(path, task, policy, int(seed), shard, wanted, min_steps)
            missing.append(job)
    jobs = team.own(missing)
    if jobs:
        list(run_jobs(task, "dreamjax.game.env:look", [None]))
        kept = sum(found.values()) - sum(found.get(job.path, 0) for job in missing)
        _record_all(task, jobs, kept, workers, log)
    team.wait("all shards are recorded")
    steps = team.first_then_all(lambda: dict(_lengths(directory, log.say)))
    _propose_scale(task, next(iter(steps)), log.say)
    lengths = np.concatenate(list(steps.values()))
    return Collection(directory, len(steps), len(lengths), int(lengths.sum()))


def _propose_scale(task: Task, shard: Path, say: Callable[[str], None]) -> None:
    """Say which `reward_scale` a game's rewards ask for, where the task's is far off."""
    rewards = np.abs(part(shard, "rewards").astype(float))
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
    path = directory / "collection.json"
    if not path.exists() and shard_paths(directory):
        raise ValueError(f"{directory} holds shards of unknown origin; choose another directory")
    old = {}
    if path.exists():
        old = claimed(directory) or _reclaimed(path, task, settings, say)
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


def _reclaimed(path: Path, task: Task, settings: dict, say: Callable[[str], None]) -> dict:
    """No settings at all, in place of a damaged `collection.json` of these settings.

    Raises:
      ValueError: a shard beside it shows that they were others, or does not show it.
    """
    names = "policy", "seed", "shard_episodes", "min_steps"
    policy, seed, size, least = (settings[name] for name in names)

    def is_ours(shard: Path) -> bool:
        number = int(shard.stem.removeprefix("shard-"))
        return _was_recorded_by(_ShardJob(shard, task, policy, seed, number, size, least))

    if not all(ours for _, ours in _sound(shard_paths(path.parent), is_ours, say)):
        raise ValueError(
            f"{path} is damaged, and the shards beside it were not recorded by this command, as "
            "far as they tell; give the settings that they were recorded with, or choose another "
            "directory"
        )
    path.rename(path.with_name(f"{path.name}.corrupt"))
    say(f"{path} is damaged; set aside as {path.name}.corrupt and written anew")
    return {}


def _was_recorded_by(job: _ShardJob) -> bool:
    """Whether a shard is what `job` makes, as far as can be told without playing.

    Where a game cut episodes before the cap nothing can be told, and the answer is no.
    """
    shard, cap = read(job.path), job.task.max_steps
    in_order = itertools.islice(_episode_seeds(job), None if job.min_steps else len(shard.seeds))
    rng = np.random.default_rng(engine_seed(shard.seeds[0]))
    act, first = policies.begin(job.task, job.policy, rng), shard.lengths[0]
    return (
        shard.profile == job.task.profile
        and len(shard.lengths) <= job.episodes
        and (shard.lengths >= job.min_steps).all()
        and np.where(shard.terminated, shard.lengths <= cap, shard.lengths == cap).all()
        and all(seed in in_order for seed in shard.seeds)  # `in` goes on from the seed before
        and np.array_equal(shard.actions[:first], [*map(act, range(first), shard.frames)])
    )


def _record_all(task, jobs: list[_ShardJob], kept: int, count: int | None, log: Logbook) -> None:
    frames, start = 0, time.monotonic()

    def tick(steps: int, episodes: int = 0) -> None:
        nonlocal frames
        frames += steps
        rate = frames / (time.monotonic() - start)
        bar.advance(episodes, f"{frames:,} frames, {rate:,.0f} frames/s")

    total = kept + sum(job.episodes for job in jobs)
    results = run_jobs(task, "dreamjax.game.rollouts:record", jobs, workers=count, tick=tick)
    with log.progress("collect", total, "episodes", kept) as bar, contextlib.closing(results):
        for index, _ in results:
            tick(0, jobs[index].episodes)
    files.remove_stale(jobs[0].path.parent)  # again: a killed parent's workers live a little longer
    seconds = time.monotonic() - start
    log.log("collect", total, {"frames": frames, "seconds": seconds, "rate": frames / seconds})


def record(env: RealGame, job: _ShardJob, tick: Callable[[int], None]) -> None:
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
    write(job.path, of_steps(kept, seeds, job.task.profile))


def of_steps(episodes: Sequence[list[tuple]], seeds: Sequence[int], profile: str) -> Rollouts:
    """Episodes of steps `(frame, action, reward, end)`; an end is None or -1 where none came."""
    columns = zip(*itertools.chain.from_iterable(episodes), strict=True)
    frames, actions, rewards, _ = (np.stack(column) for column in columns)
    ends = np.array([-1 if e[-1][3] is None else e[-1][3] for e in episodes], np.int8)
    return Rollouts(
        frames=frames,
        actions=actions.astype(np.float32),
        rewards=rewards.astype(np.float32),
        lengths=np.array([len(episode) for episode in episodes], np.int32),
        terminated=ends >= 0,
        seeds=np.array(seeds),
        profile=profile,
        ends=ends,
    )


def _episode_seeds(job: _ShardJob) -> Iterator[int]:
    rng = np.random.default_rng([job.seed % 2**64, job.shard])
    for _ in range(MAX_TRIES * job.episodes):
        yield 2 * int(rng.integers(2**31))  # even: odd seeds are kept for evaluation
