"""What a training goes on from, which episodes it may be judged by, and what a world is made of.

A run's files name another by the way there, where the two lie together: so they can be moved.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.controller.model import Controller
from dreamjax.controller.player import Player
from dreamjax.dream import worlds
from dreamjax.dream.start_states import start_states_of
from dreamjax.dream.world import World, blank_models, known_kind
from dreamjax.memory.foresight import foreseen, foresight
from dreamjax.memory.kinds import kind_of
from dreamjax.memory.latents import LatentSequences, read_latents
from dreamjax.memory.metrics import calibrated_threshold, memory_metrics
from dreamjax.memory.model import FORM, VARIANT, Memory
from dreamjax.memory.training import MemoryConfig
from dreamjax.run.ledger import Inputs
from dreamjax.run.places import CHANCE, GIVEN, lies, link, portable, untold
from dreamjax.run.scores import listed
from dreamjax.run.settings import Run
from dreamjax.task import Task
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.training.devices import is_first
from dreamjax.vision.model import VAE

ENDING = 0.5  # share of episodes that end by themselves, above which that is what they are about
NUM_STARTS = 1000  # start states kept in a world, as the original's initial_z.json


def load_vision(run: Run) -> VAE:
    """The V that a run trained, or else the V of the world that was handed to it."""
    store = run.store("vision")
    if not store.directory.exists() and (run.directory / "world").exists():
        return worlds.load_world(run.directory).vision
    return store.load(blank_models(run.task)[0], prefix=".model")[0]


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
    store = Store(worlds.folder_of(source) / "vision")
    if not store.steps():
        return worlds.load_world(source).vision
    return store.load(blank_models(task)[0], prefix=".model")[0]


def _is_trained_on_from(run: Run, theirs: str) -> bool:
    """Whether the run's V began as the V of that digest, so that M finds its latents again."""
    source = _meta(run.store("vision")).get("config", {}).get("start_from")
    if source is None:
        return False
    return digest(_vision_of(lies(source, run.directory), run.task)) == theirs


def was_given_a_world(run: Run) -> bool:
    """Whether the run goes on from a world that it was given, or did so."""
    has_given, trains_v = "source" in _meta(run.store("world")), (run.directory / "vision").exists()
    return (run.directory / GIVEN).exists() or (has_given and not trains_v)


def keep_given(run: Run) -> None:
    """Keep the world that a run was given, and its C, beside the one that it will make."""
    if is_first() and was_given_a_world(run) and "source" in _meta(run.store("world")):
        for part in ("controller", "world"):
            link(run.directory / part, run.directory / GIVEN / part)


def _meta(store: Store) -> dict[str, Any]:
    """What the newest checkpoint tells; nothing where there is none."""
    return store.meta() if store.steps() else {}


def memory_settings(run: Run) -> MemoryConfig:
    """M's settings in this run: that of a given world is trained on, and keeps what it has."""
    config, given = run.config.memory, str(run.directory / GIVEN)
    if config.start_from == CHANCE:
        return dataclasses.replace(config, start_from=None)
    began = _meta(run.store("memory")).get("config", {"start_from": GIVEN})["start_from"]
    if config.start_from is not None and None in (config.clock, config.residual):
        memory, _ = _memory_of(_there(run, config.start_from), run.task)
        return dataclasses.replace(config, **_open_as(memory, config))
    if config.start_from is not None or began != GIVEN or not was_given_a_world(run):
        return config
    memory = worlds.load_world(_there(run, given)).memory
    config = dataclasses.replace(config, **_open_as(memory, config))
    form = {name: getattr(memory, name) for name in ("hidden_size", "heads")}
    form |= {name: getattr(memory, name) for name in VARIANT if not _may_grow(memory, config, name)}
    return dataclasses.replace(config, start_from=given, kind=kind_of(memory), **form)


def _open_as(memory: Memory, config: MemoryConfig) -> dict[str, Any]:
    """Settings that are left open, as M has them."""
    return {k: getattr(memory, k) for k in ("clock", "residual") if getattr(config, k) is None}


def _may_grow(memory: Memory, config: MemoryConfig, name: str) -> bool:
    """Whether M can be as asked for: it may gain a feature, but neither change nor lose one."""
    old = getattr(memory, name)
    return old == getattr(config, name) or not (old or name == "residual")


def _there(run: Run, source: str) -> str | Path:
    """Where `start_from` lies now; a given world is the run's own until it makes another."""
    is_own = Path(source) == run.directory / GIVEN and not Path(source).exists()
    return run.directory if is_own else source


def judged_below(run: Run, config: MemoryConfig, latents: LatentSequences) -> float:
    """Below which place of their seeds episodes judge M, which no M before it was trained on.

    Raises:
      CheckpointError: M of `start_from` was trained on some of what would be held out.
    """
    own = latents.boundary(config.held_out)
    goes_on = _meta(run.store("memory")).get("data") == latents.name
    if config.start_from is None or goes_on:
        return own
    source = _there(run, config.start_from)
    store = Store(worlds.folder_of(source) / "memory")
    theirs = held_below(source, _meta(store) or worlds.world_meta(source))
    if own > theirs:
        more = f"set --memory.held-out {theirs}" if config.held_out > theirs else ""
        raise CheckpointError(
            f"M of {config.start_from} held out the episodes below {theirs:.3g}, but here those "
            f"below {own:.3g} would be, of which it may have been trained on some; "
            f"{more or 'collect more episodes'}"
        )
    return own


def held_below(source: Path | str, made: Any) -> float:
    """Below which place of their seeds neither an M nor any M before it was trained on an episode.

    Args:
      source: the run or world that it is of.
      made: how it was made, as its checkpoint or its world tells.
    """
    while isinstance(made, dict) and not {"held_below", "config"} & made.keys():
        made = made.get("world", made.get("made"))
    if not isinstance(made, dict):
        return 1.0
    if "held_below" in made:
        return made["held_below"]
    if made.get("held_out_by") != "seed":
        return 0.0  # nothing tells what so old an M was kept from
    share = made["config"]["held_out"]
    with contextlib.suppress(ValueError):  # by the episodes that it was trained on, if still there
        latents = read_latents(Path(source) / "latents")
        return latents.boundary(share) if latents.name == made["data"] else share
    return share


def bind(run: Run, inputs: Inputs, memory: Memory) -> None:
    """Judge and calibrate M on the held-out episodes; save V, M and starts as the run's world.

    Nothing where its world is of these V and M already; the first process does it.
    """
    (vision, latents, *_), bound = inputs.values, _meta(run.store("world"))
    found = digest(vision), digest(memory)
    if not is_first() or (bound and (bound["vision"], bound["memory"]) == found):
        return
    made = run.store("memory").meta()
    train, held = latents.split(made["config"]["held_out"])
    threshold = calibrated_threshold(memory, held)
    mu, logvar = (jnp.asarray(part) for part in latents.starts(NUM_STARTS))
    tuned: dict[str, Any] = {"death_threshold": threshold, "death_noise": 1.0}
    tuned["dropout"] = _dropout(made["config"], latents)
    start_states = start_states_of(memory, train, run.config.memory.start_states, run.seed)
    world = World(run.task, vision, memory, mu, logvar, **tuned, start_states=start_states)
    world = run.config.dream.of(world)
    metrics = memory_metrics(memory, held) | {"death_threshold": threshold}
    run.log.log("held-out", made["step"], metrics)
    run.log.say("M on held-out episodes: " + listed(metrics))
    with contextlib.suppress(ValueError):  # all are short
        run.log.say("M on held-out episodes: " + foreseen(foresight(memory, held)))
    told = portable(untold(made), run.directory) | {"steps": made["step"]}
    worlds.save_world(run.directory, world, told)


def _dropout(config: dict[str, Any], latents: LatentSequences) -> float | None:
    """The dropout of a dream: that with which its M was trained; None is none.

    An M that practises on its own guesses needs it only where episodes end by themselves: dreams
    of such games are too kind without, and of others untrue with it.
    """
    needed = not config.get("own_guesses") or latents.terminated.mean() > ENDING
    return (config["dropout"] or None) if needed else None


def memory_aside(run: Run, _: Any, changed: str) -> Sequence[Path] | None:
    """M's checkpoints, where it is to be trained on with new data in its own run.

    Raises:
      CheckpointError: it is not at its end.
    """
    source = run.config.memory.start_from
    if source is None or changed != "data" or Path(source).resolve() != run.directory.resolve():
        return None
    memory, _ = _memory_of(source, run.task)
    if digest(memory) != digest(worlds.load_world(run.directory).memory):
        raise CheckpointError(
            f"M of {run.directory} has not been trained to its end; run train-memory without "
            "--memory.start-from on its old data first, or remove its folder to make it anew"
        )
    return list((run.directory / "memory").iterdir())


def worlds_beside(run: Run, world: World) -> list[World]:
    """The worlds that `learn.worlds` names, in which the same C can dream."""
    found = []
    for source in run.config.learn.worlds:
        other = worlds.load_world(source)
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


def player_to_learn_on(run: Run, controller: Controller) -> Player | Controller:
    """The C that `start_from` names, perhaps of another world, or a form where it has begun."""
    source = run.config.learn.start_from
    if source is None or run.store("learn").steps():
        return controller
    player = worlds.load_player(source)
    theirs = player.controller
    if theirs != controller:
        raise CheckpointError(
            f"C of {source} reads {theirs.num_features} numbers and has {theirs.hidden} hidden "
            f"units, but this run asks for {controller.num_features} and {controller.hidden}; set "
            "--controller-hidden as it was, or learn from nothing"
        )
    return player


def memory_to_train_on(run: Run, config: MemoryConfig, vision: VAE) -> Memory | None:
    """The M that `start_from` names, where this run has none yet."""
    if config.start_from is None or run.store("memory").steps():
        return None
    source = _there(run, config.start_from)
    memory, theirs = _memory_of(source, run.task)
    ours = digest(vision)
    if theirs != ours and not _is_trained_on_from(run, theirs):
        raise CheckpointError(
            f"M of {source} was trained on V {theirs[:12]}, but this run's V is "
            f"{ours[:12]}; start from an M of the same V or of the one that it "
            "was trained on from, or from nothing"
        )
    _check_grows(memory, config)
    memory.clock, memory.keys = bool(config.clock), config.keys
    return memory


def _memory_of(source: Path | str, task: Task) -> tuple[Memory, str]:
    """The newest M of a run, or that of a world, and the digest of its V."""
    store = Store(worlds.folder_of(source) / "memory")
    meta = _meta(store)
    if not meta:
        world = worlds.load_world(source)
        return world.memory, digest(world.vision)
    known_kind(meta["config"], store.directory)
    had = {name: meta["config"].get(name, 0) for name in VARIANT}
    had |= {name: meta["config"][name] for name in FORM if meta["config"][name] is not None}
    memory = store.load(blank_models(task, **had)[1], prefix=".memory")[0]
    return memory, meta["vision"]


def _check_grows(memory: Memory, config: MemoryConfig) -> None:
    ours = config.kind, config.hidden_size or memory.hidden_size
    if ours != (kind_of(memory), memory.hidden_size):
        raise CheckpointError(
            f"M of {config.start_from} is a {kind_of(memory)} of {memory.hidden_size} units, but "
            f"this run asks for a {ours[0]} of {ours[1]}"
        )
    for name in VARIANT:
        if not _may_grow(memory, config, name):
            flag, new = name.replace("_", "-"), getattr(config, name)
            raise CheckpointError(
                f"M of {config.start_from} has {name}={getattr(memory, name)}, but this run asks "
                f"for {new}; set --memory.{flag} as it was"
            )
