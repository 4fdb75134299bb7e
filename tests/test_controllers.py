"""C's draws are distributed as they say, its forms are what they are in NumPy, and all learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from probes import Balance, ProbeParams

from dreamjax.actions import Box, Choice, Keys
from dreamjax.controller.distributions import (
    BoxDistribution,
    ChoiceDistribution,
    KeysDistribution,
    distribution_of,
)
from dreamjax.controller.model import (
    LinearController,
    MLPController,
    controller_for,
)
from dreamjax.controller.policy_gradient import learn
from dreamjax.controller.ppo import LearnConfig
from dreamjax.tasks import CAR_RACING, TAKE_COVER

KEYS, CHOICE = KeysDistribution(), ChoiceDistribution(Choice(4, start=2))
PEDALS = BoxDistribution(CAR_RACING.actions)
SPREAD = jnp.array([-0.7, 0.3, -1.5])
MANY = 40_000  # draws


def outputs(distribution, *shape, seed=0):
    return jax.random.normal(jax.random.key(seed), (*shape, distribution.outputs))


def draws(distribution, out, spread=None):
    """Draws [MANY, ...] for the same outputs [O]."""
    many = jnp.broadcast_to(out, (MANY, *out.shape))
    return distribution.draw(jax.random.key(1), many, spread)


def log_probs(distribution, out, spread=None):
    """Of all choices, by asking for each: [..., C]."""
    choices = range(3 if isinstance(distribution, KeysDistribution) else distribution.choice.n)
    drawn = [jnp.full(out.shape[:-1], choice) for choice in choices]
    return jnp.stack([distribution.log_prob(out, spread, one) for one in drawn], axis=-1)


# Heads


@pytest.mark.numerics
@pytest.mark.parametrize("distribution", [KEYS, CHOICE])
def test_chances_of_choices_sum_to_one_and_are_those_of_the_draws(distribution):
    out = outputs(distribution, 5, 7)
    chances = np.exp(log_probs(distribution, out))
    np.testing.assert_allclose(chances.sum(axis=-1), 1, rtol=1e-5)
    entropy = -(chances * np.log(chances)).sum(axis=-1)
    np.testing.assert_allclose(distribution.entropy(out, None), entropy, rtol=1e-5)
    drawn = draws(distribution, out[0, 0])
    found = np.bincount(drawn, minlength=chances.shape[-1]) / MANY
    chance = chances[0, 0]
    assert drawn.dtype == jnp.int32
    assert (np.abs(found - chance) < 5 * np.sqrt(chance * (1 - chance) / MANY)).all()


def test_the_density_of_a_box_integrates_to_one():
    distribution = BoxDistribution(Box((-2.0, 0.0), (3.0, 1.0)))
    out, spread = jnp.array([0.4, -1.0]), jnp.array([-0.7, 0.2])
    line = np.linspace(-9, 9, 301)
    drawn = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    density = np.exp(distribution.log_prob(jnp.broadcast_to(out, drawn.shape), spread, drawn))
    whole = scipy.integrate.trapezoid(scipy.integrate.trapezoid(density, line), line)
    assert whole == pytest.approx(1, abs=1e-4)


@pytest.mark.numerics
def test_draws_of_a_box_have_the_density_it_says():
    out = outputs(PEDALS)
    drawn = np.asarray(draws(PEDALS, out, SPREAD), float)
    normal = scipy.stats.norm(np.asarray(out, float), np.exp(SPREAD))
    told = PEDALS.log_prob(jnp.broadcast_to(out, drawn.shape), SPREAD, drawn)
    np.testing.assert_allclose(told, normal.logpdf(drawn).sum(axis=-1), rtol=1e-4, atol=1e-4)
    for part in (0.1, 0.5, 0.8):
        below = (drawn < normal.ppf(part)).mean(axis=0)
        assert (np.abs(below - part) < 5 * np.sqrt(part * (1 - part) / MANY)).all()
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 5 / MANY**0.5
    entropy = PEDALS.entropy(out, SPREAD)
    np.testing.assert_allclose(entropy, normal.entropy().sum(), rtol=1e-5)
    assert abs(entropy + told.mean()) < 5 * told.std() / MANY**0.5
    assert PEDALS.entropy(outputs(PEDALS, 5, 7), SPREAD).shape == (5, 7)


@pytest.mark.parametrize("distribution", [KEYS, CHOICE])
def test_awake_the_likeliest_choice_is_done(distribution):
    out = outputs(distribution, 500)
    likeliest = jnp.argmax(log_probs(distribution, out), axis=-1)
    np.testing.assert_array_equal(distribution.action(out, likeliest), distribution.act(out))
    assert len(np.unique(likeliest)) == (3 if distribution is KEYS else 4)


def test_other_keys_are_done_as_the_numbers_that_press_them():
    out = jnp.array([[-3.0], [0.1], [3.0]])
    for choice, number in enumerate(KEYS.keys.choices):
        found = KEYS.action(out, jnp.full(3, choice))[:, 0]
        own = jnp.tanh(out[:, 0])
        wanted = jnp.where(jnp.arange(3) == choice, own, number)
        np.testing.assert_array_equal(found, wanted)


def test_a_choice_is_one_hot():
    np.testing.assert_array_equal(CHOICE.act(jnp.array([0.0, -1.0, 2.0, 1.0])), [0, 0, 1, 0])
    drawn = jnp.array([[3, 0], [1, 2]])
    np.testing.assert_array_equal(CHOICE.action(outputs(CHOICE, 2, 2), drawn), np.eye(4)[drawn])


def test_awake_a_box_is_acted_on_by_the_mean():
    """Which squashed is the median, but where the brake is cut."""
    out = jnp.array([0.5, -1.0, 0.8])
    acted = PEDALS.action(out, draws(PEDALS, out, SPREAD))
    np.testing.assert_array_equal(PEDALS.action(out, out), PEDALS.act(out))
    assert (np.abs((acted < PEDALS.act(out)).mean(axis=0) - 0.5) < 2.5 / MANY**0.5).all()
    assert (acted >= jnp.array([-1, 0, 0])).all() and (acted <= 1).all()
    np.testing.assert_allclose(acted.min(axis=0), [-1, 0, 0], atol=0.2)
    np.testing.assert_allclose(acted.max(axis=0), [1, 0.8, 1], atol=0.2)


def test_a_box_is_stretched_and_what_is_clipped_is_cut():
    out = np.asarray(outputs(PEDALS, 200))
    steer, gas, brake = np.tanh(out).T
    wanted = np.stack([steer, (gas + 1) / 2, np.maximum(brake, 0)], axis=-1)  # carracing/model.py
    np.testing.assert_allclose(PEDALS.act(out), wanted, rtol=1e-5, atol=1e-6)
    wide = BoxDistribution(Box((-2.0,), (6.0,)))
    np.testing.assert_allclose(wide.act(jnp.array([-99.0, 0.0, 99.0])[:, None]).T, [[-2, 2, 6]])


def test_heads_belong_to_forms_of_actions():
    assert distribution_of(TAKE_COVER.actions) == KEYS
    assert distribution_of(Keys(pressed=0.5)).keys.pressed == 0.5
    assert (
        distribution_of(Choice(4, start=2)) == CHOICE
        and distribution_of(CAR_RACING.actions) == PEDALS
    )
    assert [distribution.outputs for distribution in (KEYS, CHOICE, PEDALS)] == [1, 4, 3]
    assert KEYS.first_spread() is None is CHOICE.first_spread()
    assert PEDALS.first_spread().shape == (3,)


# Forms


def test_controllers_have_the_papers_sizes():
    assert controller_for(TAKE_COVER).num_params == 1088
    assert controller_for(CAR_RACING).num_params == 867
    assert controller_for(CAR_RACING, num_features=10).num_params == 33
    assert controller_for(TAKE_COVER, hidden=16) == MLPController(1088, KEYS, 16)


@pytest.mark.numerics
def test_a_linear_controller_is_its_matrix_and_bias():
    controller = LinearController(5, PEDALS, bias=True)
    weights, obs = np.random.default_rng(0).normal(size=18), np.ones((2, 5)) * [[1], [2]]
    bias, matrix = weights[:3], weights[3:].reshape(5, 3)
    found = controller.outputs(jnp.float32(weights), jnp.float32(obs))
    np.testing.assert_allclose(found, obs @ matrix + bias, rtol=1e-5)
    np.testing.assert_array_equal(controller(weights, obs), PEDALS.act(found))
    np.testing.assert_array_equal(controller.initial(jax.random.key(0)), np.zeros(18))


@pytest.mark.numerics
@pytest.mark.parametrize("distribution", [KEYS, CHOICE, PEDALS])
def test_a_hidden_layer_is_two_matrices_and_begins_at_zero(distribution):
    F, U, O = 5, 7, distribution.outputs  # noqa: E741
    controller, rng = MLPController(F, distribution, U), np.random.default_rng(0)
    parts = [rng.normal(size=shape) for shape in ((U,), (F, U), (O,), (U, O))]
    weights, obs = np.concatenate([part.ravel() for part in parts]), rng.normal(size=(4, F))
    assert controller.num_params == len(weights) == (F + 1) * U + (U + 1) * O
    b, W, c, V = parts
    found = controller.outputs(jnp.float32(weights), jnp.float32(obs))
    np.testing.assert_allclose(found, np.tanh(obs @ W + b) @ V + c, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(controller(jnp.float32(weights), obs), distribution.act(found))
    first = controller.initial(jax.random.key(0))
    assert first.shape == (controller.num_params,) and first.dtype == jnp.float32
    np.testing.assert_array_equal(controller.outputs(first, obs), np.zeros((4, O)))
    W = first[U : U + F * U].reshape(F, U)
    np.testing.assert_allclose(W @ W.T, np.eye(F), atol=1e-5)
    slope = jax.grad(lambda w: controller.outputs(w, obs).sum())(first)
    assert np.abs(slope[-U * O :]).min() > 0, "it can leave"


@pytest.mark.parametrize("hidden, bias", [(0, False), (0, True), (7, False)])
def test_rescaled_weights_do_for_features_what_the_others_do_for_scaled_ones(hidden, bias):
    rng = np.random.default_rng(0)
    controller = MLPController(5, PEDALS, 7) if hidden else LinearController(5, PEDALS, bias)
    weights, obs, mean = (rng.normal(size=n) for n in (controller.num_params, (4, 5), 5))
    std = rng.uniform(0.1, 10.0, 5)
    scaled = (obs - mean) / std if hidden or bias else obs / std
    found = controller.rescaled(jnp.float32(weights), jnp.float32(mean), jnp.float32(std))
    np.testing.assert_allclose(
        controller.outputs(found, jnp.float32(obs)),
        controller.outputs(jnp.float32(weights), jnp.float32(scaled)),
        rtol=1e-3,
        atol=1e-3,
    )


# Learning


@dataclasses.dataclass(frozen=True)
class ChosenBalance(Balance):
    """Four choices: far to one side, nothing, nothing, far to the other."""

    def step_env(self, key, state, action, params):
        push = action @ jnp.array([-1.0, 0.0, 0.0, 1.0])
        return super().step_env(key, state, push[None], params)


@dataclasses.dataclass(frozen=True)
class PedalBalance(Balance):
    """Two numbers from 0 to 1, of which the difference pushes."""

    def step_env(self, key, state, action, params):
        return super().step_env(key, state, action[:1] - action[1:], params)


PEDAL = BoxDistribution(Box((0.0, 0.0), (1.0, 1.0)))
PARAMS = ProbeParams(target=jnp.zeros(3), max_steps_in_episode=jnp.int32(60))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "controller"),
    [
        (ChosenBalance(), LinearController(3, CHOICE, bias=True)),
        (PedalBalance(), LinearController(3, PEDAL, bias=True)),
        (ChosenBalance(), MLPController(3, CHOICE, 8)),
        (PedalBalance(), MLPController(3, PEDAL, 8)),
    ],
)
def test_every_head_and_form_learns_to_balance(env, controller):
    config = LearnConfig(
        steps=80 * 32 * 16,
        num_envs=32,
        num_steps=16,
        num_minibatches=2,
        learning_rate=0.02,
        averaging=0.9,
        eval_every=40,
        eval_rollouts=128,
    )
    found = learn(env, PARAMS, controller, config, 1)
    assert found.best_score > 55  # of 60
    assert found.best.shape == (controller.num_params,)
    spread = found.network.spread
    assert (
        spread is None
        if controller.distribution is CHOICE
        else (spread != PEDAL.first_spread()).all()
    )
