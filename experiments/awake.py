"""What C could do with what it reads: it learns, by the same PPO, in the real game itself.

    python experiments/awake.py
    python experiments/awake.py --world car-racing --start None --steps 400000 --run-dir runs/awake

Nothing shipped learns so. What C gains here over what it learnt in the dream, the dream withheld;
what it does not gain is beyond the features, the linear controller or the learning.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from dreamjax.agent import evaluate, step_awake
from dreamjax.controller.model import Controller
from dreamjax.controller.player import Player
from dreamjax.controller.policy_gradient import Updates
from dreamjax.controller.ppo import LearnConfig, Network, Steps, critic, initial_network, scales_of
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_player, load_world, save_world
from dreamjax.fidelity.compare import dreamt_scores
from dreamjax.game.vector import VectorGame
from dreamjax.memory.model import VARIANT
from dreamjax.run.scores import score
from dreamjax.training.settings import SettingError, require_positive

DREAMS = 256  # by which a C that is kept is judged in the dream


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str = "take-cover"
    start: str | None = "take-cover"  # a world or run directory whose C learns on; None: chance
    memory: Literal["trained", "untrained", "none"] = "trained"  # the M whose state C reads
    run_dir: Path | None = None  # where world and C are kept, for `dreamjax evaluate`
    steps: int = 1_600_000  # real ones
    seed: int = 0
    num_envs: int = 32  # games side by side
    num_steps: int = 256  # steps of each between two updates
    update_epochs: int = 3  # passes over those steps
    num_minibatches: int = 4  # gradient steps of a pass
    learning_rate: float = 3e-4
    gamma: float = 0.995  # discount
    gae_lambda: float = 0.95  # of the advantage estimate
    clip_eps: float = 0.2
    ent_coef: float = 0.003  # weight of the draws' entropy
    only_critic: int = 8  # first updates, in which C stays as it is
    averaging: float = 0.95  # of the averaged weights, what an update keeps
    episodes: int = 200  # to judge C by, before and after

    def __post_init__(self):
        require_positive(self, "episodes", "num_envs")
        if self.memory == "none" and self.run_dir:
            raise SettingError("run_dir keeps a C that reads M; leave it out with --memory none")

    def learning(self) -> LearnConfig:
        """As the dream's learning takes it."""
        ours = dataclasses.asdict(self)
        shared = (field.name for field in dataclasses.fields(LearnConfig) if field.name in ours)
        return LearnConfig(action_repeat=1, **{name: ours[name] for name in shared})


def main(config: Config) -> dict[str, dict[str, Any]]:
    """Judge C, let it learn, judge it in the same games; the scores before and after."""
    learning, world = config.learning(), with_memory(load_world(config.world), config)
    if config.start is None:
        controller = world.controller()
        start = controller.initial(jax.random.key(config.seed))
    else:
        player = load_player(config.start, world)
        controller, start = player.controller, player.weights
    found = {"before": judged("before", world, controller, start, config)}
    after = learnt(world, controller, start, config, learning)
    if config.run_dir is not None:
        keep(config.run_dir, world, controller, after)
    return found | {"after": judged("after", world, controller, after, config)}


def with_memory(world: World, config: Config) -> World:
    """`world` with its own M, with one that never learnt, or with one of which C reads nothing."""
    memory = world.memory
    if config.memory == "untrained":
        form = {name: getattr(memory, name) for name in (*VARIANT, "hidden_size", "heads")}
        memory = type(memory)(world.task, rngs=nnx.Rngs(config.seed), **form)
    elif config.memory == "none":
        memory = nnx.clone(memory)
        memory.controller_reads = ()
    return dataclasses.replace(world, memory=memory)


def keep(directory: Path, world: World, controller: Controller, weights: jax.Array) -> None:
    """Store world and C, and what C earns in the dream that it never saw."""
    (found,) = dreamt_scores(world, controller, weights[None], DREAMS, seed=0)
    save_world(directory, world, {})
    Player(controller, weights, dream=float(found)).save(directory, world)


def judged(
    name: str, world: World, controller: Controller, weights: jax.Array, config: Config
) -> dict[str, Any]:
    """C's score in the real game, which is printed."""
    played = evaluate(world, Player(controller, weights), config.episodes, config.seed)
    found = score(played.returns)
    print(
        "{:<8}{mean:.0f} ± {std:.0f}, n {n}, 95 % interval {ci95}".format(name, **found), flush=True
    )
    return found


def learnt(
    world: World, controller: Controller, start: jax.Array, config: Config, learning: LearnConfig
) -> jax.Array:
    """C's averaged weights after `config.steps` steps of the real game."""
    updates = Updates(world.env(), controller, learning, config.seed)
    network = initial_network(jax.random.key(config.seed), controller, start, learning.critic)
    optimiser, average = updates.optimiser.init(network), start
    improve = jax.jit(updates.improve)
    with VectorGame(world.task, config.num_envs) as game:
        player = Playing(world, updates, game, config.seed)
        scales = scales_of(player.play(network, config.num_steps))
        network = updates.rescaled(network, scales).replace(weights=start)
        for number in range(learning.updates):
            steps = player.play(network, config.num_steps)
            key = jax.random.fold_in(updates.key, number)
            (new, optimiser), _ = improve(network, optimiser, key, steps, scales)
            weights = new.weights if number >= config.only_critic else start
            network = new.replace(weights=weights)
            average = optax.incremental_update(weights, average, 1 - config.averaging)
            if number % 10 == 9:
                player.report((number + 1) * steps.done.size)
    return average


class Playing:
    """C, drawing its actions, in games that go on from one update to the next."""

    def __init__(self, world: World, updates: Updates, game: VectorGame, seed: int):
        self._world, self._updates, self._game = world, updates, game
        self._key = jax.random.key(seed + 1)
        self._slots = np.arange(game.num_games)
        # Even seeds, as recorded games have, so that none is an evaluation's; far above theirs.
        self._seeds = iter(range(2 * (10**10 + seed * 10**7), 2**62, 2))
        self._age = np.zeros(game.num_games, np.int32)
        self._carry = world.memory.initial_carry((game.num_games,))
        self._frames = game.reset(self._slots, [next(self._seeds) for _ in self._slots])
        self._return, self._returns = np.zeros(game.num_games), []
        self._step = jax.jit(self._drawn)
        self._judged = jax.jit(updates.judged)

    def _drawn(self, network, key, models, carry, frames, age):
        key_draw, key_z = jax.random.split(key)
        act = functools.partial(self._updates.act, key_draw, network)
        keys = jax.random.split(key_z, len(frames))
        after = step_awake(lambda obs: act(obs)[1], keys, models, carry, frames, age)
        return *after, act(after[2])[0]

    def _look(self, network: Network):
        self._key, key = jax.random.split(self._key)
        models = self._world.vision, self._world.memory
        return self._step(network, key, models, self._carry, self._frames, self._age)

    def play(self, network: Network, length: int) -> Steps:
        """The next `length` steps of every game."""
        rows = []
        for _ in range(length):
            self._carry, action, obs, drawn = self._look(network)
            self._frames, reward, ends, cut = self._game.step(self._slots, action)
            self._age = self._age + 1
            self._return = self._return + reward
            over = (ends >= 0) | cut
            withheld = self._withheld(network, cut & (ends < 0))
            self._returns += self._return[over].tolist()
            self._restart(np.flatnonzero(over))
            rows.append((obs, drawn, reward, over, withheld))
        obs, drawn, reward, over, withheld = map(jnp.stack, zip(*rows, strict=True))
        following = jnp.concatenate((obs[1:], self._look(network)[2][None]))
        next_value = jnp.where(over, withheld, critic(network, following))
        done = over.astype(jnp.float32)
        return self._judged(network, obs, drawn, critic(network, obs), reward, next_value, done)

    def _withheld(self, network: Network, cut: np.ndarray) -> np.ndarray:
        """What the critic says that the games cut short would still have earned, else 0."""
        if not cut.any():
            return np.zeros(len(cut), np.float32)
        return np.where(cut, critic(network, self._look(network)[2]), 0.0)

    def _restart(self, slots: np.ndarray) -> None:
        if len(slots):
            self._frames[slots] = self._game.reset(slots, [next(self._seeds) for _ in slots])
            self._age[slots], self._return[slots] = 0, 0

    def report(self, steps: int) -> None:
        """Print the mean return of the games that ended since the last report."""
        if self._returns:
            mean, count = np.mean(self._returns), len(self._returns)
            print(f"{steps:>9} steps: return {mean:.0f} in {count} games", flush=True)
        self._returns = []


if __name__ == "__main__":
    main(tyro.cli(Config))
