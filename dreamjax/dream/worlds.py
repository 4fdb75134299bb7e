"""A world: V, M and start states that belong together, and where they lie on disk.

A run keeps its world in full precision as a checkpoint. A world to hand on is one folder:
`arrays.safetensors` in half precision and `world.json`; those in `shipped/` go by their names.
"""

import dataclasses
import difflib
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy

from dreamjax.controller.model import Controller
from dreamjax.dream.exported import (
    CONTROLLER,
    _check_finite,
    _checked_weights,
    _content,
    _documented,
    _is_exported,
    _load_exported,
    _refusing,
)
from dreamjax.dream.world import World, _blank_world, _fact
from dreamjax.memory.kinds import serializable
from dreamjax.memory.model import VARIANT
from dreamjax.task import Task
from dreamjax.training.checkpoint import CheckpointError, Store, digest, flatten
from dreamjax.vision.model import VAE

SHIPPED = Path(__file__).parents[1] / "shipped"

SEARCHES = {"evolve": "evolve.generations", "learn": "learn.steps"}  # for C, and their lengths

_say_once = cache(print)


serializable(VAE)


def save_world(directory: Path | str, world: World, meta: dict[str, Any]) -> None:
    """Store a world under `directory`/world."""
    _store(Path(directory) / "world", world, world.arrays(), {**meta, **world.facts()})


def _store(folder: Path, world: World, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Store what belongs to a world, in place of what was there."""
    store, models = Store(folder, keep=1), ("vision", "memory")
    meta |= {name: digest(getattr(world, name)) for name in models}
    store.save(max(store.steps(), default=-1) + 1, arrays, meta)


def load_world(source: Path | str) -> World:
    """A shipped world by its name, or the world of a run directory or of an exported folder.

    Raises:
      CheckpointError: no world there, a damaged one, or one of an unknown game.
    """
    folder = folder_of(source)
    if _is_exported(folder):
        return _load_exported(folder)[0]
    store = Store(folder / "world")
    if not store.directory.is_dir():
        names = shipped_worlds()
        near = ", ".join(difflib.get_close_matches(str(source), names, 1) or names)
        raise CheckpointError(
            f"no world in {folder}; train one there, or name a shipped one: {near}"
        )
    meta = store.meta()
    with _refusing(store.directory, "make it anew by train-memory, or use another run directory"):
        blank = _blank_world(meta, store.directory)
        arrays = store.load(blank.arrays())[0]
        _check_finite(flatten(arrays))
    return dataclasses.replace(blank, **arrays)


def identity(source: Path | str) -> str:
    """What is another text once the world at `source` is another; "" where there is none."""
    folder = folder_of(source)
    store = Store(folder / "world")
    if _is_exported(folder):
        with _refusing(folder):
            return _content(folder / "world.json").decode()
    return f"{store.steps()} {store.meta()}" if store.directory.is_dir() else ""


def world_meta(source: Path | str) -> dict[str, Any]:
    """What is told of how a world was made; `source` and errors as for `load_world`."""
    folder = folder_of(source)
    return _documented(folder)[0] if _is_exported(folder) else Store(folder / "world").meta()


def shipped_worlds() -> list[str]:
    """Names that `load_world` knows."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/world.json"))


def folder_of(source: Path | str) -> Path:
    """Where a world lies: a string that is a shipped one's name means that, all else is a path."""
    if source not in shipped_worlds():
        return Path(source).expanduser()
    if Path(source).is_dir():
        _say_once(f"{source} is the shipped world; the directory of that name is ./{source}")
    return SHIPPED / source


def adopt_world(directory: Path | str, source: Path | str, task: Task) -> None:
    """Copy a world, and the C that goes with it, into a run directory that has none yet.

    Raises:
      CheckpointError: the run already has another world, or the world is of another game.
    """
    directory, world = Path(directory), load_world(source)
    if world.task != task:
        raise CheckpointError(f"{source} is a world of {world.task.name}, not of {task.name}")
    if Store(directory / "world").steps():
        if load_world(directory).digest() != world.digest():
            raise CheckpointError(
                f"{directory} already has another world than {source}; use another run directory"
            )
        return
    made = _adopt_controller(directory, folder_of(source), world)
    save_world(directory, world, {"source": Path(source).name, "made": made})


def _adopt_controller(directory: Path, folder: Path, world: World) -> Any:
    """Copy the C of `world`, if `folder` has one; how the world was made.

    C comes before its world, because a run that has a world adopts nothing more.
    """
    made, exported = world_meta(folder), _is_exported(folder)
    if has_controller(folder):
        told = made if exported else Store(folder / "controller").meta()
        if "dream" not in told:
            raise CheckpointError(
                f'{folder / "world.json"} lacks "dream", what its C earned; export it again'
            )
        if exported or told["world"] == world.digest():
            controller, weights = load_controller(folder, world)
            save_controller(directory, world, weights, {"dream": told["dream"]}, controller)
    return made.get("world") if exported else made


def save_controller(
    directory: Path | str,
    world: World,
    weights: jax.Array,
    meta: dict[str, Any],
    controller: Controller | None = None,
) -> None:
    """Store C's weights [D] under `directory`/controller, bound to the world it was evolved in.

    Its form is stored too; None is the world's linear one. ValueError: weights of another.
    """
    controller = controller or world.controller()
    weights = _checked_weights(weights, controller)
    meta = {**meta, "task": world.task.name, "world": world.digest(), "size": len(weights)}
    meta |= {name: getattr(world.memory, name) for name in VARIANT}
    meta["controller_hidden"] = controller.hidden
    _store(Path(directory) / "controller", world, {"weights": weights}, meta)


def has_controller(source: Path | str) -> bool:
    """Whether a C goes with a world; `source` as for `load_world`."""
    folder = folder_of(source)
    if _is_exported(folder):
        with _refusing(folder):
            return CONTROLLER in safetensors.numpy.load(_documented(folder)[1])
    return bool(Store(folder / "controller").steps())


def load_controller(source: Path | str, world: World) -> tuple[Controller, jax.Array]:
    """C's form and its weights [D], if they were evolved in `world`; `source` as for `load_world`.

    Tells of a search for C that was stopped before it saved its own.

    Raises:
      CheckpointError: none there, damaged, or evolved in another world.
    """
    folder = folder_of(source)
    if _is_exported(folder):
        origin, weights, meta = _load_exported(folder)
        _check_bound(folder, origin.task.name, origin.digest(), world)
        if weights is None:
            raise CheckpointError(f"{folder} has a world but no C; evolve one in it")
        return world.controller(_fact(meta, "controller_hidden")), weights
    store = Store(folder / "controller")
    meta = store.meta()
    with _refusing(store.directory, "evolve again"):
        _check_bound(store.directory, meta["task"], meta["world"], world)
        for search, length in SEARCHES.items():
            reached = Store(folder / search).unfinished()
            if reached is not None:
                print(
                    f"{folder / search} was stopped at {reached}, before it saved its C, so this "
                    f"is another one; run {search} again to go on, or lower --{length}",
                    flush=True,
                )
        template = {"weights": jax.ShapeDtypeStruct((meta["size"],), jnp.float32)}
        controller = world.controller(_fact(meta, "controller_hidden"))
        return controller, _checked_weights(store.load(template)[0]["weights"], controller)


def _check_bound(origin: Path, task: str, evolved_in: str, world: World) -> None:
    if (task, evolved_in) != (world.task.name, world.digest()):
        raise CheckpointError(
            f"{origin} was evolved in world {evolved_in[:12]} of {task}, but this is world "
            f"{world.digest()[:12]} of {world.task.name}; V, M and C must come from one run: "
            "evolve again"
        )
