"""The paper's iterative procedure: C plays, M learns from it, and C learns in the better dream.

"World Models", section "Iterative Training Procedure". A round is a run directory of its own below
the run's, so that every command works with it; what a round has in common with the one before is
linked, not copied.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path

from dreamjax.agent import record
from dreamjax.dream.worlds import load_controller, load_world, save_world
from dreamjax.run.phases import phases_of, run_phases
from dreamjax.run.settings import WATCH_SEED, Run
from dreamjax.training.devices import is_first, team, wait_for_all
from dreamjax.training.files import writable
from dreamjax.training.logbook import Logbook

KEPT = ("vision", "latents", "played")  # what a round begins with


def iterate(run: Run, phases: tuple[str, ...] | None = None, world: str | None = None) -> None:
    """Do a whole run, and then round after round; the same call resumes.

    Args:
      run: the run; its `iterate` settings say how many rounds.
      phases, world: of the run before the first round, as for `run_phases`.
    """
    if not _done(run):
        run_phases(run, phases or phases_of(run.config), world)
    rounds = [run]
    for number in range(1, run.config.iterate.rounds + 1):
        rounds.append(_round(rounds[-1], run.directory / f"round-{number}", number))
    if is_first():
        _say(rounds)


def _done(run: Run) -> bool:
    """Whether a run has been judged already."""
    return (run.directory / "results.json").exists()


def _round(before: Run, directory: Path, number: int) -> Run:
    """One round, from where it stopped."""
    settings = before.config.iterate
    steps = settings.memory_steps or before.config.memory.steps
    memory = dataclasses.replace(
        before.config.memory, start_from=str(before.directory), steps=steps
    )
    config = dataclasses.replace(before.config, memory=memory)
    log = Logbook(writable(directory)) if is_first() else Logbook(quiet=True)
    run = dataclasses.replace(before, directory=directory, config=config, log=log)
    if _done(run):
        return run
    before.log.say(f"round {number}: C plays, and M learns from it, in {directory}")
    if is_first():
        for part in KEPT:
            _link(before.directory / part, directory / part)
        if not (directory / "vision").exists() and not (directory / "world").exists():
            save_world(directory, load_world(before.directory), {})  # for its V
    wait_for_all("what the round begins with is there")
    _record(before, run, number * settings.episodes)
    run_phases(run, ("encode", "train-memory", config.controller, "evaluate"))
    return run


def _record(before: Run, run: Run, episodes: int) -> None:
    """Record the C of the round before; `episodes` counts those of all rounds."""
    world = load_world(before.directory)
    controller, weights = load_controller(before.directory, world)
    how = {"log": run.log, "workers": run.config.workers, "policy": controller, "team": team()}
    record(world, weights, run.played, episodes, run.seed + WATCH_SEED, **how)
    wait_for_all("record")


def _link(source: Path, target: Path) -> None:
    """Give `target` the files of `source` that it lacks; nothing where there is no `source`."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if path.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                _linked(path, copy)


def _linked(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except FileExistsError:
        raise
    except OSError:  # another disk, or one without links
        half = copy.with_name(f".{copy.name}.{os.getpid()}")
        shutil.copy2(path, half)
        os.replace(half, copy)


def _say(rounds: list[Run]) -> None:
    """The table of all rounds."""
    log = rounds[0].log
    log.say(f"{'round':<8}{'dream':>8}{'game':>16}{'n':>6}   95 % interval")
    for number, run in enumerate(rounds):
        found = json.loads((run.directory / "results.json").read_text())
        ours, low_high = found["ours"], "{:.0f} to {:.0f}".format(*found["ours"]["ci95"])
        game = f"{ours['mean']:.0f} ± {ours['std']:.0f}"
        log.say(f"{number:<8}{found['dream']:>8.0f}{game:>16}{ours['n']:>6}   {low_high}")
