"""What the dream promises as an environment, each kind with its siblings, in a small world."""

import copy
import dataclasses
import os
import pickle
import subprocess
import sys

import cloudpickle
import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import PSO, SNES, Open_ES, SimpleGA
from flax import nnx
from gymnasium import wrappers as single
from gymnasium.wrappers import vector as many
from untrained import random_memory

import dreamjax
from dreamjax.actions import Box, Choice
from dreamjax.agent import Agent
from dreamjax.controller.distributions import distribution_of
from dreamjax.controller.model import LinearController
from dreamjax.dream.gymnax_env import legacy
from dreamjax.dream.start_states import StartStates
from dreamjax.dream.world import World
from dreamjax.dream.worlds import save_world
from dreamjax.memory.lstm import MDNRNN
from dreamjax.memory.model import PART_BOUND, Z_BOUND
from dreamjax.tasks import TAKE_COVER
from dreamjax.vision.model import VAE

TASK = dreamjax.register(
    dataclasses.replace(
        TAKE_COVER, name="promised-cover", latent_size=6, hidden_size=8, max_steps=40, ages=()
    )
)
ID, GYM = "DreamPromisedCover-v1", "dreamjax/PromisedCover-v1"
MU = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
SMALL = dreamjax.LearnConfig(
    steps=64, num_envs=4, num_steps=8, num_minibatches=2, update_epochs=1, eval_every=2, critic=4,
    eval_rollouts=2,
)  # fmt: skip
GENERATION = dreamjax.EvolveConfig(
    generations=1, population=4, rollouts=1, eval_rollouts=2, strategy="snes"
)


class Runaway(MDNRNN):
    """What it remembers soon is beyond all bounds, as a form of one's own may be."""

    bounds = ()

    def parts(self, carry):
        return {"c": carry[0] * 1e9, "h": carry[1] * 1e9}


def made(seed=0, memory=None, **changes):
    memory = random_memory(TASK, seed, death_bias=-2.0) if memory is None else memory
    return World(TASK, VAE(6, rngs=nnx.Rngs(1)), memory, MU, MU - 2, **changes)


def start_states(scale=1.0):
    carry = jnp.full((4, 8), scale, jnp.float32), jnp.full((4, 8), 0.5, jnp.float32)
    return StartStates(
        jnp.arange(4, dtype=jnp.float32), jnp.full((4, 6), scale, jnp.float32), carry
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("promised")
    save_world(path, made(), {})
    return str(path)


def begun(folder, **variant):
    env, params = dreamjax.make(ID, world=folder, **variant)
    return env, params, env.reset(jax.random.key(0), params)[1]


def saturated():
    """An LSTM that adds 1 to each c at every step."""
    memory = random_memory(TASK, death_bias=-9.0)
    memory.lstm_bias[...] = jnp.full_like(memory.lstm_bias[...], 50.0)
    return memory


@pytest.mark.parametrize(
    "observation",
    ["zch", *(pytest.param(x, marks=pytest.mark.slow) for x in ("zh", "z", "pixels"))],
)
@pytest.mark.parametrize(
    "memory, settings",
    [
        (random_memory(TASK), {"temperature": 1e6}),
        (random_memory(TASK), {"temperature": 0.0, "dropout": 0.2}),
        (saturated(), {"start_states": start_states(1e5), "max_steps_in_episode": 20}),
        (nnx.eval_shape(lambda: Runaway(TASK, rngs=nnx.Rngs(0))), {}),
    ],
    ids=["hot", "cold", "saturated", "a form of one's own"],
)
def test_observations_and_states_stay_in_their_boxes(tmp_path, memory, settings, observation):
    if isinstance(memory, Runaway):
        memory = Runaway(TASK, rngs=nnx.Rngs(0))
    env = dataclasses.replace(
        dreamjax.dream.gymnax_env.named(ID, observation=observation), bounds=memory.bounds
    )
    params = made(memory=memory).params().replace(**settings)
    if observation == "pixels":
        fields = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
        params = dreamjax.dream.gymnax_env.PixelParams(**fields, vision=made().vision)
    box, states = env.observation_space(params), env.state_space(params)
    assert np.isfinite(box.low).all() and np.isfinite(box.high).all()

    def step(loop, key):
        obs, state = loop
        action = env.action_space(params).sample(key)
        obs, state, *_, info = env.step(key, state, action, params)
        told = box.contains(obs) & box.contains(info["final_observation"]) & states.contains(state)
        return (obs, state), told & jnp.isfinite(obs).all()

    first = env.reset(jax.random.key(1), params)
    assert box.contains(first[0]) and states.contains(first[1])
    assert jax.lax.scan(step, first, jax.random.split(jax.random.key(2), 60))[1].all()


def test_bounds_are_of_the_parts():
    high = np.asarray(made().env().observation_space().high)
    assert sorted(set(high.tolist())) == [1.0, Z_BOUND, PART_BOUND]
    world = made(memory=Runaway(TASK, rngs=nnx.Rngs(0)))
    assert (np.asarray(world.env().observation_space().high)[6:] == PART_BOUND).all()
    read = world.memory.features(MU[0] + 1e9, (jnp.ones(8), jnp.ones(8)))
    assert read.max() == PART_BOUND, "awake C reads the same"


def test_what_is_dropped_does_not_depend_on_the_start():
    env, params = made().env(), made().params(dropout=0.5)
    _, state = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 1000), params)
    noise = state.z - MU[np.abs(state.z[:, None] - MU).sum(-1).argmin(1)]
    kept = np.asarray(state.mask.z > 0)
    together = [np.corrcoef(kept[:, i], noise[:, i])[0, 1] for i in range(6)]
    assert np.abs(together).max() < 0.16  # 5 standard errors; 0.8 where they shared a key


MODES = """
import sys
from test_promises import *
from dreamjax.dream.prefix import dream_from
from dreamjax.vision.training import VisionConfig, initial_state, updates
from dreamjax.memory import training
from dreamjax.memory.latents import LatentSequences

def wide(tree):
    return [x for x in jax.tree.leaves(tree) if getattr(x, "dtype", 0) in (jnp.float64, jnp.int64)]

world = made(dropout=0.1, start_states=start_states())
params, env = world.params(), world.env()
for there in (params, world.branched(params), params.replace(dropout=None)):
    obs, state = env.reset(jax.random.key(0), there)
    out = env.step(jax.random.key(1), state, jnp.zeros(1, jnp.float32), there)
    assert not wide((obs, state, out))
many = params.replace(temperature=jnp.array([1e-6, 1.0, 1e6]))
axes = jax.tree.map(lambda _: None, params).replace(temperature=0)
keys, state = jax.random.split(jax.random.key(2), 3), env.reset(jax.random.key(3), params)[1]
out = jax.vmap(env.step, (0, None, None, axes))(keys, state, jnp.zeros(1, jnp.float32), many)
assert not wide(out)
world.vision.decode(state.z[None])
frames = np.zeros((3, 64, 64, 3), np.uint8)
assert not wide(dream_from(world, frames, np.zeros((2, 1)), jax.random.key(4)))
for hidden in (0, 4):
    controller = world.controller(hidden)
    found = dreamjax.learn(env, params, controller, dataclasses.replace(SMALL, branched=True), 0)
    assert not wide((found.network, found.average, found.best))
found = dreamjax.evolve(env, params, controller, GENERATION, 0)
assert found.best.dtype == jnp.float32
problem = dreamjax.DreamProblem(world, 2)
problem.eval(jax.random.key(5), jnp.zeros((2, 22), jnp.float32), problem.init(jax.random.key(6)))
config = VisionConfig(steps=1, batch_size=2)
given = {"config": config, "task": TASK, "dtype": jnp.dtype(jnp.float32)}
state = initial_state(6, jax.random.key(7))
assert not wide(updates(state, jax.random.key(8), 0, frames[None, :2], **given)[0].model)
rows = np.zeros((40, 6), np.float16)
played = LatentSequences(
    mu=rows, logvar=rows, actions=np.zeros((40, 1), np.float32), rewards=np.ones(40, np.float32),
    lengths=np.full(4, 10, np.int32), terminated=np.ones(4, bool), seeds=np.arange(4), vision="v",
    profile=TASK.profile)
run = training.Trainer(TASK, played, training.MemoryConfig(
    steps=1, batch_size=2, sequence_length=8, dropout=0.1, steps_per_call=1), 0)
assert not wide(run(run.initial(), 0)[0].memory)
"""


@pytest.mark.slow
def test_every_mode_of_jax_at_once():
    """64 bits are there, dtypes and ranks are not mixed, and no key is used twice."""
    modes = {
        "JAX_ENABLE_X64": "1",
        "JAX_DEBUG_KEY_REUSE": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    done = subprocess.run(
        [sys.executable, "-c", MODES], env=os.environ | modes, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def elsewhere(name):
    """An environment of gymnax's, and a linear C for it."""
    env, params = gymnax.make(name)
    space = env.action_space(params)
    if hasattr(space, "n"):
        form = Choice(space.n)
    else:
        form = Box(*(tuple(np.broadcast_to(x, space.shape)) for x in (space.low, space.high)))
    size = int(np.prod(env.observation_space(params).shape))
    return env, params, LinearController(size, distribution_of(form), bias=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PointRobot-misc", "Catch-bsuite", "FrozenLake-misc"])
def test_c_is_found_in_others_environments(name):
    env, params, controller = elsewhere(name)
    assert np.isfinite(dreamjax.learn(env, params, controller, SMALL, 0).best_score)
    if name == "Catch-bsuite":
        found = dreamjax.evolve(env, params, controller, GENERATION, 0)
        assert np.isfinite(found.best_score)


@pytest.mark.parametrize(
    "controller",
    [LinearController(3), LinearController(4), LinearController(4, distribution_of(Choice(3)))],
)
def test_a_c_that_fits_no_environment_is_one_line(controller):
    env, params = gymnax.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"CartPole\S* shows \[\[4\]\] and takes Discrete") as told:
        dreamjax.learn(env, params, controller, SMALL, 0)
    assert "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize("restarts, first, second", [(True, 0.1, None), (False, None, 0.1)])
def test_worlds_with_and_without_dropout_take_turns(restarts, first, second):
    world, config = made(), dataclasses.replace(SMALL, branched=restarts)
    params, other = world.params(dropout=first), world.params(dropout=second)
    controller = world.controller()
    found = dreamjax.learn(world.env(), params, controller, config, 0, others=[other])
    assert np.isfinite(found.best_score)


WAYS = [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
WAYS += [lambda x: pickle.loads(cloudpickle.dumps(x))]


@pytest.mark.parametrize("way", WAYS, ids=["deepcopy", "pickle", "cloudpickle"])
@pytest.mark.parametrize("lanes", [None, 3])
@pytest.mark.parametrize("begun", [True, False])
def test_a_copy_dreams_on_alike(folder, way, lanes, begun):
    if lanes:
        env = gymnasium.make_vec(
            GYM,
            lanes,
            vectorization_mode="vector_entry_point",
            world=folder,
            render_mode="rgb_array",
        )
    else:
        env = gymnasium.make(GYM, world=folder, observation="pixels")
    action = np.zeros(env.action_space.shape, np.float32)
    env.reset(seed=1)
    if begun:
        env.step(action)
    twin = way(env)
    for _ in range(2):
        one, other = env.step(action), twin.step(action)
        np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])


def test_workers_that_cannot_dream_say_so(folder):
    envs = gymnasium.make_vec(
        GYM, 2, vectorization_mode="async", vector_kwargs={"context": "fork"}, world=folder
    )
    with pytest.raises(RuntimeError, match="vector_entry_point"):
        envs.reset(seed=0)
    envs.close(terminate=True)


@pytest.mark.slow
def test_a_world_that_was_trained_on_is_another(tmp_path):
    def begun():
        return gymnasium.make(GYM, world=tmp_path).unwrapped._dreams._params

    for make in (lambda: dreamjax.make(ID, world=tmp_path)[1], begun):
        save_world(tmp_path, made(0), {})
        before = make()
        save_world(tmp_path, made(1), {})
        after = make()
        assert (before.memory.lstm_kernel[...] != after.memory.lstm_kernel[...]).any()
        assert make() is after, "it is read once"


@pytest.mark.parametrize("hidden", [0, 5])
def test_the_form_of_c_is_told_by_its_weights(tmp_path, hidden):
    world = made()
    controller = world.controller(hidden)
    weights = jnp.full(controller.num_params, 0.1)
    save_world(tmp_path, world)
    dreamjax.Player(controller, weights).save(tmp_path, world)
    loaded = dreamjax.load_player(tmp_path, world).weights
    assert world.player_of(loaded).controller == controller
    agent = Agent(world, world.player_of(loaded), 1, jax.random.key(0))
    agent.begin(np.arange(1), [1])
    assert agent.act(np.arange(1), np.zeros((1, 64, 64, 3), np.uint8))[0].shape == (1, 1)
    problem = dreamjax.DreamProblem(world, 2)
    state = problem.init(jax.random.key(0))
    assert problem.eval(jax.random.key(1), loaded[None], state)[0].shape == (1,)
    with pytest.raises(ValueError, match="no C of promised-cover .* has 7 weights"):
        world.player_of(loaded[:7])


def test_a_step_tells_what_gymnaxs_own_tell(folder):
    env, params, state = begun(folder)
    pole, of_pole = gymnax.make("CartPole-v1")
    key, action = jax.random.key(0), jnp.zeros(1)
    told = env.step(key, state, action, params)[-1]
    its = pole.step(key, pole.reset(key, of_pole)[1], 0, of_pole)[-1]
    assert told.keys() == its.keys()
    assert set(legacy(env).step(key, state, action, params)[-1]) == {"discount"}
    asked = env.with_survival()
    assert asked != env and "survival" in asked.step_env(key, state, action, params)[-1]


@pytest.mark.parametrize(
    "choice",
    [1, True, np.int64(1), np.uint8(1), np.array(1), jnp.int32(1), jnp.uint8(1), jnp.array(1)],
)
def test_a_choice_may_be_any_whole_number(folder, choice):
    env, params, state = begun(folder, actions="discrete")
    wanted = env.step(jax.random.key(1), state, 1, params)[0]
    inside = jax.jit(lambda key: env.step(key, state, choice, params)[0])
    given = jax.jit(lambda key, choice: env.step(key, state, choice, params)[0])
    for found in (inside(jax.random.key(1)), given(jax.random.key(1), choice)):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="must be a whole number"):
        env.step(jax.random.key(1), state, jnp.float32(1), params)
    wrong = jnp.asarray(choice) + 2
    with pytest.raises(ValueError, match="from 0 to 2"):
        jax.jit(lambda key: env.step(key, state, wrong, params)[0])(jax.random.key(1))


def test_a_single_number_may_lack_its_axis(folder):
    env, params, state = begun(folder)
    one, other = (env.step(jax.random.key(1), state, a, params)[0] for a in (0.5, np.full(1, 0.5)))
    np.testing.assert_allclose(one, other, atol=1e-6)
    game = gymnasium.make(GYM, world=folder)
    envs = gymnasium.make_vec(GYM, 2, vectorization_mode="vector_entry_point", world=folder)
    for env, actions in ((game, (0.5, [0.5])), (envs, ([0.5, 0.5], [[0.5], [0.5]]))):
        found = []
        for action in actions:
            env.reset(seed=0)
            found.append(env.unwrapped.step(np.asarray(action))[0])
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("steps", [5, np.int64(5), 5.0])
def test_episodes_are_cut_by_gymnasiums_keyword(folder, steps):
    envs = gymnasium.make_vec(
        GYM, 2, vectorization_mode="vector_entry_point", world=folder, max_episode_steps=steps
    )
    env = gymnasium.make(GYM, max_episode_steps=5, world=folder, disable_env_checker=True)
    for dreams in (envs, env):
        dreams.reset(seed=0)
        action = np.zeros(dreams.action_space.shape, np.float32)
        cut = [np.any(dreams.step(action)[2:4]) for _ in range(5)]
        assert cut[-1]
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, got 0"):
        gymnasium.make_vec(
            GYM, 2, vectorization_mode="vector_entry_point", world=folder, max_episode_steps=0
        )


@pytest.mark.parametrize("name", ["PromisedCoverDiscrete-v1", "TakeCoverDiscrete-v1"])
def test_choices_have_an_id(folder, name):
    world = folder if name.startswith("Promised") else "take-cover"
    assert dreamjax.make(f"Dream{name}", world=world)[0].num_actions == 3
    assert gymnax.make(f"Dream{name}", world=world)[0].num_actions == 3
    for prefix in ("dreamjax/", "dreamjax:dreamjax/"):
        space = gymnasium.make(f"{prefix}{name}", world=world).action_space
        assert space == gymnasium.spaces.Discrete(3)
    envs = gymnasium.make_vec(
        f"dreamjax/{name}", 2, vectorization_mode="vector_entry_point", world=world
    )
    assert envs.autoreset_mode is envs.metadata["autoreset_mode"]


CHANGES = [
    {"temperature": 2},
    {"temperature": jnp.float32(0.5)},
    {"temperature": np.float64(0.5)},
    {"temperature": jnp.array(1)},
    {"death_threshold": 1, "death_noise": np.float32(1)},
    {"max_steps_in_episode": jnp.int32(7)},
    {"max_steps_in_episode": np.int64(7)},
    {"dropout": 0},
]


def test_other_numbers_compile_nothing_anew():
    env, params, traces = made().env(), made().params(dropout=0.1), []

    @jax.jit
    def step(key, state, params):
        traces.append(1)
        return env.step(key, state, jnp.zeros(1), params)[0]

    state = env.reset(jax.random.key(0), params)[1]
    for changes in ({}, *CHANGES):
        assert np.isfinite(step(jax.random.key(1), state, params.replace(**changes))).all()
        assert len(traces) == 1, changes


def test_a_setting_may_change_in_the_middle_of_a_dream():
    env = made().env()
    for before, after in (
        ({}, {"temperature": 0.0}),
        ({}, {"temperature": -1.0}),
        ({"dropout": 0.3}, {"dropout": None}),
        ({}, {"dropout": 0.3}),
    ):
        params = made().params().replace(**before)
        state = env.reset(jax.random.key(0), params)[1]
        params = params.replace(**after)
        for key in jax.random.split(jax.random.key(1), 3):
            obs, state, *_ = env.step(key, state, jnp.zeros(1), params)
            assert np.isfinite(obs).all(), after
        assert (state.mask is None) == (params.dropout is None), after


SINGLE = {
    "statistics": single.RecordEpisodeStatistics,
    "limit": lambda env: single.TimeLimit(env, 5),
    "autoreset": single.Autoreset,
    "clip": single.ClipAction,
    "rescaled actions": lambda env: single.RescaleAction(env, -2.0, 2.0),
    "sticky": lambda env: single.StickyAction(env, 0.5),
    "flat": single.FlattenObservation,
    "stack": lambda env: single.FrameStackObservation(env, 3),
    "delay": lambda env: single.DelayObservation(env, 2),
    "time": single.TimeAwareObservation,
    "normal": single.NormalizeObservation,
    "rescaled": lambda env: single.RescaleObservation(env, np.float32(-1), np.float32(1)),
    "dtype": lambda env: single.DtypeObservation(env, np.float64),
    "repeat": lambda env: single.MaxAndSkipObservation(env, 2),
    "clip reward": lambda env: single.ClipReward(env, 0, 0.5),
    "normal reward": single.NormalizeReward,
    "picture": single.AddRenderObservation,
    "pictures": single.RenderCollection,
    "human": single.HumanRendering,
}
MANY = {
    "statistics": many.RecordEpisodeStatistics,
    "clip": many.ClipAction,
    "rescaled actions": lambda envs: many.RescaleAction(envs, -2.0, 2.0),
    "flat": many.FlattenObservation,
    "normal": many.NormalizeObservation,
    "dtype": lambda envs: many.DtypeObservation(envs, np.float64),
    "clip reward": lambda envs: many.ClipReward(envs, 0, 0.5),
    "normal reward": many.NormalizeReward,
    "list": many.DictInfoToList,
    "numpy": lambda envs: many.TransformReward(envs, lambda reward: reward * 2),
}


@pytest.mark.parametrize("name", [*SINGLE, *(f"many: {name}" for name in MANY)])
def test_gymnasiums_wrappers_take_it(folder, name, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    if name in SINGLE:
        env = SINGLE[name](
            gymnasium.make(GYM, world=folder, render_mode="rgb_array", max_episode_steps=20)
        )
    else:
        envs = gymnasium.make_vec(GYM, 2, vectorization_mode="vector_entry_point", world=folder)
        env = MANY[name.removeprefix("many: ")](envs)
    env.reset(seed=0)
    for _ in range(3):
        obs, reward, *_ = env.step(env.action_space.sample())
    assert np.isfinite(obs).all() and np.isfinite(reward).all()
    env.close()


@pytest.mark.parametrize("mode", ["human", "rgb_array_list"])
def test_the_dream_is_shown_as_gymnasium_shows(folder, mode, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gymnasium.make(GYM, world=folder, render_mode=mode)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert mode == "human" or np.shape(env.render()) == (2, 64, 64, 3)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [SNES, Open_ES, PSO, SimpleGA])
def test_evosaxs_strategies_play_it(algorithm):
    problem = dreamjax.DreamProblem(made(), 2)
    start = problem.sample(jax.random.key(0))
    strategy = algorithm(4, start)
    params, key = strategy.default_params, jax.random.key(1)
    population = jnp.tile(start, (4, 1))
    first = (population, jnp.zeros(4)) if algorithm in (PSO, SimpleGA) else (start,)
    state, played = strategy.init(key, *first, params), problem.init(key)
    members, state = strategy.ask(key, state, params)
    fitness, *_ = problem.eval(key, members, played)
    strategy.tell(key, members, fitness, state, params)
    assert fitness.shape == (4,) and np.isfinite(fitness).all()
