"""Dreams by name, in the variants that agents ask for, as gymnax makes its own environments.

`make(ID)` or, once dreamjax is imported, `gymnax.make(ID)`, with a task's `env_id`.
"""

import dataclasses
import difflib
import functools
from concurrent import futures
from pathlib import Path
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces

from dreamjax.actions import Keys
from dreamjax.dream.env import DreamEnv, EnvParams, EnvState, Noise, Stepped, keeping_numbers
from dreamjax.dream.ids import check_process, env_ids
from dreamjax.dream.worlds import found_in, identity, load_world
from dreamjax.task import FRAME_SHAPE, Task
from dreamjax.training.settings import SettingError
from dreamjax.vision.model import VAE

PARTS = {"zch": ("c", "h"), "zh": ("h",), "z": ()}  # beside z
OBSERVATIONS = (*PARTS, "pixels")


class Variant(TypedDict, total=False):
    """The keywords of `make`, as `named` tells them."""

    actions: str | None
    observation: str | None
    temperature: float | None
    world: str | Path | None


@keeping_numbers
@struct.dataclass(kw_only=True)
class PixelParams(EnvParams):
    """A world with the eye that draws it."""

    vision: VAE  # its decoder makes the observation


@dataclasses.dataclass(eq=False)
class NamedDream(DreamEnv):
    """A dream in one of its variants.

    - observation: `"zch"` float32 [Z + 2H]; `"zh"` [Z + H]; `"z"` [Z]; or `"pixels"`,
      float32 [64, 64, 3] in [0, 1], decoded by V.
    - action: `"continuous"`, float32 [A] in the task's bounds; or `"discrete"`, int32 []: one key,
      neither or the other, or a choice. Inside a trace, where nothing can be refused, the nearest
      of them is done.
    - reward, terminated, truncated: as `DreamEnv`.

    The world is in the parameters. Pass them to `step`: gymnax fetches `default_params` inside the
    compiled program otherwise, and all weights become constants of it.
    """

    actions: str = "continuous"  # or "discrete"
    observation: str = "zch"
    world: str = ""  # what `default_params` loads, a shipped name or a folder
    temperature: float | None = None  # tau of `default_params`; None is the world's, or the task's

    @property
    def default_params(self) -> EnvParams:
        """The world's parameters, read once a process while the world stays the same."""
        return _params(self, identity(self.world))

    def step(self, key, state: EnvState, action, params: EnvParams | None = None) -> Stepped:
        """gymnax's six values; checks a concrete action first.

        Raises:
          ValueError: an action of the wrong shape, not finite, or none of the choices.
        """
        self.check_action(action)
        return super().step(key, state, action, params)

    def transition(self, noise: Noise, state: EnvState, action: jax.Array, params: EnvParams):
        """`DreamEnv.transition` of the action's meaning."""
        if self.actions == "discrete":
            choice = jnp.clip(jnp.asarray(action).astype(jnp.int32), 0, self.num_actions - 1)
            action = jnp.asarray(_vectors(self.task))[choice]
        return super().transition(noise, state, action, params)

    def observe(self, key, state: EnvState, action, params: EnvParams) -> jax.Array:
        """What this variant shows of a state; ValueError where M has no such part."""
        if self.observation == "pixels":
            return params.vision.decode(state.z[None])[0]
        parts = params.memory.parts(state.carry)
        lacking = [name for name in PARTS[self.observation] if name not in parts]
        if lacking:
            raise ValueError(
                f"M of this world has no {lacking[0]} to observe, only z, {', '.join(parts)}; "
                "choose another observation"
            )
        return params.memory.features(state.z, state.carry, PARTS[self.observation])

    @property
    def name(self) -> str:
        return self.task.env_id

    @property
    def num_actions(self) -> int:
        """Choices of a discrete action, numbers of a continuous one."""
        return len(_vectors(self.task)) if self.actions == "discrete" else self.task.action_size

    def action_space(self, params: EnvParams | None = None):
        """`Discrete`, or the Box [A] of the task's bounds."""
        if self.actions == "discrete":
            return spaces.Discrete(self.num_actions)
        return super().action_space(params)

    def observation_space(self, params: EnvParams | None = None) -> spaces.Box:
        """Box with finite bounds."""
        if self.observation == "pixels":
            dark = np.zeros(FRAME_SHAPE, np.float32)
            return spaces.Box(dark, dark + 1, FRAME_SHAPE, jnp.float32)
        env = self if params is None else _of_m(self, params)
        return env.box_of(PARTS[self.observation])

    @property
    def supports_transition_gradients(self) -> bool:
        """Whether a gradient can pass through a step: a choice has none."""
        return self.actions == "continuous"

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of an observation, as gymnax's own environments tell it."""
        return self.observation_space().shape

    def check_action(self, action: Any, lanes: tuple[int, ...] = ()) -> None:
        """Raise ValueError unless `action` has this variant's shape and, if known, is possible.

        `lanes` are axes before that shape. A single number may come without its axis.
        """
        self.check_form(action, lanes)
        if isinstance(action, jax.core.Tracer):
            return
        if not np.isfinite(known := np.asarray(action)).all():
            raise ValueError(f"the action is {action}; it must be finite")
        possible = (known >= 0) & (known < self.num_actions)
        if self.actions == "discrete" and not possible.all():
            raise ValueError(f"the action is {action}; it must be from 0 to {self.num_actions - 1}")

    def check_form(self, action: Any, lanes: tuple[int, ...] = ()) -> None:
        """Raise ValueError as `check_action`, for shape and dtype alone; waits for no device."""
        discrete = self.actions == "discrete"
        shape = lanes if discrete else (*lanes, self.task.action_size)
        short = lanes if shape[-1:] == (1,) else shape
        if np.shape(action) not in (shape, short):
            raise ValueError(
                f"an action of {self.name} must have shape {shape}, got {np.shape(action)}"
                + ("" if lanes else "; vmap step over a batch")
            )
        if discrete and jnp.result_type(action).kind not in "biu":
            raise ValueError(f"the action is {action}; it must be a whole number, such as 1")


@dataclasses.dataclass(eq=False)
class LegacyDream(NamedDream):
    """A dream for clients of gymnax before 1.0: `step` ends in `(..., reward, done, info)`.

    gymnax's own `LegacyStepAPIWrapper` cannot be copied, and some clients copy; some also stack
    what `info` holds, so it holds what it did then: the discount.
    """

    def step(self, key, state: EnvState, action, params: EnvParams | None = None) -> Any:
        """Five values; `done` is terminated or truncated."""
        *start, terminated, truncated, info = super().step(key, state, action, params)
        return *start, terminated | truncated, {"discount": info["discount"]}


def legacy(env: NamedDream) -> LegacyDream:
    """`env` with gymnax 0.0's `step`, for PureJaxRL, rejax, Stoix and others."""
    return LegacyDream(**{f.name: getattr(env, f.name) for f in dataclasses.fields(env)})


def _vectors(task: Task) -> np.ndarray:
    """The vectors [n, A] of the discrete actions of a game that has them."""
    if isinstance(task.actions, Keys):
        return np.asarray(task.actions.choices, np.float32)[:, None]
    return np.eye(task.action_size, dtype=np.float32)


@functools.lru_cache(maxsize=8)
def _params(env: NamedDream, world: str) -> EnvParams:
    """Loaded in a thread of its own: gymnax may ask inside a trace, which no other thread sees."""
    check_process()
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
    return (
        PixelParams(**vars(params), vision=world.vision) if env.observation == "pixels" else params
    )


def make(env_id: str, **variant: Unpack[Variant]) -> tuple[NamedDream, EnvParams]:
    """A dream and its parameters, as `gymnax.make`; arguments and errors as for `named`.

    Raises:
      ValueError: also a world that is missing, damaged or of another game.
    """
    env = named(env_id, **variant)
    params = env.default_params
    if variant.get("observation") is None:
        env = dataclasses.replace(env, observation="".join(("z", *params.memory.reads)))
    return _of_m(env, params), params


def _of_m(env: NamedDream, params: EnvParams) -> NamedDream:
    """`env` for an M of another form than the task's."""
    size = None if params.memory.hidden_size == env.task.hidden_size else params.memory.hidden_size
    return dataclasses.replace(env, hidden_size=size, bounds=params.memory.bounds)


def named(
    env_id: str,
    *,
    actions: str | None = None,
    observation: str | None = None,
    temperature: float | None = None,
    world: str | Path | None = None,
) -> NamedDream:
    """`make` without the parameters, which are read when they are asked for.

    Args:
      env_id: a task's `env_id`, such as `"DreamCarRacing-v1"`, or one of `env_ids`.
      actions: `"continuous"`, the paper's, or `"discrete"`; None is the game's own.
      observation: `"zch"`, `"zh"`, `"z"` or `"pixels"`; None is what the game's C reads.
      temperature: tau > 0; None is the world's own, or else the task's.
      world: a shipped world or a run directory; None is the shipped one of the game.

    Raises:
      ValueError: an unknown id or variant, or a bad temperature.
    """
    known = env_ids()
    if env_id not in known:
        near = difflib.get_close_matches(env_id, known, 3, 0.3) or list(known)
        raise ValueError(f"unknown environment {env_id!r}; did you mean {', '.join(near)}?")
    task, kinds = known[env_id]
    actions = kinds[0] if actions is None else actions
    observation = "".join(("z", *task.controller_reads)) if observation is None else observation
    variant, all_of = {"actions": actions, "observation": observation}, (kinds, OBSERVATIONS)
    for (name, value), choices in zip(variant.items(), all_of, strict=True):
        if value not in choices:
            raise SettingError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    source = str(task.name if world is None else world)
    if task.to_find:
        task = task.found(found_in(source))
    return NamedDream(task, **variant, world=source, temperature=temperature)
