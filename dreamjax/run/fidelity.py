"""The dream beside the game: everything that is measured of it, and the table of it."""

import contextlib
import dataclasses
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Any

import numpy as np

from dreamjax.agent import evaluate, evaluation_seeds
from dreamjax.controller.player import Player
from dreamjax.controller.population import Dreamt
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world, save_world, world_meta
from dreamjax.fidelity import compare as fidelity
from dreamjax.fidelity import panel
from dreamjax.fidelity.calibrate import true_temperature
from dreamjax.fidelity.doubting import doubt_foretells
from dreamjax.game import policies
from dreamjax.game.env import make_env
from dreamjax.game.jobs import Played, play
from dreamjax.game.policies import play_steps
from dreamjax.memory.foresight import foreseen, foresight
from dreamjax.memory.latents import posteriors, read_latents
from dreamjax.memory.metrics import memory_metrics
from dreamjax.run.ledger import Inputs
from dreamjax.run.lineage import held_below
from dreamjax.run.pictures import draw_fidelity
from dreamjax.run.places import untold
from dreamjax.run.scores import listed, score
from dreamjax.run.settings import WATCH_SEED, Run
from dreamjax.task import FRAME_SHAPE, Task
from dreamjax.training.files import write_json
from dreamjax.training.logbook import Logbook

SIDES = ("dream", "real")


def compare(run: Run, made: Inputs) -> dict[str, Any]:
    """Compare the dream with the real game: returns, ends, predictions, ranks."""
    world, player = made.values
    world, config = run.config.dream.of(world), run.config.fidelity
    others, tau = _others(run), world.params().temperature
    found = _held_out(run, world) | {"policies": {}}
    for name, dreaming, real in _players(run, world, player, others):
        name = _shortest(name, found["policies"])
        found["policies"][name] = _compared(run.task, world, dreaming, real)
    seen, seed = config.seen, run.seed + WATCH_SEED
    games = _unseen_games(run, "held", seed, seen)
    found["vision"] = fidelity.reconstruction(world, np.concatenate(games))
    found |= _shown(run, world, games, tau)
    found["controllers"] = _ranked(run, world, player)
    return found


def _others(run: Run) -> dict[str, World]:
    """The worlds whose C looks at this dream too; an error of any player that cannot be."""
    for policy in (*run.task.panel, *run.config.fidelity.policies):
        policies.check(policy)
        panel.by_policy(run.task, policy, 1, run.seed)(0, np.zeros((1, *FRAME_SHAPE), np.uint8))
    worlds = {name: load_world(name) for name in run.config.fidelity.players}
    for name, other in worlds.items():
        if other.task.profile != run.task.profile:
            raise ValueError(f"C of {name} plays {other.task.profile}, not {run.task.profile}")
        _ = other.player
    return worlds


def _players(
    run: Run, world: World, player: Player, others: dict[str, World]
) -> Iterator[tuple[str, Callable[[World], Dreamt], Played]]:
    """Name, dreams and games of each player: blind ones, those that look, C."""
    config, seed = run.config.fidelity, run.seed
    count = config.panel_episodes
    for name in fidelity.BLINDFOLDED:
        yield name, partial(_blindly, run, name), _played(run, name, config.real_episodes)
    for name in (*run.task.panel, *config.policies):
        dreaming = partial(_looking, run, partial(panel.by_policy, run.task, name, count, seed))
        yield name, dreaming, _played(run, name, count)
    for name, other in others.items():
        act = partial(panel.by_player, other, other.player, count, seed)
        games = _played_awake(run, other, other.player, count)
        yield f"C of {name}", partial(_looking, run, act), games
    population = player.controller, player.weights[None], config.episodes, seed
    real = _played_awake(run, world, player, config.real_episodes, log=run.log)
    yield "C", lambda dream: fidelity.dreamt_returns(dream, *population), real


def _shortest(name: str, taken: Container[str]) -> str:
    """What follows the colon of a policy's name, unless another player is called so."""
    short = name.partition(":")[2]
    return name if not short or short in (*fidelity.BLINDFOLDED, "C") or short in taken else short


def _blindly(run: Run, policy: str, dream: World) -> Dreamt:
    tau = dream.params().temperature
    return fidelity.dreamt_play(dream, policy, run.config.fidelity.episodes, run.seed, tau)


def _looking(run: Run, begin: Callable[[], panel.Acting], dream: World) -> Dreamt:
    return panel.dreamt_looking(dream, begin(), run.config.fidelity.panel_episodes, run.seed)


def report(run: Run, made: Inputs, found: dict[str, Any]) -> None:
    """Write and print what was measured."""
    write_json(run.directory / "fidelity.json", found)
    draw_fidelity(found, run.directory / "fidelity.png")
    print_fidelity(run.task, found, run.log)


def _held_out(run: Run, world: World) -> dict[str, Any]:
    """How M does on the encoded episodes that neither it nor any M before it was trained on."""
    if not run.latents.exists():
        return {}
    below = held_below(run.directory, world_meta(run.directory))
    held = read_latents(run.latents).below(below)
    found: dict[str, Any] = {"deaths": memory_metrics(world.memory, held)}
    with contextlib.suppress(ValueError):  # all are short
        found["foresight"] = foresight(world.memory, held, seed=run.seed)
        found["doubt"] = doubt_foretells(world, held, seed=run.seed)
    return found


def calibrate(run: Run, made: Inputs) -> None:
    """Find the temperature at which dreams last as long as games, and keep it.

    The other settings of the dream are as asked for, and kept as well.
    """
    world = run.config.dream.of(made.values)
    names = fidelity.BLINDFOLDED
    games = run.config.fidelity.real_episodes
    lived = {name: float(_played(run, name, games).lengths.mean()) for name in names}
    tau, dreamt = true_temperature(world, lived, run.config.fidelity.episodes, run.seed)
    save_world(
        run.directory,
        dataclasses.replace(world, temperature=round(tau, 2)),
        untold(world_meta(run.directory)),
    )
    told = ", ".join(f"{name} {dreamt[name]:.0f} ({lived[name]:.0f})" for name in names)
    run.log.say(f"temperature {tau:.2f}; steps in dreams near it (in games): {told}")


def _played(run: Run, policy: str, games: int) -> Played:
    seeds = evaluation_seeds(run.seed + WATCH_SEED, games)
    return play(run.task, policy, seeds, workers=run.config.workers, log=run.log, phase=policy)


def _unseen_games(run: Run, policy: str, seed: int, count: int) -> list[np.ndarray]:
    """The frames of so many games of a policy that are never recorded."""
    games = []
    with contextlib.closing(make_env(run.task)) as env:
        for one in evaluation_seeds(seed, count):
            games.append(np.stack([frame for frame, *_ in play_steps(env, policy, one)]))
    return games


def _shown(run: Run, world: World, games: list[np.ndarray], tau: float) -> dict[str, Any]:
    """Flashes of pain, and salient pixels by age: in `held` games as V draws them, in dreams."""
    task, vision, found = run.task, world.vision, {}
    if task.flash is None and task.salient is None:
        return found
    longest, dreams = max(len(frames) for frames in games), 4 * len(games)
    dreamt = fidelity.dreamt_pictures(world, "held", dreams, longest, run.seed, tau)
    real = (fidelity.decoded(vision, posteriors(vision, frames)[0]) for frames in games)
    for side, episodes in zip(SIDES, (dreamt, real), strict=True):
        counts, reds = [], []
        for pictures in episodes:
            counts.append(fidelity.is_of(task.salient, pictures).sum(axis=(1, 2)))
            if task.flash is not None:
                reds.append(fidelity.flash(task.flash, pictures))
        if task.flash is not None:
            found.setdefault("flashes", {})[side] = fidelity.flashes(reds)
        if task.salient is not None:
            found.setdefault("salient", {})[side] = fidelity.by_age(counts, task)
    return found


def _played_awake(run: Run, world: World, player: Player, episodes: int, **how) -> Played:
    how["workers"] = run.config.workers
    return evaluate(world, player, episodes, run.seed + WATCH_SEED, **how)


def _compared(
    task: Task, world: World, dreaming: Callable[[World], Dreamt], real: Played
) -> dict[str, Any]:
    """Returns in the dream and in the game, and deaths by age where there are deaths.

    `plain` are those of M's own belief: at tau 1, with nothing dropped.
    """
    dreamt = dreaming(world)
    found: dict[str, Any] = {"dream": score(np.ravel(dreamt.score)), "real": score(real.returns)}
    belief = dataclasses.replace(world, temperature=1.0, dropout=None)
    own = world.params()
    same = (own.temperature, own.dropout) == (1.0, None)
    found["plain"] = found["dream"] if same else score(np.ravel(dreaming(belief).score))
    dream, game = (found[side]["mean"] for side in SIDES)
    found["difference"] = round(dream - game, 3)
    if task.step_reward is not None:
        found["ratio"] = round(dream / game, 3)
    if task.ends:
        for side, lengths in zip(SIDES, (np.ravel(dreamt.steps), real.lengths), strict=True):
            rates = fidelity.hazard(lengths, task)
            found[f"{side}_hazard"], found[f"{side}_hazard_error"] = rates
    return found


def _ranked(run: Run, world: World, player: Player) -> dict[str, Any]:
    """Scores of controllers of every quality, in the dream and in the game, and how they agree."""
    config = run.config.fidelity
    form, rollouts = player.controller, 16 * config.controller_episodes
    weights = fidelity.controllers_between(player.weights, config.controllers, run.seed)
    dreamt, real = fidelity.dreamt_scores(world, form, weights, rollouts, run.seed), []
    with run.log.progress("controllers", len(weights), "controllers") as bar:
        for one in weights:
            played = _played_awake(run, world, Player(form, one), config.controller_episodes)
            real.append(float(played.returns.mean()))
            bar.advance(1, f"real {real[-1]:.0f}")
    ranks = fidelity.rank_correlation(dreamt, real)
    return {"dream": [float(x) for x in dreamt], "real": real, **ranks}


def print_fidelity(task: Task, found: dict[str, Any], log: Logbook) -> None:
    """The dream beside the game."""
    what, how = ("return", "difference") if task.step_reward is None else ("steps", "ratio")
    ages = ", ".join(map(str, task.ages))
    wide = max(10, *(len(name) + 2 for name in found["policies"]))
    log.say(f"{what:<{wide}}{'dream':>12}{'at tau 1':>14}{'game':>14}{how:>12}")
    for name, row in found["policies"].items():
        sides = (row[side] for side in ("dream", "plain", "real"))
        dream, plain, real = (f"{x['mean']:.0f} ± {x['std']:.0f}" for x in sides)
        apart = f"{row['difference']:.0f}" if task.step_reward is None else f"{row['ratio']:.2f}"
        log.say(f"{name:<{wide}}{dream:>12}{plain:>14}{real:>14}{apart:>12}")
    if task.ends:
        log.say(f"C's ends in 1,000 steps, ± the standard error, between the ages {ages}:")
        for side in SIDES:
            row = found["policies"]["C"]
            rates = zip(row[f"{side}_hazard"], row[f"{side}_hazard_error"], strict=True)
            log.say(f"  {side:<8}" + "  ".join(f"{x:.2f} ± {error:.2f}" for x, error in rates))
    log.say("V on unseen frames: " + listed(found["vision"]))
    if "salient" in found:
        log.say(f"salient pixels a frame, between the ages {ages}:")
        for side, row in found["salient"].items():
            log.say(f"  {side:<8}{'  '.join(f'{x:.1f}' for x in row)}")
    for side, row in found.get("flashes", {}).items():
        log.say(f"flashes of pain, {side}: {row['rate']:.2f} in 1,000 steps of {row['length']:.0f}")
    log.say("rank correlation over {n} controllers: {rho:.2f}".format(**found["controllers"]))
    if "deaths" in found:
        log.say("M on held-out episodes: " + listed(found["deaths"]))
    if "foresight" in found:
        log.say("M on held-out episodes: " + foreseen(found["foresight"]))
    if "doubt" in found:
        told = "rank correlation of doubt and error over {n} steps: {rho:.2f}"
        log.say(told.format(**found["doubt"]))
