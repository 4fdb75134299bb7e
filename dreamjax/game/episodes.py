"""Whole episodes, one after another, and the archives that keep them.

Shapes: N frames, E episodes, A numbers in an action.
"""

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
PER_EPISODE = ("lengths", "terminated", "seeds", "ends")  # arrays [E]; those of frames are [N, ...]


class DamagedShardError(ValueError):
    """A shard that cannot be read as it was written; one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes:
    """What is known of whole episodes, whatever their frames are kept as."""

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

    @classmethod
    def names(cls) -> list[str]:
        """What an archive of such episodes holds."""
        return [field.name for field in dataclasses.fields(cls)]

    @property
    def first(self) -> np.ndarray:
        """The first frame of every episode, int [E]."""
        return first_frames(self.lengths)

    def select(self, episodes: np.ndarray) -> Self:
        """Those of `episodes`, bool [E]."""
        frames = np.repeat(episodes, self.lengths)
        arrays = {name: x for name, x in vars(self).items() if isinstance(x, np.ndarray)}
        kept = {k: x[episodes if k in PER_EPISODE else frames] for k, x in arrays.items()}
        return dataclasses.replace(self, **kept)


def first_frames(lengths: np.ndarray) -> np.ndarray:
    """Where each of episodes [E] that lie one after another begins, int [E]."""
    return np.cumsum(lengths) - lengths


def load(path: Path | str, names: Iterable[str], version: int) -> dict[str, Any]:
    """Arrays and strings of an archive whose format has this version; the others are unread.

    Raises:
      DamagedShardError: truncated, empty, bit-flipped, or without one of `names`.
      FileNotFoundError: no such file.
      ValueError: it has another version.
    """
    names = ("format", *names)
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in names if name in archive}
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise DamagedShardError(f"{path} is damaged ({str(error).splitlines()[0]})") from None
    if len(found) < len(names):
        raise DamagedShardError(f"{path} lacks {', '.join(n for n in names if n not in found)}")
    found = {name: x if x.ndim else x.item() for name, x in found.items()}
    if (theirs := found.pop("format")) != version:
        raise ValueError(f"{path} has shard format {theirs}, this dreamjax reads {version}")
    return found
