"""The one training loop: resumes exactly, stops politely, refuses nonsense."""

import json
import signal

import jax.numpy as jnp
import pytest

from dreamjax.training.checkpoint import Store
from dreamjax.training.fit import fit
from dreamjax.training.logbook import Logbook


def advance(state, step):
    """A recurrence that depends on the order of its steps."""
    count = min(2, 9 - step)
    for i in range(count):
        state = state * 1.5 + step + i
    return state, count, {"loss": float(state)}


def run(total, log=None, store=None, advance=advance):
    return fit("toy", jnp.float32(1.0), advance, total, log=log, store=store)


@pytest.mark.numerics
def test_resumed_equals_unbroken(tmp_path):
    unbroken = run(9)
    run(4, store=Store(tmp_path))
    assert run(9, store=Store(tmp_path)) == unbroken


def test_a_finished_run_does_nothing(tmp_path):
    run(4, store=Store(tmp_path))

    def never(state, step):
        raise AssertionError("advanced")

    run(4, store=Store(tmp_path), advance=never)


def test_a_nan_stops_and_keeps_the_last_checkpoint(tmp_path):
    run(4, store=Store(tmp_path))

    def broken(state, step):
        return state, 1, {"loss": float("nan")}

    with pytest.raises(
        FloatingPointError, match="toy: loss is not finite at step 5.*learning rate"
    ):
        run(9, store=Store(tmp_path), advance=broken)
    assert Store(tmp_path).steps() == [4]


def test_ctrl_c_finishes_the_call_saves_and_resumes(tmp_path):
    def interrupted(state, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return advance(state, step)

    with pytest.raises(KeyboardInterrupt):
        run(9, store=Store(tmp_path), advance=interrupted)
    assert Store(tmp_path).steps() == [4]
    assert Store(tmp_path).unfinished() == "4 of 9"
    assert run(9, store=Store(tmp_path)) == run(9)
    assert Store(tmp_path).unfinished() is None


def test_a_training_can_be_ended_where_it_was_stopped(tmp_path):
    def interrupted(state, step):
        signal.raise_signal(signal.SIGINT)
        return advance(state, step)

    with pytest.raises(KeyboardInterrupt):
        run(9, store=Store(tmp_path), advance=interrupted)
    (step,) = Store(tmp_path).steps()
    assert run(step, store=Store(tmp_path)) == run(step)
    assert Store(tmp_path).steps() == [step] and Store(tmp_path).unfinished() is None


def test_what_has_diverged_is_stopped():
    with pytest.raises(FloatingPointError, match="toy: loss has grown to 108 at step 8.*lower"):
        fit("toy", jnp.float32(1.0), advance, 9, log=Logbook(quiet=True), most=90)


def test_a_run_that_goes_on_logs_no_row_twice(tmp_path):
    """After a kill the rows since the last checkpoint are logged again: once is enough."""
    run(4, Logbook(tmp_path), Store(tmp_path / "toy"))
    Logbook(tmp_path).log("toy", 6, {"loss": 1.0})  # and was killed before it saved
    run(9, Logbook(tmp_path), Store(tmp_path / "toy"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]


def test_checkpoints_come_as_often_as_the_store_says(tmp_path):
    run(9, store=Store(tmp_path / "often", keep=9, seconds=0))
    run(9, store=Store(tmp_path / "seldom", keep=9, seconds=1000))
    assert Store(tmp_path / "often").steps() == [2, 4, 6, 8, 9]
    assert Store(tmp_path / "seldom").steps() == [9]


def test_nothing_but_damage_is_begun_anew(tmp_path, capsys):
    (tmp_path / "00000004").mkdir()
    assert run(9, Logbook(), Store(tmp_path)) == run(9)
    assert "00000004 (no manifest: unfinished" in capsys.readouterr().out
    assert Store(tmp_path).steps() == [9]


def test_metrics_are_json_lines(tmp_path, capsys):
    run(9, log=Logbook(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]
    assert all(row["phase"] == "toy" and row["loss"] > 0 for row in rows)
    assert "toy: 9/9 steps" in capsys.readouterr().out  # piped: plain lines
