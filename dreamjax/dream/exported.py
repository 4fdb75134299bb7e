"""A world to hand on: a folder of `arrays.safetensors`, in half precision, and `world.json`.

Whoever made the folder made its SHA-256 too, so nothing in it is believed unseen.
"""

import contextlib
import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from dreamjax.controller.player import Player
from dreamjax.dream.world import World, blank_world, fact
from dreamjax.training import files
from dreamjax.training.checkpoint import CheckpointError, flatten, unflatten

FORMAT = 1
START_STATES = 750  # of real episodes, that a world to hand on keeps: each is as large as M's state
CONTROLLER = "controller"  # C's weights among the arrays
_FAULTS = (OSError, ValueError, KeyError, RecursionError, MemoryError, safetensors.SafetensorError)


@contextlib.contextmanager
def refusing(origin: Path | str, remedy: str = "fetch or export it again") -> Iterator[None]:
    """Say whatever is wrong with `origin` in one line, as a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _FAULTS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{origin} is damaged ({reason}); {remedy}") from None


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError of an array with a number that is not finite."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():  # such an M dreams the perfect score
            raise ValueError(f"{name} holds NaN or infinity")


def export_world(
    target: Path | str,
    world: World,
    player: Player | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a world in half precision, and perhaps the C that goes with it, as a folder to hand on.

    Of its start states it has `START_STATES` at most. What is loaded back is rounded, so evolve C
    in the exported world rather than in the original; exporting what was loaded changes nothing.

    Args:
      target, world, player: the folder, and what goes there.
      meta: data, settings and scores for `world.json`.

    Raises:
      ValueError: the folder cannot be written, a C of another world, or a number beyond half
        precision.
    """
    if player is not None:
        player.check(world)
    target = files.writable(Path(target))
    if world.start_states is not None:
        start_states = jax.tree.map(lambda x: x[:START_STATES], world.start_states)
        world = dataclasses.replace(world, start_states=start_states)
    with np.errstate(over="ignore"):  # what it makes infinite is refused
        arrays = {name: array.astype(np.float16) for name, array in flatten(world.arrays()).items()}
    with refusing("the world in half precision", "train it again"):
        check_finite(arrays)
    facts = {**(meta or {}), "format": FORMAT, **world.facts(), "controller_hidden": 0}
    if player is not None:
        arrays[CONTROLLER] = np.asarray(player.weights)
        facts |= {"controller_hidden": player.controller.hidden, "dream": player.dream}
    blob = safetensors.numpy.save(arrays)
    with files.replacing(target / "arrays.safetensors") as file:
        file.write(blob)
    facts["sha256"] = hashlib.sha256(blob).hexdigest()
    files.write_json(target / "world.json", facts)


def is_exported(folder: Path) -> bool:
    """Whether a folder is of this format."""
    return (folder / "world.json").exists()


def read(folder: Path) -> tuple[World, Player | None, dict[str, Any]]:
    """The world, its C if there is one, bound to none, and `world.json`; errors: `read_arrays`."""
    facts, arrays = read_arrays(folder)
    with refusing(folder):
        blank, found = blank_world(facts, folder), {k: np.float32(x) for k, x in arrays.items()}
        wanted = flatten(blank.arrays()).keys()
        for name in sorted(wanted ^ (found.keys() - {CONTROLLER})):
            state = "is missing" if name in wanted else "is none of a world's"
            raise ValueError(f"array {reprlib.repr(name)} {state}")
        check_finite(found)
        world = blank.with_arrays(unflatten(blank.arrays(), found, str(folder)))
        if CONTROLLER not in found:
            return world, None, facts
        controller = world.controller(fact(facts, "controller_hidden"))
        dream = facts.get("dream")
        return world, Player(controller, found[CONTROLLER], dream=dream), facts


def read_arrays(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`world.json` of a folder, and the arrays that it describes.

    Raises:
      CheckpointError: a file is missing, damaged or of another format.
    """
    with refusing(folder):
        facts = json.loads(content(folder / "world.json"))
        if not isinstance(facts, dict):
            raise ValueError(f"world.json is not an object, but {reprlib.repr(facts)}")
        if facts.get("format") != FORMAT:
            found = reprlib.repr(facts.get("format"))
            raise ValueError(f"format is {found}, this dreamjax reads {FORMAT}")
        blob = content(folder / "arrays.safetensors")
        if facts.get("sha256") != hashlib.sha256(blob).hexdigest():
            raise ValueError("arrays.safetensors is not the file that world.json describes")
        return facts, safetensors.numpy.load(blob)


def content(path: Path) -> bytes:
    """The bytes of a plain file; ValueError of anything else."""
    if not path.is_file():  # a pipe would never answer, a device never end
        raise ValueError(f"{path.name} is missing or no plain file")
    return path.read_bytes()
