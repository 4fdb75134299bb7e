"""From the real game into a dream and back, at the smallest size, through the command line."""

import dataclasses
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from command import alone, dreamjax
from flax import nnx
from PIL import Image
from short_cover import SHORT

from dreamjax.controller.components import directions
from dreamjax.controller.ppo import LearnConfig
from dreamjax.dream.world import TUNED
from dreamjax.dream.worlds import load_player, load_world, save_world
from dreamjax.memory.latents import read_latents
from dreamjax.memory.model import with_events
from dreamjax.run import cli
from dreamjax.run.presets import PRESETS
from dreamjax.run.running import export, phases_of
from dreamjax.run.settings import DreamConfig
from dreamjax.tasks import GAMES, TASKS
from dreamjax.training.checkpoint import CheckpointError, Store, digest, versions
from experiments import take_cover, temperature

GAME = SHORT.name
TINY = [  # smaller than the preset in all that takes time here
    "--vision.steps=4",
    "--vision.batch-size=8",
    "--memory.steps=2",
    "--evolve.generations=1",
    "--evolve.population=4",
    "--evolve.rollouts=2",
    "--evolve.eval-rollouts=8",
]


def test_smoke_leaves_scores(smoke):
    directory, out = smoke
    results = json.loads((directory / "results.json").read_text())
    assert results["profile"] == "takecover-2016"
    for name in ("random", "blind", "paper", "ours"):
        row = results[name]
        assert set(row) == {"mean", "std", "n", "ci95"}
        assert row["ci95"][0] <= row["mean"] <= row["ci95"][1]
        assert any(line.startswith(name) for line in out.splitlines())
    assert (results["paper"]["mean"], results["paper"]["std"]) == (1092, 556)
    assert 0 < results["ours"]["mean"] <= SHORT.max_steps


@pytest.mark.slow
def test_the_paper_s_sizes_take_the_same_path(tmp_path):
    """The whole Take Cover, not the short one: V of 64 latents, M of 512 units, 2,100 steps."""
    words = ["run", "take-cover", "--preset", "smoke", *TINY, "--run-dir", tmp_path / "run"]
    few = ["--collect.episodes=4", "--evaluate.episodes=2", "--evaluate.baseline-episodes=10"]
    status, _, err = dreamjax(*words, *few)
    assert status == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["task"] == "take-cover" and results["ours"]["n"] == 2
    assert results["blind"]["mean"] > 1.5 * results["random"]["mean"]
    world = load_world(tmp_path / "run")
    controller = world.player.controller
    sizes = [sum(x.size for x in jax.tree.leaves(model)) for model in (world.vision, world.memory)]
    assert [*sizes, controller.num_params] == [4_446_915, 1_678_785, 1_088]


def test_smoke_leaves_metrics_and_pictures(smoke):
    directory, _ = smoke
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert {"vision", "memory", "held-out", "evolve", "seconds"} <= {row["phase"] for row in rows}
    assert Image.open(directory / "curves.png").size[0] > 1000
    film = Image.open(directory / "dream.gif")
    assert film.size == (3 * 192, 206) and film.n_frames > 5


@pytest.mark.slow
def test_a_world_that_is_handed_on_is_played_at_several_temperatures(smoke, tmp_path, capsys):
    directory, _ = smoke
    words = ["--target", str(tmp_path / "world")]
    assert cli.main(["export", "--run-dir", str(directory), *words]) == 0
    sizes = {"num_envs": 32, "num_steps": 32, "num_minibatches": 4}
    short = LearnConfig(steps=2048, **sizes, eval_rollouts=8)
    settings = temperature.Config(
        tmp_path / "tau", str(tmp_path / "world"), (0.5,), (0,), episodes=2, dreams=8, learn=short
    )
    rows = temperature.main(settings)
    assert [row["tau"] for row in rows] == [0.5] and len(rows[0]["real"]) == 2
    assert temperature.main(settings) == rows, "known results are not measured again"
    assert (tmp_path / "tau" / "temperature.png").stat().st_size > 1000
    words = ["--world", str(tmp_path / "world"), "--run-dir", str(tmp_path / "new")]
    words += ["--evaluate.episodes", "2", "--evaluate.baseline-episodes", "2"]
    words += ["--evaluate.policies", SHORT.blind]
    capsys.readouterr()
    assert cli.main(["evaluate", GAME, *words]) == 0
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["ours"]["n"] == 2 and results["policies"] == {SHORT.blind: results["blind"]}
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("left_and_right") for line in said)


def standing(actions, rng):
    return lambda step, frame: np.zeros(1)


def test_fidelity_compares_dream_and_game(smoke):
    directory, _ = smoke
    words = ["real-episodes=2", "episodes=8", "controllers=3", "controller-episodes=1"]
    words += ["seen=1", "panel-episodes=1", "policies=test_pipeline:standing"]
    words += [f"players={directory}"]
    words = [f"--fidelity.{word}" for word in words] + ["--memory.held-out=0.5"]
    words += ["--dream.death-threshold=-1e6"]  # the first step of a dream is its last
    status, said, err = alone(
        "fidelity", "short_cover:SHORT", "--run-dir", directory, *words
    )  # which runs V much
    assert status == 0, err
    found = json.loads((directory / "fidelity.json").read_text())
    assert [row["dream"]["mean"] for row in found["policies"].values()] == [1] * 9
    assert found["controllers"]["dream"] == [1] * 3
    panel = ["still", "dodging", "sweeps", "standing", f"C of {directory}"]
    assert list(found["policies"]) == ["uniform", "held", "blind", *panel, "C"]
    assert found["policies"]["standing"]["real"]["n"] == 1
    assert found["policies"]["C"]["plain"]["mean"] == 1
    assert len(found["policies"]["C"]["real_hazard"]) == 6
    assert found["policies"]["blind"]["dream"]["n"] >= 8
    assert len(found["controllers"]["real"]) == 3
    assert [len(found["salient"][side]) for side in ("dream", "real")] == [6, 6]
    assert found["foresight"]["ahead"][:2] == [1, 5] and -1 <= found["doubt"]["rho"] <= 1
    assert Image.open(directory / "fidelity.png").width > 700
    assert found["deaths"]["deaths"] == 0, "of the one that M held out, whatever is asked for now"
    assert "rank correlation over 3 controllers" in said and "error by steps ahead" in said


def test_a_dream_is_tuned_as_asked_for():
    world = dataclasses.replace(load_world("take-cover"), dropout=0.1)
    own = {name: getattr(world, name) for name in TUNED}
    assert {name: getattr(DreamConfig().of(world), name) for name in TUNED} == own
    asked = {"temperature": 1.7, "death_threshold": 0.0, "death_noise": 0.0, "dropout": 0.2}
    assert set(asked) == set(TUNED)
    tuned = DreamConfig(**asked).of(world)
    assert {name: getattr(tuned, name) for name in asked} == asked
    assert DreamConfig(dropout=0.0).of(world).params().dropout is None


def test_a_world_keeps_the_dream_that_it_was_made_with(smoke, tmp_path):
    """What is asked for as M is bound is the world's own; the rest is as M says."""
    run = tmp_path / "run"
    shutil.copytree(smoke[0], run)
    shutil.rmtree(run / "world")
    plain = load_world(smoke[0])
    words = ["--preset", "smoke", "--dream.temperature", "1.3", "--dream.dropout", "0"]
    assert cli.main(["train-memory", GAME, "--run-dir", str(run), *words]) == 0
    world = load_world(run)
    assert world.params().temperature == 1.3 != plain.params().temperature
    assert world.params().dropout is None
    assert world.death_threshold == plain.death_threshold, "which was not asked for"


def test_a_world_is_calibrated_and_handed_on(smoke, tmp_path, capsys):
    run, words = tmp_path / "run", ["--fidelity.real-episodes", "2", "--fidelity.episodes", "4"]
    words += ["--dream.dropout", "0.07", "--dream.death-threshold", "1e6"]  # all live to the end
    for part in ("world", "controller"):
        shutil.copytree(smoke[0] / part, run / part)
    older = {**Store(run / "world").meta(), "versions": {"dreamjax": "0.0"}}
    save_world(run, load_world(run), {**older, "step": 0})
    before = Store(run / "world").meta()
    assert cli.main(["calibrate", GAME, "--run-dir", str(run), *words]) == 0
    tau, after = load_world(run).temperature, Store(run / "world").meta()
    assert f"temperature {tau:.2f};" in capsys.readouterr().out, "told as it is kept"
    changed = {name for name in after if after[name] != before.get(name)}
    tuned = {"temperature", "dropout", "death_threshold"}
    assert tuned <= changed <= tuned | {"step", "versions"}
    assert (after["step"], after["versions"]) == (2, versions())
    assert load_world(run).dropout == 0.07, "that of the dreams in which tau was found"
    assert load_world(run).player.weights.size, "C is still of this world"
    export(run, tmp_path / "on")
    assert load_world(tmp_path / "on").params().temperature == tau


def test_a_game_without_an_end_is_not_calibrated(tmp_path, capsys):
    words = ["calibrate", "car-racing", "--world", "car-racing", "--run-dir", str(tmp_path)]
    assert cli.main(words) == 1
    assert "are not told apart by how long they last" in capsys.readouterr().err


def test_every_artefact_says_how_it_was_made(smoke):
    directory, _ = smoke
    hashes = []
    for phase in ("vision", "memory", "evolve", "controller", "world"):
        meta = json.loads(next((directory / phase).glob("*/meta.json")).read_text())
        assert meta["seed"] == 0 and "jax" in meta["versions"] and meta["config"]
        hashes.append(meta.get("vision"))
    assert len(set(hashes[3:])) == 1  # C and the world name the same V
    assert hashes[1] == hashes[3]


def test_running_again_trains_nothing(smoke):
    directory, _ = smoke
    before = (directory / "metrics.jsonl").read_text()
    words = ["evolve", GAME, "--preset", "smoke", "--run-dir", str(directory)]
    assert cli.main(words) == 0
    added = (directory / "metrics.jsonl").read_text().removeprefix(before)
    assert [json.loads(line)["phase"] for line in added.splitlines()] == ["seconds"]


@pytest.mark.slow
def test_c_evolves_along_components_of_what_it_reads(smoke, tmp_path):
    words = ["evolve", GAME, "--preset", "smoke", *TINY[3:], "--evolve.components", "5"]
    words += ["--run-dir", str(tmp_path / "a"), "--world", str(smoke[0])]
    assert cli.main(words) == 0
    world = load_world(tmp_path / "a")
    controller, weights = world.player.controller, world.player.weights
    read = world.memory.features(world.start_states.z, world.start_states.carry)
    found = np.asarray(directions(controller, read, 5))
    off = weights - np.linalg.lstsq(found.T, weights)[0] @ found
    assert np.abs(off).max() < 1e-3 * np.abs(weights).max() > 0
    assert Store(tmp_path / "a" / "controller").meta()["config"]["components"] == 5


def test_a_search_that_has_evaluated_no_c_saves_none(smoke, tmp_path, monkeypatch, capsys):
    nothing = types.SimpleNamespace(best_score=-np.inf)
    monkeypatch.setattr("dreamjax.run.phases.evolve", lambda *args, **kept: nothing)
    words = ["evolve", GAME, "--preset", "smoke", *TINY[3:], "--world", str(smoke[0])]
    assert cli.main([*words, "--run-dir", str(tmp_path / "a")]) == 1
    assert "evolve has evaluated no C yet; raise --evolve.generations" in capsys.readouterr().err


@pytest.mark.slow
def test_a_c_without_components_evolves_weight_by_weight_and_says_so(smoke, tmp_path, capsys):
    known = load_world(smoke[0])
    save_world(tmp_path / "old", dataclasses.replace(known, start_states=None), {})
    words = ["evolve", GAME, "--preset", "smoke", *TINY[3:]]
    hidden = [*words, "--run-dir", str(tmp_path / "a"), "--world", str(smoke[0])]
    assert cli.main([*hidden, "--controller-hidden", "2"]) == 0
    assert "one by one, not along components: it has a hidden layer" in capsys.readouterr().out
    assert cli.main([*words, "--run-dir", str(tmp_path / "old")]) == 0
    assert "not along components: this world holds no start states" in capsys.readouterr().out
    assert Store(tmp_path / "a" / "controller").meta()["controller_hidden"] == 2


def test_c_can_be_learnt_instead_of_evolved(smoke, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(smoke[0], directory)
    evolved = load_world(directory).player.weights
    world = dataclasses.replace(load_world(directory), dropout=0.05)
    save_world(directory, world, {})
    words = ["learn", GAME, "--preset", "smoke", "--run-dir", str(directory)]
    assert cli.main(words) == 0
    meta = Store(directory / "controller").meta()
    assert meta["phase"] == "learn" and meta["config"]["num_envs"] == 32
    assert meta["temperature"] == pytest.approx(1.15) and meta["world"] == world.digest()
    assert meta["dropout"] == 0.05
    learnt = load_player(directory, world)
    assert learnt.controller.hidden == 64 and len(learnt.weights) > len(evolved)
    config = dataclasses.replace(PRESETS["smoke"], controller="learn")
    assert phases_of(config)[-2:] == ("learn", "evaluate") and "evolve" not in phases_of(config)
    assert phases_of(PRESETS["smoke"])[-2:] == ("evolve", "evaluate")


@pytest.mark.slow
def test_the_experiment_file_takes_the_same_path(smoke, monkeypatch):
    monkeypatch.setattr(take_cover, "TAKE_COVER", SHORT)
    directory, _ = smoke
    before = json.loads((directory / "results.json").read_text())
    take_cover.main(take_cover.Config(run_dir=directory, preset="smoke"))
    assert json.loads((directory / "results.json").read_text()) == before  # nothing trained anew


def test_other_settings_in_the_same_directory_are_refused(smoke, capsys):
    directory, _ = smoke
    words = ["train-vision", GAME, "--preset", "smoke", "--run-dir", str(directory)]
    assert cli.main([*words, "--seed", "5"]) == 1
    error = capsys.readouterr().err
    assert "was made with seed=0, now seed=5" in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_mixed_up_trio_is_refused(smoke, tmp_path):
    ours = smoke[0]
    theirs = tmp_path / "other"
    shutil.copytree(ours / "rollouts", theirs / "rollouts")
    words = [GAME, "--preset", "smoke", "--run-dir", str(theirs)]
    for phase in ("train-vision", "encode", "train-memory", "evolve"):
        assert cli.main([phase, *words, *TINY]) == 0
    with pytest.raises(CheckpointError, match="was evolved in world .*V, M and C must come from"):
        load_player(ours, load_world(theirs))
    shutil.rmtree(theirs / "vision")
    shutil.copytree(ours / "vision", theirs / "vision")
    assert cli.main(["train-memory", *words]) == 1


@pytest.mark.slow
def test_m_is_trained_on_where_v_is_the_same(smoke, tmp_path, capsys):
    run = tmp_path / "run"
    for part in ("rollouts", "latents", "vision"):
        shutil.copytree(smoke[0] / part, run / part)
    words = ["train-memory", GAME, "--preset", "smoke", *TINY, "--run-dir", str(run)]
    words += ["--memory.start-from", str(smoke[0]), "--memory.learning-rate", "1e-9"]
    assert cli.main([*words, "--memory.dropout", "0.25"]) == 0
    assert [load_world(x).dropout for x in (run, smoke[0])] == [0.25, None], "its dreams' too"
    ours, theirs = (load_world(directory).memory.head_kernel[...] for directory in (run, smoke[0]))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    made = Store(run / "world").meta()["config"]
    assert made["start_from"] == smoke[0].name, "no path of this machine in what is handed on"
    shutil.rmtree(run / "memory")
    other, theirs = tmp_path / "other", load_world(smoke[0])
    doubled = jax.tree.map(lambda x: 2 * x, theirs.vision)
    save_world(other, dataclasses.replace(theirs, vision=doubled), {})
    words[words.index(str(smoke[0]))] = str(other)
    assert cli.main(words) == 1
    assert "start from an M of the same V or of the one that it was" in capsys.readouterr().err
    clocked = load_world(smoke[0])
    clocked.memory.clock = True
    save_world(tmp_path / "clocked", clocked, {})
    words[words.index(str(other))] = str(tmp_path / "clocked")
    assert cli.main(words) == 1
    assert "has clock=True, but this run asks for False" in capsys.readouterr().err
    words[words.index(str(tmp_path / "clocked"))] = str(smoke[0])
    assert cli.main([*words, "--memory.residual", "True"]) == 1
    assert "has residual=False, but this run asks for True" in capsys.readouterr().err


@pytest.mark.slow
def test_v_is_trained_on_and_an_m_of_the_v_before_goes_on_with_it(smoke, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(smoke[0] / "rollouts", run / "rollouts")
    words = [GAME, "--preset", "smoke", *TINY, "--run-dir", str(run)]
    start = ["--vision.start-from", str(smoke[0]), "--vision.learning-rate", "1e-9"]
    start += ["--vision.final-learning-rate", "1e-9"]
    for other in "car-racing", str(tmp_path / "none"):
        assert cli.main(["train-vision", *words, "--vision.start-from", other]) == 1
    said = capsys.readouterr().err
    assert "V of car-racing has 32 latents, but" in said and f"no world in {tmp_path}" in said
    assert cli.main(["train-vision", *words, *start]) == 0
    assert cli.main(["encode", *words]) == 0
    words += ["--memory.learning-rate", "1e-9", "--memory.start-from"]
    assert cli.main(["train-memory", *words, str(smoke[0])]) == 0
    heads = [load_world(place).memory.head_kernel[...] for place in (run, smoke[0])]
    np.testing.assert_allclose(*heads, atol=1e-4)
    kernels = [load_world(place).vision.mu.kernel[...] for place in (run, smoke[0])]
    np.testing.assert_allclose(*kernels, atol=1e-5)
    assert np.any(kernels[0] != kernels[1]), "it is another V"


@pytest.mark.slow
def test_c_is_learnt_on_where_its_form_is_the_same(smoke, tmp_path, capsys):
    world, run = tmp_path / "world", tmp_path / "run"
    assert cli.main(["export", "--run-dir", str(smoke[0]), "--target", str(world)]) == 0
    words = ["learn", GAME, "--preset", "smoke", "--run-dir", str(run), "--world", str(world)]
    words += ["--learn.start-from", str(smoke[0]), "--learn.learning-rate", "1e-9"]
    assert cli.main([*words, "--controller-hidden", "4"]) == 1
    assert "has 0 hidden units, but this run asks for 56 and 4" in capsys.readouterr().err
    assert cli.main([*words, "--controller-hidden", "0"]) == 0
    theirs, ours = (load_player(directory).weights for directory in (smoke[0], run))
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    made = Store(run / "controller").meta()["config"]
    assert made["start_from"] == smoke[0].name, "no path of this machine in what is handed on"


@pytest.mark.slow
def test_c_learns_in_more_than_one_world(smoke, tmp_path, capsys):
    ours, run = load_world(smoke[0]), tmp_path / "run"
    save_world(run, ours, {})
    deadly = dataclasses.replace(ours, death_threshold=-50.0)
    another = dataclasses.replace(ours, vision=jax.tree.map(lambda x: 2 * x, ours.vision))
    larger = dataclasses.replace(ours, memory=with_events(ours.memory, SHORT, 2, nnx.Rngs(0)))
    for name, world in ("deadly", deadly), ("another", another), ("larger", larger):
        save_world(tmp_path / name, world, {})
    words = ["learn", GAME, "--preset", "smoke", "--run-dir", str(run)]
    words += ["--learn.steps", "4096", "--learn.worlds"]
    for name, fault in ("another", "has another V than this run"), ("larger", "is not of the same"):
        assert cli.main([*words, str(tmp_path / name)]) == 1
        assert fault in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "deadly"), str(smoke[0])]) == 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    lives = [line["life"] for line in lines if line["phase"] == "learn"]
    assert len(lives) == 4 and [life == 1.0 for life in lives] == [False, True, False, False]
    made = Store(run / "controller").meta()
    assert made["beside"] == [deadly.digest()[:12], ours.digest()[:12]]
    assert made["config"]["worlds"] == ["deadly", smoke[0].name]


@pytest.mark.slow
def test_a_world_that_was_handed_on_learns_from_its_own_play(smoke, tmp_path, capsys, monkeypatch):
    """Record, encode and train on with no more than an exported world."""
    monkeypatch.setattr("dreamjax.recording.SHARD", 4)  # episodes of a shard
    world, run = str(tmp_path / "world"), tmp_path / "run"
    assert cli.main(["export", "--run-dir", str(smoke[0]), "--target", world]) == 0
    words = [GAME, "--run-dir", str(run), "--collect.episodes", "4", "--seed", "7"]
    assert cli.main(["record", *words, "--world", world]) == 0
    assert cli.main(["encode", *words]) == 0
    assert read_latents(run / "latents").vision == digest(load_world(world).vision)
    words += ["--preset", "smoke", *TINY, "--memory.start-from"]
    capsys.readouterr()
    assert cli.main(["train-memory", *words, world, "--memory.learning-rate", "1e-9"]) == 0
    assert "held out otherwise" not in capsys.readouterr().out
    ours, theirs = (load_world(place).memory.head_kernel[...] for place in (run, world))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_two_runs_cannot_share_a_directory(smoke, capsys):
    import fcntl

    directory, _ = smoke
    with open(directory / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        words = ["collect", GAME, "--preset", "smoke", "--run-dir", str(directory)]
        assert cli.main(words) == 1
    assert "is in use by process" in capsys.readouterr().err


ODDGAMES = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from dreamjax import Task

PICK = Discrete(2)

class Numbers(gymnasium.Env):
    observation_space = Box(-np.arange(24, dtype=np.float32), np.float32(1))
    action_space = PICK

class Many(gymnasium.Env):
    observation_space = Box(0, 255, (64, 64, 3), np.uint8)
    action_space = MultiDiscrete([300, 2])

NUMBERS = Task("numbers", make=Numbers)
MANY = Task("many", make=Many)
NOWHERE = Task("nowhere", make="odd_games:nowhere")
TWIN = Task("take-cover", make=Numbers)
"""


@pytest.fixture
def odd_games(tmp_path_factory, monkeypatch):
    """Modules that a user may have: `odd_games`, and `broken_game`, which does not import."""
    folder = tmp_path_factory.mktemp("games")
    (folder / "odd_games.py").write_text(ODDGAMES)
    (folder / "broken_game.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("dreamjax.tasks.TASKS", dict(TASKS))
    monkeypatch.setattr("dreamjax.dream.registration.register_dream", lambda task: None)
    yield
    sys.modules.pop("odd_games", None)


@pytest.mark.parametrize(
    "words, message",
    [
        ("train-vision take-cover --preset smoke --run-dir DIR", "rollouts"),
        ("train-memory take-cover --preset smoke --run-dir DIR", "no usable checkpoint"),
        ("evolve take-cover --preset smoke --run-dir DIR", "no world in"),
        ("evolve take-cover --run-dir DIR --world take-clover", "a shipped one"),
        ("collect take-cover --run-dir DIR --world x", "no world in x; train one there, or name a"),
        ("train-vision take-cover --run-dir DIR --world take-cover", "take-cover has its V; leave"),
        (
            "evolve take-cover --run-dir DIR --dream.death-noise -1",
            "death_noise must be at least 0",
        ),
        ("evolve car-racing --preset smoke --run-dir DIR", "no world in"),
        ("learn car-racing --preset smoke --run-dir DIR", "no world in"),
        (
            "learn take-cover --run-dir DIR --learn.num-minibatches 7",
            "num_minibatches=7 does not divide",
        ),
        ("run take-cover --preset huge --run-dir DIR", "unknown preset 'huge'"),
        ("evolve take-cover --run-dir DIR --dream.temperature 0", "temperature must be"),
        ("learn take-cover --run-dir DIR --dream.death-threshold nan", "death_threshold must be a"),
        ("run take-cover --run-dir DIR --memory.held-out 1.5", "memory.held_out must be in (0, 1)"),
        ("run take-cover --run-dir DIR --memory.held-out nan", "memory.held_out must be in (0, 1)"),
        ("run take-cover --run-dir DIR --memory.clip -1", "memory.clip must be in (0, inf]"),
        ("run take-cover --run-dir DIR --memory.death-weight -10", "memory.death_weight must be"),
        ("run take-cover --run-dir DIR --memory.decay 2", "memory.decay must be in (0, 1]"),
        ("run take-cover --run-dir DIR --learn.gamma 1.5", "learn.gamma must be in (0, 1)"),
        ("run take-cover --run-dir DIR --learn.ent-coef nan", "learn.ent_coef must be in [0, inf)"),
        (
            "run take-cover --run-dir DIR --vision.steps -5",
            "vision.steps must be at least 1, got -5",
        ),
        ("run take-cover --run-dir DIR --vision.learning-rate inf", "vision.learning_rate must be"),
        ("run take-cover --run-dir DIR --seed -1", "seed must be from 0 to"),
        (f"run take-cover --run-dir DIR --seed {10**30}", "seed must be from 0 to"),
        ("run take-cover --run-dir DIR --save-seconds nan", "save_seconds must be in [0, inf)"),
        ("run take-cover --run-dir DIR --workers 0", "workers must be at least 1, got 0"),
        ("evolve take-cover --run-dir DIR --dream.temperature nan", "temperature must be"),
        ("evolve take-cover --run-dir DIR --evolve.population 3", "population must be at least 4"),
        ("evaluate take-cover --run-dir DIR --evaluate.episodes 0", "episodes must be at least 1"),
        ("collect take-cover --run-dir DIR --collect.episodes 0", "episodes must be at least 1"),
        ("run take-cover --run-dir DIR --evaluate.policies me", "no policy is called 'me'; choose"),
        ("collect take-cover --run-dir /proc/none", "cannot write to /proc/none"),
        ("run take-cover --run-dir DIR --memory.kind nothing", "no M is of the kind 'nothing'"),
        (
            "run take-cover --run-dir DIR --memory.kind no_such_module:M",
            "no module no_such_module; it",
        ),
        (
            "run take-cover --run-dir DIR --memory.kind odd_games:PICK",
            "no subclass of dreamjax.Mem",
        ),
        ("train-memory take-cover --run-dir DIR --memory.heads reward", "has no reward to predict"),
        (
            "run take-cover --run-dir DIR --memory.hidden-size 1000000",
            "memory.hidden_size",
        ),
        ("collect pong --run-dir DIR", "no task is called 'pong'; choose one of take-cover, "),
        ("collect no_such_module:TASK --run-dir DIR", "there is no module no_such_module; it must"),
        ("collect broken_game:TASK --run-dir DIR", "broken_game does not import (ZeroDivisionErr"),
        (
            "collect odd_games:PICK --run-dir DIR",
            "odd_games:PICK is no dreamjax.Task, but Discrete",
        ),
        ("collect odd_games:NONE --run-dir DIR", "odd_games has no 'NONE'"),
        ("collect odd_games:NUMBERS --run-dir DIR", "numbers shows no pictures: its observations"),
        ("collect odd_games:NUMBERS --run-dir DIR", "its render_mode is None, not 'rgb_array'"),
        ("collect odd_games:MANY --run-dir DIR", "actions have 600 combinations, more than 256"),
        ("collect odd_games:NOWHERE --run-dir DIR", "odd_games has no 'nowhere'"),
        ("collect odd_games:TWIN --run-dir DIR", "another task is called take-cover; choose anoth"),
    ],
)
def test_bad_input_is_one_clear_line(words, message, tmp_path, capsys, odd_games):
    assert cli.main([str(tmp_path) if word == "DIR" else word for word in words.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("dreamjax: ") and error.count("\n") == 1


def test_a_module_of_this_directory_is_found(tmp_path, capsys, monkeypatch):
    """As the console script runs, whose own directory is first on the path."""
    (tmp_path / "of_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    words = ["collect", "take-cover", "--run-dir", "run", "--collect.policy", "of_mine:drive"]
    assert cli.main(words) == 1
    assert "of_mine has no 'drive'" in capsys.readouterr().err


@pytest.mark.smoke
def test_info_is_true(capsys):
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shipped = {task.name: found["parameters"][task.name] for task in GAMES}
    assert shipped == {
        "take-cover": {"V": 4_446_915, "M": 1_678_785, "C": 1_088},
        "take-cover-vizdoom": {"V": 4_446_915, "M": 1_678_785, "C": 1_088},
        "car-racing": {"V": 4_348_547, "M": 423_139, "C": 867},
        "car-racing-paper": {"V": 4_348_547, "M": 423_139, "C": 867},
    }
    assert found["parameters, M as in the paper"]["car-racing"]["M"] == 422_368
    assert found["devices"] and set(found["games"]) >= {"take-cover", "car-racing"}
    assert cli.main(["info"]) == 0
    assert "1678785" in capsys.readouterr().out


def test_the_players_start_without_jax():
    code = "import sys, dreamjax, dreamjax.game.player; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_public_names_exist():
    import dreamjax as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    assert Path(package.__file__).parent.name == "dreamjax"
