"""Kill the whole path at random moments, again and again: what it leaves equals a quiet run's.

`python tests/soak.py --seconds 3600 --every 60` for an hour; `test_soak.py` runs a short one. A
blow kills the command, or the command with all its processes, or asks it to stop; the same
command is started again until it is done.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from command import finish, start

from dreamjax.game.rollouts import shard_paths
from dreamjax.training.checkpoint import Store

LEARN = ["run", "take-cover", "--preset", "smoke", "--controller", "learn", "--seed", "1"]
SIZES = ["--collect.episodes=48", "--learn.steps=20480", "--evaluate.episodes=24"]
OFTEN = ["--save-seconds=0", "--vision.steps-per-call=4", "--memory.steps-per-call=1"]
TRAINED = ("vision", "memory", "evolve", "learn", "world", "controller")


def artefacts(run: Path) -> dict[str, object]:
    """Everything a run leaves that is not a time: bytes of shards, arrays, scores, curves."""
    found = {path.name: path.read_bytes() for path in shard_paths(run / "rollouts")}
    for store in (Store(run / part) for part in TRAINED if (run / part).is_dir()):
        path = store.directory / f"{store.steps()[-1]:08d}" / "arrays"
        handler, whole = ocp.PyTreeCheckpointHandler(), ocp.RestoreArgs(restore_type=np.ndarray)
        how = dict.fromkeys(handler.metadata(path).tree, whole)  # whichever devices saved them
        arrays = handler.restore(path, restore_args=how)
        name = store.directory.name
        found |= {f"{name}{key}": array.tobytes() for key, array in arrays.items()}
    results = json.loads((run / "results.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curves = [{**row, "time": 0} for row in rows if row["phase"] in (*TRAINED, "held-out")]
    return found | {"curves": curves} | {k: results[k] for k in ("random", "blind", "ours")}


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for path in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, path.read_text().split())
    return found


def strike(process: subprocess.Popen, rng: random.Random) -> str:
    """One blow to a running command."""
    blow = rng.choice(["the command", "all processes", "asked to stop"])
    victims = family(process.pid) if blow == "all processes" else [process.pid]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if blow == "asked to stop" else signal.SIGKILL)
    process.communicate(timeout=600)  # a blow that is not heard is a fault
    return blow


def shaken(words: list[str], rng: random.Random, every: float, end: float) -> list[str]:
    """Run a command to its end under blows, which stop at the time `end`; the blows."""
    blows = []
    while True:
        process = start(*words)
        wait = rng.uniform(0.2, 1.8) * every if time.monotonic() < end else None
        try:
            out, err = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            blows.append(strike(process, rng))
            continue
        assert process.returncode == 0, out + err
        return blows


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of what is not the same in both."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def soak(seconds: float, every: float, directory: Path, seed: int = 0) -> None:
    """Shake fresh runs for `seconds`, a blow every `every` seconds or so, and report."""
    rng, begun = random.Random(seed), time.monotonic()
    quiet = start(*LEARN, *SIZES, *OFTEN, "--run-dir", directory / "quiet")
    status, _, err = finish(quiet, 3600)
    assert status == 0, err
    left, runs, total = artefacts(directory / "quiet"), 0, []
    while time.monotonic() < begun + seconds:
        run = directory / f"run-{runs}"
        words = [*LEARN, *SIZES, *OFTEN, "--run-dir", str(run)]
        total += shaken(words, rng, every, begun + seconds)
        runs += 1
        different = differences(artefacts(run), left)
        print(f"run {runs}: {len(total)} blows so far, {len(different)} differences", different)
    counts = {blow: total.count(blow) for blow in sorted(set(total))}
    minutes = (time.monotonic() - begun) / 60
    print(f"{minutes:.0f} minutes, {runs} runs, {len(total)} blows: {counts}")
    print(f"compared in each run: {len(left)} things")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--every", type=float, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak(given.seconds, given.every, Path(folder))
