"""What C can do with what it reads: it is cloned from a planner that is told where fireballs are.

    python -m experiments.clone --hidden 64
    python -m experiments.clone --hidden 0

The planner tells, of every step that the clone plays, what each side would cost (DAgger, Ross et
al. 2011); the clone learns to move where it costs least. A diagnosis, as `experiments/planner.py`:
nothing of it trains V, M or C.
Legend: D weights, F features, N steps, S sides.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from dreamjax.agent import evaluate
from dreamjax.controller.model import Controller
from dreamjax.controller.player import Player
from dreamjax.dream.worlds import load_world
from dreamjax.run.scores import score
from dreamjax.tasks import TAKE_COVER
from dreamjax.training.settings import SettingError, require_positive, require_within
from experiments import planner, probe

SIDES = planner.LEFT, planner.STAY, planner.RIGHT  # as `Keys.choices`, which are their negatives
LATE, NEAR, TURNED = 1.0, 0.3, 0.02  # costs, in hits: of one at once, of a near miss, of turning
FEATURE = 1e-3  # the smallest standard deviation of one
RATE = 3e-3  # at which the clone learns at first


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str = "take-cover"  # a shipped world's name, a folder or a run directory
    hidden: int = 64  # units of C; 0 is the paper's linear one
    rounds: int = 6  # in the first the planner plays, then the clone ever more often
    frames: int = 40_000  # of each round
    noise: float = 0.1  # share of those steps at which the player does anything at all
    steps: int = 6_000  # batches of 1,024 for the clone, in each round
    games: int = 8  # side by side
    episodes: int = 300  # games to judge by
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "rounds", "frames", "steps", "games", "episodes")
        require_within(self, noise="[0, 1]")
        if self.hidden < 0:
            raise SettingError(f"hidden must be at least 0, got {self.hidden}; 0 is a linear C")


def main(config: Config) -> dict[str, Any]:
    """The clone's score in the real game; prints a line for each round."""
    world = load_world(config.world)
    if world.task != TAKE_COVER:
        raise SettingError(f"world is of {world.task.name}, but fireballs fly in take-cover alone")
    controller, weights = world.controller(config.hidden), None
    data: list[tuple[np.ndarray, ...]] = []
    for number in range(config.rounds):
        rng = np.random.default_rng([config.seed, number])
        choose = probe.noisy(mixed(controller, weights, rng, 0.5**number), rng, config.noise)
        seeds = iter(range(3 * 10**11 * (number + 1), 2**62, 2))
        lived, rows = probe.play(world, choose, config, seeds, config.frames, costs_alone)
        data.append(rows)
        rows = tuple(map(np.concatenate, zip(*data, strict=True)))
        weights, cost = cloned(controller, rows, config)
        print(f"round {number}: {len(lived)} games ended; {cost:.4f} hits to expect", flush=True)
    played = evaluate(world, Player(controller, weights), config.episodes, config.seed)
    found = score(played.returns)
    print("the clone: {mean:.0f} ± {std:.0f}, n {n}, 95 % interval {ci95}".format(**found))
    return found


def side_costs(seen: planner.Seen) -> np.ndarray:
    """What moving to each of `SIDES` now costs, in hits of the best plan that begins so, [S]."""
    sides, hits, first, berth = planner.foreseen(seen)
    cost = hits + LATE * (1 - first / planner.LOOK_AHEAD) + NEAR * (1 - berth / planner.BERTH)
    cost = cost + TURNED * (sides[:, 0] != sides[0, 0])
    return np.array([cost[sides[:, 0] == side].min() for side in SIDES], np.float32)


def costs_alone(seen: planner.Seen) -> tuple[np.ndarray]:
    """What is kept of the truth of a step."""
    return (side_costs(seen),)


def mixed(
    controller: Controller, weights: jax.Array | None, rng: np.random.Generator, share: float
) -> probe.Sides:
    """The planner's sides at a `share` of the steps, else the clone's, if there is one yet."""
    if weights is None:
        return probe.knowing
    act = jax.jit(functools.partial(controller, weights))

    def sides(features, seen):
        number = np.asarray(act(features))[:, 0]
        pressed = np.abs(number) > TAKE_COVER.actions.pressed
        own = np.where(pressed, -np.sign(number), planner.STAY).astype(int)
        told = rng.random(len(seen)) < share
        return [
            planner.best_side(now) if tells else int(side)
            for now, tells, side in zip(seen, told, own, strict=True)
        ]

    return sides


def cloned(
    controller: Controller, data: tuple[np.ndarray, ...], config: Config
) -> tuple[jax.Array, float]:
    """C's weights [D] that expect the least cost, and how much more than the planner's it is.

    Args:
      controller: C's form.
      data: features [N, F], and costs of sides [N, S].
      config: the settings.
    """
    features, costs = data
    costs = costs - costs.min(axis=1, keepdims=True)
    mean, std = features.mean(axis=0), features.std(axis=0) + FEATURE
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, config.steps))
    weights = controller.initial(jax.random.key(config.seed))

    def expected(weights, features, costs):
        out = controller.outputs(controller.rescaled(weights, mean, std), features)
        return (jnp.exp(controller.distribution.log_probs(out)) * costs).sum(axis=-1).mean()

    @jax.jit
    def descend(weights, state, features, costs):
        cost, gradient = jax.value_and_grad(expected)(weights, features, costs)
        change, state = optimiser.update(gradient, state)
        return optax.apply_updates(weights, change), state, cost

    state, rng, found = optimiser.init(weights), np.random.default_rng(config.seed), []
    for _ in range(config.steps):
        those = rng.integers(0, len(features), 1024)
        weights, state, cost = descend(weights, state, features[those], costs[those])
        found.append(cost)
    last = found[-len(found) // 4 :]
    return controller.rescaled(weights, mean, std), float(np.mean(jax.device_get(last)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
