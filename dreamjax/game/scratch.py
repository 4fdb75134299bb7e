"""Private directories of running games, and the end of those whose owner was killed.

Whoever plays makes a `Scratch`, works below it and holds a lock in it. The kernel frees the lock
however the owner ends, so a directory whose lock is free is litter, and the next `Scratch` clears
it: its processes, its engines' shared memory, its files. A file in it that has the name of one in
/dev/shm stands for that one.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from dreamjax.training.settings import PLAYING

SHARED = "ViZDoom"  # how the names of an engine's files in /dev/shm begin
LOCK = "lock"  # the file whose lock the owner holds
_ENGINE = b"viz_instance_id"  # in the command lines of engines


_WORKING_DIRECTORY = threading.Lock()  # a process has one


@contextlib.contextmanager
def working_in(directory: Path | str) -> Iterator[None]:
    """Let an engine start in `directory`, where it writes files of its own."""
    with _WORKING_DIRECTORY, contextlib.chdir(directory):
        yield


class Scratch:
    """A directory of this process alone, in the temporary one; litter beside it is cleared.

    `kind` is in the name of the directory, `path`.
    """

    def __init__(self, kind: str):
        sweep()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"dreamjax-{kind}-"))
            self._lock = open(self.path / LOCK, "w")  # noqa: SIM115  # no child inherits it
            with contextlib.suppress(OSError):  # a file system without locks is never swept
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            if (self.path / LOCK).exists():
                return
            self._lock.close()  # a sweep took it for litter before it was locked

    def clear(self) -> None:
        """`clear` it and let it go; once more does no harm."""
        clear(self.path)
        self._lock.close()


def sweep() -> None:
    """Clear this user's scratch directories whose owners are dead."""
    for path in Path(tempfile.gettempdir()).glob("dreamjax-*-*"):
        with contextlib.suppress(OSError):  # not a scratch directory, or its owner lives
            if path.lstat().st_uid == os.getuid():
                with open(path / LOCK, "r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    clear(path)


def clear(directory: Path | str) -> None:
    """Kill all others that play below a directory; remove it and their shared memory."""
    for process in _players(os.path.realpath(directory)):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    for name in Path(directory).rglob(f"{SHARED}*"):
        with contextlib.suppress(OSError):
            Path("/dev/shm", name.name).unlink()
    shutil.rmtree(directory, ignore_errors=True)


def _players(directory: str) -> Iterator[int]:
    """Other processes that play for a directory; none where there is no /proc."""
    mark = f"{PLAYING}={directory}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            ours = mark in (process / "environ").read_bytes().split(b"\0")
            inside = f"{os.readlink(process / 'cwd')}/".startswith(f"{directory}/")
            engine = inside and _ENGINE in (process / "cmdline").read_bytes()
            if (ours or engine) and int(process.name) != os.getpid():
                yield int(process.name)
