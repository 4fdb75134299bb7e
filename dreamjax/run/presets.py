"""Named sizes of a run. `paper` is the paper's; the others are what a machine and a wait allow."""

from dataclasses import replace

from dreamjax.controller.evolution import EvolveConfig
from dreamjax.controller.ppo import LearnConfig
from dreamjax.dream.env import PAPER_NOISE, PAPER_THRESHOLD
from dreamjax.memory.training import MemoryConfig
from dreamjax.run.settings import (
    CollectConfig,
    DreamConfig,
    EvaluateConfig,
    IterateConfig,
    RunConfig,
)
from dreamjax.vision.training import VisionConfig

# Beyond the paper, of `quick` and `cpu`: V sees what is small, M practises on its own guesses.
_VISION = VisionConfig(learning_rate=1e-3, final_learning_rate=2e-5, salient_weight=10.0)
_MEMORY = MemoryConfig(num_events=4, clock=None, residual=None, dropout=0.05, own_guesses=0.25)

DEFAULT = "quick"
PRESETS = {
    # About a minute on 2 cores: proves that every phase works, not that it learns.
    "smoke": RunConfig(
        collect=CollectConfig(episodes=8),
        vision=VisionConfig(steps=8, batch_size=8, learning_rate=1e-3),
        memory=MemoryConfig(steps=12, batch_size=8, sequence_length=64),
        evolve=EvolveConfig(generations=2, population=8, rollouts=2, eval_every=2, eval_rollouts=8),
        learn=LearnConfig(
            steps=2048, num_envs=32, num_steps=32, num_minibatches=4, eval_every=1, eval_rollouts=8
        ),
        evaluate=EvaluateConfig(episodes=4, baseline_episodes=10),
        must_learn=False,
    ),
    # A quarter of an hour on 2 fast cores, less than an hour on slow ones; as `iterate`, 8 minutes
    # more for each round.
    "quick": RunConfig(
        collect=CollectConfig(episodes=6400, max_frames=300_000, policy="habits"),
        vision=replace(_VISION, steps=4000),
        memory=replace(
            _MEMORY,
            steps=2500,
            batch_size=64,
            sequence_length=64,
            learning_rate=4e-3,
            decay=0.9984,
            start_states=3000,
        ),
        evolve=EvolveConfig(generations=20, eval_every=5, eval_rollouts=256),
        learn=LearnConfig(steps=12_000_000),
        controller="learn",
        iterate=IterateConfig(rounds=2),
    ),
    # 50 minutes on 2 fast cores, hours on slow ones; as `iterate`, 28 more for each round.
    "cpu": RunConfig(
        collect=CollectConfig(episodes=13_600, max_frames=1_000_000, policy="habits"),
        vision=replace(_VISION, steps=13_000),
        memory=replace(
            _MEMORY,
            steps=10_000,
            batch_size=32,
            sequence_length=128,
            learning_rate=3e-3,
            decay=0.9995,
            start_states=6000,
        ),
        evolve=EvolveConfig(generations=60, eval_every=10, eval_rollouts=256),
        learn=LearnConfig(steps=12_000_000),
        controller="learn",
        iterate=IterateConfig(rounds=3, episodes=256),
    ),
    # The paper's scale, which V and M have by default: for an accelerator and many cores.
    "paper": RunConfig(
        collect=CollectConfig(episodes=10_000, min_steps=101),
        dream=DreamConfig(death_threshold=PAPER_THRESHOLD, death_noise=PAPER_NOISE),
        evolve=EvolveConfig(generations=200, components=None),
    ),
}
