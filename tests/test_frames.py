"""The stream of training frames: complete, shuffled, resumable, and small in memory."""

import queue
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from recorded import write

from dreamjax.game import rollouts
from dreamjax.task import FRAME_SHAPE
from dreamjax.vision.frames import FrameStream

LENGTHS = (5, 2, 7, 4, 3)  # frames of each shard; frame i of all is filled with i
TOTAL = sum(LENGTHS)
FRAME_BYTES = 64 * 64 * 3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rollouts")
    start = 0
    for number, length in enumerate(LENGTHS):
        values = np.arange(start, start + length, dtype=np.uint8)
        frames = np.broadcast_to(values[:, None, None, None], (length, *FRAME_SHAPE))
        write(directory, frames, number)
        start += length
    return directory


def stream(recorded, seed=0, frames=TOTAL):
    """Batches of 4 with room for `frames` frames."""
    return FrameStream(recorded, 4, seed, frames * FRAME_BYTES)


def numbers(batches):
    """The number that each frame is filled with."""
    assert batches.dtype == np.uint8 and batches.shape[1:] == (4, *FRAME_SHAPE)
    assert (batches == batches[..., :1, :1, :1]).all()
    return batches[..., 0, 0, 0]


@pytest.mark.parametrize("room", [TOTAL, 16, 1])
def test_every_frame_comes_once_an_epoch(recorded, room):
    epochs = numbers(stream(recorded, frames=room).batches(0, TOTAL)).reshape(4, TOTAL)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(TOTAL), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4, "each epoch has its own order"


@pytest.mark.parametrize("room", [TOTAL, 16, 1])
def test_batches_depend_on_seed_and_step_alone(recorded, room):
    whole = stream(recorded, frames=room).batches(0, 13)
    for first in (3, 5, 12):
        np.testing.assert_array_equal(
            stream(recorded, frames=room).batches(first, 1), whole[first : first + 1]
        )
    used = stream(recorded, frames=room)
    parts = [used.batches(0, 2), used.batches(2, 7), used.batches(9, 4), used.batches(1, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate([whole, whole[1:4]]))
    assert (stream(recorded, seed=1, frames=room).batches(0, 13) != whole).any()


@pytest.mark.parametrize("room", [TOTAL, 1])
def test_a_pair_is_of_one_episode(recorded, room):
    paired = FrameStream(recorded, 4, 0, room * FRAME_BYTES, pairs=True).batches(0, 2 * TOTAL)
    ones, others = numbers(paired[:, 0]), numbers(paired[:, 1])
    np.testing.assert_array_equal(ones, numbers(stream(recorded, frames=room).batches(0, 42)))
    episodes = np.searchsorted(np.cumsum(LENGTHS), (ones, others), side="right")
    np.testing.assert_array_equal(*episodes)
    assert len(set(zip(ones.ravel(), others.ravel(), strict=True))) > 2 * TOTAL, "any frame of it"
    again = FrameStream(recorded, 4, 0, room * FRAME_BYTES, pairs=True).batches(5, 1)
    np.testing.assert_array_equal(again, paired[5:6])


def test_frames_of_different_shards_are_mixed(recorded):
    first = numbers(stream(recorded).batches(0, 1))[0]
    assert len(np.unique(np.searchsorted(np.cumsum(LENGTHS), first, side="right"))) > 1


def test_dropping_a_stream_waits_for_no_thread(recorded, monkeypatch):
    """It may be the garbage collector that drops it, in a thread that holds what a join needs."""
    reads, go_on, read = queue.Queue(), threading.Event(), FrameStream._read

    def slow(self, block):
        reads.put("begun")
        if reads.qsize() > 1:  # the next block's, while the first one's frames are used
            go_on.wait(10)
            reads.put("ended")
        return read(self, block)

    monkeypatch.setattr(FrameStream, "_read", slow)
    used = stream(recorded, frames=16)
    used.batches(0, 1)
    while reads.qsize() < 2:
        time.sleep(0.01)
    used._coming.close()  # as when it is garbage
    under_way = reads.qsize() == 2
    go_on.set()
    assert under_way, "a read under way must not keep it"


def test_memory_holds_two_blocks_and_all_that_fits_is_read_once(recorded, monkeypatch):
    read, sizes = FrameStream._read, []

    def counted(self, block):
        sizes.append(len((found := read(self, block)).frames))
        return found

    monkeypatch.setattr(FrameStream, "_read", counted)
    stream(recorded).batches(0, 20)
    assert sizes == [TOTAL]
    sizes.clear()
    stream(recorded, frames=16).batches(0, 20)
    assert max(sizes) <= 8 and len(sizes) > 8


@pytest.mark.parametrize("room", [TOTAL, TOTAL + 21, 200, 16, 1])
def test_what_is_read_ahead_is_part_of_the_memory(recorded, room, monkeypatch):
    """Frames of shards that are read or wait beside the one in use, with a core for each."""
    monkeypatch.setattr(rollouts, "default_workers", lambda: 16)
    monkeypatch.setattr(rollouts, "ThreadPoolExecutor", AtOnce)
    used = stream(recorded, frames=room)
    AtOnce.submitted, most = 0, 0
    for taken, _ in enumerate(rollouts.read_all(list(used._counts), ahead=used._ahead)):
        most = max(most, AtOnce.submitted - taken)
    blocks, largest = TOTAL if room >= TOTAL else 2 * max(used._room, 7), max(LENGTHS)
    assert most >= 2 and blocks + most * largest <= max(room, blocks + 2 * largest)


class AtOnce:
    """A pool of threads that has done what it is given before it returns."""

    submitted = 0

    def __init__(self, *_):
        pass

    def submit(self, load, path):
        AtOnce.submitted += threading.current_thread() is threading.main_thread()  # not others'
        done = Future()
        done.set_result(load(path))
        return done

    def shutdown(self, **_):
        pass


def test_no_rollouts_and_damaged_rollouts_are_one_clear_line(recorded, tmp_path, capsys):
    with pytest.raises(ValueError, match="no rollouts in .*; collect some first"):
        stream(tmp_path)
    for path in rollouts.shard_paths(recorded):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = stream(tmp_path)
    path = tmp_path / "shard-00002.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="7 frames in .* run the same command again"):
        bad.batches(0, 1)
    assert "shard-00002.npz.corrupt" in capsys.readouterr().out
    assert len(np.unique(numbers(stream(tmp_path).batches(0, 4)))) == TOTAL - 7 == 14
