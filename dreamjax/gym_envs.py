"""Dreams as gymnasium environments: NumPy in, NumPy out, one compiled call a step.

`gymnasium.make("dreamjax/TakeCover-v1")`, or with `gymnasium.make_vec(...,
vectorization_mode="vector_entry_point")` many dreams in one call.
Legend: A numbers of an action, E dreams of a vector environment, F of an observation.
"""

from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode

from dreamjax.envs import NamedDream, make
from dreamjax.vision import VAE, drawn
from dreamjax.worlds import load_world

FRAMES_PER_SECOND = 35  # a tic of Doom's clock


def _space(space) -> gymnasium.Space:
    """gymnasium's form of a gymnax space."""
    if hasattr(space, "n"):
        return gymnasium.spaces.Discrete(space.n)
    return gymnasium.spaces.Box(space.low, space.high, space.shape, np.dtype(space.dtype))


class Dream(gymnasium.Env):
    """One dream.

    - observation, action: NumPy forms of `NamedDream`'s.
    - reward: float, 1 a step survived.
    - terminated, truncated: bool, as `NamedDream`.

    Args:
      env_id: a name that `dreamjax.make` knows.
      render_mode: `"rgb_array"` draws the dream through V's decoder; None draws nothing.
      variant: keywords of `dreamjax.make`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_SECOND}

    def __init__(self, env_id: str, render_mode: str | None = None, **variant: Any):
        self._env, self._params = make(env_id, **variant)
        self.render_mode = _checked_mode(render_mode, self.metadata)
        self._vision = _vision(self._env) if render_mode else None
        self.observation_space = _space(self._env.observation_space(self._params))
        self.action_space = _space(self._env.action_space(self._params))
        self._key, self._state = None, None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start a dream; see `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        if seed is not None or self._key is None:
            self._key = jax.random.key(int(self.np_random.integers(2**31)))
        self._key, key = jax.random.split(self._key)
        obs, self._state = _reset_one(self._env, key, self._params)
        return np.asarray(obs), {}

    def step(self, action):
        """Dream one step; see `gymnasium.Env.step`.

        Raises:
          RuntimeError: no dream has begun, or it is over.
        """
        if self._state is None:
            raise RuntimeError("no dream is running; call reset() before step()")
        self._env.check_action(action)
        self._key, key = jax.random.split(self._key)
        obs, self._state, reward, terminated, truncated = _step_one(
            self._env, key, self._state, np.asarray(action), self._params
        )
        return np.asarray(obs), float(reward), bool(terminated), bool(truncated), {}

    def render(self) -> np.ndarray | None:
        """The dream as V's decoder sees it, uint8 [64, 64, 3]."""
        if self.render_mode is None or self._state is None:
            return None
        return drawn(self._vision, self._state.z[None])[0]


class VectorDream(gymnasium.vector.VectorEnv):
    """E dreams in one compiled call; a dream that ends begins anew in the same step.

    `info["final_obs"]` [E, ...] holds every step's observation before that, `info["_final_obs"]`
    [E] says where it matters.

    Args:
      env_id: a name that `dreamjax.make` knows.
      num_envs: E.
      render_mode: as for `Dream`.
      variant: keywords of `dreamjax.make`.
    """

    metadata = {**Dream.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, env_id: str, num_envs: int = 1, render_mode: str | None = None, **variant):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self._env, self._params = make(env_id, **variant)
        self.num_envs, self.render_mode = num_envs, _checked_mode(render_mode, self.metadata)
        self._vision = _vision(self._env) if render_mode else None
        self.single_observation_space = _space(self._env.observation_space(self._params))
        self.single_action_space = _space(self._env.action_space(self._params))
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)
        self._key, self._state = None, None

    def reset(self, *, seed: int | list[int] | None = None, options: dict | None = None):
        """Start every dream; see `gymnasium.vector.VectorEnv.reset`."""
        if seed is not None or self._key is None:
            self._key = jax.random.key(np.random.default_rng(seed).integers(2**31))
        self._key, key = jax.random.split(self._key)
        obs, self._state = _reset_many(self._env, self.num_envs, key, self._params)
        return np.asarray(obs), {}

    def step(self, actions):
        """Dream one step of each; see `gymnasium.vector.VectorEnv.step`."""
        if self._state is None:
            raise RuntimeError("no dream is running; call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            raise ValueError(
                f"actions must be finite and of shape {self.action_space.shape}, "
                f"got shape {actions.shape}"
            )
        self._key, key = jax.random.split(self._key)
        obs, self._state, reward, terminated, truncated, final = _step_many(
            self._env, key, self._state, actions, self._params
        )
        done = np.asarray(terminated | truncated)
        info = {"final_obs": np.asarray(final), "_final_obs": done} if done.any() else {}
        reward = np.asarray(reward, np.float64)
        return np.asarray(obs), reward, np.asarray(terminated), np.asarray(truncated), info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The dreams as V's decoder sees them, uint8 [64, 64, 3] each."""
        if self.render_mode is None or self._state is None:
            return None
        return tuple(drawn(self._vision, self._state.z))


def _vision(env: NamedDream) -> VAE:
    return load_world(env.world).vision


def _checked_mode(mode: str | None, metadata: dict[str, Any]) -> str | None:
    if mode is not None and mode not in metadata["render_modes"]:
        raise ValueError(f"render_mode must be None or 'rgb_array', got {mode!r}")
    return mode


@jax.jit(static_argnums=0)
def _reset_one(env, key, params):
    return env.reset_env(key, params)


@jax.jit(static_argnums=0)
def _step_one(env, key, state, action, params):
    obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
    return obs, state, reward, terminated, env.is_truncated(state, params) & ~terminated


@jax.jit(static_argnums=(0, 1))
def _reset_many(env, count, key, params):
    return jax.vmap(env.reset_env, (0, None))(jax.random.split(key, count), params)


@jax.jit(static_argnums=0)
def _step_many(env, key, state, actions, params):
    keys = jax.random.split(key, len(actions))
    step = jax.vmap(env.step, (0, 0, 0, None))
    obs, state, reward, terminated, truncated, info = step(keys, state, actions, params)
    return obs, state, reward, terminated, truncated & ~terminated, info["final_observation"]
