"""The `dreamjax` command: one subcommand a phase, and `run` for all of them.

`--debug` anywhere shows where an error came from.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from dreamjax.dream.registration import find_task
from dreamjax.tasks import TASKS
from dreamjax.training import stopping
from dreamjax.training.settings import SettingError, check_seed

DEFAULT_PRESET = "quick"
DEVICES = ("auto", "cpu", "gpu", "tpu")
_HELP = {"-h", "--help"}
DEBUG = "--debug"  # anywhere on the command line: show where an error came from
FAULTS = (ValueError, ImportError, ArithmeticError, OSError, RuntimeError, MemoryError)

WHOLE = ("run", "iterate")  # commands that do all phases
MEASURING = ("fidelity", "calibrate")  # commands that compare dreams with games
ABOUT = {
    "run": "Do every phase into one run directory, from wherever it stopped.",
    "iterate": "Do a whole run, then in rounds: C plays, M learns from it, C learns anew.",
    "collect": "Record episodes of the real game.",
    "train-vision": "Train V, the VAE, on the recorded frames.",
    "encode": "Encode the recorded frames with V.",
    "train-memory": "Train M, the MDN-RNN, on the latents.",
    "evolve": "Evolve C in M's dream.",
    "learn": "Learn C in M's dream by policy gradient, which needs far fewer dreams.",
    "evaluate": "Play the real game awake; save the score table, the curves and the film.",
    "record": "Record the evolved agent at play; encode and train-memory then learn from it too.",
    "fidelity": "Compare the dream with the real game: survival, predictions, ranks.",
    "calibrate": "Give a world the temperature at which its dreams last as long as games.",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    words = [_at_home(word) for word in argv if word != DEBUG]
    said = f"\nstopped; resume with: dreamjax {shlex.join(words)}\n"
    with stopping.at_once(said):
        try:
            _choose_devices(words)
            command = _parse(words)
            stopping.by_interrupt()
            command()
            sys.stdout.flush()
        except KeyboardInterrupt:
            return _end(said, 130)
        except BrokenPipeError:  # whoever reads has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            works = next(iter(words), "") in ABOUT and _HELP.isdisjoint(words)
            return _end(said, 141) if works else 0
        except FAULTS as error:
            if DEBUG in argv:
                traceback.print_exc()
            return _end(f"{_line(error, words)}\n", 1)
    return 0


def _at_home(word: str) -> str:
    """A word whose ~ is the home, also where the shell leaves it: in --world=~/x."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return option + equals + os.path.expanduser(value)


def _devices_of_a_job() -> Any:
    """The module `devices` where this process is one of a job; else None, as before jax came up."""
    devices = sys.modules.get("dreamjax.training.devices")
    return devices if devices and devices.in_a_job() else None


def _end(said: str, status: int) -> int:
    """`status`, once `said` is."""
    sys.stderr.write(said)
    if devices := _devices_of_a_job():
        devices.leave(status)
    return status


def _line(error: BaseException, words: list[str]) -> str:
    """What went wrong, and what to do, in one line."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, MemoryError) or re.search("out of memory|RESOURCE_EXHAUSTED", text, re.I):
        text = f"out of memory ({text}); use fewer lanes, a smaller batch, population or world"
    elif "Too many open files" in text:
        text += "; use fewer --workers, or lift the limit: ulimit -n 4096"
    elif "Gloo" in text and (devices := _devices_of_a_job()):
        return devices.lost(words, text)
    return f"dreamjax: {text}"


def _choose_devices(words: list[str]) -> None:
    """Do what `--device` and `--distributed` say, before an import asks jax for its devices."""
    from dreamjax.training import devices

    name, distributed = next(iter(words), ""), "--distributed" in words
    if distributed and name in MEASURING:
        raise ValueError(f"{name} runs on one host; leave out --distributed")
    device = _value_of(words, "--device", "auto")
    if device not in DEVICES or not _HELP.isdisjoint(words):
        return  # the parser has something to say
    if distributed:
        devices.join(words)
    devices.use(device)


def _parse(argv: list[str]) -> Any:
    """The subcommand that `argv` asks for, filled in."""
    from dreamjax.run.presets import PRESETS

    preset = _value_of(argv, "--preset", DEFAULT_PRESET)
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    commands = (_phase_command(name, PRESETS, preset) for name in ABOUT)
    union = Union[Info, Bench, Export, ImportReleased, Doctor, Play, *commands]  # noqa: UP007
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(union, args=argv, prog="dreamjax", description=__doc__)
    except SystemExit as stop:
        fault = stop.__context__
        while fault is not None:  # a refused setting, which tyro reports at greater length
            if isinstance(fault, SettingError):
                raise fault from None
            fault = fault.__context__
        sys.stderr.write(said.getvalue())
        sys.stdout.flush()
        raise


def _value_of(argv: list[str], option: str, default: str) -> str:
    """The value of an option that is needed before the command line can be parsed."""
    found = re.findall(rf"\0{option}[=\0]([^\0]*)", "\0".join(["", *argv]))
    return [default, *found][-1]  # the last one counts, as for the parser


def _phase_command(name: str, presets: dict[str, Any], chosen: str) -> Any:
    """The subcommand `name` as an annotated dataclass whose defaults are the preset's."""
    from dreamjax.run.settings import RunConfig

    @dataclasses.dataclass
    class Command:
        task: Annotated[str, tyro.conf.Positional]  # a game's name, or your own as module:TASK
        run_dir: Path  # everything is written here
        config: Annotated[RunConfig, tyro.conf.arg(name="")]
        preset: Literal[tuple(presets)] = DEFAULT_PRESET
        world: str | None = None  # a shipped world's name, or a folder: dream it, train no other
        seed: int = 0
        device: Literal[DEVICES] = "auto"
        distributed: bool = False  # join the other processes of a SLURM job or a TPU pod
        dry_run: bool = False  # do nothing; tell what it would do, and foretell memory and hours

        def __call__(self) -> None:
            _run(self, name)

    default = Command(tyro.MISSING, tyro.MISSING, presets[chosen], chosen)
    return Annotated[Command, tyro.conf.subcommand(name, default=default, description=ABOUT[name])]


def _run(command: Any, name: str) -> None:
    from dreamjax.run.rounds import iterate
    from dreamjax.run.running import run_phases
    from dreamjax.run.settings import Run
    from dreamjax.training import devices
    from dreamjax.training.files import writable
    from dreamjax.training.logbook import Logbook

    check_seed(command.seed)
    world = command.world
    if world is not None and name == "train-vision":
        raise ValueError(f"{name}: {world} has its V; leave out --world, or --vision.start-from it")
    task = find_task(command.task)
    if command.dry_run:
        _plan(Run(command.run_dir, task, command.seed, command.config, Logbook()), name, world)
        return
    directory = writable(command.run_dir)
    log = Logbook(directory) if devices.is_first() else Logbook(quiet=True)
    run = Run(directory, task, command.seed, command.config, log)
    if name == "iterate":
        iterate(run, world)
    else:
        run_phases(run, None if name in WHOLE else (name,), world)


def _plan(run: Any, name: str, world: str | None) -> None:
    """Tell what the phases will do in the run, and foretell what those take that are left."""
    from dreamjax.run.ledger import foretold
    from dreamjax.run.phases import PHASES
    from dreamjax.run.running import phases_left

    if name in (*MEASURING, "iterate"):
        raise ValueError(f"{name} cannot be planned; leave out --dry-run")
    phases = phases_left(run, world) if name in WHOLE else (name,)
    left = foretold(run, [PHASES[phase] for phase in phases])
    if left:
        _benchmarks("plan").show(run.task, run.config, left, run.seed)


@dataclasses.dataclass
class Info:
    """Tell versions, devices, the games found, and the sizes of V, M and C."""

    json: bool = False  # as JSON

    def __call__(self) -> None:
        found = info()
        if self.json:
            print(json.dumps(found, indent=2))
            return
        for section, values in found.items():
            print(section)
            rows = values.items() if isinstance(values, dict) else enumerate(values)
            for key, value in rows:
                print(f"  {key}: {value}")


@dataclasses.dataclass(kw_only=True)
class _OfOnesOwn:
    task: str | None = None  # the game, if it is your own: module:TASK
    kind: str | None = None  # the form of M, if it is your own: module:Class

    def know(self) -> None:
        if self.task is not None:
            find_task(self.task)
        if self.kind is not None:
            from dreamjax.memory.kinds import find_kind

            find_kind(self.kind)


@dataclasses.dataclass
class Export(_OfOnesOwn):
    """Write a run's world, and its C, as a folder to hand on, in half precision."""

    run_dir: Path  # the run
    target: Path  # the folder

    def __call__(self) -> None:
        self.know()
        from dreamjax.run.running import export

        export(self.run_dir, self.target)


@dataclasses.dataclass
class ImportReleased:
    """Make a run of the authors' own V, M and C: the files of hardmaru/WorldModelsExperiments."""

    source: Annotated[Path, tyro.conf.Positional]  # its folder doomrnn, or carracing
    run_dir: Path  # where world and C go; evaluate, play and fidelity take it from there
    task: str = "take-cover"  # carracing's is car-racing-paper

    def __call__(self) -> None:
        task = find_task(self.task)
        from dreamjax.run.released import import_released

        import_released(self.source, self.run_dir, task)
        print(f"{self.run_dir}: try dreamjax evaluate {task.name} --run-dir {self.run_dir}")


@dataclasses.dataclass
class Doctor(_OfOnesOwn):
    """Tell what a run directory holds, what is damaged, and what each command would do next."""

    run_dir: Annotated[Path, tyro.conf.Positional]  # the run

    def __call__(self) -> None:
        self.know()
        from dreamjax.run import doctor

        found = doctor.examine(self.run_dir)
        print("\n".join(doctor.lines(found)))
        damaged = sum(len(finding.damaged) for finding in found)
        if damaged:
            raise ValueError(f"{self.run_dir} has {damaged} damaged parts; see above")


@dataclasses.dataclass
class Play(_OfOnesOwn):
    """Play a dream in the browser: show its page on this machine, or write it as a folder."""

    world: Annotated[str, tyro.conf.Positional]  # a shipped world, a run or an exported folder
    out: Path | None = None  # write the page here, for any static host, and end
    port: int = 8000  # of this machine's loopback address; 0 is any that is free
    seed: int = 0  # of the real game that C plays for the page

    def __call__(self) -> None:
        check_seed(self.seed)
        self.know()
        from dreamjax.play import command

        if self.out is not None:
            page = command.write(self.world, self.out, self.seed, recorded=True)
            print(f"{page} is the page; any static host can show it")
            return
        own = {"--task": self.task, "--kind": self.kind}
        words = [word for pair in own.items() if pair[1] is not None for word in pair]
        command.show(self.world, self.port, self.seed, words)


@dataclasses.dataclass
class Bench:
    """Measure this machine: dream steps/s, a generation, training, the real game, the rivals."""

    quick: bool = False  # only the most important rows, in about two minutes
    seconds: float | None = None  # begin nothing new after them; None is 120 if quick
    json: Path | None = None  # write the rows here
    plot: Path | None = None  # draw steps/s against lanes here
    against: Path | None = None  # rows of an earlier run, to which those of this one are compared
    world: str | None = None  # run directory of a trained world; None is the shipped one
    lanes: tuple[int, ...] = ()  # batch sizes; none is a range that fits
    device: Literal[DEVICES] = "auto"

    def __call__(self) -> None:
        told = self.json, self.plot, self.seconds, self.against
        _benchmarks("suite").run(self.quick, self.world, self.lanes, *told)


def _benchmarks(module: str):
    """Of the benchmarks, which lie beside the package in a checkout and inside it in a wheel."""
    root = Path(__file__).parents[1]
    if (root / "benchmarks").is_dir():
        return importlib.import_module(f"dreamjax.benchmarks.{module}")
    found = spec_from_file_location("benchmarks", root.parent / "benchmarks" / "__init__.py")
    sys.modules.setdefault("benchmarks", module_from_spec(found))
    return importlib.import_module(f"benchmarks.{module}")


def info() -> dict[str, Any]:
    """What `dreamjax info` tells."""
    import jax

    from dreamjax.dream.world import first_heads
    from dreamjax.game.env import games
    from dreamjax.training.checkpoint import versions

    return {
        "versions": versions(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "games": games(),
        "parameters": {name: parameter_counts(task) for name, task in TASKS.items()},
        "parameters, M as in the paper": {
            name: parameter_counts(task, tuple(first_heads(task))) for name, task in TASKS.items()
        },
    }


def parameter_counts(task: Any, heads: tuple[str, ...] | None = None) -> dict[str, int]:
    """Numbers in V, M and C of a task; `heads` is what M predicts, if not all that it may."""
    import jax

    from dreamjax.controller.model import controller_for
    from dreamjax.dream.world import blank_models

    models = blank_models(task, heads=heads)
    vision, memory = (sum(leaf.size for leaf in jax.tree.leaves(model)) for model in models)
    return {"V": vision, "M": memory, "C": controller_for(task).num_params}
