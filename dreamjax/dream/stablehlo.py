"""A dream as a program: its `reset` and `step` in StableHLO, for whoever has jax and nothing else.

Weights are constants of the program. Legend: B lanes, any number; F of an observation, A of an
action.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from dreamjax.dream.env import EnvParams
from dreamjax.dream.gymnax_env import NamedDream
from dreamjax.training import files

PLATFORMS = ("cpu", "cuda", "tpu")  # that the programs are lowered for
_RANDOM = "threefry2x32"


def check_exporter() -> None:
    """Raise ImportError, which names the extra, where jax.export cannot write a program."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError('programs need flatbuffers: pip install "dreamjax[stablehlo]"')


def export_step(target: Path | str, env: NamedDream, params: EnvParams) -> None:
    """Write `reset.stablehlo`, `step.stablehlo` and `stablehlo.json`, which tells of them.

    - reset: (keys) -> (obs, state);
    - step: (keys, state, actions) -> (obs, state, reward, terminated, truncated); a dream that is
      over begins anew.

    Keys are uint32 [B, 2], observations float32 [B, F], actions float32 [B, A] or int32 [B],
    rewards float32 [B], ends bool [B]; the state is a tuple of arrays [B, ...].

    Args:
      target: the folder.
      env, params: as `dreamjax.make` gives them.

    Raises:
      ValueError: the folder cannot be written.
      ImportError: jax's own exporter lacks the package flatbuffers.
    """
    check_exporter()
    target = files.writable(target)
    reset, step, state, action = _of_one_lane(env, params)
    key, (lanes,) = jax.ShapeDtypeStruct((2,), jnp.uint32), export.symbolic_shape("lanes")
    for name, call, given in (("reset", reset, (key,)), ("step", step, (key, state, action))):
        many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype), given)
        program = export.export(jax.jit(jax.vmap(call)), platforms=PLATFORMS)(*many)
        with files.replacing(target / f"{name}.stablehlo") as file:
            file.write(program.serialize())
    told = {
        "env": env.name,
        "observation": env.observation,
        "actions": [str(action.dtype), list(action.shape)],
        "state": [[str(leaf.dtype), list(leaf.shape)] for leaf in state],
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
    }
    files.write_json(target / "stablehlo.json", told)


def _of_one_lane(env: NamedDream, params: EnvParams) -> tuple[Callable, Callable, tuple, Any]:
    """`reset(key)`, `step(key, state, action)` and the forms of their state and action."""

    def begun(key):
        return env.reset_env(jax.random.wrap_key_data(key, impl=_RANDOM), params)

    def reset(key):
        obs, state = begun(key)
        return obs, tuple(jax.tree.leaves(state))

    def step(key, leaves, action):
        state = jax.tree.unflatten(structure, leaves)
        key = jax.random.wrap_key_data(key, impl=_RANDOM)
        obs, state, *told, _ = env.step(key, state, action, params)
        return obs, tuple(jax.tree.leaves(state)), *told

    form = jax.eval_shape(begun, jax.ShapeDtypeStruct((2,), jnp.uint32))[1]
    leaves, structure = jax.tree.flatten(form)
    space = env.action_space(params)
    return reset, step, tuple(leaves), jax.ShapeDtypeStruct(space.shape, space.dtype)
