"""The dream as an environment of others: how soon it runs, and how fast beside the engine.

python -m benchmarks.drop_in
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import dreamjax
from dreamjax.dream.world import World
from dreamjax.training.devices import product_dtype

from . import timing
from .dream_throughput import alive_steps
from .world import find_world

ENV_ID = "DreamTakeCover-v1"
LANES = 1024
VECTOR = 64  # dreams of the gymnasium form
STEPS = 100
FIRST_STEPS = 1_000_000

# What a newcomer writes: everything from the import on, in a process of its own.
NEWCOMER = """
import json, time
start = time.perf_counter()
import jax
import dreamjax
env, params = dreamjax.make("{env_id}")
imported = time.perf_counter() - start

@jax.jit
def play(key, params):
    def step(state, key):
        keys = jax.random.split(key, {lanes})
        actions = jax.random.uniform(key, ({lanes}, 1), minval=-1, maxval=1)
        _, state, *_ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, params)
        return state, None
    keys = jax.random.split(key, {lanes})
    _, state = jax.vmap(env.reset, (0, None))(keys, params)
    return jax.lax.scan(step, state, jax.random.split(key, {steps}))[0].time

jax.block_until_ready(play(jax.random.key(0), params))
print(json.dumps([imported, time.perf_counter() - start]))
"""


def start_up(first_steps: int = FIRST_STEPS) -> list[timing.Row]:
    """Rows of seconds from a new process to an importable world and to its first dream steps."""
    code = NEWCOMER.format(env_id=ENV_ID, lanes=LANES, steps=-(-first_steps // LANES))
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(dreamjax.__file__).parents[1],
    )
    whole = time.perf_counter() - start
    imported, played = json.loads(done.stdout.splitlines()[-1])
    return [
        timing.row("import and make, seconds", 0, imported + whole - played, "s"),
        timing.row(f"first {first_steps:,} env.step, import included", LANES, whole, "s"),
    ]


def plain_steps(lanes: int, steps: int) -> timing.Timing:
    """Time of `env.step` under vmap and scan, auto-reset included, on the shipped world."""
    env, params = dreamjax.make(ENV_ID)
    controller = 0.1 * jax.random.normal(jax.random.key(2), env.observation_space(params).shape)

    def play(params, controller):
        def step(loop, key):
            obs, state = loop
            actions = jnp.tanh(obs @ controller)[:, None]
            keys = jax.random.split(key, lanes)
            obs, state, *_ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, params)
            return (obs, state), None

        loop = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), lanes), params)
        return jax.lax.scan(step, loop, jax.random.split(jax.random.key(1), steps))[0]

    return timing.timed(play, params, controller, repeats=5)


def vector_rows(lanes: int = VECTOR, steps: int = STEPS) -> list[timing.Row]:
    """Rows of steps/s of gymnasium's form, in its loop of Python, beside `env.step` in one call."""
    envs = gymnasium.make_vec(
        "dreamjax/TakeCover-v1", lanes, vectorization_mode="vector_entry_point"
    )
    envs.reset(seed=0)
    actions = np.zeros((lanes, 1), np.float32)
    envs.step(actions)

    def play():
        for _ in range(steps):
            envs.step(actions)

    vector = lanes * steps / timing.seconds(play, repeats=5)
    plain = lanes * steps / plain_steps(lanes, steps).run
    return [
        timing.row("gymnasium.make_vec in a loop", lanes, vector, "steps/s"),
        timing.row("env.step under vmap and scan", lanes, plain, "steps/s"),
        timing.row("make_vec over env.step", lanes, vector / plain, "ratio"),
    ]


def measure(world: World, lanes: int = LANES, steps: int = STEPS) -> list[timing.Row]:
    """Rows of steps/s: gymnax's own interface, the engine, and their ratio."""
    plain = lanes * steps / plain_steps(lanes, steps).run
    engine = lanes * steps / alive_steps(world, lanes, steps, product_dtype()).run
    return [
        timing.row("env.step under vmap and scan", lanes, plain, "steps/s"),
        timing.row("the engine, the same lanes alive", lanes, engine, "steps/s"),
        timing.row("env.step over the engine", lanes, plain / engine, "ratio"),
    ]


if __name__ == "__main__":
    for found in (*start_up(), *measure(find_world(None)[0]), *vector_rows()):
        print(found)
