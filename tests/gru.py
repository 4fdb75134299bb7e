"""Another M: a GRU, which `--memory.kind gru:GRU` names."""

import jax
import jax.numpy as jnp
from flax import nnx

from dreamjax.memory.model import Memory, glorot, product, reset


class GRU(Memory):
    """One layer of gated recurrent units (arXiv:1406.1078); all that it remembers is h."""

    def recurrence(self, rngs):
        rows, H = self.num_inputs + self.hidden_size, self.hidden_size
        self.gates_kernel = nnx.Param(glorot(rngs, rows, 2 * H))
        self.gates_bias = nnx.Param(jnp.zeros(2 * H, jnp.float32))
        self.new_kernel = nnx.Param(glorot(rngs, rows, H))
        self.new_bias = nnx.Param(jnp.zeros(H, jnp.float32))

    def step(self, carry, inputs, restart):
        h = reset(carry, restart)
        gates = product(jnp.concatenate((inputs, h), axis=-1), self.gates_kernel[...])
        update, keep = jnp.split(jax.nn.sigmoid(gates + self.gates_bias[...]), 2, axis=-1)
        new = product(jnp.concatenate((inputs, keep * h), axis=-1), self.new_kernel[...])
        h = (1 - update) * h + update * jnp.tanh(new + self.new_bias[...])
        return h, h

    def initial_carry(self, batch_shape=()):
        return jnp.zeros((*batch_shape, self.hidden_size), jnp.float32)

    def parts(self, carry):
        return {"h": carry}
