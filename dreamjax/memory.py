"""M: the MDN-RNN that predicts the next latent vector, and its training.

Paper: "MDN-RNN (M) Model" and its appendix; original files `doomrnn/doomrnn.py`,
`doomrnn/rnn_train.py`, `carracing/rnn/rnn.py`.
Shapes: Z latent size, A action size, H LSTM units, K mixtures, B lanes, T frames;
N frames of a data set, E its episodes; `...` is any number of batch axes. Training is time-major.
"""

import dataclasses
import functools
import heapq
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

from dreamjax.checkpoint import Store
from dreamjax.latents import LatentSequences
from dreamjax.logbook import Logbook
from dreamjax.tasks import Task
from dreamjax.training import fit

FORGET_BIAS = 1.0  # TF1's LSTM default; added in the cell, so a stored bias does not hold it
MIN_LOGSTD = -7.0  # floor of the mixture's log standard deviation; the original has none
NEVER = -1e9  # death logit of a game without death: sigmoid is exactly 0
LEAD_STEPS = 35  # an alarm this close before a death is a warning, not a false alarm

Carry = tuple[jax.Array, jax.Array]


@struct.dataclass
class Mixture:
    """K Gaussians for each latent dimension on its own (factored, as the original).

    K stands before Z so that all arithmetic runs along contiguous latents.

    Attributes:
      logits: float32 [..., K, Z], unnormalised log weights.
      mean: float32 [..., K, Z].
      logstd: float32 [..., K, Z].
    """

    logits: jax.Array
    mean: jax.Array
    logstd: jax.Array

    def log_prob(self, z: jax.Array) -> jax.Array:
        """log sum_k w_k N(z; mean_k, std_k) of each dimension.

        Args:
          z: float32 [..., Z].

        Returns:
          float32 [..., Z], nats per dimension; a density, so it may be positive.
        """
        deviation = (z[..., None, :] - self.mean) * jnp.exp(-self.logstd)
        joint = self.logits - self.logstd - 0.5 * deviation**2
        normaliser = _logsumexp(self.logits) + 0.5 * math.log(2 * math.pi)
        return _logsumexp(joint) - normaliser

    def sample(self, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
        """Draw z at temperature tau.

        Args:
          key: PRNG key; consumed.
          temperature: tau > 0, scalar.

        Returns:
          float32 [..., Z].
        """
        key_component, key_value = jax.random.split(key)
        shape = (*self.mean.shape[:-2], self.mean.shape[-1])
        uniform = jax.random.uniform(key_component, shape)
        return self.sample_from(uniform, jax.random.normal(key_value, shape), temperature)

    def sample_from(
        self, uniform: jax.Array, normal: jax.Array, temperature: jax.Array | float
    ) -> jax.Array:
        """`sample` as a pure function of its noise, for common random numbers.

        Each dimension draws its own component by inverse CDF from softmax(logits / tau), then
        mean + std * sqrt(tau) * normal: tau acts twice, as in doomrnn.py.

        Args:
          uniform: float32 [..., Z] in [0, 1).
          normal: float32 [..., Z], standard normal.
          temperature: tau > 0, scalar.

        Returns:
          float32 [..., Z]; NaN where the logits are.
        """
        top = self.logits.max(axis=-2, keepdims=True)
        weights = jnp.exp((self.logits - top) / temperature)
        level = uniform * weights.sum(axis=-2)
        mean = logstd = jnp.full_like(level, jnp.nan)  # stays where level is NaN
        passed = jnp.zeros_like(level)
        for k in range(weights.shape[-2]):
            reached = level >= passed
            mean = jnp.where(reached, self.mean[..., k, :], mean)
            logstd = jnp.where(reached, self.logstd[..., k, :], logstd)
            passed = passed + weights[..., k, :]
        return mean + jnp.exp(logstd) * jnp.sqrt(temperature) * normal


class MDNRNN(nnx.Module):
    """One LSTM layer and a mixture density head; a pytree of four arrays.

    lstm_kernel [I + H, 4H] multiplies [input, h]; its columns are TF1's gates i, j (candidate),
    f, o. The input is [z, action] and, in a game with death, the restart flag.
    head_kernel [H, 3KZ + 1] gives logits [K, Z], mean [K, Z], logstd [K, Z] one after another,
    then the death logit in the last column (absent in a game without death).

    Args:
      task: the game; sizes come from it.
      rngs: its `params` stream initialises the kernels (Glorot uniform); biases are zero.
    """

    def __init__(self, task: Task, *, rngs: nnx.Rngs):
        self.latent_size = task.latent_size
        self.hidden_size = task.hidden_size
        self.num_mixtures = task.num_mixtures
        self.dies = task.dies
        inputs = task.latent_size + task.action_size + task.dies
        outputs = 3 * task.num_mixtures * task.latent_size + task.dies
        glorot = nnx.initializers.glorot_uniform()
        H = task.hidden_size
        self.lstm_kernel = nnx.Param(glorot(rngs.params(), (inputs + H, 4 * H)))
        self.lstm_bias = nnx.Param(jnp.zeros(4 * H))
        self.head_kernel = nnx.Param(glorot(rngs.params(), (H, outputs)))
        self.head_bias = nnx.Param(jnp.zeros(outputs))

    def __call__(
        self, carry: Carry, z: jax.Array, action: jax.Array, restart: jax.Array
    ) -> tuple[Carry, Mixture, jax.Array]:
        """One step: what follows `z` when `action` is taken.

        Args:
          carry: (c, h), each float32 [..., H].
          z: float32 [..., Z].
          action: float32 [..., A], in [-1, 1], before the game's own thresholds.
          restart: float32 or bool [...], 1 on an episode's first frame: zeroes the carry, and is
            an input in a game with death.

        Returns:
          carry after the step, the mixture of the next z, and the death logit float32 [...]
          (`NEVER` in a game without death).
        """
        inputs = self.inputs(z, action, restart)
        carry = lstm_step(self.lstm_kernel[...], self.lstm_bias[...], carry, inputs, restart)
        return carry, *self.predict(product(carry[1], self.head_kernel[...]))

    def inputs(self, z: jax.Array, action: jax.Array, restart: jax.Array) -> jax.Array:
        """What the LSTM reads: [z, action, restart flag if the game has death]."""
        flag = (restart.astype(jnp.float32)[..., None],) if self.dies else ()
        return jnp.concatenate((z, action, *flag), axis=-1)

    def predict(self, out: jax.Array) -> tuple[Mixture, jax.Array]:
        """Mixture of the next z and the death logit [...], from h @ head_kernel."""
        out = out + self.head_bias[...]
        K, Z = self.num_mixtures, self.latent_size
        logits, mean, logstd = (
            out[..., n * K * Z : (n + 1) * K * Z].reshape(*out.shape[:-1], K, Z) for n in range(3)
        )
        death = out[..., -1] if self.dies else jnp.full(out.shape[:-1], NEVER)
        return Mixture(logits, mean, jnp.maximum(logstd, MIN_LOGSTD)), death

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """(c, h) of zeros, each float32 [*batch_shape, H]."""
        shape = (*batch_shape, self.hidden_size)
        return jnp.zeros(shape), jnp.zeros(shape)


def cast(memory: MDNRNN, dtype: jax.typing.DTypeLike) -> MDNRNN:
    """`memory` with its two kernels in `dtype`; products then run in it, all else in float32."""
    memory = jax.tree.map(lambda leaf: leaf, memory)
    memory.lstm_kernel = nnx.Param(memory.lstm_kernel[...].astype(dtype))
    memory.head_kernel = nnx.Param(memory.head_kernel[...].astype(dtype))
    return memory


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel with operands in the kernel's dtype and a float32 result."""
    return jnp.dot(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def lstm_step(
    kernel: jax.Array, bias: jax.Array, carry: Carry, inputs: jax.Array, restart: jax.Array
) -> Carry:
    """One LSTM step; a restart zeroes the carry first."""
    c, h = _reset(carry, restart)
    return _cell(_gates(kernel, bias, h, inputs), c)


def _gates(kernel: jax.Array, bias: jax.Array, h: jax.Array, inputs: jax.Array) -> jax.Array:
    return product(jnp.concatenate((inputs, h), axis=-1), kernel) + bias


def _reset(carry: Carry, restart: jax.Array) -> Carry:
    first = (restart > 0)[..., None]
    return tuple(jnp.where(first, 0.0, part) for part in carry)


def _cell(gates: jax.Array, c: jax.Array) -> Carry:
    """(c, h) from the gates [..., 4H] before their nonlinearities."""
    i, j, f, o = jnp.split(gates, 4, axis=-1)
    c = c * jax.nn.sigmoid(f + FORGET_BIAS) + jax.nn.sigmoid(i) * jnp.tanh(j)
    return c, jnp.tanh(c) * jax.nn.sigmoid(o)


def _logsumexp(x: jax.Array) -> jax.Array:
    """log sum exp over K of [..., K, Z]."""
    top = jax.lax.stop_gradient(x.max(axis=-2, keepdims=True))
    return jnp.log(jnp.exp(x - top).sum(axis=-2)) + top[..., 0, :]


@jax.custom_vjp
def lstm_sequence(
    kernel: jax.Array, bias: jax.Array, carry: Carry, inputs: jax.Array, restart: jax.Array
) -> tuple[Carry, jax.Array]:
    """`lstm_step` over time, with a backward pass that is fast in bfloat16.

    Plain differentiation of the scan adds up the kernel's gradient step by step and leaves
    bfloat16; here the backward scan only finds the gates' gradients, and the kernel's is one
    product over all frames.

    Args:
      kernel, bias, carry: as for `lstm_step`, lanes [B].
      inputs: float32 [T, B, I].
      restart: float32 [T, B].

    Returns:
      the last carry, and h of every step, float32 [T, B, H].
    """
    return _sequence_forward(kernel, bias, carry, inputs, restart)[0]


def _sequence_forward(kernel, bias, carry, inputs, restart):
    def step(carry, now):
        c, h = _reset(carry, now[1])
        gates = _gates(kernel, bias, h, now[0])
        carry = _cell(gates, c)
        return carry, (carry[1], (h, c, gates))

    carry, (h, before) = jax.lax.scan(step, carry, (inputs, restart))
    return (carry, h), (kernel, inputs, restart, before)


def _sequence_backward(saved, gradient):
    kernel, inputs, restart, (h, c, gates) = saved
    d_carry, d_h = gradient
    d_input, d_hidden = jnp.split(kernel.T, (inputs.shape[-1],), axis=-1)

    def step(d_carry, now):
        d_h, restart, gates, c = now
        _, pull = jax.vjp(_cell, gates, c)
        d_gates, d_c = pull((d_carry[0], d_carry[1] + d_h))
        return _reset((d_c, product(d_gates, d_hidden)), restart), d_gates

    d_carry, d_gates = jax.lax.scan(step, d_carry, (d_h, restart, gates, c), reverse=True)
    d_kernel = _outer(jnp.concatenate((inputs, h), axis=-1), d_gates, kernel.dtype)
    d_inputs = product(d_gates, d_input)
    return d_kernel, d_gates.sum((0, 1)), d_carry, d_inputs, jnp.zeros_like(restart)


lstm_sequence.defvjp(_sequence_forward, _sequence_backward)


@jax.custom_vjp
def product_sequence(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`product` of [T, B, ...] whose gradients are products in the kernel's dtype too."""
    return product(x, kernel)


def _product_backward(saved, gradient):
    x, kernel = saved
    return product(gradient, kernel.T), _outer(x, gradient, kernel.dtype)


product_sequence.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _product_backward)


def _outer(x: jax.Array, gradient: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Gradient of a kernel: x^T gradient over time and lanes.

    Both axes are contracted as they are: XLA's CPU backend is twice slower once they are merged.
    """
    x, gradient = x.astype(dtype), gradient.astype(dtype)
    total = jnp.einsum("tbi,tbo->io", x, gradient, preferred_element_type=jnp.float32)
    return total.astype(dtype)


@struct.dataclass
class Sequences:
    """What M trains on: lanes of frames.

    Attributes:
      z: float32 [T + 1, B, Z]; z[t + 1] is what z[t] is to predict.
      action: float32 [T, B, A].
      restart: float32 [T, B], 1 on an episode's first frame.
      follows: float32 [T, B], 1 where z[t + 1] belongs to the same episode.
      judged: float32 [T, B], 1 where it is known whether the action led to death.
      death: float32 [T, B], 1 where it did.
    """

    z: jax.Array
    action: jax.Array
    restart: jax.Array
    follows: jax.Array
    judged: jax.Array
    death: jax.Array


def predict_sequences(
    memory: MDNRNN, carry: Carry, batch: Sequences
) -> tuple[Carry, jax.Array, jax.Array]:
    """Teacher-forced predictions.

    Returns:
      the last carry; nats per dimension of the next z, float32 [T, B]; death logits [T, B].
    """
    inputs = memory.inputs(batch.z[:-1], batch.action, batch.restart)
    lstm = memory.lstm_kernel[...], memory.lstm_bias[...]
    carry, h = lstm_sequence(*lstm, carry, inputs, batch.restart)
    mixture, logit = memory.predict(product_sequence(h, memory.head_kernel[...]))
    return carry, -mixture.log_prob(batch.z[1:]).mean(axis=-1), logit


def memory_loss(
    memory: MDNRNN, carry: Carry, batch: Sequences, death_weight: float = 10.0
) -> tuple[jax.Array, tuple[Carry, dict[str, jax.Array]]]:
    """Negative log likelihood of the next z in nats per dimension, plus the death loss.

    The original's stream runs on from an episode's last frame to the next episode's first, so
    its M also learns to predict a restart's z; here that term is left out. An episode cut by the
    step limit says nothing of death at its last frame, so that is left out too.

    Args:
      memory: M; the dtype of its kernels is that of the products.
      carry: (c, h) before the first frame, each [B, H].
      batch: the frames.
      death_weight: how many times more a step that led to death counts.

    Returns:
      the loss, then the carry after the last frame and the loss's parts.
    """
    carry, nll, logit = predict_sequences(memory, carry, batch)
    nll = _mean(nll, batch.follows)
    death_loss = _mean(_cross_entropy(logit, batch.death, death_weight), batch.judged)
    loss = nll + death_loss
    return loss, (carry, {"loss": loss, "nll": nll, "death_loss": death_loss})


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return (values * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def _cross_entropy(logit, death, weight):
    return (jax.nn.softplus(logit) - death * logit) * (1 + (weight - 1) * death)


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """How M is trained; the defaults are `rnn_train.py`'s for Take Cover."""

    steps: int = 24_400  # updates; the original's 400 epochs (the article says 20)
    batch_size: int = 100  # lanes; fewer where the data would not fill them
    sequence_length: int = 500  # frames of a lane in one update, at most
    learning_rate: float = 1e-3  # Adam's, at the first update
    min_learning_rate: float = 1e-5  # what it decays to
    decay: float = 0.99999  # of what is above the minimum, each update (CarRacing: 1.0)
    clip: float = 1.0  # largest absolute value of a gradient's element
    death_weight: float = 10.0  # of a step that led to death, in the loss
    bfloat16: bool = True  # products in bfloat16; weights, sums and the cell stay float32
    held_out: float = 0.1  # share of episodes kept from training
    steps_per_call: int = 4  # updates in one compiled call


@struct.dataclass
class _Frames:
    """A data set on the device: posteriors and, per frame, the fields of `Sequences`."""

    mu: jax.Array
    logvar: jax.Array
    action: jax.Array
    restart: jax.Array
    follows: jax.Array
    judged: jax.Array
    death: jax.Array


@struct.dataclass
class _State:
    memory: MDNRNN
    optimiser: optax.OptState
    carry: Carry


@struct.dataclass
class _Plan:
    """Which frames consecutive updates read; a leading axis counts the updates."""

    step: np.ndarray  # int32 []
    first: np.ndarray  # bool [], whether an epoch starts here
    index: np.ndarray  # int32 [T + 1, B], frames of the data set
    valid: np.ndarray  # bool [T, B], False past a lane's end


def train_memory(
    seed: int,
    task: Task,
    latents: LatentSequences,
    config: MemoryConfig,
    *,
    log: Logbook,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
) -> MDNRNN:
    """Train M as rnn_train.py does, on all but the held-out episodes.

    Each epoch shuffles the episodes, joins them into one stream and cuts it into lanes; the
    LSTM's carry goes from one update to the next until the epoch ends. z is drawn anew from its
    posterior in every update.

    Args:
      seed: of the weights, the held-out episodes, the order and the noise.
      task: the game.
      latents: the recorded episodes, encoded.
      config: sizes and rates.
      log: receives `loss`, `nll` and `death_loss`.
      store: where checkpoints go; an unfinished run there is resumed.
      meta: written into every checkpoint.

    Returns:
      M, its weights float32.

    Raises:
      ValueError: latents of another task, or a size in `config` that cannot be.
    """
    _check(task, latents, config)
    train, _ = latents.split(config.held_out, seed)
    frames = _frames(train, task.dies)
    layout = Layout.of(int(train.lengths.sum()), config)
    key_init, key_noise = jax.random.split(jax.random.key(seed))

    @functools.lru_cache(maxsize=2)
    def epoch_plan(epoch):
        return layout.cut(*layout.lanes_of(epoch_order(train.lengths, seed, epoch)))

    def advance(state, step):
        count = min(config.steps_per_call, config.steps - step)
        plan = _plan(range(step, step + count), layout.batches, epoch_plan)
        state, metrics = _updates(state, frames, plan, key_noise, config)
        return state, count, jax.tree.map(float, metrics)

    state = fit(
        "memory",
        _initial_state(key_init, task, layout.lanes, config),
        advance,
        config.steps,
        log=log,
        store=store,
        meta=meta,
        unit="frames",
        units_per_step=layout.lanes * layout.length,
    )
    return state.memory


def _check(task: Task, latents: LatentSequences, config: MemoryConfig) -> None:
    sizes = latents.mu.shape[-1], latents.actions.shape[-1]
    if sizes != (task.latent_size, task.action_size):
        raise ValueError(
            f"latents have z={sizes[0]} and {sizes[1]} actions, but {task.name} has "
            f"z={task.latent_size} and {task.action_size}; encode this task's recordings"
        )
    for name in ("steps", "batch_size", "sequence_length", "steps_per_call"):
        if getattr(config, name) < 1:
            raise ValueError(f"memory.{name} is {getattr(config, name)}; it must be at least 1")


def _frames(latents: LatentSequences, dies: bool) -> _Frames:
    ends = np.cumsum(latents.lengths)
    last, first = np.zeros((2, len(latents.mu)), np.float32)
    death = np.zeros_like(last)
    first[ends - latents.lengths] = 1
    last[ends - 1] = 1
    death[ends - 1] = latents.terminated
    judged = (1 - last + death) * dies
    arrays = (latents.mu, latents.logvar, latents.actions, first, 1 - last, judged, death)
    return _Frames(*map(jnp.asarray, arrays))


def _initial_state(key: jax.Array, task: Task, lanes: int, config: MemoryConfig) -> _State:
    memory = MDNRNN(task, rngs=nnx.Rngs(params=key))
    return _State(memory, _optimiser(config).init(memory), memory.initial_carry((lanes,)))


def _optimiser(config: MemoryConfig) -> optax.GradientTransformation:
    low, high = config.min_learning_rate, config.learning_rate
    rate = lambda step: (high - low) * config.decay**step + low  # noqa: E731
    return optax.chain(optax.clip(config.clip), optax.adam(rate))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _updates(state, frames, plan, key, config):
    """One update for each entry of `plan`; returns the state and the metrics' means."""

    def body(state, plan):
        return _update(state, frames, plan, key, config)

    state, metrics = jax.lax.scan(body, state, plan)
    return state, jax.tree.map(jnp.mean, metrics)


def _update(state, frames, plan, key, config):
    batch = _gather(frames, jax.random.fold_in(key, plan.step), plan.index, plan.valid)
    carry = _reset(state.carry, plan.first[None])
    dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32

    def loss(memory):
        return memory_loss(cast(memory, dtype), carry, batch, config.death_weight)

    gradient, (carry, metrics) = jax.grad(loss, has_aux=True)(state.memory)
    updates, optimiser = _optimiser(config).update(gradient, state.optimiser)
    return _State(optax.apply_updates(state.memory, updates), optimiser, carry), metrics


def _gather(frames: _Frames, key: jax.Array, index: jax.Array, valid: jax.Array) -> Sequences:
    """The frames at `index`, z drawn from their posteriors; nothing invalid counts."""
    mu, logvar = (posterior[index].astype(jnp.float32) for posterior in (frames.mu, frames.logvar))
    z = mu + jnp.exp(logvar / 2) * jax.random.normal(key, mu.shape)
    now = index[:-1]
    return Sequences(
        z=z,
        action=frames.action[now],
        restart=frames.restart[now],
        follows=frames.follows[now] * valid,
        judged=frames.judged[now] * valid,
        death=frames.death[now],
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a stream of frames is cut: `lanes` side by side, `batches` x `length` frames each.

    A lane gets at least `sequence_length` frames, so little data means fewer lanes and, below
    one lane, a shorter sequence. Lanes differ by at most one frame; what lacks is padding.
    """

    lanes: int
    batches: int
    length: int

    @classmethod
    def of(cls, num_frames: int, config: MemoryConfig) -> "Layout":
        """The layout of an epoch of `num_frames`."""
        lanes = min(max(num_frames // config.sequence_length, 1), config.batch_size)
        longest = -(-num_frames // lanes)
        batches = -(-longest // config.sequence_length)
        return cls(lanes, batches, -(-longest // batches))

    def lanes_of(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frame at each place of each lane [batches * length + 1, lanes], and validity.

        A lane's last frame is followed by the next lane's first, so that it has a target.
        """
        edges = np.arange(self.lanes + 1) * len(order) // self.lanes
        places = edges[:-1] + np.arange(self.batches * self.length + 1)[:, None]
        return order[np.minimum(places, len(order) - 1)], places[:-1] < edges[1:]

    def cut(self, index: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index [batches, length + 1, lanes] and validity [batches, length, lanes]."""
        begins = np.arange(self.batches)[:, None] * self.length
        windows = begins + np.arange(self.length + 1)
        return index[windows], valid[windows[:, :-1]]


def epoch_order(lengths: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The frames of all episodes, episodes shuffled: int32 [N], a function of seed and epoch."""
    starts = np.cumsum(lengths) - lengths
    episodes = np.random.default_rng((seed, epoch)).permutation(len(lengths))
    return _frames_of(starts[episodes], lengths[episodes])


def _frames_of(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The frames of episodes, one episode after another."""
    spans = [np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)]
    return np.concatenate([np.arange(0), *spans]).astype(np.int32)


def _plan(steps, batches, epoch_plan) -> _Plan:
    entries = []
    for step in steps:
        epoch, batch = divmod(step, batches)
        index, valid = epoch_plan(epoch)
        entries.append(_Plan(np.int32(step), np.bool_(batch == 0), index[batch], valid[batch]))
    return jax.tree.map(lambda *parts: np.stack(parts), *entries)


def memory_metrics(
    memory: MDNRNN,
    latents: LatentSequences,
    *,
    threshold: float = 0.0,
    death_weight: float = 10.0,
    seed: int = 0,
) -> dict[str, float]:
    """How well M predicts whole episodes, teacher-forced; for episodes it was not trained on.

    Args:
      memory: M.
      latents: the episodes.
      threshold: a death is predicted where the logit is above it.
      death_weight: as in the loss.
      seed: of z's noise.

    Returns:
      nll: nats per dimension of the next z (a density: it may be negative).
      nll_marginal, nll_copy: the same for two baselines fitted to these very episodes: a
        Gaussian that knows nothing, and a Gaussian around the last z.
      death_loss: the loss's other part.
      deaths: how many episodes ended in death; what follows is 0 where there are none.
      death_precision, death_recall: of predicted deaths, at exactly the fatal step.
      lead: steps from the first alarm in the last 35 steps to the death, mean over the deaths
        that had an alarm.
      false_alarms: alarms more than that before a death or where none came, per 1000 steps.
    """
    nll, logit = _teacher_forced(memory, latents, seed)
    frames = jax.tree.map(np.asarray, _frames(latents, memory.dies))
    entropy = np.asarray(_cross_entropy(logit, frames.death, death_weight))
    return {
        "nll": _ratio((nll * frames.follows).sum(), frames.follows.sum()),
        **_baselines(frames),
        "death_loss": _ratio((entropy * frames.judged).sum(), frames.judged.sum()),
        **_death_metrics(logit > threshold, frames, latents.lengths),
    }


def _teacher_forced(memory, latents, seed, lanes=100, length=200):
    """Nats per dimension and death logit of every frame, each float32 [N]."""
    index, valid = _pack(latents.lengths, min(lanes, len(latents.lengths)))
    layout = Layout(index.shape[1], -(-len(valid) // length), length)
    missing = layout.batches * length - len(valid)
    index, valid = (np.pad(array, ((0, missing), (0, 0))) for array in (index, valid))
    frames, carry = _frames(latents, memory.dies), memory.initial_carry((layout.lanes,))
    nll, logit = np.zeros((2, len(latents.mu)), np.float32)
    for batch, (places, real) in enumerate(zip(*layout.cut(index, valid), strict=True)):
        key = jax.random.fold_in(jax.random.key(seed), batch)
        carry, *found = _predict(memory, carry, frames, key, places, real)
        now = places[:-1][real]
        nll[now], logit[now] = (np.asarray(x)[real] for x in found)
    return nll, logit


@jax.jit
def _predict(memory, carry, frames, key, index, valid):
    return predict_sequences(memory, carry, _gather(frames, key, index, valid))


def _pack(lengths: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole episodes in lanes of about the same length: index [L + 1, lanes], valid [L, lanes]."""
    starts = np.cumsum(lengths) - lengths
    heap = [(0, lane, []) for lane in range(lanes)]
    for episode in np.argsort(-lengths, kind="stable"):
        total, lane, episodes = heap[0]
        heapq.heapreplace(heap, (total + int(lengths[episode]), lane, [*episodes, episode]))
    index = np.zeros((max(total for total, _, _ in heap) + 1, lanes), np.int32)
    valid = np.zeros((len(index) - 1, lanes), bool)
    for total, lane, episodes in heap:
        index[:total, lane] = _frames_of(starts[episodes], lengths[episodes])
        valid[:total, lane] = True
    return index, valid


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else 0.0


def _baselines(frames: _Frames) -> dict[str, float]:
    """Nats per dimension of best-fitting Gaussians, expected over z's posteriors."""
    mu, logvar = frames.mu.astype(np.float32), frames.logvar.astype(np.float32)
    variance = np.exp(logvar)
    pairs = np.flatnonzero(frames.follows)
    step = (mu[pairs + 1] - mu[pairs]) ** 2 + variance[pairs + 1] + variance[pairs]
    spread = mu.var(axis=0) + variance.mean(axis=0)
    copy = step.mean(axis=0) if len(pairs) else spread
    nats = lambda v: float(0.5 * np.log(2 * np.pi * np.e * v).mean())  # noqa: E731
    return {"nll_marginal": nats(spread), "nll_copy": nats(copy)}


def _death_metrics(alarm, frames: _Frames, lengths) -> dict[str, float]:
    ends = np.cumsum(lengths)
    death, judged = frames.death * frames.judged > 0, frames.judged > 0
    alarm = alarm & judged
    leads, near = [], np.zeros_like(alarm)
    for start, end in zip(ends - lengths, ends, strict=True):
        if death[end - 1]:
            last = slice(max(start, end - LEAD_STEPS), end)
            near[last] = True
            leads += list(end - 1 - last.start - np.flatnonzero(alarm[last])[:1])
    hits = (alarm & death).sum()
    return {
        "deaths": float(death.sum()),
        "death_precision": _ratio(hits, alarm.sum()),
        "death_recall": _ratio(hits, death.sum()),
        "lead": _ratio(sum(leads), len(leads)),
        "false_alarms": _ratio(1000 * (alarm & ~near).sum(), judged.sum()),
    }
