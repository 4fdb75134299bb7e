"""Dream steps a second, all lanes alive, against the number of lanes.

python -m benchmarks.dream_throughput
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from dreamjax.controller.population import rollout
from dreamjax.dream.worlds import World
from dreamjax.training.devices import product_dtype

from . import timing
from .world import stand_in, step_flops

MEMBERS = 64


def alive_steps(world: World, lanes: int, steps: int, dtype) -> timing.Timing:
    """Time of `steps` steps of `lanes` immortal dreams of a population of `MEMBERS`."""
    env, controller = world.env(), world.controller()
    params = world.params(1.0, jnp.inf, dtype).replace(max_steps_in_episode=jnp.int32(steps))
    members = min(MEMBERS, lanes)
    weights = 0.1 * jax.random.normal(jax.random.key(2), (members, controller.num_params))

    def play(params, weights):
        return rollout(
            jax.random.key(3), env, params, controller, weights, lanes // members, sizes=(lanes,)
        )

    return timing.timed(play, params, weights, repeats=5)


def measure(
    world: World, lane_counts: tuple[int, ...], steps: int = 100, both: bool = True
) -> Iterator[timing.Row]:
    """Rows of valid steps/s, compile seconds and shares of the matrix rate.

    Args:
      world: the world.
      lane_counts: batch sizes.
      steps: dreamt by each lane.
      both: measure float32 beside the device's own dtype of products.
    """
    dtypes = (jnp.dtype(jnp.float32), product_dtype()) if both else (product_dtype(),)
    for dtype in dict.fromkeys(dtypes):
        ceiling = timing.matrix_rate(dtype) / step_flops(world.memory)
        yield timing.row(f"matrix ceiling {dtype}", 0, ceiling, "steps/s", 1.0)
        for lanes in lane_counts:
            taken = alive_steps(world, lanes, steps, dtype)
            rate = lanes * steps / taken.run
            yield timing.row(f"dream alive {dtype}", lanes, rate, "steps/s", rate / ceiling)
            yield timing.row(f"dream compile {dtype}", lanes, taken.compile, "s")
            yield timing.row(f"dream memory {dtype}", lanes, taken.memory / 1e6, "MB")


if __name__ == "__main__":
    for found in measure(stand_in(), (64, 256, 1024, 4096)):
        print(found)
