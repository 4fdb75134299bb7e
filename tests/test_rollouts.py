"""Shards on disk: what is written is read, damage is found, and collecting again resumes."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
import types
import zipfile

import numpy as np
import pytest

from dreamjax.game import collecting, policies, rollouts
from dreamjax.game import env as real
from dreamjax.game.collecting import collect
from dreamjax.game.rollouts import DamagedShardError, Rollouts, frame_counts, read, write
from dreamjax.tasks import TAKE_COVER
from dreamjax.training import files
from dreamjax.training.logbook import Logbook

SHORT = dataclasses.replace(TAKE_COVER, max_steps=60)  # short episodes, for speed


def made_up(lengths=(3, 1, 5), actions=2, seed=0):
    rng = np.random.default_rng(seed)
    frames, episodes = sum(lengths), len(lengths)
    return Rollouts(
        frames=rng.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8),
        actions=rng.uniform(-1, 1, (frames, actions)).astype(np.float32),
        rewards=rng.normal(size=frames).astype(np.float32),
        lengths=np.array(lengths, np.int32),
        terminated=np.arange(episodes) % 2 == 0,
        seeds=rng.integers(2**62, size=episodes),
        profile="made-up é",
    )


def same(one, two):
    return all(
        np.array_equal(getattr(one, field.name), getattr(two, field.name))
        for field in dataclasses.fields(one)
    )


def contents(directory):
    return {path.name: path.read_bytes() for path in rollouts.shard_paths(directory)}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A collection of 7 episodes in shards of 3; not to be changed."""
    directory = tmp_path_factory.mktemp("collected")
    summary = collect(SHORT, directory, 7, 1, shard_episodes=3, workers=2)
    return directory, summary


@pytest.fixture
def copy(collected, tmp_path):
    """A collection that a test may damage."""
    for path in collected[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_what_is_written_is_read(tmp_path):
    written = made_up()
    write(tmp_path / "shard-00000.npz", written)
    found = read(tmp_path / "shard-00000.npz")
    assert same(found, written)
    assert {name: getattr(found, name).dtype for name in rollouts._DTYPES} == rollouts._DTYPES
    with np.load(tmp_path / "shard-00000.npz") as plain:
        np.testing.assert_array_equal(plain["frames"], written.frames)
    assert os.listdir(tmp_path) == ["shard-00000.npz"]


def test_equal_rollouts_make_equal_files(tmp_path):
    write(tmp_path / "a", made_up())
    time.sleep(0.01)
    write(tmp_path / "b", made_up())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"frames": np.zeros((9, 64, 64, 3), np.float32)}, r"frames must be uint8\[9, 64, 64, 3\]"),
        ({"frames": np.zeros((8, 64, 64, 3), np.uint8)}, "sum to the 8|must be"),
        ({"actions": np.zeros((8, 2), np.float32)}, r"actions must be float32\[9, 2\]"),
        ({"rewards": np.zeros(9)}, "rewards must be float32"),
        ({"lengths": np.array([3, 1, 4], np.int32)}, "sum to the 9 frames, got a sum of 8"),
        ({"lengths": np.array([3, 0, 6], np.int32)}, "positive"),
        ({"terminated": np.zeros(2, bool)}, r"terminated must be bool\[3\]"),
        ({"seeds": np.zeros(3, np.int32)}, "seeds must be int64"),
        ({"ends": np.zeros(3, np.int64)}, r"ends must be int8\[3\]"),
    ],
)
def test_rollouts_that_do_not_fit_together_are_refused(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        dataclasses.replace(made_up(), **change)
    assert "\n" not in str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4  # in the frames, which come first
    path.write_bytes(content)


def replace(path):
    path.write_bytes(b"not a zip file at all" * 100)


def drop_an_array(path, array="lengths"):
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist() if name != f"{array}.npy"}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)


@pytest.mark.parametrize("damage", [truncate, empty, flip, replace, drop_an_array])
def test_a_damaged_shard_is_found_set_aside_and_skipped(damage, copy):
    shards, said = rollouts.shard_paths(copy), []
    damage(shards[1])
    with pytest.raises(DamagedShardError, match="shard-00001.npz") as caught:
        read(shards[1])
    assert "\n" not in str(caught.value)
    found = list(rollouts.read_all(shards, said.append))
    assert [len(shard.lengths) for _, shard in found] == [3, 1]
    assert len(said) == 1 and "shard-00001.npz.corrupt" in said[0]
    assert not shards[1].exists() and (copy / "shard-00001.npz.corrupt").exists()
    assert rollouts.shard_paths(copy) == [shards[0], shards[2]]


@pytest.mark.parametrize("damage", [truncate, empty])
def test_counting_frames_finds_broken_files_and_collecting_replaces_them(damage, copy, collected):
    damage(copy / "shard-00000.npz")
    said = []
    assert len(frame_counts(copy, say=said.append)) == 2 and len(said) == 1
    collect(SHORT, copy, 7, 1, shard_episodes=3, workers=1)
    assert contents(copy) == contents(collected[0])


def test_a_shard_of_another_format_is_refused_but_not_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "FORMAT", 99)
    write(tmp_path / "shard-00000.npz", made_up())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 99"):
        list(rollouts.read_all(rollouts.shard_paths(tmp_path)))
    assert (tmp_path / "shard-00000.npz").exists()


def test_frame_counts_and_shard_paths_ignore_what_is_not_a_shard(collected, copy):
    (copy / "shard-00009.npz.corrupt").touch()
    (copy / ".shard-00009.npz.1").touch()
    (copy / "shard-x.npz").touch()
    (copy / "notes.txt").touch()
    counts = frame_counts(copy)
    assert [path.name for path in counts] == [f"shard-{i:05d}.npz" for i in range(3)]
    assert all(len(read(path).frames) == count for path, count in counts.items())
    assert collected[1] == collecting.Collection(collected[0], 3, 7, sum(counts.values()))


def test_a_full_disk_is_one_line_and_the_old_shard_stays(tmp_path):
    path = tmp_path / "shard-00000.npz"
    write(path, made_up())
    old = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*shard-00000.npz \(up to 0.2 MB") as full:
            write(path, made_up((10, 10)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(full.value).endswith("; free some space and run the same command again")
    assert path.read_bytes() == old and os.listdir(tmp_path) == [path.name]


def test_a_collection_records_what_was_played(collected):
    directory, summary = collected
    shards = [read(path) for path in rollouts.shard_paths(directory)]
    assert [len(shard.lengths) for shard in shards] == [3, 3, 1]
    assert summary.episodes == 7
    env = real.make_env(SHORT)
    shard, start = shards[1], 0
    for length, end, seed in zip(shard.lengths, shard.ends, shard.seeds, strict=True):
        steps = list(policies.play_steps(env, "held", int(seed)))
        assert len(steps) == length and steps[-1][3] == (0 if end == 0 else None)
        part = slice(start, start + length)
        np.testing.assert_array_equal(shard.frames[part], [step[0] for step in steps])
        np.testing.assert_array_equal(shard.actions[part], [step[1] for step in steps])
        start += length
    env.close()
    assert shard.profile == "takecover-2016" and (shard.rewards == 1).all()
    np.testing.assert_array_equal(shard.terminated, shard.ends >= 0)
    assert not np.array_equal(shards[0].seeds, shards[1].seeds)


def test_content_does_not_depend_on_the_number_of_workers(collected, tmp_path):
    collect(SHORT, tmp_path, 7, 1, shard_episodes=3, workers=3)
    assert contents(tmp_path) == contents(collected[0])


def test_other_seeds_give_other_episodes(collected, tmp_path):
    collect(SHORT, tmp_path, 3, 2, shard_episodes=3, workers=1)
    assert not set(read(tmp_path / "shard-00000.npz").seeds) & set(
        read(collected[0] / "shard-00000.npz").seeds
    )


def test_collecting_again_does_nothing_and_a_lost_shard_comes_back(copy, collected):
    times = {path: path.stat().st_mtime_ns for path in rollouts.shard_paths(copy)}
    assert collect(SHORT, copy, 7, 1, shard_episodes=3).frames == collected[1].frames
    assert times == {path: path.stat().st_mtime_ns for path in rollouts.shard_paths(copy)}
    lost = copy / "shard-00001.npz"
    lost.unlink()
    collect(SHORT, copy, 7, 1, shard_episodes=3)
    assert contents(copy) == contents(collected[0])
    assert all(path.stat().st_mtime_ns == times[path] for path in times if path != lost)


def test_asking_for_more_extends_the_collection(copy, collected):
    before = contents(copy)
    assert collect(SHORT, copy, 10, 1, shard_episodes=3, workers=2).episodes == 10
    after = contents(copy)
    assert list(after) == [f"shard-{i:05d}.npz" for i in range(4)]
    assert all(after[name] == before[name] for name in list(before)[:2])
    grown = read(copy / "shard-00002.npz")
    assert len(grown.lengths) == 3
    assert grown.seeds[0] == read(collected[0] / "shard-00002.npz").seeds[0]
    assert json.loads((copy / "collection.json").read_text())["episodes"] == 10
    assert collect(SHORT, copy, 4, 1, shard_episodes=3).episodes == 10


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 2}, "seed 1, not 2"),
        ({"policy": "uniform"}, "policy 'held', not 'uniform'"),
        ({"shard_episodes": 4}, "shard_episodes 3, not 4"),
        ({"min_steps": 9}, "min_steps 0, not 9"),
        ({"task": TAKE_COVER}, "max_steps 60, not 2100"),
    ],
)
def test_other_settings_in_the_same_directory_are_refused(change, words, copy):
    before = contents(copy)
    request = {"task": SHORT, "directory": copy, "episodes": 9, "seed": 1, "shard_episodes": 3}
    with pytest.raises(ValueError, match=words) as caught:
        collect(**request | change)
    assert "\n" not in str(caught.value) and contents(copy) == before


def test_short_episodes_are_dropped_and_replaced(tmp_path):
    task = dataclasses.replace(TAKE_COVER, max_steps=200)
    summary = collect(task, tmp_path, 5, 0, policy="uniform", min_steps=150, workers=2)
    (path,) = rollouts.shard_paths(tmp_path)
    shard = read(path)
    assert summary.episodes == 5 and (shard.lengths >= 150).all()
    job = collecting._ShardJob(path, task, "uniform", 0, 0, 16, 150)
    assert collecting._was_recorded_by(job)
    assert not collecting._was_recorded_by(dataclasses.replace(job, min_steps=0)), (
        "some are missing"
    )
    assert not collecting._was_recorded_by(dataclasses.replace(job, min_steps=200)), (
        "some are short"
    )


def test_min_steps_that_nothing_reaches_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "MAX_TRIES", 3)
    job = collecting._ShardJob(tmp_path / "a", TAKE_COVER, "uniform", 0, 0, 2, 2000)
    env = real.make_env(TAKE_COVER)
    with pytest.raises(ValueError, match="only 0 of 6 episodes lasted 2000 steps"):
        collecting.record_shard(env, job, lambda steps: None)
    env.close()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"shard_episodes": 0}, "shard_episodes must be at least 1, got 0"),
        ({"policy": "clever"}, "choose one of uniform, held, varied, blind"),
        ({"min_steps": 61}, "min_steps must be from 0 to the 60 steps"),
        ({"min_steps": -1}, "min_steps"),
        ({"directory": "/proc/nowhere"}, "cannot write to /proc/nowhere"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(change, words, tmp_path):
    request = {"task": SHORT, "directory": tmp_path, "episodes": 2, "seed": 0}
    with pytest.raises(ValueError, match=words) as caught:
        collect(**request | change)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "a refused request claims nothing"


def test_more_than_the_disk_can_hold_is_refused_before_anything_is_written(
    collected, tmp_path, monkeypatch
):
    sizes = [path.stat().st_size for path in rollouts.shard_paths(collected[0])]
    assert sum(sizes) > collected[1].episodes * collecting.EPISODE_BYTES
    disk = types.SimpleNamespace(total=25_000)
    monkeypatch.setattr(collecting.shutil, "disk_usage", lambda path: disk)
    with pytest.raises(ValueError, match="^3 episodes need more than .*; ask for fewer") as caught:
        collect(SHORT, tmp_path, 3, 0)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    disk.total = 10**12
    collecting.check_request(SHORT, tmp_path, 10**8, "held")
    with pytest.raises(ValueError, match="need more than 10000000 GB, but .* holds 1000 GB in all"):
        collecting.check_request(SHORT, tmp_path, 10**12, "held")
    disk.total = 0
    collecting.check_request(SHORT, tmp_path, 10**12, "held")  # a disk that does not tell


def test_shards_of_unknown_origin_are_not_mixed_in(tmp_path):
    write(tmp_path / "shard-00000.npz", made_up())
    with pytest.raises(ValueError, match="unknown origin"):
        collect(SHORT, tmp_path, 2, 0)


def everything(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    "content", [b"", b'{"task": "take-co', b"\xff\x00", b"[]", b'{"episodes": 7}', b"[" * 10**5]
)
def test_damaged_settings_are_healed_where_the_shards_prove_them(content, copy, collected):
    (copy / "collection.json").write_bytes(content)
    log, said = Logbook(quiet=True), []
    log.say = said.append
    assert collect(SHORT, copy, 7, 1, shard_episodes=3, log=log).episodes == 7
    healed = everything(copy)
    assert healed.pop("collection.json.corrupt") == content
    assert healed == everything(collected[0])
    (line,) = said
    assert str(copy / "collection.json") in line and "set aside as collection.json.corrupt" in line


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"policy": "uniform"},
        {"policy": "varied"},
        {"shard_episodes": 2},
        {"task": TAKE_COVER},
        {"task": dataclasses.replace(SHORT, profile="takecover-vizdoom")},
    ],
)
def test_damaged_settings_are_not_healed_by_other_ones(change, copy):
    (copy / "collection.json").write_bytes(b"")
    before = everything(copy)
    request = {"task": SHORT, "directory": copy, "episodes": 9, "seed": 1, "shard_episodes": 3}
    words = f"{copy}/collection.json is damaged, and the shards .* choose another directory"
    with pytest.raises(ValueError, match=words) as caught:
        collect(**request | change)
    assert "\n" not in str(caught.value) and everything(copy) == before


def test_a_policy_of_ones_own_sees_the_frames_it_is_recorded_with(tmp_path):
    game = {"name": "countdown", "make": "toy_game:make", "profile": "countdown", "crop": None}
    task = dataclasses.replace(TAKE_COVER, **game)
    how = {"policy": "toy_game:brighter", "workers": 1}
    collect(task, tmp_path, 2, 0, **how)
    (path,) = rollouts.shard_paths(tmp_path)
    shard = read(path)
    seen = shard.frames.mean((1, 2, 3)) / 255
    np.testing.assert_allclose(shard.actions[:, 0], seen, rtol=1e-6)
    assert seen.max() > 0
    settings = json.loads((tmp_path / "collection.json").read_text())
    assert settings["policy"] == "toy_game:brighter"
    (tmp_path / "collection.json").write_bytes(b"")
    log, said = Logbook(quiet=True), []
    log.say = said.append
    collect(task, tmp_path, 2, 0, log=log, **how)
    assert "written anew" in said[0]
    for policy, words in (("clever", "or name your own as"), ("toy_game:none", "has no 'none'")):
        with pytest.raises(ValueError, match=words):
            collect(task, tmp_path / "other", 1, 0, policy=policy)


def test_damaged_settings_of_no_shards_are_written_anew(tmp_path):
    path = tmp_path / "collection.json"
    path.touch()
    settings = {"policy": "held", "seed": 1, "shard_episodes": 3, "min_steps": 0}
    collecting._claim(tmp_path, SHORT, settings, 7, print)
    assert json.loads(path.read_text()).items() >= (settings | {"episodes": 7}).items()


COLLECT = """
import dataclasses, sys
from dreamjax.game.collecting import collect
from dreamjax.tasks import TAKE_COVER
task = dataclasses.replace(TAKE_COVER, max_steps=60)
collect(task, sys.argv[1], 400, 1, shard_episodes=3, workers=2)
"""


def test_a_killed_collection_goes_on_where_it_was(collected, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", COLLECT, str(tmp_path)])
    end = time.monotonic() + 20
    while len(rollouts.shard_paths(tmp_path)) < 5 and time.monotonic() < end:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(1)  # the workers notice
    (tmp_path / f".shard-00099.npz.{parent.pid}").touch()
    found = contents(tmp_path)
    count = len(found)
    assert 5 <= count < 100 and len(frame_counts(tmp_path)) == count
    goal = 3 * (int(max(found)[6:11]) + 2)
    summary = collect(SHORT, tmp_path, goal, 1, shard_episodes=3, workers=2)
    after = contents(tmp_path)
    assert summary.episodes == goal and all(after[name] == found[name] for name in found)
    assert after["shard-00000.npz"] == contents(collected[0])["shard-00000.npz"]
    assert not list(tmp_path.glob(".*"))


WRITE = """
import sys, time
from dreamjax.training.files import replacing
with replacing(sys.argv[1]):
    print("open", flush=True)
    time.sleep(60)
"""


def test_halves_of_the_living_are_left_alone_and_of_the_dead_removed(tmp_path):
    command = [sys.executable, "-c", WRITE, str(tmp_path / "shard-00001.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as dead:
        assert dead.stdout.readline()
        (tmp_path / ".keep.999999999").touch()
        with files.replacing(tmp_path / "shard-00000.npz"):
            files.remove_stale(tmp_path)
            mine = f".shard-00000.npz.{os.getpid()}"
            theirs = f".shard-00001.npz.{dead.pid}"
            assert set(os.listdir(tmp_path)) == {mine, theirs, ".keep.999999999"}
            dead.kill()
            os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as orphans may stay
            files.remove_stale(tmp_path)
            assert set(os.listdir(tmp_path)) == {mine, ".keep.999999999"}
