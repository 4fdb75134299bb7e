"""Eight drivers of Car Racing that nobody used while the shipped world was made.

They were chosen before they were dreamt, and looked at once:

    python experiments/unseen.py --dreams 48 --tracks 24
"""

import dataclasses

import numpy as np
import tyro

from dreamjax.game.car_racing import Driver
from experiments.panel import Config, main


def weaver(actions, rng):
    """The rule at gas 0.2, swinging from side to side."""
    drive = Driver(gas=0.2)
    return lambda step, frame: within(drive(step, frame) + [0.25 * np.sin(step / 4), 0, 0])


def late(actions, rng):
    """The rule, which acts on what it saw two steps before."""
    drive, seen = Driver(), []

    def policy(step, frame):
        seen.append(frame)
        return drive(step, seen[max(0, step - 2)])

    return policy


def short_sighted(actions, rng):
    """A rule that looks at the next few metres alone, at gas 0.3."""
    return Driver(ahead=4, gain=0.08, gas=0.3)


def pulsing(actions, rng):
    """The rule's steering, under a gas that is on for ten steps and off for ten."""
    drive = Driver()
    return lambda step, frame: within(
        drive(step, frame) * [1, 0, 1] + [0, 0.4 * (step // 10 % 2), 0]
    )


def aside(actions, rng):
    """The rule at gas 0.2, which keeps left on the road."""
    drive = Driver(gas=0.2)
    return lambda step, frame: drive(step, np.roll(frame, 3, axis=1))


def stopping(actions, rng):
    """The rule for 80 steps; then it brakes and stands."""
    drive, brake = Driver(), np.array([0, 0, 1], np.float32)
    return lambda step, frame: drive(step, frame) if step < 80 else brake


def zigzag(actions, rng):
    """Blind: left for 15 steps, right for 15, and again."""
    return lambda step, frame: np.array([0.4 * (-1) ** (step // 15), 0.15, 0], np.float32)


def reckless(actions, rng):
    """The rule at gas 0.9."""
    return Driver(gas=0.9)


def within(action):
    return np.clip(action, (-1, 0, 0), 1).astype(np.float32)


DRIVERS = (weaver, late, short_sighted, pulsing, aside, stopping, zigzag, reckless)

if __name__ == "__main__":
    names = tuple(f"experiments.unseen:{driver.__name__}" for driver in DRIVERS)
    main(dataclasses.replace(tyro.cli(Config), policies=names))
