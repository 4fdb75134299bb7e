"""What a run has, what it lacks, and what each command will do in it: one table, one function.

Whoever wants to know asks `decide`: a command before it begins, a dry run, the doctor.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dreamjax.run import places
from dreamjax.run.game import RECORDED, check_game, note_game
from dreamjax.run.settings import Run
from dreamjax.task import differs
from dreamjax.training.checkpoint import CheckpointError, Store
from dreamjax.training.devices import is_first, processes

FRESH, RESUME, DONE, AGAIN, REFUSE = "fresh", "resume", "done", "again", "refuse"
FIRST_VALUES = {"scaled": False}  # of settings that older checkpoints do not tell
LOOSE = {"config", "versions", "step", "held_below", "bfloat16"}  # may differ; the last is a wish


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a phase would be made from."""

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # that checkpoints record
    values: Any = None  # what the phase itself needs, loaded
    total: int = 0  # how much there will be in the end


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a phase will do in a run, and why."""

    kind: str  # "fresh", "resume", "done", "again" or "refuse"
    said: str  # the same in words, with the remedy of a refusal
    inputs: Inputs = Inputs()  # of nothing where it is refused
    aside: Sequence[Path] = ()  # what is kept aside where it begins again
    fault: ValueError | None = None  # why it is refused


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run: what it is made from, how, and what is kept of it."""

    name: str  # its command
    folder: str  # what it writes, below the run's directory
    reads: Callable[[Run], Inputs]  # raises ValueError where that cannot be had
    make: Callable[[Run, Inputs], Any]  # its docstring's first line is the command's help
    keep: Callable[[Run, Inputs, Any], None] = lambda *_: None  # is given what `make` returns
    # of what there is, the facts and how much, None is nothing; by itself: of its checkpoints
    found: Callable[[Run, Inputs], tuple[dict[str, Any], int] | None] | None = None
    section: str = ""  # its settings in `RunConfig`; those in their `grows` may have changed since
    task: tuple[str, ...] = RECORDED  # fields of the game that shape what it writes
    # the files that give way to new ones where the named fact has changed; None is a refusal
    aside: Callable[[Run, Inputs, str], Sequence[Path] | None] = lambda *_: None
    remedy: str = ""  # what to do where the data have changed
    repeats: bool = False  # whether it measures anew each time, in place of what there is


def decide(run: Run, phase: Phase) -> Decision:
    """What a phase will do in a run; nothing is changed."""
    try:
        check_game(run)
        return _compared(run, phase, phase.reads(run))
    except ValueError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return Decision(REFUSE, f"refuses: {said}", fault=error)


def _compared(run: Run, phase: Phase, inputs: Inputs) -> Decision:
    """What a phase that can be made will do beside what there is of it."""
    exists = (run.directory / phase.folder).exists()
    if exists and phase.repeats:
        return Decision(AGAIN, f"plays again, in place of {phase.folder}", inputs)
    found = phase.found(run, inputs) if phase.found else _trained(run.store(phase.folder))
    if found is None:
        return Decision(FRESH, "begins anew" if exists else "begins", inputs)
    made, done = found
    own = getattr(run.config, phase.section, None)
    made, grows = renewed(made, own), getattr(own, "grows", ())
    for name, old, new in differences(made, inputs.facts, grows, run.directory):
        aside = phase.aside(run, inputs, name)
        if aside is not None:
            return Decision(AGAIN, f"begins again: {name} was {old}, now {new}", inputs, aside)
        remedy = phase.remedy if name == "data" else "use another run directory"
        raise CheckpointError(
            f"{run.directory / phase.folder} was made with {name}={old}, now {name}={new}; "
            f"{remedy.format(run.directory)}, or remove that folder to make it anew"
        )
    if done < inputs.total:
        return Decision(RESUME, f"goes on from {done:,} of {inputs.total:,}", inputs)
    return Decision(DONE, f"is done, at {done:,}", inputs)


def _trained(store: Store) -> tuple[dict[str, Any], int] | None:
    return (store.meta(), store.meta()["step"]) if store.steps() else None


def do(run: Run, phase: Phase) -> None:
    """Do a phase in a run, as far as it is not done; errors as of `begin` and of its own."""
    inputs = begin(run, phase)
    phase.keep(run, inputs, phase.make(run, inputs))


def begin(run: Run, phase: Phase) -> Inputs:
    """What a phase is made from, where `decide` lets it begin; what gives way is kept aside.

    Raises:
      ValueError: it is refused, in one line; nothing has changed.
    """
    decision = processes().first_then_all(lambda: _begun(run, phase))
    if decision.fault is not None:
        raise decision.fault
    return decision.inputs


def _begun(run: Run, phase: Phase) -> Decision:
    decision = decide(run, phase)
    if is_first() and decision.kind != REFUSE:
        if decision.aside:
            kept = _keep(run.directory / phase.folder, decision.aside)
            run.log.say(f"{phase.folder} so far is kept in {kept}; {phase.name} {decision.said}")
            return _begun(run, phase)
        note_game(run, phase.folder, phase.task)
    return decision


def _keep(folder: Path, paths: Sequence[Path]) -> Path:
    """Move files of a folder, and of those beside it, to `folder-1` or what is free; where."""
    numbered = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(1))
    kept = next(place for place in numbered if not place.exists())
    for path in paths:
        target = kept / path.relative_to(folder if folder in path.parents else folder.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return kept


def foretold(run: Run, phases: Iterable[Phase], gets: str | None = None) -> tuple[str, ...]:
    """Say what each of some phases would do, one after another; the names of those left to do.

    `gets` is a world that the run would be given first.
    """
    left: tuple[str, ...] = ()
    if gets is not None and not (run.directory / "world").exists():
        run.log.say(f"{run.directory} is given {gets}")
        left = (gets,)
    for phase in phases:
        decision = decide(run, phase)
        waits = decision.kind == REFUSE and left
        run.log.say(f"{phase.name} {'waits for what is before it' if waits else decision.said}")
        left += (phase.name,) if decision.kind != DONE else ()
    return tuple(name for name in left if name != gets)


def renewed(made: dict[str, Any], section: Any) -> dict[str, Any]:
    """`made`, whose settings have the names of today."""
    names = getattr(section, "formerly", {})
    config = {names.get(name, name): x for name, x in made.get("config", {}).items()}
    return made | ({"config": config} if config else {})


def differences(
    made: dict[str, Any], wanted: dict[str, Any], grows: Iterable[str], home: Path
) -> Iterator[tuple[str, Any, Any]]:
    """`(name, old, new)` of all in which what was made, in the run at `home`, is not as wanted.

    What only one of the two tells makes no difference.
    """
    new = _flat(wanted, grows)
    for name, old in (FIRST_VALUES | _flat(made, grows)).items():
        if name in new and not _agree(name, old, new[name], home):
            yield name, old, new[name]


def _flat(facts: dict[str, Any], grows: Iterable[str]) -> dict[str, Any]:
    flat = facts | facts.get("config", {})
    return json.loads(json.dumps({k: x for k, x in flat.items() if k not in {*LOOSE, *grows}}))


def _agree(name: str, old: Any, new: Any, home: Path) -> bool:
    if name == "start_from":
        return places.is_same(old, new, home)
    if name == "worlds":
        return len(old) == len(new) and all(map(places.is_same, old, new, itertools.repeat(home)))
    return not differs(old, new)


# The game
