"""Dreaming on from a real game: what V saw and M remembers of it is where the dream begins.

Legend: A action numbers, T frames.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dream.env import EnvState, state_at
from dreamjax.dream.start_states import StartStates
from dreamjax.dream.world import World
from dreamjax.memory.latents import posteriors
from dreamjax.task import FRAME_SHAPE


def dream_from(
    world: World,
    frames: np.ndarray,
    actions: np.ndarray,
    key: jax.Array | None = None,
    dropout: float | None = None,
) -> EnvState:
    """The state of a dream that goes on where a real game is.

    `env.step(key, state, action, params)` of `world.env()` and `world.params()` dreams on. M
    remembers the game with nothing dropped.

    Args:
      frames: uint8 [T, 64, 64, 3], an episode from its first frame on, as `make_env` shows it.
      actions: [T - 1, A], what was done between them, in the task's form.
      key: PRNG key of V's sampling and of the dream's dropout; consumed. None takes the mean of
        what V sees, and drops nothing.
      dropout: that of the `params` it is dreamt on with, as `World.params` takes it.

    Raises:
      ValueError: frames or actions of another shape, one that is no number, or an episode that
        is over by its length.
    """
    frames, actions = np.asarray(frames), np.asarray(actions, np.float32)
    _check(world, frames, actions)
    z, logvar = map(jnp.asarray, posteriors(world.vision, frames))
    if key is not None:
        z = z + jnp.exp(logvar / 2) * jax.random.normal(key, z.shape, z.dtype)
    carry, ages = world.memory.initial_carry(), jnp.arange(len(actions), dtype=jnp.int32)
    if len(actions):
        inputs = world.memory.inputs(z[:-1], world.env().clipped(actions), ages)
        carry = world.memory.run(carry, inputs, (ages == 0).astype(jnp.float32))[0]
    state = state_at(StartStates(jnp.int32(len(actions)), z[-1], carry))
    return state.replace(mask=world.params(dropout=dropout).draw_mask(key))


def _check(world: World, frames: np.ndarray, actions: np.ndarray) -> None:
    """Refuse what is no episode of the world's game."""
    task = world.task
    if frames.dtype != np.uint8 or frames.shape[1:] != FRAME_SHAPE or not len(frames):
        raise ValueError(
            f"frames must be uint8 [T, 64, 64, 3] with T at least 1, got {frames.dtype}"
            f"{list(frames.shape)}; pass an episode as dreamjax.make_env shows it"
        )
    if actions.shape != (len(frames) - 1, task.action_size):
        raise ValueError(
            f"actions must be [{len(frames) - 1}, {task.action_size}] between {len(frames)} frames "
            f"of {task.name}, got {list(actions.shape)}; leave out what was done after the last"
        )
    if not np.isfinite(actions).all():
        raise ValueError("actions hold NaN or infinity; pass what the game was given")
    if len(actions) >= task.max_steps:
        raise ValueError(
            f"an episode of {task.name} ends after {task.max_steps} steps, got {len(actions)}; "
            "pass fewer frames"
        )
