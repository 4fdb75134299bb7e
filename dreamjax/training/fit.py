"""The one training loop: V, M and C all advance through it, with progress and checkpoints."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dreamjax.training import stopping
from dreamjax.training.checkpoint import Store
from dreamjax.training.devices import processes
from dreamjax.training.files import writable
from dreamjax.training.logbook import Logbook
from dreamjax.training.settings import check_guarded

Advance = Callable[[Any, int], tuple[Any, int, Mapping[str, float]]]


def fit(
    phase: str,
    state: Any,
    advance: Advance,
    total: int,
    *,
    log: Logbook | None = None,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
    unit: str = "steps",
    units_per_step: int = 1,
    show: str = "loss",
    most: float = math.inf,
) -> Any:
    """Advance `state` to step `total`; resume from `store`'s newest checkpoint if it has one.

    Args:
      phase: name in the progress, the metrics and the messages.
      state: pytree at step 0. It may be donated by `advance`.
      advance: `(state, step) -> (state, steps done, metrics)`, a function of the two alone, so
        that a resumed run repeats an unbroken one.
      log: receives metrics and progress.
      store: where checkpoints go, and how often; None keeps none.
      meta: written into every checkpoint, beside `total`.
      unit, units_per_step, show: what the progress counts, and the metric beside it.
      most: value of that metric beyond which the phase has diverged.

    Raises:
      FloatingPointError: a metric is not finite, or beyond `most`. The last checkpoint stays.
      KeyboardInterrupt: a first Ctrl-C or SIGTERM, once the state is saved.
      ValueError: `store`'s folder cannot be written.
    """
    check_guarded()
    log = log or Logbook(quiet=True)
    state, step = _resumed(phase, state, store, log)
    saver = _Saver(store, {"total": total, **(meta or {})})
    if step >= total:
        log.say(f"{phase}: finished before, at step {step}; nothing to do")
        if store is not None and store.unfinished():
            saver.save(step, state)  # that this is the end
        return state

    with (
        log.progress(phase, total * units_per_step, unit, step * units_per_step) as bar,
        _stop_requests() as stop,
    ):
        while step < total:
            state, count, metrics = advance(state, step)
            step += count
            _check(phase, step, metrics, {show: most})
            log.log(phase, step, metrics)
            bar.advance(count * units_per_step, f"{show} {float(metrics[show]):.4g}")
            stopped, due = _in_any_process(stop.is_set(), saver.is_due())
            if stopped or due:
                saver.save(step, state)
            if stopped:
                raise KeyboardInterrupt
    saver.save(step, state)
    return state


class _Saver:
    """Saves each step once; nothing where there is no store."""

    def __init__(self, store: Store | None, meta: Mapping[str, Any]):
        self._store, self._meta = store, meta
        self._saved, self._kept = time.monotonic(), -1

    def is_due(self) -> bool:
        return self._store is not None and time.monotonic() - self._saved >= self._store.seconds

    def save(self, step: int, state: Any) -> None:
        if self._store is not None and step != self._kept:
            self._store.save(step, state, self._meta)
            self._saved, self._kept = time.monotonic(), step


def _in_any_process(*here: bool) -> tuple[bool, ...]:
    """Which of some things hold in any process of the job."""
    if jax.process_count() == 1:
        return here
    return tuple(multihost_utils.process_allgather(np.array(here)).any(axis=0))


def _check(phase: str, step: int, metrics: Mapping[str, float], most: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not (math.isfinite(value) and value <= most.get(name, math.inf)):
            fault = f"has grown to {value:.3g}" if math.isfinite(value) else "is not finite"
            raise FloatingPointError(
                f"{phase}: {name} {fault} at step {step}; the checkpoints before it are kept; try "
                "a lower learning rate or another seed"
            )


def _resumed(phase: str, state: Any, store: Store | None, log: Logbook) -> tuple[Any, int]:
    """The newest checkpoint, laid as `state` is, and its step; else `state` and 0."""
    if store is None:
        return state, 0
    state, step = _newest(state, store, log)
    log.rewind(phase, step)  # what was logged after the checkpoint is logged again
    return state, step


def _newest(state: Any, store: Store, log: Logbook) -> tuple[Any, int]:
    writable(store.directory)
    steps = processes().first_then_all(store.steps)
    if len(steps) != multihost_utils.broadcast_one_to_all(len(steps)):
        raise ValueError(f"{store.directory} is not yet here as the first process sees it; retry")
    if not steps:
        for fault in store.faults():
            log.say(f"skipped {fault}; beginning anew")
        return state, 0
    state, meta = store.load(state)
    return state, meta["step"]


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; the second acts as it always did."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}

    def request(number, frame):
        stop.set()
        signal.signal(number, before[number])

    with stopping.handling(request):
        yield stop
