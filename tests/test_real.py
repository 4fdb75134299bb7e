"""The real games: determinism, endings, rewards, actions and what they leave behind."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from dreamjax.game import car_racing, pictures, policies, take_cover
from dreamjax.game import env as real
from dreamjax.task import Task
from dreamjax.tasks import CAR_RACING, TAKE_COVER, TAKE_COVER_VIZDOOM

LEFT, RIGHT, STAY = (np.array([a], np.float32) for a in (-1, 1, 0))


@pytest.fixture(scope="module")
def doom():
    env = real.make_env(TAKE_COVER)
    yield env
    env.close()


def test_an_episode_is_a_function_of_its_seed(doom):
    def frames(seed):
        return np.stack([step[0] for step in policies.play_steps(doom, "held", seed)])

    first, again, other = frames(7), frames(7), frames(8)
    assert first.dtype == np.uint8 and first.shape[1:] == (64, 64, 3)
    np.testing.assert_array_equal(first, again)
    shorter = min(len(first), len(other))
    assert (first[:shorter] != other[:shorter]).any()


def test_any_integer_is_a_seed(doom):
    for seed in (-1, -(2**63), 2**63 - 1, np.int32(-5), np.int64(2**40)):
        frame, _ = doom.reset(seed=seed)
        assert doom.observation_space.contains(frame)
    assert real.engine_seed(np.int32(-5)) == 2**32 - 5


def test_death_terminates_and_every_step_pays_one(doom):
    steps = list(policies.play_steps(doom, "uniform", 0))
    rewards, ends = [step[2] for step in steps], [step[3] for step in steps]
    assert ends == [None] * (len(steps) - 1) + [TAKE_COVER.ends.index("death")]
    assert set(rewards) == {1.0}
    assert doom.unwrapped.game.is_player_dead()
    assert doom.unwrapped.game.get_episode_time() == len(steps) + 14  # it starts at tic 14


def test_the_frame_after_death_repeats_the_last_screen(doom):
    frame, _ = doom.reset(seed=0)
    over = False
    while not over:
        before = frame
        frame, _, over, _, _ = doom.step(STAY)
    np.testing.assert_array_equal(frame, before)
    with pytest.raises(RuntimeError, match="call reset"):
        doom.step(STAY)


@pytest.mark.parametrize("cap", [1, 30])
def test_the_cap_truncates_and_does_not_terminate(cap):
    env = real.make_env(dataclasses.replace(TAKE_COVER, max_steps=cap))
    env.reset(seed=3)
    ends = [env.step(STAY)[2:4] for _ in range(cap)]
    env.close()
    assert ends == [(False, False)] * (cap - 1) + [(False, True)]


def test_dying_on_the_last_step_is_death_and_not_the_cap(doom):
    length = sum(1 for _ in policies.play_steps(doom, "uniform", 0))
    env = real.make_env(dataclasses.replace(TAKE_COVER, max_steps=length))
    env.reset(seed=0)
    act = policies.uniform(TAKE_COVER.actions, np.random.default_rng(0))
    ends = [env.step(act(step))[2:4] for step in range(length)]
    env.close()
    assert ends[-1] == (True, False)


def _sideways(env, action, steps=12):
    """How far the player moves to its right."""
    from vizdoom import GameVariable

    game = env.unwrapped.game
    game.close()
    game.add_available_game_variable(GameVariable.POSITION_Y)
    env.reset(seed=1)
    start = game.get_game_variable(GameVariable.POSITION_Y)
    for _ in range(steps):
        env.step(np.array([action], np.float32))
    return start - game.get_game_variable(GameVariable.POSITION_Y)  # it faces +x: right is -y


@pytest.mark.parametrize(
    "action, side", [(-1, -1), (-0.34, -1), (-0.33, 0), (0, 0), (0.33, 0), (0.34, 1), (1, 1)]
)
def test_a_third_is_the_threshold_of_left_and_right(action, side):
    env = real.make_env(TAKE_COVER)
    moved = _sideways(env, action)
    env.close()
    assert np.sign(round(moved, 1)) == side


def _view(resolution, height, width, hud=True):
    import vizdoom

    env = real.make_env(TAKE_COVER)
    game = env.unwrapped.game
    game.close()
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, resolution))
    game.set_render_hud(hud)
    game.init()
    game.set_seed(5)
    game.new_episode()
    game.make_action([False, True], 60)
    rows = height * 100 // 120
    picture = pictures._shrinker(rows, width)(game.get_state().screen_buffer[:rows])
    env.close()
    return picture.astype(int)


def test_the_view_is_that_of_the_papers_resolution():
    """160x120 shows what the original's 640x480 shows, to within half a row of the 64."""
    small, large = _view("RES_160X120", 120, 160), _view("RES_640X480", 480, 640)
    difference = np.abs(small - large).mean()
    assert difference < np.abs(_view("RES_160X120", 120, 160, hud=False) - large).mean() / 2
    for rows in (1, -1, 2, -2):
        assert difference < np.abs(np.roll(small, rows, 0) - large)[2:-2].mean()
    for columns in (1, -1):
        assert difference < np.abs(np.roll(small, columns, 1) - large)[:, 1:-1].mean()


def test_an_area_average_keeps_all_light():
    frame = np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    small = pictures._shrinker(100, 160)(frame)
    for row, column in ((0, 0), (13, 37), (63, 63)):
        top, left = row * 100 / 64, column * 160 / 64
        rows = np.clip(np.minimum(top + 100 / 64, np.arange(1, 101)), top, None)
        columns = np.clip(np.minimum(left + 2.5, np.arange(1, 161)), left, None)
        weights = np.outer(np.diff(rows, prepend=top), np.diff(columns, prepend=left))
        mean = np.einsum("hw,hwc->c", weights, frame) / weights.sum()
        np.testing.assert_allclose(small[row, column], mean, atol=0.51)


def test_profiles_are_different_games(doom):
    stock = real.make_env(TAKE_COVER_VIZDOOM)
    frames = [env.reset(seed=2)[0].astype(int) for env in (doom, stock)]
    assert stock.unwrapped.game.get_episode_time() != doom.unwrapped.game.get_episode_time()
    stock.close()
    assert np.abs(frames[0] - frames[1]).mean() > 2


@pytest.mark.parametrize(
    "task",
    [
        TAKE_COVER,
        pytest.param(TAKE_COVER_VIZDOOM, marks=pytest.mark.slow),
        dataclasses.replace(CAR_RACING, max_steps=40),
    ],
    ids=lambda task: task.profile,
)
def test_a_game_without_screen_is_the_same_game(task):
    played = []
    for screen in (True, False):
        env = real.make_env(task, screen=screen)
        episodes = [list(policies.play_steps(env, "held", seed)) for seed in range(5)]
        played.append([[(float(s[1][0]), s[2], s[3]) for s in steps] for steps in episodes])
        lit = max(int(step[0].max()) for step in episodes[0])
        assert (lit > 0) == screen
        env.close()
    assert played[0] == played[1]


def test_nothing_is_left_behind_and_the_folders_config_is_not_obeyed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = take_cover.engine_files()
    (tmp_path / "_vizdoom.cfg").write_text("living_reward = 7\nscreen_resolution = RES_640X480\n")
    env = real.make_env(TAKE_COVER)
    directory = env.unwrapped._scratch.path
    env.reset(seed=0)
    assert env.step(STAY)[1] == 1.0
    assert env.unwrapped.game.get_screen_width() == 160
    files = set(take_cover.engine_files()) - set(others)
    assert files and os.listdir(directory)
    env.close()
    assert os.listdir(tmp_path) == ["_vizdoom.cfg"]
    assert not os.path.exists(directory)
    assert not any(os.path.exists(file) for file in files)


@pytest.mark.parametrize(
    "action, words",
    [
        ([0.0, 0.0], r"shape \(1,\), got \(2,\)"),
        (0.0, r"shape \(1,\), got \(\)"),
        ([np.nan], "nan"),
        ([np.inf], "inf"),
        ([1.5], "1.5"),
    ],
)
def test_a_bad_action_is_refused_in_one_line(doom, action, words):
    doom.reset(seed=0)
    with pytest.raises(ValueError, match=words) as caught:
        doom.step(action)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make, words",
    [
        ("dreamjax.game.take_cover:make_1993", "dreamjax.game.take_cover has no 'make_1993'"),
        ("dreamjax.game.pong:make", "no module dreamjax.game.pong; it must lie in this directory"),
    ],
)
def test_a_make_that_is_missing_is_refused(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        real.make_env(dataclasses.replace(TAKE_COVER, make=make))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "task, module, line",
    [(TAKE_COVER, "vizdoom", "pip install vizdoom"), (CAR_RACING, "Box2D", 'pip install "gymn')],
    ids=["vizdoom", "box2d"],
)
def test_a_missing_package_is_named_with_its_pip_line(task, module, line, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=line):
        real.make_env(task)
    assert line in real.games()[task.name]


def test_an_engine_that_crashed_is_reported_and_restarted_by_reset():
    others = _children()
    env = real.make_env(TAKE_COVER)
    frame, _ = env.reset(seed=4)
    for pid in set(_children()) - set(others):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(real.EngineCrashError):
        for _ in range(50):
            env.step(STAY)
    np.testing.assert_array_equal(env.reset(seed=4)[0], frame)
    env.close()


def _children():
    """Process ids of the engines that this process started."""
    lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    pids = [pid for found in lists for pid in found.split()]
    return [int(p) for p in pids if b"take_cover" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_car_racing_shows_the_track_and_is_capped():
    env = real.make_env(dataclasses.replace(CAR_RACING, max_steps=20))
    assert env.action_space.low.tolist() == [-1, 0, 0]
    steps = list(policies.play_steps(env, "held", 1))
    assert len(steps) == 20 and steps[-1][3] is None
    frame, action, reward, _ = steps[-1]
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    assert frame[..., 1].mean() > frame[..., 0].mean()  # grass
    assert action.shape == (3,) and isinstance(reward, float)
    again = list(policies.play_steps(env, "held", 1))
    env.close()
    np.testing.assert_array_equal(again[-1][0], frame)


def test_a_car_is_not_drawn_for_who_does_not_look():
    for screen in (True, False):
        env = real.make_env(CAR_RACING, screen=screen)
        env.reset(seed=1)
        assert env.unwrapped.state.any() == screen
        env.close()


@pytest.mark.slow
@pytest.mark.parametrize("angle", [0.3, -0.3])
def test_car_racing_draws_what_gymnasium_draws(angle):
    """Bends, the track's start zoomed out, and pictures of the second lap of the engine's life."""
    from gymnasium.envs.box2d.car_racing import CarRacing

    ours, theirs = car_racing.make(), CarRacing(lap_complete_percent=1.0)
    for seed in (7, 8):
        pictures = [game.reset(seed=seed)[0] for game in (ours, theirs)]
        for step in range(90):
            np.testing.assert_array_equal(*pictures)
            action = np.float32([angle * (step > 30), 0.6, 0])
            pictures, rewards, *_ = zip(
                *(game.step(action) for game in (ours, theirs)), strict=True
            )
            assert rewards[0] == rewards[1]
    ours.close(), theirs.close()


def road(*middles):
    """A picture of grass, with a road of 12 columns around these from the nearest row on."""
    frame = np.full((64, 64, 3), (100, 200, 100), np.uint8)
    for row, middle in zip(range(63, -1, -1), np.resize(middles, 64), strict=True):
        frame[row, max(round(middle) - 6, 0) : round(middle) + 6] = 105
    return frame


def test_a_driver_steers_for_the_road_brakes_in_bends_and_turns_back_where_it_is_lost():
    act = car_racing.steady(CAR_RACING.actions, None)
    assert act(0, road(32)).tolist() == pytest.approx([0, 0.15, 0], abs=0.05)
    bend = 32 + np.maximum(0, np.arange(64) - 14) * 0.6
    act = car_racing.steady(CAR_RACING.actions, None)
    act(0, road(*bend))
    elsewhere = road(*bend) + np.array([0, 5, 5], np.uint8)  # the road is where it was
    steer, gas, brake = act(1, elsewhere)  # so nothing is damped
    assert steer > 0.3 and gas < 0.1 and brake > 0
    steer, gas, brake = act(2, elsewhere)
    assert steer > 0.3 and gas > 0.1 and brake == 0, "a car that stands still starts again"
    act(3, road(*(64 - bend)))
    lost = act(4, np.full((64, 64, 3), (100, 200, 100), np.uint8))
    assert lost[0] < -0.3 and lost[2] == 0


def test_everyone_acts_within_the_actions_and_some_do_not_look():
    space, looked = CAR_RACING.actions.space(), 0
    shown = np.full((2, 64, 64, 3), (100, 220, 100), np.uint8)  # grass
    shown[0, :, 24:32] = shown[1, :, 34:42] = 100  # and a road, on the one side or the other
    for seed in range(60):
        acts = [car_racing.everyone(CAR_RACING.actions, np.random.default_rng(seed)) for _ in "ab"]
        told = [[act(t, shown[k]) for t in range(8)] for k, act in enumerate(acts)]
        assert all(space.contains(np.float32(action)) for run in told for action in run)
        looked += not np.array_equal(*told)
    assert 20 < looked < 59


@pytest.mark.slow
def test_recorded_drivers_differ_in_skill_and_stay_within_the_actions():
    low, high = CAR_RACING.actions.space().low, CAR_RACING.actions.space().high
    steers, blind = [], 0
    for seed in range(40):
        rngs = np.random.default_rng(seed), np.random.default_rng(seed)
        act, other = (car_racing.everyone(CAR_RACING.actions, rng) for rng in rngs)
        actions = np.stack([act(step, road(36)) for step in range(200)])
        blind += (actions == [other(step, road(28)) for step in range(200)]).all()
        assert actions.dtype == np.float32 and (low <= actions).all() and (actions <= high).all()
        steers.append(actions[:, 0].std())
    assert min(steers) < 0.05 and max(steers) > 0.4 and 4 <= blind <= 20


def test_held_actions_last_one_to_ten_steps_and_uniform_ones_one():
    act = policies.held(TAKE_COVER.actions, np.random.default_rng(0))
    actions = np.array([act(step)[0] for step in range(20_000)])
    runs = np.diff(np.flatnonzero(np.diff(actions, prepend=-2.0, append=2.0)))
    assert set(runs) == set(range(1, 11))
    assert abs(runs.mean() - 5.5) < 0.2
    act = policies.uniform(TAKE_COVER.actions, np.random.default_rng(0))
    actions = np.array([act(step)[0] for step in range(20_000)])
    assert len(set(actions)) > 19_900 and abs(actions.mean()) < 0.02
    assert actions.dtype == np.float32 and actions.min() < -0.99 and actions.max() > 0.99


def test_sweeps_cross_the_room_and_are_broken_off_by_an_episode_s_own_habit():
    shares = []
    for seed in range(40):
        act = take_cover.sweeps(TAKE_COVER.actions, np.random.default_rng(seed))
        actions = np.array([act(step) for step in range(4000)])[:, 0]
        edges = np.flatnonzero(np.diff(actions, prepend=np.nan) != 0)
        lengths, sides = np.diff(edges), actions[edges[:-1]]
        ways = np.abs(sides) == 1
        assert (lengths[ways] >= 70).all() and (lengths[~ways] <= 40).all()
        assert (lengths[ways] <= 120).all(), "never twice the same way"
        assert (np.diff(sides[ways]) != 0).all(), "left and right in turn"
        shares.append(1 - ways.mean())
    assert min(shares) < 0.1 and 0.5 < max(shares) < 0.85


def test_a_fourth_of_the_habits_sweep_and_the_others_are_varied(monkeypatch):
    monkeypatch.setattr(take_cover, "sweeps", lambda actions, rng: None)
    begun = [policies.begin(TAKE_COVER, "habits", np.random.default_rng(i)) for i in range(400)]
    assert 60 < begun.count(None) < 140  # 8.7 is the standard deviation of their number
    assert len({act(0)[0] for act in begun if act}) > 50
    other = policies.begin(CAR_RACING, "habits", np.random.default_rng(0))
    assert other.__qualname__.startswith("holding.")


def test_varied_episodes_hold_or_swing_each_at_its_own_pace():
    paces, swings = [], 0
    for seed in range(200):
        act = policies.varied(TAKE_COVER.actions, np.random.default_rng(seed))
        actions = np.array([act(step)[0] for step in range(1000)])
        runs = np.diff(np.flatnonzero(np.diff(actions, prepend=-2.0)))
        paces.append(runs.max())
        assert runs.min() >= runs.max() // 2
        swings += set(actions) == {-1.0, 1.0}
    assert 70 < swings < 130
    assert min(paces) < 15 and max(paces) > 200


def test_blind_is_what_the_task_says_or_held():
    act = policies.begin(TAKE_COVER, "blind", np.random.default_rng(0))
    signs = [int(act(step)[0]) for step in range(440)]
    assert signs == ([-1] * 110 + [1] * 110) * 2
    act = policies.begin(CAR_RACING, "blind", np.random.default_rng(0))
    assert act(0).tolist() == act(999).tolist() == pytest.approx([-0.03, 0.1, 0])
    other = Task("other", make="a:game", actions=CAR_RACING.actions)
    acts = [policies.begin(other, name, np.random.default_rng(0)) for name in ("blind", "held")]
    blind, held = (np.stack([act(step) for step in range(50)]) for act in acts)
    np.testing.assert_array_equal(blind, held)
