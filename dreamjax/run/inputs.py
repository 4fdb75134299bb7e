"""What each phase of a run is made from, what there is of it, and what of that gives way.

Nothing here changes a file.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax import recording
from dreamjax.dream.env import EnvParams
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.game import collecting, rollouts
from dreamjax.game.rollouts import shard_paths
from dreamjax.memory.latents import encoded_by, name_of, read_latents
from dreamjax.run import lineage, places
from dreamjax.run.ledger import Inputs
from dreamjax.run.settings import WATCH_SEED, Run
from dreamjax.training.checkpoint import CheckpointError, digest
from dreamjax.training.devices import product_dtype


def _told(run: Run, config: Any, **facts: Any) -> dict[str, Any]:
    """What the checkpoints of a training record of the run, its settings and `facts`."""
    told = places.renamed(
        dataclasses.asdict(config), lambda source: places.way(source, run.directory)
    )
    game = {"task": run.task.name, "profile": run.task.profile, "seed": run.seed}
    return {**game, "config": told, **facts}


def of_collect(run: Run) -> Inputs:
    config = run.config.collect
    how = {"policy": config.policy, "min_steps": config.min_steps}
    collecting.check_request(run.task, run.rollouts, config.episodes, **how)
    return Inputs(collecting.settings_of(run.task, seed=run.seed, **how), how, config.episodes)


def of_vision(run: Run) -> Inputs:
    frames = [(path.name, int(x.sum())) for path, x in _lengths(run.rollouts)]
    if not frames:
        raise ValueError(f"no rollouts in {run.rollouts}; collect some first")
    config, data = run.config.vision, name_of(sum(count for _, count in frames), frames)
    facts = _told(run, config, data=data, products=str(product_dtype(config.bfloat16)))
    return Inputs(facts, lineage.vision_to_train_on(run), config.steps)


def _lengths(directory: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """The lengths of the episodes of each shard that can be read."""
    for path in shard_paths(directory):
        with contextlib.suppress(rollouts.DamagedShardError):
            yield path, rollouts.part(path, "lengths")


def of_encode(run: Run) -> Inputs:
    shards = [path.name for part in (run.rollouts, run.played) for path in shard_paths(part)]
    if not shards:
        raise ValueError(f"no rollouts in {run.rollouts}; collect some first")
    vision = lineage.load_vision(run)
    return Inputs({"vision": digest(vision)}, (vision, shards), len(shards))


def of_memory(run: Run) -> Inputs:
    vision, latents = lineage.load_vision(run), read_latents(run.latents)
    config, ours = lineage.memory_settings(run), digest(vision)
    if latents.vision != ours:
        raise CheckpointError(
            f"{run.latents} was encoded by V {latents.vision[:12]}, but this run's V is "
            f"{ours[:12]}; run encode again"
        )
    facts: dict[str, Any] = {"vision": ours, "data": latents.name, "held_out_by": "seed"}
    facts["products"] = str(product_dtype(config.bfloat16))
    facts["held_below"] = lineage.judged_below(run, config, latents)
    loaded = vision, latents, config, lineage.memory_to_train_on(run, config, vision)
    return Inputs(_told(run, config, **facts), loaded, config.steps)


def of_search(run: Run, section: str) -> Inputs:
    """The world, its dream, the C or form of C to begin with, and the worlds beside it."""
    world, learns, config = load_world(run.directory), section == "learn", run.config
    beside = lineage.worlds_beside(run, world) if learns else []
    params, form = dream_of(run, world), world.controller(config.hidden(run.task, section))
    facts: dict = {"world": world.digest(), "products": str(product_dtype(config.dream.bfloat16))}
    facts |= {"beside": [x.digest()[:12] for x in beside], "dropout": params.dropout}
    for name in ("temperature", "death_threshold", "death_noise"):
        facts[name] = float(getattr(params, name))
    facts["controller_hidden"], own = form.hidden, getattr(config, section)
    player = lineage.player_to_learn_on(run, form) if learns else form
    total = own.updates if learns else own.generations
    return Inputs(_told(run, own, **facts), (world, params, player, beside), total)


def dream_of(run: Run, world: World) -> EnvParams:
    """A world's dream as the run's settings have it."""
    dream = run.config.dream
    return dream.of(world).params(dtype=product_dtype(dream.bfloat16))


def of_world(run: Run) -> Inputs:
    """The world that is to be calibrated."""
    if run.task.step_reward is None or not run.task.ends:
        raise ValueError(
            f"games of {run.task.name} are not told apart by how long they last; choose its "
            "temperature by --dream.temperature"
        )
    return Inputs(values=load_world(run.directory))


def of_player(run: Run) -> Inputs:
    """V, M and C awake."""
    world = load_world(run.directory)
    return Inputs(values=(world, world.player))


def of_record(run: Run, by: Path | None = None, episodes: int | None = None) -> Inputs:
    """What `record` is to play: C of this run, or of the run at `by` so many in all."""
    source = dataclasses.replace(run, directory=by or run.directory)
    (world, player), first = of_player(source).values, len(shard_paths(source.played)) if by else 0
    count, seed = episodes or run.config.collect.at_most(run.task.max_steps), run.seed + WATCH_SEED
    asked = recording.Recording(world, player, run.played, count, seed, first)
    return Inputs({"player": asked.identity[:12]}, asked, len(asked.paths))


def collected(run: Run, inputs: Inputs) -> tuple[dict[str, Any], int] | None:
    episodes, told = [len(x) for _, x in _lengths(run.rollouts)], collecting.claimed(run.rollouts)
    return (told or {}, sum(episodes)) if episodes or told else None


def encoded(run: Run, inputs: Inputs) -> tuple[dict[str, Any], int] | None:
    by = {path.name: encoded_by(path) for path in shard_paths(run.latents)}
    ours, known = inputs.facts["vision"], [vision for vision in by.values() if vision]
    made = {"vision": next((vision for vision in known if vision != ours), ours)}
    return (made, sum(by.get(x) == ours for x in inputs.values[1])) if known else None


def recorded(run: Run, inputs: Inputs) -> tuple[dict[str, Any], int] | None:
    ours, others, damaged = inputs.values.sort()
    made = {"player": "another, or in other games"} if others else {}
    done = len(set(inputs.values.paths) & set(ours))
    return (made, done) if ours + others + damaged else None


def others_aside(run: Run, inputs: Inputs, changed: str) -> Sequence[Path]:
    """Another agent's shards, and what V saw in them."""
    shards = inputs.values.sort()[1]
    seen = [run.latents / path.name for path in shards]
    return [*shards, *(path for path in seen if path.exists())]
