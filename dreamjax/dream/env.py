"""The dream: M as a gymnax environment.

Paper: section "VizDoom Experiment"; code: `doomrnn/doomrnn.py`, `DoomCoverRNNEnv`.
Legend: A action numbers, E ways to end, F features that C reads, H units of M, N start states, Z
latent numbers.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from dreamjax.dream.start_states import StartStates
from dreamjax.memory.heads import total_logit
from dreamjax.memory.lstm import MDNRNN
from dreamjax.memory.model import Bounds, Carry, Mask, Memory, bounds_of
from dreamjax.task import Task
from dreamjax.training.settings import SettingError

LARGEST = float(np.finfo(np.float32).max) / 2  # of a state: what M remembers has no other bound
MASKS = 2**31  # names the dropout's branch of a key: no split of it has that number
PAPER_THRESHOLD, PAPER_NOISE = 0.0, 0.0  # of deaths in the paper's dream: by the likelier side
COLDEST = 1e-6  # least tau that is dreamt: at 0 the mixture's likeliest is divided by nothing
DOUBTERS, DOUBTFUL = 8, 0.1  # masks whose predictions are compared, and what each of them drops
SURE = 1e-6  # added to a spread, so that it has a logarithm
SMALLEST_DRAW = 2.0**-24  # in place of a uniform 0; the next is 2**-23

T = TypeVar("T", bound=Callable[..., Any])


@struct.dataclass
class EnvState(environment.EnvState):
    """Where a dream is, `time` [] int32 steps after it began.

    `z` [Z] is the latent, and `carry` what M remembers, the paper's (c, h), each [H], all float32;
    `dead` [] bool, whether M has ended it; `mask` what M does not read, None without dropout.
    """

    z: jax.Array
    carry: Carry
    dead: jax.Array | bool = False
    mask: Mask | None = None


# Observation, state, reward, terminated, truncated, info.
Stepped = tuple[jax.Array, EnvState, jax.Array, jax.Array, jax.Array, dict[str, Any]]


def keeping_numbers(params: T) -> T:
    """`params` whose `replace` leaves Python numbers what they are, so that nothing recompiles."""
    form: Any = params
    plain = form.replace

    def replace(self, **changes):
        """A copy with these fields changed."""
        return plain(self, **{k: _alike(new, getattr(self, k, None)) for k, new in changes.items()})

    form.replace = replace
    return params


def _alike(new: Any, old: Any) -> Any:
    """`new` as a number of `old`'s type, where both are single numbers and it can be."""
    if new is None or isinstance(new, jax.core.Tracer) or not isinstance(old, int | float):
        return new
    kind = np.asarray(new).dtype.kind if np.ndim(new) == 0 else ""
    fits = kind and kind in ("biuf" if isinstance(old, float) else "biu")
    return type(old)(new) if fits else new


@keeping_numbers
@struct.dataclass(kw_only=True)
class EnvParams(environment.EnvParams):
    """A world: swap it, sweep it, vmap it; nothing recompiles. The settings are Python numbers.

    A dream ends where M's logit of an end is above `death_threshold`; 0 is probability 1/2. To the
    logit logistic noise of scale `death_noise` is added. 0 is the paper's; at 1 a dream ends with
    probability sigmoid(logit - threshold), so risks below the threshold add up as in the game.
    """

    memory: Memory  # M itself
    initial_mu: jax.Array  # with `initial_logvar`, [N, Z] posteriors of real first frames
    initial_logvar: jax.Array
    temperature: float = 1.0  # tau: of weights logits / tau, and of widths sigma * sqrt(tau)
    death_threshold: float = PAPER_THRESHOLD
    death_noise: float = PAPER_NOISE
    max_steps_in_episode: int = 1000  # steps after which a dream is truncated
    start_states: StartStates | None = None  # where dreams begin in place of first frames
    dropout: float | None = None  # probability, below 1, that a dream drops a number of z, or of h,
    # that M reads, from its first step to its last; None drops nothing

    def death_chance(self, end: jax.Array) -> jax.Array:
        """Probability [...] that a dream ends where M's logits of ends are `end` [..., E]."""
        risk = (total_logit(end) - self.death_threshold) / jnp.maximum(self.death_noise, 1e-6)
        return jax.nn.sigmoid(risk).astype(jnp.float32)

    def draw_mask(self, key: jax.Array | None) -> Mask | None:
        """What M does not read in the dream of `key`, which stays unused; all is read without."""
        if self.dropout is None:
            return None
        numbers = (self.memory.latent_size + self.memory.hidden_size,)
        if key is None:
            return self.memory.mask(jnp.ones(numbers, jnp.float32), 0.0)
        uniform = jax.random.uniform(jax.random.fold_in(key, MASKS), numbers, jnp.float32)
        return self.memory.mask(uniform, self.dropout)

    def kept_mask(self, mask: Mask | None) -> Mask | None:
        """That of a dream which goes on, though its dropout began or ended on the way."""
        return mask if (mask is None) == (self.dropout is None) else self.draw_mask(None)


class Noise(struct.PyTreeNode):
    """All randomness of one step."""

    uniform: jax.Array  # [Z], picks components
    normal: jax.Array  # [Z], spreads them
    logistic: jax.Array  # [], goes to the logit of an end
    event: jax.Array  # [], picks an event of an M that has them


def _checked(name: str, holds: Callable[[float], bool], words: str, remedy: str, value: float):
    """`value` as a float, or SettingError unless it holds."""
    if not holds(value):
        raise SettingError(f"{name} must be {words}, got {value}; {remedy}")
    return float(value)


check_temperature = partial(
    _checked, "temperature", lambda x: 0 < x < math.inf, "a positive number", "try 1.0"
)
check_death_threshold = partial(  # infinity lets nobody die
    _checked, "death_threshold", lambda x: not np.isnan(x), "a number", "the paper's is 0"
)
_NOISES = "the paper's is 0, 1 samples deaths"
check_death_noise = partial(
    _checked, "death_noise", lambda x: 0 <= x < math.inf, "at least 0", _NOISES
)
check_dropout = partial(_checked, "dropout", lambda x: 0 <= x < 1, "in [0, 1)", "0.1 is a good one")


def env_params(
    task: Task,
    memory: Memory,
    initial_mu: jax.Array,
    initial_logvar: jax.Array,
    *,
    temperature: float | None = None,
    death_threshold: float = PAPER_THRESHOLD,
    death_noise: float = PAPER_NOISE,
    dropout: float | None = None,
) -> EnvParams:
    """Checked parameters for a task, as of `EnvParams`; `temperature` defaults to the task's.

    Raises:
      ValueError: temperature not positive, or start states that do not fit the task.
    """
    settings = {
        "temperature": check_temperature(task.temperature if temperature is None else temperature),
        "death_noise": check_death_noise(death_noise),
        "death_threshold": check_death_threshold(death_threshold),
        "dropout": None if dropout is None else check_dropout(dropout),
    }
    for name, array in (("initial_mu", initial_mu), ("initial_logvar", initial_logvar)):
        if array.ndim != 2 or not len(array) or array.shape[1] != task.latent_size:
            raise ValueError(
                f"{name} must be [N, {task.latent_size}] for {task.name}, got {list(array.shape)}; "
                "encode start frames with the V that M was trained on"
            )
    if memory.latent_size != task.latent_size:
        raise ValueError(
            f"M expects z={memory.latent_size} but {task.name} has z={task.latent_size}; "
            "use the M of this task"
        )
    lacking = sorted(set(task.heads) - set(memory.heads))
    if lacking:
        raise ValueError(
            f"this M of {task.name} predicts no {lacking[0]}, so it cannot be dreamt; train one "
            "with all heads"
        )
    return EnvParams(
        memory=memory,
        initial_mu=jnp.asarray(initial_mu, jnp.float32),
        initial_logvar=jnp.asarray(initial_logvar, jnp.float32),
        max_steps_in_episode=task.max_steps,
        **settings,
    )


def state_at(now: StartStates) -> EnvState:
    """Where a dream is that goes on from one start state, which has no axis N."""
    time = now.age.astype(jnp.int32)
    return EnvState(time=time, z=now.z, carry=now.carry, dead=jnp.bool_(False))


def _compiled(method: T) -> T:
    """A method that is compiled once for all environments that are equal."""
    compiled: Any = jax.jit(method, static_argnames=("self",))
    return compiled


@dataclasses.dataclass(eq=False)
class DreamEnv(environment.Environment[EnvState, EnvParams]):
    """M's dream of a game.

    - observation: float32 [F], what C reads: z and parts of what M remembers.
    - action: float32 [A] in the task's form, clipped to its bounds.
    - reward: float32 [], the task's, where that is the same each step (the last one included),
      or what M expects.
    - terminated: bool [], M's logit of an end, `params.death_noise` added, is above
      `params.death_threshold`.
    - truncated: bool [], `params.max_steps_in_episode` steps were dreamt.
    - info["survival"], if it is one `with_survival()`: float32 [], the probability that this step
      did not end the dream.
    - info["doubt"], if it is one `with_doubt()`: float32 [], how much M's predictions of this step
      differ where each lacks other parts of what M reads: their standard deviation, the geometric
      mean over Z.

    Environments that are equal share one compiled step. As those of gymnax they may be patched:
    one with another attribute is another environment.

    Attributes:
      task: the game.
      reads, hidden_size: the parts of M's memory that C reads, and H of M; None is the task's.
      bounds: of those parts, M's own.
    """

    task: Task
    reads: tuple[str, ...] | None = None
    hidden_size: int | None = None
    bounds: Bounds = MDNRNN.bounds

    _supports_transition_gradients = True
    _tells_survival = False
    _tells_doubt = False

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, f.name) for f in dataclasses.fields(self))))

    def with_survival(self) -> "DreamEnv":
        """A copy that tells how likely each step was survived, which learning asks for."""
        told = copy.copy(self)
        told._tells_survival = True
        return told

    def with_doubt(self) -> "DreamEnv":
        """A copy that tells how unsure M is of each step, at the cost of some more of its steps."""
        told = copy.copy(self)
        told._tells_doubt = True
        return told

    @property
    def default_params(self) -> EnvParams:
        """Raises ValueError: they are a world's, see `World.params`."""
        raise ValueError(
            f"a dream of {self.task.name} needs a world: pass "
            "params=dreamjax.load_world(RUN_DIRECTORY).params()"
        )

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, EnvState]:
        """Start from a real first frame's posterior with an empty memory, or from a start state."""
        if params.start_states is not None:
            number = jax.random.randint(key, (), 0, len(params.start_states.age), jnp.int32)
            state = state_at(jax.tree.map(lambda x: x[number], params.start_states))
        else:
            key_start, key_z = jax.random.split(key)
            start = jax.random.randint(key_start, (), 0, len(params.initial_mu), jnp.int32)
            mu, logvar = params.initial_mu[start], params.initial_logvar[start]
            z = mu + jnp.exp(logvar / 2) * jax.random.normal(key_z, mu.shape, mu.dtype)
            state = state_at(StartStates(jnp.int32(0), z, params.memory.initial_carry()))
        state = state.replace(mask=params.draw_mask(key))
        return self.observe(key, state, None, params), state

    @_compiled
    def step(self, key, state: EnvState, action, params: EnvParams | None = None) -> Stepped:
        """gymnax's six values; a dream that is over begins anew."""
        params = self.default_params if params is None else params
        state = state.replace(mask=params.kept_mask(state.mask))
        return super().step(key, state, action, params)

    def step_env(self, key, state: EnvState, action, params: EnvParams):
        """One imagined step: gymnax's raw `(obs, state, reward, terminated, info)`.

        As in gymnax's own environments no gradient passes through it, unless the environment is
        one `with_transition_gradients()`.
        """
        noise = self.draw_noise(key)
        doubt = self.doubt(key, state, action, params) if self._tells_doubt else None
        obs, state, reward, terminated, info = self.transition(noise, state, action, params)
        obs, state = self._apply_transition_gradient_policy(obs, state)
        info = info if self._tells_survival else {}  # gymnax's brax wrapper takes no other
        if self._tells_doubt:
            info = info | {"doubt": doubt}
        discount = jnp.where(terminated, 0.0, 1.0).astype(jnp.float32)
        return obs, state, reward, terminated, {**info, "discount": discount}

    def draw_noise(self, key: jax.Array) -> Noise:
        """The randomness of one step, apart from it, so that many dreams can share it."""
        Z = self.task.latent_size
        # One draw for all: each has kernels of its own, and a second to compile.
        drawn = jax.random.uniform(key, (2 * Z + 2,), jnp.float32)
        inner = jnp.maximum(drawn[Z:-1], SMALLEST_DRAW)  # whose quantiles are finite
        return Noise(
            uniform=drawn[:Z],
            normal=math.sqrt(2) * jax.lax.erf_inv(2 * inner[:-1] - 1),
            logistic=jnp.log(inner[-1]) - jnp.log1p(-inner[-1]),
            event=drawn[-1],
        )

    def transition(self, noise: Noise, state: EnvState, action, params: EnvParams):
        """The dream step proper, a deterministic function of its noise; values as of `step_env`."""
        action = self.clipped(jnp.reshape(action, (self.task.action_size,)))
        carry, found = params.memory(state.carry, state.z, action, state.time, state.mask)
        tau = jnp.maximum(jnp.asarray(params.temperature, jnp.float32), COLDEST)
        z = found.latent.sample_from(noise.uniform, noise.normal, tau, noise.event)
        alive, survival = jnp.bool_(True), jnp.float32(1)
        if self.task.ends:
            risk = total_logit(found.end) + params.death_noise * noise.logistic
            alive = risk <= params.death_threshold  # never where a number is missing
            survival = 1 - params.death_chance(found.end)
        state = state.replace(time=state.time + 1, z=z, carry=carry, dead=~alive)
        obs = self.observe(None, state, action, params)
        constant = self.task.step_reward
        reward = found.reward if constant is None else jnp.float32(constant)
        return obs, state, reward, state.dead, {"survival": survival}

    def doubt(self, key, state: EnvState, action, params: EnvParams) -> jax.Array:
        """`info["doubt"]` of one step; `key` may be that of the step."""
        memory, action = params.memory, self.clipped(jnp.reshape(action, (self.task.action_size,)))
        numbers = (DOUBTERS, memory.latent_size + memory.hidden_size)
        uniform = jax.random.uniform(jax.random.fold_in(key, MASKS), numbers, jnp.float32)
        predict = lambda mask: memory(state.carry, state.z, action, state.time, mask)[1]  # noqa: E731
        expected = jax.vmap(predict)(memory.mask(uniform, DOUBTFUL)).latent.expected()
        return jnp.exp(jnp.log(expected.std(axis=0) + SURE).mean())

    def clipped(self, action: jax.Array) -> jax.Array:
        """`action` [A] within the task's bounds, float32."""
        action = jnp.asarray(action, jnp.float32)
        bounds = (jnp.broadcast_to(np.float32(x), action.shape) for x in self._bounds)
        return jnp.clip(action, *bounds)

    @property
    def _bounds(self) -> tuple[Any, ...]:
        """The task's, single numbers where they are the same for all of an action."""
        bounds = self.task.actions.low, self.task.actions.high
        return tuple(x[0] if len(set(x)) == 1 else np.asarray(x, np.float32) for x in bounds)

    def observe(self, key, state: EnvState, action, params: EnvParams) -> jax.Array:
        """What C reads of a state, [F]."""
        return params.memory.features(state.z, state.carry)

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array | bool:
        return state.dead

    @property
    def name(self) -> str:
        return f"Dream-{self.task.name}"

    @property
    def num_actions(self) -> int:
        return self.task.action_size

    def action_space(self, params: EnvParams | None = None) -> spaces.Box:
        """Box [A] of the task's bounds."""
        return spaces.Box(*self._bounds, (self.task.action_size,), jnp.float32)

    def observation_space(self, params: EnvParams | None = None) -> spaces.Box:
        """Box [F], finite bounds."""
        return self.box_of(self.reads or self.task.controller_reads)

    def box_of(self, parts: tuple[str, ...]) -> spaces.Box:
        """Box of z and these parts of what M remembers; bounds are arrays, as in gymnax's own."""
        sizes = self.task.latent_size, *[self.hidden_size or self.task.hidden_size] * len(parts)
        high = np.repeat(np.float32(bounds_of(parts, self.bounds)), sizes)
        return spaces.Box(-high, high, high.shape, jnp.float32)

    def state_space(self, params: EnvParams) -> spaces.Dict:
        """Boxes of `EnvState`'s fields but the mask."""
        carry = jax.eval_shape(params.memory.initial_carry)
        boxes = [spaces.Box(-LARGEST, LARGEST, x.shape, x.dtype) for x in jax.tree.leaves(carry)]
        longest = max(self.task.max_steps, params.max_steps_in_episode)
        time, dead = spaces.Discrete(longest + 1), spaces.Discrete(2)
        z = spaces.Box(-LARGEST, LARGEST, (self.task.latent_size,), jnp.float32)
        return spaces.Dict({"time": time, "z": z, "carry": spaces.Tuple(boxes), "dead": dead})
