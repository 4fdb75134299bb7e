"""Every compiled program of every phase lowers for a GPU and a TPU, without one.

Programs that devices share lower alike for one and, with
`XLA_FLAGS=--xla_force_host_platform_device_count=8`, for eight.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from dreamjax import agent
from dreamjax.controller.evolution import EvolveConfig, Generations
from dreamjax.controller.model import controller_for
from dreamjax.controller.policy_gradient import Updates
from dreamjax.controller.ppo import LearnConfig
from dreamjax.memory import latents, training
from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.training import MemoryConfig, Trainer
from dreamjax.vision.model import VAE
from dreamjax.vision.training import VisionConfig, initial_state, updates

LEARN = LearnConfig(steps=64, num_envs=4, num_steps=4, num_minibatches=2, eval_rollouts=4)
EVOLVE = EvolveConfig(generations=2, population=4, rollouts=2, eval_rollouts=4)


@pytest.fixture(autouse=True)
def traced_for_an_accelerator(monkeypatch):
    """What is traced otherwise there is traced so here."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def lowers(program, *arguments, **keywords):
    for platform in ("cuda", "tpu"):
        found = export.export(program, platforms=[platform])(*arguments, **keywords)
        assert found.platforms == (platform,) and found.mlir_module()


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_generations_and_evaluations(dream, dtype):
    env, params = dream
    params = dataclasses.replace(params, memory=training.cast(params.memory, dtype))
    controller = controller_for(env.task)
    run = Generations(env, params, controller, EVOLVE, 0)
    state = run.initial()
    lowers(run.generations, state, jnp.int32(0), params, count=2)
    lowers(run.evaluation, state, jnp.int32(0), params)


@pytest.mark.parametrize("hidden", [0, 8])
def test_updates_of_a_policy_gradient(dream, hidden):
    env, params = dream
    run = Updates(env, controller_for(env.task, hidden=hidden), LEARN, 0)
    lowers(run.update, run.initial(params), jnp.int32(0), params)
    lowers(run.evaluation, run.initial(params), jnp.int32(0), params)


@pytest.mark.slow
def test_updates_of_v_and_encoding(small_task):
    config = VisionConfig(steps=2, batch_size=8)
    frames = np.zeros((2, 8, 64, 64, 3), np.uint8)
    state = initial_state(small_task.latent_size, jax.random.key(0))
    given = {"config": config, "task": small_task, "dtype": jnp.dtype(jnp.bfloat16)}
    lowers(updates, state, jax.random.key(1), 0, frames, **given)
    lowers(latents._encode, state.model, frames)


@pytest.mark.parametrize("num_events", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_updates_of_m(small_task, num_events):
    config = MemoryConfig(steps=4, batch_size=2, sequence_length=8, num_events=num_events)
    rows = np.zeros((40, small_task.latent_size), np.float16)
    played = LatentSequences(
        mu=rows,
        logvar=rows,
        actions=np.zeros((40, 1), np.float32),
        rewards=np.ones(40, np.float32),
        lengths=np.full(4, 10, np.int32),
        terminated=np.ones(4, bool),
        seeds=np.arange(4),
        vision="v",
        profile=small_task.profile,
    )
    run = Trainer(small_task, played, config, 0)
    plan = run._plan(range(2))
    lowers(training._updates, run.initial(), run.frames, plan, run._key_noise, config, run.mesh)


@pytest.mark.slow
def test_a_step_awake(dream, small_task):
    env, params = dream
    policy, vision = controller_for(env.task), VAE(small_task.latent_size, rngs=nnx.Rngs(0))
    frames, age = np.zeros((2, 64, 64, 3), np.uint8), np.zeros(2, np.int32)
    carry, weights = params.memory.initial_carry((2,)), jnp.zeros(policy.num_params)
    (arrays, form), seeds = jax.tree.flatten((vision, params.memory)), np.zeros(2, np.uint32)
    now = np.arange(2), frames, seeds, age
    lowers(agent._act, policy, form, jax.random.key(0), weights, arrays, carry, *now)
