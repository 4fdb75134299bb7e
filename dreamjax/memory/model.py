"""M, and the protocol behind which any recurrent network can be M.

Paper: "MDN-RNN (M) Model" and its appendix.
Shapes: Z latent size, A action size, H units, T steps, B lanes; `...` is any number of batch axes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from dreamjax.actions import Keys
from dreamjax.memory import heads as outputs
from dreamjax.memory.heads import Prediction
from dreamjax.task import Task
from dreamjax.training.devices import plus, tile
from dreamjax.vision import layers

Z_BOUND = 100.0  # of what C reads of z; shipped dreams stay below 30 while they last
PART_BOUND = 10_000.0  # and of what M remembers: to c an LSTM adds at most 1 a step
CLOCK = 1000  # steps that M's clock counts as one, so that it stays near 1

# what sets an M apart from the paper's: in one form, and in its form
VARIANT = ("num_events", "clock", "keys", "residual", "scaled")
FORM = ("kind", "hidden_size", "heads")

Carry = Any  # a pytree of what M remembers, [..., H] of each
Bounds = tuple[tuple[str, float], ...]  # names of parts, and how large these can be


class Mask(struct.PyTreeNode):
    """Dropout: factors of what M reads, each 0 or 1 / (1 - p); one mask serves a whole episode.

    A dream whose M has lost some of what it reads is another dream of the same game, and a C that
    learns in many of them finds no fault that all share (Wellmer & Kwok, "Dropout's Dream Land",
    arXiv:2109.08342). Not in the paper.
    """

    z: jax.Array  # float32 [..., Z], of the latent
    h: jax.Array  # float32 [..., H], of h, as the recurrence reads it


class Memory(nnx.Module):
    """M without its recurrence: what it reads, what it predicts, what C reads of it.

    A subclass makes its kernels in `recurrence`, and defines `step`, `parts` and, unless that is
    (c, h), `initial_carry`; `run` only where it can be faster than a scan of steps. Its matrices
    are parameters of two axes, so that `cast` finds them.

    What it reads is [z, action] and, where the task says so, a restart flag; with a clock, which
    games that grow harder need, that flag tells an episode's age instead, negative and in `CLOCK`
    steps. head_kernel [H, outputs] gives the heads that `layout` lists, one after another.
    `bounds` names how large parts that C reads can be, where that is not `PART_BOUND`.

    Args:
      task: the game; sizes come from it.
      rngs: its `params` stream initialises the kernels (Glorot uniform); biases are zero, but
        for events, which begin as rare.
      num_events: J, see `EventMixture`.
      clock, keys, residual, hidden_size, heads: as in `MemoryConfig`; the defaults are the paper's.
      scaled: whether it reads actions in [-1, 1], see `Box.scale`; the attribute is false of a
        game whose actions are so anyway.

    Raises:
      ValueError: the task's C reads nothing that this M has.
    """

    bounds: Bounds = ()

    def __init__(
        self,
        task: Task,
        *,
        rngs: nnx.Rngs,
        num_events: int = 0,
        clock: bool = False,
        keys: bool = False,
        residual: bool = False,
        scaled: bool = True,
        hidden_size: int | None = None,
        heads: tuple[str, ...] | None = None,
    ):
        self.latent_size = task.latent_size
        self.hidden_size = hidden_size or task.hidden_size
        self.num_mixtures = task.num_mixtures
        self.num_events = num_events
        self.clock = clock
        self.keys = keys
        self.residual = residual
        self.scale = task.actions.scale if scaled else None
        self.scaled = self.scale is not None
        self.heads = task.heads if heads is None else tuple(heads)
        self.num_ends = len(task.ends)
        self.reward_scale = task.reward_scale
        self.reads_restart = task.reads_restart
        self.controller_reads = task.controller_reads
        self.pressed = task.actions.pressed if isinstance(task.actions, Keys) else 0.0
        self.num_inputs = task.latent_size + task.action_size + task.reads_restart
        self.recurrence(rngs)
        if self.controller_reads and not self.reads:
            raise ValueError(
                f"controller_reads of {task.name} is {self.controller_reads}, but M has "
                f"{', '.join(self._part_names())}; name some of these in its Task"
            )
        width = sum(map(math.prod, self.layout.values()))
        self.head_kernel = nnx.Param(glorot(rngs, self.hidden_size, width))
        bias = jnp.zeros(width, jnp.float32)
        if num_events:
            bias = bias.at[outputs.places(self.layout)["event_weights"].start].set(outputs.RARE)
        self.head_bias = nnx.Param(bias)

    def recurrence(self, rngs: nnx.Rngs) -> None:
        """Make the kernels of the recurrence, from `num_inputs` and `hidden_size`."""
        raise NotImplementedError

    def step(self, carry: Carry, inputs: jax.Array, restart: jax.Array) -> tuple[Carry, jax.Array]:
        """One step: the carry after it, and h [..., H], of which the heads are read.

        `inputs` are float32 [..., num_inputs]; where `restart`, bool or float32 [...], is on, the
        carry before it counts as empty.
        """
        raise NotImplementedError

    def run(
        self,
        carry: Carry,
        inputs: jax.Array,
        restart: jax.Array,
        dropout: jax.Array | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Steps in a row: inputs [T, B, num_inputs], restart [T, B]; last carry, h [T, B, H].

        `dropout` [B, H] is a `Mask`'s h, passed only where M is trained with it.
        """

        def step(carry, now):
            return self.step(carry if dropout is None else self.thinned(carry, dropout), *now)

        return jax.lax.scan(step, carry, (inputs, restart))

    def thinned(self, carry: Carry, factors: jax.Array) -> Carry:
        """`carry` as the recurrence reads it under a `Mask`'s h, which thins all parts here."""
        return jax.tree.map(lambda part: part * factors, carry)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """(c, h) of zeros, each float32 [*batch_shape, H]."""
        shape = (*batch_shape, self.hidden_size)
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)

    def parts(self, carry: Carry) -> dict[str, jax.Array]:
        """What C may read of a carry, by name, [..., H] each."""
        return dict(zip(("c", "h"), carry, strict=True))

    def __call__(
        self,
        carry: Carry,
        z: jax.Array,
        action: jax.Array,
        age: jax.Array,
        mask: Mask | None = None,
    ) -> tuple[Carry, Prediction]:
        """One step: what follows `z` when `action` is done, and the carry after it.

        Args:
          carry: as `initial_carry` makes it, [..., H].
          z, action: float32 [..., Z] and, in the task's form, [..., A].
          age: float32 or int32 [...], steps since the episode began; 0 empties the carry.
          mask: of the episode; None drops nothing.
        """
        read = z
        if mask is not None:
            read, carry = z * mask.z, self.thinned(carry, mask.h)
        carry, h = self.step(carry, self.inputs(read, action, age), age == 0)
        return carry, self.predict(product(h, self.head_kernel[...]), z)

    def sequence(
        self,
        carry: Carry,
        z: jax.Array,
        action: jax.Array,
        age: jax.Array,
        mask: Mask | None = None,
    ) -> tuple[Carry, Prediction]:
        """Steps in a row, [T, B, ...] of all but a mask [B, ...]; with a fast gradient."""
        restart = (age == 0).astype(jnp.float32)
        read, dropout = (z, ()) if mask is None else (z * mask.z[None], (mask.h,))
        carry, h = self.run(carry, self.inputs(read, action, age), restart, *dropout)
        return carry, self.predict(product_sequence(h, self.head_kernel[...]), z)

    def mask(self, uniform: jax.Array, rate: jax.Array | float) -> Mask:
        """The mask that drops each input with probability `rate` < 1, of uniforms [..., Z + H]."""
        factors = jnp.where(uniform < rate, 0.0, 1 / (1 - rate)).astype(jnp.float32)
        return Mask(factors[..., : self.latent_size], factors[..., self.latent_size :])

    def inputs(self, z: jax.Array, action: jax.Array, age: jax.Array) -> jax.Array:
        """What the recurrence reads, [..., num_inputs]."""
        if self.keys:
            action = pressed(action, self.pressed)
        if self.scale is not None:
            center, half = (jnp.asarray(x, jnp.float32) for x in self.scale)
            action = (action - center) / half
        if not self.reads_restart:
            return jnp.concatenate((z, action), axis=-1)
        age = jnp.asarray(age, jnp.float32)
        flag = jnp.where(age == 0, 1.0, -age / CLOCK if self.clock else 0.0).astype(jnp.float32)
        return jnp.concatenate((z, action, flag[..., None]), axis=-1)

    def predict(self, out: jax.Array, z: jax.Array) -> Prediction:
        """The prediction of what follows z [..., Z], from h @ head_kernel."""
        parts = outputs.named(plus(out, self.head_bias[...]), self.layout)
        if self.residual:
            parts["mean"] = parts["mean"] + z[..., None, :]
        return outputs.prediction(parts, self.reward_scale)

    def features(
        self, z: jax.Array, carry: Carry, reads: tuple[str, ...] | None = None
    ) -> jax.Array:
        """What C reads [..., F], in the dream and in the real game alike, within its bounds.

        (z, c, h) for the paper's first game, (z, h) for its second; of a carry that has not
        consumed z yet. `reads` names other parts than `self.reads`.
        """
        names, parts = self.reads if reads is None else reads, self.parts(carry)
        read = zip((z, *(parts[k] for k in names)), bounds_of(names, self.bounds), strict=True)
        return jnp.concatenate([jnp.clip(x, -most, most) for x, most in read], axis=-1)

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the parts that C reads: the task's, those that this M has."""
        has = self._part_names()
        return tuple(name for name in self.controller_reads if name in has)

    def _part_names(self) -> list[str]:
        return list(jax.eval_shape(lambda: self.parts(self.initial_carry())))

    @property
    def feature_size(self) -> int:
        """F."""
        return self.latent_size + len(self.reads) * self.hidden_size

    @property
    def layout(self) -> outputs.Layout:
        """The heads and their shapes, the paper's first and last."""
        K, Z, J = self.num_mixtures, self.latent_size, self.num_events
        found: outputs.Layout = {name: (K, Z) for name in ("logits", "mean", "logstd")}
        if J:
            found |= {"event_mean": (J, Z), "event_logstd": (J, Z), "event_weights": (1 + J,)}
        if "reward" in self.heads:
            found["reward"] = ()
        if "end" in self.heads:
            found["end"] = (self.num_ends,)
        return found


def bounds_of(reads: tuple[str, ...], bounds: Bounds) -> tuple[float, ...]:
    """How large z, and each part that C reads beside it, can be."""
    return Z_BOUND, *(dict(bounds).get(name, PART_BOUND) for name in reads)


def glorot(rngs: nnx.Rngs, rows: int, columns: int) -> jax.Array:
    """A kernel [rows, columns], Glorot uniform."""
    return layers.glorot(rngs.params(), (rows, columns))


def pressed(action: jax.Array, threshold: float) -> jax.Array:
    """-1, 0 or 1, the key that each number presses; its gradient is the number's."""
    key = jnp.where(jnp.abs(action) > threshold, jnp.sign(action), 0.0)
    return action + jax.lax.stop_gradient(key - action)


def with_events(memory: Memory, task: Task, num_events: int, rngs: nnx.Rngs) -> Memory:
    """`memory` with untrained events, so that training can go on from an M that has none."""
    if memory.num_events == num_events:
        return memory
    form = {name: getattr(memory, name) for name in (*VARIANT, "hidden_size", "heads")}
    grown = type(memory)(task, rngs=rngs, **form | {"num_events": num_events})
    old, new = outputs.places(memory.layout), outputs.places(grown.layout)
    for name, array in nnx.to_pure_dict(nnx.state(memory)).items():
        there = getattr(grown, name)
        if name not in ("head_kernel", "head_bias"):
            there[...] = array
            continue
        for head, place in old.items():
            there[...] = there[...].at[..., new[head]].set(array[..., place])
    return grown


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel with operands in the kernel's dtype and a float32 result."""
    x, outputs = x.astype(kernel.dtype), kernel.shape[1]
    more_rows, more_columns = (-side % tile() for side in kernel.shape)
    if more_rows or more_columns:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more_rows)])
        kernel = jnp.pad(kernel, ((0, more_rows), (0, more_columns)))
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)[..., :outputs]


@jax.custom_vjp
def product_sequence(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`product` of [T, B, ...] whose gradients are products in the kernel's dtype too."""
    return product(x, kernel)


def _product_backward(saved, gradient):
    x, kernel = saved
    return product(gradient, kernel.T), outer(x, gradient, kernel.dtype)


product_sequence.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _product_backward)


def outer(x: jax.Array, gradient: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Gradient of a kernel: x^T gradient over time and lanes.

    Both axes are contracted as they are: XLA's CPU backend is twice slower once they are merged.
    """
    x, gradient = x.astype(dtype), gradient.astype(dtype)
    total = jnp.einsum("tbi,tbo->io", x, gradient, preferred_element_type=jnp.float32)
    return total.astype(dtype)


def reset(carry: Carry, restart: jax.Array) -> Carry:
    """`carry` with zeros where `restart` [...] is on."""
    first = jnp.asarray(restart, bool)[..., None]
    return jax.tree.map(lambda part: jnp.where(first, 0.0, part), carry)
