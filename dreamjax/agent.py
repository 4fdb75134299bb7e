"""V, M and C awake: playing the real game.

Paper: the `rollout` pseudocode of section "Agent Model"; code: `doomrnn/model.py`.
Legend: A action numbers, D weights of C, F features, G games played at once, H units of M.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.controller.population import Policy
from dreamjax.dream.worlds import World
from dreamjax.game import rollouts
from dreamjax.game.env import engine_seed
from dreamjax.game.workers import NONE_PLAYED, Played, VectorGame
from dreamjax.memory.model import Carry, Memory, reset
from dreamjax.tasks import FRAME_SHAPE, Task
from dreamjax.training.files import writable
from dreamjax.training.logbook import Bar, Logbook
from dreamjax.training.team import Team
from dreamjax.vision.model import VAE

FIRST_PLAYED = 10_000  # number of the first shard that an agent recorded
GAMES = 32  # games at once: enough to fill a matrix product, few enough to wait for


class Agent:
    """V, M and C in G games at once.

    Args:
      world: V and M.
      weights: C's weights, [D] or whatever `policy` reads.
      num_games: G.
      key: PRNG key of V's sampling.
      policy: `(weights, features [F]) -> action [A]`, hashable; None is the world's linear
        controller.
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
        self.num_games = num_games
        self._carry = world.memory.initial_carry((num_games,))
        self._seeds = np.zeros(num_games, np.uint32)
        self._age = np.zeros(num_games, np.int32)
        self._policy = policy or world.controller()

    def begin(self, slots: np.ndarray, seeds: list[int]) -> None:
        """Episodes of these game seeds begin in `slots` with the next frames."""
        self._seeds[slots] = [engine_seed(seed) for seed in seeds]
        self._age[slots] = 0

    def act(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions [G, A] for frames uint8 [G, 64, 64, 3], and the latents [G, Z] seen in them.

        Fewer frames than games are those of the first games. V's sampling depends on the key, the
        game's seed and the episode's age alone, so that an episode is the same whatever is played
        beside it.
        """
        models = self._world.vision, self._world.memory
        games = len(frames)
        frames = np.pad(frames, ((0, self.num_games - games), (0, 0), (0, 0), (0, 0)))
        now = self._carry, frames, self._seeds, self._age
        self._carry, action, z = _act(self._policy, self._key, self._weights, models, *now)
        action, z = np.asarray(action)[:games], np.asarray(z)[:games]
        self._age = self._age + 1
        return action, z


@functools.partial(jax.jit, static_argnames="policy")
def _act(policy, key, weights, models, carry, frames, seeds, age):
    """The next carry, the actions and the latents; compiled once for all agents of a policy."""
    keys = jax.vmap(functools.partial(_noise_key, key))(seeds, age)
    act = functools.partial(jax.vmap(policy, (None, 0)), weights)
    carry, action, obs = step_awake(act, keys, models, carry, frames, age)
    return carry, action, obs[:, : models[1].latent_size]


def _noise_key(key: jax.Array, seed: jax.Array, age: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, seed), age)


def step_awake(
    act: Callable[[jax.Array], jax.Array],
    keys: jax.Array,
    models: tuple[VAE, Memory],
    carry: Carry,
    frames: jax.Array,
    age: jax.Array,
) -> tuple[Carry, jax.Array, jax.Array]:
    """Encode, act, remember: C reads (z, carry) before M consumes z and the action.

    Args:
      act: `features [G, F] -> actions [G, A]`.
      keys: [G] PRNG keys of V's sampling; consumed.
      models: V and M.
      carry: what M remembers, [G, H] of each part; emptied where `age` is 0.
      frames: uint8 [G, 64, 64, 3].
      age: int32 [G], steps since the episode began.

    Returns:
      the next carry, the actions, and the features [G, F] that they were chosen by.
    """
    vision, memory = models
    mu, logvar = vision.encode(frames)
    noise = jax.vmap(lambda key: jax.random.normal(key, mu.shape[1:], mu.dtype))(keys)
    z = mu + jnp.exp(logvar / 2) * noise
    carry = reset(carry, age == 0)
    obs = memory.features(z, carry)
    action = act(obs)
    carry, _ = memory(carry, z, action, age)
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
    team: Team | None = None,
) -> Played:
    """Play the real game with V, M and C.

    Args:
      world, weights, policy: see `Agent`.
      episodes: how many.
      seed: chooses the games (see `evaluation_seeds`) and V's sampling.
      log: shows progress.
      workers: processes; the number of cores by default.
      team: the processes that share the games among them; None is this one alone.

    Returns:
      `Played`, in the order of the seeds; of a team's, this process's own.

    Raises:
      ValueError: no episodes asked for.
      ImportError: the game is not installed; says how to install it.
      WorkerError: the game could not be kept running.
    """
    if episodes <= 0:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    seeds = (team or Team()).own(evaluation_seeds(seed, episodes))
    if not seeds:
        return NONE_PLAYED
    # one batch size for every size of a team: another would round otherwise
    agent = Agent(world, weights, min(GAMES, episodes), jax.random.key(seed), policy)
    log = log or Logbook(quiet=True)
    with (
        VectorGame(world.task, min(GAMES, len(seeds)), workers) as game,
        log.progress("evaluate", len(seeds), "episodes") as bar,
    ):
        return play_all(agent, game, seeds, bar, Tape())


def record(
    world: World,
    weights: jax.Array,
    directory: Path | str,
    episodes: int,
    seed: int,
    *,
    log: Logbook | None = None,
    workers: int | None = None,
    policy: Policy | None = None,
    team: Team | None = None,
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
      policy: as for `Agent`.
      team: the processes that share the shards among them; None is this one alone.
    """
    directory, log = writable(directory), log or Logbook(quiet=True)
    shards = range(-(-episodes // GAMES))
    seeds = [odd - 1 for odd in evaluation_seeds(seed, len(shards) * GAMES)]
    paths = {shard: directory / f"shard-{FIRST_PLAYED + shard:05d}.npz" for shard in shards}
    own = (team or Team()).own(list(paths.items()))
    missing = {shard: path for shard, path in own if not path.exists()}
    if not missing:
        return
    seeds = [seed for shard in missing for seed in seeds[shard * GAMES :][:GAMES]]
    agent = Agent(world, weights, GAMES, jax.random.key(seed), policy)
    tape = ShardTape(list(missing.values()), seeds, world.task)
    with (
        VectorGame(world.task, GAMES, workers) as game,
        log.progress("record", len(seeds), "episodes") as bar,
    ):
        play_all(agent, game, seeds, bar, tape)


class Tape:
    """Hears of every step of every episode; keeps nothing."""

    def add(self, episodes, frames, latents, actions, rewards, ends) -> None:
        """One step of each of `episodes`."""

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

    def add(self, episodes, frames, latents, actions, rewards, ends) -> None:
        """As `Tape`."""
        del latents
        for episode, *step in zip(episodes, frames, actions, rewards, ends, strict=True):
            self._steps.setdefault(episode, []).append(step)

    def end(self, episode: int) -> None:
        """As `Tape`; writes the shard that this completes."""
        self._ended.add(episode)
        shard = episode // GAMES
        episodes = range(shard * GAMES, (shard + 1) * GAMES)
        if self._ended.issuperset(episodes):
            rollouts.write(self._paths[shard], self._stacked(episodes))

    def _stacked(self, episodes: range) -> rollouts.Rollouts:
        """These episodes, which are then forgotten."""
        played = [self._steps.pop(number) for number in episodes]
        frames, actions, rewards, _ = (
            np.stack(column) for column in zip(*(s for e in played for s in e), strict=True)
        )
        ends = np.array([episode[-1][3] for episode in played], np.int8)
        return rollouts.Rollouts(
            frames=frames,
            actions=actions,
            rewards=rewards.astype(np.float32),
            lengths=np.array([len(episode) for episode in played], np.int32),
            terminated=ends >= 0,
            seeds=np.array(self._seeds[episodes.start : episodes.stop]),
            profile=self._task.profile,
            ends=ends,
        )


def play_all(agent: Agent, game: VectorGame, seeds: list[int], bar: Bar, tape: Tape) -> Played:
    """Play each seed once; a slot goes on with the next seed when its episode ends.

    Args:
      agent, game: the game's slots are at most the agent's games, and at most the seeds.
      seeds: of the episodes.
      bar: counts the episodes.
      tape: hears of their steps.

    Raises:
      WorkerError: the game could not be kept running.
    """
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), int)
    terminated = np.zeros(len(seeds), bool)
    slots = np.arange(game.num_games)
    episode = slots.copy()  # which seed each slot plays
    upcoming, finished, begun = len(slots), [], slots
    frames = np.zeros((len(slots), *FRAME_SHAPE), np.uint8)
    while len(active := np.flatnonzero(episode >= 0)):
        if len(begun):
            theirs = [seeds[i] for i in episode[begun]]
            frames[begun] = game.reset(begun, theirs)
            agent.begin(begun, theirs)
        action, z = agent.act(frames)
        now, reward, ends, truncated = game.step(active, action[active])
        tape.add(episode[active], frames[active], z[active], action[active], reward, ends)
        frames[active] = now
        lengths[episode[active]] += 1
        returns[episode[active]] += reward
        terminated[episode[active]] = ends >= 0
        ended = active[(ends >= 0) | truncated]
        for slot in ended:
            tape.end(int(episode[slot]))
            finished.append(returns[episode[slot]])
            bar.advance(1, f"mean {np.mean(finished):.0f}")
            episode[slot] = upcoming if upcoming < len(seeds) else -1
            upcoming += episode[slot] >= 0
        begun = ended[episode[ended] >= 0]
    return Played(returns, lengths, terminated)
