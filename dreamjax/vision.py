"""V: the convolutional VAE that turns a frame into a latent vector, and how it is trained.

"World Models" (Ha & Schmidhuber, 2018), appendix A.1; original files `doomrnn/doomrnn.py`
(`ConvVAE`) and `doomrnn/vae_train.py`.
Shapes: B batch, Z latent.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax import lax

from dreamjax.checkpoint import Store
from dreamjax.convolution import Layer
from dreamjax.devices import product_dtype
from dreamjax.frames import FrameStream
from dreamjax.logbook import Logbook
from dreamjax.settings import require_positive
from dreamjax.tasks import FRAME_SHAPE, Task
from dreamjax.training import fit

KL_FLOOR = 0.5  # nats a latent dimension: the original's kl_tolerance


class VAE(nnx.Module):
    """V: frames to latent posteriors and back.

    Convolution kernels are [height, width, in, out]; those of the transposed convolutions are
    [height, width, out, in], as TensorFlow keeps them. The dtype of a kernel is the dtype of its
    product.

    Args:
      latent_size: Z.
      rngs: its `params` stream draws the kernels.
    """

    def __init__(self, latent_size: int, *, rngs: nnx.Rngs):
        self.conv1 = Layer((4, 4, 3, 32), 32, rngs=rngs)
        self.conv2 = Layer((4, 4, 32, 64), 64, rngs=rngs)
        self.conv3 = Layer((4, 4, 64, 128), 128, rngs=rngs)
        self.conv4 = Layer((4, 4, 128, 256), 256, rngs=rngs)
        self.mu = Layer((1024, latent_size), latent_size, rngs=rngs)
        self.logvar = Layer((1024, latent_size), latent_size, rngs=rngs)
        self.dense = Layer((latent_size, 1024), 1024, rngs=rngs)
        self.deconv1 = Layer((5, 5, 128, 1024), 128, rngs=rngs)
        self.deconv2 = Layer((5, 5, 64, 128), 64, rngs=rngs)
        self.deconv3 = Layer((6, 6, 32, 64), 32, rngs=rngs)
        self.deconv4 = Layer((6, 6, 3, 32), 3, rngs=rngs)

    def encode(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The posterior of each frame.

        Args:
          frames: [B, 64, 64, 3], uint8 or floats in [0, 1].

        Returns:
          `(mu, logvar)`, float32 [B, Z] each; sigma = exp(logvar / 2).

        Raises:
          ValueError: frames of another shape or type.
        """
        return self._posterior(_images(frames))

    def decode(self, z: jax.Array) -> jax.Array:
        """The frame of each latent, [B, Z] -> float32 [B, 64, 64, 3] in [0, 1]."""
        return self._picture(z).transpose(3, 1, 2, 0)

    def _posterior(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = images
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = jax.nn.relu(layer.narrow(h))
        h = h.transpose(3, 1, 2, 0).reshape(-1, 1024)
        return self.mu.dense(h), self.logvar.dense(h)

    def _picture(self, z: jax.Array) -> jax.Array:
        h = self.dense.dense(z).T[:, None, None]  # no activation
        for layer in (self.deconv1, self.deconv2, self.deconv3):
            h = jax.nn.relu(layer.widen(h))
        return jax.nn.sigmoid(self.deconv4.widen(h))


@jax.jit
def pictures(vision: VAE, z: jax.Array) -> jax.Array:
    """`vision.decode` in one compiled call: float32 [N, 64, 64, 3] in [0, 1] of latents [N, Z]."""
    return vision.decode(z)


def drawn(vision: VAE, z: jax.Array) -> np.ndarray:
    """Frames uint8 [N, 64, 64, 3] of latents [N, Z], as the game shows them."""
    return np.asarray(jnp.round(pictures(vision, z) * 255)).astype(np.uint8)


def _images(frames: jax.Array) -> jax.Array:
    """Frames as the layers read them, [B, 64, 64, 3] -> float32 [3, 64, 64, B] in [0, 1]."""
    is_float = jnp.issubdtype(frames.dtype, jnp.floating)
    if (
        frames.ndim != 4
        or frames.shape[1:] != FRAME_SHAPE
        or not (is_float or frames.dtype == jnp.uint8)
    ):
        raise ValueError(
            f"frames must be uint8 or floats in [0, 1] of shape [B, 64, 64, 3], got "
            f"{frames.dtype}{list(frames.shape)}; pass frames as recorded"
        )
    images = jnp.transpose(frames, (3, 1, 2, 0)).astype(jnp.float32)
    return images if is_float else images / 255


def vae_loss(
    vae: VAE,
    key: jax.Array,
    frames: jax.Array,
    *,
    salient_green: float = 1.0,
    salient_weight: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared error plus the KL divergence from N(0, 1), as doomrnn.py.

    reconstruction = mean over B of sum (x' - x)^2;
    kl = mean over B of max(sum over Z of -(1 + logvar - mu^2 - exp(logvar)) / 2, Z / 2).
    Salient pixels, a few in a frame, may weigh more in the loss than the paper's 1.

    Args:
      vae: V.
      key: PRNG key; consumed.
      frames: [B, 64, 64, 3], uint8 or floats in [0, 1].
      salient_green: pixels whose green is above it are salient.
      salient_weight: what the squared error of a salient pixel counts in the loss.

    Returns:
      `(loss, metrics)` with metrics `loss`, `reconstruction` (every pixel counted once), `salient`
      (the salient pixels' part of it) and `kl`.
    """
    images = _images(frames)
    mu, logvar = vae._posterior(images)
    z = mu + jnp.exp(logvar / 2) * jax.random.normal(key, mu.shape, mu.dtype)
    errors = (vae._picture(z) - images) ** 2
    reconstruction = jnp.sum(errors) / len(frames)
    salient = jnp.sum(jnp.where(images[1] > salient_green, errors, 0.0)) / len(frames)
    divergence = -0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar), axis=1)
    kl = jnp.mean(jnp.maximum(divergence, KL_FLOOR * mu.shape[1]))
    loss = reconstruction + (salient_weight - 1) * salient + kl
    return loss, {"loss": loss, "reconstruction": reconstruction, "salient": salient, "kl": kl}


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """How V is trained; the defaults are the paper's."""

    steps: int = 308_000  # batches: 10 epochs of the paper's 3.08 million frames
    batch_size: int = 100  # frames
    learning_rate: float = 1e-4  # of Adam, at the first step
    final_learning_rate: float = 1e-4  # and at the last: a cosine between the two
    salient_weight: float = 1.0  # what an error in a pixel worth dodging counts; the paper's is 1
    bfloat16: bool | None = None  # products in bfloat16; None where the device is faster so
    steps_per_call: int = 16  # steps between two rows of metrics
    memory_gb: float = 4.0  # frames held in memory; more of them are streamed from disk

    def __post_init__(self):
        require_positive(
            self,
            "steps",
            "batch_size",
            "learning_rate",
            "final_learning_rate",
            "salient_weight",
            "steps_per_call",
            "memory_gb",
        )

    @property
    def grows(self) -> tuple[str, ...]:
        """Settings that a later call may raise: none whose rate falls over all steps."""
        return ("steps",) if self.learning_rate == self.final_learning_rate else ()

    def rate(self, step: jax.Array) -> jax.Array:
        """The learning rate of a step."""
        share = self.final_learning_rate / self.learning_rate
        return optax.cosine_decay_schedule(self.learning_rate, self.steps, share)(step)


@struct.dataclass
class State:
    """Everything training needs to go on."""

    model: VAE
    optimizer: optax.OptState


def train_vision(
    seed: int,
    task: Task,
    rollouts_directory: Path | str,
    config: VisionConfig,
    *,
    log: Logbook,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
) -> VAE:
    """Train V on recorded frames, or go on from `store`'s newest checkpoint.

    Args:
      seed: of the weights, the noise and the order of the frames.
      task: gives Z.
      rollouts_directory: shards written by `rollouts.collect`.
      config: how.
      log: receives metrics and progress.
      store: where checkpoints go; None keeps none.
      meta: written into every checkpoint.

    Raises:
      ValueError: no rollouts there.
    """
    stream = FrameStream(rollouts_directory, config.batch_size, seed, config.memory_gb * 1e9)
    key_model, key_noise = jax.random.split(jax.random.key(seed))
    dtype = product_dtype(config.bfloat16)

    ahead = {}  # frames of the call that follows, fetched while the device is at work

    def frames_from(step):
        return stream.take(step, min(config.steps_per_call, config.steps - step))

    def advance(state, step):
        frames = ahead.pop(step) if step in ahead else frames_from(step)
        state, metrics = updates(
            state, key_noise, step, frames, config=config, task=task, dtype=dtype
        )
        following = step + len(frames)
        if following < config.steps:
            ahead[following] = jax.device_put(frames_from(following))
        return state, len(frames), {name: float(value) for name, value in metrics.items()}

    return fit(
        "vision",
        initial_state(task.latent_size, key_model),
        advance,
        config.steps,
        log=log,
        store=store,
        meta=meta,
        unit="frames",
        units_per_step=config.batch_size,
    ).model


def initial_state(latent_size: int, key: jax.Array) -> State:
    """The state before the first step."""
    model = _untrained(latent_size, key)
    return State(model, optax.scale_by_adam().init(model))


@partial(jax.jit, static_argnums=0)
def _untrained(latent_size: int, key: jax.Array) -> VAE:
    return VAE(latent_size, rngs=nnx.Rngs(key))


@partial(jax.jit, static_argnames=("config", "task", "dtype"), donate_argnames="state")
def updates(
    state: State,
    key: jax.Array,
    first: int,
    frames: jax.Array,
    *,
    config: VisionConfig,
    task: Task,
    dtype: jnp.dtype,
) -> tuple[State, dict[str, jax.Array]]:
    """One step for each batch of `frames`, uint8 [n, B, 64, 64, 3]; metrics are their means."""
    salient = {"salient_green": task.salient_green, "salient_weight": config.salient_weight}

    def loss(model, key, batch):
        return vae_loss(_cast(model, dtype), key, batch, **salient)

    def step(state, inputs):
        number, batch = inputs
        key_step = jax.random.fold_in(key, number)
        gradients, metrics = jax.grad(loss, has_aux=True)(state.model, key_step, batch)
        changes, moments = optax.scale_by_adam().update(gradients, state.optimizer)
        changes = jax.tree.map(lambda x: -config.rate(number) * x, changes)
        return State(optax.apply_updates(state.model, changes), moments), metrics

    state, metrics = lax.scan(step, state, (first + jnp.arange(len(frames)), frames))
    return state, jax.tree.map(jnp.mean, metrics)


def _cast(model: VAE, dtype: jnp.dtype) -> VAE:
    """`model` with kernels, and so products, in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, model)
