"""What the device at hand is good at."""

from pathlib import Path

import jax
import jax.numpy as jnp

_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # as /proc/cpuinfo names them
_FIRST_GPU = 8.0  # compute capability with bfloat16 tensor cores


def product_dtype(bfloat16: bool | None = None) -> jnp.dtype:
    """The dtype of matrix products' operands; sums are float32 in any case.

    Args:
      bfloat16: the caller's wish; None takes bfloat16 where the device multiplies it faster.
    """
    wanted = multiplies_bfloat16() if bfloat16 is None else bfloat16
    return jnp.dtype(jnp.bfloat16 if wanted else jnp.float32)


def multiplies_bfloat16() -> bool:
    """Whether the default device has instructions for products of bfloat16."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return bool(_CPU_FLAGS & _cpu_flags())
    capability = getattr(device, "compute_capability", None)
    return capability is None or float(capability) >= _FIRST_GPU


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = (line for line in lines if line.startswith(("flags", "Features")))
    return set(next(named, "").split())


def use(device: str, distributed: bool = False) -> None:
    """Choose the device of everything that follows; call it before jax has looked for devices.

    Args:
      device: cpu, gpu, tpu, or auto for the best there is.
      distributed: join the other processes of a cluster first; jax finds them by the scheduler's
        environment (SLURM, Open MPI, TPU pods) or by `JAX_COORDINATOR_ADDRESS` and friends.

    Raises:
      ValueError: the device is not there. Nothing falls back in silence.
    """
    if device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device, device))
    if distributed:
        jax.distributed.initialize()
    try:
        jax.devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"there is no {device} here ({reason}); use --device auto, or install dreamjax with "
            "the extra cuda12, cuda13 or tpu"
        ) from None


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return jax.process_index() == 0
