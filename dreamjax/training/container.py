"""What the container lets its processes have: the limits of control groups, version 1 or 2."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def memory_limit() -> float:
    """Bytes of memory; infinity where nothing limits it."""
    limits = (*_read("memory.max"), *_read("memory.limit_in_bytes"))
    return min((float(words[0]) for words in limits if words[0] != "max"), default=math.inf)


def core_limit() -> float:
    """Cores' worth of time; infinity where nothing limits it."""
    periods = _read("cpu.cfs_quota_us", "cpu.cfs_period_us")
    shares = [
        int(quota) / int(period)
        for quota, period in (*_read("cpu.max"), *periods)
        if quota not in ("max", "-1")
    ]
    return min(shares, default=math.inf)


def _read(*names: str) -> Iterator[list[str]]:
    """The words of these files in this process's control groups and in those that hold them."""
    with contextlib.suppress(OSError):  # not Linux
        for line in (ROOT / "proc/self/cgroup").read_text().splitlines():
            _, kinds, group = line.split(":", 2)
            for mount in {"", "unified", kinds, *kinds.split(",")}:
                inmost = ROOT / "sys/fs/cgroup" / mount / group.lstrip("/")
                for folder in (inmost, *inmost.parents):
                    with contextlib.suppress(OSError):
                        yield [w for n in names for w in (folder / n).read_text().split()]
