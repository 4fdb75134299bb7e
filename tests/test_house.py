"""Each room imports from those before it alone, and no file goes in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

import dreamjax

PACKAGE = Path(dreamjax.__file__).parent
ROOMS = (
    *("version", "actions", "colours", "importing", "task", "tasks", "training", "game", "vision"),
    *("memory", "controller", "dream", "agent", "recording", "fidelity", "play", "run"),
)
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(tree):
    """The package's modules that a file imports, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else node.module for name in inner)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def graph_of(files):
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    return {name: {x for x in imported(tree) if x in files} for name, tree in trees.items()}


def room(module):
    return module.split(".")[1]


def upward(graph):
    """Imports from a room that comes later."""
    inside = {name: found for name, found in graph.items() if "." in name and room(name) in ROOMS}
    return [
        (name, other)
        for name, found in inside.items()
        for other in found
        if "." not in other or ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]


def test_every_file_is_in_a_room():
    outside = {"dreamjax", "dreamjax.__main__"}
    assert {room(name) for name in FILES if name not in outside} == set(ROOMS)


def test_no_import_runs_upward_or_in_a_circle():
    graph = graph_of(FILES)
    assert sum(map(len, graph.values())) > 300, "imports are seen"
    assert upward(graph) == []
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("line", ["import dreamjax", "from dreamjax.run import cli"])
def test_an_import_upward_would_be_seen(line, tmp_path):
    name, low = "dreamjax.actions", tmp_path / "low.py"
    low.write_text(f"def late():\n    {line}\n")
    assert [pair[0] for pair in upward(graph_of(FILES | {name: low}))] == [name]


def test_a_circle_would_be_seen(tmp_path):
    other = tmp_path / "other.py"
    other.write_text("from dreamjax.memory.training import Trainer\n")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph_of(FILES | {"dreamjax.memory.batches": other})).prepare()


def test_files_and_functions_are_short():
    """400 lines and 60, docstrings too."""
    assert [name for name, path in FILES.items() if path.read_text().count("\n") > 400] == []
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name}"
