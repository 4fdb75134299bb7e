"""The paper's M: an LSTM under a mixture density head, with a gradient that is fast in bfloat16.

Original files: `doomrnn/doomrnn.py`, `carracing/rnn/rnn.py`.
Shapes: I inputs, H units, T steps, B lanes; `...` is any number of batch axes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dreamjax.memory.model import Memory, glorot, outer, product, reset
from dreamjax.training.devices import plus

FORGET_BIAS = 1.0  # TF1's LSTM default; added in the cell, so a stored bias does not hold it

LSTMCarry = tuple[jax.Array, jax.Array]


class MDNRNN(Memory):
    """One LSTM layer and its heads; a pytree of four arrays. Args: as `Memory`.

    lstm_kernel [I + H, 4H] multiplies [input, h]; its columns are TF1's gates i, j (candidate),
    f, o. The carry is (c, h).
    """

    bounds = (("h", 1.0),)

    def recurrence(self, rngs: nnx.Rngs) -> None:
        H = self.hidden_size
        self.lstm_kernel = nnx.Param(glorot(rngs, self.num_inputs + H, 4 * H))
        self.lstm_bias = nnx.Param(jnp.zeros(4 * H, jnp.float32))

    def step(self, carry: LSTMCarry, inputs: jax.Array, restart: jax.Array):
        c, h = reset(carry, restart)
        carry = cell(gates_of(self.lstm_kernel[...], self.lstm_bias[...], h, inputs), c)
        return carry, carry[1]

    def thinned(self, carry: LSTMCarry, factors: jax.Array) -> LSTMCarry:
        """As `Memory.thinned`, of h alone."""
        c, h = carry
        return c, h * factors

    def run(self, carry: LSTMCarry, inputs: jax.Array, restart: jax.Array, dropout=None):
        lstm = self.lstm_kernel[...], self.lstm_bias[...]
        factors = jnp.float32(1) if dropout is None else dropout
        return lstm_sequence(*lstm, carry, inputs, restart, factors)


def gates_of(kernel: jax.Array, bias: jax.Array, h: jax.Array, inputs: jax.Array) -> jax.Array:
    """Gates [..., 4H] before their nonlinearities."""
    return plus(product(jnp.concatenate((inputs, h), axis=-1), kernel), bias)


def cell(gates: jax.Array, c: jax.Array) -> LSTMCarry:
    """(c, h) from the gates [..., 4H] before their nonlinearities."""
    i, j, f, o = jnp.split(gates, 4, axis=-1)
    c = c * jax.nn.sigmoid(f + FORGET_BIAS) + jax.nn.sigmoid(i) * jnp.tanh(j)
    return c, jnp.tanh(c) * jax.nn.sigmoid(o)


@jax.custom_vjp
def lstm_sequence(kernel, bias, carry, inputs, restart, dropout) -> tuple[LSTMCarry, jax.Array]:
    """`MDNRNN.run`, with a backward pass that is fast in bfloat16; none for `dropout`.

    Plain differentiation of the scan adds up the kernel's gradient step by step and leaves
    bfloat16; here the backward scan only finds the gates' gradients, and the kernel's is one
    product over all frames.
    """
    return _sequence_forward(kernel, bias, carry, inputs, restart, dropout)[0]


def _sequence_forward(kernel, bias, carry, inputs, restart, dropout):
    def step(carry, now):
        c, h = reset(carry, now[1])
        h = h * dropout
        gates = gates_of(kernel, bias, h, now[0])
        carry = cell(gates, c)
        return carry, (carry[1], (h, c, gates))

    carry, (h, before) = jax.lax.scan(step, carry, (inputs, restart))
    return (carry, h), (kernel, inputs, restart, dropout, before)


def _sequence_backward(saved, gradient):
    kernel, inputs, restart, dropout, (h, c, gates) = saved
    d_carry, d_h = gradient
    d_input, d_hidden = jnp.split(kernel.T, (inputs.shape[-1],), axis=-1)

    def step(d_carry, now):
        d_h, restart, gates, c = now
        _, pull = jax.vjp(cell, gates, c)
        d_gates, d_c = pull((d_carry[0], d_carry[1] + d_h))
        return reset((d_c, product(d_gates, d_hidden) * dropout), restart), d_gates

    d_carry, d_gates = jax.lax.scan(step, d_carry, (d_h, restart, gates, c), reverse=True)
    d_kernel = outer(jnp.concatenate((inputs, h), axis=-1), d_gates, kernel.dtype)
    d_inputs = product(d_gates, d_input)
    nothing = jax.tree.map(jnp.zeros_like, (restart, dropout))
    return d_kernel, d_gates.sum((0, 1)), d_carry, d_inputs, *nothing


lstm_sequence.defvjp(_sequence_forward, _sequence_backward)
