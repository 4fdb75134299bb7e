"""Games of one square, quick to import: a worker imports no more than a game's own module."""

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamjax.task import Task


class Slider(gymnasium.Env):
    """A square that goes left or right by as many columns of a large picture as `speed` says."""

    observation_space = spaces.Box(0, 255, (128, 128, 3), np.uint8)
    action_space = spaces.Discrete(2)
    speed, noise = 2.0, False

    def reset(self, *, seed=None, options=None):
        """Begin in the middle."""
        super().reset(seed=seed)
        self.place, self.time = 56.0, 0
        return self._picture(), {}

    def step(self, action):
        """Move; 3 is paid each 20 steps, and a wall ends it."""
        self.time += 1
        self.place += self.speed * (2 * action - 1)
        at_wall = not 8 < self.place < 104
        return self._picture(), 3.0 * (self.time % 20 == 0), at_wall, False, {}

    def _picture(self):
        picture = np.full((128, 128, 3), 255, np.uint8)
        picture[56:72, round(self.place) : round(self.place) + 16] = 0
        if self.noise:
            picture[:8] = np.random.default_rng().integers(0, 256, (8, 128, 3))
        return picture


class Crawler(Slider):
    """Moves a column in a hundred steps."""

    speed = 0.01


class Flicker(Slider):
    """Draws noise of its own."""

    noise = True


SLIDER = Task("slider", make=Slider, max_steps=40)
gymnasium.register("Slider-v3", Slider, max_episode_steps=40)
