"""The process that plays real games for a parent.

It imports no JAX, so it starts fast and stays small. It answers requests `(method, *arguments)`
that arrive on an inherited pipe with `(method, value)`, `("lost", why the engine crashed)` or
`("error", (exception, traceback))`, and sends `("tick", steps)` while a long one runs. Started
by `dreamjax.game.workers` in a process group of its own, in the directory of its parent.
"""

import collections
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from dreamjax.game import scratch
from dreamjax.game.env import EngineCrashError, in_a_sentence, make_env
from dreamjax.game.workers import WorkerError
from dreamjax.importing import find
from dreamjax.task import Task
from dreamjax.training.settings import PLAYING

_TICK_SECONDS = 1.0
_WATCH_SECONDS = 0.5


class Player:
    """The requests a player answers."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._ticks, self._ticked = 0, time.monotonic()

    def open(self, task: Task, screen: bool) -> None:
        """Play games of this task; each is started when it is first played."""
        self._games = collections.defaultdict(lambda: make_env(task, screen=screen))

    def run(self, target: str, job: Any) -> Any:
        """`target(game, job, tick)` for the "module:function" `target`."""
        self._ticked = time.monotonic()
        value = find(target)(self._games[0], job, self.tick)
        self._flush()
        return value

    def tick(self, steps: int) -> None:
        """Count steps of the running job, and tell the parent every second."""
        self._ticks += steps
        if time.monotonic() - self._ticked > _TICK_SECONDS:
            self._flush()

    def resume(self, game: int, seed: int, actions: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Begin an episode in `game` and play these actions; the last step as `step` has it."""
        frame, _ = self._games[game].reset(seed=seed)
        last = frame, np.float32(0), np.int8(-1), False
        for action in actions:
            last = self._step(game, action)
        return tuple(np.array([value]) for value in last)

    def step(self, games: list[int], actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Frames, rewards, ends and truncated of one step in each of `games`.

        An end is its place in the task's, or -1 where none came.
        """
        steps = map(self._step, games, actions)
        return tuple(np.stack(column) for column in zip(*steps, strict=True))

    def _step(self, game: int, action: np.ndarray) -> tuple:
        frame, reward, terminated, truncated, info = self._games[game].step(action)
        end = info["end"] if terminated else -1
        return frame, np.float32(reward), np.int8(end), truncated

    def _flush(self) -> None:
        self._connection.send(("tick", self._ticks))
        self._ticks, self._ticked = 0, time.monotonic()


def main(descriptor: int, parent: int) -> None:
    """Answer requests until the parent hangs up or dies; then remove its scratch directory."""
    tempfile.tempdir = os.environ.get(PLAYING, os.devnull)
    if not os.path.exists(os.path.join(tempfile.tempdir, scratch.LOCK)):
        sys.exit("only dreamjax.game.workers starts a player, with a directory made for it")
    os.set_inheritable(descriptor, False)  # an engine holding it would hide this process's death
    threading.Thread(target=_outlive_not, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    player = Player(connection)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = connection.recv()
            connection.send(_answer(player, *request))
    _end()


def _answer(player: Player, method: str, *arguments: Any) -> tuple:
    try:
        return method, getattr(player, method)(*arguments)
    except EngineCrashError as error:
        return "lost", str(error)
    except BaseException as error:  # also what would end this process
        return "error", (_told(error), traceback.format_exc())


def _told(error: BaseException) -> Exception:
    """An error as the parent can raise it: of a kind of Python's own, or a `WorkerError`."""
    for kind in (ValueError, ImportError, ArithmeticError, OSError, RuntimeError, MemoryError):
        if isinstance(error, kind):
            return kind(" ".join(str(error).split()) or type(error).__name__)
    return WorkerError(in_a_sentence(error))


def _outlive_not(parent: int) -> None:
    """End soon after the parent is gone, even while the main thread waits for a hung engine."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    _end()


def _end() -> None:
    """Kill this process and its engines; closing a hung engine politely would block for ever."""
    scratch.clear(tempfile.gettempdir())
    os.killpg(0, signal.SIGKILL)
