"""dreamjax: World Models (Ha & Schmidhuber, 2018) in JAX.

The path of data, one room a step:

`game` (real episodes) -> `vision` (V) -> `memory` (M) -> `dream` (M as an environment)
-> `controller` (C, evolved or learnt) -> `agent` (the real game again).

`tasks` says what a game is. `fidelity` compares dream and game, `play` shows a dream in a browser,
`run` does all of it in one directory, `training` is what the rooms share. Each imports only from
those before it.
Names load on first use, so that the processes that only play a game start without jax.
"""

import os
import sys

_run = sys.orig_argv[-len(sys.argv)].removeprefix("-m") if sys.argv[:1] == ["-m"] else None
if _run == __name__ and not sys.flags.safe_path and sys.path[0] != os.path.dirname(__path__[0]):
    del sys.path[0]  # the current directory, which may be a download

import lazy_loader  # noqa: E402

from dreamjax import tasks  # noqa: E402
from dreamjax.dream.registration import register_dreams  # noqa: E402
from dreamjax.tasks import *  # noqa: E402, F403

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "actions": ["Box", "Choice", "Keys"],
        "game.env": ["make_env"],
        "game.rollouts": ["Rollouts", "collect"],
        "vision.model": ["VAE"],
        "vision.training": ["VisionConfig", "train_vision"],
        "memory.latents": ["LatentSequences", "encode_rollouts"],
        "memory.heads": ["Mixture", "Prediction"],
        "memory.model": ["Memory"],
        "memory.lstm": ["MDNRNN"],
        "memory.training": ["MemoryConfig", "train_memory"],
        "controller.model": ["LinearController", "MLPController", "controller_for"],
        "controller.evolution": ["EvolveConfig", "evolve"],
        "controller.policy_gradient": ["LearnConfig", "learn"],
        "dream.env": ["DreamEnv", "EnvParams", "EnvState"],
        "dream.prefix": ["dream_from"],
        "dream.worlds": ["World", "export_world", "load_controller", "load_world"],
        "dream.gymnax_env": ["legacy", "make"],
        "dream.evosax_problem": ["DreamProblem"],
        "agent": ["Agent", "evaluate"],
        "run.settings": ["Run", "RunConfig"],
        "run.phases": ["run_phases"],
    },
)
__all__ += [*tasks.__all__, "__version__"]

register_dreams()
