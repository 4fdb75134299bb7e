"""How far M sees, judged on an M whose predictions are known; whether it knows when it errs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from test_fidelity import sequences, world_of
from untrained import random_memory

from dreamjax.dream.env import DreamEnv
from dreamjax.fidelity import doubt_foretells
from dreamjax.memory import training
from dreamjax.memory.foresight import foreseen, foresight, usual_warm_up
from dreamjax.memory.heads import Mixture, Prediction
from dreamjax.memory.training import MemoryConfig, train_memory
from dreamjax.training.logbook import Logbook


class Adder(struct.PyTreeNode):
    """An M that is sure of z to come: z + action, and `off`."""

    off: float = 0.0

    def initial_carry(self, batch=()):
        return jnp.zeros((*batch, 1))

    def sequence(self, carry, z, action, age):
        return carry, None

    def __call__(self, carry, z, action, age):
        mean = (z + action + self.off)[..., None, :]
        return carry, Prediction(Mixture(jnp.zeros_like(mean), mean, jnp.full_like(mean, -9.0)))


def walks(task, lengths, seed=0):
    """Episodes in which each action is added to all of z."""
    found = sequences(task, lengths, seed)
    mu = [np.cumsum(np.append(0, x[:-1])) for x in np.split(found.actions[:, 0], found.first[1:])]
    mu = np.repeat(np.concatenate(mu)[:, None], task.latent_size, 1).astype(np.float16)
    return dataclasses.replace(found, mu=mu)


def test_an_m_that_obeys_errs_by_other_actions_alone(small_task):
    latents = walks(small_task, [40, 26, 40])
    found = foresight(Adder(), latents, ahead=(1, 5, 15, 50), warm_up=20)
    assert found["ahead"] == [1, 5, 15], "no episode has 50 steps more"
    np.testing.assert_allclose(found["error"], 0, atol=1e-3)
    starts, spread = latents.first.astype(int) + 20, latents.mu.astype(float).var(axis=0).sum()
    for k, copy, control in zip(found["ahead"], found["copy"], found["control"], strict=True):
        there = range(3) if k < 6 else (0, 2)  # the second has but 26 steps
        went = [latents.actions[start : start + int(k)].sum() for start in starts]
        apart = [went[i] - went[i - 1] for i in there]  # each is given the actions before it
        size = small_task.latent_size / spread
        assert copy == pytest.approx(size * np.mean([went[i] ** 2 for i in there]), rel=0.02)
        if k < 6:
            assert control == pytest.approx(size * np.mean(np.square(apart)), rel=0.02)
    assert "15: 0.00 (" in foreseen(found)


def test_an_error_counts_in_the_variance_of_what_was_seen(small_task):
    latents = walks(small_task, [40, 26, 40])
    found = foresight(Adder(off=0.5), latents, ahead=(1, 5), warm_up=20)
    size = small_task.latent_size / latents.mu.astype(float).var(axis=0).sum()
    np.testing.assert_allclose(found["error"], size * np.square([0.5, 2.5]), rtol=0.02)


def test_the_first_dreamt_step_is_m_s_own_after_the_warm_up(small_task):
    memory = random_memory(small_task)
    latents, kernel = sequences(small_task, [9, 3, 12]), memory.lstm_kernel
    kernel[...] = kernel[...].at[small_task.latent_size].multiply(30.0)  # actions matter
    found = foresight(memory, latents, ahead=(1, 3), warm_up=4)
    nll = []
    for start in (0, 12):
        carry = memory.initial_carry()
        for t in range(5):
            z, action = jnp.float32(latents.mu[start + t]), latents.actions[start + t]
            carry, told = memory(carry, z, action, jnp.int32(t))
        nll.append(-told.latent.log_prob(jnp.float32(latents.mu[start + 5])).mean())
    np.testing.assert_allclose(found["nll"][0], np.mean(nll), rtol=1e-3)
    with pytest.raises(ValueError, match="no episode has 16 steps, the longest has 12"):
        foresight(memory, latents, warm_up=14)


@pytest.mark.parametrize("lengths, steps", [([9, 3, 12], 3), ([100, 90, 7], 20), ([2, 2], 1)])
def test_a_dream_begins_early_in_short_episodes(small_task, lengths, steps):
    latents = walks(small_task, lengths)
    assert usual_warm_up(latents) == steps
    if max(lengths) > steps + 1:
        told = foresight(Adder(), latents, ahead=(1,))
        assert told == foresight(Adder(), latents, ahead=(1,), warm_up=steps)


def test_a_training_tells_how_far_its_m_sees(small_task, tmp_path, capsys, monkeypatch):
    """At every so many updates but the last, of the episodes that are held out."""
    heard = []

    def hearing(memory, latents):
        heard.append(latents.seeds.tolist())
        return foresight(memory, latents, ahead=(1, 3), warm_up=4)

    monkeypatch.setattr(training, "foresight", hearing)
    latents = sequences(small_task, [12] * 8)
    sizes = {"batch_size": 2, "sequence_length": 10, "steps_per_call": 2, "held_out": 0.3}
    config, log = MemoryConfig(steps=8, eval_every=3, **sizes), Logbook(tmp_path)
    train_memory(small_task, latents, config, 0, log=log)
    held = latents.split(0.3)[1].seeds.tolist()
    lines = [x for x in capsys.readouterr().out.splitlines() if "error by steps" in x]
    assert heard == [held, held] and [x.split(":")[1] for x in lines] == [" update 4", " update 6"]
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if {"error", "control"} <= row.keys()] == [4, 6]
    train_memory(small_task, latents, dataclasses.replace(config, eval_every=0), 0)
    assert len(heard) == 2


def test_doubt_is_told_where_it_is_asked_for_and_changes_no_dream(dream):
    env, params = dream
    asked, (_, state) = env.with_doubt(), env.reset(jax.random.key(0), params)
    assert (
        asked != env and "doubt" not in env.step(jax.random.key(1), state, jnp.ones(1), params)[-1]
    )
    one, *plain = env.step_env(jax.random.key(1), state, jnp.ones(1), params)
    two, *told = asked.step_env(jax.random.key(1), state, jnp.ones(1), params)
    np.testing.assert_array_equal(one, two)
    assert float(told[-1]["doubt"]) > 1e-3 and "doubt" not in plain[-1]
    still = jax.tree.map(jnp.zeros_like, params.memory)  # one that reads nothing doubts nothing
    *_, info = asked.step_env(jax.random.key(1), state, jnp.ones(1), params.replace(memory=still))
    assert float(info["doubt"]) < 1e-5
    *_, info = jax.vmap(asked.step, (0, None, None, None))(
        jax.random.split(jax.random.key(1)), state, jnp.ones(1), params
    )
    assert info["doubt"].shape == (2,)


def test_doubt_that_is_the_error_foretells_it(small_task, monkeypatch):
    memory = random_memory(small_task)
    world, latents = world_of(small_task, memory), sequences(small_task, [40, 30])
    honest = doubt_foretells(world, latents)
    assert honest["n"] == 28 + 18 and -1 <= honest["rho"] <= 1  # of steps 11 to the last but one
    mu = np.repeat(latents.mu[latents.first], latents.lengths, axis=0)  # each stands still
    latents = dataclasses.replace(latents, mu=mu)
    memory.head_kernel[...] *= 0  # expects the same always
    memory.head_bias[...] *= 0
    jax.clear_caches()  # of the doubt before
    monkeypatch.setattr(DreamEnv, "doubt", lambda env, key, state, *_: (state.z**2).sum())
    assert doubt_foretells(world_of(small_task, memory), latents)["rho"] > 0.8
