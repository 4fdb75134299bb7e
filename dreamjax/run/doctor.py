"""What a run directory holds, what of it is damaged, and what the next command would do there."""

import dataclasses
import json
from pathlib import Path

from dreamjax.dream.worlds import World, load_controller, load_world
from dreamjax.game import rollouts
from dreamjax.memory.latents import LatentSequences, read_latents
from dreamjax.run.settings import encoded_data, recorded_data
from dreamjax.training.checkpoint import CheckpointError, Store, digest

TRAINED = {"vision": "train-vision", "memory": "train-memory", "evolve": "evolve", "learn": "learn"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One part of a run directory.

    Attributes:
      part: its folder.
      there: what it holds.
      damaged: a line for everything that cannot be used.
      next: what the command that makes it would do.
    """

    part: str
    there: str
    damaged: tuple[str, ...] = ()
    next: str = ""


def examine(directory: Path) -> list[Finding]:
    """Everything found in a run directory, in the order of the data; nothing is changed.

    Raises:
      ValueError: no such directory.
    """
    if not directory.is_dir():
        raise ValueError(f"there is no directory {directory}; give that of a run")
    counts, recorded = _recorded(directory)
    latents, encoded = _encoded(directory)
    world, bound = _world(directory)
    found = [
        *recorded,
        _trained(directory, "vision", recorded_data(counts) if counts else None),
        encoded,
        _trained(directory, "memory", None if latents is None else encoded_data(latents)),
        bound,
        *(_trained(directory, name, None, world) for name in ("evolve", "learn")),
        _controller(directory, world),
    ]
    return [finding for finding in found if finding is not None]


def _recorded(directory: Path) -> tuple[dict[Path, int], list[Finding]]:
    """Frames of the sound shards of `rollouts`, and findings of it and of `played`."""
    counts, found = {}, []
    for part, command in (("rollouts", "collect"), ("played", "record")):
        sound, damaged, episodes = {}, [], 0
        for path in rollouts.shard_paths(directory / part):
            try:
                shard = rollouts.read(path)
            except ValueError as error:
                damaged.append(str(error))
                continue
            sound[path], episodes = len(shard.frames), episodes + len(shard.lengths)
        if part == "rollouts":
            counts = sound
            damaged += _unreadable(directory / part / "collection.json")
        if sound or damaged:
            there = f"{episodes:,} episodes, {sum(sound.values()):,} frames"
            after = _missing(directory / part, episodes, command)
            found.append(Finding(part, there, tuple(damaged), after))
    return counts, found


def _missing(folder: Path, episodes: int, command: str) -> str:
    try:
        wanted = json.loads((folder / "collection.json").read_text())["episodes"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{command} adds what is missing"
    missing = wanted - episodes
    return f"{command} records {missing:,} more" if missing > 0 else f"{command} has all it was for"


def _unreadable(path: Path) -> list[str]:
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"{path} is damaged ({str(error).splitlines()[0]})"]
    return []


def _encoded(directory: Path) -> tuple[LatentSequences | None, Finding | None]:
    paths = rollouts.shard_paths(directory / "latents")
    if not paths:
        return None, None
    try:
        latents = read_latents(directory / "latents")
    except ValueError as error:
        return None, Finding("latents", f"{len(paths)} files", (str(error),), "encode mends it")
    there = f"{len(latents.lengths):,} episodes of {len(paths)} files, by V {latents.vision[:12]}"
    recorded = sum(len(rollouts.shard_paths(directory / part)) for part in ("rollouts", "played"))
    missing = recorded - len(paths)
    after = f"encode adds {missing} files" if missing > 0 else "encode has nothing to add"
    return latents, Finding("latents", there, (), after)


def _trained(
    directory: Path, part: str, data: str | None, world: World | None = None
) -> Finding | None:
    """A training's checkpoints, and whether it can go on with the data or in the world there."""
    store, command = Store(directory / part), TRAINED[part]
    if not store.directory.is_dir():
        return None
    damaged, steps = tuple(store.faults()), store.steps()
    if not steps:
        return Finding(part, "no checkpoint", damaged, f"{command} begins anew")
    meta = store.meta()
    after = f"{command} goes on from step {steps[-1]}, if it is to make more"
    if data is not None and meta.get("data", data) != data:
        after = f"{command} refuses: it was made with {meta['data']}, there are {data}"
    if world is not None and meta.get("world") != world.digest():
        after = f"{command} refuses: it was made in another world"
    return Finding(part, f"steps {', '.join(map(str, steps))}", damaged, after)


def _world(directory: Path) -> tuple[World | None, Finding | None]:
    store = Store(directory / "world")
    if not store.directory.is_dir():
        return None, None
    damaged = tuple(store.faults())
    try:
        world = load_world(directory)
    except CheckpointError as error:
        damaged = damaged or (str(error),)
        return None, Finding("world", "none to use", damaged, "train-memory makes it anew")
    there = f"{world.task.profile}, {world.digest()[:12]}: V {digest(world.vision)[:12]}, M "
    return world, Finding("world", there + digest(world.memory)[:12], damaged, "dreamt as it is")


def _controller(directory: Path, world: World | None) -> Finding | None:
    if world is None or not (directory / "controller").is_dir():
        return None
    try:
        _, weights = load_controller(directory, world)
    except CheckpointError as error:
        return Finding("controller", "none to use", (str(error),), "evolve or learn makes it anew")
    return Finding("controller", f"{len(weights):,} weights", (), "evaluate plays it")


def lines(found: list[Finding]) -> list[str]:
    """The findings as a person reads them."""
    rows = []
    for finding in found:
        rows.append(f"{finding.part:<12}{finding.there}; next: {finding.next}")
        rows += [f"{'':<12}DAMAGED: {line}" for line in finding.damaged]
    return rows or ["nothing there; collect begins a run, or run does all of it"]
