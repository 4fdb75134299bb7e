"""What a run wrote of itself stays whole: torn lines, rows written twice, full disks."""

import json
import resource
import signal

import pytest

from dreamjax.training.logbook import Logbook


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
