"""The authors' files: written here in their layout, read, dreamt by a step of NumPy, played."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import dreamjax, refused

from dreamjax.dream.worlds import load_world
from dreamjax.run.released import NEVER, import_released
from dreamjax.tasks import CAR_RACING_PAPER, TAKE_COVER
from dreamjax.vision.model import VAE

CONVOLUTIONS = [(4, 4, 3, 32), (4, 4, 32, 64), (4, 4, 64, 128), (4, 4, 128, 256)]
TRANSPOSED = [(5, 5, 128, 1024), (5, 5, 64, 128), (6, 6, 32, 64), (6, 6, 3, 32)]


def vision_shapes(Z):
    """Of V's arrays as TensorFlow made them."""
    kernels = [*CONVOLUTIONS, (1024, Z), (1024, Z), (Z, 1024)]
    shapes = [part for kernel in kernels for part in (kernel, kernel[-1:])]
    return shapes + [part for kernel in TRANSPOSED for part in (kernel, kernel[2:3])]


def memory_shapes(task):
    """Of M's: carracing made its output first, doomrnn its cell."""
    Z, H, ends = task.latent_size, task.hidden_size, task.controller_reads == ("c", "h")
    inputs, outputs = Z + task.action_size + task.reads_restart + H, 15 * Z + ends
    cell, output = [(inputs, 4 * H), (4 * H,)], [(H, outputs), (outputs,)]
    return cell + output if ends else output + cell


def write(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([np.round(array * 10_000).astype(int).tolist() for array in arrays]))


@pytest.fixture(
    scope="module",
    params=[pytest.param(TAKE_COVER, marks=pytest.mark.slow), CAR_RACING_PAPER],
    ids=lambda task: task.name,
)
def released(request, tmp_path_factory):
    """`(task, folder of its files, arrays by file)`."""
    task, rng = request.param, np.random.default_rng(0)
    folder, Z = tmp_path_factory.mktemp("released"), task.latent_size
    shapes = {"vae.json": vision_shapes(Z), "rnn.json": memory_shapes(task)}
    shapes["initial_z.json"] = [(5, Z), (5, Z)]
    arrays = {
        name: [np.round(rng.normal(0, 0.05, shape), 4) for shape in its]
        for name, its in shapes.items()
    }
    for where, name in zip(("vae", "rnn", "tf_models"), shapes, strict=True):
        write(folder / where / name, arrays[name])
    size = 1088 if task is TAKE_COVER else 867
    arrays["best"] = rng.normal(size=size)
    best = folder / "log" / "game.cma.16.64.best.json"
    best.parent.mkdir()
    best.write_text(json.dumps([arrays["best"].tolist(), 917.5]))
    (folder / "log" / "game.cma.16.64.hist_best.json").write_text("[]")
    return task, folder, arrays


@pytest.fixture(scope="module")
def run(released, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    import_released(released[1], directory, released[0])
    return directory


def numpy_step(arrays, task, z, action, flag, c, h):
    """Logits, means and log deviations [Z, 5] of the next z, its logit of an end, and (c, h)."""
    cell = [array for array in arrays if array.shape[-1] == 4 * len(h)]
    (kernel, bias), (out, out_bias) = cell, [a for a in arrays if a.shape[-1] != 4 * len(h)]
    told = [z, action, [flag]] if task.reads_restart else [z, action]
    gates = np.concatenate([*told, h]) @ kernel + bias
    i, j, f, o = np.split(gates, 4)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
    h = np.tanh(c) * sigmoid(o)
    found = h @ out + out_bias
    ends = len(found) % 15
    rows = found[ends:].reshape(-1, 15)
    return rows[:, :5], rows[:, 5:10], rows[:, 10:], found[:ends], (c, h)


def test_m_is_theirs_by_a_step_of_numpy(released, run):
    task, _, arrays = released
    memory, rng = load_world(run).memory, np.random.default_rng(1)
    c = h = np.zeros(task.hidden_size)
    carry = memory.initial_carry()
    for age in range(3):
        z, action = rng.normal(size=task.latent_size), rng.uniform(-1, 1, task.action_size)
        *wanted, end, (c, h) = numpy_step(arrays["rnn.json"], task, z, action, age == 0, c, h)
        now = (jnp.asarray(x, jnp.float32) for x in (z, action))
        carry, found = jax.jit(memory)(carry, *now, jnp.int32(age))
        ours = found.latent.logits, found.latent.mean, found.latent.logstd
        for mine, theirs in zip(ours, wanted, strict=True):
            np.testing.assert_allclose(mine.T, theirs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.end, end if len(end) else NEVER, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(carry[1], h, rtol=1e-4, atol=1e-5)
        assert found.reward is None or found.reward == 0


def test_v_c_and_the_starts_are_theirs(released, run):
    task, _, arrays = released
    world = load_world(run)
    names = [f"conv{k}" for k in (1, 2, 3, 4)] + ["mu", "logvar", "dense"]
    names += [f"deconv{k}" for k in (1, 2, 3, 4)]
    theirs = iter(arrays["vae.json"])
    for name in names:
        for part in (getattr(world.vision, name).kernel, getattr(world.vision, name).bias):
            np.testing.assert_allclose(part[...], next(theirs), atol=1e-6)
    assert isinstance(world.vision, VAE) and next(theirs, None) is None
    for mine, array in zip(
        (world.initial_mu, world.initial_logvar), arrays["initial_z.json"], strict=True
    ):
        np.testing.assert_allclose(mine, array, atol=1e-6)
    controller, weights = load_world(run).player.controller, load_world(run).player.weights
    np.testing.assert_allclose(weights, arrays["best"], rtol=1e-6)
    features = np.random.default_rng(2).normal(size=controller.num_features)
    rows = arrays["best"].reshape(-1, task.action_size)
    if task is TAKE_COVER:
        wanted = np.tanh(features @ rows)
    else:
        a = np.tanh(features @ rows[1:] + rows[0])
        wanted = [a[0], (a[1] + 1) / 2, np.clip(a[2], 0, 1)]
    np.testing.assert_allclose(controller(weights, features), wanted, rtol=1e-4, atol=1e-5)
    assert (world.death_threshold, world.death_noise) == (0, 0)


@pytest.mark.slow
def test_it_dreams_and_is_judged_by_the_commands(released, tmp_path):
    task, folder, _ = released
    words = ["import-released", folder, "--run-dir", tmp_path / "run", "--task", task.name]
    status, said, err = dreamjax(*words)
    assert status == 0 and f"dreamjax evaluate {task.name}" in said, err
    world = load_world(tmp_path / "run")
    obs, state = world.env().reset(jax.random.key(0), world.params())
    zeros = jnp.zeros(task.action_size)
    obs, *_ = world.env().step(jax.random.key(1), state, zeros, world.params())
    assert np.isfinite(obs).all()
    if task is TAKE_COVER:
        short = ["--evaluate.episodes", "2", "--evaluate.baseline-episodes", "2"]
        status, said, err = dreamjax("evaluate", task.name, "--run-dir", tmp_path / "run", *short)
        assert status == 0 and "ours" in said, err


def test_a_directory_that_has_a_world_keeps_it(released, run):
    before = load_world(run).digest()
    with pytest.raises(ValueError, match="already has a world; use another run directory"):
        import_released(released[1], run, released[0])
    assert load_world(run).digest() == before


@pytest.mark.slow
def test_bad_files_are_one_line(released, tmp_path):
    task, folder, arrays = released
    other = CAR_RACING_PAPER if task is TAKE_COVER else TAKE_COVER
    with pytest.raises(ValueError, match=r"vae.json holds arrays of .*name the game that it is of"):
        import_released(folder, tmp_path / "a", other)
    with pytest.raises(ValueError, match=r"has no vae.json \(V\); fetch doomrnn or carracing of"):
        import_released(tmp_path, tmp_path / "a", task)
    for name in ("one", "two"):
        write(tmp_path / "twice" / name / "vae.json", arrays["initial_z.json"])
    with pytest.raises(ValueError, match="name the folder of one game"):
        import_released(tmp_path / "twice", tmp_path / "a", task)
    for name in ("vae.json", "rnn.json", "game.cma.16.64.best.json", "initial_z.json"):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        (broken,) = copy.rglob(name)
        broken.write_text("[1, 2")
        with pytest.raises(ValueError, match=f"{name} cannot be read .*; fetch it again"):
            import_released(copy, tmp_path / "a", task)
    assert not (tmp_path / "a").exists()
    line = refused("import-released", tmp_path / "twice", "--run-dir", tmp_path / "b")
    assert "name the folder of one game" in line
