"""Recorded frames in random order and bounded memory, for V's training.

The paper's 10,000 episodes of its first game are 3.1 million frames, 38 GB. An epoch is a random
order of shards cut into blocks that fit in memory; frames are shuffled inside a block, and a
thread reads the next block meanwhile. Frames that all fit are one block, read once.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamjax.game import rollouts
from dreamjax.task import FRAME_SHAPE

Block = tuple[Path, ...]


class Read(NamedTuple):
    """The frames of a block, and the bounds of the episode of each."""

    frames: np.ndarray  # uint8 [N, 64, 64, 3]
    first: np.ndarray  # int64 [N]
    length: np.ndarray  # int64 [N]


class FrameStream:
    """Batches of `batch_size` (B) frames of shards in `directory`, by these, seed and step alone.

    Every frame comes once in each epoch; a batch may span two epochs. `memory` is in bytes of
    frames to hold; a block has at least one shard, and one is read ahead. In `pairs`, a frame at
    random of the same episode comes with each. ValueError if there are no frames.
    """

    def __init__(
        self, directory: Path | str, batch_size: int, seed: int, memory: float, *, pairs=False
    ):
        self._counts = rollouts.frame_counts(directory)
        self._total = sum(self._counts.values())
        if not self._total:
            raise ValueError(f"no rollouts in {directory}; collect some first")
        self._room, largest = memory / prod(FRAME_SHAPE), max(self._counts.values())
        ahead = self._room - self._total  # frames to be read ahead
        if ahead < 0:
            ahead = max(self._room / 8, 2 * largest)
            self._room = (self._room - ahead) / 2  # two blocks at a time
        self._ahead = ahead / largest - 1
        self._batch_size, self._seed, self._each = batch_size, seed, 2 if pairs else 1
        self._coming: Iterator[np.ndarray] = iter(())
        self._step: int | None = None

    def batches(self, step: int, count: int) -> np.ndarray:
        """Batches from `step` on, uint8 [count, B, 64, 64, 3], of pairs [count, 2, B, 64, 64, 3].

        ValueError: a shard is damaged.
        """
        if step != self._step:
            self._coming = self._from(step)
        self._step = step + count
        return np.stack(list(itertools.islice(self._coming, count)))

    def _from(self, step: int) -> Iterator[np.ndarray]:
        size, filled = self._batch_size, 0
        batch = np.empty((self._each, size, *FRAME_SHAPE), np.uint8)
        for frames, order in self._shuffled(step * size):
            for start in range(-filled, order.shape[1], size):
                part = order[:, max(start, 0) : start + size]
                batch[:, filled : filled + part.shape[1]] = frames[part]
                filled = (filled + part.shape[1]) % size
                if not filled:
                    yield (batch if self._each == 2 else batch[0]).copy()

    def _shuffled(self, position: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`(frames, order)` of each block from the stream's frame `position` on; [1 or 2, n]."""
        # Not a `with`: the garbage collector may end this generator where joining deadlocks.
        reader = ThreadPoolExecutor(1, "frames")
        reading = None
        for (block, coming, places), (following, *_) in itertools.pairwise(self._plan(position)):
            reading = reading or reader.submit(self._read, block)
            frames, first, length = reading.result()
            if following != block:
                reading = reader.submit(self._read, following)
            others = first[coming] + (places * length[coming]).astype(np.int64)
            yield frames, np.stack([coming, others][: self._each])

    def _plan(self, position: int) -> Iterator[tuple[Block, np.ndarray, np.ndarray]]:
        """Blocks for ever, each with the frames still to come, and places in their episodes."""
        first, skip = divmod(position, self._total)
        for epoch in itertools.count(first):
            for number, block in enumerate(self._blocks(epoch)):
                size = sum(self._counts[path] for path in block)
                if skip < size:
                    rng = np.random.default_rng((self._seed, epoch, number))
                    yield block, rng.permutation(size)[skip:], rng.random(size)[skip:]
                skip = max(skip - size, 0)

    def _blocks(self, epoch: int) -> list[Block]:
        paths, blocks, room = list(self._counts), [], 0.0
        rng = np.random.default_rng((self._seed, epoch))
        for index in rng.permutation(len(paths)):
            size = self._counts[paths[index]]
            if not blocks or size > room:
                blocks.append([])
                room = self._room
            blocks[-1].append(paths[index])
            room -= size
        return [tuple(sorted(block)) for block in blocks]

    def _read(self, block: Block) -> Read:
        frames = np.empty((sum(self._counts[path] for path in block), *FRAME_SHAPE), np.uint8)
        start, episodes = 0, [np.zeros(0, np.int64)]
        for _, shard in rollouts.read_all(block, ahead=self._ahead):
            frames[start : start + len(shard.frames)] = shard.frames
            start += len(shard.frames)
            episodes.append(shard.lengths)
        if start != len(frames):
            raise ValueError(
                f"{len(frames) - start} frames in {block[0].parent} cannot be read and were set "
                "aside; run the same command again to go on without them"
            )
        lengths = np.concatenate(episodes).astype(np.int64)
        first = np.cumsum(lengths) - lengths
        return Read(frames, np.repeat(first, lengths), np.repeat(lengths, lengths))
