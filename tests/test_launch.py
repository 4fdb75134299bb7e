"""The launch recipes on this machine: a scheduler's commands are stood in for, theirs are run."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from command import environ, wait_for
from packaging.specifiers import SpecifierSet
from test_distributed import history

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "experiments" / "launch"
WORDS = ["evolve", "short_cover:SHORT", "--preset=smoke", "--evolve.population=4"]
WORDS += ["--evolve.rollouts=1", "--evolve.eval-rollouts=4", "--save-seconds=1000"]

STAND_IN = {
    "dreamjax": f'exec {sys.executable} -m dreamjax "$@"',
    # two tasks on this machine, as srun starts them; a signal goes to both
    "srun": """
[[ $1 == --* ]] && shift
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2 SLURM_LOCALID=0
for i in 0 1; do SLURM_PROCID=$i "$@" & tasks+=($!); done
trap 'kill -TERM "${tasks[@]}"; wait "${tasks[@]}"; exit 130' TERM
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
""",
    "scontrol": 'echo "$@" >> scontrol.txt',
    # every host runs the command; here they find each other by jax's variables
    "gcloud": """
while [[ $# -gt 0 && $1 != --command ]]; do echo "$1" >> gcloud.txt; shift; done
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$PORT JAX_NUM_PROCESSES=2
JAX_PROCESS_ID=1 bash -c "$2" &
JAX_PROCESS_ID=0 bash -c "$2" && wait $!
""",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder in which the commands that the recipes call are stand-ins."""
    (tmp_path / "bin").mkdir()
    for name, script in STAND_IN.items():
        (path := tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DEVICE", "cpu")
    return tmp_path


def launch(recipe, *words, **variables):
    return subprocess.Popen(
        ["bash", str(LAUNCH / recipe), *map(str, words)],
        env=environ(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_slurm_saves_and_requeues_when_it_is_preempted_and_then_goes_on(here, smoke):
    words = [*WORDS, f"--world={smoke[0]}", f"--run-dir={here / 'run'}"]
    job = {"SLURM_JOB_ID": str(os.getpid())}  # from which jax takes the port
    preempted = launch("slurm.sh", *words, "--evolve.generations=1000", **job)
    wait_for(lambda: len(history(here / "run")) >= 2, preempted)
    preempted.send_signal(signal.SIGTERM)
    _, err = preempted.communicate(timeout=120)
    assert preempted.returncode == 0, err
    assert (here / "scontrol.txt").read_text() == f"requeue {job['SLURM_JOB_ID']}\n"
    done = len(history(here / "run"))
    again = launch("slurm.sh", *words, f"--evolve.generations={done + 1}", **job)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert [row["step"] for row in history(here / "run")] == list(range(1, done + 2))
    assert (here / "run" / "controller").exists()


def test_every_host_of_a_tpu_slice_runs_the_command(here, smoke):
    words = [*WORDS, f"--world={smoke[0]}", f"--run-dir={here / 'a run'}"]
    port = 20_000 + os.getpid() % 10_000
    slice = {"NAME": "slice", "ZONE": "zone", "PORT": str(port)}
    found = launch("tpu_pod.sh", *words, "--evolve.generations=1", **slice)
    _, err = found.communicate(timeout=300)
    assert found.returncode == 0 and len(history(here / "a run")) == 1, err
    asked = "compute tpus tpu-vm ssh slice --zone zone --worker all"
    assert (here / "gcloud.txt").read_text().split() == asked.split()


def test_one_machine_runs_what_it_is_told(here):
    told = launch("gpu.sh", "collect", "pong", "--run-dir", "run")
    _, err = told.communicate(timeout=60)
    assert told.returncode == 1 and err.startswith("dreamjax: no task is called 'pong'")


def test_a_jobset_s_processes_agree_on_who_they_are():
    spec = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (job,) = spec["spec"]["replicatedJobs"]
    indexed = job["template"]["spec"]
    (container,) = indexed["template"]["spec"]["containers"]
    told = {one["name"]: one.get("value") for one in container["env"]}
    name = f"{spec['metadata']['name']}-{job['name']}-0-0.{spec['metadata']['name']}"
    assert told["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}:")
    assert indexed["completions"] == indexed["parallelism"] == int(told["JAX_NUM_PROCESSES"])
    assert "JAX_PROCESS_ID" in told and indexed["completionMode"] == "Indexed"
    words = [*container["command"][1:], *container["args"], "--help"]
    said = subprocess.run(
        [sys.executable, "-m", "dreamjax", *words], capture_output=True, text=True
    )
    assert said.returncode == 0 and "--distributed" in container["args"], said.stderr


def test_the_image_installs_an_extra_that_there_is():
    """By its own lines: the Python, what pip is given with and without an extra, the command."""
    text = (LAUNCH / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    told = dict(line.split(maxsplit=1) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = re.fullmatch(r"python:(\d+\.\d+)-slim", told["FROM"]).group(1)
    assert SpecifierSet(project["requires-python"]).contains(f"{python}.0")
    assert lines[0].startswith("FROM") and (told["ARG"], told["COPY"]) == ("EXTRA=", ". .")
    named = re.search(r"EXTRA is (\w+), (\w+) or (\w+)", text).groups()
    assert set(named) <= set(project["optional-dependencies"])
    install = told["RUN"].removeprefix("pip install --no-cache-dir ")
    for extra, wanted in {"": ".", **{name: f".[{name}]" for name in named}}.items():
        said = subprocess.run(
            ["bash", "-c", f"echo {install}"], env={"EXTRA": extra}, capture_output=True, text=True
        )
        assert said.stdout == f"{wanted}\n"
    assert json.loads(told["ENTRYPOINT"])[0] in project["scripts"]
