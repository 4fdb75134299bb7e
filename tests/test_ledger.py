"""What a run has, what it lacks, and what each command will do: one answer for all who ask."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from short_cover import SHORT
from test_checkpoint import flip
from test_faults import contents
from test_latents import sequences
from test_pipeline import TINY

from dreamjax.actions import Keys
from dreamjax.dream.worlds import load_player, load_world, save_world
from dreamjax.game import rollouts
from dreamjax.game.collecting import collect, settings_of
from dreamjax.game.rollouts import shard_paths
from dreamjax.memory.latents import places, read_latents
from dreamjax.run import cli, ledger
from dreamjax.run.doctor import as_made
from dreamjax.run.game import check_game, note_game
from dreamjax.run.ledger import AGAIN, DONE, FRESH, REFUSE, RESUME, decide
from dreamjax.run.lineage import held_below, judged_below
from dreamjax.run.phases import PHASES
from dreamjax.run.places import is_same, way
from dreamjax.run.presets import PRESETS
from dreamjax.run.settings import Run, RunConfig
from dreamjax.training.checkpoint import CheckpointError, Store, digest
from dreamjax.training.logbook import Logbook

QUIET = Logbook(quiet=True)


@pytest.fixture
def run(smoke, tmp_path):
    """A copy of the finished run, to be changed."""
    shutil.copytree(smoke[0], tmp_path / "run")
    return tmp_path / "run"


def of(directory, task=SHORT, **sections):
    """The run with the settings that it was made with, but for `{section: {name: value}}`."""
    config = PRESETS["smoke"]
    for section, values in sections.items():
        changed = dataclasses.replace(getattr(config, section), **values)
        config = dataclasses.replace(config, **{section: changed})
    return Run(directory, task, 0, config, QUIET)


FIRST = "shard-00000.npz"


def another_shard(run):
    return shutil.copy(run / "rollouts" / FIRST, run / "rollouts" / "shard-00001.npz")


def kinds(run):
    return {name: decide(run, phase).kind for name, phase in PHASES.items() if phase.folder}


@pytest.mark.parametrize("section, name", [("learn", "branched"), ("memory", "start_states")])
def test_settings_of_older_checkpoints_are_known_by_their_names_of_today(section, name):
    own = getattr(PRESETS["smoke"], section)
    made = ledger.renewed({"seed": 3, "config": {"moments": 7, "steps": 2}}, own)
    assert made == {"seed": 3, "config": {name: 7, "steps": 2}}


# One answer


def test_of_a_finished_run_nothing_is_left_and_all_who_ask_are_told_so(smoke, run, capsys):
    before = contents(run)
    found = kinds(of(run))
    trained = ("collect", "train-vision", "encode", "train-memory", "evolve")
    assert {name: found[name] for name in trained} == dict.fromkeys(trained, DONE)
    assert (found["learn"], found["evaluate"], found["record"]) == (FRESH, AGAIN, FRESH)
    for name in trained:
        made = decide(as_made(run, PHASES[name]), PHASES[name])
        assert made.kind == DONE, f"the doctor asks with what {name} was made with"
    assert cli.main(["doctor", str(run)]) == 0
    said = capsys.readouterr().out
    assert all(f"next: {name} is done" in said for name in trained)
    words = ["run", SHORT.name, "--preset", "smoke", "--run-dir", str(run), "--dry-run"]
    assert ledger.foretold(of(run), map(PHASES.get, trained)) == ()
    assert cli.main(["train-memory", *words[1:]]) == 0
    assert capsys.readouterr().out == "train-memory is done, at 12\n", "nothing to foretell"
    assert contents(run) == before, "to ask changes nothing"


@pytest.mark.parametrize(
    "phase, changed, kind, words",
    [
        ("collect", {"collect": {"episodes": 9}}, RESUME, "goes on from 8 of 9"),
        ("collect", {"collect": {"policy": "blind"}}, REFUSE, "policy=held, now policy=blind"),
        ("train-vision", {"vision": {"steps": 10}}, REFUSE, "steps=8, now steps=10"),  # it falls
        ("train-vision", {"vision": {"beta": 0.5}}, REFUSE, "beta=1.0, now beta=0.5; use another"),
        ("train-memory", {"memory": {"steps": 20}}, RESUME, "goes on from 12 of 20"),
        ("train-memory", {"memory": {"clip": 0.5}}, REFUSE, "clip=1.0, now clip=0.5"),
        ("train-memory", {"memory": {"held_out": 0.3}}, REFUSE, "held_out=0.1, now held_out=0.3"),
        ("evolve", {"evolve": {"generations": 4}}, RESUME, "goes on from 2 of 4"),
        ("evolve", {"dream": {"temperature": 1.5}}, REFUSE, "temperature=1.15"),
        ("learn", {}, FRESH, "begins"),
    ],
)
def test_what_other_settings_make_of_a_phase(smoke, phase, changed, kind, words):
    found = decide(of(smoke[0], **changed), PHASES[phase])
    assert found.kind == kind and words in found.said and "\n" not in found.said


@pytest.mark.parametrize(
    "spoil, phase, kind, words",
    [
        (lambda run: flip(run / "vision" / "00000008"), "train-vision", FRESH, "begins"),
        (lambda run: shutil.rmtree(run / "vision"), "encode", DONE, "is done"),
        (lambda run: shutil.rmtree(run / "latents"), "encode", FRESH, "begins"),
        (lambda run: shutil.rmtree(run / "latents"), "train-memory", REFUSE, "encode some"),
        (lambda run: shutil.rmtree(run / "rollouts"), "train-vision", REFUSE, "collect some first"),
        (lambda run: shutil.rmtree(run / "world"), "evolve", REFUSE, "no world in"),
        (lambda run: shutil.rmtree(run / "controller"), "evaluate", REFUSE, "no usable checkpoint"),
        (lambda run: (run / "results.json").unlink(), "evaluate", FRESH, "begins"),
        (another_shard, "encode", RESUME, "goes on from 1 of 2"),
        (lambda run: another_shard(run).with_name(FIRST).unlink(), "encode", RESUME, "0 of 1"),
        (another_shard, "train-vision", REFUSE, "data=1,227 frames"),
        (lambda run: (run / "latents" / FIRST).write_bytes(b""), "encode", FRESH, "begins"),
        (lambda run: (run / "rollouts" / FIRST).write_bytes(b""), "collect", RESUME, "0 of 8"),
    ],
)
def test_what_is_missing_or_damaged(run, spoil, phase, kind, words):
    spoil(run)
    found = decide(of(run), PHASES[phase])
    assert found.kind == kind and words in found.said


# Paths


@pytest.mark.parametrize(
    "home, old, new, same",
    [
        ("run", None, None, True),
        ("run", None, "..", False),
        ("run", "take-cover", "take-cover", True),
        ("run", "/data/other", "/data/another", False),
        ("run/round-1", "..", "..", True),
        ("run/round-2", "../round-1", "../round-1", True),
        ("run/round-1", "/gone/run", "..", True),
        ("run/round-2", "/gone/run/round-1", "../round-1", True),
        ("run/round-2", "/gone/run", "../round-1", False),
        ("run/round-1", "/gone/run/round-1", "/data/run", False),
        ("run", "/gone/run", ".", False),
        ("again", "/gone/run", ".", True),
        ("run", "../a", "/data/a", True),
        ("run", "runs/a", "../a", True),
        ("run", "../a", "../b", False),
    ],
)
def test_a_run_knows_what_it_went_on_from_after_a_move(home, old, new, same, tmp_path):
    (tmp_path / home).mkdir(parents=True)
    (tmp_path / "again" / "memory-1").mkdir(parents=True)
    assert is_same(old, new, tmp_path / home) == same


def test_the_way_to_what_moves_along_is_relative(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    for part in ("a/round-1", "b", "c"):
        (runs / part).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(runs)
    home = runs / "a" / "round-1"
    found = {str(source): way(str(source), home) for source in (runs / "a", home, "take-cover")}
    assert list(found.values()) == ["..", ".", "take-cover"]
    assert way("a/round-1", runs / "a") == "round-1" and way("b", runs / "c") == "../b"
    assert way(str(tmp_path / "elsewhere"), home) == str(tmp_path / "elsewhere")
    assert way("no such run", home) == "no such run" and way(None, home) is None


# What is held out


def test_no_m_is_judged_by_what_a_forebear_was_trained_on(smoke, tmp_path):
    some = dataclasses.replace(sequences([2] * 300), seeds=np.arange(300))
    run = of(tmp_path, memory={"start_from": str(smoke[0])})
    asked = dataclasses.replace(run.config.memory, held_out=0.05)
    assert judged_below(run, asked, some) == 0.05, "less is held out of what was held out"
    asked = dataclasses.replace(asked, held_out=0.3)
    with pytest.raises(CheckpointError, match=r"held out the episodes below 0.1, but .* below 0.3"):
        judged_below(run, asked, some)
    few = dataclasses.replace(some, seeds=some.seeds[places(some.seeds) > 0.5][:1].repeat(300))
    few.seeds[1:] += 1000
    if places(few.seeds).min() > 0.1:
        with pytest.raises(CheckpointError, match="collect more episodes"):
            judged_below(run, dataclasses.replace(asked, held_out=0.1), few)
    meta = Store(smoke[0] / "memory").meta()
    assert held_below(smoke[0], meta) == meta["held_below"] == 0.1


def test_what_is_judged_is_what_m_held_out():
    many = sequences([1] * 1000)
    train, _ = many.split(0.05)
    below = many.boundary(0.05)
    assert not set(many.below(below).seeds) & set(train.seeds)
    with pytest.raises(ValueError, match="M may have been trained on each of these"):
        train.below(below)


@pytest.mark.parametrize(
    "made, below",
    [
        ({"held_below": 0.2, "config": {"held_out": 0.1}}, 0.2),
        ({"config": {"held_out": 0.15}, "data": "x", "held_out_by": "seed"}, 0.15),
        ({"config": {"held_out": 0.15}, "data": "x"}, 0.0),
        ({"source": "w", "made": {"world": {"held_below": 0.07}}}, 0.07),
        ({"made": {"config": {"held_out": 0.25}, "data": "x", "held_out_by": "seed"}}, 0.25),
        ({"released": True}, 1.0),
    ],
)
def test_what_a_world_s_m_held_out_is_told_however_often_it_is_handed_on(made, below, tmp_path):
    assert held_below(tmp_path, made) == below


# Whose shards


@pytest.mark.slow
def test_a_new_c_records_anew_and_the_old_one_s_games_are_kept(run, monkeypatch, capsys):
    monkeypatch.setattr("dreamjax.recording.SHARD", 2)  # episodes of a shard
    words = ["--preset", "smoke", "--run-dir", str(run), "--collect.episodes", "2"]
    record = ["record", SHORT.name, *words]
    assert cli.main(record) == 0 and cli.main(["encode", SHORT.name, *words]) == 0
    (path,) = shard_paths(run / "played")
    first, seen = path.read_bytes(), (run / "latents" / path.name).read_bytes()
    path.write_bytes(b"garbage")
    assert cli.main(record) == 0 and path.read_bytes() == first, "noticed, and played again"
    assert path.with_name(f"{path.name}.corrupt").read_bytes() == b"garbage"
    (run / "played" / "players.json").unlink()  # as older runs are
    assert cli.main(record) == 0 and path.read_bytes() == first
    world = load_world(run)
    player = world.player
    dataclasses.replace(player, weights=-10 * player.weights).save(run, world)
    asked = of(run, collect={"episodes": 2})
    assert decide(asked, PHASES["record"]).kind == AGAIN
    capsys.readouterr()
    (run / "played" / "players.json").unlink()  # those of an older run are told by how it plays
    assert cli.main(record) == 0
    assert f"played so far is kept in {run / 'played-1'}" in capsys.readouterr().out
    assert (run / "played-1" / path.name).read_bytes() == first
    assert (run / "played-1" / "latents" / path.name).read_bytes() == seen
    assert path.read_bytes() != first and decide(asked, PHASES["record"]).kind == DONE
    assert cli.main(["encode", SHORT.name, *words]) == 0
    actions = read_latents(run / "latents").actions[-len(rollouts.part(path, "actions")) :]
    np.testing.assert_array_equal(actions, rollouts.part(path, "actions"))
    assert cli.main([*record, "--seed", "3"]) == 0, "other games are other episodes"
    assert (run / "played-2" / path.name).exists()


# The game by value


EDITS = {
    "crop": (0, 80, 0, 160),
    "frame_skip": 2,
    "max_steps": 100,
    "ends": ("death", "exit"),
    "profile": "another",
    "actions": Keys(pressed=0.5),
    "step_reward": None,
    "reward_scale": 2.0,
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_game_is_refused_before_anything_is_done(name, run, smoke):
    edited = dataclasses.replace(SHORT, **{name: EDITS[name]})
    before = contents(run)
    for phase in PHASES.values():
        assert decide(of(run, edited), phase).kind == REFUSE
    with pytest.raises(CheckpointError) as error:
        check_game(of(run, edited))
    line = str(error.value)
    assert "\n" not in line and "another" in line and "directory" in line
    assert name == "profile" or f"made with {name} " in line
    assert contents(run) == before
    (run / "task.json").unlink()  # as in older runs
    if name not in ("profile", "max_steps"):
        check_game(of(run, edited))


@pytest.mark.parametrize(
    "harmless",
    [
        {"paper": None},
        {"frames_per_second": 1},
        {"blind": "held"},
        {"habits": "held"},
        {"temperature": 2.0},
    ],
)
def test_what_cannot_change_data_may_be_edited(harmless, tmp_path):
    for phase in PHASES.values():
        (tmp_path / phase.folder).mkdir(exist_ok=True)
        note_game(of(tmp_path), phase.folder, phase.task)
    check_game(of(tmp_path, dataclasses.replace(SHORT, **harmless)))


def test_a_form_of_models_may_be_edited_until_there_is_one(run):
    edited = dataclasses.replace(SHORT, latent_size=4, controller_reads=("h",))
    with pytest.raises(CheckpointError, match="was made with latent_size 8 .* which is now 4"):
        check_game(of(run, edited))
    for part in ("vision", "latents", "memory", "world", "controller", "evolve", "results.json"):
        path = run / part
        path.unlink() if path.is_file() else shutil.rmtree(path)
    check_game(of(run, edited))


@pytest.mark.parametrize("content", ["", "[]", '{"rollouts": 3}', "\0"])
def test_a_damaged_account_of_the_game_is_set_aside(content, run):
    (run / "task.json").write_text(content)
    ledger.begin(of(run), PHASES["collect"])
    assert (run / "task.json.corrupt").read_text() == content
    assert json.loads((run / "task.json").read_text())["rollouts"]["max_steps"] == 160


@pytest.mark.parametrize("name", ["crop", "frame_skip", "ends", "actions", "max_steps", "profile"])
def test_the_library_s_collection_knows_its_game(name, smoke, tmp_path):
    shutil.copytree(smoke[0] / "rollouts", tmp_path / "rollouts")
    edited = dataclasses.replace(SHORT, **{name: EDITS[name]})
    with pytest.raises(ValueError, match=f"holds a collection with {name} .*choose another direc"):
        collect(edited, tmp_path / "rollouts", 8, 0)
    path = tmp_path / "rollouts" / "collection.json"
    told = json.loads(path.read_text())
    older = set(told) - {"crop", "frame_skip", "ends", "actions"}
    path.write_text(json.dumps({key: told[key] for key in older}))
    assert collect(SHORT, tmp_path / "rollouts", 8, 0).episodes == 8
    assert json.loads(path.read_text())["crop"] == settings_of(SHORT, "held", 0)["crop"]


# Episodes of one's own in a world that was handed on


@pytest.mark.slow
def test_a_shipped_world_is_gone_on_from_with_episodes_of_one_s_own(smoke, tmp_path, capsys):
    world, run = tmp_path / "world", tmp_path / "mine"
    assert cli.main(["export", "--run-dir", str(smoke[0]), "--target", str(world)]) == 0
    words = [SHORT.name, "--run-dir", str(run), "--preset", "smoke", *TINY, "--seed", "1"]
    words += ["--evaluate.episodes=2", "--evaluate.baseline-episodes=2", "--evolve.eval-every=1"]
    assert cli.main(["collect", *words, "--world", str(world)]) == 0
    given = load_world(run)
    few = ["--memory.learning-rate", "1e-9", "--memory.hidden-size", "9"]  # M's is the world's
    assert cli.main(["encode", *words]) == 0
    assert cli.main(["train-memory", *words, *few]) == 0
    ours = load_world(run)
    assert digest(ours.vision) == digest(given.vision) and ours.digest() != given.digest()
    np.testing.assert_allclose(
        ours.memory.head_kernel[...], given.memory.head_kernel[...], atol=1e-4
    )
    assert Store(run / "memory").meta()["config"]["start_from"] == "given"
    assert load_world(run / "given").digest() == given.digest(), "what was given is kept"
    load_player(run / "given", given)
    assert cli.main(["evaluate", *words]) == 1 and "evolve again" in capsys.readouterr().err
    assert cli.main(["run", *words, *few]) == 0, "which goes on with what is left"
    said = capsys.readouterr().out
    assert "memory: finished before" in said and "collect" not in said
    run = run.rename(tmp_path / "moved")
    words[2] = str(run)
    assert cli.main(["train-memory", *words, *few, "--world", str(world)]) == 0
    assert cli.main(["doctor", str(run)]) == 0
    assert "refuses" not in capsys.readouterr().out


def test_m_of_a_given_world_is_gone_on_from_unless_told_otherwise(smoke, tmp_path):
    save_world(tmp_path / "run", load_world(smoke[0]), {"source": "w"})
    shutil.copytree(smoke[0] / "latents", tmp_path / "run" / "latents")
    asked = decide(of(tmp_path / "run"), PHASES["train-memory"])
    assert asked.inputs.facts["config"]["start_from"] == "given"
    chance = decide(of(tmp_path / "run", memory={"start_from": "chance"}), PHASES["train-memory"])
    assert chance.inputs.facts["config"]["start_from"] is None
    doubled = jax.tree.map(lambda x: 2 * x, load_world(smoke[0]).vision)
    other = dataclasses.replace(load_world(smoke[0]), vision=doubled)
    save_world(tmp_path / "run", other, {"source": "w"})
    assert "run encode again" in decide(of(tmp_path / "run"), PHASES["train-memory"]).said


def test_what_a_world_that_will_be_given_allows_is_not_refused(tmp_path, capsys):
    new = Run(tmp_path / "new", SHORT, 0, RunConfig(), Logbook())
    phases = [PHASES["learn"], PHASES["evaluate"]]
    assert ledger.foretold(new, phases, "take-cover") == ("learn", "evaluate")
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("new is given take-cover") and len(said) == 3
    assert all("waits for what is before it" in line for line in said[1:])
