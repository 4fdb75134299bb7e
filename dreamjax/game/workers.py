"""Processes that play the real game, kept alive.

VizDoom's engine can crash, hang, or be orphaned, so every player (`dreamjax.game.player`) has a
process group and a scratch directory of its own, every answer has a time limit, and a player that
is lost is killed with its engines and replaced.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Pipe, wait
from typing import Any

from dreamjax.game.scratch import Scratch
from dreamjax.task import Task
from dreamjax.training import container
from dreamjax.training.settings import PLAYING, check_guarded

RETRIES = 3  # how often a job or a reset is tried again after its worker was lost
PLAYER = (  # a worker's code; a script that it imports finds the words that it was started with
    "sys.argv[:] = {words!a}; from dreamjax.game.player import main; main({pipe}, {parent})"
)
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class WorkerError(RuntimeError):
    """The real game could not be kept running; one line."""


def default_workers() -> int:
    """Cores this process may use, at least one."""
    tied = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if tied else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, container.core_limit())))


def worker_count(workers: int | None, jobs: int) -> int:
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}; None uses every core")
    return max(1, min(workers or default_workers(), jobs))


def games_beside(task: Task, games: int, workers: int | None) -> int:
    """How many of `games` can be played at once: one a worker, where a process holds one only."""
    return worker_count(workers, games) if task.one_per_process else games


class Worker:
    """One player process, seen from its parent; lost after `timeout` seconds of silence."""

    def __init__(self, task: Task, screen: bool, timeout: float):
        check_guarded()
        self._scratch = Scratch("worker")
        self.directory = self._scratch.path
        self._timeout = timeout
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
        self._heard = time.monotonic()
        with contextlib.suppress(ConnectionError):
            self.connection.send(request)

    @property
    def patience(self) -> float:
        """Seconds until it counts as lost."""
        return max(0.0, self._heard + self._timeout - time.monotonic())

    def message(self) -> tuple[str, Any]:
        """The next `(method, value)`, or `("lost", reason)` if it is silent, gone or crashed.

        What the request raised in the worker is raised here.
        """
        if not self.connection.poll():
            how = "a game that needs longer says so by Task.timeout"
            return "lost", f"a worker was silent for {self._timeout:.0f} s; {how}"
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionError):
            return "lost", f"a worker died{self._cause()}{self._last_words()}"
        self._heard = time.monotonic()
        if kind == "error":
            error, trace = value
            raise error from RuntimeError(f"\n{trace}")
        return kind, value

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


def messages(workers: Iterable[Worker]) -> Iterator[tuple[Worker, str, Any]]:
    """Wait for some of these, at least one: each with its `message`; a lost one is ended."""
    workers = list(workers)
    patience = min(worker.patience for worker in workers)
    ready = wait([worker.connection for worker in workers], patience)
    for worker in [w for w in workers if w.connection in ready or not w.patience]:
        kind, value = worker.message()
        if kind == "lost":
            worker.end()
        yield worker, kind, value


def python(code: str) -> list[str]:
    """The command that runs `code` in a Python that finds modules exactly where this one does."""
    path = [os.path.abspath(place) for place in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!a}; {code}"]
