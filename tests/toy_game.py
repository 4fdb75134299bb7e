"""A real game small enough to reason about: it lasts as many steps as its seed says."""

import os
import signal

import gymnasium
import numpy as np
from gymnasium import spaces


class Countdown(gymnasium.Env):
    """Dies after 3 + (seed // 2) % 7 steps; the picture's brightness is the step."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def _frame(self):
        return np.full((64, 64, 3), 10 * self.time, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.life = 0, 3 + (seed // 2) % 7
        return self._frame(), {}

    def step(self, action):
        self.time += 1
        return self._frame(), 1.0, self.time >= self.life, False, {}


class Fatal(Countdown):
    """Takes its process with it at its third step."""

    def step(self, action):
        if self.time == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def make():
    return Countdown()


def fatal():
    return Fatal()


def brighter(actions, rng):
    """A policy that looks: its action tells how bright the picture was."""
    return lambda step, frame: np.array([frame.mean() / 255], np.float32)
