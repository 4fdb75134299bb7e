"""A world to hand on: a folder of `arrays.safetensors`, in half precision, and `world.json`."""

import contextlib
import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from dreamjax.controller.model import Controller
from dreamjax.dream.world import World, _blank_world, _fact
from dreamjax.training import files
from dreamjax.training.checkpoint import CheckpointError, flatten, unflatten

FORMAT = 1
START_STATES = 750  # of real episodes, that a world to hand on keeps: each is as large as M's state
CONTROLLER = "controller"  # C's weights among the arrays of an exported world
_FAULTS = (OSError, ValueError, KeyError, RecursionError, MemoryError, safetensors.SafetensorError)


def _is_exported(folder: Path) -> bool:
    return (folder / "world.json").exists()


@contextlib.contextmanager
def _refusing(origin: Path | str, remedy: str = "fetch or export it again") -> Iterator[None]:
    """Say whatever is wrong with `origin` in one line, as a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _FAULTS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{origin} is damaged ({reason}); {remedy}") from None


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():  # such an M dreams the perfect score
            raise ValueError(f"{name} holds NaN or infinity")


def _check_names(arrays: Mapping[str, np.ndarray], blank: World) -> None:
    wanted = flatten(blank.arrays()).keys()
    for name in sorted(wanted ^ (arrays.keys() - {CONTROLLER})):
        state = "is missing" if name in wanted else "is none of a world's"
        raise ValueError(f"array {reprlib.repr(name)} {state}")


def export_world(
    target: Path | str,
    world: World,
    weights: jax.Array | None,
    meta: dict[str, Any],
    controller: Controller | None = None,
) -> None:
    """Write a world in half precision, and perhaps C's weights [D], as a folder to hand on.

    Of its start states it has `START_STATES` at most. What is loaded back is rounded, so evolve C
    in the exported world rather than in the original; exporting what was loaded changes nothing.

    Args:
      target, world: the folder, and what goes there.
      weights, controller: of the C that goes with it; a form of None is the world's linear one.
      meta: data, settings and scores for `world.json`.

    Raises:
      ValueError: the folder cannot be written, weights of another form of C, or a number beyond
        half precision.
    """
    controller = controller or world.controller()
    if weights is not None:
        weights = _checked_weights(weights, controller)
    target = files.writable(Path(target))
    if world.start_states is not None:
        start_states = jax.tree.map(lambda x: x[:START_STATES], world.start_states)
        world = dataclasses.replace(world, start_states=start_states)
    with np.errstate(over="ignore"):  # what it makes infinite is refused
        arrays = {name: array.astype(np.float16) for name, array in flatten(world.arrays()).items()}
    if weights is not None:
        arrays[CONTROLLER] = np.asarray(weights)
    with _refusing("the world in half precision", "train it again"):
        _check_finite(arrays)
    blob = safetensors.numpy.save(arrays)
    with files.replacing(target / "arrays.safetensors") as file:
        file.write(blob)
    facts = {
        "format": FORMAT,
        **world.facts(),
        "controller_hidden": controller.hidden,
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    files.write_json(target / "world.json", {**meta, **facts})


def _load_exported(folder: Path) -> tuple[World, jax.Array | None, dict[str, Any]]:
    """The world, C's weights [D] if there are any, and `world.json` of an exported folder.

    Whoever made the folder made its SHA-256 too, so nothing in it is believed unseen.
    """
    with _refusing(folder):
        meta, blob = _documented(folder)
        blank = _blank_world(meta, folder)
        arrays = {k: x.astype(np.float32) for k, x in safetensors.numpy.load(blob).items()}
        _check_names(arrays, blank)
        _check_finite(arrays)
        world = dataclasses.replace(blank, **unflatten(blank.arrays(), arrays, str(folder)))
        weights = arrays.get(CONTROLLER)
        if weights is not None:
            weights = _checked_weights(weights, world.controller(_fact(meta, "controller_hidden")))
        return world, weights, meta


def _documented(folder: Path) -> tuple[dict[str, Any], bytes]:
    """`world.json` of an exported folder, and the bytes of its arrays, which are those it names."""
    with _refusing(folder):
        meta = json.loads(_content(folder / "world.json"))
        if not isinstance(meta, dict):
            raise ValueError(f"world.json is not an object, but {reprlib.repr(meta)}")
        if meta.get("format") != FORMAT:
            found = reprlib.repr(meta.get("format"))
            raise ValueError(f"format is {found}, this dreamjax reads {FORMAT}")
        blob = _content(folder / "arrays.safetensors")
        if meta.get("sha256") != hashlib.sha256(blob).hexdigest():
            raise ValueError("arrays.safetensors is not the file that world.json describes")
        return meta, blob


def _content(path: Path) -> bytes:
    if not path.is_file():  # a pipe would never answer, a device never end
        raise ValueError(f"{path.name} is missing or no plain file")
    return path.read_bytes()


def _checked_weights(weights: np.ndarray | jax.Array, controller: Controller) -> jax.Array:
    """C's weights [D], if this form of C has as many."""
    if weights.shape != (controller.num_params,):
        raise ValueError(
            f"C has weights {list(weights.shape)}, but its form has [{controller.num_params}]; "
            "name the form that they are of"
        )
    _check_finite({CONTROLLER: np.asarray(weights)})
    return jnp.asarray(weights)
