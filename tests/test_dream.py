"""The dream against NumPy, against itself in other forms, and against gymnax's contract."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from untrained import random_memory

from benchmarks import numpy_dream
from dreamjax.dream.env import DreamEnv, check_dropout, env_params
from dreamjax.memory.heads import total_logit
from dreamjax.memory.lstm import MDNRNN
from dreamjax.tasks import CAR_RACING, TAKE_COVER

reset = jax.jit(DreamEnv.reset_env, static_argnums=0)
step = jax.jit(DreamEnv.step_env, static_argnums=0)
ROUNDING = 1e-6  # of numbers near 3 in a few steps; at most 2.4e-7 was seen


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def actions(n, seed=1):
    return jax.random.uniform(jax.random.key(seed), (n, 1), minval=-1.0, maxval=1.0)


@pytest.mark.numerics
@pytest.mark.smoke
@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.5])
def test_an_episode_equals_the_numpy_dream(dream, temperature):
    env, params = dream
    params = params.replace(temperature=jnp.float32(temperature))
    _, state = reset(env, jax.random.key(3), params)
    w = numpy_dream.weights_of(params.memory)
    ours, theirs = state, (np.asarray(state.z), *map(np.asarray, state.carry), True)
    for key, action in zip(keys(12), actions(12), strict=True):
        noise = env.draw_noise(key)
        obs, ours, reward, terminated, _ = step(env, key, ours, action, params)
        theirs, death = numpy_dream.step(
            w, theirs, np.asarray(action), noise.uniform, noise.normal, temperature
        )
        np.testing.assert_allclose(ours.z, theirs[0], atol=2e-5)
        np.testing.assert_allclose(obs, np.concatenate(theirs[:3]), atol=2e-5)
        assert reward == 1.0
        assert bool(terminated) == (death > 0)


def test_vmap_equals_a_loop(dream):
    env, params = dream
    _, states = jax.vmap(functools.partial(reset, env), (0, None))(keys(5), params)
    many = jax.vmap(functools.partial(step, env), (0, 0, 0, None))
    batched = many(keys(5, 1), states, actions(5), params)
    for i in range(5):
        state = jax.tree.map(lambda x, i=i: x[i], states)
        single = step(env, keys(5, 1)[i], state, actions(5)[i], params)
        for one, many in zip(jax.tree.leaves(single), jax.tree.leaves(batched), strict=True):
            np.testing.assert_allclose(one, many[i], atol=ROUNDING)


def test_scan_equals_single_steps(dream):
    env, params = dream
    _, state = reset(env, jax.random.key(0), params)

    def body(state, inputs):
        obs, state, _, terminated, _ = env.step_env(*inputs[:1], state, inputs[1], params)
        return state, (obs, terminated)

    _, (scanned, _) = jax.lax.scan(body, state, (keys(8), actions(8)))
    for key, action, expected in zip(keys(8), actions(8), scanned, strict=True):
        obs, state, *_ = step(env, key, state, action, params)
        np.testing.assert_allclose(obs, expected, atol=ROUNDING)


def test_another_world_or_temperature_is_no_new_trace(dream, small_task):
    env, params = dream
    traces = []

    @jax.jit
    def traced(key, state, action, params):
        traces.append(1)
        return env.step_env(key, state, action, params)

    _, state = reset(env, jax.random.key(0), params)
    other = params.replace(
        memory=random_memory(small_task, seed=5),
        temperature=0.3,
        death_threshold=1.0,
        max_steps_in_episode=5,
    )
    first, second = (traced(keys(1)[0], state, actions(1)[0], p) for p in (params, other))
    assert len(traces) == 1
    assert not np.allclose(first[0], second[0])


def test_equal_envs_share_one_compiled_step(dream, small_task):
    env, params = dream
    _, state = env.reset(jax.random.key(0), params)
    env.step(keys(1)[0], state, actions(1)[0], params)
    before = type(env).step._cache_size()
    DreamEnv(dataclasses.replace(small_task)).step(keys(1)[0], state, actions(1)[0], params)
    assert type(env).step._cache_size() == before


def test_worlds_and_temperatures_can_be_vmapped(dream, small_task):
    env, params = dream
    _, state = reset(env, jax.random.key(0), params)

    def after(**changes):
        return step(env, keys(1)[0], state, actions(1)[0], params.replace(**changes))[1].z

    taus = jnp.array([0.2, 1.0, 2.0])
    z = jax.vmap(lambda tau: after(temperature=tau))(taus)
    assert len(np.unique(np.asarray(z)[:, 0])) == 3
    memories = [random_memory(small_task, seed=s) for s in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *memories)
    together = jax.vmap(lambda memory: after(memory=memory))(stacked)
    for memory, z in zip(memories, together, strict=True):
        np.testing.assert_allclose(after(memory=memory), z, atol=ROUNDING)


def test_death_is_terminated_and_the_cap_is_truncated(dream):
    env, params = dream
    params = params.replace(max_steps_in_episode=jnp.int32(4))
    _, state = env.reset(jax.random.key(0), params)
    immortal = params.replace(death_threshold=jnp.float32(1e9))
    ends = []
    for key, action in zip(keys(4), actions(4), strict=True):
        _, state, _, terminated, truncated, info = env.step(key, state, action, immortal)
        ends.append((bool(terminated), bool(truncated)))
    assert ends == [(False, False)] * 3 + [(False, True)]
    assert state.time == 0  # reset by itself
    np.testing.assert_array_equal(state.carry[0], 0.0)
    assert not np.allclose(info["final_observation"][-5:], 0.0)
    doomed = params.replace(death_threshold=jnp.float32(-1e9))
    _, state, reward, terminated, truncated, _ = env.step(keys(1)[0], state, actions(1)[0], doomed)
    assert (bool(terminated), bool(truncated), float(reward)) == (True, False, 1.0)


def test_a_dream_keeps_its_dropout_and_another_has_another(dream):
    env, params = dream
    keys = jax.random.split(jax.random.key(0), 64)
    _, plain = jax.vmap(env.reset, (0, None))(keys, params)
    assert plain.mask is None
    params = params.replace(dropout=0.3)
    reset, step = (
        jax.jit(jax.vmap(env.reset, (0, None))),
        jax.jit(jax.vmap(env.step, (0, 0, 0, None))),
    )
    obs, state = reset(keys, params)
    assert abs(float((state.mask.z == 0).mean()) - 0.3) < 0.1
    assert abs(float((state.mask.h == 0).mean()) - 0.3) < 0.1
    assert len({mask.tobytes() for mask in np.asarray(state.mask.h)}) > 60
    actions = jnp.zeros((64, 1))
    _, after, _, ended, cut, _ = step(keys, state, actions, params)
    going = ~np.asarray(ended | cut)
    assert going.any()
    np.testing.assert_array_equal(after.mask.h[going], state.mask.h[going])
    bare = state.replace(z=state.z * state.mask.z, mask=None)
    _, wanted, *_ = step(keys, bare, actions, params.replace(dropout=None))
    np.testing.assert_allclose(after.carry[1][going], wanted.carry[1][going], rtol=1e-5, atol=1e-6)
    _, none = reset(keys, params.replace(dropout=0.0))
    assert (none.mask.z == 1).all() and (none.mask.h == 1).all()


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_bad_dropout_is_named(dropout):
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got"):
        check_dropout(dropout)


def test_death_noise_is_added_to_the_logit(dream):
    env, params = dream
    draw = jax.jit(jax.vmap(env.draw_noise))
    noise = jax.tree.map(lambda x: x[0], draw(keys(1)))
    _, state = reset(env, jax.random.key(1), params)

    def dies(logistic, **changes):
        changed = noise.replace(logistic=jnp.float32(logistic))
        return bool(env.transition(changed, state, actions(1)[0], params.replace(**changes))[3])

    low = {"death_threshold": jnp.float32(100.0)}
    assert not dies(1e6, **low), "the paper's dream has no noise"
    assert dies(1e6, **low, death_noise=jnp.float32(1.0))
    assert not dies(1e6, **low, death_noise=jnp.float32(1e-6))
    drawn = draw(keys(40_000)).logistic
    # 5 standard errors: of the mean 1.81 / 200, of the deviation (kurtosis 4.2) 0.9 of that
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, np.pi / 3**0.5], atol=0.045)


def small_car(**changes):
    return dataclasses.replace(CAR_RACING, latent_size=6, hidden_size=12, **changes)


def dreamt(task, memory, **settings):
    mu = jax.random.normal(jax.random.key(7), (9, 6))
    return DreamEnv(task), env_params(task, memory, mu, mu - 2, **settings)


def test_a_dream_rewards_as_m_expects_and_ends_in_any_way():
    task = small_car()
    memory = random_memory(task, death_bias=0.0)
    env, params = dreamt(task, memory, death_threshold=1.0, death_noise=0.5)
    _, state = reset(env, jax.random.key(0), params)
    rewards, ends = [], []
    for key in keys(12):
        action = jax.random.uniform(key, (3,), minval=-1.0)
        carry, found = memory(state.carry, state.z, env.clipped(action), state.time)
        risk = total_logit(found.end) + 0.5 * env.draw_noise(key).logistic
        obs, state, reward, terminated, _ = step(env, key, state, action, params)
        np.testing.assert_allclose(obs, np.concatenate((state.z, carry[1])), atol=ROUNDING)
        np.testing.assert_allclose(reward, found.reward, rtol=1e-5, atol=ROUNDING)
        assert bool(terminated) == bool(risk > 1)
        chance = 1 / (1 + np.exp((1 - total_logit(found.end)) / 0.5))
        np.testing.assert_allclose(params.death_chance(found.end), chance, rtol=1e-4)
        rewards.append(float(reward))
        ends.append(bool(terminated))
    assert len(set(rewards)) == 12 and set(ends) == {True, False}


def test_a_game_without_ends_is_dreamt_to_the_cap():
    task = small_car(ends=(), max_steps=3)
    env, params = dreamt(task, MDNRNN(task, rngs=nnx.Rngs(0)), death_threshold=-1e9)
    _, state = env.reset(jax.random.key(0), params)
    over = []
    for key in keys(3):
        _, state, _, terminated, truncated, _ = env.step(key, state, jnp.zeros(3), params)
        over.append((bool(terminated), bool(truncated)))
    assert over == [(False, False)] * 2 + [(False, True)]


@pytest.mark.parametrize("lacking, told", [("reward", ("end",)), ("end", ("reward",))])
def test_an_m_that_lacks_a_head_is_not_dreamt(lacking, told):
    task = small_car()
    memory = MDNRNN(task, rngs=nnx.Rngs(0), heads=told)
    with pytest.raises(ValueError, match=f"this M of car-racing predicts no {lacking}"):
        dreamt(task, memory)


def test_a_dream_starts_at_a_real_first_frame(dream):
    env, params = dream
    sharp = params.replace(initial_logvar=jnp.full_like(params.initial_logvar, -60.0))
    obs, state = jax.vmap(functools.partial(reset, env), (0, None))(keys(200), sharp)
    distance = jnp.abs(state.z[:, None] - params.initial_mu[None]).max(-1).min(-1)
    assert distance.max() < 1e-6
    assert len(np.unique(np.asarray(state.z)[:, 0])) == len(params.initial_mu)
    np.testing.assert_array_equal(obs[:, state.z.shape[1] :], 0.0)


def test_the_restart_flag_is_on_at_the_first_step_only(dream):
    env, params = dream
    _, state = reset(env, jax.random.key(0), params)
    dirty = tuple(jnp.ones_like(part) for part in state.carry)
    first = [
        step(env, keys(1)[0], state.replace(time=jnp.int32(t), carry=carry), actions(1)[0], params)[
            1
        ].z
        for t in (0, 1)
        for carry in (state.carry, dirty)
    ]
    np.testing.assert_array_equal(first[0], first[1])  # time 0: the carry is zeroed
    assert not np.allclose(first[2], first[3])
    assert not np.allclose(first[0], first[2])  # the flag itself is read


def test_spaces_are_true_and_actions_are_clipped(dream):
    env, params = dream
    obs, state = env.reset(jax.random.key(0), params)
    assert obs.shape == env.observation_space(params).shape and obs.dtype == jnp.float32
    assert np.isfinite(env.observation_space(params).sample(jax.random.key(0))).all()
    inside, outside = (
        env.step_env(keys(1)[0], state, jnp.array([a]), params)[0] for a in (1.0, 7.0)
    )
    np.testing.assert_array_equal(inside, outside)
    car = DreamEnv(CAR_RACING)
    np.testing.assert_array_equal(car.clipped(jnp.full(3, -7.0)), [-1, 0, 0])
    np.testing.assert_array_equal(car.clipped(jnp.full(3, 7.0)), [1, 1, 1])
    np.testing.assert_array_equal(car.action_space().low, [-1, 0, 0])


def test_take_cover_observation_is_what_the_controller_reads():
    env = DreamEnv(TAKE_COVER)
    assert env.observation_space().shape == (1088,)
    assert env.action_space().shape == (1,)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature_is_named(small_task, temperature):
    memory, mu = random_memory(small_task), jnp.zeros((2, 6))
    with pytest.raises(ValueError, match=f"temperature must be .* got {temperature}"):
        env_params(small_task, memory, mu, mu, temperature=temperature)


def test_start_states_of_another_size_are_refused(small_task):
    memory = random_memory(small_task)
    with pytest.raises(ValueError, match=r"initial_mu must be \[N, 6\].*got \[2, 5\]"):
        env_params(small_task, memory, jnp.zeros((2, 5)), jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="M expects z=6 but take-cover has z=64"):
        env_params(TAKE_COVER, memory, jnp.zeros((2, 64)), jnp.zeros((2, 64)))


def test_no_world_no_default():
    with pytest.raises(ValueError, match="needs a world"):
        _ = DreamEnv(TAKE_COVER).default_params
