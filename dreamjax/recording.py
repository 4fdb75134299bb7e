"""Recorded play of V, M and C, for M to learn from (paper: section "Iterative Training Procedure").

Shards as those of `game.rollouts`; beside them `players.json` says which agent played which.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np

from dreamjax.agent import Agent, Tape, evaluation_seeds, play_seeds
from dreamjax.controller.player import Player
from dreamjax.dream.world import World
from dreamjax.game import rollouts
from dreamjax.task import Task
from dreamjax.training import files
from dreamjax.training.checkpoint import digest
from dreamjax.training.logbook import Logbook
from dreamjax.training.processes import Processes

FIRST_PLAYED = 10_000  # number of the first shard that an agent recorded
SHARD = 32  # episodes of a shard
PLAYERS = "players.json"


@dataclasses.dataclass(frozen=True)
class Recording:
    """Real episodes that V, M and C are to record: whose they are, and what of them is there."""

    world: World
    player: Player
    directory: Path  # of the shards, beside which is kept which agent played which
    episodes: int  # how many; rounded up to whole shards
    seed: int  # chooses the games, which are none of any evaluation's
    first: int = 0  # shards before this one are others' to play

    @property
    def paths(self) -> list[Path]:
        """The shards, numbered so that they encode beside collected ones."""
        shards = range(self.first, -(-self.episodes // SHARD))
        return [self.directory / f"shard-{FIRST_PLAYED + shard:05d}.npz" for shard in shards]

    def seeds(self, path: Path) -> list[int]:
        """The games of a shard."""
        end = (_number(path) + 1) * SHARD
        return [odd - 1 for odd in evaluation_seeds(self.seed, end)[-SHARD:]]

    @functools.cached_property
    def identity(self) -> str:
        """What tells this agent from others."""
        return digest((self.world.arrays(), self.player.weights))

    def players(self) -> dict[str, str]:
        """Who played which shard, as far as is known."""
        try:
            return dict(json.loads((self.directory / PLAYERS).read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def sort(self) -> tuple[list[Path], list[Path], list[Path]]:
        """All shards from `first` on: ours, those of another agent or other games, damaged ones."""
        ours, others, damaged = found = [], [], []
        players = self.players()
        for path in rollouts.shard_paths(self.directory):
            if _number(path) >= self.first:
                try:
                    (ours if self._is_ours(path, players) else others).append(path)
                except rollouts.DamagedShardError:
                    damaged.append(path)
        return found

    def _is_ours(self, path: Path, players: dict[str, str]) -> bool:
        if rollouts.part(path, "seeds").tolist() != self.seeds(path):
            return False
        known = players.get(path.name)
        return self._plays(rollouts.read(path)) if known is None else known == self.identity

    def _plays(self, shard: rollouts.Rollouts) -> bool:
        """Whether the agent acts in the first frames as whoever recorded them did."""
        agent = Agent(self.world, self.player, SHARD, jax.random.key(self.seed))
        agent.begin(np.arange(SHARD), shard.seeds.tolist())
        action, _ = agent.act(np.arange(SHARD), shard.frames[shard.first])
        return np.allclose(action, shard.actions[shard.first], 0, 0.02)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("shard-")) - FIRST_PLAYED


def record(
    asked: Recording,
    *,
    log: Logbook | None = None,
    workers: int | None = None,
    processes: Processes,
) -> None:
    """Record real episodes of V, M and C, as `collecting.collect` does those of blind policies.

    Shards are written as their episodes end; one that this agent has played already is not played
    again, and a damaged one is set aside. `processes` shares the shards; other arguments as for
    `evaluate`.

    Raises:
      ValueError: another agent has recorded in the directory, or this one in other games.
      WorkerError: the game could not be kept running.
    """
    files.writable(asked.directory)
    log = log or Logbook(quiet=True)
    there = processes.first_then_all(lambda: _claimed(asked, log, processes.index == 0))
    missing = [path for path in processes.own(asked.paths) if path not in there]
    if not missing:
        return
    seeds = [seed for path in missing for seed in asked.seeds(path)]
    tape = ShardTape(missing, seeds, asked.world.task)
    play_seeds("record", asked.world, asked.player, asked.seed, seeds, tape, log, workers)


def _claimed(asked: Recording, log: Logbook, first: bool) -> list[Path]:
    """The agent's shards that are there; all that are asked for are written down as its own."""
    ours, others, damaged = asked.sort()
    if others:
        raise ValueError(
            f"{others[0]} was played by another agent, or in other games; move it away, or choose "
            "another directory"
        )
    if first:
        for path in damaged:
            path.rename(path.with_name(f"{path.name}.corrupt"))
            log.say(f"{path} is damaged; set aside as {path.name}.corrupt and played again")
        mine = {path.name: asked.identity for path in asked.paths}
        files.write_json(asked.directory / PLAYERS, asked.players() | mine)
    return ours


class ShardTape(Tape):
    """Writes every `SHARD` episodes as a shard of `paths`, as soon as they are over."""

    def __init__(self, paths: list[Path], seeds: list[int], task: Task):
        self._paths, self._seeds, self._task = paths, seeds, task
        self._steps, self._ended = {}, set()

    def add(self, episodes, frames, latents, actions, rewards, ends) -> None:
        for episode, *step in zip(episodes, frames, actions, rewards, ends, strict=True):
            self._steps.setdefault(episode, []).append(step)

    def end(self, episode: int) -> None:
        self._ended.add(episode)
        shard = episode // SHARD
        episodes = range(shard * SHARD, (shard + 1) * SHARD)
        if self._ended.issuperset(episodes):
            seeds = self._seeds[episodes.start : episodes.stop]
            played = [self._steps.pop(number) for number in episodes]
            whole = rollouts.of_steps(played, seeds, self._task.profile)
            rollouts.write(self._paths[shard], whole)
