"""Processes that play the real game, kept alive and in step.

VizDoom's engine can crash, hang, or be orphaned, so every player (`dreamjax.game.player`) has a
process group and a working directory of its own, every answer has a time limit, and a player
that is lost is killed with its engines and replaced.
n: episodes. S: game slots in one request. A: numbers in an action.
"""

import builtins
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Pipe, wait
from typing import Any

import numpy as np

from dreamjax.game import policies
from dreamjax.game.scratch import Scratch
from dreamjax.tasks import FRAME_SHAPE, Task
from dreamjax.training.logbook import Logbook

TIMEOUT = 60.0  # seconds of silence after which a worker counts as hung
RETRIES = 3  # how often a job or a reset is tried again after its worker was lost
PLAYER = "dreamjax.game.player"  # the module that a worker runs
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class WorkerError(RuntimeError):
    """The real game could not be kept running; one line."""


class _LostError(Exception):
    """A worker, or an engine in it, crashed or hangs."""


class _WorkerTraceback(Exception):  # noqa: N818  # shown as the cause of the worker's own error
    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def default_workers() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _worker_count(workers: int | None, jobs: int) -> int:
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}; None uses every core")
    return max(1, min(workers or default_workers(), jobs))


class _Worker:
    """One player process, seen from its parent."""

    def __init__(self, task: Task, games: int, screen: bool):
        self._scratch = Scratch("worker")
        self.directory = self._scratch.path
        self.heard = time.monotonic()
        self.connection, theirs = Pipe()
        with theirs, open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    PLAYER,
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                cwd=self.directory,
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": _search_path()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a process group, and no Ctrl-C of the terminal's
            )
        self.send("open", task, games, screen)

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

    def answer(self, timeout: float) -> Any:
        """The value of the last request, once it comes."""
        while True:
            if not self.connection.poll(timeout):
                raise _LostError(f"a worker was silent for {timeout:.0f} s")
            kind, value = self.message()
            if kind != "open":
                return value

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
        return ""

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.directory / "log").read_text(errors="replace").split("\n")
            said = [line for line in lines if line.strip()]
            return f" saying {said[-1].strip()!r}" if said else ""
        return ""


def _search_path() -> str:
    return os.pathsep.join(os.path.abspath(path) for path in sys.path)


def _raise(name: str, message: str, trace: str) -> None:
    """Raise a worker's exception here, with its traceback as the cause."""
    kind = getattr(builtins, name, WorkerError)
    known = kind if issubclass(kind, Exception) and kind is not KeyError else WorkerError
    raise known(message) from _WorkerTraceback(trace)


def run_jobs(
    task: Task,
    target: str,
    jobs: Sequence[Any],
    *,
    workers: int | None = None,
    screen: bool = True,
    timeout: float = TIMEOUT,
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
      timeout: seconds without a `tick` or an answer after which a worker counts as hung.
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
        self.screen, self.timeout, self.retries, self.tick = screen, timeout, retries, tick
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
                raise _LostError(f"a worker was silent for {self.timeout:.0f} s")
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
        self._give(_Worker(self.task, 1, self.screen), job)

    def _give(self, worker: _Worker, job: int) -> None:
        self.busy[worker] = job
        worker.send("run", self.target, self.jobs[job])

    def _replace(self, worker: _Worker, reason: str) -> None:
        job = self.busy.pop(worker)
        worker.end()
        self.losses[job] += 1
        if self.losses[job] > self.retries:
            raise WorkerError(f"the game was lost {self.losses[job]} times in a row: {reason}")
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
    """Whole episodes of a policy that never looks, one for each seed.

    Args:
      task: the game.
      policy: a name in `policies.POLICIES`.
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
        screen=False,
    )
    log = log or Logbook(quiet=True)
    with log.progress(phase, len(seeds), "episodes") as bar, contextlib.closing(results):
        for index, score in results:
            scores[index] = score
            bar.advance(1, f"mean {np.mean([total for total, _, _ in scores.values()]):.0f}")
    totals, lengths, terminated = zip(*(scores[i] for i in range(len(seeds))), strict=True)
    return Played(np.array(totals), np.array(lengths), np.array(terminated))


class VectorGame:
    """Real games played in step, for an agent in this process. Use it in a `with` block.

    An episode is a function of its seed and its actions, so a game that is lost is played again
    up to where it was, and nobody notices.

    Args:
      task: the game.
      num_games: number of slots.
      workers: processes; None for one a core.
      timeout: seconds of silence after which a worker is replaced.
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
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ):
        if num_games < 1:
            raise ValueError(f"num_games must be at least 1, got {num_games}")
        self.task, self.num_games = task, num_games
        self._timeout, self._retries = timeout, retries
        self._episodes: list[_Episode | None] = [None] * num_games
        self._here = np.zeros(num_games, bool)  # the slot's game is where its episode is
        self._workers = [None] * _worker_count(workers, num_games)
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
        """Start an episode in each slot.

        Args:
          slots: [S] which games.
          seeds: [S] any integers.

        Returns:
          First frames, uint8 [S, 64, 64, 3].

        Raises:
          ImportError: the game's package is missing.
          WorkerError: an episode was lost more than `retries` times.
        """
        slots = np.asarray(slots)
        for slot, seed in zip(slots, seeds, strict=True):
            self._episodes[slot] = _Episode(int(seed))
        self._here[slots] = False
        return self._bring(slots)

    def step(
        self, slots: Sequence[int], actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Play one step in each slot.

        Args:
          slots: [S] which games.
          actions: [S, A].

        Returns:
          Frames uint8 [S, 64, 64, 3], rewards float32 [S], ends int8 [S], each its place in the
          task's or -1 where none came, and bool truncated [S].

        Raises:
          ValueError: an action the game does not know. The episodes of all these slots are over.
          RuntimeError: a slot has no episode.
          WorkerError: an episode was lost more than `retries` times.
        """
        slots, actions = np.asarray(slots), np.asarray(actions, np.float32)
        self._check_playing(slots)
        frames = np.zeros((len(slots), *FRAME_SHAPE), np.uint8)
        rewards = np.zeros(len(slots), np.float32)
        ends, truncated = np.full(len(slots), -1, np.int8), np.zeros(len(slots), bool)
        waiting = np.ones(len(slots), bool)
        while waiting.any():
            rows = np.flatnonzero(waiting)
            self._bring(slots[rows])
            for part, answer in self._ask("step", slots[rows], actions[rows]):
                for whole, values in zip((frames, rewards, ends, truncated), answer, strict=True):
                    whole[rows[part]] = values
                waiting[rows[part]] = False
        for slot, action, over in zip(slots, actions, (ends >= 0) | truncated, strict=True):
            self._episodes[slot].actions.append(action)
            if over:
                self._episodes[slot] = None
        return frames, rewards, ends, truncated

    def _check_playing(self, slots: np.ndarray) -> None:
        idle = [int(slot) for slot in slots if self._episodes[slot] is None]
        if idle:
            raise RuntimeError(f"no episode is running in slot {idle[0]}; call reset() first")

    def _bring(self, slots: np.ndarray) -> np.ndarray:
        """Bring games that are elsewhere into their episodes; the first frames of these."""
        frames = np.zeros((len(slots), *FRAME_SHAPE), np.uint8)
        while len(rows := np.flatnonzero(~self._here[slots])):
            seeds = [self._episodes[slot].seed for slot in slots[rows]]
            for part, first in self._ask("reset", slots[rows], seeds):
                frames[rows[part]] = first
                self._here[slots[rows[part]]] = True
            self._catch_up(slots[rows])
        return frames

    def _catch_up(self, slots: np.ndarray) -> None:
        """Play games that have just begun up to where their episodes are."""
        pasts = {slot: self._episodes[slot].actions for slot in slots}
        for step in range(max(map(len, pasts.values()))):
            behind = [slot for slot in slots if self._here[slot] and step < len(pasts[slot])]
            if behind:
                self._ask("step", np.array(behind), [pasts[slot][step] for slot in behind])

    def _ask(self, method: str, slots: np.ndarray, values: Sequence) -> list[tuple]:
        """`[(rows of slots, answer)]` of the workers concerned, without those that were lost."""
        count, parts = len(self._workers), {}
        for index in np.unique(slots % count):
            part = parts[index] = np.flatnonzero(slots % count == index)
            mine = [values[row] for row in part]
            self._workers[index].send(method, (slots[part] // count).tolist(), mine)
        answers, reason, fault = [], "", None
        for index, part in parts.items():
            try:
                answers.append((part, self._workers[index].answer(self._timeout)))
            except _LostError as loss:
                reason = str(loss)
                self._lose(index)
            except Exception as error:  # the worker lives on, but who knows how far it came
                fault = error
        if fault is not None:
            for slot in slots:
                self._episodes[slot] = None
            raise fault
        self._check_losses(reason)
        return answers

    def _lose(self, index: int) -> None:
        """Replace a worker; count that its episodes were lost."""
        self._workers[index].end()
        self._start(index)
        for episode in self._episodes[index :: len(self._workers)]:
            if episode is not None:
                episode.losses += 1

    def _check_losses(self, reason: str) -> None:
        """Give up on an episode that is lost again and again; one of several may be the cause."""
        lost = [e for e in self._episodes if e is not None and e.losses > self._retries]
        if lost:
            seeds = " or ".join(str(episode.seed) for episode in lost)
            raise WorkerError(
                f"the game with seed {seeds} was lost {lost[0].losses} times: {reason}"
            )

    def _start(self, index: int) -> None:
        """Put a new worker in place."""
        count = len(self._workers)
        games = len(range(index, self.num_games, count))
        self._here[index::count] = False
        self._workers[index] = _Worker(self.task, games, True)


@dataclasses.dataclass
class _Episode:
    """What is needed to play an episode again up to where it is."""

    seed: int
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    losses: int = 0  # how often its worker was lost
