"""A whole run in one directory, or any of its phases; and its world to hand on."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dreamjax.controller.ppo import SHARED
from dreamjax.dream import worlds
from dreamjax.dream.exported import export_world
from dreamjax.dream.gymnax_env import named
from dreamjax.dream.stablehlo import check_exporter, export_step
from dreamjax.game import policies
from dreamjax.game.rollouts import shard_paths
from dreamjax.memory.training import check_form
from dreamjax.run import learnt
from dreamjax.run.found import known, settled
from dreamjax.run.game import check_game
from dreamjax.run.ledger import do
from dreamjax.run.lineage import was_given_a_world
from dreamjax.run.phases import PHASES
from dreamjax.run.places import GIVEN
from dreamjax.run.settings import CONTROLLERS, Run, RunConfig
from dreamjax.training import devices
from dreamjax.training.checkpoint import Store, versions
from dreamjax.training.files import writable, writing
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import devices_for
from dreamjax.training.settings import check_guarded

OTHERS = "record", "fidelity", "calibrate"  # phases that no run needs


def phases_of(config: RunConfig) -> tuple[str, ...]:
    """The phases of a whole run, in order."""
    other = {*OTHERS, *CONTROLLERS} - {config.controller}
    return tuple(name for name in PHASES if name not in other)


def phases_left(run: Run, world: str | None = None) -> tuple[str, ...]:
    """The phases of a whole run that goes on from what it was given: `world`, or one before."""
    if world is None and not was_given_a_world(run):
        return phases_of(run.config)
    own = shard_paths(run.rollouts) or shard_paths(run.played)  # episodes for the world's M
    return (*(("encode", "train-memory") if own else ()), run.config.controller, "evaluate")


def run_phases(run: Run, phases: tuple[str, ...] | None = None, world: str | None = None) -> None:
    """Do the named phases, or a whole run's, one process at a time in a directory.

    Args:
      run: the run.
      phases: names of phases; None is a whole run's.
      world: a world to dream, which the directory is given first unless it has it.

    Raises:
      ValueError: a directory that cannot be written, is in use, or holds another game; an M that
        the game has no use for.
      NothingLearntError: one of several phases has learnt nothing, where `must_learn`.
    """
    check_guarded()
    run = known(run, world)
    phases = phases or phases_left(run, world)
    if "train-memory" in phases:
        check_form(run.task, run.config.memory)
    for name in run.config.evaluate.policies:
        policies.check(name)
    directory = writable(run.directory)
    with _locked(directory) if devices.is_first() else contextlib.nullcontext():
        if devices.is_first():
            check_game(run)
            if world is not None:
                given = directory / GIVEN
                worlds.adopt_world(given if given.exists() else directory, world, run.task)
        devices.wait_for_all("the directory is ready")
        _check_shares(run.config, phases)
        devices.check_agreement(directory, repr((run.task.name, run.seed, run.config, versions())))
        for name in phases:
            start, run = time.monotonic(), settled(run, name)
            do(run, PHASES[name])
            devices.wait_for_all(name)
            if run.config.must_learn and len(phases) > 1:
                learnt.check(run, name)
            run.log.log("seconds", 0, {name: time.monotonic() - start})


def _check_shares(config: RunConfig, phases: tuple[str, ...]) -> None:
    """Refuse batches that the processes of a job could not share, before a phase has begun."""
    batches = {
        "train-vision": (config.vision.batch_size, "vision.batch_size"),
        "train-memory": (config.memory.batch_size, "memory.batch_size"),
        "learn": (config.learn.shared, SHARED),
    }
    for phase in set(phases) & set(batches):
        devices_for(*batches[phase], Logbook(quiet=True))


def export(directory: Path, target: Path, *, programs: bool = False) -> None:
    """Write a run's world, its C and what is known of both as a folder to hand on.

    `programs` are `reset` and `step` in StableHLO, of the world as it is handed on.

    Raises:
      CheckpointError: the run has no world.
      ImportError: programs need a package that is missing.
    """
    if programs:
        check_exporter()
    world, controller = worlds.load_world(directory), Store(directory / "controller")
    files = (directory / f"{name}.json" for name in ("results", "fidelity"))
    facts = {path.stem: json.loads(path.read_text()) if path.exists() else None for path in files}
    facts["world"] = Store(directory / "world").meta()
    player = None
    if controller.steps():
        player = world.player
        facts["controller"] = controller.meta()
    export_world(target, world, player, facts)
    if programs:
        env = named(world.task.env_id, world=target)
        export_step(target, env, worlds.load_world(target).params(dtype="float32"))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; it ends with the process, so it is never stale."""
    path = directory / ".lock"
    with writing(path):
        file = open(path, "a+")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{directory} is in use by process {path.read_text().strip() or 'unknown'}; "
                "wait for it or choose another directory"
            ) from None
        with writing(path):
            path.write_text(str(os.getpid()))
        yield
