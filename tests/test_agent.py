"""The awake agent sees, remembers and acts exactly as the dreaming one."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from processes import children, engines_in, running
from untrained import random_memory

from dreamjax import agent
from dreamjax.agent import Agent, evaluate, evaluation_seeds
from dreamjax.controller.policy_gradient import Updates
from dreamjax.controller.ppo import LearnConfig, initial_network
from dreamjax.dream.env import EnvState
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.game import env as real
from dreamjax.game import rollouts
from dreamjax.game.vector import VectorGame
from dreamjax.recording import Recording, record
from dreamjax.tasks import TAKE_COVER, TASKS
from dreamjax.training.logbook import Logbook
from dreamjax.training.processes import Processes
from dreamjax.vision.model import VAE
from experiments import awake

QUIET = Logbook(quiet=True)
EPISODES = 45  # more than the games played at once, so that slots are used again


@pytest.fixture
def world(small_task):
    game = {"profile": "countdown", "make": "toy_game:make", "crop": None}
    task = dataclasses.replace(small_task, **game)
    vision = VAE(task.latent_size, rngs=nnx.Rngs(0))
    start = jnp.zeros((1, task.latent_size))
    memory = random_memory(task)
    memory.clock = True  # so that agent and dream must count alike
    return World(task, vision, memory, start, start)


def weights(world):
    return jax.random.normal(jax.random.key(5), (world.memory.feature_size,))


def player_of(world):
    return world.player_of(weights(world))


def test_every_episode_is_played_once_and_counted(world):
    played = evaluate(world, player_of(world), EPISODES, seed=3, workers=2)
    expected = [3 + (seed // 2) % 7 for seed in evaluation_seeds(3, EPISODES)]
    np.testing.assert_array_equal(played.lengths, expected)
    np.testing.assert_array_equal(played.returns, expected)


def test_awake_and_dreaming_agree_given_the_same_latents(world):
    """Fed the latents that V sampled, the dream's memory and C's features follow the agent's."""
    frames = np.random.default_rng(0).integers(0, 255, (6, 1, 64, 64, 3), np.uint8)
    player = Agent(world, player_of(world), 1, jax.random.key(0), dtype=jnp.float32)
    controller = world.controller()
    env, params = world.env(), world.params(dtype=jnp.float32)
    carry = world.memory.initial_carry()
    for t, frame in enumerate(frames):
        (action,), (z,) = player.act(np.arange(len(frame)), frame)
        state = EnvState(time=jnp.int32(t), z=jnp.asarray(z), carry=carry)
        obs = env.observe(None, state, None, params)
        np.testing.assert_allclose(controller(weights(world), obs), action, atol=1e-6)
        _, after, *_ = env.step_env(jax.random.key(t), state, action, params)
        carry = after.carry


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_it_multiplies_in_what_the_device_multiplies_fastest(world, monkeypatch, dtype):
    """And sees nearly what it sees in float32: what rounding leaves of a latent of about 1."""
    monkeypatch.setattr(agent, "product_dtype", lambda: jnp.dtype(dtype))
    frame = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    fast, exact = (
        Agent(world, player_of(world), 1, jax.random.key(0), dtype=own)
        for own in (None, jnp.float32)
    )
    (_, seen), (_, wanted) = (player.act(np.arange(1), frame) for player in (fast, exact))
    assert seen.dtype == np.float32
    assert (np.abs(seen - wanted).max() > 0) == (dtype == jnp.bfloat16)
    np.testing.assert_allclose(seen, wanted, atol=0.05)


def test_a_new_episode_forgets_the_old_one(world):
    """Two slots see the same; the one that restarts remembers one step, the other two."""
    sharp = world.vision
    sharp.logvar.bias[...] = sharp.logvar.bias[...] - 100.0  # V's sampling is then exact
    player = Agent(world, player_of(world), 2, jax.random.key(0), dtype=jnp.float32)
    frame = np.full((2, 64, 64, 3), 90, np.uint8)
    first, _ = player.act(np.arange(len(frame)), frame)
    once = np.asarray(player._carry[1])
    player.begin(np.array([1]), [8])
    second, _ = player.act(np.arange(len(frame)), frame)
    twice = np.asarray(player._carry[1])
    np.testing.assert_allclose(twice[1], once[1], atol=1e-6)
    assert np.abs(twice[0] - once[0]).max() > 1e-3
    np.testing.assert_allclose(second[1], first[1], atol=1e-6)  # C read no old memory
    assert np.abs(second[0] - first[0]).max() > 1e-4


class Notes(agent.Tape):
    """Keeps every step of every episode."""

    def __init__(self):
        self.steps = {}

    def add(self, episodes, *columns):
        for episode, *step in zip(episodes, *columns, strict=True):
            self.steps.setdefault(int(episode), []).append(step)

    def actions(self, episode):
        return np.stack([action for _, _, action, _, _ in self.steps[episode]])


@pytest.mark.slow
def test_an_episode_is_the_same_whatever_is_played_beside_it(world, monkeypatch):
    """It depends on its seed and the evaluation's alone: not on slots, neighbours or number."""

    def noted(episodes, slots, seed=3):
        notes = Notes()
        monkeypatch.setattr(agent, "Tape", lambda: notes)
        monkeypatch.setattr(agent, "GAMES", slots)
        evaluate(world, player_of(world), episodes, seed, workers=1)
        return [notes.actions(episode) for episode in range(episodes)]

    few, many = noted(3, slots=2), noted(30, slots=21)
    for one, other in zip(few, many[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(few[0][0] - few[1][0]).max() > 1e-3  # equal first frames, other noise
    assert evaluation_seeds(2003, 1) == evaluation_seeds(3, 1)
    assert np.abs(few[0][0] - noted(1, slots=1, seed=2003)[0][0]).max() > 1e-3


@pytest.mark.slow
def test_an_evaluation_is_the_same_to_the_bit_when_an_engine_and_a_worker_are_killed(
    world, monkeypatch, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(agent, "GAMES", 3)
    game = {name: getattr(TAKE_COVER, name) for name in ("profile", "make", "crop")}
    world = dataclasses.replace(world, task=dataclasses.replace(world.task, **game))
    killed = []

    class Killer(Notes):
        def add(self, episodes, *columns):
            super().add(episodes, *columns)
            taken = sum(map(len, self.steps.values()))
            if not killed and taken > 60:
                killed.append(engines_in(tmp_path)[0])
            elif len(killed) == 1 and taken > 210:
                killed.append(children(os.getpid())[-1])
            else:
                return
            os.kill(killed[-1], signal.SIGKILL)

    def evaluated(notes):
        monkeypatch.setattr(agent, "Tape", lambda: notes)
        played = evaluate(world, player_of(world), 5, seed=2, workers=2)
        steps = [step for episode in range(5) for step in notes.steps[episode]]
        return [*map(np.stack, zip(*steps, strict=True)), played.returns, played.lengths]

    calm, troubled = evaluated(Notes()), evaluated(Killer())
    assert len(killed) == 2 and not running(killed)
    assert calm[-1].sum() > 250 and np.ptp(calm[2]) > 0.1
    for one, other in zip(calm, troubled, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_episodes_is_named(world):
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        evaluate(world, player_of(world), 0, seed=0)


def test_recorded_episodes_are_those_played(world, tmp_path):
    asked = Recording(world, player_of(world), tmp_path, 33, seed=3)
    record(asked, log=QUIET, workers=2, processes=Processes())
    paths = rollouts.shard_paths(tmp_path)
    assert [path.name for path in paths] == ["shard-10000.npz", "shard-10001.npz"]
    seeds = []
    for _, shard in rollouts.read_all(paths):
        np.testing.assert_array_equal(shard.lengths, 3 + shard.seeds // 2 % 7)
        assert (shard.seeds % 2 == 0).all() and shard.rewards.sum() == shard.lengths.sum()
        assert shard.terminated.all() and np.abs(shard.actions).max() > 0.1
        seeds += list(shard.seeds)
    assert len(set(seeds)) == 64
    before = [path.stat().st_mtime_ns for path in paths]
    record(asked, log=QUIET, workers=2, processes=Processes())
    assert [path.stat().st_mtime_ns for path in paths] == before
    found = rollouts.read(paths[1])
    paths[1].unlink()
    record(asked, log=QUIET, workers=2, processes=Processes())
    assert paths[0].stat().st_mtime_ns == before[0]
    again = rollouts.read(paths[1])
    assert again.seeds.tolist() == found.seeds.tolist()
    np.testing.assert_array_equal(again.actions, found.actions)


def reversed_player(player):
    return dataclasses.replace(player, weights=-player.weights)


ANOTHER = "was played by another agent, or in other games"
OTHER_PLAYER, OTHER_SEED = {"player": reversed_player}, {"seed": lambda seed: seed + 1}


@pytest.mark.parametrize(
    "change, words, told",
    [
        (OTHER_PLAYER, ANOTHER, True),
        pytest.param(OTHER_PLAYER, ANOTHER, False, marks=pytest.mark.slow),
        pytest.param(OTHER_SEED, ANOTHER, True, marks=pytest.mark.slow),
        (OTHER_SEED, ANOTHER, False),
        ({}, None, True),
        pytest.param({}, None, False, marks=pytest.mark.slow),
    ],
)
def test_another_s_games_are_not_taken_for_one_s_own(
    change, words, told, world, tmp_path, monkeypatch
):
    """Nor are they lost; older shards, of which nothing is told, are known by their actions."""
    monkeypatch.setattr("dreamjax.recording.SHARD", 2)
    asked = Recording(world, player_of(world), tmp_path, 4, seed=3)
    record(asked, workers=1, processes=Processes())
    paths = rollouts.shard_paths(tmp_path)
    played = [path.read_bytes() for path in paths]
    if not told:
        (tmp_path / "players.json").unlink()
    changed = {name: new(getattr(asked, name)) for name, new in change.items()}
    another = dataclasses.replace(asked, **changed)
    if words:
        assert another.sort() == ([], paths, [])
        with pytest.raises(ValueError, match=words) as error:
            record(another, log=QUIET, workers=1, processes=Processes())
        assert str(paths[0]) in str(error.value)
    else:
        paths[1].write_bytes(b"garbage")
        assert another.sort() == (paths[:1], [], paths[1:])
        record(another, log=QUIET, workers=1, processes=Processes())
        assert paths[1].with_name(f"{paths[1].name}.corrupt").read_bytes() == b"garbage"
    assert [path.read_bytes() for path in paths] == played


def test_steps_played_while_learning_end_where_the_games_do(world):
    """One game after another in each slot; C remembers nothing across an end."""
    config = LearnConfig(num_envs=4, num_steps=24, num_minibatches=4, action_repeat=1)
    controller = world.controller()
    updates = Updates(world.env(), controller, config, 0)
    network = initial_network(jax.random.key(0), controller, weights(world), config.critic)
    with VectorGame(world.task, 4) as game:
        player = awake.Playing(world, updates, game, seed=0)
        steps = player.play(network, 24)
    lives = (3 + real.engine_seed(2 * 10**10 + 2 * i) // 2 % 7 for i in range(40))
    left, done = [next(lives) for _ in range(4)], np.zeros((24, 4))
    for t, slot in np.ndindex(24, 4):
        left[slot] -= 1
        if not left[slot]:
            done[t, slot], left[slot] = 1, next(lives)
    assert done.sum(1).max() > 1, "two games are to end together"
    np.testing.assert_array_equal(steps.done, done)
    remembers = jnp.abs(steps.obs[1:, :, world.task.latent_size :]).max(-1) > 0
    np.testing.assert_array_equal(remembers, done[:-1] == 0)
    following = np.where(done[:-1], 0, steps.value[1:])
    np.testing.assert_allclose(steps.next_value[:-1], following, rtol=1e-4, atol=1e-6)
    assert np.abs(following).max() > 0.01
    assert set(np.unique(steps.drawn)) == {0, 1, 2}
    assert (jnp.diff(steps.reward.ravel()) == 0).all() and steps.reward[0, 0] > 0


@pytest.mark.slow
def test_games_cut_short_would_have_earned_what_the_critic_says(world):
    config = LearnConfig(num_envs=2, num_steps=5, num_minibatches=2, action_repeat=1)
    updates = Updates(world.env(), world.controller(), config, 0)
    network = initial_network(jax.random.key(0), world.controller(), weights(world), config.critic)
    network = network.replace(body_bias=jnp.full(64, 99.0), value=jnp.full(64, 0.5 / 64))
    with VectorGame(dataclasses.replace(world.task, max_steps=2), 2) as game:
        steps = awake.Playing(world, updates, game, seed=0).play(network, 5)
    np.testing.assert_array_equal(steps.done[:, 0], [0, 1, 0, 1, 0])
    np.testing.assert_allclose(steps.next_value, 0.5, rtol=1e-4)


@pytest.mark.parametrize("memory", ["untrained", "none"])
def test_learning_awake_may_read_another_m_or_none(world, memory, tmp_path):
    other = awake.with_memory(world, awake.Config(memory=memory))
    if memory == "none":
        assert other.controller().num_features == world.task.latent_size
        with pytest.raises(ValueError, match="leave it out with --memory none"):
            awake.Config(memory=memory, run_dir=tmp_path)
    else:
        assert other.controller() == world.controller()
        assert other.digest() != world.digest()
    assert awake.with_memory(world, awake.Config()).digest() == world.digest()


def test_what_was_learnt_awake_is_kept_for_evaluate(world, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, world.task.name, world.task)
    controller = world.controller()
    awake.keep(tmp_path, world, controller, weights(world))
    found = load_world(tmp_path).player
    assert found.controller == controller
    np.testing.assert_array_equal(found.weights, weights(world))


@pytest.mark.slow
def test_learning_awake_starts_with_the_critic(world, capsys):
    """C stays as it is for so many updates and moves in the next; the games' lives are told."""
    controller, start = world.controller(), weights(world)
    config = awake.Config(steps=10 * 16, num_envs=2, num_steps=8, only_critic=10)
    learning = config.learning()
    found = awake.learnt(world, controller, start, config, learning)
    np.testing.assert_allclose(found, start, rtol=1e-5)
    assert "160 steps:" in capsys.readouterr().out
    moving = dataclasses.replace(config, only_critic=9)
    moved = awake.learnt(world, controller, start, moving, learning) - start
    assert 5e-6 < jnp.abs(moved).max() < 0.01
