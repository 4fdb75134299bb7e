"""A world: V, M and start states that belong together, and where they lie on disk.

A run keeps its world in full precision as a checkpoint. A world to hand on is one folder:
`arrays.safetensors` in half precision and `world.json`; those in `shipped/` go by their names.
"""

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from dreamjax import files
from dreamjax.checkpoint import CheckpointError, Store, digest, flatten, unflatten
from dreamjax.controller import LinearController, controller_for
from dreamjax.dream import DreamEnv, EnvParams, env_params
from dreamjax.memory import MDNRNN, VARIANT, cast
from dreamjax.tasks import TASKS, Task
from dreamjax.vision import VAE

FORMAT = 1
CONTROLLER = "controller"  # C's weights among the arrays of an exported world
SHIPPED = Path(__file__).parent / "shipped"


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
        dtype: jax.typing.DTypeLike = jnp.float32,
        death_noise: float | None = None,
    ) -> EnvParams:
        """This world as environment parameters.

        Args:
          temperature: tau; None is the task's.
          death_threshold: M's death logit above which a dream ends; None is the world's.
          dtype: of the operands of M's matrix products; all else is float32.
          death_noise: scale of the logistic noise on that logit; None is the world's.
        """
        return env_params(
            self.task,
            cast(self.memory, dtype),
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
        """SHA-256 identity; controllers record it."""
        return digest(self.arrays())


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
    if not store.steps():
        raise CheckpointError(f"no world in {folder}; {_remedy(source)}")
    meta = store.meta()
    blank = _blank_world(meta, store.directory)
    return dataclasses.replace(blank, **store.load(blank.arrays())[0])


def shipped_worlds() -> list[str]:
    """Names that `load_world` knows."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/world.json"))


def _folder(source: Path | str) -> Path:
    return SHIPPED / source if source in shipped_worlds() else Path(source)


def _remedy(source: Path | str) -> str:
    names = shipped_worlds()
    near = difflib.get_close_matches(str(source), names, 1) or names
    return f"train one there, or name a shipped one: {', '.join(near)}"


def _blank_world(meta: dict[str, Any], origin: Path) -> World:
    """A world of the right shapes, to load into."""
    if meta["task"] not in TASKS:
        raise CheckpointError(
            f"{origin} is of the game {meta['task']}; this dreamjax knows {list(TASKS)}"
        )
    task = TASKS[meta["task"]]
    starts = jax.ShapeDtypeStruct((meta["starts"], task.latent_size), jnp.float32)
    deaths = {name: meta.get(name, 0.0) for name in ("death_threshold", "death_noise")}
    models = blank_models(task, **{name: meta[name] for name in VARIANT if name in meta})
    return World(task, *models, starts, starts, **deaths)


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
    """
    target = files.writable(Path(target))
    arrays = {name: array.astype(np.float16) for name, array in flatten(world.arrays()).items()}
    if weights is not None:
        arrays[CONTROLLER] = np.asarray(weights)
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
    """The world, C's weights [D] if there are any, and `world.json` of an exported folder."""
    path = folder / "arrays.safetensors"
    try:
        meta = json.loads((folder / "world.json").read_text())
        blob = path.read_bytes()
        sound = hashlib.sha256(blob).hexdigest() == meta["sha256"] and meta["format"] == FORMAT
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}); fetch or export it again") from None
    if not sound:
        raise CheckpointError(
            f"{path} is not the file that world.json describes; fetch or export it again"
        )
    arrays = {k: x.astype(np.float32) for k, x in safetensors.numpy.load(blob).items()}
    blank = _blank_world(meta, folder)
    world = dataclasses.replace(blank, **unflatten(blank.arrays(), arrays, str(folder)))
    weights = arrays.get(CONTROLLER)
    return world, None if weights is None else jnp.asarray(weights), meta


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
    save_world(directory, world, {"source": Path(source).name, "made": made})
    if weights is not None:
        save_controller(directory, world, weights, {"dream": meta["dream"]})


def save_controller(
    directory: Path | str, world: World, weights: jax.Array, meta: dict[str, Any]
) -> None:
    """Store C's weights [D] under `directory`/controller, bound to the world it was evolved in."""
    store = Store(Path(directory) / "controller", keep=1)
    meta = {**meta, "task": world.task.name, "world": world.digest(), "size": len(weights)}
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
        _check_bound(folder, origin.digest(), world)
        if weights is None:
            raise CheckpointError(f"{folder} has a world but no C; evolve one in it")
        return weights
    store = Store(folder / "controller")
    meta = store.meta()
    _check_bound(store.directory, meta["world"], world)
    template = {"weights": jax.ShapeDtypeStruct((meta["size"],), jnp.float32)}
    return store.load(template)[0]["weights"]


def _check_bound(origin: Path, evolved_in: str, world: World) -> None:
    if evolved_in != world.digest():
        raise CheckpointError(
            f"{origin} was evolved in world {evolved_in[:12]}, but this is world "
            f"{world.digest()[:12]}; V, M and C must come from one run: evolve again"
        )
