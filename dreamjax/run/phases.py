"""The whole of it: real game -> V -> M -> dream -> C -> real game, in one run directory.

Paper: section "VizDoom Experiment: Procedure". Each phase writes one folder of the run
directory, records the settings it was made with, and does only what is not there yet; so the
same call resumes a run that was stopped anywhere.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamjax.agent import evaluate, evaluation_seeds
from dreamjax.controller.components import directions
from dreamjax.controller.evolution import Evolution, evolve
from dreamjax.controller.model import Controller
from dreamjax.controller.player import Player, form_of
from dreamjax.controller.policy_gradient import SHARED, Learning, learn
from dreamjax.dream import worlds
from dreamjax.dream.exported import export_world
from dreamjax.dream.world import World
from dreamjax.fidelity.compare import ExploitAlarm
from dreamjax.game import policies
from dreamjax.game.collecting import collect
from dreamjax.game.jobs import NONE_PLAYED, play
from dreamjax.game.rollouts import frame_counts, shard_paths
from dreamjax.memory.latents import encode_rollouts
from dreamjax.memory.training import check_form, train_memory
from dreamjax.recording import record
from dreamjax.run import ledger, pictures
from dreamjax.run.fidelity import calibrate_phase, fidelity_phase
from dreamjax.run.ledger import Inputs, Phase, begin, check_game, dream_of
from dreamjax.run.lineage import GIVEN, bind, keep_given, portable, was_given_a_world
from dreamjax.run.scores import print_results, published, score
from dreamjax.run.settings import CONTROLLERS, WATCH_SEED, Run, RunConfig
from dreamjax.training import devices
from dreamjax.training.checkpoint import Store, versions
from dreamjax.training.files import writable, write_json, writing
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import devices_for
from dreamjax.training.settings import check_guarded
from dreamjax.vision.training import train_vision

BASELINES = ("uniform", "blind")


def collect_phase(run: Run) -> None:
    """Record real episodes."""
    how = begin(run, ledger.COLLECT).values | {"workers": run.config.workers}
    episodes = run.config.collect.episodes
    collect(
        run.task,
        run.rollouts,
        episodes,
        run.seed,
        **how,
        log=run.log,
        processes=devices.processes(),
    )


def vision_phase(run: Run) -> None:
    """Train V on the recorded frames."""
    devices.processes().first_then_all(lambda: frame_counts(run.rollouts, say=run.log.say))
    made = begin(run, ledger.VISION)
    kept = _kept(run, "vision", made) | {"vision": made.values}
    train_vision(run.task, run.rollouts, run.config.vision, run.seed, **kept)


def encode_phase(run: Run) -> None:
    """Encode the recorded frames with V."""
    vision, _ = begin(run, ledger.ENCODE).values
    for part in filter(shard_paths, (run.rollouts, run.played)):
        encode_rollouts(vision, part, run.latents, log=run.log, processes=devices.processes())


def memory_phase(run: Run) -> None:
    """Train M on the latents, judge it on held-out episodes, and bind V, M and starts."""
    made = begin(run, ledger.MEMORY)
    vision, latents, config, began = made.values
    keep_given(run)
    kept = _kept(run, "memory", made) | {"memory": began}
    memory = train_memory(run.task, latents, config, run.seed, **kept)
    if devices.is_first():
        bind(run, vision, memory, latents)


def evolve_phase(run: Run) -> None:
    """Evolve C inside the dream."""
    made = begin(run, ledger.EVOLVE)
    world, params, form, _ = made.values
    kept = _kept(run, "evolve", made) | {"watch": _alarm(run, world, form)}
    kept["directions"] = _directions(run, world, form)
    _save(
        run, "evolve", made, evolve(world.env(), params, form, run.config.evolve, run.seed, **kept)
    )


def _directions(run: Run, world: World, controller: Controller) -> jax.Array | None:
    """The directions [S, D] in which C evolves; None is one weight by one."""
    count, why = run.config.evolve.components, None
    if count is None:
        return None
    if world.start_states is None:
        why = "this world holds no start states of real episodes to find components in"
    if controller.hidden:
        why = "it has a hidden layer"
    if why:
        run.log.say(f"C's weights evolve one by one, not along components: {why}")
        return None
    read = world.memory.features(world.start_states.z, world.start_states.carry)
    return devices.from_first(directions(controller, read, count))


def learn_phase(run: Run) -> None:
    """Learn C inside the dream by policy gradient."""
    made = begin(run, ledger.LEARN)
    (world, params, player, beside), config = made.values, run.config.learn
    dreams = [params, *(dream_of(run, other) for other in beside)]
    if run.task.branched if config.branched is None else config.branched:
        config = dataclasses.replace(config, branched=True)
        dreams = [x.branched(dream) for x, dream in zip((world, *beside), dreams, strict=True)]
    kept = _kept(run, "learn", made) | {"whole": params, "others": dreams[1:]}
    kept["watch"] = _alarm(run, world, form_of(player)[0])
    _save(run, "learn", made, learn(world.env(), dreams[0], player, config, run.seed, **kept))


def _kept(run: Run, folder: str, made: Inputs) -> dict[str, Any]:
    return {"log": run.log, "store": run.store(folder), "meta": made.facts}


def _save(run: Run, phase: str, made: Inputs, found: Evolution | Learning) -> None:
    if not np.isfinite(found.best_score):
        raise ValueError(f"{phase} has evaluated no C yet; raise --{worlds.SEARCHES[phase]}")
    told = portable(made.facts, run.directory)
    found.player.save(run.directory, made.values[0], told | {"phase": phase})


def _alarm(run: Run, world: World, controller: Controller) -> ExploitAlarm | None:
    episodes = run.config.evaluate.watch_episodes
    if not episodes or not devices.is_first():
        return None
    seed = run.seed + WATCH_SEED
    return ExploitAlarm(world, controller, episodes, seed, run.log, run.config.workers)


def evaluate_phase(run: Run) -> None:
    """Play the real game awake, beside policies that were not learnt; write results and film.

    The processes of a job share the games; the first writes.
    """
    world, player = begin(run, ledger.EVALUATE).values
    config = run.config.evaluate
    how = {"log": run.log, "workers": run.config.workers, "processes": devices.processes()}
    own = evaluate(world, player, config.episodes, run.seed, **how)
    ours = devices.all_gather(own.returns, config.episodes)
    beside = {name: _returns(run, name) for name in (*BASELINES, *config.policies)}
    if devices.is_first():
        _report(run, player, ours, beside)
        pictures.film(world, player, run.directory / "dream.gif", run.seed)


def _report(run: Run, player: Player, ours: np.ndarray, beside: dict[str, np.ndarray]) -> None:
    """Write and print the score table, and draw the curves."""
    results = {
        "task": run.task.name,
        "profile": run.task.profile,
        "random": score(beside["uniform"]),
        "blind": score(beside["blind"]),
        "policies": {name: score(beside[name]) for name in run.config.evaluate.policies},
        "paper": published(run.task.paper),
        "ours": score(ours),
        "dream": player.dream,
        "seed": run.seed,
        "versions": versions(),
    }
    write_json(run.directory / "results.json", results)
    print_results(results, run.log)
    metrics = run.directory / "metrics.jsonl"
    if metrics.exists():  # not where a world was handed on
        pictures.draw_curves(metrics, run.directory / "curves.png")


def _returns(run: Run, policy: str) -> np.ndarray:
    """Returns of a policy in the evaluation's games."""
    episodes = run.config.evaluate.baseline_episodes
    seeds = devices.processes().own(evaluation_seeds(run.seed, episodes))
    how = {"workers": run.config.workers, "log": run.log, "phase": policy}
    own = play(run.task, policy, seeds, **how) if seeds else NONE_PLAYED
    return devices.all_gather(own.returns, episodes)


def record_phase(run: Run, phase: Phase = ledger.RECORD) -> None:
    """Record the evolved agent at play, for M to learn from (the paper's iterative procedure)."""
    record(
        begin(run, phase).values,
        log=run.log,
        workers=run.config.workers,
        processes=devices.processes(),
    )


PHASES: dict[str, Callable[[Run], None]] = {
    "collect": collect_phase,
    "train-vision": vision_phase,
    "encode": encode_phase,
    "train-memory": memory_phase,
    "evolve": evolve_phase,
    "learn": learn_phase,
    "evaluate": evaluate_phase,
}
ASIDE = {  # phases that no run needs
    "record": record_phase,
    "fidelity": fidelity_phase,
    "calibrate": calibrate_phase,
}


def phases_of(config: RunConfig) -> tuple[str, ...]:
    """The phases of a whole run, in order."""
    return tuple(name for name in PHASES if name not in CONTROLLERS or name == config.controller)


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
    """
    check_guarded()
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
            start = time.monotonic()
            (PHASES | ASIDE)[name](run)
            devices.wait_for_all(name)
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


def export(directory: Path, target: Path) -> None:
    """Write a run's world, its C and what is known of both as a folder to hand on.

    Raises:
      CheckpointError: the run has no world.
    """
    world, controller = worlds.load_world(directory), Store(directory / "controller")
    files = (directory / f"{name}.json" for name in ("results", "fidelity"))
    facts = {path.stem: json.loads(path.read_text()) if path.exists() else None for path in files}
    facts["world"] = Store(directory / "world").meta()
    player = None
    if controller.steps():
        player = world.player
        facts["controller"] = controller.meta()
    export_world(target, world, player, facts)


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
