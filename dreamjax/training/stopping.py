"""Stopping when asked: what SIGINT (Ctrl-C) and SIGTERM do."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Meanwhile `handler` gets both signals; only the main thread can have them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def at_once(farewell: str) -> Iterator[None]:
    """While importing there is nothing to tidy up, and an exception may get lost: just end."""

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, farewell.encode())
        os._exit(130)

    hook = sys.unraisablehook
    try:
        with handling(end):
            yield
    finally:
        sys.unraisablehook = hook


def by_interrupt() -> None:
    """From now on raise KeyboardInterrupt, so that what runs can tidy up."""
    if threading.current_thread() is threading.main_thread():
        for number in (*SIGNALS, signal.SIGALRM):
            signal.signal(number, _interrupt)
        sys.unraisablehook = _unheard


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _unheard(lost: "sys.UnraisableHookArgs") -> None:
    """An exception got lost in a callback, such as jax's of the garbage collector."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # once more, a little later
    else:
        sys.__unraisablehook__(lost)
