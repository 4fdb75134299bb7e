"""What goes wrong for a user says so, in one line, and loses nothing.

The faults of training, settings and run directories; those of games are in `test_workers`,
`test_agent` and `test_media`, of worlds in `test_worlds`, of files in `test_files`,
`test_logbook`, `test_rollouts` and `test_checkpoint`. README.md here lists them all.
"""

import dataclasses
import gc
import hashlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from command import finish, refused, start
from short_cover import SHORT
from test_checkpoint import flip
from test_pipeline import TINY

from dreamjax.controller.population import evaluation_key
from dreamjax.dream.world import blank_models
from dreamjax.dream.worlds import load_world
from dreamjax.run import cli
from dreamjax.training import devices, stopping
from dreamjax.training.checkpoint import Store, digest

QUICK = [*TINY, "--vision.steps-per-call=2", "--save-seconds=0", "--vision.learning-rate=1e-4"]


@pytest.fixture
def run(smoke, tmp_path):
    """A copy of what was recorded, to be trained on."""
    shutil.copytree(smoke[0] / "rollouts", tmp_path / "run" / "rollouts")
    return tmp_path / "run"


def copied(smoke, run, *parts):
    for part in parts:
        shutil.copytree(smoke[0] / part, run / part)


def command(name, run, *more, task=SHORT.name):
    """Run the command line in this process: its exit status."""
    return cli.main([name, task, "--preset", "smoke", "--run-dir", str(run), *map(str, more)])


def said(capsys):
    """The one line that a refusal printed."""
    error = capsys.readouterr().err
    assert error.startswith("dreamjax: ") and error.count("\n") == 1, error
    return error


def contents(directory):
    """Hashes of every file below a directory, the lock apart."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def vision_of(run):
    """Step and identity of the newest V."""
    vision, meta = Store(run / "vision").load(blank_models(SHORT)[0], ".model")
    return meta["step"], digest(vision)


@pytest.mark.slow
def test_damaged_and_stray_checkpoints_are_trained_anew(run, capsys):
    """Rows 8a, 8b, 9a, 9c, 9d: what is damaged gives way, what is stray is left alone."""
    train = ["train-vision", run, *QUICK]
    assert command(*train) == 0
    assert Store(run / "vision").steps() == [2, 4]
    trained = vision_of(run)
    for newest in (["00000004"], ["00000004", "00000002"]):
        for name in newest:
            flip(run / "vision" / name)
        assert command(*train) == 0
        assert "damaged" in capsys.readouterr().out
        assert vision_of(run) == trained, "trained again, saved again, to the same bits"
    for stray in ("98", "99", "00000006", "00000099", "notes"):
        (run / "vision" / stray).mkdir()
    assert command(*train, "--vision.steps=6") == 0
    assert vision_of(run)[0] == 6 and Store(run / "vision").steps() == [4, 6]
    assert {"98", "99", "00000099", "notes"} < {path.name for path in (run / "vision").iterdir()}


def test_a_damaged_v_is_named_with_the_command_that_mends_it(smoke, run, capsys):
    copied(smoke, run, "vision", "world")
    flip(run / "vision" / "00000008")
    assert command("encode", run) == 1
    assert "is damaged or missing)); run train-vision again" in said(capsys)


def test_a_folder_that_cannot_be_written_is_found_before_training(run, capsys):
    """Row 6c; a file in the folder's place stands for an immutable one."""
    (run / "vision").touch()
    assert command("train-vision", run, *TINY) == 1
    assert "choose another directory" in said(capsys)
    assert not (run / "metrics.jsonl").exists(), "nothing was trained"


def test_a_refused_command_changes_nothing(smoke, run, capsys):
    """Rows 11b and 28: neither settings nor another game's name are written into a run."""
    copied(smoke, run, "vision", "latents", "memory", "world")
    before = contents(run)
    for words in (
        ("train-vision", run, "--seed", 5),
        ("train-vision", run, "--preset", "paper"),
        ("train-memory", run, "--memory.learning-rate", 5e-4),
        ("collect", run, "--workers", 0),
        ("collect", run, "--collect.policy", "blind"),
        ("collect", run, "--collect.episodes", 10**12),
    ):
        assert command(*words) == 1
        said(capsys)
    for task in ("take-cover-vizdoom", "car-racing"):
        assert command("train-memory", run, task=task) == 1
        assert f"is of the game takecover-2016, not of {task}" in said(capsys)
    assert contents(run) == before


@pytest.mark.slow
def test_new_data_is_trained_on_or_refused_never_passed_over(smoke, run, capsys, monkeypatch):
    """Record, encode and train-memory in one run; and collecting more."""
    monkeypatch.setattr("dreamjax.recording.SHARD", 4)  # episodes of a shard
    copied(smoke, run, "vision", "latents", "memory", "world", "controller")
    assert command("train-memory", run) == 0
    assert "memory: finished before, at step 12; nothing to do" in capsys.readouterr().out
    assert command("record", run, "--collect.episodes", 1) == 0
    assert command("encode", run) == 0
    world = load_world(run).digest()
    capsys.readouterr()
    assert command("train-memory", run) == 1
    assert f"to train on with these, add --memory.start-from {run}" in said(capsys)
    assert load_world(run).digest() == world
    more = ("train-memory", run, "--memory.start-from", run, "--memory.steps", 2)
    assert command(*more) == 0
    assert (run / "memory-1" / "00000012").is_dir(), "what was trained before is kept"
    after = load_world(run)
    assert after.digest() != world
    assert Store(run / "world").meta()["steps"] == 2, "what was done, not what was asked for"
    assert command(*more) == 0 and load_world(run).digest() == after.digest()
    (run / "rollouts" / "shard-00000.npz").rename(run / "rollouts" / "shard-00001.npz")
    capsys.readouterr()
    assert command("train-vision", run) == 1
    assert "was made with data=" in said(capsys)


def test_m_that_diverges_is_stopped_and_can_be_trained_anew(smoke, run, capsys):
    """Row 13b."""
    copied(smoke, run, "vision", "latents")
    assert command("train-memory", run, "--memory.learning-rate", 1e6) == 1
    line = said(capsys)
    assert "try a lower learning rate" in line and not Store(run / "memory").steps()
    assert command("train-memory", run, "--memory.steps", 2) == 0


@pytest.mark.slow
def test_a_schedule_is_not_bent(run, capsys):
    falling = ["--vision.learning-rate=1e-3", "--vision.final-learning-rate=1e-4"]
    assert command("train-vision", run, *TINY, *falling) == 0
    capsys.readouterr()
    assert command("train-vision", run, *TINY, *falling, "--vision.steps=6") == 1
    assert "was made with steps=4, now steps=6" in said(capsys)


@pytest.mark.slow
def test_too_little_memory_is_one_line(run):
    """Row 17b: a batch of a million frames, where 12 GB cannot be had."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); "
    limit += "from dreamjax.run.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [
        "train-vision",
        "short_cover:SHORT",
        "--run-dir",
        str(run),
        "--vision.batch-size=1000000",
    ]
    done = subprocess.run([sys.executable, "-c", limit, *words], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "out of memory" in done.stderr and "a smaller batch" in done.stderr


@pytest.mark.parametrize(
    "text", ["RESOURCE_EXHAUSTED: 17 GB", "INTERNAL: Error dispatching: Out of memory allocating"]
)
def test_a_device_out_of_memory_says_what_to_do(text):
    assert "use fewer lanes" in cli._line(RuntimeError(text), [])


def test_where_an_error_came_from_can_be_seen(tmp_path, capsys):
    assert command("evolve", tmp_path, "--debug") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("dreamjax: no world in")


@pytest.mark.slow
def test_sigterm_is_heard_while_starting_up(tmp_path):
    """Row 4e: at moments of the imports, when an exception would get lost."""
    words = ("evolve", "take-cover", "--world", "take-cover", "--run-dir")
    processes = [start(*words, tmp_path / str(number)) for number in range(4)]
    time.sleep(0.7)
    for process in processes:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.8)
    for process in processes:
        status, _, err = finish(process, 60)
        assert status == -signal.SIGTERM or (status == 130 and "stopped; resume with" in err)


def test_an_interrupt_that_a_callback_swallows_comes_again():
    """Such as jax's own of the garbage collector."""

    def swallows(phase, info):
        if not sent:
            sent.append(phase)
            signal.raise_signal(signal.SIGTERM)

    sent = []
    with stopping.at_once(""):
        stopping.by_interrupt()
        gc.callbacks.append(swallows)
        try:
            with pytest.raises(KeyboardInterrupt):
                gc.collect()
                time.sleep(5)
        finally:
            gc.callbacks.remove(swallows)
    assert sent


@pytest.mark.slow
def test_a_device_that_is_not_there_is_refused(tmp_path):
    """Row 26, through the command; and `--device cpu` reaches jax before any import does."""
    words = ("evolve", "take-cover", "--world", "take-cover", "--run-dir", tmp_path / "run")
    if not any(device.platform == "gpu" for device in jax.devices()):
        assert "there is no gpu here" in refused(*words, "--device", "gpu", JAX_PLATFORMS="")
        assert not (tmp_path / "run").exists()
    bad = ("--device=cpu", "--evolve.population=3")
    assert "population must be at least 4" in refused(*words, *bad, JAX_PLATFORMS="tpu")


def test_an_absent_coordinator_is_named(tmp_path, monkeypatch, capsys):
    """Row 24c."""
    monkeypatch.setattr(devices, "COORDINATOR_SECONDS", 0.1)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    assert command("evolve", tmp_path, "--distributed") == 1
    assert "no coordinator answers at 127.0.0.1:1" in said(capsys)
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    assert command("evolve", tmp_path, "--distributed") == 1
    assert "JAX_PROCESS_ID must be a number of at least 0, got 'one'" in said(capsys)


@pytest.mark.parametrize("name", ["fidelity", "calibrate"])
def test_a_comparison_is_not_shared_by_processes(name, tmp_path, capsys):
    assert command(name, tmp_path, "--distributed") == 1
    assert f"{name} runs on one host" in said(capsys)


def test_a_dream_without_numbers_ends(dream):
    """Row 14c: M full of NaN once dreamt the perfect score."""
    env, params = dream
    state = jax.jit(env.reset_env)(jax.random.key(0), params)[1]

    @jax.jit
    def ends(state, params):
        return env.step_env(jax.random.key(1), state, jnp.zeros(1), params)[3]

    safe = params.replace(death_threshold=jnp.float32(1e9))
    assert not ends(state, safe)
    assert ends(state, safe.replace(memory=jax.tree.map(lambda x: x * jnp.nan, params.memory)))
    assert ends(state, safe.replace(death_threshold=jnp.float32(jnp.nan)))
    assert ends(dataclasses.replace(state, z=state.z * jnp.nan), safe)


def test_evaluations_share_no_key_with_steps():
    key = jax.random.key(0)
    steps = [jax.random.fold_in(key, number) for number in range(4)]
    used = [*steps, *(part for step in steps for part in jax.random.split(step, 3))]
    used = {jax.random.key_data(part).tobytes() for part in used}
    for number in range(4):
        mine = evaluation_key(key, number)
        found = {jax.random.key_data(part).tobytes() for part in (mine, *jax.random.split(mine))}
        assert not found & used


def test_the_doctor_tells_and_changes_nothing(smoke, run, capsys):
    copied(smoke, run, "vision", "latents", "memory", "world", "controller")
    before = contents(run)
    assert cli.main(["doctor", str(run)]) == 0
    found = capsys.readouterr().out
    for words in ("8 episodes", "steps 8", "steps 12", "takecover-2016", "56 weights"):
        assert words in found
    assert "DAMAGED" not in found
    flip(run / "vision" / "00000008")
    (run / "rollouts" / "collection.json").write_text("")
    (run / "latents" / "shard-00000.npz").write_bytes(b"")
    before = contents(run)
    assert cli.main(["doctor", str(run)]) == 1
    told = capsys.readouterr()
    assert told.out.count("DAMAGED") == 3 and "train-vision begins anew" in told.out
    assert "3 damaged parts" in told.err and contents(run) == before
    assert cli.main(["doctor", str(run / "none")]) == 1
    assert "there is no directory" in said(capsys)
