"""Where a dream step's time goes, part by part, and what each kind of random numbers costs.

Every part runs alone in a compiled loop of its own, so the parts need not add up to a whole step.

python -m benchmarks.step_split
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.dream.world import World

from . import timing
from .world import find_world

GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg")
SHARED = 16  # streams of noise in a paper generation; its 64 members share them
STEPS = 50


def measure(world: World, lanes: int = 1024) -> Iterator[timing.Row]:
    """Rows of milliseconds a step."""
    env, controller, task = world.env(), world.controller(), world.task
    params = world.params(1.15)
    z = jnp.zeros((lanes, task.latent_size))
    carry = params.memory.initial_carry((lanes,))
    action, age = jnp.zeros((lanes, task.action_size)), jnp.ones(lanes)
    weights = jnp.full((lanes, controller.num_params), 0.01)

    def remember(step, params, loop):
        carry, z = loop
        carry, found = params.memory(carry, z, action, age)
        return carry, found.latent.mean[:, 0]

    def draw(step, mixture, z):
        noise = jnp.abs(jnp.sin(z))
        return mixture.sample_from(noise, noise, 1.15, noise[:, 0])

    def control(step, weights, obs):
        return obs + jax.vmap(controller)(weights, obs)

    mixture = params.memory(carry, z, action, age)[1].latent
    yield _row("M", lanes, remember, params, (carry, z))
    yield _row("sampling", lanes, draw, mixture, z)
    yield _row("C", lanes, control, weights, jnp.ones((lanes, controller.num_features)))
    for streams in (SHARED, lanes):
        for name in GENERATORS:
            keys = jax.random.split(jax.random.key(0, impl=name), streams)

            def noise(step, keys, total):
                drawn = jax.vmap(lambda key: env.draw_noise(jax.random.fold_in(key, step)))(keys)
                return jax.tree.map(jnp.add, total, drawn)

            total = jax.tree.map(jnp.zeros_like, jax.vmap(env.draw_noise)(keys))
            label = f"random numbers, {name}, {streams} streams"
            yield _row(label, lanes, noise, keys, total)


def _row(name: str, lanes: int, body: Callable, constants: Any, start: Any) -> timing.Row:
    def loop(constants, start):
        return jax.lax.fori_loop(0, STEPS, lambda step, x: body(step, constants, x), start)

    taken = timing.timed(loop, constants, start).run
    return timing.row(f"a step's {name}", lanes, 1e3 * taken / STEPS, "ms")


if __name__ == "__main__":
    for found in measure(find_world(None)[0]):
        print(found)
