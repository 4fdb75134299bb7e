"""The `dreamjax` command: one subcommand a phase, and `run` for all of them.

`--debug` anywhere shows where an error came from.
"""

import dataclasses
import importlib
import json
import sys
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union

import jax
import tyro
from tyro.conf import Fixed, Positional, Suppress, arg, subcommand
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from dreamjax.controller.model import controller_for
from dreamjax.dream.registration import find_task
from dreamjax.dream.world import blank_models, first_heads
from dreamjax.game.env import games
from dreamjax.memory.kinds import find_kind
from dreamjax.play import command as page
from dreamjax.run import doctor, running
from dreamjax.run.found import known
from dreamjax.run.ledger import foretold
from dreamjax.run.phases import PHASES
from dreamjax.run.presets import DEFAULT, PRESETS
from dreamjax.run.released import import_released
from dreamjax.run.rounds import iterate
from dreamjax.run.settings import Run, RunConfig
from dreamjax.task import Task
from dreamjax.tasks import TASKS
from dreamjax.training import devices
from dreamjax.training.checkpoint import versions
from dreamjax.training.files import writable
from dreamjax.training.logbook import Logbook
from dreamjax.training.settings import check_seed
from dreamjax.training.writers import WRITERS

WHOLE = {  # commands that do all phases
    "run": "Do all phases in one run directory; continue where it stopped.",
    "iterate": "Do a run, then rounds: C plays, M trains on that play, C is trained again.",
}
Device = Literal[devices.CHOICES]


def parsed(words: list[str], preset: str | None = None) -> Any:
    """The subcommand that a command line's words ask for, filled in; `preset` has the defaults.

    Raises:
      ValueError: there is no such preset.
      SystemExit: the parser has said what is wrong with the words, or what help they asked for.
    """
    preset = DEFAULT if preset is None else preset
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    commands = [Info, Bench, Export, ImportReleased, Doctor, Play]
    told = {name: f"{phase.make.__doc__}".partition("\n")[0] for name, phase in PHASES.items()}
    for name, about in (WHOLE | told).items():
        default = Command(tyro.MISSING, tyro.MISSING, PRESETS[preset], preset, name=name)
        commands.append(Annotated[Command, subcommand(name, default=default, description=about)])
    sections = filter(dataclasses.is_dataclass, vars(PRESETS[preset]).values())
    specs, registry = {type(x): _unbuilt(type(x), x) for x in sections}, ConstructorRegistry()
    registry.struct_rule(lambda asked: specs.get(asked.type))
    how: dict[str, Any] = {"prog": "dreamjax", "description": __doc__, "registry": registry}
    return tyro.cli(Union[tuple(commands)], args=words, **how)  # noqa: UP007


def _unbuilt(section: type, default: Any) -> StructConstructorSpec:
    """A section of the settings, built once tyro has returned: it would frame what that refuses."""
    spec: Any = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(section, default, False))
    later = wraps(section)(lambda **values: partial(section, **values))
    return dataclasses.replace(spec, instantiate=later)


@dataclasses.dataclass
class Command:
    """One phase of a run, or all of them."""

    task: Positional[str]  # a game's name, gymnasium:ID or module:ID, or your own as module:TASK
    run_dir: Path  # everything is written here
    config: Annotated[RunConfig, arg(name="")]
    preset: Literal[tuple(PRESETS)] = DEFAULT  # sizes; the defaults shown here are this one's
    world: str | None = None  # a shipped world, a run or a folder, instead of training V and M
    observation: str | None = None  # which picture of the game, or "render"; None: finds it
    seed: int = 0  # of all that is random
    device: Device = "auto"  # what to compute on
    distributed: bool = False  # join the other processes of a SLURM job or a TPU pod
    log: tuple[Literal[tuple(WRITERS)], ...] = ()  # where metrics go, beside metrics.jsonl
    dry_run: bool = False  # do nothing; print what would be done, the memory and the hours
    name: Suppress[Fixed[str]] = ""  # which of the commands

    resumes: ClassVar[bool] = True  # where it was stopped

    def __call__(self) -> None:
        sections = {name: x() for name, x in vars(self.config).items() if isinstance(x, partial)}
        config, name = dataclasses.replace(self.config, **sections), self.name
        check_seed(self.seed)
        if self.world is not None and name == "train-vision":
            remedy = "leave out --world, or --vision.start-from it"
            raise ValueError(f"{name}: {self.world} has its V; {remedy}")
        task = find_task(self.task, self.observation)
        if self.dry_run:
            run = Run(self.run_dir, task, self.seed, config, Logbook())
            _plan(known(run, self.world), name, self.world)
            return
        directory = writable(self.run_dir)
        log = Logbook(directory, writers=self.log) if devices.is_first() else Logbook(quiet=True)
        run = Run(directory, task, self.seed, config, log)
        if name == "iterate":
            iterate(run, self.world)
        else:
            running.run_phases(run, None if name in WHOLE else (name,), self.world)


def _plan(run: Run, name: str, world: str | None) -> None:
    """Tell what the phases will do in the run, and foretell what those take that are left."""
    if name in ("iterate", "fidelity", "calibrate"):
        raise ValueError(f"{name} cannot be planned; leave out --dry-run")
    asked = running.phases_left(run, world) if name in WHOLE else (name,)
    left = foretold(run, [PHASES[phase] for phase in asked], world)
    if left:
        _benchmarks("plan").show(run.task, run.config, left, run.seed)


@dataclasses.dataclass
class Info:
    """Print versions, devices, the games found, and the sizes of V, M and C."""

    json: bool = False  # as JSON

    def __call__(self) -> None:
        first = {name: tuple(first_heads(task)) for name, task in TASKS.items()}
        found = {
            "versions": versions(),
            "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
            "games": games(),
            "parameters": {name: _sizes(task) for name, task in TASKS.items()},
            "parameters, M as in the paper": {x: _sizes(TASKS[x], first[x]) for x in TASKS},
        }
        if self.json:
            print(json.dumps(found, indent=2))
            return
        for section, values in found.items():
            print(section)
            rows = values.items() if isinstance(values, dict) else enumerate(values)
            for key, value in rows:
                print(f"  {key}: {value}")


def _sizes(task: Task, heads: tuple[str, ...] | None = None) -> dict[str, int]:
    """Numbers in V, M and C of a task; `heads` is what M predicts, if not all that it may."""
    models = blank_models(task, heads=heads)
    vision, memory = (sum(leaf.size for leaf in jax.tree.leaves(model)) for model in models)
    return {"V": vision, "M": memory, "C": controller_for(task).num_params}


@dataclasses.dataclass(kw_only=True)
class _OfOnesOwn:
    task: str | None = None  # your own game, as module:TASK
    kind: str | None = None  # your own form of M, as module:Class

    def know(self) -> None:
        if self.task is not None:
            find_task(self.task)
        if self.kind is not None:
            find_kind(self.kind)


@dataclasses.dataclass
class Export(_OfOnesOwn):
    """Export a run's world and its C as a folder to share, in half precision."""

    run_dir: Path  # the run
    target: Path  # the folder
    stablehlo: bool = False  # with reset and step as programs that need jax alone

    def __call__(self) -> None:
        self.know()
        running.export(self.run_dir, self.target, programs=self.stablehlo)
        print(f"{self.target} is the world; it can be named wherever a world is")


@dataclasses.dataclass
class ImportReleased:
    """Import the authors' V, M and C from files of hardmaru/WorldModelsExperiments."""

    source: Positional[Path]  # its folder doomrnn, or carracing
    run_dir: Path  # where world and C go; evaluate, play and fidelity take it from there
    task: str = "take-cover"  # carracing's is car-racing-paper

    def __call__(self) -> None:
        task = find_task(self.task)
        import_released(self.source, self.run_dir, task)
        print(f"{self.run_dir}: try dreamjax evaluate {task.name} --run-dir {self.run_dir}")


@dataclasses.dataclass
class Doctor(_OfOnesOwn):
    """Show what a run has, what is damaged, and what each command would do next."""

    run_dir: Positional[Path]  # the run

    def __call__(self) -> None:
        self.know()
        found = doctor.examine(self.run_dir)
        print("\n".join(doctor.lines(found)))
        damaged = sum(len(finding.damaged) for finding in found)
        if damaged:
            raise ValueError(f"{self.run_dir} has {damaged} damaged parts; see above")


@dataclasses.dataclass
class Play(_OfOnesOwn):
    """Play a dream in the browser, or write its page as a folder."""

    world: Positional[str]  # a shipped world, a run or an exported folder
    out: Path | None = None  # write the page into this folder and end
    port: int = 8000  # port on this machine; 0: any free one
    seed: int = 0  # of the real game that C plays for the page

    def __call__(self) -> None:
        check_seed(self.seed)
        self.know()
        if self.out is not None:
            written = page.write(self.world, self.out, self.seed, recorded=True)
            print(f"{written} is the page; any static host can show it")
            return
        own = [f"--{name}={x}" for name in ("task", "kind") if (x := getattr(self, name))]
        page.show(self.world, self.port, self.seed, own)


@dataclasses.dataclass
class Bench:
    """Measure speed here: dream steps/s, a generation, training, the game, other libraries."""

    quick: bool = False  # only the most important rows, two minutes
    seconds: float | None = None  # start nothing new after so many seconds
    json: Path | None = None  # write the rows to this file
    plot: Path | None = None  # plot steps/s against rollouts to this file
    against: Path | None = None  # rows of an earlier run to compare with
    world: str | None = None  # run directory of a trained world; None is the shipped one
    lanes: tuple[int, ...] = ()  # numbers of rollouts; none: a range that fits
    device: Device = "auto"

    def __call__(self) -> None:
        told = self.json, self.plot, self.seconds, self.against
        _benchmarks("suite").run(self.quick, self.world, self.lanes, *told)


def _benchmarks(module: str) -> Any:
    """Of the benchmarks, which lie inside the package in a wheel and beside it in a checkout."""
    package, root = Path(__file__).parents[1:3]
    if (package / "benchmarks").is_dir():
        return importlib.import_module(f"dreamjax.benchmarks.{module}")
    sys.path.insert(0, str(root))  # before a stranger's package of that name
    return importlib.import_module(f"benchmarks.{module}")
