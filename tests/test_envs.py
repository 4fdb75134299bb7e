"""Code written for gymnax, gymnasium and evosax meets a dream and notices nothing."""

import copy
import pickle

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_memory
from flax import nnx
from gymnasium.utils.env_checker import check_env
from gymnax.experimental import RolloutWrapper
from gymnax.wrappers import FlattenObservationWrapper, LegacyStepAPIWrapper, LogWrapper

import dreamjax
from dreamjax.envs import legacy
from dreamjax.problem import DreamProblem
from dreamjax.settings import SettingError
from dreamjax.tasks import TAKE_COVER
from dreamjax.vision import VAE
from dreamjax.worlds import World, export_world

ID = "DreamTakeCover-v1"
VARIANTS = [
    ({}, (1088,), 1),
    ({"actions": "discrete"}, (1088,), 3),
    ({"observation": "zh"}, (576,), 1),
    ({"observation": "z", "actions": "discrete"}, (64,), 3),
    ({"observation": "pixels"}, (64, 64, 3), 1),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An untrained world that is handed on; dreams in it end after some 20 steps."""
    folder, mu = tmp_path_factory.mktemp("world"), jax.random.normal(jax.random.key(0), (5, 64))
    memory = random_memory(TAKE_COVER, death_bias=0.0)
    vision = VAE(64, rngs=nnx.Rngs(1))
    made = World(TAKE_COVER, vision, memory, mu, mu - 2, death_threshold=3.0, death_noise=1.0)
    export_world(folder, made, None, {})
    return folder


@pytest.mark.parametrize("variant, shape, num_actions", VARIANTS)
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
            assert set(info) == {"terminated", "truncated", "final_observation"}
    assert len(env.step_env(key, state, action, params)) == 5
    assert np.isfinite(space.sample(jax.random.key(0))).all()


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
    dreamjax.envs._params.cache_clear()
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
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
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


@pytest.mark.parametrize("variant", [{}, {"actions": "discrete", "observation": "z"}])
def test_the_gymnasium_form_passes_its_own_check(world, variant):
    env = gymnasium.make(
        "dreamjax/TakeCover-v1", world=world, render_mode="rgb_array", **variant
    ).unwrapped
    check_env(env, skip_render_check=True)
    env.reset(seed=3)
    picture = env.render()
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8


def test_gymnasium_dreams_repeat_by_seed_and_end(world):
    env = gymnasium.make("dreamjax/TakeCover-v1", world=world)
    lengths = []
    for _ in range(2):
        _, _ = env.reset(seed=5)
        steps, over = 0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(np.ones(1, np.float32))
            steps, over = steps + 1, terminated or truncated
        lengths.append(steps)
    assert lengths[0] == lengths[1] < 2100
    with pytest.raises(ValueError, match="shape"):
        env.unwrapped.step(np.ones(2, np.float32))


def test_vector_dreams_step_in_one_call(world):
    envs = gymnasium.make_vec(
        "dreamjax/TakeCover-v1", 5, vectorization_mode="vector_entry_point", world=world
    )
    obs, _ = envs.reset(seed=1)
    assert obs.shape == (5, 1088) and obs.dtype == np.float32
    ended = 0
    for _ in range(60):
        obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert (reward == 1).all() and reward.shape == (5,)
        if (terminated | truncated).any():
            ended += 1
            np.testing.assert_array_equal(info["_final_obs"], terminated | truncated)
            assert np.abs(obs[terminated][:, 64:]).max() == 0, "a new dream's memory is empty"
            assert np.abs(info["final_obs"][terminated][:, 64:]).max() > 0
    assert ended
    again, _ = envs.reset(seed=1)
    first, _ = envs.reset(seed=1)
    np.testing.assert_array_equal(again, first)


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
