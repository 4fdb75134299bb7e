"""Every experiment and benchmark runs at toy size, so none rots; what they print is checked."""

import json

import pytest

from benchmarks import dream_throughput, suite, torch_dream, training_speed
from benchmarks.world import DEATHS_PER_STEP, stand_in
from dreamjax import cli
from dreamjax.population import evaluate


@pytest.fixture(scope="module")
def world():
    return stand_in()


def test_the_stand_in_is_about_as_deadly_as_it_says(world):
    import jax

    controller = world.controller()
    weights = 0.1 * jax.random.normal(jax.random.key(0), (8, controller.num_params))
    played = jax.jit(
        lambda params: evaluate(
            jax.random.key(1), world.env(), params, controller, weights, 16, sizes=(128,)
        )
    )(world.params(1.0).replace(max_steps_in_episode=1000))
    assert 0.3 / DEATHS_PER_STEP < played.steps.mean() < 3 / DEATHS_PER_STEP


def test_throughput_rows(world):
    rows = list(dream_throughput.measure(world, (8,), steps=3, both=False))
    assert [row["unit"] for row in rows] == ["steps/s", "steps/s", "s"]
    assert rows[1]["lanes"] == 8 and rows[1]["value"] > 0
    assert rows[1]["share_of_ceiling"] == pytest.approx(rows[1]["value"] / rows[0]["value"])


def test_the_torch_rival_runs_or_says_why_not(capsys):
    rows = torch_dream.rows(64, 2)
    assert len(rows) == 4 or "torch is not installed" in capsys.readouterr().out


def test_bench_writes_the_agreed_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite, "_quick_rows", lambda world, kind, lanes: _few_rows(world, lanes))
    target, plot = tmp_path / "rows.json", tmp_path / "rows.png"
    words = ["bench", "--quick", "--lanes", "4", "--json", str(target), "--plot", str(plot)]
    assert cli.main(words) == 0
    rows = json.loads(target.read_text())
    keys = {"name", "lanes", "value", "unit", "share_of_ceiling", "device"}
    assert rows and all(set(row) == keys for row in rows)
    assert plot.stat().st_size > 1000
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1


def _few_rows(world, lanes):
    yield from dream_throughput.measure(world, lanes, steps=2, both=False)
    yield from training_speed.original_rows(steps=3)


def test_an_unwritable_target_is_named_before_measuring(capsys):
    assert cli.main(["bench", "--quick", "--json", "/proc/none/rows.json"]) == 1
    said = capsys.readouterr()
    assert "cannot write to /proc/none" in said.err and not said.out


@pytest.mark.parametrize("lanes", ["0", "-3", "1000000000"])
def test_lanes_that_cannot_be_are_named(lanes, capsys):
    assert cli.main(["bench", "--quick", f"--lanes={lanes}"]) == 1
    assert f"got {lanes}" in capsys.readouterr().err
