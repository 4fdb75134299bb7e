"""The devices that share a phase's work: a batch is split among them, all else lies on each.

Legend: B parts of a batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamjax.training.logbook import Logbook

AXIS = "devices"
WHOLE = PartitionSpec()  # on every device
SPLIT = PartitionSpec(AXIS)  # along the first axis; PartitionSpec(None, AXIS) along the second


def all_devices() -> Mesh:
    """Every visible device, of every host, along one axis."""
    return Mesh(jax.devices(), (AXIS,))


def devices_for(parts: int, setting: str, log: Logbook) -> Mesh:
    """As many devices as can share B `parts` evenly, equally many of each process.

    `log` is told of those left out, and of the `setting` to change.

    Raises:
      ValueError: not even one device of each process can have an equal share.
    """
    processes, own = jax.process_count(), jax.local_device_count()
    used = max((n for n in range(1, own + 1) if parts % (n * processes) == 0), default=0)
    if not used:
        raise ValueError(
            f"{setting}={parts} does not divide by {processes} processes; choose a multiple of "
            f"{processes * own}, their devices"
        )
    if used < own:
        log.say(
            f"{used * processes} of {own * processes} devices share {setting}={parts}, which does "
            f"not divide by more; a multiple of {own * processes} keeps all of them busy"
        )
    by_process = [jax.local_devices(process_index=i)[:used] for i in range(processes)]
    return Mesh(np.concatenate(by_process), (AXIS,))


def on_all(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process has, laid on every device."""
    return split(tree, mesh, WHOLE)


def split(tree: Any, mesh: Mesh, spec: PartitionSpec = SPLIT) -> Any:
    """Arrays that every process has, split among the devices."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: laid(leaf, sharding), tree)


def on_own(tree: Any) -> Any:
    """Arrays that lie whole on every device, on this process's default one."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def laid(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, laid on devices."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def own_normal(
    key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike, *, axis: int
) -> jax.Array:
    """This device's part, of `shape`, of the normals of a batch split along `axis`.

    For use under `shard_map`; consumes `key`. Every device draws those of the whole batch, so that
    they do not depend on how many devices there are.
    """
    share, devices = shape[axis], jax.lax.axis_size(AXIS)
    whole = jax.random.normal(key, (*shape[:axis], share * devices, *shape[axis + 1 :]), dtype)
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(AXIS) * share, share, axis)
