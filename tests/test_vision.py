"""V against plain convolutions, its loss against NumPy, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from recorded import write

from dreamjax.fidelity.compare import is_of
from dreamjax.tasks import TAKE_COVER, Colour
from dreamjax.training import checkpoint
from dreamjax.training.logbook import Logbook
from dreamjax.vision import layers, training
from dreamjax.vision import model as vision
from dreamjax.vision.model import VAE
from dreamjax.vision.training import VisionConfig, train_vision, vae_loss
from experiments import vision_ablation

Z = TAKE_COVER.latent_size
LAYOUT = ("NHWC", "HWIO", "NHWC")
CONFIG = VisionConfig(
    steps=4,
    batch_size=4,
    learning_rate=1e-3,
    final_learning_rate=1e-3,
    bfloat16=False,
    steps_per_call=2,
)


def blank():
    return training._untrained(Z, jax.random.key(3))


@functools.cache
def model():
    """A VAE whose biases are not zero, so that a forgotten one is seen."""
    vae = blank()
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
    vae = blank()
    for layer, fan in (
        (vae.conv2, 16 * (32 + 64)),
        (vae.deconv3, 36 * (32 + 64)),
        (vae.mu, 1024 + Z),
    ):
        bound = (6 / fan) ** 0.5
        assert 0.99 * bound < float(jnp.abs(layer.kernel[...]).max()) <= bound
        assert not layer.bias[...].any()


def in_training(vae, x):
    return vae.posterior(vision.images(x))


@pytest.mark.numerics
@pytest.mark.parametrize("encoder", [VAE.encode, in_training])
def test_encoder_equals_plain_convolutions_and_so_do_its_gradients(encoder):
    x = frames() / np.float32(255)
    weight = jax.random.normal(jax.random.key(5), (2, 3, Z))

    def run(encode):
        def loss(vae, x):
            outputs = jnp.stack(encode(vae, x))
            return jnp.sum(outputs * weight), outputs

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(model(), x)

    assert_close(run(encoder), run(plain_encode))


@pytest.mark.numerics
def test_decoder_equals_plain_transposed_convolutions_and_so_do_its_gradients():
    z = jax.random.normal(jax.random.key(2), (3, Z))
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


def still(first, bfloat16=False):
    """Two training steps from step `first` on that move next to nothing: `(state, metrics)`."""
    state = training.initial_state(Z, jax.random.key(0))
    batches = frames(8).reshape(2, 4, 64, 64, 3)
    dtype = jnp.dtype(jnp.bfloat16 if bfloat16 else jnp.float32)
    config = VisionConfig(learning_rate=1e-20, final_learning_rate=1e-20)
    return training.updates(
        state, jax.random.key(0), first, batches, config=config, task=TAKE_COVER, dtype=dtype
    )


@pytest.mark.slow
@pytest.mark.numerics
def test_bfloat16_products_give_nearly_the_same_loss_and_gradients():
    (exact, exact_metrics), (half, half_metrics) = still(0), still(0, bfloat16=True)
    np.testing.assert_allclose(half_metrics["loss"], exact_metrics["loss"], rtol=5e-3)
    means = (jax.tree.leaves(state.optimizer.mu) for state in (half, exact))
    for a, b in zip(*means, strict=True):  # Adam's mean gradients
        a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
        assert a @ b > 0.98 * np.linalg.norm(a) * np.linalg.norm(b) > 0


@pytest.mark.slow
def test_noise_is_new_in_every_step():
    losses = {float(still(first)[1]["reconstruction"]) for first in (0, 2, 4)}
    assert len(losses) == 3


@pytest.mark.numerics
def test_loss_equals_numpy():
    key, vae = jax.random.key(4), nnx.clone(model())
    vae.logvar.bias[...] *= 7
    floored = []
    for scale, beta in ((1, 1.0), (30, 0.1)):
        x = frames() / np.float32(255) * np.float32([1, 1, scale])[:, None, None, None]
        mu, logvar = (np.asarray(part, np.float64) for part in plain_encode(vae, x))
        z = mu + np.exp(logvar / 2) * np.asarray(jax.random.normal(key, mu.shape))
        error = ((np.asarray(plain_decode(vae, jnp.float32(z))) - x) ** 2).sum((1, 2, 3)).mean()
        divergence = (mu**2 + np.exp(logvar) - 1 - logvar).sum(1) / 2
        kl = np.maximum(divergence, Z / 2).mean()
        loss, metrics = jax.jit(functools.partial(vae_loss, beta=beta))(vae, key, x)
        np.testing.assert_allclose(metrics["reconstruction"], error, rtol=1e-5)
        np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
        np.testing.assert_allclose([loss, metrics["loss"]], error + beta * kl, rtol=1e-5)
        floored.append(int((divergence < Z / 2).sum()))
    assert floored == [3, 2], "the floor holds for each frame, not for their mean"


def test_salient_pixels_weigh_more():
    bright = frames().copy()
    bright[:, 10:13, 20, 1] = 255
    dim = np.where(bright == 255, 0, bright // 2).astype(np.uint8)

    def loss(x, weight):
        limits = {"salient": Colour(0, 1, 0, 0.9), "salient_weight": weight}
        return jax.jit(functools.partial(vae_loss, **limits))(model(), jax.random.key(0), x)

    @jax.jit
    def squared_error(vae, x):
        mu, logvar = plain_encode(vae, x)
        z = mu + jnp.exp(logvar / 2) * jax.random.normal(jax.random.key(0), mu.shape)
        return (plain_decode(vae, z) - x) ** 2

    def salient_error(x):
        error = np.asarray(squared_error(model(), x / np.float32(255)))
        return error[x[..., 1] > 0.9 * 255].sum() / len(x)

    (plain, metrics), (weighted, same) = loss(bright, 1.0), loss(bright, 5.0)
    np.testing.assert_allclose(metrics["salient"], salient_error(bright), rtol=1e-4)
    np.testing.assert_allclose(plain, metrics["reconstruction"] + metrics["kl"], rtol=1e-5)
    np.testing.assert_allclose(weighted - plain, 4 * metrics["salient"], rtol=1e-3)
    assert metrics["reconstruction"] == same["reconstruction"] > metrics["salient"] > 0
    assert loss(dim, 5.0)[1]["salient"] == 0


def test_a_reader_counts_by_hand():
    x = (frames() // 2).copy()
    x[0, 10:13, 20:22, 1], x[0, 40, 63, 1], x[2, :, 0, 1] = 255, 255, 255
    shown = np.zeros((3, training.BANDS))
    shown[0, 10], shown[0, 31], shown[2, 0] = np.log([7, 2, 65])
    there = Colour(0, 1, 0, 0.9).where(vision.images(x), rows=0)
    np.testing.assert_allclose(training.bands(there), shown, rtol=1e-6)
    key, reader = jax.random.key(0), layers.Layer((Z, 32), 32, rngs=nnx.Rngs(5))
    reader.bias[...] += 0.3
    how = {"salient": Colour(0, 1, 0, 0.9), "reader": reader, "reader_weight": 4.0}
    loss, metrics = jax.jit(functools.partial(vae_loss, **how))(model(), key, x)
    mu, logvar = plain_encode(model(), x / np.float32(255))
    z = mu + jnp.exp(logvar / 2) * jax.random.normal(key, mu.shape)
    error = ((z @ reader.kernel[...] + reader.bias[...] - shown) ** 2).sum() / 3
    np.testing.assert_allclose(
        loss, metrics["reconstruction"] + metrics["kl"] + 4 * error, rtol=1e-4
    )
    np.testing.assert_allclose(metrics["unread"], error / shown.var(axis=0).sum(), rtol=1e-4)


def test_a_colour_is_one_side_of_a_plane():
    colour = Colour(0.5, -1, 2, 0.3)
    x = np.random.default_rng(0).random((4, 64, 64, 3), np.float32)
    red, green, blue = np.moveaxis(x, -1, 0)
    wanted = 0.5 * red - green + 2 * blue > 0.3
    near = np.abs(0.5 * red - green + 2 * blue - 0.3) < 1e-5
    found = colour.where(vision.images(x), rows=0).transpose(2, 0, 1)
    np.testing.assert_array_equal(found | near, wanted | near)
    np.testing.assert_array_equal(is_of(colour, x) | near, wanted | near)
    assert 0.1 < wanted.mean() < 0.9
    assert not is_of(None, x).any()


def test_the_same_things_are_found_in_a_flash():
    colour = Colour(0, 1, 0, 0.5, flash=(1, -1, 0))
    calm = np.random.default_rng(0).random((6, 64, 64, 3), np.float32) * 0.45
    calm[..., 0] = calm[..., 1]
    calm[1:, 10:13, 20:22, 1], calm[1:, 10:13, 20:22, 0] = 0.9, 0.95
    share = np.float32([0, 0, 0.1, 0.4, 0.8, 1])[:, None, None, None]
    x = (1 - share) * calm + share * np.float32([1, 0, 0])
    wanted = np.zeros((6, 64, 64), bool)
    wanted[1:5, 10:13, 20:22] = True  # nothing is left to see in the last
    found = colour.where(vision.images(x), rows=0).transpose(2, 0, 1)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(is_of(colour, x), wanted)
    np.testing.assert_array_equal(is_of(colour, x[3]), wanted[3])
    blind = is_of(dataclasses.replace(colour, flash=None), x)
    assert blind[:3].sum() == wanted[:3].sum() and not blind[4].any()


def test_latents_are_drawn_as_frames():
    class Grey:  # as bright as the first latent
        def decode(self, z):
            return jnp.zeros((len(z), 64, 64, 3)) + z[:, :1, None, None]

    jax.tree_util.register_static(Grey)
    drawn = vision.drawn(Grey(), jnp.array([[0.0], [0.2], [0.5], [1.0]]))
    assert drawn.shape == (4, 64, 64, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:, 0, 0, 0], [0, 51, 128, 255])


def test_learning_rate_falls_along_a_cosine():
    config = VisionConfig(steps=100, learning_rate=1e-3, final_learning_rate=1e-5)
    rates = [float(config.rate(step)) for step in (0, 50, 100)]
    np.testing.assert_allclose(rates, [1e-3, (1e-3 + 1e-5) / 2, 1e-5], rtol=1e-4)
    assert float(VisionConfig().rate(1000)) == np.float32(1e-4), "the paper's is constant"


def test_wrong_frames_are_refused_in_one_line():
    for bad in (np.zeros((2, 64, 64, 3), np.int32), np.zeros((64, 64, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"frames must be uint8 .* got .*; pass") as error:
            model().encode(bad)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        VisionConfig(batch_size=0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two shards of eight frames in all."""
    directory = tmp_path_factory.mktemp("rollouts")
    for number, length in enumerate((5, 3)):
        write(directory, frames(8)[number * 5 :][:length], number)
    return directory


def test_what_moves_or_is_far_wrong_weighs_more_where_no_colour_is_told():
    other = np.full((2, 64, 64, 3), 128, np.uint8)  # about what an untrained V draws
    x, vae, key = other.copy(), model(), jax.random.key(0)
    x[0, 30:33, 30:32, 1], x[1, 40:], x[1, :9] = 0, 90, 127
    moves = np.zeros((2, 64, 64), bool)
    moves[0, 30:33, 30:32] = moves[1, 40:] = True
    loss, metrics = vae_loss(vae, key, x, others=other, salient_weight=10.0)
    mu, logvar = plain_encode(vae, x / np.float32(255))
    z = mu + jnp.exp(logvar / 2) * jax.random.normal(key, mu.shape)
    errors = np.asarray((vae.decode(z) - x / np.float32(255)) ** 2).sum(axis=-1)
    large = errors > 9 * errors.mean(axis=(1, 2), keepdims=True)
    weight = np.where(large, 1, moves * (1 - moves.mean(axis=(1, 2), keepdims=True)))
    assert large[0, 30:33, 30:32].all() and not large[1].any()
    those = (weight * errors).sum() / 2
    np.testing.assert_allclose(metrics["salient"], those, rtol=1e-4)
    np.testing.assert_allclose(
        loss, metrics["reconstruction"] + 9 * those + metrics["kl"], rtol=1e-4
    )
    still = vae_loss(vae, key, x, salient_weight=10.0)[1]["salient"]
    np.testing.assert_allclose(still, errors[large].sum() / 2, rtol=1e-4)


def test_it_begins_with_the_colour_of_the_pictures():
    colour = np.array([0.0, 0.5, 0.99])
    begun = training.of_colour(blank(), colour)
    drawn = np.asarray(begun.decode(jnp.zeros((1, Z)))).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(drawn, [0.02, 0.5, 0.98], atol=1e-3)
    assert not blank().deconv4.bias[...].any(), "what it was made of stays"


@pytest.mark.slow
def test_what_moves_on_a_white_ground_is_seen(tmp_path):
    places = np.random.default_rng(0).integers(0, 44, 256)
    x = np.full((256, 64, 64, 3), 255, np.uint8)
    for picture, place in zip(x, places, strict=True):
        picture[30:50, place : place + 20] = 0
    write(tmp_path, x)
    trained = train(tmp_path, dataclasses.replace(CONFIG, steps=80, batch_size=8))
    shown = np.asarray(trained.decode(trained.encode(x[:64])[0]))
    error = ((shown - x[:64] / 255) ** 2).sum(axis=(1, 2, 3)).mean()
    assert error < 500  # 81; 748 of the mean picture; 1,200 of white, which V begun grey draws


def train(recorded, config, store=None):
    return train_vision(TAKE_COVER, recorded, config, 0, store=store)


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("bfloat16", [False, True])
def test_it_learns_a_handful_of_frames(recorded, bfloat16):
    @jax.jit
    def error(vae):
        return vae_loss(vae, jax.random.key(0), frames(8))[1]["reconstruction"]

    trained = train(recorded, dataclasses.replace(CONFIG, steps=30, bfloat16=bfloat16))
    assert error(trained) < 0.75 * error(blank())  # 0.59, and 0.43 after 60 steps


@pytest.mark.slow
def test_v_is_trained_to_be_read_and_resumes_with_its_reader(recorded, tmp_path):
    read = dataclasses.replace(CONFIG, reader_weight=5.0)
    stages = [train(recorded, read, checkpoint.Store(tmp_path / "whole"))]
    store = checkpoint.Store(tmp_path / "parts")
    train(recorded, dataclasses.replace(read, steps=2), store)
    stages.append(train(recorded, read, store))
    assert checkpoint.digest(stages[0]) == checkpoint.digest(stages[1])
    assert checkpoint.digest(stages[0]) != checkpoint.digest(train(recorded, CONFIG))
    loaded, _ = store.load(jax.eval_shape(blank), prefix=".model")
    assert checkpoint.digest(loaded) == checkpoint.digest(stages[0])
    task = dataclasses.replace(TAKE_COVER, salient=None)
    with pytest.raises(ValueError, match="take-cover has no salient colour to read; leave out"):
        train_vision(task, recorded, read, 0, log=Logbook(quiet=True))


@pytest.mark.slow
def test_what_the_divergence_counts_is_trained_with(recorded, monkeypatch):
    monkeypatch.setattr(
        "dreamjax.vision.training.KL_FLOOR", 0.0
    )  # below it nothing is learnt of it
    one, other = (
        train(recorded, dataclasses.replace(CONFIG, steps=1, beta=beta)) for beta in (0.9, 0.1)
    )
    assert checkpoint.digest(one) != checkpoint.digest(other)


@pytest.mark.slow
@pytest.mark.numerics
def test_a_resumed_run_repeats_an_unbroken_one(recorded, tmp_path):
    whole, store = train(recorded, CONFIG), checkpoint.Store(tmp_path)
    train(recorded, dataclasses.replace(CONFIG, steps=2), store)
    assert checkpoint.digest(train(recorded, CONFIG, store)) == checkpoint.digest(whole)
    template = jax.eval_shape(blank)
    loaded, _ = store.load(template, prefix=".model")
    assert checkpoint.digest(loaded) == checkpoint.digest(whole)


@pytest.mark.slow
def test_the_ablation_judges_each_v_trained_its_own_way(monkeypatch, tmp_path):
    trained = []

    def train(task, directory, settings, seed, *, log):
        assert (seed, task, directory) == (0, TAKE_COVER, tmp_path)
        trained.append((settings.final_learning_rate, settings.salient_weight))
        return jax.tree.map(lambda x: x + 1e-3 * len(trained), blank())

    monkeypatch.setattr(vision_ablation, "train_vision", train)
    monkeypatch.setattr(vision_ablation, "unseen_frames", lambda episodes: frames(episodes))
    found = vision_ablation.main(vision_ablation.Config(tmp_path, episodes=4))
    assert trained == [(1e-3, 1.0), (1e-3, 10.0), (2e-5, 1.0), (2e-5, 10.0)]
    assert len({row["error"] for row in found.values()}) == len(found) == 5
