"""Encoded rollouts: exact, resumable, tied to the V that made them."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from dreamjax.game import rollouts
from dreamjax.memory import latents
from dreamjax.memory.latents import LatentSequences, encode_rollouts, read_latents
from dreamjax.tasks import TAKE_COVER
from dreamjax.training import checkpoint
from dreamjax.training.logbook import Logbook
from dreamjax.vision.model import VAE
from dreamjax.vision.training import _untrained

LENGTHS = ((4, 2), (3,), (1, 5, 2))  # episodes of each shard
LOG = Logbook(quiet=True)


@pytest.fixture(scope="module")
def vae():
    return _untrained(TAKE_COVER.latent_size, jax.random.key(0))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    directory, rng = tmp_path_factory.mktemp("rollouts"), np.random.default_rng(0)
    for number, lengths in enumerate(LENGTHS):
        size = sum(lengths)
        shard = rollouts.Rollouts(
            frames=rng.integers(0, 256, (size, 64, 64, 3), np.uint8),
            actions=rng.random((size, 2), np.float32),
            rewards=rng.random(size, np.float32),
            lengths=np.array(lengths, np.int32),
            terminated=(ends := rng.integers(-1, 2, len(lengths), np.int8)) >= 0,
            ends=ends,
            seeds=10 * number + np.arange(len(lengths)),
            profile="test",
        )
        rollouts.write(directory / f"shard-{number:05d}.npz", shard)
    return directory


@pytest.fixture(scope="module")
def encoded(vae, recorded, tmp_path_factory):
    directory = tmp_path_factory.mktemp("latents")
    encode_rollouts(vae, recorded, directory, log=LOG)
    return directory


def whole(recorded):
    """All shards' arrays, joined."""
    shards = [rollouts.read(path) for path in rollouts.shard_paths(recorded)]
    names = ("frames", "actions", "rewards", "lengths", "terminated", "seeds", "ends")
    return {name: np.concatenate([getattr(shard, name) for shard in shards]) for name in names}


def sequences(lengths):
    """Latents whose mu says which episode and which of its frames they are."""
    mu = np.concatenate([[(e, t) for t in range(n)] for e, n in enumerate(lengths)])
    return LatentSequences(
        mu=mu.astype(np.float16),
        logvar=-mu.astype(np.float16),
        actions=np.zeros((len(mu), 1), np.float32),
        rewards=np.ones(len(mu), np.float32),
        lengths=np.array(lengths, np.int32),
        terminated=np.arange(len(lengths)) % 2 == 0,
        seeds=np.arange(len(lengths)),
        vision="v",
        profile="test",
        ends=np.where(np.arange(len(lengths)) % 2, -1, np.arange(len(lengths))).astype(np.int8),
    )


def test_latents_are_the_posteriors_of_the_recorded_frames(vae, recorded, encoded):
    found, wanted = read_latents(encoded), whole(recorded)
    mu, logvar = jax.jit(VAE.encode)(vae, wanted["frames"])
    np.testing.assert_allclose(found.mu, mu, rtol=1e-3, atol=1e-4)  # a float16's eps is 0.00098
    np.testing.assert_allclose(found.logvar, logvar, rtol=1e-3, atol=1e-4)
    assert found.mu.dtype == found.logvar.dtype == np.float16
    for name in ("actions", "rewards", "lengths", "terminated", "seeds", "ends"):
        np.testing.assert_array_equal(getattr(found, name), wanted[name])
    assert set(found.ends) == {-1, 0, 1}
    assert (found.vision, found.profile) == (checkpoint.digest(vae), "test")


def test_shards_longer_than_a_call_encode_alike(vae, recorded, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "_CALL", 4)
    monkeypatch.setattr(latents, "_CPU_BATCH", 2)
    encode_rollouts(vae, recorded, tmp_path, log=LOG)
    found, wanted = read_latents(tmp_path).mu, read_latents(encoded).mu
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)  # a float16's eps is 0.00098


@pytest.mark.slow
def test_a_second_call_encodes_only_what_is_missing_or_of_another_v(
    vae, recorded, tmp_path, monkeypatch
):
    written, write = [], latents._write
    monkeypatch.setattr(
        latents, "_write", lambda path, x: written.append(path.name) or write(path, x)
    )

    def encode(vae):
        written.clear()
        encode_rollouts(vae, recorded, tmp_path, log=LOG)
        return [int(name[6:11]) for name in written]

    assert encode(vae) == [0, 1, 2]
    assert encode(vae) == []
    (tmp_path / "shard-00001.npz").unlink()
    (tmp_path / "shard-00002.npz").write_bytes(b"half a file")
    assert encode(vae) == [1, 2]
    other = nnx.clone(vae)
    other.mu.bias[...] += 1
    assert encode(other) == [0, 1, 2]
    assert read_latents(tmp_path).vision == checkpoint.digest(other)
    again = tmp_path / "recorded"
    shutil.copytree(recorded, again)
    shard = rollouts.read(again / "shard-00001.npz")  # recorded anew, by other actions
    rollouts.write(again / "shard-00001.npz", dataclasses.replace(shard, actions=shard.actions - 1))
    written.clear()
    encode_rollouts(other, again, tmp_path)
    assert written == ["shard-00001.npz"]


def test_files_that_lack_an_array_are_named(encoded, tmp_path):
    for path in rollouts.shard_paths(encoded):
        with np.load(path) as archive:
            np.savez(tmp_path / path.name, **{k: archive[k] for k in archive if k != "ends"})
    with pytest.raises(ValueError, match="shard-00000.npz lacks ends; encode again"):
        read_latents(tmp_path)


def test_starts_are_the_first_frames_of_the_first_episodes():
    mu, logvar = sequences((4, 2, 3)).starts(2)
    np.testing.assert_array_equal(mu, [(0, 0), (1, 0)])
    np.testing.assert_array_equal(logvar, [(0, 0), (-1, 0)])
    assert mu.dtype == logvar.dtype == np.float32
    assert len(sequences((4, 2, 3)).starts()[0]) == 3


@pytest.mark.parametrize("held_out", [0.0, 0.25, 1.0])
def test_split_divides_whole_episodes(held_out):
    lengths = (4, 2, 3, 1, 5, 2, 6, 1)
    sides = sequences(lengths).split(held_out)
    episodes = []
    for side in sides:
        for mu, length, terminated, seed, end in zip(
            np.split(side.mu, np.cumsum(side.lengths)[:-1]),
            side.lengths,
            side.terminated,
            side.seeds,
            side.ends,
            strict=True,
        ):
            episode = int(mu[0, 0])
            np.testing.assert_array_equal(mu, [(episode, t) for t in range(lengths[episode])])
            assert length == lengths[episode] and terminated == (episode % 2 == 0)
            assert seed == episode and end == (-1 if episode % 2 else episode)
            episodes.append(episode)
        assert len(side.actions) == len(side.rewards) == len(side.logvar) == side.lengths.sum()
        assert len(side.lengths) > 0
    assert sorted(episodes) == list(range(8))


def test_an_episode_s_seed_alone_says_its_side():
    many = sequences([1] * 1000)
    held = {share: set(many.split(share)[1].seeds) for share in (0.1, 0.3)}
    assert held[0.1] < held[0.3], "whoever holds out more holds out the same and others"
    some = dataclasses.replace(sequences([2] * 100), seeds=np.arange(500, 400, -1))
    assert set(some.split(0.3)[1].seeds) == held[0.3] & set(range(401, 501))
    for share, seeds in held.items():  # as many as if drawn: 5 standard errors of a binomial
        assert abs(len(seeds) - 1000 * share) < 5 * (1000 * share * (1 - share)) ** 0.5


def test_bad_directories_are_one_clear_line(vae, recorded, encoded, tmp_path):
    with pytest.raises(ValueError, match="no rollouts in .*; collect some first"):
        encode_rollouts(vae, tmp_path, tmp_path / "latents", log=LOG)
    with pytest.raises(ValueError, match="no latents in .*; encode some rollouts first"):
        read_latents(tmp_path)
    with pytest.raises(ValueError, match="cannot hold out one of 1 episodes; collect more"):
        sequences((3,)).split()
    part = latents._read(encoded / "shard-00000.npz")
    for number, name in enumerate(("vision", "profile")):
        directory = tmp_path / str(number)
        directory.mkdir()
        latents._write(directory / "shard-00000.npz", part)
        latents._write(
            directory / "shard-00001.npz", dataclasses.replace(part, **{name: "another"})
        )
        with pytest.raises(ValueError, match=f"mixes more than one {name} .*another") as error:
            read_latents(directory)
        assert "\n" not in str(error.value)
    (tmp_path / "0" / "shard-00001.npz").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="shard-00001.npz is damaged .* encode again"):
        read_latents(tmp_path / "0")
