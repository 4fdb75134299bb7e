"""Checkpoints: orbax keeps them, a SHA-256 manifest proves them, JSON says what they are.

A checkpoint is a folder `DIRECTORY/<step>/` with `arrays/` (orbax), `meta.json` (config, seed,
versions, hashes of what it was trained on) and `manifest.json`, which both are checked against:
orbax returns flipped bytes without a word. It appears under its name once it is whole; nothing
older is removed before that.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from dreamjax.training.devices import is_first
from dreamjax.training.files import require_room, writable, write_json
from dreamjax.training.mesh import laid
from dreamjax.version import __version__

FORMAT = 1
DROPPED = ".dropped"  # where orbax moves what is then deleted: none is half there under its name
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


def flatten(tree: Any) -> dict[str, np.ndarray | jax.Array]:
    """A pytree's arrays by their path in the tree: on the host, unless other hosts hold parts."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        is_here = getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated
        found[jax.tree_util.keystr(path)] = np.asarray(leaf) if is_here else leaf
    return found


def unflatten(template: Any, arrays: Mapping[str, np.ndarray], origin: str) -> Any:
    """`template`'s tree of the `arrays`, laid as it is; CheckpointError where they do not fit."""
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
        there = getattr(leaf, "sharding", None)
        is_laid = isinstance(there, NamedSharding)
        leaves.append(laid(found, there) if is_laid else jax.device_put(found))
    return jax.tree_util.tree_unflatten(treedef, leaves)


def digest(tree: Any) -> str:
    """SHA-256 of the paths, shapes, dtypes and bytes of a pytree `tree`: a model's identity."""
    sha = hashlib.sha256()
    for name, array in sorted(flatten(tree).items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


class Store:
    """A phase's checkpoints in `directory`, the newest `keep`, saved every `seconds` of a training.

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
        """Write checkpoint `step`, in place of one there, then drop all but the newest `keep`.

        The first process of a job writes, and each its own parts of arrays that lie on several.

        Raises:
          CheckpointError: the disk refused (full, read-only); the older ones still are.
        """
        arrays = flatten(tree)
        together = any(isinstance(array, jax.Array) for array in arrays.values())
        if not (together or is_first()):
            return
        size = sum(array.nbytes for array in arrays.values())
        document = {"format": FORMAT, "step": step, "versions": versions(), **meta}
        try:
            if is_first():
                require_room(writable(self.directory), size)
            self._commit(step, arrays, document, None if together else {0})
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise CheckpointError(
                f"cannot save {self.directory / f'{step:08d}'} ({size / 1e6:.0f} MB needed): "
                f"{reason}; older checkpoints are kept"
            ) from error

    def _commit(self, step: int, arrays: Any, meta: Any, savers: set[int] | None) -> None:
        """Save by orbax, in the processes `savers` of the job; None is all."""
        import orbax.checkpoint as ocp

        class Proved(ocp.PyTreeCheckpointHandler):
            def finalize(self, directory):  # by the first process, once all have written
                super().finalize(directory)
                write_json(directory.parent / "meta.json", meta)
                write_json(directory.parent / "manifest.json", _hashes(Path(directory)))

        handlers = ocp.DefaultCheckpointHandlerRegistry()
        handlers.add("arrays", ocp.args.PyTreeSave, Proved())
        old = sorted({*self.steps(), step})[: -self.keep]
        stay = {step, *(int(folder.name) for folder in self._folders())}.difference(old)
        how = ocp.CheckpointManagerOptions(
            step_format_fixed_length=8,
            create=False,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # reads nothing of what may be damaged
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=savers),
            preservation_policy=ocp.checkpoint_managers.CustomSteps(stay),
            todelete_subdir=DROPPED,
        )
        items = ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays))
        with ocp.CheckpointManager(self.directory, options=how, handler_registry=handlers) as orbax:
            if step in orbax.all_steps():
                orbax.delete(step)  # as it writes over nothing
            orbax.save(step, args=items, force=True)
        shutil.rmtree(self.directory / DROPPED, ignore_errors=True)

    def replace(self, tree: Any, meta: Mapping[str, Any]) -> None:
        """Save at the step after the newest, in place of all that was there; raises as `save`."""
        Store(self.directory, keep=1).save(max(self.steps(), default=-1) + 1, tree, meta)

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
        import orbax.checkpoint as ocp

        folder, meta, passed = self._sound()
        for fault in passed if is_first() else ():
            print(f"skipped {fault}", flush=True)
        handler = ocp.PyTreeCheckpointHandler()  # orbax's manager waits for other processes
        names = handler.metadata(folder / "arrays").tree
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        found = handler.restore(folder / "arrays", restore_args=how).items()
        inside = {x.removeprefix(prefix): array for x, array in found if x.startswith(prefix)}
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


def _hashes(arrays: Path) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint, whose `arrays` may have another name yet."""
    files = {f"arrays/{path.relative_to(arrays)}": path for path in sorted(arrays.rglob("*"))}
    files["meta.json"] = arrays.parent / "meta.json"
    return {name: _hash(path, _state(path)) for name, path in files.items() if path.is_file()}


def _state(path: Path) -> tuple[int, ...]:
    """What changes where a file does."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.lru_cache(maxsize=4096)
def _hash(path: Path, state: tuple[int, ...]) -> str:
    """SHA-256 of a file, read once as long as its `state` stays: a command asks many times."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None; raises as `Store.steps`."""
    try:
        manifest = dict(json.loads((folder / "manifest.json").read_text()))
    except (OSError, ValueError, TypeError):
        return f"{folder} (no manifest: unfinished or not a checkpoint)"
    found = _hashes(folder / "arrays")
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
