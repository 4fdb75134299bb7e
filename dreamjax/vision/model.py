"""V: the convolutional VAE that turns a frame into a latent vector.

"World Models" (Ha & Schmidhuber, 2018), appendix A.1; original: `ConvVAE` of `doomrnn/doomrnn.py`.
Shapes: B batch, Z latent.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreamjax.task import FRAME_SHAPE
from dreamjax.vision.layers import Layer


class VAE(nnx.Module):
    """V: frames to latent posteriors and back; `latent_size` is Z.

    Convolution kernels are [height, width, in, out]; those of the transposed convolutions are
    [height, width, out, in], as TensorFlow keeps them; `rngs.params` draws them. The dtype of a
    kernel is the dtype of its product.
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
        """The posteriors `(mu, logvar)`, float32 [B, Z] each; sigma is exp(logvar / 2).

        Frames are [B, 64, 64, 3], uint8 or floats in [0, 1]; ValueError for any others.
        """
        h = _scaled(_checked(frames))
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = jax.nn.relu(layer.look(h))
        return self._posterior(h)

    def decode(self, z: jax.Array) -> jax.Array:
        """The frame of each latent, [B, Z] -> float32 [B, 64, 64, 3] in [0, 1]."""
        return self.picture(z).transpose(3, 1, 2, 0)

    def posterior(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`encode` of pictures as `images` lays them, [3, 64, 64, B], with a fast gradient."""
        h = images
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = jax.nn.relu(layer.narrow(h))
        return self._posterior(h.transpose(3, 1, 2, 0))

    def _posterior(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """From what the last convolution makes, [B, 2, 2, 256]."""
        h = h.reshape(-1, 1024)
        return self.mu.dense(h), self.logvar.dense(h)

    def picture(self, z: jax.Array) -> jax.Array:
        """`decode` as `images` lays pictures, [3, 64, 64, B]."""
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


def images(frames: jax.Array) -> jax.Array:
    """Frames as the layers read them, [B, 64, 64, 3] -> float32 [3, 64, 64, B] in [0, 1]."""
    return _scaled(jnp.transpose(_checked(frames), (3, 1, 2, 0)))


def _scaled(pixels: jax.Array) -> jax.Array:
    """Pixels as float32 in [0, 1]."""
    scaled = pixels.astype(jnp.float32)
    return scaled if jnp.issubdtype(pixels.dtype, jnp.floating) else scaled / 255


def _checked(frames: jax.Array) -> jax.Array:
    fits = frames.dtype == jnp.uint8 or jnp.issubdtype(frames.dtype, jnp.floating)
    if frames.shape[1:] != FRAME_SHAPE or not fits:
        raise ValueError(
            f"frames must be uint8 or floats in [0, 1] of shape [B, 64, 64, 3], got "
            f"{frames.dtype}{list(frames.shape)}; pass frames as recorded"
        )
    return frames
