"""Whole episodes of policies, as jobs for processes that play the real game.

n: episodes.
"""

import contextlib
import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from dreamjax.game import policies
from dreamjax.game.workers import RETRIES, Worker, WorkerError, messages, worker_count
from dreamjax.task import Task
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
) -> Generator[tuple[int, Any], None, None]:
    """Run `target(game, job, tick)` for every job in parallel.

    A job whose worker is lost is run again from its start, so it must be a function of the job
    and leave nothing half done. Close the iterator (`contextlib.closing`) to stop early.

    Args:
      task, workers: the game, and how many processes play it; None is one a core.
      target, jobs: "module:function" that the workers can import, and its picklable arguments.
      screen: whether frames are drawn.
      timeout: seconds without a `tick` or an answer after which a worker is hung; None: the task's.
      retries: how often a job is tried again.
      tick: receives the steps played since it was last called.

    Yields:
      `(index of the job, its value)` as jobs finish.

    Raises:
      WorkerError: a job was lost more than `retries` times.
      Exception: what a job raised; ImportError where the game's package is missing.
    """
    todo, losses = deque(range(len(jobs))), Counter()
    idle, busy = [], {}  # workers; which of them does which job
    try:
        while todo or busy:
            while todo and len(busy) < worker_count(workers, len(jobs)):
                worker = idle.pop() if idle else Worker(task, screen, timeout or task.timeout)
                busy[worker] = todo.popleft()
                worker.send("run", target, jobs[busy[worker]])
            for worker, kind, value in messages(busy):
                if kind == "tick":
                    tick(value)
                elif kind == "run":
                    idle.append(worker)
                    yield busy.pop(worker), value
                elif kind == "lost":
                    todo.appendleft(job := busy.pop(worker))
                    losses[job] += 1
                    if losses[job] > retries:
                        said = f"was lost {losses[job]} times in a row: {value}"
                        raise WorkerError(f"the game {task.name} {said}")
    finally:
        for worker in (*busy, *idle):
            worker.end()


@dataclasses.dataclass(frozen=True)
class Played:
    """What episodes earned."""

    returns: np.ndarray  # float64 [n], sums of rewards
    lengths: np.ndarray  # int64 [n], steps
    terminated: np.ndarray  # bool [n]; False is an episode cut by the step cap


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
      policy: a name in `policies.NAMES`, which are blind, or "module:function", whose
        policy is shown the frames.
      seeds: any integers; an episode is a function of its seed.
      task, workers, log, phase: the game, processes (None is one a core), progress and its name.

    Raises:
      ValueError: unknown policy, or no seeds.
      WorkerError: the game could not be kept running.
    """
    policies.check(policy)
    seeds = [int(seed) for seed in seeds]
    if not seeds:
        raise ValueError("seeds is empty; give one seed for each episode to play")
    jobs, looks = [(policy, seed) for seed in seeds], ":" in policy
    results = run_jobs(task, "dreamjax.game.policies:score", jobs, workers=workers, screen=looks)
    log, scores = log or Logbook(quiet=True), {}
    with log.progress(phase, len(seeds), "episodes") as bar, contextlib.closing(results):
        for index, score in results:
            scores[index] = score
            bar.advance(1, f"mean {np.mean([total for total, *_ in scores.values()]):.0f}")
    return Played(*map(np.array, zip(*(scores[i] for i in range(len(seeds))), strict=True)))
