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
    """What is recorded from the real game."""

    episodes: int = 10_000
    max_frames: int | None = None  # fewer episodes, if so many hold more frames; None: no bound
    # held (the paper's: a random action for 1 to 10 tics), habits (the task's), or module:function
    policy: str = "held"
    min_steps: int = 0  # shorter episodes are dropped; the paper: 101

    def __post_init__(self):
        require_positive(self, "episodes")
        if self.max_frames is not None:
            require_positive(self, "max_frames")

    def at_most(self, length: float) -> int:
        """How many episodes are recorded that have so many steps."""
        bound = self.episodes if self.max_frames is None else int(self.max_frames / length)
        return max(1, min(self.episodes, bound))
        require_within(self, min_steps="[0, inf)")


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """The dream that C is trained in."""

    temperature: float | None = None  # tau; None: the world's, else the task's
    death_threshold: float | None = None  # on the logit of an end; the paper: 0, None: calibrated
    death_noise: float | None = None  # 0 as in the paper; 1 (None): ends are sampled
    dropout: float | None = None  # dropout in the dream, one mask per dream; None: the world's
    bfloat16: bool | None = None  # bfloat16 products; None: if the device is faster so

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
    """How the agent is evaluated in the real game."""

    episodes: int = 100
    baseline_episodes: int = 100  # episodes of each baseline
    policies: tuple[str, ...] = ()  # more baselines, as module:function
    open_loop: bool = False  # the film's dream is given the game's actions, not C's own
    watch_episodes: int = 0  # real episodes at each evaluation, to warn of exploits

    def __post_init__(self):
        require_positive(self, "episodes", "baseline_episodes")
        require_within(self, watch_episodes="[0, inf)")


@dataclasses.dataclass(frozen=True)
class FidelityConfig:
    """How a dream is compared with the game."""

    episodes: int = 512  # dreams of each blind policy
    real_episodes: int = 200  # real episodes of each policy
    controllers: int = 30  # controllers of every quality, for the rank correlation
    controller_episodes: int = 16  # real episodes of each; 16 times as many dreams
    policies: tuple[str, ...] = ()  # more players that look at the dream, as module:function
    players: tuple[str, ...] = ()  # runs or worlds whose C looks at the dream too
    panel_episodes: int = 24  # dreams, and real episodes, of each player that looks at the dream
    seen: int = 30  # real episodes that V reconstructs

    def __post_init__(self):
        require_positive(self, *(x.name for x in dataclasses.fields(self) if x.type is int))


@dataclasses.dataclass(frozen=True)
class IterateConfig:
    """Rounds in which C plays and M is trained on its play."""

    rounds: int = 3
    episodes: int = 96  # real episodes that C plays per round
    memory_steps: int | None = None  # updates of M per round; None: memory.steps

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
    controller: Literal["evolve", "learn"] = "evolve"  # how `run` trains C; the paper evolves it
    controller_hidden: int | None = None  # hidden units of C; 0: linear, None: the task's
    workers: int | None = None  # processes that play the game; None: one per core
    must_learn: bool = True  # a whole run stops after a phase that has learnt nothing
    save_seconds: float = 120.0  # between two checkpoints; 0: after every call

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
