"""The form of a game's actions: one vector of numbers, for the game, M, C and the dream alike.

A `Box` is the game's own numbers, in its units; `Keys` is one number that presses one of two keys,
or neither; a `Choice` is the one-hot vector of a discrete action, or of one of all combinations of
several. No jax here: the processes that only play a game import this.
A: numbers in an action.
"""

import dataclasses
import math
from typing import Any

import gymnasium
import numpy as np

LARGEST = 1e18  # bounds of an action beyond it count as none
MOST_CHOICES = 256  # combinations of several discrete actions; more are no one-hot vector


@dataclasses.dataclass(frozen=True)
class Box:
    """Numbers between bounds, A of each, as gymnasium's `Box`."""

    low: tuple[float, ...] = (-1.0,)  # lower bounds
    high: tuple[float, ...] = (1.0,)  # upper bounds
    clipped: tuple[int, ...] = ()  # places where C's tanh is cut to the bounds instead of stretched
    # over them (the paper's brake)

    @property
    def size(self) -> int:
        """A."""
        return len(self.low)

    def space(self) -> gymnasium.spaces.Box:
        """All vectors [A]."""
        low, high = (np.asarray(bound, np.float32) for bound in (self.low, self.high))
        return gymnasium.spaces.Box(low, high, dtype=np.float32)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A random action, float32 [A]."""
        return rng.uniform(self.low, self.high).astype(np.float32)

    def corners(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Two opposite extremes, float32 [A] each."""
        low, high = (np.asarray(bound, np.float32) for bound in (self.low, self.high))
        side = rng.random(self.size) < 0.5
        return np.where(side, low, high), np.where(side, high, low)

    def to_game(self, action: np.ndarray, space: gymnasium.spaces.Box) -> np.ndarray:
        """What the game's `step` is given for a vector [A]: a point of its own action space."""
        exact = np.asarray(action, np.float64).reshape(space.shape)
        if np.issubdtype(space.dtype, np.integer):
            exact = np.rint(exact)
        return np.asarray(np.clip(exact, space.low, space.high), space.dtype)

    @property
    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Center and half width [A] by which the numbers become [-1, 1]; None if they are so.

        A number keeps its units where its bounds lie in [-1, 1] and at least 1 apart.
        """
        if all(_keeps_units(*bounds) for bounds in zip(self.low, self.high, strict=True)):
            return None
        pairs = [
            (0.0, 1.0) if _keeps_units(low, high) else ((low + high) / 2, (high - low) / 2 or 1.0)
            for low, high in zip(self.low, self.high, strict=True)
        ]
        center, half = zip(*pairs, strict=True)
        return center, half


def _keeps_units(low: float, high: float) -> bool:
    return low >= -1 and high <= 1 <= high - low


@dataclasses.dataclass(frozen=True)
class Keys(Box):
    """One number in [-1, 1]: below `-pressed` one key is held, above `pressed` the other."""

    pressed: float = 1 / 3

    choices = (-1.0, 0.0, 1.0)  # one key, neither, the other


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of `n` actions, as gymnasium's `Discrete`; the vector is one-hot.

    Of `MultiDiscrete` and `MultiBinary` each combination is one action, the last number varying
    fastest.
    """

    n: int  # A, how many there are
    start: int = 0  # the game's number of the first

    scale = None  # a one-hot vector lies in [0, 1]

    @property
    def size(self) -> int:
        """A."""
        return self.n

    @property
    def low(self) -> tuple[float, ...]:
        """Lower bounds of the vector."""
        return (0.0,) * self.n

    @property
    def high(self) -> tuple[float, ...]:
        """Upper bounds of the vector."""
        return (1.0,) * self.n

    def space(self) -> gymnasium.spaces.Box:
        """Box [A] around the one-hot vectors."""
        return gymnasium.spaces.Box(0, 1, (self.n,), np.float32)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A random action, one-hot float32 [A]."""
        return self._hot(int(rng.integers(self.n)))

    def corners(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Two different actions, where there are two."""
        one, other = (int(x) for x in rng.permutation(max(self.n, 2))[:2] % self.n)
        return self._hot(one), self._hot(other)

    def to_game(self, action: np.ndarray, space: gymnasium.Space) -> Any:
        """The game's number of a vector [A], an np.integer as `Discrete` draws them, or numbers."""
        chosen = int(np.argmax(action))
        sizes = _sizes(space)
        if sizes is None:
            return space.dtype.type(self.start + chosen)
        numbers = np.asarray(np.unravel_index(chosen, sizes.ravel()), space.dtype)
        return numbers.reshape(sizes.shape) + np.asarray(getattr(space, "start", 0), space.dtype)

    def _hot(self, choice: int) -> np.ndarray:
        return np.eye(self.n, dtype=np.float32)[choice]


Actions = Box | Choice


def actions_of(space: gymnasium.Space) -> Actions:
    """The form of a game's action space; a `Box` of any shape is laid out flat.

    Raises:
      ValueError: neither `Discrete`, nor several such of few combinations, nor a `Box` with bounds
        that float32 can tell apart.
    """
    if isinstance(space, gymnasium.spaces.Discrete):
        return Choice(int(space.n), int(space.start))
    sizes = _sizes(space)
    if sizes is not None:
        count = math.prod(sizes.ravel().tolist())
        if count > MOST_CHOICES:
            raise ValueError(
                f"actions have {count:,} combinations, more than {MOST_CHOICES}, in "
                f"{in_a_line(space)}; wrap the game and offer the useful ones as Discrete"
            )
        return Choice(count)
    if not isinstance(space, gymnasium.spaces.Box) or not math.prod(space.shape):
        raise ValueError(
            "actions must be Discrete, MultiDiscrete, MultiBinary or a Box, got "
            f"{in_a_line(space)}; wrap the game"
        )
    low, high = (np.float64(bound).ravel() for bound in (space.low, space.high))
    if not (np.maximum(abs(low), abs(high)) < LARGEST).all():
        raise ValueError(f"actions must have bounds, got {in_a_line(space)}; wrap the game")
    if (np.equal(*np.asarray((low, high), np.float32)) & (low < high)).any():
        raise ValueError(
            f"the bounds of actions are too near each other for float32, got {in_a_line(space)}; "
            "wrap the game by gymnasium.wrappers.RescaleAction"
        )
    return Box(tuple(map(float, low)), tuple(map(float, high)))


def _sizes(space: gymnasium.Space | None) -> np.ndarray | None:
    """How many values each of several discrete actions has; None of other spaces."""
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return np.asarray(space.nvec)
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return np.full(space.shape, 2)
    return None


def in_a_line(space: gymnasium.Space) -> str:
    """A space in words; its own may have several lines."""
    return " ".join(str(space).split())
