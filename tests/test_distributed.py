"""Several devices and several processes give the history that one device gives."""

import os
import socket
import subprocess
import sys

from command import dreamjax, environ, finish, kill, start, wait_for

from dreamjax.run.pictures import read_metrics
from dreamjax.training.checkpoint import Store

EVOLVE = """
import sys
sys.path.insert(0, "tests")
import jax
import jax.numpy as jnp
from probes import CONTROLLER, Balance, ProbeParams
from dreamjax.controller.evolution import EvolveConfig, evolve
params = ProbeParams(target=jnp.zeros(3), max_steps_in_episode=jnp.int32(30))
config = EvolveConfig(generations=4, population=10, rollouts=3, eval_every=2, eval_rollouts=20)
found = evolve(0, Balance(), params, CONTROLLER, 3, config)
print(jax.device_count(), [float(x).hex() for x in found.es.mean], float(found.best_score))
"""
EVOLVED = ["evolve", "short_cover:SHORT"]
SHORT = ["--evolve.population=4", "--evolve.rollouts=1", "--evolve.eval-rollouts=4"]
SHORT += ["--evolve.eval-every=100", "--save-seconds=0", "--preset=smoke"]


def on(devices):
    """The environment of a process that has so many CPU devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{environ()['XLA_FLAGS']} {flag}"
    return {"XLA_FLAGS": flags, "NPROC": str(devices)}  # devices wait for each other: a thread each


def evolved(devices):
    """`(device count, history)` of an evolution on so many CPU devices."""
    done = subprocess.run(
        [sys.executable, "-c", EVOLVE],
        env=os.environ | on(devices) | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, history = done.stdout.strip().splitlines()[-1].split(maxsplit=1)
    return int(count), history


def test_eight_devices():
    """10 x 3 lanes do not divide by 8: the padding must not show."""
    assert evolved(8) == (8, evolved(1)[1])


def job(world, run, generations):
    """Two processes that evolve together, started as a user starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    told = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": 2}
    words = [*EVOLVED, *SHORT, "--world", world, "--run-dir", run, "--distributed"]
    words.append(f"--evolve.generations={generations}")
    return [start(*words, **told, JAX_PROCESS_ID=index) for index in range(2)]


def history(run):
    """Every number of every generation, without the times."""
    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    return [{**row, "time": 0} for row in rows if row["phase"] == "evolve"]


def after_the_loss(world, run, lost):
    """The line of the process that is left when the other is killed after two checkpoints more."""
    both = job(world, run, 1000)
    before = len(history(run))
    wait_for(lambda: len(history(run)) >= before + 2, both[1 - lost])
    kill(both[lost])
    status, _, err = finish(both[1 - lost], 120)
    assert status != 0 and err.count("\n") == 1, err
    return err


def test_two_processes_one_of_which_is_lost(smoke, tmp_path):
    """The other says so in one line; the same command resumes, to the history of one process.

    Of one with as many devices: a batch of another size may round otherwise, and M's dreams are
    chaotic.
    """
    (world, _), run = smoke, tmp_path / "job"
    for lost in (0, 1):
        line = after_the_loss(world, run, lost)
        assert "a process of this job was lost" in line
        assert f"resume with: dreamjax {' '.join(EVOLVED)} {SHORT[0]}" in line
    done = Store(run / "evolve").steps()[-1]
    assert all(finish(process)[0] == 0 for process in job(world, run, done + 2))
    words = [*EVOLVED, *SHORT, "--world", world, "--run-dir", tmp_path / "alone"]
    assert dreamjax(*words, f"--evolve.generations={done + 2}", **on(2))[0] == 0
    assert history(run) == history(tmp_path / "alone")
