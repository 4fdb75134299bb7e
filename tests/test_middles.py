"""States in the middle of real episodes, and the short dreams that begin there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_memory import as_latents, draw

from dreamjax import middles as module
from dreamjax.dream import EnvState
from dreamjax.learning import LearnConfig, learn, practice
from dreamjax.memory import MDNRNN
from dreamjax.middles import MiddleDream, find_middles, middle_params
from dreamjax.settings import SettingError
from dreamjax.worlds import World

LENGTHS = [5, 9, 7, 3]


@pytest.fixture
def latents():
    n = sum(LENGTHS)
    return as_latents(draw(1, n, 6), LENGTHS, [True] * 4, np.tanh(draw(2, n, 1)))


@pytest.fixture
def short(dream, latents):
    """`(env, params)` of dreams of 3 steps that begin in the middle."""
    env, params = dream
    found = find_middles(params.memory, latents, 100, 0)
    return MiddleDream(env.task), middle_params(params, found, 3)


@pytest.mark.parametrize("chunk", [2, 100])
def test_a_middle_is_where_m_is_after_the_frames_before_it(dream, latents, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    memory = dream[1].memory
    found = find_middles(memory, latents, 100, 0)
    assert len(found.age) == sum(LENGTHS), "all frames where fewer are asked for"
    expected, start = [], 0
    for length in LENGTHS:
        carry = memory.initial_carry()
        for age in range(length):
            z, action = (jnp.float32(x[start + age]) for x in (latents.mu, latents.actions))
            expected.append((age, z, *carry))
            carry, _, _ = memory(carry, z, action, jnp.int32(age))
        start += length
    ours = found.age, found.z, found.c, found.h
    for a, b in zip(ours, map(np.stack, zip(*expected, strict=True)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_middles_are_drawn_from_the_newest_episodes(dream, latents, monkeypatch):
    monkeypatch.setattr(module, "NEWEST", 2)
    found = find_middles(dream[1].memory, latents, 6, 0)
    assert len(found.age) == 6 and len(np.unique(found.z[:, 0])) == 6
    newest = latents.mu[-10:].astype(np.float32)
    assert all(np.abs(newest - z).max(axis=1).min() < 1e-5 for z in found.z)
    other = find_middles(dream[1].memory, latents, 6, 1)
    assert not np.allclose(other.z, found.z), "another seed, other frames"


def test_a_short_dream_goes_on_from_a_real_state_until_the_horizon(dream, short):
    whole, (env, params) = dream[0], short
    obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 200), params)
    assert len(np.unique(state.time)) == max(LENGTHS)
    starts = np.concatenate([params.middles.z, params.middles.c, params.middles.h], axis=1)
    assert all(np.abs(starts - x).max(axis=1).min() == 0 for x in np.asarray(obs))
    state = jax.tree.map(lambda x: x[0], state)
    params = params.replace(death_threshold=jnp.float32(1e9))
    first = state
    for count in (1, 2, 3):
        key = jax.random.key(count)
        before, action = EnvState(state.time, state.z, state.carry), jnp.array([0.4])
        expected = whole.step_env(key, before, action, params)[0]
        np.testing.assert_allclose(env.step_env(key, state, action, params)[0], expected)
        state = env.step_env(key, state, action, params)[1]
        assert state.time == first.time + count and state.born == first.born
        assert bool(env.is_truncated(state, params)) == (count == 3)
    old = state.replace(time=params.max_steps_in_episode, born=params.max_steps_in_episode - 1)
    assert env.is_truncated(old, params), "no episode is longer than a game"


def test_what_is_learnt_in_short_dreams_is_judged_in_whole_ones(dream, short, small_task):
    env, params = dream
    world = World(small_task, None, params.memory, params.initial_mu, params.initial_logvar)
    assert practice(world, params, 3) == (env, params), "a world without middles"
    world = dataclasses.replace(world, middles=short[1].middles)
    assert practice(world, params, 0) == (env, params)
    practised = practice(world, params, 3)
    assert practised[0] == short[0] and practised[1].horizon == 3
    config = LearnConfig(steps=64, lanes=8, length=8, batches=1, eval_rollouts=8)
    controller = dataclasses.replace(world.controller(), num_features=30)
    immortal = params.replace(death_threshold=jnp.float32(1e9))
    found = learn(0, *practised, controller, config, judge=(env, immortal))
    assert found.best_score == small_task.max_steps


def test_a_world_keeps_its_middles(tmp_path):
    from flax import nnx

    from dreamjax import tasks, worlds
    from dreamjax.vision import VAE

    memory = MDNRNN(tasks.TAKE_COVER, rngs=nnx.Rngs(0))
    n = sum(LENGTHS)
    latents = as_latents(draw(1, n, 64), LENGTHS, [True] * 4, draw(2, n, 1))
    found = find_middles(memory, latents, 8, 0)
    models = VAE(64, rngs=nnx.Rngs(0)), memory
    world = World(tasks.TAKE_COVER, *models, found.z, found.z, middles=found)
    worlds.export_world(tmp_path / "out", world, None, {})
    worlds.save_world(tmp_path / "run", world, {})
    for folder, rtol in (("out", 1e-3), ("run", 0)):
        loaded = worlds.load_world(tmp_path / folder).middles
        jax.tree.map(lambda a, b, r=rtol: np.testing.assert_allclose(a, b, r, 1e-7), loaded, found)
    other = dataclasses.replace(world, middles=None)
    assert other.digest() != world.digest() and len(other.arrays()) == len(world.arrays()) - 1


def test_a_negative_horizon_is_refused():
    with pytest.raises(SettingError, match="horizon must be at least 0, got -1"):
        LearnConfig(horizon=-1)
