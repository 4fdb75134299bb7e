"""A game of one's own: what `register` finds out, and how `RealGame` shows and plays any game."""

import dataclasses

import gymnasium
import gymnax
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from dreamjax import actions
from dreamjax.dream.gymnax_env import named
from dreamjax.dream.registration import find_task, register
from dreamjax.game import car_racing, policies
from dreamjax.game.env import RealGame, make_env
from dreamjax.task import Task
from dreamjax.tasks import CAR_RACING, TAKE_COVER, TASKS

LOW, HIGH = np.array([-1, 0], np.float32), np.array([1, 5], np.float32)


class Pedals(gymnasium.Env):
    """Shows its step; `ending`, if it is given, is the last `info` of its third step."""

    observation_space = Box(0, 255, (30, 50, 3), np.uint8)
    action_space = Box(LOW, HIGH)

    def __init__(self, ending=None):
        self.ending, self.heard, self.closed = ending, [], False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.picture(), {}

    def step(self, action):
        self.heard.append(action)
        self.time += 1
        ended = self.ending is not None and self.time == 3
        return self.picture(), 0.5, ended, False, self.ending if ended else {}

    def picture(self):
        return np.full((30, 50, 3), self.time, np.uint8)

    def close(self):
        self.closed = True


class Picks(Pedals):
    """Takes one of 2, 3, 4; cuts its own episodes after 5 steps."""

    action_space = Discrete(3, start=2)

    def step(self, action):
        *seen, info = super().step(action)
        seen[3] = self.time == 5
        return *seen, info


class Drawn(Pedals):
    """Observes numbers, draws pictures: light above, dark below, a bright column on the right."""

    observation_space = Box(-1, 1, (4,))
    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    screen = None  # as pygame's games have one
    renders = 0

    def picture(self):
        return np.zeros(4, np.float32)

    def render(self):
        self.renders += 1
        assert self.screen is None
        picture = np.zeros((200, 300, 3), np.uint8)
        picture[:60], picture[:, 256:] = 100, 200
        return picture


PEDALS = Task("pedals", make=Pedals, actions=actions.Box((-1, 0), (1, 5)), max_steps=9)
PICKS = Task("picks", make=Picks, actions=actions.Choice(3, start=2))
DRAWN = dataclasses.replace(PEDALS, name="drawn", make=Drawn)


@pytest.fixture(autouse=True)
def forgotten():
    """What a test registers is not known after it."""
    tasks, theirs = dict(TASKS), dict(gymnasium.registry)
    ids, dreams = list(gymnax.registered_envs), dict(gymnax.registration._registry)
    yield
    for known, before in (
        (TASKS, tasks),
        (gymnasium.registry, theirs),
        (gymnax.registration._registry, dreams),
    ):
        known.clear()
        known.update(before)
    gymnax.registered_envs[:] = ids


def play(game, task, steps, action=None):
    """The answers to so many steps."""
    env = RealGame(game, task)
    env.reset(seed=0)
    return [
        env.step(np.array(task.actions.low if action is None else action)) for _ in range(steps)
    ]


def refusal(call, *args, **kept):
    """The one line with which a call is refused."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kept)
    line = str(caught.value)
    assert line and "\n" not in line
    return line


def test_register_sees_the_actions_of_a_game(monkeypatch):
    made = []

    def noted(self, *args, _init=Pedals.__init__):
        made.append(self)
        _init(self, *args)

    monkeypatch.setattr(Pedals, "__init__", noted)
    pedals = register(Task("pedals", make=Pedals))
    picks = register(Task("picks", make="test_tasks:Picks"))
    assert pedals.actions == actions.Box((-1.0, 0.0), (1.0, 5.0)) and pedals.action_size == 2
    assert picks.actions == actions.Choice(3, start=2) and picks.action_size == 3
    assert len(made) == 2 and all(game.closed for game in made)
    register(Task("mine", make=Pedals, actions=PEDALS.actions))
    assert len(made) == 2, "a game whose actions are told is not made"


def test_what_is_registered_is_known_by_its_name_and_its_dream_to_others():
    line = refusal(lambda: Task("picks", make=Picks).action_size)
    assert "actions of picks are not known; register the task first" in line
    task = register(Task("picks", make=Picks))
    assert find_task("picks") == task == find_task("test_tasks:PICKS")
    assert "DreamPicks-v1" in gymnax.registered_envs and "dreamjax/Picks-v1" in gymnasium.registry
    dream = named("DreamPicks-v1")
    assert dream.action_space().n == 3 and dream.task is task
    with pytest.raises(ValueError, match="actions must be one of discrete, got 'continuous'"):
        named("DreamPicks-v1", actions="continuous")


def test_a_make_that_other_processes_cannot_have_is_refused():
    line = refusal(Task, "mine", make=lambda: Pedals())
    assert "make of mine is no function that other processes can import" in line
    assert "define it at the top of a module" in line

    def inner():
        return Pedals()

    assert "no function that other processes" in refusal(Task, "mine", make=inner)
    assert "must be \"module:function\", got 'test_tasks'" in refusal(Task, "mine", "test_tasks")
    assert "must be a function that makes the game, got 7" in refusal(Task, "mine", 7)
    assert Task("mine", make=Pedals).make == "test_tasks:Pedals"


@pytest.mark.parametrize("name", ["", "Mine", "my game", "-mine", "a/b"])
def test_a_name_that_no_folder_or_command_could_have_is_refused(name):
    assert "of small letters, digits and hyphens" in refusal(Task, name, make=Pedals)


def test_a_game_that_renders_is_shown_by_its_pictures_cropped_and_shrunk():
    game = Drawn()
    env = RealGame(game, dataclasses.replace(DRAWN, crop=(0, 120, 44, 300)))
    frame, _ = env.reset(seed=0)
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    expected = np.zeros((64, 64, 3), np.uint8)  # half of the rows and 44 of 256 columns are bright
    expected[:32], expected[:, 53:] = 100, 200
    np.testing.assert_array_equal(frame, expected)
    np.testing.assert_array_equal(env.step(LOW)[0], expected)
    whole, _ = RealGame(game, DRAWN).reset(seed=0)
    assert (whole[:19, :54] == 100).all() and (whole[20:, :54] == 0).all()
    assert game.renders == 3
    dark, _ = RealGame(game, DRAWN, screen=False).reset(seed=0)
    assert not dark.any() and game.renders == 3 and game.screen is None


def test_a_step_may_be_several_frames_of_which_only_the_last_is_drawn():
    class Switched(Pedals):
        dreamjax_screen = True

        def picture(self):
            lit = super().picture() + 1
            return lit if self.dreamjax_screen else 0 * lit

    game = Switched({})  # ends at its third frame
    env = RealGame(game, dataclasses.replace(PEDALS, frame_skip=2))
    for _ in range(2):
        first, _ = env.reset(seed=0)
        second, earned, ended, *_ = env.step(HIGH)
        assert (first[0, 0, 0], second[0, 0, 0], earned, ended) == (1, 3, 1.0, False)
        assert env.step(LOW)[1:4] == (0.5, True, False) and not game.dreamjax_screen
    np.testing.assert_array_equal(game.heard[-3:], [HIGH, HIGH, LOW])
    dark = RealGame(game, env.task, screen=False)
    assert not dark.reset(seed=0)[0].any() and not game.dreamjax_screen
    dark.step(LOW)
    assert not game.dreamjax_screen
    longer = dataclasses.replace(PEDALS, frame_skip=2, frames_per_second=50)
    assert longer.steps_per_second == 25 and len(play(Pedals(), longer, 9)) == 9
    assert "frame_skip of pedals must be a whole number of at least 1, got 0" in refusal(
        dataclasses.replace, PEDALS, frame_skip=0
    )


@pytest.mark.parametrize("mode", [None, "human"])
def test_a_game_that_shows_no_pictures_is_refused(mode, monkeypatch):
    monkeypatch.setattr(Drawn, "render_mode", mode)
    monkeypatch.setattr(Drawn, "observation_space", Box(-np.arange(24, dtype=np.float32), 1))
    line = refusal(make_env, DRAWN)
    assert line.startswith("drawn shows no pictures: its observations are Box([")
    assert line.endswith(f"and its render_mode is {mode}, not 'rgb_array'")


def test_a_discrete_game_gets_its_integers_from_one_hot_vectors():
    game = Picks()
    env = RealGame(game, PICKS)
    assert env.action_space == Box(0, 1, (3,))
    env.reset(seed=0)
    for vector in ([0, 0, 1], [1, 0, 0], [0, 1, 0], [0.2, 0.5, 0.3]):
        env.step(np.array(vector, np.float32))
    assert game.heard == [4, 2, 3, 3] and all(Picks.action_space.contains(x) for x in game.heard)
    for bad in ([0, 1], 3, [0, np.nan, 0], [0, 0, 2]):
        refusal(env.step, bad)
    for name in policies.NAMES:
        act = policies.begin(PICKS, name, np.random.default_rng(0))
        drawn = {tuple(act(step)) for step in range(2000)}
        assert drawn <= {(1, 0, 0), (0, 1, 0), (0, 0, 1)} and len(drawn) > 1


def test_actions_that_are_not_the_games_are_refused():
    wrong = dataclasses.replace(PEDALS, actions=actions.Box((-1, -1), (1, 1)))
    assert "pedals has the actions Box([-1. 0.], [1. 5.]" in refusal(make_env, wrong)
    more = dataclasses.replace(PICKS, actions=actions.Choice(4, start=2))
    assert "picks has the actions Discrete(3, start=2)" in refusal(make_env, more)
    assert "must be Discrete, MultiDiscrete, MultiBinary or a Box" in refusal(
        actions.actions_of, Dict(a=Discrete(2))
    )
    unbounded = Box(np.array([-np.inf, *-np.arange(30.0)], np.float32), np.float32(0))
    assert refusal(actions.actions_of, unbounded).endswith("(31,), float32); wrap the game")


def test_info_names_the_end_and_an_unknown_name_is_refused():
    task = dataclasses.replace(PEDALS, ends=("crash", "goal"))
    for ending, place in (({"end": "goal", "more": 1}, 1), ({"end": "crash"}, 0), ({}, 0)):
        *_, (_, reward, terminated, truncated, info) = play(Pedals(ending), task, 3)
        assert (terminated, truncated, info["end"]) == (True, False, place)
        assert info.get("more") == ending.get("more") and reward == 0.5
    line = refusal(play, Pedals({"end": "fire"}), task, 3)
    assert line == "pedals ended by 'fire', but the task's ends are ('crash', 'goal'); add it there"
    endless = dataclasses.replace(PEDALS, ends=())
    assert "pedals ended by 'an end'" in refusal(play, Pedals({}), endless, 3)
    assert play(Pedals(), endless, 9)[-1][2:4] == (False, True)


def test_a_games_own_truncation_is_kept():
    """As the cap is; and what ends in the same step is an end."""
    ways = [answer[2:4] for answer in play(Picks(), PICKS, 5)]
    assert ways == [(False, False)] * 4 + [(False, True)]
    capped = dataclasses.replace(PICKS, max_steps=4)
    assert play(Picks(), capped, 4)[-1][2:4] == (False, True)
    env = RealGame(Picks(), PICKS)
    assert [end for *_, end in policies.play_steps(env, "uniform", 0)] == [None] * 5
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.eye(3)[0])


def test_a_lap_and_leaving_the_track_are_told_apart():
    """By what gymnasium's game says of its last step."""

    class Track(Pedals):
        action_space = CAR_RACING.actions.space()
        observation_space = Box(0, 255, (96, 96, 3), np.uint8)

        def picture(self):
            return np.zeros((96, 96, 3), np.uint8)

    each_frame = dataclasses.replace(CAR_RACING, frame_skip=1)
    for said, name in (({"lap_finished": True}, "lap"), ({"lap_finished": False}, "off track")):
        *before, last = play(car_racing.Laps(Track(said)), each_frame, 3)
        assert last[2] and CAR_RACING.ends[last[4]["end"]] == name
        assert not any(answer[2] or answer[4] for answer in before)


def test_the_tasks_themselves_are_sound():
    for task in TASKS.values():
        assert task.heads and set(task.heads) <= {"reward", "end"}
        assert task.ages == tuple(sorted(task.ages)) and task.ages[-1] == task.max_steps
    assert TAKE_COVER.heads == ("end",) and CAR_RACING.heads == ("reward", "end")
    assert Task("x", make=Pedals, ends=(), step_reward=1.0).heads == ()
