"""Worker processes: same games whoever plays them, and no crash, hang or orphan survives."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from processes import children, running, shared_memory, wait_until, working_in

from dreamjax.actions import Box
from dreamjax.game import env as real
from dreamjax.game import policies, scratch, take_cover
from dreamjax.game.jobs import play, run_jobs
from dreamjax.game.vector import VectorGame
from dreamjax.game.workers import WorkerError
from dreamjax.tasks import TAKE_COVER, TAKE_COVER_VIZDOOM

LEFT = np.array([-1.0], np.float32)


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
    print("such is life", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def faulty(game, job, tick):
    raise ValueError(f"job {job} is beyond me")


def forgetful(game, job, tick):
    return {}["speed"]


def unreadable(game, job, tick):
    return b"\xff".decode()


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


def counter():
    return Counter()


def not_installed():
    raise ImportError("this game needs Magic: pip install magic")


@pytest.fixture
def fake_task():
    """A task whose game is `Counter`; the tests of the library may do the same."""
    return played_by("counter")


def played_by(name):
    """A task whose game a function of this file makes."""
    game = {"profile": "counter", "make": f"test_workers:{name}", "crop": None, "step_reward": None}
    return dataclasses.replace(TAKE_COVER, actions=Box((-1, -1), (1, 1)), **game)


@pytest.fixture(autouse=True)
def clean_up(tmp_path_factory, monkeypatch):
    """After every test: no process, no temporary folder and no shared memory is left of it.

    Yields the shared-memory files that were cleared away.
    """
    folder, files, clear = tmp_path_factory.mktemp("temporary"), [], scratch.clear

    def noting(directory):
        files.extend(shared_memory(directory))
        clear(directory)

    monkeypatch.setattr(scratch, "clear", noting)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield files
    wait_until(lambda: not running(working_in(folder)), 5)
    assert os.listdir(folder) == []
    assert not [file for file in files if file.exists()]


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


def lit(actions, rng):
    """A policy that goes right where it sees a picture, and left where it sees none."""
    return lambda step, frame: -LEFT if frame.any() else LEFT


def test_a_policy_that_looks_is_shown_the_game():
    lengths = []
    for screen in (True, False):
        env = real.make_env(TAKE_COVER, screen=screen)
        lengths.append(sum(1 for _ in policies.play_steps(env, "test_workers:lit", 3)))
        env.close()
    assert lengths[0] != lengths[1]
    assert play(TAKE_COVER, "test_workers:lit", [3]).lengths.tolist() == lengths[:1]


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="uniform, held, varied, blind"):
        play(TAKE_COVER, "clever", [1])
    with pytest.raises(ValueError, match="toy_game has no 'clever'"):
        play(TAKE_COVER, "toy_game:clever", [1])
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
    words = r"lost 2 times in a row: a worker died of SIGKILL \(Killed.*\) saying 'such is life'$"
    with pytest.raises(WorkerError, match=words) as caught:
        list(jobs)
    assert "\n" not in str(caught.value)


def test_an_exception_of_a_job_arrives_with_its_text_and_traceback(fake_task):
    with pytest.raises(ValueError, match="^job 7 is beyond me$") as caught:
        list(run_jobs(fake_task, "test_workers:faulty", [7]))
    assert "in faulty" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "job, kind, words",
    [
        ("forgetful", WorkerError, "^KeyError: 'speed'$"),
        ("unreadable", ValueError, "^'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_an_error_that_cannot_be_raised_again_arrives_as_one_that_can(job, kind, words, fake_task):
    with pytest.raises(kind, match=words):
        list(run_jobs(fake_task, f"test_workers:{job}", [None], workers=1))


def test_a_missing_package_arrives_as_an_import_error_with_its_pip_line():
    task = played_by("not_installed")
    with pytest.raises(ImportError, match="pip install magic"):
        list(run_jobs(task, "test_workers:lengthy", [1], workers=1))
    with pytest.raises(ImportError, match="pip install magic"), VectorGame(task, 1) as games:
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
            frame, rewards, ends, truncated = games.step(range(5), action)
            frames.append(frame)
            assert rewards.tolist() == [1.0] * 5
            assert ends.tolist() == [-1] * 5 and not truncated.any()
    env = real.make_env(TAKE_COVER)
    for slot, seed in enumerate(seeds):
        alone = [env.reset(seed=seed)[0]] + [env.step(action[slot])[0] for action in actions]
        np.testing.assert_array_equal(np.stack(frames)[:, slot], alone)
    env.close()


def test_slots_may_be_played_in_any_order_and_number(fake_task):
    with VectorGame(fake_task, 5, workers=2) as games:
        games.reset([4, 0, 3], [2, 100, 100])
        games.reset([1], [100])
        frames, rewards, _, _ = games.step([3, 4], np.array([[0.5, 0.5], [0, -1]]))
        assert frames[:, 0, 0, 0].tolist() == [1, 1] and rewards.tolist() == [1.0, -1.0]
        frames, _, ends, _ = games.step([4, 1, 3], np.zeros((3, 2)))
        assert frames[:, 0, 0, 0].tolist() == [2, 1, 2]
        assert ends.dtype == np.int8 and ends.tolist() == [0, -1, -1]
        for slot in (2, 4):  # one was never reset, the other's episode is over
            with pytest.raises(RuntimeError, match=f"no episode is running in slot {slot}; call"):
                games.step([3, slot], np.zeros((2, 2)))


def test_a_bad_action_is_refused_and_ends_the_episodes_it_came_with(fake_task):
    with VectorGame(fake_task, 3, workers=2) as games:
        games.reset([0, 1, 2], [100, 100, 100])
        with pytest.raises(ValueError, match="nan"):
            games.step([0, 1], np.array([[np.nan, 0], [0, 0]]))
        for slot in (0, 1):
            with pytest.raises(RuntimeError, match="no episode"):
                games.step([slot], np.zeros((1, 2)))
        assert games.step([2], np.zeros((1, 2)))[0][0, 0, 0, 0] == 1
        games.reset([0, 1], [100, 100])
        assert games.step([0, 1], np.zeros((2, 2)))[0][:, 0, 0, 0].tolist() == [1, 1]


LOST = {
    "an engine is killed": lambda worker: (children(worker)[0], signal.SIGKILL),
    "an engine hangs": lambda worker: (children(worker)[0], signal.SIGSTOP),
    "a worker is killed": lambda worker: (worker, signal.SIGKILL),
    "a worker hangs": lambda worker: (worker, signal.SIGSTOP),
}


@pytest.mark.parametrize(
    "how",
    [pytest.param(x, marks=[] if x == "a worker is killed" else [pytest.mark.slow]) for x in LOST],
)
def test_games_lost_in_step_go_on_as_if_nothing_had_been(how):
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 3, 1)).astype(np.float32)

    def played(fault):
        with VectorGame(TAKE_COVER, 3, workers=2, timeout=5) as games:
            seen = [games.reset(range(3), [7, 8, 9])]
            for step, action in enumerate(actions):
                if step == 30 and fault:
                    os.kill(*fault(games._workers[0].process.pid))  # plays slots 0 and 2
                seen.append(games.step(range(3), action)[0])
            ours = games._workers[0].process.pid
        return np.stack(seen), ours

    undisturbed, disturbed = played(None), played(LOST[how])
    np.testing.assert_array_equal(disturbed[0], undisturbed[0])


def test_only_what_was_asked_for_is_answered_where_a_worker_is_lost(fake_task):
    with VectorGame(fake_task, 3, workers=1) as games:
        games.reset([0, 1, 2], [100, 100, 1])
        assert not games.awaited
        games.send([0], np.zeros((1, 2)))
        os.kill(games._workers[0].process.pid, signal.SIGKILL)
        games.send([2], np.zeros((1, 2)))
        found = [games.receive() for _ in range(2) if games.awaited]
        assert np.concatenate([steps.slots for steps in found]).tolist() == [0, 2]
        assert np.concatenate([steps.ends for steps in found]).tolist() == [-1, 0]
        assert not games.awaited
        games.send([1], np.zeros((1, 2)))
        games.begin([2], [100])
        found = [games.receive() for _ in range(2) if games.awaited]
        shown = [(int(steps.slots[0]), steps.frames[0, 0, 0, 0]) for steps in found]
        assert sorted(shown) == [(1, 1), (2, 0)]


def fragile():
    return Fragile()


class Fragile(Counter):
    """Takes its process with it at its third step if its seed is odd."""

    def step(self, action):
        if self.shown == 2 and self.left % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def test_a_game_that_crashes_at_the_same_step_each_time_is_given_up():
    with VectorGame(played_by("fragile"), 4, workers=2, retries=2) as games:
        games.reset(range(4), [100, 101, 102, 104])
        for _ in range(2):
            games.step(range(4), np.zeros((4, 2)))
        words = "^the game take-cover with seed 101 or 104 was lost 3 times: a worker died of SIG"
        with pytest.raises(WorkerError, match=words) as caught:
            games.step(range(4), np.zeros((4, 2)))
    assert "\n" not in str(caught.value)


def test_two_vector_games_do_not_disturb_each_other():
    with VectorGame(TAKE_COVER, 2) as one, VectorGame(TAKE_COVER_VIZDOOM, 2) as two:
        first = one.reset([0, 1], [1, 2]), two.reset([0, 1], [1, 2])
        for _ in range(5):
            one.step([0, 1], [LEFT, LEFT]), two.step([0, 1], [LEFT, LEFT])
        np.testing.assert_array_equal(one.reset([0, 1], [1, 2]), first[0])
        np.testing.assert_array_equal(two.reset([0, 1], [1, 2]), first[1])


def test_a_limit_that_an_engine_cannot_start_under_is_named():
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, limit[1]))
    try:
        with pytest.raises(OSError, match="11 MB.* 8 MB.*ulimit -f unlimited") as caught:
            list(run_jobs(TAKE_COVER, "test_workers:lengthy", ["a"], workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(caught.value)


def doomed():
    take_cover.engine_files = lambda: []  # so that the engine's start alone names its memory
    game = take_cover.make()
    game.reset(seed=0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_as_it_starts_leaves_nothing(clean_up):
    task = played_by("doomed")
    with pytest.raises(WorkerError, match="lost 2 times"):
        list(run_jobs(task, "test_workers:lengthy", ["a"], workers=1, retries=1))
    assert len(clean_up) == 6
    with (
        pytest.raises(WorkerError, match="game take-cover with seed 5 was lost 2 times"),
        VectorGame(task, 1, retries=1) as games,
    ):
        games.reset([0], [5])


ORPHANS = """
import numpy as np
from dreamjax.tasks import TAKE_COVER
from dreamjax.game.vector import VectorGame
games = VectorGame(TAKE_COVER, 2, workers=2)
games.reset([0, 1], [0, 1])
print(*[worker.process.pid for worker in games._workers], flush=True)
while True:
    for slot in np.flatnonzero(games.step([0, 1], [[-1], [1]])[2] >= 0):
        games.reset([slot], [0])
"""


@pytest.fixture
def orphans(tmp_path):
    """A process that plays two games in a temporary folder of its own: it and its workers."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    engines = [engine for worker in workers for engine in children(worker)]
    assert len(running(workers)) == 2 and len(running(engines)) == 2
    yield parent, workers, engines
    for pid in running([parent.pid, *workers, *engines]):
        os.kill(pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()


@pytest.mark.parametrize("hang", [False, True], ids=["", "with a hung engine"])
def test_workers_and_engines_end_soon_after_their_parent_is_killed(hang, orphans, tmp_path):
    parent, workers, engines = orphans
    files = shared_memory(tmp_path)
    assert len(files) == 6 and all(file.exists() for file in files)
    if hang:
        os.kill(engines[0], signal.SIGSTOP)
    parent.kill()
    wait_until(lambda: not running(workers + engines), 10)
    assert not any(file.exists() for file in files)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("hang", [False, True], ids=["", "with a hung worker"])
def test_the_next_start_clears_what_a_run_killed_outright_leaves(
    hang, orphans, tmp_path, monkeypatch
):
    parent, workers, engines = orphans
    files = shared_memory(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with VectorGame(TAKE_COVER, 1) as games:
        first = games.reset([0], [3])
        ours = {games._workers[0].directory.name: shared_memory(games._workers[0].directory)}
        os.kill(workers[0], signal.SIGSTOP if hang else signal.SIGKILL)
        for pid in (parent.pid, workers[1]):
            os.kill(pid, signal.SIGKILL)
        parent.wait()
        # Without a worker its engine ends at once; with a hung one it stays until the next start.
        wait_until(lambda: running(engines) == engines[:hang], 5)
        assert len(os.listdir(tmp_path)) == 3
        with VectorGame(TAKE_COVER, 1):
            wait_until(lambda: not running(workers + engines), 5)
            assert len(os.listdir(tmp_path)) == 2
        assert not any(file.exists() for file in files)
        assert os.listdir(tmp_path) == list(ours)
        games.step([0], [LEFT])
        np.testing.assert_array_equal(games.reset([0], [3]), first)


def test_only_scratch_directories_of_the_dead_are_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    living = scratch.Scratch("worker")
    for name in ("dreamjax-worker-dead", "dreamjax-worker-being_made", "somebody-else-s"):
        (tmp_path / name).mkdir()
    for name in ("dreamjax-worker-dead", "somebody-else-s"):
        (tmp_path / name / scratch.LOCK).touch()
    idler = subprocess.Popen(["sleep", "60"], cwd=tmp_path / "dreamjax-worker-dead")
    scratch.sweep()
    kept = {"dreamjax-worker-being_made", "somebody-else-s", living.path.name}
    assert set(os.listdir(tmp_path)) == kept
    idler.terminate()
    assert idler.wait() == -signal.SIGTERM, "it was neither a worker nor an engine"
    living.clear()
    assert set(os.listdir(tmp_path)) == kept - {living.path.name}


def test_a_player_started_by_hand_removes_nothing(tmp_path):
    (tmp_path / "mine").touch()
    words = [sys.executable, "-c", "from dreamjax.game.player import main; main(0, 1)"]
    kept = {"capture_output": True, "text": True, "start_new_session": True}
    ended = subprocess.run(words, cwd=tmp_path, **kept)
    assert ended.returncode == 1 and "only dreamjax.game.workers starts a player" in ended.stderr
    assert os.listdir(tmp_path) == ["mine"]
