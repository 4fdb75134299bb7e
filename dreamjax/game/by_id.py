"""Games by the ids under which gymnasium knows them, as `gymnasium:LunarLander-v3`.

What follows a comma are options of `gymnasium.make`, as `gymnasium:CarRacing-v3,continuous=False`.
"""

import ast
import contextlib
import dataclasses
import re
import weakref
from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from dreamjax.game.scratch import Scratch, working_in
from dreamjax.importing import imported
from dreamjax.task import Task

PLAIN = "gymnasium"  # the module of ids that need no import
PACKAGES = {  # of namespaces: what registers their ids, and how it is installed
    "ALE": ("ale_py", "dreamjax[atari]"),
    "Vizdoom": ("vizdoom.gymnasium_wrapper", "vizdoom"),
}
_DRAWING = "rgb_array"


@dataclasses.dataclass(frozen=True)
class ById:
    """Makes the game of an id; other processes can import it, and a `Task` can hold it."""

    id: str  # as gymnasium knows it
    module: str = PLAIN  # imported first, since it registers the id
    options: tuple[tuple[str, Any], ...] = ()  # of `gymnasium.make`

    @classmethod
    def of(cls, name: str) -> "ById":
        """What "module:id,option=value" names; ValueError if it cannot be."""
        module, _, rest = name.partition(":")
        env_id, *words = rest.split(",")
        return cls(env_id, module, tuple(_option(name, word) for word in words))

    def __call__(self) -> gymnasium.Env:
        """The game, which draws pictures if it can.

        Raises:
          ImportError: a package is missing; names what brings it.
          ValueError: no such id, or options that it does not take.
        """
        spec, options = self.spec(), dict(self.options)
        if _DRAWING in self.metadata().get("render_modes", ()):
            options.setdefault("render_mode", _DRAWING)
        with self._packages():
            game = gymnasium.make(spec, disable_env_checker=True, **options)
        return Aside(game) if self._namespace == "Vizdoom" else game

    def metadata(self) -> dict[str, Any]:
        """What its class tells of its pictures; errors as for a call."""
        creator: Any = self.spec().entry_point
        with self._packages():
            creator = load_env_creator(creator) if isinstance(creator, str) else creator
        return getattr(creator, "metadata", {})

    @contextlib.contextmanager
    def _packages(self) -> Iterator[None]:
        """Name what to install where a package is missing."""
        try:
            yield
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            remedy = "" if "pip install" in str(error) else f"; pip install {self._brings()}"
            raise ImportError(f"{self.id} lacks a package ({error}){remedy}") from None

    def spec(self) -> Any:
        """gymnasium's own entry of the id; errors as for a call."""
        module = self.module
        if module == PLAIN:
            module, _ = PACKAGES.get(self._namespace, (PLAIN, ""))
        try:
            imported(module)
        except ImportError as error:
            raise ImportError(
                f"{self.id} needs the module {module} ({error}): pip install {self._brings()}"
            ) from None
        try:
            return gymnasium.spec(self.id)
        except gymnasium.error.Error as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"gymnasium has no game {self.id!r} ({said}); name the module that registers it, "
                "as module:id"
            ) from None

    @property
    def _namespace(self) -> str:
        if self.id.startswith("Vizdoom"):
            return "Vizdoom"
        return self.id.partition("/")[0] if "/" in self.id else ""

    def _brings(self) -> str:
        """What to install for the game, in quotes."""
        known = {module: brings for module, brings in PACKAGES.values()}
        known |= {name: brings for name, (_, brings) in PACKAGES.items()}
        found = known.get(self.module) or known.get(self._namespace) or self.module.split(".")[0]
        return f'"{"gymnasium[all]" if found == PLAIN else found}"'


class Aside(gymnasium.Wrapper):
    """A game whose engine writes files where it starts: in a directory that goes with the game."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self._scratch = Scratch("game")
        self._cleanup = weakref.finalize(self, self._scratch.clear)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """As the game's; the first one starts its engine."""
        with working_in(self._scratch.path):
            return super().reset(**options)

    def close(self) -> None:
        """As the game's."""
        super().close()
        self._cleanup()


def is_id(name: str) -> bool:
    """Whether "module:name" is of an id of gymnasium's, not of a Python attribute."""
    module, _, rest = name.partition(":")
    return bool(rest) and (module == PLAIN or not re.fullmatch(r"\w+", rest))


def task_of(name: str) -> Task:
    """The task of "module:id,option=value"; errors as of `ById`. Its actions are not known yet."""
    make = ById.of(name)
    spec, package = make.spec(), PACKAGES.get(make._namespace, (make.module, ""))[0]
    words = [make.id, *(f"{key}={value}" for key, value in make.options)]
    return Task(
        name=re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-"),
        make=make,
        profile=",".join(words),
        package={"ale_py": "ale-py"}.get(package, package.split(".")[0]),
        max_steps=spec.max_episode_steps or Task.max_steps,
        frames_per_second=int(make.metadata().get("render_fps") or Task.frames_per_second),
    )


def _option(name: str, word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not (equals and key.isidentifier()):
        raise ValueError(f"{name}: options are written option=value, got {word!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
