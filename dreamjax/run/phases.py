"""The phases: real game -> V -> M -> dream -> C -> real game.

Paper: section "VizDoom Experiment: Procedure". Each phase writes one folder of the run directory,
records the settings it was made with, and does only what is not there yet; so the same call
resumes a run that was stopped anywhere.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from dreamjax.agent import evaluate, evaluation_seeds
from dreamjax.controller.components import directions
from dreamjax.controller.evolution import Evolution, evolve
from dreamjax.controller.model import Controller
from dreamjax.controller.player import form_of
from dreamjax.controller.policy_gradient import Learning, learn
from dreamjax.dream import worlds
from dreamjax.dream.world import World
from dreamjax.fidelity.compare import ExploitAlarm
from dreamjax.game.collecting import SHAPES, collect
from dreamjax.game.jobs import NONE_PLAYED, play
from dreamjax.game.rollouts import frame_counts, shard_paths
from dreamjax.memory.latents import encode_rollouts
from dreamjax.memory.model import Memory
from dreamjax.memory.training import train_memory
from dreamjax.recording import record
from dreamjax.run import fidelity, inputs, lineage, pictures, places
from dreamjax.run.game import RECORDED
from dreamjax.run.ledger import Inputs, Phase
from dreamjax.run.scores import print_results, published, score
from dreamjax.run.settings import CONTROLLERS, WATCH_SEED, Run
from dreamjax.training import devices
from dreamjax.training.checkpoint import versions
from dreamjax.training.files import write_json
from dreamjax.vision.training import train_vision

BASELINES = ("uniform", "blind")


def _collect(run: Run, made: Inputs) -> None:
    """Record episodes of the real game."""
    how = made.values | {"workers": run.config.workers, "log": run.log}
    asked = run.task, run.rollouts, run.config.collect.episodes, run.seed
    collect(*asked, **how, processes=devices.processes())


def _train_vision(run: Run, made: Inputs) -> None:
    """Train V, the VAE, on the recorded frames."""
    devices.processes().first_then_all(lambda: frame_counts(run.rollouts, say=run.log.say))
    kept = _kept(run, "vision", made) | {"vision": made.values}
    train_vision(run.task, run.rollouts, run.config.vision, run.seed, **kept)


def _encode(run: Run, made: Inputs) -> None:
    """Encode the recorded frames with V."""
    vision, _ = made.values
    for part in filter(shard_paths, (run.rollouts, run.played)):
        encode_rollouts(vision, part, run.latents, log=run.log, processes=devices.processes())


def _train_memory(run: Run, made: Inputs) -> Memory:
    """Train M, the MDN-RNN, on the latents."""
    _, latents, config, began = made.values
    lineage.keep_given(run)
    kept = _kept(run, "memory", made) | {"memory": began}
    return train_memory(run.task, latents, config, run.seed, **kept)


def _evolve(run: Run, made: Inputs) -> Evolution:
    """Train C in the dream by CMA-ES or another evolution strategy."""
    world, params, form, _ = made.values
    kept = _kept(run, "evolve", made) | {"watch": _alarm(run, world, form)}
    kept["directions"] = _directions(run, world, form)
    return evolve(world.env(), params, form, run.config.evolve, run.seed, **kept)


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


def _learn(run: Run, made: Inputs) -> Learning:
    """Train C in the dream by policy gradient."""
    (world, params, player, beside), config = made.values, run.config.learn
    dreams = [params, *(inputs.dream_of(run, other) for other in beside)]
    if run.task.branched if config.branched is None else config.branched:
        config = dataclasses.replace(config, branched=True)
        dreams = [x.branched(dream) for x, dream in zip((world, *beside), dreams, strict=True)]
    kept = _kept(run, "learn", made) | {"whole": params, "others": dreams[1:]}
    kept["watch"] = _alarm(run, world, form_of(player)[0])
    return learn(world.env(), dreams[0], player, config, run.seed, **kept)


def _kept(run: Run, folder: str, made: Inputs) -> dict[str, Any]:
    return {"log": run.log, "store": run.store(folder), "meta": made.facts}


def _keep_player(run: Run, made: Inputs, found: Evolution | Learning, *, phase: str) -> None:
    """Save the C that a search found, bound to its world."""
    if not np.isfinite(found.best_score):
        raise ValueError(f"{phase} has evaluated no C yet; raise --{worlds.SEARCHES[phase]}")
    told = places.portable(made.facts, run.directory)
    found.player.save(run.directory, made.values[0], told | {"phase": phase})


def _alarm(run: Run, world: World, controller: Controller) -> ExploitAlarm | None:
    episodes = run.config.evaluate.watch_episodes
    if not episodes or not devices.is_first():
        return None
    seed = run.seed + WATCH_SEED
    return ExploitAlarm(world, controller, episodes, seed, run.log, run.config.workers)


def _evaluate(run: Run, made: Inputs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Play the real game; save the score table, the curves and the film.

    Found are the returns of C and of policies that were not learnt; a job's processes share games.
    """
    config, (world, player) = run.config.evaluate, made.values
    how = {"log": run.log, "workers": run.config.workers, "processes": devices.processes()}
    own = evaluate(world, player, config.episodes, run.seed, **how)
    beside = {name: _returns(run, name) for name in (*BASELINES, *config.policies)}
    return devices.all_gather(own.returns, config.episodes), beside


def _report(run: Run, made: Inputs, found: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    """Write and print the score table, and draw the curves and the film; the first process does."""
    if not devices.is_first():
        return
    (world, player), (ours, beside) = made.values, found
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
    target, open_loop = run.directory / "dream.gif", run.config.evaluate.open_loop
    pictures.film(world, player, target, run.seed, open_loop)


def _returns(run: Run, policy: str) -> np.ndarray:
    """Returns of a policy in the evaluation's games."""
    episodes = run.config.evaluate.baseline_episodes
    seeds = devices.processes().own(evaluation_seeds(run.seed, episodes))
    how = {"workers": run.config.workers, "log": run.log, "phase": policy}
    own = play(run.task, policy, seeds, **how) if seeds else NONE_PLAYED
    return devices.all_gather(own.returns, episodes)


def _record(run: Run, made: Inputs) -> None:
    """Record C at play; encode and train-memory then use its episodes too."""
    how = {"workers": run.config.workers, "processes": devices.processes()}
    record(made.values, log=run.log, **how)


COLLECT = Phase(
    "collect",
    "rollouts",
    inputs.of_collect,
    _collect,
    found=inputs.collected,
    section="collect",
    task=(*SHAPES, "step_reward"),
)
VISION = Phase(
    "train-vision",
    "vision",
    inputs.of_vision,
    _train_vision,
    section="vision",
    task=("latent_size", "salient"),
    remedy="run collect, which makes again what was set aside, use another run directory",
)
ENCODE = Phase(
    "encode",
    "latents",
    inputs.of_encode,
    _encode,
    found=inputs.encoded,
    task=("latent_size",),
    aside=lambda *_: (),
)
MEMORY = Phase(
    "train-memory",
    "memory",
    inputs.of_memory,
    _train_memory,
    lineage.bind,
    section="memory",
    task=(*RECORDED, "latent_size", "hidden_size", "num_mixtures", "reads_restart"),
    aside=lineage.memory_aside,
    remedy="to train on with these, add --memory.start-from {}",
)
EVOLVE, LEARN = (
    Phase(
        name,
        name,
        partial(inputs.of_search, section=name),
        search,
        partial(_keep_player, phase=name),
        section=name,
        task=("controller_reads", "controller_bias"),
    )
    for name, search in zip(CONTROLLERS, (_evolve, _learn), strict=True)
)
EVALUATE = Phase("evaluate", "results.json", inputs.of_player, _evaluate, _report, repeats=True)
RECORD = Phase(
    "record",
    "played",
    inputs.of_record,
    _record,
    found=inputs.recorded,
    aside=inputs.others_aside,
)
FIDELITY = Phase(
    "fidelity", "fidelity.json", inputs.of_player, fidelity.compare, fidelity.report, repeats=True
)
CALIBRATE = Phase("calibrate", "world", inputs.of_world, fidelity.calibrate, found=lambda *_: None)
_ALL = (COLLECT, VISION, ENCODE, MEMORY, EVOLVE, LEARN, EVALUATE, RECORD, FIDELITY, CALIBRATE)
PHASES = {phase.name: phase for phase in _ALL}
