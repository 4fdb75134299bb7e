"""What programs would take on accelerators that are not here: foretold, not measured.

python -m benchmarks.roofline

A program is compiled for this machine's CPU, and what its optimised text does is counted: floating
point operations of matrix products, bytes that its instructions read and write, and instructions,
each of which is one kernel on a GPU. A loop counts as often as it runs, but the rounds of random
bits, which a GPU makes in one kernel. The time is the longer of operations at the peak rate and
bytes at the peak bandwidth, plus a launch for each kernel. The peaks are the makers'. What a launch
takes was measured once, on an H200; TPUs run a program without launches, so there it is a floor.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import agent
from dreamjax.agent import BATCH, GAMES
from dreamjax.controller import population
from dreamjax.controller.model import Controller
from dreamjax.controller.policy_gradient import Updates
from dreamjax.controller.ppo import LearnConfig
from dreamjax.dream.world import World
from dreamjax.memory import latents
from dreamjax.memory import training as memory_training
from dreamjax.memory.training import MemoryConfig
from dreamjax.task import FRAME_SHAPE, Task
from dreamjax.tasks import TAKE_COVER
from dreamjax.vision import training as vision_training
from dreamjax.vision.model import VAE
from dreamjax.vision.training import VisionConfig

from .training_speed import random_latents
from .world import stand_in

MEMBERS = 64


@dataclasses.dataclass(frozen=True)
class Device:
    """Peaks of an accelerator as its maker publishes them.

    Attributes:
      flops: FLOP/s of dense bfloat16 products.
      bandwidth: bytes/s of its memory.
      launch: seconds between two kernels that wait for each other.
    """

    flops: float
    bandwidth: float
    launch: float


LAUNCH = 0.9e-6  # so that a dream step of 1,024 lanes takes the 43 us that it took on an H200
ROUNDS = 5  # of a loop over random bits, which carries two schedules u32[4]
SMALLEST = 1024  # bytes; copies of less are those of a loop's counters and keys, no kernels

DEVICES = {
    "H100 SXM": Device(989e12, 3.35e12, LAUNCH),
    "H200": Device(989e12, 4.8e12, LAUNCH),
    "TPU v5e": Device(197e12, 0.82e12, 0.0),
    "TPU v6e": Device(918e12, 1.64e12, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program does: FLOPs of products, bytes moved, kernels launched."""

    flops: float = 0.0
    bytes: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def times(self, count: float) -> "Work":
        """The same work, `count` times."""
        return Work(*(count * part for part in self._parts()))

    def seconds(self, device: Device) -> float:
        """The least time that it takes on a device."""
        arithmetic, traffic = self.flops / device.flops, self.bytes / device.bandwidth
        return max(arithmetic, traffic) + self.kernels * device.launch

    def bound(self, device: Device) -> str:
        """What most of that time goes to."""
        parts = {
            "arithmetic": self.flops / device.flops,
            "memory": self.bytes / device.bandwidth,
            "launches": self.kernels * device.launch,
        }
        return max(parts, key=parts.get)

    def _parts(self) -> tuple[float, float, float]:
        return self.flops, self.bytes, self.kernels


_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_SIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(_SIZES)})\[([\d,]*)\]")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    kind: str
    rest: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        inside = self.rest.split("), ")[0]
        return re.findall(r"%([\w.\-]+)", inside)

    def called(self, role: str) -> str | None:
        """The computation that the instruction names as its body, its calls, ..."""
        found = re.search(rf"{role}=%?([\w.\-]+)", self.rest)
        return found and found[1]


def _bytes(shape: str) -> int:
    return sum(_SIZES[kind] * _count(sides) for kind, sides in _ARRAY.findall(shape))


def _count(sides: str) -> int:
    return prod(map(int, filter(None, sides.split(","))))


class Program:
    """An optimised program's text, as `compiled.as_text()` gives it."""

    def __init__(self, text: str):
        self._bodies, self._entry = {}, ""
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head:
                body = self._bodies.setdefault(head[1], {})
                self._entry = head[1] if line.startswith("ENTRY") else self._entry
            elif found := _LINE.match(line):
                root, name, *parts = found.groups()
                body[name] = _Instruction(name, *parts, bool(root))

    def work(self) -> Work:
        """Everything the program does."""
        return self._work(self._entry)

    def _work(self, name: str) -> Work:
        body = self._bodies[name]
        return sum((self._of(one, body) for one in body.values()), Work())

    def _of(self, one: _Instruction, body: dict[str, _Instruction]) -> Work:
        if one.kind in _FREE:
            return Work()
        if one.kind == "while":
            found = re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)
            count = int(found[1]) if found else 1
            work = self._work(one.called("body")).times(count)
            draws = count == ROUNDS and one.shape.count("u32[4]") == 2
            return dataclasses.replace(work, kernels=1) if draws else work
        if one.kind == "call":
            return self._work(one.called("to_apply"))
        inner = self._bodies.get(one.called("calls"), {})
        flops = self._flops(one, body) + sum(self._flops(x, inner) for x in inner.values())
        small = one.kind == "copy" and _bytes(one.shape) < SMALLEST
        return Work(flops, self._traffic(one, body, inner), 0 if small else 1)

    @staticmethod
    def _flops(one: _Instruction, body: dict[str, _Instruction]) -> float:
        if one.kind != "dot":
            return 0.0
        left = _ARRAY.search(body[one.operands[0]].shape)[2].split(",")
        over = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)[1]
        depth = prod(int(left[int(axis)]) for axis in filter(None, over.split(",")))
        return 2.0 * depth * sum(_count(sides) for _, sides in _ARRAY.findall(one.shape))

    def _traffic(self, one, body, inner) -> float:
        """Bytes read and written; of what is sliced or updated in place the slice alone."""
        if one.kind == "dynamic-update-slice":
            return 2.0 * _bytes(body[one.operands[1]].shape)
        if one.kind in ("dynamic-slice", "gather", "slice"):
            return 2.0 * _bytes(one.shape)
        read = [_bytes(body[name].shape) for name in one.operands if name in body]
        written = _bytes(one.shape)
        for inside in inner.values():
            if inside.kind == "parameter":
                users = [x for x in inner.values() if inside.name in x.operands]
                first = [x for x in users if x.operands[0] == inside.name]
                if users and len(first) == len(users):
                    place = int(inside.rest.split(")")[0])
                    read[place] = self._of_slices(first, read[place], inner)
            if inside.kind == "dynamic-update-slice" and inside.shape in one.shape:
                written += _bytes(inner[inside.operands[1]].shape) - _bytes(inside.shape)
        return float(sum(read) + max(written, 0))

    @staticmethod
    def _of_slices(users: list[_Instruction], whole: int, inner) -> float:
        """Bytes read of an array all of whose uses are slices of it, or updates in its place."""
        total = 0
        for user in users:
            if user.kind in ("dynamic-slice", "gather", "slice"):
                total += _bytes(user.shape)
            elif user.kind != "dynamic-update-slice":
                return whole
        return min(total, whole)


Call = functools.partial  # of a jitted function


def compiled(call: Call) -> jax.stages.Compiled:
    """The program of a call, compiled for this machine and not run."""
    return call.func.lower(*call.args, **call.keywords).compile()


def counted(call: Call) -> Work:
    """The work of a call."""
    return Program(compiled(call).as_text()).work()


def dream_step(world: World, lanes: int, members: int = MEMBERS) -> Call:
    """One step of a population's dreams."""
    env, controller = world.env(), world.controller()
    params, key = world.params(1.0, jnp.inf, jnp.dtype(jnp.bfloat16)), jax.random.key(0)
    rollouts = lanes // members
    weights = jnp.zeros((members, controller.num_params))
    begun = functools.partial(population._start, key, env, params, weights, rollouts)
    state, keys = jax.eval_shape(begun, jnp.arange(lanes)), jax.random.split(key, rollouts)
    step = functools.partial(population._step, env, params, controller, keys)
    return Call(jax.jit(step, donate_argnums=1), jnp.int32(0), state)


def vision_update(task: Task, config: VisionConfig) -> Call:
    """One update of V."""
    begun = functools.partial(vision_training.initial_state, task.latent_size)
    state = jax.eval_shape(begun, jax.random.key(0))
    frames = np.zeros((1, config.batch_size, *FRAME_SHAPE), np.uint8)
    fixed = {"config": config, "task": task, "dtype": jnp.dtype(jnp.bfloat16)}
    return Call(vision_training.updates, state, jax.random.key(1), 0, frames, **fixed)


def encoding(vision: VAE) -> Call:
    """One call of V on recorded frames."""
    return Call(latents._encode, vision, np.zeros((1, latents._CALL, *FRAME_SHAPE), np.uint8))


def memory_update(task: Task, config: MemoryConfig) -> tuple[Call, int]:
    """One update of M at its full batch, and its frames."""
    config = dataclasses.replace(config, steps=1, steps_per_call=1, bfloat16=True)
    trainer = memory_training.Trainer(task, random_latents(config, task), config, 0)
    layout = trainer.layout
    plan = trainer._plan(range(1))
    given = trainer.initial(), trainer.frames, plan, trainer._key_noise
    fixed = {"config": config, "mesh": trainer.mesh}
    return Call(memory_training._updates, *given, **fixed), layout.lanes * layout.length


def learn_update(world: World, hidden: int, config: LearnConfig) -> Call:
    """One update of `learn`: its dreams, then its passes over them."""
    params = world.params(dtype=jnp.dtype(jnp.bfloat16))
    run = Updates(world.env(), world.controller(hidden), config, 0)
    return Call(run.update, run.initial(params), jnp.int32(0), params)


def awake_step(world: World, controller: Controller) -> Call:
    """V, M and C on a batch of frames of the real game."""
    slots, seeds = np.arange(BATCH), np.zeros(BATCH, np.uint32)
    frames, age = np.zeros((BATCH, *FRAME_SHAPE), np.uint8), np.zeros(BATCH, np.int32)
    arrays, form = jax.tree.flatten((world.vision, world.memory))
    carry = world.memory.initial_carry((GAMES + 1,))
    given = jax.random.key(0), jnp.zeros(controller.num_params), arrays, carry
    return Call(agent._act, controller, form, *given, slots, frames, seeds, age)


def programs(lane_counts: tuple[int, ...] = (1024, 16_384, 65_536)) -> Iterator[tuple]:
    """Name, work of a call, and units that a call makes, of each program."""
    world = stand_in()
    for lanes in lane_counts:
        yield f"dream, {lanes:,} lanes", counted(dream_step(world, lanes)), lanes, "steps"
    update = vision_update(TAKE_COVER, VisionConfig())
    yield "V training, batch 100", counted(update), 100, "frames"
    update, frames = memory_update(TAKE_COVER, MemoryConfig())
    yield "M training, batch 100", counted(update), frames, "frames"


def main() -> None:
    """Print the foretold rates as a table."""
    print("foretold from published peaks, not measured")
    titles = "".join(f"{name:>24}" for name in DEVICES)
    print(f"{'':<24}{'MFLOP':>9}{'MB':>8}{'kernels':>9}{titles}")
    for name, work, units, unit in programs():
        cells = ""
        for device in DEVICES.values():
            rate = units / work.seconds(device)
            cells += f"{rate / 1e6:>10.2f} M/s {work.bound(device):<10}"
        counts = f"{work.flops / 1e6:>9.0f}{work.bytes / 1e6:>8.0f}{work.kernels:>9.0f}"
        print(f"{name:<24}{counts}{cells}  {unit}")


if __name__ == "__main__":
    main()
