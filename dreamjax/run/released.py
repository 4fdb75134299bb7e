"""The authors' own V, M and C, from the files that they released.

hardmaru/WorldModelsExperiments keeps them as JSON, for each game in a folder of its own. `vae.json`
and `rnn.json` list every trainable array as whole numbers, 10,000 times the weight, and
`initial_z.json` the posteriors of first frames likewise; `*.best.json` has C's weights and score.
Shapes: A action size, F features, H units, I inputs of M, N start states, Z latent size.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreamjax.controller.player import Player
from dreamjax.dream.env import PAPER_NOISE, PAPER_THRESHOLD
from dreamjax.dream.world import World, first_heads
from dreamjax.dream.worlds import save_world
from dreamjax.memory.heads import places
from dreamjax.memory.lstm import MDNRNN
from dreamjax.memory.model import Memory
from dreamjax.task import Task
from dreamjax.training.checkpoint import CheckpointError, Store
from dreamjax.training.files import writable
from dreamjax.vision.layers import Layer
from dreamjax.vision.model import VAE

SCALE = 10_000  # of the stored whole numbers
NEVER = -30.0  # logit of an end, where their M foresees none
FILES = {"vae.json": "V", "rnn.json": "M", "initial_z.json": "start states", "*.best.json": "C"}
PARTS = ("logits", "mean", "logstd")  # of an output, in this order


def import_released(source: Path | str, directory: Path | str, task: Task) -> World:
    """Store a released game's V, M, start states and C in the run `directory`; return the world.

    Of rewards or ends of which their M says nothing it expects none.

    Args:
      source: the folder of one game, `doomrnn` or `carracing` of their repository.
      task: the game as they played it; sizes come from it.

    Raises:
      ValueError: a file is missing, there twice, or no such file of this game.
      CheckpointError: the run directory has a world.
    """
    directory = Path(directory)
    if Store(directory / "world").steps():
        raise CheckpointError(f"{directory} already has a world; use another run directory")
    found = {name: _file(Path(source), name) for name in FILES}
    vision = released_vision(_arrays(found["vae.json"]), task)
    memory = released_memory(_arrays(found["rnn.json"]), task)
    starts = _arrays(found["initial_z.json"])
    count = starts[0].shape[:1] if starts else ()
    _check("initial_z.json", starts, [(*count, task.latent_size)] * 2, task)
    how = {"death_threshold": PAPER_THRESHOLD, "death_noise": PAPER_NOISE}
    world = World(task, vision, memory, *map(jnp.asarray, starts), **how)
    controller = world.controller()
    with _reading(found["*.best.json"]) as (weights, score):
        weights, score = np.asarray(weights, np.float32), float(score)  # no whole numbers
    _check("*.best.json", [weights], [(controller.num_params,)], task)
    directory = writable(directory)
    save_world(directory, world, {"released": True})
    Player(controller, weights, dream=score).save(directory, world, {"phase": "released"})
    return world


def released_vision(arrays: list[np.ndarray], task: Task) -> VAE:
    """V of its arrays, which lie in the order of its layers, kernel before bias."""
    vision = VAE(task.latent_size, rngs=nnx.Rngs(0))
    layers = [layer for layer in vars(vision).values() if isinstance(layer, Layer)]
    parts = [part for layer in layers for part in (layer.kernel, layer.bias)]
    _check("vae.json", arrays, [part.shape for part in parts], task)
    for part, array in zip(parts, arrays, strict=True):
        part[...] = jnp.asarray(array)
    return vision


def released_memory(arrays: list[np.ndarray], task: Task) -> Memory:
    """M of its four arrays, told apart by their shapes: the games' files have them in other orders.

    An output is laid out [Z, 3 K] there, after the logit of an end where there is one.
    """
    memory = MDNRNN(task, rngs=nnx.Rngs(0))
    Z, K, H = memory.latent_size, memory.num_mixtures, memory.hidden_size
    ends = len(first_heads(task))
    inputs, width = memory.num_inputs + H, ends + 3 * K * Z
    shapes = {"lstm_kernel": (inputs, 4 * H), "lstm_bias": (4 * H,)}
    shapes |= {"head_kernel": (H, width), "head_bias": (width,)}
    _check("rnn.json", sorted(arrays, key=np.shape), sorted(shapes.values()), task)
    by_shape = {array.shape: array for array in arrays}
    memory.lstm_kernel[...] = jnp.asarray(by_shape[shapes["lstm_kernel"]])
    memory.lstm_bias[...] = jnp.asarray(by_shape[shapes["lstm_bias"]])
    where = places(memory.layout)
    for name, silent in (("head_kernel", 0.0), ("head_bias", NEVER)):
        theirs, ours = by_shape[shapes[name]], np.zeros(getattr(memory, name).shape, np.float32)
        mixture = theirs[..., ends:].reshape(*theirs.shape[:-1], Z, 3, K)
        for number, part in enumerate(PARTS):
            turned = np.swapaxes(mixture[..., number, :], -1, -2)  # K before Z
            ours[..., where[part]] = turned.reshape(*theirs.shape[:-1], K * Z)
        if "end" in where:
            ours[..., where["end"]] = theirs[..., :1] if ends else silent
        getattr(memory, name)[...] = jnp.asarray(ours)
    return memory


def _file(source: Path, name: str) -> Path:
    """The one file of that name below `source`."""
    found = sorted(source.rglob(name))
    if not found:
        raise ValueError(
            f"{source} has no {name} ({FILES[name]}); fetch doomrnn or carracing of "
            "github.com/hardmaru/WorldModelsExperiments"
        )
    if len(found) > 1:
        raise ValueError(f"{source} has {found[0]} and {found[1]}; name the folder of one game")
    return found[0]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        yield json.loads(path.read_text())
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again") from None


def _arrays(path: Path) -> list[np.ndarray]:
    with _reading(path) as found:
        return [np.asarray(array, np.float32) / SCALE for array in found]


def _check(name: str, arrays: list[np.ndarray], wanted: list[tuple[int, ...]], task: Task) -> None:
    shapes = [array.shape for array in arrays]
    if shapes != wanted:
        raise ValueError(
            f"{name} holds arrays of {shapes}, but {FILES[name]} of {task.name} has {wanted}; name "
            "the game that it is of"
        )
