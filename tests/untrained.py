"""Models with random weights, as dreams of the tests have them."""

import functools

import jax
from flax import nnx

from dreamjax.memory.heads import places
from dreamjax.memory.lstm import MDNRNN


@functools.partial(jax.jit, static_argnames=("task", "seed", "death_bias"))
def random_memory(task, seed=0, death_bias=-3.0):
    """An untrained M whose logits of ends vary enough to end dreams at various times."""
    memory = MDNRNN(task, rngs=nnx.Rngs(seed))
    end = places(memory.layout)["end"]
    memory.head_kernel[...] = memory.head_kernel[...].at[:, end].multiply(8.0)
    memory.head_bias[...] = memory.head_bias[...].at[end].set(death_bias)
    return memory
