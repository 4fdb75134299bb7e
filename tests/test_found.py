"""Games by their ids, what a run finds out of them, and when it stops for having learnt nothing."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from command import dreamjax, refused
from gymnasium import spaces
from recorded import write
from slider import SLIDER, Crawler, Flicker, Slider

from dreamjax import Task, actions, make, register
from dreamjax.dream.registration import find_task
from dreamjax.dream.world import blank_world
from dreamjax.dream.worlds import load_world
from dreamjax.game.by_id import ById, is_id, task_of
from dreamjax.game.env import make_env
from dreamjax.game.jobs import play
from dreamjax.game.probing import MOST, frames_until_seen
from dreamjax.memory.latents import LatentSequences
from dreamjax.run import found, learnt
from dreamjax.run.presets import PRESETS
from dreamjax.run.settings import Run
from dreamjax.tasks import CAR_RACING, TASKS
from dreamjax.training.logbook import Logbook
from dreamjax.training.settings import SettingError

SEED = 4


@pytest.mark.parametrize(
    "name, whether",
    [
        ("gymnasium:CartPole-v1", True),
        ("gymnasium:Nameless", True),
        ("ale_py:ALE/Pong-v5", True),
        ("mine:Game-v0,size=3", True),
        ("mine:GAME", False),
        ("mine.games:make_2", False),
        ("take-cover", False),
    ],
)
def test_ids_are_told_from_attributes(name, whether):
    assert is_id(name) == whether


def test_a_game_is_found_by_its_id_with_its_options():
    task = find_task("gymnasium:CarRacing-v3,continuous=False,domain_randomize=True")
    assert task.name == "carracing-v3-continuous-false-domain-randomize-true"
    assert task.actions == actions.Choice(5) and task.max_steps == 1000
    assert (task.frames_per_second, task.package) == (50, "gymnasium")
    assert task.profile == "CarRacing-v3,continuous=False,domain_randomize=True"
    assert hash(task) == hash(dataclasses.replace(task)) and TASKS[task.name] == task
    assert task_of("slider:Slider-v3").max_steps == 40
    assert ById.of("a:B-v1,x=-0.5,y=left").options == (("x", -0.5), ("y", "left"))


def test_an_id_is_made_and_shows_its_picture():
    with_env = make_env(find_task("gymnasium:CartPole-v1"))
    frame, _ = with_env.reset(seed=SEED)
    assert frame.shape == (64, 64, 3) and 0 < (frame < 200).mean() < 0.2, "a pole on white"
    with_env.close()


def test_an_engine_writes_nothing_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = dataclasses.replace(find_task("gymnasium:VizdoomBasic-v1"), max_steps=4)
    game = make_env(task)
    game.reset(seed=0)
    game.step(game.action_space.sample())
    game.close()
    assert play(task, "held", [3, 4]).lengths.tolist() == [4, 4]
    assert not list(tmp_path.iterdir()), "no _vizdoom.ini"


@pytest.mark.parametrize(
    "name, said",
    [
        ("gymnasium:Nope-v1", "gymnasium has no game 'Nope-v1'"),
        ("gymnasium:CartPole-v1,x", "options are written option=value, got 'x'"),
        ("gymnasium:CartPole-v1,x=1", "unexpected keyword argument 'x'"),
        ("nowhere_at_all:Game-v1", "needs the module nowhere_at_all"),
        ("gymnasium:Ant-v5", "pip install"),
        ("gymnasium:ALE/Pong-v9", "Pong"),
        ("gymnasium:FrozenLake8x8-v1,map_name=no", "make() failed (KeyError"),
        ("nobody", "or one of gymnasium's as gymnasium:CartPole-v1"),
    ],
)
def test_an_id_that_cannot_be_played_is_one_line(name, said, tmp_path):
    run = tmp_path / "run"
    assert said in refused("collect", name, "--run-dir", run)
    assert not run.exists() or not any(run.rglob("*.npz"))


def test_several_discrete_actions_are_one_choice():
    space = spaces.MultiDiscrete([[3, 2], [2, 1]])
    choice = actions.actions_of(space)
    assert choice == actions.Choice(12)
    given = [choice.to_game(np.eye(12)[k], space) for k in range(12)]
    assert all(space.contains(one) for one in given)
    assert len({one.tobytes() for one in given}) == 12
    begun = spaces.MultiDiscrete([2, 3], start=[5, -1])
    assert all(begun.contains(actions.Choice(6).to_game(np.eye(6)[k], begun)) for k in range(6))
    pressed = spaces.MultiBinary(3)
    choice = actions.actions_of(pressed)
    assert choice == actions.Choice(8)
    assert choice.to_game(np.eye(8)[5], pressed).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="1,024 combinations, more than 256"):
        actions.actions_of(spaces.MultiBinary(10))


@pytest.mark.parametrize("make, frames", [(Slider, 1), (Crawler, MOST), (Flicker, None)])
def test_an_action_shows_after_so_many_frames(make, frames):
    game = make_env(dataclasses.replace(SLIDER, make=make, actions=actions.Choice(2)))
    assert frames_until_seen(game, SEED, lambda steps: None) == frames


def test_what_is_not_given_is_found_and_what_is_given_stays():
    assert SLIDER.to_find == ("frame_skip", "reward_scale", "gamma")
    assert (SLIDER.frame_skip, SLIDER.reward_scale, SLIDER.gamma) == (1, 1.0, 0.995)
    given = Task("given", make=Slider, frame_skip=2)
    values = {"frame_skip": 5, "max_steps": 8, "gamma": 0.9, "residual": True}
    assert given.to_find == ("reward_scale", "gamma")
    assert (given.found(values).frame_skip, given.found(values).gamma) == (2, 0.9)
    assert SLIDER.found(values).ages[-1] == SLIDER.found(values).max_steps == 8
    assert CAR_RACING.found(values) is CAR_RACING


def latents(lengths, step, terminated=True):
    """Latents [N, 2] that move by `step` times the spread of those of an episode."""
    rng, parts = np.random.default_rng(0), []
    for length in lengths:
        parts.append(np.cumsum(step * rng.normal(size=(length, 2)), axis=0) + rng.normal(size=2))
    mu = np.concatenate(parts).astype(np.float16)
    return LatentSequences(
        mu=mu,
        logvar=0 * mu - 5,
        actions=np.zeros((len(mu), 1), np.float32),
        rewards=np.ones(len(mu), np.float32),
        lengths=np.array(lengths, np.int32),
        terminated=np.full(len(lengths), terminated),
        seeds=np.arange(len(lengths)),
        vision="v",
        profile="test",
        ends=np.zeros(len(lengths), np.int8),
    )


def test_m_foretells_changes_where_z_is_slow_and_is_told_the_age_where_it_is_recorded():
    slow = latents((30, 40), 0.1)
    noise = np.random.default_rng(0).normal(size=slow.mu.shape).astype(np.float16)
    assert found._is_slow(slow) and not found._is_slow(dataclasses.replace(slow, mu=noise))
    assert found._is_aged(latents((30, 40), 0.1), most=50)
    assert not found._is_aged(latents((30, 40), 0.1), most=100), "no frame is so old"
    assert not found._is_aged(latents((30, 40), 0.1, terminated=False), most=50)


def run_of(directory, **memory):
    smoke = PRESETS["smoke"]
    config = dataclasses.replace(smoke, memory=dataclasses.replace(smoke.memory, **memory))
    return Run(directory, register(SLIDER), 0, config, Logbook(directory))


def test_each_phase_finds_what_it_needs(tmp_path, monkeypatch, capsys):
    run = run_of(tmp_path, clock=None, residual=None)
    begun = found.settled(run, "collect").task
    assert (begun.frame_skip, begun.max_steps, TASKS["slider"]) == (1, 40, begun)
    rewards = np.where(np.arange(30) % 20 == 0, 3.0, 0.0).astype(np.float32)
    write(tmp_path / "rollouts", np.zeros((30, 64, 64, 3), np.uint8), rewards=rewards)
    seen = found.settled(run, "train-vision")
    assert (seen.task.reward_scale, seen.task.gamma) == (3.0, 0.98)
    assert seen.config.learn.gamma == 0.98
    monkeypatch.setattr(found, "read_latents", lambda path: latents((30, 40), 0.1))
    ready = found.settled(run, "train-memory").config.memory
    assert (ready.residual, ready.clock) == (True, True)
    assert found.settled(run_of(tmp_path, clock=False), "train-memory").config.memory.clock is False
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "found before collect: frame_skip 1",
        "found before train-vision: reward_scale 3, gamma 0.98",
        "found before train-memory: residual 1, clock 1",
    ]


def test_what_is_paid_often_is_looked_for_less_far(tmp_path):
    often = np.random.default_rng(0).normal(size=400).astype(np.float32)
    for rewards, gamma in ((often, 0.99), (np.ones(400, np.float32), 0.9967)):
        write(tmp_path / "rollouts", np.zeros((400, 64, 64, 3), np.uint8), rewards=rewards)
        assert found._rewards(run_of(tmp_path))["gamma"] == gamma


def test_as_many_episodes_are_recorded_as_the_bound_on_frames_holds(tmp_path):
    def asked(**collect):
        run = run_of(tmp_path)
        collect = dataclasses.replace(run.config.collect, policy="held", **collect)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, collect=collect))

    many = asked(episodes=1600, max_frames=400)
    episodes = found.settled(many, "collect").config.collect.episodes
    lengths = play(SLIDER, "held", range(100, 140)).lengths
    assert 0.7 < episodes * lengths.mean() / 400 < 1.4, "16 episodes tell the length of others"
    few, free = asked(episodes=episodes - 1, max_frames=400), asked(episodes=1600)
    assert found.known(few).config.collect.episodes == episodes - 1
    assert found.known(free).config.collect.episodes == 1600
    (tmp_path / found.FILE).unlink()
    write(tmp_path / "rollouts", np.zeros((20, 64, 64, 3), np.uint8))
    assert found.settled(many, "collect").config.collect.episodes == 20, "as those recorded last"
    assert not found._is_open(asked(episodes=10, max_frames=400), "episodes"), "10 of 40 frames"
    with pytest.raises(SettingError, match="collect.max_frames must be at least 1, got 0"):
        asked(max_frames=0)


def test_an_episode_is_not_far_longer_than_those_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(found, "LONG", 5)
    monkeypatch.setattr(found, "LONGER", 1)
    run = run_of(tmp_path, clock=None)
    endless = dataclasses.replace(run, task=dataclasses.replace(run.task, max_steps=27_000))
    longest = int(play(endless.task, "held", range(48, 80, 2)).lengths.max())
    assert 5 < found.settled(endless, "collect").task.max_steps == longest < 27_000
    assert f"slider: episodes end after {longest:,} steps at the latest" in capsys.readouterr().out
    monkeypatch.setattr(found, "LONG", 2 * longest)
    (tmp_path / found.FILE).unlink()
    assert found.settled(endless, "collect").task.max_steps == 2 * longest


@pytest.mark.slow
def test_a_run_finds_out_prints_and_keeps_and_its_world_tells(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["run", "slider:SLIDER", "--preset", "smoke", "--run-dir", run, "--controller"]
    words += ["learn", "--memory.clock", "None", "--memory.residual", "None"]
    words += ["--collect.episodes", "4", "--vision.steps", "2", "--memory.steps", "2"]
    words += ["--evaluate.episodes", "2", "--evaluate.baseline-episodes", "2"]
    status, out, err = dreamjax(*words)
    assert status == 0, err
    told = json.loads((run / found.FILE).read_text())
    assert told.keys() == {*SLIDER.to_find, "max_steps", "residual", "clock"}
    assert "found before collect: frame_skip 1" in out
    assert "found before train-vision: reward_scale 3, gamma 0.98" in out
    assert "found before train-memory: residual" in out
    register(SLIDER)  # as a new process knows it
    world = load_world(run)
    assert (world.task.gamma, world.task.reward_scale) == (0.98, 3.0)
    assert world.memory.residual == told["residual"] and world.memory.clock == told["clock"]
    assert make("DreamSlider-v1", world=str(run))[0].task == world.task
    assert dreamjax("doctor", run)[0] == 0
    register(SLIDER)
    beside = ["learn", *words[1:5], tmp_path / "beside", "--world", run]
    assert dreamjax(*beside)[0] == 0, "a world brings what was found with it"
    status, out, err = dreamjax(*words)
    assert status == 0 and "found before" not in out, err


def test_recordings_that_are_older_are_taken_as_they_are(tmp_path):
    smoke, task = PRESETS["smoke"], register(SLIDER)
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "shard-00000.npz").touch()
    run = Run(tmp_path, task, 0, smoke, Logbook(quiet=True))
    assert found.settled(run, "train-vision").task == task


def test_a_world_that_tells_what_cannot_be_is_refused(tmp_path):
    meta = {"task": register(SLIDER).name, "profile": "slider", "starts": 2}
    assert blank_world(meta | {"found": {"frame_skip": 3}}, tmp_path).task.frame_skip == 3
    for told in ({"frame_skip": 0}, {"gamma": "much"}, {"max_steps": None}):
        with pytest.raises(ValueError, match=next(iter(told))):
            blank_world(meta | {"found": told}, tmp_path)


def test_a_run_stops_where_a_phase_has_learnt_nothing(smoke, tmp_path, monkeypatch):
    directory, _ = smoke
    monkeypatch.setattr(learnt, "FRAMES", 32)
    monkeypatch.setattr(learnt, "DREAMS", 16)
    run = Run(directory, find_task("short_cover:SHORT"), 0, PRESETS["smoke"], Logbook(quiet=True))
    with pytest.raises(learnt.NothingLearntError, match="train-vision has learnt nothing: V draws"):
        learnt.check(run, "train-vision")
    monkeypatch.setattr(learnt, "BLIND", 1e3)
    learnt.check(run, "train-vision")
    monkeypatch.setattr(learnt, "memory_metrics", lambda *_: {"nll": 1.5, "nll_marginal": 1.4})
    with pytest.raises(learnt.NothingLearntError, match="1.50 nats a number, where one Gaussian"):
        learnt.check(run, "train-memory")
    monkeypatch.setattr(learnt, "SURE", np.inf)
    with pytest.raises(learnt.NothingLearntError, match="in its own dream, where random play"):
        learnt.check(run, run.config.controller)
    monkeypatch.setattr(learnt, "SURE", -np.inf)
    learnt.check(run, run.config.controller)
    learnt.check(run, "collect")


def test_a_v_that_draws_all_but_what_moves_has_learnt_nothing(tmp_path, monkeypatch):
    """As of a ground that is another in each episode, and a small thing above it."""
    rng, run = np.random.default_rng(0), run_of(tmp_path)
    ground = np.repeat(rng.integers(0, 255, (2, 1, 64, 64, 3), np.uint8), 20, axis=1)
    frames = ground.copy()
    for t in range(20):
        frames[:, t, 10:13, 3 * t : 3 * t + 3] = 255
    for number, one in enumerate(frames):
        write(tmp_path / "rollouts", one, number)
    drawn = {"eye": frames, "blind": ground}
    chosen, frames_of = [], lambda name: drawn[name].reshape(-1, 64, 64, 3) / np.float32(255)
    monkeypatch.setattr(learnt, "FRAMES", 40)
    monkeypatch.setattr(learnt.lineage, "load_vision", lambda run: SimpleNamespace(encode=encode))
    encode = lambda pictures: (pictures,)  # noqa: E731
    monkeypatch.setattr(learnt, "pictures", lambda v, z: frames_of(chosen[-1])[: len(z)])
    chosen.append("eye")
    learnt.check(run, "train-vision")
    chosen.append("blind")
    with pytest.raises(learnt.NothingLearntError, match="V draws what moves with an error of"):
        learnt.check(run, "train-vision")


def test_what_was_found_must_be_of_its_form(tmp_path):
    with pytest.raises(ValueError, match="what was found of slider must be a dict"):
        SLIDER.found([3])
    with pytest.raises(ValueError, match="to_find of wrong must be of"):
        Task("wrong", make=Slider, to_find=("speed",))
    for text in ("", "[1]", "{", "null"):
        (tmp_path / found.FILE).write_text(text)
        assert found.known(run_of(tmp_path)).task.max_steps == 40, "it is found again"


def test_a_shipped_game_keeps_its_picture(tmp_path):
    words = ["collect", "take-cover", "--observation", "screen", "--run-dir", tmp_path / "run"]
    assert "take-cover has its own picture; leave out --observation" in refused(*words)
