"""Dreams by name, in the variants that agents ask for, as gymnax makes its own environments.

`make("DreamTakeCover-v1")` or, once dreamjax is imported, `gymnax.make("DreamTakeCover-v1")`.
"""

import dataclasses
import difflib
import functools
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces

from dreamjax.dream import DreamEnv, EnvParams, EnvState, observation_box
from dreamjax.registration import IDS
from dreamjax.settings import SettingError
from dreamjax.tasks import FRAME_SHAPE, TASKS
from dreamjax.vision import VAE
from dreamjax.worlds import load_world

SIDES = (-1.0, 0.0, 1.0)  # what the discrete actions mean: left, stay, right
ACTIONS = ("continuous", "discrete")
PARTS = {"zch": ("z", "c", "h"), "zh": ("z", "h"), "z": ("z",)}
OBSERVATIONS = (*PARTS, "pixels")


@functools.partial(struct.dataclass, kw_only=True)
class PixelParams(EnvParams):
    """A world with the eye that draws it.

    Attributes:
      vision: V; its decoder makes the observation.
    """

    vision: VAE


@dataclasses.dataclass(eq=False)
class NamedDream(DreamEnv):
    """A dream in one of its variants.

    - observation: `"zch"` float32 [Z + 2H] in [-50, 50], what the paper's C reads; `"zh"` [Z + H];
      `"z"` [Z]; or `"pixels"`, float32 [64, 64, 3] in [0, 1], decoded by V.
    - action: `"continuous"`, float32 [A] in [-1, 1]; or `"discrete"`, int32 []: left, stay, right.
      Inside a trace, where nothing can be refused, the nearest of them is taken.
    - reward, terminated, truncated: as `DreamEnv`.

    The world is in the parameters. Pass them to `step`: gymnax fetches `default_params` inside the
    compiled program otherwise, and all weights become constants of it.

    Attributes:
      actions, observation: the variant.
      world: what `default_params` loads, a shipped name or a folder.
      temperature: tau of `default_params`; None is the task's.
    """

    actions: str = "continuous"
    observation: str = "zch"
    world: str = "take-cover"
    temperature: float | None = None

    @property
    def default_params(self) -> EnvParams:
        """The world's parameters, read once a process."""
        return _params(self)

    def step(self, key, state, action, params=None):
        """gymnax's six values; checks a concrete action first.

        Raises:
          ValueError: an action of the wrong shape, not finite, or none of the choices.
        """
        self.check_action(action)
        return super().step(key, state, action, params)

    def transition(self, noise, state: EnvState, action: jax.Array, params: EnvParams):
        """`DreamEnv.transition` of the action's meaning."""
        if self.actions == "discrete":
            choice = jnp.clip(action, 0, len(SIDES) - 1)
            action = jnp.asarray(SIDES, jnp.float32)[choice][None]
        return super().transition(noise, state, action, params)

    def observe(self, key, state: EnvState, action, params: EnvParams) -> jax.Array:
        """What the agent sees of a state."""
        del key, action
        if self.observation == "pixels":
            return params.vision.decode(state.z[None])[0]
        parts = {"z": state.z, "c": state.carry[0], "h": state.carry[1]}
        return jnp.concatenate([parts[name] for name in PARTS[self.observation]])

    @property
    def name(self) -> str:
        """The id."""
        return next(name for name, task in IDS.items() if task == self.task.name)

    @property
    def num_actions(self) -> int:
        """Choices of a discrete action, numbers of a continuous one."""
        return len(SIDES) if self.actions == "discrete" else self.task.action_size

    def action_space(self, params: EnvParams | None = None):
        """Discrete(3) or Box [A] in [-1, 1]."""
        if self.actions == "discrete":
            return spaces.Discrete(len(SIDES))
        return super().action_space(params)

    def observation_space(self, params: EnvParams | None = None) -> spaces.Box:
        """Box with finite bounds."""
        if self.observation == "pixels":
            dark = np.zeros(FRAME_SHAPE, np.float32)
            return spaces.Box(dark, dark + 1, FRAME_SHAPE, jnp.float32)
        sizes = {"z": self.task.latent_size, "c": self.task.hidden_size, "h": self.task.hidden_size}
        return observation_box(sum(sizes[name] for name in PARTS[self.observation]))

    @property
    def supports_transition_gradients(self) -> bool:
        """Whether a gradient can pass through a step: a choice has none."""
        return self.actions == "continuous"

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of an observation, as gymnax's own environments tell it."""
        return self.observation_space().shape

    def check_action(self, action: Any) -> None:
        """Raise ValueError unless `action` has this variant's shape and, if known, is possible."""
        shape = () if self.actions == "discrete" else (self.task.action_size,)
        if np.shape(action) != shape:
            raise ValueError(
                f"an action of {self.name} must have shape {shape}, got {np.shape(action)}; "
                "vmap step over a batch"
            )
        if isinstance(action, jax.core.Tracer):
            return
        if not np.isfinite(action).all():
            raise ValueError(f"the action is {action}; it must be finite")
        if self.actions == "discrete" and action not in range(len(SIDES)):
            raise ValueError(f"the action is {action}; it must be 0 (left), 1 (stay) or 2 (right)")


@dataclasses.dataclass(eq=False)
class LegacyDream(NamedDream):
    """A dream for clients of gymnax before 1.0: `step` ends in `(..., reward, done, info)`.

    gymnax's own `LegacyStepAPIWrapper` does the same but cannot be copied, and some clients copy.
    A single number of a continuous action may come without its axis, as some clients send it.
    """

    def step(self, key, state, action, params=None):
        """Five values; `done` is terminated or truncated."""
        if np.shape(action) == () and self.actions == "continuous":
            action = jnp.reshape(action, 1)
        *start, terminated, truncated, info = super().step(key, state, action, params)
        return *start, terminated | truncated, info


def legacy(env: NamedDream) -> LegacyDream:
    """`env` with gymnax 0.0's `step`, for PureJaxRL, rejax, Stoix and others."""
    return LegacyDream(**{f.name: getattr(env, f.name) for f in dataclasses.fields(env)})


@functools.lru_cache(maxsize=8)
def _params(env: NamedDream) -> EnvParams:
    """Loaded in a thread of its own: gymnax may ask inside a trace, which no other thread sees."""
    with futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(_load_params, env).result()


def _load_params(env: NamedDream) -> EnvParams:
    world = load_world(env.world)
    if world.task != env.task:
        raise ValueError(
            f"{env.world} is a world of {world.task.name}, but {env.name} dreams "
            f"{env.task.name}; pass one of that game"
        )
    params = world.params(env.temperature)
    if env.observation != "pixels":
        return params
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return PixelParams(**fields, vision=world.vision)


def make(
    env_id: str,
    *,
    actions: str = "continuous",
    observation: str = "zch",
    temperature: float | None = None,
    world: str | Path | None = None,
) -> tuple[NamedDream, EnvParams]:
    """A dream and its parameters, as `gymnax.make`.

    Args:
      env_id: `"DreamTakeCover-v1"`.
      actions: `"continuous"`, the paper's, or `"discrete"`.
      observation: `"zch"`, the paper's, `"zh"`, `"z"` or `"pixels"`.
      temperature: tau > 0; None is the task's.
      world: a shipped world or a run directory; None is the shipped one.

    Raises:
      ValueError: an unknown id or variant, a bad temperature, or a world that is missing, damaged
        or of another game.
    """
    env = named(
        env_id, actions=actions, observation=observation, temperature=temperature, world=world
    )
    return env, env.default_params


def named(
    env_id: str,
    *,
    actions: str = "continuous",
    observation: str = "zch",
    temperature: float | None = None,
    world: str | Path | None = None,
) -> NamedDream:
    """`make` without the parameters, which are read when they are asked for."""
    if env_id not in IDS:
        near = difflib.get_close_matches(env_id, IDS, 3, 0.3) or list(IDS)
        raise ValueError(f"unknown environment {env_id!r}; did you mean {', '.join(near)}?")
    for name, value, choices in (
        ("actions", actions, ACTIONS),
        ("observation", observation, OBSERVATIONS),
    ):
        if value not in choices:
            raise SettingError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    task = TASKS[IDS[env_id]]
    return NamedDream(task, actions, observation, str(world or task.name), temperature)
