"""Timing that means something: compile apart, wait for the device, median of repeats."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Row = dict[str, Any]
_SHAPES = ((1024, 578, 2048), (1024, 512, 961), (4096, 1024, 2048))  # of matrix products
_ACCELERATOR_SHAPES = ((8192, 8192, 8192), (65_536, 578, 2048), (65_536, 512, 961))


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds to compile, median seconds of a run, and bytes it needs at its peak.

    `spread` is that of the runs as a share of their median, see `spread_of`.
    """

    compile: float
    run: float
    memory: int
    spread: float = 0.0


def timed(function: Callable, *args: Any, repeats: int = 3) -> Timing:
    """Compile `function` for `args`, then run it `repeats` times."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*args))
    taken = samples(lambda: compiled(*args), repeats)
    return Timing(compile_seconds, statistics.median(taken), peak(compiled), spread_of(taken))


def peak(compiled: jax.stages.Compiled) -> int:
    """Bytes of a program's arguments, results and everything between, as compiled."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return held + sizes.temp_size_in_bytes


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Median seconds of `run()`, whatever device it waits for."""
    return statistics.median(samples(run, repeats))


def samples(run: Callable[[], Any], repeats: int = 3) -> list[float]:
    """Seconds of each of some runs."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return taken


def spread_of(taken: list[float]) -> float:
    """Half the distance between the shortest and the longest run, as a share of the median."""
    return (max(taken) - min(taken)) / 2 / statistics.median(taken)


@functools.cache
def matrix_rate(dtype: jnp.dtype, budget: float = 0.5) -> float:
    """Best FLOP/s of a product of two `dtype` matrices with a float32 result, over some shapes.

    Measured once a process: every share of one run is of the same ceiling.
    """
    on_cpu = jax.default_backend() == "cpu"
    return max(
        _rate(shape, dtype, budget) for shape in (_SHAPES if on_cpu else _ACCELERATOR_SHAPES)
    )


def _rate(shape: tuple[int, int, int], dtype: jnp.dtype, budget: float) -> float:
    """FLOP/s of products in a chain inside one compiled loop, as the dream's are."""
    m, k, n = shape
    a, b = jnp.zeros((m, k), dtype), jnp.zeros((k, n), dtype)

    def chain(a, b, count):
        def product(_, a):
            return jnp.dot(a, b, preferred_element_type=jnp.float32)[:, :k].astype(dtype)

        return jax.lax.fori_loop(0, count, product, a)

    once = timed(chain, a, b, jnp.int32(4)).run / 4
    count = max(4, int(budget / once))
    return 2 * m * k * n * count / timed(chain, a, b, jnp.int32(count)).run


def device_name() -> str:
    """The device, in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else "cpu"


def row(
    name: str,
    lanes: int,
    value: float,
    unit: str,
    share: float | None = None,
    device: str = "",
    spread: float | None = None,
) -> Row:
    """One line of a benchmark's table and JSON; None where a share or a spread is not known."""
    return {
        "name": name,
        "lanes": lanes,
        "value": value,
        "unit": unit,
        "share_of_ceiling": share,
        "spread": spread,
        "device": device or device_name(),
    }
