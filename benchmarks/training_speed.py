"""Frames a second of training and running V and M, and of the original's batch-1 dream.

python -m benchmarks.training_speed
"""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.memory import training as m
from dreamjax.memory.latents import LatentSequences, posteriors
from dreamjax.task import FRAME_SHAPE, Task
from dreamjax.tasks import TAKE_COVER
from dreamjax.training.devices import product_dtype
from dreamjax.vision import training as v

from . import numpy_dream, timing
from .world import stand_in, step_flops

BACKWARD = 3  # a training step's products, in forward passes
EPISODE = 300
ENCODED = 512  # frames, a call's


def vision_rows(batch: int = 100, steps: int = 8) -> list[timing.Row]:
    """V's training and encoding rates on random frames."""
    frames = np.random.default_rng(0).integers(0, 255, (steps, batch, 64, 64, 3), np.uint8)
    state = v.initial_state(TAKE_COVER.latent_size, jax.random.key(0))
    dtype = product_dtype()
    fixed = {"config": v.VisionConfig(), "task": TAKE_COVER, "dtype": dtype}

    def train():
        nonlocal state
        state, metrics = v.updates(state, jax.random.key(1), 0, frames, **fixed)
        return metrics

    jax.block_until_ready(train())
    taken = timing.samples(train)
    rate = steps * batch / statistics.median(taken)
    many, vision = frames.reshape(-1, *FRAME_SHAPE)[:ENCODED], state.model
    posteriors(vision, many)
    encoded = timing.samples(lambda: posteriors(vision, many))
    return [
        timing.row(f"V training {dtype}", batch, rate, "frames/s", spread=timing.spread_of(taken)),
        timing.row(
            "V encoding float32",
            len(many),
            len(many) / statistics.median(encoded),
            "frames/s",
            spread=timing.spread_of(encoded),
        ),
    ]


def memory_rows(steps: int = 4) -> list[timing.Row]:
    """M's training rate, and its share of the matrix rate, at the paper's batch."""
    config = dataclasses.replace(m.MemoryConfig(), steps=steps, steps_per_call=steps)
    trainer = m.Trainer(TAKE_COVER, random_latents(config), config, 0)
    state = trainer.initial()

    def train():
        nonlocal state
        state, _, metrics = trainer(state, 0)
        return metrics

    train()
    taken = timing.samples(train)
    frames = steps * trainer.layout.lanes * trainer.layout.length
    dtype = product_dtype(config.bfloat16)
    ceiling = timing.matrix_rate(dtype) / (BACKWARD * step_flops(state.memory))
    rate = frames / statistics.median(taken)
    shares = {"share": rate / ceiling, "spread": timing.spread_of(taken)}
    return [timing.row(f"M training {dtype}", config.batch_size, rate, "frames/s", **shares)]


def random_latents(config: m.MemoryConfig, task: Task = TAKE_COVER) -> LatentSequences:
    total = config.batch_size * config.sequence_length * config.steps
    episodes = int(total / EPISODE / (1 - config.held_out)) + 2
    rng, frames = np.random.default_rng(0), episodes * EPISODE
    return LatentSequences(
        mu=rng.normal(size=(frames, task.latent_size)).astype(np.float16),
        logvar=np.full((frames, task.latent_size), -2, np.float16),
        actions=rng.uniform(-1, 1, (frames, task.action_size)).astype(np.float32),
        rewards=np.ones(frames, np.float32),
        lengths=np.full(episodes, EPISODE, np.int32),
        terminated=np.ones(episodes, bool),
        seeds=np.arange(episodes),
        vision="random",
        profile=task.profile,
    )


def original_rows(steps: int = 300) -> list[timing.Row]:
    """The original's way: batch 1, a Python loop, NumPy sampling (float32)."""
    weights = {
        k: x.astype(np.float32) for k, x in numpy_dream.weights_of(stand_in().memory).items()
    }
    rng, H = np.random.default_rng(0), TAKE_COVER.hidden_size
    z = np.zeros(TAKE_COVER.latent_size, np.float32)
    state = (z, np.zeros(H, np.float32), np.zeros(H, np.float32), True)
    start = time.perf_counter()
    for _ in range(steps):
        noise = rng.random(len(z), np.float32), rng.standard_normal(len(z), np.float32)
        state, _ = numpy_dream.step(weights, state, np.array([0.3], np.float32), *noise, 1.0)
    rate = steps / (time.perf_counter() - start)
    return [timing.row("the original's way, NumPy", 1, rate, "steps/s")]


def gymnax_rows(lanes: int = 1024, steps: int = 200) -> list[timing.Row]:
    """gymnax's CartPole, for scale."""
    import gymnax

    env, params = gymnax.make("CartPole-v1")
    keys = jax.random.split(jax.random.key(0), lanes)

    def play(keys):
        _, state = jax.vmap(env.reset, (0, None))(keys, params)

        def step(state, key):
            action = jnp.zeros(lanes, jnp.int32)
            keys = jax.random.split(key, lanes)
            return jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)[1], None

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), steps))[0]

    taken = timing.timed(play, keys).run
    return [timing.row("gymnax CartPole", lanes, lanes * steps / taken, "steps/s")]


if __name__ == "__main__":
    for found in vision_rows() + memory_rows() + original_rows() + gymnax_rows():
        print(found)
