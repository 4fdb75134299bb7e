"""Recorded play of the real game: shards of whole episodes on disk (paper section 3, step 1).

Original: `doomrnn/extract.py`, `carracing/extract.py`. A shard `shard-00000.npz` is a zip of
plain arrays that `numpy.load` opens; its zip checksums find flipped bits.
Shapes: N frames of a shard, E its episodes (laid one after another), A numbers in an action.
"""

import collections
import dataclasses
import itertools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax.game.workers import default_workers
from dreamjax.task import FRAME_SHAPE
from dreamjax.training import files

FORMAT = 1
MAX_READERS = 16  # threads that read shards
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_DTYPES = {
    "frames": np.uint8,
    "actions": np.float32,
    "rewards": np.float32,
    "lengths": np.int32,
    "terminated": np.bool_,
    "seeds": np.int64,
    "ends": np.int8,
}


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
