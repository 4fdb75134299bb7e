"""Settings that cannot be, refused in one line before anything runs."""

import math
import os
from typing import Any

PLAYING = "DREAMJAX_SCRATCH"  # in the environment of a process that only plays games
MOST_SEED = 2**31 - 1  # the most that every generator of random numbers here knows


class SettingError(ValueError):
    """A setting out of its range; names the value and the remedy."""


def name_of(settings: Any, field: str) -> str:
    """A field as the command line has it: `vision.steps` of `VisionConfig.steps`."""
    section = type(settings).__name__.removesuffix("Config").lower()
    return field if section == "run" else f"{section}.{field}"


def require_positive(settings: Any, *names: str) -> None:
    """Raise SettingError if one of these fields is not above zero, or not finite."""
    for name in names:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            least = "at least 1" if isinstance(value, int) else "more than 0"
            raise SettingError(f"{name_of(settings, name)} must be {least}, got {value}")


def require_within(settings: Any, **ranges: str) -> None:
    """Raise SettingError if a field lies outside its range, such as "[0, 1)", or is no number."""
    for name, text in ranges.items():
        value = getattr(settings, name)
        low, high = (float(end) for end in text[1:-1].split(","))
        above = value >= low if text[0] == "[" else value > low
        below = value <= high if text[-1] == "]" else value < high
        if not (above and below):
            raise SettingError(f"{name_of(settings, name)} must be in {text}, got {value}")


def check_guarded() -> None:
    """Raise RuntimeError in a process that only plays games, which imports a script to make one."""
    if PLAYING in os.environ:
        raise RuntimeError(
            "a script that works when it is imported was imported to make a game; put what it does "
            'under: if __name__ == "__main__":'
        )


def check_seed(seed: int) -> int:
    """`seed` itself; raise SettingError if it is negative or too large."""
    if not 0 <= seed <= MOST_SEED:
        raise SettingError(f"seed must be from 0 to {MOST_SEED:,}, got {seed}")
    return seed
