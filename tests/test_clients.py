"""Other people's agents, unpatched, learn in a dream; each runs where it is installed.

`pip install -e '.[test,clients]'` installs all of them.
"""

import dataclasses
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.problems.rl.gymnax import GymnaxProblem
from flax import linen as nn
from flax import nnx

import dreamjax
from dreamjax.dream.exported import export_world
from dreamjax.dream.gymnax_env import legacy
from dreamjax.dream.world import World
from dreamjax.memory.lstm import MDNRNN
from dreamjax.tasks import TAKE_COVER
from dreamjax.vision.model import VAE
from experiments import purejaxrl

ID = "DreamTakeCover-v1"
RIGHT = 2  # the discrete action that kills in the probe


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """A world of one chance of death a step: 0.993 going right, 0.047 staying, 2e-5 going left."""
    memory, H = MDNRNN(TAKE_COVER, rngs=nnx.Rngs(0)), TAKE_COVER.hidden_size
    action, unit = TAKE_COVER.latent_size, 0
    memory.lstm_kernel[...] = memory.lstm_kernel[...].at[:, unit::H].set(0.0)
    memory.lstm_kernel[...] = memory.lstm_kernel[...].at[action, H + unit].set(5.0)
    memory.lstm_bias[...] = memory.lstm_bias[...].at[unit::H].set(jnp.array([9.0, 0.0, -9.0, 9.0]))
    death = jnp.zeros(H).at[unit].set(8.0)
    memory.head_kernel[...] = memory.head_kernel[...].at[:, -1].set(death)
    mu = jax.random.normal(jax.random.key(0), (5, TAKE_COVER.latent_size))
    deaths = {"death_threshold": 3.0, "death_noise": 1.0}
    world = World(TAKE_COVER, VAE(64, rngs=nnx.Rngs(1)), memory, mu, mu, **deaths)
    folder = tmp_path_factory.mktemp("probe")
    export_world(folder, world)
    return str(folder)


@pytest.mark.slow
def test_the_probe_kills_to_the_right(probe):
    env, params = dreamjax.make(ID, world=probe, actions="discrete")
    steps = 60

    def lived(action):
        def step(loop, key):
            state, alive = loop
            _, state, _, dead, _ = env.step_env(key, state, action, params)
            return (state, alive & ~dead), alive

        _, state = env.reset(jax.random.key(0), params)
        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (state, jnp.bool_(True)), keys)[1].sum()

    left, stay, right = (int(lived(jnp.int32(action))) for action in range(3))
    assert right < 5 < left == steps and stay < steps


@pytest.mark.slow
def test_evosax_plays_the_dream_by_its_own_gymnax_problem(probe):
    class Policy(nn.Module):
        @nn.compact
        def __call__(self, obs, key):
            return jnp.tanh(self.param("lean", nn.initializers.normal(), (1,)))

    problem = GymnaxProblem(
        ID, Policy(), episode_length=16, num_rollouts=8, env_kwargs={"world": probe}
    )
    state = problem.init(jax.random.key(0))
    leans = {"params": {"lean": jnp.array([[-2.0], [0.0], [2.0]])}}
    fitness, _, _ = problem.eval(jax.random.key(1), leans, state)
    assert fitness[0] == 16 > fitness[1] > fitness[2]


@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_rejax_learns_through_the_five_value_api(probe, actions):
    rejax = pytest.importorskip("rejax")
    env, params = dreamjax.make(ID, world=probe, actions=actions, observation="z")
    agent = rejax.get_algo("ppo").create(
        env=legacy(env),
        env_params=params,
        total_timesteps=16_384,
        eval_freq=16_384,
        num_envs=32,
        num_steps=32,
        num_minibatches=4,
        num_epochs=4,
        learning_rate=3e-3,
        gamma=0.6,
        skip_initial_evaluation=True,
    )
    trained, _ = jax.jit(agent.train)(jax.random.PRNGKey(0))
    act, obs = agent.make_act(trained), jnp.zeros((1024, 64))
    chosen = jax.vmap(act)(obs, jax.random.split(jax.random.key(1), 1024))
    deadly, chance = (chosen == RIGHT, 1 / 3) if actions == "discrete" else (chosen > 0, 1 / 2)
    # 0.107 ± 0.016 and 0.200 ± 0.016 over seeds
    assert deadly.mean() < 0.6 * chance


@pytest.mark.slow
def test_torch_learns_without_a_copy(probe):
    pytest.importorskip("torch")
    from experiments import torch_ppo

    config = torch_ppo.Config(world=probe, num_envs=32, steps=32_768, learning_rate=3e-3, gamma=0.6)
    said = []
    assert torch_ppo.learn(config, said.append) > 5 * float(said[0].split()[-1])
    rates = torch_ppo.compare(dataclasses.replace(config, num_steps=4, turns=1), said.append)
    assert set(rates) == {"jax", "numpy"} and min(rates.values()) > 0


def test_stable_baselines_checks_and_learns(probe):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_checker import check_env

    env = gymnasium.make("dreamjax/TakeCover-v1", world=probe, actions="discrete", observation="z")
    check_env(env.unwrapped)
    sizes = {"n_steps": 128, "batch_size": 64}
    agent = PPO("MlpPolicy", env, learning_rate=3e-3, gamma=0.6, seed=0, **sizes)
    agent.learn(2048)  # 3 seeds of 3 choose it never
    obs = np.zeros((64, 64), np.float32)
    chosen, _ = agent.predict(obs)
    assert np.mean(chosen == RIGHT) < 0.15


FAKE = """
import gymnax, jax, jax.numpy as jnp
{head}
def make_train(config):
    env, params = {env}
    def train(key):
        obs, state = env.reset(key, params)
        def step(state, key):
            action = env.action_space(params).sample(key)
            obs, state, reward, done, info = env.step(key, state, action, params)
            return state, dict(returned_episode=done, returned_episode_returns=reward)
        keys = jax.random.split(key, int(config["TOTAL_TIMESTEPS"]))
        return dict(metrics=jax.lax.scan(step, state, keys)[1])
    return train
"""


@pytest.mark.parametrize(
    "actions, name, head, env",
    [
        ("discrete", "ppo", "", "gymnax.make(config['ENV_NAME'])"),
        (
            "continuous",
            "ppo_continuous_action",
            "from nobodys.wrappers import EpisodeWrapper; BraxGymnaxWrapper = None",
            "BraxGymnaxWrapper(config['ENV_NAME']), None",
        ),
    ],
)
def test_purejaxrl_scripts_are_given_the_dream(
    probe, actions, name, head, env, tmp_path, monkeypatch
):
    (tmp_path / "purejaxrl").mkdir()
    (tmp_path / "purejaxrl" / f"{name}.py").write_text(FAKE.format(head=head, env=env))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(purejaxrl, "ELSEWHERE", ("nobodys", "nobodys.wrappers"))
    settings = purejaxrl.Config(source=tmp_path, actions=actions, steps=100, world=probe)
    assert purejaxrl.main(settings) == (1.0, 1.0)  # a reward a step, and deaths in every fifth
