"""Shared fixtures: small tasks, small worlds."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # equal programs compile once for all tests
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dreamjax-compiled-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import jax.numpy as jnp
import pytest
from command import dreamjax
from flax import nnx

from dreamjax.dream import DreamEnv, env_params
from dreamjax.memory import MDNRNN
from dreamjax.tasks import TAKE_COVER


def random_memory(task, seed=0, death_bias=-3.0):
    """An untrained M whose death logit varies enough to end dreams at various times."""
    memory = MDNRNN(task, rngs=nnx.Rngs(seed))
    memory.head_kernel[...] = memory.head_kernel[...].at[:, -1].multiply(8.0)
    memory.head_bias[...] = memory.head_bias[...].at[-1].set(death_bias)
    return memory


@pytest.fixture(autouse=True)
def few_batch_sizes(monkeypatch):
    """Each batch size is a loop to compile, and none changes a return (test_evolution.py)."""
    monkeypatch.setattr("dreamjax.population.COMPACTION", 0.25)


@pytest.fixture
def small_task():
    """Take Cover with a small M: quick to compile, the same in everything else."""
    import dataclasses

    return dataclasses.replace(TAKE_COVER, latent_size=6, hidden_size=12, max_steps=60)


@pytest.fixture
def dream(small_task):
    """`(env, params)` of a small dream in which random controllers die at various times."""
    key = jax.random.key(7)
    memory = random_memory(small_task, death_bias=-0.8)
    mu = jax.random.normal(key, (9, small_task.latent_size))
    params = env_params(small_task, memory, mu, jnp.full_like(mu, -2.0), temperature=1.0)
    return DreamEnv(small_task), params


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """A finished run of the smoke preset, not to be changed, and what it printed."""
    directory = tmp_path_factory.mktemp("runs") / "smoke run"  # a path with a space
    status, out, err = dreamjax("run", "take-cover", "--preset", "smoke", "--run-dir", directory)
    assert status == 0, err
    return directory, out
