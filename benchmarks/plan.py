"""What a run would do and take, without doing it: foretold, not measured.

dreamjax run take-cover --run-dir DIR --preset paper --dry-run

Each phase's program is compiled for this machine, and its work counted, as `roofline` does. The
real game is played for one episode a worker, which tells the length of episodes, the frames/s of
recording and the disk that a frame takes. Here a program takes at least what its matrix products
do at the rate measured now; elsewhere at least what the makers' peaks allow one device.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from dreamjax.agent import BATCH
from dreamjax.dream.world import World, blank_models
from dreamjax.game.collecting import collect
from dreamjax.game.workers import default_workers
from dreamjax.memory.batches import Layout
from dreamjax.memory.kinds import find_kind
from dreamjax.memory.training import MemoryConfig
from dreamjax.run.phases import BASELINES
from dreamjax.run.settings import CONTROLLERS, RunConfig
from dreamjax.task import Task
from dreamjax.training.devices import product_dtype

from . import roofline, timing
from .roofline import Call, Device, Work

LATENT_BYTES = 4  # of a latent's mu and logvar, in half precision
RECORDING = ("collect", "record")
SOON, MORE = 5.0, 16  # seconds of a trial, and episodes a worker of a longer one


@dataclasses.dataclass(frozen=True)
class Game:
    """What a trial of the real game tells.

    Attributes:
      episodes: how many were played.
      length: their mean steps.
      rate: frames/s of recording them.
      frame: bytes that a recorded frame takes on disk.
    """

    episodes: int
    length: float
    rate: float
    frame: float


@dataclasses.dataclass(frozen=True)
class Part:
    """One phase.

    Attributes:
      phase: its name.
      does: what it does, in words.
      calls: how often its program runs.
      work: of one call.
      held: bytes of memory that the program and its data take.
      played: frames of the real game.
    """

    phase: str
    does: str
    calls: float = 0.0
    work: Work = Work()
    held: float = 0.0
    played: float = 0.0

    def hours(self, device: Device, game: Game) -> float:
        """At least; the game is played on this machine's cores."""
        return (self.calls * self.work.seconds(device) + self.played / game.rate) / 3600


def tried(task: Task, config: RunConfig, seed: int) -> Game:
    """Record an episode a worker, and more of them where that was soon done."""
    game = _recorded(task, config, seed, 1)
    soon = game.episodes * game.length / game.rate < SOON
    return _recorded(task, config, seed, MORE) if soon else game


def _recorded(task: Task, config: RunConfig, seed: int, each: int) -> Game:
    episodes = each * (config.workers or default_workers())
    how = {"policy": config.collect.policy, "min_steps": config.collect.min_steps}
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        found = collect(task, Path(directory), episodes, seed, workers=config.workers, **how)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(directory).glob("shard-*"))
    return Game(episodes, found.frames / episodes, found.frames / seconds, size / found.frames)


def parts(task: Task, config: RunConfig, phases: tuple[str, ...], game: Game) -> Iterator[Part]:
    """Every phase that is planned, as its program has been counted."""
    episodes = config.collect.at_most(game.length)
    frames = episodes * game.length
    memory = config.memory
    world = _world(task, memory)
    for phase in phases:
        if phase == "collect":
            does = f"{episodes:,} episodes, {_si(frames)} frames"
            yield Part(phase, does, played=frames)
        elif phase == "train-vision":
            call, batch = roofline.vision_update(task, config.vision), config.vision.batch_size
            yield _part(phase, _updates(config.vision.steps, batch), config.vision.steps, call)
        elif phase == "encode":
            call = roofline.encoding(world.vision)
            yield _part(phase, f"{_si(frames)} frames", frames / call.args[1].shape[1], call)
        elif phase == "train-memory":
            yield _memory(phase, task, memory, frames)
        elif phase in CONTROLLERS:
            yield _found(phase, world, config)
        else:
            yield _played(phase, world, config, game)


def _world(task: Task, config: MemoryConfig) -> World:
    """A world to dream in, and its V's shapes."""
    vision, _ = blank_models(task)
    memory = find_kind(config.kind)(task, rngs=nnx.Rngs(0), **config.variant())
    start = jnp.zeros((1, task.latent_size))
    return World(task, vision, memory, start, start)


def _memory(phase: str, task: Task, config: MemoryConfig, frames: float) -> Part:
    """M's phase; its program is counted for fewer frames than an update of all data reads."""
    call, counted = roofline.memory_update(task, config)
    layout = Layout.of(
        int(frames * (1 - config.held_out)), config.batch_size, config.sequence_length
    )
    batch = layout.lanes * layout.length
    part = _part(phase, _updates(config.steps, batch), config.steps * batch / counted, call)
    held = part.held * batch / counted + frames * task.latent_size * LATENT_BYTES
    return dataclasses.replace(part, held=held)


def _updates(steps: int, frames: int) -> str:
    return f"{steps:,} updates of {frames:,} frames"


def _found(phase: str, world: World, config: RunConfig) -> Part:
    """C's phase, its dreams as long as dreams can be."""
    if phase == "learn":
        call = roofline.learn_update(world, config.hidden(world.task, "learn"), config.learn)
        does = f"{_si(config.learn.steps)} dream steps in {config.learn.updates:,} updates"
        return _part(phase, does, config.learn.updates, call)
    settings, longest = config.evolve, world.task.max_steps
    lanes = settings.population * settings.rollouts
    call = roofline.dream_step(world, lanes, settings.population)
    judged = settings.generations // settings.eval_every * settings.eval_rollouts
    dreams = settings.generations * lanes + judged
    does = f"{dreams:,} dreams of at most {longest:,} steps"
    return _part(phase, does, dreams / lanes * longest, call)


def _played(phase: str, world: World, config: RunConfig, game: Game) -> Part:
    """A phase of V, M and C awake, whose games are as long as games can be."""
    blind = 0.0
    if phase == "evaluate":
        judged = config.evaluate
        beside = len(BASELINES) + len(judged.policies)
        episodes, blind = judged.episodes, beside * judged.baseline_episodes
    else:
        episodes = config.collect.at_most(world.task.max_steps)
    awake = episodes * world.task.max_steps
    hidden = config.hidden(world.task, config.controller)
    call = roofline.awake_step(world, world.controller(hidden))
    does = f"{episodes:,} games of at most {world.task.max_steps:,} steps"
    part = _part(phase, does, awake / BATCH, call)
    return dataclasses.replace(part, played=awake + blind * game.length)


def _part(phase: str, does: str, calls: float, call: Call) -> Part:
    program = roofline.compiled(call)
    work = roofline.Program(program.as_text()).work()
    return Part(phase, does, calls, work, timing.peak(program))


def here() -> Device:
    """This machine, at the rate of its matrix products."""
    return Device(timing.matrix_rate(product_dtype()), math.inf, 0.0)


def show(task: Task, config: RunConfig, phases: tuple[str, ...], seed: int) -> None:
    """Print the plan, a phase as soon as it is known."""
    game = tried(task, config, seed)
    print(f"foretold, not measured: {task.name}, on {timing.device_name()} and on others")
    print(
        f"{game.episodes} episodes tried: {game.length:.0f} steps, {game.rate:,.0f} frames/s "
        f"recorded, {game.frame / 1e3:.1f} kB a frame"
    )
    devices = {"here": here()} | roofline.DEVICES
    print(_row("phase", "what it does", "FLOP", "bytes", devices) + "  hours, at least")
    total = dict.fromkeys(devices, 0.0)
    for part in parts(task, config, phases, game):
        hours = {name: part.hours(device, game) for name, device in devices.items()}
        total = {name: total[name] + hours[name] for name in devices}
        held = part.played * game.frame if part.phase in RECORDING else part.held
        work = part.calls * part.work.flops
        print(_row(part.phase, part.does, _si(work), _si(held), _told(hours)), flush=True)
    print(_row("", "", "", "", _told(total)))
    print("bytes of a device's memory; of collect and record those of the files")


def _row(phase: str, does: str, flops: str, held: str, cells: Iterable[str]) -> str:
    return f"{phase:<14}{does:<44}{flops:>7}{held:>7}" + "".join(f"{cell:>10}" for cell in cells)


def _told(hours: dict[str, float]) -> list[str]:
    return [f"{value:.3f}" if value < 1 else f"{value:.1f}" for value in hours.values()]


def _si(count: float) -> str:
    """Three digits and the letter of a power of a thousand."""
    power = min(int(math.log10(count) // 3), 6) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {' kMGTPE'[power]}" if count else ""
