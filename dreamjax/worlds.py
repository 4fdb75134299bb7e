"""A world: V, M and start states that belong together, and where they lie on disk."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamjax.checkpoint import CheckpointError, Store, digest
from dreamjax.controller import LinearController, controller_for
from dreamjax.dream import DreamEnv, EnvParams, env_params
from dreamjax.memory import MDNRNN, cast
from dreamjax.tasks import TASKS, Task
from dreamjax.vision import VAE


@dataclasses.dataclass(frozen=True)
class World:
    """Everything a dream needs, and the eye to draw it.

    Attributes:
      task: the game it was learned from.
      vision: V.
      memory: M, trained on V's latents.
      initial_mu, initial_logvar: [N, Z] posteriors of real first frames.
    """

    task: Task
    vision: VAE
    memory: MDNRNN
    initial_mu: jax.Array
    initial_logvar: jax.Array

    def env(self) -> DreamEnv:
        """The dream of this game as a gymnax environment."""
        return DreamEnv(self.task)

    def controller(self) -> LinearController:
        """The form of this game's C; its weights are apart."""
        return controller_for(self.task)

    def params(
        self,
        temperature: float | None = None,
        death_threshold: float = 0.0,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ) -> EnvParams:
        """This world as environment parameters.

        Args:
          temperature: tau; None is the task's.
          death_threshold: M's death logit above which a dream ends.
          dtype: of the operands of M's matrix products; all else is float32.
        """
        return env_params(
            self.task,
            cast(self.memory, dtype),
            self.initial_mu,
            self.initial_logvar,
            temperature=temperature,
            death_threshold=death_threshold,
        )

    def arrays(self) -> dict[str, Any]:
        """What is stored of it."""
        names = ("vision", "memory", "initial_mu", "initial_logvar")
        return {name: getattr(self, name) for name in names}

    def digest(self) -> str:
        """SHA-256 identity; controllers record it."""
        return digest(self.arrays())


def blank_models(task: Task) -> tuple[VAE, MDNRNN]:
    """V and M of a task's sizes as shapes alone, templates to load into."""
    return nnx.eval_shape(
        lambda: (VAE(task.latent_size, rngs=nnx.Rngs(0)), MDNRNN(task, rngs=nnx.Rngs(0)))
    )


def save_world(directory: Path | str, world: World, meta: dict[str, Any]) -> None:
    """Store a world under `directory`/world."""
    meta = {
        **meta,
        "task": world.task.name,
        "profile": world.task.profile,
        "starts": len(world.initial_mu),
        "vision": digest(world.vision),
        "memory": digest(world.memory),
    }
    store = Store(Path(directory) / "world", keep=1)
    store.save(max(store.steps(), default=-1) + 1, world.arrays(), meta)


def load_world(directory: Path | str) -> World:
    """The world of a run directory.

    Raises:
      CheckpointError: no world there, a damaged one, or one of an unknown game.
    """
    store = Store(Path(directory) / "world")
    meta = store.meta()
    if meta["task"] not in TASKS:
        raise CheckpointError(
            f"{store.directory} is of the game {meta['task']}; this dreamjax knows {list(TASKS)}"
        )
    task = TASKS[meta["task"]]
    vision, memory = blank_models(task)
    starts = jax.ShapeDtypeStruct((meta["starts"], task.latent_size), jnp.float32)
    arrays, _ = store.load(
        {"vision": vision, "memory": memory, "initial_mu": starts, "initial_logvar": starts}
    )
    return World(task=task, **arrays)


def save_controller(
    directory: Path | str, world: World, weights: jax.Array, meta: dict[str, Any]
) -> None:
    """Store C's weights [D] under `directory`/controller, bound to the world it was evolved in."""
    store = Store(Path(directory) / "controller", keep=1)
    meta = {**meta, "task": world.task.name, "world": world.digest(), "size": len(weights)}
    meta |= {"vision": digest(world.vision), "memory": digest(world.memory)}
    store.save(max(store.steps(), default=-1) + 1, {"weights": weights}, meta)


def load_controller(directory: Path | str, world: World) -> jax.Array:
    """C's weights [D], if they were evolved in `world`.

    Raises:
      CheckpointError: none there, damaged, or evolved in another world.
    """
    store = Store(Path(directory) / "controller")
    meta = store.meta()
    if meta["world"] != world.digest():
        raise CheckpointError(
            f"{store.directory} was evolved in world {meta['world'][:12]}, but this is world "
            f"{world.digest()[:12]}; V, M and C must come from one run: evolve again"
        )
    template = {"weights": jax.ShapeDtypeStruct((meta["size"],), jnp.float32)}
    return store.load(template)[0]["weights"]
