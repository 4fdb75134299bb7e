"""What the README shows runs as it is written, on the world that comes with the package."""

import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import environ
from test_pipeline import TINY

import dreamjax
from dreamjax.dream import exported
from dreamjax.dream.worlds import SHIPPED, shipped_worlds
from dreamjax.game.rollouts import read

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def shown(word):
    """The one block of Python that has a word in it."""
    (block,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if word in block
    ]
    return block


def test_the_example_runs_as_written():
    names = {}
    exec(shown("env.step"), names)
    assert names["obs"].shape == (1024, 1088) and np.isfinite(names["obs"]).all()
    assert (names["reward"] == 1).all()


def test_a_shipped_player_plays_the_real_game_as_written(monkeypatch):
    """In short games."""
    world = dreamjax.load_world("take-cover")
    short = dataclasses.replace(world, task=dataclasses.replace(world.task, max_steps=30))
    monkeypatch.setattr(dreamjax, "load_world", {"take-cover": short}.get)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(shown("world.player"), {})
    assert said.getvalue() == "[30. 30. 30. 30.]\n"


def run_in(directory, words):
    """A command of README's, as one who installed the package runs it there."""
    installed = Path(sys.executable).with_name("dreamjax")
    done = subprocess.run(
        [installed, *words], cwd=directory, env=environ(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_game_of_ones_own_is_learnt_as_written(tmp_path):
    """From recording to the score table, but with fewer steps."""
    (tmp_path / "pole.py").write_text(shown("POLE"))
    (words,) = re.findall(r"^dreamjax (run pole:POLE .*)$", README, re.M)
    run_in(tmp_path, [*words.split(), *TINY, "--evaluate.episodes=2"])
    run = tmp_path / words.split()[-1]
    results = json.loads((run / "results.json").read_text())
    assert (results["task"], results["paper"], results["ours"]["n"]) == ("pole", None, 2)
    assert 8 < results["random"]["mean"] < 50 and (run / "dream.gif").exists()


def test_a_policy_of_ones_own_is_recorded_as_written(tmp_path):
    (tmp_path / "mine.py").write_text(shown("def straight"))
    (words,) = re.findall(r"^dreamjax (collect car-racing .*mine:straight)$", README, re.M)
    run_in(tmp_path, words.split())
    (shard,) = (tmp_path / "runs" / "straight" / "rollouts").glob("*.npz")
    np.testing.assert_array_equal(np.unique(read(shard).actions, axis=0), np.float32([[0, 0.2, 0]]))


@pytest.mark.parametrize("name", ["take-cover", "car-racing"])
def test_shipped_worlds_are_whole_small_and_described(name):
    assert name in shipped_worlds()
    world, player, meta = exported.read(SHIPPED / name)
    assert world.task == dreamjax.TASKS[name] and len(world.initial_mu) == 1000
    assert player.controller == world.controller(meta["controller_hidden"])
    assert player.weights.dtype == np.float32 and player.dream > 0
    assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) < 15e6
    assert '"/' not in (SHIPPED / name / "world.json").read_text(), "a path of some machine"
    card = (SHIPPED / name / "README.md").read_text()
    for scored in ("random", "blind", "ours"):
        assert f"{meta['results'][scored]['mean']:.0f}" in card, (
            "the card tells the scores measured"
        )
