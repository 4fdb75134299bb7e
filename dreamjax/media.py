"""Pictures of a run: training curves, and a film of real | reconstruction | dream."""

import json
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from dreamjax.agent import Agent, evaluation_seeds
from dreamjax.dream import EnvState
from dreamjax.real import make_env
from dreamjax.vision import drawn
from dreamjax.worlds import World

FILM_STEPS = 420  # 12 seconds of Take Cover
FILM_STRIDE = 3  # every third tic is shown: 35 tics a second are more than a GIF plays
SCALE = 3  # 64 pixels become 192
CAPTION = 14  # height of the line of text, in pixels

PANELS = (  # phase, metrics of one panel, label
    ("vision", ("reconstruction", "kl"), "V: squared error and KL"),
    ("memory", ("nll",), "M: nats per latent dimension"),
    ("memory", ("death_loss",), "M: death loss"),
    ("evolve", ("mean", "max", "eval"), "C: return in the dream"),
)


def read_metrics(path: Path) -> list[dict]:
    """Rows of a `metrics.jsonl`; a last line cut short by a crash is dropped."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def draw_curves(metrics: Path, target: Path) -> None:
    """Training curves of a run as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(metrics)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.2))
    for axis, (phase, names, label) in zip(axes, PANELS, strict=True):
        for name in names:
            points = [
                (r["step"], r[name])
                for r in rows
                if r["phase"] == phase and r.get(name) is not None
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True), label=name, marker="." if len(points) < 40 else ""
                )
        axis.set_title(label, fontsize=9)
        axis.set_xlabel("generation" if phase == "evolve" else "update", fontsize=8)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)


def film(world: World, weights: jax.Array, target: Path, seed: int = 0) -> int:
    """Save a GIF: the real game, V's reconstruction of it, and M's dream from the same start.

    The dream starts at the same latent, is given the same actions and never looks again.

    Args:
      world, weights: the agent that plays.
      target: path of the GIF.
      seed: of the game and of the dream.

    Returns:
      Steps filmed.
    """
    frames, latents, actions = _play(world, weights, seed)
    dreamt, died = _dream(world, latents[0], actions, seed)
    shown = range(0, len(frames), FILM_STRIDE)
    seen = drawn(world.vision, latents[::FILM_STRIDE])
    imagined = drawn(world.vision, dreamt[::FILM_STRIDE])
    pictures = []
    for i, t in enumerate(shown):
        alive = t <= died
        dream = imagined[i] if alive else imagined[i] // 2
        caption = "dream" if alive else f"dream: died at {died}"
        pictures.append(_panels((frames[t], "real"), (seen[i], "reconstruction"), (dream, caption)))
    _save_gif(pictures, target)
    return len(frames)


def _play(world: World, weights: jax.Array, seed: int):
    """One real episode: frames [T, 64, 64, 3], latents [T, Z], actions [T, A]."""
    agent = Agent(world, weights, 1, jax.random.key(seed))
    env = make_env(world.task)
    frames, latents, actions = [], [], []
    frame, _ = env.reset(seed=evaluation_seeds(seed, 1)[0])
    ended = False
    while not ended and len(frames) < FILM_STEPS:
        action = agent.act(frame[None], np.array([not frames]))[0]
        frames.append(frame)
        latents.append(np.asarray(agent.z[0]))
        actions.append(action)
        frame, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    env.close()
    return np.array(frames), np.array(latents), np.array(actions)


def _dream(world: World, z: np.ndarray, actions: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """Latents [T, Z] dreamt from `z` under `actions`, and the step at which M ended it."""
    env, params = world.env(), world.params()
    start = EnvState(time=jnp.int32(0), z=jnp.asarray(z), carry=world.memory.initial_carry())

    def step(state, inputs):
        key, action = inputs
        _, after, _, terminated, _ = env.step_env(key, state, action, params)
        return after, (state.z, terminated)

    keys = jax.random.split(jax.random.key(seed), len(actions))
    _, (latents, terminated) = jax.jit(jax.lax.scan, static_argnums=0)(
        step, start, (keys, jnp.asarray(actions))
    )
    ends = np.flatnonzero(terminated)
    return np.asarray(latents), int(ends[0]) if len(ends) else len(actions)


def _panels(*panels: tuple[np.ndarray, str]) -> Image.Image:
    """Captioned pictures side by side."""
    width = panels[0][0].shape[1] * SCALE
    height = panels[0][0].shape[0] * SCALE + CAPTION
    canvas = Image.new("RGB", (width * len(panels), height), "black")
    draw = ImageDraw.Draw(canvas)
    for i, (frame, caption) in enumerate(panels):
        picture = Image.fromarray(frame).resize((width, height - CAPTION), Image.NEAREST)
        canvas.paste(picture, (i * width, CAPTION))
        draw.text((i * width + 4, 1), caption, fill="white")
    return canvas


def _save_gif(pictures: Iterable[Image.Image], target: Path) -> None:
    first, *others = (p.quantize(64) for p in pictures)
    duration = round(1000 * FILM_STRIDE / 35)
    first.save(target, save_all=True, append_images=others, duration=duration, loop=0)
