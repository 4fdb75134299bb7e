"""V, M and C awake: playing the real game.

Paper: the `rollout` pseudocode of section "Agent Model"; code: `doomrnn/model.py`.
Legend: A action numbers, D weights of C, G games played at once, H LSTM units.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import rollouts
from dreamjax.controller import controller_for, features
from dreamjax.files import writable
from dreamjax.logbook import Logbook
from dreamjax.memory import MDNRNN, Carry
from dreamjax.population import Policy
from dreamjax.tasks import Task
from dreamjax.vision import VAE
from dreamjax.workers import VectorGame
from dreamjax.worlds import World

FIRST_PLAYED = 10_000  # number of the first shard that an agent recorded
GAMES = 32  # games at once: enough to fill a matrix product, few enough to wait for


@dataclasses.dataclass(frozen=True)
class Played:
    """Real episodes: `returns` float [n] and `lengths` int [n]."""

    returns: np.ndarray
    lengths: np.ndarray


class Agent:
    """V, M and C in G games at once.

    Args:
      world: V and M.
      weights: C's weights, [D] or whatever `policy` takes.
      num_games: G.
      key: PRNG key of V's sampling.
      policy: `(weights, features [F]) -> action [A]`; None is the task's linear controller.
    """

    def __init__(
        self,
        world: World,
        weights: Any,
        num_games: int,
        key: jax.Array,
        policy: Policy | None = None,
    ):
        self._world, self._weights, self._key = world, weights, key
        self._carry = world.memory.initial_carry((num_games,))
        self._age = np.zeros(num_games, np.int32)
        act = jax.vmap(policy or controller_for(world.task), (None, 0))

        @jax.jit
        def step(weights, *now):
            return step_awake(world.task, functools.partial(act, weights), *now)

        self._step = step

    def act(self, frames: np.ndarray, restart: np.ndarray) -> np.ndarray:
        """Actions [G, A] for frames uint8 [G, 64, 64, 3]; `restart` [G] marks first frames."""
        self._key, key = jax.random.split(self._key)
        self._age = np.where(restart, 0, self._age + 1)
        models = self._world.vision, self._world.memory
        self._carry, action, obs = self._step(
            self._weights, key, models, self._carry, frames, self._age
        )
        self.z = obs[:, : self._world.task.latent_size]
        return np.asarray(action)


def step_awake(
    task: Task,
    act: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    models: tuple[VAE, MDNRNN],
    carry: Carry,
    frames: jax.Array,
    age: jax.Array,
) -> tuple[Carry, jax.Array, jax.Array]:
    """Encode, act, remember: C reads (z, carry) before M consumes z and the action.

    Args:
      task: says what C reads.
      act: `features [G, F] -> actions [G, A]`.
      key: PRNG key of V's sampling; consumed.
      models: V and M.
      carry: M's (c, h), each [G, H]; zeroed where `age` is 0.
      frames: uint8 [G, 64, 64, 3].
      age: int32 [G], steps since the episode began.

    Returns:
      the next carry, the actions, and the features [G, F] that they were chosen by.
    """
    vision, memory = models
    mu, logvar = vision.encode(frames)
    z = mu + jnp.exp(logvar / 2) * jax.random.normal(key, mu.shape)
    carry = jax.tree.map(lambda x: jnp.where((age == 0)[:, None], 0.0, x), carry)
    obs = features(task, z, carry)
    action = act(obs)
    carry, _, _ = memory(carry, z, action, age)
    return carry, action, obs


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """Game seeds of an evaluation: odd, as no recorded episode's is."""
    return [2 * (seed % 2000 * 10**6 + i) + 1 for i in range(episodes)]


def evaluate(
    world: World,
    weights: Any,
    episodes: int,
    seed: int,
    *,
    policy: Policy | None = None,
    log: Logbook | None = None,
    workers: int | None = None,
) -> Played:
    """Play the real game with V, M and C.

    Args:
      world, weights, policy: see `Agent`.
      episodes: how many.
      seed: chooses the games (see `evaluation_seeds`) and V's sampling.
      log: shows progress.
      workers: processes; the number of cores by default.

    Returns:
      `Played`, in the order of the seeds.

    Raises:
      ValueError: no episodes asked for.
      ImportError: the game is not installed; says how to install it.
    """
    if episodes <= 0:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    num_games = min(GAMES, episodes)
    agent = Agent(world, weights, num_games, jax.random.key(seed), policy)
    log = log or Logbook(quiet=True)
    with (
        VectorGame(world.task, num_games, workers) as game,
        log.progress("evaluate", episodes, "episodes") as bar,
    ):
        return _play_all(agent, game, evaluation_seeds(seed, episodes), bar, Tape())


def record(
    world: World,
    weights: jax.Array,
    directory: Path | str,
    episodes: int,
    seed: int,
    *,
    log: Logbook | None = None,
    workers: int | None = None,
) -> None:
    """Record real episodes of V, M and C, as `rollouts.collect` does those of blind policies.

    Shards are numbered from `FIRST_PLAYED` on, so that they encode beside collected ones, and are
    written as their episodes end. One that is there already is not played again.

    Args:
      world, weights: the agent.
      directory: receives the shards.
      episodes: how many; rounded up to whole shards.
      seed: chooses the games, which are none of any evaluation's.
      log: shows progress.
      workers: processes; the number of cores by default.
    """
    directory, log = writable(directory), log or Logbook(quiet=True)
    shards = range(-(-episodes // GAMES))
    seeds = [odd - 1 for odd in evaluation_seeds(seed, len(shards) * GAMES)]
    paths = {shard: directory / f"shard-{FIRST_PLAYED + shard:05d}.npz" for shard in shards}
    missing = {shard: path for shard, path in paths.items() if not path.exists()}
    if not missing:
        return
    seeds = [seed for shard in missing for seed in seeds[shard * GAMES :][:GAMES]]
    agent = Agent(world, weights, GAMES, jax.random.key(seeds[0]))
    tape = ShardTape(list(missing.values()), seeds, world.task)
    with (
        VectorGame(world.task, GAMES, workers) as game,
        log.progress("record", len(seeds), "episodes") as bar,
    ):
        _play_all(agent, game, seeds, bar, tape)


class Tape:
    """Hears of every step of every episode; keeps nothing."""

    def add(self, episodes, frames, actions, rewards, terminated) -> None:
        """One step of each of `episodes`."""

    def drop(self, episode: int) -> None:
        """Forget an episode whose game crashed; it is played again."""

    def end(self, episode: int) -> None:
        """An episode is over."""


class ShardTape(Tape):
    """Writes every `GAMES` episodes as a shard, as soon as they are over.

    Args:
      paths: where the shards go.
      seeds: of the episodes, `GAMES` for each path.
      task: the game.
    """

    def __init__(self, paths: list[Path], seeds: list[int], task: Task):
        self._paths, self._seeds, self._task = paths, seeds, task
        self._steps, self._ended = {}, set()

    def add(self, episodes, frames, actions, rewards, terminated) -> None:
        """As `Tape`."""
        for episode, *step in zip(episodes, frames, actions, rewards, terminated, strict=True):
            self._steps.setdefault(episode, []).append(step)

    def drop(self, episode: int) -> None:
        """As `Tape`."""
        self._steps.pop(episode, None)

    def end(self, episode: int) -> None:
        """As `Tape`; writes the shard that this completes."""
        self._ended.add(episode)
        shard = episode // GAMES
        episodes = range(shard * GAMES, (shard + 1) * GAMES)
        if self._ended.issuperset(episodes):
            rollouts.write(self._paths[shard], self._taken(episodes))

    def _taken(self, episodes: range) -> rollouts.Rollouts:
        """These episodes, which are then forgotten."""
        taken = [self._steps.pop(number) for number in episodes]
        frames, actions, rewards, _ = (
            np.stack(column) for column in zip(*(s for e in taken for s in e), strict=True)
        )
        return rollouts.Rollouts(
            frames=frames,
            actions=actions,
            rewards=rewards.astype(np.float32),
            lengths=np.array([len(episode) for episode in taken], np.int32),
            terminated=np.array([episode[-1][3] for episode in taken], bool),
            seeds=np.array(self._seeds[episodes.start : episodes.stop]),
            profile=self._task.profile,
        )


def _play_all(agent: Agent, game: VectorGame, seeds: list[int], bar, tape: Tape) -> Played:
    """Play each seed once; a slot takes the next seed when its episode ends."""
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), int)
    slots = np.arange(game.num_games)
    episode = slots.copy()  # which seed each slot plays
    upcoming, finished = len(slots), []
    frames = game.reset(slots, [seeds[i] for i in slots])
    restart = np.ones(len(slots), bool)
    while len(active := np.flatnonzero(episode >= 0)):
        action = agent.act(frames, restart)
        now, reward, terminated, truncated, lost = game.step(active, action[active])
        tape.add(episode[active], frames[active], action[active], reward, terminated)
        restart[:] = False
        frames[active] = now
        lengths[episode[active]] += 1
        returns[episode[active]] += reward
        for slot in active[lost]:
            returns[episode[slot]] = lengths[episode[slot]] = 0
            tape.drop(episode[slot])
        ended = active[(terminated | truncated) & ~lost]
        for slot in ended:
            tape.end(int(episode[slot]))
            finished.append(returns[episode[slot]])
            bar.advance(1, f"mean {np.mean(finished):.0f}")
            episode[slot] = upcoming if upcoming < len(seeds) else -1
            upcoming += episode[slot] >= 0
        again = np.concatenate([ended[episode[ended] >= 0], active[lost]])
        if len(again):
            frames[again] = game.reset(again, [seeds[i] for i in episode[again]])
            restart[again] = True
    return Played(returns=returns, lengths=lengths)
