"""Dream steps a second, all lanes alive, against the number of lanes.

python -m benchmarks.dream_throughput
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dreamjax.controller.population import rollout
from dreamjax.dream.world import World
from dreamjax.training.devices import product_dtype
from dreamjax.training.mesh import AXIS

from . import timing
from .world import stand_in, step_flops

MEMBERS = 64


def alive_steps(
    world: World, lanes: int, steps: int, dtype, mesh: Mesh | None = None
) -> timing.Timing:
    """Time of `steps` steps of `lanes` immortal dreams of a population of `MEMBERS`.

    They are shared by the devices of `mesh`; None is the default device alone.
    """
    env, controller = world.env(), world.controller()
    params = world.params(1.0, jnp.inf, dtype).replace(max_steps_in_episode=jnp.int32(steps))
    members, share = min(MEMBERS, lanes), lanes // (mesh.size if mesh else 1)
    weights = 0.1 * jax.random.normal(jax.random.key(2), (members, controller.num_params))

    def play(params, weights):
        key, rollouts = jax.random.key(3), lanes // members
        how = {"mesh": mesh, "sizes": (share,)}
        return rollout(key, env, params, controller, weights, rollouts, **how)

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
            shares = {"share": rate / ceiling, "spread": taken.spread}
            yield timing.row(f"dream alive {dtype}", lanes, rate, "steps/s", **shares)
            yield timing.row(f"dream compile {dtype}", lanes, taken.compile, "s")
            yield timing.row(f"dream memory {dtype}", lanes, taken.memory / 1e6, "MB")


def scaling(world: World, lanes: int = 1024, steps: int = 100) -> Iterator[timing.Row]:
    """Valid steps/s of 1, 2, 4, ... devices, `lanes` dreams on each, and the share of so many."""
    dtype, alone, count = product_dtype(), None, 1
    while count <= jax.device_count():
        mesh = Mesh(jax.devices()[:count], (AXIS,))
        taken = alive_steps(world, count * lanes, steps, dtype, mesh)
        rate = count * lanes * steps / taken.run
        alone = alone or rate
        shares = {"share": rate / (count * alone), "spread": taken.spread}
        yield timing.row(f"devices {count} {dtype}", count * lanes, rate, "steps/s", **shares)
        count *= 2


if __name__ == "__main__":
    for found in measure(stand_in(), (64, 256, 1024, 4096)):
        print(found)
