"""How a player of Take Cover dies: how long after a hit, how near to a wall.

    dreamjax record take-cover --run-dir runs/first --collect.episodes 128
    python experiments/deaths.py --rollouts runs/first/played

A hit reddens the whole picture for some 19 steps. A wall is near where it fills columns of the
upper edge of the picture, which else shows the ceiling. Both are read off the pictures.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from dreamjax.game import rollouts
from dreamjax.tasks import TAKE_COVER, Colour
from dreamjax.training.settings import require_positive

SINCE = (0, 20, 40, 100, 400)  # steps since the newest hit
WALL = (0.0, 0.02, 0.1, 0.2, 0.3, 0.4)  # share of the upper edge that is wall
BROWN = Colour(1, 0, -1, 0.047)  # the walls; ceiling and floor are grey
RISE = 0.05  # of the red's share, that a hit makes


@dataclasses.dataclass(frozen=True)
class Config:
    """What is looked at."""

    rollouts: Path  # recorded by `dreamjax record take-cover` or `dreamjax collect take-cover`
    before: int = 25  # steps before a death at which the wall is looked for

    def __post_init__(self):
        require_positive(self, "before")


def main(config: Config) -> dict[str, list[dict[str, float]]]:
    """Print a table of deaths by steps since the newest hit, and one by the wall's nearness."""
    hit, wall, lives = [], [], []
    for red, walls, died in games(config.rollouts):
        since = since_hit(red)
        hit.append((since, since[-1:] if died else since[:0]))
        seen = walls[: max(1, len(walls) - config.before)]
        wall.append((walls, seen[-1:] if died else seen[:0]))
        lives.append((len(red), died, int((since == 0).sum())))
    if not lives:
        raise SystemExit(f"no rollouts in {config.rollouts}; record some first")
    steps, died, hits = np.transpose(lives)
    print(f"{len(lives)} games of {steps.mean():.0f} steps, {hits.sum()} hits, {died.sum()} deaths")
    found = {"since the newest hit": banded(hit, SINCE)}
    found[f"wall in the upper edge, {config.before} steps before"] = banded(wall, WALL)
    for title, rows in found.items():
        print(f"{title:<42}{'share of steps':>16}{'deaths':>8}{'in 1,000 steps':>22}")
        for row in rows:
            rate = f"{row['rate']:.2f} ± {row['error']:.2f}"
            print(f"from {row['from']:<37g}{row['share']:>16.3f}{row['deaths']:>8}{rate:>22}")
    return found


def games(directory: Path) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Of each game: share of red [T], of wall in the upper edge [T], and whether it died."""
    for _, shard in rollouts.read_all(rollouts.shard_paths(directory)):
        blocks = np.array_split(shard.frames, len(shard.frames) // 2048 + 1)
        parts = zip(*map(looked_at, blocks), strict=True)
        cuts = np.cumsum(shard.lengths)[:-1]
        red, walls = (np.split(np.concatenate(part), cuts) for part in parts)
        yield from zip(red, walls, shard.terminated, strict=True)


def looked_at(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The red's share and the wall's of the upper edge, [N] each, of frames [N, 64, 64, 3]."""
    pixels = np.moveaxis(frames.astype(np.float32) / 255, -1, 0)
    red = TAKE_COVER.salient.flash_share(pixels, rows=1)[:, 0, 0]
    edge = pixels[:, :, 2:8].mean(axis=2, keepdims=True)
    tint = red[:, None, None] * np.float32([1, 0, 0])[:, None, None, None]
    calm = (edge - tint) / np.maximum(1 - red, 0.05)[:, None, None]
    return red, BROWN.where(calm, rows=1)[:, 0].mean(axis=1)


def since_hit(red: np.ndarray) -> np.ndarray:
    """Steps since the newest rise of the red, [T]; infinite before the first."""
    hits = np.diff(red, prepend=0) > RISE
    number = np.arange(len(red))
    newest = np.maximum.accumulate(np.where(hits, number, -1))
    return np.where(newest < 0, np.inf, number - newest)


def banded(games: list[tuple[np.ndarray, np.ndarray]], edges: tuple[float, ...]):
    """Of the bands that begin at `edges`: share of all steps, deaths, those in 1,000 steps, ±.

    Args:
      games: of each, what is banded at all steps [T], and where it died, [1] or [0].
    """
    everywhere, deaths = (np.concatenate(part) for part in zip(*games, strict=True))
    rows = []
    for low, high in zip(edges, (*edges[1:], np.nan), strict=True):
        steps, died = (int(((x >= low) & ~(x >= high)).sum()) for x in (everywhere, deaths))
        rate, error = 1000 * died / max(steps, 1), 1000 * max(died, 1) ** 0.5 / max(steps, 1)
        share = steps / len(everywhere)
        rows.append({"from": low, "share": share, "deaths": died, "rate": rate, "error": error})
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
