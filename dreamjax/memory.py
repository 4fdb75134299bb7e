"""M: the MDN-RNN that predicts the next latent vector and death.

Paper: "MDN-RNN (M) Model" and its appendix; original files `doomrnn/doomrnn.py`,
`carracing/rnn/rnn.py`.
Shapes: Z latent size, A action size, H LSTM units, K mixtures; `...` is any number of batch axes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx, struct

from dreamjax.devices import tile
from dreamjax.tasks import PRESSED, Task

FORGET_BIAS = 1.0  # TF1's LSTM default; added in the cell, so a stored bias does not hold it
MIN_LOGSTD = -7.0  # floor of the mixture's log standard deviation; the original has none
RARE = 5.0  # first log odds against an event, so that events explain only what is rare
CLOCK = 1000  # steps that M's clock counts as one, so that it stays near 1
NEVER = -1e9  # death logit of a game without death: sigmoid is exactly 0

VARIANT = ("num_events", "clock", "keys")  # what may differ from the paper's M

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

    def nats(self, z: jax.Array) -> jax.Array:
        """Negative log density of z [..., Z] per dimension, float32 [...]."""
        return -self.log_prob(z).mean(axis=-1)

    def sample(self, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
        """Draw z at temperature tau.

        Args:
          key: PRNG key; consumed.
          temperature: tau > 0, scalar.

        Returns:
          float32 [..., Z].
        """
        key_component, key_value, key_event = jax.random.split(key, 3)
        shape = (*self.mean.shape[:-2], self.mean.shape[-1])
        uniform = jax.random.uniform(key_component, shape, jnp.float32)
        normal = jax.random.normal(key_value, shape, jnp.float32)
        event = jax.random.uniform(key_event, shape[:-1], jnp.float32)
        return self.sample_from(uniform, normal, temperature, event)

    def sample_from(
        self,
        uniform: jax.Array,
        normal: jax.Array,
        temperature: jax.Array | float,
        event: jax.Array,
    ) -> jax.Array:
        """`sample` as a pure function of its noise, for common random numbers.

        Each dimension draws its own component by inverse CDF from softmax(logits / tau), then
        mean + std * sqrt(tau) * normal: tau acts twice, as in doomrnn.py.

        Args:
          uniform: float32 [..., Z] in [0, 1).
          normal: float32 [..., Z], standard normal.
          temperature: tau > 0, scalar.
          event: float32 [...] in [0, 1); unused here, `EventMixture` chooses with it.

        Returns:
          float32 [..., Z]; NaN where the logits are.
        """
        del event
        logits = [self.logits[..., k, :] for k in range(self.logits.shape[-2])]
        top = functools.reduce(jnp.maximum, logits)  # no reduction over K: all is one kernel
        weights = [jnp.exp((logit - top) / temperature) for logit in logits]
        level = uniform * sum(weights)
        mean = logstd = jnp.full_like(level, jnp.nan)  # stays where level is NaN
        passed = jnp.zeros_like(level)
        for k, weight in enumerate(weights):
            reached = level >= passed
            mean = jnp.where(reached, self.mean[..., k, :], mean)
            logstd = jnp.where(reached, self.logstd[..., k, :], logstd)
            passed = passed + weight
        return mean + jnp.exp(logstd) * jnp.sqrt(temperature) * normal


@struct.dataclass
class EventMixture(Mixture):
    """A `Mixture`, or instead of it an event: one of J Gaussians over all latents at once.

    A factored mixture draws each latent for itself. What changes them together, such as the red
    flash of a hit, it dreams in some latents and not in others, and M, which never saw half a
    flash, takes it for nothing: its dreams hardly hurt. Not in the paper; J = 0 is the paper's.

    Attributes:
      weights: float32 [..., 1 + J], unnormalised log weights: no event, then each event.
      event_mean: float32 [..., J, Z].
      event_logstd: float32 [..., J, Z].
    """

    weights: jax.Array
    event_mean: jax.Array
    event_logstd: jax.Array

    def nats(self, z: jax.Array) -> jax.Array:
        """Negative log density of z [..., Z] per dimension, float32 [...]."""
        deviation = (z[..., None, :] - self.event_mean) * jnp.exp(-self.event_logstd)
        density = -self.event_logstd - 0.5 * deviation**2 - 0.5 * math.log(2 * math.pi)
        usual = self.log_prob(z).sum(axis=-1, keepdims=True)
        each = jnp.concatenate((usual, density.sum(axis=-1)), axis=-1)
        total = jax.nn.logsumexp(jax.nn.log_softmax(self.weights) + each, axis=-1)
        return -total / z.shape[-1]

    def sample_from(self, uniform, normal, temperature, event) -> jax.Array:
        """As `Mixture.sample_from`; `event` decides by inverse CDF from softmax(weights / tau)."""
        z = super().sample_from(uniform, normal, temperature, event)
        share = jax.nn.softmax(self.weights / temperature)
        passed = jnp.zeros_like(share[..., 0])
        for j in range(self.event_mean.shape[-2]):
            passed = passed + share[..., j]
            spread = jnp.exp(self.event_logstd[..., j, :]) * jnp.sqrt(temperature)
            happened = self.event_mean[..., j, :] + spread * normal
            z = jnp.where((event >= passed)[..., None], happened, z)
        return z


class MDNRNN(nnx.Module):
    """One LSTM layer and a mixture density head; a pytree of four arrays.

    lstm_kernel [I + H, 4H] multiplies [input, h]; its columns are TF1's gates i, j (candidate),
    f, o. The input is [z, action] and, in a game with death, the restart flag; with a clock that
    flag tells an episode's age instead, negative and in `CLOCK` steps.
    head_kernel [H, 3KZ + 1] gives logits [K, Z], mean [K, Z], logstd [K, Z] one after another,
    then the death logit in the last column (absent in a game without death). With J > 0 events
    the columns before the last are their mean [J, Z], logstd [J, Z] and the weights [1 + J].

    Args:
      task: the game; sizes come from it.
      rngs: its `params` stream initialises the kernels (Glorot uniform); biases are zero, but
        for events, which begin as `RARE`.
      num_events: J, see `EventMixture`; 0 is the paper's.
      clock: whether M is told the age of an episode, as games that grow harder need; the paper's
        is not.
      keys: whether M reads of an action what Take Cover does, the key that it presses, rather than
        the number; the paper's reads the number.
    """

    def __init__(
        self,
        task: Task,
        *,
        rngs: nnx.Rngs,
        num_events: int = 0,
        clock: bool = False,
        keys: bool = False,
    ):
        self.latent_size = task.latent_size
        self.hidden_size = task.hidden_size
        self.num_mixtures = task.num_mixtures
        self.num_events = num_events
        self.clock = clock
        self.keys = keys
        self.dies = task.dies
        inputs = task.latent_size + task.action_size + task.dies
        outputs = 3 * task.num_mixtures * task.latent_size + task.dies
        outputs += num_events and 2 * num_events * task.latent_size + num_events + 1
        glorot = nnx.initializers.glorot_uniform()
        H = task.hidden_size
        self.lstm_kernel = nnx.Param(glorot(rngs.params(), (inputs + H, 4 * H), jnp.float32))
        self.lstm_bias = nnx.Param(jnp.zeros(4 * H, jnp.float32))
        self.head_kernel = nnx.Param(glorot(rngs.params(), (H, outputs), jnp.float32))
        bias = jnp.zeros(outputs, jnp.float32)
        if num_events:
            bias = bias.at[outputs - task.dies - num_events - 1].set(RARE)
        self.head_bias = nnx.Param(bias)

    def __call__(
        self, carry: Carry, z: jax.Array, action: jax.Array, age: jax.Array
    ) -> tuple[Carry, Mixture, jax.Array]:
        """One step: what follows `z` when `action` is taken.

        Args:
          carry: (c, h), each float32 [..., H].
          z: float32 [..., Z].
          action: float32 [..., A], in [-1, 1], before the game's own thresholds.
          age: float32 or int32 [...], steps since the episode began: 0, its first frame, zeroes
            the carry.

        Returns:
          carry after the step, the mixture of the next z, and the death logit float32 [...]
          (`NEVER` in a game without death).
        """
        inputs = self.inputs(z, action, age)
        carry = lstm_step(self.lstm_kernel[...], self.lstm_bias[...], carry, inputs, age == 0)
        return carry, *self.predict(product(carry[1], self.head_kernel[...]))

    def inputs(self, z: jax.Array, action: jax.Array, age: jax.Array) -> jax.Array:
        """What the LSTM reads: [z, action, restart flag or clock if the game has death]."""
        if self.keys:
            action = pressed(action)
        if not self.dies:
            return jnp.concatenate((z, action), axis=-1)
        age = jnp.asarray(age, jnp.float32)
        flag = jnp.where(age == 0, 1.0, -age / CLOCK if self.clock else 0.0).astype(jnp.float32)
        return jnp.concatenate((z, action, flag[..., None]), axis=-1)

    def predict(self, out: jax.Array) -> tuple[Mixture, jax.Array]:
        """Mixture of the next z and the death logit [...], from h @ head_kernel."""
        out = out + self.head_bias[...]
        K, Z = self.num_mixtures, self.latent_size
        logits, mean, logstd = (
            out[..., n * K * Z : (n + 1) * K * Z].reshape(*out.shape[:-1], K, Z) for n in range(3)
        )
        death = out[..., -1] if self.dies else jnp.full(out.shape[:-1], NEVER, out.dtype)
        usual = logits, mean, jnp.maximum(logstd, MIN_LOGSTD)
        if not self.num_events:
            return Mixture(*usual), death
        return EventMixture(*usual, *self._events(out[..., 3 * K * Z :])), death

    def _events(self, out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Weights [1 + J], means and log standard deviations [J, Z] of the events."""
        J, Z = self.num_events, self.latent_size
        mean, logstd = (
            out[..., n * J * Z : (n + 1) * J * Z].reshape(*out.shape[:-1], J, Z) for n in range(2)
        )
        weights = out[..., 2 * J * Z : 2 * J * Z + J + 1]
        return weights, mean, jnp.maximum(logstd, MIN_LOGSTD)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """(c, h) of zeros, each float32 [*batch_shape, H]."""
        shape = (*batch_shape, self.hidden_size)
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)


def pressed(action: jax.Array) -> jax.Array:
    """-1, 0 or 1, the key that each number presses; its gradient is the number's."""
    key = jnp.where(jnp.abs(action) > PRESSED, jnp.sign(action), 0.0)
    return action + jax.lax.stop_gradient(key - action)


def with_events(memory: MDNRNN, task: Task, num_events: int, rngs: nnx.Rngs) -> MDNRNN:
    """`memory` with untrained events, so that training can go on from an M that has none."""
    if memory.num_events == num_events:
        return memory
    grown = MDNRNN(task, rngs=rngs, num_events=num_events, clock=memory.clock, keys=memory.keys)
    grown.lstm_kernel[...], grown.lstm_bias[...] = memory.lstm_kernel[...], memory.lstm_bias[...]
    usual = 3 * memory.num_mixtures * memory.latent_size
    for name in ("head_kernel", "head_bias"):
        old, new = getattr(memory, name)[...], getattr(grown, name)
        new[...] = new[...].at[..., :usual].set(old[..., :usual])
        if memory.dies:
            new[...] = new[...].at[..., -1].set(old[..., -1])
    return grown


def cast(memory: MDNRNN, dtype: jax.typing.DTypeLike) -> MDNRNN:
    """`memory` with its two kernels in `dtype`; products then run in it, all else in float32."""
    memory = jax.tree.map(lambda leaf: leaf, memory)
    memory.lstm_kernel = nnx.Param(memory.lstm_kernel[...].astype(dtype))
    memory.head_kernel = nnx.Param(memory.head_kernel[...].astype(dtype))
    return memory


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel with operands in the kernel's dtype and a float32 result."""
    x, outputs = x.astype(kernel.dtype), kernel.shape[1]
    more_rows, more_columns = (-side % tile() for side in kernel.shape)
    if more_rows or more_columns:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more_rows)])
        kernel = jnp.pad(kernel, ((0, more_rows), (0, more_columns)))
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)[..., :outputs]


def lstm_step(
    kernel: jax.Array, bias: jax.Array, carry: Carry, inputs: jax.Array, restart: jax.Array
) -> Carry:
    """One LSTM step; a restart zeroes the carry first."""
    c, h = reset(carry, restart)
    return cell(gates_of(kernel, bias, h, inputs), c)


def gates_of(kernel: jax.Array, bias: jax.Array, h: jax.Array, inputs: jax.Array) -> jax.Array:
    """Gates [..., 4H] before their nonlinearities."""
    return product(jnp.concatenate((inputs, h), axis=-1), kernel) + bias


def reset(carry: Carry, restart: jax.Array) -> Carry:
    """`carry` with zeros where `restart` [...] is on."""
    first = jnp.asarray(restart, bool)[..., None]
    return tuple(jnp.where(first, 0.0, part) for part in carry)


def cell(gates: jax.Array, c: jax.Array) -> Carry:
    """(c, h) from the gates [..., 4H] before their nonlinearities."""
    i, j, f, o = jnp.split(gates, 4, axis=-1)
    c = c * jax.nn.sigmoid(f + FORGET_BIAS) + jax.nn.sigmoid(i) * jnp.tanh(j)
    return c, jnp.tanh(c) * jax.nn.sigmoid(o)


def _logsumexp(x: jax.Array) -> jax.Array:
    """log sum exp over K of [..., K, Z]."""
    top = jax.lax.stop_gradient(x.max(axis=-2, keepdims=True))
    return jnp.log(jnp.exp(x - top).sum(axis=-2)) + top[..., 0, :]
