"""Real games side by side, a step at a time, for an agent in this process.

S: game slots in one request. A: numbers in an action.
"""

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamjax.game.workers import RETRIES, Worker, WorkerError, messages, worker_count
from dreamjax.task import Task


class Steps(NamedTuple):
    """What games answered."""

    slots: np.ndarray  # int [S], which games
    frames: np.ndarray  # uint8 [S, 64, 64, 3], what is seen now
    rewards: np.ndarray  # float32 [S], 0 where an episode has just begun
    ends: np.ndarray  # int8 [S], each its place in the task's, or -1 where none came
    truncated: np.ndarray  # bool [S]


class VectorGame(contextlib.AbstractContextManager):
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
      ValueError: `num_games` or `workers` is not positive; an action the game does not know.
      RuntimeError: a slot has no episode.
      ImportError: the game's package is missing.
      WorkerError: an episode was lost more than `retries` times.
      Where an answer is an error, the episodes of all slots that were awaited are over.
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
        self._worker = functools.partial(_QueuedWorker, task, True, timeout or task.timeout)
        self._retries = retries
        self._episodes: list[_Episode | None] = [None] * num_games
        self._arrived: list[Steps] = []
        count = num_games if task.one_per_process else worker_count(workers, num_games)
        self._workers = [self._worker() for _ in range(count)]

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """End all games."""
        while self._workers:
            self._workers.pop().end()

    def reset(self, slots: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in each slot [S]; nothing may be awaited.

        Returns first frames, uint8 [S, 64, 64, 3].
        """
        self.begin(slots, seeds)
        return self._all(slots).frames

    def step(self, slots: Sequence[int], actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Play one step in each slot [S] by actions [S, A]; nothing may be awaited.

        Returns frames, rewards, ends and truncated of `Steps`, in the order of `slots`.
        """
        self.send(slots, actions)
        return self._all(slots)[1:]

    def begin(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Start an episode in each slot [S], of these seeds [S]; the first frames are answered."""
        begun, count = [], len(self._workers)
        for slot, seed in zip(map(int, slots), seeds, strict=True):
            self._episodes[slot] = _Episode(slot, *divmod(slot, count), int(seed))
            begun.append(self._episodes[slot])
        self._ask(begun)

    def send(self, slots: Sequence[int], actions: np.ndarray) -> None:
        """Play one step in each slot [S] by actions [S, A]; RuntimeError where no episode runs."""
        playing = [self._episodes[slot] for slot in slots]
        if None in playing:
            raise RuntimeError(
                f"no episode is running in slot {slots[playing.index(None)]}; call reset() first"
            )
        for episode, action in zip(playing, np.asarray(actions, np.float32), strict=True):
            episode.actions.append(action)
        self._ask(playing)

    @property
    def awaited(self) -> bool:
        """Whether an answer is still to be received."""
        return bool(self._arrived or self._asked())

    def receive(self) -> Steps:
        """The answers that have come, at least one, in any order."""
        while not self._arrived:
            self._listen()
        arrived, self._arrived = self._arrived, []
        return Steps(*map(np.concatenate, zip(*arrived, strict=True)))

    def _all(self, slots: Sequence[int]) -> Steps:
        """The answers of all these slots, in their order."""
        while self._asked():
            self._listen()
        found = self.receive()
        order = np.argsort(found.slots)[np.argsort(np.argsort(slots))]
        return Steps(*(column[order] for column in found))

    def _asked(self) -> list["_Episode"]:
        return [episode for episode in self._episodes if episode and episode.asked]

    def _ask(self, episodes: list["_Episode"]) -> None:
        """Ask for the last step of each episode; where its game is elsewhere, for all."""
        for episode in episodes:
            episode.asked = True
        for index in {episode.worker for episode in episodes}:
            worker, mine = self._workers[index], [e for e in episodes if e.worker == index]
            here = [episode for episode in mine if episode.here]
            if here:
                worker.ask(here, "step", [e.game for e in here], [e.actions[-1] for e in here])
            for e in mine:
                if not e.here:
                    worker.ask([e], "resume", e.game, e.seed, e.actions)

    def _listen(self) -> None:
        """Wait for workers that were asked, and take their answers."""
        try:
            for worker, kind, value in messages(w for w in self._workers if w.busy):
                if kind == "lost":
                    self._lose(worker, value[1])
                else:
                    self._take(*value)
        except Exception:  # the worker lives on, but who knows how far it came
            arrived = [slot for steps in self._arrived for slot in steps.slots]
            for slot in [episode.slot for episode in self._asked()] + arrived:
                self._episodes[slot] = None
            self._arrived = []
            raise

    def _take(self, episodes: list["_Episode"], values: tuple[np.ndarray, ...]) -> None:
        """An answer; the part of it that is no longer wanted is dropped."""
        rows = [i for i, e in enumerate(episodes) if self._episodes[e.slot] is e]
        if not rows:
            return
        found = Steps(np.array([episodes[i].slot for i in rows]), *(x[rows] for x in values))
        for i, over in zip(rows, (found.ends >= 0) | found.truncated, strict=True):
            episodes[i].asked, episodes[i].here = False, True
            if over:
                self._episodes[episodes[i].slot] = None
        self._arrived.append(found)

    def _lose(self, worker: "_QueuedWorker", reason: str) -> None:
        """Replace a worker, count that its episodes were lost, and ask again."""
        index = self._workers.index(worker)
        self._workers[index] = self._worker()
        lost = [e for e in self._episodes if e and e.worker == index]
        for episode in lost:
            episode.losses += 1
            episode.here = False
        hopeless = [e for e in lost if e.losses > self._retries]
        if hopeless:  # one of several may be the cause
            seeds = " or ".join(str(episode.seed) for episode in hopeless)
            raise WorkerError(
                f"the game {self.task.name} with seed {seeds} was lost {hopeless[0].losses} times: "
                f"{reason}"
            )
        self._ask([episode for episode in lost if episode.asked])


@dataclasses.dataclass(eq=False)
class _Episode:
    """What is needed to play an episode again up to where it is."""

    slot: int
    game: int  # which of its worker's
    worker: int
    seed: int
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    losses: int = 0  # how often its worker was lost
    asked: bool = False  # its last step is awaited
    here: bool = False  # the worker's game is where it is


class _QueuedWorker(Worker):
    """A worker with a queue of requests, of which it is sent two at a time.

    So it is never idle, and neither side can fill the other's pipe.
    """

    def __init__(self, *args: Any):
        self._waiting, self._sent = deque(), deque([[]])  # it is told its task first
        super().__init__(*args)

    @property
    def busy(self) -> bool:
        """Whether it owes an answer."""
        return bool(self._sent)

    def ask(self, episodes: list[_Episode], *request: Any) -> None:
        """Queue a request about these episodes."""
        self._waiting.append((episodes, request))
        self._send_on()

    def _send_on(self) -> None:
        while self._waiting and len(self._sent) < 2:
            episodes, request = self._waiting.popleft()
            self._sent.append(episodes)
            self.send(*request)

    def message(self) -> tuple[str, tuple[list[_Episode], Any]]:
        """As `Worker.message`, whose value comes with the episodes that it is about."""
        episodes = self._sent.popleft()
        kind, value = super().message()
        if kind != "lost":  # else its pipe may be full
            self._send_on()
        return kind, (episodes, value)
