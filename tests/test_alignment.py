"""Training and dreaming are one step: proven on recorded play of the real game."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from untrained import random_memory

from dreamjax.dream.env import DreamEnv, EnvState, env_params
from dreamjax.game.collecting import collect
from dreamjax.game.rollouts import read, shard_paths
from dreamjax.memory.batches import gather, on_device
from dreamjax.memory.latents import encode_rollouts, read_latents
from dreamjax.memory.loss import predict_sequences
from dreamjax.tasks import TAKE_COVER
from dreamjax.training.logbook import Logbook
from dreamjax.vision.model import VAE

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Real episodes, as frames and as latents of an untrained V."""
    directory = tmp_path_factory.mktemp("recorded")
    collect(TAKE_COVER, directory / "rollouts", 3, seed=4)
    vae = VAE(TAKE_COVER.latent_size, rngs=nnx.Rngs(0))
    encode_rollouts(vae, directory / "rollouts", directory / "latents", log=Logbook(quiet=True))
    (shard,) = shard_paths(directory / "rollouts")
    return read(shard), read_latents(directory / "latents"), vae


def test_latents_stay_beside_their_frames_and_actions(recorded):
    frames, latents, vae = recorded
    for i in (0, int(frames.lengths[0]) - 1, len(frames.frames) - 1):
        mu, _ = vae.encode(frames.frames[i : i + 1])
        np.testing.assert_allclose(latents.mu[i], mu[0], atol=5e-3)
        np.testing.assert_array_equal(latents.actions[i], frames.actions[i])
    np.testing.assert_array_equal(latents.terminated, frames.terminated)


def test_the_training_step_and_the_dream_step_predict_alike(recorded):
    _, latents, _ = recorded
    memory = random_memory(TAKE_COVER)
    ends = np.cumsum(latents.lengths)
    index = np.arange(ends[1])[:, None]  # two episodes, one after the other, in one lane
    batch = jax.jit(gather)(
        on_device(latents, 1), jax.random.key(0), index, np.ones((len(index) - 1, 1), bool)
    )
    _, nll, found = jax.jit(predict_sequences)(memory, memory.initial_carry((1,)), batch)
    logit = found.end[..., 0]

    first = int(ends[0])
    assert np.flatnonzero(batch.age[:, 0] == 0).tolist() == [0, first]
    assert np.flatnonzero(batch.end[:, 0, 0]).tolist() == [first - 1]  # the fatal action's step
    assert latents.terminated[0]

    mu = jnp.zeros((1, TAKE_COVER.latent_size))
    env, params = DreamEnv(TAKE_COVER), env_params(TAKE_COVER, memory, mu, mu, temperature=1.0)
    dream = jax.jit(lambda *step: env.transition(*step))
    predict = jax.jit(memory.__call__)
    noise = env.draw_noise(jax.random.key(1))
    carry = memory.initial_carry()
    for t in range(first - 3, first + 3):
        time = t if t < first else t - first
        if t == first - 3:  # reach the end of the first episode
            carry = _replay(memory, batch, t)
        state = EnvState(time=jnp.int32(time), z=batch.z[t, 0], carry=carry)
        action = batch.action[t, 0]
        _, prediction = predict(carry, state.z, action, state.time)
        mixture = prediction.latent
        np.testing.assert_allclose(prediction.end, logit[t], atol=1e-4)
        if batch.follows[t, 0]:
            np.testing.assert_allclose(
                -mixture.log_prob(batch.z[t + 1, 0]).mean(), nll[t, 0], atol=1e-4
            )
        _, after, _, terminated, _ = dream(noise, state, action, params)
        assert bool(terminated) == bool(logit[t, 0] > 0)
        expected = mixture.sample_from(noise.uniform, noise.normal, 1.0, noise.event)
        np.testing.assert_allclose(after.z, expected, atol=1e-5)
        carry = after.carry


def _replay(memory, batch, steps):
    """M's carry after `steps` recorded steps, one call at a time."""

    def step(carry, now):
        z, action, age = now
        return memory(carry, z, action, age)[0], None

    inputs = (batch.z[:steps, 0], batch.action[:steps, 0], batch.age[:steps, 0])
    return jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs)[0])(
        memory.initial_carry(), inputs
    )
