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

from dreamjax import media
from dreamjax.agent import evaluate, evaluation_seeds
from dreamjax.checkpoint import CheckpointError, Store, digest, versions
from dreamjax.devices import is_first, product_dtype
from dreamjax.dream import check_temperature
from dreamjax.evolution import EvolveConfig, evolve
from dreamjax.files import writable, write_json
from dreamjax.latents import encode_rollouts, read_latents
from dreamjax.logbook import Logbook
from dreamjax.memory_metrics import memory_metrics
from dreamjax.memory_training import MemoryConfig, train_memory
from dreamjax.rollouts import collect
from dreamjax.settings import require_positive
from dreamjax.tasks import Score, Task
from dreamjax.vision import VisionConfig, train_vision
from dreamjax.workers import play
from dreamjax.worlds import (
    World,
    blank_models,
    load_controller,
    load_world,
    save_controller,
    save_world,
)

NUM_STARTS = 1000  # start states kept in a world, as the original's initial_z.json
BASELINES = ("uniform", "blind")


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """What is recorded of the real game."""

    episodes: int = 10_000
    policy: str = "held"  # the paper's: a random action held for 1 to 10 tics
    min_steps: int = 0  # shorter episodes are dropped; the paper keeps more than 100 frames

    def __post_init__(self):
        require_positive(self, "episodes")


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """The dream that C is evolved in."""

    temperature: float | None = None  # tau; None is the task's
    death_threshold: float = 0.0  # M's logit above which a dream ends; 0 is probability 1/2
    bfloat16: bool | None = None  # products in bfloat16; None where the device is faster so

    def __post_init__(self):
        if self.temperature is not None:
            check_temperature(self.temperature)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """How the awake agent is judged."""

    episodes: int = 100
    baseline_episodes: int = 100  # of the random and of the blind policy

    def __post_init__(self):
        require_positive(self, "episodes", "baseline_episodes")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Every setting of a run but the game and the seed."""

    collect: CollectConfig = CollectConfig()
    vision: VisionConfig = VisionConfig()
    memory: MemoryConfig = MemoryConfig()
    dream: DreamConfig = DreamConfig()
    evolve: EvolveConfig = EvolveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    workers: int | None = None  # processes that play the game; None is one a core


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: where it lies, what it is of, and where it reports to."""

    directory: Path
    task: Task
    seed: int
    config: RunConfig
    log: Logbook

    @property
    def rollouts(self) -> Path:
        """Folder of the recorded episodes."""
        return self.directory / "rollouts"

    @property
    def latents(self) -> Path:
        """Folder of the encoded episodes."""
        return self.directory / "latents"

    def store(self, phase: str) -> Store:
        """Training checkpoints of a phase."""
        return Store(self.directory / phase)

    def meta(self, section: str, **hashes: str) -> dict[str, Any]:
        """What a phase's checkpoints record and must agree on to be resumed."""
        return {
            "task": self.task.name,
            "profile": self.task.profile,
            "seed": self.seed,
            "config": dataclasses.asdict(getattr(self.config, section)),
            **hashes,
        }


GROWS = ("steps", "generations", "episodes")  # settings that a later call may raise


def check_resumable(store: Store, meta: dict[str, Any]) -> None:
    """Refuse to go on with checkpoints made under other settings.

    Raises:
      CheckpointError: names the first difference and the remedy.
    """
    if not store.steps():
        return
    found = store.meta()
    wanted = _settings(meta)
    for name, value in _settings(found).items():
        if name in wanted and wanted[name] != value:
            raise CheckpointError(
                f"{store.directory} was made with {name}={value}, now {name}={wanted[name]}; "
                "use another run directory, or remove that folder to make it anew"
            )


def _settings(meta: dict[str, Any]) -> dict[str, Any]:
    flat = {name: meta[name] for name in meta if name not in ("config", "versions", "step")}
    config = {name: value for name, value in meta["config"].items() if name not in GROWS}
    return json.loads(json.dumps(flat | config))  # as they read back: tuples are lists


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
    )


def vision_phase(run: Run) -> None:
    """Train V on the recorded frames."""
    store, meta = run.store("vision"), run.meta("vision")
    check_resumable(store, meta)
    train_vision(
        run.seed, run.task, run.rollouts, run.config.vision, log=run.log, store=store, meta=meta
    )


def load_vision(run: Run):
    """The trained V of a run."""
    vision, _ = blank_models(run.task)
    return run.store("vision").load(vision, prefix=".model")[0]


def encode_phase(run: Run) -> None:
    """Encode the recorded frames with V."""
    encode_rollouts(load_vision(run), run.rollouts, run.latents, log=run.log)


def memory_phase(run: Run) -> None:
    """Train M on the latents, judge it on held-out episodes, and bind V, M and starts."""
    vision, latents = load_vision(run), read_latents(run.latents)
    if latents.vision != digest(vision):
        raise CheckpointError(
            f"{run.latents} was encoded by V {latents.vision[:12]}, but this run's V is "
            f"{digest(vision)[:12]}; run encode again"
        )
    store, meta = run.store("memory"), run.meta("memory", vision=digest(vision))
    check_resumable(store, meta)
    memory = train_memory(
        run.seed, run.task, latents, run.config.memory, log=run.log, store=store, meta=meta
    )
    mu, logvar = latents.starts(NUM_STARTS)
    world = World(run.task, vision, memory, jax.numpy.asarray(mu), jax.numpy.asarray(logvar))
    _, held = latents.split(run.config.memory.held_out, run.seed)
    metrics = memory_metrics(memory, held)
    run.log.log("held-out", store.steps()[-1], metrics)
    run.log.say("M on held-out episodes: " + _listed(metrics))
    save_world(run.directory, world, run.meta("memory"))


def evolve_phase(run: Run) -> None:
    """Evolve C inside the dream."""
    _must_dream(run.task)
    world = load_world(run.directory)
    dream, controller = run.config.dream, world.controller()
    dtype = product_dtype(dream.bfloat16)
    params = world.params(dream.temperature, dream.death_threshold, dtype)
    store = run.store("evolve")
    settings = {"temperature": float(params.temperature), "products": str(dtype)}
    settings["death_threshold"] = dream.death_threshold
    meta = run.meta("evolve", world=world.digest(), **settings)
    check_resumable(store, meta)
    found = evolve(
        run.seed,
        world.env(),
        params,
        controller,
        controller.num_params,
        run.config.evolve,
        log=run.log,
        store=store,
        meta=meta,
    )
    save_controller(run.directory, world, found.best, {**meta, "dream": float(found.best_score)})


def evaluate_phase(run: Run) -> None:
    """Play the real game awake, beside the policies that never look; write results and film."""
    world = load_world(run.directory)
    weights = load_controller(run.directory, world)
    config = run.config.evaluate
    ours = evaluate(
        world, weights, config.episodes, run.seed, log=run.log, workers=run.config.workers
    )
    seeds = evaluation_seeds(run.seed, config.baseline_episodes)
    blind = {
        name: play(run.task, name, seeds, workers=run.config.workers, log=run.log, phase=name)
        for name in BASELINES
    }
    results = {
        "task": run.task.name,
        "profile": run.task.profile,
        "random": score(blind["uniform"].returns),
        "blind": score(blind["blind"].returns),
        "paper": published(run.task.paper),
        "ours": score(ours.returns),
        "dream": Store(run.directory / "controller").meta()["dream"],
        "seed": run.seed,
        "versions": versions(),
    }
    write_json(run.directory / "results.json", results)
    media.draw_curves(run.directory / "metrics.jsonl", run.directory / "curves.png")
    media.film(world, weights, run.directory / "dream.gif", run.seed)
    print_results(results, run.log)


PHASES: dict[str, Callable[[Run], None]] = {
    "collect": collect_phase,
    "train-vision": vision_phase,
    "encode": encode_phase,
    "train-memory": memory_phase,
    "evolve": evolve_phase,
    "evaluate": evaluate_phase,
}


def run_phases(run: Run, phases: tuple[str, ...] = tuple(PHASES)) -> None:
    """Do the named phases, one process at a time in a directory.

    Raises:
      ValueError: a directory that cannot be written, is in use, or holds another game.
    """
    directory = writable(run.directory)
    if "evolve" in phases:
        _must_dream(run.task)
    with _locked(directory) if is_first() else contextlib.nullcontext():
        write_json(
            directory / "config.json",
            {
                "task": run.task.name,
                "profile": run.task.profile,
                "seed": run.seed,
                "config": dataclasses.asdict(run.config),
                "versions": versions(),
            },
        )
        for name in phases:
            start = time.monotonic()
            PHASES[name](run)
            run.log.log("seconds", 0, {name: time.monotonic() - start})


def _must_dream(task: Task) -> None:
    if not task.dies:
        raise ValueError(
            f"the dream of {task.name} has no reward yet, so C cannot be evolved in it; "
            "use take-cover, or only collect, train-vision, encode and train-memory"
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; it ends with the process, so it is never stale."""
    with open(directory / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{directory} is in use by process {file.read().strip() or 'unknown'}; "
                "wait for it or choose another directory"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def score(returns: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation, count and 95 % interval of the mean (normal) of returns [n]."""
    returns = np.asarray(returns, float)
    std = returns.std(ddof=1) if len(returns) > 1 else 0.0
    return _scored(returns.mean(), std, len(returns))


def published(paper: Score) -> dict[str, Any]:
    """A published score in the form of `score`."""
    return _scored(paper.mean, paper.std, paper.n)


def _scored(mean: float, std: float, n: int) -> dict[str, Any]:
    half = 1.96 * std / np.sqrt(n)
    ci95 = [round(float(mean - half), 1), round(float(mean + half), 1)]
    return {"mean": round(float(mean), 1), "std": round(float(std), 1), "n": n, "ci95": ci95}


def print_results(results: dict[str, Any], log: Logbook) -> None:
    """The score table."""
    log.say(f"{results['task']} ({results['profile']}), real game, return per episode")
    log.say(f"{'':<10}{'mean':>8} {'std':>8} {'n':>6}   95 % interval of the mean")
    for name in ("random", "blind", "paper", "ours"):
        row = results[name]
        low, high = row["ci95"]
        scored = f"{row['mean']:>8.0f} ±{row['std']:>7.0f} {row['n']:>6}"
        log.say(f"{name:<10}{scored}   {low:.0f} to {high:.0f}")
    log.say(f"in the dream, ours: {results['dream']:.0f}")


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
