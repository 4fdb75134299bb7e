"""Somebody else's game, quick to import: a worker imports no more than a game's own module."""

import os

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from dreamjax import actions
from dreamjax.task import Task


class Dot(gymnasium.Env):
    """A bright dot drifts over a dim field; `change` makes another game of it."""

    observation_space = Box(-1, 2, (1,), np.float32)
    action_space = Discrete(3)
    render_mode = "rgb_array"

    def __init__(self, **change):
        vars(self).update(change)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0.5
        return self.seen(), {}

    def step(self, action):
        self.done = action
        self.x += 0.1 * self.np_random.normal()
        return self.seen(), self.paid(), not 0 < self.x < 1, False, {}

    def paid(self):
        return 1.0

    def seen(self):
        return np.float32([self.x])

    def picture(self):
        found = np.full((48, 64, 3), 40, np.uint8)
        found[20:30, :, 0] = 60
        column = int(np.clip(self.x, 0, 1) * 54)
        found[20:30, column : column + 10] = 255
        return found

    def render(self):
        return self.picture()


class Alone(Dot):
    """A simulator of which a process can hold one only."""

    held = False

    def __init__(self):
        if Alone.held:
            raise RuntimeError("one a process")
        Alone.held = True

    def close(self):
        Alone.held = False


class Paid(Dot):
    def paid(self):
        return 1e7 * self.np_random.normal()


class Spoilt(Dot):
    """Pays NaN in its third step; its file lies in the directory of the command."""

    def __init__(self):
        with open("level.txt") as level:
            self.level = level.read()

    def paid(self):
        self.paying = getattr(self, "paying", 0) + 1
        return float(self.level) if self.paying > 20 else 1.0


class Strict(Dot):
    playing = False

    def reset(self, *, seed=None, options=None):
        if self.playing or not seed:
            raise RuntimeError("the episode is not over")
        self.playing, self.steps = True, 0
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, ended, _, info = super().step(action)
        self.steps += 1
        self.playing = not ended and self.steps < 20
        return obs, reward, ended, not (self.playing or ended), info

    def close(self):
        raise NotImplementedError


class Ending(Dot):
    def step(self, action):
        os._exit(3)


DOT = Task("dot", make="dot:Dot", actions=actions.Choice(3), max_steps=60)
