"""Dreams that leave real games: does their danger stay the game's?

    python experiments/branches.py --run runs/first

A dream may begin as deadly as the game it left and grow kind, step by step, as what it shows
becomes its own. Legend: E episodes, F branches, T steps of an episode, Z latent, W windows.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax.controller.player import Player
from dreamjax.dream.env import EnvParams, EnvState
from dreamjax.dream.unroll import unroll
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.memory.latents import LatentSequences, read_latents
from dreamjax.training.settings import SettingError, require_positive, require_within

WINDOW = 40  # steps that a chance of death is averaged over, and between two branches


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    run: Path  # with its world and its latents
    young: int | None = None  # age of the games that dreams leave; None is of the task's ages
    dreams: int = 1024
    held_out: float = 0.1  # as M was trained
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "dreams")
        require_within(self, held_out="(0, 1)")
        if self.young is not None and (self.young < 1 or self.young % WINDOW):
            raise SettingError(f"young must be a multiple of {WINDOW}, got {self.young}")


def main(config: Config) -> dict[str, Any]:
    """Print, and return, deaths in 1,000 steps of games and of the dreams that leave them."""
    world = load_world(config.run)
    _, held = read_latents(config.run / "latents").split(config.held_out)
    task = world.task
    young = config.young or max(WINDOW, task.ages[-3] // WINDOW * WINDOW)
    ages = {"young": young, "old": task.max_steps}
    found = branch_hazard(world, world.player, held, **ages, dreams=config.dreams, seed=config.seed)
    dreaming = "  ".join(f"{x:.2f}" for x in found["dreaming"])
    print(
        f"deaths in 1,000 steps of old games: {found['game']:.2f}, expected while M watches: "
        f"{found['watching']:.2f}, in dreams that leave them, every {WINDOW} steps: {dreaming}"
    )
    return found


def branch_hazard(
    world: World,
    player: Player,
    latents: LatentSequences,
    *,
    young: int,
    old: int,
    windows: int = 5,
    dreams: int = 1024,
    seed: int = 0,
) -> dict[str, Any]:
    """Deaths in 1,000 steps of real games, and of dreams at tau = 1 that go on from them.

    Args:
      world, player: the dream, and the C that dreams; best the one that played the games.
      latents: games that M was not trained on.
      young, old: the first age, in steps, that is compared, a multiple of `WINDOW`, and the end.
      windows: W, how long a dream goes on, in windows of `WINDOW` steps.
      dreams: F at most; they leave at every `WINDOW`-th step of a game.
      seed: of the noise and of which games are left.

    Returns:
      `game`, its deaths in 1,000 steps; `watching`, those that M expects while it watches the game;
      `dreaming`, those that it expects in each window after it was left; `n`, F.

    Raises:
      ValueError: no game grew so old.
    """
    z, actions, alive = _padded(latents, young, seed)
    params = world.params(1.0, dtype=jnp.float32)
    carries, chance = _watch(params, z, actions)
    times = np.arange(len(z))[:, None]
    aged = alive & (times >= young) & (times < old)
    deaths = latents.terminated & (latents.lengths > young) & (latents.lengths <= old)
    step, episode = np.nonzero(aged & (times % WINDOW == 0))
    chosen = np.random.default_rng(seed).permutation(len(step))[:dreams]
    step, episode = step[chosen], episode[chosen]
    state = EnvState(
        time=jnp.asarray(step, jnp.int32),
        z=jnp.asarray(z[step, episode]),
        carry=jax.tree.map(lambda x: x[step // WINDOW, episode], carries),
        dead=jnp.zeros(len(step), bool),
    )
    form, weights = player.controller, player.weights
    dreamt = _leave(world.env(), form, windows, params, weights, state, jax.random.key(seed))
    return {
        "n": len(step),
        "game": float(1000 * deaths.sum() / aged.sum()),
        "watching": float(1000 * np.asarray(chance)[aged].mean()),
        "dreaming": [float(1000 * x) for x in dreamt],
    }


def _padded(latents: LatentSequences, young: int, seed: int):
    """Games older than `young`: z [T, E, Z] sampled, actions [T, E, A], alive [T, E]."""
    long = np.flatnonzero(latents.lengths > young)
    if not len(long):
        raise ValueError(
            f"no game grew older than {young} steps, the oldest {latents.lengths.max()}; "
            "choose younger ages or encode longer games"
        )
    steps = -(-latents.lengths.max() // WINDOW) * WINDOW
    return *latents.lanes(long, steps, seed), np.arange(steps)[:, None] < latents.lengths[long]


@jax.jit
def _watch(params: EnvParams, z: jax.Array, actions: jax.Array):
    """M's states at every `WINDOW`-th step [T / WINDOW, E], and chances of death [T, E]."""
    lanes = z.shape[1]

    def step(carry, now):
        z, action, time = now
        carry, found = params.memory(carry, z, action, jnp.full(lanes, time))
        return carry, params.death_chance(found.end)

    def window(carry, now):
        after, chance = jax.lax.scan(step, carry, now)
        return after, (carry, chance)

    watched = z, actions, jnp.arange(len(z))
    watched = jax.tree.map(lambda x: x.reshape(-1, WINDOW, *x.shape[1:]), watched)
    _, (carries, chance) = jax.lax.scan(window, params.memory.initial_carry((lanes,)), watched)
    return carries, chance.reshape(-1, lanes)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _leave(env, controller, windows: int, params: EnvParams, weights, state: EnvState, key):
    """Chances of death in each window [W] of dreams that go on from `state` [F]."""

    def chance(state, action):
        return params.death_chance(params.memory(state.carry, state.z, action, state.time)[1].end)

    def dream(state, keys):
        choose = lambda obs, _: controller(weights, obs)  # noqa: E731
        return unroll(env, params, state, keys, choose, tell=chance)

    keys = jax.random.split(key, (len(state.time), windows * WINDOW))
    expected, alive = jax.vmap(dream)(state, keys)
    expected = jnp.where(alive, expected, 0.0)
    expected, steps = (x.reshape(-1, windows, WINDOW).sum(axis=(0, 2)) for x in (expected, alive))
    return expected / jnp.maximum(steps, 1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
