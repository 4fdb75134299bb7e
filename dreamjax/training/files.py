"""Files that are either the old one or the new one, never half."""

import contextlib
import errno
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB


class WriteError(OSError):
    """A file that could not be written: `str` is one line with path, reason and remedy."""

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.errno in FULL:
            return "free some space and run the same command again"
        return "make it writable, or choose another directory"

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}; {self.remedy}"


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an OSError inside, which seldom names a file, into `WriteError` of `path`."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """A binary file to fill, which replaces `path` once it is whole and on the disk.

    Raises:
      WriteError: the disk refused (full, read-only); `path` is what it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            with open(temporary, "wb") as file:
                with contextlib.suppress(OSError):  # held until this process ends, however
                    fcntl.flock(file, _LOCK)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """JSON in place of what `path` held; raises as `replacing`."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def writable(directory: Path | str) -> Path:
    """`directory`, made if need be, as an absolute path; ValueError if it cannot be written to."""
    path = Path(directory).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write to {path} ({reason}); choose another directory") from None
    return path


def require_room(directory: Path, size: int) -> None:
    """Raise OSError beforehand if `size` bytes do not fit into `directory`."""
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        except (AttributeError, OSError) as error:  # AttributeError: macOS
            if getattr(error, "errno", None) in FULL:
                raise


def remove_stale(directory: Path) -> None:
    """Remove the halves that `replacing` left behind in processes that were killed."""
    for path in directory.iterdir():
        if re.fullmatch(r"\..+\.(?:npz|json)\.\d+", path.name):
            with contextlib.suppress(OSError), open(path, "r+b") as half:  # else gone, or another's
                fcntl.flock(half, _LOCK)
                path.unlink()
