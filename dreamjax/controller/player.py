"""A player: the form and the weights of a C together, bound to the world that it was found in."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.controller.model import Controller
from dreamjax.controller.population import Policy
from dreamjax.training.checkpoint import Store, digest


@dataclasses.dataclass(frozen=True)
class Player:
    """A C that can play.

    Called with observations [..., F] it gives actions [..., A].

    Raises:
      ValueError: weights that are not of this form of C, or not finite.
    """

    controller: Controller | Policy  # its form, or a policy of your own that can be hashed
    weights: Any  # float32 [D]; of a policy of your own, whatever it reads
    world: str = ""  # digest of the world that it was found in; "" is bound to none
    dream: float | None = None  # its mean return in that dream

    def __post_init__(self):
        if isinstance(self.controller, Controller):
            object.__setattr__(self, "weights", _checked(self.weights, self.controller))

    def __call__(self, obs: jax.Array) -> jax.Array:
        return self.controller(self.weights, obs)

    def check(self, world: Any) -> None:
        """Raise ValueError if it is bound to another world than `world`."""
        if self.world and self.world != world.digest():
            raise ValueError(
                f"C was found in world {self.world[:12]}, but this is world {world.digest()[:12]} "
                f"of {world.task.name}; V, M and C must come from one run: find one here, or drop "
                'the binding by dataclasses.replace(player, world="")'
            )

    def save(
        self, directory: Path | str, world: Any, meta: Mapping[str, Any] | None = None
    ) -> None:
        """Store it in a run directory, bound to `world`; `meta` is kept beside its weights.

        Raises:
          ValueError: a policy of your own, or one bound to another world.
          CheckpointError: the disk refused.
        """
        if not isinstance(self.controller, Controller):
            raise ValueError(f"{self.controller} is no dreamjax Controller, so it cannot be saved")
        self.check(world)
        told = {"task": world.task.name, "world": world.digest(), "size": len(self.weights)}
        told |= {"controller_hidden": self.controller.hidden, "dream": self.dream}
        told |= {name: digest(getattr(world, name)) for name in ("vision", "memory")}
        store = Store(Path(directory) / "controller", keep=1)
        store.replace({"weights": self.weights}, {**(meta or {}), **told})


def form_of(player: Player | Controller) -> tuple[Controller | Policy, Any]:
    """The form of a C, and its weights: None where it is a form alone."""
    return (player.controller, player.weights) if isinstance(player, Player) else (player, None)


def _checked(weights: Any, controller: Controller) -> Any:
    if np.shape(weights) != (controller.num_params,):
        raise ValueError(
            f"C has weights {list(np.shape(weights))}, but its form has [{controller.num_params}]; "
            "name the form that they are of"
        )
    if not np.isfinite(weights).all():
        raise ValueError("C's weights hold NaN or infinity; find it again")
    return jnp.asarray(weights, jnp.float32)
