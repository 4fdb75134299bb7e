"""A world: V, M and start states that belong together."""

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreamjax.controller.model import Controller, controller_for, controller_of_size
from dreamjax.controller.player import Player
from dreamjax.dream.env import PAPER_NOISE, PAPER_THRESHOLD, DreamEnv, EnvParams, env_params
from dreamjax.dream.start_states import StartStates, blank_start_states
from dreamjax.memory.kinds import KINDS, kind_of, serializable
from dreamjax.memory.model import FORM, VARIANT, Memory
from dreamjax.task import Task
from dreamjax.tasks import TASKS
from dreamjax.training.checkpoint import CheckpointError, digest
from dreamjax.training.devices import cast, product_dtype
from dreamjax.vision.model import VAE

STARTS = "initial_mu", "initial_logvar"
TUNED = "death_threshold", "death_noise", "temperature", "dropout"  # of a world, beside its arrays
_LARGEST = float(np.finfo(np.float32).max)
_FACTS = {  # what a world's facts may say: value where there is none, type, range, in words
    "starts": (None, (int,), 1, 10**9, "a whole number from 1 to 10^9"),
    "moments": (0, (int,), 0, 10**9, "a whole number from 0 to 10^9"),
    "death_threshold": (PAPER_THRESHOLD, (int, float), -_LARGEST, _LARGEST, "a finite float32"),
    "death_noise": (PAPER_NOISE, (int, float), 0, _LARGEST, "a finite float32 of at least 0"),
    "temperature": (None, (int, float, type(None)), 1e-6, 1e6, "a number from 10^-6 to 10^6"),
    "dropout": (None, (int, float, type(None)), 0, 0.999, "a number from 0 to 0.999"),
    "num_events": (0, (int,), 0, 10**5, "a whole number from 0 to 10^5"),
    **dict.fromkeys(
        ("clock", "keys", "residual", "scaled"), (False, (bool,), False, True, "true or false")
    ),
    "hidden_size": (None, (int, type(None)), 1, 10**5, "a whole number from 1 to 10^5"),
    "controller_hidden": (0, (int,), 0, 10**5, "a whole number from 0 to 10^5"),
    "dream": (None, (int, float, type(None)), -_LARGEST, _LARGEST, "a finite float32"),  # C's
}


@dataclasses.dataclass(frozen=True)
class World:
    """Everything a dream needs, and the eye to draw it; for its settings see `EnvParams`."""

    task: Task  # the game it was learned from
    vision: VAE  # V
    memory: Memory  # M, trained on V's latents
    initial_mu: jax.Array  # with `initial_logvar`, [N, Z] posteriors of real first frames
    initial_logvar: jax.Array
    death_threshold: float = PAPER_THRESHOLD  # as calibrated for this M, or the paper's
    death_noise: float = PAPER_NOISE
    start_states: StartStates | None = None  # of real episodes, from which dreams can go on
    temperature: float | None = None  # see `fidelity.true_temperature`; None is the task's
    dropout: float | None = None  # that with which its M was trained; None is none
    # loads its C, where it was loaded itself
    find_player: Callable[["World"], Player] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def env(self) -> DreamEnv:
        """The dream of this game as a gymnax environment."""
        reads, size = self.memory.reads, self.memory.hidden_size
        return DreamEnv(
            self.task,
            reads=None if reads == self.task.controller_reads else reads,
            hidden_size=None if size == self.task.hidden_size else size,
            bounds=self.memory.bounds,
        )

    @property
    def player(self) -> Player:
        """The C that was found in this world, read from where it lies.

        Raises:
          CheckpointError: there is none, a damaged one, or one of another world.
        """
        if self.find_player is None:
            raise CheckpointError("this world was not loaded, so no C lies beside it; find one")
        return self.find_player(self)

    def player_of(self, weights: jax.Array) -> Player:
        """A C of this game that has these weights [D], of whichever form has as many.

        Raises:
          ValueError: no form has.
        """
        return Player(self.controller_of(weights), weights)

    def controller(self, hidden: int = 0) -> Controller:
        """The form of this game's C, linear or with `hidden` units; its weights are apart."""
        return controller_for(self.task, self.memory.feature_size, hidden)

    def controller_of(self, weights: jax.Array) -> Controller:
        """The form of a C of this game that has these weights [D]; ValueError if none has."""
        return controller_of_size(self.task, self.memory.feature_size, jnp.shape(weights)[-1])

    def params(
        self,
        temperature: float | None = None,
        death_threshold: float | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        death_noise: float | None = None,
        dropout: float | None = None,
    ) -> EnvParams:
        """This world as environment parameters.

        Args:
          temperature, death_threshold, death_noise, dropout: see `EnvParams`; None is the world's
            own, a temperature or else the task's. A dropout of 0 drops nothing.
          dtype: of the operands of M's matrix products, all else is float32; None is what the
            device multiplies fastest, see `product_dtype`.
        """
        asked = zip(TUNED, (death_threshold, death_noise, temperature, dropout), strict=True)
        tuned = {name: getattr(self, name) if value is None else value for name, value in asked}
        tuned["dropout"] = tuned["dropout"] or None
        memory = cast(self.memory, product_dtype() if dtype is None else dtype)
        return env_params(self.task, memory, self.initial_mu, self.initial_logvar, **tuned)

    def branched(self, params: EnvParams) -> EnvParams:
        """`params` whose dreams begin in the middle of real episodes; ValueError if it has none."""
        if self.start_states is None:
            raise ValueError(
                f"this world of {self.task.name} holds no start states of real episodes; "
                "train its M again, or begin at first frames"
            )
        return params.replace(start_states=self.start_states)

    def arrays(self) -> dict[str, Any]:
        """What is stored of it."""
        found = {name: getattr(self, name) for name in ("vision", "memory", *STARTS)}
        found["moments"] = self.start_states
        return {name: value for name, value in found.items() if value is not None}

    def with_arrays(self, arrays: Mapping[str, Any]) -> "World":
        """This world with what `arrays` names."""
        kept = {name: x for name, x in arrays.items() if name != "moments"}
        return dataclasses.replace(self, **kept, start_states=arrays.get("moments"))

    def facts(self) -> dict[str, Any]:
        """What must be known of it before its arrays can be read."""
        return {
            "task": self.task.name,
            "profile": self.task.profile,
            "starts": len(self.initial_mu),
            "moments": 0 if self.start_states is None else len(self.start_states.age),
            **{name: getattr(self, name) for name in TUNED},
            **{name: getattr(self.memory, name) for name in VARIANT},
            **_form(self.memory, self.task),
            **({"found": self._found()} if self.task.to_find else {}),
        }

    def _found(self) -> dict[str, Any]:
        """What a run found out of the game, as `Task.found` takes it."""
        return {name: getattr(self.task, name) for name in (*self.task.to_find, "max_steps")}

    def digest(self) -> str:
        """SHA-256 of the arrays and, where M is not the paper's, of how it reads and predicts."""
        variant = {name: int(getattr(self.memory, name)) for name in VARIANT}
        variant |= _form(self.memory, self.task)
        return digest(self.arrays() | {name: value for name, value in variant.items() if value})


def _form(memory: Memory, task: Task) -> dict[str, Any]:
    """In what M's form is not that of the task's own M."""
    own = "lstm", task.hidden_size, first_heads(task)
    form = kind_of(memory), memory.hidden_size, list(memory.heads)
    return {name: x for name, x, usual in zip(FORM, form, own, strict=True) if x != usual}


def first_heads(task: Task) -> list[str]:
    """What the original's M of a task predicts beside the latent, and ours once did."""
    return ["end"] if task.reads_restart and "end" in task.heads else []


serializable(VAE)


def blank_models(task: Task, kind: str = "lstm", **variant: Any) -> tuple[VAE, Memory]:
    """V and M of a task's sizes, M with `Memory`'s keywords, as shapes alone to load into."""
    memory = nnx.eval_shape(lambda: KINDS[kind](task, rngs=nnx.Rngs(0), **variant))
    return jax.tree.map(lambda leaf: leaf, _blank_vision(task.latent_size)), memory


@cache
def _blank_vision(latent_size: int) -> VAE:
    return nnx.eval_shape(lambda: VAE(latent_size, rngs=nnx.Rngs(0)))


def blank_world(meta: dict[str, Any], origin: Path) -> World:
    """A world of the right shapes, to load into; ValueError where `meta` cannot be."""
    if meta.get("task") not in list(TASKS):
        raise CheckpointError(
            f"{origin} is of the game {reprlib.repr(meta.get('task'))}; this dreamjax knows "
            f"{list(TASKS)}; use a world of one of these, or name its game by --task module:TASK, "
            "by --task gymnasium:ID, or by dreamjax.register"
        )
    task = TASKS[meta["task"]]
    if found := meta.get("found"):
        task = task.found(found)
    facts = {name: fact(meta, name) for name in _FACTS}
    if meta.get("profile") != task.profile:
        raise ValueError(
            f"profile is {reprlib.repr(meta.get('profile'))}, but {task.name} is {task.profile!r}"
        )
    heads = meta.get("heads", first_heads(task))
    if not (isinstance(heads, list) and all(head in task.heads for head in heads)):
        raise ValueError(f"heads are {reprlib.repr(heads)}, but must be of {list(task.heads)}")
    starts = jax.ShapeDtypeStruct((facts["starts"], task.latent_size), jnp.float32)
    tuned = {name: facts[name] for name in TUNED}
    variant = {name: facts[name] for name in (*VARIANT, "hidden_size")}
    models = blank_models(task, known_kind(meta, origin), heads=tuple(heads), **variant)
    count = facts["moments"]
    start_states = blank_start_states(models[1], count) if count else None
    return World(task, *models, starts, starts, **tuned, start_states=start_states)


def known_kind(meta: dict[str, Any], origin: Path) -> str:
    """The form of a world's M; nothing is imported because a file says so."""
    kind = meta.get("kind", "lstm")
    if kind not in list(KINDS):
        raise CheckpointError(
            f"{origin}: its M is of the kind {reprlib.repr(kind)}, known are {list(KINDS)}; name "
            "your own by --memory.kind (export and doctor: --kind), or by "
            "dreamjax.memory.find_kind"
        )
    return kind


def fact(meta: dict[str, Any], name: str) -> Any:
    """A fact of a world, if it can be; `type` keeps true from passing for 1."""
    default, types, least, most, words = _FACTS[name]
    value = meta.get(name, default)
    held = type(value) in types and (value is None or least <= value <= most)  # NaN is in no range
    if not held:
        raise ValueError(f"{name} is {reprlib.repr(value)}, but must be {words}")
    return value
