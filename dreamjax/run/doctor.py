"""What a run directory holds, what of it is damaged, and what the ledger says of each phase there.

Each phase is asked after as by the command that made what there is.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamjax.dream.worlds import TUNED, load_controller, load_world
from dreamjax.game import rollouts
from dreamjax.memory.latents import read_latents
from dreamjax.run.ledger import PHASES, Phase, decide, profiles
from dreamjax.run.lineage import GIVEN, lies, renamed
from dreamjax.run.settings import CONTROLLERS, DreamConfig, Run, RunConfig
from dreamjax.tasks import TASKS
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.training.logbook import Logbook

TRAINED = ("vision", "memory", *CONTROLLERS)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One part of a run directory."""

    part: str  # its folder
    there: str  # what it holds
    damaged: Sequence[str] = ()  # a line for everything that cannot be used
    next: str = ""  # what the command that makes it would do


def examine(directory: Path) -> list[Finding]:
    """Everything found in a run directory, in the order of the data; nothing is changed.

    Raises:
      ValueError: no such directory, or it is of an unknown game.
    """
    if not directory.is_dir():
        raise ValueError(f"there is no directory {directory}; give that of a run")
    found = []
    for phase in PHASES.values():
        there = _there(directory, phase.folder)
        if there is not None:
            after = decide(as_made(directory, phase), phase)
            found.append(dataclasses.replace(there, next=f"{phase.name} {after.said}"))
    loaded = (_loaded(directory, part) for part in ("world", "controller"))
    return [*found, *(finding for finding in loaded if finding is not None)]


def as_made(directory: Path, phase: Phase) -> Run:
    """The run as the command had it that last did a phase.

    Raises:
      ValueError: nothing tells the game, or it is not known here.
    """
    made = _made(directory, phase.folder)
    told = [made, *(_made(directory, part) for part in ("rollouts", "world", *TRAINED))]
    held = dict(profiles(directory)).values()
    named = [one["task"] for one in told if "task" in one]
    named += [name for name, task in TASKS.items() if task.profile in held]
    if named[0] not in TASKS:
        raise ValueError(f"{directory} is of the game {named[0]!r}; name it by --task module:TASK")
    seed = next((one["seed"] for one in told if "seed" in one), 0)
    config = _config(directory, phase.section, made) if made and phase.section else RunConfig()
    return Run(directory, TASKS[named[0]], seed, config, Logbook(quiet=True))


def _made(directory: Path, part: str) -> dict[str, Any]:
    """What a part tells of how it was made."""
    store = Store(directory / part)
    return store.meta() if store.steps() else rollouts.claimed(directory / part) or {}


def _config(directory: Path, section: str, made: dict[str, Any]) -> RunConfig:
    """The usual settings, but those of a section as it was made with them."""
    config = RunConfig()
    if section in CONTROLLERS:
        tuned = {name: made.get(name) or 0.0 for name in TUNED}
        dream = DreamConfig(**tuned, bfloat16=made["products"] == "bfloat16")
        hidden = made.get("controller_hidden", 0)
        config = dataclasses.replace(config, dream=dream, controller_hidden=hidden)
    told = renamed(made.get("config", made), lambda source: _as_given(source, directory))
    told = {name: tuple(x) if isinstance(x, list) else x for name, x in told.items()}
    own = getattr(config, section)
    fields = {field.name for field in dataclasses.fields(own)} & told.keys()
    own = dataclasses.replace(own, **{name: told[name] for name in fields})
    return dataclasses.replace(config, **{section: own})


def _as_given(source: str | None, directory: Path) -> str | None:
    """The name of a run or world as the command line gives it."""
    return None if source in (None, GIVEN) else lies(source, directory)


def _there(directory: Path, folder: str) -> Finding | None:
    if folder in TRAINED:
        return _trained(directory, folder)
    if folder == "latents":
        return _encoded(directory / folder)
    if folder in ("rollouts", "played"):
        return _recorded(directory / folder)
    return Finding(folder, "written") if (directory / folder).is_file() else None


def _recorded(folder: Path) -> Finding | None:
    frames, episodes, damaged, claim = 0, 0, [], folder / "collection.json"
    for path in rollouts.shard_paths(folder):
        try:
            shard = rollouts.read(path)
            frames, episodes = frames + len(shard.frames), episodes + len(shard.lengths)
        except ValueError as error:
            damaged.append(str(error))
    if claim.exists() and rollouts.claimed(folder) is None:
        damaged.append(f"{claim} is damaged")
    there = f"{episodes:,} episodes, {frames:,} frames"
    return Finding(folder.name, there, damaged) if frames or damaged else None


def _encoded(folder: Path) -> Finding | None:
    paths = rollouts.shard_paths(folder)
    try:
        latents = read_latents(folder)
    except ValueError as error:
        return Finding(folder.name, f"{len(paths)} files", [str(error)]) if paths else None
    there = f"{len(latents.lengths):,} episodes of {len(paths)} files, by V {latents.vision[:12]}"
    return Finding(folder.name, there)


def _trained(directory: Path, part: str) -> Finding | None:
    store = Store(directory / part)
    there = f"steps {', '.join(map(str, store.steps()))}" if store.steps() else "no checkpoint"
    return Finding(part, there, store.faults()) if store.directory.is_dir() else None


def _loaded(directory: Path, part: str) -> Finding | None:
    """A world, or the C that goes with it."""
    found = _trained(directory, part)
    if found is None:
        return None
    try:
        world = load_world(directory)
        there = f"{world.task.profile}, {world.digest()[:12]}: V {digest(world.vision)[:12]}, "
        there, after = f"{there}M {digest(world.memory)[:12]}", "dreamt as it is"
        if part == "controller":
            there = f"{len(load_controller(directory, world)[1]):,} weights"
            after = "it plays"
        return Finding(part, there, found.damaged, after)
    except CheckpointError as error:
        return Finding(part, "none to use", found.damaged or [str(error)], "is to be made anew")


def lines(found: list[Finding]) -> list[str]:
    """The findings as a person reads them."""
    rows = []
    for finding in found:
        rows.append(f"{finding.part:<14}{finding.there}; next: {finding.next}")
        rows += [f"{'':<14}DAMAGED: {line}" for line in finding.damaged]
    return rows or ["nothing there; collect begins a run, or run does all of it"]
