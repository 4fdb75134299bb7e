"""The command in its caller's places and settings: it runs no code it finds, and ends clearly."""

import os
import socket
import subprocess
import sys
import types
from importlib.machinery import PathFinder
from pathlib import Path

import jax
import pytest
from command import environ

import dreamjax
from dreamjax.dream.registration import find_task
from dreamjax.dream.worlds import SHIPPED, folder_of
from dreamjax.game import take_cover
from dreamjax.game.policies import check
from dreamjax.game.workers import default_workers, python
from dreamjax.importing import find
from dreamjax.memory.kinds import find_kind
from dreamjax.play import command as play
from dreamjax.run import cli
from dreamjax.task import Task
from dreamjax.tasks import TAKE_COVER
from dreamjax.training import container, devices

ROOT = Path(dreamjax.__file__).parents[1]
TRAP = "open({mark!r}, 'a').write(__name__)\nraise SystemExit('a trap')\n"
TRAPS = ("optax", "numpy", "random", "vizdoom", "sitecustomize", "lazy_loader", "benchmarks", "jax")
SCRIPT = "import sys; sys.path[0] = {root!r}; from dreamjax.run.cli import main; sys.exit(main())"


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """A downloaded folder, in which we are, and the file that tells which of its code has run."""
    mark = tmp_path / "mark"
    (tmp_path / "download").mkdir()
    for name in TRAPS:
        trap = TRAP.format(mark=str(mark))
        (tmp_path / "download" / f"{name}.py").write_text(trap)
    (tmp_path / "download" / "_vizdoom.cfg").write_text("no configuration")
    (tmp_path / "command").write_text(SCRIPT.format(root=str(ROOT)))
    (tmp_path / "download" / "mine.py").write_text("import dreamjax\nTASK = dreamjax.TAKE_COVER\n")
    monkeypatch.chdir(tmp_path / "download")
    return mark


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["-m", "dreamjax"], marks=pytest.mark.slow, id="-m"),
        pytest.param(["{}/command"], id="script"),
    ],
)
def test_no_code_of_the_current_directory_runs_but_what_is_asked_for(trapped, how):
    words = ["doctor", ".", "--task", "mine:TASK"]
    started = [sys.executable, *(word.format(trapped.parent) for word in how), *words]
    environment = environ(PYTHONPATH=ROOT)
    done = subprocess.run(started, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "no run is here" in done.stdout, done.stderr
    assert not trapped.exists(), f"{trapped.read_text()} ran"


def test_a_worker_finds_modules_where_its_parent_does_and_starts_without_them(trapped, monkeypatch):
    monkeypatch.setattr(sys, "path", [*filter(None, sys.path), os.getcwd(), ""])
    told = subprocess.run(
        python("print(sys.path)"), cwd="/", capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str([os.path.abspath(place) for place in sys.path])
    assert not trapped.exists()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A directory of modules of one's own, in which we are, as the console script runs there."""
    (tmp_path / "games").mkdir()
    code = "import dreamjax, helper\nTASK = dreamjax.TAKE_COVER\ndef straight(*_): pass\n"
    for path in ("my_game.py", "games/below.py"):
        (tmp_path / path).write_text(code)
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "random.py").write_text("raise SystemExit('a trap')")
    (tmp_path / "ours.py").write_text("import dreamjax\nclass M(dreamjax.Memory): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield tmp_path
    for name in ("my_game", "helper", "games.below", "games", "ours"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("look", "name"),
    [
        (find_task, "my_game:TASK"),
        (find_task, "games.below:TASK"),
        (check, "my_game:straight"),
        (find_kind, "ours:M"),
    ],
)
def test_modules_of_the_current_directory_come_last(elsewhere, look, name):
    before = list(sys.path)
    look(name)
    assert sys.path == [*before, str(elsewhere)]
    assert PathFinder.find_spec("random", sys.path).origin != str(elsewhere / "random.py")


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("my_game.py:TASK", "write my_game:TASK"),
        ("./my_game.py:TASK", "write my_game:TASK, with PYTHONPATH=."),
        ("games/below.py:TASK", "write below:TASK, with PYTHONPATH=games"),
        ("games/below:TASK", "write below:TASK, with PYTHONPATH=games"),
        ("/games/below.py:straight", "write below:straight, with PYTHONPATH=/games"),
    ],
)
@pytest.mark.parametrize("look", [find_task, check, find_kind])
def test_the_path_of_a_file_is_answered_by_what_to_write(look, path, advice):
    with pytest.raises(ValueError, match="names a file; ") as refused:
        look(path)
    line = str(refused.value)
    assert line.endswith(advice.removesuffix(", with PYTHONPATH=.")) and "\n" not in line


def started_as(monkeypatch, file, module=None):
    """Python as it was started with a file, or with `-m module`."""
    main = types.ModuleType("__main__")
    main.__file__, main.mark = file, "the module that was started"
    main.__spec__ = types.SimpleNamespace(name=module) if module else None
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


@pytest.mark.parametrize(
    ("file", "module", "name"),
    [
        ("/games/pole.py", None, "pole"),
        ("/games/pole.py", "pole", "pole"),
        ("/games/below/pole.py", "below.pole", "below.pole"),
        ("/games/dreamjax.py", None, "dreamjax"),
    ],
)
def test_a_script_finds_its_own_task_and_tells_it_to_others(monkeypatch, file, module, name):
    main = started_as(monkeypatch, file, module)

    def make():
        pass

    make.__module__, make.__qualname__ = "__main__", "make"
    main.make = make
    assert Task(name="pole", make=make).make == f"{name}:make"
    assert find(f"{name}:make") is make


@pytest.mark.parametrize("file", ["/usr/bin/dreamjax", "/src/dreamjax/__main__.py"])
def test_the_commands_own_script_is_no_module(monkeypatch, file):
    started_as(monkeypatch, file, "dreamjax.__main__" if file.endswith(".py") else None)
    assert find("dreamjax:TAKE_COVER") is TAKE_COVER
    with pytest.raises(ValueError, match=r"dreamjax has no 'mark'; it is .*__init__\.py"):
        find("dreamjax:mark")


def test_a_name_of_both_is_the_shipped_world_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert folder_of("take-cover") == SHIPPED / "take-cover" and not capsys.readouterr().out
    (tmp_path / "take-cover").mkdir()
    for _ in range(2):
        assert folder_of("take-cover") == SHIPPED / "take-cover"
    told = "take-cover is the shipped world; the directory of that name is ./take-cover\n"
    assert capsys.readouterr().out == told
    for other in ("./take-cover", "take-cover/", Path("take-cover"), str(tmp_path / "take-cover")):
        assert folder_of(other).resolve() == tmp_path / "take-cover"
    assert folder_of("~/take-cover") == Path.home() / "take-cover"
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("~/x", "{}/x"),
        ("--world=~/x", "--world={}/x"),
        ("--run-dir=~/x=~", "--run-dir={}/x=~"),
        ("~", "{}"),
        ("--world", "--world"),
        ("a~/b", "a~/b"),
        ("--seed=3", "--seed=3"),
    ],
)
def test_the_home_is_found_in_any_word(word, expanded, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_parse", lambda words: seen.extend(words) or (lambda: None))
    assert cli.main(["info", word]) == 0
    assert seen == ["info", expanded.format(Path.home())]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "there is no cuda here ("),
        ({"JAX_PLATFORMS": "nonsense"}, "; unset JAX_PLATFORMS and XLA_FLAGS, or install dreamj"),
        (
            {"JAX_ENABLE_X64": "maybe"},
            "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'",
        ),
    ],
)
def test_a_jax_that_does_not_start_is_one_clear_line(variables, told):
    words = [sys.executable, "-m", "dreamjax", "info"]
    done = subprocess.run(words, capture_output=True, text=True, env=environ(**variables))
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("dreamjax: ") and told in done.stderr


@pytest.mark.parametrize("device", ["auto", "gpu"])
@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no such\nbackend")])
def test_a_device_that_does_not_come_is_named(device, error, monkeypatch):
    def refuse():
        raise error

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")
    with pytest.raises(ValueError) as refused:
        devices.use(device)
    asked, remedy = {"auto": ("rocm", "unset JAX_PLATFORMS"), "gpu": ("gpu", "use --device auto")}[
        device
    ]
    line = str(refused.value)
    assert line.startswith(f"there is no {asked} here (") and remedy in line and "\n" not in line


@pytest.mark.parametrize("status", [0, 141])
def test_a_reader_who_has_read_enough_is_not_told_of_it(status, monkeypatch, capfd):
    def write():
        raise BrokenPipeError(32, "Broken pipe")

    write.resumes = bool(status)
    monkeypatch.setattr(cli, "_parse", lambda words: write)
    out = os.dup(1)
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(fileno=lambda: out))
    assert cli.main(["collect"] if status else ["info"]) == status
    assert capfd.readouterr().err.count("resume with: dreamjax collect") == bool(status)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["--help", "."])
def test_little_output_into_a_closed_pipe_is_silent(word):
    """So little that it waits in a buffer until the end."""
    reading, writing = os.pipe()
    os.close(reading)
    started = [sys.executable, "-m", "dreamjax", "doctor", word]
    environment = environ(PYTHONUNBUFFERED="")
    done = subprocess.run(started, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), ImportError("a.so: Too many open files")]
)
def test_too_many_open_files_come_with_a_remedy(error, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(cli, "_parse", lambda words: fail)
    assert cli.main(["collect"]) == 1
    line = capsys.readouterr().err
    assert "Too many open files; use fewer --workers, or lift the limit: ulimit -n" in line
    assert line.count("\n") == 1


def test_a_port_in_use_is_found_before_any_work(monkeypatch):
    monkeypatch.setattr(play, "write", lambda *page, **how: pytest.fail("work was done before"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="is not to be had .in use.; choose another by --port"):
            play.show("take-cover", taken.getsockname()[1], 0, [])


def test_too_little_shared_memory_is_named(monkeypatch):
    usage = types.SimpleNamespace(free=(11 << 20) - 1)
    monkeypatch.setattr(take_cover.shutil, "disk_usage", lambda place: usage)
    monkeypatch.setattr(take_cover.os.path, "isdir", lambda place: True)
    with pytest.raises(OSError, match="11 MB .* but /dev/shm has 10 MB left; .*--shm-size"):
        take_cover._check_limit()
    usage.free += 1
    take_cover._check_limit()


GIB = 1 << 30
GROUPS = [  # lines of /proc/self/cgroup, files of the groups, bytes, cores
    ("0::/", {}, None, None),
    ("0::/", {"memory.max": "max\n", "cpu.max": "max 100000\n"}, None, None),
    ("0::/", {"memory.max": f"{GIB}\n", "cpu.max": "200000 100000\n"}, GIB, 2),
    ("0::/", {"cpu.max": "50000 100000"}, None, 0.5),
    (
        "0::/pod/job",
        {"memory.max": "max", "pod/memory.max": f"{GIB}", "pod/job/memory.max": f"{2 * GIB}"}
        | {"pod/cpu.max": "300000 100000", "pod/job/cpu.max": "max 100000"},
        GIB,
        3,
    ),
    (
        "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a",
        {"memory/docker/a/memory.limit_in_bytes": f"{GIB}"}
        | {"memory/memory.limit_in_bytes": "9223372036854771712"}
        | {f"cpu,cpuacct/docker/a/cpu.cfs_{name}_us": "100000" for name in ("quota", "period")},
        GIB,
        1,
    ),
    (  # inside a container that sees its own group at the root
        "5:memory:/docker/a\n4:cpu:/docker/a\n0::/docker/a",
        {"memory/memory.limit_in_bytes": f"{GIB}"}
        | {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        GIB,
        None,
    ),
]


@pytest.mark.parametrize(("told", "files", "memory", "cores"), GROUPS)
def test_a_containers_limits_bound_memory_and_workers(
    told, files, memory, cores, tmp_path, monkeypatch
):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in (files | {"proc/self/cgroup": told}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(container, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    assert default_workers() == max(1, cores or 64)
    assert devices.device_memory() <= (memory or float("inf"))
    if memory:
        assert container.memory_limit() == memory


def test_a_system_without_control_groups_limits_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "ROOT", tmp_path)
    assert container.memory_limit() == container.core_limit() == float("inf")
