"""The forms of M by name."""

from typing import Any

from flax import nnx, serialization

from dreamjax.importing import find
from dreamjax.memory.lstm import MDNRNN
from dreamjax.memory.model import Memory
from dreamjax.training.settings import SettingError

KINDS: dict[str, type[Memory]] = {"lstm": MDNRNN}


def find_kind(name: str) -> type[Memory]:
    """The form of M of this `name`; of "module:Class" that subclass of `Memory`, from now on known.

    Raises:
      SettingError: neither.
    """
    if name not in KINDS:
        if ":" not in name:
            raise SettingError(
                f"no M is of the kind {name!r}; choose one of {', '.join(KINDS)}, or name your own "
                "as module:Class"
            )
        try:
            found = find(name)
        except ValueError as error:
            raise SettingError(str(error)) from error
        if not (isinstance(found, type) and issubclass(found, Memory)):
            raise SettingError(f"{name} is no subclass of dreamjax.Memory")
        KINDS[name] = found
        serializable(found)
    return KINDS[name]


def kind_of(memory: Memory) -> str:
    """The name of its form."""
    names = {form: name for name, form in KINDS.items()}
    form = type(memory)
    return names.get(form, f"{form.__module__}:{form.__qualname__}")


def serializable(model: type[nnx.Module]) -> None:
    """Let flax.serialization handle a class of models, and so the `EnvParams` that hold one."""
    arrays = lambda model: nnx.to_pure_dict(nnx.state(model))  # noqa: E731
    serialization.register_serialization_state(model, arrays, _with_arrays, override=True)


def _with_arrays(model: nnx.Module, arrays: dict[str, Any]) -> nnx.Module:
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, arrays)
    return nnx.merge(nnx.graphdef(model), state)


serializable(MDNRNN)
