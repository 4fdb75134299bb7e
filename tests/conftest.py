"""What the tests share: the processes that run them side by side, small tasks, small worlds.

jax is imported where it is needed: the first process only hands out the tests.
"""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import compiled

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "DREAMJAX_TESTS" not in os.environ:  # the first process; those of pytest-xdist inherit it
    shared = os.environ["DREAMJAX_TESTS"] = tempfile.mkdtemp(prefix="dreamjax-tests-")
    atexit.register(shutil.rmtree, shared, ignore_errors=True)
    compiled.tidy(compiled.home())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled.folder()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    path = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # commands find the games that lie here
if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side have a thread each
    gc.set_threshold(50_000, 20, 50)  # tracing makes millions of objects that live on
    os.environ["NPROC"] = "1"
    flags = "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
    flags += " --xla_cpu_parallel_codegen_split_count=1"
    if version("jax").startswith("0.10."):  # whose older code generator is sooner done
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"

import pytest
from filelock import FileLock

SHARED = Path(os.environ["DREAMJAX_TESTS"])  # of all processes: programs compile once


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_configure(config):
    if config.getoption("--all"):
        config.option.markexpr = ""


def pytest_xdist_auto_num_workers():
    """One more than there are cores, for while tests wait for processes."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else None


LONGEST = (
    *(
        "pipeline",
        "rounds",
        "distributed",
        "promises",
        "workers",
        "play",
        "vision",
        "agent",
        "envs",
    ),
    *("memory", "real", "rollouts", "learning", "checkpoint", "evolution", "ledger", "worlds"),
    *("faults", "scripts", "latents", "fidelity", "media", "pages", "commands"),
)


def pytest_collection_modifyitems(items):
    """Files side by side: those that last long come first."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """What one file compiled does not fill the memory while others run."""
    import jax

    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """Sizes that change no result.

    Each batch size of a population is a loop to compile (test_evolution.py); frames that are
    encoded together are padded to a call's (test_latents.py).
    """
    monkeypatch.setattr("dreamjax.controller.population.COMPACTION", 0.01)
    monkeypatch.setattr("dreamjax.memory.latents._CALL", 32)


@pytest.fixture
def small_task():
    """Take Cover with a small M: quick to compile, the same in everything else."""
    import dataclasses

    from dreamjax.tasks import TAKE_COVER

    return dataclasses.replace(TAKE_COVER, latent_size=6, hidden_size=12, max_steps=60)


@pytest.fixture
def dream(small_task):
    """`(env, params)` of a small dream in which random controllers die at various times."""
    import jax
    import jax.numpy as jnp
    from untrained import random_memory

    from dreamjax.dream.env import DreamEnv, env_params

    key = jax.random.key(7)
    memory = random_memory(small_task, death_bias=-0.8)
    mu = jax.random.normal(key, (9, small_task.latent_size))
    params = env_params(small_task, memory, mu, jnp.full_like(mu, -2.0), temperature=1.0)
    return DreamEnv(small_task), params


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder of an untrained world that is handed on; dreams in it end after some 20 steps."""
    import jax
    from flax import nnx
    from untrained import random_memory

    from dreamjax.dream.exported import export_world
    from dreamjax.dream.world import World
    from dreamjax.tasks import TAKE_COVER
    from dreamjax.vision.model import VAE

    folder, mu = tmp_path_factory.mktemp("world"), jax.random.normal(jax.random.key(0), (5, 64))
    memory = random_memory(TAKE_COVER, death_bias=0.0)
    vision = VAE(64, rngs=nnx.Rngs(1))
    made = World(TAKE_COVER, vision, memory, mu, mu - 2, death_threshold=3.0, death_noise=1.0)
    export_world(folder, made)
    return folder


@pytest.fixture(scope="session")
def smoke():
    """A finished run of the smoke preset in the short game, not to be changed, and what it said."""
    from command import alone

    directory, told = SHARED / "smoke run", SHARED / "smoke.txt"  # a path with a space
    words = ["run", "short_cover:SHORT", "--preset", "smoke", "--run-dir", directory]
    with FileLock(SHARED / "smoke.lock"):
        if not told.exists():
            status, out, err = alone(*words)  # compiled a little better, as V is trained
            assert status == 0, err
            told.write_text(out)
    return directory, told.read_text()
