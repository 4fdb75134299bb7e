"""The instruments that compare a dream with the game are themselves compared with known truths."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from untrained import random_memory

from dreamjax.agent import Agent, evaluation_seeds
from dreamjax.controller.player import Player
from dreamjax.controller.population import Dreamt
from dreamjax.dream.world import World
from dreamjax.fidelity import calibrate, panel
from dreamjax.fidelity import compare as fidelity
from dreamjax.game.jobs import Played
from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.lstm import MDNRNN
from dreamjax.memory.metrics import calibrated_threshold
from dreamjax.run import fidelity as run_fidelity
from dreamjax.run.settings import FidelityConfig, Run, RunConfig
from dreamjax.tasks import TAKE_COVER, TASKS
from dreamjax.training.checkpoint import CheckpointError
from dreamjax.training.logbook import Logbook
from dreamjax.training.settings import SettingError
from dreamjax.vision.model import VAE
from experiments import salience
from experiments.branches import _padded, branch_hazard
from experiments.salience import average_precision


def world_of(task, memory):
    start = jnp.zeros((3, task.latent_size))
    return World(task, None, memory, start, start - 2)


@pytest.fixture
def world(small_task):
    return world_of(small_task, random_memory(small_task, death_bias=-0.8))


def constant_hazard(task, logit):
    """An M whose death logit is always `logit`."""
    memory = MDNRNN(task, rngs=nnx.Rngs(0))
    memory.head_kernel[...] = memory.head_kernel[...].at[:, -1].set(0.0)
    memory.head_bias[...] = memory.head_bias[...].at[-1].set(logit)
    return memory


@pytest.mark.parametrize("policy", [pytest.param("uniform", marks=pytest.mark.slow), "blind"])
def test_sampled_deaths_come_at_the_rate_that_the_logit_says(small_task, policy):
    task = dataclasses.replace(small_task, max_steps=1000)
    logit = 1.0
    world = world_of(task, constant_hazard(task, logit))
    world = dataclasses.replace(world, death_noise=1.0, death_threshold=4.0)
    played = fidelity.dreamt_play(world, policy, 128, 0)
    lengths = np.asarray(played.steps)
    np.testing.assert_array_equal(played.score, lengths)
    hazard = 1 / (1 + np.exp(4.0 - logit))
    error = lengths.std() / np.sqrt(lengths.size)
    assert abs(lengths.mean() - 1 / hazard) < 4 * error
    certain = dataclasses.replace(world, death_noise=0.0)
    assert (fidelity.dreamt_play(certain, policy, 8, 0).steps == task.max_steps).all()


def test_plans_are_the_policies_actions(world):
    plans = fidelity._plans(world, "blind", 100, 0)
    assert plans.shape == (1, 60, 1) and (plans == -1).all()
    plans = fidelity._plans(world, "held", 100, 0)
    assert plans.shape == (4, 60, 1) and len(np.unique(plans[:, 0])) == 4


def test_a_plan_is_followed_step_by_step(world):
    env, plan = fidelity.Blindfold(world.task), jnp.linspace(-1, 1, 60)[:, None]
    obs, state = env.reset_env(jax.random.key(0), world.params())
    for step in range(3):
        action = fidelity._planned(plan, obs)
        np.testing.assert_array_equal(action, plan[step])
        obs, state, *_ = env.step_env(jax.random.key(1), state, action, world.params())


def test_controllers_go_from_chance_to_the_best():
    best = np.random.default_rng(0).normal(0.2, 1, 500)
    found = fidelity.controllers_between(best, 30, 1)
    likeness = [np.corrcoef(best, one)[0, 1] for one in found]
    np.testing.assert_allclose(found[-1], best, rtol=1e-6)
    assert max(np.abs(likeness[:10])) < 0.2 and likeness[11] < 0.3
    assert np.all(np.diff(likeness[10:]) > -0.1)
    np.testing.assert_allclose(found[:10].std(), 0.1, rtol=0.05)


def test_rank_correlation_sees_order_alone():
    assert fidelity.rank_correlation([1, 2, 3, 4], [1, 10, 11, 99])["rho"] == pytest.approx(1)
    assert fidelity.rank_correlation([1, 2, 3, 4], [9, 3, 2, 0])["rho"] == pytest.approx(-1)
    assert fidelity.rank_correlation([5, 5, 5], [1, 2, 3])["rho"] == 0


def test_reconstruction_counts_salient_pixels_apart(world):
    class Grey:  # answers every frame with grey
        def encode(self, frames):
            return jnp.zeros((len(frames), 1)), None

        def decode(self, z):
            return jnp.full((len(z), 64, 64, 3), 0.5)

    jax.tree_util.register_static(Grey)
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    frames[:, :2, 0, 1] = 255
    frames[0, 0, 0, 0] = 255
    found = fidelity.reconstruction(dataclasses.replace(world, vision=Grey()), frames, batch=2)
    assert found["error"] == pytest.approx(64 * 64 * 3 / 4)
    assert found["salient"] == pytest.approx(2 * 3 / 4)
    assert found["salient_variance"] == pytest.approx(0.2 * 0.8, rel=1e-5)


def test_hazard_is_deaths_over_steps_at_each_age():
    lengths = np.array([100, 150, 400, 2100])
    found, errors = fidelity.hazard(lengths, TAKE_COVER)
    assert found[0] == pytest.approx(1000 * 2 / (100 + 3 * 150))
    assert found[1] == 0 and found[2] == pytest.approx(1000 * 1 / (100 + 200))
    assert found[3:] == [0, 0, 0], "the last one was cut, it did not die"
    assert errors[0] == pytest.approx(found[0] / 2**0.5) and errors[2] == pytest.approx(found[2])
    assert errors[5] == pytest.approx(1000 * 1 / 800)
    assert fidelity.hazard(lengths[:1], TAKE_COVER)[1][3:] == [0, 0, 0]


def test_flashes_are_counted_and_timed():
    pictures = np.zeros((9, 64, 64, 3), np.float32)
    pictures[[1, 2, 3, 6], ..., 0] = 0.5
    pictures[8] = 0.9  # white is no flash
    red = fidelity.flash(TAKE_COVER.flash, pictures)
    np.testing.assert_allclose(red + 0.1, [0, 0.5, 0.5, 0.5, 0, 0, 0.5, 0, 0], atol=1e-6)
    assert fidelity.flashes([red, red[:1]]) == {"rate": 200.0, "length": 2.0}
    redder = fidelity.flash(dataclasses.replace(TAKE_COVER.flash, above=0.6), pictures)
    assert fidelity.flashes([redder]) == {"rate": 0.0, "length": 0.0}


def test_dreams_are_watched_until_they_end(world):
    class Reddish:  # draws the first latent as red
        def decode(self, z):
            return jnp.zeros((len(z), 64, 64, 3)).at[..., 0].set(z[:, :1, None])

    jax.tree_util.register_static(Reddish)
    world = dataclasses.replace(world, vision=Reddish(), initial_mu=world.initial_mu + 2)
    found = list(fidelity.dreamt_pictures(world, "held", 6, 40, 0))
    assert len(found) == 6 and len({len(shown) for shown in found}) > 1
    assert all(shown[0, ..., 0].min() > 1 and len(shown) <= 40 for shown in found)
    safe = dataclasses.replace(world, death_threshold=99.0)
    assert {len(shown) for shown in fidelity.dreamt_pictures(safe, "blind", 3, 40, 0)} == {40}


def test_counts_are_averaged_by_age(small_task):
    task = dataclasses.replace(small_task, ages=(0, 2, 4, 8))
    assert fidelity.by_age([np.array([1, 3, 5]), np.array([8])], task) == [4, 5, 0]


def sequences(task, lengths, seed=0):
    rng, frames = np.random.default_rng(seed), sum(lengths)
    return LatentSequences(
        mu=rng.normal(size=(frames, task.latent_size)).astype(np.float16),
        logvar=np.full((frames, task.latent_size), -20, np.float16),
        actions=rng.uniform(-1, 1, (frames, 1)).astype(np.float32),
        rewards=np.ones(frames, np.float32),
        lengths=np.array(lengths, np.int32),
        terminated=np.ones(len(lengths), bool),
        seeds=np.arange(len(lengths)),
        vision="v",
        profile=task.profile,
    )


class Brightness:
    """A V that draws the first latent as grey."""

    def decode(self, z):
        return jnp.broadcast_to(jnp.clip(z[:, :1, None, None], 0, 1), (len(z), 64, 64, 3))


jax.tree_util.register_static(Brightness)


def test_who_looks_at_a_dream_is_shown_each_step_of_it(small_task):
    """Deaths of known chance; what is shown is what V draws, and each dream sees its own."""
    world = world_of(small_task, constant_hazard(small_task, 1.0))
    world = dataclasses.replace(world, vision=Brightness(), death_noise=1.0, death_threshold=3.0)
    seen = []

    def act(step, frames):
        seen.append(frames)
        return np.zeros((200, 1), np.float32)

    played = panel.dreamt_looking(world, act, 200, 0)
    np.testing.assert_array_equal(played.score, played.steps)
    assert len(seen) == played.steps.max() and played.steps.min() < 4
    chance = 1 / (1 + np.exp(2.0))
    expected = (1 - (1 - chance) ** small_task.max_steps) / chance
    assert abs(played.steps.mean() - expected) < 4 * played.steps.std() / 200**0.5
    first = jax.vmap(world.env().reset, (0, None))(
        jax.random.split(jax.random.split(jax.random.key(0))[1], 200), world.params()
    )[1]
    grey = np.round(255 * np.clip(first.z[:, 0], 0, 1)).astype(np.uint8)
    np.testing.assert_array_equal(seen[0][:, 5, 5, 1], grey)


def test_players_look_at_dreams_with_eyes_of_their_own(small_task):
    """A C acts by V and M of its own world on what another world's V draws."""
    world = world_of(small_task, random_memory(small_task))
    own = dataclasses.replace(world, vision=VAE(small_task.latent_size, rngs=nnx.Rngs(3)))
    player = own.player_of(jax.random.normal(jax.random.key(5), (own.memory.feature_size,)))
    act = panel.by_player(own, player, 3, 0)
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    agent = Agent(own, player, 3, jax.random.key(0))
    agent.begin(np.arange(3), evaluation_seeds(0, 3))
    for step in range(2):
        np.testing.assert_array_equal(act(step, frames), agent.act(np.arange(3), frames)[0])


def test_two_players_of_one_name_have_a_row_each():
    assert run_fidelity._shortest("mine:still", {"held"}) == "still"
    for name, taken in (
        ("mine:still", {"still"}),
        ("mine:C", ()),
        ("mine:held", ()),
        ("uniform", ()),
    ):
        assert run_fidelity._shortest(name, taken) == name


def many(actions, rng):
    return lambda step, frame: np.zeros(7)


def test_a_policy_that_makes_no_action_is_named(small_task):
    act = panel.by_policy(small_task, "test_fidelity:many", 2, 0)
    with pytest.raises(ValueError, match="policy test_fidelity:many failed .* must make") as caught:
        act(0, np.zeros((2, 64, 64, 3), np.uint8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_who_is_in_the_panel_of_a_game_can_play_it(task):
    space, rng = task.actions.space(), np.random.default_rng(0)
    for name in task.panel:
        act = panel.by_policy(task, name, 1, 0)
        for step in range(3):
            (action,) = act(step, rng.integers(0, 255, (1, 64, 64, 3), np.uint8))
            assert (action >= space.low).all() and (action <= space.high).all(), name


def test_what_was_found_is_written_drawn_and_printed(small_task, tmp_path, capsys):
    world = dataclasses.replace(world_of(small_task, random_memory(small_task)), temperature=1.2)
    played = Played(np.array([4.0, 6.0]), np.array([4, 6]), np.ones(2, bool))

    def dreaming(world):
        lived = 8 if world.temperature == 1.2 else 9
        return Dreamt(np.full(5, lived), np.full(5, lived))

    row = run_fidelity._compared(small_task, world, dreaming, played)
    assert [row[side]["mean"] for side in ("dream", "plain", "real")] == [8, 9, 5]
    assert row["ratio"] == 1.6 and len(row["dream_hazard"]) == len(small_task.ages) - 1
    found = {"policies": {"still": row, "C": row}, "vision": {"error": 3.0}}
    found["salient"] = {"dream": [1.0], "real": [2.0]}
    found["flashes"] = {"dream": {"rate": 3.0, "length": 4}}
    found["controllers"] = {"n": 3, "rho": 0.5}
    found["deaths"] = {"nll": 1.5}
    found["foresight"] = {"ahead": [1, 5], "error": [0.1, 0.2], "control": [0.3, 0.4]}
    found["foresight"] |= {"copy": [0.5, 0.6], "nll": [1, 2]}
    found["doubt"] = {"n": 9, "rho": 0.25}
    run = Run(tmp_path, small_task, 0, RunConfig(), Logbook(tmp_path))
    run_fidelity.report(run, None, found)
    assert json.loads((tmp_path / "fidelity.json").read_text()) == found
    assert Image.open(tmp_path / "fidelity.png").width > 800
    said = capsys.readouterr().out
    for line in ("8 ± 0", "9 ± 0", "5 ± 1", "1.60", "5: 0.20 (0.40, 0.60)", "over 9 steps: 0.25"):
        assert line in said, line
    task = dataclasses.replace(small_task, step_reward=None)
    assert run_fidelity._compared(task, world, dreaming, played)["difference"] == 3


def test_players_that_cannot_look_at_a_dream_are_refused_first(small_task, world, tmp_path):
    def asked(**settings):
        config = RunConfig(fidelity=FidelityConfig(**settings))
        return run_fidelity._others(Run(tmp_path, small_task, 0, config, Logbook(quiet=True)))

    with pytest.raises(ValueError, match="no policy is called 'no'"):
        asked(policies=("no",))
    with pytest.raises(ValueError, match="policy test_fidelity:many failed .* must make"):
        asked(policies=("test_fidelity:many",))
    with pytest.raises(ValueError, match="test_fidelity has no 'nobody'"):
        asked(policies=("test_fidelity:nobody",))
    with pytest.raises(CheckpointError, match="no world in"):
        asked(players=(str(tmp_path),))
    with pytest.raises(ValueError, match="C of car-racing plays carracing-v3-skip4, not takecover"):
        asked(players=("car-racing",))
    with pytest.raises(SettingError, match="panel_episodes must be at least 1, got 0"):
        FidelityConfig(panel_episodes=0)
    assert asked() == {}


def test_a_departure_expects_what_the_dream_itself_draws(small_task):
    """Deaths of known chance, in ages and windows counted by hand; M and C act as in the dream."""
    task = dataclasses.replace(small_task, max_steps=400)
    world = world_of(task, random_memory(task, death_bias=-4.0))
    world = dataclasses.replace(world, death_noise=1.0, death_threshold=0.5)
    latents = sequences(task, [150, 30, 90, 300])
    kernel = world.memory.lstm_kernel
    kernel[...] = kernel[...].at[task.latent_size].multiply(30.0)  # actions matter
    controller = world.controller()
    weights = jnp.linspace(-1, 1, controller.num_params)
    player = Player(controller, weights)
    found = branch_hazard(world, player, latents, young=80, old=200, windows=2, seed=3)
    assert found["n"] == 2 + 1 + 3  # at 80 and 120; 80; 80, 120 and 160
    assert found["game"] == pytest.approx(1000 * 2 / (70 + 10 + 120))  # the last died past 200
    chances, dreamt = [], []
    z, actions, _ = _padded(latents, 80, 3)
    for episode, length in enumerate((150, 90, 300)):
        carry = world.memory.initial_carry()
        for t in range(min(length, 200)):
            if t >= 80 and t % 40 == 0:
                dreamt.append((t, z[t, episode], carry))
            now = z[t, episode], actions[t, episode], jnp.int32(t)
            carry, told = STEP(world.memory, carry, *now)
            chances += [1 / (1 + np.exp(0.5 - float(told.end[0])))] * (t >= 80)
    assert found["watching"] == pytest.approx(1000 * np.mean(chances), rel=1e-4)
    first = [_first_chance(world, weights, *left) for left in dreamt]
    short = dataclasses.replace(task, max_steps=81)  # a dream that is cut has no later chances
    shortened = dataclasses.replace(world, task=short)
    cut = branch_hazard(shortened, player, latents, young=80, old=81, seed=3)
    alone = [chance for (t, *_), chance in zip(dreamt, first, strict=True) if t == 80]
    np.testing.assert_allclose(cut["dreaming"][0], 1000 * np.mean(alone), rtol=1e-4)
    assert cut["dreaming"][1:] == [0.0] * 4 and cut["n"] == 3
    with pytest.raises(ValueError, match="no game grew older than 300 steps, the oldest 300"):
        branch_hazard(world, player, latents, young=300, old=400)


STEP = jax.jit(lambda memory, *now: memory(*now))


def _first_chance(world, weights, t, z, carry):
    obs = world.memory.features(z, carry)
    action = world.controller()(weights, obs)
    told = STEP(world.memory, carry, z, action, jnp.int32(t))[1]
    return 1 / (1 + np.exp(0.5 - float(told.end[0])))


def test_a_left_dream_dies_as_often_as_expected(small_task):
    task = dataclasses.replace(small_task, max_steps=4000)
    world = world_of(task, constant_hazard(task, -5.0))
    world = dataclasses.replace(world, death_noise=1.0)
    controller, ages = world.controller(), {"young": 40, "old": 400}
    player = Player(controller, jnp.zeros(controller.num_params))
    found = branch_hazard(world, player, sequences(task, [400] * 3), **ages, windows=3)
    np.testing.assert_allclose(found["dreaming"], 1000 / (1 + np.exp(5.0)), rtol=1e-4)
    assert found["watching"] == pytest.approx(found["dreaming"][0], rel=1e-5)
    deadly = dataclasses.replace(world, death_threshold=-99.0)
    found = branch_hazard(deadly, player, sequences(task, [400] * 3), **ages, windows=3)
    np.testing.assert_allclose(found["dreaming"], [1000, 0, 0])


def test_calibration_expects_the_deaths_that_happened(small_task):
    latents = sequences(small_task, [20, 30, 50])
    threshold = calibrated_threshold(constant_hazard(small_task, 2.0), latents)
    assert 1 / (1 + np.exp(threshold - 2.0)) == pytest.approx(3 / 100, rel=1e-3)
    alive = dataclasses.replace(latents, terminated=np.zeros(3, bool))
    assert calibrated_threshold(constant_hazard(small_task, 2.0), alive) == 0


class Said(Logbook):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def lives(kindness):
    """`dreamt_play` of a dream in which life falls with tau."""
    real = {"uniform": 200.0, "blind": 700.0}

    def dreamt(world, name, episodes, seed, tau):
        return SimpleNamespace(steps=np.full((2, episodes), kindness[name] * real[name] / tau**3))

    return dreamt, real


def test_the_true_temperature_is_where_dreams_last_as_long_as_games(monkeypatch):
    dreamt, real = lives({"uniform": 1.1 * 1.3**3, "blind": 1.3**3 / 1.1})
    monkeypatch.setattr(calibrate, "dreamt_play", dreamt)
    tau, steps = calibrate.true_temperature(None, real)
    assert abs(tau / 1.3 - 1) < calibrate.PRECISION
    for name, apart in ("uniform", 1.1), ("blind", 1 / 1.1):
        assert abs(steps[name] / real[name] / apart - 1) < 3.5 * calibrate.PRECISION


@pytest.mark.parametrize(("kindness", "told"), [(20.0, "longer"), (0.2, "shorter")])
def test_dreams_that_no_temperature_makes_true_are_told(monkeypatch, kindness, told):
    dreamt, real = lives({"uniform": kindness, "blind": kindness})
    monkeypatch.setattr(calibrate, "dreamt_play", dreamt)
    with pytest.raises(ValueError, match=f"dreams of this world are {told} than games at every"):
        calibrate.true_temperature(None, real)


def test_the_alarm_rings_when_dream_and_game_part(world, monkeypatch):
    real, log, controller = iter([100.0, 300.0, 310.0, 90.0]), Said(), world.controller(4)

    def play(world, player, episodes, seed, workers):
        assert player.controller == controller
        returns = next(real) + np.linspace(-10, 10, episodes)
        return fidelity.agent.Played(returns, returns, returns > 0)

    monkeypatch.setattr(fidelity.agent, "evaluate", play)
    alarm = fidelity.ExploitAlarm(world, controller, 16, 0, log)
    weights = jnp.zeros(controller.num_params)
    for dreamt in (200.0, 400.0, 500.0):
        assert alarm(weights, dreamt)["real"] > 0 and not log.lines
    assert alarm(weights, 900.0)["real"] == 90
    (line,) = log.lines
    assert "500 to 900 in the dream but 310 to 90 in the game" in line and "\n" not in line


# What C can read


def test_average_precision_by_hand():
    score, there = np.array([0.9, 0.1, 0.8, 0.5]), np.array([True, False, False, True])
    assert average_precision(score, there) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert np.isnan(average_precision(score, ~np.ones(4, bool)))


@pytest.mark.parametrize(
    ("knows", "least", "most", "flashing"), [("z", 0.95, 1.0, 5), ("nothing", -0.2, 0.1, None)]
)
def test_what_z_tells_linearly_is_known(monkeypatch, knows, least, most, flashing):
    rng = np.random.default_rng(0)
    task = dataclasses.replace(TAKE_COVER, latent_size=32, hidden_size=8)
    games = []
    for game in range(6):
        frames = np.zeros((120, 64, 64, 3), np.uint8)
        for frame in frames:  # one thing of 3, 9 or 24 pixels
            column, height = 2 * rng.integers(32), rng.choice([3, 9, 24])
            frame[:height, column, :2] = 255
        if game == flashing:  # by half
            frames = np.uint8(0.5 * frames + np.float32([127, 0, 0]))
        games.append((frames, np.zeros((120, 1), np.float32)))

    def posteriors(vision, frames):
        seen = np.log1p((frames[..., 1] > 0).sum(axis=1).reshape(-1, 32, 2).sum(axis=-1))
        mu = seen if knows == "z" else rng.normal(size=seen.shape)
        return np.float32(mu), np.full(mu.shape, -30, np.float32)

    monkeypatch.setattr(salience, "posteriors", posteriors)
    start, memory = jnp.zeros((1, 32)), random_memory(task)
    found = salience.salience_readout(
        World(task, VAE(32, rngs=nnx.Rngs(0)), memory, start, start), games
    )
    for reader in ("z", "C"):
        assert least <= found["all"][reader] <= most
    flashes = {f"{size}, in a flash" for size in salience.SIZES} if flashing else set()
    assert set(found) == {"all", *salience.SIZES, *flashes}
    assert all(found[size]["share"] == pytest.approx(1 / 94, rel=0.3) for size in salience.SIZES)
    assert all(found[label]["share"] != found[label[:-12]]["share"] for label in flashes)
    for row in list(found.values())[1:]:
        assert row["z"] > 0.95 if knows == "z" else row["z"] < 0.2
