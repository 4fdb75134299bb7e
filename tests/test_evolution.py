"""Evolution finds what is known to be best, and its shortcuts change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import CMA_ES
from probes import CONTROLLER, Balance, Imitate, ProbeParams

from dreamjax.checkpoint import Store
from dreamjax.controller import LinearController
from dreamjax.evolution import EvolveConfig, Generations, evolve
from dreamjax.population import SMALLEST_BATCH, batch_sizes, evaluate
from dreamjax.strategies import STRATEGIES, LazyCMAES, ordinal_weights

play = jax.jit(evaluate, static_argnums=(1, 3, 5), static_argnames=("sizes", "mesh", "at_once"))
N = 120
TARGET = jnp.array([1.0, -0.5, 0.25])


def params(steps=20):
    return ProbeParams(target=TARGET, max_steps_in_episode=jnp.int32(steps))


@pytest.mark.smoke
def test_it_imitates_a_known_controller():
    config = EvolveConfig(
        generations=40, population=16, rollouts=8, eval_every=20, eval_rollouts=32
    )
    found = evolve(0, Imitate(), params(), CONTROLLER, CONTROLLER.num_params, config)
    np.testing.assert_allclose(found.best, TARGET, atol=0.05)
    assert found.best_score > -0.01


def test_it_learns_to_balance():
    config = EvolveConfig(
        generations=15, population=16, rollouts=8, sigma=0.5, eval_every=5, eval_rollouts=128
    )
    still = play(
        jax.random.key(9), Balance(), params(60), CONTROLLER, jnp.zeros((1, 3)), 128
    ).score.mean()
    found = evolve(1, Balance(), params(60), CONTROLLER, CONTROLLER.num_params, config)
    assert still < 15
    assert found.best_score > 55  # of 60
    assert found.best[0] < -1  # pushes against x[0]


def test_it_goes_on_from_a_given_mean():
    config = EvolveConfig(generations=1, population=16, rollouts=8, sigma=1e-3, eval_rollouts=8)
    found = evolve(0, Imitate(), params(), CONTROLLER, 3, config, start=TARGET)
    np.testing.assert_allclose(found.es.mean, TARGET, atol=0.05)
    with pytest.raises(ValueError, match=r"start must be 3 finite weights, got shape \[2\]"):
        evolve(0, Imitate(), params(), CONTROLLER, 3, config, start=TARGET[:2])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generations_compile_once(strategy):
    config = EvolveConfig(generations=9, population=4, rollouts=2, strategy=strategy)
    run = Generations(0, Balance(), params(), CONTROLLER, CONTROLLER.num_params, config)
    state, step = run.initial(), 0
    for _ in range(2):
        state, done, _ = run(state, step, params())
        step += done
    assert run.generations._cache_size() == 1


def plain_returns(key, env, env_params, policy, weights, rollouts, steps):
    """Every episode on its own, in a plain masked scan."""
    key_reset, key_noise = jax.random.split(key)

    def episode(w, key_reset, key_noise):
        obs, state = env.reset_env(key_reset, env_params)

        def body(loop, t):
            obs, state, score, alive = loop
            key = jax.random.fold_in(key_noise, t)
            obs, state, reward, terminated, _ = env.step_env(key, state, policy(w, obs), env_params)
            score = score + jnp.where(alive, reward, 0.0)
            alive = alive & ~(terminated | env.is_truncated(state, env_params))
            return (obs, state, score, alive), None

        (_, _, score, _), _ = jax.lax.scan(
            body, (obs, state, 0.0, jnp.bool_(True)), jnp.arange(steps)
        )
        return score

    starts, noises = (jax.random.split(k, rollouts) for k in (key_reset, key_noise))
    over_rollouts = jax.vmap(episode, (None, 0, 0))
    return jax.vmap(over_rollouts, (0, None, None))(weights, starts, noises)


def test_dropping_dead_lanes_changes_no_return(dream):
    env, env_params = dream
    policy = LinearController(env.task.feature_size, 1)
    weights = jax.random.normal(jax.random.key(2), (12, policy.num_params))
    key = jax.random.key(3)
    expected = jax.jit(plain_returns, static_argnums=(1, 3, 5, 6))(
        key, env, env_params, policy, weights, 8, 60
    )
    assert len(np.unique(np.asarray(expected))) > 3  # deaths at many different times
    for sizes in ((96,), (96, 50, 3), None):
        played = play(key, env, env_params, policy, weights, 8, sizes=sizes)
        np.testing.assert_array_equal(played.score, expected)
        np.testing.assert_array_equal(played.steps, expected)
    for at_once in (40, 7):  # cut into pieces, the last one padded
        played = play(key, env, env_params, policy, weights, 8, at_once=at_once)
        np.testing.assert_array_equal(played.score, expected)


def test_members_meet_the_same_starts_and_noise(dream):
    env, env_params = dream
    policy = LinearController(env.task.feature_size, 1)
    twins = jnp.tile(jax.random.normal(jax.random.key(2), (1, policy.num_params)), (3, 1))
    score = play(jax.random.key(3), env, env_params, policy, twins, 16).score
    np.testing.assert_array_equal(score[0], score[1])
    assert len(np.unique(np.asarray(score[0]))) > 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_named_strategy_learns(strategy):
    config = EvolveConfig(
        generations=80,
        population=16,
        rollouts=8,
        eval_every=40,
        eval_rollouts=32,
        strategy=strategy,
    )
    found = evolve(0, Imitate(), params(), CONTROLLER, CONTROLLER.num_params, config)
    assert found.best_score > -0.2  # doing nothing scores about -10


def test_unknown_strategy_and_odd_open_es_are_named():
    with pytest.raises(ValueError, match="unknown strategy 'cma'; choose one of cma-es"):
        EvolveConfig(strategy="cma")
    with pytest.raises(ValueError, match="must be even, got 15"):
        EvolveConfig(strategy="open-es", population=15)


def test_batch_sizes_shrink_on_a_cpu_only():
    sizes = batch_sizes(1024, "cpu")
    assert (sizes[0], sizes[-1]) == (1024, SMALLEST_BATCH)
    assert list(sizes) == sorted(set(sizes), reverse=True)
    assert batch_sizes(1024, "gpu") == (1024,)


@pytest.mark.parametrize(
    "fitness", [[3.0, 1.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 2.0]]
)
def test_positive_weights_sum_to_one_whatever_the_ties(fitness):
    strategy = LazyCMAES(4, jnp.zeros(3))
    weights = ordinal_weights(None, jnp.array(fitness), None, strategy.default_params)
    assert jnp.where(weights > 0, weights, 0).sum() == pytest.approx(1.0, abs=1e-6)
    assert weights.argmax() == int(np.argmin(fitness))


def test_nan_ranks_last():
    strategy = LazyCMAES(4, jnp.zeros(3))
    weights = ordinal_weights(
        None, jnp.array([2.0, jnp.nan, 1.0, 3.0]), None, strategy.default_params
    )
    assert weights.argmin() == 1


def test_flat_fitness_does_not_collapse_sigma():
    strategy = LazyCMAES(32, jnp.zeros(50))
    strategy_params = strategy.default_params.replace(std_init=jnp.float32(0.1))
    state = strategy.init(jax.random.key(0), jnp.zeros(50), strategy_params)
    for i in range(60):
        key = jax.random.key(i)
        population, state = strategy.ask(key, state, strategy_params)
        state, _ = strategy.tell(key, population, jnp.zeros(32), state, strategy_params)
    assert 0.03 < state.std < 0.3


def test_lazy_decomposition_follows_the_full_one():
    def minimum(strategy):
        strategy_params = strategy.default_params.replace(std_init=jnp.float32(0.5))
        scale = 10 ** jnp.linspace(0, 1, N)

        def generation(state, key):
            population, state = strategy.ask(key, state, strategy_params)
            fitness = jnp.sum(scale * population**2, axis=1)
            return strategy.tell(key, population, fitness, state, strategy_params)[0], None

        state = strategy.init(jax.random.key(0), jnp.ones(N), strategy_params)
        keys = jax.random.split(jax.random.key(1), 180)
        state, _ = jax.jit(jax.lax.scan, static_argnums=0)(generation, state, keys)
        return float(jnp.sum(scale * state.mean**2))

    lazy = LazyCMAES(12, jnp.zeros(N))
    assert lazy.interval > 1
    full = CMA_ES(12, jnp.zeros(N), fitness_shaping_fn=ordinal_weights)
    reached = minimum(full)
    assert reached < 10.0  # of 470 at the start
    assert minimum(lazy) < 1.3 * reached


def test_a_resumed_evolution_repeats_an_unbroken_one(tmp_path):
    def run(generations, store=None):
        config = EvolveConfig(
            generations=generations, population=8, rollouts=4, eval_every=2, eval_rollouts=8
        )
        return evolve(3, Imitate(), params(), CONTROLLER, 3, config, store=store)

    unbroken = run(6)
    run(3, Store(tmp_path))
    resumed = run(6, Store(tmp_path))
    np.testing.assert_array_equal(resumed.es.mean, unbroken.es.mean)


def test_several_generations_in_one_call_equal_single_ones(monkeypatch):
    config = EvolveConfig(generations=6, population=8, rollouts=4, eval_every=6, eval_rollouts=8)
    means = []
    for per_call in (1, 3, 6):
        monkeypatch.setattr(Generations, "per_call", per_call)
        means.append(evolve(3, Imitate(), params(), CONTROLLER, 3, config).es.mean)
    np.testing.assert_array_equal(means[0], means[1])
    np.testing.assert_array_equal(means[0], means[2])


@pytest.mark.parametrize("field, value", [("population", 3), ("rollouts", 0), ("sigma", -1.0)])
def test_bad_sizes_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* got {value}"):
        EvolveConfig(**{field: value})
