"""Processes that play the real game, kept alive.

VizDoom's engine can crash, hang, or be orphaned, so every player (`dreamjax.game.player`) has a
process group and a scratch directory of its own, every answer has a time limit, and a player that
is lost is killed with its engines and replaced.
n: episodes. S: game slots in one request. A: numbers in an action.
"""

import builtins
import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Pipe, wait
from typing import Any, NamedTuple

import numpy as np

from dreamjax.game import policies
from dreamjax.game.scratch import Scratch
from dreamjax.tasks import Task
from dreamjax.training import container
from dreamjax.training.logbook import Logbook
from dreamjax.training.settings import PLAYING, check_guarded

RETRIES = 3  # how often a job or a reset is tried again after its worker was lost
PLAYER = (  # a worker's code; a script that it imports finds the words that it was started with
    "sys.argv[:] = {words!a}; from dreamjax.game.player import main; main({pipe}, {parent})"
)
TOLD = ValueError, ImportError, ArithmeticError, OSError, RuntimeError, MemoryError  # of a worker
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class WorkerError(RuntimeError):
    """The real game could not be kept running; one line."""


class _LostError(Exception):
    """A worker, or an engine in it, crashed or hangs."""


def _silent(seconds: float) -> _LostError:
    return _LostError(
        f"a worker was silent for {seconds:.0f} s; a game that needs longer says so by Task.timeout"
    )


class _WorkerTraceback(Exception):  # noqa: N818  # shown as the cause of the worker's own error
    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def default_workers() -> int:
    """Cores this process may use, at least one."""
    tied = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if tied else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, container.core_limit())))


def _worker_count(workers: int | None, jobs: int) -> int:
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}; None uses every core")
    return max(1, min(workers or default_workers(), jobs))


def games_beside(task: Task, games: int, workers: int | None) -> int:
    """How many of `games` can be played at once: one a worker, where a process holds one only."""
    return _worker_count(workers, games) if task.one_per_process else games


class _Worker:
    """One player process, seen from its parent."""

    def __init__(self, task: Task, screen: bool):
        check_guarded()
        self._scratch = Scratch("worker")
        self.directory = self._scratch.path
        self.heard = time.monotonic()
        self.connection, theirs = Pipe()
        with theirs, open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(
                python(PLAYER.format(words=sys.argv, pipe=theirs.fileno(), parent=os.getpid())),
                pass_fds=[theirs.fileno()],
                env=os.environ | _ONE_THREAD | {PLAYING: os.path.realpath(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a process group, and no Ctrl-C of the terminal's
            )
        self.send("open", task, screen)

    def send(self, *request: Any) -> None:
        """Ask; a dead worker is noticed when it fails to answer."""
        self.heard = time.monotonic()
        with contextlib.suppress(ConnectionError):
            self.connection.send(request)

    def message(self) -> tuple[str, Any]:
        """The next `(method, value)`.

        Raises:
          _LostError: the worker is gone or its engine crashed.
          Exception: what the request raised in the worker.
        """
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionError):
            raise _LostError(f"a worker died{self._cause()}{self._last_words()}") from None
        self.heard = time.monotonic()
        if kind == "crash":
            raise _LostError(content[0])
        if kind == "error":
            _raise(*content)
        return kind, content[0]

    def end(self) -> None:
        """Kill the worker with its engines, and remove what they leave behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        self._scratch.clear()

    def _cause(self) -> str:
        """The signal that ended the worker, if it was one."""
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            number = signal.Signals(-self.process.wait(1))  # its end of the pipe closed just now
            return f" of {number.name} ({signal.strsignal(number)})"
        code = self.process.poll()
        return "" if code is None else f" with status {code}"

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.directory / "log").read_text(errors="replace").split("\n")
            said = [line for line in lines if line.strip()]
            return f" saying {said[-1].strip()!r}" if said else ""
        return ""


def python(code: str) -> list[str]:
    """The command that runs `code` in a Python that finds modules exactly where this one does."""
    path = [os.path.abspath(place) for place in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!a}; {code}"]


def _raise(name: str, message: str, trace: str) -> None:
    """Raise a worker's exception here, in one line, with its traceback as the cause."""
    kind = getattr(builtins, name)
    told = issubclass(kind, TOLD) and kind is not KeyError
    message = " ".join(message.split()) or name
    raise (kind(message) if told else WorkerError(f"{name}: {message}")) from _WorkerTraceback(
        trace
    )


def run_jobs(
    task: Task,
    target: str,
    jobs: Sequence[Any],
    *,
    workers: int | None = None,
    screen: bool = True,
    timeout: float | None = None,
    retries: int = RETRIES,
    tick: Callable[[int], None] = lambda steps: None,
) -> Iterator[tuple[int, Any]]:
    """Run `target(game, job, tick)` for every job in parallel.

    A job whose worker is lost is run again from its start, so it must be a function of the job
    and leave nothing half done. Close the iterator (`contextlib.closing`) to stop early.

    Args:
      task: the game each worker plays.
      target: "module:function" that the workers can import.
      jobs: picklable arguments.
      workers: processes; None for one a core.
      screen: whether frames are drawn.
      timeout: seconds without a `tick` or an answer after which a worker counts as hung; None is
        the task's.
      retries: how often a job is tried again.
      tick: receives the steps played since it was last called.

    Yields:
      `(index of the job, its value)` as jobs finish.

    Raises:
      WorkerError: a job was lost more than `retries` times.
      Exception: what a job raised; ImportError where the game's package is missing.
    """
    pool = _JobPool(task, target, jobs, screen, timeout, retries, tick)
    try:
        yield from pool.results(_worker_count(workers, len(jobs)))
    finally:
        for worker in pool.busy:
            worker.end()


class _JobPool:
    """Which worker does which job."""

    def __init__(self, task, target, jobs, screen, timeout, retries, tick):
        self.task, self.target, self.jobs = task, target, jobs
        self.screen, self.timeout = screen, timeout or task.timeout
        self.retries, self.tick = retries, tick
        self.pending = deque(range(len(jobs)))
        self.losses = dict.fromkeys(self.pending, 0)
        self.busy: dict[_Worker, int] = {}

    def results(self, count: int) -> Iterator[tuple[int, Any]]:
        for _ in range(min(count, len(self.pending))):
            self._start(self.pending.popleft())
        while self.busy:
            wait([worker.connection for worker in self.busy], timeout=0.2)
            for worker in list(self.busy):
                try:
                    yield from self._attend(worker)
                except _LostError as loss:
                    self._replace(worker, str(loss))

    def _attend(self, worker: _Worker) -> Iterator[tuple[int, Any]]:
        """Read one message, if there is one; the result if it ends the job."""
        if not worker.connection.poll():
            if time.monotonic() - worker.heard > self.timeout:
                raise _silent(self.timeout)
            return
        kind, value = worker.message()
        if kind == "tick":
            self.tick(value)
        elif kind == "run":
            job = self.busy.pop(worker)
            self._next(worker)
            yield job, value

    def _next(self, worker: _Worker) -> None:
        if self.pending:
            self._give(worker, self.pending.popleft())
        else:
            worker.end()

    def _start(self, job: int) -> None:
        self._give(_Worker(self.task, self.screen), job)

    def _give(self, worker: _Worker, job: int) -> None:
        self.busy[worker] = job
        worker.send("run", self.target, self.jobs[job])

    def _replace(self, worker: _Worker, reason: str) -> None:
        job = self.busy.pop(worker)
        worker.end()
        self.losses[job] += 1
        if self.losses[job] > self.retries:
            raise WorkerError(
                f"the game {self.task.name} was lost {self.losses[job]} times in a row: {reason}"
            )
        self._start(job)


@dataclasses.dataclass(frozen=True)
class Played:
    """What episodes earned.

    Attributes:
      returns: float64 [n], sums of rewards.
      lengths: int64 [n], steps.
      terminated: bool [n]; False is an episode cut by the step cap.
    """

    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray


NONE_PLAYED = Played(np.zeros(0), np.zeros(0, int), np.zeros(0, bool))


def play(
    task: Task,
    policy: str,
    seeds: Sequence[int],
    *,
    workers: int | None = None,
    log: Logbook | None = None,
    phase: str = "play",
) -> Played:
    """Whole episodes of a policy, one for each seed.

    Args:
      task: the game.
      policy: a name in `policies.NAMES`, whose policies never look, or "module:function", whose
        policy is shown the frames.
      seeds: any integers; an episode is a function of its seed.
      workers: processes; None for one a core.
      log: shows the progress; None shows none.
      phase: name in the progress.

    Raises:
      ValueError: unknown policy, or no seeds.
      WorkerError: the game could not be kept running.
    """
    policies.check(policy)
    seeds = [int(seed) for seed in seeds]
    if not seeds:
        raise ValueError("seeds is empty; give one seed for each episode to play")
    scores = {}
    results = run_jobs(
        task,
        "dreamjax.game.policies:score",
        [(policy, seed) for seed in seeds],
        workers=workers,
        screen=":" in policy,
    )
    log = log or Logbook(quiet=True)
    with log.progress(phase, len(seeds), "episodes") as bar, contextlib.closing(results):
        for index, score in results:
            scores[index] = score
            bar.advance(1, f"mean {np.mean([total for total, _, _ in scores.values()]):.0f}")
    totals, lengths, terminated = zip(*(scores[i] for i in range(len(seeds))), strict=True)
    return Played(np.array(totals), np.array(lengths), np.array(terminated))


class Steps(NamedTuple):
    """What games answered.

    Attributes:
      slots: int [S], which games.
      frames: uint8 [S, 64, 64, 3], what is seen now.
      rewards: float32 [S], 0 where an episode has just begun.
      ends: int8 [S], each its place in the task's, or -1 where none came.
      truncated: bool [S].
    """

    slots: np.ndarray
    frames: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    truncated: np.ndarray


class VectorGame:
    """Real games side by side, for an agent in this process. Use it in a `with` block.

    `begin` and `send` ask without waiting, and `receive` takes the answers that came, so that
    games play while the agent thinks; `reset` and `step` ask and wait for all. An episode is a
    function of its seed and its actions, so a game that is lost is played again up to where it
    was, and nobody notices.

    Args:
      task: the game.
      num_games: number of slots.
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
        count = num_games if task.one_per_process else _worker_count(workers, num_games)
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
        """Start an episode in each slot; nothing may be awaited.

        Args:
          slots: [S] which games.
          seeds: [S] any integers.

        Returns:
          First frames, uint8 [S, 64, 64, 3].

        Raises:
          ImportError: the game's package is missing.
          WorkerError: an episode was lost more than `retries` times.
        """
        self.begin(slots, seeds)
        return self._all(slots).frames

    def step(
        self, slots: Sequence[int], actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Play one step in each slot; nothing may be awaited.

        Args:
          slots: [S] which games.
          actions: [S, A].

        Returns:
          Frames, rewards, ends and truncated of `Steps`, in the order of `slots`.

        Raises:
          ValueError: an action the game does not know. The episodes of all these slots are over.
          RuntimeError: a slot has no episode.
          WorkerError: an episode was lost more than `retries` times.
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
                    raise _silent(self._timeout)
            except _LostError as loss:
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
        self._check_losses(reason)
        self._ask(np.array([slot for slot, episode in lost.items() if episode.asked], int))

    def _check_losses(self, reason: str) -> None:
        """Give up on an episode that is lost again and again; one of several may be the cause."""
        lost = [e for e in self._episodes if e is not None and e.losses > self._retries]
        if lost:
            seeds = " or ".join(str(episode.seed) for episode in lost)
            raise WorkerError(
                f"the game {self.task.name} with seed {seeds} was lost {lost[0].losses} times: "
                f"{reason}"
            ) from None

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


class _QueuedWorker(_Worker):
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
