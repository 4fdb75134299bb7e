"""Dream against game for players that taught the world nothing, at a temperature of one's choice.

    python experiments/panel.py --world car-racing --tracks 24

`dreamjax fidelity` has the same players, and more beside them. Those that look are shown the game,
or what V decodes of the dream.
"""

import dataclasses

import numpy as np
import tyro

from dreamjax.agent import evaluation_seeds
from dreamjax.dream.worlds import load_world
from dreamjax.fidelity import by_policy, dreamt_looking
from dreamjax.game import policies
from dreamjax.game.jobs import play
from dreamjax.training.settings import require_positive, require_within

BLIND = ("blind", "uniform", "held")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str = "car-racing"  # a run, or a world's name or folder
    policies: tuple[str, ...] = ()  # players, as module:function; none: the game's panel
    temperature: float = 1.0
    dropout: float = 0.0  # of the dream
    dreams: int = 24
    tracks: int = 0  # games; 0 leaves the game out
    seed: int = 5

    def __post_init__(self):
        require_positive(self, "dreams")
        require_within(self, tracks="[0, inf)")
        for policy in self.policies:
            policies.check(policy)


def main(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Print, and return, the returns of each player in the dream [dreams] and the game [tracks]."""
    world = load_world(config.world)
    tuned = {"temperature": config.temperature, "dropout": config.dropout or None}
    world, found = dataclasses.replace(world, **tuned), {}
    print(f"{'player':<20}{'dream':>16}{'game':>16}")
    for policy in config.policies or (*world.task.panel, *BLIND):
        act = by_policy(world.task, policy, config.dreams, config.seed)
        returns = {"dream": dreamt_looking(world, act, config.dreams, config.seed).score}
        if config.tracks:
            seeds = evaluation_seeds(config.seed, config.tracks)
            returns["game"] = play(world.task, policy, seeds).returns
        name = policy.partition(":")[2] or policy
        found[name] = returns
        told = (f"{x.mean():.0f} ± {x.std():.0f}" for x in returns.values())
        print(f"{name:<20}" + "".join(f"{x:>16}" for x in told), flush=True)
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
