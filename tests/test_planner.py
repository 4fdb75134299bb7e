"""What the diagnoses of the ladder rest on: how the game moves, and who dodges what."""

import dataclasses

import numpy as np
import pytest

from dreamjax.agent import evaluation_seeds
from dreamjax.controller.model import controller_for
from dreamjax.dream.worlds import load_world
from dreamjax.tasks import TAKE_COVER
from dreamjax.training.settings import SettingError
from experiments import clone, planner, probe

pytestmark = pytest.mark.slow


def seen(y, speed, *balls):
    """What a planner knows: fireballs as (away, along, speed away, speed along)."""
    balls = np.reshape(balls, (-1, 4))
    return planner.Seen(y, speed, balls[:, :2], balls[:, 2:])


def test_the_player_moves_as_the_engine_moves_him():
    """A tic of left from rest, as the engine tells it: y 384 to 384.75, then 386.1797."""
    (path,) = planner.paths(384.0, 0.0, np.array([[1] * 20 + [0]]))
    np.testing.assert_allclose(
        path[[0, 1, 19, 20]], [384.75, 386.1797, 477.4634, 483.7011], atol=1e-3
    )
    assert planner.paths(740.0, 7.0, np.ones((1, 72), int)).max() == planner.WALLS[1]


@pytest.mark.parametrize("along", [-12.0, 12.0])
def test_the_planner_dodges_to_the_side_that_is_nearer(along):
    ball = 150.0, along, -10.0, 0.0
    side = planner.best_side(seen(384.0, 0.0, ball))
    assert side == -np.sign(along)
    path = planner.paths(384.0, 0.0, np.full((1, 72), side))[0] - 384.0
    there = np.abs(150.0 - 10.0 * np.arange(1, 73)) < planner.REACH
    assert (np.abs(path[there] - along) >= planner.REACH).all()


def test_a_planner_who_sees_nothing_moves_on_and_turns_at_walls():
    assert planner.best_side(seen(384.0, 3.0)) == planner.LEFT
    assert planner.best_side(seen(384.0, -3.0)) == planner.RIGHT
    assert planner.best_side(seen(740.0, 3.0)) == planner.RIGHT
    assert planner.best_side(seen(20.0, -3.0)) == planner.LEFT
    far = seen(384.0, 3.0, (150.0, 0.0, -10.0, 0.0))
    assert len(planner.near(far, 149.0).places) == 0 and len(planner.near(far, 151.0).places) == 1


def test_danger_is_where_a_fireball_will_pass():
    danger = probe.danger_of(seen(384.0, 0.0, (100.0, 32.0, -10.0, 0.0)))
    assert set(np.flatnonzero(danger.any(axis=1))) == {1, 2}, "tics 8 to 12"
    assert set(probe.OFFSETS[danger.any(axis=0)]) == {16.0, 32.0, 48.0}
    assert not probe.danger_of(seen(384.0, 0.0)).any()


def test_who_is_told_of_danger_leaves_it():
    danger = np.zeros((probe.WINDOWS, len(probe.OFFSETS)))
    assert probe.safest_side(danger, np.array([384.0, 3.0])) == planner.LEFT, "moves on"
    danger[2, probe.OFFSETS > -40] = 0.9  # out of reach in 12 tics but to who goes at once
    assert probe.safest_side(danger, np.array([384.0, 0.0])) == planner.RIGHT


@pytest.fixture
def short_games(monkeypatch):
    """Games that last 300 steps at most."""
    short = dataclasses.replace(TAKE_COVER, max_steps=300)
    monkeypatch.setattr(planner, "TAKE_COVER", short)
    return short


def test_who_sees_all_lives(short_games):
    seeds = evaluation_seeds(3, 3)
    assert [planner.steps_survived(seed, planner.WHOLE_ROOM) for seed in seeds] == [300] * 3
    assert min(planner.steps_survived(seed, 1.0) for seed in seeds) < 300


def test_the_planner_prints_a_row_for_each_sight(capsys):
    found = planner.main(planner.Config(sight=(30.0, 20.0), episodes=2))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("sees up to    30: ") and second.endswith(", n 2")
    assert [len(lived) for lived in found.values()] == [2, 2]
    with pytest.raises(SettingError, match=r"sight must be distances above 0, got \(0.0,\)"):
        planner.Config(sight=(0.0,))


def test_the_probe_learns_where_fireballs_will_pass(short_games, capsys):
    config = probe.Config(frames=600, rounds=1, steps=150, hidden=64, games=2, episodes=2)
    lived = probe.main(config)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("round 0: 600 steps") and out[1].startswith("sees what the probe")
    assert len(lived) == 2 and all(0 < steps <= 300 for steps in lived)
    world, seeds = load_world("take-cover"), iter(range(0, 4, 2))
    features, danger, own = probe.play(world, probe.knowing, config, seeds, 600)[1]
    found = probe.trained((features, danger, own), config)
    said, where = map(np.asarray, probe.told(found, features))
    assert said[danger].mean() > 5 * said[~danger].mean() > 0
    assert np.abs(where[:, 0] - own[:, 0]).mean() < 0.5 * own[:, 0].std()


def test_a_side_costs_what_its_best_plan_does():
    left, stay, right = clone.side_costs(seen(384.0, 3.0))
    assert left == 0 < stay == right, "with nothing to dodge it is best to move on"
    left, stay, right = clone.side_costs(seen(384.0, 0.0, (40.0, 18.0, -10.0, 0.0)))
    assert right < stay < left and left >= 1, "too near to be passed"


def test_a_clone_does_what_costs_least(short_games, capsys):
    config = clone.Config(rounds=2, frames=150, steps=300, games=2, episodes=2, hidden=8)
    assert clone.main(config)["n"] == 2
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("round 0: ") and second.startswith("round 1: ")
    assert last.startswith("the clone: ")


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_clone_reads_what_the_features_tell(hidden):
    controller = controller_for(TAKE_COVER, 3, hidden)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4_000, 3)).astype(np.float32) * (1, 10, 100) + (0, 0, 5)
    costs = np.stack((features[:, 1] > 0, np.full(4_000, 0.6), features[:, 1] <= 0), axis=1)
    config = clone.Config(hidden=hidden, steps=1_000)
    weights, cost = clone.cloned(controller, (features, costs.astype(np.float32)), config)
    side = np.asarray(controller(weights, features))[:, 0]
    assert (np.sign(side) == np.where(features[:, 1] > 0, 1, -1)).mean() > 0.95
    assert cost < 0.4, "a guess costs 0.5"
