"""A game as the whole pipeline sees it: one frozen, hashable value.

Values may be static arguments of compiled functions.
"""

import dataclasses
import json
import math
import numbers
import re
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium

from dreamjax.actions import Actions, actions_of
from dreamjax.colours import Colour
from dreamjax.importing import importable

FRAME_SHAPE = (64, 64, 3)  # what V sees of any game, uint8
GAMMA = 0.995  # the discount of C's learning where a task has no other
USUAL = {"frame_skip": 1, "reward_scale": 1.0, "gamma": GAMMA}  # of what is not found either


@dataclasses.dataclass(frozen=True)
class Score:
    """A published or measured result: mean and standard deviation of `n` episode returns."""

    mean: float
    std: float  # standard deviation
    n: int


@dataclasses.dataclass(frozen=True)
class Task:
    """One game, as the whole pipeline sees it.

    A game of your own needs a name and `make`; `register` finds out its actions. `make` is
    "module:function", or a function that other processes can import, without arguments. It returns
    any gymnasium environment that shows pictures, as observations or by `render_mode="rgb_array"`.
    Where one episode can end in several ways, `info["end"]` of its last step names the way.
    Policies are named as in `game.policies.POLICIES`, or as "module:function". ValueError where a
    field cannot be.

    What is not given and says "found" is found by a run, from the game or its recordings.
    """

    name: str  # what the command line and files call it
    make: str | Callable[[], Any]  # makes the game
    profile: str = ""  # the exact variant of the game, recorded with every result; "" is the name
    actions: Actions | None = None  # the form of its actions; None until `register` looks
    picture: str | None = None  # "observation", "render" or a key of a Dict; None finds it
    crop: tuple[int, int, int, int] | None = None  # (top, bottom, left, right) that V sees
    ends: tuple[str, ...] = ("end",)  # the ways in which an episode ends by itself, as M foresees
    step_reward: float | None = None  # what every step earns; None: it varies, and M learns it too
    # the size of a reward that matters, in which M predicts them; None: found, else 1
    reward_scale: float = None  # type: ignore[assignment]
    reads_restart: bool = True  # whether M is told when an episode begins
    latent_size: int = 32  # Z, numbers in V's latent vector
    hidden_size: int = 256  # H, units of M's LSTM
    num_mixtures: int = 5  # K, Gaussians per latent dimension in M's output
    controller_reads: tuple[str, ...] = ("h",)  # parts of M's state that C reads after z, in order
    controller_bias: bool = True  # whether a linear C has a bias
    # frames of a step: one action, rewards add up, the last picture is seen; None: found, else 1
    frame_skip: int = None  # type: ignore[assignment]
    # steps after which an episode is truncated; where `frame_skip` is found, frames
    max_steps: int = 1000
    temperature: float = 1.0  # tau of the dream that C learns in
    # whether C learns in short dreams from the middle of real episodes: where M knows the next
    # seconds better than the next minutes
    branched: bool = True
    # the discount that C learns with, of a reward a step later; None: found, else 0.995
    gamma: float = None  # type: ignore[assignment]
    action_repeat: int = 1  # steps for which C, while it learns, holds what it draws; not awake
    controller_hidden: int = 64  # units of a hidden layer of a C that is learnt; 0 is a linear C
    frames_per_second: int = 30  # of the game, for films and the page
    blind: str = "held"  # the blind baseline: the best known policy that ignores the picture
    habits: str = "varied"  # the policy whose recordings teach V and M most of what C may meet
    panel: tuple[str, ...] = ()  # policies that `fidelity` puts into the dream, beside blind ones
    ages: tuple[int, ...] = ()  # steps between which deaths are told apart; () is by `max_steps`
    seeds: int = 2**31  # how many seeds the game takes, from 0 on; larger ones are wrapped
    timeout: float = 600.0  # seconds to start, to reset or to step, before it counts as hung
    one_per_process: bool = False  # whether a process can hold only one such game
    package: str = ""  # whose version is recorded with what is played; "" is of `make`'s module
    salient: Colour | None = None  # of small things that matter, which V may weigh more
    flash: Colour | None = None  # the mean colour by which a picture flashes with pain
    paper: Score | None = None  # the paper's result for the full system
    to_find: tuple[str, ...] = ()  # fields that were not given, so that a run finds them

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(self.name)):
            raise ValueError(
                f"a task's name is of small letters, digits and hyphens, got {self.name!r}"
            )
        left = tuple(name for name in USUAL if getattr(self, name) is None)
        object.__setattr__(self, "to_find", self.to_find + left)
        for name in left:
            object.__setattr__(self, name, USUAL[name])
        if not set(self.to_find) <= set(USUAL):
            raise ValueError(f"to_find of {self.name} must be of {list(USUAL)}, got {self.to_find}")
        _formed(self)
        object.__setattr__(self, "make", importable(self.make, self.name))
        object.__setattr__(self, "profile", self.profile or self.name)
        parts = (0.0, 0.07, 0.14, 0.24, 0.38, 0.62, 1.0)
        ages = self.ages or tuple(round(part * self.max_steps) for part in parts)
        object.__setattr__(self, "ages", tuple(sorted(set(ages))))

    @property
    def action_size(self) -> int:
        """A, numbers in an action; ValueError while its actions are not known."""
        if self.actions is None:
            raise ValueError(f"the actions of {self.name} are not known; register the task first")
        return self.actions.size

    @property
    def steps_per_second(self) -> float:
        """Steps in a second of the game."""
        return self.frames_per_second / self.frame_skip

    @property
    def heads(self) -> tuple[str, ...]:
        """What M predicts beside the next latent: "reward" where it varies, "end" if there is."""
        varies = ("reward",) if self.step_reward is None else ()
        return (*varies, "end") if self.ends else varies

    def found(self, values: dict[str, Any]) -> "Task":
        """This game, with what a run found out of it: `to_find`, and so how long it lasts.

        ValueError where a value cannot be.
        """
        if not isinstance(values, dict):
            raise ValueError(f"what was found of {self.name} must be a dict, got {values!r}")
        known = {name: values[name] for name in (*self.to_find, "max_steps") if name in values}
        return dataclasses.replace(self, **known, ages=()) if self.to_find and known else self

    @property
    def env_id(self) -> str:
        """The dream's name in gymnax's registry."""
        words = "".join(word.capitalize() for word in self.name.split("-"))
        return f"Dream{words}-v1"


def _of(kind: Any, holds: Callable[[Any], bool] = lambda value: True) -> Callable[[Any], Any]:
    """What returns a value, or raises ValueError where it is of another kind or does not hold."""

    def form(value: Any) -> Any:
        if isinstance(value, bool) > (kind is bool) or not (
            isinstance(value, kind) and holds(value)
        ):
            raise ValueError
        return value

    return form


def _number(least: float, most: float = math.inf, whole: bool = False) -> Callable[[Any], Any]:
    real = _of(numbers.Real, lambda x: least <= x <= most and math.isfinite(x))

    def form(value: Any) -> float:
        number = int(real(value)) if whole else real(value)
        return number if number == value else real(None)

    return form


def _tuple(form: Callable[[Any], Any], length: int | None = None) -> Callable[[Any], tuple]:
    many = _of((tuple, list), lambda values: length in (None, len(values)))
    return lambda values: tuple(map(form, many(values)))


def _names(values: Any) -> tuple[str, ...]:
    return _of(tuple, lambda found: len(set(found)) == len(found))(_tuple(_of(str))(values))


def _actions(value: Any) -> Actions:
    return actions_of(value) if isinstance(value, gymnasium.Space) else _of(Actions)(value)


_TINY = 2.0**-149
_FORMS = (  # fields of a Task, what brings them into their form, and that form in words
    (
        "frame_skip max_steps latent_size hidden_size num_mixtures action_repeat seeds",
        _number(1, whole=True),
        "a whole number of at least 1",
    ),
    ("reward_scale temperature frames_per_second timeout", _number(_TINY), "a number above 0"),
    ("gamma", _number(_TINY, 1), "a number above 0, at most 1"),
    ("controller_hidden", _number(0, whole=True), "a whole number of at least 0"),
    ("reads_restart controller_bias branched one_per_process", _of(bool), "True or False"),
    ("profile package", _of(str), "a string"),
    ("ends controller_reads panel to_find", _names, 'a tuple of different names, as ("fallen",)'),
    ("ages", _tuple(_number(0, whole=True)), "a tuple of steps"),
    ("step_reward", _number(-math.inf), "a number, or None where rewards vary"),
    ("picture", _of(str), "a name, or None"),
    ("crop", _tuple(_number(-1e9, whole=True), 4), "(top, bottom, left, right), or None"),
    ("actions", _actions, "dreamjax.Box, Choice or Keys, a gymnasium space, or None"),
)


def _formed(task: "Task") -> None:
    """Bring the fields of a task into their forms.

    Raises:
      ValueError: one cannot be; names it, its value and what it must be.
    """
    for names, form, words in _FORMS:
        for name in names.split():
            value = getattr(task, name)
            try:
                if value is not None or "None" not in words:
                    object.__setattr__(task, name, form(value))
            except (TypeError, ValueError, OverflowError):
                said = f"{name} of {task.name} must be {words}, got {reprlib.repr(value)}"
                raise ValueError(said) from None


def by_value(task: Task, names: Iterable[str]) -> dict[str, Any]:
    """Fields of a task as JSON has them: what a name and a profile do not tell of an edited one."""
    found = {name: getattr(task, name) for name in names}
    forms = {k: {"form": type(x).__name__} for k, x in found.items() if dataclasses.is_dataclass(x)}
    values = {k: forms[k] | dataclasses.asdict(x) if k in forms else x for k, x in found.items()}
    return json.loads(json.dumps(values))


def differs(old: Any, new: Any) -> bool:
    """Whether two values of `by_value` differ in what both tell."""
    if isinstance(old, dict) and isinstance(new, dict):
        return any(differs(old[name], new[name]) for name in old.keys() & new.keys())
    return old != new
