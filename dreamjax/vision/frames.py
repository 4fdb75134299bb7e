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

import numpy as np

from dreamjax.game import rollouts
from dreamjax.task import FRAME_SHAPE

Block = tuple[Path, ...]


class FrameStream:
    """Batches of `batch_size` (B) frames of shards in `directory`, by these, seed and step alone.

    Every frame comes once in each epoch; a batch may span two epochs. `memory` is in bytes of
    frames to hold; a block has at least one shard, and one is read ahead. ValueError if there are
    no frames.
    """

    def __init__(self, directory: Path | str, batch_size: int, seed: int, memory: float):
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
        self._batch_size, self._seed = batch_size, seed
        self._coming: Iterator[np.ndarray] = iter(())
        self._step: int | None = None

    def batches(self, step: int, count: int) -> np.ndarray:
        """Batches from `step` on, uint8 [count, B, 64, 64, 3]; ValueError: a shard is damaged."""
        if step != self._step:
            self._coming = self._from(step)
        self._step = step + count
        return np.stack(list(itertools.islice(self._coming, count)))

    def _from(self, step: int) -> Iterator[np.ndarray]:
        size, filled = self._batch_size, 0
        batch = np.empty((size, *FRAME_SHAPE), np.uint8)
        for frames, order in self._shuffled(step * size):
            for start in range(-filled, len(order), size):
                part = order[max(start, 0) : start + size]
                batch[filled : filled + len(part)] = frames[part]
                filled = (filled + len(part)) % size
                if not filled:
                    yield batch.copy()

    def _shuffled(self, position: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`(frames, order)` of each block from the stream's frame `position` on."""
        # Not a `with`: the garbage collector may end this generator where joining deadlocks.
        reader = ThreadPoolExecutor(1, "frames")
        reading = None
        for (block, order), (following, _) in itertools.pairwise(self._plan(position)):
            reading = reading or reader.submit(self._read, block)
            frames = reading.result()
            if following != block:
                reading = reader.submit(self._read, following)
            yield frames, order

    def _plan(self, position: int) -> Iterator[tuple[Block, np.ndarray]]:
        """Blocks for ever, each with the order in which its frames are still to come."""
        first, skip = divmod(position, self._total)
        for epoch in itertools.count(first):
            for number, block in enumerate(self._blocks(epoch)):
                size = sum(self._counts[path] for path in block)
                if skip < size:
                    rng = np.random.default_rng((self._seed, epoch, number))
                    yield block, rng.permutation(size)[skip:]
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

    def _read(self, block: Block) -> np.ndarray:
        frames = np.empty((sum(self._counts[path] for path in block), *FRAME_SHAPE), np.uint8)
        start = 0
        for _, shard in rollouts.read_all(block, ahead=self._ahead):
            frames[start : start + len(shard.frames)] = shard.frames
            start += len(shard.frames)
        if start != len(frames):
            raise ValueError(
                f"{len(frames) - start} frames in {block[0].parent} cannot be read and were set "
                "aside; run the same command again to go on without them"
            )
        return frames
