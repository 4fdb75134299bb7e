"""What a run has, what it lacks, and what each command will do in it: one table, one function.

Whoever wants to know asks `decide`: a command before it begins, a dry run, the doctor.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax import recording
from dreamjax.dream.env import EnvParams
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.game import collecting, rollouts
from dreamjax.game.collecting import SHAPES
from dreamjax.game.rollouts import UNREADABLE, shard_paths
from dreamjax.memory.latents import encoded_by, name_of, read_latents
from dreamjax.run import lineage
from dreamjax.run.settings import CONTROLLERS, WATCH_SEED, Run
from dreamjax.task import by_value, differs
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.training.devices import is_first, processes, product_dtype
from dreamjax.training.files import write_json

FRESH, RESUME, DONE, AGAIN, REFUSE = "fresh", "resume", "done", "again", "refuse"
TASK = "task.json"  # the game by value, as each folder of the run was made with it
RECORDED = (*SHAPES, "step_reward", "reward_scale")  # fields of a game that shape a run
FIRST_VALUES = {"scaled": False}  # of settings that older checkpoints do not tell
LOOSE = {"config", "versions", "step", "held_below", "bfloat16"}  # may differ; the last is a wish


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a phase would be made from."""

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # that checkpoints record
    values: Any = None  # what the phase itself needs, loaded
    total: int = 0  # how much there will be in the end


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a phase will do in a run, and why."""

    kind: str  # "fresh", "resume", "done", "again" or "refuse"
    said: str  # the same in words, with the remedy of a refusal
    inputs: Inputs | None = None  # None where it is refused
    aside: Sequence[Path] = ()  # what is kept aside where it begins again
    fault: ValueError | None = None  # why it is refused


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run."""

    name: str  # its command
    folder: str  # what it writes, below the run's directory
    reads: Callable[[Run], Inputs]  # raises ValueError where that cannot be had
    # of what there is, the facts and how much, None is nothing; by itself: of its checkpoints
    found: Callable[[Run, Inputs], tuple[dict[str, Any], int] | None] | None = None
    section: str = ""  # its settings in `RunConfig`; those in their `grows` may have changed since
    task: tuple[str, ...] = RECORDED  # fields of the game that shape what it writes
    # the files that give way to new ones where the named fact has changed; None is a refusal
    aside: Callable[[Run, Inputs, str], Sequence[Path] | None] = lambda *_: None
    remedy: str = ""  # what to do where the data have changed
    repeats: bool = False  # whether it measures anew each time, in place of what there is


def decide(run: Run, phase: Phase) -> Decision:
    """What a phase will do in a run; nothing is changed."""
    try:
        check_game(run)
        return _compared(run, phase, phase.reads(run))
    except ValueError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        return Decision(REFUSE, f"refuses: {said}", fault=error)


def _compared(run: Run, phase: Phase, inputs: Inputs) -> Decision:
    """What a phase that can be made will do beside what there is of it."""
    exists = (run.directory / phase.folder).exists()
    if exists and phase.repeats:
        return Decision(AGAIN, f"plays again, in place of {phase.folder}", inputs)
    found = phase.found(run, inputs) if phase.found else _trained(run.store(phase.folder))
    if found is None:
        return Decision(FRESH, "begins anew" if exists else "begins", inputs)
    made, done = found
    grows = getattr(getattr(run.config, phase.section, None), "grows", ())
    for name, old, new in differences(made, inputs.facts, grows, run.directory):
        aside = phase.aside(run, inputs, name)
        if aside is not None:
            return Decision(AGAIN, f"begins again: {name} was {old}, now {new}", inputs, aside)
        remedy = phase.remedy if name == "data" else "use another run directory"
        raise CheckpointError(
            f"{run.directory / phase.folder} was made with {name}={old}, now {name}={new}; "
            f"{remedy.format(run.directory)}, or remove that folder to make it anew"
        )
    if done < inputs.total:
        return Decision(RESUME, f"goes on from {done:,} of {inputs.total:,}", inputs)
    return Decision(DONE, f"is done, at {done:,}", inputs)


def _trained(store: Store) -> tuple[dict[str, Any], int] | None:
    return (store.meta(), store.meta()["step"]) if store.steps() else None


def begin(run: Run, phase: Phase) -> Inputs:
    """What a phase is made from, where `decide` lets it begin; what gives way is kept aside.

    Raises:
      ValueError: it is refused, in one line; nothing has changed.
    """
    decision = processes().first_then_all(lambda: _begun(run, phase))
    if decision.fault is not None:
        raise decision.fault
    return decision.inputs


def _begun(run: Run, phase: Phase) -> Decision:
    decision = decide(run, phase)
    if is_first() and decision.kind != REFUSE:
        if decision.aside:
            kept = _keep(run.directory / phase.folder, decision.aside)
            run.log.say(f"{phase.folder} so far is kept in {kept}; {phase.name} {decision.said}")
            return _begun(run, phase)
        _note_game(run, phase)
    return decision


def _keep(folder: Path, paths: Sequence[Path]) -> Path:
    """Move files of a folder, and of those beside it, to `folder-1` or what is free; where."""
    numbered = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(1))
    kept = next(place for place in numbered if not place.exists())
    for path in paths:
        target = kept / path.relative_to(folder if folder in path.parents else folder.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return kept


def foretold(run: Run, phases: Iterable[Phase]) -> tuple[str, ...]:
    """Say what each of some phases would do, one after another; the names of those left to do."""
    left = ()
    for phase in phases:
        decision = decide(run, phase)
        waits = decision.kind == REFUSE and left
        run.log.say(f"{phase.name} {'waits for what is before it' if waits else decision.said}")
        left += (phase.name,) if decision.kind != DONE else ()
    return left


def differences(
    made: dict[str, Any], wanted: dict[str, Any], grows: Iterable[str], home: Path
) -> Iterator[tuple[str, Any, Any]]:
    """`(name, old, new)` of all in which what was made, in the run at `home`, is not as wanted.

    What only one of the two tells makes no difference.
    """
    new = _flat(wanted, grows)
    for name, old in (FIRST_VALUES | _flat(made, grows)).items():
        if name in new and not _agree(name, old, new[name], home):
            yield name, old, new[name]


def _flat(facts: dict[str, Any], grows: Iterable[str]) -> dict[str, Any]:
    flat = facts | facts.get("config", {})
    return json.loads(json.dumps({k: x for k, x in flat.items() if k not in {*LOOSE, *grows}}))


def _agree(name: str, old: Any, new: Any, home: Path) -> bool:
    if name == "start_from":
        return lineage.is_same(old, new, home)
    if name == "worlds":
        return len(old) == len(new) and all(map(lineage.is_same, old, new, itertools.repeat(home)))
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
    for part, game in _games(run).items():
        folder, known = run.directory / part, (name for name in game if hasattr(run.task, name))
        for name, new in by_value(run.task, known).items():
            if folder.exists() and differs(game[name], new):
                raise CheckpointError(
                    f"{folder} was made with {name} {game[name]!r} of {run.task.name}, which is "
                    f"now {new!r}; undo that, or use another run directory"
                )


def _games(run: Run) -> dict[str, dict[str, Any]]:
    """The game that each folder was made with, as far as is told."""
    try:
        found = json.loads((run.directory / TASK).read_text())
        return {folder: dict(game) for folder, game in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _note_game(run: Run, phase: Phase) -> None:
    """Write down the game that a phase is done with; what cannot be read is kept aside."""
    path, games = run.directory / TASK, _games(run)
    if path.exists() and not games:
        path.rename(path.with_name(f"{TASK}.corrupt"))
        run.log.say(f"{path} is damaged; set aside as {TASK}.corrupt and written anew")
    game = by_value(run.task, phase.task)
    if games.get(phase.folder) != game:
        write_json(path, games | {phase.folder: game})


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


# What each phase is made from


def _told(run: Run, config: Any, **facts: Any) -> dict[str, Any]:
    """What the checkpoints of a training record of the run, its settings and `facts`."""
    told = lineage.renamed(
        dataclasses.asdict(config), lambda source: lineage.way(source, run.directory)
    )
    game = {"task": run.task.name, "profile": run.task.profile, "seed": run.seed}
    return {**game, "config": told, **facts}


def _collect(run: Run) -> Inputs:
    config = run.config.collect
    how = {"policy": config.policy, "min_steps": config.min_steps}
    collecting.check_request(run.task, run.rollouts, config.episodes, **how)
    return Inputs(collecting.settings_of(run.task, seed=run.seed, **how), how, config.episodes)


def _vision(run: Run) -> Inputs:
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


def _encode(run: Run) -> Inputs:
    shards = [path.name for part in (run.rollouts, run.played) for path in shard_paths(part)]
    if not shards:
        raise ValueError(f"no rollouts in {run.rollouts}; collect some first")
    vision = lineage.load_vision(run)
    return Inputs({"vision": digest(vision)}, (vision, shards), len(shards))


def _memory(run: Run) -> Inputs:
    vision, latents, config = (
        lineage.load_vision(run),
        read_latents(run.latents),
        lineage.memory_settings(run),
    )
    ours = digest(vision)
    if latents.vision != ours:
        raise CheckpointError(
            f"{run.latents} was encoded by V {latents.vision[:12]}, but this run's V is "
            f"{ours[:12]}; run encode again"
        )
    facts = {"vision": ours, "data": latents.name, "held_out_by": "seed"}
    facts["products"] = str(product_dtype(config.bfloat16))
    facts["held_below"] = lineage.judged_below(run, config, latents)
    loaded = vision, latents, config, lineage.memory_to_train_on(run, config, vision)
    return Inputs(_told(run, config, **facts), loaded, config.steps)


def _search(run: Run, section: str) -> Inputs:
    """The world, its dream, the C or form of C to begin with, and the worlds beside it."""
    world, learns, config = load_world(run.directory), section == "learn", run.config
    beside = lineage.worlds_beside(run, world) if learns else []
    params, player = dream_of(run, world), world.controller(config.hidden(run.task, section))
    facts = {"world": world.digest(), "products": str(product_dtype(config.dream.bfloat16))}
    facts |= {"beside": [x.digest()[:12] for x in beside], "dropout": params.dropout}
    for name in ("temperature", "death_threshold", "death_noise"):
        facts[name] = float(getattr(params, name))
    facts["controller_hidden"], own = player.hidden, getattr(config, section)
    player = lineage.player_to_learn_on(run, player) if learns else player
    total = own.updates if learns else own.generations
    return Inputs(_told(run, own, **facts), (world, params, player, beside), total)


def dream_of(run: Run, world: World) -> EnvParams:
    """A world's dream as the run's settings have it."""
    dream = run.config.dream
    return dream.of(world).params(dtype=product_dtype(dream.bfloat16))


def _player(run: Run) -> Inputs:
    """V, M and C awake."""
    world = load_world(run.directory)
    return Inputs(values=(world, world.player))


def played(run: Run, by: Path | None = None, episodes: int | None = None) -> Inputs:
    """What `record` is to play: C of this run, or of the run at `by` so many in all."""
    player = dataclasses.replace(run, directory=by or run.directory)
    first = len(shard_paths(player.played)) if by else 0
    games = run.played, episodes or run.config.collect.episodes, run.seed + WATCH_SEED
    asked = recording.Recording(*_player(player).values, *games, first)
    return Inputs({"player": asked.identity[:12]}, asked, len(asked.paths))


# What there is of them, and what of that gives way


def _collected(run: Run, inputs: Inputs) -> tuple[dict[str, Any], int] | None:
    episodes, told = [len(x) for _, x in _lengths(run.rollouts)], collecting.claimed(run.rollouts)
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
    aside=lineage.memory_aside,
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
