"""A world that is handed on comes back as it was, or not at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamjax.checkpoint import CheckpointError, Store
from dreamjax.memory import MDNRNN
from dreamjax.tasks import CAR_RACING, TAKE_COVER
from dreamjax.vision import VAE
from dreamjax.worlds import (
    World,
    adopt_world,
    export_world,
    load_controller,
    load_world,
    save_controller,
    save_world,
)

WEIGHTS = np.linspace(-1, 1, 1088, dtype=np.float32)


@pytest.fixture(scope="module")
def world():
    rngs, mu = nnx.Rngs(0), jax.random.normal(jax.random.key(0), (7, 64))
    models = VAE(64, rngs=rngs), MDNRNN(TAKE_COVER, rngs=rngs)
    return World(TAKE_COVER, *models, mu, mu - 2, death_threshold=1.5, death_noise=1.0)


@pytest.fixture
def folder(world, tmp_path):
    export_world(tmp_path / "to hand on", world, WEIGHTS, {"dream": 321.0, "world": {"steps": 12}})
    return tmp_path / "to hand on"


def test_an_exported_world_is_the_same_but_for_rounding(world, folder):
    loaded = load_world(folder)
    assert (loaded.task, loaded.death_threshold, loaded.death_noise) == (TAKE_COVER, 1.5, 1.0)
    for a, b in zip(*map(jax.tree.leaves, (loaded.arrays(), world.arrays())), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15e6
    export_world(folder / "again", loaded, None, {})
    assert load_world(folder / "again").digest() == loaded.digest(), "rounded once, not twice"
    np.testing.assert_array_equal(load_controller(folder, loaded), WEIGHTS)
    with pytest.raises(CheckpointError, match="was evolved in world .*: evolve again"):
        load_controller(folder, dataclasses.replace(loaded, initial_mu=loaded.initial_mu + 1))
    with pytest.raises(CheckpointError, match="has a world but no C; evolve one in it"):
        load_controller(folder / "again", loaded)


def test_a_run_adopts_a_world_and_its_controller_once(world, folder, tmp_path):
    run = tmp_path / "run"
    adopt_world(run, folder, TAKE_COVER)
    adopt_world(run, folder, TAKE_COVER)
    adopted = load_world(run)
    assert Store(run / "world").meta()["made"] == {"steps": 12}, "how it was made is handed on"
    assert adopted.digest() == load_world(folder).digest()
    assert (adopted.death_threshold, adopted.death_noise) == (1.5, 1.0)
    np.testing.assert_array_equal(load_controller(run, adopted), WEIGHTS)
    save_controller(run, adopted, -WEIGHTS, {"dream": 1.0})
    adopt_world(run, folder, TAKE_COVER)
    np.testing.assert_array_equal(load_controller(run, adopted), -WEIGHTS)
    with pytest.raises(CheckpointError, match="a world of take-cover, not of car-racing"):
        adopt_world(tmp_path / "other", folder, CAR_RACING)
    other = dataclasses.replace(world, initial_mu=world.initial_mu + 1)
    save_world(tmp_path / "taken", other, {})
    with pytest.raises(CheckpointError, match="already has another world than"):
        adopt_world(tmp_path / "taken", folder, TAKE_COVER)


def test_damage_is_named(folder, tmp_path):
    path = folder / "arrays.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-100] ^= 4
    path.write_bytes(blob)
    with pytest.raises(CheckpointError, match="not the file that world.json describes"):
        load_world(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="is damaged .*; fetch or export it again"):
        load_world(folder)
    (folder / "world.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_world(folder)
    with pytest.raises(CheckpointError, match="no world in .*nowhere; train one"):
        load_world(tmp_path / "nowhere")
