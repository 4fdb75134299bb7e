"""Which M or C a training goes on from, and what a run's world is made of."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.controller.model import Controller
from dreamjax.dream.moments import moments_of
from dreamjax.dream.worlds import (
    World,
    blank_models,
    first_heads,
    folder_of,
    load_controller,
    load_world,
    save_world,
    world_meta,
)
from dreamjax.memory.kinds import kind_of
from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.metrics import calibrated_threshold, memory_metrics
from dreamjax.memory.model import FORM, VARIANT, Memory
from dreamjax.memory.training import MemoryConfig
from dreamjax.run.scores import listed
from dreamjax.run.settings import Run
from dreamjax.tasks import Task
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.training.devices import is_first
from dreamjax.vision.model import VAE

NUM_STARTS = 1000  # start states kept in a world, as the original's initial_z.json


def load_vision(run: Run):
    """The V that a run trained, or else the V of the world that was handed to it."""
    store = run.store("vision")
    if not store.directory.exists() and (run.directory / "world").exists():
        return load_world(run.directory).vision
    vision, _ = blank_models(run.task)
    return store.load(vision, prefix=".model")[0]


def vision_to_train_on(run: Run) -> VAE | None:
    """The V that `start_from` names, where this run has none yet."""
    source = run.config.vision.start_from
    if source is None or run.store("vision").steps():
        return None
    vision = _vision_of(source, run.task)
    if vision.mu.bias.shape != (run.task.latent_size,):
        raise CheckpointError(
            f"V of {source} has {vision.mu.bias.shape[0]} latents, but {run.task.name} has "
            f"{run.task.latent_size}; start from a V of this game, or from nothing"
        )
    return vision


def _vision_of(source: Path | str, task: Task) -> VAE:
    """The newest V of a run, or that of a world."""
    store = Store(folder_of(source) / "vision")
    if not store.steps():
        return load_world(source).vision
    return store.load(blank_models(task)[0], prefix=".model")[0]


def _is_trained_on_from(run: Run, theirs: str) -> bool:
    """Whether the run's V began as the V of that digest, so that M finds its latents again."""
    store = run.store("vision")
    source = store.meta()["config"].get("start_from") if store.steps() else None
    return source is not None and digest(_vision_of(source, run.task)) == theirs


def is_bound(run: Run, vision: VAE, memory: Memory) -> bool:
    """Whether the run's world is of these V and M already."""
    store = run.store("world")
    if not store.steps():
        return False
    found = store.meta()
    return (found["vision"], found["memory"]) == (digest(vision), digest(memory))


def bind(run: Run, vision: VAE, memory: Memory, latents: LatentSequences) -> None:
    """Judge and calibrate M on the held-out episodes; save V, M and starts as the run's world."""
    made = run.store("memory").meta()
    train, held = latents.split(made["config"]["held_out"])
    threshold = calibrated_threshold(memory, held)
    starts = (jnp.asarray(part) for part in latents.starts(NUM_STARTS))
    tuned = {"death_threshold": threshold, "death_noise": 1.0}
    tuned["dropout"] = made["config"].get("dropout") or None
    moments = moments_of(memory, train, run.config.memory.moments, run.seed)
    world = World(run.task, vision, memory, *starts, **tuned, moments=moments)
    metrics = memory_metrics(memory, held) | {"death_threshold": threshold}
    run.log.log("held-out", made["step"], metrics)
    run.log.say("M on held-out episodes: " + listed(metrics))
    save_world(run.directory, world, _made(made))


def begin_again(run: Run, meta: dict[str, Any]) -> None:
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


def _made(made: dict[str, Any]) -> dict[str, Any]:
    """What M was made with, to hand on with a world."""
    untold = "format", "versions", "step", "total"
    told = {key: value for key, value in made.items() if key not in untold}
    return portable(told) | {"steps": made["step"]}


def portable(made: dict[str, Any]) -> dict[str, Any]:
    """`made`, to hand on: of what M or C went on from, or dreamt beside, the names, no paths."""
    config = dict(made["config"])
    if config.get("start_from") is not None:
        config["start_from"] = Path(config["start_from"]).resolve().name
    if "worlds" in config:
        config["worlds"] = [Path(source).resolve().name for source in config["worlds"]]
    return made | {"config": config}


def worlds_beside(run: Run, world: World) -> list[World]:
    """The worlds that `learn.worlds` names, in which the same C can dream."""
    found = []
    for source in run.config.learn.worlds:
        other = load_world(source)
        if _sizes(other) != _sizes(world):
            raise CheckpointError(
                f"M of {source} is not of the same form as this run's, so one C cannot read both; "
                "name a world whose M was trained on from the same one"
            )
        if _in_half(other.vision) != _in_half(world.vision):
            raise CheckpointError(
                f"{source} has another V than this run, so their latents differ; name a world "
                "whose M was trained on from the same one"
            )
        found.append(other)
    return found


def _sizes(world: World) -> Any:
    """The form of a world's M."""
    return jax.tree.structure(world.memory), [x.shape for x in jax.tree.leaves(world.memory)]


def _in_half(vision: VAE) -> str:
    """What V and its copy in a world to hand on have in common."""
    return digest(jax.tree.map(lambda x: x.astype(jnp.float16), vision))


def controller_to_learn_on(run: Run, controller: Controller) -> jax.Array | None:
    """The weights [D] that `start_from` names, perhaps of another world, where none are yet."""
    source = run.config.learn.start_from
    if source is None or run.store("learn").steps():
        return None
    theirs, weights = load_controller(source, load_world(source))
    if theirs != controller:
        raise CheckpointError(
            f"C of {source} reads {theirs.num_features} numbers and has {theirs.hidden} hidden "
            f"units, but this run asks for {controller.num_features} and {controller.hidden}; set "
            "--controller-hidden as it was, or learn from nothing"
        )
    return weights


def memory_to_train_on(run: Run) -> Memory | None:
    """The M that `start_from` names, where this run has none yet."""
    config = run.config.memory
    if config.start_from is None or run.store("memory").steps():
        return None
    memory, theirs = _memory_of(config.start_from, run.task)
    warn_of_flattery(run, config.start_from)
    ours = digest(load_vision(run))
    if theirs != ours and not _is_trained_on_from(run, theirs):
        raise CheckpointError(
            f"M of {config.start_from} was trained on V {theirs[:12]}, but this run's V is "
            f"{ours[:12]}; start from an M of the same V or of the one that it "
            "was trained on from, or from nothing"
        )
    _check_grows(memory, config)
    memory.clock, memory.keys = config.clock, config.keys
    return memory


def warn_of_flattery(run: Run, source: Path | str) -> None:
    if not _held_out_by_seed(_meta_of(source)):
        run.log.say(
            f"M of {source} was trained when episodes were held out otherwise, so it may have seen "
            "some that are held out now: what is said of those flatters"
        )


def _meta_of(source: Path | str) -> dict[str, Any]:
    """How the M that `_memory_of` gives was made."""
    store = Store(folder_of(source) / "memory")
    return store.meta() if store.steps() else world_meta(source)


def _held_out_by_seed(meta: Any) -> bool:
    """Whether M was kept from the episodes that are held out by seed, as far as is told."""
    if not isinstance(meta, dict):
        return False
    told = meta.get("held_out_by") == "seed"
    return told or any(_held_out_by_seed(meta.get(part)) for part in ("world", "made"))


def _memory_of(source: str, task: Task) -> tuple[Memory, str]:
    """The newest M of a run, or that of a world, and the digest of its V."""
    store = Store(folder_of(source) / "memory")
    if not store.steps():
        world = load_world(source)
        return world.memory, digest(world.vision)
    meta = store.meta()
    had = {name: meta["config"].get(name, 0) for name in VARIANT}
    had |= {name: meta["config"][name] for name in FORM if meta["config"].get(name) is not None}
    if "kind" not in meta["config"]:
        had["heads"] = first_heads(task)
    memory = store.load(blank_models(task, **had)[1], prefix=".memory")[0]
    return memory, meta.get("vision", "unknown")


def _check_grows(memory: Memory, config: MemoryConfig) -> None:
    """An M may gain what sets it apart from the paper's, but neither change nor lose it."""
    ours = config.kind, config.hidden_size or memory.hidden_size
    if ours != (kind_of(memory), memory.hidden_size):
        raise CheckpointError(
            f"M of {config.start_from} is a {kind_of(memory)} of {memory.hidden_size} units, but "
            f"this run asks for a {ours[0]} of {ours[1]}"
        )
    for name in VARIANT:
        old, new = getattr(memory, name), getattr(config, name)
        if old != new and (old or name == "residual"):
            flag = name.replace("_", "-")
            raise CheckpointError(
                f"M of {config.start_from} has {name}={old}, but this run asks for {new}; "
                f"set --memory.{flag} as it was"
            )
