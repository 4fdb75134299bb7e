"""Every setting of a run, and the run directory that records them."""

import dataclasses
from pathlib import Path
from typing import Literal

from dreamjax.controller.evolution import EvolveConfig
from dreamjax.controller.ppo import LearnConfig
from dreamjax.dream import env
from dreamjax.dream.world import TUNED, World
from dreamjax.dream.worlds import SEARCHES
from dreamjax.memory.training import MemoryConfig
from dreamjax.task import Task
from dreamjax.training.checkpoint import Store
from dreamjax.training.logbook import Logbook
from dreamjax.training.settings import SettingError, require_positive, require_within
from dreamjax.vision.training import VisionConfig

WATCH_SEED = 1000  # added to a run's seed, so that the games watched are never those of its score


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """What is recorded of the real game."""

    episodes: int = 10_000
    # the paper's "held": a random action for 1 to 10 tics; "habits": the task's; or module:function
    policy: str = "held"
    min_steps: int = 0  # shorter episodes are dropped; the paper keeps more than 100 frames

    def __post_init__(self):
        require_positive(self, "episodes")
        require_within(self, min_steps="[0, inf)")


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """The dream that C grows in."""

    temperature: float | None = None  # tau; None is the world's own, or else the task's
    death_threshold: float | None = None  # of M's logit; the paper's is 0, None is as calibrated
    death_noise: float | None = None  # the paper's is 0; 1, and None, sample deaths
    dropout: float | None = None  # of what M reads, a whole dream long; None is the world's own
    bfloat16: bool | None = None  # C is found by such products; None where the device is faster so

    def of(self, world: World) -> World:
        """`world`, its dream tuned as asked for."""
        return dataclasses.replace(world, **self._asked())

    def _asked(self) -> dict[str, float]:
        return {name: x for name in TUNED if (x := getattr(self, name)) is not None}

    def __post_init__(self):
        for name, value in self._asked().items():
            getattr(env, f"check_{name}")(value)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """How the awake agent is judged."""

    episodes: int = 100
    baseline_episodes: int = 100  # of each policy that C is judged beside
    policies: tuple[str, ...] = ()  # such policies beside the random and the blind one
    watch_episodes: int = 0  # real ones at each of evolve's evaluations, to warn of exploits

    def __post_init__(self):
        require_positive(self, "episodes", "baseline_episodes")
        require_within(self, watch_episodes="[0, inf)")


@dataclasses.dataclass(frozen=True)
class FidelityConfig:
    """How a dream is compared with the game."""

    episodes: int = 512  # dreams of each policy that never looks
    real_episodes: int = 200  # real ones
    controllers: int = 30  # of every quality
    controller_episodes: int = 16  # real ones of each; its dreams are 16 times as many
    seen: int = 30  # real episodes whose frames V gives back and whose flashes are counted
    horizon: int = 60  # steps dreamt on from the middle of real episodes

    def __post_init__(self):
        require_positive(self, *(x.name for x in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class IterateConfig:
    """How often C's own play teaches M, and by how much."""

    rounds: int = 3
    episodes: int = 96  # that C plays for a round; rounded up to whole shards over all rounds
    memory_steps: int | None = None  # updates of M a round; None is memory.steps

    def __post_init__(self):
        require_positive(self, "rounds", "episodes")
        if self.memory_steps is not None:
            require_positive(self, "memory_steps")


CONTROLLERS = tuple(SEARCHES)  # phases that find C; a run does one of them


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Every setting of a run but the game and the seed; SettingError for one that cannot be."""

    collect: CollectConfig = CollectConfig()
    vision: VisionConfig = VisionConfig()
    memory: MemoryConfig = MemoryConfig()
    dream: DreamConfig = DreamConfig()
    evolve: EvolveConfig = EvolveConfig()
    learn: LearnConfig = LearnConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    fidelity: FidelityConfig = FidelityConfig()
    iterate: IterateConfig = IterateConfig()
    controller: Literal["evolve", "learn"] = "evolve"  # how `run` finds C; the paper evolves it
    controller_hidden: int | None = None  # units of C's hidden layer; 0: none, None: the task's
    workers: int | None = None  # processes that play the game; None is one a core
    save_seconds: float = 120.0  # between two checkpoints of a training; 0 is after every call

    def __post_init__(self):
        require_within(self, save_seconds="[0, inf)")
        if self.controller_hidden is not None:
            require_within(self, controller_hidden="[0, inf)")
        if self.workers is not None and self.workers < 1:
            raise SettingError(f"workers must be at least 1, got {self.workers}")

    def hidden(self, task: Task, phase: str) -> int:
        """Units of the hidden layer of the C that "learn" or "evolve" finds; 0 of a linear one."""
        if self.controller_hidden is not None:
            return self.controller_hidden
        return task.controller_hidden if phase == "learn" else 0


@dataclasses.dataclass(frozen=True)
class Run:
    """One run."""

    directory: Path  # of all that it writes
    task: Task  # its game
    seed: int  # of everything random
    config: RunConfig  # what it leaves to the task is filled in
    log: Logbook  # where it reports to

    def __post_init__(self):
        parts = {name: getattr(self.config, name).of(self.task) for name in ("memory", "learn")}
        object.__setattr__(self, "config", dataclasses.replace(self.config, **parts))

    @property
    def rollouts(self) -> Path:
        """Folder of the recorded episodes."""
        return self.directory / "rollouts"

    @property
    def played(self) -> Path:
        """Folder of the episodes that the evolved agent recorded."""
        return self.directory / "played"

    @property
    def latents(self) -> Path:
        """Folder of the encoded episodes."""
        return self.directory / "latents"

    def store(self, phase: str) -> Store:
        """Training checkpoints of a phase."""
        return Store(self.directory / phase, seconds=self.config.save_seconds)
