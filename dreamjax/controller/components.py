"""Principal components of what C reads: the directions in which it is evolved.

M's numbers differ a hundredfold in size and mostly move together, so equal steps in all of C's
weights differ along a few directions only, and a small thing in the picture is in none of them. In
its largest components, all as large, CMA-ES has an eighth of the numbers to learn. C stays linear
in what it reads. Not in the paper.
Legend: D weights of C, F features, K components, N examples, O outputs, S directions.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.controller.model import LinearController

SMALLEST = 1e-3  # deviation of a feature, and of a component against the largest


def directions(controller: LinearController, features: np.ndarray, count: int) -> jax.Array:
    """Weights [S, D], S = K * O or with a bias (K + 1) * O; the outputs of each deviate by 1.

    Args:
      controller: C.
      features: [N, F] examples of what it reads.
      count: K; fewer where the examples span fewer.
    """
    features = np.asarray(features, np.float64)
    center, size = features.mean(0), np.maximum(features.std(0), SMALLEST)
    unit = (features - center) / size / np.sqrt(len(features))
    _, deviation, axes = np.linalg.svd(unit, full_matrices=False)
    count = min(count, int((deviation > SMALLEST * deviation[0]).sum()))
    kernel = jnp.asarray(axes[:count] / deviation[:count, None], jnp.float32)
    outputs = controller.head.outputs

    def spread(along: jax.Array) -> jax.Array:
        rows = along.reshape(-1, outputs)
        bias, steps = rows[: controller.bias], rows[controller.bias :]
        weights = jnp.concatenate((bias, kernel.T @ steps)).ravel()
        return controller.rescaled(weights, jnp.float32(center), jnp.float32(size))

    return jax.jit(jax.vmap(spread))(jnp.eye((count + controller.bias) * outputs))
