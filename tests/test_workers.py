"""Worker processes: same games whoever plays them, and no crash, hang or orphan survives."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from dreamjax import policies, real
from dreamjax.tasks import TAKE_COVER, TAKE_COVER_VIZDOOM
from dreamjax.workers import VectorGame, WorkerError, play, run_jobs

LEFT = np.array([-1.0], np.float32)


def children(pid):
    """Process ids of the children of `pid`."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for found in lists for child in found.split()]


def running(pids):
    """Those of `pids` that are alive, zombies apart."""
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX":
                alive.append(pid)
    return alive


def working_in(folder):
    """Process ids of workers and engines whose working directory is, or was, below `folder`."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd").startswith(str(folder)):
                pids.append(int(process.name))
    return pids


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()


# What workers are told to run in these tests.


def sabotaged(game, job, tick):
    """Score an episode, but at its 30th step send `signal` to the engine unless `marker` exists."""
    marker, number = job
    total = 0.0
    for step, (_, _, reward, _) in enumerate(policies.play_steps(game, "uniform", 11)):
        total += reward
        tick(1)
        if step == 30 and not os.path.exists(marker):
            Path(marker).touch()
            for engine in children(os.getpid()):
                os.kill(engine, number)
    return total


def hopeless(game, job, tick):
    os.kill(os.getpid(), signal.SIGKILL)


def faulty(game, job, tick):
    raise ValueError(f"job {job} is beyond me")


def lengthy(game, job, tick):
    for _ in range(30):
        time.sleep(0.1)
        tick(1)
    return job


class Counter(gymnasium.Env):
    """Shows its own step number; ends after `seed` steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.left, self.shown = seed, 0
        return np.full((64, 64, 3), 0, np.uint8), {}

    def step(self, action):
        self.shown += 1
        frame = np.full((64, 64, 3), self.shown, np.uint8)
        return frame, float(action.sum()), self.shown >= self.left, False, {}


def counter(task, screen):
    return Counter()


def not_installed(task, screen):
    raise ImportError("this game needs Magic: pip install magic")


@pytest.fixture
def fake_task(monkeypatch):
    """A task whose game is `Counter`; the tests of the library may do the same."""
    monkeypatch.setitem(real.FACTORIES, "counter", "test_workers:counter")
    return dataclasses.replace(TAKE_COVER, profile="counter", action_size=2)


@pytest.fixture(autouse=True)
def clean_up(tmp_path_factory, monkeypatch):
    """After every test: no process, no temporary folder and no shared memory is left of it."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    memory = set(os.listdir("/dev/shm"))
    yield
    wait_until(lambda: not running(working_in(folder)), 5)
    assert os.listdir(folder) == []
    left = {name for name in set(os.listdir("/dev/shm")) - memory if name.startswith("ViZDoom")}
    assert not left & set(_ours)
    _ours.clear()


_ours = []  # shared-memory files of engines that a test saw


@pytest.mark.parametrize("workers", [1, 3])
def test_playing_does_not_depend_on_the_workers(workers):
    seeds = [5, -3, 2**40, 6, 7]
    played = play(TAKE_COVER, "uniform", seeds, workers=workers)
    env = real.make_env(TAKE_COVER)
    lengths = [sum(1 for _ in policies.play_steps(env, "uniform", seed)) for seed in seeds]
    env.close()
    assert played.lengths.tolist() == lengths
    assert played.returns.tolist() == lengths
    assert played.terminated.all()


def test_baselines_match_the_paper_and_the_measured_blind_one():
    random = play(TAKE_COVER, "uniform", range(40), workers=2).returns
    assert abs(random.mean() - 209) < 4 * 99 / np.sqrt(len(random))
    assert 60 < random.std() < 140
    blind = play(TAKE_COVER, "blind", range(30), workers=2).returns
    assert abs(blind.mean() - 780) < 4 * 565 / np.sqrt(len(blind))
    assert blind.mean() > 2 * random.mean()


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="uniform, held, varied, blind"):
        play(TAKE_COVER, "clever", [1])
    with pytest.raises(ValueError, match="seeds is empty"):
        play(TAKE_COVER, "held", [])
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        play(TAKE_COVER, "held", [1], workers=0)
    with pytest.raises(ValueError, match="num_games"):
        VectorGame(TAKE_COVER, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_an_episode_whose_engine_crashes_or_hangs_is_played_again(number, tmp_path):
    jobs = [(str(tmp_path / "marker"), number), (os.devnull, number)]
    results = dict(run_jobs(TAKE_COVER, "test_workers:sabotaged", jobs, workers=2, timeout=3))
    assert (tmp_path / "marker").exists()
    assert results[0] == results[1] > 31


def test_a_job_that_always_loses_its_worker_ends_in_one_error():
    jobs = run_jobs(TAKE_COVER, "test_workers:hopeless", ["job"], workers=1, retries=1)
    with pytest.raises(WorkerError, match="lost 2 times in a row: a worker died") as caught:
        list(jobs)
    assert "\n" not in str(caught.value)


def test_an_exception_of_a_job_arrives_with_its_text_and_traceback(fake_task):
    with pytest.raises(ValueError, match="^job 7 is beyond me$") as caught:
        list(run_jobs(fake_task, "test_workers:faulty", [7]))
    assert "in faulty" in str(caught.value.__cause__)


def test_a_missing_package_arrives_as_an_import_error_with_its_pip_line(fake_task, monkeypatch):
    monkeypatch.setitem(real.FACTORIES, "counter", "test_workers:not_installed")
    with pytest.raises(ImportError, match="pip install magic"):
        list(run_jobs(fake_task, "test_workers:lengthy", [1], workers=1))
    with pytest.raises(ImportError, match="pip install magic"), VectorGame(fake_task, 1) as games:
        games.reset([0], [0])


def test_ticks_keep_a_long_job_alive(fake_task):
    ticks = []
    jobs = run_jobs(
        fake_task, "test_workers:lengthy", ["a"], workers=1, timeout=2.5, tick=ticks.append
    )
    assert list(jobs) == [(0, "a")]
    assert sum(ticks) == 30 and len(ticks) > 1


def test_workers_are_small_and_know_no_jax():
    with VectorGame(TAKE_COVER, 1) as games:
        games.reset([0], [0])
        maps = Path(f"/proc/{games._workers[0].process.pid}/maps").read_text()
    assert "numpy" in maps and "jaxlib" not in maps


def test_games_in_step_are_the_games_played_alone():
    seeds, steps = [3, 4, 5, 6, 7], 40
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (steps, len(seeds), 1)).astype(np.float32)
    with VectorGame(TAKE_COVER, len(seeds), workers=2) as games:
        frames = [games.reset(range(5), seeds)]
        for action in actions:
            frame, rewards, terminated, truncated, lost = games.step(range(5), action)
            frames.append(frame)
            assert rewards.tolist() == [1.0] * 5
            assert not (terminated | truncated | lost).any()
    env = real.make_env(TAKE_COVER)
    for slot, seed in enumerate(seeds):
        alone = [env.reset(seed=seed)[0]] + [env.step(action[slot])[0] for action in actions]
        np.testing.assert_array_equal(np.stack(frames)[:, slot], alone)
    env.close()


def test_slots_may_be_played_in_any_order_and_number(fake_task):
    with VectorGame(fake_task, 5, workers=2) as games:
        games.reset([4, 0, 3], [2, 100, 100])
        games.reset([1], [100])
        frames, rewards, terminated, _, lost = games.step([3, 4], np.array([[0.5, 0.5], [0, -1]]))
        assert frames[:, 0, 0, 0].tolist() == [1, 1] and rewards.tolist() == [1.0, -1.0]
        frames, _, terminated, _, lost = games.step([4, 1, 3, 2], np.zeros((4, 2)))
        assert frames[:, 0, 0, 0].tolist() == [2, 1, 2, 0]
        assert terminated.tolist() == [True, False, False, False]
        assert lost.tolist() == [False, False, False, True]  # slot 2 was never reset


def test_a_bad_action_is_refused_and_the_other_workers_play_on(fake_task):
    with VectorGame(fake_task, 2, workers=2) as games:
        games.reset([0, 1], [100, 100])
        with pytest.raises(ValueError, match="nan"):
            games.step([0, 1], np.array([[np.nan, 0], [0, 0]]))
        frames, *_, lost = games.step([0, 1], np.zeros((2, 2)))
        assert lost.tolist() == [True, False] and frames[1, 0, 0, 0] == 2
        assert games.reset([0], [100]).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_a_game_lost_in_step_is_marked_and_can_be_reset(number):
    with VectorGame(TAKE_COVER, 2, workers=2, timeout=3) as games:
        first = games.reset([0, 1], [8, 9])
        games.step([0, 1], [LEFT, LEFT])
        _ours.extend(os.path.basename(f) for worker in games._workers for f in worker.files)
        for engine in children(games._workers[1].process.pid):
            os.kill(engine, number)
        lost = games.step([0, 1], [LEFT, LEFT])[-1]
        for _ in range(40):  # a killed engine is noticed when it is next waited for
            if lost[1]:
                break
            lost = games.step([0, 1], [LEFT, LEFT])[-1]
        assert lost.tolist() == [False, True]
        np.testing.assert_array_equal(games.reset([1], [9])[0], first[1])
        assert not games.step([0, 1], [LEFT, LEFT])[-1].any()


def test_two_vector_games_do_not_disturb_each_other():
    with VectorGame(TAKE_COVER, 2) as one, VectorGame(TAKE_COVER_VIZDOOM, 2) as two:
        first = one.reset([0, 1], [1, 2]), two.reset([0, 1], [1, 2])
        for _ in range(5):
            one.step([0, 1], [LEFT, LEFT]), two.step([0, 1], [LEFT, LEFT])
        np.testing.assert_array_equal(one.reset([0, 1], [1, 2]), first[0])
        np.testing.assert_array_equal(two.reset([0, 1], [1, 2]), first[1])


ORPHANS = """
import numpy as np
from dreamjax.tasks import TAKE_COVER
from dreamjax.workers import VectorGame
games = VectorGame(TAKE_COVER, 2, workers=2)
games.reset([0, 1], [0, 1])
print(*[worker.process.pid for worker in games._workers])
print(*[file for worker in games._workers for file in worker.files], flush=True)
while True:
    for slot in np.flatnonzero(games.step([0, 1], [[-1], [1]])[2]):
        games.reset([slot], [0])
"""


@pytest.mark.parametrize("hang", [False, True], ids=["", "with a hung engine"])
def test_workers_and_engines_end_soon_after_their_parent_is_killed(hang, tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    files = parent.stdout.readline().split()
    engines = [engine for worker in workers for engine in children(worker)]
    assert len(running(workers)) == 2 and len(running(engines)) == 2 and files
    if hang:
        os.kill(engines[0], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    wait_until(lambda: not running(workers + engines), 10)
    assert not any(os.path.exists(file) for file in files)
    assert not os.listdir(tmp_path)
