"""What a run has, what it lacks, and what each command will do in it: one table, one function.

Whoever wants to know asks `decide`: a command before it begins, a dry run, the doctor.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax import agent
from dreamjax.agent import Recording
from dreamjax.controller.model import Controller
from dreamjax.dream.env import EnvParams
from dreamjax.dream.worlds import World, load_controller, load_world
from dreamjax.game import policies, rollouts
from dreamjax.game.rollouts import UNREADABLE, by_value, differs, shard_paths
from dreamjax.memory.latents import encoded_by, name_of, read_latents
from dreamjax.run.lineage import (
    is_same,
    judged_below,
    keep_given,
    load_vision,
    memory_settings,
    trains_itself_on,
    way,
    worlds_beside,
)
from dreamjax.run.settings import CONTROLLERS, WATCH_SEED, Run
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.training.devices import is_first, product_dtype, team
from dreamjax.training.files import replacing, write_json

FRESH, RESUME, DONE, AGAIN, REFUSE = "fresh", "resume", "done", "again", "refuse"
TASK = "task.json"  # the game by value, as each folder of the run was made with it
RECORDED = (*rollouts.SHAPES, "step_reward", "reward_scale")  # fields of a game that shape a run
FIRST_VALUES = {"components": None}  # of settings that older checkpoints do not tell
OLDER_NAMES = {  # of settings of `learn`, before they had the field's
    "lanes": "num_envs",
    "length": "num_steps",
    "epochs": "update_epochs",
    "batches": "num_minibatches",
    "discount": "gamma",
    "trace": "gae_lambda",
    "clip": "clip_eps",
    "entropy": "ent_coef",
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a phase would be made from.

    Attributes:
      facts: identities and settings, by which it is told from others.
      values: the same, loaded, for the phase itself.
      total: how much there will be in the end.
      notes: what is recorded too, but tells nothing apart.
    """

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    values: Any = None
    total: int = 0
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def meta(self) -> dict[str, Any]:
        """What checkpoints record."""
        return self.facts | self.notes


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is of a phase: the facts it was made with, and how much of it."""

    facts: dict[str, Any]
    done: int


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a phase will do in a run, and why.

    Attributes:
      kind: "fresh", "resume", "done", "again" or "refuse".
      said: the same in words, with the remedy of a refusal.
      step: from where it resumes.
      inputs: what it is made from; None where it is refused.
      fault: why it is refused.
    """

    kind: str
    said: str
    step: int = 0
    inputs: Inputs | None = None
    fault: ValueError | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
      name: its command.
      folder: what it writes, below the run's directory.
      reads: what it would be made from; raises ValueError where that cannot be had.
      found: what there is of it; None is nothing.
      section: its settings in `RunConfig`; those that they say may grow may have changed since.
      remedies: what to do, by the name of a fact that has changed; else another directory.
      gives_way: whether what there is is kept aside, or replaced, where that fact has changed.
      repeats: whether it measures anew each time, in place of what there is.
      task: fields of the game that shape what it writes.
    """

    name: str
    folder: str
    reads: Callable[[Run], Inputs]
    found: Callable[[Run, "Phase", Inputs], Found | None]
    section: str = ""
    remedies: dict[str, str] = dataclasses.field(default_factory=dict)
    gives_way: Callable[[Run, str], bool] = lambda run, changed: False
    repeats: bool = False
    task: tuple[str, ...] = RECORDED


def decide(run: Run, phase: Phase) -> Decision:
    """What a phase will do in a run; nothing is changed."""
    try:
        check_game(run)
        inputs = phase.reads(run)
        found = phase.found(run, phase, inputs)
        if found is None:
            return Decision(FRESH, "begins", inputs=inputs)
        if phase.repeats:
            return Decision(AGAIN, f"plays again, in place of {phase.folder}", inputs=inputs)
        grows = getattr(getattr(run.config, phase.section, None), "grows", ())
        changed = difference(found.facts, inputs.facts, grows, run.directory)
        if changed is None and found.done < inputs.total:
            said = f"goes on from {found.done:,} of {inputs.total:,}"
            return Decision(RESUME, said, found.done, inputs)
        if changed is None:
            return Decision(DONE, f"is done, at {found.done:,}", found.done, inputs)
        if phase.gives_way(run, changed[0]):
            return Decision(AGAIN, "begins again: {} was {}, now {}".format(*changed), 0, inputs)
        raise CheckpointError(_refusal(run, phase, *changed))
    except ValueError as error:
        return Decision(REFUSE, f"refuses: {_line(error)}", fault=error)


def _refusal(run: Run, phase: Phase, name: str, old: Any, new: Any) -> str:
    remedy = phase.remedies.get(name, "use another run directory").format(run.directory)
    return (
        f"{run.directory / phase.folder} was made with {name}={old}, now {name}={new}; {remedy}, "
        "or remove that folder to make it anew"
    )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def begin(run: Run, phase: Phase) -> Inputs:
    """What a phase is made from, where `decide` lets it begin; what gives way is kept aside.

    Raises:
      ValueError: it is refused, in one line; nothing has changed.
    """
    decision = team().first_then_all(lambda: _begun(run, phase))
    if decision.fault is not None:
        raise decision.fault
    return decision.inputs


def _begun(run: Run, phase: Phase) -> Decision:
    decision = decide(run, phase)
    if is_first() and decision.kind != REFUSE:
        if decision.kind == AGAIN and phase.name in ASIDE:
            kept = ASIDE[phase.name](run, decision.inputs)
            run.log.say(f"{phase.folder} so far is kept in {kept}; {phase.name} {decision.said}")
        if phase is MEMORY:
            keep_given(run)
        _note_game(run, phase)
    return decision


def foretold(run: Run, phases: tuple[str, ...]) -> tuple[str, ...]:
    """Say what each of some phases would do, one after another; those that are left to do."""
    left = []
    for name in phases:
        decision = decide(run, PHASES[name])
        waits = decision.kind == REFUSE and left
        run.log.say(f"{name} {'waits for what is before it' if waits else decision.said}")
        if decision.kind != DONE:
            left.append(name)
    return tuple(left)


def difference(
    made: dict[str, Any], wanted: dict[str, Any], grows: Iterable[str], home: Path
) -> tuple[str, Any, Any] | None:
    """The first `(name, old, new)` in which what was made, in the run at `home`, is not as wanted.

    What only one of the two tells makes no difference.
    """
    new = _flat(wanted, grows)
    for name, old in (FIRST_VALUES | _flat(made, grows)).items():
        if name in new and not _agree(name, old, new[name], home):
            return name, old, new[name]
    return None


def _flat(facts: dict[str, Any], grows: Iterable[str]) -> dict[str, Any]:
    config = facts.get("config", {})
    loose = {*grows, "bfloat16"} if "products" in facts else {*grows}  # what was wished
    older = OLDER_NAMES if "lanes" in config else {}
    config = {older.get(name, name): value for name, value in config.items()}
    flat = {name: facts[name] for name in facts if name not in ("config", "versions", "step")}
    return json.loads(json.dumps({k: x for k, x in (flat | config).items() if k not in loose}))


def _agree(name: str, old: Any, new: Any, home: Path) -> bool:
    if name == "start_from":
        return is_same(old, new, home)
    if name == "worlds":
        return len(old) == len(new) and all(map(is_same, old, new, itertools.repeat(home)))
    return not differs(old, new)


# The game


def check_game(run: Run) -> None:
    """Refuse a directory that holds another game, another variant of it, or one edited since.

    Raises:
      CheckpointError: names the difference and the remedy.
    """
    for part, profile in profiles(run.directory):
        if profile != run.task.profile:
            raise CheckpointError(
                f"{run.directory / part} is of the game {profile}, not of {run.task.name}'s "
                f"{run.task.profile}; choose another directory"
            )
    for folder, fields in _games(run).items():
        now = by_value(run.task, [name for name in fields if hasattr(run.task, name)])
        for name in now if (run.directory / folder).exists() else ():
            if differs(fields[name], now[name]):
                raise CheckpointError(
                    f"{run.directory / folder} was made with {name} {fields[name]!r} of "
                    f"{run.task.name}, which is now {now[name]!r}; undo that, or use another run "
                    "directory"
                )


def _games(run: Run) -> dict[str, dict[str, Any]]:
    """The game that each folder was made with, as far as is told."""
    try:
        found = json.loads((run.directory / TASK).read_text())
        return {folder: dict(fields) for folder, fields in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _note_game(run: Run, phase: Phase) -> None:
    """Write down the game that a phase is done with; what cannot be read is kept aside."""
    path, games = run.directory / TASK, _games(run)
    told = games | {phase.folder: by_value(run.task, phase.task)}
    if told == games:
        return
    if path.exists() and not games:
        with replacing(path.with_name(f"{TASK}.corrupt")) as file:
            file.write(path.read_bytes())
        run.log.say(f"{path} is damaged; set aside as {TASK}.corrupt and written anew")
    write_json(path, told)


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


# What phases are made from


def _facts(run: Run, config: Any, **facts: Any) -> dict[str, Any]:
    """What the checkpoints of a training record of the run, its settings and `facts`."""
    told = dataclasses.asdict(config)
    if "start_from" in told:
        told["start_from"] = way(told["start_from"], run.directory)
    if "worlds" in told:
        told["worlds"] = [way(source, run.directory) for source in told["worlds"]]
    game = {"task": run.task.name, "profile": run.task.profile, "seed": run.seed}
    return {**game, "config": told, **facts}


def _collect(run: Run) -> Inputs:
    config = run.config.collect
    policies.check(config.policy)
    asked = config.policy, run.seed
    facts = rollouts.settings_of(run.task, *asked, min_steps=config.min_steps)
    return Inputs(facts, total=config.episodes)


def _vision(run: Run) -> Inputs:
    frames = _sound(run.rollouts, lambda path: int(rollouts.part(path, "lengths").sum()))
    if not frames:
        raise ValueError(f"no rollouts in {run.rollouts}; collect some first")
    config, names = run.config.vision, [(path.name, n) for path, n in frames.items()]
    facts = {"data": name_of(sum(frames.values()), names)}
    facts["products"] = str(product_dtype(config.bfloat16))
    return Inputs(_facts(run, config, **facts), None, config.steps)


def _encode(run: Run) -> Inputs:
    shards = [path for part in (run.rollouts, run.played) for path in shard_paths(part)]
    if not shards:
        raise ValueError(f"no rollouts in {run.rollouts}; collect some first")
    vision = load_vision(run)
    return Inputs({"vision": digest(vision)}, vision, len(shards))


def _memory(run: Run) -> Inputs:
    vision, latents, config = load_vision(run), read_latents(run.latents), memory_settings(run)
    if latents.vision != digest(vision):
        raise CheckpointError(
            f"{run.latents} was encoded by V {latents.vision[:12]}, but this run's V is "
            f"{digest(vision)[:12]}; run encode again"
        )
    facts = {"vision": digest(vision), "data": latents.name, "held_out_by": "seed"}
    facts["products"] = str(product_dtype(config.bfloat16))
    notes = {"held_below": judged_below(run, config, latents)}
    return Inputs(_facts(run, config, **facts), (vision, latents, config), config.steps, notes)


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search for C is made from: the world, the dream of it, other worlds, C's form."""

    world: World
    params: EnvParams
    beside: list[World]
    controller: Controller


def _search(run: Run, section: str) -> Inputs:
    world, dream, config = load_world(run.directory), run.config.dream, getattr(run.config, section)
    beside = worlds_beside(run, world) if section == "learn" else []
    params, controller = (
        dream_of(run, world),
        world.controller(run.config.hidden(run.task, section)),
    )
    facts = {"world": world.digest(), "products": str(product_dtype(dream.bfloat16))}
    if params.dropout is not None:
        facts["dropout"] = params.dropout
    if beside:
        facts["beside"] = [other.digest()[:12] for other in beside]
    for name in ("temperature", "death_threshold", "death_noise"):
        facts[name] = float(getattr(params, name))
    if controller.hidden:
        facts["controller_hidden"] = controller.hidden
    store = run.store(section)
    if store.steps() and store.meta().get("world") == digest(world.arrays()):
        facts["world"] = digest(world.arrays())  # begun when identities covered the arrays alone
    found = Search(world, params, beside, controller)
    total = config.updates if section == "learn" else config.generations
    return Inputs(_facts(run, config, **facts), found, total)


def dream_of(run: Run, world: World) -> EnvParams:
    """A world's dream as the run's settings have it."""
    dream = run.config.dream
    return dream.of(world).params(dtype=product_dtype(dream.bfloat16))


def _player(run: Run) -> Inputs:
    """V, M and C awake: `(world, C's form, its weights)`."""
    world = load_world(run.directory)
    return Inputs(values=(world, *load_controller(run.directory, world)))


def recording(run: Run, by: Path | None = None, episodes: int | None = None) -> Inputs:
    """What `record` is to play: C of this run, or of the run at `by` so many in all."""
    home = by or run.directory
    world = load_world(home)
    controller, weights = load_controller(home, world)
    episodes = episodes or run.config.collect.episodes
    first = len(shard_paths(by / run.played.name)) if by else 0
    seed = run.seed + WATCH_SEED
    asked = Recording(world, weights, run.played, episodes, seed, controller, first)
    return Inputs({"player": asked.player[:12]}, asked, len(asked.shards) * agent.SHARD)


# What there is of them


def _collected(run: Run, phase: Phase, inputs: Inputs) -> Found | None:
    counts = _sound(run.rollouts, lambda path: len(rollouts.part(path, "lengths")))
    told = rollouts.claimed(run.rollouts)
    if not counts and told is None:
        return None
    return Found(told or {}, sum(counts.values()))


def _sound(directory: Path, count: Callable[[Path], int]) -> dict[Path, int]:
    """`count` of each shard that can be read."""
    found = {}
    for path in shard_paths(directory):
        with contextlib.suppress(rollouts.DamagedShardError):
            found[path] = count(path)
    return found


def _trained(run: Run, phase: Phase, inputs: Inputs) -> Found | None:
    store = run.store(phase.folder)
    if not store.steps():
        return None
    meta = store.meta()
    return Found(meta, meta["step"])


def _encoded(run: Run, phase: Phase, inputs: Inputs) -> Found | None:
    by = [encoded_by(path) for path in shard_paths(run.latents)]
    ours = by.count(inputs.facts["vision"])
    other = next((vision for vision in by if vision != inputs.facts["vision"]), None)
    return Found({"vision": other or inputs.facts["vision"]}, ours) if by else None


def _recorded(run: Run, phase: Phase, inputs: Inputs) -> Found | None:
    asked = inputs.values
    ours, others, damaged = asked.sort()
    if not ours + others + damaged:
        return None
    done = sum(asked.path(shard) in ours for shard in asked.shards) * agent.SHARD
    return Found({"player": "another, or in other games"} if others else {}, done)


def _measured(run: Run, phase: Phase, inputs: Inputs) -> Found | None:
    return Found({}, 0) if (run.directory / phase.folder).exists() else None


def _nothing(run: Run, phase: Phase, inputs: Inputs) -> None:
    return None


# What is kept aside


def _free(path: Path) -> Path:
    """`path-1`, or the first number that is free."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(1))
    return next(place for place in numbered if not place.exists())


def _memory_aside(run: Run, inputs: Inputs) -> Path:
    kept = _free(run.directory / "memory")
    (run.directory / "memory").rename(kept)
    return kept


def _played_aside(run: Run, inputs: Inputs) -> Path:
    """Another agent's shards, and what V saw in them."""
    kept = _free(run.played)
    (kept / "latents").mkdir(parents=True)
    for path in inputs.values.sort()[1]:
        with contextlib.suppress(FileNotFoundError):
            (run.latents / path.name).rename(kept / "latents" / path.name)
        path.rename(kept / path.name)
    return kept


def _anew(run: Run, changed: str) -> bool:
    return True


COLLECT = Phase("collect", "rollouts", _collect, _collected, section="collect")
VISION = Phase(
    "train-vision",
    "vision",
    _vision,
    _trained,
    section="vision",
    remedies={
        "data": "run collect, which makes again what was set aside, use another run directory"
    },
    task=("latent_size", "salient"),
)
ENCODE = Phase("encode", "latents", _encode, _encoded, gives_way=_anew, task=("latent_size",))
MEMORY = Phase(
    "train-memory",
    "memory",
    _memory,
    _trained,
    section="memory",
    remedies={"data": "to train on with these, add --memory.start-from {}"},
    gives_way=trains_itself_on,
    task=(*RECORDED, "latent_size", "hidden_size", "num_mixtures", "reads_restart"),
)
EVOLVE, LEARN = (
    Phase(
        name,
        name,
        partial(_search, section=name),
        _trained,
        section=name,
        task=("controller_reads", "controller_bias"),
    )
    for name in CONTROLLERS
)
EVALUATE = Phase("evaluate", "results.json", _player, _measured, repeats=True)
RECORD = Phase("record", "played", recording, _recorded, gives_way=_anew)
FIDELITY = Phase("fidelity", "fidelity.json", _player, _measured, repeats=True)
CALIBRATE = Phase("calibrate", "world", lambda run: Inputs(), _nothing)
PHASES = {
    phase.name: phase
    for phase in (
        COLLECT,
        VISION,
        ENCODE,
        MEMORY,
        EVOLVE,
        LEARN,
        EVALUATE,
        RECORD,
        FIDELITY,
        CALIBRATE,
    )
}
ASIDE = {MEMORY.name: _memory_aside, RECORD.name: _played_aside}
