"""One preset over games that nobody tuned for: does C, learnt in the dream alone, play them?

    python experiments/suite.py runs/suite                       # hours; the same line goes on
    python experiments/suite.py runs/suite --games gymnasium:CartPole-v1 gymnasium:Acrobot-v1
    python experiments/suite.py runs/suite --table               # only what there is

Each game is a run of `dreamjax iterate` by its id. The best blind player is chosen in other games
than it is judged in. A game in which a phase learns nothing stays in the table, and says which.
"""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dreamjax.actions import Actions, Choice
from dreamjax.agent import evaluation_seeds
from dreamjax.dream.registration import find_task
from dreamjax.game.jobs import play
from dreamjax.game.policies import Policy
from dreamjax.game.rollouts import frame_counts
from dreamjax.run.found import known
from dreamjax.run.presets import PRESETS
from dreamjax.run.scores import score
from dreamjax.run.settings import Run
from dreamjax.training.files import write_json
from dreamjax.training.logbook import Logbook

GAMES = (
    "gymnasium:CartPole-v1",
    "gymnasium:Acrobot-v1",
    "gymnasium:Pendulum-v1",
    "gymnasium:LunarLander-v3",
    "gymnasium:VizdoomBasic-v1",
    "gymnasium:VizdoomHealthGathering-v1",
    "gymnasium:ALE/Breakout-v5",
    "gymnasium:ALE/Freeway-v5",
    "gymnasium:ALE/Pong-v5",
)
ALWAYS = 9  # blind players of one action for good
CHOSEN_BY = 10_000  # added to the seed: the games by which the best blind player is chosen


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    directory: Annotated[Path, tyro.conf.Positional]  # a run for each game goes here
    games: tuple[str, ...] = GAMES
    preset: str = "quick"
    rounds: int = 2
    seed: int = 0
    episodes: int = 100  # by which players are judged
    choosing: int = 20  # episodes of each blind player, to choose the best
    table: bool = False  # train nothing


def _always(number: int, actions: Actions, rng: np.random.Generator) -> Policy:
    """One action for good: a choice, or the centre of a box or one of its sides."""
    space = actions.space()
    if isinstance(actions, Choice):
        action = np.eye(actions.n, dtype=np.float32)[number % actions.n]
    else:
        action = (space.low + space.high) / 2
        place, side = divmod(number - 1, 2)
        if number and place < actions.size:
            action[place] = (space.low, space.high)[side][place]
    return lambda step, frame=None: action


for _number in range(ALWAYS):
    globals()[f"always_{_number}"] = functools.partial(_always, _number)


def main(config: Config) -> list[dict[str, Any]]:
    """Do what is left of each game; the rows of the table, which is printed and written."""
    config.directory.mkdir(parents=True, exist_ok=True)
    rows = [_row(config, name) for name in config.games]
    write_json(config.directory / "suite.json", rows)
    print(f"{'game':<34}{'random':>16}{'best blind':>16}{'C':>16}{'in dream':>10}", end="")
    print(f"{'steps':>10}{'min':>6}  ")
    for row in rows:
        scores = [_told(row.get(name)) for name in ("random", "blind", "ours")]
        print("{:<34}{:>16}{:>16}{:>16}".format(row["game"], *scores), end="")
        print("{dream:>10.4g}{steps:>10,}{minutes:>6.0f}  {verdict}".format(**row))
    return rows


def _told(found: dict[str, Any] | None) -> str:
    return "{mean:.1f} ± {std:.1f}".format(**found) if found else "-"


def _row(config: Config, name: str) -> dict[str, Any]:
    """What came of one game, whose run is done if it is not."""
    task = find_task(name)
    directory = config.directory / task.name
    why = None if config.table else _train(config, name, directory)
    last = directory / f"round-{config.rounds}" if config.rounds else directory
    parts = [directory, *sorted(directory.glob("round-*"))]
    row: dict[str, Any] = {
        "game": name,
        "dream": np.nan,
        "steps": sum(frame_counts(directory / "rollouts").values()) if directory.exists() else 0,
        "minutes": sum(map(_seconds, parts)) / 60,
        "verdict": why or "not done",
    }
    if (last / "played").exists():
        row["steps"] += sum(frame_counts(last / "played").values())
    if not (last / "results.json").exists():
        return row
    found = json.loads((last / "results.json").read_text())
    row |= {key: found[key] for key in ("random", "ours", "dream")}
    row["blind"], row["by"] = _best_blind(config, task, last)
    least = max(row[key]["ci95"][1] for key in ("random", "blind"))
    row["verdict"] = "yes" if row["ours"]["ci95"][0] > least else "no"
    return row


def _train(config: Config, name: str, directory: Path) -> str | None:
    """Run a game's command; why it stopped, if it did."""
    words = [name, "--preset", config.preset, "--run-dir", str(directory)]
    words += ["--seed", str(config.seed)]
    words += [f"--evaluate.{x}={config.episodes}" for x in ("episodes", "baseline-episodes")]
    rounds = ["--iterate.rounds", str(config.rounds)]
    words = ["iterate", *words, *rounds] if config.rounds else ["run", *words]
    done = subprocess.run(
        [sys.executable, "-m", "dreamjax", *words], stderr=subprocess.PIPE, text=True
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("dreamjax: ")]
    return said[-1].removeprefix("dreamjax: ") if done.returncode and said else None


def _seconds(directory: Path) -> float:
    """What the phases of a run took."""
    path = directory / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    names = ("time", "step")
    taken = (row for row in rows if row["phase"] == "seconds")
    return sum(x for row in taken for k, x in row.items() if k not in (*names, "phase"))


def _best_blind(config: Config, task: Any, directory: Path) -> tuple[dict[str, Any], str]:
    """The score of the best blind player, kept beside the run, and its name."""
    kept = directory / "blind.json"
    if kept.exists():
        found = json.loads(kept.read_text())
        return found["score"], found["by"]
    run = Run(directory, task, config.seed, PRESETS[config.preset], Logbook(quiet=True))
    task = known(run).task
    names = ["uniform", "held", "varied"]
    count = task.action_size if isinstance(task.actions, Choice) else 2 * task.action_size + 1
    names += [f"experiments.suite:always_{k}" for k in range(min(ALWAYS, count))]
    trials = evaluation_seeds(config.seed + CHOSEN_BY, config.choosing)
    best = max(names, key=lambda name: play(task, name, trials).returns.mean())
    seeds = evaluation_seeds(config.seed, config.episodes)
    found = {"score": score(play(task, best, seeds).returns), "by": best}
    write_json(kept, found)
    return found["score"], best


if __name__ == "__main__":
    main(tyro.cli(Config))
