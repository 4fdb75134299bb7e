"""Car Racing: gymnasium's game of Box2D; the only module that imports it."""

import os

import gymnasium


def make() -> gymnasium.Env:
    """CarRacing-v3; a full lap is the whole track, as in the v0 the paper played."""
    check()
    from gymnasium.envs.box2d.car_racing import CarRacing

    return Laps(CarRacing(continuous=True, domain_randomize=False, lap_complete_percent=1.0))


def check() -> None:
    """Raise ImportError, with the remedy, where something of the game is missing."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import Box2D  # noqa: F401
        import pygame  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'Car Racing needs Box2D and pygame ({error}): pip install "gymnasium[box2d]"'
        ) from None


class Laps(gymnasium.Wrapper):
    """Tells a lap completed from a car that left the track, by `info["end"]`."""

    def step(self, action):
        """One frame; see `gymnasium.Env.step`."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        if terminated:
            info = {**info, "end": "lap" if info.get("lap_finished") else "off track"}
        return frame, reward, terminated, truncated, info
