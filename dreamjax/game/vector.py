"""Real games side by side, a step at a time, for an agent in this process.

S: game slots in one request. A: numbers in an action.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np

from dreamjax.game.workers import RETRIES, LostError, Worker, WorkerError, silent, worker_count
from dreamjax.task import Task


class Steps(NamedTuple):
    """What games answered."""

    slots: np.ndarray  # int [S], which games
    frames: np.ndarray  # uint8 [S, 64, 64, 3], what is seen now
    rewards: np.ndarray  # float32 [S], 0 where an episode has just begun
    ends: np.ndarray  # int8 [S], each its place in the task's, or -1 where none came
    truncated: np.ndarray  # bool [S]


class VectorGame:
    """Real games side by side, for an agent in this process. Use it in a `with` block.

    `begin` and `send` ask without waiting, and `receive` takes the answers that came, so that
    games play while the agent thinks; `reset` and `step` ask and wait for all. An episode is a
    function of its seed and its actions, so a game that is lost is played again up to where it
    was, and nobody notices.

    Args:
      task, num_games: the game, and the number of slots.
      workers: processes; None for one a core.
      timeout: seconds of silence after which a worker is replaced; None is the task's.
      retries: how often an episode is tried again.

    Raises:
      ValueError: `num_games` or `workers` is not positive.
    """

    def __init__(
        self,
        task: Task,
        num_games: int,
        workers: int | None = None,
        *,
        timeout: float | None = None,
        retries: int = RETRIES,
    ):
        if num_games < 1:
            raise ValueError(f"num_games must be at least 1, got {num_games}")
        self.task, self.num_games = task, num_games
        self._timeout, self._retries = timeout or task.timeout, retries
        self._episodes: list[_Episode | None] = [None] * num_games
        self._here = np.zeros(num_games, bool)  # the slot's game is where its episode is
        self._arrived: list[Steps] = []
        count = num_games if task.one_per_process else worker_count(workers, num_games)
        self._workers = [None] * count
        for index in range(len(self._workers)):
            self._start(index)

    def __enter__(self) -> "VectorGame":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """End all games."""
        while self._workers:
            self._workers.pop().end()

    def reset(self, slots: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in each slot [S]; nothing may be awaited.

        Returns first frames, uint8 [S, 64, 64, 3].

        Raises:
          ImportError: the game's package is missing.
          WorkerError: an episode was lost more than `retries` times.
        """
        self.begin(slots, seeds)
        return self._all(slots).frames

    def step(self, slots: Sequence[int], actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Play one step in each slot [S] by actions [S, A]; nothing may be awaited.

        Returns frames, rewards, ends and truncated of `Steps`, in the order of `slots`.

        Raises:
          ValueError: an action the game does not know. The episodes of all these slots are over.
          RuntimeError: a slot has no episode.
          WorkerError: as for `reset`.
        """
        self.send(slots, actions)
        return self._all(slots)[1:]

    def begin(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Start an episode in each slot [S], of these seeds [S]; the first frames are answered."""
        for slot, seed in zip(slots, seeds, strict=True):
            self._episodes[slot] = _Episode(int(seed))
            self._here[slot] = False
        self._ask(np.asarray(slots))

    def send(self, slots: Sequence[int], actions: np.ndarray) -> None:
        """Play one step in each slot [S] by these actions [S, A].

        Raises:
          RuntimeError: a slot has no episode.
        """
        slots, actions = np.asarray(slots), np.asarray(actions, np.float32)
        self._check_playing(slots)
        for slot, action in zip(slots, actions, strict=True):
            self._episodes[slot].actions.append(action)
        self._ask(slots)

    @property
    def awaited(self) -> bool:
        """Whether an answer is still to be received."""
        return bool(self._arrived) or any(e is not None and e.asked for e in self._episodes)

    def receive(self) -> Steps:
        """The answers that have come, at least one, in any order.

        Raises:
          As `reset` and `step`; the episodes of all slots that were awaited are then over.
        """
        while not self._arrived:
            self._listen()
        arrived, self._arrived = self._arrived, []
        return Steps(*map(np.concatenate, zip(*arrived, strict=True)))

    def _all(self, slots: Sequence[int]) -> Steps:
        """The answers of all these slots, in their order; their episodes end where one fails."""
        found = []
        try:
            while self.awaited:
                found.append(self.receive())
        except Exception:
            self._forget(slots)
            raise
        found = Steps(*map(np.concatenate, zip(*found, strict=True)))
        order = np.argsort(found.slots)[np.argsort(np.argsort(slots))]
        return Steps(*(column[order] for column in found))

    def _check_playing(self, slots: np.ndarray) -> None:
        idle = [int(slot) for slot in slots if self._episodes[slot] is None]
        if idle:
            raise RuntimeError(f"no episode is running in slot {idle[0]}; call reset() first")

    def _ask(self, slots: np.ndarray) -> None:
        """Ask for the last step of each slot's episode; where the game is elsewhere, for all."""
        for slot in slots:
            self._episodes[slot].asked = True
        count = len(self._workers)
        for index in np.unique(slots % count):
            mine = slots[slots % count == index]
            here = self._here[mine]
            if here.any():
                self._workers[index].step([self._place(slot) for slot in mine[here]])
            for slot in mine[~here]:
                self._workers[index].resume(self._place(slot))

    def _place(self, slot: int) -> "_Place":
        return _Place(int(slot), int(slot) // len(self._workers), self._episodes[slot])

    def _listen(self) -> None:
        """Wait for a worker that was asked, and take its answer."""
        busy = {worker.connection: i for i, worker in enumerate(self._workers) if worker.busy}
        heard = wait(busy, timeout=min(self._patience(index) for index in busy.values()))
        for connection, index in busy.items():
            try:
                if connection in heard:
                    self._take(*self._workers[index].answer())
                elif self._patience(index) <= 0:
                    raise silent(self._timeout)
            except LostError as loss:
                self._lose(index, str(loss))
            except Exception:  # the worker lives on, but who knows how far it came
                self._forget([i for i, e in enumerate(self._episodes) if e and e.asked])
                self._forget([slot for steps in self._arrived for slot in steps.slots])
                self._arrived = []
                raise

    def _forget(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._episodes[slot] = None

    def _patience(self, index: int) -> float:
        """Seconds left to a worker to answer."""
        return max(0.0, self._workers[index].heard + self._timeout - time.monotonic())

    def _take(self, places: list["_Place"], values: tuple[np.ndarray, ...]) -> None:
        """An answer; the part of it that is no longer wanted is dropped."""
        rows = [i for i, at in enumerate(places) if self._episodes[at.slot] is at.episode]
        if not rows:
            return
        slots = np.array([places[i].slot for i in rows], int)
        self._here[slots] = True
        frames, rewards, ends, truncated = (column[rows] for column in values)
        found = Steps(
            slots, frames, rewards.astype(np.float32), ends.astype(np.int8), truncated.astype(bool)
        )
        for slot, over in zip(slots, (ends >= 0) | truncated, strict=True):
            self._episodes[slot].asked = False
            if over:
                self._episodes[slot] = None
        self._arrived.append(found)

    def _lose(self, index: int, reason: str) -> None:
        """Replace a worker, count that its episodes were lost, and ask again."""
        self._workers[index].end()
        self._start(index)
        slots = range(index, self.num_games, len(self._workers))
        lost = {slot: self._episodes[slot] for slot in slots if self._episodes[slot] is not None}
        for episode in lost.values():
            episode.losses += 1
        hopeless = [e for e in lost.values() if e.losses > self._retries]
        if hopeless:  # one of several may be the cause
            seeds = " or ".join(str(episode.seed) for episode in hopeless)
            raise WorkerError(
                f"the game {self.task.name} with seed {seeds} was lost {hopeless[0].losses} times: "
                f"{reason}"
            ) from None
        self._ask(np.array([slot for slot, episode in lost.items() if episode.asked], int))

    def _start(self, index: int) -> None:
        """Put a new worker in place."""
        self._here[index :: len(self._workers)] = False
        self._workers[index] = _QueuedWorker(self.task)


@dataclasses.dataclass
class _Episode:
    """What is needed to play an episode again up to where it is."""

    seed: int
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    losses: int = 0  # how often its worker was lost
    asked: bool = False  # its last step is awaited


class _Place(NamedTuple):
    """Where an episode is played: the slot, and the game of the worker."""

    slot: int
    game: int
    episode: _Episode


class _QueuedWorker(Worker):
    """A worker with a queue of requests, of which it is sent two at a time.

    So it is never idle, and neither side can fill the other's pipe.
    """

    def __init__(self, task: Task):
        self._waiting, self._sent = deque(), deque([[]])  # it is told its task first
        super().__init__(task, screen=True)

    @property
    def busy(self) -> bool:
        """Whether it owes an answer."""
        return bool(self._sent)

    def step(self, places: list[_Place]) -> None:
        """Ask for a step by the last action of each episode."""
        games = [place.game for place in places]
        actions = [place.episode.actions[-1] for place in places]
        self._queue(places, "step", games, actions)

    def resume(self, place: _Place) -> None:
        """Ask to play an episode from its start to its last action."""
        self._queue([place], "resume", place.game, place.episode.seed, place.episode.actions)

    def _queue(self, places: list[_Place], *request: Any) -> None:
        self._waiting.append((places, request))
        self._send_on()

    def _send_on(self) -> None:
        while self._waiting and len(self._sent) < 2:
            places, request = self._waiting.popleft()
            self._sent.append(places)
            self.send(*request)

    def answer(self) -> tuple[list[_Place], tuple[np.ndarray, ...]]:
        """The next answer, and whom it is about."""
        places = self._sent.popleft()
        _, values = self.message()
        self._send_on()
        return places, values
