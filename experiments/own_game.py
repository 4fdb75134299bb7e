"""A game of one's own: this file registers it, learns its dream, and plays it awake.

    python experiments/own_game.py --run-dir runs/catch

or, as for any game, `dreamjax run own_game:CATCH --run-dir runs/catch` beside this file. Apples
fall, a basket catches them: 1 for each that is caught, -1 for each that is missed. The episode
ends when the basket is full, which is no death, or is cut after 400 steps.
"""

import dataclasses
from pathlib import Path

import gymnasium
import numpy as np
import tyro

import dreamjax
from dreamjax.run.settings import CollectConfig, EvaluateConfig
from dreamjax.training.files import writable
from dreamjax.training.logbook import Logbook

SIDE = 48  # rows and columns of the picture
FULL = 10  # apples
SPEED = 3  # pixels a step, of the basket; an apple falls 2
HALF = 7  # of the basket's width


class Catch(gymnasium.Env):
    """The game, as any gymnasium environment whose observations are pictures."""

    observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed=None, options=None):
        """Start with an empty basket in the middle."""
        super().reset(seed=seed)
        self.basket, self.caught = SIDE // 2, 0
        self._drop()
        return self._picture(), {}

    def step(self, action):
        """Move the basket, let the apple fall."""
        self.basket = int(np.clip(self.basket + SPEED * (action - 1), HALF, SIDE - HALF))
        self.row, reward = self.row + 2, 0.0
        if self.row >= SIDE - 6:
            hit = abs(self.column - self.basket) <= HALF
            reward, self.caught = (1.0, self.caught + 1) if hit else (-1.0, self.caught)
            self._drop()
        return self._picture(), reward, self.caught == FULL, False, {}

    def _drop(self):
        self.row, self.column = 4, int(self.np_random.integers(HALF, SIDE - HALF))

    def _picture(self):
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        picture[:3, : self.caught * SIDE // FULL] = 255, 220, 0  # how full the basket is
        picture[self.row - 3 : self.row + 4, self.column - 3 : self.column + 4] = 255, 90, 60
        picture[SIDE - 5 :, self.basket - HALF : self.basket + HALF] = 120, 180, 255
        return picture


CATCH = dreamjax.Task(
    name="catch",
    make=Catch,
    ends=("full",),
    latent_size=16,
    hidden_size=128,
    max_steps=400,
    salient=dreamjax.Colour(1, -1, 0, above=0.4),  # apples: small, and all that matters
)

SETTINGS = dreamjax.RunConfig(
    collect=CollectConfig(episodes=100),
    vision=dreamjax.VisionConfig(steps=600, batch_size=64, learning_rate=1e-3, salient_weight=10),
    memory=dreamjax.MemoryConfig(
        steps=1500, batch_size=32, sequence_length=64, learning_rate=3e-3, decay=0.998
    ),
    learn=dreamjax.LearnConfig(steps=2_000_000, num_envs=128, gamma=0.97),
    evaluate=EvaluateConfig(episodes=100),
    controller="learn",
    controller_hidden=32,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    run_dir: Path  # everything is written here
    seed: int = 0


def main(config: Config) -> None:
    """Collect, train V and M, learn C in the dream, play."""
    directory, task = writable(config.run_dir), dreamjax.register(CATCH)
    run = dreamjax.Run(directory, task, config.seed, SETTINGS, Logbook(directory))
    dreamjax.run_phases(run)


if __name__ == "__main__":
    main(tyro.cli(Config))
