"""Take Cover: C learns only in the dream, then plays the real game (paper, section 4).

    python experiments/take_cover.py --preset quick --run-dir runs/quick

The paper's procedure, top to bottom; what is done is not done again. Presets by the machine
they are for: `smoke` (about a minute on 2 cores, proves that it works), `quick` (under 20 minutes
on 2 cores), `cpu` (sized for 3 hours on 2 cores), `paper` (one GPU and 16 cores). Scores to expect
are in docs/results.md; the paper's is 1092 +- 556.
"""

import dataclasses
from pathlib import Path

import tyro

from dreamjax.run import phases
from dreamjax.run.ledger import do
from dreamjax.run.presets import PRESETS
from dreamjax.run.settings import Run
from dreamjax.tasks import TAKE_COVER
from dreamjax.training.files import writable
from dreamjax.training.logbook import Logbook


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    run_dir: Path  # everything is written here
    preset: str = "quick"  # smoke, quick, cpu or paper
    seed: int = 0


def main(config: Config) -> None:
    """Real game -> V -> M -> dream -> C -> real game."""
    directory = writable(config.run_dir)
    run = Run(directory, TAKE_COVER, config.seed, PRESETS[config.preset], Logbook(directory))
    do(run, phases.COLLECT)  # record games of a random policy
    do(run, phases.VISION)  # train V to compress their frames
    do(run, phases.ENCODE)  # what V sees of them is all that M will see
    do(run, phases.MEMORY)  # train M to predict the next latent and death: that is the dream
    # CMA-ES finds C in the dream alone; policy gradient does, sooner
    do(run, phases.EVOLVE if run.config.controller == "evolve" else phases.LEARN)
    do(run, phases.EVALUATE)  # C wakes and plays


if __name__ == "__main__":
    main(tyro.cli(Config))
