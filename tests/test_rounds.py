"""Round after round: C plays, M learns from it, C learns anew; every round is a run."""

import json
import os
import shutil

import numpy as np
import pytest
from command import alone, dreamjax
from short_cover import SHORT
from test_pipeline import TINY

from dreamjax.dream.worlds import load_world
from dreamjax.game.rollouts import shard_paths
from dreamjax.memory.latents import read_latents
from dreamjax.run import cli
from dreamjax.training.checkpoint import Store

FEW = ["--evaluate.episodes=2", "--evaluate.baseline-episodes=2", "--iterate.episodes=4"]
WORDS = ["iterate", "short_cover:SHORT", "--preset", "smoke", *TINY, *FEW, "--evolve.eval-every=1"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("dreamjax.recording.SHARD", 4)  # episodes of a shard


def test_a_round_begins_with_what_was_before_it(smoke, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(smoke[0], run)
    status, _, err = alone(*WORDS, "--run-dir", run, "--iterate.rounds", "1")
    assert status == 0, err
    first = run / "round-1"
    assert len(shard_paths(first / "latents")) == len(shard_paths(run / "latents")) + 1
    assert Store(first / "memory").meta()["config"]["start_from"] == ".."


@pytest.mark.slow
def test_rounds_go_on_from_one_another(smoke, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(smoke[0], run)
    scores = (run / "results.json").read_bytes()
    words = [*WORDS, "--run-dir", str(run)]
    assert cli.main([*words, "--iterate.rounds", "1", "--log", "tensorboard"]) == 0
    assert (run / "results.json").read_bytes() == scores, "what was judged is not judged again"
    first = run / "round-1"
    assert os.listdir(first / "tensorboard"), "a round has logs of its own"
    for name in sorted(os.listdir(run / "latents")):
        assert os.path.samefile(run / "latents" / name, first / "latents" / name)
    assert len(shard_paths(first / "latents")) == len(shard_paths(run / "latents")) + 1
    assert Store(first / "memory").meta()["config"]["start_from"] == "..", "moves with the run"
    assert Store(first / "memory").meta()["config"]["steps"] == 2
    before, after = (load_world(place).memory.head_kernel[...] for place in (run, first))
    assert 0 < np.abs(before - after).max() < 0.1, "it is trained on, not anew"
    assert load_world(first).player.dream is not None
    moved = tmp_path / "moved"
    run.rename(moved)
    run, first, words = moved, moved / "round-1", [*WORDS, "--run-dir", str(moved)]
    (first / "results.json").unlink()
    capsys.readouterr()
    stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*.npz")}
    assert cli.main([*words, "--iterate.rounds", "1"]) == 0, "it goes on from where it was stopped"
    judged = (first / "results.json").stat().st_mtime_ns
    assert cli.main([*words, "--iterate.rounds", "2"]) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in first.rglob("*.npz")}
    assert (first / "results.json").stat().st_mtime_ns == judged
    second = run / "round-2"
    ours, theirs = (
        set(read_latents(place / "latents").seeds.tolist()) for place in (second, first)
    )
    assert theirs < ours and len(ours - theirs) == 4, "each round plays games of its own"
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    found = [json.loads((place / "results.json").read_text()) for place in (run, first, second)]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [float(row[2]) for row in rows] == [round(one["ours"]["mean"]) for one in found]
    assert cli.main(["evaluate", SHORT.name, "--run-dir", str(second), *FEW[:2]]) == 0


def test_it_says_what_it_cannot_do(tmp_path):
    status, _, err = dreamjax(*WORDS, "--run-dir", tmp_path / "run", "--dry-run")
    assert (status, err) == (1, "dreamjax: iterate cannot be planned; leave out --dry-run\n")
    status, _, err = dreamjax(*WORDS, "--run-dir", tmp_path / "run", "--iterate.rounds", "0")
    assert (status, err.count("\n")) == (1, 1) and "iterate.rounds must be at least 1" in err
