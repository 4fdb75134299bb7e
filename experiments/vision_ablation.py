"""What makes V see fireballs: its rate's fall and their pixels' weight, each with and without.

    python experiments/vision_ablation.py --rollouts runs/cpu/rollouts

Each V is trained alike but for these two, and judged on frames of games that are never recorded,
beside the shipped V.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import tyro

from dreamjax.agent import evaluation_seeds
from dreamjax.dream.worlds import load_world
from dreamjax.fidelity.compare import reconstruction
from dreamjax.game.env import make_env
from dreamjax.game.policies import play_steps
from dreamjax.tasks import TAKE_COVER
from dreamjax.training.logbook import Logbook
from dreamjax.training.settings import require_positive
from dreamjax.vision.model import VAE
from dreamjax.vision.training import VisionConfig, train_vision


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the ablation."""

    rollouts: Path  # recorded by `dreamjax collect take-cover`
    steps: int = 1500  # batches of 100 frames for each V
    learning_rate: float = 1e-3  # at the first batch
    falls_to: float = 2e-5  # at the last, where the rate falls
    weight: float = 10.0  # of a fireball's pixel, where it counts more
    episodes: int = 10  # games to judge on
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "steps", "episodes")


def main(config: Config) -> dict[str, dict[str, float]]:
    """Train and judge each V; print a row for each."""
    world = load_world("take-cover")
    frames = unseen_frames(config.episodes)
    print(f"{len(frames)} frames; squared error a frame in all, and in pixels of fireballs")
    found = {}
    for name, vae in ablations(config, world.vision):
        found[name] = reconstruction(dataclasses.replace(world, vision=vae), frames)
        print("{:<36}{error:>6.1f}{salient:>6.2f}".format(name, **found[name]), flush=True)
    spread = found["shipped"]["salient_variance"]
    print(f"{'always the mean frame':<36}{'':>6}{spread:>6.2f}")
    return found


def unseen_frames(episodes: int) -> np.ndarray:
    """Frames uint8 [N, 64, 64, 3] of games of the held policy that are never recorded."""
    env = make_env(TAKE_COVER)
    games = (play_steps(env, "held", seed) for seed in evaluation_seeds(1000, episodes))
    frames = np.stack([step[0] for game in games for step in game])
    env.close()
    return frames


def ablations(config: Config, shipped: VAE):
    """Yield the name and V of each row."""
    yield "shipped", shipped
    rates, weights = (config.learning_rate, config.falls_to), (1.0, config.weight)
    for final_rate, weight in itertools.product(rates, weights):
        settings = VisionConfig(
            steps=config.steps,
            learning_rate=config.learning_rate,
            final_learning_rate=final_rate,
            salient_weight=weight,
        )
        log = Logbook(quiet=True)
        vae = train_vision(TAKE_COVER, config.rollouts, settings, config.seed, log=log)
        yield f"rate {config.learning_rate:g} to {final_rate:g}, weight {weight:g}", vae


if __name__ == "__main__":
    main(tyro.cli(Config))
