"""The game that a run was made with, by value: another one, or one edited since, is refused."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamjax.game import rollouts
from dreamjax.game.collecting import SHAPES
from dreamjax.run.settings import CONTROLLERS, Run
from dreamjax.task import by_value, differs
from dreamjax.training.checkpoint import CheckpointError, Store
from dreamjax.training.files import write_json

TASK = "task.json"  # the game by value, as each folder of the run was made with it
RECORDED = (*SHAPES, "step_reward", "reward_scale")  # fields of a game that shape a run


def check_game(run: Run) -> None:
    """Refuse a directory that holds another game, another variant of it, or one edited since.

    Raises:
      CheckpointError: names the difference and the remedy.
    """
    for part, profile in profiles(run.directory):
        if profile != run.task.profile:
            raise CheckpointError(
                f"{run.directory / part} is of the game {profile}, not of {run.task.name}'s "
                f"{run.task.profile}; choose another directory"
            )
    for part, game in _games(run).items():
        folder, known = run.directory / part, (name for name in game if hasattr(run.task, name))
        for name, new in by_value(run.task, known).items():
            if folder.exists() and differs(game[name], new):
                raise CheckpointError(
                    f"{folder} was made with {name} {game[name]!r} of {run.task.name}, which is "
                    f"now {new!r}; undo that, or use another run directory"
                )


def _games(run: Run) -> dict[str, dict[str, Any]]:
    """The game that each folder was made with, as far as is told."""
    try:
        found = json.loads((run.directory / TASK).read_text())
        return {folder: dict(game) for folder, game in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def note_game(run: Run, folder: str, fields: tuple[str, ...]) -> None:
    """Write down `fields` of the game that a folder is made with; a damaged file is kept aside."""
    path, games = run.directory / TASK, _games(run)
    if path.exists() and not games:
        path.rename(path.with_name(f"{TASK}.corrupt"))
        run.log.say(f"{path} is damaged; set aside as {TASK}.corrupt and written anew")
    game = by_value(run.task, fields)
    if games.get(folder) != game:
        write_json(path, games | {folder: game})


def profiles(directory: Path) -> Iterator[tuple[str, Any]]:
    """`(folder, profile of the game)` of everything in a run directory."""
    for part in ("rollouts", "played", "latents"):
        for path in rollouts.shard_paths(directory / part)[:1]:
            with contextlib.suppress(ValueError):
                yield part, rollouts.part(path, "profile")
    for part in ("vision", "memory", "world", *CONTROLLERS):
        store = Store(directory / part)
        if store.steps():
            yield part, store.meta()["profile"]
