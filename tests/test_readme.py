"""What the README shows runs as it is written, on the world that comes with the package."""

import re
from pathlib import Path

import numpy as np
import pytest

import dreamjax
from dreamjax.dream.worlds import SHIPPED, _load_exported, shipped_worlds

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs_as_written():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(block, names)
    assert names["obs"].shape == (1024, 1088) and np.isfinite(names["obs"]).all()
    assert (names["reward"] == 1).all()


@pytest.mark.parametrize("name", ["take-cover"])
def test_shipped_worlds_are_whole_small_and_described(name):
    assert name in shipped_worlds()
    world, weights, meta = _load_exported(SHIPPED / name)
    assert world.task == dreamjax.TASKS[name] and len(world.initial_mu) == 1000
    assert weights.shape == (world.controller().num_params,) and weights.dtype == np.float32
    assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) < 15e6
    assert '"/' not in (SHIPPED / name / "world.json").read_text(), "a path of some machine"
    card = (SHIPPED / name / "README.md").read_text()
    for scored in ("random", "blind", "ours"):
        assert f"{meta['results'][scored]['mean']:.0f}" in card, (
            "the card tells the scores measured"
        )
