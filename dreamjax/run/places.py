"""How the files of a run name other runs and worlds, so that all of them can be moved."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamjax.dream import worlds

GIVEN = "given"  # folder of the world that a run was given, once the run makes its own
CHANCE = "chance"  # asks for an M that starts from chance where a world was given


def way(source: str | None, home: Path) -> str | None:
    """How the files of the run at `home` name a run or world: by the way, if they lie together."""
    if source is None or source in worlds.shipped_worlds():
        return source
    place, home = Path(source), home.resolve()
    if not (place.is_absolute() or place.exists()):
        return source
    place = place.resolve()
    near = home.parent in (place, *place.parents)
    return os.path.relpath(place, home) if near else str(place)


def lies(name: str, home: Path) -> str:
    """Where what the files of the run at `home` name so lies."""
    return name if name in worlds.shipped_worlds() else str(home / name)


def is_same(old: str | None, new: str | None, home: Path) -> bool:
    """Whether a name in the files of the run at `home` is `way`'s of now, perhaps after a move.

    Older files have paths as they were given: absolute ones of the run before a round, and of an M
    trained on that of its own run.
    """
    if old is None or new is None:
        return old == new
    then, now = (home / old).resolve(), (home / new).resolve()
    if new in (".", "..") and then != now:
        is_kin = home.name == "round-1" if new == ".." else (home / "memory-1").exists()
        return is_kin and Path(old).is_absolute()
    gone = not then.exists() or then.name.startswith("round-")
    return then == now or (gone and then.name == now.name)


def renamed(config: dict[str, Any], name: Callable[[str | None], Any]) -> dict[str, Any]:
    """Settings of a training, in which `name` names the runs and worlds."""
    named = {"start_from": name(config["start_from"])} if "start_from" in config else {}
    if "worlds" in config:
        named["worlds"] = [name(source) for source in config["worlds"]]
    return config | named


def link(source: Path, target: Path) -> None:
    """Give `target` the files of `source`, or the file, that it lacks; nothing of no `source`."""
    for path in (source, *source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy)
            except FileExistsError:
                pass
            except OSError:  # another disk, or one without links
                half = copy.with_name(f".{copy.name}.{os.getpid()}")
                shutil.copy2(path, half)
                os.replace(half, copy)


def untold(made: dict[str, Any]) -> dict[str, Any]:
    """`made` without what is of one checkpoint alone."""
    own = "format", "versions", "step", "total"
    return {name: value for name, value in made.items() if name not in own}


def portable(made: dict[str, Any], home: Path) -> dict[str, Any]:
    """`made`, to hand on: of what M or C went on from, or dreamt beside, the names, no paths."""
    config = renamed(made["config"], lambda source: source and (home / source).resolve().name)
    return made | {"config": config}
