"""What C could do with what it reads: it learns on, by the same PPO, in the real game itself.

    python experiments/awake.py

Nothing shipped learns so. What C gains here over what it learnt in the dream, the dream withheld;
what it does not gain is beyond the features, the linear controller or the learning.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from dreamjax.run.pipeline import score

from dreamjax.agent import evaluate, step_awake
from dreamjax.controller.policy_gradient import (
    CHOICES,
    LearnConfig,
    Network,
    Steps,
    Updates,
    critic,
    initial_network,
)
from dreamjax.dream.worlds import World, load_controller, load_world
from dreamjax.game.workers import VectorGame
from dreamjax.training.settings import require_positive


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str = "take-cover"
    start: str = "take-cover"  # a world or run directory whose C learns on
    steps: int = 1_600_000  # real ones
    seed: int = 0
    games: int = 32  # side by side
    length: int = 256  # steps of each between two updates
    batches: int = 4  # gradient steps of a pass over them
    learning_rate: float = 3e-4
    entropy: float = 0.003
    only_critic: int = 8  # first updates, in which C stays as it is
    averaging: float = 0.95  # of the averaged weights, what an update keeps
    episodes: int = 200  # to judge C by, before and after

    def __post_init__(self):
        require_positive(self, "episodes", "games")

    def learning(self) -> LearnConfig:
        """As the dream's learning takes it."""
        return LearnConfig(
            steps=self.steps,
            lanes=self.games,
            length=self.length,
            batches=self.batches,
            learning_rate=self.learning_rate,
            entropy=self.entropy,
            averaging=self.averaging,
        )


def main(config: Config) -> dict[str, dict[str, Any]]:
    """Judge C, let it learn, judge it in the same games; the scores before and after."""
    learning, world = config.learning(), load_world(config.world)
    start = jnp.asarray(load_controller(config.start, world))
    found = {"before": judged("before", world, start, config)}
    after = learnt(world, start, config, learning)
    return found | {"after": judged("after", world, after, config)}


def judged(name: str, world: World, weights: jax.Array, config: Config) -> dict[str, Any]:
    """C's score in the real game, which is printed."""
    found = score(evaluate(world, weights, config.episodes, config.seed).returns)
    print(
        "{:<8}{mean:.0f} ± {std:.0f}, n {n}, 95 % interval {ci95}".format(name, **found), flush=True
    )
    return found


def learnt(world: World, start: jax.Array, config: Config, learning: LearnConfig) -> jax.Array:
    """C's averaged weights after `config.steps` steps of the real game."""
    updates = Updates(config.seed, world.env(), world.controller(), learning)
    network = initial_network(jax.random.key(config.seed), start, learning.critic)
    optimiser, average = updates.optimiser.init(network), start
    improve = jax.jit(updates.improve)
    with VectorGame(world.task, config.games) as game:
        player = Player(world, updates, game, config.seed)
        for number in range(learning.updates):
            steps, last_value = player.play(network, config.length)
            key = jax.random.fold_in(updates.key, number)
            (new, optimiser), _ = improve(network, optimiser, key, steps, last_value)
            weights = new.weights if number >= config.only_critic else start
            network = new.replace(weights=weights)
            average = optax.incremental_update(weights, average, 1 - config.averaging)
            if number % 10 == 9:
                player.report((number + 1) * steps.done.size)
    return average


class Player:
    """C, drawing its choices, in games that go on from one update to the next."""

    def __init__(self, world: World, updates: Updates, game: VectorGame, seed: int):
        self._world, self._updates, self._game = world, updates, game
        self._key = jax.random.key(seed + 1)
        self._slots = np.arange(game.num_games)
        # Even seeds, as recorded games have, so that none is an evaluation's; far above theirs.
        self._seeds = iter(range(2 * (10**10 + seed * 10**7), 2**62, 2))
        self._age = np.zeros(game.num_games, np.int32)
        self._carry = world.memory.initial_carry((game.num_games,))
        self._frames = game.reset(self._slots, [next(self._seeds) for _ in self._slots])
        self._lengths = []
        self._step = jax.jit(self._drawn)
        self._judged = jax.jit(updates.judged)

    def _drawn(self, weights, key, models, carry, frames, age):
        key_choice, key_z = jax.random.split(key)

        def act(obs):
            return jnp.asarray(CHOICES)[self._updates.choose(key_choice, weights, obs)][:, None]

        keys = jax.random.split(key_z, len(frames))
        return step_awake(self._world.task, act, keys, models, carry, frames, age)

    def _look(self, weights: jax.Array):
        self._key, key = jax.random.split(self._key)
        models = self._world.vision, self._world.memory
        return self._step(weights, key, models, self._carry, self._frames, self._age)

    def play(self, network: Network, length: int) -> tuple[Steps, jax.Array]:
        """The next `length` steps of every game, and the critic's answer to what follows."""
        rows = []
        for _ in range(length):
            self._carry, action, obs = self._look(network.weights)
            self._frames, reward, ended, cut = self._game.step(self._slots, action)
            self._age = self._age + 1
            over = ended | cut
            self._lengths += self._age[over].tolist()
            self._restart(np.flatnonzero(over))
            rows.append((obs, action[:, 0].astype(int) + 1, reward, over))
        steps = self._judged(network, *map(jnp.stack, zip(*rows, strict=True)))
        return steps, critic(network, self._look(network.weights)[2])

    def _restart(self, slots: np.ndarray) -> None:
        if len(slots):
            self._frames[slots] = self._game.reset(slots, [next(self._seeds) for _ in slots])
            self._age[slots] = 0

    def report(self, steps: int) -> None:
        """Print how long the games lasted that ended since the last report."""
        if self._lengths:
            lived, count = np.mean(self._lengths), len(self._lengths)
            print(f"{steps:>9} steps: {lived:.0f} survived in {count} games", flush=True)
        self._lengths = []


if __name__ == "__main__":
    main(tyro.cli(Config))
