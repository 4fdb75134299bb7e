"""Every benchmark in one run on one machine, as a table, as JSON and as a picture.

dreamjax bench                       (minutes)
dreamjax bench --quick --json FILE   (two minutes at most, and what is then being measured)
"""

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax

from dreamjax.controller.population import lanes_that_fit
from dreamjax.dream.world import World
from dreamjax.training.files import writable

from . import (
    dream_throughput,
    generation_time,
    real_game,
    step_split,
    timing,
    torch_dream,
    training_speed,
)
from .world import find_world, stand_in, step_flops

QUICK_LANES = (64, 1024)
LANES = (64, 256, 1024, 4096, 16_384, 65_536)
TORCH_LANES = 1024
QUICK_SECONDS = 120
MADE_BY = "give what dreamjax bench --json wrote"

Section = tuple[str, Callable[[], Iterable[timing.Row]]]  # what it measures, and its rows


def run(
    quick: bool = False,
    world: str | None = None,
    lanes: tuple[int, ...] = (),
    target: Path | None = None,
    plot: Path | None = None,
    seconds: float | None = None,
    against: Path | None = None,
) -> list[timing.Row]:
    """Measure, print each row as it comes, and write them all.

    What is being measured is told on the standard error, for compiling takes its time.

    Args:
      quick: the most important rows alone, those of a generation last.
      world: run directory of a trained world; None is the shipped one, but where speed is
        compared with rivals the paper's M, untrained: the shipped one has more outputs.
      lanes: batch sizes; none takes the default ones that fit in memory.
      target: JSON file.
      plot: PNG file.
      seconds: after which nothing new is begun, and what is left out is named; None is
        `QUICK_SECONDS` if `quick`, else no limit.
      against: JSON file of an earlier run; each row is then told as a ratio to its row there.

    Raises:
      ValueError: a file to compare with that has no rows, a number of lanes that is not positive
        or does not fit, seconds that are not positive, or a file that cannot be written; before
        anything is measured.
    """
    for file in filter(None, (target, plot)):
        writable(file.parent)
    if seconds is None:
        seconds = QUICK_SECONDS if quick else math.inf
    if not seconds > 0:
        raise ValueError(f"seconds must be more than 0, got {seconds}")
    before = None if against is None else read_rows(against)
    found, kind = find_world(world)
    lanes = _checked_lanes(found, lanes, QUICK_LANES if quick else LANES)
    racer = stand_in() if world is None else found
    print(f"{timing.device_name()}, jax {jax.__version__}, {kind}")
    rows = _measured((_quick if quick else _all)(found, kind, racer, lanes), seconds)
    if target is not None:
        target.write_text(json.dumps(rows, indent=2) + "\n")
    if plot is not None:
        draw(rows, plot)
    if before is not None:
        print(f"against {against}, of {before[0]['device']}:")
        for text in ratios(rows, before):
            print(text)
    return rows


def read_rows(path: Path) -> list[timing.Row]:
    """The rows of an earlier run.

    Raises:
      ValueError: the file has none.
    """
    try:
        rows = json.loads(path.read_text())
        needed = all({"name", "lanes", "value", "device"} <= row.keys() for row in rows)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be compared with ({error}); {MADE_BY}") from None
    if not (rows and needed):
        raise ValueError(f"{path} has no rows of a benchmark; {MADE_BY}")
    return rows


def ratios(rows: list[timing.Row], before: list[timing.Row]) -> Iterator[str]:
    """Each row that is in both runs as its value now over its value then.

    The noise beside it is that of the repeats of both; other work on a machine adds to it.
    """
    then = {(row["name"], row["lanes"]): row for row in before}
    for row in rows:
        old = then.get((row["name"], row["lanes"]))
        if old is None or not old["value"]:
            continue
        ratio, spreads = row["value"] / old["value"], (row["spread"], old.get("spread"))
        noise = "" if None in spreads else f" ± {ratio * math.hypot(*spreads):.2f}"
        yield f"{row['name']:<52}{row['lanes'] or '':>7} {ratio:>8.2f}{noise}"


def _checked_lanes(world: World, asked: tuple[int, ...], default: tuple[int, ...]):
    room = lanes_that_fit(world.env(), world.params(), world.controller().num_params)
    for count in asked:
        if not 1 <= count <= room:
            raise ValueError(f"lanes must be from 1 to the {room} that fit here, got {count}")
    return asked or tuple(count for count in default if count <= room)


def _measured(sections: list[Section], seconds: float) -> list[timing.Row]:
    """Rows of the sections that can be begun within so many seconds."""
    rows, start = [], time.monotonic()
    for name, measure in sections:
        passed = time.monotonic() - start
        if passed > seconds:
            print(f"left out after {passed:.0f} s: {name}; use --seconds {3 * passed:.0f}")
            continue
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        for row in measure():
            rows.append(row)
            print(line(row), flush=True)
    return rows


def _quick(world: World, kind: str, racer: World, lanes: tuple[int, ...]) -> list[Section]:
    throughput = functools.partial(dream_throughput.measure, steps=30, both=False)
    return [
        ("dreams side by side", lambda: throughput(racer, lanes)),
        ("the original's way", training_speed.original_rows),
        ("gymnax's CartPole", training_speed.gymnax_rows),
        ("a generation", lambda: generation_time.measure(world, kind, generations=1)),
    ]


def _all(world: World, kind: str, racer: World, lanes: tuple[int, ...]) -> list[Section]:
    def torch_rows():
        ceiling = timing.matrix_rate("float32") / step_flops(racer.memory)
        return torch_dream.rows(TORCH_LANES, 50, ceiling)

    return [
        ("dreams side by side", lambda: dream_throughput.measure(racer, lanes)),
        *_scaling(racer),
        ("the parts of a step", lambda: step_split.measure(racer)),
        ("a generation", lambda: generation_time.measure(world, kind)),
        ("the original's way", training_speed.original_rows),
        ("the original's way in PyTorch", torch_dream.original_rows),
        ("the dream in PyTorch", torch_rows),
        ("gymnax's CartPole", training_speed.gymnax_rows),
        ("V", training_speed.vision_rows),
        ("M", training_speed.memory_rows),
        ("the real game", lambda: real_game.rows(world)),
    ]


def _scaling(racer: World) -> list[Section]:
    """What several devices make, where there are several."""
    if jax.device_count() == 1:
        return []
    return [("one device and several", lambda: dream_throughput.scaling(racer))]


def line(row: timing.Row) -> str:
    """A row as text."""
    share = row["share_of_ceiling"]
    percent = "" if share is None else f"{share:7.1%} of the ceiling"
    lanes = row["lanes"] or ""
    return f"{row['name']:<52}{lanes:>7} {row['value']:>14,.2f} {row['unit']:<9}{percent}".rstrip()


def draw(rows: list[timing.Row], target: Path) -> None:
    """Steps/s against lanes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    for name in dict.fromkeys(row["name"] for row in rows if row["name"].startswith("dream alive")):
        points = [(row["lanes"], row["value"]) for row in rows if row["name"] == name]
        axis.plot(*zip(*points, strict=True), marker="o", label=name)
    axis.set(xscale="log", xlabel="lanes", ylabel="valid steps/s", title=rows[0]["device"])
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    plt.close(figure)
