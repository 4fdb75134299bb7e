"""What a run directory holds, what of it is damaged, and what the ledger says of each phase there.

Each phase is asked after as by the command that made what there is.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamjax.dream.worlds import load_controller, load_world
from dreamjax.game import rollouts
from dreamjax.memory.latents import read_latents
from dreamjax.run.ledger import COLLECT, OLDER_NAMES, PHASES, Phase, decide, profiles
from dreamjax.run.lineage import GIVEN, lies
from dreamjax.run.settings import CONTROLLERS, Run, RunConfig
from dreamjax.tasks import TASKS
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.training.logbook import Logbook

TRAINED = ("vision", "memory", *CONTROLLERS)
TUNED = ("temperature", "death_threshold", "death_noise", "dropout")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One part of a run directory.

    Attributes:
      part: its folder.
      there: what it holds; "" is nothing.
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
    found = [_world(directory), _controller(directory)]
    for phase in PHASES.values():
        there = _there(directory, phase.folder)
        if there is not None and phase.folder != "world":
            after = decide(as_made(directory, phase), phase)
            found.append(dataclasses.replace(there, next=f"{phase.name} {after.said}"))
    return [finding for finding in found if finding is not None]


def as_made(directory: Path, phase: Phase) -> Run:
    """The run as the command had it that last did a phase.

    Raises:
      ValueError: nothing tells the game, or it is not known here.
    """
    made = _made(directory, phase)
    name = next((meta["task"] for meta in (made, *_metas(directory)) if "task" in meta), None)
    if name not in TASKS:
        raise ValueError(f"{directory} is of the game {name!r}; name it by --task module:TASK")
    seed = next((meta["seed"] for meta in (made, *_metas(directory)) if "seed" in meta), 0)
    return Run(
        directory, TASKS[name], seed, _config(directory, phase.section, made), Logbook(quiet=True)
    )


def _metas(directory: Path) -> Iterator[dict[str, Any]]:
    """What is told of how everything here was made."""
    yield rollouts.claimed(directory / "rollouts") or {}
    for part in ("world", *TRAINED):
        store = Store(directory / part)
        if store.steps():
            yield store.meta()
    for _, profile in profiles(directory):
        yield from ({"task": name} for name, task in TASKS.items() if task.profile == profile)


def _made(directory: Path, phase: Phase) -> dict[str, Any]:
    if phase == COLLECT:
        return rollouts.claimed(directory / "rollouts") or {}
    store = Store(directory / phase.folder)
    return store.meta() if phase.section and store.steps() else {}


def _config(directory: Path, section: str, made: dict[str, Any]) -> RunConfig:
    """The settings that a section was made with; else the usual ones."""
    config, section = RunConfig(), section or "collect"
    told = {OLDER_NAMES.get(name, name): x for name, x in made.get("config", made).items()}
    fields = {field.name for field in dataclasses.fields(getattr(config, section))}
    told = {name: _lies(directory, name, told[name]) for name in fields & told.keys()}
    if section in ("evolve", "learn") and made:
        tuned = {name: made[name] for name in TUNED if name in made}
        dream = dataclasses.replace(config.dream, **tuned, bfloat16=made["products"] == "bfloat16")
        hidden = made.get("controller_hidden", 0)
        config = dataclasses.replace(config, dream=dream, controller_hidden=hidden)
    own = dataclasses.replace(getattr(config, section), **told)
    return dataclasses.replace(config, **{section: own})


def _lies(directory: Path, name: str, value: Any) -> Any:
    """A recorded setting as the command line gives it."""
    if name == "start_from" and value is not None:
        return None if value == GIVEN else lies(value, directory)
    if name == "worlds":
        return tuple(lies(source, directory) for source in value)
    return tuple(value) if isinstance(value, list) else value


def _there(directory: Path, folder: str) -> Finding | None:
    if folder in ("rollouts", "played"):
        return _recorded(directory / folder)
    if folder == "latents":
        return _encoded(directory)
    if folder in TRAINED:
        return _trained(directory, folder)
    return Finding(folder, "written") if (directory / folder).exists() else None


def _recorded(folder: Path) -> Finding | None:
    frames, episodes, damaged = 0, 0, []
    for path in rollouts.shard_paths(folder):
        try:
            shard = rollouts.read(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        frames, episodes = frames + len(shard.frames), episodes + len(shard.lengths)
    claim = folder / "collection.json"
    if claim.exists() and rollouts.claimed(folder) is None:
        damaged.append(f"{claim} is damaged")
    if not frames and not damaged:
        return None
    return Finding(folder.name, f"{episodes:,} episodes, {frames:,} frames", tuple(damaged))


def _encoded(directory: Path) -> Finding | None:
    paths = rollouts.shard_paths(directory / "latents")
    if not paths:
        return None
    try:
        latents = read_latents(directory / "latents")
    except ValueError as error:
        return Finding("latents", f"{len(paths)} files", (str(error),))
    there = f"{len(latents.lengths):,} episodes of {len(paths)} files, by V {latents.vision[:12]}"
    return Finding("latents", there)


def _trained(directory: Path, part: str) -> Finding | None:
    store = Store(directory / part)
    if not store.directory.is_dir():
        return None
    there = f"steps {', '.join(map(str, store.steps()))}" if store.steps() else "no checkpoint"
    return Finding(part, there, tuple(store.faults()))


def _world(directory: Path) -> Finding | None:
    found = _trained(directory, "world")
    if found is None:
        return None
    try:
        world = load_world(directory)
    except CheckpointError as error:
        return Finding("world", "none to use", found.damaged or (str(error),))
    there = f"{world.task.profile}, {world.digest()[:12]}: V {digest(world.vision)[:12]}, M "
    return Finding("world", there + digest(world.memory)[:12], found.damaged, "dreamt as it is")


def _controller(directory: Path) -> Finding | None:
    if not (directory / "controller").is_dir() or not (directory / "world").is_dir():
        return None
    try:
        _, weights = load_controller(directory, load_world(directory))
    except CheckpointError as error:
        return Finding("controller", "none to use", (str(error),), "evolve or learn makes it anew")
    return Finding("controller", f"{len(weights):,} weights", (), "evaluate plays it")


def lines(found: list[Finding]) -> list[str]:
    """The findings as a person reads them."""
    rows = []
    for finding in found:
        rows.append(f"{finding.part:<14}{finding.there}; next: {finding.next}")
        rows += [f"{'':<14}DAMAGED: {line}" for line in finding.damaged]
    return rows or ["nothing there; collect begins a run, or run does all of it"]
