"""A form of M that dreamjax has never seen goes the whole way."""

import dataclasses
import json
import shutil

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from gru import GRU
from short_cover import SHORT
from test_memory import COUNTDOWN, QUIET, TOY, Interrupting, countdown, random_sequences

import dreamjax
from dreamjax.agent import Agent
from dreamjax.controller.player import Player
from dreamjax.controller.population import rollout
from dreamjax.dream.exported import export_world
from dreamjax.dream.gymnasium_env import Dream
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world, save_world
from dreamjax.memory.kinds import KINDS, find_kind, kind_of
from dreamjax.memory.loss import predict_sequences
from dreamjax.memory.lstm import MDNRNN
from dreamjax.memory.metrics import memory_metrics
from dreamjax.memory.training import MemoryConfig, State, train_memory
from dreamjax.run import cli, lineage
from dreamjax.tasks import CAR_RACING, TAKE_COVER
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.vision.model import VAE

KIND, UNITS = "gru:GRU", 16
ID = "DreamTakeCover-v1"


@pytest.fixture(autouse=True)
def known():
    find_kind(KIND)
    yield
    find_kind(KIND)  # for tests that made it unknown


@pytest.fixture
def unknown(monkeypatch):
    """Forget the form, as a new process has."""
    return lambda: monkeypatch.delitem(KINDS, KIND)


@pytest.fixture(scope="module")
def gru_world():
    """A world of a small untrained GRU; dreams in it end after some 20 steps."""
    memory = find_kind(KIND)(TAKE_COVER, rngs=nnx.Rngs(0), hidden_size=UNITS)
    memory.head_kernel[...] = memory.head_kernel[...].at[:, -1].multiply(8.0)
    mu = jax.random.normal(jax.random.key(0), (5, 64))
    vision = VAE(64, rngs=nnx.Rngs(1))
    return World(TAKE_COVER, vision, memory, mu, mu - 2, death_threshold=3.0, death_noise=1.0)


# By name


def test_a_form_is_found_by_its_name_and_told_by_it():
    assert find_kind(KIND) is GRU and find_kind("lstm") is MDNRNN
    small = dataclasses.replace(TAKE_COVER, latent_size=6, hidden_size=12)
    models = {kind: find_kind(kind)(small, rngs=nnx.Rngs(0)) for kind in ("lstm", KIND)}
    assert {kind: kind_of(memory) for kind, memory in models.items()} == dict(
        zip(models, models, strict=True)
    )


@pytest.mark.parametrize(
    "name, message",
    [
        ("gru", "no M is of the kind 'gru'; choose one of lstm"),
        ("gru:LSTM", "gru has no 'LSTM'"),
        ("grus:GRU", "there is no module grus"),
        ("gru:glorot", "gru:glorot is no subclass of dreamjax.Memory"),
        ("json:JSONDecoder", "is no subclass of dreamjax.Memory"),
    ],
)
def test_names_of_none_are_one_clear_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        MemoryConfig(kind=name)
    assert "\n" not in str(error.value) and name not in KINDS


# Training


def test_an_empty_carry_may_hold_one_array_twice():
    class Twice(MDNRNN):
        def initial_carry(self, batch_shape=()):
            zeros = jnp.zeros((*batch_shape, self.hidden_size), jnp.float32)
            return zeros, zeros

    config = dataclasses.replace(TOY, hidden_size=8, steps=2, steps_per_call=1)
    begun = Twice(COUNTDOWN, rngs=nnx.Rngs(0), hidden_size=8)
    train_memory(COUNTDOWN, countdown(), config, 0, log=QUIET, memory=begun)


@pytest.mark.slow
def test_it_learns_a_countdown_to_death():
    config = dataclasses.replace(TOY, kind=KIND, hidden_size=20)
    memory = train_memory(COUNTDOWN, countdown(), config, 0, log=QUIET)
    assert type(memory) is GRU and memory.gates_kernel.shape == (12 + 2 + 20, 40)
    metrics = memory_metrics(memory, countdown().split(TOY.held_out)[1])
    assert metrics["nll"] < min(metrics["nll_marginal"], metrics["nll_copy"]) - 1
    assert metrics["death_recall"] == metrics["death_precision"] == 1


def test_a_sequence_is_its_steps_and_a_restart_forgets():
    task = dataclasses.replace(CAR_RACING, latent_size=6)
    memory = GRU(task, rngs=nnx.Rngs(0), hidden_size=12, num_events=2)
    batch = random_sequences(A=3, K=2)
    carry = jnp.ones((4, 12))
    last, _, found = jax.jit(predict_sequences)(memory, carry, batch)
    for t in range(9):
        carry, one = memory(carry, batch.z[t], batch.action[t], batch.age[t])
        for a, b in zip(*map(jax.tree.leaves, (one, found)), strict=True):
            np.testing.assert_allclose(a, b[t], rtol=1e-5, atol=1e-5)
        fresh, _ = memory(jnp.zeros((4, 12)), batch.z[t], batch.action[t], jnp.zeros(4))
        stale, _ = memory(jnp.ones((4, 12)), batch.z[t], batch.action[t], jnp.zeros(4))
        np.testing.assert_array_equal(fresh, stale)
    np.testing.assert_allclose(last, carry, rtol=1e-5, atol=1e-6)
    assert memory.reads == ("h",) and memory.feature_size == 6 + 12


@pytest.mark.numerics
def test_its_training_resumes(tmp_path):
    config = dataclasses.replace(TOY, kind=KIND, hidden_size=8, steps=4, steps_per_call=2)
    arguments, store = (COUNTDOWN, countdown(), config, 5), Store(tmp_path)
    unbroken = train_memory(*arguments, log=QUIET)
    with pytest.raises(KeyboardInterrupt):
        train_memory(*arguments, log=Interrupting(quiet=True), store=store)
    assert store.steps() == [2]
    resumed = train_memory(*arguments, log=QUIET, store=store)
    jax.tree.map(np.testing.assert_array_equal, resumed, unbroken)


# Dreaming and playing


@pytest.mark.slow
def test_it_dreams_and_a_population_lives_in_its_dream(gru_world):
    env, memory = gru_world.env(), gru_world.memory
    params = gru_world.params(dtype=jnp.float32)
    obs, state = env.reset(jax.random.key(0), params)
    assert obs.shape == env.observation_space(params).shape == (64 + UNITS,)
    assert env.state_space(params).contains(state)
    noise, action = env.draw_noise(jax.random.key(1)), jnp.full(1, 0.5)
    obs, after, *_ = env.transition(noise, state, action, params)
    carry, _ = memory(state.carry, state.z, action, state.time)
    np.testing.assert_array_equal(obs, jnp.concatenate((after.z, after.carry)))
    np.testing.assert_allclose(after.carry, carry, rtol=1e-5, atol=1e-6)
    controller = gru_world.controller()
    assert controller.num_params == 64 + UNITS
    weights = jax.random.normal(jax.random.key(2), (4, controller.num_params))
    play = jax.jit(lambda w: rollout(jax.random.key(3), env, params, controller, w, 6))
    played = play(weights)
    np.testing.assert_array_equal(played.score, played.steps)
    assert len(np.unique(played.steps)) > 3 and played.steps.max() < 2100


@pytest.mark.slow
def test_it_plays_awake(gru_world):
    """What it remembers is its own after each frame, and nothing once an episode begins."""
    player = gru_world.player_of(jnp.full(64 + UNITS, 0.05))
    agent = Agent(gru_world, player, 2, jax.random.key(0), dtype=jnp.float32)
    agent.begin(np.arange(2), [1, 3])
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64, 3), np.uint8)
    for t in range(2):
        before = agent._carry[:2]
        action, z = agent.act(np.arange(2), frames[t])
        features = jnp.concatenate((z, before), axis=-1)
        wanted = jnp.tanh(0.05 * features.sum(-1))
        np.testing.assert_allclose(action[:, 0], wanted, rtol=1e-4, atol=1e-5)
        carry, _ = gru_world.memory(before, z, action, np.full(2, t))
        np.testing.assert_allclose(agent._carry[:2], carry, rtol=1e-4, atol=1e-5)
    agent.begin(np.array([1]), [5])
    action, z = agent.act(np.arange(2), frames[2])
    np.testing.assert_allclose(action[1, 0], jnp.tanh(0.05 * z[1].sum()), rtol=1e-4, atol=1e-5)


# Worlds


def test_its_world_is_saved_and_exported(gru_world, tmp_path, unknown):
    controller = gru_world.controller(hidden=3)
    player = Player(controller, controller.initial(jax.random.key(0)), dream=1.0)
    save_world(tmp_path / "run", gru_world)
    player.save(tmp_path / "run", gru_world)
    export_world(tmp_path / "world", gru_world, player)
    facts = json.loads((tmp_path / "world" / "world.json").read_text())
    assert (facts["kind"], facts["hidden_size"]) == (KIND, UNITS) and "heads" not in facts
    for folder in ("run", "world"):
        world = load_world(tmp_path / folder)
        assert type(world.memory) is GRU and world.memory.hidden_size == UNITS
        for a, b in zip(*map(jax.tree.leaves, (world.memory, gru_world.memory)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # a float16's eps is 0.00098
        assert world.player.controller == controller and world.player.dream == 1.0
        np.testing.assert_array_equal(world.player.weights, player.weights)
    assert digest(load_world(tmp_path / "run").memory) == digest(gru_world.memory)
    unknown()
    for folder in ("run", "world"):
        with pytest.raises(CheckpointError, match="M is of the kind 'gru:GRU', known are") as error:
            load_world(tmp_path / folder)
        assert "\n" not in str(error.value), "and nothing is imported because a file says so"
        assert "damaged" not in str(error.value)


def test_worlds_of_other_forms_are_other_worlds(gru_world):
    other = GRU(TAKE_COVER, rngs=nnx.Rngs(0), hidden_size=UNITS)
    same = dataclasses.replace(gru_world, memory=gru_world.memory)
    assert same.digest() == gru_world.digest()
    assert dataclasses.replace(gru_world, memory=other).digest() != gru_world.digest()


def test_its_parameters_are_serialised(gru_world):
    params = gru_world.params()
    empty = jax.tree.map(lambda leaf: leaf * 0, params)
    again = serialization.from_bytes(empty, serialization.to_bytes(params))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_its_dream_is_made_by_name(gru_world, tmp_path):
    export_world(tmp_path, gru_world)
    env, params = dreamjax.make(ID, world=tmp_path)
    obs, state = env.reset(jax.random.key(0), params)
    assert obs.shape == env.observation_space().shape == env.obs_shape == (64 + UNITS,)
    dream = Dream(ID, world=tmp_path)
    obs, _ = dream.reset(seed=0)
    assert obs in dream.observation_space
    env, params = gymnax.make(ID, world=tmp_path, observation="zh")
    assert env.observation_space(params).shape == (64 + UNITS,)
    env, params = gymnax.make(ID, world=tmp_path)
    with pytest.raises(ValueError, match="M of this world has no c to observe, only z, h"):
        env.reset(jax.random.key(0), params)


# The command


@pytest.mark.slow
def test_the_command_trains_and_evolves_it(smoke, tmp_path, capsys, unknown):
    run = tmp_path / "run"
    for part in ("rollouts", "latents", "vision"):
        shutil.copytree(smoke[0] / part, run / part)
    words = [SHORT.name, "--preset", "smoke", "--run-dir", str(run)]
    kind = ["--memory.kind", KIND, "--memory.hidden-size", str(UNITS)]
    small = ["--memory.steps=2", "--evolve.generations=1", "--evolve.population=4"]
    unknown()
    assert cli.main(["train-memory", *words, *kind, *small]) == 0
    assert Store(run / "world").meta()["kind"] == KIND
    unknown()
    assert cli.main(["evolve", *words, *small]) == 1
    assert "name your own by --memory.kind" in capsys.readouterr().err
    assert cli.main(["evolve", *words, *kind, *small]) == 0
    world = load_world(run)
    assert type(world.memory) is GRU and world.memory.hidden_size == UNITS
    assert world.player.controller == world.controller()
    assert world.player.weights.shape == (SHORT.latent_size + UNITS,)
    words = ["--run-dir", str(run), "--target", str(tmp_path / "world")]
    unknown()
    assert cli.main(["export", *words]) == 1
    assert "export and doctor: --kind" in capsys.readouterr().err
    assert cli.main(["export", *words, "--kind", KIND]) == 0
    assert type(load_world(tmp_path / "world").memory) is GRU
    unknown()
    assert cli.main(["doctor", str(run), "--kind", KIND]) == 0


def test_an_m_of_an_own_kind_is_gone_on_from_or_named_in_one_line(tmp_path, unknown):
    """The checkpoints of its training, which a run keeps, and not its world alone."""
    source, config = tmp_path / "source", MemoryConfig(kind=KIND, hidden_size=UNITS)
    memory = find_kind(KIND)(SHORT, rngs=nnx.Rngs(0), hidden_size=UNITS)
    meta = {"config": dataclasses.asdict(config), "vision": "v"}
    Store(source / "memory").save(2, State(memory, None, None), meta)
    assert digest(lineage._memory_of(source, SHORT)[0]) == digest(memory)
    unknown()
    with pytest.raises(CheckpointError, match="'gru:GRU', known are .* by --memory.kind") as error:
        lineage._memory_of(source, SHORT)
    assert "\n" not in str(error.value)
