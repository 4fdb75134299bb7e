"""Training M: teacher-forced sequences, the loss, and the order of the data.

Paper: "MDN-RNN (M) Model" appendix; original files `doomrnn/rnn_train.py`,
`carracing/rnn/rnn_train.py`.
Shapes: Z latent size, A action size, H LSTM units, B lanes, T frames; N frames of a data set, E
its episodes; K ways to end. Everything is time-major. Several devices share the lanes.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax.sharding import Mesh, PartitionSpec

from dreamjax.actions import Keys
from dreamjax.memory.batches import Frames, Layout, epoch_order, gather, on_device
from dreamjax.memory.foresight import foreseen, foresight
from dreamjax.memory.kinds import find_kind
from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.loss import memory_loss, with_guesses
from dreamjax.memory.model import FORM, VARIANT, Carry, Memory, reset, with_events
from dreamjax.task import Task
from dreamjax.training.checkpoint import Store
from dreamjax.training.devices import cast, device_memory, product_dtype, theirs
from dreamjax.training.fit import fit
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import (
    AXIS,
    SPLIT,
    WHOLE,
    devices_for,
    on_all,
    on_own,
    own_normal,
    split,
)
from dreamjax.training.settings import require_positive, require_within

DIVERGED = 1e3  # loss of an M past hope; one that knows nothing starts below 10
COPIES = 4  # of M's weights in training: they, the gradient, and Adam's two means


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """How M is trained; the defaults are `rnn_train.py`'s of the paper's first game."""

    steps: int = 24_400  # updates; the original: 400 epochs, the article: 20
    batch_size: int = 100  # sequences per update, at most
    sequence_length: int = 500  # frames per sequence, at most
    learning_rate: float = 1e-3  # Adam's initial rate
    min_learning_rate: float = 1e-5  # rate that it decays to
    decay: float = 0.99999  # factor per update on the rate above the minimum
    clip: float = 1.0  # clipping of each gradient element
    death_weight: float = 10.0  # weight of the steps that end an episode
    bfloat16: bool | None = None  # bfloat16 products; None: where the device is faster so
    held_out: float = 0.1  # share of the episodes that is held out
    steps_per_call: int = 4  # updates per compiled call
    num_events: int = 0  # joint Gaussians over all latents, beside the factored mixture
    clock: bool | None = False  # M reads the age of the episode; None: found from the recordings
    keys: bool = False  # M reads which key is pressed, not the number
    residual: bool | None = False  # M predicts the change of z, not the next; None: found likewise
    scaled: bool = True  # M reads actions scaled to [-1, 1]
    own_guesses: float = 0.0  # share of steps at which M reads its own prediction of z
    dropout: float = 0.0  # dropout on what M reads, one mask per sequence
    kind: str = "lstm"  # form of M: lstm, or module:Class of a dreamjax.Memory
    hidden_size: int | None = None  # units of M; None: the task's
    heads: tuple[Literal["reward", "end"], ...] | None = None  # what M predicts beside z; None: all
    # run or world whose M is trained further; None: that of the given world; "chance": from scratch
    start_from: str | None = None
    start_states: int = 1000  # states of real episodes kept in the world, for dreams to start at
    eval_every: int = 1000  # updates between two looks at the held-out episodes; 0: only at the end

    def __post_init__(self):
        counts = "steps", "batch_size", "sequence_length", "steps_per_call", "start_states"
        sized = () if self.hidden_size is None else ("hidden_size",)
        require_positive(self, *counts, "learning_rate", *sized)
        require_within(
            self,
            min_learning_rate="[0, inf)",
            decay="(0, 1]",
            clip="(0, inf]",
            death_weight="(0, inf)",
            held_out="(0, 1)",
            num_events="[0, inf)",
            own_guesses="[0, 1]",
            dropout="[0, 1)",
            eval_every="[0, inf)",
        )
        find_kind(self.kind)

    formerly = {"moments": "start_states"}  # settings by the names that older checkpoints have
    grows = ("steps", "eval_every")  # settings that a later call may change

    def of(self, task: Task) -> "MemoryConfig":
        """These settings for a task: its actions are scaled only if they are not so anyway."""
        return dataclasses.replace(self, scaled=self.scaled and task.actions.scale is not None)

    def variant(self) -> dict[str, Any]:
        """What M is beyond the paper's: `Memory`'s keywords."""
        found = {name: getattr(self, name) or False for name in ("clock", "residual")}
        return {name: getattr(self, name) for name in (*VARIANT, *FORM) if name != "kind"} | found


class State(struct.PyTreeNode):
    """Everything training needs to go on; the carry is the last batch's."""

    memory: Memory
    optimiser: optax.OptState
    carry: Carry


class _Plan(struct.PyTreeNode):
    """Which frames consecutive updates read; a leading axis counts the updates."""

    step: np.ndarray  # int32 []
    first: np.ndarray  # bool [], whether an epoch starts here
    index: np.ndarray  # int32 [T + 1, B], frames of the data set
    valid: np.ndarray  # bool [T, B], False past a lane's end


def train_memory(
    task: Task,
    latents: LatentSequences,
    config: MemoryConfig,
    seed: int,
    *,
    log: Logbook | None = None,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
    memory: Memory | None = None,
) -> Memory:
    """Train M as rnn_train.py does, on all but the held-out episodes.

    Each epoch shuffles the episodes, joins them into one stream and cuts it into lanes; the
    LSTM's carry goes from one update to the next until the epoch ends. z is drawn anew from its
    posterior in every update.

    Args:
      task, latents: the game, and its encoded episodes.
      seed: of the weights, the order and the noise.
      log: receives `loss` and its parts, `nll`, `death_loss` and `reward_loss`; every `eval_every`
        updates also `error` and `control` of `foresight`, at the most steps ahead.
      store, meta: as for `training.fit.fit`; an unfinished run in `store` is resumed.
      memory: M to train on, its optimiser new; None starts from chance.

    Returns:
      M, its weights float32.

    Raises:
      ValueError: latents of another task, or a size in `config` that cannot be.
    """
    log = log or Logbook(quiet=True)
    trainer = Trainer(task, latents, config, seed, log)
    state = fit(
        "memory",
        trainer.initial(memory),
        _Watched(trainer, log) if config.eval_every else trainer,
        config.steps,
        log=log,
        store=store,
        meta=meta,
        unit="frames",
        units_per_step=trainer.layout.lanes * trainer.layout.length,
        most=DIVERGED,
    )
    return on_own(state.memory)


class Trainer:
    """Compiled updates, the `advance` of `training.fit`; args and errors as for `train_memory`."""

    def __init__(
        self,
        task: Task,
        latents: LatentSequences,
        config: MemoryConfig,
        seed: int,
        log: Logbook | None = None,
    ):
        check_form(task, config)
        _check_fits(task, latents)
        train, self.held = latents.split(config.held_out)
        self.task, self.config = task, config
        self.layout = Layout.of(len(train.mu), config.batch_size, config.sequence_length)
        said = log or Logbook(quiet=True)
        self.mesh = devices_for(self.layout.lanes, "memory.batch_size", said)
        self.frames = on_all(on_device(train, len(task.ends)), self.mesh)
        self._key_init, self._key_noise = jax.random.split(jax.random.key(seed))
        order = functools.partial(epoch_order, train.lengths, seed)
        cut = lambda epoch: self.layout.cut(*self.layout.lanes_of(order(epoch)))  # noqa: E731
        self._epoch_plan = functools.lru_cache(maxsize=2)(cut)

    def initial(self, memory: Memory | None = None) -> State:
        """The state before the first update, of an untrained M unless one is given."""
        rngs, config = nnx.Rngs(params=self._key_init), self.config
        if memory is None:
            memory = find_kind(config.kind)(self.task, rngs=rngs, **config.variant())
        memory = with_events(memory, self.task, config.num_events, rngs)
        optimiser = jax.jit(_optimiser(config).init)(memory)
        empty = memory.initial_carry((self.layout.lanes,))
        carry = split(jax.tree.map(jnp.array, empty), self.mesh)  # each its own: it is donated
        return on_all(State(memory, optimiser, None), self.mesh).replace(carry=carry)

    def __call__(self, state: State, step: int) -> tuple[State, int, dict[str, float]]:
        """Up to `steps_per_call` updates from `step` on; `state` is donated."""
        count = min(self.config.steps_per_call, self.config.steps - step)
        now = state, self.frames, self._plan(range(step, step + count)), self._key_noise
        state, metrics = _updates(*now, config=self.config, mesh=self.mesh)
        return state, count, jax.tree.map(float, metrics)

    def _plan(self, steps: range) -> _Plan:
        entries = []
        for step in steps:
            epoch, batch = divmod(step, self.layout.batches)
            index, valid = self._epoch_plan(epoch)
            entries.append(_Plan(np.int32(step), np.bool_(batch == 0), index[batch], valid[batch]))
        return jax.tree.map(lambda *parts: np.stack(parts), *entries)


class _Watched:
    """A trainer whose M is judged on held-out episodes while it trains."""

    def __init__(self, trainer: Trainer, log: Logbook):
        self._trainer, self._log, self._every = trainer, log, trainer.config.eval_every

    def __call__(self, state: State, step: int) -> tuple[State, int, dict[str, float]]:
        state, count, metrics = self._trainer(state, step)
        after = step + count
        if after // self._every > step // self._every and after < self._trainer.config.steps:
            with contextlib.suppress(ValueError):  # all episodes are short
                found = foresight(on_own(state.memory), self._trainer.held)
                self._log.say(f"memory: update {after:,}: {foreseen(found)}")
                metrics |= {name: found[name][-1] for name in ("error", "control")}
        return state, count, metrics


def check_form(task: Task, config: MemoryConfig) -> None:
    """Raise ValueError unless a game's M can have the form and the size that `config` asks for."""
    if config.keys and not isinstance(task.actions, Keys):
        raise ValueError(f"{task.name} is not played by keys; leave out --memory.keys")
    lacking = sorted(set(config.heads or ()) - set(task.heads))
    if lacking:
        raise ValueError(f"{task.name} has no {lacking[0]} to predict; leave it out of the heads")
    numbers = _numbers(task, config.kind, tuple(config.variant().items()))
    needed, there = COPIES * 4 * numbers, device_memory()
    if needed > there:
        raise ValueError(
            f"M of {numbers:,} numbers needs {needed / 1e9:.1f} GB to be trained, but a device has "
            f"{there / 1e9:.1f} GB, and M's weights are not split among devices; use a smaller "
            "memory.hidden_size"
        )


@functools.cache
def _numbers(task: Task, kind: str, variant: tuple[tuple[str, Any], ...]) -> int:
    form = nnx.eval_shape(lambda: find_kind(kind)(task, rngs=nnx.Rngs(0), **dict(variant)))
    return sum(leaf.size for leaf in jax.tree.leaves(form))


def _check_fits(task: Task, latents: LatentSequences) -> None:
    sizes = latents.mu.shape[-1], latents.actions.shape[-1]
    if sizes != (task.latent_size, task.action_size):
        raise ValueError(
            f"latents have z={sizes[0]} and {sizes[1]} actions, but {task.name} has "
            f"z={task.latent_size} and {task.action_size}; encode this task's recordings"
        )
    if latents.ends.max(initial=-1) >= len(task.ends):
        raise ValueError(
            f"an episode ended in way {latents.ends.max()}, but {task.name} has {task.ends}; "
            "record this task"
        )


def _optimiser(config: MemoryConfig) -> optax.GradientTransformation:
    low, high = config.min_learning_rate, config.learning_rate
    rate = lambda step: (high - low) * config.decay**step + low  # noqa: E731
    return optax.chain(optax.clip(config.clip), optax.adam(rate))


@functools.partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="state")
def _updates(state: State, frames: Frames, plan: _Plan, key, config: MemoryConfig, mesh: Mesh):
    """One update for each entry of `plan`; the state and the metrics' means."""
    states, by_lane = State(WHOLE, WHOLE, SPLIT), PartitionSpec(None, None, AXIS)
    plans = _Plan(WHOLE, WHOLE, by_lane, by_lane)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(states, WHOLE, plans, WHOLE),
        out_specs=(states, WHOLE),
        check_vma=False,
    )
    def updates(state, frames, plan, key):
        return jax.lax.scan(lambda *now: _update(*now, frames, key, config), state, plan)

    state, metrics = updates(state, frames, plan, key)
    return state, jax.tree.map(jnp.mean, metrics)


def _update(state, plan, frames, key, config):
    key, normal = jax.random.fold_in(key, plan.step), functools.partial(own_normal, axis=1)
    batch = gather(frames, key, plan.index, plan.valid, normal)
    carry = reset(state.carry, plan.first[None])
    dtype, memory, (steps, lanes) = product_dtype(config.bfloat16), state.memory, batch.valid.shape
    if config.dropout:
        numbers = memory.latent_size + memory.hidden_size
        drawn = normal(jax.random.fold_in(key, 1), (1, lanes, numbers), jnp.float32)
        mask = memory.mask(jax.scipy.special.ndtr(drawn[0]), config.dropout)
        batch = batch.replace(mask=mask)
    if config.own_guesses:
        numbers = 2 * memory.latent_size + 2
        drawn = normal(jax.random.fold_in(key, 2), (steps, lanes, numbers), jnp.float32)
        batch = with_guesses(cast(memory, dtype), carry, batch, config.own_guesses, drawn)

    def loss(memory):
        return memory_loss(cast(memory, dtype), carry, batch, config.death_weight, AXIS)

    gradient, (carry, metrics) = jax.grad(loss, has_aux=True)(state.memory)
    gradient, metrics = jax.lax.psum((gradient, metrics), AXIS)
    updates, optimiser = theirs(_optimiser(config).update)(gradient, state.optimiser)
    return State(optax.apply_updates(state.memory, updates), optimiser, carry), metrics
