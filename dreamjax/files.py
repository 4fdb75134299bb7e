"""Files that are either the old one or the new one, never half."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """A binary file to fill, which takes `path`'s place once it is whole and on the disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON in place of what `path` held."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def writable(directory: Path | str) -> Path:
    """`directory`, made if need be and proven writable, as an absolute path.

    Raises:
      ValueError: it cannot be made or written to.
    """
    path = Path(directory).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write to {path} ({reason}); choose another directory") from None
    return path


def remove_stale(directory: Path) -> None:
    """Remove the halves that `replacing` left behind in processes that were killed."""
    for path in directory.iterdir():
        if not re.fullmatch(r"\..+\.(?:npz|json)\.\d+", path.name):
            continue
        with contextlib.suppress(OSError), open(path, "r+b") as half:  # gone, or somebody else's
            if _lock(half):
                path.unlink()


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file until its process ends, however that happens; False if it cannot be."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
