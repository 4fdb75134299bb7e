"""Where else metrics go: to TensorBoard, to Weights & Biases, or to a function of your own."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

Writer = Callable[[str, int, Mapping[str, float]], None]  # is given phase, step and metrics


def opened(name: str, directory: Path | None) -> Writer:
    """The writer of that name, which keeps its files in `directory`, or else in the current one.

    Raises:
      ValueError: there is none of that name, or it does not start.
      ImportError: its package is missing.
    """
    if name not in WRITERS:
        raise ValueError(f"no log is called {name!r}; choose one of {', '.join(WRITERS)}")
    try:
        return WRITERS[name](directory or Path())
    except ImportError as error:
        raise ImportError(f"{error}: pip install dreamjax[{name}]") from None


def _tensorboard(directory: Path) -> Writer:
    """Event files in `directory`/tensorboard."""
    from tensorboardX import SummaryWriter

    events = SummaryWriter(str(directory / "tensorboard"), flush_secs=10)

    def write(phase: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            events.add_scalar(f"{phase}/{name}", value, step)

    return write


def _wandb(directory: Path) -> Writer:
    """A run in `directory`/wandb, which `wandb sync` sends; WANDB_MODE=online sends it at once."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    name, mode = directory.resolve().name, os.environ.get("WANDB_MODE", "offline")
    how = {"dir": str(directory), "reinit": "finish_previous", "settings": {"console": "off"}}
    try:
        run = wandb.init(project="dreamjax", name=name, mode=mode, **how)
    except wandb.Error as error:
        raise ValueError(f"wandb does not start ({error}); set WANDB_MODE=offline") from None
    run.define_metric("*", step_metric="step")  # each phase counts its own
    return lambda phase, step, metrics: run.log(
        {f"{phase}/{name}": value for name, value in metrics.items()} | {"step": step}
    )


WRITERS = {"tensorboard": _tensorboard, "wandb": _wandb}
