"""What README and the pages show runs as it is written, at toy size; their links lead somewhere."""

import contextlib
import dataclasses
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tyro
from command import dreamjax as command
from command import environ
from nbclient import NotebookClient

import dreamjax
from dreamjax import tasks
from dreamjax.dream import exported
from dreamjax.dream.worlds import SHIPPED, shipped_worlds
from dreamjax.game.rollouts import read
from dreamjax.run.commands import parsed

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name / "README.md" for name in ("benchmarks", "experiments", "tests")),
]
USERS = [page for page in PAGES if page.parts[-2] not in ("tests", "api")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

EVALUATED = "--evaluate.episodes 1 --evaluate.baseline-episodes 1"
LEARNT = (
    "--learn.steps 512 --learn.num-envs 8 --learn.num-steps 16 --learn.num-minibatches 2 "
    "--learn.eval-every 1 --learn.eval-rollouts 8"
)
EVOLVED = (
    "--evolve.generations 1 --evolve.population 4 --evolve.rollouts 2 --evolve.eval-every 1 "
    "--evolve.eval-rollouts 8 --evolve.components 4"
)
MADE = (
    "--collect.episodes 4 --vision.steps 4 --vision.batch-size 8 --memory.steps 2 "
    "--memory.batch-size 8 --memory.sequence-length 32 --memory.start-states 20"
)
ROUNDS = "--iterate.rounds 1 --iterate.episodes 2 --iterate.memory-steps 2"
FEW = (
    "--fidelity.real-episodes 2 --fidelity.episodes 8 --fidelity.controllers 3 "
    "--fidelity.controller-episodes 1 --fidelity.seen 1 --fidelity.panel-episodes 1"
)
TOY = {
    "collect": "--collect.episodes 4",
    "train-vision": "--vision.steps 4 --vision.batch-size 8",
    "encode": "",
    "train-memory": "--memory.steps 2 --memory.batch-size 8 --memory.sequence-length 32",
    "learn": LEARNT,
    "evolve": EVOLVED,
    "evaluate": EVALUATED,
    "run": f"--no-must-learn {MADE} {LEARNT} {EVOLVED} {EVALUATED}",
    "iterate": f"--no-must-learn {MADE} {LEARNT} {EVALUATED} {ROUNDS}",
    "fidelity": FEW,
    "calibrate": FEW,
    "play": "--out page",
}
NOT_RUN = {  # command lines that no test can run here, and why
    "pip install": "changes the environment",
    "git clone": "needs an address",
    "ruff": "of .ci/run",
    ".ci/run": "runs these tests",
    "mkdocs": "of .ci/run",
    "dreamjax bench": "minutes; test_scripts.py runs it at toy size",
    "python experiments/own_game.py": "test_scripts.py runs it",
    "python experiments/planner.py": "test_planner.py runs its parts",
    "python experiments/panel.py": "test_scripts.py runs it",
    "python experiments/unseen.py": "the same; test_scripts.py looks at its drivers",
    "python experiments/awake.py": "test_agent.py runs its parts",
    "python tests/soak.py": "test_soak.py runs it",
    "python -m benchmarks": "test_scripts.py runs it",
}


def fences(page, *languages):
    """The blocks of code of a page in these languages."""
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


def files(page):
    """Modules that a page has its reader write, by name: "In a file `pole.py`" before a block."""
    return dict(
        re.findall(r"file\s+`(\w+\.py)`[^`]*```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    )


def commands(block):
    """The commands of a block, without comments."""
    found = block.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s+)# .*", "", line) for line in found) if line.strip()]


def lines(page):
    """The commands of a page."""
    return [line for block in fences(page, "") for line in commands(block)]


def runs(line):
    return not any(line.startswith(start) for start in NOT_RUN)


PARSED = "results.md"  # its commands are those of other pages with other numbers
COMMANDED = [page for page in USERS if page.name != PARSED and any(map(runs, lines(page)))]
SHOWN = [ROOT / "README.md", ROOT / "docs" / "guides" / "environment.md"]


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMANDED, ids=name_of)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    """Its commands and its Python, in short games."""
    for task in tasks.GAMES:
        short = dataclasses.replace(task, max_steps=40, ages=())
        monkeypatch.setitem(tasks.TASKS, task.name, short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((os.environ["PYTHONPATH"], str(tmp_path))))
    for name, code in files(page).items():
        Path(name).write_text(code)
        sys.modules.pop(name.removesuffix(".py"), None)
    names, written = {}, files(page).values()
    for language, block in FENCE.findall(page.read_text()):
        if language == "python" and block not in written:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(block, names)
        for line in filter(runs, commands(block) if language == "" else ()):
            run_line(line)


def run_line(line):
    program, *words = shlex.split(line)
    assert program == "dreamjax", f"{line}: run it, or say in NOT_RUN why not"
    if words[0] == "import-released":
        return  # test_released.py runs it on files of their form
    words += shlex.split(TOY.get(words[0], ""))
    if "--device" in words or "paper" in words:  # of another machine
        words += ["--preset", "smoke", "--device", "cpu"]
    status, _, err = command(*words)
    assert status == 0, f"{line}: {err}"


@pytest.mark.parametrize("page", SHOWN, ids=name_of)
def test_the_python_of_a_page_runs_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, written = {}, files(page).values()
    for code in fences(page, "python"):
        if code not in written:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)
    if page.name == "README.md":
        assert names["obs"].shape == (1024, 1088) and (names["reward"] == 1).all()


def test_every_setting_that_a_page_names_is_one():
    """Of commands at their own size, which do not run here."""
    for line in (line for page in USERS for line in lines(page)):
        program, *words = shlex.split(line)
        if program == "dreamjax":
            parsed(words)
        elif words and words[0].startswith("experiments/"):
            script = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
            tyro.cli(script.Config, args=words[1:])


def anchors(page):
    """Of the headings of a page, as forges and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_links_to_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_pages_are_short():
    assert sum(page.stat().st_size for page in USERS) < 60_000
    for page in (ROOT / "docs").rglob("*.md"):
        assert len(page.read_text().splitlines()) < 130, page


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "docs").rglob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    bin_here = os.path.dirname(sys.executable)
    for name, value in environ(PATH=f"{bin_here}{os.pathsep}{os.environ['PATH']}").items():
        monkeypatch.setenv(name, value)
    found = nbformat.read(notebook, as_version=4)
    NotebookClient(found, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["take_cover", "car_racing"])
def test_a_recipe_makes_a_world(name, tmp_path):
    bin_here = os.path.dirname(sys.executable)
    path = f"{bin_here}{os.pathsep}{os.environ['PATH']}"
    recipe = ROOT / "experiments" / "recipes" / f"{name}.sh"
    words = [recipe, tmp_path / "run", "--smoke"]
    done = subprocess.run(words, env=environ(PATH=path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "run").rglob("world-to-ship")
    world, player, _ = exported.read(folder)
    assert world.task.name == name.replace("_", "-") and np.isfinite(player.dream)


@pytest.mark.slow
def test_a_policy_of_ones_own_is_recorded_as_written(tmp_path):
    page = ROOT / "docs" / "guides" / "own-game.md"
    (tmp_path / "mine.py").write_text(files(page)["mine.py"])
    (words,) = re.findall(
        r"^dreamjax (collect car-racing .*mine:straight)$", page.read_text(), re.M
    )
    installed = Path(sys.executable).with_name("dreamjax")
    done = subprocess.run(
        [installed, *words.split()], cwd=tmp_path, env=environ(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (shard,) = (tmp_path / "runs" / "straight" / "rollouts").glob("*.npz")
    np.testing.assert_array_equal(np.unique(read(shard).actions, axis=0), np.float32([[0, 0.2, 0]]))


@pytest.mark.parametrize("name", ["take-cover", "car-racing"])
def test_shipped_worlds_are_whole_small_and_described(name):
    assert name in shipped_worlds()
    world, player, meta = exported.read(SHIPPED / name)
    assert world.task == dreamjax.TASKS[name] and len(world.initial_mu) == 1000
    assert player.controller == world.controller(meta["controller_hidden"])
    assert player.weights.dtype == np.float32 and player.dream > 0
    assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) < 15e6
    assert '"/' not in (SHIPPED / name / "world.json").read_text(), "a path of some machine"
    card = (ROOT / "docs" / "worlds" / f"{name}.md").read_text()
    for scored in ("random", "blind", "ours"):
        told = meta["results"][scored]["mean"]
        assert f"{told:.0f}" in card, "the card tells the scores measured"
