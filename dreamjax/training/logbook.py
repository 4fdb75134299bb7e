"""Where a run writes what it does: a progress bar for people, JSONL for programs."""

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dreamjax.training.files import replacing, writing

PLAIN_LINE_SECONDS = 10.0  # how often a piped run prints a line


@dataclasses.dataclass
class Bar:
    """Progress of one phase; made by `Logbook.progress`."""

    phase: str
    total: int
    unit: str
    done: int
    say: Callable[[str], None]
    rich: Progress | None = None
    note: str = ""

    def __post_init__(self):
        self._first, self._start = self.done, time.monotonic()
        self._printed = self._start
        if self.rich is not None:
            counts = {"total": self.total, "completed": self.done}
            self._task = self.rich.add_task(self.phase, **counts, rate="", note="")

    def advance(self, amount: int, note: str = "") -> None:
        """Count `amount` more units; `note` is shown beside the rate until the next one."""
        self.done += amount
        self.note, now = note or self.note, time.monotonic()
        speed = (self.done - self._first) / max(now - self._start, 1e-9)
        if self.rich is not None:
            rate = f"{_thousands(speed)} {self.unit}/s"
            self.rich.update(self._task, completed=self.done, rate=rate, note=self.note)
        elif now - self._printed > PLAIN_LINE_SECONDS or self.done >= self.total:
            self._printed = now
            eta = (self.total - self.done) / speed if speed else math.inf
            left = f", {eta:.0f} s left" if 0 < eta < math.inf else ""
            counts = f"{_thousands(self.done)}/{_thousands(self.total)} {self.unit}"
            line = f"{self.phase}: {counts}, {_thousands(speed)}/s{left}  {self.note}"
            self.say(line.rstrip())


@dataclasses.dataclass(eq=False)
class Logbook:
    """Metrics and progress of a run."""

    directory: Path | str | None = None  # where `metrics.jsonl` grows; None keeps it off the disk
    quiet: bool = False  # no progress at all, for library use and tests

    def __post_init__(self):
        self.directory = None if self.directory is None else Path(self.directory)
        self._path = self.directory and self.directory / "metrics.jsonl"
        self.console = Console()

    def say(self, text: str) -> None:
        """Print one line for the person who watches."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row to `metrics.jsonl`.

        Raises:
          WriteError: the disk refused (full, read-only); one line.
        """
        if self._path is None:
            return
        row = {"time": round(time.time(), 3), "phase": phase, "step": int(step)}
        for name, value in metrics.items():
            row[name] = float(value) if math.isfinite(value) else None  # JSON has no NaN
        with writing(self._path), open(self._path, "a+b") as file:
            _cut_torn_line(file)
            file.write(json.dumps(row).encode() + b"\n")

    def rewind(self, phase: str, step: int) -> None:
        """Drop the rows of `phase` after `step`, which are logged again; raises as `replacing`."""
        if self._path is None or not self._path.exists():
            return
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not _is_after(line, phase, step)]
        if kept != lines:
            with replacing(self._path) as file:
                file.writelines(kept)

    @contextlib.contextmanager
    def progress(self, phase: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """A bar with rate and time left; plain lines where output is piped."""
        if self.quiet or not sys.stdout.isatty():
            yield Bar(phase, total, unit, done, self.say)
            return
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as rich:
            yield Bar(phase, total, unit, done, self.say, rich)


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cut_torn_line(file: IO[bytes]) -> None:
    """Drop a last line that a crash or a full disk cut short."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _is_after(line: bytes, phase: str, step: int) -> bool:
    """Whether a row is of `phase` and later than `step`; one that cannot be read is not."""
    try:
        row = json.loads(line)
        return row["phase"] == phase and int(row["step"]) > step
    except (ValueError, LookupError, TypeError):
        return False
