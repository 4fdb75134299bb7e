"""Whole episodes of policies, as jobs for processes that play the real game.

n: episodes.
"""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from dreamjax.game import policies
from dreamjax.game.workers import RETRIES, LostError, Worker, WorkerError, silent, worker_count
from dreamjax.tasks import Task
from dreamjax.training.logbook import Logbook


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
        yield from pool.results(worker_count(workers, len(jobs)))
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
        self.busy: dict[Worker, int] = {}

    def results(self, count: int) -> Iterator[tuple[int, Any]]:
        for _ in range(min(count, len(self.pending))):
            self._start(self.pending.popleft())
        while self.busy:
            wait([worker.connection for worker in self.busy], timeout=0.2)
            for worker in list(self.busy):
                try:
                    yield from self._attend(worker)
                except LostError as loss:
                    self._replace(worker, str(loss))

    def _attend(self, worker: Worker) -> Iterator[tuple[int, Any]]:
        """Read one message, if there is one; the result if it ends the job."""
        if not worker.connection.poll():
            if time.monotonic() - worker.heard > self.timeout:
                raise silent(self.timeout)
            return
        kind, value = worker.message()
        if kind == "tick":
            self.tick(value)
        elif kind == "run":
            job = self.busy.pop(worker)
            self._next(worker)
            yield job, value

    def _next(self, worker: Worker) -> None:
        if self.pending:
            self._give(worker, self.pending.popleft())
        else:
            worker.end()

    def _start(self, job: int) -> None:
        self._give(Worker(self.task, self.screen), job)

    def _give(self, worker: Worker, job: int) -> None:
        self.busy[worker] = job
        worker.send("run", self.target, self.jobs[job])

    def _replace(self, worker: Worker, reason: str) -> None:
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
