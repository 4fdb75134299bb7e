"""A world that is handed on comes back as it was, or not at all."""

import dataclasses
import hashlib
import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from dreamjax.agent import Agent
from dreamjax.controller.model import controller_for
from dreamjax.controller.player import Player
from dreamjax.dream.exported import export_world
from dreamjax.dream.world import World
from dreamjax.dream.worlds import (
    adopt_world,
    load_player,
    load_world,
    save_world,
)
from dreamjax.memory.lstm import MDNRNN
from dreamjax.tasks import CAR_RACING, TAKE_COVER, TAKE_COVER_VIZDOOM
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.vision.model import VAE

WEIGHTS = np.linspace(-1, 1, 1088, dtype=np.float32)
PLAYER = Player(controller_for(TAKE_COVER, 1088), WEIGHTS, dream=321.0)
MU = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    rngs, mu = nnx.Rngs(0), MU
    models = VAE(64, rngs=rngs), MDNRNN(TAKE_COVER, rngs=rngs)
    tuned = {"death_threshold": 1.5, "death_noise": 1.0, "temperature": 1.3, "dropout": 0.1}
    return World(TAKE_COVER, *models, mu, mu - 2, **tuned)


@pytest.fixture
def folder(world, tmp_path):
    export_world(tmp_path / "to hand on", world, PLAYER, {"world": {"steps": 12}})
    return tmp_path / "to hand on"


def test_an_exported_world_is_the_same_but_for_rounding(world, folder):
    loaded = load_world(folder)
    assert (loaded.task, loaded.death_threshold, loaded.death_noise) == (TAKE_COVER, 1.5, 1.0)
    tau = [x.params().temperature for x in (loaded, dataclasses.replace(loaded, temperature=None))]
    assert tau == [1.3, TAKE_COVER.temperature] and loaded.params(2.0).temperature == 2
    for a, b in zip(*map(jax.tree.leaves, (loaded.arrays(), world.arrays())), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15e6
    export_world(folder / "again", loaded)
    assert load_world(folder / "again").digest() == loaded.digest(), "rounded once, not twice"
    np.testing.assert_array_equal(loaded.player.weights, WEIGHTS)
    assert loaded.player.dream == 321 and loaded.player.world == loaded.digest()
    with pytest.raises(CheckpointError, match="was evolved in world .*: evolve again"):
        load_player(folder, dataclasses.replace(loaded, initial_mu=loaded.initial_mu + 1))
    with pytest.raises(CheckpointError, match="has a world but no C; evolve one in it"):
        load_player(folder / "again", loaded)


def test_a_run_adopts_a_world_and_its_controller_once(world, folder, tmp_path):
    run = tmp_path / "run"
    adopt_world(run, folder, TAKE_COVER)
    adopt_world(run, folder, TAKE_COVER)
    adopted = load_world(run)
    assert Store(run / "world").meta()["made"] == {"steps": 12}, "how it was made is handed on"
    assert adopted.digest() == load_world(folder).digest()
    assert (adopted.death_threshold, adopted.death_noise, adopted.temperature) == (1.5, 1.0, 1.3)
    dropped = [adopted.params(dropout=x).dropout for x in (None, 0.2, 0.0)]
    assert dropped == [0.1, 0.2, None], "its own, another, none"
    np.testing.assert_array_equal(load_player(run, adopted).weights, WEIGHTS)
    dataclasses.replace(PLAYER, weights=-WEIGHTS).save(run, adopted)
    adopt_world(run, folder, TAKE_COVER)
    np.testing.assert_array_equal(load_player(run, adopted).weights, -WEIGHTS)
    with pytest.raises(CheckpointError, match="a world of take-cover, not of car-racing"):
        adopt_world(tmp_path / "other", folder, CAR_RACING)
    other = dataclasses.replace(world, initial_mu=world.initial_mu + 1)
    save_world(tmp_path / "taken", other, {})
    with pytest.raises(CheckpointError, match="already has another world than"):
        adopt_world(tmp_path / "taken", folder, TAKE_COVER)


def test_a_run_adopts_the_c_of_another_run_if_it_is_of_that_world(world, tmp_path):
    source, run, later = (tmp_path / name for name in ("source", "run", "later"))
    save_world(source, world, {"steps": 3})
    PLAYER.save(source, world)
    adopt_world(run, source, TAKE_COVER)
    np.testing.assert_array_equal(load_world(run).player.weights, WEIGHTS)
    assert Store(run / "controller").meta()["dream"] == 321
    save_world(source, dataclasses.replace(world, initial_mu=world.initial_mu + 1), {})
    adopt_world(later, source, TAKE_COVER)
    assert not (later / "controller").exists(), "its world went on without it"


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
    path.symlink_to(os.devnull)  # of other devices the end would never come
    with pytest.raises(CheckpointError, match="arrays.safetensors is missing or no plain file"):
        load_world(folder)
    (folder / "world.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_world(folder)
    with pytest.raises(CheckpointError, match="no world in .*nowhere; train one"):
        load_world(tmp_path / "nowhere")


class Bomb:
    """Runs code where somebody unpickles it."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def hostile(arrays, blob, meta):
    """For each kind of damage: the blob, `world.json`'s value or text, and words that name it."""

    def fact(**changes):
        return blob, {name: x for name, x in (meta | changes).items() if x is not ...}

    def changed(**changes):
        return safetensors.numpy.save(arrays | changes), meta

    def spoiled(name, value):
        array = arrays[name].copy()
        array.flat[5] = value
        return changed(**{name: array})

    kernel, deep = "['memory'].head_kernel.value", "[" * 100_000
    size = (int.from_bytes(blob[:8], "little") + 1).to_bytes(8, "little")  # of a longer header
    fewer = safetensors.numpy.save({k: x for k, x in arrays.items() if k != kernel})
    return {
        "truncated": ((blob[:-1000], meta), "deserializing"),
        "empty": ((b"", meta), "deserializing"),
        "endless header": (((2**60).to_bytes(8, "little") + blob[8:], meta), "deserializing"),
        "pickle": ((pickle.dumps(Bomb()), meta), "deserializing"),
        "other numbers": ((size + blob[8:].replace(b'"F16"', b'"BF16"', 1), meta), "BF16"),
        "no array": ((fewer, meta), "array .*head_kernel.* is missing"),
        "a list": ((blob, [meta]), "world.json is not an object"),
        "null": ((blob, None), "world.json is not an object, but None"),
        "a string": ((blob, json.dumps(meta)), "world.json is not an object"),
        "too deep": ((blob, deep), "recursion"),
        "no format": (fact(format=...), "format is None, this dreamjax reads 1"),
        "no task": (fact(task=...), "is of the game None; this dreamjax knows .*take-cover"),
        "task list": (fact(task=["take-cover"]), r"is of the game \['take-cover'\]"),
        "other game's": (fact(profile="carracing-v3"), "profile is 'carracing-v3', but take-cover"),
        "no profile": (fact(profile=...), "profile is None"),
        "no starts": (fact(starts=...), "starts is None, but must be a whole number"),
        "starts x": (fact(starts="x"), "starts is 'x'"),
        "starts 0": (fact(starts=0), "starts is 0"),
        "starts true": (fact(starts=True), "starts is True"),
        "starts 7.0": (fact(starts=7.0), "starts is 7.0"),
        "starts 10^12": (fact(starts=10**12), "starts is 1000000000000"),
        "starts 10^9": (fact(starts=10**9), r"needs float32\[1000000000, 64\]"),
        "events x": (fact(num_events="x"), "num_events is 'x'"),
        "events -1": (fact(num_events=-1), "num_events is -1"),
        "events 10^12": (fact(num_events=10**12), "num_events is 1000000000000"),
        "clock": (fact(clock="yes"), "clock is 'yes', but must be true or false"),
        "keys": (fact(keys=1), "keys is 1"),
        "residual": (fact(residual="no"), "residual is 'no', but must be true or false"),
        "moments": (fact(moments=-1), "moments is -1"),
        "moments 3": (fact(moments=3), r"array 'moments.age' is missing|moments"),
        "kind": (fact(kind="os:system"), "M is of the kind 'os:system', known are "),
        "kind list": (fact(kind=["lstm"]), r"M is of the kind \['lstm'\]"),
        "heads": (fact(heads=["reward"]), r"heads are \['reward'\], but must be of \['end'\]"),
        "heads x": (fact(heads="end"), "heads are 'end'"),
        "heads 7": (fact(heads=7), "heads are 7, but must be of"),
        "no heads": (fact(heads=[]), r"head_bias.* needs float32\[960\]"),
        "units 0": (fact(hidden_size=0), "hidden_size is 0, but must be a whole number from 1"),
        "units x": (fact(hidden_size="512"), "hidden_size is '512'"),
        "units 256": (fact(hidden_size=256), r"needs float32\[256, 961\]"),
        "C's units": (fact(controller_hidden=-1), "controller_hidden is -1"),
        "C hidden": (
            fact(controller_hidden=4),
            r"C has weights \[1088\], but its form has \[4361\]",
        ),
        "threshold nan": (fact(death_threshold=np.nan), "death_threshold is nan"),
        "threshold x": (fact(death_threshold="1.5"), "death_threshold is '1.5'"),
        "threshold huge": (fact(death_threshold=10**400), "death_threshold is 10000"),
        "noise inf": (fact(death_noise=np.inf), "death_noise is inf"),
        "noise -1": (fact(death_noise=-1), "death_noise is -1, but must be .* at least 0"),
        "tau 0": (fact(temperature=0), "temperature is 0, but must be a number from 10"),
        "tau x": (fact(temperature="1"), "temperature is '1'"),
        "dream": (fact(dream=np.nan), "dream is nan"),
        "V": (spoiled("['vision'].mu.bias.value", np.nan), "mu.bias.value holds NaN"),
        "M": (spoiled(kernel, np.inf), "head_kernel.value holds NaN or infinity"),
        "starts": (spoiled("['initial_mu']", np.nan), "initial_mu.* holds NaN"),
        "C": (spoiled("controller", np.nan), "controller holds NaN or infinity"),
        "C's size": (changed(controller=WEIGHTS[:-1]), r"C has weights \[1087\], but .* \[1088\]"),
        "more": (changed(more=np.zeros(3)), "array 'more' is none of a world's"),
    }


@pytest.mark.slow
def test_a_world_that_was_made_to_harm_is_refused_in_one_line(world, folder, tmp_path):
    """Its SHA-256 is right: whoever made the world made that too."""
    meta = json.loads((folder / "world.json").read_text())
    blob = (folder / "arrays.safetensors").read_bytes()
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, ((arrays, facts), words) in hostile(safetensors.numpy.load(blob), blob, meta).items():
        if isinstance(facts, dict):
            facts = facts | {"sha256": hashlib.sha256(arrays).hexdigest()}
        text = facts if name == "too deep" else json.dumps(facts)
        (folder / "arrays.safetensors").write_bytes(arrays)
        (folder / "world.json").write_text(text)
        for act in (
            lambda: load_world(folder),
            lambda: load_player(folder, world),
            lambda: adopt_world(tmp_path / "run", folder, TAKE_COVER),
        ):
            with pytest.raises(CheckpointError, match=words) as caught:
                act()
            line = str(caught.value)
            assert "\n" not in line and str(folder) in line and len(line) < 500, name
            assert "; " in line, f"{name}: no remedy"
        assert sorted(path.name for path in tmp_path.iterdir()) == before, name


def test_a_world_whose_c_earned_nothing_known_is_not_adopted(world, tmp_path):
    export_world(tmp_path / "world", world, world.player_of(WEIGHTS))
    loaded = load_world(tmp_path / "world")
    np.testing.assert_array_equal(loaded.player.weights, WEIGHTS)
    with pytest.raises(CheckpointError, match='world.json lacks "dream", .*; export it again'):
        adopt_world(tmp_path / "run", tmp_path / "world", TAKE_COVER)
    assert not (tmp_path / "run").exists()


def test_what_half_precision_cannot_hold_is_not_exported(world, tmp_path):
    vast = dataclasses.replace(world, initial_mu=world.initial_mu + 1e6)
    with pytest.raises(CheckpointError, match="half precision .*initial_mu.* infinity"):
        export_world(tmp_path, vast)
    assert not list(tmp_path.iterdir())


def unsound(memory):
    """`memory` with one weight that is no number."""
    memory = jax.tree.map(lambda x: x, memory)
    memory.head_bias[...] = memory.head_bias[...].at[3].set(jnp.nan)
    return memory


def test_a_runs_world_that_cannot_be_is_refused(world, tmp_path):
    """Its manifest is right. An M that predicts NaN never dies: it dreams the perfect score."""
    for change, words in (
        ({"memory": unsound(world.memory)}, "head_bias.* holds NaN or infinity"),
        ({"initial_mu": jnp.asarray(MU).at[0, 0].set(jnp.inf)}, "initial_mu.* holds NaN"),
        ({"death_threshold": float("nan")}, "death_threshold is nan"),
        ({"death_noise": -1.0}, "death_noise is -1.0"),
        ({"task": dataclasses.replace(TAKE_COVER, profile="pong")}, "profile is 'pong'"),
    ):
        save_world(tmp_path, dataclasses.replace(world, **change), {})
        with pytest.raises(CheckpointError, match=words) as caught:
            load_world(tmp_path)
        line = str(caught.value)
        assert str(tmp_path / "world") in line and "\n" not in line and "train-memory" in line
    save_world(tmp_path, world, {})
    assert load_world(tmp_path).digest() == world.digest()


def test_a_runs_c_that_cannot_be_is_refused(world, tmp_path):
    for weights, words in (
        (WEIGHTS.copy() * np.nan, "C's weights hold NaN or infinity"),
        (WEIGHTS[1:], r"C has weights \[1087\], but its form has \[1088\]"),
    ):
        PLAYER.save(tmp_path, world)
        store = Store(tmp_path / "controller")
        store.save(
            store.steps()[-1] + 1, {"weights": weights}, store.meta() | {"size": len(weights)}
        )
        with pytest.raises(CheckpointError, match=f"{words}.*; evolve again"):
            load_player(tmp_path, world)


@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("exports", [True, False])
def test_a_c_is_written_in_its_own_form_or_not_at_all(exports, hidden, world, tmp_path):
    weights = np.ones(world.controller(hidden).num_params, np.float32)
    for form in (world.controller(), world.controller(3), world.controller(4)):
        if form.hidden != hidden:
            with pytest.raises(ValueError, match=r"^C has weights \[\d+\], .*; name the form that"):
                Player(form, weights)
            continue
        player = Player(form, weights)
        if exports:
            export_world(tmp_path, world, player)
        else:
            player.save(tmp_path, world)
        read = load_player(tmp_path, load_world(tmp_path) if exports else world)
        assert read.controller == form
        np.testing.assert_array_equal(read.weights, weights)


def test_a_player_is_bound_to_its_world(world, folder, tmp_path):
    """To play, to be saved or handed on; a policy of one's own has no file."""
    player, other = load_world(folder).player, dataclasses.replace(world, initial_mu=1 + MU)
    bound = r"^C was found in world \w{12}, but this is world \w{12} of take-cover; V, M and C must"
    for act in (
        lambda: Agent(other, player, 1, jax.random.key(0)),
        lambda: player.save(tmp_path / "run", other),
        lambda: export_world(tmp_path / "run", other, player),
    ):
        with pytest.raises(ValueError, match=bound) as caught:
            act()
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    assert player(jnp.zeros((5, 1088))).shape == (5, 1)
    with pytest.raises(ValueError, match="is no dreamjax Controller, so it cannot be saved"):
        Player(lambda weights, obs: obs[:1], None).save(tmp_path / "run", world)
    with pytest.raises(CheckpointError, match="was not loaded, so no C lies beside it"):
        assert world.player


def varied(world, **variant):
    """The same arrays, read otherwise."""
    memory = jax.tree.map(lambda x: x, world.memory)
    for name, value in variant.items():
        setattr(memory, name, value)
    return dataclasses.replace(world, memory=memory)


def test_a_worlds_identity_covers_how_its_m_reads(world, tmp_path):
    clocked, keyed = varied(world, clock=True), varied(world, keys=True)
    assert world.digest() == digest(world.arrays()), "plain worlds are called what they were"
    assert len({w.digest() for w in (world, clocked, keyed, varied(keyed, clock=True))}) == 4
    for evolved_in, other in ((world, clocked), (clocked, world), (clocked, keyed)):
        PLAYER.save(tmp_path, evolved_in)
        np.testing.assert_array_equal(load_player(tmp_path, evolved_in).weights, WEIGHTS)
        with pytest.raises(CheckpointError, match="was evolved in world .*: evolve again"):
            load_player(tmp_path, other)
    twin = dataclasses.replace(clocked, task=TAKE_COVER_VIZDOOM)
    with pytest.raises(CheckpointError, match="of take-cover, but .* of take-cover-vizdoom"):
        load_player(tmp_path, twin)
    save_world(tmp_path, clocked, {})
    assert load_world(tmp_path).digest() == clocked.digest()


@pytest.mark.parametrize("step, told", [(3, True), (9, False)])
def test_a_controller_that_is_not_a_stopped_search_s_is_told(world, tmp_path, capsys, step, told):
    PLAYER.save(tmp_path, world)
    Store(tmp_path / "evolve").save(step, {"weights": WEIGHTS}, {"total": 9})
    load_player(tmp_path, world)
    line = "evolve was stopped at 3 of 9 and has saved no C yet; the one here was there before. Run"
    assert (line in capsys.readouterr().out) == told


def test_a_run_that_was_killed_as_it_adopted_a_world_adopts_it_again(
    world, folder, tmp_path, monkeypatch
):
    def killed(*args):
        raise KeyboardInterrupt

    for moment in ("dream.worlds.save_world", "controller.player.Player.save"):
        run = tmp_path / moment
        monkeypatch.setattr(f"dreamjax.{moment}", killed)
        with pytest.raises(KeyboardInterrupt):
            adopt_world(run, folder, TAKE_COVER)
        monkeypatch.undo()
        adopt_world(run, folder, TAKE_COVER)
        np.testing.assert_array_equal(load_player(run, load_world(folder)).weights, WEIGHTS)
