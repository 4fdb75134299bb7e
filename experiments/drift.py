"""How long a dream of Car Racing keeps to the road of a game whose actions it is given.

    python experiments/drift.py --world car-racing

C plays; the dream begins as the game does and never looks again. The road is lost where it is not
seen ahead of the car for five steps.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax.agent import watch
from dreamjax.dream.env import state_at
from dreamjax.dream.start_states import StartStates
from dreamjax.dream.unroll import follow, unroll
from dreamjax.dream.worlds import load_player, load_world
from dreamjax.game.car_racing import _middle
from dreamjax.training.settings import require_positive
from dreamjax.vision.model import drawn

LOST = 5  # steps without a road ahead
SEEN = 3  # rows of it that a driver needs


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str = "car-racing"  # a run, or a world's name or folder, that has a C
    games: int = 20
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "games")


def main(config: Config) -> np.ndarray:
    """Print, and return, the steps [games] until the road is lost."""
    world = load_world(config.world)
    player, kept = load_player(config.world, world), []
    for seed in range(config.seed, config.seed + config.games):
        _, latents, actions = watch(world, player, seed, world.task.max_steps)
        kept.append(steps_on_road(drawn(world.vision, dreamt(world, latents[0], actions, seed))))
        print(f"game {seed}: {kept[-1]} of {len(actions)} steps", flush=True)
    print(f"median {np.median(kept):.0f} steps, {config.games} games")
    return np.array(kept)


def dreamt(world, z: np.ndarray, actions: np.ndarray, seed: int) -> np.ndarray:
    """Latents [T, Z] of the dream that begins at `z` and does `actions`."""
    start = state_at(StartStates(jnp.int32(0), jnp.asarray(z), world.memory.initial_carry()))
    keys = jax.random.split(jax.random.key(seed), len(actions))
    params = world.params(dropout=0.0)
    return np.asarray(unroll(world.env(), params, start, keys, follow, jnp.asarray(actions))[0])


def steps_on_road(frames: np.ndarray) -> int:
    """Steps until the road is lost; all, if it never is."""
    seen = np.array([len(_middle(frame)) >= SEEN for frame in frames])
    lost = np.convolve(~seen, np.ones(LOST), "valid") == LOST
    return int(lost.argmax()) if lost.any() else len(frames)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
