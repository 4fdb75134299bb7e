"""Which devices and processes do the work, and what they are good at."""

import atexit
import contextlib
import functools
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dreamjax.training import container
from dreamjax.training.processes import Processes

_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # as /proc/cpuinfo names them
_FIRST_GPU = 8.0  # compute capability with bfloat16 tensor cores

CHOICES = ("auto", "cpu", "gpu", "tpu")
TILE = 64  # matrices whose sides are multiples of it keep an accelerator's matrix units busy

Model = TypeVar("Model")
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

COORDINATOR_SECONDS = 20.0  # how long the first process of a job may be silent at first
JOIN_SECONDS = 20  # after which a process that has not come counts as lost
HEARTBEAT_SECONDS = 20  # silence after which a process of a job counts as lost


def plus(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., N] + bias [N], for jax that is told to broadcast only what is broadcast by name."""
    return x + jnp.broadcast_to(bias, x.shape)


def theirs(function: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """A `function` of optax or evosax, which mix dtypes and ranks whatever jax is told."""

    @functools.wraps(function)
    def called(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Answer:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*arguments, **keywords)

    return called


def product_dtype(bfloat16: bool | None = None) -> jnp.dtype:
    """Of products' operands (sums are float32); None is bfloat16 where the device is faster so."""
    wanted = multiplies_bfloat16() if bfloat16 is None else bfloat16
    return jnp.dtype(jnp.bfloat16 if wanted else jnp.float32)


def cast(model: Model, dtype: jax.typing.DTypeLike) -> Model:
    """V or M, or both, with kernels in `dtype`; products then run in it, all else in float32."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, model)


def multiplies_bfloat16() -> bool:
    """Whether the default device has instructions for products of bfloat16."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        path = Path("/proc/cpuinfo")
        lines = path.read_text().splitlines() if path.exists() else []
        named = (line for line in lines if line.startswith(("flags", "Features")))
        return not _CPU_FLAGS.isdisjoint(next(named, "").split())
    capability = getattr(device, "compute_capability", None)
    return capability is None or float(capability) >= _FIRST_GPU


def device_memory() -> int:
    """Bytes of a device: all of an accelerator; of a CPU what is free, within its container."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":") for line in file)
    except FileNotFoundError:  # macOS tells only what there is in all
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(int(rows["MemAvailable"].split()[0]) * 1024, container.memory_limit()))


def tile() -> int:
    """What the sides of a matrix should be multiples of on the default device; 1 for any."""
    return 1 if jax.default_backend() == "cpu" else TILE


def use(device: str) -> None:
    """Choose cpu, gpu, tpu, or auto, the best there is, before anything has asked jax for a device.

    Raises:
      ValueError: the device is not there. Nothing falls back in silence.
    """
    asked, remedy = device, "use --device auto"
    if device == "auto":
        asked = os.environ.get("JAX_PLATFORMS") or "device"
        remedy = "unset JAX_PLATFORMS and XLA_FLAGS"
    else:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device, device))
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no plugin is installed
        reason = next(iter(str(error).splitlines()), "jax has no plugin for it")
        raise ValueError(
            f"there is no {asked} here ({reason}); {remedy}, or install dreamjax with the extra "
            "cuda12, cuda13 or tpu"
        ) from None


def join(words: list[str]) -> None:
    """Join the other processes of a job, before `use`; `words` are told again if one is lost.

    jax finds them by the scheduler's environment (SLURM, Open MPI, TPU pods); elsewhere
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` tell.

    Raises:
      ValueError: the variables are not numbers, or no coordinator answers.
    """
    address, index = os.environ.get("JAX_COORDINATOR_ADDRESS"), _number("JAX_PROCESS_ID")
    if address and index:
        _find_coordinator(address)
    _leave_word(words)
    waits = {"initialization_timeout": JOIN_SECONDS, "heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    try:
        jax.distributed.initialize(address, _number("JAX_NUM_PROCESSES"), index, **waits)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot join a job of several processes ({str(error).splitlines()[0]}); start it by "
            "SLURM, Open MPI or on a TPU pod, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID"
        ) from None


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    if value is None or value.isdecimal():
        return None if value is None else int(value)
    raise ValueError(f"{variable} must be a number of at least 0, got {value!r}")


def _find_coordinator(address: str) -> None:
    """Wait until the job's first process listens: jax itself would abort where it does not."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + COORDINATOR_SECONDS
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError, OverflowError) as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"no coordinator answers at {address} ({error}); start the process with "
                    "JAX_PROCESS_ID=0 there, or correct JAX_COORDINATOR_ADDRESS"
                ) from None
        time.sleep(0.5)


_WATCH = """
import os, sys
if not sys.stdin.buffer.read():  # the pipe's other end was closed without a word
    print(sys.argv[1], file=sys.stderr, flush=True)
elif os.path.exists(sys.argv[2]):
    os.unlink(sys.argv[2])
"""


def _leave_word(words: list[str]) -> None:
    """See that one line is said even if jax aborts this process, as it does when another is lost.

    What its C++ says goes into a file, so that the line is not lost among stack traces.
    """
    handle, log = tempfile.mkstemp(prefix="dreamjax-job-", suffix=".log")
    said = lost(words, f"what jax said is in {log}")
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    command = [sys.executable, "-IS", "-c", _WATCH, said, log]
    told: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": terminal}
    _watches.append(subprocess.Popen(command, **told, start_new_session=True))
    sys.stderr.flush()
    os.dup2(handle, 2)
    os.close(handle)
    sys.stderr = terminal
    atexit.register(_go_in_peace)


_watches: list[subprocess.Popen] = []  # one where this process is one of a job's


def _go_in_peace() -> None:
    while _watches:
        with contextlib.suppress(OSError):
            _watches.pop().communicate(b"all is well")


def lost(words: list[str], detail: str) -> str:
    """The line that is said when a job loses a process."""
    return (
        f"dreamjax: a process of this job was lost or never came ({detail}); "
        f"resume with: dreamjax {shlex.join(words)}"
    )


def leave(status: int) -> None:
    """End this process of a job at once; a usual exit waits minutes for those that are lost."""
    _go_in_peace()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def in_a_job() -> bool:
    """Whether this process is one of several."""
    return bool(_watches)


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Go on only when every process of the job has come this far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def processes() -> Processes:
    """The processes of this job."""
    return Processes(jax.process_index(), jax.process_count(), wait_for_all)


def from_first(array: jax.Array) -> jax.Array:
    """`array` as the first process of a job has it."""
    return multihost_utils.broadcast_one_to_all(array) if in_a_job() else array


def all_gather(own: np.ndarray, count: int) -> np.ndarray:
    """The rows [count, ...] of all processes, of which `Processes.own` gave this one `own`."""
    if jax.process_count() == 1:
        return own
    whole = np.zeros((count, *own.shape[1:]), own.dtype)
    whole[jax.process_index() :: jax.process_count()] = own
    found = multihost_utils.process_allgather(whole.view(np.uint8))  # exact, whatever the dtype
    return np.bitwise_or.reduce(found, axis=0).view(own.dtype)


def check_agreement(directory: Path, facts: str) -> None:
    """See that all processes have the same `facts` and `directory`; ValueError, in all, if not."""
    if jax.process_count() == 1:
        return
    word = str(multihost_utils.broadcast_one_to_all(np.uint32(time.time_ns() % 2**32)))
    path = directory / ".job"
    if is_first():
        path.write_text(word)
    wait_for_all("a word is left")
    seen = path.exists() and path.read_text() == word
    mine = np.array([seen, zlib.crc32(facts.encode())], np.uint32)
    everywhere = multihost_utils.process_allgather(mine)
    if is_first():
        path.unlink(missing_ok=True)
    faults = (
        f"do not see the same files; put {directory} where all hosts see it",
        f"were not started alike; start them with the same words, here: {facts}",
    )
    for fault, column in zip(faults, everywhere.T, strict=True):
        odd = np.flatnonzero(column != column[0])
        if len(odd):
            raise ValueError(f"processes 0 and {odd[0]} of this job {fault}")
