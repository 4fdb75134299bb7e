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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamjax.agent import evaluate, evaluation_seeds, record
from dreamjax.controller.components import directions
from dreamjax.controller.evolution import Evolution, evolve
from dreamjax.controller.model import Controller
from dreamjax.controller.policy_gradient import SHARED, Learning, learn
from dreamjax.dream.env import EnvParams
from dreamjax.dream.worlds import (
    SEARCHES,
    World,
    adopt_world,
    export_world,
    load_controller,
    load_world,
    save_controller,
)
from dreamjax.fidelity.compare import ExploitAlarm
from dreamjax.game import policies
from dreamjax.game.jobs import NONE_PLAYED, play
from dreamjax.game.rollouts import UNREADABLE, collect, frame_counts, shard_paths
from dreamjax.memory.latents import encode_rollouts, read_latents
from dreamjax.memory.training import check_form, train_memory
from dreamjax.run import pictures
from dreamjax.run.fidelity import calibrate_phase, fidelity_phase
from dreamjax.run.lineage import (
    begin_again,
    bind,
    controller_to_learn_on,
    is_bound,
    load_vision,
    memory_to_train_on,
    portable,
    vision_to_train_on,
    warn_of_flattery,
    worlds_beside,
)
from dreamjax.run.scores import print_results, published, score
from dreamjax.run.settings import (
    CONTROLLERS,
    WATCH_SEED,
    Run,
    RunConfig,
    check_resumable,
    encoded_data,
    recorded_data,
)
from dreamjax.training.checkpoint import CheckpointError, Store, digest, versions
from dreamjax.training.devices import (
    agreed,
    check_agreement,
    is_first,
    product_dtype,
    team,
    together,
    wait_for_all,
)
from dreamjax.training.files import writable, write_json, writing
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import devices_for
from dreamjax.vision.training import train_vision

BASELINES = ("uniform", "blind")


def collect_phase(run: Run) -> None:
    """Record real episodes."""
    config = run.config.collect
    collect(
        run.task,
        run.rollouts,
        config.episodes,
        run.seed,
        policy=config.policy,
        min_steps=config.min_steps,
        workers=run.config.workers,
        log=run.log,
        team=team(),
    )


def vision_phase(run: Run) -> None:
    """Train V on the recorded frames."""
    counts = team().first_then_all(lambda: frame_counts(run.rollouts, say=run.log.say))
    data = recorded_data(counts)
    products = str(product_dtype(run.config.vision.bfloat16))
    store, meta = run.store("vision"), run.meta("vision", data=data, products=products)
    again = "run collect, which makes again what was set aside, use another run directory"
    check_resumable(store, meta, run.config.vision.grows, again)
    kept = {"log": run.log, "store": store, "meta": meta}
    began = vision_to_train_on(run)
    train_vision(run.seed, run.task, run.rollouts, run.config.vision, vision=began, **kept)


def encode_phase(run: Run) -> None:
    """Encode the recorded frames with V."""
    vision = load_vision(run)
    recorded = [part for part in (run.rollouts, run.played) if part.exists()]
    for part in recorded or [run.rollouts]:
        encode_rollouts(vision, part, run.latents, log=run.log, team=team())


def memory_phase(run: Run) -> None:
    """Train M on the latents, judge it on held-out episodes, and bind V, M and starts."""
    vision, latents = load_vision(run), read_latents(run.latents)
    if latents.vision != digest(vision):
        raise CheckpointError(
            f"{run.latents} was encoded by V {latents.vision[:12]}, but this run's V is "
            f"{digest(vision)[:12]}; run encode again"
        )
    store, config = run.store("memory"), run.config.memory
    made = {"vision": digest(vision), "data": encoded_data(latents), "held_out_by": "seed"}
    meta = run.meta("memory", **made, products=str(product_dtype(config.bfloat16)))
    team().first_then_all(lambda: begin_again(run, meta))
    train_on = f"to train on with these, add --memory.start-from {run.directory}"
    check_resumable(store, meta, config.grows, train_on)
    if store.steps():
        warn_of_flattery(run, run.directory)
    began = memory_to_train_on(run)
    kept = {"log": run.log, "store": store, "meta": meta}
    memory = train_memory(run.seed, run.task, latents, config, memory=began, **kept)
    if is_first() and not is_bound(run, vision, memory):
        bind(run, vision, memory, latents)


def evolve_phase(run: Run) -> None:
    """Evolve C inside the dream."""

    world = load_world(run.directory)

    def find(env, params, controller, **kept):
        num_params, config = controller.num_params, run.config.evolve
        kept["directions"] = _directions(run, world, controller)
        if kept["directions"] is None:
            kept["start"] = controller.initial(jax.random.key(run.seed))
        return evolve(run.seed, env, params, controller, num_params, config, **kept)

    _find_controller(run, "evolve", find)


def _directions(run: Run, world: World, controller: Controller) -> jax.Array | None:
    """The directions [S, D] in which C evolves; None is one weight by one."""
    count, why = run.config.evolve.components, None
    if count is None:
        return None
    if world.moments is None:
        why = "this world holds no moments of real episodes to find components in"
    if controller.hidden:
        why = "it has a hidden layer"
    if why:
        run.log.say(f"C's weights evolve one by one, not along components: {why}")
        return None
    read = world.memory.features(world.moments.z, world.moments.carry)
    return agreed(directions(controller, read, count))


def learn_phase(run: Run) -> None:
    """Learn C inside the dream by policy gradient."""
    world = load_world(run.directory)
    beside = worlds_beside(run, world)

    def find(env, params, controller, **kept):
        config, worlds = run.config.learn, [world, *beside]
        dreams = [params, *(_dream(run, other) for other in beside)]
        if run.task.moments if config.moments is None else config.moments:
            config = dataclasses.replace(config, moments=True)
            dreams = [world.anywhere(dream) for world, dream in zip(worlds, dreams, strict=True)]
        kept |= {"start": controller_to_learn_on(run, controller), "whole": params}
        return learn(run.seed, env, dreams[0], controller, config, others=dreams[1:], **kept)

    _find_controller(run, "learn", find, beside)


def _dream(run: Run, world: World) -> EnvParams:
    """A world's dream as the run's settings have it."""
    dream = run.config.dream
    return dream.of(world).params(dtype=product_dtype(dream.bfloat16))


def _find_controller(
    run: Run,
    phase: str,
    find: Callable[..., Evolution | Learning],
    beside: Sequence[World] = (),
) -> None:
    """`find` the controller that does best in the dream, and save it.

    Worlds `beside` it are dreamt as well.
    """
    world, dream = load_world(run.directory), run.config.dream
    params = _dream(run, world)
    settings = {"products": str(product_dtype(dream.bfloat16))}
    if params.dropout is not None:
        settings["dropout"] = params.dropout
    if beside:
        settings["beside"] = [other.digest()[:12] for other in beside]
    for name in ("temperature", "death_threshold", "death_noise"):
        settings[name] = float(getattr(params, name))
    controller = world.controller(run.config.hidden(run.task, phase))
    if controller.hidden:
        settings["controller_hidden"] = controller.hidden
    store, meta = run.store(phase), run.meta(phase, world=world.digest(), **settings)
    if store.steps() and store.meta().get("world") == digest(world.arrays()):
        meta["world"] = digest(world.arrays())  # begun when identities covered the arrays alone
    check_resumable(store, meta, getattr(run.config, phase).grows)
    kept = {"log": run.log, "store": store, "meta": meta}
    kept["watch"] = _alarm(run, world, controller)
    found = find(world.env(), params, controller, **kept)
    if not np.isfinite(found.best_score):
        raise ValueError(f"{phase} has evaluated no C yet; raise --{SEARCHES[phase]}")
    meta |= portable(meta) | {"phase": phase, "dream": float(found.best_score)}
    save_controller(run.directory, world, found.best, meta, controller)


def _alarm(run: Run, world: World, controller: Controller) -> ExploitAlarm | None:
    episodes = run.config.evaluate.watch_episodes
    if not episodes or not is_first():
        return None
    seed = run.seed + WATCH_SEED
    return ExploitAlarm(world, controller, episodes, seed, run.log, run.config.workers)


def evaluate_phase(run: Run) -> None:
    """Play the real game awake, beside policies that were not learnt; write results and film.

    The processes of a job share the games; the first writes.
    """
    world = load_world(run.directory)
    controller, weights = load_controller(run.directory, world)
    config = run.config.evaluate
    played = {"policy": controller, "log": run.log, "workers": run.config.workers}
    own = evaluate(world, weights, config.episodes, run.seed, team=team(), **played)
    ours = together(own.returns, config.episodes)
    beside = {name: _returns(run, name) for name in (*BASELINES, *config.policies)}
    if not is_first():
        return
    results = {
        "task": run.task.name,
        "profile": run.task.profile,
        "random": score(beside["uniform"]),
        "blind": score(beside["blind"]),
        "policies": {name: score(beside[name]) for name in config.policies},
        "paper": published(run.task.paper),
        "ours": score(ours),
        "dream": Store(run.directory / "controller").meta()["dream"],
        "seed": run.seed,
        "versions": versions(),
    }
    write_json(run.directory / "results.json", results)
    print_results(results, run.log)
    metrics = run.directory / "metrics.jsonl"
    if metrics.exists():  # not where a world was handed on
        pictures.draw_curves(metrics, run.directory / "curves.png")
    pictures.film(world, weights, run.directory / "dream.gif", run.seed, controller)


def _returns(run: Run, policy: str) -> np.ndarray:
    """Returns of a policy in the evaluation's games."""
    episodes, own = run.config.evaluate.baseline_episodes, NONE_PLAYED
    seeds = team().own(evaluation_seeds(run.seed, episodes))
    if seeds:
        how = {"workers": run.config.workers, "log": run.log, "phase": policy}
        own = play(run.task, policy, seeds, **how)
    return together(own.returns, episodes)


def record_phase(run: Run) -> None:
    """Record the evolved agent at play, for M to learn from (the paper's iterative procedure)."""
    world = load_world(run.directory)
    controller, weights = load_controller(run.directory, world)
    episodes, seed = run.config.collect.episodes, run.seed + WATCH_SEED
    how = {"log": run.log, "workers": run.config.workers, "policy": controller, "team": team()}
    record(world, weights, run.played, episodes, seed, **how)


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
AWAKE = (*CONTROLLERS, "evaluate", *ASIDE)  # phases that need no more than a world


def phases_of(config: RunConfig) -> tuple[str, ...]:
    """The phases of a whole run, in order."""
    return tuple(name for name in PHASES if name not in CONTROLLERS or name == config.controller)


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
    phases = phases or phases_of(run.config)
    if "train-memory" in phases:
        check_form(run.task, run.config.memory)
    for name in run.config.evaluate.policies:
        policies.check(name)
    directory = writable(run.directory)
    with _locked(directory) if is_first() else contextlib.nullcontext():
        if is_first():
            _check_game(run)
            if world is not None:
                adopt_world(directory, world, run.task)
        wait_for_all("the directory is ready")
        _check_shares(run.config, phases)
        check_agreement(directory, repr((run.task.name, run.seed, run.config, versions())))
        for name in phases:
            start = time.monotonic()
            (PHASES | ASIDE)[name](run)
            wait_for_all(name)
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


def _check_game(run: Run) -> None:
    """Refuse a directory that holds another game, or another variant of it."""
    for part, profile in profiles(run.directory):
        if profile != run.task.profile:
            raise CheckpointError(
                f"{run.directory / part} is of the game {profile}, not of {run.task.name}'s "
                f"{run.task.profile}; choose another directory"
            )


def profiles(directory: Path) -> Iterator[tuple[str, str]]:
    """`(folder, profile of the game)` of everything in a run directory."""
    for part in ("rollouts", "played", "latents"):
        for path in shard_paths(directory / part)[:1]:
            with contextlib.suppress(*UNREADABLE), np.load(path) as shard:
                yield part, str(shard["profile"])
    for part in ("vision", "memory", "world", *CONTROLLERS):
        store = Store(directory / part)
        if store.steps():
            yield part, store.meta()["profile"]


def export(directory: Path, target: Path) -> None:
    """Write a run's world, its C and what is known of both as a folder to hand on.

    Raises:
      CheckpointError: the run has no world.
    """
    world, controller = load_world(directory), Store(directory / "controller")
    facts = {name: _document(directory / f"{name}.json") for name in ("results", "fidelity")}
    facts["world"] = Store(directory / "world").meta()
    form = weights = None
    if controller.steps():
        form, weights = load_controller(directory, world)
        facts |= {"controller": controller.meta(), "dream": controller.meta()["dream"]}
    export_world(target, world, weights, facts, form)


def _document(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


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
            file.seek(0)
            raise ValueError(
                f"{directory} is in use by process {file.read().strip() or 'unknown'}; "
                "wait for it or choose another directory"
            ) from None
        with writing(path):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
