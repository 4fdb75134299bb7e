"""Recordings as small as a test needs them."""

import numpy as np

from dreamjax.game import rollouts


def write(directory, frames, number=0, **others):
    """A shard of one episode that shows `frames` [T, 64, 64, 3] and ends; other arrays by name."""
    length = len(frames)
    usual = {
        "actions": np.zeros((length, 1), np.float32),
        "rewards": np.ones(length, np.float32),
        "lengths": np.array([length], np.int32),
        "terminated": np.array([True]),
        "seeds": np.array([number]),
        "profile": "test",
    }
    directory.mkdir(exist_ok=True)
    shard = rollouts.Rollouts(frames=frames, **usual | others)
    rollouts.write(directory / f"shard-{number:05d}.npz", shard)
