"""What a run directory holds, what of it is damaged, and what the ledger says of each phase there.

Each phase is asked after as by the command that made what there is.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamjax.dream.world import TUNED
from dreamjax.dream.worlds import load_world
from dreamjax.game import collecting, rollouts
from dreamjax.memory.latents import read_latents
from dreamjax.run.found import known
from dreamjax.run.game import profiles
from dreamjax.run.ledger import Phase, decide, renewed
from dreamjax.run.phases import PHASES
from dreamjax.run.places import GIVEN, lies, renamed
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
    damaged: Sequence[str]  # a line for everything that cannot be used
    next: str  # what the command that makes it would do


def examine(directory: Path) -> list[Finding]:
    """Everything found in a run directory, in the order of the data; nothing is changed.

    Raises:
      ValueError: no such directory, or it is of an unknown game.
    """
    if not directory.is_dir():
        raise ValueError(f"there is no directory {directory}; give that of a run")
    found = []
    for phase in PHASES.values():
        held = _held(directory / phase.folder)
        if held is not None:
            after = decide(as_made(directory, phase), phase)
            found.append(Finding(phase.folder, *held, f"{phase.name} {after.said}"))
    parts = (part for part in ("world", "controller") if (directory / part).is_dir())
    return [*found, *(_loaded(directory, part) for part in parts)]


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
    return known(Run(directory, TASKS[named[0]], seed, config, Logbook(quiet=True)))


def _made(directory: Path, part: str) -> dict[str, Any]:
    """What a part tells of how it was made."""
    store = Store(directory / part)
    return store.meta() if store.steps() else collecting.claimed(directory / part) or {}


def _config(directory: Path, section: str, made: dict[str, Any]) -> RunConfig:
    """The usual settings, but those of a section as it was made with them."""
    config = RunConfig()
    if section in CONTROLLERS:
        tuned = {name: made.get(name) or 0.0 for name in TUNED}
        dream = DreamConfig(**tuned, bfloat16=made["products"] == "bfloat16")
        hidden = made.get("controller_hidden", 0)
        config = dataclasses.replace(config, dream=dream, controller_hidden=hidden)
    own = getattr(config, section)
    told = renewed(made, own).get("config", made)
    told = renamed(told, lambda source: _as_given(source, directory))
    told = {name: tuple(x) if isinstance(x, list) else x for name, x in told.items()}
    fields = {field.name for field in dataclasses.fields(own)} & told.keys()
    own = dataclasses.replace(own, **{name: told[name] for name in fields})
    return dataclasses.replace(config, **{section: own})


def _as_given(source: str | None, directory: Path) -> str | None:
    """The name of a run or world as the command line gives it."""
    return None if source in (None, GIVEN) else lies(source, directory)


def _held(path: Path) -> tuple[str, Sequence[str]] | None:
    """What a folder or file holds, and a line for all that cannot be used; None is nothing."""
    if path.name in ("rollouts", "played"):
        return _recorded(path)
    if path.name == "latents":
        return _encoded(path)
    if path.name in TRAINED and path.is_dir():
        steps = ", ".join(map(str, Store(path).steps()))
        return f"steps {steps}" if steps else "no checkpoint", Store(path).faults()
    return ("written", ()) if path.is_file() else None


def _recorded(folder: Path) -> tuple[str, Sequence[str]] | None:
    frames, episodes, damaged, claim = 0, 0, [], folder / "collection.json"
    for path in rollouts.shard_paths(folder):
        try:
            shard = rollouts.read(path)
            frames, episodes = frames + len(shard.frames), episodes + len(shard.lengths)
        except ValueError as error:
            damaged.append(str(error))
    if claim.exists() and collecting.claimed(folder) is None:
        damaged.append(f"{claim} is damaged")
    there = f"{episodes:,} episodes, {frames:,} frames"
    return (there, damaged) if frames or damaged else None


def _encoded(folder: Path) -> tuple[str, Sequence[str]] | None:
    files = f"{len(rollouts.shard_paths(folder))} files"
    try:
        latents = read_latents(folder)
        return f"{len(latents.lengths):,} episodes of {files}, by V {latents.vision[:12]}", ()
    except ValueError as error:
        return (files, [str(error)]) if rollouts.shard_paths(folder) else None


def _loaded(directory: Path, part: str) -> Finding:
    """A world, or the C that goes with it."""
    damaged = Store(directory / part).faults()
    try:
        world = load_world(directory)
        if part == "controller":
            there = f"{len(world.player.weights):,} weights"
            return Finding(part, there, damaged, "it plays")
        models = f"V {digest(world.vision)[:12]}, M {digest(world.memory)[:12]}"
        there = f"{world.task.profile}, {world.digest()[:12]}: {models}"
        return Finding(part, there, damaged, "dreamt as it is")
    except CheckpointError as error:
        return Finding(part, "none to use", damaged or [str(error)], "is to be made anew")


def lines(found: list[Finding]) -> list[str]:
    """The findings as a person reads them."""
    rows = []
    for finding in found:
        rows.append(f"{finding.part:<14}{finding.there}; next: {finding.next}")
        rows += [f"{'':<14}DAMAGED: {line}" for line in finding.damaged]
    return rows or ["no run is here; collect begins one, run does all of it, play shows a folder"]
