"""Where a run writes what it does: a progress bar for people, JSON lines for programs."""

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
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from dreamjax.training.files import replacing, writing
from dreamjax.training.writers import Writer, opened

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
    writers: tuple[Writer | str, ...] = ()  # who else gets the metrics, or a name in `WRITERS`

    def __post_init__(self):
        self.directory = None if self.directory is None else Path(self.directory)
        self._writers = [x if callable(x) else opened(x, self.directory) for x in self.writers]
        self._path = self.directory and self.directory / "metrics.jsonl"
        self.console = Console()

    def say(self, text: str) -> None:
        """Print one line for the person who watches."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row to `metrics.jsonl`, and give the writers what is finite of it.

        Raises:
          WriteError: the disk refused (full, read-only); one line.
        """
        finite = {name: float(x) for name, x in metrics.items() if math.isfinite(x)}
        for writer in self._writers:
            writer(phase, int(step), finite)
        if self._path is None:
            return
        row = {"time": round(time.time(), 3), "phase": phase, "step": int(step)}
        row |= dict.fromkeys(metrics) | finite  # JSON has no NaN
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
        named, rate = "{task.description:<14}", "{task.percentage:>3.0f}% {task.fields[rate]}"
        columns = named, BarColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, "{task.fields[note]}", console=self.console) as rich:
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
