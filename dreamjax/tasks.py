"""The games: every constant that depends on the game, once. A game is a value, a `Task`.

`Task` values are frozen and hashable, so they may be static arguments of compiled functions.
Sources: Ha & Schmidhuber, "World Models" (2018), and the code released with it
(`doomrnn/`, `carracing/`). Where text and code disagree, the code's value stands and the
comment says so.
"""

import contextlib
import dataclasses
import importlib
import math
import numbers
import os
import pickle
import re
import reprlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium

from dreamjax.actions import Actions, Box, Keys, actions_of
from dreamjax.colours import Colour

__all__ = [
    "CAR_RACING",
    "CAR_RACING_PAPER",
    "TAKE_COVER",
    "TAKE_COVER_VIZDOOM",
    "TASKS",
    "Colour",
    "Score",
    "Task",
    "register",
]

FRAME_SHAPE = (64, 64, 3)  # what V sees of any game, uint8
GAMMA = 0.995  # the discount of C's learning where a task has no other


@dataclasses.dataclass(frozen=True)
class Score:
    """A published or measured result: mean and standard deviation of `n` episode returns."""

    mean: float
    std: float
    n: int


@dataclasses.dataclass(frozen=True)
class Task:
    """One game, as the whole pipeline sees it.

    A game of your own needs a name and `make`; `register` finds out its actions. `make` is
    "module:function", or a function that other processes can import, without arguments. It returns
    any gymnasium environment that shows pictures, as observations or by `render_mode="rgb_array"`.
    Where one episode can end in several ways, `info["end"]` of its last step names the way.
    Policies are named as in `game.policies.POLICIES`, or as "module:function".
    """

    name: str  # what the command line and files call it
    make: str | Callable[[], Any]  # makes the game
    profile: str = ""  # the exact variant of the game, recorded with every result; "" is the name
    actions: Actions | None = None  # the form of its actions; None until `register` looks
    picture: str | None = None  # "observation", "render" or a key of a Dict; None finds it
    crop: tuple[int, int, int, int] | None = None  # (top, bottom, left, right) that V sees
    ends: tuple[str, ...] = ("end",)  # the ways in which an episode ends by itself, as M foresees
    step_reward: float | None = None  # what every step earns; None: it varies, and M learns it too
    reward_scale: float = 1.0  # the size of a reward that matters; M predicts rewards in it
    reads_restart: bool = True  # whether M is told when an episode begins
    latent_size: int = 32  # Z, numbers in V's latent vector
    hidden_size: int = 256  # H, units of M's LSTM
    num_mixtures: int = 5  # K, Gaussians per latent dimension in M's output
    controller_reads: tuple[str, ...] = ("h",)  # parts of M's state that C reads after z, in order
    controller_bias: bool = True  # whether a linear C has a bias
    frame_skip: int = 1  # frames of a step: one action, rewards add up, the last picture is seen
    max_steps: int = 1000  # steps after which an episode is truncated
    temperature: float = 1.0  # tau of the dream that C learns in
    moments: bool = False  # whether C learns in short dreams from moments of real episodes: where
    # M knows the next seconds better than the next minutes
    gamma: float = GAMMA  # the discount that C learns with: how much a reward counts a step later
    action_repeat: int = 1  # steps for which C, while it learns, holds what it draws; not awake
    controller_hidden: int = 0  # units of a hidden layer of a C that is learnt; 0 is a linear C
    frames_per_second: int = 30  # the game's, for whoever watches
    blind: str = "held"  # the best known policy that never looks, which C has to beat
    habits: str = "varied"  # the policy whose recordings teach V and M most of what C may meet
    ages: tuple[int, ...] = ()  # steps between which deaths are told apart; () is by `max_steps`
    seeds: int = 2**31  # how many seeds the game takes, from 0 on; larger ones are wrapped
    timeout: float = 600.0  # seconds to start, to reset or to step, before it counts as hung
    one_per_process: bool = False  # whether a process can hold only one such game
    package: str = ""  # whose version is recorded with what is played; "" is of `make`'s module
    salient: Colour | None = None  # of small things that matter, which V may weigh more
    flash: Colour | None = None  # the mean colour by which a picture flashes with pain
    solved_at: float | None = None  # mean return over 100 episodes that counts as solved
    paper: Score | None = None  # the paper's result for the full system

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(self.name)):
            raise ValueError(
                f"a task's name is of small letters, digits and hyphens, got {self.name!r}"
            )
        _formed(self)
        object.__setattr__(self, "make", _importable(self.make, self.name))
        object.__setattr__(self, "profile", self.profile or self.name)
        parts = (0.0, 0.07, 0.14, 0.24, 0.38, 0.62, 1.0)
        ages = self.ages or tuple(round(part * self.max_steps) for part in parts)
        object.__setattr__(self, "ages", tuple(sorted(set(ages))))

    @property
    def action_size(self) -> int:
        """A, numbers in an action."""
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
    ("reads_restart controller_bias moments one_per_process", _of(bool), "True or False"),
    ("profile package", _of(str), "a string"),
    ("ends controller_reads", _names, 'a tuple of different names, as ("fallen",)'),
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


def _importable(make: str | Callable[[], Any], name: str) -> str | Callable[[], Any]:
    """`make` as other processes can have it; a script's own function by the script's name.

    Raises:
      ValueError: they cannot.
    """
    if isinstance(make, str):
        if not re.fullmatch(r"[\w.-]+:\w+", make):
            raise ValueError(f'make of {name} must be "module:function", got {make!r}')
        return make
    if not callable(make):
        raise ValueError(f"make of {name} must be a function that makes the game, got {make!r}")
    module, function = getattr(make, "__module__", ""), getattr(make, "__qualname__", "")
    if module == "__main__":
        module = _started()
        if module is None:
            raise ValueError(
                f"make of {name} was defined in a notebook or at a prompt, where other processes "
                "cannot find it; put the game into a file, such as game.py, and import it"
            )
    if function.isidentifier() and module != "__main__":
        return f"{module}:{function}"
    try:
        if b"__main__" in pickle.dumps(make):
            raise ValueError("it belongs to the script that was started")
    except Exception as error:
        raise ValueError(
            f"make of {name} is no function that other processes can import ({error}); define it "
            "at the top of a module"
        ) from None
    return make


TAKE_COVER = Task(
    name="take-cover",
    make="dreamjax.game.take_cover:make",
    profile="takecover-2016",  # the paper's game, rebuilt with today's engine
    actions=Keys(),
    crop=(0, 100, 0, 160),  # of 120 rows; the original kept 400 of 480
    ends=("death",),
    step_reward=1.0,
    latent_size=64,
    hidden_size=512,
    controller_reads=("c", "h"),  # doomrnn/model.py: [z, c, h]
    controller_bias=False,
    max_steps=2100,
    temperature=1.15,  # the article's best; the released code says 1.25
    moments=True,
    gamma=0.997,
    action_repeat=4,
    controller_hidden=64,
    frames_per_second=35,  # tics of Doom's clock
    blind="dreamjax.game.take_cover:left_and_right",
    habits="dreamjax.game.take_cover:habits",
    ages=(0, 150, 300, 500, 800, 1300, 2100),
    seeds=2**32,
    timeout=60.0,
    package="vizdoom",
    salient=Colour(0, 1, 0, 0.51, flash=(1, -1, 0)),  # fireballs; walls stay below 0.5
    flash=Colour(1, -1, 0, 0.1),
    solved_at=750.0,
    paper=Score(1092.0, 556.0, 100),
)

# The same game as the vizdoom package registers it: no HUD, starts at tic 1.
TAKE_COVER_VIZDOOM = dataclasses.replace(
    TAKE_COVER,
    name="take-cover-vizdoom",
    make="dreamjax.game.take_cover:make_vizdoom",
    profile="takecover-vizdoom",
)

CAR_RACING = Task(
    name="car-racing",
    make="dreamjax.game.car_racing:make",
    profile="carracing-v3-skip4",
    actions=Box((-1, 0, 0), (1, 1, 1), clipped=(2,)),  # carracing/model.py: steer, gas, brake
    crop=(0, 84, 0, 96),  # of 96 rows; the rest is the bar of gauges
    ends=("off track", "lap"),
    reward_scale=3.0,  # about what a tile of the road earns
    reads_restart=False,
    latent_size=32,
    hidden_size=256,
    controller_reads=("h",),  # carracing/model.py, MODE_ZH
    controller_bias=True,
    frame_skip=4,  # the paper's 1; one frame shows too little of what an action does
    max_steps=250,
    temperature=0.1,  # carracing/dream_env.py: 0.7, at which M loses the road sooner than the game
    moments=True,
    gamma=0.99,
    frames_per_second=50,
    blind="dreamjax.game.car_racing:leftwards",
    seeds=2**32,
    timeout=60.0,
    package="gymnasium",
    salient=Colour(0, -1, 0, -0.6),  # the road, the car and kerbs; grass is above 0.8
    solved_at=900.0,
    paper=Score(906.0, 21.0, 100),
)

# The paper's own steps, of one frame each: for its released weights.
CAR_RACING_PAPER = dataclasses.replace(
    CAR_RACING,
    name="car-racing-paper",
    profile="carracing-v3",
    frame_skip=1,
    max_steps=1000,
    ages=(),
    temperature=0.7,
    moments=False,
    gamma=GAMMA,
)

_GAMES = (TAKE_COVER, TAKE_COVER_VIZDOOM, CAR_RACING, CAR_RACING_PAPER)
TASKS = {task.name: task for task in _GAMES}


def register(task: Task) -> Task:
    """Make a task known: to the command, to `load_world`, and its dream to gymnax and gymnasium.

    Args:
      task: the game. Where its actions are not given, the game is made once to see them.

    A task of the same name takes the place of the one before, unless that came with dreamjax.

    Returns:
      the task, complete.

    Raises:
      ValueError: dreamjax has another task of that name, or the game cannot be used.
    """
    if task.actions is None:
        task = dataclasses.replace(task, actions=_seen_actions(task))
    known = TASKS.get(task.name)
    if known == task:
        return known
    if known in _GAMES:
        raise ValueError(f"another task is called {task.name}; choose another name")
    TASKS[task.name] = task
    from dreamjax.dream.registration import register_dream

    register_dream(task)
    return task


def _seen_actions(task: Task) -> Actions:
    from dreamjax.game.env import GameError, opened

    game = opened(task)
    try:
        return actions_of(getattr(game, "action_space", None))
    except ValueError as error:
        raise GameError(f"{task.name}: {error}") from None
    finally:
        with contextlib.suppress(Exception):
            game.close()


def find(name: str | Callable[..., Any]) -> Callable[..., Any]:
    """What "module:name" names; anything else is that already.

    Raises:
      ValueError: no such module, or nothing of that name in it.
    """
    if not isinstance(name, str):
        return name
    module, _, attribute = name.partition(":")
    if module.endswith(".py") or "/" in module:
        path = Path(module)
        where = f", with PYTHONPATH={path.parent}" if path.name != str(path) else ""
        raise ValueError(f"{name} names a file; write {path.stem}:{attribute}{where}")
    try:
        found = _imported(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {module}; it must lie in this directory or on PYTHONPATH"
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the module {module} does not import ({reason})") from error
    if not hasattr(found, attribute):
        raise ValueError(
            f"{module} has no {attribute!r}; it is {getattr(found, '__file__', found)}"
        )
    return getattr(found, attribute)


def _imported(module: str) -> Any:
    """The module that was started, an installed one or, last, one of the current directory."""
    if module == _started():
        return sys.modules["__main__"]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        sys.path.append(os.getcwd())  # last, and only once it was asked for: it may be a download
        return importlib.import_module(module)


def _started() -> str | None:
    """By which name other processes import the module that Python was started with."""
    main = sys.modules.get("__main__")
    if spec := getattr(main, "__spec__", None):  # python -m
        return spec.name
    path = Path(getattr(main, "__file__", None) or "")
    return path.stem if path.suffix == ".py" else None  # that of a command has none


def find_task(name: str) -> Task:
    """A known task by its name, or the task that "module:ATTRIBUTE" names, registered.

    Raises:
      ValueError: neither; one line.
    """
    if name in TASKS:
        return TASKS[name]
    if ":" not in name:
        known = ", ".join(TASKS)
        raise ValueError(
            f"no task is called {name!r}; choose one of {known}, or name your own as "
            "module:ATTRIBUTE"
        )
    task = find(name)
    if not isinstance(task, Task):
        raise ValueError(f"{name} is no dreamjax.Task, but {type(task).__name__}")
    return register(task)
