"""The programs of a dream that need jax alone are the dream."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import refused

import dreamjax
from dreamjax.run import cli


def loaded(folder):
    """The two programs, as a stranger loads them."""
    return (
        jax.export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes())).call
        for name in ("reset", "step")
    )


@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_its_programs_dream_as_it_does_in_any_number_of_lanes(world, actions, tmp_path):
    env, params = dreamjax.make("DreamTakeCover-v1", world=world, actions=actions)
    dreamjax.export_step(tmp_path, env, params)
    reset, step = loaded(tmp_path)
    for lanes in (3, 7):
        keys = jax.random.split(jax.random.key(1), lanes)
        act = jax.vmap(env.action_space(params).sample)(keys)
        obs, state = reset(jax.random.key_data(keys))
        expected = jax.vmap(env.reset, (0, None))(keys, params)
        np.testing.assert_allclose(obs, expected[0], rtol=1e-4, atol=1e-5)
        for _ in range(40):  # some of them end and begin anew
            obs, state, *told = step(jax.random.key_data(keys), state, act)
            want = jax.vmap(env.step, (0, 0, 0, None))(keys, expected[1], act, params)
            np.testing.assert_allclose(obs, want[0], rtol=1e-3, atol=1e-4)
            for ours, theirs in zip(told, want[2:5], strict=True):
                np.testing.assert_array_equal(ours, theirs)
            keys, expected = jax.vmap(jax.random.fold_in, (0, None))(keys, 1), want
    told = json.loads((tmp_path / "stablehlo.json").read_text())
    assert told["actions"] == (["float32", [1]] if actions == "continuous" else ["int32", []])
    assert len(told["state"]) == len(state)


def test_without_the_exporter_nothing_is_written(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["--run-dir", smoke[0], "--target", tmp_path / "world", "--task", "short_cover:SHORT"]
    assert "dreamjax[stablehlo]" in refused("export", *words, "--stablehlo")
    assert not (tmp_path / "world").exists()


def test_the_command_writes_them_where_it_is_asked_to(smoke, tmp_path):
    words = ["export", "--run-dir", str(smoke[0]), "--task", "short_cover:SHORT"]
    words += ["--target", str(tmp_path / "plain")]
    assert cli.main(words) == 0 and not list((tmp_path / "plain").glob("*.stablehlo"))
    words[-1] = str(tmp_path / "world")
    assert cli.main([*words, "--stablehlo"]) == 0
    reset, step = loaded(tmp_path / "world")
    obs, state = reset(jnp.zeros((2, 2), jnp.uint32))
    _, after, *_ = step(jnp.ones((2, 2), jnp.uint32), state, jnp.zeros((2, 1)))
    assert obs.dtype == jnp.float32 and any(
        (a != b).any() for a, b in zip(state, after, strict=True)
    )
