"""What a type checker, and so an editor, sees of the package from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import public

import dreamjax

pytestmark = pytest.mark.slow

PACKAGE = Path(dreamjax.__file__).parent
CLIENT = """
from typing import assert_type

import jax
import numpy as np

import dreamjax


def dream() -> None:
    env, params = dreamjax.make("DreamTakeCover-v1", observation="zh", temperature=1.2)
    key = jax.random.key(0)
    obs, state = env.reset(key, params)
    obs, state, reward, terminated, truncated, info = env.step(key, state, 0.0, params)
    assert_type(params, dreamjax.EnvParams)
    assert_type(state, dreamjax.EnvState)
    assert_type(params.death_chance(terminated), jax.Array)


def play(source: str) -> np.ndarray:
    world = dreamjax.load_world(source)
    assert_type(world.env(), dreamjax.DreamEnv)
    assert_type(world.params(temperature=1.0), dreamjax.EnvParams)
    assert_type(world.player, dreamjax.Player)
    return dreamjax.evaluate(world, world.player, episodes=4, seed=0).returns


def find(world: dreamjax.World) -> tuple[dreamjax.Player, dreamjax.Player]:
    where = world.env(), world.params()
    evolved = dreamjax.evolve(*where, world.controller(), dreamjax.EvolveConfig(generations=2), 0)
    assert_type(evolved, dreamjax.Evolution)
    assert_type(evolved.replace(best=evolved.mean), dreamjax.Evolution)
    learnt = dreamjax.learn(*where, evolved.player, dreamjax.LearnConfig(steps=10**6), seed=1)
    if isinstance(form := learnt.player.controller, dreamjax.LinearController):
        assert_type(form.num_params, int)
    return evolved.player, learnt.player


def train(directory: str) -> dreamjax.Memory:
    task = dreamjax.Task(name="pole", make="pole:make", ends=("fallen",), max_steps=500)
    latents = dreamjax.read_latents(directory)
    return dreamjax.train_memory(task, latents, dreamjax.MemoryConfig(steps=100), seed=0)


print(dreamjax.__version__)
"""
WRONG = {  # what a client gets wrong, and the error's code
    "dreamjax.load_world(3.5)": "arg-type",
    "dreamjax.load_words('take-cover')": "attr-defined",
    "dreamjax.make('DreamTakeCover-v1', temprature=1.0)": "call-arg",
    "dreamjax.load_world('take-cover').players": "attr-defined",
    "dreamjax.EvolveConfig(generations='many')": "arg-type",
    "dreamjax.evaluate(dreamjax.load_world('take-cover'), episodes=4, seed=0)": "call-arg",
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What mypy says, in its strictest mode, of files that import the package: lines by file."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "client.py").write_text(CLIENT)
    (folder / "wrong.py").write_text("\n".join(["import dreamjax", *WRONG]))
    names = [name for name in public() if name.count(".") == 1] + ["dreamjax.TASKS"]
    (folder / "names.py").write_text(
        "\n".join(["import dreamjax", *(f"reveal_type({name})" for name in names)])
    )
    words = ["--strict", "--follow-imports=silent", "--config-file=", "--cache-dir=cache"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, "client.py", "wrong.py", "names.py"],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    said = done.stdout.splitlines()
    return {name: [x for x in said if x.startswith(name)] for name in ("client", "wrong", "names")}


def test_a_client_passes_the_strictest_check(checked):
    assert checked["client"] == []
    assert (PACKAGE / "py.typed").exists()


def test_a_wrong_call_is_an_error(checked):
    errors = {int(line.split(":")[1]): line for line in checked["wrong"] if " error: " in line}
    assert sorted(errors) == list(range(2, len(WRONG) + 2))
    for line, code in zip(sorted(errors), WRONG.values(), strict=True):
        assert errors[line].endswith(f"[{code}]")


def test_every_public_name_has_a_type(checked):
    assert len(checked["names"]) > 50
    assert [line for line in checked["names"] if 'Revealed type is "Any"' in line] == []
