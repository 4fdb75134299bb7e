"""Pictures of a run: training curves, and a film of real | reconstruction | dream."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from dreamjax.agent import watch
from dreamjax.controller.player import Player
from dreamjax.dream.env import EnvState
from dreamjax.dream.unroll import follow, unroll
from dreamjax.dream.world import World
from dreamjax.vision.model import drawn

FILM_STEPS = 420  # 8 to 14 seconds of a game
FILM_RATE = 12  # pictures a second, about: a GIF plays few
SCALE = 3  # 64 pixels become 192
CAPTION = 14  # height of the line of text, in pixels

PANELS = (  # phase, metrics of one panel, label, what a step is
    ("vision", ("reconstruction", "kl"), "V: squared error and KL", "update"),
    ("memory", ("nll",), "M: nats per latent dimension", "update"),
    ("memory", ("death_loss", "reward_loss"), "M: losses of end and reward", "update"),
    ("memory", ("error", "control"), "M: error far ahead, other actions", "update"),
    ("evolve", ("mean", "max", "eval"), "C, evolved: return in the dream", "generation"),
    ("learn", ("life", "best_eval", "eval"), "C, learnt: steps to an end, return", "update"),
)
FEW = 40  # points of a curve that are marked one by one


def read_metrics(path: Path) -> list[dict]:
    """Rows of a `metrics.jsonl`; lines cut short by a crash are dropped."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def draw_curves(metrics: Path, target: Path) -> None:
    """Training curves of a run as one PNG, a panel for each that it has; none, and no file."""
    found = _panel_curves(read_metrics(metrics))
    if not found:
        return
    figure, axes = _figure(len(found))
    for axis, (label, unit, curves) in zip(axes, found, strict=True):
        for name, points in curves.items():
            axis.plot(points.keys(), points.values(), label=name, marker="." * (len(points) < FEW))
        axis.set_title(label, fontsize=9)
        axis.set_xlabel(unit, fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
    _saved(figure, axes, target)


def _panel_curves(rows: list[dict]) -> list[tuple[str, str, dict[str, dict[int, float]]]]:
    """Label, unit and curves of every panel that has any: metrics by their steps, in order.

    A run that was killed repeats rows: the last one counts.
    """
    found, rows = [], sorted(rows, key=lambda row: row["step"])
    for phase, names, label, unit in PANELS:
        mine = [row for row in rows if row["phase"] == phase]
        curves = {x: {row["step"]: row[x] for row in mine if row.get(x) is not None} for x in names}
        if curves := {name: points for name, points in curves.items() if points}:
            found.append((label, unit, curves))
    return found


def draw_fidelity(found: dict, target: Path) -> None:
    """What `dreamjax fidelity` found as one PNG: each player's return, and the error by steps."""
    figure, axes = _figure(2 if "foresight" in found else 1, height=0.3 * len(found["policies"]))
    names, places = list(found["policies"]), np.arange(len(found["policies"]))
    for side, (place, label) in enumerate(zip(("real", "dream"), ("game", "dream"), strict=True)):
        rows = [found["policies"][name][place] for name in names]
        means, errors = [row["mean"] for row in rows], [np.diff(row["ci95"])[0] / 2 for row in rows]
        axes[0].barh(places + 0.2 - 0.4 * side, means, 0.38, xerr=errors, label=label)
    axes[0].set_yticks(places, names, fontsize=7)
    axes[0].invert_yaxis()
    axes[0].set_title("return, and 95 % interval", fontsize=9)
    labels = {"error": "recorded actions", "control": "other actions", "copy": "last picture"}
    if "foresight" in found:
        for name, label in labels.items():
            axes[1].plot(found["foresight"]["ahead"], found["foresight"][name], ".-", label=label)
        axes[1].set_xscale("log")
        axes[1].set_title("error of the dream, by steps ahead", fontsize=9)
    _saved(figure, axes, target)


def _figure(panels: int, height: float = 3.2) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = 4 * panels, max(height, 3.2)
    figure, axes = plt.subplots(1, panels, figsize=size, squeeze=False, layout="constrained")
    return figure, axes[0]


def _saved(figure: Any, axes: Any, target: Path) -> None:
    from matplotlib import pyplot as plt

    for axis in axes:
        axis.legend(fontsize=7)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def film(world: World, player: Player, target: Path, seed: int = 0, open_loop: bool = False) -> int:
    """Save a GIF at `target`: the real game, V's reconstruction of it, and M's dream of its start.

    `player` plays the game, and the dream too, which begins at the same latent. An `open_loop`
    dream is given the game's actions instead, and shows how it drifts from the game. V and M are
    those of `world`. The seed is of all. Returns the steps filmed.

    Raises:
      WorkerError: the game could not be kept running.
    """
    frames, latents, actions = watch(world, player, seed, FILM_STEPS)
    choose = follow if open_loop else lambda obs, _: player.controller(player.weights, obs)
    dreamt, last, end = _dream(world, latents[0], choose, actions, seed)
    stride = max(1, round(world.task.steps_per_second / FILM_RATE))
    seen = drawn(world.vision, latents[::stride])
    imagined = drawn(world.vision, dreamt[::stride])
    pictures = []
    for i, real in enumerate(frames[::stride]):
        alive = i * stride <= last
        dream = imagined[i] if alive else imagined[i] // 2
        caption = "dream" if alive else f"dream: {end} at {last}"
        pictures.append(_panels((real, "real"), (seen[i], "reconstruction"), (dream, caption)))
    save_gif(pictures, target, world.task.steps_per_second / stride)
    return len(frames)


def _dream(
    world: World, z: np.ndarray, choose: Callable, actions: np.ndarray, seed: int
) -> tuple[np.ndarray, int, str]:
    """Latents [T, Z] dreamt from `z`, the step at which M ended it, and by what.

    `choose` is that of `unroll`, given the game's `actions` [T, A].
    """
    env, params = world.env(), world.params(dtype=jnp.float32)
    key, carry = jax.random.key(seed), world.memory.initial_carry()
    mask = params.draw_mask(key)
    start = EnvState(time=jnp.int32(0), z=jnp.asarray(z), carry=carry, mask=mask)
    keys = jax.random.split(key, len(actions))
    tell = lambda state, action: (state, env.clipped(action))  # noqa: E731
    dream = jax.jit(functools.partial(unroll, env, choose=choose, tell=tell))
    (states, did), alive = dream(params, start, keys, inputs=jnp.asarray(actions))
    z, last = np.asarray(states.z), int(alive.sum()) - 1
    if alive[-1]:
        return z, len(actions), ""
    at = jax.tree.map(lambda x: x[last], states)
    found = params.memory(at.carry, at.z, did[last], at.time, at.mask)[1]
    return z, last, world.task.ends[int(found.end.argmax())]


def _panels(*panels: tuple[np.ndarray, str]) -> Image.Image:
    """Captioned pictures side by side."""
    frames, captions = zip(*panels, strict=True)
    picture = ImageOps.scale(Image.fromarray(np.hstack(frames)), SCALE, Image.Resampling.NEAREST)
    canvas = ImageOps.expand(picture, (0, CAPTION, 0, 0))
    for i, caption in enumerate(captions):
        left = i * canvas.width // len(panels)
        ImageDraw.Draw(canvas).text((left + 4, 1), caption, fill="white")
    return canvas


def save_gif(pictures: Iterable[Image.Image], target: Path, pictures_per_second: float) -> None:
    """Save RGB pictures as an endless GIF."""
    octree = Image.Quantize.FASTOCTREE  # keeps what is bright and small: fireballs
    first, *others = (p.quantize(256, octree) for p in pictures)
    duration = round(1000 / pictures_per_second)
    first.save(target, save_all=True, append_images=others, duration=duration, loop=0)
