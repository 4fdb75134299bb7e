"""The whole of it: real game -> V -> M -> dream -> C -> real game, in one run directory.

Paper: section "VizDoom Experiment: Procedure". Each phase writes one folder of the run
directory, records the settings it was made with, and does only what is not there yet; so the
same call resumes a run that was stopped anywhere.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from dreamjax import fidelity, media
from dreamjax.agent import evaluate, evaluation_seeds, record
from dreamjax.checkpoint import CheckpointError, Store, digest, versions
from dreamjax.departures import WINDOW, departures
from dreamjax.devices import is_first, product_dtype, wait_for_all
from dreamjax.dream import check_death_noise, check_death_threshold, check_temperature
from dreamjax.evolution import Evolution, EvolveConfig, evolve
from dreamjax.files import writable, write_json, writing
from dreamjax.latents import LatentSequences, encode_rollouts, read_latents
from dreamjax.learning import LearnConfig, Learning, learn
from dreamjax.logbook import Logbook
from dreamjax.memory import MDNRNN, VARIANT
from dreamjax.memory_metrics import calibrated_threshold, memory_metrics
from dreamjax.memory_training import MemoryConfig, train_memory
from dreamjax.policies import play_steps
from dreamjax.real import make_env
from dreamjax.rollouts import UNREADABLE, collect, frame_counts, shard_paths
from dreamjax.settings import SettingError, require_positive, require_within
from dreamjax.tasks import Score, Task
from dreamjax.vision import VAE, VisionConfig, train_vision
from dreamjax.workers import play
from dreamjax.worlds import (
    World,
    adopt_world,
    blank_models,
    export_world,
    load_controller,
    load_world,
    save_controller,
    save_world,
    world_meta,
)

NUM_STARTS = 1000  # start states kept in a world, as the original's initial_z.json
WATCH_SEED = 1000  # added to a run's seed, so that the games watched are never those of its score
BASELINES = ("uniform", "blind")
SIDES = ("dream", "real")


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """What is recorded of the real game."""

    episodes: int = 10_000
    policy: str = "held"  # the paper's: a random action held for 1 to 10 tics
    min_steps: int = 0  # shorter episodes are dropped; the paper keeps more than 100 frames

    def __post_init__(self):
        require_positive(self, "episodes")
        require_within(self, min_steps="[0, inf)")


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """The dream that C grows in."""

    temperature: float | None = None  # tau; None is the task's
    death_threshold: float | None = None  # of M's logit; the paper's is 0, None is as calibrated
    death_noise: float | None = None  # the paper's is 0; 1, and None, sample deaths
    bfloat16: bool | None = None  # products in bfloat16; None where the device is faster so

    def __post_init__(self):
        if self.temperature is not None:
            check_temperature(self.temperature)
        if self.death_noise is not None:
            check_death_noise(self.death_noise)
        if self.death_threshold is not None:
            check_death_threshold(self.death_threshold)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """How the awake agent is judged."""

    episodes: int = 100
    baseline_episodes: int = 100  # of the random and of the blind policy
    watch_episodes: int = 0  # real ones at each of evolve's evaluations, to warn of exploits

    def __post_init__(self):
        require_positive(self, "episodes", "baseline_episodes")
        require_within(self, watch_episodes="[0, inf)")


@dataclasses.dataclass(frozen=True)
class FidelityConfig:
    """How a dream is compared with the game."""

    episodes: int = 512  # dreams of each policy that never looks
    real_episodes: int = 200  # real ones
    controllers: int = 30  # of every quality
    controller_episodes: int = 16  # real ones of each; its dreams are 16 times as many
    seen: int = 30  # real episodes whose frames V gives back and whose flashes are counted
    horizon: int = 60  # steps dreamt on from the middle of real episodes
    young: int = 800  # age of the games that dreams leave, to see whether they stay as deadly

    def __post_init__(self):
        require_positive(self, *(field.name for field in dataclasses.fields(self)))
        if self.young % WINDOW:
            raise SettingError(f"fidelity.young must be a multiple of {WINDOW}, got {self.young}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Every setting of a run but the game and the seed."""

    collect: CollectConfig = CollectConfig()
    vision: VisionConfig = VisionConfig()
    memory: MemoryConfig = MemoryConfig()
    dream: DreamConfig = DreamConfig()
    evolve: EvolveConfig = EvolveConfig()
    learn: LearnConfig = LearnConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    fidelity: FidelityConfig = FidelityConfig()
    controller: Literal["evolve", "learn"] = "evolve"  # how `run` finds C; the paper evolves it
    workers: int | None = None  # processes that play the game; None is one a core
    save_seconds: float = 120.0  # between two checkpoints of a training; 0 is after every call

    def __post_init__(self):
        require_within(self, save_seconds="[0, inf)")
        if self.workers is not None and self.workers < 1:
            raise SettingError(f"workers must be at least 1, got {self.workers}")


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
    def played(self) -> Path:
        """Folder of the episodes that the evolved agent recorded."""
        return self.directory / "played"

    @property
    def latents(self) -> Path:
        """Folder of the encoded episodes."""
        return self.directory / "latents"

    def store(self, phase: str) -> Store:
        """Training checkpoints of a phase."""
        return Store(self.directory / phase, seconds=self.config.save_seconds)

    def meta(self, section: str, **facts: Any) -> dict[str, Any]:
        """What a phase's checkpoints record and must agree on to be resumed."""
        return {
            "task": self.task.name,
            "profile": self.task.profile,
            "seed": self.seed,
            "config": dataclasses.asdict(getattr(self.config, section)),
            **facts,
        }


def check_resumable(
    store: Store, meta: dict[str, Any], grows: tuple[str, ...], other_data: str = "collect"
) -> None:
    """Refuse to go on with checkpoints made under other settings, or from other data.

    Args:
      store: the phase's checkpoints.
      meta: what they are to have been made with.
      grows: settings that may have been raised, or lowered, since.
      other_data: what to do where the data has changed.

    Raises:
      CheckpointError: names the first difference and the remedy.
    """
    if not store.steps():
        return
    wanted = _settings(meta, grows)
    for name, value in _settings(store.meta(), grows).items():
        if name in wanted and wanted[name] != value:
            remedy = other_data if name == "data" else "use another run directory"
            raise CheckpointError(
                f"{store.directory} was made with {name}={value}, now {name}={wanted[name]}; "
                f"{remedy}, or remove that folder to make it anew"
            )


def _settings(meta: dict[str, Any], grows: tuple[str, ...]) -> dict[str, Any]:
    flat = {name: meta[name] for name in meta if name not in ("config", "versions", "step")}
    loose = (*grows, "bfloat16") if "products" in meta else grows  # what was wished: see products
    config = {name: value for name, value in meta["config"].items() if name not in loose}
    return json.loads(json.dumps(flat | config))  # as they read back: tuples are lists


def recorded_data(counts: dict[Path, int]) -> str:
    """A name for the frames that V is trained on, of each shard; it changes when they do."""
    return _named(sum(counts.values()), [(path.name, n) for path, n in counts.items()])


def encoded_data(latents: LatentSequences) -> str:
    """A name for the episodes that M is trained on; it changes when they do."""
    return _named(len(latents.mu), latents.seeds.tolist(), latents.lengths.tolist())


def _named(frames: int, *identity: Any) -> str:
    sha = hashlib.sha256(repr(identity).encode()).hexdigest()
    return f"{frames:,} frames ({sha[:8]})"


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
    data = recorded_data(frame_counts(run.rollouts, say=run.log.say))
    products = str(product_dtype(run.config.vision.bfloat16))
    store, meta = run.store("vision"), run.meta("vision", data=data, products=products)
    again = "run collect, which makes again what was set aside, use another run directory"
    check_resumable(store, meta, run.config.vision.grows, again)
    train_vision(
        run.seed, run.task, run.rollouts, run.config.vision, log=run.log, store=store, meta=meta
    )


def load_vision(run: Run):
    """The V that a run trained, or else the V of the world that was handed to it."""
    store = run.store("vision")
    if not store.directory.exists() and (run.directory / "world").exists():
        return load_world(run.directory).vision
    vision, _ = blank_models(run.task)
    return store.load(vision, prefix=".model")[0]


def encode_phase(run: Run) -> None:
    """Encode the recorded frames with V."""
    vision = load_vision(run)
    recorded = [part for part in (run.rollouts, run.played) if part.exists()]
    for part in recorded or [run.rollouts]:
        encode_rollouts(vision, part, run.latents, log=run.log)


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
    _begin_again(run, meta)
    train_on = f"to train on with these, add --memory.start-from {run.directory}"
    check_resumable(store, meta, config.grows, train_on)
    if store.steps():
        _warn_of_flattery(run, run.directory)
    began = _memory_to_train_on(run)
    kept = {"log": run.log, "store": store, "meta": meta}
    memory = train_memory(run.seed, run.task, latents, config, memory=began, **kept)
    if not _is_bound(run, vision, memory):
        _bind(run, vision, memory, latents)


def _is_bound(run: Run, vision: VAE, memory: MDNRNN) -> bool:
    """Whether the run's world is of these V and M already."""
    store = run.store("world")
    if not store.steps():
        return False
    found = store.meta()
    return (found["vision"], found["memory"]) == (digest(vision), digest(memory))


def _bind(run: Run, vision: VAE, memory: MDNRNN, latents: LatentSequences) -> None:
    """Judge and calibrate M on the held-out episodes; save V, M and starts as the run's world."""
    made = run.store("memory").meta()
    _, held = latents.split(made["config"]["held_out"])
    threshold = calibrated_threshold(memory, held)
    starts = (jax.numpy.asarray(part) for part in latents.starts(NUM_STARTS))
    world = World(run.task, vision, memory, *starts, death_threshold=threshold, death_noise=1.0)
    metrics = memory_metrics(memory, held) | {"death_threshold": threshold}
    run.log.log("held-out", made["step"], metrics)
    run.log.say("M on held-out episodes: " + _listed(metrics))
    save_world(run.directory, world, _portable(made))


def _begin_again(run: Run, meta: dict[str, Any]) -> None:
    """Set M's checkpoints aside where `start_from` asks to train this run's own M on new data."""
    store, source = run.store("memory"), run.config.memory.start_from
    if source is None or not is_first() or not store.steps():
        return
    found = store.meta()
    if Path(source).resolve() != run.directory.resolve() or found.get("data") == meta["data"]:
        return
    memory, _ = _memory_of(source, run.task)
    if digest(memory) != digest(load_world(run.directory).memory):
        raise CheckpointError(
            f"M of {run.directory} has not been trained to its end; run train-memory without "
            "--memory.start-from on its old data first, or remove its folder to make it anew"
        )
    kept = next(p for n in itertools.count(1) if not (p := run.directory / f"memory-{n}").exists())
    store.directory.rename(kept)
    run.log.say(f"M so far is kept in {kept}; training it on")


def _portable(made: dict[str, Any]) -> dict[str, Any]:
    """What M was made with, to hand on with a world: of the run that it began in, no path."""
    source = made["config"]["start_from"]
    name = None if source is None else Path(source).resolve().name
    told = {key: value for key, value in made.items() if key not in ("format", "versions", "step")}
    return told | {"steps": made["step"], "config": made["config"] | {"start_from": name}}


def _memory_to_train_on(run: Run) -> MDNRNN | None:
    """The M that `start_from` names, where this run has none yet."""
    config = run.config.memory
    if config.start_from is None or run.store("memory").steps():
        return None
    memory, theirs = _memory_of(config.start_from, run.task)
    _warn_of_flattery(run, config.start_from)
    ours = digest(load_vision(run))
    if theirs != ours:
        raise CheckpointError(
            f"M of {config.start_from} was trained on V {theirs[:12]}, but this run's V is "
            f"{ours[:12]}; start from an M of the same V, or from nothing"
        )
    _check_grows(memory, config)
    memory.clock, memory.keys = config.clock, config.keys
    return memory


def _warn_of_flattery(run: Run, source: Path | str) -> None:
    if not _held_out_by_seed(_meta_of(source)):
        run.log.say(
            f"M of {source} was trained when episodes were held out otherwise, so it may have seen "
            "some that are held out now: what is said of those flatters"
        )


def _meta_of(source: Path | str) -> dict[str, Any]:
    """How the M that `_memory_of` gives was made."""
    store = Store(Path(source) / "memory")
    return store.meta() if store.steps() else world_meta(source)


def _held_out_by_seed(meta: Any) -> bool:
    """Whether M was kept from the episodes that are held out by seed, as far as is told."""
    if not isinstance(meta, dict):
        return False
    told = meta.get("held_out_by") == "seed"
    return told or any(_held_out_by_seed(meta.get(part)) for part in ("world", "made"))


def _memory_of(source: str, task: Task) -> tuple[MDNRNN, str]:
    """The newest M of a run, or that of a world, and the digest of its V."""
    store = Store(Path(source) / "memory")
    if not store.steps():
        world = load_world(source)
        return world.memory, digest(world.vision)
    meta = store.meta()
    had = {name: meta["config"].get(name, 0) for name in VARIANT}
    memory = store.load(blank_models(task, **had)[1], prefix=".memory")[0]
    return memory, meta.get("vision", "unknown")


def _check_grows(memory: MDNRNN, config: MemoryConfig) -> None:
    """An M may gain what sets it apart from the paper's, but neither change nor lose it."""
    for name in VARIANT:
        old, new = getattr(memory, name), getattr(config, name)
        if old not in (0, new):
            flag = name.replace("_", "-")
            raise CheckpointError(
                f"M of {config.start_from} has {name}={old}, but this run asks for {new}; "
                f"set --memory.{flag} as it was"
            )


def evolve_phase(run: Run) -> None:
    """Evolve C inside the dream."""

    def find(env, params, controller, **kept):
        num_params, config = controller.num_params, run.config.evolve
        return evolve(run.seed, env, params, controller, num_params, config, **kept)

    _find_controller(run, "evolve", find)


def learn_phase(run: Run) -> None:
    """Learn C inside the dream by policy gradient."""

    def find(env, params, controller, **kept):
        return learn(run.seed, env, params, controller, run.config.learn, **kept)

    _find_controller(run, "learn", find)


def _find_controller(run: Run, phase: str, find: Callable[..., Evolution | Learning]) -> None:
    """`find` the controller that does best in the dream, and save it."""
    _must_dream(run.task)
    world, dream = load_world(run.directory), run.config.dream
    dtype = product_dtype(dream.bfloat16)
    params = world.params(dream.temperature, dream.death_threshold, dtype, dream.death_noise)
    settings = {"products": str(dtype)}
    for name in ("temperature", "death_threshold", "death_noise"):
        settings[name] = float(getattr(params, name))
    store, meta = run.store(phase), run.meta(phase, world=world.digest(), **settings)
    if store.steps() and store.meta().get("world") == digest(world.arrays()):
        meta["world"] = digest(world.arrays())  # begun when identities covered the arrays alone
    check_resumable(store, meta, getattr(run.config, phase).grows)
    kept = {"log": run.log, "store": store, "meta": meta, "watch": _alarm(run, world)}
    found = find(world.env(), params, world.controller(), **kept)
    meta |= {"phase": phase, "dream": float(found.best_score)}
    save_controller(run.directory, world, found.best, meta)


def _alarm(run: Run, world: World) -> fidelity.ExploitAlarm | None:
    episodes = run.config.evaluate.watch_episodes
    if not episodes:
        return None
    seed = run.seed + WATCH_SEED
    return fidelity.ExploitAlarm(world, episodes, seed, run.log, run.config.workers)


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
    print_results(results, run.log)
    metrics = run.directory / "metrics.jsonl"
    if metrics.exists():  # not where a world was handed on
        media.draw_curves(metrics, run.directory / "curves.png")
    media.film(world, weights, run.directory / "dream.gif", run.seed)


def record_phase(run: Run) -> None:
    """Record the evolved agent at play, for M to learn from (the paper's iterative procedure)."""
    world = load_world(run.directory)
    weights, seed = load_controller(run.directory, world), run.seed + WATCH_SEED
    episodes, workers = run.config.collect.episodes, run.config.workers
    record(world, weights, run.played, episodes, seed, log=run.log, workers=workers)


def fidelity_phase(run: Run) -> None:
    """Compare the dream with the game; write fidelity.json."""
    world, config = load_world(run.directory), run.config.fidelity
    best = load_controller(run.directory, world)
    found = {"policies": {}}
    if run.latents.exists():
        _, held = read_latents(run.latents).split(run.config.memory.held_out)
        found["deaths"] = memory_metrics(world.memory, held)
        found["open_loop"] = fidelity.open_loop(world, held, horizon=config.horizon, seed=run.seed)
        if (held.lengths > config.young).any():
            young = {"young": config.young, "old": run.task.max_steps}
            found["departures"] = departures(world, best, held, **young, seed=run.seed)
    for name in fidelity.BLINDFOLDED:
        seeds = evaluation_seeds(run.seed + WATCH_SEED, config.real_episodes)
        played = play(run.task, name, seeds, workers=run.config.workers, log=run.log, phase=name)
        dreamt = fidelity.dreamt_lengths(world, name, config.episodes, run.seed)
        found["policies"][name] = _compared(run.task, dreamt, played.lengths)
    found["policies"]["C"] = _compared(run.task, *_lengths_of(run, world, best))
    games = _unseen_games(run)
    found["vision"] = fidelity.reconstruction(world, np.concatenate(games))
    found["flashes"] = _flashes(run, world, games)
    found["controllers"] = _ranked(run, world, best)
    write_json(run.directory / "fidelity.json", found)
    print_fidelity(found, run.log)


def _unseen_games(run: Run) -> list[np.ndarray]:
    """Frames of each of some `held` games that are never recorded."""
    env = make_env(run.task)
    try:
        return [
            np.stack([step[0] for step in play_steps(env, "held", seed)])
            for seed in evaluation_seeds(run.seed + WATCH_SEED, run.config.fidelity.seen)
        ]
    finally:
        env.close()


def _flashes(run: Run, world: World, games: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Flashes of pain in `held` games and dreams."""
    longest = max(len(frames) for frames in games)
    dreams = 4 * len(games)
    dreamt = fidelity.dreamt_redness(world, "held", dreams, longest, run.seed)
    real = [fidelity.redness(frames / np.float32(255)) for frames in games]
    level = run.task.flash_redness
    return {"dream": fidelity.flashes(dreamt, level), "real": fidelity.flashes(real, level)}


def _lengths_of(run: Run, world: World, best: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Steps that C survives in the dream, at the tau it was evolved at, and in the game."""
    config, tau = run.config.fidelity, run.config.dream.temperature
    dreamt = fidelity.dreamt_returns(world, best[None], config.episodes, run.seed, tau)
    episodes, seed = config.real_episodes, run.seed + WATCH_SEED
    real = evaluate(world, best, episodes, seed, log=run.log, workers=run.config.workers)
    return np.asarray(dreamt.steps[0]), real.lengths


def _compared(task: Task, dreamt: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Survival [E] in the dream and in the game, and deaths by age."""
    return {
        "dream": score(dreamt),
        "real": score(real),
        "ratio": round(float(dreamt.mean() / real.mean()), 3),
        "dream_hazard": fidelity.hazard(dreamt, task.max_steps),
        "real_hazard": fidelity.hazard(real, task.max_steps),
    }


def _ranked(run: Run, world: World, best: jax.Array) -> dict[str, Any]:
    """Scores of controllers of every quality, in the dream and in the game, and how they agree."""
    config = run.config.fidelity
    weights = fidelity.controllers_between(best, config.controllers, run.seed)
    rollouts = 16 * config.controller_episodes
    dreamt = fidelity.dreamt_scores(world, weights, rollouts, run.seed)
    real = []
    with run.log.progress("controllers", len(weights), "controllers") as bar:
        for one in weights:
            episodes, seed = config.controller_episodes, run.seed + WATCH_SEED
            played = evaluate(world, one, episodes, seed, workers=run.config.workers)
            real.append(float(played.returns.mean()))
            bar.advance(1, f"real {real[-1]:.0f}")
    agreed = fidelity.rank_correlation(dreamt, real)
    return {"dream": [float(x) for x in dreamt], "real": real, **agreed}


def print_fidelity(found: dict[str, Any], log: Logbook) -> None:
    """The dream beside the game."""
    log.say(f"{'survival':<10}{'dream':>12}{'game':>14}{'ratio':>8}")
    for name, row in found["policies"].items():
        dream, real = (f"{row[side]['mean']:.0f} ± {row[side]['std']:.0f}" for side in SIDES)
        log.say(f"{name:<10}{dream:>12}{real:>14}{row['ratio']:>8.2f}")
    ages = ", ".join(f"{age}" for age in fidelity.AGES)
    log.say(f"C's deaths in 1,000 steps, between the ages {ages}:")
    for side in SIDES:
        rates = "  ".join(f"{x:.2f}" for x in found["policies"]["C"][f"{side}_hazard"])
        log.say(f"  {side:<8}{rates}")
    log.say("V on unseen frames: " + _listed(found["vision"]))
    for side, row in found["flashes"].items():
        log.say(f"flashes of pain, {side}: {row['rate']:.2f} in 1,000 steps of {row['length']:.0f}")
    ranked = found["controllers"]
    log.say(f"rank correlation over {ranked['n']} controllers: {ranked['rho']:.2f}")
    if "open_loop" in found:
        nll, drift = found["open_loop"]["nll"], found["open_loop"]["drift"]
        log.say(f"nats a dimension, open loop: {nll[0]:.2f} at once, {nll[-1]:.2f} at the end")
        log.say(f"drift of the latents: {drift[0]:.2f} at once, {drift[-1]:.2f} at the end")
        log.say("deaths: " + _listed(found["deaths"]))
    if "departures" in found:
        row = found["departures"]
        dreaming = "  ".join(f"{x:.2f}" for x in row["dreaming"])
        log.say(
            f"deaths in 1,000 steps of old games: {row['game']:.2f}, expected while M watches: "
            f"{row['watching']:.2f}, in dreams that leave them, every {WINDOW} steps: {dreaming}"
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
CONTROLLERS = ("evolve", "learn")  # phases that find C; a run does one of them
ASIDE = {"record": record_phase, "fidelity": fidelity_phase}  # phases that no run needs
AWAKE = (*CONTROLLERS, "evaluate", "record", "fidelity")  # phases that need no more than a world


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
      ValueError: a directory that cannot be written, is in use, or holds another game.
    """
    phases, directory = phases or phases_of(run.config), writable(run.directory)
    if set(phases) & set(CONTROLLERS):
        _must_dream(run.task)
    with _locked(directory) if is_first() else contextlib.nullcontext():
        if is_first():
            _check_game(run)
            if world is not None:
                adopt_world(directory, world, run.task)
        wait_for_all("the directory is ready")
        for name in phases:
            start = time.monotonic()
            (PHASES | ASIDE)[name](run)
            run.log.log("seconds", 0, {name: time.monotonic() - start})


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
    weights = None
    if controller.steps():
        weights = load_controller(directory, world)
        facts |= {"controller": controller.meta(), "dream": controller.meta()["dream"]}
    export_world(target, world, weights, facts)


def _document(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _must_dream(task: Task) -> None:
    if not task.dies:
        raise ValueError(
            f"the dream of {task.name} has no reward yet, so C cannot be evolved in it; "
            "use take-cover, or only collect, train-vision, encode and train-memory"
        )


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
