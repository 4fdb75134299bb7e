"""The phases of a run: what each is made from, what there is of it, and what gives way to it."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax import recording
from dreamjax.dream.env import EnvParams
from dreamjax.dream.worlds import World, load_controller, load_world
from dreamjax.game import rollouts
from dreamjax.game.rollouts import shard_paths
from dreamjax.memory.latents import encoded_by, name_of, read_latents
from dreamjax.run.ledger import RECORDED, Inputs, Phase
from dreamjax.run.lineage import (
    controller_to_learn_on,
    judged_below,
    load_vision,
    memory_aside,
    memory_settings,
    memory_to_train_on,
    renamed,
    vision_to_train_on,
    way,
    worlds_beside,
)
from dreamjax.run.settings import CONTROLLERS, WATCH_SEED, Run
from dreamjax.training.checkpoint import CheckpointError, digest
from dreamjax.training.devices import product_dtype


def _made(run: Run, config: Any, **facts: Any) -> dict[str, Any]:
    """What the checkpoints of a training record of the run, its settings and `facts`."""
    told = renamed(dataclasses.asdict(config), lambda source: way(source, run.directory))
    game = {"task": run.task.name, "profile": run.task.profile, "seed": run.seed}
    return {**game, "config": told, **facts}


def _collect(run: Run) -> Inputs:
    config = run.config.collect
    how = {"policy": config.policy, "min_steps": config.min_steps}
    rollouts.check_request(run.task, run.rollouts, config.episodes, **how)
    return Inputs(rollouts.settings_of(run.task, seed=run.seed, **how), total=config.episodes)


def _vision(run: Run) -> Inputs:
    frames = [(path.name, int(x.sum())) for path, x in _lengths(run.rollouts)]
    if not frames:
        raise ValueError(f"no rollouts in {run.rollouts}; collect some first")
    config, data = run.config.vision, name_of(sum(count for _, count in frames), frames)
    facts = _made(run, config, data=data, products=str(product_dtype(config.bfloat16)))
    return Inputs(facts, vision_to_train_on(run), config.steps)


def _lengths(directory: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """The lengths of the episodes of each shard that can be read."""
    for path in shard_paths(directory):
        with contextlib.suppress(rollouts.DamagedShardError):
            yield path, rollouts.part(path, "lengths")


def _encode(run: Run) -> Inputs:
    shards = [path.name for part in (run.rollouts, run.played) for path in shard_paths(part)]
    if not shards:
        raise ValueError(f"no rollouts in {run.rollouts}; collect some first")
    vision = load_vision(run)
    return Inputs({"vision": digest(vision)}, (vision, shards), len(shards))


def _memory(run: Run) -> Inputs:
    vision, latents, config = load_vision(run), read_latents(run.latents), memory_settings(run)
    ours = digest(vision)
    if latents.vision != ours:
        raise CheckpointError(
            f"{run.latents} was encoded by V {latents.vision[:12]}, but this run's V is "
            f"{ours[:12]}; run encode again"
        )
    facts = {"vision": ours, "data": latents.name, "held_out_by": "seed"}
    facts["products"] = str(product_dtype(config.bfloat16))
    facts["held_below"] = judged_below(run, config, latents)
    loaded = vision, latents, config, memory_to_train_on(run, config, vision)
    return Inputs(_made(run, config, **facts), loaded, config.steps)


def _search(run: Run, section: str) -> Inputs:
    """The world, its dream, the form of C, the weights to learn on, and the worlds beside it."""
    world, learns, config = load_world(run.directory), section == "learn", run.config
    beside = worlds_beside(run, world) if learns else []
    params, controller = dream_of(run, world), world.controller(config.hidden(run.task, section))
    facts = {"world": world.digest(), "products": str(product_dtype(config.dream.bfloat16))}
    facts |= {"beside": [x.digest()[:12] for x in beside], "dropout": params.dropout}
    for name in ("temperature", "death_threshold", "death_noise"):
        facts[name] = float(getattr(params, name))
    facts["controller_hidden"], own = controller.hidden, getattr(config, section)
    start = controller_to_learn_on(run, controller) if learns else None
    total = own.updates if learns else own.generations
    return Inputs(_made(run, own, **facts), (world, params, controller, start, beside), total)


def dream_of(run: Run, world: World) -> EnvParams:
    """A world's dream as the run's settings have it."""
    dream = run.config.dream
    return dream.of(world).params(dtype=product_dtype(dream.bfloat16))


def _player(run: Run) -> Inputs:
    """V, M and C awake."""
    world = load_world(run.directory)
    return Inputs(values=(world, *load_controller(run.directory, world)))


def played(run: Run, by: Path | None = None, episodes: int | None = None) -> Inputs:
    """What `record` is to play: C of this run, or of the run at `by` so many in all."""
    home, seed = by or run.directory, run.seed + WATCH_SEED
    world = load_world(home)
    controller, weights = load_controller(home, world)
    first = len(shard_paths(by / run.played.name)) if by else 0
    games = run.played, episodes or run.config.collect.episodes, seed
    asked = recording.Recording(world, weights, *games, controller, first)
    return Inputs({"player": asked.player[:12]}, asked, len(asked.paths))


# What there is of them, and what of that gives way


def _collected(run: Run, inputs: Inputs) -> tuple[dict[str, Any], int] | None:
    episodes, told = [len(x) for _, x in _lengths(run.rollouts)], rollouts.claimed(run.rollouts)
    return (told or {}, sum(episodes)) if episodes or told else None


def _encoded(run: Run, inputs: Inputs) -> tuple[dict[str, Any], int] | None:
    by = {path.name: encoded_by(path) for path in shard_paths(run.latents)}
    ours, known = inputs.facts["vision"], [vision for vision in by.values() if vision]
    made = {"vision": next((vision for vision in known if vision != ours), ours)}
    return (made, sum(by.get(x) == ours for x in inputs.values[1])) if known else None


def _recorded(run: Run, inputs: Inputs) -> tuple[dict[str, Any], int] | None:
    ours, others, damaged = inputs.values.sort()
    made = {"player": "another, or in other games"} if others else {}
    done = len(set(inputs.values.paths) & set(ours))
    return (made, done) if ours + others + damaged else None


def _played_aside(run: Run, inputs: Inputs, changed: str) -> Sequence[Path]:
    """Another agent's shards, and what V saw in them."""
    shards = inputs.values.sort()[1]
    seen = [run.latents / path.name for path in shards]
    return [*shards, *(path for path in seen if path.exists())]


COLLECT = Phase("collect", "rollouts", _collect, _collected, "collect")
VISION = Phase(
    "train-vision",
    "vision",
    _vision,
    section="vision",
    task=("latent_size", "salient"),
    remedy="run collect, which makes again what was set aside, use another run directory",
)
ENCODE = Phase("encode", "latents", _encode, _encoded, "", ("latent_size",), lambda *_: ())
MEMORY = Phase(
    "train-memory",
    "memory",
    _memory,
    section="memory",
    task=(*RECORDED, "latent_size", "hidden_size", "num_mixtures", "reads_restart"),
    aside=memory_aside,
    remedy="to train on with these, add --memory.start-from {}",
)
READS = ("controller_reads", "controller_bias")
EVOLVE, LEARN = (
    Phase(x, x, partial(_search, section=x), section=x, task=READS) for x in CONTROLLERS
)
EVALUATE = Phase("evaluate", "results.json", _player, repeats=True)
FIDELITY = Phase("fidelity", "fidelity.json", _player, repeats=True)
RECORD = Phase("record", "played", played, _recorded, aside=_played_aside)
CALIBRATE = Phase("calibrate", "world", lambda run: Inputs(), lambda *_: None)
_ALL = (COLLECT, VISION, ENCODE, MEMORY, EVOLVE, LEARN, EVALUATE, RECORD, FIDELITY, CALIBRATE)
PHASES = {phase.name: phase for phase in _ALL}
