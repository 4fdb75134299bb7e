"""What a run wrote of itself stays whole, on full disks too, and goes where it is asked to."""

import dataclasses
import json
import math
import resource
import signal
import struct
import sys

import pytest
from command import alone
from short_cover import SHORT
from tensorboardX.proto.event_pb2 import Event

from dreamjax.run import cli
from dreamjax.training.logbook import Logbook
from dreamjax.training.writers import WRITERS


def rows(directory):
    """`(phase, step, metrics)` of each row."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    found = []
    for row in map(json.loads, lines):
        row.pop("time")
        found.append((row.pop("phase"), row.pop("step"), row))
    return found


def contents(directory):
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.iterdir()
    }


@pytest.fixture
def book(tmp_path):
    book = Logbook(tmp_path, quiet=True)
    for step in (2, 4, 6):
        book.log("vision", step, {"loss": 1 / step, "kl": 0.5})
    book.log("memory", 6, {"nll": -1.5})
    return book


@pytest.mark.parametrize("cut", [1, 4, 12])
def test_a_torn_last_line_is_cut_before_the_next(cut, book, tmp_path):
    before = rows(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-cut])
    Logbook(tmp_path)
    assert not (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n"), "it mends as it writes"
    Logbook(tmp_path, quiet=True).log("memory", 8, {"nll": -1.75})
    assert rows(tmp_path) == [*before[:-1], ("memory", 8, {"nll": -1.75})]


def test_a_torn_first_line_is_written_again(book, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"ti')
    book.log("vision", 2, {"loss": 0.5})
    assert rows(tmp_path) == [("vision", 2, {"loss": 0.5})]


def test_a_run_that_goes_on_leaves_no_row_twice(book, tmp_path):
    before = rows(tmp_path)
    book.rewind("vision", 2)
    assert rows(tmp_path) == [before[0], before[3]], "other phases and earlier steps stay"
    for step in (4, 6):
        book.log("vision", step, {"loss": 1 / step, "kl": 0.5})
    assert rows(tmp_path) == [before[0], before[3], *before[1:3]]


def test_where_nothing_is_to_be_dropped_nothing_is_written(book, tmp_path):
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"time": 1, "phase": "vision", "st{"glued": 1}\n[]\n{"phase": "vision"}\n')
    before = contents(tmp_path)
    book.rewind("vision", 6)
    book.rewind("evolve", 0)
    assert contents(tmp_path) == before
    Logbook(tmp_path / "nowhere").rewind("vision", 0)
    Logbook(quiet=True).rewind("vision", 0)
    assert contents(tmp_path) == before


def test_a_full_disk_names_the_file_and_the_remedy(book, tmp_path):
    full = (tmp_path / "metrics.jsonl").stat().st_size + 10
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (full, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            book.log("vision", 8, {"loss": 0.125})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'metrics.jsonl'}: File too large; "
        "free some space and run the same command again"
    )
    book.log("vision", 8, {"loss": 0.125})
    assert rows(tmp_path)[4:] == [("vision", 8, {"loss": 0.125})], "what it had torn is cut"


def shown(directory):
    """`{(tag, step): value}` of all that TensorBoard shows of a run."""
    (path,) = (directory / "tensorboard").glob("events.*")
    blob, found = path.read_bytes(), {}
    while blob:
        (length,) = struct.unpack("<Q", blob[:8])  # and a checksum before the event, and after it
        event, blob = Event.FromString(blob[12 : 12 + length]), blob[16 + length :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


@pytest.mark.slow
def test_the_command_gives_metrics_to_tensorboard_and_to_wandb_offline(tmp_path):
    run = tmp_path / "run"
    words = ["collect", "short_cover:SHORT", "--collect.episodes", 2, "--run-dir", run, "--log"]
    status, _, err = alone(*words, "tensorboard", "wandb")
    assert status == 0, err
    told = {
        (f"{phase}/{name}", step): value
        for phase, step, metrics in rows(run)
        for name, value in metrics.items()
    }
    assert {tag for tag, _ in told} >= {"collect/frames", "seconds/collect"}
    assert shown(run) == {place: pytest.approx(value, rel=1e-6) for place, value in told.items()}
    (folder,) = (run / "wandb").glob("offline-run-*")
    blob = next(folder.glob("*.wandb")).read_bytes()
    assert all(tag.encode() in blob for tag, _ in told)
    assert f"{told['collect/rate', 2]}".encode() in blob


def test_writers_get_what_is_finite_wherever_rows_are_kept(tmp_path):
    told, metrics = [], {"loss": math.nan, "kl": 0.5, "nll": -math.inf}
    for directory in (None, tmp_path):
        Logbook(directory, True, (lambda *row: told.append(row),)).log("vision", 2, metrics)
    assert told == [("vision", 2, {"kl": 0.5})] * 2
    assert rows(tmp_path) == [("vision", 2, {"loss": None, "kl": 0.5, "nll": None})]


def test_the_logbook_of_a_round_has_files_of_its_own(tmp_path, monkeypatch):
    """As `run.rounds` makes it: with the same writers, in another directory."""
    told = []
    kept_in = lambda directory: lambda phase, *row: told.append((directory.name, phase))  # noqa: E731
    monkeypatch.setitem(WRITERS, "tensorboard", kept_in)
    book = Logbook(tmp_path, True, ("tensorboard", lambda phase, *row: told.append(phase)))
    other = dataclasses.replace(book, directory=tmp_path / "round-1")
    (tmp_path / "round-1").mkdir()
    for one in (book, other):
        one.log("vision", 2, {})
    assert told == [(tmp_path.name, "vision"), "vision", ("round-1", "vision"), "vision"]


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_anything_runs(
    name, package, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    words = ["collect", SHORT.name, "--run-dir", str(tmp_path / "run"), "--log", name]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"dreamjax: import of {package}") and error.count("\n") == 1
    assert error.endswith(f"pip install dreamjax[{name}]\n")
    assert not list((tmp_path / "run").iterdir())


def test_a_log_that_is_not_known_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="'excel'; choose one of tensorboard, wandb"):
        Logbook(tmp_path, writers=("excel",))
    words = ["collect", SHORT.name, "--run-dir", str(tmp_path / "run"), "--log", "excel"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert "'excel'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_wandb_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "no key")
    with pytest.raises(ValueError, match=r"^wandb does not start .*; set WANDB_MODE=offline$"):
        Logbook(tmp_path, writers=("wandb",))
