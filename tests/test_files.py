"""A file is the old one or the new one, and a disk that refuses is told in one line."""

import errno
import os

import pytest

from dreamjax.training.files import WriteError, replacing, write_json, writing


@pytest.mark.parametrize(
    "number, reason, remedy",
    [
        (errno.ENOSPC, "No space left on device", "free some space and run the same command again"),
        (errno.EFBIG, "File too large", "free some space and run the same command again"),
        (errno.EROFS, "Read-only file system", "make it writable, or choose another directory"),
    ],
)
def test_a_disk_that_refuses_names_the_file_and_keeps_it(
    number, reason, remedy, tmp_path, monkeypatch
):
    path = tmp_path / "facts.json"
    write_json(path, {"old": 1})

    def refuse(descriptor):
        raise OSError(number, reason)  # names no file

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WriteError) as caught:
        write_json(path, {"new": 2})
    assert str(caught.value) == f"cannot write {path}: {reason}; {remedy}"
    assert (caught.value.errno, caught.value.strerror) == (number, reason)
    assert path.read_text() == '{\n  "old": 1\n}\n' and os.listdir(tmp_path) == [path.name]


def test_what_cannot_even_be_opened_is_named(tmp_path):
    path = tmp_path / "none" / "facts.json"
    with pytest.raises(OSError, match=f"^cannot write {path}: No such file or directory; "):
        write_json(path, {})


def test_a_refusal_is_worded_once(tmp_path):
    inner = tmp_path / "inner"
    with pytest.raises(WriteError) as caught, writing(tmp_path / "outer"), writing(inner):
        raise OSError("no reason in numbers")
    assert str(caught.value).startswith(f"cannot write {inner}: no reason in numbers; ")


def test_what_is_no_fault_of_the_disk_stays_what_it_is(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert os.listdir(tmp_path) == []
