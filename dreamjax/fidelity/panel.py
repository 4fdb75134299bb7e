"""Players that taught a world nothing, put into its dream: they look at what V decodes.

Legend: A numbers in an action, D dreams.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.agent import Agent, evaluation_seeds
from dreamjax.controller.player import Player
from dreamjax.controller.population import Dreamt
from dreamjax.dream.world import World
from dreamjax.game.policies import begin, naming
from dreamjax.task import Task
from dreamjax.vision.model import drawn

Acting = Callable[[int, np.ndarray], np.ndarray]  # (step, frames uint8 [D, ...]) -> actions [D, A]


def by_policy(task: Task, policy: str, dreams: int, seed: int) -> Acting:
    """A policy in so many dreams at once: `(step, frames uint8 [D, 64, 64, 3]) -> actions [D, A]`.

    Args:
      task, policy: the game, and a policy as it is named for `game.jobs.play`.
      dreams, seed: D, and the seed of what the policy draws.

    Raises:
      ValueError: while it acts, if it fails or makes something else than actions [A].
    """
    acting = [begin(task, policy, rng) for rng in np.random.default_rng(seed).spawn(dreams)]

    def act(step: int, frames: np.ndarray) -> np.ndarray:
        with naming(task, policy, seed):
            actions = [one(step, frame.copy()) for one, frame in zip(acting, frames, strict=True)]
            return np.array(actions, np.float32).reshape(dreams, task.action_size)

    return act


def by_player(world: World, player: Player, dreams: int, seed: int) -> Acting:
    """A C in so many dreams at once: `(step, frames uint8 [D, 64, 64, 3]) -> actions [D, A]`.

    Args:
      world, player: C, and the world by whose V and M it sees the pictures.
      dreams, seed: D, and the seed of V's sampling.

    Raises:
      ValueError: a C of another world.
    """
    agent, slots = Agent(world, player, dreams, jax.random.key(seed)), np.arange(dreams)
    agent.begin(slots, evaluation_seeds(seed, dreams))
    return lambda step, frames: agent.act(slots, frames)[0]


def dreamt_looking(world: World, act: Acting, dreams: int, seed: int) -> Dreamt:
    """Returns and lengths [D] of dreams whose player is shown what V decodes of each step.

    Args:
      world: the dream, at its own temperature.
      act: the player, as of `by_policy` or `by_player` for as many `dreams`.
      dreams, seed: D, and the seed of the dreams.
    """
    env, params = world.env(), world.params(dtype=jnp.float32)
    step = jax.jit(jax.vmap(env.step_env, (0, 0, 0, None)))
    key, first = jax.random.split(jax.random.key(seed))
    _, state = jax.vmap(env.reset, (0, None))(jax.random.split(first, dreams), params)
    total, lengths, alive = np.zeros(dreams), np.zeros(dreams, int), np.ones(dreams, bool)
    for time in range(world.task.max_steps):
        if not alive.any():
            break
        actions = jnp.asarray(act(time, drawn(world.vision, state.z)))
        keys = jax.random.split(jax.random.fold_in(key, time), dreams)
        _, state, reward, ended, _ = step(keys, state, actions, params)
        total += np.where(alive, reward, 0.0)
        lengths += alive
        alive &= ~np.asarray(ended)
    return Dreamt(total, lengths)
