"""Recorded play of the real game: shards of whole episodes on disk (paper section 3, step 1).

Original: `doomrnn/extract.py`, `carracing/extract.py`. A shard `shard-00000.npz` is a zip of
plain arrays that `numpy.load` opens; its zip checksums find flipped bits.
Shapes: N frames of a shard, E its episodes (laid one after another), A numbers in an action.
"""

import collections
import dataclasses
import functools
import itertools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax.game.episodes import PER_EPISODE, DamagedShardError, Episodes, load
from dreamjax.game.workers import default_workers
from dreamjax.task import FRAME_SHAPE
from dreamjax.training import files
from dreamjax.training.processes import Processes

FORMAT = 1
MAX_READERS = 16  # threads that read shards
_DTYPES = {
    "frames": np.uint8,
    "actions": np.float32,
    "rewards": np.float32,
    "lengths": np.int32,
    "terminated": np.bool_,
    "seeds": np.int64,
    "ends": np.int8,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts(Episodes):
    """Whole episodes as they were played; ValueError where arrays do not fit together."""

    frames: np.ndarray  # uint8 [N, 64, 64, 3]; frame t is what was on the screen before action t

    def __post_init__(self):
        super().__post_init__()
        N, E = len(self.frames), len(self.lengths)
        shapes = {"frames": (N, *FRAME_SHAPE), "actions": (N, self.actions.shape[-1])}
        shapes |= {"rewards": (N,)} | dict.fromkeys(PER_EPISODE, (E,))
        for name, dtype in _DTYPES.items():
            array, wanted = getattr(self, name), f"{np.dtype(dtype)}{list(shapes[name])}"
            if (found := f"{array.dtype}{list(array.shape)}") != wanted:
                raise ValueError(f"{name} must be {wanted}, got {found}")
        if self.lengths.sum() != N or (self.lengths < 1).any():
            raise ValueError(
                f"lengths must be positive and sum to the {N} frames, "
                f"got a sum of {self.lengths.sum()} over {E} episodes"
            )


def write(path: Path | str, rollouts: Rollouts) -> None:
    """Write a shard so that `path` is either what it was or the whole new shard.

    The OSError of a disk that refuses (full, read-only) is one line with path, size and remedy.
    """
    arrays = {name: getattr(rollouts, name) for name in _DTYPES}
    arrays |= {"profile": np.array(rollouts.profile), "format": np.array(FORMAT)}
    try:
        with (
            files.replacing(path) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            for name, array in arrays.items():  # without dates: equal rollouts make equal files
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asarray(array, order="C"))
    except files.WriteError as error:
        size = sum(array.nbytes for array in arrays.values()) / 1e6
        raise OSError(
            f"cannot write {path} (up to {size:.1f} MB needed): {error.strerror}; {error.remedy}"
        ) from error


def read(path: Path | str) -> Rollouts:
    """Read and check a whole shard.

    Raises:
      DamagedShardError: truncated, empty, bit-flipped or not a shard.
      FileNotFoundError: no such file.
    """
    arrays = load(path, Rollouts.names(), FORMAT)
    try:
        return Rollouts(**arrays)
    except (ValueError, IndexError) as error:
        raise DamagedShardError(f"{path} is not a shard of rollouts ({error})") from None


def shard_paths(directory: Path | str) -> list[Path]:
    """The shards of a directory in order; other files are ignored."""
    found = Path(directory).glob("shard-*.npz")
    return sorted(path for path in found if re.fullmatch(r"shard-\d{5,}\.npz", path.name))


def frame_counts(
    directory: Path | str, say: Callable[[str], None] = print, processes: Processes | None = None
) -> dict[Path, int]:
    """Frames of every shard of a directory; damaged ones are set aside, and `say` told of them."""
    lengths = all_lengths(directory, say, processes or Processes())
    return {path: int(steps.sum()) for path, steps in lengths.items()}


def all_lengths(directory: Path | str, say, processes: Processes) -> dict[Path, np.ndarray]:
    """`lengths` of every shard; the rest as for `frame_counts`."""
    read = functools.partial(part, name="lengths")
    return processes.first_then_all(lambda: dict(sound(shard_paths(directory), read, say)))


def part(path: Path | str, name: str) -> np.ndarray:
    """One array of a shard, the others unread; raises as `read`."""
    return load(path, [name], FORMAT)[name]


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
    return sound(paths, read, say, ahead)


def sound(paths, load, say, ahead: float = MAX_READERS) -> Iterator[tuple[Path, Any]]:
    """`(path, load(path))` of the shards that can be read, otherwise as `read_all`."""
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
    frames, actions, rewards, _ = zip(*itertools.chain.from_iterable(episodes), strict=True)
    ends = np.array([-1 if e[-1][3] is None else e[-1][3] for e in episodes], np.int8)
    return Rollouts(
        frames=np.stack(frames),
        actions=np.stack(actions).astype(np.float32),
        rewards=np.array(rewards, np.float32),
        lengths=np.array([len(episode) for episode in episodes], np.int32),
        terminated=ends >= 0,
        seeds=np.array(seeds),
        profile=profile,
        ends=ends,
    )
