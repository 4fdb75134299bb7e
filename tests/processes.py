"""What the tests of running games ask the system: which processes and files there are."""

import contextlib
import os
import time
from pathlib import Path

from dreamjax.game import scratch


def children(pid):
    """Process ids of the children of `pid`."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for found in lists for child in found.split()]


def running(pids):
    """Those of `pids` that are alive, zombies apart."""
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX":
                alive.append(pid)
    return alive


def working_in(folder):
    """Process ids of workers and engines whose working directory is, or was, below `folder`."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd").startswith(str(folder)):
                pids.append(int(process.name))
    return pids


def engines_in(folder):
    """Process ids of the engines that work below `folder`, without their workers."""
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in working_in(folder)}
    return [pid for pid, said in words.items() if b"viz_instance_id" in said]


def shared_memory(folder):
    """Shared-memory files of the engines that were started below `folder`."""
    return [Path("/dev/shm", name.name) for name in Path(folder).rglob(f"{scratch.SHARED}*")]


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()
