"""What each public name says of itself: what it is for, its arguments, shapes, and errors."""

import ast
import builtins
import dataclasses
import importlib
import inspect
import re
import textwrap
from types import FunctionType, ModuleType

import jax
import pytest

import dreamjax
from dreamjax.training.settings import SettingError

ROOMS = ("training", "game", "vision", "memory", "controller", "dream", "fidelity", "run")
PLACES = (dreamjax, *(importlib.import_module(f"dreamjax.{room}") for room in ROOMS))
ERRORS = (ValueError, TypeError, RuntimeError)
BRACKETS = r"\[[^\]]*\]"
EACH = re.compile(rf"\b[Ee]ach\b[^.;]*{BRACKETS}|{BRACKETS} (?:of )?each\b")
LIKE = re.compile(r"(?:\b[Aa]s(?: for| of| in)?|\b[Ss]ee|\b[Kk]eywords of) `([\w.]+)`")
KEYS = ("key",)  # of random numbers: jax keeps to itself what they are made of


def public():
    """Every public function and class of the package, once, by the shortest of its names."""
    found = {}
    for place in PLACES:
        for name in place.__all__:
            thing = getattr(place, name)
            if inspect.isclass(thing) or isinstance(inspect.unwrap(thing), FunctionType):
                found.setdefault(thing, f"{place.__name__}.{name}")
    return {name: thing for thing, name in found.items()}


def comments(cls):
    """What is said beside each field: on its line, and on lines of their own above and below."""
    lines, found = inspect.getsource(cls).splitlines(), {}
    for i, line in enumerate(lines):
        if field := re.match(r"    (\w+): ", line):
            beside = [x for x in lines[i - 1 : i + 2 : 2] if x.lstrip().startswith("#")]
            found[field[1]] = " ".join(x.partition("#")[2] for x in (line, *beside)).strip()
    return found


def docstring(thing):
    """ "" where a dataclass has none but that made of its fields."""
    said = inspect.getdoc(thing) or ""
    return "" if said.startswith(f"{thing.__name__}(") else said


def text(thing, seen=()):
    """All that is said of a function, or of a class and its fields, and of what these are as."""
    said = [docstring(thing)]
    for kind in thing.__mro__[:-1] if inspect.isclass(thing) else ():
        if kind.__module__.startswith(("dreamjax", __name__)):
            said += [docstring(kind), inspect.getdoc(kind.__init__) or ""]
            said += [f"{name}: {told}." for name, told in comments(kind).items() if told]
    said = "\n\n".join(said)
    others = {meant(name, thing) for name in LIKE.findall(said)} - {None, thing, *seen}
    return "\n\n".join([said, *(text(other, (*seen, thing, *others)) for other in others)])


def meant(name, thing):
    """What the documentation of a thing means by a name; None is nothing of ours."""
    for place in (inspect.getmodule(inspect.unwrap(thing)), *PLACES):
        try:
            found = place
            for part in name.split("."):
                found = getattr(found, part)
            found = getattr(found, part) if isinstance(found, ModuleType) else found
            return inspect.unwrap(found) if callable(found) else None
        except AttributeError:
            continue
    return None


def names(said, name):
    return re.search(rf"(?<![\w.]){name}(?!\w)", said)


def shapes(said, name):
    """Whether a clause names it and has a shape in brackets."""
    clauses = re.split(r"(?<=[.;])\s|\n\n|\n(?=\s*[\w, ]+: )", said)
    return any(names(clause, name) and re.search(BRACKETS, clause) for clause in clauses)


def is_array(annotation):
    """Whether an array, and no tuple or function of arrays, is meant."""
    said = str(annotation)
    return bool(re.search(r"\b(Array|ndarray)\b", said)) and not re.search(r"[a-z]\[", said)


def raised(function):
    """Errors that its own body raises."""
    function = inspect.unwrap(function)
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    waiting, found = list(body.body), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "id", None)
            kind = function.__globals__.get(name, getattr(builtins, str(name), None))
            if isinstance(kind, type) and issubclass(kind, ERRORS):
                found.add(kind)
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found - {NotImplementedError}


def faults_of_errors(function, said):
    if not re.search(r"[Rr]aises?\b|Error\b", said):
        yield from (f"does not tell of {kind.__name__}" for kind in raised(function))


def faults_of_arguments(function, said):
    for one in inspect.signature(function).parameters.values():
        alike = one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and LIKE.search(said)
        if one.name == "self" or alike:
            continue
        if not names(said, one.name):
            yield f"does not name its argument {one.name}"
        elif is_array(one.annotation) and one.name not in KEYS and not shapes(said, one.name):
            yield f"gives no shape of {one.name}"
    if is_array(inspect.signature(function).return_annotation) and not re.search(BRACKETS, said):
        yield "gives no shape of what it returns"
    yield from faults_of_errors(function, said)


def faults_of_fields(cls, said):
    for field in dataclasses.fields(cls):
        elsewhere = dataclasses.is_dataclass(field.type) and field.type.__doc__
        if field.name.startswith("_") or elsewhere:
            continue
        if not names(said, field.name):
            yield f"does not tell of its field {field.name}"
        elif is_array(field.type) and not (shapes(said, field.name) or EACH.search(said)):
            yield f"gives no shape of {field.name}"
    if hasattr(cls, "__post_init__"):
        yield from faults_of_errors(cls.__post_init__, said)


def faults_of_methods(cls):
    for name, method in vars(cls).items():
        method = method.fget if isinstance(method, property) else method
        if not name.startswith("_") and isinstance(inspect.unwrap(method), FunctionType):
            said = inspect.getdoc(getattr(cls, name)) or ""
            found = faults_of_errors(method, said) if said else ["has no docstring"]
            yield from (f".{name} {fault}" for fault in found)


def faults(thing):
    """What the documentation of a function or class lacks."""
    said = text(thing)
    if not docstring(thing):
        yield "has no docstring"
    if not inspect.isclass(thing):
        yield from faults_of_arguments(thing, said)
        return
    yield from faults_of_methods(thing)
    if dataclasses.is_dataclass(thing):
        yield from faults_of_fields(thing, said)
    elif isinstance(thing.__init__, FunctionType):
        yield from faults_of_arguments(thing.__init__, said)


def test_public_names_tell_of_arguments_shapes_and_errors():
    things = public()
    assert len(things) > 90 and {"dreamjax.evolve", "dreamjax.dream.unroll"} <= things.keys()
    assert [f"{name} {fault}" for name, thing in things.items() for fault in faults(thing)] == []


def silent(): ...


def forgets(seed, world):
    """Dreams in a world."""


def shapeless(z: jax.Array, key: jax.Array):
    """Of z, a latent, and a key. It returns [Z]."""


def alike(z: jax.Array, *args):
    """As `sized`."""


def sized(z: jax.Array):
    """Of z [Z]."""


def vague() -> jax.Array:
    """An array."""


def refuses(seed):
    """Of a seed."""
    if seed < 0:
        raise SettingError("negative")


@dataclasses.dataclass
class Silent:
    z: jax.Array
    seed: int  # of all


@dataclasses.dataclass
class Told:
    """Said below."""

    z: jax.Array  # a latent

    def draw(self):
        raise ValueError(self)


@pytest.mark.parametrize(
    ("thing", "found"),
    [
        (silent, ["has no docstring"]),
        (forgets, ["does not name its argument seed"]),
        (sized, []),
        (alike, []),
        (shapeless, ["gives no shape of z"]),
        (vague, ["gives no shape of what it returns"]),
        (refuses, ["does not tell of SettingError"]),
        (Silent, ["has no docstring", "does not tell of its field z"]),
        (Told, [".draw has no docstring", "gives no shape of z"]),
    ],
)
def test_what_is_not_told_would_be_seen(thing, found):
    assert list(faults(thing)) == found
