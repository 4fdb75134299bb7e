"""The programs that jax compiled for the tests, kept from one run to the next.

jax's own key of a program lacks the features of the CPU: another CPU's code may end in an illegal
instruction. So each machine's kind, jax and flags have a folder of their own.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

BYTES, DAYS = 2e9, 30  # of all folders; what was used last stays


def home():
    """The user's cache folder of these tests."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dreamjax-tests"


def folder():
    """Where programs of this machine, jax and flags are kept."""
    facts = [platform.machine(), version("jax"), version("jaxlib"), os.environ.get("XLA_FLAGS", "")]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += [next((x for x in lines if x.startswith(("flags", "Features"))), "")]
    return home() / hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def tidy(root, most=BYTES, days=DAYS):
    """Remove programs that were not used for so long, and the oldest beyond so many bytes."""
    files = sorted(
        ((max(x.st_atime, x.st_mtime), x.st_size, path) for path, x in _stats(root)), reverse=True
    )
    kept, oldest = 0, time.time() - days * 86_400
    for used, size, path in files:
        kept += size
        if used < oldest or kept > most:
            path.unlink(missing_ok=True)
    for path in root.glob("*"):
        if path.is_dir() and not any(path.iterdir()):
            shutil.rmtree(path, ignore_errors=True)


def _stats(root):
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # another run tidies too
            if path.is_file():
                yield path, path.stat()
