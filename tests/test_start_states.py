"""Dreams that begin in the middle of real episodes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from untrained import random_memory

from dreamjax.dream.exported import export_world
from dreamjax.dream.start_states import start_states_of
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.memory.latents import LatentSequences
from dreamjax.tasks import TAKE_COVER
from dreamjax.vision.model import VAE

LENGTHS = np.array([30, 3, 17], np.int32)


@pytest.fixture
def latents(small_task):
    rng, frames = np.random.default_rng(0), LENGTHS.sum()
    return LatentSequences(
        mu=rng.normal(size=(frames, small_task.latent_size)).astype(np.float16),
        logvar=np.full((frames, small_task.latent_size), -30, np.float16),
        actions=rng.uniform(-1, 1, (frames, 1)).astype(np.float32),
        rewards=np.ones(frames, np.float32),
        lengths=LENGTHS,
        terminated=np.array([True, True, False]),
        seeds=np.arange(3),
        vision="v",
        profile="toy",
    )


def test_a_moment_is_what_an_agent_has_who_played_until_then(small_task, latents):
    memory = random_memory(small_task)
    found = start_states_of(memory, latents, 40)
    step = jax.jit(lambda *now: memory(*now)[0])
    ages = found.age.astype(int)
    assert found.z.shape == (40, 6) and len(set(ages.tolist())) > 10
    for number, age in enumerate(ages):
        z, frames = found.z[number], latents.mu.astype(np.float32)
        frame = int(np.abs(frames - z).sum(1).argmin())
        np.testing.assert_allclose(z, frames[frame], atol=1e-3)
        first = frame - int(age)
        assert first in latents.first
        carry = memory.initial_carry()
        for time in range(int(age)):
            now = frames[first + time], latents.actions[first + time], jnp.int32(time)
            carry = step(carry, *now)
        for part, told in zip(carry, found.carry, strict=True):
            np.testing.assert_allclose(told[number], part, atol=1e-4)


def test_old_moments_are_as_likely_as_young_ones_however_few_grew_old(latents, small_task):
    lengths = np.array([*[10] * 40, *[100] * 2], np.int32)
    frames = int(lengths.sum())
    z = np.arange(frames)[:, None] + np.zeros((1, small_task.latent_size))
    many = dataclasses.replace(
        latents,
        mu=z.astype(np.float16),
        logvar=np.full(z.shape, -30, np.float16),
        actions=np.zeros((frames, 1), np.float32),
        rewards=np.ones(frames, np.float32),
        lengths=lengths,
        terminated=np.ones(42, bool),
        seeds=np.arange(42),
        ends=None,
    )
    found = start_states_of(random_memory(small_task), many, 600)
    ages = np.asarray(found.age)
    assert ages.max() < 100 and abs((ages < 50).mean() - 0.5) < 0.08
    assert abs((ages[:200] < 50).mean() - 0.5) < 0.12, "any beginning is a fair sample"
    young = np.asarray(found.z[:, 0])[ages < 10]
    assert (young < 400).mean() > 0.8, "the young are of all episodes"


def test_dreams_go_on_from_moments_until_the_cap(dream, latents):
    env, params = dream
    states = start_states_of(params.memory, latents, 20)
    params = dataclasses.replace(params, start_states=states, death_threshold=np.inf)
    obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 50), params)
    among = (obs[:, None, :6] == states.z).all(-1)
    assert among.any(1).all() and len(set(among.argmax(1).tolist())) > 10
    np.testing.assert_array_equal(state.time, states.age[among.argmax(1)])
    np.testing.assert_array_equal(state.carry[0], states.carry[0][among.argmax(1)])
    np.testing.assert_array_equal(obs[:, 6:18], state.carry[0])
    one = jax.tree.map(lambda x: x[0], state)
    params = params.replace(max_steps_in_episode=int(one.time) + 2)
    cut = []
    for _ in range(2):
        _, one, _, _, truncated, _ = env.step(jax.random.key(1), one, jnp.zeros(1), params)
        cut.append(bool(truncated))
    assert cut == [False, True]


def test_a_world_keeps_its_moments_and_one_without_any_says_so(latents, tmp_path, monkeypatch):
    wide = dataclasses.replace(latents, mu=np.tile(latents.mu, 11)[:, :64])
    wide = dataclasses.replace(wide, logvar=np.full(wide.mu.shape, -30, np.float16))
    memory, mu = random_memory(TAKE_COVER), jnp.zeros((2, 64))
    states = start_states_of(memory, wide, 9)
    bare = World(TAKE_COVER, VAE(64, rngs=nnx.Rngs(0)), memory, mu, mu)
    world = dataclasses.replace(bare, start_states=states)
    assert world.digest() != bare.digest()
    export_world(tmp_path, world)
    loaded = load_world(tmp_path)
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)  # noqa: E731
    jax.tree.map(near, loaded.start_states, states)
    assert loaded.branched(loaded.params()).start_states is loaded.start_states
    assert loaded.params().start_states is None
    monkeypatch.setattr("dreamjax.dream.exported.START_STATES", 4)
    export_world(tmp_path, world)
    jax.tree.map(near, load_world(tmp_path).start_states, jax.tree.map(lambda x: x[:4], states))
    with pytest.raises(ValueError, match="world of take-cover holds no start states"):
        bare.branched(bare.params())
