"""Evolution finds what is known to be best, and its shortcuts change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import CMA_ES
from probes import CONTROLLER, Balance, Imitate, ProbeParams

from dreamjax.controller.evolution import EvolveConfig, Generations, evolve
from dreamjax.controller.model import controller_for
from dreamjax.controller.player import Player
from dreamjax.controller.population import (
    SMALLEST_BATCH,
    STRIDE,
    batch_sizes,
    rollout,
)
from dreamjax.controller.strategies import STRATEGIES, LazyCMAES, make_strategy, ordinal_weights
from dreamjax.memory.model import product
from dreamjax.training.checkpoint import Store
from dreamjax.training.devices import device_memory
from dreamjax.training.settings import SettingError

play = jax.jit(rollout, static_argnums=(1, 3, 5), static_argnames=("sizes", "mesh", "at_once"))
TARGET = jnp.array([1.0, -0.5, 0.25])


def params(steps=20):
    return ProbeParams(target=TARGET, max_steps_in_episode=jnp.int32(steps))


@pytest.mark.slow
@pytest.mark.smoke
def test_it_imitates_a_known_controller():
    config = EvolveConfig(
        generations=40, population=16, rollouts=8, eval_every=20, eval_rollouts=32
    )
    found = evolve(Imitate(), params(), CONTROLLER, config, 0)
    # 100 other seeds end at most 0.0008 from the target, with -4e-6 or better
    np.testing.assert_allclose(found.best, TARGET, atol=0.05)
    assert found.best_score > -0.01


def test_it_learns_to_balance():
    config = EvolveConfig(
        generations=15, population=16, rollouts=8, sigma=0.5, eval_every=5, eval_rollouts=128
    )
    run = Generations(Balance(), params(60), CONTROLLER, config, 1)
    _, still = run.evaluation(run.initial(), jnp.int32(0), params(60))
    found = evolve(Balance(), params(60), CONTROLLER, config, 1)
    assert still < 15  # 10.4 ± 0.5 over 100 seeds, all of which then reach 60 of 60
    assert found.best_score > 55
    assert found.best[0] < -1  # pushes against x[0]; at most -1.43 over 100 seeds


@pytest.mark.slow
def test_what_an_accelerator_does_otherwise_changes_no_length(dream, monkeypatch):
    """Padded products, and several steps between two looks at who is alive."""
    env, env_params = dream
    controller = controller_for(env.task)
    weights = jax.random.normal(jax.random.key(1), (3, controller.num_params))

    def lengths():
        play = jax.jit(lambda w: rollout(jax.random.key(0), env, env_params, controller, w, 7))
        return np.asarray(play(weights).steps)

    plain = lengths()
    monkeypatch.setattr("dreamjax.controller.population.jax.default_backend", lambda: "gpu")
    np.testing.assert_array_equal(lengths(), plain)
    assert len(np.unique(plain % STRIDE)) > 1, "they end between looks"


def test_a_padded_product_is_the_product(monkeypatch):
    x, kernel = jax.random.normal(jax.random.key(0), (5, 19)), jnp.ones((19, 7)).at[3].set(2.0)
    plain = product(x, kernel)
    monkeypatch.setattr("dreamjax.memory.model.tile", lambda: 8)
    shape = jax.make_jaxpr(product)(x, kernel).jaxpr.eqns
    assert any(eqn.outvars[0].aval.shape == (24, 8) for eqn in shape)
    np.testing.assert_allclose(product(x, kernel), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["cma-es", "open-es"])
def test_it_evolves_a_dream_where_jax_has_64_bits(dream, strategy):
    env, env_params = dream
    controller = controller_for(env.task)
    config = EvolveConfig(generations=2, population=4, rollouts=1, strategy=strategy, eval_every=9)
    with jax.enable_x64(True):
        found = evolve(env, env_params, controller, config, 0)
    assert found.best.dtype == found.es.mean.dtype == jnp.float32
    assert np.isfinite(found.es.mean).all() and np.any(found.es.mean)


def test_it_goes_on_from_a_given_mean():
    config = EvolveConfig(generations=1, population=16, rollouts=8, sigma=1e-3, eval_rollouts=8)
    found = evolve(Imitate(), params(), Player(CONTROLLER, TARGET), config, 0)
    np.testing.assert_allclose(found.es.mean, TARGET, atol=0.05)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generations_compile_once(strategy):
    sizes = {"generations": 9, "population": 4, "rollouts": 2, "eval_every": 3, "eval_rollouts": 2}
    config = EvolveConfig(strategy=strategy, **sizes)
    run = Generations(Balance(), params(), CONTROLLER, config, 0)
    state, step = run.initial(), 0
    for _ in range(3):
        state, done, _ = run(state, step)
        step += done
    assert run.generations._cache_size() == run.evaluation._cache_size() == 1
    assert state.best_score >= 1 and state.es.mean.shape == state.best.shape


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


@pytest.mark.slow
def test_dropping_dead_lanes_changes_no_return(dream):
    env, env_params = dream
    policy = controller_for(env.task)
    weights = jax.random.normal(jax.random.key(2), (12, policy.num_params))
    key = jax.random.key(3)
    expected = jax.jit(plain_returns, static_argnums=(1, 3, 5, 6))(
        key, env, env_params, policy, weights, 8, 60
    )
    assert len(np.unique(np.asarray(expected))) > 3  # deaths at many different times
    # exactly, for rounding (1e-7) moves no death here: a change of all weights by 1e-4 does not
    for sizes in ((96, 50, 3), None):
        played = play(key, env, env_params, policy, weights, 8, sizes=sizes)
        np.testing.assert_array_equal(played.score, expected)
        np.testing.assert_array_equal(played.steps, expected)
    played = play(key, env, env_params, policy, weights, 8, at_once=7)  # the last piece padded
    np.testing.assert_array_equal(played.score, expected)


def test_members_meet_the_same_starts_and_noise(dream):
    env, env_params = dream
    policy = controller_for(env.task)
    twins = jnp.tile(jax.random.normal(jax.random.key(2), (1, policy.num_params)), (12, 1))
    score = play(jax.random.key(3), env, env_params, policy, twins, 8, sizes=None).score
    np.testing.assert_array_equal(score[0], score[1])
    np.testing.assert_array_equal(score[0], score[11])
    assert len(np.unique(np.asarray(score[0]))) > 1


def test_unknown_strategy_and_odd_open_es_are_named():
    with pytest.raises(ValueError, match="unknown strategy 'cma'; choose one of cma-es"):
        EvolveConfig(strategy="cma")
    with pytest.raises(ValueError, match="must be even, got 15"):
        EvolveConfig(strategy="open-es", population=15)


def test_batch_sizes_shrink_on_a_cpu_only(monkeypatch):
    monkeypatch.undo()  # the sizes that are used
    sizes = batch_sizes(1024, "cpu")
    assert (sizes[0], sizes[-1]) == (1024, SMALLEST_BATCH)
    assert list(sizes) == sorted(set(sizes), reverse=True)
    assert batch_sizes(1024, "gpu") == (1024,)


def test_memory_is_known_where_there_is_no_proc(monkeypatch):
    def no_proc(path):
        raise FileNotFoundError(path)

    assert 0 < device_memory() < 2**60
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}  # as on macOS
    monkeypatch.setattr("dreamjax.training.devices.open", no_proc, raising=False)
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert device_memory() == 4_096_000


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


def minimised(strategy, strategy_params, loss, start, generations, seeds):
    """Final states of as many runs as `seeds`, [seeds] of each leaf."""

    def generation(state, key):
        population, state = strategy.ask(key, state, strategy_params)
        return strategy.tell(key, population, loss(population), state, strategy_params)[0], None

    def run(key):
        state = strategy.init(key, start, strategy_params)
        return jax.lax.scan(generation, state, jax.random.split(key, generations))[0]

    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.jit(jax.lax.map, static_argnums=0)(run, keys)  # a vmap would decompose every time


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_named_strategy_finds_a_minimum(name):
    strategy, strategy_params = make_strategy(name, 16, 3, 0.1)
    loss = lambda population: ((population - TARGET) ** 2).sum(axis=-1)  # noqa: E731
    found = minimised(strategy, strategy_params, loss, jnp.zeros(3), 80, seeds=8)
    assert loss(found.mean).max() < 0.01  # of 1.3 at the start; the worst of 1000 seeds is 0.0013


def test_settings_are_checked_without_making_a_strategy(monkeypatch):
    """To make one compiles for seconds, and every command checks the settings of all presets."""
    monkeypatch.setattr("dreamjax.controller.strategies.STRATEGIES", dict.fromkeys(STRATEGIES))
    for name in STRATEGIES:
        EvolveConfig(strategy=name)
    with pytest.raises(SettingError, match="must be even, got 5"):
        EvolveConfig(strategy="open-es", population=5)
    with pytest.raises(SettingError, match="unknown strategy 'es'; choose one of cma-es"):
        EvolveConfig(strategy="es")
    with pytest.raises(SettingError, match="unknown strategy 'es'"):
        make_strategy("es", 4, 2, 0.1)


def test_flat_fitness_does_not_collapse_sigma():
    """It drifts by a factor of exp(±0.3) a run; average ranks would end at 2e-5."""
    flat = lambda population: jnp.zeros(len(population))  # noqa: E731
    strategy, strategy_params = make_strategy("cma-es", 32, 50, 0.1)
    found = minimised(strategy, strategy_params, flat, jnp.zeros(50), 60, seeds=8)
    assert 0.03 < np.exp(np.log(found.std).mean()) < 0.3


def test_the_covariance_is_decomposed_as_seldom_as_the_tutorial_says():
    """Every 1 / (10 N (c_1 + c_mu)) generations (arXiv:1604.00772, B.2), by hand."""
    weights = np.log(32.5) - np.log(np.arange(1, 33))
    mu_eff, N = weights.sum() ** 2 / (weights**2).sum(), 1088
    c_1 = 2 / ((N + 1.3) ** 2 + mu_eff)
    c_mu = 2 * (mu_eff + 1 / mu_eff - 2) / ((N + 2) ** 2 + mu_eff)
    assert LazyCMAES(64, jnp.zeros(N)).interval == int(1 / (10 * N * (c_1 + c_mu))) == 3


@pytest.mark.slow
def test_lazy_decomposition_follows_the_full_one():
    """What a run reaches is chaotic, so means over seeds are compared, in standard errors."""
    N, seeds = 20, 16
    scale = 10 ** jnp.linspace(0, 3, N)

    def reached(strategy):
        loss = lambda population: (scale * population**2).sum(axis=-1)  # noqa: E731
        half = strategy.default_params.replace(std_init=jnp.float32(0.5))
        return np.log10(loss(minimised(strategy, half, loss, jnp.ones(N), 300, seeds).mean))

    full = reached(CMA_ES(12, jnp.zeros(N), fitness_shaping_fn=ordinal_weights))
    lazy, never = LazyCMAES(12, jnp.zeros(N)), LazyCMAES(12, jnp.zeros(N))
    lazy.interval, never.interval = 3, 300  # as lazy as in 1088 dimensions; and too lazy
    lazy, never = reached(lazy), reached(never)
    margin = 4 * np.hypot(full.std(ddof=1), lazy.std(ddof=1)) / seeds**0.5
    # full -2.2 ± 0.55 a run, lazy the same, never 0.6 ± 0.3; all begin at 3.7
    assert abs(lazy.mean() - full.mean()) < margin < 1.5
    assert never.mean() - max(lazy.mean(), full.mean()) > 2


@pytest.mark.numerics
def test_a_resumed_evolution_repeats_an_unbroken_one(tmp_path):
    def run(generations, store=None):
        config = EvolveConfig(
            generations=generations, population=8, rollouts=4, eval_every=2, eval_rollouts=8
        )
        return evolve(Imitate(), params(), CONTROLLER, config, 3, store=store)

    unbroken = run(6)
    run(3, Store(tmp_path))
    resumed = run(6, Store(tmp_path))
    np.testing.assert_array_equal(resumed.es.mean, unbroken.es.mean)


def test_several_generations_in_one_call_equal_single_ones(monkeypatch):
    config = EvolveConfig(generations=6, population=8, rollouts=4, eval_every=6, eval_rollouts=8)
    means = []
    for per_call in (1, 3):
        monkeypatch.setattr(Generations, "per_call", per_call)
        means.append(evolve(Imitate(), params(), CONTROLLER, config, 3).es.mean)
    # two programs, each free to round as it likes; other keys would move the means by 0.1
    np.testing.assert_allclose(*means, rtol=0, atol=1e-5)


@pytest.mark.parametrize("field, value", [("population", 3), ("rollouts", 0), ("sigma", -1.0)])
def test_bad_sizes_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* got {value}"):
        EvolveConfig(**{field: value})
