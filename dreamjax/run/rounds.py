"""The paper's iterative procedure: C plays, M learns from it, and C learns in the better dream.

"World Models", section "Iterative Training Procedure". A round is a run directory of its own below
the run's, so that every command works with it; what a round has in common with the one before is
linked, not copied.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path

from dreamjax.dream.worlds import load_world, save_world
from dreamjax.run.found import FILE, known
from dreamjax.run.inputs import of_record
from dreamjax.run.ledger import AGAIN, decide, do
from dreamjax.run.lineage import memory_settings
from dreamjax.run.phases import EVALUATE, RECORD
from dreamjax.run.places import link
from dreamjax.run.running import run_phases
from dreamjax.run.settings import Run
from dreamjax.training.devices import is_first, wait_for_all
from dreamjax.training.files import writable

KEPT = ("vision", "latents", "played", FILE)  # what a round begins with


def iterate(run: Run, world: str | None = None) -> None:
    """Do a whole run, in `world` if it is given one, and then rounds; the same call resumes."""
    run = known(run, world)
    if not _judged(run):
        run_phases(run, world=world)
    rounds = [known(run)]
    for number in range(1, run.config.iterate.rounds + 1):
        rounds.append(_round(rounds[-1], run.directory / f"round-{number}", number))
    if is_first():
        _say(rounds)


def _judged(run: Run) -> bool:
    """Whether a run has come to its end: `evaluate` would play again."""
    return decide(run, EVALUATE).kind == AGAIN


def _round(before: Run, directory: Path, number: int) -> Run:
    """One round, from where it stopped; its M goes on from that of the run `before`."""
    steps = before.config.iterate.memory_steps or before.config.memory.steps
    source = str(before.directory)
    memory = dataclasses.replace(memory_settings(before), start_from=source, steps=steps)
    config = dataclasses.replace(before.config, memory=memory)
    run = dataclasses.replace(before, directory=directory, config=config)
    if _judged(run):
        return run
    before.log.say(f"round {number}: C plays, and M learns from it, in {directory}")
    if is_first():
        log = dataclasses.replace(before.log, directory=writable(directory))
        run = dataclasses.replace(run, log=log)
        for part in KEPT:
            link(before.directory / part, directory / part)
        if not (directory / "vision").exists() and not (directory / "world").exists():
            save_world(directory, load_world(before.directory), {})  # for its V
    wait_for_all("what the round begins with is there")
    episodes = number * run.config.iterate.episodes  # of all rounds
    asked = partial(of_record, by=before.directory, episodes=episodes)
    do(run, dataclasses.replace(RECORD, reads=asked))
    wait_for_all("record")
    run_phases(run, ("encode", "train-memory", run.config.controller, "evaluate"))
    return run


def _say(rounds: list[Run]) -> None:
    log = rounds[0].log
    log.say(f"{'round':<8}{'dream':>8}{'game':>16}{'n':>6}   95 % interval")
    for number, run in enumerate(rounds):
        found = json.loads((run.directory / "results.json").read_text())
        ours, low_high = found["ours"], "{:.0f} to {:.0f}".format(*found["ours"]["ci95"])
        game = f"{ours['mean']:.0f} ± {ours['std']:.0f}"
        log.say(f"{number:<8}{found['dream']:>8.0f}{game:>16}{ours['n']:>6}   {low_high}")
