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
from dreamjax.dream.env import PAPER_NOISE, PAPER_THRESHOLD, DreamEnv, EnvParams, env_params
from dreamjax.dream.moments import Moments, blank_moments
from dreamjax.memory.kinds import KINDS, kind_of, serializable
from dreamjax.memory.model import FORM, VARIANT, Memory
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
    **dict.fromkeys(
        ("clock", "keys", "residual", "scaled"), (False, (bool,), False, True, "true or false")
    ),
    "hidden_size": (None, (int, type(None)), 1, 10**5, "a whole number from 1 to 10^5"),
    "controller_hidden": (0, (int,), 0, 10**5, "a whole number from 0 to 10^5"),
    "dream": (0.0, (int, float), -_LARGEST, _LARGEST, "a finite float32"),  # what C earned in it
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
    moments: Moments | None = None  # of real episodes, from which dreams can go on
    temperature: float | None = None  # see `fidelity.true_temperature`; None is the task's
    dropout: float | None = None  # that with which its M was trained; None is none

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

    def anywhere(self, params: EnvParams) -> EnvParams:
        """`params` whose dreams begin at moments of real episodes; ValueError if there are none."""
        if self.moments is None:
            raise ValueError(
                f"this world of {self.task.name} holds no moments of real episodes to begin at; "
                "train its M again, or begin at first frames"
            )
        return params.replace(moments=self.moments)

    def arrays(self) -> dict[str, Any]:
        """What is stored of it."""
        names = "vision", "memory", "initial_mu", "initial_logvar", "moments"
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """What must be known of it before its arrays can be read."""
        return {
            "task": self.task.name,
            "profile": self.task.profile,
            "starts": len(self.initial_mu),
            "moments": 0 if self.moments is None else len(self.moments.age),
            **{name: getattr(self, name) for name in TUNED},
            **{name: getattr(self.memory, name) for name in VARIANT},
            **_form(self.memory, self.task),
        }

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


def save_world(directory: Path | str, world: World, meta: dict[str, Any]) -> None:
    """Store a world under `directory`/world."""
    _store(Path(directory) / "world", world, world.arrays(), {**meta, **world.facts()})


def _store(folder: Path, world: World, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Store what belongs to a world, in place of what was there."""
    store, models = Store(folder, keep=1), ("vision", "memory")
    meta |= {name: digest(getattr(world, name)) for name in models}
    store.save(max(store.steps(), default=-1) + 1, arrays, meta)


def load_world(source: Path | str) -> World:
    """A shipped world by its name, or the world of a run directory or of an exported folder.

    Raises:
      CheckpointError: no world there, a damaged one, or one of an unknown game.
    """
    folder = folder_of(source)
    if _is_exported(folder):
        return _load_exported(folder)[0]
    store = Store(folder / "world")
    if not store.directory.is_dir():
        names = shipped_worlds()
        near = ", ".join(difflib.get_close_matches(str(source), names, 1) or names)
        raise CheckpointError(
            f"no world in {folder}; train one there, or name a shipped one: {near}"
        )
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
    if _is_exported(folder):
        with _refusing(folder):
            return _content(folder / "world.json").decode()
    return f"{store.steps()} {store.meta()}" if store.directory.is_dir() else ""


def world_meta(source: Path | str) -> dict[str, Any]:
    """What is told of how a world was made; `source` and errors as for `load_world`."""
    folder = folder_of(source)
    return _documented(folder)[0] if _is_exported(folder) else Store(folder / "world").meta()


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


def _is_exported(folder: Path) -> bool:
    return (folder / "world.json").exists()


@contextlib.contextmanager
def _refusing(origin: Path | str, remedy: str = "fetch or export it again") -> Iterator[None]:
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
    """A world of the right shapes, to load into; ValueError where `meta` cannot be."""
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
    heads = meta.get("heads", first_heads(task))
    if not (isinstance(heads, list) and all(head in task.heads for head in heads)):
        raise ValueError(f"heads are {reprlib.repr(heads)}, but must be of {list(task.heads)}")
    starts = jax.ShapeDtypeStruct((facts["starts"], task.latent_size), jnp.float32)
    tuned = {name: facts[name] for name in TUNED}
    variant = {name: facts[name] for name in (*VARIANT, "hidden_size")}
    models = blank_models(task, known_kind(meta, origin), heads=tuple(heads), **variant)
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


def _fact(meta: dict[str, Any], name: str) -> Any:
    """A fact of a world, if it can be; `type` keeps true from passing for 1."""
    default, types, least, most, words = _FACTS[name]
    value = meta.get(name, default)
    held = type(value) in types and (value is None or least <= value <= most)  # NaN is in no range
    if not held:
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
      target, world: the folder, and what goes there.
      weights, controller: of the C that goes with it; a form of None is the world's linear one.
      meta: data, settings and scores for `world.json`.

    Raises:
      ValueError: the folder cannot be written, weights of another form of C, or a number beyond
        half precision.
    """
    controller = controller or world.controller()
    if weights is not None:
        weights = _checked_weights(weights, controller)
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
        "controller_hidden": controller.hidden,
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    files.write_json(target / "world.json", {**meta, **facts})


def _load_exported(folder: Path) -> tuple[World, jax.Array | None, dict[str, Any]]:
    """The world, C's weights [D] if there are any, and `world.json` of an exported folder.

    Whoever made the folder made its SHA-256 too, so nothing in it is believed unseen.
    """
    with _refusing(folder):
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
    with _refusing(folder):
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
    if weights.shape != (controller.num_params,):
        raise ValueError(
            f"C has weights {list(weights.shape)}, but its form has [{controller.num_params}]; "
            "name the form that they are of"
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
    made, exported = world_meta(folder), _is_exported(folder)
    if has_controller(folder):
        told = made if exported else Store(folder / "controller").meta()
        if "dream" not in told:
            raise CheckpointError(
                f'{folder / "world.json"} lacks "dream", what its C earned; export it again'
            )
        if exported or told["world"] == world.digest():
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

    Its form is stored too; None is the world's linear one. ValueError: weights of another.
    """
    controller = controller or world.controller()
    weights = _checked_weights(weights, controller)
    meta = {**meta, "task": world.task.name, "world": world.digest(), "size": len(weights)}
    meta |= {name: getattr(world.memory, name) for name in VARIANT}
    meta["controller_hidden"] = controller.hidden
    _store(Path(directory) / "controller", world, {"weights": weights}, meta)


def has_controller(source: Path | str) -> bool:
    """Whether a C goes with a world; `source` as for `load_world`."""
    folder = folder_of(source)
    if _is_exported(folder):
        with _refusing(folder):
            return CONTROLLER in safetensors.numpy.load(_documented(folder)[1])
    return bool(Store(folder / "controller").steps())


def load_controller(source: Path | str, world: World) -> tuple[Controller, jax.Array]:
    """C's form and its weights [D], if they were evolved in `world`; `source` as for `load_world`.

    Tells of a search for C that was stopped before it saved its own.

    Raises:
      CheckpointError: none there, damaged, or evolved in another world.
    """
    folder = folder_of(source)
    if _is_exported(folder):
        origin, weights, meta = _load_exported(folder)
        _check_bound(folder, origin.task.name, origin.digest(), world)
        if weights is None:
            raise CheckpointError(f"{folder} has a world but no C; evolve one in it")
        return world.controller(_fact(meta, "controller_hidden")), weights
    store = Store(folder / "controller")
    meta = store.meta()
    with _refusing(store.directory, "evolve again"):
        _check_bound(store.directory, meta["task"], meta["world"], world)
        for search, length in SEARCHES.items():
            reached = Store(folder / search).unfinished()
            if reached is not None:
                print(
                    f"{folder / search} was stopped at {reached}, before it saved its C, so this "
                    f"is another one; run {search} again to go on, or lower --{length}",
                    flush=True,
                )
        template = {"weights": jax.ShapeDtypeStruct((meta["size"],), jnp.float32)}
        controller = world.controller(_fact(meta, "controller_hidden"))
        return controller, _checked_weights(store.load(template)[0]["weights"], controller)


def _check_bound(origin: Path, task: str, evolved_in: str, world: World) -> None:
    if (task, evolved_in) != (world.task.name, world.digest()):
        raise CheckpointError(
            f"{origin} was evolved in world {evolved_in[:12]} of {task}, but this is world "
            f"{world.digest()[:12]} of {world.task.name}; V, M and C must come from one run: "
            "evolve again"
        )
