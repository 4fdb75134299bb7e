"""Checkpoints prove themselves, and nothing sound is ever lost."""

import errno
import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.training import checkpoint
from dreamjax.training.checkpoint import CheckpointError, Store, digest

TREE = {"kernel": jnp.arange(12.0).reshape(3, 4), "count": {"step": jnp.int32(7)}}


def other(value):
    return {"kernel": jnp.full((3, 4), float(value)), "count": {"step": jnp.int32(8)}}


def flip(folder):
    """Flip one bit of the largest file of array data."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.smoke
def test_what_is_saved_is_loaded(tmp_path):
    store = Store(tmp_path)
    store.save(5, TREE, {"seed": 3})
    found, meta = store.load(other(0.0))
    np.testing.assert_array_equal(found["kernel"], TREE["kernel"])
    assert found["count"]["step"] == 7 and found["count"]["step"].dtype == jnp.int32
    assert meta["step"] == 5 and meta["seed"] == 3 and "jax" in meta["versions"]
    assert digest(found) == digest(TREE) != digest(other(0.0))


def test_only_the_newest_are_kept(tmp_path):
    store = Store(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(step, other(step), {})
    assert store.steps() == [2, 3]
    assert store.load(TREE)[0]["kernel"][0, 0] == 3


@pytest.mark.parametrize(
    "keep", [1, *(pytest.param(keep, marks=pytest.mark.slow) for keep in (3, 4)), 9]
)
def test_the_newest_sound_ones_are_kept_whatever_is_saved_between(keep, tmp_path):
    store, sound = Store(tmp_path, keep=keep), set()
    for step in (1, 2, 3, 5, 6, 6, 7, 5, *range(8, 20)):
        store.save(step, other(step), {})
        sound = set(sorted(sound | {step})[-keep:])
        assert store.steps() == sorted(sound)
        if step == 7:
            flip(tmp_path / "00000007")
            sound -= {7}
            assert store.steps() == sorted(sound)


def test_a_flipped_bit_is_noticed_and_the_older_one_is_used(tmp_path, capsys):
    store = Store(tmp_path)
    store.save(1, other(1.0), {})
    store.save(2, other(2.0), {})
    flip(tmp_path / "00000002")
    found, meta = store.load(TREE)
    assert meta["step"] == 1 and found["kernel"][0, 0] == 1
    assert "skipped" in capsys.readouterr().out
    flip(tmp_path / "00000001")
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(TREE)


def test_stray_names_are_ignored(tmp_path):
    """Nor do they age a sound checkpoint; halves of saves that were killed are removed."""
    store = Store(tmp_path, keep=1)
    store.save(1, TREE, {})
    for name in ("12", "98", "00000099", "notes", "00000003.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    assert store.load(TREE)[1]["step"] == 1 and store.steps() == [1]
    assert len(store.faults()) == 1 and "00000099" in store.faults()[0]
    store.save(2, TREE, {})
    assert store.steps() == [2]
    assert sorted(os.listdir(tmp_path)) == ["00000002", "00000099", "12", "98", "notes"]


KILLED = """
import os, signal, sys
from unittest import mock
import numpy as np
from dreamjax.training.checkpoint import Store
store = Store(sys.argv[1], keep=1)
with mock.patch(sys.argv[2], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)):
    store.save(2, {"kernel": np.zeros(9)}, {})
"""


@pytest.mark.parametrize(
    "moment, left",
    [
        ("orbax.checkpoint.PyTreeCheckpointHandler.finalize", 1),  # the arrays are written
        ("dreamjax.training.checkpoint.write_json", 1),
        ("os.rename", 1),
        ("shutil.rmtree", 2),  # it is there, and the older one has been moved away
    ],
)
def test_a_killed_save_leaves_a_sound_checkpoint_and_no_litter_for_long(tmp_path, moment, left):
    store = Store(tmp_path, keep=1)
    store.save(1, TREE, {})
    words = [sys.executable, "-c", KILLED, tmp_path, moment]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL and done.stdout + done.stderr == ""
    assert store.steps() == [left] and not store.faults()
    assert len(os.listdir(tmp_path)) == 2, "what is half there"
    store.save(3, TREE, {})
    assert os.listdir(tmp_path) == ["00000003"]


def test_a_save_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    def fails(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    store.save(1, TREE, {})
    with monkeypatch.context() as broken, pytest.raises(CheckpointError, match="No space left"):
        broken.setattr(checkpoint, "write_json", fails)
        store.save(2, TREE, {})
    assert store.steps() == [1] and not store.faults()


@pytest.mark.parametrize("name", ["00000001", "00000099"])
def test_what_orbax_notes_may_be_damaged(tmp_path, name):
    store = Store(tmp_path)
    store.save(1, TREE, {})
    (tmp_path / name / "metrics").mkdir(parents=True)
    for path in ("_CHECKPOINT_METADATA", "metrics/metrics"):
        (tmp_path / name / path).write_text("{")
    store.save(2, TREE, {})
    assert store.steps() == [1, 2] and store.load(TREE)[1]["step"] == 2


def test_what_is_replaced_is_gone(tmp_path):
    Store(tmp_path).save(3, TREE, {})
    Store(tmp_path).save(4, TREE, {})
    Store(tmp_path).replace(other(2.0), {"made": "so"})
    assert os.listdir(tmp_path) == ["00000005"]
    assert Store(tmp_path).load(TREE)[0]["kernel"][0, 0] == 2
    assert Store(tmp_path).meta()["made"] == "so"


def test_a_damaged_checkpoint_gives_way_to_a_sound_one(tmp_path):
    store = Store(tmp_path)
    store.save(1, TREE, {})
    flip(tmp_path / "00000001")
    assert store.steps() == []
    store.save(1, TREE, {})
    assert store.steps() == [1]


@pytest.mark.parametrize("manifest", ["", "[1]", "{}", '{"arrays": "x"}'])
def test_a_manifest_that_proves_nothing_is_damage(tmp_path, manifest):
    Store(tmp_path).save(1, TREE, {})
    (tmp_path / "00000001" / "manifest.json").write_text(manifest)
    assert Store(tmp_path).steps() == [] and len(Store(tmp_path).faults()) == 1


def test_a_later_format_is_neither_read_nor_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    Store(tmp_path).save(1, TREE, {})
    monkeypatch.undo()
    for use in (Store(tmp_path).steps, lambda: Store(tmp_path).load(TREE)):
        with pytest.raises(CheckpointError, match="has format 99.*the dreamjax that wrote it"):
            use()


@pytest.mark.parametrize(
    "template, message",
    [
        ({"kernel": jnp.zeros((3, 5))}, r"float32\[3, 4\].*float32\[3, 5\]"),
        ({"kernel": jnp.zeros((3, 4), jnp.int32)}, r"float32\[3, 4\].*int32"),
        ({"bias": jnp.zeros(3)}, "holds no array"),
    ],
)
def test_another_model_is_refused_in_one_line(tmp_path, template, message):
    Store(tmp_path).save(1, TREE, {})
    with pytest.raises(CheckpointError, match=message) as error:
        Store(tmp_path).load(template)
    assert "\n" not in str(error.value)


def test_another_format_is_refused(tmp_path):
    store = Store(tmp_path)
    store.save(1, TREE, {})
    meta = tmp_path / "00000001" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="damaged"):  # the manifest covers it
        store.load(TREE)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="nothing there.*train it first"):
        Store(tmp_path / "none").load(TREE)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    """A file-size limit stands in for the full disk."""
    Store(tmp_path).save(1, TREE, {})
    script = """
import resource, signal, sys, numpy as np
from dreamjax.training import checkpoint
from dreamjax.training.checkpoint import CheckpointError, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).normal(size=300000)
try:
    Store(sys.argv[1]).save(2, {"kernel": noise}, {})
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stderr == "" and done.stdout.count("\n") == 1, done.stdout + done.stderr
    assert "cannot save" in done.stdout and "2 MB needed" in done.stdout
    assert os.listdir(tmp_path) == ["00000001"]
    assert Store(tmp_path).load(TREE)[1]["step"] == 1
