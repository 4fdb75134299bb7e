"""The folder of a page: the page itself, and a world in half precision.

Legend: A action numbers, T steps of a game, Z latent numbers.
"""

import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from PIL import Image

from dreamjax.actions import Actions, Box, Choice, Keys
from dreamjax.agent import watch
from dreamjax.controller.heads import head_of
from dreamjax.controller.model import Controller
from dreamjax.dream.worlds import World
from dreamjax.memory.kinds import kind_of
from dreamjax.memory.model import VARIANT
from dreamjax.tasks import FRAME_SHAPE
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


def write(
    target: Path | str, world: World, controller: Controller | None, weights: jax.Array | None
) -> Path:
    """Write a page that dreams `world`, as a folder for any static host.

    Args:
      target: the folder; a page that is there is replaced.
      world: what is dreamt.
      controller, weights: C's form and its weights [D]; None where there is no C.

    Returns:
      the folder.

    Raises:
      ValueError: a folder of something else, an M of another kind than the page knows, or a
        number beyond half precision.
    """
    facts, arrays = facts_of(world, controller), arrays_of(world, weights)
    target = _ours(Path(target))
    blob = safetensors.numpy.save(arrays)
    with files.replacing(target / WEIGHTS) as file:
        file.write(blob)
    facts |= {"weights": WEIGHTS, "size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    facts["recording"] = NO_PLAYER if controller is None else COMING
    for part in (resources.files("dreamjax.play") / "page").iterdir():
        with files.replacing(target / part.name) as file:
            file.write(part.read_bytes())
    files.write_json(target / FACTS, facts)
    return target


def _ours(target: Path) -> Path:
    """`target`, if it is no folder yet, an empty one, or a page.

    Raises:
      ValueError: it is something else.
    """
    if target.is_dir() and any(target.iterdir()) and not (target / FACTS).is_file():
        raise ValueError(f"{target} holds something else than a page; choose another folder")
    return files.writable(target)


def arrays_of(world: World, weights: jax.Array | None) -> dict[str, np.ndarray]:
    """What a page needs of a world and its C, by name; all but C in half precision.

    Raises:
      ValueError: a number beyond half precision, or an M of another kind than the page knows.
    """
    if kind_of(world.memory) != "lstm":
        raise ValueError(
            f"the page dreams M of the kind lstm, not {kind_of(world.memory)}; train one of that "
            "kind to play it"
        )
    arrays = {f"memory.{name}": getattr(world.memory, name)[...] for name in MEMORY}
    for name in VISION:
        layer = getattr(world.vision, name)
        arrays |= {
            f"vision.{name}.{part}": getattr(layer, part)[...] for part in ("kernel", "bias")
        }
    arrays |= {name: getattr(world, name)[:STARTS] for name in ("initial_mu", "initial_logvar")}
    with np.errstate(over="ignore"):  # what it makes infinite is refused
        halves = {name: np.asarray(array, np.float16) for name, array in arrays.items()}
    for name, array in halves.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has a number beyond half precision; train the world again")
    if weights is not None:
        halves["controller"] = np.asarray(weights, np.float32)
    return halves


def facts_of(world: World, controller: Controller | None) -> dict[str, Any]:
    """What a page must know of a world and of C's form, beside their arrays."""
    task, memory = world.task, world.memory
    found = {name: getattr(task, name) for name in ("step_reward", "max_steps", "frame_skip")}
    found |= {"title": task.name.replace("-", " ").title()}
    found |= {"steps_per_second": task.steps_per_second}
    found |= {name: getattr(world, name) for name in ("death_threshold", "death_noise")}
    if not math.isfinite(world.death_threshold):  # JSON knows no infinity
        found["death_threshold"] = math.copysign(1e30, world.death_threshold)
    params = world.params()
    found |= {"temperature": params.temperature, "dropout": params.dropout}
    found["actions"] = _actions(task.actions)
    names = (*VARIANT, "latent_size", "hidden_size", "num_mixtures", "reads_restart")
    form = {name: getattr(memory, name) for name in (*names, "reward_scale", "pressed", "scale")}
    heads = [(name, math.prod(shape)) for name, shape in memory.layout.items()]
    form |= {"reads": memory.reads, "heads": heads}
    found["memory"] = form
    if controller is not None:
        found["controller"] = {
            "hidden": controller.hidden,
            "bias": getattr(controller, "bias", True),
            "outputs": head_of(task.actions).outputs,
        }
    return found


def _actions(actions: Actions) -> dict[str, Any]:
    """A form of actions, for JSON."""
    form = next(name for name, kind in FORMS.items() if isinstance(actions, kind))
    clipped = getattr(actions, "clipped", ())
    return {"form": form, "low": actions.low, "high": actions.high, "clipped": clipped}


FORMS = {"keys": Keys, "choice": Choice, "box": Box}  # in order: keys are a box too


def record(
    target: Path | str, world: World, controller: Controller, weights: jax.Array, seed: int = 0
) -> None:
    """Let C play one real game, and add it to the page in `target`.

    Raises:
      ImportError: the game is not installed.
      WorkerError: the game could not be kept running.
    """
    frames, latents, actions = watch(world, weights, seed, STEPS, controller)
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
    height, width, channels = FRAME_SHAPE
    rows = -(-len(frames) // COLUMNS)
    filled = np.zeros((rows * COLUMNS, *FRAME_SHAPE), np.uint8)
    filled[: len(frames)] = frames
    laid = filled.reshape(rows, COLUMNS, height, width, channels).transpose(0, 2, 1, 3, 4)
    return laid.reshape(rows * height, COLUMNS * width, channels)
