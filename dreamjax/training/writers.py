"""Other people's viewers of metrics: TensorBoard, and Weights & Biases."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType


class TensorBoard:
    """Event files that TensorBoard reads, in a run's `directory`; ImportError: no tensorboardX."""

    def __init__(self, directory: Path):
        package = _package("tensorboardX", "tensorboard")
        self.events = package.SummaryWriter(str(directory / "tensorboard"))

    def write(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """As `Writer`."""
        for name, value in metrics.items():
            self.events.add_scalar(f"{phase}/{name}", value, step)
        self.events.flush()


class WandB:
    """A run of the project "dreamjax", named as its `directory`; ImportError: no wandb.

    Wandb's own variables, such as WANDB_MODE, set the rest.
    """

    def __init__(self, directory: Path):
        package = _package("wandb", "wandb")
        self._run = package.init(project="dreamjax", name=directory.name, dir=str(directory))

    def write(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """As `Writer`; each phase counts its own steps."""
        told = {f"{phase}/{name}": value for name, value in metrics.items()}
        self._run.log({**told, f"{phase}/step": step})


WRITERS = {"tensorboard": TensorBoard, "wandb": WandB}


def _package(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"--log {extra} needs {name} ({error}): pip install 'dreamjax[{extra}]'"
        ) from None
