"""The gate for somebody else's game: what is sound is brought into one form, the rest refused."""

import contextlib
import dataclasses
import subprocess
import sys
import types

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from dot import DOT, Dot
from flax import nnx
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple

from dreamjax import actions
from dreamjax.controller.distributions import distribution_of
from dreamjax.dream.registration import register
from dreamjax.game import policies
from dreamjax.game.collecting import collect
from dreamjax.game.env import RealGame, make_env, opened
from dreamjax.game.looking import look
from dreamjax.game.vector import VectorGame
from dreamjax.memory.lstm import MDNRNN
from dreamjax.tasks import TASKS
from dreamjax.training.logbook import Logbook


class Observed(Dot):
    """Shows `shown(picture)` as observations in `observation_space`, and draws nothing."""

    render_mode = None

    def seen(self):
        return self.shown(self.picture())


def task_of(game, **fields):
    """The task of a game."""
    return dataclasses.replace(DOT, actions=actions.actions_of(game.action_space), **fields)


def play(game, steps=3, seed=5, **fields):
    """The gate around a game, some steps later, and the frame that it then shows."""
    env = RealGame(game, task_of(game, **fields))
    frame, _ = env.reset(seed=seed)
    for _ in range(steps):
        frame, *_ = env.step(np.array(env.action_space.low) * 0 + env.action_space.high)
    return env, frame


def refusal(call, *args, **kept):
    """The one line with which a call is refused."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kept)
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 600
    return line


def grey(picture):
    return picture.mean(2).astype(np.uint8)


FORMS = {  # of a picture: what is shown, and how near it comes to the picture itself
    "as it should be": (lambda x: x, 0),
    "floats in [0, 1]": (lambda x: x / np.float32(255), 0),
    "float64 in [0, 1]": (lambda x: x / 255, 0),
    "floats to 255": (lambda x: x.astype(np.float32), 0),
    "floats in [-1, 1]": (lambda x: x / np.float32(127.5) - np.float32(1), 1),
    "int64": (lambda x: x.astype(np.int64), 0),
    "alpha": (lambda x: np.dstack([x, np.full(x.shape[:2], 9, np.uint8)]), 0),
    "alpha in floats": (lambda x: np.dstack([x / 255, np.ones(x.shape[:2])]), 0),
    "channels first": (lambda x: np.moveaxis(x, 2, 0), 0),
    "grey": (grey, None),
    "grey with an axis": (lambda x: grey(x)[..., None], None),
    "grey in floats": (lambda x: grey(x) / 255.0, None),
    "a stack": (lambda x: np.stack([0 * x, 0 * x, x]), 0),
    "a stack of grey": (lambda x: np.stack([0 * grey(x)] * 3 + [grey(x)]), None),
    "16 bits": (lambda x: x.astype(np.uint16) * 257, 0),
    "upside down in memory": (lambda x: x[::-1][::-1], 0),
    "Fortran's order": (np.asfortranarray, 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_any_form_is_seen(form):
    change, near = FORMS[form]
    expected = play(_Grey() if near is None else Dot())[1]
    drawn = Dot()
    drawn.render = lambda: change(drawn.picture())
    shown = Observed(shown=change)
    shown.observation_space = _space_of(change)
    for game in (drawn, shown):
        frame = play(game)[1].astype(int)
        assert abs(frame - expected).max() <= (near or 0)


class _Grey(Dot):
    def render(self):
        return np.repeat(grey(self.picture())[..., None], 3, axis=2)


def _space_of(change):
    """The space that a game would declare of such pictures."""
    dark, light = (change(np.full((48, 64, 3), value, np.uint8)) for value in (0, 255))
    low, high = min(0, dark.min()), light.max()
    return Box(low, high, light.shape, light.dtype.type)


BAD_PICTURES = {
    "nothing": (lambda x: None, "no picture"),
    "a row": (lambda x: x.ravel(), "no picture"),
    "two channels": (lambda x: x[..., :2], "no picture"),
    "words": (lambda x: np.full(x.shape, "a"), "no picture"),
    "not a number": (lambda x: np.where(x > 200, np.nan, x / 255), "holds nan"),
    "beyond 255": (lambda x: x.astype(int) * 9, "holds 360"),
    "below 0": (lambda x: x.astype(int) - 99, "holds -59"),
    "an empty one": (lambda x: x[:0], "no picture"),
    "four pictures as channels": (lambda x: np.dstack([x, x[..., 0]]), "no alpha but varies"),
    "four pictures of three planes": (lambda x: np.vstack([np.moveaxis(x, 2, 0)] * 4), "no pict"),
}


@pytest.mark.parametrize("form", BAD_PICTURES)
def test_what_is_no_picture_is_refused_with_game_and_step(form):
    change, said = BAD_PICTURES[form]
    game = Dot()
    game.render = lambda: change(game.picture())
    line = refusal(play, game)
    assert line.startswith("dot at step 0 of the episode with seed 5 shows") and said in line


def test_a_game_that_begins_in_the_dark_is_seen_right():
    game = Dot()
    game.render = lambda: np.float32(game.picture()) * (game.x != 0.5)
    assert np.array_equal(play(game)[1], play(Dot())[1])


def test_floats_that_turn_out_to_be_no_shares_are_refused():
    game = Dot()
    game.render = lambda: np.where(game.x == 0.5, 0.5, 7.0) * np.ones((48, 64, 3))
    assert "holds 7, though its values were from 0 to 1" in refusal(play, game)


DULL = {
    "black": lambda x: 0 * x,
    "white": lambda x: 0 * x + 255,
    "bytes of floats": lambda x: (x / 255).astype(np.uint8),
    "symbols": lambda x: x // 26,
}


@pytest.mark.parametrize("form", DULL)
def test_a_game_that_shows_next_to_nothing_is_refused_before_it_is_recorded(form):
    game = Dot()
    game.render = lambda: DULL[form](game.picture())
    env = RealGame(game, task_of(game))
    assert "shows pictures whose values are all from" in refusal(look, env, None, int)


@pytest.mark.parametrize("high", [10, 255])
def test_symbols_are_no_picture_where_the_game_can_draw(high):
    space = Box(0, high, (7, 7, 3), np.uint8)
    game = Dot(observation_space=space, seen=lambda: np.ones((7, 7, 3), np.uint8))
    assert np.array_equal(play(game)[1], play(Dot())[1])
    if high == 255:
        assert (play(game, picture="observation")[1] == 1).all()


def test_the_picture_is_found_among_several_observations_or_named():
    box = Box(0, 255, (48, 64, 3), np.uint8)
    pictures = Dict({"map": box, "screen": box, "speed": Box(-1, 1, (1,))})
    shown = Observed(observation_space=pictures, shown=None)
    shown.seen = lambda: {"map": 0 * shown.picture(), "screen": shown.picture(), "speed": 0}
    assert "name one by Task.picture: map, screen" in refusal(play, shown)
    assert np.array_equal(play(shown, picture="screen")[1], play(Dot())[1])
    for asked in ("speed", "nowhere", "render"):
        assert f"has no picture '{asked}'" in refusal(play, shown, picture=asked)
    assert "it has render" in refusal(play, Dot(), picture="screen")
    shown.observation_space = Dict({"screen": box, "speed": Box(-1, 1, (1,))})
    assert np.array_equal(play(shown)[1], play(Dot())[1])


@pytest.mark.parametrize("mode", [None, "human", "ansi"])
def test_a_game_that_does_not_draw_says_which_mode_would(mode):
    assert "render_mode" in refusal(play, Dot(render_mode=mode))


CROPS = {
    "outside": (100, 200, 0, 64),
    "turned round": (40, 0, 0, 64),
    "columns and rows exchanged": (0, 64, 0, 48),
    "empty": (3, 3, 0, 64),
    "from the end": (0, -4, 0, 64),
}


@pytest.mark.parametrize("crop", CROPS)
def test_a_crop_that_is_no_part_of_the_picture_is_refused(crop):
    line = refusal(play, Dot(), crop=CROPS[crop])
    assert "48 rows and 64 columns" in line and "Task.crop" in line
    for words in ((0, 47.5, 0, 64), (0, 48), "all"):
        assert "(top, bottom, left, right)" in refusal(dataclasses.replace, DOT, crop=words)


SPACES = {
    "integers": Box(0, 2, (1,), np.int32),
    "bytes": Box(0, 255, (2,), np.uint8),
    "float64 that float32 cannot hold": Box(0.1, 0.7000000001, (2,), np.float64),
    "a valve": Box(54_246.965, 78_934.164, (1,), np.float32),
    "watts": Box(-123_456.7, 7_654_321.0, (1,), np.float32),
    "tiny": Box(-1e-9, 3e-9, (1,), np.float64),
    "one side": Box(-7, -3, (1,), np.float32),
    "a matrix": Box(-1, 1, (2, 3), np.float32),
    "no axis": Box(-2, 2, (), np.float32),
    "nothing to choose": Box(np.float32([0, 1]), np.float32([1, 1])),
    "picks from 2": Discrete(3, start=2),
    "picks from -1": Discrete(2, start=-1),
    "one pick": Discrete(1),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_action_of_a_player_is_one_that_the_game_takes(name):
    """Drawn ones, corners, and C's own extremes."""
    space = SPACES[name]
    game = Dot(action_space=space)
    env = RealGame(game, task_of(game))
    form, rng = env.task.actions, np.random.default_rng(0)
    head = distribution_of(form)
    far = [np.asarray(head.act(jnp.full(head.outputs, x))) for x in (-50.0, 0.0, 50.0)]
    for action in [*far, *form.corners(rng), *(form.draw(rng) for _ in range(20))]:
        env.reset(seed=1)
        env.step(action)
        assert space.contains(game.done), game.done
    assert all(env.action_space.contains(action) for action in far), "C itself keeps to the bounds"


def test_whole_numbers_are_the_nearest_ones():
    space = Box(0, 2, (1,), np.int32)
    form = actions.actions_of(space)
    played = [int(form.to_game(np.float32([x]), space)[0]) for x in (0.4, 0.6, 1.6, 2.0)]
    assert played == [0, 1, 2, 2]


@pytest.mark.parametrize("name", SPACES)
def test_m_reads_actions_in_one_scale(name):
    """So that it tells apart what a game tells apart, whatever the units."""
    task = dataclasses.replace(
        DOT, actions=actions.actions_of(SPACES[name]), latent_size=4, hidden_size=8
    )
    memory, z = MDNRNN(task, rngs=nnx.Rngs(0)), jnp.zeros(4)
    low, high = (jnp.float32(x) for x in (task.actions.low, task.actions.high))
    ends = [np.asarray(memory.inputs(z, x, 3))[4 : 4 + task.action_size] for x in (low, high)]
    assert np.abs(ends).max() <= 1.001
    wide = np.asarray(high > low)
    assert (ends[1] - ends[0])[wide].min(initial=1) >= 0.999
    assert memory.scaled == (task.actions.scale is not None)
    raw = MDNRNN(task, rngs=nnx.Rngs(0), scaled=False)
    assert np.array_equal(raw.inputs(z, high, 3)[4 : 4 + task.action_size], high)


def test_shipped_games_keep_their_numbers():
    assert [task.name for task in TASKS.values() if task.actions.scale is not None] == []


BAD_SPACES = {
    "no bounds": (Box(-np.inf, np.inf, (1,)), "must have bounds"),
    "all of float32": (Box(-3e38, 3e38, (1,)), "must have bounds"),
    "one side open": (Box(np.float32([0]), np.float32([np.inf])), "must have bounds"),
    "too near": (Box(1e9, 1e9 + 1, (1,), np.float64), "too near"),
    "buttons": (MultiBinary(9), "512 combinations"),
    "several": (Tuple([Discrete(2)]), "MultiBinary or a Box"),
    "none at all": (Box(0, 1, (0,)), "MultiBinary or a Box"),
}


@pytest.mark.parametrize("name", BAD_SPACES)
def test_actions_that_cannot_be_played_are_refused(name):
    space, said = BAD_SPACES[name]
    assert said in refusal(actions.actions_of, space)
    line = refusal(RealGame, Dot(action_space=space), DOT)
    assert line.startswith("dot: ") and said in line


REWARDS = {
    "an array": np.ones(1),
    "two axes": np.ones((1, 1), np.float32),
    "no axis": np.array(1),
    "a bool": True,
    "an integer": np.int8(1),
    "jax": jnp.ones(()),
    "a list": [1],
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_in_any_form_is_one_float(name):
    env = RealGame(Dot(paid=lambda: REWARDS[name]), DOT)
    env.reset(seed=1)
    reward = env.step(np.eye(3)[1])[1]
    assert type(reward) is float and reward == 1.0


BAD_REWARDS = {
    "nan": float("nan"),
    "infinite": np.float32(-np.inf),
    "beyond float32": 1e39,
    "nothing": None,
    "two": np.ones(2),
    "a word": "much",
    "a dict": {"points": 1},
    "less than float32 can hold": 1e-60,
}


@pytest.mark.parametrize("name", BAD_REWARDS)
@pytest.mark.parametrize("skip", [1, 4])
def test_a_reward_that_is_no_number_is_refused_with_seed_and_step(name, skip):
    line = refusal(play, Dot(paid=lambda: BAD_REWARDS[name]), frame_skip=skip)
    assert line.startswith("dot: step at step 0 of the episode with seed 5 ")


def test_other_rewards_than_the_task_says_of_every_step_are_refused():
    line = refusal(play, Dot(paid=lambda: 0.1), step_reward=1.0)
    assert "paid 0.1, but Task.step_reward is 1" in line
    huge = refusal(play, Dot(paid=lambda: 2e38), frame_skip=4)
    assert "which float32 cannot hold" in huge
    endless = refusal(play, Dot(paid=lambda: np.inf), frame_skip=4)
    assert "paid inf; pay finite numbers" in endless


def old_step(game, info):
    """gym's step of four values."""
    five = Dot.step

    def step(action):
        obs, reward, terminated, _, _ = five(game, action)
        return obs, reward, terminated or bool(info), info

    return step


def test_older_forms_are_understood():
    old = Dot()
    old.reset = lambda seed=None: Dot.reset(old, seed=seed)[0]
    old.step = old_step(old, {})
    assert np.array_equal(play(old)[1], play(Dot())[1])
    for info in (None, types.MappingProxyType({"lives": 3})):
        loose = Dot()
        loose.reset = lambda seed, game=loose, info=info: [Dot.reset(game, seed=seed)[0], info]
        loose.step = lambda x, game=loose, info=info: [*Dot.step(game, x)[:4], info]
        assert np.array_equal(play(loose)[1], play(Dot())[1])
    cut = Dot()
    cut.step = old_step(cut, {"TimeLimit.truncated": True})
    env = RealGame(cut, DOT)
    env.reset(seed=1)
    assert env.step(np.eye(3)[1])[2:4] == (False, True)


BAD_ANSWERS = {
    "an end in words": lambda self, action: (0, 1.0, "False", False, {}),
    "an end that is no number": lambda self, action: (0, 1.0, np.nan, False, {}),
    "no dict": lambda self, action: (0, 1.0, False, False, "fine"),
    "its process ended": lambda self, action: sys.exit(3),
    "a kind of its own": lambda self, action: (_ for _ in ()).throw(Odd()),
    "three values": lambda self, action: (0, 1.0, {}),
    "no tuple": lambda self, action: None,
    "four flags": lambda self, action: (0, 1.0, False, False),
    "a list of ends": lambda self, action: (0, 1.0, [False, True], False, {}),
    "an error": lambda self, action: {}["speed"],
    "an assertion": lambda self, action: [][1],
}


class Odd(BaseException):
    """Several lines, and no words."""

    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_step_that_answers_something_else_is_refused(name):
    game = Dot()
    game.step = lambda action: BAD_ANSWERS[name](game, action)
    assert refusal(play, game).startswith("dot: step at step 0 of the episode with seed 5 ")


def test_a_reset_that_takes_no_seed_is_refused_with_the_form_it_must_have():
    game = Dot()
    game.reset = lambda: Dot.reset(game)
    assert "reset(self, *, seed=None, options=None)" in refusal(play, game)
    game.reset = lambda seed, **options: int("deep inside")
    assert "Task.seeds" in refusal(play, game)


@pytest.mark.parametrize("seeds", [2**31, 2**16, 2**32])
def test_seeds_stay_below_those_that_the_game_takes(seeds):
    heard = []
    game = Dot()
    game.reset = lambda seed: heard.append(seed) or Dot.reset(game, seed=seed)
    env = RealGame(game, task_of(game, seeds=seeds))
    for seed in (0, 2**31 + 6, 2**32 - 2, -1, 10**30):
        env.reset(seed=seed)
    env.reset(seed=seeds - 1)
    assert min(heard) >= 0 and max(heard) == seeds - 1 and len(set(heard)) >= 4


MAKES = {
    "none": (lambda: None, "no gymnasium.Env"),
    "a class": (lambda: Dot, "no gymnasium.Env"),
    "several": (lambda: gymnasium.make_vec("CartPole-v1", 2), "no gymnasium.Env"),
    "an unknown one": (lambda: gymnasium.make("Nowhere/Pong-v5"), "Namespace Nowhere not found"),
    "a missing file": (lambda: np.load("no such level"), "no such level"),
    "an argument": (lambda size: Dot(), "missing 1 required"),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_game_that_cannot_be_made_is_refused(name, monkeypatch):
    make, said = MAKES[name]
    monkeypatch.setattr(sys.modules[__name__], "broken", make, raising=False)
    line = refusal(opened, dataclasses.replace(DOT, make=f"{__name__}:broken"))
    assert line.startswith("dot: make() ") and said in line


def test_a_game_that_lacks_a_package_says_so(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "broken", _lacking, raising=False)
    with pytest.raises(ImportError, match="dot: make.. failed .*nowhere"):
        opened(dataclasses.replace(DOT, make=f"{__name__}:broken"))


def _lacking():
    import nowhere  # noqa: F401


ALONE = dataclasses.replace(DOT, name="alone", make="dot:Alone")


@pytest.mark.slow
def test_one_game_a_process_is_asked_for_or_told():
    asked = dataclasses.replace(ALONE, one_per_process=True)
    with contextlib.closing(make_env(ALONE)) as env:
        assert "one_per_process=True" in refusal(look, env, None, int)
        look(RealGame(env.env, asked), None, int)
    with VectorGame(asked, 2, workers=1) as games:
        assert games.reset([0, 1], [1, 2]).shape == (2, 64, 64, 3)


def test_recording_names_what_is_wrong_and_writes_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "level.txt").write_text("nan")
    spoilt = dataclasses.replace(DOT, make="dot:Spoilt")
    line = refusal(collect, spoilt, tmp_path / "spoilt", 30, 0, workers=1)
    assert "paid nan; pay finite numbers" in line and "seed" in line
    assert not list((tmp_path / "spoilt").glob("*.npz"))
    (tmp_path / "level.txt").write_text("1.5")
    assert collect(spoilt, tmp_path / "sound", 4, 0, workers=1).episodes == 4


@pytest.mark.slow
def test_a_scale_of_rewards_is_proposed_where_the_tasks_is_far_off(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Logbook, "say", lambda self, text: said.append(text))
    for task in (dataclasses.replace(DOT, make="dot:Paid"), DOT):
        collect(task, tmp_path / task.make.replace(":", "-"), 4, 0, workers=1)
    proposed = [text for text in said if "reward_scale" in text]
    assert len(proposed) == 1 and "set reward_scale=1e+07 in its Task" in proposed[0]


def test_registering_again_takes_the_place_of_the_task_before():
    try:
        for steps in (60, 60, 90):
            task = register(dataclasses.replace(DOT, max_steps=steps))
            assert TASKS["dot"] is task is register(dataclasses.replace(task))
            assert task.max_steps == steps
        assert "another task is called take-cover" in refusal(
            register, dataclasses.replace(DOT, name="take-cover")
        )
    finally:
        del TASKS["dot"]


FIELDS = {
    "max_steps": (0, True, "60", 2.5, None, [60]),
    "frame_skip": (-1, 1.5),
    "reward_scale": (float("nan"), "1", 0),
    "latent_size": (0, 8.5),
    "gamma": (1.5, "0.9", 0),
    "seeds": (0, "all"),
    "timeout": (0.0, "10"),
    "ends": ("end", (1, 2), ("a", "a")),
    "controller_reads": ("h", [1]),
    "step_reward": (float("nan"), "1"),
    "profile": (3,),
    "package": (3,),
    "one_per_process": ("no", 1),
    "crop": ("all", 4, (0, 1, 2)),
    "picture": (5,),
    "actions": (3, "left", object),
    "ages": ("old", 3),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_cannot_be_is_refused(name):
    for value in FIELDS[name]:
        line = refusal(dataclasses.replace, DOT, **{name: value})
        assert line.startswith(f"{name} of dot must be ") and ", got " in line


def test_fields_in_another_form_are_brought_into_theirs():
    task = dataclasses.replace(
        DOT, actions=Discrete(4), crop=[0, 9, 0, 9], ends=["a"], max_steps=60.0, seeds=1e6
    )
    assert task.actions == actions.Choice(4) and task.crop == (0, 9, 0, 9) and task.ends == ("a",)
    assert type(task.max_steps) is int and task.seeds == 10**6 and hash(task)


POLICIES = {
    "raises": lambda step, frame: {}["speed"],
    "returns nothing": lambda step, frame: None,
    "stops": lambda step, frame: next(iter(())),
    "takes one argument": lambda step: 0,
    "returns words": lambda step, frame: "left",
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_fails_is_named(name, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "mine", lambda *_: POLICIES[name], raising=False)
    env = RealGame(Dot(), DOT)
    line = refusal(list, policies.play_steps(env, f"{__name__}:mine", 5))
    assert "dot" in line and (f"policy {__name__}:mine" in line or "must have shape" in line)


def test_a_policy_may_keep_one_array_and_paint_into_what_it_sees(monkeypatch):
    def careless(actions, rng):
        kept = np.zeros(3)

        def act(step, frame):
            frame[:] = 7
            kept[:] = np.eye(3)[step % 3]
            return kept

        return act

    monkeypatch.setattr(sys.modules[__name__], "mine", careless, raising=False)
    steps = list(policies.play_steps(RealGame(Dot(), DOT), f"{__name__}:mine", 5))
    assert len(steps) > 3 and len({tuple(action) for _, action, _, _ in steps}) == 3
    assert all(frame.max() == 255 for frame, *_ in steps)


@pytest.mark.slow
def test_a_game_may_refuse_a_reset_in_the_middle_of_an_episode(tmp_path):
    strict = dataclasses.replace(DOT, make="dot:Strict")
    assert collect(strict, tmp_path, 4, 0, workers=1).episodes == 4


@pytest.mark.slow
def test_a_game_that_ends_its_process_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="the game dot was lost .* a worker died with status 3"):
        collect(dataclasses.replace(DOT, make="dot:Ending"), tmp_path, 4, 0, workers=1)


UNGUARDED = """
import sys, dreamjax
from test_gate import Dot
from dreamjax import actions

def make():
    return Dot()

task = dreamjax.Task(name="loose", make=make, actions=actions.Choice(3), max_steps=9)
{work}
"""
WORKS = {
    "collect": "dreamjax.collect(task, sys.argv[1], 4, seed=0, workers=2)",
    "evaluate": "from dreamjax.game.jobs import play; play(task, 'uniform', [1], workers=1)",
    "step": "from dreamjax.game.vector import VectorGame\nVectorGame(task, 1).reset([0], [1])",
}
OTHERS = ("collect", "evaluate")


@pytest.mark.slow
@pytest.mark.parametrize("work", ("step", *OTHERS))
def test_a_script_without_a_guard_ends_in_one_line(work, tmp_path):
    """Not in processes that start processes: each imports the script to make the game."""
    script = tmp_path / "loose.py"
    script.write_text(UNGUARDED.format(work=WORKS[work]))
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out"], capture_output=True, text=True, timeout=120
    )
    said = done.stderr.splitlines()[-1]
    assert done.returncode and 'if __name__ == "__main__":' in said and "loose" in said


@pytest.mark.parametrize(
    "words, make", [(["-c"], "Game"), pytest.param(["-"], "lambda: Game()", marks=pytest.mark.slow)]
)
def test_games_of_a_notebook_are_refused_with_the_remedy(words, make):
    cell = "import dreamjax, test_gate\nclass Game(test_gate.Dot): pass\n"
    code = f"{cell}dreamjax.Task(name='cell', make={make})"
    command = [sys.executable, *words, *([code] if words == ["-c"] else [])]
    done = subprocess.run(command, input=code, capture_output=True, text=True, timeout=120)
    assert "put the game into a file" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("game", [Dot(), Observed(shown=lambda x: x / 255)])
def test_a_real_game_can_be_rendered(game):
    """Its own picture, whole, as gymnasium's viewers ask for it."""
    if game.render_mode is None:
        game.observation_space = Box(0, 1, (48, 64, 3))
    env = RealGame(game, task_of(game, crop=(0, 24, 0, 64)))
    assert env.render() is None and env.render_mode == "rgb_array"
    env.reset(seed=1)
    shown = env.render()
    assert np.array_equal(shown, Dot.picture(game)) and shown.dtype == np.uint8
    shown[:] = 0
    assert env.render().any() and env.metadata["render_fps"] == 30
    seen = gymnasium.wrappers.AddRenderObservation(env)
    assert seen.reset(seed=1)[0].shape == (48, 64, 3)


def test_parts_of_m_that_there_are_not_are_refused():
    task = dataclasses.replace(DOT, controller_reads=("zz",), latent_size=4, hidden_size=8)
    line = refusal(MDNRNN, task, rngs=nnx.Rngs(0))
    assert "controller_reads of dot is ('zz',), but M has c, h" in line
