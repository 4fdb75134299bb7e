"""A world: V, M and start states that belong together, and where they lie on disk.

A run keeps its world in full precision as a checkpoint. A world to hand on is one folder:
`arrays.safetensors` in half precision and `world.json`; those in `shipped/` go by their names.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from dreamjax.controller.model import Controller, controller_for, controller_of_size
from dreamjax.dream.env import (
    PAPER_NOISE,
    PAPER_THRESHOLD,
    DreamEnv,
    EnvParams,
    env_params,
)
from dreamjax.dream.moments import Moments, blank_moments
from dreamjax.memory.kinds import KINDS, kind_of, serializable
from dreamjax.memory.model import VARIANT, Memory
from dreamjax.tasks import TASKS, Task
from dreamjax.training import files
from dreamjax.training.checkpoint import CheckpointError, Store, digest, flatten, unflatten
from dreamjax.training.devices import cast, product_dtype
from dreamjax.vision.model import VAE

FORMAT = 1
MOMENTS = 750  # of real episodes, that a world to hand on keeps: each is as large as M's state
CONTROLLER = "controller"  # C's weights among the arrays of an exported world
SHIPPED = Path(__file__).parents[1] / "shipped"

SEARCHES = {"evolve": "evolve.generations", "learn": "learn.steps"}  # for C, and their lengths
TUNED = "death_threshold", "death_noise", "temperature", "dropout"  # of a world, beside its arrays

_FAULTS = (OSError, ValueError, KeyError, RecursionError, MemoryError, safetensors.SafetensorError)
_say_once = cache(print)
_LARGEST = float(np.finfo(np.float32).max)
_FACTS = {  # what a world's facts may say: value where there is none, type, range, in words
    "starts": (None, (int,), 1, 10**9, "a whole number from 1 to 10^9"),
    "moments": (0, (int,), 0, 10**9, "a whole number from 0 to 10^9"),
    "death_threshold": (PAPER_THRESHOLD, (int, float), -_LARGEST, _LARGEST, "a finite float32"),
    "death_noise": (PAPER_NOISE, (int, float), 0, _LARGEST, "a finite float32 of at least 0"),
    "temperature": (None, (int, float, type(None)), 1e-6, 1e6, "a number from 10^-6 to 10^6"),
    "dropout": (None, (int, float, type(None)), 0, 0.999, "a number from 0 to 0.999"),
    "num_events": (0, (int,), 0, 10**5, "a whole number from 0 to 10^5"),
    "clock": (False, (bool,), False, True, "true or false"),
    "keys": (False, (bool,), False, True, "true or false"),
    "residual": (False, (bool,), False, True, "true or false"),
    "scaled": (False, (bool,), False, True, "true or false"),
    "hidden_size": (None, (int, type(None)), 1, 10**5, "a whole number from 1 to 10^5"),
    "controller_hidden": (0, (int,), 0, 10**5, "a whole number from 0 to 10^5"),
    "dream": (0.0, (int, float), -_LARGEST, _LARGEST, "a finite float32"),  # what C earned in it
}


@dataclasses.dataclass(frozen=True)
class World:
    """Everything a dream needs, and the eye to draw it.

    Attributes:
      task: the game it was learned from.
      vision: V.
      memory: M, trained on V's latents.
      initial_mu, initial_logvar: [N, Z] posteriors of real first frames.
      death_threshold, death_noise: see `EnvParams`; as calibrated for this M, or the paper's.
      moments: of real episodes, from which dreams can go on; older worlds have None.
      temperature: tau at which its dreams last as long as games, see
        `dreamjax.fidelity.true_temperature`; None, where that was not found, is the task's.
      dropout: of its dreams, see `EnvParams`: that with which its M was trained; None is none.
    """

    task: Task
    vision: VAE
    memory: Memory
    initial_mu: jax.Array
    initial_logvar: jax.Array
    death_threshold: float = PAPER_THRESHOLD
    death_noise: float = PAPER_NOISE
    moments: Moments | None = None
    temperature: float | None = None
    dropout: float | None = None

    def env(self) -> DreamEnv:
        """The dream of this game as a gymnax environment."""
        reads, size = self.memory.reads, self.memory.hidden_size
        return DreamEnv(
            self.task,
            reads=None if reads == self.task.controller_reads else reads,
            hidden_size=None if size == self.task.hidden_size else size,
            bounds=self.memory.bounds,
        )

    def controller(self, hidden: int = 0) -> Controller:
        """The form of this game's C, linear or with `hidden` units; its weights are apart."""
        return controller_for(self.task, self.memory.feature_size, hidden)

    def controller_of(self, weights: jax.Array) -> Controller:
        """The form of a C of this game that has these weights [D].

        Raises:
          ValueError: no form has as many.
        """
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
          temperature: tau; None is the world's own, or else the task's.
          death_threshold: M's death logit above which a dream ends; None is the world's.
          dtype: of the operands of M's matrix products, all else is float32; None is what the
            device multiplies fastest, see `product_dtype`.
          death_noise: scale of the logistic noise on that logit; None is the world's.
          dropout: see `EnvParams`; None is the world's, and 0 drops nothing.
        """
        dropout = self.dropout if dropout is None else dropout
        return env_params(
            self.task,
            cast(self.memory, product_dtype() if dtype is None else dtype),
            self.initial_mu,
            self.initial_logvar,
            temperature=self.temperature if temperature is None else temperature,
            death_threshold=self.death_threshold if death_threshold is None else death_threshold,
            death_noise=self.death_noise if death_noise is None else death_noise,
            dropout=dropout or None,
        )

    def anywhere(self, params: EnvParams) -> EnvParams:
        """`params` whose dreams begin at moments of real episodes in place of first frames.

        Raises:
          ValueError: a world that holds none.
        """
        if self.moments is None:
            raise ValueError(
                f"this world of {self.task.name} holds no moments of real episodes to begin at; "
                "train its M again, or begin at first frames"
            )
        return params.replace(moments=self.moments)

    def arrays(self) -> dict[str, Any]:
        """What is stored of it."""
        names = ("vision", "memory", "initial_mu", "initial_logvar")
        found = {name: getattr(self, name) for name in names}
        return found if self.moments is None else {**found, "moments": self.moments}

    def facts(self) -> dict[str, Any]:
        """What must be known of it before its arrays can be read."""
        return {
            "task": self.task.name,
            "profile": self.task.profile,
            "starts": len(self.initial_mu),
            "moments": 0 if self.moments is None else len(self.moments.age),
            "death_threshold": self.death_threshold,
            "death_noise": self.death_noise,
            "temperature": self.temperature,
            "dropout": self.dropout,
            **{name: getattr(self.memory, name) for name in VARIANT},
            **_form(self.memory, self.task),
        }

    def digest(self) -> str:
        """SHA-256 identity; controllers record it.

        It covers the arrays and, where M is not the paper's, how it reads and predicts.
        """
        variant = {name: int(getattr(self.memory, name)) for name in VARIANT}
        variant |= _form(self.memory, self.task)
        return digest(self.arrays() | {name: value for name, value in variant.items() if value})


def _form(memory: Memory, task: Task) -> dict[str, Any]:
    """In what M's form is not that of the task's own M."""
    own = {"kind": "lstm", "hidden_size": task.hidden_size, "heads": first_heads(task)}
    form = {"kind": kind_of(memory), "hidden_size": memory.hidden_size}
    form["heads"] = list(memory.heads)
    return {name: value for name, value in form.items() if value != own[name]}


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


def save_world(directory: Path | str, world: World, meta: dict[str, Any]) -> None:
    """Store a world under `directory`/world."""
    meta = {
        **meta,
        **world.facts(),
        "vision": digest(world.vision),
        "memory": digest(world.memory),
    }
    store = Store(Path(directory) / "world", keep=1)
    store.save(max(store.steps(), default=-1) + 1, world.arrays(), meta)


def load_world(source: Path | str) -> World:
    """A shipped world by its name, or the world of a run directory or of an exported folder.

    Raises:
      CheckpointError: no world there, a damaged one, or one of an unknown game.
    """
    folder = folder_of(source)
    if (folder / "world.json").exists():
        return _load_exported(folder)[0]
    store = Store(folder / "world")
    if not store.directory.is_dir():
        raise CheckpointError(f"no world in {folder}; {_remedy(source)}")
    meta = store.meta()
    with _refusing(store.directory, "make it anew by train-memory, or use another run directory"):
        blank = _blank_world(meta, store.directory)
        arrays = store.load(blank.arrays())[0]
        _check_finite(flatten(arrays))
    return dataclasses.replace(blank, **arrays)


def identity(source: Path | str) -> str:
    """What is another text once the world at `source` is another; "" where there is none."""
    folder = folder_of(source)
    store = Store(folder / "world")
    if (folder / "world.json").exists():
        with _refusing(folder, "fetch or export it again"):
            return _content(folder / "world.json").decode()
    return f"{store.steps()} {store.meta()}" if store.directory.is_dir() else ""


def world_meta(source: Path | str) -> dict[str, Any]:
    """What is told of how a world was made; `source` and errors as for `load_world`."""
    folder = folder_of(source)
    if (folder / "world.json").exists():
        with _refusing(folder, "fetch or export it again"):
            return _documented(folder)[0]
    return Store(folder / "world").meta()


def shipped_worlds() -> list[str]:
    """Names that `load_world` knows."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/world.json"))


def folder_of(source: Path | str) -> Path:
    """Where a world lies: a string that is a shipped one's name means that, all else is a path."""
    if source not in shipped_worlds():
        return Path(source).expanduser()
    if Path(source).is_dir():
        _say_once(f"{source} is the shipped world; the directory of that name is ./{source}")
    return SHIPPED / source


def _remedy(source: Path | str) -> str:
    names = shipped_worlds()
    near = difflib.get_close_matches(str(source), names, 1) or names
    return f"train one there, or name a shipped one: {', '.join(near)}"


@contextlib.contextmanager
def _refusing(origin: Path | str, remedy: str) -> Iterator[None]:
    """Say whatever is wrong with `origin` in one line, as a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _FAULTS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{origin} is damaged ({reason}); {remedy}") from None


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():  # such an M dreams the perfect score
            raise ValueError(f"{name} holds NaN or infinity")


def _check_names(arrays: Mapping[str, np.ndarray], blank: World) -> None:
    wanted = flatten(blank.arrays()).keys()
    for name in sorted(wanted ^ (arrays.keys() - {CONTROLLER})):
        state = "is missing" if name in wanted else "is none of a world's"
        raise ValueError(f"array {reprlib.repr(name)} {state}")


def _blank_world(meta: dict[str, Any], origin: Path) -> World:
    """A world of the right shapes, to load into.

    Raises:
      ValueError: a fact in `meta` that cannot be; CheckpointError: an unknown game.
    """
    if meta.get("task") not in list(TASKS):
        raise CheckpointError(
            f"{origin} is of the game {reprlib.repr(meta.get('task'))}; this dreamjax knows "
            f"{list(TASKS)}; use a world of one of these, or name its game by --task module:TASK, "
            "or by dreamjax.register"
        )
    task = TASKS[meta["task"]]
    facts = {name: _fact(meta, name) for name in _FACTS}
    if meta.get("profile") != task.profile:
        raise ValueError(
            f"profile is {reprlib.repr(meta.get('profile'))}, but {task.name} is {task.profile!r}"
        )
    starts = jax.ShapeDtypeStruct((facts["starts"], task.latent_size), jnp.float32)
    tuned = {name: facts[name] for name in TUNED}
    variant = {name: facts[name] for name in (*VARIANT, "hidden_size")}
    models = blank_models(task, known_kind(meta, origin), heads=_heads(meta, task), **variant)
    moments = blank_moments(models[1], facts["moments"]) if facts["moments"] else None
    return World(task, *models, starts, starts, **tuned, moments=moments)


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


def _heads(meta: dict[str, Any], task: Task) -> tuple[str, ...]:
    """What a world's M predicts beside the latent."""
    heads = meta.get("heads", first_heads(task))
    known = isinstance(heads, list) and all(head in task.heads for head in heads)
    if not known:
        raise ValueError(f"heads are {reprlib.repr(heads)}, but must be of {list(task.heads)}")
    return tuple(heads)


def _fact(meta: dict[str, Any], name: str) -> Any:
    """A fact of a world, if it can be; `type` keeps true from passing for 1."""
    default, types, least, most, words = _FACTS[name]
    value = meta.get(name, default)
    if value is None and default is None and type(None) in types:
        return None
    if type(value) not in types or not least <= value <= most:  # NaN is in no range
        raise ValueError(f"{name} is {reprlib.repr(value)}, but must be {words}")
    return value


def export_world(
    target: Path | str,
    world: World,
    weights: jax.Array | None,
    meta: dict[str, Any],
    controller: Controller | None = None,
) -> None:
    """Write a world in half precision, and perhaps C's weights [D], as a folder to hand on.

    Of its moments it has `MOMENTS` at most. What is loaded back is rounded, so evolve C in the
    exported world rather than in the original; exporting what was loaded changes nothing more.

    Args:
      target: the folder.
      world: the world.
      weights: of the controller that goes with it.
      meta: data, settings and scores for `world.json`.
      controller: its form; None is the world's linear one.

    Raises:
      ValueError: the folder cannot be written, weights of another form of C, or a number beyond
        half precision.
    """
    if weights is not None:
        weights = _checked_weights(weights, controller or world.controller())
    target = files.writable(Path(target))
    if world.moments is not None:
        moments = jax.tree.map(lambda x: x[:MOMENTS], world.moments)
        world = dataclasses.replace(world, moments=moments)
    with np.errstate(over="ignore"):  # what it makes infinite is refused
        arrays = {name: array.astype(np.float16) for name, array in flatten(world.arrays()).items()}
    if weights is not None:
        arrays[CONTROLLER] = np.asarray(weights)
    with _refusing("the world in half precision", "train it again"):
        _check_finite(arrays)
    blob = safetensors.numpy.save(arrays)
    with files.replacing(target / "arrays.safetensors") as file:
        file.write(blob)
    facts = {
        "format": FORMAT,
        **world.facts(),
        "controller_hidden": controller.hidden if controller else 0,
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    files.write_json(target / "world.json", {**meta, **facts})


def _load_exported(folder: Path) -> tuple[World, jax.Array | None, dict[str, Any]]:
    """The world, C's weights [D] if there are any, and `world.json` of an exported folder.

    Whoever made the folder made its SHA-256 too, so nothing in it is believed unseen.
    """
    with _refusing(folder, "fetch or export it again"):
        meta, blob = _documented(folder)
        blank = _blank_world(meta, folder)
        arrays = {k: x.astype(np.float32) for k, x in safetensors.numpy.load(blob).items()}
        _check_names(arrays, blank)
        _check_finite(arrays)
        world = dataclasses.replace(blank, **unflatten(blank.arrays(), arrays, str(folder)))
        weights = arrays.get(CONTROLLER)
        if weights is not None:
            weights = _checked_weights(weights, world.controller(_fact(meta, "controller_hidden")))
        return world, weights, meta


def _documented(folder: Path) -> tuple[dict[str, Any], bytes]:
    """`world.json` of an exported folder, and the bytes of its arrays, which are those it names."""
    meta = json.loads(_content(folder / "world.json"))
    if not isinstance(meta, dict):
        raise ValueError(f"world.json is not an object, but {reprlib.repr(meta)}")
    if meta.get("format") != FORMAT:
        found = reprlib.repr(meta.get("format"))
        raise ValueError(f"format is {found}, this dreamjax reads {FORMAT}")
    blob = _content(folder / "arrays.safetensors")
    if meta.get("sha256") != hashlib.sha256(blob).hexdigest():
        raise ValueError("arrays.safetensors is not the file that world.json describes")
    return meta, blob


def _content(path: Path) -> bytes:
    if not path.is_file():  # a pipe would never answer, a device never end
        raise ValueError(f"{path.name} is missing or no plain file")
    return path.read_bytes()


def _checked_weights(weights: np.ndarray | jax.Array, controller: Controller) -> jax.Array:
    """C's weights [D], if this form of C has as many."""
    size = controller.num_params
    if weights.shape != (size,):
        raise ValueError(
            f"C has weights {list(weights.shape)}, but its form has [{size}]; name the form that "
            "they are of"
        )
    _check_finite({CONTROLLER: np.asarray(weights)})
    return jnp.asarray(weights)


def adopt_world(directory: Path | str, source: Path | str, task: Task) -> None:
    """Copy a world, and the C that goes with it, into a run directory that has none yet.

    Raises:
      CheckpointError: the run already has another world, or the world is of another game.
    """
    directory, world = Path(directory), load_world(source)
    if world.task != task:
        raise CheckpointError(f"{source} is a world of {world.task.name}, not of {task.name}")
    if Store(directory / "world").steps():
        if load_world(directory).digest() != world.digest():
            raise CheckpointError(
                f"{directory} already has another world than {source}; use another run directory"
            )
        return
    made = _adopt_controller(directory, folder_of(source), world)
    save_world(directory, world, {"source": Path(source).name, "made": made})


def _adopt_controller(directory: Path, folder: Path, world: World) -> Any:
    """Copy the C of `world`, if `folder` has one; how the world was made.

    C comes before its world, because a run that has a world adopts nothing more.
    """
    made, exported = world_meta(folder), (folder / "world.json").exists()
    if has_controller(folder):
        told = made if exported else Store(folder / "controller").meta()
        if "dream" not in told:
            raise CheckpointError(
                f'{folder / "world.json"} lacks "dream", what its C earned; export it again'
            )
        if exported or told["world"] in _identities(told, world):
            controller, weights = load_controller(folder, world)
            save_controller(directory, world, weights, {"dream": told["dream"]}, controller)
    return made.get("world") if exported else made


def save_controller(
    directory: Path | str,
    world: World,
    weights: jax.Array,
    meta: dict[str, Any],
    controller: Controller | None = None,
) -> None:
    """Store C's weights [D] under `directory`/controller, bound to the world it was evolved in.

    Its form is stored too; None is the world's linear one.

    Raises:
      ValueError: weights of another form of C.
    """
    weights = _checked_weights(weights, controller or world.controller())
    store = Store(Path(directory) / "controller", keep=1)
    meta = {**meta, "task": world.task.name, "world": world.digest(), "size": len(weights)}
    meta |= {name: getattr(world.memory, name) for name in VARIANT}
    meta["controller_hidden"] = controller.hidden if controller else 0
    meta |= {"vision": digest(world.vision), "memory": digest(world.memory)}
    store.save(max(store.steps(), default=-1) + 1, {"weights": weights}, meta)


def has_controller(source: Path | str) -> bool:
    """Whether a C goes with a world; `source` as for `load_world`."""
    folder = folder_of(source)
    if (folder / "world.json").exists():
        with _refusing(folder, "fetch or export it again"):
            return CONTROLLER in safetensors.numpy.load(_documented(folder)[1])
    return bool(Store(folder / "controller").steps())


def load_controller(source: Path | str, world: World) -> tuple[Controller, jax.Array]:
    """C's form and its weights [D], if they were evolved in `world`.

    Args:
      source: as for `load_world`.
      world: the world.

    Raises:
      CheckpointError: none there, damaged, or evolved in another world.

    Tells of a search for C that was stopped before it saved its own.
    """
    folder = folder_of(source)
    if (folder / "world.json").exists():
        origin, weights, meta = _load_exported(folder)
        _check_bound(folder, origin.task.name, origin.digest(), {world.digest()}, world)
        if weights is None:
            raise CheckpointError(f"{folder} has a world but no C; evolve one in it")
        return world.controller(_fact(meta, "controller_hidden")), weights
    store = Store(folder / "controller")
    meta = store.meta()
    with _refusing(store.directory, "evolve again"):
        _check_bound(store.directory, meta["task"], meta["world"], _identities(meta, world), world)
        _tell_of_unfinished(folder)
        template = {"weights": jax.ShapeDtypeStruct((meta["size"],), jnp.float32)}
        controller = world.controller(_fact(meta, "controller_hidden"))
        return controller, _checked_weights(store.load(template)[0]["weights"], controller)


def _tell_of_unfinished(folder: Path) -> None:
    for search, length in SEARCHES.items():
        reached = Store(folder / search).unfinished()
        if reached is not None:
            print(
                f"{folder / search} was stopped at {reached}, before it saved its C, so this is "
                f"another one; run {search} again to go on, or lower --{length}",
                flush=True,
            )


def _identities(meta: dict[str, Any], world: World) -> set[str]:
    """What a controller with `meta` may call `world`."""
    if set(VARIANT) <= set(meta):
        return {world.digest()}
    return {world.digest(), digest(world.arrays())}  # of runs when it covered the arrays alone


def _check_bound(
    origin: Path, task: str, evolved_in: str, identities: set[str], world: World
) -> None:
    if task != world.task.name or evolved_in not in identities:
        raise CheckpointError(
            f"{origin} was evolved in world {evolved_in[:12]} of {task}, but this is world "
            f"{world.digest()[:12]} of {world.task.name}; V, M and C must come from one run: "
            "evolve again"
        )
