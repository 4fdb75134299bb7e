"""The folder of a page: the page itself, and a world in half precision.

Legend: A action numbers, T steps of a game, Z latent numbers.
"""

import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from dreamjax.actions import Actions, Box, Choice, Keys
from dreamjax.agent import watch
from dreamjax.controller.distributions import distribution_of
from dreamjax.controller.player import Player
from dreamjax.dream.world import World
from dreamjax.memory.kinds import kind_of
from dreamjax.memory.model import VARIANT
from dreamjax.task import FRAME_SHAPE
from dreamjax.training import files

WEIGHTS, FACTS = "weights.safetensors", "page.json"
RECORDING, SHEET = "recording.json", "frames.webp"
COMING = "coming"  # in place of a recording that is being made
NO_PLAYER = "No game was recorded: this world has no C."
STARTS = 100  # first frames that dreams may begin at
STEPS = 200  # of a recorded game, at most
COLUMNS = 20  # frames in a row of the sheet
VISION = ("dense", "deconv1", "deconv2", "deconv3", "deconv4")  # what a page needs of V
MEMORY = ("lstm_kernel", "lstm_bias", "head_kernel", "head_bias")  # and of M


def write(target: Path | str, world: World, player: Player | None) -> Path:
    """Write a page that dreams `world`, as a folder for any static host, and return the folder.

    A page that is there is replaced. `player` is None where there is no C.

    Raises:
      ValueError: a folder of something else, an M of another kind than the page knows, or a
        number beyond half precision.
    """
    facts, arrays = facts_of(world, player), arrays_of(world, player)
    target = Path(target)
    if target.is_dir() and any(target.iterdir()) and not (target / FACTS).is_file():
        raise ValueError(f"{target} holds something else than a page; choose another folder")
    target = files.writable(target)
    blob = safetensors.numpy.save(arrays)
    with files.replacing(target / WEIGHTS) as file:
        file.write(blob)
    facts |= {"weights": WEIGHTS, "size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    facts["recording"] = NO_PLAYER if player is None else COMING
    for part in (resources.files("dreamjax.play") / "page").iterdir():
        with files.replacing(target / part.name) as file:
            file.write(part.read_bytes())
    files.write_json(target / FACTS, facts)
    return target


def arrays_of(world: World, player: Player | None) -> dict[str, np.ndarray]:
    """What a page needs of a world and its C, by name, C's in full precision; raises as `write`."""
    if kind_of(world.memory) != "lstm":
        raise ValueError(
            f"the page dreams M of the kind lstm, not {kind_of(world.memory)}; train one of that "
            "kind to play it"
        )
    arrays = {f"memory.{name}": getattr(world.memory, name)[...] for name in MEMORY}
    for name in VISION:
        layer = getattr(world.vision, name)
        arrays[f"vision.{name}.kernel"] = layer.kernel[...]
        arrays[f"vision.{name}.bias"] = layer.bias[...]
    arrays |= {name: getattr(world, name)[:STARTS] for name in ("initial_mu", "initial_logvar")}
    with np.errstate(over="ignore"):  # what it makes infinite is refused
        halves = {name: np.asarray(array, np.float16) for name, array in arrays.items()}
    for name, array in halves.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has a number beyond half precision; train the world again")
    if player is not None:
        halves["controller"] = np.asarray(player.weights, np.float32)
    return halves


def facts_of(world: World, player: Player | None) -> dict[str, Any]:
    """What a page must know of a world and of C's form, beside their arrays."""
    task, memory, params = world.task, world.memory, world.params()
    threshold = world.death_threshold
    if not math.isfinite(threshold):  # JSON knows no infinity
        threshold = math.copysign(1e30, threshold)
    found = {name: getattr(task, name) for name in ("step_reward", "max_steps", "frame_skip")}
    found |= {
        "title": task.name.replace("-", " ").title(),
        "steps_per_second": task.steps_per_second,
        "death_threshold": threshold,
        "death_noise": world.death_noise,
        "temperature": params.temperature,
        "dropout": params.dropout,
        "actions": _actions(task.actions),
    }
    names = (*VARIANT, "latent_size", "hidden_size", "num_mixtures", "reads_restart")
    others = ("reward_scale", "pressed", "scale", "reads")
    form = {name: getattr(memory, name) for name in (*names, *others)}
    heads = [(name, math.prod(shape)) for name, shape in memory.layout.items()]
    found["memory"] = form | {"heads": heads}
    if player is not None:
        c, outputs = player.controller, distribution_of(task.actions).outputs
        bias = getattr(c, "bias", True)
        found["controller"] = {"hidden": c.hidden, "bias": bias, "outputs": outputs}
    return found


def _actions(actions: Actions) -> dict[str, Any]:
    """A form of actions, for JSON."""
    form = next(name for name, kind in FORMS.items() if isinstance(actions, kind))
    clipped = getattr(actions, "clipped", ())
    return {"form": form, "low": actions.low, "high": actions.high, "clipped": clipped}


FORMS = {"keys": Keys, "choice": Choice, "box": Box}  # in order: keys are a box too


def add_recording(target: Path | str, world: World, player: Player, seed: int = 0) -> None:
    """Let C play one real game, and add it to the page in `target`.

    Raises:
      ImportError: the game is not installed.
      WorkerError: the game could not be kept running.
    """
    frames, latents, actions = watch(world, player, seed, STEPS)
    said = {
        "frames": SHEET,
        "columns": COLUMNS,
        "latents": np.round(latents.astype(float), 4).tolist(),
        "actions": [[float(f"{number:.5g}") for number in action] for action in actions],
    }
    target = Path(target)
    with files.replacing(target / SHEET) as file:
        Image.fromarray(sheet(frames)).save(file, "WEBP", lossless=True, method=6)
    with files.replacing(target / RECORDING) as file:
        file.write(json.dumps(said, separators=(",", ":")).encode())
    tell(target, RECORDING)


def tell(target: Path | str, recording: str) -> None:
    """Let a page know its recording, that one is coming, or, in words, why there is none."""
    path = Path(target) / FACTS
    files.write_json(path, json.loads(path.read_text()) | {"recording": recording})


def sheet(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, 64, 64, 3] side by side, `COLUMNS` in a row."""
    blank = np.zeros((-len(frames) % COLUMNS, *FRAME_SHAPE), np.uint8)
    rows = np.concatenate([frames, blank]).reshape(-1, COLUMNS, *FRAME_SHAPE)
    return np.hstack([*rows.swapaxes(0, 1).reshape(COLUMNS, -1, *FRAME_SHAPE[1:])])
