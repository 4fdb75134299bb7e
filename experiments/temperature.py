"""How the dream's temperature decides what C learns there (the paper's second table).

    python experiments/temperature.py --world take-cover --out runs/temperature

For every tau and seed: learn C in the dream at that tau by policy gradient (the paper evolves it),
score it there and in the real game. What is learnt and what is found is kept, so the same command
goes on after a stop.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax.agent import evaluate
from dreamjax.controller.policy_gradient import learn
from dreamjax.controller.ppo import LearnConfig
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.fidelity.compare import dreamt_scores
from dreamjax.run.scores import score
from dreamjax.training.checkpoint import Store
from dreamjax.training.files import writable, write_json
from dreamjax.training.logbook import Logbook

# tau: (score in the dream, score in the game), mean and standard deviation of 100 episodes
PAPER = {
    0.10: ((2086, 140), (193, 58)),
    0.50: ((2060, 277), (196, 50)),
    1.00: ((1145, 690), (868, 511)),
    1.15: ((918, 546), (1092, 556)),
    1.30: ((732, 269), (753, 139)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    out: Path  # results.json, temperature.png and every C are kept here
    world: str = "take-cover"  # a shipped world or a run directory
    temperatures: tuple[float, ...] = tuple(PAPER)
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 100  # real ones of each controller
    dreams: int = 1024
    learn: LearnConfig = LearnConfig(steps=8_000_000)  # how each C is learnt
    workers: int | None = None


def main(config: Config) -> list[dict[str, Any]]:
    """Train, score, print and draw."""
    out, world = writable(config.out), load_world(config.world)
    log, path = Logbook(out), out / "results.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for tau in config.temperatures:
        for seed in config.seeds:
            if not any((row["tau"], row["seed"]) == (tau, seed) for row in rows):
                rows.append(measure(world, tau, seed, config, log))
                write_json(path, rows)
    print_table(rows, log)
    draw(rows, out / "temperature.png")
    return rows


def measure(world: World, tau: float, seed: int, config: Config, log: Logbook) -> dict[str, Any]:
    """C learnt at one tau, awake and dreaming."""
    params, controller = world.params(tau), world.controller()
    store = Store(config.out / f"tau-{tau}-seed-{seed}", keep=1)
    kept = {"store": store, "log": Logbook(writable(store.directory))}
    found = learn(world.env(), params, controller, config.learn, seed, **kept)
    best = jnp.array(found.best)[None]
    dreamt = dreamt_scores(world, controller, best, config.dreams, seed, tau)
    real = evaluate(world, found.player, config.episodes, seed, log=log, workers=config.workers)
    return {
        "tau": tau,
        "seed": seed,
        "dream": float(dreamt[0]),
        "real": [float(x) for x in real.returns],
    }


def print_table(rows: list[dict[str, Any]], log: Logbook) -> None:
    """One line a tau: all seeds' episodes together, and each seed's mean."""
    log.say("tau   dream  real: mean ± std, n, 95 % interval, each seed | paper: dream, real")
    for tau in sorted({row["tau"] for row in rows}):
        mine = [row for row in rows if row["tau"] == tau]
        real = score(np.concatenate([row["real"] for row in mine]))
        seeds = ", ".join(f"{np.mean(row['real']):.0f}" for row in mine)
        dream = np.mean([row["dream"] for row in mine])
        theirs = " ".join(f"{mean}±{std}" for mean, std in PAPER.get(tau, ()))
        log.say(
            f"{tau:<5} {dream:>5.0f}  {real['mean']:.0f} ± {real['std']:.0f}, {real['n']}, "
            f"{real['ci95'][0]:.0f} to {real['ci95'][1]:.0f}, {seeds} | {theirs}"
        )


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Scores against tau, dream and game, ours and the paper's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    for place, colour in (("dream", "tab:purple"), ("real", "tab:green")):
        points = [(row["tau"], np.mean(row[place])) for row in rows]
        axis.plot(*zip(*points, strict=True), "o", color=colour, label=f"ours, {place}")
        theirs = [pair[place == "real"][0] for pair in PAPER.values()]
        axis.plot(list(PAPER), theirs, "--", color=colour, label=f"paper, {place}")
    axis.set(xlabel="temperature of the dream", ylabel="steps survived")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config))
