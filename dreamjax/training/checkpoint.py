"""Checkpoints: orbax holds the arrays, a SHA-256 manifest proves them, JSON says what they are.

A checkpoint is a folder `DIRECTORY/<step>/` with `arrays/` (orbax), `meta.json` (config, seed,
versions, hashes of what it was trained on) and `manifest.json`, which every file is checked
against: orbax returns flipped bytes without a word. It appears under its name once it is whole;
nothing older is removed before that.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamjax.training.files import FULL, writable, write_json
from dreamjax.version import __version__

FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "evosax", "gymnax", "gymnasium", "vizdoom", "numpy")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or made for something else; one line."""


def versions() -> dict[str, str]:
    """Versions of Python, dreamjax and the packages that shape results."""
    found = {"python": platform.python_version(), "dreamjax": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """A pytree's arrays on the host, by their path in the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def unflatten(template: Any, arrays: Mapping[str, np.ndarray], origin: str) -> Any:
    """`template`'s tree with the values of `arrays`; CheckpointError where they do not fit it."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(template)
    leaves = []
    for path, leaf in paths:
        name = jax.tree_util.keystr(path)
        if name not in arrays:
            raise CheckpointError(f"{origin} holds no array {name}; it was made by another model")
        found, shape, dtype = arrays[name], np.shape(leaf), jax.dtypes.result_type(leaf)
        if found.shape != shape or found.dtype != dtype:
            raise CheckpointError(
                f"{origin}: {name} is {found.dtype}{list(found.shape)}, but this task needs "
                f"{dtype}{list(shape)}; use the world that belongs to the task"
            )
        leaves.append(found)
    return jax.device_put(jax.tree_util.tree_unflatten(treedef, leaves))


def digest(tree: Any) -> str:
    """SHA-256 of a pytree's paths, shapes, dtypes and bytes: a model's identity."""
    sha = hashlib.sha256()
    for name, array in sorted(flatten(tree).items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


class Store:
    """The checkpoints of one phase, newest `keep` of them, saved every `seconds` of a training.

    Only what passes its manifest counts: a damaged or stray folder is never resumed from, never a
    reason to delete a sound one, and gives way when its step is saved.
    """

    def __init__(self, directory: Path | str, keep: int = 2, seconds: float = 120.0):
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.seconds = seconds

    def steps(self) -> list[int]:
        """Steps of the sound checkpoints, oldest first; CheckpointError: one of another format."""
        return [int(folder.name) for folder in self._folders() if not _fault(folder)]

    def faults(self) -> list[str]:
        """A line for each folder named as a checkpoint that is none or is damaged."""
        return [fault for folder in self._folders() if (fault := _fault(folder))]

    def _folders(self) -> list[Path]:
        return sorted(p for p in self.directory.glob("*") if re.fullmatch(r"\d{8,}", p.name))

    def save(self, step: int, tree: Any, meta: Mapping[str, Any]) -> None:
        """Write checkpoint `step`, by the first process alone, then drop all but the newest `keep`.

        Raises:
          CheckpointError: the disk refused (full, read-only); what was there still is.
        """
        if jax.process_index() != 0:
            return
        target = self.directory / f"{step:08d}"
        temporary = self.directory / f".{step:08d}.{os.getpid()}"
        arrays = flatten(tree)
        size = sum(array.nbytes for array in arrays.values())
        try:
            for path in writable(self.directory).iterdir():
                if re.fullmatch(r"\.\d{8,}\.\d+", path.name):  # left by a save that was killed
                    shutil.rmtree(path, ignore_errors=True)
            temporary.mkdir()
            _require_room(temporary / "room", size)
            _checkpointer().save(temporary / "arrays", arrays)
            document = {"format": FORMAT, "step": step, "versions": versions(), **meta}
            write_json(temporary / "meta.json", document)
            write_json(temporary / "manifest.json", _hashes(temporary))
            if target.exists():
                shutil.rmtree(target)
            os.rename(temporary, target)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise CheckpointError(
                f"cannot save {target} ({size / 1e6:.0f} MB needed): {reason}; older checkpoints "
                "are kept"
            ) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.directory / f"{old:08d}", ignore_errors=True)

    def replace(self, tree: Any, meta: Mapping[str, Any]) -> None:
        """Save what takes the place of all that was there; errors as of `save`."""
        self.save(max(self.steps(), default=-1) + 1, tree, meta)

    def meta(self) -> dict[str, Any]:
        """`meta.json` of the newest checkpoint that passes its manifest."""
        return self._sound()[1]

    def unfinished(self) -> str | None:
        """How far a training got that was stopped before its end; None of any other."""
        meta = self.meta() if self.steps() else {}
        step, total = meta.get("step", 0), meta.get("total", 0)
        return f"{step:,} of {total:,}" if step < total else None

    def load(self, template: Any, prefix: str = "") -> tuple[Any, dict[str, Any]]:
        """`(tree, meta)` of the newest sound checkpoint, in whose tree `template` is at `prefix`.

        Raises:
          CheckpointError: no sound checkpoint, or one made for something else.
        """
        folder, meta, passed = self._sound()
        for fault in passed:
            print(f"skipped {fault}", flush=True)
        found = _checkpointer().restore(folder / "arrays").items()
        inside = {x.removeprefix(prefix): np.asarray(y) for x, y in found if x.startswith(prefix)}
        return unflatten(template, inside, str(folder)), meta

    def _sound(self) -> tuple[Path, dict[str, Any], list[str]]:
        """Folder and meta of the newest sound checkpoint, and faults of newer ones."""
        faults = []
        for folder in reversed(self._folders()):
            if not (fault := _fault(folder)):
                return folder, json.loads((folder / "meta.json").read_text()), faults
            faults.append(fault)
        found = "; ".join(faults) or "nothing there"
        maker = _MAKERS.get(self.directory.name, "what makes it")
        again = f"run {maker} again, which makes it anew" if faults else "train it first"
        raise CheckpointError(f"no usable checkpoint in {self.directory} ({found}); {again}")


_MAKERS = {  # the command whose checkpoints lie in a folder of that name
    "vision": "train-vision",
    "memory": "train-memory",
    "world": "train-memory",
    "controller": "learn or evolve",
}


def _require_room(path: Path, size: int) -> None:
    """Raise OSError beforehand if `size` bytes do not fit: orbax tells that at great length."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        except AttributeError:  # macOS
            pass
        except OSError as error:
            if error.errno in FULL:
                raise
    path.unlink()


def _checkpointer():
    """Orbax for this process alone: its arrays are NumPy's, and it waits for no other process."""
    import orbax.checkpoint as ocp

    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=str(here)
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None; raises as `Store.steps`."""
    try:
        manifest = dict(json.loads((folder / "manifest.json").read_text()))
    except (OSError, ValueError, TypeError):
        return f"{folder} (no manifest: unfinished or not a checkpoint)"
    found = _hashes(folder)
    for name, sha in {"meta.json": None, **manifest}.items():
        if sha is None or found.get(name) != sha:
            return f"{folder} ({name} is damaged or missing)"
    meta = json.loads((folder / "meta.json").read_text())
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"{folder} has format {version}, this dreamjax reads {FORMAT}; use the dreamjax that "
            "wrote it, or another directory"
        )
    return None
