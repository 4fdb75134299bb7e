"""PureJaxRL's own PPO, as its authors wrote it, in the dream.

    git clone https://github.com/luchris429/purejaxrl && pip install distrax
    python experiments/purejaxrl.py --source purejaxrl --actions discrete

Its `ppo.py` makes environments by gymnax names; its `ppo_continuous_action.py` takes them from Brax
by a wrapper, in whose place stands the dream. What it imports of other games is not needed.
"""

import dataclasses
import importlib
import sys
import types
from pathlib import Path
from typing import Literal

import gymnax
import jax
import numpy as np
import tyro

import dreamjax
from dreamjax.dream.gymnax_env import legacy

ELSEWHERE = ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix")
SETTINGS = {  # both scripts' own, for 128 dreams
    "NUM_ENVS": 128,
    "NUM_STEPS": 64,
    "UPDATE_EPOCHS": 4,
    "NUM_MINIBATCHES": 4,
    "GAMMA": 0.99,
    "GAE_LAMBDA": 0.95,
    "CLIP_EPS": 0.2,
    "VF_COEF": 0.5,
    "MAX_GRAD_NORM": 0.5,
    "ACTIVATION": "tanh",
    "ENV_NAME": "Dream",
    "DEBUG": False,
}
OWN = {
    "discrete": {"LR": 2.5e-4, "ENT_COEF": 0.01, "ANNEAL_LR": True},
    "continuous": {"LR": 3e-4, "ENT_COEF": 0.0, "ANNEAL_LR": False, "NORMALIZE_ENV": True},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    source: Path  # PureJaxRL's repository
    actions: Literal["discrete", "continuous"] = "discrete"
    steps: int = 400_000  # dream steps in all
    world: str = "take-cover"
    seed: int = 30


def main(config: Config) -> tuple[float, float]:
    """Train; mean return of the dreams that end in the first and in the last fifth of it."""
    ppo = script(config)
    settings = SETTINGS | OWN[config.actions] | {"TOTAL_TIMESTEPS": config.steps}
    found = jax.jit(ppo.make_train(settings))(jax.random.PRNGKey(config.seed))["metrics"]
    ended = np.asarray(found["returned_episode"])
    returns = np.asarray(found["returned_episode_returns"])
    fifths = zip(np.array_split(returns, 5), np.array_split(ended, 5), strict=True)
    first, *_, last = (float(part[over].mean()) for part, over in fifths)
    print(
        f"{config.actions}: {first:.0f} steps survived in the first fifth, {last:.0f} in the last"
    )
    return first, last


def script(config: Config) -> types.ModuleType:
    """PureJaxRL's module, whose environment is the dream."""
    sys.path.insert(0, str(config.source / "purejaxrl"))
    for name in ELSEWHERE:
        stand_in(name)
    env, params = dreamjax.make("DreamTakeCover-v1", actions=config.actions, world=config.world)
    if config.actions == "discrete":
        gymnax.register("Dream", lambda: legacy(env))
        return importlib.import_module("ppo")
    ppo = importlib.import_module("ppo_continuous_action")
    ppo.BraxGymnaxWrapper = lambda name: Bare(legacy(env), params)
    return ppo


class Bare:
    """An environment with PureJaxRL's calls, parameters left out as its Brax wrapper's are."""

    def __init__(self, env, params):
        self._env, self._params = env, params

    def reset(self, key, params=None):
        """Observation and state."""
        return self._env.reset(key, self._params)

    def step(self, key, state, action, params=None):
        """Five values."""
        return self._env.step(key, state, action, self._params)

    def observation_space(self, params=None):
        """The dream's."""
        return self._env.observation_space(self._params)

    def action_space(self, params=None):
        """The dream's."""
        return self._env.action_space(self._params)


def stand_in(name: str) -> None:
    """An empty module where `name` is not installed."""
    try:
        importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.EpisodeWrapper = module.AutoResetWrapper = object
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


if __name__ == "__main__":
    main(tyro.cli(Config))
