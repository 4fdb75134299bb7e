"""V, M and C awake: playing the real game.

Paper: the `rollout` pseudocode of section "Agent Model"; code: `doomrnn/model.py`.
Legend: A action numbers, D weights of C, F features, G games played at once, H units of M, S games
that are looked at together.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.controller.player import Player
from dreamjax.dream.world import World
from dreamjax.game.env import engine_seed
from dreamjax.game.jobs import NONE_PLAYED, Played
from dreamjax.game.vector import VectorGame
from dreamjax.game.workers import games_beside
from dreamjax.memory.model import Carry, reset
from dreamjax.task import FRAME_SHAPE, Task
from dreamjax.training.devices import cast, product_dtype
from dreamjax.training.logbook import Bar, Logbook
from dreamjax.training.processes import Processes

BATCH = 16  # frames that V sees at once: enough to fill a matrix product, few enough to wait for
GAMES = 3 * BATCH  # games at once: two batches play while V sees the third
ACCELERATED = 4  # times as many of both at once on an accelerator, which each call keeps waiting


class Agent:
    """V, M and C in G games at once.

    Args:
      world: V and M.
      player: C, whose form is called `(weights, features [F]) -> action [A]`.
      num_games: G.
      key: PRNG key of V's sampling.
      dtype: of the operands of V's and M's products; None is what the device multiplies fastest.

    Raises:
      ValueError: a C of another world.
    """

    def __init__(
        self,
        world: World,
        player: Player,
        num_games: int,
        key: jax.Array,
        dtype: jax.typing.DTypeLike | None = None,
    ):
        player.check(world)
        self._player, self._key = player, key
        dtype = product_dtype() if dtype is None else dtype
        models = cast((world.vision, world.memory), dtype)
        self._arrays, self._form = jax.tree.flatten(models)  # once: each call would take 40 us
        self.num_games = num_games
        self._carry = world.memory.initial_carry((num_games + 1,))  # the last fills batches up
        self._seeds = np.zeros(num_games + 1, np.uint32)
        self._age = np.zeros(num_games + 1, np.int32)
        self._batch_size = batch_size()

    def begin(self, slots: np.ndarray, seeds: list[int]) -> None:
        """Episodes of these game seeds begin in `slots` with the next frames."""
        self._seeds[slots] = [engine_seed(seed) for seed in seeds]
        self._age[slots] = 0

    def act(self, slots: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions [S, A] for frames uint8 [S, 64, 64, 3], and the latents [S, Z] seen in them.

        `slots` says which games show them, each once. V's sampling depends on the key, the game's
        seed and the episode's age alone, and V sees as many frames at once always, so that an
        episode is the same to the bit whatever is played beside it.
        """
        size = self._batch_size
        starts = range(0, len(slots), size)
        found = [self._batch(slots[i : i + size], frames[i : i + size]) for i in starts]
        action, z = (np.concatenate(column) for column in zip(*found, strict=True))
        self._age[slots] += 1
        return action, z

    def _batch(self, slots: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        """`act` for at most one batch of frames."""
        shown, left = len(slots), self._batch_size - len(slots)
        slots = np.append(slots, np.full(left, self.num_games))
        frames = np.concatenate((frames, np.zeros((left, *FRAME_SHAPE), np.uint8)))
        now = slots, frames, self._seeds[slots], self._age[slots]
        policy, weights = self._player.controller, self._player.weights
        models = self._key, weights, self._arrays, self._carry
        self._carry, *found = _act(policy, self._form, *models, *now)
        return tuple(np.asarray(column)[:shown] for column in found)


def batch_size() -> int:
    """Frames that V sees at once in this process."""
    return BATCH * _times()


def games_at_once(task: Task, episodes: int, workers: int | None) -> int:
    """Games that are played at once where so many episodes are asked for."""
    return games_beside(task, min(GAMES * _times(), episodes), workers)


def _times() -> int:
    return 1 if jax.default_backend() == "cpu" else ACCELERATED


@functools.partial(jax.jit, static_argnames=("policy", "form"))
def _act(policy, form, key, weights, arrays, carry, slots, frames, seeds, age):
    """The next carry, the actions and the latents; compiled once for all agents of a policy."""
    models = jax.tree.unflatten(form, arrays)
    seeded = jax.vmap(jax.random.fold_in, (None, 0))(key, seeds)
    keys = jax.vmap(jax.random.fold_in)(seeded, age)
    act = functools.partial(jax.vmap(policy, (None, 0)), weights)
    theirs = jax.tree.map(lambda part: part[slots], carry)
    theirs, action, obs = step_awake(act, keys, models, theirs, frames, age)
    carry = jax.tree.map(lambda part, new: part.at[slots].set(new), carry, theirs)
    return carry, action, obs[:, : models[1].latent_size]


def step_awake(act, keys, models, carry, frames, age) -> tuple[Carry, jax.Array, jax.Array]:
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
    player: Player,
    episodes: int,
    seed: int,
    *,
    log: Logbook | None = None,
    workers: int | None = None,
    processes: Processes | None = None,
) -> Played:
    """Play the real game with V, M and C.

    Args:
      world, player: V and M, and the C that plays.
      episodes, seed: how many, of which games (see `evaluation_seeds`); V samples by it too.
      log, workers: shows progress; processes, None is one a core.
      processes: the processes that share the games among them; None is this one alone.

    Returns:
      `Played`, in the order of the seeds; of several processes', this one's own.

    Raises:
      ValueError: no episodes asked for, or a C of another world.
      ImportError: the game is not installed; says how to install it.
      WorkerError: the game could not be kept running.
    """
    if episodes <= 0:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    seeds = (processes or Processes()).own(evaluation_seeds(seed, episodes))
    log = log or Logbook(quiet=True)
    asked = world, player, seed, seeds
    return play_seeds("evaluate", *asked, Tape(), log, workers) if seeds else NONE_PLAYED


def play_seeds(phase, world, player, seed, seeds, tape, log, workers=None) -> Played:
    """`play_all` of games and an agent made for it; arguments as for `evaluate`."""
    games = games_at_once(world.task, len(seeds), workers)
    agent = Agent(world, player, games, jax.random.key(seed))
    with (
        VectorGame(world.task, games, workers) as game,
        log.progress(phase, len(seeds), "episodes") as bar,
    ):
        return play_all(agent, game, seeds, bar, tape)


def watch(
    world: World, player: Player, seed: int, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Play an evaluation's first episode, at most `steps` of it; the rest as for `evaluate`.

    Returns:
      frames uint8 [T, 64, 64, 3], the latents [T, Z] that V saw in them, and the actions [T, A].
    """
    task = dataclasses.replace(world.task, max_steps=min(world.task.max_steps, steps))
    asked, reel = (dataclasses.replace(world, task=task), player, seed), _Reel()
    play_seeds("watch", *asked, evaluation_seeds(seed, 1), reel, Logbook(quiet=True))
    frames, latents, actions = map(np.stack, zip(*reel.steps, strict=True))
    return frames, latents, actions


class Tape:
    """Hears of every step of every episode; keeps nothing."""

    def add(self, episodes, frames, latents, actions, rewards, ends) -> None:
        """One step of each of `episodes`, of which there is at least one."""

    def end(self, episode: int) -> None:
        """An episode is over."""


class _Reel(Tape):
    """Keeps what was seen and done in the one episode it hears of."""

    def __init__(self):
        self.steps = []

    def add(self, episodes, frames, latents, actions, rewards, ends) -> None:
        self.steps.append((frames[0], latents[0], actions[0]))


def play_all(agent: Agent, game: VectorGame, seeds: list[int], bar: Bar, tape: Tape) -> Played:
    """Play each seed once; a slot goes on with the next seed when its episode ends.

    The agent acts as soon as it can fill a batch, while the other games play. Agent and game are of
    as many games, at most one for each seed; `bar` counts episodes, `tape` hears of their steps.

    Raises:
      WorkerError: the game could not be kept running.
    """
    table = _Table(agent, game, seeds, bar, tape)
    table.begin(np.arange(game.num_games))
    ready, size = np.zeros(0, int), batch_size()  # slots whose frames await an action
    while len(ready) or game.awaited:
        if game.awaited and len(ready) < size:
            ready = np.concatenate((ready, table.receive()))
        else:
            table.act(ready[:size])
            ready = ready[size:]
    return table.played


class _Table:
    """Who plays what, and what came of it; arguments as for `play_all`."""

    def __init__(self, agent: Agent, game: VectorGame, seeds: list[int], bar: Bar, tape: Tape):
        self._agent, self._game, self._seeds, self._bar, self._tape = agent, game, seeds, bar, tape
        count, slots, task = len(seeds), game.num_games, game.task
        self.played = Played(np.zeros(count), np.zeros(count, int), np.zeros(count, bool))
        self._upcoming, self._finished = 0, []
        self._episode = np.full(slots, -1)  # which seed each slot plays
        self._begun = np.zeros(slots, bool)  # the slot's first frame is awaited
        self._frames = np.zeros((slots, *FRAME_SHAPE), np.uint8)
        self._latents = np.zeros((slots, task.latent_size), np.float32)
        self._actions = np.zeros((slots, task.actions.size), np.float32)

    def begin(self, slots: np.ndarray) -> None:
        """Play the next seeds in these slots, as far as there are any."""
        slots = slots[: len(self._seeds) - self._upcoming]
        if len(slots):
            self._episode[slots] = self._upcoming + np.arange(len(slots))
            self._upcoming += len(slots)
            self._begun[slots] = True
            seeds = [self._seeds[number] for number in self._episode[slots]]
            self._agent.begin(slots, seeds)
            self._game.begin(slots, seeds)

    def act(self, slots: np.ndarray) -> None:
        """Look at the frames of these slots, and play on."""
        self._actions[slots], self._latents[slots] = self._agent.act(slots, self._frames[slots])
        self._game.send(slots, self._actions[slots])

    def receive(self) -> np.ndarray:
        """Take what the games answer; the slots that go on with it."""
        slots, frames, rewards, ends, truncated = self._game.receive()
        went, over = ~self._begun[slots], (ends >= 0) | truncated
        if went.any():
            self._note(slots[went], rewards[went], ends[went])
        self._frames[slots], self._begun[slots] = frames, False
        for episode in map(int, self._episode[slots[over]]):
            self._tape.end(episode)
            self._finished.append(self.played.returns[episode])
            self._bar.advance(1, f"mean {np.mean(self._finished):.0f}")
        self.begin(slots[over])
        return slots[~over]

    def _note(self, slots: np.ndarray, rewards: np.ndarray, ends: np.ndarray) -> None:
        episodes = self._episode[slots]
        seen = self._frames[slots], self._latents[slots], self._actions[slots]
        self._tape.add(episodes, *seen, rewards, ends)
        self.played.lengths[episodes] += 1
        self.played.returns[episodes] += rewards
        self.played.terminated[episodes] = ends >= 0
