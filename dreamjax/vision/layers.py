"""V's layers: stride-2 convolutions and their transposes as matrix products over patches.

The batch is the last axis, so patches are copies of whole rows, and no product needs an operand
transposed but the kernel. XLA's own gradients of strided convolutions are an order slower on a CPU.
Only `Layer.look` has it first: of a few frames those rows are short.
Shapes: B batch, C channels and [H, W] of the larger image, D channels and [h, w] of the smaller.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from dreamjax.training.devices import plus

_STRIDE = 2  # of every convolution here


def _moved(x: jax.Array) -> jax.Array:
    """`x` in a type that is only moved: XLA-CPU converts each bfloat16 it copies, integers not."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _patches(image: jax.Array, size: int) -> jax.Array:
    """Stride-2 windows of `image`, [C, H, W, B] -> [size * size * C, h, w, B]."""
    C, H, W, B = image.shape
    h, w = (H - size) // _STRIDE + 1, (W - size) // _STRIDE + 1
    x = _moved(image)
    x = jnp.stack([x[:, :, j : j + 2 * w - 1 : 2] for j in range(size)])
    x = jnp.stack([x[:, :, i : i + 2 * h - 1 : 2] for i in range(size)])
    return lax.bitcast_convert_type(x, image.dtype).reshape(size * size * C, h, w, B)


def _windows(frames: jax.Array, size: int) -> jax.Array:
    """`_patches` of [B, H, W, C] -> [B, h, w, size * size * C]; `size` is even."""
    B, H, W, C = frames.shape
    h, w = ((length - size) // _STRIDE + 1 for length in (H, W))
    steps = size // _STRIDE
    x = _moved(frames)[:, : _STRIDE * (h + steps - 1), : _STRIDE * (w + steps - 1)]
    x = x.reshape(B, h + steps - 1, _STRIDE, w + steps - 1, _STRIDE * C)
    places = itertools.product(range(steps), range(_STRIDE), range(steps))
    runs = [x[:, i : i + h, row, j : j + w] for i, row, j in places]
    return lax.bitcast_convert_type(jnp.concatenate(runs, axis=-1), frames.dtype)


def _overlap(parts: list[jax.Array], axis: int, length: int) -> jax.Array:
    """Sum of `parts`, part i spread over every second place of `axis` from i on."""
    half = (length + 1) // 2
    phases = []
    for phase in (0, 1):
        terms = []
        for start, part in enumerate(parts[phase::2]):
            pad = [(0, 0)] * part.ndim
            pad[axis] = (start, half - part.shape[axis] - start)
            terms.append(jnp.pad(part, pad))
        phases.append(sum(terms[1:], terms[0]))
    both = jnp.stack(phases, axis + 1)
    shape = parts[0].shape[:axis] + (2 * half,) + parts[0].shape[axis + 1 :]
    return lax.slice_in_dim(both.reshape(shape), 0, length, axis=axis)


def _fold(patches: jax.Array, size: int, H: int, W: int) -> jax.Array:
    """The transpose of `_patches`: [size * size * C, h, w, B] -> [C, H, W, B]."""
    _, h, w, B = patches.shape
    x = patches.reshape(size, size, -1, h, w, B)
    x = _overlap([x[:, j] for j in range(size)], 3, W)
    return _overlap([x[i] for i in range(size)], 1, H)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """[M, N] x [N, ...] -> [M, ...] in `a`'s dtype, accumulated in float32."""
    flat = b.reshape(len(b), -1).astype(a.dtype)
    return jnp.dot(a, flat, preferred_element_type=jnp.float32).reshape(-1, *b.shape[1:])


def _outer(a: jax.Array, b: jax.Array, kernel: jax.Array) -> jax.Array:
    """[M, ...] x [N, ...] -> [M, N] as `kernel`, whose gradient it is."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1).astype(a.dtype)
    found = lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return found.reshape(kernel.shape).astype(kernel.dtype)


def _rows(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(-1, kernel.shape[-1])


def _columns(kernel: jax.Array) -> jax.Array:
    """`_rows` transposed, before the reshape: else XLA-CPU multiplies bfloat16 in float32."""
    return kernel.transpose(3, 0, 1, 2).reshape(kernel.shape[-1], -1)


def _narrow_forward(kernel: jax.Array, image: jax.Array) -> tuple[jax.Array, Any]:
    """VALID stride-2 convolution, [C, H, W, B] -> [D, h, w, B], kernel [size, size, C, D]."""
    patches = _patches(image.astype(kernel.dtype), len(kernel))
    return _product(_columns(kernel), patches), (kernel, patches, image.shape)


def _narrow_backward(saved, gradient):
    kernel, patches, (_, H, W, _) = saved
    d_kernel = _outer(patches, gradient, kernel)
    return d_kernel, _fold(_product(_rows(kernel), gradient), len(kernel), H, W)


_narrow = jax.custom_vjp(lambda kernel, image: _narrow_forward(kernel, image)[0])
_narrow.defvjp(_narrow_forward, _narrow_backward)


@jax.custom_vjp
def _look(kernel: jax.Array, frames: jax.Array) -> jax.Array:
    """`_narrow` of [B, H, W, C] -> [B, h, w, D], whose gradient it borrows."""
    windows = _windows(frames.astype(kernel.dtype), len(kernel))
    flat = windows.reshape(-1, windows.shape[-1])
    product = jnp.dot(flat, _rows(kernel), preferred_element_type=jnp.float32)
    return product.reshape(*windows.shape[:3], -1)


def _turned(kernel, frames):
    return _narrow(kernel, frames.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0)


_look.defvjp(
    lambda kernel, frames: (_look(kernel, frames), (kernel, frames)),
    lambda saved, gradient: jax.vjp(_turned, *saved)[1](gradient),
)


def _widen_forward(kernel: jax.Array, image: jax.Array) -> tuple[jax.Array, Any]:
    """Transpose of `_narrow`, [D, h, w, B] -> [C, H, W, B], kernel [size, size, C, D]."""
    image = image.astype(kernel.dtype)
    H, W = (_STRIDE * (n - 1) + len(kernel) for n in image.shape[1:3])
    return _fold(_product(_rows(kernel), image), len(kernel), H, W), (kernel, image)


def _widen_backward(saved, gradient):
    kernel, image = saved
    d_image, (_, patches, _) = _narrow_forward(kernel, gradient)
    return _outer(patches, image, kernel), d_image


_widen = jax.custom_vjp(lambda kernel, image: _widen_forward(kernel, image)[0])
_widen.defvjp(_widen_forward, _widen_backward)


glorot = jax.jit(nnx.initializers.glorot_uniform(dtype=jnp.float32), static_argnums=1)


class Layer(nnx.Module):
    """Kernel and bias of one layer, initialised as TensorFlow 1 does."""

    def __init__(self, shape: tuple[int, ...], outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(glorot(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def dense(self, x: jax.Array) -> jax.Array:
        """Affine map, [B, N] -> [B, M], kernel [N, M]."""
        kernel = self.kernel[...]
        product = jnp.dot(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)
        return plus(product, self.bias[...])

    def narrow(self, image: jax.Array) -> jax.Array:
        """Convolution, [C, H, W, B] -> [D, h, w, B]."""
        return _narrow(self.kernel[...], image) + self.bias[:, None, None, None]

    def look(self, frames: jax.Array) -> jax.Array:
        """`narrow` of [B, H, W, C] -> [B, h, w, D]."""
        return plus(_look(self.kernel[...], frames), self.bias[...])

    def widen(self, image: jax.Array) -> jax.Array:
        """Transposed convolution, [D, h, w, B] -> [C, H, W, B]."""
        return _widen(self.kernel[...], image) + self.bias[:, None, None, None]
