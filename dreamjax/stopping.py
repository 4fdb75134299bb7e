"""Stopping when asked: what SIGINT (Ctrl-C) and SIGTERM do."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DEAF = {"_xla_gc_callback", "__del__"}  # what is raised in them never arrives anywhere


@contextlib.contextmanager
def at_once(farewell: str) -> Iterator[None]:
    """While importing there is nothing to tidy up, and an exception may get lost: just end."""

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        os.write(2, farewell.encode())
        os._exit(130)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def by_interrupt() -> None:
    """From now on raise KeyboardInterrupt, so that what runs can tidy up."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_name in _DEAF:
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # a little later, then
            return
        frame = frame.f_back
    raise KeyboardInterrupt
