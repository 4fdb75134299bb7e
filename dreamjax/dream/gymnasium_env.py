"""Dreams as gymnasium environments: NumPy in, NumPy out, one compiled call a step.

`gymnasium.make(ID)`, such as `"dreamjax/CarRacing-v1"`, or with `gymnasium.make_vec(...,
vectorization_mode="vector_entry_point")` many dreams in one call.
Legend: A numbers of an action, E dreams of a vector environment, F of an observation.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnasium.vector import AutoresetMode
from gymnax.environments.spaces import gymnax_space_to_gym_space as gym_space

from dreamjax.dream.env import EnvParams, EnvState
from dreamjax.dream.gymnax_env import NamedDream, Variant, make
from dreamjax.dream.ids import check_process
from dreamjax.task import FRAME_SHAPE
from dreamjax.vision.model import drawn as pictures


class Dream(gymnasium.Env):
    """One dream.

    - observation, action: NumPy forms of `NamedDream`'s; pixels are uint8 [64, 64, 3].
    - reward: float.
    - terminated, truncated: bool, as `NamedDream`.

    Args:
      env_id: a name that `dreamjax.make` knows.
      render_mode: `"rgb_array"` draws the dream through V's decoder; None draws nothing.
      variant: keywords of `dreamjax.make`.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, env_id: str, render_mode: str | None = None, **variant: Unpack[Variant]):
        self._dreams = VectorDream(env_id, 1, render_mode, AutoresetMode.DISABLED, **variant)
        self.metadata = {**Dream.metadata, "render_fps": self._dreams.metadata["render_fps"]}
        self.render_mode = render_mode
        self.observation_space = self._dreams.single_observation_space
        self.action_space = self._dreams.single_action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start a dream; a seed dreams, and a bad one is refused, as in a vector of them."""
        _checked_seeds([seed], 1)
        super().reset(seed=seed)
        obs, info = self._dreams.reset(seed=[seed])
        return obs[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Dream one step; errors as of `VectorDream.step`."""
        obs, reward, terminated, truncated, info = self._dreams.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """The dream as V's decoder sees it, uint8 [64, 64, 3]."""
        pictures = self._dreams.render()
        return None if pictures is None else pictures[0]


class VectorDream(gymnasium.vector.VectorEnv):
    """E dreams in one compiled call, each with randomness of its own.

    Args:
      env_id: a name that `dreamjax.make` knows.
      num_envs: E.
      render_mode: as for `Dream`.
      autoreset_mode: when a dream that ended begins anew, as gymnasium's vector environments have
        it: `NEXT_STEP`, in the step after, whose action does not count and whose reward is 0;
        `SAME_STEP`, at once, with its last observation in `info["final_obs"]`; or `DISABLED`, by
        `reset(options={"reset_mask": mask})` alone.
      max_episode_steps: steps after which a dream is truncated; None is as long as the game.
      variant: keywords of `dreamjax.make`.

    Raises:
      ValueError: one of these cannot be, or as `dreamjax.make`.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **variant: Unpack[Variant],
    ):
        for name, count in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self._env, self._params = make(env_id, **variant)
        if max_episode_steps is not None:
            self._params = self._params.replace(max_steps_in_episode=int(max_episode_steps))
        if render_mode not in (None, *Dream.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        choices = [mode.value for mode in AutoresetMode]
        if autoreset_mode not in (*AutoresetMode, *choices):
            raise ValueError(
                f"autoreset_mode must be one of {', '.join(choices)}, got {autoreset_mode!r}"
            )
        self.num_envs, self.render_mode = num_envs, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        told = {"render_fps": self._env.task.steps_per_second}
        self.metadata = Dream.metadata | told | {"autoreset_mode": self.autoreset_mode}
        drawing = dataclasses.replace(self._env, observation="pixels")
        self._vision = drawing.default_params.vision if render_mode else None
        self.single_observation_space = gym_space(self._env.observation_space())
        if self._env.observation == "pixels":
            self.single_observation_space = gymnasium.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
        self.single_action_space = gym_space(self._env.action_space())
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)
        self._lanes: Lane | None = None
        self._obs: jax.Array | None = None
        self._over: Any = np.zeros(num_envs, bool)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]

    @functools.cached_property
    def _leaves(self) -> list[jax.Array]:
        """Of the parameters; moved only where dreams run, as a forked worker cannot."""
        check_process()
        return jax.device_put(jax.tree.leaves(self._params))

    @functools.cached_property
    def _programs(self) -> tuple[Callable, Callable]:
        return _compiled(self._env, jax.tree.structure(self._params), self.autoreset_mode)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is compiled; a dream goes on where it was."""
        return {k: x for k, x in vars(self).items() if k not in ("_leaves", "_programs")}

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict | None = None):
        """Start every dream, or those of `options["reset_mask"]`, bool [E].

        Args:
          seed: of the first dream, the second gets the next number and so on; or one for each, as
            a dream depends on its own seed alone; where it is None, those of the seed before go on.

        Raises:
          ValueError: another number of seeds than dreams, a bad seed, or a bad mask.
        """
        mask = self._reset_mask(options)
        seeds, drawn = _checked_seeds(seed, self.num_envs), np.zeros(self.num_envs, np.uint32)
        for i in np.flatnonzero(np.ones(self.num_envs) if mask is None else mask):
            if seeds[i] is not None:
                self._generators[i] = np.random.default_rng(seeds[i])
            drawn[i] = self._generators[i].integers(2**31)
        lanes, obs = self._programs[0](self._leaves, drawn)
        over = np.zeros(self.num_envs, bool)
        if mask is not None:
            lanes, obs = _chosen(mask, (lanes, obs), (self._lanes, jnp.asarray(self._obs)))
            over = self._over & ~mask
        self._lanes, self._obs, self._over = lanes, obs, over
        return self._told(obs), {}

    def step(self, actions: Any):
        """Dream one step of each; see `gymnasium.vector.VectorEnv.step`.

        Raises:
          RuntimeError: no dream has begun, or one is over and nobody has begun it anew.
          ValueError: actions that are none of the action space's; a Box's are clipped instead.
        """
        if self._lanes is None:
            raise RuntimeError("no dream is running; call reset() before step()")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            raise RuntimeError("the dream is over; call reset() before the next step()")
        actions = self._asked(actions).reshape(self.action_space.shape)
        self._lanes, step = self._programs[1](self._leaves, self._lanes, actions)
        obs, reward, terminated, truncated = map(self._told, step[:4])
        self._obs, self._over, info = step.obs, terminated | truncated, {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            info = self._last_words(step.final_obs, self._over)
        return obs, reward, terminated, truncated, info

    @staticmethod
    def _told(array: jax.Array) -> Any:
        """What a client is given of an array of the dream's: a copy of its own."""
        wide = array.dtype == jnp.float32 and array.ndim == 1  # rewards, as gymnasium has them
        return np.array(array, np.float64 if wide else None)

    def _asked(self, actions: Any) -> Any:
        """The actions, which are checked before anything is dreamt."""
        self._env.check_action(actions := np.asarray(actions), (self.num_envs,))
        return actions.astype(self.action_space.dtype)

    @staticmethod
    def _last_words(obs: Any, over: Any) -> dict[str, Any]:
        """`info` of dreams that ended and began anew in one step, in gymnasium's form."""
        if not over.any():
            return {}
        obs, final = np.array(obs), np.full(len(obs), None, object)
        for i in np.flatnonzero(over):
            final[i] = obs[i]
        return {"final_obs": final, "_final_obs": over, "final_info": {}, "_final_info": over}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The dreams as V's decoder sees them, uint8 [64, 64, 3] each."""
        if self.render_mode is None or self._lanes is None:
            return None
        return tuple(pictures(self._vision, self._lanes.state.z))

    def _reset_mask(self, options: dict[str, Any] | None) -> np.ndarray | None:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return None
        if np.shape(mask) != (self.num_envs,) or np.asarray(mask).dtype != bool:
            raise ValueError(
                f"reset_mask must be bool [{self.num_envs}], got "
                f"{np.asarray(mask).dtype}{list(np.shape(mask))}"
            )
        if self._lanes is None:
            raise ValueError("reset_mask needs dreams that have begun; call reset() without it")
        return np.asarray(mask)


class VectorDreamOnDevice(VectorDream):
    """A `VectorDream` whose arrays stay where they were dreamt, and are waited for by nobody.

    Observations, rewards (float32) and ends are jax's, for learners in jax or, by gymnasium's
    `wrappers.vector.JaxToTorch`, in torch; of these nothing may be written over. Of actions the
    shape is checked, not the values: of a NaN comes NaN. With `SAME_STEP` every step tells
    `final_obs` [E, F], what each step led to, and `_final_obs` [E], whose dream ended there.
    """

    @staticmethod
    def _told(array: jax.Array) -> Any:
        return array

    def _asked(self, actions: Any) -> Any:
        self._env.check_form(actions := jnp.asarray(actions), (self.num_envs,))
        return actions.astype(jax.dtypes.canonicalize_dtype(self.action_space.dtype))

    @staticmethod
    def _last_words(obs: Any, over: Any) -> dict[str, Any]:
        return {"final_obs": obs, "_final_obs": over}


ARRAYS = {"numpy": VectorDream, "jax": VectorDreamOnDevice}


def vector_dream(env_id: str, num_envs: int = 1, arrays: str = "numpy", **how: Any) -> VectorDream:
    """What `gymnasium.make_vec` makes: `how` is as for `VectorDream`, `arrays` one of `ARRAYS`.

    Raises:
      ValueError: no such arrays, or as `VectorDream`.
    """
    if arrays not in ARRAYS:
        raise ValueError(f"arrays must be one of {', '.join(ARRAYS)}, got {arrays!r}")
    return ARRAYS[arrays](env_id, num_envs, **how)


class Lane(struct.PyTreeNode):
    """A dream on its way."""

    key: jax.Array  # data of the PRNG key of all that is to come: a key itself cannot be pickled
    state: EnvState
    over: jax.Array  # bool [], whether it has ended


class Step(NamedTuple):
    """What an agent is told of a step, and the observation that the step itself led to."""

    obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_obs: jax.Array


@functools.lru_cache(maxsize=16)
def _compiled(env: NamedDream, structure: Any, mode: AutoresetMode) -> tuple[Callable, Callable]:
    """`begin(leaves, seeds)` -> (lanes, obs), `step(leaves, lanes, actions)` -> (lanes, `Step`).

    Of one kind of dream; to flatten M at each call would last as long as a step.
    """
    one_step = {
        AutoresetMode.DISABLED: _plain_step,
        AutoresetMode.SAME_STEP: _same_step,
        AutoresetMode.NEXT_STEP: _next_step,
    }[mode]

    @jax.jit
    def begin(leaves, seeds):
        params = jax.tree.unflatten(structure, leaves)
        return jax.vmap(lambda seed: _begun(env, params, jax.random.key(seed)))(seeds)

    @jax.jit
    def step(leaves, lanes, actions):
        params = jax.tree.unflatten(structure, leaves)
        return jax.vmap(functools.partial(one_step, env, params))(lanes, actions)

    return begin, step


def _begun(env: NamedDream, params: EnvParams, key: jax.Array) -> tuple[Lane, jax.Array]:
    """A new dream and what is seen of it."""
    key, key_reset = jax.random.split(key)
    obs, state = env.reset_env(key_reset, params)
    return Lane(jax.random.key_data(key), state, jnp.bool_(False)), _shown(env, obs)


def _plain_step(env: NamedDream, params: EnvParams, lane: Lane, action) -> tuple[Lane, Step]:
    key, key_step = jax.random.split(jax.random.wrap_key_data(lane.key))
    obs, state, reward, terminated, _ = env.step_env(key_step, lane.state, action, params)
    truncated = env.is_truncated(state, params) & ~terminated
    obs = _shown(env, obs)
    lane = Lane(jax.random.key_data(key), state, terminated | truncated)
    return lane, Step(obs, reward, terminated, truncated, obs)


def _same_step(env: NamedDream, params: EnvParams, lane: Lane, action) -> tuple[Lane, Step]:
    lane, step = _plain_step(env, params, lane, action)
    begun = _begun(env, params, jax.random.wrap_key_data(lane.key))
    lane, obs = _chosen(lane.over, begun, (lane, step.obs))
    return lane, step._replace(obs=obs)


def _next_step(env: NamedDream, params: EnvParams, lane: Lane, action) -> tuple[Lane, Step]:
    begun, goes_on = _begun(env, params, jax.random.wrap_key_data(lane.key)), ~lane.over
    after, step = _plain_step(env, params, lane, action)
    lane, obs = _chosen(goes_on, (after, step.obs), begun)
    return lane, step._replace(
        obs=obs,
        reward=jnp.where(goes_on, step.reward, 0.0),
        terminated=step.terminated & goes_on,
        truncated=step.truncated & goes_on,
    )


def _chosen(mask, new: Any, old: Any) -> Any:
    """`new` where the mask is on, else `old`, in trees whose leaves begin with the mask's axes."""

    def choose(new, old):
        shape = np.shape(mask) + (1,) * (new.ndim - np.ndim(mask))
        return jnp.where(jnp.reshape(mask, shape), new, old)

    return jax.tree.map(choose, new, old)


def _shown(env: NamedDream, obs: jax.Array) -> jax.Array:
    """An observation as gymnasium's agents expect it: pictures are uint8."""
    return jnp.round(obs * 255).astype(jnp.uint8) if env.observation == "pixels" else obs


def _checked_seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """A seed for each of `count` dreams, as gymnasium counts on from a single one."""
    if seed is None:
        return [None] * count
    asked = range(seed, seed + count) if isinstance(seed, int | np.integer) else seed
    each: list[int | None] = list(asked)
    if len(each) != count:
        raise ValueError(f"{count} dreams need {count} seeds, got {len(each)}")
    for one in each:
        if one is not None and (not isinstance(one, int | np.integer) or one < 0):
            raise ValueError(f"a seed must be a whole number of at least 0, got {one!r}")
    return each
