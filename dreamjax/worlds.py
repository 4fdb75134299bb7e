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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx, serialization

from dreamjax import files
from dreamjax.checkpoint import CheckpointError, Store, digest, flatten, unflatten
from dreamjax.controller import LinearController, controller_for
from dreamjax.devices import product_dtype
from dreamjax.dream import DreamEnv, EnvParams, env_params
from dreamjax.memory import MDNRNN, VARIANT, cast
from dreamjax.tasks import TASKS, Task
from dreamjax.vision import VAE

FORMAT = 1
CONTROLLER = "controller"  # C's weights among the arrays of an exported world
SHIPPED = Path(__file__).parent / "shipped"

_FAULTS = (OSError, ValueError, KeyError, RecursionError, MemoryError, safetensors.SafetensorError)
_LARGEST = float(np.finfo(np.float32).max)
_FACTS = {  # what a world's facts may say: value where there is none, type, range, in words
    "starts": (None, (int,), 1, 10**9, "a whole number from 1 to 10^9"),
    "death_threshold": (0.0, (int, float), -_LARGEST, _LARGEST, "a finite float32"),
    "death_noise": (0.0, (int, float), 0, _LARGEST, "a finite float32 of at least 0"),
    "num_events": (0, (int,), 0, 10**5, "a whole number from 0 to 10^5"),
    "clock": (False, (bool,), False, True, "true or false"),
    "keys": (False, (bool,), False, True, "true or false"),
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
    """

    task: Task
    vision: VAE
    memory: MDNRNN
    initial_mu: jax.Array
    initial_logvar: jax.Array
    death_threshold: float = 0.0
    death_noise: float = 0.0

    def env(self) -> DreamEnv:
        """The dream of this game as a gymnax environment."""
        return DreamEnv(self.task)

    def controller(self) -> LinearController:
        """The form of this game's C; its weights are apart."""
        return controller_for(self.task)

    def params(
        self,
        temperature: float | None = None,
        death_threshold: float | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        death_noise: float | None = None,
    ) -> EnvParams:
        """This world as environment parameters.

        Args:
          temperature: tau; None is the task's.
          death_threshold: M's death logit above which a dream ends; None is the world's.
          dtype: of the operands of M's matrix products, all else is float32; None is what the
            device multiplies fastest, see `product_dtype`.
          death_noise: scale of the logistic noise on that logit; None is the world's.
        """
        return env_params(
            self.task,
            cast(self.memory, product_dtype() if dtype is None else dtype),
            self.initial_mu,
            self.initial_logvar,
            temperature=temperature,
            death_threshold=self.death_threshold if death_threshold is None else death_threshold,
            death_noise=self.death_noise if death_noise is None else death_noise,
        )

    def arrays(self) -> dict[str, Any]:
        """What is stored of it."""
        names = ("vision", "memory", "initial_mu", "initial_logvar")
        return {name: getattr(self, name) for name in names}

    def facts(self) -> dict[str, Any]:
        """What must be known of it before its arrays can be read."""
        return {
            "task": self.task.name,
            "profile": self.task.profile,
            "starts": len(self.initial_mu),
            "death_threshold": self.death_threshold,
            "death_noise": self.death_noise,
            **{name: getattr(self.memory, name) for name in VARIANT},
        }

    def digest(self) -> str:
        """SHA-256 identity; controllers record it.

        It covers the arrays and, where M is not the paper's, how it reads and predicts.
        """
        variant = {name: int(getattr(self.memory, name)) for name in VARIANT}
        return digest(self.arrays() | {name: value for name, value in variant.items() if value})


def _state_dict(model: nnx.Module) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(model))


def _with_state_dict(model: nnx.Module, arrays: dict[str, Any]) -> nnx.Module:
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, arrays)
    return nnx.merge(nnx.graphdef(model), state)


for _model in (MDNRNN, VAE):  # so that flax.serialization takes `EnvParams`
    serialization.register_serialization_state(_model, _state_dict, _with_state_dict)


def blank_models(task: Task, **variant: Any) -> tuple[VAE, MDNRNN]:
    """V and M of a task's sizes, M with `MDNRNN`'s keywords, as shapes alone to load into."""
    return nnx.eval_shape(
        lambda: (
            VAE(task.latent_size, rngs=nnx.Rngs(0)),
            MDNRNN(task, rngs=nnx.Rngs(0), **variant),
        )
    )


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
    folder = _folder(source)
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


def world_meta(source: Path | str) -> dict[str, Any]:
    """What is told of how a world was made; `source` and errors as for `load_world`."""
    folder = _folder(source)
    if (folder / "world.json").exists():
        with _refusing(folder, "fetch or export it again"):
            return _documented(folder)[0]
    return Store(folder / "world").meta()


def shipped_worlds() -> list[str]:
    """Names that `load_world` knows."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/world.json"))


def _folder(source: Path | str) -> Path:
    return SHIPPED / source if source in shipped_worlds() else Path(source)


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
            f"{list(TASKS)}; use a world of one of these"
        )
    task = TASKS[meta["task"]]
    facts = {name: _fact(meta, name) for name in _FACTS}
    if meta.get("profile") != task.profile:
        raise ValueError(
            f"profile is {reprlib.repr(meta.get('profile'))}, but {task.name} is {task.profile!r}"
        )
    starts = jax.ShapeDtypeStruct((facts["starts"], task.latent_size), jnp.float32)
    deaths = {name: facts[name] for name in ("death_threshold", "death_noise")}
    models = blank_models(task, **{name: facts[name] for name in VARIANT})
    return World(task, *models, starts, starts, **deaths)


def _fact(meta: dict[str, Any], name: str) -> Any:
    """A fact of a world, if it can be; `type` keeps true from passing for 1."""
    default, types, least, most, words = _FACTS[name]
    value = meta.get(name, default)
    if type(value) not in types or not least <= value <= most:  # NaN is in no range
        raise ValueError(f"{name} is {reprlib.repr(value)}, but must be {words}")
    return value


def export_world(
    target: Path | str, world: World, weights: jax.Array | None, meta: dict[str, Any]
) -> None:
    """Write a world in half precision, and perhaps C's weights [D], as a folder to hand on.

    What is loaded back is rounded, so evolve C in the exported world rather than in the original;
    exporting what was loaded changes nothing more.

    Args:
      target: the folder.
      world: the world.
      weights: of the controller that goes with it.
      meta: data, settings and scores for `world.json`.

    Raises:
      ValueError: the folder cannot be written, or a number is beyond half precision.
    """
    target = files.writable(Path(target))
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
        return world, None if weights is None else _checked_weights(weights, world), meta


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


def _checked_weights(weights: np.ndarray | jax.Array, world: World) -> jax.Array:
    """C's weights [D], if C in this world has as many."""
    size = world.controller().num_params
    if weights.shape != (size,):
        raise ValueError(
            f"C has weights {list(weights.shape)}, but {world.task.name} takes [{size}]"
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
    folder, weights = _folder(source), None
    if (folder / "world.json").exists():
        _, weights, meta = _load_exported(folder)
        made = meta.get("world")
    else:
        made = Store(folder / "world").meta()
    if weights is not None:  # C first: a run that has a world adopts nothing more
        if "dream" not in meta:
            raise CheckpointError(
                f'{folder / "world.json"} lacks "dream", what its C earned; export it again'
            )
        save_controller(directory, world, weights, {"dream": meta["dream"]})
    save_world(directory, world, {"source": Path(source).name, "made": made})


def save_controller(
    directory: Path | str, world: World, weights: jax.Array, meta: dict[str, Any]
) -> None:
    """Store C's weights [D] under `directory`/controller, bound to the world it was evolved in."""
    store = Store(Path(directory) / "controller", keep=1)
    meta = {**meta, "task": world.task.name, "world": world.digest(), "size": len(weights)}
    meta |= {name: getattr(world.memory, name) for name in VARIANT}
    meta |= {"vision": digest(world.vision), "memory": digest(world.memory)}
    store.save(max(store.steps(), default=-1) + 1, {"weights": weights}, meta)


def load_controller(source: Path | str, world: World) -> jax.Array:
    """C's weights [D], if they were evolved in `world`.

    Args:
      source: as for `load_world`.
      world: the world.

    Raises:
      CheckpointError: none there, damaged, or evolved in another world.
    """
    folder = _folder(source)
    if (folder / "world.json").exists():
        origin, weights, _ = _load_exported(folder)
        _check_bound(folder, origin.task.name, origin.digest(), {world.digest()}, world)
        if weights is None:
            raise CheckpointError(f"{folder} has a world but no C; evolve one in it")
        return weights
    store = Store(folder / "controller")
    meta = store.meta()
    with _refusing(store.directory, "evolve again"):
        _check_bound(store.directory, meta["task"], meta["world"], _identities(meta, world), world)
        template = {"weights": jax.ShapeDtypeStruct((meta["size"],), jnp.float32)}
        return _checked_weights(store.load(template)[0]["weights"], world)


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
