"""The authors' own V, M and C, from the files that they released.

hardmaru/WorldModelsExperiments keeps them as JSON, for each game in a folder of its own. `vae.json`
and `rnn.json` list every trainable array as whole numbers, 10,000 times the weight, and
`initial_z.json` the posteriors of first frames likewise; `*.best.json` has C's weights and score.
Shapes: A action size, F features, H units, I inputs of M, N start states, Z latent size.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreamjax.dream.env import PAPER_NOISE, PAPER_THRESHOLD
from dreamjax.dream.worlds import World, first_heads, save_controller, save_world
from dreamjax.memory.heads import places
from dreamjax.memory.lstm import MDNRNN
from dreamjax.memory.model import Memory
from dreamjax.tasks import Task
from dreamjax.training.checkpoint import CheckpointError, Store
from dreamjax.training.files import writable
from dreamjax.vision.model import VAE

SCALE = 10_000  # of the stored whole numbers
NEVER = -30.0  # logit of an end, where their M foresees none
FILES = {"vae.json": "V", "rnn.json": "M", "initial_z.json": "start states", "*.best.json": "C"}
PARTS = ("logits", "mean", "logstd")  # of an output, in this order


def import_released(source: Path | str, directory: Path | str, task: Task) -> World:
    """Store a released game's V, M, start states and C as a run's world and controller.

    Args:
      source: the folder of one game, `doomrnn` or `carracing` of their repository.
      directory: the run directory.
      task: the game as they played it; sizes come from it.

    Returns:
      the world. Of rewards or ends of which their M says nothing it expects none.

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
    starts = _sized(_arrays(found["initial_z.json"]), 2, task, "initial_z.json")
    world = World(
        task,
        vision,
        memory,
        *map(jnp.asarray, starts),
        death_threshold=PAPER_THRESHOLD,
        death_noise=PAPER_NOISE,
    )
    controller = world.controller()
    weights, score = _best(found["*.best.json"], controller.num_params, task)
    directory = writable(directory)
    save_world(directory, world, {"released": True})
    meta = {"phase": "released", "dream": score}
    save_controller(directory, world, weights, meta, controller)
    return world


def released_vision(arrays: list[np.ndarray], task: Task) -> VAE:
    """V of its arrays, which lie in the order of its layers, kernel before bias."""
    vision = VAE(task.latent_size, rngs=nnx.Rngs(0))
    layers = (*_named(vision, "conv"), vision.mu, vision.logvar, vision.dense)
    wanted = [part for layer in (*layers, *_named(vision, "deconv")) for part in _params(layer)]
    shapes = [part.shape for part in wanted], [array.shape for array in arrays]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"vae.json holds arrays of {shapes[1]}, but V of {task.name} has {shapes[0]}; name the "
            "game that it is of"
        )
    for part, array in zip(wanted, arrays, strict=True):
        part[...] = jnp.asarray(array)
    return vision


def _named(vision: VAE, name: str) -> list[Any]:
    return [getattr(vision, f"{name}{number}") for number in range(1, 5)]


def _params(layer: Any) -> tuple[nnx.Param, nnx.Param]:
    return layer.kernel, layer.bias


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
    by_shape = {array.shape: array for array in arrays}
    if len(arrays) != len(shapes) or set(by_shape) != set(shapes.values()):
        raise ValueError(
            f"rnn.json holds arrays of {[array.shape for array in arrays]}, but M of {task.name} "
            f"has {list(shapes.values())}; name the game that it is of"
        )
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


def _arrays(path: Path) -> list[np.ndarray]:
    """The arrays of a file, float32."""
    try:
        return [np.asarray(array, np.float32) / SCALE for array in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again") from None


def _best(path: Path, size: int, task: Task) -> tuple[jnp.ndarray, float]:
    """C's weights [D], which are no whole numbers, and the score that stands beside them."""
    try:
        weights, score = json.loads(path.read_text())
        weights, score = jnp.asarray(np.asarray(weights, np.float32)), float(score)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again") from None
    if weights.shape != (size,):
        raise ValueError(
            f"{path} has weights of {weights.shape}, but C of {task.name} has {size}; name the "
            "game that it is of"
        )
    return weights, score


def _sized(arrays: list[np.ndarray], count: int, task: Task, name: str) -> list[np.ndarray]:
    shapes = [array.shape for array in arrays]
    fits = len(set(shapes)) == 1 and len(shapes[0]) == 2 and shapes[0][1] == task.latent_size
    if len(arrays) != count or not fits:
        raise ValueError(
            f"{name} holds arrays of {shapes}, but {task.name} needs {count} of "
            f"[N, {task.latent_size}]; name the game that it is of"
        )
    return arrays
