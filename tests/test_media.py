"""The film survives what happens to its game; curves show what there is, once."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from processes import engines_in, running, shared_memory, wait_until, working_in
from untrained import random_memory

from dreamjax import agent
from dreamjax.dream.unroll import follow
from dreamjax.dream.world import World
from dreamjax.game.vector import VectorGame
from dreamjax.game.workers import WorkerError
from dreamjax.memory.heads import places
from dreamjax.memory.lstm import MDNRNN
from dreamjax.run import pictures as media
from dreamjax.tasks import CAR_RACING
from dreamjax.vision.model import VAE

PANEL = 440  # pixels


@pytest.fixture
def world(small_task):
    """An untrained world of the real Take Cover."""
    vision = VAE(small_task.latent_size, rngs=nnx.Rngs(0))
    start = jnp.zeros((1, small_task.latent_size))
    return World(small_task, vision, random_memory(small_task), start, start)


@pytest.fixture
def player(world):
    return world.player_of(jax.random.normal(jax.random.key(5), (world.memory.feature_size,)))


def test_a_film_keeps_what_is_small_and_bright(tmp_path):
    """Median cut, Pillow's own, makes a fireball as brown as the wall behind it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(50, 120, (PANEL // 2, PANEL, 1)).repeat(3, axis=2).astype(np.uint8)
    pixels[40:50, 60:66] = 250, 245, 130
    media.save_gif([Image.fromarray(pixels)] * 2, tmp_path / "film.gif", 12)
    shown = np.asarray(Image.open(tmp_path / "film.gif").convert("RGB"), int)
    assert np.abs(shown - pixels).max(axis=-1)[40:50, 60:66].max() < 24


def test_the_filmed_dream_has_the_dropout_of_its_world(world):
    z, actions = np.ones(world.task.latent_size, np.float32), np.zeros((5, 1), np.float32)
    worlds = (dataclasses.replace(world, dropout=x) for x in (None, 0.0, 0.5))
    bare, none, thinned = (media._dream(dropping, z, follow, actions, 1)[0] for dropping in worlds)
    np.testing.assert_array_equal(bare, none)
    assert np.abs(thinned - bare).max() > 0.01


@pytest.mark.parametrize("open_loop", [True, False])
def test_the_player_drives_the_filmed_dream_unless_it_is_open(
    open_loop, world, player, tmp_path, monkeypatch
):
    """Of games in which nothing but 1 is done, by a player that always does -1."""
    kernel = world.memory.lstm_kernel
    kernel[...] = kernel[...].at[world.task.latent_size].multiply(30.0)  # actions matter
    game = np.zeros((9, 64, 64, 3), np.uint8), np.ones((9, 6), np.float32), np.ones((9, 1))
    monkeypatch.setattr(media, "watch", lambda *_: game)
    shown = []
    monkeypatch.setattr(media, "drawn", lambda vision, z: shown.append(z) or game[0])
    against = types.SimpleNamespace(controller=lambda weights, obs: -jnp.ones(1), weights=None)
    media.film(world, against, tmp_path / "film.gif", open_loop=open_loop)
    did = np.full((9, 1), 1 if open_loop else -1, np.float32)
    expected = media._dream(world, game[1][0], follow, did, 0)[0]
    np.testing.assert_array_equal(shown[1], expected[:: len(expected) // len(shown[1])])


def test_the_filmed_dream_ends_by_a_name_of_its_task():
    task = dataclasses.replace(CAR_RACING, latent_size=2, hidden_size=3, name="race", max_steps=6)
    z, actions = np.ones(2, np.float32), np.zeros((5, 3), np.float32)
    for number, end in enumerate(task.ends):
        memory = MDNRNN(task, rngs=nnx.Rngs(0))
        biases = memory.head_bias[...].at[places(memory.layout)["end"]].set(-50.0)
        sure = np.arange(len(biases))[places(memory.layout)["end"]][number]
        memory.head_bias[...] = biases.at[sure].set(50.0)
        dreamt = World(task, None, memory, z[None], z[None], death_noise=0.0)
        latents, last, named = media._dream(dreamt, z, follow, actions, 0)
        assert (latents.shape, last, named) == ((5, 2), 0, end)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_a_film_whose_engine_dies_or_hangs_is_the_same_film(
    number, world, player, tmp_path, monkeypatch
):
    (tmp_path / "games").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "games"))
    monkeypatch.setattr(media, "FILM_STEPS", 40)
    monkeypatch.setattr(agent, "VectorGame", functools.partial(VectorGame, timeout=5))
    assert media.film(world, player, tmp_path / "calm.gif") == 40
    hit = []

    class Saboteur(agent._Reel):
        def add(self, *step):
            super().add(*step)
            if len(self.steps) == 20:
                hit.extend(engines_in(tmp_path))
                os.kill(hit[0], number)

    monkeypatch.setattr(agent, "_Reel", Saboteur)
    assert media.film(world, player, tmp_path / "hit.gif") == 40
    assert (tmp_path / "hit.gif").read_bytes() == (tmp_path / "calm.gif").read_bytes()
    wait_until(lambda: not running(hit), 5)
    assert os.listdir(tmp_path / "games") == []


def test_a_film_whose_game_always_crashes_ends_in_one_line(world, player, tmp_path):
    game = {"profile": "fatal", "make": "toy_game:fatal", "crop": None}
    world = dataclasses.replace(world, task=dataclasses.replace(world.task, **game))
    with pytest.raises(
        WorkerError, match="game take-cover with seed 1 was lost 4 times: a worker"
    ) as caught:
        media.film(world, player, tmp_path / "dream.gif")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_film_shows_the_first_episode_of_the_evaluation(world, player, monkeypatch):
    seen = []

    class First(agent.Tape):
        def add(self, episodes, frames, latents, actions, rewards, ends):
            if episodes[0] == 0:
                seen.append((frames[0], latents[0], actions[0]))

    monkeypatch.setattr(agent, "Tape", First)
    agent.evaluate(world, player, 3, seed=4)
    frames, latents, actions = agent.watch(world, player, 4, 30)
    assert len(frames) == 30 < len(seen)
    for filmed, played in zip((frames, latents, actions), zip(*seen, strict=True), strict=True):
        np.testing.assert_allclose(filmed, np.stack(played)[:30], atol=1e-4)


# The command, but with little to evaluate, so that it soon makes its film.
FILMING = """
import sys
from dreamjax.run import cli, phases
from dreamjax import agent
def evaluate(*args, **kept):
    return agent.Played(agent.np.ones(2), agent.np.ones(2), agent.np.ones(2, bool))
phases.evaluate = evaluate
phases.play = lambda *args, **kept: evaluate()
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_film_can_be_stopped_even_while_its_engine_hangs(tmp_path):
    games = tmp_path / "games"
    games.mkdir()
    words = ["evaluate", "take-cover", "--world", "take-cover", "--run-dir", str(tmp_path / "run")]
    environment = os.environ | {"TMPDIR": str(games)}
    command = subprocess.Popen(
        [sys.executable, "-c", FILMING, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: shared_memory(games) and engines_in(games), 120)
        players, (engine,), files = working_in(games), engines_in(games), shared_memory(games)
        os.kill(engine, signal.SIGSTOP)
        command.terminate()
        said = command.communicate(timeout=30)[1]
    finally:
        command.kill()
        command.communicate()
    assert command.returncode == 130 and "stopped; resume with: dreamjax evaluate" in said
    wait_until(lambda: not running(players), 5)
    assert files and not any(file.exists() for file in files)
    assert os.listdir(tmp_path / "games") == []


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_curves_are_drawn_of_what_was_learnt_and_of_nothing_else(tmp_path):
    learn = [{"phase": "learn", "step": step, "life": 90.0 + step} for step in range(1, 30)]
    learn[9] |= {"eval": 300.0, "best_eval": 300.0}
    seconds = {"phase": "seconds", "step": 0, "learn": 60.0}
    metrics, target = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    media.draw_curves(written(metrics, [seconds]), target)
    assert not target.exists()
    media.draw_curves(written(metrics, [*learn, seconds]), target)
    assert Image.open(target).width == PANEL
    ((label, unit, curves),) = media._panel_curves(learn)
    assert "learnt" in label and unit == "update"
    assert list(curves) == ["life", "best_eval", "eval"]
    assert curves["eval"] == {10: 300.0} and len(curves["life"]) == 29
    evolve = {"phase": "evolve", "step": 1, "mean": 1.0, "max": 2.0}
    nll = {"phase": "memory", "step": 1, "nll": 1.0, "death_loss": None}
    media.draw_curves(written(metrics, [nll, evolve, *learn]), target)
    assert Image.open(target).width == 3 * PANEL


def test_rows_that_a_killed_run_repeated_are_drawn_once_and_in_order():
    steps = (1, 2, 4, 2, 3, 5)  # killed after 4, gone on from 1 by other strides
    rows = [{"phase": "memory", "step": s, "nll": 10.0 * i} for i, s in enumerate(steps)]
    ((_, _, curves),) = media._panel_curves(rows)
    assert list(curves["nll"].items()) == [(1, 0.0), (2, 30.0), (3, 40.0), (4, 20.0), (5, 50.0)]
