"""Policies that never look at the screen, and whole episodes played by them.

`held` gathers the paper's data (`doomrnn/extract.py`); `uniform` is its random baseline; `blind`
is what a controller of Take Cover has to beat before its score says anything about a world model.
A: numbers in an action.
"""

from collections.abc import Callable, Iterator

import gymnasium
import numpy as np

from dreamjax.real import engine_seed

Policy = Callable[[int], np.ndarray]
BLIND_HOLD = 110  # steps; the best of the hold times tried


def uniform(space: gymnasium.spaces.Box, rng: np.random.Generator) -> Policy:
    """A fresh uniform action every step."""
    return lambda step: _draw(space, rng)


def held(space: gymnasium.spaces.Box, rng: np.random.Generator) -> Policy:
    """A uniform action held for k steps, k uniform in 1..10, both redrawn each time."""
    return _holding(lambda last: _draw(space, rng), lambda: int(rng.integers(1, 11)))


def varied(space: gymnasium.spaces.Box, rng: np.random.Generator) -> Policy:
    """Every place and age that a controller may reach: habits of the episode's own.

    Half of the episodes hold uniform actions as `held` does; half swing between two opposite
    corners of the action space, and so cross the room and live longer. Either way k is uniform in
    L/2..L, with the episode's L log-uniform in 1..240.
    """
    longest = int(np.exp(rng.uniform(0.0, np.log(240.0))))
    first = np.where(rng.random(space.shape) < 0.5, space.low, space.high)

    def swing(last: np.ndarray | None) -> np.ndarray:
        return first if last is None else space.low + space.high - last

    choose = rng.choice([swing, lambda last: _draw(space, rng)])
    return _holding(choose, lambda: int(rng.integers((longest + 1) // 2, longest + 1)))


def _holding(
    choose: Callable[[np.ndarray | None], np.ndarray], draw_hold: Callable[[], int]
) -> Policy:
    """Hold an action, choose the next from the last."""
    action, until = None, 0

    def policy(step: int) -> np.ndarray:
        nonlocal action, until
        if step >= until:
            action, until = choose(action), step + draw_hold()
        return action

    return policy


def blind(space: gymnasium.spaces.Box, rng: np.random.Generator) -> Policy:
    """`BLIND_HOLD` steps left, as many right, and again.

    Raises:
      ValueError: the action is not one number.
    """
    del rng
    if space.shape != (1,):
        raise ValueError("the blind policy steps left and right: it plays Take Cover only")
    sides = space.low, space.high
    return lambda step: sides[step // BLIND_HOLD % 2]


POLICIES = {"uniform": uniform, "held": held, "varied": varied, "blind": blind}


def check(name: str) -> None:
    """Raise ValueError unless there is a policy of that name."""
    if name not in POLICIES:
        raise ValueError(f"no policy is called {name!r}; choose one of {', '.join(POLICIES)}")


def play_steps(
    env: gymnasium.Env, policy: str, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, float, bool]]:
    """Play one episode, which is a function of the game, the policy's name and the seed.

    Yields:
      `(frame before the action, action [A], reward, terminated)` for every step.
    """
    act = POLICIES[policy](env.action_space, np.random.default_rng(engine_seed(seed)))
    frame, _ = env.reset(seed=seed)
    step, over = 0, False
    while not over:
        action = act(step)
        next_frame, reward, terminated, truncated, _ = env.step(action)
        yield frame, action, reward, terminated
        frame, step, over = next_frame, step + 1, terminated or truncated


def score(
    env: gymnasium.Env, job: tuple[str, int], tick: Callable[[int], None]
) -> tuple[float, int, bool]:
    """`(return, steps, terminated)` of the episode of `job = (policy, seed)`."""
    total, steps, died = 0.0, 0, False
    for _, _, reward, terminated in play_steps(env, *job):
        total, steps, died = total + reward, steps + 1, terminated
        tick(1)
    return total, steps, died


def _draw(space: gymnasium.spaces.Box, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(space.low, space.high).astype(np.float32)
