"""What a run directory holds, what of it is damaged, and what the ledger says of each phase there.

Each phase is asked after as by the command that made what there is.
"""

import dataclasses
from pathlib import Path
from typing import Any

from dreamjax.dream.worlds import load_controller, load_world
from dreamjax.game import rollouts
from dreamjax.memory.latents import read_latents
from dreamjax.run.ledger import OLDER_NAMES, Phase, decide, profiles
from dreamjax.run.lineage import GIVEN, lies
from dreamjax.run.settings import CONTROLLERS, Run, RunConfig
from dreamjax.run.table import PHASES
from dreamjax.tasks import TASKS
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.training.logbook import Logbook

TRAINED = ("vision", "memory", *CONTROLLERS)
TUNED = ("temperature", "death_threshold", "death_noise")


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
    told = {OLDER_NAMES.get(name, name): x for name, x in made.get("config", made).items()}
    if section in CONTROLLERS:
        tuned = {name: made[name] for name in TUNED if name in made}
        tuned |= {"dropout": made.get("dropout") or 0.0, "bfloat16": made["products"] == "bfloat16"}
        hidden, dream = made.get("controller_hidden", 0), dataclasses.replace(config.dream, **tuned)
        config = dataclasses.replace(config, dream=dream, controller_hidden=hidden)
    own = getattr(config, section)
    fields = {field.name for field in dataclasses.fields(own)} & told.keys()
    own = dataclasses.replace(own, **{x: _as_given(directory, x, told[x]) for x in fields})
    return dataclasses.replace(config, **{section: own})


def _as_given(directory: Path, name: str, value: Any) -> Any:
    """A recorded setting as the command line gives it."""
    if name == "start_from" and value is not None:
        return None if value == GIVEN else lies(value, directory)
    if name == "worlds":
        return tuple(lies(source, directory) for source in value)
    return tuple(value) if isinstance(value, list) else value


def _there(directory: Path, folder: str) -> Finding | None:
    if folder in TRAINED:
        return _trained(directory, folder)
    if folder == "latents":
        return _encoded(directory)
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
    return Finding(folder.name, there, tuple(damaged)) if frames or damaged else None


def _encoded(directory: Path) -> Finding | None:
    paths = rollouts.shard_paths(directory / "latents")
    try:
        latents = read_latents(directory / "latents")
    except ValueError as error:
        return Finding("latents", f"{len(paths)} files", (str(error),)) if paths else None
    there = f"{len(latents.lengths):,} episodes of {len(paths)} files, by V {latents.vision[:12]}"
    return Finding("latents", there)


def _trained(directory: Path, part: str) -> Finding | None:
    store = Store(directory / part)
    there = f"steps {', '.join(map(str, store.steps()))}" if store.steps() else "no checkpoint"
    return Finding(part, there, tuple(store.faults())) if store.directory.is_dir() else None


def _loaded(directory: Path, part: str) -> Finding | None:
    """A world, or the C that goes with it."""
    found = _trained(directory, part)
    if found is None:
        return None
    try:
        world = load_world(directory)
        there = f"{world.task.profile}, {world.digest()[:12]}: V {digest(world.vision)[:12]}, M "
        if part == "world":
            return dataclasses.replace(
                found, there=there + digest(world.memory)[:12], next="dreamt as it is"
            )
        weights = load_controller(directory, world)[1]
        return dataclasses.replace(found, there=f"{len(weights):,} weights", next="it plays")
    except CheckpointError as error:
        return Finding(part, "none to use", found.damaged or (str(error),), "is to be made anew")


def lines(found: list[Finding]) -> list[str]:
    """The findings as a person reads them."""
    rows = []
    for finding in found:
        rows.append(f"{finding.part:<14}{finding.there}; next: {finding.next}")
        rows += [f"{'':<14}DAMAGED: {line}" for line in finding.damaged]
    return rows or ["nothing there; collect begins a run, or run does all of it"]
