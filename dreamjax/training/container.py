"""What a container lets its processes have: the limits of control groups, version 1 or 2."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def memory_limit() -> float:
    """Bytes of memory; infinity where nothing limits it."""
    found = (*_read("memory.max"), *_read("memory.limit_in_bytes"))
    return min((float(limit) for [limit] in found if limit != "max"), default=math.inf)


def core_limit() -> float:
    """Cores' worth of time; infinity where nothing limits it."""
    found = (*_read("cpu.max"), *_read("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    shares = (int(time) / int(of) for time, of in found if time not in ("max", "-1"))
    return min(shares, default=math.inf)


def _read(*names: str) -> Iterator[list[str]]:
    """The words of these files in this process's control group and in each that it lies in."""
    told = ROOT / "proc/self/cgroup"  # which only Linux has
    for line in told.read_text().splitlines() if told.exists() else ():
        _, kinds, group = line.split(":", 2)
        for mount in {"", "unified", kinds, *kinds.split(",")}:
            inmost = ROOT / "sys/fs/cgroup" / mount / group.lstrip("/")
            for folder in (inmost, *inmost.parents):
                with contextlib.suppress(OSError):
                    yield " ".join((folder / name).read_text() for name in names).split()
