"""Policy gradient learns what is known to be best, and its parts are what the papers say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import CONTROLLER, Balance, ProbeParams

from dreamjax.controller.model import LinearController, MLPController, controller_for
from dreamjax.controller.player import Player
from dreamjax.controller.policy_gradient import Updates, learn
from dreamjax.controller.ppo import LearnConfig, Steps, advantages, critic, scales_of
from dreamjax.dream.env import DreamEnv
from dreamjax.dream.worlds import load_world
from dreamjax.memory.heads import total_logit
from dreamjax.run.settings import Run, RunConfig
from dreamjax.tasks import CAR_RACING, TAKE_COVER
from dreamjax.training.checkpoint import Store

KEYS = TAKE_COVER.actions
PARAMS = ProbeParams(target=jnp.zeros(3), max_steps_in_episode=jnp.int32(60))
SMALL = LearnConfig(
    steps=4 * 32 * 16,
    num_envs=32,
    num_steps=16,
    num_minibatches=2,
    eval_every=40,
    eval_rollouts=128,
)


def updates(config=SMALL):
    return Updates(Balance(), CONTROLLER, config, 1)


def log_probs_of(weights, obs):
    """Log probabilities [..., 3] of the keys."""
    return CONTROLLER.distribution.log_probs(CONTROLLER.outputs(weights, obs))


@pytest.mark.smoke
def test_it_learns_to_balance():
    config = dataclasses.replace(SMALL, steps=80 * 32 * 16, learning_rate=0.02, averaging=0.9)
    found = learn(Balance(), PARAMS, CONTROLLER, config, 1)
    # 100 other seeds reach 60 of 60, with -2.6 ± 0.15; nobody pushing gets 10.5 ± 0.6
    assert found.best_score > 55
    assert found.best[0] < -1  # pushes against x[0]


def test_it_acts_awake_as_it_is_likeliest_to_choose():
    """The game presses a key where the squashed output passes `pressed`; so does the mode."""
    obs = jax.random.normal(jax.random.key(0), (500, 3))
    weights = jnp.array([0.5, -0.3, 0.2])
    action = CONTROLLER(weights, obs)[:, 0]
    pressed = np.where(action > KEYS.pressed, 1, np.where(action < -KEYS.pressed, -1, 0))
    likeliest = np.argmax(log_probs_of(weights, obs), axis=-1)
    np.testing.assert_array_equal(np.asarray(KEYS.choices)[likeliest], pressed)
    assert set(pressed) == {-1, 0, 1}


def test_advantages_equal_the_sum_they_abbreviate():
    rng, config = np.random.default_rng(0), LearnConfig(gamma=0.9, gae_lambda=0.8)
    reward, value = rng.normal(size=(2, 7, 3)).astype(np.float32)
    done = (rng.random((7, 3)) < 0.3).astype(np.float32)
    after = rng.normal(size=(7, 3)).astype(np.float32)
    steps = Steps(value, value, value, value, reward=reward, next_value=after, done=done)
    error = reward + 0.9 * after - value
    wanted = np.zeros_like(error)
    for t in range(7):
        for lane in range(3):
            share = 1.0
            for later in range(t, 7):
                wanted[t, lane] += share * error[later, lane]
                share *= 0.9 * 0.8 * (1 - done[later, lane])
    np.testing.assert_allclose(advantages(steps, config), wanted, rtol=1e-4, atol=1e-5)


def a_batch(run, count=64):
    """Steps whose choices were drawn by the network itself, and their advantages."""
    state = run.initial(PARAMS)
    network = state.network.replace(weights=jnp.array([0.4, -0.2, 0.1]))
    obs = jax.random.normal(jax.random.key(1), (count, 3))
    log_probs = log_probs_of(network.weights, obs)
    choice = jax.random.categorical(jax.random.key(2), log_probs)
    blank = jnp.zeros(count)
    advantage = jax.random.normal(jax.random.key(3), (count,))
    log_prob = log_probs[jnp.arange(count), choice]
    return network, Steps(obs, choice, log_prob, blank, blank, blank, blank), advantage


@pytest.mark.numerics
def test_the_first_gradient_is_the_policy_gradient():
    run = updates(dataclasses.replace(SMALL, ent_coef=1e-9))
    network, steps, advantage = a_batch(run)
    found = jax.grad(run.loss)(network, steps, advantage).weights
    scaled = (advantage - advantage.mean()) / advantage.std()

    def gain(weights):
        log_probs = log_probs_of(weights, steps.obs)
        return -(scaled * log_probs[jnp.arange(64), steps.drawn]).mean()

    np.testing.assert_allclose(found, jax.grad(gain)(network.weights), rtol=1e-4, atol=1e-6)


def test_a_choice_that_moved_far_teaches_nothing_more():
    run = updates(dataclasses.replace(SMALL, ent_coef=1e-9))
    network, steps, advantage = a_batch(run)
    better = advantage > advantage.mean()
    ratio = jnp.where(better, 1.5, 0.5)  # past `clip_eps`, each in the direction it should go
    moved = steps.replace(log_prob=steps.log_prob - jnp.log(ratio))
    assert np.abs(jax.grad(run.loss)(network, steps, advantage).weights).max() > 1e-2
    np.testing.assert_allclose(jax.grad(run.loss)(network, moved, advantage).weights, 0, atol=1e-6)


def test_entropy_keeps_choices_open():
    losses = [
        run.loss(*a_batch(run))
        for run in (updates(dataclasses.replace(SMALL, ent_coef=e)) for e in (0.5, 1.0))
    ]
    network, steps, _ = a_batch(updates())
    log_probs = log_probs_of(network.weights, steps.obs)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    np.testing.assert_allclose(losses[0] - losses[1], 0.5 * entropy, rtol=1e-4)


@pytest.mark.numerics
def test_a_resumed_learning_repeats_an_unbroken_one(tmp_path):
    unbroken = learn(Balance(), PARAMS, CONTROLLER, SMALL, 1)
    run = updates()
    state = run.initial(PARAMS)
    for step in range(2):
        state, _, _ = run(state, step, PARAMS)
    Store(tmp_path).save(2, state, {})
    resumed = learn(Balance(), PARAMS, CONTROLLER, SMALL, 1, store=Store(tmp_path))
    np.testing.assert_array_equal(resumed.best, unbroken.best)
    assert Store(tmp_path).steps()[-1] == SMALL.updates == 4
    assert run.update._cache_size() == 1


def test_every_update_draws_its_own_noise():
    run = updates()
    first, second = (run(run.initial(PARAMS), step, PARAMS)[0] for step in (0, 1))
    assert (np.asarray(first.obs) != np.asarray(second.obs)).any()


@pytest.mark.slow
def test_it_goes_on_from_a_given_controller():
    """A good C stays good after one update, where zeros would still be bad."""
    good, config = jnp.array([-3.0, 0.0, 0.0]), dataclasses.replace(SMALL, steps=1)
    assert learn(Balance(), PARAMS, CONTROLLER, config, 1).best_score < 20  # 10.5 ± 0.6
    found = learn(Balance(), PARAMS, Player(CONTROLLER, good), config, 1)
    assert found.best_score > 40  # 60.0 ± 0.15 over 100 seeds
    moved = (found.network.weights - good) * found.scales.std
    np.testing.assert_allclose(moved, 0, atol=0.01)  # 6 steps of Adam at 5e-4
    np.testing.assert_array_equal(good, [-3, 0, 0])  # not donated


@pytest.mark.parametrize("start", [jnp.zeros(4), jnp.array([0.0, jnp.nan, 1.0])])
def test_a_start_that_does_not_fit_is_refused(start):
    with pytest.raises(ValueError, match=r"C has weights \[4\], .* has \[3\]|hold NaN or infinity"):
        Player(CONTROLLER, start)


def test_the_best_evaluation_is_kept_and_watched():
    seen = []

    def watch(weights, score):
        seen.append((float(score), np.asarray(weights)))
        return {"real": 1.0}

    config = dataclasses.replace(SMALL, steps=6 * 32 * 16, eval_every=2, learning_rate=0.2)
    found = learn(Balance(), PARAMS, CONTROLLER, config, 1, watch=watch)
    assert len(seen) == 3
    best = max(seen, key=lambda pair: pair[0])
    np.testing.assert_array_equal(found.best, best[1])
    assert float(found.best_score) == best[0]


def test_the_average_follows_the_weights():
    run = updates(dataclasses.replace(SMALL, averaging=0.75, learning_rate=0.1))
    state, average = run.initial(PARAMS), np.zeros(3)
    for step in range(3):
        state, _, _ = run(state, step, PARAMS)
        average = 0.75 * average + 0.25 * np.asarray(state.network.weights)
    np.testing.assert_allclose(state.average, average, rtol=1e-5)
    assert np.abs(average).max() > 0.05  # 18 steps of Adam at 0.1 do not end where they began


def test_the_discount_is_the_tasks_unless_it_is_set(tmp_path):
    """Of a dream, of a run and of what it compares itself with; of other games the usual one."""
    for task in (TAKE_COVER, CAR_RACING):
        for gamma in (None, 0.5):
            config = dataclasses.replace(SMALL, gamma=gamma)
            dream = Updates(DreamEnv(task), controller_for(task), config, 0)
            run = Run(tmp_path, task, 0, RunConfig(learn=config), None)
            assert dream.config.gamma == (gamma or task.gamma)
            assert run.config.learn.gamma == (gamma or task.gamma)
    assert updates(SMALL).config.gamma == 0.995 != CAR_RACING.gamma


def test_so_is_how_long_a_draw_is_held():
    for task, repeat in ((TAKE_COVER, 4), (CAR_RACING, 1), (None, 1)):
        assert SMALL.of(task).action_repeat == repeat
        assert dataclasses.replace(SMALL, action_repeat=8).of(task).action_repeat == 8


@dataclasses.dataclass(frozen=True)
class Listed(Balance):
    """Its observation is the last action, and the step's number."""

    def step_env(self, key, state, action, params):
        _, state, *more = super().step_env(key, state, action, params)
        x = jnp.array([action[0], state.time, 0.0])
        return x, state.replace(x=x), jnp.float32(1.0), jnp.bool_(False), {}


def test_a_draw_is_held_and_learnt_from_once():
    config = dataclasses.replace(SMALL, action_repeat=4, gamma=0.9)
    run = Updates(Listed(), CONTROLLER, config, 1)
    state = run.initial(PARAMS)
    (obs, _), (steps, reward) = run._play(
        run.key, state.network, (state.obs, state.env_state), PARAMS
    )
    assert steps.obs.shape == (4, 32, 3) and steps.drawn.shape == (4, 32)
    assert steps.value.shape == reward.shape == steps.done.shape == (16, 32)
    np.testing.assert_array_equal(steps.obs[1:, :, 1], np.repeat([[4], [8], [12]], 32, 1))
    out = CONTROLLER.outputs(state.network.weights, steps.obs)
    action = CONTROLLER.distribution.action(out, steps.drawn)[..., 0]
    np.testing.assert_allclose(steps.obs[1:, :, 0], action[:-1], rtol=1e-6)
    np.testing.assert_allclose(obs[:, 0], action[-1], rtol=1e-6)
    rows = jax.tree.map(lambda x: x[::4], (steps.value, advantages(steps, config)))
    taught = []
    run._epoch = lambda learnt, key, rows, scales: (learnt, taught.append(rows) or jnp.zeros(2))
    run.improve(state.network, state.optimiser, run.key, steps, state.scales)
    np.testing.assert_array_equal(taught[0][0].value, rows[0].ravel())
    np.testing.assert_array_equal(taught[0][1], rows[1].ravel())


@pytest.mark.slow
def test_it_learns_as_if_all_features_were_of_one_size():
    """Another unit of a feature, or another zero, changes what C weighs and not what it does."""

    @dataclasses.dataclass(frozen=True)
    class Other(Balance):
        def observe(self, key, state, action, params):
            return state.x * jnp.array([100.0, 0.01, 1.0]) + jnp.array([0.0, 0.0, 30.0])

        def reset_env(self, key, params):
            _, state = super().reset_env(key, params)
            return self.observe(key, state, None, params), state

        def step_env(self, key, state, action, params):
            _, state, *more = super().step_env(key, state, action, params)
            return self.observe(key, state, None, params), state, *more

    for hidden in (0, 4):
        distribution = CONTROLLER.distribution
        controller = (
            MLPController(3, distribution, 4)
            if hidden
            else LinearController(3, distribution, bias=True)
        )
        found = []
        for env in (Balance(), Other()):
            run = Updates(env, controller, SMALL, 1)
            state = run.initial(PARAMS)
            begun = np.array(state.network.weights)
            for step in range(3):
                state, _, _ = run(state, step, PARAMS)
            obs = env.observe(None, state.env_state, None, None)
            found.append(
                (controller.outputs(state.network.weights, obs), critic(state.network, obs))
            )
            assert np.abs(state.network.weights - begun).max() > 1e-5
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, rtol=0.01, atol=1e-4)


def test_a_feature_that_stays_the_same_leaves_all_finite():
    run = Updates(Listed(), CONTROLLER, SMALL, 1)  # its third is always 0, but at first
    state = run.initial(PARAMS)
    steps = run._play(run.key, state.network, (state.obs, state.env_state), PARAMS)[1][0]
    scales = scales_of(jax.tree.map(lambda x: x[1:], steps))
    assert 0 < scales.std[2] < scales.std[0]
    for leaf in jax.tree.leaves(run.rescaled(state.network, scales)):
        assert np.isfinite(leaf).all()


def test_a_given_controller_is_not_rescaled():
    start = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(updates().initial(PARAMS, start).network.weights, start)


def played(run, network, params, loop):
    """The first of the `Steps`, and its reward, [E] of each."""
    found = run._play(run.key, network, loop, params)[1]
    return jax.tree.map(lambda x: x[0], found)


def test_what_is_cut_would_have_earned_what_the_critic_says():
    run = updates(dataclasses.replace(SMALL, gamma=0.9))
    cap = PARAMS.replace(max_steps_in_episode=jnp.int32(1))
    state = run.initial(cap)
    middle = state.env_state.replace(x=jnp.zeros_like(state.env_state.x))  # far from an end
    network = state.network.replace(body_bias=jnp.full(64, 9.0), value=jnp.full(64, 0.5 / 64))
    steps, reward = played(run, network, cap, (state.obs, middle))
    np.testing.assert_array_equal(steps.done, 1)
    np.testing.assert_allclose(steps.next_value, 0.5, rtol=1e-4)
    np.testing.assert_allclose(steps.reward, reward * 0.1, rtol=1e-6)


def test_what_follows_an_end_is_nothing():
    """Of a game that tells no chance of its ends."""
    run = updates()
    state = run.initial(PARAMS)
    edge = state.env_state.replace(x=jnp.full_like(state.env_state.x, 9.0))
    network = state.network.replace(body_bias=jnp.full(64, 9.0), value=jnp.full(64, 0.5 / 64))
    steps, _ = played(run, network, PARAMS, (state.obs, edge))
    np.testing.assert_array_equal(steps.done, 1)
    np.testing.assert_array_equal(steps.next_value, 0)


@pytest.mark.slow
def test_what_follows_counts_by_its_chance_whatever_was_drawn(world):
    """In a dream, where a step that was survived by luck is worth no more than one that was not."""
    loaded = load_world(world)
    params = loaded.params().replace(death_threshold=0.0)  # every other step ends a dream
    once = dataclasses.replace(SMALL, action_repeat=1)
    run = Updates(loaded.env(), loaded.controller(), once, 0)
    state = run.initial(params)
    blank = {"body": jnp.zeros_like(state.network.body), "body_bias": jnp.full(64, 9.0)}
    network = state.network.replace(value=jnp.full(64, 0.5 / 64), **blank)
    steps, _ = played(run, network, params, (state.obs, state.env_state))
    out = run.controller.outputs(network.weights, steps.obs)
    action, before = run.controller.distribution.action(out, steps.drawn), state.env_state
    _, found = params.memory(before.carry, before.z, action, before.time)
    survival = 1 - jax.nn.sigmoid(total_logit(found.end))
    np.testing.assert_allclose(steps.next_value, 0.5 * survival, rtol=1e-4)
    assert 0 < steps.done.sum() < len(steps.done)


def test_dreams_of_moments_begin_anew_for_every_update():
    ages = {}
    for branched in (False, True):
        run = updates(dataclasses.replace(SMALL, branched=branched))
        state = run.initial(PARAMS)
        state = state.replace(network=state.network.replace(weights=jnp.array([-3.0, 0.0, 0.0])))
        for step in range(2):
            state, _, _ = run(state, step, PARAMS)
        ages[branched] = np.asarray(state.env_state.time)
    assert ages[False].max() > SMALL.num_steps
    assert ages[True].max() == SMALL.num_steps


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"num_minibatches": 7}, "=7 does not divide num_envs x num_steps / action_repeat = 512 d"),
        ({"action_repeat": 3}, "action_repeat=3 does not divide num_steps = 16; choose a divisor"),
        ({"action_repeat": 0}, "action_repeat must be at least 1, got 0"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\), got 0.0"),
        ({"averaging": 1.0}, r"averaging must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
