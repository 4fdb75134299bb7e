"""The `dreamjax` command: one subcommand a phase, and `run` for all of them."""

import contextlib
import dataclasses
import importlib
import io
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dreamjax.settings import SettingError
from dreamjax.tasks import CAR_RACING, TAKE_COVER, TASKS

PRESET_NAMES = ("smoke", "quick", "cpu", "paper")
DEFAULT_PRESET = "quick"
DEVICES = ("auto", "cpu", "gpu", "tpu")

ABOUT = {
    "run": "Do every phase into one run directory, from wherever it stopped.",
    "collect": "Record episodes of the real game.",
    "train-vision": "Train V, the VAE, on the recorded frames.",
    "encode": "Encode the recorded frames with V.",
    "train-memory": "Train M, the MDN-RNN, on the latents.",
    "evolve": "Evolve C in M's dream.",
    "learn": "Learn C in M's dream by policy gradient, which needs far fewer dreams.",
    "evaluate": "Play the real game awake; save the score table, the curves and the film.",
    "record": "Record the evolved agent at play; encode and train-memory then learn from it too.",
    "fidelity": "Compare the dream with the real game: survival, predictions, ranks.",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command = _parse(argv)
        command()
    except KeyboardInterrupt:
        print(f"\nstopped; resume with: dreamjax {shlex.join(argv)}", file=sys.stderr)
        return 130
    except (ValueError, ImportError, ArithmeticError, OSError, RuntimeError) as error:
        print(f"dreamjax: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str]) -> Any:
    """The subcommand that `argv` asks for, filled in."""
    from dreamjax.presets import PRESETS

    preset = _preset(argv)
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    commands = [_phase_command(name, PRESETS[preset], preset) for name in ABOUT]
    union = Info | Bench | Export
    for command in commands:
        union = union | command
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(union, args=argv, prog="dreamjax", description=__doc__)
    except SystemExit as stop:
        fault = _setting_error(stop)
        if fault is not None:
            raise fault from None
        sys.stderr.write(said.getvalue())
        raise


def _setting_error(error: BaseException | None) -> SettingError | None:
    """The refused setting behind an error, which tyro reports at greater length."""
    while error is not None and not isinstance(error, SettingError):
        error = error.__context__
    return error


def _preset(argv: list[str]) -> str:
    """The value of `--preset`, found before parsing because it supplies the defaults."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--preset":
            return following
        if word.startswith("--preset="):
            return word.removeprefix("--preset=")
    return DEFAULT_PRESET


def _phase_command(name: str, config: Any, preset: str) -> Any:
    """The subcommand `name` as an annotated dataclass whose defaults are the preset's."""
    from dreamjax.pipeline import RunConfig

    @dataclasses.dataclass
    class Command:
        task: Annotated[Literal[tuple(TASKS)], tyro.conf.Positional]
        run_dir: Path  # everything is written here
        config: Annotated[RunConfig, tyro.conf.arg(name="")]
        preset: Literal[PRESET_NAMES] = DEFAULT_PRESET
        world: str | None = None  # a shipped world's name, or a folder: dream it, train no other
        seed: int = 0
        device: Literal[DEVICES] = "auto"
        distributed: bool = False  # join the other processes of a SLURM job or a TPU pod

        def __call__(self) -> None:
            _run(self, name)

    Command.__doc__ = ABOUT[name]
    default = Command(tyro.MISSING, tyro.MISSING, config, preset)
    return Annotated[Command, tyro.conf.subcommand(name, default=default, description=ABOUT[name])]


def _run(command: Any, name: str) -> None:
    from dreamjax import devices
    from dreamjax.files import writable
    from dreamjax.logbook import Logbook
    from dreamjax.pipeline import AWAKE, Run, phases_of, run_phases
    from dreamjax.worlds import adopt_world

    if command.distributed and name != "evolve":
        raise ValueError(
            f"{name} runs on one host; only evolve takes --distributed: do the phases before it "
            "on one host, in a directory that all hosts share"
        )
    devices.use(command.device, command.distributed)
    directory = writable(command.run_dir)
    log = Logbook(directory) if devices.is_first() else Logbook(quiet=True)
    run = Run(directory, TASKS[command.task], command.seed, command.config, log)
    phases = phases_of(command.config) if name == "run" else (name,)
    if command.world is not None:
        if not set(phases) & set(AWAKE):
            raise ValueError(f"{name} comes before the world; leave out --world {command.world}")
        adopt_world(directory, command.world, run.task)
        phases = tuple(phase for phase in phases if phase in AWAKE)
    run_phases(run, phases)


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


@dataclasses.dataclass
class Export:
    """Write a run's world, and its C, as a folder to hand on, in half precision."""

    run_dir: Path  # the run
    target: Path  # the folder

    def __call__(self) -> None:
        from dreamjax.pipeline import export

        export(self.run_dir, self.target)


@dataclasses.dataclass
class Bench:
    """Measure this machine: dream steps/s, a generation, training, the real game, the rivals."""

    quick: bool = False  # only what fits in about a minute
    json: Path | None = None  # write the rows here
    plot: Path | None = None  # draw steps/s against lanes here
    world: str | None = None  # run directory of a trained world; None is the shipped one
    lanes: tuple[int, ...] = ()  # batch sizes; none is a range that fits
    device: Literal[DEVICES] = "auto"

    def __call__(self) -> None:
        from dreamjax import devices

        devices.use(self.device)
        _benchmarks().run(self.quick, self.world, self.lanes, self.json, self.plot)


def _benchmarks():
    """The benchmark suite, which lies beside the package in a checkout and inside it in a wheel."""
    root = Path(__file__).parent
    if (root.parent / "benchmarks" / "suite.py").exists():
        sys.path.insert(0, str(root.parent))
        return importlib.import_module("benchmarks.suite")
    return importlib.import_module("dreamjax.benchmarks.suite")


def info() -> dict[str, Any]:
    """What `dreamjax info` tells."""
    import jax

    from dreamjax.checkpoint import versions
    from dreamjax.real import games

    return {
        "versions": versions(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "games": games(),
        "parameters": {task.name: parameter_counts(task) for task in (TAKE_COVER, CAR_RACING)},
    }


def parameter_counts(task: Any) -> dict[str, int]:
    """Numbers in V, M and C of a task."""
    import jax

    from dreamjax.controller import controller_for
    from dreamjax.worlds import blank_models

    vision, memory = (
        sum(leaf.size for leaf in jax.tree.leaves(model)) for model in blank_models(task)
    )
    return {"V": vision, "M": memory, "C": controller_for(task).num_params}
