"""Code written for gymnasium meets a dream and notices nothing."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

import dreamjax
from dreamjax.dream.gymnasium_env import VectorDream

ID = "dreamjax/TakeCover-v1"
LANES = 5


def many(world, **variant):
    """Dreams in one call; those of actions to the right end after some 20 steps."""
    return gymnasium.make_vec(
        ID, LANES, vectorization_mode="vector_entry_point", world=world, **variant
    )


def right(envs):
    return np.ones(envs.action_space.shape, np.float32)


@pytest.mark.parametrize("variant", [{}, {"actions": "discrete", "observation": "z"}])
def test_one_dream_passes_gymnasiums_own_check(world, variant):
    env = gymnasium.make(ID, world=world, render_mode="rgb_array", **variant).unwrapped
    check_env(env, skip_render_check=True)
    env.reset(seed=3)
    picture = env.render()
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8


def test_one_dream_repeats_by_its_seed_and_ends_once(world):
    env = gymnasium.make(ID, world=world)
    lengths = []
    for _ in range(2):
        env.reset(seed=5)
        steps, over = 0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(np.ones(1, np.float32))
            steps, over = steps + 1, terminated or truncated
        lengths.append(steps)
    assert lengths[0] == lengths[1] < 2100
    with pytest.raises(RuntimeError, match="the dream is over"):
        env.step(np.ones(1, np.float32))
    env.reset()
    assert env.step(np.ones(1, np.float32))[1] == 1


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_dreams_begin_anew_as_their_mode_says(world, mode):
    envs = many(world, autoreset_mode=mode.value)
    assert envs.metadata["autoreset_mode"] is mode
    before, _ = envs.reset(seed=1)
    over = np.zeros(LANES, bool)
    ended = 0
    for _ in range(80):
        if mode is AutoresetMode.DISABLED and over.any():
            with pytest.raises(RuntimeError, match="the dream is over"):
                envs.step(right(envs))
            obs, _ = envs.reset(options={"reset_mask": over})
            assert np.abs(obs[over][:, 64:]).max() == 0, "a new dream's memory is empty"
            np.testing.assert_array_equal(obs[~over], before[~over])
            over = np.zeros(LANES, bool)
        obs, reward, terminated, truncated, info = envs.step(right(envs))
        if mode is AutoresetMode.NEXT_STEP:
            np.testing.assert_array_equal(reward, np.where(over, 0.0, 1.0))
            assert not (terminated | truncated)[over].any()
            fresh = over
        else:
            assert (reward == 1).all() and reward.dtype == np.float64
            fresh = (terminated | truncated) & (mode is AutoresetMode.SAME_STEP)
        empty = np.abs(obs[:, 64:]).max(axis=1) == 0
        np.testing.assert_array_equal(empty, fresh)
        over = terminated | truncated
        if mode is AutoresetMode.SAME_STEP and over.any():
            np.testing.assert_array_equal(info["_final_obs"], over)
            for i, last in enumerate(info["final_obs"]):
                assert np.abs(last[64:]).max() > 0 if over[i] else last is None
        ended += over.sum()
        before = obs
    assert ended > LANES


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_dream_is_cut_at_its_last_step(world, mode):
    envs = many(world, autoreset_mode=mode)
    leaves = envs.unwrapped._leaves
    (limit,) = [i for i, leaf in enumerate(leaves) if np.ndim(leaf) == 0 and leaf == 2100]
    leaves[limit] = 1
    envs.reset(seed=0)
    _, _, terminated, truncated, _ = envs.step(right(envs))
    np.testing.assert_array_equal(truncated, ~terminated)


@pytest.mark.parametrize(
    "wrapper",
    [
        wrappers.RecordEpisodeStatistics,
        wrappers.NormalizeObservation,
        wrappers.FlattenObservation,
        lambda envs: wrappers.RescaleObservation(envs, -1.0, 1.0),
        lambda envs: wrappers.ClipAction(wrappers.NormalizeReward(envs)),
    ],
)
def test_gymnasiums_vector_wrappers_take_it(world, wrapper):
    envs = wrapper(many(world))
    envs.reset(seed=0)
    for _ in range(40):
        obs, *_, info = envs.step(right(envs))
    assert obs.shape == (LANES, 1088) and np.isfinite(obs).all()


def test_a_dream_depends_on_its_own_seed_alone(world):
    envs, env = many(world), gymnasium.make(ID, world=world)
    first, _ = envs.reset(seed=[7, 1, 2, 3, 4])
    second, _ = envs.reset(seed=[9, 9, 2, 8, 7])
    np.testing.assert_array_equal(first[2], second[2])
    np.testing.assert_array_equal(first[0], second[4])
    np.testing.assert_array_equal(second[0], second[1])
    np.testing.assert_array_equal(envs.reset(seed=3)[0], envs.reset(seed=[3, 4, 5, 6, 7])[0])
    assert (envs.reset()[0] != envs.reset()[0]).any()
    for masked in (False, True):  # whom others begin anew beside, does not notice
        envs.reset(seed=3)
        if masked:
            envs.reset(seed=8, options={"reset_mask": np.array([True] + 4 * [False])})
        second, (first, _) = first, envs.reset()
    np.testing.assert_array_equal(first[1:], second[1:])
    many_obs, _ = envs.reset(seed=[7, 1, 2, 3, 4])
    one_obs, _ = env.reset(seed=2)
    np.testing.assert_allclose(many_obs[2], one_obs, atol=1e-6)
    many_obs, *_ = envs.step(np.zeros((LANES, 1), np.float32))
    one_obs, *_ = env.step(np.zeros(1, np.float32))
    np.testing.assert_allclose(many_obs[2], one_obs, atol=1e-4)


def test_observations_are_the_callers_to_write_on(world):
    envs = many(world)
    obs, _ = envs.reset(seed=0)
    kept = obs.copy()
    obs[:] = 0
    again, _ = envs.reset(seed=3, options={"reset_mask": np.array([True] + 4 * [False])})
    np.testing.assert_array_equal(again[1:], kept[1:])
    for written in envs.step(right(envs))[:4]:
        written[:] = 0


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_pixels_are_bytes(world, mode):
    envs = many(world, observation="pixels", autoreset_mode=mode)
    obs, _ = envs.reset(seed=0)
    assert obs.dtype == np.uint8 == envs.single_observation_space.dtype
    assert obs in envs.observation_space and obs.max() > 1
    envs.step(right(envs))
    env = gymnasium.make(ID, world=world, observation="pixels", render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, env.render())


def test_stable_baselines_way_of_many_dreams(world):
    """A vector of single ones, as `SyncVectorEnv` makes it."""
    envs = gymnasium.make_vec(ID, 2, vectorization_mode="sync", world=world)
    envs.reset(seed=0)
    for _ in range(40):
        obs, *_ = envs.step(right(envs))
    assert obs.shape == (2, 1088)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda envs: envs.step(right(envs)), RuntimeError, "no dream is running"),
        (lambda envs: envs.reset(seed=[1, 2]), ValueError, "5 dreams need 5 seeds, got 2"),
        (lambda envs: envs.reset(seed=-1), ValueError, "at least 0, got -1"),
        (lambda envs: envs.reset(seed=[1, 2, 3, 4, 0.5]), ValueError, "at least 0, got 0.5"),
        (
            lambda envs: envs.reset(options={"reset_mask": np.ones(LANES, bool)}),
            ValueError,
            "dreams that have begun",
        ),
        (
            lambda envs: (envs.reset(), envs.reset(options={"reset_mask": np.ones(2, bool)})),
            ValueError,
            r"bool \[5\], got bool\[2\]",
        ),
        (
            lambda envs: (envs.reset(), envs.step(np.ones((2, 1)))),
            ValueError,
            r"have shape \(5, 1\)",
        ),
        (
            lambda envs: (envs.reset(), envs.step(np.full((LANES, 1), np.nan))),
            ValueError,
            "it must be finite",
        ),
    ],
)
def test_bad_calls_are_one_clear_line(world, call, error, message):
    envs = many(world)
    with pytest.raises(error, match=message) as raised:
        call(envs)
    assert str(raised.value).count("\n") <= LANES


@pytest.mark.parametrize("choices", [[0, 1, 2, 3, 0], [0, 1, 2, -1, 0], [0.0, 1, 2, 0, 0]])
def test_choices_that_are_none_are_refused(world, choices):
    envs = many(world, actions="discrete", observation="z")
    envs.reset(seed=0)
    with pytest.raises(
        ValueError, match="the action is .* it must be (from 0 to 2|a whole number)"
    ):
        envs.step(np.array(choices))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_arrays_that_stay_where_they_are_dreamt_are_the_same(world, mode):
    plain, kept = (many(world, autoreset_mode=mode, arrays=x) for x in ("numpy", "jax"))
    told = plain.reset(seed=1), kept.reset(seed=1)
    ended = np.zeros(LANES, bool)
    for _ in range(60):
        assert isinstance(told[1][0], jax.Array)
        for ours, theirs in zip(told[0][:-1], told[1][:-1], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        if ended.any() and mode is AutoresetMode.SAME_STEP:
            final, there = told[1][4]["final_obs"], np.asarray(told[1][4]["_final_obs"])
            np.testing.assert_array_equal(there, ended)
            np.testing.assert_array_equal(final[there], np.stack(told[0][4]["final_obs"][there]))
        if mode is AutoresetMode.DISABLED and ended.any():
            with pytest.raises(RuntimeError, match="the dream is over"):
                kept.step(right(kept))
            for envs in (plain, kept):
                envs.reset(options={"reset_mask": ended})
        told = plain.step(right(plain)), kept.step(jnp.ones((LANES, 1)))
        ended = told[0][2] | told[0][3]
    with pytest.raises(ValueError, match=r"must have shape \(5, 1\), got \(4, 1\)"):
        kept.step(jnp.ones((LANES - 1, 1)))


def test_bad_settings_are_one_clear_line(world):
    with pytest.raises(ValueError, match="arrays must be one of numpy, jax, got 'torch'"):
        many(world, arrays="torch")
    for variant, message in (
        ({"num_envs": 0}, "at least 1, got 0"),
        ({"render_mode": "human"}, "must be None or 'rgb_array', got 'human'"),
        ({"autoreset_mode": "Never"}, "one of NextStep, SameStep, Disabled, got 'Never'"),
    ):
        with pytest.raises(ValueError, match=message):
            VectorDream("DreamTakeCover-v1", world=world, **variant)
    assert dreamjax.make("DreamTakeCover-v1", world=world)
