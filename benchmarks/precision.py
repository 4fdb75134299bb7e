"""Does bfloat16 change a dream? Scores of the same controllers at several tau, both ways.

python -m benchmarks.precision [RUN_DIR]
"""

import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.controller.population import rollout
from dreamjax.dream.world import World

from . import timing
from .world import find_world

TEMPERATURES = (0.5, 1.0, 1.15, 1.3)


def measure(world: World, members: int = 64, rollouts: int = 16) -> Iterator[timing.Row]:
    """Rows of steps survived in float32 and of the difference that bfloat16 makes.

    The +- is the standard error over controllers: of the paired difference where it is one.
    """
    controller = world.controller()
    weights = 0.1 * jax.random.normal(jax.random.key(0), (members, controller.num_params))

    def mean_steps(params, key):
        played = rollout(key, world.env(), params, controller, weights, rollouts)
        return jnp.mean(played.steps.astype(jnp.float32), axis=1)

    compiled = jax.jit(mean_steps)
    for tau in TEMPERATURES:
        exact, half, again = (
            np.asarray(compiled(world.params(tau, dtype=dtype), jax.random.key(seed)))
            for dtype, seed in ((jnp.float32, 1), (jnp.bfloat16, 1), (jnp.float32, 2))
        )
        lanes = members * rollouts
        for name, values in (
            ("float32", exact),
            ("bfloat16 - float32", half - exact),
            ("other noise - float32", again - exact),
        ):
            error = values.std(ddof=1) / np.sqrt(members)
            label = f"tau {tau}, steps survived, {name}, ±{error:.1f}"
            yield timing.row(label, lanes, float(values.mean()), "steps")


if __name__ == "__main__":
    for found in measure(find_world(sys.argv[1] if len(sys.argv) > 1 else None)[0]):
        print(f"{found['name']:<60}{found['value']:>10.1f} {found['unit']}")
