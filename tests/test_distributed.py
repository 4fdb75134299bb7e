"""Several devices and several processes give the history that one device gives."""

import os
import socket
import subprocess
import sys

import pytest

EVOLVE = """
import sys
sys.path.insert(0, "tests")
import jax
address, count, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    jax.distributed.initialize(address, count, index, initialization_timeout=60)
import jax.numpy as jnp
from probes import CONTROLLER, Balance, ProbeParams
from dreamjax.checkpoint import Store
from dreamjax.evolution import EvolveConfig, evolve
params = ProbeParams(target=jnp.zeros(3), max_steps_in_episode=jnp.int32(30))
for generations in (2, 4):  # the second call resumes the first
    config = EvolveConfig(
        generations=generations, population=10, rollouts=3, eval_every=2, eval_rollouts=20
    )
    found = evolve(0, Balance(), params, CONTROLLER, 3, config, store=Store(sys.argv[4]))
print(jax.device_count(), [float(x).hex() for x in found.es.mean], float(found.best_score))
"""


def start(directory, devices, address="", count=1, index=0):
    """A process that evolves on `devices` CPU devices of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", EVOLVE, address, str(count), str(index), str(directory)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """`(device count, history)` that a process printed."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-2000:]
    count, history = out.strip().splitlines()[-1].split(maxsplit=1)
    return int(count), history


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return finish(start(tmp_path_factory.mktemp("one"), devices=1))[1]


def test_eight_devices(alone, tmp_path):
    """10 x 3 lanes do not divide by 8: the padding must not show."""
    assert finish(start(tmp_path, devices=8)) == (8, alone)


def test_two_processes(alone, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    both = [start(tmp_path, 2, address, 2, index) for index in range(2)]
    assert [finish(process) for process in both] == [(4, alone), (4, alone)]
