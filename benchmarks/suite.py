"""Every benchmark in one run on one machine, as a table, as JSON and as a picture.

dreamjax bench                       (minutes)
dreamjax bench --quick --json FILE   (about a minute on 2 cores)
"""

import json
from collections.abc import Iterator
from pathlib import Path

import jax

from dreamjax.files import writable
from dreamjax.population import lanes_that_fit
from dreamjax.worlds import World

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


def run(
    quick: bool = False,
    world: str | None = None,
    lanes: tuple[int, ...] = (),
    target: Path | None = None,
    plot: Path | None = None,
) -> list[timing.Row]:
    """Measure, print each row as it comes, and write them all.

    Args:
      quick: only what fits in about a minute.
      world: run directory of a trained world; None is the shipped one, but where speed is
        compared with rivals the paper's M, untrained: the shipped one has more outputs.
      lanes: batch sizes; none takes the default ones that fit in memory.
      target: JSON file.
      plot: PNG file.

    Raises:
      ValueError: a number of lanes that is not positive or does not fit, or a file that cannot be
        written; before anything is measured.
    """
    for file in filter(None, (target, plot)):
        writable(file.parent)
    found, kind = find_world(world)
    racer = stand_in() if world is None else found
    lanes = _checked_lanes(found, lanes, QUICK_LANES if quick else LANES)
    rows = []
    print(f"{timing.device_name()}, jax {jax.__version__}, {kind}")
    for row in (_quick_rows if quick else _all_rows)(found, kind, racer, lanes):
        rows.append(row)
        print(line(row), flush=True)
    if target is not None:
        target.write_text(json.dumps(rows, indent=2) + "\n")
    if plot is not None:
        draw(rows, plot)
    return rows


def _checked_lanes(world: World, asked: tuple[int, ...], default: tuple[int, ...]):
    room = lanes_that_fit(world.env(), world.params(), world.controller().num_params)
    for count in asked:
        if not 1 <= count <= room:
            raise ValueError(f"lanes must be from 1 to the {room} that fit here, got {count}")
    return asked or tuple(count for count in default if count <= room)


def _quick_rows(
    world: World, kind: str, racer: World, lanes: tuple[int, ...]
) -> Iterator[timing.Row]:
    yield from dream_throughput.measure(racer, lanes, steps=30, both=False)
    yield from generation_time.measure(world, kind, generations=1)
    yield from training_speed.original_rows()
    yield from training_speed.gymnax_rows()


def _all_rows(
    world: World, kind: str, racer: World, lanes: tuple[int, ...]
) -> Iterator[timing.Row]:
    yield from dream_throughput.measure(racer, lanes)
    yield from step_split.measure(racer)
    yield from generation_time.measure(world, kind)
    yield from training_speed.original_rows()
    yield from torch_dream.original_rows()
    ceiling = timing.matrix_rate("float32") / step_flops(racer.memory)
    yield from torch_dream.rows(TORCH_LANES, 50, ceiling)
    yield from training_speed.gymnax_rows()
    yield from training_speed.vision_rows()
    yield from training_speed.memory_rows()
    yield from real_game.rows(world)


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
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    plt.close(figure)
