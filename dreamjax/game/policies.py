"""Blind policies, which ignore the picture, and whole episodes played by any policy.

`held` gathers the paper's data (`doomrnn/extract.py`); `uniform` is its random baseline; `blind`,
which the task names, is what a controller has to beat before its score says anything about a
world model. A: numbers in an action.
"""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from dreamjax.actions import Actions
from dreamjax.game.env import RealGame, engine_seed, in_a_sentence
from dreamjax.importing import find
from dreamjax.task import Task

Policy = Callable[..., np.ndarray]  # (step, frame) -> action; without a frame if it is blind


def uniform(actions: Actions, rng: np.random.Generator) -> Policy:
    """A fresh uniform action every step."""
    return lambda step, frame=None: actions.draw(rng)


def held(actions: Actions, rng: np.random.Generator) -> Policy:
    """A uniform action held for k steps, k uniform in 1..10, both redrawn each time."""
    return holding(lambda last: (actions.draw(rng), int(rng.integers(1, 11))))


def varied(actions: Actions, rng: np.random.Generator) -> Policy:
    """Every place and age that a controller may reach: habits of the episode's own.

    Half of the episodes hold uniform actions as `held` does; half swing between two opposite
    corners of the action space, and so cross the room and live longer. Either way k is uniform in
    L/2..L, with the episode's L log-uniform in 1..240.
    """
    longest = int(np.exp(rng.uniform(0.0, np.log(240.0))))
    first, second = actions.corners(rng)
    swings = rng.choice([True, False])

    def choose(last: np.ndarray | None) -> tuple[np.ndarray, int]:
        opposite = second if last is first else first
        action = opposite if swings else actions.draw(rng)
        return action, int(rng.integers((longest + 1) // 2, longest + 1))

    return holding(choose)


def holding(choose: Callable[[np.ndarray | None], tuple[np.ndarray, int]]) -> Policy:
    """Hold an action for some steps; `choose` draws both from the last action."""
    action, until = None, 0

    def policy(step: int, frame: np.ndarray | None = None):
        nonlocal action, until
        if step >= until:
            action, steps = choose(action)
            until = step + steps
        return action

    return policy


POLICIES = {"uniform": uniform, "held": held, "varied": varied}
BLIND, HABITS = "blind", "habits"  # the names of whichever policies the task calls so
NAMES = (*POLICIES, BLIND, HABITS)


def check(name: str) -> None:
    """Raise ValueError unless there is a policy of that name, or "module:function" names one."""
    if ":" in name:
        find(name)
    elif name not in NAMES:
        raise ValueError(
            f"no policy is called {name!r}; choose one of {', '.join(NAMES)}, or name your own as "
            "module:function"
        )


def begin(task: Task, name: str, rng: np.random.Generator) -> Policy:
    """A policy at the beginning of an episode; ValueError if the task's own is not to be found."""
    name = {BLIND: task.blind, HABITS: task.habits}.get(name, name)
    policy = POLICIES[name] if name in POLICIES else find(name)
    return policy(task.actions, rng)


def play_steps(
    env: RealGame, policy: str, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, float, int | None]]:
    """Play one episode in `env`, a function of the game, the policy's name and the seed.

    Yields:
      `(frame before the action, action [A], reward, end)` for every step; the end is its place in
      `task.ends`, or None where none came.
    """
    with naming(env.task, policy, seed):
        act = begin(env.task, policy, np.random.default_rng(engine_seed(seed)))
    frame, _ = env.reset(seed=seed)
    step, over = 0, False
    while not over:
        with naming(env.task, policy, seed):
            action = np.array(act(step, frame.copy()), np.float32)  # neither is ours alone
        next_frame, reward, terminated, truncated, info = env.step(action)
        yield frame, action, reward, info["end"] if terminated else None
        frame, step, over = next_frame, step + 1, terminated or truncated


@contextlib.contextmanager
def naming(task: Task, policy: str, seed: int) -> Iterator[None]:
    """Turn whatever a policy raises into one line that names it."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{task.name}: policy {policy} failed in the episode with seed {seed} "
            f"({in_a_sentence(error)}); it must make (step, frame) -> action"
        ) from error


def score(
    env: RealGame, job: tuple[str, int], tick: Callable[[int], None]
) -> tuple[float, int, bool]:
    """`(return, steps, terminated)` of the episode of `job = (policy, seed)`."""
    total, steps, end = 0.0, 0, None
    for _, _, reward, end in play_steps(env, *job):  # noqa: B007
        total, steps = total + reward, steps + 1
        tick(1)
    return total, steps, end is not None
