"""Several devices and several processes make what one device makes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from command import alone, environ, finish, kill, start, wait_for
from soak import artefacts, differences

from dreamjax.run.pictures import read_metrics
from dreamjax.training.checkpoint import Store

TRAIN = """
import sys
sys.path.insert(0, "tests")
import dataclasses
import jax
import jax.numpy as jnp
import numpy as np
from probes import CONTROLLER, Balance, ProbeParams
from dreamjax.controller import population
from dreamjax.controller.evolution import EvolveConfig, evolve
from dreamjax.controller.policy_gradient import LearnConfig, learn
from dreamjax.memory.latents import LatentSequences
from dreamjax.memory.training import MemoryConfig, Trainer
from dreamjax.tasks import CAR_RACING
from dreamjax.training.checkpoint import flatten
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import devices_for
from dreamjax.vision import training as vision

task = dataclasses.replace(CAR_RACING, latent_size=4, hidden_size=8)
rng = np.random.default_rng(0)
frames = rng.integers(0, 255, (1, 16, 64, 64, 3), np.uint8)
fixed = {"config": vision.VisionConfig(), "task": task, "dtype": jnp.dtype("float32")}
state = vision.initial_state(4, jax.random.key(0))
seen, metrics = vision.updates(state, jax.random.key(1), 0, frames, **fixed)

lengths = np.full(20, 40, np.int32)
config = MemoryConfig(batch_size=16, sequence_length=40, bfloat16=False)
played = LatentSequences(
    mu=rng.standard_normal((800, 4)).astype(np.float16),
    logvar=np.full((800, 4), -2, np.float16),
    actions=rng.uniform(-1, 1, (800, 3)).astype(np.float32),
    rewards=rng.standard_normal(800).astype(np.float32),
    lengths=lengths,
    terminated=np.arange(20) % 2 == 0,
    seeds=2 * np.arange(20),
    vision="v",
    profile=task.profile,
)
trainer = Trainer(task, played, config, 0)
told, _, losses = trainer(trainer.initial(), 0)

params = ProbeParams(target=jnp.zeros(3), max_steps_in_episode=jnp.int32(30))
small = {"num_envs": 16, "num_steps": 8, "num_minibatches": 2, "eval_rollouts": 16}
learnt = learn(Balance(), params, CONTROLLER, LearnConfig(steps=256, **small), 0)
population.COMPACTION = 0.1  # fewer loops to compile
generations = {"generations": 4, "population": 10, "rollouts": 3, "eval_every": 2}
evolved = evolve(Balance(), params, CONTROLLER, EvolveConfig(**generations, eval_rollouts=20), 0)
found = {"evolved": evolved, "seen": seen.optimizer, "told": told, "learnt": learnt}
found["metrics"] = metrics, losses
shared = devices_for(100, "vision.batch_size", Logbook(quiet=True)).size
np.savez(sys.argv[1], devices=[jax.device_count(), shared], **flatten(found))
"""
SHARE = """
import sys
import jax
import numpy as np

address, index, count, total, path = sys.argv[1:]
if count != "1":
    jax.distributed.initialize(address, int(count), int(index))
from dreamjax.training.checkpoint import Store
from dreamjax.training.fit import fit
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import all_devices, on_all, split

mesh, store = all_devices(), Store(path, seconds=0)
rows = np.arange(64, dtype=np.float32).reshape(16, 4)
state = {"split": split(rows, mesh), "whole": on_all(rows, mesh), "own": np.float32(0)}


def advance(state, step):
    return jax.tree.map(lambda x: x + 1, state), 1, {"loss": 0.0}


for end in (int(total) - 1, int(total)):  # the second resumes
    found = fit("toy", state, advance, end, log=Logbook(quiet=True), store=store)
assert found["split"].sharding == state["split"].sharding
Store(path + "/own").replace({"own": found["own"]}, {})  # of which the others hold no parts
if index == "0":
    assert store.load({"own": np.float32(0)})[0]["own"] == end, "by one process alone"
"""
RUN = ["run", "short_cover:SHORT"]
SHORT = ["--evolve.population=4", "--evolve.rollouts=1", "--evolve.eval-rollouts=4"]
SHORT += ["--evolve.eval-every=100", "--save-seconds=0", "--preset=smoke", "--vision.steps=2"]
SHORT += ["--collect.episodes=17", "--memory.steps=4", "--evaluate.episodes=3"]
SHORT += ["--evaluate.baseline-episodes=4"]


def on(devices, usual=None):
    """The environment of a process that has so many CPU devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    flags = f"{(usual or environ()).get('XLA_FLAGS', '')} {flag}"
    return {"XLA_FLAGS": flags, "NPROC": str(devices)}  # devices wait for each other: a thread each


def trained(devices, path):
    """What `TRAIN` finds on so many CPU devices."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, path],
        env=os.environ | on(devices, os.environ) | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(path))


@pytest.mark.slow
def test_eight_devices_train_as_one_does(tmp_path):
    """V's gradients, M's update, C's two and its generations, of which none may differ.

    (10 x 3 lanes do not divide by 8: the padding must not show.) In the others sums over devices
    round otherwise than sums over rows. Of V the whole of an array is compared: where rounding
    turns one of its 700,000 ReLUs off, that shows in a gradient (by 0.5 % here).
    """
    one, eight = (trained(devices, str(tmp_path / f"{devices}.npz")) for devices in (1, 8))
    assert (*one.pop("devices"), *eight.pop("devices")) == (1, 1, 8, 5)  # 100 divides by 5
    for name, array in one.items():
        error = np.linalg.norm(eight[name] - array) / max(np.linalg.norm(array), 1e-30)
        bound = {"['evolv": 0, "['seen'": 0.05}.get(name[:7], 1e-4)
        assert error <= bound, name


def free_address():
    """An address of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.slow
def test_each_process_saves_its_own_parts_and_any_devices_resume(tmp_path):
    for number, (processes, devices, total) in enumerate([(2, 2, 2), (1, 8, 4), (2, 1, 6)]):
        words = [sys.executable, "-c", SHARE, free_address()]
        env = os.environ | on(devices, os.environ) | {"PYTHONPATH": "."}
        started = [
            subprocess.Popen([*words, *map(str, (i, processes, total, tmp_path))], env=env)
            for i in range(processes)
        ]
        assert [process.wait(100) for process in started] == [0] * processes
        assert Store(tmp_path / "own").steps() == [number]
        files = (tmp_path / f"{total:08d}" / "arrays").glob("ocdbt.process_*")
        assert len(list(files)) == processes
        rows = np.zeros((16, 4), np.float32)
        found, _ = Store(tmp_path).load({"split": rows, "whole": rows})
        for array in found.values():
            np.testing.assert_array_equal(array, np.arange(64).reshape(16, 4) + total)


def job(run, generations, words=("", "")):
    """Two processes that do a run together, started as a user starts them; `words` for each."""
    told = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": 2}
    said = [*RUN, *SHORT, f"--evolve.generations={generations}", "--distributed"]
    return [
        start(*said, "--run-dir", run, *own.split(), **told, JAX_PROCESS_ID=index)
        for index, own in enumerate(words)
    ]


def history(run):
    """Every number of every generation, without the times."""
    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    return [{**row, "time": 0} for row in rows if row["phase"] == "evolve"]


def after_the_loss(run, lost):
    """The line of the process that is left when the other is killed after two checkpoints more."""
    both = job(run, 1000)
    before = len(history(run))
    wait_for(lambda: len(history(run)) >= before + 2, both[1 - lost])
    kill(both[lost])
    status, _, err = finish(both[1 - lost], 120)
    assert status != 0 and err.count("\n") == 1, err
    return err


@pytest.mark.slow
def test_two_processes_one_of_which_is_lost(tmp_path):
    """The other says so in one line; the same command resumes, and leaves what one process does.

    One with as many devices: a batch of another size may round otherwise, and M's dreams are
    chaotic.
    """
    run, single = tmp_path / "job", tmp_path / "alone"
    for lost in (0, 1):
        line = after_the_loss(run, lost)
        assert "a process of this job was lost" in line
        assert f"resume with: dreamjax {' '.join(RUN)} {SHORT[0]}" in line
    done = Store(run / "evolve").steps()[-1]
    ended = [finish(process) for process in job(run, done + 2)]
    assert [status for status, *_ in ended] == [0, 0], ended
    assert json.loads((run / "results.json").read_text())["ours"]["n"] == 3
    words = [*RUN, *SHORT, f"--evolve.generations={done + 2}", "--run-dir", single]
    assert alone(*words, **on(2))[0] == 0
    assert history(run) == history(single)
    assert set(differences(artefacts(run), artefacts(single))) <= {"curves"}  # V's losses round


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, fault",
    [
        (("--seed 1", "--seed 2"), "were not started alike; start them with the same words"),
        (("", "--run-dir elsewhere"), "do not see the same files; put "),
        (("--vision.batch-size 9",) * 2, "vision.batch_size=9 does not divide by 2 processes"),
    ],
)
def test_processes_that_cannot_work_together_are_refused(words, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    for status, _, err in map(finish, job(run, 2, words)):
        assert status == 1 and err.count("\n") == 1 and fault in err, err
    assert not (run / "vision").exists()
