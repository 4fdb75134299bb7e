"""V against plain convolutions, its loss against NumPy, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from dreamjax import checkpoint, rollouts, vision
from dreamjax.logbook import Logbook
from dreamjax.tasks import TAKE_COVER
from dreamjax.vision import VAE, VisionConfig, train_vision, vae_loss

LAYOUT = ("NHWC", "HWIO", "NHWC")
CONFIG = VisionConfig(steps=4, batch_size=4, learning_rate=1e-3, bfloat16=False, steps_per_call=2)


def blank(latent_size):
    return vision._untrained(latent_size, jax.random.key(3))


@functools.cache
def model():
    """A VAE whose biases are not zero, so that a forgotten one is seen."""
    vae = blank(8)
    keys = iter(jax.random.split(jax.random.key(1), 30))
    return jax.tree.map(
        lambda x: 0.1 * jax.random.normal(next(keys), x.shape) if x.ndim == 1 else x, vae
    )


@functools.cache
def frames(batch=3):
    """Random pictures of four coloured fields, brighter and brighter, uint8 [B, 64, 64, 3]."""
    coarse = np.random.default_rng(0).random((batch, 2, 2, 3))
    coarse *= np.linspace(0.2, 1, batch)[:, None, None, None]
    return (np.kron(coarse, np.ones((1, 32, 32, 1))) * 255).astype(np.uint8)


def plain_encode(vae, x):
    for layer in (vae.conv1, vae.conv2, vae.conv3, vae.conv4):
        x = lax.conv_general_dilated(
            x, layer.kernel[...], (2, 2), "VALID", dimension_numbers=LAYOUT
        )
        x = jax.nn.relu(x + layer.bias[...])
    x = x.reshape(len(x), 1024)
    return [x @ layer.kernel[...] + layer.bias[...] for layer in (vae.mu, vae.logvar)]


def plain_decode(vae, z):
    x = (z @ vae.dense.kernel[...] + vae.dense.bias[...]).reshape(-1, 1, 1, 1024)
    for layer in (vae.deconv1, vae.deconv2, vae.deconv3, vae.deconv4):
        x = lax.conv_transpose(
            x, layer.kernel[...], (2, 2), "VALID", dimension_numbers=LAYOUT, transpose_kernel=True
        )
        x = x + layer.bias[...]
        x = jax.nn.sigmoid(x) if layer is vae.deconv4 else jax.nn.relu(x)
    return x


def assert_close(found, wanted, tolerance=1e-4):
    """Every array within `tolerance` of the largest number of its counterpart."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize(("latent_size", "parameters"), [(64, 4_446_915), (32, 4_348_547)])
def test_parameter_counts_are_the_papers(latent_size, parameters):
    vae = nnx.eval_shape(lambda: VAE(latent_size, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(vae)) == parameters


def test_initial_kernels_are_glorot_uniform_and_biases_zero():
    vae = blank(8)
    for layer, fan in ((vae.conv2, 16 * (32 + 64)), (vae.deconv3, 36 * (32 + 64)), (vae.mu, 1032)):
        bound = (6 / fan) ** 0.5
        assert 0.99 * bound < float(jnp.abs(layer.kernel[...]).max()) <= bound
        assert not layer.bias[...].any()


def test_encoder_equals_plain_convolutions_and_so_do_its_gradients():
    x = frames() / np.float32(255)
    weight = jax.random.normal(jax.random.key(5), (2, 3, 8))

    def run(encode):
        def loss(vae, x):
            outputs = jnp.stack(encode(vae, x))
            return jnp.sum(outputs * weight), outputs

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(model(), x)

    assert_close(run(VAE.encode), run(plain_encode))


def test_decoder_equals_plain_transposed_convolutions_and_so_do_its_gradients():
    z = jax.random.normal(jax.random.key(2), (3, 8))
    weight = jax.random.normal(jax.random.key(5), (3, 64, 64, 3))

    def run(decode):
        def loss(vae, z):
            picture = decode(vae, z)
            return jnp.sum(picture * weight), picture

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(model(), z)

    assert_close(run(VAE.decode), run(plain_decode))


def test_bytes_and_floats_encode_alike():
    encode = jax.jit(VAE.encode)
    assert_close(encode(model(), frames()), encode(model(), frames() / np.float32(255)), 1e-6)


def test_bfloat16_products_are_close_to_float32():
    def loss(model):
        return vae_loss(model, jax.random.key(0), frames())[0]

    run = jax.jit(jax.value_and_grad(loss))
    (exact, d_exact), (half, d_half) = run(model()), run(vision._halved(model()))
    np.testing.assert_allclose(half, exact, rtol=5e-3)
    for a, b in zip(jax.tree.leaves(d_half), jax.tree.leaves(d_exact), strict=True):
        a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
        assert a @ b > 0.98 * np.linalg.norm(a) * np.linalg.norm(b)


def test_loss_equals_numpy():
    key = jax.random.key(4)
    x = frames() / np.float32(255) * np.float32([1, 1, 30])[:, None, None, None]
    mu, logvar = (np.asarray(part, np.float64) for part in plain_encode(model(), x))
    z = mu + np.exp(logvar / 2) * np.asarray(jax.random.normal(key, mu.shape))
    error = ((np.asarray(plain_decode(model(), jnp.float32(z))) - x) ** 2).sum((1, 2, 3)).mean()
    divergence = (mu**2 + np.exp(logvar) - 1 - logvar).sum(1) / 2
    assert divergence.min() < 4 < divergence.max(), "the floor of 8 / 2 must bite for some"
    kl = np.maximum(divergence, 4).mean()
    loss, metrics = vae_loss(model(), key, x)
    np.testing.assert_allclose(metrics["reconstruction"], error, rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose([loss, metrics["loss"]], error + kl, rtol=1e-4)


def test_wrong_frames_are_refused_in_one_line():
    for bad in (np.zeros((2, 64, 64, 3), np.int32), np.zeros((64, 64, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"frames must be uint8 .* got .*; pass") as error:
            model().encode(bad)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="batch_size must be more than 0, got 0"):
        VisionConfig(batch_size=0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two shards of eight frames in all."""
    directory = tmp_path_factory.mktemp("rollouts")
    for number, length in enumerate((5, 3)):
        shard = rollouts.Rollouts(
            frames=frames(8)[number * 5 :][:length],
            actions=np.zeros((length, 1), np.float32),
            rewards=np.ones(length, np.float32),
            lengths=np.array([length], np.int32),
            terminated=np.array([True]),
            seeds=np.array([number]),
            profile="test",
        )
        rollouts.write(directory / f"shard-{number:05d}.npz", shard)
    return directory


def train(recorded, config, store=None):
    return train_vision(0, TAKE_COVER, recorded, config, log=Logbook(quiet=True), store=store)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_it_learns_a_handful_of_frames(recorded, bfloat16):
    def error(vae):
        return vae_loss(vae, jax.random.key(0), frames(8))[1]["reconstruction"]

    trained = train(recorded, dataclasses.replace(CONFIG, steps=60, bfloat16=bfloat16))
    assert error(trained) < 0.5 * error(blank(TAKE_COVER.latent_size))


def test_a_resumed_run_repeats_an_unbroken_one(recorded, tmp_path):
    whole, store = train(recorded, CONFIG), checkpoint.Store(tmp_path)
    train(recorded, dataclasses.replace(CONFIG, steps=2), store)
    assert checkpoint.digest(train(recorded, CONFIG, store)) == checkpoint.digest(whole)
    template = jax.eval_shape(lambda: blank(TAKE_COVER.latent_size))
    loaded, _ = store.load(template, prefix=".model")
    assert checkpoint.digest(loaded) == checkpoint.digest(whole)
