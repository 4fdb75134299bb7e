"""What M makes of actions: dreams from moments of held-out episodes, under actions given to them.

    python experiments/open_loop.py --run runs/racing --actions 1,0.1,0 0.3,0.1,0 0,1,0

A dream whose latents follow another episode's actions as well as their own does not listen, and
one that rewards what the game does not will be exploited. Both show here in seconds, before a C
has learnt anything in it.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import tyro

from dreamjax.dream.env import DreamEnv, EnvParams, state_at
from dreamjax.dream.start_states import StartStates, start_states_at
from dreamjax.dream.worlds import load_world
from dreamjax.memory.latents import LatentSequences, read_latents
from dreamjax.task import Task
from dreamjax.training.settings import require_positive

SAYS = 0.5  # posterior variance of a latent up to which V says something in it


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    run: Path  # with its world and its latents
    actions: tuple[str, ...] = ()  # held all the time, numbers between commas
    temperature: float = 0.05  # low, so that M's own noise does not hide what it expects
    steps: int = 40
    moments: int = 1000
    held_out: float = 0.1  # as M was trained
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "steps", "moments")


def main(config: Config) -> dict[str, list[float]]:
    """Print, and return, what is foreseen of latents and expected of rewards."""
    world = load_world(config.run)
    for name in config.actions:
        _action(name, world.task)
    _, held = read_latents(config.run / "latents").split(config.held_out)
    episodes, ages = _chosen(held, config)
    starts = start_states_at(world.memory, held, episodes, ages, config.seed)
    frames = (held.first[episodes] + ages).ravel()[:, None] + np.arange(config.steps + 1)
    actions, mu = held.actions[frames[:, :-1]], held.mu[frames].astype(np.float32)
    noise = np.exp(held.logvar.astype(np.float32)).mean(axis=0)
    says = noise <= max(SAYS, noise.min())
    dream = functools.partial(dreamt, world.env(), world.params(config.temperature), starts)
    after = [step for step in (1, 2, 4, 8, 16, 32) if step <= config.steps]
    print(f"{len(frames)} moments; share of the latents' change foreseen after {after} steps")
    others = np.random.default_rng(config.seed).permutation(len(actions))
    found = {}
    for name, told in (("own actions", actions), ("another's", actions[others])):
        z = dream(told, config.seed)[0]
        found[name] = [_foreseen(z[:, step - 1], mu[:, step], mu[:, 0], says) for step in after]
        print(f"  {name:<14}", *(f"{share:6.2f}" for share in found[name]))
    last = config.steps // 5
    print(f"reward a step expected, first and last {last} of {config.steps} steps")
    for name in config.actions:
        held_all_along = np.broadcast_to(_action(name, world.task), actions.shape)
        reward = dream(held_all_along, config.seed)[1]
        found[name] = [float(part.mean()) for part in (reward[:, :last], reward[:, -last:])]
        print(f"  {name:<14}", *(f"{mean:6.2f}" for mean in found[name]))
    return found


def _action(name: str, task: Task) -> np.ndarray:
    """The action [A] of numbers between commas."""
    try:
        action = np.float32(name.split(","))
    except ValueError:
        action = np.full(1, np.nan, np.float32)
    if action.shape != (task.action_size,) or not np.isfinite(action).all():
        sys.exit(
            f"an action of {task.name} is {task.action_size} numbers between commas, got {name!r}"
        )
    return action


def _chosen(held: LatentSequences, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Episodes [E] that are long enough, and ages [n, E] in them."""
    rng, room = np.random.default_rng(config.seed), held.lengths - config.steps
    episodes = np.flatnonzero(room > 0)
    if not len(episodes):
        raise ValueError(f"no held-out episode is longer than {config.steps}; give fewer --steps")
    each = -(-config.moments // len(episodes))
    return episodes, (rng.random((each, len(episodes))) * room[episodes]).astype(np.int32)


def dreamt(
    env: DreamEnv, params: EnvParams, starts: StartStates, actions: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Latents [N, T, Z] after, and rewards [N, T] of, actions [N, T, A] from N moments."""

    def one(start, actions, key):
        def step(state, now):
            noise = env.draw_noise(now[1])
            _, state, reward, _, _ = env.transition(noise, state, now[0], params)
            return state, (state.z, reward)

        return jax.lax.scan(step, state_at(start), (actions, jax.random.split(key, len(actions))))[
            1
        ]

    keys = jax.random.split(jax.random.key(seed), len(actions))
    return tuple(map(np.asarray, jax.jit(jax.vmap(one))(starts, actions, keys)))


def _foreseen(dreamt: np.ndarray, came: np.ndarray, was: np.ndarray, says: np.ndarray) -> float:
    """1 - squared error / squared change, the mean over the latents that say something."""
    error, change = ((came - x)[:, says] ** 2 for x in (dreamt, was))
    return float((1 - error.mean(axis=0) / change.mean(axis=0)).mean())


if __name__ == "__main__":
    main(tyro.cli(Config))
