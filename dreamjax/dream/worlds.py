"""Where worlds, and the C that goes with each, lie on disk.

A run keeps its world in full precision as a checkpoint, and its C in another; those in `shipped/`
are exported folders, and go by their names.
"""

import contextlib
import dataclasses
import difflib
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.controller.player import Player
from dreamjax.dream import exported
from dreamjax.dream.exported import refusing
from dreamjax.dream.world import World, blank_world, fact
from dreamjax.task import Task
from dreamjax.training.checkpoint import CheckpointError, Store, digest, flatten

SHIPPED = Path(__file__).parents[1] / "shipped"
SEARCHES = {"evolve": "evolve.generations", "learn": "learn.steps"}  # for C, and their lengths

_say_once = cache(print)


def save_world(directory: Path | str, world: World, meta: dict[str, Any] | None = None) -> None:
    """Store a world in a run directory, in place of what was there; `meta` is kept beside it.

    Raises:
      CheckpointError: the disk refused.
    """
    models = {name: digest(getattr(world, name)) for name in ("vision", "memory")}
    store = Store(Path(directory) / "world", keep=1)
    store.replace(world.arrays(), {**(meta or {}), **world.facts(), **models})


def load_world(source: Path | str) -> World:
    """The world that `source` names: a shipped one, or that of a run or an exported folder.

    Raises:
      CheckpointError: no world there, a damaged one, or one of an unknown game.
    """
    folder = folder_of(source)
    world = exported.read(folder)[0] if exported.is_exported(folder) else _of_run(folder)
    return dataclasses.replace(world, find_player=partial(load_player, folder))


def _of_run(folder: Path) -> World:
    store = Store(folder / "world")
    if not store.directory.is_dir():
        names = shipped_worlds()
        near = ", ".join(difflib.get_close_matches(folder.name, names, 1) or names)
        raise CheckpointError(
            f"no world in {folder}; train one there, or name a shipped one: {near}"
        )
    meta = store.meta()
    with refusing(store.directory, "make it anew by train-memory, or use another run directory"):
        blank = blank_world(meta, store.directory)
        arrays = store.load(blank.arrays())[0]
        exported.check_finite(flatten(arrays))
    return blank.with_arrays(arrays)


def identity(source: Path | str) -> str:
    """What is another text once the world at `source` is another; "" where there is none."""
    folder = folder_of(source)
    store = Store(folder / "world")
    if exported.is_exported(folder):
        with refusing(folder):
            return exported.content(folder / "world.json").decode()
    return f"{store.steps()} {store.meta()}" if store.directory.is_dir() else ""


def world_meta(source: Path | str) -> dict[str, Any]:
    """What is told of how a world was made; `source` and errors as for `load_world`."""
    folder = folder_of(source)
    if exported.is_exported(folder):
        return exported.read_arrays(folder)[0]
    return Store(folder / "world").meta()


def found_in(source: Path | str) -> dict[str, Any]:
    """What was found out of a world's game, as `Task.found` takes it; nothing of no world."""
    with contextlib.suppress(CheckpointError):
        return world_meta(source).get("found") or {}
    return {}


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

    C comes before its world, because a run that has a world adopts nothing more.

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
    made, folder = world_meta(source), folder_of(source)
    if has_player(source) and _is_bound(folder, world):
        player = world.player
        if player.dream is None:
            raise CheckpointError(
                f'{folder / "world.json"} lacks "dream", what its C earned; export it again'
            )
        player.save(directory, world)
    told = made.get("world") if exported.is_exported(folder) else made
    save_world(directory, world, {"source": Path(source).name, "made": told})


def _is_bound(folder: Path, world: World) -> bool:
    """Whether the C beside a world was found in it."""
    return exported.is_exported(folder) or _told(folder)["world"] == world.digest()


def _told(folder: Path) -> dict[str, Any]:
    return Store(folder / "controller").meta()


def has_player(source: Path | str) -> bool:
    """Whether a C goes with a world; `source` as for `load_world`."""
    folder = folder_of(source)
    if exported.is_exported(folder):
        return exported.CONTROLLER in exported.read_arrays(folder)[1]
    return bool(Store(folder / "controller").steps())


def load_player(source: Path | str, world: World | None = None) -> Player:
    """The C that was found in a world; `source` as for `load_world`.

    Tells of a search for C that was stopped before it saved its own.

    Args:
      world: the world that it must be of; None is that of `source`.

    Raises:
      CheckpointError: none there, damaged, or found in another world.
    """
    folder, world = folder_of(source), load_world(source) if world is None else world
    if exported.is_exported(folder):
        origin, player, _ = exported.read(folder)
        _check_bound(folder, origin.task.name, origin.digest(), world)
        if player is None:
            raise CheckpointError(f"{folder} has a world but no C; evolve one in it")
        return dataclasses.replace(player, world=origin.digest())
    store, told = Store(folder / "controller"), _told(folder)
    with refusing(store.directory, "evolve again"):
        _check_bound(store.directory, told["task"], told["world"], world)
        _tell_of_stopped(folder)
        template = {"weights": jax.ShapeDtypeStruct((told["size"],), jnp.float32)}
        form, weights = world.controller(fact(told, "controller_hidden")), store.load(template)[0]
        return Player(form, weights["weights"], told["world"], told["dream"])


def _check_bound(origin: Path, task: str, found_in: str, world: World) -> None:
    if (task, found_in) != (world.task.name, world.digest()):
        raise CheckpointError(
            f"{origin} was evolved in world {found_in[:12]} of {task}, but this is world "
            f"{world.digest()[:12]} of {world.task.name}; V, M and C must come from one run: "
            "evolve again"
        )


def _tell_of_stopped(folder: Path) -> None:
    for search, length in SEARCHES.items():
        reached = Store(folder / search).unfinished()
        if reached is not None:
            print(
                f"{folder / search} was stopped at {reached} and has saved no C yet; the one here "
                f"was there before. Run {search} again to go on, or set --{length} to end it there",
                flush=True,
            )
