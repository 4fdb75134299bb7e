"""Code written for gymnax and evosax meets a dream and notices nothing."""

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from gymnax.experimental import RolloutWrapper
from gymnax.wrappers import FlattenObservationWrapper, LegacyStepAPIWrapper, LogWrapper
from gymnax.wrappers.gym import GymnaxToVectorGymWrapper
from untrained import random_memory

import dreamjax
from dreamjax.actions import Choice
from dreamjax.dream.env import DreamEnv, env_params
from dreamjax.dream.evosax_problem import DreamProblem
from dreamjax.dream.exported import export_world
from dreamjax.dream.gymnax_env import NamedDream, legacy, named
from dreamjax.dream.world import World
from dreamjax.tasks import CAR_RACING, GAMES, TAKE_COVER
from dreamjax.training.settings import SettingError
from dreamjax.vision.model import VAE

ID = "DreamTakeCover-v1"
SLOW = pytest.mark.slow
VARIANTS = [
    ({}, (1088,), 1),
    ({"actions": "discrete"}, (1088,), 3),
    ({"observation": "zh"}, (576,), 1),
    ({"observation": "z", "actions": "discrete"}, (64,), 3),
    ({"observation": "pixels"}, (64, 64, 3), 1),
]


@pytest.mark.parametrize(
    "variant, shape, num_actions",
    [pytest.param(*x, marks=[] if place == 4 else SLOW) for place, x in enumerate(VARIANTS)],
)
def test_every_variant_is_what_it_says(world, variant, shape, num_actions):
    env, params = gymnax.make(ID, world=world, **variant)
    assert (env.name, env.num_actions) == (ID, num_actions)
    space, acts = env.observation_space(params), env.action_space(params)
    assert space.shape == shape
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        obs, state = env.reset(key, params)
        for step in range(3):
            action = acts.sample(jax.random.fold_in(key, step))
            out = env.step(key, state, action, params)
            obs, state, reward, terminated, truncated, info = out
            assert obs.shape == shape and obs.dtype == reward.dtype == jnp.float32
            assert space.contains(obs) and terminated.dtype == truncated.dtype == bool
            assert not any(leaf.weak_type for leaf in jax.tree.leaves(out))
            told = {"terminated", "truncated", "final_observation", "discount"}
            assert set(info) == told
    assert len(env.step_env(key, state, action, params)) == 5

    def one(state, key):
        obs, state, _, ended, *_ = env.step(key, state, acts.sample(key), params)
        return state, (space.contains(obs), ended)

    inside, ended = jax.lax.scan(one, state, jax.random.split(key, 60))[1]
    assert inside.all() and ended.any(), "whole dreams"
    assert np.isfinite(space.sample(jax.random.key(0))).all()


def test_every_task_has_a_dream_by_name():
    for task in GAMES:
        assert task.env_id in gymnax.registered_envs
        assert task.env_id.replace("Dream", "dreamjax/") in gymnasium.registry
        assert named(task.env_id).task == task
    car = named("DreamCarRacing-v1")
    assert (car.actions, car.observation, car.num_actions) == ("continuous", "zh", 3)
    assert car.obs_shape == (288,) and car.world == "car-racing"
    with pytest.raises(SettingError, match="actions must be one of continuous, got 'discrete'"):
        named("DreamCarRacing-v1", actions="discrete")


def test_a_choice_is_made_by_its_number():
    """A dream of a game of discrete actions has no others."""
    task = dataclasses.replace(
        TAKE_COVER, name="chooser", profile="", actions=Choice(4, start=1), hidden_size=12
    )
    env = NamedDream(task, actions="discrete", observation="z", world="none")
    memory, mu = random_memory(task), jnp.zeros((3, 64))
    params = env_params(task, memory, mu, mu)
    assert env.num_actions == env.action_space().n == 4
    _, state = env.reset(jax.random.key(0), params)
    plain = DreamEnv(task)
    for choice in range(4):
        chosen = env.step_env(jax.random.key(1), state, jnp.int32(choice), params)
        done = plain.step_env(jax.random.key(1), state, jax.nn.one_hot(choice, 4), params)
        np.testing.assert_array_equal(chosen[0], done[0][:64])
    with pytest.raises(ValueError, match="the action is 4; it must be from 0 to 3"):
        env.step(jax.random.key(0), state, 4, params)


def test_a_car_is_dreamt_by_its_name(tmp_path):
    """With rewards that differ, and actions of three numbers."""
    memory, mu = random_memory(CAR_RACING, death_bias=-9.0), jnp.zeros((3, 32))
    vision = VAE(32, rngs=nnx.Rngs(0))
    export_world(tmp_path, World(CAR_RACING, vision, memory, mu, mu))
    env, params = gymnax.make("DreamCarRacing-v1", world=tmp_path)
    obs, state = env.reset(jax.random.key(0), params)
    assert obs.shape == (288,)
    rewards = []
    for key in jax.random.split(jax.random.key(1), 3):
        action = env.action_space(params).sample(key)
        obs, state, reward, *_ = env.step(key, state, action, params)
        rewards.append(float(reward))
    assert len(set(rewards)) == 3 and np.isfinite(rewards).all()
    envs = gymnasium.make_vec(
        "dreamjax/CarRacing-v1", 2, vectorization_mode="vector_entry_point", world=tmp_path
    )
    envs.reset(seed=0)
    assert envs.single_action_space == CAR_RACING.actions.space()
    obs, reward, *_ = envs.step(np.ones((2, 3), np.float32))
    assert obs.shape == (2, 288) and reward[0] != reward[1]
    with pytest.raises(ValueError, match="is a world of car-racing, but DreamTakeCover-v1"):
        dreamjax.make(ID, world=tmp_path)


def test_discrete_actions_mean_left_stay_right(world):
    choose, params = dreamjax.make(ID, world=world, actions="discrete")
    steer, _ = dreamjax.make(ID, world=world)
    _, state = choose.reset(jax.random.key(0), params)
    for choice, action in enumerate([-1.0, 0.0, 1.0]):
        chosen = choose.step_env(jax.random.key(1), state, jnp.int32(choice), params)
        steered = steer.step_env(jax.random.key(1), state, jnp.array([action]), params)
        np.testing.assert_array_equal(chosen[0], steered[0])


def test_dreams_scan_pickle_copy_and_share_one_compiled_step(world):
    env, params = dreamjax.make(ID, world=world)
    _, state = env.reset(jax.random.key(0), params)
    env.step(jax.random.key(0), state, jnp.zeros(1), params)
    before = gymnax.environments.environment.Environment.step._cache_size()
    for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert twin == env
        twin.step(jax.random.key(0), state, jnp.zeros(1), params)
    assert gymnax.environments.environment.Environment.step._cache_size() == before

    def body(state, key):
        return env.step(key, state, jnp.zeros(1), params)[1], state.time

    jax.lax.scan(body, state, jax.random.split(jax.random.key(1), 5))


def test_parameters_asked_for_inside_a_trace_are_real_arrays(world):
    env = gymnax.make(ID, world=world, temperature=0.9)[0]
    dreamjax.dream.gymnax_env._params.cache_clear()
    obs = jax.jit(lambda key: env.reset(key)[0])(jax.random.key(0))
    leaves = jax.tree.leaves(env.default_params)
    assert obs.shape == (1088,) and not any(isinstance(x, jax.core.Tracer) for x in leaves)


def test_weights_are_arguments_and_lanes_share_them(world):
    env, params = dreamjax.make(ID, world=world)
    lanes = 64

    def play(params, keys):
        _, state = jax.vmap(env.reset_env, (0, None))(keys, params)
        actions = jnp.zeros((lanes, 1))
        return jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, params)[2]

    lowered = jax.jit(play).lower(params, jax.random.split(jax.random.key(0), lanes))
    weights = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(params))
    assert len(lowered.as_text()) < weights / 20
    assert lowered.compile().memory_analysis().temp_size_in_bytes < lanes * weights / 20


def test_gymnax_wrappers_and_the_five_value_api(world):
    env, params = dreamjax.make(ID, world=world, observation="pixels")
    flat = FlattenObservationWrapper(env)
    assert flat.reset(jax.random.key(0), params)[0].shape == (64 * 64 * 3,)
    env, params = dreamjax.make(ID, world=world, actions="discrete")
    logged = LogWrapper(env)
    obs, state = logged.reset(jax.random.key(0), params)
    assert len(logged.step(jax.random.key(0), state, jnp.int32(1), params)) == 6
    for old in (LegacyStepAPIWrapper(env), copy.deepcopy(legacy(env))):
        obs, state = old.reset(jax.random.key(0), params)
        obs, state, reward, done, info = old.step(jax.random.key(0), state, jnp.int32(1), params)
        assert obs.shape == (1088,) and done.dtype == bool
        short = params.replace(max_steps_in_episode=1)
        assert old.step(jax.random.key(0), state, jnp.int32(1), short)[3], "a cut ends it too"
    assert legacy(env) == legacy(env)


def test_gymnax_rollouts(world):
    env, params = dreamjax.make(ID, world=world)
    policy = lambda weights, obs, key: jnp.tanh(obs @ weights)[None]  # noqa: E731
    rollouts = RolloutWrapper(policy, env=env, env_params=params, num_env_steps=6)
    found = rollouts.batch_rollout(jax.random.split(jax.random.key(0), 3), jnp.zeros(1088))
    assert found[0].shape == (3, 6, 1088)


def test_evosax_meets_the_dream_as_a_problem(world):
    problem = DreamProblem(dreamjax.load_world(world), num_rollouts=4)
    state = problem.init(jax.random.key(0))
    population = jax.vmap(problem.sample)(jax.random.split(jax.random.key(1), 6))
    fitness, state, metrics = problem.eval(jax.random.key(2), population, state)
    assert problem.num_dims == 1088 and state.counter == 1
    np.testing.assert_allclose(fitness, -metrics["steps"].mean(axis=1))
    assert fitness.shape == (6,) and (fitness < -1).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda world: dreamjax.make("DreamTakeCovr-v1"), "did you mean DreamTakeCover-v1"),
        (lambda world: dreamjax.make(ID, observation="rgb"), "observation must be one of"),
        (lambda world: dreamjax.make(ID, actions="both"), "actions must be one of"),
        (lambda world: dreamjax.make(ID, world=world, temperature=0), "temperature must be"),
        (lambda world: dreamjax.make(ID, world=world / "none"), "no world in"),
    ],
)
def test_bad_requests_are_one_clear_line(world, call, message):
    with pytest.raises((ValueError, SettingError), match=message) as error:
        call(world)
    assert "\n" not in str(error.value)


def test_bad_actions_are_one_clear_line(world):
    env, params = dreamjax.make(ID, world=world)
    _, state = env.reset(jax.random.key(0), params)
    with pytest.raises(ValueError, match=r"must have shape \(1,\), got \(2,\)"):
        env.step(jax.random.key(0), state, jnp.zeros(2), params)
    with pytest.raises(ValueError, match="must be finite"):
        env.step(jax.random.key(0), state, jnp.array([jnp.nan]), params)
    env, _ = dreamjax.make(ID, world=world, actions="discrete")
    for choice in (3, 99, -1, jnp.int32(3), np.int64(-1)):
        with pytest.raises(ValueError, match=rf"the action is {choice}; it must be from 0 to 2"):
            env.step(jax.random.key(0), state, choice, params)


def test_a_choice_that_cannot_be_refused_is_the_nearest(world):
    env, params = dreamjax.make(ID, world=world, actions="discrete", observation="z")
    _, state = env.reset(jax.random.key(0), params)
    choices = jnp.array([-1, 0, 2, 99])
    z = jax.vmap(env.step_env, (None, None, 0, None))(jax.random.key(1), state, choices, params)[0]
    np.testing.assert_array_equal(z[0], z[1])
    np.testing.assert_array_equal(z[2], z[3])
    assert (z[0] != z[2]).any()


def test_an_env_may_be_patched_and_is_then_another(world):
    env, params = dreamjax.make(ID, world=world)
    twin = copy.deepcopy(env)
    assert twin == env and hash(twin) == hash(env)
    twin.reset = jax.jit(jax.vmap(twin.reset, (0, None)))
    assert twin != env and dreamjax.make(ID, world=world)[0] == env
    assert twin.reset(jax.random.split(jax.random.key(0), 3), params)[0].shape == (3, 1088)
    assert env.with_transition_gradients() != env


def test_gymnax_makes_it_a_vector_env_of_gymnasium(world):
    env, params = dreamjax.make(ID, world=world)
    envs = GymnaxToVectorGymWrapper(env, num_envs=3, params=params)
    obs, _ = envs.reset(seed=0)
    obs, reward, *_ = envs.step(jnp.zeros((3, 1)))
    assert obs.shape == (3, 1088) and (reward == 1).all()
    assert envs.single_observation_space.shape == (1088,)


def test_spaces_are_told_as_gymnax_tells_its_own(world):
    for variant, shape, _ in VARIANTS:
        env, params = dreamjax.make(ID, world=world, **variant)
        space = env.observation_space(params)
        assert env.obs_shape == shape == space.low.shape == space.high.shape
        _, state = env.reset(jax.random.key(0), params)
        assert env.state_space(params).contains(state)
    low = jnp.concatenate([env.observation_space(params).low.ravel(), jnp.zeros(2)])
    assert low.shape == (64 * 64 * 3 + 2,)


def test_parameters_are_python_numbers_and_replacing_one_traces_nothing(world):
    env, params = dreamjax.make(ID, world=world)
    _, state = env.reset(jax.random.key(0), params)
    assert type(params.max_steps_in_episode) is int and type(params.temperature) is float
    step = jax.jit(env.step_env)
    plain = step(jax.random.key(1), state, jnp.zeros(1), params)[0]
    hot = params.replace(temperature=3.0, death_threshold=1, death_noise=0.5)
    assert (step(jax.random.key(1), state, jnp.zeros(1), hot)[0] != plain).any()
    hot = hot.replace(max_steps_in_episode=7, death_threshold=1.0)
    step(jax.random.key(1), state, jnp.zeros(1), hot)
    assert step._cache_size() == 1


def test_made_and_loaded_parameters_are_one(world):
    _, made = dreamjax.make(ID, world=world)
    loaded = dreamjax.load_world(world).params()
    assert jax.tree.structure(made) == jax.tree.structure(loaded)
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(loaded), strict=True):
        assert type(one) is type(other) and jnp.result_type(one) == jnp.result_type(other)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("observation", ["z", "pixels"])
def test_flax_serialises_parameters(world, observation):
    _, params = dreamjax.make(ID, world=world, observation=observation)
    blob = serialization.to_bytes(params)
    empty = jax.tree.map(lambda leaf: leaf * 0, params)
    again = serialization.from_bytes(empty, blob)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert jnp.result_type(old) == jnp.result_type(new)
        np.testing.assert_array_equal(old, new)
    assert jax.tree.structure(again) == jax.tree.structure(params)


def test_terminal_states_and_discounts_are_told(world):
    env, params = dreamjax.make(ID, world=world)
    _, state = env.reset(jax.random.key(0), params)
    for threshold, dies in ((-1e9, True), (1e9, False)):
        fixed = params.replace(death_threshold=threshold)
        _, after, _, terminated, info = env.step_env(jax.random.key(1), state, jnp.zeros(1), fixed)
        assert bool(terminated) == bool(env.is_terminal(after, fixed)) == dies
        assert env.discount(after, fixed) == info["discount"] == 1 - dies
        assert not env.is_terminal(state, fixed)
        _, begun, *_ = env.step(jax.random.key(1), state, jnp.zeros(1), fixed)
        assert not env.is_terminal(begun, fixed)


@pytest.mark.numerics
def test_gradients_pass_only_where_they_are_asked_for(world):
    env, params = dreamjax.make(ID, world=world, observation="z")
    _, state = env.reset(jax.random.key(0), params)

    def slope(env):
        def told(action):
            return env.step(jax.random.key(1), state, action, params)[0].sum()

        return jax.grad(told)(jnp.full(1, 0.5))

    assert slope(env) == 0 != slope(env.with_transition_gradients())
    choosing, _ = dreamjax.make(ID, world=world, actions="discrete")
    with pytest.raises(ValueError, match="does not support transition gradients"):
        choosing.with_transition_gradients()


USED = """
import json, sys
import gymnasium, gymnax, jax, jax.numpy as jnp, numpy as np
import dreamjax
from flax import serialization

def played(env, params):
    key = jax.random.key(0)
    obs, state = env.reset(key, params)
    for step in range(3):
        action = jnp.int32(step) if env.actions == "discrete" else jnp.full(1, 0.4 * step)
        obs, state, reward, *_ = out = env.step(key, state, action, params)
    wide = [x.dtype for x in jax.tree.leaves(out) if x.dtype in (jnp.float64, jnp.int64)]
    assert not wide, wide
    return float(obs.sum())

sums = []
for actions, observation in (("continuous", "zch"), ("discrete", "pixels")):
    variant = {"world": sys.argv[1], "actions": actions, "observation": observation}
    env, params = gymnax.make("DreamTakeCover-v1", **variant)
    sums.append(played(env, params))
    serialization.from_bytes(params, serialization.to_bytes(params))
    envs = gymnasium.make_vec("dreamjax/TakeCover-v1", 3,
                              vectorization_mode="vector_entry_point", **variant)
    envs.reset(seed=0)
    sums.append(float(envs.step(np.zeros_like(envs.action_space.sample()))[0].sum()))
problem = dreamjax.DreamProblem(dreamjax.load_world(sys.argv[1]), num_rollouts=2)
key = jax.random.key(0)
fitness, *_ = problem.eval(key, jnp.zeros((3, 1088), jnp.float32), problem.init(key))
print(json.dumps([*sums, float(fitness.sum())]))
"""


@pytest.fixture(scope="module")
def usual(world):
    return _used(world)


def _used(world, **settings):
    done = subprocess.run(
        [sys.executable, "-c", USED, world],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.array(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"JAX_ENABLE_X64": "1"}, {"JAX_NUMPY_DTYPE_PROMOTION": "strict"}]
)
def test_it_is_the_same_dream_under_other_rules_for_dtypes(world, usual, settings):
    np.testing.assert_allclose(_used(world, **settings), usual, rtol=1e-4)


@pytest.mark.parametrize(
    "imports",
    ["import dreamjax, gymnax", pytest.param("import gymnax, dreamjax", marks=pytest.mark.slow)],
)
def test_gymnax_knows_the_dreams_once_dreamjax_is_imported(imports):
    code = f"{imports}; print(gymnax.make('{ID}')[0].name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == ID, done.stderr


def test_importing_dreamjax_imports_no_jax():
    code = "import sys, dreamjax; print({'jax', 'gymnax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
