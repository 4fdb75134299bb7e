"""Principal components of what C reads: the directions in which it is evolved.

M's numbers differ a hundredfold in size and mostly move together, so equal steps in all of C's
weights are steps in its largest numbers. Each number is divided by its deviation here, and C moves
along the largest components of them all, in each by as much as that component varies. C stays
linear in what it reads. Not in the paper.
Legend: D weights of C, F features, K components, N examples, O outputs, S directions.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.controller.model import LinearController

SMALLEST = 1e-3  # deviation of a feature, and of a component against the largest
SPREAD = 128**0.5  # deviation of an output under steps of 1 along all components


def directions(controller: LinearController, features: np.ndarray, count: int) -> jax.Array:
    """Weights [S, D], S = K * O or with a bias (K + 1) * O; outputs deviate as their components do.

    Those of all components together move an output by `SPREAD`, a bias by 1. `features` [N, F]
    are examples of what C reads, and `count` is K; fewer where they span fewer.
    """
    features = np.asarray(features, np.float64)
    center, size = features.mean(0), np.maximum(features.std(0), SMALLEST)
    unit = (features - center) / size / np.sqrt(len(features))
    _, deviation, axes = np.linalg.svd(unit, full_matrices=False)
    count = min(count, int((deviation > SMALLEST * deviation[0]).sum()))
    scale = SPREAD / np.linalg.norm(deviation[:count])
    kernel = jnp.asarray(axes[:count] * scale, jnp.float32)
    outputs = controller.distribution.outputs

    def spread(along: jax.Array) -> jax.Array:
        rows = along.reshape(-1, outputs)
        bias, steps = rows[: controller.bias], rows[controller.bias :]
        weights = jnp.concatenate((bias, kernel.T @ steps)).ravel()
        return controller.rescaled(weights, jnp.float32(center), jnp.float32(size))

    return jax.jit(jax.vmap(spread))(
        jnp.eye((count + controller.bias) * outputs, dtype=jnp.float32)
    )
