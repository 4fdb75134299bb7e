"""One player in the dreams of several worlds: is it good at the game, or at one world's mistakes?

    python experiments/ensemble.py --worlds take-cover runs/other

Each world's M dreams while the M that the player was evolved with watches, as it would watch the
real game, and feeds the player its memory. All worlds are one `vmap` over their stacked weights, so
they must share V (`train-memory` in copies of one run directory, with other seeds or data). Copies
of each world with jittered weights keep it company.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import struct

from dreamjax.controller.population import rollout
from dreamjax.dream.env import DreamEnv, EnvParams, EnvState
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.memory.model import Carry, Memory
from dreamjax.training.checkpoint import digest


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    worlds: tuple[str, ...] = ("take-cover",)  # the player is the first one's
    copies: int = 2  # jittered ones of each world
    jitter: float = 0.02  # their noise, in standard deviations of each weight matrix
    dreams: int = 256  # in each world
    temperature: float = 1.15
    seed: int = 0


@struct.dataclass
class WatchedParams:
    """A world, and the M that watches it."""

    dream: EnvParams
    watcher: Memory

    @property
    def max_steps_in_episode(self) -> jax.Array:
        """The world's."""
        return self.dream.max_steps_in_episode


@struct.dataclass
class WatchedState:
    """The world's state, and the watcher's memory of what it saw."""

    dream: EnvState
    watching: Carry

    @property
    def time(self) -> jax.Array:
        """Steps dreamt."""
        return self.dream.time


class WatchedDream(DreamEnv):
    """A dream whose player remembers it through another world's M."""

    def reset_env(self, key, params: WatchedParams):
        """As `DreamEnv`."""
        obs, dream = super().reset_env(key, params.dream)
        return obs, WatchedState(dream, params.watcher.initial_carry())

    def transition(self, noise, state: WatchedState, action, params: WatchedParams):
        """The world's step; the watcher reads what the world's M reads."""
        before, action = state.dream, self.clipped(action)
        _, dream, *rest = super().transition(noise, before, action, params.dream)
        watching, _ = params.watcher(state.watching, before.z, action, before.time)
        obs = params.watcher.features(dream.z, watching)
        return obs, WatchedState(dream, watching), *rest


def company(worlds: Sequence[World], config: Config) -> tuple[list[str], list[EnvParams]]:
    """Every world and its jittered copies."""
    names, found = [], []
    for name, world in zip(config.worlds, worlds, strict=True):
        params = world.params(config.temperature)
        for copy in range(1 + config.copies):
            key = jax.random.fold_in(jax.random.key(config.seed), copy)
            memory = jittered(params.memory, key, config.jitter if copy else 0.0)
            names.append(f"{name}, jittered {copy}" if copy else name)
            found.append(params.replace(memory=memory))
    return names, found


def jittered(memory: Memory, key: jax.Array, size: float) -> Memory:
    """`memory` with noise of `size` times each array's standard deviation."""

    def shake(leaf):
        noise = jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape)
        return (leaf + size * jnp.std(leaf.astype(jnp.float32)) * noise).astype(leaf.dtype)

    return jax.tree.map(shake, memory)


def main(config: Config) -> dict[str, np.ndarray]:
    """Steps survived in each world, printed; [dreams] by name."""
    worlds = [load_world(source) for source in config.worlds]
    if len({digest(world.vision) for world in worlds}) > 1:
        raise ValueError("these worlds have different V; use worlds trained on the same latents")
    names, params = company(worlds, config)
    lived = np.asarray(play_all(params, params[0].memory, worlds[0], config))
    for name, steps in zip(names, lived, strict=True):
        error = steps.std(ddof=1) / np.sqrt(len(steps))
        print(f"{name:<40}{steps.mean():>8.0f} ± {error:.0f} (standard error)")
    return dict(zip(names, lived, strict=True))


def play_all(
    dreams: list[EnvParams],
    watcher: Memory,
    world: World,
    config: Config,
) -> jax.Array:
    """Steps survived by the world's C, [worlds, dreams], all worlds in one call."""
    env, player = WatchedDream(world.task), world.player

    @jax.jit
    def play(stacked, watcher, weights):
        def in_one(dream):
            params, key = WatchedParams(dream, watcher), jax.random.key(config.seed)
            played = rollout(key, env, params, player.controller, weights[None], config.dreams)
            return played.score[0]

        return jax.vmap(in_one)(stacked)

    return play(jax.tree.map(lambda *leaves: jnp.stack(leaves), *dreams), watcher, player.weights)


if __name__ == "__main__":
    main(tyro.cli(Config))
